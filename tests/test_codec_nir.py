"""The device half through NIR and back."""

from dataclasses import replace
from pathlib import Path

import nir
import numpy as np
import pytest
import torch

from defiance.codecs import nir_exchange
from defiance.codecs.vdib import Vdib, VdibConfig, initial
from defiance.errors import DefianceError
from defiance.seeding import stream

CONFIG = VdibConfig(steps=7, size=10, channels=(3, 4), hidden=20, readouts=6, bases=2, lags=3, edge_hidden=8)
STEP_S = 0.021


def codec(config: VdibConfig) -> Vdib:
    generator = stream(3, "weights").generator()
    parameters = initial(config, generator)
    for name, weight in parameters.items():
        if name.endswith((".bias", ".decay")) or "feedback" in name:
            parameters[name] = weight + 0.3 * torch.randn(weight.shape, generator=generator)
    return Vdib(config, parameters)


@pytest.mark.parametrize("firing", ["random", "deterministic"])
def test_written_and_read_back_it_sends_the_same_spikes(tmp_path: Path, firing: str) -> None:
    ours = codec(replace(CONFIG, firing=firing))
    frames = torch.poisson(torch.full((5, 7, 2, 10, 10), 0.4), stream(3, "f").generator()).to(torch.uint8)
    nir_exchange.write(ours, STEP_S, tmp_path / "device.nir")
    network = nir_exchange.read(tmp_path / "device.nir")
    inputs = {"input": frames.float()}
    if firing == "random":
        generator = stream(3, "noise").generator()
        noise = [nir_exchange.logistic_noise((5, 6), generator) for _ in range(7)]
        inputs["noise"] = torch.stack(noise, 1)
    sent = nir_exchange.run(network, inputs, STEP_S)["output"]
    expected = ours.encode(frames, stream(3, "noise").generator())
    assert 0.05 < float(expected.mean()) < 0.95
    torch.testing.assert_close(sent, expected)


def test_time_constants_are_in_seconds() -> None:
    """A decay of 0.8 per 21 ms step is a time constant of 94 ms."""
    network = nir_exchange.graph(Vdib(CONFIG, initial(CONFIG, stream(3, "w").generator())), STEP_S)
    np.testing.assert_allclose(network.nodes["lif3"].tau, STEP_S / -np.log(0.8), rtol=1e-6)
    assert network.nodes["lif1"].tau.shape == (3, 5, 5)


def test_an_input_that_is_missing_is_named() -> None:
    network = nir_exchange.graph(codec(CONFIG), STEP_S)
    with pytest.raises(DefianceError, match="no input for noise"):
        nir_exchange.run(network, {"input": torch.zeros(1, 7, 2, 10, 10)}, STEP_S)


def loop(node: nir.NIRNode) -> nir.NIRGraph:
    nodes = {
        "input": nir.Input({"input": np.array([2])}),
        "sum": nir.Threshold(np.zeros(2)),
        "node": node,
        "output": nir.Output({"output": np.array([2])}),
    }
    return nir.NIRGraph(nodes, [("input", "sum"), ("sum", "node"), ("node", "sum"), ("sum", "output")])


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (nir.Scale(np.ones(2)), "a loop without a delay"),
        (nir.Delay(np.array([0.001, 0.002])), "node must delay all"),
        (nir.Delay(np.zeros(2)), "node must delay all"),
    ],
)
def test_graphs_that_steps_cannot_follow_are_refused(node: nir.NIRNode, message: str) -> None:
    with pytest.raises(DefianceError, match=message):
        nir_exchange.run(loop(node), {"input": torch.zeros(1, 3, 2)}, 0.001)


def test_a_delayed_loop_keeps_what_it_once_received() -> None:
    impulse = torch.zeros(1, 5, 2)
    impulse[0, 1, 0] = 1
    sent = nir_exchange.run(loop(nir.Delay(np.full(2, 0.002))), {"input": impulse}, 0.001)["output"]
    assert sent[0].T.tolist() == [[0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]


def test_nodes_that_are_not_run_are_named() -> None:
    parts = [nir.Input({"input": np.array([2])}), nir.IF(np.ones(2), np.ones(2))]
    network = nir.NIRGraph.from_list(*parts, nir.Output({"output": np.array([2])}))
    with pytest.raises(DefianceError, match="is a IF, which is not run here"):
        nir_exchange.run(network, {"input": torch.zeros(1, 3, 2)}, 0.001)


@pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_foreign_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.nir").write_bytes(content)
    with pytest.raises(DefianceError, match="broken.nir: not a NIR graph"):
        nir_exchange.read(tmp_path / "broken.nir")
    with pytest.raises(DefianceError, match="absent.nir: not a NIR graph"):
        nir_exchange.read(tmp_path / "absent.nir")


def test_a_single_node_is_not_a_graph(tmp_path: Path) -> None:
    nir.write(tmp_path / "node.nir", nir.Linear(np.ones((2, 2))))
    with pytest.raises(DefianceError, match="node.nir: not a NIR graph"):
        nir_exchange.read(tmp_path / "node.nir")
