"""The handover function, fine-tuned by stations of a city that it doesn't know, each on its own recordings.

It is trained centrally on a little experience of the home city, and fine-tuned federatedly in the unseen
one, where a node is one station or several neighbours; `defiance fl` deploys that over Flower. What a node
reads is its own samples alone. All is sized for minutes: `defiance run worth` says what handover is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from defiance import config as configuration
from defiance.control.experience import Batches, ValueModel, value_loss
from defiance.errors import DefianceError
from defiance.learn.training import Parameters
from defiance.learn.updates import Deployable, NodeData, Place
from defiance.parts import Parts, write_atomically
from defiance.studies.worth.settings import QUICK, Config, away_scenario

CONFIG = replace(
    QUICK,
    training=replace(
        QUICK.training, worlds=2, users=80, duration_s=60.0, width=64, rounds=8, steps_per_round=100
    ),
)
"""Of both recordings and of the central training; `finetuning` records a quarter of the users."""

CHECKS = 2
"""Batches that validate, four times as large as those that train."""


@dataclass(frozen=True)
class Shard:
    """A node's samples.

    Attributes:
        history, value: that train: `[N, HISTORY, C]` int8 in dBm, `[N, C]` float16.
        held_history, held_value: that validate.
        cell_site, order: `[C]`, of the `ValueModel`.
        batch: samples of a node's batch.
    """

    history: Tensor
    value: Tensor
    held_history: Tensor
    held_value: Tensor
    cell_site: Tensor
    order: Tensor
    batch: int

    def data(self, place: Place) -> NodeData[tuple[Tensor, Tensor]]:
        """As `Batches.draw` draws for this node among the others."""

        def drawn(
            history: Tensor, value: Tensor, size: int, generator: torch.Generator
        ) -> tuple[Tensor, Tensor]:
            share = torch.rand(place.nodes, size, generator=generator, dtype=torch.float64)
            index = (share[place.node] * len(history)).long()
            return history[index][None].float(), value[index][None].float()

        loss = value_loss(ValueModel({}, self.cell_site, self.order))
        validation = place.stream.child("validation").generator()
        checks = [
            drawn(self.held_history, self.held_value, 4 * self.batch, validation) for _ in range(CHECKS)
        ]
        return NodeData(
            loss,
            lambda generator: drawn(self.history, self.value, self.batch, generator),
            lambda parameters: torch.stack([loss(parameters, check) for check in checks]).mean(0),
            len(self.history),
        )


@dataclass(frozen=True)
class Recording:
    """What the unseen city's stations recorded.

    Attributes:
        batches, held: of all nodes, to train and to validate.
        cell_site, order: of the `ValueModel`.
    """

    batches: Batches
    held: Batches
    cell_site: Tensor
    order: Tensor

    def shard(self, node: int) -> Shard:
        """A node's own samples."""

        def own(batches: Batches) -> tuple[Tensor, Tensor]:
            first = int(batches.start[node])
            mine = slice(first, first + int(batches.count[node]))
            history, value = batches.experience.batch(batches.times[mine], batches.users[mine])
            return history.to(torch.int8), value.half()

        return Shard(*own(self.batches), *own(self.held), self.cell_site, self.order, self.batches.size)


def record(config: Config, nodes: int, parts: Parts) -> Recording:
    """Simulates the unseen city, unless `parts` hold its recording, and deals its stations to the nodes.

    Raises:
        DefianceError: there are more nodes than stations, or a node's cells served nobody.
    """
    from defiance.control.experience import slots
    from defiance.studies.worth.training import experience_of, finetuning, split
    from defiance.studies.worth.worlds import scene_of

    scenario = away_scenario(config)
    if scenario is None:
        raise DefianceError("fine-tuning takes a second city; name one as unseen_scene")
    scene = scene_of(config, scenario.city, scenario.map)
    sites = len(scene.site_position_m)
    if nodes > sites:
        raise DefianceError(f"{scenario.city} has {sites} stations; they can't be {nodes} nodes")
    node_of_cell = scene.cell_site * nodes // sites
    experience = experience_of(finetuning(config), scenario.city, scenario.map, "device", parts)
    training, validation = split(experience.rsrp_dbm.shape[1])
    size = max(8, config.training.batch // nodes)
    batches = Batches.of(experience, node_of_cell, nodes, size, training)
    held = Batches.of(experience, node_of_cell, nodes, 4 * size, validation)
    for served in (batches.served, held.served):
        if not bool(served.all()):
            raise DefianceError(f"node {int(served.argmin())} of {nodes} served nobody; take fewer nodes")
    return Recording(batches, held, scene.cell_site, slots(scene))


def prepare(config: Config, places: Sequence[Place]) -> None:
    """Writes what nodes lack of their samples."""
    if all(shard_path(config, place).is_file() for place in places):
        return
    recording = record(config, places[0].nodes, Parts(places[0].folder))
    for place in places:
        shard = vars(recording.shard(place.node))
        payload = save(
            {name: t.contiguous() for name, t in shard.items() if isinstance(t, Tensor)},
            {"batch": str(shard["batch"])},
        )
        write_atomically(shard_path(config, place), payload)


def shard_path(config: Config, place: Place) -> Path:
    """Where a node's samples lie."""
    which = f"{configuration.fingerprint(config)[:16]}-{place.node}-of-{place.nodes}"
    return place.folder / f"handover-{which}.safetensors"


def local(config: Config, place: Place) -> NodeData[tuple[Tensor, Tensor]]:
    """A node's samples, recorded if they aren't there.

    Raises:
        DefianceError: they can't be read or recorded.
    """
    prepare(config, [place])
    path = shard_path(config, place)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return Shard(**tensors, batch=int(file.metadata()["batch"])).data(place)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DefianceError(f"{path}: damaged ({error}); remove it to record anew") from error


def initial(config: Config, seed: int, folder: Path) -> Parameters:
    """The weights to start from: of central training in the home city."""
    from defiance.studies.worth.training import Model, train

    parts = Parts.open(folder / "home", configuration.fingerprint(config))
    model = Model("device", "central", config.maps[0], seed)
    if parts.get_tensors(model.key) is None:
        train(config, model, parts)
    found = parts.get_tensors(model.key)
    assert found is not None
    return found


def work(config: Config) -> Deployable:
    """Fine-tuning as `defiance fl` deploys it."""
    return Deployable(partial(initial, config), partial(local, config), partial(prepare, config))


WORK = work(CONFIG)
