"""What S-VDIB learns from: the directed-information loss, four gradient estimators, both bounds in bits.

The encoder's gradient goes through spikes that are drawn. With cost(z) = -log q(y | z_hat) + beta KL it is

```
 straight-through   d cost/dz dp/du: a draw counts as its probability            biased, low variance; default
 gumbel             the same through sigmoid(u + logistic noise)                 biased, low variance
 leave-one-out      (cost_k - mean of the other draws' cost) grad log p(z_k | x) unbiased, as in the paper
 moving-average     (cost - running mean of the cost) grad log p(z | x)          unbiased, one draw
```

The KL divergence of each step is taken in closed form given the past, so that its own gradient needs no draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from defiance.codecs import neurons
from defiance.codecs.codec import Channel, Loss, Samples
from defiance.codecs.vdib import Vdib, VdibConfig, decode, drive, firing, readout
from defiance.errors import DefianceError
from defiance.learn.training import Parameters

GUMBEL_TEMPERATURE = 1.0
MEMORY = 0.9
"""Share of the running mean of the cost that is kept at each optimiser step."""
SURE = 1e-6
"""Closest to 0 and 1 that a probability comes inside a logarithm."""


class BinaryChannel(Channel, Protocol):
    """A channel from bits to bits, such as `defiance.radio.channels.BinarySymmetric`."""

    def one_probability(self, sent: Tensor, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return P(received = 1) for the probabilities of ones `sent` [..., N]."""


@dataclass(frozen=True)
class VdibObjective:
    """What is minimised, and how its gradient is estimated."""

    beta: float = field(default=1e-4, metadata={"min": 0.0, "help": "price of a nat that is sent"})
    prior: Literal["fixed", "learned"] = field(
        default="learned", metadata={"help": "q(z_hat_t | z_hat_{t-1}): a rate, or a layer of weights"}
    )
    prior_rate: float = field(
        default=0.3, metadata={"min": 0.01, "max": 0.99, "help": "of ones, if the prior is fixed"}
    )
    estimator: Literal["straight-through", "gumbel", "leave-one-out", "moving-average"] = "straight-through"
    draws: int = field(default=8, metadata={"min": 2, "help": "K of leave-one-out"})
    activity_weight: float = field(
        default=0.1, metadata={"min": 0.0, "help": "price of the LIF layers' mean activities"}
    )


class Terms(NamedTuple):
    """Of each recording and step, [B, T], in nat.

    Attributes:
        surprise: -log q(y | z_hat_{<=t}).
        divergence: KL( p(z_hat_t | x, z_{<t}) || q(z_hat_t | z_hat_{t-1}) ).
        log_probability: log p(z_t | x, z_{<t}).
        activity: mean activity of the LIF layers, summed over them; a scalar.
        misfit: the divergence, summed over steps, as a function of the prior's weights alone; a scalar.
    """

    surprise: Tensor
    divergence: Tensor
    log_probability: Tensor
    activity: Tensor
    misfit: Tensor


def terms(
    parameters: Parameters,
    config: VdibConfig,
    objective: VdibObjective,
    channel: BinaryChannel,
    frames: Tensor,
    labels: Tensor,
    ebn0_db: Tensor | float,
    fire: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    draws: int = 1,
) -> Terms:
    """Send recordings once, or several times with other draws.

    Args:
        parameters: `device.*`, `edge.*`, `prior.*`.
        config: sizes.
        objective: the prior.
        channel: between the halves.
        frames: uint8 [B, T, 2, H, W].
        labels: int64 [B].
        ebn0_db: broadcasts to [B, T].
        fire: how the readouts fire, potentials to spikes.
        generator: draws of the channel.
        draws: K; the results are [K B, T], the recordings' order repeated K times.
    """
    driven = drive(parameters, config, frames)
    current, labels = driven.current.repeat(draws, 1, 1), labels.repeat(draws)
    ebn0_db = torch.as_tensor(ebn0_db).expand(len(frames), 1).repeat(draws, 1)
    potential, spikes = readout(parameters, config, current, fire)
    received = channel(spikes, ebn0_db, generator)
    logits = decode(parameters, received)
    of_each_step = labels[:, None].expand(-1, config.steps)
    surprise = functional.cross_entropy(logits.transpose(1, 2), of_each_step, reduction="none")
    probability = spikes if config.firing == "deterministic" else torch.sigmoid(potential)
    arriving = channel.one_probability(probability, ebn0_db)
    known = bernoulli_divergence(arriving.detach(), prior_logit(parameters, objective, received.detach()))
    return Terms(
        surprise,
        bernoulli_divergence(arriving, prior_logit(parameters, objective, received)).sum(-1),
        neurons.log_probability(spikes.detach(), potential).sum(-1),
        # not mean(): its gradient would be divided, and so written out, for every neuron
        torch.stack([layer.sum() / layer.numel() for layer in driven.hidden]).sum(),
        known.sum((1, 2)).mean(),
    )


