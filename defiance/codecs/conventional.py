"""What all conventional codecs share: event maps, a small convolutional network, blocks.

```
 frames [B,T,2,H,W] ─▶ event_map ─▶ [B,S,2,cells,cells] ─▶ so_far ─▶ [B,blocks,2S,cells,cells] ─▶ Cnn
                       S slices of time                     what was seen
                                                            when each block ends
```

A conventional codec sends its symbols in `blocks` bursts, each when its share of the T steps has passed.
Symbols [B, T, N] hold a burst in the rows of its block: N uses per step on average. A decision changes when
a burst has arrived, at the last step of its block.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from defiance.codecs.codec import Channel, Loss
from defiance.errors import DefianceError
from defiance.learn.training import Parameters


@dataclass(frozen=True)
class Shape:
    """Sizes that the halves of a codec agree on.

    Attributes:
        steps: T, time steps of a recording.
        uses_per_step: N, channel uses per step.
        size: rows and columns of pixels that are seen, in the sensor's middle.
        classes: C, what the edge tells apart.
        slices: S, slices of time that an event map tells apart.
        blocks: bursts in which a recording is sent; 1 waits for its end.
    """

    steps: int = 15
    uses_per_step: int = 32
    size: int = 28
    classes: int = 10
    slices: int = 3
    blocks: int = 1

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1:
            raise DefianceError(f"codec shape: every size must be at least 1, got {self}")
        if self.steps % self.slices or self.slices % self.blocks:
            raise DefianceError(
                f"codec shape: {self.steps} steps must be a multiple of {self.slices} slices, "
                f"and those of {self.blocks} blocks"
            )

    @property
    def channel_uses(self) -> int:
        """T x N."""
        return self.steps * self.uses_per_step

    @property
    def uses_per_block(self) -> int:
        """Channel uses of one burst."""
        return self.channel_uses // self.blocks


class BlockCodec(ABC):
    """A codec that sends and decides once per block of steps."""

    @property
    @abstractmethod
    def name(self) -> str:
        """A word for tables."""

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """Sizes that both halves agree on."""

    @property
    def steps(self) -> int:
        """T."""
        return self.shape.steps

    @property
    def channel_uses(self) -> int:
        """T x N."""
        return self.shape.channel_uses

    @abstractmethod
    def encode(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Return symbols [B, T, N]."""

    @abstractmethod
    def decide(self, received: Tensor) -> Tensor:
        """Return the logits after each block, [B, blocks, classes], from [B, T, N]."""

    def decode(self, received: Tensor) -> Tensor:
        """Return logits [B, T, classes]: zeros before the first block has arrived, then the last one's."""
        decided = self.decide(received)
        length = self.steps // self.shape.blocks
        before = decided.new_zeros(len(decided), length - 1, decided.shape[2])
        return torch.cat([before, decided.repeat_interleave(length, 1)], 1)[:, : self.steps]


