"""S-VDIB: spikes that carry what the edge needs to know and little else (Ke et al., ICONS 2024, 2404.01804).

```
 device                                                              radio                 edge
 x_t ─▶ conv ─▶ LIF ─▶ conv ─▶ LIF ─▶ linear ─▶ LIF ─▶ SRM0 ─▶ z_t ─▶ channel ─▶ z_hat_t ─▶ q(y | z_hat_{<=t})
 events        [C1]           [C2]            [hidden]  ▲ │ [N]                   [N]       perceptron, causal
                                                        └─┘ feedback
```

The device's neurons are `codecs.neurons`: hidden ones integrate and fire, the N readouts draw their spikes,
z_{i,t} ~ Bernoulli(sigmoid(u_{i,t})), from a potential with synaptic and feedback filters. What is learned:

    E[ mean_t -log q(y | z_hat_{<=t}) + beta sum_t KL( p(z_hat_t | x, z_{<t}) || q(z_hat_t | z_hat_{t-1}) ) ]

H(Y) less the first term bounds the relevance I(y; z_hat) from below, the second one's sum bounds the
directed information I(x -> z_hat) from above (`codecs.vdib_learning`, `docs/coinference.md`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from defiance.codecs import neurons
from defiance.codecs.neurons import LifState
from defiance.errors import DefianceError
from defiance.learn.training import Parameters

LAYERS = ("conv1", "conv2", "hidden")
INITIAL_DECAY = 0.8


@dataclass(frozen=True)
class VdibConfig:
    """Sizes of both halves.

    The readouts fire at random, or, as an ablation, whenever their potential is positive.
    """

    steps: int = field(default=15, metadata={"min": 1, "help": "T, time steps of a recording"})
    size: int = field(
        default=28, metadata={"min": 4, "help": "rows and columns seen, in the sensor's middle"}
    )
    channels: tuple[int, int] = field(default=(16, 32), metadata={"min": 1, "help": "of both convolutions"})
    hidden: int = field(default=256, metadata={"min": 1, "help": "LIF neurons before the readouts"})
    readouts: int = field(default=32, metadata={"min": 1, "help": "N, channel uses per step"})
    bases: int = field(default=3, metadata={"min": 1, "help": "raised cosines per readout filter"})
    lags: int = field(default=8, metadata={"min": 1, "help": "time steps that readout filters reach back"})
    edge_hidden: int = field(default=256, metadata={"min": 1, "help": "neurons of both hidden layers"})
    classes: int = field(default=10, metadata={"min": 2})
    firing: Literal["random", "deterministic"] = "random"

    @property
    def layer_sizes(self) -> tuple[int, int, int]:
        """LIF neurons of each layer."""
        half = (self.size + 1) // 2
        quarter = (half + 1) // 2
        return self.channels[0] * half**2, self.channels[1] * quarter**2, self.hidden

    @property
    def filters(self) -> Tensor:
        """The readouts' raised cosines, [bases, lags]."""
        return neurons.raised_cosine(self.bases, self.lags)


def initial(config: VdibConfig, generator: torch.Generator) -> Parameters:
    """Return random weights; gains are such that about 6 % of the LIF neurons fire per step on N-MNIST."""

    def normal(gain: float, *shape: int) -> Tensor:
        fan_in = math.prod(shape[1:])
        return torch.randn(*shape, generator=generator) * (gain / math.sqrt(fan_in))

    first, second = config.channels
    n, h, e = config.readouts, config.hidden, config.edge_hidden
    device = {
        "conv1.weight": normal(1.5, first, 2, 5, 5),
        "conv2.weight": normal(1.75, second, first, 3, 3),
        "hidden.weight": normal(1.75, h, config.layer_sizes[1]),
        "readout.weight": normal(1.4, n * config.bases, h) / math.sqrt(config.bases),
        "readout.bias": torch.zeros(n),
        "feedback.weight": torch.zeros(n, config.bases),
    }
    for layer, width in zip(LAYERS, (first, second, h), strict=True):
        device[f"{layer}.bias"] = torch.zeros(width)
        device[f"{layer}.decay"] = torch.full((width,), math.log(INITIAL_DECAY / (1 - INITIAL_DECAY)))
    edge = {
        "arrival.weight": normal(1.0, e, config.steps, n).permute(1, 2, 0).contiguous(),
        "arrival.bias": torch.zeros(config.steps, e),
        "hidden.weight": normal(math.sqrt(2), e, e),
        "hidden.bias": torch.zeros(e),
        "output.weight": normal(1.0, config.classes, e),
        "output.bias": torch.zeros(config.classes),
    }
    return {
        **{f"device.{name}": weight for name, weight in device.items()},
        **{f"edge.{name}": weight for name, weight in edge.items()},
        "prior.bias": torch.zeros(n),
        "prior.weight": torch.zeros(n, n),
    }


