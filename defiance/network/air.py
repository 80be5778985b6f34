"""What the air gives to queues in a step: rates by link adaptation, resource blocks by round robin per cell.

Who waits is served at the radio quality of the step before. The uplink is reciprocal: a user is received as
well as it receives its cell, on as many blocks as its power is enough for,

    P = min(23 dBm, P0 + 10 log10(2^mu M) + alpha PL)        TS 38.213 clause 7.1.1, mu = 1, M blocks,

above the noise of the station and an interference that is a constant over it; the path loss PL is that of the
mean over the window of Qout. Background traffic takes the same share of the uplink as of the downlink.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from torch import Tensor

from defiance.network import rates
from defiance.network.messages import loss_loop
from defiance.network.queues import COMPILED
from defiance.network.scheduling import ROUND_ROBIN, share_cell
from defiance.network.settings import BOLTZMANN_DBM_PER_HZ, RESOURCE_BLOCKS, RadioConfig
from defiance.network.state import CONNECTED
from defiance.network.world import World

BLOCK_HZ = 12 * 30e3
UNITS_DB = 10 * np.log10(2)
"""10 log10(2^mu) at 30 kHz: P0 is of 15 kHz."""


def free_share(world: World, config: RadioConfig) -> Tensor:
    """Resource blocks that background traffic leaves, `[W, C]`, as a share of the carrier."""
    return (1 - world.background_load).clamp(min=config.foreground_share).double()


class Air(NamedTuple):
    """One direction of a carrier; see `RadioConfig`.

    Attributes:
        uplink: the direction.
        target_dbm: P0 of a block.
        disturbance_dbm: noise and interference that a station receives on a block.
        blocks: of the carrier.
        rates: `defiance.network.rates.loops`.
    """

    uplink: bool
    step_s: float
    bandwidth_hz: float
    tx_power_dbm: float
    user_power_dbm: float
    target_dbm: float
    alpha: float
    disturbance_dbm: float
    blocks: int
    uplink_slots: float
    rates: Any

    @classmethod
    def of(cls, config: RadioConfig, *, uplink: bool) -> Air:
        """Of a configuration's carrier."""
        noise_dbm = BOLTZMANN_DBM_PER_HZ + 10 * np.log10(BLOCK_HZ) + config.uplink_noise_figure_db
        return cls(
            uplink=uplink,
            step_s=config.step_s,
            bandwidth_hz=config.bandwidth_hz,
            tx_power_dbm=config.tx_power_dbm,
            user_power_dbm=config.user_power_dbm,
            target_dbm=config.uplink_p0_dbm + UNITS_DB,
            alpha=config.uplink_alpha,
            disturbance_dbm=noise_dbm + config.uplink_iot_db,
            blocks=RESOURCE_BLOCKS[config.bandwidth_hz],
            uplink_slots=config.uplink_slots,
            rates=rates.loops(config),
        )


