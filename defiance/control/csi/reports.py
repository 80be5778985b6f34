"""Reports as bits: fields of fixed widths, packed one after the other, and combinations by their number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from defiance.errors import DefianceError


def pack(values: Sequence[Tensor], widths: Sequence[int]) -> Tensor:
    """Whole numbers as bits, the highest bit of the first number first.

    Args:
        values: int64 [n] or [n, m] each; a column of [n, m] is a number of its own.
        widths: bits of one number of each entry.

    Returns:
        uint8 [n, bits], zeros and ones.

    Raises:
        DefianceError: a number does not fit its width.
    """
    found = []
    for value, width in zip(values, widths, strict=True):
        columns = value.flatten(1) if value.dim() > 1 else value[:, None]
        if bool(((columns < 0) | (columns >= 1 << width)).any()):
            raise DefianceError(f"a report's field of {width} bits can't hold {int(columns.max())}")
        places = torch.arange(width - 1, -1, -1)
        found.append(((columns[..., None] >> places) & 1).flatten(1).to(torch.uint8))
    return torch.cat(found, 1)


def unpack(bits: Tensor, widths: Sequence[int], counts: Sequence[int]) -> list[Tensor]:
    """The inverse of `pack`: int64 [n, count] for every field.

    Args:
        bits: uint8 [n, sum of widths x counts].
        widths: bits of one number of each field.
        counts: numbers of each field.

    Raises:
        DefianceError: the report has another length.
    """
    total = sum(width * count for width, count in zip(widths, counts, strict=True))
    if bits.dim() != 2 or bits.shape[1] != total:
        raise DefianceError(f"a report of {list(bits.shape)[1:]} bits; this codec's have {total}")
    found, at = [], 0
    for width, count in zip(widths, counts, strict=True):
        part = bits[:, at : at + width * count].long().view(len(bits), count, width)
        found.append((part << torch.arange(width - 1, -1, -1)).sum(-1))
        at += width * count
    return found


def choice_bits(of: int, chosen: int) -> int:
    """Bits that say which `chosen` of so many: ceil(log2 C(of, chosen))."""
    return (math.comb(of, chosen) - 1).bit_length()


def rank(chosen: Tensor, of: int) -> Tensor:
    """Number of a combination, int64 [n]: sum of C(of - 1 - m_i, k - i), as clause 5.2.2.2.3 counts.

    Args:
        chosen: ascending, int64 [n, k], each in 0 ... of - 1.
        of: how many there are.
    """
    if not chosen.shape[1]:
        return torch.zeros(len(chosen), dtype=torch.int64)
    k = chosen.shape[1]
    return _binomials(of, k)[of - 1 - chosen, k - torch.arange(k)].sum(1)


def unrank(number: Tensor, of: int, chosen: int) -> Tensor:
    """The inverse of `rank`, int64 [n, chosen]; numbers beyond the last combination give the last."""
    table = _binomials(of, chosen)
    left = number.clamp(max=math.comb(of, chosen) - 1).clone()
    found = torch.zeros(len(number), chosen, dtype=torch.int64)
    for place in range(chosen):
        # the largest x with C(x, k - i) <= what is left
        column = table[:, chosen - place]
        x = torch.searchsorted(column.contiguous(), left, right=True) - 1
        x = x.clamp(max=of - 1)
        left -= column[x]
        found[:, place] = of - 1 - x
    return found


def _binomials(of: int, most: int) -> Tensor:
    """C(x, y) for x below `of` and y to `most`, int64 [of, most + 1]."""
    return torch.tensor([[math.comb(x, y) for y in range(most + 1)] for x in range(of)])
