import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scenes import blocks

from defiance.errors import DefianceError
from defiance.scene.sites import (
    Sector,
    Terrain,
    read_sites,
    relative_power_db,
    rooftop_sites,
    strongest_dbm,
)

HEADER = "name,x_m,y_m,height_m,azimuth_deg,tilt_deg\n"
FULL = HEADER[:-1] + ",power_dbm,carrier_mhz,cell\n"


@pytest.fixture
def plan(tmp_path):
    return tmp_path / "sites.csv"


def test_a_site_plan_is_read_row_by_row(plan):
    plan.write_text(
        HEADER + "town hall, 10, -20.5, 30, 0, 8\ntown hall,10,-20.5,30,120,8\n\nschool,200,0,25,90,-2\n"
    )
    assert read_sites(plan) == (
        Sector("town hall", 10.0, -20.5, 30.0, 0.0, 8.0),
        Sector("town hall", 10.0, -20.5, 30.0, 120.0, 8.0),
        Sector("school", 200.0, 0.0, 25.0, 90.0, -2.0),
    )


def test_columns_may_come_in_any_order_among_others(plan):
    plan.write_text("tilt_deg,owner,name,x_m,y_m,height_m,azimuth_deg\n6,me,a,1,2,3,4\n")
    assert read_sites(plan) == (Sector("a", 1.0, 2.0, 3.0, 4.0, 6.0),)


def test_power_carrier_and_cell_may_be_told(plan):
    plan.write_text(FULL + "a,1,2,3,4,5,46,3500,87761409\nb,9,2,3,4,5,40,3500,87761410\n")
    sectors = read_sites(plan)
    assert sectors[0] == Sector("a", 1.0, 2.0, 3.0, 4.0, 5.0, 46.0, 3500.0, 87761409)
    assert relative_power_db(sectors) == [0.0, -6.0] and strongest_dbm(sectors) == 46.0
    plan.write_text(HEADER + "a,1,2,3,4,5\n")
    assert relative_power_db(read_sites(plan)) == [0.0] and strongest_dbm(read_sites(plan)) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "row 1: no column name"),
        ("name,x_m,y_m,height_m,azimuth_deg\n", "row 1: no column tilt_deg"),
        (HEADER, "holds no sector"),
        (HEADER + "a,1,2,3,4,5\nb,1,2,high,4,5\n", "row 3, column height_m: 'high' is not a number"),
        (HEADER + "a,1,2,3,4,\n", "row 2, column tilt_deg: '' is not a number"),
        (HEADER + "a,nan,2,3,4,5\n", "row 2, column x_m: nan is not within"),
        (HEADER + "a,1,2,3,4,95\n", "row 2, column tilt_deg: 95 is not within -90 ... 90"),
        (HEADER + ",1,2,3,4,5\n", "row 2, column name: is empty"),
        (FULL + "a,1,2,3,4,5,46,3500,7.5\n", "row 2, column cell: 7.5 is not a whole number"),
        (FULL + "a,1,2,3,4,5,,3500,7\n", "row 2, column power_dbm: '' is not a number"),
        (
            FULL + "a,1,2,3,4,5,46,3500,7\na,1,2,3,90,5,46,700,8\n",
            "row 3, column carrier_mhz: 700, but the first row has 3500",
        ),
        (
            FULL + "a,1,2,3,4,5,46,700,7\na,1,2,3,90,5,46,700,7\n",
            "row 3, column cell: 7 is in an earlier row",
        ),
        (HEADER + "a,1,2,3,4,5\na,1,9,3,4,5\n", "row 3, column y_m: site a has 2 in an earlier row"),
    ],
)
def test_a_faulty_plan_is_one_line_naming_file_row_and_column(plan, text, message):
    plan.write_text(text)
    with pytest.raises(DefianceError) as error:
        read_sites(plan)
    assert message in str(error.value) and "sites.csv" in str(error.value) and "\n" not in str(error.value)


def test_an_absent_or_binary_plan_is_refused(plan):
    with pytest.raises(DefianceError, match=r"sites\.csv: cannot be read"):
        read_sites(plan)
    plan.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DefianceError, match=r"sites\.csv, row 1: not text in UTF-8"):
        read_sites(plan)


@given(st.text(max_size=60))
@example('"')
@example("a,1,2,3,4,5,6,7\r\n")
def test_no_text_gets_past_the_reader(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("sites") / "sites.csv"
    path.write_text(HEADER + text, encoding="utf-8", errors="replace")
    try:
        assert all(-90 <= sector.tilt_deg <= 90 for sector in read_sites(path))
    except DefianceError as error:
        assert "sites.csv" in str(error)


def city_of_blocks(side: int = 500, height_m: float = 20.0) -> Terrain:
    """Square houses of 40 m with streets of 20 m between them, on a hill of 7 m; a spire in the middle."""
    at = (np.arange(side) - (side - 1) / 2) * 2.0
    ground_m = np.full((side, side), 7.0)
    top_m = ground_m + np.where(blocks(side, side, 30, 10), 0.0, height_m)
    top_m[side // 2 + 5, side // 2 + 5] = 90.0
    return Terrain(at, at, ground_m, top_m)


def test_sites_stand_on_roofs_beside_streets_near_a_hexagon():
    terrain = city_of_blocks()
    sectors = rooftop_sites(terrain)
    assert len(sectors) == 21
    sites = sectors[::3]
    for number, sector in enumerate(sites):
        row, col = terrain.nearest(sector.x_m, sector.y_m)
        assert not terrain.open_sky[row, col]
        assert terrain.open_sky[row - 2 : row + 3, col - 2 : col + 3].any()  # the street is within 4 m
        assert sector.height_m == 20.0 + 10.0  # the mast above the roof, above the ground; never the spire
        expected_m = 0.0 if number == 0 else 0.4 * 998
        assert np.hypot(sector.x_m, sector.y_m) == pytest.approx(expected_m, abs=61)
    assert [sector.azimuth_deg for sector in sectors[:3]] == [30.0, 150.0, 270.0]


def test_a_square_in_the_middle_gets_the_nearest_roof():
    terrain = city_of_blocks()
    middle = np.hypot(*np.meshgrid(terrain.x_m, terrain.y_m)) < 120
    top_m = np.where(middle, terrain.ground_m, terrain.top_m)
    first = rooftop_sites(Terrain(terrain.x_m, terrain.y_m, terrain.ground_m, top_m))[0]
    assert np.hypot(first.x_m, first.y_m) == pytest.approx(120, abs=5)


@pytest.mark.parametrize("houses", [0, 1])
def test_a_scene_without_enough_roofs_asks_for_a_plan(houses):
    at = np.arange(100) * 2.0
    top_m = np.zeros((100, 100))
    top_m[50, 50] = 20.0 * houses
    with pytest.raises(DefianceError, match="--sites"):
        rooftop_sites(Terrain(at, at, np.zeros((100, 100)), top_m))
