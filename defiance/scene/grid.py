"""The urban grid of TR 37.885 annex A: blocks of houses, straight streets, vehicles on their centre lines.

Path loss and shadowing are those of TR 38.901's street canyon (UMi); whether a place is in line of sight is a
matter of the houses between, not of chance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defiance.radio.tr38901 import UMI, Geometry
from defiance.scene.city import Scene
from defiance.scene.drop import field_amplitude, nearest_image, normal_field, torus_grid
from defiance.scene.streets import ROUTE_SPACING_M
from defiance.seeding import Stream

PITCH_M = (433.0, 250.0)  # TR 37.885 annex A: centre line to centre line, east and north
STREET_WIDTH_M = 20.0
RESOLUTION_M = 1.0
TURNS = ((0, 0.5), (1, 0.25), (3, 0.25))  # quarter turns at a crossing and their probabilities


@dataclass(frozen=True)
class UrbanGrid:
    """`blocks` houses east and north with a street on every side of each, centred on the origin."""

    blocks: tuple[int, int] = (3, 3)

    @property
    def east_m(self) -> NDArray[np.float64]:
        """The x of the centre lines of the streets that run north."""
        return self._lines(0)

    @property
    def north_m(self) -> NDArray[np.float64]:
        """The y of the centre lines of the streets that run east."""
        return self._lines(1)

    def _lines(self, axis: int) -> NDArray[np.float64]:
        return np.asarray(
            (np.arange(self.blocks[axis] + 1) - self.blocks[axis] / 2) * PITCH_M[axis], np.float64
        )


def urban_grid(
    grid: UrbanGrid, site_m: Sequence[tuple[float, float]], carrier_hz: float, stream: Stream
) -> Scene:
    """A grid with one omnidirectional cell per site, 10 m high.

    Shadowing is a field per site and state of sight, so that it starts anew where the line of sight ends.

    Args:
        grid: the streets.
        site_m: (x, y) of every site.
        carrier_hz: the carrier.
        stream: draws the shadowing.
    """
    x = np.arange(grid.east_m[0], grid.east_m[-1] + RESOLUTION_M / 2, RESOLUTION_M)
    y = np.arange(grid.north_m[0], grid.north_m[-1] + RESOLUTION_M / 2, RESOLUTION_M)
    place = np.stack(np.meshgrid(x, y), -1)
    sites = np.array(site_m, np.float64)
    rows, columns = len(y), len(x)
    gain_db = torch.empty(len(sites), rows, columns)
    amplitudes = [shadowing_amplitude(rows, columns, state.correlation_m) for state in (UMI.los, UMI.nlos)]
    for number, (site, sight) in enumerate(zip(sites, line_of_sight(grid, sites, place), strict=True)):
        distance_m = torch.from_numpy(np.hypot(*(place - site).transpose(2, 0, 1))).float()
        rng = stream.child("shadowing", number).generator()
        shadow, hidden = (normal_field(amplitude, rng)[:rows, :columns] for amplitude in amplitudes)
        at = Geometry(distance_m, UMI.user_m, UMI.station_m, carrier_hz)
        los_db, nlos_db = UMI.los_loss_db(at), UMI.nlos_loss_db(at)
        gain_db[number] = -torch.where(
            torch.from_numpy(sight),
            los_db + UMI.los.sigma_db * shadow,
            nlos_db + UMI.nlos.sigma_db * hidden,
        )
    off_m = (np.abs(axis[:, None] - lines).min(1) for axis, lines in ((x, grid.east_m), (y, grid.north_m)))
    off_east_m, off_north_m = np.meshgrid(*off_m)
    on_street = np.asarray(np.minimum(off_east_m, off_north_m) <= STREET_WIDTH_M / 2)
    return Scene(
        name="urban grid",
        origin_m=(float(x[0]), float(y[0])),
        resolution_m=RESOLUTION_M,
        path_gain_db=gain_db,
        outdoor=torch.from_numpy(on_street),
        site_position_m=torch.tensor([[*site, UMI.station_m] for site in site_m]),
        cell_site=torch.arange(len(sites)),
        azimuth_deg=torch.zeros(len(sites)),
        tilt_deg=torch.zeros(len(sites)),
        carrier_hz=carrier_hz,
        attribution="TR 37.885 annex A, TR 38.901",
    )


def line_of_sight(
    grid: UrbanGrid, site_m: NDArray[np.float64], place_m: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether no house stands between sites and places; a line along a wall is free.

    Args:
        grid: the streets between the houses.
        site_m: `[sites, 2]`.
        place_m: `[..., 2]`.

    Returns:
        `[sites, ...]`.
    """
    sight = np.ones((len(site_m), *place_m.shape[:-1]), np.bool_)
    wall = STREET_WIDTH_M / 2
    for west, east in zip(grid.east_m[:-1] + wall, grid.east_m[1:] - wall, strict=True):
        for south, north in zip(grid.north_m[:-1] + wall, grid.north_m[1:] - wall, strict=True):
            for free, site in zip(sight, site_m, strict=True):
                enter, leave = np.zeros(place_m.shape[:-1]), np.ones(place_m.shape[:-1])
                for axis, low, high in ((0, west, east), (1, south, north)):
                    way = place_m[..., axis] - site[axis]
                    way = np.where(np.abs(way) < 1e-9, 1e-9, way)
                    first, second = (low - site[axis]) / way, (high - site[axis]) / way
                    enter = np.maximum(enter, np.minimum(first, second))
                    leave = np.minimum(leave, np.maximum(first, second))
                free &= enter >= leave - 1e-9
    return sight


