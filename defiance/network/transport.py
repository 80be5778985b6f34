"""What waits is carried on by a step, as one loop: `defiance.network.signalling` says what, and why.

leave ──▶ uplink: signalling, bulk ──▶ preparations on the wires ──▶ downlink: signalling ──▶ bulk: `settle`
"""

from __future__ import annotations

from collections import namedtuple
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from defiance.link import PURPOSES
from defiance.network.air import Air, grant, losses, take
from defiance.network.messages import COMMAND_BITS, PREPARATION_BITS
from defiance.network.queues import (
    AIR_HEADER_BITS,
    COMPILED,
    IDLE,
    ROW,
    Line,
    Rows,
    Timing,
    backlog,
    put,
    sent_of,
    serve,
    without,
)
from defiance.network.state import CONNECTED, NONE, REESTABLISHING

XN_HEADER_BITS = 8 * (20 + 20 + 38)
"""TCP, IPv4 and Ethernet, as on `defiance.link.BackhaulLink`."""

ASSISTANCE, SIGNALLING = PURPOSES.index("assistance"), PURPOSES.index("signalling")

Users = namedtuple(
    "Users",
    [
        "status",
        "serving",
        "timer_steps",
        "target",
        "command_steps",
        "t310_steps",
        "link_failures",
        "ring",
        "window_steps",
        "signal_mw",
        "interference_mw",
        "sinr",
        "olla_db",
        "bulk_bits",
        "reserved",
    ],
)
"""Arrays of a `State`, by its names."""

Counts = namedtuple(
    "Counts",
    [
        "bits",
        "messages",
        "lost",
        "prepared",
        "commands",
        "command_delay_s",
        "bulk",
        "bulk_delay_s",
        "wire",
        "wire_delay_s",
    ],
)
"""Arrays of a `Messenger`, by its names."""


class Lines(NamedTuple):
    """What is on the way: signalling in the air, between stations, other payloads in the air."""

    uplink: Line = IDLE
    downlink: Line = IDLE
    wire: Line = IDLE
    bulk_up: Line = IDLE
    bulk_down: Line = IDLE


class Setting(NamedTuple):
    """What a run's steps have in common.

    Attributes:
        up, down: directions of the carrier.
        free_up, free_down: share of it that each cell may give away, `[W, C]`.
        air_timing, wire_timing: of the links.
        wire_bps: of a station's wire, `[1]`.
        cell_site: `[C]`.
        sites: stations of a world.
        executes: whether a command begins a handover, or prepares the device for one.
        message_key: number of every user's first message, `[W * U]`.
        key: of the stream of losses.
        reestablishment_steps: that a user is away for whose report was given up.
        bulk_up, bulk_down, bulk_wire: all that is offered beside signalling, in the order of its time.
    """

    up: Air
    down: Air
    free_up: NDArray[np.float64]
    free_down: NDArray[np.float64]
    air_timing: Timing
    wire_timing: Timing
    wire_bps: NDArray[np.float64]
    cell_site: NDArray[np.int64]
    sites: int
    executes: bool
    message_key: NDArray[np.int64]
    key: np.uint64
    reestablishment_steps: int
    bulk_up: Rows
    bulk_down: Rows
    bulk_wire: Rows


class Requests(NamedTuple):
    """Handovers under way; changed in place.

    Attributes:
        asked: number of the message that each began with, `[W * U]`; NONE.
        wanted: cell that it leads to, `[W * U]`.
        asked_s: when that was, `[W * U]`.
        offered: so many payloads beside signalling have been offered: to uplink, downlink, wires.
        lent_bits: bulk that the step under way may send in the downlink, `[W * U]`.
    """

    asked: NDArray[np.int64]
    wanted: NDArray[np.int64]
    asked_s: NDArray[np.float64]
    offered: NDArray[np.int64]
    lent_bits: NDArray[np.float64]


@njit(**COMPILED)
def _due(line, rows, offered, until_s):  # type: ignore[no-untyped-def]
    """A line with the bulk that comes before a time; `offered`, `[1]`, is how much came so far."""
    first = end = offered[0]
    while end < len(rows) and rows[end].offered_s < until_s:
        end += 1
    if end == first:
        return line
    offered[0] = end
    return Line(put(line.waiting, rows[first:end]), line.in_flight)


