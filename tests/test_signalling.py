"""Handover messages that wait: timing, priority, power control, congestion, loss, other payloads."""

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_simulate import Hop, Stay
from torch import Tensor
from worlds import RADIO, corridor, gain_for_snr, random_world, start

from defiance.control.handover import A3
from defiance.errors import DefianceError
from defiance.link import PURPOSES, Packets, loss_from_sinr
from defiance.network import kernel
from defiance.network.air import Air, free_share, grant, take
from defiance.network.measurements import Observation
from defiance.network.messages import COMMAND_BITS, Messenger, report_bits
from defiance.network.queues import IDLE, Line, QueuedLink, backlog, put, serve
from defiance.network.settings import RadioConfig
from defiance.network.signalling import NO_BULK, BulkTraffic, Signalling
from defiance.network.simulate import Outcome, simulate
from defiance.network.state import NONE, State
from defiance.network.transport import Users
from defiance.network.world import World
from defiance.seeding import stream

IDEAL, QUEUED = replace(RADIO, messages="ideal"), replace(RADIO, messages="queued")


def cells(snr_db: float = 20.0, users: int = 1, demand_bps: float = 0.0) -> World:
    """Three cells that are received alike, and don't disturb each other: nothing is sent."""
    return corridor([[gain_for_snr(snr_db)] * 3] * 2, users=users, demand_bps=demand_bps)


def hop(
    world: World,
    config: RadioConfig,
    *,
    placement: Literal["device", "station"] = "device",
    bulk: BulkTraffic = NO_BULK,
    every: int = 10,
    duration_s: float = 4.0,
) -> Outcome:
    seen: list[Observation] = []
    policy = Hop(seen, every, placement, 5 if placement == "device" else 6)
    return simulate(world, config, policy, stream(1, "m"), duration_s=duration_s, warm_up_s=0.0, bulk=bulk)


def served(world: World, config: RadioConfig = QUEUED, steps: int = 12) -> State:
    return kernel.step(world, start(world, 0, config), config, steps)


@pytest.mark.parametrize("placement", ["device", "station"])
def test_without_contention_a_command_comes_as_soon_as_with_ideal_links(
    placement: Literal["device", "station"],
) -> None:
    """5 ms + 50 ms + 5 ms and the microseconds that the bits take: the same steps, the same handovers."""
    ideal, queued = (hop(cells(), config, placement=placement) for config in (IDEAL, QUEUED))
    assert ideal.state.handovers.sum() > 0
    assert torch.equal(ideal.state.handovers, queued.state.handovers)
    assert torch.equal(ideal.state.outage_steps, queued.state.outage_steps)
    assert ideal.command_delay_s.item() == pytest.approx(0.06)
    assert 0.06 < queued.command_delay_s.item() < 0.061


def test_bits_of_queued_messages() -> None:
    """Reports, commands and their headers, as without queues; nothing is lost at 20 dB."""
    outcome = hop(cells(), QUEUED, every=10, duration_s=4.5)
    handovers = int(outcome.state.handovers.sum())
    assert handovers == int(outcome.prepared.sum()) == 4
    assert outcome.bits[0, PURPOSES.index("signalling")] == handovers * (COMMAND_BITS + 96)
    assert outcome.bits[0, PURPOSES.index("assistance")] == handovers * (report_bits(3) + 96)


def granted(
    state: State, bits: list[float], free: Tensor, config: RadioConfig = QUEUED, *, uplink: bool
) -> Any:
    """Rates that users are given, `[U]`, and what the whole carrier would give them."""
    users = Users(*(getattr(state, name).numpy() for name in Users._fields))
    rate_bps, full_bps = np.zeros((2, len(bits)))
    grant(np.array(bits), users, free.numpy(), Air.of(config, uplink=uplink), rate_bps, full_bps)
    return rate_bps, full_bps


