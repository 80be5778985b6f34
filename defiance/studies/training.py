"""What does the distributed environment do to training?

Seven base stations train the handover function on what their own cells recorded. Candidates: what happens to
them (`own cells` alone; `iid data`, `dirichlet 0.1`; `stragglers`, `lossy links`, ...). Regimes: how they
learn together (`fedavg`, `fedprox`, `fedbuff`, `gossip`, `median`, ...). `performance` is the share of the
variance of hindsight values that a station's model explains on its own held-out users, mean over stations;
`generalisation` the same on all stations' users. Every effect is compared with `fedavg` on the cells' own
data, paired by seed; an interval about 0 is not resolved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from defiance import __version__
from defiance import config as configuration
from defiance.control.experience import ValueModel, initial_parameters, perceptron, slots, value_loss
from defiance.control.handover import HISTORY
from defiance.hardware import BACKHAUL, STATION_SOC
from defiance.kpm import (
    CONVERGED_WITHIN,
    METRICS,
    Curve,
    Row,
    Sheet,
    mean_interval,
    operations_until_converged,
    paired_interval,
)
from defiance.learn.aggregation import FedAdam, Krum, Median, TrimmedMean
from defiance.learn.compression import Int8, OneBit, Sign, TopK
from defiance.learn.environment import Availability, Environment, Links
from defiance.learn.federation import Federation, Peers, Server, Task, fedbuff, federate
from defiance.learn.local import Local
from defiance.learn.partition import LocalData, dirichlet
from defiance.learn.topology import alone, gossip, hierarchical, nearest, ring
from defiance.learn.training import Parameters
from defiance.link import BackhaulLink, LossyLink
from defiance.meter import Meter, OperationCount, operations_of_loss
from defiance.parts import Parts
from defiance.scene.city import Scene, xn_table
from defiance.seeding import stream
from defiance.studies import ALL_CORES, Progress, Workers, machine, pool
from defiance.studies.worth import training as handover
from defiance.studies.worth.settings import QUICK as WORTH
from defiance.studies.worth.settings import Scenario
from defiance.studies.worth.worlds import scene_of

BASE = ("own cells", "fedavg")
CHECKED = 256
"""Held-out samples of every station that a round is judged by."""
LIES = 3.0
"""A liar sends its update reversed and so many times as long: below what is refused for its length."""


@dataclass(frozen=True)
class Config:
    """Configuration of the study."""

    scene: str = field(default="munich", metadata={"help": "city: shipped name or scene file"})
    speed_kmh: float = field(default=50.0, metadata={"min": 0.1, "max": 120.0, "unit": "km/h"})
    load: float = field(default=0.5, metadata={"min": 0.0, "max": 1.0, "help": "PRBs occupied"})
    worlds: int = field(default=6, metadata={"min": 1, "max": 64, "help": "recorded worlds"})
    users: int = field(default=100, metadata={"min": 10, "max": 1000, "help": "users per recorded world"})
    duration_s: float = field(default=150.0, metadata={"min": 10.0, "unit": "s", "help": "recorded time"})
    width: int = field(default=160, metadata={"min": 4, "max": 1024, "help": "neurons of hidden layers"})
    rounds: int = field(default=60, metadata={"min": 2, "max": 10000, "help": "exchanges"})
    steps: int = field(default=40, metadata={"min": 1, "help": "optimiser steps of a node per round"})
    batch: int = field(default=64, metadata={"min": 1, "help": "samples of a node per step"})
    learning_rate: float = field(default=1e-3, metadata={"min": 1e-6, "max": 1.0, "help": "of Adam"})
    compute_share: float = field(
        default=0.02,
        metadata={"min": 1e-6, "max": 1.0, "help": "of a core of the station's SoC, for training"},
    )
    backhaul_bps: float = field(
        default=1e9, metadata={"min": 1e3, "unit": "bit/s", "help": "shared by the stations"}
    )
    backhaul_delay_s: float = field(default=5e-3, metadata={"min": 0.0, "unit": "s"})


FULL = Config()
QUICK = replace(FULL, worlds=1, users=80, duration_s=60.0, width=48, rounds=40, steps=10, batch=32)
PRESETS = {"quick": QUICK, "full": FULL}
SEEDS = {"quick": 4, "full": 8}


@dataclass(frozen=True)
class Place:
    """The stations of a run: what an effect is made of.

    Attributes:
        samples: of every station, `[nodes]`.
        distance_m: between stations, `[nodes, nodes]`.
        step_s: seconds of an optimiser step at a station.
        links: their backhaul.
        round_s: of a round in which nothing goes wrong, roughly.
    """

    samples: Tensor
    distance_m: Tensor
    step_s: float
    links: Links
    round_s: float

    @property
    def nodes(self) -> int:
        """How many stations."""
        return len(self.samples)

    @property
    def plain(self) -> Environment:
        """Equal stations that are always there."""
        return Environment(step_s=self.step_s, links=self.links)


@dataclass(frozen=True)
class Effect:
    """One line of the table: how stations learn, in which world, from which data."""

    regime: Server | Peers
    environment: Environment
    data: str = "own"
    proximal: float = 0.0
    rounds: float = 1.0


def effects(place: Place) -> dict[tuple[str, str], Effect]:
    """By candidate and regime."""
    plain, nodes = place.plain, place.nodes
    xn = nearest(place.distance_m, min(3, nodes - 1))
    regimes: dict[str, tuple[Server | Peers, float]] = {
        "fedavg": (Server(), 0.0),
        "fedprox": (Server(), 0.1),
        "gossip": (Peers(gossip(xn)), 0.0),
        "local": (Peers(alone(nodes)), 0.0),
    }
    found = {
        (name, regime): Effect(how, plain, data, proximal)
        for name, data in (("own cells", "own"), ("iid data", "iid"), ("dirichlet 0.1", "dirichlet"))
        for regime, (how, proximal) in regimes.items()
    }
    group = torch.arange(nodes) * 2 // nodes
    more: dict[str, Server | Peers] = {
        "fedadam": Server(step=FedAdam(rate=0.01)),
        "ring": Peers(ring(nodes)),
        "hierarchical": Peers(hierarchical(group, place.samples, 3)),
    }
    found |= {("own cells", regime): Effect(how, plain) for regime, how in more.items()}

    slow = torch.linspace(1, 8, nodes, dtype=torch.float64) * place.step_s
    straggling = replace(plain, straggling=1.0)
    away = Availability(torch.arange(2 * nodes).view(2, nodes) % 3 != 0, 4 * place.round_s)
    lossy = LossyLink(place.links.up.delay_s, loss_probability=0.2)  # type: ignore[union-attr]
    microwave = BackhaulLink(place.links.up.rate_bps / 100, 5e-3)  # type: ignore[union-attr]
    worlds = {
        "unequal stations": replace(plain, step_s=slow),
        "stragglers": straggling,
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


@lru_cache(maxsize=1)
def recorded(config: Config, parts: Parts) -> tuple[Scene, LocalData, LocalData]:
    """The city, and what its stations have to train and to judge: histories, values, stations.

    It is simulated once, and kept in `parts`.
    """
    worth = replace(
        WORTH,
        scene=config.scene,
        training=replace(
            WORTH.training, worlds=config.worlds, users=config.users, duration_s=config.duration_s
        ),
    )
    city = scene_of(worth, _city(config), "raw")
    kept = parts.get_tensors("recorded")
    if kept is None:
        scenario = Scenario(_city(config), config.speed_kmh, config.load, "raw")
        experience = handover.recording(worth, "device", scenario)
        kept = {}
        for purpose, users in zip(
            ("train", "held"), handover.split(experience.rsrp_dbm.shape[1]), strict=True
        ):
            times, who = experience.samples(users)
            apart = times % 3 == 0  # neighbours in time are almost the same
            times, who = times[apart], who[apart]
            history, value = experience.batch(times, who)
            kept[f"{purpose}.history"], kept[f"{purpose}.value"] = history.to(torch.int8), value.half()
            kept[f"{purpose}.station"] = city.cell_site[experience.serving[times, who].long()]
        parts.put_tensors("recorded", kept)
    train, held = (
        LocalData.assigned(
            tuple(kept[f"{purpose}.{column}"] for column in ("history", "value", "station")),
            kept[f"{purpose}.station"],
            len(city.site_position_m),
        )
        for purpose in ("train", "held")
    )
    return city, train, held


def _city(config: Config) -> str:
    return Path(config.scene).stem


def dealt(data: LocalData, kind: str, nodes: int, seed: int) -> LocalData:
    """The same samples: the cells' own, shuffled, or by Dirichlet over stations."""
    if kind == "own":
        return data
    generator = stream(seed, "training", kind).generator()
    station = data.columns[2]
    if kind == "iid":
        node = torch.randperm(len(station), generator=generator) % nodes
    else:
        node = dirichlet(station, nodes, 0.1, generator)
    return LocalData.assigned(data.columns, node, nodes)


