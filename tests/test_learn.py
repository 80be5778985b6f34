"""One training loop: nodes apart, federated, alone; what may move; when it stops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from defiance.control.experience import initial_parameters, perceptron
from defiance.learn.training import Fit, Parameters, Schedule, federated_mixing, fit, mix
from defiance.seeding import stream


def to_target(parameters: Parameters, target: Tensor) -> Tensor:
    """Squared distance of every node's weights to its target, `[nodes]`."""
    return (parameters["weight"] - target).square().sum(-1) + parameters["bias"].square().sum(-1)


def start(nodes: int) -> Parameters:
    return {"weight": torch.zeros(nodes, 3), "bias": torch.ones(nodes, 1)}


def train(
    targets: Tensor, mixing: Tensor, *, rounds: int = 5, steps: int = 4, noise: float = 0.0, **options
) -> Fit:
    """Every node is drawn to its own target, `[nodes, 3]`."""

    def draw(generator: torch.Generator) -> Tensor:
        return targets + noise * torch.randn(targets.shape, generator=generator)

    return fit(
        start(len(targets)),
        to_target,
        draw,
        lambda w: to_target(w, targets),
        mixing,
        Schedule(rounds, steps, learning_rate=0.1),
        stream(1, "fit"),
        **options,
    )


TARGETS = torch.tensor([[1.0, -2.0, 3.0], [-3.0, 0.5, 1.0], [0.3, 0.1, -4.0]])


# --- mixing ---


def test_federated_is_the_mean_weighted_by_samples() -> None:
    mixing = federated_mixing(torch.tensor([100, 300]))
    assert mixing.tolist() == [[0.25, 0.75], [0.25, 0.75]]
    mixed = mix({"a": torch.tensor([[0.0, 4.0], [8.0, 0.0]]), "b": torch.tensor([1.0, 2.0])}, mixing)
    assert mixed["a"].tolist() == [[6.0, 1.0], [6.0, 1.0]] and mixed["b"].tolist() == [1.75, 1.75]


@given(samples=st.lists(st.integers(0, 10**7), min_size=1, max_size=9).filter(sum))
def test_rows_of_a_mixing_matrix_sum_to_one(samples: list[int]) -> None:
    """So equal weights stay what they are."""
    mixing = federated_mixing(torch.tensor(samples))
    assert mixing.shape == (len(samples), len(samples)) and bool((mixing >= 0).all())
    assert mixing.sum(-1).tolist() == pytest.approx([1.0] * len(samples), abs=1e-6)
    equal = {"w": torch.arange(6.0).view(1, 2, 3).expand(len(samples), 2, 3)}
    torch.testing.assert_close(mix(equal, mixing)["w"], equal["w"])


def test_mixing_is_a_matrix_product_over_nodes() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.rand(3, 3, generator=generator)
    weight = torch.randn(3, 4, 5, generator=generator)
    expected = torch.stack([sum(mixing[i, j] * weight[j] for j in range(3)) for i in range(3)])
    torch.testing.assert_close(mix({"w": weight}, mixing)["w"], expected)


# --- regimes ---


def test_local_nodes_stay_apart() -> None:
    """Three nodes in one program end exactly where each ends alone."""
    together = train(TARGETS, torch.eye(3))
    for node in range(3):
        alone = train(TARGETS[node : node + 1], torch.eye(1))
        for name, weight in together.parameters.items():
            assert torch.equal(weight[node], alone.parameters[name][0]), name
        assert torch.equal(together.validation_loss[:, node], alone.validation_loss[:, 0])


def test_local_perceptrons_stay_apart() -> None:
    """The same with the model that is used, up to the order of sums in a matrix product."""
    generator = torch.Generator().manual_seed(0)
    features, values = torch.randn(2, 64, 6, generator=generator), torch.randn(2, 64, 3, generator=generator)

    def run(nodes: slice) -> Fit:
        x, y = features[nodes], values[nodes]

        def loss(parameters: Parameters, batch: tuple[Tensor, Tensor]) -> Tensor:
            return (perceptron(parameters, batch[0]) - batch[1]).square().mean((-1, -2))

        return fit(
            initial_parameters((6, 8, 3), len(x), stream(1, "model")),
            loss,
            lambda generator: (x, y),
            lambda w: loss(w, (x, y)),
            torch.eye(len(x)),
            Schedule(3, 5),
            stream(1, "fit"),
        )

    together = run(slice(0, 2))
    assert bool((together.validation_loss[-1] < together.validation_loss[0]).all())
    for node in range(2):
        alone = run(slice(node, node + 1))
        for name, weight in together.parameters.items():
            torch.testing.assert_close(weight[node : node + 1], alone.parameters[name], rtol=1e-4, atol=1e-6)


def test_equal_data_makes_federated_equal_central() -> None:
    """Nodes that draw the same batches take the same steps: the mean of equals is the one."""
    same = TARGETS[:1].expand(2, 3)
    federated = train(same, federated_mixing(torch.tensor([1, 3])))
    central = train(same[:1], torch.eye(1))
    for name, weight in federated.parameters.items():
        torch.testing.assert_close(weight, central.parameters[name].expand_as(weight))


def test_federated_nodes_leave_every_round_with_the_mean_of_their_weights() -> None:
    """One round of one step: Adam's first step is the learning rate times the sign of the gradient."""
    samples = torch.tensor([1, 1, 2])
    after = train(TARGETS, federated_mixing(samples), rounds=1, steps=1)
    own_step = 0.1 * TARGETS.sign()
    expected = (own_step * (samples / 4)[:, None]).sum(0)
    torch.testing.assert_close(after.parameters["weight"], expected.expand(3, 3))
    torch.testing.assert_close(after.parameters["bias"], torch.full((3, 1), 0.9))


