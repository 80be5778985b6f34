"""The reader of measured drives: units, missing values, and every fault by file, row and column."""

import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from defiance.errors import DefianceError
from defiance.scene.drives import NO_CELL, describe_faults, place_m, read_drive, read_drives

HEADER = (
    "Timestamp,Longitude,Latitude,Speed,NetworkMode,RSRP,RSRQ,SNR,CQI,DL_bitrate,UL_bitrate,RAWCELLID,NRxRSRP"
)
GOOD = "2020.02.14_09.38.22,-8.5,51.9,36,LTE,-89,-12,1.0,10,500,20,87761409,-91.0"
TRACES = Path(os.environ.get("DEFIANCE_DATA", "../shared/data")) / "traces5g"


def write(path: Path, *rows: str) -> Path:
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def changed(column: str, value: str, row: str = GOOD) -> str:
    """The row with another value in a column."""
    fields = row.split(",")
    fields[HEADER.split(",").index(column)] = value
    return ",".join(fields)


def test_values_come_in_si_units_and_what_is_missing_is_nan(tmp_path):
    later = changed("Timestamp", "2020.02.14_09.39.23")
    for column in ("RSRP", "CQI", "RAWCELLID"):
        later = changed(column, "-", later)
    later = changed("NRxRSRP", "2147483647", changed("NetworkMode", "HSPA+", later))
    drive = read_drive(write(tmp_path / "walk.csv", GOOD, later))
    assert (drive.name, len(drive), drive.faults) == ("walk", 2, ())
    assert drive.time_s.tolist() == [0.0, 61.0] and drive.row.tolist() == [2, 3]
    assert drive.speed_mps[0].item() == pytest.approx(10.0)
    assert drive.downlink_bps[0].item() == 500e3 and drive.uplink_bps[0].item() == 20e3
    assert drive.rsrp_dbm[0].item() == -89 and drive.snr_db[0].item() == 1 and drive.cqi[0].item() == 10
    assert drive.neighbour_rsrp_dbm[0].item() == -91
    assert all(math.isnan(column[1]) for column in (drive.rsrp_dbm, drive.cqi, drive.neighbour_rsrp_dbm))
    assert drive.cell.tolist() == [87761409, NO_CELL] and drive.mode == ("LTE", "HSPA+")
    assert drive.measured.tolist() == [True, False]
    assert drive.select(torch.tensor([1])).mode == ("HSPA+",)


@pytest.mark.parametrize(
    ("row", "message", "left_out"),
    [
        (changed("RSRP", "-200"), "row 3, column RSRP: -200 is not within -156 ... -31", False),
        (changed("CQI", "ten"), "row 3, column CQI: 'ten' is not a number", False),
        (changed("SNR", "nan"), "row 3, column SNR: nan is not within", False),
        (changed("Timestamp", "14/02/2020"), "row 3, column Timestamp: '14/02/2020' is not a time", True),
        (changed("Timestamp", "2020.02.30_09.38.22"), "row 3, column Timestamp", True),
        (changed("Timestamp", "2020.02.14_09.38.21"), "09.38.21 is before row 2", True),
        (changed("Longitude", "-"), "row 3, column Longitude: '-' is not a number", True),
        (changed("Latitude", "91"), "row 3, column Latitude: 91 is not within -90 ... 90", True),
        (changed("RAWCELLID", "-7"), "row 3, column RAWCELLID: '-7' is not a cell's number", True),
        (GOOD + ",1", "row 3: 14 fields, but the header has 13", True),
        ("2020.02.14_09.38.23,-8.5", "row 3: 2 fields", True),
    ],
)
def test_what_is_broken_is_named_and_the_rest_is_kept(tmp_path, row, message, left_out):
    drive = read_drive(write(tmp_path / "drive.csv", GOOD, row, GOOD))
    (fault,) = drive.faults
    assert message in str(fault) and "drive.csv" in str(fault) and fault.row_left_out is left_out
    assert drive.row.tolist() == ([2, 4] if left_out else [2, 3, 4])


def test_faults_are_counted_by_kind(tmp_path):
    weak, lost = changed("RSRP", "-200"), changed("Latitude", "-")
    drives = [read_drive(write(tmp_path / "a.csv", GOOD, weak, weak, weak, lost))]
    first, second = describe_faults(drives)
    assert "a.csv, row 3, column RSRP" in first and "taken as missing), and 2 more rows like it" in first
    assert "row 6, column Latitude" in second and second.endswith("(left out)")
    assert describe_faults(drives, most=1)[1].endswith("a.csv: 1 more faults of other kinds")


def test_a_file_without_columns_rows_or_text_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    path = tmp_path / "drive.csv"
    path.write_text(HEADER.replace("RSRQ,", "") + "\n" + GOOD)
    with pytest.raises(DefianceError, match=r"drive\.csv, row 1: no column RSRQ; a drive of G-NetTrack has"):
        read_drive(path)
    with pytest.raises(DefianceError, match=r"drive\.csv: holds no row"):
        read_drive(write(path))
    with pytest.raises(DefianceError, match=r"drive\.csv, row 2, column Longitude"):
        read_drive(write(path, changed("Longitude", "west")))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DefianceError, match=r"drive\.csv, row 1: not text in UTF-8"):
        read_drive(path)
    with pytest.raises(DefianceError, match=r"holds no \.csv file"):
        read_drives(tmp_path / "empty")


def test_a_folder_is_read_in_the_order_of_its_clocks(tmp_path):
    write(tmp_path / "a.csv", GOOD)
    write(tmp_path / "b.csv", changed("Timestamp", "2019.02.14_09.38.22"))
    assert [drive.name for drive in read_drives(tmp_path)] == ["b", "a"]


@given(st.text(max_size=60))
def test_no_text_gets_past_the_reader(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("drives") / "drive.csv"
    path.write_text(f"{HEADER}\n{GOOD}\n{text}\n{GOOD}", encoding="utf-8", errors="replace")
    try:
        drive = read_drive(path)
    except DefianceError as error:
        assert "drive.csv" in str(error)
    else:
        assert drive.row[0] == 2 and bool(drive.time_s.isfinite().all())


def test_places_are_metres_from_the_origin():
    east_m, north_m = place_m(torch.tensor([-8.0]), torch.tensor([52.0]), (-8.5, 51.9))
    assert north_m.item() == pytest.approx(0.1 * 111_195, rel=1e-3)
    assert east_m.item() == pytest.approx(0.5 * 111_195 * math.cos(math.radians(51.9)), rel=1e-3)


def test_measured_drives_of_cork():
    if not TRACES.is_dir():
        pytest.skip(f"no data: {TRACES}")
    drives = read_drives(TRACES)
    assert len(drives) == 16 and sum(map(len, drives)) == 27_591
    faults = [fault for drive in drives for fault in drive.faults]
    # three rows without any signal in one file, and signal-to-noise ratios of -30 dB beside them
    assert [(f.row, f.column) for f in faults] == [(r, c) for r in (560, 561, 562) for c in ("RSRP", "SNR")]
    rsrp_dbm = torch.cat([drive.rsrp_dbm[drive.measured] for drive in drives])
    assert len(rsrp_dbm) > 20_000 and -120 < rsrp_dbm.min() < rsrp_dbm.max() < -40
