"""What stands on every page, whatever the study: all rows, the settings, the definitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from defiance.kpm import METRICS, Sheet
from defiance.report import tables, words
from defiance.report.page import Section, section
from defiance.report.tables import Cell


def everything(sheet: Sheet) -> Section | None:
    """Every row as it stands."""
    head = ("candidate", "regime", "scenario", "node", "metric", "mean", "n", "provenance")
    rows = []
    for row in sheet.rows:
        cells = (row.candidate, row.regime, row.scenario, row.node, row.metric)
        mean = replace(tables.value(row), provenance="")
        rows.append(
            (*(tables.prose(text) for text in cells), mean, Cell(str(row.n)), tables.prose(row.provenance))
        )
    table = tables.table("rows", f"All {len(rows)} rows of the sheet", head, rows, folded=True)
    return section("sheet", "The whole sheet", ["Every row also stands in tables/rows.csv."], [table])


def settings(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Nested settings as dotted names with their values."""
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found.extend((f"{name}.{inner}", text) for inner, text in settings(value))
        elif isinstance(value, list | tuple):
            found.append((str(name), ", ".join(str(item) for item in value)))
        else:
            found.append((str(name), f"{value:.10g}" if isinstance(value, float) else str(value)))
    return tuple(found)


def glossary(sheets: Sequence[Sheet]) -> tuple[tuple[str, str], ...]:
    """The definitions of the metrics that the sheets use."""
    used = {row.metric for sheet in sheets for row in sheet.rows}
    return tuple((words.metric(name), metric.definition) for name, metric in METRICS.items() if name in used)
