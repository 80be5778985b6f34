import csv
import math
import random
import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defiance.errors import DefianceError
from defiance.kpm import METRICS, Curve, Row, Sheet
from defiance.report import comparison, drawing, summary_rows, tables, words, write_report
from defiance.report.worth.view import View

REGIMES = ("local", "federated", "central")
LEARNED = ("learned-station", "learned-device")
CELLS = ((30, 50), (30, 100), (50, 50), (50, 100))
OUTAGE = {(3, 50): 0.0013, (30, 50): 0.0247, (30, 100): 0.0475, (50, 50): 0.0345, (50, 100): 0.062}
CUTS = {
    ("learned-station", "local"): -0.05,
    ("learned-station", "federated"): 0.26,
    ("learned-station", "central"): 0.29,
    ("learned-device", "local"): 0.04,
    ("learned-device", "federated"): 0.33,
    ("learned-device", "central"): 0.37,
}


def row(
    candidate, regime, scenario, node, metric, mean, half=None, n=24, provenance="counted", unit=None
) -> Row:
    half = abs(mean) * 0.08 if half is None else half
    low, high = (
        (mean - half, mean + half) if math.isfinite(half) and math.isfinite(mean) else (math.nan, math.nan)
    )
    unit = METRICS[metric].unit if unit is None else unit
    return Row(candidate, regime, scenario, node, metric, unit, mean, low, high, n, provenance)


def case_rows(place: str, speed: int, load: int, cap: int, map_name: str, kinds) -> Iterator[Row]:
    """Rows of one scenario: the rule, the genie, and learned candidates (name, regime, cut, half-width)."""
    scenario = f"{place}/{speed}kmh/load{load}/cap{cap}/{map_name}"
    base = OUTAGE[speed, load] * (1.0 if cap == 8 else 0.82) * (1.0 if map_name == "raw" else 0.42)
    base *= {"florence": 1.3}.get(place, 1.0)
    for candidate, regime, cut, half in (("a3", "none", 0.0, None), ("genie", "none", 0.72, None), *kinds):
        share = base * (1 - cut)
        less = 0.0 if candidate == "a3" else 0.1
        found = [
            ("network", "outage_share", share, None, "measured"),
            ("network", "handovers_per_user_minute", cap - 0.05 - less, None, "measured"),
            ("network", "ping_pongs_per_user_hour", 31.0 - 60 * less, None, "measured"),
            ("network", "failures_per_user_hour", share * 140, None, "measured"),
            ("network", "throughput", 3.1e6 * (1 - share), None, "measured"),
            ("network", "energy_per_bit", 4.2e-6 * (1 + share), None, "modelled"),
            ("network", "energy", 1.9e7 * (1 - share / 9), None, "modelled"),
            ("device", "energy", 2100.0 * (1 + less), None, "modelled"),
            ("base-station", "energy", 700.0 * (1 + less), None, "modelled"),
        ]
        if half is not None:
            at_station = candidate == "learned-station"
            bits = (9.1e9 if at_station else 2.2e9) * (0.02 if regime == "local" else 1)
            price = 1 / cut if cut > 0 else math.inf
            found += [
                ("network", "outage_cut", cut, half, "measured"),
                (
                    "network",
                    "break_even_time",
                    6.1e5 if cut > 0.3 and speed == 50 else math.inf,
                    None,
                    "modelled",
                ),
                ("network", "joules_per_avoided_outage_second", 14.0 * price, None, "modelled"),
                ("network", "bits_per_avoided_outage_second", 5.2e4 * price, None, "counted"),
                ("network", "inference_latency", 0.0145 if at_station else 0.0061, 2e-4, "modelled"),
                ("backhaul", "communication_bits", bits, None, "counted"),
            ]
        for node, metric, mean, half_width, provenance in found:
            yield row(candidate, regime, scenario, node, metric, mean, half_width, provenance=provenance)


