"""The study `worth` at toy size in two made-up cities: its sheet, its parts, and what goes wrong."""

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

import pytest
from worth_toy import AWAY, HOME, SEEDS, made_up_city

from defiance.control.handover import HISTORY
from defiance.errors import DefianceError
from defiance.hardware import SERVER_CPU, STATION_SOC, UE_DOWNLOAD
from defiance.kpm import Row, Sheet
from defiance.network.loop import PERIOD_STEPS
from defiance.network.messages import report_bits
from defiance.parts import Parts
from defiance.report.worth import sections
from defiance.scene import save
from defiance.studies import Silent, pool, worth
from defiance.studies.worth.contention import training_traffic
from defiance.studies.worth.settings import (
    Config,
    check,
)
from defiance.studies.worth.sheet.results import at
from defiance.studies.worth.training import Model
from defiance.studies.worth.worlds import worlds_of

REGIMES = ("local", "federated", "central")


# --- a run at toy size ---


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


def test_what_contention_costs(sheet: Sheet) -> None:
    """Rule and chosen functions over three kinds of links; the difference is that of the means."""
    where = HOME.name(8)
    for candidate in ("a3", "learned-station", "learned-device"):
        rows = {
            row.node: row
            for row in sheet.select(metric="control_outage_share", candidate=candidate, scenario=where)
        }
        assert list(rows) == ["ideal", "queued", "queued-models"]
        for links in ("queued", "queued-models"):
            cost = sheet.value("contention_outage", candidate=candidate, node=links)
            assert cost.mean == pytest.approx(rows[links].mean - rows["ideal"].mean) and cost.n == len(SEEDS)
    delays = [row for row in sheet.select(metric="command_delay") if row.node == "ideal"]
    assert all(row.mean == pytest.approx(0.06) and row.unit == "s" for row in delays)
    assert "instead of ideal links cost, in points of time in outage, the rule" in sheet.verdict
    assert any(section.id == "contention" for section in sections(sheet))


@pytest.mark.parametrize("placement", ["device", "station"])
@pytest.mark.parametrize("regime", REGIMES)
def test_what_training_sends_within_a_test(config: Config, placement: str, regime: str) -> None:
    """A model for every device, its logs for central training; weights of every station after every round."""
    worlds = worlds_of(config, HOME, "test", SEEDS)
    traffic = training_traffic(config, Model(placement, regime, "raw", 0), worlds, 1000, rounds=3)
    people, stations = worlds.shape[0] * worlds.shape[1], worlds.shape[0] * 3
    assert len(traffic.downlink) == people * (placement == "device")
    logs = int(config.test_s / (10 * PERIOD_STEPS[placement] * 0.02))
    central = regime == "central"
    assert len(traffic.uplink) == people * logs * (central and placement == "device")
    wire = 3 * (regime == "federated") + logs * (central and placement == "station")
    assert len(traffic.wire) == stations * wire
    for batch in (traffic.downlink, traffic.uplink, traffic.wire):
        assert bool((batch.offered_s <= config.test_s + 1).all())


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

    monkeypatch.setattr(pool, "workers", lambda *_: workers(submit))
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

    monkeypatch.setattr(pool, "workers", lambda *_: workers(submit))
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
        made.append(f"{function.__name__} {getattr(arguments[1], 'key', arguments[1])}")
        found: Future[Any] = Future()
        found.set_result(function(*arguments))
        return found

    monkeypatch.setattr(pool, "workers", lambda *_: workers(submit))
    repeated = worth.run(config, seeds=SEEDS, parts=again, progress=Silent())
    *recorded, trained = made
    assert set(recorded) == {"record device"}  # what it learns from was forgotten, and isn't kept now
    assert trained == "train learned-device/central/raw/seed0" and again.get_tensors(trained[6:]) is not None
    assert not list(again.folder.glob("experience*.safetensors"))
    assert repr(reproducible(repeated)) == repr(reproducible(sheet))


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


def test_the_toy_run_has_a_verdict(sheet: Sheet) -> None:
    assert "Munich" in sheet.verdict and "Florence" in sheet.verdict and "nan" not in sheet.verdict


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
