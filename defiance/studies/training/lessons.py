"""What the stations of a city learn of each network function, and by what it is judged.

A function is a model, its loss, and samples that belong to stations: users (of handover) or whole walks (of
beams and channel feedback) train, choose the best round, or judge it, and none does two of them. What a model
loses is in every function a share: of the variance of hindsight values, of the best beam's power, of the
precoder's; performance is one less it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from defiance.control.beam_learning import lost_db, node_loss, scores, soft_loss
from defiance.control.csi.networks import Network, pictures
from defiance.control.csi.targets import SUBBANDS, spatial_basis
from defiance.control.experience import ValueModel, initial_parameters, perceptron, slots, value_loss
from defiance.control.handover import HISTORY
from defiance.learn.partition import LocalData
from defiance.learn.training import Parameters
from defiance.meter import operations_of_loss
from defiance.parts import Parts
from defiance.scene.paths import load_walks
from defiance.seeding import Stream, stream
from defiance.studies.beams import experiments as beams
from defiance.studies.beams.channels import beam_gain_db, draw_users, walks_of
from defiance.studies.beams.settings import FULL as BEAMS
from defiance.studies.csi.costs import SAMPLE_BITS as CSI_BITS
from defiance.studies.csi.costs import training_step
from defiance.studies.csi.data import precoders
from defiance.studies.csi.settings import FULL as CSI
from defiance.studies.training.settings import Config, Function
from defiance.studies.worth.settings import QUICK as WORTH
from defiance.studies.worth.settings import Scenario
from defiance.studies.worth.training import recording
from defiance.studies.worth.worlds import scene_of

SHARES = (0.7, 0.85)
"""Of users or walks: so many train, more up to the second share choose, the rest judges."""
APART = 3
"""Of measurements of one user, the first of so many is kept: neighbours in time are almost the same."""
RSRP_BITS = 7
"""Of a reported power (TS 38.133 clause 10.1.6.1)."""
CSI_FEEDBACK_BITS = 64


@dataclass(frozen=True)
class Lesson:
    """One function, ready to be trained on stations.

    Attributes:
        initial: random weights of one node, `[1, ...]`.
        loss: of every node, `[nodes]`, from weights `[nodes, ...]` and a batch `[nodes, batch, ...]`.
        lost: what is judged, of the same shapes.
        own, choosing, judging: samples of every station; the last column is the station that they are from.
        step: operations of one station's optimiser step, from one node's weights and the batch's size.
        distance_m: between stations, `[nodes, nodes]`.
        sample_bits: of one sample that is sent as it was measured.
        scenario: the sheet's name for it.
    """

    initial: Callable[[Stream], Parameters]
    loss: Callable[[Parameters, tuple[Tensor, ...]], Tensor]
    lost: Callable[[Parameters, tuple[Tensor, ...]], Tensor]
    own: LocalData
    choosing: LocalData
    judging: LocalData
    step: Callable[[Parameters, int], float]
    distance_m: Tensor
    sample_bits: int
    scenario: str

    @property
    def nodes(self) -> int:
        """How many stations."""
        return len(self.own.count)


@lru_cache(maxsize=4)
def lesson(config: Config, function: Function, seed: int, parts: Parts, *, later: bool = False) -> Lesson:
    """What a city's stations learn of a function.

    It is recorded once, and kept in `parts`; the seed draws who trains, who chooses and who judges.

    Args:
        config: of the study.
        function: which.
        seed: of the split.
        parts: where recordings are kept.
        later: handover at the rush hour.
    """
    kept = recorded(config, function, parts, later=later)
    columns = [kept[str(i)] for i in range(len(kept) - 1)]
    group = kept["group"]
    order = torch.randperm(int(group.max()) + 1, generator=stream(seed, "training", "split").generator())
    edges = [round(share * len(order)) for share in (0, *SHARES, 1)]
    own, choosing, judging = (
        _at_stations(columns, torch.isin(group, order[first:last]))
        for first, last in zip(edges[:-1], edges[1:], strict=True)
    )
    make = {"handover": _handover_lesson, "beams": _beams_lesson, "csi": _csi_lesson}[function]
    return make(config, own, choosing, judging, later)


def recorded(config: Config, function: Function, parts: Parts, *, later: bool = False) -> dict[str, Tensor]:
    """Inputs, targets, ... and stations of all samples, named by number, and the `group` of each."""
    key = f"recorded/{function}{'/later' if later else ''}"
    kept = parts.get_tensors(key)
    if kept is None:
        records: dict[Function, Callable[[Config], tuple[Tensor, ...]]] = {
            "handover": partial(_handover, later=later),
            "beams": _beams,
            "csi": _csi,
        }
        *columns, group = records[function](config)
        kept = {**{str(i): column for i, column in enumerate(columns)}, "group": group}
        parts.put_tensors(key, kept)
    return kept


def _at_stations(columns: list[Tensor], some: Tensor) -> LocalData:
    """Samples of some, by station; a station that none of them was at takes all of theirs."""
    station = columns[-1]
    nodes = []
    for number in station.unique().tolist():
        mine = some & (station == number)
        mine = mine if bool(mine.any()) else some
        nodes.append([column[mine] for column in columns])
    return LocalData.of(nodes)


def _perceptron_step(
    loss: Callable[[Tensor, Tensor], Tensor], *shapes: tuple[int, ...]
) -> Callable[[Parameters, int], float]:
    """Operations of a perceptron's step, of samples of these shapes: inputs, targets."""

    def of(start: Parameters, batch: int) -> float:
        given = [torch.empty(1, batch, *shape) for shape in shapes]
        counted = operations_of_loss(lambda w, x, y: loss(perceptron(w, x), y), start, given)
        return float(counted.training_step.total)

    return of


