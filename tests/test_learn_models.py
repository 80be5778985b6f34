"""A user's own model through the network: same weights as by hand, a sheet whose numbers can be counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defiance import learn
from defiance.errors import DefianceError
from defiance.hardware import STATION_SOC
from defiance.kpm import Sheet
from defiance.learn.adaptation import LoRA, everything, last_layer
from defiance.learn.compression import TopK
from defiance.learn.topology import ring
from defiance.link import BackhaulLink
from defiance.meter import operations_of
from defiance.profiles import read_profile
from defiance.recordings import data_folder
from defiance.scene.drives import read_drives
from defiance.scene.throughput import made_up_drives, throughput_by_cell
from defiance.seeding import stream

TRUE = torch.tensor([[1.0], [-2.0], [0.5]])


def data(nodes: int = 3, samples: int = 100) -> list[tuple[Tensor, Tensor]]:
    """A linear law with a little noise, the same everywhere."""
    generator = torch.Generator().manual_seed(1)
    pairs = []
    for _ in range(nodes):
        x = torch.randn(samples, 3, generator=generator)
        pairs.append((x, x @ TRUE + 0.1 * torch.randn(samples, 1, generator=generator)))
    return pairs


def fit(model: nn.Module | None = None, pairs: Sequence[Any] | None = None, **settings: Any) -> learn.Fitted:
    settings = {"local": learn.Local(5, 16, learning_rate=0.05), "rounds": 15, "seeds": (1, 2), **settings}
    torch.manual_seed(0)
    return learn.fit(model or nn.Linear(3, 1), nn.functional.mse_loss, pairs or data(), **settings)


def squared(out: Tensor) -> Tensor:
    return nn.functional.mse_loss(out, torch.zeros_like(out).detach())


def test_the_law_is_learned_and_the_model_given_is_left_alone() -> None:
    model = nn.Linear(3, 1)
    before = model.weight.clone()
    found = fit(model)
    assert torch.equal(model.weight, before)
    assert isinstance(found.model, nn.Linear)
    torch.testing.assert_close(found.model.weight.detach().T, TRUE, atol=0.1, rtol=0)
    assert all(-0.03 < score < -0.005 for score in found.scores)  # the noise has a variance of 0.01
    assert not found.model.training


def test_the_sheet_counts_what_was_done(tmp_path: Path) -> None:
    wire = BackhaulLink(rate_bps=1e6, delay_s=0.1, header_bits=0, energy_j_per_bit=1e-6)
    environment = learn.Environment(step_s=2.0)
    found = fit(links=learn.Links(wire, wire), environment=environment, unseen=data(1)[0])
    sheet = found.sheet
    bits = 15 * 3 * 2 * 4 * 32
    assert sheet.value("communication_bits", node="network").mean == bits
    assert sheet.value("communication_bits", node="node 1").mean == bits / 6
    assert sheet.value("energy", node="links").mean == pytest.approx(bits * 1e-6)
    step = operations_of(nn.Linear(3, 1), torch.empty(16, 3), lambda out: squared(out))
    operations = 15 * 3 * 5 * step.training_step.total
    energy_j = sheet.value("energy", node="all nodes").mean
    assert energy_j == pytest.approx(
        operations * STATION_SOC.joules_per_operation,
        rel=0.1,  # vmap scales means and biases by one more product
    )
    assert sheet.value("energy", node="node 0").mean == pytest.approx(energy_j / 3)
    assert sheet.value("inference_parameters", node="each node").mean == 4
    assert sheet.value("inference_operations", node="each node").mean == 2 * 3 + 1
    # down and up 0.1 s, 384 bits at once in either direction, five steps of 2 s
    assert sheet.value("training_time", node="network").mean == pytest.approx(15 * 10.2, rel=1e-3)
    assert 0 < sheet.value("inference_latency", node="this machine").mean < 0.1
    assert -0.03 < sheet.value("generalisation", scenario="unseen").mean < -0.005
    assert {row.provenance for row in sheet.select(metric="energy")} == {"modelled", "estimated"}
    sheet.save(tmp_path / "sheet.json")
    again = Sheet.load(tmp_path / "sheet.json")
    assert again.verdict == sheet.verdict and "15 rounds among 3 nodes" in again.verdict


def test_gains_are_paired_by_seed() -> None:
    whole, half = fit(seeds=(1, 2, 3)), fit(seeds=(1, 2, 3), rounds=1)
    gain = whole.gain_over(half)
    assert gain.mean == pytest.approx(sum(whole.scores) / 3 - sum(half.scores) / 3)
    assert gain.ci_low > 0
    nothing = whole.gain_over(whole)
    assert (nothing.mean, nothing.ci_low, nothing.ci_high) == (0, 0, 0)
    with pytest.raises(DefianceError, match="can't be paired"):
        whole.gain_over(fit(rounds=1))


@pytest.mark.parametrize("regime", [learn.Peers(ring(3)), learn.fedbuff(2), learn.Server(up=TopK(0.5))])
def test_every_regime_takes_a_model(regime: learn.Peers | learn.Server) -> None:
    found = fit(
        regime=regime, environment=learn.Environment(step_s=torch.tensor([1.0, 2.0, 3.0])), seeds=(1,)
    )
    assert found.scores[0] > -0.5 and math.isnan(found.sheet.value("performance").ci_low)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.memory(x)[0][:, -1])


def test_recurrent_models_learn_one_node_after_the_other() -> None:
    series = [(torch.randn(20, 4, 3), torch.randn(20, 1)) for _ in range(2)]
    found = fit(Recurrent(), series, rounds=2, seeds=(1,))
    assert found.sheet.value("training_operations", node="network").n == 1
    assert bool(found.runs[0].reached.isfinite().all())


def test_dropout_is_drawn_from_the_seed_and_from_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    first = fit(model, rounds=2)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    second = learn.fit(
        model,
        nn.functional.mse_loss,
        data(),
        local=learn.Local(5, 16, learning_rate=0.05),
        rounds=2,
        seeds=(1, 2),
    )
    assert first.scores == second.scores and first.scores[0] != first.scores[1]
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(DefianceError, match="GroupNorm or LayerNorm"):
        fit(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)))
    with pytest.raises(DefianceError, match="node 1 has 9 samples; give each at least 10"):
        fit(pairs=[*data(1), (torch.zeros(9, 3), torch.zeros(9, 1))])


def spoiled(value: float) -> list[tuple[Tensor, Tensor]]:
    pairs = data()
    pairs[2][0][5, 1] = value
    return pairs


@pytest.mark.parametrize(
    "settings, why",
    [
        (lambda: {"rounds": 0}, "0 rounds and 2 seeds train nothing"),
        (lambda: {"seeds": ()}, "15 rounds and 0 seeds train nothing"),
        (lambda: {"pairs": [(x.double(), y) for x, y in data()]}, "node 0: inputs are torch.float64"),
        (lambda: {"pairs": [*data(1), (data()[1][0], data()[1][1].double())]}, "node 1: targets are torch"),
        (lambda: {"pairs": spoiled(math.nan)}, "node 2: inputs hold NaN or infinite"),
        (lambda: {"pairs": spoiled(-math.inf)}, "node 2: inputs hold NaN or infinite"),
        (lambda: {"unseen": spoiled(math.nan)[2]}, "unseen: inputs hold NaN"),
        (lambda: {"regime": learn.Server(up=TopK(2.0))}, "TopK: share 2 of an update"),
        (lambda: {"regime": learn.Server(up=TopK(0.0))}, "TopK: share 0 of an update"),
        (lambda: {"regime": learn.Server(wait_for=0)}, "Server: wait_for is 0"),
        (lambda: {"regime": learn.Server}, "regime is the class Server; give learn.Server"),
        (lambda: {"links": BackhaulLink(1e6, 0.1)}, "links is of type BackhaulLink; give learn.Links"),
        (lambda: {"seeds": 3}, "seeds is of type int; give several"),
        (lambda: {"pairs": dict(enumerate(data()))}, "data_per_node is of type dict; give a list"),
        (lambda: {"pairs": [x for x, _ in data()]}, "node 0: give a pair .*, not Tensor"),
        (lambda: {"pairs": [(x, y, y) for x, y in data()]}, "node 0: give a pair .*, not 3 of them"),
        (lambda: {"pairs": [(x.numpy(), y) for x, y in data()]}, "node 0: inputs are a ndarray"),
        (lambda: {"pairs": [*data(1), (torch.zeros(20, 3), torch.zeros(9, 1))]}, "node 1: 20 inputs but 9"),
        (
            lambda: {"pairs": [(x[:, :2], y) for x, y in data()]},
            r"node 0: model and loss can't take inputs \[batch, 2\] and targets \[batch, 1\]: mat1 and mat2",
        ),
        (lambda: {"unseen": (torch.zeros(20, 2), torch.zeros(20, 1))}, "unseen: model and loss can't take"),
        (lambda: {"model": nn.Identity()}, "no parameter to train"),
        (lambda: {"local": learn.Local(0)}, "Local: 0 steps"),
    ],
)
def test_settings_and_data_that_train_nothing_are_refused(
    settings: Callable[[], dict[str, Any]], why: str
) -> None:
    with pytest.raises(DefianceError, match=why):
        fit(**settings())


@pytest.mark.parametrize(
    "loss, why",
    [
        (lambda out, y: (out - y).square(), r"is a tensor \[batch, 1\]; it must be one number"),
        (lambda out, y: 1.0, "is a float; it must be one number"),
        (lambda out, y: (out - y).detach().mean(), "doesn't depend on the model's weights"),
    ],
)
def test_a_loss_that_cannot_be_followed_is_refused(loss: Any, why: str) -> None:
    with pytest.raises(DefianceError, match=why):
        learn.fit(nn.Linear(3, 1), loss, data())


def test_frozen_parameters_stay_and_are_not_sent() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    found = fit(model, rounds=2)
    assert torch.equal(found.model[0].weight, model[0].weight)  # type: ignore[index]
    assert not torch.equal(found.model[1].weight, model[1].weight)  # type: ignore[index]
    alone = fit(model, rounds=2, adaptation=last_layer(dict(model.named_parameters())))
    assert found.scores == alone.scores


# --- throughput


def test_made_up_drives_are_samples_of_their_cells_and_can_be_learned() -> None:
    cells = throughput_by_cell(made_up_drives(stream(1, "drives")))
    assert list(cells) == [0, 1, 2, 3, 4, 5]
    inputs, targets = cells[0]
    assert inputs.shape[1:] == (5,) and targets.shape == (len(inputs), 1) and len(inputs) > 350
    correlation = torch.corrcoef(torch.stack([inputs[:, 2], targets[:, 0]]))[0, 1]
    assert correlation > 0.6
    assert float(cells[5][1].mean()) < float(cells[0][1].mean())  # a loaded cell gives less


def test_the_rate_is_that_of_the_next_seconds_in_the_same_cell() -> None:
    drive = made_up_drives(stream(1, "drives"), cells=1, rows=30)[0]
    inputs, targets = throughput_by_cell([drive], least=1)[0]
    expected = (drive.downlink_bps[1:6].mean() / 1e6).log10()
    assert float(targets[0]) == pytest.approx(float(expected)) and len(inputs) == 25
    drive.cell[10:] = 7
    split = throughput_by_cell([drive], least=1)
    assert len(split[0][0]) == 5 and len(split[7][0]) == 15
    assert throughput_by_cell([drive], least=20) == {}


def test_measured_drives_have_cells_enough() -> None:
    folder = data_folder() / "traces5g"
    if not folder.is_dir():
        pytest.skip("no data: traces5g")
    cells = throughput_by_cell(read_drives(folder))
    assert len(cells) >= 10
    for inputs, targets in cells.values():
        assert bool(inputs.isfinite().all()) and float(inputs.abs().max()) < 10
        assert -2 <= float(targets.min()) and float(targets.max()) < 3


# --- fine-tuning


def test_only_what_moves_is_sent_and_counted() -> None:
    model = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 1))
    names = dict(model.named_parameters())
    ways = {"all": everything(names), "last": last_layer(names), "lora": LoRA(1)}
    found = {name: fit(model, adaptation=way, rounds=2, seeds=(1,)) for name, way in ways.items()}
    bits = {name: one.runs[0].deliveries.payload_bits[0].item() // 32 for name, one in found.items()}
    assert bits == {"all": 3 * 32 + 32 + 32 + 1, "last": 33, "lora": 35}
    energy = {name: one.sheet.value("energy", node="all nodes").mean for name, one in found.items()}
    assert energy["last"] < energy["lora"] < energy["all"]
    kept = found["last"].model.state_dict()
    assert torch.equal(kept["0.weight"], model.state_dict()["0.weight"])
    assert not torch.equal(kept["2.weight"], model.state_dict()["2.weight"])
    assert found["lora"].sheet.config["adaptation"] == {"kind": "LoRA", "rank": 1, "alpha": None}


def test_a_users_own_processor_marks_its_joules(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("joules_per_operation = 1.0\nwatts_per_core = 1.0\n")
    sheet = fit(profile=read_profile(file), rounds=1, seeds=(1,)).sheet
    assert sheet.value("energy", node="all nodes").provenance == "user"
    assert sheet.config["profile"] == "mine"
