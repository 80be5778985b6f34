"""From the parts of the study `worth` to its sheet: rows, curves, verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import contourpy
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit

from defiance import __version__
from defiance import config as configuration
from defiance.control.handover import HISTORY
from defiance.hardware import (
    BACKHAUL,
    DEVICE_NPU,
    SERVER_CPU,
    STATION_SOC,
    UE_COMMAND,
    UE_REPORT,
    ComputeProfile,
    base_station_power_w,
)
from defiance.kpm import (
    METRICS,
    Curve,
    Row,
    Sheet,
    format_quantity,
    mean_interval,
    operations_until_converged,
)
from defiance.link import BackhaulLink, Deliveries, Packets
from defiance.meter import Operations, operations_of
from defiance.network.simulate import PREPARATION_BITS, report_bits
from defiance.scene import Scene
from defiance.seeding import stream
from defiance.studies import machine
from defiance.studies.worth.experiments import A3_OPERATIONS_PER_CELL, PERIOD_STEPS, Model, scene_of
from defiance.studies.worth.settings import Config, Scenario, away_scenario, caps, home_scenarios

BACKHAUL_BPS, BACKHAUL_DELAY_S = 1e9, 2e-3
"""A gigabit backhaul, 2 ms one way."""

NETWORK_RATES = (
    "outage_share",
    "handovers_per_user_minute",
    "ping_pongs_per_user_hour",
    "failures_per_user_hour",
    "throughput",
)
SAMPLE_HEADER_BITS = 96
"""RRC, PDCP, RLC and MAC around a log of ten measurements, as on `defiance.link.LossyLink`."""


@dataclass(frozen=True)
class Results:
    """All parts of a run."""

    config: Config
    seeds: tuple[int, ...]
    a3: dict[Scenario, dict[str, Any]]
    genie: dict[Scenario, dict[str, Any]]
    trained: dict[Model, dict[str, Any]]
    judged: dict[tuple[Model, Scenario], dict[str, Any]]
    pictures: dict[str, dict[str, Any]]

    def models(self, scenario: Scenario) -> dict[tuple[str, str], list[Model]]:
        """The models judged in a scenario, by placement and regime."""
        found: dict[tuple[str, str], list[Model]] = {}
        for model, where in self.judged:
            if where == scenario:
                found.setdefault((model.placement, model.regime), []).append(model)
        return found

    def chosen(self, scenario: Scenario, cap: float, placement: str | None = None) -> tuple[str, str]:
        """Placement and regime of least validation outage under a cap, of one placement or of all."""

        def outage(kind: tuple[str, str]) -> float:
            return float(
                np.mean(
                    [
                        at(self.judged[m, scenario], cap)["validation_outage"]
                        for m in self.models(scenario)[kind]
                    ]
                )
            )

        return min((k for k in self.models(scenario) if placement in (None, k[0])), key=outage)

    def tested(self, kind: tuple[str, str], scenario: Scenario, cap: float, name: str) -> NDArray[np.float64]:
        """A rate on the test worlds, `[training seeds, seeds]`."""
        return np.array(
            [at(self.judged[m, scenario], cap)["test"][name] for m in self.models(scenario)[kind]]
        )


def at(part: dict[str, Any], cap: float) -> dict[str, Any]:
    """What a part found under a cap."""
    found: dict[str, Any] = next(c for c in part["caps"] if c["cap"] == cap)
    return found


def crossed_interval(samples: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean and 95 % interval over training seeds and test seeds, `[training seeds, seeds]`.

    Both are random: the variance of the mean is the sum of what the test seeds' means and the training seeds' means
    contribute (conservative: their common noise is counted twice), with Satterthwaite's degrees of freedom.
    """
    mean = float(samples.mean())
    terms = [
        (means.var(ddof=1) / len(means), len(means) - 1)
        for means in (samples.mean(0), samples.mean(1))
        if len(means) > 1
    ]
    variance = float(sum(v for v, _ in terms))
    if not terms:
        return mean, math.nan, math.nan
    if variance == 0:
        return mean, mean, mean
    freedom = variance**2 / sum(v**2 / f for v, f in terms)
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(variance)
    return mean, mean - half, mean + half


