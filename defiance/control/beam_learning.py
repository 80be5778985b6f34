"""What a learned beam selection is made of: features of measured powers, scores of all beams, losses.

    powers of the measured beams (set B) ── dB and amplitudes ──▶ perceptron ──▶ a score of every beam (set A)

Training with the best beam alone as the label (`hard_loss`) calls a beam that is 0.1 dB worse as wrong as one
that is 10 dB worse. `soft_loss` learns from all powers that a full sweep gave: labels are shared among beams
by what they lose, and what the scores would lose on average is added to the cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from defiance.control.experience import perceptron
from defiance.learn.training import Parameters

View = Literal["db", "amplitude", "both"]
BatchLoss = Callable[[Tensor, Tensor], Tensor]

LEAST_DB = -40.0
"""Powers so far below the strongest are all the same to a model: the sum of such beams is nothing."""


def features(measured_db: Tensor, floor_db: Tensor | float, spread_db: float, view: View = "both") -> Tensor:
    """What a model sees of measured powers: which beam is how strong, never how strong all are.

    In decibels weak beams count as much as strong ones; amplitudes above the noise are what the array's
    pattern is made of, and almost the same at sites of different noise.

    Args:
        measured_db: `[..., M]`, M the measured beams (of one or several sweeps).
        floor_db: power of the noise in it, broadcast against `[..., 1]`.
        spread_db: decibels that become 1.
        view: which of the two, or both.

    Returns:
        `[..., M]`, or `[..., 2 M]` of both.
    """
    strongest = measured_db.amax(-1, keepdim=True)
    relative_db = ((measured_db - strongest).clamp(min=LEAST_DB)) / spread_db + 1
    if view == "db":
        return relative_db
    floor = torch.pow(10.0, (torch.as_tensor(floor_db) - strongest) / 10)
    above = (torch.pow(10.0, (measured_db - strongest) / 10) - floor).clamp(min=0)
    amplitude = (above / above.amax(-1, keepdim=True).clamp(min=1e-3)).sqrt()
    amplitude = 3 * amplitude - 1.5
    return amplitude if view == "amplitude" else torch.cat([relative_db, amplitude], -1)


def soft_loss(scores: Tensor, power_db: Tensor, softness_db: float) -> Tensor:
    """Cross-entropy with labels shared among beams, and the expected loss of power.

    q_b ~ exp(-l_b / softness) with the loss l_b [dB] of beam b against the best, p = softmax(scores):

        L = -sum_b q_b ln p_b + sum_b p_b l_b / softness

    Args:
        scores: `[..., A]`.
        power_db: of all beams, `[..., A]`.
        softness_db: a beam that loses so much has 1/e of the best one's label.
    """
    lost = (power_db.amax(-1, keepdim=True) - power_db).clamp(max=-LEAST_DB) / softness_db
    shares = torch.log_softmax(scores, -1)
    return -(torch.softmax(-lost, -1) * shares).sum(-1) + (shares.exp() * lost).sum(-1)


def hard_loss(scores: Tensor, power_db: Tensor) -> Tensor:
    """Cross-entropy with the best beam as the label, `[..., A] -> [...]`."""
    best = power_db.argmax(-1)
    return functional.cross_entropy(scores.flatten(0, -2), best.flatten(), reduction="none").view(best.shape)


def lost_db(power_db: Tensor, chosen: Tensor) -> Tensor:
    """Received power that a choice loses against the best beam: `[..., A]` and `[...]` -> `[...]`, >= 0."""
    return power_db.amax(-1) - power_db.gather(-1, chosen[..., None]).squeeze(-1)


def hits(scores: Tensor, power_db: Tensor, most: int) -> Tensor:
    """Whether the best beam is among the `most` of highest score, bool `[...]`: top-K of TR 38.843."""
    best = power_db.argmax(-1, keepdim=True)
    return (scores.topk(most, -1).indices == best).any(-1)


@dataclass(frozen=True)
class Samples:
    """What nodes learn from, node by node.

    Attributes:
        features: `[N, F]`.
        power_db: of all beams, `[N, instants, A]`.
        count: samples of every node, int64 `[nodes]`; the first node's come first.
    """

    features: Tensor
    power_db: Tensor
    count: Tensor

    @classmethod
    def of(cls, nodes: Sequence[tuple[Tensor, Tensor]]) -> Samples:
        """Joins features `[n, F]` and powers `[n, instants, A]` of every node."""
        count = torch.tensor([len(own) for own, _ in nodes])
        return cls(torch.cat([own for own, _ in nodes]), torch.cat([power for _, power in nodes]), count)

    def draw(self, size: int) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
        """Draws so many samples of every node: features `[nodes, size, F]`, powers `[nodes, size, ...]`."""
        start = self.count.cumsum(0) - self.count

        def drawn(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            share = torch.rand(len(self.count), size, generator=generator, dtype=torch.float64)
            index = start[:, None] + (share * self.count[:, None]).long()
            return self.features[index], self.power_db[index]

        return drawn

    def padded(self) -> tuple[Tensor, Tensor, Tensor]:
        """All samples of every node, repeated from the first to the largest count, and which are real.

        Returns:
            Features `[nodes, n, F]`, powers `[nodes, n, instants, A]`, weights `[nodes, n]` that sum to 1.
        """
        place = torch.arange(int(self.count.max()))
        start = (self.count.cumsum(0) - self.count)[:, None]
        index = start + place % self.count[:, None]
        weight = (place < self.count[:, None]) / self.count[:, None].float()
        return self.features[index], self.power_db[index], weight


def scores(parameters: Parameters, seen: Tensor, instants: int = 1) -> Tensor:
    """Scores of all beams at the coming instants: `[nodes, n, F] -> [nodes, n, instants, A]`."""
    found: Tensor = perceptron(parameters, seen).unflatten(-1, (instants, -1))
    return found


def node_loss(loss: BatchLoss, instants: int = 1) -> Callable[[Parameters, tuple[Tensor, Tensor]], Tensor]:
    """The training loss of every node, `[nodes]`, for a batch as `Samples.draw` gives it."""

    def of_batch(parameters: Parameters, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen, power_db = batch
        return loss(scores(parameters, seen, instants), power_db).mean((-1, -2))

    return of_batch


def validation(samples: Samples) -> Callable[[Parameters], Tensor]:
    """Mean received power that every node's model loses on its samples, `[nodes]` dB."""
    seen, power_db, weight = samples.padded()

    def of(parameters: Parameters) -> Tensor:
        chosen = scores(parameters, seen, power_db.shape[-2]).argmax(-1)
        return torch.einsum("nsi,ns->n", lost_db(power_db, chosen), weight) / power_db.shape[-2]

    return of
