"""The loop around the step: the network measures, a policy decides, links carry it, the network executes.

One period of a policy is a whole number of steps::

    step ... step | measure ──(report, uplink)──▶ decide ──(Xn preparation)──▶ command, downlink ──▶ step

A policy on the device decides from its own measurement and sends a request; one at the base station sees only
the reports that arrived. A conditional policy is on the device, too: a cell that it wants is prepared and its
configuration sent, as above; once the device holds that configuration, wanting the cell executes the handover
at once (TS 38.300 clause 9.2.3.4).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.link import PURPOSES, LossyLink, Packets, loss_from_sinr
from defiance.network import kernel, reference
from defiance.network.failures import Failures, fold_failures, no_failures
from defiance.network.settings import RadioConfig
from defiance.network.state import CONNECTED, NONE, REESTABLISHING, State, initial
from defiance.network.world import World
from defiance.seeding import Stream

RSRP_FLOOR_DBM = RadioConfig.rsrp_floor_dbm
"""Weakest RSRP a user detects, unless the configuration says otherwise."""

REPORT_CELL_BITS, REPORT_HEADER_BITS = 17, 40
"""TS 38.331 MeasurementReport: 10 bits of physical cell identity and 7 of RSRP per cell + about 5 bytes."""

COMMAND_BITS = 2000
"""RRCReconfiguration with a mobility command, about 250 bytes."""

PREPARATION_BITS = 2 * 4000
"""HANDOVER REQUEST and its acknowledgement over Xn (TS 38.423), about 500 bytes each."""


def report_bits(cells: int) -> int:
    """Bits of a measurement report that names `cells` cells."""
    return REPORT_HEADER_BITS + cells * REPORT_CELL_BITS


@dataclass(frozen=True)
class Observation:
    """What a decision may see.

    Attributes:
        rsrp_dbm: last measurement per cell, `[W, U, C]`; `RadioConfig.rsrp_floor_dbm` where a cell was not
            heard or not reported.
        serving: serving cell, `[W, U]`.
        fresh: whether this measurement reached the decider, `[W, U]`.
        steps: steps since the start.
        interval_s: time between this measurement and the one before; 0 if nothing was measured since the last
            decision, None if every decision has its measurement.
        load: mean share of PRBs of every cell that stations last told each other over Xn, `[W, C]`.
        prepared: cells whose conditional configuration the device holds, `[W, U, C]`.
    """

    rsrp_dbm: Tensor
    serving: Tensor
    fresh: Tensor
    steps: int
    interval_s: float | None = None
    load: Tensor | None = None
    prepared: Tensor | None = None


class Policy(Protocol):
    """Who decides on handovers: a rule, its learned rival or the genie (see `defiance.control.handover`)."""

    @property
    def placement(self) -> Literal["device", "station"]:
        """Whether it decides on the device or at the base station."""

    @property
    def period_steps(self) -> int:
        """Steps between two decisions."""

    def initial(self, worlds: int, users: int, cells: int) -> Any:
        """Memory before the first observation."""

    def decide(self, memory: Any, observation: Observation) -> tuple[Any, Tensor]:
        """Next memory and the wanted cell, `[W, U]` int64, NONE to stay."""


@runtime_checkable
class ConditionalPolicy(Policy, Protocol):
    """A policy on the device whose handovers are prepared before they are needed.

    A wanted cell is executed at once if it is in `Observation.prepared`, and prepared otherwise.
    """

    @property
    def candidates(self) -> int:
        """How many cells may be prepared at a time; TS 38.331: at most 8 (`maxNrofCondCells`)."""


@runtime_checkable
class Triggering(Protocol):
    """Memory of a policy with an entering condition, as TR 36.839's failure states need it."""

    @property
    def triggered_s(self) -> Tensor:
        """How long the condition has held for a cell, `[W, U, C]`; negative where it doesn't."""


