"""What a recording costs on the device, in the air and at the edge; information; the six KPMs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from defiance.kpm import Row
from defiance.report import tables, words
from defiance.report.coinference import pictures
from defiance.report.coinference.accuracy import lines
from defiance.report.coinference.view import BOUNDS, NAMES, OWN, View, noise
from defiance.report.figures import Panel, Plot
from defiance.report.page import Section, section
from defiance.report.tables import Cell, Table

SPENT = (
    "s-vdib",
    "s-vdib-sparse",
    "s-vdib-small",
    "joint-binary",
    "joint-binary-small",
    "uncoded-map",
    "device-label",
)


def energy(view: View) -> Section | None:
    """Joules on every node, and at which price of a channel use spikes win."""
    where = f"{view.first}/{view.reference}"
    nodes = list(dict.fromkeys(row.node for row in view.rows("energy", where)))
    devices = [node for node in nodes if node.startswith("device")]
    others = [node for node in nodes if not node.startswith("device")]
    blocks = [
        _node_table(view, "device-energy", "The device half", devices),
        _node_table(view, "air-energy", "In the air and at the edge", others),
        _ratio_table(view),
        *_total_plots(view),
        _crossover_table(view),
    ]
    text = (
        "Joules per recording, modelled: counted operations, spikes and bits times the cited constants; in "
        "brackets the range of these constants, not of the measurement. Pairs of chips compare arithmetic of "
        "one process with the same, and one chip with another."
    )
    return section("energy", "What it spends", [text], blocks)


def _ranged(row: Row | None, low: Row | None, high: Row | None) -> Cell:
    """A modelled value with the range of its constants."""
    if row is None or low is None or high is None or not low.mean <= row.mean <= high.mean:
        return tables.value(row)
    return tables.value(replace(row, ci_low=low.mean, ci_high=high.mean))


def _node_table(view: View, name: str, title: str, nodes: Sequence[str]) -> Table | None:
    where = f"{view.first}/{view.reference}"
    rows = []
    for candidate in view.candidates(view.first):
        cells = [_ranged(*(view.row(metric, candidate, where, node) for metric in ENERGY)) for node in nodes]
        if any(cell != tables.EMPTY for cell in cells):
            rows.append((tables.name(words.candidate(candidate)), *cells))
    head = ("candidate", *(words.capital(node) for node in nodes))
    return tables.table(name, f"{title}, at {view.uses}.", head, rows) if rows else None


ENERGY = ("energy", "energy_low", "energy_high")
RATIO = ("spiking_energy_ratio", "spiking_energy_ratio_low", "spiking_energy_ratio_high")


def _ratio_table(view: View) -> Table | None:
    where = f"{view.first}/{view.reference}"
    nodes = list(dict.fromkeys(row.node for row in view.rows(RATIO[0], where)))
    rows = []
    for candidate in view.candidates(view.first):
        cells = [_ranged(*(view.row(metric, candidate, where, node) for metric in RATIO)) for node in nodes]
        if any(cell != tables.EMPTY for cell in cells):
            accuracy = tables.value(view.row("performance", candidate, f"{where}/noiseless"))
            rows.append((tables.name(words.candidate(candidate)), accuracy, *cells))
    caption = (
        "Energy of S-VDIB's device half over that of each conventional candidate's, without radio, beside "
        "the candidate's accuracy without noise. 0.2 times is a fifth."
    )
    head = ("candidate", "accuracy without noise", *nodes)
    return tables.table("energy-ratio", caption, head, rows) if rows else None


def _total_plots(view: View) -> list[Plot | None]:
    radios = [curve for found in view.curves("radio").values() for curve in found]
    by_noise: dict[str, list[Panel]] = {}
    for where, curves in view.curves("total_energy", f"{view.first}/").items():
        _, level, *chips = where.split("/")
        panel = Panel("/".join(chips), pictures.total_energy(lines(curves, SPENT), radios))
        by_noise.setdefault(level, []).append(panel)
    return [
        Plot(
            f"total-energy-{words.slug(level)}",
            f"Energy of a device for a recording, radio included, against that of a use, {noise(level)}: "
            "each candidate at the fewest uses with which it is as accurate as S-VDIB, to a point. Lower is "
            "better; verticals are radios.",
            "Device energy with radio against the radio's energy per channel use.",
            tuple(found),
            width_in=4.6,
            across=2,
            margins_in=(0.86, 0.08, 0.54, 0.34),
        )
        for level, found in by_noise.items()
    ]


def _crossover_table(view: View) -> Table | None:
    rows = []
    for level in ("0dB", "-4dB"):
        for row in view.rows("crossover_energy_per_use", f"{view.first}/{level}"):
            chips, _, side = row.node.partition(": ")
            cell = replace(tables.value(row), remark=side)
            rows.append(
                (
                    tables.name(f"{words.candidate(row.candidate)}, {noise(level)}"),
                    tables.prose(chips),
                    cell,
                )
            )
    caption = "The energy of a channel use at which S-VDIB and a candidate of equal accuracy spend the same."
    head = ("candidate", "chips", "crossover per channel use")
    return tables.table("crossover", caption, head, rows) if rows else None


def information(view: View) -> Section | None:
    """What the bottleneck does: accuracy against the information that is sent."""
    found = [
        Panel(
            words.capital(noise(where.split("/")[-1])), pictures.accuracy(lines(curves, (OWN,)), log_x=True)
        )
        for where, curves in view.curves("accuracy_information", f"{view.first}/").items()
    ]
    plot = Plot(
        "information",
        "Accuracy of S-VDIB against the upper bound of the directed information from recording to edge, for "
        f"several prices of a bit (the bottleneck), on {NAMES.get(view.first, view.first)}.",
        "Accuracy against information rate.",
        tuple(found),
        width_in=4.6,
        across=2,
    )
    return section("information", "What the bottleneck does", [], [plot if found else None])


def complexity(view: View) -> Section | None:
    """The KPMs of every candidate."""
    where, training = f"{view.first}/{view.reference}", _training_scenario(view)
    head = (
        "candidate",
        "training operations",
        "CPU time of training",
        "operations, device",
        "operations, edge",
        "parameters, device",
        "parameters, edge",
        "silent activations",
    )
    rows = []
    for name in view.candidates(view.first):
        cells = [
            tables.value(view.row("training_operations", name, training)),
            tables.value(view.row("cpu_time", name, training)),
            *(
                tables.value(view.row(metric, name, where, half))
                for metric in ("inference_operations", "inference_parameters")
                for half in ("device", "edge")
            ),
            tables.value(view.row("silent_share", name, where)),
        ]
        rows.append((tables.name(words.candidate(name)), *cells))
    caption = f"Complexity of training and of one recording, at {view.uses}."
    table = tables.table("complexity", caption, head, rows) if rows else None
    return section("complexity", "Complexity, bits and latency", [], [table, _air_table(view, where)])


def _training_scenario(view: View) -> str:
    data = "nmnist" if view.first == "nmnist-simulated" else view.first
    return f"{data}/{view.reference}"


def _air_table(view: View, where: str) -> Table | None:
    bits = list(dict.fromkeys(row.node for row in view.rows("communication_bits", where)))
    times = list(dict.fromkeys(row.node for row in view.rows("inference_latency", where)))
    rows = []
    for name in view.candidates(view.first):
        if name in BOUNDS:
            continue
        cells = [
            *(tables.value(view.row("communication_bits", name, where, node)) for node in bits),
            *(tables.value(view.row("inference_latency", name, where, node)) for node in times),
        ]
        rows.append((tables.name(words.candidate(name)), *cells))
    head = ("candidate", *(f"bits, {node}" for node in bits), *(f"latency, {node}" for node in times))
    caption = (
        "Bits on air for a recording, headers included (streamed: a packet per step or burst, else one), "
        "and the time from the recording's end to the decision."
    )
    return tables.table("air", caption, head, rows) if rows else None
