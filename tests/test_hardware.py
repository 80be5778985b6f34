"""Constants derive from their sources, ranges hold their centre, and the power law has its closed form."""

from dataclasses import replace

import pytest
import torch

from defiance.hardware import (
    ARITHMETIC_45_NM,
    BACKHAUL,
    BACKHAUL_AVERAGE_J_PER_BIT,
    BASE_STATIONS,
    BLE,
    CORTEX_M4,
    DEVICE_NPU,
    FULL_LOAD_CELL_W,
    LOIHI,
    NB_IOT,
    NR,
    RADIOS,
    SERVER_CPU,
    SPIKES_45_NM,
    STATION_SOC,
    UE_COMMAND,
    UE_DOWNLOAD,
    UE_REPORT,
    BaseStationPower,
    base_station_power_w,
    ue_watts_per_unit,
)


@pytest.mark.parametrize("profile", [SERVER_CPU, STATION_SOC, DEVICE_NPU, ARITHMETIC_45_NM, CORTEX_M4])
def test_compute_ranges(profile) -> None:
    assert profile.joules_per_operation_low < profile.joules_per_operation < profile.joules_per_operation_high
    assert profile.watts_per_core_low < profile.watts_per_core < profile.watts_per_core_high
    assert profile.source


@pytest.mark.parametrize("profile", [BACKHAUL, UE_REPORT, UE_COMMAND, UE_DOWNLOAD])
def test_transfer_ranges(profile) -> None:
    assert profile.joules_per_bit_low < profile.joules_per_bit < profile.joules_per_bit_high
    assert profile.source


def test_computing_by_hand() -> None:
    assert SERVER_CPU.operations_per_second == pytest.approx(95e9)
    assert SERVER_CPU.joules_per_operation == pytest.approx(5.625 / 95e9)  # 59 pJ
    assert STATION_SOC.joules_per_operation == pytest.approx(4 * (4.6 + 10) / 2 * 1e-12)  # 29 pJ
    assert DEVICE_NPU.joules_per_operation == pytest.approx(2 * (0.23 + 2.5) / 2 * 1e-12)  # 2.7 pJ


def test_sending_by_hand() -> None:
    assert BACKHAUL_AVERAGE_J_PER_BIT == pytest.approx(27e-6)
    assert BACKHAUL.joules_per_bit == pytest.approx(30e-9)
    # 23 dBm is 199.5 mW; at 25 % the amplifier draws 0.794 W more than at 0 dBm, shared by 450 units
    assert ue_watts_per_unit(0.25) == pytest.approx(0.794 / 450, rel=1e-3)
    assert UE_REPORT.joules_per_bit * 250 == pytest.approx(475 * 0.794 / 450 * 0.5e-3, rel=1e-3)


def test_full_load_is_earths_macro() -> None:
    assert 3 * FULL_LOAD_CELL_W == pytest.approx(6 * (130 + 4.7 * 20)) == pytest.approx(1344)
    for power in BASE_STATIONS.values():
        assert power.power_w(torch.ones(2)).tolist() == pytest.approx([448.0, 448.0])


def test_an_idle_cell_sleeps() -> None:
    for power in BASE_STATIONS.values():
        idle_w = power.power_w(torch.zeros(1)).item()
        assert idle_w == pytest.approx(448.0 * power.micro_sleep / power.downlink)
    assert base_station_power_w(torch.zeros(1)).item() == pytest.approx(448.0 * 50 / 200)


def test_packed_slots_are_linear_in_load() -> None:
    load = torch.linspace(0, 1, 11, dtype=torch.float64).reshape(1, 11)
    power_w = base_station_power_w(load)
    assert power_w.shape == (1, 11)
    torch.testing.assert_close(power_w, 448.0 * (50 + 150 * load) / 200)


def test_spread_slots_follow_the_reports_law() -> None:
    """Above `slot_fill` all slots are active: P3 + (P4 - P3)(A + (1 - A) s_f); below, some sleep."""
    spread = replace(BASE_STATIONS["cat1-set1"], slot_fill=0.25)
    load = torch.tensor([0.5, 0.25, 0.125, 0.0], dtype=torch.float64)
    relative = torch.tensor(
        [55 + 225 * (0.4 + 0.6 * 0.5), 55 + 225 * 0.55, 55 + 225 * 0.55 / 2, 55.0], dtype=torch.float64
    )
    torch.testing.assert_close(spread.power_w(load), 448.0 * relative / 280)


@pytest.mark.parametrize("slot_fill", [0.1, 0.5, 1.0])
def test_power_grows_with_load_and_never_beyond_packed_slots_saving(slot_fill: float) -> None:
    power = BaseStationPower("x", micro_sleep=50.0, downlink=200.0, uplink=90.0, slot_fill=slot_fill)
    load = torch.linspace(0, 1, 101, dtype=torch.float64)
    power_w = power.power_w(load)
    assert bool((power_w.diff() > 0).all())
    assert bool((power_w >= base_station_power_w(load) - 1e-9).all())


@pytest.mark.parametrize("profile", [LOIHI, SPIKES_45_NM])
def test_spiking_ranges(profile) -> None:
    for what in ("joules_per_synaptic_operation", "joules_per_update"):
        low, centre, high = (getattr(profile, what + end) for end in ("_low", "", "_high"))
        assert 0 < low < centre < high
    assert profile.source


@pytest.mark.parametrize("radio", RADIOS.values(), ids=lambda radio: radio.name)
def test_radio_ranges(radio) -> None:
    for what in ("tx_joules_per_bit", "rx_joules_per_bit"):
        low, centre, high = (getattr(radio, what + end) for end in ("_low", "", "_high"))
        assert 0 < low < centre < high
    assert 0 <= radio.silent_share <= 1 and radio.source


def test_device_and_air_by_hand() -> None:
    assert ARITHMETIC_45_NM.joules_per_operation == pytest.approx(2.3e-12)
    assert CORTEX_M4.joules_per_operation == pytest.approx(9.6e-3 / 64e6)  # 150 pJ
    assert BLE.tx_joules_per_bit == pytest.approx(14.4e-9)
    assert 600 < BLE.tx_joules_per_bit / LOIHI.joules_per_synaptic_operation < 620
    # one resource block carries 288 bits; 475 units of 1.76 mW for 0.5 ms, shared by four of them
    assert NR.tx_joules_per_bit * 4 * 288 == pytest.approx(475 * 0.794 / 450 * 0.5e-3, rel=1e-3)
    assert NB_IOT.tx_joules_per_bit * 288 == pytest.approx(0.792e-3)
    # 448 W x (90 - 50)/200 for a slot of 51 blocks
    assert NR.rx_joules_per_bit * 51 * 288 == pytest.approx(89.6 * 0.5e-3)
