"""The loop around the step: measuring, filtering, reporting, messages in the air, common random numbers."""

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scenes import small_scene
from torch import Tensor
from worlds import RADIO, corridor, gain_for_snr, random_world, start

from defiance.control.handover import A3
from defiance.errors import DefianceError
from defiance.link import PURPOSES, Packets, loss_from_sinr
from defiance.network import kernel
from defiance.network.loop import Loop
from defiance.network.measurements import (
    RSRP_FLOOR_DBM,
    Observation,
    l3_filter,
    measure,
    reported,
)
from defiance.network.messages import COMMAND_BITS, Messenger, report_bits
from defiance.network.procedures import NO_PERIOD
from defiance.network.settings import RadioConfig
from defiance.network.simulate import Outcome, simulate
from defiance.network.state import NONE, State, sinr_db
from defiance.network.world import World, draw_worlds
from defiance.seeding import stream

HEADER_BITS = 96  # of a LossyLink


# --- measuring ---


def test_measurement_is_the_mean_power_per_resource_element() -> None:
    """44 dBm over 612 subcarriers and -100 dB of path gain: 44 - 27.87 - 100 dBm, and then a fresh start."""
    state = start(corridor([[-100.0, -200.0]] * 2))
    received_mw = torch.tensor([[[4 * 10**-5.6, 1e-20]]])
    state = replace(state, rsrp_sum_mw=received_mw, measured_steps=torch.tensor([4], dtype=torch.int32))
    measured = measure(state, RADIO)
    assert measured.rsrp_dbm[0, 0].tolist() == pytest.approx(
        [44 - 10 * math.log10(612) - 100, RSRP_FLOOR_DBM], abs=1e-4
    )
    assert measured.rsrp_sum_mw.sum() == 0 and measured.measured_steps.item() == 0


@given(
    power_mw=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40),
    steps=st.integers(1, 10),
)
def test_a_period_ends_with_a_measurement(power_mw: list[float], steps: int) -> None:
    """As good as the tensor program's, whatever the power: to 2e-5 dB."""
    world = corridor([[-100.0] * len(power_mw)] * 2)
    state = replace(
        start(world),
        rsrp_sum_mw=torch.tensor([[power_mw]]),
        measured_steps=torch.tensor([steps], dtype=torch.int32),
    )
    expected = measure(kernel.step(world, state, RADIO), RADIO)
    got = torch.empty_like(state.rsrp_dbm)
    after = kernel.stepping(world, RADIO)(state, 1, NO_PERIOD._replace(steps=1, rsrp_dbm=got.numpy()))
    assert torch.allclose(got, expected.rsrp_dbm, rtol=0, atol=2e-5)
    assert after.rsrp_sum_mw.sum() == 0 and after.measured_steps.item() == 0


def test_l3_filter_at_200_ms_is_the_standards() -> None:
    """TS 38.331 clause 5.5.3.2: a = 1/2^(k/4); k = 4 halves the distance, k = 0 follows at once."""
    old, new = torch.tensor([-100.0]), torch.tensor([-80.0])
    assert l3_filter(old, new, 4, 0.2).item() == pytest.approx(-90.0)
    assert l3_filter(old, new, 8, 0.2).item() == pytest.approx(-95.0)
    assert l3_filter(old, new, 0, 0.2).item() == pytest.approx(-80.0)
    per_world = l3_filter(old, new, torch.tensor([0.0, 4.0]), 0.2)
    assert per_world.tolist() == pytest.approx([-80.0, -90.0])


@given(k=st.integers(0, 19), divisor=st.sampled_from([2, 4, 5, 10]))
def test_l3_filter_keeps_its_time_constant_at_any_rate(k: int, divisor: int) -> None:
    """A step of 20 dB: after 1 s, 1 - (1 - a)^5 of it has passed, however often was measured."""
    filtered = torch.tensor(-100.0)
    for _ in range(5 * divisor):
        filtered = l3_filter(filtered, torch.tensor(-80.0), k, 0.2 / divisor)
    expected = -100 + 20 * (1 - (1 - 2 ** (-k / 4)) ** 5)
    assert filtered.item() == pytest.approx(expected, abs=1e-3)