@njit(**COMPILED)
def _count(rows, user, users, counts):  # type: ignore[no-untyped-def]
    """Folds messages that are over, of these users, `[n]`."""
    for i in range(len(rows)):
        w = user[i] // users
        counts.bits[w, rows[i].purpose] += sent_of(rows[i])
        counts.messages[w] += 1
        counts.lost[w] += rows[i].left_bits > 0 or rows[i].ready_s == np.inf


@njit(inline="always")
def _count_bulk(row, world, ideal_s, count, delay_s, bits):  # type: ignore[no-untyped-def]
    bits[world, row.purpose] += sent_of(row)
    count[world] += 1
    delay_s[world] += row.ready_s - row.offered_s - ideal_s


@njit(**COMPILED)
def _air(line, loss, state, free, air, now_s, until_s, setting, share):  # type: ignore[no-untyped-def]
    """Serves a direction's queues, adds what they take to `share`, `[W, C]`; the line and what is over."""
    queues = state.status.size
    rate_bps, full_bps = np.zeros(queues), np.zeros(queues)
    if len(line.waiting):
        bits = np.zeros(queues)
        backlog(line.waiting, until_s, bits)
        grant(bits, state, free, air, rate_bps, full_bps)
    line, over, sent = serve(line, rate_bps, loss, setting.key, now_s, until_s, setting.air_timing)
    take(state.serving, sent, full_bps, air.step_s, share)
    return line, over


@njit(**COMPILED)
def leave(lines, requests, state, counts):  # type: ignore[no-untyped-def]
    """Drops the signalling of users who left their cells."""
    users, away = state.status.shape[1], state.status.reshape(-1) != CONNECTED
    if not away.any():
        return lines
    requests.asked[away] = NONE
    up, gone_up = without(lines.uplink.waiting, away)
    down, gone_down = without(lines.downlink.waiting, away)
    _count(gone_up, gone_up.queue, users, counts)
    _count(gone_down, gone_down.queue, users, counts)
    return Lines(
        Line(up, lines.uplink.in_flight),
        Line(down, lines.downlink.in_flight),
        lines.wire,
        lines.bulk_up,
        lines.bulk_down,
    )


@njit(**COMPILED)
def ascend(lines, requests, state, counts, steps, setting):  # type: ignore[no-untyped-def]
    """The uplink of the step that begins: signalling, then bulk.

    A user whose report is given up has lost its link.

    Returns:
        The lines, and rows of what arrived or is lost.
    """
    users = state.status.shape[1]
    now_s, until_s = steps * setting.up.step_s, (steps + 1) * setting.up.step_s
    share, nobody = np.zeros(setting.free_up.shape), np.zeros(setting.free_up.shape)
    loss, none = losses(state.sinr, lines.uplink.waiting), np.zeros(1)
    uplink, over = _air(
        lines.uplink, loss, state, setting.free_up, setting.up, now_s, until_s, setting, share
    )
    bulk = _due(lines.bulk_up, setting.bulk_up, requests.offered[:1], until_s)
    if len(bulk.waiting) + len(bulk.in_flight):
        left = np.maximum(setting.free_up - share, 0.0)
        bulk, came = _air(bulk, none, state, left, setting.up, now_s, until_s, setting, nobody)
        for i in range(len(came)):
            w = came[i].source // users
            _count_bulk(came[i], w, 0.0, counts.bulk, counts.bulk_delay_s, counts.bits)
    _count(over, over.source, users, counts)
    for i in range(len(over)):
        w, u = over[i].source // users, over[i].source % users
        if over[i].ready_s == np.inf and state.status[w, u] == CONNECTED:
            state.status[w, u], state.timer_steps[w, u] = REESTABLISHING, setting.reestablishment_steps
            state.target[w, u] = state.t310_steps[w, u] = NONE
            state.link_failures[w, u] += 1
    return Lines(uplink, lines.downlink, lines.wire, bulk, lines.bulk_down), over


