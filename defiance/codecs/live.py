"""Events as they come over a pipe or a socket, as frames; and the ends of such streams.

```
 bytes of N-MNIST's events, 40 bits each ─▶ LiveFrames ─▶ frames [2, H, W], one per step as soon as it ends
```

Times are those of the events' clock, as in a file, and so are recordings: one begins at every multiple of
its duration. A stream that is joined later begins with the recording that is going on, with empty steps
before. Reading a file of N-MNIST's, cutting it (`events.cut`) and counting its events (`events.frames`) gives
the same frames as sending it through a pipe; several files in a row give the frames of one after the other.

A step has ended when an event of a later one has come, or the stream has. While nothing moves there are no
recordings. What no camera can have sent is left out and counted; nothing is raised.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from defiance.codecs.events import nmnist
from defiance.errors import DefianceError

JUMP_STEPS = 4
"""A clock that moves by more is believed when the next event is nearer to there than to where it was."""


class _Event(NamedTuple):
    time_us: int
    base_us: int
    polarity: int
    row: int
    column: int


@dataclass
class LiveFrames:
    """Counts events into frames as they come.

    A clock that jumped back by more than `JUMP_STEPS`, and stayed there, began anew: so does the recording.

    Attributes:
        steps: T, steps of a recording.
        duration_us: of a recording.
        pixels: rows and columns of the sensor.
        outside: events at pixels that the sensor does not have, so far.
        backward: events of steps that have ended.
        jumped: events whose clock was far from those before and after them.
        rest: events in the first step of a last recording; without a second step it isn't one.
        truncated_bytes: after the last whole event, once the stream has ended.
    """

    steps: int
    duration_us: int
    pixels: int
    outside: int = 0
    backward: int = 0
    jumped: int = 0
    rest: int = 0
    truncated_bytes: int = 0
    _decoder: nmnist.Decoder = field(default_factory=nmnist.Decoder)
    _latest: _Event | None = None  # that has been counted
    _doubted: _Event | None = None  # jumped, until the next one tells
    _origin_us: int = 0  # where the clock began
    _first: int = 0  # step since then with which the first recording began ...
    _step: int = 0  # ... and the one that is counted
    _frame: npt.NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.duration_us:
            raise DefianceError(
                f"{self.steps} steps of {self.duration_us} us in all have no events; "
                "give one or more of a microsecond or more"
            )
        self._frame = self._empty()

    def feed(self, received: bytes) -> Iterator[Tensor]:
        """Take more bytes; yield the frames, uint8 [2, H, W], of all steps that they end."""
        events = self._decoder.feed(received)
        inside = (events.x < self.pixels) & (events.y < self.pixels)
        self.outside += int((~inside).sum())
        columns = (events.time_us, events.base_us, events.polarity, events.y, events.x)
        for event in zip(*(column[inside].tolist() for column in columns), strict=True):
            yield from self._take(_Event(*event))

    def finish(self) -> Iterator[Tensor]:
        """Take the end of the stream; yield the rest of the last recording, to its end."""
        self.truncated_bytes = len(self._decoder.waiting)
        if self._doubted is not None:
            if self._latest is not None and self._doubted.time_us > self._latest.time_us:
                yield from self._count(self._doubted)  # in order; nothing came after it
            else:
                self.jumped += 1
        yield from self._end_all()

    def _take(self, event: _Event) -> Iterator[Tensor]:
        doubted, self._doubted = self._doubted, None
        if doubted is not None:
            if self._moved_us(event, doubted) < self._moved_us(event, self._latest):
                if self._latest is not None and doubted.time_us < self._latest.time_us:
                    yield from self._end_all()
                    self._origin_us, self._latest = self._latest.base_us, None
                yield from self._count(doubted)
            else:
                self.jumped += 1
        if self._moved_us(event, self._latest) * self.steps > JUMP_STEPS * self.duration_us:
            self._doubted = event
        else:
            yield from self._count(event)

    def _count(self, event: _Event) -> Iterator[Tensor]:
        step = (event.time_us - self._origin_us) * self.steps // self.duration_us
        begins = step // self.steps * self.steps
        if self._latest is None:
            self._first = self._step = begins
            self._latest = event
        if step < self._step:
            self.backward += 1
            return
        if begins > self._step:
            yield from self._end()
            self._step = begins
        while self._step < step:
            yield self._ended()
        place = event.polarity, event.row, event.column
        self._frame[place] += self._frame[place] < 255
        self._latest = max(self._latest, event)

    def _end_all(self) -> Iterator[Tensor]:
        """Ends the last recording, unless it has only begun."""
        if self._step % self.steps == 0 and self._step > self._first:
            self.rest += int(self._frame.sum())
            self._frame = self._empty()
        elif self._latest is not None:
            yield from self._end()

    def _end(self) -> Iterator[Tensor]:
        """Ends the recording that is going on."""
        for _ in range(self._step % self.steps, self.steps):
            yield self._ended()

    def _ended(self) -> Tensor:
        frame, self._frame = torch.from_numpy(self._frame), self._empty()
        self._step += 1
        return frame

    def _empty(self) -> npt.NDArray[np.uint8]:
        return np.zeros((2, self.pixels, self.pixels), np.uint8)

    @staticmethod
    def _moved_us(event: _Event, since: _Event | None) -> int:
        return 0 if since is None else abs(event.time_us - since.time_us)


def live(portions: Iterable[bytes], frames: LiveFrames) -> Iterator[Tensor]:
    """Yield the frames of a stream of bytes."""
    for received in portions:
        yield from frames.feed(received)
    yield from frames.finish()


@contextmanager
def source(name: str) -> Iterator[Callable[[int], bytes]]:
    """Open what bytes come from: `-` for standard input, `HOST:PORT` to wait there for a sender, else a file.

    Raises:
        DefianceError: it can't be opened.
    """
    with ExitStack() as opened, _refused(name):
        if name == "-":
            yield _raw(sys.stdin.buffer)
        elif (address := _address(name)) is not None:
            with socket.create_server(address) as server:
                connection = opened.enter_context(server.accept()[0])
            yield connection.recv
        else:
            yield _raw(opened.enter_context(Path(name).open("rb")))


@contextmanager
def destination(name: str) -> Iterator[Callable[[bytes], object]]:
    """Open what bytes go to: `-` for standard output, `HOST:PORT` where somebody waits, else a file.

    Raises:
        DefianceError: it can't be opened.
    """
    with ExitStack() as opened, _refused(name):
        if name == "-":
            yield _flushed(sys.stdout.buffer)
        elif (address := _address(name)) is not None:
            connection = opened.enter_context(socket.create_connection(address, timeout=10))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection.sendall
        else:
            yield _flushed(opened.enter_context(Path(name).open("wb")))


def _address(name: str) -> tuple[str, int] | None:
    """`127.0.0.1:9000` as host and port; None if it is a file's name."""
    host, colon, port = name.rpartition(":")
    if not colon or not host or not port.isdigit() or "/" in name:
        return None
    if int(port) > 65535:
        raise DefianceError(f"{name}: a port is at most 65535")
    return host.strip("[]"), int(port)


def _raw(file: BinaryIO) -> Callable[[int], bytes]:
    """Reads what is there, without waiting for more."""
    read: Callable[[int], bytes] = getattr(file, "read1", file.read)
    return read


def _flushed(file: BinaryIO) -> Callable[[bytes], object]:
    def write(content: bytes) -> None:
        file.write(content)
        file.flush()

    return write


@contextmanager
def _refused(name: str) -> Iterator[None]:
    """Names the end of a stream that can't be opened or breaks."""
    try:
        yield
    except OSError as error:
        hint = "; start `defiance codec decode` there first" if isinstance(error, ConnectionError) else ""
        raise DefianceError(f"{name}: {error.strerror or error}{hint}") from error
