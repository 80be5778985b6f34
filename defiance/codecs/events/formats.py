"""Readers of the files that event cameras and their data sets use.

| name     | files                          | layout                                                         |
|----------|--------------------------------|----------------------------------------------------------------|
| `nmnist` | N-MNIST, `.bin` and `.bs2`     | 40 bits per event: x, y, polarity, 23 bits of microseconds     |
| `aedat2` | AEDAT 2.0, `.aedat`: MNIST-DVS | text header; big-endian address and microseconds, 32 bits each |
| `aedat3` | AEDAT 3.1: DVS128 Gesture      | text header; packets of events behind headers of 28 bytes      |
| `npz`    | many recordings, NumPy         | x, y, p, t, offset, label; p and t as N-MNIST has them         |

Sources: Orchard et al. 2015 (N-MNIST; see `nmnist`); jAER's DVS128 extractor, whose x runs to the left,
y upwards, and whose bit 0 is set for a decrease (AEDAT 2.0); the AEDAT 3.1 specification and the notes of
DVS128 Gesture (Amir et al. 2017). Files are untrusted: nothing is unpickled, sizes are bounded before
anything is read, and errors name the file and the place in it.
"""

from __future__ import annotations

import math
import struct
import zipfile
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from defiance.codecs.events import nmnist
from defiance.codecs.events.recordings import LONGEST_US, Recordings
from defiance.errors import DefianceError
from defiance.parts import read_at_most

Broken = Literal["refuse", "skip"]
Array = NDArray[np.int64]

FILE_BYTES = 1 << 27
"""Bytes of a file, or of an archive when unpacked, at most."""

DVS128_PIXELS = 128
AEDAT2_EVENT_BYTES = 8
AEDAT2_SPECIAL = 1 << 15  # a synchronisation pulse, not a pixel

AEDAT_HEADER_BYTES = 1 << 16
AEDAT3_END = b"#!END-HEADER\r\n"
AEDAT3_PACKET = struct.Struct(
    "<hhiiiiii"
)  # type, source, event bytes, clock's place, overflow, capacity, events, valid
AEDAT3_POLARITY = 1
AEDAT3_EVENT_BYTES = 8

NPZ_FIELDS = ("x", "y", "p", "t", "offset", "label")
NPZ_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # NumPy's; others unpack without a bound


@dataclass(frozen=True)
class Report:
    """What of a file is not in the recordings.

    Attributes:
        truncated_bytes: after the last whole event.
        outside: events at pixels that the sensor does not have.
        backward: events earlier than those before them, the fewest that leave the rest in order; or at times
            that no recording has, below zero or from `LONGEST_US` on.
        other: of a lawful file: synchronisation pulses, frames, events marked invalid.
    """

    truncated_bytes: int
    outside: int
    backward: int
    other: int


@dataclass(frozen=True)
class _Raw:
    """Events as a file has them, unchecked, [n] each, and where they begin in it."""

    x: Array
    y: Array
    polarity: Array
    time_us: Array
    place: Array
    unit: str = "byte"
    offset: Array | None = None
    label: Array | None = None
    truncated_bytes: int = 0
    other: int = 0
    from_first: bool = False  # time counts from the first event, not from the clock's zero


def read(
    path: str | Path, *, format: str | None = None, broken: Broken = "refuse"
) -> tuple[Recordings, Report]:
    """Read a file of events.

    Args:
        path: the file.
        format: a name of the table above; None: by the file's name and, for `.aedat`, its first line.
        broken: what to do with truncated files, pixels outside the sensor and clocks that run backwards:
            refuse the file, or leave those events out and count them.

    Returns:
        The recordings; a file without labels holds one, of class -1. Times of AEDAT files count from their
        first event. And what was left out.

    Raises:
        DefianceError: cannot be opened, is too large, is of another format, or is broken and `broken` is
            "refuse"; names the file and the place.
    """
    path = Path(path)
    data = read_at_most(path, FILE_BYTES)
    name = format or _format(path, data)
    if name not in READERS:
        raise DefianceError(f"{path}: no format {name!r}; there are {', '.join(READERS)}")
    reader, pixels = READERS[name]
    return _checked(path, reader(path, data, broken), pixels, broken)


