"""Queued links: every end point has a queue of its own, first in, first out, as fast as it is told.

    offer ──▶ [ queue of an end point ] ──▶ rate_bps of the time ──▶ lost? again ──▶ delay_s ──▶

Rates hold for one call of `QueuedLink.advance`: a scheduler replaces them from step to step, and a packet is
cut into as many pieces as the steps that it takes. Within a call completion times are exact: Lindley's
recursion per queue, with no clock. RLC in acknowledged mode (TS 38.322) stands behind repeats: what is lost
is sent again, bits and all, and given up after too many times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from defiance.errors import DefianceError
from defiance.link import Deliveries, Packets, outcome, with_headers
from defiance.seeding import Stream

AIR_HEADER_BITS = 96
"""PDCP, RLC, MAC and check sum of a segment, as on `defiance.link.LossyLink`."""

DONE_BITS = 1e-6
"""What is left of a packet by rounding when a step was to send all of it."""

WHOLE = ("id", "source", "destination", "purpose", "payload_bits", "queue", "bits", "repeats")
REAL = ("offered_s", "ready_s", "left_bits")


@dataclass(frozen=True)
class Rows:
    """Packets in queues, columns of `WHOLE` and `REAL` in two arrays: most steps touch but a few packets.

    Attributes:
        whole: the packets' columns, the number of their queue, bits of one transmission with headers, and
            transmissions lost so far; int64 `[8, n]`.
        real: when offered, when ready to be sent (later than offered if sent again; of those in flight: when
            they arrive), bits still to be sent; float64 `[3, n]`.
    """

    whole: NDArray[np.int64]
    real: NDArray[np.float64]

    def __len__(self) -> int:
        """How many they are."""
        return self.whole.shape[1]

    def __getattr__(self, name: str) -> NDArray[Any]:
        """One column, `[n]`."""
        if name not in WHOLE and name not in REAL:
            raise AttributeError(name)
        columns: NDArray[Any] = self.whole if name in WHOLE else self.real
        column: NDArray[Any] = columns[(WHOLE if name in WHOLE else REAL).index(name)]
        return column

    def select(self, which: NDArray[Any]) -> Rows:
        """Those that a mask or an index names."""
        return Rows(self.whole[:, which], self.real[:, which])

    def joined(self, other: Rows) -> Rows:
        """These, then the others."""
        if not len(other) or not len(self):
            return self if len(self) else other
        return Rows(np.hstack([self.whole, other.whole]), np.hstack([self.real, other.real]))

    def packets(self) -> Packets:
        """As a batch."""
        return Packets(
            **{field.name: torch.from_numpy(getattr(self, field.name).copy()) for field in fields(Packets)}
        )


NOTHING = Rows(np.empty((len(WHOLE), 0), np.int64), np.empty((len(REAL), 0)))
NO_DELIVERIES = Deliveries.empty()


@dataclass(frozen=True)
class QueueState:
    """What is on a queued link.

    Attributes:
        waiting: queue by queue, each in the order of service.
        in_flight: all is sent; they arrive at ``in_flight.ready_s``.
        now_s: so much time has passed.
        rate_bps: float64 [] or [queues], from now on; whoever knows the radio replaces it.
        loss_probability: float64 [] or [queues], of one transmission of a whole packet; likewise.
    """

    waiting: Rows
    in_flight: Rows
    now_s: float
    rate_bps: Tensor
    loss_probability: Tensor

    def __len__(self) -> int:
        """How many packets wait."""
        return len(self.waiting)

    @property
    def idle(self) -> bool:
        """Whether nothing is on the link."""
        return not len(self.waiting) and not len(self.in_flight)


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
        rate, loss = (torch.tensor(x, dtype=torch.float64) for x in (self.rate_bps, self.loss_probability))
        return QueueState(NOTHING, NOTHING, -math.inf, rate, loss)

    def offer(self, state: QueueState, packets: Packets, now_s: float) -> QueueState:
        """Put packets into their queues, in the order of offered_s, then of id."""
        if not len(packets):
            return state
        offered_s = packets.offered_s.numpy()
        if offered_s.min() < now_s:
            raise DefianceError(
                f"a packet stamped {offered_s.min()} s was offered at {now_s} s;"
                " offer packets no later than their time"
            )
        bits = with_headers(packets.payload_bits, self.header_bits).numpy()
        columns = [getattr(packets, name).numpy() for name in (*WHOLE[:5], self.end)]
        rows = Rows(np.stack([*columns, bits, np.zeros_like(bits)]), np.stack([offered_s, offered_s, bits]))
        return replace(state, waiting=_in_order(state.waiting.joined(rows)))

    def waiting_bits(self, state: QueueState, before_s: float, queues: int) -> Tensor:
        """Bits that may be sent before a time, `[queues]` float64."""
        rows, found = state.waiting, torch.zeros(queues, dtype=torch.float64)
        _backlog(rows.queue, rows.ready_s, rows.left_bits, before_s, found.numpy())
        return found

    def advance(self, state: QueueState, until_s: float, rng: Stream) -> tuple[QueueState, Deliveries]:
        """Send at the state's rates until `until_s`; return what arrived by then, and what was given up.

        Packets stamped `until_s` wait: others of the same stamp may still be offered.
        """
        waiting, flying, gone, now_s = state.waiting, state.in_flight, NOTHING, state.now_s
        rate_bps = state.rate_bps.numpy().reshape(-1)
        while len(waiting):
            left, finished_s = _served(waiting, rate_bps, now_s, until_s)
            lost = self._lost(waiting, state.loss_probability.numpy(), finished_s, rng)
            reached_s = until_s
            if lost.any() and finished_s[lost].min() + self.repeat_s < until_s:
                # who is sent again by then takes its turn among the others
                reached_s = float(finished_s[lost].min() + self.repeat_s)
                left, finished_s = _served(waiting, rate_bps, now_s, reached_s)
                lost &= finished_s <= reached_s
            finished = finished_s < np.inf
            waiting = Rows(waiting.whole, np.stack([waiting.offered_s, waiting.ready_s, left]))
            if finished.any():
                sent, lost, at_s = waiting.select(finished), lost[finished], finished_s[finished]
                hopeless = lost & (sent.repeats >= self.most_repeats)
                sent.real[1] = np.where(
                    lost, np.where(hopeless, np.inf, at_s + self.repeat_s), at_s + self.delay_s
                )
                sent.real[2] = sent.bits
                again = lost & ~hopeless
                flying, gone = flying.joined(sent.select(~lost)), gone.joined(sent.select(hopeless))
                waiting = waiting.select(~finished)
                if again.any():
                    repeated = sent.select(again)
                    repeated.whole[-1] += 1
                    waiting = _in_order(waiting.joined(repeated))
            now_s = reached_s
            if reached_s == until_s:
                break
        if len(flying):
            due = flying.ready_s <= until_s
            gone, flying = flying.select(due).joined(gone), flying.select(~due)
        return replace(state, waiting=waiting, in_flight=flying, now_s=until_s), _deliveries(gone)

    def _lost(
        self, rows: Rows, chance: NDArray[np.float64], finished_s: NDArray[np.float64], rng: Stream
    ) -> NDArray[np.bool_]:
        """Which of the transmissions that finished were lost, `[n]`."""
        lost = np.zeros(len(rows), np.bool_)
        which = np.flatnonzero(finished_s < np.inf)
        if len(which) and (chance > 0).any():
            chance = chance[rows.queue[which]] if chance.ndim else chance
            draw = rng.uniform(torch.from_numpy(rows.id[which] ^ (rows.repeats[which] << 56))).numpy()
            lost[which] = draw < chance
        return lost

    def discard(self, state: QueueState, which: NDArray[np.bool_]) -> tuple[QueueState, Deliveries]:
        """Takes waiting packets, `[n]`, out of the queues: lost, with the bits that were sent of them."""
        gone = state.waiting.select(which)
        sent = gone.bits * (gone.repeats + 1) - np.ceil(gone.left_bits).astype(np.int64)
        lost = outcome(
            gone.packets(), torch.full((len(gone),), torch.inf, dtype=torch.float64), torch.from_numpy(sent)
        )
        return replace(state, waiting=state.waiting.select(~which)), lost


def _in_order(rows: Rows) -> Rows:
    return rows.select(np.lexsort((rows.id, rows.ready_s, rows.queue)))


def _deliveries(rows: Rows) -> Deliveries:
    """Of rows whose `ready_s` is when they arrive."""
    if not len(rows):
        return NO_DELIVERIES
    sent = torch.from_numpy(rows.bits * (rows.repeats + 1))
    return outcome(rows.packets(), torch.from_numpy(rows.ready_s.copy()), sent)


def _served(
    rows: Rows, rate_bps: NDArray[np.float64], now_s: float, until_s: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bits left of every packet, and when its transmission finished, inf if not by then."""
    left, finished_s = np.empty((2, len(rows)))
    _serve(rows.queue, rows.ready_s, rows.left_bits, rate_bps, now_s, until_s, left, finished_s)
    return left, finished_s


@njit(nogil=True, cache=True)
def _backlog(queue, ready_s, left_bits, before_s, found):  # type: ignore[no-untyped-def]
    for i in range(len(queue)):
        if ready_s[i] < before_s:
            found[queue[i]] += left_bits[i]


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
