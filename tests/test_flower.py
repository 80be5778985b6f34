"""The Flower app: nodes in this process behind a grid, then Flower's own simulation."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import tiny_federated
import torch
from safetensors.torch import load_file

pytest.importorskip("flwr", reason="needs the extra `flower`")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

from defiance.errors import DefianceError  # noqa: E402
from defiance.learn.flower import server  # noqa: E402
from defiance.learn.flower.app import apps  # noqa: E402
from defiance.learn.flower.server import Settings, Training, coordinate  # noqa: E402
from defiance.learn.training import Fit, federated_mixing, fit  # noqa: E402
from defiance.learn.updates import training_stream  # noqa: E402

NODES = 3
WORK = tiny_federated.WORK
Tamper = Callable[[int, Message], Message | None]


@dataclass
class Nodes:
    """A grid whose nodes answer at once, in this process; a test may change or swallow what they say."""

    folder: Path
    settings: Settings
    tamper: Tamper = lambda node, reply: reply
    asked: list[list[int]] = field(default_factory=list)
    online: set[int] = field(default_factory=lambda: set(range(NODES)))
    replies: dict[str, Message] = field(default_factory=dict)
    registered: dict[int, str] = field(default_factory=dict)

    def get_node_ids(self) -> Iterable[int]:
        return self.online

    def get_nodes(self) -> Iterable[Any]:
        return [SimpleNamespace(node_id=node, name=self.registered.get(node, "")) for node in self.online]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        self.asked.append([])
        for message in messages:
            node = message.metadata.dst_node_id
            self.asked[-1].append(node)
            config = {"partition-id": node, "num-partitions": NODES, "folder": str(self.folder / str(node))}
            context = Context(0, node, config, RecordDict(), {})
            message.metadata.__dict__["_message_id"] = name = f"{len(self.asked)}/{node}"
            reply = self.tamper(node, apps(WORK, self.settings)[1](message, context))
            if reply is not None:
                self.replies[name] = reply
            ids.append(name)
        return ids

    def pull_messages(self, names: Iterable[str]) -> list[Message]:
        return [self.replies.pop(name) for name in names if name in self.replies]


@pytest.fixture
def nodes(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    monkeypatch.setattr(server, "POLL_S", 0.001)
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)  # which Flower sets in the processes of a run
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    return Nodes(tmp_path / "nodes", settings)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        NODES,
        rounds=4,
        steps_per_round=5,
        learning_rate=0.02,
        seed=3,
        round_timeout_s=0.2,
        folder=str(tmp_path),
    )


def run(nodes: Nodes, settings: Settings | None = None) -> Training:
    return coordinate(cast(Any, nodes), WORK, settings or nodes.settings)


def in_process(settings: Settings, nodes: int = NODES) -> Fit:
    held = tiny_federated.drawn(nodes, training_stream(settings.seed).child("validation").generator())
    start = {name: w.repeat(nodes, 1, 1) for name, w in tiny_federated.initial(settings.seed, Path()).items()}
    return fit(
        start,
        tiny_federated.loss,
        lambda generator: tiny_federated.drawn(nodes, generator),
        lambda w: tiny_federated.loss(w, held),
        federated_mixing(torch.tensor([tiny_federated.samples(n) for n in range(nodes)])),
        settings.schedule,
        training_stream(settings.seed),
    )


def equals_in_process(settings: Settings) -> None:
    expected = in_process(settings)
    found = load_file(Path(settings.folder, server.MODEL))
    for name, weight in expected.parameters.items():
        torch.testing.assert_close(found[name], weight[:1], rtol=0, atol=1e-6)
    report = json.loads(Path(settings.folder, server.REPORT).read_text())
    losses = [list(entry["validation"].values()) for entry in report["rounds"]]
    torch.testing.assert_close(torch.tensor(losses), expected.validation_loss, rtol=1e-6, atol=1e-6)


def test_the_app_ends_where_one_program_ends(nodes: Nodes, capsys: pytest.CaptureFixture[str]) -> None:
    run(nodes)
    equals_in_process(nodes.settings)
    assert nodes.asked == [[0, 1, 2]] * 5
    out = capsys.readouterr().out
    assert "[defiance] round 4 of 4: 3 of 3 nodes" in out and "[defiance] done: least mean" in out


def test_it_stops_where_one_program_stops(nodes: Nodes, settings: Settings) -> None:
    """A rate that throws the weights about: the round after the last gain is trained in vain, and left."""
    wild = replace(settings, learning_rate=0.9, rounds=12, patience=2)
    run(nodes, wild)
    assert in_process(wild).rounds < 12
    equals_in_process(wild)


def test_a_killed_server_goes_on_to_the_same_result(nodes: Nodes, settings: Settings) -> None:
    """Killed while it waits in round 3: two nodes have trained already."""

    def kill(node: int, reply: Message) -> Message | None:
        if len(nodes.asked) == 3 and node == 2:
            raise KeyboardInterrupt
        return reply

    nodes.tamper = kill
    with pytest.raises(KeyboardInterrupt):
        run(nodes)
    assert not Path(settings.folder, server.MODEL).exists()
    nodes.tamper = lambda node, reply: reply
    run(nodes, replace(settings, resume=True))
    equals_in_process(settings)


def test_a_resumed_training_keeps_its_settings(nodes: Nodes, settings: Settings) -> None:
    with pytest.raises(DefianceError, match="no checkpoint to go on from"):
        run(nodes, replace(settings, resume=True))
    run(nodes)
    with pytest.raises(DefianceError, match="another training, with rounds 4"):
        run(nodes, replace(settings, rounds=5, resume=True))
    path = Path(settings.folder, server.CHECKPOINT)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DefianceError, match="damaged"):
        run(nodes, replace(settings, resume=True))


def test_a_node_whose_update_did_not_count_goes_on_from_the_one_that_did(
    nodes: Nodes, settings: Settings
) -> None:
    """Its reply of round 2 is lost. What it learned then is forgotten: as if it had been away."""
    nodes.tamper = lambda node, reply: None if (len(nodes.asked), node) == (2, 1) else reply
    lost = run(nodes)
    assert lost.rounds[1]["left_out"] == {"node-1": "no reply in time"}
    assert list(lost.rounds[1]["counted"]) == ["node-0", "node-2"]

    away = Nodes(nodes.folder.parent / "others", settings)

    def leave(node: int, reply: Message) -> Message:
        away.online = {0, 2} if len(away.asked) == 1 else {0, 1, 2}
        return reply

    away.tamper = leave
    found = run(away)
    assert list(map(len, away.asked)) == [3, 2, 3, 3, 3]
    for name, weight in found.progress.best.items():
        assert torch.equal(weight, lost.progress.best[name])


def poison(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Tamper:
    """Node 1 lies in its second round."""
    seen = [0]

    def tamper(node: int, reply: Message) -> Message:
        seen[0] += node == 1
        if node != 1 or seen[0] != 2:
            return reply
        arrays = {name: array.numpy().copy() for name, array in reply.content["weights"].items()}
        report = dict(reply.content["report"])
        change(arrays, report)
        reply.content["weights"] = ArrayRecord(
            {n: a if isinstance(a, Array) else Array(a) for n, a in arrays.items()}
        )
        reply.content["report"] = ConfigRecord(report)
        return reply

    return tamper


def fill(value: float) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda arrays, report: arrays["bias"].fill(value)


def pickled(arrays: dict[str, Any], report: dict[str, Any]) -> None:
    import io

    import numpy as np

    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    arrays["bias"] = Array("float32", (1, 1, 10), "numpy.ndarray", file.getvalue())


@pytest.mark.parametrize(
    "change, why",
    [
        (fill(float("nan")), "bias holds NaN"),
        (fill(float("inf")), "bias holds NaN or infinite"),
        (fill(1e12), "over 10 times the usual"),
        (
            lambda arrays, report: arrays.update(bias=arrays["bias"][..., :5]),
            "bias is torch.float32 (1, 1, 5)",
        ),
        (lambda arrays, report: arrays.update(bias=arrays["bias"].astype("f8")), "bias is torch.float64"),
        (lambda arrays, report: arrays.pop("bias"), "lacks, or has of its own, bias"),
        (lambda arrays, report: arrays.update(more=arrays["bias"]), "lacks, or has of its own, more"),
        (pickled, "cannot be read"),
        (lambda arrays, report: report.update(version=0), "starts from model version 0"),
        (lambda arrays, report: report.update(samples=-5), "its number of samples is -5"),
        (lambda arrays, report: report.update(samples=2**62), "its number of samples is"),
        (lambda arrays, report: report.update(validation=float("nan")), "its validation loss is nan"),
        (lambda arrays, report: report.update(validation=1e39), "its validation loss is 1e+39"),
        (
            lambda arrays, report: report.update(validation=-1e30),
            "its validation loss is -1e+30, the round's",
        ),
        (lambda arrays, report: report.update(node=0), "it says it is number 0, but it is number 1"),
        (lambda arrays, report: report.update(node=7), "which node it is: 7"),
        (lambda arrays, report: report.clear(), "which node it is: None"),
    ],
)
def test_what_no_honest_node_sends_is_refused_by_name(
    change: Any, why: str, settings: Settings, nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(settings, rounds=2)
    nodes.settings, nodes.tamper = settings, poison(change)
    found = run(nodes)
    assert why in found.rounds[1]["left_out"]["node-1"]
    assert list(found.rounds[1]["counted"]) == ["node-0", "node-2"]
    assert "round 2 of 2: node-1 is left out: " in capsys.readouterr().out
    for weight in load_file(Path(settings.folder, server.MODEL)).values():
        assert bool(weight.isfinite().all()) and weight.abs().max() < 10


def test_a_node_with_many_times_the_others_samples_counts_as_ten_of_them(
    nodes: Nodes, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes.tamper = poison(lambda arrays, report: report.update(samples=10**12))
    found = run(nodes, replace(settings, rounds=2))
    assert found.rounds[1]["counted"] == {"node-0": 10, "node-1": 500, "node-2": 50}
    assert "round 2 of 2: node-1 weighs as 500 of its 1000000000000 samples" in capsys.readouterr().out


def claims(number: int) -> Tamper:
    """SuperNode 0, which answers first, says that it is another."""

    def tamper(node: int, reply: Message) -> Message:
        if node == 0:
            reply.content["report"]["node"] = number  # type: ignore[call-overload, index]
        return reply

    return tamper


def test_a_registered_node_cannot_answer_as_another(nodes: Nodes) -> None:
    """Not even before that one answers: whose key it is says who it is."""
    nodes.registered = {node: f"node-{node}" for node in range(NODES)}
    nodes.tamper = claims(1)
    *trained, judged = run(nodes).rounds
    for entry in (*trained, judged):
        assert entry["left_out"] == {"node-0": "it says it is number 1, but it is number 0"}
        assert list(entry["validation"]) == ["node-1", "node-2"]


def test_a_number_is_the_first_ones_that_answers_as_it(nodes: Nodes) -> None:
    nodes.tamper = claims(1)
    for entry in run(nodes).rounds:
        assert entry["left_out"] == {"SuperNode 1": "it says it is number 1, but that is node-1"}


def test_names_that_are_registered_twice_are_told_apart(nodes: Nodes) -> None:
    """The number is the first one's; a name that says nothing of a number doesn't bind it."""
    nodes.registered = {0: "node-0", 1: "node-0", 2: "oslo"}
    for entry in run(nodes).rounds:
        assert list(entry["validation"]) == ["node-0", "node-0 (1)", "oslo"]


def test_a_robust_average_is_not_led_away(nodes: Nodes, settings: Settings) -> None:
    """One of three sends the way back nine times: within what is usual, and the mean follows."""
    settings = replace(settings, rounds=3)
    honest = run(nodes, settings).progress

    def backwards(node: int, reply: Message) -> Message:
        if node == 2 and "weights" in reply.content:
            sent = {name: array.numpy() for name, array in reply.content["weights"].items()}
            before = {
                name: weight.numpy()
                for name, weight in Training.read(
                    Path(settings.folder, server.CHECKPOINT), lying
                ).progress.parameters.items()
            }
            lie = {name: Array(before[name] - 9 * (sent[name] - before[name])) for name in sent}
            reply.content["weights"] = ArrayRecord(lie)
        return reply

    away = {}
    for average in ("mean", "median"):
        lying = replace(settings, aggregation=average)
        liars = Nodes(nodes.folder.parent / average, lying, tamper=backwards)
        found = run(liars).progress
        away[average] = sum(
            float((found.parameters[name] - weight).square().sum())
            for name, weight in honest.parameters.items()
        )
    assert away["median"] < 0.1 * away["mean"]


def test_an_average_that_needs_more_nodes_is_refused(settings: Settings) -> None:
    for average, least in (("krum:1", 5), ("trimmed-mean:0.2", 5)):
        with pytest.raises(DefianceError, match=f"{average} needs {least} updates a round; there are 3"):
            replace(settings, aggregation=average)


def test_a_client_that_raises_is_named_and_never_counted(
    nodes: Nodes, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def local(place: Any) -> Any:
        if place.node == 2:
            raise ZeroDivisionError("division\nby zero")
        return tiny_federated.local(place)

    monkeypatch.setitem(WORK.__dict__, "local", local)
    *trained, judged = run(nodes).rounds
    for entry in (*trained, judged):
        assert entry["left_out"] == {"node-2": "it failed: ZeroDivisionError: division by zero"}
        assert list(entry["validation"]) == ["node-0", "node-1"]
    assert all(list(entry["counted"]) == ["node-0", "node-1"] for entry in trained)
    assert judged["counted"] == {}


def test_flowers_own_error_replies_count_as_failures(nodes: Nodes) -> None:
    def tamper(node: int, reply: Message) -> Message:
        if node == 0 and len(nodes.asked) == 2:
            asked = Message(RecordDict(), dst_node_id=0, message_type="train")
            asked.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
            return Message(Error(code=3, reason="Node unavailable"), reply_to=asked)
        return reply

    nodes.tamper = tamper
    assert run(nodes).rounds[1]["left_out"] == {"node-0": "it failed: Node unavailable"}


def test_too_few_nodes_end_it_and_what_was_done_is_kept(nodes: Nodes, settings: Settings) -> None:
    nodes.tamper = lambda node, reply: None if len(nodes.asked) == 3 else reply
    with pytest.raises(DefianceError, match="round 3 of 4: 0 nodes' replies count, 1 make a round"):
        run(nodes)
    assert Training.read(Path(settings.folder, server.CHECKPOINT), settings).progress.round == 2
    run(nodes, replace(settings, resume=True))
    equals_in_process(settings)


def test_nobody_there(nodes: Nodes, settings: Settings) -> None:
    nodes.online = set()
    with pytest.raises(DefianceError, match="0 of 3 SuperNodes are online"):
        run(nodes, replace(settings, start_timeout_s=0.0))


def test_flowers_simulation_ends_where_one_program_ends(settings: Settings) -> None:
    """By the command line, in a process of its own: Ray leaves warnings behind."""
    command = [sys.executable, "-m", "defiance", "fl", "simulate", "--app", f"{tiny_federated.__file__}:WORK"]
    command += ["--nodes", "3", "--rounds", "2", "--steps", "5", "--learning-rate", "0.02", "--seed", "3"]
    done = subprocess.run(
        [*command, "--out", settings.folder], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "round 2 of 2: 3 of 3 nodes" in done.stdout
    equals_in_process(replace(settings, rounds=2))
