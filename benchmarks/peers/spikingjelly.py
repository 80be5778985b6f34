"""spikingjelly: multi-step mode, its own CPU kernels for LIF neurons, channels last."""

from collections.abc import Callable
from importlib.metadata import version

from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from benchmarks.peers.spiking import training
from benchmarks.worker import serve


def lif() -> nn.Module:
    """LIF neurons that keep 0.8 of their potential and reset to zero; the surrogate is the fast sigmoid's."""
    return neuron.LIFNode(
        tau=5.0, decay_input=False, surrogate_function=surrogate.SoftSign(alpha=2.0), detach_reset=True
    )


def network() -> tuple[nn.Module, Callable[[], None]]:
    """The network, and how it forgets."""
    layers = nn.Sequential(
        *(layer.Conv2d(2, 16, 5, stride=2, padding=2), lif()),
        *(layer.Conv2d(16, 32, 3, stride=2, padding=1), lif()),
        *(layer.Flatten(), layer.Linear(1568, 256), lif(), layer.Linear(256, 10)),
    )
    functional.set_step_mode(layers, "m")
    return layers, lambda: functional.reset_net(layers)


if __name__ == "__main__":
    serve(version("spikingjelly"), {"training": lambda: training(*network())})
