"""Queued links: every end point has a queue of its own, first in, first out, as fast as it is told.

    offer ──▶ [ queue of an end point ] ──▶ rate_bps of the time ──▶ lost? again ──▶ delay_s ──▶

Rates hold for one call of `QueuedLink.advance`: a scheduler replaces them from step to step, and a packet is
cut into as many pieces as the steps that it takes. Within a call completion times are exact: Lindley's
recursion per queue, with no clock. RLC in acknowledged mode (TS 38.322) stands behind repeats: what is lost
is sent again, bits and all, and given up after too many times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numba import njit
from torch import Tensor

from defiance.link import Deliveries, Packets, joined, outcome, with_headers
from defiance.seeding import Stream

AIR_HEADER_BITS = 96
"""PDCP, RLC, MAC and check sum of a segment, as on `defiance.link.LossyLink`."""

DONE_BITS = 1e-6
"""What is left of a packet by rounding when a step was to send all of it."""


@dataclass(frozen=True)
class QueueState:
    """What is on a queued link.

    Attributes:
        packets: that wait, queue by queue, each in the order of service.
        queue: int64 [n], where each waits.
        ready_s: float64 [n], when it may be sent: as it was offered, or later, to be sent again.
        left_bits: float64 [n], still to be sent.
        repeats: int64 [n], transmissions that were lost.
        in_flight: all is sent; they arrive at ``in_flight.arrived_s``.
        now_s: so much time has passed.
        rate_bps: float64 [] or [queues], from now on; whoever knows the radio replaces it.
        loss_probability: float64 [] or [queues], of one transmission of a whole packet; likewise.
    """

    packets: Packets
    queue: Tensor
    ready_s: Tensor
    left_bits: Tensor
    repeats: Tensor
    in_flight: Deliveries
    now_s: float
    rate_bps: Tensor
    loss_probability: Tensor

    def __len__(self) -> int:
        """How many packets wait."""
        return len(self.packets)

    def select(self, which: Tensor) -> QueueState:
        """The state in which only the packets wait that a mask or an index names."""
        columns = (getattr(self, name)[which] for name in ("queue", "ready_s", "left_bits", "repeats"))
        return replace(self, **dict(zip(("queue", "ready_s", "left_bits", "repeats"), columns, strict=True)),
                       packets=self.packets.select(which))  # fmt: skip


@dataclass(frozen=True)
class QueuedLink:
    """Queues of end points that share a medium; who gets how much of it is the scheduler's business.

    Attributes:
        end: which end's number is that of the queue.
        delay_s: from the last bit sent to its arrival.
        header_bits: per segment of at most 1460 bytes.
        rate_bps, loss_probability: of every queue until the state says otherwise.
        repeat_s: until a lost transmission is noticed and sent again; t-PollRetransmit of SRBs by default
            (TS 38.331 clause 9.2.1).
        most_repeats: after so many a packet is given up; maxRetxThreshold, likewise.
    """

    end: Literal["source", "destination"]
    delay_s: float
    header_bits: int = AIR_HEADER_BITS
    rate_bps: float = 0.0
    loss_probability: float = 0.0
    repeat_s: float = 0.045
    most_repeats: int = 8

    def initial(self) -> QueueState:
        """Return the state in which nothing waits."""
        whole, real = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
        rate, loss = (torch.tensor(x, dtype=torch.float64) for x in (self.rate_bps, self.loss_probability))
        return QueueState(
            Packets.empty(), whole, real, real, whole, Deliveries.empty(), -math.inf, rate, loss
        )

    def bits(self, packets: Packets) -> Tensor:
        """Bits of one transmission, headers included, int64 [n]."""
        return with_headers(packets.payload_bits, self.header_bits)

    def offer(self, state: QueueState, packets: Packets, now_s: float) -> QueueState:
        """Put packets into their queues, in the order of offered_s, then of id."""
        if not len(packets):
            return state
        joined(Packets.empty(), packets, now_s)
        return self._enqueue(
            state,
            packets,
            packets.offered_s,
            self.bits(packets).double(),
            torch.zeros_like(packets.id),
        )

    def _enqueue(
        self, state: QueueState, packets: Packets, ready_s: Tensor, bits: Tensor, repeats: Tensor
    ) -> QueueState:
        packets = Packets.concatenate(state.packets, packets)
        queue = torch.cat([state.queue, getattr(packets, self.end)[len(state) :]])
        ready_s = torch.cat([state.ready_s, ready_s])
        order = torch.from_numpy(np.lexsort((packets.id.numpy(), ready_s.numpy(), queue.numpy())))
        left_bits, repeats = torch.cat([state.left_bits, bits]), torch.cat([state.repeats, repeats])
        return replace(
            state, packets=packets, queue=queue, ready_s=ready_s, left_bits=left_bits, repeats=repeats
        ).select(order)

    def waiting_bits(self, state: QueueState, before_s: float, queues: int) -> Tensor:
        """Bits that may be sent before a time, `[queues]` float64."""
        ready = state.ready_s < before_s
        return torch.bincount(state.queue, state.left_bits * ready, queues)

    def advance(self, state: QueueState, until_s: float, rng: Stream) -> tuple[QueueState, Deliveries]:
        """Send at the state's rates until `until_s`; return what arrived by then, and what was given up.

        Packets stamped `until_s` wait: others of the same stamp may still be offered.
        """
        if not len(state) and not len(state.in_flight):
            return replace(state, now_s=until_s), state.in_flight
        given_up = []
        while len(state):
            left, finished_s = _served(state, until_s)
            lost = self._lost(state, finished_s, rng)
            again_s = (finished_s[lost] + self.repeat_s).min() if lost.any() else math.inf
            reached_s = min(until_s, float(again_s))
            if reached_s < until_s:  # who is sent again by then takes its turn among the others
                left, finished_s = _served(state, reached_s)
                lost &= finished_s <= reached_s
            state, gone = self._settled(state, left, finished_s, lost)
            state = replace(state, now_s=reached_s)
            given_up.append(gone)
            if reached_s == until_s:
                break
        due = state.in_flight.arrived_s <= until_s
        arrived = state.in_flight.select(due)
        state = replace(state, in_flight=state.in_flight.select(~due), now_s=until_s)
        return state, Deliveries.concatenate(arrived, *given_up)

    def _lost(self, state: QueueState, finished_s: Tensor, rng: Stream) -> Tensor:
        """Which of the transmissions that finished were lost, bool [n]."""
        finished = finished_s.isfinite()
        chance = (
            state.loss_probability[state.queue] if state.loss_probability.ndim else state.loss_probability
        )
        if not bool((chance > 0).any()):
            return torch.zeros_like(finished)
        return finished & (rng.uniform(state.packets.id ^ (state.repeats << 56)) < chance)

    def _settled(
        self, state: QueueState, left: Tensor, finished_s: Tensor, lost: Tensor
    ) -> tuple[QueueState, Deliveries]:
        """Moves what was sent into the air, and what was lost to the end of its queue."""
        finished = finished_s.isfinite()
        if not bool(finished.any()):
            return replace(state, left_bits=left), Deliveries.empty()
        sent, at_s = state.select(finished), finished_s[finished]
        lost = lost[finished]
        hopeless = lost & (sent.repeats >= self.most_repeats)
        again = lost & ~hopeless
        bits = self.bits(sent.packets)
        settled = outcome(
            sent.packets,
            arrived_s=torch.where(hopeless, torch.inf, at_s + self.delay_s),
            sent_bits=bits * (sent.repeats + 1),
        )
        state = replace(state, left_bits=left).select(~finished)
        state = replace(state, in_flight=Deliveries.concatenate(state.in_flight, settled.select(~lost)))
        if bool(again.any()):
            state = self._enqueue(
                state,
                sent.packets.select(again),
                at_s[again] + self.repeat_s,
                bits[again].double(),
                sent.repeats[again] + 1,
            )
        return state, settled.select(hopeless)

    def discard(self, state: QueueState, which: Tensor) -> tuple[QueueState, Deliveries]:
        """Takes packets out of the queues, bool [n], lost; with the bits sent of them."""
        gone = state.select(which)
        bits = self.bits(gone.packets)
        sent = bits * gone.repeats + (bits - gone.left_bits).floor().to(torch.int64)
        lost = outcome(gone.packets, torch.full_like(gone.ready_s, torch.inf), sent_bits=sent)
        return state.select(~which), lost


def _served(state: QueueState, until_s: float) -> tuple[Tensor, Tensor]:
    """Bits left of every packet, and when its transmission finished, inf if not by then."""
    left, finished_s = torch.empty_like(state.left_bits), torch.empty_like(state.ready_s)
    rate = state.rate_bps.reshape(-1)
    _serve(
        state.queue.numpy(), state.ready_s.numpy(), state.left_bits.numpy(), rate.numpy(),
        float(state.now_s), float(until_s), left.numpy(), finished_s.numpy(),
    )  # fmt: skip
    return left, finished_s


@njit(nogil=True, cache=True)
def _serve(queue, ready_s, left_bits, rate_bps, now_s, until_s, left, finished_s):  # type: ignore[no-untyped-def]
    """finish_i = max(ready_i, finish_(i-1)) + bits_i / rate, queue by queue, up to a time."""
    last, free_s = -1, now_s
    for i in range(len(queue)):
        if queue[i] != last:
            last, free_s = queue[i], now_s
        rate = rate_bps[last if len(rate_bps) > 1 else 0]
        start_s = max(free_s, ready_s[i])
        left[i], finished_s[i] = left_bits[i], np.inf
        if rate <= 0 or start_s >= until_s:
            continue
        finish_s = start_s + left_bits[i] / rate
        if finish_s <= until_s or left_bits[i] - rate * (until_s - start_s) <= DONE_BITS:
            left[i], finished_s[i] = 0.0, min(finish_s, until_s)
        else:
            left[i] -= rate * (until_s - start_s)
        free_s = min(finish_s, until_s)
