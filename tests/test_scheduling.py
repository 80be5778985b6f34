"""Schedulers against their definitions and against theory, sub-bands against their correlation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import exp1, j0
from torch import Tensor
from worlds import corridor, gain_for_snr, start

from defiance.network import kernel, reference
from defiance.network.scheduling import band_phasors, share_cell, shares
from defiance.network.settings import (
    LINK_ADAPTATIONS,
    SCHEDULERS,
    SPEED_OF_LIGHT_MPS,
    LinkAdaptation,
    RadioConfig,
    Scheduler,
)
from defiance.network.traffic import full_buffer
from defiance.network.world import World, directions, phases

both = pytest.mark.parametrize("step", [kernel.step, reference.step], ids=["kernel", "reference"])


# --- the shares of one step ---


def one_cell(scheduler: str, need: list[float], priority: list[float], pool: float = 1.0) -> list[float]:
    users = len(need)
    given = shares(
        scheduler,
        torch.tensor([need]),
        torch.tensor([priority]),
        torch.zeros(1, users, dtype=torch.int64),
        torch.tensor([[pool]]),
    )
    return given[0].tolist()


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ("equal_share", [0.1, 0.0, 0.2, 0.2, 0.2]),  # 0.1 stays unused
        ("round_robin", [0.1, 0.0, 0.7 / 3, 0.7 / 3, 0.7 / 3]),
        ("proportional_fair", [0.1, 0.0, 0.0, 0.3, 0.4]),
        ("max_rate", [0.1, 0.0, 0.0, 0.3, 0.4]),
    ],
)
def test_shares_by_hand(scheduler: str, expected: list[float]) -> None:
    """Five users, one without traffic, one with a full buffer, 0.8 of the carrier."""
    need = [0.1, 0.0, math.inf, 0.3, 0.4]
    given = one_cell(scheduler, need, [5.0, 9.0, 1.0, 2.0, 3.0], pool=0.8)
    assert given == pytest.approx(expected, abs=1e-6)


@given(seed=st.integers(0, 10**6), users=st.integers(1, 40), scheduler=st.sampled_from(SCHEDULERS))
def test_shares_keep_their_promises(seed: int, users: int, scheduler: str) -> None:
    """Both programs agree; nobody gets more than the need, no cell gives more than its pool.

    All but the equal share waste nothing; round robin is max-min fair: who isn't satisfied has the most.
    In order of priority, only the last one served is served in part.
    """
    rng = np.random.default_rng(seed)
    need = np.where(rng.random(users) < 0.2, 0.0, rng.choice([0.01, 0.3, np.inf], users) * rng.random(users))
    need[np.isnan(need)] = 0.0
    priority, cell, pool = rng.integers(0, 5, users) * 1.0, rng.integers(0, 3, users), rng.random(3)
    tensors = (torch.tensor(x)[None] for x in (need, priority, cell, pool))
    got = shares(scheduler, *tensors)[0].numpy()
    assert (got >= 0).all() and (got <= need + 1e-12).all()
    for c in range(3):
        of = (cell == c) & (need > 0)
        looped = np.zeros(of.sum())
        share_cell(
            SCHEDULERS.index(scheduler), need[of], priority[of], pool[c], looped, np.empty(len(looped), int)
        )
        np.testing.assert_allclose(looped, got[of], atol=1e-12)
        assert got[of].sum() <= pool[c] + 1e-9
        hungry, fed = got[of] < need[of] - 1e-9, got[of] > 1e-9
        if scheduler != "equal_share" and hungry.any():
            assert got[of].sum() == pytest.approx(pool[c])
        if scheduler in ("equal_share", "round_robin") and hungry.any():
            assert got[of][hungry].min() >= got[of].max() - 1e-9
        if scheduler in ("proportional_fair", "max_rate"):
            served, waiting = priority[of][fed], priority[of][hungry]
            assert not len(served) or not len(waiting) or served.min() >= waiting.max()
            assert (fed & hungry).sum() <= 1


# --- long-run shares in the engine ---


def unequal(snr_db: list[float], scatterers: int = 1, seed: int = 0) -> World:
    """One cell, one user per SNR, each with a full buffer; more scatterers than one make them fade.

    Over a carrier of 20 MHz, too: the delay spread is 1 us.
    """
    users = len(snr_db)
    world = full_buffer(corridor([[gain_for_snr(0.0)]] * 2, users=users))
    rng = torch.Generator().manual_seed(seed)
    shape = (1, users, 1, scatterers)
    if scatterers > 1:
        offset = torch.rand(1, users, 1, 1, generator=rng)
        angle = (torch.arange(scatterers) + offset) / scatterers
        phase = phases(torch.rand(shape, generator=rng))
        world = replace(world, fading_direction=directions(angle), fading_phase=phase)
    # the SNR is the user's own through its position on a map that is linear in dB
    low, high = min(snr_db), max(snr_db) + 1e-3
    gain = torch.tensor([gain_for_snr(low), gain_for_snr(high)])[:, None].expand(2, 2, 1)
    at = torch.tensor([10 * (s - low) / (high - low) for s in snr_db])
    route = torch.stack([at, torch.zeros(users)], -1)[None, :, None].expand(1, users, 3, 2)
    return replace(world, gain_db=gain[None].contiguous(), route_m=route.contiguous(), delay_spread_s=1e-6)


def share_of_time(bits: Tensor, snr_db: list[float], config: RadioConfig, steps: int) -> list[float]:
    rate = config.bandwidth_hz * 0.6 * torch.log2(1 + 10 ** (torch.tensor(snr_db) / 10))
    return (bits[0] / (rate * steps * config.step_s)).tolist()


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ("equal_share", [1 / 3] * 3),
        ("round_robin", [1 / 3] * 3),
        ("proportional_fair", [1 / 3] * 3),
        ("max_rate", [0.0, 0.0, 1.0]),
    ],
)
def test_shares_of_time_under_unequal_constant_rates(scheduler: str, expected: list[float]) -> None:
    """Rates of 1 : 3.46 : 6.66. Proportionally fair is an equal share of time, not of bits."""
    snr_db, config, steps = [0.0, 10.0, 20.0], RadioConfig(scheduler=scheduler), 3000
    world = unequal(snr_db)
    state = kernel.step(world, start(world), config, 200)
    bits = kernel.step(world, state, config, steps).bits - state.bits
    assert share_of_time(bits, snr_db, config, steps) == pytest.approx(expected, abs=0.01)


def test_proportional_fairness_gains_the_harmonic_number_under_fading() -> None:
    """Rates proportional to |h|^2 (SNR below -20 dB), 4 users with means 1 : 10 apart.

    Each is served when its own |h|^2 is the largest of four, which has the mean 1 + 1/2 + 1/3 + 1/4: of the
    round robin's bits each gets 25/12 as many (Holtzman 2001). 6,000 steps: standard deviation of 2 % each;
    the finite number of scatterers and the rate's bend take 3 %.
    """
    snr_db = [-30.0, -27.0, -23.0, -20.0]
    world = unequal(snr_db, scatterers=32)
    bits = {}
    for scheduler in ("round_robin", "proportional_fair"):
        config = RadioConfig(
            scheduler=scheduler,
            environment_mps=50.0,
            fairness_s=5.0,
            qout_db=-200.0,
            cqi_delay_s=0.0,
            least_sinr_db=-200.0,
        )
        state = kernel.step(world, start(world), config, 500)
        bits[scheduler] = kernel.step(world, state, config, 6000).bits - state.bits
    gain = (bits["proportional_fair"] / bits["round_robin"])[0]
    assert gain.tolist() == pytest.approx([25 / 12] * 4, rel=0.08)
    assert gain.mean().item() == pytest.approx(25 / 12, rel=0.05)


@pytest.mark.parametrize("speed_mps", [0.83, 3.0, 50.0])
def test_what_fades_faster_than_it_is_reported_gains_nothing(speed_mps: float) -> None:
    """The same with reports 5 ms old. Of Gaussian h and an older h' with the correlation J0(2 pi f_D t),

    E|h|^2 given h' is 1 + J0^2 (|h'|^2 - 1): the gain is 1 + J0^2 (25/12 - 1), here 2.03, 1.56 and 1.00.
    """
    world = unequal([-20.0] * 4, scatterers=32)
    bits = []
    for scheduler in ("round_robin", "proportional_fair"):
        config = RadioConfig(
            scheduler=scheduler,
            environment_mps=speed_mps,
            fairness_s=5.0,
            qout_db=-200.0,
            least_sinr_db=-200.0,
        )
        state = kernel.step(world, start(world), config, 500)
        bits.append((kernel.step(world, state, config, 6000).bits - state.bits).sum())
    doppler_hz = speed_mps * world.carrier_hz / SPEED_OF_LIGHT_MPS
    expected = 1 + j0(2 * math.pi * doppler_hz * 0.005) ** 2 * 13 / 12
    assert float(bits[1] / bits[0]) == pytest.approx(expected, rel=0.08)


@both
def test_who_reported_well_is_served_even_if_it_was_wrong(step) -> None:
    """A CQI of 20 ms ago ranks by the step before, in both link adaptations."""
    world = unequal([10.0, 10.0], scatterers=8)
    for adaptation in ("shannon", "qam256"):
        config = RadioConfig(
            scheduler="max_rate", environment_mps=5.0, cqi_delay_s=0.02, link_adaptation=adaptation
        )
        state, wrong = step(world, start(world), config), 0
        for _ in range(20):
            state = replace(state, olla_db=torch.zeros_like(state.olla_db))
            before = reference.fading_power(world, state.fading_turns)[0, :, 0]
            after = step(world, state, config)
            now = reference.fading_power(world, after.fading_turns)[0, :, 0]
            served = (after.bits - state.bits)[0]
            assert served[before.argmin()] == 0
            wrong += int(before.argmax() != now.argmax())
            state = after
        assert wrong > 2


@both
def test_max_rate_follows_the_channel(step) -> None:
    """Two users of equal mean: the one whose channel is better has all of the PRBs."""
    world = unequal([0.0, 0.0], scatterers=8)
    state, config = (
        start(world),
        RadioConfig(scheduler="max_rate", environment_mps=5.0, cqi_delay_s=0.0, least_sinr_db=-200.0),
    )
    for _ in range(20):
        after = step(world, state, config)
        power = reference.fading_power(world, after.fading_turns)[0, :, 0]
        sent = (after.bits - state.bits)[0]
        assert sent[power.argmax()] > 0 and sent[power.argmin()] == 0
        assert after.load.item() == pytest.approx(1.0)
        state = after


# --- load ---


@both
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_load_of_served_prbs_interferes(step, scheduler: str) -> None:
    """Two equal cells, a user each; the second's demand takes 0.4 of its PRBs and so 0.4 of its power."""
    config = RadioConfig(scheduler=scheduler)
    gain = gain_for_snr(20.0)
    world = corridor([[gain, gain]] * 2, users=2)
    rate = 20e6 * 0.6 * math.log2(1 + 100.0)
    world = replace(world, demand_bps=torch.tensor([[0.0, 0.4 * rate]]))
    state = step(world, start(world, torch.tensor([[0, 1]])), config, 20)
    assert state.load[0].tolist() == pytest.approx([0.0, 0.4], rel=1e-4)
    assert state.sinr[0].tolist() == pytest.approx([1 / (0.4 + 0.01), 100.0], rel=1e-3)


