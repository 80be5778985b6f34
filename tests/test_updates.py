"""Nodes on their own end where the one program ends that trains them all."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from quadratics import run
from torch import Tensor

from defiance.control.experience import initial_parameters, perceptron
from defiance.errors import DefianceError
from defiance.learn.aggregation import Mean, named
from defiance.learn.federation import Server
from defiance.learn.training import Parameters, Schedule, federated_mixing, fit
from defiance.learn.updates import (
    Memory,
    NodeData,
    Place,
    Progress,
    capped,
    implausible,
    train_round,
    training_stream,
)
from defiance.seeding import stream

NODES, FEATURES, CELLS, BATCH, SEED = 3, 12, 4, 8, 5
SAMPLES = torch.tensor([50, 80, 30])
TEACHERS = torch.randn(NODES, FEATURES, CELLS, generator=torch.Generator().manual_seed(1))
SCHEDULE = Schedule(rounds=4, steps_per_round=6)


def loss(parameters: Parameters, batch: tuple[Tensor, Tensor]) -> Tensor:
    features, values = batch
    return (perceptron(parameters, features) - values).square().mean((-1, -2))


def drawn(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    features = torch.randn(NODES, BATCH, FEATURES, generator=generator)
    return features, features @ TEACHERS


HELD = drawn(torch.Generator().manual_seed(2))


def local(node: int) -> NodeData[tuple[Tensor, Tensor]]:
    own = slice(node, node + 1)
    return NodeData(
        loss,
        lambda generator: tuple(part[own] for part in drawn(generator)),  # type: ignore[arg-type]
        lambda w: loss(w, (HELD[0][own], HELD[1][own])),
        int(SAMPLES[node]),
    )


def start(nodes: int) -> Parameters:
    return initial_parameters((FEATURES, 16, CELLS), nodes, stream(SEED, "model"))


@dataclass
class Apart:
    """A training over nodes, the rounds one after the other."""

    progress: Progress
    memories: list[Memory]

    def round(self, present: list[int], schedule: Schedule = SCHEDULE) -> None:
        weights, round_ = self.progress.parameters, self.progress.round + 1
        losses = [float(local(node).validate(weights)) for node in present]
        updates = []
        for node in present:
            update, self.memories[node] = train_round(
                weights, self.memories[node], local(node), schedule, round_
            )
            updates.append(update)
        self.progress = self.progress.judged(losses).averaged(updates, SAMPLES[present].tolist(), Mean())


def apart() -> Apart:
    return Apart(Progress.begin(start(1)), [Memory.empty(training_stream(SEED))] * NODES)


def in_one_program(schedule: Schedule = SCHEDULE) -> tuple[Parameters, Tensor]:
    result = fit(
        start(NODES),
        loss,
        drawn,
        lambda w: loss(w, HELD),
        federated_mixing(SAMPLES),
        schedule,
        training_stream(SEED),
    )
    return result.parameters, result.validation_loss


def close(found: Parameters, expected: Parameters) -> None:
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight[0], expected[name][0], rtol=0, atol=1e-6)


def test_nodes_apart_end_where_one_program_ends() -> None:
    training = apart()
    for _ in range(SCHEDULE.rounds):
        training.round([0, 1, 2])
    losses = [float(local(node).validate(training.progress.parameters)) for node in range(NODES)]
    progress = training.progress.judged(losses)
    expected, history = in_one_program()
    assert history.mean(1).argmin() == SCHEDULE.rounds  # it learns: the last round is the best
    close(progress.best, expected)
    assert losses == pytest.approx(history[-1].tolist(), rel=1e-6)  # float32 of about 18
    assert progress.best_loss == pytest.approx(float(history.mean(1).min()), abs=1e-6)


def test_a_node_that_misses_a_round_draws_on_where_it_would_have_been() -> None:
    """Alone in all rounds but the second, it takes the other rounds' batches, rates and its own moments."""
    training = apart()
    training.round([0, 1, 2])
    training.round([0, 2])
    missed = training.memories[1]
    assert missed.round == 1 and missed.steps == SCHEDULE.steps_per_round
    training.round([0, 1, 2])
    assert torch.equal(training.memories[1].generator, training.memories[0].generator)
    assert training.memories[1].steps == 2 * SCHEDULE.steps_per_round

    generator = training_stream(SEED).child("batches").generator()
    batches = [drawn(generator) for _ in range(3 * SCHEDULE.steps_per_round)]
    counter = itertools.count()
    own = NodeData(
        loss,
        lambda _: tuple(part[1:2] for part in batches[12 + next(counter)]),  # type: ignore[arg-type]
        local(1).validate,
        1,
    )
    asked = Progress.begin(start(1)).parameters
    by_hand, _ = train_round(asked, Memory(2, 6, missed.moments, missed.generator), own, SCHEDULE, 3)
    close(train_round(asked, missed, local(1), SCHEDULE, 3)[0], by_hand)


