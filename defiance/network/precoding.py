"""Several users at once: who is sent to together, through which precoders, and what each of them hears.

    y_u = H_u W x + n,   W = [w_1 ... w_S], power of every column 1 / S

A station knows a vector h_s of every stream, of what was reported: |h_s|^2 is the SINR that it would have
alone, so that noise and interference from other cells are 1. Sum rates and precoders follow from these
vectors; what is heard follows from the channels as they are.

Sources: regularised zero-forcing, Peel, Hochwald and Swindlehurst, IEEE Trans. Commun. 53(1), 2005; greedy
groups by the weighted sum rate, Dimic and Sidiropoulos, IEEE Trans. Signal Process. 53(10), 2005.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SAME = 1e-4
"""What of a beam of norm 1 must lie outside of the beams before it to make it another one."""

NOTHING = 1e-30
"""Power below which there is no signal."""

GROWTH = 1 + 1e-6
"""A group grows only if its sum rate does, by more than rounding."""


def regularised_zero_forcing(channels: Tensor, noise: Tensor | float) -> Tensor:
    """Precoders of users who are served at once, H^H (H H^H + U noise I)^-1 with equal powers.

    Without noise it is zero-forcing, with much noise every user's matched filter.

    Args:
        channels: H, complex `[..., U, T]`; T antennas, or beams that stand for them.
        noise: power at a user, against unit power sent, broadcast against `[...]`.

    Returns:
        complex `[..., T, U]`, norm of every column 1 / sqrt(U); 0 for a channel that is nothing.
    """
    users = channels.shape[-2]
    load = users * torch.as_tensor(noise, dtype=channels.real.dtype, device=channels.device)
    gram = channels @ channels.mH
    gram = gram + load[..., None, None] * torch.eye(users, dtype=channels.dtype, device=channels.device)
    precoder = torch.linalg.solve(gram, channels).mH  # the Gram matrix is its own conjugate transpose
    norm = precoder.abs().square().sum(-2, keepdim=True).clamp(min=NOTHING).sqrt()
    found: Tensor = precoder / (norm * users**0.5)
    return found


def known_sinr(gram: Tensor) -> Tensor:
    """SINRs of streams that regularised zero-forcing sends together, if channels are what is known of them.

    Args:
        gram: H H^H with noise 1, complex `[..., S, S]`.

    Returns:
        `[..., S]`.
    """
    streams = gram.shape[-1]
    inverse = torch.linalg.inv(gram + streams * torch.eye(streams, dtype=gram.dtype, device=gram.device))
    met = gram @ inverse
    norm = (inverse @ met).diagonal(dim1=-2, dim2=-1).real
    power = met.abs().square() / (streams * norm.clamp(min=NOTHING))[..., None, :]
    wanted = power.diagonal(dim1=-2, dim2=-1)
    found: Tensor = wanted / (1 + (power.sum(-1) - wanted).clamp(min=0))
    return found


def orthonormal(beams: Tensor) -> Tensor:
    """An orthonormal basis of beams that overlap, so that power on it is power that is sent.

    Args:
        beams: complex `[..., U, T]`, norm 1.

    Returns:
        complex `[..., T, U]`; a beam that was there before is no second one: nothing in its column.
    """
    basis, among = torch.linalg.qr(beams.mT)
    new = among.diagonal(dim1=-2, dim2=-1).abs() > SAME
    found: Tensor = basis * new[..., None, :]
    return found


def select(
    vectors: Tensor, weight: Tensor, user: Tensor, cell: Tensor, most: tuple[int, int, int],
    rate: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """Groups of streams that cells send together: each grows by who adds most to its weighted sum rate.

    Sub-bands choose for themselves. At equality the stream of the lower number comes first.

    Args:
        vectors: known of each stream, noise 1, complex `[E, K, T]`.
        weight: of a stream's rate, `[E]`, such as 1 / past mean rate; 0: never chosen.
        user: whose stream it is, int64 `[E]`.
        cell: that serves it, int64 `[E]`.
        most: cells; users in a group; streams in a group.
        rate: of SINRs `[...]` of these streams `[...]`.

    Returns:
        Numbers of streams, int64 `[cells, K, streams]`, those chosen first; -1 behind them.
    """
    cells, users, streams = most
    count, bands, _ = vectors.shape
    band, own = torch.arange(bands), torch.arange(count)
    chosen = torch.full((cells, bands, streams), -1)
    value = torch.zeros(cells, bands, dtype=torch.float64)
    grows = torch.ones(cells, bands, dtype=torch.bool)
    for size in range(1, streams + 1 if count else 1):
        before = chosen[..., : size - 1]  # [cells, K, size - 1]; not -1 where a group grows
        kept = vectors[before, band[:, None]][cell]
        h = torch.cat([kept, vectors[:, :, None]], 2).to(torch.complex128)
        group = torch.cat([before[cell], own[:, None, None].expand(-1, bands, 1)], -1)
        gain = (weight.double()[group] * rate(known_sinr(h @ h.mH), group)).sum(-1)  # [E, K]
        whose = user[before]
        again = (whose[..., :, None] == whose[..., None, :]).tril(-1).any(-1)
        free = (~again).sum(-1) < users
        mine = (whose[cell] == user[:, None, None]).any(-1)
        taken = (before[cell] == own[:, None, None]).any(-1)
        may = grows[cell] & (free[cell] | mine) & ~taken & (weight > 0)[:, None]
        gain = torch.where(may, gain, 0.0)
        at = cell[:, None].expand(-1, bands)
        best = torch.zeros_like(value).scatter_reduce(0, at, gain, "amax")
        first = torch.where(gain == best[cell], own[:, None], count)
        winner = torch.full((cells, bands), count).scatter_reduce(0, at, first, "amin")
        grows = grows & (best > GROWTH * value)
        if not bool(grows.any()):
            break
        chosen[..., size - 1] = torch.where(grows, winner, -1)
        value = torch.where(grows, best, value)
    return chosen


def precoders(vectors: Tensor, chosen: Tensor, measured: Tensor | None = None) -> Tensor:
    """Regularised zero-forcing for groups of streams.

    Args:
        vectors: known of each stream, noise 1, complex `[E, K, T]`.
        chosen: from `select`, int64 `[cells, K, S]`.
        measured: channels as devices hear them on the beams that `vectors` are, complex `[E, K, T]`; the
            precoder then is a digital one on the group's beams.

    Returns:
        complex64 `[cells, K, T, S]`; nothing in columns without a stream.
    """
    cells, bands, streams = chosen.shape
    size = (chosen >= 0).sum(-1)
    found = torch.zeros(cells, bands, vectors.shape[-1], streams, dtype=torch.complex64)
    for number in range(1, streams + 1):
        at = size == number
        if not bool(at.any()):
            continue
        here, band = chosen[at][:, :number], at.nonzero()[:, 1:]
        h = vectors[here, band].to(torch.complex128)
        if measured is None:
            w = regularised_zero_forcing(h, 1.0)
        else:
            basis = orthonormal((h / h.norm(dim=-1, keepdim=True).clamp(min=NOTHING)).conj())
            heard = measured[here, band].to(torch.complex128) @ basis
            w = basis @ regularised_zero_forcing(heard, 1.0)
        part = torch.zeros(len(here), vectors.shape[-1], streams, dtype=torch.complex64)
        part[..., :number] = w.to(torch.complex64)
        found[at] = part
    return found


def heard_sinr(wanted: Tensor, covariance: Tensor) -> Tensor:
    """SINR of a linear receiver of least mean squared error that knows what it hears: g^H R^-1 g.

    Args:
        wanted: g, the stream through the receiver's channel, complex `[..., rx]`.
        covariance: R, of all else, noise included, complex `[..., rx, rx]`.

    Returns:
        `[...]` float32; computed in double precision, for near a station powers span 100 dB.
    """
    wanted, covariance = wanted.to(torch.complex128), covariance.to(torch.complex128)
    filtered = torch.linalg.solve(covariance, wanted[..., None])[..., 0]
    found: Tensor = (wanted.conj() * filtered).sum(-1).real.clamp(min=0).float()
    return found
