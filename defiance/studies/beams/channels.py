"""Users on traced walks: which sector serves them, and how strong each of its beams is as they move."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
from torch import Tensor

from defiance.control.beams import Book
from defiance.control.codebooks import received_power
from defiance.errors import DefianceError
from defiance.radio.arrays import Panel, Paths, channel, response
from defiance.scene.paths import Walks, load_walks
from defiance.seeding import Stream, stream

BAND = "28ghz"
PANEL = Panel(4, 16, element="38.901")
BOOK = Book(PANEL, (4, 2))
"""64 beams, and 8 wide ones, of all heights and two columns each: streets are seen at few heights."""
DEVICE = Panel(1, 1, dual=True)
"""Two isotropic antennas, crossed, whose powers add."""
SUBCARRIERS_HZ = (12.5e6, 8)
"""Eight places in 100 MHz: L1-RSRP is a mean over the band."""
WAVES_BELOW_DB = (0.0, 22.0, 30.0, 38.0)
"""How far below the strongest one plane waves lie at most."""
FAST_RAD_PER_S = 0.25
"""Of a car 60 m away; a walker's direction turns twenty times slower."""
AT_ONCE, TRIES = 512, 40
"""Ways that are drawn at a time, and how often, until enough users have a sector."""
PURPOSES = ("test", "validation", "training")


@lru_cache(maxsize=2)
def walks_of(city: str) -> Walks:
    """The traced walks of a city at 28 GHz."""
    return load_walks(city, BAND)


