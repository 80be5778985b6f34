"""DEFIANCE beside its peers: `python -m benchmarks.compare`, or `make bench`; see docs/benchmarks.md.

    python -m benchmarks.compare                           everything, into results/benchmarks.json
    python -m benchmarks.compare --only crrm --repetitions 3 --out out/trial.json

Both sides of a comparison are processes of one thread that take turns, so that what else the machine does
meets both. A row's ratio is the median over the repetitions, > 1 where we are better; its interval is that of
the order statistics that hold the median with 95 %, or the extremes where there are fewer than six.
"""

import argparse
import json
import math
import os
import select
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.environments import FOLDER, REPOSITORY, environment, last_line
from benchmarks.step import machine
from defiance.errors import DefianceError
from defiance.parts import write_atomically

OURS = "ours"
ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"),
    "MPLBACKEND": "Agg",
    "SDL_VIDEODRIVER": "dummy",
    "PYTHONDONTWRITEBYTECODE": "1",
}
REPETITIONS = 9
ANSWER_S = 900
WIDTH = 160  # of the table in a file
PAGE = REPOSITORY / "docs" / "benchmarks.md"
BEGIN, END = "<!-- made by `make bench` -->", "<!-- end -->"
STEP_MS = 21.0  # of N-MNIST's 315 ms in 15 steps: what a stream that keeps up has for each
COVERAGE = 0.95


@dataclass(frozen=True)
class Bar:
    """A number to reach where there is no peer.

    Attributes:
        number: in the comparison's unit.
        measured: which of the numbers that the program measures.
        lower: the lower number is the better one.
    """

    number: float
    measured: str
    lower: bool = False


@dataclass(frozen=True)
class Comparison:
    """A line of the table.

    Attributes:
        bench: its name.
        unit: of both sides' numbers.
        program: ours, of `benchmarks.ours`.
        peer: environment and module of the other side; `ours` for a program of ours, none for a bare number.
        peer_program: the other side's.
        wanted: the ratio to reach; 0 if none is set. A bar's is 1.
        bar: what we are compared with if there is no peer.
        repetitions: at most.
    """

    bench: str
    unit: str
    program: str
    peer: str = ""
    peer_program: str = ""
    wanted: float = 0.0
    bar: Bar | None = None
    repetitions: int = 100

    @property
    def against(self) -> str:
        """What stands in the table as the peer."""
        if self.bar is not None:
            return f"bar: {self.bar.number:g} {self.unit}"
        return self.peer_program if self.peer == OURS else self.peer


