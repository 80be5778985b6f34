"""What surrounds training on base stations: their speed, when they are there, what carries their weights.

All on a virtual clock, and all draws belong to a node and its job, so that two regimes meet the same world.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.link import Deliveries, IdealLink, Link, Packets
from defiance.seeding import Stream


@dataclass(frozen=True)
class Availability:
    """When nodes are there: a trace that begins again when it is over.

    Attributes:
        there: bool `[slots, nodes]`.
        slot_s: how long a slot is.
    """

    there: Tensor
    slot_s: float

    def at(self, node: Tensor, time_s: Tensor) -> Tensor:
        """Whether nodes `[n]` are there at times `[n]`, or all at one time: bool `[n]`."""
        slot = (time_s / self.slot_s).floor().long() % len(self.there)
        return self.there[slot, node]

    def next_s(self, node: Tensor, now_s: float) -> float:
        """The first time from now on at which one of these nodes `[n]` is there.

        Raises:
            DefianceError: none of them ever is.
        """
        slots = len(self.there)
        first = int(now_s // self.slot_s)
        anyone = self.there[:, node].any(1).roll(-first % slots if slots else 0)
        if not bool(anyone.any()):
            raise DefianceError("availability: no node is ever there again; look at the trace")
        wait = int(anyone.int().argmax())
        return now_s if wait == 0 else (first + wait) * self.slot_s


@dataclass(frozen=True)
class Links:
    """What carries weights: one link that all nodes share, or one for each of them.

    A packet must not be delayed by those offered after it, as on all links of `defiance.link`.

    Attributes:
        up: from nodes to the server, or from peer to peer.
        down: from the server to nodes.
    """

    up: Link[Any] | tuple[Link[Any], ...] = IdealLink()
    down: Link[Any] | tuple[Link[Any], ...] = IdealLink()


@dataclass(frozen=True)
class Environment:
    """Where nodes train; the default is a world in which nothing takes time and nothing fails.

    Attributes:
        step_s: seconds of an optimiser step, of all nodes or `[nodes]`.
        straggling: sigma of a lognormal factor on a job's time whose mean is 1.
        availability: when nodes are there; one that leaves before its job is done loses it.
        links: what carries weights.
        corrupt: what broken or malicious nodes make of updates: nodes `[n]` and updates `[n, length]` to what
            is sent.
    """

    step_s: Tensor | float = 0.0
    straggling: float = 0.0
    availability: Availability | None = None
    links: Links = field(default_factory=Links)
    corrupt: Callable[[Tensor, Tensor], Tensor] = lambda nodes, updates: updates

    def job_s(self, node: Tensor, job: Tensor, steps: int, random: Stream) -> Tensor:
        """Seconds that jobs of so many steps take nodes `[n]`, float64 `[n]`; `job` counts a node's own."""
        step_s = torch.as_tensor(self.step_s, dtype=torch.float64)
        base = steps * (step_s[node] if step_s.ndim else step_s.expand(len(node)))
        if self.straggling == 0:
            return base
        normal = torch.special.ndtri(random.child("stragglers").uniform((job << 32) + node).clamp(min=1e-12))
        return base * torch.exp(self.straggling * normal - self.straggling**2 / 2)

    def there(self, node: Tensor, time_s: Tensor) -> Tensor:
        """Whether nodes `[n]` are there at times `[n]` or `[]`: bool `[n]`."""
        if self.availability is None:
            return torch.ones(len(node), dtype=torch.bool)
        return self.availability.at(node, time_s)

    def next_s(self, node: Tensor, now_s: float) -> float:
        """The first time from now on at which one of these nodes is there."""
        return now_s if self.availability is None else self.availability.next_s(node, now_s)


class Wires:
    """Links in use: their states, and what they have delivered so far."""

    def __init__(self, links: Link[Any] | tuple[Link[Any], ...], random: Stream) -> None:
        self.links = links if isinstance(links, tuple) else (links,)
        self.random = random
        self.states = [link.initial() for link in self.links]
        self.delivered: list[Deliveries] = []

    def offer(self, packets: Packets, wire: Tensor, now_s: float) -> None:
        """Hand over packets; `wire` `[n]` is the node whose link carries each, where nodes have their own.

        Raises:
            DefianceError: a packet's node has no link.
        """
        if len(self.links) == 1:
            self.states[0] = self.links[0].offer(self.states[0], packets, now_s)
            return
        if len(wire) and int(wire.max()) >= len(self.links):
            raise DefianceError(f"node {int(wire.max())} has no link; give one for all nodes or one for each")
        for number in wire.unique().tolist():
            mine = packets.select(wire == number)
            self.states[number] = self.links[number].offer(self.states[number], mine, now_s)

    def advance(self, until_s: float) -> None:
        """Let time pass, and keep what is delivered."""
        for number, link in enumerate(self.links):
            self.states[number], found = link.advance(self.states[number], until_s, self.random)
            if len(found):
                self.delivered.append(found)

    def foresee(self, packet: Tensor) -> Tensor:
        """When these packets `[n]` of those not yet delivered will arrive if nothing else is offered.

        Returns:
            float64 `[n]`, inf for what will be lost.
        """
        found = Deliveries.concatenate(
            *(
                link.advance(state, torch.inf, self.random)[1]
                for link, state in zip(self.links, self.states, strict=True)
            )
        )
        order = found.id.argsort()
        place = torch.searchsorted(found.id[order], packet)
        return found.arrived_s[order][place]
