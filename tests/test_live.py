"""Events of a stream become the frames that reading the same bytes from a file gives."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from defiance.codecs.events import cut, frames, read
from defiance.codecs.live import LiveFrames, live
from defiance.errors import DefianceError
from defiance.recordings import data_folder
from tests.test_events_formats import Event, nmnist

STEPS, DURATION_US, PIXELS = 15, 315_000, 34
RAW = data_folder() / "nmnist" / "raw"
OVERFLOW: Event = (0, 240, 0, 0)


def streamed(
    data: bytes, portion: int = 1 << 16, duration_us: int = DURATION_US
) -> tuple[Tensor, LiveFrames]:
    """Frames [R, T, 2, H, W] of a stream that comes in portions."""
    counter = LiveFrames(STEPS, duration_us, PIXELS)
    found = list(live((data[start : start + portion] for start in range(0, len(data), portion)), counter))
    shape = (-1, STEPS, 2, PIXELS, PIXELS)
    return torch.stack(found).view(shape) if found else torch.zeros(0, *shape[1:], dtype=torch.uint8), counter


def from_file(path: Path, duration_us: int = DURATION_US) -> tuple[Tensor, int]:
    """Frames [R, T, 2, H, W] of a file, and events after a last recording's end."""
    pieces, rest = cut(read(path)[0], STEPS, duration_us)
    return frames(pieces, STEPS, duration_us), rest


def written(folder: Path, events: list[Event]) -> Path:
    path = folder / "a.bin"
    path.write_bytes(nmnist(events))
    return path


def saw(every_us: int, from_us: int, until_us: int) -> list[Event]:
    """An event every so often, at pixels in turn."""
    return [
        (n % 34, n // 34 % 34, n % 2, n * every_us) for n in range(from_us // every_us, until_us // every_us)
    ]


@pytest.mark.skipif(not RAW.is_dir(), reason="no data: recordings of N-MNIST")
@pytest.mark.parametrize("portion", [7, 1 << 16])
def test_real_recordings_stream_as_they_are_read(portion: int) -> None:
    paths = sorted(RAW.glob("*.bs2"))
    each = []
    for path in paths:
        expected, rest = from_file(path)
        found, counter = streamed(path.read_bytes(), portion)
        assert torch.equal(found, expected) and len(found) == 1
        assert found.sum() > 2000 and rest == 0
        assert (counter.outside, counter.backward, counter.jumped, counter.rest) == (0, 0, 0, 0)
        each.append(expected)
    together, counter = streamed(b"".join(path.read_bytes() for path in paths), portion)
    assert torch.equal(together, torch.cat(each)) and counter.jumped == counter.backward == 0


@pytest.mark.parametrize("duration_us", [DURATION_US, 2_000_000])
@pytest.mark.parametrize(
    "events",
    [
        saw(1000, 0, 700_000),
        saw(1000, 7_000, 315_100),  # ends within the first step of a second recording: a rest
        saw(50_000, 0, 3_000_000),
        saw(400_000, 2_000_000, 8_000_000),  # every event jumps
        [*saw(1000, 0, 50_000), (3, 3, 1, 5_000_000)],  # nothing after the jump
        [*saw(900, 8_300_000, 2**23), *saw(900, 0, 700_000)],  # the clock begins again at zero
        [OVERFLOW, *saw(1000, 0, 100_000), OVERFLOW, OVERFLOW, *saw(1000, 100_000, 400_000)],
        [*[OVERFLOW] * 200, *saw(1000, 0, 100_000)],
    ],
)
def test_sound_files_stream_as_they_are_read(tmp_path: Path, events: list[Event], duration_us: int) -> None:
    path = written(tmp_path, events)
    expected, rest = from_file(path, duration_us)
    for portion in (3, 5, 1 << 16):
        found, counter = streamed(path.read_bytes(), portion, duration_us)
        assert torch.equal(found, expected)
        assert (counter.rest, counter.backward, counter.jumped) == (rest, 0, 0)
    assert int(expected.sum()) + rest == sum(event[1] != 240 for event in events)


@given(
    st.lists(
        st.tuples(st.integers(0, 33), st.integers(0, 33), st.integers(0, 1), st.integers(0, 8_000_000)),
        min_size=1,
    )
)
def test_any_events_in_order_stream_as_they_are_read(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event]
) -> None:
    path = written(tmp_path_factory.getbasetemp(), sorted(events, key=lambda event: event[3]))
    expected, rest = from_file(path)
    found, counter = streamed(path.read_bytes())
    assert torch.equal(found, expected) and counter.rest == rest


