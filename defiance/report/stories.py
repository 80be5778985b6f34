"""What a page tells of a study: each kind of rows has its own question, headlines, sections and figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import defiance.report.coinference as coinference
import defiance.report.plain as plain
import defiance.report.replay as replay
import defiance.report.training as training
import defiance.report.worth as worth
from defiance.kpm import Sheet
from defiance.report.comparison import Change
from defiance.report.page import Headline, Section


class Story(Protocol):
    """What a story's module holds. It trusts nothing in a sheet, and leaves out what has no rows."""

    def question(self, sheet: Sheet) -> str:
        """The question that the study answers."""

    def headlines(self, sheet: Sheet) -> tuple[Headline, ...]:
        """Four to six numbers that a reader should take away."""

    def sections(self, sheet: Sheet) -> tuple[Section, ...]:
        """The page between the headlines and the rows."""

    def compared(self, a: Sheet, b: Sheet, changes: Sequence[Change]) -> tuple[Section, ...]:
        """What two sheets of the study have to say beside their changes."""

    def attribution(self, sheet: Sheet) -> str:
        """Whose data the numbers rest on; may be empty."""


def story(sheet: Sheet) -> Story:
    """The story of a sheet's study; the plain one for studies that none is written for."""
    stories: dict[str, Story] = {
        "coinference": coinference,
        "replay": replay,
        "training": training,
        "worth": worth,
    }
    return stories.get(sheet.study, plain)
