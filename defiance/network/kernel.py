"""The network's step as one fused CPU loop (numba): the same function as `reference.step`, many times faster.

A test holds both equal within 1e-4. A step has two halves: users move, measure and follow their procedures,
each on its own (`_advance`), then cells share their resources among them (`schedule_world`). So threads take
whole worlds where there are enough of them, and else parts of a world's users; the result is the same for any
number of threads. The threads are Python's: numba's own layer on OpenMP resets torch's number of threads, and
its idle ones spin.
"""

from __future__ import annotations

import math
import os
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from defiance.network import rates
from defiance.network.intrinsics import VECTOR, bits_of, float_of, prefetch, ray, sum_rays
from defiance.network.scheduling import LOOP, band_phasors, desk, schedule_world
from defiance.network.settings import FADING_SHARE, SCHEDULERS, SPEED_OF_LIGHT_MPS, RadioConfig
from defiance.network.state import CONNECTED, EXECUTING, NONE, REESTABLISHING, State
from defiance.network.traffic import arrive_loop
from defiance.network.world import TRAVELLED_PER_TURN, World
from defiance.scene.streets import ROUTE_SPACING_M

LINKS_PER_THREAD = 2**17
"""Fewer user-cell links than these, about a millisecond of a step, aren't worth a thread's start."""

# What the loop reads: arrays and numbers by their dataclass's names, the configuration in linear units and
# whole steps.
_World = namedtuple("_World", [*(f.name for f in fields(World)), "map_shape"])  # type: ignore[misc]
_State = namedtuple("_State", [f.name for f in fields(State)])  # type: ignore[misc]
_Radio = namedtuple(
    "_Radio",
    [
        "step_s",
        "waves_per_m",
        "environment_mps",
        "tx_power_dbm",
        "noise_mw",
        "fading_share",
        "unheard_mw",
        "qout",
        "qin",
        "qin_steps",
        "access",
        "n310",
        "n311",
        "gap_breaks",
        "t310_steps",
        "execution_steps",
        "repeat_steps",
        "reestablishment_steps",
        "suitable_dbm",
        "ping_pong_steps",
        "bandwidth_hz",
        "rate",
        "cqi_delay_steps",
        "foreground_share",
        "scheduler",
        "fairness",
        "scatterers",
        "phasors",
    ],
)


def step(world: World, state: State, config: RadioConfig, steps: int = 1) -> State:
    """Advances all worlds by `steps` steps; see `reference.step`, whose arguments and result it shares."""
    return step_in_place(world, state.clone(), config, steps)


def step_in_place(world: World, state: State, config: RadioConfig, steps: int = 1) -> State:
    """`step` for a caller that owns the state and wants no copy: overwrites its tensors and returns it."""
    return stepping(world, config)(state, steps)


def stepping(world: World, config: RadioConfig) -> Callable[[State, int], State]:
    """`step_in_place` of this world, `(state, steps) -> state`, for a caller that steps it many times."""
    worlds, users, cells = world.shape
    rays, bands = world.fading_direction.shape[3], config.bands
    specular = bool(world.rice_factor.numel())
    phasors = band_phasors(rays, specular, world.delay_spread_s, config).numpy()
    flat, radio = _flat(world), _radio(config, world.carrier_hz, rays - specular, phasors)
    adapted = bands if config.adapts else 0
    bands_noted = bands, bands if config.reports else 0, adapted, adapted
    air = tuple(np.empty((worlds, users, count), np.float32) for count in bands_noted)
    threads = torch.get_num_threads()
    splits = threads > worlds and users * cells >= threads * LINKS_PER_THREAD
    parts = threads if splits else min(threads, worlds)
    buffers = [_buffers(cells, rays) for _ in range(max(1, parts))]
    tables = [desk(users, cells, bands) for _ in range(1 if splits else max(1, parts))]

    # tensors that the last call saw, and their arrays: few are others in the next one
    seen: list[Tensor | None] = [None] * len(_State._fields)
    arrays: list[Any] = [None] * len(_State._fields)

    def advance(state: State, steps: int) -> State:
        for k, tensor in enumerate(vars(state).values()):
            if tensor is not seen[k]:
                seen[k], arrays[k] = tensor, tensor.numpy()
        fixed = flat, _State(*arrays), radio, air

        def users_of(w: int, first: int, end: int, part: int) -> None:
            _run(w, w + 1, first, end, 1, False, *fixed, buffers[part], tables[0])

        def worlds_of(first: int, end: int, part: int) -> None:
            _run(first, end, 0, users, steps, True, *fixed, buffers[part], tables[part])

        if splits:
            for _ in range(steps):
                for w in range(worlds):
                    list(_pool(threads).map(users_of, [w] * threads, *_parts(users, threads), range(threads)))
                    _run(w, w + 1, 0, 0, 1, True, *fixed, buffers[0], tables[0])
        elif parts > 1:
            list(_pool(threads).map(worlds_of, *_parts(worlds, parts), range(parts)))
        else:
            worlds_of(0, worlds, 0)
        return state

    return advance


