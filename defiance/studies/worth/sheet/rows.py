"""The rows of the sheet: every candidate, regime and scenario under every cap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defiance.kpm import METRICS, Row, crossed_interval, mean_interval
from defiance.network.loop import PERIOD_STEPS
from defiance.prices import CITED
from defiance.scene.drive_fits import Calibration
from defiance.studies.worth.settings import (
    Config,
    Scenario,
    away_scenario,
    caps,
    contended_scenario,
    home_scenarios,
)
from defiance.studies.worth.sheet.costs import (
    Cost,
    Running,
    cost,
    latency_s,
    learned_running,
    rule_running,
    stations_j,
)
from defiance.studies.worth.sheet.results import Results, at, pictures
from defiance.studies.worth.training import Model

UNITS = {
    "saved_power_per_user": "W",
    "training_operations_total": "op",
    "rsrp_offset": "dB",
    "rsrp_distance": "dB",
    "command_delay": "s",
    "model_delay": "s",
    "wire_delay": "s",
}
"""Units of metrics that are this study's own; the others have none."""

NETWORK_RATES = (
    "outage_share",
    "handovers_per_user_minute",
    "ping_pongs_per_user_hour",
    "failures_per_user_hour",
    "throughput",
)


CONTENTION = ("control_outage_share", "control_outage_cut", "contention_outage", "command_delay")
"""With control links that are ideal, queued, or queued with model traffic: the row's node says which."""

YEAR_S = 365.25 * 86400

Interval = tuple[float, float, float]
Maker = Callable[[str, str, Interval, int, str], Row]
"""Makes a row from node, metric, interval, n and provenance."""


def rows(results: Results) -> Iterator[Row]:
    """All rows of the sheet."""
    if results.calibration is not None:
        yield from _calibration_rows(results, results.calibration)
    for scenario in results.a3:
        for cap in caps(results.config, scenario):
            yield from _scenario_rows(results, scenario, cap)
    for scenario in results.a3:
        yield from _unseen_street_rows(results, scenario)
    yield from _contention_rows(results)
    yield from _training_rows(results)


def _maker(candidate: str, regime: str, scenario: str) -> Maker:
    def row(node: str, metric: str, interval: Interval, n: int, provenance: str) -> Row:
        unit = METRICS[metric].unit if metric in METRICS else UNITS.get(metric, "1")
        return Row(candidate, regime, scenario, node, metric, unit or "1", *interval, n, provenance)

    return row


def _constant(value: float) -> Interval:
    return value, math.nan, math.nan


def _node(placement: str) -> str:
    return "device" if placement == "device" else "base-station"


def _calibration_rows(results: Results, found: Calibration) -> Iterator[Row]:
    """How the scene was shifted to what drives measured, and how far it is from each held-out drive."""
    row = _maker("scene", "none", f"{home_scenarios(results.config)[0].city}/measured")
    drives = len(found.distance_db)
    yield row("network", "rsrp_offset", _constant(found.offset_db), drives, "measured")
    yield row("network", "rsrp_distance", mean_interval(found.distance_db), drives, "measured")


# --- scenarios ------------------------------------------------------------------------------------------


def _scenario_rows(results: Results, scenario: Scenario, cap: float) -> Iterator[Row]:
    """Rule, genie and every learned candidate in one scenario under one cap."""
    config, name = results.config, scenario.name(cap)
    tuned = at(results.a3[scenario], cap)["test"]
    rule = rule_running(results, scenario, tuned)
    row = _maker("a3", "none", name)
    yield from _rates(results, row, scenario, [tuned])
    yield from _costs(results, row, rule, [])
    yield row(
        "network", "tuning_operations", _constant(results.a3[scenario]["tuning_operations"]), 1, "counted"
    )
    yield row("network", "cpu_time", _constant(results.a3[scenario]["cpu_s"]), 1, "measured")
    yield row("device", "inference_operations", _constant(rule.decision), 1, "counted")
    yield row(
        "network", "inference_latency", _constant(latency_s(config, rule)), 1, results.prices.provenance
    )
    yield from _rates(
        results, _maker("genie", "none", name), scenario, [at(results.genie[scenario], cap)["test"]]
    )
    for kind, models in results.models(scenario).items():
        yield from _learned_rows(results, scenario, cap, kind, models, rule)


