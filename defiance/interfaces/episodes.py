"""Episodes of a batch of worlds: who is to be served by which cell is asked every period, from outside.

The same program as `defiance.network.simulate`, but the decisions come from whoever calls `step`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from numba import njit
from torch import Tensor

from defiance import config
from defiance.errors import DefianceError
from defiance.network.loop import PERIOD_STEPS, Loop, Placement
from defiance.network.measurements import Observation
from defiance.network.scheduling import LOOP
from defiance.network.settings import RadioConfig
from defiance.network.simulate import check_routes
from defiance.network.world import World, draw_worlds, kind_of
from defiance.scene import Scene, load
from defiance.scene.streets import Kind, Ways, along, ways
from defiance.seeding import Stream, stream

ROUTE_RESERVE_S = 10.0


@dataclass(frozen=True)
class Task:
    """What the worlds of an environment are, and what its reward weighs."""

    scene: str = field(default="munich", metadata={"help": "city: shipped name or scene file"})
    users: int = field(default=10, metadata={"min": 1, "max": 100_000, "help": "users per world"})
    speed_kmh: float = field(
        default=30.0, metadata={"min": 0.1, "max": 120.0, "unit": "km/h", "help": "mean, while they move"}
    )
    load: float = field(
        default=0.5, metadata={"min": 0.0, "max": 1.0, "help": "PRBs occupied without these users"}
    )
    demand_bps: float = field(default=1e6, metadata={"min": 0.0, "unit": "bit/s", "help": "of every user"})
    duration_s: float = field(
        default=60.0, metadata={"min": 0.1, "max": 3600.0, "unit": "s", "help": "of an episode"}
    )
    placement: Placement = field(
        default="station",
        metadata={"help": "device: own measurements every 100 ms; station: reports every 120 ms"},
    )
    rate_weight: float = field(
        default=0.1, metadata={"min": 0.0, "max": 1.0, "help": "worth of all demand served, in outage"}
    )
    handover_cost: float = field(
        default=1.0, metadata={"min": 0.0, "max": 100.0, "help": "in decision periods of outage"}
    )
    radio: RadioConfig = field(default_factory=RadioConfig)


Draw = Callable[[Task, list[Stream]], World]
"""Draws one world per stream; a world depends on its own stream alone."""


def city_worlds(task: Task, streams: list[Stream]) -> World:
    """Users on the streets of the task's city, on trips between places that are the same in all episodes."""
    scene = _scene(task.scene)
    found = _ways(task.scene, kind_of(task.speed_kmh))
    return draw_worlds(
        scene,
        task.radio,
        streams,
        users=task.users,
        duration_s=task.duration_s + ROUTE_RESERVE_S,
        speed_kmh=task.speed_kmh,
        load=task.load,
        demand_bps=task.demand_bps,
        drives=lambda users, length_m, rng: along(found, users, length_m, rng),
    )


@lru_cache(maxsize=4)
def _scene(name: str) -> Scene:
    return load(name)


@lru_cache(maxsize=4)
def _ways(scene: str, kind: Kind) -> Ways:
    return ways(_scene(scene), kind, stream(0, "ways", kind).numpy())


