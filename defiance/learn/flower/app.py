"""A training over nodes as a Flower app (extra `flower`): the steps are those of `learn.updates`.

    ServerApp                                        ClientApp, on each SuperNode
    weights after round r - 1, what to do    ──▶     judge them on held-out data, train on its own
    check, average, checkpoint, next round   ◀──     weights, samples, validation loss; or why not

A node judges the weights that it is sent, so a round takes one exchange; one more judges the last. Weights
travel as NumPy arrays, which Flower reads without pickle. Checkpoints are safetensors and replace each other
atomically: what a killed process loses is the round in progress. What a node keeps between rounds lies in its
own folder, by training and round, so a round that is done again ends the same.
"""

from __future__ import annotations

import logging
import os
import traceback
from dataclasses import replace
from pathlib import Path

import torch
from flwr.app import ConfigRecord, ConfigRecordValues, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from defiance import config as configuration
from defiance.errors import DefianceError
from defiance.learn.flower.messages import Ask, from_record, to_record
from defiance.learn.flower.server import Settings, coordinate, say
from defiance.learn.updates import Deployable, Memory, Place, train_round
from defiance.parts import write_atomically

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Of Flower's processes: nothing is reported home, nothing is fetched or installed while they run."""


# --- the node -------------------------------------------------------------------------------------------


def remembered(folder: Path, place: Place, counted: int) -> tuple[Memory, bool]:
    """What the node remembers of the round `counted`, and whether it should but doesn't.

    Later rounds, whose updates did not count, and earlier ones are forgotten.
    """
    path = folder / f"{counted}.safetensors"
    for other in folder.glob("*.safetensors"):
        if other != path:
            other.unlink(missing_ok=True)
    empty = Memory.empty(place.stream)
    if counted == 0:
        return empty, False
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            steps = int(file.metadata()["steps"])
        return Memory(counted, steps, tensors, tensors.pop("generator")), False
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return empty, True


def keep(folder: Path, memory: Memory) -> None:
    """Writes what `remembered` reads."""
    tensors = {name: moment.contiguous() for name, moment in memory.moments.items()}
    payload = save(tensors | {"generator": memory.generator}, {"steps": str(memory.steps)})
    write_atomically(folder / f"{memory.round}.safetensors", payload)


def node_folder(base: Path, node: int, nodes: int) -> Path:
    """A node's own, where it isn't told."""
    return base / f"node-{node}-of-{nodes}"


def answer(work: Deployable, place: Place, content: RecordDict) -> RecordDict:
    """What a node makes of a message: its judgement, and its update if it is asked for one."""
    ask = Ask.read(dict(content.config_records["ask"]))
    if len(ask.counted) != place.nodes or not 0 <= place.node < place.nodes:
        raise DefianceError(
            f"the training is over {len(ask.counted)} nodes, but this is number {place.node} of {place.nodes}"
        )
    place = replace(place, seed=ask.seed)
    weights = from_record(content.array_records["weights"])
    data = work.local(place)
    with torch.no_grad():
        validation = float(data.validate(weights))
    reply = RecordDict()
    report: dict[str, ConfigRecordValues] = {
        "node": place.node,
        "version": ask.round - 1,
        "validation": validation,
    }
    if ask.round <= ask.rounds:
        folder = place.folder / "memory" / ask.run
        memory, forgot = remembered(folder, place, ask.counted[place.node])
        update, memory = train_round(weights, memory, data, ask.schedule, ask.round)
        keep(folder, memory)
        reply["weights"] = to_record(update)
        report |= {"samples": data.samples, "forgot": forgot}
    reply["report"] = ConfigRecord(report)
    return reply


def identity(context: Context, default: Path) -> Place:
    """Which node a SuperNode is, from its `--node-config`."""
    given = context.node_config
    try:
        node, nodes = int(given["partition-id"]), int(given["num-partitions"])
    except (KeyError, ValueError) as error:
        raise DefianceError(
            "start the SuperNode with --node-config 'partition-id=0 num-partitions=3', its own number first"
        ) from error
    folder = Path(str(given.get("folder", node_folder(default, node, nodes)))).expanduser()
    return Place(node, nodes, 0, folder)


# --- the app --------------------------------------------------------------------------------------------


def apps(work: Deployable, settings: Settings | None = None) -> tuple[ServerApp, ClientApp]:
    """The Flower app of a training.

        server, client = apps(WORK)

    Args:
        work: what is trained.
        settings: None: Flower's run config holds them.
    """
    server, client = ServerApp(), ClientApp()
    base = Path(settings.folder, "nodes") if settings else Path("~/.cache/defiance/federated")

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            given = [f"{name}={value}" for name, value in context.run_config.items()]
            coordinate(grid, work, settings or configuration.build(Settings, overrides=given))
        except DefianceError as error:
            if settings is None:  # else whoever called hears of it
                say(f"error: {error}")
            raise

    @client.train()
    def train(message: Message, context: Context) -> Message:
        report: dict[str, ConfigRecordValues] = {}
        try:
            place = identity(context, base)
            report["node"] = place.node
            content = answer(work, place, message.content)
        except Exception as error:
            traceback.print_exc()
            report["error"] = f"{type(error).__name__}: {error}"
            content = RecordDict({"report": ConfigRecord(report)})
        return Message(content, reply_to=message)

    return server, client


def prepared(work: Deployable, settings: Settings) -> list[Place]:
    """All nodes of a machine that plays them all, with their data."""
    nodes, base = settings.nodes, Path(settings.folder, "nodes")
    places = [Place(n, nodes, settings.seed, node_folder(base, n, nodes)) for n in range(nodes)]
    for place in places:
        place.folder.mkdir(parents=True, exist_ok=True)
    if work.prepare is not None:
        work.prepare(places)
    return places


def simulate(work: Deployable, settings: Settings) -> None:
    """Runs the app on Flower's simulation engine: all nodes on this machine, as actors of Ray.

    Raises:
        DefianceError: as `coordinate`; Ray isn't installed.
    """
    os.environ.update(ENVIRONMENT)
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    prepared(work, settings)
    server, client = apps(work, settings)
    run_simulation(
        server,
        client,
        settings.nodes,
        backend_config={
            "init_args": {"logging_level": logging.ERROR, "log_to_driver": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
