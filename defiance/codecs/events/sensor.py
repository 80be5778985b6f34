"""An event camera that looks at images which move in front of it.

```
 image ─▶ screen ─▶ optics ─▶ pixels ─▶ events, ordered in time
           1 + c I    blur     log, thresholds, refractory time
```

A pixel remembers the log brightness at its last event and fires when the present one differs by a threshold;
then it is blind for the refractory time, and what it sees after that is what it compares with next
(Lichtsteiner, Posch, Delbruck, IEEE J. Solid-State Circuits 43, 2008).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.special import ndtr
from torch import Tensor

from defiance.codecs.events import kernel
from defiance.codecs.events.recordings import Recordings
from defiance.errors import DefianceError
from defiance.seeding import Stream

STEP_US = 5000
"""Between two places of a path."""

PATH_PX = 1000
"""From the corner of the sensor, at most."""

IMAGES_AT_ONCE = 1000
EVENTS_EXPECTED = 8192
"""Of an image; there may be more."""

SACCADE_KNOT_US = 10_000
SACCADES_PX = (
    (0.51, 1.21),
    (0.50, 1.28),
    (0.45, 1.62),
    (0.41, 2.33),
    (0.43, 3.44),
    (0.56, 4.71),
    (1.08, 5.76),
    (1.67, 6.43),
    (2.00, 6.65),
    (2.09, 6.69),
    (2.18, 6.63),
    (2.33, 6.55),
    (2.55, 6.51),
    (3.04, 6.24),
    (3.72, 5.46),
    (4.28, 4.35),
    (4.54, 3.21),
    (4.88, 2.15),
    (5.19, 1.57),
    (5.36, 1.39),
    (5.53, 1.37),
    (5.77, 1.36),
    (5.89, 1.32),
    (5.83, 1.31),
    (5.03, 1.34),
    (3.99, 1.36),
    (2.88, 1.33),
    (1.84, 1.27),
    (1.15, 1.17),
    (0.63, 1.14),
    (0.41, 1.17),
    (0.39, 1.18),
)
"""N-MNIST: where the image's upper left pixel lies on the sensor (x, y) every `SACCADE_KNOT_US`."""


@dataclass(frozen=True)
class SensorConfig:
    """A camera and its screen; the defaults are those of N-MNIST, measured on half of its recordings.

    How they were found and how well they do is told in docs/events.md.
    """

    width: int = field(default=34, metadata={"min": 1, "max": 1023, "unit": "px", "help": "columns"})
    height: int = field(default=34, metadata={"min": 1, "max": 1023, "unit": "px", "help": "rows"})
    contrast: float = field(
        default=-0.709,
        metadata={
            "min": -0.99,
            "max": 1000.0,
            "help": "brightness of full ink against the background's, less 1; negative: dark on bright",
        },
    )
    blur_px: float = field(
        default=0.497,
        metadata={"min": 0.05, "max": 10.0, "unit": "px", "help": "deviation of the optics' Gaussian"},
    )
    threshold: float = field(
        default=0.163,
        metadata={"min": 0.01, "max": 10.0, "help": "change of log brightness that is an event"},
    )
    mismatch: float = field(
        default=0.1,
        metadata={"min": 0.0, "max": 1.0, "help": "relative deviation of thresholds among pixels"},
    )
    refractory_us: float = field(
        default=49.0, metadata={"min": 0.0, "max": 1e6, "unit": "us", "help": "blind after an event"}
    )
    noise_hz: float = field(
        default=0.36,
        metadata={"min": 0.0, "max": 1e4, "unit": "Hz", "help": "events without cause, per pixel"},
    )

    def __post_init__(self) -> None:
        """Refuses numbers outside the ranges of the fields: DefianceError."""
        for number in fields(self):
            value, low, high = getattr(self, number.name), number.metadata["min"], number.metadata["max"]
            if not low <= value <= high:
                raise DefianceError(f"sensor: {number.name} must lie between {low} and {high}, got {value}")


def saccades() -> Tensor:
    """Return the path of N-MNIST's three saccades, measured on half of its recordings: float64 [K, 2]."""
    return saccade_path(np.array(SACCADES_PX))


def saccade_path(knots_px: NDArray[np.float64]) -> Tensor:
    """Return a smooth path through places that lie `SACCADE_KNOT_US` apart, [knots, 2]: float64 [K, 2]."""
    time_us = np.arange(len(knots_px)) * SACCADE_KNOT_US
    place = PchipInterpolator(time_us, knots_px)(np.arange(0, time_us[-1] + 1, STEP_US))
    return torch.from_numpy(place)


