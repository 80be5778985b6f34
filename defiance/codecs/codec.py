"""What every device-edge codec is, how all are judged, and the one loop that trains them.

```
 frames [B,T,2,H,W] ─▶ encode ─▶ symbols [B,T,N] ─▶ channel ─▶ received [B,T,N] ─▶ decode ─▶ logits [B,T,C]
                       device                        radio                          edge
```

A codec decides at any time: its logits at step t depend on `received[:, :t+1]` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.learn.training import Fit, Parameters, Schedule, fit
from defiance.seeding import Stream

NOISELESS_DB = math.inf
"""Eb/N0 of a channel without noise."""


class Channel(Protocol):
    """Symbols to symbols inside one transmission; see `defiance.radio.channels`."""

    def __call__(
        self, sent: Tensor, ebn0_db: Tensor | float, generator: torch.Generator, *, rate: float = 1.0
    ) -> Tensor:
        """Return what arrives of `sent` [..., N] at an Eb/N0 that broadcasts to [...]."""


class Codec(Protocol):
    """A device half and an edge half, with the weights of both."""

    @property
    def name(self) -> str:
        """A word for tables."""

    @property
    def steps(self) -> int:
        """T, time steps of a recording."""

    @property
    def channel_uses(self) -> int:
        """Per recording: T x N."""

    def encode(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Turn events into channel symbols.

        Args:
            frames: uint8 [B, T, 2, H, W], events per bin, polarity and pixel.
            generator: draws of a random encoder.

        Returns:
            float32 [B, T, N]: zeros and ones of a binary codec, reals of unit mean energy of an analogue one.
        """

    def decode(self, received: Tensor) -> Tensor:
        """Infer, causally.

        Args:
            received: float32 [B, T, N].

        Returns:
            Logits, float32 [B, T, classes]; zeros as long as a block code cannot know anything.
        """


