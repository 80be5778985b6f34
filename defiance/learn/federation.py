"""One loop for training in a network: jobs on nodes, exchanges between them, all on a virtual clock.

::

    choose ──▶ models go down ──▶ nodes train ──▶ encode, updates go up ──▶ wait ──▶ average ──▶ next version

How a server waits makes the algorithm. For all that it asked: FedAvg. Until a deadline: stragglers are left
out. For the first K, whichever version they started from: FedBuff, and with K = 1 asynchronous training.
Peers have no server: every node mixes its weights with its neighbours'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.learn.aggregation import REMEMBERED, Aggregation, Follow, Mean, ServerStep, refusals
from defiance.learn.compression import Compression, Dense
from defiance.learn.environment import Environment, Wires
from defiance.learn.local import Local, descend
from defiance.learn.topology import Topology
from defiance.learn.training import Parameters
from defiance.learn.vectors import Layout
from defiance.link import Deliveries, Packets
from defiance.seeding import Stream


@dataclass(frozen=True)
class Task:
    """What is to be learned.

    Attributes:
        start: weights that all nodes begin with, one node's, `[...]` each.
        loss: of every node, `[n]`, from stacked weights and a batch.
        draw: a batch for nodes `[n]` from uniform numbers `[n, batch]` in [0, 1) and their times `[n]` in
            seconds: the same numbers in every regime.
        samples: of every node, `[nodes]`; they weigh its updates.
        validate: what a round has reached, any shape, from stacked weights: one node's with a server, every
            node's with peers.
    """

    start: Parameters
    loss: Callable[[Parameters, Any], Tensor]
    draw: Callable[[Tensor, Tensor, Tensor], Any]
    samples: Tensor
    validate: Callable[[Parameters], Tensor]


@dataclass(frozen=True)
class Server:
    """A server and its nodes. The defaults are FedAvg.

    Attributes:
        participation: share of the nodes that are at work at a time, at least one.
        wait_for: updates after which the server goes on; None: all that it can still expect.
        deadline_s: after which it goes on in any case.
        max_staleness: versions that an update may be behind; with 0 a round's late ones are dropped.
        staleness_exponent: a of the factor `(1 + s)^-a` on an update s versions behind (1/2: Nguyen et al.
            2022).
        aggregation: how updates become one.
        step: how the server follows it.
        up: how updates are encoded; what a biased code leaves out is added to the node's next update.
        down: how changes of the model are; all nodes hold the decoded model. One that has missed versions
            gets them too, or the whole model where that is shorter.
    """

    participation: float = 1.0
    wait_for: int | None = None
    deadline_s: float = torch.inf
    max_staleness: int = 0
    staleness_exponent: float = 0.5
    aggregation: Aggregation = Mean()
    step: ServerStep = Follow()
    up: Compression = Dense()
    down: Compression = Dense()

    def __post_init__(self) -> None:
        if not 0 < self.participation <= 1 or not self.deadline_s > 0:
            raise DefianceError("Server: participation must be in (0, 1], deadline_s above 0")
        if self.wait_for is not None and self.wait_for < 1:
            raise DefianceError(
                f"Server: wait_for is {self.wait_for}; wait for 1 update or more, or None: all"
            )
        if not self.down.contractive:
            raise DefianceError(
                f"Server.down: {type(self.down).__name__} would add noise without end; Int8 fits"
            )


def fedbuff(buffer: int, participation: float = 1.0, **others: Any) -> Server:
    """Asynchronous training with a buffer of K updates, however old (Nguyen et al., AISTATS 2022)."""
    return Server(participation, wait_for=buffer, max_staleness=2**31, **others)


@dataclass(frozen=True)
class Peers:
    """Nodes without a server: after a job each sends its model to those that the topology names.

    With a compression only differences to what the others already have are sent (CHOCO-SGD, Koloskova et al.
    2019): `w_i <- w_i + gamma sum_j A_ij (p_j - p_i)`, p being the decoded models. A node that misses a
    round, or of whose messages one is lost or late, keeps its own weights in that round.

    Attributes:
        topology: who talks to whom.
        rate: gamma; 1 without compression.
        deadline_s: of a round.
        up: how models are encoded.
    """

    topology: Topology
    rate: float = 1.0
    deadline_s: float = torch.inf
    up: Compression = Dense()

    def __post_init__(self) -> None:
        if not self.up.contractive:
            raise DefianceError(f"Peers.up: {type(self.up).__name__} would add noise without end; Int8 fits")


@dataclass(frozen=True)
class Round:
    """What happened from one exchange to the next.

    Attributes:
        ended_s: on the virtual clock.
        trained: nodes that began a job.
        used: nodes whose updates counted.
        staleness: versions that each of those was behind.
        refused: why updates were refused; each begins with its node's name.
        reached: what `Task.validate` said after it.
    """

    ended_s: float
    trained: tuple[int, ...]
    used: tuple[int, ...]
    staleness: tuple[int, ...]
    refused: tuple[str, ...]
    reached: Tensor


@dataclass(frozen=True)
class Federation:
    """A finished training.

    Attributes:
        parameters: after the last round, `[1, ...]` each from a server, `[nodes, ...]` from peers.
        best: of the round whose mean of `reached` is lowest, likewise.
        before: what `Task.validate` said before the first round.
        rounds: one after the other.
        jobs: that every node did, `[nodes]`; those in vain, too.
        deliveries: of every transfer that has ended.
    """

    parameters: Parameters
    best: Parameters
    before: Tensor
    rounds: tuple[Round, ...]
    jobs: Tensor
    deliveries: Deliveries

    @property
    def reached(self) -> Tensor:
        """What validation said before and after every round, `[rounds + 1, ...]`."""
        return torch.stack([self.before, *(round_.reached for round_ in self.rounds)])


def federate(
    task: Task,
    local: Local,
    regime: Server | Peers,
    rounds: int,
    random: Stream,
    environment: Environment | None = None,
    *,
    advance: Callable[[Round], None] | None = None,
) -> Federation:
    """Train for so many rounds.

    Args:
        task: what is learned, from which data.
        local: what a node does in a job.
        regime: who exchanges what with whom.
        rounds: exchanges: new versions at the server, or mixings.
        random: all draws.
        environment: speeds, presence, links; none: nothing takes time and nothing fails.
        advance: called after every round.

    Raises:
        DefianceError: a setting doesn't fit the others.
    """
    if isinstance(regime, Server):
        _check_least(regime, len(task.samples))
    run = _Run(task, local, environment or Environment(), random)
    exchanges = _serve(run, regime) if isinstance(regime, Server) else _mix(run, regime)
    best = vectors = run.origin.expand(1 if isinstance(regime, Server) else run.nodes, -1)
    before = run.validate(vectors)
    lowest, found = before.mean(), []
    for _ in range(rounds):
        vectors, round_ = next(exchanges)
        round_ = replace(round_, reached=run.validate(vectors))
        found.append(round_)
        if bool(round_.reached.mean() < lowest):
            lowest, best = round_.reached.mean(), vectors.clone()
        if advance is not None:
            advance(round_)
    for wires in (run.up, run.down):
        wires.advance(torch.inf)
    return Federation(
        parameters=run.layout.split(vectors),
        best=run.layout.split(best),
        before=before,
        rounds=tuple(found),
        jobs=run.jobs,
        deliveries=Deliveries.concatenate(*run.up.delivered, *run.down.delivered),
    )


class _Run:
    """What a training carries along: jobs done, what codes left out, links in use."""

    def __init__(self, task: Task, local: Local, environment: Environment, random: Stream) -> None:
        self.task, self.local, self.environment, self.random = task, local, environment, random
        self.layout = Layout.of(task.start)
        self.origin = self.layout.join({name: weight[None] for name, weight in task.start.items()})[0]
        self.nodes = len(task.samples)
        self.jobs = torch.zeros(self.nodes, dtype=torch.int64)
        self.left_out: Tensor | None = None
        self.up = Wires(environment.links.up, random.child("up"))
        self.down = Wires(environment.links.down, random.child("down"))
        self.batches = random.child("batches")
        self.rounding = random.child("rounding").generator()
        self.sent = 0

    def validate(self, vectors: Tensor) -> Tensor:
        with torch.no_grad():
            return self.task.validate(self.layout.split(vectors))

    def train(self, node: Tensor, start: Tensor, now_s: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes `[n]` do a job from weights `[n or 1, length]`, begun at times `[n]`.

        Returns:
            Weights `[n, length]`, and the times at which they are done `[n]`.
        """
        local, job = self.local, self.jobs[node]
        places = torch.arange(local.batch)

        def batches() -> Iterator[Any]:
            for step in range(local.steps):
                first = ((job * local.steps + step) * self.nodes + node) * local.batch
                yield self.task.draw(node, self.batches.uniform(first[:, None] + places), now_s)

        weights = self.layout.split(start.expand(len(node), -1))
        trained = self.layout.join(descend(weights, self.task.loss, batches(), local))
        done_s = now_s + self.environment.job_s(node, job, local.steps, self.random)
        self.jobs[node] += 1
        return trained, done_s

    def encode(self, node: Tensor, update: Tensor, code: Compression) -> Tensor:
        """What nodes `[n]` send for updates `[n, length]`, uint8 `[n, bytes]`."""
        update = self.environment.corrupt(node, update)
        if not code.biased:
            return code.encode(update, self.rounding)
        if self.left_out is None:
            self.left_out = torch.zeros(self.nodes, self.layout.length)
        update = update + self.left_out[node]
        payload = code.encode(update, self.rounding)
        self.left_out[node] = (update - code.decode(payload, self.layout.length)).nan_to_num(0.0, 0.0, 0.0)
        return payload

    def packets(self, source: Tensor, destination: Tensor, bits: Tensor | int, offered_s: Tensor) -> Packets:
        """One packet per transfer, with numbers of its own."""
        first, self.sent = self.sent, self.sent + len(source)
        return Packets.of(
            torch.arange(first, self.sent),
            source=source,
            destination=destination,
            purpose="model",
            payload_bits=bits,
            offered_s=offered_s,
        )


