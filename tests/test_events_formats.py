import io
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from defiance.codecs.events import Recordings, formats, frames, read
from defiance.errors import DefianceError
from defiance.recordings import data_folder

FOLDER = data_folder() / "nmnist"
FUZZ = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

Event = tuple[int, int, int, int]  # x, y, polarity, time_us


def nmnist(events: list[Event]) -> bytes:
    return b"".join(bytes([x, y]) + (p << 23 | t).to_bytes(3, "big") for x, y, p, t in events)


def aedat2(events: list[Event], header: bytes = b"#!AER-DAT2.0\r\n# made up\r\n") -> bytes:
    return header + b"".join(
        struct.pack(">II", (127 - y) << 8 | (127 - x) << 1 | (1 - p), t) for x, y, p, t in events
    )


def packet(
    events: list[Event], *, kind: int = 1, overflow: int = 0, count: int | None = None, valid: int = 1
) -> bytes:
    n = len(events) if count is None else count
    body = b"".join(struct.pack("<II", x << 17 | y << 2 | p << 1 | valid, t) for x, y, p, t in events)
    return struct.pack("<hhiiiiii", kind, 0, 8, 4, overflow, n, n, n) + body


def aedat3(*packets: bytes) -> bytes:
    return b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n" + b"".join(packets)


def npz(**changed: object) -> bytes:
    fields: dict[str, object] = {
        "x": np.array([1, 2, 3], np.uint8),
        "y": np.array([4, 5, 6], np.uint8),
        "p": np.array([0, 1, 1], np.uint8),
        "t": np.array([7, 9, 8], np.int32),
        "offset": np.array([0, 2, 3]),
        "label": np.array([3, 4], np.uint8),
    }
    file = io.BytesIO()
    np.savez_compressed(file, **{k: v for k, v in {**fields, **changed}.items() if v is not None})  # type: ignore[arg-type]
    return file.getvalue()


def archive(compression: int = zipfile.ZIP_STORED, flags: int = 0, shape: str = "(3,)") -> bytes:
    """An archive of arrays whose headers claim this shape; packed so, and with these flags."""
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(24)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as packed:
        for name in formats.NPZ_FIELDS:
            packed.writestr(f"{name}.npy", array)
    data = bytearray(file.getvalue())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        found = -1
        while (found := data.find(signature, found + 1)) >= 0:
            data[found + place] |= flags
    return bytes(data)


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def events_of(recordings: Recordings) -> list[Event]:
    fields = (recordings.x, recordings.y, recordings.polarity, recordings.time_us)
    return list(zip(*(field.tolist() for field in fields), strict=True))


EVENTS: list[Event] = [(0, 0, 1, 100), (33, 5, 0, 100), (7, 33, 1, 2500)]
FROM_FIRST: list[Event] = [(x, y, p, t - 100) for x, y, p, t in EVENTS]
WRITERS: list[tuple[str, Callable[[list[Event]], bytes], list[Event]]] = [
    ("a.bin", nmnist, EVENTS),
    ("a.bs2", nmnist, EVENTS),
    ("a.aedat", aedat2, FROM_FIRST),
    ("b.aedat", lambda events: aedat3(packet(events)), FROM_FIRST),
]


@pytest.mark.parametrize(("name", "write", "expected"), WRITERS)
def test_what_was_written_is_read(
    tmp_path: Path, name: str, write: Callable[[list[Event]], bytes], expected: list[Event]
) -> None:
    recordings, report = read(written(tmp_path, name, write(EVENTS)))
    assert events_of(recordings) == expected
    assert recordings.label.tolist() == [-1]
    assert report == formats.Report(0, 0, 0, 0)


@pytest.mark.parametrize(("name", "write", "expected"), WRITERS)
def test_truncated_files_name_the_byte_or_count_it(
    tmp_path: Path, name: str, write: Callable[[list[Event]], bytes], expected: list[Event]
) -> None:
    path = written(tmp_path, name, write(EVENTS)[:-3])
    with pytest.raises(DefianceError, match=rf"{name}: byte \d+: the file ends"):
        read(path)
    recordings, report = read(path, broken="skip")
    assert events_of(recordings) == expected[:-1]
    assert report.truncated_bytes in (2, 5)


