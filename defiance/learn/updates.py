"""A training whose nodes are processes of their own: each node's part and the server's, as pure functions.

`training.fit` moves all nodes in one program. Here a node takes the same steps alone: it draws what `fit`
would draw for it, and keeps Adam's moments between rounds; the server averages and remembers the best round.
The same seeds and the same nodes in every round give the same weights, up to the order of sums in a product
of matrices. `learn.flower` carries these functions over a network.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic

import torch
from torch import Tensor

from defiance.learn.aggregation import Aggregation
from defiance.learn.training import Batch, Parameters, Schedule, take_steps
from defiance.learn.vectors import Layout
from defiance.seeding import Stream, stream

FIRST, SECOND = "first/", "second/"
"""Before the names of a parameter's moments."""
MANY = 10
"""A node weighs at most as much as so many times the median of a round's samples."""
ABSURD = 1e6
"""A loss so many times greater than 1 plus the median size of a round's losses is refused."""


@dataclass(frozen=True)
class Place:
    """Which node of which training.

    Attributes:
        node: its number, 0 ... nodes - 1.
        nodes: how many there are.
        seed: of the training.
        folder: the node's own, for its data and what it remembers.
    """

    node: int
    nodes: int
    seed: int
    folder: Path

    @property
    def stream(self) -> Stream:
        """Of the training, the same on all nodes; `fit` draws its batches from `child("batches")`."""
        return training_stream(self.seed)


@dataclass(frozen=True)
class NodeData(Generic[Batch]):
    """What a node trains on. It never leaves the node.

    Attributes:
        loss: of `fit`, for one node: `[1]` from parameters `[1, ...]` and a batch.
        draw: the node's own batch; it takes from the generator what `fit`'s takes for all nodes.
        validate: validation loss `[1]`.
        samples: its weight in the mean.
    """

    loss: Callable[[Parameters, Batch], Tensor]
    draw: Callable[[torch.Generator], Batch]
    validate: Callable[[Parameters], Tensor]
    samples: int


@dataclass(frozen=True)
class Deployable:
    """What is trained.

    Attributes:
        initial: the weights to start from, `[1, ...]` each, from the seed and the server's folder.
        local: a node's data and loss, read or made in its folder.
        prepare: makes the data of all nodes ahead, where one machine plays them all; None: each its own.
    """

    initial: Callable[[int, Path], Parameters]
    local: Callable[[Place], NodeData]  # type: ignore[type-arg]  # of any kind of batch
    prepare: Callable[[Sequence[Place]], None] | None = None


@dataclass(frozen=True)
class Memory:
    """What a node keeps between the rounds that it took part in.

    Attributes:
        round: the last of them; 0 before the first.
        steps: optimiser steps that it has taken.
        moments: Adam's, `first/NAME` and `second/NAME`.
        generator: state of the batches' draws after that round, uint8.
    """

    round: int
    steps: int
    moments: Parameters
    generator: Tensor

    @classmethod
    def empty(cls, random: Stream) -> Memory:
        """Before the first round."""
        return cls(0, 0, {}, random.child("batches").generator().get_state())


@dataclass(frozen=True)
class Progress:
    """What the server knows after a round.

    Attributes:
        round: rounds done.
        parameters: the mean after that round, `[1, ...]` each.
        best: those of the judged round with the least mean validation loss.
        best_loss: that loss.
        since: rounds judged since.
    """

    round: int
    parameters: Parameters
    best: Parameters
    best_loss: float = math.inf
    since: int = 0

    @classmethod
    def begin(cls, parameters: Parameters) -> Progress:
        """Before the first round."""
        return cls(0, parameters, parameters)

    def judged(self, losses: Sequence[float]) -> Progress:
        """With what the nodes say of `parameters`: their validation losses, in the nodes' order."""
        loss = float(torch.tensor(losses).mean())
        if loss < self.best_loss:
            return replace(self, best=self.parameters, best_loss=loss, since=0)
        return replace(self, since=self.since + 1)

    def averaged(
        self, updates: Sequence[Parameters], samples: Sequence[float], aggregation: Aggregation
    ) -> Progress:
        """After a round in which these nodes took part, in their order.

        Args:
            updates: their weights, `[1, ...]` each.
            samples: what each weighs.
            aggregation: of what they changed, as in `federate`.
        """
        layout = Layout.of({name: weight[0] for name, weight in self.parameters.items()})
        before = layout.join(self.parameters)
        changes = torch.cat([layout.join(update) for update in updates]) - before
        share = torch.tensor(samples, dtype=torch.float64)
        step = aggregation(changes, (share / share.sum()).to(changes.dtype))
        return replace(self, round=self.round + 1, parameters=layout.split(before + step))


def capped(samples: Sequence[int]) -> list[float]:
    """What each node of a round weighs by the samples that it says it has: at most `MANY` medians of them.

    So a claim alone makes no mean one's own. Of fewer than three nobody can tell which is the odd one.
    """
    most = MANY * statistics.median(samples) if len(samples) > 2 else math.inf
    return [min(count, most) for count in samples]


def implausible(names: Sequence[str], losses: Sequence[float]) -> list[str | None]:
    """Why each node's reply of a round is refused, if it is: alone it would make the mean loss.

    Of fewer than three replies nobody can tell which is the odd one, and none is refused.

    Args:
        names: of the n nodes.
        losses: that each says it found, finite.

    Returns:
        For every node a line that begins with its name, or None.
    """
    if len(names) < 3:
        return [None] * len(names)
    size = statistics.median(map(abs, losses))
    return [
        f"{name}: its validation loss is {loss:g}, the round's median size {size:g}"
        if abs(loss) > ABSURD * (size + 1)
        else None
        for name, loss in zip(names, losses, strict=True)
    ]


def training_stream(seed: int) -> Stream:
    """All draws of a training over nodes."""
    return stream(seed, "federated")


def train_round(
    weights: Parameters, memory: Memory, data: NodeData[Batch], schedule: Schedule, round_: int
) -> tuple[Parameters, Memory]:
    """A node's steps of one round; what rounds that it missed would have drawn is drawn and left.

    Args:
        weights: of the server, `[1, ...]` each.
        memory: after the last round that the node took part in.
        data: its own.
        schedule: of the whole training; the learning rate follows the rounds, whoever takes part.
        round_: 1 ... rounds.

    Returns:
        The node's weights and memory after the round.
    """
    steps = schedule.steps_per_round
    moving = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    optimiser = torch.optim.Adam(moving.values(), foreach=True)
    for name, weight in moving.items() if memory.moments else ():
        optimiser.state[weight] = {
            "step": torch.tensor(float(memory.steps)),
            "exp_avg": memory.moments[FIRST + name].clone(),
            "exp_avg_sq": memory.moments[SECOND + name].clone(),
        }
    generator = torch.Generator()
    generator.set_state(memory.generator)
    for _ in range((round_ - 1 - memory.round) * steps):
        data.draw(generator)
    batches = (data.draw(generator) for _ in range(steps))
    take_steps(optimiser, moving, data.loss, batches, schedule.rates(round_))
    moments = {FIRST + name: optimiser.state[weight]["exp_avg"] for name, weight in moving.items()}
    moments |= {SECOND + name: optimiser.state[weight]["exp_avg_sq"] for name, weight in moving.items()}
    after = {name: weight.detach() for name, weight in moving.items()}
    return after, Memory(round_, memory.steps + steps, moments, generator.get_state())


def length(update: Parameters, model: Parameters) -> float:
    """Euclidean distance of a node's weights from those it was sent."""
    return math.sqrt(sum(float((update[name] - w).double().square().sum()) for name, w in model.items()))
