"""TR 38.901's large scale against the standard's own numbers and against Sionna."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from defiance.radio import tr38901
from defiance.radio.tr38901 import INH, RMA, SCENARIOS, UMA, UMI, Geometry, Scenario

DISTANCE_M = torch.tensor([11.0, 36.0, 60.0, 100.0, 177.0, 300.0, 640.0, 1000.0, 2500.0], dtype=torch.float64)


def sionna_scenario(scenario: Scenario, carrier_hz: float, height_m: float, los: bool, model: str) -> Any:
    """Sionna's scenario with one station and users at `DISTANCE_M`, its tables those of V16.1."""
    with torch.random.fork_rng(devices=[]):
        import sionna.phy.channel.tr38901 as sionna

        antenna = sionna.PanelArray(1, 1, "single", "V", "omni", carrier_hz)
        kind = {"uma": "UMaScenario", "umi": "UMiScenario", "rma": "RMaScenario", "inh": "InHScenario"}
        options = {"inh": {"indoor_scenario": "open"}, "rma": {}}.get(scenario.name, {"o2i_model": model})
        built = getattr(sionna, kind[scenario.name])(
            carrier_hz, ut_array=antenna, bs_array=antenna, direction="downlink", precision="double",
            spec_version="16.1", **options,
        )  # fmt: skip
        users = len(DISTANCE_M)
        place = torch.stack([DISTANCE_M, torch.zeros(users), torch.full((users,), height_m)], -1)[
            None
        ].double()
        built.set_topology(
            place,
            torch.tensor([[[0.0, 0.0, scenario.station_m]]]).double(),
            torch.zeros_like(place),
            torch.zeros(1, 1, 3).double(),
            torch.zeros_like(place),
            torch.full((1, users), scenario is INH),
            los,
        )
    return built


CASES = [
    (UMA, 6e9, 1.5),
    (UMA, 30e9, 10.5),
    (UMI, 6e9, 1.5),
    (UMI, 3.5e9, 22.5),
    (RMA, 0.7e9, 1.5),
    (RMA, 7e9, 1.5),
    (INH, 30e9, 1.0),
]


@pytest.mark.parametrize(("scenario", "carrier_hz", "height_m"), CASES)
def test_path_loss_and_los_probability_are_sionnas(
    scenario: Scenario, carrier_hz: float, height_m: float
) -> None:
    for los in (True, False):
        theirs = sionna_scenario(scenario, carrier_hz, height_m, los, "low")
        loss_db = scenario.los_loss_db if los else scenario.nlos_loss_db
        ours = loss_db(Geometry(DISTANCE_M, height_m, scenario.station_m, carrier_hz))
        torch.testing.assert_close(ours, theirs._pl_b[0, 0], rtol=0, atol=0.01)  # 3e8 against c: 0.006 dB
    probability = theirs.los_probability[0, 0]
    torch.testing.assert_close(scenario.los_probability(DISTANCE_M, height_m), probability, rtol=1e-6, atol=0)


def test_path_loss_of_the_standard_by_hand() -> None:
    """Table 7.4.1-1 at d_3D = 100 m, 6 GHz: 28 + 44 + 15.563; UMi NLOS 22.4 + 70.6 + 16.575."""
    near = torch.tensor(math.sqrt(100**2 - 23.5**2), dtype=torch.float64)
    assert UMA.los_loss_db(Geometry(near, 1.5, 25.0, 6e9)).item() == pytest.approx(87.563, abs=1e-3)
    assert UMA.nlos_loss_db(Geometry(near, 1.5, 25.0, 6e9)).item() == pytest.approx(
        13.54 + 78.16 + 15.563, abs=1e-3
    )
    near = torch.tensor(math.sqrt(100**2 - 8.5**2), dtype=torch.float64)
    assert UMI.los_loss_db(Geometry(near, 1.5, 10.0, 6e9)).item() == pytest.approx(89.963, abs=1e-3)
    assert UMI.nlos_loss_db(Geometry(near, 1.5, 10.0, 6e9)).item() == pytest.approx(109.575, abs=1e-3)


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_path_loss_grows_without_jumps_and_los_fades(scenario: Scenario) -> None:
    distance_m = torch.arange(1.0, 9000.0, 0.5, dtype=torch.float64)
    los = scenario.los_loss_db(Geometry(distance_m, 1.5, scenario.station_m, 2e9))
    nlos = scenario.nlos_loss_db(Geometry(distance_m, 1.5, scenario.station_m, 2e9))
    for loss in (los, nlos):
        step = loss.diff()
        assert step.min() > -1e-9 and step[200:].max() < 0.3, scenario.name
    assert bool((nlos >= los).all())
    probability = scenario.los_probability(distance_m, 1.5)
    assert probability[0] == 1 and probability.min() >= 0
    assert probability.diff().max() < 0.003  # InH's two branches meet at 0.537 and 0.540


def test_los_probability_of_a_high_user_by_hand() -> None:
    """UMa at 200 m: 0.1281 on the ground; at 23 m times 1 + C' 1.25 8 exp(-4/3)."""
    ground = 18 / 200 + math.exp(-200 / 63) * (1 - 18 / 200)
    d = torch.tensor(200.0, dtype=torch.float64)
    assert UMA.los_probability(d, 13.0).item() == pytest.approx(ground)
    assert UMA.los_probability(d, 23.0).item() == pytest.approx(ground * (1 + 10 * math.exp(-4 / 3)))


