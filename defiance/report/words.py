"""Names and numbers as people read them: candidates, scenarios, SI prefixes, intervals, 'never'."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from defiance.kpm import METRICS, Row

MINUS = "\N{MINUS SIGN}"
NBSP = "\N{NO-BREAK SPACE}"
THIN = "\N{NARROW NO-BREAK SPACE}"

CANDIDATES = {
    "a3": "A3 rule",
    "learned-station": "learned, station",
    "learned-device": "learned, device",
    "genie": "genie",
    "network": "the network",
    "function": "the function",
    "s-vdib": "S-VDIB",
    "s-vdib-sparse": "S-VDIB, sparse pulses",
    "s-vdib-deterministic": "S-VDIB, deterministic",
    "s-vdib-small": "S-VDIB, small",
    "neurojscc": "joint, spiking (NeuroJSCC)",
    "joint-binary": "joint, learned bits",
    "joint-binary-bursts": "joint, learned bits in bursts",
    "joint-binary-small": "joint, learned bits, small",
    "joint-analogue": "joint, learned reals",
    "repetition": "joint, repeated bits",
    "uncoded-map": "uncoded event map",
    "separate": "separate coding",
    "separate-adapted": "separate coding, adapted rate",
    "device-label": "label named on the device",
    "send-everything": "full map",
    "central": "no channel",
    "type-1": "Type I",
    "l-beams": "L-beam report",
    "klt": "KLT codec",
    "perfect": "perfect feedback",
}
SHORT = {
    "a3": "A3",
    "learned-station": "station",
    "learned-device": "device",
    "s-vdib-sparse": "sparse pulses",
    "s-vdib-deterministic": "deterministic",
    "s-vdib-small": "small S-VDIB",
    "neurojscc": "NeuroJSCC",
    "joint-binary": "learned bits",
    "joint-binary-bursts": "in bursts",
    "joint-binary-small": "small",
    "joint-analogue": "learned reals",
    "repetition": "repeated",
    "uncoded-map": "uncoded map",
    "separate": "separate",
    "separate-adapted": "separate, ad.",
    "device-label": "label",
}
PROSE = {
    "learned-station": "learned handover at the base station",
    "learned-device": "learned handover on the device",
}
REGIMES = {
    "none": "",
    "mixed": "",
    "finetuned-whole": "whole model fine-tuned",
    "finetuned-last": "last layer fine-tuned",
    "finetuned-decoder": "decoder fine-tuned",
}
NODES = {"device": "devices", "base-station": "base stations", "network": "radio network"}
MAPS = {"raw": "traced map", "smooth": "smoothed map"}
METRIC_NAMES = {
    "outage_share": "time in outage",
    "handovers_per_user_minute": "handovers per user-minute",
    "ping_pongs_per_user_hour": "ping-pongs per user-hour",
    "failures_per_user_hour": "link failures per user-hour",
    "break_even_time": "break-even time",
    "rsrp_gain": "RSRP gain",
    "cpu_time": "CPU time",
    "nmse": "NMSE",
    "sinr": "SINR",
    "esn0": "Es/N0",
    "energy_per_use": "energy of a channel use",
    "information_rate": "information rate, at most",
    "spiking_gain": "gain of S-VDIB",
    "joules_per_avoided_outage_second": "joules per avoided outage second",
    "bits_per_avoided_outage_second": "bits per avoided outage second",
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
    """The parts of a name such as `munich/30kmh/load50/cap8/raw`; None where it has no such part."""

    name: str
    city: str
    speed_kmh: float | None = None
    load_percent: float | None = None
    cap: float | None = None
    map: str | None = None
    rest: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """City and map: 'Munich, traced map'."""
        return ", ".join([city(self.city)] + ([MAPS[self.map]] if self.map else []))

    @property
    def case(self) -> str:
        """What differs inside a place: '30 km/h, load 50 %, cap 8'; the place itself where nothing does."""
        parts = [
            f"{self.speed_kmh:g}{NBSP}km/h" if self.speed_kmh is not None else "",
            f"load{NBSP}{self.load_percent:g}{NBSP}%" if self.load_percent is not None else "",
            f"cap{NBSP}{self.cap:g}" if self.cap is not None else "",
            *self.rest,
        ]
        return ", ".join(part for part in parts if part) or self.place

    @property
    def label(self) -> str:
        """Place and case."""
        return self.place if self.case == self.place else f"{self.place}: {self.case}"


def scenario(name: str) -> Scenario:
    """Read a scenario's name; parts that are not understood are kept in `rest`."""
    head, *parts = name.split("/")
    number = r"([0-9]{1,6}(?:\.[0-9]{1,6})?)"
    found: dict[str, float] = {}
    rest, map_name = [], None
    for part in parts:
        if match := re.fullmatch(rf"{number}kmh", part):
            found["speed_kmh"] = float(match[1])
        elif match := re.fullmatch(rf"(load|cap){number}", part):
            found["load_percent" if match[1] == "load" else "cap"] = float(match[2])
        elif part in MAPS:
            map_name = part
        elif part:
            rest.append(part)
    return Scenario(name, head, map=map_name, rest=tuple(rest), **found)


