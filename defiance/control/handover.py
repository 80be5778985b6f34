"""Handover: the rules A3 and A5, the learned function and a genie, side by side under one signature.

Each is a `defiance.network.simulate.Policy`: `initial` gives the memory of all users, `decide` maps memory
and observation to the next memory and the wanted cell. Parameters may differ by world (`[W]`), so a grid of
settings runs as one batch.

    rule      RSRP ── L3 filter ── offset, hysteresis, time to trigger ──▶ strongest neighbour, or stay
    learned   RSRP of the last seconds ── model of the serving station ──▶ argmax V if it gains enough,
              inside the envelope of what signal strength allows
    genie     noise-free future ── dynamic programme over the horizon ──▶ its plan
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numba import njit
from torch import Tensor

from defiance.network.measurements import Observation, l3_filter, l3_weight
from defiance.network.scheduling import LOOP
from defiance.network.state import NONE

if TYPE_CHECKING:
    from defiance.control.experience import ValueModel

HISTORY = 20
"""Measurements that the learned function looks back: about two seconds."""

ENVELOPE_PERIODS = 3
"""Measurements whose mean power the envelope of the learned function compares."""

TIE_DB = 1e-3
"""Added to the envelope's limits: reports are whole dB, and rounding shall not decide on a difference that is
exactly a limit."""


# --- the rules ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EventMemory:
    """Memory of a rule.

    Attributes:
        filtered_dbm: L3-filtered RSRP, `[W, U, C]`; nan before the first measurement.
        held_s: how long the event has held for a cell, `[W, U, C]`; negative where it doesn't.
        serving: cell in which it was measured, `[W, U]` int64.
        entered: whether the event holds for any cell, `[W, U]`.
    """

    filtered_dbm: Tensor
    held_s: Tensor
    serving: Tensor
    entered: Tensor


class Event(ABC):
    """What the events have in common.

    An event holds for a cell once its margin has exceeded the hysteresis at every measurement during the
    time to trigger (TS 38.331 clause 5.5.4.1), which is rounded up to whole periods, and until the margin
    falls below minus the hysteresis. It is reported at every measurement while it holds (reports may be
    lost). At the station it has only the measurements whose reports arrived.
    """

    hysteresis_db: Tensor | float
    time_to_trigger_s: Tensor | float
    filter_k: Tensor | float
    placement: Literal["device", "station"]

    @abstractmethod
    def margin_db(self, neighbour_db: Tensor, serving_db: Tensor) -> Tensor:
        """By how much the condition holds, `[W, U, C]`, with Mn + Ocn `[W, U, C]` and Ms `[W, U, 1]`."""

    def initial(self, worlds: int, users: int, cells: int) -> EventMemory:
        """Nothing measured yet."""
        unknown = torch.full((worlds, users, cells), torch.nan)
        nowhere = torch.full((worlds, users), NONE)
        return EventMemory(unknown, torch.full_like(unknown, -1.0), nowhere, nowhere != NONE)

    def decide(self, memory: EventMemory, observation: Observation) -> tuple[EventMemory, Tensor]:
        """The strongest neighbour for which the event is due."""
        memory, due = event_step(memory, observation, self)
        return memory, strongest(memory.filtered_dbm, due)


@dataclass(frozen=True)
class A3(Event):
    """Event A3 of TS 38.331 clause 5.5.4.4: a neighbour becomes offset better than the serving cell.

    Enters when Mn + Ocn - Hys > Ms + Off, leaves when Mn + Ocn + Hys < Ms + Off.

    Attributes:
        offset_db: Off, a number or `[W]`.
        hysteresis_db: Hys, a number or `[W]`.
        time_to_trigger_s: TTT, a number or `[W]`.
        filter_k: k of the L3 filter, a number or `[W]`.
        period_steps: simulator's steps between two decisions.
        placement: `station` sees reports, `device` its own measurements.
    """

    offset_db: Tensor | float
    hysteresis_db: Tensor | float
    time_to_trigger_s: Tensor | float
    filter_k: Tensor | float
    period_steps: int = 5
    placement: Literal["device", "station"] = "device"

    def margin_db(self, neighbour_db: Tensor, serving_db: Tensor) -> Tensor:
        """Mn + Ocn - Ms - Off."""
        return neighbour_db - serving_db - _per_world(self.offset_db)

    def decide(self, memory: EventMemory, observation: Observation) -> tuple[EventMemory, Tensor]:
        """As `Event.decide`; on a CPU in one pass."""
        if observation.rsrp_dbm.device.type == "cpu":
            return _a3_fused(memory, observation, self)
        return super().decide(memory, observation)


@dataclass(frozen=True)
class A5(Event):
    """Event A5 of TS 38.331 clause 5.5.4.6: the serving cell becomes bad, a neighbour is good enough.

    Enters when Ms + Hys < Thresh1 and Mn + Ocn - Hys > Thresh2, leaves when Ms - Hys > Thresh1 or
    Mn + Ocn + Hys < Thresh2.

    Attributes:
        serving_below_dbm: Thresh1, a number or `[W]`.
        neighbour_above_dbm: Thresh2, a number or `[W]`.
        hysteresis_db, time_to_trigger_s, filter_k, period_steps, placement: as in `A3`.
    """

    serving_below_dbm: Tensor | float
    neighbour_above_dbm: Tensor | float
    hysteresis_db: Tensor | float
    time_to_trigger_s: Tensor | float
    filter_k: Tensor | float
    period_steps: int = 5
    placement: Literal["device", "station"] = "device"

    def margin_db(self, neighbour_db: Tensor, serving_db: Tensor) -> Tensor:
        """The lesser of Thresh1 - Ms and Mn + Ocn - Thresh2."""
        worse = _per_world(self.serving_below_dbm) - serving_db
        return torch.minimum(worse, neighbour_db - _per_world(self.neighbour_above_dbm))


def event_step(
    memory: EventMemory, observation: Observation, rule: Event, individual_offset_db: Tensor | float = 0.0
) -> tuple[EventMemory, Tensor]:
    """One measurement of an event: the next memory, and for which cells it is due, `[W, U, C]`.

    The time to trigger runs anew in every serving cell; never for it, nor for a cell that isn't heard.

    Args:
        memory: before.
        observation: RSRP and serving cell.
        rule: the event.
        individual_offset_db: Ocn of every neighbour as its serving cell's users apply it, `[W, U, C]`.
    """
    known, measured = memory.filtered_dbm, observation.rsrp_dbm
    moved = l3_filter(known, measured, _per_world(rule.filter_k), observation.interval_s)
    filtered = torch.where(known.isnan(), measured, moved)
    arrived, serving = _arrived(observation, rule)[..., None], observation.serving.long()
    filtered = torch.where(arrived, filtered, known)
    own = filtered.gather(-1, serving[..., None])
    margin, hysteresis = rule.margin_db(filtered + individual_offset_db, own), _per_world(rule.hysteresis_db)

    held_s = torch.where((serving == memory.serving)[..., None], memory.held_s, -1.0)
    wait_s = _per_world(rule.time_to_trigger_s) - 1e-6
    was_in = held_s >= 0
    inside = torch.where(was_in & (held_s >= wait_s), margin >= -hysteresis, margin > hysteresis)
    inside &= measured > observation.floor_dbm
    now_s = torch.where(inside, torch.where(was_in, held_s + observation.period_s, 0.0), -1.0)
    now_s = now_s.scatter(-1, serving[..., None], -1.0)
    held_s = torch.where(arrived, now_s, held_s)
    due = (held_s >= wait_s) & (held_s >= 0) & arrived
    return EventMemory(filtered, held_s, serving, (held_s >= 0).any(-1)), due


def strongest(level_db: Tensor, due: Tensor) -> Tensor:
    """The best of the cells that are due, `[W, U]` int64; NONE without one."""
    best = level_db.masked_fill(~due, -torch.inf).argmax(-1)
    return torch.where(due.any(-1), best, NONE)


def _arrived(observation: Observation, rule: Event) -> Tensor:
    """Whose measurement the rule has, `[W, U]`."""
    return observation.fresh if rule.placement == "station" else torch.ones_like(observation.fresh)


def _a3_fused(memory: EventMemory, observation: Observation, rule: A3) -> tuple[EventMemory, Tensor]:
    """`event_step` and `strongest` in one pass over users: a study decides thousands of times."""
    measured = observation.rsrp_dbm.contiguous()
    after = EventMemory(*map(torch.empty_like, (measured, measured, memory.serving, memory.entered)))
    wanted = torch.empty_like(after.serving)
    weight = l3_weight(rule.filter_k, observation.interval_s)
    settings = weight, rule.offset_db, rule.hysteresis_db, rule.time_to_trigger_s
    _a3_loop(
        measured.numpy(),
        observation.serving.numpy(),
        observation.fresh.numpy(),
        rule.placement == "station",
        *(value.numpy() for value in vars(memory).values()),
        *(value.numpy() for value in vars(after).values()),
        wanted.numpy(),
        *(_settings(value, len(measured)) for value in settings),
        np.float32(observation.period_s),
        np.float32(observation.floor_dbm),
    )
    return after, wanted


def _settings(value: Tensor | float, worlds: int) -> Any:
    """A rule's setting for every world, `[W]` float32."""
    return np.full(worlds, value, np.float32) if isinstance(value, Tensor) else _same(value, worlds)


