"""A world: everything that is drawn once and that no policy can change.

Routes, speeds, fading, background load and demand are the same under every policy, so comparisons between
policies are paired (common random numbers). Shapes: W worlds, U users, C cells, N scatterers, P points of a
route.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defiance.errors import DefianceError
from defiance.network.settings import RadioConfig
from defiance.radio.tr38901 import CAR_DB, CAR_SIGMA_DB, UMA, wall_penetration_db
from defiance.scene import Scene
from defiance.scene.drop import Drop, nearest_image
from defiance.scene.streets import ROUTE_SPACING_M, Kind, Mask, routes
from defiance.seeding import Stream

KIND_OF_SPEED: tuple[tuple[float, Kind], ...] = ((10.0, "pedestrian"), (40.0, "bus"), (float("inf"), "car"))
STOP_SPACING_M = {"pedestrian": float("inf"), "bus": 400.0, "car": float("inf")}
STOP_S = {"pedestrian": 0.0, "bus": 10.0, "car": 0.0}
WALK_KMH = 3.0  # TR 38.901 table 7.2-1
# A ray's phase is whole numbers of 2^-32 turns, so that it is exact after any distance: phase and direction
# have 16 bits, the distance in wavelengths is rounded to 2^-17.
PHASE_PER_TURN, DIRECTION_PER_UNIT, TRAVELLED_PER_TURN = 2**16, 2**15, 2**17
CACHED_USERS = 2**14
"""Map points around so many users, 16 MB of 57 cells, stay in a cache, in whatever order they are drawn."""
STRIP_ROWS = 16
"""Rows of a map whose users follow each other, column by column: they read few pages of memory at a time."""

# What all worlds of a batch have in common.
SHARED = (
    "gain_db", "origin_m", "resolution_m", "lattice_m", "carrier_hz", "cell_site", "rice_factor",
    "delay_spread_s",
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """Constants of a batch of worlds.

    Attributes:
        gain_db: path gain on the scene's grid, `[floors, rows, columns, C]`.
        origin_m: place of grid point [0, 0], (x, y).
        resolution_m: grid spacing of a map with borders.
        lattice_m: vectors along columns and rows after which a wrapped map repeats itself, `[2, 2]` float64;
            None for a map with borders, beyond which their value holds.
        floor: whose map each user is on, `[W, U]` int32.
        loss_db: each user's own loss towards all cells (walls, a car), `[W, U]`.
        cell_site: site of every cell, `[C]`.
        route_m: positions every `ROUTE_SPACING_M` along each user's streets, `[W, U, P, 2]`.
        speed_mps: speed between stops, `[W, U]`.
        stop_spacing_m: distance between two stops, `[W, U]` (inf: never stops).
        stop_s: time at a stop, `[W, U]`.
        fading_direction: cosine of the angle between movement and scatterer in units of
            1 / `DIRECTION_PER_UNIT`, `[W, U, C, N]` int16 (see `directions`).
        fading_phase: initial phase in units of 1 / `PHASE_PER_TURN` turns, `[W, U, C, N]` int16 (see
            `phases`).
        demand_bps: finite traffic demand, `[W, U]`.
        background_load: share of PRBs that users outside the simulation occupy, `[W, C]`.
        key: makes a message's draw the world's own, wherever it stands in the batch, `[W]` int64.
        arrival_s: when packets arrive, in order, `[W, U, A]`; inf: never; empty: no packets.
        packet_bits: size of every user's packets, `[W, U]` float64; empty: no packets.
        rice_factor: power of the specular ray over that of the scatterers (linear K), on the grid of
            `gain_db`; empty: Rayleigh. With it, the last of `fading_direction` and `fading_phase` is the
            specular ray, `[W, U, C, N + 1]`.
        delay_spread_s: by which fading differs between sub-bands.
    """

    gain_db: Tensor
    origin_m: tuple[float, float]
    resolution_m: float
    lattice_m: Tensor | None
    carrier_hz: float
    cell_site: Tensor
    floor: Tensor
    loss_db: Tensor
    route_m: Tensor
    speed_mps: Tensor
    stop_spacing_m: Tensor
    stop_s: Tensor
    fading_direction: Tensor
    fading_phase: Tensor
    demand_bps: Tensor
    background_load: Tensor
    key: Tensor
    arrival_s: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0))
    packet_bits: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    rice_factor: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0, 0))
    delay_spread_s: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(W, U, C)."""
        worlds, users, _, _ = self.route_m.shape
        return worlds, users, self.gain_db.shape[-1]

    def repeat(self, times: int) -> World:
        """The same worlds `times` over, `[times * W, ...]`: candidates side by side under identical draws."""
        batched: dict[str, Any] = {
            f.name: getattr(self, f.name).repeat(times, *[1] * (getattr(self, f.name).dim() - 1))
            for f in fields(self)
            if f.name not in SHARED
        }
        return replace(self, **batched)

    def to(self, device: torch.device | str) -> World:
        """The same worlds on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
        return World(**moved)


def kind_of(speed_kmh: float) -> Kind:
    """Who moves at a speed."""
    return next(kind for limit, kind in KIND_OF_SPEED if speed_kmh < limit)


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

    Raises:
        DefianceError: a number is outside its range.
    """
    _check(duration_s, speed_kmh, load, demand_bps)
    kind = kind_of(speed_kmh)
    length_m = duration_s * speed_kmh / 3.6 * 1.15 + 4 * ROUTE_SPACING_M
    route, speed = [], []
    for stream in streams:
        drawn = stream.child("routes").numpy()
        if drives is None:
            route.append(routes(scene, kind, users, length_m, drawn, region=region))
        else:
            route.append(drives(users, length_m, drawn))
        rng = stream.child("speed").generator()
        speed.append(speed_kmh / 3.6 * (0.85 + 0.3 * torch.rand(users, generator=rng)))
    worlds = len(streams)
    return World(
        gain_db=scene.path_gain_db.permute(1, 2, 0).contiguous().float()[None],
        origin_m=scene.origin_m,
        resolution_m=scene.resolution_m,
        lattice_m=None,
        carrier_hz=scene.carrier_hz,
        cell_site=scene.cell_site,
        floor=torch.zeros(worlds, users, dtype=torch.int32),
        loss_db=torch.zeros(worlds, users),
        route_m=_stacked(route),
        speed_mps=torch.stack(speed).float(),
        stop_spacing_m=torch.full((worlds, users), STOP_SPACING_M[kind]),
        stop_s=torch.full((worlds, users), STOP_S[kind]),
        demand_bps=torch.full((worlds, users), demand_bps),
        delay_spread_s=UMA.delay_spread.median_s(scene.carrier_hz),
        **_draws(config, streams, users, scene.path_gain_db.shape[0], load),
    )


