"""Names and numbers as people read them: candidates, scenarios, SI prefixes, intervals, 'never'."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from defiance.kpm import METRICS, Row

MINUS = "\N{MINUS SIGN}"
THIN = "\N{NARROW NO-BREAK SPACE}"

CANDIDATES = {
    "a3": "A3 rule",
    "learned-station": "learned, at the station",
    "learned-device": "learned, on the device",
    "genie": "genie (knows the future)",
}
SHORT_CANDIDATES = {"a3": "A3", "learned-station": "station", "learned-device": "device", "genie": "genie"}
REGIMES = {
    "none": "",
    "finetuned-whole": "fine-tuned, whole model",
    "finetuned-last": "fine-tuned, last layer",
}
NODES = {
    "device": "devices",
    "base-station": "base stations",
    "network": "radio network",
    "backhaul": "backhaul",
}

METRIC_NAMES = {
    "outage_share": "time in outage",
    "handovers_per_user_minute": "handovers per user-minute",
    "ping_pongs_per_user_hour": "ping-pongs per user-hour",
    "failures_per_user_hour": "link failures per user-hour",
    "break_even_time": "break-even time",
    "cpu_time": "CPU time",
    "sinr": "SINR",
    "joules_per_avoided_outage_second": "joules per avoided second of outage",
    "bits_per_avoided_outage_second": "bits per avoided second of outage",
}
# (upper bound in seconds, seconds per unit, unit)
TIMES = (
    (1e-3, 1e-6, "µs"),
    (1.0, 1e-3, "ms"),
    (120.0, 1.0, "s"),
    (7200.0, 60.0, "min"),
    (172_800.0, 3600.0, "h"),
    (2 * 31_557_600.0, 86_400.0, "days"),
    (math.inf, 31_557_600.0, "years"),
)
PREFIXES = {-12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E"}
PREFIXED = ("op", "bit", "J", "W", "Hz")


@dataclass(frozen=True)
class Scale:
    """`value / factor` reads as a number followed by `unit`."""

    factor: float
    unit: str


@dataclass(frozen=True)
class Scenario:
    """The parts of a scenario name such as `munich/30kmh/load50/cap8/raw`; None where it has no such part."""

    name: str
    city: str
    speed_kmh: int | None = None
    load_percent: int | None = None
    cap: int | None = None
    map: str | None = None
    rest: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """City and map, e.g. 'Munich, traced map'."""
        maps = {"raw": "traced map", "smooth": "smoothed map"}
        return ", ".join([city(self.city)] + ([maps[self.map]] if self.map else []))

    @property
    def cell(self) -> str:
        """What differs inside a place, e.g. '30 km/h, load 50 %, cap 8/min'."""
        parts = [
            f"{self.speed_kmh} km/h" if self.speed_kmh is not None else "",
            f"load {self.load_percent} %" if self.load_percent is not None else "",
            f"cap {self.cap}/min" if self.cap is not None else "",
            *self.rest,
        ]
        return ", ".join(part for part in parts if part) or city(self.city)

    @property
    def label(self) -> str:
        """Place and cell."""
        return self.place if self.cell == city(self.city) else f"{self.place}: {self.cell}"


def scenario(name: str) -> Scenario:
    """Read a scenario's name; parts that are not understood are kept in `rest`."""
    head, *parts = name.split("/")
    found: dict[str, int] = {}
    rest, map_name = [], None
    for part in parts:
        if match := re.fullmatch(r"(\d{1,6})kmh", part):
            found["speed_kmh"] = int(match[1])
        elif match := re.fullmatch(r"(load|cap)(\d{1,6})", part):
            found["load_percent" if match[1] == "load" else "cap"] = int(match[2])
        elif part in ("raw", "smooth"):
            map_name = part
        elif part:
            rest.append(part)
    return Scenario(name, head, map=map_name, rest=tuple(rest), **found)


def city(name: str) -> str:
    """'munich-unseen' -> 'Munich (unseen streets)'."""
    base, _, unseen = name.partition("-unseen")
    pretty = base.replace("_", " ").strip()
    pretty = pretty[:1].upper() + pretty[1:]
    return f"{pretty} (unseen streets)" if unseen == "" and name.endswith("-unseen") else pretty or "all"


def candidate(name: str, regime: str = "none", *, short: bool = False) -> str:
    """'learned-device', 'central' -> 'learned, on the device (central)'; short: 'device, central'."""
    base = (SHORT_CANDIDATES if short else CANDIDATES).get(name, name)
    if regime in ("none", ""):
        return base
    return f"{base}, {regime}" if short else f"{base} ({REGIMES.get(regime, regime)})"