def place_of(config: Config, city: Scene, training: LocalData, step: OperationCount, weights: int) -> Place:
    """Stations with a share of the SoC of `hardware`, which share the core's link."""
    wire = BackhaulLink(
        config.backhaul_bps, config.backhaul_delay_s, energy_j_per_bit=BACKHAUL.joules_per_bit
    )
    step_s = step.total / (config.compute_share * STATION_SOC.operations_per_second)
    round_s = config.steps * step_s + 2 * (
        len(training.count) * 32 * weights / config.backhaul_bps + config.backhaul_delay_s
    )
    return Place(training.count, xn_table(city)[0], step_s, Links(wire, wire), round_s)


def train(config: Config, name: tuple[str, str], seed: int, parts: Parts) -> dict[str, Any]:
    """One effect with one seed: what every round had reached, and what it had cost until then."""
    city, own, held = recorded(config, parts)
    nodes = len(own.count)
    cells = len(city.cell_site)
    loss = value_loss(ValueModel({}, city.cell_site, slots(city)))

    def of_batch(weights: Parameters, batch: tuple[Tensor, ...]) -> Tensor:
        return loss(weights, (batch[0].float(), batch[1].float()))

    widths = (HISTORY * cells, config.width, config.width, cells)
    start = initial_parameters(widths, 1, stream(seed, "model"))
    step = step_operations(start, config.batch)
    place = place_of(config, city, own, step, sum(w.numel() for w in start.values()))
    effect = effects(place)[name]
    training = dealt(own, effect.data, nodes, seed)
    everyone = torch.arange(nodes)
    uniform = stream(0, "held").uniform(torch.arange(nodes * CHECKED).view(nodes, CHECKED))
    shown = held.draw(everyone, uniform, torch.zeros(nodes))
    spread = shown[1].float().var((1, 2), unbiased=False).mean()

    def validate(weights: Parameters) -> Tensor:
        return of_batch({name: w.expand(nodes, *w.shape[1:]) for name, w in weights.items()}, shown)

    task = Task(
        {name: weight[0] for name, weight in start.items()}, of_batch, training.draw, training.count, validate
    )
    local = Local(config.steps, config.batch, config.learning_rate, proximal=effect.proximal)
    meter = Meter("stations")
    with meter.running():
        run = federate(
            task,
            local,
            effect.regime,
            math.ceil(effect.rounds * config.rounds),
            stream(seed, "training"),
            effect.environment,
        )
    models = len(next(iter(run.best.values())))
    with torch.no_grad():
        elsewhere = torch.stack(
            [validate({name: w[node : node + 1] for name, w in run.best.items()}) for node in range(models)]
        )
    operations = _done(run) * config.steps * step.total
    loss_ = run.reached.mean(1)
    return {
        "performance": (1 - loss_ / spread).tolist(),
        "generalisation": float(1 - elsewhere.mean() / spread),
        "loss": loss_.tolist(),
        "ended_s": [0.0, *(round_.ended_s for round_ in run.rounds)],
        "bits": _sent(run).tolist(),
        "operations": operations.tolist(),
        "energy_j": (operations * STATION_SOC.joules_per_operation).tolist(),
        "links_j": float(run.deliveries.tx_energy_j.sum()),
        "refused": sum(len(round_.refused) for round_ in run.rounds),
        "cpu_s": meter.usage.cpu_s,
    }


