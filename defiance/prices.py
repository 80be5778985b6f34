"""A user's own constants of energy and money, from a TOML file, in place of the cited ones of `hardware`.

Every key is optional; what isn't given stays as cited. What rests on a given one is marked `user` on sheets.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from defiance.config import build
from defiance.hardware import (
    BACKHAUL,
    BASE_STATIONS,
    DEVICE_NPU,
    FULL_LOAD_CELL_W,
    SERVER_CPU,
    STATION_SOC,
    UE_COMMAND,
    UE_DOWNLOAD,
    UE_REPORT,
    ComputeProfile,
)

JOULES_PER_KWH = 3.6e6
_CELL = BASE_STATIONS["cat1-set2"]


def _energy(default: float, unit: str, what: str) -> Any:
    return field(default=default, metadata={"min": 0.0, "unit": unit, "help": what})


@dataclass(frozen=True)
class Computing:
    """What a processor draws."""

    joules_per_operation: float = field(
        default=1e-11, metadata={"min": 1e-18, "unit": "J", "help": "of one real-valued operation"}
    )
    watts_per_core: float = field(
        default=1.0, metadata={"min": 1e-6, "unit": "W", "help": "of one busy core, or accelerator"}
    )


@dataclass(frozen=True)
class Transfer:
    """What one sent bit costs."""

    joules_per_bit: float = _energy(0.0, "J/bit", "marginal")


@dataclass(frozen=True)
class Cell:
    """What one cell draws; linear in load between the two."""

    idle_w: float = _energy(FULL_LOAD_CELL_W * _CELL.micro_sleep / _CELL.downlink, "W", "without traffic")
    full_load_w: float = _energy(FULL_LOAD_CELL_W, "W", "with all resource blocks in use")


@dataclass(frozen=True)
class Electricity:
    """What a kilowatt-hour costs whom; 0 and 0 make no bill."""

    currency: str = field(default="EUR", metadata={"help": "of both prices"})
    network_per_kwh: float = _energy(0.0, "1/kWh", "at stations, servers and in the backhaul")
    device_per_kwh: float = _energy(0.0, "1/kWh", "at users' devices; 0 if theirs isn't counted")


@dataclass(frozen=True)
class Prices:
    """All constants that a study of the network's energy rests on; the defaults are the cited ones."""

    source: str = field(default="", metadata={"help": "where these numbers come from"})
    server: Computing = Computing(SERVER_CPU.joules_per_operation, SERVER_CPU.watts_per_core)
    station: Computing = Computing(STATION_SOC.joules_per_operation, STATION_SOC.watts_per_core)
    device: Computing = Computing(DEVICE_NPU.joules_per_operation, DEVICE_NPU.watts_per_core)
    backhaul: Transfer = Transfer(BACKHAUL.joules_per_bit)
    report: Transfer = Transfer(UE_REPORT.joules_per_bit)
    command: Transfer = Transfer(UE_COMMAND.joules_per_bit)
    download: Transfer = Transfer(UE_DOWNLOAD.joules_per_bit)
    cell: Cell = Cell()
    electricity: Electricity = Electricity()

    @property
    def provenance(self) -> str:
        """Of joules computed with these constants: `user` if one of them isn't the cited one."""
        own = replace(self, source="", electricity=Electricity())
        return "modelled" if own == Prices() else "user"

    def profile(self, cited: ComputeProfile) -> ComputeProfile:
        """The profile of the server, the station or the device with the user's constants."""
        given = {SERVER_CPU: self.server, STATION_SOC: self.station, DEVICE_NPU: self.device}[cited]
        if given == Computing(cited.joules_per_operation, cited.watts_per_core):
            return cited
        joules, watts = given.joules_per_operation, given.watts_per_core
        return ComputeProfile(
            cited.name, joules, joules, joules, watts, watts, watts, f"user: {self.source or 'own prices'}"
        )

    def bill(self, network_j: Any, device_j: Any) -> Any:
        """What so many joules cost in `electricity.currency`: numbers, arrays or tensors."""
        cost = network_j * self.electricity.network_per_kwh + device_j * self.electricity.device_per_kwh
        return cost / JOULES_PER_KWH


CITED = Prices()


def read_prices(path: Path) -> Prices:
    """Read a price file.

    Such as::

        source = "meter readings 2026"
        [cell]
        idle_w = 180.0
        full_load_w = 520.0
        [electricity]
        currency = "EUR"
        network_per_kwh = 0.19

    Raises:
        DefianceError: the file can't be read, a key is unknown, or a value isn't a number in its range; file
            and key (in broken TOML: line and column) are named.
    """
    return build(Prices, path)
