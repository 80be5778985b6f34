"""Walks: what lies between their points, against a geometry whose paths are known anywhere; their files."""

import itertools
import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from defiance.errors import DefianceError
from defiance.radio.arrays import Panel, Paths, channel, response
from defiance.scene import gain_db, load, npz
from defiance.scene.paths import (
    CARRIERS_HZ,
    LIGHT_M_PER_S,
    Walks,
    angles,
    band_name,
    load_walks,
    save_walks,
    turned,
    unit,
)

SITES = torch.tensor([[0.0, 0.0, 25.0], [60.0, 80.0, 30.0]])
WALLS = ((0, -20.0), (1, 35.0), (2, 0.0))  # axis and offset of mirrors: two facades and the ground


def exact(place_m: torch.Tensor, carrier_hz: float) -> Paths:
    """Line of sight, and what one and two mirrors add, from every site to places [..., 3]: image sources."""
    bounces = [chain for length in range(3) for chain in itertools.permutations(range(len(WALLS)), length)]
    length_m, departure, arrival, gain = [], [], [], []
    for chain in bounces:
        image, flips = SITES.double().clone(), torch.ones(3, dtype=torch.float64)
        for wall in chain:
            axis, offset = WALLS[wall]
            image[:, axis] = 2 * offset - image[:, axis]
            flips[axis] *= -1
        way = image.reshape(len(SITES), *(1,) * (place_m.ndim - 1), 3) - place_m.double()
        length_m.append(way.norm(dim=-1))
        arrival.append(way / length_m[-1][..., None])
        departure.append(-arrival[-1] * flips)  # unfolded back to the source
        loss = 0.6 ** len(chain) * LIGHT_M_PER_S / carrier_hz / (4 * math.pi * length_m[-1])
        mixed = torch.tensor([[1, 0.2j * len(chain)], [0.1 * len(chain), -1]], dtype=torch.complex128)
        gain.append(loss[..., None, None] * mixed)
    length = torch.stack(length_m, -1)
    return Paths(
        length / LIGHT_M_PER_S,
        (torch.stack(gain, -3) * turned(length, -carrier_hz)[..., None, None]).to(torch.complex64),
        angles(torch.stack(departure, -2)),
        angles(torch.stack(arrival, -2)),
    )


def analytic(carrier_hz: float = 3.5e9, spacing_m: float = 1.0, points: int = 12) -> Walks:
    """Two walks: along a wall, and across a square, where the first site passes close by."""
    along = torch.arange(points, dtype=torch.float64) * spacing_m
    starts, turns = torch.tensor([[-10.0, 20.0], [-8.0, -5.0]]), torch.tensor([0.0, 0.6])
    ways = torch.stack([turns.cos(), turns.sin()], -1).double()
    position = starts.double()[:, None] + along[:, None] * ways[:, None]
    height = torch.full(position.shape[:2], 1.5, dtype=torch.float64)
    paths = exact(torch.cat([position, height[..., None]], -1), carrier_hz)
    return Walks(
        name="mirrors",
        carrier_hz=carrier_hz,
        position_m=position,
        height_m=height,
        site_position_m=SITES,
        cell_site=torch.tensor([0, 0, 1]),
        azimuth_deg=torch.tensor([0.0, 120.0, 240.0]),
        tilt_deg=torch.tensor([10.0, 10.0, 5.0]),
        paths=paths,
        track=torch.arange(paths.delay_s.shape[-1], dtype=torch.int32).expand(paths.delay_s.shape).clone(),
        attribution="(c) mirrors",
    )


def places(walks: Walks, walk: int, along_m: torch.Tensor) -> torch.Tensor:
    """Straight walks."""
    first, last = walks.antenna_m[walk, 0], walks.antenna_m[walk, -1]
    return first + along_m[:, None] * (last - first) / (last - first).norm()


def nmse_db(found: torch.Tensor, expected: torch.Tensor) -> float:
    error = (found - expected).abs().square().sum() / expected.abs().square().sum()
    return 10 * math.log10(error)