@both
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("adaptation", LINK_ADAPTATIONS)
def test_who_is_below_the_least_sinr_costs_nobody_anything(
    step, scheduler: Scheduler, adaptation: LinkAdaptation
) -> None:
    """A user at 20 dB has the whole carrier beside one at -50 dB, who would take half of it for nothing."""
    config = RadioConfig(scheduler=scheduler, link_adaptation=adaptation)
    pair, alone = full_buffer(unequal([20.0, -50.0])), full_buffer(unequal([20.0]))
    got, expected = step(pair, start(pair), config, 5), step(alone, start(alone), config, 5)
    assert got.bits[0].tolist() == pytest.approx([expected.bits.item(), 0.0], rel=1e-4)
    idle = replace(pair, demand_bps=torch.tensor([[0.0, 1e5]]))
    assert step(idle, start(idle), config, 5).load.item() == 0


@both
def test_a_demand_waits_for_a_sub_band_that_is_heard(step) -> None:
    """Only the best of eight is above the least SINR, and it serves it all."""
    config = RadioConfig(scheduler="max_rate", subbands=8, environment_mps=0.0)
    turns = band_phasors(16, False, 1e-6, config).T
    for seed in range(4):
        world = replace(unequal([0.0], scatterers=16, seed=seed), demand_bps=torch.tensor([[1e4]]))
        ray = reference.rays(world, torch.zeros(1, 1, dtype=torch.float64))
        power = (ray[0, 0, 0] @ turns).abs().square()
        selective = replace(config, least_sinr_db=10 * math.log10(power.topk(2).values.mean()))
        state = step(world, start(world), selective, 1)
        assert state.bits.item() == pytest.approx(1e4 * 0.02)


