"""What a user does: handover commands, execution, re-establishment, radio-link monitoring, step by step.

The loops of `kernel` that follow the procedures of TS 38.331; arguments as in `reception`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from defiance.network.messages import WITHOUT_CONNECTION, Lottery, heard_loop
from defiance.network.scheduling import LOOP
from defiance.network.state import CONNECTED, EXECUTING, NONE, REESTABLISHING

NEVER = -1


class Period(NamedTuple):
    """What happens between the steps of a decision period; arrays are of NumPy and contiguous.

    Attributes:
        steps: that the period has.
        command_after: so many steps, handover commands arrive.
        sample_after: so many steps, the sample begins that the measurement is the mean of.
        wanted: cell that a user's command names, `[W, U]` int64, NONE without one.
        told: becomes that of the commands that arrive, likewise.
        target: becomes, where a command arrives, what it names, likewise.
        refused: becomes whose command came while T310 ran, `[W, U]` bool; written with `messages = "t310"`.
        lottery: of messages.
        number: of the commands among the messages of a user.
        wait_steps: from there on until a command is executed.
        executes: whether commands are; else they are configurations that the device keeps.
        rsrp_dbm: becomes the measurement at the end, `[W, U, C]`; empty: none is taken.
    """

    steps: int
    command_after: int
    sample_after: int
    wanted: Any
    told: Any
    target: Any
    refused: Any
    lottery: Lottery
    number: int
    wait_steps: int
    executes: bool
    rsrp_dbm: Any


def _no_period() -> Period:
    nobody, keys = np.empty((0, 0), np.int64), np.empty((0, 0), np.int64)
    return Period(
        NEVER,
        NEVER,
        NEVER,
        wanted=nobody,
        told=nobody,
        target=nobody,
        refused=np.empty((0, 0), np.bool_),
        lottery=Lottery(keys, np.uint64(0), 0),
        number=0,
        wait_steps=0,
        executes=False,
        rsrp_dbm=np.empty((0, 0, 0), np.float32),
    )


NO_PERIOD = _no_period()
"""Steps between which nothing happens."""


@njit(**LOOP)
def command_users(w, first, end, state, radio, period):  # type: ignore[no-untyped-def]
    """Commands arrive at users of a world, or not; with `messages = "t310"` late ones fail the handover."""
    refuses = period.lottery.law == WITHOUT_CONNECTION and period.executes
    for u in range(first, end):
        cell = period.wanted[w, u]
        if cell != NONE and not heard_loop(w, u, period.number, state.sinr[w, u], period.lottery):
            cell = NONE
        period.told[w, u] = cell
        if cell != NONE and period.executes:
            period.target[w, u] = cell
            state.target[w, u] = cell
            state.command_steps[w, u] = period.wait_steps
        if refuses:
            connected = state.status[w, u] == CONNECTED
            refused = connected and state.target[w, u] != NONE and state.t310_steps[w, u] != NONE
            period.refused[w, u] = refused
            if refused:
                state.handover_failures[w, u] += 1
                state.status[w, u] = REESTABLISHING
                state.timer_steps[w, u] = radio.reestablishment_steps
                state.target[w, u] = NONE
                state.t310_steps[w, u] = NONE


@njit(inline="always", fastmath=True)
def follow(w, u, received, total, state, radio):  # type: ignore[no-untyped-def]
    """Command, execution, re-establishment, radio-link monitoring; whether the user may be served."""
    connected = False
    state.sinr[w, u] = 0
    state.stay_steps[w, u] += 1
    if state.status[w, u] == CONNECTED and state.target[w, u] != NONE:
        if state.command_steps[w, u] <= 0:
            state.status[w, u] = EXECUTING
            state.timer_steps[w, u] = radio.execution_steps
            state.window_steps[w, u] = 0
        else:
            state.command_steps[w, u] -= 1
    if state.status[w, u] == REESTABLISHING:
        state.outage_steps[w, u] += 1
        state.timer_steps[w, u] -= 1
        if state.timer_steps[w, u] <= 0:
            best = 0
            for c in range(1, len(received)):
                if state.rsrp_dbm[w, u, c] > state.rsrp_dbm[w, u, best]:
                    best = c
            if state.rsrp_dbm[w, u, best] > radio.suitable_dbm:
                state.serving[w, u] = best
                state.previous[w, u] = NONE
                state.stay_steps[w, u] = 0
                state.status[w, u] = CONNECTED
                _restart(w, u, state)
            else:
                state.searches_failed[w, u] += 1
                state.timer_steps[w, u] = radio.reestablishment_steps
    else:
        cell = state.serving[w, u] if state.status[w, u] == CONNECTED else state.target[w, u]
        s = received[cell]
        disturbance = max(total - state.load[w, cell] * s, np.float32(0)) + np.float32(radio.noise_mw)
        s_out, i_out, s_in, i_in = _remember(w, u, s, disturbance, state, radio)
        below_qout = s_out < radio.qout * i_out
        if state.status[w, u] == EXECUTING:
            state.outage_steps[w, u] += 1
            state.interrupted_steps[w, u] += 1
            state.timer_steps[w, u] -= 1
            below_access = s_out < radio.access * i_out
            left_steps = state.timer_steps[w, u] + (radio.repeat_steps if below_access else 0)
            if left_steps <= 0:
                _restart(w, u, state)
                state.target[w, u] = NONE
                if below_access:
                    state.handover_failures[w, u] += 1
                    state.status[w, u] = REESTABLISHING
                    state.timer_steps[w, u] = radio.reestablishment_steps
                else:
                    state.handovers[w, u] += 1
                    if cell == state.previous[w, u] and state.stay_steps[w, u] <= radio.ping_pong_steps:
                        state.ping_pongs[w, u] += 1
                    state.previous[w, u] = state.serving[w, u]
                    state.serving[w, u] = cell
                    state.stay_steps[w, u] = 0
                    state.status[w, u] = CONNECTED
                    state.sinr[w, u] = s_in / i_in
        else:
            state.sinr[w, u] = s_in / i_in
            connected = True
            above_qin = s_in > radio.qin * i_in
            if below_qout:
                state.outage_steps[w, u] += 1
                state.out_of_sync[w, u] += 1
                if state.t310_steps[w, u] == NONE and state.out_of_sync[w, u] >= radio.n310:
                    state.t310_steps[w, u] = 0
                    state.in_sync[w, u] = 0
            elif above_qin or radio.gap_breaks:
                state.out_of_sync[w, u] = 0
            if state.t310_steps[w, u] != NONE:
                if above_qin:
                    state.in_sync[w, u] += 1
                elif below_qout or radio.gap_breaks:
                    state.in_sync[w, u] = 0
                state.t310_steps[w, u] += 1
                if state.in_sync[w, u] >= radio.n311:
                    state.t310_steps[w, u] = NONE
                elif state.t310_steps[w, u] > radio.t310_steps:
                    state.link_failures[w, u] += 1
                    state.sinr[w, u] = 0
                    state.status[w, u] = REESTABLISHING
                    state.timer_steps[w, u] = radio.reestablishment_steps
                    state.target[w, u] = NONE
                    state.t310_steps[w, u] = NONE
    return connected


@njit(inline="always", fastmath=True)
def _restart(w, u, state):  # type: ignore[no-untyped-def]
    """Radio-link monitoring, link adaptation and the mean of past rates begin anew with another cell."""
    state.window_steps[w, u] = 0
    state.t310_steps[w, u] = NONE
    state.out_of_sync[w, u] = 0
    state.in_sync[w, u] = 0
    state.olla_db[w, u] = 0
    state.average_bps[w, u] = 0


@njit(inline="always", fastmath=True)
def _remember(w, u, signal, disturbance, state, radio):  # type: ignore[no-untyped-def]
    """Puts a step into the ring; returns sums of signal and disturbance over the Qout and the Qin window."""
    size = state.signal_mw.shape[2]
    slot = state.ring[w]
    state.signal_mw[w, u, slot] = signal
    state.interference_mw[w, u, slot] = disturbance
    state.window_steps[w, u] = min(state.window_steps[w, u] + 1, size)
    s_out = np.float32(0)
    i_out = np.float32(0)
    s_in = np.float32(0)
    i_in = np.float32(0)
    for k in range(state.window_steps[w, u]):
        at = slot - k
        if at < 0:
            at += size
        s_out += state.signal_mw[w, u, at]
        i_out += state.interference_mw[w, u, at]
        if k < radio.qin_steps:
            s_in += state.signal_mw[w, u, at]
            i_in += state.interference_mw[w, u, at]
    return s_out, i_out, s_in, i_in
