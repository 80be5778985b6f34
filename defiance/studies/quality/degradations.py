"""How a trained model is made worse, whichever function it serves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from defiance.learn.training import Parameters

RULE, HEALTHY = "rule", "healthy"
UNTRAINED, MALICIOUS = "one station untrained", "one station malicious"
TRAINED = ((1.0, 1.0), (0.3, 1.0), (0.1, 1.0), (0.03, 1.0), (1.0, 0.2), (1.0, 0.05))
"""Shares of data and of training."""


def weights_key(function: str, data: float, training: float) -> str:
    """Key of weights trained on a share of the samples, for a share of the rounds."""
    return f"{function}/weights/data{data:g}/training{training:g}"


def trained_key(function: str, degradation: Mapping[str, Any]) -> str:
    """Key of the weights that a candidate starts from."""
    return weights_key(function, degradation.get("data", 1.0), degradation.get("training", 1.0))


def degradations(noise: dict[str, float], late_s: tuple[float, ...]) -> dict[str, dict[str, Any]]:
    """Every candidate's settings; without any it is healthy.

    Args:
        noise: names of levels, and what they are to the function.
        late_s: by which decisions come late.
    """
    return {
        HEALTHY: {},
        **{f"data {100 * data:g} %": {"data": data} for data, _ in TRAINED if data < 1},
        **{f"training {100 * share:g} %": {"training": share} for _, share in TRAINED if share < 1},
        **{f"weights of {bits} bits": {"bits": bits} for bits in (8, 4, 3, 2)},
        **{name: {"noise": level} for name, level in noise.items()},
        **{f"{1e3 * late:g} ms late": {"late_s": late} for late in late_s},
        UNTRAINED: {"broken": "untrained"},
        MALICIOUS: {"broken": "malicious"},
    }


def quantised(parameters: Parameters, bits: int) -> Parameters:
    """Weights rounded to `2^bits - 1` levels about zero, up to each tensor's largest."""
    levels = 2 ** (bits - 1) - 1
    found = {}
    for name, weight in parameters.items():
        step = weight.abs().max().clamp(min=torch.finfo(torch.float32).tiny) / levels
        found[name] = (weight / step).round() * step
    return found


def with_one(parameters: Parameters, other: Parameters, station: int, stations: int) -> Parameters:
    """A model for each station, all alike but one: `[1, ...]` twice -> `[stations, ...]`."""
    stacked = {
        name: weight.expand(stations, *weight.shape[1:]).clone() for name, weight in parameters.items()
    }
    for name, weight in other.items():
        stacked[name][station] = weight[0]
    return stacked


def reversed_last(parameters: Parameters) -> Parameters:
    """A perceptron that says the opposite: its last layer times -1."""
    last = len(parameters) // 2 - 1
    return {
        name: -weight if name in (f"weight{last}", f"bias{last}") else weight
        for name, weight in parameters.items()
    }
