"""The A3 rule by hand, the learned function around a stub model, the genie against brute force."""

from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from worlds import RADIO, corridor, gain_for_snr

from defiance.control.handover import (
    A3,
    HISTORY,
    Genie,
    Learned,
    event_step,
    genie_plan,
    hindsight_values,
    strongest,
)
from defiance.network.measurements import Observation
from defiance.network.simulate import simulate
from defiance.network.state import NONE
from defiance.seeding import stream


def observed(
    rsrp_dbm: list[list[float]], serving: int = 0, steps: int = 5, fresh: bool = True
) -> Observation:
    """One measurement of one user per world, `[W, 1, C]`."""
    levels = torch.tensor(rsrp_dbm)[:, None]
    shape = levels.shape[:2]
    return Observation(levels, torch.full(shape, serving, dtype=torch.int32), torch.full(shape, fresh), steps)


def course(rule: A3, neighbour_db: list[float], serving: int = 0, period_s: float = 0.1) -> list[int]:
    """What the rule wants while a neighbour goes through these levels above the serving cell's -90 dBm."""
    memory, wanted = rule.initial(1, 1, 2), []
    for level in neighbour_db:
        cells = [-90.0, -90.0 + level] if serving == 0 else [-90.0 + level, -90.0]
        memory, cell = rule.decide(memory, replace(observed([cells], serving), period_s=period_s))
        wanted.append(int(cell))
    return wanted


# --- the rule ---


def test_a3_enters_above_offset_plus_hysteresis_and_leaves_below_their_difference() -> None:
    """Off 3, Hys 1: enters beyond 4 dB, stays until below 2 dB (TS 38.331 clause 5.5.4.4)."""
    rule = A3(3.0, 1.0, 0.0, 0.0)
    levels = [3.9, 4.0, 4.1, 3.0, 2.0, 1.9, 3.9, 4.1]
    assert course(rule, levels) == [NONE, NONE, 1, 1, 1, NONE, NONE, 1]


def test_a3_waits_for_the_time_to_trigger() -> None:
    """100 ms measurements, TTT 200 ms: the third in a row; leaving starts it anew."""
    rule = A3(3.0, 1.0, 0.2, 0.0)
    assert course(rule, [5, 5, 5, 5]) == [NONE, NONE, 1, 1]
    assert course(rule, [5, 3, 3, 5, 5]) == [NONE] * 5  # the entry condition must hold all the time
    assert course(rule, [5, 5, 5, 3, 2, 1.9]) == [
        NONE,
        NONE,
        1,
        1,
        1,
        NONE,
    ]  # once it is due, the leaving one
    assert course(rule, [5, 1, 5, 5, 5]) == [NONE, NONE, NONE, NONE, 1]
    assert course(A3(3.0, 1.0, 0.25, 0.0), [5] * 5) == [NONE, NONE, NONE, 1, 1]
    assert course(A3(3.0, 1.0, 0.24, 0.0), [5] * 4, period_s=0.12) == [NONE, NONE, 1, 1]


def test_a3_filters_before_it_compares() -> None:
    """k = 4 at 100 ms: a = 1 - sqrt(1/2) = 0.293; of a step of 10 dB 2.93, 5, 6.46, 7.5 dB have passed."""
    levels = [0.0, 10.0, 10.0, 10.0, 10.0]
    assert course(A3(6.0, 0.0, 0.0, 4.0), levels) == [NONE, NONE, NONE, 1, 1]
    assert course(A3(4.9, 0.0, 0.0, 4.0), levels) == [NONE, NONE, 1, 1, 1]
    assert course(A3(5.1, 0.0, 0.0, 4.0), levels) == [NONE, NONE, NONE, 1, 1]
    assert course(A3(9.9, 0.0, 0.0, 0.0), levels) == [NONE, 1, 1, 1, 1]


def test_a3_at_the_station_knows_only_the_reports_that_arrived() -> None:
    rule = A3(3.0, 0.0, 0.1, 4.0, placement="station")
    memory, wanted = rule.decide(rule.initial(1, 1, 2), observed([[-90.0, -80.0]]))
    lost, wanted = rule.decide(memory, observed([[-90.0, -95.0]], fresh=False))
    assert wanted.item() == NONE
    assert torch.equal(lost.filtered_dbm, memory.filtered_dbm) and torch.equal(lost.held_s, memory.held_s)
    _, wanted = rule.decide(lost, observed([[-90.0, -80.0]]))
    assert wanted.item() == 1


