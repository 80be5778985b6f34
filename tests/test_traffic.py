"""Traffic models against their definitions, queues against queueing theory."""

import math
from dataclasses import replace

import pytest
import torch
from worlds import corridor, gain_for_snr, start

from defiance.errors import DefianceError
from defiance.network import kernel, reference
from defiance.network.settings import RadioConfig
from defiance.network.traffic import FtpModel3, Periodic, full_buffer, with_packets
from defiance.network.world import World
from defiance.seeding import stream

both = pytest.mark.parametrize("step", [kernel.step, reference.step], ids=["kernel", "reference"])
RATE_BPS = 7.4 * 20e6  # capped


def near(users: int = 1, worlds: int = 1) -> World:
    """Users beside one cell: everyone could have `RATE_BPS` alone."""
    return corridor([[gain_for_snr(60.0)]] * 2, users=users).repeat(worlds)


def streams(worlds: int) -> list:
    return [stream(w, "world") for w in range(worlds)]


def test_files_arrive_as_a_poisson_process() -> None:
    """Counts have variance = mean, distances are exponential; 2,000 users, 5 standard deviations."""
    rng = torch.Generator().manual_seed(1)
    arrival_s = FtpModel3(files_per_s=0.5).arrivals_s(2000, 20.0, rng)
    count = arrival_s.isfinite().sum(-1).double()
    assert count.mean().item() == pytest.approx(10.0, abs=5 * math.sqrt(10 / 2000))
    assert count.var().item() == pytest.approx(10.0, abs=5 * 10 * math.sqrt(2.1 / 2000))
    assert bool((arrival_s.diff() >= 0)[:, :-1][arrival_s[:, 1:-1].isfinite()].all())
    first = arrival_s[:, 0]
    assert first.mean().item() == pytest.approx(2.0, abs=5 * 2 / math.sqrt(2000))
    assert bool((arrival_s[arrival_s.isfinite()] < 20.0).all())


def test_periodic_packets_keep_their_distance() -> None:
    arrival_s = Periodic(packet_bits=1e5, period_s=0.5).arrivals_s(50, 4.0, torch.Generator().manual_seed(1))
    assert arrival_s.shape == (50, 8)
    assert bool((arrival_s[:, 0] < 0.5).all()) and arrival_s[:, 0].std() > 0.1
    torch.testing.assert_close(arrival_s.diff(), torch.full((50, 7), 0.5))


def test_arrivals_are_the_worlds_own() -> None:
    model = FtpModel3(files_per_s=2.0)
    two = with_packets(near(3, 2), model, streams(2), 5.0)
    one = with_packets(near(3), model, streams(2)[1:], 5.0)
    kept = one.arrival_s.shape[-1]
    assert torch.equal(two.arrival_s[1, :, :kept], one.arrival_s[0])
    with pytest.raises(DefianceError, match="as many streams"):
        with_packets(near(3, 2), model, streams(1), 5.0)


@both
def test_a_packet_departs_when_its_last_bit_is_sent(step) -> None:
    """At 2.96 Mbit a step: a packet of 5 Mbit that arrives at 10 ms starts at 20 and is through at 60 ms."""
    world = replace(
        near(),
        arrival_s=torch.tensor([[[0.01, 0.05]]]),
        packet_bits=torch.tensor([[5e6]]).double(),
        demand_bps=torch.zeros(1, 1),
    )
    config, state = RadioConfig(), start(world)
    queue, packets, load = [], [], []
    for _ in range(6):
        state = step(world, state, config)
        queue.append(state.queue_bits.item())
        packets.append(state.packets.item())
        load.append(state.load.item())
    sent = RATE_BPS * 0.02
    assert queue == pytest.approx([0, 5e6 - sent, 0, 5e6 - sent, 0, 0], rel=1e-4)
    assert packets == [0, 0, 1, 1, 2, 2]
    assert load == pytest.approx([0, 1, 5e6 / sent - 1, 1, 5e6 / sent - 1, 0], rel=1e-4)
    assert state.delay_s.item() == pytest.approx(0.05 + 0.05)
    assert state.bits.item() == pytest.approx(1e7)


@both
def test_a_full_buffer_takes_all(step) -> None:
    world = full_buffer(near(2))
    state = step(world, start(world), RadioConfig(scheduler="round_robin"), 5)
    assert state.bits[0].tolist() == pytest.approx([RATE_BPS * 0.1 / 2] * 2)
    assert state.load.item() == 1.0


def test_a_queue_alone_is_m_d_1() -> None:
    """Poisson files of one size: they wait rho / (2 (1 - rho)) services (Pollaczek and Khinchine).

    A step shows a file 10 ms late on average at either end. 100 cells for 100 s: 15,000 files; the delays'
    standard deviation is 0.3 s and they come in busy periods: 3 %.
    """
    service_s, rho = 0.4, 0.6
    model = FtpModel3(files_per_s=rho / service_s, file_bits=RATE_BPS * service_s)
    world = with_packets(near(worlds=100), model, streams(100), 100.0)
    state = kernel.step(world, start(world), RadioConfig(), 5000)
    mean_s = (state.delay_s.sum() / state.packets.sum()).item()
    assert mean_s == pytest.approx(service_s * (1 + rho / (2 * (1 - rho))) + 0.02, rel=0.05)
    assert (state.load_steps.sum() / 100 / 5000).item() == pytest.approx(rho, rel=0.03)


def test_a_shared_cell_is_processor_sharing() -> None:
    """Many users of round robin share a cell: files stay service / (1 - rho), whatever their sizes' law."""
    service_s, rho, users = 0.2, 0.5, 20
    model = FtpModel3(files_per_s=rho / service_s / users, file_bits=RATE_BPS * service_s)
    world = with_packets(near(users, 15), model, streams(15), 100.0)
    state = kernel.step(world, start(world), RadioConfig(scheduler="round_robin"), 5000)
    mean_s = (state.delay_s.sum() / state.packets.sum()).item()
    assert mean_s == pytest.approx(service_s / (1 - rho) + 0.02, rel=0.08)


def test_packets_wait_out_a_handover() -> None:
    """Nothing is lost in an interruption: what arrives then is sent after it."""
    world = corridor([[gain_for_snr(60.0)] * 2] * 2)
    world = with_packets(world, Periodic(packet_bits=1e4, period_s=0.02), streams(1), 1.0)
    state = kernel.step(world, start(world), RadioConfig(), 10)
    state = replace(state, target=torch.ones_like(state.target))
    state = kernel.step(world, state, RadioConfig(), 2)
    assert state.queue_bits.item() == pytest.approx(2e4)
    state = kernel.step(world, state, RadioConfig(), 60)
    assert state.serving.item() == 1 and state.queue_bits.item() == 0
    assert state.packets.item() == 50 and state.bits.item() == pytest.approx(50e4)
