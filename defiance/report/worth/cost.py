"""What learned handover costs, where to train it, and when it pays back."""

from __future__ import annotations

import math
from collections.abc import Sequence

from defiance.report import drawing, tables, words
from defiance.report.figures import Panel, Plot
from defiance.report.page import Section, section
from defiance.report.tables import EMPTY, Cell, Table
from defiance.report.worth import pictures
from defiance.report.worth.view import TRAINING_REGIMES, View, by_sign, mean

COMPLEXITY = (
    "training_operations",
    "tuning_operations",
    "cpu_time",
    "inference_operations",
    "inference_parameters",
    "inference_latency",
    "communication_bits",
)
PAY_BACK = ("break_even_time", "joules_per_avoided_outage_second", "bits_per_avoided_outage_second")


def cost(view: View) -> Section | None:
    """Operations, parameters, bits, seconds and joules of every candidate under every regime."""
    kinds = [kind for kind in view.kinds if not kind[1].startswith("finetuned")]
    where = f" What depends on the scenario is for {view.reference[0].label}." if view.reference else ""
    complexity = _by_kind(view, "complexity", f"Complexity, latency and overhead.{where}", COMPLEXITY, kinds)
    energy = _by_kind(view, "energy", f"Energy by node in the evaluated time.{where}", ("energy",), kinds)
    text = (
        "Each number says where it comes from. Counted: exact, from the model's layers or from real bytes. "
        "Measured: by a clock, or in the simulated network. Modelled: a counted quantity times a cited "
        "constant. Estimated: a rough constant."
    )
    return section("cost", "What it costs", [text], [complexity, energy])


def _by_kind(
    view: View, name: str, caption: str, metrics: Sequence[str], kinds: Sequence[tuple[str, str]]
) -> Table | None:
    """One row per candidate and regime, one column per metric and node, at the reference scenario."""
    near = view.reference[0].name if view.reference else next((case.name for case in view.scenarios), "")
    columns = list(
        dict.fromkeys(
            (metric, row.node) for metric in metrics for row in view.sheet.rows if row.metric == metric
        )
    )

    def head(metric: str, node: str) -> str:
        if sum(metric == other for other, _ in columns) == 1:
            return words.metric(metric)
        node = words.NODES.get(node, node)
        return node if len(metrics) == 1 else f"{words.metric(metric)}, {node}"

    rows = []
    for candidate, regime in kinds:
        cells = [
            tables.value(view.nearest(metric, candidate, near, regime, node)) for metric, node in columns
        ]
        if any(cell != EMPTY for cell in cells):
            rows.append((tables.name(words.candidate(candidate, regime)), *cells))
    return tables.table(name, caption, ("candidate", *(head(*column) for column in columns)), rows)


def training(view: View) -> Section | None:
    """Local, federated and central training side by side: gain, operations, joules, bits."""
    kinds = [kind for kind in view.kinds if kind[1] in TRAINING_REGIMES]
    if len(kinds) < 2:
        return None
    places = view.home_places
    head = [
        "candidate",
        "regime",
        f"cut, {view.reference[0].case}" if view.reference else "cut",
        *(f"mean cut, {place}" for place in places),
        "better / not resolved / worse",
        "training operations",
        "training energy",
        "bits to train",
    ]
    rows = []
    for index, (candidate, regime) in enumerate(kinds):
        cuts = {
            place: [(case, row) for case in cases if (row := view.row("outage_cut", candidate, case, regime))]
            for place, cases in places.items()
        }
        signs = by_sign([pair for pairs in cuts.values() for pair in pairs])
        counts = " / ".join(str(len(signs[sign])) for sign in ("better", "unresolved", "worse"))
        near = view.reference[0] if view.reference else None
        repeated = index > 0 and kinds[index - 1][0] == candidate
        rows.append(
            (
                tables.name("" if repeated else words.candidate(candidate)),
                tables.prose(words.REGIMES.get(regime, regime)),
                tables.difference(view.row("outage_cut", candidate, near, regime) if near else None),
                *(_mean_cut([row.mean for _, row in pairs]) for pairs in cuts.values()),
                Cell(counts) if any(cuts.values()) else EMPTY,
                tables.value(
                    view.nearest("training_operations", candidate, near.name if near else "", regime)
                ),
                _end(view, "learning", candidate, regime),
                _end(view, "learning_bits", candidate, regime),
            )
        )
    caption = (
        "Training regimes compared over all scenarios at home. Energy and bits to train are where the "
        "learning curves below end."
    )
    return section(
        "training",
        "Where to train",
        [_training_words(view)],
        [tables.table("regimes", caption, head, rows), _learning_plot(view)],
    )


