"""Who averages with whom: mixing matrices, and the messages that carry them out.

In a round `w_i <- sum_j A_ij w_j`. Rows of A sum to one; where columns do, too, the nodes' mean is kept, and
their disagreement shrinks by the second largest absolute eigenvalue of A in every round (Xiao and Boyd,
Systems & Control Letters 53, 2004). A star with a server of its own is `federation.Server`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.learn.training import federated_mixing


@dataclass(frozen=True)
class Topology:
    """Rounds that come one after the other, and again from the first.

    Attributes:
        mixing: A of each kind of round, `[nodes, nodes]`.
        legs: per kind of round the legs of its messages, int64 `[2, messages]` from and to; a leg begins when
            the one before has arrived.
    """

    mixing: tuple[Tensor, ...]
    legs: tuple[tuple[Tensor, ...], ...]


def alone(nodes: int) -> Topology:
    """Nobody talks: every node keeps what it has learned."""
    return Topology((torch.eye(nodes),), ((),))


def gossip(adjacency: Tensor) -> Topology:
    """Neighbours send each other their models; Metropolis weights `A_ij = 1/(1 + max(d_i, d_j))`.

    They need nothing but the degrees d of neighbours, and A is doubly stochastic (Xiao, Boyd and Lall, IPSN
    2005).

    Args:
        adjacency: who hears whom, bool `[nodes, nodes]`, such as stations with an Xn interface.

    Raises:
        DefianceError: the graph is not symmetric, or not connected: its parts would never agree.
    """
    linked = adjacency & ~torch.eye(len(adjacency), dtype=torch.bool)
    if not torch.equal(linked, linked.T):
        raise DefianceError("gossip: the graph has one-way edges; give a symmetric adjacency")
    degree = linked.sum(1)
    larger = torch.maximum(degree[:, None], degree)
    mixing = linked / (1.0 + larger)
    mixing += torch.diag(1 - mixing.sum(1))
    if len(mixing) > 1 and contraction(mixing) > 1 - 1e-6:
        raise DefianceError("gossip: the graph falls into parts that never meet; link them")
    return Topology((mixing,), ((linked.nonzero().T,),))


def ring(nodes: int) -> Topology:
    """Everyone talks to the next and the one before."""
    step = torch.roll(torch.eye(nodes, dtype=torch.bool), 1, 1)
    return gossip(step | step.T)


def nearest(distance_m: Tensor, neighbours: int) -> Tensor:
    """The graph in which every node has its nearest ones: bool `[nodes, nodes]`, from distances likewise."""
    if not 0 < neighbours < len(distance_m):
        raise DefianceError(f"nearest: {neighbours} neighbours of {len(distance_m)} nodes; give fewer")
    others = distance_m.clone().fill_diagonal_(torch.inf)
    linked = torch.zeros(distance_m.shape, dtype=torch.bool)
    linked.scatter_(1, others.topk(neighbours, largest=False).indices, True)
    return linked | linked.T


def hierarchical(group: Tensor, samples: Tensor, edge_rounds: int) -> Topology:
    """Groups average among themselves; after every `edge_rounds` rounds all groups do.

    The first node of a group leads it and the first of all leads the leaders: members send up, leaders send
    down. Averages are weighted by samples.

    Args:
        group: of every node, int64 `[nodes]`.
        samples: of every node, `[nodes]`.
        edge_rounds: rounds from one average of all to the next, the last one included.
    """
    together = group[:, None] == group
    share = together * samples.float()
    within = share / share.sum(1, keepdim=True)
    leader = together.int().argmax(1)
    node = torch.arange(len(group))
    member = node != leader
    up = torch.stack([node[member], leader[member]])
    heads = leader.unique()[1:]
    higher = torch.stack([heads, torch.zeros_like(heads)])
    edge, cloud = (up, up.flip(0)), (up, higher, higher.flip(0), up.flip(0))
    mixing = (within,) * (edge_rounds - 1) + (federated_mixing(samples),)
    return Topology(mixing, (edge,) * (edge_rounds - 1) + (cloud,))


def contraction(mixing: Tensor) -> float:
    """The second largest absolute eigenvalue: what is left of disagreement after a round."""
    return float(torch.linalg.eigvals(mixing.double()).abs().sort().values[-2])