@lru_cache(256)
def _same(value: float, worlds: int) -> Any:
    return np.full(worlds, value, np.float32)


@njit(**LOOP)
def _a3_loop(  # type: ignore[no-untyped-def]
    measured, served, fresh, reported, known, was_held, was_serving, was_entered,
    filtered, held, serving, entered, wanted,
    weight, offset_db, hysteresis_db, time_to_trigger_s, period_s, floor_dbm,
):  # fmt: skip
    worlds, users, cells = measured.shape
    outside = np.float32(-1)
    for w in range(worlds):
        to_enter_db, to_stay_db = offset_db[w] + hysteresis_db[w], offset_db[w] - hysteresis_db[w]
        wait_s = max(time_to_trigger_s[w] - np.float32(1e-6), np.float32(0))
        for u in range(users):
            own, wanted[w, u] = served[w, u], NONE
            serving[w, u] = own
            same = own == was_serving[w, u]
            if reported and not fresh[w, u]:
                for c in range(cells):
                    filtered[w, u, c] = known[w, u, c]
                    held[w, u, c] = was_held[w, u, c] if same else outside
                entered[w, u] = same and was_entered[w, u]
                continue
            for c in range(cells):
                before, now = known[w, u, c], measured[w, u, c]
                moved = before + weight[w] * (now - before)
                filtered[w, u, c] = moved if before == before else now
            own_db, inside, ready = filtered[w, u, own], 0, 0
            for c in range(cells):
                before_s = was_held[w, u, c] if same else outside
                margin_db = filtered[w, u, c] - own_db
                far = before_s >= wait_s
                stays = (margin_db >= to_stay_db) if far else (margin_db > to_enter_db)
                stays &= measured[w, u, c] > floor_dbm
                now_s = before_s + period_s if before_s >= 0 else np.float32(0)
                held[w, u, c] = now_s if stays else outside
            held[w, u, own] = outside
            for c in range(cells):
                inside += held[w, u, c] >= 0
                ready += held[w, u, c] >= wait_s
            entered[w, u] = inside > 0
            if ready:
                best_db = np.float32(-np.inf)
                for c in range(cells):
                    if held[w, u, c] >= wait_s and filtered[w, u, c] > best_db:
                        best_db, wanted[w, u] = filtered[w, u, c], c