@dataclass
class _Pending:
    """Updates on the way, `[m]` each, and their bytes, `[m, bytes]`."""

    node: Tensor
    version: Tensor
    packet: Tensor
    done_s: Tensor
    payload: Tensor

    def select(self, which: Tensor) -> _Pending:
        if bool(which.all()):
            return self  # no copy of what may be large
        return _Pending(*(getattr(self, name)[which] for name in self.__dataclass_fields__))

    def __add__(self, other: _Pending) -> _Pending:
        if not len(self.node):
            return other
        columns = self.__dataclass_fields__
        return _Pending(*(torch.cat([getattr(self, name), getattr(other, name)]) for name in columns))


def _check_least(regime: Server, nodes: int) -> None:
    """Refuse an average that needs more updates than a round can have: it would never take one."""
    asked = _asked(regime, nodes)
    most = asked if regime.wait_for is None else min(asked, regime.wait_for)
    if (least := regime.aggregation.least) > most:
        raise DefianceError(
            f"Server.aggregation: {type(regime.aggregation).__name__} needs {least} updates a round, and of"
            f" {nodes} nodes {asked} are asked and {most} waited for; take more, or another average"
        )


def _asked(regime: Server, nodes: int) -> int:
    """Nodes that are at work at a time."""
    return max(1, round(regime.participation * nodes))


