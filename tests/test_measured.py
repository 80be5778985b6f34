"""Functions on measured drives: decisions at the ticks that the RSRP says, compared with the network's."""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from test_drives import GOOD, TRACES, changed, write
from test_onnx import graph_of, saved

from defiance import cli
from defiance.control.handover import A3
from defiance.control.measured import (
    Decisions,
    Visit,
    agreement,
    around,
    asked,
    of_function,
    of_network,
    visits_of,
)
from defiance.control.onnx_exchange import load
from defiance.errors import DefianceError
from defiance.kpm import Sheet, mean_interval
from defiance.parts import Parts
from defiance.scene.drives import read_drive, read_drives
from defiance.studies import Silent
from defiance.studies.replay import Config, ratio_samples, run

PERIOD_S = 0.1
TWO = torch.tensor([[0, 1]])
Rows = Sequence[tuple[float, int, str, str]]


def row(second: float, cell: int, own: str, other: str, mode: str = "LTE") -> str:
    clock = datetime(2026, 1, 5, 8) + timedelta(seconds=second)
    values = {"Timestamp": f"{clock:%Y.%m.%d_%H.%M.%S}", "RAWCELLID": str(cell), "RSRP": own}
    line = GOOD
    for column, value in {**values, "NRxRSRP": other, "NetworkMode": mode}.items():
        line = changed(column, value, line)
    return line


def crossing(late: int = 0, from_dbm: float = -110) -> list[str]:
    """Cell 1 stays at -90 dBm, cell 2 rises by 1 dB/s through it at 20 s; handed over at 25 + late."""
    rows = [row(t, 1, "-90", f"{from_dbm + t}") for t in range(25 + late)]
    return rows + [row(t, 2, f"{from_dbm + t}", "-90") for t in range(25 + late, 40)]


def visits(tmp_path: Path, *rows: str, follow_s: float = 5.0) -> tuple[Visit, ...]:
    return visits_of([read_drive(write(tmp_path / "drive.csv", *rows))], PERIOD_S, follow_s)


def test_a_visit_goes_on_from_the_other_side(tmp_path):
    first, second = visits(tmp_path, *crossing())
    assert (first.stayed, len(first.own_dbm), first.handed_over, first.returned) == (250, 300, True, False)
    assert first.own_dbm.tolist() == [-90.0] * 300
    assert first.gain_db.tolist() == [math.floor(tick / 10) - 20 for tick in range(300)]
    assert (second.stayed, len(second.own_dbm), second.handed_over) == (150, 150, False)


@pytest.mark.parametrize(
    ("between", "found"),
    [
        ([], [(30, True), (30, False)]),
        ([row(3, 9, "-70", "-90", "UMTS")], [(30, False), (20, False)]),  # another technology's cell
        ([row(3, 2, "-", "-")], [(40, True), (20, False)]),  # a row without RSRP: the last one stands
        ([row(2, 2, "-70", "-90")], [(20, True), (40, False)]),  # the last row of a second counts
    ],
)
def test_gaps_are_no_handovers(tmp_path, between, found):
    rows = [row(t, 1, "-90", "-95") for t in range(3)] + between
    after = 4 if between and "UMTS" in between[0] or between and "-,-12" in between[0] else 3
    rows += [row(t, 2, "-80", "-90") for t in range(after, 6)]
    assert [(visit.stayed, visit.handed_over) for visit in visits(tmp_path, *rows)] == found


def test_ten_silent_seconds_are_a_gap(tmp_path):
    for pause, over in ((10, True), (11, False)):
        first, _ = visits(tmp_path, row(0, 1, "-90", "-95"), row(pause, 2, "-80", "-90"))
        assert (first.handed_over, first.stayed) == (over, 100 if over else 10)


