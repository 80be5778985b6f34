"""Measurement reports and handover commands in the air: what they cost, and who is heard."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from defiance.link import PURPOSES, Deliveries, LossyLink, Packets, loss_from_sinr
from defiance.network.settings import RadioConfig
from defiance.network.state import NONE, State, sinr_db
from defiance.network.world import World
from defiance.seeding import Stream

REPORT_CELL_BITS, REPORT_HEADER_BITS = 17, 40
"""TS 38.331 MeasurementReport: 10 bits of physical cell identity and 7 of RSRP per cell + about 5 bytes."""

COMMAND_BITS = 2000
"""RRCReconfiguration with a mobility command, about 250 bytes."""

PREPARATION_BITS = 2 * 4000
"""HANDOVER REQUEST and its acknowledgement over Xn (TS 38.423), about 500 bytes each."""


def report_bits(cells: int) -> int:
    """Bits of a measurement report that names `cells` cells."""
    return REPORT_HEADER_BITS + cells * REPORT_CELL_BITS


class Messenger:
    """Sends reports and commands of one run over its links and folds what they cost per world."""

    def __init__(self, world: World, config: RadioConfig, stream: Stream) -> None:
        worlds, users, _ = world.shape
        self.config, self.stream, self.shape = config, stream, (worlds, users)
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

    def report(self, state: State, senders: Tensor, period: int, now_s: float, cells: int) -> Tensor:
        """Sends a report of `cells` cells from every marked user; returns who was heard, `[W, U]`."""
        user = torch.nonzero(senders.flatten()).squeeze(-1)
        packets = Packets.of(
            self.key[user] + 4 * period,
            source=user,
            purpose="assistance",
            payload_bits=report_bits(cells),
            offered_s=now_s,
        )
        heard = self._send(self.uplink, packets, now_s, state)
        return torch.zeros(senders.numel(), dtype=torch.bool).index_fill(0, heard, True).view(senders.shape)

    def command(self, state: State, wanted: Tensor, period: int, now_s: float) -> State:
        """Sends the commands of handovers that have been prepared over Xn, `wanted` `[W, U]`."""
        user = torch.nonzero((wanted != NONE).flatten()).squeeze(-1)
        if not len(user):
            return state
        self.prepared += torch.bincount(user // self.shape[1], minlength=self.shape[0])
        command = Packets.of(
            self.key[user] + 4 * period + 1,
            destination=user,
            purpose="signalling",
            payload_bits=COMMAND_BITS,
            offered_s=now_s,
        )
        told = self._send(self.downlink, command, now_s, state)
        delay_s = 2 * self.config.air_delay_s + self.config.preparation_s
        self.count_commands(told, torch.full(told.shape, delay_s, dtype=torch.float64))
        target = state.target.flatten().index_copy(0, told, wanted.flatten()[told].int())
        ahead_s = self.config.air_delay_s + now_s - self.config.steps(now_s) * self.config.step_s
        wait = torch.full_like(target, self.config.steps(max(0.0, ahead_s)))
        return replace(state, target=target.view(wanted.shape), command_steps=wait.view(wanted.shape))

    def _send(self, link: LossyLink, packets: Packets, now_s: float, state: State) -> Tensor:
        """Sends a batch that is alone on its link; returns whose packets arrived, numbered world by world."""
        loss = loss_from_sinr(sinr_db(state).flatten())
        if self.config.messages == "t310":
            loss = (state.sinr.flatten() <= 0).to(loss.dtype)
        elif self.config.messages == "ideal":
            loss = torch.zeros_like(loss)
        held = link.offer(replace(link.initial(), loss_probability=loss), packets, now_s)
        _, deliveries = link.advance(held, math.inf, self.stream)
        user = deliveries.source + deliveries.destination  # one of them is the network, 0
        self.count(deliveries, user)
        return user[deliveries.delivered]

    def count(self, deliveries: Deliveries, user: Tensor) -> None:
        """Folds what became of messages of users, `[n]`."""
        worlds, users = self.shape
        world = user // users
        self.bits.index_put_((world, deliveries.purpose), deliveries.sent_bits, accumulate=True)
        self.messages += torch.bincount(world, minlength=worlds)
        self.lost += torch.bincount(world[~deliveries.delivered], minlength=worlds)

    def count_commands(self, user: Tensor, delay_s: Tensor) -> None:
        """Folds how long after a report was due its command arrived at users, `[n]`."""
        worlds, users = self.shape
        self.commands += torch.bincount(user // users, minlength=worlds)
        self.command_delay_s += torch.bincount(user // users, delay_s, worlds)

    def count_bulk(self, deliveries: Deliveries, user: Tensor) -> None:
        """Folds other payloads of users, `[n]`, that have arrived."""
        worlds, users = self.shape
        world = user // users
        self.bits.index_put_((world, deliveries.purpose), deliveries.sent_bits, accumulate=True)
        self.bulk += torch.bincount(world, minlength=worlds)
        self.bulk_delay_s += torch.bincount(world, deliveries.arrived_s - deliveries.offered_s, worlds)

    def count_wire(self, deliveries: Deliveries, sites: int, processing_s: float) -> None:
        """Folds other payloads of stations, `[n]`, that have left the wire; the link's delay isn't theirs."""
        worlds, _ = self.shape
        world = deliveries.source // sites
        self.bits.index_put_((world, deliveries.purpose), deliveries.sent_bits, accumulate=True)
        self.wire += torch.bincount(world, minlength=worlds)
        delay_s = deliveries.arrived_s - deliveries.offered_s - processing_s
        self.wire_delay_s += torch.bincount(world, delay_s, worlds)
