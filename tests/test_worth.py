"""The study `worth` at toy size in two made-up cities, and its arithmetic by hand."""

import math
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scenes import blocks, small_scene
from scipy.special import stdtrit

from defiance.control.handover import HISTORY
from defiance.errors import DefianceError
from defiance.hardware import SERVER_CPU, STATION_SOC, UE_DOWNLOAD
from defiance.kpm import Row, Sheet
from defiance.network.messages import report_bits
from defiance.network.simulate import simulate
from defiance.parts import Parts
from defiance.scene import Scene, save
from defiance.seeding import stream
from defiance.studies import Silent, worth
from defiance.studies.worth import experiments
from defiance.studies.worth.experiments import Model, Sweep
from defiance.studies.worth.settings import (
    Config,
    Scenario,
    Training,
    away_scenario,
    caps,
    check,
    home_scenarios,
)
from defiance.studies.worth.sheet import Results, verdict
from defiance.studies.worth.sheet.curves import _city_curves
from defiance.studies.worth.sheet.results import at, crossed_interval
from defiance.studies.worth.sheet.rows import _unseen_street_rows, break_even, relative

SEEDS = (0, 1)
HOME, AWAY = Scenario("munich", 30.0, 0.5, "raw"), Scenario("florence", 30.0, 0.5, "raw")
REGIMES = ("local", "federated", "central")


# --- a run at toy size ---


def made_up_city(name: str, seed: int) -> Scene:
    """240 m of streets with three sites of two sectors; the shadows change from block to block."""
    outdoor = blocks(60, 60, 15, 5)
    row, col = np.mgrid[:60, :60] * 4.0
    sites = np.array([[60.0, 40.0, 25.0], [190.0, 90.0, 25.0], [80.0, 200.0, 25.0]], np.float32)
    rng, gain = np.random.default_rng(seed), []
    for x, y, _ in sites:
        distance = np.hypot(col - x, row - y)
        bearing = np.degrees(np.arctan2(col - x, row - y))
        for azimuth in (60.0, 240.0):
            off = (bearing - azimuth + 180) % 360 - 180
            shadow = np.kron(rng.normal(0, 8, (12, 12)), np.ones((5, 5)))
            gain.append(
                -75
                - 37 * np.log10(np.hypot(distance, 25) / 10)
                - np.minimum(12 * (off / 65) ** 2, 25)
                + shadow
            )
    return replace(
        small_scene(outdoor, np.array(gain, np.float32)[:3]),
        name=name,
        origin_m=(0.0, 0.0),
        path_gain_db=torch.from_numpy(np.array(gain, np.float32)),
        site_position_m=torch.from_numpy(sites),
        cell_site=torch.tensor([0, 0, 1, 1, 2, 2]),
        azimuth_deg=torch.tensor([60.0, 240.0] * 3),
        tilt_deg=torch.full((6,), 8.0),
    )


def toy(folder: Path) -> Config:
    """Everything once, and each as short as its range allows."""
    return Config(
        scene=str(folder / "munich.npz"),
        unseen_scene=str(folder / "florence.npz"),
        speeds_kmh=(30.0,),
        loads=(0.5,),
        caps=(8.0,),
        maps=("raw",),
        placements=("station", "device"),
        training_seeds=1,
        users=6,
        test_s=6.0,
        validation_worlds=1,
        validation_users=4,
        validation_s=5.0,
        workers=1,
        training=Training(
            worlds=1,
            users=10,
            duration_s=10.0,
            width=8,
            rounds=3,
            federated_rounds=4,
            steps_per_round=4,
            batch=64,
            finetuning_rounds=1,
        ),
    )


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cities")
    for seed, name in enumerate(("munich", "florence")):
        save(made_up_city(name, seed), folder / f"{name}.npz")
    return folder


@pytest.fixture(scope="module")
def config(city: Path) -> Config:
    return toy(city)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts.open(tmp_path_factory.mktemp("parts"), "toy")


@pytest.fixture(scope="module")
def sheet(config: Config, parts: Parts) -> Sheet:
    return worth.run(config, seeds=SEEDS, parts=parts, progress=Silent())


