"""The parts of the study `coinference`: each trains or judges one thing, and is kept under its own key.

Every part is a function of the configuration, its key and nothing else, so parts run in any order and in
any process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from defiance.codecs import vdib, vdib_learning
from defiance.codecs.codec import NOISELESS_DB, Channel, Codec, Samples, Training
from defiance.codecs.codec import train as train_codec
from defiance.codecs.neurojscc import NeuroJscc
from defiance.codecs.separate import rate_adapted
from defiance.codecs.vdib import Vdib
from defiance.learn.training import Fit, Parameters
from defiance.meter import Meter
from defiance.parts import Parts
from defiance.radio.channels import (
    Antipodal,
    Awgn,
    BinaryChannel,
    BinarySymmetric,
    RayleighBlock,
    ZChannel,
)
from defiance.radio.nr import NrTdl
from defiance.seeding import stream
from defiance.studies.coinference.candidates import Design, EqualEnergy, bursts, designs
from defiance.studies.coinference.data import learned_from, shifted, tested_on
from defiance.studies.coinference.settings import SPIKING, STEPS, Config, Model

FADES_TOGETHER = 15
"""Channel uses of a block in Rayleigh block fading."""

BATCH = 250
"""Recordings that are judged at once."""

TUNED_AT_DB = (-6.0, 0.0)
"""Where settings are compared on validation samples."""

RATED_ON = 250
"""Validation recordings on which code rates are compared: each is decoded at every rate and Es/N0."""

COUNTED = 200
"""Test recordings whose spikes are counted."""


def tune(config: Config, model: Model) -> dict[str, Any]:
    """Which of a candidate's designs does best on validation samples after a short training."""
    options = designs(model.candidate, model.uses, model.beta)
    if not config.training.tuning_steps or len(options) == 1:
        return {"choice": 0, "accuracy": []}
    _, validation = learned_from(config, model)
    reached = []
    for design in options:
        codec = design.builds[0](_fit(config, model, design, config.training.tuning_steps)[-1][0].parameters)
        trials = [Trial(codec, design.channel, esn0_db) for esn0_db in TUNED_AT_DB]
        found = _accuracy(trials, validation, model.seed)
        reached.append(sum(steps[-1] for steps in found) / len(found))
    return {"choice": max(range(len(options)), key=lambda i: reached[i]), "accuracy": reached}


def train(config: Config, model: Model, choice: int, parts: Parts) -> dict[str, Any]:
    """Trains one model, books what it took, and keeps its weights."""
    design = designs(model.candidate, model.uses, model.beta)[choice]
    meter = Meter("training")
    with meter.running():
        fits = _fit(config, model, design, config.training.steps)
    parameters = fits[-1][0].parameters
    parts.put_tensors(model.trained.key, parameters)
    _, validation = learned_from(config, model)
    return {
        "stages": [
            {"validation_loss": fit.validation_loss.tolist(), "steps_per_round": steps} for fit, steps in fits
        ],
        "parameters": sum(weight.numel() for weight in parameters.values()),
        "ones": _ones(design, design.builds[0](parameters), validation, model.seed),
        "cpu_s": meter.usage.cpu_s,
    }


