"""Writes what the committed sheets say into README.md and docs/; `make readme` runs it."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from defiance.kpm import Row, Sheet
from defiance.report import write_report

ROOT = Path(__file__).resolve().parent.parent
END = "<!-- end -->"


@dataclass(frozen=True)
class Part:
    """A piece of a document that says what a sheet says, between a comment that names it and `END`.

    Attributes:
        document: path below the repository.
        study: whose sheet, results/STUDY.json.
        text: what it says.
    """

    document: str
    study: str
    text: Callable[[Sheet], str]

    @property
    def begin(self) -> str:
        """The comment before it."""
        return f"<!-- {self.study}: made by `make readme` -->"

    def refreshed(self, document: str, sheet: Sheet) -> str:
        """The document with this part written anew."""
        before, rest = document.split(self.begin)
        _, after = rest.split(END, 1)
        return f"{before}{self.begin}\n\n{self.text(sheet)}\n\n{END}{after}"


def percent(row: Row, digits: int = 2) -> str:
    """`2.47 %`."""
    return f"{100 * row.mean:.{digits}f} %"


def sentences(verdict: str) -> list[str]:
    """A verdict's sentences."""
    return re.split(r"(?<=\.) (?=[A-Z])", verdict)


def quoted(verdict: str) -> str:
    """The verdict's first sentence, and a list of the others."""
    first, *others = sentences(verdict)
    return "\n".join([f"> **{first}**", ">", *(f"> - {sentence}" for sentence in others)])


# --- worth ----------------------------------------------------------------------------------------------


def worth_table(sheet: Sheet) -> str:
    """Outage under the rule, the learned function that validation chose, and the genie, by scenario."""
    index = {(r.candidate, r.regime, r.scenario, r.metric): r for r in sheet.rows if r.node == "network"}
    lines = [
        "| scenario | A3 | learned | outage avoided [95 %] | genie |",
        "|---|---|---|---|---|",
    ]
    for rule in sheet.select(candidate="a3", metric="outage_share", node="network"):
        where = rule.scenario
        leads = [r for r in sheet.select(metric="leads", scenario=where) if r.mean > 0]
        if not leads or index.get(("genie", "none", where, "outage_share")) is None:
            continue
        kind = leads[0].candidate, leads[0].regime
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


def worth(sheet: Sheet) -> str:
    """What README says about learned handover."""
    made_by = (
        f"From `results/worth.json`, made by `make results/worth` ({len(sheet.seeds)} test seeds; "
        "city/speed/load/cap on\nhandovers per user-minute/map). A3 and the learned function's threshold are "
        "tuned on validation seeds, the learned\nfunction hands over no more often than A3 there. "
        "`make demo` runs a small preset anew and says how few seeds it has."
    )
    picture = "![Outage avoided in every scenario, with 95 % intervals](docs/outage-cut.png)"
    return "\n\n".join([quoted(sheet.verdict), picture, worth_table(sheet), made_by])


# --- coinference ----------------------------------------------------------------------------------------


