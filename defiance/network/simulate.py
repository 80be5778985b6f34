"""A run under a policy: the network measures, the policy decides, links carry it, the network executes.

See `defiance.network.loop` for what happens in a period.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.network import reference
from defiance.network.failures import FailureFold, Failures
from defiance.network.loop import Loop, Placement
from defiance.network.measurements import Observation
from defiance.network.settings import RadioConfig
from defiance.network.signalling import NO_BULK, BulkTraffic
from defiance.network.state import NONE, State, sinr_db
from defiance.network.world import World
from defiance.scene.streets import ROUTE_SPACING_M
from defiance.seeding import Stream


class Policy(Protocol):
    """Who decides on handovers: a rule, its learned rival or the genie (see `defiance.control.handover`)."""

    @property
    def placement(self) -> Placement:
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
    def entered(self) -> Tensor:
        """Whether the condition holds for any cell, `[W, U]`."""


@dataclass(frozen=True)
class Log:
    """What a run recorded per period, time first.

    Attributes:
        rsrp_dbm: what the decider saw, `[T, W, U, C]` int8 in whole dB.
        serving: `[T, W, U]` int16.
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
        command_delay_s: from the time at which a report was due to the arrival of the command that it led to,
            on average, `[W]`; nan without commands.
        bulk, bulk_delay_s: other payloads of users that arrived, and how long they took on average, `[W]`.
        wire_delay_s: how long other payloads took to leave their station's wire, on average, `[W]`.
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
    command_delay_s: Tensor
    bulk: Tensor
    bulk_delay_s: Tensor
    wire_delay_s: Tensor
    decisions: Tensor
    failures: Failures
    log: Log | None


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
    bulk: BulkTraffic = NO_BULK,
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
        bulk: payloads beside the users' own traffic; they need `messages = "queued"`.

    Raises:
        DefianceError: a procedure doesn't fit between two decisions, or routes end before the run does.
    """
    worlds, users, cells = world.shape
    loop = Loop(
        world,
        config,
        stream,
        placement=policy.placement,
        period_steps=policy.period_steps,
        conditional=isinstance(policy, ConditionalPolicy),
        bulk=bulk,
    )
    course = loop.begin()
    memory = policy.initial(worlds, users, cells)
    enters = isinstance(memory, Triggering)
    triggered = course.wanted != NONE
    fold = FailureFold(worlds, users, config)
    counting_from = math.ceil(warm_up_s / loop.period_s)
    periods = counting_from + max(1, round(duration_s / loop.period_s))
    check_routes(world, periods * loop.period_s)
    frames: list[tuple[Tensor, ...]] = []
    start, failures_before = course.state.clone(), fold.failures.clone()
    for period in range(periods):
        if period == counting_from:
            start, failures_before = course.state.clone(), fold.failures.clone()
            loop.messenger.reset()
        course, observation = loop.advance(course)
        fold.add(course.state, triggered=triggered, refused=course.refused, target=course.target)
        memory, wanted = policy.decide(memory, observation)
        course, wanted = loop.ask(course, wanted)
        triggered = wanted != NONE
        if enters:
            triggered |= memory.entered
        if record and period >= counting_from:
            frames.append(_frame(world, course.state, observation, start))
        if advance is not None:
            advance(policy.period_steps)
    messenger = loop.messenger
    return Outcome(
        state=_since(start, course.state),
        duration_s=(periods - counting_from) * loop.period_s,
        bits=messenger.bits,
        messages=messenger.messages,
        lost=messenger.lost,
        prepared=messenger.prepared,
        command_delay_s=messenger.command_delay_s / messenger.commands,
        bulk=messenger.bulk,
        bulk_delay_s=messenger.bulk_delay_s / messenger.bulk,
        wire_delay_s=messenger.wire_delay_s / messenger.wire,
        decisions=torch.full((worlds,), (periods - counting_from) * users),
        failures=fold.failures.since(failures_before),
        log=Log(*(torch.stack(column) for column in zip(*frames, strict=True))) if frames else None,
    )


def check_routes(world: World, lasts_s: float) -> None:
    """Refuses a run whose users would stand at the end of their routes while their fading goes on."""
    route_m = (world.route_m.shape[2] - 1) * ROUTE_SPACING_M
    fastest_mps = float(world.speed_mps.max()) if world.speed_mps.numel() else 0.0
    if fastest_mps * lasts_s > route_m + ROUTE_SPACING_M:
        raise DefianceError(
            f"routes end after {route_m / fastest_mps:.1f} s, but the run lasts {lasts_s:.1f} s;"
            f" draw worlds with duration_s={math.ceil(lasts_s)} or more"
        )


def _frame(world: World, state: State, observation: Observation, start: State) -> tuple[Tensor, ...]:
    """A period's entries of a `Log`."""
    quality = sinr_db(state)
    return (
        observation.rsrp_dbm.clamp(min=-128).round().to(torch.int8),
        state.serving.to(torch.int16),
        observation.fresh,
        torch.where(quality.isfinite(), quality, torch.nan).half(),
        state.outage_steps - start.outage_steps,
        reference.position_m(world, state.travelled_m).float(),
    )


COUNTS = (
    "outage_steps",
    "interrupted_steps",
    "handovers",
    "ping_pongs",
    "link_failures",
    "handover_failures",
    "searches_failed",
    "bits",
    "packets",
    "delay_s",
    "load_steps",
)


def _since(start: State, state: State) -> State:
    return replace(state, **{name: getattr(state, name) - getattr(start, name) for name in COUNTS})
