"""The environments: their libraries' checks, the same numbers as `simulate`, the examples of the docs."""

import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env, data_equivalence
from pettingzoo.test import parallel_api_test, parallel_seed_test
from scenes import small_scene
from stable_baselines3.common.env_checker import check_env as check_for_stable_baselines
from worlds import corridor, gain_for_snr

from defiance.control.handover import A3
from defiance.errors import DefianceError
from defiance.interfaces import HandoverEnv, HandoverVectorEnv, Task
from defiance.interfaces.parallel import ParallelHandover
from defiance.interfaces.stable_baselines import StableBaselinesVecEnv
from defiance.network.loop import PERIOD_STEPS
from defiance.network.settings import RadioConfig
from defiance.network.simulate import simulate
from defiance.network.state import NONE
from defiance.network.world import World, draw_worlds
from defiance.seeding import Stream, stream

INTERFACES = Path(__file__).parents[1] / "docs" / "interfaces.md"
EXAMPLES = re.findall(
    r"^```python\n(.*?)^```", INTERFACES.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
)


def hills() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Three cells, each strong in a part of a square of 120 m, 60 dB from place to place."""
    y, x = np.mgrid[:30, :30]
    away = [np.hypot(x - a, y - b) for a, b in ((3, 3), (26, 5), (14, 26))]
    return np.stack([-85 - 2.0 * distance for distance in away]).astype(np.float32)


SCENE = small_scene(outdoor=np.full((30, 30), True), gain_db=hills())


def draw(task: Task, streams: list[Stream]) -> World:
    """Users who run to and fro between three cells."""
    return draw_worlds(
        SCENE,
        task.radio,
        streams,
        users=task.users,
        duration_s=task.duration_s + 2,
        speed_kmh=task.speed_kmh,
        load=task.load,
        demand_bps=task.demand_bps,
    )


SMALL: dict[str, Any] = {"draw": draw, "users": 4, "speed_kmh": 50.0, "duration_s": 3.0}
PLACEMENTS = pytest.mark.parametrize("placement", ["device", "station"])


def same(first: Any, second: Any) -> bool:
    return data_equivalence(first, second, exact=True)


# --- checkers ---


@PLACEMENTS
def test_gymnasiums_checker(placement: str) -> None:
    env = gymnasium.make("defiance/Handover-v0", placement=placement, **SMALL)
    check_env(env.unwrapped, skip_render_check=True)


def test_stable_baselines_checker() -> None:
    check_for_stable_baselines(HandoverEnv(**SMALL), warn=False)


def test_pettingzoos_checkers() -> None:
    parallel_api_test(ParallelHandover(**SMALL), num_cycles=40)
    parallel_seed_test(lambda: ParallelHandover(**SMALL), num_cycles=10)


@PLACEMENTS
def test_batches_are_in_their_spaces(placement: str) -> None:
    envs = gymnasium.make_vec("defiance/Handover-v0", num_envs=3, placement=placement, **SMALL)
    assert isinstance(envs, HandoverVectorEnv)
    seen, _ = envs.reset(seed=1)
    for _ in range(40):  # beyond the end of an episode
        assert seen in envs.observation_space
        seen, reward, terminated, truncated, _ = envs.step(envs.action_space.sample())
        assert reward.shape == terminated.shape == truncated.shape == (3,) and not terminated.any()


# --- reproducibility ---


@PLACEMENTS
def test_a_world_of_a_batch_is_the_one_of_its_seed(placement: str) -> None:
    envs = HandoverVectorEnv(3, placement=placement, **SMALL)
    alone = HandoverEnv(placement=placement, **SMALL)
    batch, _ = envs.reset(seed=7)
    seen, _ = alone.reset(seed=9)
    rng = np.random.default_rng(1)
    truncated = False
    while not truncated:
        assert same({key: values[2] for key, values in batch.items()}, seen)
        actions = rng.integers(3, size=(3, 4))
        batch, rewards, _, _, infos = envs.step(actions)
        seen, reward, _, truncated, info = alone.step(actions[2])
        assert rewards[2] == reward
    assert same(infos["final_obs"][2], seen)
    assert {key: infos["final_info"][key][2] for key in info} == info
    assert info["handovers_per_user_minute"] > 0 and infos["_final_obs"].all()
    assert same({key: values[2] for key, values in batch.items()}, alone.reset()[0])  # the next episode


def test_a_seed_gives_the_same_bits_and_the_next_episode_others() -> None:
    envs = HandoverVectorEnv(2, **SMALL)
    first, _ = envs.reset(seed=3)
    following, _ = envs.reset()
    assert same(envs.reset(seed=3)[0], first) and not same(following, first)
    assert same(envs.reset()[0], following)
    assert not same(envs.reset(seed=4)[0], first)
    assert not same(HandoverVectorEnv(2, **SMALL).reset()[0], HandoverVectorEnv(2, **SMALL).reset()[0])


# --- the same network ---


@PLACEMENTS
def test_the_rule_does_in_it_what_it_does_in_simulate(placement: Any) -> None:
    """Outage, handovers and bits under event A3, to the bit; and the reward is their weighted sum."""
    task = Task(users=4, speed_kmh=50.0, duration_s=6.0, placement=placement)
    steps = PERIOD_STEPS[placement]
    rule = A3(2.0, 0.0, 0.0, 0.0, placement=placement, period_steps=steps)
    world = draw(task, [stream(5, "episode", 0)])
    expected = simulate(
        world, task.radio, rule, stream(0, "messages"), duration_s=51 * steps * 0.02, warm_up_s=0.0
    ).state

    env = HandoverEnv(draw=draw, users=4, speed_kmh=50.0, duration_s=50 * steps * 0.02, placement=placement)
    env.reset(seed=5)
    first = env.episodes.course.state.clone()
    memory, rewards = rule.initial(1, 4, 3), 0.0
    observation, over = env.episodes.observation, False
    while not over:
        memory, wanted = rule.decide(memory, observation)
        wanted = torch.where(wanted == NONE, observation.serving, wanted)[0]
        _, reward, _, over, _ = env.step(wanted.numpy())
        observation = env.episodes.observation
        rewards += reward
    state = env.episodes.course.state
    assert int(expected.handovers.sum()) > 3
    for name in ("outage_steps", "handovers", "bits", "link_failures", "serving"):
        assert torch.equal(getattr(state, name), getattr(expected, name)), name
    outage, moved, bits = (
        float((getattr(state, name) - getattr(first, name)).double().mean())
        for name in ("outage_steps", "handovers", "bits")
    )
    assert rewards == pytest.approx(0.1 * bits / (1e6 * steps * 0.02) - outage / steps - moved, rel=1e-9)


def test_rewards_by_hand() -> None:
    """All demand served: 0.1; a handover interrupts two of five steps: -1 - 2/5 + 0.1 x 3/5."""
    world = corridor([[gain_for_snr(20.0)] * 3] * 2)
    env = HandoverEnv(draw=lambda task, streams: world, users=1, placement="device", duration_s=1.0)
    env.reset(seed=1)
    rewards = [
        env.step(np.array([1 if period == 3 else cell]))[1] for period, cell in enumerate([0] * 4 + [1] * 4)
    ]
    assert rewards[:3] == pytest.approx([0.1] * 3, rel=1e-6)
    assert rewards[3] == pytest.approx(-1 - 2 / 5 + 0.1 * 3 / 5, rel=1e-4)
    assert rewards[4:] == pytest.approx([0.1] * 4, rel=1e-4)


def test_who_is_not_heard_is_not_seen() -> None:
    """A user far below Qout: its reports are lost, its row is at the floor."""
    world = corridor([[gain_for_snr(-40.0)] * 2] * 2, users=2)
    env = HandoverEnv(draw=lambda task, streams: world, users=2, duration_s=1.0)
    seen, _ = env.reset(seed=1)
    assert not seen["fresh"].any() and (seen["rsrp_dbm"] == RadioConfig.rsrp_floor_dbm).all()


# --- one agent per base station ---


def test_stations_decide_for_their_own_users_and_share_the_reward() -> None:
    env, whole = ParallelHandover(**SMALL), HandoverEnv(**SMALL)
    seen, _ = env.reset(seed=2)
    everything, _ = whole.reset(seed=2)
    rng = np.random.default_rng(3)
    assert env.agents == ["site_0", "site_1"]
    for _ in range(20):
        serves = {agent: seen[agent]["serves"].astype(bool) for agent in env.agents}
        assert (serves["site_0"] ^ serves["site_1"]).all()  # everyone has one station
        for agent, mine in serves.items():
            assert (seen[agent]["rsrp_dbm"][mine] == everything["rsrp_dbm"][mine]).all()
            assert (seen[agent]["rsrp_dbm"][~mine] == RadioConfig.rsrp_floor_dbm).all()
        actions = {agent: rng.integers(3, size=4) for agent in env.agents}
        joint = np.where(serves["site_0"], actions["site_0"], actions["site_1"])
        seen, rewards, _, _, _ = env.step(actions)
        everything, reward, _, _, _ = whole.step(joint)
        assert sum(rewards.values()) == pytest.approx(reward, rel=1e-12)
    kept = {agent: view["serving"] for agent, view in seen.items()}
    env.step({})  # nobody decides: everyone stays
    assert set(kept) == {"site_0", "site_1"}


# --- what is refused ---


def test_wrong_values_and_actions_are_refused() -> None:
    with pytest.raises(DefianceError, match="speed_kmh"):
        HandoverEnv(**{**SMALL, "speed_kmh": 1000.0})
    with pytest.raises(DefianceError, match="no such city"):
        HandoverEnv(scene="atlantis")
    env = HandoverEnv(**SMALL)
    with pytest.raises(DefianceError, match="reset"):
        env.step(np.zeros(4, dtype=np.int64))
    env.reset(seed=1)
    for action in ([3, 0, 0, 0], [-1, 0, 0, 0], [0, 0, 0]):
        with pytest.raises(DefianceError, match=r"cells 0 \.\.\. 2 for each of 4 users"):
            env.step(np.array(action))
    short = HandoverEnv(draw=lambda task, streams: corridor([[-90.0]] * 3, speed_mps=10.0), duration_s=10.0)
    with pytest.raises(DefianceError, match="routes end"):
        short.reset(seed=1)


# --- Stable-Baselines3, and the examples ---


def test_the_adapter_for_stable_baselines() -> None:
    envs = StableBaselinesVecEnv(HandoverVectorEnv(2, **SMALL))
    envs.seed(5)
    seen = envs.reset()
    again, _ = HandoverVectorEnv(2, **SMALL).reset(seed=5)
    assert same(seen, again)
    for _ in range(24):
        seen, reward, done, infos = envs.step(seen["serving"])
        assert not done.any() and "terminal_observation" not in infos[0]
    seen, reward, done, infos = envs.step(seen["serving"])
    assert done.all() and reward.dtype == np.float32
    assert infos[1]["TimeLimit.truncated"] and infos[1]["outage_share"] >= 0
    assert infos[1]["terminal_observation"] in envs.observation_space
    assert envs.env_is_wrapped(gymnasium.Wrapper) == [False, False] and envs.render_mode is None


@pytest.mark.parametrize("number", [n for n, code in enumerate(EXAMPLES) if "onnx" not in code])
def test_examples_of_the_documentation(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    toy = {
        "total_timesteps=1_000_000": "total_timesteps=64",
        "num_envs=16": "num_envs=4",
        "duration_s=30.0": "duration_s=3.0",
    }
    code = EXAMPLES[number]
    for full, small in toy.items():
        code = code.replace(full, small)
    exec(compile(code, f"{INTERFACES.name}, example {number + 1}", "exec"), {})
    assert float(capsys.readouterr().out.splitlines()[-1].strip("[]").split()[0]) >= 0


def test_the_training_example_is_short() -> None:
    (training,) = (example for example in EXAMPLES if "PPO" in example)
    assert len([line for line in training.splitlines() if line]) <= 20
