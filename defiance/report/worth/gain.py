"""What the network gains, at home and where the models were never trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from defiance.kpm import Row
from defiance.report import comparison, drawing, tables, words
from defiance.report.comparison import Change
from defiance.report.figures import Panel, Plot
from defiance.report.page import Section, section
from defiance.report.tables import Table
from defiance.report.words import Scenario
from defiance.report.worth import pictures
from defiance.report.worth.view import GENIE, RULE, View, by_place, by_sign, mean

SHORT_REGIMES = {"finetuned-last": "last layer tuned", "finetuned-whole": "whole model tuned"}
FINE_TUNING = ("generalisation", "training_operations", "communication_bits")
LOOK_A = drawing.Style("#1a1a1a", "-", "o")
LOOK_B = drawing.Style("#c04000", "--", "^")


def gain(view: View) -> Section | None:
    """Time in outage under rule, learned function and genie, scenario by scenario."""
    paragraphs = [_gain_words(view, place, cases) for place, cases in view.home_places.items()]
    if any(paragraphs):
        paragraphs.append(_handover_words(view))
    blocks = [
        _cut_plot(view),
        *(_gain_table(view, place, cases) for place, cases in view.home_places.items()),
        *_front_plots(view, lambda case: case.city == view.home),
    ]
    return section("gain", "What the network gains", paragraphs, blocks)


def _gain_words(view: View, place: str, cases: Sequence[Scenario]) -> str:
    cuts = view.cuts(cases, view.lead)
    if not cuts:
        return ""
    signs = by_sign(cuts)
    who = words.candidate(view.lead, names=words.PROSE)
    several = f" in {len(signs['better'])} of {len(cuts)} scenarios" if len(cuts) > 1 else ""
    if signs["better"]:
        least = min(signs["better"], key=lambda pair: pair[1].mean)
        most = max(signs["better"], key=lambda pair: pair[1].mean)
        text = f"{place}: {who} has less outage than the rule{several}, "
        text += (
            f"from {_estimate_at(least)} to {_estimate_at(most)} less."
            if least != most
            else f"{_estimate_at(least)} less."
        )
    else:
        text = f"{place}: in no scenario does {who} have less outage than the rule."
    if signs["unresolved"]:
        text += f" Not resolved, for the interval includes zero: {_listed(signs['unresolved'])}."
    if signs["worse"]:
        text += f" Worse than the rule: {_listed(signs['worse'])}."
    return text


def _handover_words(view: View) -> str:
    """Whether the gain is bought with handovers, what a cap is, and how the regime was picked."""
    metric = "handovers_per_user_minute"
    counted = {
        case.label: own.mean > rule.mean
        for cases in view.home_places.values()
        for case, cut in view.cuts(cases, view.lead)
        if (rule := view.row(metric, RULE, case)) is not None
        and (own := view.row(metric, cut.candidate, case, cut.regime)) is not None
    }
    more = [label for label, is_more in counted.items() if is_more]
    name = words.candidate(view.lead, names=words.PROSE)
    text = "A cap is the most handovers per user-minute under which rule and learned function were tuned."
    if more:
        text += f" {words.capital(name)} hands over more often than the rule in: {'; '.join(more)}."
    elif counted:
        text += f" In none of these scenarios does {name} hand over more often than the rule."
    if view.choice_is_stated:
        text += " The training regime was chosen on validation seeds."
    else:
        text += (
            " The training regime shown is the one with the largest mean cut; Where to train has all of them."
        )
    return f"{text} The genie knows the noise-free future: its outage is the floor."


def _estimate_at(pair: tuple[Scenario, Row]) -> str:
    return f"{words.estimate(pair[1])} ({pair[0].case})"


def _listed(pairs: Sequence[tuple[Scenario, Row]]) -> str:
    return "; ".join(f"{case.case}, {words.estimate(row)}" for case, row in pairs)


def _gain_table(view: View, place: str, cases: Sequence[Scenario]) -> Table | None:
    regimes = {name: {row.regime for _, row in view.cuts(cases, name)} for name in view.learned}
    head = ["scenario", words.candidate(RULE)]
    for name in view.learned:
        shared = next(iter(regimes[name])) if len(regimes[name]) == 1 else "none"
        head += [words.candidate(name, shared), f"cut, {words.candidate(name, names=words.SHORT)}"]
    rows = []
    for case in cases:
        row = [tables.name(case.case), tables.value(view.row("outage_share", RULE, case))]
        for name in view.learned:
            cut = view.cut(case, name)
            own = tables.value(view.row("outage_share", name, case, cut.regime if cut else None))
            if cut and len(regimes[name]) > 1:
                own = replace(own, remark=words.REGIMES.get(cut.regime, cut.regime))
            row += [own, tables.difference(cut)]
        rows.append((*row, tables.value(view.row("outage_share", GENIE, case))))
    caption = (
        f"{place}: share of time in outage with 95 % intervals over seeds. Cut: outage avoided relative to "
        "the rule, paired by seed."
    )
    return tables.table(f"gain-{words.slug(place)}", caption, (*head, "genie's floor"), rows)


def _cut_plot(view: View) -> Plot | None:
    groups = {
        place: [
            drawing.Estimate(
                position, words.candidate(name, names=words.SHORT), drawing.style(name, view.learned), row
            )
            for name in view.learned
            for position, case in enumerate(cases)
            if (row := view.cut(case, name)) is not None
        ]
        for place, cases in view.home_places.items()
    }
    caption = (
        "Outage avoided relative to the tuned A3 rule, with 95 % intervals. Hollow: the interval includes "
        "zero, not resolved. Left of zero: more outage than the rule."
    )
    return difference_plot("outage-cut", caption, view.home_places, groups)


def difference_plot(
    name: str,
    caption: str,
    places: Mapping[str, Sequence[Scenario]],
    groups: Mapping[str, Sequence[drawing.Estimate]],
) -> Plot | None:
    """One panel of cuts per place, all on one scale."""
    groups = {place: [one for one in found if math.isfinite(one.row.mean)] for place, found in groups.items()}
    every = [one for found in groups.values() for one in found]
    if not every:
        return None
    ends = [
        end for one in every for end in (one.row.mean, one.row.ci_low, one.row.ci_high) if math.isfinite(end)
    ]
    limits = min(0.0, *ends), max(0.0, *ends)
    panels = tuple(
        Panel(place, drawing.differences([case.case for case in places[place]], found, limits))
        for place, found in groups.items()
        if found
    )
    entries = max(len({one.label for one in found}) for found in groups.values())
    legend_in = 0.24 * math.ceil(entries / drawing.LEGEND_COLUMNS) if entries > 1 else 0.0
    return Plot(
        name,
        caption,
        "Relative outage cut in each scenario: dots with intervals beside a line at zero.",
        panels,
        width_in=4.6,
        height_in=1.0 + legend_in + 0.3 * max(len(places[place]) for place in groups),
        margins_in=(2.15, 0.15, 0.54, 0.38 + legend_in),
        across=2,
    )


def _front_plots(view: View, wanted: Callable[[Scenario], bool]) -> list[Plot]:
    fronts = {words.scenario(name): curves for name, curves in view.curves("front").items()}
    plots = []
    for place, cases in by_place(case for case in fronts if wanted(case)).items():
        panels = []
        for case in cases:
            same = (case.place, case.speed_kmh, case.load_percent)
            caps = {
                other.cap
                for other in view.scenarios
                if other.cap is not None and (other.place, other.speed_kmh, other.load_percent) == same
            }
            panels.append(Panel(case.case, pictures.fronts(drawing.by_candidate(fronts[case]), sorted(caps))))
        plots.append(
            Plot(
                f"fronts-{words.slug(place)}",
                f"{place}: time in outage against handovers, for all settings of the rule and all "
                "thresholds of the learned function. Lower left is better.",
                "Time in outage against handovers per user-minute for rule, learned functions and genie.",
                tuple(panels),
            )
        )
    return plots


def generalisation(view: View) -> Section | None:
    """The models in places that they never saw, before and after fine-tuning."""
    away = by_place(case for case in view.scenarios if case.city != view.home)
    kinds = {
        place: list(
            dict.fromkeys(
                (row.candidate, row.regime)
                for row in view.sheet.rows
                if row.metric == "outage_cut" and row.scenario in {case.name for case in cases}
            )
        )
        for place, cases in away.items()
    }
    groups = {
        place: [
            drawing.Estimate(
                position, SHORT_REGIMES.get(regime, regime), drawing.style(regime, [regime]), row
            )
            for candidate, regime in kinds[place]
            if candidate == view.lead
            for position, case in enumerate(cases)
            if (row := view.row("outage_cut", candidate, case, regime)) is not None
        ]
        for place, cases in away.items()
    }
    caption = (
        f"{words.capital(words.candidate(view.lead, names=words.PROSE))} where it was never trained: outage "
        "avoided relative to the A3 rule tuned there, with 95 % intervals. Hollow: not resolved. Left of "
        "zero: more outage than the rule."
    )
    plot = difference_plot("generalisation", caption, away, groups)
    found = [_away_table(view, place, cases, kinds[place]) for place, cases in away.items()]
    tuned = [kind for kind in view.kinds if kind[1].startswith("finetuned")]
    costs = _by_kind_away(view, tuned)
    text = [_carry_words(view, place, cases, kinds[place]) for place, cases in away.items()]
    return section("generalisation", "Does it carry over?", text, [plot, *found, costs])


def _away_table(
    view: View, place: str, cases: Sequence[Scenario], kinds: Sequence[tuple[str, str]]
) -> Table | None:
    head = ["scenario", words.candidate(RULE)]
    head += [f"cut, {words.candidate(*kind, names=words.SHORT)}" for kind in kinds]
    rows = [
        (
            tables.name(case.case),
            tables.value(view.row("outage_share", RULE, case)),
            *(tables.difference(view.row("outage_cut", name, case, regime)) for name, regime in kinds),
            tables.value(view.row("outage_share", GENIE, case)),
        )
        for case in cases
    ]
    caption = f"{place}: time in outage under the rule, and how much of it each model avoids there."
    return tables.table(f"generalisation-{words.slug(place)}", caption, (*head, "genie's floor"), rows)


def _by_kind_away(view: View, kinds: Sequence[tuple[str, str]]) -> Table | None:
    """What fine-tuning costs, in the first scenario that has it."""
    rows = []
    for name, regime in kinds:
        cells = [
            tables.value(next(iter(view.rows(metric, name, regime=regime)), None)) for metric in FINE_TUNING
        ]
        rows.append((tables.name(words.candidate(name, regime)), *cells))
    head = ("candidate", *(words.metric(metric) for metric in FINE_TUNING))
    return tables.table("fine-tuning", "What fine-tuning costs.", head, rows) if rows else None


def _carry_words(view: View, place: str, cases: Sequence[Scenario], kinds: Sequence[tuple[str, str]]) -> str:
    parts = []
    names = (("better", "less outage"), ("unresolved", "not resolved"), ("worse", "more outage"))
    for name, regime in kinds:
        cuts = [
            (case, row) for case in cases if (row := view.row("outage_cut", name, case, regime)) is not None
        ]
        if name != view.lead or not cuts:
            continue
        signs = by_sign(cuts)
        model = words.REGIMES.get(regime, f"{regime} model as it comes")
        if len(cuts) == 1:
            sign = next(label for sign, label in names if signs[sign])
            parts.append(f"{model}: cut {words.estimate(cuts[0][1])}, {sign}")
        else:
            counts = ", ".join(f"{label} in {len(signs[sign])}" for sign, label in names if signs[sign])
            average = words.number(mean([row.mean for _, row in cuts]), "1")
            parts.append(f"{model}: mean cut {average}, of {len(cuts)} scenarios {counts}")
    return f"{place}. {words.capital('; '.join(parts))}." if parts else ""


def gain_compared(view: View, found: Sequence[Change]) -> Section | None:
    """The outage cuts of the candidate that leads in A, side by side."""
    of = {comparison.key(change.a): change for change in found}
    places = view.home_places
    cuts = {
        place: [
            (position, case, of[comparison.key(row)])
            for position, case in enumerate(cases)
            if (row := view.cut(case, view.lead)) is not None and comparison.key(row) in of
        ]
        for place, cases in places.items()
    }
    groups = {
        place: [
            drawing.Estimate(position, label, look, row)
            for position, _, change in pairs
            for label, look, row in (("A", LOOK_A, change.a), ("B", LOOK_B, change.b))
        ]
        for place, pairs in cuts.items()
    }
    rows = [
        (
            tables.name(case.label),
            tables.value(change.a),
            tables.value(change.b),
            comparison.difference_cell(change),
        )
        for pairs in cuts.values()
        for _, case, change in pairs
    ]
    who = words.candidate(view.lead, names=words.PROSE)
    caption = f"Outage avoided relative to the A3 rule by {who}, in A and in B, with 95 % intervals."
    table = (
        tables.table("gain", caption, ("scenario", "cut in A", "cut in B", "B − A"), rows) if rows else None
    )
    return section("gain", "The gain", [], [difference_plot("gain", caption, places, groups), table])
