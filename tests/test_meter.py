"""Operations against hand counts, layer by layer; clocks and joules."""

import copy
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
    count_while,
    joules,
    operations_of,
    operations_of_loss,
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


def test_complex_products_take_eight_operations_per_multiply_accumulate() -> None:
    m, k, n = 8, 5, 3
    a, b = torch.empty(m, k, dtype=torch.complex64), torch.empty(k, n, dtype=torch.complex64)
    assert count_operations(torch.mm, a, b) == OperationCount(8 * m * k * n, 0)
    assert count_operations(lambda x, y: x.mH @ x @ y, a, b).matmul == 8 * (k * m * k + k * k * n)
    assert count_operations(torch.mv, a, b[:, 0]) == OperationCount(8 * m * k, 0)
    batched = torch.empty(4, m, k, dtype=torch.complex64)
    assert count_operations(torch.matmul, batched, b) == OperationCount(4 * 8 * m * k * n, 0)


def test_complex_elements_by_hand() -> None:
    z, x = torch.empty(10, dtype=torch.complex64), torch.empty(10)
    for function, expected in (
        (lambda z, x: z + z, 20),
        (lambda z, x: z * z, 60),
        (lambda z, x: z * x, 20),
        (lambda z, x: 2.0 * z, 20),
        (lambda z, x: z / z, 110),
        (lambda z, x: z.abs(), 40),
        (lambda z, x: z.sum(), 18),
        (lambda z, x: torch.complex(x, x).conj().real, 0),
        (lambda z, x: torch.view_as_real(z).square().sum(), 20 + 19),
    ):
        assert count_operations(function, z, x) == OperationCount(0, expected)
    with pytest.raises(DefianceError, match="complex aten.log"):
        count_operations(torch.log, z)


def test_a_complex_layer_trains_at_four_times_the_cost_of_a_real_one() -> None:
    """A precoder W h with its gradient: two products of the same size, |W h|^2 as loss."""
    users, antennas, streams = 64, 32, 4

    def loss(weights: dict[str, Tensor], channel: Tensor) -> Tensor:
        return torch.view_as_real(channel @ weights["w"]).square().sum()

    counted = operations_of_loss(
        loss,
        {"w": torch.empty(antennas, streams, dtype=torch.complex64)},
        [torch.empty(users, antennas, dtype=torch.complex64)],
    )
    product = 8 * users * antennas * streams
    assert (counted.forward.matmul, counted.backward.matmul) == (product, product)


def test_attention_by_hand() -> None:
    """Self-attention with its four projections, forwards and backwards, one head at a time summed up."""
    b, t, e, heads = 4, 12, 32, 4
    attention = nn.MultiheadAttention(e, heads, batch_first=True)

    class Self(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = attention

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, x, x, need_weights=False)[0]

    counted = operations_of(Self(), torch.empty(b, t, e), squared)
    projections, scores = 2 * b * t * e * 4 * e, 2 * (2 * b * t * t * e)
    assert counted.forward.matmul == projections + scores
    # backwards twice each, without the input's gradient through the three input projections
    assert counted.backward.matmul == 2 * projections - 2 * b * t * e * 3 * e + 2 * scores
    softmax, biases, scaling = 5 * b * heads * t * t, b * t * 4 * e, 2 * b * t * e
    assert counted.forward.total == pytest.approx(
        projections + scores + softmax + biases + scaling, rel=WITHIN
    )
    backward = 2 * projections - 6 * b * t * e * e + 2 * scores
    backward += 4 * b * heads * t * t + b * t * 4 * e + scaling + 5 * b * t * e
    assert counted.backward.total == pytest.approx(backward, rel=WITHIN)


def test_a_whole_lstm_step_by_hand() -> None:
    b, t, n, h = 16, 10, 21, 32
    counted = operations_of(
        nn.LSTM(n, h, batch_first=True), torch.empty(b, t, n), lambda out: squared(out[0])
    )
    gates = 4 * h
    matmul = 2 * b * t * gates * (n + h) + 2 * b * gates * (t * n + t * h + (t - 1) * h)
    cell = b * t * (3 * gates + 3 * 4 * h + 2 * h + 4 * h)
    # the derivatives of three sigmoids (3), two tanh (3), six products and two sums; biases; the loss
    back = b * t * (3 * 3 * h + 2 * 3 * h + 8 * h + 2 * gates + 5 * h)
    optimiser = 12 * (gates * (n + h) + 2 * gates)
    assert counted.training_step.total == pytest.approx(matmul + cell + back + optimiser, rel=WITHIN)


@pytest.mark.parametrize(
    ("name", "kind", "more"), [("sgd", torch.optim.SGD, 0), ("adam", torch.optim.Adam, 1)]
)
def test_optimisers_as_counted_in_their_own_programs(name: str, kind: type, more: int) -> None:
    """Torch's own programs for one tensor, from the second step on, where no state is made.

    Its Adam divides sqrt(v) by a bias correction, which our formula has inside of eps and the rate.
    """
    parameter = torch.zeros(10_000, requires_grad=True)
    optimiser = kind([parameter], lr=0.1, foreach=False)
    for _ in range(2):
        parameter.grad = torch.ones_like(parameter)
        counted = count_while(optimiser.step)
    assert counted.total == pytest.approx((OPTIMISER_OPERATIONS[name] + more) * 10_000, rel=0.001)


def test_a_function_of_weights_counts_as_its_module() -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    as_module = operations_of(model, torch.empty(16, 20), squared)
    shell = copy.deepcopy(model).to("meta")
    each = torch.vmap(lambda weights, x: squared(torch.func.functional_call(shell, weights, (x,))))
    weights = {name: weight[None] for name, weight in model.named_parameters()}
    as_function = operations_of_loss(each, weights, [torch.empty(1, 16, 20)])
    assert as_function.training_step.matmul == as_module.training_step.matmul
    assert as_function.training_step.total == pytest.approx(as_module.training_step.total, rel=WITHIN)


def test_metering_takes_less_than_a_hundredth_of_a_step() -> None:
    """Of 5 ms, which a step of the handover model takes on seven stations; the best of many turns."""
    meter, counted = Meter("device"), OperationCount(10, 1)
    best_s = 1.0
    for _ in range(20):
        began_s = time.perf_counter()
        for _ in range(100):
            with meter.running():
                meter.count(counted, times=3)
        best_s = min(best_s, (time.perf_counter() - began_s) / 100)
    assert best_s < 0.01 * 5e-3


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
