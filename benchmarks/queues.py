"""What queues cost: `python -m benchmarks.queues [--json]`.

Speed: 1,000 users in Munich, 21 cells, 50 km/h, under event A3 (3 dB, no time to trigger), the whole loop on
one core, three ways in turn: without queues; with queued messages; with 4 Mbit of models for everyone and a
log of 1,570 bits per user and second in them, too. Memory: the largest resident memory of a process of its
own, and how much of it came with a million packets in 4,000 queues, half of which are then sent step by step.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.step import machine
from defiance.control.handover import A3
from defiance.link import Packets
from defiance.network.queues import QueuedLink
from defiance.network.settings import RadioConfig
from defiance.network.signalling import NO_BULK, BulkTraffic
from defiance.network.simulate import simulate
from defiance.network.world import draw_worlds
from defiance.scene import load
from defiance.seeding import stream

USERS, DURATION_S, REPETITIONS = 1000, 6.0, 3
MODEL_BITS, LOG_BITS, LOG_EVERY_S = 4_000_000, 1470, 1.0
PACKETS, QUEUES, BITS, STEPS = 1_000_000, 4_000, 12_000, 50


def traffic() -> BulkTraffic:
    """A model to every user at a random time, and a log from every user each second."""
    random, users = stream(1, "traffic"), torch.arange(USERS)
    logs = int(DURATION_S / LOG_EVERY_S)
    phase_s = LOG_EVERY_S * random.child("logs").uniform(users)[:, None]
    return BulkTraffic(
        downlink=Packets.of(
            users,
            destination=users,
            purpose="model",
            payload_bits=MODEL_BITS,
            offered_s=DURATION_S * random.uniform(users),
        ),
        uplink=Packets.of(
            torch.arange(USERS * logs),
            source=users.repeat_interleave(logs),
            purpose="data",
            payload_bits=LOG_BITS,
            offered_s=(phase_s + LOG_EVERY_S * torch.arange(logs)).flatten(),
        ),
    )


def speed() -> list[dict[str, Any]]:
    """User-steps per CPU-second, the fastest of the repetitions; as a share of that without queues."""
    config, rule = RadioConfig(), A3(3.0, 0.0, 0.0, 0.0)
    world = draw_worlds(
        load("munich"),
        config,
        [stream(1, "world")],
        users=USERS,
        duration_s=DURATION_S + 1,
        speed_kmh=50.0,
        load=0.5,
        demand_bps=3e5,
    )
    programs = {
        "without queues": (config, NO_BULK),
        "queued messages": (replace(config, messages="queued"), NO_BULK),
        "queued messages, models, logs": (replace(config, messages="queued"), traffic()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for repetition in range(REPETITIONS + 1):
        for name, (radio, bulk) in programs.items():
            began_s = time.process_time()
            simulate(world, radio, rule, stream(1, "m"), duration_s=DURATION_S, warm_up_s=0.0, bulk=bulk)
            if repetition:  # the first one compiles
                seconds[name].append(time.process_time() - began_s)
    shortest_s = {name: min(times) for name, times in seconds.items()}
    steps = USERS * config.steps(DURATION_S)
    return [
        {
            "program": name,
            "user_steps_per_cpu_s": steps / taken_s,
            "share": shortest_s["without queues"] / taken_s,
        }
        for name, taken_s in shortest_s.items()
    ]


def million() -> dict[str, float]:
    """Offers a million packets and serves half of their bits; memory in GB, time per step in seconds."""
    before_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    number = torch.arange(PACKETS)
    packets = Packets.of(number, source=number % QUEUES, purpose="data", payload_bits=BITS, offered_s=0.0)
    rate_bps = PACKETS * BITS / QUEUES / 2 / (STEPS * 0.02)
    link = QueuedLink("source", 0.005, rate_bps=rate_bps)
    state, rng = link.offer(link.initial(), packets, 0.0), stream(1, "m")
    del packets, number
    began_s, arrived = time.process_time(), 0
    for step in range(STEPS):
        state, deliveries = link.advance(state, 0.02 * (step + 1), rng)
        arrived += len(deliveries)
    assert len(state) + len(state.line.in_flight) + arrived == PACKETS
    return {
        "packets": PACKETS,
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "before_gb": before_gb,
        "s_per_step": (time.process_time() - began_s) / STEPS,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queues", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--million", action="store_true", help="the memory of a million packets alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.million:
        print(json.dumps(million()))
        return
    alone = [sys.executable, "-m", "benchmarks.queues", "--million"]
    memory = json.loads(subprocess.run(alone, check=True, capture_output=True, text=True).stdout)
    rows, where = speed(), machine()
    if arguments.json:
        print(json.dumps({"machine": where, "rows": rows, "million": memory}, indent=1))
        return
    table = Table(title=f"Loop, {USERS:,} users x 21 cells, one core")
    for column in ("program", "user-steps per CPU-second", "share"):
        table.add_column(column, justify="left" if column == "program" else "right")
    for row in rows:
        table.add_row(row["program"], f"{row['user_steps_per_cpu_s']:,.0f}", f"{row['share']:.2f}")
    console = Console()
    console.print(table)
    console.print(
        "{packets:,} queued packets: {memory_gb:.2f} GB, {before_gb:.2f} GB before them;"
        " {s_per_step:.3f} s per step".format(**memory)
    )
    console.print("{cpu}, {cores} cores, load average {load_average}".format(**where))


if __name__ == "__main__":
    main()
