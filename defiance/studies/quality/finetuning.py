"""Handover fine-tuned in another city: what moves, for how long, what that costs, and what is forgotten."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from defiance.control.experience import Batches, Experience, ValueModel, perceptron, slots, value_loss
from defiance.learn.adaptation import Adaptation, LoRA, biases_and_norms, everything, last_layer
from defiance.learn.training import Parameters, Schedule, fit
from defiance.meter import operations_of_loss
from defiance.parts import Parts
from defiance.scene import Scene
from defiance.seeding import stream
from defiance.studies.quality import handover
from defiance.studies.quality.degradations import weights_key
from defiance.studies.quality.settings import Config
from defiance.studies.worth.settings import Scenario
from defiance.studies.worth.training import recording
from defiance.studies.worth.worlds import scene_of

WAYS = ("whole", "last layer", "LoRA", "biases")
ASKED = 2048
"""Samples by which a model is chosen, and as many by which it is judged."""
NOISE_DB = 3.0
"""Of the measurements that tell how robust a tuned model is."""
FEW = 4
"""The city's users are recorded in one world of so many times fewer users than at home."""


def adaptation(way: str, base: Parameters) -> Adaptation:
    """What moves."""
    if way == "LoRA":
        return LoRA(4)
    return {"whole": everything, "last layer": last_layer, "biases": biases_and_norms}[way](base)


def scene_away(config: Config) -> Scene:
    """The city that is tuned in."""
    base = replace(handover.of_worth(config), scene=config.unseen_scene, unseen_scene="")
    return scene_of(base, Path(config.unseen_scene).stem, "raw")


@lru_cache(maxsize=1)
def away(config: Config, parts: Parts) -> Experience:
    """Recordings of the city, made once."""
    key = f"finetuning/{Path(config.unseen_scene).stem}"
    kept = parts.get_tensors(key)
    if kept is None:
        few = replace(config.training, worlds=2, users=max(20, config.training.users // FEW))
        base = replace(handover.of_worth(config), scene=config.unseen_scene, unseen_scene="", training=few)
        scenario = Scenario(Path(config.unseen_scene).stem, config.speed_kmh, config.load, "raw")
        found = recording(base, handover.PLACEMENT, scenario)
        kept = {name: getattr(found, name) for name in ("rsrp_dbm", "value", "serving")}
        parts.put_tensors(key, kept)
    return Experience(**kept)


def tune(config: Config, way: str, budget: int, seed: int, parts: Parts) -> dict[str, Any]:
    """The healthy model after so many rounds in the other city: there, at home, and with noise on its input.

    A seed draws which of the city's users train, choose the round, and judge.
    """
    base = parts.get_tensors(weights_key("handover", 1.0, 1.0))
    assert base is not None
    home, city = handover.scene_of(config), scene_away(config)
    own, experience = {name: w[0] for name, w in base.items()}, away(config, parts)
    users = experience.rsrp_dbm.shape[1]
    order = torch.randperm(users, generator=stream(seed, "finetuning", "split").generator())
    train, choose, judge = order.tensor_split([round(0.5 * users), round(0.7 * users)])
    how = adaptation(way, own)
    start = {n: w[None] for n, w in how.start(own, stream(seed, "finetuning", way).generator()).items()}

    def drawn(some: Tensor, count: int, purpose: str) -> tuple[Tensor, Tensor]:
        batches = Batches.of(experience, city.cell_site, 1, count, some.sort().values)
        return batches.draw(stream(seed, "finetuning", purpose).generator())

    batches = Batches.of(experience, city.cell_site, 1, config.training.batch, train.sort().values)
    loss, check = value_loss(ValueModel(base, city.cell_site, slots(city))), drawn(choose, ASKED, "choose")
    moved = start
    if budget:
        settings = config.training
        moved = fit(
            start,
            lambda moving, batch: loss(how.whole(own, moving), batch),
            batches.draw,
            lambda moving: loss(how.whole(own, moving), check),
            torch.eye(1),
            Schedule(budget, settings.steps_per_round, settings.learning_rate / 2, patience=budget),
            stream(seed, "finetuning", "batches"),
        ).parameters
    tuned = how.whole(own, moved)
    away_samples = drawn(judge, ASKED, "judge")
    return {
        "performance": _explained(tuned, city, away_samples, 0.0),
        "robust": _explained(tuned, city, away_samples, NOISE_DB),
        "home": _explained(tuned, home, handover.checked(config, "judging", parts), 0.0),
        "moved": sum(w[0].numel() for w in start.values()),
        "operations": budget * config.training.steps_per_round * _step(how, own, start, batches),
    }


def _step(how: Adaptation, own: Parameters, start: Parameters, batches: Batches) -> float:
    """Operations of an optimiser step of what moves."""
    base = {name: weight.to("meta") for name, weight in own.items()}

    def loss(moving: Parameters, features: Tensor, value: Tensor) -> Tensor:
        return (perceptron(how.whole(base, moving), features) - value).square().mean()

    widths = base["weight0"].shape[0], base[f"bias{len(base) // 2 - 1}"].shape[-1]
    given = [torch.empty(1, batches.size, width) for width in widths]
    return float(operations_of_loss(loss, start, given).training_step.total)


def _explained(weights: Parameters, city: Scene, samples: tuple[Tensor, Tensor], noise_db: float) -> float:
    """Share of the variance of values that a model explains, each sample by a station at random."""
    draws = stream(0, "finetuning", "noise").generator()
    model = handover.Degraded(weights, city.cell_site, slots(city), noise_db=noise_db, draws=draws)
    return handover.share_explained(model, samples)