def walks_for(walks: Walks, purpose: str) -> Tensor:
    """Numbers of the walks for a purpose, int64: a fifth for test, a fifth for validation, the rest to train.

    Raises:
        DefianceError: there are fewer than three walks.
    """
    count = len(walks.position_m)
    if count < 3:
        raise DefianceError(f"{walks.name} has {count} walks; give at least three, to be split by walk")
    order = torch.randperm(count, generator=stream(0, "beams", "walks", walks.name).generator())
    fifth = max(1, count // 5)
    parts: tuple[Tensor, ...] = order.split([fifth, fifth, count - 2 * fifth])
    return parts[PURPOSES.index(purpose)]


def of_site(walks: Walks, site: int) -> Walks:
    """The walks as one site sees them, without its sectors."""
    some = slice(site, site + 1)
    paths = walks.paths
    return replace(
        walks,
        site_position_m=walks.site_position_m[some],
        cell_site=torch.zeros(0, dtype=torch.int64),
        azimuth_deg=walks.azimuth_deg[:0],
        tilt_deg=walks.tilt_deg[:0],
        paths=Paths(paths.delay_s[some], paths.gain[some], paths.departure[some], paths.arrival[some]),
        track=walks.track[some],
    )


@dataclass(frozen=True)
class Users:
    """Who moves where, `[U]` each.

    Attributes:
        walk: int64.
        start_m: along the walk, float64.
        speed_mps: negative towards the walk's beginning, float64.
        cell: sector that serves, int64.
    """

    walk: Tensor
    start_m: Tensor
    speed_mps: Tensor
    cell: Tensor

    def __len__(self) -> int:
        return len(self.walk)

    def select(self, which: Tensor) -> Users:
        """Those whom a bool mask `[U]` or an index `[u]` names."""
        return Users(*(getattr(self, field.name)[which] for field in fields(self)))


def sector_gain_db(walks: Walks, walk: Tensor, along_m: Tensor) -> Tensor:
    """Power that one element of every sector brings to places `[...]`, all paths together, `[..., cells]`."""
    paths = walks.at(walk, along_m)
    found = []
    for cell, site in enumerate(walks.cell_site.tolist()):
        bearing = walks.bearing_rad[cell].float().expand(along_m.shape)
        tilt = walks.tilt_rad[cell].float().expand(along_m.shape)
        field, _ = response(Panel(1, 1, element=PANEL.element), paths.departure[site], bearing, tilt)
        met = paths.gain[site] @ field[..., 0, :, None].to(paths.gain.dtype)
        found.append(met.abs().square().sum((-3, -2, -1)))
    return 10 * torch.log10(torch.stack(found, -1).clamp(min=1e-20))


def draw_users(
    walks: Walks, among: Tensor, count: int, duration_s: float, speeds_mps: Tensor, random: Stream,
    least_gain_db: float,
) -> Users:  # fmt: skip
    """Users at random places, in random directions, where one sector is strong enough all the way.

    Args:
        walks: of a city.
        among: numbers of the walks that they may take.
        count: of users.
        duration_s: of their way.
        speeds_mps: one of these each, by turns.
        random: draws.
        least_gain_db: of a sector's element (see `sector_gain_db`) at the way's beginning, middle and end.

    Raises:
        DefianceError: there are hardly any such places, or a way is longer than a walk.
    """
    generator = random.generator()
    found: list[Users] = []
    for _ in range(TRIES):
        walk = among[torch.randint(len(among), (AT_ONCE,), generator=generator)]
        speed = speeds_mps[torch.arange(AT_ONCE) % len(speeds_mps)].double()
        way_m = speed * duration_s
        room_m = walks.length_m[walk] - way_m
        if bool((room_m <= 0).any()):
            raise DefianceError(
                f"{3.6 * speed.max():g} km/h for {duration_s:g} s is further than a walk of {walks.name}; "
                "take less time"
            )
        start_m = torch.rand(AT_ONCE, generator=generator, dtype=torch.float64) * room_m
        back = torch.rand(AT_ONCE, generator=generator) < 0.5
        places_m = torch.stack([start_m + way_m * share for share in (0.0, 0.5, 1.0)])
        best = sector_gain_db(walks, walk.expand(3, -1), places_m).amin(0).max(-1)
        heard = best.values >= least_gain_db
        users = Users(
            walk, torch.where(back, start_m + way_m, start_m), torch.where(back, -speed, speed), best.indices
        )
        found.append(users.select(heard))
        if sum(map(len, found)) >= count:
            joined = Users(*(torch.cat([getattr(u, f.name) for u in found]) for f in fields(Users)))
            return joined.select(torch.arange(count))
    raise DefianceError(f"{walks.name}: no {count} users found whom one sector serves all the way")


def beam_gain_db(walks: Walks, users: Users, times_s: Tensor) -> Tensor:
    """What every beam of its sector brings to every user, `[T, U, beams]` dB.

    Args:
        walks: of a city.
        users: `[U]`.
        times_s: since the start, `[T]`, or of every user, `[T, U]`.
    """
    times_s = times_s.double()
    if times_s.ndim == 1:
        times_s = times_s[:, None].expand(-1, len(users))
    vectors = BOOK.vectors
    found = torch.empty(*times_s.shape, len(vectors))
    site = walks.cell_site[users.cell]
    for number in site.unique().tolist():
        mine = (site == number).nonzero().squeeze(1)
        seen = of_site(walks, number)
        for some in mine.split(max(1, 2048 // len(times_s))):
            along_m = users.start_m[some] + users.speed_mps[some] * times_s[:, some]
            paths = seen.at(users.walk[some].expand(along_m.shape), along_m.clamp(min=0))
            made = channel(
                Paths(paths.delay_s[0], paths.gain[0], paths.departure[0], paths.arrival[0]),
                PANEL,
                DEVICE,
                SUBCARRIERS_HZ,
                sender_bearing_rad=walks.bearing_rad[users.cell[some]].float(),
                sender_tilt_rad=walks.tilt_rad[users.cell[some]].float(),
            )
            found[:, some] = 10 * torch.log10(received_power(made, vectors).clamp(min=1e-20))
    return found


def plane_waves(count: int, times_s: Tensor, random: Stream) -> Tensor:
    """What beams bring of random plane waves, `[T, count, beams]` dB against the strongest, mean over time.

    An array's maker knows its pattern, so a model can learn it before it has seen a city: up to four waves
    from directions that turn slowly, together or apart, with phases that are new at every instant.

    Args:
        count: of places.
        times_s: `[T]`.
        random: draws.
    """
    g = random.generator()
    waves = len(WAVES_BELOW_DB)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    azimuth = (2 * uniform(count, waves) - 1) * math.radians(68)
    zenith = math.radians(84) + math.radians(50) * uniform(count, waves) ** 1.5
    together = uniform(count, 1) < 0.5
    azimuth = torch.where(together, azimuth[:, :1] + 0.15 * normal(count, waves), azimuth)
    zenith = torch.where(together, zenith[:, :1] + 0.05 * normal(count, waves), zenith)
    fast = uniform(count, 1) < 0.5
    turn = normal(2, count, 1) * torch.where(fast, FAST_RAD_PER_S, FAST_RAD_PER_S / 20)
    passed_s = times_s.float()[:, None, None]
    angles = torch.stack([zenith + 0.4 * turn[0] * passed_s, azimuth + turn[1] * passed_s], -1)
    below_db = torch.tensor(WAVES_BELOW_DB) * uniform(count, waves)
    shape = (len(times_s), count, waves)
    amplitude = torch.pow(10.0, -below_db / 20)[..., None, None] * torch.tensor([[1.0, 0.2], [0.2, 1.0]])
    gain = torch.polar(amplitude.expand(*shape, 2, 2).contiguous(), 2 * math.pi * uniform(*shape, 2, 2))
    delay_s = 3e-7 * uniform(count, waves)
    made = channel(
        Paths(delay_s.expand(shape).contiguous(), gain, angles, angles),
        PANEL,
        DEVICE,
        SUBCARRIERS_HZ,
        sender_tilt_rad=math.radians(10),
    )
    found = 10 * torch.log10(received_power(made, BOOK.vectors).clamp(min=1e-20))
    return found - found[..., : BOOK.narrow].amax(-1).mean(0)[:, None]
