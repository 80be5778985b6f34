"""What a page holds, before its figures are drawn and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from defiance.report.figures import Figure, Plot
from defiance.report.tables import Table


@dataclass(frozen=True)
class Headline:
    """One large number: what it is, its value, and interval and place in words."""

    label: str
    value: str
    detail: str
    provenance: str = ""


@dataclass(frozen=True)
class Section:
    """A headed part of the page: paragraphs, then tables and figures."""

    id: str
    title: str
    paragraphs: tuple[str, ...]
    blocks: tuple[Table | Plot | Figure, ...]


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
    verdict_rest: tuple[str, ...]
    headlines: tuple[Headline, ...]
    sections: tuple[Section, ...]
    sources: tuple[Source, ...]
    glossary: tuple[tuple[str, str], ...]
    attribution: str


def section(
    id: str, title: str, paragraphs: Sequence[str], blocks: Sequence[Table | Plot | None]
) -> Section | None:
    """A section of what is there; None where there is no table and no figure."""
    kept = tuple(block for block in blocks if block is not None)
    return Section(id, title, tuple(text for text in paragraphs if text), kept) if kept else None
