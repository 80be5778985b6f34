"""Small worlds made by hand for tests of the network."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from defiance.network.settings import RadioConfig
from defiance.network.state import State, initial
from defiance.network.world import World, directions, phases

RADIO = RadioConfig()
SPACING_M = 10.0


def gain_for_snr(snr_db: float, config: RadioConfig = RADIO) -> float:
    """Path gain [dB] at which a cell alone is received at this SNR."""
    return snr_db + config.noise_dbm - config.tx_power_dbm


def corridor(
    gain_db: list[list[float]],
    *,
    users: int = 1,
    speed_mps: float = 0.0,
    demand_bps: float = 1e6,
    background: float = 0.0,
) -> World:
    """One world in which users walk along a straight street, without fading.

    Args:
        gain_db: path gain of every cell every `SPACING_M` along the street, `[places, C]`; linear in between.
        users: all start at place 0.
        speed_mps: theirs.
        demand_bps: theirs.
        background: load of every cell.
    """
    gain = torch.tensor(gain_db)
    places, cells = gain.shape
    route = torch.stack([torch.arange(0, places * SPACING_M - SPACING_M + 0.1, 2.0)] * 2, -1)
    route[:, 1] = 0.0
    return World(
        gain_db=gain.expand(1, 2, places, cells).contiguous(),
        origin_m=(0.0, 0.0),
        resolution_m=SPACING_M,
        lattice_m=None,
        carrier_hz=3.5e9,
        cell_site=torch.arange(cells),
        floor=torch.zeros(1, users, dtype=torch.int32),
        loss_db=torch.zeros(1, users),
        route_m=route.expand(1, users, *route.shape).contiguous(),
        speed_mps=torch.full((1, users), float(speed_mps)),
        stop_spacing_m=torch.full((1, users), math.inf),
        stop_s=torch.zeros(1, users),
        fading_direction=torch.zeros(1, users, cells, 1, dtype=torch.int16),  # one scatterer: |h| = 1
        fading_phase=torch.zeros(1, users, cells, 1, dtype=torch.int16),
        demand_bps=torch.full((1, users), float(demand_bps)),
        background_load=torch.full((1, cells), background),
        key=torch.tensor([7]),
    )


def random_world(seed: int, worlds: int, users: int, cells: int, scatterers: int = 8) -> World:
    """Worlds whose users cross all thresholds of radio-link monitoring within a few steps.

    Odd seeds have a map that repeats itself, even ones a map with borders.
    """
    rng = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=rng)

    rows, columns, points = 6, 7, 40
    return World(
        gain_db=uniform(-160, -110, 2, rows, columns, cells),
        origin_m=(3.0, -5.0),
        resolution_m=4.0,
        lattice_m=torch.tensor([[24.0, 3.0], [-5.0, 20.0]], dtype=torch.float64) if seed % 2 else None,
        carrier_hz=3.5e9,
        delay_spread_s=4e-7,
        cell_site=torch.arange(cells) // 3,
        floor=torch.randint(2, (worlds, users), generator=rng, dtype=torch.int32),
        loss_db=uniform(0, 6, worlds, users),
        route_m=uniform(-12, 30, worlds, users, points, 2),  # beyond the grid's borders, too
        speed_mps=uniform(0, 40, worlds, users),
        stop_spacing_m=uniform(2, 20, worlds, users),
        stop_s=uniform(0, 0.1, worlds, users),
        fading_direction=directions(uniform(0, 1, worlds, users, cells, scatterers)),
        fading_phase=phases(uniform(0, 1, worlds, users, cells, scatterers)),
        demand_bps=10 ** uniform(4, 8, worlds, users),
        background_load=uniform(0, 1, worlds, cells),
        key=torch.randint(2**62, (worlds,), generator=rng),
    )


def start(world: World, serving: int | Tensor = 0, config: RadioConfig = RADIO) -> State:
    """Everyone connected to one cell, or to the cells given, `[W, U]`."""
    worlds, users, _ = world.shape
    cells = torch.full((worlds, users), serving) if isinstance(serving, int) else serving
    return initial(world, config, cells)
