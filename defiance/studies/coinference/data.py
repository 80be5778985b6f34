"""What is learned from and what is tested on, as binned samples.

No image is on both sides: simulated training recordings are of MNIST's training images without those that
the real recordings show, simulated test recordings of its test images, and the real recordings of a fold are
never trained on by the models that it tests.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from defiance.codecs.codec import Samples
from defiance.codecs.events import (
    Recordings,
    SensorConfig,
    digits,
    frames,
    mnist_images,
    saccades,
    simulate,
    translation,
)
from defiance.codecs.events.formats import read
from defiance.errors import DefianceError
from defiance.recordings import data_folder
from defiance.seeding import Stream, stream
from defiance.studies.coinference.settings import STEPS, Config, Model

SACCADES_US = 315_000
"""Of a recording with N-MNIST's three saccades; the longest real one lasts 315.1 ms."""
MOTION_US = 2_000_000
CLASSES = 10
PIXELS = 34
RECORDINGS = Path("nmnist") / "nmnist_train1000.npz"


def duration_us(data: str) -> int:
    """How long a recording is."""
    return MOTION_US if data == "motion" else SACCADES_US


def has_recordings() -> bool:
    """Whether the real recordings and the images beside them are there."""
    folder = data_folder()
    return (folder / RECORDINGS).is_file() and (folder / "mnist").is_dir()


def learned_from(config: Config, model: Model) -> tuple[Samples, Samples]:
    """Training and validation samples of a model."""
    return _learned_from(
        config.training.recordings, config.training.validation, config.folds, *_sources(config, model)
    )


def _sources(config: Config, model: Model) -> tuple[str, str, int, int]:
    """Data, what of it, how often the real ones, and the seed that images and folds hang on."""
    regime = model.regime if model.regime in ("simulated", "real") else "mixed"
    return model.data, regime, config.training.real_repeats, model.seed


@lru_cache(maxsize=1)
def _learned_from(
    recordings: int, validation: int, folds: int, data: str, regime: str, repeats: int, seed: int
) -> tuple[Samples, Samples]:
    random = stream(seed, "coinference", data, "recordings")
    if data == "digits":
        return _split(binned(digits("train", random), data), validation, random)
    found = []
    if regime != "real":
        images, labels = mnist_images(data_folder() / "mnist", "train")
        free = torch.ones(len(images), dtype=torch.bool)
        free[real_recordings()[1]] = False
        places = free.nonzero().squeeze(1)
        order = places[torch.randperm(len(places), generator=random.child("images").generator())]
        order = order[: recordings + validation]
        if len(order) < recordings + validation:
            raise DefianceError(
                f"training.recordings {recordings} and training.validation {validation} are more than the "
                f"{len(places)} images without a real recording; take fewer"
            )
        simulated = Samples(_simulated(images[order], data, random), labels[order])
        place = torch.arange(len(order))
        found.append((simulated.select(place >= validation), simulated.select(place < validation)))
    if regime != "simulated" and data == "nmnist":
        samples = _real()
        own = samples.select(fold_of(samples.labels, folds) != seed % folds)
        learned, held = _split(own, len(own) // 10, random)
        found.append((Samples.concatenate([learned] * repeats), held))
    training, held_out = zip(*found, strict=True)
    return Samples.concatenate(training), Samples.concatenate(held_out)


@lru_cache(maxsize=2)
def tested_on(data: str, fold: int, folds: int, recordings: int) -> Samples:
    """Test samples: a fold of the real recordings, or as many of the others as are wanted."""
    if data == "nmnist":
        samples = _real()
        return samples.select(fold_of(samples.labels, folds) == fold)
    random = stream(0, "coinference", data, "test")
    if data == "digits":
        samples = binned(digits("test", random), data)
        return samples.select(torch.arange(min(recordings, len(samples))))
    images, labels = mnist_images(data_folder() / "mnist", "test")
    kind = "motion" if data == "motion" else "nmnist"
    return Samples(_simulated(images[:recordings], kind, random), labels[:recordings])


def fold_of(labels: Tensor, folds: int) -> Tensor:
    """The fold of each recording, int64 [R]: every class is dealt out in turn."""
    fold = torch.empty_like(labels)
    for label in labels.unique():
        places = (labels == label).nonzero().squeeze(1)
        fold[places] = torch.arange(len(places)) % folds
    return fold


@lru_cache(maxsize=1)
def real_recordings() -> tuple[Recordings, Tensor]:
    """The real N-MNIST recordings, and which of MNIST's training images each shows, int64 [R]."""
    path = data_folder() / RECORDINGS
    recordings, _ = read(path)
    with np.load(path, allow_pickle=False) as arrays:
        return recordings, torch.from_numpy(arrays["mnist_index"].astype(np.int64))


def binned(recordings: Recordings, data: str) -> Samples:
    """Frames of recordings with their classes."""
    return Samples(frames(recordings, STEPS, duration_us(data)), recordings.label)


def shifted(samples: Tensor, most_px: int, generator: torch.Generator) -> Tensor:
    """Move each recording of a batch [B, T, 2, H, W] by up to so many pixels in both directions."""
    if most_px == 0:
        return samples
    height, width = samples.shape[-2:]
    padded = functional.pad(samples, (most_px,) * 4)
    by = torch.randint(0, 2 * most_px + 1, (2, len(samples), 1), generator=generator)
    rows, columns = torch.arange(height) + by[0], torch.arange(width) + by[1]
    batch = torch.arange(len(samples))[:, None, None]
    moved = padded.permute(0, 3, 4, 1, 2)[batch, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 4, 1, 2).contiguous()


@lru_cache(maxsize=1)
def _real() -> Samples:
    return binned(real_recordings()[0], "nmnist")


def _simulated(images: Tensor, data: str, random: Stream) -> Tensor:
    path = translation(MOTION_US) if data == "motion" else saccades()
    recorded = simulate(images, path, SensorConfig(), random.child("camera"))
    return frames(recorded, STEPS, duration_us(data))


def _split(samples: Samples, held: int, random: Stream) -> tuple[Samples, Samples]:
    """All but `held` of the samples, and those, drawn."""
    held = min(held, len(samples) // 5)
    order = torch.randperm(len(samples), generator=random.child("validation").generator())
    return samples.select(order[held:]), samples.select(order[:held])
