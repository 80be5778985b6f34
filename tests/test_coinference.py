"""The study `coinference` at toy size on the embedded digits, and its arithmetic by hand."""

import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from defiance.codecs.codec import Samples
from defiance.codecs.events import read
from defiance.codecs.live import destination, source
from defiance.errors import DefianceError
from defiance.hardware import BLE, LOIHI, RADIOS
from defiance.kpm import Sheet
from defiance.parts import Parts
from defiance.radio.channels import BinarySymmetric
from defiance.recordings import data_folder
from defiance.report import summary_rows, write_report
from defiance.seeding import stream
from defiance.studies import Silent, coinference, pool
from defiance.studies.coinference import counting, data, settings, shipped
from defiance.studies.coinference.candidates import EqualEnergy, designs
from defiance.studies.coinference.experiments import Bursts
from defiance.studies.coinference.live import Which
from defiance.studies.coinference.settings import Config, Model, Training, check, judged_on, models, tuned_as
from defiance.studies.coinference.sheet.costs import (
    Range,
    bits_on_air,
    crossover,
    spiking_joules,
    time_to_decision_s,
)
from tests.test_events_formats import aedat2, nmnist

SEEDS = (0, 1)
EVENTS_PAGE = Path(__file__).parents[1] / "docs" / "events.md"
NAMES = get_args(settings.Name)


def toy(**changes: Any) -> Config:
    """Every kind of model once, each as small as its range allows."""
    small = Config(
        data=("digits",),
        sweep_candidates=("s-vdib", "joint-binary"),
        uses=(30, 60),
        reference_uses=60,
        esn0_db=(0.0, -4.0),
        mismatch_db=(4.0,),
        betas=(0.01,),
        sweep_seeds=1,
        special_candidates=("s-vdib",),
        channels=("z", "rayleigh"),
        test_recordings=30,
        training=Training(validation=50, steps=2, batch=10, tuning_steps=0),
    )
    return replace(small, **changes)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the study's workers have it; many threads on small tensors wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def here(*_: Any) -> Iterator[Callable[..., Future[Any]]]:
    """Does every job at once, in this process."""

    def submit(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        found: Future[Any] = Future()
        found.set_result(function(*arguments))
        return found

    yield submit


@contextmanager
def nowhere(*_: Any) -> Iterator[Callable[..., Future[Any]]]:
    """Refuses to do anything."""

    def submit(*arguments: Any) -> Future[Any]:
        raise AssertionError(arguments)

    yield submit


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts.open(tmp_path_factory.mktemp("parts"), "toy")


@pytest.fixture(scope="module")
def sheet(parts: Parts) -> Sheet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "workers", here)
        patch.setattr(coinference, "has_recordings", lambda: False)
        return coinference.run(toy(), seeds=SEEDS, parts=parts, progress=Silent())


def test_the_sheet_is_read_back_as_it_was_written(sheet: Sheet, tmp_path: Path) -> None:
    sheet.save(tmp_path / "sheet.json")
    assert repr(Sheet.load(tmp_path / "sheet.json")) == repr(sheet)
    assert sheet.study == "coinference" and sheet.seeds == SEEDS and sheet.config["data"] == ["digits"]


def test_everyone_is_judged_at_every_noise(sheet: Sheet) -> None:
    for noise in ("noiseless", "0dB", "-4dB"):
        rows = sheet.select(metric="performance", scenario=f"digits/uses60/{noise}", regime="simulated")
        assert {row.candidate for row in rows} == set(NAMES)
        assert all(0 <= row.mean <= 1 and row.n == len(SEEDS) for row in rows)
    swept = sheet.select(metric="performance", scenario="digits/uses30/0dB")
    assert {row.candidate for row in swept} == {"s-vdib", "joint-binary"}


def test_special_models_are_there(sheet: Sheet) -> None:
    regimes = {row.regime for row in sheet.select(metric="performance", candidate="s-vdib")}
    assert regimes == {"simulated", "at4dB", "beta0.01"}
    elsewhere = sheet.select(metric="generalisation", scenario="digits/uses60/0dB/rayleigh")
    assert {"s-vdib", "joint-binary", "uncoded-map"} <= {row.candidate for row in elsewhere}
    assert not {"separate", "joint-analogue", "central"} & {row.candidate for row in elsewhere}


