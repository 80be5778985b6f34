"""Handover messages that wait: for each other, for resource blocks, for the station's wire.

    report ──▶ uplink queue ──▶ Xn queue of the station, preparation ──▶ downlink queue ──▶ command

With `messages = "queued"` a message takes as long as its queues take; late ones are late. Signalling comes
before all other bits of its cell (logical channel prioritisation, TS 38.321 clause 5.4.3.1, between users as
well); `BulkTraffic` comes behind signalling, in the downlink behind the users' own traffic, too. A
transmission of signalling is lost as often as its assignment, which is sent to the user in both directions:
10 % at Qout, 2 % at Qin (`loss_from_sinr`). RLC sends it again 45 ms later, eight times at most; a report
that still fails is a radio-link failure (TS 38.331 clauses 5.3.10.3, 9.2.1). Signalling that waits when a
user leaves its cell is discarded, bulk follows it (TS 38.300 clause 9.2.3.2). A handover is asked for once:
until it is commanded or lost, the user asks for no other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defiance.link import PURPOSES, Packets, in_order
from defiance.network.air import Air, free_share, losses
from defiance.network.messages import COMMAND_BITS, PREPARATION_BITS, Messenger, report_bits
from defiance.network.queues import AIR_HEADER_BITS, QueuedLink, QueueState, Rows
from defiance.network.settings import RadioConfig
from defiance.network.state import CONNECTED, NONE, State, but, reestablish
from defiance.network.world import World
from defiance.seeding import Stream

XN_HEADER_BITS = 8 * (20 + 20 + 38)
"""TCP, IPv4 and Ethernet, as on `defiance.link.BackhaulLink`."""

ASSISTANCE, SIGNALLING = PURPOSES.index("assistance"), PURPOSES.index("signalling")

REMEMBERED = 8
"""Reports of so many periods may still be on the way; who hears an older one does nothing with it."""


@dataclass(frozen=True)
class BulkTraffic:
    """Payloads beside the users' own traffic, such as models and measurements; all count world by world.

    Attributes:
        downlink: to the users that `destination` numbers.
        uplink: from the users that `source` numbers.
        wire: from the stations that `source` numbers, on the wires that preparations take.
    """

    downlink: Packets = field(default_factory=Packets.empty)
    uplink: Packets = field(default_factory=Packets.empty)
    wire: Packets = field(default_factory=Packets.empty)

    def __len__(self) -> int:
        """How many they are."""
        return len(self.downlink) + len(self.uplink) + len(self.wire)


NO_BULK = BulkTraffic()


@dataclass(frozen=True)
class Signals:
    """What is on the way, and what it was for.

    Attributes:
        uplink, downlink: signalling in the air.
        xn: between stations; a queue per station.
        bulk_up, bulk_down: other payloads in the air.
        asked: number of the message that a handover under way began with, `[W * U]`; NONE.
        wanted: cell that it leads to, `[W * U]`.
        asked_s: when that was, `[W * U]`.
        seen: last report of every user that arrived, `[W, U, C]`.
        heard_s: when it did, `[W * U]`.
        told: reports that may be on the way, by period, the last first; `[W, U, C]` each.
        offered: so many payloads beside signalling have been offered: to uplink, downlink, wires.
    """

    uplink: QueueState
    downlink: QueueState
    xn: QueueState
    bulk_up: QueueState
    bulk_down: QueueState
    asked: NDArray[np.int64]
    wanted: NDArray[np.int64]
    asked_s: NDArray[np.float64]
    seen: Tensor
    heard_s: NDArray[np.float64]
    told: tuple[tuple[int, Tensor], ...] = ()
    offered: tuple[int, int, int] = (0, 0, 0)


class Signalling:
    """Queues, links and procedures of a run."""

    def __init__(
        self, world: World, config: RadioConfig, stream: Stream, messenger: Messenger, bulk: BulkTraffic
    ) -> None:
        self.world, self.config, self.messenger = world, config, messenger
        self.air = Air(config)
        self.random = np.uint64(stream.key)
        self.uplink = QueuedLink("source", config.air_delay_s)
        self.downlink = QueuedLink("destination", config.air_delay_s)
        self.wire = QueuedLink("source", config.preparation_s, XN_HEADER_BITS, config.xn_bps)
        self.free = {False: free_share(world, config)}
        self.free[True] = config.uplink_slots * self.free[False]
        self.users = world.shape[0] * world.shape[1]
        self.key = messenger.key.numpy()
        self.sites = int(world.cell_site.max()) + 1
        self.cell_site = world.cell_site.numpy()
        links = self.uplink, self.downlink, self.wire
        batches = bulk.uplink, bulk.downlink, bulk.wire
        self.bulk = tuple(link.rows(in_order(each)) for link, each in zip(links, batches, strict=True))

    def time_s(self, steps: int) -> float:
        """When so many steps have passed."""
        return steps * self.config.step_s

    def begin(self) -> Signals:
        """Nothing is on the way."""
        up, down = self.uplink.initial(), self.downlink.initial()
        nobody, never = np.full(self.users, NONE), np.zeros(self.users)
        seen = torch.full(self.world.shape, self.config.rsrp_floor_dbm)
        return Signals(up, down, self.wire.initial(), up, down, nobody, nobody, never, seen, never)

    def ask(self, signals: Signals, wanted: Tensor, period: int, now_s: float) -> Signals:
        """Users begin to ask for handovers, `wanted` `[W, U]`, NONE of all others."""
        cell = wanted.flatten().numpy()
        asks = cell != NONE
        return but(
            signals,
            asked=np.where(asks, self.key + 4 * period, signals.asked),
            wanted=np.where(asks, cell, signals.wanted),
            asked_s=np.where(asks, now_s, signals.asked_s),
        )

    def report(self, signals: Signals, senders: Tensor, period: int, now_s: float, cells: int) -> Signals:
        """Offers a report of `cells` cells from every marked user, `[W, U]`, to the uplink."""
        user = np.flatnonzero(senders.numpy())
        if not len(user):
            return signals
        bits = report_bits(cells)
        rows = Rows.of(
            self.key[user] + 4 * period,
            source=user,
            destination=0,
            purpose=ASSISTANCE,
            payload_bits=bits,
            bits=bits + AIR_HEADER_BITS,
            queue=user,
            offered_s=now_s,
        )
        return but(signals, uplink=self.uplink.put(signals.uplink, rows))

    def listen(
        self, signals: Signals, state: State, seen: Tensor, period: int, steps: int
    ) -> tuple[Signals, State, Tensor]:
        """The uplink of the step that begins, for a decider at the station: whose reports arrive, `[W, U]`.

        A decision takes effect only after its preparation, later than the step's end.

        Args:
            signals: with this period's reports offered.
            state: at the end of the step before.
            seen: what is in these reports, `[W, U, C]`.
            period: of them.
            steps: so many have passed.
        """
        told = ((period, seen.clone()), *signals.told)[:REMEMBERED]
        signals, state, arrived = self._up(but(signals, told=told), state, steps)
        fresh = torch.zeros(self.users, dtype=torch.bool)
        known, heard_s = signals.seen.flatten(0, 1).clone(), signals.heard_s.copy()
        of = (arrived.id - self.key[arrived.source]) // 4
        for number, content in reversed(told):
            user = arrived.source[of == number]
            if len(user):
                known[user] = content.flatten(0, 1)[user]
                heard_s[user] = arrived.ready_s[of == number]
                fresh[user] = True
        signals = but(signals, seen=known.view_as(signals.seen), heard_s=heard_s)
        return signals, state, fresh.view(state.status.shape)

    def prepare(
        self, signals: Signals, state: State, user: NDArray[np.int64], at_s: NDArray[np.float64]
    ) -> Signals:
        """Offers the preparations that users' handovers need, `[n]`, to their stations' wires, at a time."""
        if not len(user):
            return signals
        world = user // state.status.shape[1]
        np.add.at(self.messenger.prepared.numpy(), world, 1)
        station = self.cell_site[state.serving.numpy().reshape(-1)[user]] + self.sites * world
        rows = Rows.of(
            signals.asked[user],
            source=station,
            destination=user,
            purpose=SIGNALLING,
            payload_bits=PREPARATION_BITS,
            bits=PREPARATION_BITS + XN_HEADER_BITS,
            queue=station,
            offered_s=at_s,
        )
        return but(signals, xn=self.wire.put(signals.xn, rows))

    def step(
        self, signals: Signals, state: State, steps: int, *, reports_ask: bool
    ) -> tuple[Signals, State, NDArray[np.int64], NDArray[np.float64]]:
        """The messages of the step that begins; the cells will know what signalling takes of them.

        Args:
            signals: so far.
            state: at the end of the step before.
            steps: so many have passed.
            reports_ask: whether a report that arrives begins a preparation.

        Returns:
            Both anew, the users whose commands arrive, `[n]`, and when.
        """
        until_s = self.time_s(steps + 1)
        away = state.status.numpy().reshape(-1) != CONNECTED
        if away.any():
            signals = self._leave(signals, away)
        if signals.uplink.now_s < until_s:
            signals, state, arrived = self._up(signals, state, steps)
            if reports_ask and len(arrived):
                current = signals.asked[arrived.source] == arrived.id
                signals = self.prepare(signals, state, arrived.source[current], arrived.ready_s[current])
        xn, offered = self._due(self.wire, signals.xn, signals.offered, 2, until_s)
        xn, ready, _ = self.wire.run(xn, until_s, self.random)
        downlink = signals.downlink
        if len(ready):
            bulk = ready.purpose != SIGNALLING
            if bulk.any():
                self._count_bulk(ready.select(bulk), ready.source[bulk] // self.sites, wire=True)
            ready = ready.select(~bulk)
            ready = ready.select(signals.asked[ready.destination] == ready.id)
        if len(ready):
            commands = Rows.of(
                ready.id + 1,
                source=0,
                destination=ready.destination,
                purpose=SIGNALLING,
                payload_bits=COMMAND_BITS,
                bits=COMMAND_BITS + AIR_HEADER_BITS,
                queue=ready.destination,
                offered_s=ready.ready_s,
            )
            downlink = self.downlink.put(downlink, commands)
        return self._down(but(signals, xn=xn, downlink=downlink, offered=offered), state, steps)

    def settle(
        self, signals: Signals, state: State, offered_bits: NDArray[np.float64], steps: int
    ) -> Signals:
        """Delivers the bulk that the step has sent in the downlink.

        Args:
            signals: so far.
            state: after the step.
            offered_bits: what it was offered, `[W * U]`.
            steps: so many have passed, this one included.
        """
        sent_bits = offered_bits - state.bulk_bits.numpy().reshape(-1)
        queue = but(signals.bulk_down, rate_bps=torch.from_numpy(sent_bits / self.config.step_s))
        queue, arrived, _ = self.downlink.run(queue, self.time_s(steps), self.random)
        if len(arrived):
            self._count_bulk(arrived, arrived.destination // self.world.shape[1], wire=False)
        return but(signals, bulk_down=queue)

    def _due(
        self, link: QueuedLink, queue: QueueState, offered: tuple[int, int, int], which: int, until_s: float
    ) -> tuple[QueueState, tuple[int, int, int]]:
        """Offers the bulk of uplink, downlink or wires that comes before a time."""
        rows, first = self.bulk[which], offered[which]
        if first == len(rows) or rows.offered_s[first] >= until_s:
            return queue, offered
        end = int(np.searchsorted(rows.offered_s, until_s))
        counts = [end if k == which else count for k, count in enumerate(offered)]
        return link.put(queue, rows.select(np.arange(first, end))), (counts[0], counts[1], counts[2])

    def _leave(self, signals: Signals, away: NDArray[np.bool_]) -> Signals:
        """Drops the signalling of users who left their cells."""
        return but(
            signals,
            uplink=self._without(self.uplink, signals.uplink, away),
            downlink=self._without(self.downlink, signals.downlink, away),
            asked=np.where(away, NONE, signals.asked),
        )

    def _without(self, link: QueuedLink, queue: QueueState, away: NDArray[np.bool_]) -> QueueState:
        gone = away[queue.waiting.queue]
        if not gone.any():
            return queue
        queue, lost = link.discard(queue, gone)
        world = lost.queue // self.world.shape[1]
        self.messenger.count(world, lost.purpose, lost.sent_bits, np.ones(len(lost), np.bool_))
        return queue

    def _count(self, rows: Rows, user: NDArray[np.int64]) -> None:
        lost = ~np.isfinite(rows.ready_s)
        self.messenger.count(user // self.world.shape[1], rows.purpose, rows.sent_bits, lost)

    def _count_bulk(self, rows: Rows, world: NDArray[np.int64], *, wire: bool) -> None:
        delay_s = rows.ready_s - rows.offered_s - (self.config.preparation_s if wire else 0.0)
        self.messenger.count_bulk(world, rows.purpose, rows.sent_bits, delay_s, wire=wire)

    def _up(self, signals: Signals, state: State, steps: int) -> tuple[Signals, State, Rows]:
        """The uplink of a step: signalling, then bulk; a user whose report is given up has lost its link."""
        until_s, free = self.time_s(steps + 1), self.free[True]
        uplink, arrived, used = self._serve(self.uplink, signals.uplink, state, free, until_s, uplink=True)
        bulk, offered = self._due(self.uplink, signals.bulk_up, signals.offered, 0, until_s)
        if not bulk.idle:
            left = free if used is None else (free - used).clamp(min=0)
            bulk, came, _ = self._serve(self.uplink, bulk, state, left, until_s, uplink=True, lossy=False)
            if len(came):
                self._count_bulk(came, came.source // self.world.shape[1], wire=False)
        signals = but(signals, uplink=uplink, bulk_up=bulk, offered=offered)
        if not len(arrived):
            return signals, state, arrived
        self._count(arrived, arrived.source)
        lost = ~np.isfinite(arrived.ready_s)
        if lost.any():
            failed = torch.zeros(self.users, dtype=torch.bool)
            failed[arrived.source[lost]] = True
            failed = failed.view(state.status.shape) & (state.status == CONNECTED)
            state = reestablish(state, failed, self.config)
            state = but(state, link_failures=state.link_failures + failed.int())
            arrived = arrived.select(~lost)
        return signals, state, arrived

    def _down(
        self, signals: Signals, state: State, steps: int
    ) -> tuple[Signals, State, NDArray[np.int64], NDArray[np.float64]]:
        """The downlink of a step: signalling now, bulk as the cells see fit."""
        now_s, until_s, link = self.time_s(steps), self.time_s(steps + 1), self.downlink
        bulk, offered = self._due(link, signals.bulk_down, signals.offered, 1, until_s)
        downlink, arrived, used = self._serve(
            link, signals.downlink, state, self.free[False], until_s, uplink=False
        )
        changed = {"reserved": torch.zeros_like(state.reserved) if used is None else used.float()}
        if len(bulk.waiting):
            # what comes within the step waits for the next one
            waits = link.waiting_bits(bulk, math.nextafter(now_s, math.inf), self.users)
            changed["bulk_bits"] = waits.view(state.bulk_bits.shape)
        state, asked = but(state, **changed), signals.asked
        user, at_s = arrived.destination, arrived.ready_s
        if len(arrived):
            self._count(arrived, user)
            connected = state.status.numpy().reshape(-1)[user] == CONNECTED
            current = (asked[user] == arrived.id - 1) & connected
            user, at_s, asked = user[current], at_s[current], asked.copy()
            asked[user] = NONE
            told = np.isfinite(at_s)
            user, at_s = user[told], at_s[told]
            self.messenger.count_commands(user // self.world.shape[1], at_s - signals.asked_s[user])
        signals = but(signals, downlink=downlink, bulk_down=bulk, offered=offered, asked=asked)
        return signals, state, user, at_s

    def _serve(
        self,
        link: QueuedLink,
        queue: QueueState,
        state: State,
        free: Tensor,
        until_s: float,
        *,
        uplink: bool,
        lossy: bool = True,
    ) -> tuple[QueueState, Rows, Tensor | None]:
        """Serves a direction's queues; the last is the share of each cell that it took, None of nothing."""
        if not len(queue.waiting):
            queue, arrived, _ = link.run(queue, until_s, self.random)
            return queue, arrived, None
        bits = link.waiting_bits(queue, until_s, self.users)
        rate_bps, full_bps = self.air.grant(state, bits, free, uplink=uplink)
        loss = losses(state, queue.waiting.queue) if lossy else queue.loss_probability
        queue = but(queue, rate_bps=rate_bps, loss_probability=loss)
        queue, arrived, sent_bits = link.run(queue, until_s, self.random)
        return queue, arrived, self.air.taken(state, sent_bits, full_bps)
