"""Sionna's fading against closed forms and against Sionna's own receiver; the LDPC code against theory."""

import math
import subprocess
import sys

import pytest
import torch
from scipy.special import j0
from scipy.stats import binom, norm

from defiance.errors import DefianceError
from defiance.radio.channels import Antipodal, Awgn, BinarySymmetric, RayleighBlock
from defiance.radio.nr import Grid, Ldpc, NrTdl, NrUma
from defiance.seeding import stream

NARROW = Grid(subcarriers=1)


def assert_binomial(errors: int, trials: int, probability: float) -> None:
    low, high = binom.interval(1 - 1e-6, trials, probability)
    assert low <= errors <= high, f"{errors / trials} against {probability}"


def test_importing_sionna_leaves_torch_as_it_was() -> None:
    """In a process of its own, for the import happens once."""
    program = (
        "import torch; torch.rand(3); state = torch.get_rng_state()\n"
        "from defiance.radio.nr import NrTdl\n"
        "import sys; assert 'sionna' not in sys.modules, 'imported too early'\n"
        "NrTdl('C')(torch.ones(2, 3, 8), 0.0, torch.Generator())\n"
        "assert 'sionna' in sys.modules and torch.equal(state, torch.get_rng_state())\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


@pytest.mark.parametrize("channel", [NrTdl("C"), NrUma()], ids=str)
def test_draws_come_from_the_generator_alone(channel) -> None:
    state = torch.get_rng_state()
    sent = torch.ones(3, 4, 20)
    one, other = (channel(sent, 3.0, stream(1, "x").generator()) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, channel(sent, 3.0, stream(2, "x").generator()))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("profile", "ebn0_db"), [("A", 0.0), ("B", 8.0), ("C", 8.0), ("D", 0.0), ("E", 8.0)])
def test_bit_error_rate_over_a_delay_line(profile, ebn0_db: float) -> None:
    channel, links = Antipodal(NrTdl(profile, grid=NARROW), "hard"), 6_000
    sent = torch.ones(links, 1, 1)
    wrong = channel(sent, ebn0_db, stream(3, "x").generator(), rate=0.5) != sent
    assert_binomial(int(wrong.sum()), links, channel.crossover(ebn0_db, rate=0.5).item())


def test_without_a_line_of_sight_it_is_rayleighs_and_with_one_between_that_and_gaussian() -> None:
    ebn0_db = torch.tensor([[-5.0, 0.0], [10.0, 30.0]])
    torch.testing.assert_close(NrTdl("A").ber(ebn0_db), RayleighBlock(1).ber(ebn0_db), rtol=1e-4, atol=0)
    assert NrTdl("A").ber(torch.inf).item() == 0
    rates = [channel.ber(2.0).item() for channel in (Awgn(), NrTdl("E"), NrTdl("D"), NrTdl("A"))]
    assert rates == sorted(rates) and rates[1] < 1.5 * rates[0]


def test_bit_error_rate_in_an_urban_macrocell() -> None:
    channel, links = Antipodal(NrUma(), "hard"), 500
    sent = torch.ones(links, 1, 1)
    wrong = channel(sent, 2.0, stream(4, "x").generator()) != sent
    assert_binomial(int(wrong.sum()), links, channel.crossover(2.0).item())


@pytest.mark.parametrize("channel", [NrTdl("B"), NrTdl("D"), NrUma()], ids=str)
def test_power_has_unit_mean_and_the_paths_own_spectrum(channel) -> None:
    """|h|^2 is what Sionna's own frequency response gives from the same paths."""
    from sionna.phy.channel import cir_to_ofdm_channel

    power = channel.power(200, 2, stream(5, "x").generator())
    assert power.shape == (200, 2, 48)
    assert power.mean().item() == pytest.approx(1, abs=0.15)
    coefficients, delay_s = channel._paths(200, 2, stream(5, "x").generator())
    response = cir_to_ofdm_channel(
        30e3 * torch.arange(48), coefficients[:, None, None, None, None], delay_s[:, None, None]
    )
    torch.testing.assert_close(power, response[:, 0, 0, 0, 0].abs().square(), rtol=1e-3, atol=1e-4)


def test_rows_fade_as_jakes_says() -> None:
    """The covariance of |h|^2 over time is J0(2 pi f_D tau)^2 of its variance, which is one."""
    grid = Grid(subcarriers=1, row_interval_s=8e-3)
    power = NrTdl("A", speed_mps=2.0, grid=grid).power(8_000, 4, stream(6, "x").generator())[..., 0] - 1
    doppler_hz = 2.0 / 299_792_458 * grid.carrier_hz
    for lag in range(4):
        covariance = (power[:, 0] * power[:, lag]).mean().item()  # its deviation is at most sqrt(8/8000)
        assert covariance == pytest.approx(j0(2 * math.pi * doppler_hz * lag * 8e-3) ** 2, abs=0.12)


def test_a_standing_device_and_a_flat_channel_fade_alike_everywhere() -> None:
    channel = NrTdl("A", delay_spread_s=1e-12, speed_mps=0.0)
    power = channel.power(20, 3, stream(7, "x").generator())
    torch.testing.assert_close(power, power[:, :1, :1].expand_as(power), rtol=1e-3, atol=1e-5)
    assert power[:, 0, 0].std().item() > 0.3


