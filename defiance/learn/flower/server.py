"""The ServerApp of a training over nodes (extra `flower`): rounds, checkpoints, what nodes may send.

Checkpoints are safetensors and replace each other atomically: what a killed process loses is the round in
progress.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from defiance.errors import DefianceError
from defiance.learn.aggregation import REMEMBERED, Aggregation, check_update, named, refusals
from defiance.learn.flower.messages import Ask, from_record, to_record
from defiance.learn.training import Parameters, Schedule
from defiance.learn.updates import MANY, Deployable, Progress, capped, implausible, length
from defiance.parts import write_atomically

SAY = "[defiance] "
"""Begins the lines of the ServerApp that are for the user, among Flower's own."""

POLL_S = 0.3
CHECKPOINT, MODEL, REPORT = "checkpoint.safetensors", "model.safetensors", "report.json"
LARGEST_SAMPLES = 2**40
LARGEST_LOSS = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Settings:
    """What the ServerApp is told: Flower's run config.

    Raises:
        DefianceError: the aggregation isn't one, or needs more nodes than there are.
    """

    nodes: int = field(default=3, metadata={"min": 1, "max": 1000, "help": "SuperNodes that take part"})
    rounds: int = field(default=5, metadata={"min": 1, "max": 10000})
    steps_per_round: int = field(default=50, metadata={"min": 1, "help": "optimiser steps of every node"})
    learning_rate: float = field(
        default=1e-3, metadata={"min": 1e-6, "max": 1.0, "help": "of Adam at the start"}
    )
    patience: int = field(default=10, metadata={"min": 1, "help": "rounds without gain before it stops"})
    seed: int = field(default=0, metadata={"min": 0})
    aggregation: str = field(
        default="mean", metadata={"help": "mean, median, trimmed-mean:SHARE or krum:BROKEN"}
    )
    least: int = field(default=1, metadata={"min": 1, "help": "nodes that make a round"})
    round_timeout_s: float = field(default=600.0, metadata={"min": 1.0, "unit": "s"})
    start_timeout_s: float = field(
        default=60.0, metadata={"min": 0.0, "unit": "s", "help": "wait for all nodes to appear"}
    )
    folder: str = field(default="", metadata={"help": "for checkpoint and model, on the ServerApp's machine"})
    resume: bool = field(default=False, metadata={"help": "go on from the folder's checkpoint"})

    def __post_init__(self) -> None:
        if (least := self.average.least) > self.nodes:
            raise DefianceError(
                f"aggregation {self.aggregation} needs {least} updates a round; there are {self.nodes} nodes"
            )

    @property
    def schedule(self) -> Schedule:
        """How long and how fast."""
        return Schedule(self.rounds, self.steps_per_round, self.learning_rate, self.patience)

    @property
    def same(self) -> dict[str, Any]:
        """What a resumed training must not change."""
        kept = ("nodes", "rounds", "steps_per_round", "learning_rate", "patience", "seed", "aggregation")
        return {name: getattr(self, name) for name in kept}

    @property
    def average(self) -> Aggregation:
        """How updates become one."""
        return named(self.aggregation)

    @property
    def enough(self) -> int:
        """Nodes that make a round."""
        return max(self.least, self.average.least)


