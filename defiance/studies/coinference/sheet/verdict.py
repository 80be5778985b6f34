"""The answer in words: where each method wins, and at which radio cost spikes do."""

from __future__ import annotations

import math

import numpy as np

from defiance.hardware import RADIOS
from defiance.kpm import mean_interval
from defiance.studies.coinference.settings import SPIKING, STEPS
from defiance.studies.coinference.sheet.costs import (
    PAIRS,
    energy_ratios,
    radio_joules,
    rival,
    time_to_decision_s,
)
from defiance.studies.coinference.sheet.results import BOUNDS, CHANCE, Array, Kind, Results

NAMES = {
    "nmnist": "real N-MNIST",
    "nmnist-simulated": "simulated N-MNIST",
    "motion": "moving digits",
    "digits": "the embedded digits",
}
SPOKEN_DB = (math.inf, 0.0, -4.0, -8.0)
FIFTH = 0.2


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
        _energy(results, test, own),
        _small(results, test, own),
        _radio(results, test, own),
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
    return [esn0_db for esn0_db in SPOKEN_DB if esn0_db in results.ladder]


def _noise(esn0_db: float) -> str:
    return "without noise" if math.isinf(esn0_db) else f"at {esn0_db:g} dB"


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


def _best(results: Results, test: str, kinds: list[Kind], esn0_db: float) -> Kind:
    return max(kinds, key=lambda kind: results.final(kind, test, esn0_db).mean())


def _headline(results: Results, test: str, own: Kind, others: list[Kind]) -> str:
    """Where spikes win at all: a difference counts if its interval excludes zero."""
    gains = [
        mean_interval(results.gains(own, _best(results, test, others, esn0_db), test, esn0_db))
        for esn0_db in _spoken(results)
    ]
    found = {"accuracy": _sign(*gains)}
    conventional = rival(results, own, test)
    if conventional is not None:
        ratios = dict(energy_ratios(results, own, conventional, test))
        cheaper = [chips for chips, ratio in ratios.items() if ratio.central < 1]
        if 0 < len(cheaper) < len(ratios):
            found[f"device energy in {len(cheaper)} of {len(ratios)} pairs of chips"] = 1
        else:
            found["device energy"] = 1 if cheaper else -1
        times = [_times_s(results, test, kind) for kind in (conventional, own)]
        shared = min(map(len, times))
        found["time to a decision"] = _sign(mean_interval(times[0][:shared] - times[1][:shared]))
    won, even, lost = ([words for words, sign in found.items() if sign == way] for way in (1, 0, -1))
    text = f"On {NAMES[test]} at {own[1]} channel uses, spikes win "
    text += f"on {' and '.join(won)}" if won else "nowhere"
    text += f", not on {' or '.join(lost)}" if lost and won else ""
    return text + (f"; no difference is shown in {' and '.join(even)}." if even else ".")


def _sign(*intervals: tuple[float, float, float]) -> int:
    """1 or -1 if all intervals (mean, low, high) lie on that side of zero, else 0; one seed has its mean."""
    lows = [low if math.isfinite(low) else mean for mean, low, _ in intervals]
    highs = [high if math.isfinite(high) else mean for mean, _, high in intervals]
    return int(min(lows) > 0) - int(max(highs) < 0)


def _times_s(results: Results, test: str, kind: Kind) -> Array:
    """When each model's decision without noise is within a point of its last, [models]."""
    found = results.accuracy(kind, test)[:, 0]
    return np.array([time_to_decision_s(one, test) for one in found])


def _levels(results: Results, test: str, own: Kind) -> str:
    listed = [
        f"{_share(mean_interval(results.final(own, test, esn0_db)))} {_noise(esn0_db)}"
        for esn0_db in _spoken(results)
    ]
    return f"S-VDIB is right in {_and(listed)}."


def _leaders(results: Results, test: str) -> str:
    """Who leads, at which Es/N0, and by how much over S-VDIB."""
    own = results.reference("s-vdib", test)
    led: dict[Kind, list[float]] = {}
    for esn0_db in _spoken(results):
        led.setdefault(_best(results, test, _compared(results, test), esn0_db), []).append(esn0_db)
    parts = []
    for best, levels in led.items():
        where = (
            "everywhere" if len(led) == 1 and len(levels) > 1 else _and([_noise(level) for level in levels])
        )
        share = _share(mean_interval(results.final(best, test, levels[0])))
        text = f"{best[0]} {where} ({share} {_noise(levels[0])}"
        if best != own:
            leads = [mean_interval(results.gains(best, own, test, level)) for level in levels]
            least, most = min(leads), max(leads)
            span = _points(least) if len(leads) == 1 else f"{_points(least)} to {_points(most)}"
            text += f"; {span} over S-VDIB"
        parts.append(text + ")")
    return f"Of all at equal uses and energy, the most accurate is {'; '.join(parts)}."


