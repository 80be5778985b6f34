"""Tables against Sionna's, the fitted error rates against its raw ones and against fresh decoding."""

import math
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor

from benchmarks import bler_fit
from defiance.radio.link_quality import (
    BLOCK_BITS,
    MCS,
    McsTable,
    code_block_error_rate,
    code_blocks,
    eesm,
    mcs_table,
    required_sinr_db,
    transport_block_bits,
    transport_error_rate,
)
from defiance.radio.nr import Ldpc
from defiance.seeding import stream

both = pytest.mark.parametrize("modulation", list(MCS))


@cache
def sionna_points() -> bler_fit.Points:
    with torch.random.fork_rng():
        return bler_fit.sionna_points()[0]


# --- MCS, transport blocks, code blocks ---


@both
def test_mcs_tables_are_those_of_the_standard(modulation) -> None:
    with torch.random.fork_rng():
        from sionna.phy.nr.utils import decode_mcs_index
    table = mcs_table(modulation)
    index = torch.arange(len(table.code_rate))
    order, rate = decode_mcs_index(index, 1 + list(MCS).index(modulation), is_pusch=False, device="cpu")
    assert torch.equal(table.modulation_order, order.long())
    torch.testing.assert_close(table.code_rate, rate.double(), rtol=1e-6, atol=0)


@both
def test_transport_blocks_are_sionnas(modulation) -> None:
    """All indices with 1 to 40,000 elements: size, code blocks, bits per block."""
    with torch.random.fork_rng():
        from sionna.phy.nr.utils import calculate_tb_size
    table = mcs_table(modulation)
    elements = torch.cat([torch.arange(1, 400), 12 * torch.arange(34, 3300, 7)])[:, None]
    order, rate = torch.broadcast_tensors(table.modulation_order, table.code_rate)
    order, rate = (x.expand(len(elements), -1) for x in (order, rate))
    bits = transport_block_bits(order, rate, elements)
    blocks, block_bits = code_blocks(bits, rate)
    size, block_size, number, *_ = calculate_tb_size(
        order, rate, num_coded_bits=(elements * order).int(), return_cw_length=False, device="cpu"
    )
    # its float32 loses a unit of quantisation where the number of bits lies on a boundary
    same = bits == size
    assert same.double().mean() > 0.999
    assert torch.equal(block_bits[same], block_size.long()[same])
    assert torch.equal(blocks[same], number.long()[same])


def test_a_transport_block_by_hand() -> None:
    """106 PRBs of 12 symbols, QPSK at 120/1024: 3,577.5 bits, n = 5, floor to 3,552, next size 3,624.

    At 64-QAM and 948/1024: 84,788.4 bits, n = 11, 2,048 x round(41.39) = 83,968, ten blocks of 8,424 at most.
    """
    order, rate = torch.tensor([2, 6]), torch.tensor([120 / 1024, 948 / 1024], dtype=torch.float64)
    bits = transport_block_bits(order, rate, 106 * 12 * 12)
    assert bits.tolist() == [3624, 83976]
    assert [x.tolist() for x in code_blocks(bits, rate)] == [[1, 10], [3640, 8424]]


# --- effective SINR ---


@given(seed=st.integers(0, 10**6), spread_db=st.floats(0, 40), mean_db=st.floats(-40, 40))
def test_effective_sinr_lies_between_the_least_and_the_mean(seed: int, spread_db: float, mean_db: float):
    rng = torch.Generator().manual_seed(seed)
    sinr = 10 ** ((mean_db + spread_db * torch.randn(5, 12, generator=rng, dtype=torch.float64)) / 10)
    effective = eesm(sinr, torch.tensor([0.5, 1.6, 4.0, 20.0, 130.0]))
    assert bool(
        (effective >= sinr.amin(-1) * (1 - 1e-9)).all() and (effective <= sinr.mean(-1) * (1 + 1e-9)).all()
    )
    torch.testing.assert_close(eesm(sinr[:, :1].expand(5, 12), 3.0), sinr[:, 0])


@both
def test_effective_sinr_is_sionnas(modulation) -> None:
    with torch.random.fork_rng():
        from sionna.sys import EESM
    table, index = mcs_table(modulation), 1 + list(MCS).index(modulation)
    mcs = torch.arange(len(table.code_rate))
    sinr = 10 ** torch.randn(24, len(mcs), generator=stream(1, "x").generator())
    theirs = EESM(device="cpu")(sinr[None, ..., None], mcs, mcs_table_index=index)
    torch.testing.assert_close(eesm(sinr.mT, table.eesm_beta.float()), theirs, rtol=1e-4, atol=1e-4)


# --- block error rate ---


def at(table: McsTable, mcs: int, bits: int, sinr_db: float) -> float:
    arguments = torch.tensor(mcs), torch.tensor(bits), torch.tensor(sinr_db, dtype=torch.float64)
    return code_block_error_rate(table, *arguments).item()


@both
def test_fitted_error_rates_are_sionnas_raw_ones(modulation) -> None:
    """Within 0.05 at every simulated point (whose own deviation is 0.02), within 0.008 root mean square."""
    table, compared = mcs_table(modulation), 0
    for mcs, (order, rate) in enumerate(zip(table.modulation_order, table.code_rate, strict=True)):
        points = sionna_points().get((int(order), round(float(rate) * 1024, 1)))
        if points is not None:
            size, snr_db, lost = (torch.tensor(x, dtype=torch.float64) for x in zip(*points, strict=True))
            fitted = code_block_error_rate(
                table, torch.tensor(mcs), torch.tensor(BLOCK_BITS)[size.long()], snr_db
            )
            assert (fitted - lost).abs().max() < 0.05, mcs
            assert (fitted - lost).square().mean().sqrt() < 0.008, mcs
            compared += len(lost)
    assert compared > 5000


