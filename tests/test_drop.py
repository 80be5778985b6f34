"""Drops of TR 38.901: the torus, its fields, and users on them."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.network import reference
from defiance.network.settings import RadioConfig
from defiance.network.state import initial
from defiance.network.world import World, draw_drop_worlds
from defiance.radio.tr38901 import (
    INDOOR_DB_PER_M,
    INH,
    RMA,
    UMA,
    UMI,
    Geometry,
    Scenario,
    column_gain_db,
    element_gain_db,
    wall_loss_db,
)
from defiance.scene.drop import (
    AZIMUTHS_DEG,
    Drop,
    SiteGain,
    between_points,
    field_amplitude,
    floor_height_m,
    nearest_image,
    normal_field,
    render,
    torus_grid,
)
from defiance.seeding import stream


@cache
def small(name: str) -> Drop:
    scenario = {"uma": UMA, "umi": UMI, "rma": RMA, "inh": INH}[name]
    storeys = min(1, scenario.storeys)
    return render(scenario, 3.5e9, stream(1, name), storeys=storeys, detail=6)


def from_sites_m(drop: Drop) -> Tensor:
    """Shortest ways from every site to every grid point, `[rows, cols, sites, 2]`."""
    _, rows, columns, _ = drop.gain_db.shape
    assert drop.lattice_m is not None
    ways = torus_grid(rows, columns, drop.lattice_m)[:, :, None] - drop.site_position_m[:, :2].double()
    return nearest_image(ways, drop.lattice_m)


# --- the torus ---


def test_every_site_has_six_neighbours_and_twelve_behind_them() -> None:
    drop = small("umi")
    assert drop.lattice_m is not None and len(drop.site_position_m) == 19
    site_m = drop.site_position_m[:, :2].double()
    distance_m = nearest_image(site_m[:, None] - site_m, drop.lattice_m).norm(dim=-1) / 200
    for row in distance_m.sort(-1).values:
        rings = [0.0] + [1.0] * 6 + [math.sqrt(3)] * 6 + [2.0] * 6
        assert row.tolist() == pytest.approx(rings, abs=1e-6)


def test_torus_holds_nineteen_hexagons() -> None:
    lattice_m = small("uma").lattice_m
    assert lattice_m is not None
    assert float(torch.linalg.det(lattice_m)) == pytest.approx(19 * math.sqrt(3) / 2 * 500**2)
    assert lattice_m.norm(dim=-1).tolist() == pytest.approx([math.sqrt(19) * 500] * 2)


def test_every_sector_looks_at_a_neighbouring_site() -> None:
    """Sectors are hexagons with the site at a corner (R1-165974's layout)."""
    drop = small("uma")
    assert drop.lattice_m is not None
    bearing = torch.deg2rad(drop.azimuth_deg.double())
    ahead_m = 500 * torch.stack([torch.sin(bearing), torch.cos(bearing)], -1)
    site_m = drop.site_position_m[:, :2].double()
    there_m = site_m[drop.cell_site] + ahead_m
    missed_m = nearest_image(there_m[:, None] - site_m, drop.lattice_m).norm(dim=-1).amin(-1)
    assert missed_m.max() < 0.01


# --- fields ---


def test_fields_are_normal_and_correlate_exponentially() -> None:
    """400 fields of 40 x 40 points: with 9 independent patches each, 5 standard deviations are 0.09."""
    lattice_m = torch.tensor([[200.0, 0.0], [100.0, 173.2]], dtype=torch.float64)
    grid_m = nearest_image(torus_grid(40, 40, lattice_m), lattice_m)
    amplitude = field_amplitude(grid_m, 15.0)
    rng = torch.Generator().manual_seed(1)
    fields = torch.stack([normal_field(amplitude, rng) for _ in range(400)])
    assert float(fields.mean()) == pytest.approx(0, abs=0.03)
    assert float(fields.var()) == pytest.approx(1, abs=0.03)
    for row, column in ((0, 1), (1, 0), (0, 4), (3, -3), (39, 0)):
        distance_m = float(grid_m[row, column].norm())
        got = float((fields[:, 0, 0] * fields[:, row, column]).mean())
        mean = float((fields * torch.roll(fields, (-row, -column), (1, 2))).mean())
        assert mean == pytest.approx(math.exp(-distance_m / 15), abs=0.03)
        assert got == pytest.approx(math.exp(-distance_m / 15), abs=0.25)


def changes_per_m(size: int, power: float) -> float:
    """How often the sign of a field with D = 50 m changes along the rows of a map of 800 m."""
    lattice_m = 800 * torch.eye(2, dtype=torch.float64)
    grid_m = nearest_image(torus_grid(size, size, lattice_m), lattice_m)
    amplitude = field_amplitude(grid_m, 50.0, power=power)
    rng = torch.Generator().manual_seed(1)
    positive = torch.stack([normal_field(amplitude, rng) > 0 for _ in range(100)])
    changed = positive != torch.roll(positive, 1, -1)
    return float(changed.float().mean()) * size / 800


def test_how_often_sight_changes_is_not_a_matter_of_the_maps_pitch() -> None:
    """Rice's rate sqrt(2) / (pi D) at 10 and 5 m; 100 maps have 60,000 changes, of which few are independent.

    An exponential correlation's changes grow as the root of the number of points.
    """
    rates = [changes_per_m(80, 2.0), changes_per_m(160, 2.0)]
    assert rates == pytest.approx([math.sqrt(2) / (math.pi * 50)] * 2, rel=0.03)
    assert changes_per_m(160, 1.0) / changes_per_m(80, 1.0) == pytest.approx(math.sqrt(2), rel=0.05)


def test_variance_between_points_is_the_bilinear_mean() -> None:
    grid_m = torus_grid(10, 10, torch.tensor([[50.0, 0.0], [25.0, 43.3]], dtype=torch.float64))
    corner = [grid_m[0, 0], grid_m[0, 1], grid_m[1, 0], grid_m[1, 1]]
    covariance = torch.stack(
        [torch.stack([torch.exp(-(a - b).norm() / 7.0) for a in corner]) for b in corner]
    )
    f = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    fy, fx = torch.meshgrid(f, f, indexing="ij")
    weight = torch.stack([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx])
    expected = torch.einsum("iab,ij,jab->ab", weight, covariance, weight).mean()
    assert between_points(grid_m, 7.0) == pytest.approx(float(expected), abs=1e-5)


# --- the map ---


@pytest.mark.parametrize("name", ["uma", "umi", "rma"])
def test_shadowing_has_the_tables_mean_spread_and_is_shared_by_sectors(name: str) -> None:
    """Path loss and antenna taken away by hand, what is left is zero on average and spreads by sigma.

    Fields of correlation distance D over area A are as good as A / (2 pi D^2) independent ones per site.
    """
    drop = small(name)
    scenario = drop.scenario
    way_m = from_sites_m(drop)
    distance_m = way_m.norm(dim=-1).clamp(min=1)
    _, rows, columns, _ = drop.gain_db.shape
    for floor, sigma_db in ((0, scenario.nlos.sigma_db), (1, scenario.o2i.sigma_db)):
        height_m = floor_height_m(scenario, floor)
        gain_db = drop.gain_db[floor].view(rows, columns, 19, 3)
        zenith_deg = torch.rad2deg(
            torch.atan2(distance_m, torch.tensor(height_m - scenario.station_m).double())
        )
        east_deg = torch.rad2deg(torch.atan2(way_m[..., 0], way_m[..., 1]))
        off_deg = east_deg[..., None] - torch.tensor(AZIMUTHS_DEG)
        antenna_db = (
            element_gain_db(zenith_deg[..., None], off_deg) + column_gain_db(zenith_deg, 102.0)[..., None]
        )
        lost_db = antenna_db - gain_db - INDOOR_DB_PER_M * drop.depth_m[floor, ..., None, None]
        alike = (lost_db[..., 0] - lost_db[..., 2]).abs() < 1e-3
        assert alike.float().mean() > 0.99  # but where two images of a site are equally far
        nlos = alike & ~drop.los[floor]
        loss_db = scenario.nlos_loss_db(Geometry(distance_m, height_m, scenario.station_m, drop.carrier_hz))
        left_db = (lost_db[..., 0] - loss_db)[nlos]
        correlation_m = scenario.o2i.correlation_m if floor else scenario.nlos.correlation_m
        patches = nlos.sum().item() * min(1.0, drop.resolution_m**2 / (2 * math.pi * correlation_m**2))
        grid_m = nearest_image(torus_grid(rows, columns, drop.lattice_m), drop.lattice_m)
        expected_db = sigma_db / between_points(grid_m, correlation_m) ** 0.5
        error = 5 * expected_db / math.sqrt(patches)
        assert float(left_db.mean()) == pytest.approx(0, abs=error)
        assert float(left_db.std()) == pytest.approx(expected_db, abs=error)


@pytest.mark.parametrize(("name", "most_m"), [("uma", 25.0), ("umi", 25.0), ("rma", 10.0)])
def test_indoor_depth_is_the_lesser_of_two_uniform_draws(name: str, most_m: float) -> None:
    """P(depth > x) = (1 - x / most)^2 on storeys; UMi has 660 patches of pi D^2 / 2, the others more."""
    outdoors, indoors = small(name).depth_m
    assert not outdoors.any() and 0 <= indoors.min() and indoors.max() <= most_m
    for share in (0.1, 0.3, 0.5, 0.8):
        expected = (1 - share) ** 2
        spread = 5 * math.sqrt(expected * (1 - expected) / 660)
        assert (indoors > share * most_m).double().mean().item() == pytest.approx(expected, abs=spread)


def test_line_of_sight_ends_at_the_wall_and_every_metre_behind_it_is_lost() -> None:
    """The same draws with and without depth, at quantiles between the probabilities of both."""
    way_m = torch.tensor([[[60.0, 0.0], [0.0, 20.0], [-45.0, 0.0]]])
    site = SiteGain.around(UMI, 6e9, 1, way_m, tilts_deg=[102.0] * 3)
    depth_m, none = torch.tensor([[10.0, 2.0, 12.0]]), torch.zeros(1, 3)
    near, far = (UMI.los_probability(way_m.norm(dim=-1) - d, 1.5) for d in (depth_m, none))
    between = torch.special.ndtri((near + far) / 2)
    (open_db, hidden), (inside_db, seen) = (site.drawn(between, none, none, d) for d in (none, depth_m))
    assert not hidden.any() and seen.all()
    gained_db = (site.nlos_loss_db - site.los_loss_db - 0.5 * depth_m)[..., None].expand(-1, -1, 3)
    torch.testing.assert_close(inside_db - open_db, gained_db, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["uma", "umi", "rma"])
def test_line_of_sight_is_as_likely_as_the_table_says(name: str) -> None:
    """In rings around the sites; 19 sites with patches of the LOS correlation distance."""
    drop = small(name)
    distance_m = from_sites_m(drop).norm(dim=-1)
    scenario = drop.scenario
    for near, far in ((0.1, 0.2), (0.2, 0.4), (0.4, 0.8)):
        ring = (distance_m >= near * scenario.spacing_m) & (distance_m < far * scenario.spacing_m)
        expected = scenario.los_probability(distance_m[ring], 1.5).mean().item()
        area_m2 = math.pi * (far**2 - near**2) * scenario.spacing_m**2
        patches = 19 * max(1.0, area_m2 / (2 * math.pi * scenario.los_correlation_m**2))
        spread = 5 * math.sqrt(expected * (1 - expected) / patches)
        assert drop.los[0][ring].float().mean().item() == pytest.approx(expected, abs=spread)


def test_a_drop_is_its_streams_own() -> None:
    again = render(UMI, 3.5e9, stream(1, "umi"), storeys=1, detail=6)
    other = render(UMI, 3.5e9, stream(2, "umi"), storeys=0, detail=6)
    assert torch.equal(again.gain_db, small("umi").gain_db)
    assert not torch.equal(other.gain_db[0], again.gain_db[0])


def test_office_is_open_to_its_walls() -> None:
    drop = small("inh")
    assert drop.gain_db.shape == (1, 101, 241, 36) and drop.lattice_m is None
    place_m = torch.stack(
        torch.meshgrid(torch.arange(101) / 2, torch.arange(241) / 2, indexing="ij")[::-1], -1
    )
    distance_m = (place_m[:, :, None] - drop.site_position_m[:, :2]).norm(dim=-1)
    assert bool(drop.los[0][distance_m < 5].all())  # table 7.4.2-1
    assert 0 < drop.los.float().mean() < 1
    assert bool(drop.gain_db.isfinite().all())


@pytest.mark.parametrize(
    ("scenario", "numbers", "message"),
    [
        (UMA, {"carrier_hz": 0.3e9}, "carrier_hz"),
        (UMI, {"storeys": 9}, "storeys"),
        (INH, {"storeys": 1}, "storeys"),
        (RMA, {"detail": 1}, "detail"),
    ],
)
def test_what_the_standard_does_not_cover_is_refused(
    scenario: Scenario, numbers: dict[str, float], message: str
) -> None:
    with pytest.raises(DefianceError, match=message):
        render(scenario, **({"carrier_hz": 6e9, "stream": stream(1, "x")} | numbers))  # type: ignore[arg-type]


# --- users ---


@cache
def dropped(name: str, users: int = 4000):
    draw = {"users": users, "duration_s": 20.0, "load": 1.0, "demand_bps": 1e6}
    return draw_drop_worlds(small(name), RadioConfig(scatterers=4), [stream(1, "world")], **draw)


def test_users_are_dropped_as_tables_7_2_say() -> None:
    """80 % indoors, on storey 1 ... n of 4 ... 8, nobody next to a site; bounds of 5 standard deviations."""
    drop = replace(small("umi"), gain_db=small("umi").gain_db[:1].expand(9, -1, -1, -1))
    draw = {"users": 4000, "duration_s": 1.0, "load": 1.0, "demand_bps": 1e6}
    world = draw_drop_worlds(drop, RadioConfig(scatterers=4), [stream(1, "world")], **draw)
    indoor = world.floor > 0
    assert indoor.float().mean().item() == pytest.approx(0.8, abs=0.032)
    share = [(world.floor == n).float().sum().item() / indoor.sum().item() for n in range(1, 9)]
    expected = [sum(1 / h for h in range(max(4, n), 9)) / 5 for n in range(1, 9)]
    assert share == pytest.approx(expected, abs=0.035)
    site_m = drop.site_position_m[:, :2].double()
    assert drop.lattice_m is not None
    offset_m = nearest_image(world.route_m[0, :, 0, None].double() - site_m, drop.lattice_m)
    nearest_m = offset_m.norm(dim=-1).amin(-1)
    assert nearest_m.min() >= 10 and nearest_m.max() <= 200 / math.sqrt(3) + 1e-3
    inner = (nearest_m < 100).double().mean().item()  # a disc inside each hexagon
    area = (math.pi * (100**2 - 10**2)) / (math.sqrt(3) / 2 * 200**2 - math.pi * 10**2)
    assert inner == pytest.approx(area, abs=0.03)


def test_walls_cars_and_open_air() -> None:
    world = dropped("umi")
    indoor = world.floor > 0
    assert bool((world.loss_db[~indoor] == 0).all())
    walls = [wall_loss_db("low", 3.5e9), wall_loss_db("high", 3.5e9)]
    assert world.loss_db[indoor].mean().item() == pytest.approx(sum(walls) / 2, abs=1.0)
    cars = dropped("rma")
    assert cars.loss_db[cars.floor == 0].mean().item() == pytest.approx(9.0, abs=0.6)
    assert cars.loss_db[cars.floor == 0].std().item() == pytest.approx(5.0, abs=0.4)
    assert (cars.floor > 0).float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert bool((dropped("inh").loss_db == 0).all())


def test_users_go_straight_on_and_stay_in_the_office() -> None:
    steps = dropped("umi").route_m.diff(dim=2)
    torch.testing.assert_close(steps.norm(dim=-1), torch.full(steps.shape[:3], 2.0), rtol=0, atol=1e-3)
    assert steps.std(dim=2).max() < 1e-3
    office = dropped("inh").route_m
    assert bool(((office >= 0) & (office <= torch.tensor([120.0, 50.0]))).all())


@pytest.mark.parametrize("name", ["uma", "inh"])
def test_many_users_are_the_same_but_numbered_as_the_map_lies(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = dropped(name, 500)
    monkeypatch.setattr("defiance.network.world.CACHED_USERS", 499)
    ordered = dropped.__wrapped__(name, 500)

    def users(world: World) -> list[tuple[float, ...]]:
        parts = world.floor[0, :, None], world.loss_db[0, :, None], world.speed_mps[0, :, None]
        return [tuple(user) for user in torch.cat([*parts, world.route_m[0].flatten(1)], 1).tolist()]

    assert users(drawn) != users(ordered)
    assert sorted(users(drawn)) == sorted(users(ordered))
    for unordered in ("fading_direction", "fading_phase", "background_load", "key"):
        assert torch.equal(getattr(drawn, unordered), getattr(ordered, unordered))

    def apart(world: World) -> float:
        """Mean distance between users who follow each other on one storey."""
        way_m = world.route_m[0, :, 0].double().diff(dim=0)
        if world.lattice_m is not None:
            way_m = nearest_image(way_m, world.lattice_m)
        return way_m.norm(dim=-1)[world.floor[0].diff() == 0].mean().item()

    assert apart(ordered) < 0.5 * apart(drawn)


def test_a_place_is_the_same_for_whoever_returns() -> None:
    """Round the torus and back: the same gain; another storey is another place."""
    drop, world = small("umi"), dropped("umi", 50)
    assert drop.lattice_m is not None
    place = world.route_m[:, :, 0].double()
    here = reference.path_gain_db(world, place)
    torch.testing.assert_close(
        reference.path_gain_db(world, place + drop.lattice_m.sum(0)), here, rtol=0, atol=0.02
    )
    upstairs = reference.path_gain_db(replace(world, floor=1 - world.floor), place)
    assert float((upstairs - here).abs().mean()) > 1


def test_sinr_of_the_step_is_sionnas_geometry() -> None:
    """All cells fully loaded, no fading: Sionna's calibration metric of the same coupling gains."""
    world, users = dropped("umi", 50), 50
    still = torch.zeros(1, users, 57, 1, dtype=torch.int16)
    world = replace(world, fading_direction=still, fading_phase=still)
    config = RadioConfig(noise_figure_db=9.0)
    gain_db = reference.path_gain_db(world, world.route_m[:, :, 0])
    state = reference.step(
        replace(world, speed_mps=torch.zeros(1, users)), initial(world, config, gain_db.argmax(-1)), config
    )
    with torch.random.fork_rng(devices=[]):
        import sionna.sys

        loss_db = sionna.sys.coupling_loss_db(gain_db, precision="double")
        theirs = sionna.sys.geometry_sinr_db(loss_db, 44.0, 20e6, 9.0, precision="double")
    ours = 10 * torch.log10(state.sinr).double()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.03)  # 290 K against -174 dBm/Hz: 0.025 dB
