"""The urban grid: houses that hide, fields that decorrelate as the standard says, vehicles on their lines."""

import numpy as np
import pytest
import torch

from defiance.radio.tr38901 import UMI, Geometry
from defiance.scene.drop import normal_field
from defiance.scene.grid import PITCH_M, UrbanGrid, drives, line_of_sight, shadowing_amplitude, urban_grid
from defiance.scene.streets import ROUTE_SPACING_M
from defiance.seeding import stream

GRID = UrbanGrid((2, 2))


def test_streets_are_a_pitch_apart() -> None:
    assert GRID.east_m.tolist() == [-433.0, 0.0, 433.0] and GRID.north_m.tolist() == [-250.0, 0.0, 250.0]


def test_houses_hide_what_is_behind_them() -> None:
    """From a crossing: along both streets, and into the other street as far as the houses' corners allow."""
    site = np.array([[0.0, 0.0]])
    seen = {
        (433.0, 0.0): True,
        (0.0, -250.0): True,
        (200.0, 9.0): True,
        (200.0, 11.0): False,  # inside a house
        (433.0, 9.0): True,
        (433.0, 250.0): False,
        (10.0, 10.0): True,
        (-433.0, 11.0): False,  # hidden by the corner at (-10, 10)
    }
    sight = line_of_sight(GRID, site, np.array(list(seen)))[0]
    assert dict(zip(seen, sight.tolist(), strict=True)) == seen


def test_line_of_sight_is_mutual() -> None:
    rng = np.random.default_rng(0)
    places = np.stack([rng.uniform(-433, 433, 60), rng.choice(GRID.north_m, 60)], 1)
    sight = line_of_sight(GRID, places, places)
    assert np.array_equal(sight, sight.T) and 0.1 < sight.mean() < 0.9


def test_shadowing_decorrelates_exponentially() -> None:
    """Along a street, between grid points as on them: variance 1 and exp(-d / 10); noise about 0.02."""
    amplitude = shadowing_amplitude(512, 512, 10.0)
    fields = [normal_field(amplitude, stream(1, "f", n).generator())[:512, :512] for n in range(4)]
    shares = (0.0, 0.25, 0.5, 0.75)
    between = torch.stack([row[:, :-1] + share * row.diff(dim=1) for row in fields for share in shares])
    assert between.square().mean().item() == pytest.approx(1.0, abs=0.04)
    for lag in (5, 10, 20, 40):
        for axis in (1, 2):
            product = (between * between.roll(lag, axis)).narrow(axis, lag, 511 - lag).mean()
            assert product.item() == pytest.approx(np.exp(-lag / 10.0), abs=0.05)


def test_path_gain_is_that_of_the_street_canyon() -> None:
    """Along a street LOS, around the corner NLOS, with the table's shadowing around them."""
    scene = urban_grid(GRID, [(0.0, 0.0)], 3.5e9, stream(1, "scene"))
    gain = scene.path_gain_db[0]
    assert gain.shape == (501, 867) and scene.origin_m == (-433.0, -250.0)
    x = torch.arange(-433.0, 434.0)
    street = gain[250] + UMI.los_loss_db(Geometry(x.abs(), 1.5, 10.0, 3.5e9))
    assert street.std().item() == pytest.approx(UMI.los.sigma_db, rel=0.25) and abs(street.mean()) < 1.5
    far = torch.hypot(x[:300], torch.tensor(250.0))
    hidden = gain[500, :300] + UMI.nlos_loss_db(Geometry(far, 1.5, 10.0, 3.5e9))
    assert hidden.std().item() == pytest.approx(UMI.nlos.sigma_db, rel=0.4) and abs(hidden.mean()) < 6.0
    assert bool(scene.outdoor[250].all()) and not bool(scene.outdoor[100, 100])


def test_vehicles_keep_to_the_centre_lines() -> None:
    ways = drives(GRID, 40, 3000.0, np.random.default_rng(3)).astype(float)
    assert ways.shape == (40, int(3000 / ROUTE_SPACING_M) + 2, 2)
    step = np.abs(np.diff(ways, axis=1)).sum(-1)
    assert step.max() < ROUTE_SPACING_M + 1e-3
    off_east = np.abs(ways[..., :1] - GRID.east_m).min(-1)
    off_north = np.abs(ways[..., 1:] - GRID.north_m).min(-1)
    assert np.minimum(off_east, off_north).max() < 1e-3
    assert np.abs(ways[..., 0]).max() <= PITCH_M[0] and np.abs(ways[..., 1]).max() <= PITCH_M[1]


def test_vehicles_go_straight_on_every_other_time() -> None:
    """At the one crossing of four ways: 1/2, 1/4, 1/4 within four standard deviations."""
    ways = drives(GRID, 200, 6000.0, np.random.default_rng(4)).astype(float)
    straight = turned = 0
    for way in ways:
        near = np.flatnonzero(np.abs(way).sum(1) < ROUTE_SPACING_M)
        for point in near[(near > 5) & (near < len(way) - 6)]:
            if np.abs(way[point]).sum() <= np.abs(way[point - 1 : point + 2]).sum(1).min() + 1e-9:
                before, after = way[point] - way[point - 5], way[point + 5] - way[point]
                along = abs(float(before @ after)) > 0.8 * np.linalg.norm(before) * np.linalg.norm(after)
                straight, turned = straight + along, turned + (not along)
    n = straight + turned
    assert n > 300 and straight / n == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(n))
