"""What it changes that a link nobody can tell from its mean doesn't fade: `python -m benchmarks.fading`.

The same worlds under event A3, with all links fading and with those of `reference.fades` alone: means over
the users, standard errors over worlds, the shift paired world by world.
"""

from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.worlds import LOAD, RANDOM, SPEED_KMH, urban
from defiance.control.handover import A3
from defiance.network import kernel
from defiance.network.settings import FADING_SHARE, RadioConfig
from defiance.network.simulate import simulate
from defiance.network.world import World, draw_worlds
from defiance.scene import load

WORLDS, USERS, DURATION_S = 8, 200, 60.0
CONFIG = RadioConfig(scheduler="proportional_fair")
PERCENTILES = (5, 50, 95)


def munich() -> World:
    """As `benchmarks.worlds.urban`, 21 cells on streets."""
    return draw_worlds(
        load("munich"),
        CONFIG,
        [RANDOM.child("munich", number) for number in range(WORLDS)],
        users=USERS,
        duration_s=DURATION_S + 2.0,
        speed_kmh=SPEED_KMH,
        load=LOAD,
        demand_bps=1e6,
    )


def indicators(world: World, share: float) -> dict[str, Tensor]:
    """Of every world, `[W]`, if links below this share don't fade."""
    with patch.object(kernel, "FADING_SHARE", share):
        outcome = simulate(
            world,
            CONFIG,
            A3(3.0, 1.0, 0.16, 4.0),
            RANDOM.child("messages"),
            duration_s=DURATION_S,
            record=True,
        )
    state, log = outcome.state, outcome.log
    assert log is not None
    sinr_db = log.sinr_db.float().transpose(0, 1).flatten(1)
    minutes = outcome.duration_s / 60

    def mean(counts: Tensor) -> Tensor:
        return counts.double().mean(-1)

    return {
        "outage, %": 100 * mean(state.outage_steps) * CONFIG.step_s / outcome.duration_s,
        "handovers per user-minute": mean(state.handovers) / minutes,
        "ping-pongs per user-minute": mean(state.ping_pongs) / minutes,
        "failures per user-minute": mean(state.link_failures + state.handover_failures) / minutes,
        "throughput, kbit/s": mean(state.bits) / outcome.duration_s / 1e3,
        **{f"SINR at {p} %, dB": sinr_db.nanquantile(p / 100, 1) for p in PERCENTILES},
        "heard cells": (log.rsrp_dbm > CONFIG.rsrp_floor_dbm).float().sum(-1).mean((0, 2)),
    }


def main() -> None:
    """Prints a table per map."""
    torch.set_num_threads(1)
    for name, world in (("UMa, 57 cells", urban(WORLDS, USERS, DURATION_S + 2.0)), ("Munich", munich())):
        every, told = indicators(world, 0.0), indicators(world, FADING_SHARE)
        table = Table("", "all links fade", "those that can be told", "shift", title=name)
        for key, values in every.items():
            shift = told[key] - values
            error = shift.std() / len(shift) ** 0.5
            cells = f"{values.mean():.3f}", f"{told[key].mean():.3f}", f"{shift.mean():+.4f} +- {error:.4f}"
            table.add_row(key, *cells)
        Console(width=110).print(table)


if __name__ == "__main__":
    main()
