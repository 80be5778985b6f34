"""The network's step as one fused CPU loop (numba): the same function as `reference.step`, many times faster.

A test holds both equal within 1e-4. A step has two halves: users move (`reception`) and follow their
procedures (`procedures`), each on its own, then cells share their resources among them (`schedule_world`). So
threads take whole worlds where there are enough of them, and else parts of a world's users; the result is the
same for any number of threads. The threads are Python's: numba's own layer on OpenMP resets torch's number of
threads, and its idle ones spin.
"""

from __future__ import annotations

import os
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from numba import njit
from torch import Tensor

from defiance.network import rates
from defiance.network.intrinsics import VECTOR
from defiance.network.measurements import measure_users
from defiance.network.procedures import NO_PERIOD, Period, command_users, follow
from defiance.network.reception import WORD, expect, fading_mw, move, receive, rice_loop
from defiance.network.scheduling import LOOP, band_phasors, desk, schedule_world
from defiance.network.settings import FADING_SHARE, SCHEDULERS, SPEED_OF_LIGHT_MPS, RadioConfig
from defiance.network.state import State
from defiance.network.traffic import arrive_loop
from defiance.network.world import World

CACHED_BYTES = 2**19
"""Rays of a world that are less than these, half of a core's cache or so, needn't be fetched ahead."""

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
        "resource_elements",
        "floor_dbm",
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
        "fetches",
    ],
)


def step(world: World, state: State, config: RadioConfig, steps: int = 1) -> State:
    """Advances all worlds by `steps` steps; see `reference.step`, whose arguments and result it shares."""
    return step_in_place(world, state.clone(), config, steps)


def step_in_place(world: World, state: State, config: RadioConfig, steps: int = 1) -> State:
    """`step` for a caller that owns the state and wants no copy: overwrites its tensors and returns it."""
    return stepping(world, config)(state, steps)


class Stepping(Protocol):
    """`step_in_place` of one world."""

    def __call__(self, state: State, steps: int, period: Period = ..., done: int = 0) -> State:
        """Steps of a decision period, of which so many are over, with what happens between them."""


