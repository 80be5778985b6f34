"""What a user-cell link costs in small and in large worlds: `python -m benchmarks.scale [--users N ...]`.

One world of 57 cells, a drop of UMa whose users move at 30 km/h. For every number of users: nanoseconds
of CPU per link and step on one thread, the bytes that a link moves through memory over that time, how much
faster a step is on two threads (wall-clock time, which needs an idle machine), and the largest resident
memory so far.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.step import machine
from benchmarks.worlds import link_bytes, urban
from defiance.network import kernel
from defiance.network.settings import RadioConfig
from defiance.network.state import initial

CELLS = 57
REPETITIONS = 4
LINKS = 6_000_000
"""Links of one repetition, at least."""


def shortest_s(run: Callable[[], object]) -> tuple[float, float]:
    """Shortest CPU and wall-clock time of the repetitions."""
    cpu, wall = [], []
    for _ in range(REPETITIONS):
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        run()
        cpu.append(time.process_time() - cpu_s)
        wall.append(time.perf_counter() - wall_s)
    return min(cpu), min(wall)


def measure(users: int) -> dict[str, float]:
    """One row of the table."""
    config = RadioConfig()
    world = urban(1, users, duration_s=10.0)
    state = initial(world, config, torch.arange(users)[None] % CELLS)
    links = users * CELLS
    steps = max(1, LINKS // links)

    def run() -> None:
        kernel.step_in_place(world, state, config, steps)

    torch.set_num_threads(1)
    run()
    cpu_s, one_s = shortest_s(run)
    torch.set_num_threads(2)
    _, two_s = shortest_s(run)
    torch.set_num_threads(1)
    return {
        "users": users,
        "ns_per_link": cpu_s / steps / links * 1e9,
        "gb_per_s": link_bytes(world) * steps * links / cpu_s / 1e9,
        "two_threads": one_s / two_s,
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    rows, where = [measure(users) for users in arguments.users], machine()
    if arguments.json:
        print(json.dumps({"machine": where, "rows": rows}, indent=1))
        return
    table = Table(title=f"One world of {CELLS} cells, one step")
    for column in ("users", "ns per link (CPU)", "GB/s", "two threads", "memory, GB"):
        table.add_column(column, justify="right")
    for row in rows:
        users, *others = row.values()
        table.add_row(f"{users:,.0f}", *(f"{value:.2f}" for value in others))
    console = Console()
    console.print(table)
    console.print("{cpu}, {cores} cores, load average {load_average}".format(**where))


if __name__ == "__main__":
    main()