def test_a_cell_that_is_not_heard_triggers_nothing() -> None:
    """Its level is the floor, however bad the serving cell is; conditional handover has such offsets."""
    for level, cell in ((-128.0, NONE), (-127.9, 1)):
        rule = A3(-6.0, 0.0, 0.0, 0.0)
        _, wanted = rule.decide(rule.initial(1, 1, 2), observed([[-126.0, level]]))
        assert wanted.item() == cell


@given(
    seed=st.integers(0, 10**6),
    worlds=st.integers(1, 3),
    cells=st.integers(1, 20),
    placement=st.sampled_from(("device", "station")),
)
def test_the_fused_rule_is_the_tensor_program(
    seed: int, worlds: int, cells: int, placement: Literal["device", "station"]
) -> None:
    rng = torch.Generator().manual_seed(seed)
    users = 5

    def drawn(*values: float) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (worlds,), generator=rng)]

    rule = A3(
        drawn(-1.0, 0.0, 3.0), drawn(0.0, 1.0), drawn(0.0, 0.1, 0.25), drawn(0.0, 4.0), placement=placement
    )
    memory = rule.initial(worlds, users, cells)
    for _ in range(8):
        observation = Observation(
            -110 + 8 * torch.randn(worlds, users, cells, generator=rng),
            torch.randint(cells, (worlds, users), generator=rng, dtype=torch.int32),
            torch.rand(worlds, users, generator=rng) < 0.7,
            steps=0,
            interval_s=0.1 * int(torch.randint(2, (), generator=rng)),
            floor_dbm=-120.0,
        )
        expected, due = event_step(memory, observation, rule)
        memory, wanted = rule.decide(memory, observation)
        assert torch.allclose(memory.filtered_dbm, expected.filtered_dbm, rtol=0, atol=1e-4, equal_nan=True)
        assert torch.equal(memory.held_s, expected.held_s)
        assert torch.equal(memory.entered, expected.entered) and torch.equal(memory.serving, expected.serving)
        assert torch.equal(wanted, strongest(expected.filtered_dbm, due))


def test_the_first_measurement_fills_the_filter() -> None:
    assert course(A3(3.0, 0.0, 0.0, 19.0), [4.0]) == [1]


def test_a3_picks_the_strongest_of_those_that_are_due() -> None:
    rule = A3(1.0, 0.0, 0.1, 0.0)
    memory = rule.initial(1, 1, 3)
    memory, wanted = rule.decide(memory, observed([[-90.0, -85.0, -95.0]]))
    assert wanted.item() == NONE
    memory, wanted = rule.decide(memory, observed([[-90.0, -85.0, -80.0]]))
    assert wanted.item() == 1  # cell 2 is stronger, but new
    memory, wanted = rule.decide(memory, observed([[-90.0, -85.0, -80.0]]))
    assert wanted.item() == 2


def test_a3_starts_anew_with_the_serving_cell() -> None:
    rule = A3(1.0, 0.0, 0.1, 0.0)
    levels = [[-90.0, -85.0, -80.0]]
    memory, wanted = rule.decide(rule.initial(1, 1, 3), observed(levels, serving=0))
    memory, wanted = rule.decide(memory, observed(levels, serving=1))
    assert wanted.item() == NONE
    memory, wanted = rule.decide(memory, observed(levels, serving=1))
    assert wanted.item() == 2
    memory, wanted = rule.decide(memory, observed(levels, serving=2))
    assert wanted.item() == NONE


def test_a3_never_wants_the_serving_cell_even_at_a_negative_offset() -> None:
    assert course(A3(-3.0, 0.0, 0.0, 0.0), [-5.0, -2.0, -2.0]) == [NONE, 1, 1]
    assert course(A3(-3.0, 0.0, 0.0, 0.0), [-2.0], serving=1) == [0]


def test_settings_per_world() -> None:
    rule = A3(
        torch.tensor([3.0, 6.0, 3.0, 3.0]),
        torch.tensor([0.0, 0.0, 2.0, 0.0]),
        torch.tensor([0.0, 0.0, 0.0, 0.1]),
        torch.tensor([0.0, 0.0, 0.0, 0.0]),
    )
    memory, first = rule.decide(rule.initial(4, 1, 2), observed([[-90.0, -86.0]] * 4))
    _, second = rule.decide(memory, observed([[-90.0, -86.0]] * 4))
    assert first.flatten().tolist() == [1, NONE, NONE, NONE]
    assert second.flatten().tolist() == [1, NONE, NONE, 1]


