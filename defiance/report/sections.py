"""What the page says about one sheet: each section is a fold over rows and curves, None where they are absent."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from defiance.kpm import METRICS, Curve, Row, Sheet
from defiance.report import figures, tables, words
from defiance.report.figures import Panel, Plot
from defiance.report.tables import EMPTY, Cell, Table
from defiance.report.view import GENIE, RULE, TRAINING_REGIMES, View
from defiance.report.words import Scenario

COMPLEXITY = (
    "training_operations",
    "tuning_operations",
    "inference_operations",
    "inference_parameters",
    "communication_bits",
    "inference_latency",
    "cpu_time",
)
NETWORK = (
    "handovers_per_user_minute",
    "ping_pongs_per_user_hour",
    "failures_per_user_hour",
    "throughput",
    "energy_per_bit",
)
PRICES = ("joules_per_avoided_outage_second", "bits_per_avoided_outage_second")


@dataclass(frozen=True)
class Section:
    """A headed part of the page: paragraphs, then tables and figures."""

    id: str
    title: str
    paragraphs: tuple[str, ...]
    blocks: tuple[Table | Plot, ...]


@dataclass(frozen=True)
class Headline:
    """One of the few large numbers at the top."""

    label: str
    value: str
    detail: str
    provenance: str = ""


def question(view: View) -> str:
    """The question that the study answers."""
    if view.sheet.study == "worth" and view.home:
        return f"Is learned handover worth its cost in {words.city(view.home)}?"
    return f"Study: {words.metric(view.sheet.study)}"


def sections(view: View) -> tuple[Section, ...]:
    """Every section for which the sheet has rows or curves."""
    folds: tuple[Callable[[View], Section | None], ...] = (
        gain,
        cost,
        training,
        network,
        places,
        pay_back,
        generalisation,
    )
    return tuple(section for fold in folds if (section := fold(view)) is not None)


def _section(
    id: str, title: str, paragraphs: Sequence[str], blocks: Sequence[Table | Plot | None]
) -> Section | None:
    kept = tuple(block for block in blocks if block is not None)
    return Section(id, title, tuple(text for text in paragraphs if text), kept) if kept else None


# --- headlines ---------------------------------------------------------------------------------------------------


def headlines(view: View) -> tuple[Headline, ...]:
    """Four to six numbers that a reader should take away, each with its interval."""
    found = [
        _headline_cut(view),
        _headline_outage(view),
        _headline_metric(view, "training_operations", "To train"),
        _headline_metric(view, "communication_bits", "Bits sent for it"),
        _headline_break_even(view),
        _headline_metric(view, "inference_latency", "Latency of a decision"),
    ]
    known = [headline for headline in found if headline is not None]
    return tuple(known) if len(known) >= 2 else _any_headlines(view)


def verdict_on(cuts: Sequence[tuple[Scenario, Row]]) -> dict[str, list[tuple[Scenario, Row]]]:
    """Cells sorted by what their interval says: 'better', 'unresolved' or 'worse'."""
    sorted_cells: dict[str, list[tuple[Scenario, Row]]] = {"better": [], "unresolved": [], "worse": []}
    for cell, row in cuts:
        kind = "unresolved" if not words.resolved(row) else "better" if row.mean > 0 else "worse"
        sorted_cells[kind].append((cell, row))
    return sorted_cells


def _cuts(view: View, cells: Sequence[Scenario], candidate: str) -> list[tuple[Scenario, Row]]:
    return [(cell, row) for cell in cells if (row := view.cut(cell, candidate)) is not None]


def _headline_cut(view: View) -> Headline | None:
    cuts = _cuts(view, view.home_cells, view.lead)
    if not cuts:
        return None
    kinds = verdict_on(cuts)
    counts = f"in {len(kinds['better'])} of {len(cuts)} cells"
    others = [
        f"{name} in {len(kinds[kind])}"
        for kind, name in (("unresolved", "not resolved"), ("worse", "worse"))
        if kinds[kind]
    ]
    if not kinds["better"]:
        low = max(cuts, key=lambda pair: pair[1].mean)
        detail = (
            f"best cell {_with_interval(low[1])}, {low[0].label}; {', '.join(others)} of {len(cuts)} cells"
        )
        value = "worse" if not kinds["unresolved"] else "not resolved"
        return Headline("Outage cut", value, detail, low[1].provenance)
    low = min(kinds["better"], key=lambda pair: pair[1].mean)
    detail = "; ".join([counts, *others, f"smallest: {_with_interval(low[1])}, {low[0].label}"])
    value = words.spread([row.mean for _, row in kinds["better"]], low[1].unit)
    return Headline("Outage cut against the tuned A3 rule", value, detail, low[1].provenance)


def _with_interval(row: Row) -> str:
    bounds = words.bounds(row.mean, row.ci_low, row.ci_high, row.unit)
    return f"{words.number(row.mean, row.unit)} {bounds}".strip()


def _headline_outage(view: View) -> Headline | None:
    cell = view.reference
    best = view.best(cell) if cell else None
    if cell is None or best is None:
        return None
    rule = view.row("outage_share", RULE, cell.name)
    learned = view.row("outage_share", best.candidate, cell.name, best.regime)
    if rule is None or learned is None:
        return None
    genie = view.row("outage_share", GENIE, cell.name)
    floor = f"; the genie's floor is {words.number(genie.mean, genie.unit)}" if genie else ""
    value = f"{words.number(rule.mean, rule.unit)} → {words.number(learned.mean, learned.unit)}"
    detail = f"A3 {words.bounds(rule.mean, rule.ci_low, rule.ci_high, rule.unit)}, "
    detail += f"learned {words.bounds(learned.mean, learned.ci_low, learned.ci_high, learned.unit)}{floor}; {cell.label}"
    return Headline("Time in outage where the cut is smallest", value, detail, learned.provenance)


def _headline_metric(view: View, metric: str, label: str) -> Headline | None:
    cell = view.reference
    best = view.best(cell) if cell else None
    if cell is None or best is None:
        return None
    row = view.nearest(metric, best.candidate, cell.name, best.regime)
    if row is None:
        return None
    detail = [words.bounds(row.mean, row.ci_low, row.ci_high, row.unit)]
    if metric == "training_operations" and (joules := _training_energy(view, best.candidate, best.regime)):
        detail.append(f"{words.number(joules, 'J')} modelled")
    detail.append(words.candidate(best.candidate, best.regime))
    return Headline(label, words.number(row.mean, row.unit), "; ".join(filter(None, detail)), row.provenance)


def _headline_break_even(view: View) -> Headline | None:
    rows = [
        row
        for cell in view.home_cells
        if (best := view.best(cell)) is not None
        and (row := view.row("break_even_time", best.candidate, cell.name, best.regime)) is not None
        and not math.isnan(row.mean)
    ]
    if not rows:
        return None
    paid = [row for row in rows if math.isfinite(row.mean)]
    if not paid:
        return Headline("Pays back", "never", f"in none of {len(rows)} cells", rows[0].provenance)
    worst = max(paid, key=lambda row: row.mean)
    detail = f"in {len(paid)} of {len(rows)} cells; " + (
        f"never in {len(rows) - len(paid)}; " if len(paid) < len(rows) else ""
    )
    detail += f"longest: {_with_interval(worst)}, {words.scenario(worst.scenario).label}"
    return Headline(
        "Pays back after", words.spread([row.mean for row in paid], "s"), detail, worst.provenance
    )


def _any_headlines(view: View) -> tuple[Headline, ...]:
    """For studies without an outage cut: the first metrics of the first candidate that is not the rule."""
    name = next(iter(view.learned), next(iter(view.candidates), ""))
    rows: dict[str, Row] = {}
    for row in view.sheet.rows:
        if row.candidate == name:
            rows.setdefault(row.metric, row)
    ordered = sorted(
        rows.values(), key=lambda row: list(METRICS).index(row.metric) if row.metric in METRICS else 99
    )
    return tuple(
        Headline(
            words.metric(row.metric),
            words.number(row.mean, row.unit),
            "; ".join(
                filter(
                    None,
                    [
                        words.bounds(row.mean, row.ci_low, row.ci_high, row.unit),
                        words.candidate(row.candidate, row.regime),
                        row.scenario,
                    ],
                )
            ),
            row.provenance,
        )
        for row in ordered[:6]
    )


# --- the gain ----------------------------------------------------------------------------------------------------


def gain(view: View) -> Section | None:
    """Time in outage under rule, learned function and genie, cell by cell."""
    places = view.places(view.home_cells)
    blocks: list[Table | Plot | None] = [_cut_plot(view, places)]
    for place, cells in places.items():
        blocks.append(_gain_table(view, place, cells))
    for plot in _front_plots(view):
        blocks.append(plot)
    return _section("gain", "What the network gains", _gain_words(view), blocks)


def _gain_words(view: View) -> list[str]:
    cuts = _cuts(view, view.home_cells, view.lead)
    if not cuts:
        return []
    kinds = verdict_on(cuts)
    who = words.candidate(view.lead)
    text = [
        f"Against an A3 rule tuned under the same cap on handovers, handover {who} cuts the time in outage in "
        f"{len(kinds['better'])} of {len(cuts)} cells (95 % interval above zero)."
    ]
    if kinds["better"]:
        low = min(kinds["better"], key=lambda pair: pair[1].mean)
        high = max(kinds["better"], key=lambda pair: pair[1].mean)
        text.append(
            f"The smallest of these cuts is {_with_interval(low[1])} ({low[0].label}), "
            f"the largest {_with_interval(high[1])} ({high[0].label})."
        )
    if kinds["unresolved"]:
        text.append(f"Not resolved, the interval includes zero: {_list(kinds['unresolved'])}.")
    if kinds["worse"]:
        text.append(f"Worse than the rule: {_list(kinds['worse'])}.")
    above = [
        cell.label
        for cell, row in cuts
        if (rule := view.row("handovers_per_user_minute", RULE, cell.name)) is not None
        and (own := view.row("handovers_per_user_minute", row.candidate, cell.name, row.regime)) is not None
        and own.mean > rule.mean
    ]
    text.append(
        f"It hands over more often than the rule in {'; '.join(above)}."
        if above
        else "In none of the cells does it hand over more often than the rule."
    )
    chosen = (
        "The regime in each cell was chosen on validation seeds."
        if view.choice_is_stated
        else "Each placement is shown under the training regime with the largest mean cut; "
        "'Where to train' has all of them."
    )
    return [
        " ".join(text),
        f"{chosen} The genie knows the noise-free future: nothing can do better than its floor.",
    ]


def _list(cells: Sequence[tuple[Scenario, Row]]) -> str:
    return "; ".join(f"{cell.label} ({_with_interval(row)})" for cell, row in cells)


def _gain_table(view: View, place: str, cells: Sequence[Scenario]) -> Table | None:
    head = ["Cell", "A3 rule"]
    for name in view.learned:
        head += [words.candidate(name), f"cut, {words.candidate(name, short=True)}"]
    rows = []
    for cell in cells:
        row = [tables.name(cell.cell), tables.value(view.row("outage_share", RULE, cell.name))]
        for name in view.learned:
            cut = view.cut(cell, name)
            own = view.row("outage_share", name, cell.name, cut.regime if cut else None)
            row += [_with_regime(own), tables.difference(cut)]
        rows.append((*row, tables.value(view.row("outage_share", GENIE, cell.name))))
    caption = f"{place}: share of time in outage with 95 % intervals over seeds; cut = outage avoided relative to A3, paired by seed."
    return tables.table(f"gain-{slug(place)}", caption, (*head, "genie's floor"), rows)


def _with_regime(row: Row | None) -> Cell:
    cell = tables.value(row)
    if row is None or row.regime == "none":
        return cell
    return Cell(
        cell.text,
        cell.interval,
        words.REGIMES.get(row.regime, row.regime),
        cell.mark,
        cell.provenance,
        cell.values,
    )


def _cut_plot(view: View, places: dict[str, list[Scenario]]) -> Plot | None:
    panels = []
    tallest = 0
    for place, cells in places.items():
        estimates = []
        for position, cell in enumerate(cells):
            for name in view.learned:
                row = view.cut(cell, name)
                if row is not None and math.isfinite(row.mean):
                    look = figures.style(name, view.learned)
                    label = words.candidate(name, short=True)
                    estimates.append(
                        figures.Estimate(position, label, look, row.mean, row.ci_low, row.ci_high)
                    )
        if estimates:
            tallest = max(tallest, len(cells))
            panels.append(
                Panel(place, figures.dots([cell.cell for cell in cells], estimates, "outage_cut", "1"))
            )
    if not panels:
        return None
    return Plot(
        "outage-cut",
        "Outage avoided relative to the tuned A3 rule, with 95 % intervals. Hollow marks: the interval includes zero, the "
        "difference is not resolved. Left of zero the learned function is worse.",
        "Dot plot of the relative outage cut of each learned candidate in each cell, with intervals and a line at zero.",
        tuple(panels),
        width_in=5.6,
        height_in=1.15 + 0.34 * tallest,
        across=2,
    )


def _front_plots(view: View) -> list[Plot]:
    curves = view.curves("front")
    groups: dict[str, dict[str, list[Curve]]] = {}
    for curve in curves:
        at = words.scenario(curve.scenario)
        if at.city == view.home:
            groups.setdefault(at.place, {}).setdefault(curve.scenario, []).append(curve)
    plots = []
    for place, scenarios in groups.items():
        panels = []
        for name, members in scenarios.items():
            at = words.scenario(name)
            caps = sorted(
                {
                    cell.cap
                    for cell in view.scenarios
                    if cell.cap is not None
                    and (cell.place, cell.speed_kmh, cell.load_percent)
                    == (at.place, at.speed_kmh, at.load_percent)
                }
            )
            panels.append(Panel(at.cell, figures.fronts(_series(members), caps)))
        plots.append(
            Plot(
                f"fronts-{slug(place)}",
                f"{place}: time in outage against executed handovers, each point one setting of the rule or one threshold of "
                "the learned function. Lower left is better; dotted verticals are the caps.",
                "Fronts of time in outage against handovers per user-minute for the A3 rule, the learned functions and the genie.",
                tuple(panels),
            )
        )
    return plots


def _series(curves: Sequence[Curve]) -> tuple[figures.Series, ...]:
    """Curves labelled by candidate, and by regime too where a candidate appears under several."""
    regimes: dict[str, set[str]] = {}
    for curve in curves:
        regimes.setdefault(curve.candidate, set()).add(curve.regime)

    def label(curve: Curve) -> str:
        several = len(regimes[curve.candidate]) > 1
        return words.candidate(curve.candidate, curve.regime if several else "none", short=True)

    return figures.series(curves, label, lambda curve: curve.candidate)


# --- what it costs -----------------------------------------------------------------------------------------------


def cost(view: View) -> Section | None:
    """Operations, parameters, bits, seconds and joules of every candidate under every regime."""
    at = view.reference.name if view.reference else ""
    where = f" Values that depend on the cell are for {view.reference.label}." if view.reference else ""
    kinds = [pair for pair in _pairs(view) if not pair[1].startswith("finetuned")]
    complexity = _metric_table(
        view,
        "complexity",
        "Complexity, overhead and latency of each candidate under each training regime." + where,
        COMPLEXITY,
        kinds,
        at,
    )
    energy = _metric_table(
        view, "energy", "Energy by node, in the evaluated time." + where, ("energy",), kinds, at
    )
    text = (
        "Every number says where it comes from: counted (exact, from the model or from real bytes), measured (a clock or a meter), "
        "modelled (counted quantities times a cited constant), estimated (a rough constant)."
    )
    return _section("cost", "What it costs", [text], [complexity, energy])


def _pairs(view: View) -> list[tuple[str, str]]:
    found = dict.fromkeys((row.candidate, row.regime) for row in view.sheet.rows)
    return sorted(found, key=lambda pair: view.candidates.index(pair[0]))


def _metric_table(
    view: View, name: str, caption: str, metrics: Sequence[str], kinds: Sequence[tuple[str, str]], at: str
) -> Table | None:
    nodes = {
        metric: list(dict.fromkeys(row.node for row in view.sheet.rows if row.metric == metric))
        for metric in metrics
    }
    columns = [(metric, node) for metric in metrics for node in nodes[metric]]
    head = ["Candidate"] + [
        words.metric(metric)
        if len(nodes[metric]) == 1
        else f"{words.node(node)}"
        if len(metrics) == 1
        else f"{words.metric(metric)}, {words.node(node)}"
        for metric, node in columns
    ]
    rows = []
    for candidate, regime in kinds:
        cells = [tables.value(view.nearest(metric, candidate, at, regime, node)) for metric, node in columns]
        if any(cell != EMPTY for cell in cells):
            rows.append((tables.name(words.candidate(candidate, regime)), *cells))
    return tables.table(name, caption, head, rows)


# --- where to train ----------------------------------------------------------------------------------------------


def training(view: View) -> Section | None:
    """Local, federated and central training side by side: gain, joules, bits."""
    head = (
        "Candidate",
        "regime",
        "smallest cut",
        "largest cut",
        "cells gained",
        "training operations",
        "training energy",
        "bits for training",
    )
    rows = []
    for candidate, regime in _pairs(view):
        if regime not in TRAINING_REGIMES:
            continue
        cuts = [
            (cell, row)
            for cell in view.home_cells
            if (row := view.row("outage_cut", candidate, cell.name, regime)) is not None
        ]
        at = view.reference.name if view.reference else ""
        low = min((row for _, row in cuts), key=lambda row: row.mean, default=None)
        high = max((row for _, row in cuts), key=lambda row: row.mean, default=None)
        gained = f"{len(verdict_on(cuts)['better'])} of {len(cuts)}" if cuts else "–"
        operations = view.nearest("training_operations", candidate, at, regime)
        rows.append(
            (
                tables.name(words.candidate(candidate)),
                tables.prose(words.REGIMES.get(regime, regime)),
                tables.difference(low),
                tables.difference(high),
                Cell(gained) if cuts else EMPTY,
                tables.value(operations),
                _end(view, "learning", candidate, regime),
                _end(view, "learning_bits", candidate, regime),
            )
        )
    if len(rows) < 2:
        return None
    caption = "Training regimes compared over all cells at home. Energy and bits of training are the ends of the learning curves below."
    table = tables.table("regimes", caption, head, rows)
    return _section("training", "Where to train", _training_words(view), [table, _learning_plot(view)])


def _end(view: View, name: str, candidate: str, regime: str) -> Cell:
    curve = next(
        (curve for curve in view.curves(name) if (curve.candidate, curve.regime) == (candidate, regime)), None
    )
    if curve is None or not math.isfinite(curve.x[-1]):
        return EMPTY
    return Cell(words.number(curve.x[-1], curve.x_unit), values=(curve.x[-1], math.nan, math.nan))


def _training_energy(view: View, candidate: str, regime: str) -> float | None:
    cell = _end(view, "learning", candidate, regime)
    return cell.values[0] if cell.values else None


def _training_words(view: View) -> list[str]:
    means: dict[str, float] = {}
    for regime in TRAINING_REGIMES:
        cuts = [
            row.mean
            for cell in view.home_cells
            if (row := view.row("outage_cut", view.lead, cell.name, regime)) is not None
            and math.isfinite(row.mean)
        ]
        if cuts:
            means[regime] = sum(cuts) / len(cuts)
    if len(means) < 2:
        return []
    ordered = sorted(means, key=lambda regime: -means[regime])
    listed = ", ".join(f"{regime} {words.number(means[regime], '1')}" for regime in ordered)
    return [
        f"Mean outage cut of handover {words.candidate(view.lead)} over the cells at home, by where it was trained: {listed}."
    ]


def _learning_plot(view: View) -> Plot | None:
    panels = []
    for candidate in view.learned:
        for name, against in (("learning", "against joules"), ("learning_bits", "against bits")):
            curves = [curve for curve in view.curves(name) if curve.candidate == candidate]
            if curves:
                lines = figures.series(curves, lambda curve: curve.regime, lambda curve: curve.regime)
                panels.append(Panel(f"{words.candidate(candidate)}, {against}", figures.learning(lines)))
    if not panels:
        return None
    return Plot(
        "learning",
        "Validation loss against what training has cost so far, in joules and in bits over the backhaul; lower left is better. "
        "A regime that sends nothing has no line against bits.",
        "Learning curves of local, federated and central training against energy and against bits.",
        tuple(panels),
        width_in=4.9,
        across=2,
    )


# --- the network -------------------------------------------------------------------------------------------------


def network(view: View) -> Section | None:
    """What the policy does to users and base stations."""
    head = ("Cell", "candidate", *(words.metric(metric) for metric in NETWORK))
    rows = []
    for cell in view.home_cells:
        best = view.best(cell)
        kinds = [(RULE, None)] + ([(best.candidate, best.regime)] if best else []) + [(GENIE, None)]
        for index, (candidate, regime) in enumerate(kinds):
            cells = [tables.value(view.row(metric, candidate, cell.name, regime)) for metric in NETWORK]
            if any(value != EMPTY for value in cells):
                title = cell.label if index == 0 else ""
                rows.append(
                    (tables.name(title), tables.prose(words.candidate(candidate, short=True)), *cells)
                )
    caption = "Rule, leading learned candidate and genie in every cell, means with 95 % intervals over seeds."
    qout = view.setting("qout_db")
    mark = (float(qout), "Qout") if isinstance(qout, int | float) else None
    return _section(
        "network",
        "What it does to the network",
        [],
        [
            _distribution_plot(view, "sinr_cdf", "SINR of users", False, mark),
            _distribution_plot(view, "throughput_cdf", "Throughput of users", True, None),
            tables.table("network", caption, head, rows),
        ],
    )


def _distribution_plot(
    view: View, name: str, title: str, log_x: bool, mark: tuple[float, str] | None
) -> Plot | None:
    groups: dict[str, list[Curve]] = {}
    for curve in view.curves(name):
        if words.scenario(curve.scenario).city == view.home:
            groups.setdefault(curve.scenario, []).append(curve)
    panels = tuple(
        Panel(
            words.scenario(scenario).cell if len(view.places(view.home_cells)) == 1 else _short(scenario),
            figures.distributions(_series(curves), log_x=log_x, mark=mark),
        )
        for scenario, curves in groups.items()
    )
    if not panels:
        return None
    return Plot(
        name.replace("_", "-"),
        f"{title}: cumulative distribution with a logarithmic share axis, so that the tail in which links fail can be seen.",
        f"Cumulative distribution of the {title.lower()} under the rule and the learned function.",
        panels,
    )


def _short(scenario: str) -> str:
    at = words.scenario(scenario)
    return f"{at.cell}, {at.map} map" if at.map else at.cell


# --- where links fail --------------------------------------------------------------------------------------------


def places(view: View) -> Section | None:
    """The city map with the places of failures under rule and learned function, side by side."""
    groups: dict[str, list[Curve]] = {}
    for curve in view.curves("failure_places"):
        groups.setdefault(curve.scenario, []).append(curve)
    plots = [_map_plot(view, scenario, curves) for scenario, curves in groups.items()]
    return _section("places", "Where links fail", [], plots)


def _map_plot(view: View, scenario: str, failures: Sequence[Curve]) -> Plot:
    at = words.scenario(scenario)
    ordered = sorted(
        failures,
        key=lambda curve: view.candidates.index(curve.candidate) if curve.candidate in view.candidates else 0,
    )
    buildings, sites = (
        [curve for curve in view.curves(name) if _same_city(curve.scenario, at.city)]
        for name in ("buildings", "sites")
    )
    limits = _limits([*failures, *buildings, *sites])
    panels = []
    for curve in ordered:
        count = sum(math.isfinite(x) for x in curve.x)
        look = figures.style(curve.candidate, view.candidates)
        title = f"{words.candidate(curve.candidate, curve.regime)}: {words.digits(count, 0)} places"
        panels.append(Panel(title, figures.city_map(curve, look, buildings, sites, limits)))
    return Plot(
        f"failures-{slug(at.label)}",
        f"{at.label}: each dot is a place where a link was lost or in outage, in the same worlds under each policy; "
        "buildings in grey, sites as triangles.",
        "City map with the places where links fail under each policy.",
        tuple(panels),
        width_in=5.2,
        height_in=5.2 * (limits[3] - limits[2]) / (limits[1] - limits[0]) + 0.4,
        across=2,
        axes_off=True,
    )


def _same_city(scenario: str, city: str) -> bool:
    return scenario.split("/")[0].removesuffix("-unseen") == city.removesuffix("-unseen")


def _limits(curves: Sequence[Curve]) -> tuple[float, float, float, float]:
    """Left, right, low, high of everything drawn; a square kilometre's aspect is kept within 1:2 and 2:1."""
    xs = [value for curve in curves for value in curve.x if math.isfinite(value)] or [0.0, 1.0]
    ys = [value for curve in curves for value in curve.y if math.isfinite(value)] or [0.0, 1.0]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    width, height = max(right - left, 1.0), max(high - low, 1.0)
    across, up = max(width, height / 2), max(height, width / 2)
    return (
        left - (across - width) / 2,
        right + (across - width) / 2,
        low - (up - height) / 2,
        high + (up - height) / 2,
    )


