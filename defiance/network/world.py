"""A world: everything that is drawn once and that no policy can change.

Routes, speeds, fading, background load and demand are the same under every policy, so comparisons between
policies are paired (common random numbers). Shapes: W worlds, U users, C cells, N scatterers, P points of a
route.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defiance.network.settings import RadioConfig
from defiance.scene import Scene
from defiance.scene.streets import ROUTE_SPACING_M, Kind, Mask, routes
from defiance.seeding import Stream

KIND_OF_SPEED: tuple[tuple[float, Kind], ...] = ((10.0, "pedestrian"), (40.0, "bus"), (float("inf"), "car"))
STOP_SPACING_M = {"pedestrian": float("inf"), "bus": 400.0, "car": float("inf")}
STOP_S = {"pedestrian": 0.0, "bus": 10.0, "car": 0.0}


@dataclass(frozen=True)
class World:
    """Constants of a batch of worlds.

    Attributes:
        gain_db: path gain on the scene's grid, `[rows, columns, C]`.
        origin_m: centre of cell [0, 0], (x, y).
        resolution_m: grid spacing.
        cell_site: site of every cell, `[C]`.
        route_m: positions every `ROUTE_SPACING_M` along each user's streets, `[W, U, P, 2]`.
        speed_mps: speed between stops, `[W, U]`.
        stop_spacing_m: distance between two stops, `[W, U]` (inf: never stops).
        stop_s: time at a stop, `[W, U]`.
        fading_direction: cosine of the angle between movement and scatterer, `[W, U, N, C]`.
        fading_phase: initial phase in turns, `[W, U, N, C]`.
        demand_bps: finite traffic demand, `[W, U]`.
        background_load: share of PRBs that users outside the simulation occupy, `[W, C]`.
        key: makes a message's draw the world's own, wherever it stands in the batch, `[W]` int64.
    """

    gain_db: Tensor
    origin_m: tuple[float, float]
    resolution_m: float
    carrier_hz: float
    cell_site: Tensor
    route_m: Tensor
    speed_mps: Tensor
    stop_spacing_m: Tensor
    stop_s: Tensor
    fading_direction: Tensor
    fading_phase: Tensor
    demand_bps: Tensor
    background_load: Tensor
    key: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(W, U, C)."""
        worlds, users, _, _ = self.route_m.shape
        return worlds, users, self.gain_db.shape[-1]

    def repeat(self, times: int) -> World:
        """The same worlds `times` over, `[times * W, ...]`: candidates side by side under identical draws."""
        batched = {
            f.name: getattr(self, f.name).repeat(times, *[1] * (getattr(self, f.name).dim() - 1))
            for f in fields(self)
            if f.name not in ("gain_db", "origin_m", "resolution_m", "carrier_hz", "cell_site")
        }
        return World(
            self.gain_db, self.origin_m, self.resolution_m, self.carrier_hz, self.cell_site, **batched
        )

    def to(self, device: torch.device | str) -> World:
        """The same worlds on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
        return World(**moved)


def draw_worlds(
    scene: Scene,
    config: RadioConfig,
    streams: list[Stream],
    *,
    users: int,
    duration_s: float,
    speed_kmh: float,
    load: float,
    demand_bps: float,
    region: Mask | None = None,
    drives: Callable[[int, float, np.random.Generator], NDArray[np.float32]] | None = None,
) -> World:
    """Draws one world per stream.

    Args:
        scene: where.
        config: the carrier.
        streams: one named random stream per world; a world depends on its own stream alone.
        users: U.
        duration_s: how long the routes must last.
        speed_kmh: mean speed of the users while they move; below 10 pedestrians, below 40 buses (which stop
            for 10 s every 400 m), else cars. Each user's own speed is within 15 % of it.
        load: share of PRBs that is occupied on average without the simulated users, [0, 1]; cells differ by
            +-20 %.
        demand_bps: traffic that every user wants.
        region: outdoor cells that routes keep to, `[rows, columns]`.
        drives: draws the routes of so many users and of such a length, `[U, P, 2]`, instead of trips along
            the scene's shortest paths.
    """
    kind = next(kind for limit, kind in KIND_OF_SPEED if speed_kmh < limit)
    cells = scene.path_gain_db.shape[0]
    length_m = duration_s * speed_kmh / 3.6 * 1.15 + 4 * ROUTE_SPACING_M
    route, speed, direction, phase, background, key = [], [], [], [], [], []
    for stream in streams:
        drawn = stream.child("routes").numpy()
        if drives is None:
            route.append(routes(scene, kind, users, length_m, drawn, region=region))
        else:
            route.append(drives(users, length_m, drawn))
        rng = stream.child("speed").generator()
        speed.append(speed_kmh / 3.6 * (0.85 + 0.3 * torch.rand(users, generator=rng)))
        rng = stream.child("fading").generator()
        n = config.scatterers
        offset = torch.rand(users, 1, cells, generator=rng)
        angle = (torch.arange(n)[None, :, None] + offset) / n
        direction.append(torch.cos(2 * torch.pi * angle))
        phase.append(torch.rand(users, n, cells, generator=rng))
        rng = stream.child("load").generator()
        spread = 0.8 + 0.4 * torch.rand(cells, generator=rng)
        background.append((load * spread).clamp(max=1) if load < 1 else torch.ones(cells))
        rng = stream.child("messages").generator()
        key.append(torch.randint(2**62, (), generator=rng))
    worlds = len(streams)
    return World(
        gain_db=scene.path_gain_db.permute(1, 2, 0).contiguous().float(),
        origin_m=scene.origin_m,
        resolution_m=scene.resolution_m,
        carrier_hz=scene.carrier_hz,
        cell_site=scene.cell_site,
        route_m=torch.stack([torch.as_tensor(r) for r in route]).float().contiguous(),
        speed_mps=torch.stack(speed).float(),
        stop_spacing_m=torch.full((worlds, users), STOP_SPACING_M[kind]),
        stop_s=torch.full((worlds, users), STOP_S[kind]),
        fading_direction=torch.stack(direction).float().contiguous(),
        fading_phase=torch.stack(phase).float().contiguous(),
        demand_bps=torch.full((worlds, users), demand_bps),
        background_load=torch.stack(background).float(),
        key=torch.stack(key),
    )
