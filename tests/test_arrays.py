"""Arrays and wide-band channels: against a direct sum in vectors, Sionna's, and what is known of arrays."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defiance.errors import DefianceError
from defiance.radio import arrays
from defiance.radio.arrays import Panel, Paths, channel
from defiance.radio.nr import _sionna

BAND = (360e3, 7)


def draw(links: int, paths: int, seed: int = 1) -> Paths:
    g = torch.Generator().manual_seed(seed)

    def angles() -> torch.Tensor:
        zenith = torch.arccos(2 * torch.rand(links, paths, generator=g) - 1)
        return torch.stack([zenith, 2 * math.pi * torch.rand(links, paths, generator=g) - math.pi], -1)

    gain = torch.view_as_complex(torch.randn(links, paths, 2, 2, 2, generator=g))
    return Paths(2e-6 * torch.rand(links, paths, generator=g), gain, angles(), angles())


def one(zenith: float, azimuth: float, delay_s: float = 0.0) -> Paths:
    """A path of gain 1 in both polarisations."""
    at = torch.tensor([[[zenith, azimuth]]])
    return Paths(torch.tensor([[delay_s]]), torch.eye(2, dtype=torch.complex64)[None, None], at, at)


def unit(zenith: float, azimuth: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors of direction, of theta and of phi."""
    sz, cz, sa, ca = math.sin(zenith), math.cos(zenith), math.sin(azimuth), math.cos(azimuth)
    return np.array([sz * ca, sz * sa, cz]), np.array([cz * ca, cz * sa, -sz]), np.array([-sa, ca, 0.0])


def end(panel: Panel, angles: torch.Tensor, bearing: float, tilt: float) -> list[tuple[np.ndarray, complex]]:
    """Of every element: F towards theta and phi, and its phase; by rotation matrices, not by clause 7.1."""
    turn = np.array(
        [
            [math.cos(bearing), -math.sin(bearing), 0],
            [math.sin(bearing), math.cos(bearing), 0],
            [0, 0, 1],
        ]
    ) @ np.array([[math.cos(tilt), 0, math.sin(tilt)], [0, 1, 0], [-math.sin(tilt), 0, math.cos(tilt)]])
    direction, theta, phi = unit(*angles.tolist())
    seen = turn.T @ direction
    zenith, azimuth = math.acos(max(-1, min(1, seen[2]))), math.atan2(seen[1], seen[0])
    _, own_theta, own_phi = (turn @ v for v in unit(zenith, azimuth))
    gain_db = 0.0
    if panel.element == "38.901":
        vertical = min(12 * ((math.degrees(zenith) - 90) / 65) ** 2, 30)
        gain_db = 8 - min(vertical + min(12 * (math.degrees(azimuth) / 65) ** 2, 30), 30)
    found = []
    for slant, row, column in product(panel.slants_rad, range(panel.rows), range(panel.columns)):
        vector = 10 ** (gain_db / 20) * (math.cos(slant) * own_theta + math.sin(slant) * own_phi)
        place = turn @ np.array([0, column * panel.column_spacing, row * panel.row_spacing])
        phase = np.exp(2j * math.pi * direction @ place)
        found.append((np.array([vector @ theta, vector @ phi]), phase))
    return found


@pytest.mark.parametrize("element", ["isotropic", "38.901"])
def test_it_is_the_direct_sum(element: str) -> None:
    paths = draw(2, 3)
    sender = Panel(3, 2, 0.7, 0.5, dual=True, element=element)  # type: ignore[arg-type]
    receiver = Panel(1, 2, dual=True)
    looks = torch.tensor([0.4, -2.5]), torch.tensor([0.15, -0.3])
    found = channel(
        paths, sender, receiver, BAND,
        sender_bearing_rad=looks[0], sender_tilt_rad=looks[1], receiver_bearing_rad=1.0,
    )  # fmt: skip
    expected = np.zeros(found.shape, complex)
    for link, path in product(range(2), range(3)):
        gain, delay = paths.gain[link, path].numpy(), float(paths.delay_s[link, path])
        tx = end(sender, paths.departure[link, path], float(looks[0][link]), float(looks[1][link]))
        rx = end(receiver, paths.arrival[link, path], 1.0, 0.0)
        for k in range(BAND[1]):
            turn = np.exp(-2j * math.pi * (k - 3) * BAND[0] * delay)
            for (r, (f_r, a_r)), (t, (f_t, a_t)) in product(enumerate(rx), enumerate(tx)):
                expected[link, r, t, k] += f_r @ gain @ f_t * a_r * a_t * turn
    assert np.abs(found.numpy() - expected).max() < 2e-4 * np.abs(expected).max()


