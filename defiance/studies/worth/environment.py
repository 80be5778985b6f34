"""A user's own network in the study: site plan and measured drives become a scene file, prices constants."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from defiance.parts import Parts
from defiance.prices import CITED, Prices, read_prices
from defiance.radio.tr38901 import SCENARIOS
from defiance.scene import Scene, load, save
from defiance.scene.drive_fits import Calibration, calibrate
from defiance.scene.drives import read_drives
from defiance.scene.planned import planned_scene
from defiance.scene.sites import read_sites, strongest_dbm
from defiance.scene.trace import trace
from defiance.seeding import stream
from defiance.studies import Progress
from defiance.studies.worth.settings import PLAIN, Config


@dataclass(frozen=True)
class Environment:
    """What a study runs on: its configuration with the scene made, what was learned from drives, prices."""

    config: Config
    calibration: Calibration | None
    prices: Prices


def prepare(config: Config, parts: Parts, progress: Progress) -> Environment:
    """Read the user's files, and make the scene that they describe beside the study's parts.

    A plan's strongest power replaces `radio.tx_power_dbm`; weaker sectors have less path gain.

    Raises:
        DefianceError: a file can't be read or is wrong, or the tracer that a plan asks for is missing.
    """
    prices = read_prices(Path(config.prices)) if config.prices else CITED
    if not (config.sites or config.traces):
        return Environment(config, None, prices)
    radio = config.radio
    if config.sites:
        power_dbm = strongest_dbm(read_sites(Path(config.sites)))
        radio = radio if power_dbm is None else replace(radio, tx_power_dbm=power_dbm)
        scene = _planned(config, parts, progress)
    else:
        scene = load(config.scene)
    calibration = None
    if config.traces:
        per_element_dbm = radio.tx_power_dbm - 10 * math.log10(radio.resource_elements)
        calibration = calibrate(scene, per_element_dbm, read_drives(Path(config.traces)))
        scene = replace(scene, path_gain_db=scene.path_gain_db + calibration.offset_db)
    path = parts.folder / f"{Path(config.scene).stem}.npz"
    save(scene, path)
    made = replace(config, scene=str(path), sites="", propagation="rays", traces="", radio=radio)
    return Environment(made, calibration, prices)


def _planned(config: Config, parts: Parts, progress: Progress) -> Scene:
    """The scene of a site plan: traced, once for all runs that go on from these parts, or drawn."""
    if config.propagation != "rays":
        terrain = None if config.scene == PLAIN else load(config.scene)
        return planned_scene(
            read_sites(Path(config.sites)),
            SCENARIOS[config.propagation],
            stream(0, "sites"),
            name=Path(config.scene).stem,
            terrain=terrain,
        )
    path = parts.folder / "traced" / f"{Path(config.scene).stem}.npz"
    if path.exists():
        return load(path)
    with progress.task(f"tracing {config.scene}", total=1) as task:
        return trace(
            config.scene,
            Path(config.sites),
            path,
            progress=lambda done, total: task.advance(bool(done) / total),
        )
