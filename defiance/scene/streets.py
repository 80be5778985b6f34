"""The streets of a scene, and how people move in them: shortest paths between random destinations."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, label
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from defiance.errors import DefianceError
from defiance.scene.city import Scene

Kind = Literal["pedestrian", "bus", "car"]
Mask = NDArray[np.bool_]

ROUTE_SPACING_M = 2.0
DESTINATIONS = 64  # each costs one run of Dijkstra's algorithm
TILE_M = 150.0  # streets are held out in whole tiles
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # (row, column) steps; the other four are their reverses


@dataclass(frozen=True)
class Gait:
    """What streets cost: beside a wall a metre costs `1 + reluctance`, from `wide_m` away on it costs 1."""

    wide_m: float
    reluctance: float


# Walkers go anywhere but don't rub along walls; vehicles keep to the middle of wide streets.
GAITS: dict[Kind, Gait] = {"pedestrian": Gait(4.0, 1.0), "car": Gait(10.0, 8.0), "bus": Gait(14.0, 16.0)}


@dataclass(frozen=True)
class StreetGraph:
    """Grid points that users can reach from each other.

    Attributes:
        centre_m: float64 [nodes, 2], the points' places (x, y).
        node_cost: float64 [nodes], cost of a metre there.
        costs: sparse [nodes, nodes], cost of the step between neighbours, the same both ways.
    """

    centre_m: NDArray[np.float64]
    node_cost: NDArray[np.float64]
    costs: csr_array


@dataclass(frozen=True)
class Ways:
    """Destinations and the ways to them.

    Attributes:
        graph: of the streets.
        appeal: float64 [nodes], probability that a trip starts at, or leads to, a node.
        places: int64 [destinations], their nodes.
        towards: int32 [destinations, nodes]; from node n the way to destination d goes on to towards[d, n].
    """

    graph: StreetGraph
    appeal: NDArray[np.float64]
    places: NDArray[np.integer[Any]]
    towards: NDArray[np.integer[Any]]


def routes(
    scene: Scene,
    kind: Kind,
    users: int,
    length_m: float,
    generator: np.random.Generator,
    region: Mask | None = None,
) -> NDArray[np.float32]:
    """Draw routes: trip after trip along cheapest paths between random destinations.

    Every straight line between two consecutive points of a route lies inside the outdoor mask, and inside
    the region if one is given.

    Args:
        scene: the city.
        kind: who moves; see `GAITS`.
        users: number of routes.
        length_m: length of each.
        generator: source of starts and destinations.
        region: bool [rows, cols], keeps users to the largest connected part of the streets in it.

    Returns:
        float32 [users, points, 2], places (x, y) every `ROUTE_SPACING_M` along the route, the first one the
        start.

    Raises:
        DefianceError: the streets, or those in the region, aren't even two neighbouring grid points.
    """
    return along(ways(scene, kind, generator, region), users, length_m, generator)


def ways(scene: Scene, kind: Kind, generator: np.random.Generator, region: Mask | None = None) -> Ways:
    """Draw destinations, and find the cheapest way to each of them; what `routes` takes its time for."""
    graph = street_graph(scene, kind, region)
    nodes = graph.node_cost.size
    appeal = graph.node_cost**-2.0
    appeal /= appeal.sum()
    places = generator.choice(nodes, min(DESTINATIONS, nodes), replace=False, p=appeal)
    _, towards = dijkstra(graph.costs, indices=places, return_predecessors=True)
    return Ways(graph, appeal, places, towards)


def along(found: Ways, users: int, length_m: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """Draw routes between destinations that were drawn before; see `routes`."""
    graph, places, towards = found.graph, found.places, found.towards
    here: NDArray[np.integer[Any]] = generator.choice(len(found.appeal), users, p=found.appeal)
    destination = generator.integers(places.size, size=users)
    walked, turns = [graph.centre_m[here]], [np.full(users, True)]
    length = np.zeros(users)
    # The smoothing below shortens a path, at worst (stairs of right angles) to 1 / sqrt(2).
    while length.min(initial=np.inf) < 1.5 * length_m + 4 * ROUTE_SPACING_M:
        arrived = here == places[destination]
        # Another one than the present: skip ahead by 1 ... places - 1.
        onward = (destination + generator.integers(1, places.size, size=users)) % places.size
        destination = np.where(arrived, onward, destination)
        here = towards[destination, here]
        walked.append(graph.centre_m[here])
        turns.append(here == places[destination])
        length += np.hypot(*(walked[-1] - walked[-2]).T)
    paths = _smoothed(np.stack(walked, 1), np.stack(turns, 1))
    along_m = np.arange(int(length_m / ROUTE_SPACING_M) + 1, dtype=np.float64) * ROUTE_SPACING_M
    drawn = np.empty((users, along_m.size, 2), np.float32)
    for route, path in zip(drawn, paths, strict=True):
        route[:] = _at(path, along_m)
    return drawn


def street_graph(scene: Scene, kind: Kind, region: Mask | None = None) -> StreetGraph:
    """Connect the grid points of the largest connected part of the streets, diagonals included.

    A diagonal step needs both points beside it, so that no path cuts a house's corner. Grids finer than
    twice the spacing of routes are first coarsened to it, a point being kept if all it stands for is outdoor.

    Raises:
        DefianceError: the streets, or those in the region, aren't even two neighbouring grid points.
    """
    allowed = scene.outdoor.numpy() if region is None else scene.outdoor.numpy() & region
    coarser = int(np.ceil(2 * ROUTE_SPACING_M / scene.resolution_m - 1e-6))
    spacing_m = coarser * scene.resolution_m
    first_m = np.array(scene.origin_m) + (coarser - 1) / 2 * scene.resolution_m
    mask = largest_part(_coarsened(allowed, coarser))
    if mask.sum() < 2:
        raise DefianceError(
            f"scene {scene.name}: its streets (in the region asked for) hold no two places to go"
        )
    clearance_m = distance_transform_edt(np.pad(_coarsened(scene.outdoor.numpy(), coarser), 1))[1:-1, 1:-1]
    clearance_m = (clearance_m - 0.5) * spacing_m
    gait = GAITS[kind]
    cost = 1.0 + gait.reluctance * np.clip(1.0 - clearance_m / gait.wide_m, 0.0, 1.0)

    number = np.cumsum(mask).reshape(mask.shape) - 1
    rows, cols = np.nonzero(mask)
    step_from, step_to, step_cost = [], [], []
    padded = np.pad(mask, 1)
    for up, right in NEIGHBOURS:
        there = padded[rows + 1 + up, cols + 1 + right]
        there &= padded[rows + 1 + up, cols + 1] & padded[rows + 1, cols + 1 + right]
        row, col = rows[there], cols[there]
        step_from.append(number[row, col])
        step_to.append(number[row + up, col + right])
        mean_cost = (cost[row, col] + cost[row + up, col + right]) / 2
        step_cost.append(mean_cost * float(np.hypot(up, right)) * spacing_m)
    ahead, back, value = np.concatenate(step_from), np.concatenate(step_to), np.concatenate(step_cost)
    both_ways = (np.concatenate([ahead, back]), np.concatenate([back, ahead]))
    costs = csr_array((np.concatenate([value, value]), both_ways), shape=(rows.size, rows.size))
    return StreetGraph(np.stack([cols, rows], 1) * spacing_m + first_m, cost[mask], costs)


def largest_part(mask: Mask) -> Mask:
    """Return the largest part of a mask in which all points hang together by their sides."""
    labels, parts = label(mask)
    if parts == 0:
        return mask
    return np.asarray(labels == 1 + np.bincount(labels.ravel())[1:].argmax())


def held_out_streets(scene: Scene, share: float = 0.2) -> Mask:
    """Choose streets that training never enters: one block of tiles, the same on every call.

    Of all blocks of `TILE_M` tiles (sides differing by one at most) that hold about `share` of the streets,
    it is the one in which, and around which, streets hang together best; among equals, the one nearest to
    the middle.

    Args:
        scene: the city.
        share: of all street points, within (0, 1).

    Returns:
        bool [rows, cols]; train on `scene.outdoor & ~held_out`.

    Raises:
        DefianceError: no block holds about (half to one and a half times) that share.
    """
    streets = largest_part(scene.outdoor.numpy())
    rows, cols = streets.shape
    tile = max(1, round(TILE_M / scene.resolution_m))
    candidates = []
    for low in range(0, rows, tile):
        for high in range(low + tile, rows + tile, tile):
            for left in range(0, cols, tile):
                for right in range(left + high - low - tile, left + high - low + 2 * tile, tile):
                    inside = np.zeros_like(streets)
                    inside[low:high, left:right] = streets[low:high, left:right]
                    misses = abs(inside.sum() / streets.sum() / share - 1)
                    if misses > 0.5:
                        continue
                    connected = _connected_share(inside) * _connected_share(streets & ~inside)
                    middle = np.hypot((low + high) / 2 - rows / 2, (left + right) / 2 - cols / 2)
                    candidates.append((round(connected - misses, 2), -middle, inside))
    if not candidates:
        raise DefianceError(
            f"scene {scene.name}: no block of streets holds about {share:g} of them; trace a larger area"
        )
    return max(candidates, key=lambda candidate: candidate[:2])[2]


def _connected_share(mask: Mask) -> float:
    """Share of a mask's points that belong to its largest part."""
    return float(largest_part(mask).sum() / max(mask.sum(), 1))


