"""A channel and the link over it fail at the same rate; airtime, bits and joules are the radio's."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import binom

from defiance.errors import DefianceError
from defiance.hardware import BLE, IMPULSE_RADIO, NB_IOT, NR, RADIOS, RadioProfile
from defiance.link import Packets
from defiance.radio.channels import Antipodal, Awgn, BinarySymmetric, RayleighBlock, ZChannel
from defiance.radio.links import ChannelLink
from defiance.seeding import stream

RNG = stream(5, "link")
BARE = replace(BLE, overhead_bits=0)


class Repetition:
    """Three of each bit, decided by the sum of ratios."""

    k, n = 8, 24

    def encode(self, bits: torch.Tensor) -> torch.Tensor:
        return bits.repeat_interleave(3, -1)

    def decode(self, llr: torch.Tensor) -> torch.Tensor:
        return (llr.unflatten(-1, (-1, 3)).sum(-1) > 0).float()


def share_lost(link: ChannelLink, packets: int, payload_bits: int) -> int:
    batch = Packets.of(list(range(packets)), purpose="task", payload_bits=payload_bits, offered_s=0.0)
    deliveries = link.advance(link.offer(link.initial(), batch, 0.0), torch.inf, RNG)[1]
    return int((~deliveries.delivered).sum())


def assert_binomial(count: int, trials: int, probability: float) -> None:
    low, high = binom.interval(1 - 1e-6, trials, probability)
    assert low <= count <= high, f"{count / trials} against {probability}"


@pytest.mark.parametrize(
    "channel",
    [BinarySymmetric(), BinarySymmetric("on-off"), Antipodal(Awgn()), Antipodal(RayleighBlock(1), "hard")],
    ids=str,
)
def test_link_and_channel_have_the_same_error_rate(channel) -> None:
    ebn0_db, size, count = 4.0, 16, 1500
    right = 1 - channel.crossover(ebn0_db).item()
    assert_binomial(share_lost(ChannelLink(channel, ebn0_db, BARE), count, size), count, 1 - right**size)
    sent = torch.randint(0, 2, (count, size), generator=RNG.generator()).float()
    received = channel(sent, ebn0_db, RNG.generator()) > 0.5
    assert_binomial(int((received != (sent > 0.5)).any(-1).sum()), count, 1 - right**size)


def test_only_ones_are_lost_on_a_z_channel() -> None:
    """Half of a packet's scrambled bits are ones: P(right) = (1 - p/2)^n."""
    channel, count = ZChannel(), 1500
    right = 1 - channel.crossover(2.0).item() / 2
    assert_binomial(share_lost(ChannelLink(channel, 2.0, BARE), count, 8), count, 1 - right**8)


def test_fading_for_a_block_loses_fewer_packets_than_independent_fading() -> None:
    def lost(uses: int) -> int:
        return share_lost(ChannelLink(Antipodal(RayleighBlock(uses)), 10.0, BARE), 500, 64)

    assert lost(64) < 0.6 * lost(1)


def test_the_codes_rate_is_in_eb() -> None:
    """Three bits with a third of the energy each, decided softly, are as good as one: no coding gain."""
    channel, count = Antipodal(Awgn()), 1500
    right = 1 - channel.crossover(3.0).item()
    link = ChannelLink(channel, 3.0, BARE, code=Repetition())
    assert_binomial(share_lost(link, count, 16), count, 1 - right**16)


def test_costs_of_the_air() -> None:
    radio = replace(NR, overhead_bits=40)
    link = ChannelLink(BinarySymmetric(), 20.0, radio, code=Repetition(), delay_s=1e-3)
    packets = Packets.of([3, 1, 2], purpose="task", payload_bits=[100, 8, 0], offered_s=[0.0, 0.0, 1.0])
    deliveries = link.advance(link.offer(link.initial(), packets, 0.0), torch.inf, RNG)[1]
    assert deliveries.id.tolist() == [1, 3, 2]
    assert deliveries.payload_bits.tolist() == [8, 100, 0]
    assert deliveries.sent_bits.tolist() == [6 * 24, 18 * 24, 5 * 24]  # of 48, 140 and 40 bits
    assert deliveries.channel_uses.tolist() == [72, 216, 60]  # QPSK
    bits = deliveries.sent_bits.double()
    torch.testing.assert_close(deliveries.tx_energy_j, bits * radio.tx_joules_per_bit)
    torch.testing.assert_close(deliveries.rx_energy_j, bits * radio.rx_joules_per_bit)
    airtime_s = bits / radio.bits_per_s
    expected_s = torch.stack([airtime_s[0], airtime_s[0] + airtime_s[1], 1 + airtime_s[2]]) + 1e-3
    torch.testing.assert_close(deliveries.arrived_s, expected_s)


def test_equal_ids_are_refused() -> None:
    link = ChannelLink(BinarySymmetric(), 3.0, BLE)
    packets = Packets.of(7, purpose="task", payload_bits=8, offered_s=0.0)
    with pytest.raises(DefianceError, match="same id"):
        link.offer(link.offer(link.initial(), packets, 0.0), packets, 0.0)


@pytest.mark.parametrize("radio", RADIOS.values(), ids=str)
def test_silence_costs_its_share(radio: RadioProfile) -> None:
    uses, ones = torch.tensor([100.0]), torch.tensor([10.0])
    quiet = radio.charged_bits(uses, 2 * ones)
    assert quiet.item() == pytest.approx(100 if radio.silent_share == 1 else 20)
    assert torch.equal(radio.charged_bits(uses, uses), uses)


def test_presets_order() -> None:
    """Impulses are cheapest, then short range, then cellular."""
    costs = [radio.tx_joules_per_bit for radio in (IMPULSE_RADIO, BLE, NR, NB_IOT)]
    assert costs == sorted(costs)
