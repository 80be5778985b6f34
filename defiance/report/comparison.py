"""Two sheets side by side: the same rows, their differences with intervals, and which of them changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from defiance.kpm import METRICS, Row, Sheet
from defiance.report import tables, words
from defiance.report.page import Headline, Section, section
from defiance.report.sections import settings
from defiance.report.tables import Cell, Table


@dataclass(frozen=True)
class Change:
    """One row in both sheets; `difference` is B minus A, None where a value is 'never' or missing."""

    a: Row
    b: Row
    difference: Row | None

    @property
    def kind(self) -> str:
        """'better', 'worse', 'changed' (no direction) or 'same' (the interval includes zero)."""
        if self.difference is None:
            if self.a.mean == self.b.mean or (math.isnan(self.a.mean) and math.isnan(self.b.mean)):
                return "same"
            if math.isnan(self.a.mean) or math.isnan(self.b.mean):
                return "changed"
            rises = self.b.mean > self.a.mean
        elif not words.resolved(self.difference):
            return "same"
        else:
            rises = self.difference.mean > 0
        direction = words.better(self.a.metric)
        if not direction:
            return "changed"
        return "better" if rises == (direction == "higher") else "worse"


def key(row: Row) -> tuple[str, str, str, str, str, str]:
    """What makes two rows of two sheets the same measurement."""
    return (row.metric, row.candidate, row.regime, row.scenario, row.node, row.unit)


def changes(a: Sheet, b: Sheet) -> tuple[Change, ...]:
    """The rows that both sheets have, in the order of A."""
    others = {key(row): row for row in b.rows}
    return tuple(
        Change(row, others[key(row)], _difference(row, others[key(row)]))
        for row in a.rows
        if key(row) in others
    )


def _difference(a: Row, b: Row) -> Row | None:
    """B minus A; half-widths combine as roots of sums of squares, since the sheets are independent runs."""
    if not (math.isfinite(a.mean) and math.isfinite(b.mean)):
        return None
    mean = b.mean - a.mean
    low = mean - math.hypot(b.mean - b.ci_low, a.ci_high - a.mean)
    high = mean + math.hypot(b.ci_high - b.mean, a.mean - a.ci_low)
    return replace(b, mean=mean, ci_low=low, ci_high=high)


def headlines(found: Sequence[Change]) -> tuple[Headline, ...]:
    """How many rows changed, and in which direction."""
    counts = {
        kind: sum(change.kind == kind for change in found) for kind in ("better", "worse", "changed", "same")
    }
    texts = (
        ("better", "Better in B", "the interval of the difference excludes zero"),
        ("worse", "Worse in B", "the interval of the difference excludes zero"),
        (
            "changed",
            "Changed, no direction",
            "metrics that are neither better high nor low, or lack a value on one side",
        ),
        ("same", "Not resolved", "the interval of the difference includes zero, or there is none"),
    )
    return tuple(
        Headline(label, f"{counts[kind]} of {len(found)}", detail)
        for kind, label, detail in texts
        if counts[kind] or kind != "changed"
    )


def sections(a: Sheet, b: Sheet, found: Sequence[Change], special: Sequence[Section]) -> tuple[Section, ...]:
    """What changed, what stands on one side only, which settings differ, and every row side by side.

    Args:
        a: on the left.
        b: on the right.
        found: their changes.
        special: sections of the study's own, after the verdicts.
    """
    moved = [change for change in found if change.kind != "same"]
    order = {name: place for place, name in enumerate(METRICS)}
    moved.sort(key=lambda change: order.get(change.a.metric, len(order)))
    text = (
        f"{len(moved)} of the {len(found)} rows that both sheets have differ by more than their 95 % "
        "intervals allow. Of rows in which nothing changed, up to one in twenty will seem to. Differences "
        "are B minus A; the two runs are taken as independent, which is cautious where they share seeds."
    )
    tables_of_changes = (
        _table("changes", "Rows that changed", moved, folded=False),
        _table("comparison", f"All {len(found)} rows side by side", found, folded=True),
    )
    made = (
        Section("verdicts", "The two verdicts", (f"A: {a.verdict}", f"B: {b.verdict}"), ()),
        *special,
        section("changes", "What changed", [text], tables_of_changes),
        section("one-sided", "In one sheet only", [], [_one_sided("A", a, b), _one_sided("B", b, a)]),
        section("settings", "Settings that differ", [], [_settings(a, b)]),
    )
    return tuple(part for part in made if part is not None)


def _table(name: str, caption: str, found: Sequence[Change], *, folded: bool) -> Table | None:
    head = ("metric", "candidate", "scenario", "node", "A", "B", "B − A", "relative")
    rows = [
        (
            tables.name(words.metric(change.a.metric)),
            tables.prose(words.candidate(change.a.candidate, change.a.regime)),
            tables.prose(words.scenario(change.a.scenario).label),
            tables.prose(words.NODES.get(change.a.node, change.a.node)),
            replace(tables.value(change.a), provenance=""),
            replace(tables.value(change.b), provenance=""),
            difference_cell(change),
            _relative(change),
        )
        for change in found
    ]
    return tables.table(name, caption, head, rows, folded=folded)


def difference_cell(change: Change) -> Cell:
    """The difference, with the change's direction in words."""
    cell = replace(tables.value(change.difference), provenance="")
    if change.kind == "same":
        remark = "not resolved" if change.difference else "the same"
        return replace(cell, mark="unresolved", remark=remark)
    return replace(cell, mark=change.kind, remark=change.kind)


def _relative(change: Change) -> Cell:
    if change.difference is None or change.a.mean == 0:
        return tables.EMPTY
    share = change.difference.mean / abs(change.a.mean)
    return Cell(words.number(share, "1"), values=(share, math.nan, math.nan))


def _one_sided(name: str, sheet: Sheet, other: Sheet) -> Table | None:
    known = {key(row) for row in other.rows}
    rows = [
        (
            tables.name(words.metric(row.metric)),
            tables.prose(words.candidate(row.candidate, row.regime)),
            tables.prose(words.scenario(row.scenario).label),
            tables.prose(words.NODES.get(row.node, row.node)),
            tables.value(row),
        )
        for row in sheet.rows
        if key(row) not in known
    ]
    head = ("metric", "candidate", "scenario", "node", "value")
    return tables.table(f"only-{name.lower()}", f"{len(rows)} rows in {name} only", head, rows, folded=True)


def _settings(a: Sheet, b: Sheet) -> Table | None:
    left, right = (
        dict(
            (
                ("study", sheet.study),
                ("version", sheet.version),
                ("seeds", ", ".join(str(seed) for seed in sheet.seeds)),
                *((f"config.{name}", value) for name, value in settings(sheet.config)),
                *((f"machine.{name}", value) for name, value in settings(sheet.machine)),
            )
        )
        for sheet in (a, b)
    )
    rows = [
        (tables.name(name), tables.prose(left.get(name, "–")), tables.prose(right.get(name, "–")))
        for name in dict.fromkeys([*left, *right])
        if left.get(name) != right.get(name)
    ]
    return tables.table(
        "settings", "Settings, seeds and machine where A and B differ", ("setting", "A", "B"), rows
    )
