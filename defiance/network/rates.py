"""What the air offers a user: attenuated Shannon, or 5G NR's link adaptation; tensor program and loops.

    shannon         bandwidth x min(0.6 log2(1 + SINR), 7.4 bit/s/Hz)
    qam64, qam256   an MCS of TS 38.214 table 5.1.3.1-1 or -2, kept at 10 % of errors by the outer loop; HARQ

The attenuation of 0.6 is that of TR 36.942 annex A; the cap isn't (4.4 bit/s/Hz there, of LTE's 64QAM): it is
NR's highest, 256QAM at the rate 948/1024, reached at 37 dB. Below `least_sinr_db`, -10 dB as there, nobody is
scheduled.

A CQI is late and one for each sub-band (TS 38.214 clause 5.2.1.4), for the serving cell's fading there
`cqi_delay_s` ago. Users are ranked by what its MCS carries without errors. All that a user was given is then
one transport block with one MCS (clause 5.1.3), that for the effective SINR (EESM) of the CQIs, less the
outer loop's offset. The index lies between two of the table, which a step's 40 slots use in turn. Up to four
transmissions of a block see the same SINR; a step counts as one block for the outer loop, which moves by
the probability of its error: after steps in which something was sent, and not where the table ends, beyond
which no offset could change the index.
"""

from __future__ import annotations

import math
from collections import namedtuple
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from defiance.network.intrinsics import ray
from defiance.network.settings import DATA_SYMBOLS, SLOTS_PER_S, RadioConfig
from defiance.network.world import TRAVELLED_PER_TURN
from defiance.radio.link_adaptation import (
    BLER_TARGET,
    FIRST_DB,
    OLLA_LIMIT_DB,
    OLLA_UP_DB,
    POINTS,
    STEP_DB,
    Lookup,
    lookup,
)
from defiance.radio.link_quality import eesm

UNHEARD, NO_CONNECTION = -1.0, -2.0
"""Instead of a rate: a sub-band in which a user isn't scheduled, and a user who isn't in any."""

WITHOUT_ERRORS = 1e9
"""SINR at which an index delivers all that it carries."""

EESM_ROUNDS = 3
"""Beta follows from the index, which follows from the effective SINR: a fourth would move it by 1 %."""


def offered_rates(
    olla_db: Tensor, config: RadioConfig, sinr: Tensor, reported_sinr: Tensor
) -> tuple[Tensor, Tensor]:
    """Rate of the whole carrier at each sub-band's SINR with an MCS of its own, and the rate expected.

    Who reports less than `least_sinr_db` isn't scheduled (CQI 0, out of range: TS 38.214 table 5.2.2.1-2).
    Who reports too much is, and loses what it is sent.

    Args:
        olla_db: the outer loop's offset before the step, `[...]`: users of worlds, `[W, U]`, or streams.
        config: the carrier.
        sinr: during the step, linear, `[..., B]`.
        reported_sinr: what the CQI told, likewise.

    Returns:
        bit/s or `UNHEARD`; bit/s; `[..., B]`.
    """
    sinr, reported_sinr = sinr.double(), reported_sinr.double()
    heard = reported_sinr >= 10 ** (config.least_sinr_db / 10)
    if config.link_adaptation == "shannon":

        def rate_bps(sinr: Tensor) -> Tensor:
            efficiency = config.rate_attenuation * torch.log2(1 + sinr)
            return config.bandwidth_hz * efficiency.clamp(max=config.rate_max_bps_hz)

        return torch.where(heard, rate_bps(sinr), UNHEARD), rate_bps(reported_sinr)
    table = _lookup(config, sinr.device)
    known_db = 10 * torch.log10(reported_sinr.clamp(min=1e-12)) - olla_db[..., None]
    mcs = table.fractional_mcs(known_db)
    _, efficiency = table.at(mcs, sinr)
    _, expected = table.at(mcs, torch.full_like(sinr, WITHOUT_ERRORS))
    scale = SLOTS_PER_S * DATA_SYMBOLS * config.resource_elements
    return torch.where(heard, scale * efficiency, UNHEARD), scale * expected


