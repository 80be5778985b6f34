"""Scheduling: who gets how many of a cell's PRBs in a step, as a tensor program and as a loop over one cell.

    equal_share         all who want something have the same share; what they don't need stays unused
    round_robin         the same share for all who need it: max-min fair, nothing stays unused
    proportional_fair   in order of expected rate over past mean rate, each as much as it needs
    max_rate            in order of expected rate, each as much as it needs

Proportional fairness is that of Jalali, Padovani and Pankaj (VTC 2000). The last two choose anew in every
sub-band, by the rate at the SINR that was reported: of `cqi_delay_s` ago. One instant stands for a step of
20 ms, which is 40 slots; what a user is given is a share of all of them. What it needs follows the rate that
it really has, because its cell sees its queue shrink slot by slot.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from defiance.network.rates import NO_CONNECTION, olla_loop, transport_block
from defiance.network.settings import SCHEDULERS, RadioConfig
from defiance.network.traffic import depart_loop

EQUAL_SHARE, ROUND_ROBIN, PROPORTIONAL_FAIR, MAX_RATE = range(len(SCHEDULERS))

LEAST_SHARE = 1e-6
"""Of the carrier in a step: less is rounding, not a block that was sent."""

LEAST_MEAN_BPS = 1.0
"""Past mean rate of a user that has never been served, for proportional fairness."""

# Without Numba's reference counts, which are atomic and would be taken for every array and call: they take
# longer than all the rest. So a loop allocates nothing, and what it gets outlives the call.
LOOP: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "_nrt": False,
    "forceinline": True,  # a call passes some hundred numbers
}


@lru_cache(16)
def band_phasors(rays: int, specular: bool, delay_spread_s: float, config: RadioConfig) -> Tensor:
    """How the rays' phases turn from the carrier's centre to the centre of every sub-band, `[B, rays]`.

    Scatterer n arrives after a delay, the n-th quantile of an exponential distribution, scaled to the delay
    spread: the delay profile is exponential, as in TR 38.901 clause 7.5 step 5. A specular ray comes first.

    Args:
        rays: of a link.
        specular: whether the last of them is the specular one.
        delay_spread_s: root mean square, of the scatterers.
        config: bandwidth, sub-bands.
    """
    bands, scatterers = config.bands, rays - specular
    quantile = (torch.arange(scatterers, dtype=torch.float64) + 0.5) / scatterers
    delay = -torch.log1p(-quantile)
    spread = (delay - delay.mean()).square().mean().sqrt().clamp(min=1e-12)
    centre_hz = ((torch.arange(bands, dtype=torch.float64) + 0.5) / bands - 0.5) * config.bandwidth_hz
    delay_s = torch.cat([delay * (delay_spread_s / spread), delay.new_zeros(int(specular))])
    turns = torch.outer(centre_hz, delay_s)
    return torch.polar(torch.ones_like(turns), -2 * math.pi * turns).to(torch.complex64)


def shares(scheduler: str, need: Tensor, priority: Tensor, cell: Tensor, pool: Tensor) -> Tensor:
    """Shares of the carrier that users get, `[W, U]` float64.

    Args:
        scheduler: one of `SCHEDULERS`.
        need: share that a user could use, `[W, U]`: 0 without traffic or connection, or unheard; inf with a
            full buffer.
        priority: who comes first where order counts, `[W, U]`; at equality the user of the lower number.
        cell: serving cell, `[W, U]` int64.
        pool: share of the carrier that each cell may give away, `[W, C]`.
    """
    need, pool = need.double(), pool.double()
    active = need > 0

    def per_cell(values: Tensor) -> Tensor:
        return torch.zeros_like(pool).scatter_add_(1, cell, values.double())

    if scheduler == "equal_share":
        return torch.minimum(need, (pool / per_cell(active).clamp(min=1)).gather(1, cell)) * active
    if scheduler == "round_robin":
        satisfied = ~active
        while True:
            left = pool - per_cell(torch.where(satisfied, need, 0.0))
            level = (left / per_cell(~satisfied).clamp(min=1)).gather(1, cell)
            more = ~satisfied & (need <= level)
            if not more.any():
                return torch.where(satisfied, need, level)
            satisfied = satisfied | more
    best = priority.argsort(dim=1, descending=True, stable=True)
    order = best.gather(1, cell.gather(1, best).argsort(dim=1, stable=True))
    wanted = torch.minimum(need, pool.gather(1, cell))
    per_cell_wanted = per_cell(wanted)
    cells_before = per_cell_wanted.cumsum(1) - per_cell_wanted
    ordered, of = wanted.gather(1, order), cell.gather(1, order)
    before = ordered.cumsum(1) - ordered - cells_before.gather(1, of)
    given = torch.minimum((pool.gather(1, of) - before).clamp(min=0), ordered)
    return torch.zeros_like(need).scatter_(1, order, given)


@njit(**LOOP)
def share_cell(scheduler, need, priority, pool, share, heap):  # type: ignore[no-untyped-def]
    """`shares` for the users of one cell; writes `share`; all `[n]`, `heap` is room."""
    count = len(need)
    if scheduler == EQUAL_SHARE:
        active = 0
        for k in range(count):
            if need[k] > 0:
                active += 1
        for k in range(count):
            share[k] = min(need[k], pool / max(active, 1))
    elif scheduler == ROUND_ROBIN:
        # the level rises as those who need less are satisfied
        level, satisfied = -1.0, 0
        while satisfied < count:
            left, now = pool, 0
            for k in range(count):
                if need[k] <= level:
                    left -= need[k]
                    now += 1
            if level >= 0 and now == satisfied:
                break
            satisfied = now
            level = left / (count - now) if now < count else np.inf
        for k in range(count):
            share[k] = min(need[k], level)
    else:
        # a heap: only those who are served need be in order
        for k in range(count):
            heap[k] = k
        for root in range(count // 2 - 1, -1, -1):
            _sink(heap, priority, root, count)
        left = pool
        share[:] = 0.0
        while count > 0 and left > 0:
            best = heap[0]
            share[best] = min(need[best], left)
            left -= share[best]
            count -= 1
            heap[0] = heap[count]
            _sink(heap, priority, 0, count)


@njit(**LOOP)
def _sink(heap, priority, root, size):  # type: ignore[no-untyped-def]
    """Restores a heap below a new root: the highest priority, at equality the lower number, is on top."""
    moved = heap[root]
    while 2 * root + 1 < size:
        child = 2 * root + 1
        if child + 1 < size and _earlier(heap[child + 1], heap[child], priority):
            child += 1
        if not _earlier(heap[child], moved, priority):
            break
        heap[root] = heap[child]
        root = child
    heap[root] = moved


@njit(inline="always")
def _earlier(a, b, priority):  # type: ignore[no-untyped-def]
    return priority[a] > priority[b] or (priority[a] == priority[b] and a < b)


@njit(inline="always")
def _wants(w, u, world, state):  # type: ignore[no-untyped-def]
    return world.demand_bps[w, u] + state.queue_bits[w, u] + state.bulk_bits[w, u] > 0


@njit(inline="always")
def _own_bps(w, u, world, state, radio):  # type: ignore[no-untyped-def]
    """What a user's own traffic wants."""
    return world.demand_bps[w, u] + state.queue_bits[w, u] / radio.step_s