# --- pay-back ----------------------------------------------------------------------------------------------------


def pay_back(view: View) -> Section | None:
    """After how long training has paid for itself, and what an avoided second of outage costs."""
    groups: dict[str, list[Curve]] = {}
    for curve in view.curves("break_even"):
        groups.setdefault(curve.scenario, []).append(curve)
    panels = tuple(
        Panel(words.scenario(scenario).label if scenario else "All cells", figures.pay_back(_series(curves)))
        for scenario, curves in groups.items()
    )
    plot = (
        Plot(
            "break-even",
            "Break-even time against the number of users served. Arrows in the grey strip: training never pays back "
            "at this number of users. Vertical bars: 95 % intervals, open towards 'never' where they reach the strip.",
            "Break-even time of training against the number of users; some points may lie off the scale at 'never'.",
            panels,
            width_in=5.2 if len(panels) < 3 else 4.2,
            across=2 if len(panels) < 3 else 3,
        )
        if panels
        else None
    )
    head = ["Cell"]
    columns = [(metric, name) for name in view.learned for metric in ("break_even_time", *PRICES)]
    head += [f"{words.metric(metric)}, {words.candidate(name, short=True)}" for metric, name in columns]
    rows = []
    for cell in view.home_cells:
        chosen = {name: cut.regime for name in view.learned if (cut := view.cut(cell, name)) is not None}
        cells = [_price(view.row(metric, name, cell.name, chosen.get(name))) for metric, name in columns]
        if any(value != EMPTY for value in cells):
            rows.append((tables.name(cell.label), *cells))
    caption = "Break-even time and the price of an avoided second of outage; joules and bits are never converted into each other."
    text = (
        "Break-even is the energy of training over the power saved in the network at equal delivered bits, less what inference "
        "and signalling take. Never is a legal answer: then the function is bought for fewer outages and costs energy."
    )
    return _section(
        "pay-back", "When it pays back", [text], [plot, tables.table("pay-back", caption, head, rows)]
    )


