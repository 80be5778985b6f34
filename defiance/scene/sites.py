"""Where antennas stand: a hexagonal plan on roofs, or a table of one's own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from defiance.errors import DefianceError
from defiance.scene.streets import largest_part
from defiance.scene.table import number, read_table

AZIMUTHS_DEG = (30.0, 150.0, 270.0)  # each points between two neighbours of the hexagonal plan
TILT_DEG = 10.0
OPEN_M = 0.5  # what is lower doesn't count as a building
MAST_M = 10.0  # antenna above the edge of its roof
COLUMNS = ("name", "x_m", "y_m", "height_m", "azimuth_deg", "tilt_deg")
OPTIONAL = ("power_dbm", "carrier_mhz", "cell")
LIMITS = {
    "x_m": (-1e5, 1e5),
    "y_m": (-1e5, 1e5),
    "height_m": (0.0, 1000.0),
    "azimuth_deg": (-360.0, 360.0),
    "tilt_deg": (-90.0, 90.0),
    "power_dbm": (-30.0, 80.0),
    "carrier_mhz": (400.0, 100_000.0),
    "cell": (0, 2**53),
}


@dataclass(frozen=True)
class Sector:
    """One antenna panel: the site it hangs on, where that is, and where the panel looks.

    `height_m` is above the ground below the site; azimuth is clockwise from north, tilt below the horizon.
    What follows them is None where the plan doesn't say: transmit power, carrier, and the cell's identity in
    the network, by which measured drives name it. `row` says where the plan has it: `sites.csv, row 3`.
    """

    site: str
    x_m: float
    y_m: float
    height_m: float
    azimuth_deg: float
    tilt_deg: float
    power_dbm: float | None = None
    carrier_mhz: float | None = None
    cell: int | None = None
    row: str = field(default="", compare=False)

    def __str__(self) -> str:
        place = f"site {self.site} at ({self.x_m:g}, {self.y_m:g})"
        return f"{self.row}, columns x_m and y_m: {place}" if self.row else place


@dataclass(frozen=True)
class Terrain:
    """Heights on a grid of places: x_m [cols], y_m [rows], ground_m and top_m [rows, cols].

    `top_m` is what rain hits first: a roof, or the ground. Both are nan where the map has no ground.
    """

    x_m: NDArray[np.float64]
    y_m: NDArray[np.float64]
    ground_m: NDArray[np.float64]
    top_m: NDArray[np.float64]

    @property
    def open_sky(self) -> NDArray[np.bool_]:
        """Where nothing stands on the ground, bool [rows, cols]."""
        return np.asarray(self.top_m - self.ground_m < OPEN_M)

    def nearest(self, x_m: float, y_m: float) -> tuple[int, int] | None:
        """Row and column of the grid place nearest to (x, y), none if it lies off the grid or the ground."""
        col, row = int(np.abs(self.x_m - x_m).argmin()), int(np.abs(self.y_m - y_m).argmin())
        step = float(self.x_m[1] - self.x_m[0])
        inside = abs(self.x_m[col] - x_m) <= step and abs(self.y_m[row] - y_m) <= step
        return (row, col) if inside and math.isfinite(self.ground_m[row, col]) else None


def read_sites(path: Path) -> tuple[Sector, ...]:
    """Read a site plan: CSV, one row per sector, columns name, x_m, y_m, height_m, azimuth_deg, tilt_deg.

    Columns power_dbm, carrier_mhz and cell may follow, and then every row fills them. Rows of one name are
    the sectors of one site and share its place and height, not their direction; all rows share the carrier.

    Raises:
        DefianceError: the file can't be read, a column is missing, a value is no number within its range, or
            two rows contradict each other; file, row and column are named.
    """
    header, lines = read_table(path, COLUMNS, "a site plan")
    sectors: list[Sector] = []
    for row, line in lines:
        if len(line) != len(header):
            raise DefianceError(f"{path}, row {row}: {len(line)} fields, but the header has {len(header)}")
        sectors.append(_sector(dict(zip(header, line, strict=True)), f"{path}, row {row}"))
        _check_agreement(sectors, f"{path}, row {row}")
    if not sectors:
        raise DefianceError(f"{path}: holds no sector; add one row per sector below {','.join(COLUMNS)}")
    return tuple(sectors)


def rooftop_sites(terrain: Terrain) -> tuple[Sector, ...]:
    """Place seven sites of three sectors on roofs: near a centre and the hexagon around it.

    Sites are 0.4 of the area's shorter side apart (400 m on 1 km2). Each stands on a mast at the
    street-side edge of the highest roof within 0.15 of that distance of its ideal point (or of the nearest
    roof, if none is); spires (the highest 5 % of all roofed places) are left out.

    Raises:
        DefianceError: the scene hasn't seven roofs apart from each other.
    """
    height_m = np.nan_to_num(terrain.top_m - terrain.ground_m)
    step_m = float(terrain.x_m[1] - terrain.x_m[0])
    street = largest_part(terrain.open_sky)
    fit = (height_m > 3.0) & (distance_transform_edt(~street) * step_m <= max(4.0, step_m))
    if not (street.any() and fit.any()):
        raise DefianceError("the scene has no roofs to put sites on; give a site plan (--sites)")
    fit &= height_m <= np.quantile(height_m[height_m > 3.0], 0.95)
    x_m, y_m = np.meshgrid(terrain.x_m, terrain.y_m)
    spacing_m = 0.4 * min(np.ptp(terrain.x_m), np.ptp(terrain.y_m))
    reach_m = 0.15 * spacing_m
    centre = (terrain.x_m.mean(), terrain.y_m.mean())
    ideal = [centre] + [
        (centre[0] + spacing_m * math.sin(turn), centre[1] + spacing_m * math.cos(turn))
        for turn in np.arange(6) * math.pi / 3
    ]
    sectors = []
    for count, (east_m, north_m) in enumerate(ideal, start=1):
        away_m = np.hypot(x_m - east_m, y_m - north_m)
        near = fit & (away_m <= max(reach_m, away_m[fit].min()))
        best = np.where(near, height_m - 1e-3 * away_m, -np.inf).argmax()
        place = (float(x_m.flat[best]), float(y_m.flat[best]), float(height_m.flat[best]) + MAST_M)
        sectors += [Sector(f"site {count}", *place, azimuth, TILT_DEG) for azimuth in AZIMUTHS_DEG]
    if len({(sector.x_m, sector.y_m) for sector in sectors}) < len(ideal):
        raise DefianceError("the scene has too few roofs for seven sites; give a site plan (--sites)")
    return tuple(sectors)


def relative_power_db(plan: Sequence[Sector]) -> list[float]:
    """Each sector's power over the strongest one's; 0 where the plan gives none."""
    strongest = strongest_dbm(plan)
    if strongest is None:
        return [0.0] * len(plan)
    return [sector.power_dbm - strongest for sector in plan if sector.power_dbm is not None]


def strongest_dbm(plan: Sequence[Sector]) -> float | None:
    """The highest power of a plan, None if it gives none."""
    return max((sector.power_dbm for sector in plan if sector.power_dbm is not None), default=None)


def _sector(row: dict[str, str], where: str) -> Sector:
    numbers: dict[str, float] = {}
    for column, (low, high) in LIMITS.items():
        if column in OPTIONAL and column not in row:
            continue
        try:
            numbers[column] = number(row[column], low, high)
        except ValueError as error:
            raise DefianceError(f"{where}, column {column}: {error}") from None
    if not row["name"]:
        raise DefianceError(f"{where}, column name: is empty; name the site")
    cell = numbers.pop("cell", None)
    if cell is not None and not cell.is_integer():
        raise DefianceError(f"{where}, column cell: {row['cell']} is not a whole number")
    return Sector(row["name"], **numbers, cell=None if cell is None else int(cell), row=where)


def _check_agreement(sectors: list[Sector], where: str) -> None:
    """Refuse a last sector that contradicts an earlier row."""
    new = sectors[-1]
    first = next(sector for sector in sectors if sector.site == new.site)
    for column in ("x_m", "y_m", "height_m"):
        if getattr(first, column) != getattr(new, column):
            raise DefianceError(
                f"{where}, column {column}: site {new.site} has {getattr(first, column):g} in an earlier row;"
                " sectors of one site share its place"
            )
    looks = [(sector.azimuth_deg % 360, sector.tilt_deg) for sector in sectors if sector.site == new.site]
    if looks[-1] in looks[:-1]:
        raise DefianceError(
            f"{where}, column azimuth_deg: site {new.site} has {new.azimuth_deg:g} with this tilt in an"
            " earlier row, too"
        )
    if new.carrier_mhz != sectors[0].carrier_mhz:
        raise DefianceError(
            f"{where}, column carrier_mhz: {new.carrier_mhz:g}, but the first row has"
            f" {sectors[0].carrier_mhz:g}; make one plan per carrier"
        )
    if new.cell is not None and new.cell in [sector.cell for sector in sectors[:-1]]:
        raise DefianceError(f"{where}, column cell: {new.cell} is in an earlier row, too")
