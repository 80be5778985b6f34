"""Whatever the world: no number breaks, and every user is connected, in handover or in re-establishment."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import random_world, start

from defiance.control.handover import A3
from defiance.network import kernel, reference
from defiance.network.settings import SCHEDULERS, RadioConfig, Scheduler
from defiance.network.simulate import simulate
from defiance.network.state import CONNECTED, EXECUTING, NONE, REESTABLISHING, State
from defiance.network.traffic import FtpModel3, with_packets
from defiance.network.world import World, rician
from defiance.seeding import stream

INDOORS_DB, OFF_DB = -40.0, -1000.0


def assert_whole(world: World, state: State) -> None:
    """Nothing is infinite or not a number, nobody is lost, nothing is sent that hasn't arrived."""
    worlds, users, cells = world.shape
    for entry in fields(State):
        values = getattr(state, entry.name)
        assert bool(values.isfinite().all()), entry.name
    status = state.status
    assert bool(((status == CONNECTED) | (status == EXECUTING) | (status == REESTABLISHING)).all())
    assert status.shape == (worlds, users)
    assert bool(((state.serving >= 0) & (state.serving < cells)).all())
    assert bool(((state.target >= NONE) & (state.target < cells)).all())
    assert bool((state.target >= 0)[status == EXECUTING].all())
    assert bool((state.timer_steps > 0)[status != CONNECTED].all())
    assert bool((state.interrupted_steps <= state.outage_steps).all())
    assert bool(((state.load >= 0) & (state.load <= 1)).all())
    assert bool((state.sinr >= 0).all()) and bool((state.bits >= 0).all())
    if world.arrival_s.shape[-1]:
        arrived = (state.arrived * world.packet_bits).double()
        torch.testing.assert_close(state.bits + state.queue_bits, arrived, rtol=1e-6, atol=1.0)


@given(
    seed=st.integers(0, 10**6),
    users=st.integers(0, 5),
    cells=st.integers(1, 4),
    speed_kmh=st.sampled_from((None, 0.0, 500.0)),
    gain_db=st.sampled_from((0.0, INDOORS_DB, OFF_DB)),
    background=st.sampled_from((None, 0.0, 1.0)),
    scheduler=st.sampled_from(SCHEDULERS),
    bands=st.sampled_from((1, 4)),
    packets=st.booleans(),
    specular=st.booleans(),
)
@settings(max_examples=50)
def test_nothing_breaks_and_nobody_is_lost(
    seed: int,
    users: int,
    cells: int,
    speed_kmh: float | None,
    gain_db: float,
    background: float | None,
    scheduler: Scheduler,
    bands: int,
    packets: bool,
    specular: bool,
) -> None:
    """A whole run: speeds of 0 and 500 km/h, all users indoors, all cells off, an idle and a full network."""
    world = random_world(seed, 2, users, cells)
    streams = [stream(seed, w) for w in range(2)]
    world = replace(world, gain_db=world.gain_db + gain_db)
    if speed_kmh is not None:
        longer_m = world.route_m.repeat(1, 1, 3, 1)
        world = replace(world, speed_mps=torch.full((2, users), speed_kmh / 3.6), route_m=longer_m)
    if background is not None:
        world = replace(world, background_load=torch.full((2, cells), background))
    if packets:
        world = with_packets(world, FtpModel3(files_per_s=10.0, file_bits=3e5), streams, 1.5)
    if specular:
        world = rician(world, torch.full_like(world.gain_db, 8.0), streams)
    config = RadioConfig(scheduler=scheduler, subbands=bands, t310_s=0.1)
    rule = A3(3.0, 0.0, 0.0, 0.0)
    outcome = simulate(world, config, rule, stream(seed, "messages"), duration_s=1.5, warm_up_s=0.0)
    assert_whole(world, outcome.state)
    assert bool(outcome.bits.isfinite().all())


@pytest.mark.parametrize("step", [kernel.step, reference.step], ids=["kernel", "reference"])
@pytest.mark.parametrize("users", [0, 3])
@pytest.mark.parametrize("gain_db", [0.0, OFF_DB])
def test_both_programs_survive_emptiness(step, users: int, gain_db: float) -> None:
    world = random_world(1, 2, users, 1)
    world = replace(world, gain_db=world.gain_db + gain_db)
    for scheduler in SCHEDULERS:
        assert_whole(world, step(world, start(world), RadioConfig(scheduler=scheduler), 3))
