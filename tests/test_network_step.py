"""The kernel is the reference; the step is pure; traffic is conserved."""

import os
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import corridor, gain_for_snr, random_world, start

from defiance.errors import DefianceError
from defiance.network import forget_stale_loops, kernel, reference
from defiance.network.loop import Loop
from defiance.network.measurements import measure
from defiance.network.settings import LINK_ADAPTATIONS, SCHEDULERS, LinkAdaptation, RadioConfig, Scheduler
from defiance.network.state import NONE, State
from defiance.network.traffic import FtpModel3, with_packets
from defiance.network.world import World, rician
from defiance.seeding import stream

CONFIGS = (
    RadioConfig(),
    RadioConfig(
        step_s=0.01,
        n310=2,
        n311=2,
        t310_s=0.04,
        qout_window_s=0.05,
        qin_window_s=0.03,
        reestablishment_s=0.05,
        ping_pong_s=0.1,
        foreground_share=0.0,
        access_db=-10.0,
        t304_s=0.06,
    ),
    RadioConfig(link_adaptation="qam256", execution_s=0.02, reestablishment_s=0.04),
    RadioConfig(link_adaptation="qam64", qout_window_s=0.02, qin_window_s=0.02),
    RadioConfig(qout_window_s=0.06, qin_window_s=0.06, t310_s=0.0, execution_s=0.0, reestablishment_s=0.0),
)


def assert_close(world: World, config: RadioConfig, got: State, expected: State) -> None:
    """Integers equal, real numbers within 1e-4.

    Powers: within 1e-4 of the link's mean, which fading may have extinguished. Bits: within 1e-4 of those at
    0.01 bit/s/Hz, because the programs' float32 doesn't resolve 1 + SINR at -50 dB. With NR's error rates, a
    waterfall 0.25 dB wide turns 1e-4 of the SINR into 2e-3 of the rate and of the outer loop's step.
    """
    steep = 0 if config.link_adaptation == "shannon" else 20
    gain_db = reference.path_gain_db(world, reference.position_m(world, expected.travelled_m))
    power_mw = 10 ** ((gain_db + config.tx_power_dbm) / 10)
    strongest = power_mw.amax(-1, keepdim=True)
    scale = {
        "rsrp_sum_mw": power_mw,
        "signal_mw": strongest,
        "interference_mw": strongest,
        "sinr": torch.tensor(1.0),
        "bits": torch.tensor((0.01 + 5 * steep) * config.bandwidth_hz * config.step_s),
        "bulk_bits": expected.bits + (0.01 + 5 * steep) * config.bandwidth_hz * config.step_s,
        "queue_bits": expected.bits + (0.01 + 5 * steep) * config.bandwidth_hz * config.step_s,
        "average_bps": torch.tensor((0.01 + 5 * steep) * config.bandwidth_hz),
        "olla_db": torch.tensor(1.0 + steep),
        "load": torch.tensor(1e-3 + steep),
        "load_steps": torch.tensor(1e-3 + steep),
    }
    for field in fields(State):
        a, b = getattr(got, field.name), getattr(expected, field.name)
        assert a.dtype == b.dtype and a.shape == b.shape, field.name
        if a.is_floating_point():
            tolerance = 1e-4 * (b.abs() + scale.get(field.name, torch.tensor(1e-3)))
            assert bool(((a - b).abs() <= tolerance).all()), (field.name, a, b)
        else:
            assert torch.equal(a, b), (field.name, a, b)


def commanded(state: State, rng: torch.Generator) -> State:
    """Commands to some of the connected users who have none."""
    shape, cells = state.serving.shape, state.load.shape[-1]
    chosen = (torch.rand(shape, generator=rng) < 0.2) & (state.status == 0) & (state.target == NONE)
    other = torch.randint(cells, shape, generator=rng, dtype=torch.int32)
    wait = torch.randint(3, shape, generator=rng, dtype=torch.int32)
    return replace(
        state,
        target=torch.where(chosen & (other != state.serving), other, state.target),
        command_steps=torch.where(chosen, wait, state.command_steps),
    )


@given(
    seed=st.integers(0, 10**6),
    worlds=st.integers(1, 3),
    users=st.integers(1, 6),
    cells=st.integers(1, 5),
    config=st.sampled_from(CONFIGS),
)
def test_kernel_equals_reference(seed: int, worlds: int, users: int, cells: int, config: RadioConfig) -> None:
    world = random_world(seed, worlds, users, cells)
    rng = torch.Generator().manual_seed(seed)
    state = start(world, torch.randint(cells, (worlds, users), generator=rng), config)
    for period in range(6):
        state = commanded(state, rng)
        expected, got = state, state
        for _ in range(4):
            got, expected = kernel.step(world, expected, config), reference.step(world, expected, config)
            assert_close(world, config, got, expected)
        state = measure(expected, config) if period % 2 else expected


