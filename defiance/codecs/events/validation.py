"""How well simulated recordings agree with real ones of the same images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from defiance.codecs.events.recordings import Recordings, frames
from defiance.errors import DefianceError

SACCADES = 3
SACCADE_US = 105_000
"""The three saccades of N-MNIST begin 105 ms after each other."""


@dataclass(frozen=True)
class Agreement:
    """Simulated against real; perfect is 1 for each.

    Attributes:
        events: mean events of a recording, simulated by real.
        correlation: of the events of a recording, over the recordings.
        map_cosine: between the maps of events per pixel, mean over the recordings.
        detail_cosine: the same for the maps of each saccade and polarity, taken together.
        increases: share of increases, simulated by real.
        saccades: events in each saccade, simulated by real.
    """

    events: float
    correlation: float
    map_cosine: float
    detail_cosine: float
    increases: float
    saccades: tuple[float, ...]


def agreement(simulated: Recordings, real: Recordings) -> Agreement:
    """Compare recordings of the same images, in the same order.

    Raises:
        DefianceError: they are not as many, fewer than two, or of sensors of different size.
    """
    if len(simulated) != len(real) or len(real) < 2:
        raise DefianceError(
            f"agreement: {len(simulated)} simulated against {len(real)} real recordings; "
            "two or more of each are compared"
        )
    ours, theirs = (_maps(recordings) for recordings in (simulated, real))
    if ours.shape != theirs.shape:
        raise DefianceError("agreement: the sensors differ in size")
    counts = torch.stack([ours.sum((1, 2, 3, 4)), theirs.sum((1, 2, 3, 4))])
    return Agreement(
        events=float(counts[0].sum() / counts[1].sum()),
        correlation=float(torch.corrcoef(counts)[0, 1]),
        map_cosine=_cosine(ours.sum((1, 2)), theirs.sum((1, 2))),
        detail_cosine=_cosine(ours, theirs),
        increases=float(ours[:, :, 1].sum() / ours.sum() / (theirs[:, :, 1].sum() / theirs.sum())),
        saccades=tuple((ours.sum((0, 2, 3, 4)) / theirs.sum((0, 2, 3, 4))).tolist()),
    )


def _maps(recordings: Recordings) -> Tensor:
    """Events per saccade, polarity and pixel, float64 [R, 3, 2, H, W]."""
    return frames(recordings, SACCADES, SACCADES * SACCADE_US).double()


def _cosine(ours: Tensor, theirs: Tensor) -> float:
    """Mean over the recordings of the cosine between their maps [R, ...]."""
    return float(torch.cosine_similarity(ours.flatten(1), theirs.flatten(1)).mean())
