"""Where do spikes win, between a device that sees events and an edge that names them?

Candidates: S-VDIB, a spiking encoder with an information bottleneck (Ke et al., ICONS 2024), with dense and
    with sparse pulses; spiking and conventional joint codes; separate source and channel coding; an uncoded
    event map; the class named on the device; and two bounds. All at equal channel uses and equal energy per
    use, tuned and trained with one budget, on real recordings in folds, on simulated ones, and on moving
    digits. Regimes: `mixed` (simulated and real recordings), `simulated`, `real`, `at4dB` (trained at one
    Es/N0), `beta0.01` (another bottleneck). Performance is the share of recordings that are named rightly.
"""

from __future__ import annotations

from dataclasses import replace

from defiance.errors import DefianceError
from defiance.kpm import Sheet
from defiance.parts import Parts
from defiance.studies import ALL_CORES, Progress, Workers, pool
from defiance.studies.coinference import counting, experiments, sheet, shipped
from defiance.studies.coinference.candidates import designs
from defiance.studies.coinference.data import has_recordings
from defiance.studies.coinference.settings import (
    PRESETS,
    SEEDS,
    STEPS,
    Config,
    Model,
    check,
    judged_on,
    models,
    tuned_as,
)
from defiance.studies.pool import do, part

__all__ = ["PRESETS", "SEEDS", "Config", "run"]


def run(
    config: Config,
    *,
    seeds: tuple[int, ...],
    parts: Parts,
    progress: Progress,
    workers: Workers = ALL_CORES,
) -> Sheet:
    """Answers the question.

    Args:
        config: see `Config`; without the data folder, embedded digits take the place of `data`.
        seeds: of training; seed mod `folds` is the fold of real recordings that a model is tested on.
        parts: finished parts, read and added to.
        progress: is told how far the work is.
        workers: who computes the parts.

    Raises:
        DefianceError: the configuration asks for nothing or mixes things up, weights are wanted that are not
            shipped, a file of the data is broken, or a worker process was killed.
    """
    check(config, seeds)
    if not has_recordings():
        config = replace(config, data=("digits",))
    wanted = models(config, seeds)
    for model in wanted:
        if not designs(model.candidate, model.uses, model.beta):
            raise DefianceError(
                f"{model.candidate} can't be built with {model.uses} channel uses; leave it out of "
                f"candidates, or take a multiple of {2 * STEPS}"
            )
    if config.weights == "shipped":
        shipped.unpack(config, wanted, parts)
    trained = {model.trained: model for model in wanted}
    tuned = list(dict.fromkeys(tuned_as(config, model) for model in trained.values()))

    def choice(model: Model) -> int:
        found: int = part(parts, f"tune/{tuned_as(config, model).key}")["choice"]
        return found

    with pool.workers(workers, parts) as submit:
        do(
            "trying settings",
            [(f"tune/{model.key}", experiments.tune, (model,)) for model in tuned],
            config, parts, progress, submit,
        )  # fmt: skip
        do(
            "training",
            [
                (f"train/{weights.key}", experiments.train, (model, choice(model), parts))
                for weights, model in trained.items()
            ],
            config, parts, progress, submit,
        )  # fmt: skip
        counted = {(model.candidate, model.uses): choice(model) for model in wanted}
        do(
            "judging",
            [
                (
                    f"judge/{model.key}/{test}",
                    experiments.judge,
                    (model, choice(model), test, part(parts, f"train/{model.trained.key}")["ones"], parts),
                )
                for model in wanted
                for test in judged_on(config, model)
            ]
            + [
                (f"count/{name}/uses{uses}", counting.count, (name, uses, chosen))
                for (name, uses), chosen in counted.items()
            ],
            config, parts, progress, submit,
        )  # fmt: skip
    return sheet.sheet(
        sheet.Results(
            config,
            seeds,
            trained={model: part(parts, f"train/{model.key}") for model in trained},
            judged={
                (model, test): part(parts, f"judge/{model.key}/{test}")
                for model in wanted
                for test in judged_on(config, model)
            },
            counted={(name, uses): part(parts, f"count/{name}/uses{uses}") for name, uses in counted},
        )
    )
