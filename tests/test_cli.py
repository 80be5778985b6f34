import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stub_study

from defiance import __version__, cli, scene, studies
from defiance.kpm import Sheet
from defiance.scene.paths import Walks, load_walks

ROOT = Path(__file__).parents[1]
Defiance = Callable[..., tuple[int, str, str]]


@pytest.fixture
def defiance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Defiance:
    """Runs a command in an empty folder: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(studies.STUDIES, "stub", "stub_study")
    monkeypatch.setattr(stub_study, "computed", [])

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert isinstance(end.value.code, int)
        return end.value.code, *capsys.readouterr()

    return call


def started(*arguments: str, folder: Path, **more: Any) -> subprocess.Popen[str]:
    """The same in a process of its own, where the stub study is known too and Ctrl-C works as at a prompt."""
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from defiance import cli, studies; studies.STUDIES['stub'] = 'stub_study'; cli.main()"
    )
    command = [sys.executable, "-c", program, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.Popen(command, cwd=folder, text=True, **pipes)


def refused(result: tuple[int, str, str], *words: str) -> None:
    status, out, err = result
    assert status == 2 and out == ""
    assert err.startswith("defiance: ") and err.count("\n") == 1 and "Traceback" not in err
    for word in words:
        assert word in err


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    program = (
        "import sys; from defiance import cli\n"
        "try: cli.main(['--help'])\n"
        "finally: assert not {'torch', 'numpy', 'scipy', 'matplotlib', 'numba'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for command in ("list", "run", "trace", "report", "demo"):
        assert command in done.stdout


def test_version_and_no_arguments(defiance: Defiance) -> None:
    assert defiance("--version") == (0, f"defiance {__version__}\n", "")
    assert defiance()[0] == 0


def test_list_shows_studies_scenes_and_a_studys_keys(
    defiance: Defiance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    status, out, _ = defiance("list")
    assert status == 0 and "Does counting to ten pay?" in out and "worth" in out and "scenes:" in out
    status, out, _ = defiance("list", "stub")
    assert status == 0 and "quick (2 seeds), full (3 seeds)" in out
    (load,) = (line for line in out.splitlines() if line.strip().startswith("load"))
    assert load.split() == ["load", "0.5", "1.0", "number", "0", "...", "1", "1", "share", "of", "PRBs"]


def test_run_writes_everything_and_prints_the_verdict(defiance: Defiance) -> None:
    status, out, _ = defiance("run", "stub", "--set", "load=0.8", "--seed", "4")
    folder = Path("out/stub")
    assert status == 0 and "Counting [to ten] does not pay." in out and str(folder / "report.html") in out
    assert {"sheet.json", "sheet.parquet", "config.toml", "report.html"} <= {
        path.name for path in folder.iterdir()
    }
    sheet = Sheet.load(folder / "sheet.json")
    assert sheet.seeds == (4, 5) and sheet.config["load"] == 0.8
    assert sheet.made_by == "defiance run stub --preset quick --seed 4 --seeds 2 --set load=0.8"
    status, out, _ = defiance("run", "stub", "--config", "out/stub/config.toml", "--out", "again")
    assert Sheet.load("again/sheet.json").config == sheet.config


def test_json_is_the_sheet_alone(defiance: Defiance) -> None:
    status, out, err = defiance("run", "stub", "--preset", "full", "--json", "--out", "x")
    assert status == 0 and err == "".join(f"computed {seed}\n" for seed in range(3))
    assert json.loads(out) == json.loads(Path("x/sheet.json").read_text())


def test_a_run_takes_up_what_is_finished_and_only_that(defiance: Defiance) -> None:
    defiance("run", "stub")
    assert stub_study.computed == [0, 1]
    status, _, err = defiance("run", "stub", "--seeds", "3")
    assert stub_study.computed == [0, 1, 2] and "2 parts finished earlier" in err
    defiance("run", "stub", "--set", "load=0.6")
    assert stub_study.computed == [0, 1, 2, 0, 1]


def test_parts_do_not_depend_on_prices() -> None:
    quick = studies.load("worth").PRESETS["quick"]
    same, other = replace(quick, prices="mine.toml"), replace(quick, users=quick.users + 1)
    assert cli._fingerprint("worth", quick) == cli._fingerprint("worth", same)
    assert cli._fingerprint("worth", quick) != cli._fingerprint("worth", other)


def test_parts_depend_on_a_scene_files_content(defiance: Defiance) -> None:
    for content in ("a", "b"):
        Path("city.npz").write_text(content)
        defiance("run", "stub", "--set", "scene=city.npz")
    assert stub_study.computed == [0, 1, 0, 1]


def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(defiance: Defiance) -> None:
    command = ("run", "stub", "--set", "interrupt_at=1")
    status, out, err = defiance(*command)
    assert status == 130 and out == ""
    assert "interrupted; 1 finished parts are kept in out/stub/parts/" in err
    assert "run the same command again" in err and "Traceback" not in err
    assert defiance(*command)[0] == 0
    assert Sheet.load("out/stub/sheet.json").rows[0].mean == pytest.approx(0.015)


def test_a_process_stopped_twice_goes_on_with_the_same_result(tmp_path: Path) -> None:
    command = ("run", "stub", "--seeds", "3", "--set", "pause_s=0.4")
    for seed, blow, status in ((0, signal.SIGKILL, -signal.SIGKILL), (1, signal.SIGINT, 130)):
        process = started(*command, folder=tmp_path)
        assert process.stderr is not None
        while process.stderr.readline() != f"computed {seed}\n":
            assert process.poll() is None
        process.send_signal(blow)
        rest = process.communicate(timeout=60)[1]
        assert process.returncode == status and "Traceback" not in rest
    process = started(*command, "--json", folder=tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == "computed 2\n"
    assert json.loads(out)["rows"][0]["mean"] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "wort"], ["unknown study 'wort'", "did you mean worth?"]),
        (["list", "wort"], ["unknown study 'wort'"]),
        (["run", "stub", "--preset", "quik"], ["'quik'", "quick, full"]),
        (["run", "stub", "--set", "laod=1"], ["unknown key 'laod'", "did you mean load?"]),
        (["run", "stub", "--set", "load=2"], ["load takes number 0 ... 1", "not 2.0"]),
        (["run", "stub", "--set", "load=x\ny"], ["load takes number"]),
        (["run", "stub", "--config", "absent.toml"], ["absent.toml", "No such file"]),
        (["run", "stub", "--seeds", "0"], ["--seeds"]),
        (["run", "stub", "--workers", "2", "--ray", "auto"], ["--workers", "--ray", "give one"]),
        (["run", "stub", "--sed", "0"], ["--sed"]),
        (["run"], ["STUDY"]),
        (["rnu"], ["rnu"]),
        (["run", "stub", "--out", "/dev/null/x"], ["/dev/null/x", "Not a directory"]),
        (["trace", "munich", "--out", "/dev/null/x.npz"], ["/dev/null/x.npz"]),
        (["trace", "munich", "--sites", "absent.csv"], ["absent.csv"]),
        (["trace-paths", "munch"], ["did you mean munich"]),
        (["trace-paths", "munich", "--out", "/dev/null/x.npz"], ["/dev/null/x.npz"]),
        (["trace-paths", "munich", "--points", "1"], ["points is 1"]),
        (["report", "absent.json"], ["absent.json"]),
        (["report", "."], ["sheet.json"]),
        (["report", "a", "b", "c"], ["two sheets"]),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    defiance: Defiance, arguments: list[str], words: list[str]
) -> None:
    refused(defiance(*arguments), *words)


def test_debug_shows_where_an_error_arose(defiance: Defiance) -> None:
    with pytest.raises(cli.DefianceError):
        cli.main(["run", "wort", "--debug"])


def test_a_corrupt_sheet_is_named_and_nothing_is_lost(defiance: Defiance) -> None:
    Path("sheet.json").write_text('{"schema": "defiance.sheet/1"')
    refused(defiance("report", "sheet.json"), "sheet.json")
    assert not Path("out/report/report.html").exists()


def test_report_compares_two_runs(defiance: Defiance) -> None:
    defiance("run", "stub")
    defiance("run", "stub", "--preset", "full", "--out", "out/full")
    status, out, _ = defiance("report", "out/stub", "out/full/sheet.json")
    assert (
        status == 0 and "out/report/report.html" in out and Path("out/report/report.html").stat().st_size > 0
    )


def test_trace_writes_a_scene_and_says_what_is_in_it(
    defiance: Defiance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def traced(
        name: str, sites: Path | None, out: Path, *, progress: Callable[[int, int], None]
    ) -> scene.Scene:
        assert (name, sites) == ("rome.xml", Path("sites.csv"))
        for done in range(3):
            progress(done, 2)
        scene.save(scene.load("munich"), out)
        return scene.load(out)

    monkeypatch.setattr("defiance.scene.trace.trace", traced)
    Path("sites.csv").write_text("name,x_m,y_m,height_m,azimuth_deg,tilt_deg,power_dbm\na,1,2,3,4,5,46\n")
    status, out, _ = defiance("trace", "rome.xml", "--sites", "sites.csv")
    assert status == 0 and out.startswith("rome.npz: 21 sectors on 7 sites; ")
    assert "--set radio.tx_power_dbm=46" in out
    assert scene.load("rome.npz").name == "munich"


def test_trace_paths_writes_walks_and_says_what_is_in_them(
    defiance: Defiance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def traced(where: scene.Scene, city: str, out: Path, **options: Any) -> Walks:
        assert (where.name, city, options["walks"], options["seed"]) == ("munich", "my.xml", 3, 1)
        assert options["carriers_hz"] == [28e9] and options["samples_per_site"] == 1000
        for done in range(3):
            options["progress"](done, 2)
        return load_walks("munich", "28ghz")

    monkeypatch.setattr("defiance.scene.trace_paths.trace_paths", traced)
    given = ["--city", "my.xml", "--walks", "3", "--carrier-ghz", "28", "--rays", "1000"]
    status, out, _ = defiance("trace-paths", "munich", *given)
    assert status == 0 and out.startswith("munich-walks.npz: ")
    assert "paths from 7 sites to 3 walks of 50 points" in out and "OpenStreetMap" in out


def test_drives_are_read_and_judged(defiance: Defiance) -> None:
    head = "Timestamp,Longitude,Latitude,Speed,NetworkMode,RSRP,RSRQ,SNR,CQI,DL_bitrate,UL_bitrate,RAWCELLID"
    for hour, rsrp in (("09", -80), ("10", -90)):
        rows = [
            f"2020.02.14_{hour}.00.0{n},-8.5,51.{9000 + n},36,LTE,{rsrp - n % 2},-9,5,9,800,9,7,-"
            for n in range(9)
        ]
        rows.append(f"2020.02.14_{hour}.00.10,-8.5,51.9,36,LTE,weak,-9,5,9,800,9,7,-")
        Path("my").mkdir(exist_ok=True)
        Path(f"my/{hour}.csv").write_text("\n".join([f"{head},NRxRSRP", *rows]))
    status, out, _ = defiance("drives", "my")
    assert status == 0 and "2 drives, 20 rows; 0 rows left out, 2 values taken as missing" in out
    assert "my/09.csv, row 11, column RSRP: 'weak' is not a number" in out
    assert "mean of the cell: shadowing 5.0 dB" in out and "100 %  10.0 dB" in out
    refused(defiance("drives", "my", "--scene", "munich"), "--sites")


def test_a_reader_who_leaves_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = started("list", folder=tmp_path, stdout=writing)
    os.close(writing)
    assert process.communicate(timeout=60)[1] == "" and process.returncode == 1


def test_a_full_output_is_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        process = started("--version", folder=tmp_path, stdout=full)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 2 and err.startswith("defiance: ") and err.count("\n") == 1


def test_progress_is_silent_at_first_and_then_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    with cli._Progress(shown=True) as progress, progress.task("munich", total=4) as munich:
        munich.advance()
        assert capsys.readouterr().err == ""
        now_s += 3
        with progress.task("training", total=2) as training:
            training.advance()
            training.advance()
        assert capsys.readouterr().err == "munich 25 %, training 50 %\n"
        now_s += 11
        munich.advance()
        assert capsys.readouterr().err == "munich 50 %\n"
    assert capsys.readouterr().err == ""
