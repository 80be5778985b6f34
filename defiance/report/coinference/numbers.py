"""The few numbers at the top of a page on co-inference and in the terminal."""

from __future__ import annotations

import math

from defiance.report import words
from defiance.report.coinference.view import BOUNDS, NAMES, OWN, View, noise
from defiance.report.page import Headline


def headlines(view: View) -> tuple[Headline, ...]:
    """Four to six numbers that a reader should take away."""
    found = (_own(view), _best(view), _ratio(view), _crossover(view), _anytime(view), _latency(view))
    return tuple(headline for headline in found if headline is not None)


def _own(view: View) -> Headline | None:
    where = f"{view.first}/{view.reference}"
    rows = {
        part: row
        for part in view.noises(view.first)
        if (row := view.row("performance", OWN, f"{where}/{part}")) is not None
    }
    if not rows:
        return None
    part, first = next(iter(rows.items()))
    others = [f"{words.estimate(row)} {noise(other)}" for other, row in rows.items() if other != part]
    interval = words.interval(first.mean, first.ci_low, first.ci_high, first.unit)[1]
    detail = "; ".join(filter(None, [interval, *others, f"{NAMES.get(view.first, view.first)}, {view.uses}"]))
    value = words.number(first.mean, first.unit)
    return Headline(f"S-VDIB is right {noise(part)}", value, f"{detail}.", first.provenance)


def _best(view: View) -> Headline | None:
    where = f"{view.first}/{view.reference}/0dB"
    base = view.base(view.first)
    rows = [
        row for row in view.rows("performance", where) if row.regime == base and row.candidate not in BOUNDS
    ]
    if len(rows) < 2:
        return None
    best = max(rows, key=lambda row: row.mean)
    gain = view.row("spiking_gain", best.candidate, where)
    parts = [words.estimate(best)]
    if gain is not None:
        parts.append(f"S-VDIB's gain over it {words.estimate(gain)}")
    label = f"Most accurate {noise('0dB')}, bounds apart"
    return Headline(label, words.candidate(best.candidate), f"{'; '.join(parts)}.", best.provenance)


def _ratio(view: View) -> Headline | None:
    rows = view.rows("spiking_energy_ratio", f"{view.first}/{view.reference}")
    rows = [row for row in rows if row.candidate == view.rival and math.isfinite(row.mean)]
    if not rows:
        return None
    value = words.span([row.mean for row in rows], rows[0].unit)
    detail = "; ".join(f"{words.number(row.mean, row.unit)} on {row.node}" for row in rows)
    label = f"Device energy of S-VDIB over {words.candidate(view.rival)}, as accurate"
    return Headline(label, value, f"{words.capital(detail)}.", rows[0].provenance)


def _crossover(view: View) -> Headline | None:
    rows = view.rows("crossover_energy_per_use", f"{view.first}/0dB")
    rows = [row for row in rows if row.candidate == view.rival]
    if not rows:
        return None
    prices = [row.mean for row in rows if 0 < row.mean < math.inf]
    parts = []
    for row in rows:
        chips, _, side = row.node.partition(": ")
        price = f" {words.number(row.mean, row.unit)}" if row.mean in prices else ""
        parts.append(f"{side}{price} on {chips}")
    label = f"Radio price at which S-VDIB and {words.candidate(view.rival)} spend the same"
    value = words.span(prices, "J") if prices else "none"
    return Headline(label, value, f"{words.capital('; '.join(parts))}.", rows[0].provenance)


def _anytime(view: View) -> Headline | None:
    row = view.row("anytime_gap_closed", OWN, f"{view.first}/{view.reference}/noiseless")
    if row is None:
        return None
    detail = f"{words.estimate(row)} of S-VDIB's final gap to chance, without noise."
    return Headline(
        "Closed after a third of a recording", words.number(row.mean, "1"), detail, row.provenance
    )


def _latency(view: View) -> Headline | None:
    rows = view.rows("inference_latency", f"{view.first}/{view.reference}")
    rows = [row for row in rows if row.candidate == OWN]
    if not rows:
        return None
    detail = "; ".join(f"{words.number(row.mean, 's')} on {row.node}" for row in rows)
    value = words.span([row.mean for row in rows], "s")
    return Headline("Latency after a recording's end", value, f"{detail}.", rows[0].provenance)
