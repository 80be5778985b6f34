"""A city as the network sees it: the path gain of every sector on a street-level grid."""

import io
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import median_filter
from torch import Tensor

from defiance.errors import DefianceError
from defiance.parts import write_atomically
from defiance.scene import npz

FLOOR_DB = -200.0  # the path gain of a place that no traced ray reaches
FORMAT = "defiance.scene/1"
GAIN_STEP_DB = 0.01  # files hold int16 hundredths of a dB


@dataclass(frozen=True)
class Scene:
    """A traced city; grid rows run north, columns east, and every entry stands for the cell's centre.

    Attributes:
        name: what results call it.
        origin_m: (x, y) of the centre of grid cell [0, 0]; x points east, y north.
        resolution_m: spacing of the grid.
        path_gain_db: float32 [cells, rows, cols], antenna pattern included, transmit power not. Every entry
            is finite: a place without signal holds `FLOOR_DB`, an indoor one its nearest outdoor value.
        outdoor: bool [rows, cols], where users can be.
        site_position_m: float32 [sites, 3], the antennas.
        cell_site: int64 [cells], the site on which a cell (sector) hangs.
        azimuth_deg: float32 [cells], boresight clockwise from north.
        tilt_deg: float32 [cells], boresight below the horizon.
        carrier_hz: carrier frequency.
        attribution: where map and tracing come from; print it with every figure made of it.

    Raises:
        DefianceError: shapes don't fit, a number isn't finite, or a cell hangs on no site.
    """

    name: str
    origin_m: tuple[float, float]
    resolution_m: float
    path_gain_db: Tensor
    outdoor: Tensor
    site_position_m: Tensor
    cell_site: Tensor
    azimuth_deg: Tensor
    tilt_deg: Tensor
    carrier_hz: float
    attribution: str

    def __post_init__(self) -> None:
        if self.path_gain_db.ndim != 3 or min(self.path_gain_db.shape) < 1:
            raise DefianceError(
                f"path_gain_db has shape {_shape(self.path_gain_db)}, not [cells, rows, cols]"
            )
        cells, rows, cols = self.path_gain_db.shape
        if min(rows, cols) < 2:
            raise DefianceError(f"path_gain_db has {rows} x {cols} grid points, but 2 x 2 are the least")
        sites = self.site_position_m.shape[0] if self.site_position_m.ndim == 2 else 0
        for key, dtype, shape in (
            ("path_gain_db", torch.float32, (cells, rows, cols)),
            ("outdoor", torch.bool, (rows, cols)),
            ("site_position_m", torch.float32, (max(sites, 1), 3)),
            ("cell_site", torch.int64, (cells,)),
            ("azimuth_deg", torch.float32, (cells,)),
            ("tilt_deg", torch.float32, (cells,)),
        ):
            value: Tensor = getattr(self, key)
            if value.dtype != dtype or tuple(value.shape) != shape:
                raise DefianceError(f"{key} is {value.dtype} {_shape(value)}, not {dtype} {list(shape)}")
            if dtype == torch.float32 and not bool(value.isfinite().all()):
                raise DefianceError(f"{key} holds values that aren't finite")
        if not bool(((self.cell_site >= 0) & (self.cell_site < sites)).all()):
            raise DefianceError(f"cell_site names a site outside 0 ... {sites - 1}")
        if not bool(self.outdoor.any()):
            raise DefianceError("outdoor is false everywhere: users have no place to be")
        for key, number in (("resolution_m", self.resolution_m), ("carrier_hz", self.carrier_hz)):
            if not 0 < number < float("inf"):
                raise DefianceError(f"{key} is {number}, not a positive number")
        if not all(np.isfinite(self.origin_m)):
            raise DefianceError(f"origin_m is {self.origin_m}, not two finite numbers")


def names() -> tuple[str, ...]:
    """The cities that ship with DEFIANCE."""
    files = resources.files("defiance.scene").joinpath("data").iterdir()
    return tuple(sorted(file.name.removesuffix(".npz") for file in files if file.name.endswith(".npz")))


def load(name_or_path: str | Path) -> Scene:
    """Load a shipped city by its name, or a scene file by its path.

    Args:
        name_or_path: "munich", "florence", or the path of an .npz file that `save` or `defiance trace` wrote.

    Raises:
        DefianceError: no such city or file, or the file isn't a valid scene; its name is in the message.
    """
    text = str(name_or_path)
    if text in names():
        with resources.as_file(resources.files("defiance.scene").joinpath("data", f"{text}.npz")) as shipped:
            return npz.read(shipped, "scene", _scene)
    path = Path(name_or_path)
    if not path.is_file():
        close = get_close_matches(text, names(), 1)
        hint = (
            f"did you mean {close[0]}?" if close else f"known are {', '.join(names())}, or give an .npz file"
        )
        raise DefianceError(f"scene {text}: no such city or file; {hint}")
    return npz.read(path, "scene", _scene)