def step_operations(start: Parameters, batch: int) -> OperationCount:
    """Operations of an optimiser step of one station: the perceptron's, its loss and Adam."""
    inputs, outputs = start["weight0"].shape[1], start[f"weight{len(start) // 2 - 1}"].shape[2]

    def loss(weights: Parameters, features: Tensor, value: Tensor) -> Tensor:
        return (perceptron(weights, features) - value).square().mean((-1, -2))

    batches = [torch.empty(1, batch, inputs), torch.empty(1, batch, outputs)]
    return operations_of_loss(loss, start, batches).training_step


def _done(run: Federation) -> Tensor:
    """Jobs begun before and after every round, `[rounds + 1]`."""
    return torch.tensor([0, *(len(round_.trained) for round_ in run.rounds)]).cumsum(0).double()


def _sent(run: Federation) -> Tensor:
    """Bits offered before the beginning, and before every round's end, `[rounds + 1]`."""
    offered_s, order = run.deliveries.offered_s.sort()
    total = torch.cat([torch.zeros(1), run.deliveries.sent_bits[order].cumsum(0).double()])
    ended_s = torch.tensor([round_.ended_s for round_ in run.rounds], dtype=torch.float64)
    return total[torch.cat([torch.zeros(1, dtype=torch.int64), torch.searchsorted(offered_s, ended_s)])]


def run(
    config: Config,
    *,
    seeds: tuple[int, ...],
    parts: Parts,
    progress: Progress,
    workers: Workers = ALL_CORES,
) -> Sheet:
    """Answers the question; see `studies.Study`."""
    city, own, _ = recorded(config, parts)
    names = list(effects(place_of(config, city, own, OperationCount(1), 1)))
    jobs: list[pool.Job] = [
        (_key(name, seed), train, (name, seed, parts)) for name in names for seed in seeds
    ]
    with pool.workers(workers, parts) as submit:
        pool.do("training under every effect", jobs, config, parts, progress, submit)
    found = {name: [pool.part(parts, _key(name, seed)) for seed in seeds] for name in names}
    scenario = Scenario(_city(config), config.speed_kmh, config.load, "raw").name()
    rows = [row for name in names for row in _rows(name, found[name], found[BASE], scenario)]
    curves = [curve for name in names for curve in _curves(name, found[name][0], scenario)]
    return Sheet(
        "training",
        __version__,
        configuration.to_dict(config),
        seeds,
        machine(),
        "",
        tuple(rows),
        tuple(curves),
        _verdict({name: _by_metric(name, rows) for name in names}),
    )


