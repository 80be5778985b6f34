"""What the air gives to queues in a step: rates by link adaptation, resource blocks by round robin per cell.

Who waits is served at the radio quality of the step before. The uplink is reciprocal: a user is received as
well as it receives its cell, on as many blocks as its power is enough for,

    P = min(23 dBm, P0 + 10 log10(2^mu M) + alpha PL)        TS 38.213 clause 7.1.1, mu = 1, M blocks,

above the noise of the station and an interference that is a constant over it; the path loss PL is that of the
mean over the window of Qout. Background traffic takes the same share of the uplink as of the downlink.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from defiance.network import rates
from defiance.network.messages import loss_loop
from defiance.network.scheduling import ROUND_ROBIN, share_cell
from defiance.network.settings import BOLTZMANN_DBM_PER_HZ, RESOURCE_BLOCKS, RadioConfig
from defiance.network.state import CONNECTED, State
from defiance.network.world import World

BLOCK_HZ = 12 * 30e3
UNITS_DB = 10 * np.log10(2)
"""10 log10(2^mu) at 30 kHz: P0 is of 15 kHz."""


def free_share(world: World, config: RadioConfig) -> Tensor:
    """Resource blocks that background traffic leaves, `[W, C]`, as a share of the carrier."""
    return (1 - world.background_load).clamp(min=config.foreground_share).double()


class Air:
    """Both directions of a carrier."""

    def __init__(self, config: RadioConfig) -> None:
        noise_dbm = BOLTZMANN_DBM_PER_HZ + 10 * np.log10(BLOCK_HZ) + config.uplink_noise_figure_db
        self.step_s, self.rates = config.step_s, rates.loops(config)
        self.radio = (
            config.step_s,
            config.bandwidth_hz,
            config.tx_power_dbm,
            config.user_power_dbm,
            config.uplink_p0_dbm + UNITS_DB,
            config.uplink_alpha,
            noise_dbm + config.uplink_iot_db,
            RESOURCE_BLOCKS[config.bandwidth_hz],
            config.uplink_slots,
        )

    def grant(self, state: State, bits: Tensor, free: Tensor, *, uplink: bool) -> tuple[Tensor, Tensor]:
        """Rates at which queues are served in the next step.

        The blocks that a cell gives to those who wait go round, and all are served over the same part of the
        step: until the last has what it needs, or all of it.

        Args:
            state: after the step before.
            bits: that wait per user, `[W * U]` float64.
            free: share of the carrier that each cell may give away, `[W, C]` float64.
            uplink: the direction.

        Returns:
            bit/s of every user, and what the whole carrier would give it, `[W * U]`; 0 of who has no
            connection or isn't scheduled at its SINR.
        """
        rate_bps, full_bps = torch.zeros_like(bits), torch.zeros_like(bits)
        _grant(
            bits.numpy(), state.status.numpy(), state.serving.numpy(), state.ring.numpy(),
            state.window_steps.numpy(), state.signal_mw.numpy(), state.interference_mw.numpy(),
            state.olla_db.numpy(), free.numpy(), self.radio, self.rates, uplink,
            rate_bps.numpy(), full_bps.numpy(),
        )  # fmt: skip
        return rate_bps, full_bps

    def taken(self, state: State, sent_bits: NDArray[np.float64], full_bps: Tensor) -> Tensor:
        """Share of the carrier that bits sent in a step, `[W * U]`, took from every cell, `[W, C]`."""
        share = np.zeros(state.load.shape)
        _taken(state.serving.numpy(), sent_bits, full_bps.numpy(), self.step_s, share)
        return torch.from_numpy(share)


def losses(state: State, users: NDArray[np.int64]) -> Tensor:
    """How often a transmission to or from these users is lost, `[W * U]`; 0 of all others."""
    found = np.zeros(state.sinr.numel())
    _losses(state.sinr.numpy().reshape(-1), users, found)
    return torch.from_numpy(found)


@njit(nogil=True, cache=True)
def _losses(sinr, users, found):  # type: ignore[no-untyped-def]
    for user in users:
        found[user] = loss_loop(10 * math.log10(np.float64(sinr[user]))) if sinr[user] > 0 else 1.0


@njit(nogil=True, cache=True)
def _grant(  # type: ignore[no-untyped-def]
    bits, status, serving, ring, window_steps, signal_mw, interference_mw, olla_db, free, radio, loops,
    uplink, rate_bps, full_bps,
):  # fmt: skip
    step_s, bandwidth_hz = radio[0], radio[1]
    (worlds, users), cells, size = status.shape, free.shape[1], signal_mw.shape[2]
    first = np.zeros(worlds * cells + 1, np.int64)
    count = 0
    for q in range(len(bits)):
        w, u = q // users, q % users
        if bits[q] > 0 and status[w, u] == CONNECTED and window_steps[w, u] > 0:
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
        w, u = q // users, q % users
        if not (bits[q] > 0 and status[w, u] == CONNECTED and window_steps[w, u] > 0):
            continue
        slot = ring[w] - 1 if ring[w] > 0 else size - 1
        part = 1.0
        if uplink:
            mean_mw = 0.0
            for k in range(window_steps[w, u]):
                mean_mw += signal_mw[w, u, slot - k if slot >= k else slot - k + size]
            part, sinr[0] = _received(signal_mw[w, u, slot], mean_mw / window_steps[w, u], radio)
        else:
            sinr[0] = signal_mw[w, u, slot] / interference_mw[w, u, slot]
        reported[0] = sinr[0]
        rates.offer(sinr, reported, actual, known, olla_db[w, u], loops)
        full_bps[q] = bandwidth_hz * max(sinr[0], 0.0)
        k = following[w * cells + serving[w, u]]
        following[w * cells + serving[w, u]] += 1
        user[k], most[k] = q, part
        need[k] = min(bits[q] / (full_bps[q] * step_s), part) if full_bps[q] > 0 else 0.0
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


@njit(nogil=True, cache=True)
def _taken(serving, sent_bits, full_bps, step_s, share):  # type: ignore[no-untyped-def]
    users = serving.shape[1]
    for q in range(len(sent_bits)):
        if sent_bits[q] > 0 and full_bps[q] > 0:
            share[q // users, serving[q // users, q % users]] += sent_bits[q] / (full_bps[q] * step_s)


@njit(inline="always")
def _received(signal_mw, mean_mw, radio):  # type: ignore[no-untyped-def]
    """Share of the carrier's time and band that a user's power is enough for, and the SINR on it."""
    tx_dbm, most_dbm, target_dbm, alpha, disturbance_dbm, blocks, slots = radio[2:]
    wanted_dbm = target_dbm + alpha * (tx_dbm - 10 * np.log10(max(mean_mw, 1e-30)))
    used = min(max(np.floor(10 ** ((most_dbm - wanted_dbm) / 10)), 1.0), blocks)
    gain_db = 10 * np.log10(max(signal_mw, 1e-30)) - tx_dbm
    return slots * used / blocks, 10 ** ((min(wanted_dbm, most_dbm) + gain_db - disturbance_dbm) / 10)