def test_gains_are_paired_differences(sheet: Sheet, parts: Parts) -> None:
    gain = sheet.value("spiking_gain", candidate="joint-binary", scenario="digits/uses60/-4dB")
    found = []
    for seed in SEEDS:
        own, other = (
            parts.get(f"judge/{Model(name, 60, 'digits', 'simulated', seed).key}/digits")
            for name in ("s-vdib", "joint-binary")
        )
        assert own is not None and other is not None
        found.append(own["accuracy"][2][-1] - other["accuracy"][2][-1])
    assert gain.mean == pytest.approx(np.mean(found)) and gain.n == 2


def test_the_six_kpms_and_energies_are_there(sheet: Sheet) -> None:
    for candidate in ("s-vdib", "joint-binary", "separate", "device-label", "uncoded-map"):
        found = {
            row.metric
            for row in sheet.select(candidate=candidate)
            if row.scenario.startswith("digits/uses60")
        }
        assert found >= {
            "training_operations", "inference_operations", "inference_parameters", "communication_bits",
            "performance", "inference_latency", "energy", "energy_low", "energy_high",
        }  # fmt: skip
    for row in sheet.select(metric="energy"):
        same = {"candidate": row.candidate, "scenario": row.scenario, "node": row.node, "regime": row.regime}
        low, high = sheet.value("energy_low", **same), sheet.value("energy_high", **same)
        assert 0 <= low.mean <= row.mean <= high.mean and row.provenance == "modelled"


def test_a_finished_run_is_folded_without_computing(
    sheet: Sheet, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "workers", nowhere)
    monkeypatch.setattr(coinference, "has_recordings", lambda: False)
    again = coinference.run(toy(), seeds=SEEDS, parts=parts, progress=Silent())
    assert repr(again) == repr(sheet)


def test_the_page_tells_it(sheet: Sheet, tmp_path: Path) -> None:
    text = write_report([sheet], tmp_path).read_text()
    for title in (
        "Who is right how often",
        "The paper&#39;s own comparison",
        "How many channel uses it takes",
        "When it can decide",
        "What it spends",
        "Where nobody trained for it",
        "What the bottleneck does",
        "Complexity, bits and latency",
        "The whole sheet",
    ):
        assert title in text, title
    names = {path.stem for path in (tmp_path / "figures").glob("*.svg")}
    assert {"accuracy-noise", "paper", "accuracy-uses", "accuracy-time", "channels", "mismatch"} <= names
    assert 3 <= len(summary_rows(sheet)) <= 6
    write_report([sheet, sheet], tmp_path / "both")


def test_a_page_of_any_rows(sheet: Sheet, tmp_path: Path) -> None:
    for number, (rows, curves) in enumerate(
        [(sheet.rows[:7], ()), (sheet.rows[-40:], sheet.curves[::30]), ((), sheet.curves[7::40])]
    ):
        write_report([replace(sheet, rows=rows, curves=curves)], tmp_path / str(number))


# --- shipped weights ---


def test_quick_says_when_no_weights_are_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "FILE", Path("nothing"))
    with pytest.raises(DefianceError, match="no trained weights are shipped for .*; train them: --set"):
        config = toy(weights="shipped", mismatch_db=(), betas=())
        coinference.run(config, seeds=(0,), parts=Parts.open(tmp_path, "x"), progress=Silent())


