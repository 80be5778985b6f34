"""Accuracy: against noise, channel uses and time; the paper's comparison; what happens elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from defiance.kpm import Curve
from defiance.report import drawing, tables, words
from defiance.report.coinference import pictures
from defiance.report.coinference.view import CHANNELS, NAMES, View, noise
from defiance.report.figures import Panel, Plot
from defiance.report.page import Section, section
from defiance.report.tables import Cell, Table

DRAWN = ("s-vdib", "s-vdib-sparse", "joint-binary", "uncoded-map", "separate-adapted", "device-label")
"""Who is drawn where all would hide each other; the tables have everyone."""

PAPER = ("s-vdib", "separate", "neurojscc")


def lines(curves: Sequence[Curve], names: Sequence[str]) -> tuple[drawing.Series, ...]:
    """The curves of some candidates, in that order; of all if none of them is there."""
    chosen = [curve for name in names for curve in curves if curve.candidate == name]
    return drawing.series(
        chosen or curves,
        lambda curve: words.candidate(curve.candidate, names=words.SHORT),
        lambda curve: curve.candidate,
    )


def _based(view: View, curves: Sequence[Curve]) -> list[Curve]:
    """Those of models that are compared with each other."""
    return [curve for curve in curves if curve.regime == view.base(curve.scenario.split("/")[0])]


def _noise_panels(view: View, names: Sequence[str]) -> tuple[Panel, ...]:
    found = []
    for test in view.tests:
        curves = view.curves("accuracy_noise").get(f"{test}/{view.reference}", [])
        if based := _based(view, curves):
            found.append(Panel(words.capital(NAMES.get(test, test)), pictures.accuracy(lines(based, names))))
    return tuple(found)


def accuracy(view: View) -> Section | None:
    """Who names how many recordings rightly at which noise, at equal uses and energy."""
    shown = _noise_panels(view, DRAWN)
    plot = Plot(
        "accuracy-noise",
        f"Accuracy against the energy of a channel use over N0, at {view.uses} per recording. Bands: 95 % "
        "intervals over seeds and folds.",
        "Accuracy of the candidates against Es/N0.",
        shown,
        width_in=4.6,
        across=2,
    )
    made = [_accuracy_table(view, test) for test in view.tests]
    text = (
        f"Everyone has the same {view.uses} and, on average, the same energy per use: pulses that are sent "
        "less often are stronger. Everyone was trained by one loop with one budget, at Es/N0 drawn anew for "
        "each recording."
    )
    return section("accuracy", "Who is right how often", [text], [plot if shown else None, *made])


def _accuracy_table(view: View, test: str) -> Table | None:
    noises = view.noises(test)
    head = ["candidate"]
    for part in noises:
        head += [noise(part), f"S-VDIB's gain {noise(part)}"]
    rows = []
    for name in view.candidates(test):
        cells: list[Cell] = []
        for part in noises:
            where = f"{test}/{view.reference}/{part}"
            gain = tables.value(view.row("spiking_gain", name, where))
            cells += [tables.value(view.row("performance", name, where)), gain]
        rows.append((tables.name(words.candidate(name)), *cells))
    caption = (
        f"{words.capital(NAMES.get(test, test))}: accuracy at {view.uses}, and what S-VDIB gains over each "
        "candidate, paired by seed, with 95 % intervals. The full map and no channel are bounds."
    )
    return tables.table(f"accuracy-{words.slug(test)}", caption, head, rows) if rows else None


def paper(view: View) -> Section | None:
    """S-VDIB against separate and joint coding, as in the paper."""
    curves = view.curves("accuracy_noise").get(f"{view.first}/{view.reference}", [])
    if len({curve.candidate for curve in curves} & set(PAPER)) < 2:
        return None
    plot = Plot(
        "paper",
        f"S-VDIB, separate source and channel coding, and joint spiking coding without a bottleneck, on "
        f"{NAMES.get(view.first, view.first)}, at {view.uses}.",
        "Accuracy of the three methods of the paper against Es/N0.",
        (Panel("The paper's comparison", pictures.accuracy(lines(_based(view, curves), PAPER))),),
        width_in=5.6,
        height_in=3.4,
    )
    text = (
        "Ke et al. (ICONS 2024) compare S-VDIB with separate source and channel coding followed by a "
        "classifier, and with joint source and channel coding. Architecture, uses, and rates of the paper "
        "are not known to us; these are our own."
    )
    return section("paper", "The paper's own comparison", [text], [plot])


def uses(view: View) -> Section | None:
    """Accuracy against channel uses."""
    found = [
        Panel(words.capital(noise(where.split("/")[1])), pictures.accuracy(lines(curves, DRAWN), log_x=True))
        for where, curves in view.curves("accuracy_uses", f"{view.first}/").items()
    ]
    plot = Plot(
        "accuracy-uses",
        f"Accuracy against channel uses per recording, on {NAMES.get(view.first, view.first)}; one model "
        "for each number of uses.",
        "Accuracy of the candidates against channel uses.",
        tuple(found),
        width_in=4.6,
        across=2,
    )
    return section("uses", "How many channel uses it takes", [], [plot if found else None])


def time(view: View) -> Section | None:
    """Accuracy against time: who can decide before the recording has ended."""
    found = [
        Panel(words.capital(noise(where.split("/")[-1])), pictures.accuracy(lines(curves, TIMED)))
        for where, curves in view.curves("accuracy_time", f"{view.first}/").items()
    ]
    plot = Plot(
        "accuracy-time",
        f"Accuracy of the decision at each moment of a recording, at {view.uses}. A code that waits for the "
        "end guesses until then.",
        "Accuracy of the candidates against time.",
        tuple(found),
        width_in=4.6,
        across=2,
    )
    rows = []
    for name in view.candidates(view.first):
        cells = [
            tables.value(view.row(metric, name, f"{view.first}/{view.reference}/{part}"))
            for part in ("noiseless", "0dB")
            for metric in ("anytime_gap_closed", "time_to_decision")
        ]
        rows.append((tables.name(words.candidate(name)), *cells))
    head = (
        "candidate",
        "gap closed after a third, without noise",
        "within a point of the end, without noise",
        f"gap closed after a third, {noise('0dB')}",
        f"within a point of the end, {noise('0dB')}",
    )
    caption = "How much of the final gap to chance is closed after a third, and when accuracy is final."
    table = tables.table("time", caption, head, rows) if rows else None
    return section("time", "When it can decide", [], [plot if found else None, table])


TIMED = ("s-vdib", "neurojscc", "joint-binary-bursts", "joint-binary", "device-label")


def robustness(view: View) -> Section | None:
    """Another Es/N0 than in training, other channels, other recordings."""
    blocks = [_mismatch_plot(view), _channel_plot(view), _generalisation_table(view)]
    return section("robustness", "Where nobody trained for it", [], blocks)


def _mismatch_plot(view: View) -> Plot | None:
    curves = view.curves("accuracy_noise").get(f"{view.first}/{view.reference}", [])
    base = view.base(view.first)
    found = []
    for name in dict.fromkeys(curve.candidate for curve in curves if curve.regime.startswith("at")):
        own = [c for c in curves if c.candidate == name and (c.regime == base or c.regime.startswith("at"))]
        found.append(Panel(words.candidate(name), pictures.accuracy(drawing.series(own, _training, _regime))))
    if not found:
        return None
    return Plot(
        "mismatch",
        "Models that were trained at any Es/N0, and at one alone, tested at others.",
        "Accuracy against Es/N0 of models trained at one Es/N0.",
        tuple(found),
        width_in=4.6,
        across=2,
    )


def _training(curve: Curve) -> str:
    return f"at {curve.regime[2:]}" if curve.regime.startswith("at") else "any Es/N0"


def _regime(curve: Curve) -> str:
    return curve.regime


def _channel_plot(view: View) -> Plot | None:
    found = []
    start = f"{view.first}/{view.reference}/"
    for where, curves in view.curves("accuracy_channel", start).items():
        name = where.removeprefix(start)
        based = _based(view, curves)
        if based:
            found.append(Panel(CHANNELS.get(name, name), pictures.accuracy(lines(based, DRAWN))))
    if not found:
        return None
    return Plot(
        "channels",
        "Codecs trained for the binary symmetric channel, on others at the same energy per use. Decoders "
        "take the probability of a one where decisions are soft.",
        "Accuracy of the candidates on channels that they were not trained for.",
        tuple(found),
        width_in=4.6,
        across=2,
    )


def _generalisation_table(view: View) -> Table | None:
    cases: tuple[tuple[str, Callable[[str], tuple[str, str, str]]], ...] = (
        ("trained on both, real", lambda part: ("performance", "nmnist", "mixed")),
        ("trained on simulated, real", lambda part: ("generalisation", "nmnist", "simulated")),
        ("trained on both, simulated", lambda part: ("performance", "nmnist-simulated", "mixed")),
        ("trained on real, simulated", lambda part: ("generalisation", "nmnist-simulated", "real")),
    )
    rows = []
    for name in view.candidates(view.first):
        for part in ("noiseless", "0dB"):
            cells = []
            for _, case in cases:
                metric, test, regime = case(part)
                where = f"{test}/{view.reference}/{part}"
                cells.append(tables.value(view.row(metric, name, where, regime=regime)))
            if cells[1] != tables.EMPTY or cells[3] != tables.EMPTY:
                rows.append((tables.name(f"{words.candidate(name)}, {noise(part)}"), *cells))
    caption = "Trained on one kind of recordings, tested on the other."
    return (
        tables.table("generalisation", caption, ("candidate", *(c[0] for c in cases)), rows) if rows else None
    )
