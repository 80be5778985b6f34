"""Measured drives: what a phone saw of a real network along a road, read from G-NetTrack's CSV files.

A row is one measurement, about one a second: time, place, serving cell, its strength and quality, the rates
that an application got. G-NetTrack calls the received code power of 3G "RSRP", too, and names the LTE anchor
of a 5G phone as its cell.

Nothing is dropped in silence. A value that can't be right becomes a missing one, a row that can't be placed
(in time, on the map, in a cell) is left out; both are a `Fault` with file, row and column.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.scene.table import number, read_table

EARTH_RADIUS_M = 6_371_009.0  # mean, IUGG
MISSING = ("", "-", "2147483647")  # the last is Android's "unavailable" (CellInfo.UNAVAILABLE)
NO_CELL = -1
MODES = ("LTE", "5G")  # those whose RSRP is one

KEYS = ("Timestamp", "Longitude", "Latitude", "RAWCELLID", "NetworkMode")
"""Columns that say when, where and in which cell a row was measured."""

VALUES = {
    "Speed": ("speed_mps", 1 / 3.6, 0.0, 1000.0),
    "RSRP": ("rsrp_dbm", 1.0, -156.0, -31.0),  # TS 38.133 table 10.1.6.1-1
    "RSRQ": ("rsrq_db", 1.0, -43.0, 20.0),  # TS 38.133 table 10.1.11.1-1
    "SNR": ("snr_db", 1.0, -23.0, 40.0),  # TS 38.133 table 10.1.16.1-1
    "CQI": ("cqi", 1.0, 0.0, 15.0),  # TS 38.214 clause 5.2.2.1
    "DL_bitrate": ("downlink_bps", 1e3, 0.0, 1e8),
    "UL_bitrate": ("uplink_bps", 1e3, 0.0, 1e8),
    "NRxRSRP": ("neighbour_rsrp_dbm", 1.0, -156.0, -31.0),
}
"""Columns of values, the attributes that they become, their factor to SI, least and greatest as written."""

COLUMNS = (*KEYS, *VALUES)


@dataclass(frozen=True)
class Fault:
    """Something wrong in a file: `drive.csv, row 7, column RSRP: -200 is not within -156 ... -31`."""

    file: str
    row: int
    column: str
    problem: str
    row_left_out: bool

    def __str__(self) -> str:
        place = f", column {self.column}" if self.column else ""
        return f"{self.file}, row {self.row}{place}: {self.problem}"


@dataclass(frozen=True)
class Drive:
    """The n usable rows of a file, in order; tensors are [n], float64 where not said otherwise.

    Attributes:
        name: of the file, without its ending.
        started: the phone's clock at the first row.
        row: int64, where in the file.
        time_s: since `started`; never falls, and often repeats.
        longitude_deg, latitude_deg: WGS 84.
        mode: n texts such as "LTE", "5G" (LTE with NR beside it), "HSPA+".
        cell: int64, identity of the serving cell in its network; `NO_CELL` where there was none.
        speed_mps, rsrp_dbm, rsrq_db, snr_db, cqi, downlink_bps, uplink_bps: as measured, nan where missing;
            rates are those that an application got.
        neighbour_rsrp_dbm: of the strongest neighbour, whose identity isn't recorded; nan where missing.
        faults: what was wrong in the file.
    """

    name: str
    started: datetime
    row: Tensor
    time_s: Tensor
    longitude_deg: Tensor
    latitude_deg: Tensor
    mode: tuple[str, ...]
    cell: Tensor
    speed_mps: Tensor
    rsrp_dbm: Tensor
    rsrq_db: Tensor
    snr_db: Tensor
    cqi: Tensor
    downlink_bps: Tensor
    uplink_bps: Tensor
    neighbour_rsrp_dbm: Tensor
    faults: tuple[Fault, ...]

    def __len__(self) -> int:
        return len(self.mode)

    @cached_property
    def measured(self) -> Tensor:
        """Bool [n]: where the RSRP of a known LTE cell was measured."""
        mode = torch.tensor([mode in MODES for mode in self.mode], dtype=torch.bool)
        return mode & self.rsrp_dbm.isfinite() & (self.cell != NO_CELL)

    def select(self, which: Tensor) -> "Drive":
        """The rows that a bool mask [n] or an int64 index [m] names; faults stay with the drive."""
        rows = torch.arange(len(self))[which].tolist()
        columns = {
            field.name: getattr(self, field.name)[which]
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        mode = tuple(self.mode[row] for row in rows)
        return Drive(name=self.name, started=self.started, mode=mode, faults=self.faults, **columns)


def read_drives(path: Path) -> tuple[Drive, ...]:
    """Read one file, or every .csv file of a folder in the order of their clocks.

    Raises:
        DefianceError: there is none, or one can't be read; see `read_drive`.
    """
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not files:
        raise DefianceError(f"{path}: holds no .csv file; give G-NetTrack's files or their folder")
    return tuple(sorted((read_drive(file) for file in files), key=lambda drive: drive.started))


def read_drive(path: Path) -> Drive:
    """Read G-NetTrack's CSV file of one drive.

    Raises:
        DefianceError: the file can't be read, lacks a column, or has no usable row; file, row and column are
            named.
    """
    header, lines = read_table(path, COLUMNS, "a drive of G-NetTrack")
    place = {column: header.index(column) for column in COLUMNS}
    faults: list[Fault] = []
    rows: list[_Row] = []
    for row, line in lines:
        try:
            if len(line) != len(header):
                raise _Unplaced("", f"{len(line)} fields, but the header has {len(header)}")
            rows.append(_row(row, [line[place[column]] for column in COLUMNS], rows, str(path), faults))
        except _Unplaced as error:
            faults.append(Fault(str(path), row, error.column, error.problem, row_left_out=True))
    if not rows:
        raise DefianceError(str(faults[0]) if faults else f"{path}: holds no row below its header")
    values = torch.tensor([row.values for row in rows], dtype=torch.float64)
    started = rows[0].clock
    return Drive(
        name=path.stem,
        started=started,
        row=torch.tensor([row.number for row in rows]),
        time_s=_column([(row.clock - started).total_seconds() for row in rows]),
        longitude_deg=_column([row.longitude_deg for row in rows]),
        latitude_deg=_column([row.latitude_deg for row in rows]),
        mode=tuple(row.mode for row in rows),
        cell=torch.tensor([row.cell for row in rows]),
        **{name: values[:, n].clone() for n, (name, *_) in enumerate(VALUES.values())},
        faults=tuple(faults),
    )


def describe_faults(drives: Sequence[Drive], most: int = 5) -> list[str]:
    """Lines that count the faults by file and kind, each with the first row that has it.

    Args:
        drives: as read.
        most: kinds per file that are named; the others are counted.
    """
    lines = []
    for drive in drives:
        kinds = Counter((fault.column, fault.row_left_out) for fault in drive.faults)
        for kind, count in kinds.most_common(most):
            first = next(f for f in drive.faults if (f.column, f.row_left_out) == kind)
            became = "left out" if first.row_left_out else "taken as missing"
            others = f", and {count - 1} more rows like it" if count > 1 else ""
            lines.append(f"{first} ({became}){others}")
        rest = sum(count for _, count in kinds.most_common()[most:])
        if rest:
            lines.append(f"{drive.faults[0].file}: {rest} more faults of other kinds")
    return lines


def place_m(
    longitude_deg: Tensor, latitude_deg: Tensor, origin_deg: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Metres east and north of an origin (longitude, latitude), on a plane that touches the earth there.

    Equirectangular: within 0.1 % up to 30 km from the origin between 60 degrees south and north.
    """
    turn_m = EARTH_RADIUS_M * math.pi / 180
    east_m = (longitude_deg - origin_deg[0]) * turn_m * math.cos(math.radians(origin_deg[1]))
    return east_m, (latitude_deg - origin_deg[1]) * turn_m


