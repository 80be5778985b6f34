"""A sheet as the study `worth` makes it, with invented numbers, and a reader of pages."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser

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


def made_row(
    candidate, regime, scenario, node, metric, mean, half=None, n=24, provenance="counted", unit=None
) -> Row:
    half = abs(mean) * 0.08 if half is None else half
    low, high = (
        (mean - half, mean + half) if math.isfinite(half) and math.isfinite(mean) else (math.nan, math.nan)
    )
    unit = METRICS[metric].unit if unit is None else unit
    return Row(candidate, regime, scenario, node, metric, unit, mean, low, high, n, provenance)


def case_rows(place: str, speed: int, load: int, cap: int, map_name: str, kinds) -> Iterator[Row]:
    """Rows of one scenario: the rule, the genie, and learned candidates (name, regime, cut, half-width)."""
    scenario = f"{place}/{speed}kmh/load{load}/cap{cap}/{map_name}"
    base = OUTAGE[speed, load] * (1.0 if cap == 8 else 0.82) * (1.0 if map_name == "raw" else 0.42)
    base *= {"florence": 1.3}.get(place, 1.0)
    for candidate, regime, cut, half in (("a3", "none", 0.0, None), ("genie", "none", 0.72, None), *kinds):
        share = base * (1 - cut)
        less = 0.0 if candidate == "a3" else 0.1
        found = [
            ("network", "outage_share", share, None, "measured"),
            ("network", "handovers_per_user_minute", cap - 0.05 - less, None, "measured"),
            ("network", "ping_pongs_per_user_hour", 31.0 - 60 * less, None, "measured"),
            ("network", "failures_per_user_hour", share * 140, None, "measured"),
            ("network", "throughput", 3.1e6 * (1 - share), None, "measured"),
            ("network", "energy_per_bit", 4.2e-6 * (1 + share), None, "modelled"),
            ("network", "energy", 1.9e7 * (1 - share / 9), None, "modelled"),
            ("device", "energy", 2100.0 * (1 + less), None, "modelled"),
            ("base-station", "energy", 700.0 * (1 + less), None, "modelled"),
        ]
        if half is not None:
            at_station = candidate == "learned-station"
            bits = (9.1e9 if at_station else 2.2e9) * (0.02 if regime == "local" else 1)
            price = 1 / cut if cut > 0 else math.inf
            found += [
                ("network", "outage_cut", cut, half, "measured"),
                (
                    "network",
                    "break_even_time",
                    6.1e5 if cut > 0.3 and speed == 50 else math.inf,
                    None,
                    "modelled",
                ),
                ("network", "joules_per_avoided_outage_second", 14.0 * price, None, "modelled"),
                ("network", "bits_per_avoided_outage_second", 5.2e4 * price, None, "counted"),
                ("network", "inference_latency", 0.0145 if at_station else 0.0061, 2e-4, "modelled"),
                ("backhaul", "communication_bits", bits, None, "counted"),
            ]
        for node, metric, mean, half_width, provenance in found:
            yield made_row(candidate, regime, scenario, node, metric, mean, half_width, provenance=provenance)


def worth_rows() -> Iterator[Row]:
    for map_name in ("raw", "smooth"):
        for cap in (8, 12):
            for speed, load in CELLS:
                shrink = (
                    (1.0 if map_name == "raw" else 0.7) * (1.0 if cap == 8 else 0.93) * (1 - 0.0008 * load)
                )
                kinds = [(*kind, cut * shrink, 0.04) for kind, cut in CUTS.items()]
                yield from case_rows("munich", speed, load, cap, map_name, kinds)
        slow = [(*kind, cut * 0.1, 0.11) for kind, cut in CUTS.items()]
        yield from case_rows("munich", 3, 50, 8, map_name, slow)
    central = [(name, "central", CUTS[name, "central"] * 0.9, 0.06) for name in LEARNED]
    for speed, load in CELLS:
        yield from case_rows("munich-unseen", speed, load, 8, "raw", central)
        tuned = [
            (name, regime, CUTS[name, "central"] * share, 0.07)
            for regime, share in (("central", -0.4), ("finetuned-last", 0.1), ("finetuned-whole", 0.7))
            for name in LEARNED
        ]
        yield from case_rows("florence", speed, load, 8, "raw", tuned)
    for name in LEARNED:
        for regime in REGIMES:
            operations = {"local": 4.1e12, "federated": 3.2e13, "central": 2.9e13}[regime]
            yield made_row(
                name,
                regime,
                "munich",
                "base-station",
                "training_operations",
                operations if regime != "local" else math.nan,
                math.nan,
            )
            yield made_row(name, regime, "munich", "base-station", "inference_operations", 2.41e5, 0)
            yield made_row(name, regime, "munich", "base-station", "inference_parameters", 119_808, 0)
            yield made_row(name, regime, "munich", "base-station", "cpu_time", 84.0, provenance="measured")
    yield made_row("a3", "none", "munich", "base-station", "tuning_operations", 8.3e9, 0)
    yield made_row("a3", "none", "munich", "base-station", "inference_operations", 42, 0)


AXES = {
    "front": ("handovers_per_user_minute", "1/min", "outage_share", "1"),
    "sinr_cdf": ("sinr", "dB", "share", "1"),
    "throughput_cdf": ("throughput", "bit/s", "share", "1"),
    "learning": ("energy", "J", "validation_loss", "1"),
    "learning_bits": ("communication_bits", "bit", "validation_loss", "1"),
    "break_even": ("users", "1", "break_even_time", "s"),
    "failure_places": ("x", "m", "y", "m"),
    "buildings": ("x", "m", "y", "m"),
    "sites": ("x", "m", "y", "m"),
}


def curve(name, candidate, regime, scenario, *columns) -> Curve:
    x, y, low, high = (tuple(map(float, column)) for column in (*columns, (), ())[:4])
    return Curve(name, candidate, regime, scenario, *AXES[name], x, y, low or None, high or None)


def worth_curves() -> Iterator[Curve]:
    rng = np.random.default_rng(7)
    names = (("a3", "none"), ("learned-station", "central"), ("learned-device", "central"), ("genie", "none"))
    for map_name in ("raw", "smooth"):
        for speed, load in (*CELLS, (3, 50)):
            scenario = f"munich/{speed}kmh/load{load}/{map_name}"
            base = OUTAGE[speed, load] * (1.0 if map_name == "raw" else 0.42)
            for kind, share in zip(names, (1.0, 0.72, 0.64, 0.28), strict=True):
                x = np.linspace(2.0, 22.0, 25)
                y = base * share * (0.6 + 3.0 / x)
                yield curve(
                    "front", *kind, scenario, x, y, *((y * 0.93, y * 1.07) if kind[0] != "genie" else ())
                )
            if map_name == "raw":
                share = np.concatenate([np.geomspace(1e-4, 0.01, 40), np.linspace(0.012, 1.0, 80)])
                for kind, shift in ((names[0], 0.0), (names[2], 1.2)):
                    sinr = 6.5 + 7.6 * np.log10(share / (1.0001 - share)) + shift * (1 - share)
                    yield curve("sinr_cdf", *kind, scenario, sinr, share)
                    yield curve(
                        "throughput_cdf", *kind, scenario, 2e6 * share**0.45 * 10 ** (shift / 10), share
                    )
    for name in LEARNED:
        for regime, end, bits, floor in (
            ("local", 900.0, 0.0, 0.31),
            ("federated", 5200.0, 2.1e9, 0.22),
            ("central", 4600.0, 9.1e9, 0.2),
        ):
            progress = np.linspace(0.03, 1.0, 30)
            loss = floor + 0.25 * np.exp(-5 * progress) + rng.normal(0, 0.002, 30)
            yield curve("learning", name, regime, "munich", end * progress, loss)
            yield curve("learning_bits", name, regime, "munich", bits * progress, loss)
        users = np.array([10, 30, 100, 300, 1000, 3000, 10000])
        saved_w = (0.004 if name == "learned-device" else 0.0012) * users - 0.3
        after_s = np.where(saved_w > 0, 4600 / np.maximum(saved_w, 1e-12), np.inf)
        latest_s = np.where(saved_w > 1, 1.6 * after_s, np.inf)
        scenario = "munich/50kmh/load100/raw"
        yield curve("break_even", name, "central", scenario, users, after_s, 0.7 * after_s, latest_s)
    xs, ys = [], []
    for i in range(12):
        for j in range(12):
            x0, y0 = -480 + 80 * i + rng.uniform(4, 18), -480 + 80 * j + rng.uniform(4, 18)
            w, h = rng.uniform(30, 58, 2)
            xs += [x0, x0 + w, x0 + w, x0, x0, math.nan]
            ys += [y0, y0, y0 + h, y0 + h, y0, math.nan]
    yield curve("buildings", "", "none", "munich", xs, ys)
    yield curve("sites", "", "none", "munich", rng.uniform(-400, 400, 7), rng.uniform(-400, 400, 7))
    for kind, count in ((names[0], 620), (names[2], 400)):
        along = rng.uniform(-480, 480, count)
        across = rng.integers(0, 12, count) * 80 - 480 + rng.normal(0, 3, count)
        flip = rng.random(count) < 0.5
        x, y = np.where(flip, along, across), np.where(flip, across, along)
        yield curve("failure_places", *kind, "munich/50kmh/load100/cap12/raw", x, y)


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
            "Worth it at 30 and 50 km/h, not worth it on foot: trained centrally and run on the device, it "
            "cuts outage by a third at no more handovers. At 3 km/h there is next to nothing to gain. Energy "
            "pays back only at 50 km/h and above 300 users; elsewhere it is bought for fewer outages."
        ),
    )


class Page(HTMLParser):
    """Tags, ids, addresses and text of a page; every tag that is opened must be closed."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "data") or name.startswith("on"):
                self.addresses.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def small(rows=(), curves=(), **changes) -> Sheet:
    """A sheet of a study that the report knows nothing about."""
    made = Sheet(
        "other", "1", {}, (1,), {}, "defiance run other", tuple(rows), tuple(curves), "Not worth it."
    )
    return replace(made, **changes)
