"""Fits recover what made-up drives were made of, and are judged on drives that they never saw."""

from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
import torch
from scenes import small_scene
from test_drives import TRACES

from defiance.errors import DefianceError
from defiance.scene import gain_db
from defiance.scene.drive_fits import (
    by_cell,
    by_distance,
    by_scene,
    cell_statistics,
    fit_shadowing,
    held_out,
    log_distance,
)
from defiance.scene.drives import Drive, place_m, read_drives
from defiance.scene.sites import Sector

ORIGIN_DEG = (-8.5, 51.9)
PLAN = (
    Sector("a", 0.0, 0.0, 31.5, 0.0, 0.0, power_dbm=46.0, cell=7),
    Sector("b", 1500.0, 200.0, 21.5, 0.0, 0.0, power_dbm=40.0, cell=8),
)


def degrees(east_m: np.ndarray, north_m: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Longitude and latitude of places: `place_m` turned round."""
    east, north = (
        place_m(torch.tensor(at[0]), torch.tensor(at[1]), (0.0, ORIGIN_DEG[1]))
        for at in ((1.0, ORIGIN_DEG[1]), (0.0, ORIGIN_DEG[1] + 1.0))
    )
    return (
        ORIGIN_DEG[0] + torch.from_numpy(east_m) / east[0],
        ORIGIN_DEG[1] + torch.from_numpy(north_m) / north[1],
    )


def drive(
    name: str, east_m: np.ndarray, north_m: np.ndarray, cell: np.ndarray, rsrp_dbm: np.ndarray
) -> Drive:
    n = len(cell)
    longitude_deg, latitude_deg = degrees(east_m, north_m)
    nothing = torch.full((n,), torch.nan, dtype=torch.float64)
    return Drive(
        name=name,
        started=datetime(2026, 1, 1),
        row=torch.arange(2, n + 2),
        time_s=torch.arange(n, dtype=torch.float64),
        longitude_deg=longitude_deg,
        latitude_deg=latitude_deg,
        mode=("LTE",) * n,
        cell=torch.from_numpy(cell),
        speed_mps=nothing,
        rsrp_dbm=torch.from_numpy(rsrp_dbm),
        rsrq_db=nothing,
        snr_db=nothing,
        cqi=nothing,
        downlink_bps=nothing,
        uplink_bps=nothing,
        neighbour_rsrp_dbm=nothing,
        faults=(),
    )


def made_up(name: str, seed: int, sigma_db: float = 6.0, rows: int = 1600) -> Drive:
    """A straight road past both sites at 10 m/s, there and back; n = 3.5, shadowing correlated over 50 m."""
    rng = np.random.default_rng(seed)
    east_m = np.abs(np.arange(rows) * 10.0 % 8000.0 - 4000.0) - 1200.0
    north_m = np.full(rows, 50.0 + 30.0 * seed)
    cell = np.where(east_m < 900.0, 7, 8)
    site = np.array([[0.0, 0.0, 30.0], [1500.0, 200.0, 20.0]])[cell - 7]
    distance_m = np.sqrt((east_m - site[:, 0]) ** 2 + (north_m - site[:, 1]) ** 2 + site[:, 2] ** 2)
    keep, shadow = np.exp(-10.0 / 50.0), np.empty(rows)
    shadow[0] = rng.normal()
    for row in range(1, rows):
        shadow[row] = keep * shadow[row - 1] + np.sqrt(1 - keep**2) * rng.normal()
    power_db = np.where(cell == 7, 0.0, -6.0)
    return drive(
        name, east_m, north_m, cell, 10.0 - 35.0 * np.log10(distance_m) + power_db + sigma_db * shadow
    )


def test_the_law_and_the_shadowing_that_made_the_drives_are_found():
    drives = [made_up(f"drive {seed}", seed) for seed in range(4)]
    intercept_dbm, exponent = log_distance(drives, PLAN, ORIGIN_DEG)
    assert exponent == pytest.approx(3.5, abs=0.1) and intercept_dbm == pytest.approx(10, abs=3)
    shadowing = fit_shadowing(drives, by_distance(PLAN, ORIGIN_DEG)(drives))
    assert shadowing.sigma_db == pytest.approx(6.0, rel=0.05)
    assert shadowing.correlation_m == pytest.approx(50.0, rel=0.15)


def test_a_held_out_drive_is_as_far_off_as_its_shadowing_and_cells_know_less_than_places():
    drives = [made_up(f"drive {seed}", seed) for seed in range(4)]
    by_place = held_out(drives, by_distance(PLAN, ORIGIN_DEG))
    by_mean = held_out(drives, by_cell)
    for place, mean in zip(by_place, by_mean, strict=True):
        assert place.error_db == pytest.approx(6.0, rel=0.1) and place.known_share == 1.0
        assert place.error_db == pytest.approx(place.sigma_db, rel=0.1)
        assert place.distance_db < 1.5 < mean.error_db - place.error_db  # 16 km of road are 320 draws
        assert place.distance_db < mean.distance_db and place.step < 0.1


def test_the_distance_of_distributions_is_that_of_their_means_if_nothing_else_differs():
    """Drives of one cell with RSRP of -80 and, held out, -86: 6 dB apart, whatever the model."""
    nowhere = np.zeros(50), np.zeros(50), np.full(50, 7)
    quiet = [drive("a", *nowhere, np.full(50, -80.0)), drive("b", *nowhere, np.full(50, -86.0))]
    for one in held_out(quiet, by_cell):
        assert one.error_db == pytest.approx(6.0) and one.sigma_db == pytest.approx(0.0)
        assert one.distance_db == pytest.approx(6.0, abs=0.3) and one.step == pytest.approx(1.0)


def test_cells_that_only_the_held_out_drive_saw_are_unknown():
    cells = np.repeat([7, 8], 25)
    drives = [
        drive("a", np.zeros(50), np.zeros(50), np.full(50, 7), np.full(50, -80.0)),
        drive("b", np.zeros(50), np.zeros(50), cells, np.full(50, -80.0)),
    ]
    assert [one.known_share for one in held_out(drives, by_cell)] == [1.0, 0.5]
    with pytest.raises(DefianceError, match="needs another one to learn from"):
        held_out(drives[:1], by_cell)
    with pytest.raises(DefianceError, match="never served by cells of the plan"):
        log_distance(drives, [replace(PLAN[0], cell=99)], ORIGIN_DEG)


def test_a_scene_is_fitted_by_a_constant():
    """Drives that measured the scene's gain less 12 dB: nothing is left over."""
    scene = small_scene()
    plan = [Sector(f"s{n}", 0.0, 0.0, 25.0, 0.0, 0.0, cell=70 + n) for n in range(3)]
    east_m, north_m = np.linspace(-15, 5, 40), np.linspace(12, 28, 40)
    gains_db = gain_db(scene, torch.from_numpy(np.stack([east_m, north_m], 1))).double().numpy()
    drives = [
        drive(name, east_m, north_m, np.full(40, 70 + n), gains_db[:, n] - 12.0)
        for n, name in enumerate(("a", "b"))
    ]
    model = by_scene(scene, plan, ORIGIN_DEG)
    for one in held_out(drives, model):
        assert one.error_db < 0.01 and one.known_share == 1.0
    beyond = drive("c", east_m + 500, north_m, np.full(40, 70), gains_db[:, 0])
    assert np.isnan(model(drives)(beyond)).all()


def test_statistics_of_cells_count_rows_drives_and_arrivals():
    rsrp_dbm = np.array([-70.0, -80.0, -90.0, -100.0, -60.0])
    one = drive("a", np.zeros(5), np.zeros(5), np.array([7, 7, 8, 7, 7]), rsrp_dbm)
    two = drive("b", np.zeros(1), np.zeros(1), np.array([8]), np.array([-95.0]))
    first, second = cell_statistics([one, two])
    assert (first.cell, first.rows, first.drives, first.arrivals) == (7, 4, 1, 1)
    assert (second.cell, second.rows, second.drives, second.arrivals) == (8, 2, 2, 1)
    assert first.rsrp_mean_dbm == pytest.approx(-77.5) and second.rsrp_sd_db == pytest.approx(2.5)


def test_measured_drives_of_cork_by_cell():
    if not TRACES.is_dir():
        pytest.skip(f"no data: {TRACES}")
    drives = read_drives(TRACES)
    assert len(cell_statistics(drives)) == 102
    judged = held_out(drives, by_cell)
    assert len(judged) == 15  # one drive saw no LTE
    rows = np.array([one.rows for one in judged])
    by_cells, pooled = (
        float(np.average([getattr(one, name) for one in judged], weights=rows))
        for name in ("distance_db", "pooled_distance_db")
    )
    assert by_cells < pooled and 2 < by_cells < 3
