"""Learned vector quantisation of event maps: a product codebook whose first groups matter most.

```
 frames ─▶ event map ─▶ Cnn ─▶ z [B,G,d] ─▶ nearest of K codewords ─▶ index, log2(K) bits each
                                            in each of G groups        |
 decoded map [B,2S,cells,cells] ◀─ perceptron ◀─ codewords of the first groups, zeros for the rest ◀┘
```

The network learns to restore the map, not to classify (VQ-VAE, van den Oord et al. 2017). It is trained with
a random number of leading groups (nested dropout, Rippel et al. 2014), so that one model serves every budget
of bits. Distances make a softmax, through which gradients pass straight to both z and the codewords.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from defiance.codecs.codec import Loss
from defiance.codecs.conventional import Cnn, dense, event_map, perceptron
from defiance.codecs.joint import binary_map
from defiance.learn.training import Parameters


@dataclass(frozen=True)
class VqConfig:
    """Sizes of a product codebook and of the networks around it.

    Attributes:
        size: rows and columns of pixels that are seen, in the sensor's middle.
        slices: S, slices of time of the event map.
        cells: rows and columns of the decoded map.
        threshold: events from which on a cell of that map is one.
        groups: G, at most in use.
        index_bits: log2(K), bits of a group's index.
        width: d, of a codeword.
        hidden: neurons of each network's hidden layer.
    """

    size: int = 28
    slices: int = 3
    cells: int = 14
    threshold: int = 2
    groups: int = 128
    index_bits: int = 4
    width: int = 4
    hidden: int = 256

    @property
    def device(self) -> Cnn:
        """The network that makes z from the sensor's event map."""
        outputs = self.groups * self.width
        return Cnn(2 * self.slices, self.size, outputs, hidden=self.hidden)


@dataclass(frozen=True)
class Vq:
    """A trained quantiser.

    Attributes:
        config: sizes.
        parameters: `device.*`, `codebook` [G, K, d], `edge.*`.
    """

    config: VqConfig
    parameters: Mapping[str, Tensor]

    @staticmethod
    def initial(config: VqConfig, generator: torch.Generator) -> Parameters:
        """Return random weights."""
        shape = (config.groups, 1 << config.index_bits, config.width)
        cells = 2 * config.slices * config.cells**2
        return (
            config.device.initial("device", generator)
            | {"codebook": torch.randn(shape, generator=generator)}
            | dense("edge.hidden", (config.hidden, config.groups * config.width), generator)
            | dense("edge.output", (cells, config.hidden), generator, gain=1.0)
        )

    def compress(self, frames: Tensor, bits: int) -> Tensor:
        """Return the indices of as many groups as fit, as bits; the rest is zero.

        Args:
            frames: uint8 [B, T, 2, H, W].
            bits: k.

        Returns:
            float32 [B, k].
        """
        index = self._distance(frames).argmin(-1)[:, : bits // self.config.index_bits]
        indices = (index[..., None] >> self._places()) & 1
        return functional.pad(indices.flatten(1).float(), (0, bits - indices[0].numel()))

    def restore(self, bits: Tensor) -> Tensor:
        """Return the decoded map: -1 surely no events, 1 surely some.

        Args:
            bits: float [B, k], zeros and ones.

        Returns:
            float32 [B, 2 S, cells, cells].
        """
        config = self.config
        used = min(bits.shape[1] // config.index_bits, config.groups)
        digits = bits[:, : used * config.index_bits].long().view(len(bits), used, config.index_bits)
        index = (digits << self._places()).sum(-1)
        words = self.parameters["codebook"][torch.arange(used), index]
        return torch.tanh(self._logits(functional.pad(words, (0, 0, 0, config.groups - used))) / 2)

    def distort(self, frames: Tensor, bits: int, errors: Tensor) -> Tensor:
        """Return what `restore` makes of `compress` if the channel changes bits.

        Args:
            frames: uint8 [B, T, 2, H, W].
            bits: k.
            errors: bool [B, k].
        """
        return self.restore((self.compress(frames, bits).bool() ^ errors).float())

    def loss(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean binary cross-entropy of the decoded map; how many groups arrive is log-uniform."""
        config = self.config
        distance = self._distance(frames)
        soft = torch.softmax(-distance, -1)
        hard = functional.one_hot(distance.argmin(-1), 1 << config.index_bits)
        words = torch.einsum("bgk,gkd->bgd", hard + soft - soft.detach(), self.parameters["codebook"])
        used = (math.log(config.groups + 1) * torch.rand(len(frames), 1, generator=generator)).exp().floor()
        kept = torch.arange(config.groups) < used
        counts = event_map(frames, config.size, config.slices, config.cells)
        target = binary_map(counts, 2, config.threshold)
        logits = self._logits(words * kept[..., None])
        return functional.binary_cross_entropy_with_logits(logits, target.flatten(1, 2))

    def _distance(self, frames: Tensor) -> Tensor:
        """Squared distances to all codewords, [B, G, K]."""
        config = self.config
        images = torch.log1p(event_map(frames, config.size, config.slices, config.size)).flatten(1, 2)
        z = config.device(self.parameters, "device", images).view(len(frames), config.groups, 1, config.width)
        return (z - self.parameters["codebook"]).square().sum(-1)

    def _logits(self, words: Tensor) -> Tensor:
        """Log-odds of events in each cell, [B, 2 S, cells, cells], from codewords [B, G, d]."""
        config = self.config
        logits = perceptron(self.parameters, "edge", words.flatten(1))
        return logits.view(len(words), 2 * config.slices, config.cells, config.cells)

    def _places(self) -> Tensor:
        return torch.arange(self.config.index_bits)


def vq_loss(config: VqConfig) -> Loss:
    """Return the quantiser's loss as `train` wants it; labels and Eb/N0 are not looked at."""

    def loss(
        parameters: Parameters, frames: Tensor, labels: Tensor, ebn0_db: Tensor, generator: torch.Generator
    ) -> Tensor:
        return Vq(config, parameters).loss(frames, generator)

    return loss