def _buffers(cells: int, rays: int) -> tuple[Any, ...]:
    """What a thread keeps of one user: received power, its mean, which cells fade, rays of one of them."""
    received, mean = np.empty((2, cells), np.float32)
    return received, mean, np.empty(cells + 1, np.uint32), *np.empty((2, rays), np.float32)


def _parts(count: int, threads: int) -> tuple[list[int], list[int]]:
    """First and end of every thread's part of 0 ... count - 1."""
    borders = [count * part // threads for part in range(threads + 1)]
    return borders[:-1], borders[1:]


def _flat(world: World) -> Any:
    """The world for the loop: maps with one axis, rays and cells as one, which are looked up fastest.

    And without infinities, which fast arithmetic may assume: a stop or a packet that never comes is far away.
    """
    values = vars(world).items()
    arrays = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in values}
    for name in ("stop_spacing_m", "arrival_s"):
        arrays[name] = np.minimum(arrays[name], np.float32(1e30))
    for name in ("gain_db", "rice_factor"):
        arrays[name] = arrays[name].reshape(-1)
    for name in ("fading_direction", "fading_phase"):
        worlds, users, cells, rays = arrays[name].shape
        arrays[name] = arrays[name].reshape(worlds, users, cells * rays)
    arrays |= {"lattice_m": _to_lattice(world), "map_shape": tuple(world.gain_db.shape[1:3])}
    return _World(**arrays)


def _to_lattice(world: World) -> Any:
    """What turns a place into shares of the lattice's vectors, `[2, 2]`; zeros for a map with borders."""
    if world.lattice_m is None:
        return np.zeros((2, 2))
    return np.ascontiguousarray(np.linalg.inv(world.lattice_m.numpy()))


def _radio(config: RadioConfig, carrier_hz: float, scatterers: int, phasors: Any) -> Any:
    return _Radio(
        step_s=config.step_s,
        waves_per_m=carrier_hz / SPEED_OF_LIGHT_MPS,
        environment_mps=config.environment_mps,
        tx_power_dbm=config.tx_power_dbm,
        noise_mw=10 ** (config.noise_dbm / 10),
        fading_share=FADING_SHARE,
        unheard_mw=config.unheard_mw,
        qout=10 ** (config.qout_db / 10),
        qin=10 ** (config.qin_db / 10),
        qin_steps=config.steps(config.qin_window_s),
        access=10 ** (config.access_db / 10),
        n310=config.n310,
        n311=config.n311,
        gap_breaks=config.gap_breaks,
        t310_steps=config.steps(config.t310_s),
        execution_steps=max(1, config.steps(config.execution_s)),
        repeat_steps=max(0, config.steps(config.t304_s) - max(1, config.steps(config.execution_s))),
        reestablishment_steps=max(1, config.steps(config.reestablishment_s)),
        suitable_dbm=np.float32(config.suitable_dbm),  # as measurements have it
        ping_pong_steps=config.steps(config.ping_pong_s),
        bandwidth_hz=config.bandwidth_hz,
        rate=rates.loops(config),
        cqi_delay_steps=config.cqi_delay_s / config.step_s,
        foreground_share=config.foreground_share,
        scheduler=SCHEDULERS.index(config.scheduler),
        fairness=config.fairness,
        scatterers=scatterers,
        phasors=phasors,
    )


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads don't survive a fork


