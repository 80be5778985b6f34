"""Figures: small multiples drawn by matplotlib, each panel an SVG for the page, all panels a file for papers.

Every series differs in dash and marker and not only in colour, and is labelled beside its line, so that a figure
survives a black-and-white printer. Output is a function of the data alone: no dates, ids from a fixed salt.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.path import Path as Outline
from matplotlib.patches import PathPatch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from defiance.kpm import Curve
from defiance.report import words

INK, GREY, FAINT = "#1a1a1a", "#6b6b6b", "#d9d9d9"
FONTS = "system-ui, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "text.usetex": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "defiance",
    "figure.dpi": 72,
    "savefig.dpi": 200,
    "path.simplify": True,
    "path.simplify_threshold": 0.3,
}


@dataclass(frozen=True)
class Style:
    """How a series looks: a colour of Okabe and Ito's colour-blind-safe palette, a dash and a marker."""

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
}
SPARE = (
    Style("#00785a", (0, (4, 1, 1, 1, 1, 1)), "P"),
    Style("#8c6d00", (0, (3, 1)), "X"),
    Style("#7a3e8c", (0, (8, 2, 2, 2)), "v"),
    Style("#4d4d4d", (0, (2, 1)), "*"),
)


@dataclass(frozen=True)
class Panel:
    """One small multiple: a title and the function that draws it."""

    title: str
    draw: Callable[[Axes], None]


@dataclass(frozen=True)
class Plot:
    """A figure before it is drawn; `width_in` x `height_in` is the size of one panel, `alt` says what is seen."""

    name: str
    caption: str
    alt: str
    panels: tuple[Panel, ...]
    width_in: float = 4.2
    height_in: float = 3.1
    across: int = 3
    axes_off: bool = False


@dataclass(frozen=True)
class Figure:
    """A drawn figure: `panels` are inline SVG, `svg` and `png` the files with all panels."""

    name: str
    caption: str
    alt: str
    panels: tuple[Markup, ...]
    panel_px: int
    svg: bytes = field(repr=False)
    png: bytes = field(repr=False)
    kind: ClassVar[str] = "figure"


def style(key: str, others: Sequence[str]) -> Style:
    """The look of a series among `others`; unknown names take a spare look by their place."""
    if key in STYLES:
        return STYLES[key]
    unknown = [other for other in others if other not in STYLES]
    return SPARE[unknown.index(key) % len(SPARE)]


def render(plot: Plot) -> Figure:
    """Draw a plot: once per panel for the page, once as a whole for papers."""
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        panels = tuple(
            _inline(_svg(_draw(plot, [panel])), f"{plot.name}-{number}", f"{plot.alt} Panel: {panel.title}.")
            for number, panel in enumerate(plot.panels, start=1)
        )
        whole = _draw(plot, plot.panels)
        png = io.BytesIO()
        whole.savefig(png, format="png", metadata={"Software": None})
        svg = _tidy(_svg(whole))
    return Figure(
        plot.name, plot.caption, plot.alt, panels, round(plot.width_in * 84), svg.encode(), png.getvalue()
    )


def _draw(plot: Plot, panels: Sequence[Panel]) -> Canvas:
    columns = min(plot.across, len(panels))
    rows = math.ceil(len(panels) / columns)
    canvas = Canvas(figsize=(plot.width_in * columns, plot.height_in * rows), layout="constrained")
    for number, panel in enumerate(panels, start=1):
        axes = canvas.add_subplot(rows, columns, number)
        axes.set_title(clean(panel.title))
        panel.draw(axes)
        if plot.axes_off:
            axes.set_axis_off()
    return canvas


def _svg(canvas: Canvas) -> str:
    out = io.StringIO()
    canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _tidy(svg: str) -> str:
    """Round path coordinates to 0.01 pt and name the reader's own fonts before matplotlib's."""
    svg = re.sub(r' d="[^"]*"', lambda match: re.sub(r"(\d\.\d\d)\d+", r"\1", match[0]), svg)
    svg = re.sub(r"(<use [^>]*?)/>", lambda match: re.sub(r"(\d\.\d\d)\d+", r"\1", match[0]), svg)
    return svg.replace("'DejaVu Sans'", FONTS)


