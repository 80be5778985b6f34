"""Handover for PettingZoo: one agent per base station, which decides for the users that it serves.

Observation of an agent among U users and C cells, as in `interfaces.handover`, but of its own users only::

    rsrp_dbm  float32 [U, C]  [dBm]; the floor in the rows of users of others
    serving   int64 [U]       serving cell; 0 for users of others
    fresh     int8 [U]        1 where a report came from a user of its own
    load      float32 [C]     0 ... 1
    serves    int8 [U]        1 for users of its own

Action, int64 [U]: the cell that shall serve each user; what it says about users of others has no effect. The
reward is the sum over the users that it decided for, divided by U, so that the agents' rewards add up to that
of `defiance/Handover-v0`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from numpy.typing import NDArray
from pettingzoo import ParallelEnv
from torch import Tensor

from defiance.interfaces.episodes import Draw, Episodes, Task, city_worlds
from defiance.interfaces.handover import Arrays, action_space, arrays, observation_space
from defiance.network.measurements import Observation


class ParallelHandover(ParallelEnv[str, Arrays, NDArray[np.int64]]):  # type: ignore[misc]  # is untyped
    """Stations that see the reports of their own users and hand them over."""

    metadata = {"name": "defiance_handover_v0", "render_modes": [], "is_parallelizable": True}

    def __init__(self, *, draw: Draw = city_worlds, **task: Any) -> None:
        """Draw no world yet.

        Args:
            draw: worlds other than those of a city.
            task: values of `Task`.

        Raises:
            DefianceError: a value is outside its range, or there is no such scene.
        """
        self.episodes = Episodes(Task(**task), 1, draw)
        self.sites = {f"site_{site}": site for site in sorted(set(self.episodes.cell_site.tolist()))}
        self.possible_agents = list(self.sites)
        self.agents: list[str] = []
        _, users, _ = self.episodes.shape
        self.observation_spaces = {
            agent: spaces.Dict({**observation_space(self.episodes), "serves": spaces.MultiBinary(users)})
            for agent in self.sites
        }
        self.action_spaces = {agent: action_space(self.episodes) for agent in self.sites}
        self.seed = -1

    def observation_space(self, agent: str) -> spaces.Dict:
        """The space of an agent's observations."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.MultiDiscrete:
        """The space of an agent's actions."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Arrays], dict[str, dict[str, Any]]]:
        """A new world; with a seed the same one again, without one that of the next episode."""
        anew = seed is not None or self.seed < 0
        if anew:
            self.seed = seeding.np_random(seed)[1]
        self.agents = list(self.possible_agents)
        return self._seen(self.episodes.begin(self.seed, anew=anew)), {agent: {} for agent in self.agents}

    def step(
        self, actions: dict[str, NDArray[np.int64]]
    ) -> tuple[
        dict[str, Arrays], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]
    ]:
        """One decision period; an agent without an action keeps its users.

        Raises:
            DefianceError: the episode is over, or an action names no cell.
        """
        wanted = self.serving.clone()
        for agent, action in actions.items():
            mine = self._mine(agent)
            wanted[mine] = torch.as_tensor(action, dtype=torch.int64)[mine]
        decided = {agent: self._mine(agent) for agent in self.agents}
        observation, reward = self.episodes.step(wanted[None])
        seen, over = self._seen(observation), self.episodes.finished
        outcome = {key: float(value) for key, value in self.episodes.outcome().items()} if over else {}
        found = (
            seen,
            {agent: float(reward[0, mine].sum() / len(mine)) for agent, mine in decided.items()},
            dict.fromkeys(self.agents, False),
            dict.fromkeys(self.agents, over),
            {agent: dict(outcome) for agent in self.agents},
        )
        if over:
            self.agents = []
        return found

    def _mine(self, agent: str) -> Tensor:
        """Whether the agent serves each user, `[U]`."""
        mine: Tensor = self.episodes.cell_site[self.serving] == self.sites[agent]
        return mine

    def _seen(self, observation: Observation) -> dict[str, Arrays]:
        self.serving = observation.serving[0].long()
        batch, floor_dbm = arrays(observation), np.float32(observation.floor_dbm)
        found = {}
        for agent in self.agents:
            serves = self._mine(agent).numpy()
            found[agent] = {
                "rsrp_dbm": np.where(serves[:, None], batch["rsrp_dbm"][0], floor_dbm),
                "serving": batch["serving"][0] * serves,
                "fresh": batch["fresh"][0] * serves,
                "load": batch["load"][0].copy(),
                "serves": serves.astype(np.int8),
            }
        return found