@dataclass(frozen=True)
class Log:
    """What a run recorded per period, time first.

    Attributes:
        rsrp_dbm: what the decider saw, `[T, W, U, C]` int8 in whole dB.
        serving: `[T, W, U]` int8.
        fresh: `[T, W, U]` bool.
        sinr_db: mean over the Qin window, `[T, W, U]` float16; nan while not connected.
        outage_steps: steps in outage so far, `[T, W, U]` int32.
        position_m: `[T, W, U, 2]` float32.
    """

    rsrp_dbm: Tensor
    serving: Tensor
    fresh: Tensor
    sinr_db: Tensor
    outage_steps: Tensor
    position_m: Tensor


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        state: the last state with all its counts.
        duration_s: simulated time.
        bits: bits sent over the air per purpose of `defiance.link.PURPOSES`, `[W, len(PURPOSES)]`.
        messages, lost: messages sent and lost in the air, `[W]`.
        prepared: handovers prepared over Xn, `PREPARATION_BITS` each, `[W]`.
        decisions: decisions taken, `[W]`.
        failures: what failures of links and handovers were: states of TR 36.839, causes of TS 38.300.
        log: what was recorded, if anything was.
    """

    state: State
    duration_s: float
    bits: Tensor
    messages: Tensor
    lost: Tensor
    prepared: Tensor
    decisions: Tensor
    failures: Failures
    log: Log | None


def sinr_db(state: State) -> Tensor:
    """SINR towards the serving cell averaged over the Qin window, `[W, U]`; -inf while not connected."""
    return 10 * torch.log10(state.sinr)


def measure(state: State, config: RadioConfig) -> State:
    """Layer-1 filtering: mean received power per resource element since the last measurement; starts anew."""
    mean = state.rsrp_sum_mw / state.measured_steps.clamp(min=1)[:, None, None]
    rsrp = 10 * torch.log10((mean / config.resource_elements).clamp(min=1e-20))
    return replace(_unmeasured(state), rsrp_dbm=rsrp.clamp(min=config.rsrp_floor_dbm))


def _unmeasured(state: State) -> State:
    return replace(
        state,
        rsrp_sum_mw=torch.zeros_like(state.rsrp_sum_mw),
        measured_steps=torch.zeros_like(state.measured_steps),
    )


def l3_filter(filtered_dbm: Tensor, measured_dbm: Tensor, k: Tensor | float, period_s: float) -> Tensor:
    """Layer-3 filtering of TS 38.331 clause 5.5.3.2: F = (1 - a) F + a M.

    a = 1/2^(k/4) at one measurement per 200 ms; at another rate it is adapted so that the filter keeps its
    time constant, as the clause demands.
    """
    a = torch.as_tensor(k, dtype=torch.float32).mul(-0.25).exp2()
    a = 1 - (1 - a) ** (period_s / 0.2)
    return filtered_dbm + a * (measured_dbm - filtered_dbm)


def reported(
    rsrp_dbm: Tensor, serving: Tensor, neighbours: int = 8, floor_dbm: float = RSRP_FLOOR_DBM
) -> Tensor:
    """What a periodic report carries (TS 38.331): serving cell and strongest neighbours, in 1 dB steps.

    Args:
        rsrp_dbm: `[W, U, C]`.
        serving: `[W, U]`.
        neighbours: at most so many others.
        floor_dbm: stands for every other cell.

    Returns:
        `[W, U, C]`.
    """
    is_serving = torch.nn.functional.one_hot(serving.long(), rsrp_dbm.shape[-1]).bool()
    ranked = rsrp_dbm.masked_fill(is_serving, torch.inf)
    count = min(neighbours + 1, rsrp_dbm.shape[-1])
    weakest = ranked.topk(count, dim=-1).values[..., -1:]
    return torch.where(ranked >= weakest, rsrp_dbm.round(), floor_dbm)


@torch.no_grad()
def simulate(
    world: World,
    config: RadioConfig,
    policy: Policy,
    stream: Stream,
    *,
    duration_s: float,
    record: bool = False,
    warm_up_s: float = 1.0,
    advance: Callable[[int], None] | None = None,
) -> Outcome:
    """Runs all worlds under one policy.

    Args:
        world: drawn once, the same for every policy.
        config: carrier and procedures.
        policy: who decides.
        stream: draws of the messages' losses; a draw belongs to the world, user, time and kind of message.
        duration_s: simulated time after the warm-up.
        record: keep a `Log`.
        warm_up_s: time before counting starts (filters and histories fill).
        advance: called with the steps done, for progress bars.
    """
    worlds, users, cells = world.shape
    step = kernel.step_in_place if world.gain_db.device.type == "cpu" else reference.step
    state = initial(world, config, reference.path_gain_db(world, world.route_m[:, :, 0]).argmax(-1))
    memory = policy.initial(worlds, users, cells)
    messenger = _Messenger(world, config, stream)
    period_s = policy.period_steps * config.step_s
    handling_s = config.air_delay_s + config.preparation_s
    until_command = config.steps(handling_s)
    if until_command > policy.period_steps:
        raise DefianceError(
            f"a report and the preparation take {handling_s} s, longer than {period_s} s between decisions;"
            " lower radio.air_delay_s or radio.preparation_s"
        )
    if config.sample_s > period_s:
        raise DefianceError(
            f"radio.sample_s is {config.sample_s} s, longer than the {period_s} s between decisions; lower it"
        )
    if config.reestablishment_s < period_s:
        raise DefianceError(
            f"radio.reestablishment_s is {config.reestablishment_s} s, shorter than the {period_s} s between"
            " decisions, so failures couldn't be told apart; raise it"
        )
    conditional = isinstance(policy, ConditionalPolicy)
    periods_per_measurement = max(1, round(config.measurement_s / period_s))
    periods_per_exchange = max(1, round(config.xn_report_s / period_s))
    sampled_from = policy.period_steps - config.steps(config.sample_s)

    def run(state: State, first: int, end: int) -> State:
        """From one step of a period to another; what is measured starts with the sample."""
        if config.sample_s and first <= sampled_from < end:
            state = _unmeasured(step(world, state, config, sampled_from - first))
            first = sampled_from
        return step(world, state, config, end - first)

    counting_from = math.ceil(warm_up_s / period_s)
    periods = counting_from + max(1, round(duration_s / period_s))
    wanted = torch.full((worlds, users), NONE, dtype=torch.int64)
    triggered, target = wanted != NONE, wanted
    prepared = torch.zeros(worlds, users, cells, dtype=torch.bool)
    load, load_steps = state.load.clone(), state.load_steps.clone()
    failures = no_failures(worlds, users)
    frames: list[tuple[Tensor, ...]] = []
    start, failures_before = state.clone(), failures
    for period in range(periods):
        if period == counting_from:
            start, failures_before = state.clone(), failures
            messenger.reset()
        # what the last decision wanted is prepared, commanded, executed; or executed at once, if prepared
        now_s = period * period_s
        served = state.serving.clone()
        if conditional:
            state, wanted = _execute_prepared(state, wanted, prepared)
            target = torch.where(state.target != NONE, state.target, target)
        state = run(state, 0, until_command)
        commanded = messenger.command(state, wanted, period, now_s + handling_s)
        refused = torch.zeros_like(triggered)
        if conditional:
            told = (wanted != NONE) & (commanded.target == wanted)
            prepared = (
                prepared | (torch.nn.functional.one_hot(wanted.clamp(min=0), cells) * told[..., None]).bool()
            )
        else:
            target = torch.where(commanded.target != NONE, commanded.target, target)
            state, refused = _refused(commanded, config)
        state = run(state, until_command, policy.period_steps)
        failures = fold_failures(failures, state, config, triggered=triggered, refused=refused, target=target)
        # measurement, exchange of load over Xn, decision
        now_s += period_s
        measured = period % periods_per_measurement == 0
        if measured:
            state = measure(state, config)
        if period % periods_per_exchange == periods_per_exchange - 1:
            load = (state.load_steps - load_steps) / (periods_per_exchange * policy.period_steps)
            load_steps = state.load_steps.clone()
        seen = state.rsrp_dbm
        connected = state.status == CONNECTED
        fresh = connected & measured
        prepared = prepared & (connected & (state.serving == served))[..., None]
        if policy.placement == "station":
            seen = reported(seen, state.serving, floor_dbm=config.rsrp_floor_dbm)
            fresh = messenger.report(state, fresh, period, now_s, min(cells, 9))
        observation = Observation(
            seen,
            state.serving,
            fresh,
            steps=(period + 1) * policy.period_steps,
            interval_s=(config.measurement_s if measured else 0.0) if config.measurement_s else None,
            load=load.float(),
            prepared=prepared,
        )
        memory, wanted = policy.decide(memory, observation)
        free = connected & (state.target == NONE)  # no command is on its way
        wanted = torch.where(free & (wanted != state.serving), wanted, NONE)
        triggered = wanted != NONE
        if isinstance(memory, Triggering):
            triggered = triggered | (memory.triggered_s >= 0).any(-1)
        if policy.placement == "device":
            asks = wanted != NONE
            if conditional:
                asks &= ~_holds(prepared, wanted)
            arrived = messenger.report(state, asks, period, now_s, min(cells, 9))
            wanted = torch.where(arrived | ~asks, wanted, NONE)
        if record and period >= counting_from:
            quality = sinr_db(state)
            frames.append(
                (
                    seen.clamp(min=-128).round().to(torch.int8),
                    state.serving.to(torch.int8),
                    fresh,
                    torch.where(quality.isfinite(), quality, torch.nan).half(),
                    state.outage_steps - start.outage_steps,
                    reference.position_m(world, state.travelled_m).float(),
                )
            )
        if advance is not None:
            advance(policy.period_steps)
    return Outcome(
        state=_since(start, state),
        duration_s=(periods - counting_from) * period_s,
        bits=messenger.bits,
        messages=messenger.messages,
        lost=messenger.lost,
        prepared=messenger.prepared,
        decisions=torch.full((worlds,), (periods - counting_from) * users),
        failures=failures.since(failures_before),
        log=Log(*(torch.stack(column) for column in zip(*frames, strict=True))) if frames else None,
    )


COUNTS = (
    "outage_steps",
    "interrupted_steps",
    "handovers",
    "ping_pongs",
    "link_failures",
    "handover_failures",
    "bits",
    "packets",
    "delay_s",
    "load_steps",
)


def _since(start: State, state: State) -> State:
    return replace(state, **{name: getattr(state, name) - getattr(start, name) for name in COUNTS})


def _holds(prepared: Tensor, cell: Tensor) -> Tensor:
    """Whether a user holds the conditional configuration of a cell, `[W, U]`; not of NONE."""
    return prepared.gather(-1, cell.clamp(min=0)[..., None]).squeeze(-1) & (cell != NONE)


def _execute_prepared(state: State, wanted: Tensor, prepared: Tensor) -> tuple[State, Tensor]:
    """Starts the handovers to prepared cells without a command; returns what is still to be prepared."""
    now = _holds(prepared, wanted) & (state.status == CONNECTED)
    target = torch.where(now, wanted, state.target).int()
    command_steps = torch.where(now, 0, state.command_steps).int()
    return replace(state, target=target, command_steps=command_steps), torch.where(now, NONE, wanted)


def _refused(state: State, config: RadioConfig) -> tuple[State, Tensor]:
    """Handover failure of TR 36.839 clause 5.2.1.3: the command comes while T310 runs, `[W, U]`."""
    refused = (state.status == CONNECTED) & (state.target != NONE) & (state.t310_steps != NONE)
    if config.messages == "sinr" or not bool(refused.any()):
        return state, torch.zeros_like(refused)
    timer = max(1, config.steps(config.reestablishment_s))
    return replace(
        state,
        status=torch.where(refused, REESTABLISHING, state.status).int(),
        timer_steps=torch.where(refused, timer, state.timer_steps).int(),
        target=torch.where(refused, NONE, state.target).int(),
        t310_steps=torch.where(refused, NONE, state.t310_steps).int(),
        handover_failures=state.handover_failures + refused.int(),
    ), refused


class _Messenger:
    """Sends reports and commands of one run over its links and folds what they cost per world."""

    def __init__(self, world: World, config: RadioConfig, stream: Stream) -> None:
        worlds, users, _ = world.shape
        self.config, self.stream, self.shape = config, stream, (worlds, users)
        self.key = (world.key[:, None] + torch.arange(users) * 2**20).flatten()
        self.uplink = LossyLink(delay_s=config.air_delay_s, lossy_end="source")
        self.downlink = LossyLink(delay_s=config.air_delay_s, lossy_end="destination")
        self.reset()

    def reset(self) -> None:
        """Starts the fold anew."""
        worlds, _ = self.shape
        self.bits = torch.zeros(worlds, len(PURPOSES), dtype=torch.int64)
        self.messages = torch.zeros(worlds, dtype=torch.int64)
        self.lost = torch.zeros(worlds, dtype=torch.int64)
        self.prepared = torch.zeros(worlds, dtype=torch.int64)

    def report(self, state: State, senders: Tensor, period: int, now_s: float, cells: int) -> Tensor:
        """Sends a report of `cells` cells from every marked user; returns who was heard, `[W, U]`."""
        user = torch.nonzero(senders.flatten()).squeeze(-1)
        packets = Packets.of(
            self.key[user] + 4 * period,
            source=user,
            purpose="assistance",
            payload_bits=report_bits(cells),
            offered_s=now_s,
        )
        heard = self._send(self.uplink, packets, now_s, state)
        return torch.zeros(senders.numel(), dtype=torch.bool).index_fill(0, heard, True).view(senders.shape)

    def command(self, state: State, wanted: Tensor, period: int, now_s: float) -> State:
        """Sends the commands of handovers that have been prepared over Xn, `wanted` `[W, U]`."""
        user = torch.nonzero((wanted != NONE).flatten()).squeeze(-1)
        if not len(user):
            return state
        self.prepared += torch.bincount(user // self.shape[1], minlength=self.shape[0])
        command = Packets.of(
            self.key[user] + 4 * period + 1,
            destination=user,
            purpose="signalling",
            payload_bits=COMMAND_BITS,
            offered_s=now_s,
        )
        told = self._send(self.downlink, command, now_s, state)
        target = state.target.flatten().index_copy(0, told, wanted.flatten()[told].int())
        ahead_s = self.config.air_delay_s + now_s - self.config.steps(now_s) * self.config.step_s
        wait = torch.full_like(target, self.config.steps(max(0.0, ahead_s)))
        return replace(state, target=target.view(wanted.shape), command_steps=wait.view(wanted.shape))

    def _send(self, link: LossyLink, packets: Packets, now_s: float, state: State) -> Tensor:
        """Sends a batch that is alone on its link; returns whose packets arrived, numbered world by world."""
        loss = loss_from_sinr(sinr_db(state).flatten())
        if self.config.messages == "t310":
            loss = (state.sinr.flatten() <= 0).to(loss.dtype)
        held = link.offer(replace(link.initial(), loss_probability=loss), packets, now_s)
        _, deliveries = link.advance(held, math.inf, self.stream)
        worlds, users = self.shape
        user = deliveries.source + deliveries.destination  # one of them is the network, 0
        world = user // users
        self.bits.index_put_((world, deliveries.purpose), deliveries.sent_bits, accumulate=True)
        self.messages += torch.bincount(world, minlength=worlds)
        self.lost += torch.bincount(world[~deliveries.delivered], minlength=worlds)
        return user[deliveries.delivered]