def translation(duration_us: int = 2_000_000, radius_px: float = 3.0) -> Tensor:
    """Return a slow, steady motion as of MNIST-DVS, whose own path is not published: one round of a circle.

    Args:
        duration_us: of the round.
        radius_px: of the circle, which touches the sensor's upper and left edge.

    Returns:
        float64 [K, 2].
    """
    steps = duration_us // STEP_US
    if steps < 1 or not 0 < radius_px < math.inf:
        raise DefianceError(
            f"translation: {duration_us} us and {radius_px} px; both must be positive, and a path lasts "
            f"{STEP_US} us or longer"
        )
    angle = torch.linspace(0.0, 2 * math.pi, steps + 1, dtype=torch.float64)
    return radius_px * torch.stack([1 + angle.cos(), 1 + angle.sin()], dim=1)


def simulate(
    images: Tensor, path_px: Tensor, config: SensorConfig, stream: Stream, *, labels: Tensor | None = None
) -> Recordings:
    """Record images that move along a path.

    Args:
        images: ink, uint8 [R, h, w] to 255 or floating point to 1; around an image there is none.
        path_px: where the image's upper left pixel lies on the sensor, x and y, every `STEP_US`, [K, 2].
        config: the camera.
        stream: one camera (its pixels' thresholds) and all noise. What an image's recording is depends on its
            place among the images, not on their number.
        labels: classes, int64 [R]; None: unknown.

    Returns:
        R recordings of (K - 1) x `STEP_US`, in the order of the images.
    """
    if images.dim() != 3 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise DefianceError(
            f"simulate: images must be uint8 or float [R, h, w], got {images.dtype} {list(images.shape)}"
        )
    if images.is_floating_point() and not bool(((images >= 0) & (images <= 1)).all()):
        raise DefianceError("simulate: images must lie between 0 and 1 (floating point) or 0 and 255 (uint8)")
    path = path_px.double().numpy()
    if path.ndim != 2 or path.shape[1] != 2 or len(path) < 2 or not np.abs(path).max() < PATH_PX:
        raise DefianceError(
            f"simulate: a path is two or more places [K, 2] within {PATH_PX} pixels, got {list(path.shape)}"
        )
    if labels is None:
        labels = torch.full((len(images),), -1)

    rows, columns = _optics(images.shape[1], config.blur_px), _optics(images.shape[2], config.blur_px)
    margin = (len(rows) - images.shape[1]) // 2
    deviate = stream.child("pixels").numpy().standard_normal((2, config.height, config.width))
    threshold = (config.threshold * np.exp(config.mismatch * deviate)).astype(np.float32)
    key = stream.child("noise").numpy().integers(2**64, dtype=np.uint64)

    brightest = 255 if images.dtype == torch.uint8 else 1
    packed, begins = [], [torch.zeros(1, dtype=torch.int64)]
    for first in range(0, len(images), IMAGES_AT_ONCE):
        ink = images[first : first + IMAGES_AT_ONCE].float() / brightest
        level = torch.log1p(config.contrast * (rows @ ink @ columns.T))
        keys, offset = kernel.run(
            level.numpy(),
            path - margin,
            float(STEP_US),
            threshold[0],
            threshold[1],
            config.refractory_us,
            config.noise_hz * config.width * config.height / 1e6,
            key,
            first,
            np.empty(len(ink) * EVENTS_EXPECTED, np.int64),
        )
        if (offset < 0).any():
            raise DefianceError(
                f"simulate: an image gives {kernel.EVENTS_PER_IMAGE} events or more; raise `threshold` or "
                "`refractory_us`, or lower `noise_hz`"
            )
        packed.append(keys)
        begins.append(begins[-1][-1] + torch.from_numpy(offset[1:]))
    offsets = torch.cat(begins)
    events = int(offsets[-1])
    # NumPy's large arrays come in large pages, torch's and numba's do not: a fifth of the time.
    x, y = np.empty(events, np.int16), np.empty(events, np.int16)
    polarity, time_us = np.empty(events, np.uint8), np.empty(events, np.int64)
    begin = 0
    for keys in packed:
        part = slice(begin, begin + len(keys))
        kernel.unpack(keys, x[part], y[part], polarity[part], time_us[part])
        begin += len(keys)
    return Recordings(
        torch.from_numpy(x),
        torch.from_numpy(y),
        torch.from_numpy(polarity),
        torch.from_numpy(time_us),
        offsets,
        labels,
        config.width,
        config.height,
    )


def _optics(pixels: int, blur_px: float) -> Tensor:
    """How much of each screen pixel (a square as wide as a sensor pixel) a line of sensor pixels sees.

    Returns:
        float32 [pixels + 2 m, pixels]: m lines before the image's first and m after its last.
    """
    margin = math.ceil(3.5 * blur_px) + 1
    distance = np.arange(-margin, pixels + margin)[:, None] - np.arange(pixels)
    seen = ndtr((distance + 0.5) / blur_px) - ndtr((distance - 0.5) / blur_px)
    return torch.from_numpy(seen.astype(np.float32))