@pytest.mark.parametrize(
    ("offset_db", "lead_s", "outcome"), [(0.0, 4.0, "earlier"), (2.0, 2.0, "earlier"), (6.0, -2.0, "later")]
)
def test_a3_decides_when_the_difference_passes_its_offset(tmp_path, offset_db, lead_s, outcome):
    """d(t) = floor(t) - 20 > offset first holds at t = 21 + offset; the network waits until 25 s."""
    seen = visits(tmp_path, *crossing())
    rule = A3(offset_db, 0.0, 0.0, 0.0)
    leaves = asked(rule, seen, TWO, 2)
    found = agreement(seen, leaves, PERIOD_S, 5.0)
    assert (found.seen.item(), found.agreed.item()) == (1, 1)
    assert getattr(found, outcome).item() == 1 and found.earlier + found.later == 1
    assert found.lead_s.item() == pytest.approx(lead_s)
    near_s = 25.0 - (21 + offset_db - 5) if outcome == "earlier" else 0.0
    assert found.near_minutes.item() == pytest.approx(near_s / 60)
    decided = of_function(rule, seen, leaves, TWO, 2, PERIOD_S, 5.0)
    assert decided.minutes.item() == pytest.approx(40 / 60)
    if outcome == "earlier":  # over five seconds: offset + 1 ... offset + 5
        assert (decided.count.item(), decided.returns.item(), found.confirmed.item()) == (1, 0, 1)
        assert decided.gain_db.item() == pytest.approx(offset_db + 3)
    else:
        assert decided.count.item() == 0 and math.isnan(ratio_samples(decided.gain_db, decided.gains)[0])


def test_who_asks_long_before_or_never_does_not_agree(tmp_path):
    seen = visits(tmp_path, *crossing(late=7))
    found = [agreement(seen, asked(A3(o, 0.0, 0.0, 0.0), seen, TWO, 2), PERIOD_S, 5.0) for o in (0.0, 20.0)]
    assert [(f.agreed.item(), f.earlier.item(), f.later.item()) for f in found] == [(0, 1, 0), (0, 0, 0)]


def test_settings_run_as_worlds_and_batches_change_nothing(tmp_path):
    """Three offsets at once, in visits of very different lengths, are three runs of one visit each."""
    seen = [*visits(tmp_path, *crossing()), *visits(tmp_path, *crossing()[15:32])]
    offsets = torch.tensor([0.0, 2.0, 4.0])
    together = asked(A3(offsets, 0.0, 0.0, 0.0), seen, TWO.expand(3, 2), 2)
    for visit, leave in zip(seen, together, strict=True):
        for world, offset_db in enumerate(offsets.tolist()):
            (alone,) = asked(A3(offset_db, 0.0, 0.0, 0.0), [visit], TWO, 2)
            assert (alone[0] == leave[world]).all()


def test_ways_back_of_the_network_and_of_a_rule(tmp_path):
    """The other cell is 6 dB stronger for three seconds, then 6 dB weaker."""
    rows = [row(t, 1, "-90", "-96") for t in range(10)] + [row(t, 1, "-90", "-84") for t in range(10, 13)]
    seen = visits(tmp_path, *rows, *(row(t, 1, "-90", "-96") for t in range(13, 30)))
    for offset_db, back in ((3.0, 1), (8.0, 0)):
        rule = A3(offset_db, 0.0, 0.0, 0.0)
        decided = of_function(rule, seen, asked(rule, seen, TWO, 2), TWO, 2, PERIOD_S, 5.0)
        assert (decided.count.item(), decided.returns.item()) == (back, back)
    for stay, back in ((4, 1), (6, 0)):
        rows = [row(t, 1 if t < 10 or t >= 10 + stay else 2, "-90", "-96") for t in range(30)]
        network = of_network(visits(tmp_path, *rows), PERIOD_S, 5.0)
        assert (network.count.item(), network.returns.item(), network.gain_db.item()) == (2, back, 12.0)


def test_a_neighbour_that_was_not_measured_is_never_asked_for(tmp_path):
    rows = [row(t, 1, "-120", "-") for t in range(10)] + [row(t, 2, "-80", "-") for t in range(10, 20)]
    seen = visits(tmp_path, *rows)
    leaves = asked(A3(0.0, 0.0, 0.0, 0.0), seen, TWO, 2)
    assert not any(leave.any() for leave in leaves) and not seen[0].seen
    decided = of_network(seen, PERIOD_S, 5.0)
    assert (decided.count.item(), decided.gains.item()) == (1, 0)


def strongest(path: Path) -> Path:
    """An ONNX function of three cells that asks for the strongest."""
    text = "last = Gather <axis = 1> (rsrp_dbm, newest) target = ArgMax <axis = 1, keepdims = 0> (last)"
    model = graph_of(text, {"newest": np.array(-1)})
    return saved(path, model)


def test_an_onnx_function_of_more_cells_decides_as_the_rule(tmp_path):
    """Whichever of its cells stand for the two (ArgMax takes the first of equals)."""
    seen = visits(tmp_path, *crossing())
    function = load(strongest(tmp_path / "f.onnx"))
    wanted = asked(A3(0.0, 0.0, 0.0, 0.0), seen, TWO, 2)
    found = asked(function, seen, torch.tensor([[0, 1], [0, 2], [1, 2]]), 3)
    for ours, theirs in zip(wanted, found, strict=True):
        assert (theirs == ours).all() and len(theirs) == 3