def test_federated_training_finds_the_weighted_mean_of_the_targets() -> None:
    """The minimum of the sum of squared distances; Adam takes steps of equal size, hence the tolerance."""
    targets = torch.tensor([[1.0, -2.0, 0.5], [1.2, -1.8, 0.9]])
    result = train(targets, federated_mixing(torch.tensor([1, 1])), rounds=200, steps=1)
    expected = targets.mean(0).expand(2, 3)
    torch.testing.assert_close(result.parameters["weight"], expected, atol=0.03, rtol=0)


# --- the loop ---


def test_frozen_parameters_do_not_move() -> None:
    result = train(TARGETS, federated_mixing(torch.ones(3)), trainable=lambda name: name == "bias")
    assert torch.equal(result.parameters["weight"], torch.zeros(3, 3))
    assert bool((result.parameters["bias"] < 0.9).all())


def test_initial_parameters_are_left_alone() -> None:
    initial = start(1)
    fit(
        initial,
        to_target,
        lambda generator: TARGETS[:1],
        lambda w: to_target(w, TARGETS[:1]),
        torch.eye(1),
        Schedule(2, 2),
        stream(1, "fit"),
    )
    assert torch.equal(initial["weight"], torch.zeros(1, 3)) and not initial["weight"].requires_grad


def test_deterministic_by_seed() -> None:
    runs = [train(TARGETS, torch.eye(3), noise=1.0) for _ in range(2)]
    assert torch.equal(runs[0].validation_loss, runs[1].validation_loss)
    assert torch.equal(runs[0].parameters["weight"], runs[1].parameters["weight"])
    assert not torch.equal(runs[0].validation_loss, train(TARGETS, torch.eye(3)).validation_loss)


def scripted(losses: list[float] | list[list[float]], patience: int, mixing: Tensor | None = None) -> Fit:
    """A training whose validation losses are given, per node if need be; its weights grow step by step."""
    script = iter(losses)
    nodes = 1 if mixing is None else len(mixing)
    return fit(
        {"w": torch.zeros(nodes, 1)},
        lambda parameters, batch: -parameters["w"].sum(-1),
        lambda generator: None,
        lambda w: torch.tensor(next(script)).expand(nodes),
        torch.eye(nodes) if mixing is None else mixing,
        Schedule(rounds=len(losses) - 1, steps_per_round=1, patience=patience),
        stream(1, "fit"),
    )


def test_training_stops_after_rounds_without_gain_and_returns_the_best() -> None:
    result = scripted([5.0, 4.0, 3.0, 3.5, 3.0, 3.2, 1.0], patience=3)
    assert result.rounds == 5
    assert result.validation_loss.flatten().tolist() == pytest.approx([5.0, 4.0, 3.0, 3.5, 3.0, 3.2])
    two_rounds = scripted([5.0, 4.0, 3.0, 3.5, 3.0, 3.2, 1.0], patience=1)
    assert two_rounds.rounds == 3
    assert torch.equal(result.parameters["w"], two_rounds.parameters["w"])
    assert result.parameters["w"].item() > 0


def test_training_that_never_helps_returns_where_it_began() -> None:
    result = scripted([1.0, 2.0, 3.0, 4.0], patience=10)
    assert result.rounds == 3 and result.parameters["w"].item() == 0.0


def test_nodes_apart_keep_their_own_best_rounds_and_mixed_ones_the_best_mean() -> None:
    """The first node is best after one round, the second after three; their mean after two."""
    losses = [[5.0, 5.0], [1.0, 4.5], [1.5, 3.0], [4.0, 2.0], [6.0, 6.0]]
    alone = [scripted([pair[node] for pair in losses], patience=9).parameters["w"][0] for node in (0, 1)]
    assert 0 < alone[0] < alone[1]
    assert torch.equal(scripted(losses, 9, torch.eye(2)).parameters["w"], torch.stack(alone))
    mixed = scripted(losses, 9, torch.full((2, 2), 0.5)).parameters["w"]
    assert mixed[0] == mixed[1] and alone[0] < mixed[0] < alone[1]


def test_nodes_apart_train_on_while_one_of_them_gains() -> None:
    losses = [[5.0, 5.0], [6.0, 4.0], [7.0, 3.0], [8.0, 2.0], [9.0, 3.0], [9.0, 3.0], [0.0, 0.0]]
    assert scripted(losses, 2, torch.eye(2)).rounds == 5
    assert scripted(losses, 2, torch.full((2, 2), 0.5)).rounds == 2


def test_the_learning_rate_falls_to_zero_along_a_half_cosine() -> None:
    """A constant gradient moves Adam by the rate: lr (1 + cos(pi t/4))/2, t = 0 ... 3, sums to 2.5 lr."""
    result = fit(
        {"w": torch.zeros(1, 1)},
        lambda parameters, batch: -parameters["w"].sum(-1),
        lambda generator: None,
        lambda w: -w["w"].sum(-1),
        torch.eye(1),
        Schedule(rounds=2, steps_per_round=2, learning_rate=0.1),
        stream(1, "fit"),
    )
    assert result.parameters["w"].item() == pytest.approx(0.25, rel=1e-4)


def test_progress_counts_optimiser_steps() -> None:
    done: list[int] = []
    train(TARGETS, torch.eye(3), rounds=4, steps=3, advance=done.append)
    assert done == [3] * 4
