"""mobile-env: its small scenario, three cells and five users, the same action again and again, no checks.

It has no batch: 256 worlds are 256 environments one after the other, so the rate of one is that of all.
"""

from importlib.metadata import version

import gymnasium
import mobile_env  # noqa: F401  registers the scenarios

from benchmarks.worker import Program, serve

STEPS = 200


def small() -> Program:
    """A unit is an environment's step; the multi-agent handler is the faster of the two."""
    environment = gymnasium.make("mobile-small-ma-v0", disable_env_checker=True).unwrapped
    environment.reset(seed=1)
    action = environment.action_space.sample()

    def run() -> None:
        for _ in range(STEPS):
            *_, terminated, truncated, _ = environment.step(action)
            if terminated or truncated:
                environment.reset()

    return Program(run, STEPS)


if __name__ == "__main__":
    serve(version("mobile-env"), {"small": small})