@dataclass(frozen=True)
class Samples:
    """Binned recordings with their classes.

    Attributes:
        frames: uint8 [R, T, 2, H, W].
        labels: int64 [R].
    """

    frames: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.frames.dim() != 5 or self.frames.shape[2] != 2 or self.frames.dtype != torch.uint8:
            raise DefianceError(
                "samples: frames must be uint8 [R, T, 2, H, W], "
                f"got {self.frames.dtype} {list(self.frames.shape)}"
            )
        if self.labels.shape != self.frames.shape[:1] or self.labels.dtype != torch.int64:
            raise DefianceError(
                f"samples: labels must be int64 [{len(self.frames)}], got {self.labels.dtype} "
                f"{list(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Tensor) -> Samples:
        """Return the samples at these places (int64 [n] or bool [R])."""
        return Samples(self.frames[index], self.labels[index])

    @staticmethod
    def concatenate(parts: Sequence[Samples]) -> Samples:
        """Return all parts' samples, in order."""
        return Samples(torch.cat([part.frames for part in parts]), torch.cat([part.labels for part in parts]))


def decisions(
    codec: Codec,
    channel: Channel,
    frames: Tensor,
    ebn0_db: float,
    generator: torch.Generator,
    *,
    rate: float = 1.0,
    batch: int = 250,
) -> Tensor:
    """Return the class that the edge would name at each step, int64 [R, T].

    Args:
        codec: both halves.
        channel: between them.
        frames: uint8 [R, T, 2, H, W].
        ebn0_db: of the channel; `NOISELESS_DB` for none.
        generator: draws of the encoder and of the channel.
        rate: information bits per channel use; with 1, Eb is the energy of one channel use.
        batch: recordings at once.
    """
    named = []
    with torch.no_grad():
        for part in frames.split(batch):
            received = channel(codec.encode(part, generator), ebn0_db, generator, rate=rate)
            named.append(codec.decode(received).argmax(-1))
    return torch.cat(named)


def evaluate(
    codec: Codec,
    channel: Channel,
    frames: Tensor,
    labels: Tensor,
    ebn0_db: float,
    generator: torch.Generator,
    *,
    rate: float = 1.0,
) -> Tensor:
    """Return the share of right decisions after each step, float64 [T]; arguments as of `decisions`."""
    named = decisions(codec, channel, frames, ebn0_db, generator, rate=rate)
    return (named == labels[:, None]).double().mean(0)


Loss = Callable[[Parameters, Tensor, Tensor, Tensor, torch.Generator], Tensor]
"""loss(parameters, frames [B,T,2,H,W], labels [B], ebn0_db [B,1], generator) -> mean over the batch."""


@dataclass(frozen=True)
class Training:
    """How a codec is trained; one setting for all that are compared.

    Attributes:
        epochs: passes over the training set at most.
        batch: recordings per optimiser step.
        learning_rate: of Adam at the start; it decays to zero along a half cosine.
        patience: epochs without a better validation loss before training stops.
        ebn0_low_db: each recording is sent at an Eb/N0 drawn uniformly from here ...
        ebn0_high_db: ... to here.
    """

    epochs: int
    batch: int = 100
    learning_rate: float = 2e-3
    patience: int = 10
    ebn0_low_db: float = -6.0
    ebn0_high_db: float = 6.0


def train(
    parameters: Parameters,
    loss: Loss,
    training: Samples,
    validation: Samples,
    settings: Training,
    stream: Stream,
    *,
    augment: Callable[[Tensor, torch.Generator], Tensor] = lambda frames, generator: frames,
    trainable: Callable[[str], bool] = lambda name: True,
    advance: Callable[[int], None] | None = None,
) -> Fit:
    """Train a codec by Adam with early stopping: `learn.fit` for a single node.

    Args:
        parameters: initial weights.
        loss: of a batch.
        training: what is learned from, in a new order each epoch.
        validation: the epoch with the lowest loss on these is kept; noise is the same after every epoch.
        settings: how long and how fast.
        stream: all draws.
        augment: changes a batch of frames before it is used.
        trainable: which parameters move, by name.
        advance: called with the optimiser steps done.

    Returns:
        The best epoch's weights, without a dimension of nodes.
    """
    steps = len(training) // settings.batch
    if steps == 0:
        raise DefianceError(
            f"train: {len(training)} training recordings do not fill one batch of {settings.batch}; "
            "lower `batch`"
        )

    order: list[Tensor] = []

    def snr(count: int, generator: torch.Generator) -> Tensor:
        width = settings.ebn0_high_db - settings.ebn0_low_db
        return settings.ebn0_low_db + width * torch.rand(count, 1, generator=generator)

    def draw(generator: torch.Generator) -> tuple[Samples, Tensor, torch.Generator]:
        if not order:
            shuffled = torch.randperm(len(training), generator=generator)
            order.extend(shuffled[: steps * settings.batch].split(settings.batch))
        samples = training.select(order.pop())
        samples = Samples(augment(samples.frames, generator), samples.labels)
        return samples, snr(settings.batch, generator), generator

    def of_one(stacked: Parameters) -> Parameters:
        return {name: weight[0] for name, weight in stacked.items()}

    def batch_loss(stacked: Parameters, batch: tuple[Samples, Tensor, torch.Generator]) -> Tensor:
        samples, ebn0_db, generator = batch
        return loss(of_one(stacked), samples.frames, samples.labels, ebn0_db, generator)[None]

    def validate(stacked: Parameters) -> Tensor:
        generator = stream.child("validation").generator()
        total = torch.zeros(1)
        for index in torch.arange(len(validation)).split(250):
            part = validation.select(index)
            ebn0_db = snr(len(part), generator)
            total += len(part) * loss(of_one(stacked), part.frames, part.labels, ebn0_db, generator)
        return total / len(validation)

    result = fit(
        {name: weight[None] for name, weight in parameters.items()},
        batch_loss,
        draw,
        validate,
        torch.ones(1, 1),
        Schedule(settings.epochs, steps, settings.learning_rate, settings.patience),
        stream,
        trainable=trainable,
        advance=advance,
    )
    return Fit(of_one(result.parameters), result.validation_loss[:, 0], result.rounds)
