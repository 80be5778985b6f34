"""Event maps in few bits: a context model of integer tables, and asymmetric numeral systems (ANS).

```
 counts ─▶ binary map of the finest level that fits ─▶ contexts ─▶ probabilities n / 2^16 ─▶ ANS ─▶ k bits
```

A map is coded plane by plane (slices, then polarities), each in four passes over every other row and column;
a cell's context is its place, the neighbours that earlier passes have coded, and the planes before, so that a
pass is decoded at once. Probabilities are ratios of training counts, found by integer arithmetic and exact in
floating point: every machine decodes the same (constriction, Bamler 2022, arXiv 2201.01741).

The ANS stack of a decoded map must be empty: bits that the channel has changed leave something on it, or
nothing where there was something. That check costs no bits beyond the stack's own 24 of precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import constriction
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from defiance.codecs.conventional import event_map
from defiance.codecs.joint import binary_map
from defiance.errors import DefianceError
from defiance.learn.training import Parameters

Bits = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

PROBABILITY_BITS = 16
LEVEL_BITS = 3
WORD_BITS = 32
PASSES = ((0, 0), (1, 1), (0, 1), (1, 0))
"""First row and column of each pass; its cells are two apart."""
KNOWN = (
    (),
    ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    ((-1, 0), (1, 0), (0, -1), (0, 1)),
    ((-1, 0), (1, 0), (0, -1), (0, 1)),
)
"""Neighbours of a pass's cells that earlier passes have coded."""
AROUND = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1))
PLACE_EDGES = (1, 6, 16, 40, 80, 128, 176)
"""Of 256 training maps, so many have a one here: where the classes of places begin."""
LAST_EDGES = (1, 3, 5, 7)
"""Ones among the nine cells of the plane before: where their classes begin."""
EARLIER_EDGES = (1, 4)
"""The same for the plane before that."""
CONTEXTS = len(PASSES) * 5 * (len(LAST_EDGES) + 1) * (len(EARLIER_EDGES) + 1) * 2 * 2 * (len(PLACE_EDGES) + 1)
"""Of one plane."""

_BERNOULLI = constriction.stream.model.Bernoulli(perfect=False)


@dataclass(frozen=True)
class Level:
    """How finely a map is coded.

    Attributes:
        cells: rows and columns.
        polarities: 2 tells decreases from increases, 1 does not.
        threshold: events from which on a cell is one.
    """

    cells: int
    polarities: int
    threshold: int


LEVELS = (Level(14, 2, 2), Level(14, 1, 3), Level(9, 2, 3), Level(9, 1, 5), Level(7, 1, 8), Level(5, 1, 14))
"""From fine to coarse, for 28 x 28 pixels."""


@dataclass(frozen=True)
class MapCoderConfig:
    """What is coded.

    Attributes:
        size: rows and columns of pixels that are seen, in the sensor's middle.
        slices: S, slices of time.
        levels: from fine to coarse.
    """

    size: int = 28
    slices: int = 3
    levels: tuple[Level, ...] = LEVELS

    def __post_init__(self) -> None:
        if not 1 <= len(self.levels) < 1 << LEVEL_BITS:
            raise DefianceError(f"map coder: 1 to {(1 << LEVEL_BITS) - 1} levels, got {len(self.levels)}")


