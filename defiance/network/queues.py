"""Queued links: every end point has a queue of its own, first in, first out, as fast as it is told.

    offer ──▶ [ queue of an end point ] ──▶ rate_bps of the time ──▶ lost? again ──▶ delay_s ──▶

Rates hold for one call of `QueuedLink.advance`: a scheduler replaces them from step to step, and a packet is
cut into as many pieces as the steps that it takes. Within a call completion times are exact: Lindley's
recursion per queue, with no clock. RLC in acknowledged mode (TS 38.322) stands behind repeats: what is lost
is sent again, bits and all, and given up after too many times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from defiance.errors import DefianceError
from defiance.link import Deliveries, Packets, outcome, with_headers
from defiance.network.messages import uniform_loop
from defiance.network.state import but
from defiance.seeding import Stream

AIR_HEADER_BITS = 96
"""PDCP, RLC, MAC and check sum of a segment, as on `defiance.link.LossyLink`."""

DONE_BITS = 1e-6
"""What is left of a packet by rounding when a step was to send all of it."""

WHOLE = ("id", "source", "destination", "purpose", "payload_bits", "queue", "bits", "repeats")
REAL = ("offered_s", "ready_s", "left_bits")
ID, QUEUE, BITS, REPEATS = (WHOLE.index(name) for name in ("id", "queue", "bits", "repeats"))
READY, LEFT = REAL.index("ready_s"), REAL.index("left_bits")
WAITS, SENT, GIVEN_UP = 0, 1, 2


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

    @classmethod
    def of(
        cls,
        id: NDArray[np.int64],
        *,
        source: NDArray[np.int64] | int,
        destination: NDArray[np.int64] | int,
        purpose: int,
        payload_bits: int,
        bits: int,
        queue: NDArray[np.int64],
        offered_s: NDArray[np.float64] | float,
    ) -> Rows:
        """New ones of one purpose and size; columns `[n]` or one number for all."""
        whole, real = np.empty((len(WHOLE), len(id)), np.int64), np.empty((len(REAL), len(id)))
        for row, column in enumerate((id, source, destination, purpose, payload_bits, queue, bits, 0)):
            whole[row] = column
        real[0], real[1], real[2] = offered_s, offered_s, bits
        return cls(whole, real)

    @property
    def sent_bits(self) -> NDArray[np.int64]:
        """Bits sent of each so far, repeats included, `[n]`; of those that arrived nothing is left."""
        sent: NDArray[np.int64] = self.bits * (self.repeats + 1) - np.ceil(self.left_bits).astype(np.int64)
        return sent

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

    `put` and `run` are `offer` and `advance` for a caller that keeps to rows.

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

    def __post_init__(self) -> None:
        """Refuses what no link can have.

        Raises:
            DefianceError: a time, a rate or a number is negative, or a probability above 1.
        """
        numbers = self.delay_s, self.header_bits, self.rate_bps, self.repeat_s, self.most_repeats
        if not (all(number >= 0 for number in numbers) and 0 <= self.loss_probability <= 1):
            raise DefianceError(f"{self}: give times, rates and numbers of 0 or more, a loss in [0, 1]")

    def initial(self) -> QueueState:
        """Return the state in which nothing waits."""
        rate, loss = (torch.tensor(x, dtype=torch.float64) for x in (self.rate_bps, self.loss_probability))
        return QueueState(NOTHING, NOTHING, -math.inf, rate, loss)

    def rows(self, packets: Packets) -> Rows:
        """A batch as rows that have not been offered yet."""
        offered_s = packets.offered_s.numpy()
        bits = with_headers(packets.payload_bits, self.header_bits).numpy()
        columns = [getattr(packets, name).numpy() for name in (*WHOLE[:5], self.end)]
        return Rows(np.stack([*columns, bits, np.zeros_like(bits)]), np.stack([offered_s, offered_s, bits]))

    def offer(self, state: QueueState, packets: Packets, now_s: float) -> QueueState:
        """Put packets into their queues, in the order of offered_s, then of id."""
        if not len(packets):
            return state
        first_s = packets.offered_s.min().item()
        if first_s < now_s:
            raise DefianceError(
                f"a packet stamped {first_s} s was offered at {now_s} s;"
                " offer packets no later than their time"
            )
        rows = self.rows(packets)
        if (rows.queue < 0).any():
            raise DefianceError(f"a packet's {self.end} is {rows.queue.min()}; queues are numbered from 0")
        return self.put(state, rows)

    def put(self, state: QueueState, rows: Rows) -> QueueState:
        """Puts rows into their queues, by the time that they are ready at, then by id."""
        if len(rows) > 1:
            rows = rows.select(np.lexsort((rows.id, rows.ready_s, rows.queue)))
        waiting = state.waiting
        if len(waiting):
            rows = Rows(*_merged(waiting.whole, waiting.real, rows.whole, rows.real))
        return but(state, waiting=rows)

    def waiting_bits(self, state: QueueState, before_s: float, queues: int) -> Tensor:
        """Bits that may be sent before a time, `[queues]` float64."""
        rows, found = state.waiting, np.zeros(queues)
        _backlog(rows.whole, rows.real, before_s, found)
        return torch.from_numpy(found)

    def advance(self, state: QueueState, until_s: float, rng: Stream) -> tuple[QueueState, Deliveries]:
        """Send at the state's rates until `until_s`; return what arrived by then, and what was given up.

        Packets stamped `until_s` wait: others of the same stamp may still be offered.

        Raises:
            DefianceError: a packet waits in a queue that the state has no rate or no loss for.
        """
        last = state.waiting.queue.max(initial=-1)
        for name, given in (("rate_bps", state.rate_bps), ("loss_probability", state.loss_probability)):
            if last >= given.numel() != 1:
                raise DefianceError(
                    f"a packet waits in queue {last}, but {name} is of {given.numel()} queues; give it one"
                    " number for all, or one for each"
                )
        state, gone, _ = self.run(state, until_s, np.uint64(rng.key))
        if not len(gone):
            return state, NO_DELIVERIES
        arrived_s = torch.from_numpy(gone.ready_s.copy())
        return state, outcome(gone.packets(), arrived_s, torch.from_numpy(gone.sent_bits))

    def run(
        self, state: QueueState, until_s: float, key: np.uint64
    ) -> tuple[QueueState, Rows, NDArray[np.float64]]:
        """`advance` with the key of a stream.

        Returns:
            The state; rows of what is over, `ready_s` being when they arrived or inf; bits sent by every
            queue, `[queues]` (of all, where all have one rate).
        """
        rate_bps = state.rate_bps.numpy().reshape(-1)
        if state.idle:
            return but(state, now_s=until_s), NOTHING, np.zeros_like(rate_bps)
        waiting, flying = state.waiting, state.in_flight
        wait_whole, wait_real, fly_whole, fly_real, gone_whole, gone_real, sent = _run(
            waiting.whole, waiting.real, flying.whole, flying.real, rate_bps,
            state.loss_probability.numpy().reshape(-1), key, state.now_s, until_s, self.delay_s,
            self.repeat_s, self.most_repeats,
        )  # fmt: skip
        after = but(
            state, waiting=Rows(wait_whole, wait_real), in_flight=Rows(fly_whole, fly_real), now_s=until_s
        )
        return after, Rows(gone_whole, gone_real), sent

    def discard(self, state: QueueState, which: NDArray[np.bool_]) -> tuple[QueueState, Rows]:
        """Takes waiting packets, `[n]`, out of the queues; they are lost."""
        return but(state, waiting=state.waiting.select(~which)), state.waiting.select(which)


@njit(nogil=True, cache=True)
def _merged(a_whole, a_real, b_whole, b_real):  # type: ignore[no-untyped-def]
    """Two lists of rows in the order of queue, ready_s and id as one."""
    a, b = a_whole.shape[1], b_whole.shape[1]
    whole, real = np.empty((len(a_whole), a + b), np.int64), np.empty((len(a_real), a + b))
    i = j = 0
    for k in range(a + b):
        first = j == b
        if i < a and j < b:
            first = (
                a_whole[QUEUE, i] < b_whole[QUEUE, j]
                or (a_whole[QUEUE, i] == b_whole[QUEUE, j] and a_real[READY, i] < b_real[READY, j])
                or (
                    a_whole[QUEUE, i] == b_whole[QUEUE, j]
                    and a_real[READY, i] == b_real[READY, j]
                    and a_whole[ID, i] < b_whole[ID, j]
                )
            )
        if first:
            whole[:, k], real[:, k] = a_whole[:, i], a_real[:, i]
            i += 1
        else:
            whole[:, k], real[:, k] = b_whole[:, j], b_real[:, j]
            j += 1
    return whole, real


@njit(nogil=True, cache=True)
def _backlog(whole, real, before_s, found):  # type: ignore[no-untyped-def]
    for i in range(whole.shape[1]):
        if real[READY, i] < before_s:
            found[whole[QUEUE, i]] += real[LEFT, i]


@njit(nogil=True, cache=True)
def _run(  # type: ignore[no-untyped-def]
    whole, real, fly_whole, fly_real, rate_bps, loss, key, now_s, until_s, delay_s, repeat_s, most
):
    """finish_i = max(ready_i, finish_(i-1)) + bits_i / rate, queue by queue, up to a time.

    A packet that is lost goes back to where its queue will have it when it is ready again.
    """
    n, sent = whole.shape[1], np.zeros_like(rate_bps)
    whole, real, order, fate = whole.copy(), real.copy(), np.arange(n), np.zeros(n, np.int8)
    first, over, flown = 0, 0, 0
    while first < n:
        queue, end = whole[QUEUE, first], first
        while end < n and whole[QUEUE, end] == queue:
            end += 1
        at = queue if len(rate_bps) > 1 else 0
        rate, chance, free_s = rate_bps[at], loss[queue if len(loss) > 1 else 0], now_s
        k = first
        while rate > 0 and k < end:
            i = order[k]
            start_s = max(free_s, real[READY, i])
            if start_s >= until_s:
                break
            finish_s = start_s + real[LEFT, i] / rate
            if finish_s > until_s and real[LEFT, i] - rate * (until_s - start_s) > DONE_BITS:
                real[LEFT, i] -= rate * (until_s - start_s)
                sent[at] += rate * (until_s - start_s)
                break
            free_s = min(finish_s, until_s)
            sent[at] += real[LEFT, i]
            real[LEFT, i] = 0.0
            if chance > 0 and uniform_loop(key, np.uint64(whole[ID, i] ^ (whole[REPEATS, i] << 56))) < chance:
                if whole[REPEATS, i] >= most:
                    real[READY, i], fate[i] = np.inf, GIVEN_UP
                    over += 1
                    k += 1
                    continue
                whole[REPEATS, i] += 1
                real[LEFT, i] = whole[BITS, i]
                real[READY, i] = free_s + repeat_s
                j = k
                while j + 1 < end and (
                    real[READY, order[j + 1]] < real[READY, i]
                    or (
                        real[READY, order[j + 1]] == real[READY, i] and whole[ID, order[j + 1]] < whole[ID, i]
                    )
                ):
                    order[j] = order[j + 1]
                    j += 1
                order[j] = i
            else:
                real[READY, i], fate[i] = free_s + delay_s, SENT
                flown += 1
                k += 1
        first = end
    flew = fly_whole.shape[1]
    due = 0
    for i in range(flew):
        due += fly_real[READY, i] <= until_s
    for i in range(n):
        if fate[i] == SENT and real[READY, i] <= until_s:
            due += 1
    gone_whole, gone_real = np.empty((len(whole), due + over), np.int64), np.empty((len(real), due + over))
    left_whole, left_real = (
        np.empty((len(whole), n - over - flown), np.int64),
        np.empty((len(real), n - over - flown)),
    )
    still = flew + flown - due
    still_whole, still_real = np.empty((len(whole), still), np.int64), np.empty((len(real), still))
    g = f = w = 0
    for i in range(flew):
        if fly_real[READY, i] <= until_s:
            gone_whole[:, g], gone_real[:, g] = fly_whole[:, i], fly_real[:, i]
            g += 1
        else:
            still_whole[:, f], still_real[:, f] = fly_whole[:, i], fly_real[:, i]
            f += 1
    for k in range(n):
        i = order[k]
        if fate[i] == WAITS:
            left_whole[:, w], left_real[:, w] = whole[:, i], real[:, i]
            w += 1
        elif fate[i] == GIVEN_UP or real[READY, i] <= until_s:
            gone_whole[:, g], gone_real[:, g] = whole[:, i], real[:, i]
            g += 1
        else:
            still_whole[:, f], still_real[:, f] = whole[:, i], real[:, i]
            f += 1
    return left_whole, left_real, still_whole, still_real, gone_whole, gone_real, sent
