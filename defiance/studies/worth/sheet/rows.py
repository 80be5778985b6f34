"""The rows of the sheet: every candidate, regime and scenario under every cap."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defiance.hardware import DEVICE_NPU, ComputeProfile
from defiance.kpm import METRICS, Row, mean_interval
from defiance.studies.worth.experiments import A3_OPERATIONS_PER_CELL, PERIOD_STEPS, Model, scene_of
from defiance.studies.worth.settings import Config, Scenario, away_scenario, caps, home_scenarios
from defiance.studies.worth.sheet.costs import Running, cost, decision_operations, placement_profile, running
from defiance.studies.worth.sheet.results import Results, at, crossed_interval, pictures

NETWORK_RATES = (
    "outage_share",
    "handovers_per_user_minute",
    "ping_pongs_per_user_hour",
    "failures_per_user_hour",
    "throughput",
)


def rows(results: Results) -> Iterator[Row]:
    """All rows of the sheet."""
    for model_rows in _training_rows(results):
        yield model_rows
    for scenario in results.a3:
        for cap in caps(results.config, scenario):
            yield from _scenario_rows(results, scenario, cap)
    for scenario in results.a3:
        yield from _unseen_street_rows(results, scenario)


def _row(
    candidate: str,
    regime: str,
    scenario: str,
    node: str,
    metric: str,
    interval: tuple[float, float, float],
    n: int,
    provenance: str,
) -> Row:
    unit = METRICS[metric].unit if metric in METRICS else "1"
    return Row(candidate, regime, scenario, node, metric, unit or "1", *interval, n, provenance)


def _constant(value: float) -> tuple[float, float, float]:
    return value, math.nan, math.nan


def kinds(results: Results) -> dict[tuple[str, str, str], list[Model]]:
    """Trained models by placement, regime and map."""
    found: dict[tuple[str, str, str], list[Model]] = {}
    for model in results.trained:
        found.setdefault((model.placement, model.regime, model.map), []).append(model)
    return found


def _training_rows(results: Results) -> Iterator[Row]:
    for (placement, regime, map_), models in kinds(results).items():
        city = (
            away_scenario(results.config)
            if regime.startswith("finetuned")
            else home_scenarios(results.config)[0]
        )
        assert city is not None
        scenario = f"{city.city}/{map_}"
        costs = [cost(results, m) for m in models]
        n, name = len(models), f"learned-{placement}"

        def row(metric: str, node: str, values: list[float], provenance: str) -> Row:
            return _row(name, regime, scenario, node, metric, mean_interval(values), n, provenance)  # noqa: B023

        yield row("training_operations", "training", [c.until_converged for c in costs], "counted")
        yield row(
            "training_operations_total", "training", [c.operations * c.rounds for c in costs], "counted"
        )
        yield row("communication_bits", "training", [c.data_bits + c.model_bits for c in costs], "counted")
        yield row("energy", "training", [c.compute_j for c in costs], "modelled")
        yield row("energy", "training", [c.compute_estimated_j for c in costs], "estimated")
        yield row("energy", "training-transfers", [c.transfer_j for c in costs], "modelled")
        yield row("cpu_time", "training", [c.cpu_s for c in costs], "measured")
        yield row(
            "inference_operations",
            "device" if placement == "device" else "base-station",
            [c.decision for c in costs],
            "counted",
        )
        yield row(
            "inference_parameters",
            "device" if placement == "device" else "base-station",
            [c.parameters for c in costs],
            "counted",
        )


def _rates(
    results: Results, candidate: str, regime: str, scenario: Scenario, cap: float, tests: list[dict[str, Any]]
) -> Iterator[Row]:
    name = scenario.name(cap)
    n = len(tests) * len(results.seeds)
    for metric in NETWORK_RATES:
        interval = crossed_interval(np.array([test[metric] for test in tests]))
        yield _row(candidate, regime, name, "network", metric, interval, n, "measured")
    in_service = 1 - np.array([test["outage_share"] for test in tests])
    away = away_scenario(results.config)
    metric = "generalisation" if scenario == away else "performance"
    yield _row(candidate, regime, name, "network", metric, crossed_interval(in_service), n, "measured")
    load = crossed_interval(np.array([test["load"] for test in tests]))
    yield _row(candidate, regime, name, "network", "load", load, n, "measured")


def _scenario_rows(results: Results, scenario: Scenario, cap: float) -> Iterator[Row]:
    config, name = results.config, scenario.name(cap)
    a3 = at(results.a3[scenario], cap)["test"]
    yield from _rates(results, "a3", "none", scenario, cap, [a3])
    yield from _rates(results, "genie", "none", scenario, cap, [at(results.genie[scenario], cap)["test"]])
    yield _row(
        "a3",
        "none",
        name,
        "network",
        "tuning_operations",
        _constant(results.a3[scenario]["tuning_operations"]),
        1,
        "counted",
    )
    yield _row(
        "a3", "none", name, "network", "cpu_time", _constant(results.a3[scenario]["cpu_s"]), 1, "measured"
    )
    scene = scene_of(config, scenario.city, scenario.map)
    rule_operations = float(A3_OPERATIONS_PER_CELL * len(scene.cell_site))
    period_s = PERIOD_STEPS["device"] * config.radio.step_s
    rule = running(config, [a3], rule_operations, period_s, DEVICE_NPU)
    yield _row("a3", "none", name, "device", "inference_operations", _constant(rule_operations), 1, "counted")
    yield _row(
        "a3",
        "none",
        name,
        "network",
        "inference_latency",
        _constant(_latency(config, rule_operations, DEVICE_NPU)),
        1,
        "modelled",
    )
    yield from _energy_rows(results, "a3", "none", name, rule, [a3])
    for kind, models in results.models(scenario).items():
        placement, regime = kind
        candidate, on = f"learned-{placement}", placement_profile(placement)
        tests = [at(results.judged[m, scenario], cap)["test"] for m in models]
        n = len(tests) * len(results.seeds)
        yield from _rates(results, candidate, regime, scenario, cap, tests)
        cut = (np.array(a3["outage_share"]) - results.tested(kind, scenario, cap, "outage_share")) / np.mean(
            a3["outage_share"]
        )
        yield _row(candidate, regime, name, "network", "outage_cut", crossed_interval(cut), n, "measured")
        validation = [at(results.judged[m, scenario], cap)["validation_outage"] for m in models]
        yield _row(
            candidate,
            regime,
            name,
            "network",
            "validation_outage_share",
            mean_interval(validation),
            len(models),
            "measured",
        )
        yield _row(
            candidate,
            regime,
            name,
            "network",
            "chosen",
            _constant(float(kind == results.chosen(scenario, cap, placement))),
            1,
            "measured",
        )
        decision = decision_operations(config, scene)
        tuning = decision * len(results.judged[models[0], scenario]["sweep"][0]) * config.validation_worlds
        tuning *= (
            config.validation_users * config.validation_s / (PERIOD_STEPS[placement] * config.radio.step_s)
        )
        yield _row(candidate, regime, name, "network", "tuning_operations", _constant(tuning), 1, "counted")
        yield _row(
            candidate,
            regime,
            name,
            "network",
            "inference_latency",
            _constant(_latency(config, decision, on)),
            1,
            "modelled",
        )
        own = running(config, tests, decision, PERIOD_STEPS[placement] * config.radio.step_s, on)
        yield from _energy_rows(results, candidate, regime, name, own, tests)
        yield from _worth_rows(results, candidate, kind, scenario, cap, models, rule, own)


def _latency(config: Config, operations: float, on: ComputeProfile) -> float:
    """Computing, then the report (or request) and the command in the air; preparation over Xn is not the function's."""
    return operations / on.operations_per_second + 2 * config.radio.air_delay_s


