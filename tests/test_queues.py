"""Queued links against queueing theory: waiting times, overload, conserved bits, repeats."""

import heapq
import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quadratics import CENTRES, run
from torch import Tensor

from defiance.errors import DefianceError
from defiance.learn.environment import Environment, Links
from defiance.learn.federation import Server
from defiance.link import BackhaulLink, Deliveries, Packets, with_headers
from defiance.network.queues import QueuedLink, sent_bits, without
from defiance.seeding import stream

RNG = stream(5, "queues")
HEADERLESS = QueuedLink("source", 0.0, header_bits=0)


def poisson(packets: int, per_s: float, bits: Tensor) -> Packets:
    """Packets of one user that come as a Poisson process."""
    gaps = torch.empty(packets, dtype=torch.float64)
    gaps.exponential_(per_s, generator=RNG.child("gaps").generator())
    return Packets.of(range(packets), purpose="task", payload_bits=bits, offered_s=gaps.cumsum(0))


def all_of(link: QueuedLink, packets: Packets, rate_bps: float) -> Deliveries:
    state = replace(
        link.offer(link.initial(), packets, 0.0), rate_bps=torch.tensor(rate_bps, dtype=torch.float64)
    )
    return link.advance(state, math.inf, RNG)[1]


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("sizes", ["exponential", "equal"])
def test_waiting_times_of_m_m_1_and_m_d_1(load: float, sizes: str) -> None:
    """Pollaczek and Khinchine: W = rho / (2 (1 - rho)) (1 + c^2) services, c^2 = 1 (M/M/1) or 0 (M/D/1).

    200,000 packets; the standard error of M/M/1's mean at a load of 0.8 is 2.5 %.
    """
    packets, mean_bits = 200_000, 100_000
    bits = torch.full((packets,), mean_bits)
    if sizes == "exponential":
        drawn = torch.empty(packets, dtype=torch.float64)
        bits = drawn.exponential_(1 / mean_bits, generator=RNG.child("bits").generator()).round().long()
    sent = all_of(HEADERLESS, poisson(packets, load, bits), float(mean_bits))  # a service is a second
    waited = sent.arrived_s - sent.offered_s - sent.payload_bits / mean_bits
    expected = load / (2 * (1 - load)) * (2 if sizes == "exponential" else 1)
    assert waited.mean().item() == pytest.approx(expected, rel=0.075)


def test_an_overloaded_queue_grows_as_a_fluid() -> None:
    """Offered 2 Mbit/s, served 1.5 Mbit/s: after 100 s 50 Mbit wait, within the Poisson deviation."""
    packets = poisson(25_000, 200.0, torch.full((25_000,), 10_000))
    state = replace(
        HEADERLESS.offer(HEADERLESS.initial(), packets, 0.0),
        rate_bps=torch.tensor(1.5e6, dtype=torch.float64),
    )
    for until_s in (50.0, 100.0):
        state, _ = HEADERLESS.advance(state, until_s, RNG)
        waiting = HEADERLESS.waiting_bits(state, until_s, 1)
        assert waiting.item() == pytest.approx(0.5e6 * until_s, abs=4 * 10_000 * math.sqrt(200 * until_s))


@given(
    seed=st.integers(0, 10**6),
    rate_bps=st.sampled_from((0.0, 500.0, 20_000.0)),
    cuts=st.lists(st.floats(0.0, 20.0), max_size=6).map(sorted),
    loss=st.sampled_from((0.0, 0.4)),
    drops=st.booleans(),
)
def test_bits_and_packets_are_conserved(
    seed: int, rate_bps: float, cuts: list[float], loss: float, drops: bool
) -> None:
    """Each packet waits, is in flight, arrived, or was given up; every bit sent was served at the rate."""
    generator = stream(seed, "conserved").generator()
    count, queues = 30, 4
    packets = Packets(
        id=torch.arange(count),
        source=torch.randint(queues, (count,), generator=generator),
        destination=torch.zeros(count, dtype=torch.int64),
        purpose=torch.zeros(count, dtype=torch.int64),
        offered_s=20 * torch.rand(count, dtype=torch.float64, generator=generator),
        payload_bits=torch.randint(3000, (count,), generator=generator),
    )
    link = QueuedLink("source", 0.005, loss_probability=loss, most_repeats=3)
    state, ended = link.offer(link.initial(), packets, 0.0), []
    now_s, served = 0.0, 0.0
    dropped_ids: list[int] = []
    dropped_bits = 0.0
    for until_s in cuts:
        rate = rate_bps * torch.rand(queues, generator=generator, dtype=torch.float64)
        state, gone = link.advance(replace(state, rate_bps=rate), until_s, RNG)
        ended.append(gone)
        served += float(rate.sum()) * (until_s - now_s)
        now_s = until_s
        if drops:
            dropped = torch.rand(queues, generator=generator) < 0.2
            left, lost = without(state.line.waiting, dropped.numpy())
            state = replace(state, line=state.line._replace(waiting=left))
            dropped_ids += list(lost["id"])
            dropped_bits += float(sent_bits(lost).sum())
    over, (waiting, flying) = Deliveries.concatenate(*ended), state.line
    assert sorted([*over.id.tolist(), *waiting["id"], *flying["id"], *dropped_ids]) == packets.id.tolist()
    assert (waiting["left_bits"] <= waiting["bits"]).all() and (waiting["left_bits"] >= 0).all()
    sent = float(over.sent_bits.sum()) + dropped_bits
    sent += sum(float(sent_bits(rows).sum()) for rows in (waiting, flying))
    assert sent <= served + count
    if not loss and not drops:
        offered = float(with_headers(packets.payload_bits, link.header_bits).sum())
        assert sent == pytest.approx(offered - float(waiting["left_bits"].sum()), abs=count)