class _Unplaced(Exception):
    """A row that can't be placed, and why."""

    def __init__(self, column: str, problem: str) -> None:
        self.column, self.problem = column, problem


@dataclass(frozen=True)
class _Row:
    number: int
    clock: datetime
    longitude_deg: float
    latitude_deg: float
    cell: int
    mode: str
    values: list[float]


def _row(row: int, texts: list[str], before: list[_Row], file: str, faults: list[Fault]) -> _Row:
    """Parse the fields of a row in the order of `COLUMNS`."""
    clock_text, longitude_text, latitude_text, cell_text, mode, *value_texts = texts
    clock = _clock(clock_text)
    if before and clock < before[-1].clock:
        raise _Unplaced("Timestamp", f"{clock_text} is before row {before[-1].number}")
    longitude_deg = _degrees("Longitude", longitude_text, 180.0)
    latitude_deg = _degrees("Latitude", latitude_text, 90.0)
    cell = _cell(cell_text)
    values = []
    for text, (column, (_, factor, low, high)) in zip(value_texts, VALUES.items(), strict=True):
        try:
            values.append(math.nan if text in MISSING else factor * number(text, low, high))
        except ValueError as error:
            values.append(math.nan)
            faults.append(Fault(file, row, column, str(error), row_left_out=False))
    return _Row(row, clock, longitude_deg, latitude_deg, cell, mode, values)


def _clock(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y.%m.%d_%H.%M.%S")
    except ValueError:
        problem = f"{text[:40]!r} is not a time such as 2020.02.14_09.38.22"
        raise _Unplaced("Timestamp", problem) from None


def _degrees(column: str, text: str, limit: float) -> float:
    try:
        return number(text, -limit, limit)
    except ValueError as error:
        raise _Unplaced(column, str(error)) from None


def _cell(text: str) -> int:
    if text in MISSING:
        return NO_CELL
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise _Unplaced("RAWCELLID", f"{text[:40]!r} is not a cell's number")
    return int(text)


def _column(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)
