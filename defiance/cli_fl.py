"""The command line's `defiance fl simulate | deploy`: training over nodes, on Flower."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defiance import mlflow_store
from defiance.errors import DefianceError

if TYPE_CHECKING:
    from defiance.learn.flower.server import Settings

fl = typer.Typer(
    help="Train over nodes that are processes of their own, on Flower (extra `flower`): without --app the "
    "handover function, trained in one city and fine-tuned by the stations of another."
)

App = Annotated[
    str,
    typer.Option(
        metavar="FILE.py:NAME",
        help="What is trained, a `defiance.learn.updates.Deployable`.",
        show_default="the handover function",
    ),
]
Nodes = Annotated[int, typer.Option(min=1, max=1000, help="Nodes that train.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds; an average after each.")]
Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps of every node in a round.")]
Rate = Annotated[float, typer.Option(min=1e-6, max=1.0, help="Of Adam at the start; it decays to zero.")]
Patience = Annotated[int, typer.Option(min=1, help="Rounds without gain before it stops.")]
Seed = Annotated[int, typer.Option(min=0, help="Of first weights, recordings and batches.")]
Average = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="How updates become one: mean, median, trimmed-mean:SHARE cut at each end, krum:BROKEN nodes.",
    ),
]
Least = Annotated[int, typer.Option(min=1, help="Nodes that make a round; with fewer the training ends.")]
Timeout = Annotated[float, typer.Option(min=1.0, help="Seconds that a round may take.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on after the last whole round in --out.")]
Mlflow = Annotated[
    str,
    typer.Option(
        metavar="sqlite:///FILE",
        help="Add the training to an MLflow database as a run, too (extra `mlflow`).",
        show_default="none",
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for model, checkpoint and report.")]

HANDOVER = "defiance.studies.worth.federated:WORK"


@fl.command()
def simulate(
    app: App = "",
    nodes: Nodes = 3,
    rounds: Rounds = 5,
    steps: Steps = 50,
    learning_rate: Rate = 1e-3,
    patience: Patience = 10,
    seed: Seed = 0,
    aggregation: Average = "mean",
    least: Least = 1,
    round_timeout: Timeout = 600.0,
    out: Out = Path("out/federated"),
    resume: Resume = False,
    mlflow: Mlflow = "",
) -> None:
    """Run the Flower app on Flower's simulation engine: every node an actor of Ray on this machine.

    Weights equal those of the in-process engine and of `deploy` with the same seed.
    """
    if mlflow:
        mlflow_store.database(mlflow)
    flower = _flower("defiance.learn.flower.app")
    settings = _settings(
        nodes, rounds, steps, learning_rate, patience, seed, aggregation, least, round_timeout, out, resume
    )
    flower.simulate(_work(app), settings)
    _tell(out, app, mlflow)


@fl.command()
def deploy(
    app: App = "",
    nodes: Nodes = 3,
    rounds: Rounds = 5,
    steps: Steps = 50,
    learning_rate: Rate = 1e-3,
    patience: Patience = 10,
    seed: Seed = 0,
    aggregation: Average = "mean",
    least: Least = 1,
    round_timeout: Timeout = 600.0,
    out: Out = Path("out/federated"),
    resume: Resume = False,
    mlflow: Mlflow = "",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the SuperLink.", show_default="a free one")
    ] = 0,
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Use this SuperLink, and the SuperNodes that it has.")
    ] = "",
    root_certificates: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM file that the SuperLink's certificate is of.")
    ] = None,
    server_folder: Annotated[
        str,
        typer.Option(help="Checkpoint and model there, on the SuperLink's machine.", show_default="--out"),
    ] = "",
) -> None:
    """Run the Flower app on a real SuperLink and SuperNodes, as processes with TLS and node authentication.

    They listen on 127.0.0.1 and end with this command; certificates and keys are made anew in --out. A node
    that dies is left out. When SuperLink or ServerApp die, the same command with --resume goes on after the
    last whole round, to the same result.

    With --superlink the app goes to a SuperLink of yours. Its SuperNodes need defiance-ran[flower], and to
    be started with --node-config 'partition-id=0 num-partitions=3', each with its own number.
    """
    if mlflow:
        mlflow_store.database(mlflow)
    module = _flower("defiance.learn.flower.deploy")
    settings = _settings(
        nodes, rounds, steps, learning_rate, patience, seed, aggregation, least, round_timeout, out, resume
    )
    work, source, folder = _work(app), app or HANDOVER, out.expanduser().resolve() / "deployment"
    try:
        if superlink:
            if mlflow:
                raise DefianceError("--mlflow: the report will lie on the SuperLink's machine")
            if root_certificates is None:
                raise DefianceError("--superlink needs --root-certificates FILE, to know it by")
            settings = replace(settings, folder=server_folder or settings.folder)
            there = module.SuperLink(superlink, root_certificates)
            module.submit(there, source, settings, folder, _say)
        elif root_certificates or server_folder:
            raise DefianceError("--root-certificates and --server-folder are for a --superlink of yours")
        else:
            module.deploy(work, source, settings, folder, port, _say)
    except KeyboardInterrupt:
        print("defiance: interrupted; finished rounds are kept, go on with --resume", file=sys.stderr)
        raise typer.Exit(130) from None
    if superlink:
        print(f"\nmodel.safetensors and report.json lie in {settings.folder} on the SuperLink's machine")
    else:
        _tell(out, app, mlflow)


def _say(line: str) -> None:
    print(line, flush=True)


def _flower(module: str) -> Any:
    """A module that needs Flower.

    Raises:
        DefianceError: Flower isn't installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("defiance"):
            raise
        raise DefianceError(f"{error.name} is missing; pip install 'defiance-ran[flower]'") from error


