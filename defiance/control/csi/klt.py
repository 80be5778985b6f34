"""The Karhunen-Loeve codec: principal components, bits by reverse water-filling, Lloyd-Max quantisers.

It is to the learned codecs what a tuned rule is to a learned policy: it learns from the same precoders.
Phases are turned so that precoders are smooth over the band and the first component is real; what is left
are 2 D - 1 real components, each with a scalar quantiser of its own. Every bit goes to the component whose
error it lessens most, which is reverse water-filling (Cover and Thomas, clause 10.3.3) with the quantisers'
own errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from defiance.control.csi.reports import pack, unpack
from defiance.control.csi.targets import aligned, by_node, check_precoders, unit
from defiance.errors import DefianceError
from defiance.radio.arrays import Panel

COMPONENTS = 48
"""D, complex components that may get bits."""
MOST_BITS = 6
"""Of one real component."""
LLOYD_STEPS = 25


@dataclass(frozen=True)
class Klt:
    """A fitted codec; cells of one group share it.

    Attributes:
        panel: dual.
        subbands: K.
        parameters: `basis` complex64 [groups, K x ports, D]; `levels` float32 [groups, 2 D, 2^MOST_BITS],
            of each real component, ascending, of which the first 2^widths are used; `widths` int64 [groups,
            2 D], bits of each; `group` int64 [cells].
    """

    panel: Panel
    subbands: int
    parameters: Mapping[str, Tensor]

    @staticmethod
    def fit(panel: Panel, w: Tensor, cell: Tensor, group: Tensor, bits: int) -> Klt:
        """Learn from precoders.

        Args:
            panel: dual.
            w: complex [n, K, ports].
            cell: int64 [n].
            group: which quantiser each cell uses, int64 [cells].
            bits: of a report.

        Raises:
            DefianceError: a group has no precoders, or the codec has no use for so many bits.
        """
        check_precoders(w, panel)
        found: dict[str, list[Tensor]] = {"basis": [], "levels": [], "widths": []}
        for number in range(int(group.max()) + 1):
            own = w[group[cell] == number]
            if len(own) < 2:
                raise DefianceError(
                    f"group {number} of the KLT codec has {len(own)} precoders; pool more cells"
                )
            x = aligned(own).flatten(1)
            basis = torch.linalg.eigh(x.mH @ x)[1].flip(-1)[:, :COMPONENTS]
            values = _components(x, basis.conj())
            tables, errors = _lloyd_max(values)
            widths = _allotted(errors, bits)
            found["basis"].append(basis.conj())
            found["levels"].append(tables[widths, torch.arange(len(widths))])
            found["widths"].append(widths)
        return Klt(panel, w.shape[1], {name: torch.stack(v) for name, v in found.items()} | {"group": group})

    @property
    def bits(self) -> int:
        """Of one report."""
        return int(self.parameters["widths"][0].sum())

    def encode(self, w: Tensor, cell: Tensor) -> Tensor:
        """Components of the cell's group, rounded to their nearest levels."""
        check_precoders(w, self.panel)
        x = aligned(w).flatten(1)
        found = torch.empty(len(w), self.bits, dtype=torch.uint8)
        for number, own in by_node(self.parameters["group"], cell):
            values = _components(x[own], self.parameters["basis"][number])
            widths = self.parameters["widths"][number]
            fields = []
            for at, width in enumerate(widths.tolist()):
                levels = self.parameters["levels"][number, at, : 1 << width].contiguous()
                edges = (levels[1:] + levels[:-1]) / 2
                fields.append(torch.searchsorted(edges, values[:, at].contiguous()))
            found[own] = pack(fields, widths.tolist())
        return found

    def decode(self, bits: Tensor, cell: Tensor) -> Tensor:
        """Sum of components, norm 1."""
        found = torch.empty(len(bits), self.subbands, self.panel.elements, dtype=torch.complex64)
        for number, own in by_node(self.parameters["group"], cell):
            widths = self.parameters["widths"][number].tolist()
            fields = unpack(bits[own], widths, [1] * len(widths))
            levels = self.parameters["levels"][number]
            values = torch.stack([levels[at, field[:, 0]] for at, field in enumerate(fields)], -1)
            components = torch.view_as_complex(values.unflatten(-1, (-1, 2)).contiguous())
            flat = components @ self.parameters["basis"][number].mH
            found[own] = flat.unflatten(-1, (self.subbands, -1))
        return unit(found)


def _components(x: Tensor, basis: Tensor) -> Tensor:
    """Real and imaginary parts of the components, [n, 2 D]; the first component is turned to be real."""
    met = x @ basis
    met = met * torch.polar(torch.ones(len(met)), -met[:, 0].angle())[:, None]
    return torch.view_as_real(met).flatten(1)


def _lloyd_max(values: Tensor) -> tuple[Tensor, Tensor]:
    """Scalar quantisers of every column by Lloyd's iteration, from quantiles on.

    Returns:
        Levels ascending [MOST_BITS + 1, columns, 2^MOST_BITS], and mean squared errors [MOST_BITS + 1,
        columns].
    """
    ordered = values.sort(0).values.T.contiguous().double()  # [columns, n]
    columns, n = ordered.shape
    sums = torch.nn.functional.pad(ordered.cumsum(1), (1, 0))
    squares = torch.nn.functional.pad(ordered.square().cumsum(1), (1, 0))
    tables = torch.zeros(MOST_BITS + 1, columns, 1 << MOST_BITS)
    errors = torch.zeros(MOST_BITS + 1, columns)
    for width in range(MOST_BITS + 1):
        count = 1 << width
        at = ((torch.arange(count) + 0.5) / count * n).long().clamp(max=n - 1)
        levels = ordered[:, at]
        for _ in range(LLOYD_STEPS + 1):
            edges = torch.searchsorted(ordered, (levels[:, 1:] + levels[:, :-1]) / 2)
            edges = torch.cat([edges.new_zeros(columns, 1), edges, edges.new_full((columns, 1), n)], 1)
            inside = edges.diff(dim=1)
            total = sums.gather(1, edges).diff(dim=1)
            means = total / inside.clamp(min=1)
            levels = torch.where(inside > 0, means, levels).sort(1).values
        power = squares.gather(1, edges).diff(dim=1)
        errors[width] = ((power - 2 * levels * total + inside * levels.square()).sum(1) / n).float()
        tables[width, :, :count] = levels.float()
    return tables, errors


def _allotted(errors: Tensor, bits: int) -> Tensor:
    """Bits of every component, int64 [columns]: each bit goes where it lessens the error most."""
    widths = torch.zeros(errors.shape[1], dtype=torch.int64)
    gain = -errors.diff(dim=0)
    gain = torch.cat([gain, torch.full_like(gain[:1], -torch.inf)])
    for _ in range(bits):
        best = gain.gather(0, widths[None])[0].argmax()
        if not bool(gain[widths[best], best].isfinite()):
            raise DefianceError(f"the KLT codec has no use for {bits} bits; give at most {int(widths.sum())}")
        widths[best] += 1
    return widths
