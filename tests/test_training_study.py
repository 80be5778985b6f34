"""The study `training` at toy size: every effect runs, and is compared with plain FedAvg."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from inline import here

from defiance.kpm import Row, Sheet
from defiance.learn.environment import Environment, Links
from defiance.learn.federation import Server
from defiance.learn.partition import LocalData
from defiance.link import BackhaulLink
from defiance.parts import Parts
from defiance.studies import Silent, Workers, pool, training
from defiance.studies.training import BASE, Config, Place, effects


@pytest.fixture(scope="module")
def place() -> Place:
    wire = BackhaulLink(1e9, 5e-3)
    distance_m = torch.cdist(*[torch.rand(7, 2, generator=torch.Generator().manual_seed(1))] * 2)
    return Place(torch.arange(1, 8) * 100, distance_m, 1e-3, Links(wire, wire), 0.1)


def test_every_effect_differs_from_plain_fedavg_in_what_it_says(place: Place) -> None:
    found = effects(place)
    plain = found[BASE]
    assert isinstance(plain.regime, Server) and plain.regime == Server() and plain.data == "own"
    assert len(found) >= 30
    for name, effect in found.items():
        assert name == BASE or repr(effect) != repr(plain), name
    assert found["stragglers", "fedavg"].environment.straggling > 0
    assert found["slow backhaul", "fedavg"].environment.links.up.rate_bps == 1e7
    assert found["own cells", "fedprox"].proximal > 0
    assert isinstance(found["a liar", "fedavg"].environment, Environment)


def test_a_liar_reverses_its_update_and_a_broken_station_sends_none(place: Place) -> None:
    update = torch.ones(7, 3)
    lied = effects(place)["a liar", "fedavg"].environment.corrupt(torch.arange(7), update)
    assert torch.equal(lied[:6], update[:6]) and bool((lied[6] < -1).all())
    broken = effects(place)["a broken station", "fedavg"].environment.corrupt(torch.arange(7), update)
    assert bool(broken[6].isnan().all()) and torch.equal(broken[:6], update[:6])


@pytest.fixture(scope="module")
def sheet(city: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sheet]:
    config = Config(
        scene=str(city / "munich.npz"), speed_kmh=30.0, worlds=1, users=30, duration_s=25.0,
        width=8, rounds=3, steps=2, batch=8, compute_share=5e-4,
    )  # fmt: skip
    parts = Parts(tmp_path_factory.mktemp("parts"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "workers", here)
        yield training.run(config, seeds=(0, 1), parts=parts, progress=Silent(), workers=Workers(1))


def network(sheet: Sheet, candidate: str, regime: str, metric: str) -> Row:
    return sheet.value(metric, candidate=candidate, regime=regime, node="network")


def test_the_sheet_has_every_effect_with_its_paired_size(sheet: Sheet) -> None:
    gains = sheet.select(metric="performance_gain")
    assert len(gains) >= 30 and all(gain.n == 2 for gain in gains)
    assert network(sheet, *BASE, "performance_gain").mean == 0.0
    base = network(sheet, *BASE, "performance").mean
    for gain in gains:
        own = network(sheet, gain.candidate, gain.regime, "performance").mean
        assert gain.mean == pytest.approx(own - base, abs=1e-9)
    assert "not resolved" in sheet.verdict and "FedAvg" in sheet.verdict
    assert {curve.x_metric for curve in sheet.curves} == {"energy", "communication_bits", "training_time"}


def test_what_effects_cost_is_what_they_must(sheet: Sheet) -> None:
    bits = network(sheet, *BASE, "communication_bits").mean
    assert network(sheet, "own cells", "local", "communication_bits").mean == 0
    assert network(sheet, "slow backhaul", "fedavg", "communication_bits").mean == pytest.approx(bits)
    assert network(sheet, "own cells", "int8", "communication_bits").mean < bits
    plain_s = network(sheet, *BASE, "training_time").mean
    assert network(sheet, "slow backhaul", "fedavg", "training_time").mean > 1.2 * plain_s
    assert network(sheet, "unequal stations", "fedavg", "training_time").mean > plain_s
    assert network(sheet, "unequal stations", "deadline", "training_time").mean < (
        network(sheet, "unequal stations", "fedavg", "training_time").mean
    )
    # a broken station is refused each round, the others' training goes on
    assert math.isfinite(network(sheet, "a broken station", "fedavg", "performance").mean)
    # the same world for all: nothing but time differs on a slow backhaul
    assert network(sheet, "slow backhaul", "fedavg", "performance_gain").mean == 0.0


def test_data_are_dealt_out_whole() -> None:
    station = torch.arange(300) % 3
    own = LocalData.assigned((torch.arange(300), torch.zeros(300), station), station, 3)
    for kind in ("own", "iid", "dirichlet"):
        dealt = training.dealt(own, kind, 3, seed=1)
        assert dealt.columns[0].sort().values.tolist() == list(range(300))
    assert training.dealt(own, "own", 3, 1) is own
    iid = training.dealt(own, "iid", 3, 1)
    assert iid.count.tolist() == [100] * 3 and len(iid.columns[2][:100].unique()) == 3
