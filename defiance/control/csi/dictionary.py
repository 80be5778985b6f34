"""A learned dictionary: the few paths of a precoder, one after the other, by beams that a cell has learned.

    w_hat_k ~ p (x) a_1 + sum over s > 1 of  e^(-j 2 pi d_s k / D) g_s (x) a_s

is an L-beam report whose beams a (one polarisation's ports) and whose coefficients p and g (one of each
polarisation) are learned, instead of laid out on grids: a residual vector quantiser (Juang and Gray 1982)
over delays. The device looks for the terms one after the other (matching pursuit); the free phases of
sub-bands make the first one's delay 0. The loss is 1 - SGCS of the sum, with the choices held fixed: its
gradient reaches beams and coefficients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from defiance.control.codebooks import dft_beams
from defiance.control.csi.reports import pack, unpack
from defiance.control.csi.targets import aligned, by_node, check_precoders, sgcs, unit
from defiance.learn.training import Parameters
from defiance.radio.arrays import Panel
from defiance.seeding import Stream

NEAR = 4
"""Delays of most power, of which the device looks for a beam."""


@dataclass(frozen=True)
class Dictionary:
    """A learned dictionary's shape.

    Attributes:
        panel: dual.
        subbands: K.
        stages: terms of a report, S.
        first_bits: log2 of how many beams the first term has.
        polarisation_bits: log2 of how many p.
        beam_bits: log2 of how many beams the later terms share.
        delay_bits: log2 of D, delays of these.
        gain_bits: log2 of how many g each of these has.
    """

    panel: Panel
    subbands: int
    stages: int
    first_bits: int = 7
    polarisation_bits: int = 6
    beam_bits: int = 6
    delay_bits: int = 4
    gain_bits: int = 7

    @property
    def widths(self) -> list[int]:
        """Bits of every field: the first beam and p; beam, delay and g of each later term."""
        later = [self.beam_bits, self.delay_bits, self.gain_bits] * (self.stages - 1)
        return [self.first_bits, self.polarisation_bits, *later]

    @property
    def bits(self) -> int:
        """Of one report."""
        return sum(self.widths)

    def initial(self, nodes: int, random: Stream) -> Parameters:
        """DFT beams, and coefficients drawn, the same for every node.

        Returns:
            Real and imaginary parts: `first` and `later` [nodes, beams, places, 2], `polarisation`
            [nodes, p, 2, 2] and `gain` [nodes, stages - 1, g, 2, 2].
        """
        generator = random.generator()

        def beams(bits: int) -> Tensor:
            rows = 1 << max(0, (bits - (self.panel.rows * self.panel.columns - 1).bit_length()) // 2)
            finest = dft_beams(self.panel, (rows, 2 * rows)).flatten(0, 1)
            return finest[torch.linspace(0, len(finest) - 1, 1 << bits).round().long()]

        gain = torch.randn(self.stages - 1, 1 << self.gain_bits, 2, 2, generator=generator)
        scale = 0.4 * 0.85 ** torch.arange(self.stages - 1)
        start = {
            "first": torch.view_as_real(beams(self.first_bits)),
            "later": torch.view_as_real(beams(self.beam_bits)),
            "polarisation": torch.view_as_real(_polarisations(self.polarisation_bits)),
            "gain": scale[:, None, None, None] * gain,
        }
        return {name: w.expand(nodes, *w.shape).clone() for name, w in start.items()}

    def chosen(self, parameters: Parameters, w: Tensor) -> list[Tensor]:
        """Numbers of every field, int64 [n] each, of one node's weights."""
        first, later, polarisation, gains = self._complex(parameters)
        numbers, split = torch.arange(len(w)), w.unflatten(-1, (2, -1))
        met = split @ first.mH  # [n, K, 2, beams]
        beam = _power(met).sum((1, 2)).argmax(-1)
        own = met[numbers, :, :, beam] @ polarisation.mH  # [n, K, p]
        kind = _power(own).sum(1).argmax(-1)
        size = own[numbers, :, kind].abs().mean(1).clamp(min=1e-3)
        target, found = w / size[:, None, None], [beam, kind]
        told = self._first(first[beam], polarisation[kind])
        over_band = self._delays()  # [K, D]
        for stage in range(self.stages - 1):
            target = aligned(target, told)
            rest = (target - told).unflatten(-1, (2, -1))
            delayed = torch.einsum("nkpt,kd->ndpt", rest, over_band.conj()) / self.subbands
            near = _power(delayed).sum((2, 3)).topk(NEAR, -1).indices
            met = delayed[numbers[:, None], near] @ later.mH  # [n, NEAR, 2, beams]
            best = _power(met).sum(2).flatten(1).argmax(-1)
            at, beam = best // len(later), best % len(later)
            delay, value = near[numbers, at], met[numbers, at, :, beam]
            gain = _power(value[:, None] - gains[stage]).sum(-1).argmin(-1)
            told = told + self._term(later[beam], over_band.T[delay], gains[stage, gain])
            found += [beam, delay, gain]
        return found

    def summed(self, parameters: Parameters, chosen: list[Tensor]) -> Tensor:
        """Precoders [n, K, ports] of chosen numbers, not of norm 1."""
        first, later, polarisation, gains = self._complex(parameters)
        w, over_band = self._first(first[chosen[0]], polarisation[chosen[1]]), self._delays()
        for stage in range(self.stages - 1):
            beam, delay, gain = chosen[2 + 3 * stage : 5 + 3 * stage]
            w = w + self._term(later[beam], over_band.T[delay], gains[stage, gain])
        return w

    def loss(self, parameters: Parameters, w: Tensor) -> Tensor:
        """1 - SGCS of every node, [nodes], on precoders complex [nodes, B, K, ports]."""
        found = []
        for number, own in enumerate(w):
            mine = {name: weight[number] for name, weight in parameters.items()}
            with torch.no_grad():
                chosen = self.chosen(mine, own)
            found.append(1 - sgcs(own, self.summed(mine, chosen)).mean())
        return torch.stack(found)

    def _complex(self, parameters: Parameters) -> list[Tensor]:
        first, later, polarisation, gain = (
            torch.view_as_complex(parameters[name].contiguous())
            for name in ("first", "later", "polarisation", "gain")
        )
        return [unit(first), unit(later), unit(polarisation), gain]

    def _delays(self) -> Tensor:
        count = 1 << self.delay_bits
        turns = -2 * math.pi / count * torch.arange(self.subbands)[:, None] * torch.arange(count)
        return torch.polar(torch.ones_like(turns), turns)

    def _first(self, beam: Tensor, polarisation: Tensor) -> Tensor:
        both = (polarisation[:, :, None] * beam[:, None]).flatten(1)
        return both[:, None].expand(-1, self.subbands, -1)

    @staticmethod
    def _term(beam: Tensor, over_band: Tensor, gain: Tensor) -> Tensor:
        both = (gain[:, :, None] * beam[:, None]).flatten(1)
        return over_band[..., None] * both[:, None]


