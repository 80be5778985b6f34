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
from typing import Any, Literal, NamedTuple

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

COMPILED: dict[str, Any] = {"nogil": True, "cache": True}
"""Of Numba, for loops that allocate what they return."""

DONE_BITS = 1e-6
"""What is left of a packet by rounding when a step was to send all of it."""

ROW = np.dtype(
    [(name, np.int64) for name in ("id", "source", "destination", "purpose", "payload_bits")]
    + [(name, np.int64) for name in ("queue", "bits", "repeats")]
    + [(name, np.float64) for name in ("offered_s", "ready_s", "left_bits")],
    align=True,
)
"""A packet in a queue: its columns, the number of its queue, bits of one transmission with headers,
transmissions lost so far, when it was offered, when it is ready to be sent (later than offered if sent again;
of one in flight: when it arrives), and bits still to be sent."""

Rows = NDArray[np.void]
"""Packets `[n]` of `ROW`."""

WAITS, SENT, GIVEN_UP = 0, 1, 2


def sent_bits(rows: Rows) -> NDArray[np.int64]:
    """Bits sent of each so far, repeats included, `[n]`; of those that arrived nothing is left."""
    sent: NDArray[np.int64] = rows["bits"] * (rows["repeats"] + 1) - np.ceil(rows["left_bits"]).astype(
        np.int64
    )
    return sent


class Line(NamedTuple):
    """Packets on a queued link.

    Attributes:
        waiting: queue by queue, each in the order of service.
        in_flight: all is sent; they arrive at their ``ready_s``.
    """

    waiting: Rows
    in_flight: Rows


class Timing(NamedTuple):
    """What a link adds to the time that bits take: see `QueuedLink`."""

    delay_s: float
    repeat_s: float
    most_repeats: int


NOTHING = np.empty(0, ROW)
IDLE = Line(NOTHING, NOTHING)
NO_DELIVERIES = Deliveries.empty()