def metric(name: str) -> str:
    """'ping_pongs_per_user_hour' -> 'ping-pongs per user-hour'."""
    return METRIC_NAMES.get(name, name.replace("_", " "))


def node(name: str) -> str:
    """A node's name in the plural where it is known."""
    return NODES.get(name, name)


def scale(unit: str, magnitude: float) -> Scale:
    """The scale in which a value of this `magnitude` [unit] reads best: SI prefix, per cent, minutes, ..."""
    size = abs(magnitude) if math.isfinite(magnitude) else 0.0
    if unit == "1":
        return Scale(0.01, "%")
    if unit == "s":
        return (
            next(Scale(per, name) for bound, per, name in TIMES if size < bound) if size else Scale(1.0, "s")
        )
    if unit.split("/")[0] not in PREFIXED or size == 0:
        return Scale(
            1.0, "" if unit == "parameters" else unit.removeprefix("1") if unit.startswith("1/") else unit
        )
    rounded = float(f"{size:.3g}")
    exponent = max(-12, min(18, 3 * math.floor(math.log10(rounded) / 3 + 1e-9)))
    return Scale(10.0**exponent, PREFIXES[exponent] + unit)


def digits(value: float, decimals: int) -> str:
    """A number with a true minus sign, thousands in groups; 'never'-like values are the caller's business."""
    text = f"{value:,.{decimals}f}".replace(",", THIN)
    if float(f"{value:.{decimals}f}") == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def decimals_for(*values: float) -> int:
    """Decimals that leave three significant digits on the largest finite value (at most six)."""
    size = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 0 if size == 0 else max(0, min(6, 2 - math.floor(math.log10(size))))


def absent(value: float, unit: str) -> str:
    """What an infinite or missing value means."""
    if math.isnan(value):
        return "not converged" if unit == "op" else "no value"
    return "never" if value > 0 and unit == "s" else "∞" if value > 0 else f"{MINUS}∞"


def number(value: float, unit: str, *, signed: bool = False) -> str:
    """A value with its unit: '3.20 %', '12.3 kJ', 'never'."""
    if not math.isfinite(value):
        return absent(value, unit)
    chosen = scale(unit, value)
    scaled = value / chosen.factor
    sign = "+" if signed and scaled > 0 else ""
    space = "" if chosen.unit.startswith("/") else " "
    return f"{sign}{digits(scaled, decimals_for(scaled))}{space}{chosen.unit}".strip()


def bounds(mean: float, low: float, high: float, unit: str) -> str:
    """The interval in the scale of its mean, '[2.90, 3.51]'; '' where there is none (n = 1) or it has no width."""
    if math.isnan(low) or math.isnan(high) or low == high:
        return ""
    reference = next((value for value in (mean, low, high) if math.isfinite(value) and value), 0.0)
    chosen = scale(unit, reference)
    decimals = decimals_for(reference / chosen.factor)
    texts = [
        digits(value / chosen.factor, decimals) if math.isfinite(value) else absent(value, unit)
        for value in (low, high)
    ]
    suffix = "" if math.isfinite(mean) else f" {chosen.unit}"
    return f"[{texts[0]}, {texts[1]}]{suffix}"


def spread(values: Sequence[float], unit: str) -> str:
    """Smallest to largest of several values, '25.1 to 41.3 %', in one scale; 'never' where it applies."""
    low, high = min(values), max(values)
    if low == high:
        return number(low, unit)
    if not math.isfinite(high) or not math.isfinite(low):
        return f"{number(low, unit)} to {number(high, unit)}"
    first, last = scale(unit, low), scale(unit, high)
    if unit not in ("1", "parameters") and first != last:
        return f"{number(low, unit)} to {number(high, unit)}"
    decimals = decimals_for(high / last.factor)
    texts = (digits(value / last.factor, decimals) for value in (low, high))
    return f"{' to '.join(texts)} {last.unit}".replace(" /", "/").strip()


def resolved(row: Row) -> bool:
    """True where the interval is known and excludes zero."""
    return row.ci_low > 0 or row.ci_high < 0


def better(name: str) -> str:
    """'lower', 'higher' or '' where the metric is not known."""
    return METRICS[name].better if name in METRICS else ""


def sentence_split(text: str) -> tuple[str, str]:
    """First sentence, the rest."""
    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z(])|\n+", text.strip(), maxsplit=1)
    return parts[0], (parts[1].strip() if len(parts) > 1 else "")
