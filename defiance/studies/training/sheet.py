"""The sheet of the study, folded from its parts: what effects do and cost, and where formulas hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from defiance.hardware import SERVER_CPU, STATION_SOC
from defiance.kpm import (
    CONVERGED_WITHIN,
    METRICS,
    Curve,
    Row,
    mean_interval,
    operations_until_converged,
    paired_interval,
)
from defiance.studies.training.effects import BASE, Name
from defiance.studies.training.experiments import AGAIN, GATHERED, KEPT
from defiance.studies.training.settings import Config, Function

Part = Mapping[str, Any]
ALONE = BASE[0]
CENTRAL: Name = (ALONE, "central")
RUSH_HOUR = "rush hour"
SHOWN: tuple[Name, ...] = (
    BASE,
    *((ALONE, regime) for regime in ("local", "gossip", "central", "signs")),
)
"""Whose learning is drawn."""
TRAFFIC: tuple[Name, ...] = (
    BASE, (ALONE, "int8"), (ALONE, "signs"), (ALONE, "top 2 %"),
    ("three of seven", "fedavg"), ("lossy links", "fedavg"), ("come and go", "fedavg"),
)  # fmt: skip
"""Whose traffic is held against the formula's."""
CODES = ("int8", "1 bit up", "signs", "top 2 %")
WANTED = 10.0
"""Times fewer bits that compression is to bring."""


@dataclass(frozen=True)
class Learned:
    """All that was found out about one function.

    Attributes:
        scenario: the sheet's name.
        parts: of every effect, one per seed.
        samples: of all stations, one number per seed.
        sample_bits: of one that is sent as it was measured.
        nodes: stations.
        weights: numbers of a model.
        rounds: of most effects.
        round_operations: of one station in a round.
        joules_per_bit: of the stations' link.
    """

    scenario: str
    parts: Mapping[Name, Sequence[Part]]
    samples: Sequence[int]
    sample_bits: int
    nodes: int
    weights: int
    rounds: int
    round_operations: float
    joules_per_bit: float

    def targets(self) -> list[float]:
        """What FedAvg on the cells' own data comes to within 1 %, in the loss by which rounds are chosen."""
        return [(1 + CONVERGED_WITHIN) * min(part["lost"]) for part in self.parts[BASE]]


def rows_of(found: Mapping[Function, Learned], rush_hour: Sequence[Part], config: Config) -> list[Row]:
    """All rows."""
    rows = []
    for learned in found.values():
        for name in learned.parts:
            rows += _effect(name, learned)
        rows += _break_even(learned, config)
    return rows + (_rush_hour(rush_hour, found["handover"].scenario) if rush_hour else [])


def _row(
    name: Name, scenario: str, metric: str, samples: Sequence[float], provenance: str, node: str = "network"
) -> Row:
    unit = METRICS[metric].unit or "1"
    return Row(*name, scenario, node, metric, unit, *mean_interval(samples), len(samples), provenance)


def _until(part: Part, target: float, spent: Sequence[float]) -> float:
    """What was spent when the loss first came to the target; inf: never."""
    reached = (so_far for so_far, lost in zip(spent, part["lost"], strict=True) if lost <= target)
    return next(reached, math.inf)


def _effect(name: Name, learned: Learned) -> list[Row]:
    parts, base = learned.parts[name], learned.parts[BASE]
    pairs = list(zip(parts, learned.targets(), strict=True))

    def row(metric: str, samples: Sequence[float], provenance: str, node: str = "network") -> Row:
        return _row(name, learned.scenario, metric, samples, provenance, node)

    def of(column: str) -> list[float]:
        return [part[column] for part in parts]

    computer = "data centre" if name == CENTRAL else "stations"
    gain = paired_interval(of("performance"), [part["performance"] for part in base])
    settled = [operations_until_converged(part["operations"], part["lost"], "lower") for part in parts]
    return [
        row("performance", of("performance"), "measured"),
        row("generalisation", of("generalisation"), "measured"),
        Row(*name, learned.scenario, "network", "performance_gain", "1", *gain, len(parts), "measured"),
        row("training_operations", settled, "counted"),
        row("communication_bits", [part["bits"][-1] for part in parts], "counted"),
        row("bits_to_target", [_until(part, target, part["bits"]) for part, target in pairs], "counted"),
        row("training_time", [part["ended_s"][-1] for part in parts], "modelled"),
        row("time_to_target", [_until(part, target, part["ended_s"]) for part, target in pairs], "modelled"),
        row("energy", [part["compute_j"][-1] for part in parts], "modelled", computer),
        row("energy", of("links_j"), "modelled", "links"),
        row("energy", [part["compute_j"][-1] + part["links_j"] for part in parts], "modelled"),
        row("cpu_time", of("cpu_s"), "measured", "this machine"),
    ]


