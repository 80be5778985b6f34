"""What two processes bring a study on two cores: `python -m benchmarks.workers`.

The study `worth`, small, in four scenarios, anew each time: wall-clock time with one process and with two, in
turns. Starting processes, importing, and waiting for the slowest part are in it. Needs an idle machine.
"""

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.step import machine
from defiance.parts import Parts
from defiance.studies import Silent, Workers, worth

TURNS = 1

QUICK = worth.PRESETS["quick"]
CONFIG = replace(
    QUICK,
    unseen_scene="",
    speeds_kmh=(30.0, 50.0),
    loads=(0.5, 1.0),
    caps=QUICK.caps[:1],
    users=40,
    validation_users=30,
    validation_s=20.0,
    training=replace(QUICK.training, worlds=4, rounds=3, federated_rounds=15),
)


def wall_s(count: int) -> float:
    """Seconds that the study takes with so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        begun_s = time.perf_counter()
        worth.run(
            CONFIG,
            seeds=(0, 1),
            parts=Parts.open(Path(folder), "bench"),
            progress=Silent(),
            workers=Workers(count),
        )
        return time.perf_counter() - begun_s


def main() -> None:
    """Prints the times of every turn and the ratio of the medians."""
    wall_s(2)  # compiled code is cached
    turns = [(wall_s(1), wall_s(2)) for _ in range(TURNS)]
    one, two = (sorted(times)[TURNS // 2] for times in zip(*turns, strict=True))
    print(json.dumps({"one_s": one, "two_s": two, "speedup": one / two, "turns_s": turns, **machine()}))


if __name__ == "__main__":  # processes import this file anew
    main()
