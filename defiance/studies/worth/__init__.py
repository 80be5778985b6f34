"""Is learned handover worth its cost, against a tuned A3 rule, in a real city?

Candidates: the A3 rule with all its parameters tuned under a cap on handovers (`a3`); the learned function
    at the base station, from periodic reports (`learned-station`), and on the device, from its own
    measurements (`learned-device`); a genie that knows the noise-free future (`genie`), which nobody can
    beat by much. Regimes: each station trains alone (`local`), stations average weights (`federated`), or
    all data goes to one place (`central`); models of the first city are fine-tuned in the second
    (`finetuned-whole`, `finetuned-last`). Performance is the share of time in service.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from defiance import config as configuration
from defiance.errors import DefianceError
from defiance.kpm import Sheet
from defiance.parts import Parts
from defiance.studies import ALL_CORES, Progress, Workers, pool
from defiance.studies.pool import Job, do, finished, part
from defiance.studies.worth import contention, experiments, functions, sheet, training
from defiance.studies.worth.contention import CONTROL_LINKS
from defiance.studies.worth.environment import prepare
from defiance.studies.worth.settings import (
    PRESETS,
    SEEDS,
    Config,
    Scenario,
    away_scenario,
    check,
    contended_scenario,
    home_scenarios,
    kinds,
    recorded_scenarios,
)
from defiance.studies.worth.training import RECORDED, Model
from defiance.studies.worth.worlds import scene_of

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
        seeds: of the test worlds.
        parts: finished parts, read and added to.
        progress: is told how far the work is.
        workers: who computes the parts.

    Raises:
        DefianceError: the configuration asks for nothing or mixes things up, or a worker process was killed.
    """
    if config.function in ("beams", "csi"):
        return functions.of_study(config.function, config, seeds, parts, progress, workers)
    if config.function == "all":
        # models at the devices don't burden a base station
        handover = replace(config, function="handover", placements=("station",))
        here = Parts.open(parts.folder / "handover", configuration.fingerprint(handover))
        sheets = {"handover": run(handover, seeds=seeds, parts=here, progress=progress, workers=workers)}
        for name in ("beams", "csi"):
            sheets[name] = functions.of_study(name, config, seeds, parts, progress, workers)
        return functions.together(config, sheets, seeds)
    check(config)
    asked, environment = config, prepare(config, parts, progress)
    config = environment.config
    away = away_scenario(config)
    if away:
        _check_cities(config, away)
    tests = seeds_name(seeds)
    scenarios = home_scenarios(config)
    everywhere = [*scenarios, *([away] if away else [])]
    models = [
        Model(placement, regime, map_, seed)
        for map_ in config.maps
        for placement, regime, seed in kinds(config, map_)
    ]
    tuned = [
        Model(model.placement, regime, model.map, model.seed)
        for model in models
        for regime in ("finetuned-whole", "finetuned-last")
        if away and model.regime == "central" and model.map == away.map
    ]
    with pool.workers(workers, parts) as submit:
        afar = bool(workers.ray)  # recordings are large: on a cluster every worker makes its own
        if not afar:
            jobs = _recordings(config, models, parts)
            do("recording what is learned from", jobs, config, parts, progress, submit)
        do(
            "training the learned functions, tuning the rule",
            [(f"train/{m.key}", training.train, (m, parts)) for m in models]
            + [(f"a3/{s.name()}/{tests}", experiments.tune_and_test_a3, (s, seeds)) for s in everywhere],
            config, parts, progress, submit,
        )  # fmt: skip
        handovers = {
            s: {c["cap"]: c["validation_handovers"] for c in part(parts, f"a3/{s.name()}/{tests}")["caps"]}
            for s in everywhere
        }
        if tuned and not afar:
            few = training.finetuning(config)
            jobs = _recordings(few, tuned, parts)
            do("recording in the unseen city", jobs, few, parts, progress, submit)
        do(
            "fine-tuning in the unseen city",
            [(f"train/{m.key}", training.train, (m, parts)) for m in tuned],
            config, parts, progress, submit,
        )  # fmt: skip
        parts.drop_tensors(RECORDED)
        judged = [(m, s) for m in models for s in scenarios if m.map == s.map]
        if away:
            judged += [
                (m, away)
                for m in [*models, *tuned]
                if m.map == away.map and m.regime not in ("local", "federated")
            ]
        do(
            "judging every model in every scenario",
            [(f"genie/{s.name()}/{tests}", experiments.tune_and_test_genie, (s, seeds)) for s in everywhere]
            + [
                (
                    f"judge/{m.key}/{s.name()}/{tests}",
                    experiments.tune_and_test_learned,
                    (s, m, handovers[s], parts, seeds),
                )
                for m, s in judged
            ],
            config, parts, progress, submit,
        )  # fmt: skip
        results = sheet.Results(
            config,
            seeds,
            a3={s: part(parts, f"a3/{s.name()}/{tests}") for s in everywhere},
            genie={s: part(parts, f"genie/{s.name()}/{tests}") for s in everywhere},
            trained={m: part(parts, f"train/{m.key}") for m in [*models, *tuned]},
            judged={(m, s): part(parts, f"judge/{m.key}/{s.name()}/{tests}") for m, s in judged},
            pictures={},
            prices=environment.prices,
            calibration=environment.calibration,
        )
        pictured = [s for s in scenarios if s.map == config.maps[0] and s.speed_kmh >= 10] or scenarios[:1]
        jobs = []
        for s in pictured:
            for name, model, setting in sheet.pictured(results, s):
                jobs.append(
                    (f"picture/{name}/{tests}/{s.name()}", _picture, (s, model, setting, parts, seeds[:4]))
                )
        do("recording places and distributions", jobs, config, parts, progress, submit)
        busy = contended_scenario(config)
        contended: dict[tuple[str, str], dict[str, Job]] = {}
        for candidate, regime, model, setting, rounds in sheet.contended(results, busy):
            told: dict[str, Job] = {}
            for links in CONTROL_LINKS if model else CONTROL_LINKS[:2]:
                key = f"contention/{model.key if model else candidate}/{links}/{busy.name()}/{tests}"
                arguments = (busy, model, setting, rounds, links, parts, seeds)
                told[links] = (key, contention.contention, arguments)
            contended[candidate, regime] = told
        do(
            "judging with messages that wait",
            [job for told in contended.values() for job in told.values()],
            config, parts, progress, submit,
        )  # fmt: skip
    results.pictures.update({key: part(parts, key) for key, _, _ in jobs})
    for kind, told in contended.items():
        found = {links: part(parts, key) for links, (key, _, _) in told.items()}
        # a rule is not trained: no models of its own are in its way
        results.contention[kind] = {links: found.get(links, found["queued"]) for links in CONTROL_LINKS}
    made = sheet.sheet(results)
    answered = configuration.to_dict(asked)
    if asked.prices:
        answered["constants"] = configuration.to_dict(environment.prices)
    if environment.faults:
        answered["trace_faults"] = list(environment.faults)
    return replace(made, config=answered, verdict=made.verdict + environment.remark)


