"""The pixels of the simulated event camera, as one compiled loop (numba) over images."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

PIXEL_BITS = 10  # an event is packed as time | y | x | polarity, so that sorting the numbers sorts by time
DIGIT_BITS = 10  # of the radix sort
BAND = 4  # rows that are followed at once
LANES = 8  # a row's length is a multiple of it, so that no pixel is left over by vector instructions
BRIGHTEST = 3e38  # beyond any threshold
NEGLIGIBLE = 1e-2  # log brightness that no pixel notices
NOISE_INCREASES = 0.9  # share: leaking pixels see it get brighter; measured at the border of N-MNIST
EVENTS_PER_IMAGE = 1 << 20
"""A recording that reaches it is refused."""

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
def _sort(
    events: NDArray[np.int64], spare: NDArray[np.int64], out: NDArray[np.int64], n: int, times: int
) -> None:
    """Write the first `n` events in the order of time, of which there are fewer than `times`, to out[:n]."""
    size = 1 << DIGIT_BITS
    passes = 1
    while times >> (DIGIT_BITS * passes):
        passes += 1
    place = np.empty(size, np.int64)
    source = events
    for digit in range(passes):
        low = 2 * PIXEL_BITS + 1 + digit * DIGIT_BITS
        target = out if digit == passes - 1 else (spare if digit % 2 == 0 else events)
        place[:] = 0
        for i in range(n):
            place[(source[i] >> low) & (size - 1)] += 1
        total = 0
        for value in range(size):
            count = place[value]
            place[value] = total
            total += count
        for i in range(n):
            value = (source[i] >> low) & (size - 1)
            target[place[value]] = source[i]
            place[value] += 1
        source = target


@njit(cache=True, fastmath=True)
def _show(
    image: NDArray[np.float32],
    canvas: NDArray[np.float32],
    stride: int,
    first: int,
    strongest: NDArray[np.float32],
) -> tuple[int, int, int, int]:
    """Put an image [h, w] on the flat canvas; return the rows and columns between which there is something.

    `strongest` [w] is overwritten.
    """
    h, w = image.shape
    top, bottom, left, right = h, -1, w, -1
    strongest[:] = 0
    for i in range(h):
        at = first + i * stride
        line = np.float32(0)
        for j in range(w):
            value = image[i, j]
            canvas[at + j] = value
            strongest[j] = max(strongest[j], abs(value))
            line = max(line, abs(value))
        if line > NEGLIGIBLE:
            top, bottom = min(top, i), i
    for j in range(w):
        if strongest[j] > NEGLIGIBLE:
            left, right = min(left, j), j
    return top, bottom, left, right


@njit(cache=True, fastmath=True, error_model="numpy")
def _look(
    canvas: NDArray[np.float32],
    stride: int,
    first: int,
    path: NDArray[np.float64],
    seen: NDArray[np.float32],
) -> None:
    """What pixels see at each step: seen [K, n].

    The canvas is flat, `stride` pixels to a row; pixel j looks at canvas pixel first + j - path[k], between
    the four of which it interpolates.
    """
    n = seen.shape[1]
    one = np.float32(1)
    for k in range(len(path)):
        column, row = math.floor(-path[k, 0]), math.floor(-path[k, 1])
        right, below = np.float32(-path[k, 0] - column), np.float32(-path[k, 1] - row)
        w00, w01 = (one - below) * (one - right), (one - below) * right
        w10, w11 = below * (one - right), below * right
        at = first + int(row) * stride + int(column)
        c00, c01 = canvas[at : at + n], canvas[at + 1 : at + 1 + n]
        c10, c11 = canvas[at + stride : at + stride + n], canvas[at + stride + 1 : at + stride + 1 + n]
        now = seen[k]
        for j in range(n):
            now[j] = w00 * c00[j] + w01 * c01[j] + w10 * c10[j] + w11 * c11[j]


@njit(cache=True, error_model="numpy")
def _fire(
    seen: NDArray[np.float32],
    j: int,
    pixel: int,
    low: np.float32,
    up: np.float32,
    down: np.float32,
    step_us: float,
    refractory_us: float,
    events: NDArray[np.int64],
    n: int,
) -> int:
    """Compare what one pixel sees, seen[:, j], with its thresholds; append its events to events[:n].

    Args:
        seen: log brightness, [K + 1, ...], of which the last ends the search.
        j: the pixel's place in it.
        pixel: its row and column, packed.
        low: where the pixel would fire for the first time, when it gets darker.
        up: change that makes it fire.
        down: the same for decreases.
        step_us: between two values of `seen`.
        refractory_us: after an event, until the pixel compares again.
        events: packed.
        n: events so far.

    Returns:
        How many there are now; never more than fit.
    """
    steps = len(seen) - 1
    refractory = np.float32(refractory_us / step_us)
    high = low + up + down
    k = 1
    while n < len(events):
        while (low < seen[k, j]) & (seen[k, j] < high):
            k += 1
        if k >= steps:
            break
        before, now = seen[k - 1, j], seen[k, j]
        rise = now >= high
        bound = high if rise else low
        time = k - 1 + max((bound - before) / (now - before), np.float32(0))
        events[n] = (int(time * step_us) << (2 * PIXEL_BITS + 1)) | (pixel << 1) | int(rise)
        n += 1
        released = bound + (now - before) * refractory
        if (released > now) == rise:  # not within this step
            later = time + refractory
            k = int(later) + 1
            if k >= steps:
                break
            before, now = seen[k - 1, j], seen[k, j]
            released = before + (now - before) * np.float32(later - (k - 1))
        low, high = released - down, released + up
    return n


@njit(cache=True)
def _noise(
    height: int,
    width: int,
    rate_per_us: float,
    duration_us: float,
    key: np.uint64,
    draw: int,
    events: NDArray[np.int64],
    n: int,
) -> int:
    """Append events without cause to events[:n]: a Poisson process over all pixels, mostly increases."""
    time_us = 0.0
    while n < len(events):
        time_us -= math.log(_uniform(key, draw)) / rate_per_us
        if time_us >= duration_us:
            break
        row = int((1.0 - _uniform(key, draw + 1)) * height)
        column = int((1.0 - _uniform(key, draw + 2)) * width)
        pixel = (row << PIXEL_BITS) | column
        increase = int(_uniform(key, draw + 3) < NOISE_INCREASES)
        events[n] = (int(time_us) << (2 * PIXEL_BITS + 1)) | (pixel << 1) | increase
        n += 1
        draw += 4
    return n


@njit(cache=True)
def run(
    level: NDArray[np.float32],
    path: NDArray[np.float64],
    step_us: float,
    on: NDArray[np.float32],
    off: NDArray[np.float32],
    refractory_us: float,
    noise_per_us: float,
    key: np.uint64,
    first_image: int,
    found: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Simulate all pixels.

    Args:
        level: log brightness against the background, [R, h, w]; pixel [0, 0] lies at path + (0, 0).
        path: where, on the sensor, x and y, [K, 2].
        step_us: between two places.
        on: change of log brightness that makes a pixel fire, [H, W].
        off: the same for decreases.
        refractory_us: after an event, until the pixel compares again.
        noise_per_us: rate of events without cause, of all pixels together.
        key: of the draws.
        first_image: number of the first image among all, so that draws do not depend on how many are done at
            once.
        found: what the events are written to, if they fit.

    Returns:
        Packed events in the order of time, and where each image's begin, [R + 1]; an image of more than
        `EVENTS_PER_IMAGE` ends the work, and its end is -1.
    """
    height, width = on.shape
    images, h, w = level.shape
    steps = len(path)
    duration_us = (steps - 1) * step_us
    # The canvas is empty but for the image; whatever a pixel of the sensor looks at lies on it.
    left_px, right_px = math.floor(path[:, 0].min()), math.ceil(path[:, 0].max())
    top_px, bottom_px = math.floor(path[:, 1].min()), math.ceil(path[:, 1].max())
    margin_x, margin_y = max(0, right_px) + 1, max(0, bottom_px) + 1
    stride = margin_x + max(width - left_px, w) + 1
    stride += -stride % LANES
    lines = margin_y + max(height - top_px, h) + 2 + BAND
    canvas = np.zeros(stride * lines, np.float32)
    trace = np.full((steps + 1, BAND * stride), np.float32(BRIGHTEST))
    events, spare = np.empty(EVENTS_PER_IMAGE, np.int64), np.empty(EVENTS_PER_IMAGE, np.int64)
    strongest = np.empty(w, np.float32)
    offset = np.zeros(images + 1, np.int64)
    for image in range(images):
        top, bottom, left, right = _show(
            level[image], canvas, stride, margin_y * stride + margin_x, strongest
        )
        own = key + np.uint64(first_image + image) * FIRST_MULTIPLIER
        n = 0
        from_x, to_x = max(0, left + left_px), min(width, right + right_px + 1)
        from_y, to_y = max(0, top + top_px), min(height, bottom + bottom_px + 1)
        for band in range(from_y, to_y, BAND):
            _look(canvas, stride, (margin_y + band) * stride + margin_x, path, trace)
            for row in range(band, min(band + BAND, to_y)):
                for column in range(from_x, to_x):
                    j = (row - band) * stride + column
                    up, down = on[row, column], off[row, column]
                    # When a recording begins, a pixel's last event lies anywhere between its thresholds.
                    place = np.float32(_uniform(own, row * width + column))
                    low = trace[0, j] - (up + down) * place
                    pixel = (row << PIXEL_BITS) | column
                    n = _fire(trace, j, pixel, low, up, down, step_us, refractory_us, events, n)
        if noise_per_us > 0:
            n = _noise(height, width, noise_per_us, duration_us, own, height * width, events, n)
        if n == EVENTS_PER_IMAGE:
            offset[image + 1] = -1
            break
        begin = offset[image]
        if begin + n > len(found):
            larger = np.empty(2 * (begin + n), np.int64)
            larger[:begin] = found[:begin]
            found = larger
        _sort(events, spare, found[begin:], n, int(duration_us) + 1)
        offset[image + 1] = begin + n
    return found[: offset[images]], offset


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
