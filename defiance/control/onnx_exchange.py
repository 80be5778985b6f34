"""Handover functions as ONNX (extra `onnx`): what was learned here leaves, what others made comes in.

A file is the whole decision, so that its host needs nothing but an ONNX runtime::

    rsrp_dbm float32 [n, HISTORY, C], serving int64 [n]  ──▶  target int64 [n]

n users at once; RSRP of all C cells in the last `HISTORY` measurements that arrived, oldest first, in dBm
(the floor where a cell was not heard; before the first measurement that one stands); the target is a cell, or
-1 to stay. A decision is due when a measurement arrived. The same stands in the file's metadata, as JSON
under `CONTRACT`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from torch import Tensor

from defiance.control.handover import (
    ENVELOPE_PERIODS,
    HISTORY,
    TIE_DB,
    Learned,
    LearnedMemory,
    remembered,
)
from defiance.errors import DefianceError
from defiance.network.loop import PERIOD_STEPS, Placement
from defiance.network.measurements import RSRP_FLOOR_DBM, Observation
from defiance.network.settings import RadioConfig
from defiance.network.state import NONE
from defiance.parts import read_at_most, write_atomically
from defiance.scene import Scene

CONTRACT, SCHEMA = "defiance.contract", "defiance.handover/1"
OPSET, IR_VERSION = 18, 10
LARGEST_BYTES = 2**26
MOST_NODES = 1000
MOST_ELEMENTS = 2**24
"""Of any value for one user: what a file may make a runtime allocate."""

OPERATORS = frozenset(
    "Abs Add And ArgMax ArgMin Cast Clip Concat Div Equal Exp Expand Flatten Gather GatherElements GatherND"
    " Gemm Greater GreaterOrEqual Identity LayerNormalization LeakyRelu Less LessOrEqual Log MatMul Max Min"
    " Mul Neg Not Or Pow ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Sigmoid Slice Softmax Split"
    " Sqrt Squeeze Sub Sum Tanh TopK Transpose Unsqueeze Where".split()
)
"""What a function may be made of: no loops, branches, files or code of others."""


def to_onnx(function: Learned, scene: Scene) -> ModelProto:
    """A learned handover function as one graph.

    Args:
        function: with a threshold that is a number.
        scene: whose cells it knows.
    """
    model = function.model
    cells = len(model.order)
    layers = len(model.parameters) // 2
    cell_node = model.cell_site if model.nodes > 1 else torch.zeros_like(model.cell_site)
    constants: dict[str, Any] = {
        "order": model.order.numpy(),
        "slot_of_cell": torch.argsort(model.order).numpy(),
        "cell_node": cell_node.numpy(),
        "middle": np.array([1]),
        "recent_from": np.array([-ENVELOPE_PERIODS]),
        "recent_to": np.array([np.iinfo(np.int64).max]),
        "stay": np.array(NONE),
        "zero_dbm": np.float32(-90.0),
        "scale_db": np.float32(20.0),
        "ten": np.float32(10.0),
        "db_per_neper": np.float32(10 / math.log(10)),
        "never": np.float32(-np.inf),
        "weaker_db": np.float32(-function.weaker_db - TIE_DB),
        "stronger_db": np.float32(function.stronger_db + TIE_DB),
        "threshold": np.float32(function.threshold),
    }
    constants |= {name: weight.detach().numpy() for name, weight in model.parameters.items()}
    perceptron = []
    for layer in range(layers):
        perceptron.append(f"product{layer} = MatMul (layer{layer}, weight{layer})")
        perceptron.append(f"sum{layer} = Add (product{layer}, bias{layer})")
        activation = "Relu" if layer < layers - 1 else "Identity"
        perceptron.append(f"layer{layer + 1} = {activation} (sum{layer})")
    graph = onnx.parser.parse_graph(
        f"""
        handover (float[n, {HISTORY}, {cells}] rsrp_dbm, int64[n] serving) => (int64[n] target) {{
            by_slots = Gather <axis = 2> (rsrp_dbm, order)
            above = Sub (by_slots, zero_dbm)
            normal = Div (above, scale_db)
            layer0 = Flatten <axis = 1> (normal)
            {" ".join(perceptron)}
            own = Unsqueeze (serving, middle)
            by_user = Transpose <perm = [1, 0, 2]> (layer{layers})
            node = Gather (cell_node, own)
            by_slot = GatherND <batch_dims = 1> (by_user, node)
            value = Gather <axis = 1> (by_slot, slot_of_cell)

            recent = Slice (rsrp_dbm, recent_from, recent_to, middle)
            bels = Div (recent, ten)
            power = Pow (ten, bels)
            mean = ReduceMean <keepdims = 0> (power, middle)
            nepers = Log (mean)
            level_db = Mul (nepers, db_per_neper)
            own_db = GatherElements <axis = 1> (level_db, own)
            strength_db = Sub (level_db, own_db)

            weak = Less (strength_db, weaker_db)
            allowed = Where (weak, never, value)
            best = ArgMax <axis = 1> (allowed)
            best_value = GatherElements <axis = 1> (allowed, best)
            own_value = GatherElements <axis = 1> (value, own)
            gain = Sub (best_value, own_value)
            promising = Greater (gain, threshold)
            strongest = ArgMax <axis = 1> (strength_db)
            strongest_db = GatherElements <axis = 1> (strength_db, strongest)
            forced = Greater (strongest_db, stronger_db)
            otherwise = Where (forced, strongest, stay)
            wanted = Where (promising, best, otherwise)
            target = Squeeze (wanted, middle)
        }}
        """
    )
    graph.initializer.extend(numpy_helper.from_array(np.asarray(c), name) for name, c in constants.items())
    made = onnx.helper.make_model(
        graph,
        producer_name="defiance",
        ir_version=IR_VERSION,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    )
    onnx.helper.set_model_props(made, {CONTRACT: json.dumps(contract(function, scene))})
    return made


def contract(function: Learned, scene: Scene) -> dict[str, Any]:
    """What a file's host must know: names, units, shapes, normalisation, when to ask, which cells."""
    cells = len(function.model.order)
    return {
        "schema": SCHEMA,
        "placement": function.placement,
        "period_s": PERIOD_STEPS[function.placement] * RadioConfig.step_s,
        "inputs": {
            "rsrp_dbm": {
                "unit": "dBm per resource element",
                "shape": ["n", HISTORY, cells],
                "type": "float32",
                "order": "oldest first; before the first measurement that one stands",
                "not_heard": RSRP_FLOOR_DBM,
                "normalisation": "(x + 90) / 20, inside the graph",
            },
            "serving": {"unit": "cell", "shape": ["n"], "type": "int64"},
        },
        "outputs": {"target": {"unit": "cell, -1 to stay", "shape": ["n"], "type": "int64"}},
        "scene": scene.name,
        "cells": [
            {"site": int(site), "azimuth_deg": float(azimuth)}
            for site, azimuth in zip(scene.cell_site, scene.azimuth_deg, strict=True)
        ],
    }


