"""Is learned handover worth its cost, against a tuned A3 rule, in a real city?

Candidates: the A3 rule with all its parameters tuned under a cap on handovers (`a3`); the learned function
    at the base station, from periodic reports (`learned-station`), and on the device, from its own
    measurements (`learned- device`); a genie that knows the noise-free future (`genie`), which nobody can
    beat by much. Regimes: each station trains alone (`local`), stations average weights (`federated`), or
    all data goes to one place (`central`); models of the first city are fine-tuned in the second
    (`finetuned-whole`, `finetuned-last`). Performance is the share of time in service.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import torch

from defiance.errors import DefianceError
from defiance.kpm import Sheet
from defiance.parts import Parts
from defiance.studies import Progress
from defiance.studies.worth import experiments, sheet
from defiance.studies.worth.experiments import Model
from defiance.studies.worth.settings import (
    PRESETS,
    SEEDS,
    Config,
    Scenario,
    away_scenario,
    home_scenarios,
    kinds,
)

__all__ = ["PRESETS", "SEEDS", "Config", "run"]

Job = tuple[str, Callable[..., dict[str, Any]], tuple[Any, ...]]
"""A part's key, the function that makes it, and its arguments after the configuration."""


def run(config: Config, *, seeds: tuple[int, ...], parts: Parts, progress: Progress) -> Sheet:
    """Answers the question.

    Args:
        config: see `Config`.
        seeds: of the test worlds.
        parts: finished parts, read and added to.
        progress: is told how far the work is.
    """
    for name in ("speeds_kmh", "loads", "caps", "maps", "placements", "regimes"):
        if not getattr(config, name):
            raise DefianceError(f"worth needs at least one of {name}; give --set {name}=...")
    tests = f"seeds{seeds[0]}-{seeds[-1]}"
    scenarios = home_scenarios(config)
    away = away_scenario(config)
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
    with _workers(config) as submit:
        _do(
            "training the learned functions, tuning the rule",
            [(f"train/{m.key}", experiments.train, (m, parts)) for m in models]
            + [(f"a3/{s.name()}/{tests}", experiments.tune_and_test_a3, (s, seeds)) for s in everywhere],
            config, parts, progress, submit,
        )  # fmt: skip
        handovers = {
            s: {c["cap"]: c["validation_handovers"] for c in _part(parts, f"a3/{s.name()}/{tests}")["caps"]}
            for s in everywhere
        }
        _do(
            "fine-tuning in the unseen city",
            [(f"train/{m.key}", experiments.train, (m, parts)) for m in tuned],
            config, parts, progress, submit,
        )  # fmt: skip
        judged = [(m, s) for m in models for s in scenarios if m.map == s.map]
        if away:
            judged += [
                (m, away)
                for m in [*models, *tuned]
                if m.map == away.map and m.regime not in ("local", "federated")
            ]
        _do(
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
            a3={s: _part(parts, f"a3/{s.name()}/{tests}") for s in everywhere},
            genie={s: _part(parts, f"genie/{s.name()}/{tests}") for s in everywhere},
            trained={m: _part(parts, f"train/{m.key}") for m in [*models, *tuned]},
            judged={(m, s): _part(parts, f"judge/{m.key}/{s.name()}/{tests}") for m, s in judged},
            pictures={},
        )
        pictured = [s for s in scenarios if s.map == config.maps[0] and s.speed_kmh >= 10] or scenarios[:1]
        jobs: list[Job] = []
        for s in pictured:
            for name, model, setting in sheet.pictured(results, s):
                jobs.append(
                    (f"picture/{name}/{tests}/{s.name()}", _picture, (s, model, setting, parts, seeds[:4]))
                )
        _do("recording places and distributions", jobs, config, parts, progress, submit)
    results.pictures.update({key: _part(parts, key) for key, _, _ in jobs})
    return sheet.sheet(results)


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


def _part(parts: Parts, key: str) -> dict[str, Any]:
    found = parts.get(key)
    assert found is not None, key
    return found


def _do(
    description: str,
    jobs: list[Job],
    config: Config,
    parts: Parts,
    progress: Progress,
    submit: Callable[..., Future[dict[str, Any]]],
) -> None:
    """Does the jobs that are not finished yet, and keeps each result as soon as it is there."""
    with progress.task(description, total=len(jobs)) as task:
        waiting: dict[Future[dict[str, Any]], str] = {}
        for key, function, arguments in jobs:
            if parts.get(key) is None:
                waiting[submit(function, config, *arguments)] = key
            else:
                task.advance()
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                parts.put(waiting.pop(future), future.result())
                task.advance()


@contextmanager
def _workers(config: Config) -> Iterator[Callable[..., Future[dict[str, Any]]]]:
    """A pool of single-threaded processes; jobs are independent, so cores are best used by one job each."""
    count = config.workers or os.cpu_count() or 1
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        yield pool.submit
    except BaseException:
        for process in list(pool._processes.values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()


def _die_with(parent: int) -> None:
    """Ends this process once its parent is gone (kill -9): nobody is left to take its results."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
