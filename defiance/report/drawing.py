"""How panels are drawn: looks, lines with bands, axes in the field's units, labels at the ends of lines.

Every series differs in dash and marker and not only in colour, and is named beside its line, so that a figure
survives a black-and-white printer. Each function takes what it shows and returns the function that draws it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from defiance.kpm import METRICS, Curve, Row
from defiance.report import words
from defiance.report.figures import GREY, INK, clean

Draw = Callable[[Axes], None]
Array = np.ndarray[Any, np.dtype[np.float64]]

LABEL_ROOM = 0.25  # share of the width kept free for the labels at the ends of lines
LABEL_GAP = 0.09  # least distance of two such labels, share of the height
LEGEND_COLUMNS = 3


@dataclass(frozen=True)
class Style:
    """How a series looks: a colour of Okabe and Ito's colour-blind-safe kind, a dash and a marker."""

    color: str
    dash: str | tuple[int, tuple[float, ...]]
    marker: str


STYLES = {
    "a3": Style("#1a1a1a", "-", "o"),
    "learned-station": Style("#0072b2", (0, (6, 2)), "s"),
    "learned-device": Style("#c04000", (0, (6, 1.5, 1, 1.5)), "^"),
    "genie": Style("#767676", (0, (1, 1.5)), "D"),
    "network": Style("#1a1a1a", "-", "o"),
    "function": Style("#c04000", (0, (6, 1.5, 1, 1.5)), "^"),
    "local": Style("#7a3e8c", (0, (1, 1.5)), "v"),
    "federated": Style("#0072b2", (0, (6, 2)), "s"),
    "central": Style("#c04000", "-", "o"),
    "finetuned-last": Style("#7a3e8c", (0, (1, 1.5)), "v"),
    "finetuned-whole": Style("#0072b2", (0, (6, 2)), "s"),
    "s-vdib": Style("#c04000", "-", "o"),
    "s-vdib-sparse": Style("#c04000", (0, (6, 1.5, 1, 1.5)), "^"),
    "s-vdib-small": Style("#c04000", (0, (1, 1)), "v"),
    "neurojscc": Style("#7a3e8c", (0, (1, 1.5)), "v"),
    "joint-binary": Style("#0072b2", (0, (6, 2)), "s"),
    "joint-binary-bursts": Style("#0072b2", (0, (1, 1.5)), "D"),
    "joint-binary-small": Style("#0072b2", (0, (8, 2, 2, 2)), "P"),
    "uncoded-map": Style("#00785a", (0, (4, 1, 1, 1, 1, 1)), "P"),
    "separate": Style("#8c6d00", (0, (3, 1)), "X"),
    "separate-adapted": Style("#8c6d00", (0, (3, 1)), "X"),
    "device-label": Style("#4d4d4d", (0, (2, 1)), "*"),
}
SPARE = (
    Style("#00785a", (0, (4, 1, 1, 1, 1, 1)), "P"),
    Style("#8c6d00", (0, (3, 1)), "X"),
    Style("#7a3e8c", (0, (8, 2, 2, 2)), "v"),
    Style("#4d4d4d", (0, (2, 1)), "*"),
    Style("#0072b2", (0, (6, 2)), "s"),
)


@dataclass(frozen=True)
class Series:
    """A curve with its label and look."""

    label: str
    style: Style
    curve: Curve


@dataclass(frozen=True)
class Estimate:
    """A row's mean and interval on line number `place` of a dot plot."""

    place: int
    label: str
    style: Style
    row: Row


@dataclass(frozen=True)
class End:
    """Where a line ends, in data coordinates, and what it is called."""

    x: float
    y: float
    label: str
    color: str


def style(key: str, others: Sequence[str]) -> Style:
    """The look of a series among `others`; a name that is not known takes a spare look by its place."""
    if key in STYLES:
        return STYLES[key]
    unknown = [other for other in others if other not in STYLES]
    return SPARE[unknown.index(key) % len(SPARE)]


def series(
    curves: Iterable[Curve], label: Callable[[Curve], str], key: Callable[[Curve], str]
) -> tuple[Series, ...]:
    """Curves with labels and looks; `key` names what the look stands for (a candidate or a regime)."""
    listed = list(curves)
    keys = list(dict.fromkeys(key(curve) for curve in listed))
    return tuple(Series(label(curve), style(key(curve), keys), curve) for curve in listed)


