"""Rewards and hindsight by hand, batches by sample, the value model against `torch.nn`, the regimes."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scenes import small_scene
from torch import Tensor

from defiance.control.experience import (
    HORIZON,
    Batches,
    Experience,
    Target,
    ValueModel,
    hindsight,
    initial_parameters,
    rewards,
    sinr_db,
    slots,
    smoothed,
    value_loss,
)
from defiance.control.handover import HISTORY
from defiance.learn.training import Fit, Parameters, Schedule, federated_mixing, fit
from defiance.link import loss_from_sinr
from defiance.network.measurements import RSRP_FLOOR_DBM
from defiance.network.settings import RadioConfig
from defiance.scene import Scene
from defiance.seeding import stream

RADIO = RadioConfig()
CELL_SITE = torch.tensor([0, 0, 1, 1, 2, 2])
LEVELS = st.lists(st.integers(-128, -40), min_size=3, max_size=3)
LOADS = st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3)


def random_levels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-120, -60, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


# --- rewards ---


def test_rewards_by_hand() -> None:
    """Two cells at -80 and -84 dBm, loaded to 0.5 and 0.25: SINR 10.02 and -1.00 dB."""
    levels, load = torch.tensor([[[-80.0, -84.0]]]), torch.tensor([[0.5, 0.25]])
    target = Target(rate_weight=0.2, softness_db=2.0)
    noise = 10 ** (RADIO.noise_dbm / 10) / RADIO.resource_elements
    for cell, sinr in ((0, 10**-8 / (0.25 * 10**-8.4 + noise)), (1, 10**-8.4 / (0.5 * 10**-8 + noise))):
        outage = 1 / (1 + math.exp((10 * math.log10(sinr) + 8) / 2))
        expected = 0.2 * 0.6 * math.log2(1 + sinr) / 7.4 - outage
        assert rewards(levels, load, RADIO, target)[0, 0, cell].item() == pytest.approx(expected, rel=1e-5)


def test_rewards_lie_between_certain_outage_and_the_highest_rate() -> None:
    levels = torch.tensor([[[-40.0, -128.0]]])
    near, far = rewards(levels, torch.ones(1, 2), RADIO, Target())[0, 0].tolist()
    assert near == pytest.approx(0.1, abs=1e-6) and far == pytest.approx(-1.0, abs=1e-6)


@given(levels=LEVELS, load=LOADS, cell=st.integers(0, 2), more=st.integers(1, 20))
def test_a_cells_reward_grows_with_its_own_power(
    levels: list[int], load: list[float], cell: int, more: int
) -> None:
    lifted = [level + more * (i == cell) for i, level in enumerate(levels)]
    before, after = rewards(torch.tensor([levels, lifted])[:, None], torch.tensor([load]), RADIO, Target())
    assert after[0, cell] >= before[0, cell] - 1e-5
    others = [i for i in range(3) if i != cell]
    assert bool((after[0, others] <= before[0, others] + 1e-5).all())


@given(levels=LEVELS, load=LOADS, cell=st.integers(0, 2), more=st.floats(0, 1))
def test_a_cells_reward_falls_with_the_load_of_others_and_not_with_its_own(
    levels: list[int], load: list[float], cell: int, more: float
) -> None:
    heavier = [x + more * (1 - x) * (i == cell) for i, x in enumerate(load)]
    both = torch.tensor([levels, levels])[None]
    before, after = rewards(both, torch.tensor([load, heavier]), RADIO, Target())[0]
    others = [i for i in range(3) if i != cell]
    assert bool((after[others] <= before[others] + 1e-5).all())
    if levels[cell] - max(levels) > -20:  # further down, float32 has forgotten its part of the sum
        assert after[cell].item() == pytest.approx(before[cell].item(), abs=1e-3)


# --- smoothing ---


def centred_mean_dbm(levels: list[float], periods: int) -> list[float]:
    """In power, over what there is of the window at both ends."""
    means = []
    for t in range(len(levels)):
        window = levels[max(0, t - periods // 2) : t + periods // 2 + 1]
        power = sum(10 ** (level / 10) for level in window) / len(window)
        means.append(max(RSRP_FLOOR_DBM, 10 * math.log10(power)))
    return means


@given(
    levels=st.lists(st.integers(-128, -30), min_size=1, max_size=30), periods=st.sampled_from([1, 3, 5, 9])
)
def test_smoothed_is_a_centred_mean_of_power(levels: list[int], periods: int) -> None:
    found = smoothed(torch.tensor(levels, dtype=torch.int8)[:, None, None], periods)
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == pytest.approx(centred_mean_dbm(levels, periods), abs=1e-3)


def test_a_strong_past_does_not_drown_weak_measurements() -> None:
    """A minute at -45 dBm, then -115 dBm: 70 dB, as many as float32 has."""
    levels = torch.tensor([-45] * 600 + [-115] * 20, dtype=torch.int8)[:, None, None]
    assert smoothed(levels, 5)[-10:].flatten().tolist() == pytest.approx([-115.0] * 10, abs=0.01)


def test_smoothed_keeps_users_and_cells_apart() -> None:
    levels = random_levels(12, 3, 4)
    for user in range(3):
        for cell in range(4):
            alone = smoothed(levels[:, user : user + 1, cell : cell + 1], 5)[:, 0, 0]
            torch.testing.assert_close(smoothed(levels, 5)[:, user, cell], alone)


# --- hindsight ---


def plain_values(
    reward: list[list[float]], told: list[list[float]], cost: float, discount: float
) -> list[list[float]]:
    """V_t(c) = r_t(c) + gamma (p max(V_t+1(c), max V_t+1 - h) + (1 - p) V_t+1(c)), `[T][C]`."""
    values: list[list[float]] = []
    ahead = [0.0] * len(reward[0])
    for now, heard in zip(reversed(reward), reversed(told), strict=True):
        ahead = [
            r + discount * (p * max(a, max(ahead) - cost) + (1 - p) * a)
            for r, p, a in zip(now, heard, ahead, strict=True)
        ]
        values.insert(0, ahead)
    return values


def test_a_samples_value_is_the_regret_two_periods_later() -> None:
    """Decided at the end of t, executed during t + 1, served from t + 2 on; 70 users: in two pieces."""
    levels, target = random_levels(30, 70, 3), Target(handover_cost=0.7)
    serving = torch.randint(3, (30, 70), generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    load = torch.rand(70, 3, generator=torch.Generator().manual_seed(2))
    experience = hindsight(levels, load, serving, RADIO, target)
    assert torch.equal(experience.rsrp_dbm, levels[:-2]) and torch.equal(experience.serving, serving[:-2])
    assert experience.value.shape == (28, 70, 3)
    reward = rewards(smoothed(levels, 3), load, RADIO, target)
    told = (1 - loss_from_sinr(sinr_db(smoothed(levels, 3), load, RADIO))) ** 2
    for user in (0, 63, 64, 69):
        expected = torch.tensor(plain_values(reward[:, user].tolist(), told[:, user].tolist(), 0.7, 0.95))[2:]
        expected = (expected - expected.amax(-1, keepdim=True)).clamp(min=-4.0)
        torch.testing.assert_close(experience.value[:, user].float(), expected, atol=4e-3, rtol=2e-3)
    assert experience.value.amin() == -4.0 and bool((experience.value.amax(-1) == 0).all())


def test_who_waits_too_long_is_not_told_to_go() -> None:
    """The serving cell falls by 40 dB: leaving costs one handover before, and outage on top after."""
    periods = 40
    falling = torch.where(torch.arange(periods) < 20, -70.0, -110.0)
    levels = torch.stack([falling, torch.full((periods,), -80.0)], -1)[:, None].to(torch.int8)
    target = Target(rate_weight=0.0, smoothing_periods=1)
    serving = torch.zeros(periods, 1, dtype=torch.int8)
    regret = hindsight(levels, torch.ones(1, 2), serving, RADIO, target).value[:, 0, 0]
    assert regret[5].item() > -1.0 and regret[25].item() == -4.0
    assert bool((regret[10:20].diff() <= 0).all())


def test_regret_is_never_positive_and_the_best_cell_has_none() -> None:
    experience = hindsight(
        random_levels(25, 5, 4), torch.full((5, 4), 0.5), torch.zeros(25, 5).char(), RADIO, Target()
    )
    assert bool((experience.value <= 0).all()) and bool((experience.value.amax(-1) == 0).all())


def test_a_drop_is_foreseen_two_periods_ahead() -> None:
    """Without a future (discount 0) the better cell of row t is the one that is better in t + 2."""
    levels = torch.full((30, 1, 2), -100, dtype=torch.int8)
    levels[:15, 0, 0] = levels[15:, 0, 1] = -80
    target = Target(discount=0.0, smoothing_periods=1)
    experience = hindsight(levels, torch.ones(1, 2), torch.zeros(30, 1).char(), RADIO, target)
    assert experience.value[:, 0].argmax(-1).tolist() == [0] * 13 + [1] * 15


# --- samples and batches ---

PERIODS, USERS, CELLS = 60, 6, 6


def numbered(serving: Tensor) -> Experience:
    """Every measurement tells its time (cell 0) and its user (cell 1), and so does every value."""
    number = torch.zeros(PERIODS, USERS, CELLS)
    number[..., 0] = torch.arange(PERIODS)[:, None]
    number[..., 1] = torch.arange(USERS)
    return Experience(number.char(), number.half(), serving.char())


def drawn(batches: Batches, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Times and users of a batch, `[nodes, size]`, read from its values and checked against its histories."""
    history, value = batches.draw(torch.Generator().manual_seed(seed))
    times, users = value[..., 0].long(), value[..., 1].long()
    assert history.shape == (*times.shape, HISTORY, CELLS) and history.dtype == torch.float32
    assert torch.equal(history[..., 0].long(), times[..., None] + torch.arange(1 - HISTORY, 1))
    assert bool((history[..., 1] == users[..., None]).all())
    return times, users


