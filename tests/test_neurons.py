"""Neurons against closed forms, against each other, and against snnTorch."""

import math
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from defiance.codecs import neurons
from defiance.seeding import stream


def uniform(*shape: int, name: str = "draw") -> Tensor:
    return torch.rand(shape, generator=stream(1, name).generator())


def stepped(current: Tensor, decay: Tensor, slope: float = neurons.SURROGATE_SLOPE) -> Tensor:
    state, spiked = neurons.lif_initial(current[:, 0]), []
    for now in current.unbind(1):
        state = neurons.lif_step(state, now, decay, slope)
        spiked.append(state.spikes)
    return torch.stack(spiked, 1)


@pytest.mark.parametrize("current", [0.05, 0.19])
def test_below_threshold_a_constant_current_charges_as_a_geometric_series(current: float) -> None:
    alpha, state = torch.tensor([0.8]), neurons.lif_initial(torch.zeros(1, 1))
    for t in range(30):
        state = neurons.lif_step(state, torch.full((1, 1), current), alpha)
        assert float(state.potential) == pytest.approx(current * (1 - 0.8 ** (t + 1)) / 0.2, rel=1e-5)
        assert float(state.spikes) == 0


@pytest.mark.parametrize("current", [0.21, 0.3, 0.5, 0.9, 1.1])
def test_spikes_come_at_the_closed_form_interval(current: float) -> None:
    """The potential passes 1 at the first n with current (1 - alpha^n)/(1 - alpha) > 1, then starts anew."""
    alpha = 0.8
    interval = math.floor(math.log(1 - (1 - alpha) / current) / math.log(alpha)) + 1
    spikes = neurons.lif(torch.full((1, 60, 1), current), torch.tensor([alpha]))
    times = spikes[0, :, 0].nonzero().flatten().tolist()
    assert times[0] == interval - 1
    assert {later - earlier for earlier, later in pairwise(times)} <= {interval}


def test_an_impulse_decays_with_the_membrane_time_constant() -> None:
    """1 ms steps and tau = 20 ms: after 20 steps 1/e of the potential is left."""
    alpha, state = torch.tensor([math.exp(-1 / 20)]), neurons.lif_initial(torch.zeros(1, 1))
    for t in range(21):
        state = neurons.lif_step(state, torch.full((1, 1), 0.9 if t == 0 else 0.0), alpha)
    assert float(state.potential) == pytest.approx(0.9 / math.e, rel=1e-5)


def test_the_fused_loop_is_lif_step_with_its_gradients() -> None:
    current = (2 * uniform(5, 12, 7) - 0.5).requires_grad_()
    decay = uniform(7, name="decay").requires_grad_()
    weight = uniform(5, 12, 7, name="weight")
    fused, loop = neurons.lif(current, decay), stepped(current, decay)
    assert torch.equal(fused, loop)
    assert 0.1 < float(fused.detach().mean()) < 0.9
    ours = torch.autograd.grad((fused * weight).sum(), (current, decay))
    theirs = torch.autograd.grad((loop * weight).sum(), (current, decay))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_other_number_formats_take_the_loop_of_steps() -> None:
    current = (2 * uniform(2, 6, 3) - 0.5).double()
    decay = torch.full((3,), 0.7, dtype=torch.float64)
    assert torch.equal(neurons.lif(current, decay), stepped(current, decay))
    assert neurons.lif(current.to("meta"), decay.to("meta")).shape == (2, 6, 3)


def test_layouts_that_are_not_contiguous_are_taken() -> None:
    current = 2 * uniform(6, 4, 3).transpose(0, 1) - 0.5
    decay = torch.full((3,), 0.7)
    assert torch.equal(neurons.lif(current, decay), stepped(current, decay))


def test_lif_equals_snntorch() -> None:
    snntorch = pytest.importorskip("snntorch", reason="snntorch is not installed")
    current = (2 * uniform(4, 20, 9) - 0.5).requires_grad_()
    weight = uniform(4, 20, 9, name="weight")
    leaky = snntorch.Leaky(
        beta=0.85, reset_mechanism="zero", spike_grad=snntorch.surrogate.fast_sigmoid(slope=25)
    )
    memory, peer = leaky.init_leaky(), []
    for now in current.unbind(1):
        spikes, memory = leaky(now, memory)
        peer.append(spikes)
    theirs = torch.stack(peer, 1)
    ours = neurons.lif(current, torch.full((9,), 0.85), slope=25.0)
    assert torch.equal(ours, theirs)
    assert 0.1 < float(ours.detach().mean()) < 0.9
    torch.testing.assert_close(
        torch.autograd.grad((ours * weight).sum(), current),
        torch.autograd.grad((theirs * weight).sum(), current),
        rtol=1e-4,
        atol=1e-6,
    )


def test_the_surrogate_gradient_is_that_of_the_fast_sigmoid() -> None:
    u = torch.tensor([-1.0, -0.1, 0.0, 0.1, 2.0], requires_grad=True)
    spikes = neurons.spike(u, slope=4.0)
    assert spikes.tolist() == [0, 0, 0, 1, 1]
    (gradient,) = torch.autograd.grad(spikes.sum(), u)
    torch.testing.assert_close(gradient, 1 / (1 + 4 * u.detach().abs()) ** 2)