def transport_blocks(
    olla_db: Tensor, config: RadioConfig, share: Tensor, sinr: Tensor, reported_sinr: Tensor
) -> tuple[Tensor, Tensor]:
    """Rate of what each user was given, with one MCS, and the error of a block.

    Args:
        olla_db: the outer loop's offset before the step, `[...]`.
        config: the carrier.
        share: of the carrier, in each sub-band, `[..., B]`.
        sinr: during the step, linear, likewise.
        reported_sinr: what the CQI told, likewise.

    Returns:
        bit/s; the error that the outer loop hears, its target where it is to rest; `[...]`.
    """
    sinr, reported_sinr = sinr.double(), reported_sinr.double().clamp(min=1e-12)
    granted = share.sum(-1)
    weight = torch.where(granted[..., None] > 0, share, 1.0)
    table = _lookup(config, sinr.device)

    def index(sinr: Tensor, offset_db: Tensor) -> Tensor:
        return table.fractional_mcs(10 * torch.log10(sinr.clamp(min=1e-12)) - offset_db)

    mcs = (weight * index(reported_sinr, olla_db[..., None])).sum(-1) / weight.sum(-1)
    for _ in range(EESM_ROUNDS):
        mcs = index(eesm(reported_sinr, table.beta(mcs), weight), olla_db)
    error, efficiency = table.at(mcs, eesm(sinr, table.beta(mcs), weight))
    last = len(table.required_db) - 1
    stuck = ((mcs <= 0) & (error > BLER_TARGET)) | ((mcs >= last) & (error < BLER_TARGET))
    scale = SLOTS_PER_S * DATA_SYMBOLS * config.resource_elements
    return granted * scale * efficiency, torch.where(stuck, BLER_TARGET, error)


def _lookup(config: RadioConfig, device: torch.device | str) -> Lookup:
    """Of a slot of the whole carrier."""
    assert config.link_adaptation != "shannon"
    return lookup(config.link_adaptation, DATA_SYMBOLS * config.resource_elements, device)


_Loops = namedtuple(
    "_Loops", ["least_sinr", "attenuation", "most", "required_db", "error", "efficiency", "beta"]
)


@lru_cache(16)
def loops(config: RadioConfig) -> Any:
    """What the loops read, rates in bit/s per hertz of the carrier; without an MCS, they are Shannon's."""
    shannon = 10 ** (config.least_sinr_db / 10), config.rate_attenuation, config.rate_max_bps_hz
    if config.link_adaptation == "shannon":
        none = np.empty((0, 0), np.float32)
        return _Loops(*shannon, np.empty(0), none, none, np.empty(0))
    table = _lookup(config, "cpu")
    per_hz = SLOTS_PER_S * DATA_SYMBOLS * config.resource_elements / config.bandwidth_hz
    efficiency = (table.efficiency * per_hz).numpy()
    columns = table.required_db.numpy(), table.error.numpy(), efficiency, table.eesm_beta.numpy()
    return _Loops(*shannon, *columns)


@njit(inline="always", fastmath=True)
def link_rays(w, u, cell, turns, specular, world, cosine, sine):  # type: ignore[no-untyped-def]
    """Writes the rays of a link at these turns, `[N]`; a last, specular one has this amplitude, others 1."""
    travelled = np.int32(np.int64(turns * TRAVELLED_PER_TURN))
    direction, phase = world.fading_direction[w, u], world.fading_phase[w, u]
    rays = len(cosine)
    for n in range(rays):
        k = cell * rays + n
        cosine[n], sine[n] = ray(travelled, direction[k], phase[k])
    if world.rice_factor.size:
        cosine[rays - 1] *= specular
        sine[rays - 1] *= specular


@njit(inline="always", fastmath=True)
def _band_power(band, phasors, cosine, sine):  # type: ignore[no-untyped-def]
    """Power of the rays' sum in a sub-band; see `band_phasors`."""
    x, y = np.float32(0), np.float32(0)
    for n in range(len(cosine)):
        turn = phasors[band, n]
        x += cosine[n] * turn.real - sine[n] * turn.imag
        y += cosine[n] * turn.imag + sine[n] * turn.real
    return x * x + y * y


@njit(inline="always", fastmath=True)
def mean_power(phasors, cosine, sine):  # type: ignore[no-untyped-def]
    """Power of the rays' sum over the whole carrier."""
    power = np.float32(0)
    for band in range(len(phasors)):
        power += _band_power(band, phasors, cosine, sine)
    return power / np.float32(len(phasors))


@njit(inline="always", fastmath=True)
def band_sinr(scale, phasors, cosine, sine, sinr):  # type: ignore[no-untyped-def]
    """SINR in every sub-band, `[B]`, of rays with this mean SINR each."""
    for band in range(len(sinr)):
        sinr[band] = scale * _band_power(band, phasors, cosine, sine)


