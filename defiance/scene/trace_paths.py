"""Tracing propagation paths along walks with Sionna RT: what `defiance.scene.paths` loads.

Rays look for chains of walls and edges from a few points of a walk; every chain that one of them has is then
tried at all its points by the method of images. So a path lives as long as its geometry does, not as long as
random rays happen to find it, and it is known from one point to the next by its chain.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.constants import c as LIGHT_M_PER_S
from scipy.spatial import cKDTree
from torch import Tensor

from defiance.errors import DefianceError
from defiance.parts import Parts
from defiance.radio.arrays import Paths
from defiance.scene.city import Scene
from defiance.scene.paths import (
    CARRIERS_HZ,
    MOST_PATHS,
    Walks,
    angles,
    band_name,
    load_walks,
    save_walks,
    turned,
)
from defiance.scene.streets import routes
from defiance.scene.trace import (
    USER_HEIGHT_M,
    check_numbers,
    check_writable,
    heights,
    load_city,
    set_carrier,
    sionna_rt,
)

BEACON_M = 50.0  # between the points of a walk from which chains are looked for
APART_M = 30.0  # walks keep this distance from each other, so that a split by walk holds
CANDIDATES = 1 << 20  # of a site that are kept
HASH_PLACES = 1 << 24  # of Sionna's table of chains, which drops those that collide
LEAST_SHARE = 1e-5  # of the power at a point; paths that carry less at every carrier are left out
NEAR_RAD = 0.05
SAME_M, SAME_RAD = 2e-3, 1e-3  # paths as long and of one direction are one that was found twice
MISFIT_M = 0.05  # a path whose length doesn't go on as its direction says is another one
SPECULAR, DIFFRACTION = 1, 8  # Sionna's InteractionType


def trace_paths(
    scene: Scene,
    city_name: str,
    out: Path,
    *,
    walks: int = 30,
    points: int = 50,
    spacing_m: float = 2.0,
    carriers_hz: Sequence[float] = CARRIERS_HZ,
    samples_per_site: int = 1_000_000,
    max_depth: int = 6,
    seed: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Walks:
    """Trace the paths from a scene's sites to walks on its streets, and write what `load_walks` reads.

    What is traced of a site is kept beside `out` until all are done, so that an interrupted run goes on.

    Args:
        scene: where users can be, and where sites are.
        city_name: what it was traced from: a scene of Sionna RT or a Mitsuba .xml file.
        out: the .npz file to write.
        walks: how many.
        points: of each.
        spacing_m: of these points.
        carriers_hz: of the bands, which share their paths.
        samples_per_site: rays that look for walls and edges.
        max_depth: most interactions of a path, one of them at most a diffraction.
        seed: of the walks.
        progress: called with how many walks are done and how many there are, summed over sites.

    Returns:
        The walks at the first carrier, as they are loaded from the file.

    Raises:
        DefianceError: Sionna RT or LLVM is missing, the city is unknown, a number makes no sense, the streets
            don't hold that many walks, no path reaches them, or `out` can't be written.
    """
    check_numbers(
        ("walks", walks, 1, 10_000),
        ("points", points, 2, 10_000),
        ("spacing_m", spacing_m, 0.1, 10.0),
        ("samples_per_site", samples_per_site, 1, 10**9),
        ("max_depth", max_depth, 1, 50),
        ("seed", seed, 0, 2**31),
        *(("carrier_hz", carrier_hz, 4e8, 1e11) for carrier_hz in carriers_hz),
    )
    if not carriers_hz:
        raise DefianceError("carriers_hz is empty; give at least one")
    check_writable(out)
    place_m = draw_walks(scene, walks, points, spacing_m, np.random.default_rng(seed))
    rt = sionna_rt()
    city = load_city(rt, city_name, carriers_hz[0])
    for carrier_hz in carriers_hz:
        set_carrier(city, city_name, carrier_hz)
    isotropic = rt.PlanarArray(num_rows=1, num_cols=1, pattern="iso", polarization="VH")
    city.tx_array, city.rx_array = isotropic, isotropic
    ground_m, _ = heights(city, place_m[..., 0], place_m[..., 1])
    if not np.isfinite(ground_m).all():
        raise DefianceError(f"{city_name} has no ground where {scene.name} has streets; is it the same city?")
    antenna_m = np.concatenate([place_m, ground_m[..., None] + USER_HEIGHT_M], -1)
    attribution = (
        f"{scene.attribution}; paths along walks: {samples_per_site} rays per site, depth {max_depth},"
        f" walks of seed {seed}"
    )
    settings = [samples_per_site, max_depth, list(carriers_hz), city_name, version("sionna-rt")]
    settings += [antenna_m.tolist(), scene.site_position_m.tolist()]
    parts = Parts.open(out.with_suffix(".parts"), hashlib.sha256(json.dumps(settings).encode()).hexdigest())
    every = min(points, max(1, round(BEACON_M / spacing_m)))
    beacons = _points(antenna_m[:, every // 2 :: every].reshape(-1, 3))
    per_walk = len(range(every // 2, points, every))
    of_sites = []
    sites = len(scene.site_position_m)
    for number, position_m in enumerate(scene.site_position_m.numpy()):
        progress(number * walks, sites * walks)
        traced = parts.get_tensors(f"site{number}")
        if traced is None:
            site = _points(position_m[None])
            found = _candidates(rt, city, site, beacons, samples_per_site, max_depth)
            chains, walk_of = _chains(found), np.array(found.target_indices).astype(np.int64) // per_walk
            of_walks = []
            for walk in range(walks):
                of_walks.append(
                    _walked(rt, city, found, chains, walk_of == walk, site, antenna_m[walk], carriers_hz)
                )
                progress(number * walks + walk + 1, sites * walks)
            traced = _joined(of_walks)
            parts.put_tensors(f"site{number}", traced)
        of_sites.append(traced)
    whole = _bands(scene, antenna_m, of_sites, carriers_hz, attribution)
    save_walks(whole, out)
    shutil.rmtree(out.with_suffix(".parts"))
    return load_walks(out, band_name(carriers_hz[0]))


def draw_walks(
    scene: Scene, walks: int, points: int, spacing_m: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Draw walks on a scene's streets that keep `APART_M` from each other and get somewhere.

    Returns:
        float64 [walks, points, 2], places (x, y).

    Raises:
        DefianceError: the streets don't hold that many.
    """
    length_m = (points - 1) * spacing_m
    drawn = routes(scene, "pedestrian", 40 * walks, length_m, generator).astype(np.float64)
    kept: list[NDArray[np.float64]] = []
    for route in drawn:
        gone_m = np.concatenate([[0.0], np.hypot(*np.diff(route, axis=0).T).cumsum()])
        at_m = np.arange(points) * min(spacing_m, gone_m[-1] / (points - 1))
        walk = np.stack([np.interp(at_m, gone_m, route[:, axis]) for axis in (0, 1)], 1)
        gets_somewhere = np.hypot(*(walk[-1] - walk[0])) > length_m / 2
        if gets_somewhere and (not kept or cKDTree(np.concatenate(kept)).query(walk)[0].min() > APART_M):
            kept.append(walk)
        if len(kept) == walks:
            return np.stack(kept)
    raise DefianceError(
        f"scene {scene.name}: its streets hold {len(kept)} walks of {length_m:g} m that keep {APART_M:g} m"
        f" from each other, not {walks}; ask for fewer or shorter ones"
    )


