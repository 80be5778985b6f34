"""Tracing a city with Sionna RT: path gain of every sector on a street-level grid.

Sionna RT (extra `rt`) is imported when `trace` is called, never before; no study needs it.
"""

import ctypes.util
import glob
import math
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, distance_transform_edt

from defiance.errors import DefianceError
from defiance.scene.city import FLOOR_DB, Scene, load, save
from defiance.scene.sites import (
    OPEN_M,
    Sector,
    Terrain,
    read_sites,
    relative_power_db,
    rooftop_sites,
)

CARRIER_HZ = 3.5e9
USER_HEIGHT_M = 1.5  # TR 38.901 table 7.2-1
FINER = 2  # rays are counted on a grid this much finer, then averaged over what is outdoors
SQUARE_M = 100.0  # wider gaps between buildings aren't streets: a map is empty beyond its last house
FLAT_M = 0.5  # ground that differs less than this is traced on a plane
# Sionna RT keeps the edges that waves bend around in a hash table of 10,000 places and drops those that
# collide; a city shows a roof-top antenna more edges than that.
EDGE_TABLE_PLACES = 200_000
OLDEST_LLVM = 16  # 15 crashes on processors with AVX-512
LLVM_PLACES = (
    "/usr/lib/*-linux-gnu/libLLVM*.so*",  # Debian, Ubuntu
    "/usr/lib/llvm-*/lib/libLLVM*.so*",
    "/usr/lib64/libLLVM*.so*",  # Fedora, openSUSE
    "/usr/lib64/llvm*/lib*/libLLVM*.so*",
    "/usr/lib/libLLVM*.so*",  # Arch
    "/opt/homebrew/opt/llvm*/lib/libLLVM*.dylib",  # macOS
    "/usr/local/opt/llvm*/lib/libLLVM*.dylib",
)
OPENSTREETMAP = ("etoile", "florence", "munich", "san_francisco")


