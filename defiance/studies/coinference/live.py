"""Trained codecs on live streams: what `defiance codec encode` and `decode` do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from defiance.codecs import events
from defiance.codecs.codec import Codec
from defiance.codecs.events.formats import read
from defiance.codecs.live import LiveFrames, destination, live, source
from defiance.codecs.streaming import Decision, Edge, Latency, decode_stream, encode_stream, paced, portions
from defiance.errors import DefianceError
from defiance.seeding import stream
from defiance.studies.coinference import shipped
from defiance.studies.coinference.data import PIXELS, duration_us
from defiance.studies.coinference.settings import STEPS, Model, Name, base_regime

DATA = ("nmnist", "motion", "digits")


@dataclass(frozen=True)
class Which:
    """Which trained codec.

    Attributes:
        candidate: one of `Name`.
        uses: channel uses per recording.
        data: what it was trained on.
        folder: of the run that trained it; None: one that ships.
    """

    candidate: str
    uses: int
    data: str
    folder: Path | None = None

    def codec(self) -> Codec:
        """Both halves.

        Raises:
            DefianceError: there is no such codec.
        """
        for name, value, known in (
            ("candidate", self.candidate, get_args(Name)),
            ("data", self.data, DATA),
        ):
            if value not in known:
                raise DefianceError(f"--{name} {value!r}: there are {', '.join(known)}")
        if self.uses < STEPS or self.uses % STEPS:
            raise DefianceError(f"--uses {self.uses}: give a multiple of {STEPS}")
        model = Model(self.candidate, self.uses, self.data, base_regime(self.data), shipped.SEED)
        return shipped.load(model, self.folder)


def encode(
    which: Which, events_from: str, packets_to: str, *, broken: Literal["refuse", "skip"], at_pace: bool
) -> None:
    """Encodes events into packets, and says on stderr what was sent and how long it took.

    Args:
        which: codec.
        events_from: a file of events; or `-` or `HOST:PORT`, a stream of N-MNIST's 40-bit events.
        packets_to: a file, `-` or `HOST:PORT`.
        broken: what to do with what no camera can have recorded; a stream's is always skipped.
        at_pace: send a file's frames as slowly as a camera would.
    """
    torch.set_num_threads(1)
    codec = which.codec()
    _warm_up(codec)
    counter = LiveFrames(STEPS, duration_us(which.data), PIXELS)
    from_file = Path(events_from).is_file()
    with destination(packets_to) as write:
        if from_file:
            frames = _of_file(Path(events_from), which, broken, at_pace)
            bursts = list(encode_stream(codec, frames, write, stream(0, "codec")))
        else:
            with source(events_from) as receive:
                frames = live(portions(receive), counter)
                bursts = list(encode_stream(codec, frames, write, stream(0, "codec")))
    sent = sum(burst.bytes for burst in bursts)
    recordings = len({burst.recording for burst in bursts})
    _say(f"{recordings} recordings in {len(bursts)} bursts, {sent} bytes")
    _say(f"from a frame to its packets: {_latency([burst.elapsed_s for burst in bursts])}")
    if not from_file:
        _say(
            f"left out: {counter.outside} events outside the sensor, {counter.backward} of past steps, "
            f"{counter.jumped} of a clock that jumped, {counter.rest} after the last recording's end, "
            f"{counter.truncated_bytes} bytes at the end"
        )


def decode(which: Which, packets_from: str, *, every_step: bool) -> None:
    """Decodes packets, prints what each recording shows; says on stderr what was lost and how long it took.

    Args:
        which: codec.
        packets_from: a file, `-` or `HOST:PORT`.
        every_step: print every decision, not only the last of each recording.
    """
    torch.set_num_threads(1)
    edge = Edge(which.codec())
    _warm_up(edge.codec)
    elapsed_s = []
    print("recording\tstep\tclass\tprobability\tmissing")
    with source(packets_from) as receive:
        held: Decision | None = None  # not yet known to be its recording's last
        for decision in decode_stream(edge, portions(receive)):
            elapsed_s.append(decision.elapsed_s)
            if held is not None and decision.recording != held.recording:
                _print(held)
            last = decision.step == STEPS - 1 and decision.missing == 0
            held = None if every_step or last else decision
            if held is None:
                _print(decision)
        if held is not None:
            _print(held)
    count = edge.assembler
    _say(f"from packets to a decision: {_latency(elapsed_s)}")
    _say(
        f"{count.accepted} packets; lost {count.lost}, duplicates {count.duplicates}, late {count.late}, "
        f"foreign {count.foreign}, {edge.reader.skipped_bytes} bytes skipped"
    )


def _of_file(path: Path, which: Which, broken: Literal["refuse", "skip"], at_pace: bool) -> Iterator[Tensor]:
    """Frames of a file, [2, H, W] each: its recordings, cut by time into ones of the codec's duration."""
    found, report = read(path, broken=broken)
    if (found.height, found.width) != (PIXELS, PIXELS):
        raise DefianceError(
            f"{path}: a sensor of {found.width} x {found.height} pixels, but the codec was trained for "
            f"{PIXELS} x {PIXELS}; crop the events and save them as .npz (docs/events.md shows how)"
        )
    lasting_us = duration_us(which.data)
    recordings, rest = events.cut(found, STEPS, lasting_us)
    _say(
        f"{path}: {len(recordings)} recordings of {lasting_us / 1000:g} ms, cut from {len(found)}; left out: "
        f"{report.outside} events outside the sensor, {report.backward} of a clock that ran backwards, "
        f"{rest} after a last recording's end, {report.other} that are no events, "
        f"{report.truncated_bytes} bytes at the end"
    )
    singly = (recordings.select(torch.tensor([number])) for number in range(len(recordings)))
    binned = (frame for single in singly for frame in events.frames(single, STEPS, lasting_us)[0])
    return paced(binned, lasting_us * 1e-6 / STEPS) if at_pace else binned


def _warm_up(codec: Codec) -> None:
    """Runs both halves on a recording of nothing: first times take tens of ms."""
    nothing = [torch.zeros(2, PIXELS, PIXELS, dtype=torch.uint8)] * STEPS
    for _ in encode_stream(codec, nothing, len, stream(0, "warm up")):
        pass
    with torch.no_grad():
        codec.decode(torch.full((1, STEPS, codec.channel_uses // STEPS), 0.5))


def _print(decision: Decision) -> None:
    found = f"{decision.label}\t{decision.probability:.3f}\t{decision.missing:.3f}"
    print(f"{decision.recording}\t{decision.step}\t{found}", flush=True)


def _latency(elapsed_s: list[float]) -> str:
    found = Latency.of(elapsed_s)
    return f"p50 {1e3 * found.p50_s:.2f} ms, p99 {1e3 * found.p99_s:.2f} ms over {found.count}"


def _say(text: str) -> None:
    print(text, file=sys.stderr)