@dataclass(frozen=True)
class QueueState:
    """State of a queued link.

    Attributes:
        line: what is on it.
        now_s: so much time has passed.
        rate_bps: float64 [] or [queues], from now on; whoever knows the radio replaces it.
        loss_probability: float64 [] or [queues], of one transmission of a whole packet; likewise.
    """

    line: Line
    now_s: float
    rate_bps: Tensor
    loss_probability: Tensor

    def __len__(self) -> int:
        """How many packets wait."""
        return len(self.line.waiting)


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

    def __post_init__(self) -> None:
        """Refuses what no link can have.

        Raises:
            DefianceError: a time, a rate or a number is negative, or a probability above 1.
        """
        numbers = self.delay_s, self.header_bits, self.rate_bps, self.repeat_s, self.most_repeats
        if not (all(number >= 0 for number in numbers) and 0 <= self.loss_probability <= 1):
            raise DefianceError(f"{self}: give times, rates and numbers of 0 or more, a loss in [0, 1]")

    @property
    def timing(self) -> Timing:
        """For `serve`."""
        return Timing(float(self.delay_s), float(self.repeat_s), self.most_repeats)

    def initial(self) -> QueueState:
        """Return the state in which nothing waits."""
        rate, loss = (torch.tensor(x, dtype=torch.float64) for x in (self.rate_bps, self.loss_probability))
        return QueueState(IDLE, -math.inf, rate, loss)

    def rows(self, packets: Packets) -> Rows:
        """A batch as rows that have not been offered yet."""
        columns = {field.name: getattr(packets, field.name).numpy() for field in fields(Packets)}
        bits = with_headers(packets.payload_bits, self.header_bits).numpy()
        rows = np.zeros(len(packets), ROW)
        for name, column in {**columns, "queue": columns[self.end], "bits": bits}.items():
            rows[name] = column
        rows["ready_s"], rows["left_bits"] = rows["offered_s"], bits
        return rows

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
        if (rows["queue"] < 0).any():
            raise DefianceError(f"a packet's {self.end} is {rows['queue'].min()}; queues are numbered from 0")
        return but(state, line=Line(put(state.line.waiting, rows), state.line.in_flight))

    def waiting_bits(self, state: QueueState, before_s: float, queues: int) -> Tensor:
        """Bits that may be sent before a time, `[queues]` float64."""
        found = np.zeros(queues)
        backlog(state.line.waiting, before_s, found)
        return torch.from_numpy(found)

    def advance(self, state: QueueState, until_s: float, rng: Stream) -> tuple[QueueState, Deliveries]:
        """Send at the state's rates until `until_s`; return what arrived by then, and what was given up.

        Packets stamped `until_s` wait: others of the same stamp may still be offered.

        Raises:
            DefianceError: the time has passed already, or a packet waits in a queue that the state has no
                rate or no loss for.
        """
        if not until_s >= state.now_s:
            raise DefianceError(
                f"a link at {state.now_s} s can't go back to {until_s} s; advance an earlier state"
            )
        last = state.line.waiting["queue"].max(initial=-1)
        for name, given in (("rate_bps", state.rate_bps), ("loss_probability", state.loss_probability)):
            if last >= given.numel() != 1:
                raise DefianceError(
                    f"a packet waits in queue {last}, but {name} is of {given.numel()} queues; give it one"
                    " number for all, or one for each"
                )
        rate_bps, loss = (x.numpy().reshape(-1) for x in (state.rate_bps, state.loss_probability))
        line = Line(state.line.waiting.copy(), state.line.in_flight)
        line, gone, _ = serve(
            line, rate_bps, loss, np.uint64(rng.key), state.now_s, float(until_s), self.timing
        )
        state = but(state, line=line, now_s=until_s)
        if not len(gone):
            return state, NO_DELIVERIES
        columns = {field.name: torch.from_numpy(gone[field.name].copy()) for field in fields(Packets)}
        arrived_s = torch.from_numpy(gone["ready_s"].copy())
        return state, outcome(Packets(**columns), arrived_s, torch.from_numpy(sent_bits(gone)))


@njit(inline="always")
def sent_of(row):  # type: ignore[no-untyped-def]
    """`sent_bits` of one."""
    return row.bits * (row.repeats + 1) - np.int64(math.ceil(row.left_bits))


@njit(inline="always")
def _before(a, b):  # type: ignore[no-untyped-def]
    if a.queue != b.queue:
        return a.queue < b.queue
    if a.ready_s != b.ready_s:
        return a.ready_s < b.ready_s
    return a.id < b.id


@njit(**COMPILED)
def put(waiting, rows):  # type: ignore[no-untyped-def]
    """Rows in their queues, by the time that they are ready at, then by id, with those that wait."""
    for i in range(len(rows) - 1):
        if _before(rows[i + 1], rows[i]):
            half = len(rows) // 2
            rows = put(put(rows[:0], rows[:half]), rows[half:])
            break
    if len(rows) == 0:
        return waiting
    both = np.empty(len(waiting) + len(rows), ROW)
    i = j = 0
    for k in range(len(both)):
        if j == len(rows) or (i < len(waiting) and _before(waiting[i], rows[j])):
            both[k] = waiting[i]
            i += 1
        else:
            both[k] = rows[j]
            j += 1
    return both


@njit(**COMPILED)
def backlog(waiting, before_s, found):  # type: ignore[no-untyped-def]
    """Adds the bits that may be sent before a time to `found`, `[queues]`."""
    for i in range(len(waiting)):
        if waiting[i].ready_s < before_s:
            found[waiting[i].queue] += waiting[i].left_bits


