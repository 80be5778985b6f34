"""Neural codecs of precoders: a convolutional one like CRNet, and a small transformer, with bits between.

```
 w ─▶ angle-delay picture [4, K, N] ─▶ encoder ─▶ sign: bits ─▶ decoder ─▶ picture ─▶ w_hat
          free phases taken out                                           1 - SGCS is the loss
```

A picture has the real and imaginary parts of both polarisations over delays and beams. In training the sign's
gradient is that of tanh (straight-through). Encoder and decoder are modules of their own, so that either can
come from another trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from defiance.control.csi.targets import (
    aligned,
    angle_delay,
    by_node,
    check_precoders,
    from_angle_delay,
    spatial_basis,
    unit,
)
from defiance.learn.training import Parameters
from defiance.radio.arrays import Panel
from defiance.seeding import Stream

Kind = Literal["convolutional", "transformer"]


class Residual(nn.Module):
    """A block like CRNet's (Lu, Wang, Song 2020): a wide and a narrow path, joined, beside the identity."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.wide = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, (5, 3), padding=(2, 1)),
        )
        self.narrow = nn.Conv2d(channels, width, (1, 3), padding=(0, 1))
        self.join = nn.Conv2d(2 * width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, K, N], the same."""
        both = torch.cat([self.wide(x), self.narrow(x)], 1)
        joined: Tensor = self.join(nn.functional.gelu(both))
        return x + joined


class Attention(nn.Module):
    """A transformer's layer, norms first."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width], the same."""
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        share = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)
        x = x + self.out((share @ v).transpose(1, 2).flatten(2))
        changed: Tensor = self.mlp(self.after(x))
        return x + changed


class Encoder(nn.Module):
    """A picture to logits, one per bit.

    Args:
        kind: of network.
        shape: of the picture, (4, K, N).
        bits: of a report.
        width: channels of convolutions, or of a token: a delay.
        layers: blocks.
    """

    def __init__(self, kind: Kind, shape: tuple[int, int, int], bits: int, width: int, layers: int) -> None:
        super().__init__()
        self.kind = kind
        channels, delays, beams = shape
        if kind == "transformer":
            self.enter = nn.Linear(channels * beams, width)
            self.place = nn.Parameter(torch.zeros(delays, width))
            self.body = nn.Sequential(*(Attention(width) for _ in range(layers)))
            self.leave = nn.Linear(delays * width, bits)
        else:
            self.body = nn.Sequential(*(Residual(channels, width) for _ in range(layers)))
            self.leave = nn.Linear(channels * delays * beams, bits)

    def forward(self, picture: Tensor) -> Tensor:
        """[B, 4, K, N] -> [B, bits]."""
        if self.kind == "transformer":
            tokens = self.enter(picture.transpose(1, 2).flatten(2)) + self.place
        else:
            tokens = picture
        logits: Tensor = self.leave(self.body(tokens).flatten(1))
        return logits


class Decoder(nn.Module):
    """Bits, as -1 and 1, to a picture; arguments as of `Encoder`."""

    def __init__(self, kind: Kind, shape: tuple[int, int, int], bits: int, width: int, layers: int) -> None:
        super().__init__()
        self.kind, self.shape = kind, shape
        channels, delays, beams = shape
        if kind == "transformer":
            self.enter = nn.Linear(bits, delays * width)
            self.body = nn.Sequential(*(Attention(width) for _ in range(layers)))
            self.leave = nn.Linear(width, channels * beams)
        else:
            self.enter = nn.Linear(bits, channels * delays * beams)
            self.body = nn.Sequential(*(Residual(channels, width) for _ in range(layers)))

    def forward(self, signs: Tensor) -> Tensor:
        """[B, bits] -> [B, 4, K, N]."""
        channels, delays, beams = self.shape
        if self.kind == "transformer":
            tokens = self.body(self.enter(signs).unflatten(1, (delays, -1)))
            found: Tensor = self.leave(tokens).unflatten(-1, (channels, beams)).transpose(1, 2)
        else:
            found = self.body(self.enter(signs).view(-1, channels, delays, beams))
        return found


def signs(logits: Tensor) -> Tensor:
    """-1 and 1, with the gradient of tanh."""
    soft = torch.tanh(logits)
    return soft + (torch.where(logits > 0, 1.0, -1.0) - soft).detach()


def pictures(w: Tensor, basis: Tensor) -> Tensor:
    """Angle-delay pictures of precoders, without their free phases, float32 [n, 4, K, N], mean square 1.

    Delay 0 is in the middle; the strongest entry is real.
    """
    spectrum = torch.fft.fftshift(angle_delay(aligned(w), basis), dim=2)
    flat = spectrum.flatten(1)
    strongest = flat.gather(1, flat.abs().argmax(1, keepdim=True))
    spectrum = spectrum * torch.polar(torch.ones(len(w)), -strongest.angle()[:, 0])[:, None, None, None]
    scale = (spectrum[0].numel() / spectrum.shape[2]) ** 0.5
    found: Tensor = scale * torch.view_as_real(spectrum).movedim(-1, 2).flatten(1, 2)
    return found


def precoders(picture: Tensor, basis: Tensor) -> Tensor:
    """The inverse of `pictures`, complex64 [n, K, ports], norm 1."""
    spectrum = torch.view_as_complex(picture.unflatten(1, (2, 2)).movedim(2, -1).contiguous())
    return unit(from_angle_delay(torch.fft.ifftshift(spectrum, dim=2), basis))


