"""Several functions at one base station: what the shared processor's rows say."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from defiance.errors import DefianceError
from defiance.hardware import STATION_SOC
from defiance.kpm import Row, Sheet
from defiance.parts import Parts
from defiance.report import write_report
from defiance.studies import Silent, worth
from defiance.studies.worth import functions
from defiance.studies.worth.settings import PRESETS


def sheet(name: str, operations: float, node: str = "base-station") -> Sheet:
    """A study's sheet with one learned candidate."""
    row = Row(
        "own",
        "central",
        "munich",
        node,
        "inference_operations",
        "op",
        operations,
        math.nan,
        math.nan,
        1,
        "counted",
    )
    rule = replace(row, candidate="rule", regime="none", mean=1e15)
    return Sheet(name, "1", {}, (0, 1), {}, f"defiance run {name}", (rule, row), (), f"{name} is worth it.")


@pytest.fixture(scope="module")
def together() -> Sheet:
    capacity = STATION_SOC.operations_per_second
    sheets = {
        "handover": sheet("worth", 1e-4 * capacity * 0.12),  # of a core, for each user
        "beams": sheet("beams", 1e-3 * capacity * 0.02),
        "csi": sheet("csi", 1e-2 * capacity * 0.02),
    }
    return functions.together(PRESETS["quick"], sheets, (0, 1))


def missed(together: Sheet, name: str, regime: str, users: int) -> float:
    return together.value(
        "deadline_miss_share", candidate=name, regime=regime, scenario=f"one-core/users{users}"
    ).mean


def test_shares_of_the_processor_add_up_to_what_was_asked(together: Sheet) -> None:
    shares = {
        row.candidate: row.mean
        for row in together.select(
            metric="processor_share", regime="by-deadline", scenario="one-core/users30"
        )
    }
    assert shares == pytest.approx({"handover": 0.003, "beams": 0.03, "csi": 0.3})


def test_who_goes_first_keeps_its_deadlines_and_the_last_one_yields(together: Sheet) -> None:
    assert missed(together, "csi", "by-deadline", 10) < 0.01
    for first, last in (("handover", "csi"), ("csi", "handover")):
        assert missed(together, first, f"{first}-first", 300) < missed(together, last, f"{first}-first", 300)
    assert missed(together, "handover", "handover-first", 300) == 0
    left_over = 1 - 0.03 - 0.3
    assert missed(together, "csi", "handover-first", 300) > 1 - left_over / 3 - 0.03


def test_rows_keep_their_function_and_the_verdict_tells_of_all(together: Sheet, tmp_path: Path) -> None:
    assert {row.scenario for row in together.rows if row.candidate == "own"} == {
        "munich/handover",
        "munich/beams",
        "munich/csi",
    }
    first, *others = together.verdict.split("\n")
    assert first.startswith("One core of a base station runs handover, beams, csi for ")
    assert "csi-first" not in first and "csi first" in first
    assert others == ["handover: worth is worth it.", "beams: beams is worth it.", "csi: csi is worth it."]
    page = write_report([together], tmp_path).read_text()
    assert "deadline miss share" in page


def test_a_function_that_runs_at_no_station_is_refused() -> None:
    with pytest.raises(DefianceError, match="no learned beams runs at the base station"):
        functions.station_operations("beams", sheet("beams", 1.0, node="device"))


@pytest.mark.parametrize("function", ["beams", "csi"])
def test_another_function_is_asked_about_the_same_cities(function: str, tmp_path: Path) -> None:
    config = replace(PRESETS["quick"], function=function, scene="atlantis")
    with pytest.raises(DefianceError, match="atlantis"):
        worth.run(config, seeds=(0,), parts=Parts.open(tmp_path, "f" * 64), progress=Silent())
