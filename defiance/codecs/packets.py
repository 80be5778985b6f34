"""Symbols as packets, and streams of them from a device to an edge over a file, a pipe or a socket.

```
 0       2         3          5           7      9         11
 | D5 1C | version | sequence | recording | step | symbols | bits, eight a byte, the first highest | CRC-16 |
```

A packet carries the N symbols of one time step, zeros and ones; numbers are big-endian. The sequence number
counts packets and the recording number recordings, both modulo 2^16; the CRC is CCITT's, over everything
between the marker and itself.

A `PacketReader` takes bytes in any portions, finds packets by their marker and drops what their CRC refutes.
An `Assembler` puts packets into recordings: what never came is 0.5, as likely a zero as a one; duplicates and
latecomers are counted and dropped. Whatever arrives, neither raises.
"""

from __future__ import annotations

import struct
from binascii import crc_hqx
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from defiance.errors import DefianceError

MARKER = b"\xd5\x1c"
VERSION = 1
HEADER = struct.Struct(">BHHHH")
CRC = struct.Struct(">H")
CRC_INITIAL = 0xFFFF
OVERHEAD_BYTES = len(MARKER) + HEADER.size + CRC.size
NUMBERS = 1 << 16
"""Sequence, recording, step and symbols are below this."""
UNKNOWN = 0.5
"""In place of a symbol that did not arrive."""
LATE_IN_A_ROW = 8
"""So many packets of past recordings in a row mean that the sender began anew."""


@dataclass(frozen=True)
class SymbolPacket:
    """The symbols of one time step.

    Attributes:
        sequence: counts a sender's packets, modulo 2^16.
        recording: counts recordings, modulo 2^16.
        step: t, from 0.
        symbols: uint8 [N], zeros and ones.
    """

    sequence: int
    recording: int
    step: int
    symbols: Tensor

    def __post_init__(self) -> None:
        numbers = (self.sequence, self.recording, self.step, self.symbols.numel())
        if self.symbols.dim() != 1 or not all(0 <= number < NUMBERS for number in numbers):
            raise DefianceError(
                f"packet: sequence {self.sequence}, recording {self.recording}, step {self.step} and symbols "
                f"{list(self.symbols.shape)} must be below {NUMBERS}, the symbols one row"
            )
        if self.symbols.dtype != torch.uint8 or bool((self.symbols > 1).any()):
            raise DefianceError(
                "packet: symbols must be uint8, zeros and ones; analogue codes have no packets"
            )

    def pack(self) -> bytes:
        """Return the packet's bytes."""
        head = HEADER.pack(VERSION, self.sequence, self.recording, self.step, len(self.symbols))
        body = head + np.packbits(self.symbols.numpy()).tobytes()
        return MARKER + body + CRC.pack(crc_hqx(body, CRC_INITIAL))


def packet_bytes(symbols: int) -> int:
    """Return the length of a packet with so many symbols."""
    return OVERHEAD_BYTES + -(-symbols // 8)


@dataclass
class PacketReader:
    """Finds packets in a stream of bytes, or in datagrams.

    Attributes:
        symbols: N; packets with another number are as foreign as those with a wrong CRC.
        skipped_bytes: that belonged to no packet.
    """

    symbols: int
    skipped_bytes: int = 0
    _waiting: bytearray = field(default_factory=bytearray)

    def feed(self, received: bytes) -> list[SymbolPacket]:
        """Take more bytes; return the packets that they complete."""
        self._waiting += received
        waiting, place, length = self._waiting, 0, packet_bytes(self.symbols)
        packets: list[SymbolPacket] = []
        while True:
            found = waiting.find(MARKER, place)
            if found < 0:  # the last byte may begin a marker
                found = max(place, len(waiting) - waiting.endswith(MARKER[:1]))
            self.skipped_bytes += found - place
            place = found
            if len(waiting) - place < length:
                break
            packet = self._parsed(bytes(waiting[place + len(MARKER) : place + length]))
            if packet is None:
                self.skipped_bytes += 1
                place += 1
            else:
                packets.append(packet)
                place += length
        del waiting[:place]
        return packets

    def _parsed(self, body: bytes) -> SymbolPacket | None:
        version, sequence, recording, step, symbols = HEADER.unpack_from(body)
        (crc,) = CRC.unpack_from(body, len(body) - CRC.size)
        if version != VERSION or symbols != self.symbols or crc != crc_hqx(body[: -CRC.size], CRC_INITIAL):
            return None
        bits = np.frombuffer(body[HEADER.size : -CRC.size], np.uint8)
        return SymbolPacket(sequence, recording, step, torch.from_numpy(np.unpackbits(bits, count=symbols)))


@dataclass
class Arrivals:
    """What has come of one recording.

    Attributes:
        recording: its number, modulo 2^16.
        received: float32 [T, N], zeros and ones, `UNKNOWN` where nothing has arrived.
        arrived: bool [T].
    """

    recording: int
    received: Tensor
    arrived: Tensor

    @staticmethod
    def none(recording: int, steps: int, symbols: int) -> Arrivals:
        """Return a recording of which nothing has come."""
        return Arrivals(
            recording, torch.full((steps, symbols), UNKNOWN), torch.zeros(steps, dtype=torch.bool)
        )


@dataclass
class Assembler:
    """Puts packets into recordings, one at a time: a packet of a later recording ends the present one.

    Attributes:
        steps: T.
        symbols: N.
        present: the recording that is being received; None before the first packet.
        accepted: packets that were put into recordings.
        duplicates: of packets already there.
        late: packets of past recordings.
        foreign: packets with a step beyond T or another N.
        lost: packets that have been passed over and have not come since.
    """

    steps: int
    symbols: int
    present: Arrivals | None = None
    accepted: int = 0
    duplicates: int = 0
    late: int = 0
    foreign: int = 0
    lost: int = 0
    _expected: int | None = None
    _late_in_a_row: int = 0

    def add(self, packet: SymbolPacket) -> bool:
        """Take a packet; return whether it told anything new."""
        if packet.step >= self.steps or len(packet.symbols) != self.symbols:
            self.foreign += 1
            return False
        ahead = 1 if self.present is None else _ahead(packet.recording, self.present.recording)
        if ahead < 0:
            self.late += 1
            self._late_in_a_row += 1
            if self._late_in_a_row < LATE_IN_A_ROW:
                return False
            self._expected = None
        self._late_in_a_row = 0
        if self.present is None or ahead:
            self.present = Arrivals.none(packet.recording, self.steps, self.symbols)
        if self.present.arrived[packet.step]:
            self.duplicates += 1
            return False
        self._count(packet.sequence)
        self.present.received[packet.step] = packet.symbols.float()
        self.present.arrived[packet.step] = True
        self.accepted += 1
        return True

    def _count(self, sequence: int) -> None:
        ahead = 0 if self._expected is None else _ahead(sequence, self._expected)
        if ahead < 0:
            self.lost = max(0, self.lost - 1)
        else:
            self.lost += ahead
            self._expected = (sequence + 1) % NUMBERS


def _ahead(number: int, reference: int) -> int:
    """How far a number modulo 2^16 is ahead of another, -2^15 to 2^15 - 1 (RFC 1982)."""
    return (number - reference + NUMBERS // 2) % NUMBERS - NUMBERS // 2