@pytest.mark.parametrize(("name", "write", "expected"), WRITERS)
def test_backward_clocks_name_the_byte_or_cost_the_fewest_events(
    tmp_path: Path, name: str, write: Callable[[list[Event]], bytes], expected: list[Event]
) -> None:
    glitch: list[Event] = [(1, 1, 0, 7_000_000), *EVENTS, (2, 2, 1, 90), (3, 3, 1, 2500)]
    path = written(tmp_path, name, write(glitch))
    size = len(write(glitch)) - len(write(glitch[1:]))
    with pytest.raises(DefianceError, match=rf"{name}: byte {len(write([])) + size}: .*backwards to 100 us"):
        read(path)
    recordings, report = read(path, broken="skip")
    assert events_of(recordings) == [*expected, (3, 3, 1, expected[-1][3])]
    assert report.backward == 2


def test_pixels_outside_the_sensor_name_the_byte_or_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path, "a.bin", nmnist([EVENTS[0], (34, 0, 1, 200), EVENTS[2]]))
    with pytest.raises(DefianceError, match=r"a.bin: byte 5: pixel x=34, y=0 lies outside"):
        read(path)
    recordings, report = read(path, broken="skip")
    assert events_of(recordings) == [EVENTS[0], EVENTS[2]]
    assert report.outside == 1
    foreign = written(tmp_path, "davis.aedat", aedat2([]) + struct.pack(">II", 0x10000, 0))
    with pytest.raises(DefianceError, match=r"davis.aedat: byte 25: pixel"):
        read(foreign)


def test_the_clock_of_nmnist_overflows_at_row_240(tmp_path: Path) -> None:
    recordings, report = read(written(tmp_path, "a.bin", nmnist([(0, 240, 0, 0), (1, 2, 1, 5)])))
    assert events_of(recordings) == [(1, 2, 1, 5 + 2**13)]
    assert report.other == 1


def test_aedat_files_hold_other_things_too(tmp_path: Path) -> None:
    pulse = struct.pack(">II", 0x8000, 300)
    recordings, report = read(
        written(tmp_path, "a.aedat", aedat2(EVENTS[:2]) + pulse + aedat2(EVENTS[2:], b""))
    )
    assert events_of(recordings) == FROM_FIRST
    assert report.other == 1
    mixed = aedat3(
        packet(EVENTS[:1]),
        packet(EVENTS[1:2], kind=3),
        packet(EVENTS[1:2], valid=0),
        packet(EVENTS[1:], overflow=1),
    )
    recordings, report = read(written(tmp_path, "b.aedat", mixed))
    assert recordings.time_us.tolist() == [0, 2**31, 2**31 + 2400]
    assert report.other == 2


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"hello", "unknown suffix"),
        ("a.bin", b"", "byte 0: no events"),
        ("a.aedat", b"\x89PNG\r\n", "byte 0: not an AEDAT 2.0 file"),
        ("a.aedat", aedat2([]), "byte 25: no events"),
        ("a.aedat", b"#!AER-DAT2.0", "header does not end"),
        ("a.aedat", b"#!AER-DAT3.1\r\n", "header does not end"),
        ("a.aedat", aedat3(), "no polarity events"),
        ("a.aedat", aedat3(b"\x01\x00"), "byte 42: the file ends within a packet's header"),
        ("a.aedat", aedat3(packet(EVENTS, count=-1)), "byte 42: not a packet's header"),
        ("a.aedat", aedat3(packet(EVENTS, count=2**31 - 1)), "ends after 3 of a packet's 2147483647 events"),
        (
            "a.aedat",
            aedat3(packet(EVENTS).replace(b"\x08\0\0\0\x04", b"\x10\0\0\0\x04", 1)),
            "events of 16 bytes",
        ),
        ("a.npz", b"PK nothing", "not a readable archive"),
        ("a.npz", npz()[:-40], "not a readable archive"),
        ("a.npz", npz(t=None), "no array 't'"),
        ("a.npz", npz(x=np.array([{}, {}, {}], object)), "not a readable archive"),
        ("a.npz", npz(x=np.zeros(3)), "must be one row of integers"),
        ("a.npz", npz(x=np.zeros(4, np.uint8)), "do not fit"),
        ("a.npz", npz(offset=np.array([0, 3, 2])), "'offset' does not rise"),
        ("a.npz", npz(p=np.array([0, 1, 2])), "must hold 0 or 1"),
        ("a.npz", npz(t=np.array([9, 7, 8])), "event 1: the clock runs backwards"),
        ("a.npz", npz(t=np.array([0, 2**62, 0])), "event 1: 4611686018427387904 us .*no recording lasts"),
        ("a.npz", npz(t=np.array([0, 2**40, 0])), "event 1: 1099511627776 us .*no recording lasts"),
        ("a.aedat", aedat3(packet(EVENTS[:1]), packet(EVENTS, overflow=2**30)), "no recording lasts"),
        ("a.npz", archive(shape="(10000000000000,)"), "too few for"),
        ("a.npz", archive(shape="(-1,)"), "too few for"),
        ("a.npz", archive(shape="(" * 900), "not a readable archive"),
        ("a.npz", archive(flags=1), "not a readable archive.*encrypted"),
        ("a.npz", archive(zipfile.ZIP_LZMA), "compressed in a way"),
        ("a.npz", archive(zipfile.ZIP_BZIP2), "compressed in a way"),
    ],
)
def test_foreign_and_damaged_files_are_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(DefianceError, match=message) as error:
        read(written(tmp_path, name, data))
    assert name in str(error.value)


