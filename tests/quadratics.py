"""Nodes whose losses are parabolas, h_i/2 |w - c_i|^2: all that training does to them is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from defiance.learn.environment import Environment
from defiance.learn.federation import Federation, Peers, Server, Task, federate
from defiance.learn.local import Local
from defiance.learn.training import Parameters
from defiance.seeding import stream

CENTRES = torch.tensor([[1.0, -2.0], [3.0, 0.5], [-2.0, 4.0]])
CURVATURE = torch.tensor([0.5, 1.0, 2.0])
SAMPLES = torch.tensor([100, 300, 200])
SHARE = SAMPLES / SAMPLES.sum()


def task(centres: Tensor, curvature: Tensor | None = None, samples: Tensor | None = None) -> Task:
    h = torch.ones(len(centres)) if curvature is None else curvature

    def loss(weights: Parameters, node: Tensor) -> Tensor:
        return 0.5 * h[node] * (weights["w"] - centres[node]).square().sum(-1)

    return Task(
        start={"w": torch.zeros(centres.shape[1])},
        loss=loss,
        draw=lambda node, uniform, now_s: node,
        samples=torch.ones(len(centres)) if samples is None else samples,
        validate=lambda weights: weights["w"].clone(),
    )


def plain(steps: int, rate: float = 0.1, proximal: float = 0.0) -> Local:
    return Local(steps, batch=1, learning_rate=rate, optimiser="sgd", proximal=proximal)


def run(
    centres: Tensor,
    regime: Server | Peers,
    rounds: int,
    *,
    local: Local | None = None,
    environment: Environment | None = None,
    seed: int = 1,
    **of_task: Any,
) -> Federation:
    """`Federation.reached` is where the weights were: `[rounds + 1, 1 or nodes, dimensions]`."""
    random = stream(seed, "federation")
    return federate(task(centres, **of_task), local or plain(1), regime, rounds, random, environment)