def _learned_rows(
    results: Results,
    scenario: Scenario,
    cap: float,
    kind: tuple[str, str],
    models: list[Model],
    rule: Running,
) -> Iterator[Row]:
    config, (placement, regime) = results.config, kind
    tests = [at(results.judged[m, scenario], cap)["test"] for m in models]
    n = len(tests) * len(results.seeds)
    own = learned_running(results, scenario, placement, tests)
    row = _maker(f"learned-{placement}", regime, scenario.name(cap))
    a3 = at(results.a3[scenario], cap)["test"]
    yield from _rates(results, row, scenario, tests)
    avoided = np.array(a3["outage_share"]) - results.tested(kind, scenario, cap, "outage_share")
    cut = relative(avoided, float(np.mean(a3["outage_share"])))
    yield row("network", "outage_cut", crossed_interval(cut), n, "measured")
    validation = [at(results.judged[m, scenario], cap)["validation_outage"] for m in models]
    yield row("network", "validation_outage_share", mean_interval(validation), len(models), "measured")
    chosen = kind == results.chosen(scenario, cap, placement)
    yield row("network", "chosen", _constant(float(chosen)), 1, "measured")
    yield row("network", "leads", _constant(float(kind == results.chosen(scenario, cap))), 1, "measured")
    settings = len(results.judged[models[0], scenario]["sweep"][0])
    decisions = settings * config.validation_worlds * config.validation_users * config.validation_s
    tuning = own.decision * decisions / (PERIOD_STEPS[placement] * config.radio.step_s)
    yield row("network", "tuning_operations", _constant(tuning), 1, "counted")
    yield row("network", "inference_latency", _constant(latency_s(config, own)), 1, results.prices.provenance)
    costs = [cost(results, m) for m in models]
    yield from _costs(results, row, own, costs)
    saved_w = saved_per_user_w(config, a3, rule, own)
    invested_j = float(np.mean([c.investment_j(config.users) for c in costs]))
    yield row("network", "saved_power_per_user", crossed_interval(saved_w), n, results.prices.provenance)
    yield row(
        "network",
        "break_even_time",
        break_even(invested_j, crossed_interval(saved_w * config.users)),
        n,
        results.prices.provenance,
    )
    if results.prices.electricity != CITED.electricity:
        yield from _bill_rows(results, row, saved_bill(results, a3, rule, own), costs)
    extra_bits = float((own.bits_per_s - rule.bits_per_s).mean())
    for metric, extra, provenance in (
        ("joules_per_avoided_outage_second", float(-saved_w.mean()), results.prices.provenance),
        ("bits_per_avoided_outage_second", extra_bits, "counted"),
    ):
        value = extra / float(avoided.mean()) if avoided.mean() > 0 else math.inf
        yield row("network", metric, _constant(value), n, provenance)


def _rates(results: Results, row: Maker, scenario: Scenario, tests: list[dict[str, Any]]) -> Iterator[Row]:
    """What the simulated network counted."""
    n = len(tests) * len(results.seeds)
    for metric in NETWORK_RATES:
        yield row(
            "network", metric, crossed_interval(np.array([test[metric] for test in tests])), n, "measured"
        )
    in_service = 1 - np.array([test["outage_share"] for test in tests])
    metric = "generalisation" if scenario == away_scenario(results.config) else "performance"
    yield row("network", metric, crossed_interval(in_service), n, "measured")
    yield row("network", "load", crossed_interval(np.array([test["load"] for test in tests])), n, "measured")
    network_j = np.array([stations_j(results, scenario, test) for test in tests])
    yield row("network", "energy", crossed_interval(network_j), n, results.prices.provenance)


def _costs(results: Results, row: Maker, own: Running, costs: list[Cost]) -> Iterator[Row]:
    """Bits and joules in the evaluated time, of all test users together, and what was sent before it."""
    config, n = results.config, own.device_w.size
    user_seconds = config.users * config.test_s
    sent = own.bits_per_s * user_seconds
    trained = float(np.mean([c.data_bits + c.model_bits for c in costs])) if costs else 0.0
    delivered = float(np.mean([c.delivery_bits for c in costs])) * config.users if costs else 0.0
    yield row("total", "communication_bits", crossed_interval(sent + trained + delivered), n, "counted")
    yield row("network", "communication_bits", crossed_interval(sent), n, "counted")
    if delivered:
        yield row("device", "communication_bits", _constant(delivered), n, "counted")
    for node, watts in (
        ("device", own.device_w),
        ("base-station", own.station_w),
        ("backhaul", own.backhaul_w),
    ):
        yield row(node, "energy", crossed_interval(watts * user_seconds), n, results.prices.provenance)
    yield row(
        "network", "energy_per_bit", crossed_interval(own.network_j_per_bit), n, results.prices.provenance
    )


def relative(avoided: NDArray[np.float64], rule_outage: float) -> NDArray[np.float64]:
    """Outage avoided over the rule's; if the rule is never in outage nan, or 0 if nobody is."""
    if rule_outage > 0:
        return avoided / rule_outage
    return np.full_like(avoided, np.nan if avoided.any() else 0.0)


def saved_per_user_w(config: Config, a3: dict[str, Any], rule: Running, own: Running) -> NDArray[np.float64]:
    """Power saved per user at the rule's delivered bits, less what running costs more, `[runs, seeds]`."""
    bits_per_s = np.array(a3["bits"]) / (config.users * config.test_s)
    return (rule.network_j_per_bit - own.network_j_per_bit) * bits_per_s + rule.overhead_w - own.overhead_w


def saved_bill(results: Results, a3: dict[str, Any], rule: Running, own: Running) -> NDArray[np.float64]:
    """Money saved per user and second at the rule's delivered bits, `[runs, seeds]`."""
    bits_per_s = np.array(a3["bits"]) / (results.config.users * results.config.test_s)
    network_w = (rule.network_j_per_bit - own.network_j_per_bit) * bits_per_s
    network_w = network_w + rule.station_w + rule.backhaul_w - own.station_w - own.backhaul_w
    bill: NDArray[np.float64] = results.prices.bill(network_w, rule.device_w - own.device_w)
    return bill