def test_environment_height_is_drawn_as_note_1_says() -> None:
    """At 300 m and 22.5 m: 1 m with probability 1/(1 + C), else one of 12, 15, 18, 21 m alike."""
    uniform = (torch.arange(100_000) + 0.5) / 100_000
    distance_m = torch.full_like(uniform, 300.0)
    height = tr38901.environment_height_m(distance_m, 22.5, uniform)
    one = 1 / (1 + 0.95**1.5 * 1.25 * 27 * math.exp(-2))
    assert height.unique().tolist() == [1.0, 12.0, 15.0, 18.0, 21.0]
    assert (height == 1).float().mean().item() == pytest.approx(one, abs=1e-4)
    for roof in (12.0, 15.0, 18.0, 21.0):
        assert (height == roof).float().mean().item() == pytest.approx((1 - one) / 4, abs=1e-4)
    assert bool((tr38901.environment_height_m(distance_m, 10.5, uniform) == 1).all())


def test_rma_shadowing_grows_beyond_the_breakpoint() -> None:
    beyond_m = 2 * math.pi * 35 * 1.5 * 0.7e9 / 3e8  # 769.7 m
    sigma = tr38901.los_sigma_db(RMA, torch.tensor([beyond_m - 1, beyond_m + 1]), 1.5, 0.7e9)
    assert sigma.tolist() == [4.0, 6.0]
    assert tr38901.los_sigma_db(UMI, torch.tensor([10.0, 5e3]), 1.5, 6e9).tolist() == [4.0, 4.0]


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_shadowing_and_k_factor_are_table_7_5_6(scenario: Scenario) -> None:
    theirs = sionna_scenario(scenario, 6e9, 1.5, True, "low")
    for ours, table in (
        (scenario.los, theirs._params_los),
        (scenario.nlos, theirs._params_nlos),
        (scenario.o2i, theirs._params_o2i),
    ):
        sigma = "sigmaSF1" if scenario is RMA and ours is RMA.los else "sigmaSF"
        assert (ours.sigma_db, ours.correlation_m) == (float(table[sigma]), float(table["corrDistSF"]))
    table = theirs._params_los
    assert (scenario.k_db, scenario.k_sigma_db) == (float(table["muK"]), float(table["sigmaK"]))
    assert scenario.los_correlation_m == float(theirs._los_state_correlation_distance())


def test_walls_by_hand() -> None:
    """Table 7.4.3-1 at 6 GHz: glass 3.2, concrete 29, infrared-reflective glass 24.8 dB."""
    low = 5 - 10 * math.log10(0.3 * 10**-0.32 + 0.7 * 10**-2.9)
    high = 5 - 10 * math.log10(0.7 * 10**-2.48 + 0.3 * 10**-2.9)
    assert tr38901.wall_loss_db("low", 6e9) == pytest.approx(low)
    assert tr38901.wall_loss_db("high", 6e9) == pytest.approx(high)
    loss = tr38901.wall_penetration_db(torch.tensor([False, True]), torch.tensor([1.0, -1.0]), 6e9)
    assert loss.tolist() == pytest.approx([low + 4.4, high - 6.5])


# --- antennas ---


def test_element_is_sionnas() -> None:
    zenith, azimuth = torch.meshgrid(torch.arange(1.0, 180, 7), torch.arange(-179.0, 180, 13), indexing="ij")
    with torch.random.fork_rng(devices=[]):
        from sionna.phy.channel.tr38901 import AntennaElement

        theirs = AntennaElement("38.901")
        field, _ = theirs.field(torch.deg2rad(zenith), torch.deg2rad(azimuth))
    ours = tr38901.element_gain_db(zenith, azimuth)
    torch.testing.assert_close(ours, 20 * torch.log10(field.abs()), rtol=0, atol=1e-3)
    torch.testing.assert_close(tr38901.element_gain_db(zenith, azimuth + 720), ours)


def test_column_peaks_at_its_tilt_and_radiates_what_it_is_fed() -> None:
    """10 lg 10 at 102 degrees; over all directions the mean of |w^H a|^2 is one (half-wave spacing)."""
    zenith: Tensor = torch.linspace(0, 180, 200_001, dtype=torch.float64)
    gain = tr38901.column_gain_db(zenith, 102.0)
    assert gain.max().item() == pytest.approx(10.0, abs=1e-6)
    assert zenith[gain.argmax()].item() == pytest.approx(102.0, abs=1e-3)
    weight = torch.sin(torch.deg2rad(zenith))
    mean = (10 ** (gain / 10) * weight).sum() / weight.sum()
    assert mean.item() == pytest.approx(1.0, abs=1e-3)  # filled nulls add less than 1e-4
    assert gain.min() >= -40


@pytest.mark.parametrize(
    ("name", "carrier_hz", "delay_ns"),
    [
        ("uma", 3.5e9, 364.1),
        ("uma", 30e9, 262.2),
        ("umi", 1e9, 113.6),
        ("umi", 30e9, 64.9),
        ("rma", 2e9, 37.2),
        ("inh", 3.5e9, 38.9),
    ],
)
def test_delay_spread_is_the_tables_median(name: str, carrier_hz: float, delay_ns: float) -> None:
    """Table 7.5-6, NLOS: UMa's and InH's frequency counts from 6 GHz on, UMi's from 2 GHz."""
    assert SCENARIOS[name].delay_spread.median_s(carrier_hz) == pytest.approx(delay_ns * 1e-9, rel=2e-3)
