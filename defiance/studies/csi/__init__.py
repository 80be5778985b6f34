"""Is learned channel feedback worth its cost, against the reports of 5G NR, in a real city?

Candidates: Type I (`type-1`), an L-beam report like enhanced Type II, tuned for each budget of bits
    (`l-beams`), a KLT codec (`klt`); learned: a dictionary of beams and coefficients (`dictionary`), a
    convolutional codec and a transformer. Regimes: each station trains alone (`local`), stations average
    weights (`federated`, with neighbours `gossip`), or all data goes to one place (`central`); models of the
    first city are trained on in the second, whole or the station's half. An encoder before another trainer's
    decoder is `strangers`, and what mends it `frozen-decoder` and `shared-dataset`. Performance is the
    squared generalised cosine similarity (SGCS) of precoders on unseen walks, mean over 13 sub-bands.
"""

from __future__ import annotations

from defiance.kpm import Sheet
from defiance.parts import Parts
from defiance.studies import ALL_CORES, Progress, Workers, pool
from defiance.studies.csi import experiments, sheet
from defiance.studies.csi.settings import PRESETS, SEEDS, Config, check, finetuned, models
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
        config: see `Config`.
        seeds: of the repetitions: each draws its split of walks and its initial weights.
        parts: finished parts, read and added to.
        progress: is told how far the work is.
        workers: who computes the parts.

    Raises:
        DefianceError: the configuration asks for nothing or can't be built, a city has no walks or too few,
            or a worker process was killed.
    """
    check(config)
    at_home, away = models(config, seeds), finetuned(config, seeds)
    both = seeds if experiments.two_networks(config) else ()
    with pool.workers(workers, parts) as submit:
        do(
            "fitting the rules, training the learned codecs",
            [(f"rules/seed{seed}", experiments.rules, (seed,)) for seed in seeds]
            + [(f"train/{model.key}", experiments.train, (model, parts)) for model in at_home],
            config, parts, progress, submit,
        )  # fmt: skip
        do(
            "training on in the unseen city, and halves of two trainers",
            [(f"train/{model.key}", experiments.train, (model, parts)) for model in away]
            + [(f"sides/seed{seed}", experiments.sides, (seed, parts)) for seed in both],
            config, parts, progress, submit,
        )  # fmt: skip
    return sheet.sheet(
        sheet.Results(
            config,
            seeds,
            ruled={seed: part(parts, f"rules/seed{seed}") for seed in seeds},
            trained={model: part(parts, f"train/{model.key}") for model in [*at_home, *away]},
            sides={seed: part(parts, f"sides/seed{seed}") for seed in both},
        )
    )
