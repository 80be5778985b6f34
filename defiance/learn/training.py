"""One training loop; who averages with whom is a matrix.

Nodes' weights are one stacked tensor per parameter, `[nodes, ...]`, so that seven base stations train in
one program. After each round `w_i <- sum_j A_ij w_j`: the identity keeps nodes apart (local), equal rows of
shares average them (federated), and central training is a single node that holds all the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from defiance.seeding import Stream

Parameters = dict[str, Tensor]
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        rounds: rounds at most; the mixing matrix acts after each.
        steps_per_round: optimiser steps of every node per round.
        learning_rate: of Adam at the start; it decays to zero along a half cosine.
        patience: rounds without a better validation loss, of any node where none is averaged, before training
            stops.
    """

    rounds: int
    steps_per_round: int
    learning_rate: float = 2e-3
    patience: int = 10

    def rates(self, round_: int) -> list[float]:
        """Learning rates of the steps of a round, 1 ... rounds."""
        total, first = self.rounds * self.steps_per_round, (round_ - 1) * self.steps_per_round
        return [
            self.learning_rate * (0.5 * (1 + math.cos(math.pi * step / total)))
            for step in range(first, first + self.steps_per_round)
        ]


@dataclass(frozen=True)
class Fit:
    """A finished training.

    Attributes:
        parameters: of the round with the best mean validation loss, `[nodes, ...]` each; where the mixing
            matrix is the identity, of each node's own best round.
        validation_loss: per round and node, `[rounds, nodes]`; entry 0 is before training.
        rounds: rounds run.
    """

    parameters: Parameters
    validation_loss: Tensor
    rounds: int


def federated_mixing(samples: Tensor) -> Tensor:
    """FedAvg (McMahan et al. 2017): the mean weighted by samples, `[nodes] -> [nodes, nodes]`."""
    share = samples.float() / samples.sum()
    return share.expand(len(samples), -1).clone()


def mix(parameters: Parameters, mixing: Tensor) -> Parameters:
    """w_i <- sum_j A_ij w_j for every parameter `[nodes, ...]`."""
    return {name: torch.tensordot(mixing, w, dims=1) for name, w in parameters.items()}


def take_steps(
    optimiser: torch.optim.Optimizer,
    weights: Parameters,
    loss: Callable[[Parameters, Batch], Tensor],
    batches: Iterable[Batch],
    rates: Iterable[float],
    adjust: Callable[[], None] | None = None,
) -> None:
    """The loop of all training: a step on each batch, for n nodes at once, in place.

    Args:
        optimiser: of those `weights` that move.
        weights: `[n, ...]` each.
        loss: of every node, `[n]`.
        batches: of all nodes.
        rates: learning rates of the steps.
        adjust: called when gradients are there, before they are followed.
    """
    for batch, rate in zip(batches, rates, strict=False):
        optimiser.param_groups[0]["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        loss(weights, batch).sum().backward()
        if adjust is not None:
            adjust()
        optimiser.step()


def fit(
    parameters: Parameters,
    loss: Callable[[Parameters, Batch], Tensor],
    draw: Callable[[torch.Generator], Batch],
    validate: Callable[[Parameters], Tensor],
    mixing: Tensor,
    schedule: Schedule,
    stream: Stream,
    *,
    trainable: Callable[[str], bool] = lambda name: True,
    advance: Callable[[int], None] | None = None,
) -> Fit:
    """Trains all nodes.

    Args:
        parameters: initial weights, `[nodes, ...]` each.
        loss: loss of every node, `[nodes]`, from stacked parameters and a batch.
        draw: a batch for every node, from the given generator.
        validate: validation loss of every node, `[nodes]`.
        mixing: A, `[nodes, nodes]`.
        schedule: how long and how fast.
        stream: the batches' draws.
        trainable: which parameters move, by name (fine-tuning of some layers).
        advance: called with the optimiser steps done, for progress bars.
    """
    weights = {name: w.clone().requires_grad_(trainable(name)) for name, w in parameters.items()}
    moving = [w for w in weights.values() if w.requires_grad]
    optimiser = torch.optim.Adam(moving, foreach=True)
    generator = stream.child("batches").generator()
    identity = bool(torch.equal(mixing, torch.eye(len(mixing))))
    with torch.no_grad():
        history = [validate(weights)]
    best, best_loss, since = _copy(weights), _judged(history[0], identity), 0
    steps = schedule.steps_per_round
    for round_ in range(1, schedule.rounds + 1):
        batches = (draw(generator) for _ in range(steps))
        take_steps(optimiser, weights, loss, batches, schedule.rates(round_))
        with torch.no_grad():
            if not identity:
                for name, mixed in mix(weights, mixing).items():
                    weights[name].copy_(mixed)
            history.append(validate(weights))
        if advance is not None:
            advance(steps)
        found = _judged(history[-1], identity)
        better = found < best_loss
        best_loss = torch.where(better, found, best_loss)
        for name, weight in weights.items():
            best[name][better] = weight.detach()[better]
        since = 0 if bool(better.any()) else since + 1
        if since >= schedule.patience:
            break
    return Fit(best, torch.stack(history), len(history) - 1)


def _judged(loss: Tensor, apart: bool) -> Tensor:
    """What decides on each node's best round, `[nodes]`: its own loss, or the mean where nodes are mixed."""
    return loss if apart else loss.mean().expand_as(loss)


def _copy(weights: Parameters) -> Parameters:
    return {name: w.detach().clone() for name, w in weights.items()}