def _format(path: Path, data: bytes) -> str:
    match path.suffix.lower():
        case ".bin" | ".bs2":
            return "nmnist"
        case ".npz":
            return "npz"
        case ".aedat":
            return "aedat3" if data.startswith(b"#!AER-DAT3") else "aedat2"
    raise DefianceError(f"{path}: unknown suffix {path.suffix!r}; name a format: {', '.join(READERS)}")


def _checked(path: Path, raw: _Raw, pixels: int, broken: Broken) -> tuple[Recordings, Report]:
    """Refuse, or leave out and count, what the camera cannot have sent; make recordings of the rest."""
    offset = np.array([0, len(raw.x)]) if raw.offset is None else raw.offset
    label = np.array([-1]) if raw.label is None else raw.label
    owner = np.repeat(np.arange(len(label)), np.diff(offset))

    inside = (raw.x >= 0) & (raw.x < pixels) & (raw.y >= 0) & (raw.y < pixels)
    if broken == "refuse" and not inside.all():
        i = int(np.argmin(inside))
        raise DefianceError(
            f"{path}: {raw.unit} {raw.place[i]}: pixel x={raw.x[i]}, y={raw.y[i]} lies outside the sensor of "
            f"{pixels} x {pixels}; another format, or use broken='skip'"
        )
    kept = inside.nonzero()[0]
    backward = raw.time_us[kept] < 0
    backward[1:] |= (np.diff(raw.time_us[kept]) < 0) & (np.diff(owner[kept]) == 0)
    if broken == "refuse" and backward.any():
        i = kept[int(np.argmax(backward))]
        raise DefianceError(
            f"{path}: {raw.unit} {raw.place[i]}: the clock runs backwards to {raw.time_us[i]} us; "
            "another format, or use broken='skip'"
        )
    kept = _in_order(raw.time_us, owner, kept, np.unique(owner[kept[backward]]))
    time_us = raw.time_us[kept] - (raw.time_us[kept[:1]].sum() if raw.from_first else 0)
    late = time_us >= LONGEST_US
    if broken == "refuse" and late.any():
        i = int(np.argmax(late))
        raise DefianceError(
            f"{path}: {raw.unit} {raw.place[kept[i]]}: {time_us[i]} us after the beginning, but no recording "
            f"lasts {LONGEST_US} us; another format, or use broken='skip'"
        )
    kept, time_us = kept[~late], time_us[~late]
    recordings = Recordings(
        torch.from_numpy(raw.x[kept].astype(np.int16)),
        torch.from_numpy(raw.y[kept].astype(np.int16)),
        torch.from_numpy(raw.polarity[kept].astype(np.uint8)),
        torch.from_numpy(time_us),
        torch.from_numpy(np.concatenate([[0], np.cumsum(np.bincount(owner[kept], minlength=len(label)))])),
        torch.from_numpy(label.astype(np.int64)),
        pixels,
        pixels,
    )
    backwards = int(inside.sum()) - len(kept)
    return recordings, Report(raw.truncated_bytes, int((~inside).sum()), backwards, raw.other)


def _in_order(time_us: Array, owner: Array, kept: Array, broken: Array) -> Array:
    """Those of the events `kept`, sorted by owner, that leave the clocks of the `broken` ones in order."""
    kept = kept[time_us[kept] >= 0]
    begins, ends = (np.searchsorted(owner[kept], broken, side) for side in ("left", "right"))
    good = np.ones(len(kept), bool)
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        good[begin:end] = False
        good[begin + _longest_ordered(time_us[kept[begin:end]])] = True
    in_order: Array = kept[good]
    return in_order


def _longest_ordered(time_us: Array) -> Array:
    """Places of the most events whose clock never runs backwards (patience sorting)."""
    tails: list[int] = []  # the least last time of an ordered choice of each length ...
    last: list[int] = []  # ... and the event that has it
    before = np.full(len(time_us), -1)
    for i, time in enumerate(time_us.tolist()):
        length = bisect_right(tails, time)
        before[i] = last[length - 1] if length else -1
        tails[length : length + 1] = [time]
        last[length : length + 1] = [i]
    chosen = np.empty(len(tails), np.int64)
    event = last[-1] if last else -1
    for place in range(len(tails) - 1, -1, -1):
        chosen[place] = event
        event = before[event]
    return chosen


