"""What the verdict on energy rests on: the cited constants over their ranges, from recorded parts alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from defiance.hardware import (
    BACKHAUL,
    BASE_STATIONS,
    DEVICE_NPU,
    EARTH_DP,
    EARTH_PMAX_W,
    EARTH_TRANSCEIVERS,
    FULL_LOAD_CELL_W,
    SECTORS_PER_SITE,
    SERVER_CPU,
    STATION_SOC,
    UE_COMMAND,
    UE_DOWNLOAD,
    UE_REPORT,
)
from defiance.prices import CITED, Cell, Computing, Prices, Transfer
from defiance.sensitivity import Constant, Sensitivity, sensitivity
from defiance.studies.worth.settings import Scenario, caps, home_scenarios
from defiance.studies.worth.sheet.costs import cost, learned_running, rule_running
from defiance.studies.worth.sheet.results import Results, at
from defiance.studies.worth.sheet.rows import YEAR_S, saved_per_user_w

CLAIM = "Its energy pays back within a year."

_PROCESSORS = {"server": SERVER_CPU, "station": STATION_SOC, "device": DEVICE_NPU}
_TRANSFERS = {"backhaul": BACKHAUL, "report": UE_REPORT, "command": UE_COMMAND, "download": UE_DOWNLOAD}
CELL_SLOPE = "cell, full load less idle"


def _cell_slope() -> Constant:
    slopes = {
        name: FULL_LOAD_CELL_W * (1 - power.micro_sleep / power.downlink)
        for name, power in BASE_STATIONS.items()
    }
    earth_w = EARTH_TRANSCEIVERS * EARTH_DP * EARTH_PMAX_W / SECTORS_PER_SITE
    return Constant(
        CELL_SLOPE,
        "W",
        min(earth_w, *slopes.values()),
        CITED.cell.full_load_w - CITED.cell.idle_w,
        max(slopes.values()),
        "TR 38.864 table 5.1-3 (cat1-set2), scaled to EARTH's macro at full load; low: EARTH's own slope, "
        "6 x 4.7 x 20 W over three sectors; high: the steepest of the table's sets",
    )


def constants(prices: Prices) -> list[Constant]:
    """Cited constants with their ranges; those that the user gave are taken as they are."""
    found = []
    for field, cited in _PROCESSORS.items():
        if getattr(prices, field) == getattr(CITED, field):
            ends = cited.joules_per_operation_low, cited.joules_per_operation, cited.joules_per_operation_high
            found.append(Constant(f"{cited.name}, an operation", "J", *ends, cited.source))
    for field, moved in _TRANSFERS.items():
        if getattr(prices, field) == getattr(CITED, field):
            ends = moved.joules_per_bit_low, moved.joules_per_bit, moved.joules_per_bit_high
            found.append(Constant(f"{moved.name}, a bit", "J", *ends, moved.source))
    if prices.cell == CITED.cell:
        found.append(_cell_slope())
    return found


def _with(prices: Prices, values: Mapping[str, float]) -> Prices:
    """The prices with these constants."""
    moved: dict[str, Any] = {}
    for field, cited in _PROCESSORS.items():
        if (value := values.get(f"{cited.name}, an operation")) is not None:
            moved[field] = Computing(value, getattr(prices, field).watts_per_core)
    for field, link in _TRANSFERS.items():
        if (value := values.get(f"{link.name}, a bit")) is not None:
            moved[field] = Transfer(value)
    if (slope_w := values.get(CELL_SLOPE)) is not None:
        moved["cell"] = Cell(prices.cell.idle_w, prices.cell.idle_w + slope_w)
    return replace(prices, **moved)


def sensitivities(results: Results) -> Iterator[Sensitivity]:
    """Of the learned function that validation chose, in every scenario at home under its first cap."""
    for scenario in home_scenarios(results.config):
        cap = caps(results.config, scenario)[0]
        kind = results.chosen(scenario, cap)
        yield sensitivity(
            lambda values, s=scenario, c=cap, k=kind: _margin_j(results, s, c, k, values),  # type: ignore[misc]
            constants(results.prices),
            claim=CLAIM,
            candidate=f"learned-{kind[0]}",
            regime=kind[1],
            scenario=scenario.name(cap),
            unit="J",
        )


def _margin_j(
    results: Results, scenario: Scenario, cap: float, kind: tuple[str, str], values: Mapping[str, float]
) -> float:
    """Joules per user that a year saves, less the user's share of what was invested."""
    results = replace(results, prices=_with(results.prices, values))
    models, rule = results.models(scenario)[kind], at(results.a3[scenario], cap)["test"]
    own = learned_running(
        results, scenario, kind[0], [at(results.judged[m, scenario], cap)["test"] for m in models]
    )
    saved_w = saved_per_user_w(results.config, rule, rule_running(results, scenario, rule), own)
    users = results.config.users
    invested_j = float(np.mean([cost(results, m).investment_j(users) for m in models]))
    return float(saved_w.mean()) * YEAR_S - invested_j / users
