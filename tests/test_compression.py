"""Codes for updates against closed forms; hostile bytes and updates; partition of data."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from defiance.errors import DefianceError
from defiance.learn.aggregation import Krum, Median, TrimmedMean, check_update, refusals
from defiance.learn.compression import Compression, Dense, Int8, OneBit, Sign, TopK
from defiance.learn.partition import Drift, LocalData, dirichlet, unequal
from defiance.learn.vectors import Layout

CODES = [Dense(), TopK(0.1), TopK(1e-9), Int8(), Int8(8), OneBit(), OneBit(8), Sign(), Sign(8)]


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("code", CODES, ids=repr)
@given(nodes=st.integers(1, 3), length=st.integers(1, 700), seed=st.integers(0, 99))
def test_what_is_decoded_has_the_shape_and_the_size_of_what_was_encoded(
    code: Compression, nodes: int, length: int, seed: int
) -> None:
    vectors = torch.randn(nodes, length, generator=generator(seed))
    payload = code.encode(vectors, generator(seed))
    decoded = code.decode(payload, length)
    assert payload.dtype == torch.uint8 and decoded.shape == vectors.shape and decoded.dtype == torch.float32
    assert bool((decoded.abs() <= vectors.abs().amax(1, keepdim=True) * 1.0001).all())
    nothing = code.decode(code.encode(torch.zeros(nodes, length), generator(seed)), length)
    assert not nothing.any()
    if code.contractive:
        assert bool(((decoded - vectors).norm(dim=1) <= vectors.norm(dim=1)).all())


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (Dense(), 40_000),
        (TopK(0.01), 800),
        (Int8(), 10_000 + 40),
        (OneBit(), 40 * (32 + 4)),
        (Sign(), 40 * (32 + 4)),
    ],
)
def test_bytes_by_hand(code: Compression, expected: int) -> None:
    assert code.encode(torch.randn(2, 10_000, generator=generator()), generator()).shape == (2, expected)


def test_top_k_keeps_the_greatest_and_is_as_near_as_its_bound_says() -> None:
    vectors = torch.randn(5, 1000, generator=generator())
    decoded = TopK(0.05).decode(TopK(0.05).encode(vectors, generator()), 1000)
    kept = decoded != 0
    assert kept.sum(1).tolist() == [50] * 5 and torch.equal(decoded[kept], vectors[kept])
    assert vectors[kept].abs().min() >= 0 and bool(
        (vectors.abs().masked_fill(kept, 0).amax(1) <= vectors.abs().masked_fill(~kept, 9).amin(1)).all()
    )
    error = (decoded - vectors).square().sum(1)
    assert bool((error <= 0.95 * vectors.square().sum(1)).all())


def test_signs_are_as_near_as_their_formula_says() -> None:
    vectors = torch.randn(3, 512, generator=generator())
    vectors[0, 5] = 0.0
    decoded = Sign().decode(Sign().encode(vectors, generator()), 512)
    assert torch.equal(decoded.sign()[vectors != 0], vectors.sign()[vectors != 0])
    left = (decoded - vectors).square().view(3, 2, 256).sum(-1)
    blocks = vectors.view(3, 2, 256)
    torch.testing.assert_close(left, blocks.square().sum(-1) - blocks.abs().sum(-1).square() / 256)


@pytest.mark.parametrize("code", [Int8(), OneBit()])
def test_quantisers_have_no_bias_and_the_variance_of_their_formula(code: Int8 | OneBit) -> None:
    draws, length = 20_000, 16
    x = torch.randn(length, generator=generator())
    found = code.decode(code.encode(x.expand(draws, -1), generator(2)), length).double()
    scale = x.abs().max().double()
    if isinstance(code, Int8):
        step = scale / 127
        fraction = (x.double() / step) % 1
        variance = step**2 * fraction * (1 - fraction)
    else:
        variance = scale**2 - x.double() ** 2
    sigma = (variance / draws).sqrt()
    assert bool(((found.mean(0) - x).abs() <= 4.5 * sigma + 1e-6).all())
    torch.testing.assert_close(found.var(0), variance, rtol=0.06, atol=1e-6)


@pytest.mark.parametrize("code", [Dense(), TopK(0.5), Int8(), OneBit(), Sign()], ids=repr)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_poison_stays_visible(code: Compression, value: float) -> None:
    vectors = torch.ones(2, 20)
    vectors[1, 3] = value
    finite = code.decode(code.encode(vectors, generator()), 20).isfinite().all(1)
    assert finite.tolist() == [True, False]


@pytest.mark.parametrize("code", CODES, ids=repr)
@given(data=st.binary(min_size=1, max_size=99))
def test_any_bytes_are_decoded_or_refused(code: Compression, data: bytes) -> None:
    payload = torch.frombuffer(bytearray(data), dtype=torch.uint8)[None]
    try:
        assert code.decode(payload, 10).shape == (1, 10)
    except DefianceError as error:
        assert "update" in str(error)


# --- updates of others


def test_wrong_updates_are_refused_with_their_node() -> None:
    model = {"w": torch.zeros(2, 3), "b": torch.zeros(3)}
    good = {name: torch.ones_like(weight) for name, weight in model.items()}
    check_update("site 4", good, model, 3, range(2, 4))
    bad = torch.ones(2, 3)
    bad[1, 2] = torch.nan
    for update, version, said in (
        (good, 1, "starts from model version 1; taken are 2 to 3"),
        ({"w": good["w"]}, 3, "lacks, or has of its own, b"),
        ({**good, "c": good["b"]}, 3, "of its own, c"),
        (
            {**good, "w": torch.ones(3, 2)},
            3,
            "w is torch.float32 \\(3, 2\\); expected torch.float32 \\(2, 3\\)",
        ),
        ({**good, "w": good["w"].double()}, 3, "float64"),
        ({**good, "w": bad}, 3, "w holds NaN"),
        ({**good, "w": bad.nan_to_num(torch.inf)}, 3, "infinite"),
    ):
        with pytest.raises(DefianceError, match=f"^site 4: .*{said}"):
            check_update("site 4", update, model, version, range(2, 4))


def test_what_is_huge_is_judged_by_what_is_usual() -> None:
    norm = torch.tensor([1.0, 2.0, 3.0, 31.0, torch.nan])
    reasons = refusals(list("abcde"), norm, torch.empty(0))
    assert reasons[:3] == [None] * 3 and reasons[4] == "e: NaN or infinite numbers"
    assert reasons[3] == "d: 31 long, over 10 times the usual 2"
    assert refusals(["a"], torch.tensor([31.0]), torch.ones(5))[0] is not None
    assert refusals(["a"], torch.tensor([1e9]), torch.empty(0)) == [None]  # nothing to compare with


def test_robust_averages_by_hand() -> None:
    updates = torch.tensor([[1.0], [2.0], [3.0], [100.0]])
    share = torch.full((4,), 0.25)
    assert Median()(updates, share).tolist() == [2.5] and Median()(updates[:3], share).tolist() == [2.0]
    assert TrimmedMean(0.25)(updates, share).tolist() == [2.5]
    for trimmed in (0.5, -0.1, float("nan")):
        with pytest.raises(DefianceError, match="0 <= trimmed < 0.5"):
            TrimmedMean(trimmed)
    near = torch.tensor([[0.0], [0.1], [0.3], [5.0], [-9.0]])
    assert Krum(1).least == 5 and Krum(1)(near, share).tolist() == pytest.approx([0.1])


# --- data


def test_dirichlet_gives_every_sample_away_and_alpha_says_how_unevenly() -> None:
    label = torch.arange(6000) % 6

    def skew(alpha: float) -> float:
        node = dirichlet(label, 5, alpha, generator())
        table = torch.stack([torch.bincount(label[node == n], minlength=6) for n in range(5)]).double()
        assert table.sum() == 6000 and bool((table.sum(1) > 0).all())
        return float((table / table.sum(0)).var(0, unbiased=False).mean())

    # Var[p_i] = (1/n)(1 - 1/n)/(n alpha + 1)
    for alpha in (0.1, 1.0, 100.0):
        assert skew(alpha) == pytest.approx(0.16 / (5 * alpha + 1), rel=0.5)
    assert skew(0.1) > 3 * skew(1.0) > 30 * skew(100.0)
    few = dirichlet(torch.zeros(6, dtype=torch.int64), 6, 0.01, generator())
    assert few.sort().values.tolist() == list(range(6))
    with pytest.raises(DefianceError, match="alpha"):
        dirichlet(label, 5, 0.0, generator())


def test_unequal_shares_sum_up() -> None:
    count = torch.bincount(unequal(1000, 7, 1.5, generator()))
    assert count.sum() == 1000 and len(count) == 7 and count.min() >= 1 and count.max() > 5 * count.min()
    assert torch.bincount(unequal(700, 7, 0.0, generator())).tolist() == [100] * 7


def test_nodes_draw_from_their_own_samples() -> None:
    data = LocalData.of(
        [
            (torch.tensor([10.0, 11.0]), torch.tensor([0, 1])),
            (torch.tensor([20.0]),) * 1 + (torch.tensor([7]),),
        ]
    )
    x, y = data.draw(torch.tensor([1, 0]), torch.tensor([[0.0, 0.99], [0.4, 0.6]]), torch.zeros(2))
    assert x.tolist() == [[20.0, 20.0], [10.0, 11.0]] and y.tolist() == [[7, 7], [0, 1]]
    assigned = LocalData.assigned((torch.arange(4),), torch.tensor([1, 0, 1, 0]), 2)
    assert assigned.columns[0].tolist() == [1, 3, 0, 2] and assigned.count.tolist() == [2, 2]
    with pytest.raises(DefianceError, match="each of 3 needs some"):
        LocalData.assigned((torch.arange(4),), torch.tensor([1, 0, 1, 0]), 3)
    for nodes, said in (
        ([], "no node"),
        ([(torch.empty(0),)], "node 0: 1 tensors of \\[0\\]"),
        ([(torch.ones(2), torch.ones(3))], "node 0"),
        ([(torch.ones(2, 3),), (torch.ones(2, 4),)], "node 1: samples are torch.float32 \\(4,\\)"),
    ):
        with pytest.raises(DefianceError, match=said):
            LocalData.of(nodes)


def test_data_drift_with_the_time_of_day() -> None:
    morning, evening = (LocalData.of([(torch.full((3,), value),)] * 2) for value in (1.0, 2.0))
    drift = Drift((morning, evening), (0.0, 8.0), day_s=24.0)
    (x,) = drift.draw(torch.tensor([0, 1]), torch.rand(2, 4), torch.tensor([7.9, 8.0], dtype=torch.float64))
    assert x.tolist() == [[1.0] * 4, [2.0] * 4]
    (x,) = drift.draw(torch.tensor([0, 1]), torch.rand(2, 4), torch.tensor([24.1, 47.0], dtype=torch.float64))
    assert x[:, 0].tolist() == [1.0, 2.0]


def test_vectors_and_weights_are_the_same_numbers() -> None:
    parameters = {"a": torch.randn(2, 3, 4), "b": torch.randn(2), "c": torch.randn(2, 5)}
    layout = Layout.of({name: weight[0] for name, weight in parameters.items()})
    vectors = layout.join(parameters)
    assert vectors.shape == (2, layout.length) == (2, 18)
    back = layout.split(vectors)
    assert all(torch.equal(back[name], parameters[name]) for name in parameters)
