"""Error rates equal the closed forms, gradients are exact, probabilities sum to one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from defiance.errors import DefianceError
from defiance.radio.channels import (
    LLR_LIMIT,
    Antipodal,
    Awgn,
    BinarySymmetric,
    RayleighBlock,
    ZChannel,
    q_function,
)
from defiance.seeding import stream

BITS = 100_000
BINARY = [
    BinarySymmetric(),
    BinarySymmetric("on-off"),
    ZChannel(),
    Antipodal(Awgn()),
    Antipodal(Awgn(), "hard"),
    Antipodal(RayleighBlock(4)),
    Antipodal(RayleighBlock(1), "hard"),
]
ANALOGUE = [Awgn(), RayleighBlock(4)]


def random_bits(*shape: int, name: str = "bits") -> torch.Tensor:
    return torch.randint(0, 2, shape, generator=stream(1, name).generator()).float()


def assert_binomial(errors: int, trials: int, probability: float) -> None:
    """The count lies where all but one in a million counts of that probability do."""
    low, high = binom.interval(1 - 1e-6, trials, probability)
    assert low <= errors <= high, f"{errors / trials} against {probability}"


@pytest.mark.parametrize(
    ("ebn0_db", "crossover"), [(-6, 0.239), (-4, 0.186), (-2, 0.131), (0, 0.079), (2, 0.0375), (4, 0.0125)]
)
def test_the_papers_crossovers(ebn0_db: float, crossover: float) -> None:
    """Ke et al. 2024, table of Q(sqrt(2 Eb/N0))."""
    assert BinarySymmetric().crossover(ebn0_db).item() == pytest.approx(crossover, abs=6e-4)


@pytest.mark.parametrize("rate", [1.0, 0.5])
@pytest.mark.parametrize("ebn0_db", [-4.0, 2.0, 6.0])
@pytest.mark.parametrize("channel", BINARY, ids=str)
def test_bit_error_rate_equals_the_closed_form(channel, ebn0_db: float, rate: float) -> None:
    sent = random_bits(BITS // 5 if isinstance(channel, Antipodal) else BITS // 20, 20)
    received = channel(sent, ebn0_db, stream(2, "noise").generator(), rate=rate)
    wrong = (received > 0.5) != (sent > 0.5)
    if isinstance(channel, ZChannel):
        assert not bool(wrong[sent == 0].any())
        wrong = wrong[sent == 1]
    if isinstance(channel, Antipodal) and isinstance(channel.channel, RayleighBlock):
        wrong = wrong[:, 0]  # errors within a block hang together
    assert_binomial(int(wrong.sum()), wrong.numel(), channel.crossover(ebn0_db, rate=rate).item())


def test_closed_forms_by_hand() -> None:
    es = 0.5 * 10**0.3
    q = 0.5 * math.erfc(math.sqrt(2 * es) / math.sqrt(2))
    assert BinarySymmetric().crossover(3.0, rate=0.5).item() == pytest.approx(q, rel=1e-5)
    assert Awgn().ber(3.0, rate=0.5).item() == pytest.approx(q, rel=1e-5)
    on_off = BinarySymmetric("on-off")  # 3 dB behind
    assert on_off.crossover(10 * math.log10(4)).item() == pytest.approx(q_function(torch.tensor(2.0)).item())
    assert ZChannel().crossover(0.0).item() == pytest.approx(math.exp(-2))
    assert RayleighBlock(1).ber(0.0).item() == pytest.approx(0.5 * (1 - math.sqrt(0.5)))
    assert RayleighBlock(1).ber(30.0).item() == pytest.approx(1 / 4000, rel=2e-3)  # 1/(4 Es/N0)


@pytest.mark.parametrize("channel", [*BINARY, Awgn()], ids=str)
def test_without_noise_all_arrives(channel) -> None:
    sent = random_bits(50, 20)
    received = channel(sent, math.inf, stream(1, "x").generator())
    if isinstance(channel, Antipodal) and isinstance(channel.channel, RayleighBlock):
        received = (received > 0.5).float()  # soft bits keep their fading
    assert torch.equal(received, sent)


@pytest.mark.parametrize("channel", [*BINARY, *ANALOGUE], ids=str)
def test_every_row_has_its_own_eb_n0(channel) -> None:
    sent = random_bits(2, 3, 4000)
    ebn0_db = torch.tensor([[math.inf], [-10.0]])
    received = channel(sent, ebn0_db, stream(1, "x").generator())
    assert received.shape == sent.shape and received.dtype == sent.dtype
    noisy, clean = received[1] != sent[1], (received[0] > 0.5) == (sent[0] > 0.5)
    assert bool(clean.all()) or isinstance(channel, RayleighBlock)
    assert noisy.float().mean().item() > 0.2


@pytest.mark.parametrize("channel", [BinarySymmetric(), Antipodal(Awgn(), "hard")], ids=str)
def test_the_gradient_of_a_flip_is_minus_one(channel) -> None:
    sent = random_bits(10, 50).requires_grad_()
    received = channel(sent, -3.0, stream(1, "x").generator())
    received.sum().backward()
    assert sent.grad is not None
    assert torch.equal(sent.grad, 1 - 2 * (received != sent).float())
    assert set(sent.grad.unique().tolist()) == {-1.0, 1.0}


def test_the_gradient_of_a_lost_spike_is_zero() -> None:
    sent = torch.ones(1000, requires_grad=True)
    received = ZChannel()(sent, -3.0, stream(1, "x").generator())
    received.sum().backward()
    assert torch.equal(sent.grad, received.detach())


@pytest.mark.parametrize("channel", [BinarySymmetric(), BinarySymmetric("on-off"), ZChannel()], ids=str)
@given(one=st.floats(0.01, 0.99), ebn0_db=st.floats(-20, 8), rate=st.floats(0.1, 1))
def test_probabilities_sum_to_one_and_sum_over_what_was_sent(channel, one, ebn0_db, rate) -> None:
    zero_one = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def probability(received: torch.Tensor, sent: torch.Tensor) -> torch.Tensor:
        return channel.log_probability(received, sent, ebn0_db, rate=rate).exp()

    transition = probability(zero_one[None], zero_one[:, None])  # [sent, received]
    torch.testing.assert_close(transition.sum(1), torch.ones(2, dtype=torch.float64))
    assert transition[1, 0].item() == pytest.approx(channel.crossover(ebn0_db, rate=rate).item(), rel=1e-5)
    summed = (1 - one) * transition[0] + one * transition[1]
    torch.testing.assert_close(probability(zero_one, torch.full((2,), one).double()), summed)


@pytest.mark.parametrize("channel", BINARY, ids=str)
def test_log_likelihood_ratios_mean_what_they_say(channel) -> None:
    """Of all values whose ratio is near L, a share 1/(1 + exp(-L)) were ones."""
    sent = random_bits(10_000, 10)
    received = channel(sent, 0.0, stream(3, "x").generator(), rate=0.5)
    llr = channel.llr(received, 0.0, rate=0.5)
    assert llr.shape == sent.shape and llr.abs().max().item() <= LLR_LIMIT
    for low in range(-4, 4):
        near = (llr >= low) & (llr < low + 1)
        if near.sum() > 1000:
            ones, expected = sent[near].mean().item(), llr[near].sigmoid().mean().item()
            assert ones == pytest.approx(expected, abs=6 * math.sqrt(0.25 / near.sum().item()))


def test_fading_stays_for_a_block_and_has_unit_mean() -> None:
    power = RayleighBlock(4)(torch.ones(20_000, 10), math.inf, stream(1, "x").generator())
    assert torch.equal(power[:, :4], power[:, :1].expand(-1, 4))
    assert torch.equal(power[:, 8], power[:, 9])
    assert not bool((power[:, 3] == power[:, 4]).any())
    blocks = power[:, ::4]
    assert blocks.mean().item() == pytest.approx(1, abs=0.02)
    for level in (0.1, 0.5, 2.0):  # |h|^2 is exponential
        share = (blocks < level).double().mean().item()
        assert share == pytest.approx(1 - math.exp(-level), abs=0.01)


def test_noise_is_gaussian_with_variance_n0_over_2_es() -> None:
    received = Awgn()(torch.zeros(BITS), 3.0, stream(1, "x").generator(), rate=0.5)
    assert received.var().item() == pytest.approx(1 / (2 * 0.5 * 10**0.3), rel=0.02)
    assert received.mean().item() == pytest.approx(0, abs=0.01)


def test_on_off_ones_cost_twice_the_mean() -> None:
    sent = random_bits(100_000)
    for channel in (BinarySymmetric(), BinarySymmetric("on-off"), ZChannel()):
        assert channel.energy(sent).mean().item() == pytest.approx(1, abs=0.02)
    assert BinarySymmetric("on-off").energy(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("channel", [*BINARY, *ANALOGUE], ids=str)
def test_the_same_generator_gives_the_same_noise_and_the_global_one_is_left_alone(channel) -> None:
    before = torch.get_rng_state()
    sent = random_bits(5, 7)
    one, other = (channel(sent, -2.0, stream(1, "x").generator()) for _ in range(2))
    assert torch.equal(one, other) and torch.equal(before, torch.get_rng_state())


def test_refusals() -> None:
    with pytest.raises(DefianceError, match="rate is 0"):
        BinarySymmetric().crossover(0.0, rate=0.0)
    with pytest.raises(DefianceError, match="uses_per_block"):
        RayleighBlock(0)
