"""Drops against Sionna's generator of TR 38.901 at the same places, heights and depths."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor

from defiance.network import reference
from defiance.network.settings import RadioConfig
from defiance.network.world import draw_drop_worlds
from defiance.radio.tr38901 import (
    UMA,
    UMI,
    Scenario,
    column_gain_db,
    element_gain_db,
    wall_penetration_db,
)
from defiance.scene.drop import AZIMUTHS_DEG, Drop, floor_height_m, render
from defiance.seeding import stream

CARRIER_HZ = 6e9  # the lowest at which Sionna doesn't fall back to the walls of table 7.4.3-3
DROPS, LINKS_PER_SITE = 2, 150
FLOORS = {"street": 0, "ground floor": 1, "above 13 m": 5}


@cache
def drops(scenario: Scenario) -> list[Drop]:
    storeys = max(FLOORS.values())
    return [
        render(scenario, CARRIER_HZ, stream(number, scenario.name), storeys=storeys, detail=8)
        for number in range(DROPS)
    ]


@cache
def links(scenario: Scenario, floor: int) -> dict[str, Tensor]:
    """What users anywhere within a spacing of each site find, `[DROPS * 19, LINKS_PER_SITE]`.

    The antenna's pattern is taken away from the loss, walls of the low-loss model are added. `los` lies
    between 0 and 1 where it differs between the grid points around.
    """
    rng = torch.Generator().manual_seed(1)
    found: dict[str, list[Tensor]] = {"way_m": [], "depth_m": [], "los": [], "loss_db": []}
    height_m = floor_height_m(scenario, floor)
    for drop in drops(scenario):
        draw = {"users": 1, "duration_s": 1.0, "load": 0.0, "demand_bps": 0.0}
        world = draw_drop_worlds(drop, RadioConfig(scatterers=1), [stream(1, "users")], **draw)
        maps = torch.cat([drop.gain_db[..., ::3], drop.los.float(), drop.depth_m[..., None]], -1)
        world = replace(world, gain_db=maps)
        for site, place_m in enumerate(drop.site_position_m[:, :2].double()):
            share, turn = torch.rand(2, LINKS_PER_SITE, generator=rng, dtype=torch.float64)
            least = (scenario.nearest_m / scenario.spacing_m) ** 2
            distance_m = scenario.spacing_m * (least + (1 - least) * share).sqrt()
            angle = 2 * torch.pi * turn
            way_m = distance_m[:, None] * torch.stack([torch.cos(angle), torch.sin(angle)], -1)
            floors = torch.full((LINKS_PER_SITE,), floor, dtype=torch.int32)
            here = reference.map_gain_db(world, place_m + way_m, floors)
            zenith_deg = torch.rad2deg(torch.atan2(distance_m, torch.tensor(height_m - scenario.station_m)))
            off_deg = torch.rad2deg(torch.atan2(way_m[:, 0], way_m[:, 1])) - AZIMUTHS_DEG[0]
            antenna_db = element_gain_db(zenith_deg, off_deg) + column_gain_db(zenith_deg, 102.0)
            found["way_m"].append(way_m)
            found["depth_m"].append(here[:, -1].double())
            found["los"].append(here[:, 19 + site])
            found["loss_db"].append(antenna_db - here[:, site])
    links = {name: torch.stack(values) for name, values in found.items()}
    if floor:
        normal = torch.randn(links["los"].shape, generator=rng)
        links["loss_db"] += wall_penetration_db(torch.zeros_like(normal).bool(), normal, CARRIER_HZ)
    return links


@cache
def theirs(scenario: Scenario, floor: int) -> dict[str, Tensor]:
    """Sionna's probability of line of sight, and its loss where the drop's states are given.

    Every link is a batch of its own with one station and one user, so that none are correlated.
    """
    ours = links(scenario, floor)
    way_m = ours["way_m"].flatten(0, 1)
    count = len(way_m)
    with torch.random.fork_rng(devices=[]):
        import sionna.phy
        from sionna.phy.channel import tr38901

        sionna.phy.config.seed = 1
        antenna = tr38901.PanelArray(1, 1, "single", "V", "omni", CARRIER_HZ)
        kind = {"uma": tr38901.UMaScenario, "umi": tr38901.UMiScenario}[scenario.name]
        built = kind(CARRIER_HZ, "low", antenna, antenna, "downlink", precision="double", spec_version="16.1")
        user_m = torch.cat([way_m, torch.full((count, 1), floor_height_m(scenario, floor))], -1)[:, None]
        station_m = torch.tensor([0.0, 0.0, scenario.station_m]).double().expand(count, 1, 3)
        built.set_topology(
            user_m,
            station_m,
            torch.zeros_like(user_m),
            torch.zeros_like(station_m),
            torch.zeros_like(user_m),
            torch.full((count, 1), floor > 0),
            ours["los"].flatten()[:, None, None] == 1,
            distance_2d_in=ours["depth_m"].flatten()[:, None],
        )
        generator = tr38901.LSPGenerator(built)
        generator.topology_updated_callback()
        drawn = generator()
    return {
        "probability": built.los_probability.view_as(ours["los"]),
        "loss_db": (drawn.pathloss - 10 * torch.log10(drawn.sf)).view_as(ours["los"]),
    }


CASES = [pytest.param(s, f, id=f"{s.name}, {name}") for s in (UMA, UMI) for name, f in FLOORS.items()]


@pytest.mark.parametrize(("scenario", "floor"), CASES)
def test_line_of_sight_is_as_likely_as_there(scenario: Scenario, floor: int) -> None:
    """In rings around the sites, whose fields are independent: their spread tells the error of the mean."""
    ours, probability = links(scenario, floor), theirs(scenario, floor)["probability"]
    distance_m = ours["way_m"].norm(dim=-1)
    for near, far in ((0.0, 0.4), (0.4, 0.7), (0.7, 1.0)):
        ring = (distance_m >= near * scenario.spacing_m) & (distance_m < far * scenario.spacing_m)
        excess = ((ours["los"].double() - probability) * ring).sum(-1) / ring.double().sum(-1).mean()
        error = float(excess.std()) / len(excess) ** 0.5
        assert error < 0.035 and abs(float(excess.mean())) < 4 * error


@pytest.mark.parametrize(("scenario", "floor"), CASES)
def test_loss_is_distributed_as_there(scenario: Scenario, floor: int) -> None:
    """Path loss, shadowing and walls in each state, less 30 lg d, so that distance doesn't hide the rest.

    Kolmogorov's distance stays below what equal distributions exceed once in 10,000 times. Near a site the
    pattern bends between grid points.
    """
    ours, sionna = links(scenario, floor), theirs(scenario, floor)
    distance_m = ours["way_m"].norm(dim=-1)
    slope_db = 30 * torch.log10(distance_m)
    for state in (1.0, 0.0):
        of_state = (ours["los"] == state) & (distance_m > 0.2 * scenario.spacing_m)
        a, b = ((of["loss_db"] - slope_db)[of_state].numpy() for of in (ours, sionna))
        assert ks_2samp(a, b).statistic < 2.23 * (2 / len(a)) ** 0.5
