"""What one node, or many side by side, do between two exchanges: some optimiser steps on their own data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.learn.training import Batch, Parameters, take_steps


@dataclass(frozen=True)
class Local:
    """How a node learns on its own. Its optimiser begins anew in every job: nothing but weights is kept.

    Attributes:
        steps: of the optimiser in a job.
        batch: samples of a step.
        learning_rate: constant.
        optimiser: plain gradient descent, or Adam.
        proximal: FedProx's mu: the loss has mu/2 |w - w_0|^2 added, w_0 being where the job began (Li et al.,
            MLSys 2020).
    """

    steps: int
    batch: int = 32
    learning_rate: float = 2e-3
    optimiser: Literal["sgd", "adam"] = "adam"
    proximal: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not self.learning_rate > 0 or not self.proximal >= 0:
            raise DefianceError(
                f"Local: {self.steps} steps on {self.batch} samples at rate {self.learning_rate:g}, proximal"
                f" {self.proximal:g}, train nothing; take 1 or more, a rate above 0 and proximal from 0"
            )


def descend(
    start: Parameters, loss: Callable[[Parameters, Batch], Tensor], batches: Iterable[Batch], local: Local
) -> Parameters:
    """Take a step on each batch, for n nodes at once.

    Args:
        start: weights, `[n, ...]` each.
        loss: of every node, `[n]`.
        batches: of all nodes.
        local: how.

    Returns:
        The weights after the last batch.
    """
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in start.items()}
    moving = list(weights.values())
    origin = [weight.detach().clone() for weight in moving] if local.proximal else []
    if local.optimiser == "adam":
        optimiser: torch.optim.Optimizer = torch.optim.Adam(moving, foreach=True)
    else:
        optimiser = torch.optim.SGD(moving, foreach=True)

    def pull_back() -> None:
        with torch.no_grad():
            for weight, first in zip(moving, origin, strict=True):
                assert weight.grad is not None
                weight.grad.add_(weight - first, alpha=local.proximal)

    adjust = pull_back if local.proximal else None
    take_steps(optimiser, weights, loss, batches, repeat(local.learning_rate), adjust)
    return {name: weight.detach() for name, weight in weights.items()}