def draw_drop_worlds(
    drop: Drop,
    config: RadioConfig,
    streams: list[Stream],
    *,
    users: int,
    duration_s: float,
    speed_kmh: float = WALK_KMH,
    load: float,
    demand_bps: float,
) -> World:
    """Draws one world per stream on a drop of TR 38.901, users as its tables 7.2-1 to 7.2-3 say.

    Users stand anywhere alike, but not nearer to a site than the scenario allows; so many are indoors, on
    storey 1 ... n of a building of n = 4 ... 8 (TR 36.873 table 6-1), behind a wall of the low- or the
    high-loss model. Others are outdoors; in RMa they sit in cars. Everyone moves straight on in a direction
    of its own, in an office from wall to wall. More than `CACHED_USERS` are numbered as they lie on the map,
    so that a step reads it in order; fading and messages, which are drawn per number, know no place.

    Args:
        drop: where.
        config: the carrier.
        streams: one named random stream per world; a world depends on its own stream alone.
        users: U.
        duration_s: how long the routes must last.
        speed_kmh: of users outdoors; indoors they walk.
        load: share of PRBs that is occupied on average without the simulated users, [0, 1]; cells differ by
            +-20 %.
        demand_bps: traffic that every user wants.

    Raises:
        DefianceError: a number is outside its range.
    """
    _check(duration_s, speed_kmh, load, demand_bps)
    length_m = duration_s * max(speed_kmh, WALK_KMH) / 3.6 + 2 * ROUTE_SPACING_M
    route, speed, floor, loss = [], [], [], []
    for stream in streams:
        rng = stream.child("users").generator()
        storey, lost = _inside(drop, users, rng)
        place_m = _places(drop, users, rng)
        route_m = _straight_on(drop, place_m, length_m, rng)
        if users > CACHED_USERS:
            order = _side_by_side(drop, storey, place_m)
            storey, lost, route_m = storey[order], lost[order], route_m[order]
        indoor = (storey > 0) | (drop.lattice_m is None)
        floor.append(storey)
        loss.append(lost)
        speed.append(torch.where(indoor, WALK_KMH, speed_kmh) / 3.6)
        route.append(route_m)
    worlds = len(streams)
    return World(
        gain_db=drop.gain_db,
        origin_m=drop.origin_m,
        resolution_m=drop.resolution_m,
        lattice_m=drop.lattice_m,
        carrier_hz=drop.carrier_hz,
        cell_site=drop.cell_site,
        floor=torch.stack(floor),
        loss_db=torch.stack(loss),
        route_m=_stacked(route),
        speed_mps=torch.stack(speed).float(),
        stop_spacing_m=torch.full((worlds, users), torch.inf),
        stop_s=torch.zeros(worlds, users),
        demand_bps=torch.full((worlds, users), demand_bps),
        delay_spread_s=drop.scenario.delay_spread.median_s(drop.carrier_hz),
        **_draws(config, streams, users, drop.gain_db.shape[-1], load),
    )