def _candidates(rt: Any, city: Any, site: Any, beacons: Any, samples: int, depth: int) -> Any:
    """Chains of walls and edges between a site and beacons, as Sionna RT finds them by rays.

    At depth 0 it is those that see the site.
    """
    import drjit as dr

    maker = rt.path_solvers.sb_candidate_generator.SBCandidateGenerator
    maker.MIN_SPEC_COUNT_SIZE = HASH_PLACES
    found = maker()(
        mi_scene=city.mi_scene,
        src_positions=site,
        tgt_positions=beacons,
        samples_per_src=samples,
        max_num_paths_per_src=CANDIDATES if depth else len(np.array(beacons).T),
        max_depth=depth,
        los=depth == 0,
        specular_reflection=True,
        diffuse_reflection=False,
        refraction=False,  # see `trace`
        diffraction=True,
        edge_diffraction=True,
        seed=1,
    )
    found.schedule()
    dr.eval()
    found.shrink()
    found.detach_geometry()
    return found


def _chains(found: Any) -> NDArray[np.int64]:
    """What tells chains apart, [candidates, ...]: their kinds of interaction, mirror planes and edges."""
    import mitsuba as mi

    kinds = np.array(found.interaction_types).astype(np.int64).reshape(-1, found.max_depth)
    wedges = found.diffracting_wedges
    ends = [np.array(wedges.o).T, np.array(wedges.o + wedges.e_hat * wedges.length).T]
    edge = np.rint(np.sort(np.stack(ends), 0) / SAME_M).astype(np.int64).transpose(1, 0, 2).reshape(-1, 6)
    rows = [kinds, np.where((kinds == DIFFRACTION).any(1)[:, None], edge, 0)]
    for depth in range(found.max_depth):
        there = mi.Bool(kinds[:, depth] != 0)
        normal, corner, *_ = found.get_primitive_props(mi.UInt(depth + 1), True, True, there)
        n, p = np.array(normal, dtype=np.float64).T, np.array(corner, dtype=np.float64).T
        n *= np.sign(n @ [1.0, 1e-3, 1e-6])[:, None]
        plane = np.concatenate([np.rint(n * 1e4), np.rint((n * p).sum(1) / SAME_M)[:, None]], 1)
        rows.append(np.where(kinds[:, depth, None] == SPECULAR, plane.astype(np.int64), 0))
    return np.concatenate(rows, 1)


