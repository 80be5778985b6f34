"""What the study `worth` can be asked: its configuration and presets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from defiance.errors import DefianceError
from defiance.network.settings import RadioConfig

PLAIN = "plain"
"""Value of `scene` that means no city: a site plan stands on an open plain."""


@dataclass(frozen=True)
class Training:
    """How the learned function is trained; the budget of a regime is shared by its nodes."""

    worlds: int = field(
        default=12,
        metadata={"min": 1, "max": 64, "help": "recorded worlds per speed and load; on foot a third of it"},
    )
    users: int = field(default=100, metadata={"min": 2, "max": 1000, "help": "users per recorded world"})
    duration_s: float = field(
        default=150.0, metadata={"min": 10.0, "unit": "s", "help": "time recorded per world"}
    )
    width: int = field(default=256, metadata={"min": 4, "max": 1024, "help": "neurons of both hidden layers"})
    rounds: int = field(default=35, metadata={"min": 1, "max": 1000, "help": "rounds of training"})
    federated_rounds: int = field(
        default=175, metadata={"min": 1, "max": 10000, "help": "averages; the steps in all are the same"}
    )
    steps_per_round: int = field(default=300, metadata={"min": 1, "help": "optimiser steps per round"})
    batch: int = field(default=512, metadata={"min": 8, "help": "samples per step, over all nodes together"})
    learning_rate: float = field(
        default=2e-3, metadata={"min": 1e-6, "max": 1.0, "help": "of Adam at the start"}
    )
    handover_cost: float = field(default=1.0, metadata={"min": 0.0, "help": "in decision periods of outage"})
    discount: float = field(default=0.95, metadata={"min": 0.0, "max": 0.999, "help": "per decision period"})
    rate_weight: float = field(
        default=0.1, metadata={"min": 0.0, "max": 1.0, "help": "worth of the highest rate"}
    )
    finetuning_rounds: int = field(default=8, metadata={"min": 1, "help": "rounds in the unseen city"})


@dataclass(frozen=True)
class Config:
    """Configuration of the study."""

    function: Literal["handover", "beams", "csi", "all"] = field(
        default="handover",
        metadata={"help": "network function in question; all: the three, and a processor that they share"},
    )
    preset: Literal["quick", "full"] = field(
        default="full", metadata={"help": "of the studies beams and csi, where they are asked"}
    )
    scene: str = field(
        default="munich",
        metadata={"help": "city that is trained in: shipped name or scene file; plain: none, with sites"},
    )
    unseen_scene: str = field(default="florence", metadata={"help": "city for generalisation; empty: none"})
    speeds_kmh: tuple[float, ...] = field(default=(3.0, 30.0, 50.0), metadata={"min": 0.1, "max": 120.0})
    loads: tuple[float, ...] = field(
        default=(0.5, 1.0), metadata={"min": 0.0, "max": 1.0, "help": "PRBs occupied"}
    )
    caps: tuple[float, ...] = field(
        default=(8.0, 12.0),
        metadata={"min": 0.1, "unit": "1/min", "help": "handovers per user-minute at most"},
    )
    pedestrian_cap: float = field(
        default=1.0, metadata={"min": 0.1, "unit": "1/min", "help": "the cap below 10 km/h"}
    )
    maps: tuple[Literal["raw", "smooth"], ...] = field(
        default=("raw", "smooth"), metadata={"help": "raw, smooth (3x3 median)"}
    )
    placements: tuple[Literal["station", "device"], ...] = field(
        default=("station", "device"), metadata={"help": "where a model runs"}
    )
    smooth_placements: tuple[Literal["station", "device"], ...] = field(
        default=("device",), metadata={"help": "placements that are judged on the smooth map, too"}
    )
    regimes: tuple[Literal["local", "federated", "central"], ...] = field(
        default=("local", "federated", "central"), metadata={"help": "who trains"}
    )
    smooth_regimes: tuple[Literal["local", "federated", "central"], ...] = field(
        default=("central",), metadata={"help": "regimes that are judged on the smooth map, too"}
    )
    training_seeds: int = field(
        default=3, metadata={"min": 1, "max": 100, "help": "models of a placement and regime"}
    )
    station_training_seeds: int = field(
        default=1, metadata={"min": 1, "max": 100, "help": "the same, for local and federated at the station"}
    )
    users: int = field(default=100, metadata={"min": 2, "max": 2000, "help": "users per test world"})
    test_s: float = field(default=120.0, metadata={"min": 5.0, "unit": "s", "help": "time per test world"})
    validation_worlds: int = field(default=4, metadata={"min": 1, "max": 100})
    validation_users: int = field(default=60, metadata={"min": 2, "max": 2000})
    validation_s: float = field(default=60.0, metadata={"min": 5.0, "unit": "s"})
    demand_bps: float = field(
        default=300e3, metadata={"min": 0.0, "unit": "bit/s", "help": "wanted by every user"}
    )
    foreground_load: float = field(
        default=0.08,
        metadata={"min": 0.0, "max": 1.0, "help": "share of the load that the simulated users make"},
    )
    sites: str = field(
        default="", metadata={"help": "site plan (CSV) that replaces the scene's sites; empty: none"}
    )
    propagation: Literal["rays", "uma", "umi", "rma"] = field(
        default="rays",
        metadata={"help": "of a site plan: traced by rays, or TR 38.901 over the scene's streets"},
    )
    traces: str = field(
        default="", metadata={"help": "measured drives that shift the scene's RSRP; empty: none"}
    )
    prices: str = field(
        default="", metadata={"help": "TOML with constants of your own, of energy and money; empty: cited"}
    )
    training: Training = Training()
    radio: RadioConfig = RadioConfig()


FULL = Config()
QUICK = replace(
    FULL,
    preset="quick",
    speeds_kmh=(50.0,),
    loads=(0.5,),
    caps=(8.0,),
    maps=("raw",),
    placements=("device",),
    training_seeds=1,
    users=60,
    test_s=60.0,
    validation_worlds=2,
    validation_users=50,
    validation_s=60.0,
    training=replace(
        FULL.training,
        worlds=6,
        width=160,
        rounds=20,
        steps_per_round=200,
        federated_rounds=100,
        finetuning_rounds=5,
    ),
)
PRESETS = {"quick": QUICK, "full": FULL}
SEEDS = {"quick": 4, "full": 8}


@dataclass(frozen=True)
class Scenario:
    """One cell of the study, without a cap: where, how fast, how loaded, on which map."""

    city: str
    speed_kmh: float
    load: float
    map: str

    def name(self, cap: float | None = None) -> str:
        """`munich/30kmh/load50/cap8/raw`; without a cap its part is left out."""
        parts = [self.city, f"{self.speed_kmh:g}kmh", f"load{round(100 * self.load):d}"]
        return "/".join([*parts, *([] if cap is None else [f"cap{cap:g}"]), self.map])


def caps(config: Config, scenario: Scenario) -> tuple[float, ...]:
    """Caps on handovers per user-minute that a scenario is judged under."""
    return (config.pedestrian_cap,) if scenario.speed_kmh < 10 else config.caps


def handover_limit(cap: float, rule_handovers: float) -> float:
    """Handovers per user-minute that a learned function may make beside a rule that makes so many.

    The margin of 2 % keeps a learned function from buying its gain with handovers.
    """
    return min(cap, 0.98 * rule_handovers)


def recorded_scenarios(config: Config, city: str, map_: str) -> list[Scenario]:
    """All cells of a city and map that are learned from."""
    return [
        Scenario(city, speed, load, map_)
        for speed in config.speeds_kmh
        for load in (config.loads if speed >= 10 else config.loads[:1])
    ]


def home_scenarios(config: Config) -> list[Scenario]:
    """All cells in the city that is trained in.

    Pedestrians, who have next to nothing to gain, are judged at the first load on the first map only.
    """
    city = Path(config.scene).stem
    return [
        scenario
        for map_ in config.maps
        for scenario in recorded_scenarios(config, city, map_)
        if scenario.speed_kmh >= 10 or map_ == config.maps[0]
    ]


def kinds(config: Config, map_: str) -> list[tuple[str, str, int]]:
    """Placement, regime and seed of every model that is judged on a map."""
    smooth = map_ == "smooth"
    return [
        (placement, regime, seed)
        for placement in (config.smooth_placements if smooth else config.placements)
        for regime in (config.smooth_regimes if smooth else config.regimes)
        for seed in range(
            config.station_training_seeds
            if placement == "station" and regime != "central"
            else config.training_seeds
        )
    ]


def away_scenario(config: Config) -> Scenario | None:
    """The cell of the unseen city: the first vehicular speed and load, on the first map.

    None where no city is named, or no central training, whose models move there.
    """
    if not config.unseen_scene or "central" not in {regime for _, regime, _ in kinds(config, config.maps[0])}:
        return None
    speed = next((s for s in config.speeds_kmh if s >= 10), config.speeds_kmh[0])
    return Scenario(Path(config.unseen_scene).stem, speed, config.loads[0], config.maps[0])


def contended_scenario(config: Config) -> Scenario:
    """The cell that is judged with messages that wait, too: the first vehicular one, on the first map."""
    scenarios = home_scenarios(config)
    fast = [s for s in scenarios if s.map == config.maps[0] and s.speed_kmh >= 10]
    return (fast or scenarios)[0]


def check(config: Config) -> None:
    """Refuses what would ask for nothing, or call two things by one name.

    Raises:
        DefianceError: a list is empty, two scenarios have one name, or both cities have.
    """
    for name in ("speeds_kmh", "loads", "caps", "maps", "placements", "regimes"):
        if not getattr(config, name):
            raise DefianceError(f"worth needs at least one of {name}; give --set {name}=...")
    for name in ("smooth_placements", "smooth_regimes"):
        if "smooth" in config.maps and not getattr(config, name):
            raise DefianceError(
                f"maps holds smooth, and worth needs at least one of {name} for it; give --set {name}=..., "
                "or leave the smooth map out with --set maps=raw"
            )
    if config.propagation != "rays" and not config.sites:
        raise DefianceError(
            f"propagation {config.propagation} is that of a site plan; give --set sites=PLAN.csv"
        )
    if config.scene == PLAIN and config.propagation == "rays":
        raise DefianceError("a plain needs a site plan and its propagation; give --set propagation=uma")
    scenarios = [s.name(cap) for s in home_scenarios(config) for cap in caps(config, s)]
    models = [f"{p}/{regime}/{map_}/seed{n}" for map_ in config.maps for p, regime, n in kinds(config, map_)]
    for names in (scenarios, models):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise DefianceError(
                f"worth would make {twice} twice; name every value once (loads differ by whole percent)"
            )
    away = away_scenario(config)
    if away and away.city == home_scenarios(config)[0].city:
        raise DefianceError(
            f"scene {config.scene} and unseen_scene {config.unseen_scene} are both called {away.city}; name "
            "another city (or rename a file), or none: --set unseen_scene="
        )