def test_a_round_that_is_done_again_ends_the_same() -> None:
    """What a resumed server asks for: the memory before the round is all that it takes."""
    training = apart()
    training.round([0, 1, 2])
    weights, memory = training.progress.parameters, training.memories[0]
    first = train_round(weights, memory, local(0), SCHEDULE, 2)
    again = train_round(weights, memory, local(0), SCHEDULE, 2)
    assert all(torch.equal(first[0][name], again[0][name]) for name in weights)
    assert all(torch.equal(first[1].moments[name], again[1].moments[name]) for name in first[1].moments)


def test_the_best_round_and_how_long_ago_it_was() -> None:
    progress = Progress.begin({"w": torch.zeros(1, 1)})
    for round_, found in enumerate([3.0, 2.0, 2.5, 2.0, 1.0]):
        progress = progress.judged([found - 0.5, found + 0.5])
        assert progress.since == [0, 0, 1, 2, 0][round_]
        progress = progress.averaged([{"w": torch.full((1, 1), round_ + 1.0)}], [7], Mean())
    assert progress.best["w"].item() == 4.0 and progress.best_loss == 1.0 and progress.round == 5


def test_the_mean_is_weighted_by_samples() -> None:
    updates = [{"w": torch.tensor([[0.0, 4.0]])}, {"w": torch.tensor([[8.0, 0.0]])}]
    averaged = Progress.begin(updates[0]).averaged(updates, [100, 300], Mean())
    assert averaged.parameters["w"].tolist() == [[6.0, 1.0]]


@pytest.mark.parametrize("average", ["mean", "median", "trimmed-mean:0.3", "krum:1"])
def test_averages_are_those_of_the_engine(average: str) -> None:
    """Two rounds of one step of plain descent from afar: `federate` on parabolas, which has no moments."""
    centres, samples = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)), [10, 20, 30, 40, 50]
    regime = Server(aggregation=named(average))
    expected = run(centres, regime, 2, samples=torch.tensor(samples)).reached[:, 0]
    progress = Progress.begin({"w": torch.zeros(1, 2)})
    for after in expected[1:]:
        w = progress.parameters["w"]
        updates = [{"w": w - 0.1 * (w - centre)} for centre in centres]
        progress = progress.averaged(updates, samples, regime.aggregation)
        torch.testing.assert_close(progress.parameters["w"][0], after, rtol=0, atol=1e-6)


@pytest.mark.parametrize("text", ["", "mode", "mean:1", "krum:x", "krum:-1", "trimmed-mean:0.5"])
def test_what_is_no_average_is_refused(text: str) -> None:
    with pytest.raises(DefianceError, match="aggregation|trimmed"):
        named(text)


def test_no_node_weighs_more_than_ten_medians_by_its_word_alone() -> None:
    assert capped([10, 30, 10**12]) == [10, 30, 300]
    assert capped([10, 20, 30, 10**12]) == [10, 20, 30, 250]
    for honest in ([50, 80, 30], [10, 10, 100], [0, 0, 0], [1, 10**12], []):  # of two, which lies?
        assert capped(honest) == honest


def test_a_loss_that_would_make_the_mean_ones_own_is_refused_by_name() -> None:
    for lie in (-1e30, 1e38):
        why = implausible(["a", "b", "c"], [0.5, lie, 0.6])
        assert why[::2] == [None, None] and str(why[1]).startswith("b: its validation loss is ")


@pytest.mark.parametrize(
    "losses",
    [
        [0.5, 0.7, 0.6],
        [0.0, 0.0, 0.0],
        [0.0, 0.0, 1.5],
        [-2.0, 1e5, -3.0],
        [0.5, 1e30],  # of two, which lies?
        [],
    ],
)
def test_honest_losses_all_count(losses: list[float]) -> None:
    assert implausible("abc"[: len(losses)], losses) == [None] * len(losses)


def test_a_place_names_its_streams() -> None:
    assert Place(0, 3, SEED, Path()).stream == training_stream(SEED)