def _price(row: Row | None) -> Cell:
    cell = tables.value(row)
    if row is not None and row.mean == math.inf and row.metric == "break_even_time":
        return Cell("never", cell.interval, "", "worse", cell.provenance, cell.values)
    return cell


# --- generalisation ----------------------------------------------------------------------------------------------


def generalisation(view: View) -> Section | None:
    """The model on streets and in cities that it never saw, before and after fine-tuning."""
    away = [cell for cell in view.scenarios if cell.city != view.home]
    head = (
        "Cell",
        "model",
        "A3 rule",
        "learned",
        "cut",
        "genie's floor",
        "generalisation",
        "training operations",
        "bits sent",
    )
    rows = []
    for cell in away:
        kinds = dict.fromkeys(
            (row.candidate, row.regime)
            for row in view.sheet.rows
            if row.scenario == cell.name
            and row.candidate in view.learned
            and row.metric in ("outage_cut", "outage_share", "generalisation")
        )
        for index, (candidate, regime) in enumerate(kinds):

            def at(
                metric: str, *, name: str = candidate, under: str | None = regime, place: str = cell.name
            ) -> Row | None:
                return view.row(metric, name, place, under)

            rows.append(
                (
                    tables.name(cell.label if index == 0 else ""),
                    tables.prose(words.candidate(candidate, regime)),
                    tables.value(view.row("outage_share", RULE, cell.name)) if index == 0 else EMPTY,
                    tables.value(at("outage_share")),
                    tables.difference(at("outage_cut")),
                    tables.value(view.row("outage_share", GENIE, cell.name)) if index == 0 else EMPTY,
                    tables.value(at("generalisation")),
                    tables.value(at("training_operations")),
                    tables.value(at("communication_bits")),
                )
            )
    caption = (
        "Places never seen in training. Trained elsewhere: the model as it comes; fine-tuned: after more training there, "
        "of the whole model or of its last layer."
    )
    return _section(
        "generalisation",
        "Does it carry over?",
        _carry_words(view, away),
        [tables.table("generalisation", caption, head, rows)],
    )


