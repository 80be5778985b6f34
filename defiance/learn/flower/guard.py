"""Ends processes by a mark in their environment (Linux), however they came about.

Run as a program with the mark as its argument it does so once its standard input ends: when whoever holds the
other end has died, in whatever way. Only the standard library is imported, as this file alone is run.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

LONGEST_S = 10.0


def marked(mark: str) -> Iterator[tuple[int, list[str]]]:
    """Ids and commands of the processes that have `mark`, NAME=VALUE, in their environment."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                yield int(entry.name), command
        except OSError:  # gone, or another user's
            continue


def end(mark: str) -> None:
    """Kills them, and what they start meanwhile."""
    end_s = time.monotonic() + LONGEST_S
    while (left := list(marked(mark))) and time.monotonic() < end_s:
        for pid, _ in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end(sys.argv[1])
