"""A process whose programs another one times, call after call: `serve` is all that a side needs.

It runs in every peer's environment, so it imports nothing but the standard library. The parent writes a line
with a benchmark's name to get its program ready, then an empty line for every call; each line is answered by
one of JSON. What a program prints goes to stderr.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Program(NamedTuple):
    """What is timed.

    Attributes:
        run: one call; the first one, which may compile, is not counted. It returns what it has measured
            itself, by name, or nothing: then its CPU time counts.
        units: that a call gets through.
    """

    run: Callable[[], Mapping[str, float] | object]
    units: float = 1.0


def serve(version: str, programs: Mapping[str, Callable[[], Program]]) -> None:
    """Answers until stdin closes.

    Args:
        version: of the library that is timed.
        programs: by benchmark, how to get it ready.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(values: Mapping[str, object]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    program = Program(lambda: None)
    for line in sys.stdin:
        if name := line.strip():
            program = programs[name]()
            program.run()
            answer({"version": version})
        else:
            began_s = time.process_time()
            found = program.run()
            rate = program.units / max(time.process_time() - began_s, 1e-9)
            answer(found if isinstance(found, dict) else {"rate": rate})
