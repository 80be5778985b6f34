"""Whatever the world: no number breaks, and every user is counted once, in every step."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from worlds import random_world, start

from defiance.control.balancing import BalancedA3
from defiance.control.conditional import ConditionalA3
from defiance.control.handover import A3, A5
from defiance.network import kernel, reference
from defiance.network.loop import Loop
from defiance.network.procedures import Period
from defiance.network.settings import LINK_ADAPTATIONS, SCHEDULERS, RadioConfig
from defiance.network.simulate import COUNTS, ConditionalPolicy, Policy
from defiance.network.state import CONNECTED, EXECUTING, NONE, REESTABLISHING, State
from defiance.network.traffic import FtpModel3, full_buffer, with_packets
from defiance.network.world import World, rician
from defiance.seeding import stream

INDOORS_DB, OFF_DB = -40.0, -1000.0

CONFIGS = st.builds(
    RadioConfig,
    scheduler=st.sampled_from(SCHEDULERS),
    link_adaptation=st.sampled_from(LINK_ADAPTATIONS),
    subbands=st.sampled_from((1, 4)),
    bandwidth_hz=st.sampled_from((5e6, 1e8)),
    cqi_delay_s=st.sampled_from((0.0, 0.02)),
    least_sinr_db=st.sampled_from((-200.0, 0.0)),
    foreground_share=st.sampled_from((0.0, 1.0)),
    n310=st.sampled_from((1, 3)),
    t310_s=st.sampled_from((0.0, 0.1)),
    t304_s=st.sampled_from((0.0, 0.2)),
    execution_s=st.sampled_from((0.0, 0.04)),
    access_db=st.sampled_from((-200.0, -8.0)),
    messages=st.sampled_from(("sinr", "t310", "ideal", "queued")),
    measurement_s=st.sampled_from((0.0, 0.3)),
    sample_s=st.sampled_from((0.0, 0.02)),
    suitable_dbm=st.sampled_from((-200.0, -128.0)),
    rsrp_floor_dbm=st.sampled_from((-200.0, -128.0, -80.0)),
)
RULES: dict[str, Policy] = {
    "A3": A3(3.0, 0.0, 0.0, 0.0),
    "A3, far below": A3(-3.0, 0.0, 0.0, 0.0),
    "A3 at the station": A3(3.0, 0.0, 0.0, 0.0, placement="station"),
    "A5": A5(-80.0, -140.0, 0.0, 0.0, 4.0),
    "conditional": ConditionalA3(A3(1.0, 0.0, 0.0, 0.0), -3.0),
    "balanced": BalancedA3(A3(3.0, 0.0, 0.0, 0.0), every=2),
}
TRAFFIC = st.sampled_from(("constant", "full", "packets"))


def assert_whole(world: World, state: State, config: RadioConfig) -> None:
    """Nothing is infinite or not a number or out of its range, nothing is sent that hasn't arrived."""
    cells = world.shape[2]
    for entry in fields(State):
        values = getattr(state, entry.name)
        assert bool(values.isfinite().all()), entry.name
    assert bool(((state.serving >= 0) & (state.serving < cells)).all())
    assert bool(((state.target >= NONE) & (state.target < cells)).all())
    assert bool((state.target >= 0)[state.status == EXECUTING].all())
    assert bool((state.timer_steps > 0)[state.status == REESTABLISHING].all())
    assert bool((state.timer_steps > -config.steps(config.t304_s))[state.status == EXECUTING].all())
    assert bool(((state.load >= 0) & (state.load <= 1)).all())
    assert bool((state.sinr >= 0).all()) and bool((state.bits >= 0).all())
    if world.arrival_s.shape[-1]:
        arrived = (state.arrived * world.packet_bits).double()
        torch.testing.assert_close(state.bits + state.queue_bits, arrived, rtol=1e-6, atol=1.0)


