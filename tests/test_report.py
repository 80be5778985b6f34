import math
from collections.abc import Iterator

import numpy as np

from defiance.kpm import METRICS, Curve, Row, Sheet

REGIMES = ("local", "federated", "central")
LEARNED = ("learned-station", "learned-device")
CELLS = ((30, 50), (30, 100), (50, 50), (50, 100))
OUTAGE = {(3, 50): 0.0013, (30, 50): 0.0247, (30, 100): 0.0475, (50, 50): 0.0345, (50, 100): 0.062}
CUTS = {
    ("learned-station", "local"): -0.05,
    ("learned-station", "federated"): 0.26,
    ("learned-station", "central"): 0.29,
    ("learned-device", "local"): 0.04,
    ("learned-device", "federated"): 0.33,
    ("learned-device", "central"): 0.37,
}


def row(
    candidate, regime, scenario, node, metric, mean, half=None, n=24, provenance="counted", unit=None
) -> Row:
    half = abs(mean) * 0.08 if half is None else half
    low, high = (
        (mean - half, mean + half) if math.isfinite(half) and math.isfinite(mean) else (math.nan, math.nan)
    )
    unit = METRICS[metric].unit if unit is None else unit
    return Row(candidate, regime, scenario, node, metric, unit, mean, low, high, n, provenance)


def cell_rows(place: str, speed: int, load: int, cap: int, map_name: str, kinds) -> Iterator[Row]:
    """Rows of one cell: the rule, the genie, and learned candidates with their cuts."""
    scenario = f"{place}/{speed}kmh/load{load}/cap{cap}/{map_name}"
    base = OUTAGE[speed, load] * (1.0 if cap == 8 else 0.82) * (1.0 if map_name == "raw" else 0.42)
    base *= {"florence": 1.3}.get(place, 1.0)
    for candidate, regime, cut, half in (("a3", "none", None, 0), ("genie", "none", None, 0), *kinds):
        share = base * (1 - cut) if cut is not None else base if candidate == "a3" else base * 0.28
        yield row(candidate, regime, scenario, "network", "outage_share", share, provenance="measured")
        if cut is not None:
            yield row(candidate, regime, scenario, "network", "outage_cut", cut, half, provenance="measured")
        less = 0.0 if candidate == "a3" else 0.1
        for metric, mean in (
            ("handovers_per_user_minute", cap - 0.05 - less),
            ("ping_pongs_per_user_hour", 31.0 - 60 * less),
            ("failures_per_user_hour", share * 140),
            ("throughput", 3.1e6 * (1 - share)),
        ):
            yield row(candidate, regime, scenario, "network", metric, mean, provenance="measured")
        yield row(
            candidate,
            regime,
            scenario,
            "network",
            "energy_per_bit",
            4.2e-6 * (1 + share),
            provenance="modelled",
        )
        yield row(
            candidate, regime, scenario, "network", "energy", 1.9e7 * (1 - share / 9), provenance="modelled"
        )
        yield row(candidate, regime, scenario, "device", "energy", 2100.0 * (1 + less), provenance="modelled")
        yield row(
            candidate, regime, scenario, "base-station", "energy", 700.0 * (1 + less), provenance="modelled"
        )
        if cut is None:
            continue
        pays = cut > 0.3 and speed == 50
        yield row(
            candidate,
            regime,
            scenario,
            "network",
            "break_even_time",
            6.1e5 if pays else math.inf,
            provenance="modelled",
        )
        yield row(
            candidate,
            regime,
            scenario,
            "network",
            "joules_per_avoided_outage_second",
            14.0 / cut if cut > 0 else math.inf,
            provenance="modelled",
        )
        yield row(
            candidate,
            regime,
            scenario,
            "network",
            "bits_per_avoided_outage_second",
            5.2e4 / cut if cut > 0 else math.inf,
        )
        at_station = candidate == "learned-station"
        yield row(
            candidate,
            regime,
            scenario,
            "network",
            "inference_latency",
            0.0145 if at_station else 0.0061,
            2e-4,
            provenance="modelled",
        )
        bits = 9.1e9 if at_station else 2.2e9
        yield row(
            candidate,
            regime,
            scenario,
            "backhaul",
            "communication_bits",
            bits * (0.02 if regime == "local" else 1),
        )


