import math
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scenes import small_scene
from scipy.interpolate import RegularGridInterpolator

from defiance.errors import DefianceError
from defiance.scene import gain_db, load, median_filtered, names, npz, save, xn_table
from defiance.scene.streets import largest_part

GAINS = arrays.arrays(np.float32, (3, 6, 8), elements=st.floats(-200, 20, width=32))


@pytest.fixture(scope="module")
def scene_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("scene") / "small.npz"
    save(small_scene(), path)
    return path.read_bytes()


@given(GAINS)
def test_a_saved_scene_comes_back_within_a_hundredth_of_a_db(tmp_path_factory, gains):
    path = tmp_path_factory.mktemp("scene") / "s.npz"
    scene = small_scene(gain_db=gains)
    save(scene, path)
    back = load(path)
    torch.testing.assert_close(back.path_gain_db, scene.path_gain_db, atol=0.0051, rtol=0)
    for field in ("outdoor", "site_position_m", "cell_site", "azimuth_deg", "tilt_deg"):
        assert torch.equal(getattr(back, field), getattr(scene, field))
    for field in ("name", "origin_m", "resolution_m", "carrier_hz", "attribution"):
        assert getattr(back, field) == getattr(scene, field)


def test_saving_where_one_cannot_write_is_one_clear_error_and_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(DefianceError, match="cannot write taken"):
        save(small_scene(), tmp_path / "taken")
    assert os.listdir(tmp_path) == ["taken"]


def test_gains_that_do_not_fit_the_file_are_refused(tmp_path):
    with pytest.raises(DefianceError, match="327 dB"):
        save(small_scene(gain_db=np.full((3, 6, 8), -400.0, np.float32)), tmp_path / "s.npz")


def test_an_unknown_city_names_the_closest():
    with pytest.raises(DefianceError, match="did you mean munich"):
        load("munch")
    with pytest.raises(DefianceError, match="known are florence, munich"):
        load("somewhere.npz")


@given(st.data())
def test_a_damaged_file_is_one_error_that_names_it(tmp_path_factory, scene_bytes, data):
    cut = data.draw(st.integers(0, len(scene_bytes)))
    flips = data.draw(
        st.lists(st.tuples(st.integers(0, len(scene_bytes) - 1), st.integers(1, 255)), max_size=3)
    )
    damaged = bytearray(scene_bytes)
    for place, bits in flips:
        damaged[place] ^= bits
    path = tmp_path_factory.mktemp("scene") / "damaged.npz"
    path.write_bytes(damaged[:cut])
    try:
        load(path)
    except DefianceError as error:
        assert "damaged.npz" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("content", [b"", b"not a zip file", pickle.dumps({"outdoor": 1})])
def test_what_is_no_scene_at_all_is_refused(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DefianceError, match=r"x\.npz: not a readable scene file"):
        load(tmp_path / "x.npz")


def test_pickled_objects_are_never_loaded(tmp_path, scene_bytes):
    rewritten(tmp_path / "x.npz", scene_bytes, outdoor=np.array([{}, 1], dtype=object))
    with pytest.raises(DefianceError, match=r"x\.npz"):
        load(tmp_path / "x.npz")


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, scene_bytes, monkeypatch):
    (tmp_path / "x.npz").write_bytes(scene_bytes)
    monkeypatch.setattr(npz, "MAX_FILE_BYTES", 500)
    with pytest.raises(DefianceError, match="unpacks to more"):
        load(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", np.array("other/1"), "format"),
        ("path_gain_cdb", np.zeros((6, 8), np.int16), r"path_gain_db has shape \[6, 8\]"),
        ("path_gain_cdb", np.zeros((3, 1, 8), np.int16), "2 x 2"),
        ("path_gain_cdb", np.zeros((3, 6, 8)), "wrong kind"),
        ("path_gain_cdb", np.zeros((4, 6, 8), np.int16), "cell_site"),
        ("outdoor", np.full((8, 6), True), "outdoor"),
        ("outdoor", np.full((6, 8), False), "false everywhere"),
        ("site_position_m", np.zeros((2, 2)), "site_position_m"),
        ("site_position_m", np.full((2, 3), np.nan), "site_position_m holds values that aren't finite"),
        ("cell_site", np.array([0, 1, 2]), "cell_site names a site outside 0 ... 1"),
        ("cell_site", np.array([0, 1, -1]), "cell_site names a site outside 0 ... 1"),
        ("azimuth_deg", np.array([0.0, np.inf, 0.0]), "azimuth_deg holds"),
        ("resolution_m", np.array(0.0), "resolution_m"),
        ("resolution_m", np.array([4.0, 4.0]), "x.npz"),
        ("carrier_hz", np.array(np.nan), "carrier_hz"),
        ("origin_m", np.array([0.0, np.nan]), "origin_m"),
        ("origin_m", np.array([0.0]), "origin_m"),
        ("name", None, "name is missing"),
    ],
)
def test_a_scene_with_a_wrong_entry_is_refused_by_name(tmp_path, scene_bytes, key, value, message):
    rewritten(tmp_path / "x.npz", scene_bytes, **{key: value})
    with pytest.raises(DefianceError, match=rf"x\.npz.*{message}|{message}"):
        load(tmp_path / "x.npz")


def rewritten(path: Path, scene_bytes: bytes, **changes: np.ndarray | None) -> None:
    path.write_bytes(scene_bytes)
    with np.load(path) as file:
        content = dict(file)
    content |= changes
    np.savez(path, **{key: value for key, value in content.items() if value is not None})