# --- its learned rival ---


@dataclass(frozen=True)
class NewestLevel:
    """V is the newest measurement; keeps what it was asked."""

    asked: list[tuple[Tensor, Tensor]]

    def value(self, history_dbm: Tensor, serving: Tensor) -> Tensor:
        self.asked.append((history_dbm, serving))
        return history_dbm[:, -1] / 10.0


def test_learned_moves_when_the_gain_beats_the_threshold() -> None:
    learned = Learned(NewestLevel([]), torch.tensor([0.4, 0.6]), "device", 5)
    memory = learned.initial(2, 1, 3)
    _, wanted = learned.decide(memory, observed([[-90.0, -85.0, -95.0]] * 2))
    assert wanted.flatten().tolist() == [1, NONE]
    _, wanted = learned.decide(memory, observed([[-90.0, -85.0, -95.0]] * 2, serving=1))
    assert wanted.flatten().tolist() == [NONE, NONE]
    _, wanted = replace(learned, threshold=10.0).decide(memory, observed([[-90.0, -81.0, -95.0]] * 2))
    assert wanted.flatten().tolist() == [NONE, NONE]


@dataclass(frozen=True)
class Always:
    """V of three cells, whatever was measured."""

    levels: tuple[float, float, float]

    def value(self, history_dbm: Tensor, serving: Tensor) -> Tensor:
        return torch.tensor(self.levels).expand(len(history_dbm), 3)


def test_learned_stays_inside_the_envelope_of_measured_strength() -> None:
    """Serving cell 0: not to one 4 dB weaker, always to one 11 dB stronger, in between as the model says."""

    def wanted(values: tuple[float, float, float], levels: list[float]) -> int:
        learned = Learned(Always(values), 0.5, "device", 5)
        return int(learned.decide(learned.initial(1, 1, 3), observed([levels]))[1].item())

    eager, content = (-3.0, 0.0, -1.0), (0.0, -3.0, -3.0)
    assert wanted(eager, [-90.0, -92.0, -100.0]) == 1
    assert wanted(eager, [-90.0, -94.0, -92.0]) == 2  # the best that is allowed
    assert wanted(eager, [-90.0, -94.0, -100.0]) == NONE
    assert wanted(content, [-90.0, -81.0, -100.0]) == NONE
    assert wanted(content, [-90.0, -79.0, -75.0]) == 2
    assert wanted(eager, [-90.0, -79.0, -75.0]) == 1  # both far stronger: the model chooses


def test_the_envelope_compares_mean_power_of_three_measurements() -> None:
    learned = Learned(Always((0.0, -3.0, -3.0)), 0.5, "device", 5)
    memory, found = learned.initial(1, 1, 3), []
    for level in (-100.0, -100.0, -100.0, -70.0, -100.0, -100.0, -100.0):
        memory, wanted = learned.decide(memory, observed([[-84.9, level, -100.0]]))
        found.append(int(wanted.item()))
    # -70 dBm among two of -100 is -74.8 dBm on average: 10.1 dB above the serving cell
    assert found == [NONE, NONE, NONE, 1, 1, 1, NONE]


def test_learned_sees_the_last_two_seconds_and_the_serving_cell() -> None:
    model = NewestLevel([])
    learned = Learned(model, 0.0, "device", 5)
    memory = learned.initial(1, 1, 2)
    for t in range(HISTORY + 3):
        memory, _ = learned.decide(memory, observed([[-100.0 + t, -90.0]], serving=1))
    first, serving = model.asked[0]
    assert first.shape == (1, HISTORY, 2) and bool((first[0, :, 0] == -100.0).all())  # nothing older known
    assert serving.tolist() == [1]
    assert model.asked[-1][0][0, :, 0].tolist() == [-100.0 + t for t in range(3, HISTORY + 3)]


def test_learned_stays_without_a_report_and_does_not_remember_it() -> None:
    learned = Learned(NewestLevel([]), 0.0, "station", 6)
    memory, _ = learned.decide(learned.initial(1, 1, 2), observed([[-90.0, -95.0]]))
    after, wanted = learned.decide(memory, observed([[-128.0, -60.0]], fresh=False))
    assert wanted.item() == NONE
    assert torch.equal(after.history_dbm, memory.history_dbm)


