"""What users measure and report, and what a decision may see of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from defiance.network.settings import RadioConfig
from defiance.network.state import State

RSRP_FLOOR_DBM = RadioConfig.rsrp_floor_dbm
"""Weakest RSRP a user detects, unless the configuration says otherwise."""


@dataclass(frozen=True)
class Observation:
    """What a decision may see.

    Attributes:
        rsrp_dbm: last measurement per cell, `[W, U, C]`; `RadioConfig.rsrp_floor_dbm` where a cell was not
            heard or not reported.
        serving: serving cell, `[W, U]`.
        fresh: whether this measurement reached the decider, `[W, U]`.
        steps: steps since the start.
        interval_s: time between this measurement and the one before; 0 if nothing was measured since the last
            decision, None if every decision has its measurement.
        load: mean share of PRBs of every cell that stations last told each other over Xn, `[W, C]`.
        prepared: cells whose conditional configuration the device holds, `[W, U, C]`.
    """

    rsrp_dbm: Tensor
    serving: Tensor
    fresh: Tensor
    steps: int
    interval_s: float | None = None
    load: Tensor | None = None
    prepared: Tensor | None = None


def measure(state: State, config: RadioConfig) -> State:
    """Layer-1 filtering: mean received power per resource element since the last measurement; starts anew."""
    mean = state.rsrp_sum_mw / state.measured_steps.clamp(min=1)[:, None, None]
    rsrp = 10 * torch.log10((mean / config.resource_elements).clamp(min=1e-20))
    return replace(unmeasured(state), rsrp_dbm=rsrp.clamp(min=config.rsrp_floor_dbm))


def unmeasured(state: State) -> State:
    """The state from which a new measurement begins."""
    return replace(
        state,
        rsrp_sum_mw=torch.zeros_like(state.rsrp_sum_mw),
        measured_steps=torch.zeros_like(state.measured_steps),
    )


def l3_filter(filtered_dbm: Tensor, measured_dbm: Tensor, k: Tensor | float, period_s: float) -> Tensor:
    """Layer-3 filtering of TS 38.331 clause 5.5.3.2: F = (1 - a) F + a M.

    a = 1/2^(k/4) at one measurement per 200 ms; at another rate it is adapted so that the filter keeps its
    time constant, as the clause demands.
    """
    a = torch.as_tensor(k, dtype=torch.float32).mul(-0.25).exp2()
    a = 1 - (1 - a) ** (period_s / 0.2)
    return filtered_dbm + a * (measured_dbm - filtered_dbm)


def reported(
    rsrp_dbm: Tensor, serving: Tensor, neighbours: int = 8, floor_dbm: float = RSRP_FLOOR_DBM
) -> Tensor:
    """What a periodic report carries (TS 38.331): serving cell and strongest neighbours, in 1 dB steps.

    Args:
        rsrp_dbm: `[W, U, C]`.
        serving: `[W, U]`.
        neighbours: at most so many others.
        floor_dbm: stands for every other cell.

    Returns:
        `[W, U, C]`.
    """
    is_serving = torch.nn.functional.one_hot(serving.long(), rsrp_dbm.shape[-1]).bool()
    ranked = rsrp_dbm.masked_fill(is_serving, torch.inf)
    count = min(neighbours + 1, rsrp_dbm.shape[-1])
    weakest = ranked.topk(count, dim=-1).values[..., -1:]
    return torch.where(ranked >= weakest, rsrp_dbm.round(), floor_dbm)
