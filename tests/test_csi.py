"""Channel feedback: rules against closed forms and TS 38.214, learned codecs on waves that can be learned."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from defiance.control.csi.dictionary import Dictionary, Learned
from defiance.control.csi.klt import Klt
from defiance.control.csi.networks import Kind, Network, Neural, pictures
from defiance.control.csi.networks import precoders as from_pictures
from defiance.control.csi.precoding import at_snr, spectral_efficiency
from defiance.control.csi.reports import choice_bits, pack, rank, unpack, unrank
from defiance.control.csi.rules import Feedback, LBeams, TypeOne, tuned
from defiance.control.csi.targets import aligned, eigenvectors, nmse, sgcs, spatial_basis, unit
from defiance.errors import DefianceError
from defiance.learn.training import Schedule, fit
from defiance.link import LossyLink, Packets
from defiance.network.settings import RadioConfig
from defiance.radio.arrays import Panel
from defiance.seeding import stream
from tests.csi_worlds import PANEL, SUBBANDS, on_the_grid, precoders, waves

ONE = torch.zeros(1, dtype=torch.int64)


def quality(codec: Feedback, w: Tensor) -> float:
    cell = torch.zeros(len(w), dtype=torch.int64)
    bits = codec.encode(w, cell)
    assert bits.shape == (len(w), codec.bits) and bits.dtype == torch.uint8 and bits.max() <= 1
    return float(sgcs(w, codec.decode(bits, cell)).mean())


# --- what is fed back ---------------------------------------------------------------------------------


def test_an_eigenvector_meets_the_largest_eigenvalue() -> None:
    h = waves(5)
    w = eigenvectors(h)
    for link in range(5):
        for k in range(SUBBANDS):
            rows = h[link, :, :, 4 * k : 4 * k + 4].permute(0, 2, 1).reshape(-1, 32)
            most = torch.linalg.svdvals(rows)[0]
            torch.testing.assert_close((rows @ w[link, k]).norm(), most, rtol=1e-3, atol=0)


def test_nan_and_wrong_shapes_are_one_clear_line() -> None:
    h = waves(2)
    h[1, 0, 0, 0] = math.nan
    with pytest.raises(DefianceError, match="channels: 1 numbers are nan or infinite"):
        eigenvectors(h)
    with pytest.raises(DefianceError, match="52 resource blocks don't fill 12"):
        eigenvectors(waves(1), 12)
    with pytest.raises(DefianceError, match="zero in a whole sub-band"):
        eigenvectors(torch.zeros(1, 2, 32, 52, dtype=torch.complex64))
    w = precoders(3)
    for codec in (TypeOne(PANEL, SUBBANDS), LBeams(PANEL, SUBBANDS, 2, 4, 4)):
        with pytest.raises(DefianceError, match="a codebook of a 4 x 4 dual panel fits"):
            codec.encode(w[..., :16], torch.zeros(3, dtype=torch.int64))
        with pytest.raises(DefianceError, match="precoders: .* nan or infinite"):
            codec.encode(torch.full_like(w, math.nan), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DefianceError, match="two polarisations"):
        TypeOne(Panel(4, 8), SUBBANDS).encode(w, torch.zeros(3, dtype=torch.int64))


def test_similarity_and_error_know_nothing_of_phases() -> None:
    w = precoders(4)
    turned = w * torch.polar(torch.ones(4, SUBBANDS), torch.arange(4.0 * SUBBANDS).view(4, -1))[..., None]
    torch.testing.assert_close(sgcs(w, turned), torch.ones(4))
    torch.testing.assert_close(nmse(w, turned), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(sgcs(w, 3 * aligned(w)), torch.ones(4))
    half = unit(w + torch.linalg.svd(w[..., None, :])[2][..., 1, :])  # an orthogonal vector of the same norm
    torch.testing.assert_close(sgcs(w, half), torch.full((4,), 0.5), atol=1e-4, rtol=0)
    torch.testing.assert_close(nmse(w, half), torch.full((4,), 2 - math.sqrt(2)), atol=1e-4, rtol=0)


def test_pictures_are_unitary() -> None:
    w, basis = precoders(6), spatial_basis(PANEL)[0]
    picture = pictures(w, basis)
    assert picture.shape == (6, 4, SUBBANDS, 16)
    torch.testing.assert_close(picture.square().sum((1, 2, 3)), torch.full((6,), 32.0 * SUBBANDS))
    torch.testing.assert_close(sgcs(w, from_pictures(picture, basis)), torch.ones(6))


# --- the rules ----------------------------------------------------------------------------------------


def test_both_rules_are_exact_for_one_path_on_the_grid() -> None:
    w = on_the_grid()
    cell = torch.zeros(1, dtype=torch.int64)
    for codec in (TypeOne(PANEL, SUBBANDS), TypeOne(PANEL, SUBBANDS, wideband=True)):
        torch.testing.assert_close(quality(codec, w), 1.0, atol=1e-5, rtol=0)
    # slanted antennas see a vertical wave equally, in phase: two coefficients of amplitude 1
    torch.testing.assert_close(quality(LBeams(PANEL, SUBBANDS, 1, 1, 2), w), 1.0, atol=1e-5, rtol=0)
    bits = TypeOne(PANEL, SUBBANDS, wideband=True).encode(w, cell)
    assert (
        int("".join(map(str, bits[0, :8].tolist())), 2) == (3 * 4) * 16 + 2 * 1 * 1
    )  # rows -pi/2, columns pi/4


@pytest.mark.parametrize(
    ("beams", "taps", "coefficients", "bits"),
    [
        # TS 38.214 table 5.2.2.2.5-1, combinations 1 to 6 of 4 x 4 places and N_3 = 13, by TS 38.212
        # 6.3.2.1.2:
        # number of coefficients, i_1,1, i_1,2, i_1,6, i_1,7, i_1,8, i_2,3, i_2,4, i_2,5
        (2, 4, 4, 2 + 4 + 7 + 8 + 16 + 2 + 4 + 3 * 3 + 3 * 4),
        (2, 4, 8, 3 + 4 + 7 + 8 + 16 + 3 + 4 + 7 * 3 + 7 * 4),
        (4, 4, 8, 3 + 4 + 11 + 8 + 32 + 3 + 4 + 7 * 3 + 7 * 4),
        (4, 4, 16, 4 + 4 + 11 + 8 + 32 + 4 + 4 + 15 * 3 + 15 * 4),
        (4, 7, 28, 5 + 4 + 11 + 10 + 56 + 5 + 4 + 27 * 3 + 27 * 4),
    ],
)
def test_bits_of_the_standards_combinations(beams: int, taps: int, coefficients: int, bits: int) -> None:
    codec = LBeams(PANEL, SUBBANDS, beams, taps, coefficients)
    assert codec.bits == bits
    assert quality(codec, precoders(8)) > 0.6


def test_type_one_has_34_bits_or_10() -> None:
    assert TypeOne(PANEL, SUBBANDS).bits == 4 + 4 + 13 * 2
    assert TypeOne(PANEL, SUBBANDS, wideband=True).bits == 4 + 4 + 2


def test_more_bits_tell_more() -> None:
    w = precoders(60)
    found = [tuned(PANEL, w, bits, tried=20, judged=40) for bits in (32, 64, 128)]
    assert all(codec.bits <= bits for codec, bits in zip(found, (32, 64, 128), strict=True))
    reached = [quality(codec, w) for codec in found]
    assert reached[0] + 0.01 < reached[1] and reached[1] + 0.01 < reached[2]
    assert quality(TypeOne(PANEL, SUBBANDS), w) < reached[1]
    with pytest.raises(DefianceError, match="no L-beam report has at most 10 bits"):
        tuned(PANEL, w, 10)
    with pytest.raises(DefianceError, match="coefficients are 1 to 2 L M"):
        LBeams(PANEL, SUBBANDS, 2, 2, 9)


# --- reports ------------------------------------------------------------------------------------------


def test_combinations_are_numbered_without_a_gap() -> None:
    every = torch.tensor(list(combinations(range(7), 3)))
    numbers = rank(every, 7)
    assert sorted(numbers.tolist()) == list(range(35))
    assert torch.equal(unrank(numbers, 7, 3), every)
    assert choice_bits(7, 3) == 6 and choice_bits(16, 4) == 11 and choice_bits(12, 0) == 0
    assert unrank(torch.tensor([63]), 7, 3).tolist() == unrank(torch.tensor([34]), 7, 3).tolist()


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_what_is_packed_comes_out(data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, 3))
    shape = data.draw(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), min_size=1, max_size=6))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    widths, counts = [width for width, _ in shape], [count for _, count in shape]
    values = [torch.randint(1 << width, (rows, count), generator=g) for width, count in shape]
    bits = pack(values, widths)
    assert bits.shape == (rows, sum(width * count for width, count in shape))
    for before, after in zip(values, unpack(bits, widths, counts), strict=True):
        assert torch.equal(before, after)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.data())
def test_any_combination_has_its_number(of: int, data: st.DataObject) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, of - 1), max_size=6)))
    numbers = rank(torch.tensor([chosen], dtype=torch.int64), of)
    assert 0 <= int(numbers) < math.comb(of, len(chosen))
    assert unrank(numbers, of, len(chosen)).tolist() == [chosen]


def test_a_report_of_another_length_is_refused() -> None:
    codec = LBeams(PANEL, SUBBANDS, 2, 4, 4)
    with pytest.raises(DefianceError, match=r"a report of \[63\] bits"):
        codec.decode(torch.zeros(2, 63, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(DefianceError, match="a report's field of 2 bits can't hold 4"):
        pack([torch.tensor([4])], [2])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_whatever_bits_arrive_a_rule_decodes_a_precoder(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for codec in (TypeOne(PANEL, SUBBANDS), LBeams(PANEL, SUBBANDS, 3, 3, 5)):
        bits = torch.randint(2, (2, codec.bits), generator=g).to(torch.uint8)
        w = codec.decode(bits, torch.zeros(2, dtype=torch.int64))
        torch.testing.assert_close(w.norm(dim=-1), torch.ones(2, SUBBANDS))


def test_a_codecs_bits_are_those_of_its_packets() -> None:
    w, cell = precoders(10), torch.zeros(10, dtype=torch.int64)
    codec = LBeams(PANEL, SUBBANDS, 2, 4, 4)
    bits = codec.encode(w, cell)
    packets = Packets.of(range(10), purpose="assistance", payload_bits=bits.shape[1], offered_s=0.0)
    link = LossyLink(2e-3, header_bits=11)
    _, arrived = link.advance(link.offer(link.initial(), packets, 0.0), math.inf, stream(0, "air"))
    assert int(arrived.sent_bits.sum()) == 10 * (codec.bits + 11)
    assert bool(arrived.delivered.all())


# --- the learned codecs -------------------------------------------------------------------------------


def test_the_klt_codec_is_near_the_bound_of_its_bits() -> None:
    """On a Gaussian precoder of few strong components nothing but their quantisers' errors is left."""
    w, cell = precoders(900, paths=1), torch.zeros(900, dtype=torch.int64)
    reached = [quality(Klt.fit(PANEL, w, cell, ONE, bits), w) for bits in (8, 32, 96)]
    assert reached[0] < reached[1] < reached[2]
    assert Klt.fit(PANEL, w, cell, ONE, 32).bits == 32
    with pytest.raises(DefianceError, match="group 1 of the KLT codec has 0 precoders"):
        Klt.fit(PANEL, w, cell, torch.tensor([0, 1]), 8)
    with pytest.raises(DefianceError, match="cells 0 to 3; the codec knows 0 to 0"):
        Klt.fit(PANEL, w, cell, ONE, 8).decode(torch.zeros(2, 8, dtype=torch.uint8), torch.tensor([0, 3]))


