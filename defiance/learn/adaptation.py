"""Fine-tuning: which numbers of a trained model move, and how they make the whole model.

Only what moves is trained, kept and sent::

    base [...] ──┐
                 ├──▶ whole model [n, ...] ──▶ loss
  moving [n, ...]┘
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.learn.federation import Task
from defiance.learn.training import Parameters


class Adaptation(Protocol):
    """A way of fine-tuning."""

    def start(self, base: Parameters, generator: torch.Generator) -> Parameters:
        """What moves, from one node's weights `[...]`; the model is at first what it was.

        Raises:
            DefianceError: nothing of this model would move.
        """

    def whole(self, base: Parameters, moving: Parameters) -> Parameters:
        """Weights of n nodes, `[n, ...]`, from the base `[...]` and what has moved `[n, ...]`."""


@dataclass(frozen=True)
class Some:
    """The parameters with these names move as they are.

    Attributes:
        names: of those that move; `everything`, `last_layer` and `biases_and_norms` find them.
    """

    names: frozenset[str]

    def start(self, base: Parameters, generator: torch.Generator) -> Parameters:
        """Those parameters."""
        if not self.names or self.names - base.keys():
            wanted = ", ".join(sorted(self.names)) or "nothing"
            raise DefianceError(f"fine-tuning of {wanted}; the model has {', '.join(base)}")
        return {name: weight.clone() for name, weight in base.items() if name in self.names}

    def whole(self, base: Parameters, moving: Parameters) -> Parameters:
        """The moved ones, and the others for every node."""
        nodes = len(next(iter(moving.values())))
        return {
            name: moving[name] if name in moving else weight.expand(nodes, *weight.shape)
            for name, weight in base.items()
        }


def everything(parameters: Parameters) -> Some:
    """All parameters."""
    return Some(frozenset(parameters))


def last_layer(parameters: Parameters) -> Some:
    """Those that come last and share their layer: all of `2.weight`, `2.bias`; of `weight2`, `bias2`."""
    last = _layer(list(parameters)[-1])
    return Some(frozenset(name for name in parameters if _layer(name) == last))


def biases_and_norms(parameters: Parameters) -> Some:
    """All without a matrix: biases, and the scales of normalisations (BitFit, Ben Zaken et al. 2022).

    A bias of a stacked layer may be a row `[1, out]`.
    """
    return Some(frozenset(name for name, weight in parameters.items() if not _is_matrix(weight)))


@dataclass(frozen=True)
class LoRA:
    """Every matrix W of m x k gets a product beside it: `W + (alpha/r) A B` (Hu et al., ICLR 2022).

    A, m x r, begins random with variance 1/r, B, r x k, at zero. A convolution's kernel is a matrix of its
    output channels by all the rest.

    Attributes:
        rank: r.
        alpha: of the scale; r by default, so that the scale is 1.
    """

    rank: int = 4
    alpha: float | None = None

    @property
    def scale(self) -> float:
        """`alpha / r`."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def start(self, base: Parameters, generator: torch.Generator) -> Parameters:
        """A and B of every matrix that both are smaller than."""
        moving: Parameters = {}
        for name, weight in base.items():
            rows, columns = len(weight) if weight.ndim else 1, weight[0].numel() if weight.ndim else 1
            if _is_matrix(weight) and self.rank * (rows + columns) < rows * columns:
                spread = self.rank**-0.5
                moving[f"{name}.A"] = spread * torch.randn(rows, self.rank, generator=generator)
                moving[f"{name}.B"] = torch.zeros(self.rank, columns)
        if not moving:
            raise DefianceError(
                f"LoRA: no matrix of the model is larger than its factors of rank {self.rank}"
            )
        return moving

    def whole(self, base: Parameters, moving: Parameters) -> Parameters:
        """Base and products."""
        nodes = len(next(iter(moving.values())))
        found = {}
        for name, weight in base.items():
            if f"{name}.A" in moving:
                product = torch.bmm(moving[f"{name}.A"], moving[f"{name}.B"])
                found[name] = weight + self.scale * product.view(nodes, *weight.shape)
            else:
                found[name] = weight.expand(nodes, *weight.shape)
        return found


def fine_tuning(task: Task, adaptation: Adaptation, generator: torch.Generator) -> Task:
    """A task whose weights are what moves; `adaptation.whole(task.start, ...)` gives the model back."""
    base = task.start

    def through(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda moving, *others: function(adaptation.whole(base, moving), *others)

    return replace(
        task,
        start=adaptation.start(base, generator),
        loss=through(task.loss),
        validate=through(task.validate),
    )


def _layer(name: str) -> str:
    """What parameters of a layer share: the path before the last point, or the number at the end."""
    path, point, _ = name.rpartition(".")
    return path if point else name.lstrip("abcdefghijklmnopqrstuvwxyz_")


def _is_matrix(weight: Tensor) -> bool:
    return weight.ndim >= 2 and len(weight) > 1
