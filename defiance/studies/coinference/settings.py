"""What the study `coinference` can be asked: its configuration, presets, and the models that it needs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from defiance.errors import DefianceError

STEPS = 15
"""T, time steps of a recording: uses come in multiples of it."""

Name = Literal[
    "s-vdib",
    "s-vdib-sparse",
    "s-vdib-deterministic",
    "s-vdib-small",
    "neurojscc",
    "joint-binary",
    "joint-binary-bursts",
    "joint-binary-small",
    "joint-analogue",
    "repetition",
    "uncoded-map",
    "separate",
    "separate-adapted",
    "device-label",
    "send-everything",
    "central",
]
"""Who competes; `defiance.studies.coinference.candidates` says what each is."""

Data = Literal["nmnist", "nmnist-simulated", "motion", "digits"]
"""Test recordings: real N-MNIST, simulated N-MNIST, MNIST-DVS-like motion, digits without download."""

OtherChannel = Literal["z", "soft", "rayleigh", "nr-tdl"]


@dataclass(frozen=True)
class Training:
    """How every codec is trained: one loop, one budget of optimiser steps."""

    recordings: int = field(
        default=20_000, metadata={"min": 100, "max": 59_000, "help": "simulated ones, of other images"}
    )
    validation: int = field(
        default=1_000, metadata={"min": 50, "max": 10_000, "help": "recordings that say when to stop"}
    )
    real_repeats: int = field(
        default=4, metadata={"min": 1, "max": 100, "help": "times that a pass shows each real recording"}
    )
    steps: int = field(default=1_000, metadata={"min": 1, "help": "optimiser steps at most"})
    batch: int = field(default=100, metadata={"min": 1, "help": "recordings per step"})
    shift_px: int = field(
        default=2, metadata={"min": 0, "max": 8, "unit": "px", "help": "recordings are moved by at most this"}
    )
    esn0_low_db: float = field(
        default=-8.0,
        metadata={"min": -30.0, "max": 30.0, "unit": "dB", "help": "each is sent at a drawn one"},
    )
    esn0_high_db: float = field(default=6.0, metadata={"min": -30.0, "max": 30.0, "unit": "dB"})
    tuning_steps: int = field(
        default=150, metadata={"min": 0, "help": "per setting that is tried first; 0: take the first setting"}
    )


@dataclass(frozen=True)
class Config:
    """Configuration of the study."""

    data: tuple[Data, ...] = field(
        default=("nmnist", "nmnist-simulated", "motion"),
        metadata={"help": "what is tested on; without the data folder: digits"},
    )
    candidates: tuple[Name, ...] = field(
        default=get_args(Name), metadata={"help": "who competes at reference_uses"}
    )
    sweep_candidates: tuple[Name, ...] = field(
        default=("s-vdib", "joint-binary", "joint-binary-small", "uncoded-map", "separate", "device-label"),
        metadata={"help": "who competes at every number of uses"},
    )
    uses: tuple[int, ...] = field(
        default=(15, 60, 120, 480, 2040),
        metadata={"min": STEPS, "max": 2040, "help": f"channel uses per recording, multiples of {STEPS}"},
    )
    reference_uses: int = field(
        default=480, metadata={"min": STEPS, "max": 2040, "help": "where everything is compared"}
    )
    esn0_db: tuple[float, ...] = field(
        default=(-10.0, -8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0),
        metadata={"min": -30.0, "max": 30.0, "unit": "dB", "help": "energy of a channel use over N0"},
    )
    mismatch_db: tuple[float, ...] = field(
        default=(4.0,),
        metadata={"min": -30.0, "max": 30.0, "unit": "dB", "help": "models that know only this Es/N0"},
    )
    betas: tuple[float, ...] = field(
        default=(0.0, 1e-2), metadata={"min": 0.0, "help": "other bottlenecks of s-vdib"}
    )
    special_candidates: tuple[Name, ...] = field(
        default=("s-vdib", "joint-binary", "uncoded-map"),
        metadata={"help": "who is trained at one Es/N0, on simulated or real recordings alone, on motion"},
    )
    channels: tuple[OtherChannel, ...] = field(
        default=get_args(OtherChannel),
        metadata={"help": "channels that none was trained for, tested at reference_uses"},
    )
    sweep_seeds: int = field(
        default=3, metadata={"min": 1, "max": 100, "help": "of all but the candidates at reference_uses"}
    )
    folds: int = field(default=5, metadata={"min": 2, "max": 100, "help": "of the real recordings"})
    test_recordings: int = field(
        default=2_000, metadata={"min": 10, "max": 10_000, "help": "simulated ones, of MNIST's test images"}
    )
    weights: Literal["trained", "shipped"] = field(
        default="trained", metadata={"help": "train models here, or take those that come with the package"}
    )
    training: Training = Training()


FULL = Config()
QUICK = replace(
    FULL,
    uses=(60, 480),
    candidates=("s-vdib", "joint-binary", "joint-binary-small", "uncoded-map", "device-label"),
    sweep_candidates=("s-vdib", "joint-binary"),
    mismatch_db=(),
    betas=(),
    special_candidates=(),
    channels=("z", "rayleigh"),
    data=("nmnist", "nmnist-simulated"),
    test_recordings=1_000,
    weights="shipped",
)
PRESETS = {"quick": QUICK, "full": FULL}
SEEDS = {"quick": 1, "full": 5}


ONE_FOR_ALL_USES = ("device-label", "send-everything", "central")
"""Candidates whose weights do not depend on the channel uses."""

TUNING_SEED = 1_000_000

SPIKING = ("s-vdib", "s-vdib-sparse", "s-vdib-deterministic", "s-vdib-small", "neurojscc")
"""Candidates whose device half spikes."""


@dataclass(frozen=True)
class Model:
    """Which model: whose, at how many channel uses, from what data, trained how, from which seed.

    Attributes:
        candidate: one of `Name`.
        uses: channel uses per recording.
        data: `nmnist`, `motion` or `digits`.
        regime: `mixed` (simulated and real recordings, any Es/N0), `simulated` or `real` (these alone),
            `at4dB` (this Es/N0 alone), `beta0.01` (another bottleneck).
        seed: of weights, batches and noise; the fold of real recordings that it never sees is seed mod folds.
    """

    candidate: str
    uses: int
    data: str
    regime: str
    seed: int

    @property
    def key(self) -> str:
        """Key of its parts."""
        return f"{self.candidate}/uses{self.uses}/{self.data}/{self.regime}/seed{self.seed}"

    @property
    def trained(self) -> Model:
        """The model whose weights it has."""
        if self.candidate in ONE_FOR_ALL_USES:
            return replace(self, uses=0)
        return self

    @property
    def esn0_db(self) -> float | None:
        """The only Es/N0 that it was trained at."""
        return float(self.regime[2:-2]) if self.regime.startswith("at") else None

    @property
    def beta(self) -> float | None:
        """The bottleneck that it was given instead of the candidate's own."""
        return float(self.regime[4:]) if self.regime.startswith("beta") else None