class Episodes:
    """Episodes of W worlds, which all begin and end together.

    Attributes:
        task: what they are about.
        shape: (W, U, C).
        cell_site: base station of every cell, `[C]`.
        periods: decisions of an episode.
        finished: whether the episode is over.
        episode: since the worlds were seeded.
        observation: the last one.
    """

    def __init__(self, task: Task, worlds: int, draw: Draw = city_worlds) -> None:
        """Check the task, and draw a world to see how many users and cells there are.

        Raises:
            DefianceError: a value of the task is outside its range, or there is no such scene.
        """
        config.to_dict(task)
        self.task, self.worlds, self.draw = task, worlds, draw
        sample = draw(task, [stream(0, "sample")])
        self.shape = (worlds, *sample.shape[1:])
        self.cell_site = sample.cell_site
        self.period_s = PERIOD_STEPS[task.placement] * task.radio.step_s
        self.periods = max(1, round(task.duration_s / self.period_s))
        self.finished = True
        self.episode = -1

    def begin(self, seed: int, *, anew: bool) -> Observation:
        """Draw new worlds, and what is seen after their first period.

        Args:
            seed: of the first world, the others' follow; a world depends on its own and the episode alone.
            anew: whether it is the first episode of that seed again, or the next one.

        Raises:
            DefianceError: routes end before the episode does, or a procedure doesn't fit into a period.
        """
        task = self.task
        self.episode = 0 if anew else self.episode + 1
        seeds = range(seed, seed + self.worlds)
        world = self.draw(task, [stream(each, "episode", self.episode) for each in seeds])
        self.loop = Loop(
            world,
            task.radio,
            stream(0, "messages"),  # whose draws belong to the world
            placement=task.placement,
            period_steps=PERIOD_STEPS[task.placement],
        )
        check_routes(world, (self.periods + 1) * self.period_s)
        peak_bps = task.radio.bandwidth_hz * task.radio.rate_max_bps_hz
        self.served_bits = world.demand_bps.double().clamp(1.0, peak_bps) * self.period_s
        self.course, self.observation = self.loop.advance(self.loop.begin())
        self.start, self.counted = self._counts(), self._counts()
        self.finished = False
        return self.observation

    def step(self, wanted: Tensor) -> tuple[Observation, Tensor]:
        """One period: ask for the handovers to the wanted cells, and see what comes of it.

        Args:
            wanted: cell that shall serve each user, `[W, U]` int64; its serving cell to stay.

        Returns:
            What is seen next, and the reward of every user, `[W, U]` float64::

                r = - outage - h handovers + g bits / (T min(demand, peak))

            outage is the share of the period in outage, handovers how many were executed in it, bits what
            was delivered in its T seconds, h and g are the task's `handover_cost` and `rate_weight`.

        Raises:
            DefianceError: the episode has not begun or is over, or there is no such cell.
        """
        worlds, users, cells = self.shape
        if self.finished:
            raise DefianceError("the episode is over; reset the environment before its next step")
        if wanted.shape != (worlds, users) or wanted.min() < 0 or wanted.max() >= cells:
            raise DefianceError(
                f"an action names one of the cells 0 ... {cells - 1} for each of {users} users"
            )
        course, _ = self.loop.ask(self.course, wanted)
        self.course, self.observation = self.loop.advance(course)
        state, reward = self.course.state, torch.empty_like(self.served_bits)
        _reward_loop(
            *(count.numpy() for count in (state.outage_steps, state.handovers, state.bits)),
            *(count.numpy() for count in self.counted),
            self.served_bits.numpy(),
            self.task.rate_weight,
            self.loop.period_steps,
            self.task.handover_cost,
            reward.numpy(),
        )
        self.finished = self.course.periods > self.periods
        return self.observation, reward

    def outcome(self) -> dict[str, Tensor]:
        """What the episode has come to so far, one number per world, `[W]` float64."""
        outage_steps, handovers, bits = (
            (now - then).mean(-1) for now, then in zip(self._counts(), self.start, strict=True)
        )
        duration_s = max(1, self.course.periods - 1) * self.period_s
        return {
            "outage_share": outage_steps * self.task.radio.step_s / duration_s,
            "handovers_per_user_minute": handovers * 60 / duration_s,
            "throughput_bps": bits / duration_s,
        }

    def _counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Steps in outage, handovers and bits so far, `[W, U]` float64 each, in memory of their own."""
        state = self.course.state
        return state.outage_steps.double(), state.handovers.double(), state.bits.clone()


@njit(**LOOP)
def _reward_loop(  # type: ignore[no-untyped-def]
    outage_steps, handovers, bits, outage_before, handovers_before, bits_before,
    served_bits, rate_weight, period_steps, handover_cost, reward,
):  # fmt: skip
    """Writes the `reward` of a period, `[W, U]`, and what has been counted until now over what was before."""
    worlds, users = reward.shape
    for w in range(worlds):
        for u in range(users):
            outage = (outage_steps[w, u] - outage_before[w, u]) / period_steps
            cost = handover_cost * (handovers[w, u] - handovers_before[w, u])
            gain = rate_weight * (bits[w, u] - bits_before[w, u]) / served_bits[w, u]
            reward[w, u] = gain - outage - cost
            outage_before[w, u] = outage_steps[w, u]
            handovers_before[w, u] = handovers[w, u]
            bits_before[w, u] = bits[w, u]
