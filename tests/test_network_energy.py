"""Energy of a run from its mean load and its bits."""

import pytest
import torch
from worlds import corridor, gain_for_snr, random_world, start

from defiance.hardware import (
    FULL_LOAD_CELL_W,
    UE_COMMAND,
    UE_DOWNLOAD,
    UE_REPORT,
    base_station_power_w,
)
from defiance.link import PURPOSES
from defiance.network import kernel
from defiance.network.energy import device_energy_j, joules_per_bit, network_energy_j
from defiance.network.settings import RadioConfig


def test_energy_of_the_mean_load_is_the_sum_over_steps() -> None:
    """Power is linear in load: the sum of the load stands for its whole course."""
    world, config = random_world(0, 2, 6, 3), RadioConfig()
    state = start(world)
    steps, energy_j = 40, torch.zeros(2, dtype=torch.float64)
    for _ in range(steps):
        state = kernel.step(world, state, config)
        energy_j += base_station_power_w(state.load.double()).sum(-1) * config.step_s
    assert state.load.std() > 0.1
    got = network_energy_j(state.load_steps, config.step_s, steps * config.step_s)
    torch.testing.assert_close(got, energy_j, rtol=1e-6, atol=0)


def test_idle_and_full_cells() -> None:
    """TR 38.864 table 5.1-3, category 1 set 2: micro sleep draws 50/200 of full load, 448 W."""
    load = torch.tensor([[0.0, 0.0], [100.0, 100.0], [50.0, 0.0]], dtype=torch.float64)
    energy_j = network_energy_j(load, step_s=0.02, duration_s=2.0)
    idle_j, full_j = 0.25 * FULL_LOAD_CELL_W * 2.0, FULL_LOAD_CELL_W * 2.0
    expected = [2 * idle_j, 2 * full_j, (idle_j + full_j) / 2 + idle_j]
    assert energy_j.tolist() == pytest.approx(expected)


def test_a_saved_block_saves_its_share_of_power() -> None:
    """The same bits at twice the spectral efficiency: half the load, half the dynamic joules."""
    config, energy_j = RadioConfig(), []
    for snr in (3.0, 15.0):  # 0.6 log2(1 + SNR): 1.2 and 2.4 bit/s/Hz
        gain = gain_for_snr(10 * torch.log10(torch.tensor(snr)).item())
        world = corridor([[gain]] * 2, demand_bps=12e6)
        state = kernel.step(world, start(world), config, 50)
        assert state.bits.item() == pytest.approx(12e6, rel=1e-4)
        energy_j.append(network_energy_j(state.load_steps, config.step_s, 1.0).item())
    idle_j = 0.25 * FULL_LOAD_CELL_W
    assert energy_j[0] == pytest.approx(idle_j + 0.5 * 0.75 * FULL_LOAD_CELL_W, rel=1e-4)
    assert energy_j[1] == pytest.approx(idle_j + 0.25 * 0.75 * FULL_LOAD_CELL_W, rel=1e-4)


def test_devices_pay_for_reports_commands_and_models() -> None:
    bits = torch.zeros(2, len(PURPOSES), dtype=torch.int64)
    bits[0, PURPOSES.index("assistance")] = 1000
    bits[0, PURPOSES.index("signalling")] = 200
    bits[1, PURPOSES.index("model")] = 10**6
    bits[1, PURPOSES.index("data")] = 10**9  # travels between stations
    expected = [
        1000 * UE_REPORT.joules_per_bit + 200 * UE_COMMAND.joules_per_bit,
        1e6 * UE_DOWNLOAD.joules_per_bit,
    ]
    assert device_energy_j(bits).tolist() == pytest.approx(expected)


def test_joules_per_delivered_bit() -> None:
    """A cell that draws 448 W and delivers 10 Mbit/s spends 45 uJ per bit; idle ones an infinity of them."""
    energy_j = torch.tensor([FULL_LOAD_CELL_W, FULL_LOAD_CELL_W, 0.0], dtype=torch.float64)
    found = joules_per_bit(energy_j, torch.tensor([1e7, 0.0, 0.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([44.8e-6, torch.inf, 0.0])
