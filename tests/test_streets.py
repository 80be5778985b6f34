import time

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scenes import blocks, small_scene
from scipy.ndimage import distance_transform_edt

from defiance.errors import DefianceError
from defiance.scene import load
from defiance.scene.streets import (
    GAITS,
    ROUTE_SPACING_M,
    held_out_streets,
    largest_part,
    routes,
    street_graph,
)

KINDS = list(GAITS)


def scene_of(outdoor, resolution_m=4.0):
    gain_db = np.full((3, *outdoor.shape), -90, np.float32)
    return small_scene(outdoor=outdoor, gain_db=gain_db, resolution_m=resolution_m)


def everywhere_on(paths, points=9):
    """Points densely along the straight lines between a route's points, [n, 2]."""
    share = np.linspace(0, 1, points)[:, None]
    return (paths[:, :-1, None] * (1 - share) + paths[:, 1:, None] * share).reshape(-1, 2)


def outside(scene, mask, positions_m, slack_m=1e-3):
    """Positions whose grid square, widened by what float32 can't tell, isn't in the mask."""
    inside = np.zeros(len(positions_m), bool)
    for shift in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        place = (positions_m + np.multiply(slack_m, shift) - scene.origin_m) / scene.resolution_m
        col, row = np.clip(np.rint(place).astype(int), 0, np.array(mask.shape)[::-1] - 1).T
        inside |= mask[row, col]
    return positions_m[~inside]


@given(
    arrays.arrays(np.bool_, st.tuples(st.integers(2, 14), st.integers(2, 14)), elements=st.booleans()),
    st.sampled_from(KINDS),
    st.sampled_from([2.0, 3.0, 4.0, 7.0]),
    st.integers(0, 1000),
)
def test_users_never_leave_the_streets(outdoor, kind, resolution_m, seed):
    if resolution_m < 4:
        outdoor = np.kron(outdoor, np.ones((2, 2), bool))
    assume(outdoor.any())
    scene = scene_of(outdoor, resolution_m)
    try:
        paths = routes(scene, kind, 5, 150.0, np.random.default_rng(seed))
    except DefianceError:
        assume(False)
    assert paths.shape == (5, 76, 2) and paths.dtype == np.float32
    assert outside(scene, outdoor, everywhere_on(paths)).size == 0
    step_m = np.linalg.norm(np.diff(paths, axis=1), axis=-1)
    assert step_m.max() < ROUTE_SPACING_M + 1e-3
    assert step_m.mean() > 0.7 * ROUTE_SPACING_M  # shorter only where the route bends between two points


def test_a_route_is_its_length_in_steps_of_two_metres():
    scene = scene_of(np.full((2, 200), True))
    paths = routes(scene, "pedestrian", 20, 1000.0, np.random.default_rng(3))
    step_m = np.linalg.norm(np.diff(paths, axis=1), axis=-1)
    assert paths.shape == (20, 501, 2)
    assert (np.abs(step_m - ROUTE_SPACING_M) < 1e-3).mean() > 0.9


def test_the_same_generator_gives_the_same_routes():
    scene = scene_of(blocks(40, 40, 10, 4))
    first = routes(scene, "car", 10, 400.0, np.random.default_rng(7))
    again = routes(scene, "car", 10, 400.0, np.random.default_rng(7))
    other = routes(scene, "car", 10, 400.0, np.random.default_rng(8))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_diagonal_step_needs_both_points_beside_it():
    outdoor = np.array([[True, False, True], [True, True, False], [False, True, True]])
    graph = street_graph(scene_of(outdoor), "pedestrian")
    degree = (graph.costs.toarray() > 0).sum(1)
    # The stairs (0,0)-(1,0)-(1,1)-(2,1)-(2,2); (0,2) hangs on a corner only.
    assert graph.node_cost.size == 5 and sorted(degree) == [1, 1, 2, 2, 2]


def test_open_ground_has_all_eight_neighbours_at_their_distance():
    graph = street_graph(scene_of(np.full((30, 30), True)), "pedestrian")
    costs = graph.costs.toarray()
    middle = 15 * 30 + 15
    assert graph.node_cost[middle] == 1.0
    np.testing.assert_allclose(np.sort(costs[middle][costs[middle] > 0]), [4.0] * 4 + [4.0 * 2**0.5] * 4)
    assert np.array_equal(costs, costs.T)


def test_a_trip_takes_the_shortest_way():
    outdoor = np.full((9, 21), False)
    outdoor[4, :] = True  # one straight street: every trip's steps go along it
    paths = routes(scene_of(outdoor), "pedestrian", 30, 60.0, np.random.default_rng(0))
    assert np.ptp(paths[..., 1]) < 1e-4 and np.ptp(paths[..., 0]) > 60


