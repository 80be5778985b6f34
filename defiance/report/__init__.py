"""Sheets -> one self-contained HTML page, figures (SVG, PNG) and tables (CSV, LaTeX).

One sheet makes a report, two make a comparison. The page is a fold over rows and curves: a section whose
numbers are absent is left out. Nothing in a sheet is trusted; every string is escaped where it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from defiance.errors import DefianceError
from defiance.kpm import Sheet
from defiance.parts import write_atomically
from defiance.report import comparison, figures, sections, tables, words
from defiance.report.figures import Figure, Plot
from defiance.report.page import Page, Section, Source
from defiance.report.sensitivity import rests_on
from defiance.report.stories import story
from defiance.report.tables import Table

__all__ = ["summary_rows", "write_report"]

METRICS_FROM = "Metrics after 6G-XCEL deliverable D2.2. Made with DEFIANCE, Apache-2.0."


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
            elif isinstance(block, Table):
                write_atomically(folder / "tables" / f"{block.name}.csv", _utf8(tables.to_csv(block)))
                write_atomically(folder / "tables" / f"{block.name}.tex", _utf8(tables.to_tex(block)))
    path = folder / "report.html"
    write_atomically(path, _utf8(_html(page)))
    return path


def summary_rows(sheet: Sheet) -> tuple[tuple[str, str, str], ...]:
    """The few lines for a terminal: what it is, its value, and in words its interval and where it holds."""
    return tuple(
        (headline.label, headline.value, headline.detail) for headline in story(sheet).headlines(sheet)
    )


def _utf8(text: str) -> bytes:
    """Bytes of any text: JSON may hold halves of surrogate pairs, which UTF-8 cannot."""
    return text.encode("utf-8", "replace")


def _html(page: Page) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(files(__name__).joinpath("page.html.j2").read_text(encoding="utf-8"))
    return template.render(page=page)


def _report(sheet: Sheet) -> Page:
    told = story(sheet)
    verdict, *rest = words.sentences(sheet.verdict)
    question = told.question(sheet)
    parts = [*told.sections(sheet), rests_on(sheet), sections.everything(sheet)]
    return Page(
        title=f"{question} · DEFIANCE",
        version=sheet.version,
        eyebrow=f"DEFIANCE {sheet.version} · study {sheet.study} · {words.count(len(sheet.seeds), 'seed')}",
        question=question,
        verdict=verdict or "The sheet gives no verdict.",
        verdict_rest=tuple(rest),
        headlines=told.headlines(sheet),
        sections=tuple(_drawn(section) for section in parts if section is not None),
        sources=(_source(sheet, ""),),
        glossary=sections.glossary([sheet]),
        attribution=_attribution([sheet]),
    )


def _comparison(a: Sheet, b: Sheet) -> Page:
    found = comparison.changes(a, b)
    moved = sum(change.kind != "same" for change in found)
    special = story(a).compared(a, b, found)
    return Page(
        title=f"{a.study} and {b.study} compared · DEFIANCE",
        version=b.version,
        eyebrow=" · ".join(
            ["DEFIANCE"]
            + [
                f"{name}: {sheet.study} {sheet.version}, {words.count(len(sheet.seeds), 'seed')}"
                for name, sheet in (("A", a), ("B", b))
            ]
        ),
        question="What changed between A and B?",
        verdict=f"{moved} of {len(found)} shared rows changed." if found else "The two sheets share no row.",
        verdict_rest=(),
        headlines=comparison.headlines(found) if found else (),
        sections=tuple(_drawn(section) for section in comparison.sections(a, b, found, special)),
        sources=(_source(a, "Sheet A"), _source(b, "Sheet B")),
        glossary=sections.glossary([a, b]),
        attribution=_attribution([a, b]),
    )


def _drawn(section: Section) -> Section:
    blocks = tuple(figures.render(block) if isinstance(block, Plot) else block for block in section.blocks)
    return replace(section, blocks=blocks)


def _source(sheet: Sheet, title: str) -> Source:
    facts = (
        ("seeds", ", ".join(str(seed) for seed in sheet.seeds)),
        *((f"machine: {name}", value) for name, value in sections.settings(sheet.machine)),
        *sections.settings(sheet.config),
    )
    return Source(title, sheet.made_by, facts)


def _attribution(sheets: Sequence[Sheet]) -> str:
    owed = dict.fromkeys(story(sheet).attribution(sheet) for sheet in sheets)
    return " ".join([*filter(None, owed), METRICS_FROM])
