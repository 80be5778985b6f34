"""What the study `worth` tunes and tests: the rule, the learned function, the genie.

Every part is a function of the configuration, its key and nothing else, so parts run in any order and in
any process; each is kept on disk under its own key.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defiance.control.experience import Target, rewards
from defiance.control.handover import A3, Genie, Learned, genie_plan
from defiance.network.loop import PERIOD_STEPS
from defiance.network.reference import path_gain_db, position_m
from defiance.network.simulate import Policy, simulate
from defiance.network.world import World
from defiance.parts import Parts
from defiance.seeding import stream
from defiance.studies.worth.settings import Config, Scenario, caps, handover_limit
from defiance.studies.worth.training import Model, model_for
from defiance.studies.worth.worlds import held_out, per_world, scene_of, worlds_of

OFFSETS_DB = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
TIMES_TO_TRIGGER_S = (0.0, 0.1, 0.2)
FILTERS_K = (0.0, 2.0, 4.0)
HYSTERESES_DB = (0.0, 1.0, 2.0)
THRESHOLDS = (0.35, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4)
GENIE_COSTS = (0.02, 0.1, 0.3, 0.6, 1.0, 2.0, 4.0)
A3_OPERATIONS_PER_CELL = 8
"""Operations of `event_step` per cell and measurement: filter 3, margin 2, comparisons 2, timer 1."""


def _means(values: list[float], groups: int) -> list[float]:
    return [float(x) for x in np.reshape(values, (groups, -1)).mean(1)]


@dataclass(frozen=True)
class Sweep:
    """Settings of one policy with what they reach on the validation worlds."""

    settings: list[list[float]]
    handovers: list[float]
    outage: list[float]

    def under(self, cap: float) -> int:
        """The setting of least outage whose handovers per user-minute stay at the cap; else the fewest."""
        allowed = [i for i, h in enumerate(self.handovers) if h <= cap]
        if not allowed:
            return int(np.argmin(self.handovers))
        return min(allowed, key=lambda i: self.outage[i])

    def __add__(self, other: Sweep) -> Sweep:
        return Sweep(
            self.settings + other.settings, self.handovers + other.handovers, self.outage + other.outage
        )


def sweep(
    config: Config,
    scenario: Scenario,
    settings: list[list[float]],
    policy: Callable[[Tensor], Policy],
    chunk: int,
) -> Sweep:
    """Runs a policy under every setting on the validation worlds, several settings at a time."""
    worlds = worlds_of(config, scenario, "validation", tuple(range(config.validation_worlds)))
    found = Sweep([], [], [])
    for start in range(0, len(settings), chunk):
        part = settings[start : start + chunk]
        columns = torch.tensor(part).T.repeat_interleave(config.validation_worlds, 1)
        repeated = worlds.repeat(len(part))
        outcome = simulate(
            repeated,
            config.radio,
            policy(columns),
            stream(0, "messages"),
            duration_s=config.validation_s,
        )
        rates = per_world(outcome, repeated, config.radio)
        found = found + Sweep(
            part,
            _means(rates["handovers_per_user_minute"], len(part)),
            _means(rates["outage_share"], len(part)),
        )
    return found


def test(config: Config, scenario: Scenario, policy: Policy, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Runs a policy on the test worlds; one number per seed."""
    worlds = worlds_of(config, scenario, "test", seeds)
    outcome = simulate(worlds, config.radio, policy, stream(0, "messages"), duration_s=config.test_s)
    return per_world(outcome, worlds, config.radio)


def rule(config: Config, columns: Tensor | list[float]) -> A3:
    """The A3 rule from (k, TTT, offset, hysteresis), numbers or `[W]` each."""
    k, time_to_trigger_s, offset_db, hysteresis_db = columns
    return A3(
        offset_db=offset_db,
        hysteresis_db=hysteresis_db,
        time_to_trigger_s=time_to_trigger_s,
        filter_k=k,
        period_steps=PERIOD_STEPS["device"],
    )


