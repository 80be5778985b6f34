"""The words of the report: headlines, what changed, numbers with their units, names, CSV and LaTeX."""

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worth_page import made_row, small, worth_sheet

from defiance.kpm import Sheet
from defiance.report import comparison, drawing, summary_rows, tables, words
from defiance.report.worth.view import View


@pytest.fixture(scope="module")
def sheet() -> Sheet:
    return worth_sheet()


def test_headlines_are_few_and_honest(sheet):
    lines = summary_rows(sheet)
    assert 4 <= len(lines) <= 6
    found = {label: (value, detail) for label, value, detail in lines}
    value, detail = found["Outage avoided against the tuned A3 rule"]
    assert value == "31.7 to 35.5\xa0%"
    assert "Of 9 scenarios less outage in 8, not resolved in 1" in detail and "[27.7, 35.7]" in detail
    assert found["Training pays back after"][0] == "7.06\xa0days or never"


def test_headlines_without_a_gain(sheet):
    rows = tuple(
        replace(one, mean=0.0, ci_low=-0.1, ci_high=0.1) if one.metric == "outage_cut" else one
        for one in sheet.rows
    )
    value = dict((label, value) for label, value, _ in summary_rows(replace(sheet, rows=rows)))
    assert value["Outage avoided against the tuned A3 rule"] == "not resolved"
    rows = tuple(
        replace(one, mean=-0.2, ci_low=-0.3, ci_high=-0.1) if one.metric == "outage_cut" else one
        for one in sheet.rows
    )
    value = dict((label, value) for label, value, _ in summary_rows(replace(sheet, rows=rows)))
    assert value["Outage avoided against the tuned A3 rule"] == "more outage"


def test_stated_choice_of_regime_wins(sheet):
    case = words.scenario("munich/30kmh/load50/cap8/raw")
    assert View(sheet).cut(case, "learned-device").regime == "central"
    choice = made_row("learned-device", "federated", case.name, "network", "chosen", 1.0, 0, unit="1")
    assert View(replace(sheet, rows=(*sheet.rows, choice))).cut(case, "learned-device").regime == "federated"


def test_headlines_speak_of_what_the_verdict_speaks_of(sheet):
    case = words.scenario("munich/30kmh/load50/cap8/raw")
    assert [row.candidate for _, row in View(sheet).led([case])] == [View(sheet).lead]
    (other,) = set(View(sheet).learned) - {View(sheet).lead}
    regime = View(sheet).cut(case, other).regime
    leads = made_row(other, regime, case.name, "network", "leads", 1.0, 0, unit="1")
    ((_, cut),) = View(replace(sheet, rows=(*sheet.rows, leads))).led([case])
    assert (cut.candidate, cut.regime) == (other, regime)


def test_comparison_interval_is_that_of_independent_means():
    a, b = (
        made_row("c", "r", "s", "n", "throughput", 10.0, 3.0),
        made_row("c", "r", "s", "n", "throughput", 16.0, 4.0),
    )
    (change,) = comparison.changes(small([a]), small([b]))
    assert (change.difference.mean, change.difference.ci_low, change.difference.ci_high) == (6.0, 1.0, 11.0)
    assert change.kind == "better"
    (change,) = comparison.changes(small([a]), small([replace(b, ci_high=30.0, ci_low=2.0)]))
    assert change.kind == "same"


def test_formulas_are_defused_in_csv():
    table = tables.table(
        "t", "", ("=head", "value"), [(tables.name("=1+1"), tables.Cell("3", values=(-3.0, 0, 0)))]
    )
    assert tables.to_csv(table).splitlines() == [
        "'=head,value: mean,value: low,value: high",
        "'=1+1,-3.0,0,0",
    ]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0203, "1", "2.03 %"),
        (2.9e13, "op", "29.0 T op"),
        (42.0, "op", "42.0 op"),
        (119808.0, "parameters", "119 808"),
        (7.95, "1/min", "7.95/min"),
        (4.3e-6, "J/bit", "4.30 µJ/bit"),
        (0.0061, "s", "6.10 ms"),
        (90.0, "s", "90.0 s"),
        (7200.0, "s", "2.00 h"),
        (6.1e5, "s", "7.06 days"),
        (math.inf, "s", "never"),
        (math.inf, "J/s", "∞"),
        (math.nan, "op", "not converged"),
        (math.nan, "s", "no value"),
        (0.0, "bit", "0 bit"),
        (-0.04, "1", "−4.00 %"),
        (999.6e6, "bit", "1.00 Gbit"),
    ],
)
def test_numbers_read_well(value, unit, text):
    assert re.sub(r"\s", " ", words.number(value, unit)) == text


def test_intervals_share_the_scale_of_their_mean():
    assert words.interval(0.004, -0.106, 0.114, "1") == ("0.4\xa0%", "[−10.6, 11.4]")
    assert words.interval(999.0, 998.0, 1001.0, "J") == ("999\xa0J", "[998, 1\u202f001]")
    assert words.interval(3600.0, 1800.0, math.inf, "s") == ("60.0\xa0min", "[30.0, never]")
    assert words.interval(math.inf, 1800.0, math.inf, "s") == ("never", "[30.0, never]\xa0min")
    assert words.interval(5.0, math.nan, math.nan, "J") == ("5.00\xa0J", "")


@given(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(["1", "s", "J", "op", "bit/s", "1/h", "x", ""]),
)
@settings(max_examples=300, deadline=None)
def test_any_number_can_be_written(value, unit):
    assert words.number(value, unit)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_scenario_name_is_read(name):
    case = words.scenario(name)
    assert case.name == name and isinstance(case.label, str)


def test_scenario_names():
    case = words.scenario("munich-unseen/2.5kmh/load50/cap8/smooth")
    assert (case.city, case.speed_kmh, case.load_percent, case.cap, case.map) == (
        "munich-unseen",
        2.5,
        50,
        8,
        "smooth",
    )
    assert (
        re.sub(r"\s", " ", case.label) == "Munich, unseen streets, smoothed map: 2.5 km/h, load 50 %, cap 8"
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(deadline=None)
def test_labels_are_spread(heights):
    placed = drawing.spread(sorted(heights), 0.1)
    assert all(b - a >= 0.1 - 1e-9 for a, b in zip(placed, placed[1:], strict=False))
    assert placed[-1] <= 1 + 1e-9


def test_latex_is_escaped():
    assert tables.tex("50 % & [a_b] $x$ \\") == r"50 \% \& {[}a\_b{]} \$x\$ \textbackslash{}"