def _coarsened(mask: Mask, block: int) -> Mask:
    """Return which blocks of `block` x `block` points are all true; an incomplete one at the border isn't."""
    rows, cols = (size // block for size in mask.shape)
    return np.asarray(mask[: rows * block, : cols * block].reshape(rows, block, cols, block).all((1, 3)))


def _smoothed(path: NDArray[np.float64], turns: Mask) -> NDArray[np.float64]:
    """Round off paths [users, steps, 2] on a grid with the weights 1/4, 1/2, 1/4, but where they turn.

    A smoothed point stays in the square around its grid point, and the squares of two neighbours, with the
    two beside a diagonal step, form a convex area: a smoothed path never leaves the streets. Ends of trips
    (`turns`, bool [users, steps]) keep their place, or going to and fro would shrink to nothing.
    """
    smooth = path.copy()
    smooth[:, 1:-1] = (path[:, :-2] + 2 * path[:, 1:-1] + path[:, 2:]) / 4
    return np.where(turns[..., None], path, smooth)


def _at(path: NDArray[np.float64], along_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places [points, 2] at distances along_m [points] along a path [steps, 2]."""
    walked_m = np.concatenate([[0.0], np.hypot(*np.diff(path, axis=0).T).cumsum()])
    return np.stack([np.interp(along_m, walked_m, path[:, axis]) for axis in (0, 1)], 1)
