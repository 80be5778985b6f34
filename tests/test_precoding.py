"""Several users on their beams: against closed forms."""

import math

import pytest
import torch

from defiance.control.codebooks import dft_beams
from defiance.control.precoding import on_beams, regularised_zero_forcing, sum_rate
from defiance.radio.arrays import Panel


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("noise", [0.0, 0.3, 100.0])
def test_one_user_gets_the_matched_filter(noise: float) -> None:
    h = drawn(5, 1, 8)
    precoder = regularised_zero_forcing(h, noise)
    torch.testing.assert_close(precoder, (h / h.norm(dim=-1, keepdim=True)).mH)
    rate = sum_rate(h, precoder, 0.5)
    torch.testing.assert_close(rate, torch.log2(1 + h.abs().square().sum((-1, -2)) / 0.5))


def test_orthogonal_users_do_not_disturb_each_other() -> None:
    h = torch.linalg.qr(drawn(8, 8)).Q[:3] * torch.tensor([1.0, 2.0, 3.0])[:, None]
    rate = sum_rate(h, regularised_zero_forcing(h, 0.2), 0.2)
    alone = sum(math.log2(1 + gain**2 / 3 / 0.2) for gain in (1, 2, 3))
    assert rate.item() == pytest.approx(alone, rel=1e-9)


def test_without_noise_interference_is_zero_and_with_much_every_filter_is_matched() -> None:
    h = drawn(4, 8)
    received = h @ regularised_zero_forcing(h, 0.0)
    assert (received - torch.diag(received.diagonal())).abs().max() < 1e-12
    matched = (h / h.norm(dim=-1, keepdim=True)).mH / 2
    torch.testing.assert_close(regularised_zero_forcing(h, 1e9), matched, rtol=1e-6, atol=1e-6)


def test_regularising_brings_more_than_either_end() -> None:
    h, noise = drawn(2000, 4, 4), 0.3
    rates = [sum_rate(h, regularised_zero_forcing(h, at), noise).mean() for at in (1e-9, noise, 1e6)]
    assert rates[1] > max(rates[0], rates[2]) + 0.3


def test_power_is_shared_equally_and_kept_on_beams() -> None:
    precoder = regularised_zero_forcing(drawn(2, 3, 8), torch.tensor([0.1, 1.0]).double())
    torch.testing.assert_close(precoder.abs().square().sum(-2), torch.full((2, 3), 1 / 3).double())
    h, beams = drawn(2, 8), dft_beams(Panel(2, 4)).flatten(0, 1).to(torch.complex128)
    # on orthogonal beams a user receives exactly what they carry towards it
    torch.testing.assert_close(on_beams(h, beams[[1, 6]]).abs(), (h @ beams[[1, 6]].mT).abs())
    # a beam twice is no second beam: power of its basis stays that of one
    twice = on_beams(h, beams[[3, 3]])
    assert not twice[..., 1].any()
    assert twice[..., 0].abs().sum() == pytest.approx((h @ beams[3]).abs().sum().item())
