"""KPMs: intervals and folds against hand-made numbers; the Sheet's round trip and its distrust of files."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from defiance.errors import DefianceError
from defiance.kpm import (
    METRICS,
    PROVENANCES,
    Curve,
    Row,
    Sheet,
    bits_by_purpose,
    format_quantity,
    mean_interval,
    operations_until_converged,
    paired_interval,
)
from defiance.link import Deliveries, IdealLink, Packets
from defiance.seeding import stream

ROW = Row(
    candidate="a3",
    regime="none",
    scenario="munich/30kmh/load50/cap8/raw",
    node="device",
    metric="outage_share",
    unit="1",
    mean=0.02,
    ci_low=0.01,
    ci_high=0.03,
    n=8,
    provenance="measured",
)
CURVE = Curve(
    name="failure_places",
    candidate="a3",
    regime="none",
    scenario="munich/30kmh/load50/cap8/raw",
    x_metric="x_m",
    x_unit="m",
    y_metric="y_m",
    y_unit="m",
    x=(0.0, math.nan, 2.0),
    y=(1.0, math.nan, math.inf),
)
SHEET = Sheet(
    study="worth",
    version="0.1.0",
    config={"scene": "munich", "caps": [8, 12], "nested": {"speed_kmh": 30.0}},
    seeds=(1, 2, 3),
    machine={"cpu": "a CPU", "cores": 2},
    made_by="defiance run worth",
    rows=(
        ROW,
        replace(ROW, candidate="learned-device", regime="central", mean=0.015),
        replace(ROW, metric="energy", unit="J", mean=2.0, ci_low=1.0, ci_high=3.0, provenance="modelled"),
        replace(ROW, metric="break_even_time", unit="s", mean=math.inf, ci_low=7.0, ci_high=math.inf),
        replace(
            ROW, metric="training_operations", unit="op", mean=math.nan, ci_low=math.nan, ci_high=math.nan
        ),
    ),
    curves=(CURVE, replace(CURVE, name="front", y_low=(0.0, 0.0, 0.0), y_high=(1.0, math.inf, 3.0))),
    verdict="Not worth it at 3 km/h.\nWorth it at 30 km/h.",
)


def test_mean_interval_is_students() -> None:
    # t(0.975, 3 degrees) = 3.182446; the standard deviation of 1..4 is 1.290994
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert high - mean == pytest.approx(3.182446 * 1.290994 / 2, rel=1e-5) == mean - low


def test_mean_interval_covers_as_it_says() -> None:
    samples = np.random.default_rng(0).normal(3.0, 2.0, size=(2000, 5))
    covered = np.mean([low <= 3.0 <= high for _, low, high in map(mean_interval, samples)])
    assert covered == pytest.approx(0.95, abs=0.025)  # 5 standard deviations of a share over 2000


def test_intervals_that_do_not_exist() -> None:
    for samples, mean in (([3.0], 3.0), ([1.0, math.inf], math.inf), ([1.0, math.nan], math.nan)):
        assert mean_interval(samples) == pytest.approx((mean, math.nan, math.nan), nan_ok=True)


def test_paired_interval_cancels_what_is_common() -> None:
    world = np.random.default_rng(0).normal(size=10) * 100
    mean, low, high = paired_interval(world + 1.0, world)
    assert (mean, low, high) == pytest.approx((1.0, 1.0, 1.0))


def test_operations_until_converged() -> None:
    operations = [10.0 * i for i in range(1, 9)]
    loss = [8.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    # the mean of the last three is 1.33 at the fifth evaluation and 1 from the sixth on
    assert operations_until_converged(operations, loss, "lower") == 60.0
    assert operations_until_converged(operations, [-x for x in loss], "higher") == 60.0
    assert operations_until_converged(operations, loss, "lower", window=1) == 40.0


@pytest.mark.parametrize("loss", [[8.0, 4.0, 2.0, 1.0], [1.0, math.nan, 0.5, 0.5], [1.0], []])
def test_not_converged_is_a_value(loss: list[float]) -> None:
    assert math.isnan(operations_until_converged([10.0 * i for i in range(len(loss))], loss, "lower"))


def test_bits_by_purpose() -> None:
    link = IdealLink()
    batches = [
        Packets.of([1, 2], purpose="model", payload_bits=[8, 16], offered_s=0.0),
        Packets.of([3], purpose="task", payload_bits=80, offered_s=0.0),
    ]
    _, deliveries = link.advance(Packets.concatenate(*batches), 1.0, stream(0))
    folded = bits_by_purpose(deliveries)
    assert folded == {"assistance": 0, "data": 0, "model": 24, "signalling": 0, "task": 80}
    lost = replace(deliveries, arrived_s=torch.full((3,), torch.inf, dtype=torch.float64))
    assert bits_by_purpose(lost) == folded
    assert sum(bits_by_purpose(Deliveries.empty()).values()) == 0


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.234e9, "J", "1.23 GJ"),
        (3.4e6, "bit/s", "3.4 Mbit/s"),
        (2.7e-5, "J/bit", "27 µJ/bit"),
        (7.5e10, "op", "75 Gop"),
        (999.9, "J", "1 kJ"),
        (-1500.0, "J", "-1.5 kJ"),
        (0.0, "J", "0 J"),
        (0.0123, "s", "12.3 ms"),
        (119.0, "s", "119 s"),
        (600.0, "s", "10 min"),
        (9000.0, "s", "2.5 h"),
        (86400.0 * 30, "s", "30 d"),
        (86400.0 * 3652.5, "s", "10 years"),
        (0.3, "1", "30 %"),
        (0.000123, "1", "0.0123 %"),
        (8.123, "1/min", "8.12/min"),
        (-8.0, "dB", "-8 dB"),
        (119_040.0, "parameters", "119\N{NARROW NO-BREAK SPACE}000 parameters"),
        (math.inf, "s", "never"),
        (math.nan, "op", "not converged"),
        (math.nan, "J", "n/a"),
    ],
)
def test_format_quantity(value: float, unit: str, text: str) -> None:
    assert format_quantity(value, unit) == text


def test_metrics_are_defined() -> None:
    d2_2 = "training_operations inference_operations inference_parameters communication_bits generalisation"
    assert list(METRICS)[:7] == [*d2_2.split(), "performance", "inference_latency"]
    assert all(name == metric.name and metric.definition for name, metric in METRICS.items())


def test_select_and_value() -> None:
    assert SHEET.select(candidate="a3", metric="outage_share") == (ROW,)
    assert SHEET.value("outage_share", candidate="learned-device").mean == 0.015
    assert SHEET.select_curves(name="failure_places") == (CURVE,)
    with pytest.raises(DefianceError, match="2 rows of outage_share"):
        SHEET.value("outage_share")
    with pytest.raises(DefianceError, match="0 rows of energy with candidate=genie"):
        SHEET.value("energy", candidate="genie")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"provenance": "guessed"}, "provenance 'guessed' is unknown"),
        ({"mean": 0.5}, "lies outside"),
        ({"n": -1}, "n is -1"),
        ({"unit": "%"}, "unit '%' should be '1'"),
    ],
)
def test_rows_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DefianceError, match=message):
        replace(ROW, **change)


def test_curves_are_checked() -> None:
    with pytest.raises(DefianceError, match="3 x but 1 y"):
        replace(CURVE, y_low=(1.0,))


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "worth.json"
    SHEET.save(path)
    assert repr(Sheet.load(path)) == repr(SHEET)  # nan is not equal to itself, its repr is
    assert json.loads(path.read_text())["rows"][3]["mean"] == "inf"
    table = pq.read_table(path.with_suffix(".parquet")).to_pylist()
    assert table[0] == {name: getattr(ROW, name) for name in table[0]} and len(table) == len(SHEET.rows)
    assert sorted(file.name for file in path.parent.iterdir()) == ["worth.json", "worth.parquet"]


rows = st.builds(
    lambda text, numbers, n, provenance: Row(
        text, "none", "s", "device", "own", "1", sorted(numbers)[1], min(numbers), max(numbers), n, provenance
    ),
    st.text(st.characters(codec="utf-8")),
    st.tuples(*[st.floats(allow_nan=False)] * 3),
    st.integers(0, 2**63 - 1),
    st.sampled_from(PROVENANCES),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(rows, max_size=3), verdict=st.text(st.characters(codec="utf-8")), seeds=st.integers())
def test_round_trip_of_any_rows(tmp_path: Path, rows: list[Row], verdict: str, seeds: int) -> None:
    sheet = replace(SHEET, rows=tuple(rows), verdict=verdict, seeds=(seeds,), curves=())
    sheet.save(tmp_path / "sheet.json")
    assert Sheet.load(tmp_path / "sheet.json") == sheet


def corrupted(path: Path, change: Any) -> Path:
    SHEET.save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sheet: sheet.update(schema="defiance.sheet/2"), 'no "schema": "defiance.sheet/1"'),
        (lambda sheet: sheet.pop("rows"), "sheet lacks rows"),
        (lambda sheet: sheet.update(extra=1), "sheet knows no extra"),
        (lambda sheet: sheet.update(rows={}), r"sheet.rows is {}; want a list"),
        (lambda sheet: sheet["rows"].append(3), r"sheet.rows\[5\] is 3; want a table"),
        (lambda sheet: sheet["rows"][1].pop("unit"), r"sheet.rows\[1\] lacks unit"),
        (lambda sheet: sheet["rows"][1].update(mean="big"), r"sheet.rows\[1\].mean is 'big'; want a number"),
        (lambda sheet: sheet["rows"][1].update(mean=True), r"sheet.rows\[1\].mean is True"),
        (lambda sheet: sheet["rows"][1].update(mean=10**400), "too large"),
        (lambda sheet: sheet["rows"][1].update(n=1.5), r"sheet.rows\[1\].n is 1.5; want a whole number"),
        (lambda sheet: sheet["rows"][1].update(provenance="guessed"), "provenance 'guessed'"),
        (lambda sheet: sheet["rows"][1].update(candidate="\ud800"), "surrogates not allowed"),
        (lambda sheet: sheet["curves"][0].update(x=[1.0]), "1 x but 3 y"),
        (lambda sheet: sheet["curves"][0]["x"].__setitem__(1, None), r"sheet.curves\[0\].x\[1\] is None"),
        (lambda sheet: sheet.update(seeds=[1, "2"]), r"sheet.seeds\[1\] is '2'"),
        (lambda sheet: sheet.update(verdict=None), "sheet.verdict is None; want text"),
    ],
)
def test_a_corrupt_sheet_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = corrupted(tmp_path / "bad.json", change)
    with pytest.raises(DefianceError, match=message) as caught:
        Sheet.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"schema": NaN}', "[" * 100_000, '{"a": 1e999}', "\xff"])
def test_what_is_no_sheet_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DefianceError, match="bad.json"):
        Sheet.load(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    SHEET.save(tmp_path / "whole.json")
    whole = (tmp_path / "whole.json").read_bytes().rstrip()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut.json").write_bytes(whole[:length])
        with pytest.raises(DefianceError, match="cut.json"):
            Sheet.load(tmp_path / "cut.json")


def test_files_that_cannot_be_read_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DefianceError, match="cannot read sheet .*No such file"):
        Sheet.load(tmp_path / "absent.json")
    (tmp_path / "file").touch()
    with pytest.raises(DefianceError, match="cannot write sheet"):
        SHEET.save(tmp_path / "file" / "sheet.json")

    SHEET.save(tmp_path / "sheet.json")
    before = (tmp_path / "sheet.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DefianceError, match="No space left on device"):
        replace(SHEET, verdict="new").save(tmp_path / "sheet.json")
    assert (tmp_path / "sheet.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3
