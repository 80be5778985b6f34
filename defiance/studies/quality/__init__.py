"""How does a model's quality affect the network?

A network function's model is trained, what goes with it is tuned, and then it is made worse: less data, less
training, fewer bits per weight, noise on what it sees, decisions on old measurements, one of the stations
untrained or malicious. Each candidate meets the same test worlds as the healthy model and the tuned rule
(A3; a beam sweep, search or tracking; the L-beam report), so that what it does to the network (outage, net
spectral efficiency, throughput of cells) stands beside how well it predicts (`performance`). `rule_gain` is
the network's KPI against the rule's, paired by seed: below 0 the rule wins. Handover is fine-tuned in another
city (whole, last layer, LoRA, biases), too: what is gained there, and what is forgotten at home.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from defiance import __version__
from defiance import config as configuration
from defiance.kpm import Sheet
from defiance.parts import Parts
from defiance.studies import ALL_CORES, Progress, Workers, machine, pool
from defiance.studies.quality import beams, feedback, finetuning, handover, sheet
from defiance.studies.quality.degradations import RULE, TRAINED, weights_key
from defiance.studies.quality.settings import PRESETS, SEEDS, Config, Function, check

__all__ = ["PRESETS", "SEEDS", "Config", "run"]

Tuned = dict[tuple[str, int], list[dict[str, Any]]]


def run(
    config: Config,
    *,
    seeds: tuple[int, ...],
    parts: Parts,
    progress: Progress,
    workers: Workers = ALL_CORES,
) -> Sheet:
    """Answers the question; see `studies.Study`.

    Raises:
        DefianceError: the configuration asks for nothing, or a city or its walks can't be read.
    """
    check(config)
    train = {"handover": handover.train, "beams": beams.train, "csi": feedback.train}
    judge = {"handover": _handover, "beams": _beams, "csi": _feedback}
    judged: dict[Function, sheet.Judged] = {}
    tuned: Tuned = {}
    with pool.workers(workers, parts) as submit:

        def do(told: str, jobs: list[pool.Job]) -> None:
            pool.do(told, jobs, config, parts, progress, submit)

        if "handover" in config.functions:
            do("recording", [("record", handover.record, (parts,)), ("rule", handover.tune_rule, ())])
        do(
            "training",
            [
                (f"train/{weights_key(function, *shares)}", train[function], (*shares, parts))
                for function in config.functions
                for shares in TRAINED
            ],
        )
        for function in config.functions:
            judged[function] = judge[function](config, seeds, parts, do)
        if "handover" in config.functions and config.unseen_scene:
            tuned = _finetune(config, seeds, parts, do)
    rows = [row for of in judged.values() for row in sheet.rows_of(of)]
    place = f"{Path(config.unseen_scene).stem}/fine-tuning"
    return Sheet(
        "quality",
        __version__,
        configuration.to_dict(config),
        seeds,
        machine(),
        "",
        tuple(rows + sheet.finetuning_rows(tuned, place)),
        (
            *(curve for of in judged.values() for curve in sheet.curves_of(of)),
            *sheet.finetuning_curves(tuned, place),
        ),
        sheet.verdict(judged, tuned),
    )


def _key(function: str, name: str, tests: str) -> str:
    return f"judge/{function}/{name}/{tests}".replace(" ", "-").replace("%", "percent")


def _handover(config: Config, seeds: tuple[int, ...], parts: Parts, do: Any) -> sheet.Judged:
    rule = pool.part(parts, "rule")
    do("tuning the threshold", [("threshold", handover.tune_threshold, (rule["handovers"], parts))])
    threshold, tests = pool.part(parts, "threshold")["threshold"], "-".join(map(str, seeds))
    keys = {name: _key("handover", name, tests) for name in (RULE, *handover.DEGRADATIONS)}
    jobs: list[pool.Job] = [(keys[RULE], handover.judge_rule, (rule["setting"], seeds))]
    jobs += [(keys[name], handover.judge, (name, threshold, seeds, parts)) for name in handover.DEGRADATIONS]
    do("judging handover", jobs)
    found = {name: pool.part(parts, key) for name, key in keys.items()}
    found = {name: {**of, "kpi": of["outage_share"]} for name, of in found.items()}
    return sheet.Judged(handover.scenario_of(config).name(config.cap), found, "outage_share", lower=True)


def _beams(config: Config, seeds: tuple[int, ...], parts: Parts, do: Any) -> sheet.Judged:
    do("tuning beams", [("beams/tuned", beams.tune, (parts,))])
    tuned, tests = pool.part(parts, "beams/tuned"), "-".join(map(str, seeds))
    keys = {name: _key("beams", name, tests) for name in (RULE, *beams.DEGRADATIONS)}
    jobs: list[pool.Job] = [(keys[RULE], beams.judge_rule, (tuned["rule"], seeds))]
    jobs += [(keys[name], beams.judge, (name, tuned["model"], seeds, parts)) for name in beams.DEGRADATIONS]
    do("judging beams", jobs)
    place = f"{Path(config.walks).stem}/{config.beams.speed_kmh:g}kmh/28ghz"
    found = {name: pool.part(parts, key) for name, key in keys.items()}
    return sheet.Judged(place, found, "spectral_efficiency", lower=False)


def _feedback(config: Config, seeds: tuple[int, ...], parts: Parts, do: Any) -> sheet.Judged:
    keys = [f"judge/csi/seed{seed}" for seed in seeds]
    do(
        "judging channel feedback",
        [(k, feedback.judge, (s, parts)) for k, s in zip(keys, seeds, strict=True)],
    )
    by_seed = [pool.part(parts, key) for key in keys]
    found = {
        name: {column: [of[name][column] for of in by_seed] for column in by_seed[0][name]}
        for name in by_seed[0]
    }
    place = f"{Path(config.walks).stem}/{config.csi.speed_kmh:g}kmh/3.5ghz"
    return sheet.Judged(place, found, "cell_throughput", lower=False)


def _finetune(config: Config, seeds: tuple[int, ...], parts: Parts, do: Any) -> Tuned:
    wanted = [("as trained", 0), *((way, budget) for way in finetuning.WAYS for budget in config.budgets)]
    keys = {
        (way, budget, seed): f"finetuning/{way.replace(' ', '-')}/{budget}/seed{seed}"
        for way, budget in wanted
        for seed in seeds
    }
    finetuning.away(config, parts)
    jobs = [
        (key, finetuning.tune, (way if budget else "whole", budget, seed, parts))
        for (way, budget, seed), key in keys.items()
    ]
    do("fine-tuning", jobs)
    return {
        (way, budget): [pool.part(parts, keys[way, budget, seed]) for seed in seeds] for way, budget in wanted
    }