def test_gain_at_a_grid_point_is_its_entry_and_beyond_the_grid_that_of_the_border():
    scene = small_scene()
    points = torch.tensor([[-20.0, 10.0], [8.0, 30.0], [-12.0, 14.0], [-500.0, -500.0], [500.0, 500.0]])
    gain = gain_db(scene, points)
    places = [(0, 0), (5, 7), (1, 2), (0, 0), (5, 7)]
    for number, (row, col) in enumerate(places):
        torch.testing.assert_close(gain[number], scene.path_gain_db[:, row, col], atol=1e-4, rtol=0)


@given(GAINS, st.lists(st.tuples(st.floats(-20, 8), st.floats(10, 30)), min_size=1, max_size=8))
def test_gain_between_grid_points_is_bilinear(gains, points):
    grid = (10 + 4 * np.arange(6), -20 + 4 * np.arange(8))
    expected = RegularGridInterpolator(grid, gains.transpose(1, 2, 0))([(y, x) for x, y in points])
    gain = gain_db(small_scene(gain_db=gains), torch.tensor(points, dtype=torch.float64))
    np.testing.assert_allclose(gain, expected, atol=1e-3)


def test_xn_table_by_hand():
    distance_m, bearing_deg = xn_table(small_scene())
    torch.testing.assert_close(distance_m, torch.tensor([[0.0, 100.0], [100.0, 0.0]]))
    there = math.degrees(math.atan2(60, 80))  # 60 m east, 80 m north: 36.9 degrees clockwise from north
    torch.testing.assert_close(bearing_deg, torch.tensor([[0.0, there], [there + 180, 0.0]]))


def test_the_median_takes_out_single_outliers_and_keeps_edges():
    gains = np.full((3, 6, 8), -90.0, np.float32)
    gains[:, :, 4:] = -120.0  # a street corner
    spiked = gains.copy()
    spiked[0, 2, 2], spiked[1, 3, 5] = -60.0, -200.0
    smooth = median_filtered(small_scene(gain_db=spiked))
    assert torch.equal(smooth.path_gain_db, torch.from_numpy(gains))


@pytest.mark.parametrize("name", ["munich", "florence"])
class TestShippedCity:
    def test_has_seven_sites_of_three_sectors_on_a_square_kilometre(self, name):
        scene = load(name)
        assert name in names() and scene.name == name
        assert scene.path_gain_db.shape == (21, 250, 250) and scene.resolution_m == 4.0
        assert scene.cell_site.bincount().tolist() == [3] * 7
        assert "OpenStreetMap contributors" in scene.attribution
        distance_m, _ = xn_table(scene)
        nearest_m = (distance_m + 1e9 * torch.eye(7)).amin(1)
        assert 250 < nearest_m.min() and nearest_m.max() < 500
        assert ((scene.site_position_m[:, 2] > 20) & (scene.site_position_m[:, 2] < 45)).all()

    def test_covers_its_streets(self, name):
        scene = load(name)
        streets = torch.from_numpy(largest_part(scene.outdoor.numpy()))
        best = scene.path_gain_db.amax(0)[streets]
        assert -130 < best.quantile(0.05) and best.max() < -50
        assert (best > -138).float().mean() > 0.97  # 0 dB SNR at 44 dBm, 20 MHz, noise figure 7 dB
        assert scene.path_gain_db[:, streets].argmax(0).unique().numel() == 21

    def test_sectors_are_stronger_ahead_than_behind(self, name):
        scene = load(name)
        row, col = torch.nonzero(scene.outdoor, as_tuple=True)
        x_m = scene.origin_m[0] + col * scene.resolution_m
        y_m = scene.origin_m[1] + row * scene.resolution_m
        for cell in range(21):
            site = scene.site_position_m[scene.cell_site[cell]]
            east_m, north_m = x_m - site[0], y_m - site[1]
            turn = torch.rad2deg(torch.atan2(east_m, north_m)) - scene.azimuth_deg[cell]
            off_deg = ((turn + 180) % 360 - 180).abs()
            near = torch.hypot(east_m, north_m) < 250
            # A sector's own site: the other two look there with the same houses in between.
            ahead = scene.path_gain_db[:, row, col][:, near & (off_deg < 30)]
            siblings = scene.cell_site == scene.cell_site[cell]
            strongest = ahead.where(siblings[:, None], torch.tensor(-torch.inf)).argmax(0)
            assert (strongest == cell).float().mean() > 0.6  # by chance 0.33

    def test_the_filtered_map_is_close_but_smoother(self, name):
        scene = load(name)
        smooth = median_filtered(scene)

        def roughness(gain: torch.Tensor) -> float:
            return float(gain.diff(dim=-1).abs().mean())

        assert roughness(smooth.path_gain_db) < roughness(scene.path_gain_db)
        heard = scene.path_gain_db > -120
        assert (smooth.path_gain_db - scene.path_gain_db)[heard].abs().median() < 2

    def test_is_a_small_file(self, name):
        assert (Path(npz.__file__).parent / "data" / f"{name}.npz").stat().st_size < 4e6


def test_a_scene_checks_itself():
    with pytest.raises(DefianceError, match=r"outdoor is torch\.int64"):
        replace(small_scene(), outdoor=torch.ones(6, 8, dtype=torch.int64))