def _mean_cut(cuts: Sequence[float]) -> Cell:
    average = mean(cuts)
    return Cell(words.number(average, "1"), values=(average, math.nan, math.nan)) if cuts else EMPTY


def _end(view: View, name: str, candidate: str, regime: str) -> Cell:
    """The last x of a learning curve: what training cost in the end."""
    for curves in view.curves(name).values():
        for curve in curves:
            if (curve.candidate, curve.regime) == (candidate, regime):
                return Cell(words.number(curve.x[-1], curve.x_unit), values=(curve.x[-1], math.nan, math.nan))
    return EMPTY


def _training_words(view: View) -> str:
    means = {
        regime: mean(cuts)
        for regime in TRAINING_REGIMES
        if (
            cuts := [
                row.mean for case in view.main if (row := view.row("outage_cut", view.lead, case, regime))
            ]
        )
    }
    if len(means) < 2:
        return ""
    ordered = sorted(means, key=lambda regime: -means[regime])
    listed = ", ".join(f"{regime} {words.number(means[regime], '1')}" for regime in ordered)
    return f"Mean outage cut of {words.candidate(view.lead, names=words.PROSE)} by training regime: {listed}."


def _learning_plot(view: View) -> Plot | None:
    panels = []
    for candidate in view.learned:
        for name, against in (("learning", "joules"), ("learning_bits", "bits")):
            curves = [c for curves in view.curves(name).values() for c in curves if c.candidate == candidate]
            if curves:
                lines = drawing.series(curves, lambda curve: curve.regime, lambda curve: curve.regime)
                panels.append(
                    Panel(f"{words.candidate(candidate)}: against {against}", pictures.learning(lines))
                )
    if not panels:
        return None
    return Plot(
        "learning",
        "Validation loss against what training has spent so far, in joules and in bits over the backhaul. "
        "Lower left is better; a regime that sends nothing has no line against bits.",
        "Learning curves of the training regimes against energy and against bits.",
        tuple(panels),
        width_in=4.6,
        across=2,
    )


def pay_back(view: View) -> Section | None:
    """After how long training has paid for itself, and what an avoided second of outage costs."""
    panels = tuple(
        Panel(
            words.scenario(name).label if name else "All scenarios",
            pictures.pay_back(drawing.by_candidate(curves)),
        )
        for name, curves in view.curves("break_even").items()
    )
    plot = Plot(
        "break-even",
        "Break-even time against the number of users. Hollow marks in the grey strip: training never pays "
        "back. Bars: 95 % intervals; one that reaches the strip does not exclude never.",
        "Break-even time of training against the number of users; points on the strip at the top never pay "
        "back.",
        panels,
        width_in=4.6,
        margins_in=(0.86, 0.08, 0.54, 0.34),
        across=2,
    )
    columns = [(metric, name) for name in view.learned for metric in PAY_BACK]
    rows = []
    for case in view.main:
        regimes = {name: cut.regime for name in view.learned if (cut := view.cut(case, name)) is not None}
        cells = [tables.value(view.row(metric, name, case, regimes.get(name))) for metric, name in columns]
        if any(cell != EMPTY for cell in cells):
            rows.append((tables.name(case.case), *cells))
    head = [f"{words.metric(metric)}, {words.candidate(name, names=words.SHORT)}" for metric, name in columns]
    caption = (
        "Break-even time, and joules and bits spent per avoided second of outage; the two are never "
        "converted into each other. ∞: there is no outage avoided to divide by."
    )
    text = (
        "Break-even is the energy of training over the power that the network saves at equal delivered bits, "
        "less what inference and signalling take. Where it is never, energy alone does not justify "
        "learned handover."
    )
    table = tables.table("pay-back", caption, ("scenario", *head), rows)
    return section("pay-back", "When it pays back", [text], [plot if panels else None, table])
