"""Codebooks of beams for planar arrays: the oversampled DFT grids of TS 38.214 clause 5.2.2.2.

A beam is a precoder: a port's signal is multiplied by its entry, and a receiver sees `channel @ beam`. Ports
are numbered as a `Panel` numbers its elements: polarisation by polarisation, row by row, column by column.
Every beam has norm 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.radio.arrays import Panel

COPHASES = 4
"""Phases between polarisations, phi_n = e^(j pi n / 2) (clause 5.2.2.2.1)."""


def dft_beams(panel: Panel, oversampling: tuple[int, int] = (1, 1)) -> Tensor:
    """DFT beams of one polarisation: the v_(l,m) of TS 38.214 clause 5.2.2.2.1, at norm 1.

    Beam (l, m) turns by 2 pi l / (O_1 N_1) from row to row, and by 2 pi m / (O_2 N_2) from column to column.
    A wave whose response turns by as much the other way is the one that it is made for: the response's
    conjugate is the beam.

    Args:
        panel: N_1 rows and N_2 columns.
        oversampling: O_1 of rows and O_2 of columns.

    Returns:
        complex64 [O_1 N_1, O_2 N_2, rows x columns].

    Raises:
        DefianceError: an oversampling is below 1.

    Example::

        dft_beams(Panel(4, 8), (1, 2)).flatten(0, 1).shape    # [64, 32]
    """
    if min(oversampling) < 1:
        raise DefianceError(f"a DFT codebook oversampled {oversampling} times; give at least (1, 1)")
    rows = _dft(panel.rows, oversampling[0])
    columns = _dft(panel.columns, oversampling[1])
    return (rows[:, None, :, None] * columns[None, :, None, :]).flatten(-2)


def cophased(beams: Tensor, phases: int = COPHASES) -> Tensor:
    """Beams of both polarisations of a dual panel, `[v; phi v] / sqrt(2)`, for each phase between them.

    Args:
        beams: of one polarisation, complex64 [..., places].
        phases: how many phi lie evenly on the circle.

    Returns:
        complex64 [..., phases, 2 x places].
    """
    phi = torch.polar(torch.ones(phases), 2 * math.pi / phases * torch.arange(phases)).to(beams.device)
    v = beams[..., None, :]
    return torch.cat([v.expand(*beams.shape[:-1], phases, -1), phi[:, None] * v], -1) / math.sqrt(2)


def check_fits(beams: Tensor, ports: int, what: str = "the array") -> None:
    """Refuse a codebook that does not fit an array.

    Args:
        beams: complex, [..., ports].
        ports: of the array.
        what: its name for the message.

    Raises:
        DefianceError: the beams have another number of entries, or are not finite.
    """
    if beams.shape[-1] != ports:
        raise DefianceError(
            f"a codebook for {beams.shape[-1]} ports doesn't fit {what}, which has {ports}; "
            "make it with dft_beams of that panel, and cophased where the panel is dual"
        )
    if not bool(torch.view_as_real(beams.resolve_conj()).isfinite().all()):
        raise DefianceError("a codebook has an entry that is not finite; make it with dft_beams")


def received_power(channels: Tensor, beams: Tensor) -> Tensor:
    """What a receiver measures of every beam: |H w|^2, summed over its antennas, mean over subcarriers.

    Args:
        channels: complex64 [..., rx, tx, K], as `radio.arrays.channel` makes them.
        beams: complex64 [B, tx].

    Returns:
        float32 [..., B], relative to the power of one port that sends all.

    Raises:
        DefianceError: the codebook does not fit the array.
    """
    check_fits(beams, channels.shape[-2], "the sender's array")
    return (beams @ channels).abs().square().mean(-1).sum(-2)


def _dft(places: int, oversampling: int) -> Tensor:
    """DFT vectors, [O N, N], norm 1."""
    number = torch.arange(places * oversampling, dtype=torch.float64)
    turns = number[:, None] * torch.arange(places) / (places * oversampling)
    return torch.polar(torch.full_like(turns, places**-0.5), 2 * math.pi * turns).to(torch.complex64)