def _serve(run: _Run, regime: Server) -> Iterator[tuple[Tensor, Round]]:
    environment, samples, server = run.environment, run.task.samples.double(), run.nodes
    length, everyone = run.layout.length, torch.arange(run.nodes)
    wanted = _asked(regime, run.nodes)
    model, state = run.origin, regime.step.initial(length)
    public, whole_bits, change_bits = model.clone(), 32 * length, 0
    held = torch.full((run.nodes,), -1)  # the version that every node has; -1: none
    whole = torch.empty(0, dtype=torch.int64)
    pending = _Pending(whole, whole, whole, whole.double(), torch.empty(0, 0, dtype=torch.uint8))
    usual = torch.empty(0)
    clock_s, version = 0.0, 0
    while True:
        idle = torch.ones(run.nodes, dtype=torch.bool)
        idle[pending.node] = False
        if not len(pending.node):
            clock_s = environment.next_s(everyone, clock_s)
        free = everyone[idle & environment.there(everyone, torch.tensor(clock_s))]
        if len(free) > wanted - len(pending.node):
            luck = run.random.child("chosen").uniform((version << 32) + free)
            free = free[luck.argsort()[: wanted - len(pending.node)]].sort().values

        now_s = torch.full((len(free),), clock_s, dtype=torch.float64)
        missed = version - held[free]
        bits = torch.where(held[free] < 0, whole_bits, (missed * change_bits).clamp(max=whole_bits))
        models = run.packets(torch.full_like(free, server), free, bits, now_s)
        run.down.offer(models, free, clock_s)
        begun_s = run.down.foresee(models.id)
        run.down.advance(clock_s)
        came = begun_s.isfinite()
        node, begun_s = free[came], begun_s[came]
        held[node] = version
        if len(node):
            trained, done_s = run.train(node, public[None], begun_s)
            payload = run.encode(node, trained - public, regime.up)
            updates = run.packets(node, torch.full_like(node, server), 8 * payload.shape[1], done_s)
            stays = environment.there(node, done_s)
            run.up.offer(updates.select(stays), node[stays], clock_s)
            packet = torch.where(stays, updates.id, -1)
            pending += _Pending(node, torch.full_like(node, version), packet, done_s, payload)

        arrives_s = torch.full((len(pending.node),), torch.inf, dtype=torch.float64)
        sent = pending.packet >= 0
        arrives_s[sent] = run.up.foresee(pending.packet[sent])
        clock_s = max(clock_s, _waited(regime, arrives_s, pending.done_s, clock_s))
        run.up.advance(clock_s)

        landed = arrives_s <= clock_s
        given_up = ~arrives_s.isfinite() & (pending.done_s <= clock_s)
        got, pending = pending.select(landed), pending.select(~landed & ~given_up)
        updates_ = regime.up.decode(got.payload, length) if len(got.node) else torch.empty(0, length)
        norm = torch.linalg.vector_norm(updates_, dim=1)
        reasons = refusals([f"node {n}" for n in got.node.tolist()], norm, usual)
        fine = torch.tensor([reason is None for reason in reasons], dtype=torch.bool)
        usual = torch.cat([usual, norm[fine]])[-REMEMBERED:]
        behind = version - got.version[fine]
        if len(behind) >= regime.aggregation.least:
            share = (samples[got.node[fine]] / samples[got.node[fine]].sum()).float()
            factor = (1.0 + behind) ** -regime.staleness_exponent
            chosen = updates_ if bool(fine.all()) else updates_[fine]
            if bool(behind.any()):
                chosen = chosen * factor[:, None]
            step, state = regime.step(regime.aggregation(chosen, share), state)
            model = model + step
        change = regime.down.encode((model - public)[None], run.rounding)
        change_bits = 8 * change.shape[1]
        public = model if isinstance(regime.down, Dense) else public + regime.down.decode(change, length)[0]
        version += 1
        pending = pending.select(version - pending.version <= regime.max_staleness)
        yield (
            model[None],
            Round(
                clock_s,
                tuple(node.tolist()),
                tuple(got.node[fine].tolist()),
                tuple(behind.tolist()),
                tuple(reason for reason in reasons if reason),
                torch.empty(0),
            ),
        )