def test_packed_weights_give_the_same_answers(
    sheet: Sheet, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from defiance import config as configuration

    config = toy(
        candidates=("s-vdib", "joint-binary"), mismatch_db=(), betas=(), special_candidates=(), channels=()
    )
    run = tmp_path / "run"
    run.mkdir()
    (run / "parts").symlink_to(parts.folder.parent)
    (run / "config.toml").write_text(configuration.to_toml(toy()))
    monkeypatch.setattr(shipped, "PRESETS", {"quick": config})
    packed = shipped.pack([run], tmp_path / "weights.safetensors")
    assert len(packed) == 4  # two candidates at two numbers of uses
    monkeypatch.setattr(shipped, "FILE", tmp_path / "weights.safetensors")
    monkeypatch.setattr(pool, "workers", here)
    monkeypatch.setattr(coinference, "has_recordings", lambda: False)
    quick = replace(config, weights="shipped")
    made = coinference.run(quick, seeds=(0,), parts=Parts.open(tmp_path, "q"), progress=Silent())
    assert made.select(metric="performance") and not math.isnan(made.rows[0].mean)
    (tmp_path / "weights.safetensors").write_bytes(b"half a f")
    with pytest.raises(DefianceError, match="damaged"):
        coinference.run(quick, seeds=(0,), parts=Parts.open(tmp_path, "r"), progress=Silent())


# --- what is asked ---


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"uses": (20,)}, "20 channel uses aren't whole steps; .*such as 15"),
        ({"reference_uses": 47}, "47 channel uses"),
        ({"candidates": ()}, "at least one of candidates"),
        ({"uses": (30, 30)}, "uses names a value twice"),
        ({"weights": "shipped"}, "one set of weights"),
        ({"training": Training(esn0_low_db=3.0, esn0_high_db=2.0)}, "swap them"),
    ],
)
def test_what_cannot_be_asked_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DefianceError, match=words):
        check(toy(**changes), SEEDS)


def test_the_full_preset_trains_what_its_documentation_says() -> None:
    config = settings.PRESETS["full"]
    found = models(config, tuple(range(5)))
    assert len(found) == len(set(found)) == len({model.key for model in found})
    assert {model.regime for model in found if model.data == "nmnist"} == {
        "mixed", "at4dB", "simulated", "real", "beta0", "beta0.01",
    }  # fmt: skip
    assert {model.candidate for model in found} == set(NAMES)
    assert {model.uses for model in found if model.candidate == "s-vdib"} == {*config.uses}
    label = [model for model in found if model.candidate == "device-label" and model.data == "nmnist"]
    assert (
        len({model.trained for model in label}) == 5
        and len(label) == 5 + (len(config.uses) - 1) * config.sweep_seeds
    )
    assert {tuned_as(config, model).regime for model in found} == {"simulated"}
    real = next(model for model in found if model.regime == "real")
    assert judged_on(config, real) == ["nmnist", "nmnist-simulated"]
    assert (real.esn0_db, next(m for m in found if m.regime == "at4dB").esn0_db) == (None, 4.0)


# --- data ---


def test_folds_hold_every_class_alike() -> None:
    labels = torch.arange(1000) % 10
    fold = data.fold_of(labels, 5)
    for number in range(5):
        assert torch.equal(torch.bincount(labels[fold == number]), torch.full((10,), 20))


def test_shifting_moves_each_recording_as_a_whole() -> None:
    frames = torch.zeros(40, 3, 2, 9, 9, dtype=torch.uint8)
    frames[..., 4, 4] = 7
    moved = data.shifted(frames, 2, torch.Generator().manual_seed(0))
    assert moved.shape == frames.shape and bool((moved.sum((-2, -1)) == 7).all())
    places = {tuple(one.nonzero()[0, 2:].tolist()) for one in moved}
    assert places <= {(row, column) for row in range(2, 7) for column in range(2, 7)} and len(places) > 10
    for one in moved:
        assert len({tuple(place.tolist()) for place in one.nonzero()[:, 2:]}) == 1
    assert data.shifted(frames, 0, torch.Generator()) is frames


@pytest.mark.skipif(not data.has_recordings(), reason=f"no data in {data_folder()}")
def test_no_image_is_on_both_sides() -> None:
    config = replace(Config(), training=Training(recordings=150, validation=60, real_repeats=1))
    _, shown = data.real_recordings()
    training, validation = data.learned_from(config, Model("s-vdib", 60, "nmnist", "mixed", 2))
    tested = data.tested_on("nmnist", 2, config.folds, 10)
    assert len(tested) == 199 and len(training) + len(validation) == 150 + 60 + 801
    flat = {frames.numpy().tobytes() for frames in training.frames}
    assert not flat & {frames.numpy().tobytes() for frames in tested.frames}
    assert len(shown) == 1000


def test_digits_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    training, validation = data.learned_from(toy(), Model("s-vdib", 60, "digits", "simulated", 0))
    assert (len(training), len(validation)) == (1387, 50)
    assert training.frames.shape[1:] == (15, 2, 34, 34)


# --- arithmetic ---


