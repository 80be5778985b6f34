"""S-VDIB: causality, stream against batch, gradients and bounds against enumeration, learning at toy size."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from defiance.codecs import neurons, vdib_learning
from defiance.codecs.codec import NOISELESS_DB, Samples, Training, evaluate, train
from defiance.codecs.vdib import (
    LAYERS,
    Vdib,
    VdibConfig,
    activity,
    at_rest,
    decode,
    device_step,
    drive,
    initial,
    readout,
)
from defiance.codecs.vdib_learning import VdibObjective, bernoulli_divergence, information, loss, terms
from defiance.errors import DefianceError
from defiance.radio.channels import BinarySymmetric, ZChannel
from defiance.seeding import stream

TINY = VdibConfig(
    steps=6, size=8, channels=(3, 4), hidden=12, readouts=5, bases=2, lags=3, edge_hidden=16, classes=2
)
CHANNEL = BinarySymmetric()


def generator(name: str = "test") -> torch.Generator:
    return stream(7, name).generator()


def codec(config: VdibConfig = TINY) -> Vdib:
    """Return a codec with random weights everywhere, feedback and prior included."""
    parameters = initial(config, generator("weights"))
    for name in ("device.feedback.weight", "prior.weight"):
        parameters[name] = torch.randn(parameters[name].shape, generator=generator(name))
    return Vdib(config, parameters)


def frames(count: int, config: VdibConfig = TINY) -> Tensor:
    shape = (count, config.steps, 2, config.size, config.size)
    return torch.poisson(torch.full(shape, 0.5), generator("frames")).to(torch.uint8)


def bars(count: int, config: VdibConfig = TINY) -> Samples:
    """Two classes that a network must see: a row of events, or a column of them, moving on."""
    recordings = torch.zeros(count, config.steps, 2, config.size, config.size, dtype=torch.uint8)
    labels = torch.randint(0, 2, (count,), generator=generator("labels"))
    place = torch.randint(0, config.size, (count, config.steps), generator=generator("places")).tolist()
    for r, t in product(range(count), range(config.steps)):
        if labels[r]:
            recordings[r, t, :, place[r][t], :] = 1
        else:
            recordings[r, t, :, :, place[r][t]] = 1
    return Samples(recordings, labels)


def test_shapes_and_zeros_and_ones() -> None:
    symbols = codec().encode(frames(3), generator())
    assert symbols.shape == (3, 6, 5)
    assert set(symbols.round(decimals=5).unique().tolist()) == {0.0, 1.0}
    assert codec().decode(symbols).shape == (3, 6, 2)
    assert codec().channel_uses == 30


def test_the_middle_of_a_larger_sensor_is_seen() -> None:
    larger = torch.zeros(2, 6, 2, 10, 13, dtype=torch.uint8)
    larger[..., 1:9, 2:10] = frames(2)
    assert torch.equal(codec().encode(larger, generator()), codec().encode(frames(2), generator()))
    with pytest.raises(DefianceError, match="7 x 8 pixels are smaller than size = 8"):
        codec().encode(larger[..., :7, :8], generator())


@pytest.mark.parametrize("size", [4, 7, 8, 9, 28, 34])
def test_layer_sizes_are_those_of_the_network(size: int) -> None:
    config = replace(TINY, size=size)
    driven = drive(initial(config, generator()), config, frames(1, config))
    assert tuple(layer.shape[-1] for layer in driven.hidden) == config.layer_sizes


def test_the_device_and_the_edge_are_causal() -> None:
    before, after = frames(2), frames(2)
    after[:, 4:] = 3
    ours = codec()
    sent = ours.encode(before, generator()), ours.encode(after, generator())
    assert torch.equal(sent[0][:, :4], sent[1][:, :4])
    received = torch.rand(2, 6, 5, generator=generator())
    changed = received.clone()
    changed[:, 3:] = 1 - changed[:, 3:]
    logits = ours.decode(received), ours.decode(changed)
    torch.testing.assert_close(logits[0][:, :3], logits[1][:, :3])
    assert not torch.allclose(logits[0][:, 3:], logits[1][:, 3:])


def test_a_decision_can_be_asked_for_before_the_recording_ends() -> None:
    received = torch.rand(2, 6, 5, generator=generator())
    torch.testing.assert_close(codec().decode(received[:, :2]), codec().decode(received)[:, :2])


@pytest.mark.parametrize("firing", ["random", "deterministic"])
def test_a_stream_gives_the_spikes_of_the_whole_recording(firing: str) -> None:
    config = replace(TINY, firing=firing)
    ours, seen = codec(config), frames(4)
    draws, state, sent = generator(), at_rest(config, 4), []
    for frame in seen.unbind(1):
        state, spikes = device_step(ours.parameters, config, state, frame, draws)
        sent.append(spikes)
    expected = ours.encode(seen, generator())
    assert 0.05 < float(expected.mean()) < 0.95
    torch.testing.assert_close(torch.stack(sent, 1), expected)


def test_what_was_lost_says_nothing() -> None:
    """A decoder without biases that only hears erasures keeps all its logits at zero."""
    logits = decode(codec().parameters, torch.full((1, 6, 5), 0.5))
    torch.testing.assert_close(logits, torch.zeros_like(logits))


@given(
    order=st.lists(st.integers(0, 5), max_size=12),
    values=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=5, max_size=5),
)
def test_any_loss_repetition_or_order_of_packets_decodes(order: list[int], values: list[float]) -> None:
    received = torch.full((1, 6, 5), 0.5)
    for step in order:
        received[0, step] = torch.tensor(values)
    assert bool(torch.isfinite(codec().decode(received)).all())


def test_synaptic_operations_are_those_of_going_through_every_event() -> None:
    """Each event of the first layer reaches the outputs whose 5 x 5 windows, 2 apart, hold it."""
    ours, seen = codec(), frames(2)
    counted = activity(ours, seen, generator())
    driven = drive(ours.parameters, TINY, seen)
    reached = torch.tensor([sum(abs(2 * o - i) <= 2 for o in range(4)) for i in range(8)]).float()
    first = 3 * torch.einsum("btphw,h,w->b", seen.float(), reached, reached)
    near = torch.tensor([sum(abs(2 * o - i) <= 1 for o in range(2)) for i in range(4)]).float()
    spikes = driven.hidden[0].view(2, 6, 4, 4, 3)
    second = 4 * torch.einsum("bthwc,h,w->b", spikes, near, near)
    third, last = 12 * driven.hidden[1].sum((1, 2)), 5 * 2 * driven.hidden[2].sum((1, 2))
    torch.testing.assert_close(counted.synaptic_operations, first + second + third + last)
    assert torch.equal(counted.events, seen.float().sum((1, 2, 3, 4)))
    assert counted.updates == 6 * (48 + 16 + 12 + 5)
    assert counted.spikes.shape == (2, len(LAYERS))
    assert counted.silent == pytest.approx(1 - float(counted.spikes.sum()) / (2 * 6 * 76))


@pytest.mark.parametrize(("p", "q"), [(0.2, 0.7), (0.5, 0.5), (0.99, 0.01)])
def test_divergence_in_closed_form(p: float, q: float) -> None:
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    found = bernoulli_divergence(torch.tensor(p), torch.logit(torch.tensor(q)))
    assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert float(bernoulli_divergence(torch.tensor(0.0), torch.tensor(0.0))) == pytest.approx(
        math.log(2), abs=1e-4
    )


def test_the_divergence_is_the_mean_of_the_log_ratio() -> None:
    """E[log p(z_hat | x)/q(z_hat)] over draws of spikes and of noise equals the closed form's mean."""
    ours, seen = codec(replace(TINY, steps=3)), frames(1, replace(TINY, steps=3))
    objective, draws, ebn0_db = VdibObjective(prior="learned"), 20_000, -2.0
    driven = drive(ours.parameters, ours.config, seen).current.repeat(draws, 1, 1)
    noise = generator()
    u, z = readout(ours.parameters, ours.config, driven, lambda now: neurons.bernoulli(now, noise))
    received = CHANNEL(z, ebn0_db, noise)
    arriving = CHANNEL.one_probability(torch.sigmoid(u), ebn0_db)
    logit = vdib_learning.prior_logit(ours.parameters, objective, received)
    ratio = torch.where(received > 0.5, arriving.log(), torch.log1p(-arriving))
    ratio = ratio - neurons.log_probability(received, logit)
    closed = bernoulli_divergence(arriving, logit)
    difference = (ratio - closed).sum((1, 2))
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(draws)