def judge(config: Config, model: Model, choice: int, test: str, ones: float, parts: Parts) -> dict[str, Any]:
    """What a model reaches on test recordings: at every Es/N0, on other channels, and what its spikes do.

    Args:
        config: see `Config`.
        model: which.
        choice: the design that `tune` found.
        test: one of `settings.Data`.
        ones: share of ones that it sends on validation samples; sets the energy of pulses.
        parts: hold its weights.
    """
    parameters = parts.get_tensors(model.trained.key)
    assert parameters is not None
    design = _at_equal_energy(designs(model.candidate, model.uses, model.beta)[choice], ones)
    samples = tested_on(test, model.seed % config.folds, config.folds, config.test_recordings)
    ladder = [NOISELESS_DB, *sorted(config.esn0_db, reverse=True)]
    codecs = [design.builds[0](parameters)] * len(ladder)
    if len(design.builds) > 1:
        codecs = _adapted(config, model, design, parameters, ladder)
    codec = codecs[0]
    channels = {"": design.channel}
    if model.uses == config.reference_uses and design.symbols == "bits" and model.beta is None:
        together = STEPS if model.candidate in SPIKING else bursts(model.candidate)
        channels |= {name: _other_channel(name, ones, together) for name in config.channels}
    trials = [
        Trial(codec, channel, esn0_db)
        for channel in channels.values()
        for codec, esn0_db in zip(codecs, ladder, strict=True)
    ]
    reached = _accuracy(trials, samples, model.seed)
    by_channel = {
        name: reached[number * len(ladder) : (number + 1) * len(ladder)]
        for number, name in enumerate(channels)
    }
    found: dict[str, Any] = {"recordings": len(samples), "accuracy": by_channel.pop("")}
    if by_channel:
        found["channels"] = by_channel
    if isinstance(codec, Vdib | NeuroJscc):
        found |= _spikes(design, codec, samples, model.seed)
    return found


@dataclass(frozen=True)
class Trial:
    """A codec that is tested over a channel (None: what it sends arrives as it is) at an Es/N0."""

    codec: Codec
    channel: Channel | None
    esn0_db: float


def _accuracy(trials: Sequence[Trial], samples: Samples, seed: int) -> list[list[float]]:
    """Share of right decisions after each step, [trials][T].

    A codec sends the same in all trials, and a channel's draws are the same for codecs with as many uses.
    """
    right = [torch.zeros(STEPS, dtype=torch.float64) for _ in trials]
    codecs = {id(trial.codec): trial.codec for trial in trials}
    with torch.no_grad():
        for number, index in enumerate(torch.arange(len(samples)).split(BATCH)):
            part = samples.select(index)
            random = stream(seed, "coinference", "judge", number)
            encoder = random.child("encoder")
            sent = {name: codec.encode(part.frames, encoder.generator()) for name, codec in codecs.items()}
            for total, trial in zip(right, trials, strict=True):
                received = sent[id(trial.codec)]
                if trial.channel is not None:
                    noise = random.child("noise").generator()
                    received = trial.channel(received, trial.esn0_db, noise)
                named = trial.codec.decode(received).argmax(-1)
                total += (named == part.labels[:, None]).double().sum(0)
    return [(total / len(samples)).tolist() for total in right]


def _adapted(
    config: Config, model: Model, design: Design, parameters: Parameters, ladder: Sequence[float]
) -> list[Codec]:
    """The code rate for each Es/N0, chosen on validation samples."""
    assert design.channel is not None
    _, validation = learned_from(config, model)
    validation = validation.select(torch.arange(min(RATED_ON, len(validation))))
    codecs = [build(parameters) for build in design.builds]
    random = stream(model.seed, "coinference", "rates")
    return list(rate_adapted(codecs, design.channel, validation, ladder, random))


def _spikes(design: Design, codec: Vdib | NeuroJscc, samples: Samples, seed: int) -> dict[str, Any]:
    """What the device's neurons do for a recording on average; of S-VDIB both information bounds at 0 dB."""
    random = stream(seed, "coinference", "spikes")
    some = samples.select(torch.arange(min(COUNTED, len(samples))))
    device = codec if isinstance(codec, Vdib) else Vdib(codec.config.device, codec.parameters)
    active = vdib.activity(device, some.frames, random.generator())
    found: dict[str, Any] = {
        "events": float(active.events.double().mean()),
        "spikes": float(active.spikes.double().sum(1).mean()),
        "sent_spikes": float(active.sent.double().mean()),
        "synaptic_operations": float(active.synaptic_operations.double().mean()),
        "updates": active.updates,
        "filter_operations": active.filter_operations,
        "silent_share": active.silent,
    }
    if isinstance(codec, Vdib) and design.objective is not None:
        assert isinstance(design.channel, BinarySymmetric | EqualEnergy)
        bounds = vdib_learning.information(
            codec, design.objective, design.channel, some, 0.0, random.generator()
        )
        found |= {"relevance": bounds.relevance.tolist(), "information_rate": bounds.rate.tolist()}
    return found


