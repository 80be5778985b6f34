"""How close handover comes to that of ns-3: event A3 in the urban grid of TR 37.885.

`python -m benchmarks.ns3_a3 [--parts A|B,C] [--draws N] [--out FILE]` simulates the conditions of
`tr38901/ns3_urban_a3.json` (ns-3 with 5G-LENA, as its authors describe it), compares rates per user-minute,
and writes ours and how near they come (`make ns3`: results/ns3_a3.json, five minutes on one core):

    part A    24 settings in each of four conditions: ranks (Spearman) within a condition, and median factors
    part B    two settings in six conditions, absolute
    part C    one setting with one thing changed, absolute

Nothing is fitted to parts B and C. `LOAD`, with which other cells interfere with the control channel, was
chosen on part A: of 0.38, 0.7 and 1 the one with the least mean |log| of failure rates, 0.05 added to both.
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from defiance.control.handover import A3
from defiance.errors import DefianceError
from defiance.network.reference import path_gain_db
from defiance.network.settings import RadioConfig
from defiance.network.simulate import Outcome, simulate
from defiance.network.state import NONE
from defiance.network.world import SHARED, World, draw_worlds
from defiance.radio.tr38901 import CAR_DB, CAR_SIGMA_DB
from defiance.recordings import data_folder
from defiance.scene.grid import UrbanGrid, drives, urban_grid
from defiance.seeding import stream

GRID = UrbanGrid((2, 2))
CARRIER_HZ = 3.5e9
RESULT = Path(__file__).resolve().parent.parent / "results" / "ns3_a3.json"
WARM_UP_S = 60.0
LOAD = 1.0
DRAWS = {"A": 2, "B": 6, "C": 6}
FACTOR = 1.5
METRICS = ("handovers_pm", "unnecessary_pm", "failures_pm", "sinr_db")

RECEPTIONS_HZ, RECEPTIONS_PER_USER_HZ = 206.0, 16.5
"""Control channels that an ns-3 user receives per second: so many, and more per user of its cell; out of sync
after 200 in a row below Qout, in sync after 100 above Qin (5G-LENA 5.1, measured by its authors)."""

SERVICE_SHARE = (0.20, 0.20, 0.15, 0.30, 0.15)  # of users: voice, video call, gaming, streaming, web
LEAST_STAY_S = (4.0, 6.0, 7.0, 3.0, 2.0)
LEAST_GAIN_DB = (0.7, 1.0, 1.2, 1.5, 0.4)
"""A handover is unnecessary if the user stays shorter than this or gains less SINR, all cells on, in its
stay (at most that long), unless the cell that it left would have been below Qout for T310."""


@dataclass(frozen=True)
class Condition:
    """What one batch of worlds shares."""

    spacing_m: int
    users: int
    duration_s: float
    preparation_s: float
    t310_s: float

    def config(self) -> RadioConfig:
        """The reference's carrier and procedures: ideal RRC and random access, T310 fails a command."""
        per_cell = RECEPTIONS_HZ + RECEPTIONS_PER_USER_HZ * self.users / 7
        step_s = 0.01
        return RadioConfig(
            step_s=step_s,
            bandwidth_hz=10e6,
            tx_power_dbm=40.0,
            noise_figure_db=5.0,
            qout_window_s=4 * step_s,
            qin_window_s=4 * step_s,
            n310=round(200 / per_cell / step_s),
            n311=round(100 / per_cell / step_s),
            gap_breaks=True,
            t310_s=self.t310_s,
            preparation_s=self.preparation_s,
            execution_s=0.01,
            reestablishment_s=0.1,
            measurement_s=0.2,
            sample_s=step_s,
            access_db=-200.0,
            rsrp_floor_dbm=-200.0,
            messages="t310",
            air_delay_s=0.0,
            environment_mps=0.0,
        )


@dataclass(frozen=True)
class Row:
    """One row of the reference."""

    part: str
    variant: str
    condition: Condition
    speed_mps: float
    offset_db: float
    time_to_trigger_s: float
    reference: dict[str, float]


def read_rows(parts: str) -> tuple[list[Row], dict[int, list[tuple[float, float]]]]:
    """The rows of these parts and the sites by their spacing."""
    path = data_folder() / "tr38901" / "ns3_urban_a3.json"
    if not path.is_file():
        raise DefianceError(f"{path}: no such file; set DEFIANCE_DATA to the folder that holds tr38901/")
    stored = json.loads(path.read_text())
    rows = []
    for row in stored["rows"]:
        if row["part"] in parts:
            changed = row.get("overrides", {})
            condition = Condition(
                spacing_m=row["isd_m"],
                users=changed.get("mobility.users", 20),
                duration_s=150.0 if row["part"] == "A" else 180.0,  # runs of 600 s, too: rates are the same
                preparation_s=changed.get("protocol.prep_s", 0.05),
                t310_s=changed.get("protocol.t310_s", 1.0),
            )
            reference = {name: row[name] for name in METRICS}
            variant = row.get("variant", "")
            setting = (float(row["speed_mps"]), row["a3_offset_db"], row["ttt_ms"] / 1000)
            rows.append(Row(row["part"], variant, condition, *setting, reference))
    sites = {int(spacing): [(float(x), float(y)) for x, y in at] for spacing, at in stored["sites"].items()}
    return rows, sites


