"""How good a link is: effective SINR, transport blocks and their error rates, from tables on the shelf.

```
 SINR per resource element ─▶ eesm ─▶ effective SINR ─┐
 MCS, resource elements ─▶ transport_block ─▶ bits ───┴▶ transport_error_rate
```

The error rate of a code block falls with the SINR in dB as a normal distribution does, because a code of
finite length fails when the channel's accumulated information falls short (Polyanskiy, Poor and Verdu, IEEE
Trans. Inf. Theory 56 (2010)). Its middle and its spread are fitted to the simulated error rates that Sionna
ships, whose grid of 1.6 to 1.8 dB is too wide to interpolate on (`benchmarks.bler_fit`). Shapes: M
indices of an MCS table, B = 5 simulated sizes of a code block. All SINRs are per resource element (Es/N0).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import torch
from torch import Tensor

BLOCK_BITS = (24, 100, 500, 1000, 2000)
"""Sizes of the simulated code blocks, CRC included."""

Modulation = Literal["qam64", "qam256"]

MCS: dict[Modulation, tuple[tuple[int, tuple[float, ...]], ...]] = {
    "qam64": (  # TS 38.214 table 5.1.3.1-1
        (2, (120, 157, 193, 251, 308, 379, 449, 526, 602, 679)),
        (4, (340, 378, 434, 490, 553, 616, 658)),
        (6, (438, 466, 517, 567, 616, 666, 719, 772, 822, 873, 910, 948)),
    ),
    "qam256": (  # TS 38.214 table 5.1.3.1-2
        (2, (120, 193, 308, 449, 602)),
        (4, (378, 434, 490, 553, 616, 658)),
        (6, (466, 517, 567, 616, 666, 719, 772, 822, 873)),
        (8, (682.5, 711, 754, 797, 841, 885, 916.5, 948)),
    ),
}
"""Modulation order and the code rates x 1024 that it is used with, in the order of the MCS index."""

_SMALL_TBS = (
    24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128, 136, 144, 152, 160, 168, 176, 184, 192, 208,
    224, 240, 256, 272, 288, 304, 320, 336, 352, 368, 384, 408, 432, 456, 480, 504, 528, 552, 576, 608, 640,
    672, 704, 736, 768, 808, 848, 888, 928, 984, 1032, 1064, 1128, 1160, 1192, 1224, 1256, 1288, 1320, 1352,
    1416, 1480, 1544, 1608, 1672, 1736, 1800, 1864, 1928, 2024, 2088, 2152, 2216, 2280, 2408, 2472, 2536,
    2600, 2664, 2728, 2792, 2856, 2976, 3104, 3240, 3368, 3496, 3624, 3752, 3824,
)  # fmt: skip
"""TS 38.214 table 5.1.3.2-1."""


@dataclass(frozen=True)
class McsTable:
    """An MCS table and what is known about its error rates.

    Attributes:
        modulation_order: bits per symbol, `[M]` int64.
        code_rate: information bits per coded bit, `[M]` float64.
        eesm_beta: of the exponential effective SINR mapping, `[M]` float64.
        snr_db: where half of the code blocks are lost, `[M, B]` float64.
        spread_db: standard deviation of the normal distribution, `[M, B]` float64.
    """

    modulation_order: Tensor
    code_rate: Tensor
    eesm_beta: Tensor
    snr_db: Tensor
    spread_db: Tensor

    @property
    def efficiency(self) -> Tensor:
        """Information bits per symbol, `[M]`."""
        return self.modulation_order * self.code_rate

    @property
    def gap(self) -> Tensor:
        """SINR that long blocks need over what Shannon's formula asks for, linear, `[M]`."""
        return 10 ** (self.snr_db[:, -1] / 10) / (2**self.efficiency - 1)


@cache
def mcs_table(modulation: Modulation) -> McsTable:
    """The PDSCH table of TS 38.214 clause 5.1.3.1 up to this modulation, named as RRC's `mcs-Table`."""
    with (resources.files("defiance.radio") / "data" / "bler.csv").open(encoding="utf-8") as file:
        lines = csv.DictReader(line for line in file if not line.startswith("#"))
        rows = {(int(row["modulation_order"]), float(row["code_rate_x1024"])): row for row in lines}
    keys = [(order, rate) for order, rates in MCS[modulation] for rate in rates]

    def column(name: str) -> list[float]:
        return [float(rows[key][name]) for key in keys]

    def columns(name: str) -> Tensor:
        return torch.tensor([column(f"{name}_{bits}") for bits in BLOCK_BITS], dtype=torch.float64).mT

    return McsTable(
        modulation_order=torch.tensor([order for order, _ in keys]),
        code_rate=torch.tensor([rate / 1024 for _, rate in keys], dtype=torch.float64),
        eesm_beta=torch.tensor(column("eesm_beta"), dtype=torch.float64),
        snr_db=columns("snr_db"),
        spread_db=columns("spread_db"),
    )


def eesm(sinr: Tensor, beta: Tensor | float, weight: Tensor | None = None) -> Tensor:
    """Exponential effective SINR mapping: -beta ln mean exp(-sinr / beta).

    The SINR of a flat channel on which a code would fail as often as on this one (R1-031303).

    Args:
        sinr: linear, of each resource element or group of them, `[..., R]`.
        beta: of the MCS, `[...]`.
        weight: how much of the block lies there, `[..., R]`, not 0 everywhere; by default alike.

    Returns:
        `[...]`, linear; between the least and the mean of `sinr` where there is weight.
    """
    beta = torch.as_tensor(beta, dtype=sinr.dtype, device=sinr.device)
    weight = torch.ones_like(sinr) if weight is None else weight.to(sinr.dtype)
    least = torch.where(weight > 0, sinr, torch.inf).amin(-1)
    excess = weight * torch.expm1(-(sinr - least[..., None]).clamp(min=0) / beta[..., None])
    return least - beta * torch.log1p(excess.sum(-1) / weight.sum(-1))


