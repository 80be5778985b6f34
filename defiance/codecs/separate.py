"""Separate coding: compress an event map, protect its bits, restore it, classify it; or send the class.

```
 Separate  frames ─▶ Source ─▶ k bits ─▶ Protection ─▶ channel ─▶ Protection ─▶ k bits ─▶ Source ─▶ map ─▶ Cnn
                     Vq or MapCoder      5G NR's codes                                    restored
 Label     frames ─▶ Cnn ─▶ class ─▶ codeword      ─▶ channel ─▶ correlation with all codewords ─▶ logits
```

A separate code is one block: it knows nothing before all has arrived. `rate_adapted` picks, per Eb/N0, the
code rate that is best on validation recordings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from defiance.codecs.codec import Channel, Codec, Loss, Samples, evaluate
from defiance.codecs.conventional import BlockCodec, Cnn, Shape, event_map, so_far
from defiance.codecs.joint import average, map_reader, repeat
from defiance.errors import DefianceError
from defiance.learn.training import Parameters
from defiance.radio.nr import Ldpc
from defiance.seeding import Stream

SMALL_BLOCK = """
    11000000001 11100000011 10010010111 10110000101 11110001001 11001011101 10101010111 10011001101
    11011001011 10111010011 10100111011 11100110101 10010101111 11010101011 10001101001 11001111011
    11101110010 10011100100 11011111000 10000110000 10100010001 11010000011 10001001101 11101000111
    11111011110 11000111001 10110100110 11110101110 10101110100 10111111100 11111111111 10000000000
"""
"""Basis sequences of the (32, k) code, TS 38.212 table 5.3.3.3-1: a row per coded bit, M_0 first."""

LDPC_BITS = 12
"""Information bits of the shortest block; fewer are small blocks."""
LDPC_LOWEST_RATE = 5
"""Coded bits per information bit of the lowest rate; what is left of the uses repeats them."""

BHATTACHARYYA = 0.65
"""2 sqrt(p (1 - p)) of one use at about -2 dB; the code for labels hardly depends on it."""


class Source(Protocol):
    """A source code for event maps at any number of bits."""

    def compress(self, frames: Tensor, bits: int) -> Tensor:
        """Return float32 [B, k], zeros and ones, of uint8 [B, T, 2, H, W]."""

    def restore(self, bits: Tensor) -> Tensor:
        """Return decoded maps, float32 [B, channels, cells, cells]: -1 no events, 1 some, 0 unknown."""

    def distort(self, frames: Tensor, bits: int, errors: Tensor) -> Tensor:
        """Return what `restore` makes of `compress` with these bits (bool [B, k]) changed."""


@dataclass(frozen=True)
class Protection:
    """5G NR's code for k bits, rate matching included: small blocks to 11 bits, LDPC above.

    Log-likelihood ratios have a constant size, that of the binary symmetric channel whose capacity is the
    rate: right where it matters, and the decoder need not know Eb/N0.

    Attributes:
        bits: k.
        uses: n, coded bits; beyond the code's own they are repeated.
    """

    bits: int
    uses: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits < self.uses:
            raise DefianceError(f"protection: {self.bits} bits do not fit in {self.uses} channel uses")
        if self.bits >= LDPC_BITS:
            _ = self.code  # refuses rates that LDPC does not have

    def encode(self, bits: Tensor) -> Tensor:
        """Return float [B, n] of float [B, k], zeros and ones."""
        if self.bits < LDPC_BITS:
            return repeat(bits @ _basis(self.bits) % 2, self.uses)
        return repeat(self.code.encode(bits), self.uses)

    def decode(self, received: Tensor) -> Tensor:
        """Return float [B, k], zeros and ones, of received bits [B, n], hard or soft (0 and 1 plus noise)."""
        if self.bits < LDPC_BITS:
            words = _words(self.bits)
            sent = 2 * repeat(words @ _basis(self.bits) % 2, self.uses) - 1
            return words[((2 * received - 1) @ sent.T).argmax(1)]
        code = self.code
        repeats = self.uses / code.n
        return code.decode(average(2 * received - 1, code.n) * (repeats * self._certainty()))

    @property
    def code(self) -> Ldpc:
        """The LDPC code, if k is that large."""
        return Ldpc(self.bits, min(self.uses, LDPC_LOWEST_RATE * self.bits))

    def _certainty(self) -> float:
        """Log((1 - p)/p) of the crossover p at which the capacity 1 - H(p) is the rate."""
        crossover = torch.linspace(1e-4, 0.5 - 1e-4, 4000)
        entropy = -torch.special.xlogy(crossover, crossover) - torch.special.xlogy(
            1 - crossover, 1 - crossover
        )
        capacity = 1 - entropy / torch.log(torch.tensor(2.0))
        place = (capacity - self.bits / self.uses).abs().argmin()
        return float(-torch.special.logit(crossover[place]))


@lru_cache
def _basis(bits: int) -> Tensor:
    """The small block code's generator, [k, 32]."""
    rows = [[float(bit) for bit in row] for row in SMALL_BLOCK.split()]
    return torch.tensor(rows).T[:bits].contiguous()


