"""What a page tells of training in a network: effects, who suffers from unlike data, what pays for what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes

from defiance.kpm import Curve, Row, Sheet
from defiance.report import drawing, plain, tables, words
from defiance.report.comparison import Change
from defiance.report.drawing import Draw, End, Estimate, Series, Style
from defiance.report.figures import GREY, INK, Panel, Plot
from defiance.report.page import Headline, Section, section

BASE = ("own cells", "fedavg")
RUSH_HOUR, FORMULA = "rush hour", "formula"
ALIKE = ("own cells", "dirichlet 0.1", "dirichlet 1", "iid data")
"""Candidates from the least to the most alike data."""
COST_OF = {"energy": "joules", "communication_bits": "bits", "training_time": "virtual time"}
LOOKS = {
    "fedavg": Style("#1a1a1a", "-", "o"),
    "local": Style("#7a3e8c", (0, (1, 1.5)), "v"),
    "gossip": Style("#00785a", (0, (4, 1, 1, 1, 1, 1)), "P"),
    "central": Style("#c04000", (0, (6, 1.5, 1, 1.5)), "^"),
    "signs": Style("#0072b2", (0, (6, 2)), "s"),
    "int8": Style("#8c6d00", (0, (3, 1)), "X"),
    "top 2 %": Style("#4d4d4d", (0, (2, 1)), "*"),
}
OTHER = Style("#767676", (0, (1, 1.5)), "D")
PLAIN = Style("#0072b2", "-", "o")
NAMED = 5
"""Points of a front that are named."""


def question(sheet: Sheet) -> str:
    """The question that the study answers."""
    return "What does the distributed environment do to training?"


def headlines(sheet: Sheet) -> tuple[Headline, ...]:
    """Of every function: what FedAvg reaches on the cells' own data, and the change that helps most."""
    found = []
    for scenario in _scenarios(sheet):
        gains = [row for row in _rows(sheet, scenario, "performance_gain") if row.ci_low > 0]
        base = next((row for row in _rows(sheet, scenario, "performance") if _name(row) == BASE), None)
        place = _title(scenario)
        if base is not None:
            found.append(_headline(f"FedAvg, {place}", base, "on the cells' own data"))
        if gains:
            best = max(gains, key=lambda row: row.mean)
            found.append(_headline(f"Most helps, {place}", best, _label(best)))
    return tuple(found)


def sections(sheet: Sheet) -> tuple[Section, ...]:
    """Effects, unlike data, what performance costs, where formulas hold, drift; then all tables."""
    scenarios = _scenarios(sheet)
    every_row = f"All intervals are of 95 %, over {words.count(len(sheet.seeds), 'seed')}."
    found = (
        section(
            "effects",
            "What every effect does",
            [
                "Change of performance against FedAvg on the cells' own data, paired by seed; hollow dots "
                "are not resolved. A seed draws the weights and who trains, chooses the round, and judges.",
                every_row,
            ],
            [_effects(sheet, scenario) for scenario in scenarios],
        ),
        section(
            "alike",
            "How alike the stations' data are",
            [
                "Left: at a station's own users. Right: every model at all stations' users. From what cells "
                "record themselves to samples that are dealt out evenly."
            ],
            [_alike(sheet, scenario) for scenario in scenarios],
        ),
        section(
            "costs-of-performance",
            "What performance costs",
            [
                "Every regime on the cells' own data as a point; the line joins those that none beats at "
                "less cost (the Pareto front). Joules are of computing and sending, by the sheet's constants."
            ],
            [_front(sheet, scenario) for scenario in scenarios],
        ),
        section(
            "learning",
            "How regimes learn",
            ["Performance on the users that choose the best round, of the first seed, once it is above 0."],
            [_learning(sheet, scenario) for scenario in scenarios],
        ),
        section(
            "traffic",
            "Weights or samples: where the break-even formula holds",
            [
                "Federated training sends less than the samples themselves while 2 R K b < D: R rounds, K "
                "nodes, b bits of a model, D bits of raw samples (Savazzi et al. 2021). The meter says when "
                "codes, absent nodes and repeats move the point."
            ],
            [_traffic(sheet), _break_even(sheet)],
        ),
        section(
            "drift",
            "When is re-training worth it?",
            [
                "A handover model of quieter hours meets the rush hour: it stays as it is, its stations "
                "train on for half the rounds, or all samples are gathered again."
            ],
            [_drift(sheet)],
        ),
    )
    return (*(each for each in found if each is not None), *plain.tabled(sheet.rows))


def compared(a: Sheet, b: Sheet, changes: Sequence[Change]) -> tuple[Section, ...]:
    """Nothing but the changes."""
    return ()


def attribution(sheet: Sheet) -> str:
    """Whose data the numbers rest on."""
    return plain.attribution(sheet)


def _name(row: Row | Curve) -> tuple[str, str]:
    return row.candidate, row.regime


def _label(row: Row) -> str:
    """'gossip: own cells' is what a reader looks for by regime."""
    return f"{row.regime}: {row.candidate}"


