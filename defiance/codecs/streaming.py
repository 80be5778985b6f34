"""A device and an edge that work step by step, with packets between them, and how long they take.

```
 frames, one per step ─▶ encode_stream ─▶ write(packet) ~ file, pipe, socket ~ portions ─▶ decode_stream
```
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from defiance.codecs import vdib
from defiance.codecs.codec import Codec
from defiance.codecs.conventional import BlockCodec
from defiance.codecs.packets import NUMBERS, Arrivals, Assembler, PacketReader, SymbolPacket
from defiance.codecs.vdib import Vdib
from defiance.errors import DefianceError
from defiance.seeding import Stream

PORTION_BYTES = 1 << 16


@dataclass(frozen=True)
class Sent:
    """What a device did when a burst was due.

    Attributes:
        recording: its number, from 0.
        step: the last one that has been seen.
        bytes: that were written.
        began_s: when that step's frame came, on `time.perf_counter`'s clock.
        elapsed_s: from then to the last byte written.
    """

    recording: int
    step: int
    bytes: int
    began_s: float
    elapsed_s: float


@dataclass(frozen=True)
class Decision:
    """What the edge believes.

    Attributes:
        recording: its number, modulo 2^16.
        step: the last one that anything has arrived of.
        label: the likeliest class.
        probability: of that class, as the codec sees it.
        missing: share of the packets up to that step that have not arrived.
        elapsed_s: from the arrival of the bytes to the decision.
    """

    recording: int
    step: int
    label: int
    probability: float
    missing: float
    elapsed_s: float


@dataclass(frozen=True)
class Latency:
    """Of many events, in seconds.

    Attributes:
        p50_s: median.
        p99_s: 99th percentile.
        count: events.
    """

    p50_s: float
    p99_s: float
    count: int

    @staticmethod
    def of(elapsed_s: Sequence[float]) -> Latency:
        """Fold durations; nan if there are none."""
        if not elapsed_s:
            return Latency(float("nan"), float("nan"), 0)
        p50_s, p99_s = torch.tensor(elapsed_s, dtype=torch.float64).quantile(
            torch.tensor([0.5, 0.99], dtype=torch.float64)
        )
        return Latency(float(p50_s), float(p99_s), len(elapsed_s))


def steps_per_burst(codec: Codec) -> int:
    """Return the steps from one burst of symbols to the next: one, if the codec sends at every step."""
    return codec.steps // codec.shape.blocks if isinstance(codec, BlockCodec) else 1


def encode_stream(
    codec: Codec, frames: Iterable[Tensor], write: Callable[[bytes], object], stream: Stream
) -> Iterator[Sent]:
    """Encode frames as they come; every T of them are a recording.

    Args:
        codec: with binary symbols.
        frames: one per step, uint8 [2, H, W].
        write: takes a packet's bytes: a file's `write`, a socket's `sendall`.
        stream: draws of the encoder, a child for each recording.

    Yields:
        What was sent, once per burst.

    Raises:
        DefianceError: symbols are not binary, or nobody reads any more.
    """
    sequence = 0
    for number, frame in enumerate(frames):
        began_s = time.perf_counter()
        recording, step = divmod(number, codec.steps)
        if step == 0:
            device = _device(codec, stream.child(recording).generator())
        with torch.no_grad():
            symbols = device.see(frame)
        if not len(symbols):
            continue
        if bool(((symbols != 0) & (symbols != 1)).any()):
            raise DefianceError(f"stream: packets carry zeros and ones, but {codec.name} sends other symbols")
        packets = [
            SymbolPacket(
                (sequence + place) % NUMBERS, recording % NUMBERS, step + 1 - len(symbols) + place, row
            )
            for place, row in enumerate(symbols.byte())
        ]
        sequence += len(packets)
        written = b"".join(packet.pack() for packet in packets)
        try:
            write(written)
        except OSError as error:
            raise DefianceError(
                f"stream: nobody reads the packets any more ({error.strerror or error}), "
                f"stopped in recording {recording} at step {step}"
            ) from error
        yield Sent(recording, step, len(written), began_s, time.perf_counter() - began_s)


class _Device(Protocol):
    def see(self, frame: Tensor) -> Tensor:
        """Take the next step's frame [2, H, W]; return what is due, [steps of a burst or 0, N]."""


@dataclass
class _AnyDevice:
    """Encodes what has been seen, when a burst is due; encoders do not look at later frames."""

    codec: Codec
    generator: torch.Generator

    def __post_init__(self) -> None:
        self.beginning = self.generator.get_state()
        self.seen: list[Tensor] = []

    def see(self, frame: Tensor) -> Tensor:
        self.seen.append(frame)
        burst = steps_per_burst(self.codec)
        if len(self.seen) % burst:
            return torch.empty(0)
        frames = torch.zeros(1, self.codec.steps, *frame.shape, dtype=torch.uint8)
        frames[0, : len(self.seen)] = torch.stack(self.seen)
        self.generator.set_state(self.beginning)
        return self.codec.encode(frames, self.generator)[0, len(self.seen) - burst : len(self.seen)]