@njit(inline="always")
def _write(row, id, ends, queue, purpose, payload_bits, header_bits, at_s):  # type: ignore[no-untyped-def]
    """A message that begins to wait; `ends` are its source and destination."""
    row.id, row.queue, row.purpose, row.repeats = id, queue, purpose, 0
    row.source, row.destination = ends
    row.payload_bits, row.bits = payload_bits, payload_bits + header_bits
    row.offered_s = row.ready_s = at_s
    row.left_bits = payload_bits + header_bits


@njit(**COMPILED)
def ask(wanted, prepared, requests, state, number, now_s, setting):  # type: ignore[no-untyped-def]
    """Handovers that are asked for: by those who are connected and wait for none.

    Args:
        wanted: cell, `[W, U]`; the serving one or NONE to stay.
        prepared: cells that need no request, `[W, U, C]`.
        requests: so far; changed in place.
        state: at the end of a period.
        number: of the messages.
        now_s: the time.
        setting: of the run.

    Returns:
        Who asks, `[n]`; prepared cells that are wanted, `[W, U]` or NONE; cells that are wanted or asked for
        already, likewise.
    """
    users, count = np.empty(wanted.size, np.int64), 0
    at_once, ahead = np.full(wanted.shape, NONE), np.full(wanted.shape, NONE)
    q = -1
    for w in range(wanted.shape[0]):
        for u in range(wanted.shape[1]):
            cell, q = wanted[w, u], q + 1
            if requests.asked[q] != NONE:
                ahead[w, u] = requests.wanted[q]
                continue
            away = state.status[w, u] != CONNECTED or state.target[w, u] != NONE
            if away or cell == NONE or cell == state.serving[w, u]:
                continue
            ahead[w, u] = cell
            if prepared[w, u, cell]:
                at_once[w, u] = cell
                continue
            requests.asked[q], requests.wanted[q] = setting.message_key[q] + number, cell
            requests.asked_s[q] = now_s
            users[count] = q
            count += 1
    return users[:count], at_once, ahead


@njit(**COMPILED)
def report(uplink, users, number, payload_bits, now_s, setting):  # type: ignore[no-untyped-def]
    """Offers a report of every user, `[n]`, to the uplink."""
    rows = np.empty(len(users), ROW)
    for i in range(len(users)):
        id = setting.message_key[users[i]] + number
        _write(rows[i], id, (users[i], 0), users[i], ASSISTANCE, payload_bits, AIR_HEADER_BITS, now_s)
    return Line(put(uplink.waiting, rows), uplink.in_flight)


@njit(**COMPILED)
def prepare(wire, users, at_s, requests, state, counts, setting):  # type: ignore[no-untyped-def]
    """Offers the preparations that users' handovers need, `[n]`, to their stations' wires, at a time."""
    rows = np.empty(len(users), ROW)
    for i in range(len(users)):
        q = users[i]
        w, u = q // state.status.shape[1], q % state.status.shape[1]
        station, id = setting.cell_site[state.serving[w, u]] + setting.sites * w, requests.asked[q]
        _write(rows[i], id, (station, q), station, SIGNALLING, PREPARATION_BITS, XN_HEADER_BITS, at_s[i])
        counts.prepared[w] += 1
    return Line(put(wire.waiting, rows), wire.in_flight)


