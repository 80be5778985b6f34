"""Streams: equal by name, independent across names, and draws that belong to an id."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from defiance.seeding import Stream, stream

MASK = 2**64 - 1


def splitmix64(state: int) -> int:
    """Return the finaliser of splitmix64 in plain integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def test_names_join() -> None:
    """A child is the stream of the joined name."""
    assert stream(1, "a", "b", 3) == stream(1, "a").child("b", 3) == Stream(1, "a/b/3")


def test_splitmix_is_the_published_one() -> None:
    """The first outputs of splitmix64 from state 0 are those of the reference implementation."""
    outputs = [splitmix64((i * 0x9E3779B97F4A7C15) & MASK) for i in (1, 2, 3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(st.integers(0, 2**63), st.text(max_size=8), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5))
def test_uniform_equals_plain_integers(seed: int, name: str, ids: list[int]) -> None:
    """The tensor program computes splitmix64, wrap-around included."""
    source = Stream(seed, name)
    key = source._number(64)
    expected = [(splitmix64((key + i * 0x9E3779B97F4A7C15) & MASK) >> 11) * 2.0**-53 for i in ids]
    assert source.uniform(torch.tensor(ids, dtype=torch.int64)).tolist() == expected


def test_same_name_same_numbers() -> None:
    """Two streams of one seed and name draw the same, whatever was drawn elsewhere."""
    first = torch.rand(4, generator=stream(5, "fading").generator())
    stream(5, "traffic").numpy().random(100)
    second = torch.rand(4, generator=stream(5, "fading").generator())
    assert torch.equal(first, second)
    assert stream(5, "fading").numpy().random() == stream(5, "fading").numpy().random()


@pytest.mark.parametrize("other", [stream(6, "fading"), stream(5, "fadinh"), stream(5, "fading", "x")])
def test_other_name_or_seed_is_independent(other: Stream) -> None:
    """Draws of two streams are uncorrelated (n = 20000: 5 standard deviations are 0.035)."""
    ids = torch.arange(20_000)
    mine = stream(5, "fading")
    for a, b in [
        (mine.uniform(ids).numpy(), other.uniform(ids).numpy()),
        (mine.numpy().random(20_000), other.numpy().random(20_000)),
        (
            torch.rand(20_000, generator=mine.generator()).numpy(),
            torch.rand(20_000, generator=other.generator()).numpy(),
        ),
    ]:
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.035


def test_uniform_is_uniform() -> None:
    """Moments, neighbours' correlation and the histogram agree with U[0, 1), even for structured ids."""
    for ids in (torch.arange(100_000), torch.arange(100_000) << 32):
        draws = stream(0, "loss").uniform(ids)
        assert draws.min() >= 0.0 and draws.max() < 1.0
        assert abs(draws.mean().item() - 0.5) < 0.005  # 5 standard deviations: 0.0046
        assert abs(draws.var().item() - 1 / 12) < 0.002
        assert abs(torch.corrcoef(torch.stack([draws[1:], draws[:-1]]))[0, 1].item()) < 0.016
        counts = torch.histc(draws, 10, 0.0, 1.0)
        assert ((counts - 10_000) ** 2 / 10_000).sum().item() < 30.0  # chi2, 9 degrees: p = 4e-4


def test_a_draw_belongs_to_its_id() -> None:
    """Order and company change nothing."""
    ids = torch.randperm(1000, generator=stream(0, "order").generator())
    draws = stream(1, "loss").uniform(ids)
    assert torch.equal(draws[ids.argsort()], stream(1, "loss").uniform(torch.arange(1000)))
    assert torch.equal(stream(1, "loss").uniform(ids[:10]), draws[:10])
    assert torch.equal(stream(1, "loss").uniform(ids.view(10, 100)), draws.view(10, 100))
