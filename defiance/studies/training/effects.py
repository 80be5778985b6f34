"""What happens to training, and how stations learn together: every line of the study's table."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.learn.aggregation import FedAdam, Krum, Median, TrimmedMean
from defiance.learn.compression import Int8, OneBit, Sign, TopK
from defiance.learn.environment import Availability, Environment, Links
from defiance.learn.federation import Peers, Server, fedbuff
from defiance.learn.partition import LocalData, dirichlet
from defiance.learn.topology import alone, gossip, hierarchical, nearest, ring
from defiance.link import BackhaulLink, LossyLink
from defiance.seeding import stream

Name = tuple[str, str]
BASE: Name = ("own cells", "fedavg")
DATA = {"own cells": "own", "dirichlet 0.1": "0.1", "dirichlet 1": "1", "iid data": "iid"}
"""Candidates that differ in who has which samples, from the least to the most alike."""
REGIMES = ("fedavg", "fedprox", "gossip", "local")
"""That meet every such candidate."""
LIES = 3.0
"""A liar sends its update reversed and so many times as long: below what is refused for its length."""


@dataclass(frozen=True)
class Central:
    """All samples go to one place as they were measured, are learned from there, and the model comes back."""


@dataclass(frozen=True)
class Place:
    """The stations of a run: what an effect is made of.

    Attributes:
        samples: of every station, `[nodes]`.
        distance_m: between stations, `[nodes, nodes]`.
        step_s: seconds of an optimiser step at a station.
        wire: their backhaul.
        round_s: of a round in which nothing goes wrong, roughly.
    """

    samples: Tensor
    distance_m: Tensor
    step_s: float
    wire: BackhaulLink
    round_s: float

    @property
    def nodes(self) -> int:
        """How many stations."""
        return len(self.samples)

    @property
    def plain(self) -> Environment:
        """Equal stations that are always there."""
        return Environment(step_s=self.step_s, links=Links(self.wire, self.wire))


@dataclass(frozen=True)
class Effect:
    """One line of the table: how stations learn, in which world, from which data.

    Attributes:
        regime: who exchanges what with whom.
        environment: speeds, presence, links.
        data: a value of `DATA`.
        proximal: FedProx's mu.
        rounds: exchanges, as a multiple of the others'.
    """

    regime: Server | Peers | Central
    environment: Environment
    data: str = "own"
    proximal: float = 0.0
    rounds: float = 1.0


def effects(place: Place) -> dict[Name, Effect]:
    """By candidate and regime."""
    plain, nodes, wire = place.plain, place.nodes, place.wire
    xn = nearest(place.distance_m, min(3, nodes - 1))
    regimes: dict[str, tuple[Server | Peers, float]] = {
        "fedavg": (Server(), 0.0),
        "fedprox": (Server(), 0.1),
        "gossip": (Peers(gossip(xn)), 0.0),
        "local": (Peers(alone(nodes)), 0.0),
    }
    found = {
        (name, regime): Effect(how, plain, data, proximal)
        for name, data in DATA.items()
        for regime, (how, proximal) in regimes.items()
    }
    group = torch.arange(nodes) * 2 // nodes
    more: dict[str, Server | Peers | Central] = {
        "central": Central(),
        "fedadam": Server(step=FedAdam(rate=0.01)),
        "ring": Peers(ring(nodes)),
        "hierarchical": Peers(hierarchical(group, place.samples, 3)),
    }
    found |= {("own cells", regime): Effect(how, plain) for regime, how in more.items()}

    slow = torch.linspace(1, 8, nodes, dtype=torch.float64) * place.step_s
    slots = torch.arange(3)[:, None] + torch.arange(nodes)
    away = Availability(slots % 3 != 0, 4 * place.round_s)
    lossy = LossyLink(wire.delay_s, loss_probability=0.2, tx_energy_j_per_bit=wire.energy_j_per_bit)
    microwave = replace(wire, rate_bps=wire.rate_bps / 100)
    worlds = {
        "unequal stations": replace(plain, step_s=slow),
        "stragglers": replace(plain, straggling=1.0),
        "come and go": replace(plain, availability=away),
        "lossy links": replace(plain, links=Links(lossy, lossy)),
        "slow backhaul": replace(plain, links=Links(microwave, microwave)),
    }
    for name, world in worlds.items():
        found[name, "fedavg"] = Effect(Server(), world)
    for name in ("unequal stations", "stragglers"):
        found[name, "deadline"] = Effect(Server(deadline_s=1.2 * place.round_s), worlds[name])
        found[name, "fedbuff"] = Effect(fedbuff(max(1, nodes // 2)), worlds[name], rounds=2.0)
    found["three of seven", "fedavg"] = Effect(Server(participation=3 / 7), plain)

    sparse = Server(up=TopK(0.02), down=TopK(0.02))
    found["own cells", "int8"] = Effect(Server(up=Int8(), down=Int8()), plain)
    found["own cells", "signs"] = Effect(Server(up=Sign(), down=Sign()), plain, rounds=2.0)
    found["own cells", "1 bit up"] = Effect(Server(up=OneBit(), down=Int8()), plain)
    found["own cells", "top 2 %"] = Effect(sparse, plain, rounds=2.0)
    found["slow backhaul", "top 2 %"] = Effect(sparse, worlds["slow backhaul"], rounds=2.0)

    def lies(node: Tensor, update: Tensor) -> Tensor:
        return torch.where(node[:, None] == nodes - 1, -LIES * update, update)

    def breaks(node: Tensor, update: Tensor) -> Tensor:
        return torch.where(node[:, None] == nodes - 1, torch.nan, update)

    liar = replace(plain, corrupt=lies)
    for regime, how in {
        "fedavg": Server(),
        "median": Server(aggregation=Median()),
        "trimmed mean": Server(aggregation=TrimmedMean(0.2)),
        "krum": Server(aggregation=Krum(1)),
    }.items():
        if how.aggregation.least <= nodes:
            found["a liar", regime] = Effect(how, liar)
    found["a broken station", "fedavg"] = Effect(Server(), replace(plain, corrupt=breaks))
    return found


def dealt(data: LocalData, kind: str, seed: int) -> LocalData:
    """The same samples: the cells' own, shuffled, or by Dirichlet over stations.

    Raises:
        DefianceError: there is no such kind.
    """
    if kind == "own":
        return data
    nodes, generator = len(data.count), stream(seed, "training", kind).generator()
    station = data.columns[-1]
    if kind == "iid":
        node = torch.randperm(len(station), generator=generator) % nodes
    elif kind in DATA.values():
        node = dirichlet(station, nodes, float(kind), generator)
    else:
        raise DefianceError(f"training deals data as {', '.join(DATA.values())}, not {kind}")
    return LocalData.assigned(data.columns, node, nodes)
