"""Spikes at both ends, without a bottleneck, after NeuroJSCC (Skatchkovsky, Jang, Simeone, 2020, 2010.14434).

```
 x_t ─▶ device half of S-VDIB ─▶ z_t ─▶ channel ─▶ z_hat_t ─▶ linear ─▶ LIF ─▶ leaky integrators ─▶ logits
```

Learned end to end for what the edge is asked, nothing else; decides at every step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from defiance.codecs import neurons, vdib
from defiance.codecs.codec import Channel, Loss
from defiance.codecs.vdib import Vdib, VdibConfig
from defiance.learn.training import Parameters

INITIAL_DECAY = 0.9


@dataclass(frozen=True)
class NeuroJsccConfig:
    """Sizes of both halves.

    Attributes:
        device: of the device half; `device.firing` says whether its readouts fire at random.
        neurons: LIF neurons at the edge.
    """

    device: VdibConfig = VdibConfig()
    neurons: int = 256


@dataclass(frozen=True)
class NeuroJscc:
    """The codec.

    Attributes:
        config: sizes.
        parameters: `device.*`, as of `Vdib`, and `edge.*`.
    """

    config: NeuroJsccConfig
    parameters: Mapping[str, Tensor]

    @staticmethod
    def initial(config: NeuroJsccConfig, generator: torch.Generator) -> Parameters:
        """Return random weights."""
        device = {
            name: weight
            for name, weight in vdib.initial(config.device, generator).items()
            if name.startswith("device.")
        }
        inputs, hidden, classes = config.device.readouts, config.neurons, config.device.classes
        decay = math.log(INITIAL_DECAY / (1 - INITIAL_DECAY))
        return device | {
            "edge.hidden.weight": torch.randn(hidden, inputs, generator=generator) / math.sqrt(inputs),
            "edge.hidden.bias": torch.zeros(hidden),
            "edge.hidden.decay": torch.full((hidden,), decay),
            "edge.output.weight": torch.randn(classes, hidden, generator=generator) / math.sqrt(hidden),
            "edge.output.bias": torch.zeros(classes),
            "edge.output.decay": torch.full((classes,), decay),
        }

    @property
    def name(self) -> str:
        """A word for tables."""
        return "neurojscc"

    @property
    def steps(self) -> int:
        """T."""
        return self.config.device.steps

    @property
    def channel_uses(self) -> int:
        """T x N."""
        return self.steps * self.config.device.readouts

    def encode(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Return spikes, float32 [B, T, N], of frames, uint8 [B, T, 2, H, W]."""
        return Vdib(self.config.device, self.parameters).encode(frames, generator)

    def decode(self, received: Tensor) -> Tensor:
        """Return logits [B, T, C] from [B, T, N]."""
        weight = self.parameters
        current = functional.linear(
            2 * received - 1, weight["edge.hidden.weight"], weight["edge.hidden.bias"]
        )
        spikes = neurons.lif(current, torch.sigmoid(weight["edge.hidden.decay"]))
        added = functional.linear(spikes, weight["edge.output.weight"], weight["edge.output.bias"])
        kept = torch.sigmoid(weight["edge.output.decay"])
        logits = [added[:, 0]]
        for now in added[:, 1:].unbind(1):
            logits.append(kept * logits[-1] + now)
        return torch.stack(logits, 1)


def neurojscc_loss(config: NeuroJsccConfig, channel: Channel) -> Loss:
    """Return the cross-entropy of the decisions at all steps, as `train` wants it."""

    def loss(
        parameters: Parameters, frames: Tensor, labels: Tensor, ebn0_db: Tensor, generator: torch.Generator
    ) -> Tensor:
        codec = NeuroJscc(config, parameters)
        logits = codec.decode(channel(codec.encode(frames, generator), ebn0_db, generator))
        return functional.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1]))

    return loss