def _bill_rows(results: Results, row: Maker, saved: NDArray[np.float64], costs: list[Cost]) -> Iterator[Row]:
    """What the user's prices of electricity make of it."""
    users = results.config.users
    yearly = row(
        "network", "electricity_saved_per_user_year", crossed_interval(saved * YEAR_S), saved.size, "user"
    )
    yield replace(yearly, unit=results.prices.electricity.currency)
    invested = float(np.mean([results.prices.bill(c.training_j, c.delivery_j(users)) for c in costs]))
    payback = break_even(invested, crossed_interval(saved * users))
    yield row("network", "electricity_payback_time", payback, saved.size, "user")


def break_even(invested_j: float, saved_w: Interval) -> Interval:
    """Invested joules over saved power; where nothing is saved, never."""
    mean, low, high = saved_w
    times = [invested_j / w if w > 0 else math.inf for w in (mean, high, low)]
    return (times[0], times[1], times[2]) if math.isfinite(low) else _constant(times[0])


def _unseen_street_rows(results: Results, scenario: Scenario) -> Iterator[Row]:
    """Outage on streets that no training trip took, in those recorded runs whose users came there."""
    found = {
        (candidate, regime): np.array(results.pictures[key]["unseen_outage"])
        for candidate, regime, key in pictures(results, scenario)
    }
    there = np.isfinite([*found.values()]).all(0)
    if not found or not there.any():
        return
    found = {kind: outage[there] for kind, outage in found.items()}
    rule = found["a3", "none"]
    unseen = Scenario(f"{scenario.city}-unseen", scenario.speed_kmh, scenario.load, scenario.map)
    name, n = unseen.name(caps(results.config, scenario)[0]), len(rule)
    for (candidate, regime), own in found.items():
        row = _maker(candidate, regime, name)
        yield row("network", "outage_share", mean_interval(own), n, "measured")
        if candidate != "a3":
            yield row("network", "generalisation", mean_interval(1 - own), n, "measured")
            cut = relative(rule - own, float(rule.mean()))
            yield row("network", "outage_cut", mean_interval(cut), n, "measured")


# --- contention -----------------------------------------------------------------------------------------


def _contention_rows(results: Results) -> Iterator[Row]:
    """Outage with ideal control links and with queues in the same worlds, and what messages waited."""
    if not results.contention:
        return
    scenario = contended_scenario(results.config)
    name, rule = scenario.name(caps(results.config, scenario)[0]), results.contention["a3", "none"]
    for (candidate, regime), found in results.contention.items():
        row = _maker(candidate, regime, name)
        ideal = np.array(found["ideal"]["outage_share"])
        for links, test in found.items():
            outage, n = np.array(test["outage_share"]), len(test["outage_share"])
            yield row(links, "control_outage_share", mean_interval(outage), n, "measured")
            if links != "ideal":
                yield row(links, "contention_outage", mean_interval(outage - ideal), n, "measured")
            if candidate != "a3":
                base = np.array(rule[links]["outage_share"])
                cut = relative(base - outage, float(base.mean()))
                yield row(links, "control_outage_cut", mean_interval(cut), n, "measured")
            for metric in ("command_delay", "model_delay", "wire_delay"):
                known = [delay for delay in test[metric] if math.isfinite(delay)]
                if known:
                    yield row(links, metric, mean_interval(known), len(known), "measured")


# --- training -------------------------------------------------------------------------------------------


def kinds(results: Results) -> dict[tuple[str, str, str], list[Model]]:
    """Trained models by placement, regime and map."""
    found: dict[tuple[str, str, str], list[Model]] = {}
    for model in results.trained:
        found.setdefault((model.placement, model.regime, model.map), []).append(model)
    return found


def _training_rows(results: Results) -> Iterator[Row]:
    for (placement, regime, map_), models in kinds(results).items():
        home = home_scenarios(results.config)[0]
        city = away_scenario(results.config) if regime.startswith("finetuned") else home
        assert city is not None
        costs = [cost(results, m) for m in models]
        row = _maker(f"learned-{placement}", regime, f"{city.city}/{map_}")
        for node, metric, values, provenance in (
            ("training", "training_operations", [c.until_converged for c in costs], "counted"),
            ("training", "training_operations_total", [c.operations * c.rounds for c in costs], "counted"),
            ("training", "communication_bits", [c.data_bits + c.model_bits for c in costs], "counted"),
            ("training", "energy", [c.compute_j for c in costs], results.prices.provenance),
            ("training", "energy", [c.compute_estimated_j for c in costs], "estimated"),
            ("training-transfers", "energy", [c.transfer_j for c in costs], results.prices.provenance),
            ("training", "cpu_time", [c.cpu_s for c in costs], "measured"),
            (_node(placement), "inference_operations", [c.decision for c in costs], "counted"),
            (_node(placement), "inference_parameters", [float(c.parameters) for c in costs], "counted"),
        ):
            yield row(node, metric, mean_interval(values), len(models), provenance)
