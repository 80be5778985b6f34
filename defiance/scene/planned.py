"""A site plan without a ray tracer: the statistics of TR 38.901 over the streets of a city, or over a plain.

Line of sight and shadowing are fields over the area, one of each per site (clause 7.6.3.1), as in
`defiance.scene.drop`; here sites stand where a plan says, as high, and turned and tilted as it says. Houses
don't hide sites from streets: that a place has sight is the probability of clause 7.4.2, a draw of the seed.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.radio.tr38901 import Scenario
from defiance.scene.city import FLOOR_DB, Scene
from defiance.scene.drop import Fields, SiteGain, torus_grid
from defiance.scene.sites import Sector, relative_power_db
from defiance.seeding import Stream

CARRIER_HZ = 3.5e9
RESOLUTION_M, POINTS = 4.0, 250  # a plain's grid is coarser where its side is longer than that
CORRELATIONS = 6  # fields repeat themselves so many correlation distances beyond the area


def planned_scene(
    plan: Sequence[Sector], scenario: Scenario, stream: Stream, *, name: str, terrain: Scene | None = None
) -> Scene:
    """Render what a plan's sectors give at street level.

    A sector is a column of ten elements (TR 38.901 table 7.3-1), half a wavelength apart, steered
    electrically to its tilt. What its power lacks to the strongest one's goes into its path gain.

    Args:
        plan: the sectors; a plan without a carrier gets 3.5 GHz.
        scenario: of TR 38.901, outdoors: UMa, UMi or RMa.
        stream: draws line of sight and shadowing.
        name: of the scene.
        terrain: whose grid and streets users move on; its sites are replaced. None is an open plain that
            reaches the scenario's distance between sites beyond the outermost ones.

    Raises:
        DefianceError: a site stands off the terrain.
    """
    carrier_hz = CARRIER_HZ if plan[0].carrier_mhz is None else plan[0].carrier_mhz * 1e6
    if terrain is None:
        origin_m, resolution_m, outdoor = _plain(plan, scenario.spacing_m)
    else:
        origin_m, resolution_m, outdoor = terrain.origin_m, terrain.resolution_m, terrain.outdoor
        _check_on(plan, terrain)
    rows, cols = outdoor.shape
    margin = math.ceil(
        CORRELATIONS
        * max(scenario.los_correlation_m, scenario.los.correlation_m, scenario.nlos.correlation_m)
        / resolution_m
    )
    spacing_m = resolution_m * torch.eye(2, dtype=torch.float64)
    torus_m = spacing_m * torch.tensor([[cols + margin], [rows + margin]])
    fields = Fields(scenario, 0, stream, rows + margin, cols + margin, torus_m)
    place_m = torus_grid(rows, cols, spacing_m * torch.tensor([[cols], [rows]])) + torch.tensor(origin_m)

    order = list(dict.fromkeys(sector.site for sector in plan))
    power_db = relative_power_db(plan)
    gain_db = torch.empty(len(plan), rows, cols)
    for number, site in enumerate(order):
        cells = [cell for cell, sector in enumerate(plan) if sector.site == site]
        first = plan[cells[0]]
        gain = SiteGain.around(
            replace(scenario, station_m=first.height_m),
            carrier_hz,
            0,
            place_m - torch.tensor([first.x_m, first.y_m], dtype=torch.float64),
            tilts_deg=[90.0 + plan[cell].tilt_deg for cell in cells],
            azimuths_deg=[plan[cell].azimuth_deg for cell in cells],
        )
        drawn, _ = gain.drawn(*(field[:rows, :cols] for field in fields.of_site(number)))
        power = torch.tensor([power_db[cell] for cell in cells])
        gain_db[cells] = (drawn + power).movedim(-1, 0).clamp(min=FLOOR_DB)
    terrain_from = "an open plain" if terrain is None else f"streets of {terrain.name}: {terrain.attribution}"
    return Scene(
        name=name,
        origin_m=origin_m,
        resolution_m=resolution_m,
        path_gain_db=gain_db,
        outdoor=outdoor,
        site_position_m=torch.tensor(
            [next((s.x_m, s.y_m, s.height_m) for s in plan if s.site == site) for site in order]
        ),
        cell_site=torch.tensor([order.index(sector.site) for sector in plan]),
        azimuth_deg=torch.tensor([sector.azimuth_deg for sector in plan]),
        tilt_deg=torch.tensor([sector.tilt_deg for sector in plan]),
        carrier_hz=carrier_hz,
        attribution=f"TR 38.901 {scenario.name}, seed {stream.seed}, over {terrain_from}",
    )


def _plain(plan: Sequence[Sector], margin_m: float) -> tuple[tuple[float, float], float, Tensor]:
    """Origin, resolution and outdoor mask of an open rectangle around the sites."""
    low_m = [min(at) - margin_m for at in ([s.x_m for s in plan], [s.y_m for s in plan])]
    high_m = [max(at) + margin_m for at in ([s.x_m for s in plan], [s.y_m for s in plan])]
    sides_m = [high - low for low, high in zip(low_m, high_m, strict=True)]
    resolution_m = max(RESOLUTION_M, max(sides_m) / POINTS)
    cols, rows = (round(side / resolution_m) + 1 for side in sides_m)
    return (low_m[0], low_m[1]), resolution_m, torch.full((rows, cols), True)


def _check_on(plan: Sequence[Sector], terrain: Scene) -> None:
    rows, cols = terrain.outdoor.shape
    east_m, north_m = ((points - 1) * terrain.resolution_m for points in (cols, rows))
    for sector in plan:
        east, north = sector.x_m - terrain.origin_m[0], sector.y_m - terrain.origin_m[1]
        if not (0 <= east <= east_m and 0 <= north <= north_m):
            raise DefianceError(
                f"{sector} lies off the terrain {terrain.name},"
                f" which reaches from ({terrain.origin_m[0]:g}, {terrain.origin_m[1]:g}) to"
                f" ({terrain.origin_m[0] + east_m:g}, {terrain.origin_m[1] + north_m:g})"
            )