def _energy_rows(
    results: Results, candidate: str, regime: str, name: str, own: Running, tests: list[dict[str, Any]]
) -> Iterator[Row]:
    user_seconds = results.config.users * results.config.test_s
    n = own.device_w.size
    for node, watts in (
        ("device", own.device_w),
        ("base-station", own.station_w),
        ("backhaul", own.backhaul_w),
    ):
        yield _row(
            candidate, regime, name, node, "energy", crossed_interval(watts * user_seconds), n, "modelled"
        )
    network = np.array([test["network_j"] for test in tests])
    yield _row(candidate, regime, name, "network", "energy", crossed_interval(network), n, "modelled")
    yield _row(
        candidate,
        regime,
        name,
        "network",
        "energy_per_bit",
        crossed_interval(own.network_j_per_bit),
        n,
        "modelled",
    )
    yield _row(
        candidate,
        regime,
        name,
        "network",
        "communication_bits",
        crossed_interval(own.bits_per_s * user_seconds),
        n,
        "counted",
    )


def _worth_rows(
    results: Results,
    candidate: str,
    kind: tuple[str, str],
    scenario: Scenario,
    cap: float,
    models: list[Model],
    rule: Running,
    own: Running,
) -> Iterator[Row]:
    """Does it pay back, and what does an avoided second of outage cost?"""
    config, name, regime = results.config, scenario.name(cap), kind[1]
    n = own.device_w.size
    a3 = at(results.a3[scenario], cap)["test"]
    saved_w = saved_per_user_w(config, a3, rule, own)
    invested_j = float(np.mean([cost(results, m).investment_j(config.users) for m in models]))
    yield _row(
        candidate, regime, name, "network", "saved_power_per_user", crossed_interval(saved_w), n, "modelled"
    )
    time = break_even(invested_j, crossed_interval(saved_w * config.users))
    yield _row(candidate, regime, name, "network", "break_even_time", time, n, "modelled")
    avoided = float(
        (np.array(a3["outage_share"]) - results.tested(kind, scenario, cap, "outage_share")).mean()
    )
    extra_w, extra_bits = float(-saved_w.mean()), float((own.bits_per_s - rule.bits_per_s).mean())
    for metric, extra in (
        ("joules_per_avoided_outage_second", extra_w),
        ("bits_per_avoided_outage_second", extra_bits),
    ):
        value = extra / avoided if avoided > 0 else math.inf
        yield _row(
            candidate,
            regime,
            name,
            "network",
            metric,
            _constant(value),
            n,
            "modelled" if "joules" in metric else "counted",
        )


