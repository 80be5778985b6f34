"""The vector environment as Stable-Baselines3 wants it: `StableBaselinesVecEnv(gymnasium.make_vec(...))`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from defiance.interfaces.handover import Arrays, HandoverVectorEnv


class StableBaselinesVecEnv(VecEnv):
    """A thin coat: both sides reset in the step that ends an episode.

    An episode's outcome is in its last `info`, beside `terminal_observation`.
    """

    def __init__(self, envs: HandoverVectorEnv) -> None:
        self.envs = envs
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Arrays:
        """New worlds."""
        seen, _ = self.envs.reset(seed=self._seeds[0])
        self._reset_seeds()
        return seen

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Keep the actions."""
        self.actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """One decision period."""
        seen, reward, _, truncated, info = self.envs.step(self.actions)
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(over)} for over in truncated]
        for i in np.flatnonzero(truncated):
            outcome = {key: info["final_info"][key][i] for key in info["final_info"] if key[0] != "_"}
            infos[i] |= {"terminal_observation": info["final_obs"][i], **outcome}
        return seen, reward.astype(np.float32), truncated, infos

    def close(self) -> None:
        """Close the vector environment."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """What all worlds have in common."""
        return [getattr(self.envs, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Worlds have no attributes of their own."""
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> Any:
        """Worlds have no methods of their own."""
        raise NotImplementedError

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Worlds are not wrapped."""
        return [False for _ in self._get_indices(indices)]