def some_serving() -> Tensor:
    """Cells of site 0 and 2 serve; nobody is on site 1."""
    choice = torch.randint(4, (PERIODS, USERS), generator=torch.Generator().manual_seed(5))
    return torch.tensor([0, 1, 4, 5])[choice]


def test_samples_have_a_whole_history_and_a_future() -> None:
    times, users = numbered(some_serving()).samples(torch.arange(USERS))
    assert (times.min(), times.max()) == (HISTORY - 1, PERIODS - HORIZON - 1)
    assert len(times) == (PERIODS - HORIZON - HISTORY + 1) * USERS
    assert len({*zip(times.tolist(), users.tolist(), strict=True)}) == len(times)


def test_a_node_draws_only_what_its_cells_served() -> None:
    serving = some_serving()
    batches = Batches.of(numbered(serving), CELL_SITE, 3, 200, torch.arange(USERS))
    times, users = drawn(batches)
    site = CELL_SITE[serving[times, users]]
    assert set(site[0].tolist()) == {0} and set(site[2].tolist()) == {2}
    for node in (0, 2):
        own = len({*zip(times[node].tolist(), users[node].tolist(), strict=True)})
        assert own > 0.9 * batches.served[node]  # and all of them, in the long run


def test_a_node_without_samples_borrows_everyones() -> None:
    serving = some_serving()
    batches = Batches.of(numbered(serving), CELL_SITE, 3, 200, torch.arange(USERS))
    assert batches.served[1] == 0 and batches.served.sum() == len(batches.times)
    times, users = drawn(batches)
    assert set(CELL_SITE[serving[times[1], users[1]]].tolist()) == {0, 2}
    assert federated_mixing(batches.served)[:, 1].tolist() == [0.0] * 3


