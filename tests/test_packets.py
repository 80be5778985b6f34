"""Packets and streams: nothing that arrives, or does not, stops the edge."""

import os
import socket
from binascii import crc_hqx
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from codec_contract import CLASSES, SIZE, STEPS, bars
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from defiance.codecs import vdib
from defiance.codecs.codec import Codec
from defiance.codecs.conventional import Shape
from defiance.codecs.joint import JointAnn, JointAnnConfig
from defiance.codecs.packets import (
    CRC_INITIAL,
    LATE_IN_A_ROW,
    NUMBERS,
    UNKNOWN,
    Assembler,
    PacketReader,
    SymbolPacket,
    packet_bytes,
)
from defiance.codecs.streaming import (
    Decision,
    Edge,
    Latency,
    decode_stream,
    encode_stream,
    loopback,
    paced,
    portions,
    steps_per_burst,
)
from defiance.codecs.vdib import Vdib, VdibConfig
from defiance.errors import DefianceError
from defiance.seeding import stream

N = 10
DRAWS = stream(5, "packets")


def packet(sequence: int, recording: int = 0, step: int | None = None, seed: int = 0) -> SymbolPacket:
    symbols = torch.randint(2, (N,), generator=stream(seed, "symbols", sequence).generator()).byte()
    return SymbolPacket(sequence % NUMBERS, recording, sequence % STEPS if step is None else step, symbols)


def same(a: SymbolPacket, b: SymbolPacket) -> bool:
    return a.pack() == b.pack()


class TestPackets:
    @given(
        st.lists(st.integers(0, 1), max_size=70),
        st.integers(0, NUMBERS - 1),
        st.integers(0, NUMBERS - 1),
        st.integers(0, NUMBERS - 1),
    )
    def test_there_and_back(self, symbols: list[int], sequence: int, recording: int, step: int) -> None:
        sent = SymbolPacket(sequence, recording, step, torch.tensor(symbols, dtype=torch.uint8))
        packed = sent.pack()
        assert len(packed) == packet_bytes(len(symbols))
        (read,) = PacketReader(len(symbols)).feed(packed)
        assert same(read, sent)

    def test_bytes_are_as_documented(self) -> None:
        """Golden: another implementation must read the same; checked by hand against the layout."""
        symbols = torch.tensor([1, 0, 1, 0, 0, 0, 0, 0, 0, 1], dtype=torch.uint8)
        packed = SymbolPacket(0x0102, 0x0304, 0x0506, symbols).pack()
        body = bytes([1, 1, 2, 3, 4, 5, 6, 0, 10, 0b10100000, 0b01000000])
        assert packed == b"\xd5\x1c" + body + crc_hqx(body, CRC_INITIAL).to_bytes(2, "big")
        assert crc_hqx(b"123456789", CRC_INITIAL) == 0x29B1  # CRC-16/CCITT-FALSE's published check value

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"sequence": NUMBERS}, "must be below 65536"),
            ({"step": -1}, "must be below 65536"),
            ({"symbols": torch.zeros(2, 2, dtype=torch.uint8)}, "one row"),
            ({"symbols": torch.full((3,), 2, dtype=torch.uint8)}, "zeros and ones"),
            ({"symbols": torch.zeros(3)}, "zeros and ones"),
        ],
    )
    def test_what_no_packet_can_carry_is_refused(self, changes: dict[str, Any], message: str) -> None:
        fields = {"sequence": 0, "recording": 0, "step": 0, "symbols": torch.zeros(3, dtype=torch.uint8)}
        with pytest.raises(DefianceError, match=message):
            SymbolPacket(**{**fields, **changes})