def _whole(path: Path, size: int, start: int, event_bytes: int, broken: Broken) -> tuple[int, int]:
    """How many whole events a file holds from `start` on, and the bytes after the last one."""
    events, rest = divmod(size - start, event_bytes)
    if broken == "refuse" and (rest or not events):
        raise DefianceError(
            f"{path}: byte {size - rest}: the file ends after {rest} of an event's {event_bytes} bytes"
            if rest
            else f"{path}: byte {start}: no events"
        )
    return events, rest


def _read_nmnist(path: Path, data: bytes, broken: Broken) -> _Raw:
    _, rest = _whole(path, len(data), 0, nmnist.EVENT_BYTES, broken)
    decoder = nmnist.Decoder()
    events = decoder.feed(data)
    return _Raw(
        events.x,
        events.y,
        events.polarity,
        events.time_us,
        events.place * nmnist.EVENT_BYTES,
        truncated_bytes=rest,
        other=decoder.overflows,
    )


def _read_aedat2(path: Path, data: bytes, broken: Broken) -> _Raw:
    if not data.startswith(b"#!AER-DAT2.0"):
        raise DefianceError(f"{path}: byte 0: not an AEDAT 2.0 file; it would begin with #!AER-DAT2.0")
    start = 0
    while data[start : start + 1] == b"#":
        start = data.find(b"\n", start, AEDAT_HEADER_BYTES) + 1
        if start == 0:
            raise DefianceError(f"{path}: byte 0: the header does not end within {AEDAT_HEADER_BYTES} bytes")
    events, rest = _whole(path, len(data), start, AEDAT2_EVENT_BYTES, broken)
    address, time_us = np.frombuffer(data, ">u4", 2 * events, start).reshape(-1, 2).T.astype(np.int64)
    pixel = (address & AEDAT2_SPECIAL) == 0
    address, time_us = address[pixel], time_us[pixel]
    beyond = address >> 16  # another camera's addresses; such pixels lie outside
    return _Raw(
        DVS128_PIXELS - 1 - ((address >> 1) & 0x7F) - beyond * DVS128_PIXELS,
        DVS128_PIXELS - 1 - ((address >> 8) & 0x7F),
        1 - (address & 1),
        time_us,
        start + np.arange(events)[pixel] * AEDAT2_EVENT_BYTES,
        truncated_bytes=rest,
        other=int((~pixel).sum()),
        from_first=True,
    )


