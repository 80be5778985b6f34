"""How the models of the study `worth` are trained: experience is recorded under a rule, then learned from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from defiance.control.experience import (
    Batches,
    Experience,
    Target,
    ValueModel,
    hindsight,
    initial_parameters,
    slots,
    value_loss,
)
from defiance.control.handover import A3, HISTORY
from defiance.learn.training import Parameters, Schedule, federated_mixing, fit
from defiance.meter import Meter
from defiance.network.loop import PERIOD_STEPS
from defiance.network.simulate import simulate
from defiance.parts import Parts
from defiance.scene import Scene
from defiance.seeding import stream
from defiance.studies.worth.settings import (
    Config,
    Scenario,
    Training,
    away_scenario,
    recorded_scenarios,
)
from defiance.studies.worth.worlds import scene_of, worlds_of

BEHAVIOUR = A3(offset_db=3.0, hysteresis_db=0.0, time_to_trigger_s=0.0, filter_k=0.0)
"""The rule that runs while experience is recorded."""
EXPERIENCE = ("rsrp_dbm", "value", "serving")
RECORDED = "experience/"
"""What keys of recorded experience begin with."""


def recording(config: Config, placement: str, scenario: Scenario) -> Experience:
    """What is learned from in one scenario, recorded while the behaviour rule ran."""
    behaviour = replace(
        BEHAVIOUR,
        period_steps=PERIOD_STEPS[placement],
        placement="device" if placement == "device" else "station",
    )
    settings = config.training
    # on foot few places are passed in the time: a third of the worlds is enough
    count = settings.worlds if scenario.speed_kmh >= 10 else max(1, settings.worlds // 3)
    worlds = worlds_of(config, scenario, "training", tuple(range(count)))
    outcome = simulate(
        worlds,
        config.radio,
        behaviour,
        stream(0, "messages"),
        duration_s=settings.duration_s,
        record=True,
    )
    assert outcome.log is not None
    mean_load = (outcome.state.load_steps * config.radio.step_s / outcome.duration_s).float()
    return hindsight(
        outcome.log.rsrp_dbm.flatten(1, 2),
        mean_load.repeat_interleave(settings.users, 0),
        outcome.log.serving.flatten(1, 2),
        config.radio,
        Target(
            handover_cost=settings.handover_cost, discount=settings.discount, rate_weight=settings.rate_weight
        ),
    )


def record(config: Config, placement: str, scenario: Scenario, parts: Parts) -> dict[str, Any]:
    """Keeps what `recording` finds as tensors, so that every process can learn from it."""
    found = recording(config, placement, scenario)
    parts.put_tensors(
        f"{RECORDED}{placement}/{scenario.name()}", {name: getattr(found, name) for name in EXPERIENCE}
    )
    return {"samples": found.serving.numel()}


@lru_cache(maxsize=1)
def experience_of(config: Config, city: str, map_: str, placement: str, parts: Parts) -> Experience:
    """What is learned from in all speeds and loads of a city: what `record` kept, or recorded now."""
    found = []
    for scenario in recorded_scenarios(config, city, map_):
        kept = parts.get_tensors(f"{RECORDED}{placement}/{scenario.name()}")
        found.append(recording(config, placement, scenario) if kept is None else Experience(**kept))
    return Experience(*(torch.cat([getattr(e, name) for e in found], 1) for name in EXPERIENCE))


def model_for(scene: Scene, parameters: Parameters) -> ValueModel:
    """The value model with a city's slots."""
    return ValueModel(parameters, scene.cell_site, slots(scene))


@dataclass(frozen=True)
class Model:
    """Which model: where it runs, who trained it, on which map, from which seed."""

    placement: str
    regime: str
    map: str
    seed: int

    @property
    def key(self) -> str:
        """Key of its part."""
        return f"learned-{self.placement}/{self.regime}/{self.map}/seed{self.seed}"

    def city(self, config: Config) -> str:
        """Where it is trained."""
        return Path(config.unseen_scene if self.regime.startswith("finetuned") else config.scene).stem

    @property
    def home(self) -> Model:
        """The model that a fine-tuned one starts from."""
        return replace(self, regime="central")


