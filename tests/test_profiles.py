"""Processors: cited ones by hand, one's own from a file, counters of energy where there are some."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from defiance import learn
from defiance.errors import DefianceError
from defiance.machine import GpuEnergy, PackageEnergy, energy_counters, machine
from defiance.profiles import EDGE_GPU, PROFILES, read_profile


def test_cited_processors_have_ordered_ends_and_a_source() -> None:
    assert {"server CPU core", "edge GPU", "base-station SoC", "device NPU", "Cortex-M4"} <= PROFILES.keys()
    for profile in PROFILES.values():
        low, centre, high = (getattr(profile, f"joules_per_operation{end}") for end in ("_low", "", "_high"))
        assert 0 < low < centre < high and profile.source
    assert EDGE_GPU.joules_per_operation_low == pytest.approx(60 / 5.32e12, rel=0.01)


def test_a_processor_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("joules_per_operation = 2e-11\njoules_per_operation_high = 5e-11\nwatts_per_core = 9.5\n")
    mine = read_profile(file)
    assert mine.name == "mine" and mine.source == "user: mine.toml"
    assert (mine.joules_per_operation_low, mine.joules_per_operation_high) == (2e-11, 5e-11)
    assert mine.watts_per_core_high == 9.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("watts_per_core = 1.0\n", "joules_per_operation must be above 0"),
        ("joules_per_operation = 1e-11\n", "watts_per_core must be above 0"),
        (
            "joules_per_operation = 1e-11\nwatts_per_core = 1.0\nwatts_per_core_low = 2.0\n",
            "watts_per_core_low <= it",
        ),
        ("joules = 1.0\n", "unknown key 'joules'"),
        ("joules_per_operation = -1.0\n", "takes number >= 0"),
    ],
)
def test_a_wrong_processor_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(DefianceError, match=f"wrong.toml: .*{said}"):
        read_profile(file)


def test_energy_counters_are_summed_unwrapped_and_only_of_packages(tmp_path: Path) -> None:
    def zone(name: str, energy_uj: int) -> None:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "energy_uj").write_text(f"{energy_uj}\n")
        (folder / "max_energy_range_uj").write_text("10000000\n")

    for name, start in (("intel-rapl:0", 9_000_000), ("intel-rapl:1", 100), ("intel-rapl:0:0", 5)):
        zone(name, start)
    counter = PackageEnergy(tmp_path)
    assert counter.readable and counter.joules() == 0
    zone("intel-rapl:0", 9_500_000)
    zone("intel-rapl:0:0", 9_999_999)
    assert counter.joules() == pytest.approx(0.5)
    zone("intel-rapl:0", 500_000)  # wrapped
    zone("intel-rapl:1", 2_000_100)
    assert counter.joules() == pytest.approx(0.5 + 1.0 + 2.0)


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:0").mkdir()
    counter = PackageEnergy(tmp_path)
    assert not counter.readable and counter.joules() == 0.0
    assert machine()["cores"] >= 1


class NoAnswer(Exception):
    """NVML's error."""


class Driver(SimpleNamespace):
    """NVML with GPUs whose counters stand at these millijoules; None: has no counter."""

    NVMLError = NoAnswer

    def __init__(self, *counters_mj: int | None) -> None:
        super().__init__(counters_mj=list(counters_mj))

    def nvmlInit(self) -> None:
        if not self.counters_mj:
            raise NoAnswer("no driver")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.counters_mj)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetTotalEnergyConsumption(self, device: int) -> int:
        if self.counters_mj[device] is None:
            raise NoAnswer("not supported")
        return int(self.counters_mj[device])


def test_the_energy_of_gpus_is_summed_over_those_that_count_it() -> None:
    driver = Driver(5_000, None, 100)
    counter = GpuEnergy(driver)
    assert counter.readable and counter.joules() == 0
    driver.counters_mj = [6_500, None, 350]
    assert counter.joules() == pytest.approx(1.75)
    driver.counters_mj[0] = None  # fell off the bus
    assert counter.joules() == pytest.approx(0.25)


def test_without_a_gpu_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for driver in (Driver(), Driver(None)):
        counter = GpuEnergy(driver)
        assert not counter.readable and counter.joules() == 0
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "this machine's GPUs" not in energy_counters() and GpuEnergy().joules() == 0


def test_a_sheet_says_what_gpus_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(1_000)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    counted = Driver.nvmlDeviceGetTotalEnergyConsumption

    def spending(self: Driver, device: int) -> int:
        self.counters_mj[device] += 2_000
        return counted(self, device)

    monkeypatch.setattr(Driver, "nvmlDeviceGetTotalEnergyConsumption", spending)
    data = [(torch.randn(20, 2), torch.randn(20, 1))] * 2
    found = learn.fit(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss, data, rounds=1, seeds=(1, 2))
    row = found.sheet.value("energy", node="this machine's GPUs")
    assert (row.mean, row.n, row.provenance) == (2.0, 2, "measured")