def _settings(
    nodes: int,
    rounds: int,
    steps: int,
    learning_rate: float,
    patience: int,
    seed: int,
    aggregation: str,
    least: int,
    round_timeout_s: float,
    out: Path,
    resume: bool,
) -> Settings:
    if least > nodes:
        raise DefianceError(f"--least {least}: there are only {nodes} nodes")
    from defiance.learn.flower.server import Settings

    return Settings(
        nodes,
        rounds,
        steps,
        learning_rate,
        patience,
        seed,
        aggregation,
        least,
        round_timeout_s,
        folder=str(out.expanduser().resolve()),
        resume=resume,
    )


def _work(app: str) -> Any:
    """What `--app` names; a file's folder is where its own imports are looked for.

    Raises:
        DefianceError: there is no such file or name, or it isn't one.
    """
    module, _, name = (app or HANDOVER).rpartition(":")
    if app:
        file = Path(module)
        if file.suffix != ".py" or not file.is_file() or not name.isidentifier():
            raise DefianceError(f"--app {app}: give a file and the name in it, such as training.py:WORK")
        sys.path.insert(0, str(file.resolve().parent))
        module = file.stem
    from defiance.learn.updates import Deployable

    work = getattr(importlib.import_module(module), name, None)
    if not isinstance(work, Deployable):
        raise DefianceError(f"--app {app}: {name} is not a defiance.learn.updates.Deployable")
    return work


def _tell(out: Path, app: str, mlflow: str) -> None:
    print(f"\nmodel   {out / 'model.safetensors'}, of the round with the least validation loss")
    print(f"report  {out / 'report.json'}: every round's nodes, losses and who was left out")
    if mlflow:
        added = mlflow_store.add(mlflow, _record(out, app))
        print(f"mlflow  run {added} of the experiment federated")


def _record(out: Path, app: str) -> mlflow_store.Record:
    """A finished training, its rounds as steps."""
    files = [out / name for name in ("report.json", "model.safetensors")]
    report = json.loads(files[0].read_text(encoding="utf-8"))
    metrics = [("best_loss", report["best_loss"], len(report["rounds"]))]
    for one in report["rounds"]:
        losses, step = one["validation"], one["round"]
        values = {"validation": sum(losses.values()) / len(losses), "left_out": len(one["left_out"])}
        values |= {f"validation/{node}": loss for node, loss in losses.items()}
        values |= {f"samples/{node}": samples for node, samples in one["counted"].items()}
        metrics += [(name, float(value), step) for name, value in values.items()]
    left_out = [
        f"round {one['round']}: {n}: {why}" for one in report["rounds"] for n, why in one["left_out"].items()
    ]
    tags = {"mlflow.note.content": "\n\n".join(left_out)} if left_out else {}
    return mlflow_store.Record("federated", app or "handover", report["settings"], metrics, tags, files)