# --- the bound ---


def brute_force(
    reward: Tensor, cost: float, discount: float, cell: int
) -> tuple[float, list[tuple[int, ...]]]:
    """Best worth of a course that starts at `cell`, and all courses that reach it; `reward` `[T, C]`."""
    periods, cells = reward.shape
    worth = {}
    for rest in product(range(cells), repeat=periods - 1):
        plan = (cell, *rest)
        gain = sum(discount**t * float(reward[t, c]) for t, c in enumerate(plan))
        worth[plan] = gain - sum(
            cost * discount ** (t + 1) for t, (a, b) in enumerate(pairwise(plan)) if a != b
        )
    best = max(worth.values())
    return best, [plan for plan, value in worth.items() if value > best - 1e-6]


instances = {
    "seed": st.integers(0, 10**6),
    "periods": st.integers(1, 5),
    "cells": st.integers(1, 3),
    "cost": st.sampled_from([0.0, 0.1, 0.5, 2.0]),
}


def rewards(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(**instances, discount=st.sampled_from([1.0, 0.95, 0.5]))
def test_hindsight_is_the_best_of_all_courses(
    seed: int, periods: int, cells: int, cost: float, discount: float
) -> None:
    reward = rewards(seed, periods, 2, cells)
    values = hindsight_values(reward, cost, discount)
    for t, user, cell in product(range(periods), range(2), range(cells)):
        best, _ = brute_force(reward[t:, user], cost, discount, cell)
        assert values[t, user, cell].item() == pytest.approx(best, abs=1e-6)


@given(**instances)
def test_the_genies_plan_is_the_best_of_all_plans(seed: int, periods: int, cells: int, cost: float) -> None:
    reward = rewards(seed, periods, cells, cells)
    plan = genie_plan(reward, cost, torch.arange(cells))
    for user in range(cells):
        _, best_plans = brute_force(reward[:, user], cost, 1.0, user)
        assert tuple(plan[:, user].tolist()) in best_plans


def worth(reward: Tensor, plan: Tensor, cost: float) -> Tensor:
    """Reward minus handovers of every user, `[n]`."""
    gained = reward.gather(-1, plan.long()[..., None]).squeeze(-1).sum(0)
    return gained - cost * (plan.diff(dim=0) != 0).sum(0)


def test_a_plan_is_never_worse_than_staying_and_dearer_handovers_are_fewer() -> None:
    reward = rewards(0, 30, 20, 6)
    first = torch.arange(20) % 6
    count = []
    for cost in (0.0, 0.1, 0.3, 1.0, 3.0, 100.0):
        plan = genie_plan(reward, cost, first)
        stay = first.expand(30, 20)
        assert bool((worth(reward, plan, cost) >= worth(reward, stay, cost) - 1e-9).all())
        count.append((plan.diff(dim=0) != 0).sum(0))
    for cheap, dear in pairwise(count):
        assert bool((dear <= cheap).all())
    assert count[0].sum() > 400 and count[-1].sum() == 0


def test_costs_per_user_are_costs_one_by_one() -> None:
    reward = rewards(1, 20, 3, 4)
    cost = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)
    values = hindsight_values(reward, cost, 0.9)
    plan = genie_plan(reward, cost, torch.zeros(3))
    for user in range(3):
        mine = reward[:, user : user + 1]
        torch.testing.assert_close(values[:, user : user + 1], hindsight_values(mine, float(cost[user]), 0.9))
        assert torch.equal(plan[:, user : user + 1], genie_plan(mine, float(cost[user]), torch.zeros(1)))


def test_the_network_follows_the_genie() -> None:
    """The cell of the plan serves at the period's end: decided at its start, executed within it."""
    world = corridor([[gain_for_snr(20.0)] * 3] * 2, users=2)
    plan = torch.zeros(14, 1, 2, dtype=torch.int8)
    plan[4:, 0, 0] = 1
    plan[8:, 0, 0] = 2
    plan[6:, 0, 1] = 2
    outcome = simulate(world, RADIO, Genie(plan), stream(1, "m"), duration_s=1.2, warm_up_s=0.0, record=True)
    assert torch.equal(outcome.log.serving, plan[1:13])
    assert outcome.state.handovers.tolist() == [[2, 1]]
