"""The tables of TR 38.864, TR 38.840 and EARTH, and energies of sleeping by hand."""

import pytest
import torch

from defiance.hardware import BASE_STATIONS, FULL_LOAD_CELL_W, base_station_power_w, ue_watts_per_unit
from defiance.network.power_states import (
    EARTH,
    STATION_SLEEPS,
    USER_MONITORING_UNITS,
    USER_SLEEPS,
    downlink_units,
    gap_units_s,
    sleeping_cell_w,
    slots_energy_j,
    uplink_units,
    uplink_user_units,
    user_w,
)

UNIT_W = FULL_LOAD_CELL_W / 200.0  # cat1-set2


def seconds(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("station", "deep", "light", "micro", "downlink", "uplink"),
    [
        ("cat1-set1", 1.0, 25.0, 55.0, 280.0, 110.0),
        ("cat1-set2", 1.0, 25.0, 50.0, 200.0, 90.0),
        ("cat1-set3", 1.0, 25.0, 38.0, 152.0, 80.0),
        ("cat2-set1", 1.0, 2.1, 5.5, 32.0, 6.5),
        ("cat2-set2", 1.0, 2.1, 5.0, 26.0, 5.8),
        ("cat2-set3", 1.0, 2.1, 3.0, 17.6, 4.2),
    ],
)
def test_table_of_base_stations(station, deep, light, micro, downlink, uplink):
    """TR 38.864 tables 5.1-3 to 5.1-5: an hour in each state, a full slot each way, one transition."""
    hour_s, one = 3600.0, seconds(3600.0)
    transitions_s = {"cat1": (0.0, 90e-3, 1000e-3), "cat2": (0.0, 1088e-3, 17000e-3)}[station[:4]]
    for depth, units, extra in zip(
        ("micro", "light", "deep"), (micro, light, deep), transitions_s, strict=True
    ):
        assert gap_units_s(one, STATION_SLEEPS[station], depth).item() == pytest.approx(
            units * hour_s + extra
        )
    assert downlink_units(station, 1.0).item() == pytest.approx(downlink)
    assert uplink_units(station) == pytest.approx(uplink)
    assert [sleep.transition_s for sleep in STATION_SLEEPS[station]] == (
        [0.0, 6e-3, 50e-3] if station.startswith("cat1") else [0.0, 640e-3, 10.0]
    )


def test_scaling_of_an_active_slot():
    """Half the antennas, half the blocks, half the power: 50 + 150/2 (0.4 + 0.6/4) of category 1 set 2."""
    assert downlink_units("cat1-set2", 0.5, 0.5, 0.5).item() == pytest.approx(50 + 75 * (0.4 + 0.15))
    assert downlink_units("cat1-set2", 0.0).item() == pytest.approx(50 + 150 * 0.4)
    assert uplink_units("cat1-set2", 0.25) == pytest.approx(60)


def test_table_of_users():
    """TR 38.840 tables 18 and 19, by way of what a second in each state draws."""
    second = seconds(1.0)
    unit_w = ue_watts_per_unit(0.25)
    for depth, units, extra in (("micro", 45.0, 0.0), ("light", 20.0, 0.1), ("deep", 1.0, 0.45)):
        assert user_w(second, 0.0, deepest=depth).item() == pytest.approx((units + extra) * unit_w)
    assert [sleep.transition_s for sleep in USER_SLEEPS] == [0.0, 6e-3, 20e-3]
    assert user_w(second, 1.0).item() == pytest.approx(100 * unit_w) and USER_MONITORING_UNITS == 100
    assert user_w(second, 0.0, 1.0).item() == pytest.approx(300 * unit_w)
    for power_dbm, units in ((0.0, 250.0), (23.0, 700.0)):
        assert uplink_user_units(power_dbm).item() == pytest.approx(units)
        assert user_w(second, 0.0, 0.0, 1.0, power_dbm=power_dbm).item() == pytest.approx(units * unit_w)
    # 23 dBm less 0 dBm is what the amplifier's watts are for, at 25 % efficiency
    watts = user_w(second, 0.0, 0.0, 1.0) - user_w(second, 0.0, 0.0, 1.0, power_dbm=0.0)
    assert watts.item() * 0.25 == pytest.approx(0.1995 - 0.001, rel=1e-3)