def worth_rows() -> Iterator[Row]:
    for map_name in ("raw", "smooth"):
        for cap in (8, 12):
            for speed, load in CELLS:
                shrink = (
                    (1.0 if map_name == "raw" else 0.7) * (1.0 if cap == 8 else 0.93) * (1 - 0.0008 * load)
                )
                kinds = [(*kind, cut * shrink, 0.04) for kind, cut in CUTS.items()]
                yield from cell_rows("munich", speed, load, cap, map_name, kinds)
        slow = [(*kind, cut * 0.1, 0.11) for kind, cut in CUTS.items()]
        yield from cell_rows("munich", 3, 50, 8, map_name, slow)
    central = [(name, "central", CUTS[name, "central"] * 0.9, 0.06) for name in LEARNED]
    for speed, load in CELLS:
        yield from cell_rows("munich-unseen", speed, load, 8, "raw", central)
        tuned = [
            (name, regime, CUTS[name, "central"] * share, 0.07)
            for regime, share in (("central", -0.4), ("finetuned-last", 0.1), ("finetuned-whole", 0.7))
            for name in LEARNED
        ]
        yield from cell_rows("florence", speed, load, 8, "raw", tuned)
    for name in LEARNED:
        for regime in REGIMES:
            operations = {"local": 4.1e12, "federated": 3.2e13, "central": 2.9e13}[regime]
            yield row(
                name,
                regime,
                "munich",
                "base-station",
                "training_operations",
                operations if regime != "local" else math.nan,
                math.nan,
            )
            yield row(name, regime, "munich", "base-station", "inference_operations", 2.41e5, 0)
            yield row(name, regime, "munich", "base-station", "inference_parameters", 119_808, 0)
            yield row(name, regime, "munich", "base-station", "cpu_time", 84.0, provenance="measured")
    yield row("a3", "none", "munich", "base-station", "tuning_operations", 8.3e9, 0)
    yield row("a3", "none", "munich", "base-station", "inference_operations", 42, 0)