def test_one_node_takes_all() -> None:
    experience = numbered(some_serving())
    batches = Batches.of(experience, CELL_SITE, 1, 2000, torch.arange(USERS))
    times, users = drawn(batches)
    found = {*zip(times[0].tolist(), users[0].tolist(), strict=True)}
    assert batches.served.tolist() == [len(batches.times)] == [len(found)]


def test_the_last_sample_is_drawn_and_none_beyond() -> None:
    """One sample alone on a node, at the end of the list."""
    serving = torch.zeros(PERIODS, USERS, dtype=torch.int64)
    serving[PERIODS - HORIZON - 1, USERS - 1] = 5
    times, users = drawn(Batches.of(numbered(serving), CELL_SITE, 3, 50, torch.arange(USERS)))
    assert set(times[2].tolist()) == {PERIODS - HORIZON - 1} and set(users[2].tolist()) == {USERS - 1}


def test_batches_are_deterministic_by_seed() -> None:
    batches = Batches.of(numbered(some_serving()), CELL_SITE, 3, 50, torch.arange(USERS))
    first, again, other = drawn(batches), drawn(batches), drawn(batches, seed=1)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


# --- slots ---


def round_scene() -> Scene:
    """Four sites, not in order: south, centre, north, east; two cells on each, named out of turn."""
    scene = small_scene()
    cell_site = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    return replace(
        scene,
        path_gain_db=scene.path_gain_db[:1].expand(8, -1, -1).contiguous(),
        site_position_m=torch.tensor([[0.0, -300, 25], [10, 0, 25], [20, 300, 25], [300, 0, 25]]),
        cell_site=cell_site,
        azimuth_deg=torch.tensor([200.0, 200, 200, 200, 20, 20, 20, 20]),
        tilt_deg=torch.full((8,), 8.0),
    )