@njit(inline="always", fastmath=True)
def _move(w, u, world, state, radio):  # type: ignore[no-untyped-def]
    """Moves a user; returns where the map has its four points around it, and its weights of these.

    They lie at row and column, row and next column, next row and column, next row and next column.
    """
    # a stop lasts stop_s every stop_spacing_m
    speed = 0.0
    if state.stopped_s[w, u] <= 0:
        speed = world.speed_mps[w, u]
        before = state.travelled_m[w, u]
        after = before + speed * radio.step_s
        state.travelled_m[w, u] = after
        spacing = world.stop_spacing_m[w, u]
        if math.floor(after / spacing) > math.floor(before / spacing):
            state.stopped_s[w, u] = world.stop_s[w, u]
    else:
        state.stopped_s[w, u] -= np.float32(radio.step_s)
    state.fading_turns[w, u] += max(speed, radio.environment_mps) * radio.step_s * radio.waves_per_m
    # position along the route
    along = min(state.travelled_m[w, u] / ROUTE_SPACING_M, world.route_m.shape[2] - 1.000001)
    point = int(along)
    part = along - point
    x = world.route_m[w, u, point, 0] * (1 - part) + world.route_m[w, u, point + 1, 0] * part
    y = world.route_m[w, u, point, 1] * (1 - part) + world.route_m[w, u, point + 1, 1] * part
    (rows, columns), cells = world.map_shape, state.load.shape[1]
    east, north = x - world.origin_m[0], y - world.origin_m[1]
    share = world.lattice_m
    if share[0, 0] != 0 or share[0, 1] != 0:
        column = east * share[0, 0] + north * share[1, 0]
        row = east * share[0, 1] + north * share[1, 1]
        column = (column - math.floor(column)) * columns
        row = (row - math.floor(row)) * rows
    else:
        column = min(max(east / world.resolution_m, 0.0), columns - 1.000001)
        row = min(max(north / world.resolution_m, 0.0), rows - 1.000001)
    i, j = min(int(row), rows - 1), min(int(column), columns - 1)
    up, right = (i + 1) % rows, (j + 1) % columns
    row_at, up_at = (world.floor[w, u] * rows + i) * columns, (world.floor[w, u] * rows + up) * columns
    corners = (row_at + j) * cells, (row_at + right) * cells, (up_at + j) * cells, (up_at + right) * cells
    # the map is large and users are scattered: have their corners fetched while others are computed
    for c in range(0, 2 * cells + 15, 16):
        prefetch(world.gain_db, corners[0] + c)
        prefetch(world.gain_db, corners[2] + c)
    one, fy, fx = np.float32(1), np.float32(row - i), np.float32(column - j)
    return corners, ((one - fy) * (one - fx), (one - fy) * fx, fy * (one - fx), fy * fx)


