"""Several users at once on the beams that were chosen for them: regularised zero-forcing.

    y_u = sqrt(snr) h_u W x + n,   W = beams of the analogue array x digital precoder

Peel, Hochwald and Swindlehurst, IEEE Trans. Commun. 53(1), 2005.
"""

from __future__ import annotations

import torch
from torch import Tensor

SAME = 1e-4
"""What of a beam of norm 1 must lie outside of the beams before it to make it another one."""


def regularised_zero_forcing(channels: Tensor, noise: Tensor | float) -> Tensor:
    """Precoders of users who are served at once, H^H (H H^H + U noise I)^-1 with equal powers.

    Without noise it is zero-forcing, with much noise every user's matched filter.

    Args:
        channels: H, complex `[..., U, T]`; T antennas, or beams that stand for them.
        noise: power at a user, against unit power sent, broadcast against `[...]`.

    Returns:
        complex `[..., T, U]`, norm of every column 1 / sqrt(U).
    """
    users = channels.shape[-2]
    load = users * torch.as_tensor(noise, dtype=channels.real.dtype, device=channels.device)
    gram = channels @ channels.mH
    gram = gram + load[..., None, None] * torch.eye(users, dtype=channels.dtype, device=channels.device)
    precoder = torch.linalg.solve(gram, channels).mH  # the Gram matrix is its own conjugate transpose
    norm = precoder.abs().square().sum(-2, keepdim=True).sqrt()
    found: Tensor = precoder / (norm * users**0.5)
    return found


def sum_rate(channels: Tensor, precoders: Tensor, noise: Tensor | float) -> Tensor:
    """Sum of log2(1 + SINR) over users who hear each other's signals, `[...]` bit/s/Hz.

    Args:
        channels: H, complex `[..., U, T]`.
        precoders: complex `[..., T, U]`.
        noise: power at a user, broadcast against `[..., U]`.
    """
    power = (channels @ precoders).abs().square()
    wanted = power.diagonal(dim1=-2, dim2=-1)
    sinr = wanted / (power.sum(-1) - wanted + torch.as_tensor(noise, dtype=power.dtype))
    return torch.log2(1 + sinr).sum(-1)


def on_beams(channels: Tensor, beams: Tensor) -> Tensor:
    """What users receive of each other's beams: `[..., U, T]` and beams `[..., U, T]` -> `[..., U, U]`.

    Beams that overlap are orthonormalised, so that power on beams is power that is sent; a beam that two
    users share remains one, and nothing is sent on the other.
    """
    basis, among = torch.linalg.qr(beams.mT)
    new = among.diagonal(dim1=-2, dim2=-1).abs() > SAME
    met: Tensor = channels @ (basis * new[..., None, :])
    return met
