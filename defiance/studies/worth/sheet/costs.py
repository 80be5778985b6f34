"""What a model cost to make, and what a candidate costs while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from defiance.control.handover import ENVELOPE_PERIODS, HISTORY
from defiance.hardware import (
    DEVICE_NPU,
    SERVER_CPU,
    STATION_SOC,
    ComputeProfile,
)
from defiance.kpm import operations_until_converged
from defiance.link import Deliveries
from defiance.meter import Operations, operations_of
from defiance.network.loop import PERIOD_STEPS
from defiance.network.messages import PREPARATION_BITS, report_bits
from defiance.prices import CITED
from defiance.scene import Scene
from defiance.studies.transfers import backhaul, transfer
from defiance.studies.worth.experiments import A3_OPERATIONS_PER_CELL
from defiance.studies.worth.settings import Config, Scenario, away_scenario, home_scenarios
from defiance.studies.worth.sheet.results import Results
from defiance.studies.worth.training import Model
from defiance.studies.worth.worlds import scene_of

SAMPLE_HEADER_BITS = 96
"""RRC, PDCP, RLC and MAC around a log of ten measurements, as on `defiance.link.LossyLink`."""


@dataclass(frozen=True)
class Cost:
    """What one model cost to make and costs to run; a fine-tuned one from the model that it starts from on.

    Attributes:
        operations: counted, per round, of all nodes together.
        rounds: rounds run.
        until_converged: operations until the smoothed validation loss is within 1 % of its best, or nan.
        compute_j: modelled, of all operations.
        compute_estimated_j: CPU-seconds times watts per core.
        data_bits, model_bits: sent while training, over the air and over the backhaul.
        transfer_j: energy of these transfers.
        delivery_bits: of models to one device over the air; with one model per station it needs all of them.
        download_j_per_bit: what one of these bits costs the device.
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
    delivery_bits: float
    download_j_per_bit: float
    decision: float
    parameters: int

    @property
    def training_j(self) -> float:
        """Joules until the model is at the stations: computing and moving data and weights."""
        return self.compute_j + self.transfer_j

    def investment_j(self, users: float) -> float:
        """Joules until so many users have it."""
        return self.training_j + self.delivery_j(users)

    def delivery_j(self, users: float) -> float:
        """Joules that so many users' devices spend on receiving it."""
        return users * self.delivery_bits * self.download_j_per_bit


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
    """Operations of one decision: the layers, and per cell scaling the inputs, its strength, comparing.

    The strength is 10 log10 of the mean of 10^(x/10), minus the serving cell's; it is compared with the
    envelope's two ends, the value with the best.
    """
    per_cell = 2 * HISTORY + (3 * ENVELOPE_PERIODS + 3) + 3
    return layer_operations(config, scene, 1).forward.total + per_cell * len(scene.cell_site)


def cost(results: Results, model: Model) -> Cost:
    """Books one model from what its training recorded; transfers go over a backhaul link."""
    config, prices, part = results.config, results.prices, results.trained[model]
    city = away_scenario(config) if model.regime.startswith("finetuned") else home_scenarios(config)[0]
    assert city is not None
    scene = scene_of(config, city.city, model.map)
    nodes, rounds, batch = part["nodes"], part["rounds"], part["batch"]
    step = layer_operations(config, scene, batch)
    training_step = step.training_step.total
    check = 2 * 4 * step.forward.total
    if model.regime == "finetuned-last":
        # frozen layers have no weight gradients and no optimiser: the last layer's share of these
        share = part["moved_parameters"] / part["parameters"]
        training_step = step.forward.total + share * (step.backward.total + step.optimiser.total)
    operations = nodes * (part["steps_per_round"] * training_step + check)
    per_round = [operations * r for r in range(rounds + 1)]
    gathered = model.regime not in ("local", "federated")
    profile = prices.profile(SERVER_CPU if gathered else STATION_SOC)

    cells = len(scene.cell_site)
    samples = part["recorded_samples"]
    # devices log ten measurements in a message; the station's are its periodic reports
    log_bits = (
        10 * 7 * cells + SAMPLE_HEADER_BITS
        if model.placement == "device"
        else 10 * (report_bits(9) + SAMPLE_HEADER_BITS)
    )
    air_bits = samples / 10 * log_bits
    wire = backhaul(prices.backhaul.joules_per_bit)
    weights_bits = 32 * part["parameters"]
    sites = len(scene.site_position_m)
    sent = [transfer(wire, "model", n, weights_bits) for n in _model_transfers(model.regime, sites, rounds)]
    if gathered:
        payload = samples / sites * (70 * cells if model.placement == "device" else 10 * report_bits(9)) / 10
        sent.append(transfer(wire, "data", sites, int(payload)))
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
        compute_estimated_j=part["cpu_s"] * prices.server.watts_per_core,
        cpu_s=part["cpu_s"],
        data_bits=air_bits + by_purpose["data"],
        model_bits=by_purpose["model"],
        transfer_j=air_bits * prices.report.joules_per_bit
        + float((wired.tx_energy_j + wired.rx_energy_j).sum()),
        delivery_bits=float(
            weights_bits * (sites if model.regime == "local" else 1) * (model.placement == "device")
        ),
        download_j_per_bit=prices.download.joules_per_bit,
        decision=decision_operations(config, scene),
        parameters=part["parameters"],
    )


