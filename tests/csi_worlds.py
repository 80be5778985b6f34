"""Channels for tests of channel feedback: a few plane waves, from directions that stay the same."""

import math

import torch
from torch import Tensor

from defiance.control.csi.targets import eigenvectors
from defiance.radio.arrays import Panel, Paths, channel

PANEL = Panel(4, 4, dual=True)
DEVICE = Panel(1, 1, dual=True)
SUBBANDS = 13
BAND = (360e3, 4 * SUBBANDS)


def waves(links: int, seed: int = 1, *, paths: int = 3) -> Tensor:
    """Channels [links, 2, 32, 52] of some paths, whose directions are eight that stay the same."""
    g = torch.Generator().manual_seed(seed)
    known = torch.Generator().manual_seed(99)
    zenith = 1.4 + 0.5 * torch.rand(8, generator=known)
    places = torch.stack([zenith, 2 * torch.rand(8, generator=known) - 1], -1)
    number = torch.randint(8, (links, paths), generator=g)
    gain = torch.view_as_complex(torch.randn(links, paths, 2, 2, 2, generator=g))
    gain = gain * (0.5 ** torch.arange(paths))[:, None, None]
    arrival = torch.stack([torch.full((links, paths), 1.5), 6.28 * torch.rand(links, paths, generator=g)], -1)
    delay = 4e-7 * torch.rand(links, paths, generator=g)
    return channel(Paths(delay, gain, places[number], arrival), PANEL, DEVICE, BAND)


def precoders(links: int, seed: int = 1, *, paths: int = 3) -> Tensor:
    """Their strongest eigenvectors, [links, 13, 32]."""
    return eigenvectors(waves(links, seed, paths=paths))


def on_the_grid() -> Tensor:
    """Of one path whose response turns by pi/2 from row to row and by -pi/4 from column to column."""
    zenith = math.acos(0.5)
    angles = torch.tensor([[[zenith, math.asin(-0.25 / math.sin(zenith))]]])
    gain = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]], dtype=torch.complex64)
    paths = Paths(torch.tensor([[3e-7]]), gain, angles, torch.tensor([[[math.pi / 2, 0.0]]]))
    return eigenvectors(channel(paths, PANEL, DEVICE, BAND))