def test_raised_cosines_cover_every_lag_evenly_and_widen() -> None:
    bases = neurons.raised_cosine(6, 100)
    assert bases.shape == (6, 100)
    assert torch.equal(bases[:, 0], torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0, 0.0]))
    assert float(bases[5, 99]) == pytest.approx(1.0)
    place = torch.log1p(torch.arange(100.0)) * 5 / math.log(100)
    inside = (place >= 1) & (place <= 4)
    torch.testing.assert_close(bases[:, inside].sum(0), torch.full((int(inside.sum()),), 2.0))
    widths = (bases > 0.5).sum(1)[:-1]
    assert torch.equal(widths, widths.sort().values)


@pytest.mark.parametrize(("bases", "steps"), [(1, 1), (1, 8), (3, 1), (3, 2)])
def test_few_bases_or_lags_start_at_one(bases: int, steps: int) -> None:
    filters = neurons.raised_cosine(bases, steps)
    assert filters.shape == (bases, steps)
    assert float(filters[0, 0]) == 1
    assert bool(torch.isfinite(filters).all())


def test_filters_are_causal_convolutions() -> None:
    signals, bases = uniform(3, 10, 2, 4), neurons.raised_cosine(4, 6)
    expected = torch.zeros(3, 10, 2)
    for t, lag in product(range(10), range(6)):
        if lag <= t:
            expected[:, t] += signals[:, t - lag] @ bases[:, lag]
    torch.testing.assert_close(neurons.filtered(signals, bases), expected)
    changed = signals.clone()
    changed[:, 7:] += 1
    assert torch.equal(neurons.filtered(changed, bases)[:, :7], neurons.filtered(signals, bases)[:, :7])


def test_srm0_answers_one_spike_with_its_feedback_filter() -> None:
    """u_t = eta_{t} after a spike at 0: the closed form of SRM0 with a refractory filter."""
    drive = torch.full((1, 8, 1), -10.0)
    drive[0, 0] = 1.0
    eta = -neurons.raised_cosine(2, 5).sum(0)[:, None]
    potentials, spikes = neurons.srm0(drive, eta, neurons.spike)
    assert spikes[0, :, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    expected = drive[0, :, 0].clone()
    expected[1:6] += eta[:, 0]
    torch.testing.assert_close(potentials[0, :, 0], expected)


def test_feedback_acts_on_its_own_neuron_from_the_next_step_on() -> None:
    drive, eta = 4 * uniform(2, 7, 3) - 2, 2 * uniform(4, 3, name="eta") - 1
    potentials, spikes = neurons.srm0(drive, eta, neurons.spike)
    for t, n in product(range(7), range(3)):
        past = sum(eta[lag - 1, n] * spikes[:, t - lag, n] for lag in range(1, min(t, 4) + 1))
        torch.testing.assert_close(potentials[:, t, n], drive[:, t, n] + past)


@pytest.mark.parametrize("draw", ["bernoulli", "gumbel"])
def test_draws_have_the_sigmoid_probability(draw: str) -> None:
    generator = stream(3, draw).generator()
    potential = torch.linspace(-3, 3, 7).expand(40_000, 7)
    if draw == "bernoulli":
        spikes = neurons.bernoulli(potential, generator)
    else:
        spikes = neurons.gumbel(potential, generator, temperature=0.7)
    assert set(spikes.round(decimals=5).unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(spikes.mean(0), torch.sigmoid(potential[0]), atol=0.01, rtol=0)


def test_a_bernoulli_draw_has_the_gradient_of_its_probability() -> None:
    potential = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(
        neurons.bernoulli(potential, stream(1, "g").generator()).sum(), potential
    )
    p = torch.sigmoid(potential.detach())
    torch.testing.assert_close(gradient, p * (1 - p))


def test_the_probabilities_of_all_spike_trains_sum_to_one() -> None:
    """Chain rule over 3 steps of 2 neurons with feedback: 64 trains."""
    drive, eta = 2 * uniform(1, 3, 2) - 1, 4 * uniform(2, 2, name="eta") - 2
    total = 0.0
    for bits in product([0.0, 1.0], repeat=6):
        train = torch.tensor(bits).view(1, 3, 2)
        past = [train[:, t] for t in range(3)]
        potentials = [neurons.srm0_potential(drive[:, t], past[:t], eta) for t in range(3)]
        total += float(neurons.log_probability(train, torch.stack(potentials, 1)).sum().exp())
    assert total == pytest.approx(1.0, rel=1e-5)


def test_log_probabilities_stay_finite_far_from_threshold() -> None:
    potential, spikes = torch.tensor([-80.0, 80.0]), torch.tensor([1.0, 0.0])
    torch.testing.assert_close(neurons.log_probability(spikes, potential), torch.tensor([-80.0, -80.0]))