def test_the_file_is_what_the_script_makes() -> None:
    table = mcs_table("qam64")
    middle, spread = bler_fit.fit(sionna_points()[4, 553.0], bler_fit.shannon_db(4 * 553 / 1024) + 1.5)
    assert table.snr_db[14].tolist() == pytest.approx(middle, abs=2e-3)
    assert table.spread_db[14].tolist() == pytest.approx(spread, abs=2e-3)


def lost_blocks(order: int, rate: float, bits: int, snr_db: float, blocks: int) -> int:
    """Blocks that 5G's LDPC code loses on an AWGN channel, with Sionna's mapper and belief propagation."""
    with torch.random.fork_rng():
        from sionna.phy.mapping import Constellation, Demapper, Mapper
    code = Ldpc(bits, math.ceil(bits / rate / order) * order)
    rng = stream(2, "awgn").generator()
    sent = torch.randint(0, 2, (blocks, bits), generator=rng).float()
    qam = Constellation("qam", order, device="cpu")
    symbols = Mapper(constellation=qam, device="cpu")(code.encode(sent))
    density = torch.tensor(10 ** (-snr_db / 10))
    noise = density.sqrt() * torch.randn(symbols.shape, dtype=torch.complex64, generator=rng)
    ratios = Demapper("app", constellation=qam, device="cpu")(symbols + noise, density)
    return int((code.decode(ratios) != sent).any(-1).sum())


def assert_within(lost: int, blocks: int, low: float, high: float) -> None:
    """The share lost is compatible with a probability between these."""
    assert binom.ppf(1e-5, blocks, low) <= lost <= binom.ppf(1 - 1e-5, blocks, high), lost / blocks


@pytest.mark.parametrize(("mcs", "bits"), [(14, 1000), (25, 1000), (3, 200)])
def test_a_decoder_fails_where_the_fit_says(mcs: int, bits: int) -> None:
    """Fresh blocks at the middle of the waterfall, between the tables' points: within 0.2 dB."""
    table = mcs_table("qam64")
    order, rate = int(table.modulation_order[mcs]), table.code_rate[mcs].item()
    middle_db = half_lost_db(table, mcs, bits)
    lost = lost_blocks(order, rate, bits, middle_db, 100)
    assert_within(lost, 100, at(table, mcs, bits, middle_db + 0.2), at(table, mcs, bits, middle_db - 0.2))


def half_lost_db(table: McsTable, mcs: int, bits: int) -> float:
    """Where half of the blocks are lost, by bisection."""
    low, high = -15.0, 40.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if at(table, mcs, bits, middle) > 0.5 else (low, middle)
    return low


def test_rates_below_a_fifth_are_the_mother_code_repeated() -> None:
    """The lowest index is 120/1024; the code of rate 1/5 needs 10 lg(0.2/0.117) dB more."""
    table = mcs_table("qam64")
    shift_db = 10 * math.log10(0.2 * 1024 / 120)
    middle_db = half_lost_db(table, 0, 100)
    lost = lost_blocks(2, 0.2, 100, middle_db + shift_db, 300)
    assert_within(lost, 300, at(table, 0, 100, middle_db + 0.3), at(table, 0, 100, middle_db - 0.3))


def test_longer_blocks_fall_more_steeply() -> None:
    """The spread falls with the root of the size, within 35 %, and beyond 2,000 bits exactly."""
    table = mcs_table("qam256")
    law = table.spread_db * torch.tensor(BLOCK_BITS).double().sqrt()
    assert bool((law / law[:, 2:3] - 1).abs().max() < 0.4)
    for bits in (2000, 8000):
        tail = at(table, 20, bits, table.snr_db[20, -1].item() + 0.1)
        spread_db = table.spread_db[20, -1].item() * math.sqrt(2000 / bits)
        assert tail == pytest.approx(0.5 * math.erfc(0.1 / spread_db / math.sqrt(2)))


@both
def test_nobody_beats_shannon(modulation) -> None:
    """Every index needs 0.8 to 3 dB more than log2(1 + SNR) does, and a higher one needs more."""
    table = mcs_table(modulation)
    needed_db = required_sinr_db(table, 7344, 0.1)
    gap_db = needed_db - 10 * torch.log10(2**table.efficiency - 1)
    assert 0.8 < gap_db.min() and gap_db.max() < 3
    assert bool((needed_db.diff() > 0).all())
    assert bool((table.gap > 1).all())


@given(st.integers(0, 28), st.integers(1, 30_000), st.floats(0.001, 0.9))
def test_required_sinr_is_the_inverse(mcs: int, elements: int, error_rate: float) -> None:
    table = mcs_table("qam64")
    needed_db = required_sinr_db(table, elements, error_rate)[mcs]
    got = transport_error_rate(table, torch.tensor(mcs), elements, needed_db)
    assert got.item() == pytest.approx(error_rate, rel=1e-6)


def test_a_transport_block_is_lost_with_any_of_its_code_blocks() -> None:
    table, mcs = mcs_table("qam64"), torch.tensor(28)
    bits = transport_block_bits(table.modulation_order[mcs], table.code_rate[mcs], 7344)
    blocks, block_bits = code_blocks(bits, table.code_rate[mcs])
    assert blocks == 5
    for sinr_db in (19.0, 19.4, 20.0):
        one = at(table, 28, int(block_bits), sinr_db)
        got: Tensor = transport_error_rate(table, mcs, 7344, torch.tensor(sinr_db, dtype=torch.float64))
        assert got.item() == pytest.approx(1 - (1 - one) ** 5, rel=1e-9)
