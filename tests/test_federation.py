"""Training in a network against what algebra says of parabolas, and against time counted by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from quadratics import CENTRES, CURVATURE, SAMPLES, SHARE, plain, run, task
from torch import Tensor

from defiance.errors import DefianceError
from defiance.kpm import bits_by_purpose
from defiance.learn.aggregation import FedAdam, Follow, Krum, Median, TrimmedMean
from defiance.learn.compression import Int8, OneBit, Sign, TopK
from defiance.learn.environment import Availability, Environment, Links
from defiance.learn.federation import Peers, Server, Task, fedbuff, federate
from defiance.learn.local import Local
from defiance.learn.topology import Topology, alone, contraction, gossip, hierarchical, ring
from defiance.learn.training import Parameters, Schedule, federated_mixing, fit
from defiance.link import BackhaulLink, DelayLink, LossyLink
from defiance.seeding import stream


def shrinking(curvature: Tensor, steps: int, rate: float, proximal: float = 0.0) -> Tensor:
    """How much of a step towards its minimum a node does in a job: `h/(h + mu) (1 - (1 - eta(h + mu))^E)`."""
    total = curvature + proximal
    return curvature / total * (1 - (1 - rate * total) ** steps)


# --- algorithms


@pytest.mark.parametrize("steps", [1, 20])
def test_fedavg_ends_at_its_fixed_point_which_is_the_optimum_only_for_one_step(steps: int) -> None:
    found = run(
        CENTRES, Server(), 300, local=plain(steps, 0.05), curvature=CURVATURE, samples=SAMPLES
    ).parameters["w"][0]
    pull = SHARE * shrinking(CURVATURE, steps, 0.05)
    torch.testing.assert_close(found, pull @ CENTRES / pull.sum(), atol=1e-5, rtol=0)
    optimum = (SHARE * CURVATURE) @ CENTRES / (SHARE * CURVATURE).sum()
    assert (float((found - optimum).norm()) < 1e-4) == (steps == 1)


def test_fedprox_pulls_back_to_where_the_job_began() -> None:
    settings = plain(20, 0.05, proximal=3.0)
    once = run(CENTRES, Server(), 1, local=settings, curvature=CURVATURE, samples=SAMPLES)
    pull = SHARE * shrinking(CURVATURE, 20, 0.05, 3.0)
    torch.testing.assert_close(once.parameters["w"][0], pull @ CENTRES)
    found = run(CENTRES, Server(), 300, local=settings, curvature=CURVATURE, samples=SAMPLES).parameters["w"]
    torch.testing.assert_close(found[0], pull @ CENTRES / pull.sum(), atol=1e-5, rtol=0)


def test_the_whole_job_of_fedprox_with_many_steps_is_the_proximal_point() -> None:
    """`argmin h/2 |w - c|^2 + mu/2 |w|^2 = h c/(h + mu)`: the norm is squared, and halved."""
    found = run(CENTRES[:1], Server(), 1, local=plain(400, 0.1, proximal=3.0)).parameters["w"][0]
    torch.testing.assert_close(found, CENTRES[0] / 4)


def test_fedadam_is_adam_on_the_mean_update() -> None:
    rate, b1, b2, tau = 0.1, 0.9, 0.99, 1e-3
    found = run(CENTRES, Server(step=FedAdam(rate, b1, b2, tau)), 5, samples=SAMPLES).reached[:, 0]
    weights, m, v = torch.zeros(2), torch.zeros(2), torch.full((2,), tau**2)
    for after in found[1:]:
        update = 0.1 * (SHARE @ CENTRES - weights)
        m, v = b1 * m + (1 - b1) * update, b2 * v + (1 - b2) * update**2
        weights = weights + rate * m / (v.sqrt() + tau)
        torch.testing.assert_close(after, weights)


def test_one_full_step_of_fedavg_is_the_central_one() -> None:
    found = run(CENTRES, Server(), 1, samples=SAMPLES).parameters["w"][0]
    torch.testing.assert_close(found, 0.1 * (SHARE @ CENTRES))


def test_a_server_step_of_half_goes_half_the_way() -> None:
    half = run(CENTRES, Server(step=Follow(0.5)), 1).parameters["w"]
    torch.testing.assert_close(half, run(CENTRES, Server(), 1).parameters["w"] / 2)


def test_fedbuff_weighs_updates_by_their_staleness() -> None:
    """Two nodes, one three times slower, K = 1: the slow one's update is two versions behind.

    Its job began at the same weights as the first, w = 0, and ends with the third of the fast one's.
    """
    centres = torch.tensor([[1.0], [-4.0]])
    environment = Environment(step_s=torch.tensor([1.0, 2.5]))
    found = run(centres, fedbuff(1), 3, environment=environment)
    assert [round_.used for round_ in found.rounds] == [(0,), (0,), (1,)]
    assert [round_.staleness for round_ in found.rounds] == [(0,), (0,), (2,)]
    assert [round_.ended_s for round_ in found.rounds] == [1.0, 2.0, 2.5]
    first = 0.1
    second = first + 0.1 * (1.0 - first)
    third = second + (1 + 2) ** -0.5 * 0.1 * (-4.0 - 0.0)
    assert found.reached[1:, 0, 0].tolist() == pytest.approx([first, second, third])


def test_fedbuff_waits_for_its_buffer_and_sums_by_shares() -> None:
    environment = Environment(step_s=torch.tensor([1.0, 2.0, 10.0]))
    found = run(CENTRES, fedbuff(2), 2, environment=environment, samples=SAMPLES)
    assert [round_.used for round_ in found.rounds] == [(0, 1), (0, 1)]
    assert [round_.ended_s for round_ in found.rounds] == [2.0, 4.0]
    expected = 0.1 * (100 * CENTRES[0] + 300 * CENTRES[1]) / 400
    torch.testing.assert_close(found.reached[1, 0], expected)
    assert found.jobs.tolist() == [2, 2, 1]


# --- peers


def test_gossip_shrinks_disagreement_by_the_second_eigenvalue_and_keeps_the_mean() -> None:
    """The first job takes nodes to the slowest eigenvector, 3 away from zero; after it nobody learns."""
    path = torch.tensor([[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]]).bool()
    mixing = gossip(path).mixing[0]
    assert torch.equal(mixing, mixing.T) and mixing.sum(0).tolist() == pytest.approx([1.0] * 4)
    assert mixing[0, 1] == pytest.approx(1 / 3) and mixing[1, 2] == pytest.approx(1 / 3)
    values, vectors = torch.linalg.eigh(mixing)
    slowest = vectors[:, values.abs().argsort()[-2]]

    def loss(weights: Parameters, batch: tuple[Tensor, Tensor]) -> Tensor:
        node, now_s = batch
        return (now_s == 0) * 0.5 * (weights["w"][:, 0] - 3 - slowest[node]).square()

    once = Task(
        start={"w": torch.zeros(1)},
        loss=loss,
        draw=lambda node, uniform, now_s: (node, now_s),
        samples=torch.ones(4),
        validate=lambda weights: weights["w"][:, 0].clone(),
    )
    clock = Environment(step_s=1.0)
    found = federate(once, plain(1, 1.0), Peers(gossip(path)), 6, stream(1, "x"), clock).reached[1:]
    disagreement = (found - 3).norm(dim=1)
    expected = [contraction(mixing) ** n for n in range(1, 7)]
    assert disagreement.tolist() == pytest.approx(expected, rel=1e-4)
    assert found.mean(1).tolist() == pytest.approx([3.0] * 6)


def test_peers_mix_as_the_matrix_says() -> None:
    """One step from 0 is eta c, and then A mixes; in the second round the same from there."""
    path = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]]).bool()
    found = run(CENTRES, Peers(gossip(path)), 2)
    mixing, weights = gossip(path).mixing[0], torch.zeros(3, 2)
    for after in found.reached[1:]:
        weights = mixing @ (weights + 0.1 * (CENTRES - weights))
        torch.testing.assert_close(after, weights)


def test_ring_and_hierarchy_have_the_right_rows() -> None:
    torch.testing.assert_close(ring(4).mixing[0][0], torch.tensor([1 / 3, 1 / 3, 0.0, 1 / 3]))
    within, everyone = hierarchical(torch.tensor([0, 0, 1]), SAMPLES, 2).mixing
    torch.testing.assert_close(within, torch.tensor([[0.25, 0.75, 0], [0.25, 0.75, 0], [0, 0, 1.0]]))
    torch.testing.assert_close(everyone, federated_mixing(SAMPLES))


def test_a_hierarchy_of_one_round_is_fedavg_and_saves_messages_in_others() -> None:
    group = torch.tensor([0, 0, 1])
    star = run(CENTRES, Server(), 4, samples=SAMPLES, local=plain(3))
    peers = run(CENTRES, Peers(hierarchical(group, SAMPLES, 1)), 4, samples=SAMPLES, local=plain(3))
    torch.testing.assert_close(peers.parameters["w"], star.parameters["w"].expand(3, 2))
    sparse = run(CENTRES, Peers(hierarchical(group, SAMPLES, 4)), 4, samples=SAMPLES, local=plain(3))
    assert len(peers.deliveries) == 4 * 4 and len(sparse.deliveries) == 3 * 2 + 4
    torch.testing.assert_close(sparse.parameters["w"][0], sparse.parameters["w"][2])


def test_nodes_alone_learn_alone() -> None:
    found = run(CENTRES, Peers(alone(3)), 100)
    torch.testing.assert_close(found.parameters["w"], CENTRES, atol=1e-3, rtol=0)
    assert len(found.deliveries) == 0


def test_compressed_peers_agree_too() -> None:
    found = run(CENTRES, Peers(ring(3), rate=0.4, up=TopK(0.5)), 600, local=plain(1, 5e-3))
    torch.testing.assert_close(found.parameters["w"], CENTRES.mean(0).expand(3, 2), atol=0.1, rtol=0)


def test_graphs_that_cannot_agree_are_refused() -> None:
    with pytest.raises(DefianceError, match="parts that never meet"):
        gossip(torch.zeros(3, 3, dtype=torch.bool))
    with pytest.raises(DefianceError, match="one-way"):
        gossip(torch.tensor([[0, 1], [0, 0]]).bool())
    with pytest.raises(DefianceError, match="topology of 4 for 3 nodes"):
        run(CENTRES, Peers(ring(4)), 1)
    with pytest.raises(DefianceError, match="noise without end"):
        Peers(ring(3), up=OneBit())
    with pytest.raises(DefianceError, match="noise without end"):
        Server(down=OneBit())


def test_without_an_environment_it_is_the_training_loop() -> None:
    """`learn.training.fit` with Adam for one round, and this loop: the same averages of the same steps."""
    centres = CENTRES
    the_fit = fit(
        {"w": torch.zeros(3, 2)},
        lambda w, batch: 0.5 * (w["w"] - centres).square().sum(-1),
        lambda generator: None,
        lambda w: (w["w"] - centres).square().sum(-1),
        federated_mixing(SAMPLES),
        Schedule(1, 1, learning_rate=0.1),
        stream(1, "fit"),
    )
    local = Local(1, 1, learning_rate=0.1)
    found = run(centres, Server(), 1, local=local, samples=SAMPLES)
    torch.testing.assert_close(the_fit.parameters["w"][:1], found.parameters["w"])


# --- compression in the loop


def test_error_feedback_reaches_the_optimum_which_top_k_alone_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """First coordinates are large and cancel, second ones small: what is left out must come later."""
    centres = torch.tensor([[10.0, 1.0], [-10.0, 1.0]])
    regime = Server(up=TopK(0.5))
    found = run(centres, regime, 400, local=plain(1, 0.02)).parameters["w"][0]
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0]), atol=0.25, rtol=0)
    monkeypatch.setattr(TopK, "biased", False)
    without = run(centres, regime, 400, local=plain(1, 0.02)).parameters["w"][0]
    assert without.tolist() == pytest.approx([0.0, 0.0], abs=1e-5)


def test_signs_both_ways_reach_the_optimum() -> None:
    found = run(CENTRES, Server(up=Sign(), down=Sign()), 250, local=plain(1, 0.04))
    mean = found.reached[130:, 0].mean(0)
    torch.testing.assert_close(mean, CENTRES.mean(0), atol=0.1, rtol=0)


@pytest.mark.parametrize("code", [Int8(), OneBit()])
def test_quantised_updates_end_about_the_optimum(code: Int8 | OneBit) -> None:
    found = run(CENTRES, Server(up=code, down=Int8()), 300, local=plain(1, 0.05))
    mean = found.reached[100:, 0].mean(0)
    torch.testing.assert_close(mean, CENTRES.mean(0), atol=0.15, rtol=0)


def test_compression_both_ways_takes_ten_times_fewer_bits() -> None:
    centres = torch.randn(4, 5000, generator=torch.Generator().manual_seed(1))
    whole = run(centres, Server(), 30)
    sparse = run(centres, Server(up=TopK(0.01), down=TopK(0.01)), 30)
    bits = [bits_by_purpose(found.deliveries)["model"] for found in (whole, sparse)]
    assert bits[0] == 30 * 4 * 2 * 5000 * 32
    assert bits[1] == 4 * (5000 * 32 + 29 * 50 * 64) + 30 * 4 * 50 * 64
    assert bits[0] > 10 * bits[1]


def test_a_node_that_missed_versions_gets_them_or_the_whole_model() -> None:
    centres = torch.ones(2, 100)
    slow = Environment(step_s=torch.tensor([1.0, 3.5]))
    found = run(centres, fedbuff(1, down=TopK(0.02)), 5, environment=slow)
    down = found.deliveries.select(found.deliveries.source == 2)
    to_slow = down.select(down.destination == 1)
    assert to_slow.payload_bits.tolist() == [3200, 4 * 2 * 64]


# --- time, loss, presence


def test_a_round_takes_as_long_as_its_slowest_node_and_its_transfers() -> None:
    link = BackhaulLink(rate_bps=1000.0, delay_s=0.5, header_bits=0)
    environment = Environment(
        step_s=torch.tensor([1.0, 2.0, 3.0]), links=Links(up=link, down=DelayLink(0.25))
    )
    found = run(CENTRES, Server(), 2, environment=environment, local=plain(2))
    # 64 bits in 64 ms; nodes are done after 2, 4 and 6 s, so nobody waits for the others
    assert found.rounds[0].ended_s == pytest.approx(0.25 + 6 + 0.064 + 0.5)
    assert found.rounds[1].ended_s == pytest.approx(2 * 6.814)
    together = Environment(step_s=1.0, links=Links(up=link))
    queued = run(CENTRES, Server(), 1, environment=together)
    assert queued.rounds[0].ended_s == pytest.approx(1 + 3 * 0.064 + 0.5)
    apart = Environment(step_s=1.0, links=Links(up=(link, link, link)))
    assert run(CENTRES, Server(), 1, environment=apart).rounds[0].ended_s == pytest.approx(1 + 0.064 + 0.5)


def test_a_deadline_leaves_stragglers_out_or_takes_them_late() -> None:
    environment = Environment(step_s=torch.tensor([1.0, 1.0, 5.0]))
    dropped = run(CENTRES, Server(deadline_s=2.0), 4, environment=environment)
    assert [round_.used for round_ in dropped.rounds] == [(0, 1)] * 4
    assert [round_.ended_s for round_ in dropped.rounds] == [2.0, 4.0, 6.0, 8.0]
    kept = run(CENTRES, Server(deadline_s=2.0, max_staleness=9), 3, environment=environment)
    assert [round_.used for round_ in kept.rounds] == [(0, 1), (0, 1), (0, 1, 2)] or [
        round_.used for round_ in kept.rounds
    ] == [(0, 1), (0, 1), (2, 0, 1)]
    assert sorted(kept.rounds[2].staleness) == [0, 0, 2] and kept.rounds[2].ended_s == 5.0


def test_lost_transfers_cost_bits_and_their_update() -> None:
    certain = LossyLink(delay_s=0.1, loss_probability=1.0)
    lost = run(CENTRES, Server(), 3, environment=Environment(step_s=1.0, links=Links(up=certain)))
    assert torch.equal(lost.parameters["w"], torch.zeros(1, 2)) and lost.jobs.tolist() == [3, 3, 3]
    assert int((~lost.deliveries.delivered).sum()) == 9
    assert [round_.ended_s for round_ in lost.rounds] == [1.0, 2.0, 3.0]
    half = LossyLink(delay_s=0.1, loss_probability=0.5)
    found = run(CENTRES, Server(), 200, environment=Environment(links=Links(up=half)))
    assert sum(len(round_.used) for round_ in found.rounds) == pytest.approx(300, abs=3 * math.sqrt(150))


def test_peers_cut_off_keep_their_own_weights() -> None:
    certain = LossyLink(delay_s=0.1, loss_probability=1.0)
    found = run(CENTRES, Peers(ring(3)), 2, environment=Environment(links=Links(up=certain)))
    torch.testing.assert_close(found.parameters["w"], 0.19 * CENTRES)
    late = Environment(step_s=torch.tensor([1.0, 1.0, 9.0]))
    two = run(CENTRES, Peers(ring(3), deadline_s=2.0), 1, environment=late).parameters["w"]
    mixing = torch.tensor([[2 / 3, 1 / 3, 0], [1 / 3, 2 / 3, 0], [0, 0, 1]])
    torch.testing.assert_close(two, mixing @ (0.1 * CENTRES))


def test_nodes_come_and_go() -> None:
    """Node 2 is there in the second half only; a job of 3 s that begins at 8 s is lost at 10 s."""
    there = torch.tensor([[True, True, False], [False, True, True]])
    environment = Environment(step_s=3.0, availability=Availability(there, slot_s=10.0))
    found = run(CENTRES, Server(), 4, environment=environment)
    assert [round_.trained for round_ in found.rounds] == [(0, 1), (0, 1), (0, 1), (0, 1)]
    assert [round_.used for round_ in found.rounds] == [(0, 1), (0, 1), (0, 1), (1,)]
    assert run(CENTRES, Server(), 5, environment=environment).rounds[-1].trained == (1, 2)
    nobody = Availability(torch.tensor([[False] * 3, [True] * 3]), slot_s=10.0)
    later = run(CENTRES, Server(), 1, environment=Environment(step_s=1.0, availability=nobody))
    assert later.rounds[0].ended_s == 11.0
    with pytest.raises(DefianceError, match="no node is ever there"):
        run(CENTRES, Server(), 1, environment=Environment(availability=Availability(there & False, 1.0)))


def test_participation_asks_a_share_of_the_nodes_and_all_of_them_in_time() -> None:
    centres = torch.zeros(10, 1)
    found = run(centres, Server(participation=0.3), 100)
    assert {len(round_.trained) for round_ in found.rounds} == {3}
    assert found.jobs.sum() == 300 and found.jobs.min() > 15


def test_stragglers_are_lognormal_with_mean_one() -> None:
    environment = Environment(step_s=2.0, straggling=0.5)
    node = torch.arange(20_000)
    found = environment.job_s(node, torch.zeros_like(node), 3, stream(1, "x")) / 6
    assert float(found.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(found.log().std()) == pytest.approx(0.5, abs=0.01)


def test_draws_belong_to_a_node_and_its_job() -> None:
    """Whoever else takes part: the same node meets the same batches and the same stragglers."""
    seen: dict[str, list[Tensor]] = {}
    for name, nodes in (("few", 3), ("same", 3)):
        job = task(CENTRES[:nodes])

        def draw(node: Tensor, uniform: Tensor, now_s: Tensor, name: str = name) -> Tensor:
            seen.setdefault(name, []).append(uniform[node == 1])
            return node

        regime = Server() if name == "few" else fedbuff(3)
        federate(
            type(job)(job.start, job.loss, draw, job.samples, job.validate),
            plain(2),
            regime,
            2,
            stream(1, "federation"),
        )
    assert all(torch.equal(a, b) for a, b in zip(seen["few"], seen["same"], strict=True))
    assert len(torch.cat(seen["few"]).unique()) == 4


# --- broken and malicious nodes


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30, 1e4])
def test_poison_is_refused_by_name_and_the_rest_goes_on(value: float) -> None:
    def corrupt(node: Tensor, update: Tensor) -> Tensor:
        return torch.where(node[:, None] == 2, value, update)

    centres = torch.cat([CENTRES, CENTRES])
    found = run(centres, Server(), 3, environment=Environment(corrupt=corrupt))
    for round_ in found.rounds:
        assert round_.used == (0, 1, 3, 4, 5)
        assert len(round_.refused) == 1 and round_.refused[0].startswith("node 2: ")
    assert bool(found.parameters["w"].isfinite().all())
    peers = run(centres, Peers(ring(6)), 3, environment=Environment(corrupt=corrupt))
    assert all(round_.refused[0].startswith("node 2: ") for round_ in peers.rounds)
    assert bool(peers.parameters["w"].isfinite().all())


@pytest.mark.parametrize("robust", [Median(), TrimmedMean(0.2), Krum(1)])
def test_robust_averages_shrug_off_a_liar_that_the_mean_follows(robust: Median | TrimmedMean | Krum) -> None:
    """Six nodes agree about (1, 1), the seventh sends three times the way back."""
    centres = 1 + 0.05 * torch.randn(7, 2, generator=torch.Generator().manual_seed(1))

    def corrupt(node: Tensor, update: Tensor) -> Tensor:
        return torch.where(node[:, None] == 6, -7 * update, update)

    environment = Environment(corrupt=corrupt)
    honest = run(centres, Server(aggregation=robust), 80, environment=environment).parameters["w"][0]
    torch.testing.assert_close(honest, torch.ones(2), atol=0.15, rtol=0)
    misled = run(centres, Server(), 80, environment=environment).parameters["w"][0]
    assert float((misled - 1).norm()) > 0.5


def test_with_too_few_updates_a_robust_round_changes_nothing() -> None:
    broken = Environment(corrupt=lambda node, update: torch.where(node[:, None] == 0, torch.nan, update))
    found = run(torch.ones(5, 2), Server(aggregation=Krum(1)), 2, environment=broken)
    assert torch.equal(found.parameters["w"], torch.zeros(1, 2))


@pytest.mark.parametrize(
    "nodes, settings, why",
    [
        (3, {}, "Krum needs 5 updates a round, and of 3 nodes 3 are asked"),
        (8, {"participation": 0.5}, "of 8 nodes 4 are asked"),
        (8, {"wait_for": 4}, "8 are asked and 4 waited for"),
    ],
)
def test_an_average_that_could_never_be_taken_is_refused(nodes: int, settings: Any, why: str) -> None:
    with pytest.raises(DefianceError, match=why):
        run(torch.ones(nodes, 2), Server(aggregation=Krum(1), **settings), 2)


def test_deterministic_by_seed() -> None:
    environment = Environment(step_s=1.0, straggling=0.5)
    regime = fedbuff(1, participation=0.7, up=Int8())
    runs = [run(CENTRES, regime, 10, environment=environment, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(runs[0].reached, runs[1].reached)
    assert not torch.equal(runs[0].reached, runs[2].reached)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(DefianceError, match="participation"):
        Server(participation=0.0)
    with pytest.raises(DefianceError, match="has no link"):
        run(CENTRES, Server(), 1, environment=Environment(links=Links(up=(DelayLink(1), DelayLink(1)))))
    assert isinstance(ring(3), Topology)
