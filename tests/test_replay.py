"""A replayed link carries what the drive could have carried, in the order of the queue."""

from pathlib import Path

import pytest
import torch
from test_drives import GOOD, TRACES, changed, write

from defiance.errors import DefianceError
from defiance.link import Deliveries, Packets
from defiance.scene.drives import read_drive, read_drives
from defiance.scene.replay import CQI_EFFICIENCY, SYMBOLS_PER_S, ReplayLink, replay
from defiance.seeding import stream

RNG = stream(5, "replay")


def link(times_s: list[float], rates_bps: list[float]) -> ReplayLink:
    return ReplayLink(
        torch.tensor(times_s, dtype=torch.float64),
        torch.tensor(rates_bps, dtype=torch.float64),
        symbols_per_s=50.0,
        header_bits=0,
    )


def carried(on: ReplayLink, offered_s: list[float], bits: list[int]) -> Deliveries:
    packets = Packets.of(range(len(bits)), purpose="task", payload_bits=bits, offered_s=offered_s)
    _, deliveries = on.advance(on.offer(on.initial(), packets, 0.0), torch.inf, RNG)
    return deliveries.select(deliveries.id.argsort())


def test_packets_wait_for_the_rate_and_for_each_other():
    """100 bit/s for two seconds, none for three, 50 bit/s for five."""
    deliveries = carried(link([0, 2, 5, 10], [100, 0, 50]), [0.5, 1.5, 3.0, 9.0], [100, 100, 50, 60])
    # the second packet has 0.5 s of 100 bit/s left, and 50 bits after the outage; the last one is too late
    assert deliveries.arrived_s.tolist() == pytest.approx([1.5, 6.0, 7.0, torch.inf])
    assert deliveries.channel_uses.tolist() == [50, 75, 50, 50]


def test_a_packet_that_will_never_be_served_is_lost_when_the_drive_ends():
    on = link([0, 1, 4], [10, 0])
    packets = Packets.of(0, purpose="task", payload_bits=11, offered_s=0.0)
    state, none = on.advance(on.offer(on.initial(), packets, 0.0), 3.9, RNG)
    assert len(none) == 0
    _, lost = on.advance(state, 4.0, RNG)
    assert lost.id.tolist() == [0] and not lost.delivered.any()


def test_the_backlog_never_exceeds_what_the_drive_carried():
    """Offered all at once, n bits are delivered exactly when the integral of the rate is n."""
    rates = torch.randint(0, 5, (40,), generator=RNG.generator()).double() * 100
    on = ReplayLink(torch.arange(41).double(), rates, header_bits=0)
    deliveries = carried(on, [0.0] * 50, [100] * 50)
    capacity = torch.cat([torch.zeros(1).double(), rates.cumsum(0)])
    for sent, arrived_s in zip(range(100, 5001, 100), deliveries.arrived_s.tolist(), strict=True):
        whole = min(int(arrived_s), 39) if arrived_s < torch.inf else 40
        by_then = capacity[whole] + (rates[whole] * (arrived_s - whole) if whole < 40 else 0)
        assert by_then.item() == pytest.approx(sent) if arrived_s < torch.inf else by_then < sent


def test_senseless_rates_are_refused():
    for times_s, rates_bps in (([0, 1], [1, 2]), ([1, 0], [1]), ([0, 1], [-1]), ([0, 1], [float("nan")])):
        with pytest.raises(DefianceError, match="replayed link"):
            link(times_s, rates_bps)


def test_a_drive_is_replayed_by_its_cqi(tmp_path: Path):
    silent = changed("CQI", "-", changed("Timestamp", "2020.02.14_09.38.24"))
    late = changed("CQI", "15", changed("Timestamp", "2020.02.14_09.38.44"))
    last = changed("CQI", "0", changed("Timestamp", "2020.02.14_09.39.04"))
    on = replay(read_drive(write(tmp_path / "a.csv", GOOD, silent, late, last)))
    # two seconds of CQI 10, twenty of nothing, ten of CQI 15 (then the row is too old), nothing at CQI 0
    promised = 0.9 * SYMBOLS_PER_S * (2 * CQI_EFFICIENCY[10] + 10 * CQI_EFFICIENCY[15])
    assert (on.rate_bps * on.time_s.diff()).sum().item() == pytest.approx(promised)
    assert on.time_s[-1].item() == pytest.approx(42 + 14)
    with pytest.raises(DefianceError, match="drive a has no CQI"):
        replay(read_drive(write(tmp_path / "a.csv", silent, silent)))


def test_a_measured_user_gets_a_picture_through():
    if not TRACES.is_dir():
        pytest.skip(f"no data: {TRACES}")
    on = replay(next(drive for drive in read_drives(TRACES) if drive.name == "B_2020.01.16_12.10.03"))
    pictures = carried(on, [float(second) for second in range(380)], [8 * 250_000] * 380)
    delay_s = pictures.arrived_s - pictures.offered_s
    assert pictures.delivered.all() and 0.02 < delay_s.median() < 0.2 < delay_s.max()
