"""Recordings of an event camera, flat in memory, and the frames that networks see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from defiance.errors import DefianceError

LONGEST_US = 1 << 40
"""A recording lasts less, 12.7 days: AEDAT 2.0's clock has 32 bits, and times 2^22 bins still fit into 63."""


@dataclass(frozen=True)
class Recordings:
    """R recordings; the events of recording r are those from `offset[r]` to `offset[r + 1]`.

    Attributes:
        x: column from the left, int16 [n].
        y: row from the top, int16 [n].
        polarity: 1 where brightness increased, 0 where it decreased, uint8 [n].
        time_us: since the recording began, never decreasing within one, below `LONGEST_US`, int64 [n].
        offset: int64 [R + 1], from 0 to n.
        label: class, -1 if unknown, int64 [R].
        width: columns of the sensor.
        height: rows of the sensor.
    """

    x: Tensor
    y: Tensor
    polarity: Tensor
    time_us: Tensor
    offset: Tensor
    label: Tensor
    width: int
    height: int

    def __post_init__(self) -> None:
        """Refuses what no camera can have recorded: DefianceError."""
        dtypes = {
            "x": torch.int16,
            "y": torch.int16,
            "polarity": torch.uint8,
            "time_us": torch.int64,
            "offset": torch.int64,
            "label": torch.int64,
        }
        for name, dtype in dtypes.items():
            tensor: Tensor = getattr(self, name)
            if tensor.dtype != dtype or tensor.dim() != 1:
                raise DefianceError(
                    f"recordings: {name} must be one row of {dtype}, got {tensor.dtype} {list(tensor.shape)}"
                )
        events = len(self.x)
        if not len(self.y) == len(self.polarity) == len(self.time_us) == events:
            raise DefianceError("recordings: x, y, polarity and time_us must be of equal length")
        if len(self.offset) != len(self.label) + 1:
            raise DefianceError(
                f"recordings: {len(self.label)} labels need {len(self.label) + 1} offsets, "
                f"got {len(self.offset)}"
            )
        if self.offset[0] != 0 or self.offset[-1] != events or bool((self.offset.diff() < 0).any()):
            raise DefianceError(f"recordings: offsets must rise from 0 to the {events} events")
        if events == 0:
            return
        for name, coordinate, limit in (("x", self.x, self.width), ("y", self.y, self.height)):
            low, high = coordinate.aminmax()
            if low < 0 or high >= limit:
                raise DefianceError(
                    f"recordings: {name} from {int(low)} to {int(high)} leaves a sensor of "
                    f"{self.width} x {self.height}"
                )
        if self.polarity.max() > 1:
            raise DefianceError("recordings: a polarity must be 0 or 1")
        backward = self.time_us[1:] < self.time_us[:-1]
        backward[self.offset[(self.offset > 0) & (self.offset < events)] - 1] = False
        if self.time_us[self.offset[:-1][self.counts > 0]].min() < 0 or bool(backward.any()):
            raise DefianceError("recordings: times must start at 0 or later and never run backwards")
        if self.time_us.max() >= LONGEST_US:
            raise DefianceError(
                f"recordings: {int(self.time_us.max())} us; times must be below {LONGEST_US}, in microseconds"
            )

    def __len__(self) -> int:
        return len(self.label)

    @property
    def counts(self) -> Tensor:
        """Events of each recording, int64 [R]."""
        return self.offset.diff()

    @property
    def owner(self) -> Tensor:
        """The recording of each event, int64 [n]."""
        return torch.arange(len(self)).repeat_interleave(self.counts)

    def select(self, index: Tensor) -> Recordings:
        """Return the recordings at these places (int64 [m], any order and repeats, or bool [R])."""
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(1)
        counts = self.counts[index]
        offset = _offsets(counts)
        shift = self.offset[:-1][index] - offset[:-1]
        event = torch.arange(int(offset[-1])) + shift.repeat_interleave(counts)
        return Recordings(
            self.x[event],
            self.y[event],
            self.polarity[event],
            self.time_us[event],
            offset,
            self.label[index],
            self.width,
            self.height,
        )

    @staticmethod
    def concatenate(parts: Sequence[Recordings]) -> Recordings:
        """Return all parts' recordings, in order; the sensors must be of one size."""
        if len({(part.width, part.height) for part in parts}) != 1:
            raise DefianceError("recordings: only recordings of one sensor size can be joined")
        return Recordings(
            torch.cat([part.x for part in parts]),
            torch.cat([part.y for part in parts]),
            torch.cat([part.polarity for part in parts]),
            torch.cat([part.time_us for part in parts]),
            _offsets(torch.cat([part.counts for part in parts])),
            torch.cat([part.label for part in parts]),
            parts[0].width,
            parts[0].height,
        )