def rician(world: World, rice_factor: Tensor, streams: list[Stream]) -> World:
    """The same worlds with a specular ray on every link: Rician fading.

    The ray's direction and phase are random (Xiao, Zheng and Beaulieu, IEEE Trans. Wireless Commun. 2006).

    Args:
        world: with Rayleigh fading.
        rice_factor: linear K on the grid of `gain_db` and of its shape: 0 without line of sight, else as in
            TR 38.901 table 7.5-6.
        streams: one per world, those that the worlds were drawn from.
    """
    _, users, cells = world.shape
    rays = [torch.rand(2, users, cells, 1, generator=s.child("specular").generator()) for s in streams]
    angle, phase = torch.stack(rays, 1)
    return replace(
        world,
        rice_factor=rice_factor,
        fading_direction=torch.cat([world.fading_direction, directions(angle)], -1),
        fading_phase=torch.cat([world.fading_phase, phases(phase)], -1),
    )


def directions(angle_turns: Tensor) -> Tensor:
    """`World.fading_direction` of angles between movement and scatterer, in turns; the same shape, int16."""
    cosine = torch.cos(2 * torch.pi * angle_turns)
    return (cosine * DIRECTION_PER_UNIT).round().clamp(max=DIRECTION_PER_UNIT - 1).short()


def phases(phase_turns: Tensor) -> Tensor:
    """`World.fading_phase` of phases in turns; the same shape, int16."""
    return (phase_turns * PHASE_PER_TURN).floor().int().short()


def _check(duration_s: float, speed_kmh: float, load: float, demand_bps: float) -> None:
    for name, value, least, most in (
        ("duration_s", duration_s, 1e-9, math.inf),
        ("speed_kmh", speed_kmh, 0.0, 1000.0),
        ("load", load, 0.0, 1.0),
        ("demand_bps", demand_bps, 0.0, math.inf),
    ):
        if not least <= value <= most:
            between = f"{least:g} to {most:g}" if most < math.inf else "positive numbers"
            raise DefianceError(f"worlds can't be drawn with {name}={value}; it takes {between}")


def _stacked(routes_m: list[Any]) -> Tensor:
    """Routes of every world, `[W, U, P, 2]`, in NumPy's memory.

    That asks for huge pages, so that a step over many users finds its way in memory sooner.
    """
    return torch.from_numpy(np.stack([np.asarray(route_m, np.float32) for route_m in routes_m]))