def _fit(config: Config, model: Model, design: Design, steps: int) -> list[tuple[Fit, int]]:
    """Trains a design stage by stage from random weights; what came of each, and its steps per round."""
    training, validation = learned_from(config, model)
    random = stream(model.seed, "coinference", "training", model.candidate)
    parameters = design.initial(stream(model.seed, "coinference", "weights").generator(), training)
    settings = config.training
    low, high = settings.esn0_low_db, settings.esn0_high_db
    if model.esn0_db is not None:
        low = high = model.esn0_db
    fits: list[tuple[Fit, int]] = []
    for number, stage in enumerate(design.stages):
        wanted = steps * settings.batch
        order = torch.randperm(len(training), generator=random.child(number, "subset").generator())
        learned = training if wanted >= len(training) else training.select(order[:wanted])
        batch = min(settings.batch, len(learned))
        found = train_codec(
            parameters,
            stage.loss,
            learned,
            validation,
            Training(
                max(1, round(wanted / len(learned))),
                batch,
                design.learning_rate,
                ebn0_low_db=low,
                ebn0_high_db=high,
            ),
            random.child(number),
            augment=lambda frames, generator: shifted(frames, settings.shift_px, generator),
            trainable=stage.moves,
        )
        fits.append((found, len(learned) // batch))
        parameters = found.parameters
    return fits


def _ones(design: Design, codec: Codec, samples: Samples, seed: int) -> float:
    """Share of ones in what a codec sends of validation samples; 1/2 if it sends no bits of its own."""
    if design.symbols != "bits":
        return 0.5
    generator = stream(seed, "coinference", "encoder").generator()
    with torch.no_grad():
        parts = [codec.encode(part, generator).sum() for part in samples.frames.split(BATCH)]
    return float(torch.stack(parts).sum()) / (len(samples) * codec.channel_uses)


def _at_equal_energy(design: Design, ones: float) -> Design:
    """The design with pulses as strong as equal energy allows, for the ones that it really sends."""
    if not design.on_off:
        return design
    return replace(design, channel=EqualEnergy(BinarySymmetric("on-off"), ones))


@dataclass(frozen=True)
class Sure:
    """A channel whose receiver hands on how sure it is: the probability of a one."""

    channel: BinaryChannel

    def __call__(
        self, sent: Tensor, ebn0_db: Tensor | float, generator: torch.Generator, *, rate: float = 1.0
    ) -> Tensor:
        """Return P(one) for each bit of `sent` [..., N]."""
        received = self.channel(sent, ebn0_db, generator, rate=rate)
        return torch.sigmoid(self.channel.llr(received, ebn0_db, rate=rate))


@dataclass(frozen=True)
class Bursts:
    """A channel in time: what a codec sends at once, it sends in one row, however its symbols are laid out.

    Attributes:
        channel: whose rows are a time step, or a burst, apart.
        bursts: of a recording.
    """

    channel: Channel
    bursts: int

    def __call__(
        self, sent: Tensor, ebn0_db: Tensor | float, generator: torch.Generator, *, rate: float = 1.0
    ) -> Tensor:
        """Return what arrives of `sent` [B, T, N]."""
        rows = sent.reshape(len(sent), self.bursts, -1)
        return self.channel(rows, ebn0_db, generator, rate=rate).view(sent.shape)


def _other_channel(name: str, ones: float, together: int) -> Channel:
    """A channel for bits that no codec was trained for, at the same energy per use.

    Args:
        name: of it.
        ones: share of ones that is sent.
        together: how often a codec sends something during a recording.
    """
    match name:
        case "z":
            return EqualEnergy(ZChannel(), ones)
        case "soft":
            return Sure(Antipodal(Awgn()))
        case "rayleigh":
            return Sure(Antipodal(RayleighBlock(FADES_TOGETHER)))
        case "nr-tdl":
            return Bursts(Sure(Antipodal(NrTdl("C"))), together)
    raise AssertionError(name)
