"""snnTorch: `Leaky` stepped through time, everything without memory for all steps at once, channels last."""

from collections.abc import Callable
from importlib.metadata import version

import snntorch
import torch
from snntorch import surrogate
from torch import Tensor, nn

from benchmarks.peers.spiking import training
from benchmarks.worker import serve


class Lif(nn.Module):
    """LIF neurons that reset to zero, over [T, B, ...]."""

    def __init__(self) -> None:
        super().__init__()
        self.neuron = snntorch.Leaky(
            beta=0.8, reset_mechanism="zero", spike_grad=surrogate.fast_sigmoid(slope=2)
        )

    def forward(self, current: Tensor) -> Tensor:
        """Return their spikes."""
        potential, spiked = torch.zeros_like(current[0]), []
        for now in current:
            spikes, potential = self.neuron(now, potential)
            spiked.append(spikes)
        return torch.stack(spiked)


class AllSteps(nn.Module):
    """A layer without memory, applied to all steps at once."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, series: Tensor) -> Tensor:
        """From [T, B, ...] to [T, B, ...]."""
        now: Tensor = self.layer(series.flatten(0, 1))
        return now.unflatten(0, series.shape[:2])


def network() -> tuple[nn.Module, Callable[[], None]]:
    """The network, and how it forgets (it starts from rest by itself)."""
    layers = [
        *(nn.Conv2d(2, 16, 5, stride=2, padding=2), Lif()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), Lif()),
        *(nn.Flatten(), nn.Linear(1568, 256), Lif(), nn.Linear(256, 10)),
    ]
    stepped = [layer if isinstance(layer, Lif) else AllSteps(layer) for layer in layers]
    return nn.Sequential(*stepped), lambda: None


if __name__ == "__main__":
    serve(version("snntorch"), {"training": lambda: training(*network())})