def _traced(
    rt: Any, city: Any, found: Any, site: Any, points: Any, carriers_hz: Sequence[float]
) -> dict[str, NDArray[Any]]:
    """Paths from a site to points: those of the candidates `found` that the method of images confirms.

    Returns:
        Of all paths: `candidate` and `point` int64 [n], `length_m` float64 [n], `departure` and `arrival`,
        unit vectors float64 [n, 3], and `gain` complex64 [carriers, n, 2, 2], without what the carrier turns
        on the way.
    """
    import drjit as dr
    import mitsuba as mi

    still = mi.Point3f(dr.zeros(mi.Float, 1))
    found = rt.path_solvers.image_method.ImageMethod()(
        city.mi_scene,
        paths=found,
        src_positions=site,
        tgt_positions=points,
        diffraction=True,
        diffraction_lit_region=True,
    )
    kept = np.flatnonzero(np.array(found.valid))
    found.discard_invalid()
    gains = []
    length_m = np.zeros(0)
    for carrier_hz in carriers_hz:
        city.frequency = carrier_hz
        # It marks paths of no gain as invalid, and would take those for straight ones the next time.
        found.valid = dr.full(mi.Bool, True, kept.size)
        found = rt.path_solvers.field_calculator.FieldCalculator()(
            wavelength=city.wavelength,
            paths=found,
            samples_per_src=1,
            diffraction=True,
            src_positions=site,
            tgt_positions=points,
            src_orientations=still,
            tgt_orientations=dr.zeros(mi.Point3f, dr.width(points)),
            src_antenna_patterns=city.tx_array.antenna_pattern.patterns,
            tgt_antenna_patterns=city.rx_array.antenna_pattern.patterns,
        )
        if kept.size:
            gains.append(np.stack([[np.array(a) for a in row] for row in found.a]).transpose(2, 0, 1))
            length_m = np.array(found.tau, dtype=np.float64) * LIGHT_M_PER_S
        else:
            gains.append(np.zeros((0, 2, 2), np.complex64))
    return {
        "candidate": kept,
        "point": np.array(found.target_indices).astype(np.int64),
        "length_m": length_m,
        "departure": np.array(found.k_tx, dtype=np.float64).T.reshape(-1, 3),
        "arrival": np.array(found.k_rx, dtype=np.float64).T.reshape(-1, 3),
        "gain": np.stack(gains),
    }