def _words(bits: int) -> Tensor:
    """All words of k bits, [2^k, k]."""
    return ((torch.arange(1 << bits)[:, None] >> torch.arange(bits)) & 1).float()


@dataclass(frozen=True)
class SeparateConfig:
    """A source code, a channel code and a network that reads restored maps.

    Attributes:
        bits: k, that the source may take; the code rate is k / (T x N).
        shape: sizes; a separate code has a single block.
        cells: rows and columns of restored maps.
    """

    bits: int
    shape: Shape = Shape()
    cells: int = 14

    def __post_init__(self) -> None:
        if self.shape.blocks != 1:
            raise DefianceError(f"separate coding: one block, got {self.shape.blocks}")

    @property
    def protection(self) -> Protection:
        """The channel code."""
        return Protection(self.bits, self.shape.channel_uses)

    @property
    def edge(self) -> Cnn:
        """The network that reads a restored map."""
        return map_reader(2 * self.shape.slices, self.cells, self.shape.classes)


@dataclass(frozen=True)
class Separate(BlockCodec):
    """Source and channel coding, each on its own, and a classifier of restored maps.

    Attributes:
        config: sizes.
        source: a trained source code.
        parameters: weights of the edge, `edge.*`.
    """

    config: SeparateConfig
    source: Source
    parameters: Mapping[str, Tensor]

    @staticmethod
    def initial(config: SeparateConfig, generator: torch.Generator) -> Parameters:
        """Return random weights."""
        return config.edge.initial("edge", generator)

    @property
    def name(self) -> str:
        """A word for tables, with the code rate."""
        return f"separate-{type(self.source).__name__.lower()}-{self.config.bits}/{self.channel_uses}"

    @property
    def shape(self) -> Shape:
        """Sizes that both halves agree on."""
        return self.config.shape

    def encode(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Return coded bits [B, T, N]; nothing is drawn."""
        bits = self.source.compress(frames, self.config.bits)
        return self.config.protection.encode(bits).view(len(frames), self.steps, -1)

    def decide(self, received: Tensor) -> Tensor:
        """Return logits [B, 1, C] from [B, T, N]."""
        bits = self.config.protection.decode(received.flatten(1))
        return self.config.edge(self.parameters, "edge", self.source.restore(bits))[:, None]


@dataclass(frozen=True)
class Residue:
    """Errors that a channel code leaves, simulated once: to train a classifier on restored maps.

    A linear code's errors do not depend on what is sent if the channel treats zeros and ones alike.

    Attributes:
        ebn0_db: ascending, [E].
        errors: bool [E, patterns, k].
    """

    ebn0_db: Tensor
    errors: Tensor

    def draw(self, ebn0_db: Tensor, generator: torch.Generator) -> Tensor:
        """Return a pattern for each recording, bool [B, k], of the nearest simulated Eb/N0 [B, 1]."""
        nearest = (ebn0_db - self.ebn0_db).abs().argmin(1)
        pattern = torch.randint(self.errors.shape[1], (len(ebn0_db),), generator=generator)
        return self.errors[nearest, pattern]


def residue(
    protection: Protection,
    channel: Channel,
    ebn0_db: Sequence[float],
    generator: torch.Generator,
    *,
    patterns: int = 500,
) -> Residue:
    """Send random bits through a channel code and a channel, and note which come out wrong.

    Args:
        protection: the channel code.
        channel: of bits.
        ebn0_db: ascending.
        generator: all draws.
        patterns: blocks per Eb/N0.
    """
    errors = []
    for level_db in ebn0_db:
        bits = torch.randint(2, (patterns, protection.bits), generator=generator).float()
        received = channel(protection.encode(bits), level_db, generator)
        errors.append(protection.decode(received) != bits)
    return Residue(torch.tensor(ebn0_db), torch.stack(errors))


def separate_loss(configs: Sequence[SeparateConfig], source: Source, residues: Sequence[Residue]) -> Loss:
    """Return the cross-entropy of one classifier for several code rates, as `train` wants it.

    Each batch is sent at one of the rates.

    Args:
        configs: that differ in `bits` alone.
        source: a trained source code.
        residues: errors that each rate leaves.
    """

    def loss(
        parameters: Parameters, frames: Tensor, labels: Tensor, ebn0_db: Tensor, generator: torch.Generator
    ) -> Tensor:
        drawn = int(torch.randint(len(configs), (), generator=generator))
        config, errors = configs[drawn], residues[drawn].draw(ebn0_db, generator)
        with torch.no_grad():
            restored = source.distort(frames, config.bits, errors)
        return functional.cross_entropy(config.edge(parameters, "edge", restored), labels)

    return loss


def rate_adapted(
    codecs: Sequence[Codec],
    channel: Channel,
    validation: Samples,
    ebn0_db: Sequence[float],
    stream: Stream,
) -> tuple[Codec, ...]:
    """Return the codec with the best accuracy at each Eb/N0, on recordings that are not tested later.

    Args:
        codecs: for the same number of channel uses, by rate; the first of equals wins.
        channel: between their halves.
        validation: what they are judged on.
        ebn0_db: where a choice is made.
        stream: all draws; the same for every codec.
    """

    def accuracy(codec: Codec, level_db: float) -> float:
        generator = stream.child(str(level_db)).generator()
        return float(evaluate(codec, channel, validation.frames, validation.labels, level_db, generator)[-1])

    return tuple(max(codecs, key=lambda codec: accuracy(codec, level_db)) for level_db in ebn0_db)


@dataclass(frozen=True)
class LabelConfig:
    """Classification on the device.

    Attributes:
        shape: sizes; each block sends the class that the device names by then.
        hidden: neurons of the device's hidden layer.
    """

    shape: Shape = Shape()
    hidden: int = 128

    @property
    def device(self) -> Cnn:
        """The network that names a class."""
        return Cnn(2 * self.shape.slices, self.shape.size, self.shape.classes, hidden=self.hidden)


@dataclass(frozen=True)
class Label(BlockCodec):
    """The device classifies and sends the class by one codeword per class; the edge takes the likeliest.

    Attributes:
        config: sizes.
        parameters: weights of the device, `device.*`.
    """

    config: LabelConfig
    parameters: Mapping[str, Tensor]

    @staticmethod
    def initial(config: LabelConfig, generator: torch.Generator) -> Parameters:
        """Return random weights."""
        return config.device.initial("device", generator)

    @property
    def name(self) -> str:
        """A word for tables."""
        return "label"

    @property
    def shape(self) -> Shape:
        """Sizes that both halves agree on."""
        return self.config.shape

    def classify(self, frames: Tensor) -> Tensor:
        """Return the device's logits, [B, blocks, C]."""
        shape = self.shape
        seen = so_far(event_map(frames, shape.size, shape.slices, shape.size), shape.blocks)
        logits = self.config.device(self.parameters, "device", torch.log1p(seen).flatten(0, 1).flatten(1, 2))
        return logits.view(len(frames), shape.blocks, shape.classes)

    def encode(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Return the named classes' codewords, [B, T, N]; nothing is drawn."""
        shape = self.shape
        words = codewords(shape.classes, shape.uses_per_block)
        return words[self.classify(frames).argmax(-1)].view(len(frames), shape.steps, -1)

    def decide(self, received: Tensor) -> Tensor:
        """Return logits [B, blocks, C] from [B, T, N]: agreement with each codeword, halved."""
        shape = self.shape
        words = codewords(shape.classes, shape.uses_per_block)
        bursts = received.reshape(len(received), shape.blocks, shape.uses_per_block)
        return (2 * bursts - 1) @ (2 * words - 1).T / 2


def label_loss(config: LabelConfig) -> Loss:
    """Return the cross-entropy of the device's network, as `train` wants it; no channel is in the loop."""

    def loss(
        parameters: Parameters, frames: Tensor, labels: Tensor, ebn0_db: Tensor, generator: torch.Generator
    ) -> Tensor:
        logits = Label(config, parameters).classify(frames)
        return functional.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1]))

    return loss


@lru_cache
def codewords(classes: int, uses: int) -> Tensor:
    """Return one codeword per class, far apart: each use in turn splits the classes as helps the most.

    The next split is the one that lowers the union bound on errors, the sum of z^distance over all pairs, the
    most. At 10 classes distances come to 5/9 of the uses, the most that there can be (Plotkin).

    Args:
        classes: C, 2 to 12.
        uses: n.

    Returns:
        float32 [C, n], zeros and ones.
    """
    if not 2 <= classes <= 12:
        raise DefianceError(f"codewords: 2 to 12 classes, got {classes}")
    splits = _words(classes)[: 1 << (classes - 1)]
    first, second = torch.tensor(list(combinations(range(classes), 2))).T
    apart = (splits[:, first] != splits[:, second]).float()
    remaining = torch.ones(apart.shape[1])
    chosen = []
    for _ in range(uses):
        bound = (remaining * BHATTACHARYYA**apart).sum(1)
        chosen.append(int(bound.argmin()))
        remaining = remaining * BHATTACHARYYA ** apart[chosen[-1]]
        remaining /= remaining.max()
    return splits[chosen].T.contiguous()
