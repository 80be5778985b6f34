"""What measured drives teach: statistics of cells, and models of RSRP that are judged on drives left out.

A model says what RSRP to expect of the serving cell at every row: the cell's mean, a log-distance law where
a plan says where cells stand, or a scene's path gain. What is measured about it is shadowing: normal in dB,
with a correlation exp(-d / correlation_m) along the way (TR 38.901 clause 7.4.4).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import wasserstein_distance

from defiance.errors import DefianceError
from defiance.scene.city import Scene, gain_db
from defiance.scene.drives import Drive, place_m
from defiance.scene.sites import Sector, relative_power_db

Array = NDArray[np.float64]
Expectation = Callable[[Drive], Array]
"""RSRP that a model expects at each of a drive's n rows [n], nan where it knows nothing of the cell."""
Model = Callable[[Sequence[Drive]], Expectation]
"""Learns an expectation from drives."""

LEVELS_DBM = np.arange(-160.0, -20.0, 0.5)  # at which distributions are compared
LAG_M, LONGEST_LAG_M = 10.0, 500.0
CORRELATIONS_M = np.geomspace(1.0, 2000.0, 400)
USER_M = 1.5  # TR 38.901 table 7.2-1


@dataclass(frozen=True)
class CellStatistics:
    """What drives saw of one cell: how many of them, in how many rows, how often it was handed over to.

    RSRP in dBm: mean, standard deviation, and 5, 50 and 95 % quantiles; median SNR and rate (nan: none).
    """

    cell: int
    drives: int
    rows: int
    arrivals: int
    rsrp_mean_dbm: float
    rsrp_sd_db: float
    rsrp_quantiles_dbm: tuple[float, float, float]
    snr_median_db: float
    downlink_median_bps: float


@dataclass(frozen=True)
class Shadowing:
    """Spread of RSRP about what is expected, and the way over which it stays the same (to 1/e)."""

    sigma_db: float
    correlation_m: float


@dataclass(frozen=True)
class HeldOut:
    """How a model that was learned from all other drives does on one.

    Attributes:
        drive: its name.
        rows: measured.
        known_share: of rows in cells that the model knows.
        error_db: root mean square of measured less expected RSRP, where known.
        sigma_db: what the other drives promised that to be.
        distance_db: between the distributions of measured and modelled RSRP, the mean distance of quantiles
            (Wasserstein-1); rows in unknown cells are modelled by one normal distribution of all others.
        step: the largest difference of these distributions (Kolmogorov and Smirnov's).
        pooled_distance_db: `distance_db` of one normal distribution for all rows.
    """

    drive: str
    rows: int
    known_share: float
    error_db: float
    sigma_db: float
    distance_db: float
    step: float
    pooled_distance_db: float


@dataclass(frozen=True)
class Calibration:
    """A scene's RSRP shifted to what drives measured.

    Attributes:
        offset_db: added to the scene's path gains.
        distance_db: per drive, between its distribution and that of the scene shifted to all other drives.
    """

    offset_db: float
    distance_db: tuple[float, ...]


def cell_statistics(drives: Sequence[Drive]) -> tuple[CellStatistics, ...]:
    """Statistics of every cell with measured RSRP, those seen most often first."""
    seen = [drive.select(drive.measured) for drive in drives]
    cell, rsrp_dbm, snr_db, downlink_bps = (
        np.concatenate([getattr(drive, name).numpy() for drive in seen])
        for name in ("cell", "rsrp_dbm", "snr_db", "downlink_bps")
    )
    number = np.concatenate([np.full(len(drive), n) for n, drive in enumerate(seen)])
    arrived = np.concatenate(
        [np.append(False, drive.cell.diff().numpy() != 0)[: len(drive)] for drive in seen]
    )
    found = []
    for identity in np.unique(cell):
        of = cell == identity
        low, middle, high = np.quantile(rsrp_dbm[of], (0.05, 0.5, 0.95)).tolist()
        found.append(
            CellStatistics(
                cell=int(identity),
                drives=len(np.unique(number[of])),
                rows=int(of.sum()),
                arrivals=int(arrived[of].sum()),
                rsrp_mean_dbm=float(rsrp_dbm[of].mean()),
                rsrp_sd_db=float(rsrp_dbm[of].std()),
                rsrp_quantiles_dbm=(low, middle, high),
                snr_median_db=_median(snr_db[of]),
                downlink_median_bps=_median(downlink_bps[of]),
            )
        )
    return tuple(sorted(found, key=lambda one: -one.rows))