def by_hand(
    packets: list[tuple[int, float, int]], steps: list[tuple[float, float]], link: QueuedLink, loss: float
) -> dict[int, tuple[float, int]]:
    """One queue packet by packet: who is over, when it arrived or inf, and the bits that were sent for it.

    Args:
        packets: id, offered_s, payload_bits.
        steps: end and rate of each.
        link: the queue's.
        loss: probability.
    """
    queue = []
    for id, offered_s, payload_bits in packets:
        bits = int(with_headers(torch.tensor([payload_bits]), link.header_bits))
        queue.append((offered_s, id, float(bits), bits, 0))
    heapq.heapify(queue)
    over, now_s = {}, -math.inf
    for until_s, rate_bps in steps:
        free_s = now_s
        while queue and rate_bps > 0:
            ready_s, id, left, bits, repeats = heapq.heappop(queue)
            start_s = max(free_s, ready_s)
            room = rate_bps * (until_s - start_s)
            if start_s >= until_s or left > room + 1e-6:
                heapq.heappush(queue, (ready_s, id, left - max(room, 0.0), bits, repeats))
                break
            free_s = min(start_s + left / rate_bps, until_s)
            draw = RNG.uniform(torch.tensor([id ^ (repeats << 56)])).item()
            if draw >= loss:
                over[id] = (free_s + link.delay_s, bits * (repeats + 1))
            elif repeats == link.most_repeats:
                over[id] = (math.inf, bits * (repeats + 1))
            else:
                heapq.heappush(queue, (free_s + link.repeat_s, id, float(bits), bits, repeats + 1))
        now_s = until_s
    return {id: fate for id, fate in over.items() if fate[0] <= now_s or fate[0] == math.inf}


@given(
    packets=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 8), st.sampled_from((0, 1, 700, 12_000, 10**9))),
        max_size=25,
    ),
    steps=st.lists(
        st.tuples(st.sampled_from((0.0, 0.01, 0.5, 3.0)), st.sampled_from((0.0, 1e-3, 5e3, 1e6, 1e11))),
        min_size=1,
        max_size=8,
    ),
    loss=st.sampled_from((0.0, 0.5, 1.0)),
)
@settings(max_examples=60)
def test_queues_serve_packet_by_packet(
    packets: list[tuple[int, int, int]], steps: list[tuple[float, float]], loss: float
) -> None:
    """Arrivals at the same time, steps of no length, no rate, packets that take all steps, endless losses."""
    link = QueuedLink("source", 0.005, loss_probability=loss, most_repeats=3, repeat_s=0.02)
    state = link.initial()
    if packets:
        source, offered, payload_bits = (list(column) for column in zip(*packets, strict=True))
        batch = Packets.of(
            range(len(packets)),
            source=source,
            purpose="task",
            payload_bits=payload_bits,
            offered_s=[0.25 * number for number in offered],
        )
        state = link.offer(state, batch, 0.0)
    ends = list(itertools.accumulate(length for length, _ in steps))
    rates = [rate_bps for _, rate_bps in steps]
    ended = []
    for until_s, rate_bps in zip(ends, rates, strict=True):
        rate = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64) * rate_bps
        state, gone = link.advance(replace(state, rate_bps=rate), until_s, RNG)
        ended.append(gone)
    over = Deliveries.concatenate(*ended)
    fates = zip(over.arrived_s.tolist(), over.sent_bits.tolist(), strict=True)
    found = dict(zip(over.id.tolist(), fates, strict=True))
    expected: dict[int, tuple[float, int]] = {}
    for queue, factor in enumerate((1.0, 0.5, 0.0)):
        mine = [(id, 0.25 * at, bits) for id, (of, at, bits) in enumerate(packets) if of == queue]
        expected |= by_hand(
            mine, [(end, factor * rate) for end, rate in zip(ends, rates, strict=True)], link, loss
        )
    assert found.keys() == expected.keys()
    for id, fate in expected.items():
        assert found[id] == pytest.approx(fate, rel=1e-9, abs=1e-9)