@given(
    rsrp_cdbm=st.lists(st.integers(-12700, -4000), min_size=1, max_size=21, unique=True),
    serving=st.integers(0, 20),
)
def test_reports_carry_the_serving_cell_and_eight_neighbours(rsrp_cdbm: list[int], serving: int) -> None:
    levels = torch.tensor([[rsrp_cdbm]]) / 100
    serving %= len(rsrp_cdbm)
    report = reported(levels, torch.tensor([[serving]]))[0, 0]
    named = report > RSRP_FLOOR_DBM
    assert bool(named[serving]) and int(named.sum()) == min(len(rsrp_cdbm), 9)
    assert torch.equal(report[named], levels[0, 0][named].round())
    left_out = levels[0, 0][~named]
    neighbours = named.clone()
    neighbours[serving] = False
    if len(left_out):
        assert left_out.max() <= levels[0, 0][neighbours].min()


def test_bits_of_a_report() -> None:
    assert report_bits(9) == 40 + 9 * 17


# --- policies for tests ---


@dataclass(frozen=True)
class Stay:
    """Never moves; remembers nothing."""

    placement: Literal["device", "station"] = "device"
    period_steps: int = 5

    def initial(self, worlds: int, users: int, cells: int) -> None:
        """Nothing."""

    def decide(self, memory: None, observation: Observation) -> tuple[None, Tensor]:
        return None, torch.full_like(observation.serving, NONE).long()


@dataclass(frozen=True)
class Hop:
    """Wants the next cell at every `every`-th measurement, and keeps what it saw."""

    seen: list[Observation]
    every: int = 1
    placement: Literal["device", "station"] = "device"
    period_steps: int = 5

    def initial(self, worlds: int, users: int, cells: int) -> tuple[int, int]:
        return 0, cells

    def decide(self, memory: tuple[int, int], observation: Observation) -> tuple[tuple[int, int], Tensor]:
        period, cells = memory
        self.seen.append(replace(observation, serving=observation.serving.clone()))
        serving = observation.serving.long()
        hop = period % self.every == self.every - 1
        return (period + 1, cells), (serving + 1) % cells if hop else torch.full_like(serving, NONE)


def equal_cells(snr_db: float = 20.0, users: int = 3) -> World:
    return corridor([[gain_for_snr(snr_db)] * 3] * 2, users=users)


# --- the course of a handover ---


def test_a_decision_is_prepared_commanded_and_executed() -> None:
    """5 ms up, 50 ms of preparation, 5 ms down: executed in steps 4 and 5 of the next period of 100 ms."""
    seen: list[Observation] = []
    outcome = simulate(
        equal_cells(users=1), RADIO, Hop(seen, every=3), stream(1, "m"), duration_s=0.9, warm_up_s=0.0
    )
    assert [int(o.serving) for o in seen] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [o.steps for o in seen] == [5 * (i + 1) for i in range(9)]
    assert all(bool(o.fresh) for o in seen)
    assert outcome.state.handovers.item() == 2 and outcome.state.interrupted_steps.item() == 4
    assert outcome.state.outage_steps.item() == 4
    assert outcome.prepared.tolist() == [2] and outcome.decisions.tolist() == [9]
    assert outcome.duration_s == pytest.approx(0.9)
    # three requests, of which the last is still being prepared, and two commands
    assert outcome.messages.tolist() == [5] and outcome.lost.tolist() == [0]
    bits = dict(zip(PURPOSES, outcome.bits[0].tolist(), strict=True))
    assert bits["assistance"] == 3 * (report_bits(3) + HEADER_BITS)
    assert bits["signalling"] == 2 * (COMMAND_BITS + HEADER_BITS)
    assert sum(bits.values()) == bits["assistance"] + bits["signalling"]


def test_a_later_command_waits_for_its_time() -> None:
    """20 ms up, 100 ms of preparation, 20 ms down: 7 steps, then 2 of execution, of a period of 10."""
    config = RadioConfig(preparation_s=0.1, air_delay_s=0.02)
    seen: list[Observation] = []
    hop = Hop(seen, every=2, period_steps=10)
    outcome = simulate(equal_cells(users=1), config, hop, stream(1, "m"), duration_s=0.8, warm_up_s=0.0)
    assert [int(o.serving) for o in seen] == [0, 0, 1, 1]
    assert outcome.state.interrupted_steps.item() == 2 and outcome.state.stay_steps.item() == 1 + 10


def test_nothing_is_prepared_while_a_command_is_on_its_way() -> None:
    """Commanded at the end of the period after the decision, executed in the next: one in two is prepared."""
    config = RadioConfig(preparation_s=0.09)
    outcome = simulate(equal_cells(users=1), config, Hop([]), stream(1, "m"), duration_s=1.0, warm_up_s=0.0)
    assert outcome.prepared.tolist() == [5] and outcome.state.handovers.item() == 4


