"""Small scenes for tests."""

import numpy as np
import torch
from numpy.typing import NDArray

from defiance.scene import Scene


def small_scene(
    outdoor: NDArray[np.bool_] | None = None,
    gain_db: NDArray[np.float32] | None = None,
    resolution_m: float = 4.0,
) -> Scene:
    """Two sites 100 m apart, three cells; the grid's corner lies at (-20, 10)."""
    if outdoor is None:
        outdoor = np.full((6, 8), True)
    if gain_db is None:
        gain_db = np.linspace(-140, -60, 3 * outdoor.size, dtype=np.float32).reshape(3, *outdoor.shape)
    return Scene(
        name="small",
        origin_m=(-20.0, 10.0),
        resolution_m=resolution_m,
        path_gain_db=torch.from_numpy(gain_db),
        outdoor=torch.from_numpy(outdoor),
        site_position_m=torch.tensor([[0.0, 0.0, 25.0], [60.0, 80.0, 30.0]]),
        cell_site=torch.tensor([0, 0, 1]),
        azimuth_deg=torch.tensor([30.0, 150.0, 270.0]),
        tilt_deg=torch.tensor([10.0, 10.0, 10.0]),
        carrier_hz=3.5e9,
        attribution="made up",
    )


def blocks(rows: int, cols: int, period: int, street: int) -> NDArray[np.bool_]:
    """A city of square houses: outdoor on streets `street` points wide, every `period` points."""
    row, col = np.mgrid[:rows, :cols]
    return (row % period < street) | (col % period < street)
