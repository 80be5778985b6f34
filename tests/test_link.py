"""One contract for every link, the laws of loss and queueing, and two senders on one congested wire."""

import itertools
import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from defiance.errors import DefianceError
from defiance.hardware import BLE
from defiance.kpm import bits_by_purpose
from defiance.link import (
    PURPOSES,
    BackhaulLink,
    DelayLink,
    Deliveries,
    IdealLink,
    Link,
    LossyLink,
    Packets,
    loss_from_sinr,
    send,
)
from defiance.network.queues import QueuedLink
from defiance.radio.channels import BinarySymmetric
from defiance.radio.links import ChannelLink
from defiance.scene.replay import ReplayLink
from defiance.seeding import Stream, stream

RNG = stream(3, "link")
LINKS: list[Any] = [
    pytest.param(IdealLink(), 0.0, id="ideal"),
    pytest.param(DelayLink(0.05), 0.05, id="delay"),
    pytest.param(LossyLink(0.05, loss_probability=0.3, tx_energy_j_per_bit=1e-6), 0.05, id="lossy"),
    pytest.param(BackhaulLink(20_000.0, 0.02, energy_j_per_bit=1e-8), 0.02, id="backhaul"),
    pytest.param(BackhaulLink(1e12, 0.0, header_bits=0), 0.0, id="fast-backhaul"),
    pytest.param(
        ReplayLink(
            torch.tensor([0.0, 2.0, 5.0, 5.0, 90.0], dtype=torch.float64),
            torch.tensor([20_000.0, 0.0, 0.0, 9_000.0], dtype=torch.float64),
            delay_s=0.01,
            rx_energy_j_per_bit=1e-8,
        ),
        0.01,
        id="replay",
    ),
    pytest.param(QueuedLink("source", 0.01, rate_bps=9_000.0), 0.01, id="queued"),
    pytest.param(
        QueuedLink("destination", 0.0, rate_bps=9_000.0, loss_probability=0.3, most_repeats=2),
        0.0,
        id="queued and lossy",
    ),
    pytest.param(ChannelLink(BinarySymmetric(), 7.0, replace(BLE, bits_per_s=20_000.0)), 0.0, id="channel"),
]


def some_packets(count: int = 200, seed: int = 0) -> Packets:
    """Return packets of random sizes, purposes and ends over ten seconds, zero-length ones among them."""
    generator = stream(seed, "packets").generator()

    def whole(high: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator)

    return Packets(
        id=torch.randperm(10 * count, generator=generator)[:count],
        source=whole(5),
        destination=whole(7),
        purpose=whole(len(PURPOSES)),
        offered_s=(10 * torch.rand(count, generator=generator, dtype=torch.float64)).round(decimals=1),
        payload_bits=8 * whole(100),
    )


def carry(
    link: Link[Any], packets: Packets, rng: Stream = RNG, times: tuple[float, ...] = (math.inf,)
) -> Deliveries:
    """Offer each packet in the interval that its stamp falls into, and return all deliveries by id."""
    state, batches, now_s = link.initial(), [], -math.inf
    for until_s in times:
        stamped = (packets.offered_s >= now_s) & (packets.offered_s < until_s)
        state = link.offer(state, packets.select(stamped), now_s)
        state, deliveries = link.advance(state, until_s, rng)
        assert bool((deliveries.arrived_s[deliveries.delivered] <= until_s).all())
        batches.append(deliveries)
        now_s = until_s
    joined = Deliveries.concatenate(*batches)
    return joined.select(joined.id.argsort())


