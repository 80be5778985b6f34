"""Tracing along walks: draws and tracks by hand; Sionna RT's own paths and channels where it is installed."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scenes import blocks, small_scene
from scipy.spatial.distance import cdist

from defiance.errors import DefianceError
from defiance.radio.arrays import Panel, Paths, channel
from defiance.scene import trace_paths as tracing
from defiance.scene.paths import LIGHT_M_PER_S, Walks, load_walks, turned, unit
from defiance.scene.trace import load_city, trace
from defiance.scene.trace_paths import draw_walks, trace_paths


def city(side: int = 120):
    outdoor = blocks(side, side, 12, 4)
    return small_scene(outdoor, np.zeros((3, side, side), np.float32))


def test_walks_stay_outdoors_apart_and_are_the_same_for_a_seed() -> None:
    scene = city()
    drawn = draw_walks(scene, 6, 20, 2.0, np.random.default_rng(1))
    assert drawn.shape == (6, 20, 2)
    steps = np.hypot(*np.moveaxis(np.diff(drawn, axis=1), -1, 0))
    assert 0.8 < steps.min() and steps.max() < 2.001
    col, row = np.rint((drawn - scene.origin_m) / scene.resolution_m).astype(int).reshape(-1, 2).T
    assert scene.outdoor.numpy()[row, col].all()
    for first in range(6):
        for second in range(first):
            assert cdist(drawn[first], drawn[second]).min() > tracing.APART_M
    np.testing.assert_array_equal(drawn, draw_walks(scene, 6, 20, 2.0, np.random.default_rng(1)))


def test_streets_that_hold_fewer_walks_say_how_many() -> None:
    with pytest.raises(DefianceError, match=r"hold \d+ walks of 38 m .* not 50; ask for fewer or shorter"):
        draw_walks(city(60), 50, 20, 2.0, np.random.default_rng(1))


def seen(length_m: list[float], arrival: list[list[float]], point: list[int]) -> dict[str, Any]:
    towards = np.array(arrival, dtype=float)
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    return {
        "length_m": np.array(length_m),
        "arrival": towards,
        "departure": np.tile([1.0, 0, 0], (len(point), 1)),
        "point": np.array(point),
    }


def test_a_path_keeps_its_number_where_its_chain_and_its_length_go_on() -> None:
    """A step of 2 m east; sources east (nearing by 2 m), north, and one whose length jumps."""
    east, north = [1, 0, 0], [0, 1, 0]
    paths = seen([50, 70, 30, 48, 70, 25], [east, north, north, east, north, north], [0, 0, 0, 1, 1, 1])
    chain, kind = np.array([4, 5, 6, 4, 9, 6]), np.array([[1, 8]] * 6)
    walk = np.array([[0.0, 0, 1.5], [2.0, 0, 1.5]])
    # The second goes on under another chain of the same kinds: an edge that is cut into pieces.
    assert tracing._tracks(paths, chain, kind, walk).tolist() == [0, 1, 2, 0, 1, 3]
    kind[4] = [1, 1]
    assert tracing._tracks(paths, chain, kind, walk).tolist() == [0, 1, 2, 0, 3, 4]


def test_a_path_that_was_found_twice_counts_once() -> None:
    paths = seen([50, 50.001, 50, 50.01], [[1, 0, 0], [1, 0.0005, 0], [1, 0.1, 0], [1, 0, 0]], [0] * 4)
    assert tracing._unlike(np.arange(4), paths) == [0, 2, 3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"walks": 0}, "walks is 0, not within"),
        ({"points": 1}, "points is 1"),
        ({"spacing_m": 0.0}, "spacing_m is 0"),
        ({"samples_per_site": 0}, "samples_per_site is 0"),
        ({"max_depth": 0}, "max_depth is 0"),
        ({"carriers_hz": (1e6,)}, "carrier_hz is 1e"),
        ({"carriers_hz": ()}, "carriers_hz is empty"),
    ],
)
def test_senseless_numbers_are_refused_before_anything_is_loaded(
    tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(DefianceError, match=message):
        trace_paths(city(), "munich", tmp_path / "x.npz", **wrong)


SETTINGS: dict[str, Any] = {
    "walks": 2,
    "points": 6,
    "spacing_m": 2.0,
    "samples_per_site": 200_000,
    "max_depth": 2,
}


@pytest.fixture(scope="module")
def canyon(tmp_path_factory: pytest.TempPathFactory, sionna_rt: Any) -> tuple[Any, Walks, Path]:
    """Sionna RT's street canyon, one site of two sectors; walks traced after an interruption."""
    folder = tmp_path_factory.mktemp("canyon")
    plan = "name,x_m,y_m,height_m,azimuth_deg,tilt_deg\nmast,-30,0,25,90,10\nmast,-30,0,25,0,10\n"
    (folder / "sites.csv").write_text(plan + "other,30,0,20,270,5\n")
    name = "simple_street_canyon"
    scene = trace(
        name, folder / "sites.csv", folder / "c.npz", samples_per_tx=1000, max_depth=0, extent_m=120
    )
    calls = []

    def interrupted(done: int, total: int) -> None:
        calls.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace_paths(scene, name, folder / "w.npz", **SETTINGS, progress=interrupted)
    assert (folder / "w.parts").is_dir() and not (folder / "w.npz").exists()
    again: list[tuple[int, int]] = []
    walks = trace_paths(
        scene, name, folder / "w.npz", **SETTINGS, progress=lambda done, total: again.append((done, total))
    )
    assert (1, 4) not in again and again[-1] == (4, 4)  # the first site was kept
    assert not (folder / "w.parts").exists()
    return sionna_rt, walks, folder / "w.npz"


