"""The few numbers at the top of the page and in the terminal, each with its interval and where it holds."""

from __future__ import annotations

import math

from defiance.report import words
from defiance.report.page import Headline
from defiance.report.worth.view import GENIE, RULE, View, by_sign


def headlines(view: View) -> tuple[Headline, ...]:
    """Four to six numbers that a reader should take away."""
    found = (
        _cut(view),
        _outage(view),
        _cost(view, "training_operations", "Operations to train"),
        _cost(view, "communication_bits", "Reports, data and models sent"),
        _break_even(view),
        _cost(view, "inference_latency", "Latency of a decision"),
    )
    return tuple(headline for headline in found if headline is not None)


def _cut(view: View) -> Headline | None:
    cuts = view.led(view.main)
    if not cuts:
        return None
    signs = by_sign(cuts)
    gained = signs["better"]
    if gained:
        case, least = min(gained, key=lambda pair: pair[1].mean)
        value = words.span([row.mean for _, row in gained], least.unit)
    else:
        case, least = max(cuts, key=lambda pair: pair[1].mean)
        value = "not resolved" if signs["unresolved"] else "more outage"
    parts = [f"{words.estimate(least)} at {case.case}"]
    if len(cuts) > 1:
        names = (("better", "less outage"), ("unresolved", "not resolved"), ("worse", "more outage"))
        counts = ", ".join(f"{name} in {len(signs[sign])}" for sign, name in names if signs[sign])
        parts = [f"of {len(cuts)} scenarios {counts}", f"{'smallest' if gained else 'largest'} {parts[0]}"]
    for place, cases in list(view.home_places.items())[1:]:
        if pairs := view.led(cases):
            parts.append(f"{place}: less outage in {len(by_sign(pairs)['better'])} of {len(pairs)}")
    detail = words.capital("; ".join(parts)) + "."
    return Headline("Outage avoided against the tuned A3 rule", value, detail, least.provenance)


def _outage(view: View) -> Headline | None:
    if view.reference is None:
        return None
    case, cut = view.reference
    rule = view.row("outage_share", RULE, case)
    learned = view.row("outage_share", cut.candidate, case, cut.regime)
    genie = view.row("outage_share", GENIE, case)
    if rule is None or learned is None:
        return None
    value = f"{words.number(rule.mean, rule.unit)} → {words.number(learned.mean, learned.unit)}"
    parts = [f"A3 {words.estimate(rule)}", f"learned {words.estimate(learned)}"]
    parts += [f"genie's floor {words.estimate(genie)}"] if genie else []
    several = len(view.main) > 1 and words.resolved(cut)
    label = "Time in outage where the least is gained" if several else "Time in outage"
    return Headline(label, value, f"{'; '.join(parts)}; {case.case}.", learned.provenance)


def _cost(view: View, metric: str, label: str) -> Headline | None:
    if view.reference is None:
        return None
    case, cut = view.reference
    row = view.nearest(metric, cut.candidate, case.name, cut.regime)
    if row is None:
        return None
    value, interval = words.interval(row.mean, row.ci_low, row.ci_high, row.unit)
    parts = [interval, words.candidate(cut.candidate, cut.regime)]
    if metric == "training_operations":
        ends = [
            curve for curves in view.curves("learning").values() for curve in curves
            if (curve.candidate, curve.regime) == (cut.candidate, cut.regime)
        ]  # fmt: skip
        parts.insert(1, words.number(ends[0].x[-1], ends[0].x_unit) if ends else "")
    parts.append(case.case if row.scenario == case.name else "")
    return Headline(label, value, words.capital("; ".join(filter(None, parts))) + ".", row.provenance)


def _break_even(view: View) -> Headline | None:
    found = [
        (case, row)
        for case, cut in view.led(view.main)
        if (row := view.row("break_even_time", cut.candidate, case, cut.regime)) is not None
        and not math.isnan(row.mean)
    ]
    if not found:
        return None
    paid = [(case, row) for case, row in found if math.isfinite(row.mean)]
    never = len(found) - len(paid)
    label, several = "Training pays back after", len(found) > 1
    if not paid:
        detail = f"In none of {len(found)} scenarios." if several else f"At {found[0][0].case}."
        return Headline("Training pays back", "never", detail, found[0][1].provenance)
    case, longest = max(paid, key=lambda pair: pair[1].mean)
    value = words.span([row.mean for _, row in paid], "s") + (" or never" if never else "")
    detail = f"{words.estimate(longest)} at {case.case}."
    if several:
        share = f"Never in {never} of {len(found)} scenarios" if never else f"In all {len(found)} scenarios"
        detail = f"{share}; longest {detail}"
    return Headline(label, value, detail, longest.provenance)