def _read_aedat3(path: Path, data: bytes, broken: Broken) -> _Raw:
    if not data.startswith(b"#!AER-DAT3.1"):
        raise DefianceError(f"{path}: byte 0: not an AEDAT 3.1 file; it would begin with #!AER-DAT3.1")
    at = data.find(AEDAT3_END, 0, AEDAT_HEADER_BYTES) + len(AEDAT3_END)
    if at < len(AEDAT3_END):
        raise DefianceError(f"{path}: byte 0: the header does not end within {AEDAT_HEADER_BYTES} bytes")
    words, times, places, other, rest = [], [], [], 0, 0
    while at < len(data):
        try:
            kind, event_bytes, overflow, count = _packet(data, at)
        except ValueError as error:
            if broken == "refuse":
                raise DefianceError(f"{path}: byte {at}: {error}") from None
            rest = len(data) - at
            break
        at += AEDAT3_PACKET.size
        there = min(count, (len(data) - at) // event_bytes)
        if there < count:
            rest = len(data) - at - there * event_bytes
            if broken == "refuse":
                raise DefianceError(
                    f"{path}: byte {len(data)}: the file ends after {there} of a packet's {count} events"
                )
        if kind == AEDAT3_POLARITY:
            word, time_us = np.frombuffer(data, "<u4", 2 * there, at).reshape(-1, 2).T.astype(np.int64)
            valid = (word & 1) == 1
            words.append(word[valid])
            times.append(time_us[valid] + (overflow << 31))
            places.append(at + np.arange(there)[valid] * AEDAT3_EVENT_BYTES)
            other += int((~valid).sum())
        else:
            other += there
        at += there * event_bytes + (rest if there < count else 0)
    if broken == "refuse" and not words:
        raise DefianceError(f"{path}: byte {at}: no polarity events")
    word, time_us, place = (
        np.concatenate([np.zeros(0, np.int64), *parts]) for parts in (words, times, places)
    )
    return _Raw(
        (word >> 17) & 0x7FFF,
        (word >> 2) & 0x7FFF,
        (word >> 1) & 1,
        time_us,
        place,
        truncated_bytes=rest,
        other=other,
        from_first=True,
    )


def _packet(data: bytes, at: int) -> tuple[int, int, int, int]:
    """Read a packet's header: type, bytes per event, overflows of the clock, events; or a ValueError."""
    if len(data) - at < AEDAT3_PACKET.size:
        raise ValueError(f"the file ends within a packet's header of {AEDAT3_PACKET.size} bytes")
    kind, _, event_bytes, clock, overflow, capacity, count, valid = AEDAT3_PACKET.unpack_from(data, at)
    if kind < 0 or event_bytes < 1 or overflow < 0 or not 0 <= valid <= count <= capacity:
        raise ValueError("not a packet's header")
    if kind == AEDAT3_POLARITY and (event_bytes != AEDAT3_EVENT_BYTES or clock != 4):
        raise ValueError(f"polarity events of {event_bytes} bytes; there should be {AEDAT3_EVENT_BYTES}")
    return kind, event_bytes, overflow, count


def _read_npz(path: Path, data: bytes, broken: Broken) -> _Raw:
    del broken  # an archive is whole or not readable
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            members = {member.filename: member for member in archive.infolist()}
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > FILE_BYTES:
                raise DefianceError(f"{path}: {unpacked} bytes when unpacked, more than {FILE_BYTES}")
            missing = [name for name in NPZ_FIELDS if f"{name}.npy" not in members]
            if missing:
                raise DefianceError(
                    f"{path}: no array {missing[0]!r}; there should be {', '.join(NPZ_FIELDS)}"
                )
            fields = {name: _array(archive, members[f"{name}.npy"]) for name in NPZ_FIELDS}
    except DefianceError:
        raise
    except Exception as error:  # zipfile, the decompressors and NumPy's header raise a dozen kinds
        raise DefianceError(f"{path}: not a readable archive of arrays: {error}") from error
    for name, array in fields.items():
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise DefianceError(
                f"{path}: array {name!r} must be one row of integers, not {array.dtype} {array.shape}"
            )
    x, y, polarity, time_us, offset, label = (fields[name].astype(np.int64) for name in NPZ_FIELDS)
    if not len(x) == len(y) == len(polarity) == len(time_us) or len(offset) != len(label) + 1:
        raise DefianceError(f"{path}: arrays x, y, p, t, or offset and label, do not fit each other")
    if offset[0] != 0 or offset[-1] != len(x) or (np.diff(offset) < 0).any():
        raise DefianceError(f"{path}: array 'offset' does not rise from 0 to the {len(x)} events")
    if len(x) and (polarity.min() < 0 or polarity.max() > 1 or time_us.min() < 0):
        raise DefianceError(f"{path}: arrays p and t must hold 0 or 1, and times from 0 on")
    return _Raw(x, y, polarity, time_us, np.arange(len(x)), unit="event", offset=offset, label=label)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Unpack an array: no more bytes than the archive says, whatever the array's own header claims."""
    if member.compress_type not in NPZ_COMPRESSIONS:
        raise ValueError(f"{member.filename} is compressed in a way that NumPy does not write")
    with archive.open(member) as packed:
        data = packed.read(member.file_size)
    file = BytesIO(data)
    numpy: Any = np.lib.format  # has no types
    version = numpy.read_magic(file)
    read_header = numpy.read_array_header_1_0 if version == (1, 0) else numpy.read_array_header_2_0
    shape, _, dtype = read_header(file)
    count = math.prod(shape)
    if not 0 <= count * dtype.itemsize <= member.file_size:
        raise ValueError(f"{member.filename} has {member.file_size} bytes, too few for {shape} of {dtype}")
    return np.frombuffer(data, dtype, count, file.tell()).reshape(shape)


READERS: dict[str, tuple[Callable[[Path, bytes, Broken], _Raw], int]] = {
    "nmnist": (_read_nmnist, nmnist.PIXELS),
    "aedat2": (_read_aedat2, DVS128_PIXELS),
    "aedat3": (_read_aedat3, DVS128_PIXELS),
    "npz": (_read_npz, nmnist.PIXELS),
}
