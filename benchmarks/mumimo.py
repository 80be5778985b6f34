"""What several users at once bring on traced walks, by what stations know: `python -m benchmarks.mumimo`.

Users walk, or drive, on the walks of a city; all ways of serving meet the same users at the same places, so
differences are paired by seed.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from defiance.control.codebooks import cophased, dft_beams
from defiance.control.csi.rules import LBeams, TypeOne
from defiance.control.reports import ByBeam, ByCodec
from defiance.kpm import mean_interval, paired_interval
from defiance.network.mumimo import MultiUser, Perfect
from defiance.network.on_walks import Served, draw_walkers, serve
from defiance.network.settings import RadioConfig
from defiance.parts import Parts
from defiance.radio.arrays import Panel
from defiance.scene.paths import Walks, load_walks
from defiance.seeding import stream

SPEEDS_KMH = 3.0, 30.0
AGE_S = 0.015
"""Of a report: half of the 20 ms between two, and 5 ms from measuring to sending by it."""
RADIO = RadioConfig(
    scheduler="proportional_fair",
    subbands=13,
    link_adaptation="qam256",
    cqi_delay_s=AGE_S,
    fairness_s=0.2,
)
WARM_UP_S, DURATION_S = 0.2, 0.4

LOW, HIGH = Panel(4, 4, dual=True, element="38.901"), Panel(4, 16, element="38.901")
L_BEAMS = LBeams(LOW, RADIO.subbands, beams=2, taps=4, coefficients=4)
NUMBER = ByBeam(dft_beams(HIGH).flatten(0, 1))


@dataclass(frozen=True)
class Setting:
    """Cells at a carrier, and ways of serving of which the first is what others are compared with."""

    panel: Panel
    radio: RadioConfig
    ways: dict[str, MultiUser]


SETTINGS = {
    "3.5ghz": Setting(
        LOW,
        RADIO,
        {
            "one user, two streams": MultiUser(Perfect(2), 1, 2),
            "four users": MultiUser(Perfect(), 4, 4),
            "eight users": MultiUser(Perfect(), 8, 8),
            "one user, two streams, L beams": MultiUser(ByCodec(L_BEAMS, 2), 1, 2),
            "two users, L beams": MultiUser(ByCodec(L_BEAMS), 2, 2),
            "four users, L beams": MultiUser(ByCodec(L_BEAMS), 4, 4),
            "four users, Type I": MultiUser(ByCodec(TypeOne(LOW, RADIO.subbands)), 4, 4),
            "four users, beams": MultiUser(
                ByBeam(cophased(dft_beams(LOW)).flatten(0, 2)), 4, 4, on_beams=True
            ),
        },
    ),
    "28ghz": Setting(
        HIGH,
        replace(RADIO, bandwidth_hz=100e6, tx_power_dbm=35.0, noise_figure_db=10.0),
        {
            "one user, a beam": MultiUser(NUMBER, 1, 1),
            "four users, a beam each": MultiUser(NUMBER, 4, 4),
            "four users, zero-forcing behind beams": MultiUser(NUMBER, 4, 4, on_beams=True),
            "one user": MultiUser(Perfect(), 1, 1),
            "four users": MultiUser(Perfect(), 4, 4),
        },
    ),
}


def indicators(served: Served) -> dict[str, float]:
    """Of one run of one way."""
    return {
        "cell": float(served.cell_throughput_bps.mean()) / 1e6,
        "user at 5 %": served.fifth_percentile_bps / 1e6,
        "median user": float(served.throughput_bps.median()) / 1e6,
        "streams": float(served.streams.nanmean()),
        "reports": served.report_bps / 1e3,
    }


def run(setting: Setting, walks: Walks, users: int, speed_kmh: float, seed: int) -> dict[str, Any]:
    """All ways at one seed: indicators, and CPU seconds of a step of all of them together."""
    random = stream(seed, "mumimo", walks.name)
    walkers = draw_walkers(walks, users, speed_kmh / 3.6, WARM_UP_S + DURATION_S, random.child("walkers"))
    began = time.process_time()
    found = serve(
        walks,
        walkers,
        setting.panel,
        setting.radio,
        setting.ways,
        duration_s=DURATION_S,
        warm_up_s=WARM_UP_S,
        random=random,
    )
    cpu_s = (time.process_time() - began) / RADIO.steps(WARM_UP_S + DURATION_S)
    return {"ways": {name: indicators(served) for name, served in found.items()}, "cpu_s": cpu_s}


def table(title: str, names: list[str], runs: list[dict[str, Any]]) -> Table:
    """Means and 95 % intervals over seeds, differences to the first way paired."""
    shown = Table(title=f"{title}, {len(runs)} seeds")
    for heading in ("", *runs[0]["ways"][names[0]], "cell, less the first's", "at 5 %, likewise"):
        shown.add_column(heading)
    for name in names:
        samples = {key: [found["ways"][name][key] for found in runs] for key in runs[0]["ways"][name]}
        cells = []
        for values in samples.values():
            mean, low, high = mean_interval(values)
            cells.append(f"{mean:.2f} ({low:.2f} to {high:.2f})")
        for key in ("cell", "user at 5 %"):
            mean, low, high = paired_interval(samples[key], [found["ways"][names[0]][key] for found in runs])
            cells.append(f"{mean:+.2f} ({low:+.2f} to {high:+.2f})")
        shown.add_row(name, *cells)
    return shown


def measured(band: str, city: str, users: int, seeds: int) -> dict[str, list[dict[str, Any]]]:
    """All seeds at one carrier, by speed; runs what isn't there yet, prints a table per speed."""
    setting, walks = SETTINGS[band], load_walks(city, band)
    what = f"{city} {band} {users} {setting} {WARM_UP_S} {DURATION_S}"
    parts = Parts.open(Path("out/mumimo"), sha256(what.encode()).hexdigest())
    found: dict[str, list[dict[str, Any]]] = {f"{speed_kmh:g} km/h": [] for speed_kmh in SPEEDS_KMH}
    for seed in range(1, seeds + 1):
        for speed_kmh, (name, runs) in zip(SPEEDS_KMH, found.items(), strict=True):
            key = f"{speed_kmh:g}kmh/seed{seed}"
            done = parts.get(key)
            if done is None:
                done = run(setting, walks, users, speed_kmh, seed)
                parts.put(key, done)
            print(f"{band}, {name}, seed {seed}: {done['cpu_s']:.2f} CPU-s a step", flush=True)
            runs.append(done)
    for name, runs in found.items():
        title = f"{city}, {band}, {users} users at {name}, Mbit/s"
        Console(width=220).print(table(title, list(setting.ways), runs))
    return found


def main() -> None:
    """Measures, prints, and writes all samples if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mumimo", description=__doc__.splitlines()[0])
    parser.add_argument("--city", default="munich", choices=("munich", "florence"))
    parser.add_argument("--band", choices=tuple(SETTINGS), help="one carrier alone")
    parser.add_argument("--users", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    bands = [asked.band] if asked.band else list(SETTINGS)
    found = {band: measured(band, asked.city, asked.users, asked.seeds) for band in bands}
    if asked.out:
        stored = {
            "made_by": " ".join(["python -m benchmarks.mumimo", *sys.argv[1:]]),
            "users": asked.users,
            "units": "Mbit/s; streams at a time; reports in kbit/s per user",
            "runs": found,
        }
        asked.out.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