def solved(rt: Any, walks: Walks, site: int, **arrays: Any) -> Any:
    """Sionna RT's own paths from a site to the first walk: line of sight and reflections."""
    loaded = load_city(rt, "simple_street_canyon", walks.carrier_hz)
    loaded.tx_array, loaded.rx_array = arrays["tx"], arrays["rx"]
    loaded.add(
        rt.Transmitter(
            "site", walks.site_position_m[site].tolist(), orientation=arrays.get("looks", [0, 0, 0])
        )
    )
    for number, place in enumerate(walks.antenna_m[0].tolist()):
        loaded.add(rt.Receiver(f"point {number}", place))
    return rt.PathSolver()(loaded, max_depth=2, samples_per_src=200_000, refraction=False)


def planar(rt: Any, rows: int, columns: int, pattern: str, polarization: str) -> Any:
    return rt.PlanarArray(
        num_rows=rows, num_cols=columns, vertical_spacing=0.5, horizontal_spacing=0.5,
        pattern=pattern, polarization=polarization,
    )  # fmt: skip


@pytest.mark.parametrize("band", ["3.5ghz", "28ghz"])
def test_paths_are_those_of_sionnas_own_solver(canyon: tuple[Any, Walks, Path], band: str) -> None:
    """Every path without an edge that it finds is one of ours, with its length, gains and directions."""
    rt, _, path = canyon
    walks = load_walks(path, band)
    antenna = planar(rt, 1, 1, "iso", "VH")
    theirs = solved(rt, walks, 0, tx=antenna, rx=antenna)
    real, imaginary = (np.array(part) for part in theirs.a)
    valid, tau = np.array(theirs.valid), np.array(theirs.tau)
    found = 0
    for point in range(SETTINGS["points"]):
        length_m = walks.paths.delay_s[0, 0, point] * LIGHT_M_PER_S
        for path in np.flatnonzero(valid[point, 0]):
            gain = torch.from_numpy(real[point, :, 0, :, path] + 1j * imaginary[point, :, 0, :, path])
            if gain.abs().square().sum() < 1e-3 * walks.paths.power[0, 0, point].max():
                continue
            mine = int((length_m - float(tau[point, 0, path]) * LIGHT_M_PER_S).abs().argmin())
            assert abs(float(length_m[mine]) - tau[point, 0, path] * LIGHT_M_PER_S) < 1e-3
            turn = turned(length_m[mine], walks.carrier_hz)
            ours = walks.paths.gain[0, 0, point, mine] * turn
            assert float((ours - gain).abs().max()) < 0.02 * float(gain.abs().max())  # of int8
            for end, angles in (
                ("departure", (theirs.theta_t, theirs.phi_t)),
                ("arrival", (theirs.theta_r, theirs.phi_r)),
            ):
                expected = [float(np.array(angle)[point, 0, path]) for angle in angles]
                assert getattr(walks.paths, end)[0, 0, point, mine].tolist() == pytest.approx(
                    expected, abs=3e-4
                )
            found += 1
    assert found >= 2 * SETTINGS["points"]