# --- models ---------------------------------------------------------------------------------------------


def by_cell(drives: Sequence[Drive]) -> Expectation:
    """Expect the mean of a cell wherever it serves: all there is to know without its place."""
    cell, rsrp_dbm = (_joined(drives, name) for name in ("cell", "rsrp_dbm"))
    known, index = np.unique(cell, return_inverse=True)
    mean_dbm = np.bincount(index, rsrp_dbm) / np.bincount(index)

    def expected(drive: Drive) -> Array:
        serving = drive.cell.numpy()
        place = np.searchsorted(known, serving).clip(0, len(known) - 1)
        return np.where(known[place] == serving, mean_dbm[place], np.nan)

    return expected


def by_distance(plan: Sequence[Sector], origin_deg: tuple[float, float]) -> Model:
    """Expect P - 10 n lg(d_3D / 1 m), with P and n the least squares over all cells of a plan.

    Args:
        plan: sectors with `cell`; what a sector's power lacks to the strongest one's is taken off.
        origin_deg: longitude and latitude of the plan's origin.
    """

    def model(drives: Sequence[Drive]) -> Expectation:
        law = log_distance(drives, plan, origin_deg)

        def expected(drive: Drive) -> Array:
            log_d, power_db = _log_distances(drive, plan, origin_deg)
            return law[0] - 10 * law[1] * log_d + power_db

        return expected

    return model


def log_distance(
    drives: Sequence[Drive], plan: Sequence[Sector], origin_deg: tuple[float, float]
) -> tuple[float, float]:
    """P [dBm] at a metre from the strongest sector, and path-loss exponent n, see `by_distance`.

    Raises:
        DefianceError: the drives measured no two distances from cells of the plan.
    """
    seen = [drive.select(drive.measured) for drive in drives]
    pairs = [_log_distances(drive, plan, origin_deg) for drive in seen]
    log_d, power_db = (np.concatenate(columns) for columns in zip(*pairs, strict=True))
    rsrp_dbm, known = _joined(drives, "rsrp_dbm") - power_db, np.isfinite(log_d)
    if known.sum() < 2 or np.ptp(log_d[known]) == 0:
        raise DefianceError(
            "the drives were never served by cells of the plan; give their identities in its column cell"
        )
    slope, intercept = np.polyfit(log_d[known], rsrp_dbm[known], 1)
    return float(intercept), float(-slope / 10)


def by_scene(scene: Scene, plan: Sequence[Sector], origin_deg: tuple[float, float]) -> Model:
    """Expect a scene's path gain and a constant: power per resource element, and what the scene lacks.

    Args:
        scene: made of the plan, its cells in the same order.
        plan: sectors with `cell`.
        origin_deg: longitude and latitude of the scene's origin; rows off the map aren't known.
    """

    def model(drives: Sequence[Drive]) -> Expectation:
        gains_db = np.concatenate([gain(drive.select(drive.measured)) for drive in drives])
        known = np.isfinite(gains_db)
        if not known.any():
            raise DefianceError("the drives were never on the scene's map, served by a cell of its plan")
        constant_db = float((_joined(drives, "rsrp_dbm") - gains_db)[known].mean())
        return lambda drive: gain(drive) + constant_db

    def gain(drive: Drive) -> Array:
        place = torch.stack(place_m(drive.longitude_deg, drive.latitude_deg, origin_deg), -1)
        index = (place - torch.tensor(scene.origin_m, dtype=torch.float64)) / scene.resolution_m
        rows, cols = scene.outdoor.shape
        inside = ((index >= 0) & (index <= torch.tensor([cols - 1, rows - 1]))).all(-1)
        number = _sector_of(drive, plan)
        all_db = gain_db(scene, place).double().numpy()
        return np.where((number >= 0) & inside.numpy(), all_db[np.arange(len(drive)), number], np.nan)

    return model


