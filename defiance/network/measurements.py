"""What users measure and report, and what a decision may see of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from torch import Tensor

from defiance.network.intrinsics import bits_of, float_of
from defiance.network.scheduling import LOOP
from defiance.network.settings import RadioConfig
from defiance.network.state import State, but

RSRP_FLOOR_DBM = RadioConfig.rsrp_floor_dbm
"""Weakest RSRP a user detects, unless the configuration says otherwise."""


@dataclass(frozen=True)
class Observation:
    """What a decision may see.

    Attributes:
        rsrp_dbm: last measurement per cell, `[W, U, C]`.
        serving: serving cell, `[W, U]`.
        fresh: whether this measurement reached the decider, `[W, U]`.
        steps: steps since the start.
        period_s: time between two decisions.
        interval_s: time between this measurement and the one before; 0 if nothing was measured since the last
            decision.
        floor_dbm: stands in `rsrp_dbm` for a cell that was not heard or not reported.
        load: mean share of PRBs of every cell that stations last told each other over Xn, `[W, C]`; 0 before
            the first time.
        prepared: cells whose conditional configuration the device holds, `[W, U, C]`.
    """

    rsrp_dbm: Tensor
    serving: Tensor
    fresh: Tensor
    steps: int
    period_s: float = 0.1
    interval_s: float = 0.1
    floor_dbm: float = RSRP_FLOOR_DBM
    load: Tensor | None = None
    prepared: Tensor | None = None


def measure(state: State, config: RadioConfig) -> State:
    """Layer-1 filtering: mean received power per resource element since the last measurement; starts anew."""
    mean = state.rsrp_sum_mw / state.measured_steps.clamp(min=1)[:, None, None]
    rsrp = 10 * torch.log10((mean / config.resource_elements).clamp(min=1e-20))
    return but(unmeasured(state), rsrp_dbm=rsrp.clamp(min=config.rsrp_floor_dbm))


def unmeasured(state: State) -> State:
    """The state from which a new measurement begins."""
    return but(
        state,
        rsrp_sum_mw=torch.zeros_like(state.rsrp_sum_mw),
        measured_steps=torch.zeros_like(state.measured_steps),
    )


def l3_weight(k: Tensor | float, period_s: float) -> Tensor | float:
    """Weight a of TS 38.331 clause 5.5.3.2 for the filter coefficient k and measurements so far apart.

    a = 1/2^(k/4) at one measurement per 200 ms; at another rate it is adapted so that the filter keeps its
    time constant, as the clause demands.
    """
    a: Tensor | float = 2.0 ** (k * -0.25)
    return 1 - (1 - a) ** (period_s / 0.2)


def l3_filter(filtered_dbm: Tensor, measured_dbm: Tensor, k: Tensor | float, period_s: float) -> Tensor:
    """Layer-3 filtering of TS 38.331 clause 5.5.3.2: F = (1 - a) F + a M, with a as in `l3_weight`."""
    return filtered_dbm + l3_weight(k, period_s) * (measured_dbm - filtered_dbm)


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


@njit(**LOOP, fastmath={"contract", "reassoc"})
def measure_users(w, state, radio, rsrp_dbm):  # type: ignore[no-untyped-def]
    """`measure` of a world in place, into `rsrp_dbm`, `[W, U, C]`; `radio` by the names of `kernel`'s."""
    per_element = np.float32(1 / (max(state.measured_steps[w], 1) * radio.resource_elements))
    links = rsrp_dbm.shape[1] * rsrp_dbm.shape[2]
    sums_mw, measured_dbm = state.rsrp_sum_mw[w].reshape(links), rsrp_dbm[w].reshape(links)
    for k in range(links):
        rsrp = np.float32(10) * log10(max(sums_mw[k] * per_element, np.float32(1e-20)))
        measured_dbm[k] = max(rsrp, radio.floor_dbm)
        sums_mw[k] = 0
    state.measured_steps[w] = 0


@njit(inline="always")
def log10(x):  # type: ignore[no-untyped-def]
    """log10 of a normal float32: exponent, and of the mantissa a polynomial of 7th order; error < 2e-7."""
    bits = bits_of(x)
    exponent = np.float32((bits >> np.int32(23)) - np.int32(127))
    m = float_of(np.int32((bits & np.int32(0x7FFFFF)) | np.int32(0x3F800000))) - np.float32(1)
    high = np.float32(0.19429427) + m * (np.float32(-0.079557688) + m * np.float32(0.015529904))
    low = np.float32(0.4735534) + m * (np.float32(-0.32590194) + m * high)
    log2 = exponent + m * (np.float32(1.4426678) + m * (np.float32(-0.72058547) + m * low))
    return np.float32(math.log10(2)) * log2
