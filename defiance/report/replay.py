"""What a page tells of functions on measured drives: when they decide, and what it would have brought."""

from __future__ import annotations

from collections.abc import Sequence

from defiance.kpm import Row, Sheet
from defiance.report import drawing, tables, words
from defiance.report.comparison import Change
from defiance.report.figures import Panel, Plot
from defiance.report.page import Headline, Section, section
from defiance.report.tables import Table

DECISIONS = {
    "decisions_per_minute": "decisions per minute",
    "rsrp_gain": "RSRP gained",
    "return_share": "ways back",
}
AGREEMENT = {
    "agreement_share": "asks in the window",
    "chance_share": "by chance",
    "earlier_share": "asks before",
    "later_share": "asks after",
    "lead_time": "lead, if it asks",
    "confirmed_share": "of its decisions confirmed",
}
LIMITS = (
    "This is an open loop. The serving cell follows the network, whatever a function asks for; after it "
    "would have left, what is seen of it is what the strongest other cell looked like from the old one. "
    "So outage, rates, failures and all that a decision would have led to can't be told.",
    "A drive doesn't name the strongest other cell, nor its carrier or load, by which the network decides, "
    "too. After a handover the strongest neighbour is taken for the cell that was left; where it is "
    "another one, decisions look later than they would have been. Rows come once a second, and each "
    "stands until the next.",
    "A function that was trained in a city knows its cells one by one, and the drive's are others: every "
    "seed takes two of its cells for the serving and the other one, and all seeds are summed. Read its "
    "rows as what it does where it was never trained.",
)


def question(sheet: Sheet) -> str:
    """The question that the study answers."""
    return "When would a handover function have decided on measured drives?"


def headlines(sheet: Sheet) -> tuple[Headline, ...]:
    """What the network did, and who agrees with it most."""
    own = _row(sheet, "network", "decisions_per_minute")
    gain = _row(sheet, "network", "rsrp_gain")
    agreeing = max(sheet.select(metric="agreement_share"), key=lambda row: row.mean, default=None)
    found = [
        _headline("Handovers of the network", own, ""),
        _headline("RSRP that they gained", gain, ""),
        _headline("Most of them asked for", agreeing, "by {}"),
    ]
    if agreeing is not None:
        for metric, label in (("rsrp_gain", "Its own gain of RSRP"), ("earlier_share", "It asks before")):
            found.append(_headline(label, _row(sheet, agreeing.candidate, metric), ""))
    return tuple(headline for headline in found if headline is not None)


def sections(sheet: Sheet) -> tuple[Section, ...]:
    """Who decides when, and what it brings; what that doesn't say."""
    about = "A handover counts if another cell was measured just before."
    found = (
        section("agreement", "Who decides when", [about], [_figure(sheet), _table(sheet, AGREEMENT, "none")]),
        section(
            "decisions",
            "What decisions bring",
            [],
            [_table(sheet, DECISIONS, "none"), _table(sheet, DECISIONS, "less the network")],
        ),
    )
    kept = tuple(each for each in found if each is not None)
    return (*kept, Section("limits", "What a replay can't tell", LIMITS, ())) if kept else ()


def compared(a: Sheet, b: Sheet, changes: Sequence[Change]) -> tuple[Section, ...]:
    """Nothing but the changes: every row of the two sheets has its like."""
    return ()


def attribution(sheet: Sheet) -> str:
    """Drives are the user's own."""
    return ""


def _row(sheet: Sheet, candidate: str, metric: str, regime: str = "none") -> Row | None:
    return next(iter(sheet.select(candidate=candidate, metric=metric, regime=regime)), None)


def _headline(label: str, row: Row | None, detail: str) -> Headline | None:
    if row is None:
        return None
    value, interval = words.interval(row.mean, row.ci_low, row.ci_high, row.unit)
    text = " ".join(filter(None, [interval, detail.format(words.candidate(row.candidate))]))
    return Headline(label, value, text and f"{words.capital(text)}.", row.provenance)


def _table(sheet: Sheet, metrics: dict[str, str], regime: str) -> Table | None:
    """Candidates down, metrics across; differences from the network with their sign read."""
    shown = tables.value if regime == "none" else tables.difference
    candidates = dict.fromkeys(row.candidate for row in sheet.rows if row.metric in metrics)
    rows = [
        (
            tables.name(words.candidate(candidate)),
            *(shown(_row(sheet, candidate, metric, regime)) for metric in metrics),
        )
        for candidate in candidates
        if any(_row(sheet, candidate, metric, regime) for metric in metrics)
    ]
    caption = ", ".join(metrics.values()) + ("" if regime == "none" else f", {regime}, paired by drive")
    name = words.slug(f"{next(iter(metrics))}-{regime}")
    return tables.table(name, f"{words.capital(caption)}.", ("decider", *metrics.values()), rows)


def _figure(sheet: Sheet) -> Plot | None:
    """Who asks to leave about the network's handovers, and what the new cell's RSRP is over the old one's."""
    titles = {"asking": "Who asks to leave", "gain": "The new cell over the old one"}
    axes = {"asking": "share of handovers", "gain": "RSRP gain [dB]"}
    found = {name: sheet.select_curves(name=name) for name in titles}
    panels = tuple(
        Panel(titles[name], drawing.lines(drawing.by_candidate(curves), y_label=axes[name]))
        for name, curves in found.items()
        if curves
    )
    return (
        Plot(
            "decisions",
            "About the network's handovers, at 0 s: the share of them at which a function is asking to leave "
            "the old cell; and how much stronger the new cell (before: the strongest other) is, the median.",
            "Share of handovers at which functions ask to leave, and RSRP gained, against time.",
            panels,
            width_in=4.6,
            across=2,
        )
        if panels
        else None
    )