def drives(
    grid: UrbanGrid, users: int, length_m: float, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Ways of vehicles along centre lines: at a crossing straight on, left or right as in TR 37.885.

    With probability 1/2, 1/4, 1/4 (clause 6.1.2), among the ways that stay on the grid.

    Returns:
        `[users, points, 2]`, a place every `ROUTE_SPACING_M`.
    """
    lines = (grid.east_m, grid.north_m)
    size_m = np.array([np.ptp(lines[0]) * len(lines[1]), np.ptp(lines[1]) * len(lines[0])])
    along_m = np.arange(int(length_m / ROUTE_SPACING_M) + 2, dtype=np.float64) * ROUTE_SPACING_M
    ways = np.empty((users, len(along_m), 2), np.float32)
    for way in ways:
        axis = int(generator.random() * size_m.sum() >= size_m[0])  # 0: a street that runs east
        here = np.array([generator.choice(lines[0]), generator.choice(lines[1])])
        here[axis] = generator.uniform(lines[axis][0], lines[axis][-1])
        heading = axis + 2 * int(generator.integers(2))  # quarter turns from east
        corners, walked_m = [here], [0.0]
        while walked_m[-1] < along_m[-1]:
            here, axis, sign = corners[-1].copy(), heading % 2, 1 - heading // 2 * 2
            ahead = lines[axis][sign * (lines[axis] - here[axis]) > 1e-6]
            here[axis] = ahead.min() if sign > 0 else ahead.max()
            walked_m.append(walked_m[-1] + abs(float(here[axis] - corners[-1][axis])))
            corners.append(here)
            heading = _turned(lines, here, heading, generator)
        path = np.array(corners)
        way[:] = np.stack([np.interp(along_m, walked_m, path[:, axis]) for axis in (0, 1)], 1)
    return ways


def shadowing_amplitude(rows: int, columns: int, correlation_m: float) -> Tensor:
    """Spectrum of a field with correlation exp(-d / correlation_m), see `drop.normal_field`.

    Larger than the area by eight correlation distances, so that its ends don't meet; its variance is 1 on
    average along a grid line, where a vehicle sees it interpolated.
    """
    more = int(8 * correlation_m / RESOLUTION_M)
    rows, columns = rows + more, columns + more
    lattice_m = RESOLUTION_M * torch.tensor([[columns, 0.0], [0.0, rows]], dtype=torch.float64)
    offset_m = nearest_image(torus_grid(rows, columns, lattice_m), lattice_m)
    along_line = 2 / 3 + math.exp(-RESOLUTION_M / correlation_m) / 3
    return field_amplitude(offset_m, correlation_m) / math.sqrt(along_line)


def _turned(
    lines: tuple[NDArray[np.float64], NDArray[np.float64]],
    here: NDArray[np.float64],
    heading: int,
    generator: np.random.Generator,
) -> int:
    """Heading after a crossing; back where no other way stays on the grid."""
    ways, weights = [], []
    for quarter, weight in TURNS:
        way = (heading + quarter) % 4
        line, place = lines[way % 2], here[way % 2]
        end = line[-1] if way < 2 else line[0]
        if abs(end - place) > 1e-6:
            ways.append(way)
            weights.append(weight)
    if not ways:
        return (heading + 2) % 4
    return ways[int(generator.choice(len(ways), p=np.array(weights) / sum(weights)))]
