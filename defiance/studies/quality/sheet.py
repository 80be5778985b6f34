"""The sheet of the study: the network's KPIs against the model's, where the rule wins, who else is harmed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from defiance.kpm import METRICS, Curve, Row, mean_interval, paired_interval
from defiance.studies.quality.degradations import HEALTHY, MALICIOUS, RULE, UNTRAINED
from defiance.studies.quality.handover import NETWORK_METRICS
from defiance.studies.quality.settings import Function

Found = Mapping[str, Mapping[str, Any]]
Tuned = Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]
"""What fine-tuning found, by way and budget, one per seed."""
OPERATIONS = "training_operations_total"
HOME = "before"
NEAR = 0.02
"""The model that is fine-tuned."""


@dataclass(frozen=True)
class Judged:
    """All candidates of one function.

    Attributes:
        scenario: the sheet's name.
        found: by candidate: `kpi`, `performance`, `at_station`, `elsewhere`, ... one number per seed each.
        kpi: the metric of the network's KPI.
        lower: whether less of it is better.
    """

    scenario: str
    found: Found
    kpi: str
    lower: bool


def gain(judged: Judged, name: str) -> list[float]:
    """By how much the network's KPI is better than under the rule, as a share of the rule's mean, by seed."""
    rule, own = judged.found[RULE]["kpi"], judged.found[name]["kpi"]
    usual = float(np.mean(rule)) or 1.0
    sign = -1.0 if judged.lower else 1.0
    return [sign * (mine - its) / usual for mine, its in zip(own, rule, strict=True)]


def alike(judged: Judged) -> list[str]:
    """Candidates whose stations all have the same model: those that a quality can be told of."""
    return [name for name in judged.found if name not in (RULE, UNTRAINED, MALICIOUS)]


KINDS = {
    "less data": ("data",),
    "less training": ("training",),
    "fewer bits": ("weights",),
    "noise": ("noise", "estimated"),
    "late": (),
}
"""How a model gets worse, by the words that such candidates begin with; what is late ends with it."""


def kind(name: str) -> str:
    """Of a candidate; the healthy one is of every kind: ''."""
    of = [kind for kind, words in KINDS.items() if name.startswith(words) and words]
    return of[0] if of else "late" if name.endswith("late") else ""


def crossing(judged: Judged, of: str) -> list[float]:
    """Performance below which the rule wins, by seed, of models that get worse in one way; nan: none.

    The same performance can mean different things to the network, so each way has a curve of its own: a
    rising one is fitted to the points of a seed (isotonic regression), and read where it crosses 0.
    """
    found = []
    for seed in range(len(judged.found[RULE]["kpi"])):
        points = sorted(
            (_at(judged.found[name]["performance"], seed), gain(judged, name)[seed])
            for name in alike(judged)
            if kind(name) in ("", of)
        )
        quality, better = np.array(points).T
        rising = isotonic_regression(better).x
        if rising[0] >= 0 or rising[-1] <= 0:
            found.append(math.nan)
            continue
        after = int(np.argmax(rising > 0))
        before = int(np.flatnonzero(rising <= 0)[-1])
        share = -rising[before] / (rising[after] - rising[before])
        found.append(float(quality[before] + share * (quality[after] - quality[before])))
    return found


def _known(judged: Judged, of: str) -> list[float]:
    """Crossings, of the seeds that have one."""
    return [x for x in crossing(judged, of) if math.isfinite(x)]


def _at(samples: Sequence[float], seed: int) -> float:
    """A seed's number; one that all share."""
    return samples[seed] if len(samples) > 1 else samples[0]


