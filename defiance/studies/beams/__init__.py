"""Are learned beams worth it, against sweeps, searches and tracking, on traced walks and measured powers?

Candidates: a sweep of all 64 beams in every burst of synchronisation blocks (`exhaustive-ssb`); sweeps, a
    hierarchical search and tracking with signal and period tuned (`exhaustive`, `hierarchical`, `tracking`);
    a model that scores all beams from 8 wide ones, now (`spatial`) or for coming instants from the last
    soundings (`temporal`). Regimes: plane waves alone (`array`), which all start from; each station alone
    (`local`), averaging (`federated`, `gossip`), all data in one place (`central`), and fine-tuned in the
    unseen city (`finetuned`). Performance is the net spectral efficiency, generalisation the same in the
    unseen city. On DeepSense 6G: the nearest or interpolated measured beam, a classifier (`mlp`), `learned`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from defiance import __version__
from defiance import config as configuration
from defiance.errors import DefianceError
from defiance.kpm import Sheet
from defiance.parts import Parts
from defiance.recordings import data_folder
from defiance.studies import ALL_CORES, Progress, Workers, machine, pool
from defiance.studies.beams import experiments, measured, sheet
from defiance.studies.beams.channels import walks_for, walks_of
from defiance.studies.beams.experiments import KINDS, Model
from defiance.studies.beams.settings import PRESETS, SEEDS, Config, check
from defiance.studies.pool import Job, do, part

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
        seeds: of the test users; no more sets of weights are trained than there are seeds to meet them.
        parts: finished parts, read and added to.
        progress: is told how far the work is.
        workers: who computes the parts.

    Raises:
        DefianceError: the configuration asks for nothing, a city has no walks, or a recording is wrong.
    """
    check(config)
    own = config.training
    config = replace(config, training=replace(own, seeds=min(own.seeds, len(seeds))))
    if unmet := set(range(config.training.seeds)) - {seed % config.training.seeds for seed in seeds}:
        raise DefianceError(
            f"training.seeds is {config.training.seeds}, but no test seed meets models of {sorted(unmet)}; "
            "test with seeds that follow each other"
        )
    cities = [config.city, *([config.unseen_city] if config.unseen_city else [])]
    for city in cities:
        walks_for(walks_of(city), "test")
    drawn = range(config.training.seeds)
    first, second, third = (
        [Model(kind, regime, seed) for kind in KINDS for regime in regimes for seed in drawn]
        for regimes in (
            ("array",),
            dict.fromkeys((*config.regimes, *(["central"] if config.unseen_city else []))),
            ("finetuned",) if config.unseen_city else (),
        )
    )
    models = (*first, *second, *third)
    # no station of another city has a claim to one of the models that each belong to a station here
    carried = tuple(m for m in models if m.regime not in ("local", "gossip"))
    tests = "_".join(map(str, seeds))
    walked: dict[tuple[str, float], Job] = {
        (city, speed_kmh): (
            f"judge/{city}/{speed_kmh:g}kmh/{tests}",
            experiments.judge,
            (city, speed_kmh, models if city == config.city else carried, seeds, parts),
        )
        for city in cities
        for speed_kmh in config.speeds_kmh
    }
    recorded = _recorded(config)
    with pool.workers(workers, parts) as submit:
        for told, wave in (
            ("training on plane waves", first),
            ("training in the city", second),
            ("fine-tuning in the unseen city", third),
        ):
            jobs: list[Job] = [(f"train/{m.key}", experiments.fit_model, (m, parts)) for m in wave]
            do(told, jobs, config, parts, progress, submit)
        jobs = [*walked.values(), *recorded.values()]
        do("judging on walks and recordings", jobs, config, parts, progress, submit)
    results = sheet.Results(
        config,
        seeds,
        {m: part(parts, f"train/{m.key}") for m in models},
        {place: part(parts, job[0]) for place, job in walked.items()},
        {kind: part(parts, job[0]) for kind, job in recorded.items()},
    )
    rows = sheet.rows_of(results)
    told_config = configuration.to_dict(config)
    curves = tuple(sheet.curves(results))
    return Sheet(
        "beams", __version__, told_config, seeds, machine(), "", rows, curves, sheet.verdict(rows, results)
    )


def _recorded(config: Config) -> dict[tuple[str, str, str], Job]:
    """The evaluations on DeepSense, none where it isn't there."""
    if not config.measured.folds or not (data_folder() / "deepsense6g").is_dir():
        return {}
    wanted: list[tuple[str, str, Any]] = []
    for share in measured.MEASURED:
        wanted += [(rule, share, "local") for rule in measured.RULES]
        # the smaller share in fewer regimes: it answers the same question
        regimes = measured.REGIMES if share == "quarter" else measured.REGIMES[:2]
        wanted += [(model, share, regime) for model in measured.MODELS for regime in regimes]
    return {one: (f"deepsense/{'/'.join(one)}", measured.evaluate, one) for one in wanted}
