"""Panels on handover: fronts, distributions, learning curves, pay-back and city maps.

Each function takes what it shows and returns the function that draws it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import NullLocator

from defiance.kpm import Curve
from defiance.report import drawing, words
from defiance.report.figures import GREY, INK

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


def fronts(lines: Sequence[drawing.Series], caps: Sequence[float]) -> drawing.Draw:
    """Outage against handovers with an origin at zero on both axes; caps are thin verticals."""

    def draw(axes: Axes) -> None:
        shapes = [(line, *drawing.points(line.curve)) for line in lines]
        right = max([*caps, *(float(x.max()) for _, x, _ in shapes if x.size)], default=1.0)
        shown = min(right, 2 * max(caps)) if caps else right
        visible = [(line, x[x <= shown * 1.02], y[x <= shown * 1.02]) for line, x, y in shapes]
        top = max((float(y.max()) for _, _, y in visible if y.size), default=1.0)
        axes.set_xlim(0, shown * 1.02 / (1 - drawing.LABEL_ROOM) or 1.0)
        axes.set_ylim(0, top * 1.08 or 1.0)
        ends = []
        for line, x, y in visible:
            if x.size:
                drawing.draw_band(axes, line, shown * 1.02)
                drawing.draw_line(axes, line.style, x, y)
                ends.append(drawing.End(float(x[-1]), float(y[-1]), line.label, line.style.color))
        for cap in caps:
            axes.axvline(cap, color=GREY, linewidth=0.7, linestyle=(0, (2, 3)), zorder=0)
            drawing.note(axes, cap, f"cap {cap:g}")
        drawing.label_axis(axes.xaxis, lines[0].curve.x_metric, lines[0].curve.x_unit, shown)
        drawing.label_axis(axes.yaxis, lines[0].curve.y_metric, lines[0].curve.y_unit, top)
        axes.grid(axis="y")
        drawing.label_ends(axes, ends)

    return draw


def distributions(lines: Sequence[drawing.Series], *, mark: float | None) -> drawing.Draw:
    """Cumulative distributions on a logarithmic share axis, which shows the tail where links fail."""

    def draw(axes: Axes) -> None:
        axes.set_yscale("log")
        size = 0.0
        for line in lines:
            x, y = drawing.points(line.curve)
            kept = y >= 1e-3
            x, y = x[kept], y[kept]
            size = max([size, *np.abs(x)])
            drawing.draw_line(axes, line.style, x, y, label=line.label)
        axes.set_ylim(1e-3, 1.25)
        axes.set_yticks([1e-3, 1e-2, 1e-1, 1.0], ["0.1 %", "1 %", "10 %", "100 %"])
        axes.yaxis.set_minor_locator(NullLocator())
        first = lines[0].curve
        drawing.label_axis(axes.xaxis, first.x_metric, first.x_unit, size)
        axes.set_ylabel("share below")
        axes.grid(axis="both")
        if mark is not None:
            axes.axvline(mark, color=GREY, linewidth=0.8, linestyle=(0, (2, 3)))
            drawing.note(axes, mark, "Qout")
        axes.legend(loc="lower right", handlelength=3.4, borderaxespad=0.2)

    return draw


def learning(lines: Sequence[drawing.Series]) -> drawing.Draw:
    """Validation loss against what training has cost so far, on a logarithmic cost axis."""

    def draw(axes: Axes) -> None:
        shapes = [(line, *drawing.points(line.curve)) for line in lines]
        shapes = [(line, x[x > 0], y[x > 0]) for line, x, y in shapes if (x > 0).any()]
        if not shapes:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "costs nothing here", transform=axes.transAxes, ha="center", color=GREY)
            return
        axes.set_xscale("log")
        every_x = np.concatenate([x for _, x, _ in shapes])
        every_y = np.concatenate([y for _, _, y in shapes])
        drawing.room_right(axes, float(every_x.min()), float(every_x.max()))
        low, high = float(every_y.min()), float(every_y.max())
        pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(low - pad, high + pad)
        ends = []
        for line, x, y in shapes:
            drawing.draw_band(axes, line)
            drawing.draw_line(axes, line.style, x, y)
            ends.append(drawing.End(float(x[-1]), float(y[-1]), line.label, line.style.color))
        first = lines[0].curve
        drawing.label_axis(axes.xaxis, first.x_metric, first.x_unit, float(every_x.max()), log=True)
        axes.set_xlabel(f"{words.metric(first.x_metric)} spent so far")
        drawing.label_axis(axes.yaxis, first.y_metric, first.y_unit, high)
        axes.grid(axis="y")
        drawing.label_ends(axes, ends)

    return draw


def pay_back(lines: Sequence[drawing.Series]) -> drawing.Draw:
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
        drawing.room_right(axes, *((float(users.min()), float(users.max())) if users.size else (1.0, 10.0)))
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
        drawing.label_axis(axes.xaxis, "users", "", float(users.max(initial=10.0)), log=True)
        axes.set_ylabel(words.metric(lines[0].curve.y_metric))
        axes.grid(axis="y")
        drawing.label_ends(axes, [end for end in found if end is not None])

    return draw


def _pay_back_line(axes: Axes, line: drawing.Series, strip: float) -> drawing.End | None:
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
    return drawing.End(float(x[-1]), float(y[-1]) if paid[-1] else strip, line.label, look.color)


def city_map(
    failures: Curve,
    look: drawing.Style,
    buildings: Sequence[Curve],
    sites: Sequence[Curve],
    limits: Sequence[float],
) -> drawing.Draw:
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
    points = np.column_stack(drawing.points(curve))
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
