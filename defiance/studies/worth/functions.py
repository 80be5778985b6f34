"""Other network functions than handover, and all of them at once on one base station's processor.

With `function = "all"` the studies `worth` (handover), `beams` and `csi` answer for themselves; then the
learned functions that run at a base station share one core of it: every user asks for a decision on handover,
for a beam and for the decoding of a channel report, each with its deadline. Who misses how many, by deadline
and by either ranking, is the price of running all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from math import nan
from typing import Literal

from defiance import config as configuration
from defiance.control.compute import Task, share_processor
from defiance.errors import DefianceError
from defiance.hardware import STATION_SOC
from defiance.kpm import Curve, Row, Sheet, mean_interval
from defiance.parts import Parts
from defiance.seeding import stream
from defiance.studies import Progress, Workers, load
from defiance.studies.worth.settings import Config

USERS = (10, 30, 100, 300, 1000, 3000)
"""Of a base station's sectors together."""

LOOKED_AT_S = 0.36
ON_TIME = 0.01
"""Share of its deadlines that a function may miss and still count as on time."""

SCENARIO = "one-core"
ORDERS: dict[str, tuple[Literal["deadline", "rank"], tuple[str, ...]]] = {
    "by-deadline": ("deadline", ("handover", "beams", "csi")),
    "handover-first": ("rank", ("handover", "beams", "csi")),
    "csi-first": ("rank", ("csi", "beams", "handover")),
}
"""Regime -> what decides, and who goes first where ranks do; the last one yields."""


@dataclass(frozen=True)
class Asked:
    """How often a function is asked for a user, and how long its answer is of use.

    Attributes:
        period_s: between two results.
        deadline_s: from the report to the result.
    """

    period_s: float
    deadline_s: float


ASKED = {
    "handover": Asked(0.12, 0.05),  # ReportInterval ms120 (TS 38.331); as long as the preparation takes
    "beams": Asked(0.02, 0.02),  # a burst of synchronisation signals (TS 38.213 clause 4.1)
    "csi": Asked(0.02, 0.005),  # 40 slots of 0.5 ms (TS 38.331, CSI-ReportPeriodicityAndOffset); 10 slots
}


def of_study(
    name: str, config: Config, seeds: tuple[int, ...], parts: Parts, progress: Progress, workers: Workers
) -> Sheet:
    """The answer of the study of another function, about the cities of this one.

    Raises:
        DefianceError: what that study says about its cities.
    """
    study = load(name)
    theirs = replace(study.PRESETS[config.preset], city=config.scene, unseen_city=config.unseen_scene)
    below = Parts.open(parts.folder / name, configuration.fingerprint(theirs))
    return study.run(
        theirs, seeds=seeds[: study.SEEDS[config.preset]], parts=below, progress=progress, workers=workers
    )


def together(config: Config, sheets: Mapping[str, Sheet], seeds: tuple[int, ...]) -> Sheet:
    """One sheet of several functions' sheets: their rows, and those of the processor that they share."""
    operations = {name: station_operations(name, sheet) for name, sheet in sheets.items()}
    shared = list(_shared(operations, seeds))
    rows = [
        replace(row, scenario="/".join(filter(None, (row.scenario, name))))
        for name, sheet in sheets.items()
        for row in sheet.rows
    ]
    curves = [
        replace(curve, scenario="/".join(filter(None, (curve.scenario, name))))
        for name, sheet in sheets.items()
        for curve in sheet.curves
    ]
    first = next(iter(sheets.values()))
    verdict = [_shared_words(shared), *(f"{name}: {sheet.verdict}" for name, sheet in sheets.items())]
    return replace(
        first,
        study=f"{first.study}-all",
        config=configuration.to_dict(config),
        rows=(*rows, *shared),
        curves=(*curves, *_curves(shared)),
        sensitivities=tuple(chain.from_iterable(sheet.sensitivities for sheet in sheets.values())),
        verdict="\n".join(verdict),
    )


def station_operations(name: str, sheet: Sheet) -> float:
    """Operations of one result of a function that runs at the base station, the most of its candidates'.

    Raises:
        DefianceError: none does.
    """
    found = [
        row.mean
        for row in sheet.select(metric="inference_operations", node="base-station")
        if row.regime != "none"
    ]
    if not found:
        raise DefianceError(
            f"function=all: no learned {name} runs at the base station in this configuration; add one"
        )
    return max(found)


def _shared(operations: Mapping[str, float], seeds: tuple[int, ...]) -> Iterable[Row]:
    """What each function misses on one core that serves all of them."""
    for regime, (order, ranks) in ORDERS.items():
        names = [name for name in ranks if name in operations]
        for users in USERS:
            tasks = [
                Task(name, users, ASKED[name].period_s, ASKED[name].deadline_s, operations[name])
                for name in names
            ]
            runs = [
                share_processor(
                    tasks,
                    STATION_SOC.operations_per_second,
                    LOOKED_AT_S,
                    stream(seed, "processor", users),
                    order,
                )
                for seed in seeds
            ]
            for place, task in enumerate(tasks):
                missed = [run[place].missed / max(1, run[place].jobs) for run in runs]
                demand = task.demand(STATION_SOC.operations_per_second)
                where = (task.name, regime, f"{SCENARIO}/users{users}", "base-station")
                yield Row(*where, "deadline_miss_share", "1", *mean_interval(missed), len(seeds), "modelled")
                yield Row(*where, "processor_share", "1", demand, nan, nan, 1, "modelled")


def _curves(shared: list[Row]) -> Iterable[Curve]:
    """Missed deadlines against users, a panel for each order."""
    for regime in ORDERS:
        for name in ASKED:
            rows = [
                row
                for row in shared
                if (row.candidate, row.regime, row.metric) == (name, regime, "deadline_miss_share")
            ]
            if rows:
                yield Curve(
                    "sharing", name, "none", f"{SCENARIO}/{regime}",
                    "users", "1", "deadline_miss_share", "1",
                    tuple(map(float, USERS)), tuple(row.mean for row in rows),
                    tuple(row.ci_low for row in rows), tuple(row.ci_high for row in rows),
                )  # fmt: skip


def _shared_words(shared: list[Row]) -> str:
    """How many users one core bears, and who yields beyond that."""
    missed = {
        (row.candidate, row.regime, row.scenario): row.mean
        for row in shared
        if row.metric == "deadline_miss_share"
    }
    names = list(dict.fromkeys(row.candidate for row in shared))

    def late(regime: str, users: int) -> dict[str, float]:
        found = {name: missed[name, regime, f"{SCENARIO}/users{users}"] for name in names}
        return {name: share for name, share in found.items() if share > ON_TIME}

    borne = [users for users in USERS if not late("by-deadline", users)]
    text = f"One core of a base station runs {', '.join(names)} "
    if not borne:
        text += f"not even for {USERS[0]} users with all deadlines kept"
    else:
        text += f"for {borne[-1]} users with 99 % of the deadlines kept"
    beyond = next((users for users in USERS if users not in borne), None)
    if beyond is None:
        return f"{text}, the most that were tried."
    told = [
        f"{regime.replace('-', ' ')} "
        + (
            ", ".join(f"{name} misses {100 * share:.0f} %" for name, share in late(regime, beyond).items())
            or "nobody misses more than 1 %"
        )
        for regime in ORDERS
    ]
    return f"{text}; at {beyond}, {'; '.join(told)}."