RECORDINGS, USERS = "recordings/CPU-s", "user-steps/CPU-s"
LINKS, WORLDS = "link-steps/CPU-s", "env steps/CPU-s"
COMPARISONS = (
    Comparison("SNN training", RECORDINGS, "training", "snntorch", "training", wanted=1),
    Comparison("SNN training", RECORDINGS, "training", "spikingjelly", "training", wanted=1),
    Comparison(
        "epoch of 10,000 recordings, two threads",
        "s",
        "epoch",
        bar=Bar(60, "wall_s", lower=True),
        repetitions=3,
    ),
    Comparison("event camera", "images/CPU-s", "camera", bar=Bar(5000, "rate")),
    Comparison("codec stream, median", "ms", "stream", bar=Bar(STEP_MS, "p50_ms", lower=True), repetitions=3),
    Comparison(
        "codec stream, 99th percentile", "ms", "stream", bar=Bar(STEP_MS, "p99_ms", lower=True), repetitions=3
    ),
    Comparison("19x3 cells, 1,000 users, step", USERS, "19x3 x 1000, step", "crrm", "moving", wanted=10),
    Comparison("19x3 cells, 1,000 users, loop", USERS, "19x3 x 1000, loop", "crrm", "moving", wanted=10),
    Comparison(
        "the same in 8 worlds at once, loop", USERS, "8 x 19x3 x 1000, loop", "crrm", "moving", wanted=10
    ),
    Comparison("user-cell links, step", LINKS, "links, step", "handoverlab", "map card", wanted=2),
    Comparison("user-cell links, loop", LINKS, "links, loop", "handoverlab", "map card", wanted=2),
    Comparison("256 worlds of 3 x 5, step", WORLDS, "256 worlds, step", "mobile_env", "small", wanted=1000),
    Comparison("256 worlds of 3 x 5, loop", WORLDS, "256 worlds, loop", "mobile_env", "small", wanted=1000),
    Comparison("19x3 cells, 1,000 users, step", USERS, "19x3 x 1000, step", "aimm", "moving"),
    Comparison("256 worlds of 1 x 16, step", USERS, "256 worlds of 16, step", "isaac_net", "uplink"),
    Comparison("57 cells, 1,026 users, step", USERS, "57 x 1026, step", "sionna", "scheduling"),
    Comparison(
        "57 x 100,000 users against 57 x 1,000", LINKS, "links, 100000 users", OURS, "links, step", 0.833
    ),
    Comparison(
        "vector environment against the bare step",
        USERS,
        "32 x 21 x 100, environment",
        OURS,
        "32 x 21 x 100, step",
        wanted=0.8,
    ),
    Comparison("bytes of the step against a copy", "bytes/CPU-s", "traffic", OURS, "copy", wanted=0.5),
    Comparison("channels, 21 sectors", "links/CPU-s", "channels on walks", "sionna", "UMa channels"),
    Comparison("channels of 16 paths", "links/CPU-s", "channels of 16 paths", "sionna", "channels of paths"),
    Comparison(
        "channels, 1,000 users", "s", "channels on walks", bar=Bar(2, "cpu_s", lower=True), repetitions=3
    ),
    Comparison("round of 10 tiny clients", "rounds/s", "tiny round", OURS, "Flower's", 3, repetitions=3),
)


class Side:
    """A worker process; see `benchmarks.worker`."""

    def __init__(self, python: Path, module: str, log: Path) -> None:
        """Start it.

        Args:
            python: of its environment.
            module: that serves.
            log: what it says on stderr.
        """
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as messages:
            self.process = subprocess.Popen(
                [str(python), "-m", module],
                cwd=REPOSITORY,
                env={**os.environ, **ONE_THREAD},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
            )

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, where: TracebackType | None) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, line: str = "") -> dict[str, Any]:
        """Have a program made ready, or called.

        Raises:
            DefianceError: the process has died.
        """
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        if not select.select([self.process.stdout], [], [], ANSWER_S)[0]:
            raise DefianceError(f"no answer within {ANSWER_S} s ({self.log} has what it said)")
        answer = self.process.stdout.readline()
        if not answer:
            raise DefianceError(f"{last_line(self.log.read_text(encoding='utf-8'))} (all of it: {self.log})")
        found: dict[str, Any] = json.loads(answer)
        return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The order statistics that hold the median with at least 95 %: x_(k), x_(n+1-k), binomial(n, 1/2)."""
    ordered, n = sorted(values), len(values)
    k = 1
    while 2 * sum(math.comb(n, j) for j in range(k + 1)) <= (1 - COVERAGE) * 2**n:
        k += 1
    return ordered[k - 1], ordered[n - k]


def measure(comparison: Comparison, repetitions: int) -> dict[str, Any]:
    """Time both sides in turns and return the row.

    Raises:
        DefianceError: a side can't be installed or run.
    """
    repetitions = min(repetitions, comparison.repetitions)
    ours, ratios, version = [], [], ""
    with ExitStack() as running:
        if comparison.peer:
            python = Path(sys.executable) if comparison.peer == OURS else environment(comparison.peer)
            module = "benchmarks.ours" if comparison.peer == OURS else f"benchmarks.peers.{comparison.peer}"
            peer = running.enter_context(Side(python, module, FOLDER / f"{comparison.peer}.peer.log"))
            version = str(peer.ask(comparison.peer_program)["version"])
        own = running.enter_context(Side(Path(sys.executable), "benchmarks.ours", FOLDER / "ours.log"))
        own.ask(comparison.program)
        for repetition in range(repetitions):
            if bar := comparison.bar:
                ours.append(own.ask()[bar.measured])
                ratios.append(bar.number / ours[-1] if bar.lower else ours[-1] / bar.number)
            else:
                turns = (own, peer) if repetition % 2 else (peer, own)
                rate = {side: side.ask()["rate"] for side in turns}
                ours.append(rate[own])
                ratios.append(rate[own] / rate[peer])
    low, high = interval(ratios)
    return {
        "bench": comparison.bench,
        "ours": statistics.median(ours),
        "peer": comparison.against,
        "peer_version": version,
        "ratio": statistics.median(ratios),
        "unit": comparison.unit,
        "ratio_low": low,
        "ratio_high": high,
        "wanted": 1.0 if comparison.bar else comparison.wanted,
    }


def compare(chosen: Sequence[Comparison], repetitions: int, console: Console) -> dict[str, Any]:
    """Measure all that can be measured; say what can't and go on."""
    before = os.getloadavg()[0]
    rows, missing = [], []
    for comparison in chosen:
        name = f"{comparison.bench} / {comparison.against}"
        console.print(f"{name} ...", markup=False)
        try:
            rows.append(measure(comparison, repetitions))
        except DefianceError as error:
            console.print(f"{name} is missing: {error}", style="red", markup=False)
            missing.append({"bench": comparison.bench, "peer": comparison.against, "why": str(error)})
    return {
        "schema": "defiance.benchmarks/1",
        "made_by": "make bench",
        "machine": {name: value for name, value in machine().items() if name != "load_average"},
        "load_average": {"before": round(before, 2), "after": round(os.getloadavg()[0], 2)},
        "repetitions": repetitions,
        "rows": rows,
        "missing": missing,
    }


