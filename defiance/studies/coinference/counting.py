"""Operations of both halves of a codec and of its training, counted while it computes.

What torch does not do is added: the fused LIF neurons, and the codes of 5G NR and of the entropy coder, whose
operations follow from their sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from defiance.codecs.codec import Codec, Samples
from defiance.codecs.conventional import BlockCodec, Shape, event_map
from defiance.codecs.entropy import MapCoder
from defiance.codecs.joint import Central
from defiance.codecs.neurojscc import NeuroJscc
from defiance.codecs.separate import LDPC_BITS, LDPC_LOWEST_RATE, Protection, Separate
from defiance.codecs.vdib import Vdib
from defiance.codecs.vq import Vq
from defiance.learn.training import Parameters
from defiance.meter import OPTIMISER_OPERATIONS, count_while
from defiance.studies.coinference.candidates import Stage, designs
from defiance.studies.coinference.data import tested_on
from defiance.studies.coinference.settings import STEPS, Config

LIF_FORWARD, LIF_BACKWARD = 4, 9
"""Per neuron and step: decay, add, compare, reset; and the gradient of these, surrogate included."""

LDPC_EDGES_PER_BIT = 197 / 52
"""Of 5G NR's base graph 2 (TS 38.212 table 5.3.2-3): 197 entries in 52 columns."""
LDPC_OPERATIONS_PER_EDGE = 12
"""Per iteration: two tanh or logarithms, products forwards and backwards along a check, a sum at the bit."""
LDPC_ITERATIONS = 20
SMALL_BLOCK_LENGTH = 32

ENTROPY_OPERATIONS_PER_CELL = 12
"""Count, threshold, context of eight neighbours, look-up, one step of the stack."""

SHARED = ("source.codebook", "source.level")
"""Names of what both halves hold."""

SAMPLES = 4
"""Recordings that are computed with while operations are counted."""
EVENTS_OF = 200
"""Test recordings whose events are counted."""


def count(config: Config, name: str, uses: int, choice: int) -> dict[str, Any]:
    """Operations of both halves for a recording and of an optimiser step, and parameters of both halves."""
    design = designs(name, uses)[choice]
    generator = torch.Generator().manual_seed(0)
    recordings = tested_on(config.data[0], 0, config.folds, config.test_recordings)
    recordings = recordings.select(torch.arange(min(EVENTS_OF, len(recordings))))
    samples = recordings.select(torch.arange(SAMPLES))
    parameters = design.initial(generator, samples)
    codec = design.builds[0](parameters)
    device, edge = _halves(codec, parameters, samples.frames[:1], generator)
    if isinstance(codec, BlockCodec) and not isinstance(codec, Central):
        # a device adds one for each event, as it comes; torch sums all bins
        device += _events(recordings.frames, codec.shape) - _summing(samples.frames, codec.shape)
    return {
        "channel_uses": codec.channel_uses,
        "device_operations": device,
        "edge_operations": edge,
        "device_parameters": _weights(
            parameters, ("device.", "source.device.", "source.codebook", "source.level")
        ),
        "edge_parameters": _weights(parameters, ("edge.", "source.edge.", "source.codebook", "source.level")),
        "step_operations": [_step(config, codec, parameters, stage, samples) for stage in design.stages],
    }


def _halves(
    codec: Codec, parameters: Mapping[str, Tensor], frames: Tensor, generator: torch.Generator
) -> tuple[float, float]:
    """Operations of the device half and of the edge half for one recording."""
    with torch.no_grad():
        if isinstance(codec, Separate):
            return _separate(codec, parameters, frames)
        sent = codec.encode(frames, generator)
        device = count_while(lambda: codec.encode(frames, generator)).total
        edge = count_while(lambda: codec.decode(sent)).total
    spiking_edge = STEPS * codec.config.neurons if isinstance(codec, NeuroJscc) else 0
    return device, edge + LIF_FORWARD * spiking_edge


def _events(frames: Tensor, shape: Shape) -> float:
    """Events that a conventional device sees of a recording, on average."""
    return float(event_map(frames, shape.size, 1, shape.size).sum()) / len(frames)


def _summing(frames: Tensor, shape: Shape) -> float:
    """What torch takes to make one event map."""
    return float(count_while(lambda: event_map(frames[:1], shape.size, shape.slices, shape.size)).total)


def _separate(codec: Separate, parameters: Mapping[str, Tensor], frames: Tensor) -> tuple[float, float]:
    """The same of separate coding: source code, channel code, classifier of the restored map."""
    bits, source = codec.config.bits, codec.source
    sent = source.compress(frames, bits)
    restored = source.restore(sent)
    edge: float = count_while(lambda: codec.config.edge(parameters, "edge", restored)).total
    if isinstance(source, Vq):
        device: float = count_while(lambda: source.compress(frames, bits)).total
        edge += count_while(lambda: source.restore(sent)).total
    else:
        assert isinstance(source, MapCoder)
        cells = [source.config.slices * level.polarities * level.cells**2 for level in source.config.levels]
        device = _summing(frames, codec.shape) + ENTROPY_OPERATIONS_PER_CELL * sum(cells)
        edge += ENTROPY_OPERATIONS_PER_CELL * cells[0]
    encoding, decoding = _coding(codec.config.protection)
    return device + encoding, edge + decoding


def _coding(protection: Protection) -> tuple[float, float]:
    """Operations of 5G NR's codes: encoding and decoding one block."""
    if protection.bits < LDPC_BITS:
        words = 1 << protection.bits
        return 2 * protection.bits * SMALL_BLOCK_LENGTH, 2 * words * protection.uses
    coded = min(protection.uses, LDPC_LOWEST_RATE * protection.bits)
    edges = LDPC_EDGES_PER_BIT * coded
    return 2 * edges, LDPC_ITERATIONS * LDPC_OPERATIONS_PER_EDGE * edges


def _step(config: Config, codec: Codec, parameters: Parameters, stage: Stage, samples: Samples) -> float:
    """Operations of one optimiser step: forward, backward, Adam."""
    moving = [name for name in parameters if stage.moves(name)]
    weights = {
        name: weight.clone().requires_grad_(name in moving) if weight.is_floating_point() else weight
        for name, weight in parameters.items()
    }
    generator, ebn0_db = torch.Generator().manual_seed(0), torch.zeros(SAMPLES, 1)

    def step() -> None:
        loss = stage.loss(weights, samples.frames, samples.labels, ebn0_db, generator)
        torch.autograd.grad(loss, [weights[name] for name in moving], allow_unused=True)

    stage.loss(weights, samples.frames, samples.labels, ebn0_db, generator)  # made once
    operations = float(count_while(step).total)
    operations += (LIF_FORWARD + LIF_BACKWARD) * SAMPLES * _lif_updates(codec)
    updated = sum(parameters[name].numel() for name in moving)
    return operations * config.training.batch / SAMPLES + OPTIMISER_OPERATIONS["adam"] * updated


def _lif_updates(codec: Codec) -> int:
    """Updates of LIF neurons of both halves for a recording."""
    if isinstance(codec, NeuroJscc):
        return STEPS * (sum(codec.config.device.layer_sizes) + codec.config.neurons)
    return STEPS * sum(codec.config.layer_sizes) if isinstance(codec, Vdib) else 0


def _weights(parameters: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> int:
    return sum(weight.numel() for name, weight in parameters.items() if name.startswith(prefixes))