@pytest.mark.parametrize(
    ("carrier_hz", "spacing_m", "reached_db"), [(3.5e9, 1.0, -65), (3.5e9, 2.0, -50), (28e9, 1.0, -65)]
)
@pytest.mark.parametrize("walk", [0, 1])
def test_between_points_the_channel_is_that_of_the_exact_geometry(
    walk: int, carrier_hz: float, spacing_m: float, reached_db: float
) -> None:
    """8 x 4 antennas of two polarisations over 20 MHz; an interpolation of gains would be off by 0 dB."""
    walks = analytic(carrier_hz, spacing_m)
    along = torch.linspace(0, float(walks.length_m[walk]), 101, dtype=torch.float64)
    array = Panel(4, 8, dual=True), Panel(1, 2, dual=True), (360e3, 52)
    found = channel(walks.at(walk, along), *array)
    expected = channel(exact(places(walks, walk, along), carrier_hz), *array)
    assert nmse_db(found, expected) < reached_db


def test_a_point_has_exactly_its_paths() -> None:
    walks = analytic()
    reached = torch.nn.functional.pad(walks.step_m.cumsum(-1), (1, 0))
    for walk in (0, 1):
        found = walks.at(walk, reached[walk])
        torch.testing.assert_close(found.delay_s, walks.paths.delay_s[:, walk], rtol=1e-12, atol=0)
        torch.testing.assert_close(found.gain, walks.paths.gain[:, walk], rtol=1e-5, atol=0)
        torch.testing.assert_close(found.departure, walks.paths.departure[:, walk])
        torch.testing.assert_close(found.arrival, walks.paths.arrival[:, walk])


def test_doppler_is_speed_over_wavelength_times_the_cosine() -> None:
    """Of the line of sight: the phase of its gain over 1 cm, against where it comes from, at 28 GHz."""
    walks = analytic(28e9)
    along = torch.arange(0.0, 10.0, 0.37, dtype=torch.float64)
    here, there = walks.at(1, along), walks.at(1, along + 1e-3)
    turned_rad = (there.gain[..., 0, 0] * here.gain[..., 0, 0].conj()).angle().double()
    way = walks.antenna_m[1, 1] - walks.antenna_m[1, 0]
    zenith, azimuth = here.arrival.double().unbind(-1)
    cosine = zenith.sin() * (azimuth.cos() * way[0] + azimuth.sin() * way[1])
    expected_rad = 2 * math.pi * 1e-3 * 28e9 / LIGHT_M_PER_S * cosine
    torch.testing.assert_close(turned_rad, expected_rad, rtol=0, atol=5e-3)


def test_what_only_one_point_has_fades_and_moves_as_from_its_source() -> None:
    walks = analytic(points=2)
    track = walks.track.clone()
    gain = walks.paths.gain.clone()
    track[:, :, 1, 0], track[:, :, 1, 1:], gain[:, :, 1, 1:] = 77, -1, 0
    alone = replace(walks, track=track, paths=replace(walks.paths, gain=gain))
    share = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    found, whole = alone.at(0, share), exact(places(walks, 0, share), 3.5e9)
    count = walks.track.shape[-1]
    left = found.gain[:, 1:, :count] / whole.gain[:, 1:]
    torch.testing.assert_close(left[0, :2, 0, 0, 0].abs(), torch.tensor([0.853553, 0.5]), rtol=0.02, atol=0)
    assert float(left[..., 0, 0].angle()[:, :2].abs().max()) < 0.02  # the carrier turns on as it should
    torch.testing.assert_close(found.delay_s[:, 1, :count], whole.delay_s[:, 1], rtol=1e-7, atol=0)
    power = found.power.sum(-1)
    assert float(power[0, 3]) == pytest.approx(float(alone.paths.power[0, 0, 1].sum()), rel=1e-5)
    assert not bool(found.gain[:, 3, 1:].any())


def test_places_of_any_shape_and_of_many_walks_at_once() -> None:
    walks = analytic()
    walk, along = torch.tensor([[0], [1]]), torch.tensor([0.5, 3.25, 11.0])
    found = walks.at(walk, along)
    assert found.delay_s.shape[:3] == (2, 2, 3)
    torch.testing.assert_close(found.gain[:, 1, 2], walks.at(1, 11.0).gain)
    with pytest.raises(DefianceError, match="11 m long"):
        walks.at(0, 11.1)
    with pytest.raises(DefianceError, match=r"walks 0 \.\.\. 1"):
        walks.at(2, 0.0)


@pytest.fixture(scope="module")
def file_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("walks") / "small.npz"
    save_walks([analytic(carrier) for carrier in CARRIERS_HZ], path)
    return path.read_bytes()


