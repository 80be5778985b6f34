import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from defiance.codecs.events import (
    Recordings,
    SensorConfig,
    agreement,
    digit_images,
    frames,
    kernel,
    mnist_images,
    read,
    saccades,
    simulate,
    translation,
)
from defiance.codecs.events.sensor import STEP_US, _optics
from defiance.errors import DefianceError
from defiance.recordings import data_folder
from defiance.seeding import stream

QUIET = SensorConfig(width=12, height=10, mismatch=0.0, noise_hz=0.0, refractory_us=0.0)
REAL = data_folder() / "nmnist"

Event = tuple[int, int, int, int]


def line(*places: tuple[float, float], steps: int = 12) -> Tensor:
    """A path straight from place to place."""
    corners = torch.tensor(places, dtype=torch.float64)
    parts = [a + (b - a) * torch.linspace(0, 1, steps + 1)[:, None] for a, b in zip(corners, corners[1:])]  # noqa: B905
    return torch.cat([corners[:1], *(part[1:] for part in parts)])


def events_of(recordings: Recordings, r: int) -> list[Event]:
    part = slice(int(recordings.offset[r]), int(recordings.offset[r + 1]))
    fields = (recordings.time_us, recordings.y, recordings.x, recordings.polarity)
    return list(zip(*(field[part].tolist() for field in fields), strict=True))


def blobs(count: int, size: int, seed: int) -> Tensor:
    return torch.rand(count, size, size, generator=torch.Generator().manual_seed(seed)) ** 3


def by_hand(image: Tensor, path: Tensor, config: SensorConfig, key: np.uint64, number: int) -> list[Event]:
    """The sensor as its docstring has it, one pixel after the other: events in the order of time."""
    blur = _optics(image.shape[0], config.blur_px)
    margin = (len(blur) - len(image)) // 2
    level = torch.log1p(config.contrast * (blur @ image @ blur.T)).double().numpy()
    own = np.uint64((int(key) + number * int(kernel.FIRST_MULTIPLIER)) % 2**64)

    def light(x: float, y: float) -> float:
        column, row = math.floor(x), math.floor(y)
        total = 0.0
        for i, below in ((row, row + 1 - y), (row + 1, y - row)):
            for j, right in ((column, column + 1 - x), (column + 1, x - column)):
                if 0 <= i < len(level) and 0 <= j < len(level):
                    total += below * right * level[i, j]
        return total

    found = []
    for row in range(config.height):
        for column in range(config.width):
            seen = [light(column - x + margin, row - y + margin) for x, y in path.tolist()]
            draw = kernel._uniform(own, row * config.width + column)
            reference = seen[0] + config.threshold * (1 - 2 * draw)
            released = 0.0
            for k in range(1, len(seen)):
                now, slope = k - 1 + 0.0, seen[k] - seen[k - 1]
                while released <= k:
                    if released > now:
                        now = released
                        reference = seen[k - 1] + slope * (now - (k - 1))
                    change = seen[k] - reference
                    if abs(change) < config.threshold:
                        break
                    crossed = reference + math.copysign(config.threshold, change)
                    now = k - 1 + (crossed - seen[k - 1]) / slope
                    found.append((int(now * STEP_US), row, column, int(change > 0)))
                    reference = crossed
                    released = now + config.refractory_us / STEP_US
                    if config.refractory_us == 0:
                        released = 0.0
    return sorted(found)


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 10_000),
    contrast=st.sampled_from([-0.7, 3.0]),
    refractory_us=st.sampled_from([0.0, 150.0, 2500.0, 9000.0]),
    places=st.lists(st.tuples(st.floats(-6, 14), st.floats(-6, 14)), min_size=2, max_size=4),
)
def test_pixels_do_what_the_sensor_is_said_to_do(
    seed: int, contrast: float, refractory_us: float, places: list[tuple[float, float]]
) -> None:
    config = replace(QUIET, contrast=contrast, refractory_us=refractory_us)
    images, path = blobs(2, 6, seed), line(*places)
    recordings = simulate(images, path, config, stream(seed, "test"))
    key = stream(seed, "test").child("noise").numpy().integers(2**64, dtype=np.uint64)
    for number in range(2):
        ours = np.array(sorted(events_of(recordings, number))).reshape(-1, 4)
        expected = np.array(by_hand(images[number], path, config, key, number)).reshape(-1, 4)
        # Single against double precision: an event at the very edge of a threshold may be missing.
        assert abs(len(ours) - len(expected)) <= 1 + len(expected) // 100
        for pixel in {(y, x) for _, y, x, _ in expected.tolist()}:
            mine, his = (side[(side[:, 1:3] == pixel).all(1)] for side in (ours, expected))
            if len(mine) == len(his):
                assert np.abs(mine[:, 0] - his[:, 0]).max() <= 20
                assert (mine[:, 3] == his[:, 3]).all()