def test_every_handover_interrupts_for_two_steps_under_a3() -> None:
    outcome = simulate(worlds(2), RADIO, rule(0.0), stream(1, "m"), duration_s=5.0)
    state = outcome.state
    assert state.handovers.sum() > 20
    executing = (state.status == 1).int()
    complete = 2 * (state.handovers + state.handover_failures)
    assert bool(((state.interrupted_steps - complete).abs() <= 2 * executing + 1).all())
    assert bool((state.outage_steps >= state.interrupted_steps).all())
    assert bool((state.outage_steps <= 250).all()) and bool((state.bits <= 1e6 * 5.0 * (1 + 1e-6)).all())


def test_counting_starts_after_the_warm_up() -> None:
    seen: list[Observation] = []
    outcome = simulate(
        equal_cells(users=1), RADIO, Hop(seen, every=2), stream(1, "m"), duration_s=1.0, warm_up_s=1.0
    )
    assert len(seen) == 20 and outcome.decisions.tolist() == [10]
    assert outcome.state.handovers.item() == 5 and outcome.prepared.tolist() == [5]
    assert outcome.state.bits.item() == pytest.approx(1e6 * (1.0 - 5 * 0.04), rel=1e-4)


def test_progress_counts_steps() -> None:
    done: list[int] = []
    simulate(equal_cells(), RADIO, Stay(), stream(1, "m"), duration_s=1.0, warm_up_s=0.5, advance=done.append)
    assert sum(done) == 75


# --- reports and losses ---


def test_a_station_sees_only_reports() -> None:
    """1 dB steps, at most nine cells, fresh only where the report got through; every report is paid for."""
    world = corridor([[gain_for_snr(20.0 - c) for c in range(12)]] * 2, users=4)
    seen: list[Observation] = []
    policy = Hop(seen, every=1000, placement="station", period_steps=6)
    outcome = simulate(world, RADIO, policy, stream(1, "m"), duration_s=1.2, warm_up_s=0.0)
    assert len(seen) == 10
    for observation in seen:
        named = observation.rsrp_dbm > RSRP_FLOOR_DBM
        assert bool((named.sum(-1) == 9).all()) and bool(named[..., :9].all())
        assert torch.equal(observation.rsrp_dbm, observation.rsrp_dbm.round())
        assert bool(observation.fresh.all())
    assert outcome.messages.tolist() == [40]
    assert outcome.bits[0, PURPOSES.index("assistance")] == 40 * (report_bits(9) + HEADER_BITS)


def with_sinr(world: World, value_db: float) -> State:
    state = start(world)
    return replace(state, sinr=torch.full_like(state.sinr, 10 ** (value_db / 10)))


@pytest.mark.parametrize(("snr_db", "lost"), [(-40.0, 1.0), (40.0, 0.0), (-8.0, 0.1), (-6.0, 0.02)])
def test_losses_follow_the_sinr(snr_db: float, lost: float) -> None:
    """10 % at Qout, 2 % at Qin; none of a good, all of a dead link (5 standard deviations: 0.024)."""
    world = equal_cells(users=4000)
    everyone = torch.ones(1, 4000, dtype=torch.bool)
    messenger = Messenger(world, RADIO, stream(1, "m"))
    heard = messenger.report(with_sinr(world, snr_db), everyone, 0, 3)
    assert 1 - heard.double().mean().item() == pytest.approx(lost, abs=0.024 if 0 < lost < 1 else 1e-9)
    assert messenger.messages.tolist() == [4000]
    assert messenger.lost.tolist() == [int((~heard).sum())]
    wanted, unprepared = torch.ones(1, 4000).long(), torch.zeros(1, 4000, 3, dtype=torch.bool)
    asked, _ = messenger.ask(with_sinr(world, snr_db), wanted, unprepared, 1, 3, requests=True)
    assert 1 - (asked == 1).double().mean().item() == pytest.approx(lost, abs=0.024 if 0 < lost < 1 else 1e-9)
    assert bool(((asked == 1) | (asked == NONE)).all())


