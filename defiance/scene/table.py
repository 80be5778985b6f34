"""Reading tables that people made: what is wrong in them is said with file, row and column."""

import csv
from collections.abc import Sequence
from pathlib import Path

from defiance.errors import DefianceError


def read_table(
    path: Path, columns: Sequence[str], what: str
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read a CSV file whose first row names its columns; blank rows are skipped, fields stripped.

    Args:
        path: the file, UTF-8.
        columns: those that it must have, in any order and among others.
        what: the table is, for the error: "a site plan".

    Returns:
        The header, and each row's number (the header is row 1) with its fields, however many these are.

    Raises:
        DefianceError: the file can't be read, or lacks a column; the file is named.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [[field.strip() for field in line] for line in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DefianceError(f"{path}: can't be read as CSV: {error}") from error
    header = lines[0] if lines else []
    missing = [column for column in columns if column not in header]
    if missing:
        raise DefianceError(f"{path}, row 1: no column {missing[0]}; {what} has {','.join(columns)}")
    return header, [(number, line) for number, line in enumerate(lines[1:], start=2) if any(line)]


def number(text: str, low: float, high: float) -> float:
    """The number that a field holds.

    Raises:
        ValueError: it holds none, or one outside low ... high; the message says which.
    """
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not low <= value <= high:
        raise ValueError(f"{text} is not within {low:g} ... {high:g}")
    return value
