"""What the study `quality` can be asked: its configuration and presets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from defiance.errors import DefianceError
from defiance.studies.worth import settings as worth
from defiance.studies.worth.experiments import OFFSETS_DB

Function = Literal["handover", "beams", "csi"]
FUNCTIONS: tuple[Function, ...] = get_args(Function)


@dataclass(frozen=True)
class Beams:
    """The beam model, trained on users of 28 GHz walks, and who is served with it."""

    samples: int = field(default=4000, metadata={"min": 100, "max": 100_000, "help": "that it is trained on"})
    users: int = field(default=24, metadata={"min": 2, "max": 1000, "help": "of a test seed"})
    speed_kmh: float = field(default=30.0, metadata={"min": 0.1, "max": 100.0, "unit": "km/h"})
    test_s: float = field(default=2.0, metadata={"min": 1.0, "unit": "s"})
    width: int = field(default=128, metadata={"min": 4, "max": 1024})
    rounds: int = field(default=40, metadata={"min": 1, "max": 1000})
    steps_per_round: int = field(default=40, metadata={"min": 1})


@dataclass(frozen=True)
class Csi:
    """The channel-feedback codec, trained on places of 3.5 GHz walks, and who is served with it."""

    places: int = field(
        default=80, metadata={"min": 4, "max": 1000, "help": "on each walk, to be trained on"}
    )
    users: int = field(default=80, metadata={"min": 4, "max": 1000, "help": "of a test seed"})
    speed_kmh: float = field(default=3.0, metadata={"min": 0.1, "max": 100.0, "unit": "km/h"})
    test_s: float = field(default=0.4, metadata={"min": 0.04, "unit": "s"})
    width: int = field(default=48, metadata={"min": 4, "max": 512, "help": "of a transformer's token"})
    rounds: int = field(default=12, metadata={"min": 1, "max": 1000})
    steps_per_round: int = field(default=40, metadata={"min": 1})
    batch: int = field(default=96, metadata={"min": 4})


@dataclass(frozen=True)
class Config:
    """Configuration of the study."""

    functions: tuple[Function, ...] = field(
        default=FUNCTIONS, metadata={"help": "network functions that are made worse"}
    )
    scene: str = field(default="munich", metadata={"help": "city of handover: shipped name or scene file"})
    unseen_scene: str = field(
        default="florence", metadata={"help": "city that handover is fine-tuned in; empty: none"}
    )
    walks: str = field(default="munich", metadata={"help": "of beams and csi: a shipped city or a file"})
    speed_kmh: float = field(default=50.0, metadata={"min": 0.1, "max": 120.0, "unit": "km/h"})
    load: float = field(default=0.5, metadata={"min": 0.0, "max": 1.0, "help": "PRBs occupied"})
    cap: float = field(default=8.0, metadata={"min": 0.1, "unit": "1/min", "help": "handovers at most"})
    offsets_db: tuple[float, ...] = field(
        default=OFFSETS_DB, metadata={"unit": "dB", "help": "of A3, to tune among"}
    )
    users: int = field(default=100, metadata={"min": 2, "max": 2000, "help": "users per test world"})
    test_s: float = field(default=60.0, metadata={"min": 5.0, "unit": "s", "help": "time per test world"})
    validation_worlds: int = field(default=4, metadata={"min": 1, "max": 100})
    validation_s: float = field(default=60.0, metadata={"min": 5.0, "unit": "s"})
    training: worth.Training = replace(worth.Training(), worlds=4, width=128, rounds=20, steps_per_round=150)
    beams: Beams = Beams()
    csi: Csi = Csi()
    budgets: tuple[int, ...] = field(
        default=(1, 4, 16), metadata={"min": 1, "help": "rounds of fine-tuning that are compared"}
    )


FULL = Config()
QUICK = replace(
    FULL,
    functions=("handover", "beams"),
    unseen_scene="",
    users=40,
    test_s=30.0,
    validation_worlds=2,
    validation_s=40.0,
    training=replace(FULL.training, worlds=2, width=96, rounds=10, steps_per_round=100),
    beams=replace(Beams(), samples=1500, users=12, test_s=1.2, width=64, rounds=12),
    csi=replace(Csi(), places=24, users=30, test_s=0.1, width=24, rounds=4),
    budgets=(1, 4),
)
PRESETS = {"quick": QUICK, "full": FULL}
SEEDS = {"quick": 3, "full": 8}


def check(config: Config) -> None:
    """Refuses what asks for nothing.

    Raises:
        DefianceError: a list is empty, or names something twice; both cities are one.
    """
    for name in ("functions", "budgets", "offsets_db"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise DefianceError(f"quality needs {name}, each once; got {list(values)}")
    if config.unseen_scene == config.scene:
        raise DefianceError(f"scene and unseen_scene are both {config.scene}; name another city, or none")