def test_a_fixed_prior_ignores_what_came_before() -> None:
    logit = vdib_learning.prior_logit(
        codec().parameters, VdibObjective(prior="fixed", prior_rate=0.2), torch.rand(2, 6, 5)
    )
    torch.testing.assert_close(torch.sigmoid(logit), torch.full_like(logit, 0.2))


SMALL = VdibConfig(
    steps=2, size=4, channels=(2, 2), hidden=4, readouts=2, bases=1, lags=1, edge_hidden=4, classes=2
)
DEVICE = ("device.readout.bias", "device.readout.weight", "device.feedback.weight")


def exact_gradient(ours: Vdib, objective: VdibObjective, seen: Tensor, labels: Tensor) -> list[Tensor]:
    """Of E[cost] over all 16 spike trains, each with its probability, through a channel without noise."""
    parameters = {name: w.clone().requires_grad_() for name, w in ours.parameters.items()}
    total = torch.zeros(())
    for bits in product([0.0, 1.0], repeat=4):
        train = torch.tensor(bits).view(1, 2, 2)
        steps = iter(train.unbind(1))
        found = terms(
            parameters,
            ours.config,
            objective,
            CHANNEL,
            seen,
            labels,
            NOISELESS_DB,
            lambda u, steps=steps: next(steps).expand_as(u),
            generator(),
        )
        cost = found.surprise.mean(1) + objective.beta * found.divergence.sum(1)
        total = total + (found.log_probability.sum(1).exp() * cost).mean()
    return list(torch.autograd.grad(total, [parameters[name] for name in DEVICE]))