@given(
    seed=st.integers(0, 10**6),
    users=st.integers(1, 8),
    scheduler=st.sampled_from(SCHEDULERS),
    adaptation=st.sampled_from(LINK_ADAPTATIONS),
    bands=st.sampled_from((1, 3)),
    specular=st.booleans(),
    packets=st.booleans(),
    queued=st.booleans(),
)
@settings(max_examples=40)
def test_kernel_equals_reference_with_schedulers_packets_and_specular_rays(
    seed: int,
    users: int,
    scheduler: Scheduler,
    adaptation: LinkAdaptation,
    bands: int,
    specular: bool,
    packets: bool,
    queued: bool,
) -> None:
    """Half of the users have a full buffer or, with packets, no constant rate; some wait for more."""
    world = random_world(seed, 2, users, 3)
    rng = torch.Generator().manual_seed(seed)
    streams = [stream(seed, w) for w in range(2)]
    half = torch.rand(2, users, generator=rng) < 0.5
    if packets:
        queued = with_packets(world, FtpModel3(files_per_s=20.0, file_bits=1e5), streams, 1.0)
        world = replace(queued, demand_bps=torch.where(half, world.demand_bps, 0.0))
    else:
        world = replace(world, demand_bps=torch.where(half, world.demand_bps, torch.inf))
    if specular:
        world = rician(world, 4 * torch.rand(world.gain_db.shape, generator=rng), streams)
    config = RadioConfig(scheduler=scheduler, link_adaptation=adaptation, subbands=bands, fairness_s=0.1)
    state = start(world, torch.randint(3, (2, users), generator=rng), config)
    if queued:
        bulk_bits = 1e5 * torch.randint(3, (2, users), generator=rng).double()
        state = replace(state, bulk_bits=bulk_bits, reserved=0.2 * torch.rand(2, 3, generator=rng))
    for _ in range(4):
        state = commanded(state, rng)
        for _ in range(3):
            got, state = kernel.step(world, state, config), reference.step(world, state, config)
            assert_close(world, config, got, state)


def test_random_worlds_visit_every_procedure() -> None:
    """What the comparison above compares does happen: every event, every status."""
    config = CONFIGS[1]
    world = random_world(0, 2, 20, 4)
    rng = torch.Generator().manual_seed(0)
    state = start(world, 0, config)
    statuses = set()
    for _ in range(100):
        state = kernel.step(world, commanded(state, rng), config, 2)
        statuses |= set(state.status.flatten().tolist())
        state = measure(state, config)
    assert statuses == {0, 1, 2}
    for name in ("outage_steps", "handovers", "ping_pongs", "link_failures", "handover_failures"):
        assert getattr(state, name).sum() > 0, name


def test_many_steps_are_one_step_many_times() -> None:
    world, config = random_world(1, 2, 5, 3), RadioConfig()
    state = start(world)
    once = state
    for _ in range(7):
        once = kernel.step(world, once, config)
    assert_equal(kernel.step(world, state, config, 7), once)
    assert_equal(reference.step(world, state, config, 2), reference.step(
        world, reference.step(world, state, config), config
    ))  # fmt: skip


def assert_equal(a: State, b: State) -> None:
    for field in fields(State):
        assert torch.equal(getattr(a, field.name), getattr(b, field.name)), field.name


@pytest.mark.parametrize("scheduler", ["equal_share", "proportional_fair"])
@pytest.mark.parametrize("adaptation", LINK_ADAPTATIONS)
def test_the_tensor_program_stays_on_its_device(scheduler: Scheduler, adaptation: LinkAdaptation) -> None:
    """On the device "meta", which computes nothing but refuses a tensor of another."""
    config = RadioConfig(scheduler=scheduler, link_adaptation=adaptation, subbands=3)
    world = random_world(1, 2, 5, 3).to("meta")
    state = reference.step(world, start(world, 0, config), config, 2)
    for field in fields(State):
        assert getattr(state, field.name).device.type == "meta", field.name


def test_a_run_elsewhere_than_on_a_cpu_is_refused() -> None:
    world = random_world(1, 1, 2, 2).to("meta")
    with pytest.raises(DefianceError, match="move them with"):
        Loop(world, RadioConfig(), stream(1, "m"), placement="device", period_steps=5)


def test_compiled_loops_older_than_a_source_are_forgotten(tmp_path: Path) -> None:
    """Numba would take a kernel from before a change of what is compiled into it."""
    cache = tmp_path / "__pycache__"
    cache.mkdir()
    for name, at_s in (("a.py", 1), ("b.py", 3), ("__pycache__/old.nbi", 2), ("__pycache__/new.nbi", 4)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (at_s, at_s))
    forget_stale_loops(tmp_path)
    assert [index.name for index in cache.iterdir()] == ["new.nbi"]