def simulated(
    condition: Condition, rows: list[Row], sites: list[tuple[float, float]], draws: int
) -> list[dict[str, float]]:
    """The same rates for rows that share a condition, over so many draws of vehicles."""
    config = condition.config()
    scene = urban_grid(GRID, sites, CARRIER_HZ, stream(1, "ns3", condition.spacing_m))
    speeds = sorted({row.speed_mps for row in rows})
    fastest = max(speeds)
    drawn = draw_worlds(
        scene,
        config,
        [stream(1, "vehicles", speed, draw) for speed in speeds for draw in range(draws)],
        users=condition.users,
        duration_s=condition.duration_s,
        speed_kmh=fastest * 3.6,
        load=LOAD,
        demand_bps=16e3,  # 200 bytes every 100 ms
        drives=partial(drives, GRID),
    )
    lost_db = [in_car_db(speed, condition.users, draw) for speed in speeds for draw in range(draws)]
    drawn = replace(
        drawn,
        loss_db=torch.stack(lost_db),
        speed_mps=torch.tensor(speeds)
        .repeat_interleave(draws)[:, None]
        .expand_as(drawn.speed_mps)
        .contiguous(),
        fading_direction=torch.zeros_like(drawn.fading_direction[..., :1]),  # one scatterer: |h| = 1
        fading_phase=torch.zeros_like(drawn.fading_phase[..., :1]),
        background_load=torch.full_like(drawn.background_load, LOAD),
    )
    place = [speeds.index(row.speed_mps) * draws + draw for row in rows for draw in range(draws)]
    world = chosen(drawn, torch.tensor(place))
    rule = A3(
        offset_db=torch.tensor([row.offset_db for row in rows]).repeat_interleave(draws),
        hysteresis_db=0.0,
        time_to_trigger_s=torch.tensor([row.time_to_trigger_s for row in rows]).repeat_interleave(draws),
        filter_k=4.0,
        period_steps=10,
    )
    outcome = simulate(
        world,
        config,
        rule,
        stream(1, "messages"),
        duration_s=condition.duration_s - WARM_UP_S,
        warm_up_s=WARM_UP_S,
        record=True,
    )
    measured = rates(world, config, outcome)
    return [
        {name: float(value.view(len(rows), draws).mean(1)[index]) for name, value in measured.items()}
        for index in range(len(rows))
    ]


def in_car_db(speed_mps: float, users: int, draw: int) -> Tensor:
    """What ns-3 adds to every link of a vehicle, drawn once, but only at 30 to 120 km/h, `[U]`."""
    if not 30.0 <= speed_mps * 3.6 <= 120.0:
        return torch.zeros(users)
    return CAR_DB + CAR_SIGMA_DB * torch.randn(users, generator=stream(1, "car", draw).generator())


def rates(world: World, config: RadioConfig, outcome: Outcome) -> dict[str, Tensor]:
    """The reference's metrics of every world, `[W]`."""
    assert outcome.log is not None
    users = world.shape[1]
    user_minutes = users * outcome.duration_s / 60
    state, serving = outcome.state, outcome.log.serving.long()
    connected = outcome.log.sinr_db.isfinite()
    unnecessary = torch.zeros(serving.shape[1:])
    total_db, samples = torch.zeros(serving.shape[1]), torch.zeros(serving.shape[1])
    share = torch.tensor(SERVICE_SHARE).cumsum(0)
    service = torch.searchsorted(share, (torch.arange(users) + 0.5) / users)
    least_stay_s, least_gain_db = torch.tensor(LEAST_STAY_S)[service], torch.tensor(LEAST_GAIN_DB)[service]
    period_s = outcome.duration_s / len(serving)

    source = torch.full(serving.shape[1:], NONE)
    stay_s, gain_db, low_s, would_fail = (torch.zeros(serving.shape[1:]) for _ in range(4))
    for t, now in enumerate(serving):
        sinr_db = full_load_sinr_db(world, config, outcome.log.position_m[t])
        own_db = sinr_db.gather(-1, now[..., None]).squeeze(-1)
        total_db += (own_db * connected[t]).sum(-1)
        samples += connected[t].sum(-1)
        # a stay ends after its least time, with the next handover, or in a failure
        moved = (
            connected[t] & connected[t - 1] & (now != serving[t - 1]) if t else torch.zeros_like(connected[t])
        )
        ends = (source != NONE) & (moved | (stay_s >= least_stay_s - 1e-6))
        low_gain = gain_db / (stay_s / period_s).clamp(min=1) < least_gain_db
        unnecessary += ends & (would_fail == 0) & ((stay_s < least_stay_s - 1e-6) | low_gain)
        source = torch.where(ends | ~connected[t], NONE, source)
        source = torch.where(moved, serving[t - 1], source)
        for tensor in (stay_s, gain_db, low_s, would_fail):
            tensor[moved] = 0
        left_db = sinr_db.gather(-1, source.clamp(min=0)[..., None]).squeeze(-1)
        stay_s += period_s
        gain_db += own_db - left_db
        low_s = torch.where(left_db < config.qout_db, low_s + period_s, 0.0)
        would_fail = torch.maximum(would_fail, (low_s >= config.t310_s - 1e-6).float())
    return {
        "handovers_pm": outcome.prepared / user_minutes,
        "unnecessary_pm": unnecessary.sum(-1) / user_minutes,
        "failures_pm": (state.link_failures + state.handover_failures).sum(-1) / user_minutes,
        "sinr_db": total_db / samples,
    }