def test_increases_are_ones() -> None:
    found, _ = streamed(nmnist([(3, 5, 1, 1000), (3, 5, 1, 1900), (7, 1, 0, 63_000)]))
    assert found[0, 0, 1, 5, 3] == 2 and found[0, 3, 0, 1, 7] == 1 and found.sum() == 3


def test_overflows_move_the_clock_on() -> None:
    found, _ = streamed(nmnist([(1, 1, 1, 1000), *[OVERFLOW] * 10, (2, 2, 1, 2000)]))
    assert found[0, :, 1, 2, 2].nonzero().item() == (10 * 2**13 + 2000) // 21_000


@pytest.mark.parametrize("wrong_us", [200_000, 4_100_000, 8_000_000])
def test_a_wrong_time_costs_one_event(wrong_us: int) -> None:
    sound = saw(1000, 0, 945_000)
    expected, _ = streamed(nmnist(sound))
    found, counter = streamed(nmnist([*sound[:50], (1, 1, 1, wrong_us), *sound[50:]]))
    assert torch.equal(found, expected) and counter.jumped == 1 and counter.backward == 0


def test_a_wrong_time_at_an_end_costs_a_recording_at_most() -> None:
    sound = saw(1000, 0, 315_000)
    expected, _ = streamed(nmnist(sound))
    for events in ([(1, 1, 1, 7_000_000), *sound], [*sound, (1, 1, 1, 7_000_000)]):
        found, _ = streamed(nmnist(events))
        assert len(found) == 2 and sum(torch.equal(one, expected[0]) for one in found) == 1


def test_what_no_camera_sends_is_counted() -> None:
    late: Event = (7, 1, 0, 20_000)
    found, counter = streamed(nmnist([(1, 1, 1, 1), (40, 5, 0, 1950), (7, 1, 0, 63_000), late]) + b"half")
    assert (counter.outside, counter.backward, counter.truncated_bytes) == (1, 1, 4) and found.sum() == 2


def test_a_stream_that_is_joined_later_begins_with_a_recording() -> None:
    counter = LiveFrames(STEPS, DURATION_US, PIXELS)
    early = list(counter.feed(nmnist([(1, 1, 1, 5 * DURATION_US + 50_000)])))
    assert len(early) == 2 and sum(int(frame.sum()) for frame in early) == 0
    assert len(list(counter.feed(nmnist([(1, 1, 1, 5 * DURATION_US + 63_000)])))) == 1  # as soon as it ends


@given(st.lists(st.binary(max_size=60), max_size=12))
def test_any_bytes_are_whole_recordings(content: list[bytes]) -> None:
    counter = LiveFrames(STEPS, DURATION_US, PIXELS)
    found = list(live(content, counter))
    assert all(frame.shape == (2, PIXELS, PIXELS) and frame.dtype == torch.uint8 for frame in found)
    events = sum(map(len, content)) // 5
    assert len(found) % STEPS == 0 and len(found) <= 2 * STEPS * events
    assert counter.truncated_bytes == sum(map(len, content)) % 5
    counted = sum(int(frame.sum()) for frame in found)
    assert counted + counter.outside + counter.backward + counter.jumped + counter.rest <= events


def test_steps_of_nothing_are_refused() -> None:
    with pytest.raises(DefianceError, match="have no events"):
        LiveFrames(15, 10, PIXELS)
