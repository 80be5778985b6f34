"""What the study `beams` can be asked: its configuration and presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from defiance.errors import DefianceError
from defiance.network.settings import BOLTZMANN_DBM_PER_HZ


@dataclass(frozen=True)
class Training:
    """How the models of a city's stations are trained; a node is a station."""

    users: int = field(
        default=4000, metadata={"min": 50, "max": 100_000, "help": "ways of users that a city records"}
    )
    array_samples: int = field(
        default=30_000,
        metadata={"min": 100, "max": 1_000_000, "help": "plane waves that every model sees first"},
    )
    array_rounds: int = field(default=40, metadata={"min": 1, "max": 1000, "help": "rounds on plane waves"})
    rounds: int = field(default=12, metadata={"min": 1, "max": 1000, "help": "rounds in the city"})
    steps_per_round: int = field(default=40, metadata={"min": 4, "help": "optimiser steps per round"})
    batch: int = field(default=64, metadata={"min": 8, "help": "samples of a station per step"})
    width: int = field(default=256, metadata={"min": 4, "max": 1024, "help": "neurons of both hidden layers"})
    learning_rate: float = field(
        default=2e-3, metadata={"min": 1e-6, "max": 1.0, "help": "of Adam at the start"}
    )
    seeds: int = field(default=4, metadata={"min": 1, "max": 100, "help": "models of a kind and regime"})


@dataclass(frozen=True)
class Measured:
    """The part on measured beams (DeepSense 6G), left out where the recordings aren't there."""

    folds: int = field(default=5, metadata={"min": 0, "max": 5, "help": "that are tested; 0: left out"})
    tune: bool = field(default=True, metadata={"help": "choose settings on validation sequences"})
    batch: int = field(default=64, metadata={"min": 8, "help": "samples of a site per step"})
    rounds: int = field(default=40, metadata={"min": 1, "max": 1000})
    steps_per_round: int = field(default=20, metadata={"min": 4})


@dataclass(frozen=True)
class Config:
    """Configuration of the study."""

    city: str = field(
        default="munich", metadata={"help": "walks that are trained on: a shipped city or a file"}
    )
    unseen_city: str = field(default="florence", metadata={"help": "walks for generalisation; empty: none"})
    speeds_kmh: tuple[float, ...] = field(default=(3.0, 60.0), metadata={"min": 0.1, "max": 100.0})
    users: int = field(default=24, metadata={"min": 4, "max": 1000, "help": "of a seed, one by one on walks"})
    duration_s: float = field(
        default=2.5, metadata={"min": 1.0, "unit": "s", "help": "of their ways, the first 0.5 s not judged"}
    )
    users_per_sector: int = field(
        default=10,
        metadata={"min": 1, "max": 100, "help": "who share its symbols (TR 38.843 assumes 10)"},
    )
    tx_power_dbm: float = field(default=35.0, metadata={"unit": "dBm", "help": "radiated by a sector"})
    bandwidth_hz: float = field(default=400e6, metadata={"min": 1e6, "unit": "Hz"})
    noise_figure_db: float = field(default=10.0, metadata={"min": 0.0, "unit": "dB", "help": "of devices"})
    least_snr_db: float = field(
        default=-12.0,
        metadata={"unit": "dB", "help": "with one element; users below it are served at lower carriers"},
    )
    regimes: tuple[Literal["local", "federated", "gossip", "central"], ...] = field(
        default=("local", "federated", "gossip", "central"), metadata={"help": "who trains"}
    )
    validation_seeds: int = field(
        default=2, metadata={"min": 1, "max": 20, "help": "on which rules and models are tuned"}
    )
    training: Training = Training()
    measured: Measured = Measured()

    @property
    def gain_to_snr_db(self) -> float:
        """SNR less path gain."""
        noise_dbm = BOLTZMANN_DBM_PER_HZ + 10 * math.log10(self.bandwidth_hz) + self.noise_figure_db
        return self.tx_power_dbm - noise_dbm


FULL = Config()
SMALL = replace(
    FULL,
    users=16,
    duration_s=1.5,
    regimes=("federated", "central"),
    validation_seeds=1,
    training=replace(
        FULL.training, users=1000, array_samples=4000, array_rounds=12, rounds=6, steps_per_round=20, seeds=2
    ),
    measured=replace(FULL.measured, folds=1, tune=False, rounds=20),
)
PRESETS = {"quick": SMALL, "full": FULL}
SEEDS = {"quick": 2, "full": 8}


def check(config: Config) -> None:
    """Refuses what can't be done.

    Raises:
        DefianceError: there are no speeds, or nothing is to be trained, or one thing is named twice.
    """
    for name in ("speeds_kmh", "regimes"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise DefianceError(f"beams needs {name}, each once; got {list(values)}")
    if config.unseen_city == config.city:
        raise DefianceError(f"unseen_city is {config.city}, which is trained in; name another, or none")