def seeds_name(seeds: tuple[int, ...]) -> str:
    """What the keys of parts call the test seeds: `seeds0-7`, or `seeds0_1_7` where some are left out."""
    if seeds == tuple(range(seeds[0], seeds[-1] + 1)):
        return f"seeds{seeds[0]}-{seeds[-1]}"
    return f"seeds{'_'.join(map(str, seeds))}"


def _check_cities(config: Config, away: Scenario) -> None:
    """Refuses a second city that models of the first can't move to.

    Raises:
        DefianceError: they have different numbers of sectors, or a scene can't be read.
    """
    home = home_scenarios(config)[0]
    sectors = [len(scene_of(config, s.city, "raw").cell_site) for s in (home, away)]
    if sectors[0] != sectors[1]:
        raise DefianceError(
            f"scene {config.scene} has {sectors[0]} sectors and unseen_scene {config.unseen_scene} "
            f"{sectors[1]}, so no model can move; name a city with as many, or none: --set unseen_scene="
        )


def _recordings(config: Config, models: list[Model], parts: Parts) -> list[Job]:
    """What the models that aren't trained yet learn from, scenario by scenario."""
    untrained = [m for m in models if not finished(parts, f"train/{m.key}")]
    return [
        (f"record/{RECORDED}{placement}/{s.name()}", training.record, (placement, s, parts))
        for placement, city, map_ in dict.fromkeys((m.placement, m.city(config), m.map) for m in untrained)
        for s in recorded_scenarios(config, city, map_)
    ]


def _picture(
    config: Config,
    scenario: Scenario,
    model: Model | None,
    setting: list[float],
    parts: Parts,
    seeds: tuple[int, ...],
) -> dict[str, Any]:
    if model is None:
        return experiments.picture(config, scenario, experiments.rule(config, setting), seeds)
    policy = experiments.learned(config, scenario, model, parts, setting[0])
    return experiments.picture(config, scenario, policy, seeds)