def assert_each_counted_once(world: World, before: State, after: State) -> None:
    """Of every user, what it did in this step follows from its status before and after; so do all counts."""
    starts = (before.status == CONNECTED) & (before.target != NONE) & (before.command_steps <= 0)
    executing = (before.status == EXECUTING) | starts
    searching = before.status == REESTABLISHING
    connected = (before.status == CONNECTED) & ~starts
    assert bool((executing.int() + searching.int() + connected.int() == 1).all())
    to = {status: after.status == status for status in (CONNECTED, EXECUTING, REESTABLISHING)}
    assert bool((to[CONNECTED] | to[EXECUTING] | to[REESTABLISHING]).all())
    assert not bool((to[EXECUTING] & ~executing).any())

    counted = {name: getattr(after, name) - getattr(before, name) for name in COUNTS}
    handed, found = executing & to[CONNECTED], searching & to[CONNECTED]
    for name, event in {
        "interrupted_steps": executing,
        "handovers": handed,
        "handover_failures": executing & to[REESTABLISHING],
        "link_failures": connected & to[REESTABLISHING],
    }.items():
        assert torch.equal(counted[name], event.int()), name
    assert bool((counted["outage_steps"] == 1)[~connected].all())
    assert bool((counted["searches_failed"] <= (searching & to[REESTABLISHING]).int()).all())
    assert torch.equal(after.serving[handed], before.target[handed])
    assert torch.equal(after.serving[~handed & ~found], before.serving[~handed & ~found])

    def per_cell(users: Tensor) -> Tensor:
        return torch.zeros_like(after.load).scatter_add(1, before.serving.long(), users.float())

    in_cells = sum(per_cell(users).sum(1) for users in (connected, executing, searching))
    assert bool((in_cells == world.shape[1]).all())
    idle = per_cell(connected) == 0
    others = (world.background_load + before.reserved).clamp(max=1)
    assert torch.equal(after.load[idle], others[idle])
    assert not bool(counted["bits"][~connected].any())


@given(
    seed=st.integers(0, 10**6),
    users=st.integers(0, 5),
    cells=st.integers(1, 4),
    speed_kmh=st.sampled_from((None, 0.0, 500.0)),
    gain_db=st.sampled_from((0.0, INDOORS_DB, OFF_DB, 100.0)),
    background=st.sampled_from((None, 0.0, 1.0)),
    traffic=TRAFFIC,
    specular=st.booleans(),
    rule=st.sampled_from(sorted(RULES)),
    config=CONFIGS,
)
@settings(max_examples=50)
def test_nothing_breaks_and_every_user_is_counted_once(
    seed: int,
    users: int,
    cells: int,
    speed_kmh: float | None,
    gain_db: float,
    background: float | None,
    traffic: str,
    specular: bool,
    rule: str,
    config: RadioConfig,
) -> None:
    """A run: speeds of 0 and 500 km/h, all users indoors, all cells off, an idle and a full network."""
    world = random_world(seed, 2, users, cells)
    streams = [stream(seed, w) for w in range(2)]
    world = replace(world, gain_db=world.gain_db + gain_db)
    if speed_kmh is not None:
        world = replace(world, speed_mps=torch.full((2, users), speed_kmh / 3.6))
    if background is not None:
        world = replace(world, background_load=torch.full((2, cells), background))
    if traffic == "packets":
        world = with_packets(world, FtpModel3(files_per_s=10.0, file_bits=3e5), streams, 1.5)
    elif traffic == "full":
        world = full_buffer(world)
    if specular:
        world = rician(world, torch.full_like(world.gain_db, 8.0), streams)
    policy = RULES[rule]
    loop = Loop(
        world,
        config,
        stream(seed, "messages"),
        placement=policy.placement,
        period_steps=policy.period_steps,
        conditional=isinstance(policy, ConditionalPolicy),
    )
    step = loop.step

    def checked(state: State, steps: int, period: Period, done: int = 0) -> State:
        for number in range(done, done + steps):
            before = state.clone()
            state = step(state, 1, period, number)
            if number == period.command_after and period.executes:
                told = torch.from_numpy(period.told)
                before, _ = reference.command(before, told, period.wait_steps, config)
            assert_each_counted_once(world, before, state)
        assert_whole(world, state, config)
        return state

    loop.step = checked
    course, memory = loop.begin(), policy.initial(2, users, cells)
    for _ in range(12):
        course, observation = loop.advance(course)
        memory, wanted = policy.decide(memory, observation)
        course, _ = loop.ask(course, wanted)
    assert bool(loop.messenger.bits.isfinite().all())


@pytest.mark.parametrize("step", [kernel.step, reference.step], ids=["kernel", "reference"])
@pytest.mark.parametrize("users", [0, 3])
@pytest.mark.parametrize("gain_db", [0.0, OFF_DB])
def test_both_programs_survive_emptiness(step, users: int, gain_db: float) -> None:
    world = random_world(1, 2, users, 1)
    world = replace(world, gain_db=world.gain_db + gain_db)
    for scheduler in SCHEDULERS:
        config = RadioConfig(scheduler=scheduler)
        assert_whole(world, step(world, start(world), config, 3), config)