def test_table_of_earth():
    """Auer et al. 2011, table 2: sites at full load, idle and asleep."""
    expected = {
        "macro": (1344.0, 780.0, 450.0),
        "remote radio head": (840.0, 504.0, 336.0),
        "micro": (144.76, 112.0, 78.0),
        "pico": (14.64, 13.6, 8.6),
        "femto": (10.4, 9.6, 5.8),
    }
    for name, (full_w, idle_w, sleep_w) in expected.items():
        site = EARTH[name]
        powers_w = site.power_w(seconds(1.0, 0.5, 0.0)).tolist()
        assert powers_w == pytest.approx([full_w, (full_w + idle_w) / 2, idle_w])
        assert site.transceivers * site.sleep_w == pytest.approx(sleep_w)
    assert EARTH["macro"].power_w(seconds(1.0)).item() == pytest.approx(3 * FULL_LOAD_CELL_W)


def test_a_gap_takes_the_state_that_pays():
    """Category 1 set 2: light pays from 90/25 = 3.6 ms but needs 6; deep from 910/24 = 37.9 but needs 50."""
    gaps_s = seconds(0.0, 5e-3, 6e-3, 49e-3, 50e-3, 1.0)
    expected = [0.0, 0.25, 0.15 + 0.09, 1.225 + 0.09, 0.05 + 1.0, 1.0 + 1.0]
    sleeps = STATION_SLEEPS["cat1-set2"]
    assert gap_units_s(gaps_s, sleeps).tolist() == pytest.approx(expected)
    assert gap_units_s(gaps_s, sleeps, "micro").tolist() == pytest.approx((50 * gaps_s).tolist())


def test_micro_sleep_alone_is_the_power_that_studies_use():
    load = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(sleeping_cell_w(load, deepest="micro"), base_station_power_w(load))
    light_w = sleeping_cell_w(load)
    # 20 ms idle in light sleep: 25 units and 90 unit-milliseconds; beyond a load of 0.7 the rest is too short
    assert light_w[0].item() == pytest.approx((25 + 90 / 20) * UNIT_W)
    assert light_w[5].item() == pytest.approx((100 + 12.5 + 4.5) * UNIT_W)
    torch.testing.assert_close(light_w[8:], base_station_power_w(load)[8:])
    assert torch.equal(sleeping_cell_w(load, deepest="deep"), light_w)  # 20 ms are too short for it
    assert sleeping_cell_w(load, deepest="deep", period_s=0.16)[0] < light_w[0]


def test_slots_and_the_gaps_between_them():
    """Ten slots of 1 ms: two that send, one gap of two and one of six milliseconds; then all idle."""
    slots = torch.tensor([[1.0, 0, 0, 0.5, 0, 0, 0, 0, 0, 0], [0.0] * 10], dtype=torch.float64)
    sent = 200 + (50 + 150 * (0.4 + 0.3))
    expected = [sent + 2 * 50 + (6 * 25 + 90), 10 * 25 + 90]
    energy_j = slots_energy_j(slots, 1e-3)
    assert energy_j.tolist() == pytest.approx([units * 1e-3 * UNIT_W for units in expected])
    awake_j = slots_energy_j(slots, 1e-3, deepest="micro")
    assert awake_j.tolist() == pytest.approx([units * 1e-3 * UNIT_W for units in (sent + 8 * 50, 500)])


def test_slots_add_up_whatever_their_order_if_nothing_sleeps_deeper_than_micro():
    generator = torch.Generator().manual_seed(3)
    share = torch.rand(4, 200, generator=generator, dtype=torch.float64) * (
        torch.rand(4, 200, generator=generator) > 0.6
    )
    shuffled = share[:, torch.randperm(200, generator=generator)]
    torch.testing.assert_close(
        slots_energy_j(share, 5e-4, deepest="micro"), slots_energy_j(shuffled, 5e-4, deepest="micro")
    )
    assert bool((slots_energy_j(share, 5e-4) <= slots_energy_j(share, 5e-4, deepest="micro")).all())
    lowest_j = 200 * 5e-4 * UNIT_W  # deep sleep all the time
    assert bool((slots_energy_j(share, 5e-4) > lowest_j).all())


def test_a_users_day_in_drx():
    """A cycle of 160 ms: 8 ms on, 2 of them receiving, 1 sending at 0 dBm; then 149 ms of deep sleep."""
    mean_w = user_w(seconds(0.16), 8e-3, 2e-3, 1e-3, power_dbm=0.0)
    units = (100 * 8 + 300 * 2 + 250 + 149 + 450) / 160
    assert mean_w.item() == pytest.approx(units * ue_watts_per_unit(0.25))


def test_every_station_has_its_sleep_states_in_order():
    assert STATION_SLEEPS.keys() == BASE_STATIONS.keys()
    for sleeps in (*STATION_SLEEPS.values(), USER_SLEEPS):
        assert [sleep.depth for sleep in sleeps] == ["micro", "light", "deep"]
        assert [sleep.units for sleep in sleeps] == sorted((sleep.units for sleep in sleeps), reverse=True)