def full_load_sinr_db(world: World, config: RadioConfig, position_m: Tensor) -> Tensor:
    """SINR towards every cell if all transmit, without fading, `[W, U, C]`."""
    power = torch.pow(10.0, (path_gain_db(world, position_m) + config.tx_power_dbm) / 10)
    noise = 10 ** (config.noise_dbm / 10)
    return 10 * torch.log10(power / (power.sum(-1, keepdim=True) - power + noise))


def chosen(world: World, index: Tensor) -> World:
    """Some worlds of a batch, in this order; what no world has stays empty."""
    batched = {field.name: getattr(world, field.name) for field in fields(World) if field.name not in SHARED}
    return replace(world, **{name: value[index] for name, value in batched.items() if len(value)})


def compare(parts: str, draws: int | None) -> list[dict[str, Any]]:
    """All rows with what was simulated beside the reference, over so many draws or `DRAWS`."""
    rows, sites = read_rows(parts)
    compared = []
    for condition in sorted({row.condition for row in rows}, key=lambda c: tuple(asdict(c).values())):
        group = [row for row in rows if row.condition == condition]
        found = simulated(condition, group, sites[condition.spacing_m], draws or DRAWS[group[0].part])
        for row, ours in zip(group, found, strict=True):
            compared.append({**asdict(row), "ours": ours})
    return compared


def factor(ours: float, theirs: float) -> float:
    """How many times the larger is the smaller; infinite where only one is zero."""
    low, high = sorted((ours, theirs))
    return 1.0 if high == 0 else math.inf if low == 0 else high / low


def agreement(compared: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How near the rates come: ranks within each condition of part A, factors over the rows of the others."""
    found = []
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in compared:
        of_a = (row["condition"]["spacing_m"], row["speed_mps"]) if row["part"] == "A" else ()
        groups.setdefault((row["part"], *of_a), []).append(row)
    for (part, *where), group in sorted(groups.items()):
        for name in METRICS[:3]:
            ours, theirs = (np.array([row[side][name] for row in group]) for side in ("ours", "reference"))
            factors = [factor(*pair) for pair in zip(ours, theirs, strict=True)]
            found.append(
                {
                    "part": part,
                    "spacing_m": where[0] if where else None,
                    "speed_mps": where[1] if where else None,
                    "metric": name,
                    "rows": len(group),
                    "spearman": round(float(spearmanr(ours, theirs).statistic), 3),
                    "median_ratio": round(float(np.median(ours / np.maximum(theirs, 1e-9))), 3),
                    "mean": round(float(ours.mean()), 4),
                    "mean_ratio": round(float(ours.mean() / theirs.mean()), 3),
                    "within": sum(bool(value <= FACTOR) for value in factors),
                    "worst": round(float(max(factors)), 3) if max(factors) < math.inf else None,
                }
            )
    return found


def rates_of(row: dict[str, Any]) -> dict[str, Any]:
    """What was simulated, without the reference."""
    kept = ("part", "variant", "condition", "speed_mps", "offset_db", "time_to_trigger_s")
    ours = {name: round(value, 4) for name, value in row["ours"].items()}
    return {name: row[name] for name in kept} | ours


def show(found: list[dict[str, Any]]) -> str:
    """One line per group and metric."""
    lines = []
    for g in found:
        where = f"{g['spacing_m']} m, {g['speed_mps']:g} m/s" if g["spacing_m"] else ""
        lines.append(
            f"{g['part']} {where:16} {g['metric']:15} {g['rows']:2} rows  rank {g['spearman']:.3f}"
            f"  median ratio {g['median_ratio']:.2f}  mean {g['mean']:.3f}, ratio {g['mean_ratio']:.2f}"
            f"  within {FACTOR} {g['within']}, worst {g['worst']}"
        )
    return "\n".join(lines)


def main() -> None:
    """Simulates, prints, and writes all rows if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ns3_a3", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="A,B,C", choices=("A,B,C", "A", "B,C"))
    parser.add_argument("--draws", type=int, help="of vehicles; by default 2 for part A, 6 for the others")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    compared = compare(asked.parts, asked.draws)
    found = agreement(compared)
    print(show(found))
    if asked.out:
        stored = {
            "made_by": "make ns3",
            "against": "ns-3 with 5G-LENA, event A3 in the urban grid of TR 37.885",
        }
        stored |= {"agreement": found, "rows": [rates_of(row) for row in compared]}
        asked.out.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
