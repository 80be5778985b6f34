"""Measured beams: received powers of a 64-beam array at 60 GHz with the vehicle's position, DeepSense 6G.

A base station's phased array listens with each of its beams to a vehicle that passes and sends to all sides
(Alkhateeb et al. 2023, scenarios 1 to 6). Powers are linear, in a unit of the receiver, and hold its noise.
A vehicle's pass is a sequence: neighbouring rows are almost the same, so data is split by sequence, never by
row. The recordings are CC BY-NC-SA: neither they nor weights trained on them are part of the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defiance.errors import DefianceError
from defiance.scene.drives import place_m

BEAMS = 64
SCENARIOS = (1, 2, 3, 4, 5, 6)
MOST_ROWS = 1_000_000
"""Rows of a file at most."""


@dataclass(frozen=True)
class BeamRecording:
    """One site's n rows, in the order in which they were measured.

    Attributes:
        scenario: number of the site's scenario.
        power: received with every beam, linear, > 0, float64 `[n, BEAMS]`.
        vehicle_m: by its GPS, metres east and north of the base station, float64 `[n, 2]`.
        sequence: which pass of a vehicle a row belongs to, int64 `[n]`.
    """

    scenario: int
    power: Tensor
    vehicle_m: Tensor
    sequence: Tensor

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def power_db(self) -> Tensor:
        """10 log10 of the powers, float32 `[n, BEAMS]`."""
        return (10 * torch.log10(self.power)).float()


def read_deepsense(folder: Path, scenarios: Sequence[int] = SCENARIOS) -> tuple[BeamRecording, ...]:
    """Read the recordings of some scenarios, one site each.

    Args:
        folder: holds `scenario1_unit1_pwr_60ghz_1-2422.npy` and its like.
        scenarios: their numbers.

    Raises:
        DefianceError: a scenario is unknown, a file is missing, not an array of numbers or of another shape
            than its neighbours, or a value is no power, place or sequence; file and row are named.

    Example::

        first, = read_deepsense(data_folder() / "deepsense6g", [1])
        first.power.shape    # [2422, 64]
    """
    return tuple(_read(folder, scenario) for scenario in scenarios)


def _read(folder: Path, scenario: int) -> BeamRecording:
    if scenario not in SCENARIOS:
        known = ", ".join(map(str, SCENARIOS))
        raise DefianceError(f"scenario {scenario} of DeepSense 6G is not known here; choose from {known}")
    power_path, power = _array(folder, scenario, "unit1_pwr_60ghz", BEAMS)
    _refuse(power_path, ~(power > 0) | ~np.isfinite(power), power, "is not a received power")
    station = _positions(folder, scenario, "unit1_loc", len(power))
    vehicle = _positions(folder, scenario, "unit2_loc", len(power))
    path, sequence = _array(folder, scenario, "seq_index", None)
    _same_length(path, sequence, len(power))
    _refuse(path, ~(np.abs(sequence) < 2**31) | (sequence != np.round(sequence)), sequence, "is no sequence")
    origin_deg = (float(station[:, 1].mean()), float(station[:, 0].mean()))
    east_m, north_m = place_m(torch.from_numpy(vehicle[:, 1]), torch.from_numpy(vehicle[:, 0]), origin_deg)
    return BeamRecording(
        scenario,
        torch.from_numpy(power),
        torch.stack([east_m, north_m], -1),
        torch.from_numpy(sequence).long(),
    )


def _positions(folder: Path, scenario: int, what: str, rows: int) -> NDArray[np.float64]:
    """Latitude and longitude in degrees, `[n, 2]`."""
    path, degrees = _array(folder, scenario, what, 2)
    _same_length(path, degrees, rows)
    _refuse(path, ~(np.abs(degrees) <= (90.0, 180.0)), degrees, "is not a latitude and longitude in degrees")
    return degrees


def _array(folder: Path, scenario: int, what: str, columns: int | None) -> tuple[Path, NDArray[np.float64]]:
    """The file of one kind, `[n, columns]`, or `[n]` without columns."""
    found = sorted(folder.glob(f"scenario{scenario}_{what}_[0-9]*.npy"))
    if len(found) != 1:
        raise DefianceError(
            f"{folder}: holds {len(found) or 'no'} scenario{scenario}_{what}_*.npy, want one; get scenario "
            f"{scenario} of DeepSense 6G, or name its folder"
        )
    path = found[0]
    try:
        # a map is never larger than its file, whatever a header says; objects are refused
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DefianceError(f"{path}: is not a NumPy array file: {str(error) or 'it is empty'}") from error
    wanted = "[n]" if columns is None else f"[n, {columns}]"
    if not isinstance(mapped, np.ndarray) or mapped.dtype.kind not in "fiu":
        raise DefianceError(f"{path}: does not hold real numbers; want an array {wanted} of them")
    if mapped.shape[1:] != (() if columns is None else (columns,)) or not 0 < len(mapped) <= MOST_ROWS:
        raise DefianceError(f"{path}: its shape is {list(mapped.shape)}; want {wanted}")
    return path, np.array(mapped, np.float64)


def _same_length(path: Path, values: NDArray[np.float64], rows: int) -> None:
    if len(values) != rows:
        raise DefianceError(f"{path}: has {len(values)} rows, but there are {rows} of received powers")


def _refuse(path: Path, wrong: NDArray[np.bool_], values: NDArray[np.float64], problem: str) -> None:
    """Refuses the first wrong value."""
    if wrong.any():
        place = tuple(np.argwhere(wrong)[0])
        column = f", column {place[1] + 1}" if len(place) > 1 else ""
        raise DefianceError(f"{path}, row {place[0] + 1}{column}: {values[place]:g} {problem}")
