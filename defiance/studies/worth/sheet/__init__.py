"""From the parts of the study `worth` to its sheet: rows, curves, verdict. Folded anew from finished parts each time."""

from __future__ import annotations

import math

import numpy as np

from defiance import __version__
from defiance import config as configuration
from defiance.kpm import Row, Sheet, format_quantity
from defiance.studies import machine
from defiance.studies.worth.settings import Scenario, away_scenario, caps, home_scenarios
from defiance.studies.worth.sheet.curves import curves
from defiance.studies.worth.sheet.results import Results, at, pictured
from defiance.studies.worth.sheet.rows import rows

__all__ = ["Results", "pictured", "sheet"]


def sheet(results: Results) -> Sheet:
    """The study's sheet with its verdict."""
    found = tuple(rows(results))
    return Sheet(
        study="worth",
        version=__version__,
        config=configuration.to_dict(results.config),
        seeds=results.seeds,
        machine=machine(),
        made_by="",
        rows=found,
        curves=tuple(curves(results)),
        verdict=verdict(results, found),
    )


def verdict(results: Results, found: tuple[Row, ...]) -> str:
    """The answer in words, from the rows."""
    config = results.config
    index = {(r.candidate, r.regime, r.scenario, r.node, r.metric): r for r in found}

    def row(kind: tuple[str, str], scenario: Scenario, cap: float, metric: str) -> Row:
        return index[f"learned-{kind[0]}", kind[1], scenario.name(cap), "network", metric]

    sentences = []
    city = home_scenarios(config)[0].city.capitalize()
    fast = [(s, c) for s in home_scenarios(config) if s.speed_kmh >= 10 for c in caps(config, s)]
    slow = [(s, c) for s in home_scenarios(config) if s.speed_kmh < 10 for c in caps(config, s)]
    gains = {
        m: [row(results.chosen(s, c), s, c, "outage_cut") for s, c in fast if s.map == m] for m in config.maps
    }
    resolved = [r for r in gains[config.maps[0]] if r.ci_low > 0]
    if not gains[config.maps[0]]:
        sentences.append("No vehicular scenario was asked for.")
    elif len(resolved) == len(gains[config.maps[0]]):
        sentences.append(f"On vehicular routes in {city} learned handover is worth having.")
    elif resolved:
        sentences.append(
            f"On vehicular routes in {city} learned handover helps in {len(resolved)} of {len(gains[config.maps[0]])} scenarios."
        )
    else:
        sentences.append(f"Learned handover is not shown to be worth having on vehicular routes in {city}.")
    for map_, cuts in gains.items():
        if cuts:
            label = "the traced map" if map_ == "raw" else "the 3x3-median-filtered map"
            low, high = min(cuts, key=lambda r: r.mean), max(cuts, key=lambda r: r.mean)
            sentences.append(
                f"On {label} it changes the time in outage by {-100 * low.mean:+.0f} % [{-100 * low.ci_high:+.0f}, {-100 * low.ci_low:+.0f}]"
                + (f" to {-100 * high.mean:+.0f} %" if len(cuts) > 1 else "")
                + " against the tuned A3 rule."
            )
    if slow:
        cuts = [row(results.chosen(s, c), s, c, "outage_cut") for s, c in slow if s.map == config.maps[0]]
        outage = max(np.mean(at(results.a3[s], c)["test"]["outage_share"]) for s, c in slow)
        clear = [r for r in cuts if r.ci_low > 0]
        sentences.append(
            f"For pedestrians there is next to nothing to gain: the rule is in outage at most {100 * outage:.2f} % of the time"
            + (" and learning changes nothing that could be resolved." if not clear else ".")
        )
    if fast:
        sentences.append(_where(results, [(s, c) for s, c in fast if s.map == config.maps[0]]))
        pays = [
            row(results.chosen(s, c), s, c, "break_even_time") for s, c in fast if s.map == config.maps[0]
        ]
        finite = [r.mean for r in pays if math.isfinite(r.mean)]
        if finite:
            sentences.append(
                f"In energy it pays back in {len(finite)} of {len(pays)} scenarios with {config.users} users, after "
                f"{format_quantity(min(finite), 's')}"
                + (f" to {format_quantity(max(finite), 's')}." if len(finite) > 1 else ".")
            )
        else:
            sentences.append("In energy alone it never pays back: what it buys is service, not joules.")
    away = away_scenario(config)
    if away:
        cap = caps(config, away)[0]
        parts = []
        for kind in results.models(away):
            cut = row(kind, away, cap, "outage_cut")
            if kind[0] == config.placements[-1]:
                label = "unchanged" if kind[1] == "central" else kind[1].replace("finetuned-", "fine-tuned, ")
                parts.append(
                    f"{label} {-100 * cut.mean:+.0f} % [{-100 * cut.ci_high:+.0f}, {-100 * cut.ci_low:+.0f}]"
                )
        sentences.append(f"Outage in {away.city.capitalize()} with the model of {city}: {'; '.join(parts)}.")
    return " ".join(sentences)


def _where(results: Results, cells: list[tuple[Scenario, float]]) -> str:
    """Which placement and regime validation chose."""
    chosen = [results.chosen(s, c) for s, c in cells]
    counts = {kind: chosen.count(kind) for kind in dict.fromkeys(chosen)}
    best = max(counts, key=lambda k: counts[k])
    place = "on the device" if best[0] == "device" else "at the base station"
    return f"Validation chose {best[1]} training, run {place}, in {counts[best]} of {len(chosen)} scenarios."
