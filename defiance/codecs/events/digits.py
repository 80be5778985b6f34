"""Handwritten digits to record: scikit-learn's, which need no download, and MNIST from a folder."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from defiance.codecs.events.recordings import Recordings
from defiance.codecs.events.sensor import SensorConfig, saccades, simulate
from defiance.errors import DefianceError
from defiance.seeding import Stream

Split = Literal["train", "test"]

DIGITS_TRAINING = 1437
"""Of scikit-learn's 1,797 digits; their order is by writer, so that most test digits are by other hands."""

MNIST_FILES = {"train": "train", "test": "t10k"}
MNIST_PIXELS = 28
MNIST_IMAGES = 1_000_000
"""Images in a file at most."""


def digit_images(split: Split) -> tuple[Tensor, Tensor]:
    """Return scikit-learn's digits (8 x 8, Alpaydin and Kaynak 1998) drawn as large as those of MNIST.

    Args:
        split: the first 1,437 or the last 360.

    Returns:
        Ink from 0 to 1, float32 [R, 28, 28], and classes, int64 [R].
    """
    from sklearn.datasets import load_digits  # takes a second to import

    data = load_digits()
    part = slice(DIGITS_TRAINING) if split == "train" else slice(DIGITS_TRAINING, None)
    ink = torch.from_numpy(data.images[part]).float() / 16
    drawn = functional.interpolate(ink[:, None], size=20, mode="bicubic").squeeze(1).clamp(0, 1)
    return functional.pad(drawn, (4, 4, 4, 4)), torch.from_numpy(data.target[part]).long()


def digits(split: Split, stream: Stream) -> Recordings:
    """Record scikit-learn's digits with N-MNIST's saccades and sensor: the data set that needs no download.

    Args:
        split: 1,437 training or 360 test digits.
        stream: the camera and its noise.
    """
    images, labels = digit_images(split)
    return simulate(images, saccades(), SensorConfig(), stream, labels=labels)


def mnist_images(folder: Path, split: Split) -> tuple[Tensor, Tensor]:
    """Read MNIST's two gzipped idx files of a split.

    Args:
        folder: has `train-images-idx3-ubyte.gz` and the others.
        split: 60,000 or 10,000 digits.

    Returns:
        Ink, uint8 [R, 28, 28], and classes, int64 [R].

    Raises:
        DefianceError: a file is missing, foreign, truncated, too long, or does not fit the other.
    """
    name = MNIST_FILES[split]
    images = _idx(folder / f"{name}-images-idx3-ubyte.gz", (MNIST_PIXELS, MNIST_PIXELS))
    labels = _idx(folder / f"{name}-labels-idx1-ubyte.gz", ())
    if len(images) != len(labels):
        raise DefianceError(f"{folder}: {len(images)} images of MNIST with {len(labels)} labels")
    if len(labels) and labels.max() > 9:
        raise DefianceError(f"{folder}: a label of MNIST is {int(labels.max())}, not a digit")
    return images, labels.long()


def _idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read a gzipped idx file of bytes whose items have this shape: uint8 [N, ...]."""
    try:
        with gzip.open(path) as file:
            header = file.read(4 * (2 + len(shape)))
            numbers = np.frombuffer(header, ">u4") if len(header) == 4 * (2 + len(shape)) else np.zeros(2)
            if numbers[0] != 0x0800 + 1 + len(shape) or tuple(numbers[2:]) != shape:
                raise DefianceError(f"{path}: not an idx file of bytes {list(shape)} each (offset 0)")
            count = int(numbers[1])
            if count > MNIST_IMAGES:
                raise DefianceError(f"{path}: {count} items at offset 4, more than {MNIST_IMAGES}")
            size = count * int(np.prod(shape, dtype=np.int64))
            body = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DefianceError(f"{path}: cannot be read: {error}") from error
    if len(body) != size:
        found = "more" if len(body) > size else f"{len(body)}"
        raise DefianceError(f"{path}: {count} items take {size} bytes after the header, found {found}")
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).view(count, *shape)
