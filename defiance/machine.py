"""The machine at hand: what it is, and what its own energy counters say."""

import os
import platform
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")


def machine() -> dict[str, Any]:
    """What a sheet says about the machine that it was made on."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


class EnergyCounter(Protocol):
    """Counts joules since it was made."""

    readable: bool
    """Whether there is anything that may be read."""

    def joules(self) -> float:
        """Spent so far; 0 where nothing is readable."""


def energy_counters() -> dict[str, EnergyCounter]:
    """This machine's own, of those that may be read, by what they count: the whole part, whoever uses it."""
    counters: dict[str, EnergyCounter] = {
        "this machine's processors": PackageEnergy(),
        "this machine's GPUs": GpuEnergy(),
    }
    return {of: counter for of, counter in counters.items() if counter.readable}


class PackageEnergy:
    """Joules of all processor packages since it was made, from RAPL's counters (Linux powercap).

    They count the whole package, whoever computes on it; on most machines only root may read them, and in
    most virtual ones there are none. A counter that has wrapped once since the last call is unwrapped.

    Attributes:
        readable: whether there is a counter that may be read.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        zones = sorted(folder.glob("intel-rapl:[0-9]*"))  # packages; intel-rapl:0:1 is a part of one
        self._zones = [zone for zone in zones if zone.name.count(":") == 1 and _microjoules(zone) is not None]
        self._last = [_microjoules(zone) or 0 for zone in self._zones]
        self._spent = 0
        self.readable = bool(self._zones)

    def joules(self) -> float:
        """Spent so far; 0 where nothing is readable. Call it more often than once a minute."""
        for number, zone in enumerate(self._zones):
            now = _microjoules(zone)
            if now is None:
                continue
            spent = now - self._last[number]
            if spent < 0:
                spent += int((zone / "max_energy_range_uj").read_text())
            self._last[number], self._spent = now, self._spent + spent
        return self._spent * 1e-6


class GpuEnergy:
    """Joules of all NVIDIA GPUs since it was made, from NVML's counters (Volta and newer; extra `nvml`).

    They count the whole board, `nvmlDeviceGetTotalEnergyConsumption` in mJ. A GPU without the counter is left
    out.

    Attributes:
        readable: whether there is a GPU whose counter may be read.
    """

    def __init__(self, nvml: Any = None) -> None:  # None: the module pynvml, where it is installed
        self._first_mj: list[tuple[Any, int]] = []
        try:
            self._nvml = nvml or import_module("pynvml")
        except ModuleNotFoundError:
            self.readable = False
            return
        try:
            self._nvml.nvmlInit()
            for number in range(self._nvml.nvmlDeviceGetCount()):
                device = self._nvml.nvmlDeviceGetHandleByIndex(number)
                if (now_mj := self._millijoules(device)) is not None:
                    self._first_mj.append((device, now_mj))
        except self._nvml.NVMLError:  # no driver, no GPU, or none that we may ask
            pass
        self.readable = bool(self._first_mj)

    def joules(self) -> float:
        """Spent so far; 0 where nothing is readable."""
        now_mj = [(self._millijoules(device), first_mj) for device, first_mj in self._first_mj]
        return 1e-3 * sum(now - first for now, first in now_mj if now is not None)

    def _millijoules(self, device: Any) -> int | None:
        try:
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(device))
        except self._nvml.NVMLError:
            return None


def _microjoules(zone: Path) -> int | None:
    try:
        return int((zone / "energy_uj").read_text())
    except (OSError, ValueError):
        return None
