"""Propagation, fading, movement and the mobility procedures against closed forms and counts by hand."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scenes import small_scene
from scipy.special import j0, jv
from scipy.stats import kstest
from torch import Tensor
from worlds import RADIO, corridor, gain_for_snr, random_world, start

from defiance.network import kernel, reference
from defiance.network.measurements import measure
from defiance.network.settings import FADING_SHARE, RadioConfig
from defiance.network.state import CONNECTED, EXECUTING, NONE, REESTABLISHING, State, sinr_db
from defiance.network.world import World, draw_worlds, rician
from defiance.radio.tr38901 import UMI
from defiance.scene import gain_db
from defiance.scene.drop import render, rice_factor
from defiance.seeding import stream

Step = Callable[..., State]
both = pytest.mark.parametrize("step", [kernel.step, reference.step], ids=["kernel", "reference"])


# --- fading ---


@cache
def many_links(scatterers: int) -> World:
    """3000 links: 1000 users and 3 cells."""
    config = RadioConfig(scatterers=scatterers)
    draw = {"users": 1000, "duration_s": 0.1, "speed_kmh": 3.0, "load": 0.5, "demand_bps": 1e6}
    return draw_worlds(small_scene(), config, [stream(1, "world")], **draw)


def fading_samples(scatterers: int, distances: Tensor) -> np.ndarray:
    """|h|^2 of 3000 independent links at these distances in wavelengths, `[distances, links]`."""
    world = many_links(scatterers)
    turns = [torch.full((1, 1000), d, dtype=torch.float64) for d in distances.tolist()]
    return torch.stack([reference.fading_power(world, t) for t in turns]).flatten(1).numpy()


def test_fading_power_is_exponential() -> None:
    """Rayleigh: E|h|^2 = 1, E|h|^4 = 2 - 1/N, and |h|^2 is exponential but for the finite N.

    60,000 samples; with all of them independent, 5 standard deviations are 0.02 and 0.09. The sum of 8
    phasors keeps a distance of its own from the exponential, of the order of 1/(8 N) = 0.016.
    """
    power = fading_samples(8, 1000.0 * torch.arange(20) + 0.25)
    assert power.mean() == pytest.approx(1.0, abs=0.02)
    assert np.square(power).mean() == pytest.approx(2 - 1 / 8, abs=0.09)
    assert kstest(power.ravel(), "expon").statistic < 0.016 + 1.63 / math.sqrt(power.size)
    assert power.max() <= 8 + 1e-3


@pytest.mark.parametrize("scatterers", [8, 32])
def test_fading_autocorrelation_is_jakes(scatterers: int) -> None:
    """cov(|h(0)|^2, |h(d)|^2) = J0^2(2 pi d) - 1/N + 2 (J_N^2 + J_2N^2 + ...), and tends to J0^2 as N grows.

    From the Jacobi-Anger expansion of the mean over the scatterers' random offset. 12,000 samples: 5 standard
    deviations are 0.05 (products of exponentials have a variance of about 1 far apart, less than 4 nearby).
    """
    starts = 500.0 * torch.arange(4)
    now = fading_samples(scatterers, starts) - 1
    for d in (0.0, 0.15, 0.383, 0.61):
        later = fading_samples(scatterers, starts + d) - 1
        z = 2 * math.pi * d
        images = sum(jv(scatterers * m, z) ** 2 for m in range(1, 5))
        expected = j0(z) ** 2 - 1 / scatterers + 2 * images
        assert (now * later).mean() == pytest.approx(expected, abs=0.05 if d > 0.2 else 0.1), d
        assert expected == pytest.approx(j0(z) ** 2, abs=1 / scatterers + 1e-3)


def test_fades_are_as_frequent_as_rice_says() -> None:
    """Doppler: |h| rises through rho times its mean square sqrt(2 pi) rho exp(-rho^2) times per wavelength.

    (S. O. Rice 1948, with Clarke's spectrum.) 15 links over 100 wavelengths: about 1,500 crossings, 3 %.
    """
    world = many_links(32)
    few = replace(
        world, fading_direction=world.fading_direction[:, :5], fading_phase=world.fading_phase[:, :5]
    )
    turns = torch.arange(0, 100, 1 / 48, dtype=torch.float64)[:, None].expand(-1, 5)
    power = reference.fading_power(few, turns).flatten(1)
    for rho in (0.5, 1.0):
        above = power > rho**2
        rate = (~above[:-1] & above[1:]).double().sum() / 15 / 100
        assert rate.item() == pytest.approx(math.sqrt(2 * math.pi) * rho * math.exp(-(rho**2)), rel=0.12)


def test_links_that_keep_their_mean_cannot_be_told() -> None:
    """What the disturbance lacks has no mean, and a variance of FADING_SHARE of its square at most.

    A serving cell, an interferer at 0 dB over noise, and 800 cells just below the threshold, whose sum is
    2.4 times the noise: the worst case, 10,000 draws.
    """
    noise_mw, rng = 10 ** (RADIO.noise_dbm / 10), torch.Generator().manual_seed(1)
    others_mw = torch.full((800,), 0.999 * FADING_SHARE * noise_mw)
    mean_mw = torch.cat([torch.tensor([100 * noise_mw, noise_mw]), others_mw])
    fading = reference.fades(mean_mw, RADIO)
    assert fading.nonzero().flatten().tolist() == [0, 1]
    power = torch.empty(10_000, 802).exponential_(generator=rng)
    every = (mean_mw * power)[:, 1:].sum(-1) + noise_mw
    kept = (mean_mw * torch.where(fading, power, 1.0))[:, 1:].sum(-1) + noise_mw
    lacking = (every - kept) / (mean_mw[1:].sum() + noise_mw)
    assert lacking.mean().abs() < 5 * lacking.std() / 100
    assert lacking.var() < FADING_SHARE
    weakest_measured_mw = 10 ** (RADIO.rsrp_floor_dbm / 10) * RADIO.resource_elements
    loud = torch.tensor([1e6 * weakest_measured_mw, weakest_measured_mw])
    assert bool(reference.fades(loud, RADIO).all()), "who is measured fades, whatever drowns it"
    assert bool(reference.fades(torch.zeros(1), RADIO).all()), "the strongest always fades"


@both
def test_a_link_that_keeps_its_mean_is_received_with_it(step: Step) -> None:
    world = random_world(5, 1, 30, 4)
    world = replace(world, gain_db=world.gain_db - 15)
    state = step(world, start(world), RADIO)
    position_m = reference.position_m(world, state.travelled_m)
    mean_mw = 10 ** ((reference.path_gain_db(world, position_m) + RADIO.tx_power_dbm) / 10)
    fading = reference.fades(mean_mw, RADIO)
    assert 10 < (~fading).sum() < 110
    error = (state.rsrp_sum_mw / mean_mw - 1).abs()
    assert bool((error[~fading] < 1e-5).all()) and bool((error[fading] > 1e-4).all())


@pytest.mark.parametrize("k_db", [-math.inf, 0.0, 9.0])
def test_rician_fading_has_its_moments_and_autocorrelation(k_db: float) -> None:
    """E|h|^4 (1 + K)^2 = K^2 + 4 K + 2 - 1/N; the specular ray adds 2 K J0^2 to the power's covariance.

    The mean over its random direction is J0 as well. 9 dB is the mean K of TR 38.901's UMa and UMi under LOS
    (table 7.5-6). 12,000 samples: five standard deviations of a product are 0.05 for K = 0, less with it.
    """
    k, n = 10 ** (k_db / 10), 8
    world = many_links(n)
    world = rician(world, torch.full_like(world.gain_db, k), [stream(1, "world")])
    rice = torch.full((1, 1000, 3), k)

    def power(distance: float) -> Tensor:
        starts = [torch.full((1, 1000), 500.0 * i + distance, dtype=torch.float64) for i in range(4)]
        return torch.stack([reference.fading_power(world, t, rice) for t in starts])

    now = power(0.0)
    assert now.mean().item() == pytest.approx(1.0, abs=0.03)
    fourth = (k**2 + 4 * k + 2 - 1 / n) / (1 + k) ** 2
    assert now.square().mean().item() == pytest.approx(fourth, abs=0.1)
    for d in (0.15, 0.383, 0.61):
        z = 2 * math.pi * d
        images = sum(jv(n * m, z) ** 2 for m in range(1, 5))
        expected = (j0(z) ** 2 * (1 + 2 * k) - 1 / n + 2 * images) / (1 + k) ** 2
        got = ((now - 1) * (power(d) - 1)).mean().item()
        assert got == pytest.approx(expected, abs=0.1 if d < 0.2 else 0.05), d


def test_k_of_a_drop_is_the_standards() -> None:
    """TR 38.901 table 7.5-6, UMi under LOS: 9 dB, standard deviation 5 dB; thousands of patches of 15 m."""
    drop = render(UMI, 3.5e9, stream(1, "umi"), storeys=1, detail=6)
    factor = rice_factor(drop, stream(1, "umi"))
    sight = drop.los[..., drop.cell_site]
    assert bool((factor[0] > 0).eq(sight[0]).all()) and not factor[1].any()
    k_db = 10 * torch.log10(factor[0][sight[0]])
    assert k_db.mean().item() == pytest.approx(9.0, abs=0.5)
    assert k_db.std().item() == pytest.approx(5.0, abs=0.5)


@both
def test_doppler_follows_the_speed_and_scatterers_always_move(step: Step) -> None:
    for speed_mps, waves_mps in ((10.0, 10.0), (0.0, RADIO.environment_mps)):
        world = corridor([[-90.0]] * 8, speed_mps=speed_mps)
        state = step(world, start(world), RADIO, 50)
        assert state.fading_turns.item() == pytest.approx(waves_mps * 1.0 * 3.5e9 / 299_792_458)


@both
@pytest.mark.parametrize("specular", [False, True])
def test_measured_power_is_path_gain_times_fading(step: Step, specular: bool) -> None:
    world = random_world(4, 2, 5, 3)
    if specular:
        k = 4 * torch.rand(world.gain_db.shape, generator=torch.Generator().manual_seed(1))
        world = rician(world, k, [stream(w, "world") for w in range(2)])
    state = step(world, start(world), RADIO)
    position = reference.position_m(world, state.travelled_m)
    mean_mw = 10 ** ((reference.path_gain_db(world, position) + 44) / 10)
    rice = reference.rice_factor(world, position)
    expected = mean_mw * reference.fading_power(world, state.fading_turns, rice)
    assert bool(((state.rsrp_sum_mw - expected).abs() <= 1e-4 * mean_mw).all())


# --- path gain and movement ---


def test_path_gain_is_the_scenes() -> None:
    """Bilinear in dB inside the grid, its border's value beyond."""
    scene = small_scene()
    draw = {"users": 1, "duration_s": 1.0, "speed_kmh": 3.0, "load": 0.5, "demand_bps": 1e6}
    world = draw_worlds(scene, RADIO, [stream(1, "world")], **draw)
    rng = torch.Generator().manual_seed(0)
    position = torch.tensor([-40.0, 0.0]) + 60 * torch.rand(500, 2, generator=rng)
    street = torch.zeros(500, dtype=torch.int32)
    torch.testing.assert_close(
        reference.map_gain_db(world, position, street), gain_db(scene, position), rtol=0, atol=2e-4
    )


@both
def test_path_gain_of_a_plane_is_exact(step: Step) -> None:
    row, column = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    world = random_world(6, 1, 20, 1, scatterers=1)
    inside = world.route_m.clamp(min=3.0, max=14.0)  # the grid is 3 ... 27 by -5 ... 15
    plane = (-100 + 1.5 * column - 2.5 * row)[..., None].expand(2, 6, 7, 1)
    world = replace(world, gain_db=plane.contiguous(), route_m=inside, loss_db=torch.zeros(1, 20))
    state = step(world, start(world), RADIO)
    x, y = reference.position_m(world, state.travelled_m).unbind(-1)
    expected = -100 + 1.5 * (x - 3) / 4 - 2.5 * (y + 5) / 4
    got = 10 * torch.log10(state.rsrp_sum_mw[..., 0]) - 44
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-4)


