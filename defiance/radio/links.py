"""A Link whose losses are a channel's: packets' bits travel over it, and a packet with a wrong bit is lost.

```
 packets ─▶ + headers, checksum ─▶ blocks of k ─▶ code ─▶ queue for the air ─▶ channel ─▶ decode ─▶ all right?
                                                                                                    or lost
```

Codecs are trained and judged on channels; what they cost on the air, and what everything else costs there, is
metered on this link. Both fail at the same rate.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.hardware import RadioProfile
from defiance.link import BackhaulLink, BackhaulState, Deliveries, Packets
from defiance.radio.channels import BinaryChannel
from defiance.seeding import Stream


class Code(Protocol):
    """A block code, such as `defiance.radio.nr.Ldpc`."""

    @property
    def k(self) -> int:
        """Information bits of a block."""

    @property
    def n(self) -> int:
        """Coded bits of a block."""

    def encode(self, bits: Tensor) -> Tensor:
        """Encode float [..., k], zeros and ones, to [..., n]."""

    def decode(self, llr: Tensor) -> Tensor:
        """Decode log P(1)/P(0), float [..., n], to zeros and ones [..., k]."""


@dataclass(frozen=True)
class ChannelState:
    """What is on a channel link.

    Attributes:
        air: queue and transmissions, in coded bits.
        packets: the same ones as they were offered.
    """

    air: BackhaulState
    packets: Packets


@dataclass(frozen=True)
class ChannelLink:
    """A radio link at a given Eb/N0; its senders take turns on the air.

    A lost packet is not repeated. Its fate is drawn by sending random bits in its place, as if scrambled (TS
    38.211 clause 7.3.1.1). That a checksum may overlook an error is left out.

    Attributes:
        channel: of coded bits.
        ebn0_db: energy of an information bit, headers and checksum among them, over N0.
        radio: air rate, overhead and energy; both ends book its central values.
        code: of blocks, the last one filled with zeros; None sends uncoded.
        delay_s: propagation and processing after the last bit is out.
    """

    channel: BinaryChannel
    ebn0_db: float
    radio: RadioProfile
    code: Code | None = None
    delay_s: float = 0.0

    def initial(self) -> ChannelState:
        """Return the state in which nothing is on the air."""
        return ChannelState(self._air.initial(), Packets.empty())

    def offer(self, state: ChannelState, packets: Packets, now_s: float) -> ChannelState:
        """Put packets into the queue.

        Raises:
            DefianceError: a packet is stamped earlier than `now_s`, or its id is on the link already.
        """
        waiting = Packets.concatenate(state.packets, packets)
        if len(waiting.id.unique()) < len(waiting):
            raise DefianceError("two packets on one link have the same id; number them uniquely")
        coded = replace(packets, payload_bits=self._sent_bits(packets.payload_bits))
        return ChannelState(self._air.offer(state.air, coded, now_s), waiting)

    def advance(self, state: ChannelState, until_s: float, rng: Stream) -> tuple[ChannelState, Deliveries]:
        """Hand over what has been sent in full, in the order of its arrival, and what was lost."""
        air, sent = self._air.advance(state.air, until_s, rng)
        order = state.packets.id.argsort()
        place = order[torch.searchsorted(state.packets.id[order], sent.id)]
        due = state.packets.select(place)
        numbers = zip(due.id.tolist(), due.payload_bits.tolist(), strict=True)
        wrong = [self._wrong(payload_bits, rng.child(id)) for id, payload_bits in numbers]
        lost = torch.tensor(wrong, dtype=torch.bool, device=due.id.device)
        bits = sent.payload_bits
        deliveries = replace(
            sent,
            payload_bits=due.payload_bits,
            arrived_s=torch.where(lost, torch.inf, sent.arrived_s),
            channel_uses=-(-bits // self.radio.bits_per_symbol),
            tx_energy_j=self.radio.charged_bits(bits, bits).double() * self.radio.tx_joules_per_bit,
            rx_energy_j=bits.double() * self.radio.rx_joules_per_bit,
        )
        remaining = torch.ones(len(state.packets), dtype=torch.bool, device=place.device).index_fill(
            0, place, False
        )
        return ChannelState(air, state.packets.select(remaining)), deliveries

    @property
    def _air(self) -> BackhaulLink:
        """The air as a wire for coded bits."""
        return BackhaulLink(self.radio.bits_per_s, self.delay_s, header_bits=0)

    def _sent_bits(self, payload_bits: Tensor) -> Tensor:
        """Coded bits of packets, int64 [n]."""
        bits = payload_bits + self.radio.overhead_bits
        return bits if self.code is None else -(-bits // self.code.k) * self.code.n

    def _wrong(self, payload_bits: int, rng: Stream) -> bool:
        """Send as many bits as a packet has; return whether one arrived wrong."""
        generator = rng.generator()
        size = payload_bits + self.radio.overhead_bits
        shape = (1, size) if self.code is None else (-(-size // self.code.k), self.code.k)
        bits = torch.randint(0, 2, shape, generator=generator).float()
        if self.code is None:
            received = self.channel(bits, self.ebn0_db, generator) > 0.5
            return bool((received != (bits > 0.5)).any())
        rate = self.code.k / self.code.n
        received = self.channel(self.code.encode(bits), self.ebn0_db, generator, rate=rate)
        decoded = self.code.decode(self.channel.llr(received, self.ebn0_db, rate=rate))
        return bool((decoded != bits).any())
