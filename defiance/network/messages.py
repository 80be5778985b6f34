"""Measurement reports and handover commands in the air: what they cost, and who is heard."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from defiance.link import HALF_LOSS_DB, LOSS_SLOPE_PER_DB, PURPOSES, LossyLink
from defiance.network.scheduling import LOOP
from defiance.network.settings import RadioConfig
from defiance.network.state import NONE, State, but
from defiance.network.world import World
from defiance.seeding import FIRST_MULTIPLIER, GOLDEN_GAMMA, SECOND_MULTIPLIER, Stream

REPORT_CELL_BITS, REPORT_HEADER_BITS = 17, 40
"""TS 38.331 MeasurementReport: 10 bits of physical cell identity and 7 of RSRP per cell + about 5 bytes."""

COMMAND_BITS = 2000
"""RRCReconfiguration with a mobility command, about 250 bytes."""

PREPARATION_BITS = 2 * 4000
"""HANDOVER REQUEST and its acknowledgement over Xn (TS 38.423), about 500 bytes each."""


Whole: TypeAlias = NDArray[np.int64]
Real: TypeAlias = NDArray[np.float64]

LAWS = "sinr", "t310", "ideal"
"""Of loss: `RadioConfig.messages` where they don't wait."""
BY_SINR, WITHOUT_CONNECTION, _ = range(len(LAWS))


def report_bits(cells: int) -> int:
    """Bits of a measurement report that names `cells` cells."""
    return REPORT_HEADER_BITS + cells * REPORT_CELL_BITS


class Messenger:
    """Sends reports and commands of one run over its links and folds what they cost per world."""

    def __init__(self, world: World, config: RadioConfig, stream: Stream) -> None:
        worlds, users, _ = world.shape
        self.config, self.shape, self.stream_key = config, (worlds, users), np.uint64(stream.key)
        self.key = (world.key[:, None] + torch.arange(users) * 2**20).flatten()
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
        self.bulk = torch.zeros(worlds, dtype=torch.int64)
        self.bulk_delay_s = torch.zeros(worlds, dtype=torch.float64)
        self.wire = torch.zeros(worlds, dtype=torch.int64)
        self.wire_delay_s = torch.zeros(worlds, dtype=torch.float64)

    def report(self, state: State, senders: Tensor, period: int, cells: int) -> Tensor:
        """Sends a report of `cells` cells from every marked user; returns who was heard, `[W, U]`."""
        return self._send(self.uplink, senders, 4 * period, "assistance", report_bits(cells), state)

    def command(self, state: State, wanted: Tensor, period: int, now_s: float) -> State:
        """Sends the commands of handovers that have been prepared over Xn, `wanted` `[W, U]`."""
        asked = wanted != NONE
        if not bool(asked.any()):
            return state
        self.prepared += asked.sum(1)
        told = self._send(self.downlink, asked, 4 * period + 1, "signalling", COMMAND_BITS, state)
        commands = told.sum(1)
        self.commands += commands
        self.command_delay_s += commands * (2 * self.config.air_delay_s + self.config.preparation_s)
        ahead_s = self.config.air_delay_s + now_s - self.config.steps(now_s) * self.config.step_s
        wait = torch.full_like(state.target, self.config.steps(max(0.0, ahead_s)))
        return but(state, target=torch.where(told, wanted.int(), state.target), command_steps=wait)

    def _send(
        self, link: LossyLink, senders: Tensor, number: int, purpose: str, payload_bits: int, state: State
    ) -> Tensor:
        """Sends a packet for every marked user over a link on which nothing else is; who is heard, `[W, U]`.

        As `LossyLink` does with the packets `key + number`, in one pass.
        """
        heard = torch.empty_like(senders)
        _lossy_loop(
            senders.numpy(),
            self.key.numpy(),
            number,
            self.stream_key,
            state.sinr.numpy(),
            LAWS.index(self.config.messages),
            payload_bits + link.header_bits,
            heard.numpy(),
            self.bits[:, PURPOSES.index(purpose)].numpy(),
            self.messages.numpy(),
            self.lost.numpy(),
        )
        return heard

    def count(self, world: Whole, purpose: Whole, sent_bits: Whole, lost: NDArray[np.bool_]) -> None:
        """Folds messages that are over, `[n]`: of which world, for what, bits sent, whether lost."""
        _fold(world, purpose, sent_bits, self.bits.numpy(), lost, self.messages.numpy(), self.lost.numpy())

    def count_commands(self, world: Whole, delay_s: Real) -> None:
        """Folds how long after a report was due its command arrived, `[n]`."""
        np.add.at(self.commands.numpy(), world, 1)
        np.add.at(self.command_delay_s.numpy(), world, delay_s)

    def count_bulk(
        self, world: Whole, purpose: Whole, sent_bits: Whole, delay_s: Real, *, wire: bool
    ) -> None:
        """Folds other payloads that have arrived, `[n]`: from users and to them, or over wires."""
        count, total_s = (self.wire, self.wire_delay_s) if wire else (self.bulk, self.bulk_delay_s)
        _fold(world, purpose, sent_bits, self.bits.numpy(), delay_s, count.numpy(), total_s.numpy())


@njit(nogil=True, cache=True)
def _fold(world, purpose, sent_bits, bits, values, count, total):  # type: ignore[no-untyped-def]
    for i in range(len(world)):
        bits[world[i], purpose[i]] += sent_bits[i]
        count[world[i]] += 1
        total[world[i]] += values[i]


@njit(**LOOP)
def _lossy_loop(  # type: ignore[no-untyped-def]
    senders, key, number, stream_key, sinr, law, sent_bits, heard, bits, messages, lost
):
    """Draws the fate of packets, `[W, U]`; writes who is `heard` and adds to what every world sent, `[W]`."""
    worlds, users = senders.shape
    for w in range(worlds):
        for u in range(users):
            heard[w, u] = senders[w, u]
            if senders[w, u]:
                loss = 0.0
                if law == BY_SINR:
                    loss = loss_loop(10 * math.log10(np.float64(sinr[w, u])))
                elif law == WITHOUT_CONNECTION and sinr[w, u] <= 0:
                    loss = 1.0
                heard[w, u] = uniform_loop(stream_key, np.uint64(key[w * users + u] + number)) >= loss
                bits[w] += sent_bits
                messages[w] += 1
                lost[w] += not heard[w, u]


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
