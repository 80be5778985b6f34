"""The command line's `defiance fl simulate | deploy`: training over nodes, on Flower."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
Least = Annotated[int, typer.Option(min=1, help="Nodes that make a round; with fewer the training ends.")]
Timeout = Annotated[float, typer.Option(min=1.0, help="Seconds that a round may take.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on after the last whole round in --out.")]
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
    least: Least = 1,
    round_timeout: Timeout = 600.0,
    out: Out = Path("out/federated"),
    resume: Resume = False,
) -> None:
    """Run the Flower app on Flower's simulation engine: every node an actor of Ray on this machine.

    Weights equal those of the in-process engine and of `deploy` with the same seed.
    """
    flower = _flower("defiance.learn.flower.app")
    settings = _settings(
        nodes, rounds, steps, learning_rate, patience, seed, least, round_timeout, out, resume
    )
    flower.simulate(_work(app), settings)
    _tell(out)


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


def _tell(out: Path) -> None:
    print(f"\nmodel   {out / 'model.safetensors'}, of the round with the least validation loss")
    print(f"report  {out / 'report.json'}: every round's nodes, losses and who was left out")
