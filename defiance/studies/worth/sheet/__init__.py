"""From the parts of the study `worth` to its sheet: rows, curves, verdict.

Folded anew from finished parts each time.
"""

from __future__ import annotations

import math

import numpy as np

from defiance import __version__
from defiance import config as configuration
from defiance.kpm import Row, Sheet, format_quantity
from defiance.prices import CITED
from defiance.studies import machine
from defiance.studies.worth.settings import Config, Scenario, away_scenario, caps, home_scenarios
from defiance.studies.worth.sheet.curves import curves
from defiance.studies.worth.sheet.results import Results, at, contended, pictured
from defiance.studies.worth.sheet.rows import CONTENTION, rows
from defiance.studies.worth.sheet.sensitivity import sensitivities

__all__ = ["Results", "contended", "pictured", "sheet"]


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
        sensitivities=tuple(sensitivities(results)),
    )


def verdict(results: Results, found: tuple[Row, ...]) -> str:
    """The answer in words, from the rows."""
    config = results.config
    index = {(r.candidate, r.regime, r.scenario, r.metric): r for r in found if r.node == "network"}

    def chosen(metric: str, cells: list[Cell]) -> list[Row]:
        """A metric of the candidate that validation chose, cell by cell."""
        kinds = [results.chosen(s, c) for s, c in cells]
        return [
            index[f"learned-{k[0]}", k[1], s.name(c), metric] for k, (s, c) in zip(kinds, cells, strict=True)
        ]

    cells = [(s, c) for s in home_scenarios(config) for c in caps(config, s)]
    first = [(s, c) for s, c in cells if s.map == config.maps[0]]
    fast = [(s, c) for s, c in first if s.speed_kmh >= 10]
    slow = [(s, c) for s, c in first if s.speed_kmh < 10]
    second = [(s, c) for s, c in cells if s.map != config.maps[0]]
    city = cells[0][0].city.capitalize()
    sentences = []
    if fast:
        cuts = chosen("outage_cut", fast)
        sentences += [_headline(city, cuts), _span(MAPS[config.maps[0]], cuts)]
        rule = [index["a3", "none", s.name(c), "handovers_per_user_minute"] for s, c in fast]
        sentences += _more_handovers(chosen("handovers_per_user_minute", fast), rule)
    sentences += _unseen_streets(found)
    if second:
        sentences.append(_span(MAPS[second[0][0].map], chosen("outage_cut", second)))
    if slow:
        sentences.append(_pedestrians(results, slow, chosen("outage_cut", slow)))
    if fast:
        sentences += [_where(results, fast), _pay_back(config, chosen("break_even_time", fast))]
        if results.prices.electricity != CITED.electricity:
            sentences.append(_bill(chosen("electricity_payback_time", fast)))
    sentences += _contention(results, found)
    away = away_scenario(config)
    if away:
        cap = caps(config, away)[0]
        changes = [
            f"{AWAY[regime]} {_change(index[f'learned-{placement}', regime, away.name(cap), 'outage_cut'])}"
            for placement, regime in results.models(away)
            if placement == results.chosen(away, cap)[0]
        ]
        sentences.append(
            f"In {away.city.capitalize()}, where it was not trained, the change of outage is: "
            f"{'; '.join(changes)}."
        )
    return " ".join(sentences)


Cell = tuple[Scenario, float]
"""A scenario and a cap."""

MAPS = {"raw": "On the traced map", "smooth": "Without the map's ray noise (3x3 median)"}

WHO = {
    "a3": "the rule",
    "learned-station": "the function at the station",
    "learned-device": "the function on the device",
}

AWAY = {
    "central": "as trained",
    "finetuned-whole": "whole model fine-tuned",
    "finetuned-last": "last layer fine-tuned",
}


def _change(cut: Row) -> str:
    """`-31 % [-35, -27]`: what becomes of the outage."""
    if math.isnan(cut.mean):
        return "from none to some"
    ends = f" [{-100 * cut.ci_high:+.0f}, {-100 * cut.ci_low:+.0f}]" if math.isfinite(cut.ci_low) else ""
    return f"{-100 * cut.mean:+.0f} %{ends}"


def _headline(city: str, cuts: list[Row]) -> str:
    better = sum(cut.ci_low > 0 for cut in cuts)
    if better == len(cuts):
        return f"For vehicles in {city}, learned handover has less outage, on the streets it was trained on."
    if better:
        return f"On its own streets in {city}, learned handover helps in {better} of {len(cuts)} scenarios."
    return f"For vehicles in {city}, learned handover is not shown to be worth having."


def _span(where: str, cuts: list[Row]) -> str:
    known = [cut for cut in cuts if not math.isnan(cut.mean)]
    without = f"in {len(cuts) - len(known)} of {len(cuts)} scenarios the learned function alone is in outage"
    if not known:
        return f"{where} {without}."
    least, most = min(known, key=lambda r: r.mean), max(known, key=lambda r: r.mean)
    text = f"{where} time in outage changes by {_change(least)}"
    text += (f" to {_change(most)}" if most is not least else "") + " against the tuned A3 rule"
    return f"{text}; {without}." if len(known) < len(cuts) else f"{text}."