def _inline(svg: str, prefix: str, alt: str) -> Markup:
    """An SVG ready to stand inside a page: unique ids, no prologue, a title for screen readers."""
    svg = _tidy(svg[svg.index("<svg") :])
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([\w.-]+)', svg))
    svg = re.sub(
        r' id="([\w.-]+)"', lambda match: f' id="{prefix}-{match[1]}"' if match[1] in used else "", svg
    )
    svg = re.sub(r'(url\(#|href="#)([\w.-]+)', rf"\g<1>{prefix}-\g<2>", svg)
    view = re.search(r'viewBox="[^"]+"', svg)
    assert view is not None  # matplotlib always writes one
    body = svg[svg.index(">") + 1 :].strip()
    head = f'<svg {view[0]} role="img" aria-labelledby="{prefix}-alt" xmlns="http://www.w3.org/2000/svg" '
    head += 'xmlns:xlink="http://www.w3.org/1999/xlink">'
    return Markup(f'{head}<title id="{prefix}-alt">{escape(alt)}</title>{body}')


def clean(text: str) -> str:
    """Text without control characters, which neither XML nor a font can show."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


# --- drawing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """A curve with its label and look."""

    label: str
    style: Style
    curve: Curve


def series(
    curves: Iterable[Curve], label: Callable[[Curve], str], key: Callable[[Curve], str]
) -> tuple[Series, ...]:
    """Curves with labels and looks; `key` names what the look stands for (a candidate or a regime)."""
    listed = list(curves)
    keys = list(dict.fromkeys(key(curve) for curve in listed))
    return tuple(Series(clean(label(curve)), style(key(curve), keys), curve) for curve in listed)


def finite(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """The points of a curve whose two coordinates are finite, in the order of x."""
    x, y = np.asarray(curve.x, dtype=float), np.asarray(curve.y, dtype=float)
    kept = np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[kept], kind="stable")
    return x[kept][order], y[kept][order]


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], *, room: float) -> None:
    """Write each label beside the end (x, y) of its line, moved apart where lines end close together.

    `room` is the share of the axes' width kept free for the labels. Axes limits must be final in y.
    """
    if not ends:
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = [float(to_axes.transform((x, y))[1]) for x, y, _, _ in ends]
    order = sorted(range(len(ends)), key=lambda index: wanted[index])
    placed = spread([min(max(wanted[index], 0.0), 1.0) for index in order], 0.085)
    for index, height in zip(order, placed, strict=True):
        x, y, label, color = ends[index]
        axes.annotate(
            label,
            (x, y),
            xytext=(1.0 - room + 0.04, height),
            textcoords=axes.transAxes,
            color=color,
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending positions at least `gap` apart, as close to the ascending `heights` as one pass each way gives."""
    placed = list(heights)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    top = max(1.0, gap * (len(placed) - 1))
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], top - gap * (len(placed) - 1 - i))
    return placed


def ticks(axis: Any, unit: str, *, log: bool, span: Sequence[float]) -> str:
    """Plain tick labels in the scale that suits `span`; returns the unit for the axis label."""
    if log:
        axis.set_major_locator(LogLocator(numticks=6))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(unit, value)))
        return ""
    chosen = words.scale(unit, max((abs(value) for value in span if math.isfinite(value)), default=0.0))
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value / chosen.factor:g}".replace("-", words.MINUS))
    )
    return chosen.unit


def _tick(unit: str, value: float) -> str:
    chosen = words.scale(unit, value)
    return f"{value / chosen.factor:.3g} {chosen.unit}".strip()


def titled(metric: str, unit: str) -> str:
    """Axis label: 'time in outage [%]'."""
    return f"{clean(words.metric(metric))} [{clean(unit)}]" if unit else clean(words.metric(metric))


def fronts(lines: Sequence[Series], caps: Sequence[float]) -> Callable[[Axes], None]:
    """Outage against handovers: one line per series from the origin of both axes, caps as thin verticals."""

    def draw(axes: Axes) -> None:
        first = lines[0].curve
        points = [(line, *finite(line.curve)) for line in lines]
        right = max([*caps, *(float(x.max()) for _, x, _ in points if x.size)], default=1.0)
        top = max((float(y.max()) for _, _, y in points if y.size), default=1.0)
        shown = min(right, 2.5 * max(caps)) if caps else right
        room = 0.26
        axes.set_xlim(0, shown * 1.02 / (1 - room))
        axes.set_ylim(0, top * 1.05 or 1.0)
        ends = []
        for line, x, y in points:
            inside = x <= shown * 1.02
            x, y = x[inside], y[inside]
            if not x.size:
                continue
            band(axes, line, shown)
            axes.plot(
                x,
                y,
                color=line.style.color,
                linestyle=line.style.dash,
                marker=line.style.marker,
                markersize=4,
            )
            ends.append((float(x[-1]), float(y[-1]), line.label, line.style.color))
        for cap in caps:
            axes.axvline(cap, color=GREY, linewidth=0.7, linestyle=(0, (2, 3)), zorder=0)
            axes.annotate(
                f"cap {cap:g}",
                (cap, 1.0),
                xycoords=("data", "axes fraction"),
                fontsize=8,
                color=GREY,
                xytext=(2, -1),
                textcoords="offset points",
                va="top",
            )
        x_unit = ticks(axes.xaxis, first.x_unit, log=False, span=(0, shown))
        y_unit = ticks(axes.yaxis, first.y_unit, log=False, span=(0, top))
        axes.set_xlabel(titled(first.x_metric, x_unit))
        axes.set_ylabel(titled(first.y_metric, y_unit))
        axes.grid(axis="y")
        label_ends(axes, ends, room=room)

    return draw


