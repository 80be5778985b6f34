"""What the network gets from a precoder: spectral efficiency with one user, and with several at a time.

Rates are the simulator's: attenuation x log2(1 + SINR), at most 256QAM's (`RadioConfig`, TR 36.942 annex A).
"""

from __future__ import annotations

import torch
from torch import Tensor

from defiance.network.precoding import regularised_zero_forcing
from defiance.network.settings import RadioConfig


def at_snr(channels: Tensor, w: Tensor, snr_db: float) -> Tensor:
    """Channels scaled to noise 1, so that each user has this SNR with its own precoder, mean over the band.

    Args:
        channels: complex64 [n, rx, ports, K], one resource element of each sub-band.
        w: complex64 [n, K, ports].
        snr_db: of every user, alone.
    """
    power = torch.einsum("nrpk,nkp->nrk", channels, w).abs().square().sum(1).mean(-1)
    return channels * (10 ** (snr_db / 10) / power).sqrt()[:, None, None, None]


def spectral_efficiency(channels: Tensor, w_hat: Tensor, users: int, radio: RadioConfig) -> Tensor:
    """Of a cell that serves some users at a time by what they fed back, bit/s/Hz.

    With several, regularised zero-forcing takes the reported precoders, each at its user's own SNR, for the
    channel. Power is shared equally; receivers know their effective channels (LMMSE).

    Args:
        channels: scaled, noise 1, complex64 [groups x users, rx, ports, K]; users of a group follow each
            other.
        w_hat: reported, complex64 [groups x users, K, ports].
        users: U.
        radio: attenuation and bound of the rate.

    Returns:
        Sum over the users of a group, mean over the band, [groups].
    """
    v = w_hat.unflatten(0, (-1, users)).transpose(1, 2)  # [g, K, U, ports]
    h = channels.unflatten(0, (-1, users)).permute(0, 1, 4, 2, 3)  # [g, U, K, rx, ports]
    strength = torch.einsum("gukrp,gkup->gukr", h, v).abs().square().sum(-1).mean(-1)  # [g, U]
    w = regularised_zero_forcing(strength.sqrt()[:, None, :, None] * v.conj(), 1.0)  # [g, K, ports, U]
    met = h @ w[:, None]  # [g, U, K, rx, U]
    own = torch.diagonal(met, dim1=1, dim2=-1).permute(0, 3, 1, 2)  # [g, U, K, rx]
    covariance = met @ met.mH - own[..., :, None] * own[..., None, :].conj()
    covariance = covariance + torch.eye(h.shape[-2])
    sinr = (own.conj() * torch.linalg.solve(covariance, own[..., None])[..., 0]).sum(-1).real.clamp(min=0)
    rate = (radio.rate_attenuation * torch.log2(1 + sinr)).clamp(max=radio.rate_max_bps_hz)
    return rate.mean(-1).sum(-1)
