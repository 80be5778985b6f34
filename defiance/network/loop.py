"""One period of the network between two decisions, for whoever decides: `simulate`, or an environment.

    ask (request, uplink) ──▶ advance: Xn preparation, command (downlink), steps, measurement (report, uplink)

A decider on the device sees its own measurement and sends a request; one at the base station sees only the
reports that arrived. A conditional decider is on the device, too: a cell that it wants is prepared and its
configuration sent, as above; once the device holds that configuration, wanting the cell executes the handover
at once (TS 38.300 clause 9.2.3.4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.network import kernel, reference
from defiance.network.measurements import Observation, reported
from defiance.network.messages import Messenger
from defiance.network.procedures import NEVER, NO_PERIOD, Period
from defiance.network.settings import RadioConfig
from defiance.network.signalling import NO_BULK, BulkTraffic, Signalling, Signals
from defiance.network.state import CONNECTED, NONE, State, but, initial
from defiance.network.world import World
from defiance.seeding import Stream

Placement = Literal["device", "station"]
PERIOD_STEPS: dict[str, int] = {"device": 5, "station": 6}
"""Steps between two decisions: 100 ms on the device, a report every 120 ms at the station."""


@dataclass(frozen=True)
class Course:
    """Where a run is after some periods.

    Attributes:
        state: of the network.
        periods: so many have passed.
        wanted: cells that were asked for since, `[W, U]` int64; NONE.
        target: cell that the last handover command named, `[W, U]`.
        refused: whether a command came while T310 ran in the last period, `[W, U]`.
        prepared: cells whose conditional configuration the device holds, `[W, U, C]`.
        load: as last told over Xn, `[W, C]`; 0 before the first time.
        load_steps: of the state at that time, `[W, C]`.
        signals: messages on the way, where they wait in queues.
    """

    state: State
    periods: int
    wanted: Tensor
    target: Tensor
    refused: Tensor
    prepared: Tensor
    load: Tensor
    load_steps: Tensor
    signals: Signals | None = None


class Loop:
    """Worlds, carrier and links of a run, which its periods have in common.

    Attributes:
        messenger: sends reports and commands, and folds what they cost.
        period_s: time between two decisions.
    """

    def __init__(
        self,
        world: World,
        config: RadioConfig,
        stream: Stream,
        *,
        placement: Placement,
        period_steps: int,
        conditional: bool = False,
        bulk: BulkTraffic = NO_BULK,
    ) -> None:
        """Check that the procedures fit into a period, and the worlds lie where the loop runs.

        Args:
            world: drawn once, the same for every decider.
            config: carrier and procedures.
            stream: draws of the messages' losses; a draw belongs to the world, user, time and kind of
                message.
            placement: who decides.
            period_steps: steps between two decisions.
            conditional: handovers are prepared before they are needed.
            bulk: payloads beside the users' own traffic; they need `messages = "queued"`.

        Raises:
            DefianceError: they don't.
        """
        if world.gain_db.device.type != "cpu":
            raise DefianceError(
                f"the worlds are on the device {world.gain_db.device}, but runs under a policy are for CPUs;"
                " move them with world.to('cpu'), or step them with defiance.network.reference.step"
            )
        self.world, self.config = world, config
        self.placement, self.period_steps, self.conditional = placement, period_steps, conditional
        self.messenger = Messenger(world, config, stream)
        self.period_s = period_s = period_steps * config.step_s
        self.handling_s = config.air_delay_s + config.preparation_s
        self.until_command = config.steps(self.handling_s)
        if self.until_command > period_steps:
            raise DefianceError(
                f"a report and the preparation take {self.handling_s} s, longer than {period_s} s between"
                " decisions; lower radio.air_delay_s or radio.preparation_s"
            )
        if config.sample_s > period_s:
            raise DefianceError(
                f"radio.sample_s is {config.sample_s} s, longer than the {period_s} s between decisions;"
                " lower it"
            )
        if config.reestablishment_s < period_s:
            raise DefianceError(
                f"radio.reestablishment_s is {config.reestablishment_s} s, shorter than the {period_s} s"
                " between decisions, so failures couldn't be told apart; raise it"
            )
        self.periods_per_measurement = max(1, round(config.measurement_s / period_s))
        self.periods_per_exchange = max(1, round(config.xn_report_s / period_s))
        self.nobody = torch.zeros(world.shape[:2], dtype=torch.bool)
        self.nowhere = torch.full(world.shape[:2], NONE)
        self.step = kernel.stepping(world, config)
        waits_s = config.air_delay_s + self.handling_s - self.until_command * config.step_s
        self.period = NO_PERIOD._replace(
            steps=period_steps,
            sample_after=period_steps - config.steps(config.sample_s) if config.sample_s else NEVER,
            refused=self.nobody.numpy(),
            lottery=self.messenger.lottery,
            wait_steps=config.steps(max(0.0, waits_s)),
            executes=not conditional,
        )
        self.signalling: Signalling | None = None
        if config.messages == "queued":
            self.signalling = Signalling(
                world, config, stream, self.messenger, bulk, executes=not conditional
            )
        elif len(bulk):
            raise DefianceError('other payloads need queues to wait in; set radio.messages to "queued"')

    def begin(self) -> Course:
        """Every user at the start of its route, served by the cell of least path loss."""
        world = self.world
        first = reference.path_gain_db(world, world.route_m[:, :, 0]).argmax(-1)
        state = initial(world, self.config, first)
        return Course(
            state=state,
            periods=0,
            wanted=self.nowhere,
            target=self.nowhere.clone(),
            refused=self.nobody,
            prepared=torch.zeros(world.shape, dtype=torch.bool),
            load=torch.zeros_like(state.load),
            load_steps=state.load_steps.clone(),
            signals=self.signalling.begin() if self.signalling else None,
        )

    def advance(self, course: Course) -> tuple[Course, Observation]:
        """One period, and what is seen at its end.

        What was wanted is prepared, commanded, executed; or executed at once, if prepared. The state is
        changed in place.
        """
        state, wanted, target, prepared = course.state, course.wanted, course.target, course.prepared
        signals, refused = course.signals, self.nobody
        if self.conditional:
            served = state.serving.clone()
            state, wanted = _execute_prepared(state, wanted, prepared)
            target = torch.where(state.target != NONE, state.target, target)
        measured = course.periods % self.periods_per_measurement == 0
        rsrp_dbm = torch.empty_like(state.rsrp_dbm) if measured else torch.empty(0, 0, 0)
        period = self.period._replace(target=target.numpy(), rsrp_dbm=rsrp_dbm.numpy())
        if self.signalling is None or signals is None:
            state, told, refused = self._run(state, wanted, course.periods, period)
        else:
            state, signals, told = self._run_queued(self.signalling, state, signals, course.periods, period)
            target = torch.where(told != NONE, told, target)
        if measured:
            state = but(state, rsrp_dbm=rsrp_dbm)
        if self.conditional:
            prepared = _with(prepared, told)
        load, load_steps = course.load, course.load_steps
        if course.periods % self.periods_per_exchange == self.periods_per_exchange - 1:
            exchanged = (state.load_steps - load_steps) / (self.periods_per_exchange * self.period_steps)
            load, load_steps = exchanged.float(), state.load_steps.clone()
        seen, connected = state.rsrp_dbm, state.status == CONNECTED
        fresh = connected if measured else self.nobody
        if self.conditional:
            prepared = prepared & (connected & (state.serving == served))[..., None]
        if self.placement == "station":
            floor_dbm = self.config.rsrp_floor_dbm
            seen = reported(seen, state.serving, floor_dbm=floor_dbm)
            if self.signalling is None or signals is None:
                fresh = self.messenger.report(state, fresh, course.periods, self._reported_cells)
            else:
                steps = (course.periods + 1) * self.period_steps
                now_s, users = self.signalling.time_s(steps), np.flatnonzero(fresh.numpy())
                signals = self.signalling.report(signals, users, course.periods, now_s, self._reported_cells)
                signals, fresh = self.signalling.listen(signals, state, seen, course.periods, steps)
                seen = signals.seen
        observation = Observation(
            seen,
            state.serving,
            fresh,
            steps=(course.periods + 1) * self.period_steps,
            period_s=self.period_s,
            interval_s=self.periods_per_measurement * self.period_s if measured else 0.0,
            floor_dbm=self.config.rsrp_floor_dbm,
            load=load,
            prepared=prepared,
        )
        after = Course(
            state, course.periods + 1, self.nowhere, target, refused, prepared, load, load_steps, signals
        )
        return after, observation

    def ask(self, course: Course, wanted: Tensor) -> tuple[Course, Tensor]:
        """What was decided on the last observation: who may ask, and whose request gets through.

        Args:
            course: that the observation came with.
            wanted: cell per user, `[W, U]` int64; the serving one or NONE to stay.

        Returns:
            The course to advance, and the cells that were wanted by those who may, `[W, U]`, NONE elsewhere.
        """
        if self.signalling is not None and course.signals is not None:
            return self._ask_queued(self.signalling, course, course.signals, wanted)
        heard, wanted = self.messenger.ask(
            course.state,
            wanted.contiguous(),
            course.prepared,
            course.periods - 1,
            self._reported_cells,
            requests=self.placement == "device",
        )
        return but(course, wanted=heard), wanted

    def _ask_queued(
        self, signalling: Signalling, course: Course, signals: Signals, wanted: Tensor
    ) -> tuple[Course, Tensor]:
        """`ask` where requests wait: what is under way is wanted still, and nothing else."""
        state, now_s = course.state, signalling.time_s(course.periods * self.period_steps)
        period = course.periods - 1
        users, at_once, ahead = signalling.ask(signals, state, wanted, course.prepared, period, now_s)
        if self.placement == "device":
            signals = signalling.report(signals, users, period, now_s, self._reported_cells)
        else:
            signals = signalling.prepare(signals, state, users, np.maximum(signals.heard_s[users], now_s))
        return but(course, wanted=at_once, signals=signals), ahead

    @property
    def _reported_cells(self) -> int:
        return min(self.world.shape[2], 9)

    def _run(
        self, state: State, wanted: Tensor, periods: int, period: Period
    ) -> tuple[State, Tensor, Tensor]:
        """The steps of a period, the cells that commands named in it, and who was refused, `[W, U]`."""
        told, refused = torch.empty_like(wanted), self.nobody
        if self.config.messages == "t310" and not self.conditional:
            refused = torch.empty_like(refused)
        period = period._replace(
            command_after=self.until_command,
            wanted=wanted.numpy(),
            told=told.numpy(),
            refused=refused.numpy(),
            number=4 * periods + 1,
        )
        state = self.step(state, self.period_steps, period)
        self.messenger.commanded(period.wanted, period.told)
        return state, told, refused

    def _run_queued(
        self, signalling: Signalling, state: State, signals: Signals, periods: int, period: Period
    ) -> tuple[State, Signals, Tensor]:
        """The steps of a period, and the cells that commands named in it, `[W, U]`."""
        told, reports_ask = self.nowhere.clone(), self.placement == "device"
        for number in range(self.period_steps):
            steps = periods * self.period_steps + number
            signals = signalling.step(signals, state, told, steps, reports_ask=reports_ask)
            state = self.step(state, 1, period, number)
        signals = signalling.settle(signals, state, (periods + 1) * self.period_steps)
        return state, signals, told


def _holds(prepared: Tensor, cell: Tensor) -> Tensor:
    """Whether a user holds the conditional configuration of a cell, `[W, U]`; not of NONE."""
    return prepared.gather(-1, cell.clamp(min=0)[..., None]).squeeze(-1) & (cell != NONE)


def _with(prepared: Tensor, cell: Tensor) -> Tensor:
    """Cells that devices hold once the configuration of a cell, `[W, U]` or NONE, has come, `[W, U, C]`."""
    named = torch.nn.functional.one_hot(cell.clamp(min=0), prepared.shape[-1]) * (cell != NONE)[..., None]
    return prepared | named.bool()


def _execute_prepared(state: State, wanted: Tensor, prepared: Tensor) -> tuple[State, Tensor]:
    """Starts the handovers to prepared cells without a command; returns what is still to be prepared."""
    now = _holds(prepared, wanted) & (state.status == CONNECTED)
    target = torch.where(now, wanted, state.target).int()
    command_steps = torch.where(now, 0, state.command_steps).int()
    return replace(state, target=target, command_steps=command_steps), torch.where(now, NONE, wanted)