def event_map(frames: Tensor, size: int, slices: int, cells: int) -> Tensor:
    """Count the events in each slice of time, polarity and cell of a grid.

    Args:
        frames: uint8 [B, T, 2, H, W].
        size: rows and columns of pixels that are seen, in the sensor's middle.
        slices: S, of equal length; T is a multiple of it.
        cells: rows and columns of the grid, at most `size`; where they do not divide it, cells overlap.

    Returns:
        float32 [B, S, 2, cells, cells].

    Raises:
        DefianceError: the frames are too small.
    """
    batch, steps, polarities, rows, columns = frames.shape
    if min(rows, columns) < size:
        raise DefianceError(f"event map: frames of {rows} x {columns} pixels are smaller than size = {size}")
    top, left = (rows - size) // 2, (columns - size) // 2
    seen = frames[..., top : top + size, left : left + size]
    counts = seen.reshape(batch, slices, steps // slices, polarities, size, size).sum(2, dtype=torch.float32)
    if cells == size:
        return counts
    area = math.ceil(size / cells) ** 2
    pooled = functional.adaptive_avg_pool2d(counts.flatten(1, 2), cells) * area
    return pooled.view(batch, slices, polarities, cells, cells)


def so_far(maps: Tensor, blocks: int) -> Tensor:
    """Return what is known when each block ends: [B, S, ...] -> [B, blocks, S, ...], the rest zero."""
    slices = maps.shape[1]
    ends = (torch.arange(blocks) + 1) * (slices // blocks)
    seen = (torch.arange(slices) < ends[:, None]).to(maps.dtype)
    return maps[:, None] * seen.view(1, blocks, slices, *[1] * (maps.dim() - 2))


@dataclass(frozen=True)
class Cnn:
    """Two convolutions and two matrix products, ReLU between them.

    Attributes:
        channels: of the input.
        size: rows and columns of the input.
        outputs: numbers that come out.
        filters: of the two convolutions.
        strides: of the two convolutions; their kernels are 2 stride + 1 wide.
        hidden: neurons between the matrix products.
    """

    channels: int
    size: int
    outputs: int
    filters: tuple[int, int] = (16, 32)
    strides: tuple[int, int] = (2, 2)
    hidden: int = 128

    def initial(self, prefix: str, generator: torch.Generator) -> Parameters:
        """Return random weights (He et al. 2015) under names that begin with `prefix`."""
        first, second = self.filters
        inner, outer = (2 * stride + 1 for stride in self.strides)
        size = self.size
        for stride in self.strides:
            size = math.ceil(size / stride)
        return (
            dense(f"{prefix}.conv1", (first, self.channels, inner, inner), generator)
            | dense(f"{prefix}.conv2", (second, first, outer, outer), generator)
            | dense(f"{prefix}.hidden", (self.hidden, second * size**2), generator)
            | dense(f"{prefix}.output", (self.outputs, self.hidden), generator, gain=1.0)
        )

    def __call__(self, parameters: Mapping[str, Tensor], prefix: str, images: Tensor) -> Tensor:
        """Return [B, outputs] from images [B, channels, size, size]."""
        values = images
        for layer, stride in zip(("conv1", "conv2"), self.strides, strict=True):
            weight, bias = parameters[f"{prefix}.{layer}.weight"], parameters[f"{prefix}.{layer}.bias"]
            values = functional.relu(functional.conv2d(values, weight, bias, stride, padding=stride))
        return perceptron(parameters, prefix, values.flatten(1))


def perceptron(parameters: Mapping[str, Tensor], prefix: str, values: Tensor) -> Tensor:
    """Hidden layer, ReLU, output layer: [..., inputs] -> [..., outputs]."""
    hidden = functional.linear(
        values, parameters[f"{prefix}.hidden.weight"], parameters[f"{prefix}.hidden.bias"]
    )
    return functional.linear(
        functional.relu(hidden), parameters[f"{prefix}.output.weight"], parameters[f"{prefix}.output.bias"]
    )


def dense(
    name: str, shape: tuple[int, ...], generator: torch.Generator, gain: float = math.sqrt(2)
) -> Parameters:
    """Return a layer's weight, normal with standard deviation gain / sqrt(inputs), and its bias, zero."""
    scale = gain / math.sqrt(math.prod(shape[1:]))
    return {
        f"{name}.weight": scale * torch.randn(shape, generator=generator),
        f"{name}.bias": torch.zeros(shape[0]),
    }


def decision_loss(build: Callable[[Parameters], BlockCodec], channel: Channel) -> Loss:
    """Return the mean cross-entropy of a codec's decisions, all blocks alike, as `train` wants it.

    Args:
        build: the codec with given weights.
        channel: between its halves.
    """

    def loss(
        parameters: Parameters, frames: Tensor, labels: Tensor, ebn0_db: Tensor, generator: torch.Generator
    ) -> Tensor:
        codec = build(parameters)
        logits = codec.decide(channel(codec.encode(frames, generator), ebn0_db, generator))
        return functional.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1]))

    return loss
