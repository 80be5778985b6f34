"""Users on walks with traced paths, served by cells with antenna arrays: the run of `network.mumimo`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.link import Link, LossyLink
from defiance.network.mumimo import MultiUser, hear, initial, report, schedule, settle
from defiance.network.settings import RadioConfig
from defiance.radio.arrays import Panel, Paths, channel
from defiance.scene.paths import Walks
from defiance.seeding import Stream

DEVICE = Panel(1, 1, dual=True)
"""Two isotropic receive antennas, crossed."""

A3_OFFSET_DB = 3.0
"""How much stronger another cell is before a user leaves for it, as in event A3."""

UPLINK = LossyLink(2e-3, header_bits=11)
"""Reports of 20 bits and more carry a CRC of 11 (TS 38.212 clause 6.3.1.2.1)."""

TRIES = 100
"""Times that places are drawn until enough of them are reached by a path."""


@dataclass(frozen=True)
class Walkers:
    """Who moves where, `[U]` each.

    Attributes:
        walk: int64.
        start_m: along the walk, float64.
        speed_mps: negative towards the walk's beginning, float64.
    """

    walk: Tensor
    start_m: Tensor
    speed_mps: Tensor

    def __len__(self) -> int:
        return len(self.walk)

    def paths(self, walks: Walks, time_s: float) -> Paths:
        """From every site, `[sites, U, P]`."""
        return walks.at(self.walk, self.start_m + self.speed_mps * time_s)


@dataclass(frozen=True)
class Served:
    """What users and cells had.

    Attributes:
        throughput_bps: `[U]`.
        cell_throughput_bps: `[C]`.
        streams: that a cell sent at a time, mean over sub-bands and time in which it sent, `[C]`; nan where
            it never did.
        report_bps: of all reports, headers included, per user.
    """

    throughput_bps: Tensor
    cell_throughput_bps: Tensor
    streams: Tensor
    report_bps: float

    @property
    def fifth_percentile_bps(self) -> float:
        """Throughput that 95 % of the users have."""
        return float(self.throughput_bps.quantile(0.05))


def draw_walkers(
    walks: Walks, count: int, speed_mps: float, duration_s: float, random: Stream, among: Tensor | None = None
) -> Walkers:
    """Users at random places of random walks that some path reaches, in random directions.

    Args:
        walks: of a city.
        count: U.
        speed_mps: of all.
        duration_s: of their way, which stays on the walk.
        random: draws.
        among: numbers of the walks that they may take, int64; None: all.

    Raises:
        DefianceError: there are no walks, a way is longer than one, or hardly any place is reached.
    """
    generator = random.generator()
    among = torch.arange(len(walks.length_m)) if among is None else among
    way_m = speed_mps * duration_s
    if not len(among):
        raise DefianceError(f"{walks.name}: no walks to take; name one at least")
    if way_m >= float(walks.length_m.min()):
        raise DefianceError(
            f"{3.6 * speed_mps:g} km/h for {duration_s:g} s is further than the shortest walk of "
            f"{walks.name}, {float(walks.length_m.min()):.0f} m; take less time"
        )
    found: list[Tensor] = []
    for _ in range(TRIES):
        walk = among[torch.randint(len(among), (count,), generator=generator)]
        start_m = torch.rand(count, generator=generator, dtype=torch.float64) * (walks.length_m[walk] - way_m)
        back = torch.rand(count, generator=generator) < 0.5
        ends = torch.stack([start_m, start_m + way_m])
        reached = (walks.at(walk, ends).power.sum(-1).amax(0) > 0).all(0)
        drawn = torch.stack([walk, torch.where(back, ends[1], ends[0]), speed_mps * (1.0 - 2.0 * back)])
        found.append(drawn[:, reached])
        if sum(some.shape[1] for some in found) >= count:
            walk_, start_m, speed = torch.cat(found, 1)[:, :count]
            return Walkers(walk_.long(), start_m, speed)
    raise DefianceError(f"{walks.name}: hardly any place of its walks is reached by a path")


def serve(
    walks: Walks, walkers: Walkers, panel: Panel, radio: RadioConfig, candidates: Mapping[str, MultiUser], *,
    duration_s: float, random: Stream, warm_up_s: float = 0.0, link: Link[Any] = UPLINK,
) -> dict[str, Served]:  # fmt: skip
    """Lets cells serve users in full, in several ways over the same channels.

    A user begins in the cell that it hears best, mean over ports and the band, and leaves for one that is
    `A3_OFFSET_DB` stronger, without delay. Reports are measured `radio.cqi_delay_s` before the instant that
    stands for a step; what is still on the way then, or lost, leaves the station with the one before.

    Args:
        walks: of a city.
        walkers: users.
        panel: of every cell.
        radio: carrier, scheduler, sub-bands, link adaptation, `cqi_delay_s`.
        candidates: ways of serving, by name.
        duration_s: that counts.
        random: of reports that are lost, the same for all candidates.
        warm_up_s: before, which doesn't count.
        link: of the reports.

    Returns:
        What came of each candidate.

    Raises:
        DefianceError: there are no cells, no whole step, or the scheduler doesn't look at rates.

    Example::

        walks = load_walks("munich", "3.5ghz")
        walkers = draw_walkers(walks, 100, 0.83, 2.0, stream(1, "walkers"))
        radio = RadioConfig(scheduler="proportional_fair", subbands=13)
        found = serve(walks, walkers, Panel(4, 4, dual=True, element="38.901"), radio,
                      {"one": MultiUser(Perfect(), 1, 1), "four": MultiUser(Perfect(), 4, 4)},
                      duration_s=1.0, warm_up_s=0.5, random=stream(1, "reports"))
        found["four"].cell_throughput_bps
    """
    cells, steps, warm_up = len(walks.cell_site), radio.steps(duration_s), radio.steps(warm_up_s)
    if not cells or steps < 1:
        raise DefianceError(f"{walks.name}: {cells} cells and {steps} steps; give at least one of each")
    shape = DEVICE.elements, panel.elements, radio.subbands
    states = {name: initial(multi, len(walkers), cells, shape, link) for name, multi in candidates.items()}
    began = dict(states)
    rsrp = torch.stack([_power(h) for h in _channels(walks, walkers, panel, radio, 0.0)])
    serving = rsrp.argmax(0)
    for step in range(warm_up + steps):
        if step == warm_up:
            began = dict(states)
        measured_s = step * radio.step_s
        now_s = measured_s + radio.cqi_delay_s
        own = _own_channels(walks, walkers, panel, radio, measured_s, serving)
        plans = []
        for name, multi in candidates.items():
            told = report(
                states[name], multi, own, serving, step, measured_s, now_s, link, random.child("reports")
            )
            states[name] = told
            plans.append(schedule(told, multi, radio, serving, cells))
        powers: list[Tensor] = []
        heard = hear(_noted(_channels(walks, walkers, panel, radio, now_s), powers), plans, serving)
        for name, plan, what in zip(candidates, plans, heard, strict=True):
            states[name] = settle(states[name], plan, what, radio, serving)
        rsrp = torch.stack(powers)
        best = rsrp.max(0)
        kept = rsrp.gather(0, serving[None])[0]
        serving = torch.where(best.values > kept * 10 ** (A3_OFFSET_DB / 10), best.indices, serving)
    lasted_s = steps * radio.step_s
    return {
        name: Served(
            (state.bits - began[name].bits) / lasted_s,
            (state.cell_bits - began[name].cell_bits) / lasted_s,
            (state.sent_streams - began[name].sent_streams) / (state.active_steps - began[name].active_steps),
            float(state.report_bits - began[name].report_bits) / lasted_s / max(1, len(walkers)),
        )
        for name, state in states.items()
    }


def _power(channels: Tensor) -> Tensor:
    """Mean over ports and the band, `[U, rx, T, K]` -> `[U]`."""
    return torch.view_as_real(channels).square().sum(-1).mean((1, 2, 3))


def _noted(channels: Iterable[Tensor], powers: list[Tensor]) -> Iterable[Tensor]:
    """The same channels; notes their powers in passing."""
    for h in channels:
        powers.append(_power(h))
        yield h


def _subcarriers(radio: RadioConfig) -> tuple[float, int]:
    """One subcarrier in the middle of every sub-band of the carrier's resource blocks."""
    return radio.resource_elements * 30e3 / radio.subbands, radio.subbands