@pytest.mark.parametrize("messages", ["sinr", "t310"])
def test_messages_go_as_over_a_lossy_link(messages: Literal["sinr", "t310"]) -> None:
    """Who is heard, and what it costs, packet by packet."""
    config, worlds, users = RadioConfig(messages=messages), 2, 700
    world, rng = random_world(1, worlds, users, 3), torch.Generator().manual_seed(1)
    sinr = 10 ** torch.linspace(-2.5, 1, worlds * users)
    state = replace(start(world), sinr=torch.where(sinr > 0.005, sinr, 0.0).view(worlds, users))
    senders = torch.rand(worlds, users, generator=rng) < 0.7
    messenger = Messenger(world, config, stream(1, "m"))
    heard = messenger.report(state, senders, 3, 9)

    link, user = messenger.uplink, senders.flatten().nonzero().squeeze(-1)
    loss = (
        loss_from_sinr(sinr_db(state).flatten()) if messages == "sinr" else (state.sinr.flatten() <= 0) * 1.0
    )
    packets = Packets.of(
        messenger.key[user] + 4 * 3,
        source=user,
        purpose="assistance",
        payload_bits=report_bits(9),
        offered_s=0.3,
    )
    offered = link.offer(replace(link.initial(), loss_probability=loss), packets, 0.3)
    _, deliveries = link.advance(offered, math.inf, stream(1, "m"))
    assert torch.equal(user[deliveries.delivered], heard.flatten().nonzero().squeeze(-1))
    assert messenger.lost.sum() == (~deliveries.delivered).sum() > 30
    assert messenger.messages.tolist() == senders.sum(1).tolist()
    assert messenger.bits[:, PURPOSES.index("assistance")].sum() == deliveries.sent_bits.sum()


def test_who_is_not_connected_is_not_heard() -> None:
    world = equal_cells(users=10)
    messenger = Messenger(world, RADIO, stream(1, "m"))
    state = replace(start(world), sinr=torch.zeros(1, 10))
    assert not messenger.report(state, torch.ones(1, 10, dtype=torch.bool), 0, 3).any()


def test_a_messages_fate_does_not_depend_on_the_others() -> None:
    world = equal_cells(users=500)
    state = with_sinr(world, -8.5)
    everyone = torch.ones(1, 500, dtype=torch.bool)
    some = torch.arange(500)[None] % 3 == 0
    fates = []
    for senders in (everyone, some):
        messenger = Messenger(world, RADIO, stream(1, "m"))
        messenger.ask(
            state,
            torch.where(senders, 1, NONE),
            torch.zeros(1, 500, 3, dtype=torch.bool),
            3,
            3,
            requests=True,
        )
        fates.append(messenger.report(state, senders, 4, 3))
    assert 0 < fates[0].sum() < 500
    assert torch.equal(fates[0] & some, fates[1])
    later = Messenger(world, RADIO, stream(1, "m")).report(state, everyone, 5, 3)
    assert not torch.equal(later, fates[0])


# --- common random numbers ---


