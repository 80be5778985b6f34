"""Training of beam models in every regime, by the one loop of `learn`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from defiance.control.beam_learning import BatchLoss, Samples, node_loss, validation
from defiance.control.experience import initial_parameters
from defiance.learn.topology import ring
from defiance.learn.training import Fit, Parameters, Schedule, federated_mixing, fit
from defiance.seeding import Stream

Regime = Literal["local", "federated", "gossip", "central", "finetuned"]
SHARING = ("federated", "gossip")
"""Regimes whose nodes mix their weights after every round."""


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how long.

    Attributes:
        width: neurons of both hidden layers.
        learning_rate: of Adam at the start.
        batch: samples of every node in a step.
        rounds, steps_per_round: of training; who shares weights takes `SHARED_ROUNDS` times as many rounds
            with as many times fewer steps, so that everyone's steps are the same.
    """

    width: int
    learning_rate: float
    batch: int
    rounds: int
    steps_per_round: int

    @property
    def shared(self) -> Recipe:
        """The recipe of nodes that share weights."""
        steps = max(1, self.steps_per_round // SHARED_ROUNDS)
        return replace(self, rounds=self.rounds * self.steps_per_round // steps, steps_per_round=steps)


SHARED_ROUNDS = 4


def pooled(samples: Samples) -> Samples:
    """All samples at one node."""
    return replace(samples, count=samples.count.sum()[None])


def others(samples: Samples) -> Samples:
    """For every node the samples of all others."""
    own = list(
        zip(*(x.split(samples.count.tolist()) for x in (samples.features, samples.power_db)), strict=True)
    )
    return Samples.of(
        [
            (
                torch.cat([seen for m, (seen, _) in enumerate(own) if m != n]),
                torch.cat([power for m, (_, power) in enumerate(own) if m != n]),
            )
            for n in range(len(own))
        ]
    )


def train(
    regime: Regime,
    samples: Samples,
    held: Samples,
    loss: BatchLoss,
    recipe: Recipe,
    random: Stream,
    start: Parameters | None = None,
) -> Fit:
    """Trains the models of all nodes; each keeps the weights that lose least power on `held`.

    Args:
        regime: who learns from whom; `finetuned` is `local` with a start.
        samples: of every node; of one alone where all is gathered.
        held: the same nodes' validation samples.
        loss: of scores and powers.
        recipe: how.
        random: weights and batches.
        start: weights `[nodes, ...]` to go on from; fresh ones without.
    """
    nodes = len(samples.count)
    instants, beams = samples.power_db.shape[-2:]
    if start is None:
        widths = (samples.features.shape[-1], recipe.width, recipe.width, instants * beams)
        start = initial_parameters(widths, nodes, random.child("model"))
    mixing = torch.eye(nodes)
    if regime in SHARING and nodes > 1:
        recipe = recipe.shared
        mixing = federated_mixing(samples.count) if regime == "federated" else ring(nodes).mixing[0]
    return fit(
        start,
        node_loss(loss, instants),
        samples.draw(recipe.batch),
        validation(held),
        mixing,
        Schedule(recipe.rounds, recipe.steps_per_round, recipe.learning_rate, patience=recipe.rounds),
        random,
    )


def at_every_node(parameters: Parameters, nodes: int) -> Parameters:
    """One node's weights at each of several."""
    return {name: w[:1].expand(nodes, *w.shape[1:]).clone() for name, w in parameters.items()}


def best_validation(found: Fit) -> Tensor:
    """What every node's kept weights lose on its validation samples, `[nodes]` dB."""
    return found.validation_loss.min(0).values
