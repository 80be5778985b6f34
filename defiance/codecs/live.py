"""Events as they come over a pipe or a socket, as frames; and the ends of such streams.

```
 bytes of N-MNIST's events, 40 bits each ─▶ LiveFrames ─▶ frames [2, H, W], one per step as soon as it ends
```

Time counts from the first event. A step has ended when an event of a later one has come, or the stream has.
What no camera can have sent (pixels outside the sensor, a clock that runs backwards) is left out and counted;
nothing is raised.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from defiance.errors import DefianceError

EVENT_BYTES = 5
CLOCK_US = 1 << 23
"""N-MNIST's clock begins again after 8.4 s."""
OVERFLOW_ROW = 240
"""Not an event: N-MNIST's sign that the clock moved on."""
CATCH_UP_STEPS = 1 << 12
"""Steps without events that a jump of the clock may bring; beyond, the clock is wrong."""


@dataclass
class LiveFrames:
    """Counts events into frames as they come.

    Attributes:
        step_us: length of a step.
        pixels: rows and columns of the sensor.
        outside: events at pixels that the sensor does not have, so far.
        backward: events of steps that have ended, or of a clock that jumped too far.
        truncated_bytes: after the last whole event, once the stream has ended.
    """

    step_us: int
    pixels: int
    outside: int = 0
    backward: int = 0
    truncated_bytes: int = 0
    _waiting: bytes = b""
    _step: int = 0
    _clock_us: int | None = None
    _began_us: int = 0
    _frame: npt.NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        if self.step_us < 1:
            raise DefianceError(f"a step of {self.step_us} us has no events; give a microsecond or more")
        self._frame = self._empty()

    def feed(self, received: bytes) -> Iterator[Tensor]:
        """Take more bytes; yield the frames, uint8 [2, H, W], of all steps that they end."""
        data = self._waiting + received
        whole = len(data) // EVENT_BYTES * EVENT_BYTES
        self._waiting = data[whole:]
        x, y, high, middle, low = np.frombuffer(data[:whole], np.uint8).reshape(-1, EVENT_BYTES).T.astype(int)
        time_us = ((high & 0x7F) << 16) | (middle << 8) | low
        real = y != OVERFLOW_ROW
        inside = real & (x < self.pixels) & (y < self.pixels)
        self.outside += int((real & ~inside).sum())
        columns = zip(
            x[inside].tolist(),
            y[inside].tolist(),
            (high[inside] >> 7).tolist(),
            time_us[inside].tolist(),
            strict=True,
        )
        for column, row, decrease, clock_us in columns:
            latest_us = clock_us if self._clock_us is None else self._clock_us
            if self._clock_us is None:
                self._began_us = clock_us
            now_us = latest_us + (clock_us - latest_us + CLOCK_US // 2) % CLOCK_US - CLOCK_US // 2
            step = (now_us - self._began_us) // self.step_us
            if not self._step <= step < self._step + CATCH_UP_STEPS:
                self.backward += 1
                continue
            self._clock_us = max(latest_us, now_us)
            while self._step < step:
                yield self._ended()
            place = 1 - decrease, row, column
            self._frame[place] += self._frame[place] < 255

    def finish(self) -> Iterator[Tensor]:
        """Take the end of the stream; yield the last frame."""
        self.truncated_bytes = len(self._waiting)
        yield self._ended()

    def _ended(self) -> Tensor:
        frame, self._frame = torch.from_numpy(self._frame), self._empty()
        self._step += 1
        return frame

    def _empty(self) -> npt.NDArray[np.uint8]:
        return np.zeros((2, self.pixels, self.pixels), np.uint8)


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