def _break_even(learned: Learned, config: Config) -> list[Row]:
    """Rounds after which federated training has sent more than central training would: formula, meter."""
    raw_bits = [count * learned.sample_bits for count in learned.samples]
    foretold = [bits / (2 * learned.nodes * 32 * learned.weights) for bits in raw_bits]
    central_bits = [part["bits"][-1] for part in learned.parts[CENTRAL]]
    rows = [_row(("formula", "traffic"), learned.scenario, "break_even_rounds", foretold, "modelled")]
    for name in TRAFFIC:
        parts = learned.parts[name]
        met = [
            most * (len(part["bits"]) - 1) / part["bits"][-1]
            for part, most in zip(parts, central_bits, strict=True)
        ]
        rows.append(_row(name, learned.scenario, "break_even_rounds", met, "counted"))
    computed_j = learned.rounds * learned.nodes * learned.round_operations
    sent_j = 2 * learned.rounds * learned.nodes * 32 * learned.weights * learned.joules_per_bit
    federated_j = computed_j * STATION_SOC.joules_per_operation + sent_j
    central_j = [
        computed_j * config.pue * SERVER_CPU.joules_per_operation + bits * learned.joules_per_bit
        for bits in raw_bits
    ]
    return [
        *rows,
        _row(("formula", "fedavg"), learned.scenario, "energy", [federated_j] * len(raw_bits), "modelled"),
        _row(("formula", "central"), learned.scenario, "energy", central_j, "modelled"),
    ]


def _rush_hour(parts: Sequence[Part], scenario: str) -> list[Row]:
    """What re-training brings when load and routes have changed, against the model that stays."""
    kept = [part[KEPT]["performance"] for part in parts]
    rows = []
    for regime in ("before", KEPT, AGAIN, GATHERED):
        own = [part[regime] for part in parts]
        name = (RUSH_HOUR, regime)

        def row(metric: str, samples: Sequence[float], provenance: str, name: Name = name) -> Row:
            return _row(name, scenario, metric, samples, provenance)

        reached = [one["performance"] for one in own]
        gain = paired_interval(reached, kept)
        rows += [
            row("performance", reached, "measured"),
            row("generalisation", [one["generalisation"] for one in own], "measured"),
            Row(*name, scenario, "network", "performance_gain", "1", *gain, len(parts), "measured"),
        ]
        if "bits" in own[0]:
            rows += [
                row("communication_bits", [one["bits"][-1] for one in own], "counted"),
                row("training_time", [one["ended_s"][-1] for one in own], "modelled"),
                row("energy", [one["compute_j"][-1] + one["links_j"] for one in own], "modelled"),
            ]
    return rows


def curves_of(found: Mapping[Function, Learned]) -> list[Curve]:
    """How a few regimes learn, and what they send, round by round; of the first seed."""
    curves = []
    for learned in found.values():
        for name in SHOWN:
            part = learned.parts[name][0]
            reached = tuple(1 - lost for lost in part["lost"])
            joules = [
                computed + bits * learned.joules_per_bit
                for computed, bits in zip(part["compute_j"], part["bits"], strict=True)
            ]
            for metric, unit, spent in (
                ("energy", "J", joules),
                ("communication_bits", "bit", part["bits"]),
                ("training_time", "s", part["ended_s"]),
            ):
                curves.append(
                    Curve("learning", *name, learned.scenario, metric, unit, "validation performance", "1",
                          tuple(spent), reached)
                )  # fmt: skip
        rounds = tuple(float(i) for i in range(learned.rounds + 1))
        per_round = 2 * learned.nodes * 32 * learned.weights
        lines: dict[Name, Sequence[float]] = {
            ("formula", "fedavg"): [per_round * i for i in rounds],
            ("formula", "raw data"): [learned.samples[0] * learned.sample_bits for _ in rounds],
        }
        lines |= {name: learned.parts[name][0]["bits"][: len(rounds)] for name in TRAFFIC}
        for name, bits in lines.items():
            curves.append(
                Curve("traffic", *name, learned.scenario, "rounds", "1", "communication_bits", "bit",
                      rounds, tuple(bits))
            )  # fmt: skip
    return curves


# --- in words -----------------------------------------------------------------------------------------------


