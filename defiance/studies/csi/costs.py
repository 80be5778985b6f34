"""What a codec's halves, a step of training, and what travels for it cost: operations, parameters, bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn

from defiance.control.codebooks import COPHASES
from defiance.control.csi.dictionary import NEAR, Dictionary, Learned
from defiance.control.csi.klt import Klt
from defiance.control.csi.networks import Network, Neural
from defiance.control.csi.rules import OVERSAMPLING, Feedback, LBeams, TypeOne
from defiance.control.csi.targets import SUBBANDS
from defiance.meter import OPTIMISER_OPERATIONS, count_operations, operations_of

COMPLEX_MAC = 8
"""Real operations of a complex product, added to a sum."""
PORTS = 32
SAMPLE_BITS = SUBBANDS * PORTS * 2 * 16
"""Of a precoder that is learned from: real and imaginary parts of 16 bits."""
ALIGNMENT = SUBBANDS * PORTS * 2 * COMPLEX_MAC
"""Of taking the free phases out."""


def inference(codec: Feedback) -> tuple[float, float]:
    """Real-valued operations of encoding and of decoding one report, counted from the sizes of products."""
    if isinstance(codec, TypeOne):
        beams = OVERSAMPLING**2 * codec.panel.rows * codec.panel.columns
        return SUBBANDS * beams * (PORTS * COMPLEX_MAC + COPHASES * 5), 0.0
    if isinstance(codec, LBeams):
        places = PORTS // 2
        project = SUBBANDS * 2 * places * codec.beams * COMPLEX_MAC
        transform = 2 * codec.beams * 5 * SUBBANDS * math.log2(SUBBANDS)
        search = OVERSAMPLING**2 * SUBBANDS * PORTS * (places * COMPLEX_MAC + 4)
        again = 2 * (project + transform + ALIGNMENT / 2)
        return ALIGNMENT + search + 3 * (project + transform) + again, project + transform
    if isinstance(codec, Klt):
        components = math.ceil(int((codec.parameters["widths"][0] > 0).nonzero().max()) / 2 + 0.5)
        product = SUBBANDS * PORTS * components * COMPLEX_MAC
        return ALIGNMENT + product + 2 * codec.bits, product
    if isinstance(codec, Learned):
        return _dictionary(codec.dictionary)
    assert isinstance(codec, Neural)
    own, station = codec.network, codec.decoder or codec.network
    return ALIGNMENT + 2 * _transforms() + _network(own)[0], _network(station)[1] + _transforms()


def _dictionary(shape: Dictionary) -> tuple[float, float]:
    delays, beams, later = 1 << shape.delay_bits, 1 << shape.beam_bits, shape.stages - 1
    kinds = 2 << shape.polarisation_bits
    term = SUBBANDS * PORTS * COMPLEX_MAC
    first = SUBBANDS * ((PORTS << shape.first_bits) + kinds) * COMPLEX_MAC + 2 * term
    search = (delays * SUBBANDS + NEAR * beams) * PORTS * COMPLEX_MAC
    search += 4 * delays * PORTS + 7 * NEAR * beams + (14 << shape.gain_bits)
    return first + later * (search + 3 * term), later * term + term


@lru_cache(maxsize=32)
def _network(shape: Network) -> tuple[float, float]:
    picture, bits = torch.empty(1, *shape.shape, device="meta"), torch.empty(1, shape.bits, device="meta")
    return tuple(
        float(count_operations(half.requires_grad_(False), inputs).total)
        for half, inputs in ((shape.encoder(), picture), (shape.decoder(), bits))
    )  # type: ignore[return-value]


def _transforms() -> float:
    """Of the angle-delay transform: a product with 16 beams, and an FFT over the band."""
    return SUBBANDS * PORTS * (16 * COMPLEX_MAC + 5 * math.log2(SUBBANDS))


def parameters(codec: Feedback) -> int:
    """Real numbers that one decision uses; a rule has none."""
    if isinstance(codec, Klt):
        return sum(
            codec.parameters[name][0].numel() * (2 if name == "basis" else 1) for name in ("basis", "levels")
        )
    if isinstance(codec, Learned | Neural):
        return sum(w[0].numel() for w in codec.parameters.values())
    return 0


def device_parameters(weights: Mapping[str, Tensor]) -> int:
    """Real numbers that a device has to be given: the encoder's, or the whole dictionary."""
    return sum(w[0].numel() for name, w in weights.items() if not name.startswith("decoder."))


@lru_cache(maxsize=64)
def training_step(shape: Dictionary | Network, batch: int) -> float:
    """Real-valued operations of one optimiser step of one node.

    A dictionary's choices have no gradient; its sum has one, of twice the operations.
    """
    if isinstance(shape, Dictionary):
        encode, decode = _dictionary(shape)
        beams = (1 << shape.first_bits) + (1 << shape.beam_bits)
        gains = (1 << shape.polarisation_bits) + ((shape.stages - 1) << shape.gain_bits)
        weights = beams * PORTS + 4 * gains
        return batch * (encode + 3 * decode) + OPTIMISER_OPERATIONS["adam"] * weights
    model = nn.Sequential(shape.encoder(), nn.Tanh(), shape.decoder())
    picture = torch.empty(batch, *shape.shape, device="meta")
    step = operations_of(model, picture, lambda output: output.square().mean()).training_step.total
    return float(step)
