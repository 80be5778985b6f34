"""The study `quality` at toy size: degradations do what their names say, the sheet has them side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from inline import here

from defiance.control.experience import ValueModel, initial_parameters
from defiance.control.handover import HISTORY
from defiance.kpm import Sheet
from defiance.parts import Parts
from defiance.seeding import stream
from defiance.studies import Silent, Workers, pool, quality
from defiance.studies.quality import DEGRADATIONS, HEALTHY, RULE, Config, Degraded, broken, quantised
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
        found = Degraded(broken(WEIGHTS, how, 1, 3), SITE, ORDER).value(HISTORY_DBM, SERVING)
        at = SITE[SERVING] == 1
        torch.testing.assert_close(found[~at], healthy[~at])
        assert not torch.allclose(found[at], healthy[at])
    malicious = Degraded(broken(WEIGHTS, "malicious", 1, 3), SITE, ORDER).value(HISTORY_DBM, SERVING)
    torch.testing.assert_close(malicious[SITE[SERVING] == 1], -healthy[SITE[SERVING] == 1])


@pytest.fixture(scope="module")
def sheet(city: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sheet]:
    config = Config(
        scene=str(city / "munich.npz"), speed_kmh=30.0, offsets_db=(2.0, 4.0), users=6, test_s=6.0,
        validation_worlds=1, validation_s=5.0,
        training=Training(worlds=1, users=40, duration_s=15.0, width=8, rounds=3, steps_per_round=5),
    )  # fmt: skip
    parts = Parts(tmp_path_factory.mktemp("parts"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "workers", here)
        yield quality.run(config, seeds=(0, 1), parts=parts, progress=Silent(), workers=Workers(1))


def test_every_candidate_is_judged_by_network_and_model(sheet: Sheet) -> None:
    assert {row.candidate for row in sheet.rows} == {RULE, *DEGRADATIONS}
    for name in DEGRADATIONS:
        cut = sheet.value("outage_cut", candidate=name)
        assert cut.n == 2 and cut.mean <= 1
        assert sheet.value("performance", candidate=name).mean <= 1
        share = sheet.value("outage_share", candidate=name, node="network").mean
        parts = [
            sheet.value("outage_share", candidate=name, node=node).mean
            for node in ("central station", "other stations")
        ]
        assert min(parts) - 1e-6 <= share <= max(parts) + 1e-6
    assert "The healthy function cuts" in sheet.verdict and "malicious" in sheet.verdict


def test_eight_bits_change_little_and_training_matters(sheet: Sheet) -> None:
    healthy = sheet.value("performance", candidate=HEALTHY).mean
    assert sheet.value("performance", candidate="weights of 8 bits").mean == pytest.approx(healthy, abs=0.3)
    curve = sheet.select_curves(name="quality")[0]
    assert list(curve.x) == sorted(curve.x) and len(curve.x) == len(DEGRADATIONS)
