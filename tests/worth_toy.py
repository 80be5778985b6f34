"""The study `worth` at toy size: two made-up cities, and a configuration in which all happens once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scenes import blocks, small_scene

from defiance.scene import Scene, save
from defiance.studies.worth.settings import (
    Config,
    Scenario,
    Training,
)

SEEDS = (0, 1)
HOME, AWAY = Scenario("munich", 30.0, 0.5, "raw"), Scenario("florence", 30.0, 0.5, "raw")


def made_up_city(name: str, seed: int) -> Scene:
    """240 m of streets with three sites of two sectors; the shadows change from block to block."""
    outdoor = blocks(60, 60, 15, 5)
    row, col = np.mgrid[:60, :60] * 4.0
    sites = np.array([[60.0, 40.0, 25.0], [190.0, 90.0, 25.0], [80.0, 200.0, 25.0]], np.float32)
    rng, gain = np.random.default_rng(seed), []
    for x, y, _ in sites:
        distance = np.hypot(col - x, row - y)
        bearing = np.degrees(np.arctan2(col - x, row - y))
        for azimuth in (60.0, 240.0):
            off = (bearing - azimuth + 180) % 360 - 180
            shadow = np.kron(rng.normal(0, 8, (12, 12)), np.ones((5, 5)))
            gain.append(
                -75
                - 37 * np.log10(np.hypot(distance, 25) / 10)
                - np.minimum(12 * (off / 65) ** 2, 25)
                + shadow
            )
    return replace(
        small_scene(outdoor, np.array(gain, np.float32)[:3]),
        name=name,
        origin_m=(0.0, 0.0),
        path_gain_db=torch.from_numpy(np.array(gain, np.float32)),
        site_position_m=torch.from_numpy(sites),
        cell_site=torch.tensor([0, 0, 1, 1, 2, 2]),
        azimuth_deg=torch.tensor([60.0, 240.0] * 3),
        tilt_deg=torch.full((6,), 8.0),
    )


def toy_cities(folder: Path) -> Path:
    """Saves the two cities there."""
    for seed, name in enumerate(("munich", "florence")):
        save(made_up_city(name, seed), folder / f"{name}.npz")
    return folder


def toy(folder: Path) -> Config:
    """Everything once, and each as short as its range allows."""
    return Config(
        scene=str(folder / "munich.npz"),
        unseen_scene=str(folder / "florence.npz"),
        speeds_kmh=(30.0,),
        loads=(0.5,),
        caps=(8.0,),
        maps=("raw",),
        placements=("station", "device"),
        training_seeds=1,
        users=6,
        test_s=6.0,
        validation_worlds=1,
        validation_users=4,
        validation_s=5.0,
        training=Training(
            worlds=1,
            users=10,
            duration_s=10.0,
            width=8,
            rounds=3,
            federated_rounds=4,
            steps_per_round=4,
            batch=64,
            finetuning_rounds=1,
        ),
    )
