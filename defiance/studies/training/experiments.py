"""The parts of the study: one function, trained under one effect, from one seed.

Every part is a function of the configuration and its key alone, so parts run in any order and process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from defiance.hardware import BACKHAUL, SERVER_CPU, STATION_SOC
from defiance.learn.environment import Environment, Links
from defiance.learn.federation import Federation, Peers, Server, Task, federate
from defiance.learn.local import Local
from defiance.learn.partition import LocalData
from defiance.learn.topology import alone
from defiance.learn.training import Parameters
from defiance.link import BackhaulLink, Deliveries, Packets
from defiance.meter import Meter
from defiance.parts import Parts
from defiance.seeding import Stream, stream
from defiance.studies.training.effects import Central, Effect, Name, Place, dealt, effects
from defiance.studies.training.lessons import Lesson, lesson
from defiance.studies.training.settings import Config, Function

CHECKED = 256
"""Samples of every station by which a round is chosen, and as many by which it is judged."""
KEPT, AGAIN, GATHERED = "kept", "fedavg again", "central again"
"""What becomes of a model at the rush hour: it stays, its stations train on, one place does."""


@dataclass(frozen=True)
class Trained:
    """What a training has come to, and what it took.

    Attributes:
        best: weights of the round that was chosen, of one node or of all.
        lost: by which it was chosen, before and after every round, `[rounds + 1]`.
        ended_s, bits, operations: until then, `[rounds + 1]` each.
        compute_j, links_j: of all of it.
        refused: updates that were.
    """

    best: Parameters
    lost: Tensor
    ended_s: Tensor
    bits: Tensor
    operations: Tensor
    compute_j: Tensor
    links_j: float
    refused: int = 0


def place_of(config: Config, function: Function, what: Lesson) -> Place:
    """Stations with a share of the SoC of `hardware`, which share the core's link."""
    recipe = config.recipe(function)
    wire = BackhaulLink(
        config.backhaul_bps, config.backhaul_delay_s, energy_j_per_bit=BACKHAUL.joules_per_bit
    )
    start = what.initial(stream(0, "model"))
    weights = sum(w.numel() for w in start.values())
    step_s = what.step(start, recipe.batch) / (config.compute_share * STATION_SOC.operations_per_second)
    round_s = recipe.steps * step_s + 2 * (what.nodes * 32 * weights / wire.rate_bps + wire.delay_s)
    return Place(what.own.count, what.distance_m, step_s, wire, round_s)


def train(config: Config, function: Function, name: Name, seed: int, parts: Parts) -> dict[str, Any]:
    """One function under one effect: what every round had reached, and what it had cost until then."""
    what = lesson(config, function, seed, parts)
    place = place_of(config, function, what)
    effect = effects(place)[name]
    what = replace(what, own=dealt(what.own, effect.data, seed))
    start = what.initial(stream(seed, "model"))
    rounds = math.ceil(effect.rounds * config.recipe(function).rounds)
    random = stream(seed, "training")
    meter = Meter("stations")
    with meter.running():
        if isinstance(effect.regime, Central):
            run = _gathered(config, function, what, place, start, rounds, random)
        else:
            run = _shared(config, function, what, place, effect, start, rounds, random)
    return booked(run) | {**judged(what, run.best), "cpu_s": meter.usage.cpu_s}


def booked(run: Trained) -> dict[str, Any]:
    """What is kept of a training."""
    return {
        "lost": run.lost.tolist(),
        "ended_s": run.ended_s.tolist(),
        "bits": run.bits.tolist(),
        "operations": run.operations.tolist(),
        "compute_j": run.compute_j.tolist(),
        "links_j": run.links_j,
        "refused": run.refused,
    }


def judged(what: Lesson, weights: Parameters) -> dict[str, Any]:
    """On unseen samples: a station's model at its own users, and every model at all stations'."""
    lost = _checks(what, what.judging, "judging")
    models = len(next(iter(weights.values())))
    with torch.no_grad():
        own = lost(weights)
        everywhere = [lost({n: w[i : i + 1] for n, w in weights.items()}).mean() for i in range(models)]
    return {
        "performance": float(1 - own.mean()),
        "generalisation": float(1 - torch.stack(everywhere).mean()),
        "stations": (1 - own).tolist(),
    }


