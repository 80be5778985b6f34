"""Who competes: each candidate's codec at a number of channel uses, its channel, and how it is trained.

| name                   | device                                  | on air                        | edge    |
|------------------------|-----------------------------------------|-------------------------------|---------|
| `s-vdib`               | spiking, random, bottleneck (the paper) | antipodal, every step         | any time|
| `s-vdib-sparse`        | the same, a tenth of the readouts fire  | on-off pulses, every step     | any time|
| `s-vdib-deterministic` | the same, no chance and no bottleneck   | antipodal, every step         | any time|
| `s-vdib-small`         | the same, half the neurons              | antipodal, every step         | any time|
| `neurojscc`            | the same, no bottleneck                 | antipodal, every step         | spiking |
| `joint-binary`         | CNN                                     | learned bits, one burst       | at end  |
| `joint-binary-bursts`  | CNN                                     | learned bits, every third     | thirds  |
| `joint-binary-small`   | CNN of a seventh of the operations      | learned bits, one burst       | at end  |
| `joint-analogue`       | CNN                                     | learned reals, one burst      | at end  |
| `repetition`           | CNN                                     | fewer bits, repeated          | at end  |
| `uncoded-map`          | counts events                           | a coarse map's bits or pulses | at end  |
| `separate`             | vector quantiser or entropy coder, code | coded bits, rate 1/2          | at end  |
| `separate-adapted`     | the same at the best rate per Eb/N0     | coded bits                    | at end  |
| `device-label`         | CNN, names the class                    | the label, coded              | at end  |
| `send-everything`      | counts events                           | the full map's bits           | at end  |
| `central`              | none                                    | nothing                       | at end  |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from defiance.codecs import vdib, vdib_learning
from defiance.codecs.codec import Channel, Codec, Loss, Samples
from defiance.codecs.conventional import Shape, decision_loss
from defiance.codecs.entropy import MapCoder, MapCoderConfig
from defiance.codecs.joint import (
    Central,
    CentralConfig,
    JointAnn,
    JointAnnConfig,
    Repeated,
    RepeatedChannel,
    UncodedMap,
    UncodedMapConfig,
)
from defiance.codecs.neurojscc import NeuroJscc, NeuroJsccConfig, neurojscc_loss
from defiance.codecs.separate import (
    Label,
    LabelConfig,
    Protection,
    Residue,
    Separate,
    SeparateConfig,
    Source,
    label_loss,
    residue,
    separate_loss,
)
from defiance.codecs.vdib import Vdib, VdibConfig
from defiance.codecs.vdib_learning import VdibObjective
from defiance.codecs.vq import Vq, VqConfig, vq_loss
from defiance.learn.training import Parameters
from defiance.radio.channels import Awgn, BinarySymmetric, ZChannel
from defiance.seeding import stream
from defiance.studies.coinference.settings import STEPS

BETA = 1e-4
SPARSE_RATE, SPARSE_BETA = 0.1, 1e-3
"""Of `s-vdib-sparse`: its prior's ones, for which its pulses' energy is set while it is trained."""
LEARNING_RATES = (2e-3, 5e-3, 1e-3)
"""What a candidate of one shape tries; where nothing is tried, the first is taken."""
MAP_ONES = 0.2
"""Of a coarse event map: what its pulses' energy is set for while its reader is trained."""
SEEN_PX = 28
"""Rows and columns in the sensor's middle that conventional codecs look at."""
SEPARATE_RATE = 1 / 2
"""Of the fixed-rate code, as in the paper's baselines."""
ADAPTED_RATES = (1 / 2, 1 / 40, 1 / 20, 1 / 10, 1 / 5, 1 / 3, 2 / 3)
"""Code rates that one classifier is trained for; the capacity at -10 dB is 0.09."""
RESIDUE_DB = (-8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
RESIDUE_PATTERNS = 250
"""Where, and how often, the errors that a code leaves are simulated for training."""
COUNTED_RECORDINGS = 2_000
"""From which an entropy coder's tables are counted."""


@dataclass(frozen=True)
class EqualEnergy:
    """A channel of pulses that spends as much per use as antipodal symbols do: fewer pulses are stronger.

    Attributes:
        channel: on-off keyed; a one costs 2 Es, a zero nothing.
        ones: share of ones that is sent.
    """

    channel: BinarySymmetric | ZChannel
    ones: float

    @property
    def _gain_db(self) -> float:
        return -10 * math.log10(2 * max(self.ones, 1e-6))

    def __call__(
        self, sent: Tensor, ebn0_db: Tensor | float, generator: torch.Generator, *, rate: float = 1.0
    ) -> Tensor:
        """Return what arrives of `sent` [..., N] if a use costs Eb on average."""
        return self.channel(sent, ebn0_db + self._gain_db, generator, rate=rate)

    def one_probability(self, sent: Tensor, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return P(received = 1) for the probabilities of ones `sent` [..., N]."""
        return self.channel.one_probability(sent, ebn0_db + self._gain_db, rate=rate)


@dataclass(frozen=True)
class Stage:
    """One run of the training loop.

    Attributes:
        loss: what is minimised.
        prefix: what the names of the parameters that move begin with.
    """

    loss: Loss
    prefix: str = ""

    def moves(self, name: str) -> bool:
        """Whether a parameter moves."""
        return name.startswith(self.prefix)


@dataclass(frozen=True)
class Design:
    """A candidate at a number of channel uses.

    Attributes:
        initial: random weights, and what is counted from training samples.
        stages: of training, in order.
        builds: the codec of given weights; of several, the best on validation samples is taken per Eb/N0.
        channel: what its symbols travel over, in training and in every figure but those of other channels;
            None: they are at the edge already.
        symbols: `bits` of joint codes, which other channels are tried with, too; `reals`; `coded` bits of
            block codes, or of bounds.
        learning_rate: of Adam at the start.
        on_off: pulses for ones, silence for zeros; else every use costs the same.
        objective: what spikes are trained for.
    """

    initial: Callable[[torch.Generator, Samples], Parameters]
    stages: tuple[Stage, ...]
    builds: tuple[Callable[[Mapping[str, Tensor]], Codec], ...]
    channel: Channel | None
    symbols: Literal["bits", "reals", "coded"]
    learning_rate: float = LEARNING_RATES[0]
    on_off: bool = False
    objective: VdibObjective | None = None


def designs(name: str, uses: int, beta: float | None = None) -> tuple[Design, ...]:
    """What a candidate may look like at so many uses; the best on validation samples competes.

    Args:
        name: one of `settings.Name`.
        uses: channel uses per recording, a multiple of `STEPS`.
        beta: another price of a nat, for `s-vdib`.
    """
    shape = Shape(STEPS, uses // STEPS, SEEN_PX)
    bursts = replace(shape, blocks=BURSTS)
    match name:
        case "s-vdib":
            return _rates(_spiking(shape, VdibObjective(beta=BETA if beta is None else beta)))
        case "s-vdib-sparse":
            objective = VdibObjective(beta=SPARSE_BETA, prior="fixed", prior_rate=SPARSE_RATE)
            return _rates(_spiking(shape, objective, on_off=True))
        case "s-vdib-small":
            return _rates(_spiking(shape, VdibObjective(beta=BETA), channels=(8, 16), hidden=128))
        case "s-vdib-deterministic":
            return _rates(_spiking(shape, VdibObjective(beta=0.0), firing="deterministic"))
        case "neurojscc":
            return _rates(_spiking_edge(shape))
        case "joint-binary":
            return _rates(_joint(JointAnnConfig(shape)))
        case "joint-binary-bursts":
            return _rates(_joint(JointAnnConfig(bursts)))
        case "joint-binary-small":
            return _rates(_joint(JointAnnConfig(shape, device_filters=(4, 8), device_hidden=32)))
        case "joint-analogue":
            return _rates(_joint(JointAnnConfig(shape, "analogue")))
        case "repetition":
            found = [_repeated(shape, times) for times in (2, 4) if not shape.uses_per_step % times]
            return tuple(option for design in found for option in _rates(design))
        case "uncoded-map":
            return tuple(
                option
                for on_off in (False, True)
                for slices in (1, 3)
                for polarities in (1, 2)
                if slices * polarities <= uses
                for option in _rates(_map(shape, slices, polarities, on_off=on_off))
            )
        case "separate" | "separate-adapted":
            adapted = name == "separate-adapted"
            found = [_vq(shape, adapted=adapted), _entropy_coded(shape, adapted=adapted)]
            return tuple(option for design in found for option in _rates(design))
        case "device-label":
            return _rates(_label(shape))
        case "send-everything":
            return _rates(_everything())
        case "central":
            return _rates(_central())
    raise AssertionError(name)


BURSTS = 3


def bursts(name: str) -> int:
    """In how many bursts a conventional candidate sends a recording."""
    return BURSTS if name == "joint-binary-bursts" else 1


def _rates(design: Design) -> tuple[Design, ...]:
    return tuple(replace(design, learning_rate=rate) for rate in LEARNING_RATES)


def _spiking(
    shape: Shape,
    objective: VdibObjective,
    *,
    on_off: bool = False,
    firing: Literal["random", "deterministic"] = "random",
    channels: tuple[int, int] = (16, 32),
    hidden: int = 256,
) -> Design:
    config = VdibConfig(
        steps=shape.steps, channels=channels, hidden=hidden, readouts=shape.uses_per_step, firing=firing
    )
    channel: BinarySymmetric | EqualEnergy = BinarySymmetric()
    if on_off:
        channel = EqualEnergy(BinarySymmetric("on-off"), SPARSE_RATE)
    return Design(
        initial=lambda generator, samples: vdib.initial(config, generator),
        stages=(Stage(vdib_learning.loss(config, objective, channel)),),
        builds=(lambda parameters: Vdib(config, parameters),),
        channel=channel,
        symbols="bits",
        on_off=on_off,
        objective=objective,
    )


def _spiking_edge(shape: Shape) -> Design:
    config = NeuroJsccConfig(VdibConfig(steps=shape.steps, readouts=shape.uses_per_step))
    channel = BinarySymmetric()
    return Design(
        initial=lambda generator, samples: NeuroJscc.initial(config, generator),
        stages=(Stage(neurojscc_loss(config, channel)),),
        builds=(lambda parameters: NeuroJscc(config, parameters),),
        channel=channel,
        symbols="bits",
    )


def _joint(config: JointAnnConfig) -> Design:
    analogue = config.symbols == "analogue"
    channel: Channel = Awgn() if analogue else BinarySymmetric()
    return Design(
        initial=lambda generator, samples: JointAnn.initial(config, generator),
        stages=(Stage(decision_loss(lambda parameters: JointAnn(config, parameters), channel)),),
        builds=(lambda parameters: JointAnn(config, parameters),),
        channel=channel,
        symbols="reals" if analogue else "bits",
    )


def _repeated(shape: Shape, times: int) -> Design:
    config = JointAnnConfig(replace(shape, uses_per_step=shape.uses_per_step // times))
    channel = RepeatedChannel(BinarySymmetric(), times)
    return replace(
        _joint(config),
        stages=(Stage(decision_loss(lambda parameters: JointAnn(config, parameters), channel)),),
        builds=(lambda parameters: Repeated(JointAnn(config, parameters), times),),
    )


def _map(shape: Shape, slices: int, polarities: int, *, on_off: bool) -> Design:
    cells = min(SEEN_PX, math.isqrt(shape.channel_uses // (slices * polarities)))
    area = (SEEN_PX / cells) ** 2
    often = 0.45 * area**0.9 * (3 / slices) ** 0.8 * (1.5 if polarities == 1 else 1.0)
    config = UncodedMapConfig(replace(shape, slices=slices), cells, polarities, max(1, round(often)))
    return _uncoded(config, on_off=on_off)


def _everything() -> Design:
    """A bit for each pixel, polarity and step."""
    per_step = 2 * SEEN_PX**2
    config = UncodedMapConfig(Shape(STEPS, per_step, SEEN_PX, slices=STEPS), SEEN_PX)
    return replace(_uncoded(config, on_off=False), symbols="coded")


def _uncoded(config: UncodedMapConfig, *, on_off: bool) -> Design:
    channel: Channel = BinarySymmetric()
    if on_off:
        channel = EqualEnergy(BinarySymmetric("on-off"), MAP_ONES)
    return Design(
        initial=lambda generator, samples: UncodedMap.initial(config, generator),
        stages=(Stage(decision_loss(lambda parameters: UncodedMap(config, parameters), channel)),),
        builds=(lambda parameters: UncodedMap(config, parameters),),
        channel=channel,
        symbols="bits",
        on_off=on_off,
    )


def _central() -> Design:
    config = CentralConfig(STEPS, SEEN_PX)

    def loss(
        parameters: Parameters, frames: Tensor, labels: Tensor, ebn0_db: Tensor, generator: torch.Generator
    ) -> Tensor:
        codec = Central(config, parameters)
        return functional.cross_entropy(codec.decide(codec.encode(frames, generator))[:, 0], labels)

    return Design(
        initial=lambda generator, samples: Central.initial(config, generator),
        stages=(Stage(loss),),
        builds=(lambda parameters: Central(config, parameters),),
        channel=None,
        symbols="coded",
    )


def _label(shape: Shape) -> Design:
    config = LabelConfig(shape)
    return Design(
        initial=lambda generator, samples: Label.initial(config, generator),
        stages=(Stage(label_loss(config)),),
        builds=(lambda parameters: Label(config, parameters),),
        channel=BinarySymmetric(),
        symbols="coded",
    )


def _vq(shape: Shape, *, adapted: bool) -> Design:
    """The quantiser and the classifier of what it restores are trained by a full budget each."""
    config = VqConfig(SEEN_PX)

    def source(parameters: Mapping[str, Tensor]) -> Source:
        return Vq(config, under("source.", parameters))

    def loss(
        parameters: Parameters, frames: Tensor, labels: Tensor, ebn0_db: Tensor, generator: torch.Generator
    ) -> Tensor:
        return vq_loss(config)(under("source.", parameters), frames, labels, ebn0_db, generator)

    return _separate(
        shape,
        source,
        lambda generator, samples: Vq.initial(config, generator),
        (Stage(loss, "source."),),
        adapted=adapted,
        cells=config.cells,
    )


def _entropy_coded(shape: Shape, *, adapted: bool) -> Design:
    config = MapCoderConfig(SEEN_PX)
    return _separate(
        shape,
        lambda parameters: MapCoder(config, under("source.", parameters)),
        lambda generator, samples: MapCoder.count(config, samples.frames[:COUNTED_RECORDINGS]),
        (),
        adapted=adapted,
        cells=config.levels[0].cells,
    )


def _separate(
    shape: Shape,
    source: Callable[[Mapping[str, Tensor]], Source],
    initial: Callable[[torch.Generator, Samples], Parameters],
    stages: tuple[Stage, ...],
    *,
    adapted: bool,
    cells: int,
) -> Design:
    """A source code, 5G NR's codes at one rate or at several, and one classifier for all of them."""
    channel = BinarySymmetric()
    rates = ADAPTED_RATES if adapted else (SEPARATE_RATE,)
    bits = [max(1, int(rate * shape.channel_uses)) for rate in rates]
    configs = [SeparateConfig(k, shape, cells) for k in dict.fromkeys(bits)]

    def first(generator: torch.Generator, samples: Samples) -> Parameters:
        weights = {f"source.{name}": weight for name, weight in initial(generator, samples).items()}
        return weights | Separate.initial(configs[0], generator)

    def loss(
        parameters: Parameters, frames: Tensor, labels: Tensor, ebn0_db: Tensor, generator: torch.Generator
    ) -> Tensor:
        residues = [_residue(config.protection) for config in configs]
        return separate_loss(configs, source(parameters), residues)(
            parameters, frames, labels, ebn0_db, generator
        )

    def build(config: SeparateConfig) -> Callable[[Mapping[str, Tensor]], Codec]:
        return lambda parameters: Separate(config, source(parameters), parameters)

    return Design(
        initial=first,
        stages=(*stages, Stage(loss, "edge.")),
        builds=tuple(build(config) for config in configs),
        channel=channel,
        symbols="coded",
    )


@lru_cache(maxsize=64)
def _residue(protection: Protection) -> Residue:
    """Errors that a code leaves, for training."""
    draws = stream(0, "coinference", "residue").generator()
    return residue(protection, BinarySymmetric(), RESIDUE_DB, draws, patterns=RESIDUE_PATTERNS)


def under(prefix: str, parameters: Mapping[str, Tensor]) -> Parameters:
    """The parameters whose names begin with a prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): weight for name, weight in parameters.items() if name.startswith(prefix)
    }
