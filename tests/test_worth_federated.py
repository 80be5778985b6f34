"""The handover function over nodes: each with its own samples, together the in-process federated regime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from defiance.control.experience import ValueModel, value_loss
from defiance.errors import DefianceError
from defiance.learn.aggregation import Mean
from defiance.learn.training import Schedule, federated_mixing, fit
from defiance.learn.updates import Memory, Place, Progress, train_round, training_stream
from defiance.parts import Parts
from defiance.studies.worth.federated import CHECKS, record, work
from defiance.studies.worth.settings import Config

NODES, SEED = 3, 0
SCHEDULE = Schedule(rounds=2, steps_per_round=4, learning_rate=1e-3)


@pytest.fixture(scope="module")
def some(config: Config) -> Config:
    """Enough users for everyone to have some."""
    return replace(config, training=replace(config.training, users=120, duration_s=15.0))


def places(folder: Path, nodes: int = NODES) -> list[Place]:
    return [Place(node, nodes, SEED, folder / str(node)) for node in range(nodes)]


def test_stations_apart_fine_tune_as_the_federated_regime_does(some: Config, tmp_path: Path) -> None:
    deployed, recording = work(some), record(some, NODES, Parts(tmp_path))
    assert deployed.prepare is not None
    deployed.prepare(places(tmp_path))
    start = deployed.initial(SEED, tmp_path / "server")
    progress, memories = Progress.begin(start), [Memory.empty(training_stream(SEED))] * NODES
    data = [deployed.local(place) for place in places(tmp_path)]
    samples = [each.samples for each in data]
    for round_ in (1, 2):
        done = [
            train_round(progress.parameters, memories[n], data[n], SCHEDULE, round_) for n in range(NODES)
        ]
        losses = [float(each.validate(progress.parameters)) for each in data]
        memories = [memory for _, memory in done]
        progress = progress.judged(losses).averaged([update for update, _ in done], samples, Mean())
    progress = progress.judged([float(each.validate(progress.parameters)) for each in data])

    assert samples == recording.batches.served.tolist()
    loss = value_loss(ValueModel({}, recording.cell_site, recording.order))
    generator = training_stream(SEED).child("validation").generator()
    checks = [recording.held.draw(generator) for _ in range(CHECKS)]
    expected = fit(
        {name: weight.repeat(NODES, 1, 1) for name, weight in start.items()},
        loss,
        recording.batches.draw,
        lambda w: torch.stack([loss(w, check) for check in checks]).mean(0),
        federated_mixing(recording.batches.served),
        SCHEDULE,
        training_stream(SEED),
    )
    for name, weight in expected.parameters.items():
        torch.testing.assert_close(progress.best[name], weight[:1], rtol=0, atol=1e-6)
    assert progress.best_loss == pytest.approx(float(expected.validation_loss.mean(1).min()), abs=1e-6)
    assert not torch.equal(progress.best["weight0"], start["weight0"])


def test_a_node_reads_its_own_samples_alone(some: Config, tmp_path: Path) -> None:
    recording = record(some, NODES, Parts(tmp_path))
    batches = recording.batches
    for node in range(NODES):
        shard = recording.shard(node)
        assert len(shard.history) == len(shard.value) == int(batches.served[node])
        mine = slice(int(batches.start[node]), int(batches.start[node]) + int(batches.count[node]))
        served = batches.experience.serving[batches.times[mine], batches.users[mine]].long()
        assert set((recording.cell_site[served] * NODES // 3).tolist()) == {node}


def test_its_own_folder_is_enough(some: Config, tmp_path: Path) -> None:
    """A SuperNode elsewhere has no shard: it makes it, the same as was made ahead."""
    deployed, (place, *_) = work(some), places(tmp_path)
    made = deployed.local(place)
    path = next(place.folder.iterdir())
    ahead = path.read_bytes()
    path.unlink()
    assert deployed.prepare is not None
    deployed.prepare(places(tmp_path))
    assert path.read_bytes() == ahead and made.samples == deployed.local(place).samples
    path.write_bytes(ahead[:-9])
    with pytest.raises(DefianceError, match="remove it to record anew"):
        deployed.local(place)


def test_what_can_not_be_dealt_is_refused(some: Config, tmp_path: Path) -> None:
    with pytest.raises(DefianceError, match="florence has 3 stations; they can't be 4 nodes"):
        record(some, 4, Parts(tmp_path))
    with pytest.raises(DefianceError, match="takes a second city"):
        record(replace(some, unseen_scene=""), 3, Parts(tmp_path))
