"""User-steps per CPU-second of the network simulator: `python -m benchmarks.step [--json]`.

One core, Munich, 21 cells, 300 users at 30 km/h and 50 % load. A user-step is one user for one step of 20 ms.
Three programs:

    simulate    movement, fading, L1 and L3 filtering, the A3 rule, reports and commands in the air, handover,
                radio-link monitoring, load: everything that a study switches on
    kernel      the fused step alone
    reference   the step as a tensor program
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from defiance.control.handover import A3
from defiance.network import kernel, reference
from defiance.network.settings import RadioConfig
from defiance.network.simulate import simulate
from defiance.network.state import initial
from defiance.network.world import draw_worlds
from defiance.scene import load
from defiance.seeding import stream

USERS = 300
TARGET_PER_S = 300_000
REPETITIONS = 9


def programs() -> dict[str, tuple[Callable[[], object], int]]:
    """What is timed, and how many steps each call takes."""
    config, scene, rule = RadioConfig(), load("munich"), A3(3.0, 0.0, 0.0, 0.0)
    world = draw_worlds(
        scene,
        config,
        [stream(1, "world")],
        users=USERS,
        duration_s=60.0,
        speed_kmh=30.0,
        load=0.5,
        demand_bps=1e6,
    )
    state = initial(world, config, reference.path_gain_db(world, world.route_m[:, :, 0]).argmax(-1))
    return {
        "simulate": (
            lambda: simulate(world, config, rule, stream(1, "messages"), duration_s=9.0, warm_up_s=1.0),
            500,
        ),
        "kernel": (lambda: kernel.step_in_place(world, state, config, 100), 100),
        "reference": (lambda: reference.step(world, state, config, 10), 10),
    }


def measure() -> list[dict[str, Any]]:
    """One row per program: user-steps per second of CPU and of wall time over the repetitions."""
    timed = programs()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in timed}
    for repetition in range(REPETITIONS + 1):
        for name, (run, _) in timed.items():
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            run()
            if repetition:  # the first one compiles
                seconds[name].append((time.process_time() - cpu_s, time.perf_counter() - wall_s))
    rows: list[dict[str, Any]] = []
    for name, (_, steps) in timed.items():
        cpu, wall = ([USERS * steps / s for s in column] for column in zip(*seconds[name], strict=True))
        rows.append(
            {
                "program": name,
                "user_steps_per_cpu_s": statistics.median(cpu),
                "user_steps_per_cpu_s_best": max(cpu),
                "user_steps_per_wall_s": statistics.median(wall),
            }
        )
    return rows


def machine() -> dict[str, object]:
    """Where it was measured, and what else the machine was doing."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": version("torch"),
        "numba": version("numba"),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    as_json = parser.parse_args().json
    torch.set_num_threads(1)
    rows, where = measure(), machine()
    if as_json:
        print(json.dumps({"machine": where, "target_per_cpu_s": TARGET_PER_S, "rows": rows}, indent=1))
        return
    console = Console()
    table = Table(title=f"User-steps per second, one core, 21 cells x {USERS} users")
    for column in ("program", "CPU, median", "CPU, best", "wall, median"):
        table.add_column(column, justify="left" if column == "program" else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:,.0f}" for value in row.values()))
    console.print(table)
    console.print("{cpu}, {cores} cores, load average {load_average}".format(**where))
    reached = rows[0]["user_steps_per_cpu_s"] >= TARGET_PER_S
    console.print(f"Target of {TARGET_PER_S:,} for simulate: {'reached' if reached else 'missed'}")


if __name__ == "__main__":
    main()