def tune_and_test_a3(config: Config, scenario: Scenario, seeds: tuple[int, ...]) -> dict[str, Any]:
    """The rule at its best under each cap: a grid over all parameters, then a finer one around the best."""
    began = time.process_time()
    coarse = [[k, ttt, off, 0.0] for k in FILTERS_K for ttt in TIMES_TO_TRIGGER_S for off in OFFSETS_DB]
    found = sweep(config, scenario, coarse, lambda c: rule(config, c), 27)
    fine = []
    for cap in caps(config, scenario):
        k, ttt, off, _ = found.settings[found.under(cap)]
        fine += [
            [near_k, ttt, max(0.0, off + step), hys]
            for near_k in {max(0.0, k - 1), k, k + 1}
            for step in (-0.25, 0.0, 0.25)
            for hys in HYSTERESES_DB
        ]
    fine = [s for s in {tuple(s): s for s in fine}.values() if s not in coarse]
    found = found + sweep(config, scenario, fine, lambda c: rule(config, c), 27)
    decisions = len(found.settings) * config.validation_worlds * config.validation_users * config.validation_s
    decisions /= PERIOD_STEPS["device"] * config.radio.step_s
    cells = len(scene_of(config, scenario.city, scenario.map).cell_site)
    return {
        "sweep": [found.settings, found.handovers, found.outage],
        "tuning_operations": decisions * cells * A3_OPERATIONS_PER_CELL,
        "cpu_s": time.process_time() - began,
        "caps": [
            {
                "cap": cap,
                "setting": found.settings[(best := found.under(cap))],
                "validation_handovers": found.handovers[best],
                "validation_outage": found.outage[best],
                "test": test(config, scenario, rule(config, found.settings[best]), seeds),
            }
            for cap in caps(config, scenario)
        ],
    }


def learned(
    config: Config, scenario: Scenario, model: Model, parts: Parts, threshold: Tensor | float
) -> Learned:
    """The learned function with a trained model and a threshold."""
    parameters = parts.get_tensors(model.key)
    assert parameters is not None
    shell = model_for(scene_of(config, scenario.city, scenario.map), parameters)
    return Learned(shell, threshold, model.placement, PERIOD_STEPS[model.placement])  # type: ignore[arg-type]


def tune_and_test_learned(
    config: Config,
    scenario: Scenario,
    model: Model,
    rule_handovers: dict[float, float],
    parts: Parts,
    seeds: tuple[int, ...],
) -> dict[str, Any]:
    """The learned function, its threshold tuned on validation worlds to hand over no more than the rule."""
    began = time.process_time()
    found = sweep(
        config,
        scenario,
        [[t] for t in THRESHOLDS],
        lambda c: learned(config, scenario, model, parts, c[0]),
        8,
    )
    tuned_cpu_s = time.process_time() - began
    results, tested = [], {}
    for cap in caps(config, scenario):
        best = found.under(handover_limit(cap, rule_handovers[cap]))
        if best not in tested:
            policy = learned(config, scenario, model, parts, found.settings[best][0])
            tested[best] = test(config, scenario, policy, seeds)
        results.append(
            {
                "cap": cap,
                "setting": found.settings[best],
                "validation_handovers": found.handovers[best],
                "validation_outage": found.outage[best],
                "test": tested[best],
            }
        )
    return {"sweep": [found.settings, found.handovers, found.outage], "cpu_s": tuned_cpu_s, "caps": results}


def noise_free_rewards(config: Config, scenario: Scenario, worlds: World, duration_s: float) -> Tensor:
    """Rewards of every cell in every period without fading, `[T, W * U, C]`; others' load is frozen."""
    period_s = PERIOD_STEPS["device"] * config.radio.step_s
    periods = int((duration_s + 3) / period_s)
    state_m = torch.zeros(worlds.shape[:2], dtype=torch.float64)
    stopped_s = torch.zeros(worlds.shape[:2])
    found = []
    load = (
        (worlds.background_load + config.foreground_load).clamp(max=1).repeat_interleave(worlds.shape[1], 0)
    )
    target = Target(rate_weight=config.training.rate_weight)
    scale = config.radio.tx_power_dbm - 10 * np.log10(config.radio.resource_elements)
    for _ in range(periods):
        gain = path_gain_db(worlds, position_m(worlds, state_m)).flatten(0, 1)
        found.append(rewards((gain + scale)[None], load, config.radio, target)[0].half())
        for _ in range(PERIOD_STEPS["device"]):
            moving = stopped_s <= 0
            ahead = state_m + torch.where(moving, worlds.speed_mps, 0.0).double() * config.radio.step_s
            arrives = torch.floor(ahead / worlds.stop_spacing_m) > torch.floor(
                state_m / worlds.stop_spacing_m
            )
            stopped_s = torch.where(
                moving, torch.where(arrives, worlds.stop_s, stopped_s), stopped_s - config.radio.step_s
            )
            state_m = ahead
    return torch.stack(found)