def _waited(regime: Server, arrives_s: Tensor, done_s: Tensor, now_s: float) -> float:
    """When the server goes on."""
    finite = arrives_s[arrives_s.isfinite()].sort().values
    enough = len(finite) if regime.wait_for is None else regime.wait_for
    if enough and len(finite) >= enough:
        last_s = float(finite[enough - 1])
    else:
        last_s = float(torch.cat([finite, done_s]).max()) if len(done_s) else now_s
    return min(last_s, now_s + regime.deadline_s)


def _mix(run: _Run, regime: Peers) -> Iterator[tuple[Tensor, Round]]:
    environment, length, everyone = run.environment, run.layout.length, torch.arange(run.nodes)
    if len(regime.topology.mixing[0]) != run.nodes:
        raise DefianceError(f"Peers: a topology of {len(regime.topology.mixing[0])} for {run.nodes} nodes")
    weights = run.origin.expand(run.nodes, -1).clone()
    public, usual = weights.clone(), torch.empty(0)
    clock_s, number = 0.0, 0
    while True:
        kind = number % len(regime.topology.mixing)
        clock_s = environment.next_s(everyone, clock_s)
        node = everyone[environment.there(everyone, torch.tensor(clock_s))]
        begun_s = torch.full((len(node),), clock_s, dtype=torch.float64)
        trained, done_s = run.train(node, weights[node], begun_s)
        weights[node] = trained
        payload = regime.up.encode(environment.corrupt(node, trained - public[node]), run.rounding)
        ready_s = torch.full((run.nodes,), torch.inf, dtype=torch.float64)
        ready_s[node] = torch.where(environment.there(node, done_s), done_s, torch.inf)
        heard, ended_s = _exchanged(run, regime, kind, ready_s, 8 * payload.shape[1], clock_s)

        change = regime.up.decode(payload, length)
        norm = torch.linalg.vector_norm(change, dim=1)
        reasons = refusals([f"node {n}" for n in node.tolist()], norm, usual)
        fine = torch.tensor([reason is None for reason in reasons], dtype=torch.bool)
        usual = torch.cat([usual, norm[fine]])[-REMEMBERED:]
        heard[node[~fine]] = False
        public[node[heard[node]]] += change[heard[node]]
        mixing = regime.topology.mixing[kind].clone()
        mixing[~heard] = 0.0
        mixing[:, ~heard] = 0.0
        mixing += torch.diag(1 - mixing.sum(1))
        weights += regime.rate * (mixing @ public - public)
        done = done_s[done_s.isfinite()]
        clock_s = min(max(ended_s, float(done.max()) if len(done) else clock_s), clock_s + regime.deadline_s)
        for wires in (run.up, run.down):
            wires.advance(clock_s)
        number += 1
        yield (
            weights,
            Round(
                clock_s,
                tuple(node.tolist()),
                tuple(everyone[heard].tolist()),
                (0,) * int(heard.sum()),
                tuple(reason for reason in reasons if reason),
                torch.empty(0),
            ),
        )


def _exchanged(
    run: _Run, regime: Peers, kind: int, ready_s: Tensor, bits: int, now_s: float
) -> tuple[Tensor, float]:
    """Sends a round's messages, leg by leg, from nodes that are ready at these times (inf: never).

    Returns:
        Whose models take part, bool `[nodes]`, and when the last message of theirs arrives.
    """
    latest_s = now_s + regime.deadline_s
    heard = ready_s.isfinite() & (ready_s <= latest_s)
    for source, destination in regime.topology.legs[kind]:
        among = heard[source] & heard[destination]
        ends = torch.stack([source, destination])[:, among]
        packets = run.packets(ends[0], ends[1], bits, ready_s[ends[0]])
        run.up.offer(packets, ends[0], now_s)
        arrives_s = run.up.foresee(packets.id)
        heard[ends[:, ~arrives_s.isfinite() | (arrives_s > latest_s)].flatten()] = False
        ready_s = ready_s.scatter_reduce(0, ends[1], arrives_s, "amax")
    return heard, float(ready_s[heard].max()) if bool(heard.any()) else now_s