def test_a_learned_dictionary_beats_the_grid_at_equal_bits() -> None:
    w, unseen = precoders(900), precoders(200, seed=2)
    dictionary = Dictionary(PANEL, SUBBANDS, 3, 6, 5, 5, 4, 6)
    start = dictionary.initial(1, stream(1, "csi"))
    found = fit(
        start,
        dictionary.loss,
        lambda g: w[torch.randint(len(w), (1, 64), generator=g)],
        lambda parameters: dictionary.loss(parameters, unseen[None]),
        torch.eye(1),
        Schedule(3, 30, 1e-2),
        stream(1, "csi"),
    )
    codec = Learned(dictionary, found.parameters, ONE)
    assert codec.bits == 11 + 2 * 15
    rule = quality(tuned(PANEL, w, codec.bits, tried=60, judged=100), unseen)
    assert quality(codec, unseen) > rule + 0.02
    assert quality(codec, unseen) > quality(Learned(dictionary, start, ONE), unseen) + 0.02


@pytest.mark.parametrize("kind", ["convolutional", "transformer"])
def test_networks_learn_and_nodes_keep_apart(kind: Kind) -> None:
    w, basis = precoders(300, paths=1), spatial_basis(PANEL)[0]
    picture = pictures(w, basis)
    network = Network(kind, PANEL, SUBBANDS, 32, width=16, layers=1)
    start = network.initial(2, stream(1, "csi"))
    before = network.loss(start, picture.expand(2, *picture.shape))
    torch.testing.assert_close(before[0], before[1])
    found = fit(
        start,
        network.loss,
        lambda g: picture[torch.randint(len(w), (2, 64), generator=g)],
        lambda parameters: network.loss(parameters, picture.expand(2, *picture.shape)),
        torch.eye(2),
        Schedule(2, 20, 5e-3),
        stream(1, "csi"),
    )
    assert bool((found.validation_loss[-1] < before - 0.2).all())
    node = torch.tensor([0, 1])
    codec = Neural(network, found.parameters, node)
    cell = torch.arange(len(w)) % 2
    reached = sgcs(w, codec.decode(codec.encode(w, cell), cell))
    for number in (0, 1):
        mine = cell == number
        own = {name: weight[number : number + 1] for name, weight in found.parameters.items()}
        wanted = 1 - network.loss(own, picture[mine][None])
        torch.testing.assert_close(reached[mine].mean(), wanted[0], atol=1e-3, rtol=0)