@pytest.mark.parametrize("estimator", ["leave-one-out", "moving-average"])
def test_score_functions_are_unbiased(estimator: str) -> None:
    """The mean over many draws comes to the gradient by enumeration; feedback is on."""
    ours = codec(SMALL)
    seen, labels = torch.full((1, 2, 2, 4, 4), 2, dtype=torch.uint8), torch.ones(1, dtype=torch.int64)
    objective = VdibObjective(beta=0.1, estimator=estimator, draws=4, activity_weight=0.0)
    expected = exact_gradient(ours, objective, seen, labels)
    assert max(float(e.abs().max()) for e in expected) > 0.01
    of_loss, noise, count = loss(SMALL, objective, CHANNEL), generator(), 16_000
    parameters = {name: w.clone().requires_grad_() for name, w in ours.parameters.items()}
    # One batch of copies is one estimate per copy, since every copy draws on its own.
    batch = seen.repeat(count, 1, 1, 1, 1), labels.repeat(count), torch.full((count, 1), NOISELESS_DB)
    of_loss(parameters, *batch, noise)  # the running mean's first value
    value = of_loss(parameters, *batch, noise)
    found = torch.autograd.grad(value, [parameters[name] for name in DEVICE])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=0.01, rtol=0.05)


@pytest.mark.parametrize("estimator", ["straight-through", "gumbel", "leave-one-out", "moving-average"])
def test_every_estimator_sees_the_same_loss(estimator: str) -> None:
    """Only the gradient differs: on average over draws the value is the same."""
    ours, samples = codec(), bars(400)
    of_loss = loss(TINY, VdibObjective(estimator=estimator, beta=0.01), CHANNEL)
    reference = loss(TINY, VdibObjective(beta=0.01), CHANNEL)
    noise = torch.zeros(400, 1)
    values = [
        float(f(dict(ours.parameters), samples.frames, samples.labels, noise, generator()))
        for f in (of_loss, reference)
    ]
    assert values[0] == pytest.approx(values[1], abs=0.03)