def test_over_frequency_it_is_sionnas() -> None:
    """`cir_to_ofdm_channel` of the same paths between two isotropic elements."""
    paths = draw(5, 4)
    with _sionna():
        from sionna.phy.channel import cir_to_ofdm_channel

        # [batch, receivers, antennas, senders, antennas, paths, times]
        shape = (5, 1, 1, 1, 1, 4, 1)
        frequencies = (torch.arange(BAND[1]) - 3) * BAND[0]
        gains = paths.gain[..., 0, 0].reshape(shape)
        theirs = cir_to_ofdm_channel(frequencies, gains, paths.delay_s.reshape(5, 1, 1, 4))
    straight = Paths(
        paths.delay_s,
        paths.gain * torch.tensor([[1, 0], [0, 0]]),
        torch.zeros(5, 4, 2) + math.pi / 2,
        torch.zeros(5, 4, 2) + math.pi / 2,
    )
    ours = channel(straight, Panel(1, 1), Panel(1, 1), BAND)
    # [batch, 1, 1, 1, 1, times, subcarriers]
    assert torch.allclose(ours[:, 0, 0], theirs.reshape(5, BAND[1]).to(ours.dtype), atol=1e-4)


def test_a_panel_gains_its_number_of_elements_where_it_is_steered() -> None:
    """8 x 8 elements of 8 dBi: 18 dB more than one; and at its side -15 dBi."""
    panel = Panel(8, 8, element="38.901")
    ahead = channel(
        one(math.pi / 2 + 0.1, 0.7), panel, Panel(1, 1), (1.0, 1), sender_bearing_rad=0.7, sender_tilt_rad=0.1
    )
    amplitude = ahead[0, 0, :, 0].abs()
    assert amplitude.tolist() == pytest.approx([10 ** (8 / 20)] * 64, rel=1e-4)
    weights = torch.polar(torch.full((64,), 1 / 8), -ahead[0, 0, :, 0].angle())
    assert (ahead[0, 0, :, 0] @ weights).abs().square().item() == pytest.approx(64 * 10**0.8, rel=1e-4)
    aside = channel(one(math.pi / 2, 0.7 + math.pi / 2), panel, Panel(1, 1), (1.0, 1), sender_bearing_rad=0.7)
    assert 20 * math.log10(aside.abs().max()) == pytest.approx(8 - 12 * (90 / 65) ** 2, abs=0.01)


def test_slants_of_45_degrees_are_orthogonal_and_share_the_power() -> None:
    h = channel(one(1.2, 0.4), Panel(1, 1, dual=True), Panel(1, 1, dual=True), (1.0, 1))[0, :, :, 0]
    assert torch.allclose(h.abs(), torch.eye(2), atol=1e-6)
    mixed = channel(one(1.2, 0.4), Panel(1, 1, dual=True), Panel(1, 1), (1.0, 1))[0, 0, :, 0]
    assert mixed.abs().square().tolist() == pytest.approx([0.5, 0.5], rel=1e-5)


def test_a_delay_turns_the_band_and_nothing_at_its_middle() -> None:
    h = channel(one(math.pi / 2, 0.0, 1e-6), Panel(1, 1), Panel(1, 1), (100e3, 3))[0, 0, 0]
    assert h.angle().tolist() == pytest.approx([0.2 * math.pi, 0.0, -0.2 * math.pi], abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    links=st.integers(0, 3), paths=st.integers(1, 3), rows=st.integers(1, 4), columns=st.integers(1, 5),
    dual=st.booleans(), count=st.integers(1, 9), seed=st.integers(0, 99),
    bearing=st.floats(-10, 10), tilt=st.floats(-2, 2),
)  # fmt: skip
def test_any_array_gives_a_finite_channel_of_its_shape(
    links: int,
    paths: int,
    rows: int,
    columns: int,
    dual: bool,
    count: int,
    seed: int,
    bearing: float,
    tilt: float,
) -> None:
    panel = Panel(rows, columns, dual=dual, element="38.901")
    h = channel(
        draw(links, paths, seed),
        panel,
        Panel(1, 1),
        (30e3, count),
        sender_bearing_rad=bearing,
        sender_tilt_rad=tilt,
    )
    assert h.shape == (links, 1, panel.elements, count) and bool(torch.isfinite(torch.view_as_real(h)).all())


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = channel(draw(7, 3), Panel(2, 2), Panel(1, 1), BAND)
    monkeypatch.setattr(arrays, "ROOM", 60)
    assert torch.equal(channel(draw(7, 3), Panel(2, 2), Panel(1, 1), BAND), whole)


def test_what_is_no_array_or_no_path_is_refused() -> None:
    with pytest.raises(DefianceError, match="at least 1 x 1"):
        Panel(0, 4)
    with pytest.raises(DefianceError, match="give at least one"):
        channel(draw(1, 1), Panel(1, 1), Panel(1, 1), (1e3, 0))
    paths = draw(2, 3)
    with pytest.raises(DefianceError, match=r"Paths.arrival is \(2, 3, 1\)"):
        Paths(paths.delay_s, paths.gain, paths.departure, paths.arrival[..., :1])
