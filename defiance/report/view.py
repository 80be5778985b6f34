"""A sheet as the report looks at it: rows by their names, the cells of the study, the candidates compared."""

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
        self._rows: dict[tuple[str, str, str], list[Row]] = {}
        for row in sheet.rows:
            self._rows.setdefault((row.metric, row.candidate, row.scenario), []).append(row)

    def rows(
        self, metric: str, candidate: str, scenario: str, regime: str | None = None, node: str | None = None
    ) -> list[Row]:
        """Rows of a metric in one scenario, in the sheet's order."""
        return [
            row
            for row in self._rows.get((metric, candidate, scenario), [])
            if regime in (None, row.regime) and node in (None, row.node)
        ]

    def row(
        self, metric: str, candidate: str, scenario: str, regime: str | None = None, node: str | None = None
    ) -> Row | None:
        """The first of `rows`."""
        return next(iter(self.rows(metric, candidate, scenario, regime, node)), None)

    def nearest(
        self, metric: str, candidate: str, scenario: str, regime: str | None = None, node: str | None = None
    ) -> Row | None:
        """The row of the scenario that shares the most leading parts with `scenario`; exact where there is one."""
        parts = scenario.split("/")
        found = [
            row
            for row in self.sheet.rows
            if row.metric == metric
            and row.candidate == candidate
            and regime in (None, row.regime)
            and node in (None, row.node)
            and (row.scenario == scenario or _shared(parts, row.scenario.split("/")) > 0)
        ]
        exact = [row for row in found if row.scenario == scenario]
        return (
            exact[0]
            if exact
            else max(found, key=lambda row: _shared(parts, row.scenario.split("/")), default=None)
        )

    @cached_property
    def candidates(self) -> tuple[str, ...]:
        """Every candidate, the rule first and the genie last."""
        order = {RULE: -1, GENIE: 1}
        return tuple(
            sorted(_unique(row.candidate for row in self.sheet.rows), key=lambda name: order.get(name, 0))
        )

    @cached_property
    def learned(self) -> tuple[str, ...]:
        """The candidates that are neither rule nor genie."""
        return tuple(name for name in self.candidates if name not in (RULE, GENIE))

    @cached_property
    def scenarios(self) -> tuple[Scenario, ...]:
        """The cells of the study: scenarios in which time in outage was measured, else all."""
        measured = _unique(row.scenario for row in self.sheet.rows if row.metric == "outage_share")
        return tuple(
            words.scenario(name) for name in measured or _unique(row.scenario for row in self.sheet.rows)
        )

    @cached_property
    def home(self) -> str:
        """The city with the most cells: where the study trained."""
        cities = [cell.city for cell in self.scenarios]
        return max(_unique(cities), key=cities.count, default="")

    @cached_property
    def home_cells(self) -> tuple[Scenario, ...]:
        """The cells in the city where the study trained."""
        return tuple(cell for cell in self.scenarios if cell.city == self.home)

    def places(self, cells: Sequence[Scenario]) -> dict[str, list[Scenario]]:
        """Cells grouped by city and map."""
        grouped: dict[str, list[Scenario]] = {}
        for cell in cells:
            grouped.setdefault(cell.place, []).append(cell)
        return grouped

    @cached_property
    def choice_is_stated(self) -> bool:
        """True where the study says which regime validation chose (rows of the metric `chosen`)."""
        return any(row.metric == "chosen" for row in self.sheet.rows)

    @cached_property
    def _regimes(self) -> dict[str, str]:
        """The regime with the largest mean cut over the home cells, for each learned candidate."""
        found: dict[str, str] = {}
        for name in self.learned:
            means: dict[str, list[float]] = {}
            for cell in self.home_cells:
                for row in self.rows("outage_cut", name, cell.name):
                    means.setdefault(row.regime, []).append(row.mean)
            if means:
                found[name] = max(means, key=lambda regime: _mean(means[regime]))
        return found

    def cut(self, cell: Scenario, candidate: str) -> Row | None:
        """The outage cut of a candidate in a cell under one regime: the stated choice, else the best on average."""
        stated = {row.regime for row in self.rows("chosen", candidate, cell.name) if row.mean > 0}
        wanted = stated or {self._regimes.get(candidate, "")}
        found = self.rows("outage_cut", candidate, cell.name)
        return next((row for row in found if row.regime in wanted), None)

    @cached_property
    def lead(self) -> str:
        """The learned candidate with the largest mean cut over the home cells: it stands for learning."""
        means = {
            name: _mean([row.mean for cell in self.home_cells if (row := self.cut(cell, name)) is not None])
            for name in self.learned
        }
        return max(means, key=lambda name: means[name], default="")

    def best(self, cell: Scenario) -> Row | None:
        """The outage cut of the leading candidate in a cell."""
        return self.cut(cell, self.lead)

    @cached_property
    def reference(self) -> Scenario | None:
        """The cell that single numbers are taken from: the smallest resolved cut at home, so that none flatters."""
        cuts = [(cell, row) for cell in self.home_cells if (row := self.best(cell)) is not None]
        gained = [(cell, row) for cell, row in cuts if row.ci_low > 0]
        if gained:
            return min(gained, key=lambda pair: pair[1].mean)[0]
        return next(iter(self.home_cells), None)

    def curves(self, name: str) -> tuple[Curve, ...]:
        """The curves of one name that have at least one point."""
        return tuple(curve for curve in self.sheet.curves if curve.name == name and curve.x)

    def setting(self, key: str) -> object | None:
        """The first value of `key` anywhere in the configuration."""
        pending: list[object] = [self.sheet.config]
        while pending:
            here = pending.pop(0)
            if isinstance(here, dict):
                if key in here:
                    found: object = here[key]
                    return found
                pending.extend(here.values())
        return None


def _shared(a: Sequence[str], b: Sequence[str]) -> int:
    """How many parts two scenario names share, counted only where the shorter one's city agrees."""
    return sum(part in b for part in a) if a[0] == b[0] else 0


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else -math.inf