def relabelled(scene: Scene, cells: Tensor, sites: Tensor) -> Scene:
    """New cell i is old cell `cells[i]`, new site j old site `sites[j]`."""
    return replace(
        scene,
        path_gain_db=scene.path_gain_db[cells].contiguous(),
        site_position_m=scene.site_position_m[sites],
        cell_site=torch.argsort(sites)[scene.cell_site[cells]],
        azimuth_deg=scene.azimuth_deg[cells],
        tilt_deg=scene.tilt_deg[cells],
    )


def test_slots_start_in_the_centre_and_go_round_by_bearing() -> None:
    """Centre, north (0 deg), east (90), south (180); on a site the sector at 20 deg before the one at 200."""
    assert slots(round_scene()).tolist() == [6, 1, 5, 2, 4, 3, 7, 0]


@given(cells=st.permutations(range(8)), sites=st.permutations(range(4)))
def test_slots_mean_the_same_under_other_labels(cells: list[int], sites: list[int]) -> None:
    scene, old_cell = round_scene(), torch.tensor(cells)
    order = slots(relabelled(scene, old_cell, torch.tensor(sites)))
    assert sorted(order.tolist()) == list(range(8))
    assert torch.equal(old_cell[order], slots(scene))


# --- the value model ---


def per_station(nodes: int, cells: int, width: int = 8) -> Parameters:
    """Another model on every node."""
    widths = (HISTORY * cells, width, width, cells)
    each = [initial_parameters(widths, 1, stream(seed, "model")) for seed in range(nodes)]
    return {name: torch.cat([one[name] for one in each]) for name in each[0]}


def histories(n: int, cells: int) -> Tensor:
    return random_levels(n, HISTORY, cells, seed=3).float()


def test_every_user_gets_its_serving_stations_model() -> None:
    parameters, order = per_station(3, CELLS), torch.tensor([3, 0, 5, 1, 4, 2])
    history, serving = histories(40, CELLS), torch.arange(40) % 4  # nobody on site 2
    together = ValueModel(parameters, CELL_SITE, order).value(history, serving)
    assert together.shape == (40, CELLS)
    for user in range(40):
        node = int(CELL_SITE[serving[user]])
        one = {name: w[node : node + 1] for name, w in parameters.items()}
        alone = ValueModel(one, CELL_SITE, order).value(history[user : user + 1], serving[user : user + 1])
        torch.testing.assert_close(together[user], alone[0], rtol=1e-4, atol=1e-5)


def test_one_model_ignores_who_serves() -> None:
    model = ValueModel(per_station(1, CELLS), CELL_SITE, torch.arange(CELLS))
    history = histories(10, CELLS)
    values = [model.value(history, torch.full((10,), cell)) for cell in (0, 5)]
    assert model.nodes == 1 and torch.equal(*values)


@pytest.mark.parametrize("nodes", [1, 3])
def test_values_do_not_depend_on_the_order_of_the_batch(nodes: int) -> None:
    model = ValueModel(per_station(nodes, CELLS), CELL_SITE, torch.arange(CELLS))
    history, serving = histories(30, CELLS), torch.arange(30) % CELLS
    shuffled = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        model.value(history[shuffled], serving[shuffled]),
        model.value(history, serving)[shuffled],
        rtol=1e-4,
        atol=1e-5,
    )


def test_values_follow_their_cells_under_other_labels() -> None:
    """The same radio picture with cells named otherwise gives the same value to the same cell."""
    scene, cells = round_scene(), torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    other = relabelled(scene, cells, torch.tensor([2, 0, 3, 1]))
    parameters, history = per_station(1, 8), histories(10, 8)
    anyone = torch.zeros(10, dtype=torch.int64)
    value = ValueModel(parameters, scene.cell_site, slots(scene)).value(history, anyone)
    renamed = ValueModel(parameters, other.cell_site, slots(other)).value(history[..., cells], anyone)
    torch.testing.assert_close(renamed, value[:, cells])


