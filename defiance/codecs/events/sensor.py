"""An event camera that looks at images which move in front of it.

```
 image ─▶ screen ─▶ optics ─▶ photoreceptor ─▶ comparator of each pixel ─▶ events, ordered in time
        brightness   blur    log, low-pass     thresholds, refractory time
        1 + c I
```

A pixel remembers the log brightness at its last event and fires when the present one differs by a threshold;
then it is blind for the refractory time, and what it sees after that is what it compares with next
(Lichtsteiner, Posch, Delbruck, IEEE J. Solid-State Circuits 43, 2008).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from scipy.special import ndtr
from torch import Tensor

from defiance.codecs.events import kernel
from defiance.codecs.events.recordings import Recordings
from defiance.errors import DefianceError
from defiance.seeding import Stream

STEP_US = 2000
"""Between two places of a path."""

IMAGES_AT_ONCE = 1000

SACCADE_KNOT_US = 10_000
SACCADES_PX = (
    (0.40, 0.91),
    (0.39, 0.98),
    (0.33, 1.32),
    (0.25, 2.06),
    (0.23, 3.20),
    (0.34, 4.49),
    (0.87, 5.57),
    (1.49, 6.24),
    (1.83, 6.46),
    (1.93, 6.49),
    (2.03, 6.44),
    (2.17, 6.37),
    (2.40, 6.35),
    (2.91, 6.12),
    (3.61, 5.39),
    (4.19, 4.35),
    (4.45, 3.26),
    (4.80, 2.25),
    (5.12, 1.70),
    (5.29, 1.54),
    (5.47, 1.54),
    (5.71, 1.55),
    (5.84, 1.51),
    (5.78, 1.50),
    (5.03, 1.52),
    (4.07, 1.51),
    (3.04, 1.47),
    (2.07, 1.39),
    (1.42, 1.28),
    (0.95, 1.25),
    (0.74, 1.27),
    (0.72, 1.27),
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
        default=-0.65,
        metadata={
            "min": -0.99,
            "max": 1000.0,
            "help": "brightness of full ink against the background's, less 1; negative: dark on bright",
        },
    )
    blur_px: float = field(
        default=0.5,
        metadata={"min": 0.05, "max": 10.0, "unit": "px", "help": "deviation of the optics' Gaussian"},
    )
    threshold: float = field(
        default=0.13, metadata={"min": 0.01, "max": 10.0, "help": "change of log brightness that is an event"}
    )
    mismatch: float = field(
        default=0.03,
        metadata={"min": 0.0, "max": 1.0, "help": "relative deviation of thresholds among pixels"},
    )
    time_constant_us: float = field(
        default=2000.0, metadata={"min": 0.0, "max": 1e6, "unit": "us", "help": "photoreceptor's low-pass"}
    )
    refractory_us: float = field(
        default=200.0, metadata={"min": 0.0, "max": 1e6, "unit": "us", "help": "blind after an event"}
    )
    noise_hz: float = field(
        default=0.25,
        metadata={"min": 0.0, "max": 1e4, "unit": "Hz", "help": "events without cause, per pixel"},
    )


def saccades() -> Tensor:
    """Return the path of N-MNIST's three saccades, measured on half of its recordings: float64 [K, 2]."""
    knots = np.array(SACCADES_PX)
    time_us = np.arange(len(knots)) * SACCADE_KNOT_US
    place = PchipInterpolator(time_us, knots)(np.arange(0, time_us[-1] + 1, STEP_US))
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
    ink = images.float() / (255 if images.dtype == torch.uint8 else 1)
    if ink.numel() and not bool((ink >= 0).all() & (ink <= 1).all()):
        raise DefianceError("simulate: images must lie between 0 and 1 (floating point) or 0 and 255 (uint8)")
    path = path_px.double().numpy()
    if path.ndim != 2 or path.shape[1] != 2 or len(path) < 2 or not np.abs(path).max() < 10_000:
        raise DefianceError(
            f"simulate: a path is two or more places [K, 2] in pixels, got {list(path.shape)}"
        )
    if labels is None:
        labels = torch.full((len(images),), -1)

    rows, columns = _optics(images.shape[1], config.blur_px), _optics(images.shape[2], config.blur_px)
    margin = (len(rows) - images.shape[1]) // 2
    deviate = stream.child("pixels").numpy().standard_normal((2, config.height, config.width))
    threshold = (config.threshold * np.exp(config.mismatch * deviate)).astype(np.float32)
    follow = -math.expm1(-STEP_US / config.time_constant_us) if config.time_constant_us else 1.0
    key = stream.child("noise").numpy().integers(2**64, dtype=np.uint64)

    parts = []
    for first in range(0, max(1, len(images)), IMAGES_AT_ONCE):
        ink_at_once = ink[first : first + IMAGES_AT_ONCE]
        level = torch.log1p(config.contrast * (rows @ ink_at_once @ columns.T))
        keys, offset = kernel.run(
            level.numpy(),
            path - margin,
            float(STEP_US),
            threshold[0],
            threshold[1],
            follow,
            config.refractory_us,
            config.noise_hz * config.width * config.height / 1e6,
            key,
            first,
        )
        n = len(keys)
        x, y = torch.empty(n, dtype=torch.int16), torch.empty(n, dtype=torch.int16)
        polarity, time_us = torch.empty(n, dtype=torch.uint8), torch.empty(n, dtype=torch.int64)
        kernel.unpack(keys, x.numpy(), y.numpy(), polarity.numpy(), time_us.numpy())
        parts.append(
            Recordings(
                x,
                y,
                polarity,
                time_us,
                torch.from_numpy(offset),
                labels[first : first + IMAGES_AT_ONCE],
                config.width,
                config.height,
            )
        )
    return Recordings.concatenate(parts)


def _optics(pixels: int, blur_px: float) -> Tensor:
    """How much of each screen pixel (a square as wide as a sensor pixel) a line of sensor pixels sees.

    Returns:
        float32 [pixels + 2 m, pixels]: m lines before the image's first and m after its last.
    """
    margin = math.ceil(3.5 * blur_px) + 1
    distance = np.arange(-margin, pixels + margin)[:, None] - np.arange(pixels)
    seen = ndtr((distance + 0.5) / blur_px) - ndtr((distance - 0.5) / blur_px)
    return torch.from_numpy(seen.astype(np.float32))