def test_missing_files_and_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DefianceError, match="nothing.bin: cannot be read"):
        read(tmp_path / "nothing.bin")
    with pytest.raises(DefianceError, match="no format 'mp4'; there are nmnist"):
        read(written(tmp_path, "a.bin", b""), format="mp4")


def test_huge_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.bin"
    with path.open("wb") as file:
        file.truncate(formats.FILE_BYTES + 1)  # sparse
    with pytest.raises(DefianceError, match="huge.bin: .* are not read"):
        read(path, broken="skip")
    data = npz(x=np.zeros(1000, np.uint8))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DefianceError, match="when unpacked"):
        patch.setattr(formats, "FILE_BYTES", len(data))
        read(written(tmp_path, "bomb.npz", data))


def test_archives_hold_many_recordings(tmp_path: Path) -> None:
    recordings, _ = read(written(tmp_path, "a.npz", npz()))
    assert recordings.label.tolist() == [3, 4]
    assert events_of(recordings.select(torch.tensor([1]))) == [(3, 6, 1, 8)]
    backward = npz(t=np.array([9, 7, 8]))
    recordings, report = read(written(tmp_path, "b.npz", backward), broken="skip")
    assert recordings.counts.tolist() == [1, 1]
    assert report.backward == 1


@FUZZ
@given(data=st.binary(max_size=200), name=st.sampled_from(["f.bin", "f.aedat", "g.aedat", "f.npz"]))
def test_any_bytes_give_recordings_or_the_one_error(tmp_path: Path, data: bytes, name: str) -> None:
    start = {"f.aedat": aedat2([]), "g.aedat": aedat3()}.get(name, b"")
    path = written(tmp_path, name, start + data)
    for broken in ("refuse", "skip"):
        try:
            recordings, _ = read(path, broken=broken)  # type: ignore[arg-type]
        except DefianceError as error:
            assert name in str(error)
        else:
            assert len(recordings) == 1
            assert frames(recordings, 15, 315_000).sum() <= len(recordings.x)


