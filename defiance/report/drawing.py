"""What the panels show: fronts, differences, distributions, learning curves, pay-back and city maps.

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
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from defiance.kpm import METRICS, Curve, Row
from defiance.report import words
from defiance.report.figures import GREY, INK, clean

Draw = Callable[[Axes], None]
Array = np.ndarray[Any, np.dtype[np.float64]]

LABEL_ROOM = 0.25  # share of the width kept free for the labels at the ends of lines
LABEL_GAP = 0.09  # least distance of two such labels, share of the height
LEGEND_COLUMNS = 3
DURATIONS = {
    1e-3: "1 ms",
    1.0: "1 s",
    10.0: "10 s",
    60.0: "1 min",
    600.0: "10 min",
    3600.0: "1 h",
    21_600.0: "6 h",
    86_400.0: "1 day",
    604_800.0: "1 week",
    2_629_800.0: "1 month",
    31_557_600.0: "1 year",
    315_576_000.0: "10 years",
    3_155_760_000.0: "100 years",
    31_557_600_000.0: "1000 years",
}


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
    "local": Style("#7a3e8c", (0, (1, 1.5)), "v"),
    "federated": Style("#0072b2", (0, (6, 2)), "s"),
    "central": Style("#c04000", "-", "o"),
    "finetuned-last": Style("#7a3e8c", (0, (1, 1.5)), "v"),
    "finetuned-whole": Style("#0072b2", (0, (6, 2)), "s"),
}
SPARE = (
    Style("#00785a", (0, (4, 1, 1, 1, 1, 1)), "P"),
    Style("#8c6d00", (0, (3, 1)), "X"),
    Style("#7a3e8c", (0, (8, 2, 2, 2)), "v"),
    Style("#4d4d4d", (0, (2, 1)), "*"),
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


def fronts(lines: Sequence[Series], caps: Sequence[float]) -> Draw:
    """Outage against handovers with an origin at zero on both axes; caps are thin verticals."""

    def draw(axes: Axes) -> None:
        shapes = [(line, *_points(line.curve)) for line in lines]
        right = max([*caps, *(float(x.max()) for _, x, _ in shapes if x.size)], default=1.0)
        shown = min(right, 2 * max(caps)) if caps else right
        visible = [(line, x[x <= shown * 1.02], y[x <= shown * 1.02]) for line, x, y in shapes]
        top = max((float(y.max()) for _, _, y in visible if y.size), default=1.0)
        axes.set_xlim(0, shown * 1.02 / (1 - LABEL_ROOM) or 1.0)
        axes.set_ylim(0, top * 1.08 or 1.0)
        ends = []
        for line, x, y in visible:
            if x.size:
                _band(axes, line, shown * 1.02)
                _line(axes, line.style, x, y)
                ends.append(End(float(x[-1]), float(y[-1]), line.label, line.style.color))
        for cap in caps:
            axes.axvline(cap, color=GREY, linewidth=0.7, linestyle=(0, (2, 3)), zorder=0)
            _note(axes, cap, f"cap {cap:g}")
        _axis(axes.xaxis, lines[0].curve.x_metric, lines[0].curve.x_unit, shown)
        _axis(axes.yaxis, lines[0].curve.y_metric, lines[0].curve.y_unit, top)
        axes.grid(axis="y")
        _label_ends(axes, ends)

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
        _axis(axes.xaxis, estimates[0].row.metric, estimates[0].row.unit, max(map(abs, limits)))
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


def distributions(lines: Sequence[Series], *, log_x: bool, mark: float | None) -> Draw:
    """Cumulative distributions on a logarithmic share axis, which shows the tail where links fail."""

    def draw(axes: Axes) -> None:
        axes.set_yscale("log")
        if log_x:
            axes.set_xscale("log")
        size = 0.0
        for line in lines:
            x, y = _points(line.curve)
            kept = (y >= 1e-3) & (x > (0 if log_x else -math.inf))
            x, y = x[kept], y[kept]
            size = max([size, *np.abs(x)])
            _line(axes, line.style, x, y, label=line.label)
        axes.set_ylim(1e-3, 1.25)
        axes.set_yticks([1e-3, 1e-2, 1e-1, 1.0], ["0.1 %", "1 %", "10 %", "100 %"])
        axes.yaxis.set_minor_locator(NullLocator())
        first = lines[0].curve
        _axis(axes.xaxis, first.x_metric, first.x_unit, size, log=log_x)
        axes.set_ylabel("share below")
        axes.grid(axis="both")
        if mark is not None:
            axes.axvline(mark, color=GREY, linewidth=0.8, linestyle=(0, (2, 3)))
            _note(axes, mark, "Qout")
        axes.legend(loc="lower right", handlelength=3.4, borderaxespad=0.2)

    return draw


def learning(lines: Sequence[Series]) -> Draw:
    """Validation loss against what training has cost so far, on a logarithmic cost axis."""

    def draw(axes: Axes) -> None:
        shapes = [(line, *_points(line.curve)) for line in lines]
        shapes = [(line, x[x > 0], y[x > 0]) for line, x, y in shapes if (x > 0).any()]
        if not shapes:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "costs nothing here", transform=axes.transAxes, ha="center", color=GREY)
            return
        axes.set_xscale("log")
        every_x = np.concatenate([x for _, x, _ in shapes])
        every_y = np.concatenate([y for _, _, y in shapes])
        _room_right(axes, float(every_x.min()), float(every_x.max()))
        low, high = float(every_y.min()), float(every_y.max())
        pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(low - pad, high + pad)
        ends = []
        for line, x, y in shapes:
            _band(axes, line)
            _line(axes, line.style, x, y)
            ends.append(End(float(x[-1]), float(y[-1]), line.label, line.style.color))
        first = lines[0].curve
        _axis(axes.xaxis, first.x_metric, first.x_unit, float(every_x.max()), log=True)
        axes.set_xlabel(f"{words.metric(first.x_metric)} spent so far")
        _axis(axes.yaxis, first.y_metric, first.y_unit, high)
        axes.grid(axis="y")
        _label_ends(axes, ends)

    return draw


def pay_back(lines: Sequence[Series]) -> Draw:
    """Break-even time against users; 'never' is a hollow arrow in a strip above the axis, not a number."""

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.set_yscale("log")
        columns = [
            column
            for line in lines
            for column in (line.curve.y, line.curve.y_low, line.curve.y_high)
            if column
        ]
        times = np.concatenate([np.asarray(column, dtype=float) for column in columns])
        known = times[np.isfinite(times) & (times > 0)]
        low, high = (float(known.min()), float(known.max())) if known.size else (3600.0, 86_400.0)
        decades = max(math.log10(high / low), 0.6)
        ceiling, strip, top = (high * 10 ** (share * decades) for share in (0.1, 0.2, 0.3))
        never = bool(np.isposinf(times).any())
        users = np.concatenate([np.asarray(line.curve.x, dtype=float) for line in lines])
        users = users[np.isfinite(users) & (users > 0)]
        axes.set_ylim(low / 10 ** (0.1 * decades), top if never else ceiling)
        _room_right(axes, *((float(users.min()), float(users.max())) if users.size else (1.0, 10.0)))
        if never:
            axes.axhspan(ceiling, top, color="#efefef", zorder=0, linewidth=0)
            at = axes.get_yaxis_transform()
            axes.text(0.99, strip, "never", transform=at, ha="right", va="center", color=GREY, fontsize=9)
        found = [_pay_back_line(axes, line, strip) for line in lines]
        marks = [mark for mark in DURATIONS if axes.get_ylim()[0] <= mark <= ceiling]
        if len(marks) > 6:
            marks = [mark for mark in marks if mark not in (10.0, 600.0, 21_600.0, 604_800.0)]
        axes.set_yticks(marks, [DURATIONS[mark] for mark in marks])
        axes.yaxis.set_minor_locator(NullLocator())
        _axis(axes.xaxis, "users", "", float(users.max(initial=10.0)), log=True)
        axes.set_ylabel(words.metric(lines[0].curve.y_metric))
        axes.grid(axis="y")
        _label_ends(axes, [end for end in found if end is not None])

    return draw


def _pay_back_line(axes: Axes, line: Series, strip: float) -> End | None:
    x, y = np.asarray(line.curve.x, dtype=float), np.asarray(line.curve.y, dtype=float)
    kept = np.isfinite(x) & (x > 0) & (y > 0)
    x, y = x[kept], y[kept]
    if not x.size:
        return None
    paid, look = np.isfinite(y), line.style
    if line.curve.y_low and line.curve.y_high:
        low, high = (np.asarray(c, dtype=float)[kept] for c in (line.curve.y_low, line.curve.y_high))
        for at, start, stop in zip(x[paid], low[paid], high[paid], strict=True):
            if start > 0 and stop > 0:
                axes.plot([at, at], [start, min(stop, strip)], color=look.color, linewidth=0.9)
    axes.plot(x[paid], y[paid], color=look.color, linestyle=look.dash, marker=look.marker)
    axes.plot(
        x[~paid], np.full(int((~paid).sum()), strip), color=look.color, marker=look.marker, linestyle="none",
        markerfacecolor="white", markersize=6.5,
    )  # fmt: skip
    return End(float(x[-1]), float(y[-1]) if paid[-1] else strip, line.label, look.color)


def city_map(
    failures: Curve, look: Style, buildings: Sequence[Curve], sites: Sequence[Curve], limits: Sequence[float]
) -> Draw:
    """Places where links fail (dots), buildings (grey) and sites (triangles), with a scale bar."""

    def draw(axes: Axes) -> None:
        for curve in buildings:
            outline = rings(curve)
            if outline is not None:
                axes.add_patch(PathPatch(outline, facecolor="#e9e9e9", edgecolor="#b5b5b5", linewidth=0.4))
        axes.add_patch(
            PathPatch(dots(failures), fill=False, edgecolor=look.color, linewidth=2.6, capstyle="round")
        )
        for curve in sites:
            axes.plot(
                curve.x, curve.y, linestyle="none", marker="^", markersize=8, markerfacecolor="white",
                markeredgecolor=INK, markeredgewidth=1.3,
            )  # fmt: skip
        left, right, low, high = limits
        axes.set_xlim(left, right)
        axes.set_ylim(low, high)
        axes.set_axis_off()
        bar = 10 ** math.floor(math.log10((right - left) / 2.5))
        bar *= 2 if 2 * bar <= (right - left) / 4 else 1
        below = low - 0.025 * (high - low)
        axes.plot(
            [left, left + bar], [below, below], color=INK, linewidth=2, solid_capstyle="butt", clip_on=False
        )
        axes.text(left + bar * 1.06, below, f"{bar:g} m", fontsize=9, va="center")

    return draw


def dots(curve: Curve) -> Path:
    """Points merged on a 1 m grid, each a stroke of no length: thousands of them weigh little in an SVG."""
    points = np.column_stack(_points(curve))
    points = np.unique(np.round(points), axis=0)
    vertices = np.repeat(points, 2, axis=0) + np.tile([[0.0, 0.0], [0.1, 0.0]], (len(points), 1))
    path = Path(vertices, np.tile(np.array([Path.MOVETO, Path.LINETO]), len(points)))
    path.should_simplify = False
    return path


def rings(curve: Curve) -> Path | None:
    """Polylines separated by nan as one path; None where no polyline has three points."""
    points = np.column_stack([np.asarray(curve.x, dtype=float), np.asarray(curve.y, dtype=float)])
    vertices, codes = [], []
    for part in np.split(points, np.flatnonzero(~np.isfinite(points).all(axis=1))):
        ring = part[np.isfinite(part).all(axis=1)]
        if len(ring) >= 3:
            vertices.append(ring)
            codes.append([Path.MOVETO] + [Path.LINETO] * (len(ring) - 1))
    return Path(np.concatenate(vertices), np.concatenate(codes)) if vertices else None


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending positions at least `gap` apart, near the ascending `heights`, below 1 where they fit."""
    placed = list(heights)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    top = max(1.0, gap * (len(placed) - 1))
    return [min(height, top - gap * (len(placed) - 1 - i)) for i, height in enumerate(placed)]


