"""Measurement reports and handover commands in the air: what they cost, and who is heard."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from defiance.link import HALF_LOSS_DB, LOSS_SLOPE_PER_DB, PURPOSES, LossyLink
from defiance.network.scheduling import LOOP
from defiance.network.settings import RadioConfig
from defiance.network.state import CONNECTED, NONE, State
from defiance.network.world import World
from defiance.seeding import FIRST_MULTIPLIER, GOLDEN_GAMMA, SECOND_MULTIPLIER, Stream

REPORT_CELL_BITS, REPORT_HEADER_BITS = 17, 40
"""TS 38.331 MeasurementReport: 10 bits of physical cell identity and 7 of RSRP per cell + about 5 bytes."""

COMMAND_BITS = 2000
"""RRCReconfiguration with a mobility command, about 250 bytes."""

PREPARATION_BITS = 2 * 4000
"""HANDOVER REQUEST and its acknowledgement over Xn (TS 38.423), about 500 bytes each."""


Whole: TypeAlias = NDArray[np.int64]

LAWS = "sinr", "t310", "ideal", "queued"
"""Of loss: `RadioConfig.messages`; those that wait have a law of their own (`defiance.network.air`)."""
BY_SINR, WITHOUT_CONNECTION, *_ = range(len(LAWS))


def report_bits(cells: int) -> int:
    """Bits of a measurement report that names `cells` cells."""
    return REPORT_HEADER_BITS + cells * REPORT_CELL_BITS


class Lottery(NamedTuple):
    """What a message's fate is drawn from; for compiled loops.

    Attributes:
        key: of the user's messages, `[W, U]` int64.
        stream_key: of the run's draws.
        law: of loss, a number of `LAWS`.
    """

    key: Any
    stream_key: Any
    law: int


class Messenger:
    """Sends reports and commands of one run over its links and folds what they cost per world.

    Where they wait in queues, `defiance.network.transport` sends them, and folds what they cost here.
    """

    def __init__(self, world: World, config: RadioConfig, stream: Stream) -> None:
        worlds, users, _ = world.shape
        self.config, self.shape = config, (worlds, users)
        self.key = (world.key[:, None] + torch.arange(users) * 2**20).flatten()
        keys, law = self.key.view(worlds, users).numpy(), LAWS.index(config.messages)
        self.lottery = Lottery(keys, np.uint64(stream.key), law)
        self.uplink = LossyLink(delay_s=config.air_delay_s, lossy_end="source")
        self.downlink = LossyLink(delay_s=config.air_delay_s, lossy_end="destination")
        self.reset()

    def reset(self) -> None:
        """Starts the fold anew."""
        worlds, _ = self.shape
        self.bits = torch.zeros(worlds, len(PURPOSES), dtype=torch.int64)
        self.messages = torch.zeros(worlds, dtype=torch.int64)
        self.lost = torch.zeros(worlds, dtype=torch.int64)
        self.prepared = torch.zeros(worlds, dtype=torch.int64)
        self.commands = torch.zeros(worlds, dtype=torch.int64)
        self.command_delay_s = torch.zeros(worlds, dtype=torch.float64)
        counts = self.messages.numpy(), self.lost.numpy()
        self._assistance, self._signalling = (
            (self.bits[:, PURPOSES.index(purpose)].numpy(), *counts)
            for purpose in ("assistance", "signalling")
        )
        self._prepared = self.prepared.numpy(), self.commands.numpy(), self.command_delay_s.numpy()
        self.bulk = torch.zeros(worlds, dtype=torch.int64)
        self.bulk_delay_s = torch.zeros(worlds, dtype=torch.float64)
        self.wire = torch.zeros(worlds, dtype=torch.int64)
        self.wire_delay_s = torch.zeros(worlds, dtype=torch.float64)

    def report(self, state: State, senders: Tensor, period: int, cells: int) -> Tensor:
        """Sends a report of `cells` cells from every marked user; returns who was heard, `[W, U]`.

        As `LossyLink` does with the packets `key + 4 period`, in one pass; so do requests and commands.
        """
        heard = torch.empty_like(senders)
        _report_loop(
            senders.numpy(), state.sinr.numpy(), self.lottery, *self._report(period, cells), heard.numpy()
        )
        return heard

    def ask(
        self, state: State, wanted: Tensor, prepared: Tensor, period: int, cells: int, *, requests: bool
    ) -> tuple[Tensor, Tensor]:
        """What users, or stations for them, want: what comes through, and what is wanted by those who may.

        Args:
            state: those who are connected and wait for no command may want something.
            wanted: cell, `[W, U]` int64; the serving one or NONE to stay.
            prepared: cells that need no request, `[W, U, C]`.
            period: of which the requests are messages.
            cells: that a request reports on.
            requests: whether users send them; stations needn't.

        Returns:
            Cells or NONE, `[W, U]` each.
        """
        may, heard = torch.empty_like(wanted), torch.empty_like(wanted)
        _ask_loop(
            state.status.numpy(),
            state.target.numpy(),
            state.serving.numpy(),
            state.sinr.numpy(),
            wanted.numpy(),
            prepared.numpy(),
            requests,
            self.lottery,
            *self._report(period, cells),
            may.numpy(),
            heard.numpy(),
        )
        return heard, may

    def commanded(self, wanted: Whole, told: Whole) -> None:
        """Folds the commands of handovers that have been prepared over Xn: sent and arrived, `[W, U]`."""
        sent_bits = COMMAND_BITS + self.downlink.header_bits
        delay_s = 2 * self.config.air_delay_s + self.config.preparation_s
        _command_fold(wanted, told, sent_bits, delay_s, *self._signalling, *self._prepared)

    def _report(self, period: int, cells: int) -> tuple[Any, ...]:
        """A report's number and bits, and what it is counted in."""
        return 4 * period, report_bits(cells) + self.uplink.header_bits, *self._assistance