@njit(inline="always", fastmath=True)
def _db(x):  # type: ignore[no-untyped-def]
    return 10 * math.log10(max(np.float64(x), 1e-12))


@njit(inline="always", fastmath=True)
def fractional_mcs(sinr_db, loops):  # type: ignore[no-untyped-def]
    """`Lookup.fractional_mcs`, as the lower index and the part of the upper one."""
    required_db = loops.required_db
    m = 0
    while m < len(required_db) - 2 and required_db[m + 1] <= sinr_db:
        m += 1
    part = (sinr_db - required_db[m]) / (required_db[m + 1] - required_db[m])
    return m, min(max(part, 0.0), 1.0)


@njit(inline="always", fastmath=True)
def _at(table, m, part, sinr_db):  # type: ignore[no-untyped-def]
    """`Lookup.at` of one table."""
    place = (sinr_db - FIRST_DB) / STEP_DB
    place = min(max(place, 0.0), POINTS - 1.001)
    i = int(place)
    right = place - i
    low = table[m, i] * (1 - right) + table[m, i + 1] * right
    high = table[m + 1, i] * (1 - right) + table[m + 1, i + 1] * right
    return low * (1 - part) + high * part


@njit(inline="always", fastmath=True)
def offer(sinr, reported, actual, known, olla_db, loops):  # type: ignore[no-untyped-def]
    """`offered_rates` of one user: turns SINRs, `[B]`, into bit/s/Hz in place, keeps a copy."""
    if len(loops.required_db) == 0:
        for band in range(len(sinr)):
            known = reported[band] if len(reported) > 0 else sinr[band]
            rate = min(loops.most, loops.attenuation * math.log2(1 + sinr[band]))
            sinr[band] = rate if known >= loops.least_sinr else UNHEARD
        for band in range(len(reported)):
            reported[band] = min(loops.most, loops.attenuation * math.log2(1 + reported[band]))
        return
    for band in range(len(sinr)):
        actual[band], known[band] = sinr[band], reported[band]
        m, part = fractional_mcs(_db(reported[band]) - olla_db, loops)
        rate = _at(loops.efficiency, m, part, _db(sinr[band]))
        sinr[band] = rate if reported[band] >= loops.least_sinr else UNHEARD
        reported[band] = _at(loops.efficiency, m, part, 10 * math.log10(WITHOUT_ERRORS))


@njit(inline="always", fastmath=True)
def _effective(sinr, share, index, loops):  # type: ignore[no-untyped-def]
    """`eesm` of one user with the beta of an index."""
    m = min(int(index), len(loops.beta) - 2)
    beta = loops.beta[m] + (loops.beta[m + 1] - loops.beta[m]) * (index - m)
    least, excess, weight = np.float32(1e30), 0.0, 0.0
    for band in range(len(sinr)):
        if share[band] > 0:
            least = min(least, sinr[band])
    for band in range(len(sinr)):
        if share[band] > 0:
            excess += share[band] * math.expm1((least - sinr[band]) / beta)
            weight += share[band]
    return least - beta * math.log1p(excess / weight)


@njit(inline="always", fastmath=True)
def transport_block(share, sinr, reported, olla_db, loops):  # type: ignore[no-untyped-def]
    """`transport_blocks` of one user with these shares, `[B]`: their sum, its bit/s/Hz, and the error."""
    index, granted = 0.0, 0.0
    for band in range(len(sinr)):
        m, part = fractional_mcs(_db(reported[band]) - olla_db, loops)
        index += share[band] * (m + part)
        granted += share[band]
    if granted <= 0:
        return granted, 0.0, 0.0
    index /= granted
    for _ in range(EESM_ROUNDS):
        m, part = fractional_mcs(_db(_effective(reported, share, index, loops)) - olla_db, loops)
        index = m + part
    sinr_db = _db(_effective(sinr, share, index, loops))
    error = _at(loops.error, m, part, sinr_db)
    highest = len(loops.required_db) - 2
    too_low, too_high = m == 0 and part <= 0, m == highest and part >= 1
    if (too_low and error > BLER_TARGET) or (too_high and error < BLER_TARGET):
        error = BLER_TARGET
    return granted, _at(loops.efficiency, m, part, sinr_db), error


@njit(inline="always")
def olla_loop(offset_db, error):  # type: ignore[no-untyped-def]
    """`olla_step` of one user."""
    moved = offset_db + OLLA_UP_DB * (error - BLER_TARGET) / (1 - BLER_TARGET)
    return min(max(moved, -OLLA_LIMIT_DB), OLLA_LIMIT_DB)
