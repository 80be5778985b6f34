"""Energy of a run: what the simulation counted, through the cited profiles of `defiance.hardware`."""

from __future__ import annotations

import torch
from torch import Tensor

from defiance.hardware import UE_COMMAND, UE_DOWNLOAD, UE_REPORT, base_station_power_w
from defiance.link import PURPOSES

DEVICE_J_PER_BIT = {
    "assistance": UE_REPORT.joules_per_bit,
    "signalling": UE_COMMAND.joules_per_bit,
    "model": UE_DOWNLOAD.joules_per_bit,
}
"""What a device spends per sent bit of each purpose: reports go up, commands and models come down."""


def network_energy_j(load_steps: Tensor, step_s: float, duration_s: float) -> Tensor:
    """Energy of all base stations of a world; `modelled`.

    A cell's power is linear in its load (TR 38.864 with filled slots, see `hardware.BaseStationPower`), so
    the energy of a run follows from the mean load.

    Args:
        load_steps: sum of the load over the run's steps, `[..., C]` (`State.load_steps`).
        step_s: length of a step.
        duration_s: length of the run (`Outcome.duration_s`).

    Returns:
        `[...]`, joules.
    """
    mean_load = load_steps * (step_s / duration_s)
    return base_station_power_w(mean_load).sum(-1) * duration_s


def device_energy_j(bits: Tensor) -> Tensor:
    """Energy that the devices of a world spend on messages; `modelled`.

    Args:
        bits: sent over the air per purpose, `[..., len(PURPOSES)]` (`Outcome.bits`).

    Returns:
        `[...]`, joules.
    """
    per_bit = bits.new_tensor([DEVICE_J_PER_BIT.get(p, 0.0) for p in PURPOSES], dtype=torch.float64)
    return bits.double() @ per_bit


def joules_per_bit(energy_j: Tensor, bits: Tensor) -> Tensor:
    """Energy over delivered bits, [...]; inf where energy was spent and nothing delivered, 0 where neither.

    Args:
        energy_j: [...], of whatever is to be shared out: stations, devices, or both.
        bits: [...], delivered to users (`State.bits`, summed).
    """
    return torch.where((bits > 0) | (energy_j > 0), energy_j / bits, 0.0)