def rows_of(judged: Judged) -> list[Row]:
    """Every candidate's KPIs, its gain over the rule, and what users here and elsewhere have."""
    rows = []
    for name, of in judged.found.items():

        def row(metric: str, samples: Sequence[float], node: str = "network", name: str = name) -> Row:
            regime = "none" if name == RULE else "central"
            unit = METRICS[metric].unit or "1"
            numbers = mean_interval(samples)
            return Row(name, regime, judged.scenario, node, metric, unit, *numbers, len(samples), "measured")

        metrics = NETWORK_METRICS if judged.kpi == NETWORK_METRICS[0] else (judged.kpi,)
        rows += [row(metric, of[metric if metric != judged.kpi else "kpi"]) for metric in metrics]
        if "least" in of:
            rows.append(row("throughput", of["least"], "worst 5 % of users"))
        if name != RULE:
            local = "throughput" if judged.kpi == "cell_throughput" else judged.kpi
            rows += [
                row("performance", of["performance"]),
                row("rule_gain", gain(judged, name)),
                row(local, of["at_station"], "the station"),
                row(local, of["elsewhere"], "other stations"),
            ]
            if name in (UNTRAINED, MALICIOUS):
                change = paired_interval(of["elsewhere"], judged.found[HEALTHY]["elsewhere"])
                rows.append(
                    Row(name, "against healthy", judged.scenario, "other stations", local,
                        METRICS[local].unit or "1", *change, len(of["elsewhere"]), "measured")
                )  # fmt: skip
    for of_kind in KINDS:
        known = _known(judged, of_kind)
        if known:
            rows.append(
                Row(of_kind, "against rule", judged.scenario, "network", "break_even_performance", "1",
                    *mean_interval(known), len(known), "measured")
            )  # fmt: skip
    return rows


def curves_of(judged: Judged) -> list[Curve]:
    """The network's gain over the rule against the model's performance, a line for each way of getting worse.

    Models that are worse than none are left out.
    """
    curves = []
    for of in KINDS:
        points = sorted(
            (float(np.mean(judged.found[name]["performance"])), *mean_interval(gain(judged, name)))
            for name in alike(judged)
            if kind(name) in ("", of)
        )
        points = [point for point in points if point[0] > 0]
        if len(points) > 1:
            x, y, low, high = (tuple(map(float, column)) for column in zip(*points, strict=True))
            names = "quality", of, "central", judged.scenario
            curves.append(Curve(*names, "performance", "1", "rule_gain", "1", x, y, low, high))
    return curves


# --- fine-tuning --------------------------------------------------------------------------------------------


def finetuning_rows(found: Tuned, scenario: str) -> list[Row]:
    """What every way of fine-tuning reaches with every budget, what it moves, and what it forgets."""
    rows = []
    for (way, budget), parts in found.items():
        name = (way, f"{budget} rounds") if budget else (way, HOME)

        def row(
            metric: str,
            samples: Sequence[float],
            provenance: str,
            node: str = "network",
            name: tuple[str, str] = name,
        ) -> Row:
            unit = "op" if metric == OPERATIONS else METRICS[metric].unit or "1"
            return Row(*name, scenario, node, metric, unit, *mean_interval(samples), len(samples), provenance)

        of = {column: [part[column] for part in parts] for column in parts[0]}
        rows += [
            row("performance", of["performance"], "measured"),
            row("performance", of["home"], "measured", "home city"),
            row("performance", of["robust"], "measured", "with noise"),
            row("communication_bits", [32.0 * moved for moved in of["moved"]], "counted"),
            row(OPERATIONS, of["operations"], "counted"),
        ]
    for way in dict.fromkeys(way for way, budget in found if budget):
        spent = _to_target(found, way)
        rows.append(
            Row(way, "to target", scenario, "network", "operations_to_target", "op", *mean_interval(spent),
                len(spent), "counted")
        )  # fmt: skip
    return rows


def _to_target(found: Tuned, way: str) -> list[float]:
    """Operations of the least budget within 2 points of the whole model's at its largest, by seed."""
    most = max(budget for _, budget in found)
    spent = []
    for seed, best in enumerate(found["whole", most]):
        enough = [
            parts[seed]["operations"]
            for (of, budget), parts in found.items()
            if of == way and budget and parts[seed]["performance"] >= best["performance"] - NEAR
        ]
        spent.append(min(enough, default=math.inf))
    return spent


def finetuning_curves(found: Tuned, scenario: str) -> list[Curve]:
    """Performance in the new city, and at home, against operations."""
    curves = []
    places = {"fine-tuning": ("performance", scenario), "forgetting": ("home", "home city/forgetting")}
    for node, (column, place) in places.items():
        for way in dict.fromkeys(way for way, budget in found if budget):
            shown = [parts for (of, budget), parts in found.items() if of == way or not budget]
            x = tuple(float(np.mean([part["operations"] for part in parts])) for parts in shown)
            y, low, high = zip(
                *(mean_interval([part[column] for part in parts]) for parts in shown), strict=True
            )
            curves.append(
                Curve(node, way, "central", place, OPERATIONS, "op", "performance", "1",
                      x, y, low, high)
            )  # fmt: skip
    return curves