def trace(
    scene_name: str,
    sites: Path | None,
    out: Path,
    *,
    resolution_m: float = 4.0,
    samples_per_tx: int = 10_000_000,
    max_depth: int = 8,
    extent_m: float = 1000.0,
    seed: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scene:
    """Trace a city and write it as a scene file that `load` and every study accept.

    Rays leave each sector's TR 38.901 element (table 7.3-1, 8 dBi, vertical polarisation), are reflected or
    (once) diffracted, and are counted where they cross the street at 1.5 m.

    Args:
        scene_name: a scene of Sionna RT ("munich", "etoile", ...) or the path of a Mitsuba .xml file.
        sites: a site plan (see `read_sites`); none puts seven sites of three sectors on roofs. What a
            sector's power lacks to the strongest one's goes into its path gain.
        out: the .npz file to write.
        resolution_m: spacing of the grid.
        samples_per_tx: rays per sector.
        max_depth: most interactions of a ray.
        extent_m: side of the traced square around the middle of the map, cut to the map.
        seed: of the rays' random choices; repeated runs differ by noise all the same.
        progress: called with the sectors done and their total number, before the first and after each.

    Returns:
        The scene as it is loaded from the file.

    Raises:
        DefianceError: Sionna RT or LLVM is missing, the scene is unknown, the site plan is faulty, a site
            stands off the map or inside a building, a number makes no sense, or `out` can't be written.
    """
    check_numbers(
        ("resolution_m", resolution_m, 0.5, 100.0),
        ("samples_per_tx", samples_per_tx, 1, 10**9),
        ("max_depth", max_depth, 0, 50),
        ("extent_m", extent_m, 10.0, 20_000.0),
        ("seed", seed, 0, 2**31),
    )
    check_writable(out)
    planned = read_sites(sites) if sites is not None else None
    rt = sionna_rt()
    carrier_hz = CARRIER_HZ
    if planned and planned[0].carrier_mhz is not None:
        carrier_hz = planned[0].carrier_mhz * 1e6
    city = load_city(rt, scene_name, carrier_hz)
    terrain = _survey(city, extent_m, resolution_m)
    plan = planned or rooftop_sites(terrain)
    positions_m, cell_site = _antennas(plan, terrain)

    open_sky = _mostly(terrain.open_sky)
    outdoor = open_sky & _mostly(_built_up(city, terrain))
    if not outdoor.any():
        raise DefianceError(f"{scene_name}: the traced area has no outdoor place")
    gains_db, power_db = [], relative_power_db(plan)
    progress(0, len(plan))
    for number, sector in enumerate(plan):
        gain = _sector_gain(
            rt,
            city,
            terrain,
            sector,
            positions_m[cell_site[number]],
            samples_per_tx,
            max_depth,
            seed + number,
        )
        gains_db.append(_average_db(gain, terrain.open_sky, open_sky) + power_db[number])
        progress(number + 1, len(plan))

    save(
        Scene(
            name=Path(scene_name).stem,
            origin_m=(float(terrain.x_m[:FINER].mean()), float(terrain.y_m[:FINER].mean())),
            resolution_m=resolution_m,
            path_gain_db=torch.from_numpy(np.stack(gains_db).astype(np.float32)),
            outdoor=torch.from_numpy(outdoor),
            site_position_m=torch.from_numpy(positions_m.astype(np.float32)),
            cell_site=torch.tensor(cell_site),
            azimuth_deg=torch.tensor([sector.azimuth_deg for sector in plan]),
            tilt_deg=torch.tensor([sector.tilt_deg for sector in plan]),
            carrier_hz=carrier_hz,
            attribution=_attribution(scene_name, samples_per_tx, max_depth, seed),
        ),
        out,
    )
    return load(out)


def find_llvm() -> str | None:
    """The newest LLVM library on this machine that Sionna RT can use, none if there is none."""
    found = [(_llvm_version(path), path) for place in LLVM_PLACES for path in sorted(glob.glob(place))]
    version, path = max(found, default=(0, ""))
    return path if version >= OLDEST_LLVM else None


def _llvm_version(path: str) -> int:
    """Major version in a library's name, or in what its links point to; 0 if neither says it."""
    for name in (path, os.path.realpath(path)):
        match = re.search(r"libLLVM[-.](?:so\.|dylib\.)?(\d+)|llvm[@/-](\d+)", name)
        if match:
            return int(match[1] or match[2])
    return 0


def sionna_rt() -> Any:
    """Import Sionna RT with a usable LLVM behind it (a CUDA driver does instead)."""
    if "DRJIT_LIBLLVM_PATH" not in os.environ:
        llvm = find_llvm()
        if llvm is not None:
            os.environ["DRJIT_LIBLLVM_PATH"] = llvm
        elif ctypes.util.find_library("cuda") is None:
            raise DefianceError(
                f"tracing needs LLVM {OLDEST_LLVM} or newer: install it (Debian: apt-get install libllvm19;"
                " Fedora: dnf install llvm-libs; macOS: brew install llvm) or name the library in"
                " DRJIT_LIBLLVM_PATH"
            )
    try:
        import sionna.rt as rt
    except ImportError as error:
        raise DefianceError(f"tracing needs Sionna RT: pip install 'defiance-ran[rt]' ({error})") from error
    return rt


def load_city(rt: Any, scene_name: str, carrier_hz: float) -> Any:
    """Load a Sionna RT scene with carrier and antenna element set."""
    known = sorted(key for key, value in vars(rt.scene).items() if str(value).endswith(".xml"))
    own = Path(scene_name)
    if scene_name not in known and not (own.suffix == ".xml" and own.is_file()):
        raise DefianceError(
            f"{scene_name}: no such scene; Sionna RT has {', '.join(known)}; or give an .xml file"
        )
    try:
        city = rt.load_scene(getattr(rt.scene, scene_name) if scene_name in known else str(own))
    except Exception as error:  # whatever a Mitsuba file can be wrong in
        raise DefianceError(f"{scene_name}: Sionna RT can't load it: {error}") from error
    set_carrier(city, scene_name, carrier_hz)
    city.tx_array = rt.PlanarArray(
        num_rows=1,
        num_cols=1,
        vertical_spacing=0.5,
        horizontal_spacing=0.5,
        pattern="tr38901",
        polarization="V",
    )
    return city


def set_carrier(city: Any, scene_name: str, carrier_hz: float) -> None:
    """Set the carrier of a loaded scene, and what it makes of the materials.

    Raises:
        DefianceError: a material isn't known at that carrier.
    """
    try:
        city.frequency = carrier_hz
    except Exception as error:  # whatever a material raises
        raise DefianceError(
            f"{scene_name}: Sionna RT can't trace it at {carrier_hz:g} Hz: {error}"
        ) from error


def _survey(city: Any, extent_m: float, resolution_m: float) -> Terrain:
    """Measure ground and roofs at the places of the finer grid, by rays from above."""
    box = city.mi_scene.bbox()
    step_m = resolution_m / FINER
    axes: list[NDArray[np.float64]] = []
    for low, high in ((box.min.x, box.max.x), (box.min.y, box.max.y)):
        points = int(min(extent_m, float(high - low)) / resolution_m + 1e-6) * FINER
        if points < 2 * FINER:
            raise DefianceError(f"the scene is smaller than two grid points of {resolution_m:g} m")
        middle_m = float(round(float(low + high) / 2))
        axes.append(middle_m + (np.arange(points, dtype=np.float64) - (points - 1) / 2) * step_m)
    x_m, y_m = axes
    ground_m, top_m = heights(city, *np.meshgrid(x_m, y_m))
    return Terrain(x_m, y_m, ground_m, top_m)


def heights(
    city: Any, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Heights of the lowest and the highest surface at places (x, y) [...], m; nan without any."""
    import mitsuba as mi

    z = np.full_like(x, float(city.mi_scene.bbox().max.z) + 10.0)
    top, ground = np.full_like(x, np.nan), np.full_like(x, np.nan)
    hit = np.full(x.shape, True)
    while hit.any():
        ray = mi.Ray3f(mi.Point3f(x.ravel(), y.ravel(), z.ravel()), mi.Vector3f(0, 0, -1))
        below = z - np.array(city.mi_scene.ray_intersect_preliminary(ray).t).reshape(x.shape)
        hit &= np.isfinite(below)
        ground[hit] = below[hit]
        top = np.where(np.isnan(top), ground, top)
        z = np.where(hit, below - 0.01, z)
    return ground, top


def _antennas(plan: tuple[Sector, ...], terrain: Terrain) -> tuple[NDArray[np.float64], list[int]]:
    """Positions of the sites [sites, 3] and each sector's site, checked to stand in the open."""
    places: dict[str, tuple[float, float, float]] = {}
    for sector in plan:
        at = terrain.nearest(sector.x_m, sector.y_m)
        if at is None:
            x_m, y_m = terrain.x_m, terrain.y_m
            raise DefianceError(
                f"{sector} lies off the traced area, which reaches from ({x_m[0]:g}, {y_m[0]:g}) to"
                f" ({x_m[-1]:g}, {y_m[-1]:g})"
            )
        roof_m = float(terrain.top_m[at] - terrain.ground_m[at])
        if sector.height_m <= roof_m:
            raise DefianceError(
                f"{sector} is {sector.height_m:g} m high, inside a building of {roof_m:.1f} m; see height_m"
            )
        places[sector.site] = (sector.x_m, sector.y_m, float(terrain.ground_m[at]) + sector.height_m)
    order = list(places)
    return np.array(list(places.values())), [order.index(sector.site) for sector in plan]


def _sector_gain(
    rt: Any,
    city: Any,
    terrain: Terrain,
    sector: Sector,
    position_m: NDArray[np.float64],
    samples_per_tx: int,
    max_depth: int,
    seed: int,
) -> NDArray[np.float64]:
    """Path gain of one sector on the finer grid, linear [rows, cols]."""
    for name in list(city.transmitters):
        city.remove(name)
    # Sionna turns counter-clockwise from east, then down.
    orientation = [math.radians(90.0 - sector.azimuth_deg), math.radians(sector.tilt_deg), 0.0]
    city.add(rt.Transmitter(name="sector", position=position_m.tolist(), orientation=orientation))
    rows, cols = terrain.ground_m.shape
    rt.RadioMapSolver._WEDGE_INTERSECTIONS_SIZE = EDGE_TABLE_PLACES
    flat = bool(np.nanmax(terrain.ground_m) - np.nanmin(terrain.ground_m) < FLAT_M)
    radio_map = rt.RadioMapSolver()(
        city,
        **(_plane(terrain) if flat else {"measurement_surface": _draped(city, terrain)}),
        samples_per_tx=samples_per_tx,
        max_depth=max_depth,
        # Buildings of a map are hollow shells of one thin wall: refraction would make them transparent. It
        # also draws by lot which rays go through: two seeds of 1e7 rays then differ by 1.3 dB at -95 dB
        # (90th percentile 13 dB), without it by 0.1 dB (1 dB).
        refraction=False,
        diffraction=True,
        edge_diffraction=True,  # walls and roofs are separate meshes: their common edges float freely
        seed=seed,
    )
    gain: NDArray[np.float64] = np.array(radio_map.path_gain, dtype=np.float64)[0]
    return gain if flat else np.asarray(gain.reshape(rows, cols, 2).mean(-1))


def _plane(terrain: Terrain) -> dict[str, list[float]]:
    """Sionna's measurement plane over flat ground."""
    step_m = float(terrain.x_m[1] - terrain.x_m[0])
    return {
        "center": [
            float(terrain.x_m.mean()),
            float(terrain.y_m.mean()),
            float(np.nanmedian(terrain.ground_m)) + USER_HEIGHT_M,
        ],
        "orientation": [0.0, 0.0, 0.0],
        "size": [terrain.x_m.size * step_m, terrain.y_m.size * step_m],
        "cell_size": [step_m, step_m],
    }


def _draped(city: Any, terrain: Terrain) -> Any:
    """A mesh over uneven ground: two triangles per place of the finer grid, row by row."""
    import mitsuba as mi

    step_m = float(terrain.x_m[1] - terrain.x_m[0])
    x_m = np.append(terrain.x_m - step_m / 2, terrain.x_m[-1] + step_m / 2)
    y_m = np.append(terrain.y_m - step_m / 2, terrain.y_m[-1] + step_m / 2)
    ground_m, _ = heights(city, *np.meshgrid(x_m, y_m))
    ground_m = np.where(np.isnan(ground_m), np.nanmin(ground_m), ground_m)
    x, y = np.meshgrid(x_m, y_m)
    corner = np.arange(x.size).reshape(x.shape)
    a, b, c, d = corner[:-1, :-1], corner[:-1, 1:], corner[1:, 1:], corner[1:, :-1]
    faces = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], -2)  # [rows, cols, 2, 3]
    mesh = mi.Mesh("streets", vertex_count=x.size, face_count=faces.size // 3)
    parameters = mi.traverse(mesh)
    parameters["vertex_positions"] = np.stack([x, y, ground_m + USER_HEIGHT_M], -1).ravel().astype(np.float32)
    parameters["faces"] = faces.ravel().astype(np.uint32)
    parameters.update()
    return mesh


def _built_up(city: Any, terrain: Terrain) -> NDArray[np.bool_]:
    """The city: buildings, gaps between them up to `SQUARE_M` wide, and all they enclose, on the finer grid.

    This is the morphological closing of the buildings (those just beyond the grid included) by a disc, with
    its holes filled. A scene without buildings is built up everywhere.
    """
    step_m = float(terrain.x_m[1] - terrain.x_m[0])
    margin = int(SQUARE_M / step_m)
    beyond = np.arange(1, margin + 1) * step_m
    axes = [np.concatenate([at[0] - beyond[::-1], at, at[-1] + beyond]) for at in (terrain.x_m, terrain.y_m)]
    ground_m, top_m = heights(city, *np.meshgrid(*axes))
    building = top_m - ground_m >= OPEN_M
    if not building.any():
        return np.full(terrain.ground_m.shape, True)
    reached = distance_transform_edt(~building) * step_m <= SQUARE_M / 2
    closed = distance_transform_edt(reached) * step_m > SQUARE_M / 2
    return np.asarray(binary_fill_holes(closed)[margin:-margin, margin:-margin])


def _average_db(
    gain: NDArray[np.float64], open_places: NDArray[np.bool_], open_sky: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Average linear gains over each grid cell's open places; fill indoors from the nearest open cell."""
    weight = _blocks(open_places.astype(np.float64))
    mean = (_blocks(gain) * weight).sum((1, 3)) / np.maximum(weight.sum((1, 3)), 1)
    mean_db = 10 * np.log10(np.maximum(mean, 10 ** (FLOOR_DB / 10)))
    nearest = distance_transform_edt(~open_sky, return_distances=False, return_indices=True)
    return np.asarray(mean_db[tuple(nearest)])


def _mostly(places: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Grid cells of which at least half the places are so."""
    return np.asarray(_blocks(places.astype(np.float64)).mean((1, 3)) >= 0.5)


def _blocks(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """View the finer grid as [rows, FINER, cols, FINER]."""
    rows, cols = places.shape
    return places.reshape(rows // FINER, FINER, cols // FINER, FINER)


def _attribution(scene_name: str, samples_per_tx: int, max_depth: int, seed: int) -> str:
    from importlib.metadata import version

    data = (
        "Map data (c) OpenStreetMap contributors, Open Database License 1.0 (openstreetmap.org/copyright);"
        f" 3D scene {scene_name!r} of Sionna RT (NVIDIA)"
        if scene_name in OPENSTREETMAP
        else f"Scene {scene_name!r}"
    )
    return (
        f"{data}; traced with Sionna RT {version('sionna-rt')}: {samples_per_tx} rays per sector,"
        f" depth {max_depth}, seed {seed}"
    )


def check_writable(out: Path) -> None:
    """Find out before tracing, not after, whether the result can be kept."""
    if out.is_dir():
        raise DefianceError(f"{out}: is a folder; name a file in it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise DefianceError(f"{out}: can't be written: {error.strerror}; choose another folder") from error


def check_numbers(*numbers: tuple[str, float, float, float]) -> None:
    """Refuse a number (its name, itself, the least and the most) that makes no sense."""
    for name, value, low, high in numbers:
        if not low <= value <= high:
            raise DefianceError(f"{name} is {value:g}, not within {low:g} ... {high:g}")
