"""A learned dictionary: the few paths of a precoder, one after the other, by entries that a cell has learned.

    w_hat_k ~ a_1 + sum over s > 1 of  g_s e^(-j 2 pi d_s k / D) a_s

is an L-beam report whose beams, both polarisations of each, and whose gains are learned instead of laid out
on a grid: a residual vector quantiser (Juang and Gray 1982) over delays. The device looks for the entries
one after the other (matching pursuit); the free phases of sub-bands make the first one's gain 1 and its
delay 0. The loss is 1 - SGCS of the sum, with the choices held fixed: its gradient reaches entries and gains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from defiance.control.codebooks import dft_beams
from defiance.control.csi.reports import pack, unpack
from defiance.control.csi.targets import by_node, check_precoders, sgcs, unit
from defiance.learn.training import Parameters
from defiance.radio.arrays import Panel
from defiance.seeding import Stream


@dataclass(frozen=True)
class Dictionary:
    """A learned dictionary's shape.

    Attributes:
        panel: dual.
        subbands: K.
        stages: entries of a report, S.
        first_bits: log2 of how many entries the first choice has.
        entry_bits: of each later choice.
        delay_bits: log2 of D, delays of these.
        gain_bits: log2 of how many gains.
    """

    panel: Panel
    subbands: int
    stages: int
    first_bits: int = 10
    entry_bits: int = 8
    delay_bits: int = 4
    gain_bits: int = 6

    @property
    def widths(self) -> list[int]:
        """Bits of every field: the first entry; entry, delay and gain of each later one."""
        return [self.first_bits, *[self.entry_bits, self.delay_bits, self.gain_bits] * (self.stages - 1)]

    @property
    def bits(self) -> int:
        """Of one report."""
        return sum(self.widths)

    def initial(self, nodes: int, random: Stream) -> Parameters:
        """DFT beams with drawn polarisations, the same for every node.

        Returns:
            `first` [nodes, entries, ports, 2], `later` [nodes, entries, ports, 2], real and imaginary
            parts, and `gain` [nodes, stages - 1, gains, 2].
        """
        generator = random.generator()

        def entries(bits: int) -> Tensor:
            beams = dft_beams(self.panel, (2, 2)).flatten(0, 1)
            drawn = beams[torch.arange(1 << bits) % len(beams)]
            between = torch.view_as_complex(torch.randn(len(drawn), 2, 2, generator=generator))
            return torch.view_as_real(unit((between[..., None] * drawn[:, None]).flatten(1)))

        levels = 1 << (self.gain_bits - self.gain_bits // 2 - 1)
        phases = (1 << self.gain_bits) // levels
        size = torch.linspace(0.25, 0.85, levels)[:, None].expand(levels, phases)
        gain = torch.polar(
            size.contiguous(), (2 * math.pi / phases * torch.arange(phases)).expand(levels, -1)
        )
        start = {
            "first": entries(self.first_bits),
            "later": entries(self.entry_bits),
            "gain": torch.view_as_real(gain.flatten()).expand(max(0, self.stages - 1), -1, -1),
        }
        return {name: w.expand(nodes, *w.shape).clone() for name, w in start.items()}

    def chosen(self, parameters: Parameters, w: Tensor) -> list[Tensor]:
        """Numbers of every field, int64 [n] each, of one node's weights."""
        first, later = (unit(torch.view_as_complex(parameters[name])) for name in ("first", "later"))
        gains = torch.view_as_complex(parameters["gain"])
        met = w @ first.mH  # [n, K, entries]
        entry = met.abs().square().sum(1).argmax(-1)
        own = met[torch.arange(len(w)), :, entry]
        turned = w * torch.polar(torch.ones_like(own.real), -own.angle())[..., None]
        rest = turned / own.abs().mean(1)[:, None, None].clamp(min=1e-3) - first[entry][:, None]
        found = [entry]
        over_band = self._delays()  # [K, D]
        for stage in range(self.stages - 1):
            delayed = torch.einsum("nkp,kd->ndp", rest, over_band.conj()) / self.subbands
            met = (delayed @ later.mH).flatten(1)
            best = met.abs().argmax(-1)
            delay, entry = best // len(later), best % len(later)
            value = met.gather(1, best[:, None])
            gain = (value - gains[stage]).abs().argmin(-1)
            rest = rest - self._term(later[entry], over_band.T[delay], gains[stage, gain])
            found += [entry, delay, gain]
        return found

    def summed(self, parameters: Parameters, chosen: list[Tensor]) -> Tensor:
        """Precoders [n, K, ports] of chosen numbers, not of norm 1."""
        first, later = (unit(torch.view_as_complex(parameters[name])) for name in ("first", "later"))
        gains, over_band = torch.view_as_complex(parameters["gain"]), self._delays()
        w = first[chosen[0]][:, None].expand(-1, self.subbands, -1)
        for stage in range(self.stages - 1):
            entry, delay, gain = chosen[1 + 3 * stage : 4 + 3 * stage]
            w = w + self._term(later[entry], over_band.T[delay], gains[stage, gain])
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

    def _delays(self) -> Tensor:
        count = 1 << self.delay_bits
        turns = -2 * math.pi / count * torch.arange(self.subbands)[:, None] * torch.arange(count)
        return torch.polar(torch.ones_like(turns), turns)

    @staticmethod
    def _term(entry: Tensor, over_band: Tensor, gain: Tensor) -> Tensor:
        return gain[:, None, None] * over_band[..., None] * entry[:, None]


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