def worth_rows() -> Iterator[Row]:
    for map_name in ("raw", "smooth"):
        for cap in (8, 12):
            for speed, load in CELLS:
                shrink = (
                    (1.0 if map_name == "raw" else 0.7) * (1.0 if cap == 8 else 0.93) * (1 - 0.0008 * load)
                )
                kinds = [(*kind, cut * shrink, 0.04) for kind, cut in CUTS.items()]
                yield from case_rows("munich", speed, load, cap, map_name, kinds)
        slow = [(*kind, cut * 0.1, 0.11) for kind, cut in CUTS.items()]
        yield from case_rows("munich", 3, 50, 8, map_name, slow)
    central = [(name, "central", CUTS[name, "central"] * 0.9, 0.06) for name in LEARNED]
    for speed, load in CELLS:
        yield from case_rows("munich-unseen", speed, load, 8, "raw", central)
        tuned = [
            (name, regime, CUTS[name, "central"] * share, 0.07)
            for regime, share in (("central", -0.4), ("finetuned-last", 0.1), ("finetuned-whole", 0.7))
            for name in LEARNED
        ]
        yield from case_rows("florence", speed, load, 8, "raw", tuned)
    for name in LEARNED:
        for regime in REGIMES:
            operations = {"local": 4.1e12, "federated": 3.2e13, "central": 2.9e13}[regime]
            yield row(
                name,
                regime,
                "munich",
                "base-station",
                "training_operations",
                operations if regime != "local" else math.nan,
                math.nan,
            )
            yield row(name, regime, "munich", "base-station", "inference_operations", 2.41e5, 0)
            yield row(name, regime, "munich", "base-station", "inference_parameters", 119_808, 0)
            yield row(name, regime, "munich", "base-station", "cpu_time", 84.0, provenance="measured")
    yield row("a3", "none", "munich", "base-station", "tuning_operations", 8.3e9, 0)
    yield row("a3", "none", "munich", "base-station", "inference_operations", 42, 0)


AXES = {
    "front": ("handovers_per_user_minute", "1/min", "outage_share", "1"),
    "sinr_cdf": ("sinr", "dB", "share", "1"),
    "throughput_cdf": ("throughput", "bit/s", "share", "1"),
    "learning": ("energy", "J", "validation_loss", "1"),
    "learning_bits": ("communication_bits", "bit", "validation_loss", "1"),
    "break_even": ("users", "1", "break_even_time", "s"),
    "failure_places": ("x", "m", "y", "m"),
    "buildings": ("x", "m", "y", "m"),
    "sites": ("x", "m", "y", "m"),
}


def curve(name, candidate, regime, scenario, *columns) -> Curve:
    x, y, low, high = (tuple(map(float, column)) for column in (*columns, (), ())[:4])
    return Curve(name, candidate, regime, scenario, *AXES[name], x, y, low or None, high or None)


def worth_curves() -> Iterator[Curve]:
    rng = np.random.default_rng(7)
    names = (("a3", "none"), ("learned-station", "central"), ("learned-device", "central"), ("genie", "none"))
    for map_name in ("raw", "smooth"):
        for speed, load in (*CELLS, (3, 50)):
            scenario = f"munich/{speed}kmh/load{load}/{map_name}"
            base = OUTAGE[speed, load] * (1.0 if map_name == "raw" else 0.42)
            for kind, share in zip(names, (1.0, 0.72, 0.64, 0.28), strict=True):
                x = np.linspace(2.0, 22.0, 25)
                y = base * share * (0.6 + 3.0 / x)
                yield curve(
                    "front", *kind, scenario, x, y, *((y * 0.93, y * 1.07) if kind[0] != "genie" else ())
                )
            if map_name == "raw":
                share = np.concatenate([np.geomspace(1e-4, 0.01, 40), np.linspace(0.012, 1.0, 80)])
                for kind, shift in ((names[0], 0.0), (names[2], 1.2)):
                    sinr = 6.5 + 7.6 * np.log10(share / (1.0001 - share)) + shift * (1 - share)
                    yield curve("sinr_cdf", *kind, scenario, sinr, share)
                    yield curve(
                        "throughput_cdf", *kind, scenario, 2e6 * share**0.45 * 10 ** (shift / 10), share
                    )
    for name in LEARNED:
        for regime, end, bits, floor in (
            ("local", 900.0, 0.0, 0.31),
            ("federated", 5200.0, 2.1e9, 0.22),
            ("central", 4600.0, 9.1e9, 0.2),
        ):
            progress = np.linspace(0.03, 1.0, 30)
            loss = floor + 0.25 * np.exp(-5 * progress) + rng.normal(0, 0.002, 30)
            yield curve("learning", name, regime, "munich", end * progress, loss)
            yield curve("learning_bits", name, regime, "munich", bits * progress, loss)
        users = np.array([10, 30, 100, 300, 1000, 3000, 10000])
        saved_w = (0.004 if name == "learned-device" else 0.0012) * users - 0.3
        after_s = np.where(saved_w > 0, 4600 / np.maximum(saved_w, 1e-12), np.inf)
        latest_s = np.where(saved_w > 1, 1.6 * after_s, np.inf)
        scenario = "munich/50kmh/load100/raw"
        yield curve("break_even", name, "central", scenario, users, after_s, 0.7 * after_s, latest_s)
    xs, ys = [], []
    for i in range(12):
        for j in range(12):
            x0, y0 = -480 + 80 * i + rng.uniform(4, 18), -480 + 80 * j + rng.uniform(4, 18)
            w, h = rng.uniform(30, 58, 2)
            xs += [x0, x0 + w, x0 + w, x0, x0, math.nan]
            ys += [y0, y0, y0 + h, y0 + h, y0, math.nan]
    yield curve("buildings", "", "none", "munich", xs, ys)
    yield curve("sites", "", "none", "munich", rng.uniform(-400, 400, 7), rng.uniform(-400, 400, 7))
    for kind, count in ((names[0], 620), (names[2], 400)):
        along = rng.uniform(-480, 480, count)
        across = rng.integers(0, 12, count) * 80 - 480 + rng.normal(0, 3, count)
        flip = rng.random(count) < 0.5
        x, y = np.where(flip, along, across), np.where(flip, across, along)
        yield curve("failure_places", *kind, "munich/50kmh/load100/cap12/raw", x, y)