@both
def test_a_wrapped_map_repeats_itself_and_is_bilinear_in_its_own_axes(step: Step) -> None:
    """A place and the same place some lattice vectors away are alike; grid points keep their values."""
    world = random_world(7, 1, 30, 3, scatterers=1)
    assert world.lattice_m is not None
    vectors = torch.tensor([2.0, -3.0], dtype=torch.float64) @ world.lattice_m
    away = replace(world, route_m=(world.route_m.double() + vectors).float())
    here, there = step(world, start(world), RADIO), step(away, start(world), RADIO)
    torch.testing.assert_close(there.rsrp_sum_mw, here.rsrp_sum_mw, rtol=1e-3, atol=0)
    row, column = torch.meshgrid(torch.arange(6), torch.arange(7), indexing="ij")
    along = torch.stack([column / 7, row / 6], -1).double()
    places = torch.tensor(world.origin_m) + along @ world.lattice_m + 1e-7
    for floor in (0, 1):
        got = reference.map_gain_db(world, places, torch.full((6, 7), floor))
        torch.testing.assert_close(got, world.gain_db[floor], rtol=0, atol=1e-4)
    middle = places[2, 6] + along[0, 1] @ world.lattice_m / 2
    corners = (world.gain_db[0, 2, 6] + world.gain_db[0, 2, 0]) / 2  # across the border
    got = reference.map_gain_db(world, middle, torch.tensor(0))
    torch.testing.assert_close(got, corners, rtol=0, atol=1e-4)