def calibrate(scene: Scene, rsrp_of_gain_db: float, drives: Sequence[Drive]) -> Calibration:
    """Shift a scene so that its strongest cell has the measured mean RSRP, over all outdoor places alike.

    One constant stands for all that differs alike everywhere: antennas, cables, cars, the carrier. What it
    can't mend is told by the distances.

    Args:
        scene: whose path gains are to be shifted.
        rsrp_of_gain_db: transmit power per resource element: RSRP less path gain.
        drives: at least two that measured RSRP.

    Raises:
        DefianceError: fewer than two did.
    """
    usable = [drive.select(drive.measured) for drive in drives if bool(drive.measured.any())]
    if len(usable) < 2:
        raise DefianceError("a scene is calibrated on drives but one and judged on that; give two or more")
    best_db = scene.path_gain_db.amax(0)[scene.outdoor].double().numpy() + rsrp_of_gain_db
    distances = []
    for drive in usable:
        others = _joined([other for other in usable if other is not drive], "rsrp_dbm")
        shifted = best_db + others.mean() - best_db.mean()
        distances.append(float(wasserstein_distance(shifted, drive.rsrp_dbm.numpy())))
    offset_db = float(_joined(usable, "rsrp_dbm").mean() - best_db.mean())
    return Calibration(offset_db, tuple(distances))


# --- fits -----------------------------------------------------------------------------------------------


def fit_shadowing(drives: Sequence[Drive], expected: Expectation) -> Shadowing:
    """Shadowing about an expectation: its spread over all known rows, its correlation along the way.

    Raises:
        DefianceError: nothing was measured in cells that the expectation knows.
    """
    products, counts = np.zeros(int(LONGEST_LAG_M / LAG_M)), np.zeros(int(LONGEST_LAG_M / LAG_M))
    squares, rows = 0.0, 0
    for drive in drives:
        seen = drive.select(drive.measured)
        if not len(seen):
            continue
        off_db = seen.rsrp_dbm.numpy() - expected(seen)
        known = np.isfinite(off_db)
        squares, rows = squares + float(np.square(off_db[known]).sum()), rows + int(known.sum())
        way_m = _way_m(seen)
        visits = np.flatnonzero(np.diff(seen.cell.numpy())) + 1
        for visit in np.split(np.arange(len(seen)), visits):
            visit = visit[known[visit]]
            if len(visit) > 1:
                _add_lags(products, counts, way_m[visit], off_db[visit])
    if not rows:
        raise DefianceError("nothing was measured in the cells that the model knows")
    variance = squares / rows
    lags = np.arange(len(products)) * LAG_M
    measured = counts > 0
    correlation = products[measured] / counts[measured] / max(variance, 1e-12)
    wrong = [
        float((counts[measured] * (correlation - np.exp(-lags[measured] / way)) ** 2).sum())
        for way in CORRELATIONS_M
    ]
    return Shadowing(float(np.sqrt(variance)), float(CORRELATIONS_M[int(np.argmin(wrong))]))


