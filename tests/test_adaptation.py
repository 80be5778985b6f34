"""Fine-tuning: what moves, what is sent, and that a model begins as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from defiance.control.experience import initial_parameters
from defiance.errors import DefianceError
from defiance.learn.adaptation import (
    Adaptation,
    LoRA,
    Some,
    biases_and_norms,
    everything,
    fine_tuning,
    last_layer,
)
from defiance.learn.federation import Server, Task, federate
from defiance.learn.local import Local
from defiance.learn.training import Parameters
from defiance.seeding import stream

MODEL = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 12))
BASE = {name: weight.detach() for name, weight in MODEL.named_parameters()}
STACKED = {name: weight[0] for name, weight in initial_parameters((6, 16, 12), 1, stream(1, "m")).items()}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_what_moves_by_name() -> None:
    assert last_layer(BASE).names == {"3.weight", "3.bias"}
    assert last_layer(STACKED).names == {"weight1", "bias1"}
    assert biases_and_norms(BASE).names == {"0.bias", "1.weight", "1.bias", "3.bias"}
    assert biases_and_norms(STACKED).names == {"bias0", "bias1"}
    assert everything(BASE).names == BASE.keys()
    assert last_layer({f"{n}.{kind}": torch.zeros(2) for n in (2, 12) for kind in "ab"}).names == {
        "12.a",
        "12.b",
    }


@pytest.mark.parametrize("base", [BASE, STACKED], ids=["module", "stacked"])
@pytest.mark.parametrize("kind", ["all", "last", "bias", "lora"])
def test_a_model_begins_as_it_was(base: Parameters, kind: str) -> None:
    ways = {
        "all": everything(base),
        "last": last_layer(base),
        "bias": biases_and_norms(base),
        "lora": LoRA(2),
    }
    adaptation: Adaptation = ways[kind]
    moving = adaptation.start(base, generator())
    stacked = {name: weight.expand(3, *weight.shape) for name, weight in moving.items()}
    whole = adaptation.whole(base, stacked)
    assert list(whole) == list(base)
    for name, weight in base.items():
        torch.testing.assert_close(whole[name], weight.expand(3, *weight.shape))


def test_lora_is_the_scaled_product_of_its_factors() -> None:
    lora = LoRA(rank=2, alpha=6.0)
    moving = lora.start(BASE, generator())
    assert moving.keys() == {"0.weight.A", "0.weight.B", "3.weight.A", "3.weight.B"}
    assert sum(weight.numel() for weight in moving.values()) == 2 * (16 + 6) + 2 * (12 + 16)
    b = torch.randn(1, 2, 6, generator=generator())
    changed = {name: weight[None] for name, weight in moving.items()} | {"0.weight.B": b}
    expected = BASE["0.weight"] + 3.0 * moving["0.weight.A"] @ b[0]
    torch.testing.assert_close(lora.whole(BASE, changed)["0.weight"][0], expected)
    kernel = {"c": torch.zeros(8, 4, 3)}
    factors = LoRA(1).start(kernel, generator())
    assert factors["c.A"].shape == (8, 1) and factors["c.B"].shape == (1, 12)
    assert LoRA(1).whole(kernel, {name: w[None] for name, w in factors.items()})["c"].shape == (1, 8, 4, 3)


def linear_task() -> Task:
    """y = x W + b is off by a matrix of rank 1 and by a bias."""
    x = torch.randn(200, 6, generator=generator())
    base = {"weight": torch.randn(6, 5, generator=generator()), "bias": torch.zeros(1, 5)}
    off = torch.randn(6, 1, generator=generator()) @ torch.randn(1, 5, generator=generator())
    y = x @ (base["weight"] + off) + 1.0

    def loss(weights: Parameters, batch: object) -> Tensor:
        return (x @ weights["weight"] + weights["bias"] - y).square().mean((-1, -2))

    return Task(
        base, loss, lambda node, uniform, now_s: None, torch.ones(2), lambda weights: loss(weights, None)
    )


def tuned(adaptation: Adaptation) -> tuple[float, int]:
    task = fine_tuning(linear_task(), adaptation, generator())
    found = federate(task, Local(40, 1, learning_rate=0.03), Server(), 10, stream(1, "x"))
    return float(found.reached[-1]), int(found.deliveries.payload_bits[0]) // 32


def test_each_way_reaches_what_it_can_and_sends_what_it_moves() -> None:
    base = linear_task().start
    before = float(linear_task().validate({name: w[None] for name, w in base.items()}))
    whole, bits_whole = tuned(everything(base))
    lora, bits_lora = tuned(LoRA(1))
    bias, bits_bias = tuned(biases_and_norms(base))
    assert (bits_whole, bits_lora, bits_bias) == (35, 11, 5)
    assert whole < 0.01 * before
    assert lora == pytest.approx(1.0, abs=0.1)  # the bias of 1 is what a product can't give
    assert whole < bias < before and bias > 0.3 * (before - 1)


def test_nothing_to_tune_is_refused() -> None:
    with pytest.raises(DefianceError, match="fine-tuning of nothing"):
        Some(frozenset()).start(BASE, generator())
    with pytest.raises(DefianceError, match="9.weight; the model has 0.weight"):
        Some(frozenset({"9.weight"})).start(BASE, generator())
    with pytest.raises(DefianceError, match="no matrix of the model is larger"):
        LoRA(16).start(BASE, generator())
