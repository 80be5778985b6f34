import sys

import numpy as np
import pytest
import torch

from defiance.errors import DefianceError
from defiance.scene import trace as tracing
from defiance.scene.trace import find_llvm, trace

PLAN = "name,x_m,y_m,height_m,azimuth_deg,tilt_deg\n"


@pytest.fixture
def llvm_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "LLVM_PLACES", (f"{tmp_path}/*/libLLVM*",))
    return tmp_path


@pytest.mark.parametrize(
    ("files", "newest"),
    [
        ([], None),
        (["a/libLLVM-14.so.1", "a/libLLVM-15.so"], None),
        (["a/libLLVM-15.so.1", "a/libLLVM.so.19.1", "a/libLLVM-16.so"], "a/libLLVM.so.19.1"),
        (["llvm-18/libLLVM.so", "llvm-9/libLLVM.so"], "llvm-18/libLLVM.so"),
        (["llvm@20/libLLVM.dylib"], "llvm@20/libLLVM.dylib"),
        (["a/libLLVM.dylib"], None),
    ],
)
def test_the_newest_usable_llvm_is_found(llvm_folder, files, newest):
    for name in files:
        (llvm_folder / name).parent.mkdir(exist_ok=True)
        (llvm_folder / name).touch()
    assert find_llvm() == (str(llvm_folder / newest) if newest else None)


def test_an_unversioned_library_has_the_version_that_it_links_to(llvm_folder):
    (llvm_folder / "Cellar").mkdir()
    (llvm_folder / "opt").mkdir()
    (llvm_folder / "Cellar" / "libLLVM.so.21.1").touch()
    (llvm_folder / "opt" / "libLLVM.so").symlink_to(llvm_folder / "Cellar" / "libLLVM.so.21.1")
    assert find_llvm() is not None


def test_without_llvm_or_cuda_the_error_says_how_to_get_it(llvm_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("DRJIT_LIBLLVM_PATH", raising=False)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(DefianceError, match="apt-get install libllvm19"):
        trace("munich", None, tmp_path / "x.npz")


def test_without_sionna_rt_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DRJIT_LIBLLVM_PATH", "/somewhere/libLLVM.so")
    monkeypatch.setitem(sys.modules, "sionna", None)
    monkeypatch.setitem(sys.modules, "sionna.rt", None)
    with pytest.raises(DefianceError, match=r"pip install 'defiance-ran\[rt\]'"):
        trace("munich", None, tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"resolution_m": 0.0}, "resolution_m is 0, not within"),
        ({"samples_per_tx": 0}, "samples_per_tx is 0"),
        ({"max_depth": -1}, "max_depth is -1"),
        ({"extent_m": float("nan")}, "extent_m is nan"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_senseless_numbers_are_refused_before_anything_is_loaded(tmp_path, wrong, message):
    with pytest.raises(DefianceError, match=message):
        trace("munich", None, tmp_path / "x.npz", **wrong)


def test_a_place_that_cannot_be_written_is_refused_before_tracing(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DefianceError, match=r"x\.npz: can't be written"):
        trace("munich", None, tmp_path / "file" / "x.npz")
    with pytest.raises(DefianceError, match="is a folder"):
        trace("munich", None, tmp_path)


def test_open_places_are_averaged_in_power_and_houses_filled_from_the_street():
    gain = np.array([[1e-9, 3e-9, 7.0, 7.0], [1e-9, 7.0, 7.0, 7.0]])
    open_places = np.array([[True, True, False, False], [True, False, False, False]])
    filled = tracing._average_db(gain, open_places, np.array([[True, False]]))
    np.testing.assert_allclose(filled, 10 * np.log10(5e-9 / 3))
    silent = tracing._average_db(np.zeros((2, 4)), open_places, np.array([[True, False]]))
    np.testing.assert_allclose(silent, -200.0)


def element_gain_db(off_azimuth_deg, zenith_deg):
    """TR 38.901 table 7.3-1."""
    vertical = np.minimum(12 * ((zenith_deg - 90) / 65) ** 2, 30)
    horizontal = np.minimum(12 * (off_azimuth_deg / 65) ** 2, 30)
    return 8 - np.minimum(vertical + horizontal, 30)


def test_line_of_sight_is_free_space_and_the_element_pattern(sionna_rt, tmp_path):
    """A scene file of the user's own; the second sector has 6 dB less power, the carrier is 2 GHz."""
    plan = PLAN[:-1] + ",power_dbm,carrier_mhz\nmast,0,0,40,90,0,46,2000\nmast,0,0,40,0,0,40,2000\n"
    (tmp_path / "sites.csv").write_text(plan)
    out = tmp_path / "canyon.npz"
    done = []
    scene = trace(
        str(sionna_rt.scene.simple_street_canyon),
        tmp_path / "sites.csv",
        out,
        samples_per_tx=400_000,
        max_depth=0,
        extent_m=120,
        progress=lambda *step: done.append(step),
    )
    assert done == [(0, 2), (1, 2), (2, 2)]
    assert scene.cell_site.tolist() == [0, 0] and scene.carrier_hz == 2e9
    torch.testing.assert_close(scene.site_position_m, torch.tensor([[0.0, 0.0, 40.0]]), atol=0.1, rtol=0)
    rows, cols = torch.meshgrid(*(torch.arange(n) for n in scene.outdoor.shape), indexing="ij")
    east_m = (scene.origin_m[0] + cols * scene.resolution_m).numpy()
    north_m = (scene.origin_m[1] + rows * scene.resolution_m).numpy()
    down_m = 40.0 - 1.5
    distance_m = np.sqrt(east_m**2 + north_m**2 + down_m**2)
    free_space_db = 20 * np.log10(299_792_458 / 2e9 / (4 * np.pi * distance_m))
    zenith_deg = 90 + np.rad2deg(np.arcsin(down_m / distance_m))
    for cell, azimuth_deg in enumerate((90.0, 0.0)):
        off_deg = (np.rad2deg(np.arctan2(east_m, north_m)) - azimuth_deg + 180) % 360 - 180
        expected_db = free_space_db + element_gain_db(off_deg, zenith_deg) - 6.0 * cell
        traced_db = scene.path_gain_db[cell].numpy()
        seen = scene.outdoor.numpy() & (traced_db > -150) & (np.hypot(east_m, north_m) > 8)
        assert seen.sum() > 100
        error_db = traced_db[seen] - expected_db[seen]
        # Places half in a house's shadow are weaker.
        assert abs(np.median(error_db)) < 0.1 and np.quantile(np.abs(error_db), 0.75) < 1.0


def test_a_city_with_a_site_inside_a_house_or_off_the_map_is_refused(sionna_rt, tmp_path):
    plan = tmp_path / "sites.csv"
    plan.write_text(PLAN + "deep,-60,-35,5,0,0\n")
    with pytest.raises(DefianceError, match="inside a building"):
        trace("simple_street_canyon", plan, tmp_path / "x.npz", extent_m=120)
    plan.write_text(PLAN + "far,3000,30,1,0,0\n")
    with pytest.raises(DefianceError, match="off the traced area"):
        trace("simple_street_canyon", plan, tmp_path / "x.npz", extent_m=120)
    with pytest.raises(DefianceError, match="no such scene; Sionna RT has .*munich"):
        trace("atlantis", None, tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
