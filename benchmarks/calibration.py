"""Holds the engine against the calibration campaign of TR 38.901: `make calibration`.

Users of drops as table 7.8-1 describes them take one step of the network's engine, all cells fully loaded,
without fading. Coupling gain is the strongest cell's received power over the transmit power; SINR and SIR are
those of the engine towards that cell, SIR with the noise switched off. Their percentiles are compared with
those of 21 companies in R1-165974 (tr38901/ in `DEFIANCE_DATA`). There are so many drops that the mean error
of a curve is uncertain by about 0.1 dB. Writes results/calibration.json, docs/calibration.png and the table
in docs/simulator.md; takes four minutes on one core.
"""

import csv
import json
import math
import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defiance.errors import DefianceError
from defiance.network import kernel, reference
from defiance.network.settings import RadioConfig
from defiance.network.state import initial
from defiance.network.world import draw_drop_worlds
from defiance.radio.tr38901 import INH, UMA, UMI, Scenario
from defiance.recordings import data_folder
from defiance.scene.drop import render
from defiance.seeding import stream

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "results" / "calibration.json"
BEGIN, END = "<!-- made by `make calibration` -->", "<!-- end -->"
PERCENT = tuple(range(5, 100, 5))
METRICS = {"coupling_gain": "coupling gain [dB]", "sinr": "SINR [dB]", "sir": "SIR [dB]"}
USERS_PER_DROP = 10_000


@dataclass(frozen=True)
class Setting:
    """One column of table 7.8-1; noise figure 9 dB throughout."""

    scenario: Scenario
    carrier_hz: float
    bandwidth_hz: float
    tx_power_dbm: float
    tilt_deg: float
    drops: int


SETTINGS = {
    "UMa-6GHz": Setting(UMA, 6e9, 20e6, 49.0, 102.0, 8),
    "UMa-30GHz": Setting(UMA, 30e9, 100e6, 35.0, 102.0, 8),
    "UMi-6GHz": Setting(UMI, 6e9, 20e6, 44.0, 102.0, 24),
    "UMi-30GHz": Setting(UMI, 30e9, 100e6, 35.0, 102.0, 24),
    "Indoor-6GHz": Setting(INH, 6e9, 20e6, 24.0, 110.0, 48),
    "Indoor-30GHz": Setting(INH, 30e9, 100e6, 24.0, 110.0, 48),
}


@dataclass(frozen=True)
class Curve:
    """Percentiles 1 ... 99 % of the companies in dB: mean, least and greatest, [99] each."""

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def companies(folder: Path) -> dict[tuple[str, str], Curve]:
    """Curves of R1-165974 by setting and metric.

    Raises:
        DefianceError: the file isn't there.
    """
    path = folder / "tr38901" / "r1_165974.csv"
    if not path.is_file():
        raise DefianceError(f"{path}: not found; set DEFIANCE_DATA to the folder that holds tr38901/")
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if 0 < float(row["cdf_percent"]) < 100]
    return {
        (name, metric): Curve(
            *(
                np.array([float(row[f"{metric}_db_{kind}"]) for row in rows if row["scenario"] == name])
                for kind in ("mean", "min", "max")
            )
        )
        for name in SETTINGS
        for metric in METRICS
    }


def engine(name: str, seed: int) -> dict[str, Tensor]:
    """Metrics of the users of one drop in dB, [users] each."""
    setting = SETTINGS[name]
    key = stream(seed, "calibration", name)
    drop = render(setting.scenario, setting.carrier_hz, key.child("drop"), tilt_deg=setting.tilt_deg)
    config = RadioConfig(
        bandwidth_hz=setting.bandwidth_hz,
        tx_power_dbm=setting.tx_power_dbm,
        noise_figure_db=9.0,
        scatterers=4,
    )
    world = draw_drop_worlds(
        drop, config, [key.child("world")], users=USERS_PER_DROP, duration_s=1.0, load=1.0, demand_bps=0.0
    )
    still = torch.zeros(
        1, USERS_PER_DROP, drop.gain_db.shape[-1], 1, dtype=torch.int16
    )  # one scatterer: |h| = 1
    world = replace(
        world, fading_direction=still, fading_phase=still, speed_mps=torch.zeros_like(world.speed_mps)
    )
    strongest = reference.path_gain_db(world, world.route_m[:, :, 0]).argmax(-1)
    state = initial(world, config, strongest)
    with_noise = kernel.step(world, state, config)
    without = kernel.step(world, state, replace(config, noise_figure_db=-300.0))
    received_dbm = 10 * torch.log10(with_noise.rsrp_sum_mw.amax(-1))
    return {
        "coupling_gain": received_dbm[0] - setting.tx_power_dbm,
        "sinr": 10 * torch.log10(with_noise.sinr[0]),
        "sir": 10 * torch.log10(without.sinr[0]),
    }


@dataclass(frozen=True)
class Measured:
    """Percentiles 1 ... 99 % of the engine in dB, [99], and their mean's standard error over drops."""

    percentiles: NDArray[np.float64]
    error_db: float


