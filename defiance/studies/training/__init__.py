"""What does the distributed environment do to training?

Base stations train network functions on what their own cells recorded: handover (values of cells), beams
(the best of 64 from 8 wide ones), channel feedback (a codec of 64 bits). Candidates: what happens to them
(`own cells` alone; `iid data`, `dirichlet 0.1`; `stragglers`, `lossy links`, ...; the `rush hour`). Regimes:
how they learn together (`fedavg`, `fedprox`, `fedbuff`, `gossip`, `central`, `median`, ...). `performance` is
one less the share that a station's model loses at its own unseen users: of the variance of hindsight values,
of the best beam's power, of the precoder's match (SGCS); `generalisation` is the same at all stations'. Every
effect is compared with `fedavg` on the cells' own data, paired by seed (who trains, chooses and judges is
drawn anew with each); an interval about 0 is not resolved.
"""

from __future__ import annotations

from defiance import __version__
from defiance import config as configuration
from defiance.hardware import BACKHAUL
from defiance.kpm import Sheet
from defiance.parts import Parts
from defiance.seeding import stream
from defiance.studies import ALL_CORES, Progress, Workers, machine, pool
from defiance.studies.training import experiments, sheet
from defiance.studies.training.effects import Name, effects
from defiance.studies.training.lessons import lesson, recorded
from defiance.studies.training.settings import PRESETS, SEEDS, Config, Function, check

__all__ = ["PRESETS", "SEEDS", "Config", "run"]


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
        DefianceError: no function is named, or a city or its walks can't be read.
    """
    check(config)
    drifts = "handover" in config.functions
    for function in config.functions:
        recorded(config, function, parts)
    if drifts:
        recorded(config, "handover", parts, later=True)
    names = {function: _names(config, function, seeds[0], parts) for function in config.functions}
    jobs: list[pool.Job] = [
        (_key(function, name, seed), experiments.train, (function, name, seed, parts))
        for function in config.functions
        for name in names[function]
        for seed in seeds
    ]
    if drifts:
        jobs += [(f"rush-hour/seed{seed}", experiments.rush_hour, (seed, parts)) for seed in seeds]
    with pool.workers(workers, parts) as submit:
        pool.do("training under every effect", jobs, config, parts, progress, submit)
    found = {
        function: _learned(config, function, names[function], seeds, parts) for function in config.functions
    }
    rush_hour = [pool.part(parts, f"rush-hour/seed{seed}") for seed in seeds] if drifts else []
    rows = sheet.rows_of(found, rush_hour, config)
    return Sheet(
        "training",
        __version__,
        configuration.to_dict(config),
        seeds,
        machine(),
        "",
        tuple(rows),
        tuple(sheet.curves_of(found)),
        sheet.verdict(rows, found),
    )


def _names(config: Config, function: Function, seed: int, parts: Parts) -> list[Name]:
    what = lesson(config, function, seed, parts)
    return list(effects(experiments.place_of(config, function, what)))


def _learned(
    config: Config, function: Function, names: list[Name], seeds: tuple[int, ...], parts: Parts
) -> sheet.Learned:
    recipe = config.recipe(function)
    what = lesson(config, function, seeds[0], parts)
    start = what.initial(stream(0, "model"))
    return sheet.Learned(
        what.scenario,
        {name: [pool.part(parts, _key(function, name, seed)) for seed in seeds] for name in names},
        [int(lesson(config, function, seed, parts).own.count.sum()) for seed in seeds],
        what.sample_bits,
        what.nodes,
        sum(w.numel() for w in start.values()),
        recipe.rounds,
        recipe.steps * what.step(start, recipe.batch),
        BACKHAUL.joules_per_bit,
    )


def _key(function: Function, name: Name, seed: int) -> str:
    effect = "/".join(part.replace(" ", "-").replace("%", "percent") for part in name)
    return f"{function}/{effect}/seed{seed}"