def base_regime(data: str) -> str:
    """How models are trained that are compared with each other."""
    return "mixed" if data == "nmnist" else "simulated"


def trained_on(data: str) -> str:
    """What models learn from that are tested on these recordings."""
    return "nmnist" if data == "nmnist-simulated" else data


def models(config: Config, seeds: tuple[int, ...]) -> list[Model]:
    """Every model that the study judges.

    Everything is trained for the first data; the others see `special_candidates` at `reference_uses`. What is
    not the base regime at `reference_uses` on the first data has the first `sweep_seeds` seeds only.
    """
    sources = list(dict.fromkeys(map(trained_on, config.data)))
    first, reference = sources[0], config.reference_uses
    compared = [(name, reference, first, base_regime(first)) for name in config.candidates]
    wanted = [
        (name, uses, first, base_regime(first))
        for uses in config.uses
        for name in config.sweep_candidates
        if uses != reference
    ]
    regimes = [f"at{esn0_db:g}dB" for esn0_db in config.mismatch_db]
    regimes += ["simulated", "real"] if {"nmnist", "nmnist-simulated"} <= {*config.data} else []
    wanted += [(name, reference, first, regime) for regime in regimes for name in config.special_candidates]
    wanted += [("s-vdib", reference, first, f"beta{beta:g}") for beta in config.betas]
    wanted += [
        (name, reference, data, base_regime(data))
        for data in sources[1:]
        for name in config.special_candidates
    ]
    wanted = [one for one in dict.fromkeys(wanted) if one not in compared]
    # seed by seed: models of one seed learn from the same samples
    found = [Model(*one, seed) for seed in seeds for one in dict.fromkeys(compared)]
    return found + [Model(*one, seed) for seed in seeds[: config.sweep_seeds] for one in wanted]


def tuned_as(config: Config, model: Model) -> Model:
    """The model on which a candidate's settings are tried: it sees no real recording."""
    uses = config.reference_uses if model.candidate in ONE_FOR_ALL_USES else model.uses
    return Model(model.trained.candidate, uses, trained_on(config.data[0]), "simulated", TUNING_SEED)


def judged_on(config: Config, model: Model) -> list[str]:
    """What a model is tested on."""
    return [data for data in config.data if trained_on(data) == model.data]


def check(config: Config, seeds: tuple[int, ...]) -> None:
    """Refuses what would ask for nothing, or can't be compared.

    Raises:
        DefianceError: a list is empty or names something twice, uses aren't whole steps, or folds are missed.
    """
    for name in ("data", "candidates", "uses", "esn0_db"):
        if not getattr(config, name):
            raise DefianceError(f"coinference needs at least one of {name}; give --set {name}=...")
    for name in ("data", "candidates", "sweep_candidates", "uses", "esn0_db", "betas", "special_candidates"):
        values = getattr(config, name)
        if len({*values}) < len(values):
            raise DefianceError(f"{name} names a value twice; name every value once")
    for uses in (*config.uses, config.reference_uses):
        if uses % STEPS:
            raise DefianceError(
                f"{uses} channel uses aren't whole steps; give multiples of {STEPS}, such as "
                f"{STEPS * max(1, round(uses / STEPS))}"
            )
    if config.training.esn0_low_db > config.training.esn0_high_db:
        raise DefianceError("training.esn0_low_db is above training.esn0_high_db; swap them")
    if config.weights == "shipped" and len(seeds) > 1:
        raise DefianceError("one set of weights is shipped; give --seeds 1, or train: --set weights=trained")
    if config.weights == "shipped" and (config.mismatch_db or config.betas):
        raise DefianceError(
            "shipped weights are of the base regime; leave out --set mismatch_db= and betas=, "
            "or train: --set weights=trained"
        )