@dataclass(frozen=True)
class MapCoder:
    """A context model with its tables.

    Attributes:
        config: what is coded.
        tables: per level i, `level{i}.place` [planes, cells, cells], the class of each place, and
            `level{i}.one` [planes x contexts], how probable a one is, times 2^16; int32.
    """

    config: MapCoderConfig
    tables: Mapping[str, Tensor]

    @staticmethod
    def count(config: MapCoderConfig, frames: Tensor) -> Parameters:
        """Return the tables of training frames, uint8 [R, T, 2, H, W]."""
        tables = {}
        for number, level in enumerate(config.levels):
            maps = np.concatenate([_maps(config, level, part) for part in frames.split(500)])
            place = np.searchsorted(
                PLACE_EDGES, 256 * maps.sum(0, dtype=np.int64) // max(len(maps), 1), "right"
            )
            ones = np.zeros(maps.shape[1] * CONTEXTS, np.int64)
            zeros = np.zeros_like(ones)
            for first in range(0, len(maps), 500):
                part = maps[first : first + 500]
                for context, cells in _passes(part, place):
                    ones += np.bincount(context[cells == 1], minlength=len(ones))
                    zeros += np.bincount(context[cells == 0], minlength=len(ones))
            one = ((2 * ones + 1) << PROBABILITY_BITS) // (2 * (ones + zeros) + 2)
            one = one.clip(1 << 4, (1 << PROBABILITY_BITS) - (1 << 4))
            tables[f"level{number}.place"] = torch.from_numpy(place.astype(np.int32))
            tables[f"level{number}.one"] = torch.from_numpy(one.astype(np.int32))
        return tables

    def compress(self, frames: Tensor, bits: int) -> Tensor:
        """Return each map at the finest level that fits.

        Three bits say the level, 1 the finest; the others are the ANS stack, lowest bit first. What does not
        fit even at the coarsest level is all zeros.

        Args:
            frames: uint8 [B, T, 2, H, W].
            bits: k.

        Returns:
            float32 [B, k].
        """
        compressed = torch.zeros(len(frames), bits)
        for number, at, _, payload in self._chosen(frames, bits):
            compressed[at, :LEVEL_BITS] = _digits(number + 1, LEVEL_BITS)
            compressed[at, LEVEL_BITS : LEVEL_BITS + len(payload)] = payload
        return compressed

    def restore(self, bits: Tensor) -> Tensor:
        """Return the decoded maps: -1 for no events, 1 for some, 0 where the bits are not those of a map.

        Args:
            bits: float [B, k], zeros and ones.

        Returns:
            float32 [B, 2 S, cells, cells], of the finest level's cells.
        """
        restored = self._nothing(len(bits))
        header = functional.pad(bits[:, :LEVEL_BITS], (0, max(0, LEVEL_BITS - bits.shape[1])))
        level = (header.long() << torch.arange(LEVEL_BITS)).sum(1) - 1
        for number in range(len(self.config.levels)):
            at = (level == number).nonzero().squeeze(1)
            if len(at):
                maps, valid = self._decoded(number, bits[at, LEVEL_BITS:])
                restored[at[valid]] = self._shown(number, maps)[valid]
        return restored

    def distort(self, frames: Tensor, bits: int, errors: Tensor) -> Tensor:
        """Return what `restore` makes of `compress` if the channel changes bits, without decoding.

        Args:
            frames: uint8 [B, T, 2, H, W].
            bits: k.
            errors: bool [B, k].
        """
        restored = self._nothing(len(frames))
        for number, at, cells, _ in self._chosen(frames, bits):
            restored[at] = self._shown(number, cells[None])[0]
        restored[errors.any(1)] = 0
        return restored

    def _chosen(self, frames: Tensor, bits: int) -> Iterator[tuple[int, int, Bits, Tensor]]:
        """Find each map's finest level that fits: the level, its place in the batch, the map, its stack."""
        waiting: Integers = np.arange(len(frames))
        for number, level in enumerate(self.config.levels):
            if not len(waiting):
                return
            maps = _maps(self.config, level, frames[torch.from_numpy(waiting)])
            passes = list(_passes(maps, self._place(number)))
            one = np.concatenate([self._one(number, context) for context, _ in passes], 1)
            cells = np.concatenate([cells for _, cells in passes], 1)
            ideal = -np.log2(np.where(cells == 1, one, 1 - one)).sum(1)
            too_long = []
            for row, at in enumerate(waiting):
                payload = _pushed(cells[row], one[row]) if ideal[row] <= bits else None
                if payload is None or len(payload) > bits - LEVEL_BITS:
                    too_long.append(at)
                else:
                    yield number, int(at), maps[row], payload
            waiting = np.array(too_long, np.int64)

    def _decoded(self, number: int, payload: Tensor) -> tuple[Bits, Tensor]:
        """Pop maps of one level off their stacks; and whether nothing was left, bool [B]."""
        place = self._place(number)
        stacks = [_stack(row) for row in payload.numpy()]
        maps = np.zeros((len(payload), *place.shape), np.uint8)
        for plane in range(place.shape[0]):
            for turn, (row, column) in enumerate(PASSES):
                one = self._one(number, _context(maps, place, plane, turn))
                cells = np.stack(
                    [
                        stack.decode(_BERNOULLI, probability)
                        for stack, probability in zip(stacks, one, strict=True)
                    ]
                )
                target = maps[:, plane, row::2, column::2]
                target[:] = cells.reshape(target.shape)
        return maps, torch.tensor([stack.is_empty() for stack in stacks])

    def _place(self, number: int) -> Integers:
        place: Integers = self.tables[f"level{number}.place"].numpy().astype(np.int64)
        return place

    def _one(self, number: int, context: Integers) -> npt.NDArray[np.float64]:
        table: Integers = self.tables[f"level{number}.one"].numpy()
        return table[context] / float(1 << PROBABILITY_BITS)

    def _nothing(self, count: int) -> Tensor:
        finest = self.config.levels[0].cells
        return torch.zeros(count, 2 * self.config.slices, finest, finest)

    def _shown(self, number: int, maps: Bits) -> Tensor:
        """Bring maps [B, planes, cells, cells] of a level to the finest level's cells and both polarities."""
        level, finest = self.config.levels[number], self.config.levels[0].cells
        values = torch.from_numpy(maps).float().mul(2).sub(1)
        values = values.repeat_interleave(2 // level.polarities, 1)
        return functional.interpolate(values, (finest, finest), mode="nearest")


def _maps(config: MapCoderConfig, level: Level, frames: Tensor) -> Bits:
    """Binary maps, [B, planes, cells, cells]."""
    counts = event_map(frames, config.size, config.slices, level.cells)
    maps: Bits = binary_map(counts, level.polarities, level.threshold).flatten(1, 2).byte().numpy()
    return maps


def _passes(maps: Bits, place: Integers) -> Iterator[tuple[Integers, Bits]]:
    """Contexts and cells, [B, cells of the pass] each, in the order in which they are decoded."""
    for plane in range(maps.shape[1]):
        for turn, (row, column) in enumerate(PASSES):
            cells = maps[:, plane, row::2, column::2].reshape(len(maps), -1)
            yield _context(maps, place, plane, turn), cells


def _context(maps: Bits, place: Integers, plane: int, turn: int) -> Integers:
    """The context of each cell of a pass, [B, cells of the pass]; reads only what is coded before it."""
    row, column = PASSES[turn]
    classes = place[plane, row::2, column::2]
    shape = (len(maps), *classes.shape)

    def ones(plane: int, neighbours: Sequence[tuple[int, int]]) -> Integers:
        total = np.zeros(shape, np.int64)
        if plane >= 0:
            padded = np.pad(maps[:, plane], ((0, 0), (1, 1), (1, 1)))
            for down, right in neighbours:
                from_row, from_column = 1 + row + down, 1 + column + right
                total += padded[:, from_row::2, from_column::2][:, : shape[1], : shape[2]]
        return total

    own = ones(plane, KNOWN[turn])
    last = np.searchsorted(LAST_EDGES, ones(plane - 1, AROUND), "right")
    earlier = np.searchsorted(EARLIER_EDGES, ones(plane - 2, AROUND), "right")
    context = np.full(shape, plane * len(PASSES) + turn)
    for value, values in (
        (own, 5),
        (last, len(LAST_EDGES) + 1),
        (earlier, len(EARLIER_EDGES) + 1),
        (ones(plane - 1, [(0, 0)]), 2),
        (ones(plane - 2, [(0, 0)]), 2),
        (classes, len(PLACE_EDGES) + 1),
    ):
        context = context * values + value
    return context.reshape(len(maps), -1)


def _pushed(cells: Bits, one: npt.NDArray[np.float64]) -> Tensor:
    """Push a map on an empty ANS stack; return the stack as bits, lowest first, without leading zeros."""
    stack = constriction.stream.stack.AnsCoder()
    stack.encode_reverse(cells.astype(np.int32), _BERNOULLI, one)
    words: npt.NDArray[np.uint32] = stack.get_compressed()
    digits = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little")
    return torch.from_numpy(np.trim_zeros(digits, "b")).float()


def _stack(digits: npt.NDArray[np.float32]) -> constriction.stream.stack.AnsCoder:
    """Return the ANS stack that bits, lowest first, stand for."""
    padded = np.pad(digits.astype(np.uint8), (0, -len(digits) % WORD_BITS))
    words = np.packbits(padded, bitorder="little").view("<u4").astype(np.uint32)
    return constriction.stream.stack.AnsCoder(np.trim_zeros(words, "b"))


def _digits(number: int, count: int) -> Tensor:
    return ((number >> torch.arange(count)) & 1).float()