# --- handover -----------------------------------------------------------------------------------------------


def _worth(config: Config) -> Any:
    training = replace(WORTH.training, worlds=config.worlds, users=config.users, duration_s=config.duration_s)
    return replace(WORTH, scene=config.scene, training=training)


def _scenario(config: Config, later: bool) -> Scenario:
    speed_kmh, load = (
        (config.later_speed_kmh, config.later_load) if later else (config.speed_kmh, config.load)
    )
    return Scenario(config.city("handover"), speed_kmh, load, "raw")


def _handover(config: Config, *, later: bool) -> tuple[Tensor, ...]:
    """Histories, values, stations, and users."""
    worth, scenario = _worth(config), _scenario(config, later)
    experience = recording(worth, "device", scenario)
    times, who = experience.samples(torch.arange(experience.rsrp_dbm.shape[1]))
    times, who = times[times % APART == 0], who[times % APART == 0]
    history, value = experience.batch(times, who)
    station = scene_of(worth, scenario.city, "raw").cell_site[experience.serving[times, who].long()]
    return history.to(torch.int8), value.half(), station, who


def _handover_lesson(
    config: Config, own: LocalData, choosing: LocalData, judging: LocalData, later: bool
) -> Lesson:
    scenario = _scenario(config, later)
    city = scene_of(_worth(config), scenario.city, "raw")
    cells, width = len(city.cell_site), config.handover.width
    value = value_loss(ValueModel({}, city.cell_site, slots(city)))
    spread = own.columns[1].float().var(0, unbiased=False).mean()

    def loss(weights: Parameters, batch: tuple[Tensor, ...]) -> Tensor:
        return value(weights, (batch[0].float(), batch[1].float()))

    return Lesson(
        lambda random: initial_parameters((HISTORY * cells, width, width, cells), 1, random),
        loss,
        lambda weights, batch: loss(weights, batch) / spread,
        own,
        choosing,
        judging,
        _perceptron_step(
            lambda told, wanted: (told - wanted).square().mean((-1, -2)), (HISTORY * cells,), (cells,)
        ),
        _between(city.site_position_m, own),
        APART * (cells * RSRP_BITS + cells.bit_length()),
        scenario.name(),
    )


