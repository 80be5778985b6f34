"""Joint source-channel codes: learned by a conventional network, an uncoded event map, and the bounds.

```
 JointAnn     event map ─▶ Cnn ─▶ binary or analogue symbols ─▶ channel ─▶ perceptron ─▶ logits
 UncodedMap   event map ─▶ one bit per cell                  ─▶ channel ─▶ Cnn        ─▶ logits
 Central      event map, as it is                                       ─▶ Cnn        ─▶ logits
 Repeated     any codec's symbols, each sent several times   ─▶ channel ─▶ averaged   ─▶ that codec's decoder
```

`UncodedMap` at the sensor's own resolution sends everything; `Central`, without a channel, is the upper bound
of all that infer at the edge by this network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from defiance.codecs.codec import Channel, Codec
from defiance.codecs.conventional import BlockCodec, Cnn, Shape, dense, event_map, perceptron, so_far
from defiance.errors import DefianceError
from defiance.learn.training import Parameters


@dataclass(frozen=True)
class JointAnnConfig:
    """A conventional network at both ends.

    Attributes:
        shape: sizes that both halves agree on.
        symbols: zeros and ones, or reals of unit mean energy per burst.
        device_filters: of the device's two convolutions.
        device_hidden: hidden neurons of the device's network.
        edge_hidden: hidden neurons of the edge's.
    """

    shape: Shape = Shape()
    symbols: Literal["binary", "analogue"] = "binary"
    device_filters: tuple[int, int] = (16, 32)
    device_hidden: int = 128
    edge_hidden: int = 256

    @property
    def device(self) -> Cnn:
        """The network that makes a burst of symbols from an event map."""
        shape = self.shape
        return Cnn(
            2 * shape.slices,
            shape.size,
            shape.channel_uses,
            filters=self.device_filters,
            hidden=self.device_hidden,
        )


@dataclass(frozen=True)
class JointAnn(BlockCodec):
    """A convolutional encoder and a perceptron decoder, trained end to end over the channel.

    Attributes:
        config: sizes.
        parameters: weights of both halves, `device.*` and `edge.*`.
    """

    config: JointAnnConfig
    parameters: Mapping[str, Tensor]

    @staticmethod
    def initial(config: JointAnnConfig, generator: torch.Generator) -> Parameters:
        """Return random weights."""
        shape = config.shape
        return (
            config.device.initial("device", generator)
            | dense("edge.hidden", (config.edge_hidden, shape.channel_uses), generator)
            | dense("edge.output", (shape.classes, config.edge_hidden), generator, gain=1.0)
        )

    @property
    def name(self) -> str:
        """A word for tables."""
        return f"joint-{self.config.symbols}"

    @property
    def shape(self) -> Shape:
        """Sizes that both halves agree on."""
        return self.config.shape

    def encode(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Return symbols [B, T, N]; nothing is drawn."""
        shape = self.shape
        seen = so_far(event_map(frames, shape.size, shape.slices, shape.size), shape.blocks)
        images = torch.log1p(seen).flatten(0, 1).flatten(1, 2)
        potential = self.config.device(self.parameters, "device", images)
        bursts = own_part(potential.view(len(frames), shape.blocks, shape.channel_uses))
        if self.config.symbols == "binary":
            symbols = straight_through(bursts)
        else:
            symbols = bursts / bursts.square().mean(-1, keepdim=True).clamp(min=1e-12).sqrt()
        return symbols.reshape(len(frames), shape.steps, shape.uses_per_step)

    def decide(self, received: Tensor) -> Tensor:
        """Return logits [B, blocks, C] from [B, T, N]."""
        shape = self.shape
        centred = 1 - 2 * received if self.config.symbols == "binary" else received
        arrived = so_far(centred.reshape(len(received), shape.blocks, -1), shape.blocks)
        return perceptron(self.parameters, "edge", arrived.flatten(2))


