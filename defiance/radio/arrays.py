"""Antenna arrays, and wide-band channels between them, from propagation paths.

Angles are those of TR 38.901 clause 7.1: zenith and azimuth, radians, in the global system. A path's gain is
a matrix of the polarisations (theta, phi) at its two ends, for isotropic elements. For every link, with the
places d of elements in wavelengths and the directions u of a path,

    H[r, t, k] = sum over paths  F_r^T G F_t  e^(j 2 pi (u_r d_r + u_t d_t))  e^(-j 2 pi f_k tau)

which is equation 7.5-22, over subcarriers instead of delays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.radio.tr38901 import element_gain_db

ROOM = 2**24
"""Entries of channels that are made at a time: what a processor's caches and a small memory bear."""


@dataclass(frozen=True)
class Paths:
    """Propagation paths of links of any shape `[...]`, at most P each; a path that isn't there has gain 0.

    Attributes:
        delay_s: `[..., P]`, from the sender.
        gain: of amplitudes, arrival's polarisation before departure's, theta before phi, `[..., P, 2, 2]`
            complex64.
        departure: zenith and azimuth at the sender, radians, `[..., P, 2]`.
        arrival: the same at the receiver: where the path comes from.
    """

    delay_s: Tensor
    gain: Tensor
    departure: Tensor
    arrival: Tensor

    def __post_init__(self) -> None:
        shape = self.delay_s.shape
        for field, ends in (("gain", (2, 2)), ("departure", (2,)), ("arrival", (2,))):
            found = tuple(getattr(self, field).shape)
            if found != (*shape, *ends):
                raise DefianceError(
                    f"Paths.{field} is {found}; with delay_s {tuple(shape)} it is {(*shape, *ends)}"
                )

    @property
    def power(self) -> Tensor:
        """Of every path between isotropic elements, both polarisations together, `[..., P]`."""
        return self.gain.abs().square().sum((-2, -1)) / 2

    def of(self, links: Tensor | slice) -> Paths:
        """Those of links by their numbers in the first dimension, such as a site's for each of its cells."""
        return Paths(**{f.name: getattr(self, f.name)[links] for f in fields(self)})

    def taken(self, order: Tensor) -> Paths:
        """Those of these numbers, in this order, int64 `[..., P']`."""
        found = {}
        for field in fields(self):
            value: Tensor = getattr(self, field.name)
            index = order.reshape(*order.shape, *(1,) * (value.ndim - order.ndim))
            found[field.name] = torch.take_along_dim(value, index, order.ndim - 1)
        return Paths(**found)

    def flattened(self) -> Paths:
        """The same links in one dimension, `[L, P]`."""
        paths = self.delay_s.shape[-1]
        ends = {"delay_s": (), "gain": (2, 2), "departure": (2,), "arrival": (2,)}
        return Paths(
            **{f.name: getattr(self, f.name).reshape(-1, paths, *ends[f.name]) for f in fields(self)}
        )


@dataclass(frozen=True)
class Panel:
    """A uniform planar array, as in TR 38.901 clause 7.3: rows of elements over columns, in one panel.

    Elements are numbered polarisation by polarisation, row by row from below, column by column.

    Attributes:
        rows, columns: of places.
        row_spacing, column_spacing: in wavelengths.
        dual: two elements slanted by +45 and -45 degrees at every place, else one, vertical.
        element: `38.901` (8 dBi, 65 degrees wide, table 7.3-1) or `isotropic`.
    """

    rows: int
    columns: int
    row_spacing: float = 0.5
    column_spacing: float = 0.5
    dual: bool = False
    element: Literal["isotropic", "38.901"] = "isotropic"

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1 or min(self.row_spacing, self.column_spacing) < 0:
            raise DefianceError(
                f"a panel of {self.rows} x {self.columns} elements, {self.row_spacing:g} x "
                f"{self.column_spacing:g} wavelengths apart; give at least 1 x 1, and no negative distance"
            )

    @property
    def elements(self) -> int:
        """How many there are, of both polarisations."""
        return self.rows * self.columns * (1 + self.dual)

    @property
    def slants_rad(self) -> tuple[float, ...]:
        """Of the polarisations."""
        return (math.pi / 4, -math.pi / 4) if self.dual else (0.0,)