def test_an_edge_gives_as_many_events_as_its_contrast_holds_thresholds() -> None:
    config = replace(QUIET, width=30, height=3, contrast=-0.7, threshold=0.1)
    images = torch.ones(50, 11, 60)
    path = line((31.0, -4.0), (-10.0, -4.0), steps=400)
    recordings = simulate(images, path, config, stream(1, "edge"))
    counted = frames(recordings, 1, 10**7)[:, 0, :, 1, 2:-2].double()
    expected = -math.log1p(-0.7) / 0.1
    assert not counted[:, 1].any()
    # The first threshold is met after one threshold's change in the mean, anything up to two.
    assert set(counted[:, 0].flatten().tolist()) == {math.floor(expected) + d for d in (-1, 0, 1)}
    assert counted[:, 0].mean() == pytest.approx(expected - 0.5, abs=0.1)


def test_on_a_closed_path_increases_and_decreases_balance_in_every_pixel() -> None:
    path = line((2.0, 2.0), (5.0, 4.0), (1.0, 3.0), (2.0, 2.0), steps=40)
    recordings = simulate(blobs(20, 6, 1), path, QUIET, stream(1, "closed"))
    counted = frames(recordings, 1, 10**7)[:, 0].long()
    assert counted.sum() > 1000
    assert (counted[:, 1] - counted[:, 0]).abs().max() <= 1


def test_a_blind_pixel_does_not_fire() -> None:
    path = line((0.0, 0.0), (6.0, 4.0), steps=6)
    config = replace(QUIET, refractory_us=1500.0, threshold=0.03, contrast=20.0)
    recordings = simulate(blobs(20, 6, 1), path, config, stream(1, "refractory"))
    last: dict[tuple[int, int, int], int] = {}
    gaps = []
    for r in range(20):
        for time_us, y, x, _ in events_of(recordings, r):
            gaps.append(time_us - last.get((r, y, x), -10_000))
            last[r, y, x] = time_us
    assert 1499 <= min(gaps) < 1600


def test_nothing_moves_nothing_fires() -> None:
    still = torch.full((50, 2), 2.0)
    assert simulate(blobs(5, 6, 1), still, QUIET, stream(1, "still")).counts.sum() == 0
    assert simulate(torch.zeros(5, 6, 6), saccades(), QUIET, stream(1, "blank")).counts.sum() == 0


def test_noise_is_poisson_and_mostly_increases() -> None:
    config = replace(QUIET, noise_hz=5.0)
    path = torch.zeros(201, 2)  # a second
    recordings = simulate(torch.zeros(400, 6, 6), path, config, stream(1, "noise"))
    counts = recordings.counts.double()
    expected = 5.0 * config.width * config.height
    assert counts.mean() == pytest.approx(expected, abs=4 * math.sqrt(expected / 400))
    assert counts.var() == pytest.approx(expected, rel=0.3)
    share = float(recordings.polarity.double().mean())
    assert share == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / float(counts.sum())))
    per_pixel = frames(recordings, 1, 10**6).double().sum((0, 1, 2))
    assert per_pixel.min() > 1500 and per_pixel.max() < 2500  # 2,000 expected


def test_a_recording_depends_on_its_place_and_stream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    images = blobs(7, 6, 1)
    config = SensorConfig(width=12, height=10, noise_hz=20.0)
    whole = simulate(images, saccades(), config, stream(1, "a"))
    again = simulate(images, saccades(), config, stream(1, "a"))
    other = simulate(images, saccades(), config, stream(2, "a"))
    monkeypatch.setattr("defiance.codecs.events.sensor.IMAGES_AT_ONCE", 3)
    parts = simulate(images, saccades(), config, stream(1, "a"))
    fewer = simulate(images[:4], saccades(), config, stream(1, "a"))
    for r in range(7):
        assert events_of(whole, r) == events_of(again, r) == events_of(parts, r)
        assert events_of(whole, r) != events_of(other, r)
    for r in range(4):
        assert events_of(whole, r) == events_of(fewer, r)


def test_pixels_differ_by_the_mismatch() -> None:
    path = line((31.0, 0.0), (-10.0, 0.0), steps=400)
    config = replace(QUIET, width=30, height=30, contrast=-0.9, threshold=0.02, mismatch=0.2)
    recordings = simulate(torch.ones(20, 30, 60), path, config, stream(1, "mismatch"))
    counted = frames(recordings, 1, 10**7)[:, 0, 0, 2:-2, 2:-2].double().mean(0)
    assert counted.log().std() == pytest.approx(0.2, rel=0.1)


