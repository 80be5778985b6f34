"""Walks through a city, with the propagation paths from every site to every point of them.

Between two points of a walk paths are followed, not mixed. A path that both points have, by way of the same
walls and edges, stays that path: its length goes as a cubic from one point to the other, whose slopes are
what the directions at its ends say (whatever a path met on its way, it grows by minus the cosine between the
walk and where it comes from), and its phase at the carrier follows from its length. A path that only one of
them has fades, as from a source that stands where it seems to come from.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.constants import c as LIGHT_M_PER_S
from torch import Tensor

from defiance.errors import DefianceError
from defiance.parts import write_atomically
from defiance.radio.arrays import Paths
from defiance.scene import npz

FORMAT = "defiance.walks/1"
CARRIERS_HZ = (3.5e9, 28e9)
MOST_PATHS = 16  # that a file holds of a site at a point: those that carry most
LEVEL_STEP_DB = 0.01  # files hold int16 hundredths of a dB,
ANGLE_STEP_RAD = math.pi / 2**15  # int16 angles,
GAIN_STEPS = 127  # and int8 polarisation matrices beside their largest entry


@dataclass(frozen=True)
class Walks:
    """Walks on the streets of a city at one carrier; split data by walk, for points of one are alike.

    Attributes:
        name: of the city.
        carrier_hz: of this band.
        position_m: (x, y) of the points, float64 [walks, points, 2]; x points east, y north.
        height_m: of the user's antenna there, on the map's scale, float64 [walks, points].
        site_position_m: float32 [sites, 3].
        cell_site: site on which a cell (sector) hangs, int64 [cells].
        azimuth_deg: of its boresight, clockwise from north, float32 [cells].
        tilt_deg: of its boresight below the horizon, float32 [cells].
        paths: `[sites, walks, points, P]`, between isotropic antennas, those that carry most first; phases at
            the carrier are in their gains.
        track: int32 `[sites, walks, points, P]`: paths from one site to one walk that bear the same number
            are one path, seen from one point after the other; -1 where there is none.
        attribution: where map and tracing come from; print it with every figure made of them.

    Raises:
        DefianceError: shapes don't fit, a number isn't finite, or a point is where the one before it was.
    """

    name: str
    carrier_hz: float
    position_m: Tensor
    height_m: Tensor
    site_position_m: Tensor
    cell_site: Tensor
    azimuth_deg: Tensor
    tilt_deg: Tensor
    paths: Paths
    track: Tensor
    attribution: str

    def __post_init__(self) -> None:
        if self.position_m.ndim != 3 or self.position_m.shape[0] < 1 or self.position_m.shape[1] < 2:
            raise DefianceError(
                f"position_m is {list(self.position_m.shape)}, not [walks, at least 2 points, 2]"
            )
        walks, points, _ = self.position_m.shape
        sites, cells = self.site_position_m.shape[0], self.cell_site.shape[0]
        of_link = (sites, walks, points)
        for key, tensor, shape in (
            ("position_m", self.position_m, (walks, points, 2)),
            ("height_m", self.height_m, (walks, points)),
            ("site_position_m", self.site_position_m, (sites, 3)),
            ("azimuth_deg", self.azimuth_deg, (cells,)),
            ("tilt_deg", self.tilt_deg, (cells,)),
            ("paths", self.paths.delay_s, (*of_link, self.track.shape[-1])),
            ("paths' gains", torch.view_as_real(self.paths.gain), (*of_link, self.track.shape[-1], 2, 2, 2)),
            ("paths' departures", self.paths.departure, (*of_link, self.track.shape[-1], 2)),
            ("paths' arrivals", self.paths.arrival, (*of_link, self.track.shape[-1], 2)),
        ):
            if tuple(tensor.shape) != shape:
                raise DefianceError(f"{key} is {list(tensor.shape)}, not {list(shape)}")
            if not bool(tensor.isfinite().all()):
                raise DefianceError(f"{key} holds values that aren't finite")
        if not (0 < self.carrier_hz < math.inf):
            raise DefianceError(f"carrier_hz is {self.carrier_hz}, not a positive number")
        if not bool(((self.cell_site >= 0) & (self.cell_site < sites)).all()):
            raise DefianceError(f"cell_site names a site outside 0 ... {sites - 1}")
        if not bool((self.step_m > 0).all()):
            raise DefianceError("two points of a walk that follow each other are in one place")

    @property
    def bearing_rad(self) -> Tensor:
        """Azimuth of every cell's boresight, counter-clockwise from east as in `radio.arrays`, [cells]."""
        return torch.deg2rad(90.0 - self.azimuth_deg)

    @property
    def tilt_rad(self) -> Tensor:
        """Of every cell's boresight below the horizon, [cells]."""
        return torch.deg2rad(self.tilt_deg)

    @property
    def antenna_m(self) -> Tensor:
        """Where the user's antenna is, float64 [walks, points, 3]."""
        return torch.cat([self.position_m, self.height_m[..., None]], -1)

    @property
    def step_m(self) -> Tensor:
        """From every point of a walk to the next, float64 [walks, points - 1]."""
        steps: Tensor = self.antenna_m.diff(dim=1).square().sum(-1).sqrt()
        return steps

    @property
    def length_m(self) -> Tensor:
        """Of every walk, float64 [walks]."""
        return self.step_m.sum(-1)

    def place(self, walk: Tensor | int, along_m: Tensor | float) -> tuple[Tensor, Tensor]:
        """Which point is before a place on a walk, int64 [...], and how far on, in steps, float64 [...].

        Raises:
            DefianceError: there is no such walk, or the place is beyond its ends.
        """
        number, along = torch.broadcast_tensors(
            torch.as_tensor(walk), torch.as_tensor(along_m, dtype=torch.float64)
        )
        count = self.position_m.shape[0]
        if not bool(((number >= 0) & (number < count)).all()):
            raise DefianceError(f"{self.name} has the walks 0 ... {count - 1}, not all of those asked for")
        reached = torch.nn.functional.pad(self.step_m.cumsum(-1), (1, 0))[number]
        if not bool(((along >= 0) & (along <= reached[..., -1] + 1e-6)).all()):
            raise DefianceError(
                f"a place lies beyond its walk; the shortest asked for is {reached[..., -1].min():g} m long"
            )
        passed = torch.searchsorted(reached, along[..., None].contiguous(), right=True)[..., 0]
        before = (passed - 1).clamp(0, self.position_m.shape[1] - 2)
        first = reached.gather(-1, before[..., None])[..., 0]
        return before, ((along - first) / self.step_m[number, before]).clamp(0, 1)

    def at(self, walk: Tensor | int, along_m: Tensor | float) -> Paths:
        """Paths from every site to places on walks; at a point of the walk exactly those traced there.

        Args:
            walk: which, int64 [...].
            along_m: way from its first point, [...] with the same shape, or one that broadcasts.

        Returns:
            `[sites, ..., P']`, P' as large as the place with most paths needs.

        Raises:
            DefianceError: there is no such walk, or the place is beyond its ends.

        Example::

            walks = load_walks("munich", "3.5ghz")
            walks.at(3, torch.arange(0, 20, 0.01)).delay_s.shape    # [7, 2000, P']
        """
        walk_, _ = torch.broadcast_tensors(torch.as_tensor(walk), torch.as_tensor(along_m))
        before, share = self.place(walk, along_m)
        here, there = self._seen(walk_, before), self._seen(walk_, before + 1)
        return _between(here, there, share, self.carrier_hz)

    def _seen(self, walk: Tensor, point: Tensor) -> _Seen:
        paths = self.paths
        length_m = paths.delay_s[:, walk, point].double() * LIGHT_M_PER_S
        return _Seen(
            antenna_m=self.antenna_m[walk, point],
            length_m=length_m,
            gain=paths.gain[:, walk, point] * turned(length_m, self.carrier_hz)[..., None, None],
            departure=unit(paths.departure[:, walk, point].double()),
            arrival=unit(paths.arrival[:, walk, point].double()),
            track=self.track[:, walk, point],
        )