def _unseen_streets(found: tuple[Row, ...]) -> list[str]:
    """What happens where no training trip went: said beside the gain, whichever way it goes."""
    cuts = [r for r in found if r.metric == "outage_cut" and r.scenario.split("/")[0].endswith("-unseen")]
    if not cuts:
        return []
    outage = {(r.candidate, r.scenario): r.mean for r in found if r.metric == "outage_share"}
    pairs = [
        f"{100 * outage[cut.candidate, cut.scenario]:.1f} % against {100 * outage['a3', cut.scenario]:.1f} %"
        for cut in cuts
    ]
    worse = sum(cut.ci_high < 0 for cut in cuts)
    found_there = (
        f"has more outage than the rule in {worse} of {len(cuts)} scenarios"
        if worse
        else "is not shown to be worse than the rule"
    )
    return [f"On streets never seen in training it {found_there}: {', '.join(pairs)} of the time."]


def _more_handovers(own: list[Row], rule: list[Row]) -> list[str]:
    """Where the chosen function handed over more often than the rule in the test, if not in validation."""
    above = [(o, r) for o, r in zip(own, rule, strict=True) if o.mean > r.mean]
    if not above:
        return []
    pairs = ", ".join(f"{o.mean:.2f} against {r.mean:.2f}" for o, r in above)
    return [
        f"It hands over no more often than the rule, but for {len(above)} of {len(own)} scenarios in the "
        f"test ({pairs} per user-minute)."
    ]


def _pedestrians(results: Results, cells: list[Cell], cuts: list[Row]) -> str:
    outage = max(float(np.mean(at(results.a3[s], c)["test"]["outage_share"])) for s, c in cells)
    text = f"For pedestrians there is next to nothing to gain: the rule is in outage {100 * outage:.2f} %"
    if any(math.isnan(cut.mean) for cut in cuts):
        return f"{text} of the time, and the learned function is where the rule never is."
    clear = [cut for cut in cuts if cut.ci_low > 0 or cut.ci_high < 0]
    if not clear:
        return f"{text} of the time, and learning changes nothing that could be resolved."
    word = "less" if clear[0].mean > 0 else "more"
    return f"{text} of the time, and the learned function is in outage {word}: {_change(clear[0])}."


def _where(results: Results, cells: list[Cell]) -> str:
    """Which placement and regime validation chose."""
    chosen = [results.chosen(s, c) for s, c in cells]
    counts = {kind: chosen.count(kind) for kind in dict.fromkeys(chosen)}
    places = {"device": "on the device", "station": "at the base station"}
    parts = [f"{regime} training {places[placement]} in {n}" for (placement, regime), n in counts.items()]
    listed = ", ".join(parts[:-1]) + (" and " if parts[1:] else "") + parts[-1]
    text = f"Of {len(chosen)} scenarios, validation chose {listed}."
    over = sum(not results.comparable(k, s, c) for k, (s, c) in zip(chosen, cells, strict=True))
    return text + (f" In {over} of them no learned function keeps to the rule's handovers." if over else "")


def _contention(results: Results, found: tuple[Row, ...]) -> list[str]:
    """What waiting messages cost, against ideal control links."""
    rows = {(r.candidate, r.metric, r.node): r for r in found if r.metric in CONTENTION}
    if not rows:
        return []
    texts = []
    for candidate, regime in results.contention:
        cost = rows[candidate, "contention_outage", "queued"]
        text = (
            f"{WHO[candidate]} {100 * cost.mean:+.2f} [{100 * cost.ci_low:+.2f}, {100 * cost.ci_high:+.2f}]"
        )
        models = rows.get((candidate, "contention_outage", "queued-models"))
        if models is not None and regime != "none":
            text += f" ({100 * models.mean:+.2f} beside its model traffic)"
        texts.append(text)
    links = "Control messages that wait, for each other and for the air, instead of ideal links"
    return [f"{links} cost, in points of time in outage, {', '.join(texts)}."]


def _bill(times: list[Row]) -> str:
    """The same in the user's prices of electricity."""
    finite = [row.mean for row in times if math.isfinite(row.mean)]
    if not finite:
        return "The electricity that it takes is never earned back."
    longest = format_quantity(max(finite), "s")
    return f"At your prices its electricity is earned back in {len(finite)} of {len(times)} within {longest}."


def _pay_back(config: Config, times: list[Row]) -> str:
    finite = [row.mean for row in times if math.isfinite(row.mean)]
    if not finite:
        return "Its energy never pays back: what it buys is service, not joules."
    ends = [format_quantity(t, "s") for t in (min(finite), max(finite))]
    never = f", never in {len(times) - len(finite)}" if len(finite) < len(times) else ""
    return (
        f"With {config.users} users its energy pays back within {ends[0]}"
        + (f" to {ends[1]}" if len(finite) > 1 else "")
        + f" in {len(finite)} of {len(times)} scenarios{never}."
    )
