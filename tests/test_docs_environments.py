"""Every example of docs/environments.md is executed, in its order, in a folder that holds its files.

Two things are put in place of what takes minutes: the ray tracer, and the study once its environment has
been prepared; `test_scene_trace` and `test_worth_environment` run those.
"""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stub_study
from test_drives import HEADER
from worth_toy import made_up_city

from defiance import cli, scene
from defiance.kpm import Sheet
from defiance.parts import Parts
from defiance.scene.sites import read_sites
from defiance.studies import Progress, Workers, worth
from defiance.studies.worth.environment import prepare
from defiance.studies.worth.settings import check

PAGE = Path(__file__).parents[1] / "docs" / "environments.md"
CELLS = (87761409, 87761410, 87761411, 87762177)


def blocks() -> list[tuple[str, str, str]]:
    """Language, file name and text of the page's fenced blocks."""
    text = re.sub(r"^ {2}", "", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def drive(day: int) -> list[str]:
    """Forty rows of a drive eastwards, past the plan's sites."""
    rng = np.random.default_rng(day)
    rows = []
    for n in range(40):
        rsrp_dbm = -70 - 35 * np.log10(1 + abs(n - 20) / 5) + rng.normal(0, 4)
        place = f"{-8.475 + n * 4e-4:.6f},{51.9 + day * 1e-4:.6f}"
        clock = f"2026.01.{day:02}_08.00.{n:02}"
        rows.append(f"{clock},{place},36,LTE,{rsrp_dbm:.0f},-9,9,12,9000,90,{CELLS[n // 10]},-95")
    return rows


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page's examples find: drives, broken ones, wrong files."""
    monkeypatch.chdir(tmp_path)
    texts = {name: text for _, name, text in blocks() if name}
    for folder in ("my", "broken"):
        Path(folder).mkdir()
        for day, name in ((5, "monday"), (6, "tuesday")):
            rows = drive(day)
            if (folder, name) == ("broken", "monday"):
                rows[1] = re.sub(r"LTE,-\d+", "LTE,-200", rows[1])
                rows[2] = re.sub(r",51\.9\d+", ",", rows[2])
            Path(folder, f"{name}.csv").write_text("\n".join([HEADER, *rows]))
    wrong = texts["sites.csv"].splitlines()
    wrong[2] = wrong[2].replace(",120,8,", ",120,95,")
    Path("wrong.csv").write_text("\n".join(wrong))
    Path("wrong.toml").write_text("[cell]\nidle = 180.0\n")
    return tmp_path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small city, no rays, and a study that stops once its environment is there."""

    def traced(name: str, sites: Path, out: Path, **_: Any) -> scene.Scene:
        assert name == "scene.xml" and len(read_sites(sites)) == 4
        scene.save(made_up_city("mine", 0), out)
        return scene.load(out)

    def run(
        config: worth.Config, *, seeds: tuple[int, ...], parts: Parts, progress: Progress, workers: Workers
    ) -> Sheet:
        check(config)
        made = prepare(config, parts, progress)
        assert scene.load(made.config.scene).path_gain_db.isfinite().all()
        return stub_study.run(stub_study.Config(), seeds=seeds, parts=parts, progress=progress)

    city = replace(made_up_city("munich", 0), origin_m=(-100.0, -100.0), resolution_m=10.0)
    monkeypatch.setattr("defiance.studies.worth.environment.load", lambda name: _loaded(name, city))
    monkeypatch.setattr("defiance.scene.load", lambda name: _loaded(name, city))
    monkeypatch.setattr("defiance.scene.planned.POINTS", 60)
    monkeypatch.setattr("defiance.scene.trace.trace", traced)
    monkeypatch.setattr(worth, "run", run)


def _loaded(name: str, city: scene.Scene) -> scene.Scene:
    return city if name == "munich" else scene.city.load(name)


def test_every_example_runs(folder: Path, quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    ran = {"csv": 0, "toml": 0, "python": 0, "sh": 0, "console": 0}
    for language, name, text in blocks():
        ran[language] += 1
        if name:
            Path(name).write_text(text)
        elif language == "python":
            exec(compile(text, str(PAGE), "exec"), names)
        elif language == "sh":
            for line in text.splitlines():
                assert called(line) == 0, capsys.readouterr().err
        elif language == "console":
            command, *expected = text.splitlines()
            status = called(command.removeprefix("$ "))
            shown = capsys.readouterr()
            assert status == (2 if expected[0].startswith("defiance:") else 0)
            for line in expected:
                assert line in shown.out + shown.err
    assert all(ran.values()), ran
    assert names["exponent"] > 0 and names["deliveries"].delivered.all()
    assert names["light_w"].round().tolist() == [66.0, 184.0, 448.0]
    assert names["micro_w"].round().tolist() == [112.0, 213.0, 448.0]


def called(line: str) -> Any:
    """Status of a command line."""
    program, *arguments = shlex.split(line)
    assert program == "defiance"
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    return end.value.code