def band(axes: Axes, line: Series, right: float = math.inf) -> None:
    """The interval of a curve as a light band, where it has one."""
    curve = line.curve
    if not curve.y_low or not curve.y_high:
        return
    x, low, high = (np.asarray(values, dtype=float) for values in (curve.x, curve.y_low, curve.y_high))
    kept = np.isfinite(x) & np.isfinite(low) & np.isfinite(high) & (x <= right)
    order = np.argsort(x[kept], kind="stable")
    axes.fill_between(
        x[kept][order], low[kept][order], high[kept][order], color=line.style.color, alpha=0.14, lw=0
    )


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval in the row `place` of a dot plot."""

    place: int
    label: str
    style: Style
    mean: float
    low: float
    high: float


def dots(
    places: Sequence[str], estimates: Sequence[Estimate], metric: str, unit: str
) -> Callable[[Axes], None]:
    """Dot plot of differences: intervals against the line of no effect; hollow where the interval includes zero."""

    def draw(axes: Axes) -> None:
        labels = list(dict.fromkeys(estimate.label for estimate in estimates))
        for estimate in estimates:
            shift = (labels.index(estimate.label) - (len(labels) - 1) / 2) * 0.3
            height = -estimate.place - shift
            color = estimate.style.color
            excluded = estimate.low > 0 or estimate.high < 0
            if math.isfinite(estimate.low) and math.isfinite(estimate.high):
                axes.plot([estimate.low, estimate.high], [height, height], color=color, linewidth=1.6)
            axes.plot(
                [estimate.mean],
                [height],
                color=color,
                marker=estimate.style.marker,
                markersize=6.5,
                markerfacecolor=color if excluded else "white",
                linestyle="none",
                label=estimate.label if estimate is _first(estimates, estimate.label) else None,
            )
        axes.axvline(0, color=INK, linewidth=0.9)
        axes.set_yticks([-place for place in range(len(places))], [clean(place) for place in places])
        axes.set_ylim(-len(places) + 0.4, 0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        values = [value for e in estimates for value in (e.mean, e.low, e.high) if math.isfinite(value)]
        axes.set_xlabel(titled(metric, ticks(axes.xaxis, unit, log=False, span=values)))
        axes.grid(axis="x")
        handles, names = axes.get_legend_handles_labels()
        if len(names) > 1:
            axes.legend(
                handles,
                names,
                loc="lower center",
                bbox_to_anchor=(0.5, 1.0),
                ncols=len(names),
                borderaxespad=1.6,
                handletextpad=0.3,
                columnspacing=1.4,
            )

    return draw


def _first(estimates: Sequence[Estimate], label: str) -> Estimate:
    return next(estimate for estimate in estimates if estimate.label == label)


def distributions(
    lines: Sequence[Series], *, log_x: bool, mark: tuple[float, str] | None
) -> Callable[[Axes], None]:
    """Cumulative distributions with a logarithmic share axis, which shows the tail where links fail."""

    def draw(axes: Axes) -> None:
        first = lines[0].curve
        axes.set_yscale("log")
        if log_x:
            axes.set_xscale("log")
        spans: list[float] = []
        for line in lines:
            x, y = finite(line.curve)
            kept = (y >= 1e-3) & ((x > 0) if log_x else np.ones_like(x, dtype=bool))
            x, y = x[kept], y[kept]
            spans.extend(float(value) for value in x)
            step = max(1, len(x) // 6)
            axes.plot(
                x,
                y,
                color=line.style.color,
                linestyle=line.style.dash,
                marker=line.style.marker,
                markevery=step,
                markersize=5,
                label=line.label,
            )
        axes.set_ylim(1e-3, 1.0)
        axes.set_yticks([1e-3, 1e-2, 1e-1, 1.0], ["0.1 %", "1 %", "10 %", "100 %"])
        axes.yaxis.set_minor_locator(NullLocator())
        unit = ticks(axes.xaxis, first.x_unit, log=log_x, span=spans)
        axes.set_xlabel(titled(first.x_metric, unit))
        axes.set_ylabel("share of time below")
        axes.grid(axis="both")
        if mark is not None:
            axes.axvline(mark[0], color=GREY, linewidth=0.8, linestyle=(0, (2, 3)))
            axes.annotate(
                mark[1],
                (mark[0], 0.98),
                xycoords=("data", "axes fraction"),
                fontsize=8,
                color=GREY,
                xytext=(3, 0),
                textcoords="offset points",
                va="top",
            )
        axes.legend(loc="lower right", handlelength=3.2)

    return draw


def learning(lines: Sequence[Series]) -> Callable[[Axes], None]:
    """Validation loss against what training has cost so far, on a logarithmic cost axis."""

    def draw(axes: Axes) -> None:
        first = lines[0].curve
        axes.set_xscale("log")
        drawn = [(line, *finite(line.curve)) for line in lines]
        drawn = [(line, x[x > 0], y[x > 0]) for line, x, y in drawn if (x > 0).any()]
        if not drawn:
            axes.set_xlim(1, 10)
            axes.text(0.5, 0.5, "costs nothing", transform=axes.transAxes, ha="center", color=GREY)
            return
        left = min(float(x.min()) for _, x, _ in drawn)
        right = max(float(x.max()) for _, x, _ in drawn)
        room = 0.27
        decades = max(math.log10(right / left), 0.3)
        axes.set_xlim(left / 10 ** (0.03 * decades), right * 10 ** (decades * room / (1 - room)))
        low = min(float(y.min()) for _, _, y in drawn)
        high = max(float(y.max()) for _, _, y in drawn)
        pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(low - pad, high + pad)
        ends = []
        for line, x, y in drawn:
            band(axes, line)
            axes.plot(
                x,
                y,
                color=line.style.color,
                linestyle=line.style.dash,
                marker=line.style.marker,
                markevery=max(1, len(x) // 6),
                markersize=4.5,
            )
            ends.append((float(x[-1]), float(y[-1]), line.label, line.style.color))
        ticks(axes.xaxis, first.x_unit, log=True, span=(left, right))
        unit = ticks(axes.yaxis, first.y_unit, log=False, span=(low, high))
        axes.set_xlabel(titled(first.x_metric, ""))
        axes.set_ylabel(titled(first.y_metric, unit))
        axes.grid(axis="y")
        label_ends(axes, ends, room=room)

    return draw


def pay_back(lines: Sequence[Series]) -> Callable[[Axes], None]:
    """Break-even time against users; 'never' is an arrow on a strip above the axis, not a number."""

    def draw(axes: Axes) -> None:
        first = lines[0].curve
        axes.set_xscale("log")
        axes.set_yscale("log")
        every = [
            np.asarray(values, dtype=float)
            for line in lines
            for values in (line.curve.y, line.curve.y_low or (), line.curve.y_high or ())
        ]
        known = np.concatenate(every)
        known = known[np.isfinite(known) & (known > 0)]
        low, high = (float(known.min()), float(known.max())) if known.size else (60.0, 86_400.0)
        never = any(not np.isfinite(values).all() for values in every)
        decades = max(math.log10(high / low), 0.5)
        ceiling = high * 10 ** (0.12 * decades)
        strip = ceiling * 10 ** (0.1 * decades)
        top = ceiling * 10 ** (0.2 * decades) if never else ceiling
        axes.set_ylim(low / 10 ** (0.1 * decades), top)
        users = np.concatenate([np.asarray(line.curve.x, dtype=float) for line in lines])
        users = users[np.isfinite(users) & (users > 0)]
        left, right = (float(users.min()), float(users.max())) if users.size else (1.0, 10.0)
        room, spread_x = 0.24, max(math.log10(right / left), 0.3)
        axes.set_xlim(left / 10 ** (0.05 * spread_x), right * 10 ** (spread_x * room / (1 - room)))
        ends = []
        for line in lines:
            ends.append(_pay_back_line(axes, line, strip))
        if never:
            axes.axhspan(ceiling, top, color="#f0f0f0", zorder=0, lw=0)
            axes.text(
                0.01,
                strip,
                "never pays back",
                transform=axes.get_yaxis_transform(),
                fontsize=8.5,
                color=GREY,
                va="center",
            )
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", words.THIN))
        )
        marks = [
            mark
            for mark in (
                1e-3,
                1,
                60,
                3600,
                86_400,
                604_800,
                2_629_800,
                31_557_600,
                315_576_000,
                3_155_760_000,
            )
            if axes.get_ylim()[0] <= mark <= ceiling
        ]
        names = {
            1e-3: "1 ms",
            1: "1 s",
            60: "1 min",
            3600: "1 h",
            86_400: "1 day",
            604_800: "1 week",
            2_629_800: "1 month",
            31_557_600: "1 year",
            315_576_000: "10 years",
            3_155_760_000: "100 years",
        }
        axes.set_yticks(marks, [names[mark] for mark in marks])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(titled(first.x_metric, ""))
        axes.set_ylabel(titled(first.y_metric, ""))
        axes.grid(axis="y")
        label_ends(axes, [end for end in ends if end is not None], room=room)

    return draw


def _pay_back_line(axes: Axes, line: Series, strip: float) -> tuple[float, float, str, str] | None:
    """Draw one line of break-even times; returns the end of it for the label."""
    x, y = np.asarray(line.curve.x, dtype=float), np.asarray(line.curve.y, dtype=float)
    kept = np.isfinite(x) & (x > 0) & ~np.isnan(y) & (y > 0)
    x, y = x[kept], y[kept]
    if not x.size:
        return None
    paid = np.isfinite(y)
    look = line.style
    if line.curve.y_low and line.curve.y_high:
        low = np.asarray(line.curve.y_low, dtype=float)[kept]
        high = np.asarray(line.curve.y_high, dtype=float)[kept]
        for at, start, stop, known in zip(x, low, high, paid, strict=True):
            if known and start > 0 and not math.isnan(stop):
                axes.plot([at, at], [start, min(stop, strip)], color=look.color, linewidth=0.9)
    axes.plot(x[paid], y[paid], color=look.color, linestyle=look.dash, marker=look.marker)
    axes.plot(
        x[~paid],
        np.full((~paid).sum(), strip),
        color=look.color,
        marker="^",
        markersize=7,
        linestyle="none",
        markerfacecolor="white",
    )
    return (float(x[-1]), float(y[-1]) if paid[-1] else strip, line.label, look.color)


def city_map(
    failures: Curve,
    look: Style,
    buildings: Sequence[Curve],
    sites: Sequence[Curve],
    limits: tuple[float, ...],
) -> Callable[[Axes], None]:
    """Places where links fail (dots) between the buildings (grey) and the sites (triangles), with a scale bar."""

    def draw(axes: Axes) -> None:
        for curve in buildings:
            outline = rings(curve)
            if outline is not None:
                axes.add_patch(PathPatch(outline, facecolor="#ececec", edgecolor="#b5b5b5", linewidth=0.4))
        x, y = np.asarray(failures.x, dtype=float), np.asarray(failures.y, dtype=float)
        axes.plot(
            x,
            y,
            linestyle="none",
            marker="o",
            markersize=3.0,
            markerfacecolor=look.color,
            markeredgewidth=0,
            alpha=0.55,
        )
        for curve in sites:
            axes.plot(
                curve.x,
                curve.y,
                linestyle="none",
                marker="^",
                markersize=8,
                markerfacecolor="white",
                markeredgecolor=INK,
                markeredgewidth=1.3,
            )
        left, right, low, high = limits
        axes.set_xlim(left, right)
        axes.set_ylim(low - 0.05 * (high - low), high)
        axes.set_aspect("equal")
        bar = 10 ** math.floor(math.log10((right - left) / 2.5))
        bar *= 2 if 2 * bar <= (right - left) / 4 else 1
        base = low - 0.025 * (high - low)
        axes.plot([left, left + bar], [base, base], color=INK, linewidth=2, solid_capstyle="butt")
        axes.text(left + bar * 1.08, base, f"{bar:g} m", fontsize=8.5, va="center")

    return draw


def rings(curve: Curve) -> Outline | None:
    """Polylines separated by nan as one path; None where no polyline has three points."""
    points = np.column_stack([np.asarray(curve.x, dtype=float), np.asarray(curve.y, dtype=float)])
    breaks = np.flatnonzero(~np.isfinite(points).all(axis=1))
    vertices, codes = [], []
    for ring in np.split(points, breaks):
        ring = ring[np.isfinite(ring).all(axis=1)]
        if len(ring) >= 3:
            vertices.append(ring)
            codes.append([Outline.MOVETO] + [Outline.LINETO] * (len(ring) - 1))
    return Outline(np.concatenate(vertices), np.concatenate(codes)) if vertices else None
