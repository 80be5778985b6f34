"""Several users at once: precoders and groups, against closed forms and other implementations."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from defiance.control.codebooks import dft_beams
from defiance.network.precoding import (
    heard_sinr,
    known_sinr,
    orthonormal,
    precoders,
    regularised_zero_forcing,
    select,
)
from defiance.radio.arrays import Panel
from defiance.radio.nr import _sionna


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def shannon(sinr: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    return torch.log2(1 + sinr)


def sum_rate(h: torch.Tensor, w: torch.Tensor, noise: float) -> torch.Tensor:
    power = (h @ w).abs().square()
    wanted = power.diagonal(dim1=-2, dim2=-1)
    return torch.log2(1 + wanted / (power.sum(-1) - wanted + noise)).sum(-1)


@pytest.mark.parametrize("noise", [0.0, 0.3, 100.0])
def test_one_user_gets_the_matched_filter(noise: float) -> None:
    h = drawn(5, 1, 8)
    precoder = regularised_zero_forcing(h, noise)
    torch.testing.assert_close(precoder, (h / h.norm(dim=-1, keepdim=True)).mH)
    rate = sum_rate(h, precoder, 0.5)
    torch.testing.assert_close(rate, torch.log2(1 + h.abs().square().sum((-1, -2)) / 0.5))


def test_orthogonal_users_have_half_the_power_and_no_other_loss() -> None:
    h = torch.linalg.qr(drawn(8, 8)).Q[:2] * torch.tensor([2.0, 30.0])[:, None]
    torch.testing.assert_close(known_sinr(h @ h.mH), torch.tensor([4.0, 900.0]).double() / 2)
    chosen = select(h[:, None], torch.ones(2), torch.arange(2), torch.zeros(2).long(), (1, 4, 4), shannon)
    assert chosen.tolist() == [[[1, 0, -1, -1]]]
    heard = (h @ precoders(h[:, None], chosen)[0, 0].to(h.dtype)).abs().square()
    torch.testing.assert_close(
        heard[:, :2], torch.tensor([[0, 2.0], [450, 0]]).double(), atol=1e-4, rtol=1e-5
    )


def test_without_noise_interference_is_zero_and_with_much_every_filter_is_matched() -> None:
    h = drawn(4, 8)
    received = h @ regularised_zero_forcing(h, 0.0)
    assert (received - torch.diag(received.diagonal())).abs().max() < 1e-12
    # zero-forcing is the pseudo-inverse with equal powers
    inverse = np.linalg.pinv(h.numpy())
    np.testing.assert_allclose(
        regularised_zero_forcing(h, 0.0), inverse / np.linalg.norm(inverse, axis=0) / 2, rtol=1e-9
    )
    matched = (h / h.norm(dim=-1, keepdim=True)).mH / 2
    torch.testing.assert_close(regularised_zero_forcing(h, 1e9), matched, rtol=1e-6, atol=1e-6)


def test_users_times_noise_regularises_best() -> None:
    """Against loads between a hundredth and a hundredfold; Peel et al. show it for equal channels."""
    h, noise = drawn(4000, 4, 4), 0.3
    loads = torch.logspace(-2, 2, 9)
    rates = [sum_rate(h, regularised_zero_forcing(h, noise * float(load)), noise).mean() for load in loads]
    assert int(torch.stack(rates).argmax()) == 4
    assert rates[4] > max(rates[0], rates[-1]) + 0.3


def test_precoders_are_sionnas() -> None:
    h = drawn(6, 3, 8)
    with _sionna():
        from sionna.phy.mimo import rzf_precoding_matrix

        theirs = rzf_precoding_matrix(h, alpha=3 * 0.2, precision="double")
    torch.testing.assert_close(regularised_zero_forcing(h, 0.2), theirs / math.sqrt(3))


def test_power_is_shared_equally_and_kept_on_beams() -> None:
    precoder = regularised_zero_forcing(drawn(2, 3, 8), torch.tensor([0.1, 1.0]).double())
    torch.testing.assert_close(precoder.abs().square().sum(-2), torch.full((2, 3), 1 / 3).double())
    beams = dft_beams(Panel(2, 4)).flatten(0, 1).to(torch.complex128)
    basis = orthonormal(beams[[1, 6]])
    torch.testing.assert_close(basis.abs(), beams[[1, 6]].mT.abs())
    assert not orthonormal(beams[[3, 3]])[:, 1].any()  # a beam twice is no second beam


def test_what_a_station_expects_is_what_its_precoders_do() -> None:
    h = 3 * drawn(20, 3, 8)
    power = (h @ regularised_zero_forcing(h, 1.0)).abs().square()
    wanted = power.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(known_sinr(h @ h.mH), wanted / (1 + power.sum(-1) - wanted))


def test_a_digital_precoder_behind_the_beams_takes_their_interference_out() -> None:
    beams = dft_beams(Panel(1, 8), (1, 4)).flatten(0, 1)[[8, 11]]  # which overlap
    h = 100 * (beams.conj() + 0.05 * drawn(2, 8).to(torch.complex64))[:, None]
    chosen = torch.tensor([[[0, 1]]])

    def leak(measured: torch.Tensor | None) -> float:
        power = (h[:, 0] @ precoders(beams.conj()[:, None] * 100, chosen, measured)[0, 0]).abs().square()
        return float((power[0, 1] + power[1, 0]) / power.trace())

    assert leak(h) < 0.1 * leak(None)


# --- groups -----------------------------------------------------------------------------------------------


def test_of_identical_users_one_is_served() -> None:
    h = (10 * drawn(1, 1, 8) / 8**0.5).expand(3, -1, -1)
    weight = torch.tensor([1.0, 1.1, 1.0])
    chosen = select(h, weight, torch.arange(3), torch.zeros(3).long(), (1, 3, 3), shannon)
    assert chosen.tolist() == [[[1, -1, -1]]]


def test_groups_are_nearly_the_best_of_all_groups() -> None:
    ratios = []
    for seed in range(30):
        h = 3 * drawn(6, 1, 4, seed=seed)
        weight = 0.5 + torch.rand(6, generator=torch.Generator().manual_seed(seed))
        chosen = select(h, weight, torch.arange(6), torch.zeros(6).long(), (1, 3, 3), shannon)[0, 0]

        def value(group: tuple[int, ...], h: torch.Tensor = h, weight: torch.Tensor = weight) -> float:
            some = h[list(group), 0]
            return float((weight[list(group)] * torch.log2(1 + known_sinr(some @ some.mH))).sum())

        every = [value(group) for size in (1, 2, 3) for group in combinations(range(6), size)]
        ratios.append(value(tuple(chosen[chosen >= 0].tolist())) / max(every))
    assert max(ratios) <= 1 + 1e-9
    assert sum(ratios) / 30 > 0.97


def test_cells_and_sub_bands_choose_for_themselves_within_their_limits() -> None:
    h, cell = 5 * drawn(12, 3, 8), torch.arange(12) % 2
    user = torch.arange(12) // 4 * 2 + cell  # two streams of each of six users
    weight = torch.ones(12)
    weight[0] = 0
    both = select(h, weight, user, cell, (2, 2, 3), shannon)
    for c in range(2):
        alone = select(
            h[cell == c], weight[cell == c], user[cell == c], torch.zeros(6).long(), (1, 2, 3), shannon
        )
        assert torch.equal(both[c], torch.where(alone[0] >= 0, 2 * alone[0] + c, -1))
    assert 0 not in both
    for group in both.flatten(0, 1):
        named = group[group >= 0]
        assert len(named.unique()) == len(named) and len(user[named].unique()) <= 2
    assert select(h[:0], weight[:0], user[:0], cell[:0], (2, 2, 3), shannon).eq(-1).all()


@given(
    st.lists(st.floats(-170, 170), min_size=3, max_size=3),
    st.sampled_from(["drawn", "same", "nothing"]),
)
def test_extreme_channels_give_numbers(levels_db: list[float], kind: str) -> None:
    h = {"drawn": drawn(3, 2, 4), "same": drawn(1, 2, 4).expand(3, -1, -1), "nothing": torch.zeros(3, 2, 4)}[
        kind
    ]
    h = (h * 10 ** (torch.tensor(levels_db).clamp(max=50) / 20)[:, None, None]).to(torch.complex64)
    chosen = select(h, torch.ones(3), torch.arange(3), torch.zeros(3).long(), (1, 3, 3), shannon)
    w = precoders(h, chosen)
    assert torch.view_as_real(w).isfinite().all()
    power = w.abs().square().sum((-2, -1))
    assert bool(((power - 1).abs() < 1e-4).logical_or(power < 1e-4).all())
    sinr = heard_sinr(h[:, 0, :2], torch.eye(2, dtype=torch.complex64).expand(3, 2, 2))
    assert bool((sinr.isfinite() & (sinr >= 0)).all())