@both
def test_a_users_own_loss_dims_every_cell_alike(step: Step) -> None:
    world = random_world(8, 1, 30, 3)
    open_air = replace(world, loss_db=torch.zeros(1, 30))
    ratio = step(world, start(world), RADIO).rsrp_sum_mw / step(open_air, start(world), RADIO).rsrp_sum_mw
    expected = (10 ** (-world.loss_db / 10))[..., None].expand(1, 30, 3)
    torch.testing.assert_close(ratio, expected, rtol=1e-4, atol=0)


@both
def test_users_walk_their_route_and_stay_at_its_end(step: Step) -> None:
    world = corridor([[-90.0]] * 3, speed_mps=5.0)  # 20 m of street
    bent = world.route_m.clone()
    bent[0, 0, 5:, 1] = torch.arange(6) * 2.0  # after 8 m, slantwise
    world = replace(world, route_m=bent)
    state = step(world, start(world), RADIO, 50)
    assert reference.position_m(world, state.travelled_m)[0, 0].tolist() == pytest.approx([5.0, 0.0])
    state = step(world, state, RADIO, 80)
    assert state.travelled_m.item() == pytest.approx(13.0)
    assert reference.position_m(world, state.travelled_m)[0, 0].tolist() == pytest.approx([13.0, 3.0])
    state = step(world, state, RADIO, 200)
    assert reference.position_m(world, state.travelled_m)[0, 0].tolist() == pytest.approx(
        [20.0, 10.0], abs=1e-4
    )


