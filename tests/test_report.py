"""The report: one self-contained page, its tables and figures, of any sheet whatever stands in it."""

import csv
import math
import random
import re
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from worth_page import Page, made_row, small, worth_sheet

from defiance.errors import DefianceError
from defiance.kpm import METRICS, Curve, Sheet
from defiance.report import comparison, summary_rows, write_report


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
        made_row(EVIL, EVIL, EVIL, EVIL, "outage_share", 0.02),
        made_row(EVIL, EVIL, EVIL, EVIL, "outage_cut", 0.2),
        made_row("a3", "none", EVIL, EVIL, "outage_share", 0.03),
        made_row(EVIL, EVIL, EVIL, EVIL, EVIL, 3.0, unit=EVIL),
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


def test_study_without_curves_leaves_sections_out(tmp_path):
    page = Page(
        write_report(
            [small([made_row("model", "none", "here", "edge", "inference_latency", 0.0123)])], tmp_path
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
    page = Page(write_report([replace(small(curves=never), study="worth")], tmp_path).read_text())
    assert "never" in page.text


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


def test_report_takes_one_or_two_sheets(sheet, tmp_path):
    for sheets in ([], [sheet] * 3):
        with pytest.raises(DefianceError, match="one sheet or two"):
            write_report(sheets, tmp_path)


def test_unwritable_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DefianceError, match="file"):
        write_report([small()], tmp_path / "file")


def test_a_study_without_a_story_of_its_own_shows_what_it_reached_and_spent(tmp_path):
    rows = [
        made_row("type-i", "none", "munich", "network", "performance", 0.6),
        made_row("codec", "central", "munich", "network", "performance", 0.8),
        made_row("codec", "central", "munich", "training", "training_operations", 2e12),
        made_row("codec", "central", "munich", "training", "energy", 3.0),
        made_row("codec", "central", "munich", "device", "energy", 0.5),
    ]
    curve = Curve("sgcs", "codec", "central", "munich", "bits", "bit", "sgcs", "1", (32.0, 64.0), (0.7, 0.8))
    sheet = small(rows, [curve], study="csi")
    page = Page(write_report([sheet], tmp_path).read_text())
    assert "Is learned channel feedback worth its cost?" in page.text
    assert [
        text for text in ("In pictures", "What it achieves", "What it costs") if text not in page.text
    ] == []
    assert "OpenStreetMap" in page.text
    assert dict((label, value) for label, value, _ in summary_rows(sheet))["Best of 1 learned"] == "0.800"
    energy = (tmp_path / "tables" / "costs-munich.csv").read_text()
    assert "energy, devices: mean" in energy
    assert "energy, training: mean" in energy