@pytest.mark.parametrize(
    ("loss_db", "blocks", "sinr_db"),
    [
        (90.0, 51, -80 + 3.0103 + 72 - 90 - (-173.975 + 55.5630 + 5 + 6)),
        (120.0, 2, -80 + 3.0103 + 96 - 120 - (-173.975 + 55.5630 + 5 + 6)),
        (130.0, 1, 23 - 130 - (-173.975 + 55.5630 + 5 + 6)),
    ],
)
def test_uplink_power_control(loss_db: float, blocks: int, sinr_db: float) -> None:
    """TS 38.213 clause 7.1.1 by hand: P0 + alpha PL per block, as many blocks as 23 dBm are enough for."""
    world = corridor([[-loss_db, -200.0]] * 2, demand_bps=0.0)
    state = served(world)
    efficiency = 0.6 * math.log2(1 + 10 ** (sinr_db / 10))
    for slots in (QUEUED.uplink_slots, 1.0):  # power bounds blocks of uplink slots, not of all
        config = replace(QUEUED, uplink_slots=slots)
        rate, full = granted(state, [1e9], slots * free_share(world, config), config, uplink=True)
        assert full.item() == pytest.approx(20e6 * efficiency, rel=1e-3)
        assert rate.item() == pytest.approx(full.item() * slots * blocks / 51, rel=1e-6)


def test_who_waits_is_served_by_round_robin_and_takes_no_more_than_there_is() -> None:
    world = cells(users=4)
    state, free = served(world), torch.full((1, 3), 0.1, dtype=torch.float64)
    bits = [1e9, 1e9, 1e9, 100.0]
    rate, full = granted(state, bits, free, uplink=False)
    assert rate[:3] / full[:3] == pytest.approx((0.1 - 100 / (full[3].item() * 0.02)) / 3)
    taken = np.zeros((1, 3))
    take(state.serving.numpy(), np.minimum(rate * QUEUED.step_s, bits), full, QUEUED.step_s, taken)
    assert taken[0].tolist() == pytest.approx([0.1, 0.0, 0.0])
    alone, _ = granted(state, [0.0, 0.0, 0.0, 100.0], free, uplink=False)
    assert alone[3].item() == pytest.approx(0.1 * full[3].item())  # all that there is, until it is done


@given(seed=st.integers(0, 10**6), users=st.integers(1, 8), bits=st.sampled_from((1, 5000, 10**6)))
@settings(max_examples=20)
def test_one_pass_is_one_queue_after_the_other(seed: int, users: int, bits: int) -> None:
    """Steps of the uplink: signalling is served first, then bulk with the blocks that it leaves."""
    world = random_world(seed, 2, users, 3)
    world = replace(world, gain_db=world.gain_db + 15)
    config, random = replace(QUEUED, foreground_share=0.0), stream(seed, "m")
    everyone = torch.arange(2 * users)
    logs = Packets.of(everyone, source=everyone, purpose="data", payload_bits=bits, offered_s=0.08)
    messenger, link = Messenger(world, config, random), QueuedLink("source", config.air_delay_s)
    signalling = Signalling(world, config, random, messenger, BulkTraffic(uplink=logs), executes=True)
    signals, state = signalling.begin(), served(world, config, 4)
    lines, key = [IDLE, Line(link.rows(logs), IDLE.in_flight)], np.uint64(random.key)
    for steps in range(4, 16):
        now_s, until_s = steps * config.step_s, (steps + 1) * config.step_s
        reporting = everyone[(everyone + steps) % 4 == 0]
        signals = signalling.report(signals, reporting.numpy(), steps, now_s, 3)
        reports = Packets.of(
            messenger.key[reporting] + 4 * steps,
            source=reporting,
            purpose="assistance",
            payload_bits=report_bits(3),
            offered_s=now_s,
        )
        lines[0] = lines[0]._replace(waiting=put(lines[0].waiting, link.rows(reports)))
        left, over = config.uplink_slots * free_share(world, config), []
        lost = torch.where(state.sinr > 0, loss_from_sinr(10 * torch.log10(state.sinr.double())), 1.0)
        for number, loss in enumerate((lost.flatten().numpy(), np.zeros(1))):
            waits, taken = np.zeros(2 * users), np.zeros(left.shape)
            backlog(lines[number].waiting, until_s, waits)
            rate, full = granted(state, waits.tolist(), left, config, uplink=True)
            lines[number], gone, sent = serve(lines[number], rate, loss, key, now_s, until_s, link.timing)
            over.append(gone)
            take(state.serving.numpy(), sent, full, config.step_s, taken)
            left = (left - torch.from_numpy(taken)).clamp(min=0)
        before = messenger.bulk.sum().item()
        signals, heard = signalling.listen(signals, state, state.rsrp_dbm, steps, steps)
        arrived = over[0]["source"][np.isfinite(over[0]["ready_s"])]
        assert set(heard.flatten().nonzero().flatten().tolist()) == set(arrived.tolist())
        assert messenger.bulk.sum().item() - before == len(over[1])
        for found, expected in zip((signals.lines.uplink, signals.lines.bulk_up), lines, strict=True):
            for mine, theirs in zip(found, expected, strict=True):
                assert mine["id"].tolist() == theirs["id"].tolist()
                assert mine["left_bits"] == pytest.approx(theirs["left_bits"], abs=1e-3)
                assert mine["ready_s"] == pytest.approx(theirs["ready_s"])
        state = kernel.step(world, state, config, 1)


