"""Power in states: base stations by TR 38.864 and EARTH, users by TR 38.840; sleeping, and waking up again.

Both reports give power relative to deep sleep, and for each sleep state the time T and the additional energy
E that falling asleep and waking up take together. An idle gap g of at least T then costs, in state s::

    P_s g + E_s

Watts come from `defiance.hardware`: EARTH's macro at full load, a user's amplifier. All of it is `modelled`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from defiance.hardware import (
    BASE_STATIONS,
    FULL_LOAD_CELL_W,
    STATIC_SHARE,
    UE_AMPLIFIER_EFFICIENCY,
    UE_DOWNLINK_UNITS,
    UE_UPLINK_0_DBM_UNITS,
    UE_UPLINK_23_DBM_UNITS,
    ue_watts_per_unit,
)

Depth = Literal["micro", "light", "deep"]


@dataclass(frozen=True)
class Sleep:
    """A sleep state: its power, and what falling asleep and waking up take together.

    Attributes:
        depth: its name.
        units: power, relative to deep sleep.
        transition_s: T.
        transition_units_s: E, units times seconds, beyond the state's own power.
    """

    depth: Depth
    units: float
    transition_s: float
    transition_units_s: float


# TR 38.864 tables 5.1-3 (power), 5.1-4 (T) and 5.1-5 (E), by category; micro sleep's power is the set's.
_STATION_SLEEPS = {
    "cat1": (Sleep("light", 25.0, 6e-3, 90e-3), Sleep("deep", 1.0, 50e-3, 1000e-3)),
    "cat2": (Sleep("light", 2.1, 640e-3, 1088e-3), Sleep("deep", 1.0, 10.0, 17000e-3)),
}
STATION_SLEEPS = {
    name: (Sleep("micro", station.micro_sleep, 0.0, 0.0), *_STATION_SLEEPS[name.split("-")[0]])
    for name, station in BASE_STATIONS.items()
}
"""Sleep states of each base station of `hardware.BASE_STATIONS`, the lightest first."""

# TR 38.840 tables 18 and 19: FR1, 100 MHz, 4 receive antennas.
USER_SLEEPS = (
    Sleep("micro", 45.0, 0.0, 0.0),
    Sleep("light", 20.0, 6e-3, 100e-3),
    Sleep("deep", 1.0, 20e-3, 450e-3),
)
USER_MONITORING_UNITS = 100.0
"""PDCCH only; the same for measuring SSB or CSI-RS."""


@dataclass(frozen=True)
class Earth:
    """EARTH's linear model of a site (Auer et al. 2011, table 2): N (P0 + dp Pmax x), asleep N Psleep."""

    transceivers: int
    most_w: float
    idle_w: float
    slope: float
    sleep_w: float

    def power_w(self, load: Tensor) -> Tensor:
        """Return the site's power [...] at a load x [...] in [0, 1] of all its transceivers; 0 is awake."""
        return self.transceivers * (self.idle_w + self.slope * self.most_w * load)


EARTH = {
    "macro": Earth(6, 20.0, 130.0, 4.7, 75.0),
    "remote radio head": Earth(6, 20.0, 84.0, 2.8, 56.0),
    "micro": Earth(2, 6.3, 56.0, 2.6, 39.0),
    "pico": Earth(2, 0.13, 6.8, 4.0, 4.3),
    "femto": Earth(2, 0.05, 4.8, 8.0, 2.9),
}


def downlink_units(
    station: str, resource_share: Tensor | float, antenna_share: float = 1.0, power_share: float = 1.0
) -> Tensor:
    """Relative power of a slot that sends: P3 + s_a (P4 - P3) (A + (1 - A) s_f s_p) (TR 38.864 clause 5.1).

    Args:
        station: of `hardware.BASE_STATIONS`.
        resource_share: s_f, of the carrier's resource blocks, [...].
        antenna_share: s_a, of the transceivers.
        power_share: s_p, of the power per resource block; the amplifiers' efficiency is the same at any.
    """
    cell = BASE_STATIONS[station]
    in_use = STATIC_SHARE + (1 - STATIC_SHARE) * torch.as_tensor(resource_share) * power_share
    return cell.micro_sleep + antenna_share * (cell.downlink - cell.micro_sleep) * in_use


def uplink_units(station: str, antenna_share: float = 1.0) -> float:
    """Relative power of a slot that receives: P3 + s_a (P5 - P3) (TR 38.864 clause 5.1)."""
    cell = BASE_STATIONS[station]
    return cell.micro_sleep + antenna_share * (cell.uplink - cell.micro_sleep)