def _carry_words(view: View, away: Sequence[Scenario]) -> list[str]:
    text = []
    for city in dict.fromkeys(cell.city for cell in away):
        cells = [cell for cell in away if cell.city == city]
        for regime in dict.fromkeys(row.regime for row in view.sheet.rows if row.candidate == view.lead):
            cuts = [
                (cell, row)
                for cell in cells
                if (row := view.row("outage_cut", view.lead, cell.name, regime)) is not None
            ]
            if cuts:
                kinds = verdict_on(cuts)
                low = min((row for _, row in cuts), key=lambda row: row.mean)
                high = max((row for _, row in cuts), key=lambda row: row.mean)
                span = words.spread([low.mean, high.mean], low.unit)
                text.append(
                    f"{words.city(city)}, {words.candidate(view.lead, regime)}: cut {span}, "
                    f"resolved in {len(kinds['better'])} of {len(cuts)} cells"
                    + (f", worse than the rule in {len(kinds['worse'])}" if kinds["worse"] else "")
                    + "."
                )
    return text


# --- the whole sheet ---------------------------------------------------------------------------------------------


def all_rows(sheet: Sheet) -> Table | None:
    """Every row as it stands."""
    head = ("candidate", "regime", "scenario", "node", "metric", "mean", "n", "provenance")
    rows = [
        (
            tables.name(row.candidate),
            tables.prose(row.regime),
            tables.prose(row.scenario),
            tables.prose(row.node),
            tables.prose(row.metric),
            Cell(
                f"{words.number(row.mean, row.unit)}",
                words.bounds(row.mean, row.ci_low, row.ci_high, row.unit),
                values=(row.mean, row.ci_low, row.ci_high),
            ),
            Cell(str(row.n)),
            tables.prose(row.provenance),
        )
        for row in sheet.rows
    ]
    return tables.table("rows", f"All {len(rows)} rows of the sheet", head, rows, folded=True)


def settings(values: dict[str, object]) -> tuple[tuple[str, str], ...]:
    """Nested settings as dotted names with their values."""
    found: list[tuple[str, str]] = []

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        elif isinstance(value, list | tuple):
            found.append((prefix, ", ".join(str(item) for item in value)))
        else:
            found.append((prefix, str(value)))

    walk("", values)
    return tuple(item for item in found if item[0])


def glossary(sheets: Sequence[Sheet]) -> tuple[tuple[str, str], ...]:
    """The definitions of the metrics that the sheets use."""
    used = {row.metric for sheet in sheets for row in sheet.rows}
    return tuple(
        (words.metric(metric.name), metric.definition) for metric in METRICS.values() if metric.name in used
    )


def slug(text: str) -> str:
    """A file-name stem: letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80] or "x"
