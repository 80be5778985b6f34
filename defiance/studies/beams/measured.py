"""Measured beams: DeepSense 6G's six sites as six stations, split by the passes of vehicles.

A fifth of every site's sequences is tested by models that never saw them; another fifth stops training and
chooses the settings, of the plain classifier (`mlp`) as of the learned selection (`learned`). Rules and
models measure the same beams, and are charged what their best beam receives less than the site's best one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defiance.control.beam_learning import (
    BatchLoss,
    Samples,
    View,
    features,
    hard_loss,
    hits,
    lost_db,
    scores,
    soft_loss,
)
from defiance.recordings import data_folder
from defiance.scene.deepsense import BEAMS, BeamRecording, read_deepsense
from defiance.seeding import Stream, stream
from defiance.studies.beams.training import (
    Recipe,
    Regime,
    at_every_node,
    best_validation,
    others,
    pooled,
    train,
)

FOLDS = 5
MEASURED = {"quarter": 4, "eighth": 8}
"""Every how many beams one is measured; the middle one of each group."""
RULES = ("nearest", "interpolated")
MODELS = ("mlp", "learned")
REGIMES: tuple[Regime, ...] = ("local", "federated", "central", "finetuned")
SPREAD_DB = 2.0
SOFTNESS_DB = 0.3
"""Beside the best beam two or three others of this array are within so much."""
FLOOR_SHARE = 0.02
"""This quantile of all powers of a site is its noise: most beams of most rows hear nothing else."""
TOPS = (1, 3, 5)


@dataclass(frozen=True)
class Setting:
    """What is chosen on validation sequences."""

    view: View
    width: int
    learning_rate: float


SETTINGS: dict[str, tuple[Setting, ...]] = {
    "mlp": (Setting("db", 128, 2e-3), Setting("db", 128, 5e-3), Setting("both", 128, 2e-3)),
    "learned": (Setting("both", 128, 2e-3), Setting("both", 128, 5e-3), Setting("amplitude", 128, 2e-3)),
}
"""Tuned with a quarter of the beams; the first ones stand for less. Wider, narrower and deeper ones were not
clearly better."""
LOSSES: dict[str, BatchLoss] = {"mlp": hard_loss, "learned": partial(soft_loss, softness_db=SOFTNESS_DB)}


def measured_beams(every: int) -> Tensor:
    """Which beams are measured, int64 [M]: 1, 5, 9 ... of every fourth."""
    return torch.arange((every - 1) // 2, BEAMS, every)


def folds(sequence: Tensor, random: Stream) -> Tensor:
    """Fold of every row, int64 [n]: sequences are dealt out at random, as evenly as they can be."""
    names, index = sequence.unique(return_inverse=True)
    dealt = torch.empty(len(names), dtype=torch.int64)
    dealt[torch.randperm(len(names), generator=random.generator())] = torch.arange(len(names)) % FOLDS
    return dealt[index]


def by_rule(rule: str, measured_db: Tensor, beams: Tensor) -> Tensor:
    """Scores of all beams without a model, `[n, M] -> [n, BEAMS]`: in dB, interpolated or measured."""
    if rule == "nearest":
        # beams that weren't measured follow in the order of their distance to the strongest
        strongest = beams[measured_db.argmax(-1)][:, None]
        return -(torch.arange(BEAMS) - strongest).abs().float()
    places, known = beams.numpy(), measured_db.double().numpy()
    rows = [np.interp(np.arange(BEAMS), places, row) for row in known]
    return torch.from_numpy(np.stack(rows)).float()


@dataclass(frozen=True)
class Site:
    """One site's rows, as a fold sees them."""

    power_db: Tensor
    fold: Tensor

    def part(self, fold: int, purpose: str) -> Tensor:
        """Rows for `training`, `validation` or `test`."""
        validated = (fold + 1) % FOLDS
        if purpose == "training":
            return ((self.fold != fold) & (self.fold != validated)).nonzero().squeeze(1)
        return (self.fold == (fold if purpose == "test" else validated)).nonzero().squeeze(1)


def samples_of(sites: Sequence[Site], fold: int, purpose: str, beams: Tensor, view: View) -> Samples:
    """Features and powers of every site."""
    nodes = []
    for site in sites:
        rows = site.power_db[site.part(fold, purpose)]
        floor_db = site.power_db[site.part(fold, "training")].quantile(FLOOR_SHARE)
        nodes.append((features(rows[:, beams], floor_db, SPREAD_DB, view), rows[:, None]))
    return Samples.of(nodes)


