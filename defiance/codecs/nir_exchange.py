"""The device half of S-VDIB as a NIR graph, for other simulators and chips, and what computes such graphs.

```
 input ─▶ conv1 ─▶ lif1 ─▶ conv2 ─▶ lif2 ─▶ flatten ─▶ hidden ─▶ lif3 ─┬▶ synapse_0 ──────────────▶ readout
                                                                       └▶ synapse_l ─▶ delay_l ───▶    "
 noise ───────────────────────────────────────────────────────────────────────────────────────────▶    "
 readout ─┬▶ past_l (a delay) ─▶ feedback_l ──────────────────────────────────────────────────────▶    "
          └▶ output
```

NIR: Pedersen et al., Nature Communications 15 (2024). All that reaches a node is added.

Time goes in steps of `step_s`. What a neuron receives within one is an impulse: a LIF neuron's potential
jumps by R/tau times it (R = tau here) and decays by exp(-step_s/tau) until the next. Filters are delays with
weights. A readout fires if its potential, noise included, is positive: with logistic noise that is a
Bernoulli draw of probability sigmoid(u).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from defiance.codecs.vdib import LAYERS, Vdib
from defiance.errors import DefianceError


def graph(codec: Vdib, step_s: float) -> nir.NIRGraph:
    """Return the device half; `step_s` is the duration of one frame.

    Its input "input" is events [2, size, size] per step, "noise" (only of readouts that fire at random) what
    is added to the readouts' potentials, [N], and "output" the spikes, [N].
    """
    config, weights = codec.config, {name: w.detach().cpu() for name, w in codec.parameters.items()}
    n, size = config.readouts, config.size
    nodes: dict[str, Any] = {"input": nir.Input({"input": np.array([2, size, size])})}
    edges, before = [], "input"
    shape: tuple[int, ...] = (2, size, size)
    for number, layer in enumerate(LAYERS, start=1):
        weight, bias = weights[f"device.{layer}.weight"], weights[f"device.{layer}.bias"].numpy()
        if weight.dim() == 4:
            padding = weight.shape[-1] // 2
            nodes[layer] = nir.Conv2d(shape[1:], weight.numpy(), 2, padding, 1, 1, bias)
            shape = tuple(int(length) for length in nodes[layer].output_type["output"])
        else:
            nodes["flatten"] = nir.Flatten({"input": np.array(shape)}, start_dim=0)
            edges.append((before, "flatten"))
            channels, rows, columns = shape
            last = weight.view(-1, rows, columns, channels)
            nodes[layer] = nir.Affine(last.permute(0, 3, 1, 2).flatten(1).numpy(), bias)
            before, shape = "flatten", (config.hidden,)
        nodes[f"lif{number}"] = _lif(weights[f"device.{layer}.decay"], shape, step_s)
        edges += [(before, layer), (layer, f"lif{number}")]
        before = f"lif{number}"
    per_basis = weights["device.readout.weight"].view(n, config.bases, config.hidden)
    synapses = torch.einsum("nkh,kl->lnh", per_basis, config.filters)
    feedback = (weights["device.feedback.weight"] @ config.filters).T
    for lag in range(config.lags):
        name = f"synapse_{lag}"
        if lag == 0:
            nodes[name] = nir.Affine(synapses[0].numpy(), weights["device.readout.bias"].numpy())
            edges += [(before, name), (name, "readout")]
        else:
            nodes[name], nodes[f"delay_{lag}"] = nir.Linear(synapses[lag].numpy()), _delay(lag, n, step_s)
            edges += [(before, name), (name, f"delay_{lag}"), (f"delay_{lag}", "readout")]
        nodes[f"past_{lag + 1}"] = _delay(lag + 1, n, step_s)
        nodes[f"feedback_{lag + 1}"] = nir.Scale(feedback[lag].numpy())
        chain = ("readout", f"past_{lag + 1}", f"feedback_{lag + 1}", "readout")
        edges += list(zip(chain[:-1], chain[1:], strict=True))
    nodes["readout"] = nir.Threshold(np.zeros(n, np.float32))
    if config.firing == "random":
        nodes["noise"] = nir.Input({"input": np.array([n])})
        edges.append(("noise", "readout"))
    nodes["output"] = nir.Output({"output": np.array([n])})
    return nir.NIRGraph(nodes, [*edges, ("readout", "output")])


def write(codec: Vdib, step_s: float, path: Path) -> None:
    """Write the device half to a NIR file (HDF5)."""
    nir.write(path, graph(codec, step_s))


def read(path: Path) -> nir.NIRGraph:
    """Read a NIR file.

    Raises:
        DefianceError: it can't be read, or isn't a NIR graph.
    """
    try:
        return nir.read(path)
    except Exception as problem:  # whatever a broken or foreign HDF5 file makes the two libraries raise
        raise DefianceError(f"{path}: not a NIR graph: {problem or type(problem).__name__}") from problem


def logistic_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return noise with which `u + noise > 0` is a Bernoulli draw of sigmoid(u); the draws of `bernoulli`."""
    return -torch.logit(torch.rand(shape, generator=generator))