def worth_sheet() -> Sheet:
    """A sheet as the study `worth` makes it, with invented numbers."""
    return Sheet(
        study="worth",
        version="0.1.0",
        config={
            "scene": "munich",
            "users": 300,
            "radio": {"bandwidth_hz": 20e6, "qout_db": -8.0},
            "caps": [8, 12],
        },
        seeds=tuple(range(8)),
        machine={"cpu": "a processor", "cores": 2, "python": "3.11.2", "torch": "2.13.0+cpu"},
        made_by="defiance run worth --preset full",
        rows=tuple(worth_rows()),
        curves=tuple(worth_curves()),
        verdict=(
            "Worth it at 30 and 50 km/h, not worth it on foot: trained centrally and run on the device, it "
            "cuts outage by a third at no more handovers. At 3 km/h there is next to nothing to gain. Energy "
            "pays back only at 50 km/h and above 300 users; elsewhere it is bought for fewer outages."
        ),
    )


class Page(HTMLParser):
    """Tags, ids, addresses and text of a page; every tag that is opened must be closed."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "data") or name.startswith("on"):
                self.addresses.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


@pytest.fixture(scope="module")
def sheet() -> Sheet:
    return worth_sheet()


@pytest.fixture(scope="module")
def folder(sheet, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    start = time.process_time()
    path = write_report([sheet], folder)
    assert path == folder / "report.html"
    assert time.process_time() - start < 10
    return folder


@pytest.fixture(scope="module")
def page(folder) -> Page:
    return Page((folder / "report.html").read_text())


def small(rows=(), curves=(), **changes) -> Sheet:
    """A sheet of a study that the report knows nothing about."""
    made = Sheet(
        "other", "1", {}, (1,), {}, "defiance run other", tuple(rows), tuple(curves), "Not worth it."
    )
    return replace(made, **changes)


def test_page_is_self_contained(page, folder):
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert all(address.startswith("#") for address in page.addresses)
    assert {address[1:] for address in page.addresses} <= set(page.ids)
    text = (folder / "report.html").read_text()
    assert "url(http" not in text and "@import" not in text
    assert len(text) < 1.5e6


def test_ids_are_unique_and_figures_have_names(page, folder):
    assert len(page.ids) == len(set(page.ids))
    text = (folder / "report.html").read_text()
    for label in re.findall(r'<svg [^>]*aria-labelledby="([^"]+)"', text):
        assert label in page.ids
    assert text.count("<svg ") == text.count('role="img"')


def test_page_answers_the_question(page, sheet):
    text = page.text
    assert "Is learned handover worth its cost in Munich?" in text
    for sentence in sheet.verdict.split(". "):
        assert sentence.rstrip(".") in text
    for title in (
        "What the network gains",
        "What it costs",
        "Where to train",
        "What it does to the network",
        "Where links fail",
        "When it pays back",
        "Does it carry over?",
        "The whole sheet",
        "How this was made",
        "Definitions",
    ):
        assert title in text
    assert METRICS["outage_share"].definition in text
    assert "OpenStreetMap" in text and sheet.made_by in text and "never" in text


def test_every_row_stands_on_the_page_and_in_the_csv(folder, sheet):
    with (folder / "tables" / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(sheet.rows)
    for written, row in zip(rows, sheet.rows, strict=True):
        assert written["metric"] == row.metric
        assert float(written["mean: mean"]) == row.mean or math.isnan(row.mean)


def test_unresolved_and_worse_are_said_in_words(folder):
    gain = (folder / "tables" / "gain-munich-traced-map.tex").read_text()
    assert gain.count("(not resolved)") == 2  # 3 km/h, both placements
    away = (folder / "tables" / "generalisation-florence-traced-map.tex").read_text()
    assert away.count("(worse)") == 8 and away.count("(not resolved)") == 8


def test_files_for_papers(folder):
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert {"outage-cut", "fronts-munich-traced-map", "learning", "sinr-cdf", "break-even"} <= names
    for path in (folder / "figures").glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        ids = [element.get("id") for element in root.iter() if element.get("id")]
        assert len(ids) == len(set(ids))
        assert (path.with_suffix(".png")).read_bytes().startswith(b"\x89PNG")
    for path in (folder / "tables").glob("*.tex"):
        body = path.read_text()
        columns = len(re.search(r"begin{tabular}{([lr]+)}", body)[1])
        lines = [line for line in body.splitlines() if line.endswith(r" \\")]
        assert all(len(re.findall(r"(?<!\\)&", line)) == columns - 1 for line in lines)


def test_same_sheet_same_bytes(folder, sheet, tmp_path):
    curves = {curve.name: curve for curve in sheet.curves}
    few = replace(sheet, rows=sheet.rows[:200], curves=tuple(curves.values()))
    random.seed(1)
    write_report([few], tmp_path / "a")
    random.seed(2)
    write_report([few], tmp_path / "b")
    paths = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(paths) > 10
    for path in paths:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path


EVIL = "<script>alert(1)</script>\"'&$x^2$\\<!--\x00\u202e../../\ud800"


def test_nothing_in_a_sheet_is_trusted(tmp_path):
    rows = [
        row(EVIL, EVIL, EVIL, EVIL, "outage_share", 0.02),
        row(EVIL, EVIL, EVIL, EVIL, "outage_cut", 0.2),
        row("a3", "none", EVIL, EVIL, "outage_share", 0.03),
        row(EVIL, EVIL, EVIL, EVIL, EVIL, 3.0, unit=EVIL),
    ]
    point = (1.0, 2.0, 3.0)
    names = (
        "front",
        "sinr_cdf",
        "throughput_cdf",
        "learning",
        "learning_bits",
        "failure_places",
        "break_even",
    )
    curves = [Curve(name, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, point, point) for name in names]
    texts = {"study": EVIL, "version": EVIL, "made_by": EVIL, "verdict": EVIL}
    evil = small(rows, curves, config={EVIL: {EVIL: [EVIL]}}, machine={EVIL: EVIL}, **texts)
    for number, sheets in enumerate(([evil], [evil, replace(evil, rows=evil.rows[:2])])):
        folder = tmp_path / str(number)
        text = write_report(sheets, folder).read_text()
        page = Page(text)
        assert "script" not in page.tags
        assert all(address.startswith("#") for address in page.addresses)
        assert "<script>alert(1)</script>" in page.text
        for path in folder.rglob("*"):
            assert folder in path.resolve().parents or path == folder
            assert re.fullmatch(r"[a-z0-9-]+(\.[a-z]+)?", path.name)
        for path in (folder / "figures").glob("*.svg") if number == 0 else ():
            ElementTree.parse(path)


def test_formulas_are_defused_in_csv():
    table = tables.table(
        "t", "", ("=head", "value"), [(tables.name("=1+1"), tables.Cell("3", values=(-3.0, 0, 0)))]
    )
    assert tables.to_csv(table).splitlines() == [
        "'=head,value: mean,value: low,value: high",
        "'=1+1,-3.0,0,0",
    ]


def test_study_without_curves_leaves_sections_out(tmp_path):
    page = Page(
        write_report(
            [small([row("model", "none", "here", "edge", "inference_latency", 0.0123)])], tmp_path
        ).read_text()
    )
    assert "12.3 ms" in page.text and "Not worth it." in page.text
    assert "svg" not in page.tags and "Where links fail" not in page.text
    assert not (tmp_path / "figures").exists()


def test_empty_sheet_is_a_page(tmp_path):
    page = Page(write_report([small(verdict="")], tmp_path).read_text())
    assert "The sheet gives no verdict." in page.text


@pytest.mark.parametrize(
    "kept", ["front", "sinr_cdf", "learning", "failure_places", "break_even", "buildings"]
)
def test_curves_without_rows(sheet, tmp_path, kept):
    write_report([small(curves=[curve for curve in sheet.curves if curve.name == kept][:3])], tmp_path)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ((1.0,), (math.inf,)),
        ((math.nan,), (math.nan,)),
        ((0.0, 0.0), (0.0, 0.0)),
        ((-5.0, 5.0), (1e300, -1e300)),
        ((), ()),
    ],
)
def test_degenerate_curves_draw_without_warning(sheet, tmp_path, x, y):
    names = {curve.name: curve for curve in sheet.curves}
    curves = [replace(curve, x=x, y=y, y_low=y, y_high=y) for curve in names.values()]
    write_report([replace(sheet, rows=(), curves=tuple(curves))], tmp_path)


def test_break_even_of_never_only(sheet, tmp_path):
    never = [
        replace(curve, y=(math.inf,) * len(curve.x), y_low=None, y_high=None)
        for curve in sheet.curves
        if curve.name == "break_even"
    ]
    page = Page(write_report([small(curves=never)], tmp_path).read_text())
    assert "never" in page.text


def test_headlines_are_few_and_honest(sheet):
    lines = summary_rows(sheet)
    assert 4 <= len(lines) <= 6
    found = {label: (value, detail) for label, value, detail in lines}
    value, detail = found["Outage avoided against the tuned A3 rule"]
    assert value == "31.7 to 35.5\xa0%"
    assert "Of 9 scenarios less outage in 8, not resolved in 1" in detail and "[27.7, 35.7]" in detail
    assert found["Training pays back after"][0] == "7.06\xa0days or never"


def test_headlines_without_a_gain(sheet):
    rows = tuple(
        replace(one, mean=0.0, ci_low=-0.1, ci_high=0.1) if one.metric == "outage_cut" else one
        for one in sheet.rows
    )
    value = dict((label, value) for label, value, _ in summary_rows(replace(sheet, rows=rows)))
    assert value["Outage avoided against the tuned A3 rule"] == "not resolved"
    rows = tuple(
        replace(one, mean=-0.2, ci_low=-0.3, ci_high=-0.1) if one.metric == "outage_cut" else one
        for one in sheet.rows
    )
    value = dict((label, value) for label, value, _ in summary_rows(replace(sheet, rows=rows)))
    assert value["Outage avoided against the tuned A3 rule"] == "more outage"


def test_stated_choice_of_regime_wins(sheet):
    case = words.scenario("munich/30kmh/load50/cap8/raw")
    assert View(sheet).cut(case, "learned-device").regime == "central"
    choice = row("learned-device", "federated", case.name, "network", "chosen", 1.0, 0, unit="1")
    assert View(replace(sheet, rows=(*sheet.rows, choice))).cut(case, "learned-device").regime == "federated"


def test_comparison_finds_what_changed(sheet, tmp_path):
    target = next(one for one in sheet.rows if one.metric == "outage_share")
    lower = replace(target, mean=target.mean / 2, ci_low=target.ci_low / 2, ci_high=target.ci_high / 2)
    paid = next(one for one in sheet.rows if one.mean == math.inf)
    finite = replace(paid, mean=5.0, ci_low=4.0, ci_high=6.0)
    other = replace(
        sheet,
        rows=tuple({target: lower, paid: finite}.get(one, one) for one in sheet.rows[:-1]),
        config=sheet.config | {"users": 600},
    )
    kinds = [change.kind for change in comparison.changes(sheet, other)]
    assert kinds.count("better") == 2 and kinds.count("worse") == 0
    page = Page(write_report([sheet, other], tmp_path).read_text())
    assert f"2 of {len(sheet.rows) - 1} shared rows changed." in page.text
    assert "config.users 300 600" in page.text and "1 rows in A only" in page.text
    assert Page(write_report([other, sheet], tmp_path).read_text()).text.count("worse") >= 2


def test_comparison_interval_is_that_of_independent_means():
    a, b = row("c", "r", "s", "n", "throughput", 10.0, 3.0), row("c", "r", "s", "n", "throughput", 16.0, 4.0)
    (change,) = comparison.changes(small([a]), small([b]))
    assert (change.difference.mean, change.difference.ci_low, change.difference.ci_high) == (6.0, 1.0, 11.0)
    assert change.kind == "better"
    (change,) = comparison.changes(small([a]), small([replace(b, ci_high=30.0, ci_low=2.0)]))
    assert change.kind == "same"


def test_report_takes_one_or_two_sheets(sheet, tmp_path):
    for sheets in ([], [sheet] * 3):
        with pytest.raises(DefianceError, match="one sheet or two"):
            write_report(sheets, tmp_path)


def test_unwritable_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DefianceError, match="file"):
        write_report([small()], tmp_path / "file")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0203, "1", "2.03 %"),
        (2.9e13, "op", "29.0 T op"),
        (42.0, "op", "42.0 op"),
        (119808.0, "parameters", "119 808"),
        (7.95, "1/min", "7.95/min"),
        (4.3e-6, "J/bit", "4.30 µJ/bit"),
        (0.0061, "s", "6.10 ms"),
        (90.0, "s", "90.0 s"),
        (7200.0, "s", "2.00 h"),
        (6.1e5, "s", "7.06 days"),
        (math.inf, "s", "never"),
        (math.inf, "J/s", "∞"),
        (math.nan, "op", "not converged"),
        (math.nan, "s", "no value"),
        (0.0, "bit", "0 bit"),
        (-0.04, "1", "−4.00 %"),
        (999.6e6, "bit", "1.00 Gbit"),
    ],
)
def test_numbers_read_well(value, unit, text):
    assert re.sub(r"\s", " ", words.number(value, unit)) == text


def test_intervals_share_the_scale_of_their_mean():
    assert words.interval(0.004, -0.106, 0.114, "1") == ("0.4\xa0%", "[−10.6, 11.4]")
    assert words.interval(999.0, 998.0, 1001.0, "J") == ("999\xa0J", "[998, 1\u202f001]")
    assert words.interval(3600.0, 1800.0, math.inf, "s") == ("60.0\xa0min", "[30.0, never]")
    assert words.interval(math.inf, 1800.0, math.inf, "s") == ("never", "[30.0, never]\xa0min")
    assert words.interval(5.0, math.nan, math.nan, "J") == ("5.00\xa0J", "")


@given(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(["1", "s", "J", "op", "bit/s", "1/h", "x", ""]),
)
@settings(max_examples=300, deadline=None)
def test_any_number_can_be_written(value, unit):
    assert words.number(value, unit)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_scenario_name_is_read(name):
    case = words.scenario(name)
    assert case.name == name and isinstance(case.label, str)


def test_scenario_names():
    case = words.scenario("munich-unseen/2.5kmh/load50/cap8/smooth")
    assert (case.city, case.speed_kmh, case.load_percent, case.cap, case.map) == (
        "munich-unseen",
        2.5,
        50,
        8,
        "smooth",
    )
    assert (
        re.sub(r"\s", " ", case.label) == "Munich, unseen streets, smoothed map: 2.5 km/h, load 50 %, cap 8"
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(deadline=None)
def test_labels_are_spread(heights):
    placed = drawing.spread(sorted(heights), 0.1)
    assert all(b - a >= 0.1 - 1e-9 for a, b in zip(placed, placed[1:], strict=False))
    assert placed[-1] <= 1 + 1e-9


def test_latex_is_escaped():
    assert tables.tex("50 % & [a_b] $x$ \\") == r"50 \% \& {[}a\_b{]} \$x\$ \textbackslash{}"