def stepping(world: World, config: RadioConfig) -> Stepping:
    """`step_in_place` of this world for a caller that steps it many times, or period by period."""
    worlds, users, cells = world.shape
    rays, bands = world.fading_direction.shape[3], config.bands
    specular = bool(world.rice_factor.numel())
    phasors = band_phasors(rays, specular, world.delay_spread_s, config).numpy()
    rays_bytes = users * cells * rays * 2 * world.fading_phase.element_size()
    flat, radio = _flat(world), _radio(config, world.carrier_hz, rays - specular, phasors)
    radio = radio._replace(fetches=rays_bytes > CACHED_BYTES)
    adapted = bands if config.adapts else 0
    bands_noted = bands, bands if config.reports else 0, adapted, adapted
    air = tuple(np.empty((worlds, users, count), np.float32) for count in bands_noted)
    faded = np.zeros((worlds, users, -(-cells // WORD)), np.uint64)
    threads = torch.get_num_threads()
    splits = threads > worlds and users * cells >= threads * LINKS_PER_THREAD
    parts = threads if splits else min(threads, worlds)
    buffers = [_buffers(cells, rays) for _ in range(max(1, parts))]
    tables = [desk(users, cells, bands) for _ in range(1 if splits else max(1, parts))]

    # tensors that the last call saw, and their arrays: few are others in the next one
    seen: list[Tensor | None] = [None] * len(_State._fields)
    arrays: list[Any] = [None] * len(_State._fields)

    def advance(state: State, steps: int, period: Period = NO_PERIOD, done: int = 0) -> State:
        for k, tensor in enumerate(vars(state).values()):
            if tensor is not seen[k]:
                seen[k], arrays[k] = tensor, tensor.numpy()
        fixed = flat, _State(*arrays), radio, period, air, faded

        def users_of(w: int, first: int, end: int, number: int, part: int) -> None:
            _run(w, w + 1, first, end, number, number + 1, False, *fixed, buffers[part], tables[0])

        def worlds_of(first: int, end: int, part: int) -> None:
            _run(first, end, 0, users, done, done + steps, True, *fixed, buffers[part], tables[part])

        if splits:
            pool, borders = _pool(threads), _parts(users, threads)
            for number in range(done, done + steps):
                for w in range(worlds):
                    list(pool.map(users_of, [w] * threads, *borders, [number] * threads, range(threads)))
                    _run(w, w + 1, 0, 0, number, number + 1, True, *fixed, buffers[0], tables[0])
        elif parts > 1:
            list(_pool(threads).map(worlds_of, *_parts(worlds, parts), range(parts)))
        else:
            worlds_of(0, worlds, 0)
        return state

    return advance


def _buffers(cells: int, rays: int) -> tuple[Any, ...]:
    """What a thread keeps of one user: received power, its mean (whole vectors of it), rays of a link."""
    mean = np.full(-(-cells // VECTOR) * VECTOR, -1, np.float32)
    return np.empty(cells, np.float32), mean, *np.empty((2, rays), np.float32)


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
        resource_elements=config.resource_elements,
        floor_dbm=np.float32(config.rsrp_floor_dbm),
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
        fetches=False,
    )


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads don't survive a fork


@njit(**LOOP, fastmath=True)
def _advance(w, first, end, world, state, radio, air, faded, buffers):  # type: ignore[no-untyped-def]
    """One step of the users `first ... end - 1` of a world, up to the rate that the air offers each."""
    received, mean, cosine, sine = buffers
    efficiency, late, actual, known = air
    now_s = state.clock_steps[w] * radio.step_s
    if first < end:
        next_u = np.uint32(first)
        next_turns = state.fading_turns[w, next_u]
        ahead = move(w, next_u, world, state, radio)
        for number in range(first, end):
            u, place, last_turns = next_u, ahead, next_turns
            if number + 1 < end:
                next_u = np.uint32(number + 1)
                next_turns = state.fading_turns[w, next_u]
                ahead = move(w, next_u, world, state, radio)
                if radio.fetches:
                    expect(w, next_u, radio, world, faded)
            arrive_loop(w, u, world, state, now_s)
            total = receive(w, u, place, world, state, radio, faded, buffers)
            if not follow(w, u, received, total, state, radio):
                efficiency[w, u, 0] = rates.NO_CONNECTION
                continue
            cell, disturbance = state.serving[w, u], state.interference_mw[w, u, state.ring[w]]
            sinr, reported = efficiency[w, u], late[w, u]  # first the SINR, then what it is worth
            sinr[0] = received[cell] / disturbance
            turns = state.fading_turns[w, u]
            late_turns = turns - (turns - last_turns) * radio.cqi_delay_steps
            if len(sinr) > 1:
                ray_mw, amplitude = rice_loop(cell, place, mean[cell], radio.scatterers, world)
                rates.link_rays(w, u, cell, turns, amplitude, world, cosine, sine)
                rates.band_sinr(ray_mw / disturbance, radio.phasors, cosine, sine, sinr)
                rates.link_rays(w, u, cell, late_turns, amplitude, world, cosine, sine)
                rates.band_sinr(ray_mw / disturbance, radio.phasors, cosine, sine, reported)
            elif len(reported) > 0:
                late_mw = fading_mw(w, u, cell, place, mean[cell], late_turns, radio, world)
                reported[0] = late_mw / disturbance
            rates.offer(sinr, reported, actual[w, u], known[w, u], state.olla_db[w, u], radio.rate)


@njit(**LOOP, fastmath=True)
def _run(  # type: ignore[no-untyped-def]
    first,
    end,
    first_user,
    end_user,
    done,
    until,
    schedules,
    world,
    state,
    radio,
    period,
    air,
    faded,
    buffers,
    table,
):
    """Steps `done ... until - 1` of users of worlds `first ... end - 1`, and of the cells if it `schedules`.

    The one way into all loops: another would round in other places, and threads would change results.
    """
    for number in range(first, end):
        w = np.uint32(number)  # without a sign, no index counts from the end
        for step in range(done, until):
            if step == period.command_after:
                command_users(w, first_user, end_user, state, radio, period)
            if step == period.sample_after:
                state.rsrp_sum_mw[w, first_user:end_user] = 0
                if schedules:
                    state.measured_steps[w] = 0
            _advance(w, first_user, end_user, world, state, radio, air, faded, buffers)
            if schedules:
                schedule_world(w, world, state, radio, air, table)
                if step + 1 == period.steps:
                    _end_period(w, state, radio, period)


@njit(**LOOP)
def _end_period(w, state, radio, period):  # type: ignore[no-untyped-def]
    """What is left when the last step of a period is over: commands that arrive now, then the measurement."""
    users = state.serving.shape[1]
    if period.command_after == period.steps:
        command_users(w, 0, users, state, radio, period)
    if period.rsrp_dbm.size:
        measure_users(w, state, radio, period.rsrp_dbm)