def export(function: Learned, scene: Scene, path: Path) -> None:
    """Write a learned handover function to an ONNX file, complete or not at all.

    Raises:
        DefianceError: the file can't be written.
    """
    made = to_onnx(function, scene)
    onnx.checker.check_model(made, full_check=True)
    write_atomically(path, made.SerializeToString())


@dataclass(frozen=True)
class OnnxHandover:
    """A handover function out of an ONNX file, as a policy.

    Attributes:
        session: of the runtime.
        cells: C that it was made for.
        placement: `station` sees reports, `device` its own measurements.
    """

    session: onnxruntime.InferenceSession
    cells: int
    placement: Placement

    @property
    def period_steps(self) -> int:
        """Steps between two decisions."""
        return PERIOD_STEPS[self.placement]

    def initial(self, worlds: int, users: int, cells: int) -> LearnedMemory:
        """Nothing measured yet.

        Raises:
            DefianceError: the network has another number of cells.
        """
        if cells != self.cells:
            raise DefianceError(f"the function was made for {self.cells} cells, the network has {cells}")
        return LearnedMemory(torch.full((worlds, users, HISTORY, cells), torch.nan))

    def decide(self, memory: LearnedMemory, observation: Observation) -> tuple[LearnedMemory, Tensor]:
        """What the graph says, for those of whom a measurement arrived.

        Raises:
            DefianceError: it names a cell that isn't there.
        """
        history_dbm = remembered(memory, observation)
        wanted = self.targets(history_dbm.flatten(0, 1), observation.serving.flatten())
        wanted = wanted.view_as(observation.serving)
        return LearnedMemory(history_dbm), torch.where(observation.fresh, wanted, NONE)

    def targets(self, history_dbm: Tensor, serving: Tensor) -> Tensor:
        """Targets `[n]` int64 of histories `[n, HISTORY, C]` and serving cells `[n]`; see `decide`."""
        inputs = {"rsrp_dbm": history_dbm.contiguous().numpy(), "serving": serving.long().numpy()}
        found: NDArray[np.int64] = self.session.run(["target"], inputs)[0]
        if found.shape != serving.shape or ((found < NONE) | (found >= self.cells)).any():
            raise DefianceError(f"the ONNX function names a cell that is none of -1 ... {self.cells - 1}")
        return torch.from_numpy(found)