def bulk_for(users: int, bits: int, *, end: str = "destination") -> Packets:
    return Packets.of(
        range(users), purpose="model", payload_bits=bits, offered_s=0.0, **{end: torch.arange(users)}
    )


def test_signalling_does_not_wait_for_bulk_but_bulk_for_it() -> None:
    """TS 38.321 clause 5.4.3.1: an endless model, up and down, delays no command."""
    world = cells(users=3)
    endless = BulkTraffic(bulk_for(3, 10**12), bulk_for(3, 10**12, end="source"))
    without, beside = (hop(world, QUEUED, bulk=bulk) for bulk in (NO_BULK, endless))
    assert torch.equal(without.state.handovers, beside.state.handovers)
    assert beside.command_delay_s.item() < 0.062
    assert beside.state.load_steps.sum() > 10 * without.state.load_steps.sum()


def test_a_busy_cell_delays_commands() -> None:
    """20 users of one cell ask at once, with 1 % of the carrier left for them."""
    world = replace(cells(users=20), background_load=torch.full((1, 3), 0.99))
    narrow = replace(QUEUED, foreground_share=0.0)
    calm, busy = hop(replace(world, background_load=torch.zeros(1, 3)), QUEUED), hop(world, narrow)
    assert calm.command_delay_s.item() < 0.08
    assert busy.command_delay_s.item() > 5 * calm.command_delay_s.item()


def test_preparations_wait_for_weights_on_the_wire() -> None:
    """4 Mbit at 10 Mbit/s take 0.42 s, in which their station can prepare no handover."""
    weights = Packets.of(0, source=0, purpose="model", payload_bits=4_000_000, offered_s=0.9)
    slow = replace(QUEUED, xn_bps=1e7)
    free, blocked = (
        hop(cells(), slow, bulk=bulk, duration_s=2.0) for bulk in (NO_BULK, BulkTraffic(wire=weights))
    )
    headers = math.ceil(4_000_000 / 11_680) * 624
    assert blocked.wire_delay_s.item() == pytest.approx((4_000_000 + headers) / 1e7, abs=1e-3)
    assert free.command_delay_s.item() < 0.063
    assert blocked.command_delay_s.item() == pytest.approx(0.9 + 0.421 - 1.0 + 0.056, abs=0.02)


def test_models_share_the_downlink_and_bits_are_conserved() -> None:
    """A model of 8 Mbit at some Mbit/s arrives whole, and is not counted as the user's own traffic."""
    world = cells(users=2, demand_bps=1e6)
    bulk = BulkTraffic(bulk_for(2, 8_000_000))
    outcome = simulate(world, QUEUED, Stay(), stream(1, "m"), duration_s=6.0, warm_up_s=0.0, bulk=bulk)
    assert outcome.bulk.item() == 2 and outcome.state.bulk_bits.sum() == 0
    assert outcome.bits[0, PURPOSES.index("model")] == 2 * (8_000_000 + math.ceil(8_000_000 / 11_680) * 96)
    assert outcome.state.bits[0].tolist() == pytest.approx([6e6, 6e6], rel=1e-3)
    rate = 20e6 * 0.6 * math.log2(101) / 2 - 1e6
    assert outcome.bulk_delay_s.item() == pytest.approx(8.066e6 / rate, abs=0.03)