@dataclass(frozen=True)
class _Seen:
    """Paths as points of walks see them, for the geometry between two of them, in double precision.

    `antenna_m` is [..., 3]; lengths and tracks are [sites, ..., P]; gains, without what the carrier turns on
    the way, [sites, ..., P, 2, 2]; departures and arrivals are unit vectors [sites, ..., P, 3].
    """

    antenna_m: Tensor
    length_m: Tensor
    gain: Tensor
    departure: Tensor
    arrival: Tensor
    track: Tensor


def _between(here: _Seen, there: _Seen, share: Tensor, carrier_hz: float) -> Paths:
    """Paths a share of the way on from one point to the next, [...]; see the module."""
    way = (there.antenna_m - here.antenna_m)[..., None, :]
    u = share[..., None]
    gone = torch.sin(math.pi / 2 * u) ** 2
    same = (here.track[..., :, None] == there.track[..., None, :]) & (here.track[..., :, None] >= 0)
    goes_on, partner = same.any(-1), same.to(torch.uint8).argmax(-1)  # [sites, ..., P]
    comes = ~same.any(-2)

    def partners(of: Tensor) -> Tensor:
        """What `there` says of the paths that `here` has."""
        ends = of.shape[partner.ndim :]
        index = partner.reshape(*partner.shape, *(1 for _ in ends)).expand(*partner.shape, *ends)
        return of.gather(partner.ndim - 1, index)

    slopes = -(here.arrival * way).sum(-1), -(partners(there.arrival) * way).sum(-1)
    length_m = _cubic(here.length_m, partners(there.length_m), slopes, u)
    gain = torch.lerp(here.gain, partners(there.gain), u[..., None, None].to(here.gain.dtype))
    departure = torch.lerp(here.departure, partners(there.departure), u[..., None])
    arrival = torch.lerp(here.arrival, partners(there.arrival), u[..., None])

    behind_m, behind = _alone(here, u[..., None] * way)
    ahead_m, ahead = _alone(there, (u[..., None] - 1) * way)
    stays = goes_on[..., None]
    length_m = torch.cat([torch.where(goes_on, length_m, behind_m), ahead_m], -1)
    left = torch.where(stays[..., None], gain, here.gain * (1 - gone)[..., None, None])
    risen = there.gain * (gone * comes)[..., None, None]
    found = Paths(
        length_m / LIGHT_M_PER_S,
        (torch.cat([left, risen], -3) * turned(length_m, -carrier_hz)[..., None, None]).to(torch.complex64),
        angles(torch.cat([torch.where(stays, departure, here.departure), there.departure], -2)),
        angles(torch.cat([torch.where(stays, arrival, behind), ahead], -2)),
    )
    there_are = (found.gain != 0).any(-1).any(-1)
    order = (~there_are).to(torch.uint8).argsort(dim=-1, stable=True)
    return found.taken(order[..., : max(1, int(there_are.sum(-1).max()))])


