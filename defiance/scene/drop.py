"""Drops of TR 38.901, rendered to maps of path gain that a user finds unchanged when coming back.

Nineteen hexagonal sites (UMa, UMi, RMa) lie on a torus, so that every site has two rings of neighbours;
twelve sites hang in an office (InH). Line of sight and shadowing are Gaussian fields over that area, one of
each per site and floor; sectors of a site share them, floors don't. How deep in its building a place lies is
one field per floor, the same for all sites (clause 7.6.3).

Shadowing is correlated as exp(-d / D) (clause 7.4.4). A field that rough crosses a threshold infinitely
often, so that how often a walk changes between line of sight and none would be a matter of the map's pitch.
What decides line of sight is therefore correlated as exp(-(d / D)^2): 1/e at the standard's D as well, and at
even odds one change in pi D / sqrt(2), 111 m, on any map that resolves it (Rice 1944).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.radio.tr38901 import (
    INDOOR_DB_PER_M,
    UMA,
    Geometry,
    Scenario,
    column_gain_db,
    element_gain_db,
    environment_height_m,
    los_sigma_db,
)
from defiance.seeding import Stream

AZIMUTHS_DEG = (60.0, 180.0, 300.0)  # clockwise from north: 30, 150 and 270 degrees of the standard
HEX_SITES = 19
# A sector is a hexagon with its site at a corner, so it looks straight at a neighbouring site; these are at
# 30, 90, ... degrees from east. The torus' lattice in spacings along 30 and 90; 3^2 + 3 * 2 + 2^2 = 19 sites.
HEX_AXES = ((3.0, 2.0), (-2.0, 5.0))
OFFICE_M = (120.0, 50.0)  # table 7.2-2
OFFICE_SITES_M = tuple((10.0 + 20.0 * i, y) for y in (15.0, 35.0) for i in range(6))
OFFICE_RESOLUTION_M = 0.5
STOREY_M = 3.0  # TR 36.873 table 6-1
DEPTH_CORRELATION_M = 25.0  # clause 7.6.3.3, of the indoor distance


@dataclass(frozen=True)
class Drop:
    """Sites, and what a user receives from them anywhere.

    Attributes:
        scenario: whose tables hold.
        carrier_hz: carrier frequency.
        gain_db: float32 [floors, rows, cols, cells], antenna gain and the way inside the building included,
            transmit power and walls not. Floor 0 is outdoors (InH: the office), floor n the n-th storey of
            buildings.
        los: bool [floors, rows, cols, sites], line of sight up to the building.
        depth_m: float32 [floors, rows, cols], d_2D-in: how far inside its building a place lies.
        origin_m: place of grid point [0, 0].
        resolution_m: spacing of the grid.
        lattice_m: float64 [2, 2], vectors along columns and rows after which all repeats; None for an office.
        site_position_m: float32 [sites, 3].
        cell_site: int64 [cells].
        azimuth_deg: float32 [cells], clockwise from north.
    """

    scenario: Scenario
    carrier_hz: float
    gain_db: Tensor
    los: Tensor
    depth_m: Tensor
    origin_m: tuple[float, float]
    resolution_m: float
    lattice_m: Tensor | None
    site_position_m: Tensor
    cell_site: Tensor
    azimuth_deg: Tensor


def render(
    scenario: Scenario,
    carrier_hz: float,
    stream: Stream,
    *,
    tilt_deg: float = 102.0,
    storeys: int | None = None,
    detail: int = 20,
) -> Drop:
    """Draw a drop.

    Args:
        scenario: one of `defiance.radio.tr38901.SCENARIOS`.
        carrier_hz: carrier frequency.
        stream: of this drop.
        tilt_deg: zenith angle to which a column of ten elements is steered: 102 outdoors, 110 in an office
            (table 7.8-1).
        storeys: how many storeys of buildings to render, by default all that the scenario has.
        detail: grid points along each axis of a torus, by 19; 20 puts them 5.7 m apart in UMa, 2.3 m in UMi.
            An office has one every 0.5 m.

    Raises:
        DefianceError: a number lies outside the standard's range.
    """
    storeys = scenario.storeys if storeys is None else storeys
    for name, value, low, high in (
        ("carrier_hz", carrier_hz, 0.5e9, 100e9),
        ("tilt_deg", tilt_deg, 0.0, 180.0),
        ("storeys", storeys, 0, scenario.storeys),
        ("detail", detail, 2, 200),
    ):
        if not low <= value <= high:
            raise DefianceError(f"drop {scenario.name}: {name} is {value}; choose {low:g} to {high:g}")
    if scenario.storeys:
        return _hexagonal(scenario, carrier_hz, stream, tilt_deg, storeys, detail)
    return _office(scenario, carrier_hz, stream, tilt_deg)


def floor_height_m(scenario: Scenario, floor: int) -> float:
    """Height of a user's antenna: outdoors, or on the n-th storey, 1.5 m above its ground."""
    return scenario.user_m if floor == 0 else STOREY_M * (floor - 1) + 1.5


