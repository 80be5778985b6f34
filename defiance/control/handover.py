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

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from defiance.network.measurements import Observation, l3_filter
from defiance.network.state import NONE

if TYPE_CHECKING:
    from defiance.control.experience import ValueModel

HISTORY = 20
"""Measurements that the learned function looks back: about two seconds."""

ENVELOPE_PERIODS = 3
"""Measurements whose mean power the envelope of the learned function compares."""


# --- the rules ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EventMemory:
    """Memory of a rule: L3-filtered RSRP and how long its event has held, `[W, U, C]`; the serving cell."""

    filtered_dbm: Tensor
    triggered_s: Tensor
    serving: Tensor


def no_event(worlds: int, users: int, cells: int) -> EventMemory:
    """Nothing measured yet."""
    unknown = torch.full((worlds, users, cells), torch.nan)
    return EventMemory(unknown, torch.full_like(unknown, -1.0), torch.full((worlds, users), NONE))


@dataclass(frozen=True)
class A3:
    """Event A3 of TS 38.331 clause 5.5.4.4: a neighbour becomes offset better than the serving cell.

    Enters when Mn + Ocn - Hys > Ms + Off, leaves when Mn + Ocn + Hys < Ms + Off, reports once it has held for
    the time to trigger, and again at every measurement while it holds (reports may be lost).

    Attributes:
        offset_db: Off, a number or `[W]`.
        hysteresis_db: Hys, a number or `[W]`.
        time_to_trigger_s: TTT, a number or `[W]`.
        filter_k: k of the L3 filter, a number or `[W]`.
        period_s: time between two decisions.
        period_steps: the same in steps of the simulator.
    """

    offset_db: Tensor | float
    hysteresis_db: Tensor | float
    time_to_trigger_s: Tensor | float
    filter_k: Tensor | float
    period_s: float = 0.1
    period_steps: int = 5
    placement: Literal["device", "station"] = "device"

    def initial(self, worlds: int, users: int, cells: int) -> EventMemory:
        """Nothing measured yet."""
        return no_event(worlds, users, cells)

    def decide(self, memory: EventMemory, observation: Observation) -> tuple[EventMemory, Tensor]:
        """The strongest neighbour that has fulfilled A3 for the time to trigger."""
        memory, due = a3_step(memory, observation, self)
        return memory, strongest(memory.filtered_dbm, due)


@dataclass(frozen=True)
class A5:
    """Event A5 of TS 38.331 clause 5.5.4.6: the serving cell becomes bad, a neighbour is good enough.

    Enters when Ms + Hys < Thresh1 and Mn + Ocn - Hys > Thresh2, leaves when Ms - Hys > Thresh1 or
    Mn + Ocn + Hys < Thresh2; time to trigger, filter and periods as in `A3`.

    Attributes:
        serving_below_dbm: Thresh1, a number or `[W]`.
        neighbour_above_dbm: Thresh2, a number or `[W]`.
    """

    serving_below_dbm: Tensor | float
    neighbour_above_dbm: Tensor | float
    hysteresis_db: Tensor | float
    time_to_trigger_s: Tensor | float
    filter_k: Tensor | float
    period_s: float = 0.1
    period_steps: int = 5
    placement: Literal["device", "station"] = "device"

    def initial(self, worlds: int, users: int, cells: int) -> EventMemory:
        """Nothing measured yet."""
        return no_event(worlds, users, cells)

    def decide(self, memory: EventMemory, observation: Observation) -> tuple[EventMemory, Tensor]:
        """The strongest neighbour that has fulfilled A5 for the time to trigger."""
        memory, due = a5_step(memory, observation, self)
        return memory, strongest(memory.filtered_dbm, due)


def a3_step(
    memory: EventMemory, observation: Observation, rule: A3, individual_offset_db: Tensor | float = 0.0
) -> tuple[EventMemory, Tensor]:
    """One measurement of event A3: the next memory, and for which cells it is due, `[W, U, C]`.

    Args:
        memory: before.
        observation: RSRP and serving cell.
        rule: offset, hysteresis and times.
        individual_offset_db: Ocn of every neighbour as its serving cell's users apply it, `[W, U, C]`.
    """
    filtered, own = _filtered(memory, observation, rule)
    margin = filtered + individual_offset_db - own - _per_world(rule.offset_db)
    hysteresis = _per_world(rule.hysteresis_db)
    return _triggered(memory, observation, rule, filtered, margin - hysteresis > 0, margin + hysteresis >= 0)


