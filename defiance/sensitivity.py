"""How far a verdict rests on constants: each over its cited range, what flips it, all of them together.

Nothing is simulated again: a verdict's margin is a sum of what was counted times constants, so it is linear
in each of them, and where it crosses zero is exact algebra.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Constant:
    """A constant with the range that its sources leave.

    Attributes:
        name: what it is.
        unit: SI.
        low, nominal, high: of its value, in this order.
        source: where they come from.
    """

    name: str
    unit: str
    low: float
    nominal: float
    high: float
    source: str


@dataclass(frozen=True)
class Swing:
    """What one constant does to a margin while all others keep their nominal values.

    Attributes:
        constant, unit, low, nominal, high, source: see `Constant`.
        margin_low, margin_high: the margin with the constant at its low, and at its high end.
        flips_at: its value at which the margin is zero, in or outside of its range; nan: none above zero.
    """

    constant: str
    unit: str
    low: float
    nominal: float
    high: float
    source: str
    margin_low: float
    margin_high: float
    flips_at: float

    @property
    def width(self) -> float:
        """How far it moves the margin over its range."""
        return abs(self.margin_high - self.margin_low)

    @property
    def flips(self) -> bool:
        """Whether the verdict changes within its range."""
        return (self.margin_low > 0) != (self.margin_high > 0)


@dataclass(frozen=True)
class Sensitivity:
    """A verdict, its margin, and what each constant does to it.

    Attributes:
        claim: what holds while the margin is above zero.
        candidate, regime, scenario: of whom and where, as in a sheet's rows.
        unit: of the margin.
        margin: at the nominal constants.
        worst, best: with every constant at the end that lowers, or raises, the margin.
        swings: the widest first.
    """

    claim: str
    candidate: str
    regime: str
    scenario: str
    unit: str
    margin: float
    worst: float
    best: float
    swings: tuple[Swing, ...]

    @property
    def holds(self) -> bool:
        """Whether the claim is true at the nominal constants."""
        return self.margin > 0

    @property
    def flipped_by(self) -> tuple[Swing, ...]:
        """Constants each of which alone changes the verdict within its range."""
        return tuple(swing for swing in self.swings if swing.flips)

    @property
    def robust(self) -> bool:
        """Whether the verdict is the same wherever the constants lie in their ranges, all at once."""
        return (self.worst > 0) == (self.best > 0)


def sensitivity(
    margin: Callable[[Mapping[str, float]], float],
    constants: Sequence[Constant],
    *,
    claim: str,
    candidate: str,
    regime: str,
    scenario: str,
    unit: str,
) -> Sensitivity:
    """Moves each constant over its range.

    Args:
        margin: of the claim, from the value of every constant by name; linear in each of them.
        constants: that it depends on.
        claim: see `Sensitivity`, as for all others.
        candidate: whose verdict.
        regime: how it was trained.
        scenario: where.
        unit: of the margin.

    Example::

        found = sensitivity(
            lambda price: 3 * price["watts"] - 2, [Constant("watts", "W", 0.5, 1.0, 2.0, "data sheet")],
            claim="It pays.", candidate="a", regime="none", scenario="", unit="W",
        )
        found.margin, found.worst, found.swings[0].flips_at    # 1.0, -0.5, 0.6667
    """
    nominal = {constant.name: constant.nominal for constant in constants}
    at_nominal = margin(nominal)
    swings, worse, better = [], dict(nominal), dict(nominal)
    for constant in constants:
        low, high = (margin(nominal | {constant.name: end}) for end in (constant.low, constant.high))
        slope = (high - low) / (constant.high - constant.low) if constant.high > constant.low else 0.0
        flips_at = constant.nominal - at_nominal / slope if slope else math.nan
        swings.append(
            Swing(
                constant.name, constant.unit, constant.low, constant.nominal, constant.high, constant.source,
                low, high, flips_at if flips_at > 0 else math.nan,
            )
        )  # fmt: skip
        ends = (constant.low, constant.high) if slope > 0 else (constant.high, constant.low)
        worse[constant.name], better[constant.name] = ends
    return Sensitivity(
        claim, candidate, regime, scenario, unit, at_nominal, margin(worse), margin(better),
        tuple(sorted(swings, key=lambda swing: -swing.width)),
    )  # fmt: skip
