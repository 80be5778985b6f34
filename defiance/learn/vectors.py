"""Weights as one vector per node: what is sent, compared and averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Size, Tensor

from defiance.learn.training import Parameters


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in a vector of length `length`, in the order of the mapping.

    Attributes:
        shapes: of every parameter, without the dimension of nodes.
    """

    shapes: Mapping[str, Size]

    @classmethod
    def of(cls, parameters: Parameters) -> Layout:
        """The layout of one node's parameters, `[...]` each."""
        return cls({name: weight.shape for name, weight in parameters.items()})

    @property
    def length(self) -> int:
        """Numbers of one node."""
        return sum(prod(shape) for shape in self.shapes.values())

    def join(self, parameters: Parameters) -> Tensor:
        """Stacked parameters, `[n, ...]` each -> `[n, length]`."""
        return torch.cat(
            [parameters[name].detach().reshape(len(parameters[name]), -1) for name in self.shapes], 1
        )

    def split(self, vectors: Tensor) -> Parameters:
        """`[n, length]` -> stacked parameters, `[n, ...]` each: views where that is possible."""
        parts = vectors.split([prod(shape) for shape in self.shapes.values()], 1)
        return {
            name: part.reshape(len(vectors), *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