def verdict(rows: Sequence[Row], found: Mapping[Function, Learned]) -> str:
    """What is resolved, function by function: who wins, what hurts, whether compression keeps its promise."""
    told = []
    for function, learned in found.items():
        here = [row for row in rows if row.scenario == learned.scenario and row.candidate != RUSH_HOUR]
        told.append(f"{FUNCTION_NAMES[function].capitalize()}: {_function(here, learned)}")
    return " ".join([_summary(rows, found), *told, *_drift_in_words(rows)])


def _summary(rows: Sequence[Row], found: Mapping[Function, Learned]) -> str:
    """What keeping data at the stations costs against gathering them, and what codes save."""
    gains = [row for row in rows if row.metric == "performance_gain"]
    ahead = sum(row.ci_low > 0 for row in gains if (row.candidate, row.regime) == CENTRAL)
    ratios = [_compressed(rows, learned.scenario)[1] for learned in found.values()]
    kept = sorted(ratio for ratio in ratios if ratio > 0)
    times = " to ".join(dict.fromkeys(f"{ratio:.0f}" for ratio in (kept[:1] + kept[-1:])))
    saved = (
        f"with {times} times fewer bits a code reaches FedAvg's target in {len(kept)}"
        if kept
        else "no code reaches its target in any"
    )
    return f"Gathering all samples beats FedAvg in {ahead} of {len(found)} functions; {saved}."


FUNCTION_NAMES = {"handover": "handover", "beams": "beams", "csi": "channel feedback"}


def _function(rows: Sequence[Row], learned: Learned) -> str:
    by_name = {(row.candidate, row.regime, row.metric): row for row in rows if row.node == "network"}

    def points(name: Name) -> str:
        row = by_name[(*name, "performance_gain")]
        return f"{100 * row.mean:+.1f} [{100 * row.ci_low:+.1f}, {100 * row.ci_high:+.1f}]"

    def listed(chosen: Callable[[Row], bool]) -> list[Name]:
        gains = [row for row in rows if row.metric == "performance_gain" and chosen(row)]
        return [(row.candidate, row.regime) for row in sorted(gains, key=lambda row: row.mean)]

    worse, better = listed(lambda row: row.ci_high < 0), listed(lambda row: row.ci_low > 0)
    same = sum(row.metric == "performance_gain" for row in rows) - len(worse) - len(better) - 1
    base = by_name[(*BASE, "performance")].mean
    sentences = [
        f"FedAvg on the cells' own data reaches {100 * base:.1f} %",
        f"of {len(learned.parts) - 1} changes {len(better)} help, {len(worse)} hurt, {same} are not resolved",
    ]
    for which, names in (("most helps", better[-1:]), ("most hurts", worse[:1])):
        for candidate, regime in names:
            sentences.append(f"{which} {regime} ({candidate}: {points((candidate, regime))} points)")
    return "; ".join(sentences) + f". {_compression(rows, learned.scenario)}"


def _compressed(rows: Sequence[Row], scenario: str) -> tuple[str, float]:
    """The code that reaches FedAvg's target in every seed with most times fewer bits; 0: none does."""
    spent = {
        row.regime: row.mean
        for row in rows
        if (row.candidate, row.scenario, row.metric) == (ALONE, scenario, "bits_to_target")
    }
    ratios = {code: spent[BASE[1]] / spent[code] if 0 < spent[code] < math.inf else 0.0 for code in CODES}
    best = max(CODES, key=lambda code: ratios[code])
    return best, ratios[best]


def _compression(rows: Sequence[Row], scenario: str) -> str:
    code, ratio = _compressed(rows, scenario)
    if ratio == 0:
        return "No code reaches FedAvg's target in every seed."
    held = "" if ratio >= WANTED else f", not the {WANTED:g} times that were wanted"
    return f"With {code} FedAvg's target takes {ratio:.1f} times fewer bits{held}."


def _drift_in_words(rows: Sequence[Row]) -> list[str]:
    own = {
        (row.regime, row.metric): row for row in rows if row.candidate == RUSH_HOUR and row.node == "network"
    }
    if not own:
        return []
    gains = []
    for regime in (AGAIN, GATHERED):
        gain = own[regime, "performance_gain"]
        joules = own[regime, "energy"].mean
        resolved = "" if gain.ci_low > 0 or gain.ci_high < 0 else ", not resolved"
        gains.append(
            f"{regime} {100 * gain.mean:+.1f} [{100 * gain.ci_low:+.1f}, {100 * gain.ci_high:+.1f}] points"
            f"{resolved} for {joules:.2g} J"
        )
    kept = own[KEPT, "performance"].mean
    told = f"At the rush hour the handover model of quieter hours keeps {100 * kept:.1f} %"
    return ["; ".join([told, *gains]) + "."]
