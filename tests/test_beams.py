"""Beams: codebook, rules, learned selection, and what is left after sounding and delay."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from defiance.control.beam_events import Attentive, Watching
from defiance.control.beam_learning import (
    Samples,
    features,
    hard_loss,
    hits,
    lost_db,
    node_loss,
    soft_loss,
    validation,
)
from defiance.control.beams import (
    Book,
    Exhaustive,
    Hierarchical,
    Learned,
    Tracking,
    seen_by_model,
    serve,
    spectral_efficiency,
)
from defiance.control.experience import initial_parameters
from defiance.control.sounding import PILOTS, Sounding, measured_snr_db, reported
from defiance.errors import DefianceError
from defiance.learn.training import Schedule, fit
from defiance.network.settings import RadioConfig
from defiance.radio.arrays import Panel
from defiance.seeding import stream

BOOK = Book(Panel(4, 16), (2, 4))
RADIO = RadioConfig()
NOW = stream(1, "beams")


def turning(ticks: int, beams_per_tick: float, users: int = 6, snr_db: float = 20.0) -> torch.Tensor:
    """SNR of all beams while a plane wave turns along a row of the codebook, `[T, U, beams]`."""
    place = torch.arange(ticks)[:, None] * beams_per_tick + torch.arange(users) * 2.37
    column = torch.polar(torch.ones(16), torch.zeros(16))
    phase = 2 * math.pi * place[..., None] * torch.arange(16) / 16
    wave = (torch.polar(torch.ones_like(phase), phase)[..., None, :] * torch.ones(4, 1)).flatten(-2)
    gain = (wave.conj() @ BOOK.vectors.mT).abs().square() / len(column) / 4
    return 10 * torch.log10(gain.clamp(min=1e-6)) + snr_db


def test_a_wide_beam_is_strongest_in_its_group_and_has_at_most_its_share_of_gain() -> None:
    overlap = (BOOK.vectors[BOOK.wide].conj() @ BOOK.vectors[:64].mT).abs().square()
    torch.testing.assert_close(BOOK.vectors.norm(dim=-1), torch.ones(72))
    for number, inside in enumerate(BOOK.within):
        assert overlap[number].argmax() in inside
        outside = overlap[number].clone()
        outside[inside] = 0
        assert overlap[number, inside].min() > 0.4 * outside.max()
    assert sorted(BOOK.within.flatten().tolist()) == list(range(64))
    with pytest.raises(DefianceError, match="don't fill a panel of 4 x 16"):
        Book(Panel(4, 16), (3, 4))


def test_neighbours_are_those_around_a_beam_without_an_edge() -> None:
    assert set(BOOK.neighbours[17].tolist()) == {0, 1, 2, 16, 17, 18, 32, 33, 34}
    assert set(BOOK.neighbours[0].tolist()) == {0, 1, 15, 16, 17, 31, 48, 49, 63}


def test_overhead_and_sweeps_are_those_of_the_standard() -> None:
    burst = Sounding(0.02, "ssb")
    assert burst.overhead(64) == pytest.approx(64 * 4 / 2240)  # 2,240 symbols in 20 ms at 120 kHz
    assert burst.sweep_s(64) == 5e-3
    resources = Sounding(0.02)
    assert resources.overhead(64) == pytest.approx(64 / 2240)
    assert resources.sweep_s(64) == pytest.approx(6 * 0.125e-3)  # 12 in a slot
    with pytest.raises(DefianceError, match="1000 beams by csi-rs don't fit into 5 ms"):
        Sounding(5e-3).overhead(1000)
    with pytest.raises(DefianceError, match="65 beams by ssb"):
        Sounding(0.2, "ssb").overhead(65)


def test_dedicated_beams_cost_every_user_of_a_sector() -> None:
    track, search = Tracking(BOOK, Sounding(0.02), 4), Hierarchical(BOOK, Sounding(0.02))
    assert track.sounded(1) == pytest.approx(16 + 9 * 0.75)
    assert track.sounded(10) == pytest.approx(16 + 90 * 0.75)
    assert search.sounded(10) == 8 + 80
    assert Exhaustive(BOOK, Sounding(0.02)).sounded(10) == 64


@pytest.mark.parametrize("rule", [Exhaustive, Hierarchical])
def test_rules_find_the_best_beam_of_a_wave_that_rests(rule: type) -> None:
    snr_db = turning(100, 0.0)
    served = serve(rule(BOOK, Sounding(0.02)), snr_db, 2e-3, RADIO, NOW, users=10)
    assert served.lost_db.max() < 0.6 and served.lost_db.mean() < 0.1
    narrow_db = snr_db[0, :, :64].amax(-1)
    full = spectral_efficiency(narrow_db, RADIO)
    overhead = rule(BOOK, Sounding(0.02)).overhead(10)
    torch.testing.assert_close(
        served.net_spectral_efficiency, served.spectral_efficiency * (1 - overhead), rtol=1e-6, atol=0
    )
    assert (served.spectral_efficiency > 0.97 * full).all()


def test_tracking_follows_a_wave_from_beam_to_beam() -> None:
    served = serve(Tracking(BOOK, Sounding(0.02), 1000), turning(600, 0.02), 2e-3, RADIO, NOW, users=1)
    assert served.lost_db.mean() < 0.5
    # a wave that turns by two beams a period leaves the neighbourhood behind
    lost = serve(Tracking(BOOK, Sounding(0.02), 1000), turning(600, 0.2), 2e-3, RADIO, NOW, users=1)
    assert lost.lost_db.mean() > 3


def test_a_choice_that_comes_late_serves_a_wave_that_is_gone() -> None:
    policy, snr_db = Exhaustive(BOOK, Sounding(0.02)), turning(600, 0.05)
    lost = [
        serve(policy, snr_db, 2e-3, RADIO, NOW, users=1, compute_s=late, warm_up_s=0.2).lost_db.mean().item()
        for late in (0.0, 0.02, 0.06)
    ]
    assert lost[0] < lost[1] - 0.2 and lost[1] < lost[2] - 1
    with pytest.raises(DefianceError, match="over before the first choice serves"):
        serve(policy, snr_db, 2e-3, RADIO, NOW, users=1, compute_s=2.0)


def test_a_measurement_has_the_mean_and_spread_of_its_pilots() -> None:
    snr = torch.full((20_000,), 2.0)
    estimate = measured_snr_db(10 * torch.log10(snr), torch.randn(20_000, generator=NOW.generator()))
    power = torch.pow(10.0, estimate / 10)
    assert power.mean().item() == pytest.approx(2.0, rel=0.01)
    assert power.var().item() == pytest.approx(5 / PILOTS, rel=0.05)


def test_a_report_is_as_fine_as_the_standard_allows() -> None:
    said = reported(torch.tensor([[10.4, 7.2, -60.0]]))
    assert said.tolist() == [[10.0, 8.0, -20.0]]  # differences end at 15 steps of 2 dB


def test_features_do_not_say_how_strong_all_beams_are() -> None:
    power_db = torch.tensor([[3.0, -1.0, -8.0]])
    torch.testing.assert_close(features(power_db, -torch.inf, 2.0), features(power_db + 7, -torch.inf, 2.0))
    below = features(power_db, -8.0, 2.0, "amplitude")
    assert below[0, 2] == pytest.approx(-1.5) and below[0, 0] == pytest.approx(1.5)


def test_the_soft_loss_of_even_scores_and_of_certain_ones() -> None:
    power_db = torch.tensor([[0.0, -1.0]])
    # even scores: ln 2, and half of the one softness that the second beam loses
    even = soft_loss(torch.zeros(1, 2), power_db, 1.0).item()
    assert even == pytest.approx(math.log(2) + 0.5)
    assert soft_loss(torch.tensor([[1.0, 0.0]]), power_db, 1.0).item() < even
    assert hard_loss(torch.zeros(1, 2), power_db).item() == pytest.approx(math.log(2))


def test_what_a_choice_loses_and_whether_it_is_among_the_first() -> None:
    power_db = torch.tensor([[1.0, 4.0, 3.5], [9.0, 2.0, 0.0]])
    assert lost_db(power_db, torch.tensor([2, 0])).tolist() == [0.5, 0.0]
    score = torch.tensor([[0.0, 0.1, 0.9], [0.0, 0.3, 0.2]])
    assert hits(score, power_db, 1).tolist() == [False, False]
    assert hits(score, power_db, 2).tolist() == [True, False]


def test_a_model_learns_the_pattern_of_its_array_and_serves_by_it() -> None:
    """From 8 wide beams a trained model finds the best of 64; the sounding takes an eighth of a sweep's."""
    place = turning(3000, 0.013, users=1, snr_db=30.0)[:, 0]
    noise = torch.randn(3000, 8, generator=NOW.generator())
    seen = seen_by_model(reported(measured_snr_db(place[:, BOOK.wide], noise))[:, None], 8.0)
    samples = Samples.of([(seen, place[:, None, :64])])
    start = initial_parameters((16, 64, 64), 1, NOW)

    loss = node_loss(partial(soft_loss, softness_db=1.0))
    found = fit(start, loss, samples.draw(64), validation(samples), torch.eye(1), Schedule(5, 60, 5e-3), NOW)
    snr_db = turning(300, 0.01, snr_db=30.0)
    policy = Learned(
        BOOK, found.parameters, torch.zeros(6, dtype=torch.int64), Sounding(0.02), BOOK.wide, 1, 1, 8.0, 1e5
    )
    served = serve(policy, snr_db, 2e-3, RADIO, NOW, users=10)
    sweep = serve(Exhaustive(BOOK, Sounding(0.02, "ssb")), snr_db, 2e-3, RADIO, NOW, users=10)
    assert served.lost_db.mean() < 1.5
    assert served.net_spectral_efficiency.mean() > 1.04 * sweep.net_spectral_efficiency.mean()
    assert policy.overhead(10) == pytest.approx(8 / 2240)
    # with two of the best scored sounded again it is closer still, and pays for every user
    again = replace(policy, refined=3)
    assert again.overhead(10) == pytest.approx(38 / 2240)
    assert serve(again, snr_db, 2e-3, RADIO, NOW, users=10).lost_db.mean() < served.lost_db.mean()