def by_candidate(curves: Sequence[Curve]) -> tuple[Series, ...]:
    """Curves labelled by candidate, and by regime too where a candidate appears under several."""
    regimes: dict[str, set[str]] = {}
    for curve in curves:
        regimes.setdefault(curve.candidate, set()).add(curve.regime)

    def label(curve: Curve) -> str:
        regime = curve.regime if len(regimes[curve.candidate]) > 1 else "none"
        return words.candidate(curve.candidate, regime, words.SHORT)

    return series(curves, label, lambda curve: curve.candidate)


def lines(shown: Sequence[Series], *, log_x: bool = False, y_label: str = "") -> Draw:
    """Lines with bands, named at their ends; `y_label` in place of metric and unit."""

    def draw(axes: Axes) -> None:
        shapes = [(line, *points(line.curve)) for line in shown]
        if log_x:
            shapes = [(line, x[x > 0], y[x > 0]) for line, x, y in shapes]
        shapes = [(line, x, y) for line, x, y in shapes if x.size]
        if not shapes:
            axes.set_axis_off()
            return
        every_x = np.concatenate([x for _, x, _ in shapes])
        every_y = np.concatenate([y for _, _, y in shapes])
        left, right = float(every_x.min()), float(every_x.max())
        if log_x:
            axes.set_xscale("log")
            room_right(axes, left, right)
        else:
            width = right - left or 1.0
            axes.set_xlim(left - 0.03 * width, right + width * LABEL_ROOM / (1 - LABEL_ROOM))
        low, high = float(every_y.min()), float(every_y.max())
        pad = 0.05 * (high - low) or 0.05
        axes.set_ylim(low - pad, high + pad)
        ends = []
        for line, x, y in shapes:
            draw_band(axes, line)
            draw_line(axes, line.style, x, y)
            ends.append(End(float(x[-1]), float(y[-1]), line.label, line.style.color))
        first = shown[0].curve
        label_axis(axes.xaxis, first.x_metric, first.x_unit, right, log=log_x)
        label_axis(axes.yaxis, first.y_metric, first.y_unit, high)
        if y_label:
            axes.set_ylabel(y_label)
        axes.grid(axis="y")
        label_ends(axes, ends)

    return draw


