"""The simulated event camera: speed, and agreement with N-MNIST's real one: `python -m benchmarks.events`.

    python -m benchmarks.events                images per second on one core, agreement with real recordings
    python -m benchmarks.events --json         the same as JSON
    python -m benchmarks.events --calibrate    find the camera and its path anew, print them

Real recordings with even numbers are for calibration; agreement is that of the odd ones, which calibration
never sees. Without them (`DEFIANCE_DATA`), the speed alone is measured, on scikit-learn's digits.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize
from torch import Tensor

from benchmarks.step import machine
from defiance.codecs.events import (
    Agreement,
    Recordings,
    SensorConfig,
    agreement,
    digit_images,
    mnist_images,
    read,
    saccades,
    simulate,
)
from defiance.codecs.events.sensor import SACCADE_KNOT_US, saccade_path
from defiance.errors import DefianceError
from defiance.recordings import data_folder
from defiance.seeding import stream

TARGET_PER_S = 5_000
IMAGES = 2_000
REPETITIONS = 9
RECORDINGS = 1_000

BIN_US = 5_000
PATCH = 64  # pixels of the square in which images and events are correlated
FINER = 8  # than a pixel
REST_US = (0, 90_000, 215_000, 310_000)  # when the camera is slowest

Array = NDArray[Any]


def speed() -> dict[str, Any]:
    """Images per second of CPU and of wall time over the repetitions."""
    try:
        images = mnist_images(data_folder() / "mnist", "train")[0][:IMAGES]
    except DefianceError:
        images = digit_images("train")[0]
    cpu, wall = [], []
    for repetition in range(REPETITIONS + 1):
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        simulate(images, saccades(), SensorConfig(), stream(1, "speed"))
        if repetition:  # the first one compiles
            cpu.append(len(images) / (time.process_time() - cpu_s))
            wall.append(len(images) / (time.perf_counter() - wall_s))
    return {
        "images": len(images),
        "images_per_cpu_s": statistics.median(cpu),
        "images_per_cpu_s_best": max(cpu),
        "images_per_wall_s": statistics.median(wall),
    }


def pairs(first: int) -> tuple[Tensor, Recordings]:
    """Images and real recordings of them: every second one, from the first or the second on."""
    recordings, _ = read(data_folder() / "nmnist" / "nmnist_train1000.npz")
    images, labels = mnist_images(data_folder() / "mnist", "train")
    chosen = torch.arange(first, RECORDINGS, 2)  # recording n is of image n
    if not torch.equal(labels[:RECORDINGS], recordings.label):
        raise DefianceError("benchmarks.events: the recordings are not those of the first images of MNIST")
    return images[chosen], recordings.select(chosen)


def validate() -> Agreement:
    """Agreement on the half that calibration never sees."""
    images, real = pairs(1)
    return agreement(simulate(images, saccades(), SensorConfig(), stream(1, "validation")), real)


def motion(images: Tensor, real: Recordings) -> tuple[Array, Array]:
    """Measure the motion in bins of `BIN_US`: events of a bin are the image's change at its place.

    Events (decreases less increases) are regressed on the image's gradient, shifted to where it fits best.

    Returns:
        Places of the image and, in arbitrary units, its velocities, [bins, 2].
    """
    border = (PATCH - real.width) // 2
    ink = np.zeros((len(images), PATCH, PATCH))
    ink[:, border : border + 28, border : border + 28] = images.numpy() / 255
    spectrum = np.fft.rfft2(gaussian_filter(ink, (0, 0.6, 0.6)))
    frequency_y, frequency_x = (
        2j * np.pi * np.fft.fftfreq(PATCH)[:, None],
        2j * np.pi * np.fft.rfftfreq(PATCH),
    )
    gradient = np.stack([spectrum * frequency_x, spectrum * frequency_y])  # [2, R, PATCH, PATCH / 2 + 1]
    shape = np.fft.irfft2(gradient, (PATCH, PATCH)).reshape(2, -1)
    inverse = np.linalg.inv(shape @ shape.T)
    owner, bins = real.owner.numpy(), (real.time_us // BIN_US).numpy()
    places, velocities = [], []
    for b in range(REST_US[-1] // BIN_US):
        now = bins == b
        change = np.zeros((len(images), PATCH, PATCH))
        at = (owner[now], real.y.numpy()[now] + border, real.x.numpy()[now] + border)
        np.add.at(change, at, 1.0 - 2.0 * real.polarity.numpy()[now])
        product = (np.fft.rfft2(change) * gradient.conj()).sum(1)
        fine = np.zeros((2, PATCH * FINER, PATCH * FINER // 2 + 1), complex)
        half = PATCH // 2
        fine[:, :half, :half], fine[:, -half:, :half] = product[:, :half, :half], product[:, half:, :half]
        correlation = np.fft.irfft2(fine, (PATCH * FINER, PATCH * FINER))
        weights = np.einsum("ij,jyx->iyx", inverse, correlation)
        y, x = np.unravel_index((weights * correlation).sum(0).argmax(), correlation.shape[1:])
        wrapped = (np.array([x, y]) + half * FINER) % (PATCH * FINER) - half * FINER
        places.append(wrapped / FINER)
        velocities.append(-weights[:, y, x])
    return np.array(places), np.array(velocities)


def knots(rests: Array, velocities: Array) -> Array:
    """A path through the places of rest [4, 2] with the measured course in time, every 10 ms: [K, 2]."""
    steps = []
    for begin_us, end_us, start, end in zip(REST_US[:-1], REST_US[1:], rests[:-1], rests[1:], strict=True):
        course = velocities[begin_us // BIN_US : end_us // BIN_US]
        speed = np.linalg.norm(course, axis=1, keepdims=True)
        scale = np.linalg.norm(end - start) / speed.sum()
        off = (end - start) - scale * course.sum(0)
        steps.append(scale * course + off * speed / speed.sum())
    path = np.cumsum(np.concatenate([rests[:1], *steps]), axis=0)
    return path[:: SACCADE_KNOT_US // BIN_US]


def calibrate(console: Console) -> None:
    """Find the sensor's few numbers and the places of rest on even recordings; print them."""
    images, real = pairs(0)
    places, velocities = motion(images, real)
    rests = np.stack([np.median(places[b : b + 4], axis=0) for b in (0, 16, 42, 58)])
    counts = real.counts.double()

    def camera(values: Array) -> tuple[SensorConfig, Array]:
        config = replace(
            SensorConfig(),
            contrast=float(-1 / (1 + np.exp(-values[0]))),
            blur_px=float(np.exp(values[1])),
            threshold=float(np.exp(values[2])),
            refractory_us=float(np.exp(values[3])),
        )
        return config, knots(rests + values[4:].reshape(4, 2), velocities)

    def cost(values: Array) -> float:
        config, path = camera(values)
        simulated = simulate(images, saccade_path(path), config, stream(1, "calibration"))
        found = agreement(simulated, real)
        spread = float(simulated.counts.double().std() / counts.std())
        ratios = np.log([found.events, found.increases, spread, *found.saccades])
        return 20 * (1 - found.detail_cosine) + 10 * (1 - found.correlation) + 5 * float((ratios**2).sum())

    values = np.concatenate([[np.log(0.7 / 0.3), np.log(0.5), np.log(0.16), np.log(50.0)], np.zeros(8)])
    size = np.array([0.3, 0.15, 0.1, 0.5] + [0.15] * 8)
    for restart in range(2):
        simplex = np.vstack([values, values + np.diag(size * (-0.5) ** restart)])
        options = {"maxfev": 150, "initial_simplex": simplex, "adaptive": True}
        result = minimize(cost, values, method="Nelder-Mead", options=options)
        values = result.x
        console.print(f"cost {result.fun:.4f}", camera(values)[0])
    console.print("SACCADES_PX =", [tuple(place) for place in camera(values)[1].round(2).tolist()])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.events", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--calibrate", action="store_true", help="find the camera and its path anew")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    if arguments.calibrate:
        calibrate(console)
        return
    fast, where = speed(), machine()
    agreed = validate() if (data_folder() / "nmnist").is_dir() else None
    if arguments.json:
        found = {"speed": fast, "agreement": asdict(agreed) if agreed else None}
        print(json.dumps({"machine": where, "target_per_cpu_s": TARGET_PER_S, **found}, indent=1))
        return
    table = Table(title=f"{fast['images']} images, three saccades, one core: images per second")
    for column in ("CPU, median", "CPU, best", "wall, median"):
        table.add_column(column, justify="right")
    table.add_row(*(f"{fast[f'images_per_{key}']:,.0f}" for key in ("cpu_s", "cpu_s_best", "wall_s")))
    console.print(table)
    console.print("{cpu}, {cores} cores, load average {load_average}".format(**where))
    reached = fast["images_per_cpu_s"] >= TARGET_PER_S
    console.print(f"Target of {TARGET_PER_S:,}: {'reached' if reached else 'missed'}")
    if agreed is None:
        console.print(f"No real recordings in {data_folder()}: no agreement")
        return
    table = Table(title="Simulated against real: 500 recordings that calibration never saw")
    for column in ("", "simulated / real", "target"):
        table.add_column(column)
    first, second, third = agreed.saccades
    table.add_row("events of a recording, mean", f"{agreed.events:.3f}", "0.95 to 1.05")
    table.add_row("events of a recording, correlation", f"{agreed.correlation:.3f}", "0.75")
    table.add_row("map of events, cosine", f"{agreed.map_cosine:.3f}", "0.9")
    table.add_row("maps of each saccade and polarity, cosine", f"{agreed.detail_cosine:.3f}", "")
    table.add_row("share of increases", f"{agreed.increases:.3f}", "0.9 to 1.1")
    table.add_row("events in each saccade", f"{first:.3f}, {second:.3f}, {third:.3f}", "0.9 to 1.1")
    console.print(table)


if __name__ == "__main__":
    main()