def local_angles(angles: Tensor, bearing_rad: Tensor, tilt_rad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Angles as a panel sees them that looks to a bearing and is tilted downwards.

    TR 38.901 equations 7.1-7, 7.1-8 and 7.1-15, without a slant of the panel.

    Args:
        angles: zenith and azimuth, global, `[..., 2]`.
        bearing_rad: azimuth of the panel's normal, `[...]`.
        tilt_rad: of the normal below the horizon, `[...]`.

    Returns:
        Zenith, azimuth, and the angle psi by which the polarisations turn, `[...]`.
    """
    zenith, azimuth = angles[..., 0], angles[..., 1] - bearing_rad
    sin_z, cos_z, sin_a, cos_a = zenith.sin(), zenith.cos(), azimuth.sin(), azimuth.cos()
    sin_t, cos_t = tilt_rad.sin(), tilt_rad.cos()
    up = cos_t * cos_z + sin_t * cos_a * sin_z
    along = cos_t * sin_z * cos_a - sin_t * cos_z
    local_zenith = torch.arccos(up.clamp(-1, 1))
    local_azimuth = torch.atan2(sin_a * sin_z, along)
    return local_zenith, local_azimuth, torch.atan2(sin_t * sin_a, cos_t * sin_z - sin_t * cos_z * cos_a)


def response(panel: Panel, angles: Tensor, bearing_rad: Tensor, tilt_rad: Tensor) -> tuple[Tensor, Tensor]:
    """What a panel makes of plane waves: field patterns, and phases over its places.

    Args:
        panel: the array.
        angles: zenith and azimuth, global, `[..., P, 2]`.
        bearing_rad: azimuth of its normal, `[...]`.
        tilt_rad: of its normal below the horizon, `[...]`.

    Returns:
        F of each polarisation of the panel towards theta and phi, `[..., P, S, 2]`, real; e^(j phase) of
        every place, row by row, `[..., P, rows x columns]` complex64.
    """
    zenith, azimuth, psi = local_angles(angles, bearing_rad[..., None], tilt_rad[..., None])
    amplitude = torch.ones_like(zenith)
    if panel.element == "38.901":
        amplitude = 10 ** (element_gain_db(zenith.rad2deg(), azimuth.rad2deg()) / 20)
    slant = torch.tensor(panel.slants_rad, dtype=zenith.dtype, device=zenith.device)
    turned = slant + psi[..., None]  # model 2, equations 7.3-4 and 7.3-5, then 7.1-11
    field = amplitude[..., None, None] * torch.stack([turned.cos(), turned.sin()], -1)
    row = _powers(2 * math.pi * panel.row_spacing * zenith.cos(), panel.rows)
    column = _powers(2 * math.pi * panel.column_spacing * zenith.sin() * azimuth.sin(), panel.columns)
    return field, (row[..., :, None] * column[..., None, :]).flatten(-2)


def channel(
    paths: Paths,
    sender: Panel,
    receiver: Panel,
    subcarriers_hz: tuple[float, int],
    *,
    sender_bearing_rad: Tensor | float = 0.0,
    sender_tilt_rad: Tensor | float = 0.0,
    receiver_bearing_rad: Tensor | float = 0.0,
    receiver_tilt_rad: Tensor | float = 0.0,
) -> Tensor:
    """Wide-band channels of links `[...]`, `[..., rx, tx, K]` complex64; see the module.

    Args:
        paths: of the links; carrier phases are in their gains, so that a delay turns subcarriers against the
            carrier only.
        sender: array of every sender.
        receiver: array of every receiver.
        subcarriers_hz: distance between two subcarriers (or sub-bands), and how many lie evenly around the
            carrier.
        sender_bearing_rad: where its panel looks; broadcast against the links, as the three that follow.
        sender_tilt_rad: downwards.
        receiver_bearing_rad: likewise.
        receiver_tilt_rad: likewise.

    Raises:
        DefianceError: there are no subcarriers.

    Example::

        paths = Paths(torch.tensor([[1e-6]]), torch.eye(2, dtype=torch.complex64)[None, None],
                      torch.tensor([[[1.6, 0.3]]]), torch.tensor([[[1.5, -2.8]]]))
        channel(paths, Panel(8, 8), Panel(1, 1), (360e3, 52)).shape    # [1, 1, 64, 52]
    """
    spacing_hz, count = subcarriers_hz
    if count < 1:
        raise DefianceError(f"a channel of {count} subcarriers; give at least one")
    shape = paths.delay_s.shape[:-1]

    def each(angle: Tensor | float) -> Tensor:
        return (
            torch.as_tensor(angle, dtype=torch.float32, device=paths.delay_s.device).expand(shape).reshape(-1)
        )

    looks = [
        (each(sender_bearing_rad), each(sender_tilt_rad)),
        (each(receiver_bearing_rad), each(receiver_tilt_rad)),
    ]
    flat = paths.flattened()
    links = flat.delay_s.shape[0]
    found = torch.empty(
        links, receiver.elements * sender.elements, count, dtype=torch.complex64, device=flat.delay_s.device
    )
    at_once = max(1, ROOM // (receiver.elements * sender.elements * count))
    for start in range(0, links, at_once):
        some = slice(start, min(start + at_once, links))
        part = flat.of(some)
        tx_field, tx_phase = response(sender, part.departure, *(angle[some] for angle in looks[0]))
        rx_field, rx_phase = response(receiver, part.arrival, *(angle[some] for angle in looks[1]))
        met = rx_field.to(part.gain.dtype) @ part.gain @ tx_field.to(part.gain.dtype).mT  # [l, P, S_r, S_t]
        # [l, P, S_r, places, S_t, places] -> [l, rx x tx, P]
        pairs = (
            met[:, :, :, None, :, None]
            * rx_phase[:, :, None, :, None, None]
            * tx_phase[:, :, None, None, None, :]
        ).flatten(2)
        first = -0.5 * (count - 1)
        turn = -2 * math.pi * spacing_hz * part.delay_s.double()
        over_band = _powers(turn.remainder(2 * math.pi).float(), count)
        over_band = over_band * _turned((first * turn).remainder(2 * math.pi).float())[..., None]
        torch.bmm(pairs.mT, over_band, out=found[some])
    return found.view(*shape, receiver.elements, sender.elements, count)


def _turned(angle: Tensor) -> Tensor:
    """e^(j angle)."""
    return torch.polar(torch.ones_like(angle), angle)


def _powers(angle: Tensor, count: int) -> Tensor:
    """e^(j n angle) for n = 0 ... count - 1, `[..., count]`: by doubling, with a sine for each."""
    powers = torch.ones((*angle.shape, 1), dtype=torch.complex64, device=angle.device)
    while powers.shape[-1] < count:
        ahead = _turned(angle.double().mul(powers.shape[-1]).remainder(2 * math.pi).float())
        powers = torch.cat([powers, powers * ahead[..., None]], -1)
    return powers[..., :count]
