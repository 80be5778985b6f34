"""Processors by name, each with its source, and a user's own from a TOML file.

Spiking processors count other operations: `hardware.LOIHI`, `hardware.SPIKES_45_NM`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defiance.config import build
from defiance.errors import DefianceError
from defiance.hardware import (
    ARITHMETIC_45_NM,
    CORTEX_M4,
    DEVICE_NPU,
    SERVER_CPU,
    STATION_SOC,
    ComputeProfile,
)

_ORIN_PEAK_PER_S = 2048 * 2 * 1.3e9
_ORIN_WATTS, _ORIN_WATTS_LOW = 60.0, 15.0

EDGE_GPU = ComputeProfile(
    name="edge GPU",
    joules_per_operation=_ORIN_WATTS / (0.3 * _ORIN_PEAK_PER_S),
    joules_per_operation_low=_ORIN_WATTS / _ORIN_PEAK_PER_S,
    joules_per_operation_high=_ORIN_WATTS / (0.03 * _ORIN_PEAK_PER_S),
    watts_per_core=_ORIN_WATTS,
    watts_per_core_low=_ORIN_WATTS_LOW,
    watts_per_core_high=108.0,
    source=(
        "NVIDIA Jetson AGX Orin 64 GB data sheet: 2048 CUDA cores at 1.3 GHz, 5.3 TFLOP/s in float32, module"
        " up to 60 W (lowest mode 15 W, absolute maximum input 108 W); 30 % of the peak (100 to 3 %) assumed,"
        " as small models keep it waiting"
    ),
)

PROFILES = {
    profile.name: profile
    for profile in (SERVER_CPU, EDGE_GPU, STATION_SOC, DEVICE_NPU, CORTEX_M4, ARITHMETIC_45_NM)
}
"""What is known here, by name."""


def _number(unit: str, what: str) -> Any:
    return field(default=0.0, metadata={"min": 0.0, "unit": unit, "help": what})


@dataclass(frozen=True)
class Processor:
    """A processor in a file. What is 0 is not given: ends are then the central value."""

    name: str = field(default="", metadata={"help": "on sheets"})
    source: str = field(default="", metadata={"help": "where the numbers come from"})
    joules_per_operation: float = _number("J", "of one real-valued operation")
    joules_per_operation_low: float = _number("J", "optimistic end")
    joules_per_operation_high: float = _number("J", "pessimistic end")
    watts_per_core: float = _number("W", "of one busy core, or accelerator")
    watts_per_core_low: float = _number("W", "optimistic end")
    watts_per_core_high: float = _number("W", "pessimistic end")


def read_profile(path: Path) -> ComputeProfile:
    """Read a processor's file.

    Such as::

        name = "our edge server"
        source = "power meter at the socket, 2026"
        joules_per_operation = 2.1e-11
        watts_per_core = 9.5

    Raises:
        DefianceError: the file can't be read, a key is unknown, a number is missing or not in its range, or
            an end is on the wrong side; file and key are named.
    """
    given = build(Processor, path)
    numbers: dict[str, float] = {}
    for what in ("joules_per_operation", "watts_per_core"):
        centre = getattr(given, what)
        low = getattr(given, f"{what}_low") or centre
        high = getattr(given, f"{what}_high") or centre
        if not 0 < low <= centre <= high:
            raise DefianceError(f"{path}: {what} must be above 0, and {what}_low <= it <= {what}_high")
        numbers |= {what: centre, f"{what}_low": low, f"{what}_high": high}
    return ComputeProfile(
        name=given.name or path.stem, source=f"user: {given.source or path.name}", **numbers
    )
