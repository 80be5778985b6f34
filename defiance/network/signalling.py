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
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from defiance.link import PURPOSES, Deliveries, Packets, in_order, loss_from_sinr
from defiance.network.air import free_share, grant, taken
from defiance.network.messages import COMMAND_BITS, PREPARATION_BITS, Messenger, report_bits
from defiance.network.queues import QueuedLink, QueueState
from defiance.network.settings import RadioConfig
from defiance.network.state import CONNECTED, NONE, State, reestablish, sinr_db
from defiance.network.world import World
from defiance.seeding import Stream

XN_HEADER_BITS = 8 * (20 + 20 + 38)
"""TCP, IPv4 and Ethernet, as on `defiance.link.BackhaulLink`."""

SIGNALLING = PURPOSES.index("signalling")
NOTHING_DUE = Packets.empty()

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
        offered_s: bulk stamped earlier has been offered: to the uplink, the downlink, the wires.
    """

    uplink: QueueState
    downlink: QueueState
    xn: QueueState
    bulk_up: QueueState
    bulk_down: QueueState
    asked: Tensor
    wanted: Tensor
    asked_s: Tensor
    seen: Tensor
    heard_s: Tensor
    told: tuple[tuple[int, Tensor], ...] = ()
    offered_s: tuple[float, float, float] = (-math.inf,) * 3


class Signalling:
    """Queues, links and procedures of a run."""

    def __init__(
        self, world: World, config: RadioConfig, stream: Stream, messenger: Messenger, bulk: BulkTraffic
    ) -> None:
        self.world, self.config, self.stream, self.messenger = world, config, stream, messenger
        self.uplink = QueuedLink("source", config.air_delay_s)
        self.downlink = QueuedLink("destination", config.air_delay_s)
        self.wire = QueuedLink("source", config.preparation_s, XN_HEADER_BITS, config.xn_bps)
        self.free = free_share(world, config)
        self.users = world.shape[0] * world.shape[1]
        self.sites = int(world.cell_site.max()) + 1
        self.station = world.cell_site + self.sites * torch.arange(world.shape[0])[:, None]  # [W, C]
        self.bulk = tuple(in_order(each) for each in (bulk.uplink, bulk.downlink, bulk.wire))

    def time_s(self, steps: int) -> float:
        """When so many steps have passed."""
        return steps * self.config.step_s

    def begin(self) -> Signals:
        """Nothing is on the way."""
        air, nobody = self.uplink.initial(), torch.full((self.users,), NONE)
        never = torch.zeros(self.users, dtype=torch.float64)
        return Signals(
            uplink=air,
            downlink=self.downlink.initial(),
            xn=self.wire.initial(),
            bulk_up=air,
            bulk_down=self.downlink.initial(),
            asked=nobody,
            wanted=nobody,
            asked_s=never,
            seen=torch.full(self.world.shape, self.config.rsrp_floor_dbm),
            heard_s=never,
        )

    def ask(self, signals: Signals, wanted: Tensor, period: int, now_s: float) -> Signals:
        """Users begin to ask for handovers, `wanted` `[W, U]`, NONE of all others."""
        user = torch.nonzero((wanted != NONE).flatten()).squeeze(-1)
        return replace(
            signals,
            asked=signals.asked.index_copy(0, user, self.messenger.key[user] + 4 * period),
            wanted=signals.wanted.index_copy(0, user, wanted.flatten()[user]),
            asked_s=signals.asked_s.index_fill(0, user, now_s),
        )

    def report(self, signals: Signals, senders: Tensor, period: int, now_s: float, cells: int) -> Signals:
        """Offers a report of `cells` cells from every marked user, `[W, U]`, to the uplink."""
        user = torch.nonzero(senders.flatten()).squeeze(-1)
        if not len(user):
            return signals
        packets = Packets.of(
            self.messenger.key[user] + 4 * period,
            source=user,
            purpose="assistance",
            payload_bits=report_bits(cells),
            offered_s=now_s,
        )
        return replace(signals, uplink=self.uplink.offer(signals.uplink, packets, now_s))

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
        signals, state, arrived = self._up(replace(signals, told=told), state, steps)
        fresh = torch.zeros(self.users, dtype=torch.bool)
        known, heard_s = signals.seen.flatten(0, 1).clone(), signals.heard_s.clone()
        of = (arrived.id - self.messenger.key[arrived.source]) // 4
        for number, content in reversed(told):
            user = arrived.source[of == number]
            known[user] = content.flatten(0, 1)[user]
            heard_s[user] = arrived.arrived_s[of == number]
            fresh[user] = True
        signals = replace(signals, seen=known.view_as(signals.seen), heard_s=heard_s)
        return signals, state, fresh.view(state.status.shape)

    def prepare(self, signals: Signals, state: State, user: Tensor, at_s: Tensor, now_s: float) -> Signals:
        """Offers the preparations that users' handovers need, `[n]`, to their stations' wires."""
        if not len(user):
            return signals
        worlds, users = state.status.shape
        self.messenger.prepared += torch.bincount(user // users, minlength=worlds)
        station = self.station.gather(1, state.serving.long()).flatten()
        packets = Packets.of(
            signals.asked[user],
            source=station[user],
            destination=user,
            purpose="signalling",
            payload_bits=PREPARATION_BITS,
            offered_s=at_s,
        )
        return replace(signals, xn=self.wire.offer(signals.xn, packets, now_s))

    def step(
        self, signals: Signals, state: State, steps: int, *, reports_ask: bool
    ) -> tuple[Signals, State, Tensor, Tensor]:
        """The messages of the step that begins; the cells will know what signalling takes of them.

        Args:
            signals: so far.
            state: at the end of the step before.
            steps: so many have passed.
            reports_ask: whether a report that arrives begins a preparation.

        Returns:
            Both anew, the users whose commands arrive, `[n]`, and when.
        """
        now_s, until_s = self.time_s(steps), self.time_s(steps + 1)
        signals = self._leave(signals, state)
        if signals.uplink.now_s < until_s:
            signals, state, arrived = self._up(signals, state, steps)
            if reports_ask and len(arrived):
                current = signals.asked[arrived.source] == arrived.id
                signals = self.prepare(
                    signals, state, arrived.source[current], arrived.arrived_s[current], now_s
                )
        signals, due = self._due(signals, 2, until_s)
        xn, ready = self.wire.advance(self.wire.offer(signals.xn, due, now_s), until_s, self.stream)
        bulk = ready.purpose != SIGNALLING
        if bool(bulk.any()):
            self.messenger.count_wire(ready.select(bulk), self.sites, self.config.preparation_s)
            ready = ready.select(~bulk)
        ready = ready.select(signals.asked[ready.destination] == ready.id) if len(ready) else ready
        signals = replace(signals, xn=xn)
        if len(ready):
            commands = Packets.of(
                ready.id + 1,
                destination=ready.destination,
                purpose="signalling",
                payload_bits=COMMAND_BITS,
                offered_s=ready.arrived_s,
            )
            downlink = self.downlink.offer(signals.downlink, commands, now_s)
            signals = replace(signals, downlink=downlink)
        return self._down(signals, state, steps)

    def settle(self, signals: Signals, state: State, offered_bits: Tensor, steps: int) -> Signals:
        """Delivers the bulk that the step has sent in the downlink.

        Args:
            signals: so far.
            state: after the step.
            offered_bits: what it was offered, `[W, U]`.
            steps: so many have passed, this one included.
        """
        if signals.bulk_down.idle:
            return signals
        rate_bps = (offered_bits - state.bulk_bits).flatten() / self.config.step_s
        bulk, arrived = self.downlink.advance(
            replace(signals.bulk_down, rate_bps=rate_bps), self.time_s(steps), self.stream
        )
        if len(arrived):
            self.messenger.count_bulk(arrived, arrived.destination)
        return replace(signals, bulk_down=bulk)

    def _due(self, signals: Signals, which: int, until_s: float) -> tuple[Signals, Packets]:
        """Bulk that is to be offered before a time, to the uplink, the downlink or the wires."""
        packets = self.bulk[which]
        if not len(packets):
            return signals, packets
        since_s = list(signals.offered_s)
        first, end = np.searchsorted(packets.offered_s.numpy(), (since_s[which], until_s))
        since_s[which] = until_s
        due = packets.select(torch.arange(first, end)) if first < end else NOTHING_DUE
        return replace(signals, offered_s=(since_s[0], since_s[1], since_s[2])), due

    def _leave(self, signals: Signals, state: State) -> Signals:
        """Drops the signalling of users who left their cells."""
        away = (state.status != CONNECTED).flatten()
        return replace(
            signals,
            uplink=self._without(self.uplink, signals.uplink, away),
            downlink=self._without(self.downlink, signals.downlink, away),
            asked=torch.where(away, NONE, signals.asked),
        )

    def _without(self, link: QueuedLink, queue: QueueState, away: Tensor) -> QueueState:
        gone = away.numpy()[queue.waiting.queue]
        if not gone.any():
            return queue
        queue, lost = link.discard(queue, gone)
        self.messenger.count(lost, lost.source + lost.destination)
        return queue

    def _up(self, signals: Signals, state: State, steps: int) -> tuple[Signals, State, Deliveries]:
        """The uplink of a step: signalling, then bulk; a user whose report is given up has lost its link."""
        until_s = self.time_s(steps + 1)
        free = self.config.uplink_slots * self.free
        uplink, arrived, used = self._serve(self.uplink, signals.uplink, state, free, until_s, uplink=True)
        signals, due = self._due(replace(signals, uplink=uplink), 0, until_s)
        if len(due):
            signals = replace(signals, bulk_up=self.uplink.offer(signals.bulk_up, due, self.time_s(steps)))
        if not signals.bulk_up.idle:
            left = free if used is None else (free - used).clamp(min=0)
            bulk, came, _ = self._serve(
                self.uplink, signals.bulk_up, state, left, until_s, uplink=True, lossy=False
            )
            if len(came):
                self.messenger.count_bulk(came, came.source)
            signals = replace(signals, bulk_up=bulk)
        if not len(arrived):
            return signals, state, arrived
        self.messenger.count(arrived, arrived.source)
        lost = arrived.source[~arrived.delivered]
        if len(lost):
            failed = torch.zeros(self.users, dtype=torch.bool).index_fill(0, lost, True)
            failed = failed.view(state.status.shape) & (state.status == CONNECTED)
            state = reestablish(state, failed, self.config)
            state = replace(state, link_failures=state.link_failures + failed.int())
        return signals, state, arrived.select(arrived.delivered)

    def _down(self, signals: Signals, state: State, steps: int) -> tuple[Signals, State, Tensor, Tensor]:
        """The downlink of a step: signalling now, bulk as the cells see fit."""
        now_s, until_s = self.time_s(steps), self.time_s(steps + 1)
        signals, due = self._due(signals, 1, until_s)
        if len(due):
            signals = replace(signals, bulk_down=self.downlink.offer(signals.bulk_down, due, now_s))
        downlink, arrived, used = self._serve(
            self.downlink, signals.downlink, state, self.free, until_s, uplink=False
        )
        reserved = torch.zeros_like(state.reserved) if used is None else used.float()
        bulk_bits = state.bulk_bits
        if len(signals.bulk_down.waiting):
            # what comes within the step waits for the next one
            waits = self.downlink.waiting_bits(signals.bulk_down, math.nextafter(now_s, math.inf), self.users)
            bulk_bits = waits.view(bulk_bits.shape)
        state = replace(state, reserved=reserved, bulk_bits=bulk_bits)
        signals = replace(signals, downlink=downlink)
        if not len(arrived):
            return signals, state, arrived.destination, arrived.arrived_s
        self.messenger.count(arrived, arrived.destination)
        current = signals.asked[arrived.destination] == arrived.id - 1
        current &= (state.status == CONNECTED).flatten()[arrived.destination]
        user, at_s = arrived.destination[current], arrived.arrived_s[current]
        signals = replace(signals, asked=signals.asked.index_fill(0, user, NONE))
        user, at_s = user[at_s.isfinite()], at_s[at_s.isfinite()]
        self.messenger.count_commands(user, at_s - signals.asked_s[user])
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
    ) -> tuple[QueueState, Deliveries, Tensor | None]:
        """Serves a direction's queues; the last is the share of each cell that it took, None of nothing."""
        if not len(queue.waiting):
            queue, arrived = link.advance(queue, until_s, self.stream)
            return queue, arrived, None
        bits = link.waiting_bits(queue, until_s, self.users)
        rate_bps, full_bps = grant(state, self.config, bits, free, uplink=uplink)
        loss = loss_from_sinr(sinr_db(state)).flatten().double() if lossy else queue.loss_probability
        queue = replace(queue, rate_bps=rate_bps, loss_probability=loss)
        queue, arrived = link.advance(queue, until_s, self.stream)
        sent_bits = bits - link.waiting_bits(queue, until_s, self.users)
        return queue, arrived, taken(state, self.config, sent_bits, full_bps)