# --- beams --------------------------------------------------------------------------------------------------


def _beams(config: Config) -> tuple[Tensor, ...]:
    """Features, powers of all beams, stations, and walks."""
    model, walks = beams.Model("spatial", "array", 0), walks_of(config.walks)
    times_s = beams.sampled_at_s(model)
    users = draw_users(
        walks,
        torch.arange(len(walks.position_m)),
        config.beam_users,
        float(times_s[-1]) + beams.TICK_S,
        torch.tensor(BEAMS.speeds_kmh) / 3.6,
        stream(0, "training", "beams"),
        BEAMS.least_snr_db - BEAMS.gain_to_snr_db,
    )
    snr_db = beam_gain_db(walks, users, times_s) + BEAMS.gain_to_snr_db
    noise = stream(0, "training", "beams", "noise").generator()
    features, power_db = beams.prepared(model, snr_db, noise)
    station = walks.cell_site[users.cell]
    heard = torch.bincount(station)[station] >= beams.FEWEST
    return features[heard], power_db[heard], station[heard], users.walk[heard]


def _beams_lesson(
    config: Config, own: LocalData, choosing: LocalData, judging: LocalData, later: bool
) -> Lesson:
    features, power_db, _ = own.columns
    width, outputs = config.beams.width, power_db.shape[-1]
    of_scores = node_loss(partial(soft_loss, softness_db=beams.SOFTNESS_DB))

    def lost(weights: Parameters, batch: tuple[Tensor, ...]) -> Tensor:
        chosen = scores(weights, batch[0]).argmax(-1)
        return 1 - torch.pow(10.0, -lost_db(batch[1], chosen) / 10).mean((-1, -2))

    return Lesson(
        lambda random: initial_parameters((features.shape[-1], width, width, outputs), 1, random),
        lambda weights, batch: of_scores(weights, (batch[0], batch[1])),
        lost,
        own,
        choosing,
        judging,
        _perceptron_step(
            lambda told, power_db: soft_loss(told, power_db, beams.SOFTNESS_DB).mean(-1),
            features.shape[1:],
            (outputs,),
        ),
        _between(walks_of(config.walks).site_position_m, own),
        (features.shape[-1] // 2 + outputs) * RSRP_BITS,
        f"{config.city('beams')}/28ghz",
    )


# --- channel feedback ---------------------------------------------------------------------------------------


def _csi(config: Config) -> tuple[Tensor, ...]:
    """Angle-delay pictures of precoders, stations, and walks."""
    of = precoders(replace(CSI, city=config.walks, places=config.places), config.walks)
    return pictures(of.w, spatial_basis(CSI.panel)[0]), of.site, of.walk


def _csi_lesson(
    config: Config, own: LocalData, choosing: LocalData, judging: LocalData, later: bool
) -> Lesson:
    shape = Network("transformer", CSI.panel, SUBBANDS, CSI_FEEDBACK_BITS, config.csi.width, 1)

    def loss(weights: Parameters, batch: tuple[Tensor, ...]) -> Tensor:
        return shape.loss(weights, batch[0])

    return Lesson(
        lambda random: shape.initial(1, random),
        loss,
        loss,
        own,
        choosing,
        judging,
        lambda start, batch: training_step(shape, batch),
        _between(load_walks(config.walks, CSI.band).site_position_m, own),
        CSI_BITS,
        f"{config.city('csi')}/3.5ghz",
    )


def _between(site_position_m: Tensor, own: LocalData) -> Tensor:
    """Distances on the ground between the stations that train, `[nodes, nodes]`."""
    place = site_position_m[own.columns[-1].unique(), :2].double()
    return torch.cdist(place, place)