class Drive(NamedTuple):
    """What the readouts receive, [B, T, N], and the spikes of the LIF layers before them, [B, T, F] each."""

    current: Tensor
    hidden: tuple[Tensor, ...]


def drive(parameters: Mapping[str, Tensor], config: VdibConfig, frames: Tensor) -> Drive:
    """Run the LIF layers. A layer's input current has no memory, so it is computed for all steps at once.

    Args:
        parameters: `device.*`.
        config: sizes.
        frames: events per bin, [B, T, 2, H, W]; the middle `config.size` rows and columns are seen.

    Raises:
        DefianceError: the frames are too small.
    """
    batch, steps = frames.shape[:2]
    series, hidden = _seen(config, frames), []
    for layer in LAYERS:
        current = _current(parameters, layer, series.flatten(0, 1)).view(batch, steps, -1)
        series = neurons.lif(current, _decay(parameters, layer, current))
        hidden.append(series)
    signals = _projected(parameters, config, series)
    return Drive(neurons.filtered(signals, config.filters) + parameters["device.readout.bias"], tuple(hidden))


def readout(
    parameters: Mapping[str, Tensor], config: VdibConfig, current: Tensor, fire: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the readouts' potentials u and spikes z, [B, T, N] each, from their drive and a way to fire."""
    return neurons.srm0(current, _feedback(parameters, config), fire)


def decode(parameters: Mapping[str, Tensor], received: Tensor) -> Tensor:
    """Infer from all that has arrived, after each step.

    The first layer sums what each step contributes, so a decision costs one step's work.

    Args:
        parameters: `edge.*`.
        received: [B, T, N], zeros and ones, or the probability of a one: 0.5 for what was lost.

    Returns:
        Logits [B, T, classes].
    """
    steps = received.shape[1]
    arrived = torch.einsum("btn,tne->bte", 2 * received - 1, parameters["edge.arrival.weight"][:steps])
    x = functional.relu(arrived.cumsum(1) + parameters["edge.arrival.bias"][:steps])
    x = functional.relu(
        functional.linear(x, parameters["edge.hidden.weight"], parameters["edge.hidden.bias"])
    )
    return functional.linear(x, parameters["edge.output.weight"], parameters["edge.output.bias"])


@dataclass(frozen=True)
class Vdib:
    """The codec.

    Attributes:
        config: sizes.
        parameters: weights of both halves, `device.*` and `edge.*`.
        name: a word for tables.
    """

    config: VdibConfig
    parameters: Mapping[str, Tensor]
    name: str = "s-vdib"

    @property
    def steps(self) -> int:
        """T."""
        return self.config.steps

    @property
    def channel_uses(self) -> int:
        """T x N."""
        return self.config.steps * self.config.readouts

    def encode(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Return spikes, float32 [B, T, N], of frames, uint8 [B, T, 2, H, W]."""
        current = drive(self.parameters, self.config, frames).current
        return readout(self.parameters, self.config, current, firing(self.config, generator))[1]

    def decode(self, received: Tensor) -> Tensor:
        """Return logits [B, T, classes]; `decode`."""
        return decode(self.parameters, received)


def firing(config: VdibConfig, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Return how the readouts turn potentials into spikes."""
    if config.firing == "deterministic":
        return neurons.spike
    return lambda potential: neurons.bernoulli(potential, generator)


class DeviceState(NamedTuple):
    """Of a device between two steps: LIF neurons, and what the readouts' filters reach back to."""

    layers: tuple[LifState, ...]
    signals: tuple[Tensor, ...] = ()
    spikes: tuple[Tensor, ...] = ()


def at_rest(config: VdibConfig, batch: int) -> DeviceState:
    """Return `batch` devices before their first step."""
    return DeviceState(tuple(neurons.lif_initial(torch.zeros(batch, count)) for count in config.layer_sizes))


def device_step(
    parameters: Mapping[str, Tensor],
    config: VdibConfig,
    state: DeviceState,
    frame: Tensor,
    generator: torch.Generator,
) -> tuple[DeviceState, Tensor]:
    """Advance a stream by one step; the same spikes as `Vdib.encode` of the whole recording.

    Args:
        parameters: `device.*`.
        config: sizes.
        state: from the step before, or `at_rest`.
        frame: events of this step, [B, 2, H, W].
        generator: draws.

    Returns:
        The state after this step, and spikes [B, N].
    """
    now, layers = _seen(config, frame[:, None])[:, 0], []
    for layer, before in zip(LAYERS, state.layers, strict=True):
        current = _current(parameters, layer, now)
        layers.append(neurons.lif_step(before, current, _decay(parameters, layer, current)))
        now = layers[-1].spikes
    signals = (*state.signals, _projected(parameters, config, now))[-config.lags :]
    recent = torch.stack(signals[::-1])
    synaptic = torch.einsum("lbnk,kl->bn", recent, config.filters[:, : len(signals)])
    potential = neurons.srm0_potential(
        synaptic + parameters["device.readout.bias"], state.spikes, _feedback(parameters, config)
    )
    spikes = firing(config, generator)(potential)
    return DeviceState(tuple(layers), signals, (*state.spikes, spikes)[-config.lags :]), spikes


@dataclass(frozen=True)
class Activity:
    """What the device does for each of B recordings.

    Attributes:
        events: input events seen, [B].
        spikes: of each LIF layer, [B, 3].
        sent: spikes of the readouts, [B].
        synaptic_operations: weights added to potentials because of events and spikes, [B].
        updates: neurons times steps, whose potentials decay and are compared with a threshold.
        filter_operations: multiply-accumulates of the readouts' filters.
        silent: share of the LIF neurons' activations that are zero.
    """

    events: Tensor
    spikes: Tensor
    sent: Tensor
    synaptic_operations: Tensor
    updates: int
    filter_operations: int
    silent: float


def activity(codec: Vdib, frames: Tensor, generator: torch.Generator) -> Activity:
    """Count what an event-driven device would do for these frames, uint8 [B, T, 2, H, W]."""
    config, parameters = codec.config, codec.parameters
    with torch.no_grad():
        driven = drive(parameters, config, frames)
        sent = readout(parameters, config, driven.current, firing(config, generator))[1]
    seen = _seen(config, frames)
    operations = driven.hidden[-1].sum((1, 2)) * (config.readouts * config.bases)
    for layer, x in zip(LAYERS, (seen, *driven.hidden), strict=False):
        operations += x.sum(1) @ _fan_out(parameters, layer, x.shape[-1])
    spikes = torch.stack([x.sum((1, 2)) for x in driven.hidden], 1)
    updates = config.steps * (sum(config.layer_sizes) + config.readouts)
    return Activity(
        events=seen.sum((1, 2)),
        spikes=spikes,
        sent=sent.sum((1, 2)),
        synaptic_operations=operations,
        updates=updates,
        filter_operations=config.steps * config.readouts * (config.bases + 1) * config.lags,
        silent=1 - float(spikes.sum()) / (len(frames) * config.steps * sum(config.layer_sizes)),
    )


def _seen(config: VdibConfig, frames: Tensor) -> Tensor:
    """Return the middle of the sensor as float [B, T, F]: rows, columns, polarity."""
    rows, columns = frames.shape[-2:]
    size = config.size
    if min(rows, columns) < size:
        raise DefianceError(f"vdib: frames of {rows} x {columns} pixels are smaller than size = {size}")
    top, left = (rows - size) // 2, (columns - size) // 2
    middle = frames[..., top : top + size, left : left + size]
    return middle.permute(0, 1, 3, 4, 2).float().flatten(2)


def _names(layer: str) -> tuple[str, str]:
    return f"device.{layer}.weight", f"device.{layer}.bias"


def _current(parameters: Mapping[str, Tensor], layer: str, x: Tensor) -> Tensor:
    """Return a layer's input current [M, F'] from its input [M, F], channels last in both."""
    weight, bias = (parameters[name] for name in _names(layer))
    if weight.dim() == 2:
        return functional.linear(x, weight, bias)
    channels = weight.shape[1]
    rows = math.isqrt(x.shape[1] // channels)
    image = x.view(len(x), rows, rows, channels).permute(0, 3, 1, 2)
    current = functional.conv2d(image, weight, bias, stride=2, padding=weight.shape[-1] // 2)
    return current.permute(0, 2, 3, 1).flatten(1)


def _fan_out(parameters: Mapping[str, Tensor], layer: str, inputs: int) -> Tensor:
    """Return how many potentials each input of a layer reaches, [F]: the gradient if all weights were one."""
    x = torch.zeros(1, inputs, requires_grad=True)
    ones = {name: torch.ones_like(parameters[name]) for name in _names(layer)}
    count: Tensor = torch.autograd.grad(_current(ones, layer, x).sum(), x)[0]
    return count[0]


def _decay(parameters: Mapping[str, Tensor], layer: str, current: Tensor) -> Tensor:
    """Return alpha of each neuron, [F]; a channel's neurons share one."""
    decay = torch.sigmoid(parameters[f"device.{layer}.decay"])
    return decay.repeat(current.shape[-1] // len(decay))


def _projected(parameters: Mapping[str, Tensor], config: VdibConfig, spikes: Tensor) -> Tensor:
    """Return each basis' input to each readout, [..., N, K], from hidden spikes [..., hidden]."""
    projected = functional.linear(spikes, parameters["device.readout.weight"])
    return projected.view(*spikes.shape[:-1], config.readouts, config.bases)


def _feedback(parameters: Mapping[str, Tensor], config: VdibConfig) -> Tensor:
    """Return eta, [lags, N]."""
    return (parameters["device.feedback.weight"] @ config.filters).T
