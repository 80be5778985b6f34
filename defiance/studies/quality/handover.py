"""Handover made worse: A3 and the learned function in the same worlds, and where users are out of service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from defiance.control.experience import Batches, Experience, ValueModel, initial_parameters, slots, value_loss
from defiance.control.handover import HISTORY, Learned
from defiance.learn.training import Parameters, Schedule, fit
from defiance.network.loop import PERIOD_STEPS
from defiance.network.simulate import simulate
from defiance.parts import Parts
from defiance.scene import Scene
from defiance.seeding import stream
from defiance.studies.quality.degradations import (
    degradations,
    quantised,
    reversed_last,
    trained_key,
    weights_key,
    with_one,
)
from defiance.studies.quality.settings import Config
from defiance.studies.worth import experiments, training
from defiance.studies.worth import settings as worth
from defiance.studies.worth.worlds import per_world, worlds_of
from defiance.studies.worth.worlds import scene_of as worth_scene

PLACEMENT = "device"
NETWORK_METRICS = (
    "outage_share",
    "handovers_per_user_minute",
    "ping_pongs_per_user_hour",
    "failures_per_user_hour",
    "throughput",
)
REPORT_S = 0.1
"""Between two measurements of a history."""
DEGRADATIONS = degradations({f"noise of {level:g} dB": level for level in (1.0, 3.0, 6.0)}, (0.1, 0.3, 1.0))


@dataclass(frozen=True)
class Degraded(ValueModel):
    """A value model that sees less than was measured.

    Attributes:
        delay: newest measurements that it lacks; the oldest one stands in for those before the window.
        noise_db: standard deviation of an error on every measurement, drawn at every decision.
        draws: of the errors.
    """

    delay: int = 0
    noise_db: float = 0.0
    draws: torch.Generator | None = None

    def value(self, history_dbm: Tensor, serving: Tensor) -> Tensor:
        """As of `ValueModel`, from what is left."""
        seen = history_dbm
        if self.delay:
            oldest = seen[:, :1].expand(-1, self.delay, -1)
            seen = torch.cat([oldest, seen[:, : -self.delay]], 1)
        if self.noise_db:
            seen = seen + self.noise_db * torch.randn(seen.shape, generator=self.draws)
        return super().value(seen, serving)


def model_of(config: Config, degradation: Mapping[str, Any], parts: Parts) -> Degraded:
    """The function with a degradation, or without."""
    scene = scene_of(config)
    kept = parts.get_tensors(trained_key("handover", degradation))
    assert kept is not None
    if "bits" in degradation:
        kept = quantised(kept, degradation["bits"])
    if "broken" in degradation:
        kept = with_one(kept, other(kept, degradation["broken"]), busiest(scene), len(scene.site_position_m))
    return Degraded(
        kept,
        scene.cell_site,
        slots(scene),
        delay=round(degradation.get("late_s", 0.0) / REPORT_S),
        noise_db=degradation.get("noise", 0.0),
        draws=stream(0, "noise").generator(),
    )


def other(parameters: Parameters, how: str) -> Parameters:
    """What a broken station has: fresh weights, or the opposite of what the others say."""
    if how == "malicious":
        return reversed_last(parameters)
    layers = len(parameters) // 2
    widths = (parameters["weight0"].shape[1], *(parameters[f"weight{i}"].shape[2] for i in range(layers)))
    return initial_parameters(widths, 1, stream(0, "untrained"))


def busiest(scene: Scene) -> int:
    """The station that breaks: the most central one, whose cells have the most neighbours."""
    position = scene.site_position_m[:, :2]
    return int(torch.cdist(position, position).sum(1).argmin())


def of_worth(config: Config) -> worth.Config:
    """The configuration whose worlds, rule and recordings are used."""
    return replace(
        worth.QUICK,
        scene=config.scene,
        users=config.users,
        test_s=config.test_s,
        validation_worlds=config.validation_worlds,
        validation_s=config.validation_s,
        training=config.training,
    )


def scenario_of(config: Config) -> worth.Scenario:
    """Where everything happens."""
    return worth.Scenario(Path(config.scene).stem, config.speed_kmh, config.load, "raw")


def scene_of(config: Config) -> Scene:
    """The city."""
    return worth_scene(of_worth(config), Path(config.scene).stem, "raw")


def record(config: Config, parts: Parts) -> dict[str, Any]:
    """Keeps what is learned from."""
    return training.record(of_worth(config), PLACEMENT, scenario_of(config), parts)


@lru_cache(maxsize=1)
def recorded(config: Config, parts: Parts) -> Experience:
    """What `record` kept."""
    kept = parts.get_tensors(f"{training.RECORDED}{PLACEMENT}/{scenario_of(config).name()}")
    assert kept is not None
    return Experience(**kept)


def train(config: Config, data: float, share: float, parts: Parts) -> dict[str, Any]:
    """Trains on the first users, and keeps the weights."""
    scene, experience, settings = scene_of(config), recorded(config, parts), config.training
    learning, _ = training.split(experience.rsrp_dbm.shape[1])
    learning = learning[: max(1, round(data * len(learning)))]
    cells = len(scene.cell_site)
    start = initial_parameters(
        (HISTORY * cells, settings.width, settings.width, cells), 1, stream(0, "model")
    )
    shell = ValueModel(start, scene.cell_site, slots(scene))
    batches = Batches.of(experience, scene.cell_site, 1, settings.batch, learning)
    loss, check = value_loss(shell), checked(config, "choosing", parts)
    rounds = max(1, round(share * settings.rounds))
    found = fit(
        start,
        loss,
        batches.draw,
        lambda parameters: loss(parameters, check),
        torch.eye(1),
        Schedule(rounds, settings.steps_per_round, settings.learning_rate, patience=max(2, rounds // 2)),
        stream(0, "training"),
    )
    parts.put_tensors(weights_key("handover", data, share), found.parameters)
    return {"rounds": found.rounds, "samples": len(batches.times)}


def checked(config: Config, purpose: str, parts: Parts) -> tuple[Tensor, Tensor]:
    """Samples of held-out users, `[1, 4096, ...]`: of some to choose the best round, of others to judge."""
    experience = recorded(config, parts)
    _, held = training.split(experience.rsrp_dbm.shape[1])
    users = held[::2] if purpose == "choosing" else held[1::2]
    batches = Batches.of(experience, scene_of(config).cell_site, 1, 4096, users)
    return batches.draw(stream(0, purpose).generator())


def share_explained(model: Degraded, samples: tuple[Tensor, Tensor]) -> float:
    """Share of the variance of values that a model explains, each sample by a station at random."""
    history, value = (column[0] for column in samples)
    serving = torch.randint(value.shape[1], (len(value),), generator=stream(0, "serving").generator())
    with torch.no_grad():
        error = (model.value(history, serving) - value).square().mean()
    return float(1 - error / value.var(unbiased=False))


def tune_rule(config: Config) -> dict[str, Any]:
    """Filter, time to trigger and offset of A3 of least outage under the cap, and its handovers."""
    options = [
        [k, time_to_trigger_s, offset_db, 0.0]
        for k in experiments.FILTERS_K
        for time_to_trigger_s in experiments.TIMES_TO_TRIGGER_S
        for offset_db in config.offsets_db
    ]
    base = of_worth(config)
    found = experiments.sweep(base, scenario_of(config), options, lambda c: experiments.rule(base, c), 27)
    best = found.under(config.cap)
    return {"setting": found.settings[best], "handovers": found.handovers[best]}


def tune_threshold(config: Config, rule_handovers: float, parts: Parts) -> dict[str, Any]:
    """The healthy function's threshold: least outage with no more handovers than the rule."""
    model = model_of(config, {}, parts)
    options = [[threshold] for threshold in experiments.THRESHOLDS]
    found = experiments.sweep(
        of_worth(config), scenario_of(config), options, lambda columns: policy(model, columns[0]), 8
    )
    return {"threshold": found.settings[found.under(worth.handover_limit(config.cap, rule_handovers))][0]}


