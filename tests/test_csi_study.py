"""The study `csi` in small: on shipped walks, from its parts to a verdict; what it refuses."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from defiance import studies
from defiance.control.csi.klt import Klt
from defiance.control.csi.rules import LBeams, TypeOne
from defiance.errors import DefianceError
from defiance.kpm import Row, Sheet
from defiance.parts import Parts
from defiance.studies import Silent, Workers, csi
from defiance.studies.csi import costs, experiments
from defiance.studies.csi.data import precoders
from defiance.studies.csi.settings import QUICK, Model, check, models
from tests.csi_worlds import PANEL, SUBBANDS
from tests.csi_worlds import precoders as drawn

SMALL = replace(
    QUICK,
    learned=("dictionary", "convolutional", "transformer"),
    places=8,
    training=replace(
        QUICK.training, rounds=2, dictionary_steps=2, network_steps=2, batch=16, width=8, channels=2,
        finetuning_rounds=1,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Sheet:
    parts = Parts.open(tmp_path_factory.mktemp("csi"), "0" * 64)
    return csi.run(SMALL, seeds=(0,), parts=parts, progress=Silent(), workers=Workers(1))


def value(sheet: Sheet, metric: str, candidate: str, regime: str, node: str = "network") -> Row:
    place = f"{SMALL.city}/{SMALL.bits}bit"
    return sheet.value(metric, candidate=candidate, regime=regime, node=node, scenario=place)


def test_the_sheet_has_all_kpms_of_every_learned_codec(sheet: Sheet) -> None:
    for name in SMALL.learned:
        for metric, node in (
            ("performance", "network"),
            ("nmse", "network"),
            ("spectral_efficiency", "network"),
            ("multi_user_spectral_efficiency", "network"),
            ("throughput", "network"),
            ("generalisation", "network"),
            ("inference_operations", "device"),
            ("inference_operations", "base-station"),
            ("inference_parameters", "network"),
            ("inference_latency", "network"),
            ("energy", "device"),
            ("energy", "core"),
            ("training_operations", "core"),
            ("communication_bits", "network"),
            ("communication_bits", "device"),
        ):
            assert value(sheet, metric, name, "central", node).n == 1, (name, metric, node)
    perfect = sheet.value("spectral_efficiency", candidate="perfect", scenario=SMALL.city)
    assert perfect.mean > value(sheet, "spectral_efficiency", "l-beams", "none").mean
    assert "At 64 feedback bits on unseen walks of Munich the" in sheet.verdict
    assert "not resolved" in sheet.verdict or "more:" in sheet.verdict or "less:" in sheet.verdict


def test_reports_carry_their_bits_and_a_crc(sheet: Sheet) -> None:
    for candidate, regime, bits in (("type-1", "none", 34), ("dictionary", "central", 64)):
        sent = value(sheet, "communication_bits", candidate, regime, "device")
        assert sent.mean == pytest.approx((bits + 11) / SMALL.report_s)


def test_halves_of_two_trainers_are_on_the_sheet(sheet: Sheet) -> None:
    pair = "convolutional to transformer"
    for way in ("strangers", "frozen-decoder", "shared-dataset"):
        assert 0 <= value(sheet, "performance", pair, way).mean <= 1
    weights = sheet.value("communication_bits", candidate=pair, regime="frozen-decoder", node="core")
    assert weights.mean > 0


def test_a_finetuned_decoder_leaves_the_devices_alone(sheet: Sheet) -> None:
    place = f"{SMALL.unseen_city}/{SMALL.bits}bit"

    def bits(regime: str) -> float:
        row = sheet.value(
            "communication_bits", candidate="transformer", regime=regime, scenario=place, node="network"
        )
        return row.mean

    assert bits("finetuned-decoder") < bits("finetuned-whole")


def test_seeds_split_whole_walks() -> None:
    of = precoders(SMALL, SMALL.city)
    walks = [set(of.walk[of.part(purpose, 3)].tolist()) for purpose in ("training", "validation", "test")]
    assert not (walks[0] & walks[1] or walks[0] & walks[2] or walks[1] & walks[2])
    assert walks[0] and walks[2]
    assert sum(len(of.part(purpose, 3)) for purpose in ("training", "validation", "test")) == len(of)
    assert bool((of.cell_site[of.cell] == of.site).all())


def test_operations_are_those_of_the_sizes() -> None:
    encode, decode = costs.inference(TypeOne(PANEL, SUBBANDS))
    assert encode == 13 * 256 * (32 * 8 + 4 * 5) and decode == 0
    more, less = (costs.inference(LBeams(PANEL, SUBBANDS, beams, 2, 2)) for beams in (4, 2))
    assert more[0] > less[0] and more[1] == pytest.approx(2 * less[1])
    w = drawn(50)
    klt = Klt.fit(PANEL, w, torch.zeros(50, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 16)
    assert 13 * 32 * 8 <= costs.inference(klt)[1] <= 17 * 13 * 32 * 8
    model = SMALL.model("transformer", 64)
    assert costs.training_step(model, 32) > 1.5 * costs.training_step(model, 16)


def test_what_can_not_be_asked() -> None:
    for change, said in (
        ({"budgets": (48, 64)}, "no codecs of 48 bits; budgets are among 32, 64, 128, 256"),
        ({"budgets": (32,)}, "verdict is on 64 bits"),
        ({"learned": ()}, "every value of learned once"),
        ({"regimes": ("local",)}, "add central to regimes"),
        ({"unseen_city": "munich"}, "are both munich"),
    ):
        with pytest.raises(DefianceError, match=said):
            check(replace(SMALL, **change))  # type: ignore[arg-type]
    with pytest.raises(DefianceError, match="no such city or file"):
        precoders(SMALL, "atlantis")


def test_models_are_named_once_and_regimes_are_the_first_codecs() -> None:
    found = models(replace(SMALL, budgets=(32, 64)), (0,))
    assert len({model.key for model in found}) == len(found)
    assert Model("dictionary", 64, "federated", 0) in found
    assert Model("transformer", 64, "federated", 0) not in found
    assert studies.load("csi").SEEDS["full"] >= 3


def test_the_committed_sheet_meets_its_bar() -> None:
    path = Path(__file__).parents[1] / "results" / "csi.json"
    committed = Sheet.load(path)
    assert committed.config["bits"] == 64
    for rival in ("l-beams", "klt"):
        gain = committed.value(
            "performance_gain",
            candidate="dictionary",
            regime=f"central less {rival}",
            scenario="munich/64bit",
        )
        assert gain.ci_low > 0
    away = committed.value("performance", candidate="dictionary", regime="central", scenario="florence/64bit")
    assert math.isfinite(away.mean)


def test_a_walk_that_chooses_the_round_of_fine_tuning_does_not_train_it() -> None:
    of = precoders(SMALL, SMALL.city)
    links = of.part("training", 3)
    training, choosing = experiments.without_one_walk(of, links)
    assert not set(of.walk[training].tolist()) & set(of.walk[choosing].tolist())
    assert torch.equal(torch.cat([training, choosing]).sort().values, links.sort().values)
    alone = links[of.walk[links] == of.walk[links][0]]
    assert all(torch.equal(some, alone) for some in experiments.without_one_walk(of, alone))


def test_stations_gossip_with_their_nearest() -> None:
    of = precoders(SMALL, SMALL.city)
    linked = experiments.neighbours(of)
    assert torch.equal(linked, linked.T) and int(linked.sum(1).min()) >= min(3, of.sites - 1)
    place = of.site_position_m[:, :2].double()
    apart = torch.cdist(place, place).fill_diagonal_(torch.inf)
    assert bool(linked[torch.arange(of.sites), apart.argmin(1)].all())
