"""The study `beams`: splits that don't leak, a whole small run, and what is refused in one line."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from defiance.control.beam_learning import Samples
from defiance.errors import DefianceError
from defiance.kpm import Sheet
from defiance.parts import Parts
from defiance.seeding import stream
from defiance.studies import Silent, Workers, load
from defiance.studies.beams import PRESETS, channels, measured, run
from defiance.studies.beams.training import Recipe, others, pooled
from tests.test_deepsense import write

TINY = replace(
    PRESETS["quick"],
    unseen_city="",
    speeds_kmh=(3.0,),
    users=4,
    duration_s=1.0,
    regimes=("federated",),
    training=replace(
        PRESETS["quick"].training, users=120, array_samples=300, array_rounds=2, rounds=2, width=16
    ),
    measured=replace(PRESETS["quick"].measured, folds=0),
)


def test_no_sequence_and_no_walk_is_in_two_parts() -> None:
    sequence = torch.arange(40) // 3
    fold = measured.folds(sequence, stream(0, "folds"))
    for name in sequence.unique():
        assert len(fold[sequence == name].unique()) == 1
    assert fold[sequence.unique() * 3].bincount().tolist() == [3, 3, 3, 3, 2]
    site = measured.Site(torch.zeros(40, 64), fold)
    for number in range(measured.FOLDS):
        parts = [set(site.part(number, purpose).tolist()) for purpose in ("training", "validation", "test")]
        assert set.union(*parts) == set(range(40)) and sum(map(len, parts)) == 40
    walks = channels.walks_of("munich")
    split = [set(channels.walks_for(walks, purpose).tolist()) for purpose in channels.PURPOSES]
    assert set.union(*split) == set(range(len(walks.position_m)))
    assert sum(map(len, split)) == len(walks.position_m)


def test_rules_on_measured_beams() -> None:
    beams = measured.measured_beams(8)
    assert beams.tolist() == [3, 11, 19, 27, 35, 43, 51, 59]
    powers = torch.full((1, 8), -10.0)
    powers[0, 2], powers[0, 3] = 0.0, -1.0
    assert measured.by_rule("nearest", powers, beams).argmax() == 19
    between = measured.by_rule("interpolated", powers, beams)[0]
    assert between.argmax() == 19 and between[23] == pytest.approx(-0.5)


def test_recordings_are_evaluated_by_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "data_folder", lambda: tmp_path)
    monkeypatch.setattr(measured, "read_deepsense", lambda folder: measured_sites(tmp_path))
    config = replace(TINY, measured=replace(TINY.measured, folds=5, tune=False, rounds=1, steps_per_round=4))
    for regime in measured.REGIMES:
        found = measured.evaluate(config, "learned", "quarter", regime)
        assert len(found["loss"]) == 20 and min(found["loss"]) >= 0
        assert sum(found["rows"]) == 60 and set(found["fold"]) == set(range(5))
        for few, many in (("top1", "top3"), ("top3", "top5")):
            assert all(a <= b for a, b in zip(found[few], found[many], strict=True))


def test_with_fewer_folds_only_what_was_tested_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "data_folder", lambda: tmp_path)
    monkeypatch.setattr(measured, "read_deepsense", lambda folder: measured_sites(tmp_path))
    few, all_ = (
        replace(TINY, measured=replace(TINY.measured, folds=folds, tune=False, rounds=1, steps_per_round=4))
        for folds in (1, 5)
    )
    for model in ("learned", "nearest"):
        found, whole = (measured.evaluate(c, model, "quarter", "local") for c in (few, all_))
        assert 0 < len(found["loss"]) < len(whole["loss"])
        assert set(found["loss"]) <= set(whole["loss"])  # the same models, the same sequences


def test_models_that_no_test_seed_meets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DefianceError, match=r"meets models of \[1\]; test with seeds that follow"):
        run(TINY, seeds=(0, 2), parts=Parts.open(tmp_path, "f" * 64), progress=Silent())


def measured_sites(folder: Path) -> tuple:
    from defiance.scene.deepsense import read_deepsense

    (site,) = read_deepsense(write(folder, 30), [4])
    return (site, replace(site, scenario=5))


def test_pooled_samples_are_all_and_others_are_all_but_ones_own() -> None:
    samples = Samples.of([(torch.full((n, 1), float(n)), torch.zeros(n, 1, 4)) for n in (1, 2, 3)])
    assert pooled(samples).count.tolist() == [6]
    rest = others(samples)
    assert rest.count.tolist() == [5, 4, 3]
    assert 2.0 not in rest.features[5:9, 0]


def test_who_shares_weights_takes_as_many_steps_in_more_rounds() -> None:
    shared = Recipe(8, 1e-3, 8, 12, 40).shared
    assert (shared.rounds, shared.steps_per_round) == (48, 10)


def test_a_whole_small_run(tmp_path: Path) -> None:
    parts = Parts.open(tmp_path, "0" * 16)
    sheet = run(TINY, seeds=(0, 1), parts=parts, progress=Silent(), workers=Workers(1))
    sheet.save(tmp_path / "sheet.json")
    assert len(Sheet.load(tmp_path / "sheet.json").rows) == len(sheet.rows)
    here = {"scenario": "munich/3kmh"}
    sweep = sheet.value("net_spectral_efficiency", candidate="exhaustive-ssb", **here)
    full = sheet.value("spectral_efficiency", candidate="exhaustive-ssb", **here)
    assert sweep.mean == pytest.approx(full.mean * (1 - 256 / 2240))
    for metric in ("training_operations_total", "training_pilots", "communication_bits", "energy"):
        row = sheet.value(metric, candidate="spatial", regime="federated", node="training")
        assert row.mean > 0
    assert sheet.value("inference_operations", candidate="spatial", regime="federated").node == "base-station"
    for kind in ("spatial", "temporal"):
        share = sheet.value("share_of_exhaustive", candidate=kind, regime="array", **here)
        assert 0 < share.mean < 1.13
        gain = sheet.value("gain_over_best_rule", candidate=kind, regime="array", **here)
        assert gain.ci_low < gain.mean < gain.ci_high
    genie = sheet.value("net_spectral_efficiency", candidate="genie", **here)
    for rule in ("exhaustive", "watching", "tracking", "hierarchical"):
        assert sheet.value("net_spectral_efficiency", candidate=rule, **here).mean < genie.mean
    assert "Munich, 3 km/h" in sheet.verdict


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"speeds_kmh": ()}, "beams needs speeds_kmh, each once"),
        ({"regimes": ("local", "local")}, "beams needs regimes, each once"),
        ({"unseen_city": "munich"}, "unseen_city is munich, which is trained in"),
        ({"city": "muncih"}, "no such city or file; did you mean munich"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path: Path, changed: dict, problem: str) -> None:
    study = load("beams")
    with pytest.raises(DefianceError, match=problem) as error:
        study.run(
            replace(TINY, **changed), seeds=(0, 1), parts=Parts.open(tmp_path, "0" * 16), progress=Silent()
        )
    assert "\n" not in str(error.value)
