"""What contention costs: a policy judged with ideal control links, with queues, with models in them.

No training and no tuning: settings and models are those that were found with `messages = "sinr"`. The model
traffic of a learned function is that of training it once while the test runs: a model to every device, at a
random time; logs of measurements from every device, for central training; weights on the stations' wires
after every round, for federated training.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from defiance.link import Packets
from defiance.network.loop import PERIOD_STEPS
from defiance.network.messages import report_bits
from defiance.network.signalling import NO_BULK, BulkTraffic
from defiance.network.simulate import Policy, simulate
from defiance.network.world import World
from defiance.parts import Parts
from defiance.seeding import stream
from defiance.studies.worth.experiments import learned, rule
from defiance.studies.worth.settings import Config, Scenario
from defiance.studies.worth.training import Model
from defiance.studies.worth.worlds import per_world, worlds_of

CONTROL_LINKS = ("ideal", "queued", "queued-models")
"""All messages arrive after their delay; they wait for each other; and for model traffic."""

LOGGED = 10
"""Measurements in a message of a log."""


def contention(
    config: Config,
    scenario: Scenario,
    model: Model | None,
    setting: list[float],
    rounds: int,
    links: str,
    parts: Parts,
    seeds: tuple[int, ...],
) -> dict[str, Any]:
    """The rule (no model) or a learned function on the test worlds, over one kind of control link.

    Args:
        config: of the study.
        scenario: where.
        model: who decides; None: the rule.
        setting: the rule's parameters, or the threshold.
        rounds: of the model's training.
        links: one of `CONTROL_LINKS`; the rule has no models to carry.
        parts: with the model's weights.
        seeds: of the test worlds.
    """
    policy: Policy = (
        rule(config, setting) if model is None else learned(config, scenario, model, parts, setting[0])
    )
    worlds = worlds_of(config, scenario, "test", seeds)
    traffic = NO_BULK
    if model is not None and links == "queued-models":
        weights = parts.get_tensors(model.key)
        assert weights is not None
        copied = weights if model.regime == "local" else {name: w[:1] for name, w in weights.items()}
        model_bits = 32 * sum(w.numel() for w in copied.values())
        traffic = training_traffic(config, model, worlds, model_bits, rounds)
    radio = replace(config.radio, messages="ideal" if links == "ideal" else "queued")
    outcome = simulate(worlds, radio, policy, stream(0, "messages"), duration_s=config.test_s, bulk=traffic)
    return per_world(outcome, worlds, radio) | {
        "command_delay": outcome.command_delay_s.tolist(),
        "model_delay": outcome.bulk_delay_s.tolist(),
        "wire_delay": outcome.wire_delay_s.tolist(),
    }


def training_traffic(
    config: Config, model: Model, worlds: World, model_bits: int, rounds: int
) -> BulkTraffic:
    """What training a function once, and bringing it to the devices, offers within a test.

    Args:
        config: of the study.
        model: whose placement and regime say what moves.
        worlds: the users.
        model_bits: of all models that a device needs: one, or with local training that of every station.
        rounds: of training.
    """
    count, users, cells = worlds.shape
    people = torch.arange(count * users)
    stations = torch.arange(count * (int(worlds.cell_site.max()) + 1))
    between_s = LOGGED * PERIOD_STEPS[model.placement] * config.radio.step_s
    logs = int(config.test_s / between_s)
    random = stream(0, "model traffic")
    down, up, wire = Packets.empty(), Packets.empty(), Packets.empty()
    if model.placement == "device":
        down = Packets.of(
            people,
            destination=people,
            purpose="model",
            payload_bits=model_bits,
            offered_s=config.test_s * random.uniform(people),
        )
    if model.regime == "central" and model.placement == "device":
        first_s = between_s * random.child("logs").uniform(people)
        up = Packets.of(
            torch.arange(len(people) * logs),
            source=people.repeat_interleave(logs),
            purpose="data",
            payload_bits=LOGGED * 7 * cells,
            offered_s=(first_s[:, None] + between_s * torch.arange(logs)).flatten(),
        )
    if model.regime == "central" and model.placement == "station":
        wire = Packets.of(
            torch.arange(len(stations) * logs),
            source=stations.repeat_interleave(logs),
            purpose="data",
            payload_bits=LOGGED * report_bits(9) * len(people) // len(stations),
            offered_s=(between_s * torch.arange(logs, dtype=torch.float64)).repeat(len(stations)),
        )
    if model.regime == "federated":
        wire = Packets.of(
            torch.arange(len(stations) * rounds),
            source=stations.repeat_interleave(rounds),
            purpose="model",
            payload_bits=model_bits,
            offered_s=(config.test_s / rounds * torch.arange(rounds, dtype=torch.float64)).repeat(
                len(stations)
            ),
        )
    return BulkTraffic(down, up, wire)