def _draws(
    config: RadioConfig, streams: list[Stream], users: int, cells: int, load: float
) -> dict[str, Tensor]:
    """Fading, background load and key of every world."""
    n = config.scatterers
    shape = len(streams), users, cells, n
    direction, phase = (torch.from_numpy(np.empty(shape, np.int16)) for _ in range(2))  # in huge pages
    background, key = [], []
    for w, stream in enumerate(streams):
        rng = stream.child("fading").generator()
        offset = torch.rand(users, 1, cells, generator=rng)
        for part in torch.arange(users).split(2**12):  # by far the largest of all that is drawn
            direction[w, part] = directions((torch.arange(n)[:, None] + offset[part]) / n).mT
            phase[w, part] = phases(torch.rand(len(part), n, cells, generator=rng)).mT
        rng = stream.child("load").generator()
        spread = 0.8 + 0.4 * torch.rand(cells, generator=rng)
        background.append((load * spread).clamp(max=1) if load < 1 else torch.ones(cells))
        rng = stream.child("messages").generator()
        key.append(torch.randint(2**62, (), generator=rng))
    return {
        "fading_direction": direction,
        "fading_phase": phase,
        "background_load": torch.stack(background).float(),
        "key": torch.stack(key),
    }


def _inside(drop: Drop, users: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Storey (0 outdoors) and own loss in dB of every user, `[U]` each."""
    scenario, highest = drop.scenario, drop.gain_db.shape[0] - 1
    kind, building, level, model = torch.rand(4, users, generator=rng)
    normal = torch.randn(users, generator=rng)
    indoor = kind < scenario.indoor_share
    lowest = min(4, scenario.storeys)
    height = lowest + (building * (scenario.storeys - lowest + 1)).floor()
    storey = torch.where(indoor, 1 + (level * height).floor(), 0.0).clamp(max=highest).int()
    walls = wall_penetration_db(model < scenario.high_loss_share, normal, drop.carrier_hz)
    outside = CAR_DB + CAR_SIGMA_DB * normal if scenario.in_cars else torch.zeros(users)
    return storey, torch.where(indoor, walls, outside)


def _places(drop: Drop, users: int, rng: torch.Generator) -> Tensor:
    """Uniform over the area, drawn again where nearer to a site than allowed, `[U, 2]` float64."""
    axes_m = _axes_m(drop)
    site_m = drop.site_position_m[:, :2].double()
    place_m = torch.empty(users, 2, dtype=torch.float64)
    missing = torch.arange(users)
    while len(missing):
        place_m[missing] = torch.rand(len(missing), 2, generator=rng, dtype=torch.float64) @ axes_m
        offset_m = place_m[missing, None] - site_m
        if drop.lattice_m is not None:
            offset_m = nearest_image(offset_m, drop.lattice_m)
        missing = missing[offset_m.norm(dim=-1).amin(-1) < drop.scenario.nearest_m]
    return place_m


def _axes_m(drop: Drop) -> Tensor:
    """Vectors along the columns and the rows of all of the map, `[2, 2]` float64."""
    if drop.lattice_m is not None:
        return drop.lattice_m
    _, rows, columns, _ = drop.gain_db.shape
    return torch.diag(torch.tensor([columns - 1, rows - 1], dtype=torch.float64) * drop.resolution_m)


def _side_by_side(drop: Drop, storey: Tensor, place_m: Tensor) -> Tensor:
    """Users strip by strip of the map, there storey by storey, there column by column, `[U]` int64."""
    floors, rows, columns, _ = drop.gain_db.shape
    column, row = (place_m @ torch.linalg.inv(_axes_m(drop))).mT
    strip = (row * rows / STRIP_ROWS).long()
    return torch.argsort((strip * floors + storey) * columns + (column * columns).long(), stable=True)


def _straight_on(drop: Drop, place_m: Tensor, length_m: float, rng: torch.Generator) -> Tensor:
    """Straight routes from places `[U, 2]`, `[U, P, 2]`; the walls of an office send users back."""
    angle = 2 * torch.pi * torch.rand(len(place_m), 1, generator=rng, dtype=torch.float64)
    along_m = torch.arange(int(length_m / ROUTE_SPACING_M) + 1) * ROUTE_SPACING_M
    ahead = torch.stack([torch.cos(angle) * along_m, torch.sin(angle) * along_m], -1)
    route_m = place_m[:, None] + ahead
    if drop.lattice_m is None:
        _, rows, columns, _ = drop.gain_db.shape
        box_m = torch.tensor([columns - 1, rows - 1], dtype=torch.float64) * drop.resolution_m
        folded = route_m % (2 * box_m)
        route_m = torch.minimum(folded, 2 * box_m - folded)
    return route_m.float().contiguous()