def _alone(seen: _Seen, moved_m: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths and directions after a move [..., 1, 3], if a path's source stands where it seems to."""
    towards = seen.arrival * seen.length_m[..., None] - moved_m
    length_m = towards.norm(dim=-1)
    return length_m, towards / length_m.clamp(min=1e-9)[..., None]


def _cubic(first: Tensor, last: Tensor, slopes: tuple[Tensor, Tensor], share: Tensor) -> Tensor:
    """Hermite's: of values and slopes at 0 and 1."""
    s, rest = share, 1 - share
    return (
        (1 + 2 * s) * rest**2 * first
        + s * rest**2 * slopes[0]
        + s**2 * (3 - 2 * s) * last
        - s**2 * rest * slopes[1]
    )


def turned(length_m: Tensor, carrier_hz: float) -> Tensor:
    """What a carrier turns on a way (back, with a negative one), complex128."""
    cycles = (length_m * (carrier_hz / LIGHT_M_PER_S)).remainder(1)
    return torch.polar(torch.ones_like(cycles), 2 * math.pi * cycles)


def unit(angles: Tensor) -> Tensor:
    """Directions of zeniths and azimuths [..., 2], as vectors [..., 3]."""
    zenith, azimuth = angles.unbind(-1)
    return torch.stack([zenith.sin() * azimuth.cos(), zenith.sin() * azimuth.sin(), zenith.cos()], -1)


def angles(direction: Tensor) -> Tensor:
    """The inverse of `unit`, for vectors of any length, float32."""
    x, y, z = direction.unbind(-1)
    return torch.stack([torch.atan2(torch.hypot(x, y), z), torch.atan2(y, x)], -1).float()


def load_walks(city: str | Path, band: str) -> Walks:
    """Walks of a shipped city by its name, or of a file by its path, at one carrier.

    Args:
        city: "munich", "florence", or the path of an .npz file that `defiance trace-paths` wrote.
        band: "3.5ghz", "28ghz", or what else the file holds.

    Raises:
        DefianceError: no such city, file or band, or the file isn't valid; its name is in the message.
    """
    shipped = resources.files("defiance.scene").joinpath("data", "walks")
    names = sorted(file.name.removesuffix(".npz") for file in shipped.iterdir() if file.name.endswith(".npz"))
    if str(city) in names:
        with resources.as_file(shipped.joinpath(f"{city}.npz")) as file:
            return npz.read(file, "set of walks", lambda arrays: _walks(arrays, band))
    path = Path(city)
    if not path.is_file():
        close = get_close_matches(str(city), names, 1)
        hint = f"did you mean {close[0]}?" if close else f"walks ship for {', '.join(names)}"
        raise DefianceError(
            f"walks of {city}: no such city or file; {hint}, or make some: defiance trace-paths"
        )
    return npz.read(path, "set of walks", lambda arrays: _walks(arrays, band))


def band_name(carrier_hz: float) -> str:
    """What `load_walks` calls a carrier: 3.5ghz."""
    return f"{carrier_hz / 1e9:g}ghz"


def save_walks(bands: Sequence[Walks], path: Path) -> None:
    """Write one set of walks at several carriers, which differ in gains only; complete or absent.

    Directions are rounded to 1e-4 rad, levels to 0.01 dB, polarisation matrices to 1/127 of their largest
    entry, lengths to float32.

    Raises:
        DefianceError: the file can't be written, or the bands differ in more than gains.
    """
    first = bands[0]
    if any(not torch.equal(band.paths.delay_s, first.paths.delay_s) for band in bands):
        raise DefianceError(f"{path}: bands of one file share their paths")
    there = first.track >= 0
    length_m = (first.paths.delay_s[there] * LIGHT_M_PER_S).numpy().astype(np.float32)
    both = torch.cat([first.paths.departure[there], first.paths.arrival[there]], -1).numpy()
    levels, matrices = [], []
    for band in bands:
        # The file's own length gives the phase that is taken out here and put back when it is read.
        turn = turned(torch.from_numpy(length_m).double(), band.carrier_hz)[:, None, None]
        gain = torch.view_as_real(band.paths.gain[there] * turn).flatten(1)
        largest = gain.abs().amax(-1).clamp(min=1e-15)
        levels.append((20 * largest.log10() / LEVEL_STEP_DB).round().to(torch.int16).numpy())
        matrices.append((gain / largest[:, None] * GAIN_STEPS).round().to(torch.int8).numpy())
    content = io.BytesIO()
    np.savez_compressed(
        content,
        format=FORMAT,
        name=first.name,
        carrier_hz=np.array([band.carrier_hz for band in bands]),
        position_m=first.position_m.numpy(),
        height_m=first.height_m.numpy(),
        site_position_m=first.site_position_m.numpy(),
        cell_site=first.cell_site.numpy(),
        azimuth_deg=first.azimuth_deg.numpy(),
        tilt_deg=first.tilt_deg.numpy(),
        count=there.sum(-1).to(torch.uint8).numpy(),
        track=first.track[there].to(torch.int16).numpy(),
        length_m=length_m,
        angle=np.rint(both / ANGLE_STEP_RAD).clip(-(2**15), 2**15 - 1).astype(np.int16),
        level_cdb=np.stack(levels),
        matrix=np.stack(matrices),
        attribution=first.attribution,
    )
    write_atomically(path, content.getvalue())


def _walks(arrays: npz.Arrays, band: str) -> Walks:
    """Build walks from the arrays of a file, whatever they are."""
    if "format" not in arrays or npz.text(arrays, "format") != FORMAT:
        raise DefianceError(f"its format isn't {FORMAT!r}")
    carriers_hz = npz.array(arrays, "carrier_hz", "f")
    bands = [band_name(carrier) for carrier in carriers_hz.ravel()]
    if band not in bands:
        raise DefianceError(f"it has no band {band!r}; known are {', '.join(bands)}")
    number = bands.index(band)
    count = npz.array(arrays, "count", "u").astype(np.int64)
    track, length_m = npz.array(arrays, "track", "i"), npz.array(arrays, "length_m", "f")
    angle, level = npz.array(arrays, "angle", "i"), npz.array(arrays, "level_cdb", "i")
    matrix = npz.array(arrays, "matrix", "i")
    total = int(count.sum())
    for key, found, shape in (
        ("track", track, (total,)),
        ("length_m", length_m, (total,)),
        ("angle", angle, (total, 4)),
        ("level_cdb", level, (len(bands), total)),
        ("matrix", matrix, (len(bands), total, 8)),
    ):
        if found.shape != shape:
            raise DefianceError(f"{key} is {list(found.shape)}, not {list(shape)}")
    if not (np.isfinite(length_m).all() and (length_m > 0).all()):
        raise DefianceError("length_m holds values that aren't positive and finite")
    if (track < 0).any():
        raise DefianceError("track holds negative numbers")

    there = torch.from_numpy(np.arange(max(1, count.max(initial=0))) < count[..., None])

    def spread(values: NDArray[Any], fill: float = 0) -> Tensor:
        """Values of all paths as [sites, walks, points, P, ...]."""
        flat = torch.from_numpy(values)
        spread = torch.full((*there.shape, *flat.shape[1:]), fill, dtype=flat.dtype)
        spread[there] = flat
        return spread

    amplitude = 10 ** (level[number].astype(np.float64) * LEVEL_STEP_DB / 20)
    gain = torch.from_numpy(matrix[number] * (amplitude[:, None] / GAIN_STEPS)).reshape(-1, 2, 2, 2)
    length = length_m.astype(np.float64)
    turn = turned(torch.from_numpy(length), -float(carriers_hz[number]))[:, None, None]
    angle_rad = angle.astype(np.float32) * np.float32(ANGLE_STEP_RAD)
    return Walks(
        name=npz.text(arrays, "name"),
        carrier_hz=float(carriers_hz[number]),
        position_m=torch.from_numpy(npz.array(arrays, "position_m", "f").astype(np.float64)),
        height_m=torch.from_numpy(npz.array(arrays, "height_m", "f").astype(np.float64)),
        site_position_m=torch.from_numpy(npz.array(arrays, "site_position_m", "f").astype(np.float32)),
        cell_site=torch.from_numpy(npz.array(arrays, "cell_site", "i").astype(np.int64)),
        azimuth_deg=torch.from_numpy(npz.array(arrays, "azimuth_deg", "f").astype(np.float32)),
        tilt_deg=torch.from_numpy(npz.array(arrays, "tilt_deg", "f").astype(np.float32)),
        paths=Paths(
            spread(length / LIGHT_M_PER_S),
            spread((torch.view_as_complex(gain) * turn).to(torch.complex64).numpy()),
            spread(angle_rad[:, :2]),
            spread(angle_rad[:, 2:]),
        ),
        track=spread(track.astype(np.int32), -1),
        attribution=npz.text(arrays, "attribution"),
    )