def fitted(
    sites: Sequence[Site], fold: int, beams: Tensor, model: str, regime: Regime, setting: Setting,
    recipe: Recipe, random: Stream,
) -> tuple[float, list[Tensor]]:  # fmt: skip
    """Trains the six sites' models: mean validation loss over sites [dB], scores of each site's test rows."""
    training, held, test = (
        samples_of(sites, fold, purpose, beams, setting.view)
        for purpose in ("training", "validation", "test")
    )
    loss = LOSSES[model]
    nodes, start = len(sites), None
    if regime == "finetuned":
        # what the other five sites have measured, then a fine-tuning on the site's own rows
        elsewhere = train("local", others(training), others(held), loss, recipe, random.child("elsewhere"))
        start = elsewhere.parameters
        recipe = replace(recipe, learning_rate=recipe.learning_rate / 2)
    elif regime == "central":
        training, held = pooled(training), pooled(held)
        recipe = replace(recipe, batch=recipe.batch * nodes)
    found = train(regime, training, held, loss, recipe, random, start)
    parameters = at_every_node(found.parameters, nodes) if regime == "central" else found.parameters
    seen, _, weight = test.padded()
    judged = scores(parameters, seen)[:, :, 0]
    return float(best_validation(found).mean()), [s[w > 0] for s, w in zip(judged, weight, strict=True)]


def judged(site: Site, rows: Tensor, score: Tensor) -> dict[str, Tensor]:
    """What a choice loses, and whether the best beam is among the first K, by row."""
    power_db = site.power_db[rows]
    found = {"loss": lost_db(power_db, score.argmax(-1))}
    return found | {f"top{most}": hits(score, power_db, most).float() for most in TOPS}


def fold_of(site: BeamRecording) -> Tensor:
    """Fold of every row of a site, int64 [n]."""
    return folds(site.sequence, stream(0, "deepsense", "folds", site.scenario))


def by_sequence(
    sites: Sequence[BeamRecording], rows: Sequence[Tensor], found: Sequence[dict[str, Tensor]]
) -> dict[str, Any]:
    """Means over the judged rows of every sequence, sites one after the other."""
    columns: dict[str, list[float]] = {"site": [], "fold": [], "rows": []}
    for site, kept, values in zip(sites, rows, found, strict=True):
        names, index = site.sequence[kept].unique(return_inverse=True)
        count = torch.bincount(index).double()
        columns["site"] += [site.scenario] * len(names)
        fold = torch.zeros_like(names).index_copy_(0, index, fold_of(site)[kept])
        columns["fold"] += fold.tolist()
        columns["rows"] += count.tolist()
        for name, value in values.items():
            total = torch.zeros(len(names), dtype=torch.float64).index_add_(0, index, value.double())
            columns.setdefault(name, []).extend((total / count).tolist())
    return columns


def evaluate(config: Any, model: str, part: str, regime: Regime) -> dict[str, Any]:
    """One rule, or one kind of model under one regime, on all folds; see `by_sequence`.

    Every fold has weights and batches of its own.

    Args:
        config: of the study.
        model: of `RULES` or `MODELS`.
        part: of the beams that is measured, of `MEASURED`.
        regime: who trains; of no meaning for a rule.
    """
    recordings = read_deepsense(data_folder() / "deepsense6g")
    sites = [Site(r.power_db, fold_of(r)) for r in recordings]
    beams = measured_beams(MEASURED[part])
    training = config.measured
    rows = [(site.fold < training.folds).nonzero().squeeze(1) for site in sites]  # of the folds in test
    if model in RULES:
        found = [
            judged(s, kept, by_rule(model, s.power_db[kept][:, beams], beams))
            for s, kept in zip(sites, rows, strict=True)
        ]
        return by_sequence(recordings, rows, found) | {"settings": []}
    score_of = [torch.full_like(site.power_db, math.nan) for site in sites]
    chosen = []
    for fold in range(training.folds):
        random = stream(0, "deepsense", model, part, regime, fold)
        tried = []
        for setting in SETTINGS[model] if training.tune and part == "quarter" else SETTINGS[model][:1]:
            recipe = Recipe(
                setting.width,
                setting.learning_rate,
                training.batch,
                training.rounds,
                training.steps_per_round,
            )
            tried.append((*fitted(sites, fold, beams, model, regime, setting, recipe, random), setting))
        _, test_scores, setting = min(tried, key=lambda one: one[0])
        chosen.append(vars(setting))
        for site, all_scores, score in zip(sites, score_of, test_scores, strict=True):
            all_scores[site.part(fold, "test")] = score
    found = [judged(s, kept, score[kept]) for s, kept, score in zip(sites, rows, score_of, strict=True)]
    return by_sequence(recordings, rows, found) | {"settings": chosen}
