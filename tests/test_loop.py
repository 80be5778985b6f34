"""A period in one compiled pass is the tensor program's steps with messages between them, one by one."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_network_step import assert_close, assert_equal
from torch import Tensor
from worlds import random_world, start

from defiance.link import PURPOSES, loss_from_sinr
from defiance.network import kernel, reference
from defiance.network.loop import Course, Loop
from defiance.network.measurements import measure, unmeasured
from defiance.network.messages import COMMAND_BITS, report_bits
from defiance.network.settings import RadioConfig
from defiance.network.state import CONNECTED, NONE, State, but, sinr_db
from defiance.network.world import World
from defiance.seeding import stream

HEADER_BITS = 96  # of a LossyLink
MESSAGES = stream(1, "m")
CONFIGS = (
    RadioConfig(),
    RadioConfig(messages="ideal", sample_s=0.04),
    # many links are lost within a few periods
    RadioConfig(messages="t310", n310=1, t310_s=0.3, qout_db=0.0, qin_db=2.0, qout_window_s=0.04),
    RadioConfig(air_delay_s=0.0, preparation_s=0.0, scheduler="proportional_fair"),
    RadioConfig(air_delay_s=0.04, preparation_s=0.02, measurement_s=0.2),
    RadioConfig(preparation_s=0.09, execution_s=0.06),  # commands come at the end of a period of 100 ms
)


def arrives(world: World, state: State, number: int, config: RadioConfig) -> Tensor:
    """Whose message of a number gets through, `[W, U]`, by the draws of `LossyLink`."""
    worlds, users, _ = world.shape
    loss = {
        "sinr": loss_from_sinr(sinr_db(state).double()),
        "t310": (state.sinr <= 0).double(),
        "ideal": torch.zeros(worlds, users),
    }[config.messages]
    return MESSAGES.uniform(world.key[:, None] + torch.arange(users) * 2**20 + number) >= loss


def by_reference(loop: Loop, course: Course) -> tuple[State, Tensor, Tensor]:
    """A period by the tensor program: the state, whom commands reached, and who was refused, `[W, U]`."""
    world, config, state = loop.world, loop.config, course.state
    told = refused = torch.zeros_like(course.wanted)
    wait_steps = config.steps(config.air_delay_s + loop.handling_s) - loop.until_command
    for number in range(loop.period_steps + 1):
        if number == loop.until_command:
            heard = arrives(world, state, 4 * course.periods + 1, config)
            told = torch.where(heard, course.wanted, NONE)
            state, refused = reference.command(state, told, wait_steps, config)
        if config.sample_s and number == loop.period_steps - config.steps(config.sample_s):
            state = unmeasured(state)
        if number < loop.period_steps:
            state = reference.step(world, state, config)
    if course.periods % loop.periods_per_measurement == 0:
        state = measure(state, config)
    return state, told, refused


@given(
    seed=st.integers(0, 10**6),
    users=st.integers(1, 8),
    cells=st.integers(2, 5),
    config=st.sampled_from(CONFIGS),
    placement=st.sampled_from(("device", "station")),
)
def test_periods_equal_the_references(
    seed: int, users: int, cells: int, config: RadioConfig, placement: Literal["device", "station"]
) -> None:
    """Commands lost, commands that come within the period or at its end, handovers that they interrupt."""
    world = random_world(seed, 2, users, cells)
    rng = torch.Generator().manual_seed(seed)
    loop = Loop(world, config, MESSAGES, placement=placement, period_steps=5)
    course = replace(
        loop.begin(), state=start(world, torch.randint(cells, (2, users), generator=rng), config)
    )
    for _ in range(6):
        expected, told, refused = by_reference(loop, course)
        target = torch.where(told != NONE, told, course.target)
        sent = loop.messenger.bits[:, PURPOSES.index("signalling")].clone()
        asked, loop.messenger.commands[:] = course.wanted != NONE, 0
        course, observation = loop.advance(but(course, state=course.state.clone()))
        assert_close(world, config, course.state, expected)
        assert torch.equal(course.target, target) and torch.equal(course.refused, refused.bool())
        sent = loop.messenger.bits[:, PURPOSES.index("signalling")] - sent
        assert torch.equal(sent, asked.sum(1) * (COMMAND_BITS + HEADER_BITS))
        assert torch.equal(loop.messenger.commands, (told != NONE).sum(1))
        if placement == "device":
            measured = (course.periods - 1) % loop.periods_per_measurement == 0
            assert torch.equal(observation.fresh, (course.state.status == CONNECTED) & measured)
        wanted = torch.randint(NONE, cells, (2, users), generator=rng)
        course, may = loop.ask(but(course, state=expected), wanted)
        free = (expected.status == CONNECTED) & (expected.target == NONE) & (wanted != expected.serving)
        assert torch.equal(may, torch.where(free, wanted, NONE))
        heard = arrives(world, expected, 4 * (course.periods - 1), config) | (placement == "station")
        assert torch.equal(course.wanted, torch.where(heard, may, NONE))


def test_those_periods_visit_every_fate() -> None:
    """What is compared above does happen: messages are lost, commands refused, handovers interrupted."""
    lost = refused = interrupted = handovers = 0
    for config in CONFIGS:
        world = random_world(3, 4, 8, 4)
        loop = Loop(world, config, MESSAGES, placement="device", period_steps=5)
        course, rng = loop.begin(), torch.Generator().manual_seed(0)
        for _ in range(8):
            course, _ = loop.advance(course)
            refused += int(course.refused.sum())
            course, _ = loop.ask(course, torch.randint(NONE, 4, (4, 8), generator=rng))
        lost += int(loop.messenger.lost.sum())
        interrupted += int(course.state.interrupted_steps.sum())
        handovers += int(course.state.handovers.sum())
    assert min(lost, refused, interrupted, handovers) > 5


@pytest.mark.parametrize("prepared", [False, True])
def test_who_holds_a_configuration_sends_no_request(prepared: bool) -> None:
    """Conditional handover: such a cell is wanted without a message, and executed at once."""
    config = RadioConfig(messages="ideal")
    world = random_world(1, 2, 5, 3)
    loop = Loop(world, config, MESSAGES, placement="device", period_steps=5, conditional=True)
    course, _ = loop.advance(loop.begin())
    held = torch.full_like(course.prepared, prepared)
    other = (course.state.serving.long() + 1) % 3
    course, may = loop.ask(but(course, prepared=held), other)
    assert torch.equal(course.wanted, may)
    requests = 0 if prepared else (may != NONE).sum(1)
    bits = loop.messenger.bits[:, PURPOSES.index("assistance")]
    assert torch.equal(bits, torch.zeros_like(bits) + requests * (report_bits(3) + HEADER_BITS))
    before = course.state.clone()
    after, _ = loop.advance(course)
    went = (before.status == CONNECTED) & (may != NONE) & prepared
    assert torch.equal(after.state.interrupted_steps > before.interrupted_steps, went)
    assert torch.equal(after.prepared.any(-1) & went, torch.zeros_like(went))


def test_a_part_of_a_period_at_a_time_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world, config = random_world(4, 1, 37, 5), CONFIGS[2]
    threads = torch.get_num_threads()
    monkeypatch.setattr(kernel, "LINKS_PER_THREAD", 1)

    def run(count: int, *, stepwise: bool) -> tuple[State, Tensor]:
        torch.set_num_threads(count)
        loop = Loop(world, config, MESSAGES, placement="device", period_steps=5)
        step = loop.step
        if stepwise:

            def one_by_one(state: State, steps: int, period, done: int = 0) -> State:
                for number in range(steps):
                    state = step(state, 1, period, number)
                return state

            loop.step = one_by_one
        course, rng = loop.begin(), torch.Generator().manual_seed(0)
        for _ in range(6):
            course, _ = loop.advance(course)
            course, _ = loop.ask(course, torch.randint(NONE, 5, (1, 37), generator=rng))
        return course.state, course.target

    try:
        alone, target = run(1, stepwise=False)
        for count, stepwise in ((1, True), (2, False), (3, True)):
            state, named = run(count, stepwise=stepwise)
            assert_equal(state, alone)
            assert torch.equal(named, target)
    finally:
        torch.set_num_threads(threads)