# --- its learned rival ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LearnedMemory:
    """Memory of the learned function: the last measurements, newest last, `[W, U, HISTORY, C]`."""

    history_dbm: Tensor


@dataclass(frozen=True)
class Learned:
    """Moves when the model of the serving station expects to gain more than a threshold.

    The model maps what was measured in the last two seconds to V `[.., C]`: what being served by each cell
    is worth over the next second or two, as a regret against the best cell (see `control.experience`).

    A model knows the streets that it was trained on; elsewhere it is confidently wrong. So it decides only
    inside an envelope of measured strength (mean power of the last `ENVELOPE_PERIODS` measurements): never
    to a cell much weaker than the serving one, and always to the strongest cell when that is far stronger.

    Attributes:
        model: V of measurements `[n, HISTORY, C]` in dBm and serving cells `[n]`.
        threshold: gain that a handover must promise, in periods of outage; a number or `[W]`.
        placement: `station` sees reports, `device` its own measurements.
        period_steps: steps between two decisions.
        weaker_db: how much weaker than the serving cell a target may be.
        stronger_db: how much stronger the strongest cell must be to be taken whatever the model says.
    """

    model: ValueModel
    threshold: Tensor | float
    placement: Literal["device", "station"]
    period_steps: int
    weaker_db: float = 3.0
    stronger_db: float = 10.0

    def initial(self, worlds: int, users: int, cells: int) -> LearnedMemory:
        """Nothing measured yet."""
        return LearnedMemory(torch.full((worlds, users, HISTORY, cells), torch.nan))

    def decide(self, memory: LearnedMemory, observation: Observation) -> tuple[LearnedMemory, Tensor]:
        """The cell of highest value, if it beats the serving cell's by more than the threshold."""
        history = remembered(memory, observation)
        serving = observation.serving.long()
        own = serving[..., None]
        strength_db = 10 * torch.log10(torch.pow(10.0, history[:, :, -ENVELOPE_PERIODS:] / 10).mean(2))
        strength_db = strength_db - strength_db.gather(-1, own)

        value = self.model.value(history.flatten(0, 1), serving.flatten()).view_as(strength_db)
        best = value.masked_fill(strength_db < -self.weaker_db - TIE_DB, -torch.inf).max(-1)
        gain = best.values - value.gather(-1, own).squeeze(-1)
        threshold = torch.as_tensor(self.threshold)
        promising = gain > (threshold[:, None] if threshold.dim() else threshold)
        strongest = strength_db.max(-1)
        forced = strongest.values > self.stronger_db + TIE_DB
        wanted = torch.where(promising, best.indices, torch.where(forced, strongest.indices, NONE))
        return LearnedMemory(history), torch.where(observation.fresh, wanted, NONE)


