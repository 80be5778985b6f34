"""Constants of one's own: what is given replaces what is cited, and is marked; what is wrong is named."""

import pytest

from defiance.errors import DefianceError
from defiance.hardware import DEVICE_NPU, SERVER_CPU, STATION_SOC, base_station_power_w
from defiance.prices import CITED, read_prices


@pytest.fixture
def file(tmp_path):
    return tmp_path / "prices.toml"


def test_what_is_not_given_stays_as_cited(file):
    file.write_text('source = "my meters"\n[cell]\nidle_w = 180.0\n[station]\njoules_per_operation = 1e-11\n')
    prices = read_prices(file)
    assert prices.cell.idle_w == 180.0 and prices.cell.full_load_w == 448.0
    assert prices.profile(SERVER_CPU) is SERVER_CPU and prices.profile(DEVICE_NPU) is DEVICE_NPU
    station = prices.profile(STATION_SOC)
    assert station.joules_per_operation == station.joules_per_operation_high == 1e-11
    assert station.source == "user: my meters" and station.watts_per_core == STATION_SOC.watts_per_core
    assert prices.provenance == "user"


def test_the_cited_constants_are_those_of_hardware():
    import torch

    idle_w, full_w = base_station_power_w(torch.tensor([0.0, 1.0])).tolist()
    assert (CITED.cell.idle_w, CITED.cell.full_load_w) == (idle_w, full_w)
    assert CITED.provenance == "modelled" and CITED.profile(STATION_SOC) is STATION_SOC


def test_a_bill_of_electricity_leaves_joules_as_they_are(file):
    file.write_text('[electricity]\ncurrency = "SEK"\nnetwork_per_kwh = 2.0\ndevice_per_kwh = 3.0\n')
    prices = read_prices(file)
    assert prices.provenance == "modelled" and prices.electricity.currency == "SEK"
    assert prices.bill(3.6e6, 7.2e6) == pytest.approx(2 + 6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[cell]\nidle = 180.0\n", "prices.toml: unknown key 'cell.idle'; did you mean cell.idle_w?"),
        ("[cell]\nidle_w = -1.0\n", "prices.toml: cell.idle_w takes number >= 0 [W], not -1.0"),
        (
            "[server]\njoules_per_operation = '1e-11'\n",
            "prices.toml: server.joules_per_operation takes number",
        ),
        (
            "[cell\n",
            "prices.toml: not a TOML file: Expected ']' at the end of a table declaration (at line 1",
        ),
        (None, "prices.toml: cannot be read"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(file, text, message):
    if text is not None:
        file.write_text(text)
    with pytest.raises(DefianceError) as error:
        read_prices(file)
    assert message in str(error.value) and "\n" not in str(error.value)
