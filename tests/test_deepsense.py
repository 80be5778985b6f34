"""Measured beams: what is read is what was written, and what is wrong is one line."""

from pathlib import Path

import numpy as np
import pytest
import torch

from defiance.errors import DefianceError
from defiance.recordings import data_folder
from defiance.scene.deepsense import read_deepsense

REAL = data_folder() / "deepsense6g"


def write(folder: Path, rows: int = 6, **changed: np.ndarray) -> Path:
    rng = np.random.default_rng(1)
    north = np.linspace(0, 1e-4, rows)
    files = {
        "unit1_pwr_60ghz": rng.uniform(0.1, 1, (rows, 64)),
        "unit1_loc": np.tile([33.0, -111.0], (rows, 1)),
        "unit2_loc": np.stack([33.0 + north, np.full(rows, -111.0)], 1),
        "seq_index": np.arange(rows) // 3 + 1,
    } | changed
    for name, values in files.items():
        np.save(folder / f"scenario4_{name}_1-{rows}.npy", values)
    return folder


def test_a_recording_holds_powers_places_and_sequences(tmp_path: Path) -> None:
    (found,) = read_deepsense(write(tmp_path), [4])
    assert len(found) == 6 and found.scenario == 4
    assert found.sequence.tolist() == [1, 1, 1, 2, 2, 2]
    torch.testing.assert_close(10 ** (found.power_db.double() / 10), found.power, rtol=1e-5, atol=0)
    # a ten-thousandth of a degree of latitude is 11.12 m
    torch.testing.assert_close(found.vehicle_m[-1], torch.tensor([0.0, 11.12]).double(), atol=0.01, rtol=0)


def with_value(value: float, columns: int = 64) -> np.ndarray:
    values = np.full((6, columns), 0.5)
    values[3, 1] = value
    return values


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"unit1_pwr_60ghz": with_value(np.nan)}, "row 4, column 2: nan is not a received power"),
        ({"unit1_pwr_60ghz": with_value(0.0)}, "row 4, column 2: 0 is not a received power"),
        ({"unit1_pwr_60ghz": np.ones((6, 32))}, r"its shape is \[6, 32\]; want \[n, 64\]"),
        ({"unit2_loc": with_value(np.nan, 2)}, "row 4, column 2: nan is not a latitude"),
        ({"unit2_loc": np.full((6, 2), 91.0)}, "row 1, column 1: 91 is not a latitude"),
        ({"seq_index": np.arange(5)}, "has 5 rows, but there are 6"),
        ({"seq_index": np.arange(6) / 2}, "row 2: 0.5 is no sequence"),
        ({"seq_index": np.array(["a"] * 6)}, "does not hold real numbers"),
        ({"unit1_loc": np.array([None] * 6)}, "is not a NumPy array file"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, changed: dict[str, np.ndarray], problem: str) -> None:
    with pytest.raises(DefianceError, match=problem) as error:
        read_deepsense(write(tmp_path, **changed), [4])
    assert "\n" not in str(error.value)


def test_an_unknown_or_absent_scenario_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DefianceError, match="scenario 7 of DeepSense 6G is not known here; choose from 1, 2"):
        read_deepsense(tmp_path, [7])
    with pytest.raises(DefianceError, match="holds no scenario1_unit1_pwr_60ghz_"):
        read_deepsense(write(tmp_path), [1])


def test_a_header_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "scenario4_seq_index_1-6.npy"
    promise = path.read_bytes().replace(b"(6,), }            ", b"(6666666666666,), }")
    assert b"(6666666666666,)" in promise
    for content in (promise, promise[:100], b""):
        path.write_bytes(content)
        with pytest.raises(DefianceError, match="is not a NumPy array file"):
            read_deepsense(tmp_path, [4])


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no data: {REAL}")
def test_the_published_recordings_are_read_whole() -> None:
    found = read_deepsense(REAL)
    assert [len(site) for site in found] == [2422, 2974, 1487, 1867, 2300, 915]
    assert sum(len(site.sequence.unique()) for site in found) == 227
    assert all(5 < site.vehicle_m.norm(dim=1).median() < 100 for site in found)
