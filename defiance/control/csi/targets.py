"""What is fed back: the strongest eigenvector of the channel in every sub-band, and how well it came over.

A precoder `w` of a link is complex64 [K sub-bands, ports], norm 1 in each sub-band; its phase there is
free, for no rate depends on it. Ports are those of a dual panel: polarisation by polarisation, row by row,
column by column. TR 38.843 judges by the squared generalised cosine similarity (SGCS).
"""

from __future__ import annotations

import torch
from torch import Tensor

from defiance.control.codebooks import dft_beams
from defiance.errors import DefianceError
from defiance.radio.arrays import Panel

RESOURCE_BLOCK_HZ = 12 * 30e3
BLOCKS_PER_SUBBAND = 4
SUBBANDS = 13
"""52 resource blocks in sub-bands of 4, as in the evaluations of TR 38.843 (table 5.2.1.4-2 of TS 38.214
allows 4
or 8 for 24 to 72 blocks)."""


def eigenvectors(channels: Tensor, subbands: int = SUBBANDS) -> Tensor:
    """The strongest right singular vector of every sub-band, of its resource blocks together.

    Args:
        channels: complex64 [..., rx, ports, blocks], as `radio.arrays.channel` makes them; blocks are a
            multiple of `subbands`.
        subbands: K.

    Returns:
        complex64 [..., K, ports].

    Raises:
        DefianceError: a channel is not finite or is nothing at all, or blocks do not fill the sub-bands.
    """
    *links, rx, ports, blocks = channels.shape
    if blocks % subbands:
        raise DefianceError(f"{blocks} resource blocks don't fill {subbands} sub-bands; give a multiple")
    check_finite(channels, "channels")
    rows = channels.reshape(*links, rx, ports, subbands, -1).movedim(-2, -4)  # [..., K, rx, ports, blocks/K]
    rows = rows.transpose(-1, -2).flatten(-3, -2)  # [..., K, rx x blocks/K, ports]
    if not bool((rows.abs().amax((-1, -2)) > 0).all()):
        raise DefianceError("a channel is zero in a whole sub-band; leave out links without a path")
    rows = rows / rows.abs().amax((-1, -2), keepdim=True)
    _, left = torch.linalg.eigh(rows @ rows.mH)
    w = (left[..., -1:].mH @ rows)[..., 0, :].conj()
    found: Tensor = w / w.norm(dim=-1, keepdim=True)
    return found


def check_finite(values: Tensor, what: str) -> None:
    """Refuse numbers that are not finite.

    Raises:
        DefianceError: one is nan or infinite; how many are.
    """
    bad = ~torch.view_as_real(values.resolve_conj()).isfinite()
    if bool(bad.any()):
        raise DefianceError(f"{what}: {int(bad.sum())} numbers are nan or infinite; leave those links out")


def check_precoders(w: Tensor, panel: Panel) -> None:
    """Refuse what is not [n, K, ports] of a dual panel, or is not finite.

    Raises:
        DefianceError: says what is wrong.
    """
    if not panel.dual:
        raise DefianceError("channel feedback wants a panel of two polarisations; give Panel(..., dual=True)")
    if w.dim() != 3 or w.shape[-1] != panel.elements or not w.is_complex():
        raise DefianceError(
            f"precoders are {w.dtype} {list(w.shape)}; a codebook of a {panel.rows} x {panel.columns} dual "
            f"panel fits complex [n, sub-bands, {panel.elements}]"
        )
    check_finite(w, "precoders")


def sgcs(w: Tensor, w_hat: Tensor) -> Tensor:
    """Squared generalised cosine similarity, mean over sub-bands: |w^H w_hat|^2 / (|w|^2 |w_hat|^2), [...].

    Args:
        w: complex [..., K, ports].
        w_hat: the same.
    """
    met = (w.conj() * w_hat).sum(-1)
    power = w.abs().square().sum(-1) * w_hat.abs().square().sum(-1)
    return ((met.real.square() + met.imag.square()) / power.clamp(min=1e-20)).mean(-1)


def nmse(w: Tensor, w_hat: Tensor) -> Tensor:
    """|w - e^(j theta) w_hat|^2 / |w|^2, mean over sub-bands, [...]; norms are 1, phases the best."""
    met = (w.conj() * w_hat).sum(-1).abs()
    norms = w.norm(dim=-1) * w_hat.norm(dim=-1)
    found: Tensor = (2 - 2 * met / norms.clamp(min=1e-10)).mean(-1)
    return found


def aligned(w: Tensor, like: Tensor | None = None) -> Tensor:
    """The same precoders with phases that make them smooth over the band, or `like` others.

    Args:
        w: complex [n, K, ports].
        like: each sub-band's phase is turned to these' [n, K, ports]; None: to the sub-band before.
    """
    if like is not None:
        met = (w.conj() * like).sum(-1)
        return w * torch.polar(torch.ones_like(met.real), met.angle())[..., None]
    met = (w[:, :-1].conj() * w[:, 1:]).sum(-1)
    turn = torch.nn.functional.pad(met.angle().cumsum(1), (1, 0))
    return w * torch.polar(torch.ones_like(turn), -turn)[..., None]


def spatial_basis(panel: Panel, oversampling: int = 1) -> Tensor:
    """Orthogonal DFT bases of one polarisation, complex64 [O^2, N beams, N places], q = O q_1 + q_2."""
    beams = dft_beams(panel, (oversampling, oversampling))
    grid = beams.unflatten(1, (panel.columns, oversampling)).unflatten(0, (panel.rows, oversampling))
    found: Tensor = grid.permute(1, 3, 0, 2, 4).flatten(2, 3).flatten(0, 1)
    return found


def angle_delay(w: Tensor, basis: Tensor) -> Tensor:
    """Unitary transform of precoders to polarisations, delays and beams.

    Args:
        w: complex [n, K, 2 x N].
        basis: beams, complex [N, N].

    Returns:
        complex [n, 2, K, N].
    """
    split = w.unflatten(-1, (2, -1)) @ basis.mH
    found: Tensor = torch.fft.fft(split.movedim(2, 1), dim=2, norm="ortho")
    return found


def from_angle_delay(coefficients: Tensor, basis: Tensor) -> Tensor:
    """The inverse of `angle_delay`."""
    split = torch.fft.ifft(coefficients, dim=2, norm="ortho").movedim(1, 2) @ basis
    found: Tensor = split.flatten(-2)
    return found


def unit(w: Tensor) -> Tensor:
    """Norm 1 in every sub-band."""
    found: Tensor = w / w.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return found


def by_node(node: Tensor, cell: Tensor) -> list[tuple[int, Tensor]]:
    """Which samples each node's weights serve: numbers of nodes, and of their samples.

    Args:
        node: whose weights each cell uses, int64 [cells].
        cell: of each sample, int64 [n].

    Raises:
        DefianceError: a cell is none of these.
    """
    if len(cell) and not 0 <= int(cell.min()) <= int(cell.max()) < len(node):
        raise DefianceError(
            f"cells {int(cell.min())} to {int(cell.max())}; the codec knows 0 to {len(node) - 1}"
        )
    own = node[cell]
    return [(number, (own == number).nonzero()[:, 0]) for number in own.unique().tolist()]
