"""What the study `training` can be asked: its configuration and presets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from defiance.errors import DefianceError

Function = Literal["handover", "beams", "csi"]
FUNCTIONS: tuple[Function, ...] = get_args(Function)


@dataclass(frozen=True)
class Recipe:
    """How a function's model is trained; it is the same under every effect."""

    rounds: int = field(default=40, metadata={"min": 2, "max": 10000, "help": "exchanges"})
    steps: int = field(
        default=20, metadata={"min": 1, "help": "optimiser steps of a node between two exchanges"}
    )
    batch: int = field(default=64, metadata={"min": 1, "help": "samples of a node per step"})
    learning_rate: float = field(default=1e-3, metadata={"min": 1e-6, "max": 1.0, "help": "of Adam"})
    width: int = field(
        default=96, metadata={"min": 4, "max": 1024, "help": "neurons of a layer, or of a token"}
    )


@dataclass(frozen=True)
class Config:
    """Configuration of the study."""

    functions: tuple[Function, ...] = field(
        default=FUNCTIONS, metadata={"help": "network functions that are trained"}
    )
    scene: str = field(default="munich", metadata={"help": "city of handover: shipped name or scene file"})
    walks: str = field(default="munich", metadata={"help": "of beams and csi: a shipped city or a file"})
    speed_kmh: float = field(default=50.0, metadata={"min": 0.1, "max": 120.0, "unit": "km/h"})
    load: float = field(default=0.5, metadata={"min": 0.0, "max": 1.0, "help": "PRBs occupied"})
    later_speed_kmh: float = field(
        default=30.0, metadata={"min": 0.1, "max": 120.0, "unit": "km/h", "help": "at the rush hour"}
    )
    later_load: float = field(
        default=1.0, metadata={"min": 0.0, "max": 1.0, "help": "PRBs occupied at the rush hour"}
    )
    worlds: int = field(default=3, metadata={"min": 1, "max": 64, "help": "recorded worlds"})
    users: int = field(default=100, metadata={"min": 20, "max": 1000, "help": "users per recorded world"})
    duration_s: float = field(default=120.0, metadata={"min": 10.0, "unit": "s", "help": "recorded time"})
    places: int = field(default=60, metadata={"min": 4, "max": 1000, "help": "of csi, on each walk"})
    beam_users: int = field(default=2000, metadata={"min": 100, "max": 100_000, "help": "of beams"})
    handover: Recipe = Recipe()
    beams: Recipe = Recipe(rounds=40, steps=10, batch=32, learning_rate=2e-3, width=96)
    csi: Recipe = Recipe(rounds=24, steps=10, batch=8, learning_rate=3e-3, width=24)
    compute_share: float = field(
        default=0.02,
        metadata={"min": 1e-6, "max": 1.0, "help": "of a core of the station's SoC, for training"},
    )
    backhaul_bps: float = field(
        default=1e9, metadata={"min": 1e3, "unit": "bit/s", "help": "shared by the stations"}
    )
    backhaul_delay_s: float = field(default=5e-3, metadata={"min": 0.0, "unit": "s"})
    pue: float = field(
        default=1.5, metadata={"min": 1.0, "max": 3.0, "help": "joules of a data centre per joule computed"}
    )

    def recipe(self, function: Function) -> Recipe:
        """Of one function."""
        found: Recipe = getattr(self, function)
        return found

    def city(self, function: Function) -> str:
        """Where a function is trained."""
        return Path(self.scene if function == "handover" else self.walks).stem


FULL = Config()
QUICK = replace(
    FULL,
    functions=("handover", "beams"),
    worlds=1,
    users=80,
    duration_s=60.0,
    places=24,
    beam_users=800,
    handover=Recipe(rounds=20, steps=10, batch=32, width=48),
    beams=Recipe(rounds=16, steps=10, batch=32, learning_rate=2e-3, width=48),
    csi=Recipe(rounds=8, steps=4, batch=4, learning_rate=3e-3, width=12),
)
PRESETS = {"quick": QUICK, "full": FULL}
SEEDS = {"quick": 2, "full": 5}


def check(config: Config) -> None:
    """Refuses what asks for nothing.

    Raises:
        DefianceError: no function is named, or one twice.
    """
    if not config.functions or len(set(config.functions)) < len(config.functions):
        raise DefianceError(f"training needs functions, each once; got {list(config.functions)}")
