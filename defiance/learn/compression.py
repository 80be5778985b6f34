"""Fewer bits per update: each encodes vectors into real bytes, and those bytes back into vectors.

All take `[n, length]` float32 to uint8 `[n, bytes]`; the number of bytes depends on the length alone, so a
transfer's time is known before its content.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from defiance.errors import DefianceError


class Compression(Protocol):
    """A lossy code for vectors.

    Attributes:
        biased: whether the mean over draws is not the vector; the sender then adds what it left out to its
            next update (error feedback: Seide et al. 2014; Karimireddy et al. 2019).
        contractive: whether `E|C(x) - x|^2 < |x|^2` for every x, without which feedback would diverge.
    """

    @property
    def biased(self) -> bool:
        """See the class."""

    @property
    def contractive(self) -> bool:
        """See the class."""

    def encode(self, vectors: Tensor, generator: torch.Generator) -> Tensor:
        """`[n, length]` float32 -> uint8 `[n, bytes]`."""

    def decode(self, payload: Tensor, length: int) -> Tensor:
        """Uint8 `[n, bytes]` -> `[n, length]` float32.

        Raises:
            DefianceError: the payload isn't one of such vectors.
        """


@dataclass(frozen=True)
class Dense:
    """All numbers as they are, float32."""

    biased: ClassVar[bool] = False
    contractive: ClassVar[bool] = True

    def encode(self, vectors: Tensor, generator: torch.Generator) -> Tensor:
        """Four bytes a number."""
        return vectors.contiguous().view(torch.uint8)

    def decode(self, payload: Tensor, length: int) -> Tensor:
        """The same numbers."""
        return _numbers(_sized(payload, 4 * length), torch.float32)


@dataclass(frozen=True)
class TopK:
    """The numbers of greatest size, with their places: 8 bytes each.

    `|C(x) - x|^2 <= (1 - k/length) |x|^2` (Stich et al. 2018).

    Attributes:
        share: of the numbers that are sent, at least one.
    """

    share: float
    biased: ClassVar[bool] = True
    contractive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise DefianceError(f"TopK: share {self.share:g} of an update can't be sent; take one in (0, 1]")

    def kept(self, length: int) -> int:
        """How many numbers are sent."""
        return max(1, round(self.share * length))

    def encode(self, vectors: Tensor, generator: torch.Generator) -> Tensor:
        """Places (int32), then numbers (float32)."""
        place = vectors.abs().topk(self.kept(vectors.shape[1]), dim=1, sorted=False).indices
        number = vectors.gather(1, place)
        return torch.cat([place.int().view(torch.uint8), number.view(torch.uint8)], 1)

    def decode(self, payload: Tensor, length: int) -> Tensor:
        """Zero where nothing was sent."""
        half = 4 * self.kept(length)
        whole = _sized(payload, 2 * half)
        place = _numbers(whole[:, :half], torch.int32).long()
        if not bool(((place >= 0) & (place < length)).all()):
            raise DefianceError(f"an update names places outside of its {length} numbers")
        number = _numbers(whole[:, half:], torch.float32)
        return torch.zeros(len(payload), length).scatter_(1, place, number)


@dataclass(frozen=True)
class Int8:
    """One byte a number, rounded up or down by chance so that the mean is right (QSGD, Alistarh et al. 2017).

    In a block whose largest size is s, numbers are multiples of D = s/127; one between two of them, at f of
    the way, has the variance `D^2 f (1 - f)`.

    Attributes:
        block: numbers that share a scale of 4 bytes.
    """

    block: int = 1024
    biased: ClassVar[bool] = False
    contractive: ClassVar[bool] = True

    def encode(self, vectors: Tensor, generator: torch.Generator) -> Tensor:
        """Scales (float32), then multiples (int8)."""
        length = vectors.shape[1]
        blocks = _blocks(vectors, self.block)
        scale = blocks.abs().amax(-1) / 127
        exact = blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
        rounded = (exact + torch.rand(exact.shape, generator=generator)).floor_()
        number = rounded.clamp_(-127, 127).to(torch.int8).flatten(1)[:, :length]
        return torch.cat([scale.view(torch.uint8), number.view(torch.uint8)], 1)

    def decode(self, payload: Tensor, length: int) -> Tensor:
        """Multiples times their scale."""
        head = 4 * -(-length // self.block)
        whole = _sized(payload, head + length)
        scale = _numbers(whole[:, :head], torch.float32)
        number = _numbers(whole[:, head:], torch.int8).float()
        return number.mul_(scale.repeat_interleave(self.block, 1)[:, :length])


@dataclass(frozen=True)
class OneBit:
    """One bit a number: s or -s, by chance so that the mean is right, s being the block's largest size.

    The variance is `s^2 - x^2`: fit for averages over many nodes, not for feedback.

    Attributes:
        block: numbers that share a scale of 4 bytes; a multiple of 8.
    """

    block: int = 256
    biased: ClassVar[bool] = False
    contractive: ClassVar[bool] = False

    def encode(self, vectors: Tensor, generator: torch.Generator) -> Tensor:
        """Scales (float32), then bits."""
        blocks = _blocks(vectors, self.block)
        scale = blocks.abs().amax(-1)
        chance = 0.5 + 0.5 * blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
        return _packed(scale, torch.rand(chance.shape, generator=generator) < chance)

    def decode(self, payload: Tensor, length: int) -> Tensor:
        """Signs times their scale."""
        return _signed(payload, length, self.block)


@dataclass(frozen=True)
class Sign:
    """One bit a number: its sign, times the mean size in its block (Karimireddy et al. 2019).

    For a block of B numbers `|C(x) - x|^2 = |x|^2 - |x|_1^2 / B`; what is left out comes with the next one.

    Attributes:
        block: numbers that share a scale of 4 bytes; a multiple of 8.
    """

    block: int = 256
    biased: ClassVar[bool] = True
    contractive: ClassVar[bool] = True

    def encode(self, vectors: Tensor, generator: torch.Generator) -> Tensor:
        """Scales (float32), then bits."""
        blocks = _blocks(vectors, self.block)
        numbers = _blocks(torch.ones_like(vectors[:1]), self.block).sum(-1)
        return _packed(blocks.abs().sum(-1) / numbers, blocks >= 0)

    def decode(self, payload: Tensor, length: int) -> Tensor:
        """Signs times their scale."""
        return _signed(payload, length, self.block)


_BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


def _blocks(vectors: Tensor, size: int) -> Tensor:
    """`[n, length]` -> `[n, blocks, size]`, filled up with zeros."""
    return pad(vectors, (0, -vectors.shape[1] % size)).view(len(vectors), -1, size)


def _packed(scale: Tensor, positive: Tensor) -> Tensor:
    """Scales `[n, blocks]` and signs, bool `[n, blocks, size]`, as bytes."""
    bits = (positive.view(len(scale), -1, 8) * _BITS).sum(-1, dtype=torch.uint8)
    return torch.cat([scale.view(torch.uint8), bits], 1)


def _signed(payload: Tensor, length: int, size: int) -> Tensor:
    """`[n, length]` from what `_packed` made."""
    blocks = -(-length // size)
    whole = _sized(payload, 4 * blocks + blocks * size // 8)
    scale = _numbers(whole[:, : 4 * blocks], torch.float32)
    bits = (whole[:, 4 * blocks :, None] & _BITS) != 0
    sign = bits.float().mul_(2).sub_(1).view(len(payload), blocks, size)
    return sign.mul_(scale[..., None]).flatten(1)[:, :length]


def _numbers(part: Tensor, kind: torch.dtype) -> Tensor:
    """Bytes `[n, bytes]` as numbers `[n, bytes / size]`, without a copy where rows follow each other."""
    return part.reshape(-1).view(kind).view(len(part), part.shape[1] // kind.itemsize)


def _sized(payload: Tensor, expected: int) -> Tensor:
    if payload.shape[1] != expected:
        raise DefianceError(f"an update has {payload.shape[1]} bytes; its model takes {expected}")
    return payload
