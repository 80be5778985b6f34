"""Reading tables that people made: what is wrong in them is said with file, row and column."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from defiance.errors import DefianceError
from defiance.parts import read_at_most

LARGEST_BYTES = 2**28
"""Of a table: four hundred hours of a drive."""


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
        DefianceError: the file can't be read, is larger than `LARGEST_BYTES`, isn't CSV in UTF-8, or has a
            column not once; file and row are named.
    """
    content = read_at_most(path, LARGEST_BYTES)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        raise DefianceError(f"{path}, row {row}: not text in UTF-8; save it as CSV in UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        lines = [[field.strip() for field in line] for line in reader]
    except csv.Error as error:
        raise DefianceError(f"{path}, row {reader.line_num}: not CSV: {error}") from None
    header = lines[0] if lines else []
    twice = [column for column in columns if header.count(column) > 1]
    if twice:
        raise DefianceError(f"{path}, row 1: column {twice[0]} stands there twice")
    missing = [column for column in columns if column not in header]
    if missing:
        hint = (
            "; fields are separated by commas" if len(header) == 1 and re.search("[;\t]", header[0]) else ""
        )
        raise DefianceError(f"{path}, row 1: no column {missing[0]}; {what} has {','.join(columns)}{hint}")
    return header, [(number, line) for number, line in enumerate(lines[1:], start=2) if any(line)]


def number(text: str, low: float, high: float) -> float:
    """The number that a field holds.

    Raises:
        ValueError: it holds none, or one outside low ... high; the message says which.
    """
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?(nan|inf)", text, re.ASCII | re.IGNORECASE):
        raise ValueError(f"{shown!r} is not a number")
    value = float(text)
    if not low <= value <= high:
        raise ValueError(f"{shown} is not within {low:g} ... {high:g}")
    return value