def _model_transfers(regime: str, sites: int, rounds: int) -> list[int]:
    """How many weight vectors move, in one batch per direction."""
    if regime == "federated":
        return [2 * rounds * sites]
    return [] if regime == "local" else [sites]


@dataclass(frozen=True)
class Running:
    """What a candidate does per user and second while it runs, `[runs, seeds]` where it varies.

    Attributes:
        decision: operations of one decision.
        on: where it is computed.
        device_w, station_w, backhaul_w: signalling and inference.
        network_j_per_bit: energy of the PRBs that the users take, per delivered bit.
        bits_per_s: signalling.
    """

    decision: float
    on: ComputeProfile
    device_w: NDArray[np.float64]
    station_w: NDArray[np.float64]
    backhaul_w: NDArray[np.float64]
    network_j_per_bit: NDArray[np.float64]
    bits_per_s: NDArray[np.float64]

    @property
    def overhead_w(self) -> NDArray[np.float64]:
        """All that is not the network's PRBs."""
        return self.device_w + self.station_w + self.backhaul_w


def running(results: Results, tests: list[dict[str, Any]], decision: float, placement: str) -> Running:
    """Per user and second, from the counts of test runs; decisions are computed where they are placed."""
    config, prices = results.config, results.prices

    def column(name: str) -> NDArray[np.float64]:
        return np.array([test[name] for test in tests]) / (config.users * config.test_s)

    on = prices.profile(DEVICE_NPU if placement == "device" else STATION_SOC)
    inference_w = decision / (PERIOD_STEPS[placement] * config.radio.step_s) * on.joules_per_operation
    radio_w = column("assistance") * prices.report.joules_per_bit
    radio_w = radio_w + column("signalling") * prices.command.joules_per_bit
    bits = np.array([test["bits"] for test in tests])
    own_load_s = np.array([test["own_load_seconds"] for test in tests])
    return Running(
        decision=decision,
        on=on,
        device_w=radio_w + inference_w * (placement == "device"),
        station_w=np.full_like(radio_w, inference_w * (placement == "station")),
        backhaul_w=column("prepared") * PREPARATION_BITS * prices.backhaul.joules_per_bit,
        network_j_per_bit=(prices.cell.full_load_w - prices.cell.idle_w) * own_load_s / np.maximum(bits, 1.0),
        bits_per_s=column("assistance") + column("signalling") + column("prepared") * PREPARATION_BITS,
    )


def rule_running(results: Results, scenario: Scenario, test: dict[str, Any]) -> Running:
    """What the rule costs while it runs: it is evaluated on the device."""
    cells = len(scene_of(results.config, scenario.city, scenario.map).cell_site)
    return running(results, [test], float(A3_OPERATIONS_PER_CELL * cells), "device")


def learned_running(
    results: Results, scenario: Scenario, placement: str, tests: list[dict[str, Any]]
) -> Running:
    """What a learned function costs while it runs."""
    scene = scene_of(results.config, scenario.city, scenario.map)
    return running(results, tests, decision_operations(results.config, scene), placement)


def stations_j(results: Results, scenario: Scenario, test: dict[str, Any]) -> list[float]:
    """Energy of all base stations in a test run, one number per seed; linear in load."""
    cell = results.prices.cell
    if cell == CITED.cell:
        return list(test["network_j"])
    cells = len(scene_of(results.config, scenario.city, scenario.map).cell_site)
    idle_j = cells * results.config.test_s * cell.idle_w
    return [idle_j + (cell.full_load_w - cell.idle_w) * load_s for load_s in test["load_seconds"]]


def latency_s(config: Config, own: Running) -> float:
    """Computing, then the report (or request) and the command in the air.

    The preparation over Xn, the same for all, is not the function's.
    """
    return own.decision / own.on.operations_per_second + 2 * config.radio.air_delay_s