def _and(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _paper(results: Results, test: str, own: Kind) -> str:
    """The paper's own comparison."""
    parts = []
    for esn0_db in (esn0_db for esn0_db in _spoken(results) if math.isfinite(esn0_db)):
        gains = [
            f"{_points(mean_interval(found))} against {words}"
            for name, words in (("separate", "separate coding"), ("neurojscc", "joint spiking coding"))
            if (found := results.gains(own, results.reference(name, test), test, esn0_db)).size
        ]
        if gains:
            parts.append(f"{' and '.join(gains)} {_noise(esn0_db)}")
    return f"In the paper's own comparison S-VDIB gains {'; '.join(parts)}." if parts else ""


def _energy(results: Results, test: str, own: Kind) -> str:
    conventional = rival(results, own, test)
    if conventional is None:
        return "No conventional candidate is as accurate as S-VDIB, so no device halves can be compared."
    ratios = dict(energy_ratios(results, own, conventional, test))
    parts = [
        f"{ratio.central:.2g} times ({ratio.low:.2g} to {ratio.high:.2g}) on {chips}"
        for chips, ratio in ratios.items()
    ]
    within = sum(ratio.central <= FIFTH for ratio in ratios.values())
    silent = mean_interval([part["silent_share"] for part in results.parts(own, test)])[0]
    return (
        f"Against {conventional[0]}, the least conventional device half of equal accuracy, S-VDIB's takes "
        f"{', '.join(parts)} the joules: at most a fifth in {within} of {len(parts)}; "
        f"{100 * silent:.1f} % of its hidden activations are zero."
    )


def _small(results: Results, test: str, own: Kind) -> str:
    """What half of the neurons save, and what they cost."""
    small = results.reference("s-vdib-small", test)
    conventional = rival(results, small, test) if results.models(small, test) else None
    if conventional is None:
        return ""
    lost = _points(mean_interval(results.gains(small, own, test, math.inf)))
    ratios = energy_ratios(results, small, conventional, test)
    parts = [f"{ratio.central:.2g} times on {chips}" for chips, ratio in ratios]
    return (
        f"With half of the neurons it changes by {lost} and takes, against {conventional[0]}, "
        f"{', '.join(parts)}."
    )


def _radio(results: Results, test: str, own: Kind) -> str:
    """On which radios a spiking device spends less, headers included."""
    conventional = rival(results, own, test)
    if conventional is None:
        return ""
    parts = []
    for chip, processor in PAIRS:
        won: dict[bool, list[str]] = {True: [], False: []}
        for streamed in won:
            for radio in RADIOS.values():
                spent = radio_joules(results, own, test, chip.name, radio, streamed=streamed)
                other = radio_joules(results, conventional, test, processor.name, radio, streamed=False)
                won[streamed] += [radio.name] if spent < other else []
        burst, steps = _listed(won[False]), _listed(won[True])
        if burst == steps:
            parts.append(f"on {burst} with {chip.name} against {processor.name}")
        else:
            parts.append(
                f"on {burst} in one burst, on {steps} if every step is sent, with {chip.name} against "
                f"{processor.name}"
            )
    return f"Radio and headers included, its device spends less {'; '.join(parts)}."


def _listed(names: list[str]) -> str:
    return "every radio" if len(names) == len(RADIOS) else " and ".join(names) or "no radio"


def _online(results: Results, test: str, own: Kind) -> str:
    found = results.accuracy(own, test)[:, 0] - CHANCE
    if not (found[:, -1] > 0).all():
        return ""
    closed = mean_interval(found[:, STEPS // 3 - 1] / found[:, -1])
    when_s = float(_times_s(results, test, own).mean())
    text = f"After a third of a recording {_share(closed)} of S-VDIB's final gap to chance is closed"
    return f"{text}; its decision is within a point of the last after {when_s:.3g} s."


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
