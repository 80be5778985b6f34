"""Site plans, drives and prices as people have them: what is wrong is one line with file, row and column."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from test_drives import GOOD, HEADER, changed

from defiance import cli
from defiance.errors import DefianceError
from defiance.parts import read_at_most
from defiance.prices import read_prices
from defiance.scene.drives import read_drive, read_drives
from defiance.scene.sites import read_sites

PLAN = "name,x_m,y_m,height_m,azimuth_deg,tilt_deg\nhall,0,0,30,0,8\nhall,0,0,30,120,8\n"
DRIVE = f"{HEADER}\n{GOOD}\n{GOOD}\n"
PRICES = "[cell]\nidle_w = 180.0\n"
READERS = {
    "sites.csv": (read_sites, PLAN),
    "drive.csv": (read_drives, DRIVE),
    "prices.toml": (read_prices, PRICES),
}


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "harmless",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: (text + "\n\n").encode(),
        lambda text: text.rstrip("\n").encode(),
    ],
    ids=["byte order mark", "CRLF", "blank rows at the end", "no end of line"],
)
def test_what_editors_do_is_harmless(name: str, harmless: Callable[[str], bytes]) -> None:
    read, text = READERS[name]
    Path(name).write_bytes(harmless(text))
    found = read(Path(name))
    Path(name).write_text(text)
    if name == "drive.csv":
        assert len(found[0]) == len(read(Path(name))[0]) == 2 and not found[0].faults
    else:
        assert found == read(Path(name))


def symlink_loop(path: Path) -> None:
    path.symlink_to(path.name)


def gigabyte(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**30)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "cannot be read: No such file or directory"),
        (symlink_loop, "cannot be read: Too many levels of symbolic links"),
        (gigabyte, "bytes; larger files are not read"),
        (lambda path: path.symlink_to("/dev/zero"), "bytes; larger files are not read"),
    ],
    ids=["absent", "symlink loop", "a gigabyte", "endless"],
)
def test_what_is_no_file(name: str, make: Callable[[Path], None], problem: str, monkeypatch) -> None:
    monkeypatch.setattr("defiance.scene.table.LARGEST_BYTES", 2**20)
    make(Path(name))
    with pytest.raises(DefianceError) as refused:
        READERS[name][0](Path(name))
    message = str(refused.value)
    assert message.startswith(f"{name}: ") and problem in message and "Errno" not in message


def test_a_pipe_is_read() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, PLAN.encode())
    os.close(write_end)
    assert len(read_sites(Path(f"/dev/fd/{read_end}"))) == 2
    os.close(read_end)
    with pytest.raises(DefianceError, match="cannot be read: embedded null byte"):
        read_at_most(Path("a\0b"), 10)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "sites.csv, row 1: no column name"),
        (b"\x7fELF\x02\x01\x01\0\xff\xfe", "sites.csv, row 1: not text in UTF-8"),
        ("\ufeffname".encode("utf-16"), "sites.csv, row 1: not text in UTF-8"),
        (
            PLAN.replace("hall,0,0,30,120", "h\xe5ll,0,0,30,120").encode("latin-1"),
            "sites.csv, row 3: not text",
        ),
        (PLAN.replace(",", ";").encode(), "sites.csv, row 1: no column name; .*separated by commas"),
        (PLAN.replace(",", "\t").encode(), "sites.csv, row 1: no column name; .*separated by commas"),
        (PLAN.replace("tilt_deg", "tilt").encode(), "sites.csv, row 1: no column tilt_deg"),
        (
            PLAN.replace("tilt_deg", "tilt_deg,x_m").encode(),
            "sites.csv, row 1: column x_m stands there twice",
        ),
        (PLAN.splitlines()[0].encode(), "sites.csv: holds no sector"),
        (PLAN.replace("30,120,8", "30,120").encode(), "sites.csv, row 3: 5 fields, but the header has 6"),
        (PLAN.replace("30,120,8", "30,12,5,8").encode(), "sites.csv, row 3: 7 fields, but the header has 6"),
        (PLAN.replace("120", "nan").encode(), "sites.csv, row 3, column azimuth_deg: nan is not within"),
        (PLAN.replace("120", "1e999").encode(), "sites.csv, row 3, column azimuth_deg: 1e999 is not within"),
        (
            PLAN.replace("120", "1" * 9999).encode(),
            r"sites.csv, row 3, column azimuth_deg: 1{37}\.\.\. is not",
        ),
        (
            PLAN.replace("120", "1_20").encode(),
            "sites.csv, row 3, column azimuth_deg: '1_20' is not a number",
        ),
        (PLAN.replace("120", "\u0661").encode(), "sites.csv, row 3, column azimuth_deg: .* is not a number"),
        (PLAN.replace("120", "").encode(), "sites.csv, row 3, column azimuth_deg: '' is not a number"),
        (PLAN.replace("120", "360").encode(), "sites.csv, row 3, column azimuth_deg: site hall has 360"),
        (PLAN.replace("0,0,30,120", "0,1,30,120").encode(), "sites.csv, row 3, column y_m: site hall has 0"),
        (PLAN.replace("120", '"120\n').encode(), "sites.csv, row 3: 5 fields|not CSV"),
        (PLAN.replace("120", "1" * 200_000).encode(), "sites.csv, row 3: not CSV: field larger than"),
    ],
)
def test_wrong_site_plans(content: bytes, problem: str) -> None:
    Path("sites.csv").write_bytes(content)
    with pytest.raises(DefianceError, match=problem) as refused:
        read_sites(Path("sites.csv"))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 250


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "drive.csv, row 1: no column Timestamp"),
        (DRIVE.replace(",", ";"), "drive.csv, row 1: no column Timestamp; .*separated by commas"),
        (DRIVE.replace("RSRP,RSRQ", "RSRP,RSRP,RSRQ"), "drive.csv, row 1: column RSRP stands there twice"),
        (HEADER, "drive.csv: holds no row below its header"),
        (f"{HEADER}\n{changed('Latitude', '91')}\n", "drive.csv, row 2, column Latitude: 91 is not within"),
        (f"{HEADER}\n{GOOD[:30]}\n", "drive.csv, row 2: 4 fields, but the header has 13"),
    ],
)
def test_wrong_drives(content: str, problem: str) -> None:
    Path("drive.csv").write_text(content)
    with pytest.raises(DefianceError, match=problem) as refused:
        read_drives(Path("drive.csv"))
    assert "\n" not in str(refused.value)


def test_a_broken_row_is_counted_and_named_and_the_others_stay() -> None:
    wrong = [
        changed("RSRP", "1e999"),
        changed("SNR", "NaN"),
        changed("Speed", "1_0"),
        changed("Longitude", "-181"),
        changed("Timestamp", ""),
        GOOD + ",",
        changed("RAWCELLID", "9" * 30),
    ]
    Path("drive.csv").write_text("\n".join([HEADER, GOOD, *wrong, GOOD]))
    drive = read_drive(Path("drive.csv"))
    assert [(fault.row, fault.column, fault.row_left_out) for fault in drive.faults] == [
        (3, "RSRP", False),
        (4, "SNR", False),
        (5, "Speed", False),
        (6, "Longitude", True),
        (7, "Timestamp", True),
        (8, "", True),
        (9, "RAWCELLID", True),
    ]
    assert drive.row.tolist() == [2, 3, 4, 5, 10]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\xff\xfe", "prices.toml: not a TOML file"),
        (b"cell,idle_w\n", r"prices.toml: not a TOML file: .*line 1, column 5"),
        (b"[cell]\nidle_w = nan\n", "prices.toml: cell.idle_w"),
        (b"[cell]\nidle_w = -1.0\n", "prices.toml: cell.idle_w"),
        (b"[cell]\nidle_w = '180'\n", "prices.toml: cell.idle_w"),
        (b"[cell]\nidle_w = 1.0\nidle_w = 2.0\n", r"prices.toml: not a TOML file: .*line 3"),
        (b"a = " + b"[" * 9999, "prices.toml: not a TOML file"),
    ],
)
def test_wrong_prices(content: bytes, problem: str) -> None:
    Path("prices.toml").write_bytes(content)
    with pytest.raises(DefianceError, match=problem) as refused:
        read_prices(Path("prices.toml"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("drives /nope", "defiance: /nope: cannot be read: No such file or directory\n"),
        ("drives empty", "defiance: empty: holds no .csv file; give G-NetTrack's files or their folder\n"),
        ("drives folders", "defiance: folders/day.csv: cannot be read: Is a directory\n"),
        (
            "run replay --set traces=loop",
            "defiance: loop: cannot be read: Too many levels of symbolic links\n",
        ),
        (
            "run worth --set propagation=uma --set unseen_scene= --set sites=off.csv",
            "defiance: off.csv, row 3, columns x_m and y_m: site far at (90000, 0) lies off the terrain",
        ),
    ],
)
def test_the_commands_say_it_in_one_line(
    command: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("folders/day.csv").mkdir(parents=True)
    symlink_loop(Path("loop"))
    Path("off.csv").write_text(PLAN.replace("hall,0,0,30,120", "far,90000,0,30,120"))
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), *(["--out", "out"] if command.startswith("run") else [])])
    shown = capsys.readouterr().err
    assert ended.value.code == 2 and shown.startswith(problem) and shown.count("\n") == 1
