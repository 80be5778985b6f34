"""The outer loop's target, HARQ's gains and what both deliver, against theory, Sionna and counting."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from scipy.optimize import brentq

from defiance.radio.link_adaptation import (
    BLER_TARGET,
    OLLA_LIMIT_DB,
    TRANSMISSIONS,
    chase_sinr,
    harq_throughput,
    incremental_sinr,
    lookup,
    olla_step,
    select_mcs,
)
from defiance.radio.link_quality import (
    MCS,
    code_block_error_rate,
    mcs_table,
    required_sinr_db,
    transport_block_bits,
    transport_error_rate,
)
from defiance.seeding import stream

ELEMENTS = 7344  # 51 PRBs, 12 symbols
both = pytest.mark.parametrize("modulation", list(MCS))


# --- inner and outer loop ---


@both
def test_the_highest_mcs_within_the_target(modulation) -> None:
    table = mcs_table(modulation)
    sinr_db = torch.arange(-12.0, 35.0, 0.1, dtype=torch.float64)
    chosen = select_mcs(required_sinr_db(table, ELEMENTS, BLER_TARGET), sinr_db)
    error = transport_error_rate(table, chosen, ELEMENTS, sinr_db)
    above = (chosen + 1).clamp(max=len(table.code_rate) - 1)
    assert bool(((error <= BLER_TARGET + 1e-9) | (chosen == 0)).all())
    assert bool(
        ((transport_error_rate(table, above, ELEMENTS, sinr_db) > BLER_TARGET) | (above == chosen)).all()
    )
    assert chosen[0] == 0 and chosen[-1] == len(table.code_rate) - 1


@cache
def sionnas_abstraction() -> Any:
    with torch.random.fork_rng():
        from sionna.sys import phy_abstraction

        folder = phy_abstraction.__file__.rsplit("/", 1)[0]
        return phy_abstraction.PHYAbstraction(
            load_bler_tables_from=[f"{folder}/bler_tables/PDSCH_table1.json"],
            cbs_interp_min_max_delta=(24, 2025, 1000),
            device="cpu",
        )


def test_error_rates_are_sionnas_where_its_grid_is_fine_enough() -> None:
    """Blocks of 24 bits fall over 3 dB, so that its splines follow them: the same error rate within 0.1.

    Those of 1,024 bits fall between two of its points: there it loses few where fresh decoding and the
    fit say most.
    """
    table, theirs = mcs_table("qam64"), sionnas_abstraction()
    mcs, sinr_db = torch.meshgrid(torch.arange(3.0, 23.0), torch.arange(-4.0, 18.0, 0.5), indexing="ij")
    mcs = mcs.long()
    expected = theirs.get_bler(mcs, 1, 1, 24, 10 ** (sinr_db / 10))
    got = code_block_error_rate(table, mcs, torch.tensor(24), sinr_db)
    assert (got - expected).abs().max() < 0.1
    mcs, bits, sinr_db = torch.tensor(14), torch.tensor(1024), torch.tensor(6.4)
    assert theirs.get_bler(mcs, 1, 1, bits, 10 ** (sinr_db / 10)).item() < 0.2
    assert code_block_error_rate(table, mcs, bits, sinr_db).item() > 0.8


def test_choices_are_those_of_sionnas_inner_loop() -> None:
    """Nine in ten within one index, all within two: between its points, it is up to 0.8 dB off."""
    with torch.random.fork_rng():
        from sionna.sys import InnerLoopLinkAdaptation
    loop = InnerLoopLinkAdaptation(sionnas_abstraction(), device="cpu")
    sinr_db = torch.arange(-3.0, 19.0, 0.25)
    elements = torch.full(sinr_db.shape, 600, dtype=torch.int32)
    theirs = loop(sinr_eff=10 ** (sinr_db / 10), num_allocated_re=elements, mcs_category=1)
    ours = select_mcs(required_sinr_db(mcs_table("qam64"), 600, BLER_TARGET), sinr_db.double())
    apart = (ours.clamp(min=3) - theirs).abs()  # it knows nothing below index 3
    assert apart.max() <= 2 and (apart <= 1).double().mean() > 0.9


def test_the_offset_moves_as_sionnas_does() -> None:
    with torch.random.fork_rng():
        from sionna.sys import OuterLoopLinkAdaptation
    loop = OuterLoopLinkAdaptation(sionnas_abstraction(), num_ut=4, device="cpu")
    lost = torch.rand(40, 4, generator=stream(1, "x").generator()) < torch.tensor([0.0, 0.1, 0.5, 1.0])
    offset_db = torch.zeros(4)
    for nack in lost:
        loop(torch.full((4,), 100), (~nack).int(), torch.ones(4))
        offset_db = olla_step(offset_db, nack.float())
    torch.testing.assert_close(offset_db, loop.offset, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", [0.02, 0.1, 0.3])
def test_the_outer_loop_reaches_its_target_whatever_the_reports_are_worth(target: float) -> None:
    """200 users whose SINR varies by 2 dB and is reported 4 dB too high or too low: `target` is lost.

    The steps add up to up (errors - target blocks)/(1 - target), so that a user's share is off by no more
    than the offset's travel over the blocks, 5 dB in 1,000; that of all deviates by 0.0003 to 0.001.
    """
    look, rng = lookup("qam64", ELEMENTS), stream(1, "olla").generator()
    mean_db = 1 + 14 * torch.rand(200, generator=rng, dtype=torch.float64)
    bias_db = torch.tensor([-4.0, 4.0], dtype=torch.float64).repeat(100)
    offset_db, lost = torch.zeros(200, dtype=torch.float64), torch.zeros(200)
    for block in range(1200):
        sinr_db = mean_db + 2 * torch.randn(200, generator=rng, dtype=torch.float64)
        error, _ = look.at(select_mcs(look.required_db, mean_db + bias_db - offset_db), 10 ** (sinr_db / 10))
        nack = (torch.rand(200, generator=rng) < error).float()
        offset_db = olla_step(offset_db, nack, target=target)
        lost += nack if block >= 200 else 0.0
    assert lost.mean().item() / 1000 == pytest.approx(target, rel=0.04)
    assert (lost / 1000 - target).abs().max() < 0.02


def test_the_offset_rests_at_the_target_and_stays_within_its_limits() -> None:
    assert olla_step(torch.tensor(3.0), torch.tensor(BLER_TARGET)).item() == pytest.approx(3.0)
    offset_db = torch.zeros(2)
    for _ in range(400):
        offset_db = olla_step(offset_db, torch.tensor([0.0, 1.0]))
    assert offset_db.tolist() == [-OLLA_LIMIT_DB, OLLA_LIMIT_DB]


# --- HARQ ---


def test_gains_of_combining() -> None:
    """Two equal transmissions: Chase gains 3 dB, new parity no less, the same at low SINR."""
    gap = 1.3
    sinr = 10 ** torch.arange(-3.0, 3.5, 0.5, dtype=torch.float64)
    pair = sinr[:, None].expand(-1, 2)
    torch.testing.assert_close(chase_sinr(pair), torch.stack([sinr, 2 * sinr], -1))
    expected = 2 * sinr + sinr**2 / gap  # gap ((1 + sinr/gap)^2 - 1)
    torch.testing.assert_close(incremental_sinr(pair, gap), torch.stack([sinr, expected], -1))


@pytest.mark.parametrize(("order", "rate"), [(2, 526), (2, 602), (2, 679), (6, 873), (6, 910), (6, 948)])
def test_new_parity_makes_the_code_of_half_the_rate(order: int, rate: int) -> None:
    """Two transmissions of rate R are one of rate R/2, whose SINR the simulated tables know: within 0.4 dB,
    at the highest rate, whose own gap is the widest, 0.7 dB too much."""
    table = mcs_table("qam64")
    same = (table.modulation_order == order).nonzero()[:, 0]
    rates, middle_db = table.code_rate[same] * 1024, table.snr_db[same, -1]
    first = int((rates == rate).nonzero())
    half = int((rates < rate / 2 + 2).nonzero()[-1])
    part = (rate / 2 - rates[half]) / (rates[half + 1] - rates[half])
    expected_db = torch.lerp(middle_db[half], middle_db[half + 1], part)
    gap, needed = table.gap[same[first]], 10 ** (middle_db[first] / 10)
    sinr = (gap * ((1 + needed / gap).sqrt() - 1)).expand(2)
    assert incremental_sinr(sinr, gap)[1].item() == pytest.approx(needed.item())
    assert 10 * math.log10(sinr[0].item()) == pytest.approx(
        expected_db.item(), abs=0.7 if rate == 948 else 0.4
    )


def test_throughput_of_harq_is_that_of_counting() -> None:
    """Rayleigh fading on every transmission, 64-QAM at 6 dB: blocks delivered per transmission, and lost."""
    table, mcs, rng = mcs_table("qam64"), torch.tensor(17), stream(1, "harq").generator()
    processes = 40_000
    sinr = -(10**0.8) * torch.log(torch.rand(processes, TRANSMISSIONS, generator=rng, dtype=torch.float64))
    combined = incremental_sinr(sinr, table.gap[mcs])
    error = transport_error_rate(table, mcs, ELEMENTS, 10 * torch.log10(combined))
    # one draw per block: combining never undoes what was decoded
    lost = torch.rand(processes, 1, generator=rng, dtype=torch.float64) < error
    sent = 1 + lost[:, :-1].sum()
    delivered = (~lost[:, -1]).sum() / (processes - 1 + sent)
    throughput, residual = harq_throughput(error.mean(0))
    assert bool((error.diff(dim=-1) <= 0).all())
    assert throughput.item() == pytest.approx(delivered.item(), rel=0.01)
    assert residual.item() == pytest.approx(lost[:, -1].double().mean().item(), abs=0.005)
    assert throughput > 1 - error[:, 0].mean()  # more than without a memory


def test_new_fading_on_every_transmission_gives_diversity() -> None:
    """Chase on N independent Rayleigh links: the sum is Erlang's, lost with 1 - exp(-x) sum x^k / k!, k < N.

    40,000 draws: five standard deviations.
    """
    rng = stream(1, "diversity").generator()
    fading = -torch.log(torch.rand(40_000, TRANSMISSIONS, generator=rng, dtype=torch.float64))
    needed = 0.5
    lost = (chase_sinr(fading) < needed).double().mean(0)
    terms = [needed**k / math.factorial(k) for k in range(TRANSMISSIONS)]
    expected = [1 - math.exp(-needed) * sum(terms[: n + 1]) for n in range(TRANSMISSIONS)]
    for got, share in zip(lost.tolist(), expected, strict=True):
        assert got == pytest.approx(share, abs=5 * math.sqrt(share / 40_000))


@pytest.mark.parametrize(("mcs", "gain"), [(0, 0.10), (10, 0.08), (20, 0.04), (27, 0.02)])
def test_what_new_fading_would_gain_over_the_lookups_one_sinr(mcs: int, gain: float) -> None:
    """Rayleigh, a CQI that is worth nothing, 10 % of first transmissions lost: as docs/simulator.md says."""
    table, rng = mcs_table("qam64"), stream(1, "gain").generator()
    fading = -torch.log(torch.rand(20_000, TRANSMISSIONS, generator=rng, dtype=torch.float64))

    def errors(mean_db: float, sinr: torch.Tensor) -> torch.Tensor:
        combined = incremental_sinr(10 ** (mean_db / 10) * sinr, table.gap[mcs])
        return transport_error_rate(table, torch.tensor(mcs), ELEMENTS, 10 * torch.log10(combined)).mean(0)

    def excess(mean_db: float) -> float:
        return float(errors(mean_db, fading[:, :1])[0]) - BLER_TARGET

    mean_db = brentq(excess, -10.0, 60.0, xtol=0.01)
    fresh, lost = harq_throughput(errors(mean_db, fading))
    same, lost_for_good = harq_throughput(errors(mean_db, fading[:, :1].expand_as(fading)))
    assert float(fresh / same) - 1 == pytest.approx(gain, abs=0.007)
    assert lost < 2e-4 and 0.003 < lost_for_good < 0.03


def test_throughput_is_bounded() -> None:
    """Certain success delivers every transmission, certain failure none; N needed ones deliver one in N."""
    error = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.5, 0.5, 0.5]])
    throughput, residual = harq_throughput(error)
    assert throughput.tolist() == pytest.approx([1, 1 / 3, 0, 0.25])
    assert residual.tolist() == [0, 0, 1, 0.5]


# --- look-up ---


@both
def test_the_lookup_is_the_formula(modulation) -> None:
    """Between its points, 0.05 dB apart: errors within 0.01; nothing arrives that was not sent."""
    table, look = mcs_table(modulation), lookup(modulation, ELEMENTS)
    sinr_db = -12 + 45 * torch.rand(4000, generator=stream(1, "x").generator(), dtype=torch.float64)
    mcs = torch.randint(len(table.code_rate), (4000,), generator=stream(1, "m").generator())
    error, efficiency = look.at(mcs, 10 ** (sinr_db / 10))
    exact = transport_error_rate(table, mcs, ELEMENTS, sinr_db)
    assert (error - exact).abs().max() < 0.01
    sent = transport_block_bits(table.modulation_order, table.code_rate, ELEMENTS)[mcs].double() / ELEMENTS
    assert bool((efficiency <= sent * (1 - exact / 2) + 0.05).all())
    torch.testing.assert_close(efficiency[exact < 1e-4].double(), sent[exact < 1e-4], rtol=1e-3, atol=0)


@both
def test_an_index_between_two_uses_both_in_turn(modulation) -> None:
    """Whole at the required SINRs, a half half-way, where it delivers the mean of its neighbours."""
    look = lookup(modulation, ELEMENTS)
    required_db, index = look.required_db, torch.arange(len(look.required_db), dtype=torch.float64)
    torch.testing.assert_close(look.fractional_mcs(required_db), index)
    half = look.fractional_mcs((required_db[:-1] + required_db[1:]) / 2)
    torch.testing.assert_close(half, index[:-1] + 0.5)
    assert look.fractional_mcs(torch.tensor([-50.0, 50.0], dtype=torch.float64)).tolist() == [0, index[-1]]
    sinr = 10 ** (required_db[:-1] / 10)
    neighbours = [look.at(index[k : k + len(half)].long(), sinr) for k in (0, 1)]
    for got, low, high in zip(look.at(half, sinr), *neighbours, strict=True):
        torch.testing.assert_close(got, (low + high) / 2)


@both
def test_efficiency_stays_below_shannon_and_close_to_it(modulation) -> None:
    """The best index at each SINR: 55 to 100 % of log2(1 + SINR) from -6 dB up to its own ceiling."""
    table, look = mcs_table(modulation), lookup(modulation, ELEMENTS)
    sinr = 10 ** (torch.arange(-6.0, 18.0, 0.5) / 10)
    mcs = torch.arange(len(table.code_rate))[:, None].expand(-1, len(sinr))
    best = look.at(mcs, sinr.expand(mcs.shape))[1].amax(0)
    share = best / torch.log2(1 + sinr)
    assert 0.55 < share.min() and share.max() < 1
    extremes = look.at(torch.zeros(3, dtype=torch.long), torch.tensor([0.0, 1e-30, 1e30]))
    assert extremes[0].tolist() == [1, 1, 0] and extremes[1][:2].tolist() == [0, 0]
