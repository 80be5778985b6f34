"""Worlds of any size to time the network simulator on: half-loaded cells, users at 30 km/h."""

import math

import torch
from torch import Tensor

from defiance.network.reference import fades, map_gain_db
from defiance.network.settings import RadioConfig
from defiance.network.world import World, directions, draw_drop_worlds, phases
from defiance.radio.tr38901 import SCENARIOS
from defiance.scene.drop import render
from defiance.scene.streets import ROUTE_SPACING_M
from defiance.seeding import stream

CARRIER_HZ = 3.5e9
SPEED_KMH = 30.0
LOAD = 0.5
DEMAND_BPS = 1e6
EDGE_M, RESOLUTION_M = 500.0, 10.0
RANDOM = stream(1, "benchmark")


def urban(worlds: int, users: int, duration_s: float) -> World:
    """TR 38.901's UMa: 19 sites of three sectors with wrap-around, nine floors, 80 % of the users indoors.

    Args:
        worlds: W.
        users: U of each.
        duration_s: how long the walks last.
    """
    return draw_drop_worlds(
        render(SCENARIOS["uma"], CARRIER_HZ, RANDOM.child("drop")),
        RadioConfig(),
        [RANDOM.child("world", number) for number in range(worlds)],
        users=users,
        duration_s=duration_s,
        speed_kmh=SPEED_KMH,
        load=LOAD,
        demand_bps=DEMAND_BPS,
    )


def link_bytes(world: World) -> float:
    """Bytes that belong to a link and that a step must touch, a mean over links.

    Its rays' directions and phases, if it fades; the four map points around its user, and the sum of its
    received power, read and written.
    """
    config = RadioConfig()
    some = slice(0, 1000)
    gain_db = map_gain_db(world, world.route_m[:, some, 0], world.floor[:, some])
    mean_mw = 10 ** ((gain_db - world.loss_db[:, some, None] + config.tx_power_dbm) / 10)
    fading = fades(mean_mw, config).float().mean().item()
    rays = world.fading_direction.shape[3]
    per_ray = world.fading_direction.element_size() + world.fading_phase.element_size()
    return fading * rays * per_ray + 4 * world.gain_db.element_size() + 2 * 4


def one_site(worlds: int, users: int, sectors: int, duration_s: float) -> World:
    """A site in the middle of a square of 500 m, users who walk straight on; arguments as of `urban`."""
    scatterers = RadioConfig().scatterers

    def uniform(name: str, *shape: int) -> Tensor:
        return torch.rand(shape, generator=RANDOM.child(name).generator())

    angle = 2 * math.pi * uniform("direction", worlds, users, 1)
    points = math.ceil(duration_s * SPEED_KMH / 3.6 / ROUTE_SPACING_M) + 2
    along_m = ROUTE_SPACING_M * torch.arange(points)[:, None]
    start_m = EDGE_M * (uniform("start", worlds, users, 1, 2) - 0.5)
    return World(
        gain_db=_gain_db(sectors)[None].contiguous(),
        origin_m=(-EDGE_M / 2, -EDGE_M / 2),
        resolution_m=RESOLUTION_M,
        lattice_m=None,
        carrier_hz=CARRIER_HZ,
        cell_site=torch.zeros(sectors, dtype=torch.int64),
        floor=torch.zeros(worlds, users, dtype=torch.int32),
        loss_db=torch.zeros(worlds, users),
        route_m=start_m + along_m * torch.stack([angle.cos(), angle.sin()], -1),
        speed_mps=torch.full((worlds, users), SPEED_KMH / 3.6),
        stop_spacing_m=torch.full((worlds, users), math.inf),
        stop_s=torch.zeros(worlds, users),
        fading_direction=directions(uniform("arrival", worlds, users, sectors, scatterers)),
        fading_phase=phases(uniform("phase", worlds, users, sectors, scatterers)),
        demand_bps=torch.full((worlds, users), DEMAND_BPS),
        background_load=torch.full((worlds, sectors), LOAD),
        key=torch.arange(worlds),
    )


def _gain_db(sectors: int) -> Tensor:
    """UMa's path loss without line of sight and the horizontal pattern of TR 38.901, [rows, columns, C]."""
    along_m = torch.arange(-EDGE_M / 2, EDGE_M / 2 + RESOLUTION_M, RESOLUTION_M)
    y_m, x_m = torch.meshgrid(along_m, along_m, indexing="ij")
    distance_m = torch.stack([x_m, y_m, torch.full_like(x_m, 23.5)]).norm(dim=0)
    loss_db = 13.54 + 39.08 * distance_m.log10() + 20 * math.log10(CARRIER_HZ / 1e9)
    towards = torch.atan2(y_m, x_m)[..., None] - torch.arange(sectors) * (2 * math.pi / sectors)
    off_deg = (towards.rad2deg() + 180) % 360 - 180
    pattern_db = 8.0 - (12 * (off_deg / 65).square()).clamp(max=30)
    return pattern_db - loss_db[..., None]
