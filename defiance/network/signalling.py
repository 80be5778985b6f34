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

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defiance.errors import DefianceError
from defiance.link import Packets, in_order
from defiance.network import transport
from defiance.network.air import Air, free_share
from defiance.network.messages import Messenger, report_bits
from defiance.network.queues import QueuedLink
from defiance.network.settings import RadioConfig
from defiance.network.state import NONE, State, but
from defiance.network.transport import XN_HEADER_BITS, Counts, Lines, Requests, Setting, Users
from defiance.network.world import World
from defiance.seeding import Stream

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
        lines: what waits and flies.
        requests: handovers under way; changed in place, as the network's state is.
        seen: last report of every user that arrived, `[W, U, C]`.
        heard_s: when it did, `[W * U]`.
        told: reports that may be on the way, by period, the last first; `[W, U, C]` each.
        uplink_steps: so many steps the uplink has served.
    """

    lines: Lines
    requests: Requests
    seen: Tensor
    heard_s: NDArray[np.float64]
    told: tuple[tuple[int, Tensor], ...] = ()
    uplink_steps: int = 0


class Signalling:
    """Links and procedures of a run."""

    def __init__(
        self,
        world: World,
        config: RadioConfig,
        stream: Stream,
        messenger: Messenger,
        bulk: BulkTraffic,
        *,
        executes: bool,
    ) -> None:
        self.world, self.config, self.messenger = world, config, messenger
        uplink = QueuedLink("source", config.air_delay_s)
        downlink = QueuedLink("destination", config.air_delay_s)
        wire = QueuedLink("source", config.preparation_s, XN_HEADER_BITS, config.xn_bps)
        free = free_share(world, config).numpy()
        self.users = world.shape[0] * world.shape[1]
        self.key = messenger.key.numpy()
        self.setting = Setting(
            up=Air.of(config, uplink=True),
            down=Air.of(config, uplink=False),
            free_up=config.uplink_slots * free,
            free_down=free,
            air_timing=uplink.timing,
            wire_timing=wire.timing,
            wire_bps=np.full(1, float(config.xn_bps)),
            cell_site=world.cell_site.numpy(),
            sites=int(world.cell_site.max()) + 1,
            executes=executes,
            message_key=self.key,
            key=np.uint64(stream.key),
            reestablishment_steps=max(1, config.steps(config.reestablishment_s)),
            bulk_up=uplink.rows(in_order(bulk.uplink)),
            bulk_down=downlink.rows(in_order(bulk.downlink)),
            bulk_wire=wire.rows(in_order(bulk.wire)),
        )
        for name, rows, ends in (
            ("uplink's source", self.setting.bulk_up, self.users),
            ("downlink's destination", self.setting.bulk_down, self.users),
            ("wire's source", self.setting.bulk_wire, world.shape[0] * self.setting.sites),
        ):
            if len(rows) and not 0 <= rows["queue"].min() <= rows["queue"].max() < ends:
                raise DefianceError(
                    f"BulkTraffic: the {name} is one of {rows['queue'].min()} to {rows['queue'].max()}, but"
                    f" there are {ends}, counted from 0 world by world"
                )
        # the last state's arrays: steps change them in place
        self._seen: tuple[State | None, Users | None] = None, None
        self._counted: tuple[Tensor | None, Counts | None] = None, None

    def time_s(self, steps: int) -> float:
        """When so many steps have passed."""
        return steps * self.config.step_s

    def begin(self) -> Signals:
        """Nothing is on the way."""
        nobody = np.full((2, self.users), NONE)
        requests = Requests(
            nobody[0], nobody[1], np.zeros(self.users), np.zeros(3, np.int64), np.zeros(self.users)
        )
        seen = torch.full(self.world.shape, self.config.rsrp_floor_dbm)
        return Signals(Lines(), requests, seen, np.zeros(self.users))

    def ask(
        self, signals: Signals, state: State, wanted: Tensor, prepared: Tensor, period: int, now_s: float
    ) -> tuple[NDArray[np.int64], Tensor, Tensor]:
        """Users begin to ask for handovers; see `transport.ask`."""
        users, at_once, ahead = transport.ask(
            wanted.contiguous().numpy(),
            prepared.numpy(),
            signals.requests,
            self._users(state),
            4 * period,
            now_s,
            self.setting,
        )
        return users, torch.from_numpy(at_once), torch.from_numpy(ahead)

    def report(
        self, signals: Signals, users: NDArray[np.int64], period: int, now_s: float, cells: int
    ) -> Signals:
        """Offers a report of `cells` cells from every user, `[n]`, to the uplink."""
        uplink = transport.report(
            signals.lines.uplink, users, 4 * period, report_bits(cells), now_s, self.setting
        )
        return but(signals, lines=signals.lines._replace(uplink=uplink))

    def listen(
        self, signals: Signals, state: State, seen: Tensor, period: int, steps: int
    ) -> tuple[Signals, Tensor]:
        """The uplink of the step that begins, for a decider at the station: whose reports arrive, `[W, U]`.

        A decision takes effect only after its preparation, later than the step's end.

        Args:
            signals: with this period's reports offered.
            state: at the end of the step before; who has lost its link is told in place.
            seen: what is in these reports, `[W, U, C]`.
            period: of them.
            steps: so many have passed.
        """
        told = ((period, seen.clone()), *signals.told)[:REMEMBERED]
        lines, over = transport.ascend(
            signals.lines, signals.requests, self._users(state), self._counts(), steps, self.setting
        )
        arrived = over[np.isfinite(over["ready_s"])]
        fresh = torch.zeros(self.users, dtype=torch.bool)
        known, heard_s = signals.seen.flatten(0, 1).clone(), signals.heard_s.copy()
        of = (arrived["id"] - self.key[arrived["source"]]) // 4
        for number, content in reversed(told):
            user = arrived["source"][of == number]
            if len(user):
                known[user] = content.flatten(0, 1)[user]
                heard_s[user] = arrived["ready_s"][of == number]
                fresh[user] = True
        signals = but(
            signals,
            lines=lines,
            seen=known.view_as(signals.seen),
            heard_s=heard_s,
            told=told,
            uplink_steps=steps + 1,
        )
        return signals, fresh.view(state.status.shape)

    def prepare(
        self, signals: Signals, state: State, user: NDArray[np.int64], at_s: NDArray[np.float64]
    ) -> Signals:
        """Offers the preparations that users' handovers need, `[n]`, to their stations' wires, at a time."""
        lines = signals.lines
        wire = transport.prepare(
            lines.wire, user, at_s, signals.requests, self._users(state), self._counts(), self.setting
        )
        return but(signals, lines=lines._replace(wire=wire))

    def step(self, signals: Signals, state: State, told: Tensor, steps: int, *, reports_ask: bool) -> Signals:
        """The messages of the step that begins; the cells will know what signalling takes of them.

        Args:
            signals: so far.
            state: at the end of the step before; commands, lost links and what cells shall send are told in
                place.
            told: gets the cells that commands name, `[W, U]`.
            steps: so many have passed.
            reports_ask: whether a report that arrives begins a preparation.
        """
        lines = transport.step(
            signals.lines,
            signals.requests,
            self._users(state),
            self._counts(),
            told.numpy(),
            steps,
            signals.uplink_steps <= steps,
            reports_ask,
            self.setting,
        )
        return but(signals, lines=lines, uplink_steps=steps + 1)

    def settle(self, signals: Signals, state: State, steps: int) -> Signals:
        """Delivers the bulk that the last step, of so many, has sent in the downlink."""
        lines = transport.settle(
            signals.lines, signals.requests, self._users(state), self._counts(), steps, self.setting
        )
        return but(signals, lines=lines)

    def _users(self, state: State) -> Users:
        of, users = self._seen
        if users is None or of is not state:
            users = Users(*(getattr(state, name).numpy() for name in Users._fields))
            self._seen = state, users
        return users

    def _counts(self) -> Counts:
        """The fold's arrays, which `Messenger.reset` replaces."""
        of, counts = self._counted
        if counts is None or of is not self.messenger.bits:
            counts = Counts(*(getattr(self.messenger, name).numpy() for name in Counts._fields))
            self._counted = self.messenger.bits, counts
        return counts