@pytest.mark.parametrize("carrier_hz", CARRIERS_HZ)
def test_a_file_keeps_channels_and_their_way_on(tmp_path: Path, file_bytes: bytes, carrier_hz: float) -> None:
    """int8 matrices, int16 directions: -35 dB; at 28 GHz a float32 length is off by 0.1 mm at most."""
    (tmp_path / "x.npz").write_bytes(file_bytes)
    back, walks = load_walks(tmp_path / "x.npz", band_name(carrier_hz)), analytic(carrier_hz)
    for field in ("site_position_m", "cell_site", "azimuth_deg", "tilt_deg", "track", "position_m"):
        assert torch.equal(getattr(back, field), getattr(walks, field))
    assert (back.name, back.carrier_hz, back.attribution) == ("mirrors", carrier_hz, "(c) mirrors")
    along = torch.arange(0, 11, 0.1)
    array = Panel(8, 8, dual=True), Panel(1, 1, dual=True), (360e3, 4)
    assert nmse_db(channel(back.at(0, along), *array), channel(walks.at(0, along), *array)) < -35


def test_bearings_count_from_east() -> None:
    assert analytic().bearing_rad.tolist() == pytest.approx([math.pi / 2, -math.pi / 6, -5 * math.pi / 6])


@given(st.data())
def test_a_damaged_file_is_one_error_that_names_it(
    tmp_path_factory: pytest.TempPathFactory, file_bytes: bytes, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(file_bytes)))
    flips = st.tuples(st.integers(0, len(file_bytes) - 1), st.integers(1, 255))
    damaged = bytearray(file_bytes)
    for place, bits in data.draw(st.lists(flips, max_size=3)):
        damaged[place] ^= bits
    path = tmp_path_factory.mktemp("walks") / "damaged.npz"
    path.write_bytes(damaged[:cut])
    try:
        load_walks(path, "28ghz")
    except DefianceError as error:
        assert "damaged.npz" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("content", [b"", b"not a zip file", pickle.dumps({"track": 1})])
def test_what_holds_no_walks_at_all_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DefianceError, match=r"x\.npz: not a readable set of walks"):
        load_walks(tmp_path / "x.npz", "28ghz")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", np.array("defiance.walks/0"), "format isn't 'defiance.walks/1'"),
        ("length_m", np.zeros(3, np.float32), r"length_m is \[3\], not"),
        ("length_m", "nan", "length_m holds values that aren't positive and finite"),
        ("matrix", np.zeros((2, 4, 8), np.int8), "matrix is"),
        ("level_cdb", np.zeros(3), "wrong kind"),
        ("track", None, "track is missing"),
        ("count", np.zeros((2, 2, 12), np.uint8), r"track is \[\d+\], not \[0\]"),
        ("count", np.zeros((2, 2), np.uint8), "not"),
        ("position_m", np.full((2, 12, 2), np.nan), "position_m holds values that aren't finite"),
        ("position_m", np.zeros((2, 12, 2)), "are in one place"),
        ("position_m", np.zeros((24, 2)), r"position_m is \[24, 2\]"),
        ("height_m", np.zeros((2, 11)), "height_m is"),
        ("site_position_m", np.zeros((3, 3)), "not"),
        ("cell_site", np.array([0, 0, 2]), r"cell_site names a site outside 0 \.\.\. 1"),
        ("carrier_hz", np.array([3.5e9, np.nan]), "no band '28ghz'"),
        ("tilt_deg", np.array([np.inf, 0, 0]), "tilt_deg holds"),
    ],
)
def test_walks_with_a_wrong_entry_are_refused_by_name(
    tmp_path: Path, file_bytes: bytes, key: str, value: np.ndarray | str | None, message: str
) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(file_bytes)
    with np.load(path) as file:
        content = dict(file)
    if isinstance(value, str):
        content[key][5] = np.nan
    elif value is None:
        del content[key]
    else:
        content[key] = value
    np.savez(path, **content)
    with pytest.raises(DefianceError, match=rf"x\.npz: not a valid set of walks: .*{message}"):
        load_walks(path, "28ghz")


def test_a_file_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, file_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.npz").write_bytes(file_bytes)
    monkeypatch.setattr(npz, "MAX_FILE_BYTES", 500)
    with pytest.raises(DefianceError, match="unpacks to more"):
        load_walks(tmp_path / "x.npz", "28ghz")