# --- costs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What one model cost to make and costs to run.

    Attributes:
        operations: counted, per round, of all nodes together.
        rounds: rounds run.
        until_converged: operations until the smoothed validation loss is within 1 % of its best; nan: not converged.
        compute_j: modelled, of all operations.
        compute_estimated_j: CPU-seconds times watts per core.
        data_bits, model_bits: sent while training, over the air and over the backhaul.
        transfer_j: energy of these transfers.
        decision: operations of one decision.
        parameters: of one model.
    """

    operations: float
    rounds: int
    until_converged: float
    compute_j: float
    compute_estimated_j: float
    cpu_s: float
    data_bits: float
    model_bits: float
    transfer_j: float
    decision: float
    parameters: int

    @property
    def training_j(self) -> float:
        """Joules until the model is there: computing and moving data and weights."""
        return self.compute_j + self.transfer_j


def layer_operations(config: Config, scene: Scene, batch: int) -> Operations:
    """Operations of the value model on a batch, counted from its layers."""
    cells, width = len(scene.cell_site), config.training.width
    inputs = HISTORY * cells
    with torch.device("meta"):
        model = torch.nn.Sequential(
            torch.nn.Linear(inputs, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, cells),
        )
        features = torch.empty(batch, inputs)
        target = torch.empty(batch, cells)
    return operations_of(model, features, lambda output: (output - target).square().mean())


def decision_operations(config: Config, scene: Scene) -> float:
    """Operations of one decision: scaling the inputs, the layers, the comparison of values."""
    cells = len(scene.cell_site)
    return layer_operations(config, scene, 1).forward.total + 2 * HISTORY * cells + 2 * cells


def cost(results: Results, model: Model) -> Cost:
    """Books one model from what its training recorded; transfers go over a backhaul link."""
    config, part = results.config, results.trained[model]
    city = away_scenario(config) if model.regime.startswith("finetuned") else home_scenarios(config)[0]
    assert city is not None
    scene = scene_of(config, city.city, model.map)
    nodes, rounds, batch = part["nodes"], part["rounds"], part["batch"]
    step = layer_operations(config, scene, batch)
    training_step = step.training_step.total
    check = 2 * 4 * step.forward.total
    if model.regime == "finetuned-last":
        # frozen layers have no weight gradients and no optimiser: forward, and the last layer's share of the rest
        share = part["moved_parameters"] / part["parameters"]
        training_step = step.forward.total + share * (step.backward.total + step.optimiser.total)
    operations = nodes * (config.training.steps_per_round * training_step + check)
    per_round = [operations * r for r in range(rounds + 1)]
    profile = SERVER_CPU if model.regime == "central" else STATION_SOC

    cells = len(scene.cell_site)
    samples = part["recorded_samples"]
    # devices log ten measurements in a message; the station's are its periodic reports
    log_bits = (
        10 * 7 * cells + SAMPLE_HEADER_BITS
        if model.placement == "device"
        else 10 * (report_bits(9) + SAMPLE_HEADER_BITS)
    )
    air_bits = samples / 10 * log_bits
    wire = BackhaulLink(BACKHAUL_BPS, BACKHAUL_DELAY_S, energy_j_per_bit=BACKHAUL.joules_per_bit)
    weights_bits = 32 * part["parameters"]
    sites = len(scene.site_position_m)
    sent = [_transfer(wire, "model", n, weights_bits) for n in _model_transfers(model.regime, sites, rounds)]
    if model.regime == "central":
        payload = samples / sites * (70 * cells if model.placement == "device" else 10 * report_bits(9)) / 10
        sent.append(_transfer(wire, "data", sites, int(payload)))
    wired = Deliveries.concatenate(*sent) if sent else Deliveries.empty()
    by_purpose = {
        purpose: float(wired.sent_bits[wired.purpose == index].sum())
        for purpose, index in (("data", 1), ("model", 2))
    }
    return Cost(
        operations=operations,
        rounds=rounds,
        until_converged=operations_until_converged(per_round, part["validation_loss"], "lower"),
        compute_j=operations * rounds * profile.joules_per_operation,
        compute_estimated_j=part["cpu_s"] * SERVER_CPU.watts_per_core,
        cpu_s=part["cpu_s"],
        data_bits=air_bits + by_purpose["data"],
        model_bits=by_purpose["model"],
        transfer_j=air_bits * UE_REPORT.joules_per_bit + float((wired.tx_energy_j + wired.rx_energy_j).sum()),
        decision=decision_operations(config, scene),
        parameters=part["parameters"],
    )


def _model_transfers(regime: str, sites: int, rounds: int) -> list[int]:
    """How many weight vectors move, in one batch per direction."""
    if regime == "federated":
        return [2 * rounds * sites]
    return [sites] if regime == "central" or regime.startswith("finetuned") else []


def _transfer(link: BackhaulLink, purpose: str, count: int, payload_bits: int) -> Deliveries:
    """Sends `count` equal payloads over the backhaul."""
    packets = Packets.of(range(count), purpose=purpose, payload_bits=payload_bits, offered_s=0.0)
    _, deliveries = link.advance(link.offer(link.initial(), packets, 0.0), math.inf, stream(0, "backhaul"))
    return deliveries


@dataclass(frozen=True)
class Running:
    """What a candidate does per user and second while it runs, `[..]` over runs.

    Attributes:
        device_w, station_w, backhaul_w: signalling and inference.
        network_j_per_bit: energy of the PRBs that the users take, per delivered bit.
        bits_per_s: signalling.
    """

    device_w: NDArray[np.float64]
    station_w: NDArray[np.float64]
    backhaul_w: NDArray[np.float64]
    network_j_per_bit: NDArray[np.float64]
    bits_per_s: NDArray[np.float64]

    @property
    def overhead_w(self) -> NDArray[np.float64]:
        """All that is not the network's PRBs."""
        return self.device_w + self.station_w + self.backhaul_w


