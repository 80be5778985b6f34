"""Links: everything that leaves a node travels over one, and is counted there.

A link takes packets in batches (`Link.offer`) and hands them over in time (`Link.advance`), because what a
transfer costs depends on what else is on the way::

    offer(state, packets, now_s) ──▶ state ──▶ advance(state, until_s, rng) ──▶ state, deliveries

A batch is a set of equally long tensors. The bytes themselves stay with the caller, under the packet's id.
States are values: nothing is changed in place. The caller offers packets stamped ``now_s`` or later, and then
advances; within these calls neither the order nor the partition of a batch changes what happens to a packet.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.seeding import Stream

PURPOSES = ("assistance", "data", "model", "signalling", "task")

# TS 38.133 clause 8.1.1: block error rate of a hypothetical PDCCH at which a link is out of, and in, sync;
# the SINRs at which this is so are the Qout and Qin of TR 36.839.
Q_OUT_DB, Q_OUT_BLOCK_ERROR_RATE = -8.0, 0.10
Q_IN_DB, Q_IN_BLOCK_ERROR_RATE = -6.0, 0.02

SEGMENT_BITS = 8 * 1460  # the largest TCP segment in an Ethernet frame


@dataclass(frozen=True)
class Packets:
    """A batch of n packets: 1-D tensors of equal length n.

    Attributes:
        id: int64, unique on its link; a lossy link's draw belongs to it.
        source: int64, number of the sending end point.
        destination: int64, number of the receiving end point.
        purpose: int64, index in `PURPOSES`.
        offered_s: float64, when the packet is ready to be sent.
        payload_bits: int64, eight times the payload's bytes.
    """

    id: Tensor
    source: Tensor
    destination: Tensor
    purpose: Tensor
    offered_s: Tensor
    payload_bits: Tensor

    def __post_init__(self) -> None:
        for field in fields(self):
            column: Tensor = getattr(self, field.name)
            expected = torch.float64 if field.name.endswith(("_s", "_j")) else torch.int64
            if column.shape != (len(self.id),) or column.dtype != expected:
                raise DefianceError(
                    f"{type(self).__name__}.{field.name} is {column.dtype} {tuple(column.shape)};"
                    f" give {expected} ({len(self.id)},)"
                )

    def __len__(self) -> int:
        return self.id.numel()

    @classmethod
    def of(
        cls,
        id: Tensor | Sequence[int] | int,
        *,
        purpose: str,
        payload_bits: Tensor | Sequence[int] | int,
        offered_s: Tensor | Sequence[float] | float,
        source: Tensor | Sequence[int] | int = 0,
        destination: Tensor | Sequence[int] | int = 0,
    ) -> "Packets":
        """Build a batch of one purpose from tensors, sequences or single numbers, which are repeated.

        Raises:
            DefianceError: the purpose is unknown, a size is negative or a time not finite.
        """
        if purpose not in PURPOSES:
            raise DefianceError(f"packet purpose '{purpose}' is unknown; choose one of {', '.join(PURPOSES)}")
        ids = torch.as_tensor(id, dtype=torch.int64).reshape(-1)

        def column(values: Tensor | Sequence[float] | float, dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(values, dtype=dtype, device=ids.device).expand(ids.shape)

        packets = Packets(
            id=ids,
            source=column(source, torch.int64),
            destination=column(destination, torch.int64),
            purpose=column(PURPOSES.index(purpose), torch.int64),
            offered_s=column(offered_s, torch.float64),
            payload_bits=column(payload_bits, torch.int64),
        )
        if not bool(((packets.payload_bits >= 0) & packets.offered_s.isfinite()).all()):
            raise DefianceError("packets need payload_bits >= 0 and a finite offered_s")
        return packets

    @classmethod
    def empty(cls, device: torch.device | str = "cpu") -> Self:
        """Return a batch without packets."""
        whole = torch.empty(0, dtype=torch.int64, device=device)
        real = torch.empty(0, dtype=torch.float64, device=device)
        return cls(*(real if field.name.endswith(("_s", "_j")) else whole for field in fields(cls)))

    @classmethod
    def concatenate(cls, *batches: Self) -> Self:
        """Join batches, in the order given."""
        batches = tuple(batch for batch in batches if len(batch)) or (cls.empty(),)
        if len(batches) == 1:
            return batches[0]
        return cls(*(torch.cat([getattr(batch, field.name) for batch in batches]) for field in fields(cls)))

    def select(self, which: Tensor) -> Self:
        """Return the packets that a bool mask [n] or an int64 index [m] names."""
        return type(self)(*(getattr(self, field.name)[which] for field in fields(self)))


@dataclass(frozen=True)
class Deliveries(Packets):
    """What became of n packets, and what it cost: the packets' columns and six more, 1-D, of length n.

    Attributes:
        arrived_s: float64, when the last bit was received; inf if the packet was lost.
        sent_bits: int64, what travelled: payload, headers, coding, repeats. A lost packet was sent, too.
        channel_uses: int64, complex symbols taken on the air; 0 on a wire.
        tx_energy_j: float64, energy spent by the sender.
        rx_energy_j: float64, energy spent by the receiver.
    """

    arrived_s: Tensor
    sent_bits: Tensor
    channel_uses: Tensor
    tx_energy_j: Tensor
    rx_energy_j: Tensor

    @property
    def delivered(self) -> Tensor:
        """Bool [n]: which packets arrived."""
        return self.arrived_s.isfinite()


State = TypeVar("State")


class Link(Protocol[State]):
    """Moves packets; a state of its own says what is on the way."""

    def initial(self) -> State:
        """Return the state in which nothing is on the way."""

    def offer(self, state: State, packets: Packets, now_s: float) -> State:
        """Hand over packets whose offered_s is `now_s` or later.

        Raises:
            DefianceError: a packet is stamped earlier than `now_s`.
        """

    def advance(self, state: State, until_s: float, rng: Stream) -> tuple[State, Deliveries]:
        """Let time pass until `until_s`; return what is due by then: what arrived and what never will.

        A packet's draws depend on its id and on `rng`, on nothing else; give the same `rng` in every call.
        """


@dataclass(frozen=True)
class DelayLink:
    """Every packet arrives after the same time, at no cost.

    Attributes:
        delay_s: from sender to receiver.
    """

    delay_s: float

    def initial(self) -> Packets:
        """Return an empty batch: the state is what is on the way."""
        return Packets.empty()

    def offer(self, state: Packets, packets: Packets, now_s: float) -> Packets:
        """Add packets to those on the way."""
        return joined(state, packets, now_s)

    def advance(self, state: Packets, until_s: float, rng: Stream) -> tuple[Packets, Deliveries]:
        """Deliver what has been on the way for `delay_s`."""
        arrived_s = state.offered_s + self.delay_s
        due = arrived_s <= until_s
        arrived = state.select(due)
        return state.select(~due), outcome(arrived, arrived_s[due], sent_bits=arrived.payload_bits)


@dataclass(frozen=True)
class IdealLink(DelayLink):
    """Every packet arrives at the instant at which it is offered, at no cost."""

    delay_s: float = 0.0


@dataclass(frozen=True)
class LossyState:
    """What is on a lossy link.

    Attributes:
        packets: on the way.
        packet_loss: float64 [n], each packet's probability of being lost, fixed when it was offered.
        loss_probability: float64 [] or [end points], valid for the packets offered next; whoever knows the
            radio replaces it: ``replace(state, loss_probability=loss_from_sinr(sinr_db))``.
    """

    packets: Packets
    packet_loss: Tensor
    loss_probability: Tensor


@dataclass(frozen=True)
class LossyLink:
    """A radio bearer as signalling sees it: a fixed delay, and losses that follow the radio; no queue.

    Attributes:
        delay_s: from sender to receiver; a lost packet is reported lost after it.
        loss_probability: of every packet until the state says otherwise.
        lossy_end: which end's number indexes the state's loss_probability.
        header_bits: added to each packet. The default is that of RRC messages: PDCP 2 + 4 bytes (sequence
            number, MAC-I), RLC AM 2 (TS 38.323, 38.322), MAC 2 (TS 38.321), CRC 2 (TS 38.212).
        bits_per_channel_use: QPSK at rate 1/2 by default.
        tx_energy_j_per_bit: spent by the sender per sent bit.
        rx_energy_j_per_bit: spent by the receiver per sent bit.
    """

    delay_s: float
    loss_probability: float = 0.0
    lossy_end: Literal["source", "destination"] = "destination"
    header_bits: int = 96
    bits_per_channel_use: float = 1.0
    tx_energy_j_per_bit: float = 0.0
    rx_energy_j_per_bit: float = 0.0

    def initial(self) -> LossyState:
        """Return the state in which nothing is on the way, and all end points lose alike."""
        nothing = torch.empty(0, dtype=torch.float64)
        return LossyState(Packets.empty(), nothing, torch.tensor(self.loss_probability, dtype=torch.float64))

    def offer(self, state: LossyState, packets: Packets, now_s: float) -> LossyState:
        """Add packets to those on the way; the present loss probability becomes theirs."""
        loss = state.loss_probability.to(torch.float64)
        end: Tensor = getattr(packets, self.lossy_end)
        packet_loss = loss[end] if loss.ndim else loss.expand(end.shape)
        return replace(
            state,
            packets=joined(state.packets, packets, now_s),
            packet_loss=torch.cat([state.packet_loss.to(end.device), packet_loss]),
        )

    def advance(self, state: LossyState, until_s: float, rng: Stream) -> tuple[LossyState, Deliveries]:
        """Decide the fate of what has been on the way for `delay_s`."""
        due_s = state.packets.offered_s + self.delay_s
        due = due_s <= until_s
        packets, loss, left = state.packets, state.packet_loss, self.initial()
        if not bool(due.all()):
            left = LossyState(packets.select(~due), loss[~due], state.loss_probability)
            packets, loss, due_s = packets.select(due), loss[due], due_s[due]
        lost = rng.uniform(packets.id) < loss
        sent_bits = packets.payload_bits + self.header_bits
        deliveries = outcome(
            packets,
            arrived_s=torch.where(lost, torch.inf, due_s),
            sent_bits=sent_bits,
            channel_uses=(sent_bits.double() / self.bits_per_channel_use).ceil().to(torch.int64),
            tx_energy_j=sent_bits.double() * self.tx_energy_j_per_bit,
            rx_energy_j=sent_bits.double() * self.rx_energy_j_per_bit,
        )
        return replace(left, loss_probability=state.loss_probability), deliveries


@dataclass(frozen=True)
class BackhaulState:
    """What is on a backhaul.

    Attributes:
        waiting: offered, not yet put in order.
        in_flight: their transmission is settled; they arrive at ``in_flight.arrived_s``.
        busy_until_s: float64 [], when the last settled transmission ends.
    """

    waiting: Packets
    in_flight: Deliveries
    busy_until_s: Tensor


@dataclass(frozen=True)
class BackhaulLink:
    """A wire with one first-in-first-out queue: whoever shares it waits for the others' bits.

    Attributes:
        rate_bps: of the wire.
        delay_s: propagation and processing after the last bit is out.
        header_bits: per segment of at most 1460 bytes. The default is TCP 20 and IPv4 20 bytes, Ethernet 38
            (preamble, header, check sum, gap).
        energy_j_per_bit: spent per sent bit, booked at the sender.
    """

    rate_bps: float
    delay_s: float
    header_bits: int = 8 * (20 + 20 + 38)
    energy_j_per_bit: float = 0.0

    def initial(self) -> BackhaulState:
        """Return the state of an idle wire."""
        return BackhaulState(
            Packets.empty(), Deliveries.empty(), torch.tensor(-torch.inf, dtype=torch.float64)
        )

    def offer(self, state: BackhaulState, packets: Packets, now_s: float) -> BackhaulState:
        """Put packets into the queue."""
        return replace(state, waiting=joined(state.waiting, packets, now_s))

    def advance(self, state: BackhaulState, until_s: float, rng: Stream) -> tuple[BackhaulState, Deliveries]:
        """Send in the order of offered_s, then of id.

        Packets stamped `until_s` stay in the queue: others of the same stamp may still be offered.
        """
        startable = state.waiting.offered_s < until_s
        packets = in_order(state.waiting.select(startable))
        sent_bits = with_headers(packets.payload_bits, self.header_bits)
        service_s = sent_bits.double() / self.rate_bps
        finished_s = first_in_first_out(packets.offered_s, service_s, state.busy_until_s)
        settled = outcome(
            packets,
            arrived_s=finished_s + self.delay_s,
            sent_bits=sent_bits,
            tx_energy_j=sent_bits.double() * self.energy_j_per_bit,
        )
        in_flight = Deliveries.concatenate(state.in_flight, settled)
        due = in_flight.arrived_s <= until_s
        busy_until_s = finished_s[-1] if len(packets) else state.busy_until_s
        waiting = state.waiting.select(~startable)
        return BackhaulState(waiting, in_flight.select(~due), busy_until_s), in_flight.select(due)


def in_order(packets: Packets) -> Packets:
    """The order in which a queue serves: that of offered_s, then of id."""
    packets = packets.select(packets.id.argsort())
    return packets.select(packets.offered_s.argsort(stable=True))


def with_headers(payload_bits: Tensor, header_bits: int) -> Tensor:
    """Bits of payloads, int64 [n], with a header for each of their segments of at most 1460 bytes."""
    segments = (payload_bits + SEGMENT_BITS - 1).div(SEGMENT_BITS, rounding_mode="floor").clamp(1)
    return payload_bits + segments * header_bits


def first_in_first_out(offered: Tensor, service: Tensor, busy_until: Tensor) -> Tensor:
    """When each of a queue's packets has been served: finish_i = max(offered_i, finish_(i-1)) + service_i.

    With C_i = sum_(j<=i) service_j this is finish_i = C_i + max_(j<=i) (offered_j - C_(j-1)).

    Args:
        offered: float64 [n], in order.
        service: float64 [n], in the same unit.
        busy_until: float64 [], when the queue has served all before.

    Returns:
        float64 [n].
    """
    total = service.cumsum(0)
    idle = (offered - (total - service)).clamp(busy_until).cummax(0).values
    return torch.maximum(total + idle, offered + service)  # rounding must not gain time


def send(
    link: Link[State],
    payload: bytes,
    rng: Stream,
    *,
    purpose: str,
    id: int = 0,
    source: int = 0,
    destination: int = 0,
    offered_s: float = 0.0,
) -> Deliveries:
    """Send one payload over an idle link: the batch of one.

    Raises:
        DefianceError: the purpose is unknown.
    """
    packets = Packets.of(
        id,
        purpose=purpose,
        payload_bits=8 * len(payload),
        offered_s=offered_s,
        source=source,
        destination=destination,
    )
    state = link.offer(link.initial(), packets, offered_s)
    return link.advance(state, torch.inf, rng)[1]


def loss_from_sinr(sinr_db: Tensor) -> Tensor:
    """Return the probability that a signalling packet is lost at this SINR.

    The logistic curve through the two points of radio-link monitoring: 10 % at Qout = -8 dB and 2 % at
    Qin = -6 dB (TS 38.133 clause 8.1, TR 36.839).

    Args:
        sinr_db: [...].

    Returns:
        [...], in [0, 1].
    """
    return torch.sigmoid((HALF_LOSS_DB - sinr_db) * LOSS_SLOPE_PER_DB)


def _logit(probability: float) -> float:
    return math.log(probability / (1.0 - probability))


LOSS_SLOPE_PER_DB = (_logit(Q_OUT_BLOCK_ERROR_RATE) - _logit(Q_IN_BLOCK_ERROR_RATE)) / (Q_IN_DB - Q_OUT_DB)
HALF_LOSS_DB = Q_OUT_DB + _logit(Q_OUT_BLOCK_ERROR_RATE) / LOSS_SLOPE_PER_DB


def joined(waiting: Packets, packets: Packets, now_s: float) -> Packets:
    """Packets that wait, and those that are offered at `now_s`.

    Raises:
        DefianceError: a packet is stamped earlier than `now_s`.
    """
    if bool((packets.offered_s < now_s).any()):
        raise DefianceError(
            f"a packet stamped {packets.offered_s.min().item()} s was offered at {now_s} s;"
            " offer packets no later than their time"
        )
    return Packets.concatenate(waiting, packets)


def outcome(
    packets: Packets,
    arrived_s: Tensor,
    sent_bits: Tensor,
    channel_uses: Tensor | None = None,
    tx_energy_j: Tensor | None = None,
    rx_energy_j: Tensor | None = None,
) -> Deliveries:
    """Return packets with what became of them; what is not given is zero."""
    return Deliveries(
        packets.id,
        packets.source,
        packets.destination,
        packets.purpose,
        packets.offered_s,
        packets.payload_bits,
        arrived_s,
        sent_bits,
        torch.zeros_like(sent_bits) if channel_uses is None else channel_uses,
        torch.zeros_like(arrived_s) if tx_energy_j is None else tx_energy_j,
        torch.zeros_like(arrived_s) if rx_energy_j is None else rx_energy_j,
    )