def load(path: Path) -> OnnxHandover:
    """Read a handover function from an ONNX file that nobody has to trust.

    Raises:
        DefianceError: it can't be read, is too large, isn't ONNX, refers to other files, holds operators
            beyond `OPERATORS`, or doesn't keep the contract; what is wrong is named.
    """
    model, about = _read(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the runtime's own kinds have no common base but this
        raise DefianceError(f"{path}: the runtime refuses it: {_first_line(error)}") from error
    cells = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    return OnnxHandover(session, cells, about["placement"])


def _read(path: Path) -> tuple[ModelProto, dict[str, Any]]:
    """A model that keeps the contract, and what its metadata says."""

    def refuse(problem: str) -> DefianceError:
        return DefianceError(f"{path}: {problem}; `defiance export` writes what fits")

    content = read_at_most(path, LARGEST_BYTES)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # of the protobuf library, which comes with onnx
        raise refuse("not an ONNX file") from error
    graph = model.graph
    tensors = list(graph.initializer)
    if {(opset.domain, opset.version) for opset in model.opset_import} != {("", OPSET)}:
        raise refuse(f"its operator set is not ONNX's own, version {OPSET}")
    if model.functions or graph.sparse_initializer or len(graph.node) > MOST_NODES:
        raise refuse(f"holds functions, sparse tensors or more than {MOST_NODES} nodes")
    foreign = {node.op_type for node in graph.node if node.domain or node.op_type not in OPERATORS}
    if foreign:
        raise refuse(f"holds the operators {', '.join(sorted(foreign))[:100]}, which no function needs")
    if any(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data for tensor in tensors):
        raise refuse("its weights lie in other files")
    seen = [(value.name, *_shape(value)) for value in graph.input]
    history = seen[0][2] if seen else []
    cells = history[2] if len(history) == 3 else None
    if seen != [
        ("rsrp_dbm", TensorProto.FLOAT, ["n", HISTORY, cells]),
        ("serving", TensorProto.INT64, ["n"]),
    ] or not isinstance(cells, int):
        raise refuse(f"its inputs are not rsrp_dbm float32 [n, {HISTORY}, cells] and serving int64 [n]")
    if [(value.name, *_shape(value)) for value in graph.output] != [("target", TensorProto.INT64, ["n"])]:
        raise refuse("its output is not target int64 [n]")
    try:
        onnx.checker.check_model(model, full_check=True)
        shaped = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except Exception as error:  # checker and shape inference raise kinds without a common base
        raise refuse(f"not a valid model: {_first_line(error)}") from error
    sizes = [_shape(value)[1] for value in shaped.value_info]
    known = {value.name for value in (*shaped.value_info, *shaped.output)}
    if any(set(node.output) - known for node in graph.node) or any(map(_boundless, sizes)):
        raise refuse(f"a value's shape is unknown, or has more than {MOST_ELEMENTS} elements per user")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    try:
        about = json.loads(properties[CONTRACT])
        if about["schema"] == SCHEMA and about["placement"] in PERIOD_STEPS and len(about["cells"]) == cells:
            return model, about
    except (KeyError, TypeError, ValueError, RecursionError):
        pass
    raise refuse(f"its metadata has no {CONTRACT} of {SCHEMA} with placement and {cells} cells")


def _shape(value: Any) -> tuple[int, list[int | str | None]]:
    """Element type and dimensions: numbers, names, or None."""
    tensor = value.type.tensor_type
    return tensor.elem_type, [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim
    ]


def _boundless(shape: list[int | str | None]) -> bool:
    numbers = [dim for dim in shape if isinstance(dim, int)]
    others = [dim for dim in shape if not isinstance(dim, int)]
    return others not in ([], ["n"]) or math.prod(numbers) > MOST_ELEMENTS


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