@dataclass(frozen=True)
class UncodedMapConfig:
    """One bit per cell of a coarse event map.

    Attributes:
        shape: sizes that both halves agree on; each block sends its own slices.
        cells: rows and columns of the map.
        polarities: 2 tells decreases from increases, 1 does not.
        threshold: events from which on a cell's bit is 1.
    """

    shape: Shape = Shape(uses_per_step=79, blocks=3)
    cells: int = 14
    polarities: int = 2
    threshold: int = 1

    def __post_init__(self) -> None:
        if self.polarities not in (1, 2):
            raise DefianceError(f"uncoded map: polarities are 1 or 2, got {self.polarities}")
        if self.bits_per_block > self.shape.uses_per_block:
            raise DefianceError(
                f"uncoded map: {self.bits_per_block} bits do not fit in the {self.shape.uses_per_block} uses "
                "of a block; take a coarser grid or more uses per step"
            )

    @property
    def bits_per_block(self) -> int:
        """Cells of a block's slices."""
        return self.shape.slices // self.shape.blocks * self.polarities * self.cells**2

    @property
    def edge(self) -> Cnn:
        """The network that reads the received map."""
        return map_reader(self.shape.slices * self.polarities, self.cells, self.shape.classes)


@dataclass(frozen=True)
class UncodedMap(BlockCodec):
    """Cells' bits go on air as they are, and again as often as the uses of a block allow; a CNN reads them.

    Attributes:
        config: sizes.
        parameters: weights of the edge, `edge.*`.
    """

    config: UncodedMapConfig
    parameters: Mapping[str, Tensor]

    @staticmethod
    def initial(config: UncodedMapConfig, generator: torch.Generator) -> Parameters:
        """Return random weights."""
        return config.edge.initial("edge", generator)

    @property
    def name(self) -> str:
        """A word for tables."""
        return "uncoded-map"

    @property
    def shape(self) -> Shape:
        """Sizes that both halves agree on."""
        return self.config.shape

    def encode(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Return bits [B, T, N]; nothing is drawn."""
        config, shape = self.config, self.shape
        counts = event_map(frames, shape.size, shape.slices, config.cells)
        bits = binary_map(counts, config.polarities, config.threshold)
        bursts = bits.view(len(frames), shape.blocks, config.bits_per_block)
        return repeat(bursts, shape.uses_per_block).reshape(len(frames), shape.steps, shape.uses_per_step)

    def decide(self, received: Tensor) -> Tensor:
        """Return logits [B, blocks, C] from [B, T, N]."""
        config, shape = self.config, self.shape
        bursts = received.reshape(len(received), shape.blocks, shape.uses_per_block)
        bits = average(2 * bursts - 1, config.bits_per_block)
        seen = so_far(bits.view(len(received), shape.blocks, -1), shape.blocks)
        images = seen.view(len(received) * shape.blocks, -1, config.cells, config.cells)
        logits = config.edge(self.parameters, "edge", images)
        return logits.view(len(received), shape.blocks, shape.classes)


@dataclass(frozen=True)
class CentralConfig:
    """A network at the edge for which all events are at hand.

    Attributes:
        steps: T, time steps of a recording.
        size: rows and columns of pixels that are seen, in the sensor's middle.
        slices: S, slices of time of the event map.
        blocks: decisions per recording.
        classes: C, what is told apart.
        hidden: neurons of the network's hidden layer.
    """

    steps: int = 15
    size: int = 28
    slices: int = 3
    blocks: int = 1
    classes: int = 10
    hidden: int = 128

    @property
    def shape(self) -> Shape:
        """Every count of every step is a symbol."""
        return Shape(self.steps, 2 * self.size**2, self.size, self.classes, self.slices, self.blocks)

    @property
    def edge(self) -> Cnn:
        """The network that reads an event map."""
        return Cnn(2 * self.slices, self.size, self.classes, hidden=self.hidden)


@dataclass(frozen=True)
class Central(BlockCodec):
    """A CNN on the events themselves, as if they were at the edge; its symbols are counts, for no channel.

    Attributes:
        config: sizes.
        parameters: weights of the edge, `edge.*`.
    """

    config: CentralConfig
    parameters: Mapping[str, Tensor]

    @staticmethod
    def initial(config: CentralConfig, generator: torch.Generator) -> Parameters:
        """Return random weights."""
        return config.edge.initial("edge", generator)

    @property
    def name(self) -> str:
        """A word for tables."""
        return "central"

    @property
    def shape(self) -> Shape:
        """Sizes that both halves agree on."""
        return self.config.shape

    def encode(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Return counts [B, T, 2 x size x size]; nothing is drawn."""
        return event_map(frames, self.config.size, self.steps, self.config.size).flatten(2)

    def decide(self, received: Tensor) -> Tensor:
        """Return logits [B, blocks, C] from [B, T, N]."""
        config = self.config
        counts = received.view(len(received), config.slices, -1, 2, config.size, config.size).sum(2)
        images = torch.log1p(so_far(counts, config.blocks)).flatten(0, 1).flatten(1, 2)
        return config.edge(self.parameters, "edge", images).view(len(received), config.blocks, -1)


@dataclass(frozen=True)
class Repeated:
    """Each symbol of a shorter code is sent `times` times, and the edge averages what arrives.

    Attributes:
        inner: the shorter code.
        times: repeats of each symbol.
    """

    inner: Codec
    times: int

    @property
    def name(self) -> str:
        """A word for tables."""
        return f"{self.inner.name}-x{self.times}"

    @property
    def steps(self) -> int:
        """T."""
        return self.inner.steps

    @property
    def channel_uses(self) -> int:
        """T x N."""
        return self.times * self.inner.channel_uses

    def encode(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Return symbols [B, T, N]."""
        symbols = self.inner.encode(frames, generator)
        return repeat(symbols, self.times * symbols.shape[-1])

    def decode(self, received: Tensor) -> Tensor:
        """Return logits [B, T, C] from [B, T, N]."""
        return self.inner.decode(average(received, received.shape[-1] // self.times))


@dataclass(frozen=True)
class RepeatedChannel:
    """A channel that sends each symbol `times` times and averages: trains the inner code of `Repeated`."""

    channel: Channel
    times: int

    def __call__(
        self, sent: Tensor, ebn0_db: Tensor | float, generator: torch.Generator, *, rate: float = 1.0
    ) -> Tensor:
        """Return the mean of what arrives of each symbol, [..., N]."""
        repeated = repeat(sent, self.times * sent.shape[-1])
        return average(self.channel(repeated, ebn0_db, generator, rate=rate), sent.shape[-1])


def repeat(symbols: Tensor, uses: int) -> Tensor:
    """Send symbols again, in their order, until all uses are taken: [..., K] -> [..., uses]."""
    return symbols[..., torch.arange(uses) % symbols.shape[-1]]


def average(received: Tensor, symbols: int) -> Tensor:
    """Undo `repeat`: [..., uses] -> [..., K], the mean of what arrived for each."""
    place = torch.arange(received.shape[-1]) % symbols
    total = received.new_zeros(*received.shape[:-1], symbols).index_add(-1, place, received)
    return total / torch.bincount(place, minlength=symbols)


def straight_through(potential: Tensor) -> Tensor:
    """H(u), zeros and ones, with the gradient of sigmoid(u) (Bengio et al. 2013)."""
    probability = torch.sigmoid(potential)
    return probability + ((potential > 0).to(potential.dtype) - probability).detach()


def own_part(potential: Tensor) -> Tensor:
    """Return each block's own share of its outputs: [B, blocks, uses] -> [B, blocks, uses / blocks]."""
    batch, blocks, uses = potential.shape
    return potential.view(batch, blocks, blocks, uses // blocks).diagonal(dim1=1, dim2=2).transpose(1, 2)


def binary_map(counts: Tensor, polarities: int, threshold: int) -> Tensor:
    """Return 1 where there were `threshold` events or more: [B, S, 2, ...] -> [B, S, polarities, ...]."""
    if polarities == 1:
        counts = counts.sum(2, keepdim=True)
    return (counts > threshold - 0.5).float()


def map_reader(channels: int, cells: int, classes: int) -> Cnn:
    """Return the network that classifies a coarse map: no stride where the map is small already."""
    strides = (1, 2) if cells > 10 else (1, 1)
    return Cnn(channels, cells, classes, filters=(32, 32), strides=strides)