def picture_loss(picture: Tensor, decoded: Tensor) -> Tensor:
    """1 - SGCS, mean over sub-bands and samples, []: the beams' transform is unitary and left out."""
    over_band = [
        torch.fft.ifft(
            torch.complex(p[..., 0::2, :, :].contiguous(), p[..., 1::2, :, :].contiguous()), dim=-2
        )
        for p in (picture, decoded)
    ]
    w, w_hat = over_band
    met = (w.conj() * w_hat).sum((-3, -1))
    power = w.abs().square().sum((-3, -1)) * w_hat.abs().square().sum((-3, -1))
    found: Tensor = 1 - ((met.real.square() + met.imag.square()) / power.clamp(min=1e-12)).mean()
    return found


@dataclass(frozen=True)
class Network:
    """A neural codec's shape.

    Attributes:
        kind: of both networks.
        panel: dual.
        subbands: K.
        bits: of a report.
        width, layers: of both networks.
    """

    kind: Kind
    panel: Panel
    subbands: int
    bits: int
    width: int
    layers: int = 2

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a picture."""
        return 4, self.subbands, self.panel.rows * self.panel.columns

    def encoder(self) -> Encoder:
        """The device's half, without weights."""
        with torch.device("meta"):
            return Encoder(self.kind, self.shape, self.bits, self.width, self.layers)

    def decoder(self) -> Decoder:
        """The station's half, without weights."""
        with torch.device("meta"):
            return Decoder(self.kind, self.shape, self.bits, self.width, self.layers)

    def initial(self, nodes: int, random: Stream) -> Parameters:
        """Random weights `encoder.*` and `decoder.*`, the same for every node, [nodes, ...]."""
        generator = random.generator()
        halves = {"encoder": self.encoder(), "decoder": self.decoder()}
        return {
            f"{half}.{name}": _initial(name, weight.shape, generator).expand(nodes, *weight.shape).clone()
            for half, module in halves.items()
            for name, weight in module.named_parameters()
        }

    def loss(self, parameters: Parameters, picture: Tensor, decoder: Network | None = None) -> Tensor:
        """1 - SGCS of every node, [nodes], on pictures [nodes, B, 4, K, N].

        Args:
            parameters: `encoder.*` and `decoder.*`, [nodes, ...].
            picture: what is fed back.
            decoder: shape of the station's half where it is another one.
        """
        device, station = self.encoder(), (decoder or self).decoder()

        def one(weights: Parameters, own: Tensor) -> Tensor:
            logits = functional_call(device, half(weights, "encoder"), (own,))
            return picture_loss(own, functional_call(station, half(weights, "decoder"), (signs(logits),)))

        return _each(one, parameters, picture)

    def imitation_loss(self, parameters: Parameters, picture: Tensor, bits: Tensor) -> Tensor:
        """Cross-entropy of the encoder's bits with another encoder's, [nodes].

        Args:
            parameters: `encoder.*`, [nodes, ...].
            picture: [nodes, B, 4, K, N].
            bits: of the other one, float [nodes, B, bits].
        """
        device = self.encoder()

        def one(weights: Parameters, own: Tensor, wanted: Tensor) -> Tensor:
            logits = functional_call(device, half(weights, "encoder"), (own,))
            return nn.functional.binary_cross_entropy_with_logits(logits, wanted)

        return _each(one, parameters, picture, bits)


def _each(one: Callable[..., Tensor], parameters: Parameters, *batch: Tensor) -> Tensor:
    """A loss of every node, [nodes]; a single node needs no vmap, which has slower kernels."""
    if len(batch[0]) == 1:
        return one({name: w[0] for name, w in parameters.items()}, *(each[0] for each in batch))[None]
    found: Tensor = vmap(one)(parameters, *batch)
    return found


def _initial(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Uniform up to fan-in^-1/2; biases 0, and norms the identity."""
    if len(shape) == 1:
        return torch.full(shape, float(name.endswith("weight")))
    found: Tensor = (2 * torch.rand(shape, generator=generator) - 1) * shape[1:].numel() ** -0.5
    return found


def half(parameters: Mapping[str, Tensor], of: str) -> Parameters:
    """Weights of the `encoder` or `decoder` under the names that its module has."""
    return {name.removeprefix(f"{of}."): w for name, w in parameters.items() if name.startswith(f"{of}.")}


@dataclass(frozen=True)
class Neural:
    """A trained neural codec; cells of one node share its weights.

    Attributes:
        network: its shape.
        parameters: `encoder.*` and `decoder.*`, [nodes, ...].
        node: whose weights each cell uses, int64 [cells].
        decoder: shape of the station's half where it is another one.
    """

    network: Network
    parameters: Parameters
    node: Tensor
    decoder: Network | None = None

    @property
    def bits(self) -> int:
        """Of one report."""
        return self.network.bits

    def encode(self, w: Tensor, cell: Tensor) -> Tensor:
        """Signs of the encoder's logits."""
        check_precoders(w, self.network.panel)
        picture = pictures(w, spatial_basis(self.network.panel)[0])
        return (self._by_node("encoder", self.network.encoder(), picture, cell) > 0).to(torch.uint8)

    def decode(self, bits: Tensor, cell: Tensor) -> Tensor:
        """The decoder's picture as precoders."""
        module = (self.decoder or self.network).decoder()
        picture = self._by_node("decoder", module, 2.0 * bits - 1, cell)
        return precoders(picture, spatial_basis(self.network.panel)[0])

    def _by_node(self, name: str, module: nn.Module, inputs: Tensor, cell: Tensor) -> Tensor:
        weights = half(self.parameters, name)
        found: Tensor | None = None
        with torch.no_grad():
            for number, at in by_node(self.node, cell):
                mine = {key: w[number] for key, w in weights.items()}
                outputs = torch.cat(
                    [functional_call(module, mine, (part,)) for part in inputs[at].split(500)]
                )
                found = outputs.new_empty(len(inputs), *outputs.shape[1:]) if found is None else found
                found[at] = outputs
        assert found is not None
        return found