def test_about_a_handover(tmp_path):
    seen = visits(tmp_path, *crossing())
    time_s, asking, gain_db = around(seen, asked(A3(0.0, 0.0, 0.0, 0.0), seen, TWO, 2), PERIOD_S, 5.0)
    assert (time_s[0], len(time_s)) == (-5.0, 100)
    assert asking.tolist() == [0.0] * 10 + [1.0] * 90
    assert gain_db[[0, 49, 50, 99]].tolist() == [0.0, 4.0, 5.0, 9.0]


def test_ratios_over_drives():
    above, below = np.array([1.0, 4.0, 1.0]), np.array([2.0, 4.0, 6.0])
    mean, low, high = mean_interval(ratio_samples(above, below))
    assert mean == pytest.approx(6 / 12) and low < mean < high
    even = mean_interval(ratio_samples(above, np.full(3, 2.0)))
    assert even == pytest.approx(mean_interval(above / 2))
    assert np.isnan(ratio_samples(above, np.zeros(3))).all()


# --- the study ---


@pytest.fixture
def drives(tmp_path: Path) -> Path:
    folder = tmp_path / "my"
    folder.mkdir()
    for late in range(3):
        write(folder / f"drive{late}.csv", *crossing(late, -110.5))
    return folder


def test_the_command_replays_a_function_beside_rules(drives, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    strongest(Path("f.onnx"))
    options = ["--set", "traces=my", "--set", "function=f.onnx", "--set", "offsets_db=2,20", "--out", "out"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "replay", *options])
    assert ended.value.code == 0, capsys.readouterr().err
    sheet = Sheet.load(Path("out/sheet.json"))
    assert sheet.value("decisions_per_minute", candidate="network", regime="none").mean == pytest.approx(1.5)
    lead = sheet.value("lead_time", candidate="a3-2dB")
    assert (lead.mean, lead.n) == (pytest.approx(3.0), 3)  # 2, 3 and 4 s
    assert sheet.value("agreement_share", candidate="function").mean == pytest.approx(2 / 3)  # 4, 5, 6 s
    fewer = sheet.value("decisions_per_minute", candidate="a3-20dB", regime="less the network")
    assert fewer.mean == pytest.approx(-1.5)
    assert not sheet.select(metric="rsrp_gain", candidate="a3-20dB")
    assert "the network made 3 handovers" in sheet.verdict and "A3 with 2 dB asks for 100 %" in sheet.verdict
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "What a replay can" in page and "A3, 20" in page and Path("out/figures/decisions.png").exists()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "give --set traces=FOLDER"),
        ({"traces": "my/drive0.csv", "offsets_db": ()}, "nobody to judge"),
        ({"traces": "my", "offsets_db": (1.0, 1.0)}, "twice"),
        ({"traces": "my", "function": "my"}, "my: cannot be read: Is a directory"),
        ({"traces": "alone.csv"}, "alone.csv: no drive has a handover"),
        ({"traces": "umts.csv"}, "umts.csv: no drive has a handover"),
    ],
)
def test_what_cannot_be_replayed_is_one_line(drives, tmp_path, monkeypatch, settings, problem):
    monkeypatch.chdir(tmp_path)
    write(Path("alone.csv"), row(0, 1, "-90", "-95"))
    write(Path("umts.csv"), *(row(t, t, "-90", "-95", "UMTS") for t in range(3)))
    with pytest.raises(DefianceError, match=problem):
        run(Config(**settings), seeds=(0,), parts=Parts(tmp_path), progress=Silent())


@pytest.mark.skipif(not TRACES.is_dir(), reason="no data")
def test_the_measured_drives():
    """A lower offset asks more often; the network hands over without regard to RSRP alone."""
    seen = visits_of(read_drives(TRACES)[:4], PERIOD_S, 5.0)
    network = of_network(seen, PERIOD_S, 5.0)
    decided: list[Decisions] = []
    for offset_db in (0.0, 2.0, 4.0):
        rule = A3(offset_db, 0.0, 0.0, 0.0)
        decided.append(of_function(rule, seen, asked(rule, seen, TWO, 2), TWO, 2, PERIOD_S, 5.0))
    counts = [each.count.sum() for each in decided]
    assert network.count.sum() > 50 and counts[0] > counts[1] > counts[2] > 10
    gains_db = [each.gain_db.sum() / each.gains.sum() for each in (network, *decided)]
    assert gains_db == sorted(gains_db)
