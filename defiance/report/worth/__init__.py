"""What a page tells of handover: gain, cost, training, the network, pay-back, places never trained in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from defiance.kpm import Sheet
from defiance.report import words
from defiance.report.comparison import Change
from defiance.report.page import Headline, Section
from defiance.report.worth import headlines as numbers
from defiance.report.worth.contention import contention
from defiance.report.worth.cost import cost, pay_back, training
from defiance.report.worth.effect import failures, network
from defiance.report.worth.gain import gain, gain_compared, generalisation
from defiance.report.worth.view import View

MAPS = (
    "City maps: © OpenStreetMap contributors, Open Database License (ODbL) 1.0; radio maps ray-traced from "
    "them with Sionna RT."
)

FOLDS: tuple[Callable[[View], Section | None], ...] = (
    gain,
    cost,
    training,
    network,
    contention,
    failures,
    pay_back,
    generalisation,
)


def question(sheet: Sheet) -> str:
    """The question that the study answers."""
    home = View(sheet).home
    return f"Is learned handover worth its cost{f' in {words.city(home)}' if home else ''}?"


def headlines(sheet: Sheet) -> tuple[Headline, ...]:
    """Four to six numbers that a reader should take away."""
    return numbers.headlines(View(sheet))


def sections(sheet: Sheet) -> tuple[Section, ...]:
    """Every section for which the sheet has rows or curves."""
    view = View(sheet)
    return tuple(section for fold in FOLDS if (section := fold(view)) is not None)


def compared(a: Sheet, b: Sheet, changes: Sequence[Change]) -> tuple[Section, ...]:
    """The gain in two sheets side by side."""
    section = gain_compared(View(a), changes)
    return (section,) if section is not None else ()


def attribution(sheet: Sheet) -> str:
    """Whose data the numbers rest on."""
    cities = any(curve.name == "buildings" for curve in sheet.curves) or any(
        case.city.startswith(("munich", "florence")) for case in View(sheet).scenarios
    )
    return MAPS if cities else ""