def _power(values: Tensor) -> Tensor:
    return values.real.square() + values.imag.square()


def _polarisations(bits: int) -> Tensor:
    """Unit pairs, the first real: so many phases and shares of power, complex64 [2^bits, 2]."""
    phases = 1 << (bits + 1) // 2
    shares = (torch.arange(1 << bits // 2) + 0.5) / (1 << bits // 2) * math.pi / 2
    phase = 2 * math.pi / phases * torch.arange(phases)
    second = torch.polar(shares.sin()[:, None].expand(-1, phases).contiguous(), phase.expand(len(shares), -1))
    first = shares.cos()[:, None].expand(-1, phases).to(second.dtype)
    return torch.stack([first, second], -1).flatten(0, 1)


@dataclass(frozen=True)
class Learned:
    """A trained dictionary; cells of one node share it.

    Attributes:
        dictionary: its shape.
        parameters: as of `Dictionary.initial`.
        node: whose entries each cell uses, int64 [cells].
    """

    dictionary: Dictionary
    parameters: Parameters
    node: Tensor

    @property
    def bits(self) -> int:
        """Of one report."""
        return self.dictionary.bits

    def encode(self, w: Tensor, cell: Tensor) -> Tensor:
        """Matching pursuit."""
        check_precoders(w, self.dictionary.panel)
        found = torch.empty(len(w), self.bits, dtype=torch.uint8)
        for weights, at in self._groups(cell):
            for part in at.split(500):
                found[part] = pack(self.dictionary.chosen(weights, w[part]), self.dictionary.widths)
        return found

    def decode(self, bits: Tensor, cell: Tensor) -> Tensor:
        """The sum, norm 1."""
        shape = len(bits), self.dictionary.subbands, self.dictionary.panel.elements
        found = torch.empty(shape, dtype=torch.complex64)
        for weights, at in self._groups(cell):
            fields = unpack(bits[at], self.dictionary.widths, [1] * len(self.dictionary.widths))
            found[at] = unit(self.dictionary.summed(weights, [field[:, 0] for field in fields]))
        return found

    def _groups(self, cell: Tensor) -> list[tuple[Parameters, Tensor]]:
        return [
            ({name: w[number] for name, w in self.parameters.items()}, at)
            for number, at in by_node(self.node, cell)
        ]
