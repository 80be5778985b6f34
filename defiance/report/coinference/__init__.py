"""What a page tells of co-inference: accuracy against noise, uses and time; what it costs; who wins where."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from defiance.kpm import Sheet
from defiance.report.coinference import numbers
from defiance.report.coinference.accuracy import accuracy, paper, robustness, time, uses
from defiance.report.coinference.cost import complexity, energy, information
from defiance.report.coinference.view import NAMES, View
from defiance.report.comparison import Change
from defiance.report.page import Headline, Section

DATA = (
    "N-MNIST: Orchard et al. 2015, CC BY-SA 4.0, after MNIST (LeCun et al. 1998); digits of scikit-learn: "
    "Alpaydin and Kaynak 1998."
)

FOLDS: tuple[Callable[[View], Section | None], ...] = (
    accuracy,
    paper,
    uses,
    time,
    energy,
    robustness,
    information,
    complexity,
)


def question(sheet: Sheet) -> str:
    """The question that the study answers."""
    place = NAMES.get(View(sheet).first, "")
    return f"Where do spikes win between a device and its edge{', on ' + place if place else ''}?"


def headlines(sheet: Sheet) -> tuple[Headline, ...]:
    """Four to six numbers that a reader should take away."""
    return numbers.headlines(View(sheet))


def sections(sheet: Sheet) -> tuple[Section, ...]:
    """Every section for which the sheet has rows or curves."""
    view = View(sheet)
    return tuple(section for fold in FOLDS if (section := fold(view)) is not None)


def compared(a: Sheet, b: Sheet, changes: Sequence[Change]) -> tuple[Section, ...]:
    """Nothing but the changes: every row of the two sheets has its like."""
    return ()


def attribution(sheet: Sheet) -> str:
    """Whose data the numbers rest on."""
    return DATA