def _hexagonal(
    scenario: Scenario, carrier_hz: float, stream: Stream, tilt_deg: float, storeys: int, detail: int
) -> Drop:
    """Site n stands n spacings from the first in one direction; every site sees the same around itself."""
    axes = torch.tensor([[math.sqrt(3) / 2, 0.5], [0.0, 1.0]], dtype=torch.float64) * scenario.spacing_m
    lattice_m = torch.tensor(HEX_AXES, dtype=torch.float64) @ axes
    size = HEX_SITES * detail
    offset_m = nearest_image(torus_grid(size, size, lattice_m), lattice_m)
    shifts = [((5 * n) % HEX_SITES, (-2 * n) % HEX_SITES) for n in range(HEX_SITES)]
    # NumPy asks for huge pages, so that users all over the map are found in memory sooner
    gain_db = torch.from_numpy(np.empty((1 + storeys, size, size, 3 * HEX_SITES), np.float32))
    los = torch.empty(1 + storeys, size, size, HEX_SITES, dtype=torch.bool)
    depth_m = torch.zeros(1 + storeys, size, size)
    for floor in range(1 + storeys):
        site = SiteGain.around(scenario, carrier_hz, floor, offset_m, tilts_deg=[tilt_deg] * 3)
        fields = Fields(scenario, floor, stream, size, size, lattice_m)
        if floor:
            depth_m[floor] = fields.depth_m()
        for n, (column, row) in enumerate(shifts):
            there = (row * detail, column * detail)
            inside_m = torch.roll(depth_m[floor], (-there[0], -there[1]), (0, 1))
            gain, sight = site.drawn(*fields.of_site(n), inside_m)
            gain_db[floor, ..., 3 * n : 3 * n + 3] = torch.roll(gain, there, (0, 1))
            los[floor, ..., n] = torch.roll(sight, there, (0, 1))
    place_m = torch.tensor(shifts, dtype=torch.float64) / HEX_SITES @ lattice_m
    resolution_m = float(lattice_m[0].norm()) / size
    return _drop(scenario, carrier_hz, gain_db, los, depth_m, resolution_m, lattice_m, place_m)


def _office(scenario: Scenario, carrier_hz: float, stream: Stream, tilt_deg: float) -> Drop:
    """Fields are drawn on a torus that is larger than the office by what they correlate over."""
    columns, rows = (round(side / OFFICE_RESOLUTION_M) + 1 for side in OFFICE_M)
    margin = round(6 * scenario.los_correlation_m / OFFICE_RESOLUTION_M)
    spacing = OFFICE_RESOLUTION_M * torch.eye(2, dtype=torch.float64)
    torus_m = spacing * torch.tensor([[columns + margin], [rows + margin]])
    fields = Fields(scenario, 0, stream, rows + margin, columns + margin, torus_m)
    grid_m = torus_grid(rows + margin, columns + margin, torus_m)[:rows, :columns]
    place_m = torch.tensor(OFFICE_SITES_M, dtype=torch.float64)
    drawn = []
    for n, place in enumerate(place_m):
        site = SiteGain.around(scenario, carrier_hz, 0, grid_m - place, tilts_deg=[tilt_deg] * 3)
        drawn.append(site.drawn(*(field[:rows, :columns] for field in fields.of_site(n))))
    gain_db = torch.cat([gain for gain, _ in drawn], -1)[None]
    los = torch.stack([sight for _, sight in drawn], -1)[None]
    return _drop(
        scenario, carrier_hz, gain_db, los, torch.zeros(1, rows, columns), OFFICE_RESOLUTION_M, None, place_m
    )


def _drop(
    scenario: Scenario,
    carrier_hz: float,
    gain_db: Tensor,
    los: Tensor,
    depth_m: Tensor,
    resolution_m: float,
    lattice_m: Tensor | None,
    place_m: Tensor,
) -> Drop:
    sites = len(place_m)
    height_m = torch.full((sites, 1), scenario.station_m)
    return Drop(
        scenario=scenario,
        carrier_hz=carrier_hz,
        gain_db=gain_db,
        los=los,
        depth_m=depth_m,
        origin_m=(0.0, 0.0),
        resolution_m=resolution_m,
        lattice_m=lattice_m,
        site_position_m=torch.cat([place_m.float(), height_m], -1),
        cell_site=torch.arange(sites).repeat_interleave(len(AZIMUTHS_DEG)),
        azimuth_deg=torch.tensor(AZIMUTHS_DEG).repeat(sites),
    )


