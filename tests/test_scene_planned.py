"""A plan over TR 38.901's statistics: path loss, pattern, power and carrier are those of the formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes import blocks, small_scene

from defiance.errors import DefianceError
from defiance.radio.tr38901 import RMA, UMA, UMI, Geometry, Shadowing, column_gain_db, element_gain_db
from defiance.scene.drop import between_points, torus_grid
from defiance.scene.planned import planned_scene
from defiance.scene.sites import Sector
from defiance.seeding import stream

PLAN = (Sector("a", 0.0, 0.0, 30.0, 0.0, 6.0), Sector("a", 0.0, 0.0, 30.0, 120.0, 10.0))
CALM = replace(RMA, los=Shadowing(0.0, 37.0), nlos=Shadowing(0.0, 120.0), los_beyond_db=0.0)


def places_m(scene):
    rows, cols = scene.outdoor.shape
    east = scene.origin_m[0] + torch.arange(cols) * scene.resolution_m
    north = scene.origin_m[1] + torch.arange(rows) * scene.resolution_m
    return torch.meshgrid(north, east, indexing="ij")[::-1]


def test_without_shadowing_a_place_has_one_of_the_two_losses_and_the_sectors_pattern():
    scene = planned_scene(PLAN, CALM, stream(1, "plan"), name="plain")
    east_m, north_m = places_m(scene)
    distance_m = torch.hypot(east_m, north_m)
    zenith_deg = 90 + torch.rad2deg(torch.atan((30 - 1.5) / distance_m))
    azimuth_deg = torch.rad2deg(torch.atan2(east_m, north_m))
    far = distance_m > 50
    losses = [
        CALM.los_loss_db(Geometry(distance_m, 1.5, 30.0, 3.5e9))[far],
        CALM.nlos_loss_db(Geometry(distance_m, 1.5, 30.0, 3.5e9))[far],
    ]
    for cell, sector in enumerate(PLAN):
        pattern_db = element_gain_db(zenith_deg, azimuth_deg - sector.azimuth_deg)
        pattern_db = pattern_db + column_gain_db(zenith_deg, 90 + sector.tilt_deg)
        lost_db = pattern_db[far] - scene.path_gain_db[cell][far]
        apart_db = torch.minimum((lost_db - losses[0]).abs(), (lost_db - losses[1]).abs())
        assert apart_db.quantile(0.99) < 0.1  # float32 angles; nulls of the column are steep
    assert float(scene.path_gain_db.max()) == pytest.approx(-60, abs=20)


def test_sight_is_as_probable_as_the_standard_says_and_shadowing_as_strong():
    """Between 100 and 200 m, many sites: the share in sight, and the spread about the loss."""
    plan = tuple(Sector(f"s{n}", 150.0 * (n % 4), 150.0 * (n // 4), 10.0, 0.0, 0.0) for n in range(16))
    field = small_scene(outdoor=np.full((91, 91), True), resolution_m=8.0)
    field = replace(field, origin_m=(-135.0, -135.0))
    quiet = replace(UMI, los=Shadowing(0.0, 10.0), nlos=Shadowing(0.0, 13.0), los_beyond_db=0.0)
    seed = stream(2, "plan")
    scenes = [planned_scene(plan, scenario, seed, name="f", terrain=field) for scenario in (quiet, UMI)]
    east_m, north_m = places_m(scenes[0])
    spread, seen, expected = [], [], []
    for cell, sector in enumerate(plan):
        distance_m = torch.hypot(east_m - sector.x_m, north_m - sector.y_m)
        ring = (distance_m > 100) & (distance_m < 200)
        calm_db = scenes[0].path_gain_db[cell]
        los_db = UMI.los_loss_db(Geometry(distance_m, 1.5, 10.0, 3.5e9))
        nlos_db = UMI.nlos_loss_db(Geometry(distance_m, 1.5, 10.0, 3.5e9))
        middle_db = _pattern_db(east_m - sector.x_m, north_m - sector.y_m) - (los_db + nlos_db) / 2
        sight = calm_db > middle_db
        seen.append(sight[ring].double().mean())
        expected.append(UMI.los_probability(distance_m, 1.5)[ring].double().mean())
        hidden = ring & ~sight
        spread.append((scenes[1].path_gain_db[cell] - calm_db)[hidden])
    assert torch.stack(seen).mean().item() == pytest.approx(torch.stack(expected).mean().item(), abs=0.06)
    # Grid points are scaled up so that places between them have the table's spread on average.
    offset_m = torus_grid(2, 2, 2 * scenes[1].resolution_m * torch.eye(2, dtype=torch.float64))
    at_points_db = 7.82 / between_points(offset_m, 13.0) ** 0.5
    assert torch.cat(spread).std().item() == pytest.approx(at_points_db, rel=0.1)


def _pattern_db(east_m, north_m):
    zenith_deg = 90 + torch.rad2deg(torch.atan(8.5 / torch.hypot(east_m, north_m)))
    azimuth_deg = torch.rad2deg(torch.atan2(east_m, north_m))
    return element_gain_db(zenith_deg, azimuth_deg) + column_gain_db(zenith_deg, 90.0)


def test_power_and_carrier_are_in_the_gain():
    loud = tuple(replace(sector, power_dbm=46.0 - 6 * n) for n, sector in enumerate(PLAN))
    low = tuple(replace(sector, carrier_mhz=700.0) for sector in PLAN)
    field = small_scene(outdoor=np.full((61, 61), True), resolution_m=20.0)
    base, power, carrier = (
        planned_scene(plan, CALM, stream(1, "plan"), name="f", terrain=replace(field, origin_m=(0.0, 0.0)))
        for plan in (PLAN, loud, low)
    )
    base, power, carrier = (scene.path_gain_db for scene in (base, power, carrier))
    torch.testing.assert_close(power[0], base[0])
    torch.testing.assert_close(power[1], base[1] - 6)
    assert (carrier - base).median().item() == pytest.approx(20 * 0.699, abs=0.3)  # lg(3.5/0.7)


def test_a_plan_over_a_citys_streets_keeps_them_and_one_seed_is_one_scene():
    city = small_scene(outdoor=blocks(40, 50, 10, 4))
    plan = (Sector("roof", 10.0, 40.0, 25.0, 45.0, 8.0),)
    first, again, other = (
        planned_scene(plan, UMA, stream(seed, "plan"), name="mine", terrain=city) for seed in (1, 1, 2)
    )
    assert first.outdoor.equal(city.outdoor) and first.origin_m == city.origin_m
    assert first.path_gain_db.equal(again.path_gain_db) and not first.path_gain_db.equal(other.path_gain_db)
    assert "made up" in first.attribution and first.cell_site.tolist() == [0]
    with pytest.raises(DefianceError, match=r"site far at \(9000, 40\) lies off the terrain small"):
        planned_scene(
            (replace(plan[0], site="far", x_m=9000.0),), UMA, stream(1, "plan"), name="m", terrain=city
        )
