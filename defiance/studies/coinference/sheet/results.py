"""What a run of the study `coinference` found, and look-ups in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defiance.kpm import mean_interval
from defiance.studies.coinference.settings import Config, Model, base_regime, trained_on

Array = NDArray[np.float64]
Kind = tuple[str, int, str]
"""Candidate, channel uses, regime."""

BOUNDS = ("send-everything", "central")
"""Who doesn't compete: they take other channel uses, or none."""

CHANCE = 0.1
"""Accuracy of guessing one of ten classes."""


@dataclass(frozen=True)
class Results:
    """All finished parts.

    Attributes:
        config: of the run.
        seeds: of training.
        trained: by model, as `Model.trained` has it.
        judged: by model and test data.
        counted: by candidate and channel uses.
    """

    config: Config
    seeds: tuple[int, ...]
    trained: dict[Model, dict[str, Any]]
    judged: dict[tuple[Model, str], dict[str, Any]]
    counted: dict[tuple[str, int], dict[str, Any]]

    @cached_property
    def ladder(self) -> tuple[float, ...]:
        """Every Es/N0, the noiseless one first."""
        return (math.inf, *sorted(self.config.esn0_db, reverse=True))

    @cached_property
    def _groups(self) -> dict[tuple[Kind, str], list[Model]]:
        found: dict[tuple[Kind, str], list[Model]] = {}
        for model, test in self.judged:
            found.setdefault(((model.candidate, model.uses, model.regime), test), []).append(model)
        return found

    def kinds(self, test: str) -> list[Kind]:
        """Who was tested on these recordings."""
        return [kind for kind, data in self._groups if data == test]

    def models(self, kind: Kind, test: str) -> list[Model]:
        """The models of a kind, one per seed."""
        return self._groups.get((kind, test), [])

    def parts(self, kind: Kind, test: str) -> list[dict[str, Any]]:
        """What was found of them."""
        return [self.judged[model, test] for model in self.models(kind, test)]

    def accuracy(self, kind: Kind, test: str) -> Array:
        """Share of right decisions, [models, Es/N0, T]."""
        return np.array([part["accuracy"] for part in self.parts(kind, test)])

    def final(self, kind: Kind, test: str, esn0_db: float) -> Array:
        """Share of right decisions at the end of a recording, [models]; empty if nobody was tested."""
        found = self.accuracy(kind, test)
        return found[:, self.ladder.index(esn0_db), -1] if found.size else np.empty(0)

    def gains(self, kind: Kind, other: Kind, test: str, esn0_db: float) -> Array:
        """What a kind gains over another, at the end of a recording, over the seeds of both, [seeds]."""
        seeds = [[model.seed for model in self.models(one, test)] for one in (kind, other)]
        own, others = (
            dict(zip(numbers, self.final(one, test, esn0_db), strict=True))
            for numbers, one in zip(seeds, (kind, other), strict=True)
        )
        return np.array([own[seed] - others[seed] for seed in own if seed in others])

    def base(self, test: str) -> str:
        """The regime in which candidates are compared on these recordings."""
        return base_regime(trained_on(test))

    def reference(self, candidate: str, test: str) -> Kind:
        """A candidate where everything is compared."""
        return candidate, self.config.reference_uses, self.base(test)


def scenario(test: str, uses: int, esn0_db: float | None = None, channel: str = "") -> str:
    """`nmnist/uses480/0dB`, `nmnist/uses480/noiseless`, `nmnist/uses480/0dB/rayleigh`, `nmnist/uses480`."""
    noise = [] if esn0_db is None else ["noiseless" if math.isinf(esn0_db) else f"{esn0_db:g}dB"]
    return "/".join([test, f"uses{uses}", *noise, *([channel] if channel else [])])


def mean_of(parts: list[dict[str, Any]], name: str) -> tuple[float, float, float]:
    """Mean and interval of a number over parts."""
    return mean_interval([part[name] for part in parts])
