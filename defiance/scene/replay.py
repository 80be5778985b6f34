"""A user's measured radio as a Link: what would have got through, and when, on a drive that took place."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.link import Deliveries, Packets, first_in_first_out, in_order, joined, outcome, with_headers
from defiance.radio.link_adaptation import BLER_TARGET
from defiance.scene.drives import Drive
from defiance.seeding import Stream

# TS 36.213 table 7.2.3-1 (and TS 38.214 table 5.2.2.1-2): bits per symbol of one layer at CQI 0 to 15.
CQI_EFFICIENCY = (
    0.0, 0.1523, 0.2344, 0.3770, 0.6016, 0.8770, 1.1758, 1.4766, 1.9141, 2.4063, 2.7305, 3.3223, 3.9023,
    4.5234, 5.1152, 5.5547,
)  # fmt: skip
SYMBOLS_PER_S = 100 * 12 * 12 / 1e-3
"""Data symbols of 20 MHz of LTE: 100 resource blocks of 12 subcarriers, 12 of 14 symbols per millisecond."""
HOLD_S = 10.0  # a measurement is believed for so long at most

_USER_PLANE_HEADER_BITS = 8 * (40 + 3 + 2 + 3)


@dataclass(frozen=True)
class ReplayState:
    """What is on a replayed link.

    Attributes:
        waiting: offered, not yet put in order.
        in_flight: their transmission is settled.
        busy_until_bits: float64 [], how many of the bits that the drive could carry are taken.
    """

    waiting: Packets
    in_flight: Deliveries
    busy_until_bits: Tensor


@dataclass(frozen=True)
class ReplayLink:
    """One first-in-first-out queue that is served at a recorded rate; what isn't served by its end is lost.

    Packets are sent in the order of offered_s, then of id. While the rate is zero they wait.

    Attributes:
        time_s: float64 [n + 1], not falling; from `time_s[i]` to `time_s[i + 1]` the rate is `rate_bps[i]`.
        rate_bps: float64 [n].
        symbols_per_s: complex symbols on the air while bits are sent.
        delay_s: propagation and processing after the last bit is out.
        header_bits: per segment of at most 1460 bytes. The default is TCP and IPv4 40 bytes, PDCP 3, RLC 2
            and MAC 3 (TS 38.323, 38.322, 38.321).
        tx_energy_j_per_bit: spent by the sender per sent bit.
        rx_energy_j_per_bit: spent by the receiver per sent bit.

    Raises:
        DefianceError: times fall, or a rate is negative or not finite.
    """

    time_s: Tensor
    rate_bps: Tensor
    symbols_per_s: float = SYMBOLS_PER_S
    delay_s: float = 0.0
    header_bits: int = _USER_PLANE_HEADER_BITS
    tx_energy_j_per_bit: float = 0.0
    rx_energy_j_per_bit: float = 0.0

    def __post_init__(self) -> None:
        if self.time_s.shape != (len(self.rate_bps) + 1,) or bool((self.time_s.diff() < 0).any()):
            raise DefianceError("a replayed link needs one more time than rates, and times that don't fall")
        if not bool((self.rate_bps.isfinite() & (self.rate_bps >= 0)).all()):
            raise DefianceError("a replayed link needs rates that are finite and not negative")

    def initial(self) -> ReplayState:
        """Return the state in which nothing is on the way."""
        return ReplayState(Packets.empty(), Deliveries.empty(), torch.tensor(0.0, dtype=torch.float64))

    def offer(self, state: ReplayState, packets: Packets, now_s: float) -> ReplayState:
        """Put packets into the queue."""
        return replace(state, waiting=joined(state.waiting, packets, now_s))

    def advance(self, state: ReplayState, until_s: float, rng: Stream) -> tuple[ReplayState, Deliveries]:
        """Serve the queue; packets stamped `until_s` stay in it, as others of the same stamp may come.

        With B(t) the bits that the drive could carry until t, a packet is served when B has grown by its bits
        since its offer, or since the packet before it was served.
        """
        startable = state.waiting.offered_s < until_s
        packets = in_order(state.waiting.select(startable))
        sent_bits = with_headers(packets.payload_bits, self.header_bits)
        offered_bits = self._carried(packets.offered_s)
        taken = first_in_first_out(offered_bits, sent_bits.double(), state.busy_until_bits)
        finished_s = torch.maximum(self._when(taken), packets.offered_s)
        on_air_s = self._sending(finished_s) - self._sending(self._when(taken - sent_bits))
        settled = outcome(
            packets,
            arrived_s=finished_s + self.delay_s,
            sent_bits=sent_bits,
            channel_uses=(on_air_s * self.symbols_per_s).ceil().to(torch.int64),
            tx_energy_j=sent_bits.double() * self.tx_energy_j_per_bit,
            rx_energy_j=sent_bits.double() * self.rx_energy_j_per_bit,
        )
        in_flight = Deliveries.concatenate(state.in_flight, settled)
        end_s = in_flight.offered_s.clamp(min=float(self.time_s[-1]))
        due = torch.where(in_flight.delivered, in_flight.arrived_s, end_s) <= until_s
        busy = taken[-1] if len(packets) else state.busy_until_bits
        waiting = state.waiting.select(~startable)
        return ReplayState(waiting, in_flight.select(~due), busy), in_flight.select(due)

    @property
    def _capacity_bits(self) -> Tensor:
        """B at `time_s`, float64 [n + 1]."""
        return _summed(self.rate_bps * self.time_s.diff())

    def _carried(self, at_s: Tensor) -> Tensor:
        """B at any time, float64 [m]."""
        return _interpolated(at_s, self.time_s, self._capacity_bits)

    def _sending(self, at_s: Tensor) -> Tensor:
        """Seconds in which something could be sent, until any time, float64 [m]."""
        return _interpolated(at_s, self.time_s, _summed((self.rate_bps > 0) * self.time_s.diff()))

    def _when(self, bits: Tensor) -> Tensor:
        """The first time at which B is so large, float64 [m]; inf if it never is."""
        capacity = self._capacity_bits
        upper = torch.searchsorted(capacity, bits).clamp(1, len(capacity) - 1)
        at_s = self.time_s[upper - 1] + (bits - capacity[upper - 1]).clamp(min=0) / self.rate_bps[upper - 1]
        at_s = torch.where(bits <= 0, self.time_s[0], at_s)
        return torch.where(bits > capacity[-1], torch.inf, at_s)


def replay(drive: Drive, symbols_per_s: float = SYMBOLS_PER_S) -> ReplayLink:
    """The downlink of a drive's user, alone in its cell, at the rate that its CQI promised.

    A CQI promises its efficiency at a block error rate of 10 %, so 0.9 of it gets through. A row holds until
    the next, at most `HOLD_S`; the last one for as long as rows are apart on average. Without a CQI (3G, no
    service) nothing is sent. Handovers interrupt nothing but what rows show.

    Args:
        drive: as measured.
        symbols_per_s: data symbols that the user's share of the carrier has.

    Raises:
        DefianceError: the drive has fewer than two rows, or no CQI.
    """
    if len(drive) < 2 or not bool(drive.cqi.isfinite().any()):
        raise DefianceError(f"drive {drive.name} has no CQI to replay; choose one that has")
    promised = torch.tensor(CQI_EFFICIENCY, dtype=torch.float64)[drive.cqi.nan_to_num().long()]
    rate_bps = promised * symbols_per_s * (1 - BLER_TARGET)
    last_s = drive.time_s[-1:] + drive.time_s[-1] / (len(drive) - 1)
    silent_s = torch.minimum(drive.time_s + HOLD_S, torch.cat([drive.time_s[1:], last_s]))
    time_s = torch.cat([torch.stack([drive.time_s, silent_s], 1).flatten(), last_s])
    silence = torch.zeros_like(rate_bps)
    return ReplayLink(time_s, torch.stack([rate_bps, silence], 1).flatten(), symbols_per_s)


def _summed(steps: Tensor) -> Tensor:
    return torch.cat([steps.new_zeros(1), steps.cumsum(0)])


def _interpolated(at: Tensor, known: Tensor, values: Tensor) -> Tensor:
    return torch.from_numpy(np.interp(at.numpy(), known.numpy(), values.numpy()))
