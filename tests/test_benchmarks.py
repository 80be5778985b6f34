"""The machinery of `make bench`, without any peer."""

import json
import math
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import compare, environments
from benchmarks.compare import COMPARISONS, Bar, Comparison, Side, interval
from defiance.errors import DefianceError

ROOT = Path(__file__).parents[1]
QUIET = Console(quiet=True)


@pytest.mark.parametrize(("count", "left_out"), [(3, 0), (5, 0), (6, 0), (8, 0), (9, 1), (12, 2), (20, 5)])
def test_the_interval_holds_the_median_with_95_percent(count: int, left_out: int) -> None:
    low, high = interval([float(value) for value in range(count)])
    assert (low, high) == (left_out, count - 1 - left_out)
    missed = 2 * sum(math.comb(count, j) for j in range(left_out + 1)) / 2**count
    assert missed <= 0.05 or count < 6
    more = 2 * sum(math.comb(count, j) for j in range(left_out + 2)) / 2**count
    assert more > 0.05


def stub(folder: Path, body: str) -> str:
    """A module that serves a program `work`."""
    (folder / "stub_side.py").write_text(
        "from benchmarks.worker import Program, serve\n"
        f"def work():\n    print('noise')\n    return Program({body}, 5.0)\n"
        "serve('7.1', {'work': work})\n",
        encoding="utf-8",
    )
    return "stub_side"


def side(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> Side:
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return Side(Path(sys.executable), stub(folder, body), folder / "log")


def test_a_side_says_its_version_and_how_fast_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with side(tmp_path, "lambda: sum(range(10**6))", monkeypatch) as worker:
        assert worker.ask("work") == {"version": "7.1"}
        assert 5 < worker.ask()["rate"] < 5e4  # 5 units in between 0.1 ms and 1 s
    with side(tmp_path, "lambda: {'p50_ms': 3.5}", monkeypatch) as worker:
        worker.ask("work")
        assert worker.ask() == {"p50_ms": 3.5}


def test_a_side_that_dies_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        side(tmp_path, "lambda: 1 / 0", monkeypatch) as worker,
        pytest.raises(DefianceError, match="ZeroDivisionError: division by zero"),
    ):
        worker.ask("work")


def test_what_can_not_be_installed_is_named_and_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(comparison: Comparison, repetitions: int) -> dict[str, object]:
        if comparison.peer == "absent":
            raise DefianceError("absent: pip failed: no such package")
        return {"bench": comparison.bench}

    monkeypatch.setattr(compare, "measure", fake)
    chosen = [Comparison("one", "u/s", "one", "absent"), Comparison("two", "u/s", "two", bar=Bar(1, "rate"))]
    found = compare.compare(chosen, 1, QUIET)
    assert [row["bench"] for row in found["rows"]] == ["two"]
    assert found["missing"] == [
        {"bench": "one", "peer": "absent", "why": "absent: pip failed: no such package"}
    ]
    json.dumps(found)


def test_a_failed_installation_says_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = tmp_path / "benchmarks" / "peers" / "nobody.txt"
    requirements.parent.mkdir(parents=True)
    requirements.write_text("./nowhere-0.tar.gz\n", encoding="utf-8")
    monkeypatch.setattr(environments, "REPOSITORY", tmp_path)
    monkeypatch.setattr(environments, "FOLDER", tmp_path / "peers")
    with pytest.raises(DefianceError, match=r"nobody: .*pip.* failed: "):
        environments.environment("nobody")
    assert not (tmp_path / "peers" / "nobody" / "installed").exists()


def test_every_peer_has_a_program_and_exact_versions() -> None:
    for peer in {c.peer for c in COMPARISONS} - {"", compare.OURS}:
        folder = ROOT / "benchmarks" / "peers"
        assert (folder / f"{peer}.py").is_file()
        lines = (folder / f"{peer}.txt").read_text(encoding="utf-8").splitlines()
        assert all(line.count("==") == 1 for line in lines if not line.startswith("#"))
        programs = {c.peer_program for c in COMPARISONS if c.peer == peer}
        text = (folder / f"{peer}.py").read_text(encoding="utf-8")
        assert all(f'"{program}"' in text for program in programs)
    text = (ROOT / "benchmarks" / "ours.py").read_text(encoding="utf-8")
    assert all(f'"{c.program}"' in text for c in COMPARISONS)


def test_lines_can_be_told_apart() -> None:
    assert len({(c.bench, c.against) for c in COMPARISONS}) == len(COMPARISONS)
