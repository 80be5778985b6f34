"""Panels on co-inference: accuracy against anything, and joules against the radio's price."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from defiance.kpm import Curve
from defiance.report import drawing
from defiance.report.figures import GREY


def accuracy(lines: Sequence[drawing.Series], *, log_x: bool = False) -> drawing.Draw:
    """Accuracy with bands against noise, channel uses, time or information."""
    return drawing.lines(lines, log_x=log_x, y_label="accuracy [%]")


def total_energy(lines: Sequence[drawing.Series], radios: Sequence[Curve]) -> drawing.Draw:
    """Joules of a recording against those of a channel use; verticals are radios."""

    def draw(axes: Axes) -> None:
        shapes = [(line, *drawing.points(line.curve)) for line in lines]
        shapes = [(line, x[(x > 0) & (y > 0)], y[(x > 0) & (y > 0)]) for line, x, y in shapes]
        shapes = [(line, x, y) for line, x, y in shapes if x.size]
        if not shapes:
            axes.set_axis_off()
            return
        axes.set_xscale("log")
        axes.set_yscale("log")
        right = max(float(x.max()) for _, x, _ in shapes)
        drawing.room_right(axes, min(float(x.min()) for _, x, _ in shapes), right)
        ends = []
        for line, x, y in shapes:
            drawing.draw_line(axes, line.style, x, y)
            ends.append(drawing.End(float(x[-1]), float(y[-1]), line.label, line.style.color))
        for number, radio in enumerate(radios):
            price = radio.x[len(radio.x) // 2]
            if math.isfinite(price) and 0 < price <= right:
                axes.axvline(price, color=GREY, linewidth=0.7, linestyle=(0, (2, 3)), zorder=0)
                at = 0.97 - 0.07 * (number % 4)
                axes.text(
                    price, at, f" {radio.candidate.split(',')[0][:18]}", transform=axes.get_xaxis_transform(),
                    color=GREY, fontsize=8, va="top",
                )  # fmt: skip
        first = lines[0].curve
        drawing.label_axis(axes.xaxis, first.x_metric, first.x_unit, right, log=True)
        top = max(float(y.max()) for _, _, y in shapes)
        drawing.label_axis(axes.yaxis, first.y_metric, first.y_unit, top, log=True)
        axes.grid(axis="y")
        drawing.label_ends(axes, ends)

    return draw
