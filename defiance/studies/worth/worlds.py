"""The worlds that the study `worth` simulates, and what a run in them counts."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from defiance.link import PURPOSES
from defiance.network.energy import network_energy_j
from defiance.network.settings import RadioConfig
from defiance.network.simulate import Outcome
from defiance.network.world import World, draw_worlds
from defiance.scene import Scene, load, median_filtered
from defiance.scene.streets import held_out_streets
from defiance.seeding import stream
from defiance.studies.worth.settings import Config, Scenario


@lru_cache(maxsize=4)
def scene_of(config: Config, city: str, map_: str) -> Scene:
    """The scene of a scenario: traced, or its 3x3 median."""
    name = config.scene if city == Path(config.scene).stem else config.unseen_scene
    scene = load(name)
    return median_filtered(scene) if map_ == "smooth" else scene


@lru_cache(maxsize=4)
def held_out(config: Config, city: str) -> Any:
    """Streets of the city that no training trip takes, `[rows, columns]` bool."""
    return held_out_streets(scene_of(config, city, "raw"))


def worlds_of(
    config: Config, scenario: Scenario, purpose: str, seeds: tuple[int, ...], *, everywhere: bool = False
) -> World:
    """Worlds of a scenario for `training`, `validation` or `test`: other seeds are other trajectories.

    Trips keep to the streets of training unless `everywhere`.
    """
    users, duration_s = {
        "training": (config.training.users, config.training.duration_s),
        "validation": (config.validation_users, config.validation_s),
        "test": (config.users, config.test_s),
    }[purpose]
    load = scenario.load if scenario.load >= 1 else max(0.0, scenario.load - config.foreground_load)
    return draw_worlds(
        scene_of(config, scenario.city, scenario.map),
        config.radio,
        [stream(seed, purpose, scenario.city, f"{scenario.speed_kmh:g}kmh") for seed in seeds],
        users=users,
        duration_s=duration_s + 10,
        speed_kmh=scenario.speed_kmh,
        load=load,
        demand_bps=config.demand_bps,
        region=None if everywhere else ~held_out(config, scenario.city),
    )


def per_world(outcome: Outcome, worlds: World, radio: RadioConfig) -> dict[str, Any]:
    """The counts of a run as rates, one number per world."""
    state = outcome.state
    users = state.handovers.shape[1]
    minutes = users * outcome.duration_s / 60
    steps = outcome.duration_s / radio.step_s

    def rate(counts: Tensor, per: float) -> list[float]:
        return [float(x) for x in counts.double().sum(1) / per]

    return {
        "outage_share": rate(state.outage_steps, users * steps),
        "handovers_per_user_minute": rate(state.handovers, minutes),
        "ping_pongs_per_user_hour": rate(state.ping_pongs, minutes / 60),
        "failures_per_user_hour": rate(state.link_failures + state.handover_failures, minutes / 60),
        "throughput": rate(state.bits, users * outcome.duration_s),
        "load": [float(x) for x in state.load_steps.mean(1) / steps],
        "load_seconds": [float(x) * radio.step_s for x in state.load_steps.sum(1)],
        "own_load_seconds": [
            float(x)
            for x in (state.load_steps * radio.step_s - worlds.background_load * outcome.duration_s)
            .sum(1)
            .clamp(min=0)
        ],
        "network_j": network_energy_j(state.load_steps, radio.step_s, outcome.duration_s).tolist(),
        "bits": [float(x) for x in state.bits.sum(1)],
        "prepared": [float(x) for x in outcome.prepared],
        "messages": [float(x) for x in outcome.messages],
        "lost": [float(x) for x in outcome.lost],
        **{purpose: [float(x) for x in outcome.bits[:, i]] for i, purpose in enumerate(PURPOSES)},
    }