@both
def test_buses_stop(step: Step) -> None:
    """10 m/s, 2 s at every 4 m: passed after 20 steps, then 100 steps without moving."""
    world = corridor([[-90.0]] * 8, speed_mps=10.0)
    world = replace(world, stop_spacing_m=torch.full((1, 1), 4.1), stop_s=torch.full((1, 1), 2.0))
    state = start(world)
    travelled = []
    for _ in range(150):
        state = step(world, state, RADIO)
        travelled.append(round(state.travelled_m.item(), 6))
    first_stop = next(i for i in range(150) if travelled[i] == travelled[i + 1])
    assert travelled[first_stop] == pytest.approx(4.2)
    assert travelled.count(travelled[first_stop]) in (101, 102)  # rounding of 100 x 0.02 in float32


# --- SINR ---


def test_noise() -> None:
    """-94 dBm over 20 MHz at a noise figure of 7 dB."""
    assert RADIO.noise_dbm == pytest.approx(-94.0, abs=0.05)


@both
@pytest.mark.parametrize("load", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("snr_db", [-5.0, 30.0])
def test_sinr_between_two_equal_cells(step: Step, load: float, snr_db: float) -> None:
    """S = P, I = load x P of the other cell alone, N: wide-band SINR is 1 / (load + 1/SNR)."""
    gain = gain_for_snr(snr_db)
    world = corridor([[gain, gain]] * 2, background=load)
    state = step(world, start(world), RADIO)
    expected = 1 / (load + 10 ** (-snr_db / 10))
    assert state.sinr.item() == pytest.approx(expected, rel=1e-4)
    assert sinr_db(state).item() == pytest.approx(10 * math.log10(expected), abs=1e-3)


@both
def test_rate_is_attenuated_shannon_with_a_cap(step: Step) -> None:
    """0.6 log2(1 + SINR) as in TR 36.942 annex A, at most 7.4 bit/s/Hz."""
    for snr_db, efficiency in ((0.0, 0.6), (10 * math.log10(15), 2.4), (60.0, 7.4)):
        world = corridor([[gain_for_snr(snr_db)]] * 2, demand_bps=1e12)
        state = step(world, start(world), RADIO)
        assert state.bits.item() == pytest.approx(efficiency * 20e6 * 0.02, rel=1e-4)


# --- radio-link monitoring: a street of two places, and a user who is carried from one to the other ---


def lost_and_found(config: RadioConfig = RADIO, snr_db: float = 0.0) -> tuple[World, Callable[..., State]]:
    """A cell of `snr_db` at place 0 that vanishes at place 1, where a second cell of 20 dB may be found."""
    world = corridor([[gain_for_snr(snr_db), -200.0], [-200.0, gain_for_snr(20.0)]])

    def carry(state: State, place: int) -> State:
        travelled = torch.full_like(state.travelled_m, 10.0 * place)
        return replace(state, travelled_m=travelled)

    return world, carry


@both
@pytest.mark.parametrize("n310", [1, 3])
def test_t310_counts_from_the_n310th_indication_to_the_failure(step: Step, n310: int) -> None:
    """0 dB, then nothing. With b bad of the window's 10 steps, (10 - b)/10 < Qout = 0.158 from b = 9 on.

    So indications start at the 9th bad step, T310 at the (8 + n310)th and runs its 50 steps of 1 s; the link
    fails in the step after. Re-establishment takes 15 steps. Outage: from the 9th bad step until connected.
    """
    config = RadioConfig(n310=n310)
    world, carry = lost_and_found()
    state = measure(carry(step(world, start(world), config, 10), 1), config)
    status, t310 = [], []
    for _ in range(100):
        state = measure(step(world, state, config), config)
        status.append(state.status.item())
        t310.append(state.t310_steps.item())
    started = 8 + n310
    assert t310[started - 2 : started + 1] == [NONE, 1, 2]
    failed = started + 50
    assert status == [CONNECTED] * (failed - 1) + [REESTABLISHING] * 15 + [CONNECTED] * (86 - failed)
    assert state.link_failures.item() == 1
    assert state.outage_steps.item() == failed + 15 - 8
    assert state.interrupted_steps.item() == 0 and state.handovers.item() == 0
    assert state.serving.item() == 1 and state.previous.item() == NONE  # the strongest that was measured


@both
def test_who_hears_no_cell_goes_on_searching(step: Step) -> None:
    """Not even in cell 0: at the floor of RSRP nothing was heard, and before a measurement nothing is known.

    A search takes 15 steps; the user is carried to a cell in the third.
    """
    config = RADIO
    world, carry = lost_and_found()
    state = start(world)
    searching = replace(
        state,
        status=torch.full_like(state.status, REESTABLISHING),
        timer_steps=torch.full_like(state.timer_steps, 15),
    )
    state = step(world, searching, config, 15)
    assert (state.status.item(), state.searches_failed.item()) == (REESTABLISHING, 1)
    state = replace(state, rsrp_dbm=torch.full_like(state.rsrp_dbm, RADIO.rsrp_floor_dbm))
    state = step(world, state, config, 16)
    assert (state.status.item(), state.searches_failed.item()) == (REESTABLISHING, 2)
    assert state.outage_steps.item() == 31 and state.bits.item() == 0 and state.load.sum() == 0
    state = measure(step(world, carry(state, 1), config, 5), config)
    state = step(world, state, config, 9)
    assert (state.status.item(), state.serving.item(), state.searches_failed.item()) == (CONNECTED, 1, 2)


@both
def test_in_sync_stops_t310(step: Step) -> None:
    """Back after 30 bad steps: with 2 of 5 steps good, 0.4 > Qin = 0.251, N311 = 1 stops T310."""
    world, carry = lost_and_found()
    state = carry(step(world, start(world), RADIO, 10), 1)
    state = carry(step(world, state, RADIO, 30), 0)
    assert state.t310_steps.item() == 30 - 8 and state.outage_steps.item() == 30 - 8
    state = step(world, state, RADIO)
    assert state.t310_steps.item() == 30 - 8 + 1 and state.outage_steps.item() == 30 - 8 + 1
    state = step(world, state, RADIO)
    assert state.t310_steps.item() == NONE
    state = step(world, state, RADIO, 200)
    assert state.link_failures.item() == 0 and state.outage_steps.item() == 30 - 8 + 1


@both
def test_between_qout_and_qin_t310_keeps_running(step: Step) -> None:
    """At -7 dB nothing is out of sync and nothing in sync: T310 that runs, runs on until the failure."""
    world = corridor([[gain_for_snr(-7.0)]] * 2)
    state = step(world, start(world), RADIO, 20)
    assert state.t310_steps.item() == NONE and state.outage_steps.item() == 0
    state = replace(state, t310_steps=torch.full_like(state.t310_steps, 10))
    state = step(world, state, RADIO, 40)
    assert state.link_failures.item() == 0 and state.t310_steps.item() == 50
    assert step(world, state, RADIO).link_failures.item() == 1


@both
@pytest.mark.parametrize("gap_breaks", [False, True])
def test_rows_of_indications_outlast_steps_without_one(step: Step, gap_breaks: bool) -> None:
    """TS 38.331 clauses 5.3.10.1 and 5.3.10.3: only the opposite indication ends a row; -7 dB gives none."""
    config = RadioConfig(n310=3, n311=3, qout_window_s=0.02, qin_window_s=0.02, gap_breaks=gap_breaks)
    out, nothing, into = (corridor([[gain_for_snr(snr_db)]] * 2) for snr_db in (-9.0, -7.0, 0.0))

    def course(state: State, worlds: list[World]) -> State:
        for world in worlds:
            state = step(world, state, config)
        return state

    state = course(start(out, 0, config), [out, out, into, out, out, nothing])
    assert state.t310_steps.item() == NONE
    state = course(state, [out])
    assert (state.t310_steps.item() == NONE) == gap_breaks
    state = course(state, [out, out])
    assert state.t310_steps.item() > 0
    state = course(state, [into, into, out, into, into, nothing])
    assert state.t310_steps.item() > 0
    state = course(state, [into])
    assert (state.t310_steps.item() != NONE) == gap_breaks
    assert course(state, [into, into]).t310_steps.item() == NONE


# --- handover ---


def command(state: State, target: int, wait: int = 0) -> State:
    """A handover command on its way."""
    return replace(
        state,
        target=torch.full_like(state.target, target),
        command_steps=torch.full_like(state.command_steps, wait),
    )


def equal_cells(count: int = 3, snr_db: float = 20.0) -> World:
    """Cells that are received alike, unloaded but for the user."""
    return corridor([[gain_for_snr(snr_db)] * count] * 2)


@both
@pytest.mark.parametrize("wait", [0, 2])
def test_a_handover_interrupts_for_40_ms(step: Step, wait: int) -> None:
    world = equal_cells()
    state = command(step(world, start(world), RADIO, 10), 1, wait)
    delivered = state.bits.item() + wait * 0.02 * 1e6
    state = step(world, state, RADIO, wait)
    assert state.status.item() == CONNECTED and state.bits.item() == pytest.approx(delivered)
    state = step(world, state, RADIO)
    assert state.status.item() == EXECUTING and state.serving.item() == 0 and state.sinr.item() == 0
    state = step(world, state, RADIO)
    assert (state.status.item(), state.serving.item(), state.previous.item()) == (CONNECTED, 1, 0)
    assert state.target.item() == NONE and state.window_steps.item() == 0
    assert state.bits.item() == pytest.approx(delivered)
    state = step(world, state, RADIO, 5)
    assert state.interrupted_steps.item() == state.outage_steps.item() == 2
    assert state.handovers.item() == 1 and state.handover_failures.item() == 0
    assert state.window_steps.item() == 5  # the mean restarts with the new cell
    assert state.bits.item() == pytest.approx(delivered + 5 * 0.02 * 1e6)


@both
def test_a_handover_to_a_cell_below_qout_fails(step: Step) -> None:
    """The interruption, then re-establishment at the strongest measured cell, which here is the old one."""
    world = corridor([[gain_for_snr(20.0), gain_for_snr(-9.0)]] * 2)
    state = command(measure(step(world, start(world), RADIO, 10), RADIO), 1)
    state = step(world, state, RADIO, 2)
    assert state.status.item() == REESTABLISHING and state.handover_failures.item() == 1
    state = step(world, state, RADIO, 14)
    assert state.status.item() == REESTABLISHING
    state = step(world, state, RADIO, 30)
    assert (state.status.item(), state.serving.item(), state.handovers.item()) == (CONNECTED, 0, 0)
    assert state.outage_steps.item() == 2 + 15 and state.interrupted_steps.item() == 2
    assert state.link_failures.item() == 0


@both
@pytest.mark.parametrize(
    ("away_steps", "status", "interrupted"), [(6, CONNECTED, 7), (12, REESTABLISHING, 10)]
)
def test_random_access_is_repeated_until_t304(
    step: Step, away_steps: int, status: int, interrupted: int
) -> None:
    """T304 = 200 ms are 10 steps: a target that comes back after 6 is joined, one after 12 too late.

    Of the mean since the execution's start one good step in 7, +20 dB, is enough: 14.3 > Qout.
    """
    config = replace(RADIO, t304_s=0.2)
    world, carry = lost_and_found()
    state = command(carry(step(world, start(world), config, 10), 0), 1)
    state = step(world, state, config, away_steps)
    state = step(world, carry(state, 1), config, 1)
    assert (state.status.item(), state.interrupted_steps.item()) == (status, interrupted)
    assert state.handovers.item() == (status == CONNECTED)
    assert state.handover_failures.item() == (status == REESTABLISHING)


@both
def test_random_access_has_a_threshold_of_its_own(step: Step) -> None:
    """A target at -9 dB is below Qout, but not below -10 dB."""
    world = corridor([[gain_for_snr(20.0), gain_for_snr(-9.0)]] * 2, demand_bps=1.0)  # cell 0 is idle
    for access_db, joined in ((-8.0, 0), (-10.0, 1)):
        config = replace(RADIO, access_db=access_db)
        state = step(world, command(step(world, start(world), config, 10), 1), config, 2)
        assert (state.handovers.item(), state.handover_failures.item()) == (joined, 1 - joined)


@both
def test_a_handover_rescues_from_t310(step: Step) -> None:
    """A command that arrives while T310 runs stops it (TS 38.331 clause 7.1.1)."""
    world, carry = lost_and_found()
    state = step(world, carry(step(world, start(world), RADIO, 10), 1), RADIO, 40)
    assert state.t310_steps.item() > 0
    state = step(world, command(state, 1), RADIO, 100)
    assert state.serving.item() == 1 and state.t310_steps.item() == NONE
    assert state.link_failures.item() == 0 and state.outage_steps.item() == 40 - 8 + 2


@both
@pytest.mark.parametrize(
    ("cells", "stay_steps", "ping_pongs"),
    [
        ((1, 0), 40, 1),
        ((1, 0), 50, 1),
        ((1, 0), 51, 0),
        ((1, 2), 40, 0),
        ((1, 0, 1), 30, 2),
        ((1, 2, 0), 10, 0),
    ],
)
def test_ping_pong_is_a_return_within_a_second(
    step: Step, cells: tuple[int, ...], stay_steps: int, ping_pongs: int
) -> None:
    """TR 36.839: back to the cell before, after a time of stay (between completions) of 1 s at most."""
    world = equal_cells()
    state = step(world, start(world), RADIO, 10)
    for cell in cells:
        state = step(world, command(state, cell), RADIO, 2)
        assert state.serving.item() == cell
        state = step(world, state, RADIO, stay_steps - 2)
    assert state.ping_pongs.item() == ping_pongs
    assert state.handovers.item() == len(cells)


@both
def test_a_window_restarts_with_the_new_cell(step: Step) -> None:
    """Right after the handover from nothing to 20 dB, no old sample drags the mean below Qout."""
    world, carry = lost_and_found()
    state = step(world, carry(step(world, start(world), RADIO, 10), 1), RADIO, 20)
    outage = state.outage_steps.item()
    state = step(world, command(state, 1), RADIO, 3)
    assert state.outage_steps.item() == outage + 2
    assert sinr_db(state).item() == pytest.approx(20.0, abs=0.01)