@njit(inline="always", fastmath=True)
def _receive(w, u, place, world, state, radio, buffers):  # type: ignore[no-untyped-def]
    """Received power of every cell and its mean into the buffers; returns the loaded cells' sum."""
    received, mean, fading, cosine, sine = buffers
    cells = len(received)
    # bilinear path gain in dB, here as a power of two
    corners, weights = place
    log2_scale = np.float32(math.log2(10) / 10)
    w00, w01 = log2_scale * weights[0], log2_scale * weights[1]
    w10, w11 = log2_scale * weights[2], log2_scale * weights[3]
    g00, g01 = world.gain_db[corners[0] :], world.gain_db[corners[1] :]
    g10, g11 = world.gain_db[corners[2] :], world.gain_db[corners[3] :]
    sent = log2_scale * np.float32(radio.tx_power_dbm - world.loss_db[w, u])
    mean_mw, strongest = np.float32(0), np.int32(0)  # bits of positive numbers are ordered as they are
    for c in range(cells):
        # 2^(whole + fraction): exponent bits and a polynomial, relative error < 3e-7
        z = sent + w00 * g00[c] + w01 * g01[c] + w10 * g10[c] + w11 * g11[c]
        z = max(z, np.float32(-126))  # a cell that is off
        whole = np.floor(z)
        f = z - whole
        power = float_of(np.int32((np.int32(whole) + np.int32(127)) << np.int32(23))) * (
            np.float32(0.99999994)
            + f
            * (
                np.float32(0.69315308)
                + f
                * (
                    np.float32(0.24015361)
                    + f * (np.float32(0.05582631) + f * (np.float32(0.00898934) + f * np.float32(0.00187757)))
                )
            )
        )
        mean[c] = power
        received[c] = power
        mean_mw += power
        strongest = max(strongest, bits_of(power))
    # those whose fading somebody can tell
    strongest_mw = float_of(strongest)
    others_mw = mean_mw - strongest_mw + np.float32(radio.noise_mw)
    least_mw = min(np.float32(radio.fading_share) * others_mw, np.float32(radio.unheard_mw), strongest_mw)
    count = 0
    for c in range(cells):
        fading[count] = c
        count += mean[c] >= least_mw
    for k in range(count):
        c, turns = fading[k], state.fading_turns[w, u]
        if len(radio.phasors) == 1:
            received[c] = _fading_mw(w, u, c, place, mean[c], turns, radio, world)
        else:
            ray_mw, amplitude = _rice(c, place, mean[c], radio.scatterers, world)
            rates.link_rays(w, u, c, turns, amplitude, world, cosine, sine)
            received[c] = ray_mw * rates.mean_power(radio.phasors, cosine, sine)
    total = np.float32(0)
    for c in range(cells):
        state.rsrp_sum_mw[w, u, c] += received[c]
        total += state.load[w, c] * received[c]
    return total


@njit(inline="always", fastmath=True)
def _fading_mw(w, u, cell, place, mean_mw, turns, radio, world):  # type: ignore[no-untyped-def]
    """Received power of a link: Jakes' sum of sinusoids, a function of the distance travelled alone."""
    travelled = np.int32(np.int64(turns * TRAVELLED_PER_TURN))
    direction, phase = world.fading_direction[w, u], world.fading_phase[w, u]
    rays, scatterers = radio.phasors.shape[1], radio.scatterers
    k, end = cell * rays, cell * rays + scatterers
    x, y = np.float32(0), np.float32(0)
    while k + VECTOR <= end:
        cosine, sine = sum_rays(travelled, direction, phase, k)
        x += cosine
        y += sine
        k += VECTOR
    while k < end:
        cosine, sine = ray(travelled, direction[k], phase[k])
        x += cosine
        y += sine
        k += 1
    ray_mw, amplitude = _rice(cell, place, mean_mw, scatterers, world)
    if scatterers < rays:
        cosine, sine = ray(travelled, direction[k], phase[k])
        x += amplitude * cosine
        y += amplitude * sine
    return ray_mw * (x * x + y * y)


@njit(inline="always", fastmath=True)
def _rice(c, place, mean_mw, scatterers, world):  # type: ignore[no-untyped-def]
    """Mean power of a scatterer of a link, and the amplitude of a specular ray in units of a scatterer's."""
    scattered_mw = mean_mw / np.float32(scatterers)
    if not world.rice_factor.size:
        return scattered_mw, np.float32(0)
    corners, weights = place
    factor = world.rice_factor
    rice = weights[0] * factor[corners[0] + c] + weights[1] * factor[corners[1] + c]
    rice += weights[2] * factor[corners[2] + c] + weights[3] * factor[corners[3] + c]
    return scattered_mw / (np.float32(1) + rice), np.sqrt(np.float32(scatterers) * rice)


