"""Everything that the parts of a run found, and how samples over seeds become intervals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defiance.prices import CITED, Prices
from defiance.scene.drive_fits import Calibration
from defiance.studies.worth.settings import Config, Scenario, caps, handover_limit
from defiance.studies.worth.training import Model


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
    contention: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    prices: Prices = CITED
    calibration: Calibration | None = None

    def models(self, scenario: Scenario) -> dict[tuple[str, str], list[Model]]:
        """The models judged in a scenario, by placement and regime."""
        found: dict[tuple[str, str], list[Model]] = {}
        for model, where in self.judged:
            if where == scenario:
                found.setdefault((model.placement, model.regime), []).append(model)
        return found

    def chosen(self, scenario: Scenario, cap: float, placement: str | None = None) -> tuple[str, str]:
        """Placement and regime of least validation outage under a cap, of one placement or of all.

        Those that make too many handovers to be compared are chosen only where all of them do.
        """
        kinds = [kind for kind in self.models(scenario) if placement in (None, kind[0])]
        comparable = [kind for kind in kinds if self.comparable(kind, scenario, cap)]
        return min(
            comparable or kinds, key=lambda kind: self.validated(kind, scenario, cap, "validation_outage")
        )

    def comparable(self, kind: tuple[str, str], scenario: Scenario, cap: float) -> bool:
        """Whether its models make few enough handovers on validation worlds, on average."""
        limit = handover_limit(cap, at(self.a3[scenario], cap)["validation_handovers"])
        return self.validated(kind, scenario, cap, "validation_handovers") <= limit

    def validated(self, kind: tuple[str, str], scenario: Scenario, cap: float, name: str) -> float:
        """The mean over its models of what they reach on validation worlds."""
        models = self.models(scenario)[kind]
        return float(np.mean([at(self.judged[m, scenario], cap)[name] for m in models]))

    def tested(self, kind: tuple[str, str], scenario: Scenario, cap: float, name: str) -> NDArray[np.float64]:
        """A rate on the test worlds, `[training seeds, seeds]`."""
        return np.array(
            [at(self.judged[m, scenario], cap)["test"][name] for m in self.models(scenario)[kind]]
        )


def at(part: dict[str, Any], cap: float) -> dict[str, Any]:
    """What a part found under a cap."""
    found: dict[str, Any] = next(c for c in part["caps"] if c["cap"] == cap)
    return found


def pictured(results: Results, scenario: Scenario) -> list[tuple[str, Model | None, list[float]]]:
    """Whom to record in a scenario under its first cap: the rule, and the chosen learned function."""
    cap = caps(results.config, scenario)[0]
    kind = results.chosen(scenario, cap)
    model = results.models(scenario)[kind][0]
    return [
        ("a3/none", None, at(results.a3[scenario], cap)["setting"]),
        (f"learned-{kind[0]}/{kind[1]}", model, at(results.judged[model, scenario], cap)["setting"]),
    ]


def contended(results: Results, scenario: Scenario) -> list[tuple[str, str, Model | None, list[float], int]]:
    """Whom to judge with messages that wait, under a first cap: the rule, each placement's chosen function.

    Candidate, regime, model, setting, rounds of training.
    """
    cap = caps(results.config, scenario)[0]
    found: list[tuple[str, str, Model | None, list[float], int]] = [
        ("a3", "none", None, at(results.a3[scenario], cap)["setting"], 0)
    ]
    for placement in dict.fromkeys(placement for placement, _ in results.models(scenario)):
        kind = results.chosen(scenario, cap, placement)
        model = results.models(scenario)[kind][0]
        setting = at(results.judged[model, scenario], cap)["setting"]
        found.append((f"learned-{placement}", kind[1], model, setting, results.trained[model]["rounds"]))
    return found


def pictures(results: Results, scenario: Scenario) -> list[tuple[str, str, str]]:
    """Candidate, regime and key of what was recorded in a scenario."""
    found = []
    for key in results.pictures:
        _, candidate, regime, _, *where = key.split("/")
        if "/".join(where) == scenario.name():
            found.append((candidate, regime, key))
    return found