def frames(
    recordings: Recordings, steps: int, duration_us: int, crop: tuple[int, int] | None = None
) -> Tensor:
    """Count the events in each bin of time, polarity and pixel.

    Args:
        recordings: R of them, on a sensor of H x W pixels.
        steps: T; bin k holds the times from k to k + 1 T-ths of `duration_us`.
        duration_us: of all bins together; later events are left out.
        crop: rows and columns that are kept, around the sensor's centre; None keeps all.

    Returns:
        uint8 [R, T, 2, H, W], decreases before increases; a bin counts to 255 and no further.
    """
    rows, columns = crop or (recordings.height, recordings.width)
    if steps < 1 or duration_us < steps:
        raise DefianceError(f"frames: {steps} bins of {duration_us} us in all; both must be positive")
    if not (0 < rows <= recordings.height and 0 < columns <= recordings.width):
        raise DefianceError(
            f"frames: a crop of {rows} rows and {columns} columns does not fit in a sensor of "
            f"{recordings.height} x {recordings.width}"
        )
    binned = torch.zeros(len(recordings), steps, 2, rows, columns, dtype=torch.uint8)
    _count(
        recordings.x.numpy(),
        recordings.y.numpy(),
        recordings.polarity.numpy(),
        recordings.time_us.numpy(),
        recordings.offset.numpy(),
        duration_us,
        (recordings.height - rows) // 2,
        (recordings.width - columns) // 2,
        binned.numpy(),
    )
    return binned


def cut(recordings: Recordings, steps: int, duration_us: int) -> tuple[Recordings, int]:
    """Cut recordings by their clocks into consecutive ones of equal duration.

    Where a stretch is silent, from one multiple of `duration_us` to the next, there is no recording; nor is a
    last one that has no event after its first step, unless it is the only one.

    Args:
        recordings: R of them.
        steps: T; a step is a T-th of `duration_us`.
        duration_us: of each of the new ones.

    Returns:
        The new ones, in order; and how many events were in last ones that are none.
    """
    owner, number = recordings.owner, recordings.time_us // duration_us
    within_us = recordings.time_us - number * duration_us
    begins = torch.ones(len(owner), dtype=torch.bool)
    begins[1:] = (owner.diff() != 0) | (number.diff() != 0)
    first = begins.nonzero().squeeze(1)
    counts = torch.cat([first, torch.tensor([len(owner)])]).diff()
    other = owner[first].diff() != 0
    edge = torch.ones(min(1, len(first)), dtype=torch.bool)
    only_begun = within_us[first + counts - 1] * steps < duration_us
    rest = ~torch.cat([edge, other]) & torch.cat([other, edge]) & only_begun
    pieces = Recordings(
        recordings.x,
        recordings.y,
        recordings.polarity,
        within_us,
        _offsets(counts),
        recordings.label[owner[first]],
        recordings.width,
        recordings.height,
    )
    return pieces.select(~rest), int(counts[rest].sum())


@njit(cache=True)
def _count(
    x: NDArray[np.int16],
    y: NDArray[np.int16],
    polarity: NDArray[np.uint8],
    time_us: NDArray[np.int64],
    offset: NDArray[np.int64],
    duration_us: int,
    top: int,
    left: int,
    binned: NDArray[np.uint8],
) -> None:
    """Count events into binned [R, T, 2, H, W], whose first pixel is the sensor's (top, left)."""
    recordings, steps, _, rows, columns = binned.shape
    for r in range(recordings):
        for i in range(offset[r], offset[r + 1]):
            row, column = y[i] - top, x[i] - left
            step = time_us[i] * steps // duration_us
            if 0 <= row < rows and 0 <= column < columns and 0 <= step < steps:
                if binned[r, step, polarity[i], row, column] < 255:
                    binned[r, step, polarity[i], row, column] += 1


def _offsets(counts: Tensor) -> Tensor:
    """Where each recording begins and the last one ends, from the events of each: int64 [R] -> [R + 1]."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
