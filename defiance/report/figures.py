"""Figures: small multiples drawn by matplotlib, each panel an SVG for the page, all in one file for papers.

Output is a function of the data alone: no dates, ids from a fixed salt, margins fixed and not fitted.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.image import imsave
from matplotlib.text import Text

from defiance.report import words

INK, GREY, FAINT = "#1a1a1a", "#6b6b6b", "#d9d9d9"
FONTS = "system-ui, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
PAPER_DPI = 200
RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
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
    "path.simplify": True,
    "path.simplify_threshold": 0.3,
}


METADATA: Any = {"Software": None}  # matplotlib would write its version


@dataclass(frozen=True)
class Panel:
    """One small multiple: a title and the function that draws it."""

    title: str
    draw: Callable[[Axes], None]


@dataclass(frozen=True)
class Plot:
    """A figure before it is drawn.

    Attributes:
        name: stem of its files.
        caption: what is seen and how to read it.
        alt: what is seen, for those who cannot see it.
        panels: the small multiples.
        width_in: width of one panel.
        height_in: height of one panel.
        margins_in: left, right, bottom and top margin of a panel's axes.
        across: panels in a row of the file for papers.
    """

    name: str
    caption: str
    alt: str
    panels: tuple[Panel, ...]
    width_in: float = 4.0
    height_in: float = 3.0
    margins_in: tuple[float, float, float, float] = (0.66, 0.08, 0.54, 0.34)
    across: int = 3


@dataclass(frozen=True)
class Figure:
    """A drawn figure: `panels` are inline SVG, `svg` and `png` the files with all panels."""

    name: str
    caption: str
    panels: tuple[Markup, ...]
    panel_px: int
    svg: bytes = field(repr=False)
    png: bytes = field(repr=False)
    kind: ClassVar[str] = "figure"


def render(plot: Plot) -> Figure:
    """Draw every panel once, as SVG and as pixels, and tile them."""
    bodies, images = [], []
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for number, panel in enumerate(plot.panels, start=1):
            canvas = _draw(plot, panel)
            bodies.append(_body(canvas, f"{plot.name}-{number}"))
            images.append(_pixels(canvas))
    panels = tuple(
        Markup(
            f'<svg viewBox="0 0 {_points(plot.width_in)} {_points(plot.height_in)}" role="img" '
            f'aria-labelledby="{plot.name}-{number}-alt" xmlns="http://www.w3.org/2000/svg" '
            f'xmlns:xlink="http://www.w3.org/1999/xlink"><title id="{plot.name}-{number}-alt">'
            f"{escape(f'{plot.alt} Panel: {clean(panel.title)}.')}</title>{body}</svg>"
        )
        for number, (panel, body) in enumerate(zip(plot.panels, bodies, strict=True), start=1)
    )
    return Figure(
        plot.name,
        plot.caption,
        panels,
        round(plot.width_in * 82),
        _whole(plot, bodies).encode(),
        _tiled(plot, images),
    )


def clean(text: str) -> str:
    """Text without the characters that XML or a font cannot show."""
    return "".join(
        letter if letter.isprintable() or letter in (words.NBSP, words.THIN) else " " for letter in text
    )


def _draw(plot: Plot, panel: Panel) -> Canvas:
    canvas = Canvas(figsize=(plot.width_in, plot.height_in), dpi=72)
    left, right, bottom, top = plot.margins_in
    width, height = plot.width_in - left - right, plot.height_in - bottom - top
    axes = canvas.add_axes(
        (left / plot.width_in, bottom / plot.height_in, width / plot.width_in, height / plot.height_in)
    )
    title_at = (0.06 / plot.width_in, 1 - 0.07 / plot.height_in)
    canvas.text(*title_at, panel.title, fontsize=10.5, fontweight="bold", va="top")
    panel.draw(axes)
    for text in canvas.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(clean(text.get_text()))
    return canvas


def _body(canvas: Canvas, prefix: str) -> str:
    """What stands inside the <svg> element: ids of its own, numbers to 0.01 pt, the font left to the page."""
    out = io.StringIO()
    FigureCanvasSVG(canvas).print_svg(out, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' d="[^"]*"|<use [^>]*>', lambda found: re.sub(r"(\d\.\d\d)\d+", r"\1", found[0]), svg)
    used = set(re.findall(r'(?:url\(#|href="#)([\w.-]+)', svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda id: f' id="{prefix}-{id[1]}"' if id[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)([\w.-]+)', rf"\g<1>{prefix}-\g<2>", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"|font-family: [^;"]*; ', "", svg)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


def _pixels(canvas: Canvas) -> np.ndarray[Any, np.dtype[np.uint8]]:
    canvas.set_dpi(PAPER_DPI)
    agg = FigureCanvasAgg(canvas)
    agg.draw()
    return np.array(agg.buffer_rgba(), dtype=np.uint8)


def _points(inches: float) -> str:
    return f"{72 * inches:g}"


def _grid(plot: Plot) -> tuple[int, int]:
    columns = min(plot.across, len(plot.panels))
    return math.ceil(len(plot.panels) / columns), columns


def _whole(plot: Plot, bodies: list[str]) -> str:
    rows, columns = _grid(plot)
    width, height = _points(plot.width_in * columns), _points(plot.height_in * rows)
    parts = [
        '<?xml version="1.0" encoding="utf-8"?>\n<svg xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink" width="{width}pt" height="{height}pt" '
        f'viewBox="0 0 {width} {height}"><title>{escape(plot.alt)}</title>'
        f"<style>*{{stroke-linejoin:round;stroke-linecap:butt}}text{{font-family:{FONTS}}}</style>"
    ]
    for index, body in enumerate(bodies):
        x, y = _points(plot.width_in * (index % columns)), _points(plot.height_in * (index // columns))
        size = f'width="{_points(plot.width_in)}" height="{_points(plot.height_in)}"'
        parts.append(f'<svg x="{x}" y="{y}" {size}>{body}</svg>')
    return "\n".join([*parts, "</svg>\n"])


def _tiled(plot: Plot, images: list[np.ndarray[Any, np.dtype[np.uint8]]]) -> bytes:
    rows, columns = _grid(plot)
    high, wide, depth = images[0].shape
    page = np.full((rows * high, columns * wide, depth), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * high, (index % columns) * wide
        page[top : top + high, left : left + wide] = image
    out = io.BytesIO()
    imsave(out, page, format="png", dpi=PAPER_DPI, metadata=METADATA, pil_kwargs={"compress_level": 3})
    return out.getvalue()
