"""Spiking neurons as functions of time series `[B, T, F]`: leaky integrate-and-fire, and SRM0 (a GLM).

```
 LIF    v_t = alpha v_{t-1} (1 - s_{t-1}) + I_t          s_t = H(v_t - 1)       reset to zero after a spike
 SRM0   u_t = d_t + sum_{tau>=1} eta_tau s_{t-tau}       s_t = H(u_t)                        deterministic
                                                         s_t ~ Bernoulli(sigmoid(u_t))       probabilistic
```

with d_t = b + sum_{tau>=0} kappa_tau x_{t-tau}; kappa and eta are weighted raised cosines (Pillow et al.,
Nature 454, 2008). H has no gradient: its surrogate is that of the fast sigmoid (Zenke and Ganguli, Neural
Computation 2018), a Bernoulli draw passes its gradient straight through to its probability (Bengio et al.
2013), and the reset is held constant, as in snnTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional

SURROGATE_SLOPE = 2.0
Floats = npt.NDArray[np.float32]


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, potential: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(potential)
        ctx.slope = slope
        return (potential > 0).to(potential.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (potential,) = ctx.saved_tensors
        return gradient / (1 + ctx.slope * potential.abs()).square(), None


def spike(potential: Tensor, slope: float = SURROGATE_SLOPE) -> Tensor:
    """H(u), 1 where u > 0, with the gradient 1 / (1 + slope |u|)^2; any shape."""
    spikes: Tensor = _Spike.apply(potential, slope)  # type: ignore[no-untyped-call]
    return spikes


class LifState(NamedTuple):
    """Of LIF neurons between two steps: potential v and spikes s, `[B, F]` each."""

    potential: Tensor
    spikes: Tensor


def lif_initial(current: Tensor) -> LifState:
    """Return neurons at rest, for currents `[B, F]` (only their shape matters)."""
    return LifState(torch.zeros_like(current), torch.zeros_like(current))


def lif_step(state: LifState, current: Tensor, decay: Tensor, slope: float = SURROGATE_SLOPE) -> LifState:
    """v_t = alpha v_{t-1} (1 - s_{t-1}) + I_t; s_t = H(v_t - 1).

    Args:
        state: after the step before.
        current: I_t, [B, F], in thresholds.
        decay: alpha = exp(-dt/tau), [F] or a scalar.
        slope: of the surrogate gradient.
    """
    potential = decay * state.potential * (1 - state.spikes.detach()) + current
    return LifState(potential, spike(potential - 1, slope))


def lif(current: Tensor, decay: Tensor, slope: float = SURROGATE_SLOPE) -> Tensor:
    """Run LIF neurons through a whole recording; differentiable in both arguments.

    The same as `lif_step` in a loop; on a CPU, in float32, it is one fused loop.

    Args:
        current: [B, T, F].
        decay: alpha, [F].
        slope: of the surrogate gradient.

    Returns:
        Spikes [B, T, F], zeros and ones.
    """
    if current.device.type == "cpu" and current.dtype == torch.float32:
        spikes: Tensor = _FusedLif.apply(current, decay, slope)  # type: ignore[no-untyped-call]
        return spikes
    state, spiked = lif_initial(current[:, 0]), []
    for now in current.unbind(1):
        state = lif_step(state, now, decay, slope)
        spiked.append(state.spikes)
    return torch.stack(spiked, 1)


class _FusedLif(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, current: Tensor, decay: Tensor, slope: float) -> Tensor:
        current, decay = current.detach().contiguous(), decay.detach().contiguous()
        potential, spikes = torch.empty_like(current), torch.empty_like(current)
        _lif_forward(current.numpy(), decay.numpy(), potential.numpy(), spikes.numpy())
        ctx.save_for_backward(potential, decay)
        ctx.slope = slope
        return spikes

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        potential, decay = ctx.saved_tensors
        of_current, of_decay = torch.empty_like(potential), torch.zeros_like(decay)
        _lif_backward(
            potential.numpy(),
            gradient.contiguous().numpy(),
            decay.numpy(),
            np.float32(ctx.slope),
            of_current.numpy(),
            of_decay.numpy(),
        )
        return of_current, of_decay, None


@njit(nogil=True, fastmath=True, cache=True, error_model="numpy")
def _lif_forward(current: Floats, decay: Floats, potential: Floats, spikes: Floats) -> None:
    batch, steps, neurons = current.shape
    one, zero = np.float32(1), np.float32(0)
    kept = np.empty(neurons, np.float32)  # what is left of the potential at the next step
    for b in range(batch):
        kept[:] = zero
        for t in range(steps):
            for f in range(neurons):
                v = kept[f] + current[b, t, f]
                fired = v > one
                potential[b, t, f] = v
                spikes[b, t, f] = one if fired else zero
                kept[f] = zero if fired else decay[f] * v


@njit(nogil=True, fastmath=True, cache=True, error_model="numpy")
def _lif_backward(
    potential: Floats,
    of_spikes: Floats,
    decay: Floats,
    slope: np.float32,
    of_current: Floats,
    of_decay: Floats,
) -> None:
    batch, steps, neurons = potential.shape
    one, zero = np.float32(1), np.float32(0)
    later = np.empty(neurons, np.float32)  # gradient of the potential one step later
    for b in range(batch):
        later[:] = zero
        for t in range(steps - 1, -1, -1):
            for f in range(neurons):
                v = potential[b, t, f]
                through = zero if v > one else later[f]
                damped = one + slope * abs(v - one)
                of_decay[f] += through * v
                later[f] = of_spikes[b, t, f] / (damped * damped) + decay[f] * through
                of_current[b, t, f] = later[f]


def raised_cosine(bases: int, steps: int) -> Tensor:
    """Filters b_k(tau) = (1 + cos(pi/2 clip(x(tau) - k, -2, 2))) / 2 that widen with the lag tau.

    x(tau) = log(1 + tau) (K - 1) / log(steps) grows from 0 to K - 1 (for K = 1, to 1), so that the first peak
    lies at lag 0 and the last one at the end. Pillow et al., Nature 454 (2008).

    Returns:
        float32 [bases, steps].
    """
    lag = torch.arange(steps, dtype=torch.float64)
    place = torch.log1p(lag) * (max(bases - 1, 1) / math.log(max(steps, 2)))
    distance = (place - torch.arange(bases)[:, None]).clamp(-2, 2)
    return (0.5 * (1 + torch.cos(distance * math.pi / 2))).float()


def filtered(signals: Tensor, bases: Tensor) -> Tensor:
    """d_t = sum_k sum_{tau>=0} b_k(tau) x_{k,t-tau}: one signal per basis, causal filters, summed.

    Args:
        signals: x, [B, T, N, K].
        bases: [K, lags].

    Returns:
        d, [B, T, N].
    """
    steps = signals.shape[1]
    lag = torch.arange(steps)[:, None] - torch.arange(steps)
    within = (lag >= 0) & (lag < bases.shape[1])
    toeplitz = torch.where(within, bases[:, lag.clamp(0, bases.shape[1] - 1)], 0.0)
    return torch.einsum("kts,bsnk->btn", toeplitz, signals)


def srm0(drive: Tensor, feedback: Tensor, fire: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Run SRM0 neurons: u_t = d_t + sum_{tau=1..lags} eta_tau s_{t-tau}, s_t = fire(u_t).

    Args:
        drive: d, bias and synaptic input, [B, T, N].
        feedback: eta, [lags, N]; row 0 acts on the next step.
        fire: from potentials [B, N] to spikes [B, N]: `spike`, or `bernoulli` with its generator.

    Returns:
        Potentials u and spikes s, [B, T, N] each.
    """
    potentials: list[Tensor] = []
    spiked: list[Tensor] = []
    for now in drive.unbind(1):
        potentials.append(srm0_potential(now, spiked, feedback))
        spiked.append(fire(potentials[-1]))
    return torch.stack(potentials, 1), torch.stack(spiked, 1)


