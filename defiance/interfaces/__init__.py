"""The network as other people's tools drive it: Gymnasium, PettingZoo, Stable-Baselines3 (extra `rl`).

Importing this registers `defiance/Handover-v0` with Gymnasium.
"""

import gymnasium

from defiance.interfaces.episodes import Task, city_worlds
from defiance.interfaces.handover import HandoverEnv, HandoverVectorEnv

__all__ = ["HandoverEnv", "HandoverVectorEnv", "Task", "city_worlds"]

gymnasium.register(
    "defiance/Handover-v0",
    entry_point="defiance.interfaces.handover:HandoverEnv",
    vector_entry_point="defiance.interfaces.handover:HandoverVectorEnv",
)
