"""Operations against hand counts, layer by layer; clocks and joules."""

import time

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defiance.errors import DefianceError
from defiance.hardware import DEVICE_NPU, SERVER_CPU
from defiance.meter import (
    OPTIMISER_OPERATIONS,
    Meter,
    OperationCount,
    Operations,
    Usage,
    count_operations,
    joules,
    operations_of,
)

WITHIN = 0.02


def squared(output: Tensor) -> Tensor:
    """3 operations per output forwards (difference, square, sum), 2 backwards (difference, product)."""
    return F.mse_loss(output, torch.zeros_like(output))


def check(counted: Operations, forward: tuple[int, int], backward: tuple[int, int], parameters: int) -> None:
    """Matrix products must be exact, the rest within 2 %, and so must every total."""
    for count, (matmul, other) in ((counted.forward, forward), (counted.backward, backward)):
        assert count.matmul == matmul
        assert count.other == pytest.approx(other, rel=WITHIN)
        assert count.total == pytest.approx(matmul + other, rel=WITHIN)
    assert counted.optimiser == OperationCount(0, OPTIMISER_OPERATIONS["adam"] * parameters)


def test_linear() -> None:
    b, n, m = 64, 210, 256
    counted = operations_of(nn.Linear(n, m), torch.empty(b, n), squared)
    # weight gradient only: the input needs none; the bias gradient sums over the batch
    check(counted, (2 * b * n * m, b * m), (2 * b * n * m, 5 * b * m + (b - 1) * m), n * m + m)


@pytest.mark.parametrize(
    ("activation", "forwards", "backwards"),
    [(nn.ReLU(), 1, 1), (nn.GELU(), 5, 11), (nn.SiLU(), 5, 9), (nn.Tanh(), 1, 3), (nn.Sigmoid(), 4, 3)],
)
def test_mlp(activation: nn.Module, forwards: int, backwards: int) -> None:
    b, n, h, m = 32, 210, 256, 21
    model = nn.Sequential(nn.Linear(n, h), activation, nn.Linear(h, m))
    counted = operations_of(model, torch.empty(b, n), squared)
    check(
        counted,
        forward=(2 * b * (n * h + h * m), b * h + forwards * b * h + b * m),
        # of the second layer weight and input gradients, of the first the weight's
        backward=(2 * b * (2 * h * m + n * h), 5 * b * m + (b - 1) * (m + h) + backwards * b * h),
        parameters=n * h + h + h * m + m,
    )


def test_layer_norm() -> None:
    b, n = 64, 256
    # mean 1, variance 3, scale 1, affine 2; per row 5 more (two quotients, eps, root, reciprocal)
    forward = 7 * b * n + 5 * b
    # loss 5; x_hat 2, weight gradient 2, bias gradient 1
    check(operations_of(nn.LayerNorm(n), torch.empty(b, n), squared), (0, forward), (0, 10 * b * n), 2 * n)
    # behind a layer also g w 1, the means of that 1 and of its product with x_hat 2, input gradient 4
    deep = operations_of(nn.Sequential(nn.Linear(n, n), nn.LayerNorm(n)), torch.empty(b, n), squared)
    product = 2 * b * n * n
    check(deep, (product, forward + b * n), (product, (18 + 1) * b * n - n), n * n + 3 * n)
    plain = nn.LayerNorm(n, elementwise_affine=False)
    assert count_operations(plain, torch.empty(b, n)) == OperationCount(0, 5 * b * n)


def test_convolution() -> None:
    b, c, size, kernel, channels = 4, 3, 32, 5, 8
    out = size - kernel + 1
    model = nn.Sequential(nn.Conv2d(c, channels, kernel), nn.ReLU(), nn.Conv2d(channels, 2, 1))
    counted = operations_of(model, torch.empty(b, c, size, size), squared)
    places = b * out * out
    first, second = 2 * places * channels * c * kernel**2, 2 * places * channels * 2
    check(
        counted,
        forward=(first + second, places * (channels + channels + 2)),
        backward=(first + 2 * second, places * (5 * 2 + 2 + channels + channels)),
        parameters=channels * c * kernel**2 + channels + 2 * channels + 2,
    )