def _scenarios(sheet: Sheet) -> list[str]:
    return list(dict.fromkeys(row.scenario for row in sheet.rows))


def _title(scenario: str) -> str:
    """Function and place: 'beams, Munich, 28 GHz'."""
    found = words.scenario(scenario)
    for band, function in (("28ghz", "beams"), ("3.5ghz", "feedback")):
        if band in found.rest:
            return f"{words.capital(function)}, {words.city(found.city)}"
    return f"Handover, {found.place.split(',')[0]}"


def _rows(sheet: Sheet, scenario: str, metric: str) -> list[Row]:
    """The network's rows of the effects."""
    found = sheet.select(metric=metric, scenario=scenario, node="network")
    return [row for row in found if row.candidate not in (RUSH_HOUR, FORMULA)]


def _headline(label: str, row: Row, detail: str) -> Headline:
    value, interval = words.interval(row.mean, row.ci_low, row.ci_high, row.unit)
    return Headline(label, value, "; ".join(filter(None, [interval, detail])) + ".", row.provenance)


def _effects(sheet: Sheet, scenario: str) -> Plot | None:
    rows = [row for row in _rows(sheet, scenario, "performance_gain") if _name(row) != BASE]
    rows = sorted((row for row in rows if math.isfinite(row.mean)), key=lambda row: -row.mean)
    if not rows:
        return None
    ends = [end for row in rows for end in (row.mean, row.ci_low, row.ci_high) if math.isfinite(end)]
    limits = min(0.0, *ends), max(0.0, *ends)
    estimates = [Estimate(place, "change", PLAIN, row) for place, row in enumerate(rows)]
    label = _title(scenario)
    return Plot(
        words.slug(f"effects-{scenario}"),
        f"{label}: change of performance against FedAvg on the cells' own data.",
        f"{label}: every effect's change of performance with its interval.",
        (Panel(label, drawing.differences([_label(row) for row in rows], estimates, limits)),),
        width_in=7.4,
        height_in=0.9 + 0.2 * len(rows),
        margins_in=(2.2, 0.1, 0.54, 0.34),
        across=1,
    )


def _alike(sheet: Sheet, scenario: str) -> Plot | None:
    panels = []
    for metric, title in (("performance", "its own users"), ("generalisation", "all stations' users")):
        rows = {_name(row): row for row in _rows(sheet, scenario, metric)}
        regimes = [
            regime for regime in dict.fromkeys(name[1] for name in rows) if (ALIKE[-1], regime) in rows
        ]
        kinds = [kind for kind in ALIKE if any((kind, regime) in rows for regime in regimes)]
        if regimes and kinds:
            values = [[rows[k, r].mean if (k, r) in rows else math.nan for k in kinds] for r in regimes]
            panels.append(Panel(title, _heat(values, regimes, kinds)))
    label = _title(scenario)
    plot = Plot(
        words.slug(f"alike-{scenario}"),
        f"{label}: performance [%] by regime and by how alike the stations' data are.",
        f"{label}: heat maps of regime against likeness of data.",
        tuple(panels),
        width_in=4.4,
        height_in=2.4,
        margins_in=(0.8, 0.1, 0.5, 0.4),
        across=2,
    )
    return plot if panels else None


def _heat(values: Sequence[Sequence[float]], down: Sequence[str], across: Sequence[str]) -> Draw:
    """Shares as a grid, each cell with its number in per cent."""

    def draw(axes: Axes) -> None:
        grid = np.asarray(values, dtype=float)
        finite = grid[np.isfinite(grid)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        low = max(low, -1.0)  # a model that is far worse than none would take all the colours
        axes.pcolormesh(grid, cmap="Blues", vmin=low, vmax=high + 1e-9, edgecolors="white", linewidth=2)
        for (row, column), value in np.ndenumerate(grid):
            if math.isfinite(value):
                dark = value > low + 0.6 * (high - low)
                text = f"{100 * value:.0f}".replace("-", words.MINUS)
                axes.text(
                    column + 0.5, row + 0.5, text, ha="center", va="center", color="white" if dark else INK
                )
        axes.set_xticks([place + 0.5 for place in range(len(across))], list(across))
        axes.set_yticks([place + 0.5 for place in range(len(down))], list(down))
        axes.invert_yaxis()
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)

    return draw


def _front(sheet: Sheet, scenario: str) -> Plot | None:
    gains = {_name(row): row for row in _rows(sheet, scenario, "performance")}
    panels = []
    for metric, cost in COST_OF.items():
        points = [
            (row.mean, gains[_name(row)].mean, row.regime)
            for row in _rows(sheet, scenario, metric)
            if row.candidate == BASE[0] and _name(row) in gains and row.mean > 0
        ]
        if len(points) > 1:
            panels.append(Panel(f"against {cost}", _scatter(points, metric, "performance")))
    label = _title(scenario)
    plot = Plot(
        words.slug(f"front-{scenario}"),
        f"{label}: performance against cost; no cost at all (no bits of local training) has no point.",
        f"{label}: regimes as points of performance against joules, bits and time.",
        tuple(panels),
    )
    return plot if panels else None


