"""What a verdict rests on: a tornado of its constants, what flips it, and where the constants come from."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from defiance.kpm import Sheet
from defiance.report import drawing, tables, words
from defiance.report.figures import GREY, INK, Panel, Plot, clean
from defiance.report.page import Section, section
from defiance.report.tables import Cell, Table
from defiance.sensitivity import Sensitivity, Swing

PANELS = 4
"""Tornadoes drawn at most; the table has all."""

BARS = 6
"""Constants in a tornado: the widest."""

LOW, HIGH = "#0072b2", "#c04000"


def rests_on(sheet: Sheet) -> Section | None:
    """The section of a sheet's sensitivities; None where it has none."""
    found = [one for one in sheet.sensitivities if math.isfinite(one.margin) and one.swings]
    if not found:
        return None
    plot = Plot(
        "tornado",
        f"Margin of “{found[0].claim}”: true right of the vertical at zero. Each bar moves one constant over "
        "its range, the others as cited (dashed line); hatched: its low end, plain: its high end; in "
        "brackets: the value at which the verdict flips.",
        "Tornado of the constants behind the verdict.",
        tuple(Panel(_where(one), _tornado(one)) for one in found[:PANELS]),
        width_in=7.3,
        height_in=0.8 + 0.42 * max(len(_bars(one)) for one in found[:PANELS]),
        margins_in=(3.8, 0.15, 0.54, 0.34),
        across=2,
    )
    return section(
        "sensitivity",
        "What the verdict rests on",
        [_words(found)],
        [plot, _verdicts(found), _swings(found), _constants(found)],
    )


def _words(found: Sequence[Sensitivity]) -> str:
    text = f"“{found[0].claim}” This is true in {sum(one.holds for one in found)} of {len(found)} cases. "
    fragile = [one for one in found if not one.robust]
    if not fragile:
        return text + "Nothing changes wherever the constants lie in their ranges, even all at once."
    where = "each" if len(fragile) == len(found) > 1 else f"{len(fragile)}"
    text += f"In {where} of them the answer depends on where the constants lie in their ranges"
    alone: dict[tuple[str, str], list[float]] = {}
    for swing in (swing for one in fragile for swing in one.flipped_by):
        alone.setdefault((swing.constant, swing.unit), []).append(swing.flips_at)
    if not alone:
        return f"{text}, but no constant changes it alone."
    parts = [f"{constant} (at {words.span(values, unit)})" for (constant, unit), values in alone.items()]
    return f"{text}. These change it alone: {'; '.join(parts)}."


def _where(one: Sensitivity) -> str:
    place = words.scenario(one.scenario)
    return place.label if place.speed_kmh is not None else one.scenario.partition("/")[2] or one.scenario


def _bars(one: Sensitivity) -> list[Swing]:
    return [swing for swing in one.swings if swing.width > 0][:BARS]


def _tornado(one: Sensitivity) -> drawing.Draw:
    """Bars from the nominal margin to the margins at both ends, the widest on top."""

    def draw(axes: Axes) -> None:
        bars = _bars(one)
        for place, swing in enumerate(bars):
            for end, color, hatch in ((swing.margin_low, LOW, "////"), (swing.margin_high, HIGH, "")):
                axes.barh(
                    -place, end - one.margin, left=one.margin, height=0.62, color="white" if hatch else color,
                    edgecolor=color, hatch=hatch, linewidth=0.9,
                )  # fmt: skip
        values = [one.margin, 0.0, *(end for swing in bars for end in (swing.margin_low, swing.margin_high))]
        low, high = min(values), max(values)
        width = high - low or 1.0
        axes.set_xlim(low - 0.06 * width, high + 0.06 * width)
        axes.set_ylim(-len(bars) + 0.4, 0.6)
        axes.axvline(0, color=INK, linewidth=1.2)
        axes.axvline(one.margin, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)))
        axes.set_yticks([-place for place in range(len(bars))], [clean(_label(swing)) for swing in bars])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        drawing.label_axis(axes.xaxis, "margin", one.unit, max(abs(low), abs(high)))
        axes.grid(axis="x")
        axes.set_axisbelow(True)

    return draw


def _label(swing: Swing) -> str:
    flips = f" [{words.number(swing.flips_at, swing.unit)}]" if swing.flips else ""
    return swing.constant + flips


def _verdicts(found: Sequence[Sensitivity]) -> Table | None:
    rows = []
    for one in found:
        flips = "; ".join(
            f"{swing.constant} {'above' if (swing.margin_high > 0) != one.holds else 'below'} "
            f"{words.number(swing.flips_at, swing.unit)}"
            for swing in one.flipped_by
        )
        rows.append(
            (
                tables.name(_where(one)),
                tables.prose(words.candidate(one.candidate, one.regime)),
                tables.prose("true" if one.holds else "false"),
                *(_margin(value, one.unit) for value in (one.margin, one.worst, one.best)),
                tables.prose(flips or ("nothing" if one.robust else "several at once")),
            )
        )
    caption = f"“{found[0].claim}” The margin is above zero where it is true."
    head = (
        "case",
        "candidate",
        "verdict",
        "margin",
        "all at their worst",
        "all at their best",
        "what flips it",
    )
    return tables.table("sensitivity", caption, head, rows)


def _swings(found: Sequence[Sensitivity]) -> Table | None:
    """Every constant in every case, with its flip in or outside of its range."""
    rows = [
        (
            tables.name(_where(one)),
            tables.prose(swing.constant),
            *(_margin(value, one.unit) for value in (swing.margin_low, swing.margin_high)),
            _margin(swing.flips_at, swing.unit) if math.isfinite(swing.flips_at) else tables.prose("nowhere"),
            tables.prose("in its range" if swing.flips else "outside" if swing.flips_at > 0 else "no flip"),
        )
        for one in found
        for swing in one.swings
    ]
    head = ("case", "constant", "margin at its low end", "at its high end", "zero at", "which is")
    caption = "What each constant does alone, and where it brings the margin to zero."
    return tables.table("swings", caption, head, rows, folded=True)


def _margin(value: float, unit: str) -> Cell:
    return Cell(words.number(value, unit), values=(value, math.nan, math.nan), provenance="modelled")


def _constants(found: Sequence[Sensitivity]) -> Table | None:
    swings = {swing.constant: swing for one in found for swing in one.swings}
    rows = [
        (
            tables.name(swing.constant),
            *(_margin(value, swing.unit) for value in (swing.low, swing.nominal, swing.high)),
            tables.prose(swing.source),
        )
        for swing in swings.values()
    ]
    head = ("constant", "low", "as cited", "high", "source")
    caption = "The constants and their ranges; an end that no source gives is said to be assumed."
    return tables.table("constants", caption, head, rows, folded=True)
