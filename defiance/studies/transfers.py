"""What stations send each other while they learn: equal payloads over a gigabit backhaul, 2 ms one way."""

from __future__ import annotations

import math

from defiance.link import BackhaulLink, Deliveries, Packets
from defiance.seeding import stream

BACKHAUL_BPS, BACKHAUL_DELAY_S = 1e9, 2e-3


def backhaul(joules_per_bit: float) -> BackhaulLink:
    """The wire, at this energy per sent bit."""
    return BackhaulLink(BACKHAUL_BPS, BACKHAUL_DELAY_S, energy_j_per_bit=joules_per_bit)


def transfer(link: BackhaulLink, purpose: str, count: int, payload_bits: int) -> Deliveries:
    """Sends `count` equal payloads."""
    packets = Packets.of(range(count), purpose=purpose, payload_bits=payload_bits, offered_s=0.0)
    _, deliveries = link.advance(link.offer(link.initial(), packets, 0.0), math.inf, stream(0, "backhaul"))
    return deliveries