@dataclass
class _SpikingDevice:
    """Keeps its neurons' state: a step costs one step's work."""

    codec: Vdib
    generator: torch.Generator

    def __post_init__(self) -> None:
        self.state = vdib.at_rest(self.codec.config, 1)

    def see(self, frame: Tensor) -> Tensor:
        self.state, spikes = vdib.device_step(
            self.codec.parameters, self.codec.config, self.state, frame[None], self.generator
        )
        return spikes


def _device(codec: Codec, generator: torch.Generator) -> _Device:
    return _SpikingDevice(codec, generator) if isinstance(codec, Vdib) else _AnyDevice(codec, generator)


class Edge:
    """Turns packets into decisions."""

    def __init__(self, codec: Codec) -> None:
        """Wait for packets of this codec's size."""
        symbols = codec.channel_uses // codec.steps
        self.codec = codec
        self.reader = PacketReader(symbols)
        self.assembler = Assembler(codec.steps, symbols)
        self._undecided = False

    def feed(self, received: bytes) -> Iterator[Decision]:
        """Take more bytes; yield a decision after each packet that completes a burst or a gap before it.

        A burst of which packets are lost is decided on when the next recording begins.
        """
        began_s = time.perf_counter()
        for packet in self.reader.feed(received):
            before = self.assembler.present
            new = self.assembler.add(packet)
            present = self.assembler.present
            if before is not None and present is not before and self._undecided:
                yield self._decided(before, began_s)
            if new and present is not None:
                self._undecided = True
                if bool(present.arrived[self._last_burst(present)].all()):
                    yield self._decided(present, began_s)

    def finish(self) -> Iterator[Decision]:
        """Nothing more comes: yield a decision on a burst of which packets are lost, if there is one."""
        if self.assembler.present is not None and self._undecided:
            yield self._decided(self.assembler.present, time.perf_counter())

    def _last_burst(self, arrivals: Arrivals) -> slice:
        burst = steps_per_burst(self.codec)
        first = int(arrivals.arrived.nonzero().max()) // burst * burst
        return slice(first, first + burst)

    def _decided(self, arrivals: Arrivals, began_s: float) -> Decision:
        self._undecided = False
        end = self._last_burst(arrivals).stop
        with torch.no_grad():
            probability = self.codec.decode(arrivals.received[None])[0, end - 1].softmax(-1)
        label = int(probability.argmax())
        return Decision(
            arrivals.recording,
            end - 1,
            label,
            float(probability[label]),
            1 - float(arrivals.arrived[:end].double().mean()),
            time.perf_counter() - began_s,
        )


def decode_stream(edge: Edge, portions: Iterable[bytes]) -> Iterator[Decision]:
    """Decide as packets come in; `edge.assembler` and `edge.reader` count what was lost or skipped.

    Args:
        edge: with the codec that encoded.
        portions: of bytes, however they are cut; see `portions`.
    """
    for received in portions:
        yield from edge.feed(received)
    yield from edge.finish()


def portions(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield what `read` returns until it is empty: a raw file's or pipe's `read`, a socket's `recv`.

    A connection that the other side breaks off ends the stream.
    """
    while True:
        try:
            received = read(PORTION_BYTES)
        except ConnectionError:
            return
        if not received:
            return
        yield received


def paced(frames: Iterable[Tensor], interval_s: float) -> Iterator[Tensor]:
    """Yield frames at the pace of a camera; one that is overdue comes at once."""
    began_s = time.perf_counter()
    for number, frame in enumerate(frames):
        time.sleep(max(0.0, began_s + number * interval_s - time.perf_counter()))
        yield frame


@dataclass(frozen=True)
class Loopback:
    """A run through a real socket on one machine.

    Attributes:
        decisions: the edge's, in order.
        device: latency from a frame to its packets.
        edge: latency from packets to a decision.
        both: latency from a burst's last frame to the decision on it, the socket included.
    """

    decisions: tuple[Decision, ...]
    device: Latency
    edge: Latency
    both: Latency


def loopback(codec: Codec, frames: Iterable[Tensor], stream: Stream) -> Loopback:
    """Encode and decode at the same time, with a socket in between.

    Args:
        codec: with binary symbols.
        frames: one per step, uint8 [2, H, W]; `paced` ones come as from a camera.
        stream: draws of the encoder.
    """
    near, far = socket.socketpair()
    sent: dict[tuple[int, int], float] = {}
    arrived: list[tuple[Decision, float]] = []

    def receive() -> None:
        for decision in decode_stream(Edge(codec), portions(far.recv)):
            arrived.append((decision, time.perf_counter()))

    receiver = threading.Thread(target=receive)
    receiver.start()
    device_s = []
    try:
        for burst in encode_stream(codec, frames, near.sendall, stream):
            sent[burst.recording % NUMBERS, burst.step] = burst.began_s
            device_s.append(burst.elapsed_s)
    finally:
        near.close()
        receiver.join()
        far.close()
    return Loopback(
        tuple(decision for decision, _ in arrived),
        Latency.of(device_s),
        Latency.of([decision.elapsed_s for decision, _ in arrived]),
        Latency.of([at_s - sent[decision.recording, decision.step] for decision, at_s in arrived]),
    )