def running(
    config: Config, tests: list[dict[str, Any]], decision: float, period_s: float, on: ComputeProfile
) -> Running:
    """Per user and second, from the counts of test runs, `[runs, seeds]`."""

    def column(name: str) -> NDArray[np.float64]:
        return np.array([test[name] for test in tests]) / (config.users * config.test_s)

    full_w, idle_w = base_station_power_w(torch.tensor([1.0, 0.0])).tolist()
    inference_w = decision / period_s * on.joules_per_operation
    radio_w = (
        column("assistance") * UE_REPORT.joules_per_bit + column("signalling") * UE_COMMAND.joules_per_bit
    )
    on_device = on is DEVICE_NPU
    bits = np.array([test["bits"] for test in tests])
    return Running(
        device_w=radio_w + inference_w * on_device,
        station_w=np.full_like(radio_w, inference_w * (not on_device)),
        backhaul_w=column("prepared") * PREPARATION_BITS * BACKHAUL.joules_per_bit,
        network_j_per_bit=(full_w - idle_w)
        * np.array([t["own_load_seconds"] for t in tests])
        / np.maximum(bits, 1.0),
        bits_per_s=column("assistance") + column("signalling") + column("prepared") * PREPARATION_BITS,
    )


def placement_profile(placement: str) -> ComputeProfile:
    """Where a decision is computed."""
    return DEVICE_NPU if placement == "device" else STATION_SOC


# --- rows -------------------------------------------------------------------------------------------------------------


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
    training_j = float(np.mean([cost(results, m).training_j for m in models]))
    yield _row(
        candidate, regime, name, "network", "saved_power_per_user", crossed_interval(saved_w), n, "modelled"
    )
    time = _break_even(training_j, crossed_interval(saved_w * config.users))
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


def _break_even(training_j: float, saved_w: tuple[float, float, float]) -> tuple[float, float, float]:
    """Training joules over saved power; where nothing is saved, never."""
    mean, low, high = saved_w
    times = [training_j / w if w > 0 else math.inf for w in (mean, high, low)]
    return (times[0], times[1], times[2]) if math.isfinite(low) else _constant(times[0])