@njit(inline="always", fastmath=True)
def _follow(w, u, received, total, state, radio):  # type: ignore[no-untyped-def]
    """Command, execution, re-establishment, radio-link monitoring; whether the user may be served."""
    connected = False
    state.sinr[w, u] = 0
    state.stay_steps[w, u] += 1
    if state.status[w, u] == CONNECTED and state.target[w, u] != NONE:
        if state.command_steps[w, u] <= 0:
            state.status[w, u] = EXECUTING
            state.timer_steps[w, u] = radio.execution_steps
            state.window_steps[w, u] = 0
        else:
            state.command_steps[w, u] -= 1
    if state.status[w, u] == REESTABLISHING:
        state.outage_steps[w, u] += 1
        state.timer_steps[w, u] -= 1
        if state.timer_steps[w, u] <= 0:
            best = 0
            for c in range(1, len(received)):
                if state.rsrp_dbm[w, u, c] > state.rsrp_dbm[w, u, best]:
                    best = c
            if state.rsrp_dbm[w, u, best] > radio.suitable_dbm:
                state.serving[w, u] = best
                state.previous[w, u] = NONE
                state.stay_steps[w, u] = 0
                state.status[w, u] = CONNECTED
                _restart(w, u, state)
            else:
                state.searches_failed[w, u] += 1
                state.timer_steps[w, u] = radio.reestablishment_steps
    else:
        cell = state.serving[w, u] if state.status[w, u] == CONNECTED else state.target[w, u]
        s = received[cell]
        disturbance = max(total - state.load[w, cell] * s, np.float32(0)) + np.float32(radio.noise_mw)
        s_out, i_out, s_in, i_in = _remember(w, u, s, disturbance, state, radio)
        below_qout = s_out < radio.qout * i_out
        if state.status[w, u] == EXECUTING:
            state.outage_steps[w, u] += 1
            state.interrupted_steps[w, u] += 1
            state.timer_steps[w, u] -= 1
            below_access = s_out < radio.access * i_out
            left_steps = state.timer_steps[w, u] + (radio.repeat_steps if below_access else 0)
            if left_steps <= 0:
                _restart(w, u, state)
                state.target[w, u] = NONE
                if below_access:
                    state.handover_failures[w, u] += 1
                    state.status[w, u] = REESTABLISHING
                    state.timer_steps[w, u] = radio.reestablishment_steps
                else:
                    state.handovers[w, u] += 1
                    if cell == state.previous[w, u] and state.stay_steps[w, u] <= radio.ping_pong_steps:
                        state.ping_pongs[w, u] += 1
                    state.previous[w, u] = state.serving[w, u]
                    state.serving[w, u] = cell
                    state.stay_steps[w, u] = 0
                    state.status[w, u] = CONNECTED
                    state.sinr[w, u] = s_in / i_in
        else:
            state.sinr[w, u] = s_in / i_in
            connected = True
            above_qin = s_in > radio.qin * i_in
            if below_qout:
                state.outage_steps[w, u] += 1
                state.out_of_sync[w, u] += 1
                if state.t310_steps[w, u] == NONE and state.out_of_sync[w, u] >= radio.n310:
                    state.t310_steps[w, u] = 0
                    state.in_sync[w, u] = 0
            elif above_qin or radio.gap_breaks:
                state.out_of_sync[w, u] = 0
            if state.t310_steps[w, u] != NONE:
                if above_qin:
                    state.in_sync[w, u] += 1
                elif below_qout or radio.gap_breaks:
                    state.in_sync[w, u] = 0
                state.t310_steps[w, u] += 1
                if state.in_sync[w, u] >= radio.n311:
                    state.t310_steps[w, u] = NONE
                elif state.t310_steps[w, u] > radio.t310_steps:
                    state.link_failures[w, u] += 1
                    state.sinr[w, u] = 0
                    state.status[w, u] = REESTABLISHING
                    state.timer_steps[w, u] = radio.reestablishment_steps
                    state.target[w, u] = NONE
                    state.t310_steps[w, u] = NONE
    return connected


@njit(inline="always", fastmath=True)
def _restart(w, u, state):  # type: ignore[no-untyped-def]
    """Radio-link monitoring, link adaptation and the mean of past rates begin anew with another cell."""
    state.window_steps[w, u] = 0
    state.t310_steps[w, u] = NONE
    state.out_of_sync[w, u] = 0
    state.in_sync[w, u] = 0
    state.olla_db[w, u] = 0
    state.average_bps[w, u] = 0