def test_halves_of_different_trainers_do_not_understand_each_other() -> None:
    w = precoders(300, paths=1)
    one, other = (Dictionary(PANEL, SUBBANDS, 2).initial(1, stream(seed, "csi")) for seed in (1, 2))
    dictionary = Dictionary(PANEL, SUBBANDS, 2)
    cell = torch.zeros(len(w), dtype=torch.int64)
    bits = Learned(dictionary, one, ONE).encode(w, cell)
    own = sgcs(w, Learned(dictionary, one, ONE).decode(bits, cell)).mean()
    assert sgcs(w, Learned(dictionary, other, ONE).decode(bits, cell)).mean() < own - 0.2


# --- what the network gets ----------------------------------------------------------------------------


def test_one_user_gets_shannons_rate_up_to_the_bound() -> None:
    h, radio = waves(6, paths=1), RadioConfig()
    w = eigenvectors(h)
    middle = h[..., 1::4]
    for snr_db, wanted in ((0.0, radio.rate_attenuation * 1.0), (60.0, radio.rate_max_bps_hz)):
        rate = spectral_efficiency(at_snr(middle, w, snr_db), w, 1, radio)
        torch.testing.assert_close(rate, torch.full((6,), wanted), rtol=2e-2, atol=0)
    worse = spectral_efficiency(at_snr(middle, w, 0.0), w.roll(1, 0), 1, radio)
    assert bool((worse < 0.6 * 0.99).all())


def test_zero_forcing_serves_two_users_that_share_a_beam_not_at_all_like_two_that_do_not() -> None:
    h, radio = waves(2, seed=5, paths=1), RadioConfig()
    w = eigenvectors(h)
    apart = spectral_efficiency(at_snr(h[..., 1::4], w, 15.0), w, 2, radio)
    again = at_snr(h[..., 1::4], w, 15.0)[[0, 0]]
    same = spectral_efficiency(again, w[[0, 0]], 2, radio)
    alone = spectral_efficiency(again[:1], w[:1], 1, radio)
    assert float(apart) > 1.5 * float(alone)
    assert float(same) < 1.05 * float(alone)