def saved_per_user_w(config: Config, a3: dict[str, Any], rule: Running, own: Running) -> NDArray[np.float64]:
    """Power saved per user at the rule's delivered bits, less what signalling and inference cost more, `[runs, seeds]`."""
    bits_per_s = np.array(a3["bits"]) / (config.users * config.test_s)
    return (rule.network_j_per_bit - own.network_j_per_bit) * bits_per_s + rule.overhead_w - own.overhead_w


def break_even(invested_j: float, saved_w: tuple[float, float, float]) -> tuple[float, float, float]:
    """Invested joules over saved power; where nothing is saved, never."""
    mean, low, high = saved_w
    times = [invested_j / w if w > 0 else math.inf for w in (mean, high, low)]
    return (times[0], times[1], times[2]) if math.isfinite(low) else _constant(times[0])


def _unseen_street_rows(results: Results, scenario: Scenario) -> Iterator[Row]:
    found = {
        (candidate, regime): results.pictures[key]["unseen_outage"]
        for candidate, regime, key in pictures(results, scenario)
    }
    if not found:
        return
    rule = np.array(found["a3", "none"])
    unseen = Scenario(f"{scenario.city}-unseen", scenario.speed_kmh, scenario.load, scenario.map)
    name, n = unseen.name(caps(results.config, scenario)[0]), len(rule)
    for (candidate, regime), outage in found.items():
        own = np.array(outage)
        yield _row(candidate, regime, name, "network", "outage_share", mean_interval(own), n, "measured")
        if candidate != "a3":
            yield _row(
                candidate, regime, name, "network", "generalisation", mean_interval(1 - own), n, "measured"
            )
            yield _row(
                candidate,
                regime,
                name,
                "network",
                "outage_cut",
                mean_interval((rule - own) / rule.mean()),
                n,
                "measured",
            )