def worlds(*seeds: int) -> World:
    draw = {"users": 12, "duration_s": 8.0, "speed_kmh": 30.0, "load": 0.5, "demand_bps": 1e6}
    gain = -128.0 + 35.0 * torch.rand(6, 40, 40, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(gain, 5, 1, 2, count_include_pad=False)
    scene = small_scene(outdoor=torch.ones(40, 40, dtype=torch.bool).numpy())
    scene = replace(
        scene,
        path_gain_db=4 * (smooth - smooth.mean()) - 118.0,
        cell_site=torch.tensor([0, 0, 0, 1, 1, 1]),
        azimuth_deg=torch.zeros(6),
        tilt_deg=torch.zeros(6),
    )
    return draw_worlds(scene, RADIO, [stream(s, "world") for s in seeds], **draw)


def rule(offset_db: float) -> A3:
    return A3(offset_db, 0.0, 0.0, 0.0)


def run(world: World, offset_db: float, seed: int = 1) -> Outcome:
    return simulate(world, RADIO, rule(offset_db), stream(seed, "m"), duration_s=4.0, record=True)


def test_draws_are_identical_under_every_policy() -> None:
    """Eager, reluctant and never: the same places, the same fading, whatever the cell that serves."""
    world = worlds(1, 2)
    outcomes = [run(world, offset_db) for offset_db in (0.0, 6.0)]
    outcomes.append(simulate(world, RADIO, Stay(), stream(1, "m"), duration_s=4.0, record=True))
    eager = outcomes[0]
    assert eager.state.handovers.sum() > 2 * outcomes[1].state.handovers.sum() > 0
    assert outcomes[2].state.handovers.sum() == 0
    for other in outcomes[1:]:
        assert torch.equal(eager.log.position_m, other.log.position_m)
        assert torch.equal(eager.log.rsrp_dbm, other.log.rsrp_dbm)
        assert torch.equal(eager.state.fading_turns, other.state.fading_turns)
        assert not torch.equal(eager.log.serving, other.log.serving)


def assert_same(outcome: Outcome, other: Outcome, mine: slice, others: slice) -> None:
    for field in fields(State):
        a, b = getattr(outcome.state, field.name), getattr(other.state, field.name)
        assert torch.equal(a[mine], b[others]), field.name
    for name in ("bits", "messages", "lost", "prepared"):
        assert torch.equal(getattr(outcome, name)[mine], getattr(other, name)[others]), name
    for field in fields(type(outcome.log)):
        a, b = getattr(outcome.log, field.name), getattr(other.log, field.name)
        torch.testing.assert_close(a[:, mine], b[:, others], rtol=0, atol=0, equal_nan=True)


def test_a_worlds_place_in_the_batch_changes_nothing() -> None:
    alone, pair = run(worlds(2), 0.0), run(worlds(1, 2), 0.0)
    assert alone.lost.sum() > 0
    assert_same(pair, alone, slice(1, 2), slice(0, 1))
    assert not torch.equal(pair.state.bits[0], pair.state.bits[1])
    twice = run(worlds(1, 2).repeat(2), 0.0)
    assert_same(twice, pair, slice(0, 2), slice(0, 2))
    assert_same(twice, pair, slice(2, 4), slice(0, 2))


def test_settings_side_by_side_are_settings_one_by_one() -> None:
    """A grid of offsets over repeated worlds is the same as separate runs."""
    world = worlds(1, 2)
    grid = simulate(
        world.repeat(2),
        RADIO,
        rule(torch.tensor([0.0, 0.0, 3.0, 3.0])),
        stream(1, "m"),
        duration_s=4.0,
        record=True,
    )
    assert_same(grid, run(world, 0.0), slice(0, 2), slice(0, 2))
    assert_same(grid, run(world, 3.0), slice(2, 4), slice(0, 2))


def test_deterministic_by_seed() -> None:
    world = worlds(1)
    assert_same(run(world, 0.0), run(worlds(1), 0.0), slice(None), slice(None))
    assert not torch.equal(run(world, 0.0).state.bits, run(world, 0.0, seed=2).state.bits)


def test_the_log_tells_the_course() -> None:
    outcome = run(worlds(1, 2), 0.0)
    log, state = outcome.log, outcome.state
    assert log.rsrp_dbm.shape == (40, 2, 12, 6) and log.position_m.shape == (40, 2, 12, 2)
    assert torch.equal(log.serving[-1].int(), state.serving)
    assert torch.equal(log.outage_steps[-1], state.outage_steps)
    changes = (log.serving[1:] != log.serving[:-1]).sum(0)
    assert bool((changes <= state.handovers + state.link_failures + state.handover_failures).all())
    assert bool((log.outage_steps.diff(dim=0) >= 0).all()) and bool((log.outage_steps[0] <= 5).all())
    connected = log.sinr_db.isfinite()
    assert connected.any() and (~connected).any()


def test_no_station_knows_anothers_load_before_it_is_told() -> None:
    """Over Xn every second: from the tenth decision on."""
    world = random_world(1, 1, 2, 3)
    loop = Loop(world, RADIO, stream(1, "m"), placement="device", period_steps=5)
    course, loads = loop.begin(), []
    for _ in range(10):
        course, seen = loop.advance(course)
        loads.append(seen.load)
    assert not torch.stack(loads[:9]).any()
    torch.testing.assert_close(loads[9].double(), course.state.load_steps / 50, rtol=1e-5, atol=0)


# --- wrong use ---


def test_a_run_longer_than_its_routes_is_refused() -> None:
    """Users would stand at the end while their fading goes on."""
    world = draw_worlds(small_scene(), RADIO, [stream(1, "w")], users=2, duration_s=2.0, **ORDINARY)
    with pytest.raises(DefianceError, match=r"routes end after .* draw worlds with duration_s=11 or more"):
        simulate(world, RADIO, A3(3.0, 0.0, 0.0, 0.0), stream(1, "m"), duration_s=10.0)


@pytest.mark.parametrize(
    "wrong",
    [{"load": -1.0}, {"load": math.nan}, {"demand_bps": -1.0}, {"speed_kmh": -30.0}, {"duration_s": 0.0}],
)
def test_worlds_of_impossible_numbers_are_refused(wrong: dict[str, float]) -> None:
    asked = {"duration_s": 2.0} | ORDINARY | wrong
    with pytest.raises(DefianceError, match=next(iter(wrong))):
        draw_worlds(small_scene(), RADIO, [stream(1, "w")], users=2, **asked)


ORDINARY = {"speed_kmh": 30.0, "load": 0.5, "demand_bps": 1e6}
