"""The answer in words: where each method wins, and at which radio cost spikes do."""

from __future__ import annotations

import math

from defiance.hardware import RADIOS
from defiance.kpm import format_quantity, mean_interval
from defiance.studies.coinference.settings import SPIKING, STEPS
from defiance.studies.coinference.sheet.costs import (
    EQUAL_WITHIN,
    PAIRS,
    crossovers,
    device_joules,
    time_to_decision_s,
)
from defiance.studies.coinference.sheet.results import BOUNDS, CHANCE, Kind, Results

NAMES = {
    "nmnist": "real N-MNIST",
    "nmnist-simulated": "simulated N-MNIST",
    "motion": "moving digits",
    "digits": "the embedded digits",
}
SPOKEN_DB = (math.inf, 0.0, -4.0, -8.0)
FIFTH = 0.2
EQUAL_DB = (math.inf, 0.0, -4.0)
"""Where two candidates have to be equally accurate before their devices' energies are compared."""


def verdict(results: Results) -> str:
    """The answer in words, of the first test recordings; the others are compared at the end."""
    test = results.config.data[0]
    own = results.reference("s-vdib", test)
    others = [kind for kind in _compared(results, test) if kind[0] not in SPIKING]
    if not results.models(own, test) or not others:
        return _only_accuracy(results, test)
    sentences = [
        _headline(results, test, own, others),
        _levels(results, test, own),
        _leaders(results, test),
        _paper(results, test, own),
        _energy(results, test, own, others),
        _small(results, test, own, others),
        _crossovers(results, test, own, others),
        _online(results, test, own),
        _elsewhere(results, test),
    ]
    return " ".join(filter(None, sentences))


def _compared(results: Results, test: str) -> list[Kind]:
    """Everyone at the reference uses, bounds left out."""
    return [
        kind
        for kind in results.kinds(test)
        if kind == results.reference(kind[0], test) and kind[0] not in BOUNDS
    ]


def _spoken(results: Results) -> list[float]:
    return [ebn0_db for ebn0_db in SPOKEN_DB if ebn0_db in results.ladder]


def _noise(ebn0_db: float) -> str:
    return "without noise" if math.isinf(ebn0_db) else f"at {ebn0_db:g} dB"


def _share(interval: tuple[float, float, float]) -> str:
    """`97.1 % [96.5, 97.7]`."""
    mean, low, high = interval
    ends = f" [{100 * low:.1f}, {100 * high:.1f}]" if math.isfinite(low) else ""
    return f"{100 * mean:.1f} %{ends}"


def _points(interval: tuple[float, float, float]) -> str:
    """`+1.2 points [0.3, 2.1]`."""
    mean, low, high = interval
    ends = f" [{100 * low:+.1f}, {100 * high:+.1f}]" if math.isfinite(low) else ""
    return f"{100 * mean:+.1f} points{ends}"


def _only_accuracy(results: Results, test: str) -> str:
    listed = [
        f"{kind[0]} {_share(mean_interval(results.final(kind, test, math.inf)))}"
        for kind in results.kinds(test)
    ]
    return f"Accuracy on {NAMES[test]} without noise: {', '.join(listed)}."


def _best(results: Results, test: str, kinds: list[Kind], ebn0_db: float) -> Kind:
    return max(kinds, key=lambda kind: results.final(kind, test, ebn0_db).mean())


def _equal(results: Results, test: str, own: Kind, others: list[Kind]) -> Kind | None:
    """The conventional candidate of least device work that is nowhere less accurate than a spiking one."""
    ladder = [ebn0_db for ebn0_db in EQUAL_DB if ebn0_db in results.ladder]

    def reaches(kind: Kind, ebn0_db: float) -> bool:
        target = results.final(own, test, ebn0_db).mean() - EQUAL_WITHIN
        return bool(results.final(kind, test, ebn0_db).mean() >= target)

    equal = [kind for kind in others if all(reaches(kind, ebn0_db) for ebn0_db in ladder)]
    return min(equal, key=lambda kind: results.counted[kind[:2]]["device_operations"], default=None)


def _headline(results: Results, test: str, own: Kind, others: list[Kind]) -> str:
    """Where spikes win at all."""
    wins: list[str] = []
    losses: list[str] = []
    gains = [
        mean_interval(results.gains(own, _best(results, test, others, ebn0_db), test, ebn0_db))
        for ebn0_db in _spoken(results)
    ]
    (wins if all(gain[0] > 0 for gain in gains) else losses).append("accuracy")
    rival = _equal(results, test, own, others)
    if rival is not None:
        ratios = _ratios(results, test, own, rival)
        cheaper = [chips for chips, ratio in ratios.items() if ratio[0] < 1]
        if len(cheaper) == len(ratios):
            wins.append("device energy")
        elif cheaper:
            wins.append(f"device energy in {len(cheaper)} of {len(ratios)} pairs of chips")
        else:
            losses.append("device energy")
        times = [_time_s(results, test, kind) for kind in (own, rival)]
        (wins if times[0] < times[1] else losses).append("time to a decision")
    won = f"win on {' and '.join(wins)}" if wins else "win nowhere"
    lost = f", not on {' or '.join(losses)}" if losses and wins else ""
    return f"On {NAMES[test]} at {own[1]} channel uses, spikes {won}{lost}."


def _time_s(results: Results, test: str, kind: Kind) -> float:
    found = results.accuracy(kind, test)[:, 0]
    return float(mean_interval([time_to_decision_s(one, test) for one in found])[0])


def _levels(results: Results, test: str, own: Kind) -> str:
    listed = [
        f"{_share(mean_interval(results.final(own, test, ebn0_db)))} {_noise(ebn0_db)}"
        for ebn0_db in _spoken(results)
    ]
    return f"S-VDIB is right in {', '.join(listed)}."


