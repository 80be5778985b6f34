"""Writes what results/worth.json says into README.md and docs/; `make readme` runs it."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from defiance.kpm import Row, Sheet
from defiance.report import write_report

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- worth: made by `make readme` -->", "<!-- end -->"


def percent(row: Row) -> str:
    """`2.47 %`."""
    return f"{100 * row.mean:.2f} %"


def table(sheet: Sheet) -> str:
    """Outage under the rule, the learned function that validation chose, and the genie, by scenario."""
    index = {(r.candidate, r.regime, r.scenario, r.metric): r for r in sheet.rows if r.node == "network"}
    lines = [
        "| scenario | A3 | learned | outage avoided [95 %] | genie |",
        "|---|---|---|---|---|",
    ]
    for rule in sheet.select(candidate="a3", metric="outage_share", node="network"):
        where = rule.scenario
        chosen = [r for r in sheet.select(metric="chosen", scenario=where) if r.mean > 0]
        if not chosen or index.get(("genie", "none", where, "outage_share")) is None:
            continue
        kind = min(
            ((r.candidate, r.regime) for r in chosen),
            key=lambda k: index[*k, where, "validation_outage_share"].mean,
        )
        cut = index[*kind, where, "outage_cut"]
        ends = f"[{100 * cut.ci_low:.0f}, {100 * cut.ci_high:.0f}]"
        cells = [
            where,
            percent(rule),
            f"{percent(index[*kind, where, 'outage_share'])} ({kind[0].removeprefix('learned-')}, {kind[1]})",
            f"{100 * cut.mean:.0f} % {ends}",
            percent(index["genie", "none", where, "outage_share"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def quoted(verdict: str) -> str:
    """The verdict's first sentence, and a list of the others."""
    first, *others = re.split(r"(?<=\.) (?=[A-Z])", verdict)
    return "\n".join([f"> **{first}**", ">", *(f"> - {sentence}" for sentence in others)])


def section(sheet: Sheet) -> str:
    """What README says about the sheet."""
    made_by = (
        f"From `results/worth.json`, made by `make results/worth` ({len(sheet.seeds)} test seeds; "
        "city/speed/load/cap on\nhandovers per user-minute/map). A3 and the learned function's threshold are "
        "tuned on validation seeds, the learned\nfunction hands over no more often than A3 there. "
        "`make demo` runs a small preset anew and says how few seeds it has."
    )
    picture = "![Outage avoided in every scenario, with 95 % intervals](docs/outage-cut.png)"
    return "\n\n".join([BEGIN, quoted(sheet.verdict), picture, table(sheet), made_by, END])


def refreshed(readme: str, sheet: Sheet) -> str:
    """README with the section replaced."""
    before, rest = readme.split(BEGIN)
    return before + section(sheet) + rest.split(END)[1]


if __name__ == "__main__":
    path, sheet = ROOT / "README.md", Sheet.load(ROOT / "results" / "worth.json")
    path.write_text(refreshed(path.read_text(encoding="utf-8"), sheet), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        write_report([sheet], Path(folder))
        (ROOT / "docs" / "outage-cut.png").write_bytes(
            (Path(folder) / "figures" / "outage-cut.png").read_bytes()
        )
    sys.stdout.write("README.md and docs/outage-cut.png say what results/worth.json says\n")