def save(scene: Scene, path: Path) -> None:
    """Write a scene to an .npz file, path gains rounded to 0.01 dB; the file is complete or absent.

    Raises:
        DefianceError: the file can't be written, or a path gain lies outside int16 hundredths of a dB.
    """
    steps = np.rint(scene.path_gain_db.numpy().astype(np.float64) / GAIN_STEP_DB)
    if np.abs(steps).max() > np.iinfo(np.int16).max:
        raise DefianceError(f"{path}: path gains beyond +-327 dB don't fit the file format")
    arrays = {
        "format": FORMAT,
        "name": scene.name,
        "origin_m": np.array(scene.origin_m),
        "resolution_m": scene.resolution_m,
        "path_gain_cdb": steps.astype(np.int16),
        "outdoor": scene.outdoor.numpy(),
        "site_position_m": scene.site_position_m.numpy(),
        "cell_site": scene.cell_site.numpy(),
        "azimuth_deg": scene.azimuth_deg.numpy(),
        "tilt_deg": scene.tilt_deg.numpy(),
        "carrier_hz": scene.carrier_hz,
        "attribution": scene.attribution,
    }
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())


def median_filtered(scene: Scene) -> Scene:
    """Return the scene with every path-gain map 3 x 3 median filtered: the rays' noise taken out."""
    smooth = median_filter(scene.path_gain_db.numpy(), size=(1, 3, 3), mode="nearest")
    return replace(scene, path_gain_db=torch.from_numpy(smooth))


def xn_table(scene: Scene) -> tuple[Tensor, Tensor]:
    """What stations know of each other from setting up Xn: where the others stand.

    Returns:
        distance_m: float32 [sites, sites], on the ground.
        bearing_deg: float32 [sites, sites], from the row's to the column's site, clockwise from north, in
            [0, 360); 0 on the diagonal.
    """
    east_m, north_m = (scene.site_position_m[None, :, :2] - scene.site_position_m[:, None, :2]).unbind(-1)
    bearing_deg = torch.rad2deg(torch.atan2(east_m, north_m)) % 360.0
    return torch.hypot(east_m, north_m), bearing_deg


def gain_db(scene: Scene, position_m: Tensor) -> Tensor:
    """Path gain of every cell at any place, bilinear in dB between grid points; the reference look-up.

    Args:
        scene: the city.
        position_m: float [..., 2], (x, y); a place beyond the grid takes the value at its border.

    Returns:
        float32 [..., cells].
    """
    rows, cols = scene.outdoor.shape
    origin_m = torch.tensor(scene.origin_m, dtype=torch.float64)
    col, row = ((position_m.to(torch.float64) - origin_m) / scene.resolution_m).unbind(-1)
    col, row = col.clamp(0, cols - 1), row.clamp(0, rows - 1)
    left, low = col.floor().clamp(max=cols - 2), row.floor().clamp(max=rows - 2)
    right_share, up_share = (col - left).float(), (row - low).float()
    i, j = low.long(), left.long()
    gain = scene.path_gain_db
    lower = gain[:, i, j] * (1 - right_share) + gain[:, i, j + 1] * right_share
    upper = gain[:, i + 1, j] * (1 - right_share) + gain[:, i + 1, j + 1] * right_share
    return (lower * (1 - up_share) + upper * up_share).movedim(0, -1)


def _scene(arrays: npz.Arrays) -> Scene:
    """Build a scene from the arrays of a file, whatever they are."""
    if "format" not in arrays or npz.text(arrays, "format") != FORMAT:
        raise DefianceError(f"its format isn't {FORMAT!r}")
    steps = npz.array(arrays, "path_gain_cdb", "i")
    origin_m = npz.array(arrays, "origin_m", "f")
    if origin_m.shape != (2,):
        raise DefianceError(f"origin_m has shape {list(origin_m.shape)}, not [2]")
    gain_db = np.maximum(steps.astype(np.float32) * np.float32(GAIN_STEP_DB), np.float32(FLOOR_DB))
    return Scene(
        name=npz.text(arrays, "name"),
        origin_m=(float(origin_m[0]), float(origin_m[1])),
        resolution_m=float(npz.array(arrays, "resolution_m", "f")),
        path_gain_db=torch.from_numpy(gain_db),
        outdoor=torch.from_numpy(npz.array(arrays, "outdoor", "b")),
        site_position_m=torch.from_numpy(npz.array(arrays, "site_position_m", "f").astype(np.float32)),
        cell_site=torch.from_numpy(npz.array(arrays, "cell_site", "i").astype(np.int64)),
        azimuth_deg=torch.from_numpy(npz.array(arrays, "azimuth_deg", "f").astype(np.float32)),
        tilt_deg=torch.from_numpy(npz.array(arrays, "tilt_deg", "f").astype(np.float32)),
        carrier_hz=float(npz.array(arrays, "carrier_hz", "f")),
        attribution=npz.text(arrays, "attribution"),
    )


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