def _amplitude(radio: RadioConfig) -> float:
    """Of the power that a cell sends, against noise."""
    return math.sqrt(10 ** ((radio.tx_power_dbm - radio.noise_dbm) / 10))


def _channels(
    walks: Walks, walkers: Walkers, panel: Panel, radio: RadioConfig, time_s: float
) -> Iterable[Tensor]:
    """Of each cell to everyone, noise 1, complex64 `[U, rx, T, K]`."""
    paths = walkers.paths(walks, time_s)
    for cell, site in enumerate(walks.cell_site.tolist()):
        one = Paths(paths.delay_s[site], paths.gain[site], paths.departure[site], paths.arrival[site])
        looks = walks.bearing_rad[cell].float(), walks.tilt_rad[cell].float()
        yield _amplitude(radio) * channel(
            one, panel, DEVICE, _subcarriers(radio), sender_bearing_rad=looks[0], sender_tilt_rad=looks[1]
        )


def _own_channels(
    walks: Walks, walkers: Walkers, panel: Panel, radio: RadioConfig, time_s: float, serving: Tensor
) -> Tensor:
    """Of everyone's serving cell, noise 1, complex64 `[U, rx, T, K]`."""
    paths, user = walkers.paths(walks, time_s), torch.arange(len(walkers))
    site = walks.cell_site[serving]
    return _amplitude(radio) * channel(
        Paths(paths.delay_s[site, user], paths.gain[site, user], paths.departure[site, user],
              paths.arrival[site, user]),
        panel,
        DEVICE,
        _subcarriers(radio),
        sender_bearing_rad=walks.bearing_rad[serving].float(),
        sender_tilt_rad=walks.tilt_rad[serving].float(),
    )  # fmt: skip