@njit(**COMPILED)
def descend(lines, requests, state, counts, told, steps, setting):  # type: ignore[no-untyped-def]
    """The wires and the downlink of the step that begins: signalling now, bulk as the cells see fit.

    A command acts from the step on that is nearest to its arrival.

    Returns:
        The lines.
    """
    users, asked = state.status.shape[1], requests.asked
    now_s, until_s = steps * setting.down.step_s, (steps + 1) * setting.down.step_s
    wire, none = _due(lines.wire, setting.bulk_wire, requests.offered[2:], until_s), np.zeros(1)
    wire, ready, _ = serve(wire, setting.wire_bps, none, setting.key, now_s, until_s, setting.wire_timing)
    commands, count = np.empty(len(ready), ROW), 0
    for i in range(len(ready)):
        row = ready[i]
        if row.purpose != SIGNALLING:
            w = row.source // setting.sites
            _count_bulk(row, w, setting.wire_timing.delay_s, counts.wire, counts.wire_delay_s, counts.bits)
        elif asked[row.destination] == row.id:
            q, id = row.destination, row.id + 1
            _write(commands[count], id, (0, q), q, SIGNALLING, COMMAND_BITS, AIR_HEADER_BITS, row.ready_s)
            count += 1
    downlink = Line(put(lines.downlink.waiting, commands[:count]), lines.downlink.in_flight)
    bulk = _due(lines.bulk_down, setting.bulk_down, requests.offered[1:], until_s)
    loss, share = losses(state.sinr, downlink.waiting), np.zeros(setting.free_down.shape)
    downlink, over = _air(
        downlink, loss, state, setting.free_down, setting.down, now_s, until_s, setting, share
    )
    state.reserved[:] = share
    if len(bulk.waiting):
        # what comes within the step waits for the next one
        state.bulk_bits[:] = 0
        backlog(bulk.waiting, np.nextafter(now_s, np.inf), state.bulk_bits.reshape(-1))
    requests.lent_bits[:] = state.bulk_bits.reshape(-1)
    _count(over, over.destination, users, counts)
    for i in range(len(over)):
        q, at_s = over[i].destination, over[i].ready_s
        w, u = q // users, q % users
        if asked[q] == over[i].id - 1 and state.status[w, u] == CONNECTED:
            asked[q] = NONE
            if at_s < np.inf:
                counts.commands[w] += 1
                counts.command_delay_s[w] += at_s - requests.asked_s[q]
                told[w, u] = requests.wanted[q]
                if setting.executes:
                    state.target[w, u] = told[w, u]
                    state.command_steps[w, u] = np.rint((at_s - now_s) / setting.down.step_s)
    return Lines(lines.uplink, downlink, wire, lines.bulk_up, bulk)


@njit(**COMPILED)
def settle(lines, requests, state, counts, steps, setting):  # type: ignore[no-untyped-def]
    """Delivers the bulk that the last step has sent in the downlink; again, it does nothing.

    Args:
        lines: so far.
        requests: so far; what was lent is settled in place.
        state: after the step.
        counts: changed in place.
        steps: so many have passed, this one included.
        setting: of the run.

    Returns:
        The lines.
    """
    step_s, left_bits = setting.down.step_s, state.bulk_bits.reshape(-1)
    rate_bps, none = (requests.lent_bits - left_bits) / step_s, np.zeros(1)
    requests.lent_bits[:] = left_bits
    bulk, came, _ = serve(
        lines.bulk_down, rate_bps, none, setting.key, (steps - 1) * step_s, steps * step_s, setting.air_timing
    )
    for i in range(len(came)):
        w = came[i].destination // state.status.shape[1]
        _count_bulk(came[i], w, 0.0, counts.bulk, counts.bulk_delay_s, counts.bits)
    return Lines(lines.uplink, lines.downlink, lines.wire, lines.bulk_up, bulk)


@njit(**COMPILED)
def step(  # type: ignore[no-untyped-def]
    lines, requests, state, counts, told, steps, listens, reports_ask, setting
):
    """All of the step that begins; the bulk of its downlink is delivered by `settle`, here or after it.

    Args:
        lines: so far.
        requests: likewise; changed in place.
        state: at the end of the step before; commands, lost links, `reserved` and `bulk_bits` are changed in
            place.
        counts: changed in place.
        told: gets the cells that commands name, `[W, U]`.
        steps: so many have passed.
        listens: whether the uplink has not had its turn yet.
        reports_ask: whether a report that arrives begins a preparation.
        setting: of the run.

    Returns:
        The lines.
    """
    lines = settle(lines, requests, state, counts, steps, setting)
    lines = leave(lines, requests, state, counts)
    if listens:
        lines, over = ascend(lines, requests, state, counts, steps, setting)
        if reports_ask and len(over):
            users, at_s, count = np.empty(len(over), np.int64), np.empty(len(over)), 0
            for i in range(len(over)):
                if over[i].ready_s < np.inf and requests.asked[over[i].source] == over[i].id:
                    users[count], at_s[count] = over[i].source, over[i].ready_s
                    count += 1
            wire = prepare(lines.wire, users[:count], at_s[:count], requests, state, counts, setting)
            lines = Lines(lines.uplink, lines.downlink, wire, lines.bulk_up, lines.bulk_down)
    return descend(lines, requests, state, counts, told, steps, setting)