# --- sub-bands ---


def test_sub_bands_correlate_as_the_delay_profile_says() -> None:
    """Exponential profile: |E h(f) h*(f + d)|^2 = 1 / (1 + (2 pi d spread)^2); 64 quantiles, 1 %."""
    config = RadioConfig(scheduler="max_rate", subbands=8)
    phasors = band_phasors(64, False, 1e-7, config).numpy()
    assert phasors.shape == (8, 64)
    correlation = np.abs((phasors[:1] * phasors.conj()).mean(1)) ** 2
    apart_hz = np.arange(8) * 20e6 / 8
    np.testing.assert_allclose(correlation, 1 / (1 + (2 * np.pi * apart_hz * 1e-7) ** 2), atol=0.03)
    assert len(band_phasors(64, False, 1e-7, replace(config, scheduler="round_robin"))) == 1


@both
def test_radio_link_monitoring_and_rsrp_have_the_mean_over_the_carrier(step) -> None:
    """Over 16 sub-bands, that fades less than a tone does: one that is measured isn't the carrier."""
    config = RadioConfig(scheduler="max_rate", subbands=16, environment_mps=0.0)
    world = unequal([10.0] * 40, scatterers=16)
    state = step(world, start(world), config, 1)
    turns = band_phasors(16, False, 1e-6, config).T
    power = (reference.rays(world, torch.zeros(1, 40, dtype=torch.float64))[0, :, 0] @ turns).abs().square()
    mean_mw = 10 ** ((gain_for_snr(10.0) + config.tx_power_dbm) / 10)
    expected = mean_mw * power.mean(-1)
    torch.testing.assert_close(state.rsrp_sum_mw[0, :, 0], expected, rtol=1e-3, atol=1e-3 * mean_mw)
    sinr = expected / 10 ** (config.noise_dbm / 10)
    torch.testing.assert_close(state.sinr[0], sinr, rtol=1e-3, atol=1e-2)
    assert power.mean(-1).var() < 0.3 * power[:, 0].var()


