"""A sheet of the study `coinference` as its page looks at it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from defiance.kpm import Curve, Row, Sheet
from defiance.report import words

OWN = "s-vdib"
BASES = ("mixed", "simulated")
"""Regimes in which candidates are compared: with real recordings, and without."""

NAMES = {
    "nmnist": "real N-MNIST recordings",
    "nmnist-simulated": "simulated N-MNIST recordings",
    "motion": "simulated moving digits",
    "digits": "embedded digits",
}
CHANNELS = {
    "z": "Z-channel, on-off pulses",
    "soft": "Gaussian noise, soft decisions",
    "rayleigh": "Rayleigh block fading, soft decisions",
    "nr-tdl": "5G NR, TDL-C, soft decisions",
}
SPOKEN = ("noiseless", "0dB", "-4dB", "-8dB")
BOUNDS = ("send-everything", "central")


class View:
    """Read-only look-ups over one sheet."""

    def __init__(self, sheet: Sheet) -> None:
        self.sheet = sheet
        self._rows: dict[tuple[str, str], list[Row]] = {}
        for row in sheet.rows:
            self._rows.setdefault((row.metric, row.scenario), []).append(row)

    @cached_property
    def tests(self) -> tuple[str, ...]:
        """Test recordings, those that the study speaks of first."""
        found = (row.scenario.split("/")[0] for row in self.sheet.rows if row.metric == "performance")
        return tuple(dict.fromkeys(found))

    @cached_property
    def first(self) -> str:
        """The recordings that single numbers are about."""
        return next(iter(self.tests), "")

    @cached_property
    def reference(self) -> str:
        """The scenario's part that says at how many uses everything is compared: the one with most rows."""
        counts: dict[str, int] = {}
        for row in self.sheet.rows:
            parts = row.scenario.split("/")
            if row.metric == "performance" and len(parts) > 1:
                counts[parts[1]] = counts.get(parts[1], 0) + 1
        return max(counts, key=lambda part: counts[part], default="")

    @property
    def uses(self) -> str:
        """The same in words."""
        return f"{self.reference.removeprefix('uses')} channel uses"

    def base(self, test: str) -> str:
        """The regime in which candidates are compared on these recordings."""
        regimes = {curve.regime for curve in self.sheet.curves if curve.scenario.split("/")[0] == test}
        return next((regime for regime in BASES if regime in regimes), "")

    def row(
        self, metric: str, candidate: str, scenario: str, node: str | None = None, regime: str | None = None
    ) -> Row | None:
        """The first row with these columns; None allows any value."""
        wanted = regime if regime is not None else self.base(scenario.split("/")[0])
        return next(
            (
                row
                for row in self._rows.get((metric, scenario), [])
                if row.candidate == candidate and row.regime == wanted and node in (None, row.node)
            ),
            None,
        )

    def rows(self, metric: str, scenario: str) -> list[Row]:
        """All rows of a metric in a scenario."""
        return self._rows.get((metric, scenario), [])

    def candidates(self, test: str) -> list[str]:
        """Who was tested on these recordings at the reference uses, in the sheet's order."""
        base = self.base(test)
        return _unique(
            row.candidate
            for row in self.sheet.rows
            if row.metric == "performance"
            and row.regime == base
            and row.scenario.split("/")[:2] == [test, self.reference]
        )

    def noises(self, test: str) -> list[str]:
        """The spoken levels of noise that the sheet has."""
        return [noise for noise in SPOKEN if self.rows("performance", f"{test}/{self.reference}/{noise}")]

    @cached_property
    def rival(self) -> str:
        """The conventional candidate of least device energy that is, to a point, as accurate as S-VDIB."""
        rows = self.rows("energy_rival", f"{self.first}/{self.reference}")
        return rows[0].candidate if rows else ""

    def curves(self, name: str, start: str = "") -> dict[str, list[Curve]]:
        """The curves of one name that have points, by scenario; its name begins with `start`."""
        found: dict[str, list[Curve]] = {}
        for curve in self.sheet.curves:
            if curve.name == name and curve.x and curve.scenario.startswith(start):
                found.setdefault(curve.scenario, []).append(curve)
        return found


def noise(part: str) -> str:
    """`0dB` -> 'at 0 dB', `noiseless` -> 'without noise'."""
    if part == "noiseless":
        return "without noise"
    return f"at {part.removesuffix('dB').replace('-', words.MINUS)}{words.NBSP}dB"


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