def test_two_uses_share_an_element_and_rows_wrap_over_the_grid() -> None:
    received = NrTdl("C", grid=Grid(subcarriers=3))(
        torch.ones(5, 2, 8), torch.inf, stream(8, "x").generator()
    )
    assert torch.equal(received[..., 0::2], received[..., 1::2])
    assert torch.equal(received[..., 0:2], received[..., 6:8])
    assert not bool((received[..., 0] == received[..., 2]).any())


def test_ratios_are_those_of_sionnas_qpsk_receiver() -> None:
    """The same bits, fading and noise through Sionna's mapper, equaliser and demapper."""
    from sionna.phy.mapping import Constellation, Demapper, Mapper

    noise_density, bits = 0.4, torch.randint(0, 2, (50, 24), generator=stream(9, "b").generator()).float()
    fading = torch.randn(50, 12, dtype=torch.complex64, generator=stream(9, "h").generator())
    noise = noise_density**0.5 * torch.randn(
        50, 12, dtype=torch.complex64, generator=stream(9, "n").generator()
    )
    qpsk = Constellation("qam", 2, device="cpu")
    received = fading * Mapper(constellation=qpsk)(bits) + noise
    demapped = Demapper("app", constellation=qpsk)(received / fading, noise_density / fading.abs().square())
    # QPSK of TS 38.211 clause 5.1.3 sends a one as -1/sqrt(2): two antipodal uses of half the energy, negated
    filtered = -math.sqrt(2) * torch.view_as_real(fading.conj() * received).flatten(-2)
    ebn0_db = 10 * math.log10(0.5 / noise_density)
    ours = Antipodal(NrTdl("C")).llr(0.5 + 0.5 * filtered, ebn0_db)
    torch.testing.assert_close(ours, demapped.clamp(-50, 50), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("channel", [NrTdl("C"), NrUma()], ids=str)
def test_gradients_pass(channel) -> None:
    sent = torch.ones(2, 3, 10, requires_grad=True)
    channel(sent, torch.tensor([[0.0], [5.0]]), stream(1, "x").generator()).sum().backward()
    assert sent.grad is not None and bool((sent.grad > 0).all())


def test_ldpc_falls_within_a_decibel_of_the_normal_approximation() -> None:
    """Binary-input AWGN, k = 100, n = 200: the best code's error rate (Polyanskiy et al. 2010), shifted."""
    code, blocks = Ldpc(100, 200), 300
    channel = Antipodal(Awgn())
    bits = torch.randint(0, 2, (blocks, 100), generator=stream(1, "bits").generator()).float()
    coded = code.encode(bits)
    assert coded.shape == (blocks, 200) and code.rate == 0.5

    def block_errors(ebn0_db: float) -> int:
        received = channel(coded, ebn0_db, stream(1, "noise").generator(), rate=code.rate)
        decoded = code.decode(channel.llr(received, ebn0_db, rate=code.rate))
        return int((decoded != bits).any(-1).sum())

    def best(ebn0_db: float) -> float:
        """Q((n C - k + log2(n)/2)/sqrt(n V)) with capacity C and dispersion V of the binary input."""
        snr = 2 * 0.5 * 10 ** (ebn0_db / 10)
        z = torch.randn(200_000, generator=stream(1, "z").generator(), dtype=torch.float64)
        information = 1 - torch.nn.functional.softplus(-2 * (snr + math.sqrt(snr) * z)) / math.log(2)
        capacity, dispersion = information.mean().item(), information.var().item()
        return float(norm.sf((200 * capacity - 100 + 0.5 * math.log2(200)) / math.sqrt(200 * dispersion)))

    errors = block_errors(2.0)
    low, high = binom.interval(1 - 1e-6, blocks, errors / blocks)
    assert low / blocks <= best(2.0 - 1.0) and high / blocks >= best(2.0)
    assert block_errors(-1.0) > 0.95 * blocks and block_errors(4.0) == 0


def test_ldpc_corrects_on_hard_decisions_too_and_changes_nothing_without_noise() -> None:
    code, channel = Ldpc(24, 100), BinarySymmetric()
    bits = torch.randint(0, 2, (3, 20, 24), generator=stream(1, "bits").generator()).float()
    for ebn0_db in (torch.inf, 8.0):
        received = channel(code.encode(bits), ebn0_db, stream(1, "x").generator(), rate=code.rate)
        assert torch.equal(code.decode(channel.llr(received, ebn0_db, rate=code.rate)), bits)


@pytest.mark.parametrize(("k", "n"), [(11, 40), (100, 501), (100, 105), (9000, 18000), (100, 0), (100, -3)])
def test_codes_that_do_not_exist(k: int, n: int) -> None:
    with pytest.raises(DefianceError, match="does not exist"):
        Ldpc(k, n)


def test_an_impossible_grid_is_refused() -> None:
    with pytest.raises(DefianceError, match="subcarrier"):
        Grid(subcarriers=0)