def train(config: Config, model: Model, parts: Parts) -> dict[str, Any]:
    """Trains one model (or one per station), books what it took, and keeps its weights."""
    settings = config.training
    finetuned = model.regime.startswith("finetuned")
    city = model.city(config)
    scene = scene_of(config, city, model.map)
    sites = len(scene.site_position_m)
    nodes = 1 if finetuned or model.regime == "central" else sites
    random = stream(model.seed, "training", model.placement, model.regime, model.map)
    if finetuned:
        # a small part of the unseen city's users is enough to see what fine-tuning recovers
        experience = experience_of(finetuning(config), city, model.map, model.placement, parts)
        start = parts.get_tensors(model.home.key)
        assert start is not None
        rounds, rate = settings.finetuning_rounds, settings.learning_rate / 2
    else:
        experience = experience_of(config, city, model.map, model.placement, parts)
        cells = len(scene.cell_site)
        widths = (HISTORY * cells, settings.width, settings.width, cells)
        start = initial_parameters(widths, nodes, stream(model.seed, "model"))
        rounds, rate = settings.rounds, settings.learning_rate
    steps = settings.steps_per_round
    if model.regime == "federated":
        rounds, steps = federated_schedule(settings)
    last = f"{len(start) // 2 - 1}"
    shell = model_for(scene, start)
    training, validation = split(experience.rsrp_dbm.shape[1])
    batch = max(8, settings.batch // nodes)
    batches = Batches.of(experience, scene.cell_site, nodes, batch, training)
    held = Batches.of(experience, scene.cell_site, nodes, 4 * batch, validation)
    generator = random.child("validation").generator()
    checks = [held.draw(generator) for _ in range(2)]
    loss = value_loss(shell)
    mixing = federated_mixing(batches.served) if model.regime == "federated" else torch.eye(nodes)
    meter = Meter("station")
    with meter.running():
        found = fit(
            start,
            loss,
            batches.draw,
            lambda parameters: torch.stack([loss(parameters, check) for check in checks]).mean(0),
            mixing,
            Schedule(rounds, steps, rate, patience=max(2, rounds // 2)),
            random,
            trainable=(lambda name: name.endswith(last))
            if model.regime == "finetuned-last"
            else (lambda name: True),
        )
    parts.put_tensors(model.key, found.parameters)
    weights = sum(w[0].numel() for w in found.parameters.values())
    moved = sum(
        w[0].numel()
        for n, w in found.parameters.items()
        if model.regime != "finetuned-last" or n.endswith(last)
    )
    return {
        "nodes": nodes,
        "parameters": weights,
        "moved_parameters": moved,
        "validation_loss": found.validation_loss.mean(1).tolist(),
        "rounds": found.rounds,
        "steps_per_round": steps,
        "batch": batch,
        "samples": batches.served.tolist(),
        "cpu_s": meter.usage.cpu_s,
        "recorded_user_seconds": float(experience.rsrp_dbm.shape[0] * experience.rsrp_dbm.shape[1])
        * PERIOD_STEPS[model.placement]
        * config.radio.step_s,
        "recorded_samples": int(experience.rsrp_dbm.shape[0] * experience.rsrp_dbm.shape[1]),
    }


def federated_schedule(settings: Training) -> tuple[int, int]:
    """Rounds and steps per round: the steps of the other regimes, to less than a round, in more rounds."""
    total = settings.rounds * settings.steps_per_round
    steps = math.ceil(total / settings.federated_rounds)
    return total // steps, steps


def finetuning(config: Config) -> Config:
    """What is recorded in the unseen city: a quarter of the users, one speed and load."""
    scenario = away_scenario(config)
    assert scenario is not None
    training = replace(config.training, users=max(2, config.training.users // 4))
    return replace(config, speeds_kmh=(scenario.speed_kmh,), loads=(scenario.load,), training=training)


def split(users: int) -> tuple[Tensor, Tensor]:
    """Nine tenths of the users train, the rest validate."""
    every = min(10, users)
    held = torch.arange(users) % every == every - 1
    return torch.nonzero(~held).squeeze(1), torch.nonzero(held).squeeze(1)
