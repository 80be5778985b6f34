"""Links: everything that leaves a node travels over one, and is counted there.

A link takes packets in batches (`Link.offer`) and hands them over in time (`Link.advance`), because what a
transfer costs depends on what else is on the way::

    offer(state, packets, now_s) ──▶ state ──▶ advance(state, until_s, rng) ──▶ state, deliveries

A batch is a set of equally long tensors. The bytes themselves stay with the caller, under the packet's id.
States are values: nothing is changed in place. The caller offers packets stamped ``now_s`` or later, and then
advances; within these calls neither the order nor the partition of a batch changes what happens to a packet.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.seeding import Stream

PURPOSES = ("assistance", "data", "model", "signalling", "task")

# TS 38.133 clause 8.1.1: block error rate of a hypothetical PDCCH at which a link is out of, and in, sync;
# the SINRs at which this is so are those of TR 36.839 clause 5.2.1.3 (Qout, Qin).
Q_OUT_DB, Q_OUT_BLOCK_ERROR_RATE = -8.0, 0.10
Q_IN_DB, Q_IN_BLOCK_ERROR_RATE = -6.0, 0.02


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
        if len(batches) == 1:
            return batches[0]
        if not batches:
            return cls.empty()
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
        """Let time pass until `until_s`, and return what became due: what arrived, and what will never arrive.

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
        return _joined(state, packets, now_s)

    def advance(self, state: Packets, until_s: float, rng: Stream) -> tuple[Packets, Deliveries]:
        """Deliver what has been on the way for `delay_s`."""
        arrived_s = state.offered_s + self.delay_s
        due = arrived_s <= until_s
        return state.select(~due), _deliveries(state.select(due), arrived_s[due])


@dataclass(frozen=True)
class IdealLink(DelayLink):
    """Every packet arrives at the instant at which it is offered, at no cost."""

    delay_s: float = 0.0


def _joined(waiting: Packets, packets: Packets, now_s: float) -> Packets:
    if bool((packets.offered_s < now_s).any()):
        raise DefianceError(
            f"a packet stamped {packets.offered_s.min().item()} s was offered at {now_s} s;"
            " offer packets no later than their time"
        )
    return Packets.concatenate(waiting, packets)


def _deliveries(packets: Packets, arrived_s: Tensor, header_bits: int = 0) -> Deliveries:
    nothing = torch.zeros_like(arrived_s)
    return Deliveries(
        *(getattr(packets, field.name) for field in fields(packets)),
        arrived_s=arrived_s,
        sent_bits=packets.payload_bits + header_bits,
        channel_uses=torch.zeros_like(packets.id),
        tx_energy_j=nothing,
        rx_energy_j=nothing,
    )