@FUZZ
@given(
    place=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 40), kind=st.integers(0, 4)
)
def test_damaged_files_never_crash(tmp_path: Path, place: int, value: int, cut: int, kind: int) -> None:
    name, write = [*[(name, write) for name, write, _ in WRITERS], ("a.npz", lambda events: npz())][kind]
    data = bytearray(write(EVENTS))
    data[place % len(data)] = value
    path = written(tmp_path, name, bytes(data[: len(data) - cut]))
    for broken in ("refuse", "skip"):
        try:
            recordings, _ = read(path, broken=broken)  # type: ignore[arg-type]
        except DefianceError as error:
            assert name in str(error)
        else:
            assert frames(recordings, 15, 315_000).sum() <= len(recordings.x)


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 3)), min_size=1, max_size=8))
def test_any_times_give_frames_or_the_one_error(tmp_path: Path, events: list[tuple[int, int]]) -> None:
    """Times of any size, each event in one of four recordings."""
    events.sort(key=lambda event: event[1])
    n = len(events)
    owners = [owner for _, owner in events]
    path = written(
        tmp_path,
        "a.npz",
        npz(
            x=np.ones(n, int),
            y=np.ones(n, int),
            p=np.ones(n, int),
            t=np.array([time_us for time_us, _ in events], np.int64),
            offset=np.searchsorted(owners, np.arange(5)),
            label=np.arange(4),
        ),
    )
    recordings, report = read(path, broken="skip")
    assert len(recordings.x) + report.backward == n and len(recordings) == 4
    for steps, duration_us in ((15, 315_000), (7, 2**40)):
        assert frames(recordings, steps, duration_us).sum() <= len(recordings.x)
    try:
        read(path)
    except DefianceError as error:
        assert report.backward and "a.npz: event" in str(error)
    else:
        assert not report.backward


def test_a_clock_from_before_zero_is_backward(tmp_path: Path) -> None:
    path = written(tmp_path, "a.bin", nmnist([(1, 1, 1, 100), (1, 1, 1, 2**23 - 5), (1, 1, 1, 200)]))
    with pytest.raises(DefianceError, match="a.bin: byte 5: the clock runs backwards to -5 us"):
        read(path)
    recordings, report = read(path, broken="skip")
    assert recordings.time_us.tolist() == [100, 200] and report.backward == 1


def test_the_clock_of_nmnist_begins_again_after_8_s(tmp_path: Path) -> None:
    path = written(tmp_path, "a.bin", nmnist([(1, 1, 1, 2**23 - 500), (1, 1, 1, 700)]))
    assert read(path)[0].time_us.tolist() == [2**23 - 500, 2**23 + 700]


def test_skipping_takes_time_in_proportion_to_the_recordings(tmp_path: Path) -> None:
    def seconds(recordings: int) -> float:
        n = 2 * recordings
        ones = np.ones(n, np.uint8)
        data = npz(
            x=ones,
            y=ones,
            p=ones,
            t=np.tile(np.array([5, 1], np.int32), recordings),
            offset=np.arange(0, n + 1, 2),
            label=np.zeros(recordings, np.int64),
        )
        path = written(tmp_path, "a.npz", data)
        began_s = time.process_time()
        found, report = read(path, broken="skip")
        assert report.backward == recordings and found.counts.tolist() == [1] * recordings
        return time.process_time() - began_s

    assert seconds(20_000) < 20 * seconds(2_000) + 0.5  # 100-fold, if each recording looked at all events


@given(st.lists(st.integers(0, 12), max_size=9))
def test_the_most_events_in_order_are_kept(times: list[int]) -> None:
    time_us = np.array(times, np.int64)
    chosen = formats._longest_ordered(time_us)
    assert (np.diff(chosen) > 0).all() and (np.diff(time_us[chosen]) >= 0).all()
    best = [1] * len(times)
    for i in range(len(times)):
        best[i] = 1 + max((best[j] for j in range(i) if times[j] <= times[i]), default=0)
    assert len(chosen) == max(best, default=0)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="no data: recordings of N-MNIST")
def test_the_real_recordings_read_alike_from_both_formats() -> None:
    joined, report = read(FOLDER / "nmnist_train1000.npz")
    assert report == formats.Report(0, 0, 0, 0)
    assert len(joined) == 1000
    for number in range(1, 6):
        single, report = read(FOLDER / "raw" / f"{number}.bs2")
        assert report == formats.Report(0, 0, 0, 0)
        assert events_of(single) == events_of(joined.select(torch.tensor([number - 1])))
    other, _ = read(FOLDER / "raw" / "tonic_sample_nmnist.bin")
    assert int(other.counts) == 4325
