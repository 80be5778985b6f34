"""TR 38.901's calibration campaign: what the committed run reached, and that the engine is still there."""

import json
import math

import numpy as np
import pytest

from benchmarks.calibration import (
    METRICS,
    PERCENT,
    RESULT,
    SETTINGS,
    Comparison,
    Curve,
    Measured,
    companies,
    compare,
    measure,
)
from defiance.recordings import data_folder

TABLES = data_folder() / "tr38901" / "r1_165974.csv"
ROWS = [Comparison(**row) for row in json.loads(RESULT.read_text(encoding="utf-8"))["rows"]]


def ids(row: Comparison) -> str:
    return f"{row.setting} {row.metric}"


def test_every_curve_was_measured() -> None:
    assert [(row.setting, row.metric) for row in ROWS] == [(name, m) for name in SETTINGS for m in METRICS]


@pytest.mark.parametrize("row", ROWS, ids=ids)
def test_the_engine_is_among_the_companies(row: Comparison) -> None:
    """At least 18 of 19 percentiles between their least and greatest, less than 1 dB off their mean."""
    assert row.inside >= 18
    assert abs(row.mean_error_db) < 1.0
    assert row.drops == SETTINGS[row.setting].drops and row.standard_error_db < 0.1


@pytest.mark.parametrize("name", ["UMi-6GHz", "Indoor-30GHz"])
def test_one_drop_is_what_the_committed_run_found(name: str) -> None:
    """Drops differ by their standard deviation; a wrong loss, wall, tilt or noise figure differs by more."""
    ours = measure(name, drops=1)
    for row in (row for row in ROWS if row.setting == name):
        mean_db = ours[row.metric].percentiles[np.array(PERCENT) - 1].mean()
        of_one_drop_db = row.standard_error_db * math.sqrt(row.drops)
        assert abs(mean_db - row.mean_db) < 3 * of_one_drop_db, row.metric


@pytest.mark.skipif(not TABLES.is_file(), reason=f"no data: {TABLES}")
@pytest.mark.parametrize("row", ROWS, ids=ids)
def test_the_committed_run_was_held_against_these_companies(row: Comparison) -> None:
    theirs = companies(data_folder())[row.setting, row.metric].mean[np.array(PERCENT) - 1].mean()
    assert row.mean_db - theirs == pytest.approx(row.mean_error_db, abs=2e-3)


def test_a_curve_is_compared_at_its_19_percentiles() -> None:
    """Engine 0.5 dB above a mean of 0 ... 98 dB; the companies leave room below 50 % only."""
    mean = np.arange(99.0)
    curve = Curve(mean, mean - 1, np.where(mean < 49, mean + 1, mean))
    row = compare("UMa-6GHz", "sinr", Measured(mean + 0.5, 0.1), curve, 8)
    assert (row.mean_error_db, row.largest_error_db, row.inside) == (0.5, 0.5, sum(p < 50 for p in PERCENT))