def rice_factor(drop: Drop, stream: Stream) -> Tensor:
    """Linear K on a drop's grid, `[floors, rows, columns, C]`: log-normal under line of sight, else 0.

    Sectors of a site share it, and it is the place's own. Storeys of buildings have none (TR 38.901 table
    7.5-6 gives no K behind walls).

    Args:
        drop: where.
        stream: of this drop.
    """
    _, rows, columns, sites = drop.los.shape
    sides_m = drop.resolution_m * torch.tensor([columns, rows], dtype=torch.float64)
    torus_m = torch.diag(sides_m) if drop.lattice_m is None else drop.lattice_m
    offset_m = nearest_image(torus_grid(rows, columns, torus_m), torus_m)
    amplitude = field_amplitude(offset_m, drop.scenario.k_correlation_m)
    fields_of_sites = [normal_field(amplitude, stream.child("rice", n).generator()) for n in range(sites)]
    k_db = drop.scenario.k_db + drop.scenario.k_sigma_db * torch.stack(fields_of_sites, -1)
    factor = torch.zeros_like(drop.gain_db)
    factor[0] = torch.where(drop.los[0], 10 ** (k_db / 10), 0.0)[..., drop.cell_site]
    return factor


# --- one site ---


@dataclass(frozen=True)
class SiteGain:
    """What the standard says about places around a site, [rows, cols] each; `pattern_db` [..., sectors]."""

    scenario: Scenario
    carrier_hz: float
    height_m: float
    distance_m: Tensor
    los_loss_db: Tensor
    nlos_loss_db: Tensor
    los_sigma_db: Tensor
    nlos_sigma_db: float
    pattern_db: Tensor

    @classmethod
    def around(
        cls,
        scenario: Scenario,
        carrier_hz: float,
        floor: int,
        offset_m: Tensor,
        *,
        tilts_deg: Sequence[float],
        azimuths_deg: Sequence[float] = AZIMUTHS_DEG,
    ) -> "SiteGain":
        """Evaluate the formulas at places around a site.

        Args:
            scenario: whose formulas, and height of the antennas.
            carrier_hz: carrier frequency.
            floor: on which users are; 0 is outdoors.
            offset_m: places from the site, [rows, cols, 2].
            tilts_deg: zenith angle to which each sector's column is steered.
            azimuths_deg: each sector's, clockwise from north.
        """
        height_m = floor_height_m(scenario, floor)
        distance_m = offset_m.norm(dim=-1).clamp(min=1.0)
        east_deg = torch.rad2deg(torch.atan2(offset_m[..., 0], offset_m[..., 1]))
        zenith_deg = torch.rad2deg(torch.atan2(distance_m, torch.tensor(height_m - scenario.station_m)))
        element_db = element_gain_db(zenith_deg[..., None], east_deg[..., None] - torch.tensor(azimuths_deg))
        columns_db = {tilt_deg: column_gain_db(zenith_deg, tilt_deg) for tilt_deg in set(tilts_deg)}
        column_db = torch.stack([columns_db[tilt_deg] for tilt_deg in tilts_deg], -1)
        sigma_db = los_sigma_db(scenario, distance_m, height_m, carrier_hz)
        at = Geometry(distance_m, height_m, scenario.station_m, carrier_hz)
        return cls(
            scenario=scenario,
            carrier_hz=carrier_hz,
            height_m=height_m,
            distance_m=distance_m.float(),
            los_loss_db=scenario.los_loss_db(at).float(),
            nlos_loss_db=scenario.nlos_loss_db(at).float(),
            los_sigma_db=torch.full_like(sigma_db, scenario.o2i.sigma_db) if floor else sigma_db,
            nlos_sigma_db=scenario.o2i.sigma_db if floor else scenario.nlos.sigma_db,
            pattern_db=(element_db + column_db).float(),
        )

    def drawn(
        self, sight: Tensor, los_shadow: Tensor, nlos_shadow: Tensor, depth_m: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Gain of the sectors [rows, cols, sectors] and line of sight [rows, cols].

        Args:
            sight: normal field that decides line of sight, `[rows, cols]`.
            los_shadow: normal field under line of sight, `[rows, cols]`.
            nlos_shadow: without it, `[rows, cols]`.
            depth_m: d_2D-in, `[rows, cols]`; 0 outdoors.
        """
        quantile = torch.special.ndtr(sight)
        outdoor_m = (self.distance_m - depth_m).clamp(min=0)
        probability = self.scenario.los_probability(outdoor_m, self.height_m).clamp(max=1)
        los = quantile < probability
        loss_db = self.los_loss_db
        if self.scenario.name == UMA.name and self.height_m > 13:
            # Under line of sight quantile / probability is uniform again: a draw that is the place's own.
            roof_m = environment_height_m(self.distance_m, self.height_m, quantile / probability)
            station_m = self.scenario.station_m
            at = Geometry(self.distance_m, self.height_m, station_m, self.carrier_hz, roof_m)
            loss_db = self.scenario.los_loss_db(at)
        lost_db = torch.where(
            los,
            loss_db + self.los_sigma_db * los_shadow,
            self.nlos_loss_db + self.nlos_sigma_db * nlos_shadow,
        )
        return self.pattern_db - (lost_db + INDOOR_DB_PER_M * depth_m)[..., None], los


# --- fields over an area ---


class Fields:
    """Normal fields of a floor: what decides line of sight, shadowing under it, shadowing without it."""

    def __init__(
        self, scenario: Scenario, floor: int, stream: Stream, rows: int, columns: int, lattice_m: Tensor
    ) -> None:
        los_m = scenario.o2i.correlation_m if floor else scenario.los.correlation_m
        nlos_m = scenario.o2i.correlation_m if floor else scenario.nlos.correlation_m
        grid_m = nearest_image(torus_grid(rows, columns, lattice_m), lattice_m)
        self.stream, self.most_m = stream.child("floor", floor), scenario.depth_m
        self.depth = field_amplitude(grid_m, DEPTH_CORRELATION_M, power=2.0)
        self.amplitude = [
            field_amplitude(grid_m, scenario.los_correlation_m, power=2.0),
            field_amplitude(grid_m, los_m) / between_points(grid_m, los_m) ** 0.5,
            field_amplitude(grid_m, nlos_m) / between_points(grid_m, nlos_m) ** 0.5,
        ]

    def of_site(self, site: int) -> tuple[Tensor, Tensor, Tensor]:
        """Each [rows, cols]; shadowing has unit variance on average over places between grid points."""
        rng = self.stream.child("site", site).generator()
        sight, los, nlos = (normal_field(amplitude, rng) for amplitude in self.amplitude)
        return sight, los, nlos

    def depth_m(self) -> Tensor:
        """d_2D-in, [rows, cols]: the lesser of two uniform draws (clause 7.4.3.1) is 1 - sqrt(U) of one."""
        normal = normal_field(self.depth, self.stream.child("depth").generator())
        depth_m: Tensor = self.most_m * (1 - torch.special.ndtr(normal).sqrt())
        return depth_m


def torus_grid(rows: int, columns: int, lattice_m: Tensor) -> Tensor:
    """Places of grid points, float64 [rows, cols, 2]; columns run along the first vector, rows the second."""
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64) / rows,
        torch.arange(columns, dtype=torch.float64) / columns,
        indexing="ij",
    )
    return torch.stack([column, row], -1) @ lattice_m


def nearest_image(offset_m: Tensor, lattice_m: Tensor) -> Tensor:
    """Shortest of an offset's images on the torus, [..., 2], for a lattice of nearly equal sides."""
    share = offset_m @ torch.linalg.inv(lattice_m)
    around = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    image_m = ((share - share.floor())[..., None, :] - around) @ lattice_m
    nearest = image_m.square().sum(-1).argmin(-1)[..., None, None].expand(*offset_m.shape[:-1], 1, 2)
    found: Tensor = image_m.gather(-2, nearest).squeeze(-2)
    return found


def field_amplitude(offset_m: Tensor, correlation_m: float, power: float = 1.0) -> Tensor:
    """Root of the spectrum of the correlation exp(-(d / correlation_m)^power) on a torus, [rows, cols].

    Args:
        offset_m: each grid point's shortest way from the first, `[rows, cols, 2]`.
        correlation_m: much smaller than the torus, so that only the shortest way counts.
        power: 1 as in clause 7.4.4; 2 for a field that is smooth.
    """
    correlation = torch.exp(-((offset_m.norm(dim=-1) / correlation_m) ** power))
    spectrum: Tensor = torch.fft.fft2(correlation).real.clamp(min=0)
    return spectrum.sqrt().float()


def normal_field(amplitude: Tensor, rng: torch.Generator) -> Tensor:
    """A stationary normal field of that spectrum, mean 0, variance 1, [rows, cols]."""
    white = torch.randn(*amplitude.shape, generator=rng)
    half = amplitude[:, : amplitude.shape[1] // 2 + 1]  # of a real field's spectrum
    coloured: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * half, white.shape)
    return coloured


def between_points(offset_m: Tensor, correlation_m: float) -> float:
    """Mean variance of a unit field that is interpolated bilinearly between its grid points.

    Over a cell E[(1 - f)^2] = 1/3 and E[f (1 - f)] = 1/6 along each axis.
    """

    def correlation(way_m: Tensor) -> float:
        return math.exp(-float(way_m.norm()) / correlation_m)

    right, up = offset_m[0, 1], offset_m[1, 0]
    sides, diagonals = correlation(right) + correlation(up), correlation(right + up) + correlation(right - up)
    return 4 / 9 + 2 / 9 * sides + diagonals / 18
