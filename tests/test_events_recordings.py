import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from defiance.codecs.events import Recordings, cut, frames
from defiance.errors import DefianceError

WIDTH, HEIGHT = 7, 5


def made_up(counts: list[int], seed: int = 0) -> Recordings:
    generator = torch.Generator().manual_seed(seed)
    n = sum(counts)

    def draw(limit: int, dtype: torch.dtype) -> Tensor:
        return torch.randint(limit, (n,), generator=generator).to(dtype)

    times = [torch.randint(1000, (count,), generator=generator).sort().values for count in counts]
    return Recordings(
        draw(WIDTH, torch.int16),
        draw(HEIGHT, torch.int16),
        draw(2, torch.uint8),
        torch.cat(times) if times else torch.zeros(0, dtype=torch.int64),
        torch.tensor([0, *counts]).cumsum(0),
        torch.arange(len(counts)),
        WIDTH,
        HEIGHT,
    )


def counted_one_by_one(recordings: Recordings, steps: int, duration_us: int, crop: tuple[int, int]) -> Tensor:
    found = torch.zeros(len(recordings), steps, 2, *crop, dtype=torch.int64)
    owner = recordings.owner.tolist()
    top, left = (HEIGHT - crop[0]) // 2, (WIDTH - crop[1]) // 2
    for event in range(len(recordings.x)):
        step = int(recordings.time_us[event]) * steps // duration_us
        y, x = int(recordings.y[event]) - top, int(recordings.x[event]) - left
        if step < steps and 0 <= y < crop[0] and 0 <= x < crop[1]:
            found[owner[event], step, int(recordings.polarity[event]), y, x] += 1
    return found


@settings(deadline=None, max_examples=30)
@given(
    counts=st.lists(st.integers(0, 60), max_size=5),
    steps=st.integers(1, 6),
    duration_us=st.integers(6, 1500),
    crop=st.tuples(st.integers(1, HEIGHT), st.integers(1, WIDTH)),
)
def test_frames_count_every_event_once(
    counts: list[int], steps: int, duration_us: int, crop: tuple[int, int]
) -> None:
    recordings = made_up(counts)
    binned = frames(recordings, steps, duration_us, crop)
    assert binned.dtype == torch.uint8
    assert torch.equal(binned.long(), counted_one_by_one(recordings, steps, duration_us, crop))


def test_a_bin_counts_to_255() -> None:
    n = 300
    flat = torch.zeros(n, dtype=torch.int16)
    recordings = Recordings(
        flat,
        flat,
        flat.to(torch.uint8),
        flat.long(),
        torch.tensor([0, n]),
        torch.tensor([4]),
        WIDTH,
        HEIGHT,
    )
    assert frames(recordings, 1, 10).max() == 255


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3), max_size=6))
def test_selected_recordings_are_those_that_were_there(index: list[int]) -> None:
    recordings = made_up([5, 0, 30, 4])
    picked = torch.tensor(index, dtype=torch.int64)
    chosen = recordings.select(picked)
    assert torch.equal(frames(chosen, 2, 1000), frames(recordings, 2, 1000)[picked])
    assert chosen.label.tolist() == index


def test_selection_by_a_mask_and_joining_give_everything_back() -> None:
    recordings = made_up([5, 0, 30, 4])
    half = torch.tensor([True, True, False, False])
    joined = Recordings.concatenate([recordings.select(half), recordings.select(~half)])
    for name in ("x", "y", "polarity", "time_us", "offset", "label"):
        assert torch.equal(getattr(joined, name), getattr(recordings, name)), name


def test_what_no_camera_recorded_is_refused() -> None:
    good = made_up([5, 4])
    wrong: dict[str, tuple[Tensor, str]] = {
        "x": (good.x.long(), "x must be"),
        "y": (torch.full_like(good.y, HEIGHT), "leaves a sensor"),
        "polarity": (good.polarity + 2, "polarity"),
        "time_us": (good.time_us.flip(0), "backwards"),
        "offset": (torch.tensor([0, 6, 5]), "rise"),
        "label": (torch.zeros(3, dtype=torch.int64), "offsets"),
    }
    fields = {name: getattr(good, name) for name in wrong}
    for name, (value, message) in wrong.items():
        with pytest.raises(DefianceError, match=message):
            Recordings(**{**fields, name: value}, width=WIDTH, height=HEIGHT)
    late = good.time_us.clone()
    late[-1] = 2**40
    with pytest.raises(DefianceError, match="must be below"):
        Recordings(**{**fields, "time_us": late}, width=WIDTH, height=HEIGHT)
    with pytest.raises(DefianceError, match="equal length"):
        Recordings(**{**fields, "x": good.x[1:]}, width=WIDTH, height=HEIGHT)


def test_frames_refuse_impossible_bins() -> None:
    recordings = made_up([5])
    with pytest.raises(DefianceError, match="bins"):
        frames(recordings, 0, 1000)
    with pytest.raises(DefianceError, match="crop"):
        frames(recordings, 1, 1000, (HEIGHT + 1, WIDTH))
    other = Recordings(**{**vars(recordings), "width": WIDTH + 1})
    with pytest.raises(DefianceError, match="one sensor size"):
        Recordings.concatenate([recordings, other])


def at(*times_us: list[int]) -> Recordings:
    """Recordings of events at these times."""
    n = sum(map(len, times_us))
    return Recordings(
        torch.arange(n, dtype=torch.int16) % WIDTH,
        torch.zeros(n, dtype=torch.int16),
        torch.ones(n, dtype=torch.uint8),
        torch.tensor([time for times in times_us for time in times], dtype=torch.int64),
        torch.tensor([0, *map(len, times_us)]).cumsum(0),
        torch.arange(len(times_us)),
        WIDTH,
        HEIGHT,
    )


def test_long_recordings_become_consecutive_ones() -> None:
    first, silent, joined, begun = [0, 99, 100, 250, 299], [], [730, 2**40 - 1], [50, 120, 333]
    pieces, rest = cut(at(first, silent, joined, begun), 2, 100)
    assert pieces.counts.tolist() == [2, 1, 2, 1, 1, 1, 1] and rest == 1  # 333 is in a first step, 299 isn't
    assert pieces.label.tolist() == [0, 0, 0, 2, 2, 3, 3]
    assert pieces.time_us.tolist() == [0, 99, 0, 50, 99, 30, (2**40 - 1) % 100, 50, 20]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 900), max_size=9).map(sorted), max_size=4), st.integers(1, 7))
def test_cutting_loses_nothing_but_the_rest(times_us: list[list[int]], steps: int) -> None:
    recordings = at(*times_us)
    pieces, rest = cut(recordings, steps, 100)
    assert len(pieces.x) + rest == len(recordings.x)
    assert frames(pieces, steps, 100).sum() == len(pieces.x)
    assert bool((pieces.counts > 0).all())


def test_nothing_is_cut_into_nothing() -> None:
    pieces, rest = cut(at([], []), 2, 100)
    assert len(pieces) == 0 and rest == 0