def test_what_is_lost_is_late_and_who_is_not_scheduled_is_not_heard() -> None:
    """Six equal cells under full load: -7 dB, 4.6 % of transmissions are lost. At -30 dB none is sent."""
    crowd = corridor([[gain_for_snr(20.0)] * 6] * 2, users=4, demand_bps=0.0, background=1.0)
    poor = hop(crowd, replace(QUEUED, access_db=-20.0), every=3, duration_s=20.0)
    assert poor.prepared.sum() > 100 and poor.lost.sum() <= poor.prepared.sum() / 10
    sent = poor.bits[0, PURPOSES.index("signalling")] / (COMMAND_BITS + 96)
    assert 1.01 < sent.item() / poor.prepared.item() < 1.15
    assert poor.command_delay_s.item() > 0.063
    deaf = hop(cells(-30.0), replace(QUEUED, t310_s=6.0), every=3)
    assert deaf.state.handovers.sum() == 0 and deaf.prepared.sum() == 0


@pytest.mark.parametrize("wrong", [-1, 3])
def test_payloads_of_nobody_are_refused(wrong: int) -> None:
    """Three users and three stations: loops without bounds would read and write beyond them."""
    packet = Packets.of(0, source=wrong, destination=wrong, purpose="data", payload_bits=8, offered_s=0.0)
    for bulk in (BulkTraffic(downlink=packet), BulkTraffic(uplink=packet), BulkTraffic(wire=packet)):
        with pytest.raises(DefianceError, match="but there are 3, counted from 0"):
            hop(cells(users=3), QUEUED, bulk=bulk)


def test_other_payloads_need_queues() -> None:
    with pytest.raises(DefianceError, match='set radio.messages to "queued"'):
        hop(cells(), RADIO, bulk=BulkTraffic(bulk_for(1, 8)))


@given(
    seed=st.integers(0, 10**6),
    users=st.integers(1, 6),
    placement=st.sampled_from(("device", "station")),
    bulk_bits=st.sampled_from((0, 1000, 10**6)),
)
@settings(max_examples=25)
def test_queued_runs_are_whole(
    seed: int, users: int, placement: Literal["device", "station"], bulk_bits: int
) -> None:
    """Nobody is sent to no cell, no bit is lost or made; bulk is sent in whole packets or waits."""
    world = random_world(seed, 2, users, 3)
    everyone = torch.arange(2 * users)
    bulk = BulkTraffic(
        Packets.of(everyone, destination=everyone, purpose="model", payload_bits=bulk_bits, offered_s=0.3)
    )
    config = replace(QUEUED, t310_s=0.1, reestablishment_s=0.12)
    rule = A3(1.0, 0.0, 0.0, 0.0, placement=placement, period_steps=5 if placement == "device" else 6)
    outcome = simulate(world, config, rule, stream(seed, "m"), duration_s=1.5, warm_up_s=0.0, bulk=bulk)
    state = outcome.state
    assert bool(((state.target >= NONE) & (state.target < 3)).all())
    assert bool((state.target[state.status == 1] != NONE).all())
    assert bool((outcome.lost <= outcome.messages).all())
    assert bool((state.load <= 1).all()) and bool((state.bits >= 0).all())
    offered = 2 * users * (bulk_bits + max(1, math.ceil(bulk_bits / 11_680)) * 96)
    arrived = int(outcome.bits[:, PURPOSES.index("model")].sum())
    assert arrived % (offered // (2 * users)) == 0
    assert arrived + float(state.bulk_bits.sum()) <= offered + 1e-3
    if not bulk_bits:
        assert outcome.state.bulk_bits.sum() <= 2 * users * 96


def test_signals_are_the_same_whoever_else_is_there() -> None:
    """Worlds of a batch don't know of each other."""
    pair = random_world(3, 2, 4, 3)
    rule = A3(1.0, 0.0, 0.0, 0.0)

    def handovers(world: World) -> Tensor:
        return simulate(world, QUEUED, rule, stream(2, "m"), duration_s=1.5, warm_up_s=0.0).state.handovers

    both = handovers(pair)
    one = replace(
        pair,
        **{
            name: getattr(pair, name)[:1]
            for name in (
                "floor", "loss_db", "route_m", "speed_mps", "stop_spacing_m", "stop_s", "fading_direction",
                "fading_phase", "demand_bps", "background_load", "key", "arrival_s", "packet_bits",
            )
        },
    )  # fmt: skip
    assert torch.equal(handovers(one), both[:1])