@njit(inline="always", fastmath=True)
def _remember(w, u, signal, disturbance, state, radio):  # type: ignore[no-untyped-def]
    """Puts a step into the ring; returns sums of signal and disturbance over the Qout and the Qin window."""
    size = state.signal_mw.shape[2]
    slot = state.ring[w]
    state.signal_mw[w, u, slot] = signal
    state.interference_mw[w, u, slot] = disturbance
    state.window_steps[w, u] = min(state.window_steps[w, u] + 1, size)
    s_out = np.float32(0)
    i_out = np.float32(0)
    s_in = np.float32(0)
    i_in = np.float32(0)
    for k in range(state.window_steps[w, u]):
        at = slot - k
        if at < 0:
            at += size
        s_out += state.signal_mw[w, u, at]
        i_out += state.interference_mw[w, u, at]
        if k < radio.qin_steps:
            s_in += state.signal_mw[w, u, at]
            i_in += state.interference_mw[w, u, at]
    return s_out, i_out, s_in, i_in


@njit(**LOOP, fastmath=True)
def _advance(w, first, end, world, state, radio, air, buffers):  # type: ignore[no-untyped-def]
    """One step of the users `first ... end - 1` of a world, up to the rate that the air offers each."""
    received, mean, _, cosine, sine = buffers
    efficiency, late, actual, known = air
    now_s = state.clock_steps[w] * radio.step_s
    if first < end:
        next_u = np.uint32(first)
        next_turns = state.fading_turns[w, next_u]
        ahead = _move(w, next_u, world, state, radio)
        for number in range(first, end):
            u, place, last_turns = next_u, ahead, next_turns
            if number + 1 < end:
                next_u = np.uint32(number + 1)
                next_turns = state.fading_turns[w, next_u]
                ahead = _move(w, next_u, world, state, radio)
            arrive_loop(w, u, world, state, now_s)
            total = _receive(w, u, place, world, state, radio, buffers)
            if not _follow(w, u, received, total, state, radio):
                efficiency[w, u, 0] = rates.NO_CONNECTION
                continue
            cell, disturbance = state.serving[w, u], state.interference_mw[w, u, state.ring[w]]
            sinr, reported = efficiency[w, u], late[w, u]  # first the SINR, then what it is worth
            sinr[0] = received[cell] / disturbance
            turns = state.fading_turns[w, u]
            late_turns = turns - (turns - last_turns) * radio.cqi_delay_steps
            if len(sinr) > 1:
                ray_mw, amplitude = _rice(cell, place, mean[cell], radio.scatterers, world)
                rates.link_rays(w, u, cell, turns, amplitude, world, cosine, sine)
                rates.band_sinr(ray_mw / disturbance, radio.phasors, cosine, sine, sinr)
                rates.link_rays(w, u, cell, late_turns, amplitude, world, cosine, sine)
                rates.band_sinr(ray_mw / disturbance, radio.phasors, cosine, sine, reported)
            elif len(reported) > 0:
                late_mw = _fading_mw(w, u, cell, place, mean[cell], late_turns, radio, world)
                reported[0] = late_mw / disturbance
            rates.offer(sinr, reported, actual[w, u], known[w, u], state.olla_db[w, u], radio.rate)


@njit(**LOOP, fastmath=True)
def _run(  # type: ignore[no-untyped-def]
    first, end, first_user, end_user, steps, schedules, world, state, radio, air, buffers, table
):
    """Steps of users of the worlds `first ... end - 1`, and of these worlds' cells if it `schedules`.

    The one way into both loops: another would round in other places, and threads would change results.
    """
    for number in range(first, end):
        w = np.uint32(number)  # without a sign, no index counts from the end
        for _ in range(steps):
            _advance(w, first_user, end_user, world, state, radio, air, buffers)
            if schedules:
                schedule_world(w, world, state, radio, air, table)
