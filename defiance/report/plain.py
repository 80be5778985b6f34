"""What a page tells of a study that has no story of its own: how well, at what cost, and every curve."""

from __future__ import annotations

from collections.abc import Sequence

from defiance.kpm import METRICS, Curve, Row, Sheet
from defiance.report import drawing, tables, words
from defiance.report.comparison import Change
from defiance.report.figures import Panel, Plot, clean
from defiance.report.page import Headline, Section, section
from defiance.report.tables import Table

QUESTIONS = {
    "beams": "Are learned beams worth their cost?",
    "csi": "Is learned channel feedback worth its cost?",
    "quality": "How does a model's quality affect the network?",
    "worth-all": "Which functions are worth their cost, and what do they take from each other?",
}
COSTS = (
    "training_operations",
    "training_operations_total",
    "tuning_operations",
    "inference_operations",
    "inference_parameters",
    "communication_bits",
    "inference_latency",
    "energy",
    "cpu_time",
    "break_even_time",
)
CITIES = ("munich", "florence")
MAPS = "City maps: © OpenStreetMap contributors, Open Database License (ODbL) 1.0; rays by Sionna RT."
LONG = 40
"""Rows of a table that is shown at once; a longer one is folded."""


def question(sheet: Sheet) -> str:
    """The question that the study answers."""
    return QUESTIONS.get(sheet.study, f"Study: {words.metric(sheet.study)}")


def headlines(sheet: Sheet) -> tuple[Headline, ...]:
    """The best learned candidate in the first scenario, beside the best rule, and what it costs."""
    found = [row for row in sheet.rows if row.metric == "performance" and row.mean == row.mean]
    found = [row for row in found if row.scenario == found[0].scenario]
    learned = [row for row in found if row.regime != "none"] or found
    if not learned:
        return ()
    best = max(learned, key=lambda row: row.mean)
    rules = [row for row in found if row.regime == "none" and row is not best]
    shown = [_headline(best, words.candidate(best.candidate, best.regime), f"Best of {len(learned)} learned")]
    if rules:
        rule = max(rules, key=lambda row: row.mean)
        shown.append(_headline(rule, words.candidate(rule.candidate), f"Best of {len(rules)} rules"))
    own = [row for row in sheet.rows if (row.candidate, row.regime) == (best.candidate, best.regime)]
    for metric in COSTS:
        row = next((row for row in own if row.metric == metric), None)
        if row is not None and len(shown) < 6:
            shown.append(_headline(row, words.scenario(row.scenario).label))
    return tuple(shown)


def sections(sheet: Sheet) -> tuple[Section, ...]:
    """Curves, then what is achieved and what is spent, scenario by scenario."""
    plots = [_plot(name, of) for name, of in _groups(sheet.curves).items()]
    pictures = section("curves", "In pictures", [], plots)
    return (*([pictures] if pictures else []), *tabled(sheet.rows))


def tabled(rows: Sequence[Row]) -> tuple[Section, ...]:
    """Tables of what is achieved and of what is spent."""
    costs, gains = _split(rows)
    found = (
        section("gains", "What it achieves", [], _tables("gains", gains)),
        section("costs", "What it costs", [], _tables("costs", costs)),
    )
    return tuple(each for each in found if each is not None)


def compared(a: Sheet, b: Sheet, changes: Sequence[Change]) -> tuple[Section, ...]:
    """Nothing but the changes."""
    return ()


def attribution(sheet: Sheet) -> str:
    """Whose data the numbers rest on."""
    return MAPS if any(row.scenario.startswith(CITIES) for row in sheet.rows) else ""


def _headline(row: Row, detail: str, label: str = "") -> Headline:
    value, interval = words.interval(row.mean, row.ci_low, row.ci_high, row.unit)
    text = "; ".join(filter(None, [interval, detail]))
    return Headline(label or words.capital(words.metric(row.metric)), value, f"{text}.", row.provenance)


def _split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows of costs, and the others."""
    return [row for row in rows if row.metric in COSTS], [row for row in rows if row.metric not in COSTS]


def _groups(curves: Sequence[Curve]) -> dict[str, dict[str, list[Curve]]]:
    """Curves that have points, by name and scenario."""
    found: dict[str, dict[str, list[Curve]]] = {}
    for curve in curves:
        if curve.x:
            found.setdefault(curve.name, {}).setdefault(curve.scenario, []).append(curve)
    return found


def _plot(name: str, by_scenario: dict[str, list[Curve]]) -> Plot:
    """Curves of one name, a panel for each scenario."""
    first = next(iter(by_scenario.values()))[0]
    what = clean(f"{words.metric(first.y_metric)} against {words.metric(first.x_metric)}")
    panels = tuple(
        Panel(words.scenario(scenario).label, drawing.lines(drawing.by_candidate(curves)))
        for scenario, curves in by_scenario.items()
    )
    caption = f"{words.capital(what)}, with 95 % intervals where there are several seeds."
    return Plot(words.slug(name), caption, f"{words.capital(what)}.", panels, width_in=4.6, across=2)


def _tables(name: str, rows: Sequence[Row]) -> list[Table | None]:
    """One table for each scenario: candidates down, metrics (and nodes, if several) across."""
    by_scenario: dict[str, list[Row]] = {}
    for row in rows:
        by_scenario.setdefault(row.scenario, []).append(row)
    found = []
    for scenario, here in by_scenario.items():
        nodes: dict[str, set[str]] = {}
        for row in here:
            nodes.setdefault(row.metric, set()).add(row.node)
        order = {metric: place for place, metric in enumerate(METRICS)}
        columns = sorted(
            dict.fromkeys((row.metric, row.node) for row in here),
            key=lambda column: order.get(column[0], len(order)),
        )
        kinds = dict.fromkeys((row.candidate, row.regime) for row in here)
        index = {(row.candidate, row.regime, row.metric, row.node): row for row in here}
        head = [
            words.metric(metric) + (f", {words.NODES.get(node, node)}" if len(nodes[metric]) > 1 else "")
            for metric, node in columns
        ]
        body = [
            (
                tables.name(words.candidate(*kind)),
                *(tables.value(index.get((*kind, *column))) for column in columns),
            )
            for kind in kinds
        ]
        label = words.scenario(scenario).label if scenario not in ("", "none") else "everywhere"
        found.append(
            tables.table(
                words.slug(f"{name}-{scenario}"),
                f"{words.capital(label)}, means with 95 % intervals.",
                ("candidate", *head),
                body,
                folded=len(body) > LONG,
            )
        )
    return found