def _key(name: tuple[str, str], seed: int) -> str:
    return "/".join(part.replace(" ", "-").replace("%", "percent") for part in (*name, f"seed{seed}"))


def _best(part: Mapping[str, Any]) -> float:
    """Performance of the round that validation would choose."""
    return float(max(part["performance"]))


def _until(part: Mapping[str, Any], target: float, spent: str) -> float:
    """What was spent when the loss first came to the target; inf: never."""
    reached = (so_far for so_far, loss in zip(part[spent], part["loss"], strict=True) if loss <= target)
    first: float = next(reached, math.inf)
    return first


def _rows(
    name: tuple[str, str], parts: list[dict[str, Any]], base: list[dict[str, Any]], scenario: str
) -> list[Row]:
    def row(metric: str, samples: list[float], provenance: str, unit: str = "", node: str = "network") -> Row:
        known = METRICS[metric].unit or unit
        return Row(*name, scenario, node, metric, known, *mean_interval(samples), len(samples), provenance)

    targets = [(1 + CONVERGED_WITHIN) * min(part["loss"]) for part in base]
    pairs = list(zip(parts, targets, strict=True))
    gain = paired_interval([_best(part) for part in parts], [_best(part) for part in base])
    settled = [operations_until_converged(part["operations"], part["loss"], "lower") for part in parts]
    return [
        row("performance", [_best(part) for part in parts], "measured", "1"),
        row("generalisation", [part["generalisation"] for part in parts], "measured", "1"),
        Row(*name, scenario, "network", "performance_gain", "1", *gain, len(parts), "measured"),
        row("training_operations", settled, "counted"),
        row("communication_bits", [part["bits"][-1] for part in parts], "counted"),
        row("bits_to_target", [_until(part, target, "bits") for part, target in pairs], "counted"),
        row("training_time", [part["ended_s"][-1] for part in parts], "modelled"),
        row("time_to_target", [_until(part, target, "ended_s") for part, target in pairs], "modelled"),
        row("energy", [part["energy_j"][-1] for part in parts], "modelled", node="stations"),
        row("energy", [part["links_j"] for part in parts], "modelled", node="links"),
        row("cpu_time", [part["cpu_s"] for part in parts], "measured", node="this machine"),
    ]


def _curves(name: tuple[str, str], part: dict[str, Any], scenario: str) -> list[Curve]:
    """Performance of the first seed against joules, bits and virtual time."""
    columns = (
        ("energy", "J", "energy_j"),
        ("communication_bits", "bit", "bits"),
        ("training_time", "s", "ended_s"),
    )
    return [
        Curve(
            "learning", *name, scenario, metric, unit, "performance", "1",
            tuple(part[column]), tuple(part["performance"]),
        )
        for metric, unit, column in columns
    ]  # fmt: skip


def _by_metric(name: tuple[str, str], rows: list[Row]) -> dict[str, Row]:
    return {row.metric: row for row in rows if (row.candidate, row.regime) == name and row.node == "network"}


def _verdict(found: Mapping[tuple[str, str], Mapping[str, Row]]) -> str:
    """Which effects are resolved, and whether compression keeps what it promises."""

    def listed(chosen: Callable[[Row], bool]) -> str:
        gains = {name: of["performance_gain"] for name, of in found.items() if name != BASE}
        some = sorted((gain.mean, name) for name, gain in gains.items() if chosen(gain))
        return (
            ", ".join(f"{regime} with {effect} ({100 * mean:+.1f})" for mean, (effect, regime) in some)
            or "none"
        )

    base, signs = found[BASE], found["own cells", "signs"]
    ratio = base["bits_to_target"].mean / signs["bits_to_target"].mean
    compressed = (
        f"Signs with error feedback reach FedAvg's target with {ratio:.1f} times fewer bits."
        if math.isfinite(ratio) and ratio > 0
        else "Signs with error feedback do not reach FedAvg's target in twice its rounds in every seed."
    )
    return (
        f"FedAvg on the cells' own data explains {100 * base['performance'].mean:.1f} % of the variance. In"
        f" points of that, worse: {listed(lambda gain: gain.ci_high < 0)}; better:"
        f" {listed(lambda gain: gain.ci_low > 0)}; not resolved:"
        f" {listed(lambda gain: not (gain.ci_high < 0 or gain.ci_low > 0))}. {compressed}"
    )