def test_images_of_bytes_and_of_fractions_are_alike() -> None:
    images = (blobs(3, 6, 1) * 255).to(torch.uint8)
    bytes_, fractions = (
        simulate(kind, saccades(), QUIET, stream(1, "a"), labels=torch.arange(3))
        for kind in (images, images.double() / 255)
    )
    assert torch.equal(bytes_.time_us, fractions.time_us)
    assert bytes_.label.tolist() == [0, 1, 2]
    assert simulate(images[:0], saccades(), QUIET, stream(1, "a")).counts.tolist() == []


@pytest.mark.parametrize(
    ("images", "path", "config", "message"),
    [
        (torch.zeros(2, 6), saccades(), QUIET, "images must be"),
        (torch.zeros(2, 6, 6, dtype=torch.int64), saccades(), QUIET, "images must be"),
        (torch.full((2, 6, 6), 1.5), saccades(), QUIET, "between 0 and 1"),
        (torch.full((2, 6, 6), math.nan), saccades(), QUIET, "between 0 and 1"),
        (torch.zeros(2, 6, 6), torch.zeros(1, 2), QUIET, "two or more places"),
        (torch.zeros(2, 6, 6), torch.full((3, 2), math.nan), QUIET, "two or more places"),
        (torch.zeros(2, 6, 6), torch.tensor([[0.0, 0.0], [1e3, 0.0]]), QUIET, "two or more places"),
        (torch.zeros(1, 6, 6), torch.zeros(201, 2), replace(QUIET, noise_hz=1e4), "events or more"),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    images: Tensor, path: Tensor, config: SensorConfig, message: str
) -> None:
    with pytest.raises(DefianceError, match=message):
        simulate(images, path, config, stream(1, "a"))


def test_numbers_that_no_camera_has_are_refused() -> None:
    for name, value in (("contrast", -1.0), ("threshold", 0.0), ("blur_px", math.nan), ("width", 2000)):
        with pytest.raises(DefianceError, match=f"sensor: {name} must lie between"):
            replace(QUIET, **{name: value})


def test_the_paths_are_as_described() -> None:
    path = saccades()
    assert path.shape == (63, 2)  # 310 ms
    rests = path[[0, 18, 43, 62]]
    expected = torch.tensor([(0.5, 1.2), (1.9, 6.5), (5.8, 1.4), (0.6, 1.2)], dtype=torch.float64)
    assert (rests - expected).abs().max() < 0.5
    circle = translation(1_000_000, radius_px=2.0)
    assert circle.shape == (201, 2)
    assert torch.allclose(circle[0], circle[-1])
    assert circle.min() >= 0 and circle.max() <= 4
    speed = circle.diff(dim=0).norm(dim=1)
    assert speed.std() / speed.mean() < 1e-9
    with pytest.raises(DefianceError, match="translation"):
        translation(0)


def test_agreement_is_one_with_oneself_and_less_with_others() -> None:
    images = digit_images("test")[0][:40]
    ours = simulate(images, saccades(), SensorConfig(), stream(1, "a"))
    same = agreement(ours, ours)
    assert [
        same.events,
        same.correlation,
        same.map_cosine,
        same.detail_cosine,
        same.increases,
    ] == pytest.approx([1.0] * 5)
    assert same.saccades == pytest.approx((1.0, 1.0, 1.0))
    other = agreement(simulate(images, saccades(), SensorConfig(threshold=0.3), stream(2, "a")), ours)
    assert other.events < 0.7 and other.correlation < 1 and other.map_cosine < 1
    assert agreement(ours.select(torch.arange(39, -1, -1)), ours).detail_cosine < 0.8
    with pytest.raises(DefianceError, match="40 simulated against 39"):
        agreement(ours, ours.select(torch.arange(39)))
    with pytest.raises(DefianceError, match="differ in size"):
        agreement(simulate(images, saccades(), SensorConfig(width=30), stream(1, "a")), ours)


@pytest.mark.skipif(not REAL.is_dir(), reason="no data: recordings of N-MNIST")
def test_simulated_recordings_agree_with_real_ones_that_calibration_never_saw() -> None:
    real, _ = read(REAL / "nmnist_train1000.npz")
    images, labels = mnist_images(data_folder() / "mnist", "train")
    odd = torch.arange(1, 1000, 4)
    assert torch.equal(labels[odd], real.label[odd])
    simulated = simulate(images[odd], saccades(), SensorConfig(), stream(1, "validation"))
    found = agreement(simulated, real.select(odd))
    assert found.events == pytest.approx(1, abs=0.05)
    assert found.correlation > 0.98
    assert found.map_cosine > 0.95
    assert found.detail_cosine > 0.92
    assert found.increases == pytest.approx(1, abs=0.1)
    assert found.saccades == pytest.approx((1, 1, 1), abs=0.1)
