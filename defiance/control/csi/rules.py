"""Rules of 5G NR for channel feedback: Type I, and an L-beam report like enhanced Type II.

Both have one signature with their learned rivals, `Feedback`: `encode` on the device, `decode` at the
station.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Protocol

import torch
from torch import Tensor

from defiance.control.codebooks import COPHASES, cophased, dft_beams
from defiance.control.csi.reports import choice_bits, pack, rank, unpack, unrank
from defiance.control.csi.targets import aligned, check_precoders, sgcs, spatial_basis, unit
from defiance.errors import DefianceError
from defiance.radio.arrays import Panel

OVERSAMPLING = 4
"""O_1 = O_2 of table 5.2.2.2.1-2 for panels of more than one row and column."""
REFERENCE_STEPS = 15
"""Reference amplitudes 2^(-k/4), k = 0 ... 14 (table 5.2.2.2.5-2; the sixteenth is reserved)."""


class Feedback(Protocol):
    """A way of telling the precoder in so many bits."""

    @property
    def bits(self) -> int:
        """Of one report."""

    def encode(self, w: Tensor, cell: Tensor) -> Tensor:
        """On the device: precoders complex [n, K, ports] of these cells int64 [n] -> uint8 [n, bits]."""

    def decode(self, bits: Tensor, cell: Tensor) -> Tensor:
        """At the base station: uint8 [n, bits] -> complex64 [n, K, ports], norm 1 in each sub-band."""


@dataclass(frozen=True)
class TypeOne:
    """Type I single-panel codebook, rank 1, codebookMode 1 (TS 38.214 clause 5.2.2.2.1).

    One oversampled DFT beam for the band (i_1,1 and i_1,2), a phase between the polarisations in every
    sub-band, or one for the band (i_2).

    Attributes:
        panel: dual.
        subbands: K.
        wideband: one i_2 for the band.
    """

    panel: Panel
    subbands: int
    wideband: bool = False

    @property
    def bits(self) -> int:
        """log2(N_1 O_1) + log2(N_2 O_2), and 2 bits per i_2."""
        return sum(self._widths[:2]) + 2 * (1 if self.wideband else self.subbands)

    @property
    def _widths(self) -> tuple[int, int, int]:
        rows, columns = self.panel.rows * OVERSAMPLING, self.panel.columns * OVERSAMPLING
        return (rows - 1).bit_length(), (columns - 1).bit_length(), 2

    def encode(self, w: Tensor, cell: Tensor) -> Tensor:
        """The beam and phases that meet most of w's power."""
        check_precoders(w, self.panel)
        grid = dft_beams(self.panel, (OVERSAMPLING, OVERSAMPLING))
        beams = cophased(grid).flatten(0, 1)  # [B, phases, ports]
        met = torch.einsum("bcp,nkp->nkbc", beams.conj(), w).abs().square()
        if self.wideband:
            met = met.sum(1, keepdim=True)
        beam = met.amax(-1).sum(1).argmax(-1)
        phase = met[torch.arange(len(w)), :, beam].argmax(-1)
        columns = self.panel.columns * OVERSAMPLING
        return pack([beam // columns, beam % columns, phase], self._widths)

    def decode(self, bits: Tensor, cell: Tensor) -> Tensor:
        """The codebook's entries."""
        counts = (1, 1, 1 if self.wideband else self.subbands)
        row, column, phase = unpack(bits, self._widths, counts)
        rows, columns = self.panel.rows * OVERSAMPLING, self.panel.columns * OVERSAMPLING
        grid = cophased(dft_beams(self.panel, (OVERSAMPLING, OVERSAMPLING)), COPHASES)
        row, column = row.clamp(max=rows - 1), column.clamp(max=columns - 1)
        return grid[row, column, phase].expand(-1, self.subbands, -1)


@dataclass(frozen=True)
class LBeams:
    """An L-beam report like enhanced Type II, rank 1: TS 38.214 clause 5.2.2.2.5, TS 38.212 6.3.2.1.2.

    L beams of one of O_1 O_2 orthogonal DFT bases, the same for both polarisations (i_1,1 and i_1,2); M
    taps of a DFT over the sub-bands, the first one that of the strongest coefficient (i_1,6); K_0 of the 2
    L M coefficients, named by a bitmap (i_1,7), the strongest of them by i_1,8; of the other polarisation a
    reference amplitude of 4 bits (i_2,3); of each coefficient but the strongest an amplitude in steps of 3
    dB (i_2,4) and a phase (i_2,5). The standard's combinations have 3 and 4 bits for these; here all
    numbers are free, so that they can be tuned. Exactly K_0 coefficients are sent; their number (part 1 of
    the report) is booked all the same.

    Attributes:
        panel: dual.
        subbands: K (N_3 with one PMI per sub-band).
        beams: L.
        taps: M.
        coefficients: K_0.
        amplitude_bits, phase_bits: of i_2,4 and i_2,5.
    """

    panel: Panel
    subbands: int
    beams: int
    taps: int
    coefficients: int
    amplitude_bits: int = 3
    phase_bits: int = 4

    def __post_init__(self) -> None:
        places = self.panel.rows * self.panel.columns
        if not (
            1 <= self.beams <= places
            and 1 <= self.taps <= self.subbands
            and 1 <= self.coefficients <= 2 * self.beams * self.taps
        ):
            raise DefianceError(
                f"an L-beam report of L = {self.beams} of {places} beams, M = {self.taps} of {self.subbands} "
                f"taps and {self.coefficients} coefficients; coefficients are 1 to 2 L M"
            )

    @property
    def _fields(self) -> tuple[tuple[int, int], ...]:
        """Width and count of every field, in the order of the report."""
        places = self.panel.rows * self.panel.columns
        count = (self.coefficients - 1).bit_length()
        return (
            (count, 1),  # how many coefficients
            ((OVERSAMPLING**2 - 1).bit_length(), 1),  # i_1,1
            (choice_bits(places, self.beams), 1),  # i_1,2
            (choice_bits(self.subbands - 1, self.taps - 1), 1),  # i_1,6
            (1, 2 * self.beams * self.taps),  # i_1,7
            (count, 1),  # i_1,8
            (4, 1),  # i_2,3
            (self.amplitude_bits, self.coefficients - 1),  # i_2,4
            (self.phase_bits, self.coefficients - 1),  # i_2,5
        )

    @property
    def bits(self) -> int:
        """Of one report."""
        return sum(width * count for width, count in self._fields)

    def encode(self, w: Tensor, cell: Tensor) -> Tensor:
        """Project, keep the strongest, turn the free phases to what is kept, and round."""
        check_precoders(w, self.panel)
        n, numbers = len(w), torch.arange(len(w))
        w = aligned(w).to(torch.complex64)
        bases = spatial_basis(self.panel, OVERSAMPLING)
        split = w.unflatten(-1, (2, -1))
        power = torch.einsum("nkpt,qbt->nqbkp", split, bases.conj()).abs().square().sum((-1, -2))
        kept = power.topk(self.beams, -1)
        basis = kept.values.sum(-1).argmax(-1)
        beams = kept.indices[numbers, basis].sort(-1).values
        vectors = bases[basis[:, None], beams]  # [n, L, N]
        first = None
        for turns in range(3):
            spectrum = _spectrum(w, vectors)  # [n, 2L, K]
            if first is None:
                first = spectrum.abs().amax(1).argmax(-1)
                shift = (torch.arange(self.subbands) + first[:, None]) % self.subbands
                ramp = torch.fft.fft(torch.nn.functional.one_hot(first, self.subbands).to(w.dtype))
                w = w * ramp[..., None]  # e^(-j 2 pi f t / K): the strongest tap comes first
                spectrum = spectrum.gather(-1, shift[:, None].expand_as(spectrum))
                others = spectrum[..., 1:].abs().square().sum(1).topk(self.taps - 1, -1).indices
                taps = torch.cat([torch.zeros(n, 1, dtype=torch.int64), 1 + others.sort(-1).values], 1)
            chosen = spectrum.gather(-1, taps[:, None].expand(-1, 2 * self.beams, -1)).flatten(1)
            size = chosen.abs()
            at = size.topk(self.coefficients, -1).indices.sort(-1).values
            if turns < 2:
                kept_only = torch.zeros_like(chosen).scatter(1, at, chosen.gather(1, at))
                w = aligned(w, self._assembled(kept_only, vectors, taps))
        values = chosen.gather(1, at)
        strongest = values.abs().argmax(-1)
        values = values / values.gather(1, strongest[:, None])
        other = (at // self.taps // self.beams) != (
            at.gather(1, strongest[:, None]) // self.taps // self.beams
        )
        reference = (values.abs() * other).amax(-1)
        reference = (-4 * reference.clamp(min=1e-6).log2()).round().long().clamp(0, REFERENCE_STEPS - 1)
        scale = torch.where(other, 2.0 ** (-reference[:, None] / 4), 1.0)
        levels = 1 << self.amplitude_bits
        relative = values.abs() / scale
        amplitude = (relative[..., None] - 2.0 ** (-torch.arange(levels) / 2)).abs().argmin(-1)
        steps = 1 << self.phase_bits
        phase = (values.angle() * (steps / (2 * torch.pi))).round().long() % steps
        rest = _without(strongest, self.coefficients)
        bitmap = torch.zeros(n, 2 * self.beams * self.taps, dtype=torch.int64).scatter(1, at, 1)
        fields = [
            torch.full((n,), self.coefficients - 1),
            basis,
            rank(beams, self.panel.rows * self.panel.columns),
            rank(taps[:, 1:] - 1, self.subbands - 1),
            bitmap,
            strongest,
            reference,
            amplitude.gather(1, rest),
            phase.gather(1, rest),
        ]
        return pack(fields, [width for width, _ in self._fields])

    def decode(self, bits: Tensor, cell: Tensor) -> Tensor:
        """Sum of beams over taps, norm 1."""
        fields = unpack(bits, *zip(*self._fields, strict=True))
        _, basis, beams, taps, bitmap, strongest, reference, amplitude, phase = fields
        places, n = self.panel.rows * self.panel.columns, len(bits)
        at = bitmap.argsort(dim=-1, descending=True, stable=True)[:, : self.coefficients]
        strongest = strongest[:, 0].clamp(max=self.coefficients - 1)
        rest = _without(strongest, self.coefficients)
        turned = torch.polar(
            2.0 ** (-amplitude.float() / 2), phase.float() * (2 * torch.pi / (1 << self.phase_bits))
        )
        values = torch.ones(n, self.coefficients, dtype=torch.complex64).scatter(1, rest, turned)
        other = (at // self.taps // self.beams) != (
            at.gather(1, strongest[:, None]) // self.taps // self.beams
        )
        values = torch.where(other, values * 2.0 ** (-reference.float() / 4), values)
        chosen = torch.zeros(n, 2 * self.beams * self.taps, dtype=torch.complex64).scatter(1, at, values)
        bases = spatial_basis(self.panel, OVERSAMPLING)
        vectors = bases[basis, unrank(beams[:, 0], places, self.beams)]
        later = 1 + unrank(taps[:, 0], self.subbands - 1, self.taps - 1)
        at_taps = torch.cat([torch.zeros(n, 1, dtype=torch.int64), later], 1)
        return unit(self._assembled(chosen, vectors, at_taps))

    def _assembled(self, chosen: Tensor, vectors: Tensor, taps: Tensor) -> Tensor:
        """Precoders [n, K, ports] of coefficients [n, 2 L M], beams [n, L, N] and taps [n, M]."""
        spectrum = torch.zeros(len(chosen), 2 * self.beams, self.subbands, dtype=torch.complex64)
        spectrum = spectrum.scatter(
            -1, taps[:, None].expand(-1, 2 * self.beams, -1), chosen.unflatten(1, (-1, self.taps))
        )
        over_band = torch.fft.ifft(spectrum, norm="ortho").unflatten(1, (2, -1))
        return torch.einsum("nplk,nlt->nkpt", over_band, vectors).flatten(-2)


def tuned(panel: Panel, w: Tensor, budget_bits: int, *, tried: int = 160, judged: int = 1000) -> LBeams:
    """The L-beam report of at most so many bits that does best on training precoders.

    All combinations of L, M and the widths of amplitudes and phases, each with as many coefficients as fit,
    are tried on some precoders, and the best ones judged on more.

    Args:
        panel: dual.
        w: training precoders, complex [n, K, ports].
        budget_bits: at most.
        tried: on how many precoders all are tried.
        judged: on how many the best ones are judged.

    Raises:
        DefianceError: no combination is that short.
    """
    subbands = w.shape[1]
    found = []
    for beams, taps, amplitude, phase in product((1, 2, 3, 4, 6), (1, 2, 3, 4, 6), (2, 3), (2, 3, 4)):
        fits = None
        for coefficients in range(1, 2 * beams * taps + 1):
            report = LBeams(panel, subbands, beams, taps, coefficients, amplitude, phase)
            if report.bits > budget_bits:
                break
            fits = report
        if fits is not None and fits.coefficients >= beams:
            found.append(fits)
    if not found:
        raise DefianceError(f"no L-beam report has at most {budget_bits} bits; give at least 24")
    some = w[torch.linspace(0, len(w) - 1, min(tried, len(w))).long()]
    more = w[torch.linspace(0, len(w) - 1, min(judged, len(w))).long()]
    best = sorted(found, key=lambda report: -_quality(report, some))[:5]
    return max(best, key=lambda report: _quality(report, more))


def _quality(report: Feedback, w: Tensor) -> float:
    nowhere = torch.zeros(len(w), dtype=torch.int64)
    return float(sgcs(w, report.decode(report.encode(w, nowhere), nowhere)).mean())


def _spectrum(w: Tensor, vectors: Tensor) -> Tensor:
    """Of beams [n, L, N] in both polarisations over the delays, [n, 2L, K]."""
    met = torch.einsum("nkpt,nlt->nplk", w.unflatten(-1, (2, -1)), vectors.conj())
    found: Tensor = torch.fft.fft(met.flatten(1, 2), norm="ortho")
    return found


def _without(place: Tensor, count: int) -> Tensor:
    """All places but one, ascending, int64 [n, count - 1]."""
    others = torch.arange(count - 1).expand(len(place), -1)
    return others + (others >= place[:, None])