def a5_step(memory: EventMemory, observation: Observation, rule: A5) -> tuple[EventMemory, Tensor]:
    """One measurement of event A5: the next memory, and for which cells it is due, `[W, U, C]`."""
    filtered, own = _filtered(memory, observation, rule)
    hysteresis = _per_world(rule.hysteresis_db)
    worse = own - _per_world(rule.serving_below_dbm)
    better = filtered - _per_world(rule.neighbour_above_dbm)
    enters = (worse + hysteresis < 0) & (better - hysteresis > 0)
    stays = (worse - hysteresis <= 0) & (better + hysteresis >= 0)
    return _triggered(memory, observation, rule, filtered, enters, stays)


def strongest(level_db: Tensor, due: Tensor) -> Tensor:
    """The best of the cells that are due, `[W, U]` int64; NONE without one."""
    best = level_db.masked_fill(~due, -torch.inf).argmax(-1)
    return torch.where(due.any(-1), best, NONE)


def _filtered(memory: EventMemory, observation: Observation, rule: A3 | A5) -> tuple[Tensor, Tensor]:
    """L3-filtered RSRP of all cells `[W, U, C]` and of the serving one `[W, U, 1]`."""
    measured, k = observation.rsrp_dbm, _per_world(rule.filter_k)
    interval_s = rule.period_s if observation.interval_s is None else observation.interval_s
    filtered = torch.where(
        memory.filtered_dbm.isnan(), measured, l3_filter(memory.filtered_dbm, measured, k, interval_s)
    )
    return filtered, filtered.gather(-1, observation.serving.long()[..., None])


def _triggered(
    memory: EventMemory,
    observation: Observation,
    rule: A3 | A5,
    filtered_dbm: Tensor,
    enters: Tensor,
    stays: Tensor,
) -> tuple[EventMemory, Tensor]:
    """Runs the time to trigger, anew in every serving cell; never for the serving cell itself."""
    serving = observation.serving.long()
    held_s = torch.where((serving == memory.serving)[..., None], memory.triggered_s, -1.0)
    was_in = held_s >= 0
    inside = torch.where(was_in, stays, enters)
    held_s = torch.where(inside, torch.where(was_in, held_s + rule.period_s, 0.0), -1.0)
    held_s = held_s.scatter(-1, serving[..., None], -1.0)
    due = (held_s >= _per_world(rule.time_to_trigger_s) - 1e-6) & (held_s >= 0)
    return EventMemory(filtered_dbm, held_s, serving), due


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
        newest = observation.rsrp_dbm[:, :, None]
        history = torch.where(
            observation.fresh[..., None, None],
            torch.cat([memory.history_dbm[:, :, 1:], newest], 2),
            memory.history_dbm,
        )
        history = torch.where(history.isnan(), newest, history)
        serving = observation.serving.long()
        own = serving[..., None]
        strength_db = 10 * torch.log10(torch.pow(10.0, history[:, :, -ENVELOPE_PERIODS:] / 10).mean(2))
        strength_db = strength_db - strength_db.gather(-1, own)

        value = self.model.value(history.flatten(0, 1), serving.flatten()).view_as(strength_db)
        best = value.masked_fill(strength_db < -self.weaker_db, -torch.inf).max(-1)
        gain = best.values - value.gather(-1, own).squeeze(-1)
        threshold = torch.as_tensor(self.threshold)
        promising = gain > (threshold[:, None] if threshold.dim() else threshold)
        strongest = strength_db.max(-1)
        forced = strongest.values > self.stronger_db
        wanted = torch.where(promising, best.indices, torch.where(forced, strongest.indices, NONE))
        return LearnedMemory(history), torch.where(observation.fresh, wanted, NONE)


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