def test_choosing_sub_bands_gains_what_choosing_users_does() -> None:
    """At standstill a user alone has the ergodic rate e E1(1) / ln 2 bit/s/Hz at 0 dB over many sub-bands.

    Four users share a flat carrier without any gain; in every sub-band another of them is the best.
    """
    config = RadioConfig(
        environment_mps=0.0,
        scheduler="proportional_fair",
        qout_db=-200.0,
        least_sinr_db=-200.0,
    )
    means = []
    for users, bands in ((1, 16), (4, 1), (4, 16)):
        total = 0.0
        for seed in range(10):
            world = unequal([0.0] * users, scatterers=16, seed=seed)
            selective = replace(config, subbands=bands)
            state = kernel.step(world, start(world), selective, 100)
            total += float(kernel.step(world, state, selective, 100).bits.sum() - state.bits.sum())
        means.append(total / 10)
    alone, four, four_in_bands = means
    assert alone == pytest.approx(20e6 * 0.6 * math.e * exp1(1) / math.log(2) * 2.0, rel=0.1)
    assert four_in_bands > 1.4 * four
    assert four_in_bands > 1.4 * alone


@pytest.mark.parametrize(("adaptation", "least"), [("shannon", 0.95), ("qam256", 0.87)])
def test_frequency_diversity_costs_a_user_alone_one_mcs(adaptation: LinkAdaptation, least: float) -> None:
    """It has over many sub-bands at once what it has in one over time, less what one MCS for all costs."""
    rates = []
    for bands in (1, 16):
        config = RadioConfig(
            scheduler="proportional_fair",
            subbands=bands,
            link_adaptation=adaptation,
            cqi_delay_s=0.0,
            environment_mps=5.0,
            qout_db=-200.0,
        )
        total = 0.0
        for seed in range(4):
            world = unequal([12.0], scatterers=16, seed=seed)
            state = kernel.step(world, start(world), config, 100)
            total += float((kernel.step(world, state, config, 300).bits - state.bits).sum())
        rates.append(total / 4 / 6.0)
    assert least < rates[1] / rates[0] < 1.1
    assert rates[1] > 30e6
