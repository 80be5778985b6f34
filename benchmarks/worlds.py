"""Worlds of any size to time the network simulator on: hexagonal sites of three sectors, straight walks."""

import math

import torch
from torch import Tensor

from defiance.network.settings import RadioConfig
from defiance.network.world import World
from defiance.scene.streets import ROUTE_SPACING_M
from defiance.seeding import stream

SITE_DISTANCE_M = 500.0
RESOLUTION_M = 10.0
SPEED_MPS = 30 / 3.6
LOAD = 0.5
DEMAND_BPS = 1e6
CARRIER_HZ = 3.5e9


def hexagonal(worlds: int, users: int, sites: int, sectors: int, duration_s: float) -> World:
    """Users in all directions at 30 km/h, half-loaded cells.

    Args:
        worlds: W.
        users: U of each.
        sites: on a hexagonal lattice, 500 m apart, from the middle outwards.
        sectors: of each site.
        duration_s: how long the walks last.
    """
    random, config = stream(1, "benchmark"), RadioConfig()
    cells, n = sites * sectors, config.scatterers
    site_m = _lattice_m(sites)
    low_m, high_m = site_m.amin(0) - SITE_DISTANCE_M / 2, site_m.amax(0) + SITE_DISTANCE_M / 2
    columns, rows = ((high_m - low_m) / RESOLUTION_M).ceil().long().tolist()
    y_m, x_m = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    place_m = torch.stack([x_m, y_m], -1) * RESOLUTION_M + low_m

    def uniform(name: str, *shape: int) -> Tensor:
        return torch.rand(shape, generator=random.child(name).generator())

    start_m = low_m + (high_m - low_m) * uniform("start", worlds, users, 1, 2)
    angle = 2 * math.pi * uniform("direction", worlds, users, 1)
    points = math.ceil(duration_s * SPEED_MPS / ROUTE_SPACING_M) + 2
    along_m = ROUTE_SPACING_M * torch.arange(points)[:, None]
    return World(
        gain_db=_gain_db(place_m, site_m, sectors)[None].contiguous(),
        origin_m=(float(low_m[0]), float(low_m[1])),
        resolution_m=RESOLUTION_M,
        lattice_m=None,
        carrier_hz=CARRIER_HZ,
        cell_site=torch.arange(cells) // sectors,
        floor=torch.zeros(worlds, users, dtype=torch.int32),
        loss_db=torch.zeros(worlds, users),
        route_m=start_m + along_m * torch.stack([angle.cos(), angle.sin()], -1),
        speed_mps=torch.full((worlds, users), SPEED_MPS),
        stop_spacing_m=torch.full((worlds, users), math.inf),
        stop_s=torch.zeros(worlds, users),
        fading_direction=torch.cos(2 * math.pi * uniform("arrival", worlds, users, n, cells)),
        fading_phase=uniform("phase", worlds, users, n, cells),
        demand_bps=torch.full((worlds, users), DEMAND_BPS),
        background_load=torch.full((worlds, cells), LOAD),
        key=torch.arange(worlds),
    )


def _lattice_m(sites: int) -> Tensor:
    """The places of a hexagonal lattice that are nearest to its middle, [sites, 2]."""
    reach = math.ceil(math.sqrt(sites)) + 1
    i, j = torch.meshgrid(torch.arange(-reach, reach + 1), torch.arange(-reach, reach + 1), indexing="ij")
    lattice = torch.stack([i + j / 2, j * math.sqrt(3) / 2], -1).reshape(-1, 2)
    return lattice[lattice.square().sum(-1).sort(stable=True).indices[:sites]] * SITE_DISTANCE_M


def _gain_db(place_m: Tensor, site_m: Tensor, sectors: int) -> Tensor:
    """UMa's path loss without line of sight and the horizontal pattern of TR 38.901, [rows, columns, C]."""
    offset = place_m[:, :, None] - site_m
    distance_m = torch.hypot(offset.norm(dim=-1), torch.tensor(23.5))
    loss_db = 13.54 + 39.08 * distance_m.log10() + 20 * math.log10(CARRIER_HZ / 1e9)
    towards = torch.atan2(offset[..., 1], offset[..., 0])[..., None]
    off_deg = (towards - torch.arange(sectors) * (2 * math.pi / sectors)).rad2deg()
    off_deg = (off_deg + 180) % 360 - 180
    pattern_db = 8.0 - (12 * (off_deg / 65).square()).clamp(max=30)
    return (pattern_db - loss_db[..., None]).flatten(2)