def differences(places: Sequence[str], estimates: Sequence[Estimate], limits: tuple[float, float]) -> Draw:
    """Dots with intervals against the line of no effect; hollow where the interval includes zero."""

    def draw(axes: Axes) -> None:
        labels = list(dict.fromkeys(estimate.label for estimate in estimates))
        step = 0.7 / max(2, len(labels))
        handles: dict[str, Line2D] = {}
        for one in estimates:
            height = -one.place - (labels.index(one.label) - (len(labels) - 1) / 2) * step
            color, marker = one.style.color, one.style.marker
            if math.isfinite(one.row.ci_low) and math.isfinite(one.row.ci_high):
                axes.plot([one.row.ci_low, one.row.ci_high], [height, height], color=color, linewidth=1.5)
            fill = color if words.resolved(one.row) else "white"
            axes.plot(
                [one.row.mean], [height], color=color, marker=marker, markersize=6, markerfacecolor=fill
            )
            handles.setdefault(
                one.label, Line2D([], [], color=color, marker=marker, linewidth=1.5, markersize=6)
            )
        axes.axvline(0, color=INK, linewidth=0.9)
        axes.set_yticks([-place for place in range(len(places))], [clean(place) for place in places])
        axes.set_ylim(-len(places) + 0.4, 0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        width = limits[1] - limits[0] or 1.0
        axes.set_xlim(limits[0] - 0.04 * width, limits[1] + 0.04 * width)
        label_axis(axes.xaxis, estimates[0].row.metric, estimates[0].row.unit, max(map(abs, limits)))
        axes.grid(axis="x")
        if len(handles) > 1:
            axes.legend(
                handles.values(),
                list(handles),
                loc="lower left",
                bbox_to_anchor=(0, axes.get_position().y1),
                bbox_transform=axes.figure.transFigure,
                ncols=LEGEND_COLUMNS,
                borderaxespad=0.2,
                handlelength=1.6,
                columnspacing=1.4,
            )

    return draw


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending positions at least `gap` apart, near the ascending `heights`, below 1 where they fit."""
    placed = list(heights)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    top = max(1.0, gap * (len(placed) - 1))
    return [min(height, top - gap * (len(placed) - 1 - i)) for i, height in enumerate(placed)]


def points(curve: Curve) -> tuple[Array, Array]:
    """The points of a curve whose two coordinates are finite, in the order of x."""
    x, y = np.asarray(curve.x, dtype=float), np.asarray(curve.y, dtype=float)
    kept = np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[kept], kind="stable")
    return x[kept][order], y[kept][order]


def draw_line(axes: Axes, look: Style, x: Array, y: Array, label: str | None = None) -> None:
    """A line with about six markers."""
    every = max(1, round(len(x) / 6))
    axes.plot(x, y, color=look.color, linestyle=look.dash, marker=look.marker, markevery=every, label=label)


def draw_band(axes: Axes, line: Series, right: float = math.inf) -> None:
    """The interval of a curve as a light band, where it has one."""
    curve = line.curve
    if curve.y_low and curve.y_high:
        x, low, high = (np.asarray(column, dtype=float) for column in (curve.x, curve.y_low, curve.y_high))
        kept = np.isfinite(x) & np.isfinite(low) & np.isfinite(high) & (x <= right)
        order = np.argsort(x[kept], kind="stable")
        bounds = low[kept][order], high[kept][order]
        axes.fill_between(x[kept][order], *bounds, color=line.style.color, alpha=0.14, linewidth=0)


def note(axes: Axes, x: float, text: str) -> None:
    """A word at the top, beside a vertical line."""
    axes.annotate(
        text, (x, 1.0), xycoords=("data", "axes fraction"), fontsize=8.5, color=GREY, xytext=(2, 1),
        textcoords="offset points", va="top",
    )  # fmt: skip


def room_right(axes: Axes, left: float, right: float) -> None:
    """Limits of a logarithmic x axis that leave room for labels at the right."""
    decades = max(math.log10(right / left), 0.3)
    axes.set_xlim(left / 10 ** (0.04 * decades), right * 10 ** (decades * LABEL_ROOM / (1 - LABEL_ROOM)))


def label_axis(axis: Axis, metric: str, unit: str, size: float, *, log: bool = False) -> None:
    """Ticks in the scale that suits values up to this `size`, and the axis' name with its unit.

    Unit 1 means a share in per cent for a known metric, and nothing for others (a loss, a count).
    """
    unit = "" if unit == "1" and metric not in METRICS else unit
    name = clean(words.metric(metric))
    if log:
        low, high = axis.get_view_interval()
        decades = math.log10(high / low)
        subs = (1.0,) if decades > 2 else (1.0, 3.0) if decades > 1 else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=subs, numticks=7))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(
            FuncFormatter(lambda value, _: _round(value, unit) if value <= 1.05 * size else "")
        )
        axis.set_label_text(name)
        return
    chosen = words.scale(unit, size)
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value / chosen.factor:g}".replace("-", words.MINUS))
    )
    counted = not chosen.unit or chosen.unit.startswith("/")
    axis.set_label_text(name if counted else f"{name} [{chosen.unit}]")


def _round(value: float, unit: str) -> str:
    """A tick of a logarithmic axis: '100 kbit/s', '10 000'."""
    chosen = words.scale(unit, value)
    scaled = value / chosen.factor
    text = words.digits(scaled, 0) if scaled >= 1 else f"{scaled:g}"
    return f"{text}{words.NBSP}{clean(chosen.unit)}".strip(words.NBSP)


def label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Write each label beside the end of its line, moved apart where lines end close together."""
    if not ends:
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    at = [to_axes.transform((end.x, end.y)) for end in ends]
    order = sorted(range(len(ends)), key=lambda index: float(at[index][1]))
    heights = spread([min(max(float(at[index][1]), 0.03), 0.97) for index in order], LABEL_GAP)
    start = 1 - LABEL_ROOM + 0.05
    for index, height in zip(order, heights, strict=True):
        end, (x, y) = ends[index], at[index]
        axes.add_line(
            Line2D(
                [x + 0.02, start - 0.01],
                [y, height],
                color=end.color,
                linewidth=0.5,
                transform=axes.transAxes,
            )
        )
        axes.text(
            start, height, end.label, transform=axes.transAxes, color=end.color, fontsize=9, va="center"
        )
