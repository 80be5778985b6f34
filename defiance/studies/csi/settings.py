"""What the study `csi` can be asked: its configuration and presets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from defiance.control.csi.dictionary import Dictionary
from defiance.control.csi.networks import Network
from defiance.control.csi.targets import SUBBANDS
from defiance.errors import DefianceError
from defiance.radio.arrays import Panel

Name = Literal["dictionary", "convolutional", "transformer"]
Regime = Literal["local", "federated", "gossip", "central"]
AWAY = "finetuned-whole", "finetuned-decoder"
"""Both halves are trained on in the unseen city, or the base station's alone: devices keep their encoder."""

DICTIONARIES = {
    32: (2, 7, 6, 7, 5, 7),
    64: (3, 8, 8, 8, 5, 11),
    128: (6, 7, 6, 8, 5, 10),
    256: (11, 8, 8, 8, 5, 11),
}
"""By bits of a report: stages, and bits of the first beam, of polarisations, of later beams, of delays and of
coefficients."""


@dataclass(frozen=True)
class Training:
    """How the learned codecs are trained; a regime's nodes share the budget of samples per step."""

    rounds: int = field(default=8, metadata={"min": 1, "max": 1000, "help": "of training, then weights mix"})
    dictionary_steps: int = field(default=12, metadata={"min": 1, "help": "optimiser steps of a round"})
    network_steps: int = field(default=60, metadata={"min": 1, "help": "the same, of the neural codecs"})
    batch: int = field(default=112, metadata={"min": 7, "help": "samples per step, over all nodes together"})
    dictionary_rate: float = field(default=5e-3, metadata={"min": 1e-6, "max": 1.0, "help": "of Adam"})
    network_rate: float = field(default=2e-3, metadata={"min": 1e-6, "max": 1.0, "help": "of Adam"})
    width: int = field(default=64, metadata={"min": 4, "max": 512, "help": "of a transformer's token"})
    channels: int = field(default=12, metadata={"min": 2, "max": 128, "help": "of a convolution"})
    finetuning_rounds: int = field(default=2, metadata={"min": 1, "help": "rounds in the unseen city"})


@dataclass(frozen=True)
class Config:
    """Configuration of the study."""

    city: str = field(default="munich", metadata={"help": "that is trained in: shipped walks, or a file"})
    unseen_city: str = field(default="florence", metadata={"help": "for generalisation; empty: none"})
    band: str = field(default="3.5ghz", metadata={"help": "carrier of the walks"})
    bits: int = field(default=64, metadata={"min": 32, "max": 256, "unit": "bit", "help": "of the verdict"})
    budgets: tuple[int, ...] = field(
        default=(32, 64, 128, 256), metadata={"unit": "bit", "help": "of a report, that are compared"}
    )
    learned: tuple[Name, ...] = field(
        default=("dictionary", "convolutional", "transformer"), metadata={"help": "codecs that are trained"}
    )
    regimes: tuple[Regime, ...] = field(
        default=("local", "federated", "gossip", "central"),
        metadata={"help": "who trains the first of the learned codecs; the others are trained centrally"},
    )
    places: int = field(default=120, metadata={"min": 4, "max": 100_000, "help": "drawn on each walk"})
    margin_db: float = field(
        default=10.0,
        metadata={"min": 0.0, "max": 60.0, "unit": "dB", "help": "weaker sites than this serve nobody"},
    )
    finetuning_share: float = field(
        default=0.3, metadata={"min": 0.01, "max": 1.0, "help": "of the unseen city's training walks"}
    )
    snr_db: float = field(default=10.0, metadata={"min": -20.0, "max": 40.0, "unit": "dB", "help": "alone"})
    users: int = field(default=4, metadata={"min": 1, "max": 8, "help": "that a cell serves at a time"})
    report_s: float = field(default=0.02, metadata={"min": 0.001, "unit": "s", "help": "between reports"})
    training: Training = Training()

    @property
    def panel(self) -> Panel:
        """Of a cell: 32 ports."""
        return Panel(4, 4, dual=True, element="38.901")

    def model(self, name: Name, bits: int) -> Dictionary | Network:
        """A learned codec's shape."""
        if name == "dictionary":
            return Dictionary(self.panel, SUBBANDS, *DICTIONARIES[bits])
        width = self.training.width if name == "transformer" else self.training.channels
        return Network(name, self.panel, SUBBANDS, bits, width)


FULL = Config()
QUICK = replace(
    FULL,
    budgets=(64,),
    learned=("dictionary", "transformer"),
    regimes=("federated", "central"),
    places=80,
    training=replace(
        FULL.training, rounds=4, dictionary_steps=8, network_steps=20, batch=64, width=32, finetuning_rounds=2
    ),
)
PRESETS = {"quick": QUICK, "full": FULL}
SEEDS = {"quick": 2, "full": 3}


@dataclass(frozen=True)
class Model:
    """Which model: of what kind, for how many bits, trained by whom, from which seed."""

    name: Name
    bits: int
    regime: str
    seed: int

    @property
    def key(self) -> str:
        """Key of its part."""
        return f"{self.name}/{self.bits}bit/{self.regime}/seed{self.seed}"

    @property
    def home(self) -> Model:
        """The model that a fine-tuned one starts from."""
        return replace(self, regime="central")


def models(config: Config, seeds: tuple[int, ...]) -> list[Model]:
    """All that are trained in the first city: dictionaries of every budget, networks of the verdict's."""
    budgets = sorted(config.budgets, key=lambda bits: bits != config.bits)
    return [
        Model(name, bits, regime, seed)
        for seed in seeds
        for name in config.learned
        for bits in (budgets if name == "dictionary" else [config.bits])
        for regime in (config.regimes if (name, bits) == (config.learned[0], config.bits) else ("central",))
    ]


def finetuned(config: Config, seeds: tuple[int, ...]) -> list[Model]:
    """All that are trained on in the second city, at the verdict's bits."""
    if not config.unseen_city:
        return []
    return [
        Model(name, config.bits, regime, seed)
        for seed in seeds
        for name in config.learned
        for regime in AWAY
        if name != "dictionary" or regime == AWAY[0]  # both halves share it
    ]


def check(config: Config) -> None:
    """Refuses what would ask for nothing, or can't be built.

    Raises:
        DefianceError: a list is empty or holds something twice, the verdict's bits are no budget, no codec is
            made for a budget, central training is left out, or both cities are one.
    """
    for name in ("budgets", "learned", "regimes"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise DefianceError(
                f"csi needs every value of {name} once, and one at least; give --set {name}=..."
            )
    if "central" not in config.regimes:
        raise DefianceError("csi compares all codecs trained centrally; add central to regimes")
    if config.bits not in config.budgets:
        raise DefianceError(f"csi's verdict is on {config.bits} bits; add them to budgets")
    strange = [bits for bits in config.budgets if bits not in DICTIONARIES]
    if strange:
        raise DefianceError(
            f"csi has no codecs of {strange[0]} bits; budgets are among {', '.join(map(str, DICTIONARIES))}"
        )
    if config.city == config.unseen_city:
        raise DefianceError(f"city and unseen_city are both {config.city}; name another, or none")