def _leaders(results: Results, test: str) -> str:
    """Who leads at each Eb/N0, and by how much over S-VDIB."""
    parts = []
    own = results.reference("s-vdib", test)
    for ebn0_db in _spoken(results):
        best = _best(results, test, _compared(results, test), ebn0_db)
        lead = mean_interval(results.gains(best, own, test, ebn0_db))
        share = _share(mean_interval(results.final(best, test, ebn0_db)))
        ahead = "" if best == own else f", {_points(lead)} over S-VDIB"
        parts.append(f"{_noise(ebn0_db)} {best[0]} ({share}{ahead})")
    return f"Of all at equal uses and energy, the most accurate is {'; '.join(parts)}."


def _paper(results: Results, test: str, own: Kind) -> str:
    """The paper's own comparison."""
    parts = []
    for ebn0_db in (ebn0_db for ebn0_db in _spoken(results) if math.isfinite(ebn0_db)):
        gains = [
            f"{_points(mean_interval(found))} against {words}"
            for name, words in (("separate", "separate coding"), ("neurojscc", "joint spiking coding"))
            if (found := results.gains(own, results.reference(name, test), test, ebn0_db)).size
        ]
        if gains:
            parts.append(f"{' and '.join(gains)} {_noise(ebn0_db)}")
    return f"In the paper's own comparison S-VDIB gains {'; '.join(parts)}." if parts else ""


def _ratios(results: Results, test: str, own: Kind, rival: Kind) -> dict[str, tuple[float, float, float]]:
    """Energy of S-VDIB's device half over the rival's, by pair of chips: central, low, high."""
    spiking, other = dict(device_joules(results, own, test)), dict(device_joules(results, rival, test))
    found = {}
    for chip, processor in PAIRS:
        ratio = spiking[chip.name] / other[processor.name]
        found[f"{chip.name} against {processor.name}"] = (ratio.central, ratio.low, ratio.high)
    return found


def _energy(results: Results, test: str, own: Kind, others: list[Kind]) -> str:
    rival = _equal(results, test, own, others)
    if rival is None:
        return "No conventional candidate is as accurate as S-VDIB, so no device halves can be compared."
    parts = [
        f"{ratio[0]:.2g} times ({ratio[1]:.2g} to {ratio[2]:.2g}) on {chips}"
        for chips, ratio in _ratios(results, test, own, rival).items()
    ]
    within = sum(ratio[0] <= FIFTH for ratio in _ratios(results, test, own, rival).values())
    silent = mean_interval([part["silent_share"] for part in results.parts(own, test)])[0]
    return (
        f"Against {rival[0]}, the least conventional device half of equal accuracy, S-VDIB's takes "
        f"{', '.join(parts)} the joules: at most a fifth in {within} of {len(parts)}; "
        f"{100 * silent:.1f} % of its hidden activations are zero."
    )


def _small(results: Results, test: str, own: Kind, others: list[Kind]) -> str:
    """What half of the neurons save, and what they cost."""
    small = results.reference("s-vdib-small", test)
    rival = _equal(results, test, small, others) if results.models(small, test) else None
    if rival is None:
        return ""
    lost = _points(mean_interval(results.gains(small, own, test, math.inf)))
    parts = [
        f"{ratio[0]:.2g} times on {chips}" for chips, ratio in _ratios(results, test, small, rival).items()
    ]
    return f"With half of the neurons it changes by {lost} and takes, against {rival[0]}, {', '.join(parts)}."


def _crossovers(results: Results, test: str, own: Kind, others: list[Kind]) -> str:
    """At which price of a channel use spikes win, and on which radios."""
    rival = _equal(results, test, own, others)
    if rival is None or 0.0 not in results.ladder:
        return ""
    parts = []
    for chip, processor, found in crossovers(results, rival[0], test, 0.0):
        if math.isinf(found.joules_per_use) or found.joules_per_use == 0:
            text = f"{found.spikes_win}"
        else:
            won = [
                radio.name
                for radio in RADIOS.values()
                if (radio.tx_joules_per_bit < found.joules_per_use) == (found.spikes_win == "below")
            ]
            radios = f" ({', '.join(won)})" if won else " (none of the radios here)"
            text = f"{found.spikes_win} {format_quantity(found.joules_per_use, 'J')} per channel use{radios}"
        uses = f"{found.spiking_uses} against {found.other_uses} uses"
        parts.append(f"on {chip.name} against {processor.name} {text}, {uses}")
    return f"Radio included, spikes spend less {'; '.join(parts)}." if parts else ""


def _online(results: Results, test: str, own: Kind) -> str:
    found = results.accuracy(own, test)[:, 0] - CHANCE
    if not (found[:, -1] > 0).all():
        return ""
    closed = mean_interval(found[:, STEPS // 3 - 1] / found[:, -1])
    text = f"After a third of a recording {_share(closed)} of S-VDIB's final gap to chance is closed"
    return f"{text}; its decision is within a point of the last after {_time_s(results, test, own):.3g} s."


def _elsewhere(results: Results, test: str) -> str:
    """S-VDIB and the most accurate on the other recordings."""
    parts = []
    for other in results.config.data[1:]:
        own = results.reference("s-vdib", other)
        if results.models(own, other) and 0.0 in results.ladder:
            best = _best(results, other, _compared(results, other), 0.0)
            share = _share(mean_interval(results.final(own, other, 0.0)))
            lead = mean_interval(results.gains(best, own, other, 0.0))
            ahead = "nobody is ahead" if best == own else f"{best[0]} {_points(lead)}"
            parts.append(f"on {NAMES[other]} {share} ({ahead})")
    return f"At 0 dB S-VDIB reaches {', '.join(parts)}." if parts else ""