def srm0_potential(drive: Tensor, past: Sequence[Tensor], feedback: Tensor) -> Tensor:
    """Return u_t, [B, N], from its drive [B, N], past spikes [B, N] in order of time, and eta [lags, N]."""
    recent = tuple(past[: -len(feedback) - 1 : -1])
    if not recent:
        return drive
    return drive + torch.einsum("tbn,tn->bn", torch.stack(recent), feedback[: len(recent)])


def bernoulli(potential: Tensor, generator: torch.Generator) -> Tensor:
    """Draw s ~ Bernoulli(sigmoid(u)); its gradient is that of its probability (straight-through)."""
    probability = torch.sigmoid(potential)
    drawn = torch.rand(potential.shape, generator=generator, dtype=potential.dtype)
    spikes = (drawn < probability).to(potential.dtype)
    return probability + (spikes - probability).detach()


def gumbel(potential: Tensor, generator: torch.Generator, temperature: float) -> Tensor:
    """Draw the same spikes, with the gradient of a binary concrete relaxation.

    s = H(u + L), L logistic; the gradient is that of sigmoid((u + L)/temperature) (Jang et al. 2017).
    """
    drawn = torch.rand(potential.shape, generator=generator, dtype=potential.dtype)
    relaxed = torch.sigmoid((potential + torch.logit(drawn, eps=1e-7)) / temperature)
    return relaxed + ((relaxed > 0.5).to(potential.dtype) - relaxed).detach()


def log_probability(spikes: Tensor, potential: Tensor) -> Tensor:
    """Log p(s | u) of Bernoulli-sigmoid neurons, elementwise, in nats."""
    return functional.logsigmoid(torch.where(spikes > 0.5, potential, -potential))