@njit(**COMPILED)
def losses(sinr, waiting):  # type: ignore[no-untyped-def]
    """How often a transmission of those who wait is lost, `[W * U]`."""
    users, loss = sinr.shape[1], np.zeros(sinr.size)
    for i in range(len(waiting)):
        q = waiting[i].queue
        now = sinr[q // users, q % users]
        loss[q] = loss_loop(10 * math.log10(np.float64(now))) if now > 0 else 1.0
    return loss


@njit(**COMPILED)
def grant(bits, state, free, air, rate_bps, full_bps):  # type: ignore[no-untyped-def]
    """Rates at which queues are served in the next step.

    The blocks that a cell gives to those who wait go round, and all are served over the same part of the
    step: until the last has what it needs, or all of it.

    Args:
        bits: that wait per user, `[W * U]` float64.
        state: after the step before, arrays by name.
        free: share of the carrier that each cell may give away, `[W, C]` float64.
        air: the carrier's direction.
        rate_bps: zeros `[W * U]`; gets every user's; 0 stays of who has no connection or isn't scheduled at
            its SINR.
        full_bps: likewise; gets what the whole carrier would give a user.
    """
    status, serving, window_steps = state.status, state.serving, state.window_steps
    (worlds, users), cells, size = status.shape, free.shape[1], state.signal_mw.shape[2]
    first = np.zeros(worlds * cells + 1, np.int64)
    count = 0
    for q in range(len(bits)):
        if bits[q] > 0:
            w, u = q // users, q % users
            if status[w, u] == CONNECTED and window_steps[w, u] > 0:
                first[w * cells + serving[w, u] + 1] += 1
                count += 1
    if count == 0:
        return
    for c in range(worlds * cells):
        first[c + 1] += first[c]
    following, user = first.copy(), np.empty(count, np.int64)
    need, most, share, heap = np.empty(count), np.empty(count), np.empty(count), np.empty(count, np.int64)
    sinr, reported, actual, known = np.empty((4, 1), np.float32)
    for q in range(len(bits)):
        if bits[q] <= 0:
            continue
        w, u = q // users, q % users
        if status[w, u] != CONNECTED or window_steps[w, u] == 0:
            continue
        slot = state.ring[w] - 1 if state.ring[w] > 0 else size - 1
        part = 1.0
        if air.uplink:
            mean_mw = 0.0
            for k in range(window_steps[w, u]):
                mean_mw += state.signal_mw[w, u, slot - k if slot >= k else slot - k + size]
            part, sinr[0] = _received(state.signal_mw[w, u, slot], mean_mw / window_steps[w, u], air)
        else:
            sinr[0] = state.signal_mw[w, u, slot] / state.interference_mw[w, u, slot]
        reported[0] = sinr[0]
        rates.offer(sinr, reported, actual, known, state.olla_db[w, u], air.rates)
        full_bps[q] = air.bandwidth_hz * max(sinr[0], 0.0)
        k = following[w * cells + serving[w, u]]
        following[w * cells + serving[w, u]] += 1
        user[k], most[k] = q, part
        need[k] = min(bits[q] / (full_bps[q] * air.step_s), part) if full_bps[q] > 0 else 0.0
    for w in range(worlds):
        for c in range(cells):
            of = slice(first[w * cells + c], first[w * cells + c + 1])
            if of.start == of.stop:
                continue
            share_cell(ROUND_ROBIN, need[of], need[of], free[w, c], share[of], heap[of])
            busy = min(share[of].sum() / free[w, c], 1.0) if free[w, c] > 0 else 1.0
            for k in range(of.start, of.stop):
                q = user[k]
                if share[k] > 0:
                    rate_bps[q] = min(share[k] / busy, most[k]) * full_bps[q]


@njit(**COMPILED)
def take(serving, sent_bits, full_bps, step_s, share):  # type: ignore[no-untyped-def]
    """Adds to `share`, `[W, C]`, what bits sent in a step, `[W * U]`, took of every cell's carrier."""
    users = serving.shape[1]
    for q in range(len(sent_bits)):
        if sent_bits[q] > 0 and full_bps[q] > 0:
            share[q // users, serving[q // users, q % users]] += sent_bits[q] / (full_bps[q] * step_s)


@njit(inline="always")
def _received(signal_mw, mean_mw, air):  # type: ignore[no-untyped-def]
    """Share of the carrier's time and band that a user's power is enough for, and the SINR on it."""
    wanted_dbm = air.target_dbm + air.alpha * (air.tx_power_dbm - 10 * np.log10(max(mean_mw, 1e-30)))
    used = min(max(np.floor(10 ** ((air.user_power_dbm - wanted_dbm) / 10)), 1.0), air.blocks)
    gain_db = 10 * np.log10(max(signal_mw, 1e-30)) - air.tx_power_dbm
    sent_dbm = min(wanted_dbm, air.user_power_dbm)
    return air.uplink_slots * used / air.blocks, 10 ** ((sent_dbm + gain_db - air.disturbance_dbm) / 10)
