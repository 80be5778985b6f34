"""The study `quality` at toy size: degradations do what their names say, the sheet has them side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from inline import here

from defiance.control.csi.targets import sgcs
from defiance.control.experience import ValueModel, initial_parameters
from defiance.control.handover import HISTORY
from defiance.errors import DefianceError
from defiance.kpm import Sheet
from defiance.parts import Parts
from defiance.seeding import stream
from defiance.studies import Silent, Workers, pool, quality
from defiance.studies.quality import beams, feedback, handover
from defiance.studies.quality import sheet as folding
from defiance.studies.quality.degradations import HEALTHY, MALICIOUS, RULE, UNTRAINED, quantised, with_one
from defiance.studies.quality.finetuning import WAYS
from defiance.studies.quality.handover import Degraded, other
from defiance.studies.quality.settings import Beams, Config, Csi
from defiance.studies.worth.settings import Training

CELLS = 6
WEIGHTS = initial_parameters((HISTORY * CELLS, 8, 8, CELLS), 1, stream(1, "model"))
SITE, ORDER = torch.arange(CELLS) // 2, torch.arange(CELLS)
HISTORY_DBM = -90 + 10 * torch.randn(30, HISTORY, CELLS, generator=torch.Generator().manual_seed(1))
SERVING = torch.arange(30) % CELLS


def test_an_undegraded_model_is_the_model() -> None:
    healthy = Degraded(WEIGHTS, SITE, ORDER).value(HISTORY_DBM, SERVING)
    assert torch.equal(healthy, ValueModel(WEIGHTS, SITE, ORDER).value(HISTORY_DBM, SERVING))


def test_a_late_model_decides_as_it_would_have_earlier() -> None:
    late = Degraded(WEIGHTS, SITE, ORDER, delay=3).value(HISTORY_DBM, SERVING)
    earlier = torch.cat([HISTORY_DBM[:, :1].expand(-1, 3, -1), HISTORY_DBM[:, :-3]], 1)
    assert torch.equal(late, Degraded(WEIGHTS, SITE, ORDER).value(earlier, SERVING))
    changed = HISTORY_DBM.clone()
    changed[:, -3:] = 0.0  # what it can't know
    assert torch.equal(late, Degraded(WEIGHTS, SITE, ORDER, delay=3).value(changed, SERVING))


def test_noise_has_its_standard_deviation() -> None:
    """A layer that sums all n inputs: its variance is that of the noise times n/20^2."""
    n = HISTORY * CELLS
    total = {"weight0": torch.ones(1, n, CELLS), "bias0": torch.zeros(1, 1, CELLS)}
    flat = torch.full((4000, HISTORY, CELLS), -90.0)
    noisy = Degraded(total, SITE, ORDER, noise_db=3.0, draws=torch.Generator().manual_seed(1))
    found = noisy.value(flat, torch.zeros(4000, dtype=torch.int64))[:, 0]
    assert float(found.std()) == pytest.approx(3.0 / 20 * n**0.5, rel=0.05)


def test_weights_of_few_bits_have_few_values_near_the_old_ones() -> None:
    for bits in (8, 4, 2):
        found = quantised(WEIGHTS, bits)
        for name, weight in WEIGHTS.items():
            assert len(found[name].unique()) <= 2**bits - 1
            step = float(weight.abs().max()) / (2 ** (bits - 1) - 1)
            assert float((found[name] - weight).abs().max()) <= step / 2 + 1e-6


def test_one_broken_station_leaves_the_others_alone() -> None:
    healthy = ValueModel(WEIGHTS, SITE, ORDER).value(HISTORY_DBM, SERVING)
    for how in ("untrained", "malicious"):
        found = Degraded(with_one(WEIGHTS, other(WEIGHTS, how), 1, 3), SITE, ORDER).value(
            HISTORY_DBM, SERVING
        )
        at = SITE[SERVING] == 1
        torch.testing.assert_close(found[~at], healthy[~at])
        assert not torch.allclose(found[at], healthy[at])
    malicious = Degraded(with_one(WEIGHTS, other(WEIGHTS, "malicious"), 1, 3), SITE, ORDER).value(
        HISTORY_DBM, SERVING
    )
    torch.testing.assert_close(malicious[SITE[SERVING] == 1], -healthy[SITE[SERVING] == 1])


@pytest.fixture(scope="module")
def config(city: Path) -> Config:
    return Config(
        scene=str(city / "munich.npz"), unseen_scene=str(city / "florence.npz"), speed_kmh=30.0,
        offsets_db=(2.0, 4.0), users=6, test_s=6.0, validation_worlds=1, validation_s=5.0,
        training=Training(worlds=1, users=40, duration_s=15.0, width=8, rounds=3, steps_per_round=5),
        beams=Beams(samples=300, users=6, test_s=1.0, width=16, rounds=4, steps_per_round=5),
        csi=Csi(places=8, users=12, test_s=0.04, width=8, rounds=2, steps_per_round=2, batch=8), budgets=(2,),
    )  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def sheet(config: Config, parts: Parts) -> Iterator[Sheet]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "workers", here)
        patch.setattr(feedback, "DEGRADATIONS", FEEDBACK)
        patch.setattr(feedback, "WARM_UP_S", 0.02)
        yield quality.run(config, seeds=(0, 1), parts=parts, progress=Silent(), workers=Workers(1))


FEEDBACK = {
    name: feedback.DEGRADATIONS[name]
    for name in (
        HEALTHY,
        "data 3 %",
        "weights of 8 bits",
        "estimated at 0 dB",
        "50 ms late",
        UNTRAINED,
        MALICIOUS,
    )
}
"""Not all: a network of cells takes its time for each."""
DEGRADATIONS = {
    "munich/30kmh/load50/cap8/raw": handover.DEGRADATIONS,
    "munich/30kmh/28ghz": beams.DEGRADATIONS,
    "munich/3kmh/3.5ghz": FEEDBACK,
}


@pytest.mark.parametrize("place", DEGRADATIONS)
def test_every_candidate_is_judged_by_network_and_model(sheet: Sheet, place: str) -> None:
    assert {row.candidate for row in sheet.rows if row.scenario == place} == {RULE, *DEGRADATIONS[place]}
    kpi = {"load50": "outage_share", "28ghz": "spectral_efficiency", "3.5ghz": "cell_throughput"}[
        next(part for part in ("load50", "28ghz", "3.5ghz") if part in place)
    ]
    rule = sheet.value(kpi, candidate=RULE, scenario=place).mean
    for name in DEGRADATIONS[place]:
        gain = sheet.value("rule_gain", candidate=name, scenario=place)
        own = sheet.value(kpi, candidate=name, scenario=place, node="network").mean
        sign = -1 if kpi == "outage_share" else 1
        assert gain.n == 2 and gain.mean == pytest.approx(sign * (own - rule) / (rule or 1.0), abs=1e-6)
        assert sheet.value("performance", candidate=name, scenario=place, node="network").mean <= 1
    assert "malicious" in sheet.verdict and "healthy model" in sheet.verdict


def test_outage_here_and_elsewhere_is_outage(sheet: Sheet) -> None:
    for name in handover.DEGRADATIONS:
        shares = {
            row.node: row.mean
            for row in sheet.select(metric="outage_share", candidate=name)
            if row.regime == "central"
        }
        low, high = sorted((shares["the station"], shares["other stations"]))
        assert low - 1e-6 <= shares["network"] <= high + 1e-6


def test_eight_bits_change_little_and_quality_is_in_order(sheet: Sheet) -> None:
    place = next(iter(DEGRADATIONS))
    healthy = sheet.value("performance", candidate=HEALTHY, scenario=place, node="network").mean
    eight = sheet.value("performance", candidate="weights of 8 bits", scenario=place, node="network").mean
    assert eight == pytest.approx(healthy, abs=0.3)
    for curve in sheet.select_curves(name="quality"):
        assert (
            list(curve.x) == sorted(curve.x) and 2 <= len(curve.x) <= 5 and curve.candidate in folding.KINDS
        )


def test_fine_tuning_moves_what_it_says_and_shows_what_is_forgotten(sheet: Sheet) -> None:
    moved = {way: sheet.value("communication_bits", candidate=way, regime="2 rounds").mean for way in WAYS}
    assert moved["biases"] < moved["last layer"] < moved["whole"] and moved["LoRA"] < moved["whole"]
    operations = {
        way: sheet.value("training_operations_total", candidate=way, regime="2 rounds").mean for way in WAYS
    }
    assert 0 < operations["last layer"] < operations["whole"]
    before = sheet.value("performance", candidate="as trained", regime="before", node="home city").mean
    healthy = sheet.value(
        "performance", candidate=HEALTHY, node="network", scenario=next(iter(DEGRADATIONS))
    ).mean
    assert before == pytest.approx(healthy, abs=1e-5)  # the same model on the same samples
    after = sheet.value("performance", candidate="whole", regime="2 rounds", node="home city").mean
    assert after != before and "at home" in sheet.verdict


def test_whoever_judges_has_not_chosen(config: Config, parts: Parts, sheet: Sheet) -> None:
    """Both sets of users are held out, and differ."""
    chosen, judging = (handover.checked(config, purpose, parts) for purpose in ("choosing", "judging"))
    assert not torch.equal(chosen[0], judging[0])
    rows = {tuple(row.tolist()) for row in chosen[0][0].flatten(1)}
    same = sum(tuple(row.tolist()) in rows for row in judging[0][0].flatten(1))
    assert same < 0.02 * len(judging[0][0])


def judged(quality_: list[float], gain: list[float]) -> folding.Judged:
    found = {RULE: {"kpi": [1.0, 1.0]}}
    found |= {
        f"m{i}": {"kpi": [1 + g, 1 + g + 0.1], "performance": [q]}
        for i, (q, g) in enumerate(zip(quality_, gain, strict=True))
    }
    return folding.Judged("here", found, "cell_throughput", lower=False)


def test_the_quality_below_which_the_rule_wins_is_read_off_a_line() -> None:
    """Gains rise by 1 per unit of performance through 0 at 0.5; in the second seed at 0.4."""
    line = [0.1 * i for i in range(11)]
    assert folding.crossing(judged(line, [q - 0.5 for q in line]), "noise") == pytest.approx([0.5, 0.4])
    assert all(
        x != x for x in folding.crossing(judged([0.1, 0.9], [0.2, 0.3]), "noise")
    )  # the rule never wins


def test_a_malicious_station_turns_reports_round_and_no_other_does(
    config: Config, parts: Parts, sheet: Sheet
) -> None:
    of = feedback.data_of(config)
    w, cell = of.w[:200], of.cell[:200]
    healthy, bad = (
        feedback.codec_of(config, feedback.DEGRADATIONS[name], parts) for name in (HEALTHY, MALICIOUS)
    )
    told, turned = (codec.decode(codec.encode(w, cell), cell) for codec in (healthy, bad))
    here = of.cell_site[cell] == feedback.broken_station(of)
    assert bool(here.any()) and torch.equal(told[~here], turned[~here])
    assert torch.allclose(torch.linalg.vector_norm(turned, dim=-1), torch.ones(()), atol=1e-4)
    assert float(sgcs(told[here], turned[here]).mean()) < 0.3


def test_what_cannot_be_asked_is_refused(config: Config, parts: Parts) -> None:
    for wrong, said in (
        ({"functions": ()}, "functions"),
        ({"budgets": (2, 2)}, "budgets"),
        ({"unseen_scene": config.scene}, "another city"),
    ):
        with pytest.raises(DefianceError, match=said):
            quality.run(replace(config, **wrong), seeds=(0,), parts=parts, progress=Silent())


def test_every_way_of_getting_worse_has_a_curve_of_its_own() -> None:
    kinds = {name: folding.kind(name) for name in handover.DEGRADATIONS | feedback.DEGRADATIONS}
    assert kinds["data 3 %"] == "less data" and kinds["weights of 2 bits"] == "fewer bits"
    assert kinds["estimated at 0 dB"] == kinds["noise of 3 dB"] == "noise" and kinds["300 ms late"] == "late"
    assert kinds[HEALTHY] == ""