def _unseen_street_rows(results: Results, scenario: Scenario) -> Iterator[Row]:
    found = {
        (candidate, regime): results.pictures[key]["unseen_outage"]
        for candidate, regime, key in _pictures(results, scenario)
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


# --- curves -----------------------------------------------------------------------------------------------------------


def pictured(results: Results, scenario: Scenario) -> list[tuple[str, Model | None, list[float]]]:
    """Whom to record in a scenario under its first cap: the rule, and the chosen learned function."""
    cap = caps(results.config, scenario)[0]
    kind = results.chosen(scenario, cap)
    model = results.models(scenario)[kind][0]
    return [
        ("a3/none", None, at(results.a3[scenario], cap)["setting"]),
        (f"learned-{kind[0]}/{kind[1]}", model, at(results.judged[model, scenario], cap)["setting"]),
    ]


def _pictures(results: Results, scenario: Scenario) -> list[tuple[str, str, str]]:
    found = []
    for key in results.pictures:
        _, candidate, regime, *where = key.split("/")
        if "/".join(where) == scenario.name():
            found.append((candidate, regime, key))
    return found


def curves(results: Results) -> Iterator[Curve]:
    """What the figures draw."""
    for scenario in results.a3:
        fronts = {
            ("a3", "none"): results.a3[scenario]["sweep"],
            ("genie", "none"): results.genie[scenario]["sweep"],
        }
        best = results.chosen(scenario, caps(results.config, scenario)[0])
        for kind, models in results.models(scenario).items():
            same = [k for k in results.models(scenario) if k[0] == kind[0]]
            if kind == best or (
                kind[0] != best[0] and kind == min(same, key=lambda k: _mean_validation(results, k, scenario))
            ):
                sweeps = [results.judged[m, scenario]["sweep"] for m in models]
                mean = [np.mean([s[i] for s in sweeps], 0).tolist() for i in (1, 2)]
                fronts[f"learned-{kind[0]}", kind[1]] = [[], *mean]
        for (candidate, regime), (_, handovers, outage) in fronts.items():
            x, y = _front(handovers, outage)
            yield Curve(
                "front",
                candidate,
                regime,
                scenario.name(),
                "handovers_per_user_minute",
                "1/min",
                "outage_share",
                "1",
                x,
                y,
            )
    yield from _learning_curves(results)
    yield from _picture_curves(results)
    yield from _break_even_curves(results)


def _mean_validation(results: Results, kind: tuple[str, str], scenario: Scenario) -> float:
    cap = caps(results.config, scenario)[0]
    return float(
        np.mean(
            [
                at(results.judged[m, scenario], cap)["validation_outage"]
                for m in results.models(scenario)[kind]
            ]
        )
    )


def _front(handovers: list[float], outage: list[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The settings that no other setting beats in both numbers, by handovers."""
    x, y = [], []
    for h, o in sorted(zip(handovers, outage, strict=True)):
        if not y or o < y[-1]:
            x.append(h)
            y.append(o)
    return tuple(x), tuple(y)


def _learning_curves(results: Results) -> Iterator[Curve]:
    for (placement, regime, map_), models in kinds(results).items():
        if map_ != results.config.maps[0] or regime.startswith("finetuned"):
            continue
        costs = [cost(results, m) for m in models]
        losses = [results.trained[m]["validation_loss"] for m in models]
        length = min(len(loss) for loss in losses)
        loss = np.array([one[:length] for one in losses])
        rounds = np.arange(length)
        per_round_j = float(np.mean([c.compute_j / c.rounds for c in costs]))
        per_round_model = (
            float(np.mean([c.model_bits / c.rounds for c in costs])) if regime == "federated" else 0.0
        )
        first_bits = float(
            np.mean([c.data_bits + (0 if regime == "federated" else c.model_bits) for c in costs])
        )
        first_j = float(np.mean([c.transfer_j for c in costs]))
        scenario = f"{home_scenarios(results.config)[0].city}/{map_}"
        for name, x, metric, unit in (
            ("learning", first_j + rounds * per_round_j, "energy", "J"),
            ("learning_bits", first_bits + rounds * per_round_model, "communication_bits", "bit"),
        ):
            yield Curve(
                name, f"learned-{placement}", regime, scenario, metric, unit, "validation_loss", "1",
                tuple(map(float, x[1:])), tuple(map(float, loss.mean(0)[1:])),
            )  # fmt: skip


def _picture_curves(results: Results) -> Iterator[Curve]:
    seen: set[str] = set()
    for scenario in results.a3:
        cap = caps(results.config, scenario)[0]
        for candidate, regime, key in _pictures(results, scenario):
            part = results.pictures[key]
            shares = tuple(part["shares"])
            yield Curve(
                "sinr_cdf",
                candidate,
                regime,
                scenario.name(),
                "sinr",
                "dB",
                "share",
                "1",
                tuple(part["sinr_db"]),
                shares,
            )
            yield Curve(
                "throughput_cdf",
                candidate,
                regime,
                scenario.name(),
                "throughput",
                "bit/s",
                "share",
                "1",
                tuple(part["throughput"]),
                shares,
            )
            yield Curve(
                "failure_places",
                candidate,
                regime,
                scenario.name(cap),
                "x",
                "m",
                "y",
                "m",
                tuple(part["outage_x_m"]),
                tuple(part["outage_y_m"]),
            )
            if scenario.city not in seen:
                seen.add(scenario.city)
                yield from _city_curves(results.config, scenario)


def _city_curves(config: Config, scenario: Scenario) -> Iterator[Curve]:
    scene = scene_of(config, scenario.city, "raw")
    outdoor = scene.outdoor.numpy()[::2, ::2].astype(float)
    x = scene.origin_m[0] + 2 * scene.resolution_m * np.arange(outdoor.shape[1])
    y = scene.origin_m[1] + 2 * scene.resolution_m * np.arange(outdoor.shape[0])
    lines = contourpy.contour_generator(x, y, outdoor).lines(0.5)
    joined = np.concatenate([np.vstack([line, [[np.nan, np.nan]]]) for line in lines]).round(1)
    xs, ys = tuple(map(float, joined[:, 0])), tuple(map(float, joined[:, 1]))
    yield Curve("buildings", "", "", scenario.city, "x", "m", "y", "m", xs, ys)
    sites = scene.site_position_m
    yield Curve(
        "sites",
        "",
        "",
        scenario.city,
        "x",
        "m",
        "y",
        "m",
        tuple(sites[:, 0].tolist()),
        tuple(sites[:, 1].tolist()),
    )


def _break_even_curves(results: Results) -> Iterator[Curve]:
    config = results.config
    users = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
    for scenario in results.a3:
        if scenario == away_scenario(config):
            continue
        cap = caps(config, scenario)[0]
        kind = results.chosen(scenario, cap)
        models = results.models(scenario)[kind]
        scene = scene_of(config, scenario.city, scenario.map)
        a3 = at(results.a3[scenario], cap)["test"]
        rule = running(
            config,
            [a3],
            A3_OPERATIONS_PER_CELL * len(scene.cell_site),
            PERIOD_STEPS["device"] * config.radio.step_s,
            DEVICE_NPU,
        )
        tests = [at(results.judged[m, scenario], cap)["test"] for m in models]
        own = running(
            config,
            tests,
            decision_operations(config, scene),
            PERIOD_STEPS[kind[0]] * config.radio.step_s,
            placement_profile(kind[0]),
        )
        saved = crossed_interval(saved_per_user_w(config, a3, rule, own))
        training_j = float(np.mean([cost(results, m).training_j for m in models]))
        times = [_break_even(training_j, (saved[0] * u, saved[1] * u, saved[2] * u)) for u in users]
        yield Curve(
            "break_even", f"learned-{kind[0]}", kind[1], scenario.name(cap), "users", "1", "break_even_time", "s",
            users, tuple(t[0] for t in times), tuple(t[1] for t in times), tuple(t[2] for t in times),
        )  # fmt: skip


# --- the sheet --------------------------------------------------------------------------------------------------------


def sheet(results: Results) -> Sheet:
    """The study's sheet with its verdict."""
    found = tuple(rows(results))
    return Sheet(
        study="worth",
        version=__version__,
        config=configuration.to_dict(results.config),
        seeds=results.seeds,
        machine=machine(),
        made_by="",
        rows=found,
        curves=tuple(curves(results)),
        verdict=verdict(results, found),
    )


def verdict(results: Results, found: tuple[Row, ...]) -> str:
    """The answer in words, from the rows."""
    config = results.config
    index = {(r.candidate, r.regime, r.scenario, r.node, r.metric): r for r in found}

    def row(kind: tuple[str, str], scenario: Scenario, cap: float, metric: str) -> Row:
        return index[f"learned-{kind[0]}", kind[1], scenario.name(cap), "network", metric]

    sentences = []
    city = home_scenarios(config)[0].city.capitalize()
    fast = [(s, c) for s in home_scenarios(config) if s.speed_kmh >= 10 for c in caps(config, s)]
    slow = [(s, c) for s in home_scenarios(config) if s.speed_kmh < 10 for c in caps(config, s)]
    gains = {
        m: [row(results.chosen(s, c), s, c, "outage_cut") for s, c in fast if s.map == m] for m in config.maps
    }
    resolved = [r for r in gains[config.maps[0]] if r.ci_low > 0]
    if not gains[config.maps[0]]:
        sentences.append("No vehicular scenario was asked for.")
    elif len(resolved) == len(gains[config.maps[0]]):
        sentences.append(f"On vehicular routes in {city} learned handover is worth having.")
    elif resolved:
        sentences.append(
            f"On vehicular routes in {city} learned handover helps in {len(resolved)} of {len(gains[config.maps[0]])} scenarios."
        )
    else:
        sentences.append(f"Learned handover is not shown to be worth having on vehicular routes in {city}.")
    for map_, cuts in gains.items():
        if cuts:
            label = "the traced map" if map_ == "raw" else "the 3x3-median-filtered map"
            low, high = min(cuts, key=lambda r: r.mean), max(cuts, key=lambda r: r.mean)
            sentences.append(
                f"On {label} it changes the time in outage by {-100 * low.mean:+.0f} % [{-100 * low.ci_high:+.0f}, {-100 * low.ci_low:+.0f}]"
                + (f" to {-100 * high.mean:+.0f} %" if len(cuts) > 1 else "")
                + " against the tuned A3 rule."
            )
    if slow:
        cuts = [row(results.chosen(s, c), s, c, "outage_cut") for s, c in slow if s.map == config.maps[0]]
        outage = max(np.mean(at(results.a3[s], c)["test"]["outage_share"]) for s, c in slow)
        clear = [r for r in cuts if r.ci_low > 0]
        sentences.append(
            f"For pedestrians there is next to nothing to gain: the rule is in outage at most {100 * outage:.2f} % of the time"
            + (" and learning changes nothing that could be resolved." if not clear else ".")
        )
    if fast:
        sentences.append(_where(results, [(s, c) for s, c in fast if s.map == config.maps[0]]))
        pays = [
            row(results.chosen(s, c), s, c, "break_even_time") for s, c in fast if s.map == config.maps[0]
        ]
        finite = [r.mean for r in pays if math.isfinite(r.mean)]
        if finite:
            sentences.append(
                f"In energy it pays back in {len(finite)} of {len(pays)} scenarios with {config.users} users, after "
                f"{format_quantity(min(finite), 's')}"
                + (f" to {format_quantity(max(finite), 's')}." if len(finite) > 1 else ".")
            )
        else:
            sentences.append("In energy alone it never pays back: what it buys is service, not joules.")
    away = away_scenario(config)
    if away:
        cap = caps(config, away)[0]
        parts = []
        for kind in results.models(away):
            cut = row(kind, away, cap, "outage_cut")
            if kind[0] == config.placements[-1]:
                label = "unchanged" if kind[1] == "central" else kind[1].replace("finetuned-", "fine-tuned, ")
                parts.append(
                    f"{label} {-100 * cut.mean:+.0f} % [{-100 * cut.ci_high:+.0f}, {-100 * cut.ci_low:+.0f}]"
                )
        sentences.append(f"Outage in {away.city.capitalize()} with the model of {city}: {'; '.join(parts)}.")
    return " ".join(sentences)


def _where(results: Results, cells: list[tuple[Scenario, float]]) -> str:
    """Which placement and regime validation chose."""
    chosen = [results.chosen(s, c) for s, c in cells]
    counts = {kind: chosen.count(kind) for kind in dict.fromkeys(chosen)}
    best = max(counts, key=lambda k: counts[k])
    place = "on the device" if best[0] == "device" else "at the base station"
    return f"Validation chose {best[1]} training, run {place}, in {counts[best]} of {len(chosen)} scenarios."
