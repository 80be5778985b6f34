"""Handover functions as ONNX: the same decisions as here, and files that nobody has to trust."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from scenes import small_scene
from test_drives import GOOD, changed, write
from torch import Tensor
from worlds import RADIO, corridor, gain_for_snr

from defiance import config
from defiance.cli import main
from defiance.control import onnx_exchange
from defiance.control.experience import ValueModel, initial_parameters, slots
from defiance.control.handover import HISTORY, Learned
from defiance.control.onnx_exchange import CONTRACT, load, to_onnx
from defiance.errors import DefianceError
from defiance.network.measurements import Observation
from defiance.network.simulate import simulate
from defiance.network.state import NONE
from defiance.parts import Parts
from defiance.seeding import stream
from defiance.studies.worth.settings import QUICK
from defiance.studies.worth.training import Model

DOCUMENT = (Path(__file__).parents[1] / "docs" / "interfaces.md").read_text(encoding="utf-8")
EXAMPLES = [code for code in re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.S | re.M) if "onnx" in code]
SCENE = small_scene()


def function(nodes: int, threshold: float = 0.5) -> Learned:
    """Random weights, a large last layer: V differs by a few periods of outage."""
    parameters = initial_parameters((HISTORY * 3, 16, 16, 3), nodes, stream(1, "model"))
    noise = stream(2, "noise").generator()
    moved = {name: w + 0.3 * torch.randn(w.shape, generator=noise) for name, w in parameters.items()}
    return Learned(ValueModel(moved, SCENE.cell_site, slots(SCENE)), threshold, "device", 5)


def observations(count: int, users: int) -> list[Observation]:
    """Random levels of three cells, random serving cells, one measurement in ten missing."""
    rng = stream(3, "observations").generator()
    return [
        Observation(
            -128 + 60 * torch.rand(2, users, 3, generator=rng),
            torch.randint(3, (2, users), generator=rng, dtype=torch.int32),
            torch.rand(2, users, generator=rng) > 0.1,
            steps,
        )
        for steps in range(count)
    ]


def saved(path: Path, model: ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


# --- the same decisions ---


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_file_decides_as_the_function(tmp_path: Path, nodes: int) -> None:
    """25 measurements of 400 users: all choices alike, of every kind: staying, moving, being forced."""
    ours = function(nodes)
    onnx_exchange.export(ours, SCENE, tmp_path / "f.onnx")
    theirs = load(tmp_path / "f.onnx")
    assert (theirs.placement, theirs.period_steps, theirs.cells) == ("device", 5, 3)
    memory, other = ours.initial(2, 200, 3), theirs.initial(2, 200, 3)
    counts = torch.zeros(4, dtype=torch.int64)
    for observation in observations(25, 200):
        memory, wanted = ours.decide(memory, observation)
        other, found = theirs.decide(other, observation)
        assert torch.equal(found, wanted)
        counts += torch.bincount(wanted.flatten() + 1, minlength=4)
    assert (counts > 500).all()


def test_reports_of_whole_db_are_decided_alike(tmp_path: Path) -> None:
    """Another cell is often exactly as much weaker or stronger as the envelope allows; weights are large."""
    ours = function(2, threshold=-1e9)  # so that the envelope decides
    onnx_exchange.export(ours, SCENE, tmp_path / "f.onnx")
    theirs = load(tmp_path / "f.onnx")
    own = torch.arange(-110.0, -70.0).repeat_interleave(2)
    levels = torch.stack([own, own - 3, own + 10], -1)[None]
    levels[:, ::2, 2] = -128.0
    observation = Observation(levels, torch.zeros(1, 80, dtype=torch.int32), torch.ones(1, 80).bool(), 0)
    decided = [policy.decide(policy.initial(1, 80, 3), observation)[1] for policy in (ours, theirs)]
    assert torch.equal(*decided)
    blocked = replace(ours, threshold=1e9)  # so that strength alone decides: 10 dB are not more than 10
    assert (blocked.decide(blocked.initial(1, 80, 3), observation)[1] == NONE).all()


def test_it_runs_the_network_as_the_function(tmp_path: Path) -> None:
    levels = [[gain_for_snr(20.0 - 2 * abs(place - peak)) for peak in (0, 10, 20)] for place in range(21)]
    world = corridor(levels, users=3, speed_mps=30.0)
    onnx_exchange.export(function(2), SCENE, tmp_path / "f.onnx")
    runs = [
        simulate(world, RADIO, policy, stream(1, "m"), duration_s=4.0)
        for policy in (function(2), load(tmp_path / "f.onnx"))
    ]
    assert int(runs[0].state.handovers.sum()) > 0
    assert torch.equal(runs[0].state.handovers, runs[1].state.handovers)
    assert torch.equal(runs[0].state.bits, runs[1].state.bits)


def test_the_contract_names_what_a_host_must_know() -> None:
    (entry,) = to_onnx(function(2), SCENE).metadata_props
    about = json.loads(entry.value)
    assert entry.key == CONTRACT and about["schema"] == "defiance.handover/1"
    assert about["inputs"]["rsrp_dbm"]["shape"] == ["n", HISTORY, 3] and about["period_s"] == 0.1
    assert [cell["site"] for cell in about["cells"]] == SCENE.cell_site.tolist()


def test_another_network_is_refused(tmp_path: Path) -> None:
    onnx_exchange.export(function(1), SCENE, tmp_path / "f.onnx")
    with pytest.raises(DefianceError, match="made for 3 cells, the network has 7"):
        load(tmp_path / "f.onnx").initial(1, 1, 7)


# --- files of others ---


def graph_of(text: str, constants: dict[str, Any] | None = None, opset: int = 18) -> ModelProto:
    """A model with the contract's inputs and metadata around some nodes."""
    inputs = f"float[n, {HISTORY}, 3] rsrp_dbm, int64[n] serving"
    graph = onnx.parser.parse_graph(f"f ({inputs}) => (int64[n] target) {{ {text} }}")
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)])
    about = to_onnx(function(1), SCENE).metadata_props[0].value
    helper.set_model_props(model, {CONTRACT: about})
    return model