@dataclass(frozen=True)
class Training:
    """A training that can be written down and read back.

    Attributes:
        run: its token.
        progress: weights.
        counted: the last round in which each node's update counted, by its number; 0 if none.
        lengths: of the updates that counted.
        rounds: what happened: `{"round", "counted", "left_out", "validation"}`.
    """

    run: str
    progress: Progress
    counted: list[int]
    lengths: list[float]
    rounds: list[dict[str, Any]]

    def write(self, path: Path, settings: Settings) -> None:
        """Replaces the checkpoint."""
        at = self.progress
        tensors = {f"now/{name}": weight.contiguous() for name, weight in at.parameters.items()}
        tensors |= {f"best/{name}": weight.contiguous().clone() for name, weight in at.best.items()}
        state = {
            "settings": settings.same,
            "run": self.run,
            "round": at.round,
            "best_loss": at.best_loss,
            "since": at.since,
            "counted": self.counted,
            "lengths": self.lengths,
            "rounds": self.rounds,
        }
        write_atomically(path, save(tensors, {"training": json.dumps(state)}))

    @classmethod
    def read(cls, path: Path, settings: Settings) -> Training:
        """The checkpoint.

        Raises:
            DefianceError: there is none, it is damaged, or of a training with other settings.
        """
        if not path.is_file():
            raise DefianceError(f"{path}: no checkpoint to go on from; leave out --resume")
        try:
            with safe_open(path, "pt") as file:
                state = json.loads(file.metadata()["training"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            now, best = (
                {name.removeprefix(of): w for name, w in tensors.items() if name.startswith(of)}
                for of in ("now/", "best/")
            )
            progress = Progress(state["round"], now, best, state["best_loss"], state["since"])
            found = cls(state["run"], progress, state["counted"], state["lengths"], state["rounds"])
            same = state["settings"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DefianceError(f"{path}: damaged ({error}); leave out --resume to begin anew") from error
        changed = [name for name, value in settings.same.items() if same.get(name) != value]
        if changed:
            was = ", ".join(f"{name} {same.get(name)}" for name in changed)
            raise DefianceError(f"{path} is of another training, with {was}; give these, or no --resume")
        return found


@dataclass(frozen=True)
class Answer:
    """A node's reply that may count."""

    name: str
    node: int
    validation: float
    samples: int
    update: Parameters


class Server:
    """Asks SuperNodes through Flower's grid, and knows which number each may answer as.

    A SuperNode's id stands for the key by which the SuperLink knows it. One that is registered there as
    `node-K` is number K; of the others a number belongs to the first that answers as it.

    Attributes:
        registered: names that the SuperLink knows, by the SuperNodes' ids.
        owners: ids, by number.
    """

    def __init__(self, grid: Grid, settings: Settings) -> None:
        self.grid, self.settings = grid, settings
        self.registered: dict[int, str] = {}
        self.owners: dict[int, int] = {}

    def present(self) -> list[int]:
        """The SuperNodes that are online now."""
        online = sorted(self.grid.get_nodes(), key=lambda info: info.node_id)
        for info in online:
            if not info.name or info.node_id in self.registered:
                continue
            number = re.fullmatch(r"node-(\d{1,4})", info.name)
            if number and self.owners.get(int(number[1])) not in self.registered:
                self.owners[int(number[1])] = info.node_id
            twin = info.name in self.registered.values()
            self.registered[info.node_id] = f"{info.name} ({info.node_id})" if twin else info.name
        return [info.node_id for info in online]

    def name(self, node: int) -> str:
        """What a SuperNode is called; no two alike."""
        number = next((number for number, owner in self.owners.items() if owner == node), None)
        unknown = f"SuperNode {node}" if number is None else f"node-{number}"
        return self.registered.get(node, unknown)

    def claim(self, node: int, number: int) -> None:
        """A SuperNode says it is this number.

        Raises:
            DefianceError: it is another, or another is it.
        """
        own = next((taken for taken, owner in self.owners.items() if owner == node), number)
        owner = self.owners.setdefault(own, node)
        if own != number:
            raise DefianceError(f"it says it is number {number}, but it is number {own}")
        if owner != node:
            raise DefianceError(f"it says it is number {number}, but that is {self.name(owner)}")

    def wait(self) -> None:
        """Until all nodes are online, or as many as make a round after some time.

        Raises:
            DefianceError: not even these.
        """
        wanted, end_s = self.settings.nodes, time.monotonic() + self.settings.start_timeout_s
        while len(self.present()) < wanted and time.monotonic() < end_s:
            time.sleep(POLL_S)
        there = len(self.present())
        if there < self.settings.enough:
            raise DefianceError(f"{there} of {wanted} SuperNodes are online, too few; start them")
        if there < wanted:
            say(f"{there} of {wanted} SuperNodes are online; going on with them")

    def ask(self, training: Training, round_: int) -> tuple[list[Answer], dict[str, str]]:
        """Answers to the weights, in the nodes' order; who is left out, and why."""
        weights, settings = training.progress.parameters, self.settings
        ask = Ask(
            training.run,
            round_,
            training.counted,
            settings.rounds,
            settings.steps_per_round,
            settings.learning_rate,
            settings.seed,
        )
        content = RecordDict({"weights": to_record(weights), "ask": ConfigRecord(vars(ask))})
        messages = [
            Message(
                content,
                dst_node_id=node,
                message_type="train",
                ttl=settings.round_timeout_s,
                group_id=str(round_),
            )
            for node in self.present()
        ]
        left_out: dict[str, str] = {}
        answers: list[Answer] = []
        for node, reply in self._exchange(messages):
            try:
                answers.append(self._read(node, reply, training, round_))
            except DefianceError as error:
                left_out[self.name(node)] = str(error)
        answers.sort(key=lambda each: each.node)
        odd = implausible([each.name for each in answers], [each.validation for each in answers])
        if round_ <= settings.rounds:
            norm = torch.tensor([length(each.update, weights) for each in answers])
            reasons = refusals([each.name for each in answers], norm, torch.tensor(training.lengths))
            left_out |= {each.name: why for each, why in zip(answers, reasons, strict=True) if why}
        left_out |= {each.name: why for each, why in zip(answers, odd, strict=True) if why}
        left_out = {name: why.removeprefix(f"{name}: ") for name, why in left_out.items()}
        return [each for each in answers if each.name not in left_out], left_out

    def _exchange(self, messages: list[Message]) -> Iterable[tuple[int, Message | None]]:
        """Each node with its reply; None: none came in time."""
        asked = [message.metadata.dst_node_id for message in messages]
        ids = self.grid.push_messages(messages)
        waiting = {message: node for message, node in zip(ids, asked, strict=True) if message}
        end_s = time.monotonic() + self.settings.round_timeout_s
        yield from ((node, None) for node in asked if node not in waiting.values())
        while waiting and time.monotonic() < end_s:
            for reply in self.grid.pull_messages(list(waiting)):
                yield waiting.pop(reply.metadata.reply_to_message_id), reply
            time.sleep(POLL_S)
        yield from ((node, None) for node in waiting.values())

    def _read(self, node: int, reply: Message | None, training: Training, round_: int) -> Answer:
        """A reply, checked as what a stranger sent.

        Raises:
            DefianceError: why it doesn't count.
        """
        if reply is None:
            raise DefianceError("no reply in time")
        if reply.has_error():
            raise DefianceError(f"it failed: {' '.join(str(reply.error.reason).split())[:500]}")
        report = dict(reply.content.config_records.get("report", {}))
        failed = f"it failed: {' '.join(str(report['error']).split())[:500]}" if "error" in report else ""
        number, validation = report.get("node"), report.get("validation")
        if type(number) is not int or not 0 <= number < self.settings.nodes:
            raise DefianceError(failed or f"its reply does not say which node it is: {number!r}")
        self.claim(node, number)
        if failed:
            raise DefianceError(failed)
        name = self.name(node)
        if type(validation) is not float or not abs(validation) <= LARGEST_LOSS:
            raise DefianceError(f"its validation loss is {validation!r}")
        samples, update = 0, training.progress.parameters
        if round_ <= self.settings.rounds:
            given = report.get("samples")
            if type(given) is not int or not 0 < given < LARGEST_SAMPLES:
                raise DefianceError(f"its number of samples is {given!r}")
            samples = given
            sent = reply.content.array_records.get("weights", ArrayRecord())
            update = from_record(sent)
            version: Any = report.get("version")
            check_update(name, update, training.progress.parameters, version, range(round_ - 1, round_))
            if report.get("forgot"):
                say(f"{name} lost what it remembers and begins anew")
        return Answer(name, number, validation, samples, update)


def coordinate(grid: Grid, work: Deployable, settings: Settings) -> Training:
    """The ServerApp: all rounds, from the start or from the checkpoint.

    Raises:
        DefianceError: nothing to go on from, or fewer nodes than make a round; the rounds before are kept.
    """
    folder = Path(settings.folder).expanduser()
    checkpoint = folder / CHECKPOINT
    if settings.resume:
        training = Training.read(checkpoint, settings)
        say(f"going on after round {training.progress.round} of {settings.rounds}")
    else:
        initial = Progress.begin(work.initial(settings.seed, folder))
        training = Training(secrets.token_hex(8), initial, [0] * settings.nodes, [], [])
        training.write(checkpoint, settings)
    server = Server(grid, settings)
    server.wait()
    for round_ in range(training.progress.round + 1, settings.rounds + 2):
        if training.progress.since >= settings.patience:
            break
        training = one_round(server, training, round_)
        training.write(checkpoint, settings)
    model = {name: weight.contiguous() for name, weight in training.progress.best.items()}
    write_atomically(folder / MODEL, save(model))
    report = {"settings": settings.same, "best_loss": training.progress.best_loss, "rounds": training.rounds}
    write_atomically(folder / REPORT, json.dumps(report, indent=1) + "\n")
    say(f"done: least mean validation loss {training.progress.best_loss:.6g}")
    return training


def one_round(server: Server, training: Training, round_: int) -> Training:
    """Sends, receives, judges, averages; the last has nothing to average.

    Raises:
        DefianceError: too few nodes' replies count.
    """
    settings, begun_s = server.settings, time.monotonic()
    answers, left_out = server.ask(training, round_)
    what = f"round {round_} of {settings.rounds}" if round_ <= settings.rounds else "last judgement"
    for name, why in left_out.items():
        say(f"{what}: {name} is left out: {why}")
    if len(answers) < settings.enough:
        raise DefianceError(
            f"{what}: {len(answers)} nodes' replies count, {settings.enough} make a round; the rounds before "
            "are kept, go on with --resume"
        )
    before = training.progress
    progress = before.judged([each.validation for each in answers])
    last = round_ > settings.rounds or progress.since >= settings.patience
    weights = capped([each.samples for each in answers])
    entry = {
        "round": round_,
        "counted": {} if last else {each.name: w for each, w in zip(answers, weights, strict=True)},
        "left_out": left_out,
        "validation": {each.name: each.validation for each in answers},
    }
    found = replace(training, progress=progress, rounds=[*training.rounds, entry])
    mean = sum(each.validation for each in answers) / len(answers)
    took_s = time.monotonic() - begun_s
    told = f"{what}: {len(answers)} of {settings.nodes} nodes, {took_s:.1f} s, validation loss "
    if last:
        say(told + f"{mean:.6g}")
        return found
    say(told + f"before it {mean:.6g}")
    for each, weight in zip(answers, weights, strict=True):
        if weight < each.samples:
            say(f"{what}: {each.name} weighs as {weight:g} of its {each.samples} samples, {MANY} medians")
    there = {each.node for each in answers}
    lengths = [length(each.update, before.parameters) for each in answers]
    return replace(
        found,
        progress=progress.averaged([each.update for each in answers], weights, settings.average),
        counted=[round_ if n in there else before_it for n, before_it in enumerate(training.counted)],
        lengths=[*training.lengths, *lengths][-REMEMBERED:],
    )


def say(text: str) -> None:
    """A line for the user; Flower carries the ServerApp's standard output to whoever follows the run."""
    print(SAY + "".join(c if c.isprintable() else "?" for c in text), flush=True)