@contextmanager
def workers(submit: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    yield submit


def reproducible(sheet: Sheet) -> list[Row]:
    """All rows but those that tell how long the machine took."""
    return [row for row in sheet.rows if row.metric != "cpu_time" and row.provenance != "estimated"]


def test_the_sheet_is_read_back_as_it_was_written(sheet: Sheet, tmp_path: Path) -> None:
    sheet.save(tmp_path / "sheet.json")
    again = Sheet.load(tmp_path / "sheet.json")
    assert repr(again) == repr(sheet)  # nan is not equal to itself
    assert sheet.study == "worth" and sheet.seeds == SEEDS and sheet.config["users"] == 6


def test_names_are_those_of_the_field(sheet: Sheet) -> None:
    assert {row.candidate for row in sheet.rows} == {"a3", "learned-station", "learned-device", "genie"}
    assert {row.regime for row in sheet.rows} == {"none", *REGIMES, "finetuned-whole", "finetuned-last"}
    assert {row.scenario for row in sheet.rows} == {
        "munich/30kmh/load50/cap8/raw",
        "munich-unseen/30kmh/load50/cap8/raw",
        "florence/30kmh/load50/cap8/raw",
        "munich/raw",
        "florence/raw",
    }
    assert {curve.name for curve in sheet.curves} == {
        "front", "sinr_cdf", "throughput_cdf", "learning", "learning_bits", "failure_places", "buildings",
        "sites", "break_even",
    }  # fmt: skip


def test_who_is_judged_where(sheet: Sheet) -> None:
    """All regimes at home; away the central model, as it is and fine-tuned; rule and genie everywhere."""
    judged: dict[str, set[tuple[str, str]]] = {}
    for row in sheet.select(metric="outage_share"):
        judged.setdefault(row.scenario, set()).add((row.candidate, row.regime))
    yardsticks = {("a3", "none"), ("genie", "none")}
    learned = ("learned-station", "learned-device")
    assert judged[HOME.name(8)] == yardsticks | {*product(learned, REGIMES)}
    assert judged[AWAY.name(8)] == yardsticks | {
        *product(learned, ("central", "finetuned-whole", "finetuned-last"))
    }
    assert len(judged["munich-unseen/30kmh/load50/cap8/raw"]) == 2  # the rule and the chosen one


@pytest.mark.parametrize("candidate", ["learned-station", "learned-device"])
def test_the_six_key_performance_metrics_are_there(sheet: Sheet, candidate: str) -> None:
    node = "device" if candidate == "learned-device" else "base-station"
    for regime in REGIMES:
        at_home = {"candidate": candidate, "regime": regime, "scenario": HOME.name(8)}
        learning = {"candidate": candidate, "regime": regime, "scenario": "munich/raw"}
        assert sheet.select(metric="training_operations", **learning)
        # the history of six cells, two hidden layers of 8, 6 values
        weights = (6 * HISTORY + 1) * 8 + 9 * 8 + 9 * 6
        assert sheet.value("inference_parameters", node=node, **learning).mean == weights
        # layers: a multiply-accumulate per weight but one operation per bias, two ReLUs; six cells: scaling,
        # three powers and their mean in dB over the serving cell's, three comparisons
        operations = 2 * weights - (8 + 8 + 6) + 2 * 8 + 6 * (2 * HISTORY + (2 * 3 + 2 + 1) + 3 + 3)
        assert sheet.value("inference_operations", node=node, **learning).mean == operations
        assert sheet.value("communication_bits", **learning).mean > 0
        sent = {
            node: sheet.value("communication_bits", node=node, **at_home).mean
            for node in ("network", "total")
        }
        assert sent["total"] > sent["network"] > 0
        assert 0 < sheet.value("performance", **at_home).mean < 1
        assert 0.01 < sheet.value("inference_latency", **at_home).mean < 0.02
    for regime in ("central", "finetuned-whole", "finetuned-last"):
        row = sheet.value("generalisation", candidate=candidate, regime=regime, scenario=AWAY.name(8))
        assert 0 < row.mean <= 1


def test_performance_is_the_share_of_time_in_service(sheet: Sheet) -> None:
    for row in sheet.select(metric="performance"):
        outage = sheet.value(
            "outage_share", candidate=row.candidate, regime=row.regime, scenario=row.scenario
        )
        assert row.mean == pytest.approx(1 - outage.mean) and row.n == outage.n


def test_every_joule_says_whether_it_is_modelled_or_estimated(sheet: Sheet) -> None:
    energy = [row for row in sheet.rows if row.unit.startswith("J")]
    assert {row.metric for row in energy} >= {"energy", "energy_per_bit", "joules_per_avoided_outage_second"}
    assert {row.provenance for row in energy} == {"modelled", "estimated"}
    for row in sheet.rows:
        if row.provenance == "measured":
            assert not {"J", "W", "bit", "op"} & {row.unit.split("/")[0]} or row.metric == "throughput"


def test_units_fit_their_metrics(sheet: Sheet) -> None:
    units = {row.metric: row.unit for row in sheet.rows}
    assert units["saved_power_per_user"] == "W" and units["training_operations_total"] == "op"
    assert units["break_even_time"] == "s" and units["outage_cut"] == "1"


def test_n_is_training_seeds_times_test_seeds(sheet: Sheet) -> None:
    assert {row.n for row in sheet.select(metric="outage_share", scenario=HOME.name(8))} == {1 * len(SEEDS)}


def test_weights_and_data_that_move_are_booked(sheet: Sheet, parts: Parts) -> None:
    """Beyond what all regimes log over the air: federated averages; central data, one delivery per site."""

    def bits(regime: str) -> float:
        return sheet.value(
            "communication_bits", candidate="learned-device", regime=regime, scenario="munich/raw"
        ).mean

    trained = {regime: parts.get(f"train/{Model('device', regime, 'raw', 0).key}") for regime in REGIMES}
    federated, central = trained["federated"], trained["central"]
    assert federated is not None and central is not None
    weights, sites = 32 * central["parameters"], 3
    averages = 2 * federated["rounds"] * sites * weights
    assert averages < bits("federated") - bits("local") < 1.1 * averages  # TCP/IP headers
    once = sites * weights + central["recorded_samples"] * 7 * 6
    assert once < bits("central") - bits("local") < 1.1 * once


@pytest.mark.parametrize("regime", ["finetuned-whole", "finetuned-last"])
@pytest.mark.parametrize("placement", ["device", "station"])
def test_fine_tuning_moves_data_and_model_as_central_training_does(
    sheet: Sheet, parts: Parts, regime: str, placement: str
) -> None:
    """Logs over the air; the same without radio headers over the backhaul; the model to three sites."""
    part = parts.get(f"train/{Model(placement, regime, 'raw', 0).key}")
    assert part is not None
    sample = 7 * 6 if placement == "device" else report_bits(9)
    air = part["recorded_samples"] * (sample + (9.6 if placement == "device" else 96))
    wire = part["recorded_samples"] * sample + 3 * 32 * part["parameters"]
    tuned = {"candidate": f"learned-{placement}", "regime": regime, "scenario": "florence/raw"}
    booked = sheet.value("communication_bits", **tuned).mean
    assert wire < booked - air < 1.1 * wire


def test_what_is_trained_in_one_place_is_computed_on_a_server(sheet: Sheet) -> None:
    for row in sheet.select(metric="energy", node="training", provenance="modelled"):
        of = {"candidate": row.candidate, "regime": row.regime, "scenario": row.scenario}
        operations = sheet.value("training_operations_total", **of).mean
        profile = STATION_SOC if row.regime in ("local", "federated") else SERVER_CPU
        assert row.mean == pytest.approx(operations * profile.joules_per_operation)


def test_thresholds_make_no_more_handovers_than_the_rule_on_validation_worlds(
    sheet: Sheet, parts: Parts, config: Config
) -> None:
    for scenario, regimes in ((HOME, REGIMES), (AWAY, ("central", "finetuned-last"))):
        a3 = parts.get(f"a3/{scenario.name()}/seeds0-1")
        assert a3 is not None
        limit = 0.98 * at(a3, 8)["validation_handovers"]
        for placement, regime in product(config.placements, regimes):
            model = Model(placement, regime, "raw", 0)
            part = parts.get(f"judge/{model.key}/{scenario.name()}/seeds0-1")
            assert part is not None
            found = at(part, 8)["validation_handovers"]
            assert found <= limit or found == min(part["sweep"][1])


def test_a_finished_run_is_folded_without_simulating(
    sheet: Sheet, config: Config, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(*arguments: Any) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(worth, "workers", lambda count: workers(submit))
    again = worth.run(config, seeds=SEEDS, parts=parts, progress=Silent())
    assert repr(again) == repr(sheet)


def test_a_run_that_lost_parts_comes_to_the_same_rows(
    sheet: Sheet, config: Config, parts: Parts, tmp_path: Path
) -> None:
    """The rule tuned and pictured, a model trained and judged anew: same seeds, same numbers."""
    again = Parts(tmp_path / "again")
    device = "learned-device/central/raw/seed0"
    lost = ("a3/munich", f"train/{device}", f"judge/{device}/munich", "picture/a3")
    shutil.copytree(parts.folder, again.folder)
    for path in again.folder.iterdir():
        if path.name.startswith(tuple(quote(name, safe="") for name in lost)):
            path.unlink()
    assert len(again) < len(parts)
    (again.folder / f"{quote(device, safe='')}.safetensors").write_bytes(b"half a f")
    repeated = worth.run(config, seeds=SEEDS, parts=again, progress=Silent())
    assert repr(reproducible(repeated)) == repr(reproducible(sheet))
    assert repr(repeated.curves) == repr(sheet.curves) and repeated.verdict == sheet.verdict


def test_other_test_seeds_are_tested_anew_and_nothing_is_trained(
    sheet: Sheet, config: Config, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Submitted(Exception):
        pass

    def submit(function: Callable[..., Any], *arguments: Any) -> None:
        raise Submitted(function.__name__)

    monkeypatch.setattr(worth, "workers", lambda count: workers(submit))
    with pytest.raises(Submitted, match="tune_and_test_a3"):
        worth.run(config, seeds=(0, 1, 2), parts=parts, progress=Silent())


@pytest.mark.parametrize("weights", [None, b"half a f"])
def test_weights_that_are_lost_are_trained_again(
    sheet: Sheet,
    config: Config,
    parts: Parts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: bytes | None,
) -> None:
    again = Parts(tmp_path / "again")
    shutil.copytree(parts.folder, again.folder)
    file = again.folder / f"{quote('learned-device/central/raw/seed0', safe='')}.safetensors"
    file.unlink()
    if weights is not None:
        file.write_bytes(weights)
    made: list[str] = []

    def submit(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        made.append(f"{function.__name__} {arguments[1].key}")
        found: Future[Any] = Future()
        found.set_result(function(*arguments))
        return found

    monkeypatch.setattr(worth, "workers", lambda count: workers(submit))
    repeated = worth.run(config, seeds=SEEDS, parts=again, progress=Silent())
    assert made == ["train learned-device/central/raw/seed0"] and again.get_tensors(made[0][6:]) is not None
    assert repr(reproducible(repeated)) == repr(reproducible(sheet))


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loads": ()}, "loads"),
        ({"maps": ("raw", "smooth"), "smooth_placements": ()}, "smooth_placements=.* --set maps=raw"),
        ({"maps": ("smooth",), "smooth_regimes": ()}, "smooth_regimes=.* --set maps=raw"),
        ({"speeds_kmh": (30.0, 30.0)}, "munich/30kmh/load50/cap8/raw twice"),
        ({"loads": (0.5, 0.501)}, "munich/30kmh/load50/cap8/raw twice.*whole percent"),
        ({"regimes": ("central", "central"), "maps": ("raw", "smooth")}, "station/central/raw/seed0 twice"),
        ({"smooth_placements": ("device",) * 2, "maps": ("raw", "smooth")}, "device/central/smooth/seed0"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    config: Config, parts: Parts, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DefianceError, match=words):
        worth.run(replace(config, **changes), seeds=SEEDS, parts=parts, progress=Silent())


def test_without_the_smooth_map_nothing_needs_to_be_said_about_it(config: Config) -> None:
    check(replace(config, smooth_placements=(), smooth_regimes=()))


def test_cities_of_one_name_are_refused(city: Path, config: Config, parts: Parts, tmp_path: Path) -> None:
    shutil.copy(city / "florence.npz", tmp_path / "munich.npz")
    for other in (tmp_path / "munich.npz", city / "munich.npz"):
        twice = replace(config, unseen_scene=str(other))
        with pytest.raises(DefianceError, match="both called munich; .*--set unseen_scene=$"):
            worth.run(twice, seeds=SEEDS, parts=parts, progress=Silent())
    check(replace(twice, regimes=("local",)))  # then nothing moves there


def test_cities_of_different_numbers_of_sectors_are_refused(
    config: Config, parts: Parts, tmp_path: Path
) -> None:
    scene = made_up_city("florence", 1)
    fewer = replace(
        scene,
        path_gain_db=scene.path_gain_db[:5],
        cell_site=scene.cell_site[:5],
        azimuth_deg=scene.azimuth_deg[:5],
        tilt_deg=scene.tilt_deg[:5],
    )
    save(fewer, tmp_path / "florence.npz")
    with pytest.raises(DefianceError, match="has 6 sectors and .* 5, .*--set unseen_scene=$"):
        worth.run(
            replace(config, unseen_scene=str(tmp_path / "florence.npz")),
            seeds=SEEDS, parts=parts, progress=Silent(),
        )  # fmt: skip


def test_keys_name_the_test_seeds_exactly() -> None:
    several = [(0,), (0, 1), (0, 1, 7), (0, 3, 7), (0, 7), tuple(range(8)), (1, 0), (0, 0)]
    names = [worth.seeds_name(seeds) for seeds in several]
    assert names[1] == "seeds0-1" and names[5] == "seeds0-7" and len(set(names)) == len(several)


# --- worlds and counts ---


def test_worlds_of_a_seed_are_the_same_and_of_another_purpose_others(config: Config) -> None:
    drawn = {
        purpose: experiments.worlds_of(config, HOME, purpose, (3,))
        for purpose in ("training", "validation", "test")
    }
    again = experiments.worlds_of(config, HOME, "test", (2, 3))
    assert torch.equal(again.route_m[1], drawn["test"].route_m[0])
    assert torch.equal(again.fading_phase[1], drawn["test"].fading_phase[0])
    starts = [worlds.route_m[0, :4, 0].tolist() for worlds in drawn.values()]
    assert starts[0] != starts[1] != starts[2] != starts[0]
    faster = experiments.worlds_of(config, replace(HOME, speed_kmh=50.0), "test", (3,))
    assert not torch.equal(faster.route_m[0, :, 0], drawn["test"].route_m[0, :, 0])


def test_the_simulated_users_make_a_part_of_the_load(config: Config) -> None:
    """Load 50 %: background 42 % +- 20 % and 8 % from the users' demand; load 100 %: full without them."""
    half = experiments.worlds_of(config, HOME, "test", tuple(range(8)))
    assert half.background_load.mean().item() == pytest.approx(0.42, abs=0.03)
    assert half.background_load.min() >= 0.8 * 0.42 - 1e-6 and half.background_load.max() <= 1.2 * 0.42 + 1e-6
    full = experiments.worlds_of(config, replace(HOME, load=1.0), "test", (0,))
    assert bool((full.background_load == 1).all())


def test_nobody_is_trained_validated_or_tested_on_the_streets_held_out(config: Config, city: Path) -> None:
    held = torch.as_tensor(experiments.held_out(config, "munich"))

    def share(purpose: str, everywhere: bool) -> float:
        worlds = experiments.worlds_of(config, HOME, purpose, (0, 1), everywhere=everywhere)
        cell = (worlds.route_m / 4.0).round().long()
        return float(held[cell[..., 1], cell[..., 0]].float().mean())

    assert share("training", False) == share("validation", False) == share("test", False) == 0
    assert share("test", True) > 0.05


def test_rates_by_hand(config: Config) -> None:
    worlds = experiments.worlds_of(config, HOME, "test", SEEDS)
    policy = experiments.rule(config, [0.0, 0.0, 2.0, 0.0])
    outcome = simulate(worlds, config.radio, policy, stream(0, "messages"), duration_s=6.0)
    rates, state = experiments.per_world(outcome, worlds, config.radio), outcome.state
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
    assert experiments.federated_schedule(settings) == expected
    total = expected[0] * expected[1]
    assert total <= rounds * steps < total + expected[1] and expected[0] <= averages


# --- scenarios ---


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


# --- arithmetic ---


def test_under_a_cap_the_least_outage_is_chosen() -> None:
    found = Sweep([[1.0], [2.0], [3.0], [4.0]], [12.0, 8.0, 6.0, 2.0], [0.01, 0.03, 0.02, 0.05])
    assert [found.under(cap) for cap in (20.0, 12.0, 11.9, 8.0, 5.0, 2.0)] == [0, 0, 2, 2, 3, 3]


def test_where_no_setting_keeps_the_cap_the_fewest_handovers_are_chosen() -> None:
    found = Sweep([[1.0], [2.0], [3.0]], [12.0, 9.0, 10.0], [0.01, 0.03, 0.02])
    assert found.under(8.0) == 1


def test_what_keeps_to_the_handovers_is_chosen_before_what_has_less_outage() -> None:
    """Under cap 8 a rule with 6 handovers allows 5.88; two seeds count with their mean."""

    def chosen(rule: float, found: dict[str, list[tuple[float, float]]], placement: str | None) -> str:
        results = Results(
            asked(),
            SEEDS,
            a3={HOME: {"caps": [{"cap": 8.0, "validation_handovers": rule}]}},
            genie={},
            trained={},
            judged={
                (Model(kind.split()[0], kind.split()[1], "raw", seed), HOME): {
                    "caps": [{"cap": 8.0, "validation_handovers": handovers, "validation_outage": outage}]
                }
                for kind, seeds in found.items()
                for seed, (handovers, outage) in enumerate(seeds)
            },
            pictures={},
        )
        return " ".join(results.chosen(HOME, 8.0, placement))

    found = {
        "device central": [(5.0, 0.03), (6.76, 0.03)],
        "device local": [(5.89, 0.01)],
        "station central": [(7.8, 0.02)],
        "station local": [(9.0, 0.015)],
    }
    assert chosen(6.0, found, None) == "device central"
    assert chosen(6.0, found, "station") == "station local"  # none keeps to it: the least outage
    assert (
        chosen(100.0, found, None) == "device local" and chosen(100.0, found, "station") == "station central"
    )
    assert chosen(1.0, found, None) == "device local"


def test_outage_is_not_cut_where_the_rule_has_none() -> None:
    assert relative(np.array([[0.1, -0.1]]), 0.2).tolist() == [[0.5, -0.5]]
    assert crossed_interval(relative(np.zeros((2, 3)), 0.0)) == (0, 0, 0)
    assert np.isnan(crossed_interval(relative(np.array([[0.0, -0.1]]), 0.0))).all()


def unseen_rows(rule: list[float], own: list[float]) -> dict[tuple[str, str], Row]:
    pictures = {"a3/none": rule, "learned-device/central": own}
    found = {f"picture/{kind}/seeds0-2/{HOME.name()}": {"unseen_outage": x} for kind, x in pictures.items()}
    results = Results(asked(), (0, 1, 2), a3={}, genie={}, trained={}, judged={}, pictures=found)
    return {(row.candidate, row.metric): row for row in _unseen_street_rows(results, HOME)}


def test_worlds_without_time_on_unseen_streets_are_left_out() -> None:
    rows = unseen_rows([0.1, math.nan, 0.3], [0.1, math.nan, 0.1])
    assert {row.n for row in rows.values()} == {2}
    means = [rows[key].mean for key in (("a3", "outage_share"), ("learned-device", "outage_share"))]
    assert [*means, rows["learned-device", "outage_cut"].mean] == pytest.approx([0.2, 0.1, 0.5])
    assert unseen_rows([math.nan] * 3, [math.nan] * 3) == {}


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


def test_sweeps_add_up() -> None:
    total = Sweep([[1.0]], [3.0], [0.1]) + Sweep([[2.0]], [2.0], [0.2])
    assert total == Sweep([[1.0], [2.0]], [3.0, 2.0], [0.1, 0.2])


def samples(models: int, seeds: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(1)
    return 0.3 + 0.05 * rng.normal(size=(models, 1)) + 0.1 * rng.normal(size=(models, seeds))


def test_a_crossed_interval_by_hand() -> None:
    x = samples(3, 8)
    over_seeds = np.var([x[:, j].mean() for j in range(8)], ddof=1) / 8
    over_models = np.var([x[i].mean() for i in range(3)], ddof=1) / 3
    freedom = (over_seeds + over_models) ** 2 / (over_seeds**2 / 7 + over_models**2 / 2)
    half = stdtrit(freedom, 0.975) * math.sqrt(over_seeds + over_models)
    assert crossed_interval(x) == pytest.approx((x.mean(), x.mean() - half, x.mean() + half))


@pytest.mark.parametrize("shape", [(1, 8), (8, 1)])
def test_with_one_training_seed_the_interval_is_students(shape: tuple[int, int]) -> None:
    x = samples(1, 8).reshape(shape)
    half = stdtrit(7, 0.975) * x.std(ddof=1) / math.sqrt(8)
    assert crossed_interval(x) == pytest.approx((x.mean(), x.mean() - half, x.mean() + half))


def test_one_sample_has_no_interval_and_equal_ones_no_width() -> None:
    mean, low, high = crossed_interval(np.array([[0.2]]))
    assert mean == 0.2 and math.isnan(low) and math.isnan(high)
    assert crossed_interval(np.full((3, 4), 0.25)) == (0.25, 0.25, 0.25)


def test_the_interval_holds_what_both_kinds_of_seeds_add() -> None:
    """Models that differ widen it as much as test worlds that differ."""
    by_model = np.repeat(np.array([[0.1], [0.2], [0.3]]), 8, 1)
    by_world = np.repeat(np.array([[0.1, 0.2, 0.3]]), 8, 0)
    assert crossed_interval(by_model) == pytest.approx(crossed_interval(by_world))
    assert crossed_interval(by_model)[1] < 0


def test_break_even_is_investment_over_saved_power() -> None:
    """100 J at 2 W [1, 4]: 50 s [25, 100]."""
    assert break_even(100.0, (2.0, 1.0, 4.0)) == (50.0, 25.0, 100.0)
    assert break_even(100.0, (2.0, -1.0, 5.0)) == (50.0, 20.0, math.inf)
    assert break_even(100.0, (-1.0, -2.0, 0.5)) == (math.inf, 200.0, math.inf)
    assert break_even(100.0, (-2.0, -3.0, -1.0)) == (math.inf, math.inf, math.inf)
    time, low, high = break_even(100.0, (2.0, math.nan, math.nan))
    assert time == 50.0 and math.isnan(low) and math.isnan(high)


def test_break_even_on_the_sheet(sheet: Sheet) -> None:
    """From the sheet's own rows: computing, transfers, and the model once to each of six devices."""
    for row in sheet.select(metric="break_even_time", scenario=HOME.name(8)):
        of = {"candidate": row.candidate, "regime": row.regime}
        saved = sheet.value("saved_power_per_user", scenario=row.scenario, **of).mean
        if saved <= 0:
            assert row.mean == math.inf
            continue
        learning = {"scenario": "munich/raw", **of}
        invested = sheet.value("energy", node="training", provenance="modelled", **learning).mean
        invested += sheet.value("energy", node="training-transfers", **learning).mean
        if row.candidate == "learned-device":
            models = 3 if row.regime == "local" else 1
            weights = sheet.value("inference_parameters", **learning).mean
            invested += 6 * models * 32 * weights * UE_DOWNLOAD.joules_per_bit
        assert row.mean == pytest.approx(invested / (6 * saved))


# --- the verdict ---


def judged(
    config: Config,
    cuts: dict[Scenario, tuple[float, float]],
    pays_back_s: float,
    handovers: float = 5.0,
    rule: float = 6.0,
) -> str:
    """The verdict on one model with these cuts of outage (+- 0.05), validation outages being equal."""
    model = Model("device", "central", "raw", 0)
    found = []
    for scenario, (cut, _) in cuts.items():
        for cap in caps(config, scenario):
            name = ("learned-device", "central", scenario.name(cap), "network")
            found += [
                Row(*name, "outage_cut", "1", cut, cut - 0.05, cut + 0.05, 8, "measured"),
                Row(*name, "break_even_time", "s", pays_back_s, math.nan, math.nan, 8, "modelled"),
                Row(*name, "handovers_per_user_minute", "1/min", 5.0, 4.9, 5.1, 8, "measured"),
                Row(
                    "a3",
                    "none",
                    *name[2:],
                    "handovers_per_user_minute",
                    "1/min",
                    rule,
                    rule,
                    rule,
                    8,
                    "measured",
                ),
            ]
    results = Results(
        config,
        SEEDS,
        a3={
            s: {
                "caps": [
                    {"cap": c, "validation_handovers": 8.0, "test": {"outage_share": [outage]}}
                    for c in caps(config, s)
                ]
            }
            for s, (_, outage) in cuts.items()
        },
        genie={},
        trained={},
        judged={
            (replace(model, map=s.map), s): {
                "caps": [
                    {"cap": c, "validation_handovers": handovers, "validation_outage": 0.01}
                    for c in caps(config, s)
                ]
            }
            for s in cuts
        },
        pictures={},
    )
    return verdict(results, tuple(found))


def asked(**changes: Any) -> Config:
    plain = {"unseen_scene": "", "maps": ("raw",), "speeds_kmh": (3.0, 30.0), "loads": (0.5,), "caps": (8.0,)}
    return replace(worth.PRESETS["full"], **(plain | changes))


WALK = replace(HOME, speed_kmh=3.0)


def test_the_verdict_on_a_gain_that_never_pays_back() -> None:
    words = judged(asked(), {HOME: (0.3, 0.02), WALK: (0.01, 0.0013)}, math.inf)
    assert "Munich" in words and "has less outage" in words and "not shown" not in words
    assert "-30 % [-35, -25]" in words
    assert "For pedestrians" in words and "0.13 %" in words and "to gain" in words
    assert "never pays back" in words
    assert "central" in words and "on the device" in words


def test_the_verdict_owns_up_to_more_handovers() -> None:
    assert "no more often" not in judged(asked(speeds_kmh=(30.0,)), {HOME: (0.3, 0.02)}, math.inf)
    words = judged(asked(speeds_kmh=(30.0,)), {HOME: (0.3, 0.02)}, math.inf, rule=4.96)
    assert "no more often than the rule, but for 1 of 1 scenarios in the test (5.00 against 4.96" in words


def test_the_verdict_on_a_gain_that_pays_back() -> None:
    words = judged(asked(speeds_kmh=(30.0,)), {HOME: (0.3, 0.02)}, 7200.0)
    assert "pays back" in words and "2 h" in words and "1 of 1" in words and "never" not in words
    assert "pedestrian" not in words.lower()


def test_the_verdict_does_not_claim_what_is_not_resolved() -> None:
    words = judged(asked(speeds_kmh=(30.0,)), {HOME: (0.04, 0.02)}, math.inf)
    assert "not shown to be worth having" in words
    busy = replace(HOME, load=1.0)
    words = judged(
        asked(speeds_kmh=(30.0,), loads=(0.5, 1.0)), {HOME: (0.3, 0.02), busy: (0.0, 0.1)}, math.inf
    )
    assert "helps in 1 of 2" in words


def test_the_verdict_names_the_map_that_was_judged() -> None:
    smooth = replace(HOME, map="smooth")
    words = judged(asked(speeds_kmh=(30.0,), maps=("smooth",)), {smooth: (0.3, 0.02)}, math.inf)
    assert "Without the map's ray noise" in words and "traced map" not in words
    both = asked(speeds_kmh=(30.0,), maps=("smooth", "raw"))
    words = judged(both, {smooth: (0.3, 0.02), HOME: (0.4, 0.02)}, math.inf)
    assert "ray noise (3x3 median) time in outage changes by -30 %" in words
    assert "On the traced map time in outage changes by -40 %" in words


def test_the_verdict_where_the_rule_is_never_in_outage() -> None:
    busy = replace(HOME, load=1.0)
    two = asked(speeds_kmh=(30.0,), loads=(0.5, 1.0))
    words = judged(two, {HOME: (math.nan, 0.0), busy: (0.3, 0.02)}, math.inf)
    assert "-30 %" in words and "in 1 of 2 scenarios the learned function alone is in outage" in words
    assert "nan" not in words and "helps in 1 of 2" in words
    words = judged(asked(speeds_kmh=(30.0,)), {HOME: (math.nan, 0.0)}, math.inf)
    assert "nan" not in words and "not shown" in words
    words = judged(asked(), {HOME: (0.3, 0.02), WALK: (math.nan, 0.0)}, math.inf)
    assert "nan" not in words and "the learned function is where the rule never is" in words


def test_the_verdict_says_where_nothing_keeps_to_the_rules_handovers() -> None:
    one = asked(speeds_kmh=(30.0,))
    assert "keeps to" not in judged(one, {HOME: (0.3, 0.02)}, math.inf)
    assert "In 1 of them no learned function keeps to the rule's handovers" in judged(
        one, {HOME: (0.3, 0.02)}, math.inf, handovers=9.0
    )


def test_the_toy_run_has_a_verdict(sheet: Sheet) -> None:
    assert "Munich" in sheet.verdict and "Florence" in sheet.verdict and "nan" not in sheet.verdict
