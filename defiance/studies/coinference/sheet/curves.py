"""The curves of the sheet: accuracy against noise, uses, time, information; joules against a radio's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from defiance.hardware import RADIOS
from defiance.kpm import Curve, mean_interval
from defiance.studies.coinference.data import duration_us
from defiance.studies.coinference.settings import SPIKING, STEPS
from defiance.studies.coinference.sheet.costs import (
    EQUAL_WITHIN,
    PAIRS,
    device_joules,
    needed_uses,
    shared_uses,
)
from defiance.studies.coinference.sheet.results import BOUNDS, Array, Kind, Results, scenario

PRICES_J = tuple(float(price) for price in np.geomspace(1e-13, 1e-4, 46))
"""Of a channel use, where total energies are drawn."""

USES_DB = (math.inf, 0.0, -4.0, -8.0)
"""Where accuracy is drawn against channel uses."""

TIME_DB = (math.inf, 0.0, -4.0)
"""Where accuracy is drawn against time."""

RATES_DB = 0.0
"""Where the information that arrives is estimated."""


def curves(results: Results) -> Iterator[Curve]:
    """What the figures draw."""
    for test in results.config.data:
        yield from _noise_curves(results, test)
        yield from _uses_curves(results, test)
        yield from _time_curves(results, test)
        yield from _information_curves(results, test)
        yield from _total_curves(results, test)
    for radio in RADIOS.values():
        ends = (radio.tx_joules_per_bit_low, radio.tx_joules_per_bit, radio.tx_joules_per_bit_high)
        yield Curve("radio", radio.name, "none", "", "energy_per_use", "J", "end", "1", ends, (0.0, 0.5, 1.0))


def _curve(
    name: str, kind: Kind, where: str, x: tuple[str, str, Sequence[float]], points: Iterable[Array]
) -> Curve:
    """Accuracy with its interval at x (metric, unit, values): for each value the accuracies of the models."""
    mean, low, high = zip(*map(mean_interval, points), strict=True)
    known = any(map(math.isfinite, low))
    return Curve(
        name,
        kind[0],
        kind[2],
        where,
        *x[:2],
        "performance",
        "1",
        tuple(map(float, x[2])),
        mean,
        low if known else None,
        high if known else None,
    )


def _noise_curves(results: Results, test: str) -> Iterator[Curve]:
    """Accuracy against Es/N0 of every kind, the noiseless one left out; and on other channels."""
    for kind in results.kinds(test):
        found, where = results.accuracy(kind, test), scenario(test, kind[1])
        x = ("esn0", "dB", results.ladder[:0:-1])
        yield _curve("accuracy_noise", kind, where, x, found[:, :0:-1, -1].T)
        parts = results.parts(kind, test)
        for channel in parts[0].get("channels", {}):
            other = np.array([part["channels"][channel] for part in parts])
            yield _curve("accuracy_channel", kind, f"{where}/{channel}", x, other[:, :0:-1, -1].T)


def _uses_curves(results: Results, test: str) -> Iterator[Curve]:
    """Accuracy against channel uses, where a candidate was trained for several."""
    base = results.base(test)
    uses: dict[str, list[int]] = {}
    for name, count, regime in results.kinds(test):
        if regime == base and name not in BOUNDS:
            uses.setdefault(name, []).append(count)
    for name, counts in uses.items():
        if len(counts) < 2:
            continue
        for esn0_db in (esn0_db for esn0_db in USES_DB if esn0_db in results.ladder):
            points = [results.final((name, n, base), test, esn0_db) for n in sorted(counts)]
            where = f"{test}/{'noiseless' if math.isinf(esn0_db) else f'{esn0_db:g}dB'}"
            x = ("channel_uses", "uses", sorted(counts))
            yield _curve("accuracy_uses", (name, 0, base), where, x, points)


def _time_curves(results: Results, test: str) -> Iterator[Curve]:
    """Accuracy of the decision at each moment of a recording."""
    moments = [(step + 1) * duration_us(test) * 1e-6 / STEPS for step in range(STEPS)]
    for kind in results.kinds(test):
        if kind == results.reference(kind[0], test):
            for esn0_db in (esn0_db for esn0_db in TIME_DB if esn0_db in results.ladder):
                found = results.accuracy(kind, test)[:, results.ladder.index(esn0_db)]
                where = scenario(test, kind[1], esn0_db)
                yield _curve("accuracy_time", kind, where, ("time", "s", moments), found.T)


def _information_curves(results: Results, test: str) -> Iterator[Curve]:
    """Accuracy against the information that is sent, over the bottlenecks of S-VDIB."""
    rates = {
        kind: float(np.mean([part["information_rate"][-1] for part in results.parts(kind, test)]))
        for kind in results.kinds(test)
        if kind[0] == "s-vdib"
        and kind[1] == results.config.reference_uses
        and (kind[2] == results.base(test) or kind[2].startswith("beta"))
    }
    ordered = sorted(rates, key=lambda kind: rates[kind])
    if len(ordered) > 1 and RATES_DB in results.ladder:
        points = [results.final(kind, test, RATES_DB) for kind in ordered]
        where = scenario(test, results.config.reference_uses, RATES_DB)
        x = ("information_rate", "bit", [rates[kind] for kind in ordered])
        yield _curve("accuracy_information", ("s-vdib", 0, results.base(test)), where, x, points)


def _total_curves(results: Results, test: str) -> Iterator[Curve]:
    """Joules of a device, radio included, against the energy of a channel use, at S-VDIB's accuracy."""
    for esn0_db in (0.0, -4.0):
        own = results.reference("s-vdib", test)
        if esn0_db not in results.ladder or not results.models(own, test):
            continue
        names = dict.fromkeys(kind[0] for kind in results.kinds(test) if kind[0] not in BOUNDS)
        for chip, processor in PAIRS:
            for name in names:
                counts = shared_uses(results, ("s-vdib", name), test)
                uses = needed_uses(results, name, test, esn0_db, counts, EQUAL_WITHIN)
                if uses is None:
                    continue
                hardware = chip.name if name in SPIKING else processor.name
                spent = dict(device_joules(results, (name, uses, results.base(test)), test))[hardware].central
                yield Curve(
                    "total_energy",
                    name,
                    f"uses{uses}",
                    f"{test}/{esn0_db:g}dB/{chip.name} and {processor.name}",
                    "energy_per_use",
                    "J",
                    "energy",
                    "J",
                    PRICES_J,
                    tuple(spent + uses * price for price in PRICES_J),
                )