def assert_same(a: Deliveries, b: Deliveries) -> None:
    for field in fields(Deliveries):
        torch.testing.assert_close(getattr(a, field.name), getattr(b, field.name), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize(("link", "delay_s"), LINKS)
class TestContract:
    def test_deterministic_by_seed(self, link: Link[Any], delay_s: float) -> None:
        first, second = carry(link, some_packets()), carry(link, some_packets())
        for field in fields(Deliveries):
            assert torch.equal(getattr(first, field.name), getattr(second, field.name))

    def test_causal(self, link: Link[Any], delay_s: float) -> None:
        deliveries = carry(link, some_packets())
        assert bool((deliveries.arrived_s >= deliveries.offered_s).all())
        assert bool((deliveries.arrived_s >= deliveries.offered_s + delay_s).all())

    def test_nothing_comes_before_its_time(self, link: Link[Any], delay_s: float) -> None:
        state = link.offer(link.initial(), Packets.of(1, purpose="task", payload_bits=8, offered_s=1.0), 0.0)
        state, early = link.advance(state, 0.99, RNG)
        assert len(early) == 0
        state, in_time = link.advance(state, 100.0, RNG)
        assert len(in_time) == 1
        assert len(link.advance(state, math.inf, RNG)[1]) == 0

    def test_each_packet_once_unchanged_and_no_other(self, link: Link[Any], delay_s: float) -> None:
        packets = some_packets()
        deliveries = carry(link, packets, times=(0.5, 3.0, 3.1, 7.0, math.inf))
        sent = packets.select(packets.id.argsort())
        for field in fields(Packets):
            assert torch.equal(getattr(deliveries, field.name), getattr(sent, field.name))

    def test_costs_are_sane(self, link: Link[Any], delay_s: float) -> None:
        deliveries = carry(link, some_packets())
        assert bool((deliveries.sent_bits >= deliveries.payload_bits).all())
        for cost in (deliveries.channel_uses, deliveries.tx_energy_j, deliveries.rx_energy_j):
            assert bool((cost >= 0).all()) and bool(cost.isfinite().all())

    def test_order_and_partition_of_the_offers_change_nothing(self, link: Link[Any], delay_s: float) -> None:
        packets = some_packets()
        once = carry(link, packets)
        assert_same(once, carry(link, packets.select(torch.arange(len(packets)).flip(0))))
        halves = link.offer(link.initial(), packets.select(packets.source < 2), 0.0)
        halves = link.offer(halves, packets.select(packets.source >= 2), 0.0)
        joined = link.advance(halves, math.inf, RNG)[1]
        assert_same(once, joined.select(joined.id.argsort()))

    def test_how_time_is_cut_changes_nothing(self, link: Link[Any], delay_s: float) -> None:
        packets = some_packets()
        cut = carry(link, packets, times=(0.1, 0.2, 4.0, 4.5, 9.9, 10.0, 10.1, math.inf))
        assert_same(carry(link, packets), cut)

    def test_a_draw_does_not_depend_on_company(self, link: Link[Any], delay_s: float) -> None:
        packets = some_packets()
        some = packets.select(torch.arange(0, len(packets), 3))
        company = carry(link, packets)
        assert torch.equal(
            company.select(torch.isin(company.id, some.id)).delivered, carry(link, some).delivered
        )

    def test_states_are_values(self, link: Link[Any], delay_s: float) -> None:
        state = link.offer(link.initial(), some_packets(), 0.0)
        first, second = link.advance(state, 5.0, RNG)[1], link.advance(state, 5.0, RNG)[1]
        assert len(first) > 0
        assert_same(first, second)

    def test_bits_of_a_real_payload(self, link: Link[Any], delay_s: float) -> None:
        deliveries = send(link, b"seven b", RNG, purpose="task", id=4, source=1, destination=2, offered_s=3.0)
        assert deliveries.payload_bits.tolist() == [56]
        assert (deliveries.id.item(), deliveries.source.item(), deliveries.destination.item()) == (4, 1, 2)
        assert deliveries.purpose.item() == PURPOSES.index("task")

    def test_no_offer_into_the_past(self, link: Link[Any], delay_s: float) -> None:
        late = Packets.of([1, 2], purpose="task", payload_bits=8, offered_s=[2.0, 0.9])
        with pytest.raises(DefianceError, match=r"stamped 0.9 s was offered at 1.0 s"):
            link.offer(link.initial(), late, 1.0)

    def test_an_empty_link_delivers_nothing(self, link: Link[Any], delay_s: float) -> None:
        state = link.offer(link.initial(), Packets.empty(), 0.0)
        assert len(link.advance(state, math.inf, RNG)[1]) == 0


def test_packets_are_checked() -> None:
    with pytest.raises(DefianceError, match="'gossip' is unknown; choose one of assistance, data"):
        Packets.of(1, purpose="gossip", payload_bits=8, offered_s=0.0)
    with pytest.raises(DefianceError, match="payload_bits >= 0 and a finite offered_s"):
        Packets.of([1, 2], purpose="task", payload_bits=[8, -1], offered_s=0.0)
    with pytest.raises(DefianceError, match="finite offered_s"):
        Packets.of(1, purpose="task", payload_bits=8, offered_s=math.nan)
    packets = Packets.of([1, 2], purpose="task", payload_bits=8, offered_s=0.0)
    with pytest.raises(DefianceError, match=r"Packets.offered_s is torch.float32 \(2,\); give torch.float64"):
        replace(packets, offered_s=packets.offered_s.float())
    with pytest.raises(DefianceError, match=r"Packets.source is torch.int64 \(1,\)"):
        replace(packets, source=packets.source[:1])


def test_ideal_is_instant_and_free() -> None:
    deliveries = carry(IdealLink(), some_packets())
    assert torch.equal(deliveries.arrived_s, deliveries.offered_s)
    assert torch.equal(deliveries.sent_bits, deliveries.payload_bits)


def test_loss_curve_meets_radio_link_monitoring() -> None:
    sinr_db = torch.tensor([-8.0, -6.0, 20.0, -40.0, 0.0], dtype=torch.float64)
    loss = loss_from_sinr(sinr_db)
    torch.testing.assert_close(loss[:2], torch.tensor([0.10, 0.02], dtype=torch.float64))
    assert loss[2] < 1e-6 and loss[3] > 1 - 1e-6
    assert bool((loss_from_sinr(torch.linspace(-30, 30, 100, dtype=torch.float64)).diff() < 0).all())


@pytest.mark.parametrize("probability", [0.0, 0.02, 0.5, 1.0])
def test_share_of_losses(probability: float) -> None:
    packets = Packets.of(torch.arange(20_000), purpose="signalling", payload_bits=40, offered_s=0.0)
    lost = ~carry(LossyLink(0.01, probability), packets).delivered
    spread = math.sqrt(probability * (1 - probability) / 20_000)
    assert lost.double().mean().item() == pytest.approx(probability, abs=5 * spread)


@pytest.mark.parametrize("lossy_end", ["source", "destination"])
def test_losses_follow_the_end_points_radio(lossy_end: Any) -> None:
    link = LossyLink(0.01, lossy_end=lossy_end)
    good, bad = 30.0, -60.0
    state = replace(link.initial(), loss_probability=loss_from_sinr(torch.tensor([good, bad, good])))
    user = torch.arange(3)
    packets = Packets.of(user, purpose="signalling", payload_bits=40, offered_s=0.0, **{lossy_end: user})
    state = link.offer(state, packets, 0.0)
    # what is already in the air keeps the radio of its time
    state = replace(state, loss_probability=loss_from_sinr(torch.tensor([bad, good, bad])))
    assert link.advance(state, 1.0, RNG)[1].delivered.tolist() == [True, False, True]


def test_costs_of_the_air() -> None:
    link = LossyLink(
        0.01, header_bits=96, bits_per_channel_use=2.0, tx_energy_j_per_bit=3e-6, rx_energy_j_per_bit=1e-6
    )
    deliveries = send(link, b"12345", RNG, purpose="assistance")
    assert deliveries.sent_bits.item() == 136 and deliveries.channel_uses.item() == 68
    assert deliveries.tx_energy_j.item() == pytest.approx(136 * 3e-6)
    assert deliveries.rx_energy_j.item() == pytest.approx(136 * 1e-6)


def test_costs_of_the_wire() -> None:
    link = BackhaulLink(1e6, 0.01, energy_j_per_bit=1e-8)
    for size, segments in ((0, 1), (1460, 1), (1461, 2), (14_600, 10)):
        deliveries = send(link, bytes(size), RNG, purpose="model", offered_s=5.0)
        bits = 8 * size + segments * 624
        assert deliveries.sent_bits.item() == bits
        assert deliveries.arrived_s.item() == pytest.approx(5.0 + bits / 1e6 + 0.01, abs=1e-12)
        assert deliveries.tx_energy_j.item() == pytest.approx(bits * 1e-8)


@settings(max_examples=50, deadline=None)
@given(
    offers=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5000)), min_size=1, max_size=30),
    cuts=st.lists(st.integers(1, 60), max_size=4),
)
def test_the_scan_is_a_queue(offers: list[tuple[int, int]], cuts: list[int]) -> None:
    """The cumulative maximum gives what serving one packet after the other gives."""
    packets = Packets.of(
        torch.arange(len(offers)),
        purpose="data",
        offered_s=[0.1 * time for time, _ in offers],
        payload_bits=[bits for _, bits in offers],
    )
    expected_s, free_s = [math.nan] * len(offers), 0.0
    for offered_s, id, bits in sorted((0.1 * time, id, bits) for id, (time, bits) in enumerate(offers)):
        free_s = max(offered_s, free_s) + (bits + 10) / 2000.0
        expected_s[id] = free_s + 0.25
    times = (*(0.1 * cut for cut in sorted(cuts)), math.inf)
    link = BackhaulLink(2000.0, 0.25, header_bits=10)
    assert carry(link, packets, times=times).arrived_s.tolist() == pytest.approx(expected_s, abs=1e-9)