def gap_units_s(gap_s: Tensor, sleeps: Sequence[Sleep], deepest: Depth = "deep") -> Tensor:
    """Units times seconds of idle gaps, each in the state that costs least and fits into it.

    Whoever falls asleep knows how long the gap will be: a scheduler that plans ahead, or a bound for others.

    Args:
        gap_s: [...], at least 0.
        sleeps: states, the lightest first; it needs no transition.
        deepest: state that is allowed.

    Returns:
        [...].
    """
    allowed = sleeps[: [sleep.depth for sleep in sleeps].index(deepest) + 1]
    costs = [
        torch.where(
            gap_s >= sleep.transition_s, sleep.units * gap_s + sleep.transition_units_s, torch.inf
        ).where(gap_s > 0, torch.zeros_like(gap_s))
        for sleep in allowed
    ]
    return torch.stack(costs).amin(0)


def sleeping_cell_w(
    load: Tensor, station: str = "cat1-set2", deepest: Depth = "light", period_s: float = 0.02
) -> Tensor:
    """Power of cells that fill their slots at the start of every period and sleep for its rest.

    With micro sleep alone this is `hardware.BaseStationPower.power_w`, which is linear in load.

    Args:
        load: [...], share of resource blocks in use, in [0, 1].
        station: of `hardware.BASE_STATIONS`.
        deepest: state that is allowed.
        period_s: of what wakes a cell up; synchronisation signals come every 20 ms (TS 38.213 clause 4.1).

    Returns:
        [...], watts.
    """
    active = BASE_STATIONS[station].downlink * load * period_s
    idle = gap_units_s((1 - load) * period_s, STATION_SLEEPS[station], deepest)
    return (active + idle) / period_s * (FULL_LOAD_CELL_W / BASE_STATIONS[station].downlink)


def slots_energy_j(
    resource_share: Tensor, slot_s: float, station: str = "cat1-set2", deepest: Depth = "deep"
) -> Tensor:
    """Energy of cells slot by slot: slots that send draw by their resource blocks, gaps between them sleep.

    Args:
        resource_share: [..., slots], 0 is an idle slot.
        slot_s: length of a slot.
        station: of `hardware.BASE_STATIONS`.
        deepest: state that is allowed.

    Returns:
        [...], joules.
    """
    sends = resource_share > 0
    sent = (downlink_units(station, resource_share) * sends).sum(-1) * slot_s
    slots = resource_share.shape[-1]
    number = torch.arange(slots).expand(resource_share.shape)
    before = torch.where(sends, number, -1).cummax(-1).values  # the last slot that sent
    ends = ~sends & torch.cat([sends[..., 1:], torch.ones_like(sends[..., :1])], -1)
    gap_s = ((number - before) * ends).to(resource_share.dtype) * slot_s
    idle = gap_units_s(gap_s, STATION_SLEEPS[station], deepest).sum(-1)
    return (sent + idle) * (FULL_LOAD_CELL_W / BASE_STATIONS[station].downlink)


def uplink_user_units(power_dbm: Tensor | float) -> Tensor:
    """Relative power of a user that sends: 250 at 0 dBm and 700 at 23 dBm (TR 38.840 table 18).

    Between them it is linear in radiated milliwatts, an amplifier of one efficiency (assumed).
    """
    share = (10 ** (torch.as_tensor(power_dbm).double() / 10) - 1) / (10**2.3 - 1)
    return UE_UPLINK_0_DBM_UNITS + (UE_UPLINK_23_DBM_UNITS - UE_UPLINK_0_DBM_UNITS) * share.clamp(0, 1)


def user_w(
    cycle_s: Tensor,
    monitor_s: Tensor | float,
    receive_s: Tensor | float = 0.0,
    send_s: Tensor | float = 0.0,
    *,
    power_dbm: Tensor | float = 23.0,
    deepest: Depth = "deep",
    amplifier_efficiency: float = UE_AMPLIFIER_EFFICIENCY,
) -> Tensor:
    """Mean power of a user that repeats a DRX cycle: it listens, receives and sends, then sleeps.

    Args:
        cycle_s: [...], the length of a cycle.
        monitor_s: of it, listening to PDCCH for nothing.
        receive_s: of it, receiving PDCCH and PDSCH.
        send_s: of it, sending.
        power_dbm: radiated while it sends.
        deepest: state that is allowed.
        amplifier_efficiency: makes watts of units, see `hardware.ue_watts_per_unit`.

    Returns:
        [...], watts.
    """
    awake_s = torch.as_tensor(monitor_s + receive_s + send_s, dtype=cycle_s.dtype)
    awake = USER_MONITORING_UNITS * monitor_s + UE_DOWNLINK_UNITS * receive_s
    awake = awake + uplink_user_units(power_dbm).to(cycle_s.dtype) * send_s
    asleep = gap_units_s((cycle_s - awake_s).clamp(min=0), USER_SLEEPS, deepest)
    return (awake + asleep) / torch.maximum(cycle_s, awake_s) * ue_watts_per_unit(amplifier_efficiency)
