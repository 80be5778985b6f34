"""Traffic: what users want, and when.

    constant rate   `World.demand_bps`; what isn't served at once is gone (the default)
    full buffer     a constant rate without end
    FTP model 3     files that arrive at every user as a Poisson process (TR 36.889 annex A.1.1)
    periodic        packets of one size at equal distances (video frames, control loops)

Packets wait in a queue per user until they are sent, in order of arrival, and follow it through handovers.
Arrivals are drawn once, so that no policy changes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from numba import njit
from torch import Tensor

from defiance.errors import DefianceError
from defiance.network.world import World
from defiance.seeding import Stream

EMPTY_BITS = 0.5
"""A queue with less than half a bit is empty: what is left over is rounding."""


@dataclass(frozen=True)
class FtpModel3:
    """Files of one size that arrive independently at every user.

    Attributes:
        file_bits: 0.5 MB in TR 36.889 table A.1.1-1.
        files_per_s: lambda, of each user.
    """

    files_per_s: float
    file_bits: float = 4e6

    @property
    def packet_bits(self) -> float:
        """Size of a file."""
        return self.file_bits

    def arrivals_s(self, users: int, duration_s: float, rng: torch.Generator) -> Tensor:
        """When files arrive until `duration_s`, in order, `[users, A]`; inf where a user has fewer."""
        mean = self.files_per_s * duration_s
        count = torch.poisson(torch.full((users, 1), mean, dtype=torch.float64), generator=rng)
        most = int(count.max()) if users else 0
        # given their number, the arrivals of a Poisson process are independent and uniform
        at = duration_s * torch.rand(users, most, generator=rng)
        return torch.where(torch.arange(most) < count, at, torch.inf).sort(-1).values


@dataclass(frozen=True)
class Periodic:
    """Packets of one size at equal distances; every user starts at a random part of the period.

    Attributes:
        packet_bits: size of a packet.
        period_s: distance between two.
    """

    packet_bits: float
    period_s: float

    def arrivals_s(self, users: int, duration_s: float, rng: torch.Generator) -> Tensor:
        """When packets arrive until `duration_s`, in order, `[users, A]`; inf where a user has fewer."""
        number = torch.arange(math.ceil(duration_s / self.period_s), dtype=torch.float64)
        at = (number + torch.rand(users, 1, generator=rng)) * self.period_s
        return torch.where(at < duration_s, at, torch.inf).float()


def with_packets(
    world: World, model: FtpModel3 | Periodic, streams: list[Stream], duration_s: float
) -> World:
    """The same worlds whose users are offered packets instead of a constant rate.

    Args:
        world: as drawn.
        model: the same for every user.
        streams: one per world, those that the worlds were drawn from.
        duration_s: until when packets arrive, warm-up included.

    Raises:
        DefianceError: there are not as many streams as worlds.
    """
    worlds, users, _ = world.shape
    if len(streams) != worlds:
        raise DefianceError(f"with_packets: {worlds} worlds need as many streams, not {len(streams)}")
    drawn = [model.arrivals_s(users, duration_s, s.child("traffic").generator()) for s in streams]
    most = max(arrivals.shape[-1] for arrivals in drawn)
    arrival_s = torch.full((worlds, users, most), torch.inf)
    for w, arrivals in enumerate(drawn):
        arrival_s[w, :, : arrivals.shape[-1]] = arrivals
    return replace(
        world,
        arrival_s=arrival_s,
        packet_bits=torch.full((worlds, users), model.packet_bits, dtype=torch.float64),
        demand_bps=torch.zeros(worlds, users),
    )


def full_buffer(world: World) -> World:
    """The same worlds whose users take all that they get."""
    return replace(world, demand_bps=torch.full_like(world.demand_bps, torch.inf))


def arrive(world: World, arrived: Tensor, queue_bits: Tensor, now_s: Tensor) -> tuple[Tensor, Tensor]:
    """Packets that have arrived join the queue.

    Args:
        world: arrivals and sizes; without any, nothing changes.
        arrived: packets that arrived before, `[W, U]` int32.
        queue_bits: bits that wait, `[W, U]` float64.
        now_s: the time, `[W]`.

    Returns:
        Both anew.
    """
    if not world.arrival_s.shape[-1]:
        return arrived, queue_bits
    now = (world.arrival_s <= now_s[:, None, None]).sum(-1, dtype=torch.int32)
    return now, queue_bits + (now - arrived) * world.packet_bits


def depart(
    world: World, arrived: Tensor, packets: Tensor, queue_bits: Tensor, sent_bits: Tensor, end_s: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sends from the queues; a packet has departed at the end of the step in which its last bit was sent.

    Args:
        world: arrivals and sizes; without any, nothing changes.
        arrived: packets that have arrived, `[W, U]` int32.
        packets: packets that departed before, `[W, U]` int32.
        queue_bits: bits that wait, `[W, U]` float64.
        sent_bits: bits sent during the step, `[W, U]` float64.
        end_s: end of the step, `[W]`.

    Returns:
        Packets that have departed and the queue anew; the sum of the delays of those that departed, `[W, U]`.
    """
    if not world.arrival_s.shape[-1]:
        return packets, queue_bits, torch.zeros_like(queue_bits)
    left = queue_bits - sent_bits
    left = torch.where(left < EMPTY_BITS, 0.0, left)
    # the last of the packets that wait may have been sent in part
    departed = arrived - torch.ceil((left - EMPTY_BITS) / world.packet_bits).int()
    number = torch.arange(world.arrival_s.shape[-1], device=packets.device)
    leaves = (number >= packets[..., None]) & (number < departed[..., None])
    delay = torch.where(leaves, end_s[:, None, None] - world.arrival_s, 0.0).sum(-1)
    return departed, left, delay


@njit(inline="always")
def arrive_loop(w, u, world, state, now_s):  # type: ignore[no-untyped-def]
    """`arrive` for one user, in place."""
    arrived = state.arrived[w, u]
    while arrived < world.arrival_s.shape[2] and world.arrival_s[w, u, arrived] <= now_s:
        arrived += 1
        state.queue_bits[w, u] += world.packet_bits[w, u]
    state.arrived[w, u] = arrived


@njit(inline="always")
def depart_loop(w, u, world, state, sent_bits, end_s):  # type: ignore[no-untyped-def]
    """`depart` for one user, in place."""
    left = state.queue_bits[w, u] - sent_bits
    if left < EMPTY_BITS:
        left = 0.0
    state.queue_bits[w, u] = left
    departed = state.arrived[w, u] - math.ceil((left - EMPTY_BITS) / world.packet_bits[w, u])
    for number in range(state.packets[w, u], departed):
        state.delay_s[w, u] += end_s - world.arrival_s[w, u, number]
    state.packets[w, u] = departed