def test_an_unknown_city_or_band_says_what_there_is() -> None:
    with pytest.raises(DefianceError, match="did you mean munich"):
        load_walks("munch", "3.5ghz")
    with pytest.raises(DefianceError, match="walks ship for florence, munich"):
        load_walks("somewhere", "3.5ghz")
    with pytest.raises(DefianceError, match=r"no band '60ghz'; known are 3\.5ghz, 28ghz"):
        load_walks("munich", "60ghz")


def test_bands_of_one_file_share_their_paths(tmp_path: Path) -> None:
    with pytest.raises(DefianceError, match="share their paths"):
        save_walks([analytic(3.5e9), analytic(28e9, spacing_m=2.0)], tmp_path / "x.npz")


@pytest.mark.parametrize("city", ["munich", "florence"])
class TestShippedWalks:
    def test_seven_sites_and_1500_places_in_a_few_megabytes(self, city: str) -> None:
        walks, scene = load_walks(city, "3.5ghz"), load(city)
        assert walks.track.shape[:3] == (7, 30, 50) and walks.track.shape[3] <= 16
        assert torch.equal(walks.site_position_m, scene.site_position_m)
        assert torch.equal(walks.azimuth_deg, scene.azimuth_deg)
        assert "OpenStreetMap contributors" in walks.attribution
        file = Path(npz.__file__).parent / "data" / "walks" / f"{city}.npz"
        assert file.stat().st_size < 4e6
        heard = (walks.track >= 0).any(-1).any(0)
        assert heard.float().mean() > 0.95

    def test_walks_keep_apart_and_outdoors(self, city: str) -> None:
        walks, scene = load_walks(city, "28ghz"), load(city)
        places = walks.position_m
        for one, other in itertools.combinations(places, 2):
            assert float(torch.cdist(one, other).min()) > 29
        col, row = ((places - torch.tensor(scene.origin_m)) / scene.resolution_m).round().long().unbind(-1)
        assert scene.outdoor[row, col].float().mean() > 0.99
        assert 1.5 < float(walks.step_m.median()) <= 2.001

    def test_the_line_of_sight_is_that_of_free_space(self, city: str) -> None:
        """Where a path is as long as the way to the site; one that grazes an edge has lost 6 dB."""
        for band in ("3.5ghz", "28ghz"):
            walks = load_walks(city, band)
            way_m = walks.site_position_m[:, None, None].double() - walks.antenna_m
            away_m = way_m.norm(dim=-1, keepdim=True)
            straight = (walks.paths.delay_s * LIGHT_M_PER_S - away_m).abs() < 1e-3
            free_space = (LIGHT_M_PER_S / walks.carrier_hz / (4 * math.pi * away_m)).square()
            loss = walks.paths.power / free_space
            sees = straight & (loss > 0.5)
            assert torch.equal(walks.paths.power > 0, walks.track >= 0)
            assert 0.02 < float(sees.any(-1).double().mean()) < 0.4
            assert float((loss[sees] - 1).abs().max()) < 0.03
            cosine = (unit(walks.paths.arrival.double()) * (way_m / away_m)[..., None, :]).sum(-1)
            assert float(cosine[sees].min()) > 1 - 1e-6

    def test_power_is_that_of_the_map(self, city: str) -> None:
        """Of every sector, with its element, against the gains that ship: another solver."""
        walks, scene = load_walks(city, "3.5ghz"), load(city)
        paths = walks.paths.of(walks.cell_site)
        of_link = paths.delay_s.shape[:-1]
        field, _ = response(
            Panel(1, 1, element="38.901"),
            paths.departure,
            walks.bearing_rad[:, None, None].expand(of_link),
            walks.tilt_rad[:, None, None].expand(of_link),
        )
        arrives = (paths.gain * field[..., 0, None, :]).sum(-1).abs().square().sum((-2, -1))
        mapped_db = gain_db(scene, walks.position_m).movedim(-1, 0)
        for low, high, middle_db, width_db in ((-95, 0, 1.5, 4), (-115, -95, 2.5, 10)):
            chosen = (mapped_db > low) & (mapped_db <= high)
            off_db = 10 * torch.log10(arrives[chosen] + 1e-20) - mapped_db[chosen]
            assert abs(float(off_db.median())) < middle_db
            assert float(off_db.quantile(0.75) - off_db.quantile(0.25)) < width_db