@njit(**COMPILED)
def without(waiting, away):  # type: ignore[no-untyped-def]
    """Who goes on waiting, and who doesn't: those in queues that are `away`, `[queues]`."""
    leaves = 0
    for i in range(len(waiting)):
        leaves += away[waiting[i].queue]
    if leaves == 0:
        return waiting, waiting[:0]
    left, gone = np.empty(len(waiting) - leaves, ROW), np.empty(leaves, ROW)
    w = g = 0
    for i in range(len(waiting)):
        if away[waiting[i].queue]:
            gone[g] = waiting[i]
            g += 1
        else:
            left[w] = waiting[i]
            w += 1
    return left, gone


@njit(**COMPILED)
def serve(line, rate_bps, loss, key, now_s, until_s, timing):  # type: ignore[no-untyped-def]
    """finish_i = max(ready_i, finish_(i-1)) + bits_i / rate, queue by queue, up to a time.

    A packet that is lost goes back to where its queue will have it when it is ready again.

    Args:
        line: what waits, which is changed in place, and what flies.
        rate_bps: of every queue or, `[1]`, of all.
        loss: probability, likewise.
        key: of the stream of losses.
        now_s: from when.
        until_s: to when.
        timing: of the link.

    Returns:
        The line; rows of what is over, `ready_s` being when they arrived or inf; bits sent by every queue,
        as `rate_bps` has them.
    """
    n, flew = len(line.waiting), len(line.in_flight)
    sent = np.zeros_like(rate_bps)
    if n + flew == 0:
        return line, line.waiting, sent
    rows, order, fate = line.waiting, np.arange(n), np.zeros(n, np.int8)
    first, over, flown, due, repeated = 0, 0, 0, 0, False
    while first < n:
        queue, end = rows[first].queue, first
        while end < n and rows[end].queue == queue:
            end += 1
        at = queue if len(rate_bps) > 1 else 0
        rate, chance, free_s = rate_bps[at], loss[queue if len(loss) > 1 else 0], now_s
        k = first
        while rate > 0 and k < end:
            i = order[k]
            row = rows[i]
            start_s = max(free_s, row.ready_s)
            if start_s >= until_s:
                break
            finish_s = start_s + row.left_bits / rate
            if finish_s > until_s and row.left_bits - rate * (until_s - start_s) > DONE_BITS:
                row.left_bits -= rate * (until_s - start_s)
                sent[at] += rate * (until_s - start_s)
                break
            free_s = min(finish_s, until_s)
            sent[at] += row.left_bits
            row.left_bits = 0.0
            if chance > 0 and uniform_loop(key, np.uint64(row.id ^ (row.repeats << 56))) < chance:
                if row.repeats >= timing.most_repeats:
                    row.ready_s, fate[i] = np.inf, GIVEN_UP
                    over += 1
                    k += 1
                    continue
                row.repeats, repeated = row.repeats + 1, True
                row.left_bits = row.bits
                row.ready_s = free_s + timing.repeat_s
                j = k
                while j + 1 < end and _before(rows[order[j + 1]], row):
                    order[j] = order[j + 1]
                    j += 1
                order[j] = i
            else:
                row.ready_s, fate[i] = free_s + timing.delay_s, SENT
                flown += 1
                due += row.ready_s <= until_s
                k += 1
        first = end
    for i in range(flew):
        due += line.in_flight[i].ready_s <= until_s
    if over + flown + due == 0 and not repeated:
        return line, rows[:0], sent
    gone, flying = np.empty(due + over, ROW), np.empty(flew + flown - due, ROW)
    left = np.empty(n - over - flown, ROW)
    g = f = w = 0
    for i in range(flew):
        if line.in_flight[i].ready_s <= until_s:
            gone[g] = line.in_flight[i]
            g += 1
        else:
            flying[f] = line.in_flight[i]
            f += 1
    for k in range(n):
        i = order[k]
        if fate[i] == WAITS:
            left[w] = rows[i]
            w += 1
        elif fate[i] == GIVEN_UP or rows[i].ready_s <= until_s:
            gone[g] = rows[i]
            g += 1
        else:
            flying[f] = rows[i]
            f += 1
    return Line(left, flying), gone, sent