def city(name: str) -> str:
    """'munich-unseen' -> 'Munich, unseen streets'."""
    base = name.removesuffix("-unseen").replace("_", " ")
    pretty = base[:1].upper() + base[1:]
    return f"{pretty}, unseen streets" if name.endswith("-unseen") else pretty


def candidate(name: str, regime: str = "none", names: dict[str, str] = CANDIDATES) -> str:
    """'learned-device', 'central' -> 'learned, device (central)'; `names` may be SHORT or PROSE."""
    base = names.get(name, CANDIDATES.get(name, re.sub(r"^a3-(-?[\d.]+)dB$", rf"A3, \1{NBSP}dB", name)))
    text = REGIMES.get(regime, regime)
    return f"{base} ({text})" if text else base


def metric(name: str) -> str:
    """'ping_pongs_per_user_hour' -> 'ping-pongs per user-hour'."""
    return METRIC_NAMES.get(name, name.replace("_", " "))


def _rounded(size: float) -> float:
    """Three significant digits; the largest floats are not rounded up to infinity."""
    return float(f"{min(size, 1e308):.3g}")


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
        return Scale(1.0, {"parameters": "", "1/min": "/min", "1/h": "/h"}.get(unit, unit))
    rounded = _rounded(size)
    exponent = max(-12, min(18, 3 * math.floor(math.log10(rounded) / 3 + 1e-9)))
    space = THIN if unit == "op" and exponent else ""
    return Scale(10.0**exponent, f"{PREFIXES[exponent]}{space}{unit}")


def digits(value: float, decimals: int) -> str:
    """A finite number with a true minus sign and thousands in groups."""
    text = f"{value:,.{decimals}f}".replace(",", THIN)
    return text.lstrip("-") if float(f"{value:.{decimals}f}") == 0 else text.replace("-", MINUS)


def decimals_for(*values: float) -> int:
    """Decimals that leave three significant digits on the largest finite value (at most six)."""
    size = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 0 if size == 0 else max(0, min(6, 2 - math.floor(math.log10(_rounded(size)))))


def absent(value: float, unit: str) -> str:
    """What an infinite or missing value means."""
    if math.isnan(value):
        return "not converged" if unit == "op" else "no value"
    return "never" if value > 0 and unit == "s" else "∞" if value > 0 else f"{MINUS}∞"


def number(value: float, unit: str) -> str:
    """A value with its unit: '3.20 %', '12.3 kJ', 'never'."""
    return interval(value, math.nan, math.nan, unit)[0]


def interval(mean: float, low: float, high: float, unit: str) -> tuple[str, str]:
    """A value with its unit and its interval in the same scale: ('3.20 %', '[2.91, 3.49]').

    The interval is '' where there is none (n = 1) or it has no width.
    """
    reference = next((value for value in (mean, low, high) if math.isfinite(value) and value), 0.0)
    chosen = scale(unit, reference)
    hidden = math.isnan(low) or math.isnan(high) or low == high
    scaled = [value / chosen.factor for value in ((mean,) if hidden else (mean, low, high))]
    decimals = decimals_for(*scaled)
    texts = [digits(value, decimals) if math.isfinite(value) else absent(value, unit) for value in scaled]
    suffix = chosen.unit if chosen.unit.startswith("/") else f"{NBSP}{chosen.unit}".rstrip(NBSP)
    main = texts[0] + suffix if math.isfinite(mean) else texts[0]
    if hidden:
        return main, ""
    return main, f"[{texts[1]}, {texts[2]}]" + ("" if math.isfinite(mean) else suffix)


def estimate(row: Row) -> str:
    """A row's mean and interval in one text."""
    return " ".join(filter(None, interval(row.mean, row.ci_low, row.ci_high, row.unit)))


def span(values: Sequence[float], unit: str) -> str:
    """Smallest to largest of several values: '25.1 to 41.3 %', '2 h to never'."""
    low, high = number(min(values), unit), number(max(values), unit)
    if low == high:
        return low
    value, _, suffix = low.partition(NBSP)
    return f"{value if suffix == high.partition(NBSP)[2] else low} to {high}"


def resolved(row: Row) -> bool:
    """True where the interval is known and excludes zero."""
    return row.ci_low > 0 or row.ci_high < 0


def better(name: str) -> str:
    """'lower', 'higher' or '' where the metric is not known."""
    return METRICS[name].better if name in METRICS else ""


def count(number: int, noun: str) -> str:
    """'1 seed', '8 seeds'."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def capital(text: str) -> str:
    """The text with its first letter raised."""
    return text[:1].upper() + text[1:]


def sentences(text: str) -> list[str]:
    """A text's sentences."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z(])|\n+", text.strip())


def slug(text: str) -> str:
    """A file-name stem: letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80] or "x"
