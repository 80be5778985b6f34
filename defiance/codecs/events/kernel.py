"""The pixels of the simulated event camera, as one compiled loop (numba) over images."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

PIXEL_BITS = 10  # an event is packed as time | y | x | polarity, so that sorting the numbers sorts by time
DIGIT_BITS = 11  # of the radix sort

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # splitmix64, as in seeding.py
FIRST_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
SECOND_MULTIPLIER = np.uint64(0x94D049BB133111EB)


@njit(cache=True)
def _uniform(key: np.uint64, place: int) -> float:
    """Draw number `place` of a stream, in (0, 1]."""
    bits = key + np.uint64(place) * GOLDEN_GAMMA
    bits = (bits ^ (bits >> np.uint64(30))) * FIRST_MULTIPLIER
    bits = (bits ^ (bits >> np.uint64(27))) * SECOND_MULTIPLIER
    bits = bits ^ (bits >> np.uint64(31))
    return (float(bits >> np.uint64(11)) + 1.0) * 2.0**-53


@njit(cache=True)
def _sort(keys: NDArray[np.int64], spare: NDArray[np.int64], first: int, end: int, times: int) -> None:
    """Order keys[first:end] by time, of which there are fewer than `times`; equal times keep their order."""
    low = 2 * PIXEL_BITS + 1
    size = 1 << DIGIT_BITS
    place = np.empty(size, np.int64)
    n = end - first
    while times > 0:
        place[:] = 0
        for i in range(first, end):
            place[(keys[i] >> low) & (size - 1)] += 1
        total = 0
        for digit in range(size):
            count = place[digit]
            place[digit] = total
            total += count
        for i in range(first, end):
            digit = (keys[i] >> low) & (size - 1)
            spare[place[digit]] = keys[i]
            place[digit] += 1
        for i in range(n):
            keys[first + i] = spare[i]
        low += DIGIT_BITS
        times >>= DIGIT_BITS


@njit(cache=True)
def _grown(keys: NDArray[np.int64], used: int) -> NDArray[np.int64]:
    larger = np.empty(2 * len(keys), np.int64)
    larger[:used] = keys[:used]
    return larger


@njit(cache=True, fastmath=True, error_model="numpy")
def _follow(
    canvas: NDArray[np.float32],
    row: int,
    left: int,
    width: int,
    margin: tuple[int, int],
    path: NDArray[np.float64],
    follow: float,
    state: NDArray[np.float32],
    seen: NDArray[np.float32],
) -> None:
    """What the photoreceptors of a row's `width` pixels from `left` on see at each step: seen [K, width].

    The image lies on the canvas at `margin`; a pixel interpolates between the four canvas pixels that it
    looks at, and follows with a first-order low-pass.
    """
    for k in range(len(path)):
        x = margin[0] - path[k, 0]
        y = margin[1] - path[k, 1]
        column, line = int(math.floor(x)), int(math.floor(y))
        right, below = np.float32(x - column), np.float32(y - line)
        upper, lower = canvas[row + line], canvas[row + line + 1]
        one = np.float32(1)
        w00, w01 = (one - below) * (one - right), (one - below) * right
        w10, w11 = below * (one - right), below * right
        gain = one if k == 0 else np.float32(follow)
        start = left + column
        for j in range(width):
            at = start + j
            light = w00 * upper[at] + w01 * upper[at + 1] + w10 * lower[at] + w11 * lower[at + 1]
            state[j] += gain * (light - state[j])
            seen[k, j] = state[j]


@njit(cache=True)
def run(
    level: NDArray[np.float32],
    path: NDArray[np.float64],
    step_us: float,
    on: NDArray[np.float32],
    off: NDArray[np.float32],
    follow: float,
    refractory_us: float,
    noise_per_us: float,
    key: np.uint64,
    first_image: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Simulate all pixels.

    Args:
        level: log brightness against the background, [R, h, w]; pixel [0, 0] lies at path + (0, 0).
        path: where, on the sensor, x and y, [K, 2].
        step_us: between two places.
        on: change of log brightness that makes a pixel fire, [H, W].
        off: the same for decreases.
        follow: share of the way to the light's level that a photoreceptor goes in a step.
        refractory_us: after an event, until the pixel compares again.
        noise_per_us: rate of events without cause, of all pixels together.
        key: of the draws.
        first_image: number of the first image among all, so that draws do not depend on how many are done at
            once.

    Returns:
        Packed events in the order of time, and where each image's begin, [R + 1].
    """
    height, width = on.shape
    images, h, w = level.shape
    steps = len(path)
    low_x, high_x = math.floor(path[:, 0].min()), math.ceil(path[:, 0].max())
    low_y, high_y = math.floor(path[:, 1].min()), math.ceil(path[:, 1].max())
    # The canvas is dark but for the image; every pixel of the sensor finds what it looks at on it.
    margin = (max(0, high_x), max(0, high_y))
    canvas = np.zeros(
        (margin[1] + max(height - low_y, h) + 2, margin[0] + max(width - low_x, w) + 2), np.float32
    )
    state = np.empty(width, np.float32)
    seen = np.empty((steps, width), np.float32)
    keys: NDArray[np.int64] = np.empty(max(1024, images * 4096), np.int64)
    spare: NDArray[np.int64] = np.empty(1, np.int64)
    offset = np.zeros(images + 1, np.int64)
    duration_us = (steps - 1) * step_us
    n = 0
    for image in range(images):
        begin = n
        top, bottom, left, right = h, -1, w, -1
        for i in range(h):
            for j in range(w):
                canvas[margin[1] + i, margin[0] + j] = level[image, i, j]
                if abs(level[image, i, j]) > 1e-4:
                    top, bottom = min(top, i), max(bottom, i)
                    left, right = min(left, j), max(right, j)
        own = key + np.uint64(first_image + image) * FIRST_MULTIPLIER
        from_x, to_x = max(0, left + low_x - 1), min(width, right + high_x + 2)
        for row in range(max(0, top + low_y - 1), min(height, bottom + high_y + 2)):
            state[:] = 0
            _follow(canvas, row, from_x, to_x - from_x, margin, path, follow, state, seen)
            for column in range(from_x, to_x):
                j = column - from_x
                up, down = on[row, column], off[row, column]
                # When a recording begins, a pixel's last event lies anywhere between its thresholds.
                reference = seen[0, j] + down - (up + down) * np.float32(_uniform(own, row * width + column))
                released_us = 0.0
                before = seen[0, j]
                for k in range(1, steps):
                    now = seen[k, j]
                    if now - reference < up and reference - now < down and released_us <= 0.0:
                        before = now
                        continue
                    start_us = (k - 1) * step_us
                    if released_us > start_us:
                        if released_us >= start_us + step_us:
                            before = now
                            continue
                        reference = before + (now - before) * np.float32((released_us - start_us) / step_us)
                    released_us = 0.0
                    while True:
                        if now - reference >= up:
                            crossed, polarity = reference + up, 1
                        elif reference - now >= down:
                            crossed, polarity = reference - down, 0
                        else:
                            break
                        share = (crossed - before) / (now - before)
                        time_us = start_us + step_us * min(max(share, 0.0), 1.0)
                        if n == len(keys):
                            keys = _grown(keys, n)
                        keys[n] = (
                            (((int(time_us) << PIXEL_BITS) | row) << PIXEL_BITS) | column
                        ) << 1 | polarity
                        n += 1
                        released_us = time_us + refractory_us
                        if released_us >= start_us + step_us:
                            break
                        reference = before + (now - before) * np.float32((released_us - start_us) / step_us)
                        released_us = 0.0
                    before = now
        if noise_per_us > 0:
            draw = height * width
            time_us = -math.log(_uniform(own, draw)) / noise_per_us
            while time_us < duration_us:
                place = int(_uniform(own, draw + 1) * 2 * height * width) % (2 * height * width)
                row, column = place // 2 // width, place // 2 % width
                if n == len(keys):
                    keys = _grown(keys, n)
                keys[n] = ((((int(time_us) << PIXEL_BITS) | row) << PIXEL_BITS) | column) << 1 | place & 1
                n += 1
                draw += 2
                time_us -= math.log(_uniform(own, draw)) / noise_per_us
        if n - begin > len(spare):
            spare = np.empty(2 * (n - begin), np.int64)
        _sort(keys, spare, begin, n, int(duration_us) + 1)
        offset[image + 1] = n
    return keys[:n], offset


@njit(cache=True)
def unpack(
    keys: NDArray[np.int64],
    x: NDArray[np.int16],
    y: NDArray[np.int16],
    polarity: NDArray[np.uint8],
    time_us: NDArray[np.int64],
) -> None:
    """Write the fields of packed events, [n] each."""
    mask = (1 << PIXEL_BITS) - 1
    for i in range(len(keys)):
        polarity[i] = keys[i] & 1
        x[i] = (keys[i] >> 1) & mask
        y[i] = (keys[i] >> (1 + PIXEL_BITS)) & mask
        time_us[i] = keys[i] >> (1 + 2 * PIXEL_BITS)
