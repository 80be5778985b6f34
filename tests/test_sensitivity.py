"""What a verdict rests on: flips against closed forms, the corners, the figure and the table on the page."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_kpm import SHEET

from defiance.kpm import Sheet
from defiance.prices import CITED, Cell, Transfer
from defiance.report import write_report
from defiance.sensitivity import Constant, Sensitivity, sensitivity
from defiance.studies.worth.sheet.sensitivity import CELL_SLOPE, _with, constants

WATTS = Constant("cell", "W", 100.0, 200.0, 400.0, "a data sheet")
JOULES = Constant("bit", "J", 1.0, 2.0, 3.0, "a paper")


def found(saved_s: float, bits: float, cost_j: float = 0.0) -> Sensitivity:
    return sensitivity(
        lambda value: saved_s * value["cell"] - bits * value["bit"] - cost_j,
        [JOULES, WATTS],
        claim="It pays back.",
        candidate="learned-device",
        regime="central",
        scenario="munich/30kmh/load50/cap8/raw",
        unit="J",
    )


def test_where_a_verdict_flips_is_exact() -> None:
    """3 s x cell - 200 x bit: zero where the cell draws 133 W, or a bit costs 3 J, the end of its range."""
    one = found(3.0, 200.0)
    assert (one.margin, one.worst, one.best) == (200.0, -300.0, 1000.0)
    cell, bit = one.swings
    assert (cell.constant, cell.margin_low, cell.margin_high) == ("cell", -100.0, 800.0)
    assert cell.flips and cell.flips_at == pytest.approx(400 / 3)
    assert bit.flips and bit.flips_at == pytest.approx(3.0)
    assert one.holds and not one.robust and one.flipped_by == (cell, bit)


def test_a_verdict_that_nothing_flips() -> None:
    one = found(3.0, 1.0)
    assert one.holds and one.robust and not one.flipped_by
    assert one.swings[0].flips_at == pytest.approx(2 / 3)  # of a watt: far below the range
    assert math.isnan(found(3.0, 0.0).swings[1].flips_at)


@given(
    saved=st.floats(-1e3, 1e3),
    bits=st.floats(-1e3, 1e3),
    cost=st.floats(-1e3, 1e3),
    cell=st.floats(WATTS.low, WATTS.high),
    bit=st.floats(JOULES.low, JOULES.high),
)
def test_no_constants_in_their_ranges_are_beyond_the_corners(
    saved: float, bits: float, cost: float, cell: float, bit: float
) -> None:
    one = found(saved, bits, cost)
    slack = 1e-9 * (1 + abs(one.best) + abs(one.worst))
    assert one.worst - slack <= saved * cell - bits * bit - cost <= one.best + slack
    assert [swing.width for swing in one.swings] == sorted((s.width for s in one.swings), reverse=True)
    for swing in one.flipped_by:
        assert swing.low - slack <= swing.flips_at <= swing.high + slack


def test_what_the_user_gave_is_not_moved() -> None:
    names = [constant.name for constant in constants(CITED)]
    assert len(names) == len(set(names)) == 8 and all(c.low <= c.nominal <= c.high for c in constants(CITED))
    own = replace(CITED, cell=Cell(100.0, 300.0), backhaul=Transfer(1e-8))
    left = {constant.name for constant in constants(own)}
    assert set(names) - left == {CELL_SLOPE, "backhaul, marginal, a bit"}
    moved = _with(CITED, {CELL_SLOPE: 50.0, "device NPU, an operation": 1e-9})
    assert moved.cell.full_load_w - moved.cell.idle_w == pytest.approx(50.0)
    assert moved.device.joules_per_operation == 1e-9 and moved.station == CITED.station
    assert _with(CITED, {c.name: c.nominal for c in constants(CITED)}).cell.full_load_w == pytest.approx(
        CITED.cell.full_load_w
    )


def test_the_page_shows_it_and_a_sheet_keeps_it(tmp_path: Path) -> None:
    sheet = replace(SHEET, sensitivities=(found(3.0, 200.0), found(3.0, 1.0)))
    sheet.save(tmp_path / "sheet.json")
    assert repr(Sheet.load(tmp_path / "sheet.json")) == repr(sheet)
    page = write_report([sheet], tmp_path).read_text()
    assert "What the verdict rests on" in page
    assert "These change it alone: cell (at 133\xa0W); bit (at 3.00\xa0J)." in page
    assert (tmp_path / "figures/tornado.svg").exists()
    table = (tmp_path / "tables/sensitivity.csv").read_text()
    assert "cell below" in table and "nothing" in table
    swings = (tmp_path / "tables/swings.csv").read_text().splitlines()[1:]
    assert [line.endswith("in its range") for line in swings] == [True, True, False, False]
    assert "What the verdict rests on" not in write_report([SHEET], tmp_path / "without").read_text()