# --- in words -----------------------------------------------------------------------------------------------

NAMES: dict[Function, str] = {"handover": "Handover", "beams": "Beams", "csi": "Channel feedback"}
LOST = {
    "less data": "for want of data",
    "less training": "for want of training",
    "fewer bits": "for want of bits",
    "noise": "under noise",
    "late": "if late",
}
MODELS: dict[Function, str] = {
    "handover": "model",
    "beams": "model, trusted in every period,",
    "csi": "transformer codec",
}
KPIS: dict[Function, str] = {
    "handover": "time in outage",
    "beams": "net spectral efficiency",
    "csi": "cells' throughput",
}


def verdict(
    judged: Mapping[Function, Judged], tuned: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]
) -> str:
    """Where the rule wins, function by function; whom a malicious station harms; what tuning forgets."""
    told = [_summary(judged), *(_function(function, of) for function, of in judged.items())]
    return " ".join([*told, *_finetuned(tuned)])


def _summary(judged: Mapping[Function, Judged]) -> str:
    ahead = sum(mean_interval(gain(of, HEALTHY))[1] > 0 for of in judged.values())
    behind = sum(mean_interval(gain(of, HEALTHY))[2] < 0 for of in judged.values())
    text = f"The healthy model beats the tuned rule in {ahead} of {len(judged)} functions"
    return text + (f" and loses in {behind}." if behind else ".")


def _function(function: Function, judged: Judged) -> str:
    gains = {name: mean_interval(gain(judged, name)) for name in judged.found if name != RULE}
    mean, low, high = gains[HEALTHY]
    worse = [name for name, (_, _, high) in gains.items() if high < 0]
    text = (
        f"{NAMES[function]}: with the healthy {MODELS[function]} the {KPIS[function]} is better than with the"
        f" rule by {100 * mean:+.1f} % [{100 * low:+.1f}, {100 * high:+.1f}]"
    )
    if len(worse) == len(gains):
        text += f"; the rule wins against all {len(gains)}"
    elif worse:
        text += f"; the rule wins against {len(worse)} of {len(gains)} ({', '.join(worse)})"
    seeds = len(judged.found[RULE]["kpi"])
    told = []
    for of_kind in KINDS:
        known = _known(judged, of_kind)
        if known and float(np.mean(known)) > 0:
            some = "" if len(known) == seeds else f" ({len(known)} of {seeds} seeds)"
            told.append(f"{100 * float(np.mean(known)):.0f} % {LOST[of_kind]}{some}")
    if told:
        text += f"; it wins below a performance of {', '.join(told)}"
    if function == "beams":  # stations don't meet there
        return text + "."
    healthy = judged.found[HEALTHY]["elsewhere"]
    mean, low, high = paired_interval(judged.found[MALICIOUS]["elsewhere"], healthy)
    usual = float(np.mean(healthy)) or 1.0
    resolved = "" if low > 0 or high < 0 else ", not resolved"
    metric = "time in outage" if judged.lower else "throughput"
    change = f"{100 * mean / usual:+.1f} % [{100 * low / usual:+.1f}, {100 * high / usual:+.1f}]{resolved}"
    return f"{text}; a malicious station changes the {metric} of other stations' users by {change}."


def _finetuned(found: Tuned) -> list[str]:
    if not found:
        return []
    most = max(budget for _, budget in found)

    def mean(way: str, budget: int, column: str) -> float:
        return 100 * float(np.mean([part[column] for part in found[way, budget]]))

    before = next(way for way, budget in found if not budget)
    told = [
        f"{way} {mean(way, most, 'performance'):.0f} % there and {mean(way, most, 'home'):.0f} % at home"
        for way, budget in found
        if budget == most
    ]
    return [
        f"Fine-tuned for {most} rounds in the other city, from {mean(before, 0, 'performance'):.0f} % there"
        f" and {mean(before, 0, 'home'):.0f} % at home: {'; '.join(told)}."
    ]
