"""What a handover policy does to the network: users, base stations, and the places where links fail."""

from __future__ import annotations

import math
from collections.abc import Sequence

from defiance.kpm import Curve
from defiance.report import drawing, tables, words
from defiance.report.figures import Panel, Plot
from defiance.report.page import Section, section
from defiance.report.words import Scenario
from defiance.report.worth import pictures
from defiance.report.worth.view import RULE, View

NETWORK = (
    "handovers_per_user_minute",
    "ping_pongs_per_user_hour",
    "failures_per_user_hour",
    "throughput",
    "energy_per_bit",
)


def network(view: View) -> Section | None:
    """What the policy does to users and base stations."""
    rows = []
    for case in view.main:
        cut = view.cut(case, view.lead)
        kinds: list[tuple[str, str | None]] = [(RULE, None)] + ([(cut.candidate, cut.regime)] if cut else [])
        for index, (candidate, regime) in enumerate(kinds):
            cells = [tables.value(view.row(metric, candidate, case, regime)) for metric in NETWORK]
            label = words.candidate(candidate, regime or "none", words.SHORT)
            rows.append((tables.name(case.case if index == 0 else ""), tables.prose(label), *cells))
    place = next(iter(view.home_places), "")
    head = ("scenario", "candidate", *(words.metric(metric) for metric in NETWORK))
    table = tables.table(
        "network", f"{place}: rule and learned handover, means with 95 % intervals.", head, rows
    )
    qout = view.setting("qout_db")
    plots = [
        _distribution_plot(view, "sinr_cdf", "SINR", mark=qout),
        _distribution_plot(view, "throughput_cdf", "throughput", mark=None),
    ]
    return section("network", "What it does to the network", [], [table if rows else None, *plots])


def _distribution_plot(view: View, name: str, what: str, *, mark: float | None) -> Plot | None:
    groups = {words.scenario(scenario): curves for scenario, curves in view.curves(name).items()}
    groups = {case: curves for case, curves in groups.items() if case.city == view.home}
    several = len({case.place for case in groups}) > 1
    panels = tuple(
        Panel(
            case.label if several else case.case,
            pictures.distributions(drawing.by_candidate(curves), mark=mark),
        )
        for case, curves in groups.items()
    )
    if not panels:
        return None
    return Plot(
        name.replace("_", "-"),
        f"Distribution of users' {what}: share of samples below each value. The share is logarithmic, so "
        "that the tail in which links fail can be seen; further right is better.",
        f"Cumulative distribution of users' {what} under the rule and under learned handover.",
        panels,
        margins_in=(0.76, 0.12, 0.54, 0.34),
    )


def failures(view: View) -> Section | None:
    """City maps with the places of failures under rule and learned function, side by side."""
    plots = [
        _map_plot(view, words.scenario(name), curves)
        for name, curves in view.curves("failure_places").items()
    ]
    return section("failures", "Where links fail", [], plots)


def _map_plot(view: View, case: Scenario, curves: Sequence[Curve]) -> Plot:
    order = {name: place for place, name in enumerate(view.candidates)}
    buildings, sites = (
        [curve for name, found in view.curves(kind).items() if _same_city(name, case.city) for curve in found]
        for kind in ("buildings", "sites")
    )
    limits = _limits([*curves, *buildings, *sites])
    panels = tuple(
        Panel(
            f"{words.candidate(curve.candidate, curve.regime)}: "
            f"{words.digits(sum(math.isfinite(x) for x in curve.x), 0)} events",
            pictures.city_map(
                curve, drawing.style(curve.candidate, view.candidates), buildings, sites, limits
            ),
        )
        for curve in sorted(curves, key=lambda curve: order.get(curve.candidate, 0))
    )
    left, right, low, high = limits
    return Plot(
        f"failures-{words.slug(case.label)}",
        f"{case.label}: every dot is a place where a link failed or was in outage, in the same worlds under "
        "each policy. Buildings grey, sites as triangles.",
        "City map with the places where links fail under each policy.",
        panels,
        width_in=4.8,
        height_in=4.7 * (high - low) / (right - left) + 0.65,
        margins_in=(0.05, 0.05, 0.3, 0.35),
        across=2,
    )


def _same_city(scenario: str, city: str) -> bool:
    return scenario.split("/")[0].removesuffix("-unseen") == city.removesuffix("-unseen")


def _limits(curves: Sequence[Curve]) -> tuple[float, float, float, float]:
    """Left, right, low and high end of all that is drawn, the aspect kept between 1:2 and 2:1."""
    xs = [value for curve in curves for value in curve.x if math.isfinite(value)] or [0.0, 1.0]
    ys = [value for curve in curves for value in curve.y if math.isfinite(value)] or [0.0, 1.0]
    width, height = max(max(xs) - min(xs), 1.0), max(max(ys) - min(ys), 1.0)
    across, up = 1.02 * max(width, height / 2) / 2, 1.02 * max(height, width / 2) / 2
    x, y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    return x - across, x + across, y - up, y + up