def _points(curve: Curve) -> tuple[Array, Array]:
    """The points of a curve whose two coordinates are finite, in the order of x."""
    x, y = np.asarray(curve.x, dtype=float), np.asarray(curve.y, dtype=float)
    kept = np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[kept], kind="stable")
    return x[kept][order], y[kept][order]


def _line(axes: Axes, look: Style, x: Array, y: Array, label: str | None = None) -> None:
    every = max(1, round(len(x) / 6))
    axes.plot(x, y, color=look.color, linestyle=look.dash, marker=look.marker, markevery=every, label=label)


def _band(axes: Axes, line: Series, right: float = math.inf) -> None:
    """The interval of a curve as a light band, where it has one."""
    curve = line.curve
    if curve.y_low and curve.y_high:
        x, low, high = (np.asarray(column, dtype=float) for column in (curve.x, curve.y_low, curve.y_high))
        kept = np.isfinite(x) & np.isfinite(low) & np.isfinite(high) & (x <= right)
        order = np.argsort(x[kept], kind="stable")
        bounds = low[kept][order], high[kept][order]
        axes.fill_between(x[kept][order], *bounds, color=line.style.color, alpha=0.14, linewidth=0)


def _note(axes: Axes, x: float, text: str) -> None:
    axes.annotate(
        text, (x, 1.0), xycoords=("data", "axes fraction"), fontsize=8.5, color=GREY, xytext=(2, 1),
        textcoords="offset points", va="top",
    )  # fmt: skip


def _room_right(axes: Axes, left: float, right: float) -> None:
    """Limits of a logarithmic x axis that leave room for labels at the right."""
    decades = max(math.log10(right / left), 0.3)
    axes.set_xlim(left / 10 ** (0.04 * decades), right * 10 ** (decades * LABEL_ROOM / (1 - LABEL_ROOM)))


def _axis(axis: Axis, metric: str, unit: str, size: float, *, log: bool = False) -> None:
    """Ticks in the scale that suits values up to this `size`, and the axis' name with its unit.

    Unit 1 means a share in per cent for a known metric, and nothing for others (a loss, a count).
    """
    unit = "" if unit == "1" and metric not in METRICS else unit
    name = words.metric(metric)
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


def _label_ends(axes: Axes, ends: Sequence[End]) -> None:
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