def genie(
    config: Config, scenario: Scenario, purpose: str, seeds: tuple[int, ...], costs: tuple[float, ...]
) -> dict[str, Any]:
    """The genie's runs on worlds of a purpose, one per handover cost."""
    worlds = worlds_of(config, scenario, purpose, seeds)
    duration_s = config.validation_s if purpose == "validation" else config.test_s
    reward = noise_free_rewards(config, scenario, worlds, duration_s).float()
    first = path_gain_db(worlds, worlds.route_m[:, :, 0]).argmax(-1).flatten()
    plans = [genie_plan(reward, cost, first).view(len(reward), *worlds.shape[:2]) for cost in costs]
    worlds = worlds.repeat(len(costs))
    outcome = simulate(
        worlds,
        config.radio,
        Genie(torch.cat(plans, 1), PERIOD_STEPS["device"]),
        stream(0, "messages"),
        duration_s=duration_s,
    )
    return per_world(outcome, worlds, config.radio)


def tune_and_test_genie(config: Config, scenario: Scenario, seeds: tuple[int, ...]) -> dict[str, Any]:
    """The genie's front on validation worlds, and its floor on the test worlds under each cap."""
    validated = genie(config, scenario, "validation", tuple(range(config.validation_worlds)), GENIE_COSTS)
    found = Sweep(
        [[c] for c in GENIE_COSTS],
        _means(validated["handovers_per_user_minute"], len(GENIE_COSTS)),
        _means(validated["outage_share"], len(GENIE_COSTS)),
    )
    results = []
    for cap in caps(config, scenario):
        best = found.under(cap)
        results.append(
            {
                "cap": cap,
                "setting": found.settings[best],
                "validation_handovers": found.handovers[best],
                "validation_outage": found.outage[best],
                "test": genie(config, scenario, "test", seeds, (found.settings[best][0],)),
            }
        )
    return {"sweep": [found.settings, found.handovers, found.outage], "caps": results}


def picture(config: Config, scenario: Scenario, policy: Policy, seeds: tuple[int, ...]) -> dict[str, Any]:
    """One recorded run anywhere in the city: distributions, places of outage, outage on unseen streets.

    The latter is nan in a world where nobody came there.
    """
    worlds = worlds_of(config, scenario, "test", seeds, everywhere=True)
    outcome = simulate(
        worlds, config.radio, policy, stream(0, "messages"), duration_s=config.test_s, record=True
    )
    assert outcome.log is not None
    log = outcome.log
    scene = scene_of(config, scenario.city, scenario.map)
    steps = log.outage_steps.diff(dim=0, prepend=torch.zeros_like(log.outage_steps[:1]))
    cell = ((log.position_m - torch.tensor(scene.origin_m)) / scene.resolution_m).round().long()
    unseen = torch.as_tensor(held_out(config, scenario.city))[
        cell[..., 1].clamp(0, scene.outdoor.shape[0] - 1), cell[..., 0].clamp(0, scene.outdoor.shape[1] - 1)
    ]
    period_steps = policy.period_steps
    sinr = log.sinr_db.float()
    known = sinr[sinr.isfinite()]
    shares = torch.linspace(0.005, 0.995, 100)
    some = known[torch.arange(0, len(known), max(1, len(known) // 200_000))]
    throughput = (outcome.state.bits / outcome.duration_s).flatten().float()
    places = log.position_m[steps >= period_steps]
    places = places[torch.arange(0, len(places), max(1, len(places) // 1500))]
    unseen_steps = [float((steps * unseen).sum((0, 2))[w]) for w in range(len(seeds))]
    unseen_total = [float(unseen.sum((0, 2))[w]) * period_steps for w in range(len(seeds))]
    return {
        "unseen_outage": [o / t if t else math.nan for o, t in zip(unseen_steps, unseen_total, strict=True)],
        "sinr_db": [round(float(x), 3) for x in torch.quantile(some, shares)],
        "throughput": [float(x) for x in torch.quantile(throughput, shares)],
        "shares": [float(x) for x in shares],
        "outage_x_m": [round(float(x), 1) for x in places[:, 0]],
        "outage_y_m": [round(float(y), 1) for y in places[:, 1]],
    }