def test_a_queue_with_poisson_arrivals_waits_as_pollaczek_and_khinchin_say() -> None:
    """M/D/1 at load r: mean wait = r/(2(1 - r)) services."""
    count, load = 200_000, 0.6
    gaps = -torch.log1p(-stream(1, "arrivals").uniform(torch.arange(count)))
    packets = Packets.of(
        torch.arange(count), purpose="data", payload_bits=0, offered_s=gaps.cumsum(0) * (1 / load)
    )
    deliveries = carry(BackhaulLink(1.0, 0.0, header_bits=1), packets)
    wait_s = deliveries.arrived_s - deliveries.offered_s - 1.0
    assert wait_s.mean().item() == pytest.approx(load / (2 * (1 - load)), rel=0.03)


def test_two_senders_share_one_congested_wire() -> None:
    """The prototype of the design: a federated round's model updates delay a co-inference request.

    Two stub senders know nothing of each other; each keeps its payloads by packet id and stamps its own
    packets. The wire alone decides who waits, the ledger who pays.
    """
    link = BackhaulLink(rate_bps=10e6, delay_s=0.005, header_bits=0)
    numbers = itertools.count()

    def federated_round(stations: int, update: bytes) -> dict[int, bytes]:
        return {next(numbers): update for _ in range(stations)}

    def co_inference(feature: bytes) -> dict[int, bytes]:
        return {next(numbers): feature}

    def packets_of(payloads: dict[int, bytes], purpose: str, now_s: float) -> Packets:
        sizes = [8 * len(payload) for payload in payloads.values()]
        return Packets.of(list(payloads), purpose=purpose, payload_bits=sizes, offered_s=now_s)

    def latency_of_the_request(stations: int) -> tuple[float, Deliveries]:
        state, deliveries = link.initial(), Deliveries.empty()
        updates = federated_round(stations, bytes(125_000))  # 1 Mbit: 0.1 s of the wire each
        state = link.offer(state, packets_of(updates, "model", 0.0), 0.0)
        request = co_inference(bytes(1250))  # 10 kbit: 1 ms of the wire
        state, early = link.advance(state, 0.05, RNG)
        state = link.offer(state, packets_of(request, "task", 0.05), 0.05)
        for until_s in (0.1, 0.2, 0.4, 0.8, 1.6):
            state, late = link.advance(state, until_s, RNG)
            deliveries = Deliveries.concatenate(deliveries, early, late)
            early = Deliveries.empty()
        assert sorted(deliveries.id.tolist()) == sorted({**updates, **request})
        task = deliveries.select(deliveries.purpose == PURPOSES.index("task"))
        return (task.arrived_s - task.offered_s).item(), deliveries

    alone_s, _ = latency_of_the_request(stations=0)
    assert alone_s == pytest.approx(0.001 + 0.005)
    shared_s, deliveries = latency_of_the_request(stations=7)
    assert shared_s == pytest.approx((0.7 - 0.05) + 0.001 + 0.005)  # behind what is left of seven updates
    bits = bits_by_purpose(deliveries)
    assert (bits["model"], bits["task"]) == (7 * 1_000_000, 10_000)