class TestReader:
    @given(st.lists(st.integers(0, 60), max_size=20), st.integers(1, 12))
    def test_portions_of_any_size(self, cuts: list[int], count: int) -> None:
        sent = [packet(number) for number in range(count)]
        written = b"".join(each.pack() for each in sent)
        places = sorted({0, len(written), *(min(cut, len(written)) for cut in cuts)})
        reader = PacketReader(N)
        read = [each for a, b in pairwise(places) for each in reader.feed(written[a:b])]
        assert len(read) == count and all(map(same, read, sent))
        assert reader.skipped_bytes == 0

    @given(st.lists(st.binary(max_size=30), min_size=2, max_size=8))
    def test_packets_are_found_between_anything(self, rubbish: list[bytes]) -> None:
        sent = [packet(number) for number in range(len(rubbish) - 1)]
        written = b"".join(a + b.pack() for a, b in zip(rubbish, sent, strict=False)) + rubbish[-1]
        reader = PacketReader(N)
        read = reader.feed(written) + reader.feed(bytes(packet_bytes(N)))
        kept = [each.pack() for each in read]
        assert [each.pack() for each in sent] == [each for each in kept if each in written]
        assert reader.skipped_bytes >= sum(map(len, rubbish))

    @given(st.integers(0, 8 * packet_bytes(N) - 1))
    def test_a_flipped_bit_costs_one_packet(self, bit: int) -> None:
        written = bytearray(packet(1).pack())
        written[bit // 8] ^= 1 << bit % 8
        reader = PacketReader(N)
        (read,) = reader.feed(bytes(written) + packet(2).pack())
        assert same(read, packet(2))

    @given(st.binary(max_size=400), st.integers(0, 40))
    def test_rubbish_is_skipped(self, rubbish: bytes, symbols: int) -> None:
        reader = PacketReader(symbols)
        reader.feed(rubbish)
        assert reader.skipped_bytes <= len(rubbish)

    def test_foreign_packets_are_skipped(self) -> None:
        assert PacketReader(N + 1).feed(packet(0).pack() * 3) == []


class TestAssembler:
    def test_lost_symbols_are_unknown(self) -> None:
        assembler = Assembler(STEPS, N)
        for number in (0, 2, 3, 5):
            assert assembler.add(packet(number))
        assert assembler.present is not None and assembler.lost == 2
        assert assembler.present.arrived.tolist() == [True, False, True, True, False, True]
        assert bool((assembler.present.received[[1, 4]] == UNKNOWN).all())
        assert torch.equal(assembler.present.received[3], packet(3).symbols.float())

    @given(st.permutations(range(STEPS)), st.lists(st.integers(0, STEPS - 1), max_size=5))
    def test_order_and_duplicates_change_nothing(self, order: list[int], again: list[int]) -> None:
        assembler = Assembler(STEPS, N)
        for number in order:
            assert assembler.add(packet(number))
        for number in again:
            assert not assembler.add(packet(number))
        assert assembler.present is not None
        expected = torch.stack([packet(step).symbols for step in range(STEPS)]).float()
        assert torch.equal(assembler.present.received, expected)
        assert assembler.duplicates == len(again) and assembler.lost == 0

    def test_a_later_recording_ends_the_present_one(self) -> None:
        assembler = Assembler(STEPS, N)
        assembler.add(packet(0, recording=NUMBERS - 1))
        assert assembler.add(packet(7, recording=0, step=1))  # NUMBERS - 1 + 1
        assert not assembler.add(packet(1, recording=NUMBERS - 1))
        assert assembler.present is not None and assembler.present.recording == 0
        assert assembler.late == 1 and assembler.present.arrived.sum() == 1

    def test_a_sender_that_begins_anew_is_followed(self) -> None:
        assembler = Assembler(STEPS, N)
        assembler.add(packet(60_000, recording=10_000))
        taken = [assembler.add(packet(number, number // STEPS)) for number in range(3 * LATE_IN_A_ROW)]
        assert not any(taken[: LATE_IN_A_ROW - 1]) and all(taken[LATE_IN_A_ROW - 1 :])
        assert assembler.lost == 0

    def test_foreign_steps_are_dropped(self) -> None:
        assembler = Assembler(STEPS, N)
        assert not assembler.add(packet(0, step=STEPS))
        assert assembler.foreign == 1 and assembler.present is None


def spiking(steps: int = STEPS) -> Vdib:
    config = VdibConfig(steps=steps, size=SIZE, channels=(4, 8), hidden=16, readouts=N, classes=CLASSES)
    return Vdib(config, vdib.initial(config, DRAWS.generator()))


def conventional(blocks: int = 1) -> JointAnn:
    config = JointAnnConfig(Shape(STEPS, N, SIZE, CLASSES, 3, blocks), device_hidden=16, edge_hidden=16)
    return JointAnn(config, JointAnn.initial(config, DRAWS.generator()))


CODECS = [pytest.param(spiking(), id="spiking"), *(pytest.param(conventional(b), id=f"{b}") for b in (1, 3))]


def written(codec: Codec, frames: Tensor) -> bytes:
    packets: list[bytes] = []
    for _ in encode_stream(codec, frames.flatten(0, 1), packets.append, DRAWS):
        pass
    return b"".join(packets)


def decisions(codec: Codec, *received: bytes) -> list[Decision]:
    return list(decode_stream(Edge(codec), received))


def expected(codec: Codec, frames: Tensor) -> list[tuple[int, int, int]]:
    """Recording, step and label of each decision, from whole recordings at once."""
    burst, found = steps_per_burst(codec), []
    for recording, each in enumerate(frames):
        with torch.no_grad():
            symbols = codec.encode(each[None], DRAWS.child(recording).generator())
            labels = codec.decode(symbols)[0].argmax(-1)
        found += [(recording, step, int(labels[step])) for step in range(burst - 1, STEPS, burst)]
    return found


@pytest.mark.parametrize("codec", CODECS)
class TestStreams:
    def test_as_whole_recordings(self, codec: Codec) -> None:
        frames = bars(4).frames
        found = decisions(codec, written(codec, frames))
        assert [(each.recording, each.step, each.label) for each in found] == expected(codec, frames)
        assert all(each.missing == 0 and 1 / CLASSES <= each.probability <= 1 for each in found)

    def test_through_a_file(self, codec: Codec, tmp_path: Path) -> None:
        frames, path = bars(3).frames, tmp_path / "packets"
        with path.open("wb") as file:
            sent = list(encode_stream(codec, frames.flatten(0, 1), file.write, DRAWS))
        assert sum(each.bytes for each in sent) == path.stat().st_size == 3 * STEPS * packet_bytes(N)
        with path.open("rb", buffering=0) as file:
            found = list(decode_stream(Edge(codec), portions(file.read)))
        assert [(each.recording, each.step, each.label) for each in found] == expected(codec, frames)

    def test_through_a_pipe(self, codec: Codec) -> None:
        frames = bars(2).frames
        source, sink = os.pipe()
        with os.fdopen(source, "rb", buffering=0) as reading, os.fdopen(sink, "wb", buffering=0) as writing:
            for _ in encode_stream(codec, frames.flatten(0, 1), writing.write, DRAWS):
                pass
            writing.close()
            found = list(decode_stream(Edge(codec), portions(reading.read)))
        assert len(found) == len(expected(codec, frames))

    def test_through_a_socket(self, codec: Codec) -> None:
        frames = bars(3).frames
        run = loopback(codec, frames.flatten(0, 1), DRAWS)
        assert [(each.recording, each.step, each.label) for each in run.decisions] == expected(codec, frames)
        assert run.both.count == run.edge.count == run.device.count == len(run.decisions)
        assert 0 < run.device.p50_s <= run.device.p99_s < 1
        assert 0 < run.edge.p50_s and 0 < run.both.p50_s < 1

    @settings(max_examples=25)
    @given(st.data())
    def test_loss_reordering_duplication_corruption(self, codec: Codec, data: st.DataObject) -> None:
        size = packet_bytes(N)
        whole = written(codec, bars(3).frames)
        packets = [whole[place : place + size] for place in range(0, len(whole), size)]
        order = data.draw(st.lists(st.integers(0, len(packets) - 1), max_size=2 * len(packets)))
        stirred = bytearray(b"".join(packets[number] for number in order))
        for place, value in data.draw(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)))):
            if stirred:
                stirred[place % len(stirred)] = value
        for decision in decisions(codec, bytes(stirred)):
            assert 0 <= decision.label < CLASSES and 0 <= decision.missing < 1
            assert decision.recording < NUMBERS and 0 <= decision.step < STEPS

    @given(st.lists(st.binary(max_size=120), max_size=6))
    def test_rubbish(self, codec: Codec, received: list[bytes]) -> None:
        assert decisions(codec, *received) == []


class TestBursts:
    def test_a_burst_with_a_lost_end_is_decided_on(self) -> None:
        codec, size = conventional(), packet_bytes(N)
        whole = written(codec, bars(2).frames)
        first, second = whole[: (STEPS - 1) * size], whole[STEPS * size : -size]
        found = decisions(codec, first + second)
        assert [(each.recording, each.step) for each in found] == [(0, STEPS - 1), (1, STEPS - 1)]
        assert all(each.missing == pytest.approx(1 / STEPS) for each in found)

    def test_a_late_packet_improves_a_decision(self) -> None:
        codec, size = conventional(3), packet_bytes(N)
        whole = written(codec, bars(1).frames)
        found = decisions(codec, whole[:size] + whole[2 * size :] + whole[size : 2 * size])
        assert [each.step for each in found] == [3, 5, 5]
        assert [each.missing > 0 for each in found] == [True, True, False]


class TestLosses:
    def test_accuracy_decays_with_loss_and_nothing_crashes(self) -> None:
        """A trained code's own symbols carry the class in every step: a repetition code does that here."""
        codec, generator = Parity(), DRAWS.generator()
        labels = torch.randint(CLASSES, (60,), generator=generator)
        frames = torch.zeros(60, STEPS, 2, SIZE, SIZE, dtype=torch.uint8)
        frames[torch.arange(60), :, 0, 0, labels] = 1
        whole, size = written(codec, frames), packet_bytes(N)
        packets = [whole[place : place + size] for place in range(0, len(whole), size)]

        def accuracy(loss: float) -> float:
            kept = torch.rand(len(packets), generator=generator) >= loss
            received = b"".join(each for each, keep in zip(packets, kept.tolist(), strict=True) if keep)
            last = {each.recording: each.label for each in decisions(codec, received)}
            return sum(last.get(number) == int(label) for number, label in enumerate(labels)) / 60

        assert accuracy(0.0) == 1.0
        assert accuracy(0.5) > 0.9
        assert 0.2 < accuracy(0.95) < 0.6


class Parity:
    """Sends the class as a one among zeros, at every step; adds up what arrives."""

    name, steps, channel_uses = "one-hot", STEPS, STEPS * N

    def encode(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        return torch.nn.functional.pad(frames[:, :, 0, 0, :CLASSES].float(), (0, N - CLASSES))

    def decode(self, received: Tensor) -> Tensor:
        return (2 * received[..., :CLASSES] - 1).cumsum(1)


class TestBorders:
    def test_analogue_symbols_are_refused(self) -> None:
        config = JointAnnConfig(Shape(STEPS, N, SIZE, CLASSES), "analogue")
        codec = JointAnn(config, JointAnn.initial(config, DRAWS.generator()))
        with pytest.raises(DefianceError, match="joint-analogue sends other symbols"):
            written(codec, bars(1).frames)

    def test_a_reader_that_went_away(self) -> None:
        near, far = socket.socketpair()
        far.close()
        with near, pytest.raises(DefianceError, match="nobody reads the packets any more"):
            for _ in encode_stream(spiking(), bars(1).frames[0], near.sendall, DRAWS):
                pass

    def test_a_broken_connection_ends_the_stream(self) -> None:
        def broken(count: int) -> bytes:
            raise ConnectionResetError

        assert list(portions(broken)) == []

    def test_an_incomplete_recording_is_sent_as_far_as_it_goes(self) -> None:
        found = decisions(spiking(), written(spiking(), bars(1).frames[:, :4]))
        assert [each.step for each in found] == [0, 1, 2, 3]

    def test_paced(self) -> None:
        latency = Latency.of([1.0, 2.0, 3.0])
        assert (latency.p50_s, latency.count) == (2.0, 3)
        assert Latency.of([]).count == 0
        frames = bars(1).frames[0]
        assert torch.equal(torch.stack(list(paced(frames, 1e-4))), frames)


def test_symbols_survive_a_long_stream() -> None:
    """More packets than there are sequence numbers."""

    def each() -> Iterator[Tensor]:
        for number in range(3):
            yield from torch.full((STEPS, 2, SIZE, SIZE), number, dtype=torch.uint8)

    edge, numbers = Edge(spiking()), iter(range(NUMBERS - 7, NUMBERS + 11))
    for received in (written(spiking(), torch.stack(list(each())).view(3, STEPS, 2, SIZE, SIZE)),):
        for read in PacketReader(N).feed(received):
            renumbered = SymbolPacket(next(numbers) % NUMBERS, read.recording, read.step, read.symbols)
            assert len(list(edge.feed(renumbered.pack()))) == 1
    assert edge.assembler.lost == 0 and edge.assembler.accepted == 18