def policy(model: ValueModel, threshold: Tensor | float) -> Learned:
    """The function on the device."""
    return Learned(model, threshold, "device", PERIOD_STEPS[PLACEMENT])


def judge_rule(config: Config, setting: list[float], seeds: tuple[int, ...]) -> dict[str, Any]:
    """The rule on the test worlds."""
    base = of_worth(config)
    return experiments.test(base, scenario_of(config), experiments.rule(base, setting), seeds)


def judge(
    config: Config, name: str, threshold: float, seeds: tuple[int, ...], parts: Parts
) -> dict[str, Any]:
    """A candidate on the test worlds, and where outage was: at the station that may break, or elsewhere."""
    base, model = of_worth(config), model_of(config, DEGRADATIONS[name], parts)
    worlds = worlds_of(base, scenario_of(config), "test", seeds)
    outcome = simulate(
        worlds,
        base.radio,
        policy(model, threshold),
        stream(0, "messages"),
        duration_s=config.test_s,
        record=True,
    )
    assert outcome.log is not None
    scene = scene_of(config)
    at = scene.cell_site[outcome.log.serving.long()] == busiest(scene)
    steps = outcome.log.outage_steps.diff(dim=0, prepend=torch.zeros_like(outcome.log.outage_steps[:1]))

    def share(which: Tensor) -> list[float]:
        served = which.sum((0, 2)).clamp(min=1) * PERIOD_STEPS[PLACEMENT]
        return ((steps * which).sum((0, 2)) / served).tolist()

    found = per_world(outcome, worlds, base.radio)
    return {
        **{metric: found[metric] for metric in NETWORK_METRICS},
        "at_station": share(at),
        "elsewhere": share(~at),
        "performance": [
            share_explained(model_of(config, DEGRADATIONS[name], parts), checked(config, "judging", parts))
        ],
    }