def test_a_beam_that_is_watched_is_left_when_it_fades() -> None:
    """Who rests asks for nothing; who turns away is swept for, and that is paid for."""
    still = Watching(BOOK, Sounding(0.02), 3.0, 10)
    rests = serve(still, turning(400, 0.0), 2e-3, RADIO, NOW, users=10, warm_up_s=0.1)
    assert rests.overhead == pytest.approx((6.4 + 9) / 2240)
    assert rests.lost_db.max() < 0.6
    seldom = Watching(BOOK, Sounding(0.02), 3.0, 1000)
    turns = serve(seldom, turning(400, 0.02), 2e-3, RADIO, NOW, users=10, warm_up_s=0.1)
    assert turns.overhead > 2 * (0.064 + 10) / 2240
    assert turns.lost_db.mean() < 1.5
    blind = serve(replace(seldom, drop_db=1e3), turning(400, 0.02), 2e-3, RADIO, NOW, users=10, warm_up_s=0.1)
    assert blind.lost_db.mean() > 3 + turns.lost_db.mean()
    assert blind.overhead == pytest.approx((0.064 + 0.999 * 10) / 2240)


def test_a_sweep_of_some_rows_costs_as_many_beams_and_finds_none_of_the_others() -> None:
    two = Exhaustive(BOOK, Sounding(0.02), rows=2)
    assert two.overhead(10) == pytest.approx(32 / 2240)
    snr_db = turning(50, 0.0)  # waves along the first row
    assert serve(two, snr_db, 2e-3, RADIO, NOW, users=10).lost_db.max() < 0.6
    other = snr_db[..., torch.arange(72).roll(-16)]  # the same, seen in the last row
    assert serve(two, other, 2e-3, RADIO, NOW, users=10).lost_db.min() > 3