class StackedMLP(nn.Module):
    """One MLP per base station, weights stacked: [stations, in, out]."""

    def __init__(self, stations: int, n: int, h: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(stations, n, h))
        self.bias = nn.Parameter(torch.empty(stations, 1, h))
        self.second = nn.Parameter(torch.empty(stations, h, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(torch.relu(torch.baddbmm(self.bias, x, self.first)), self.second)


def test_stacked_mlp() -> None:
    s, b, n, h = 7, 128, 50, 64
    counted = operations_of(StackedMLP(s, n, h), torch.empty(s, b, n), squared)
    check(
        counted,
        forward=(2 * s * b * (n * h + h), s * b * (h + h)),
        backward=(2 * s * b * (n * h + 2 * h), s * (5 * b + b * h + (b - 1) * h)),
        parameters=s * (n * h + h + h),
    )


def test_vmapped_mlp_counts_as_stacked() -> None:
    s, b, n, h = 7, 128, 50, 64
    stacked = count_operations(
        torch.vmap(lambda w, v, x: torch.relu(x @ w) @ v),
        torch.empty(s, n, h),
        torch.empty(s, h, 1),
        torch.empty(s, b, n),
    )
    assert stacked == OperationCount(2 * s * b * (n * h + h), s * b * h)


def test_lstm() -> None:
    b, t, n, h = 16, 10, 21, 32
    counted = operations_of(
        nn.LSTM(n, h, batch_first=True), torch.empty(b, t, n), lambda out: squared(out[0])
    )
    gates = 4 * h
    # per step: two biases, the sum of both products; three sigmoids, two tanh; c = f c + i g, h = o tanh(c)
    forward = (2 * b * t * gates * (n + h), b * t * (3 * gates + 3 * 4 * h + 2 * h + 4 * h))
    assert counted.forward.matmul == forward[0]
    assert counted.forward.other == pytest.approx(forward[1], rel=WITHIN)
    # input weights, recurrent weights, and states (into the first one no gradient flows)
    assert counted.backward.matmul == 2 * b * gates * (t * n + t * h + (t - 1) * h)
    assert counted.optimiser.total == 12 * (gates * (n + h) + 2 * gates)


def test_embedding_softmax_and_cross_entropy() -> None:
    b, n, m = 64, 8, 21
    model = nn.Sequential(nn.Embedding(100, n), nn.Linear(n, m))
    labels = torch.zeros(b, dtype=torch.int64, device="meta")
    counted = operations_of(
        model, torch.zeros(b, dtype=torch.int64), lambda out: F.cross_entropy(out, labels)
    )
    check(
        counted,
        forward=(2 * b * n * m, b * m),
        backward=(4 * b * n * m, (5 + 4) * b * m + (b - 1) * m + b * n),
        parameters=100 * n + n * m + m,
    )
    assert count_operations(lambda x: x.softmax(-1), torch.empty(b, m)) == OperationCount(0, 5 * b * m)


def test_attention_is_not_free() -> None:
    b, t, n = 2, 10, 32
    query = torch.empty(b, 4, t, n // 4)
    counted = count_operations(F.scaled_dot_product_attention, query, query, query)
    assert counted.matmul == 2 * (2 * b * t * t * n)
    assert counted.other >= 5 * b * 4 * t * t


def test_products_with_vectors() -> None:
    matrix, vector = torch.empty(8, 5), torch.empty(5)
    assert count_operations(torch.mv, matrix, vector) == OperationCount(80, 0)
    assert count_operations(torch.dot, vector, vector) == OperationCount(10, 0)
    assert count_operations(nn.Linear(5, 8, device="meta"), vector) == OperationCount(80, 8)


def test_only_what_is_trained_is_updated() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3))
    model[0].requires_grad_(False)
    counted = operations_of(model, torch.empty(8, 10), squared, optimiser="sgd")
    assert counted.backward.matmul == 2 * 8 * 20 * 3
    assert counted.optimiser.total == 2 * (20 * 3 + 3)
    assert counted.training_step == counted.forward + counted.backward + counted.optimiser


def test_counting_leaves_the_model_alone() -> None:
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    operations_of(model, torch.ones(4, 3), squared)
    assert model.weight.device.type == "cpu" and model.weight.grad is None
    assert torch.equal(model.weight, before)


def test_several_inputs() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a + b).requires_grad_()

    counted = operations_of(Two(), [torch.empty(5, 3), torch.empty(3)], squared)
    assert counted.forward == OperationCount(0, 15)


def test_adding_into_places_is_counted_and_moving_is_not() -> None:
    source, table = torch.empty(6, 3), torch.empty(4, 3)
    index = torch.zeros(6, dtype=torch.int64)
    assert count_operations(lambda x, i, t: t.index_add(0, i, x), source, index, table).total == 18
    assert count_operations(lambda x, i, t: t.index_put((i,), x, True), source, index, table).total == 18
    assert count_operations(lambda x, i, t: t.index_put((i,), x), source, index, table).total == 0
    assert (
        count_operations(lambda i, t: torch.cat([t[i], t]).T.reshape(5, 6).clone(), index, table).total == 0
    )


@pytest.mark.parametrize(
    "function",
    [torch.linalg.inv, torch.erfinv, torch.sort, lambda x: F.gelu(x, approximate="tanh")],
)
def test_the_unknown_is_refused(function) -> None:
    with pytest.raises(DefianceError, match="nobody has said how many operations aten"):
        count_operations(function, torch.empty(4, 4))


def test_complex_numbers_are_refused() -> None:
    with pytest.raises(DefianceError, match="complex"):
        count_operations(torch.mm, *[torch.empty(4, 4, dtype=torch.complex64)] * 2)


def test_usage_adds() -> None:
    assert Usage(1, 2, 3.0, 4.0) + Usage(10, 20, 30.0, 40.0) == Usage(11, 22, 33.0, 44.0)
    assert OperationCount(1, 2) * 3 == OperationCount(3, 6)
    assert Usage(1, 2).operations == OperationCount(1, 2).total == 3


def test_meter_sums_operations_and_time() -> None:
    meter = Meter("device")
    meter.count(OperationCount(10, 1), times=3)
    with meter.running():
        time.sleep(0.05)
    assert meter.usage.wall_s >= 0.05 > meter.usage.cpu_s
    before = meter.usage
    with pytest.raises(KeyError), meter.running():
        sum(range(300_000))
        raise KeyError
    assert meter.usage.cpu_s > before.cpu_s
    assert meter.usage.operations == 33


def test_joules_two_ways() -> None:
    modelled, estimated = joules(Usage(900, 100, cpu_s=2.0, wall_s=1.0), DEVICE_NPU)
    assert (modelled.provenance, estimated.provenance) == ("modelled", "estimated")
    assert modelled.energy_j == pytest.approx(1000 * DEVICE_NPU.joules_per_operation)
    assert estimated.energy_j == pytest.approx(2.0 * SERVER_CPU.watts_per_core)
    for energy in (modelled, estimated):
        assert energy.low_j < energy.energy_j < energy.high_j