def test_pulses_of_equal_energy() -> None:
    """A tenth of ones has five times the energy of pulses that are sent half of the time."""
    sent = torch.cat([torch.ones(20_000), torch.zeros(180_000)])
    channel = EqualEnergy(BinarySymmetric("on-off"), 0.1)
    received = channel(sent, 0.0, torch.Generator().manual_seed(0))
    wrong = float((received != sent).double().mean())
    expected = float(BinarySymmetric("on-off").crossover(10 * math.log10(5)))
    assert wrong == pytest.approx(expected, rel=0.1)
    energy = BinarySymmetric("on-off").energy(sent).mean() * 5
    assert float(energy) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("spiking", "other", "price", "side"),
    [
        ((1e-6, 480), (5e-6, 80), 1e-8, "below"),
        ((5e-6, 80), (1e-6, 480), 1e-8, "above"),
        ((1e-6, 80), (5e-6, 480), math.inf, "everywhere"),
        ((1e-6, 80), (5e-6, 80), math.inf, "everywhere"),
        ((5e-6, 480), (1e-6, 80), 0.0, "nowhere"),
        ((5e-6, 80), (1e-6, 80), 0.0, "nowhere"),
    ],
)
def test_crossovers_solve_the_equation(
    spiking: tuple[float, int], other: tuple[float, int], price: float, side: str
) -> None:
    found = crossover(*spiking, *other)
    assert found.joules_per_use == pytest.approx(price) and found.spikes_win == side
    if side in ("below", "above"):
        spent = [joules + uses * found.joules_per_use for joules, uses in (spiking, other)]
        assert spent[0] == pytest.approx(spent[1])


def test_joules_and_bits_by_hand() -> None:
    spent = spiking_joules(LOIHI, 1000.0, 100.0)
    assert spent.central == pytest.approx(1000 * 23.6e-12 + 100 * 52e-12)
    assert bits_on_air("s-vdib", 480, BLE, streamed=True) == 480 + 15 * BLE.overhead_bits
    assert bits_on_air("s-vdib", 480, BLE, streamed=False) == 480 + BLE.overhead_bits
    assert bits_on_air("joint-binary-bursts", 480, BLE, streamed=True) == 480 + 3 * BLE.overhead_bits


def test_time_to_decision() -> None:
    accuracy = np.array([0.1] * 5 + [0.9] * 5 + [0.96] * 2 + [0.97] * 3)
    assert time_to_decision_s(accuracy, "nmnist") == pytest.approx(11 * 0.021)


@pytest.mark.parametrize("name", NAMES)
def test_uses_are_what_was_asked(name: str) -> None:
    for uses in (15, 480):
        for design in designs(name, uses):
            if name in ("central", "send-everything"):
                continue
            first = design.initial(torch.Generator(), _few()) if uses == 15 else None
            if first is not None:
                assert design.builds[0](first).channel_uses == uses


def _few() -> Samples:
    generator = stream(0, "few").generator()
    frames = torch.randint(2, (8, 15, 2, 34, 34), generator=generator, dtype=torch.uint8)
    return Samples(frames, torch.arange(8))


def test_counts_by_hand() -> None:
    """The label's device half: two convolutions and two matrix products, in closed form."""
    found = counting.count(toy(), "device-label", 60, 0)
    seen, first, second, hidden = 6, 16, 32, 128
    macs = 14 * 14 * first * seen * 25 + 7 * 7 * second * first * 25 + second * 49 * hidden + hidden * 10
    assert found["device_operations"] == pytest.approx(2 * macs, rel=0.05)
    assert found["device_parameters"] == (
        first * (seen * 25 + 1) + second * (first * 25 + 1) + hidden * (second * 49 + 1) + 10 * (hidden + 1)
    )
    assert found["edge_parameters"] == 0 and found["channel_uses"] == 60


def test_every_radio_is_drawn(sheet: Sheet) -> None:
    assert {curve.candidate for curve in sheet.select_curves(name="radio")} == set(RADIOS)


# --- live streams ---