def remembered(memory: LearnedMemory, observation: Observation) -> Tensor:
    """The last measurements that arrived, oldest first, `[W, U, HISTORY, C]`; the first one fills it."""
    newest = observation.rsrp_dbm[:, :, None]
    history = torch.where(
        observation.fresh[..., None, None],
        torch.cat([memory.history_dbm[:, :, 1:], newest], 2),
        memory.history_dbm,
    )
    return torch.where(history.isnan(), newest, history)


# --- the bound ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Genie:
    """Follows a plan made from the noise-free future.

    Attributes:
        plan: cell to be served by in every period, `[T, W, U]` int8 (see `genie_plan`).
    """

    plan: Tensor
    period_steps: int = 5
    placement: Literal["device", "station"] = "device"

    def initial(self, worlds: int, users: int, cells: int) -> None:
        """The genie remembers nothing: it knows."""

    def decide(self, memory: None, observation: Observation) -> tuple[None, Tensor]:
        """The plan's cell for the period after the handover's execution."""
        period = min(observation.steps // self.period_steps + 1, len(self.plan) - 1)
        return None, self.plan[period].long()


def hindsight_values(
    reward: Tensor, handover_cost: Tensor | float, discount: float, success: Tensor | float = 1.0
) -> Tensor:
    """What being served by each cell is worth when the future is known: dynamic programming.

        stay = V_{t+1}(c),  go = max_d V_{t+1}(d) - h
        V_t(c) = r_t(c) + gamma ( p_t(c) max(stay, go) + (1 - p_t(c)) stay )

    A handover that is decided in period t serves from t + 1 on and costs h (interruption, signalling). It
    comes about with probability p: who waits until the serving cell has faded is not told to go.

    Args:
        reward: r, `[T, n, C]`.
        handover_cost: h in periods of outage, a number or `[n]`.
        discount: gamma; 1 for the whole horizon.
        success: p, `[T, n, C]`; 1 if request and command are never lost.

    Returns:
        V, `[T, n, C]`.
    """
    cost = torch.as_tensor(handover_cost)
    cost = cost[:, None] if cost.dim() else cost
    values = torch.empty_like(reward)
    told = torch.as_tensor(success).expand_as(reward)
    ahead = torch.zeros_like(reward[0])
    for t in range(len(reward) - 1, -1, -1):
        gain = (ahead.amax(-1, keepdim=True) - cost - ahead).clamp(min=0)
        ahead = reward[t] + discount * (ahead + told[t] * gain)
        values[t] = ahead
    return values


def genie_plan(reward: Tensor, handover_cost: Tensor | float, first: Tensor) -> Tensor:
    """Best cell in every period for one handover cost, `[T, n]` int8, with `reward` as in `hindsight_values`.

    Args:
        reward: noise-free, `[T, n, C]`.
        handover_cost: Lagrangian price of a handover; sweeping it draws the genie's front. A number or `[n]`.
        first: cell at the start, `[n]`.
    """
    values = hindsight_values(reward, handover_cost, 1.0)
    cost = torch.as_tensor(handover_cost)
    plan = torch.empty(reward.shape[:2], dtype=torch.int8)
    cell = first.long()
    for t in range(len(reward)):
        plan[t] = cell.to(torch.int8)
        if t + 1 < len(reward):
            stay = values[t + 1].gather(-1, cell[:, None]).squeeze(-1)
            best = values[t + 1].max(-1)
            cell = torch.where(best.values - cost > stay, best.indices, cell)
    return plan


def _per_world(value: Tensor | float) -> Tensor:
    tensor = torch.as_tensor(value)
    return tensor[:, None, None] if tensor.dim() else tensor
