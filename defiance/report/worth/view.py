"""A sheet as the report looks at it: rows by name, the scenarios of the study, the candidates compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property

from defiance.kpm import Curve, Row, Sheet
from defiance.report import words
from defiance.report.words import Scenario

RULE = "a3"
GENIE = "genie"
TRAINING_REGIMES = ("local", "federated", "central")


class View:
    """Read-only look-ups over one sheet."""

    def __init__(self, sheet: Sheet) -> None:
        self.sheet = sheet
        self._rows: dict[tuple[str, str], list[Row]] = {}
        for row in sheet.rows:
            self._rows.setdefault((row.metric, row.candidate), []).append(row)

    def rows(self, metric: str, candidate: str, **columns: str | None) -> list[Row]:
        """Rows of a metric and a candidate whose columns have these values; None allows any value."""
        return [
            row
            for row in self._rows.get((metric, candidate), [])
            if all(value in (None, getattr(row, name)) for name, value in columns.items())
        ]

    def row(self, metric: str, candidate: str, case: Scenario, regime: str | None = None) -> Row | None:
        """The first row of a metric in one scenario."""
        return next(iter(self.rows(metric, candidate, scenario=case.name, regime=regime)), None)

    def nearest(
        self, metric: str, candidate: str, near: str, regime: str, node: str | None = None
    ) -> Row | None:
        """The row whose scenario shares most parts with the scenario `near`, of the same city."""
        parts = near.split("/")
        found = [
            row
            for row in self.rows(metric, candidate, regime=regime, node=node)
            if row.scenario.split("/")[0] in (parts[0], "")
        ]
        return max(found, key=lambda row: len(set(parts) & set(row.scenario.split("/"))), default=None)

    @cached_property
    def candidates(self) -> tuple[str, ...]:
        """Every candidate, the rule first and the genie last."""
        order = {RULE: -1, GENIE: 1}
        names = _unique(row.candidate for row in self.sheet.rows)
        return tuple(sorted(names, key=lambda name: order.get(name, 0)))

    @cached_property
    def learned(self) -> tuple[str, ...]:
        """The candidates that are neither rule nor genie."""
        return tuple(name for name in self.candidates if name not in (RULE, GENIE))

    @cached_property
    def kinds(self) -> tuple[tuple[str, str], ...]:
        """Every candidate with each of its regimes."""
        found = dict.fromkeys((row.candidate, row.regime) for row in self.sheet.rows)
        return tuple(sorted(found, key=lambda kind: self.candidates.index(kind[0])))

    @cached_property
    def scenarios(self) -> tuple[Scenario, ...]:
        """The scenarios in which time in outage was measured, else all."""
        measured = _unique(row.scenario for row in self.sheet.rows if row.metric == "outage_share")
        return tuple(
            words.scenario(name) for name in measured or _unique(r.scenario for r in self.sheet.rows)
        )

    @cached_property
    def home(self) -> str:
        """The city with the most scenarios: where the study trained."""
        cities = [case.city for case in self.scenarios]
        return max(_unique(cities), key=cities.count, default="")

    @cached_property
    def home_places(self) -> dict[str, list[Scenario]]:
        """The scenarios at home, grouped by map, the traced one first."""
        return by_place(sorted((case for case in self.scenarios if case.city == self.home), key=_is_smooth))

    @cached_property
    def main(self) -> tuple[Scenario, ...]:
        """The scenarios at home on the map as it was traced: headlines speak of these."""
        return tuple(next(iter(self.home_places.values()), ()))

    @cached_property
    def choice_is_stated(self) -> bool:
        """True where the study says which regime validation chose (rows of the metric `chosen`)."""
        return any(row.metric == "chosen" for row in self.sheet.rows)

    @cached_property
    def _regimes(self) -> dict[str, str]:
        """The regime with the largest mean cut over the main scenarios, for each learned candidate."""
        main = {case.name for case in self.main}
        found: dict[str, str] = {}
        for name in self.learned:
            cuts: dict[str, list[float]] = {}
            for row in self.rows("outage_cut", name):
                if row.scenario in main:
                    cuts.setdefault(row.regime, []).append(row.mean)
            if cuts:
                found[name] = max(cuts, key=lambda regime: mean(cuts[regime]))
        return found

    def cut(self, case: Scenario, candidate: str) -> Row | None:
        """The outage cut in a scenario under one regime: the one that the sheet states, or the best mean."""
        stated = {row.regime for row in self.rows("chosen", candidate, scenario=case.name) if row.mean > 0}
        wanted = stated or {self._regimes.get(candidate, "")}
        found = self.rows("outage_cut", candidate, scenario=case.name)
        return next((row for row in found if row.regime in wanted), None)

    def cuts(self, cases: Sequence[Scenario], candidate: str) -> list[tuple[Scenario, Row]]:
        """The cuts of a candidate in several scenarios, where the sheet has them."""
        return [(case, row) for case in cases if (row := self.cut(case, candidate)) is not None]

    def led(self, cases: Sequence[Scenario]) -> list[tuple[Scenario, Row]]:
        """The cuts in several scenarios of what validation chose there, as the verdict; else of `lead`."""
        stated = {
            (r.scenario, r.candidate, r.regime) for r in self.sheet.rows if r.metric == "leads" and r.mean
        }
        cuts = [
            (case, row)
            for case in cases
            for name in self.learned
            for row in self.rows("outage_cut", name, scenario=case.name)
            if (row.scenario, row.candidate, row.regime) in stated
        ]
        return cuts or self.cuts(cases, self.lead)

    @cached_property
    def lead(self) -> str:
        """The learned candidate that stands for learning in pictures: least outage on validation seeds.

        Where the sheet has no such rows, it is the one with the largest mean cut over the main scenarios.
        """
        scores = {}
        for name in self.learned:
            cuts = self.cuts(self.main, name)
            validated = [
                row.mean
                for case, cut in cuts
                if (row := self.row("validation_outage_share", name, case, cut.regime)) is not None
            ]
            scores[name] = -mean(validated) if validated else mean([row.mean for _, row in cuts])
        return max(scores, key=lambda name: scores[name], default="")

    @cached_property
    def reference(self) -> tuple[Scenario, Row] | None:
        """The scenario that single numbers are taken from, with its cut: the smallest resolved gain."""
        cuts = self.led(self.main)
        gained = [pair for pair in cuts if pair[1].ci_low > 0]
        return min(gained, key=lambda pair: pair[1].mean) if gained else next(iter(cuts), None)

    def curves(self, name: str) -> dict[str, list[Curve]]:
        """The curves of one name that have points, by scenario."""
        found: dict[str, list[Curve]] = {}
        for curve in self.sheet.curves:
            if curve.name == name and curve.x:
                found.setdefault(curve.scenario, []).append(curve)
        return found

    def setting(self, key: str) -> float | None:
        """The first number that the configuration gives for `key`, at any depth."""
        pending: list[object] = [self.sheet.config]
        while pending:
            here = pending.pop(0)
            if isinstance(here, dict):
                if isinstance(here.get(key), int | float):
                    return float(here[key])
                pending.extend(here.values())
        return None


def by_place(cases: Iterable[Scenario]) -> dict[str, list[Scenario]]:
    """Scenarios grouped by city and map."""
    grouped: dict[str, list[Scenario]] = {}
    for case in cases:
        grouped.setdefault(case.place, []).append(case)
    return grouped


def by_sign(cuts: Sequence[tuple[Scenario, Row]]) -> dict[str, list[tuple[Scenario, Row]]]:
    """Cuts sorted by what their interval says: 'better', 'unresolved' or 'worse'."""
    found: dict[str, list[tuple[Scenario, Row]]] = {"better": [], "unresolved": [], "worse": []}
    for case, row in cuts:
        kind = "unresolved" if not words.resolved(row) else "better" if row.mean > 0 else "worse"
        found[kind].append((case, row))
    return found


def mean(values: Sequence[float]) -> float:
    """The mean of the values that are known; -inf where there is none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else -math.inf


def _is_smooth(case: Scenario) -> bool:
    return case.map == "smooth"


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