def worth_curves(points: int = 25) -> Iterator[Curve]:
    rng = np.random.default_rng(7)

    def curve(
        name, candidate, regime, scenario, x_metric, x_unit, y_metric, y_unit, x, y, low=None, high=None
    ) -> Curve:
        columns = (
            tuple(float(v) for v in values) if values is not None else None for values in (x, y, low, high)
        )
        return Curve(name, candidate, regime, scenario, x_metric, x_unit, y_metric, y_unit, *columns)

    names = (("a3", "none"), ("learned-station", "central"), ("learned-device", "central"), ("genie", "none"))
    for map_name in ("raw", "smooth"):
        for speed, load in (*CELLS, (3, 50)):
            scenario = f"munich/{speed}kmh/load{load}/{map_name}"
            base = OUTAGE[speed, load] * (1.0 if map_name == "raw" else 0.42)
            for (candidate, regime), share in zip(names, (1.0, 0.72, 0.64, 0.28), strict=True):
                x = np.linspace(2.0, 22.0, points)
                y = base * share * (0.6 + 3.0 / x)
                band = (y * 0.93, y * 1.07) if candidate != "genie" else (None, None)
                yield curve(
                    "front",
                    candidate,
                    regime,
                    scenario,
                    "handovers_per_user_minute",
                    "1/min",
                    "outage_share",
                    "1",
                    x,
                    y,
                    *band,
                )
            if map_name == "raw":
                share = np.concatenate([np.geomspace(1e-4, 0.01, 40), np.linspace(0.012, 1.0, 80)])
                for (candidate, regime), shift in zip(names[:1] + names[2:3], (0.0, 1.2), strict=True):
                    sinr = 6.5 + 8.5 * np.log10(share / (1.0001 - share) + 1e-9) * 0.9 + shift * (1 - share)
                    yield curve(
                        "sinr_cdf", candidate, regime, scenario, "sinr", "dB", "share", "1", sinr, share
                    )
                    rate = 2e6 * (share**0.45) * 10 ** (0.1 * shift)
                    yield curve(
                        "throughput_cdf",
                        candidate,
                        regime,
                        scenario,
                        "throughput",
                        "bit/s",
                        "share",
                        "1",
                        rate,
                        share,
                    )
    for name in LEARNED:
        for regime in REGIMES:
            end = {"local": 900.0, "federated": 5200.0, "central": 4600.0}[regime]
            bits = {"local": 0.0, "federated": 2.1e9, "central": 9.1e9}[regime]
            floor = {"local": 0.31, "federated": 0.22, "central": 0.2}[regime]
            progress = np.linspace(0.03, 1.0, 30)
            loss = floor + 0.25 * np.exp(-5 * progress) + rng.normal(0, 0.002, 30)
            yield curve(
                "learning",
                name,
                regime,
                "munich",
                "energy",
                "J",
                "validation_loss",
                "1",
                end * progress,
                loss,
            )
            yield curve(
                "learning_bits",
                name,
                regime,
                "munich",
                "communication_bits",
                "bit",
                "validation_loss",
                "1",
                bits * progress,
                loss,
            )
        users = np.array([10, 30, 100, 300, 1000, 3000, 10000])
        saved = (0.004 if name == "learned-device" else 0.0012) * users - 0.3
        time = np.where(saved > 0, 4600 / np.maximum(saved, 1e-12), np.inf)
        upper = np.where(saved > 1, 1.6 * time, np.inf)
        yield curve(
            "break_even",
            name,
            "central",
            "munich/50kmh/load100/raw",
            "users",
            "1",
            "break_even_time",
            "s",
            users,
            time,
            0.7 * time,
            upper,
        )
    xs, ys = [], []
    for i in range(12):
        for j in range(12):
            x0, y0 = -480 + 80 * i + rng.uniform(4, 18), -480 + 80 * j + rng.uniform(4, 18)
            w, h = rng.uniform(30, 58, 2)
            xs += [x0, x0 + w, x0 + w, x0, x0, math.nan]
            ys += [y0, y0, y0 + h, y0 + h, y0, math.nan]
    yield curve("buildings", "", "none", "munich", "x", "m", "y", "m", xs, ys)
    yield curve(
        "sites",
        "",
        "none",
        "munich",
        "x",
        "m",
        "y",
        "m",
        rng.uniform(-400, 400, 7),
        rng.uniform(-400, 400, 7),
    )
    for candidate, regime, count in (("a3", "none", 620), ("learned-device", "central", 400)):
        east = np.round(rng.integers(0, 12, count) * 80 - 480 + rng.normal(0, 3, count), 1)
        north = rng.uniform(-480, 480, count)
        flip = rng.random(count) < 0.5
        x, y = np.where(flip, east, north), np.where(flip, north, east)
        yield curve(
            "failure_places", candidate, regime, "munich/50kmh/load100/cap12/raw", "x", "m", "y", "m", x, y
        )


def worth_sheet() -> Sheet:
    """A sheet as the study `worth` makes it, with invented numbers."""
    return Sheet(
        study="worth",
        version="0.1.0",
        config={
            "scene": "munich",
            "users": 300,
            "radio": {"bandwidth_hz": 20e6, "qout_db": -8.0},
            "caps": [8, 12],
        },
        seeds=tuple(range(8)),
        machine={"cpu": "a processor", "cores": 2, "python": "3.11.2", "torch": "2.13.0+cpu"},
        made_by="defiance run worth --preset full",
        rows=tuple(worth_rows()),
        curves=tuple(worth_curves()),
        verdict=(
            "Worth it at 30 and 50 km/h, not worth it on foot: trained centrally and run on the device, it cuts outage by "
            "a third at no more handovers. At 3 km/h there is next to nothing to gain. Energy pays back only at 50 km/h and "
            "above 300 users; elsewhere it is bought for fewer outages."
        ),
    )
