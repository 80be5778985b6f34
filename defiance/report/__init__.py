"""Sheets -> one self-contained HTML page, figures (SVG, PNG) and tables (CSV, LaTeX).

One sheet makes a report, two make a comparison. The page is a fold over rows and curves: a section whose numbers
are absent is left out. Nothing in a sheet is trusted; every string is escaped where it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from defiance.errors import DefianceError
from defiance.kpm import Sheet, write_atomically
from defiance.report import comparison, figures, sections, tables, words
from defiance.report.figures import Figure, Plot
from defiance.report.sections import Headline, Section
from defiance.report.tables import Table
from defiance.report.view import View

__all__ = ["summary_rows", "write_report"]

MAPS = (
    "City maps: © OpenStreetMap contributors, Open Database License (ODbL) 1.0; radio maps ray-traced from them with "
    "Sionna RT. "
)
METRICS_FROM = "Metrics after 6G-XCEL deliverable D2.2. Made with DEFIANCE, Apache-2.0."


@dataclass(frozen=True)
class Drawn:
    """A section whose plots are drawn."""

    id: str
    title: str
    paragraphs: tuple[str, ...]
    blocks: tuple[Table | Figure, ...]


@dataclass(frozen=True)
class Source:
    """What is needed to make a sheet again."""

    title: str
    made_by: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Page:
    """All that the template shows."""

    title: str
    version: str
    eyebrow: str
    question: str
    verdict: str
    verdict_rest: str
    headlines: tuple[Headline, ...]
    sections: tuple[Drawn, ...]
    sources: tuple[Source, ...]
    glossary: tuple[tuple[str, str], ...]
    attribution: str


def write_report(sheets: Sequence[Sheet], folder: Path) -> Path:
    """Write `report.html`, `figures/` and `tables/` into a folder and return the page's path.

    Args:
        sheets: one sheet for a report, two for a comparison (A, B).
        folder: made if absent; files of the same names are replaced.

    Raises:
        DefianceError: there is neither one sheet nor two, or the folder cannot be written to.
    """
    if len(sheets) not in (1, 2):
        raise DefianceError(f"a report takes one sheet or two, not {len(sheets)}")
    page = _report(sheets[0]) if len(sheets) == 1 else _comparison(*sheets)
    for section in page.sections:
        for block in section.blocks:
            if isinstance(block, Figure):
                write_atomically(folder / "figures" / f"{block.name}.svg", block.svg)
                write_atomically(folder / "figures" / f"{block.name}.png", block.png)
            else:
                write_atomically(folder / "tables" / f"{block.name}.csv", tables.to_csv(block).encode())
                write_atomically(folder / "tables" / f"{block.name}.tex", tables.to_tex(block).encode())
    path = folder / "report.html"
    write_atomically(path, _html(page).encode())
    return path


def summary_rows(sheet: Sheet) -> tuple[tuple[str, str, str], ...]:
    """The few lines that a terminal shows: what, its value, and interval and place in words."""
    return tuple(
        (headline.label, headline.value, headline.detail) for headline in sections.headlines(View(sheet))
    )


def _html(page: Page) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(files(__name__).joinpath("page.html.j2").read_text(encoding="utf-8"))
    return template.render(page=page)


def _report(sheet: Sheet) -> Page:
    view = View(sheet)
    verdict, rest = words.sentence_split(sheet.verdict)
    found = sections.sections(view)
    everything = sections.all_rows(sheet)
    if everything is not None:
        found += (Section("sheet", "The whole sheet", (), (everything,)),)
    question = sections.question(view)
    return Page(
        title=f"{question} · DEFIANCE",
        version=sheet.version,
        eyebrow=f"DEFIANCE {sheet.version} · study {sheet.study} · {_seeds(sheet)}",
        question=question,
        verdict=verdict or "The sheet gives no verdict.",
        verdict_rest=rest,
        headlines=sections.headlines(view),
        sections=tuple(_drawn(section) for section in found),
        sources=(_source(sheet, ""),),
        glossary=sections.glossary([sheet]),
        attribution=_attribution([sheet]),
    )


def _comparison(a: Sheet, b: Sheet) -> Page:
    found = comparison.changes(a, b)
    moved = sum(change.kind != "same" for change in found)
    return Page(
        title=f"{a.study} and {b.study} compared · DEFIANCE",
        version=b.version,
        eyebrow=f"DEFIANCE {b.version} · A: {a.study} {a.version}, {_seeds(a)} · B: {b.study} {b.version}, {_seeds(b)}",
        question="What changed between A and B?",
        verdict=f"{moved} of {len(found)} shared rows changed." if found else "The two sheets share no row.",
        verdict_rest="",
        headlines=comparison.headlines(found) if found else (),
        sections=tuple(_drawn(section) for section in comparison.sections(a, b)),
        sources=(_source(a, "Sheet A"), _source(b, "Sheet B")),
        glossary=sections.glossary([a, b]),
        attribution=_attribution([a, b]),
    )


def _seeds(sheet: Sheet) -> str:
    return f"{len(sheet.seeds)} seed" + ("s" if len(sheet.seeds) != 1 else "")


def _drawn(section: Section) -> Drawn:
    blocks = tuple(figures.render(block) if isinstance(block, Plot) else block for block in section.blocks)
    return Drawn(section.id, section.title, section.paragraphs, blocks)


def _source(sheet: Sheet, title: str) -> Source:
    facts = (
        ("seeds", ", ".join(str(seed) for seed in sheet.seeds)),
        *((f"machine: {name}", value) for name, value in sections.settings(sheet.machine)),
        *sections.settings(sheet.config),
    )
    return Source(title, sheet.made_by, facts)


def _attribution(sheets: Sequence[Sheet]) -> str:
    cities = any(curve.name == "buildings" for sheet in sheets for curve in sheet.curves) or any(
        cell.city.startswith(("munich", "florence")) for sheet in sheets for cell in View(sheet).scenarios
    )
    return (MAPS if cities else "") + METRICS_FROM