def _scatter(points: Sequence[tuple[float, float, str]], metric: str, other: str) -> Draw:
    """Points on a logarithmic axis of cost; those that none beats at less cost are joined and named."""

    def draw(axes: Axes) -> None:
        shown = [point for point in points if math.isfinite(point[1])]
        best, front = -math.inf, []
        for point in sorted(shown, key=lambda point: (point[0], -point[1])):
            if point[1] > best:
                best = point[1]
                front.append(point)
        axes.set_xscale("log")
        cost = [point[0] for point in shown]
        drawing.room_right(axes, min(cost), max(cost))
        every = [point[1] for point in shown]
        pad = 0.06 * (max(every) - min(every)) or 0.05
        axes.set_ylim(min(every) - pad, max(every) + pad)
        axes.plot(cost, every, linestyle="", marker="o", color=GREY, markersize=4, markerfacecolor="white")
        axes.step(
            [x for x, _, _ in front], [y for _, y, _ in front], where="post", color=PLAIN.color, marker="o"
        )
        drawing.label_axis(axes.xaxis, metric, _UNITS[metric], max(cost), log=True)
        drawing.label_axis(axes.yaxis, other, "1", max(map(abs, every)))
        axes.grid(axis="y")
        drawing.label_ends(axes, [End(x, y, name, PLAIN.color) for x, y, name in front[-NAMED:]])

    return draw


_UNITS = {"energy": "J", "communication_bits": "bit", "training_time": "s"}


def _drawn(curves: Sequence[Curve]) -> tuple[Series, ...]:
    """Curves by regime, from where a model is worth something."""
    found = []
    for curve in curves:
        kept = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if y >= 0]
        x, y = tuple(x for x, _ in kept), tuple(y for _, y in kept)
        found.append(Series(curve.regime, LOOKS.get(curve.regime, OTHER), replace(curve, x=x, y=y)))
    return tuple(found)


def _learning(sheet: Sheet, scenario: str) -> Plot | None:
    curves = [curve for curve in sheet.curves if (curve.name, curve.scenario) == ("learning", scenario)]
    panels = []
    for metric, cost in COST_OF.items():
        own = [curve for curve in curves if curve.x_metric == metric and any(x > 0 for x in curve.x)]
        if own:
            draw = drawing.lines(_drawn(own), log_x=True, y_label="performance")
            panels.append(Panel(f"against {cost}", draw))
    label = _title(scenario)
    plot = Plot(
        words.slug(f"learning-{scenario}"),
        f"{label}: how regimes learn.",
        f"{label}: validation performance against joules, bits and virtual time.",
        tuple(panels),
    )
    return plot if panels else None


def _traffic(sheet: Sheet) -> Plot | None:
    panels = []
    for scenario in _scenarios(sheet):
        found = [curve for curve in sheet.curves if (curve.name, curve.scenario) == ("traffic", scenario)]
        shown = [
            Series("2RKb" if curve.regime == BASE[1] else "D", OTHER, curve)
            if curve.candidate == FORMULA
            else Series(curve.regime, LOOKS.get(curve.regime, OTHER), curve)
            for curve in found
            if curve.candidate in (BASE[0], FORMULA)
        ]
        if shown:
            panels.append(Panel(_title(scenario), drawing.lines(shown)))
    plot = Plot(
        "traffic",
        "Bits sent after so many rounds, metered, and what the formula says (2RKb and D); of the first seed.",
        "Bits against rounds.",
        tuple(panels),
    )
    return plot if panels else None


def _break_even(sheet: Sheet) -> tables.Table | None:
    rows = sheet.select(metric="break_even_rounds")
    scenarios = list(dict.fromkeys(row.scenario for row in rows))
    found = {(_name(row), row.scenario): row for row in rows}
    body = [
        (
            tables.name("formula" if name[0] == FORMULA else f"{name[1]}: {name[0]}"),
            *(tables.value(found.get((name, scenario))) for scenario in scenarios),
        )
        for name in dict.fromkeys(_name(row) for row in rows)
    ]
    return tables.table(
        "break-even",
        "Rounds after which more has been sent than all samples would have been: formula and meter.",
        ("regime", *(_title(scenario) for scenario in scenarios)),
        body,
    )


def _drift(sheet: Sheet) -> tables.Table | None:
    rows = {(row.regime, row.metric): row for row in sheet.select(candidate=RUSH_HOUR, node="network")}
    metrics = (
        "performance",
        "performance_gain",
        "generalisation",
        "communication_bits",
        "training_time",
        "energy",
    )
    body = [
        (
            tables.name({"before": "in quieter hours"}.get(regime, regime)),
            *(
                (tables.difference if metric == "performance_gain" else tables.value)(
                    rows.get((regime, metric))
                )
                for metric in metrics
            ),
        )
        for regime in dict.fromkeys(regime for regime, _ in rows)
    ]
    head = ("model", *(words.metric(metric) for metric in metrics))
    return tables.table(
        "drift", "The handover model at the rush hour, against the one that is kept.", head, body
    )