def test_a_function_of_others_is_welcome(tmp_path: Path) -> None:
    """The strongest cell now, in three nodes."""
    text = "last = Gather <axis = 1> (rsrp_dbm, newest) target = ArgMax <axis = 1, keepdims = 0> (last)"
    strongest = load(saved(tmp_path / "f.onnx", graph_of(text, {"newest": np.array(-1)})))
    observation = observations(1, 5)[0]
    _, wanted = strongest.decide(strongest.initial(2, 5, 3), observation)
    assert torch.equal(wanted, torch.where(observation.fresh, observation.rsrp_dbm.argmax(-1), NONE))


def external(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def branching(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Loop", ["a"], ["b"]))


def foreign_domain(model: ModelProto) -> None:
    model.graph.node[0].domain = "com.evil"


def reshaped(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7


def mute(model: ModelProto) -> None:
    del model.metadata_props[:]


def other_cells(model: ModelProto) -> None:
    model.metadata_props[0].value = model.metadata_props[0].value.replace('"cells": [', '"cells": [0, ')


def deep(model: ModelProto) -> None:
    model.metadata_props[0].value = "[" * 100_000


def renamed(model: ModelProto) -> None:
    model.graph.output[0].name = "serving2"


def truncated(model: ModelProto) -> None:
    model.graph.initializer[-1].raw_data = b"\0"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (external, "other files"),
        (branching, "operators Loop"),
        (foreign_domain, "operators"),
        (reshaped, "inputs are not"),
        (mute, "metadata has no"),
        (other_cells, "metadata has no"),
        (deep, "metadata has no"),
        (renamed, "not a valid model|output is not"),
        (truncated, "not a valid model"),
    ],
)
def test_hostile_changes_are_refused(
    tmp_path: Path, change: Callable[[ModelProto], None], problem: str
) -> None:
    model = to_onnx(function(2), SCENE)
    change(model)
    with pytest.raises(DefianceError, match=problem) as refused:
        load(saved(tmp_path / "f.onnx", model))
    assert "f.onnx" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "column = Unsqueeze (serving, one) target = Sub (serving, serving) square = Sub (serving, column)",
        "target = Sub (serving, serving) large = Mul (row, column)",
    ],
)
def test_values_without_bounds_are_refused(tmp_path: Path, text: str) -> None:
    """n x n elements, and 10,000 x 10,000."""
    line = np.zeros(10_000, np.float32)
    constants = {"one": np.array([1]), "row": line[None], "column" if "large" in text else "c": line[:, None]}
    with pytest.raises(DefianceError, match="more than 16777216 elements|not a valid model"):
        load(saved(tmp_path / "f.onnx", graph_of(text, constants)))


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DefianceError, match=r"absent\.onnx: cannot be read: No such file"):
        load(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_bytes(b"\xff\xfe not a protobuf")
    with pytest.raises(DefianceError, match="not an ONNX file"):
        load(tmp_path / "text.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(DefianceError, match="operator set"):
        load(tmp_path / "empty.onnx")
    text = "last = Gather <axis = 1> (rsrp_dbm, newest) target = ArgMax <axis = 1, keepdims = 0> (last)"
    with pytest.raises(DefianceError, match="operator set"):
        load(saved(tmp_path / "old.onnx", graph_of(text, {"newest": np.array(-1)}, opset=17)))
    monkeypatch.setattr(onnx_exchange, "LARGEST_BYTES", 100)
    with pytest.raises(DefianceError, match="more than 100"):
        load(saved(tmp_path / "old.onnx", graph_of(text, {"newest": np.array(-1)})))


def test_a_cell_that_is_not_there_is_refused_when_it_is_named(tmp_path: Path) -> None:
    text = "target = Add (serving, shift)"
    policy = load(saved(tmp_path / "f.onnx", graph_of(text, {"shift": np.array(1)})))
    history: Tensor = torch.zeros(2, HISTORY, 3)
    assert policy.targets(history, torch.tensor([0, 1])).tolist() == [1, 2]
    with pytest.raises(DefianceError, match=r"none of -1 \.\.\. 2"):
        policy.targets(history, torch.tensor([0, 2]))


# --- the command, and the examples ---


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run of `worth` that has trained one tiny model and judged it."""
    chosen = replace(QUICK, training=replace(QUICK.training, width=4))
    folder = tmp_path / "out" / "worth"
    parts = Parts.open(folder / "parts", "0" * 64)
    (folder / "config.toml").write_text(config.to_toml(chosen))
    model = Model("device", "central", "raw", 0)
    widths = (HISTORY * 21, 4, 4, 21)
    parts.put_tensors(model.key, initial_parameters(widths, 1, stream(1, "model")))
    parts.put(
        f"judge/{model.key}/munich/50kmh/load50/raw/seeds0-3", {"caps": [{"cap": 8.0, "setting": [0.6]}]}
    )
    return folder


def test_the_command_and_the_examples(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parents[1])
    write(Path("my.csv"), GOOD, changed("RAWCELLID", "1"), changed("Timestamp", "2020.02.14_09.38.30"))
    Path("my").mkdir()
    Path("my.csv").rename("my/monday.csv")
    for command, shown in (
        ("export", "threshold 0.6 of munich/50kmh/load50/cap8/raw"),
        ("run replay", "the network made 1 handovers"),
    ):
        (line,) = re.findall(rf"^ +defiance ({command} .*)$", DOCUMENT, re.M)
        with pytest.raises(SystemExit) as ended:
            main(line.split())
        assert ended.value.code == 0 and shown in " ".join(capsys.readouterr().out.split())
    for number, code in enumerate(EXAMPLES):
        exec(compile(code, f"interfaces.md, ONNX example {number + 1}", "exec"), {})
    assert len(EXAMPLES) == 2 and capsys.readouterr().out.startswith("3 0.1 [")


def test_models_that_a_run_has_not(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, problem in (
        (["--model", "learned-device/central/raw/seed7"], "the run has learned-device/local/raw/seed0"),
        (["--scenario", "munich/3kmh/load50/cap8/raw"], "the run has munich/50kmh/load50/cap8/raw"),
        ([], "has not judged learned-device/local/raw/seed0"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["export", str(run), str(run / "f.onnx"), *options])
        assert ended.value.code == 2 and problem in capsys.readouterr().err
    assert not (run / "f.onnx").exists()


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tmp_path), str(tmp_path / "f.onnx")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"defiance: {tmp_path}: no run's folder; give the one")