def prior_logit(parameters: Parameters, objective: VdibObjective, received: Tensor) -> Tensor:
    """Return log q/(1 - q) of a one at each use, [B, T, N], given what arrived at the step before."""
    if objective.prior == "fixed":
        return torch.full_like(received, math.log(objective.prior_rate / (1 - objective.prior_rate)))
    before = functional.pad(received, (0, 0, 1, 0))[:, :-1]
    return functional.linear(before, parameters["prior.weight"], parameters["prior.bias"])


def bernoulli_divergence(probability: Tensor, logit: Tensor) -> Tensor:
    """KL(Bernoulli(p) || Bernoulli(sigmoid(logit))), elementwise, in nat."""
    p = probability.clamp(SURE, 1 - SURE)
    ones = p * (p.log() - functional.logsigmoid(logit))
    return ones + (1 - p) * (torch.log1p(-p) - functional.logsigmoid(-logit))


def loss(config: VdibConfig, objective: VdibObjective, channel: BinaryChannel) -> Loss:
    """Return what `codec.train` minimises; its value is the loss above whatever the estimator.

    Raises:
        DefianceError: a score-function estimator for neurons that don't draw their spikes.
    """
    scored = objective.estimator in ("leave-one-out", "moving-average")
    if scored and config.firing == "deterministic":
        raise DefianceError(
            f"estimator = {objective.estimator!r} needs firing = 'random': other neurons have no score"
        )
    draws = objective.draws if objective.estimator == "leave-one-out" else 1
    running: list[float] = []

    def baseline(cost: Tensor) -> Tensor:
        """What each draw's cost, [K, B], is compared with: nothing that depends on that draw."""
        if draws > 1:
            return (cost.sum(0) - cost) / (draws - 1)
        mean = running[0] if running else 0.0
        running[:] = [MEMORY * mean + (1 - MEMORY) * float(cost.mean())] if running else [float(cost.mean())]
        return torch.full_like(cost, mean)

    def fire(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        if scored:
            return lambda potential: neurons.bernoulli(potential, generator).detach()
        if objective.estimator == "gumbel" and config.firing == "random":
            return lambda potential: neurons.gumbel(potential, generator, GUMBEL_TEMPERATURE)
        return firing(config, generator)

    def value(
        parameters: Parameters, frames: Tensor, labels: Tensor, ebn0_db: Tensor, generator: torch.Generator
    ) -> Tensor:
        found = terms(
            parameters,
            config,
            objective,
            channel,
            frames,
            labels,
            ebn0_db,
            fire(generator),
            generator,
            draws,
        )
        cost = found.surprise.mean(1) + objective.beta * found.divergence.sum(1)
        total = cost.mean() + objective.activity_weight * found.activity
        if objective.beta == 0:  # else nothing would fit the prior, and the bound on the rate would be loose
            total = total + found.misfit - found.misfit.detach()
        if scored and torch.is_grad_enabled():
            each = cost.detach().view(draws, -1)
            score = ((each - baseline(each)) * found.log_probability.sum(1).view(draws, -1)).mean()
            total = total + score - score.detach()
        return total

    return value


class Information(NamedTuple):
    """Bounds in bits after each step, float64 [T].

    Attributes:
        relevance: at most I(y; z_hat_{<=t}), what has arrived about the class.
        rate: at least I(x -> z_hat_{<=t}), what has arrived about the recording.
    """

    relevance: Tensor
    rate: Tensor


def information(
    codec: Vdib,
    objective: VdibObjective,
    channel: BinaryChannel,
    samples: Samples,
    ebn0_db: float,
    generator: torch.Generator,
    *,
    batch: int = 250,
) -> Information:
    """Estimate both directed-information bounds; the entropy of the class is that of the samples' labels.

    Args:
        codec: whose parameters include `prior.*`.
        objective: the prior.
        channel: between the halves.
        samples: recordings that were not trained on.
        ebn0_db: of the channel.
        generator: draws.
        batch: recordings at once.
    """
    parameters, config = dict(codec.parameters), codec.config
    surprise, divergence = [], []
    with torch.no_grad():
        for index in torch.arange(len(samples)).split(batch):
            part = samples.select(index)
            found = terms(
                parameters,
                config,
                objective,
                channel,
                part.frames,
                part.labels,
                ebn0_db,
                firing(config, generator),
                generator,
            )
            surprise.append(found.surprise)
            divergence.append(found.divergence)
    share = torch.bincount(samples.labels).double() / len(samples)
    entropy = torch.special.entr(share).sum()
    nat = math.log(2)
    return Information(
        (entropy - torch.cat(surprise).double().mean(0)) / nat,
        torch.cat(divergence).double().mean(0).cumsum(0) / nat,
    )
