"""Who has which data: the cells' own, as unequal as wanted, and changing in the course of a day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defiance.errors import DefianceError


@dataclass(frozen=True)
class LocalData:
    """Samples of all nodes in one table, each node's in a row.

    Attributes:
        columns: inputs, targets, ...: `[N, ...]` each, grouped by node.
        start: where each node's samples begin, `[nodes]`.
        count: how many it has, `[nodes]`.
    """

    columns: tuple[Tensor, ...]
    start: Tensor
    count: Tensor

    @classmethod
    def of(cls, nodes: Sequence[Sequence[Tensor]]) -> LocalData:
        """Join every node's own tensors, such as `[(inputs, targets), ...]`.

        Raises:
            DefianceError: a node has no samples, or its columns differ in length, or from other nodes'.
        """
        if not nodes:
            raise DefianceError("data of no node at all; give one pair of inputs and targets per node")
        for number, columns in enumerate(nodes):
            lengths = {len(column) for column in columns}
            if len(columns) != len(nodes[0]) or len(lengths) != 1 or 0 in lengths:
                raise DefianceError(
                    f"node {number}: {len(columns)} tensors of {sorted(lengths)} samples;"
                    f" give {len(nodes[0])}, equally long and not empty"
                )
            for column, first in zip(columns, nodes[0], strict=True):
                if column.shape[1:] != first.shape[1:] or column.dtype != first.dtype:
                    raise DefianceError(
                        f"node {number}: samples are {column.dtype} {tuple(column.shape[1:])}, those"
                        f" of node 0 {first.dtype} {tuple(first.shape[1:])}"
                    )
        count = torch.tensor([len(columns[0]) for columns in nodes])
        table = tuple(torch.cat(list(column)) for column in zip(*nodes, strict=True))
        return cls(table, count.cumsum(0) - count, count)

    @classmethod
    def assigned(cls, columns: tuple[Tensor, ...], node: Tensor, nodes: int) -> LocalData:
        """Give sample i to `node[i]`, int64 `[N]`.

        Raises:
            DefianceError: a node gets none.
        """
        count = torch.bincount(node, minlength=nodes)
        if len(count) > nodes or not bool(count.all()):
            raise DefianceError(f"samples per node are {count.tolist()}; each of {nodes} needs some")
        order = node.argsort(stable=True)
        return cls(tuple(column[order] for column in columns), count.cumsum(0) - count, count)

    def draw(self, node: Tensor, uniform: Tensor, now_s: Tensor) -> tuple[Tensor, ...]:
        """Samples of nodes `[n]`, with replacement, from uniform `[n, batch]`: `[n, batch, ...]` each."""
        place = self.start[node, None] + (uniform * self.count[node, None]).long()
        return tuple(column[place] for column in self.columns)


@dataclass(frozen=True)
class Drift:
    """Data that change: each set holds from its time on, in a day that begins again when it is over.

    Attributes:
        data: what the nodes have, one after the other.
        since_s: from when on each set holds, ascending from 0.
        day_s: how long it takes until the first one is back.
    """

    data: tuple[LocalData, ...]
    since_s: tuple[float, ...]
    day_s: float = torch.inf

    def draw(self, node: Tensor, uniform: Tensor, now_s: Tensor) -> tuple[Tensor, ...]:
        """As of `LocalData`, each node from the set that holds at its time `[n]`."""
        since_s = torch.tensor(self.since_s, dtype=torch.float64)
        now_s = now_s % self.day_s if self.day_s < torch.inf else now_s
        phase = torch.searchsorted(since_s, now_s, right=True) - 1
        drawn = [data.draw(node, uniform, now_s) for data in self.data]
        return tuple(
            torch.stack(column)[phase, torch.arange(len(node))] for column in zip(*drawn, strict=True)
        )


def dirichlet(label: Tensor, nodes: int, concentration: float, generator: torch.Generator) -> Tensor:
    """A node for every sample: each label's samples are shared out by a draw of Dirichlet(alpha).

    Small alpha: nodes know few labels; large alpha: all know the same (Hsu, Qi and Brown 2019). A node that
    would get nothing gets one sample of the node that has most.

    Args:
        label: int64 `[N]`, such as classes or serving cells.
        nodes: how many.
        concentration: alpha, above 0.
        generator: draws.

    Returns:
        int64 `[N]`.
    """
    if not concentration > 0 or len(label) < nodes:
        raise DefianceError(f"dirichlet: alpha {concentration:g} and {len(label)} samples for {nodes} nodes")
    node = torch.empty_like(label)
    for value in label.unique():
        mine = (label == value).nonzero().squeeze(1)
        mine = mine[torch.randperm(len(mine), generator=generator)]
        alpha = torch.full((nodes,), concentration, dtype=torch.float64)
        share = torch._sample_dirichlet(alpha, generator=generator)
        edge = (share.cumsum(0) * len(mine)).round().long()
        node[mine] = torch.searchsorted(edge, torch.arange(len(mine)), right=True).clamp(max=nodes - 1)
    for empty in (torch.bincount(node, minlength=nodes) == 0).nonzero().flatten():
        richest = torch.bincount(node, minlength=nodes).argmax()
        node[(node == richest).nonzero()[0]] = empty
    return node


def unequal(samples: int, nodes: int, sigma: float, generator: torch.Generator) -> Tensor:
    """A node for every sample, int64 `[N]`: lognormal numbers of samples per node, at least one each."""
    weight = torch.exp(sigma * torch.randn(nodes, generator=generator, dtype=torch.float64))
    edge = 1 + torch.arange(nodes) + ((weight.cumsum(0) / weight.sum()) * (samples - nodes)).round().long()
    shuffled = torch.randperm(samples, generator=generator)
    return torch.searchsorted(edge, shuffled, right=True)
