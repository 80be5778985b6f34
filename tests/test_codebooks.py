"""Codebooks of beams: against clause 5.2.2.2.1 of TS 38.214, and against the arrays that they are for."""

import math

import pytest
import torch

from defiance.control.codebooks import check_fits, cophased, dft_beams, received_power
from defiance.errors import DefianceError
from defiance.radio.arrays import Panel, Paths, channel


def test_beams_are_those_of_the_clause() -> None:
    beams = dft_beams(Panel(2, 4), (4, 4))
    row, m = 3, 5
    u = [complex(math.cos(2 * math.pi * m * n / 16), math.sin(2 * math.pi * m * n / 16)) for n in range(4)]
    turn = complex(math.cos(2 * math.pi * row / 8), math.sin(2 * math.pi * row / 8))
    wanted = torch.tensor(u + [turn * x for x in u]) / math.sqrt(8)
    assert beams.shape == (8, 16, 8)
    torch.testing.assert_close(beams[row, m], wanted)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_every_fourth_beam_is_an_orthogonal_basis(offset: int) -> None:
    base = dft_beams(Panel(3, 4), (4, 4))[offset::4, offset::4].flatten(0, 1)
    torch.testing.assert_close(base @ base.mH, torch.eye(12, dtype=torch.complex64), atol=1e-5, rtol=0)


def test_the_best_beam_of_a_wave_on_the_grid_has_the_whole_arrays_gain() -> None:
    panel = Panel(4, 8)
    zenith, azimuth = math.acos(0.5), math.asin(-0.25 / math.sin(math.acos(0.5)))  # turns by pi/2 and -pi/4
    angles = torch.tensor([[[zenith, azimuth]]])
    gain = torch.eye(2, dtype=torch.complex64)[None, None]
    paths = Paths(torch.zeros(1, 1), gain, angles, torch.tensor([[[math.pi / 2, 0.0]]]))
    power = received_power(channel(paths, panel, Panel(1, 1), (360e3, 3)), dft_beams(panel).flatten(0, 1))[0]
    assert power.argmax() == 3 * 8 + 1  # the conjugate: -pi/2 is 3 of 4, pi/4 is 1 of 8
    torch.testing.assert_close(power.max(), torch.tensor(32.0), rtol=1e-4, atol=0)
    assert power.sort().values[-2] < 1e-3


def test_cophased_beams_have_norm_one_and_four_phases() -> None:
    beams = cophased(dft_beams(Panel(2, 2)))
    assert beams.shape == (2, 2, 4, 8)
    torch.testing.assert_close(beams.norm(dim=-1), torch.ones(2, 2, 4))
    ratio = beams[1, 1, :, 4] / beams[1, 1, :, 0]
    torch.testing.assert_close(ratio, torch.tensor([1, 1j, -1, -1j]), atol=1e-6, rtol=0)


def test_a_codebook_that_does_not_fit_is_one_clear_line() -> None:
    with pytest.raises(
        DefianceError, match="a codebook for 8 ports doesn't fit .* which has 16; make it"
    ) as e:
        received_power(torch.ones(1, 16, 3, dtype=torch.complex64), dft_beams(Panel(2, 4)).flatten(0, 1))
    assert "\n" not in str(e.value)
    with pytest.raises(DefianceError, match="not finite"):
        check_fits(torch.full((1, 4), torch.nan, dtype=torch.complex64), 4)
    with pytest.raises(DefianceError, match=r"oversampled \(0, 1\) times"):
        dft_beams(Panel(2, 2), (0, 1))
