"""`defiance/Handover-v0` for Gymnasium: one world, or a batch of worlds as one vector environment.

Observation of a world of U users and C cells, a dictionary::

    rsrp_dbm  float32 [U, C]  RSRP as measured or reported [dBm]; the floor where a cell was not heard, and in
                              the whole row of a user of whom nothing came
    serving   int64 [U]       serving cell
    fresh     int8 [U]        1 where a measurement or report came in this period
    load      float32 [C]     mean share of the PRBs that stations last told each other over Xn, 0 ... 1

Action, int64 [U]: the cell that shall serve each user, its serving cell to stay. The reward is the mean over
the users of `episodes.Episodes.step`'s, in decision periods of outage. An episode is truncated after
`Task.duration_s`; it never terminates.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numba import njit
from numpy.typing import NDArray

from defiance.interfaces.episodes import Draw, Episodes, Task, city_worlds
from defiance.network.measurements import Observation
from defiance.network.scheduling import LOOP

Arrays = dict[str, Any]  # each value is an array


def observation_space(episodes: Episodes) -> spaces.Dict:
    """The space of one world's observations."""
    _, users, cells = episodes.shape
    radio = episodes.task.radio
    return spaces.Dict(
        rsrp_dbm=spaces.Box(radio.rsrp_floor_dbm, radio.tx_power_dbm, (users, cells), np.float32),
        serving=action_space(episodes),
        fresh=spaces.MultiBinary(users),
        load=spaces.Box(0.0, 1.0, (cells,), np.float32),
    )


def action_space(episodes: Episodes) -> spaces.MultiDiscrete:
    """The space of one world's actions."""
    _, users, cells = episodes.shape
    return spaces.MultiDiscrete([cells] * users)


def arrays(observation: Observation) -> Arrays:
    """An observation as the spaces say, batch first, in memory of its own."""
    assert observation.load is not None
    rsrp_dbm, fresh = observation.rsrp_dbm.numpy(), observation.fresh.numpy()
    seen = np.empty_like(rsrp_dbm)
    _see_loop(rsrp_dbm, fresh, np.float32(observation.floor_dbm), seen)
    return {
        "rsrp_dbm": seen,
        "serving": observation.serving.numpy().astype(np.int64),
        "fresh": fresh.astype(np.int8),
        "load": observation.load.clamp(0, 1).numpy(),
    }


@njit(**LOOP)
def _see_loop(rsrp_dbm, fresh, floor_dbm, seen):  # type: ignore[no-untyped-def]
    """What has come, and the floor in the rows of whom nothing came, `[W, U, C]`."""
    worlds, users, cells = rsrp_dbm.shape
    for w in range(worlds):
        for u in range(users):
            for c in range(cells):
                seen[w, u, c] = rsrp_dbm[w, u, c] if fresh[w, u] else floor_dbm


class HandoverVectorEnv(VectorEnv[Arrays, NDArray[np.int64], NDArray[Any]]):
    """W worlds in one tensor program.

    World i depends on seed + i alone, so that it is the one that `HandoverEnv` is with that seed. All worlds
    end together; the step that ends them resets them (`AutoresetMode.SAME_STEP`), with the last observations
    in `final_obs` and what the episode came to (`Episodes.outcome`) in `final_info`.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, num_envs: int = 1, *, draw: Draw = city_worlds, **task: Any) -> None:
        """Draw no worlds yet.

        Args:
            num_envs: W.
            draw: worlds other than those of a city.
            task: values of `Task`.

        Raises:
            DefianceError: a value is outside its range, or there is no such scene.
        """
        self.num_envs = num_envs
        self.episodes = Episodes(Task(**task), num_envs, draw)
        self.single_observation_space = observation_space(self.episodes)
        self.single_action_space = action_space(self.episodes)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Arrays, dict[str, Any]]:
        """New worlds; with a seed the same ones again, without one those of the next episode."""
        super().reset(seed=seed)
        return self._begin(anew=seed is not None), {}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[Arrays, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """One decision period; rewards `[W]` float64.

        Raises:
            DefianceError: there was no reset, or an action names no cell.
        """
        observation, reward = self.episodes.step(torch.as_tensor(actions, dtype=torch.int64))
        seen, infos = arrays(observation), {}
        truncated = np.full(self.num_envs, self.episodes.finished)
        if self.episodes.finished:
            last = np.empty(self.num_envs, dtype=object)
            last[:] = [{key: values[i] for key, values in seen.items()} for i in range(self.num_envs)]
            outcome = {key: values.numpy() for key, values in self.episodes.outcome().items()}
            infos = {
                "final_obs": last,
                "_final_obs": truncated.copy(),
                "final_info": {**outcome, **{f"_{key}": truncated.copy() for key in outcome}},
                "_final_info": truncated.copy(),
            }
            seen = self._begin(anew=False)
        return seen, reward.mean(-1).numpy(), np.zeros_like(truncated), truncated, infos

    def _begin(self, *, anew: bool) -> Arrays:
        assert self.np_random_seed is not None
        return arrays(self.episodes.begin(self.np_random_seed, anew=anew))


class HandoverEnv(gymnasium.Env[Arrays, NDArray[np.int64]]):
    """One world; see `HandoverVectorEnv` for its arguments."""

    metadata = {"render_modes": []}

    def __init__(self, *, draw: Draw = city_worlds, **task: Any) -> None:
        self.episodes = Episodes(Task(**task), 1, draw)
        self.observation_space = observation_space(self.episodes)
        self.action_space = action_space(self.episodes)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Arrays, dict[str, Any]]:
        """A new world; with a seed the same one again, without one that of the next episode."""
        super().reset(seed=seed)
        return _first(self.episodes.begin(self.np_random_seed, anew=seed is not None)), {}

    def step(self, action: NDArray[np.int64]) -> tuple[Arrays, float, bool, bool, dict[str, Any]]:
        """One decision period.

        Raises:
            DefianceError: the episode is over, or the action names no cell.
        """
        observation, reward = self.episodes.step(torch.as_tensor(action, dtype=torch.int64)[None])
        over = self.episodes.finished
        info = {key: float(value) for key, value in self.episodes.outcome().items()} if over else {}
        return _first(observation), float(reward.mean(-1)[0]), False, over, info


def _first(observation: Observation) -> Arrays:
    return {key: values[0] for key, values in arrays(observation).items()}