def _walked(
    rt: Any,
    city: Any,
    found: Any,
    chains: NDArray[np.int64],
    beacon: NDArray[np.bool_],
    site: Any,
    antenna_m: NDArray[np.float64],
    carriers_hz: Sequence[float],
) -> dict[str, NDArray[Any]]:
    """Paths from a site to the points of a walk, those that carry most, with their tracks.

    Args:
        rt: Sionna RT.
        city: loaded, with an antenna of both polarisations at either end.
        found: candidates between the site and all beacons.
        chains: what tells them apart, see `_chains`.
        beacon: which of them were found from this walk, bool [candidates].
        site: where it is.
        antenna_m: the user's, [points, 3].
        carriers_hz: of the bands.

    Returns:
        What `_traced` does, without candidates, and `track` int64 [n]; by point, and what carries most first.
    """
    import mitsuba as mi

    points = len(antenna_m)
    chosen = np.flatnonzero(beacon)
    _, first = np.unique(chains[chosen], axis=0, return_index=True)
    chosen = chosen[first]
    every = found.gather(mi.UInt(np.repeat(chosen, points).astype(np.uint32)))
    every._tgt_indices = mi.UInt(np.tile(np.arange(points), chosen.size).astype(np.uint32))
    targets = _points(antenna_m)
    parts = [
        _traced(rt, city, every, site, targets, carriers_hz),
        _traced(rt, city, _candidates(rt, city, site, targets, 1, 0), site, targets, carriers_hz),
    ]
    kinds = chains[chosen, : found.max_depth]
    paths = {key: np.concatenate([part[key] for part in parts], int(key == "gain")) for key in parts[0]}
    chain = np.concatenate([parts[0]["candidate"] // points, np.full(len(parts[1]["point"]), chosen.size)])
    kind = np.concatenate([kinds, np.zeros((1, found.max_depth), np.int64)])[chain]
    del paths["candidate"]

    power = np.nan_to_num((np.abs(paths["gain"]) ** 2).sum((2, 3)))
    total = np.stack([np.bincount(paths["point"], of_band, points)[paths["point"]] for of_band in power])
    share = (power / np.maximum(total, 1e-300)).max(0)
    kept: list[int] = []
    for point in range(points):
        here = np.flatnonzero((paths["point"] == point) & (share > LEAST_SHARE) & (power > 0).all(0))
        kept += _unlike(here[np.argsort(-share[here], kind="stable")], paths)[:MOST_PATHS]
    paths = {key: of[:, kept] if key == "gain" else of[kept] for key, of in paths.items()}
    return {**paths, "track": _tracks(paths, chain[kept], kind[kept], antenna_m)}


def _unlike(of_point: NDArray[np.int64], paths: dict[str, NDArray[Any]]) -> list[int]:
    """Paths of a point without those that were found twice: walls and roofs share edges."""
    kept: list[int] = []
    for path in of_point:
        twin = (
            (np.abs(paths["length_m"][kept] - paths["length_m"][path]) < SAME_M)
            & (paths["arrival"][kept] @ paths["arrival"][path] > 1 - SAME_RAD**2 / 2)
            & (paths["departure"][kept] @ paths["departure"][path] > 1 - SAME_RAD**2 / 2)
        )
        if not twin.any():
            kept.append(int(path))
    return kept


def _tracks(
    paths: dict[str, NDArray[Any]],
    chain: NDArray[np.int64],
    kind: NDArray[np.int64],
    antenna_m: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Number paths [n] so that one keeps its number from point to point.

    The path of the next point that goes on with one of this point has its chain or, where a facade's edge is
    cut into pieces, the same kinds of interaction and nearly the same directions; and it is as much longer as
    the directions of both say, by the rule of the trapezium.
    """
    track = np.full(chain.size, -1)
    fresh = 0
    for point in range(len(antenna_m)):
        here, there = np.flatnonzero(paths["point"] == point), np.flatnonzero(paths["point"] == point + 1)
        new = track[here] < 0
        track[here[new]] = fresh + np.arange(new.sum())
        fresh += int(new.sum())
        if not (here.size and there.size):
            continue
        step = antenna_m[point + 1] - antenna_m[point]
        slope = [-(paths["arrival"][end] @ step) for end in (here, there)]
        misfit_m = np.abs(
            paths["length_m"][there] - paths["length_m"][here, None] - (slope[0][:, None] + slope[1]) / 2
        )
        same = chain[here, None] == chain[there]
        alike = (kind[here, None] == kind[there]).all(-1)
        for end in ("arrival", "departure"):
            alike &= paths[end][here] @ paths[end][there].T > math.cos(NEAR_RAD)
        cost = np.where(same, misfit_m, np.where(alike, misfit_m + MISFIT_M, np.inf))
        cost[misfit_m > MISFIT_M] = np.inf
        while np.isfinite(cost.min()):
            i, j = np.unravel_index(cost.argmin(), cost.shape)
            track[there[j]] = track[here[i]]
            cost[i], cost[:, j] = np.inf, np.inf
    return track


def _points(position_m: NDArray[np.float64]) -> Any:
    """Places [n, 3] as Sionna RT takes them."""
    import mitsuba as mi

    return mi.Point3f(*position_m.T.astype(np.float32).copy())


def _joined(of_walks: Sequence[dict[str, NDArray[Any]]]) -> dict[str, Tensor]:
    """Paths of all walks from one site, with the walk of each."""
    joined = {
        key: torch.from_numpy(np.concatenate([paths[key] for paths in of_walks], int(key == "gain")))
        for key in of_walks[0]
    }
    sizes = torch.tensor([len(paths["point"]) for paths in of_walks])
    return joined | {"walk": torch.arange(len(of_walks)).repeat_interleave(sizes)}


def _bands(
    scene: Scene,
    antenna_m: NDArray[np.float64],
    of_sites: Sequence[dict[str, Tensor]],
    carriers_hz: Sequence[float],
    attribution: str,
) -> list[Walks]:
    """Walks at every carrier, of the paths of every site."""
    shape = (len(of_sites), *antenna_m.shape[:2])
    count = torch.zeros(shape, dtype=torch.int64)
    for site, paths in enumerate(of_sites):
        count[site].view(-1).add_(
            torch.bincount(paths["walk"] * shape[2] + paths["point"], minlength=shape[1] * shape[2])
        )
    if not count.any():
        raise DefianceError(f"scene {scene.name}: no path reaches its walks")
    there = torch.arange(int(count.max())) < count[..., None]

    def spread(key: str, fill: float = 0) -> Tensor:
        flat = torch.cat([paths[key] for paths in of_sites])
        full = torch.full((*there.shape, *flat.shape[1:]), fill, dtype=flat.dtype)
        full[there] = flat
        return full

    length_m = spread("length_m")
    ends = [angles(spread(end)) * there[..., None] for end in ("departure", "arrival")]
    gains = torch.cat([paths["gain"] for paths in of_sites], 1)
    found = []
    for carrier_hz, of_band in zip(carriers_hz, gains, strict=True):
        gain = torch.zeros((*there.shape, 2, 2), dtype=torch.complex128)
        gain[there] = of_band.to(torch.complex128)
        found.append(
            Walks(
                name=scene.name,
                carrier_hz=carrier_hz,
                position_m=torch.from_numpy(antenna_m[..., :2].copy()),
                height_m=torch.from_numpy(antenna_m[..., 2].copy()),
                site_position_m=scene.site_position_m,
                cell_site=scene.cell_site,
                azimuth_deg=scene.azimuth_deg,
                tilt_deg=scene.tilt_deg,
                paths=Paths(
                    length_m / LIGHT_M_PER_S,
                    (gain * turned(length_m, -carrier_hz)[..., None, None]).to(torch.complex64),
                    *ends,
                ),
                track=spread("track", -1).int(),
                attribution=attribution,
            )
        )
    return found
