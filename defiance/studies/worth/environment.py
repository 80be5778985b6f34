"""A user's own network in the study: site plan and measured drives become a scene file, prices constants."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from defiance.errors import DefianceError
from defiance.parts import Parts
from defiance.prices import CITED, Prices, read_prices
from defiance.radio.tr38901 import SCENARIOS
from defiance.scene import Scene, load, save
from defiance.scene.drive_fits import Calibration, calibrate
from defiance.scene.drives import describe_faults, read_drives
from defiance.scene.planned import planned_scene
from defiance.scene.sites import read_sites, strongest_dbm
from defiance.scene.trace import trace
from defiance.seeding import stream
from defiance.studies import Progress
from defiance.studies.worth.settings import PLAIN, Config, away_scenario


@dataclass(frozen=True)
class Environment:
    """What a study runs on: its configuration with the scene made, what drives taught, prices."""

    config: Config
    calibration: Calibration | None
    faults: tuple[str, ...]
    prices: Prices

    @property
    def remark(self) -> str:
        """What the verdict says of the drives, if there are any."""
        found = self.calibration
        if found is None:
            return ""
        drives = len(found.distance_db)
        broken = f" Faults of their files ({len(self.faults)}) are named in the sheet." if self.faults else ""
        return (
            f" The scene's RSRP was shifted by {found.offset_db:+.1f} dB to {drives} measured drives and is"
            f" {sum(found.distance_db) / drives:.1f} dB from a held-out one's.{broken}"
        )


def prepare(config: Config, parts: Parts, progress: Progress) -> Environment:
    """Read the user's files, and make the scene that they describe beside the study's parts.

    A plan's strongest power replaces `radio.tx_power_dbm`; weaker sectors have less path gain.

    Raises:
        DefianceError: a file can't be read or is wrong, or the tracer that a plan asks for is missing.
    """
    prices = read_prices(Path(config.prices)) if config.prices else CITED
    if not (config.sites or config.traces):
        return Environment(config, None, (), prices)
    radio = config.radio
    if config.sites:
        plan = read_sites(Path(config.sites))
        _check_size(config, len(plan))
        power_dbm = strongest_dbm(plan)
        radio = radio if power_dbm is None else replace(radio, tx_power_dbm=power_dbm)
        scene = _planned(config, parts, progress)
    else:
        scene = load(config.scene)
    calibration, faults = None, []
    if config.traces:
        drives = read_drives(Path(config.traces))
        faults = describe_faults(drives)
        per_element_dbm = radio.tx_power_dbm - 10 * math.log10(radio.resource_elements)
        calibration = calibrate(scene, per_element_dbm, drives)
        scene = replace(scene, path_gain_db=scene.path_gain_db + calibration.offset_db)
    path = parts.folder / f"{Path(config.scene).stem}.npz"
    save(scene, path)
    made = replace(config, scene=str(path), sites="", propagation="rays", traces="", radio=radio)
    return Environment(made, calibration, tuple(faults), prices)


def _check_size(config: Config, sectors: int) -> None:
    """Refuse a second city that models can't move to before the first one is traced."""
    if away_scenario(config) is None:
        return
    others = len(load(config.unseen_scene).cell_site)
    if sectors != others:
        raise DefianceError(
            f"{config.sites} has {sectors} sectors and unseen_scene {config.unseen_scene} {others}, so no"
            " model can move; name a city with as many, or none: --set unseen_scene="
        )


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
