"""The study `training` at toy size: every effect runs, and is compared with plain FedAvg."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from inline import here

from defiance.errors import DefianceError
from defiance.kpm import Row, Sheet
from defiance.learn.environment import Environment
from defiance.learn.federation import Server
from defiance.learn.partition import LocalData
from defiance.link import BackhaulLink
from defiance.parts import Parts
from defiance.report.training import sections
from defiance.studies import Silent, Workers, pool, training
from defiance.studies.training import experiments, sheet
from defiance.studies.training.effects import BASE, Place, dealt, effects
from defiance.studies.training.lessons import lesson, recorded
from defiance.studies.training.settings import Config, Recipe

SMALL = Recipe(rounds=3, steps=2, batch=8, width=8)


@pytest.fixture(scope="module")
def place() -> Place:
    wire = BackhaulLink(1e9, 5e-3, energy_j_per_bit=1e-8)
    distance_m = torch.cdist(*[torch.rand(7, 2, generator=torch.Generator().manual_seed(1))] * 2)
    return Place(torch.arange(1, 8) * 100, distance_m, 1e-3, wire, 0.1)


def test_every_effect_differs_from_plain_fedavg_in_what_it_says(place: Place) -> None:
    found = effects(place)
    plain = found[BASE]
    assert isinstance(plain.regime, Server) and plain.regime == Server() and plain.data == "own"
    assert len(found) >= 38
    for name, effect in found.items():
        assert name == BASE or repr(effect) != repr(plain), name
    assert found["stragglers", "fedavg"].environment.straggling > 0
    assert found["slow backhaul", "fedavg"].environment.links.up.rate_bps == 1e7
    assert found["own cells", "fedprox"].proximal > 0
    for world in ("slow backhaul", "lossy links"):  # bits cost the same everywhere
        up = found[world, "fedavg"].environment.links.up
        assert 1e-8 in (getattr(up, "energy_j_per_bit", 0), getattr(up, "tx_energy_j_per_bit", 0))


@pytest.mark.parametrize("nodes", [4, 6, 7])
def test_every_station_is_there_sometimes(place: Place, nodes: int) -> None:
    some = replace(place, samples=place.samples[:nodes], distance_m=place.distance_m[:nodes, :nodes])
    there = effects(some)["come and go", "fedavg"].environment.availability
    assert there is not None and there.there.shape[1] == nodes
    assert torch.equal(there.there.sum(0), torch.full((nodes,), 2)) and len(there.there) == 3


def test_a_liar_reverses_its_update_and_a_broken_station_sends_none(place: Place) -> None:
    update = torch.ones(7, 3)
    lied = effects(place)["a liar", "fedavg"].environment.corrupt(torch.arange(7), update)
    assert torch.equal(lied[:6], update[:6]) and bool((lied[6] < -1).all())
    broken = effects(place)["a broken station", "fedavg"].environment.corrupt(torch.arange(7), update)
    assert bool(broken[6].isnan().all()) and torch.equal(broken[:6], update[:6])
    assert isinstance(effects(place)["a liar", "fedavg"].environment, Environment)


@pytest.fixture(scope="module")
def config(city: Path) -> Config:
    return Config(
        functions=("handover",), scene=str(city / "munich.npz"), speed_kmh=30.0, worlds=1, users=30,
        duration_s=25.0, handover=SMALL, beams=SMALL, csi=SMALL, beam_users=200, places=10,
        compute_share=5e-4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def made(config: Config, parts: Parts) -> Iterator[Sheet]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "workers", here)
        yield training.run(config, seeds=(0, 1), parts=parts, progress=Silent(), workers=Workers(1))


def network(sheet: Sheet, candidate: str, regime: str, metric: str) -> Row:
    return sheet.value(metric, candidate=candidate, regime=regime, node="network")


def test_who_judges_neither_trains_nor_chooses(config: Config, parts: Parts) -> None:
    """Groups (users, or walks) are drawn anew with each seed, and no sample does two things."""
    kept = recorded(config, "handover", parts)
    numbered = {"0": torch.arange(len(kept["group"])), "1": kept["2"], "2": kept["2"], "group": kept["group"]}
    own = Parts(parts.folder / "numbered")
    own.put_tensors("recorded/handover", numbered)
    seen = []
    for seed in (0, 1):
        what = lesson(config, "handover", seed, own)
        users = [
            set(kept["group"][data.columns[0]].tolist()) for data in (what.own, what.choosing, what.judging)
        ]
        assert not users[0] & users[1] and not users[1] & users[2] and not users[0] & users[2]
        assert len(users[0]) > 2 * len(users[2]) >= 2
        seen.append(users[2])
    assert seen[0] != seen[1]


@pytest.mark.parametrize(
    ("function", "recipe"),
    [("beams", Recipe(12, 5, 32, 5e-3, 48)), ("csi", Recipe(6, 2, 4, 5e-3, 12))],
)
def test_beams_and_feedback_are_learned_by_the_stations_of_a_city(
    config: Config, parts: Parts, function: Literal["beams", "csi"], recipe: Recipe
) -> None:
    """A few steps lower the loss, and what central training sends is the samples and one model for each."""
    longer = replace(config, beams=recipe, csi=recipe)
    what = lesson(longer, function, 0, parts)
    assert what.nodes >= 3 and what.distance_m.shape == (what.nodes, what.nodes)
    assert bool((what.distance_m + torch.eye(what.nodes) > 0).all())
    found = experiments.train(longer, function, ("own cells", "central"), 0, parts)
    assert min(found["lost"]) < 0.95 * found["lost"][0]
    raw = int(what.own.count.sum()) * what.sample_bits
    assert raw < found["bits"][0] < 1.1 * raw and found["bits"][0] == found["bits"][-2]
    assert found["ended_s"] == sorted(found["ended_s"]) and found["links_j"] > 0
    assert 0 < found["performance"] < 1


def test_the_sheet_has_every_effect_with_its_paired_size(made: Sheet) -> None:
    gains = [row for row in made.select(metric="performance_gain") if row.candidate != "rush hour"]
    assert len(gains) >= 38 and all(gain.n == 2 for gain in gains)
    assert network(made, *BASE, "performance_gain").mean == 0.0
    base = network(made, *BASE, "performance").mean
    for gain in gains:
        own = network(made, gain.candidate, gain.regime, "performance").mean
        assert gain.mean == pytest.approx(own - base, abs=1e-9)
    assert "not resolved" in made.verdict and "FedAvg" in made.verdict
    assert {curve.x_metric for curve in made.select_curves(name="learning")} == {
        "energy", "communication_bits", "training_time",
    }  # fmt: skip


def test_what_effects_cost_is_what_they_must(made: Sheet) -> None:
    bits = network(made, *BASE, "communication_bits").mean
    assert network(made, "own cells", "local", "communication_bits").mean == 0
    assert network(made, "slow backhaul", "fedavg", "communication_bits").mean == pytest.approx(bits)
    assert network(made, "own cells", "int8", "communication_bits").mean < bits
    plain_s = network(made, *BASE, "training_time").mean
    assert network(made, "slow backhaul", "fedavg", "training_time").mean > 1.2 * plain_s
    assert network(made, "unequal stations", "fedavg", "training_time").mean > plain_s
    assert network(made, "unequal stations", "deadline", "training_time").mean < (
        network(made, "unequal stations", "fedavg", "training_time").mean
    )
    # a broken station is refused each round, the others' training goes on
    assert math.isfinite(network(made, "a broken station", "fedavg", "performance").mean)
    # the same world for all: nothing but time differs on a slow backhaul
    assert network(made, "slow backhaul", "fedavg", "performance_gain").mean == 0.0


def test_the_break_even_formula_holds_where_nothing_is_coded_or_lost(made: Sheet) -> None:
    """Headers are the difference; codes, and stations that are away, move the point."""
    rounds = {row.regime: row.mean for row in made.select(metric="break_even_rounds", candidate="own cells")}
    formula = made.value("break_even_rounds", candidate="formula").mean
    # central training sends every station the model back: half a round
    assert rounds["fedavg"] == pytest.approx(formula + 0.5, rel=0.05)
    assert rounds["signs"] > rounds["int8"] > 2 * rounds["fedavg"]
    away = made.value("break_even_rounds", candidate="come and go").mean
    assert away > rounds["fedavg"]
    joules = made.value("energy", candidate="formula", regime="fedavg").mean
    assert network(made, *BASE, "energy").mean == pytest.approx(joules, rel=0.15)


def test_at_the_rush_hour_a_model_stays_or_is_trained_on(made: Sheet) -> None:
    assert network(made, "rush hour", "kept", "performance_gain").mean == 0
    for regime in ("fedavg again", "central again"):
        assert network(made, "rush hour", regime, "communication_bits").mean > 0
    assert "rush hour" in made.verdict


def test_the_page_shows_every_part_of_the_answer(made: Sheet) -> None:
    found = {section.id: section for section in sections(made)}
    assert set(found) >= {
        "effects",
        "alike",
        "costs-of-performance",
        "learning",
        "traffic",
        "drift",
        "gains",
        "costs",
    }
    assert not sections(replace(made, rows=(), curves=()))


def test_a_code_is_credited_only_if_it_reaches_the_target_in_every_seed() -> None:
    def row(regime: str, mean: float) -> Row:
        return Row(
            "own cells", regime, "here", "network", "bits_to_target", "bit", mean, mean, mean, 2, "counted"
        )

    rows = [
        row("fedavg", 32.0),
        row("int8", 8.0),
        row("1 bit up", 4.0),
        row("signs", math.inf),
        row("top 2 %", math.nan),
    ]
    assert sheet._compressed(rows, "here") == ("1 bit up", 8.0)
    assert sheet._compressed([row(name, math.inf) for name in ("fedavg", *sheet.CODES)], "here")[1] == 0


def test_data_are_dealt_out_whole() -> None:
    station = torch.arange(300) % 3
    own = LocalData.assigned((torch.arange(300), torch.zeros(300), station), station, 3)
    for kind in ("own", "iid", "0.1", "1"):
        found = dealt(own, kind, seed=1)
        assert found.columns[0].sort().values.tolist() == list(range(300))
    assert dealt(own, "own", 1) is own
    iid = dealt(own, "iid", 1)
    assert iid.count.tolist() == [100] * 3 and len(iid.columns[2][:100].unique()) == 3
    with pytest.raises(DefianceError, match="not fair"):
        dealt(own, "fair", 1)


def test_nothing_to_train_is_refused(config: Config, parts: Parts) -> None:
    for functions in ((), ("csi", "csi")):
        with pytest.raises(DefianceError, match="functions"):
            training.run(replace(config, functions=functions), seeds=(0,), parts=parts, progress=Silent())