def coinference_table(sheet: Sheet) -> str:
    """Accuracy of every candidate at the reference uses, its device's energy and when it decides."""
    test, uses = sheet.config["data"][0], sheet.config["reference_uses"]
    noises = [name for name in ("noiseless", "0dB", "-4dB", "-8dB") if _accuracies(sheet, test, uses, name)]
    head = [name.replace("dB", " dB") for name in noises]
    lines = [
        f"| candidate | {' | '.join(head)} | device, 45 nm | decides after |",
        "|---|" + "---|" * (len(noises) + 2),
    ]
    first = _accuracies(sheet, test, uses, noises[0])
    for name in sorted(first, key=lambda name: -first[name].mean):
        regime = first[name].regime
        found = [_accuracies(sheet, test, uses, noise).get(name) for noise in noises]
        spent = [
            row
            for row in sheet.select(
                candidate=name, regime=regime, metric="energy", scenario=f"{test}/uses{uses}"
            )
            if row.node.startswith("device, 45 nm")
        ]
        decided = sheet.select(
            candidate=name, regime=regime, metric="time_to_decision", scenario=f"{test}/uses{uses}/noiseless"
        )
        cells = [
            f"`{name}`",
            *(_interval(row) if row else "" for row in found),
            f"{1e6 * spent[0].mean:.2g} µJ" if spent else "",
            f"{1e3 * decided[0].mean:.0f} ms" if decided else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _accuracies(sheet: Sheet, test: str, uses: int, noise: str) -> dict[str, Row]:
    rows = sheet.select(metric="performance", scenario=f"{test}/uses{uses}/{noise}", node="edge")
    return {
        row.candidate: row for row in rows if row.regime in ("mixed" if test == "nmnist" else "simulated",)
    }


def _interval(row: Row) -> str:
    return f"{100 * row.mean:.1f} % ± {100 * (row.ci_high - row.mean):.1f}"


def coinference(sheet: Sheet) -> str:
    """What the study's documentation says about its outcome."""
    made_by = (
        f"From `results/coinference.json`, made by `make results/coinference` ({len(sheet.seeds)} seeds, "
        "each with its own fold of real\nrecordings; 95 % intervals over seeds). Device energy by "
        "arithmetic of one 45 nm process."
    )
    picture = "![Share of recordings named rightly against Es/N0](accuracy-noise.png)"
    return "\n\n".join([quoted(sheet.verdict), picture, coinference_table(sheet), made_by])


def first_sentences(count: int) -> Callable[[Sheet], str]:
    """The verdict's first sentences."""
    return lambda sheet: quoted(" ".join(sentences(sheet.verdict)[:count]))


# --- training and quality -------------------------------------------------------------------------------


def points(row: Row | None) -> str:
    """A change in points with its interval, bold where it is resolved."""
    if row is None:
        return ""
    text = f"{100 * row.mean:+.1f} [{100 * row.ci_low:+.1f}, {100 * row.ci_high:+.1f}]"
    return f"**{text}**" if row.ci_low > 0 or row.ci_high < 0 else text


def _by_scenario(rows: list[Row]) -> dict[str, dict[tuple[str, str], Row]]:
    found: dict[str, dict[tuple[str, str], Row]] = {}
    for row in rows:
        found.setdefault(row.scenario, {})[row.candidate, row.regime] = row
    return found


def training(sheet: Sheet) -> str:
    """Every effect's change of performance, function by function."""
    rows = sheet.select(metric="performance_gain", node="network")
    found = _by_scenario([row for row in rows if row.candidate != "rush hour"])
    head = [f"{scenario}" for scenario in found]
    lines = [f"| effect | {' | '.join(head)} |", "|---|" + "---|" * len(head)]
    names = dict.fromkeys(name for of in found.values() for name in of)
    for name in names:
        if name != ("own cells", "fedavg"):
            cells = [points(of.get(name)) for of in found.values()]
            lines.append(f"| {name[1]}: {name[0]} | {' | '.join(cells)} |")
    made_by = (
        f"From `results/training.json`, made by `make results/training` ({len(sheet.seeds)} seeds, 95 % "
        "intervals; points of performance against FedAvg\non the cells' own data, bold where resolved)."
    )
    return "\n\n".join([quoted(sheet.verdict), "\n".join(lines), made_by])


def quality(sheet: Sheet) -> str:
    """Every candidate's performance, and the network's gain over the rule, function by function."""
    gains = _by_scenario(sheet.select(metric="rule_gain", node="network"))
    reached = _by_scenario(sheet.select(metric="performance", node="network"))
    lines = []
    for scenario, of in gains.items():
        lines += [f"| {scenario} | performance | network's KPI against the rule's |", "|---|---|---|"]
        for name, gain in of.items():
            change = points(gain).replace("]", "] %")
            lines.append(f"| {name[0]} | {percent(reached[scenario][name], 1)} | {change} |")
        lines.append("")
    made_by = (
        f"From `results/quality.json`, made by `make results/quality` ({len(sheet.seeds)} test seeds, 95 % "
        "intervals, bold where resolved)."
    )
    return "\n\n".join([quoted(sheet.verdict), "\n".join(lines).strip(), made_by])


PARTS = (
    Part("README.md", "worth", worth),
    Part("README.md", "coinference", first_sentences(3)),
    Part("README.md", "beams", first_sentences(4)),
    Part("README.md", "csi", first_sentences(4)),
    Part("README.md", "training", first_sentences(1)),
    Part("README.md", "quality", first_sentences(1)),
    Part("docs/learning.md", "training", training),
    Part("docs/learning.md", "quality", quality),
    Part("docs/coinference-study.md", "coinference", coinference),
)
PICTURES = (("worth", "outage-cut"), ("coinference", "accuracy-noise"))
"""Study and figure of its report that docs/ show."""


def main() -> None:
    """Writes every part and picture."""
    sheets = {part.study: Sheet.load(ROOT / "results" / f"{part.study}.json") for part in PARTS}
    for part in PARTS:
        path = ROOT / part.document
        path.write_text(
            part.refreshed(path.read_text(encoding="utf-8"), sheets[part.study]), encoding="utf-8"
        )
    for study, figure in PICTURES:
        with tempfile.TemporaryDirectory() as folder:
            write_report([sheets[study]], Path(folder))
            picture = (Path(folder) / "figures" / f"{figure}.png").read_bytes()
        (ROOT / "docs" / f"{figure}.png").write_bytes(picture)
    sys.stdout.write("README.md and docs/ say what the sheets in results/ say\n")


if __name__ == "__main__":
    main()