COLUMNS = ("", "peer", "unit", "ours", "ratio", "95 %", "wanted")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row in words, with what is wanted of it."""
    reached = "reached" if row["ratio"] >= row["wanted"] else "missed"
    return (
        row["bench"],
        f"{row['peer']} {row['peer_version']}".strip(),
        row["unit"],
        f"{row['ours']:,.4g}" if row["ours"] < 1000 else f"{row['ours']:,.0f}",
        f"{row['ratio']:,.2f}",
        f"{row['ratio_low']:,.2f} to {row['ratio_high']:,.2f}",
        f"{row['wanted']:g}: {reached}" if row["wanted"] else "",
    )


def circumstances(found: dict[str, Any]) -> str:
    """Where and how it was measured."""
    load = found["load_average"]
    return (
        "{cpu}, {cores} cores, ".format(**found["machine"])
        + f"load average {load['before']} before, {load['after']} after, {found['repetitions']} repetitions"
    )


def document(found: dict[str, Any]) -> None:
    """Write the rows into docs/benchmarks.md."""
    lines = [f"| {' | '.join(columns)} |" for columns in (COLUMNS, ["---"] * len(COLUMNS))]
    lines += [f"| {' | '.join(cells(row))} |" for row in found["rows"]]
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    made = f"{BEGIN}\n\n{circumstances(found)}.\n\n" + "\n".join(lines) + f"\n\n{END}"
    PAGE.write_text(before + made + after, encoding="utf-8")


def show(found: dict[str, Any], console: Console) -> None:
    """Print the rows as a table."""
    table = Table(title="DEFIANCE beside its peers, one thread")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in COLUMNS[3:] else "left")
    for row in found["rows"]:
        table.add_row(*cells(row))
    console.print(table)
    console.print(circumstances(found), markup=False)
    for gap in found["missing"]:
        console.print(f"missing: {gap['bench']} / {gap['peer']}: {gap['why']}", markup=False)


def main() -> None:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", help="peers or words of benchmarks' names")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--out", type=Path, help="file of results; results/benchmarks.json unless --only")
    arguments = parser.parse_args()
    words = [word.lower() for word in arguments.only or [""]]
    chosen = [c for c in COMPARISONS if any(word in f"{c.bench} {c.peer}".lower() for word in words)]
    out = arguments.out or (None if arguments.only else REPOSITORY / "results" / "benchmarks.json")
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    found = compare(chosen, arguments.repetitions, console)
    if out is not None:
        write_atomically(out, json.dumps(found, indent=1) + "\n")
    if not arguments.only and arguments.out is None:
        document(found)
    show(found, console)


if __name__ == "__main__":
    main()
