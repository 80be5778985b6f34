"""What the study `worth` simulates: worlds, streets held out, rates, training schedules, scenarios."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from worth_toy import HOME, SEEDS, made_up_city

from defiance.network.simulate import simulate
from defiance.scene import save
from defiance.seeding import stream
from defiance.studies import worth
from defiance.studies.worth import experiments, training
from defiance.studies.worth.settings import (
    Config,
    Training,
    away_scenario,
    caps,
    home_scenarios,
)
from defiance.studies.worth.sheet.curves import _city_curves
from defiance.studies.worth.worlds import held_out, per_world, worlds_of


def test_worlds_of_a_seed_are_the_same_and_of_another_purpose_others(config: Config) -> None:
    drawn = {
        purpose: worlds_of(config, HOME, purpose, (3,)) for purpose in ("training", "validation", "test")
    }
    again = worlds_of(config, HOME, "test", (2, 3))
    assert torch.equal(again.route_m[1], drawn["test"].route_m[0])
    assert torch.equal(again.fading_phase[1], drawn["test"].fading_phase[0])
    starts = [worlds.route_m[0, :4, 0].tolist() for worlds in drawn.values()]
    assert starts[0] != starts[1] != starts[2] != starts[0]
    faster = worlds_of(config, replace(HOME, speed_kmh=50.0), "test", (3,))
    assert not torch.equal(faster.route_m[0, :, 0], drawn["test"].route_m[0, :, 0])


def test_the_simulated_users_make_a_part_of_the_load(config: Config) -> None:
    """Load 50 %: background 42 % +- 20 % and 8 % from the users' demand; load 100 %: full without them."""
    half = worlds_of(config, HOME, "test", tuple(range(8)))
    assert half.background_load.mean().item() == pytest.approx(0.42, abs=0.03)
    assert half.background_load.min() >= 0.8 * 0.42 - 1e-6 and half.background_load.max() <= 1.2 * 0.42 + 1e-6
    full = worlds_of(config, replace(HOME, load=1.0), "test", (0,))
    assert bool((full.background_load == 1).all())


def test_nobody_is_trained_validated_or_tested_on_the_streets_held_out(config: Config, city: Path) -> None:
    held = torch.as_tensor(held_out(config, "munich"))

    def share(purpose: str, everywhere: bool) -> float:
        worlds = worlds_of(config, HOME, purpose, (0, 1), everywhere=everywhere)
        cell = (worlds.route_m / 4.0).round().long()
        return float(held[cell[..., 1], cell[..., 0]].float().mean())

    assert share("training", False) == share("validation", False) == share("test", False) == 0
    assert share("test", True) > 0.05


def test_rates_by_hand(config: Config) -> None:
    worlds = worlds_of(config, HOME, "test", SEEDS)
    policy = experiments.rule(config, [0.0, 0.0, 2.0, 0.0])
    outcome = simulate(worlds, config.radio, policy, stream(0, "messages"), duration_s=6.0)
    rates, state = per_world(outcome, worlds, config.radio), outcome.state
    for w in range(2):
        assert rates["outage_share"][w] == pytest.approx(int(state.outage_steps[w].sum()) / (6 * 300))
        assert rates["handovers_per_user_minute"][w] == pytest.approx(
            int(state.handovers[w].sum()) / (6 * 6 / 60)
        )
        assert rates["throughput"][w] == pytest.approx(float(state.bits[w].sum()) / 36, rel=1e-5)
        background = float(worlds.background_load[w].sum()) * 6
        all_load = float(state.load_steps[w].sum()) * 0.02
        assert rates["load_seconds"][w] == pytest.approx(all_load, rel=1e-5)
        assert rates["own_load_seconds"][w] == pytest.approx(all_load - background, abs=1e-3)


def test_the_grids_columns_are_the_rules_parameters(config: Config) -> None:
    rule = experiments.rule(config, [4.0, 0.1, 3.0, 1.0])
    assert (rule.filter_k, rule.time_to_trigger_s, rule.offset_db, rule.hysteresis_db) == (4.0, 0.1, 3.0, 1.0)
    assert rule.period_steps * config.radio.step_s == 0.1
    assert 0.0 in experiments.FILTERS_K and 0.0 in experiments.TIMES_TO_TRIGGER_S


@pytest.mark.parametrize(
    ("rounds", "steps", "averages", "expected"),
    [
        (35, 100, 175, (175, 20)),
        (20, 100, 100, (100, 20)),
        (3, 4, 100, (12, 1)),
        (3, 4, 12, (12, 1)),
        (3, 4, 5, (4, 3)),
        (10, 100, 175, (166, 6)),
        (1, 1, 1, (1, 1)),
    ],
)
def test_federated_training_takes_the_steps_of_the_others(
    rounds: int, steps: int, averages: int, expected: tuple[int, int]
) -> None:
    settings = Training(rounds=rounds, steps_per_round=steps, federated_rounds=averages)
    assert training.federated_schedule(settings) == expected
    total = expected[0] * expected[1]
    assert total <= rounds * steps < total + expected[1] and expected[0] <= averages


def test_scenarios_of_the_full_preset() -> None:
    full = worth.PRESETS["full"]
    names = [scenario.name(cap) for scenario in home_scenarios(full) for cap in caps(full, scenario)]
    assert names == [
        "munich/3kmh/load50/cap1/raw",
        *(
            f"munich/{speed}kmh/load{load}/cap{cap}/{map_}"
            for map_ in ("raw", "smooth")
            for speed in (30, 50)
            for load in (50, 100)
            for cap in (8, 12)
        ),
    ]
    away = away_scenario(full)
    assert away is not None and away.name(8) == "florence/30kmh/load50/cap8/raw"
    assert away_scenario(replace(full, unseen_scene="")) is None
    assert worth.SEEDS["full"] >= 8 and full.training_seeds >= 3


def test_a_world_whose_users_never_come_to_unseen_streets_says_so(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = experiments.rule(config, [0.0, 0.0, 2.0, 0.0])
    assert all(map(math.isfinite, experiments.picture(config, HOME, policy, SEEDS)["unseen_outage"]))
    nowhere = np.zeros((60, 60), bool)
    monkeypatch.setattr(experiments, "held_out", lambda config, city: nowhere)
    assert np.isnan(experiments.picture(config, HOME, policy, SEEDS)["unseen_outage"]).all()


def test_a_scene_without_buildings_has_no_outlines(config: Config, tmp_path: Path) -> None:
    save(replace(made_up_city("field", 0), outdoor=torch.full((60, 60), True)), tmp_path / "field.npz")
    field = replace(config, scene=str(tmp_path / "field.npz"))
    assert [c.name for c in _city_curves(config, HOME)] == ["buildings", "sites"]
    assert [c.name for c in _city_curves(field, replace(HOME, city="field"))] == ["sites"]
