"""Cells that serve several users at once: a step against a direct sum, many against laws."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import j0
from torch import Tensor

from defiance.control.codebooks import cophased, dft_beams
from defiance.control.csi.rules import TypeOne
from defiance.control.reports import ByBeam, ByCodec
from defiance.errors import DefianceError
from defiance.link import DelayLink, LossyLink
from defiance.network.mumimo import (
    MultiUser,
    Perfect,
    Plan,
    State,
    hear,
    initial,
    report,
    schedule,
    settle,
)
from defiance.network.on_walks import Served, Walkers, draw_walkers, serve
from defiance.network.settings import RadioConfig
from defiance.radio.arrays import Panel
from defiance.scene.paths import load_walks
from defiance.seeding import stream

RADIO = RadioConfig(scheduler="proportional_fair", subbands=2, fairness_s=0.2)
LINK = DelayLink(0.0)
PANEL = Panel(4, 4, dual=True, element="38.901")


def drawn(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.complex64, generator=generator)


def one_cell(
    multi: MultiUser,
    radio: RadioConfig,
    known: Tensor,
    now: Tensor,
    state: State | None = None,
    step: int = 0,
) -> tuple[State, Plan, Tensor]:
    """A step of one cell with known and true channels [U, rx, T, K]; the SINR of its streams."""
    users, rx, ports, bands = now.shape
    serving = torch.zeros(users, dtype=torch.int64)
    state = state or initial(multi, users, 1, (rx, ports, bands), LINK)
    time_s = step * radio.step_s
    state = report(state, multi, known, serving, step, time_s, time_s, LINK, stream(1, "reports"))
    plan = schedule(state, multi, radio, serving, 1)
    heard = hear([now], [plan], serving)[0]
    return settle(state, plan, heard, radio, serving), plan, heard.sinr


@pytest.mark.parametrize("level", [2.0, 2e4])  # the second: next to a station, 90 dB above noise
def test_sinr_is_the_direct_sum_over_all_streams_of_all_cells(level: float) -> None:
    multi, serving = MultiUser(Perfect(2), 2, 3), torch.tensor([0, 1, 0, 1, 1])
    h = level * drawn(2, 5, 2, 4, 2)  # [C, U, rx, T, K]
    state = initial(multi, 5, 2, (2, 4, 2), LINK)
    own = h[serving, torch.arange(5)]
    state = report(state, multi, own, serving, 0, 0.0, 0.0, LINK, stream(1, "reports"))
    plan = schedule(state, multi, RADIO, serving, 2)
    heard = hear(h, [plan], serving)[0]
    assert (plan.chosen >= 0).sum(-1).max() == 3
    for k in range(2):
        sent = [
            (c, int(e), plan.precoder[c, k, :, place])
            for c in range(2)
            for place, e in enumerate(plan.chosen[c, k])
            if e >= 0
        ]
        for c, e, w in sent:
            u, noise = e // 2, torch.eye(2, dtype=torch.complex128)
            for other, number, v in sent:
                if number != e:
                    g = (h[other, u, :, :, k] @ v).to(torch.complex128)
                    noise = noise + torch.outer(g, g.conj())
            g = (h[c, u, :, :, k] @ w).to(torch.complex128)
            assert heard.sinr[e, k] == pytest.approx((g.conj() @ noise.inverse() @ g).real.item(), rel=1e-3)
    away = 1 - serving
    elsewhere = torch.einsum("urtk,uktl->ukrl", h[away, torch.arange(5)], plan.precoder[away])
    elsewhere = elsewhere.to(torch.complex128)
    torch.testing.assert_close(
        heard.covariance, torch.eye(2) + elsewhere @ elsewhere.mH, rtol=1e-5, atol=1e-5
    )


def test_with_true_channels_a_station_hears_what_it_expects_and_zero_forcing_leaves_nothing() -> None:
    now = 60 * drawn(3, 1, 8, 2)
    _, plan, sinr = one_cell(MultiUser(Perfect(), 3, 3), RADIO, now, now)
    assert (plan.told > 0).all()
    torch.testing.assert_close(sinr, plan.told, rtol=1e-2, atol=0.0)
    # a third of the power each, through the pseudo-inverse: the Gram matrix's inverse says what is left
    h = now[:, 0].permute(2, 0, 1).to(torch.complex128)
    forced = 1 / (h @ h.mH).inverse().diagonal(dim1=-2, dim2=-1).real / 3
    torch.testing.assert_close(plan.told, forced.T.float(), rtol=2e-2, atol=0.0)


def test_outdated_reports_cost_several_users_more_than_one() -> None:
    """Channels that have turned by J0(2 pi f tau): Jakes at 30 km/h and 3.5 GHz."""
    old, new = 3 * drawn(32, 8, 1, 8, 2), 3 * drawn(32, 8, 1, 8, 2, seed=2)
    doppler_hz, rates = 30 / 3.6 / 0.0857, {}
    for users in (1, 4):
        for age_s in (0.0, 1e-3, 2e-3, 3e-3):
            rho = float(j0(2 * math.pi * doppler_hz * age_s))
            found = [
                one_cell(MultiUser(Perfect(), users, users), RADIO, h, rho * h + math.sqrt(1 - rho**2) * e)[0]
                for h, e in zip(old, new, strict=True)
            ]
            rates[users, age_s] = sum(float(state.bits.sum()) for state in found)
    assert rates[4, 0.0] > 1.8 * rates[1, 0.0]
    for users in (1, 4):
        fall = [rates[users, age_s] for age_s in (0.0, 1e-3, 2e-3, 3e-3)]
        assert fall == sorted(fall, reverse=True)
    assert rates[4, 3e-3] / rates[4, 0.0] < 0.8 * rates[1, 3e-3] / rates[1, 0.0]


def test_one_user_next_to_its_station_has_the_matched_filters_sinr() -> None:
    now = 3e4 * drawn(1, 2, 8, 2)
    _, plan, sinr = one_cell(MultiUser(Perfect(), 1, 1), RADIO, now, now)
    strongest = torch.linalg.matrix_norm(now[0].permute(2, 0, 1).to(torch.complex128), 2)
    torch.testing.assert_close(sinr[0], strongest.square().float(), rtol=1e-4, atol=0.0)
    assert plan.told.max() == pytest.approx(1e5)  # the most that is reported


@pytest.mark.parametrize("together", [1, 2])
def test_alike_users_have_equal_shares_and_unequal_ones_their_own(together: int) -> None:
    """Four users, two of them 12 dB stronger: equal shares of time; max rate starves two."""
    level = torch.tensor([2.0, 2.0, 8.0, 8.0])[:, None, None, None]
    served = {}
    for scheduler in ("proportional_fair", "max_rate"):
        multi, radio = MultiUser(Perfect(), together, together), replace(RADIO, scheduler=scheduler)
        state, shares = None, torch.zeros(4)
        for step in range(160):
            h = level * drawn(4, 1, 4, 2, seed=step)
            state, plan, _ = one_cell(multi, radio, h, h, state, step)
            shares += (plan.told > 0).float().mean(-1)
        assert state is not None
        served[scheduler] = shares / 160, state.bits
    share, bits = served["proportional_fair"]
    assert (share - together / 4).abs().max() < 0.06
    assert bits[0] == pytest.approx(bits[1].item(), rel=0.1) and bits[2] == pytest.approx(
        bits[3].item(), rel=0.1
    )
    assert served["max_rate"][0][:2].max() < 0.5 * share.min()
    assert served["max_rate"][1].sum() > bits.sum()


def test_the_outer_loop_learns_what_old_reports_hide() -> None:
    multi, radio = MultiUser(Perfect(), 2, 2), replace(RADIO, link_adaptation="qam256")
    state = None
    for step in range(120):
        h = 5 * drawn(3, 1, 4, 2, seed=step)
        state, plan, _ = one_cell(
            multi, radio, h, 0.8 * h + 0.6 * 5 * drawn(3, 1, 4, 2, seed=-step - 1), state, step
        )
    assert state is not None and bool((state.olla_db > 3).all())


@given(st.lists(st.floats(-200, 120), min_size=3, max_size=3), st.booleans(), st.booleans())
@settings(max_examples=25)
def test_extreme_channels_give_numbers(levels_db: list[float], same: bool, beams: bool) -> None:
    level = 10 ** (torch.tensor([*levels_db, -torch.inf]) / 20)[:, None, None, None]
    h = (drawn(1, 1, 4, 2).expand(4, -1, -1, -1) if same else drawn(4, 1, 4, 2)) * level
    way = (
        MultiUser(ByBeam(dft_beams(Panel(1, 4)).flatten(0, 1)), 3, 3, True)
        if beams
        else MultiUser(Perfect(), 3, 3)
    )
    state, plan, sinr = one_cell(way, replace(RADIO, link_adaptation="qam256"), h, h)
    for tensor in (sinr, plan.told, torch.view_as_real(plan.precoder), state.bits, state.olla_db):
        assert bool(tensor.isfinite().all())
    assert bool((state.bits >= 0).all()) and float(state.bits[3]) == 0
    assert float(plan.precoder.abs().square().sum((-2, -1)).max()) < 1 + 1e-4


def test_reports_that_are_late_or_lost_leave_what_was_known() -> None:
    multi, serving, random = (
        MultiUser(Perfect(), 1, 1),
        torch.zeros(2, dtype=torch.int64),
        stream(1, "reports"),
    )
    first, second = drawn(2, 1, 4, 2), drawn(2, 1, 4, 2, seed=2)
    slow = DelayLink(0.03)
    state = initial(multi, 2, 1, (1, 4, 2), slow)
    state = report(state, multi, first, serving, 0, 0.0, 0.005, slow, random)
    assert schedule(state, multi, RADIO, serving, 1).chosen.eq(-1).all()
    state = report(state, multi, second, serving, 1, 0.02, 0.035, slow, random)
    torch.testing.assert_close(state.precoder[:, 0], Perfect()(first, serving)[:, 0])
    assert list(state.payload) == [1]
    lossy = LossyLink(0.0, loss_probability=1.0)
    state = initial(multi, 2, 1, (1, 4, 2), lossy)
    state = report(state, multi, first, serving, 0, 0.0, 0.0, lossy, random)
    assert not state.quality.any() and not state.payload
    assert int(state.report_bits) == 2 * (4 + 2 * 2 + 96)
    # who has come from another cell waits for a report of this one
    state = initial(multi, 2, 2, (1, 4, 2), LINK)
    state = report(state, multi, first, serving, 0, 0.0, 0.0, LINK, random)
    assert schedule(state, multi, RADIO, torch.tensor([0, 1]), 2).chosen[1].eq(-1).all()


def test_reports_through_a_codec_and_by_a_beam() -> None:
    cell = torch.zeros(5, dtype=torch.int64)
    h = drawn(5, 2, 32, 13)
    codec = ByCodec(TypeOne(PANEL, 13), 2)
    assert codec.bits == 2 * 34
    w = Perfect(2)(h, cell)
    torch.testing.assert_close((w.abs().square().sum(-1)), torch.ones(5, 2, 13))
    assert (w[:, 0].conj() * w[:, 1]).sum(-1).abs().max() < 1e-3
    told = codec(h, cell)
    assert told.shape == w.shape
    torch.testing.assert_close(told[:, 1], codec.codec.decode(codec.codec.encode(w[:, 1], cell), cell))
    beams = cophased(dft_beams(PANEL)).flatten(0, 2)
    by_beam = ByBeam(beams)
    assert by_beam.bits == 6
    ray = beams[37].conj()[None, None, :, None].expand(1, 2, 32, 13)
    torch.testing.assert_close(by_beam(ray, cell[:1])[0, 0, 4], beams[37])
    with pytest.raises(DefianceError, match="doesn't fit"):
        by_beam(h[:, :, :16], cell)


def test_on_walks_bits_are_conserved_and_a_group_brings_more() -> None:
    walks = load_walks("munich", "3.5ghz")
    walkers = draw_walkers(walks, 60, 0.83, 0.2, stream(1, "walkers"), among=torch.arange(20))
    assert len(walkers) == 60 and int(walkers.walk.max()) < 20
    radio = replace(RADIO, link_adaptation="qam256", subbands=3)
    served = serve(
        walks,
        walkers,
        PANEL,
        radio,
        {"one": MultiUser(Perfect(), 1, 1), "four": MultiUser(Perfect(), 4, 4)},
        duration_s=0.08,
        warm_up_s=0.02,
        random=stream(1, "reports"),
    )
    for found in served.values():
        assert isinstance(found, Served)
        assert found.throughput_bps.sum() == pytest.approx(found.cell_throughput_bps.sum().item())
        assert 0 <= found.fifth_percentile_bps <= found.throughput_bps.mean()
        assert found.report_bps == pytest.approx((4 + 2 * 3 + 11) / 0.02)
    assert served["one"].streams.nan_to_num(1).eq(1).all() and served["four"].streams.nanmean() > 1.5
    assert served["four"].throughput_bps.sum() > 1.1 * served["one"].throughput_bps.sum()


def test_what_cannot_be_served_is_refused() -> None:
    walks = load_walks("munich", "3.5ghz")
    walkers = Walkers(torch.tensor([0]), torch.tensor([1.0]).double(), torch.tensor([0.5]).double())
    for users, streams in ((0, 0), (2, 1), (2, 3)):
        with pytest.raises(DefianceError, match="one stream for every user"):
            MultiUser(Perfect(), users, streams)
    with pytest.raises(DefianceError, match="further than the shortest walk"):
        draw_walkers(walks, 3, 50.0, 3.0, stream(1, "walkers"))
    with pytest.raises(DefianceError, match="no walks"):
        draw_walkers(walks, 3, 1.0, 3.0, stream(1, "walkers"), among=torch.arange(0))
    with pytest.raises(DefianceError, match="3 streams from devices of 2"):
        Perfect(3)(drawn(1, 2, 4, 2), torch.tensor([0]))
    one = {"one": MultiUser(Perfect(), 1, 1)}
    with pytest.raises(DefianceError, match="doesn't look at rates"):
        serve(walks, walkers, PANEL, RadioConfig(), one, duration_s=0.02, random=stream(1, "r"))
    with pytest.raises(DefianceError, match="0 steps"):
        serve(walks, walkers, PANEL, RADIO, one, duration_s=0.0, random=stream(1, "r"))