def held_out(drives: Sequence[Drive], model: Model) -> tuple[HeldOut, ...]:
    """Leave each drive out in turn, learn from the others, and judge the model on it.

    Drives without measured RSRP are passed over.

    Raises:
        DefianceError: fewer than two drives measured RSRP.
    """
    usable = [drive.select(drive.measured) for drive in drives if bool(drive.measured.any())]
    if len(usable) < 2:
        raise DefianceError("a held-out drive needs another one to learn from; give two that measured RSRP")
    found = []
    for drive in usable:
        others = [other for other in usable if other is not drive]
        expected = model(others)
        about_db = _joined(others, "rsrp_dbm") - np.concatenate([expected(other) for other in others])
        sigma_db = float(np.sqrt(np.nanmean(np.square(about_db))))
        pool = _joined(others, "rsrp_dbm")
        mean_dbm, known = expected(drive), np.isfinite(expected(drive))
        off_db = (drive.rsrp_dbm.numpy() - mean_dbm)[known]
        centre = np.where(known, mean_dbm, pool.mean())
        spread = np.where(known, sigma_db, pool.std())
        measured = np.searchsorted(np.sort(drive.rsrp_dbm.numpy()), LEVELS_DBM, side="right") / len(drive)
        apart = np.abs(_mixture(centre, spread) - measured)
        pooled = np.abs(_mixture(pool.mean(keepdims=True), pool.std(keepdims=True)) - measured)
        step_dbm = float(LEVELS_DBM[1] - LEVELS_DBM[0])
        found.append(
            HeldOut(
                drive=drive.name,
                rows=len(drive),
                known_share=float(known.mean()),
                error_db=float(np.sqrt(np.square(off_db).mean())) if known.any() else float("nan"),
                sigma_db=sigma_db,
                distance_db=float(apart.sum() * step_dbm),
                step=float(apart.max()),
                pooled_distance_db=float(pooled.sum() * step_dbm),
            )
        )
    return tuple(found)


def _mixture(centre: Array, spread: Array) -> Array:
    """Distribution function at `LEVELS_DBM` of a row picked at random, normal about its centre."""
    kinds, counts = np.unique(np.stack([centre.round(1), spread], 1), axis=0, return_counts=True)
    share = ndtr((LEVELS_DBM[:, None] - kinds[:, 0]) / np.maximum(kinds[:, 1], 1e-6)) @ counts
    return np.asarray(share / counts.sum())


def _way_m(drive: Drive) -> Array:
    """Metres driven by each row [n]; between two fixes of the position, straight on at an even pace."""
    east_m, north_m = place_m(
        drive.longitude_deg, drive.latitude_deg, (float(drive.longitude_deg[0]), float(drive.latitude_deg[0]))
    )
    step_m = torch.hypot(east_m.diff(), north_m.diff()).numpy()
    fix = np.append(True, step_m > 0)
    way_m = np.append(0.0, step_m.cumsum())
    return np.asarray(np.interp(drive.time_s.numpy(), drive.time_s.numpy()[fix], way_m[fix]))


def _add_lags(products: Array, counts: Array, way_m: Array, off_db: Array) -> None:
    """Add one visit's products of two values, and how many these are, to those of their lag."""
    at_m = np.arange(way_m[0], way_m[-1], LAG_M)
    even_db = np.interp(at_m, way_m, off_db)
    for lag in range(min(len(products), len(even_db))):
        pairs = even_db[: len(even_db) - lag] * even_db[lag:]
        products[lag] += pairs.sum()
        counts[lag] += len(pairs)


def _sector_of(drive: Drive, plan: Sequence[Sector]) -> NDArray[np.int64]:
    """Number of the sector that serves in each row [n], -1 where the plan doesn't have it."""
    number = {sector.cell: n for n, sector in enumerate(plan) if sector.cell is not None}
    return np.array([number.get(cell, -1) for cell in drive.cell.tolist()], np.int64)


def _log_distances(
    drive: Drive, plan: Sequence[Sector], origin_deg: tuple[float, float]
) -> tuple[Array, Array]:
    """The lg of distances to the serving sector's antenna [n] (nan: unknown), its relative power [n]."""
    number = _sector_of(drive, plan)
    site_m = np.array([(sector.x_m, sector.y_m, sector.height_m - USER_M) for sector in plan])[number]
    east_m, north_m = place_m(drive.longitude_deg, drive.latitude_deg, origin_deg)
    flat_m = np.hypot(east_m.numpy() - site_m[:, 0], north_m.numpy() - site_m[:, 1])
    distance_m = np.maximum(np.hypot(flat_m, site_m[:, 2]), 1.0)
    return np.where(number >= 0, np.log10(distance_m), np.nan), np.array(relative_power_db(plan))[number]


def _joined(drives: Sequence[Drive], name: str) -> Array:
    """A column of all drives, the measured rows."""
    return np.concatenate([getattr(drive, name)[drive.measured].numpy() for drive in drives])


def _median(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")