@pytest.mark.parametrize("step", [kernel.step, reference.step])
def test_step_leaves_its_arguments_alone(step) -> None:
    world, config = random_world(2, 2, 5, 3), RadioConfig()
    state = start(world)
    before = state.clone()
    first, second = step(world, state, config, 3), step(world, state, config, 3)
    assert_equal(state, before)
    assert_equal(first, second)


def test_neither_threads_nor_company_change_a_world() -> None:
    world, config = random_world(3, 3, 4, 3), RadioConfig()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = kernel.step(world, start(world), config, 10)
        torch.set_num_threads(2)
        assert_equal(kernel.step(world, start(world), config, 10), alone)
    finally:
        torch.set_num_threads(threads)
    both = world.repeat(2)
    twice = kernel.step(both, start(both), config, 10)
    for field in fields(State):
        assert torch.equal(getattr(twice, field.name), getattr(alone, field.name).repeat(
            2, *[1] * (getattr(alone, field.name).dim() - 1)
        )), field.name  # fmt: skip


@pytest.mark.parametrize("scheduler", ["equal_share", "proportional_fair"])
def test_threads_inside_a_world_change_nothing(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    world, config = random_world(4, 1, 37, 5), RadioConfig(scheduler=scheduler)
    threads = torch.get_num_threads()
    monkeypatch.setattr(kernel, "LINKS_PER_THREAD", 1)
    try:
        torch.set_num_threads(1)
        alone = kernel.step(world, start(world), config, 10)
        for count in (2, 3):
            torch.set_num_threads(count)
            assert_equal(kernel.step(world, start(world), config, 10), alone)
    finally:
        torch.set_num_threads(threads)


# --- traffic ---


@given(seed=st.integers(0, 10**6), users=st.integers(1, 12), config=st.sampled_from(CONFIGS))
def test_traffic_is_conserved(seed: int, users: int, config: RadioConfig) -> None:
    """Nobody gets more than the demand or the best rate; a cell's users share what background leaves."""
    world = random_world(seed, 2, users, 3)
    rng = torch.Generator().manual_seed(seed)
    state = start(world, torch.randint(3, (2, users), generator=rng), config)
    steps = 10
    for _ in range(steps):
        state = kernel.step(world, state, config)
        assert bool(((state.load >= world.background_load - 1e-6) & (state.load <= 1)).all())
        pool = (1 - world.background_load).clamp(min=config.foreground_share)
        assert bool((state.load - world.background_load <= pool + 1e-6).all())
    time_s = steps * config.step_s
    assert bool((state.bits <= world.demand_bps.double() * time_s * (1 + 1e-6)).all())
    assert state.bits.sum() <= 6 * config.rate_max_bps_hz * config.bandwidth_hz * time_s
    assert bool(((state.load_steps >= 0) & (state.load_steps <= steps + 1e-6)).all())


@pytest.mark.parametrize("step", [kernel.step, reference.step])
def test_equal_users_get_equal_shares(step) -> None:
    """Four users want more than there is: each gets a quarter of what background leaves."""
    world = corridor([[gain_for_snr(10.0)], [gain_for_snr(10.0)]], users=4, demand_bps=1e9, background=0.5)
    config = RadioConfig()
    state = step(world, start(world), config, 5)
    rate_bps = 20e6 * 0.6 * torch.log2(torch.tensor(1 + 10.0)).item()
    assert state.bits[0].tolist() == pytest.approx([0.5 / 4 * rate_bps * 0.1] * 4, rel=1e-5)
    assert state.load.item() == pytest.approx(1.0)
    assert state.load_steps.item() == pytest.approx(5.0)


@pytest.mark.parametrize("step", [kernel.step, reference.step])
def test_a_satisfied_demand_takes_only_the_blocks_it_needs(step) -> None:
    """Two users of 1 Mbit/s at the capped rate of 7.4 bit/s/Hz: their load is demand over rate."""
    world = corridor([[gain_for_snr(60.0)], [gain_for_snr(60.0)]], users=2, demand_bps=1e6, background=0.2)
    state = step(world, start(world), RadioConfig(), 5)
    assert state.bits[0].tolist() == pytest.approx([1e5, 1e5])
    assert state.load.item() == pytest.approx(0.2 + 2 * 1e6 / (7.4 * 20e6), rel=1e-5)


@pytest.mark.parametrize("step", [kernel.step, reference.step])
def test_full_background_leaves_the_foreground_its_share(step) -> None:
    world = corridor([[gain_for_snr(60.0)], [gain_for_snr(60.0)]], demand_bps=1e9, background=1.0)
    state = step(world, start(world), RadioConfig(foreground_share=0.25), 1)
    assert state.bits.item() == pytest.approx(0.25 * 7.4 * 20e6 * 0.02)
    assert state.load.item() == 1.0
