"""What snnTorch and spikingjelly train: shapes, batch, loss and optimiser of `benchmarks.ours.training`."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from benchmarks.worker import Program

BATCH, STEPS, SIZE, CLASSES = 100, 15, 28, 10
BATCHES = 4  # per call
ACTIVE = 0.05  # share of pixels that have seen an event in a step
LEARNING_RATE = 2e-3


def training(network: nn.Module, forget: Callable[[], None]) -> Program:
    """Forward, backward and Adam on the same batch again and again; a unit is a recording.

    Args:
        network: from events [T, B, 2, rows, columns] to logits [T, B, classes].
        forget: brings its neurons to rest.
    """
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    network = network.to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, foreach=True)
    drawn = torch.rand(STEPS, BATCH, 2, SIZE, SIZE, generator=generator)
    events = (drawn < ACTIVE).float()
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)

    def run() -> None:
        for _ in range(BATCHES):
            optimiser.zero_grad(set_to_none=True)
            forget()
            functional.cross_entropy(network(events).mean(0), labels).backward()
            optimiser.step()

    return Program(run, BATCHES * BATCH)
