"""Which MCS a sender takes, and what arrives: link adaptation with an outer loop, HARQ with combining.

```
 reported SINR - offset ─▶ select_mcs ─▶ transmissions ─▶ share lost ─▶ olla_step ─▶ offset
                                          combined by HARQ ─▶ bits that arrive
```

Functions are batch first and draw nothing: an error is 0 or 1, or the probability of one, and then what
follows is the mean. Combining takes an SINR per transmission, so that fading may be new on each; the look-up
of the network simulator, whose step is longer than HARQ's round trips, has the same on all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from defiance.radio.link_quality import (
    Modulation,
    mcs_table,
    required_sinr_db,
    transport_block_bits,
    transport_error_rate,
)

BLER_TARGET = 0.1  # what a CQI promises: TS 38.214 clause 5.2.2.1
TRANSMISSIONS = 4  # of a transport block, one for each redundancy version of TS 38.212 clause 5.4.2.1
OLLA_UP_DB = 1.0
OLLA_LIMIT_DB = 20.0
FIRST_DB, STEP_DB, POINTS = -20.0, 0.05, 1101  # SINRs of the look-up


def select_mcs(required_db: Tensor, sinr_db: Tensor) -> Tensor:
    """The highest MCS that keeps its error target, or the lowest one if none does.

    Args:
        required_db: SINR that each index needs, `[M]` (`link_quality.required_sinr_db`).
        sinr_db: effective, `[...]`.

    Returns:
        index, `[...]` int64.
    """
    at_or_above = required_db.flip(-1).cummin(-1).values.flip(-1)
    above = torch.searchsorted(at_or_above, sinr_db.to(required_db).contiguous(), right=True)
    return (above - 1).clamp(min=0)


def olla_step(
    offset_db: Tensor, error: Tensor, *, target: float = BLER_TARGET, up_db: float = OLLA_UP_DB
) -> Tensor:
    """The outer loop's offset after a transport block; the MCS is that of `sinr_db - offset_db`.

    Up after an error, down by `up_db target / (1 - target)` otherwise, so that it rests where the share of
    errors is the target (Sampath et al., VTC 1997; Pedersen et al., VTC 2005).

    Args:
        offset_db: before, `[...]`.
        error: 1 for a NACK, 0 for an ACK, or the probability of a NACK, `[...]`.
        target: share of first transmissions that may be lost.
        up_db: step after an error.

    Returns:
        `[...]`, within +-`OLLA_LIMIT_DB`.
    """
    moved = offset_db + up_db * (error - target) / (1 - target)
    return moved.clamp(-OLLA_LIMIT_DB, OLLA_LIMIT_DB)


def chase_sinr(sinr: Tensor) -> Tensor:
    """Effective SINR after each transmission of the same bits: maximum-ratio combining adds them.

    Args:
        sinr: linear, of each transmission, `[..., N]`.

    Returns:
        `[..., N]`, linear.
    """
    return sinr.cumsum(-1)


def incremental_sinr(sinr: Tensor, gap: Tensor | float) -> Tensor:
    """Effective SINR after each transmission of new parity bits: mutual information adds.

    A block is decoded once the sum of log2(1 + sinr/gap) reaches the bits per symbol of its first
    transmission (Caire and Tuninetti, IEEE Trans. Inf. Theory 47 (2001)); `gap` is the code's distance to
    Shannon. Gains the 3 dB of Chase at low SINR, more at high code rates. That bits repeat once the mother
    code is used up costs nothing at the SINRs where that happens, and is not modelled.

    Args:
        sinr: linear, of each transmission, `[..., N]`.
        gap: linear, `[...]` (`McsTable.gap`).

    Returns:
        `[..., N]`, linear.
    """
    gap = torch.as_tensor(gap, dtype=sinr.dtype, device=sinr.device)[..., None]
    return gap * torch.expm1(torch.log1p(sinr / gap).cumsum(-1))


def harq_throughput(error: Tensor) -> tuple[Tensor, Tensor]:
    """What HARQ delivers, by the renewal-reward theorem.

    Args:
        error: probability that a block is still lost after its first, second, ... transmission, `[..., N]`.

    Returns:
        blocks delivered per transmission, and share of blocks lost for good, `[...]`.
    """
    transmissions = 1 + error[..., :-1].sum(-1)
    return (1 - error[..., -1]) / transmissions, error[..., -1]


@dataclass(frozen=True)
class Lookup:
    """What every MCS delivers at an SINR, for the inner loop of a simulator.

    Attributes:
        required_db: SINR at which the first transmission keeps the target, rising, `[M]` float64.
        error: share of first transmissions that are lost, `[M, S]` float32.
        efficiency: bits delivered per resource element with data, HARQ included, `[M, S]` float32.
        eesm_beta: of the effective SINR, `[M]` float64.
    """

    required_db: Tensor
    error: Tensor
    efficiency: Tensor
    eesm_beta: Tensor

    def fractional_mcs(self, sinr_db: Tensor) -> Tensor:
        """Index between the two whose required SINRs enclose this, `[...]`: the sender uses both in turn."""
        sinr_db = sinr_db.contiguous()
        below = torch.searchsorted(self.required_db, sinr_db, right=True).sub(1)
        below = below.clamp(0, len(self.required_db) - 2)
        low, high = self.required_db[below], self.required_db[below + 1]
        return below + ((sinr_db - low) / (high - low)).clamp(0, 1)

    def at(self, mcs: Tensor, sinr: Tensor) -> tuple[Tensor, Tensor]:
        """Error and efficiency, linear between points, of a fractional index at a linear SINR, `[...]`."""
        place = (10 * torch.log10(sinr.clamp(min=1e-12)) - FIRST_DB) / STEP_DB
        place = place.clamp(0, POINTS - 1.001)
        i = place.long()
        part = (place - i).float()
        m = mcs.long().clamp(max=len(self.required_db) - 2)
        turn = (mcs - m).float()

        def read(column: Tensor) -> Tensor:
            low, high = (column[n, i] * (1 - part) + column[n, i + 1] * part for n in (m, m + 1))
            return low * (1 - turn) + high * turn

        return read(self.error), read(self.efficiency)

    def beta(self, mcs: Tensor) -> Tensor:
        """`eesm_beta` of a fractional index, `[...]`."""
        m = mcs.long().clamp(max=len(self.eesm_beta) - 2)
        return torch.lerp(self.eesm_beta[m], self.eesm_beta[m + 1], (mcs - m).double())


@cache
def lookup(modulation: Modulation, elements: int, device: torch.device | str = "cpu") -> Lookup:
    """The look-up of slots with so many resource elements for data; four transmissions at the same SINR."""
    table = mcs_table(modulation)
    sinr_db = FIRST_DB + STEP_DB * torch.arange(POINTS, dtype=torch.float64)
    mcs = torch.arange(len(table.code_rate))[:, None]
    sinr = (10 ** (sinr_db / 10)).expand(len(mcs), -1)
    combined = incremental_sinr(sinr[..., None].expand(*sinr.shape, TRANSMISSIONS), table.gap[:, None])
    error = transport_error_rate(table, mcs[..., None], elements, 10 * torch.log10(combined))
    delivered, _ = harq_throughput(error)
    bits = transport_block_bits(table.modulation_order, table.code_rate, elements)
    required_db = required_sinr_db(table, elements, BLER_TARGET).flip(0).cummin(0).values.flip(0)
    return Lookup(
        required_db=(required_db + 1e-6 * torch.arange(len(required_db))).to(device),
        error=error[..., 0].float().contiguous().to(device),
        efficiency=(delivered * bits[:, None] / elements).float().contiguous().to(device),
        eesm_beta=table.eesm_beta.to(device),
    )