def rush_hour(config: Config, seed: int, parts: Parts) -> dict[str, Any]:
    """A handover model of quieter hours at the rush hour: kept, trained on by its stations, or gathered."""
    before, after = (lesson(config, "handover", seed, parts, later=later) for later in (False, True))
    place, recipe = place_of(config, "handover", before), config.handover
    effect = Effect(Server(), place.plain)
    start, random = before.initial(stream(seed, "model")), stream(seed, "training", "drift")
    first = _shared(config, "handover", before, place, effect, start, recipe.rounds, random.child("before"))
    again = replace(place, samples=after.own.count)
    more = max(1, recipe.rounds // 2)
    runs = {
        AGAIN: _shared(config, "handover", after, again, effect, first.best, more, random.child("again")),
        GATHERED: _gathered(config, "handover", after, again, first.best, more, random.child("gathered")),
    }
    return {
        "before": judged(before, first.best),
        KEPT: judged(after, first.best),
        **{name: booked(run) | judged(after, run.best) for name, run in runs.items()},
    }


def _checks(what: Lesson, data: LocalData, purpose: str) -> Any:
    """What a model loses at every station, `[nodes]`, on the same samples at every call."""
    nodes = what.nodes
    uniform = stream(0, purpose).uniform(torch.arange(nodes * CHECKED).view(nodes, CHECKED))
    shown = data.draw(torch.arange(nodes), uniform, torch.zeros(nodes))

    def lost(weights: Parameters) -> Tensor:
        return what.lost({name: w.expand(nodes, *w.shape[1:]) for name, w in weights.items()}, shown)

    return lost


def _shared(
    config: Config, function: Function, what: Lesson, place: Place, effect: Effect, start: Parameters,
    rounds: int, random: Stream,
) -> Trained:  # fmt: skip
    """Stations train on what is their own, and exchange weights."""
    assert not isinstance(effect.regime, Central)
    recipe = config.recipe(function)
    task = Task(
        {name: weight[0] for name, weight in start.items()},
        what.loss,
        what.own.draw,
        what.own.count,
        _checks(what, what.choosing, "choosing"),
    )
    local = Local(recipe.steps, recipe.batch, recipe.learning_rate, proximal=effect.proximal)
    run = federate(task, local, effect.regime, rounds, random, effect.environment)
    jobs = torch.tensor([0, *(len(round_.trained) for round_ in run.rounds)]).cumsum(0).double()
    operations = jobs * recipe.steps * what.step(start, recipe.batch)
    ended_s = _ended_s(run)
    return Trained(
        run.best,
        run.reached.mean(1),
        ended_s,
        _sent(run.deliveries, ended_s),
        operations,
        operations * STATION_SOC.joules_per_operation,
        float(run.deliveries.tx_energy_j.sum()),
        sum(len(round_.refused) for round_ in run.rounds),
    )


def _gathered(
    config: Config, function: Function, what: Lesson, place: Place, start: Parameters, rounds: int,
    random: Stream,
) -> Trained:  # fmt: skip
    """Samples go to a data centre, a core does the steps of all stations, and the model comes back."""
    recipe, nodes, step = config.recipe(function), what.nodes, what.step(start, config.recipe(function).batch)
    raw = _transferred(place.wire, what.own.count * what.sample_bits, "data", 0.0, random.child("raw"))
    everything = LocalData(what.own.columns, torch.zeros(1, dtype=torch.int64), what.own.count.sum()[None])
    task = Task(
        {name: weight[0] for name, weight in start.items()},
        what.loss,
        everything.draw,
        everything.count,
        _checks(what, what.choosing, "choosing"),
    )
    environment = Environment(step_s=step / SERVER_CPU.operations_per_second, links=Links())
    local = Local(recipe.steps * nodes, recipe.batch, recipe.learning_rate)
    run = federate(task, local, Peers(alone(1)), rounds, random, environment)
    ended_s = _ended_s(run) + float(raw.arrived_s.max())
    bits = torch.full((nodes,), 32 * sum(w[0].numel() for w in start.values()))
    back = _transferred(place.wire, bits, "model", float(ended_s[-1]), random.child("back"))
    ended_s[-1] = float(back.arrived_s.max())
    sent = torch.full((len(ended_s),), float(raw.sent_bits.sum()), dtype=torch.float64)
    sent[-1] += float(back.sent_bits.sum())
    operations = torch.arange(rounds + 1).double() * local.steps * step
    return Trained(
        run.best,
        run.reached.mean(1),
        ended_s,
        sent,
        operations,
        operations * config.pue * SERVER_CPU.joules_per_operation,
        float(raw.tx_energy_j.sum() + back.tx_energy_j.sum()),
    )


def _transferred(wire: BackhaulLink, bits: Tensor, purpose: str, now_s: float, random: Stream) -> Deliveries:
    """What the stations' link makes of one packet per station."""
    packets = Packets.of(torch.arange(len(bits)), purpose=purpose, payload_bits=bits, offered_s=now_s)
    return wire.advance(wire.offer(wire.initial(), packets, now_s), math.inf, random)[1]


def _ended_s(run: Federation) -> Tensor:
    """On the virtual clock, before and after every round, `[rounds + 1]`."""
    return torch.tensor([0.0, *(round_.ended_s for round_ in run.rounds)], dtype=torch.float64)


def _sent(deliveries: Deliveries, ended_s: Tensor) -> Tensor:
    """Bits offered before the beginning, and before every round's end, `[rounds + 1]`."""
    offered_s, order = deliveries.offered_s.sort()
    total = torch.cat([torch.zeros(1), deliveries.sent_bits[order].cumsum(0).double()])
    return total[torch.cat([torch.zeros(1, dtype=torch.int64), torch.searchsorted(offered_s, ended_s[1:])])]