def test_vehicles_keep_to_wide_streets():
    outdoor = np.full((40, 80), True)
    outdoor[:, 20:60] = False  # two squares, 160 m apart
    outdoor[2:4, 20:60] = True  # joined by an alley, 8 m wide
    outdoor[30:, 20:60] = True  # and a boulevard, 40 m wide
    scene = scene_of(outdoor)
    through_alley = {}
    for kind in ("pedestrian", "car"):
        paths = routes(scene, kind, 60, 3000.0, np.random.default_rng(1))
        col, row = ((paths - scene.origin_m) / 4).transpose(2, 0, 1)
        between = (col > 20) & (col < 60)
        through_alley[kind] = (row[between] < 10).mean()
    assert through_alley["pedestrian"] > 2 * through_alley["car"]


def test_a_region_keeps_users_to_its_largest_part():
    outdoor = blocks(60, 60, 12, 4)
    region = np.full((60, 60), False)
    region[:30, :40] = True
    region[55:, 55:] = True
    scene = scene_of(outdoor)
    paths = routes(scene, "pedestrian", 20, 500.0, np.random.default_rng(2), region)
    allowed = largest_part(outdoor & region)
    assert allowed[:30, :40].sum() == allowed.sum()
    assert outside(scene, allowed, everywhere_on(paths)).size == 0


def test_streets_without_two_places_are_refused():
    outdoor = np.full((5, 5), False)
    outdoor[2, 2] = outdoor[3, 3] = True
    with pytest.raises(DefianceError, match="no two places"):
        routes(scene_of(outdoor), "car", 1, 10.0, np.random.default_rng(0))
    with pytest.raises(DefianceError, match="in the region"):
        routes(scene_of(np.full((5, 5), True)), "car", 1, 10.0, np.random.default_rng(0), outdoor)


def test_no_users_and_no_length_are_legal():
    scene = scene_of(np.full((5, 5), True))
    assert routes(scene, "car", 0, 100.0, np.random.default_rng(0)).shape == (0, 51, 2)
    assert routes(scene, "car", 3, 0.0, np.random.default_rng(0)).shape == (3, 1, 2)


def test_a_share_that_no_block_has_is_refused():
    with pytest.raises(DefianceError, match=r"about 0\.001"):
        held_out_streets(scene_of(blocks(100, 100, 12, 4)), 0.001)


@pytest.mark.parametrize("name", ["munich", "florence"])
class TestShippedCity:
    def test_routes_stay_outdoors_and_are_fast(self, name):
        scene = load(name)
        start = time.process_time()
        paths = {kind: routes(scene, kind, 200, 2000.0, np.random.default_rng(5)) for kind in KINDS}
        assert time.process_time() - start < 20  # about 1 s alone on a core
        clearance = {}
        for kind in KINDS:
            assert outside(scene, scene.outdoor.numpy(), everywhere_on(paths[kind], 5)).size == 0
            cells = np.rint((paths[kind].reshape(-1, 2) - scene.origin_m) / 4).astype(int)
            streets = largest_part(scene.outdoor.numpy())
            visited = np.unique(cells, axis=0).shape[0] / streets.sum()
            assert visited > 0.1  # trips spread over the city
            clearance[kind] = distance_transform_edt(scene.outdoor.numpy())[cells[:, 1], cells[:, 0]].mean()
        assert clearance["pedestrian"] < clearance["car"] < clearance["bus"]

    def test_held_out_streets_are_one_block_and_leave_the_rest_connected(self, name):
        scene = load(name)
        held_out = held_out_streets(scene)
        streets = largest_part(scene.outdoor.numpy())
        rest = streets & ~held_out
        assert np.array_equal(held_out, held_out_streets(load(name)))
        assert not (held_out & ~streets).any()
        assert 0.1 < held_out.sum() / streets.sum() < 0.3
        assert largest_part(held_out).sum() > 0.9 * held_out.sum()
        assert largest_part(rest).sum() > 0.9 * rest.sum()

    def test_training_and_held_out_routes_share_no_place(self, name):
        scene = load(name)
        held_out = held_out_streets(scene)
        training = routes(scene, "car", 50, 1000.0, np.random.default_rng(1), ~held_out)
        unseen = routes(scene, "car", 50, 1000.0, np.random.default_rng(1), held_out)
        assert outside(scene, scene.outdoor.numpy() & ~held_out, everywhere_on(training)).size == 0
        assert outside(scene, held_out, everywhere_on(unseen)).size == 0