def test_the_value_model_is_the_perceptron_of_torch() -> None:
    """Same weights, same scaling, slots in order: same values, loss and gradients."""
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    model = ValueModel(per_station(1, CELLS), CELL_SITE, order)
    wide, narrow = HISTORY * CELLS, 8
    network = torch.nn.Sequential(
        torch.nn.Linear(wide, narrow),
        torch.nn.ReLU(),
        torch.nn.Linear(narrow, narrow),
        torch.nn.ReLU(),
        torch.nn.Linear(narrow, CELLS),
    )
    linear = [network[0], network[2], network[4]]
    with torch.no_grad():
        for layer, module in enumerate(linear):
            module.weight.copy_(model.parameters[f"weight{layer}"][0].T)
            module.bias.copy_(model.parameters[f"bias{layer}"][0, 0] + 0.1)
    parameters = {name: w + 0.1 * name.startswith("bias") for name, w in model.parameters.items()}
    for w in parameters.values():
        w.requires_grad_()
    history, value = histories(20, CELLS), -torch.rand(20, CELLS, generator=torch.Generator().manual_seed(4))
    output = network((history[..., order] + 90).flatten(1) / 20)
    found = replace(model, parameters=parameters).value(history, torch.zeros(20, dtype=torch.int64))
    torch.testing.assert_close(found[:, order], output)
    expected = torch.nn.functional.mse_loss(output, value[:, order])
    loss = value_loss(model)(parameters, (history[None], value[None]))
    torch.testing.assert_close(loss, expected[None])
    loss.sum().backward()
    expected.backward()
    for layer, module in enumerate(linear):
        torch.testing.assert_close(parameters[f"weight{layer}"].grad[0].T, module.weight.grad)


def test_initial_weights_are_he_s_and_the_same_on_every_node() -> None:
    parameters = initial_parameters((200, 100, 3), 2, stream(0, "model"))
    assert {name: tuple(w.shape) for name, w in parameters.items()} == {
        "weight0": (2, 200, 100), "bias0": (2, 1, 100), "weight1": (2, 100, 3), "bias1": (2, 1, 3),
    }  # fmt: skip
    assert all(torch.equal(w[0], w[1]) for w in parameters.values())
    assert parameters["weight0"].std().item() == pytest.approx(0.1, rel=0.03)
    assert not torch.equal(
        parameters["weight1"], initial_parameters((200, 100, 3), 2, stream(1, "model"))["weight1"]
    )


# --- the regimes, end to end ---


def walked() -> Experience:
    """Users whose six cells come and go smoothly, with hindsight."""
    rng = torch.Generator().manual_seed(0)
    phase, speed = torch.rand(24, CELLS, generator=rng), 0.5 + torch.rand(24, 1, generator=rng)
    turn = phase + speed * torch.arange(90)[:, None, None] / 60
    levels = -85 + 15 * torch.cos(2 * torch.pi * turn) + 2 * torch.randn(90, 24, CELLS, generator=rng)
    serving = levels.argmax(-1)
    return hindsight(levels.char(), torch.full((24, CELLS), 0.5), serving, RADIO, Target())


@pytest.mark.parametrize(("regime", "nodes"), [("local", 3), ("federated", 3), ("central", 1)])
def test_every_regime_learns(regime: str, nodes: int) -> None:
    experience = walked()
    model = ValueModel(
        initial_parameters((HISTORY * CELLS, 16, 16, CELLS), nodes, stream(0, "model")),
        CELL_SITE,
        torch.arange(CELLS),
    )
    loss, everyone = value_loss(model), torch.arange(24)
    batches = Batches.of(experience, CELL_SITE, nodes, 64, everyone)
    held = Batches.of(experience, CELL_SITE, nodes, 256, everyone).draw(torch.Generator().manual_seed(9))
    found: Fit = fit(
        model.parameters,
        loss,
        batches.draw,
        lambda parameters: loss(parameters, held),
        federated_mixing(batches.served) if regime == "federated" else torch.eye(nodes),
        Schedule(rounds=4, steps_per_round=15),
        stream(0, regime),
    )
    assert bool((found.validation_loss[-1] < 0.9 * found.validation_loss[0]).all())
    weights = found.parameters["weight0"]
    if regime == "federated":
        assert torch.equal(weights, weights[:1].expand_as(weights))
    elif regime == "local":
        assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