def run(network: nir.NIRGraph, inputs: Mapping[str, Tensor], step_s: float) -> dict[str, Tensor]:
    """Compute a graph step by step.

    Args:
        network: of Conv2d, Affine, Linear, Scale, Flatten, Delay, Threshold and LIF nodes.
        inputs: what each input node gives, float32 [B, T, ...].
        step_s: duration of a step.

    Returns:
        What each output node receives, float32 [B, T, ...].

    Raises:
        DefianceError: another kind of node, a loop without a delay, or an input that is missing.
    """
    sources: dict[str, list[str]] = {name: [] for name in network.nodes}
    for before, after in network.edges:
        sources[after].append(before)
    missing = network.inputs.keys() - inputs.keys()
    if missing:
        raise DefianceError(f"NIR graph: no input for {', '.join(sorted(missing))}")
    delayed = {name for name, node in network.nodes.items() if isinstance(node, nir.Delay)}
    try:
        within = {name: () if name in delayed else before for name, before in sources.items()}
        order = tuple(TopologicalSorter(within).static_order())
    except CycleError as problem:
        raise DefianceError(f"NIR graph: a loop without a delay: {' -> '.join(problem.args[1])}") from problem
    batch, steps = next(iter(inputs.values())).shape[:2]
    queues = {name: _queue(name, network.nodes[name], batch, step_s) for name in delayed}
    nodes = {
        name: _node(name, node, step_s)
        for name, node in network.nodes.items()
        if name not in delayed and name not in network.inputs
    }
    found: dict[str, list[Tensor]] = {name: [] for name in network.outputs}
    for step in range(steps):
        values = {name: queue.popleft() for name, queue in queues.items()}
        values |= {name: inputs[name][:, step] for name in network.inputs}
        for name in order:
            if name not in values:
                values[name] = nodes[name](_sum(values, sources[name]))
        for name, queue in queues.items():
            queue.append(_sum(values, sources[name]))
        for name, outputs in found.items():
            outputs.append(values[name])
    return {name: torch.stack(outputs, 1) for name, outputs in found.items()}


def _sum(values: Mapping[str, Tensor], names: list[str]) -> Tensor:
    total = values[names[0]]
    for name in names[1:]:
        total = total + values[name]
    return total


def _queue(name: str, node: Any, batch: int, step_s: float) -> deque[Tensor]:
    """Return what a delay holds at first."""
    lags = np.round(node.delay / step_s).astype(int)
    if lags.min() < 1 or lags.min() != lags.max():
        raise DefianceError(f"NIR graph: {name} must delay all its signals by the same one or more steps")
    return deque([torch.zeros(batch, *lags.shape)] * int(lags.min()))


def _node(name: str, node: Any, step_s: float) -> Callable[[Tensor], Tensor]:
    """Return a node as a function from what it receives in a step, [B, ...], to what it sends."""
    if isinstance(node, nir.Output):
        return lambda x: x
    if isinstance(node, nir.LIF):
        return _Lif(node, step_s)
    if isinstance(node, nir.Flatten):
        return lambda x: x.flatten(1)  # all but the batch
    if isinstance(node, nir.Threshold):
        threshold = torch.as_tensor(node.threshold)
        return lambda x: (x > threshold).float()
    if isinstance(node, nir.Scale):
        scale = torch.as_tensor(node.scale)
        return lambda x: x * scale
    if isinstance(node, nir.Affine | nir.Linear | nir.Conv2d):
        weight = torch.as_tensor(node.weight)
        bias = None if isinstance(node, nir.Linear) else torch.as_tensor(node.bias)
        if not isinstance(node, nir.Conv2d):
            return lambda x: functional.linear(x, weight, bias)
        if isinstance(node.padding, str):
            raise DefianceError(f"NIR graph: {name} pads {node.padding!r}; give numbers of pixels")
        stride, padding, dilation = (
            [int(length) for length in lengths] for lengths in (node.stride, node.padding, node.dilation)
        )
        return lambda x: functional.conv2d(x, weight, bias, stride, padding, dilation, int(node.groups))
    raise DefianceError(f"NIR graph: {name} is a {type(node).__name__}, which is not run here")


class _Lif:
    """A LIF node with its state: decays towards v_leak, jumps by R/tau of its input, resets after a spike."""

    def __init__(self, node: Any, step_s: float) -> None:
        self.decay = torch.as_tensor(np.exp(-step_s / node.tau)).float()
        self.gain = torch.as_tensor(node.r / node.tau).float()
        self.leak, self.threshold, self.reset = (
            torch.as_tensor(value).float() for value in (node.v_leak, node.v_threshold, node.v_reset)
        )
        self.potential = self.leak

    def __call__(self, received: Tensor) -> Tensor:
        potential = self.leak + (self.potential - self.leak) * self.decay + self.gain * received
        spikes = potential > self.threshold
        self.potential = torch.where(spikes, self.reset, potential)
        return spikes.float()


def _lif(decay: Tensor, shape: tuple[int, ...], step_s: float) -> Any:
    """Return the LIF node of a layer [C] or [C, H, W] from the logits of its decays, [C]."""
    alpha = torch.sigmoid(decay).double().view(-1, *[1] * (len(shape) - 1)).expand(shape)
    tau, zero = (-step_s / alpha.log()).numpy(), np.zeros(shape)
    return nir.LIF(tau=tau, r=tau, v_leak=zero, v_threshold=np.ones(shape), v_reset=zero)


def _delay(lag: int, readouts: int, step_s: float) -> Any:
    return nir.Delay(np.full(readouts, lag * step_s))