def test_a_score_needs_draws() -> None:
    with pytest.raises(DefianceError, match="needs firing = 'random'"):
        loss(replace(TINY, firing="deterministic"), VdibObjective(estimator="leave-one-out"), CHANNEL)


@pytest.mark.parametrize(
    ("estimator", "firing", "learnable"),
    [
        ("straight-through", "random", 0.9),
        ("gumbel", "random", 0.9),
        ("leave-one-out", "random", 0.75),
        ("straight-through", "deterministic", 0.9),
    ],
)
def test_bars_are_told_apart_through_a_noisy_channel(estimator: str, firing: str, learnable: float) -> None:
    config = replace(TINY, firing=firing)
    samples = bars(600)
    fitted = train(
        initial(config, generator("weights")),
        loss(config, VdibObjective(estimator=estimator, activity_weight=0.0), CHANNEL),
        samples.select(torch.arange(500)),
        samples.select(torch.arange(500, 600)),
        Training(epochs=12, batch=25, learning_rate=1e-2),
        stream(1, "train"),
    )
    ours, unseen = Vdib(config, fitted.parameters), samples.select(torch.arange(500, 600))
    accuracy = evaluate(ours, CHANNEL, unseen.frames, unseen.labels, 0.0, generator())
    assert float(accuracy[-1]) >= learnable


def test_bounds_bracket_what_arrives() -> None:
    """Relevance is at most the class's entropy and at most the rate; both grow from step to step."""
    samples = bars(600)
    objective = VdibObjective(beta=1e-3, activity_weight=0.0)
    fitted = train(
        initial(TINY, generator("weights")),
        loss(TINY, objective, CHANNEL),
        samples.select(torch.arange(500)),
        samples.select(torch.arange(500, 600)),
        Training(epochs=8, batch=25, learning_rate=1e-2),
        stream(1, "train"),
    )
    unseen = samples.select(torch.arange(500, 600))
    found = information(Vdib(TINY, fitted.parameters), objective, CHANNEL, unseen, 2.0, generator())
    assert 0.3 < float(found.relevance[-1]) <= 1
    assert bool((found.rate.diff() >= 0).all())
    assert float(found.relevance[-1]) < float(found.rate[-1]) < TINY.steps * TINY.readouts


def test_independent_noise_carries_no_rate() -> None:
    """Readouts that fire at the prior's rate whatever they see cost nothing."""
    ours = codec()
    parameters = dict(ours.parameters)
    for name in ("device.readout.weight", "device.feedback.weight", "prior.weight"):
        parameters[name] = torch.zeros_like(parameters[name])
    found = information(Vdib(TINY, parameters), VdibObjective(), CHANNEL, bars(50), NOISELESS_DB, generator())
    assert float(found.rate[-1]) == pytest.approx(0.0, abs=1e-5)


def test_lost_spikes_of_a_z_channel_are_priced_too() -> None:
    """Beside a prior that hardly fires, a rate is the larger the more spikes arrive."""
    ours, samples = codec(), bars(50)
    silent = VdibObjective(prior="fixed", prior_rate=0.01)
    rates = [
        float(information(ours, silent, ZChannel(), samples, snr, generator()).rate[-1])
        for snr in (-10.0, 10.0)
    ]
    assert 0 < rates[0] < rates[1]


def test_without_a_bottleneck_the_prior_is_fitted_and_nothing_else_feels_it() -> None:
    ours, seen, labels = codec(), frames(6), torch.arange(6) % TINY.classes
    gradients = {}
    for prior in ("learned", "fixed"):
        weights = {name: weight.clone().requires_grad_() for name, weight in ours.parameters.items()}
        value = loss(TINY, VdibObjective(beta=0.0, prior=prior), BinarySymmetric())(
            weights, seen, labels, torch.zeros(6, 1), generator()
        )
        value.backward()
        gradients[prior] = {name: weight.grad for name, weight in weights.items()}
    moved = gradients["learned"].pop("prior.bias")
    assert moved is not None and float(moved.abs().sum()) > 0
    for name, gradient in gradients["learned"].items():
        other = gradients["fixed"][name]
        if not name.startswith("prior.") and gradient is not None:
            assert other is not None and torch.equal(gradient, other)