def test_a_file_goes_over_a_socket_and_is_named(
    sheet: Sheet,
    parts: Parts,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from defiance import config as configuration
    from defiance.studies.coinference import live as lives

    run = tmp_path / "run"
    run.mkdir()
    (run / "parts").symlink_to(parts.folder.parent)
    (run / "config.toml").write_text(configuration.to_toml(toy()))
    events = nmnist([(n % 34, n // 34 % 34, n % 2, 100 * n) for n in range(6300)])
    (tmp_path / "a.bin").write_bytes(events)
    which = Which("s-vdib", 60, "digits", run)
    lives.encode(which, str(tmp_path / "a.bin"), str(tmp_path / "packets"), broken="refuse", at_pace=False)
    lives.decode(which, str(tmp_path / "packets"), every_step=False)
    out, err = capfd.readouterr()
    assert "2 recordings of 315 ms, cut from 1; left out: 0 events outside" in err
    assert "2 recordings in 30 bursts" in err and "p50" in err and "lost 0" in err
    assert [line[:5] for line in out.splitlines()[1:]] == ["0\t14\t", "1\t14\t"]

    large = tmp_path / "large.aedat"
    large.write_bytes(aedat2([(60, 60, 1, 0), (100, 0, 1, 50), (80, 47, 0, 1500)]))
    with pytest.raises(DefianceError, match="large.aedat: a sensor of 128 x 128 .*trained for 34 x 34; crop"):
        lives.encode(which, str(large), str(tmp_path / "packets"), broken="refuse", at_pace=False)
    shown = re.search(
        r"```python\n(import numpy as np\n\nrecordings, _ = read\(\"large.aedat.*?)```",
        EVENTS_PAGE.read_text(),
        re.S,
    )
    assert shown is not None
    monkeypatch.chdir(tmp_path)
    exec(shown[1], {"read": read})
    lives.encode(which, "cropped.npz", str(tmp_path / "packets"), broken="refuse", at_pace=False)
    assert "1 recordings in 15 bursts" in capfd.readouterr().err
    cropped, _ = read("cropped.npz")
    assert (cropped.x.tolist(), cropped.y.tolist(), cropped.time_us.tolist()) == (
        [13, 33],
        [13, 0],
        [0, 1500],
    )

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    edge = threading.Thread(target=lives.decode, args=(which, address), kwargs={"every_step": True})
    edge.start()
    _wait_for(address)
    edge.join(timeout=30)
    assert not edge.is_alive()


def _wait_for(address: str) -> None:
    """Connects and leaves at once: a decoder of nothing ends."""
    host, _, port = address.rpartition(":")
    for _ in range(200):
        try:
            socket.create_connection((host, int(port))).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError("nobody listens")


@pytest.mark.parametrize(
    ("which", "words"),
    [
        (Which("s-vdibb", 60, "digits"), "--candidate 's-vdibb'"),
        (Which("s-vdib", 61, "digits"), "--uses 61"),
        (Which("s-vdib", 60, "digit"), "--data 'digit'"),
        (Which("s-vdib", 60, "digits", Path("/nowhere")), "/nowhere"),
    ],
)
def test_codecs_that_do_not_exist_are_refused(which: Which, words: str) -> None:
    with pytest.raises(DefianceError, match=words):
        which.codec()


def test_ends_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    for name in (str(tmp_path / "absent"), "127.0.0.1:99999"):
        with pytest.raises(DefianceError, match=name), source(name):
            pass
    with pytest.raises(DefianceError, match="127.0.0.1:9.*decode"), destination("127.0.0.1:9"):
        pass


# --- what a review asked for ---


def test_bursts_cross_a_channel_as_one_row_each() -> None:
    shapes = []

    def channel(sent: Tensor, ebn0_db: Any, generator: torch.Generator, *, rate: float = 1.0) -> Tensor:
        shapes.append(tuple(sent.shape))
        return 1 - sent

    sent = torch.randint(2, (3, 15, 4)).float()
    received = Bursts(channel, 3)(sent, 0.0, torch.Generator())
    assert shapes == [(3, 3, 20)] and torch.equal(received, 1 - sent)


def test_constants_of_one_process_are_low_and_high_together() -> None:
    spiking, other = Range(2.0, 1.0, 4.0), Range(4.0, 2.0, 16.0)
    assert spiking.over(other, together=True) == Range(0.5, 0.25, 0.5)
    assert spiking.over(other, together=False) == Range(0.5, 1 / 16, 2.0)