def test_each_queue_is_a_backhaul_of_its_own() -> None:
    """At one constant rate every queue is a `BackhaulLink`."""
    generator = stream(1, "stations").generator()
    packets = poisson(400, 50.0, torch.randint(90_000, (400,), generator=generator))
    packets = replace(packets, source=torch.randint(5, (400,), generator=generator))
    sent = all_of(QueuedLink("source", 0.002, header_bits=624), packets, 1e6)
    for station in range(5):
        wire = BackhaulLink(1e6, 0.002)
        mine = packets.select(packets.source == station)
        expected = wire.advance(wire.offer(wire.initial(), mine, 0.0), math.inf, RNG)[1]
        got = sent.select(sent.source == station)
        got, expected = got.select(got.id.argsort()), expected.select(expected.id.argsort())
        torch.testing.assert_close(got.arrived_s, expected.arrived_s, rtol=1e-12, atol=1e-9)
        assert torch.equal(got.sent_bits, expected.sent_bits)


def test_a_packet_is_cut_by_the_steps_that_it_takes() -> None:
    """2,096 bits at 100 kbit/s, nothing, 200 kbit/s: the last bit leaves in the third step of 10 ms."""
    link = QueuedLink("source", 0.005)
    packet = Packets.of(1, purpose="signalling", payload_bits=2000, offered_s=0.0)
    state, arrivals = link.offer(link.initial(), packet, 0.0), []
    for number, rate_bps in enumerate((1e5, 0.0, 2e5, 0.0)):
        state = replace(state, rate_bps=torch.tensor([rate_bps], dtype=torch.float64))
        state, arrived = link.advance(state, 0.01 * (number + 1), RNG)
        arrivals += arrived.arrived_s.tolist()
    assert arrivals == pytest.approx([0.02 + (2096 - 1000) / 2e5 + 0.005])


def test_what_is_lost_is_sent_again_until_it_is_given_up() -> None:
    """Transmissions are geometric: (1 - p^(n+1)) / (1 - p) on average, p^(n+1) never arrive."""
    count, loss, most = 20_000, 0.5, 3
    link = QueuedLink("source", 0.0, header_bits=0, loss_probability=loss, repeat_s=0.5, most_repeats=most)
    packets = Packets.of(
        range(count), purpose="task", payload_bits=100, offered_s=0.0, source=torch.arange(count)
    )
    sent = all_of(link, packets, 1e3)
    tries = sent.sent_bits.double() / 100
    assert (~sent.delivered).double().mean().item() == pytest.approx(loss ** (most + 1), abs=0.005)
    assert tries.mean().item() == pytest.approx((1 - loss ** (most + 1)) / (1 - loss), abs=0.03)
    arrived = sent.delivered
    assert torch.allclose(sent.arrived_s[arrived], 0.1 * tries[arrived] + 0.5 * (tries[arrived] - 1))


def test_what_a_queue_cannot_do_is_refused() -> None:
    link = QueuedLink("source", delay_s=0.0, rate_bps=1e5)
    packet = Packets.of([1], source=7, purpose="task", payload_bits=1000, offered_s=0.0)
    state = link.offer(link.initial(), packet, 0.0)
    three = torch.full((3,), 1e5, dtype=torch.float64)
    for wrong in (replace(state, rate_bps=three), replace(state, loss_probability=three / 1e6)):
        with pytest.raises(DefianceError, match="queue 7, but .* of 3 queues"):
            link.advance(wrong, 1.0, stream(1, "link"))
    with pytest.raises(DefianceError, match="at 1.0 s can.t go back to 0.5 s"):
        link.advance(link.advance(state, 1.0, stream(1, "link"))[0], 0.5, stream(1, "link"))
    with pytest.raises(DefianceError, match="source is -1"):
        link.offer(link.initial(), replace(packet, source=torch.tensor([-1])), 0.0)


@pytest.mark.parametrize("wrong", [{"delay_s": -1.0}, {"rate_bps": math.nan}, {"loss_probability": 2.0}])
def test_impossible_links_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(DefianceError, match="give times, rates and numbers of 0 or more"):
        QueuedLink("source", **{"delay_s": 0.0, **wrong})


@pytest.mark.parametrize(("end", "waits_s"), [("destination", 3 * 0.064), ("source", 0.064)])
def test_a_federated_round_waits_for_its_weights_in_the_queue(end: str, waits_s: float) -> None:
    """Three updates of 64 bits at 1,000 bit/s, in the server's queue or each in its node's own."""
    link = QueuedLink(end=end, delay_s=0.5, header_bits=0, rate_bps=1000.0)
    found = run(CENTRES, Server(), 2, environment=Environment(step_s=1.0, links=Links(up=link)))
    assert [round_.ended_s for round_ in found.rounds] == pytest.approx([1.5 + waits_s, 2 * (1.5 + waits_s)])