def measure(name: str, drops: int) -> dict[str, Measured]:
    """Distributions of the engine over so many drops of a setting, by metric."""
    drawn = [engine(name, seed) for seed in range(drops)]
    found = {}
    for metric in METRICS:
        values = torch.stack([drop[metric] for drop in drawn]).numpy()
        of_drops = np.percentile(values, PERCENT, axis=1).mean(0)
        error_db = float(of_drops.std(ddof=1) / drops**0.5) if drops > 1 else math.nan
        found[metric] = Measured(np.percentile(values, np.arange(1, 100)), error_db)
    return found


@dataclass(frozen=True)
class Comparison:
    """A curve of the engine beside the companies'.

    Attributes:
        setting: of `SETTINGS`.
        metric: of `METRICS`.
        drops: over which the engine's was measured.
        mean_db: mean of the engine's percentiles 5, 10, ... 95 %.
        inside: percentiles of these that lie between the companies' least and greatest.
        mean_error_db: mean distance to the companies' mean over these percentiles.
        standard_error_db: of that over drops.
        largest_error_db: the distance that is farthest from 0.
    """

    setting: str
    metric: str
    drops: int
    mean_db: float
    inside: int
    mean_error_db: float
    standard_error_db: float
    largest_error_db: float


def compare(name: str, metric: str, ours: Measured, theirs: Curve, drops: int) -> Comparison:
    """Holds a curve of the engine against the companies'."""
    at = np.array(PERCENT) - 1
    mine = ours.percentiles[at]
    error = mine - theirs.mean[at]
    return Comparison(
        setting=name,
        metric=metric,
        drops=drops,
        mean_db=round(float(mine.mean()), 3),
        inside=int(((mine >= theirs.low[at]) & (mine <= theirs.high[at])).sum()),
        mean_error_db=round(float(error.mean()), 3),
        standard_error_db=round(ours.error_db, 3),
        largest_error_db=round(float(error[np.abs(error).argmax()]), 3),
    )


def table(rows: list[Comparison]) -> str:
    """How many of 19 percentiles lie between the companies, and how far they are from the companies' mean."""
    lines = [
        "| | inside, of 19: coupling gain | SINR | SIR | error [dB]: coupling gain | SINR | SIR |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in SETTINGS:
        of_name = [next(r for r in rows if (r.setting, r.metric) == (name, metric)) for metric in METRICS]
        errors = [
            f"{r.mean_error_db:+.2f} +- {r.standard_error_db:.2f} ({r.largest_error_db:+.2f})"
            for r in of_name
        ]
        lines.append(f"| {' | '.join([name, *(str(r.inside) for r in of_name), *errors])} |")
    return "\n".join(lines)


def draw(ours: dict[tuple[str, str], Measured], theirs: dict[tuple[str, str], Curve], path: Path) -> None:
    """One panel per scenario and metric: the engine's distribution over the companies' band."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    scenarios = list(dict.fromkeys(name.partition("-")[0] for name in SETTINGS))
    figure, panels = plt.subplots(len(scenarios), 3, figsize=(10, 8), sharey=True, layout="constrained")
    percent = np.arange(1, 100)
    for row, scenario in zip(panels, scenarios, strict=True):
        for axes, (metric, label) in zip(row, METRICS.items(), strict=True):
            for name, color in zip(
                (n for n in SETTINGS if n.startswith(f"{scenario}-")), ("#0b6e99", "#c8553d"), strict=True
            ):
                curve = theirs[name, metric]
                axes.fill_betweenx(percent, curve.low, curve.high, color=color, alpha=0.25, linewidth=0)
                carrier = f"{SETTINGS[name].carrier_hz / 1e9:g} GHz"
                axes.plot(ours[name, metric].percentiles, percent, color=color, label=carrier)
            axes.grid(alpha=0.3)
            axes.set_xlabel(label)
        row[0].set_ylabel(f"{scenario}: users below [%]")
        row[2].legend(frameon=False, loc="lower right", title="line: engine\nband: 21 companies")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measures, draws, and writes the table."""
    torch.set_num_threads(1)
    theirs = companies(data_folder())
    ours: dict[tuple[str, str], Measured] = {}
    for name, setting in SETTINGS.items():
        ours |= {(name, metric): found for metric, found in measure(name, setting.drops).items()}
        sys.stdout.write(f"{name}: {setting.drops} drops of {USERS_PER_DROP} users\n")
    rows = [compare(*key, ours[key], theirs[key], SETTINGS[key[0]].drops) for key in ours]
    text = table(rows)
    sys.stdout.write(f"{text}\n")
    stored = {"made_by": "make calibration", "against": "R1-165974", "rows": [asdict(row) for row in rows]}
    RESULT.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    draw(ours, theirs, ROOT / "docs" / "calibration.png")
    page = ROOT / "docs" / "simulator.md"
    section = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    page.write_text(
        section.sub(f"{BEGIN}\n\n{text}\n\n{END}", page.read_text(encoding="utf-8")), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
