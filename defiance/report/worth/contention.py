"""What it costs that control messages wait: for each other, for the air, for model traffic."""

from __future__ import annotations

from defiance.report import tables, words
from defiance.report.page import Section, section
from defiance.report.worth.view import RULE, View

LINKS = {"ideal": "ideal", "queued": "queued", "queued-models": "queued, with model traffic"}


COLUMNS = ("contention_outage", "control_outage_cut", "command_delay")


def contention(view: View) -> Section | None:
    """Every candidate that was judged with ideal control links and with queues."""
    rows = []
    for candidate in view.candidates:
        for links, label in LINKS.items():
            outage = next(iter(view.rows("control_outage_share", candidate, node=links)), None)
            if outage is None or (candidate == RULE and links == "queued-models"):
                continue
            found = [next(iter(view.rows(metric, candidate, node=links)), None) for metric in COLUMNS]
            named = words.candidate(candidate, outage.regime) if links == "ideal" else ""
            cells = [tables.value(row) for row in (outage, *found)]
            rows.append((tables.name(named), tables.prose(label), *cells))
    where = next((row.scenario for row in view.sheet.rows if row.metric == "contention_outage"), "")
    caption = (
        f"{words.scenario(where).label}: the same worlds, models and settings over three kinds of control "
        "links; means with 95 % intervals over the test seeds, paired."
    )
    text = (
        "Reports, preparations and commands wait for resource blocks, for the station's wire and for each "
        "other; what is lost in the air is sent again. With ideal links each arrives after its delay. Model "
        "traffic is that of training the function once within the test: models to devices, logs, weights."
    )
    head = ("candidate", "control links", "time in outage", "more than with ideal links", "outage cut")
    table = tables.table("contention", caption, (*head, "report to command"), rows) if rows else None
    return section("contention", "What contention costs", [text], [table])
