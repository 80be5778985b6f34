"""Tables: one structure, written as HTML (by the page's template), CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from defiance.kpm import Row
from defiance.report import words

TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "[": "{[}",
    "]": "{]}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    words.MINUS: "$-$",
    words.NBSP: "~",
    words.THIN: r"\,",
    "–": "--",
    "µ": r"$\mu$",
    "∞": r"$\infty$",
    "→": r"$\to$",
}


@dataclass(frozen=True)
class Cell:
    """One cell: what is read first, its interval, a remark in words, and the numbers behind it.

    `mark` is one of '', 'better', 'worse', 'unresolved', 'absent', 'name', 'prose'; it steers the look, and
    the remark says the same in words. `values` (mean, low, high; SI units) go into the CSV file.
    """

    text: str
    interval: str = ""
    remark: str = ""
    mark: str = ""
    provenance: str = ""
    values: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Table:
    """A table with its caption; `name` is the stem of its files, `folded` hides it behind a summary line.

    `provenance` holds, column by column, what all cells of the column share ('' where they differ).
    """

    name: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    provenance: tuple[str, ...]
    folded: bool
    kind: ClassVar[str] = "table"

    def is_text(self, column: int) -> bool:
        """True where a column holds names or prose."""
        return all(row[column].mark in ("name", "prose") for row in self.rows)


EMPTY = Cell("–", mark="absent")


def name(text: str) -> Cell:
    """A cell that names its row; '' continues the row above."""
    return Cell(text, mark="name")


def prose(text: str) -> Cell:
    """A cell of running text."""
    return Cell(text, mark="prose")


def value(row: Row | None) -> Cell:
    """A measured value with its interval; a dash where the sheet has none."""
    if row is None:
        return EMPTY
    text, interval = words.interval(row.mean, row.ci_low, row.ci_high, row.unit)
    return Cell(text, interval, provenance=row.provenance, values=(row.mean, row.ci_low, row.ci_high))


def difference(row: Row | None) -> Cell:
    """A value whose sign matters (a cut, a difference): resolved or not, better or worse, in words too."""
    cell = value(row)
    if row is None:
        return cell
    if not words.resolved(row):
        return replace(cell, mark="unresolved", remark="not resolved")
    if (row.mean > 0) == (words.better(row.metric) != "lower"):
        return replace(cell, mark="better")
    return replace(cell, mark="worse", remark="worse")


def table(
    name: str, caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], *, folded: bool = False
) -> Table | None:
    """A table without the columns that are empty throughout; None where no number is left to show.

    A provenance that a whole column shares moves from its cells to the column's head.
    """
    kept = [i for i in range(len(head)) if any(row[i] != EMPTY for row in rows)]
    if not any(row[i].mark not in ("name", "absent") for row in rows for i in kept):
        return None
    shared = [{row[i].provenance for row in rows if row[i] != EMPTY} for i in kept]
    tags = tuple(next(iter(found)) if len(found) == 1 else "" for found in shared)
    body = tuple(
        tuple(replace(row[i], provenance="") if tag else row[i] for i, tag in zip(kept, tags, strict=True))
        for row in rows
    )
    return Table(name, caption, tuple(head[i] for i in kept), body, tags, folded)


def to_csv(table: Table) -> str:
    """Comma-separated values: names as text, numbers as mean, low and high in SI units."""
    numeric = [any(row[i].values for row in table.rows) for i in range(len(table.head))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        _plain(title)
        for head, is_number in zip(table.head, numeric, strict=True)
        for title in ((f"{head}: mean", f"{head}: low", f"{head}: high") if is_number else (head,))
    )
    for row in table.rows:
        fields: list[str | float] = []
        for cell, is_number in zip(row, numeric, strict=True):
            if is_number:
                fields.extend(cell.values or ("", "", ""))
            else:
                fields.append(_plain(cell.text))
        writer.writerow(fields)
    return out.getvalue()


def _plain(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def to_tex(table: Table) -> str:
    r"""A `tabular` for `booktabs`, to be included with `\input`."""
    columns = "".join("l" if table.is_text(i) else "r" for i in range(len(table.head)))
    lines = [
        f"% {_one_line(table.caption)}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(tex(head) for head in table.head) + r" \\",
        r"\midrule",
        *(" & ".join(_tex_cell(cell) for cell in row) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _tex_cell(cell: Cell) -> str:
    remark = f"({cell.remark})" if cell.remark else ""
    return " ".join(tex(part) for part in (cell.text, cell.interval, remark) if part)


def tex(text: str) -> str:
    """Text with everything special to LaTeX escaped."""
    return "".join(TEX.get(letter, letter) for letter in _one_line(text))


def _one_line(text: str) -> str:
    return re.sub(rf"[^\S{words.NBSP}{words.THIN}]+", " ", text).strip(" ")
