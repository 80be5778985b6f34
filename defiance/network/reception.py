"""What a user receives: it moves, the map is looked up, links fade.

Arguments of the loops: `world`, `state` and `radio` are named tuples by the names of `World`, of `State` and
of the kernel's settings; w and u number a world and its user.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from defiance.network import rates
from defiance.network.intrinsics import (
    VECTOR,
    at_least,
    bits_of,
    float_of,
    lowest_bit,
    prefetch,
    ray,
    sum_rays,
)
from defiance.network.world import TRAVELLED_PER_TURN
from defiance.scene.streets import ROUTE_SPACING_M

WORD = 64
"""Links that share a word, in which each has a bit."""


@njit(inline="always", fastmath=True)
def move(w, u, world, state, radio):  # type: ignore[no-untyped-def]
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


@njit(inline="always")
def expect(w, u, radio, world, faded):  # type: ignore[no-untyped-def]
    """Has the rays of the links fetched that faded in the step before; most of them fade in this one, too."""
    rays = np.uint64(radio.phasors.shape[1])
    direction, phase = world.fading_direction[w, u], world.fading_phase[w, u]
    for word in range(faded.shape[2]):
        fading = faded[w, u, word]
        while fading:
            k = (np.uint64(word * WORD) + lowest_bit(fading)) * rays
            fading &= fading - np.uint64(1)
            prefetch(direction, k)
            prefetch(phase, k)


@njit(inline="always", fastmath=True)
def receive(w, u, place, world, state, radio, faded, buffers):  # type: ignore[no-untyped-def]
    """Received power of every cell and its mean into the buffers; returns the loaded cells' sum."""
    received, mean, cosine, sine = buffers
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
    turns = state.fading_turns[w, u]
    for word in range(faded.shape[2]):
        first = word * WORD
        fading = np.uint64(0)
        for k in range(first, min(first + WORD, len(mean)), VECTOR):
            fading |= at_least(mean, k, least_mw) << np.uint64(k - first)
        faded[w, u, word] = fading
        while fading:
            c = np.uint64(first) + lowest_bit(fading)
            fading &= fading - np.uint64(1)
            if len(radio.phasors) == 1:
                received[c] = fading_mw(w, u, c, place, mean[c], turns, radio, world)
            else:
                ray_mw, amplitude = rice_loop(c, place, mean[c], radio.scatterers, world)
                rates.link_rays(w, u, c, turns, amplitude, world, cosine, sine)
                received[c] = ray_mw * rates.mean_power(radio.phasors, cosine, sine)
    total = np.float32(0)
    for c in range(cells):
        state.rsrp_sum_mw[w, u, c] += received[c]
        total += state.load[w, c] * received[c]
    return total


@njit(inline="always", fastmath=True)
def fading_mw(w, u, cell, place, mean_mw, turns, radio, world):  # type: ignore[no-untyped-def]
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
    ray_mw, amplitude = rice_loop(cell, place, mean_mw, scatterers, world)
    if scatterers < rays:
        cosine, sine = ray(travelled, direction[k], phase[k])
        x += amplitude * cosine
        y += amplitude * sine
    return ray_mw * (x * x + y * y)


@njit(inline="always", fastmath=True)
def rice_loop(c, place, mean_mw, scatterers, world):  # type: ignore[no-untyped-def]
    """Mean power of a scatterer of a link, and the amplitude of a specular ray in units of a scatterer's."""
    scattered_mw = mean_mw / np.float32(scatterers)
    if not world.rice_factor.size:
        return scattered_mw, np.float32(0)
    corners, weights = place
    factor = world.rice_factor
    rice = weights[0] * factor[corners[0] + c] + weights[1] * factor[corners[1] + c]
    rice += weights[2] * factor[corners[2] + c] + weights[3] * factor[corners[3] + c]
    return scattered_mw / (np.float32(1) + rice), np.sqrt(np.float32(scatterers) * rice)
