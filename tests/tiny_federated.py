"""A training of a moment, for tests of the Flower app: perceptrons that copy linear teachers."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor

from defiance.learn.training import Parameters
from defiance.learn.updates import Deployable, NodeData, Place

FEATURES, VALUES, BATCH = 6, 2, 8


def loss(parameters: Parameters, batch: tuple[Tensor, Tensor]) -> Tensor:
    features, values = batch
    hidden = torch.relu(torch.baddbmm(parameters["bias"], features, parameters["weight"]))
    return (hidden @ parameters["readout"] - values).square().mean((-1, -2))


def drawn(nodes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch of every node."""
    teachers = torch.randn(nodes, FEATURES, VALUES, generator=torch.Generator().manual_seed(1))
    features = torch.randn(nodes, BATCH, FEATURES, generator=generator)
    return features, features @ teachers


def samples(node: int) -> int:
    return 10 + 20 * node


def local(place: Place) -> NodeData[tuple[Tensor, Tensor]]:
    if pause_s := float(os.environ.get("TINY_PAUSE_S", "0")):  # so that tests can kill who is at work
        with (place.folder / "at-work").open("a") as file:
            file.write("once more\n")
        time.sleep(pause_s)
    own = slice(place.node, place.node + 1)

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        features, values = drawn(place.nodes, generator)
        return features[own], values[own]

    held = draw(place.stream.child("validation").generator())
    return NodeData(loss, draw, lambda w: loss(w, held), samples(place.node))


def initial(seed: int, folder: Path) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(1, FEATURES, 10, generator=generator) * 0.4,
        "bias": torch.zeros(1, 1, 10),
        "readout": torch.randn(1, 10, VALUES, generator=generator) * 0.3,
    }


WORK = Deployable(initial, local)