def test_a_model_asks_for_beams_only_of_users_whom_it_believes_elsewhere() -> None:
    """By hand: a model that believes in the first narrow beam within the wide one that is strongest."""
    wide = len(BOOK.wide)
    weight = torch.zeros(1, 2 * wide, 64)
    for number, inside in enumerate(BOOK.within):
        weight[0, wide + number, inside] = 8.0  # by amplitude
    policy = Attentive(
        BOOK, {"weight0": weight, "bias0": torch.zeros(1, 1, 64)}, torch.zeros(2, dtype=torch.int64),
        Sounding(0.02), BOOK.wide, 1, 1, 8.0, 1e5, 8, change=0.5, certainty=0.99, every=1000,
    )  # fmt: skip
    snr_db = torch.full((200, 2, 72), -20.0)
    snr_db[:, :, 3], snr_db[:, :, 64] = 20.0, 12.0
    snr_db[100:, 1] = -20.0
    snr_db[100:, 1, 40], snr_db[100:, 1, 64 + 6] = 20.0, 12.0  # the second user has turned
    assert 40 in BOOK.within[6] and 3 in BOOK.within[0]
    served = serve(policy, snr_db, 2e-3, RADIO, NOW, users=10)
    assert served.beam[-1].tolist() == [3, 40] and served.beam[90].tolist() == [3, 3]
    # once, in 19 periods after the first sweep, one of two users has 8 beams and its old one sounded
    asked = 0.999 * 10 * (9 / 2) / 19
    assert served.overhead == pytest.approx((8 + 0.064 + asked) / 2240, rel=0.1)


def test_samples_are_drawn_from_their_own_node_and_padding_weighs_nothing() -> None:
    nodes = [(torch.full((n, 1), float(n)), torch.zeros(n, 1, 4)) for n in (3, 5)]
    samples = Samples.of(nodes)
    seen, power_db = samples.draw(7)(NOW.generator())
    assert seen.shape == (2, 7, 1) and power_db.shape == (2, 7, 1, 4)
    assert (seen[0] == 3).all() and (seen[1] == 5).all()
    seen, _, weight = samples.padded()
    assert (seen[0] == 3).all() and weight.sum(1).tolist() == pytest.approx([1.0, 1.0])
    assert (weight > 0).sum(1).tolist() == [3, 5]