@njit(**LOOP)
def _report_loop(  # type: ignore[no-untyped-def]
    senders, sinr, lottery, number, sent_bits, bits, messages, lost, heard
):
    """Draws the fate of packets, `[W, U]`; writes who is `heard` and adds to what every world sent, `[W]`."""
    worlds, users = senders.shape
    for w in range(worlds):
        for u in range(users):
            heard[w, u] = senders[w, u] and heard_loop(w, u, number, sinr[w, u], lottery)
            bits[w] += sent_bits * senders[w, u]
            messages[w] += senders[w, u]
            lost[w] += senders[w, u] and not heard[w, u]


@njit(**LOOP)
def _ask_loop(  # type: ignore[no-untyped-def]
    status, target, serving, sinr, wanted, prepared, requests, lottery, number, sent_bits,
    bits, messages, lost, may, heard,
):  # fmt: skip
    """`Messenger.ask`; adds to what every world sent, `[W]`."""
    worlds, users = wanted.shape
    for w in range(worlds):
        for u in range(users):
            cell = wanted[w, u]
            if status[w, u] != CONNECTED or target[w, u] != NONE or cell == serving[w, u]:
                cell = NONE
            may[w, u], heard[w, u] = cell, cell
            if requests and cell != NONE and not prepared[w, u, cell]:
                bits[w] += sent_bits
                messages[w] += 1
                if not heard_loop(w, u, number, sinr[w, u], lottery):
                    heard[w, u] = NONE
                    lost[w] += 1


@njit(**LOOP)
def _command_fold(  # type: ignore[no-untyped-def]
    wanted, told, sent_bits, delay_s, bits, messages, lost, prepared, commands, command_delay_s
):
    """`Messenger.commanded`."""
    worlds, users = wanted.shape
    for w in range(worlds):
        asked, arrived = 0, 0
        for u in range(users):
            asked += wanted[w, u] != NONE
            arrived += told[w, u] != NONE
        bits[w] += asked * sent_bits
        messages[w] += asked
        lost[w] += asked - arrived
        prepared[w] += asked
        commands[w] += arrived
        command_delay_s[w] += arrived * delay_s


@njit(**LOOP)
def heard_loop(w, u, number, sinr, lottery):  # type: ignore[no-untyped-def]
    """Whether a message of a user with this linear SINR gets through."""
    loss = 0.0
    if lottery.law == BY_SINR:
        loss = loss_loop(10 * math.log10(np.float64(sinr)))
    elif lottery.law == WITHOUT_CONNECTION and sinr <= 0:
        loss = 1.0
    return uniform_loop(lottery.stream_key, np.uint64(lottery.key[w, u] + number)) >= loss


@njit(inline="always")
def loss_loop(sinr_db):  # type: ignore[no-untyped-def]
    """`loss_from_sinr` of one number."""
    return 1 / (1 + math.exp((sinr_db - HALF_LOSS_DB) * LOSS_SLOPE_PER_DB))


@njit(inline="always")
def uniform_loop(stream_key, id):  # type: ignore[no-untyped-def]
    """`Stream.uniform` of one id; both of 64 bits without a sign."""
    bits = id * np.uint64(GOLDEN_GAMMA) + stream_key
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(FIRST_MULTIPLIER)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(SECOND_MULTIPLIER)
    bits = bits ^ (bits >> np.uint64(31))
    return (bits >> np.uint64(11)) * 2.0**-53