def transport_block_bits(modulation_order: Tensor, code_rate: Tensor, elements: Tensor | int) -> Tensor:
    """Information bits of a transport block on one layer, TS 38.214 clause 5.1.3.2.

    Args:
        modulation_order: `[...]`.
        code_rate: `[...]` float64.
        elements: resource elements of the allocation that carry data, `[...]`.

    Returns:
        `[...]` int64.
    """
    bits = elements * code_rate * modulation_order
    unit = 2.0 ** (torch.floor(torch.log2(bits.clamp(min=1))) - 6).clamp(min=3)
    small = (unit * torch.floor(bits / unit)).clamp(min=24).long()
    sizes = torch.tensor(_SMALL_TBS, device=small.device)
    small = sizes[torch.searchsorted(sizes, small).clamp(max=len(sizes) - 1)]
    unit = 2.0 ** torch.floor(torch.log2((bits - 24).clamp(min=1)) - 5)
    large = (unit * torch.floor((bits - 24) / unit + 0.5)).clamp(min=3840) + 24
    blocks = torch.where(
        code_rate <= 0.25, torch.ceil(large / 3816), torch.where(large > 8448, torch.ceil(large / 8424), 1.0)
    )
    large = (8 * blocks * torch.ceil(large / (8 * blocks)) - 24).long()
    return torch.where(bits <= 3824, small, large)


def code_blocks(transport_bits: Tensor, code_rate: Tensor) -> tuple[Tensor, Tensor]:
    """Code blocks of a transport block and the bits of each with CRC, TS 38.212 clauses 5.2.2, 7.2.1, 7.2.2.

    Args:
        transport_bits: `[...]` int64.
        code_rate: `[...]`.

    Returns:
        number of code blocks and bits per block, `[...]` int64.
    """
    with_crc = transport_bits + torch.where(transport_bits > 3824, 24, 16)
    second_graph = (transport_bits <= 292) | ((transport_bits <= 3824) & (code_rate <= 0.67))
    limit = torch.where(second_graph | (code_rate <= 0.25), 3840, 8448)
    blocks = torch.where(with_crc <= limit, 1, -(-with_crc // (limit - 24)))
    return blocks, torch.where(blocks > 1, with_crc // blocks + 24, with_crc)


def _at_block_bits(column: Tensor, bits: Tensor) -> Tensor:
    """Linear in the logarithm of the block's size between the simulated ones, `[..., B]` -> `[...]`."""
    at = torch.tensor(BLOCK_BITS, dtype=torch.float64, device=bits.device).log()
    x = bits.double().clamp(BLOCK_BITS[0], BLOCK_BITS[-1]).log()
    right = torch.searchsorted(at, x.contiguous()).clamp(1, len(BLOCK_BITS) - 1)
    part = (x - at[right - 1]) / (at[right] - at[right - 1])
    low, high = (column.gather(-1, i[..., None]).squeeze(-1) for i in (right - 1, right))
    return low + part * (high - low)


def block_error_curve(table: McsTable, mcs: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """SINR [dB] at which half of the code blocks are lost, and the spread [dB] around it.

    Beyond 2,000 bits the middle stays and the spread falls with the root of the size, as the normal
    approximation has it.

    Args:
        table: see `McsTable`.
        mcs: index, `[...]` int64.
        bits: of a code block with CRC, `[...]` int64.

    Returns:
        two of `[...]` float64.
    """
    mcs, bits = torch.broadcast_tensors(mcs, bits)
    beyond = (bits.double() / BLOCK_BITS[-1]).clamp(min=1).sqrt()
    spread = torch.exp(_at_block_bits(table.spread_db.log()[mcs], bits))
    return _at_block_bits(table.snr_db[mcs], bits), spread / beyond


def code_block_error_rate(table: McsTable, mcs: Tensor, bits: Tensor, sinr_db: Tensor) -> Tensor:
    """Error rate of one code block at an effective SINR, `[...]` float64; see `block_error_curve`."""
    middle, spread = block_error_curve(table, mcs, bits)
    rate: Tensor = torch.special.ndtr((middle - sinr_db) / spread)
    return rate


def transport_error_rate(table: McsTable, mcs: Tensor, elements: Tensor | int, sinr_db: Tensor) -> Tensor:
    """Share of transport blocks with a lost code block, 1 - (1 - BLER)^C.

    Args:
        table: see `McsTable`.
        mcs: index, `[...]` int64.
        elements: resource elements of the allocation that carry data, `[...]`.
        sinr_db: effective, `[...]`.

    Returns:
        `[...]` float64.
    """
    rate = table.code_rate[mcs]
    blocks, bits = code_blocks(transport_block_bits(table.modulation_order[mcs], rate, elements), rate)
    middle, spread = block_error_curve(table, mcs, bits)
    return -torch.expm1(blocks * torch.special.log_ndtr((sinr_db - middle) / spread))


def required_sinr_db(table: McsTable, elements: int, error_rate: float) -> Tensor:
    """Least effective SINR at which `transport_error_rate` is no more than this, `[M]` float64."""
    mcs = torch.arange(len(table.code_rate), device=table.code_rate.device)
    blocks, bits = code_blocks(
        transport_block_bits(table.modulation_order, table.code_rate, elements), table.code_rate
    )
    middle, spread = block_error_curve(table, mcs, bits)
    beyond: Tensor = torch.special.ndtri((1 - error_rate) ** (1 / blocks.double()))
    return middle + spread * beyond