@njit(**LOOP, fastmath={"contract"})
def schedule_world(w, world, state, radio, air, table):  # type: ignore[no-untyped-def]
    """Shares the PRBs that background traffic leaves in one world; ends its step in place.

    Args:
        w: number of the world.
        world: by the names of `World`.
        state: by the names of `State`.
        radio: configuration in linear units and steps.
        air: bit/s/Hz that every band offers, `UNHEARD` or `NO_CONNECTION`, those expected, SINRs, and those
            reported; `[W, U, B]`, of no bands where nobody asks.
        table: see `desk`.
    """
    efficiency, expected, sinr, reported = air
    adapts = sinr.shape[2] > 0
    _, users, bands = efficiency.shape
    cells = state.load.shape[1]
    # users with a connection who want something, cell by cell
    (first, following, place, user, heap), notes = table
    wanted_bps, sent_bps, mean_bps, rate_bps, need, priority, share, granted = notes
    first[:] = 0
    for u in range(users):
        if efficiency[w, u, 0] > NO_CONNECTION and _wants(w, u, world, state):
            first[state.serving[w, u] + 1] += 1
    for c in range(cells):
        first[c + 1] += first[c]
        following[c] = first[c]
    for u in range(users):
        place[u] = -1
        if efficiency[w, u, 0] > NO_CONNECTION and _wants(w, u, world, state):
            k = following[state.serving[w, u]]
            following[state.serving[w, u]] += 1
            place[u], user[k] = k, u
            sent_bps[k] = 0
            wanted_bps[k] = _own_bps(w, u, world, state, radio) + state.bulk_bits[w, u] / radio.step_s
            mean_bps[k] = max(state.average_bps[w, u], LEAST_MEAN_BPS)
            for band in range(bands):
                rate_bps[band, k] = radio.bandwidth_hz * efficiency[w, u, band]
    for c in range(cells):
        background = world.background_load[w, c]
        reserved = state.reserved[w, c]
        pool = (max(np.float32(1) - background, np.float32(radio.foreground_share)) - reserved) / bands
        of = slice(first[c], first[c + 1])
        used = np.float32(0)
        for band in range(bands):
            for k in range(first[c], first[c + 1]):
                rate = rate_bps[band, k]
                need[k] = wanted_bps[k] / rate if wanted_bps[k] > 0 and rate >= 0 else 0.0
                if radio.scheduler >= PROPORTIONAL_FAIR:
                    known = expected[w, user[k], band]
                    priority[k] = known / mean_bps[k] if radio.scheduler == PROPORTIONAL_FAIR else known
            share_cell(radio.scheduler, need[of], priority[of], pool, share[of], heap[of])
            for k in range(first[c], first[c + 1]):
                sent = share[k] * rate_bps[band, k]
                sent_bps[k] += sent
                if rate_bps[band, k] >= 0:
                    wanted_bps[k] = wanted_bps[k] - sent if share[k] < need[k] else 0.0
                used = np.float32(used + share[k])
                if adapts:
                    granted[k, band] = share[k]
        state.load[w, c] = min(np.float32(1), background + reserved + used)
        state.load_steps[w, c] += state.load[w, c]
    end_s = (state.clock_steps[w] + 1) * radio.step_s
    for u in range(users):
        k = place[u]
        sent = sent_bps[k] if k >= 0 else 0.0
        if adapts and k >= 0:
            offset_db = state.olla_db[w, u]
            given, per_hz, error = transport_block(
                granted[k], sinr[w, u], reported[w, u], offset_db, radio.rate
            )
            asked_bps = _own_bps(w, u, world, state, radio) + state.bulk_bits[w, u] / radio.step_s
            sent = min(radio.bandwidth_hz * given * per_hz, asked_bps)
            if given > LEAST_SHARE:
                state.olla_db[w, u] = olla_loop(offset_db, error)
        bulk = 0.0
        if state.bulk_bits[w, u] > 0 and sent > 0:
            bulk = min(
                max(sent - _own_bps(w, u, world, state, radio), 0.0) * radio.step_s, state.bulk_bits[w, u]
            )
            state.bulk_bits[w, u] -= bulk
        state.bits[w, u] += sent * radio.step_s - bulk
        if radio.scheduler == PROPORTIONAL_FAIR:
            state.average_bps[w, u] += (sent - state.average_bps[w, u]) * radio.fairness
        if world.arrival_s.shape[2]:
            depart_loop(w, u, world, state, sent * radio.step_s - bulk, end_s)
    state.ring[w] = state.ring[w] + 1 if state.ring[w] + 1 < state.signal_mw.shape[2] else 0
    state.measured_steps[w] += 1
    state.clock_steps[w] += 1


def desk(users: int, cells: int, bands: int) -> tuple[Any, ...]:
    """Room for `schedule_world`: where cells begin, then what it notes of the users, cell by cell."""
    first, following = np.empty(cells + 1, int), np.empty(cells, int)
    place, user, heap = np.empty((3, users), int)
    wanted_bps, sent_bps, mean_bps, need, priority, share = np.empty((6, users))
    rate_bps, granted = np.empty((bands, users)), np.empty((users, bands))
    notes = wanted_bps, sent_bps, mean_bps, rate_bps, need, priority, share, granted
    return (first, following, place, user, heap), notes