def test_channels_are_sionnas_for_the_same_paths(canyon: tuple[Any, Walks, Path]) -> None:
    """4 x 3 crossed TR 38.901 elements, turned and tilted, against its `cfr` at both ends of two antennas."""
    rt, walks, _ = canyon
    looks, spacing_hz, count = [0.7, 0.15, 0.0], 1e6, 5
    antenna = planar(rt, 1, 1, "iso", "VH")
    plain = solved(rt, walks, 0, tx=antenna, rx=antenna)
    station, device = planar(rt, 4, 3, "tr38901", "cross"), planar(rt, 1, 2, "iso", "cross")
    theirs = solved(rt, walks, 0, tx=station, rx=device, looks=looks)
    frequencies = ((np.arange(count) - 2) * spacing_hz).astype(np.float32)
    cfr = theirs.cfr(frequencies=frequencies, normalize_delays=False, out_type="numpy")[:, :, 0, :, 0]

    real, imaginary = (np.array(part)[:, :, 0] for part in plain.a)
    gain = torch.from_numpy(real + 1j * imaginary).permute(0, 3, 1, 2).to(torch.complex128)
    delay = torch.from_numpy(np.array(plain.tau)[:, 0]).double().clamp(min=0)
    ends = [
        torch.from_numpy(np.stack([np.array(angle)[:, 0] for angle in pair], -1))
        for pair in ((plain.theta_t, plain.phi_t), (plain.theta_r, plain.phi_r))
    ]
    # Their phases count from the middle of a panel, ours from its first element.
    middles = (
        torch.tensor([0.0, 0.5, 0.75]),
        torch.tensor([0.0, 0.25, 0.0]),
    )  # wavelengths: back, columns, rows
    yaw, tilt, _ = looks
    turn = torch.tensor([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    turn @= torch.tensor(
        [[math.cos(tilt), 0, math.sin(tilt)], [0, 1, 0], [-math.sin(tilt), 0, math.cos(tilt)]]
    )
    cycles = unit(ends[0]) @ (turn @ middles[0]) + unit(ends[1]) @ middles[1]
    carrier = turned(delay * LIGHT_M_PER_S, -walks.carrier_hz)
    gain *= (carrier * torch.polar(torch.ones_like(cycles), -2 * math.pi * cycles))[..., None, None]
    ours = channel(
        Paths(delay, gain.to(torch.complex64), *ends),
        Panel(4, 3, dual=True, element="38.901"),
        Panel(1, 2, dual=True),
        (spacing_hz, count),
        sender_bearing_rad=looks[0],
        sender_tilt_rad=looks[1],
    ).numpy()

    def order(array: Any, elements: int) -> list[int]:
        """Our numbers in theirs: the slant of +45 degrees first; row by row from below, column by column."""
        y, z = np.array(array.normalized_positions)[1:].round(6)
        return [half * elements + int(place) for half in (1, 0) for place in np.lexsort((y, z))]

    expected = cfr[:, order(device, 2)][:, :, order(station, 12)]
    assert np.abs(ours - expected).max() < 1e-3 * np.abs(expected).max()
