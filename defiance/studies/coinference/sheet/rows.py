"""The rows of the sheet: every candidate at its uses, Es/N0 and recordings, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from defiance.hardware import RADIOS, SERVER_CPU
from defiance.kpm import METRICS, Row, mean_interval, operations_until_converged
from defiance.studies.coinference.settings import SPIKING, STEPS, Model
from defiance.studies.coinference.sheet.costs import (
    Range,
    air_joules,
    bits_on_air,
    crossovers,
    device_joules,
    edge_joules,
    energy_ratios,
    latency_s,
    packets,
    rival,
    time_to_decision_s,
)
from defiance.studies.coinference.sheet.results import BOUNDS, CHANCE, Kind, Results, mean_of, scenario

Interval = tuple[float, float, float]
Maker = Callable[[str, str, Interval, str], Row]
"""Makes a row from node, metric, interval and provenance."""

UNITS = {"training_operations_total": "op", "energy_rival": "1"}
"""Units of metrics that are studies' own."""

ONE_THIRD = STEPS // 3
ONLINE_DB = (math.inf, 0.0)
"""Where decisions in time are looked at."""
COST_DB = (0.0, -4.0)
"""Where the uses that an accuracy takes are looked at."""


def rows(results: Results) -> Iterator[Row]:
    """All rows of the sheet."""
    for test in results.config.data:
        for kind in results.kinds(test):
            yield from _accuracy_rows(results, kind, test)
        for kind in results.kinds(test):
            if kind[2] == results.base(test):
                yield from _cost_rows(results, kind, test)
        yield from _comparison_rows(results, test)
    yield from _training_rows(results)


def _maker(kind: Kind, where: str, n: int) -> Maker:
    def row(node: str, metric: str, interval: Interval, provenance: str) -> Row:
        unit = METRICS[metric].unit or "1" if metric in METRICS else UNITS[metric]
        return Row(kind[0], kind[2], where, node, metric, unit, *interval, n, provenance)

    return row


def _constant(value: float) -> Interval:
    return float(value), math.nan, math.nan


# --- accuracy -------------------------------------------------------------------------------------------


def _accuracy_rows(results: Results, kind: Kind, test: str) -> Iterator[Row]:
    """Accuracy at every Es/N0 and on other channels, and how it grows in time."""
    name, uses, regime = kind
    found, parts = results.accuracy(kind, test), results.parts(kind, test)
    unseen = (regime, test) in (("simulated", "nmnist"), ("real", "nmnist-simulated"))
    metric = "generalisation" if unseen else "performance"
    for place, esn0_db in enumerate(results.ladder):
        row = _maker(kind, scenario(test, uses, esn0_db), len(parts))
        yield row("edge", metric, mean_interval(found[:, place, -1]), "measured")
        for channel in parts[0].get("channels", {}):
            other = np.array([part["channels"][channel][place][-1] for part in parts])
            row_there = _maker(kind, scenario(test, uses, esn0_db, channel), len(parts))
            yield row_there("edge", "generalisation", mean_interval(other), "measured")
    if regime != results.base(test):
        return
    for esn0_db in ONLINE_DB:
        if esn0_db not in results.ladder:
            continue
        online = found[:, results.ladder.index(esn0_db)]
        row = _maker(kind, scenario(test, uses, esn0_db), len(parts))
        final = online[:, -1] - CHANCE
        if (final > 0).all():
            closed = (online[:, ONE_THIRD - 1] - CHANCE) / final
            yield row("edge", "anytime_gap_closed", mean_interval(closed), "measured")
        times = [time_to_decision_s(one, test) for one in online]
        yield row("edge", "time_to_decision", mean_interval(times), "measured")


def _comparison_rows(results: Results, test: str) -> Iterator[Row]:
    """What S-VDIB gains over the others at equal uses and energy, and at which radio cost it takes less."""
    base = results.base(test)
    for kind in results.kinds(test):
        name, uses, regime = kind
        own = ("s-vdib", uses, base)
        if name == "s-vdib" or regime != base or not results.models(own, test):
            continue
        for esn0_db in results.ladder:
            gains = results.gains(own, kind, test, esn0_db)
            row = _maker(kind, scenario(test, uses, esn0_db), len(gains))
            yield row("edge", "spiking_gain", mean_interval(gains), "measured")
    for kind in results.kinds(test):
        if kind != results.reference(kind[0], test) or kind[0] in (*SPIKING, *BOUNDS):
            continue
        yield from _energy_comparison_rows(results, kind, test)


def _energy_comparison_rows(results: Results, kind: Kind, test: str) -> Iterator[Row]:
    name, uses, _ = kind
    own = results.reference("s-vdib", test)
    if not results.models(own, test):
        return
    row = _maker(kind, scenario(test, uses), len(results.models(kind, test)))
    if kind == rival(results, own, test):
        yield row("device", "energy_rival", _constant(1.0), "measured")
    for node, ratio in energy_ratios(results, own, kind, test):
        yield from _ranged(row, node, "spiking_energy_ratio", ratio)
    for esn0_db in COST_DB:
        if esn0_db not in results.ladder:
            continue
        row = _maker(kind, f"{test}/{esn0_db:g}dB", len(results.models(kind, test)))
        for chip, processor, found in crossovers(results, name, test, esn0_db):
            node = f"{chip.name} against {processor.name}: spikes win {found.spikes_win}"
            yield row(node, "crossover_energy_per_use", _constant(found.joules_per_use), "modelled")


# --- costs ----------------------------------------------------------------------------------------------


def _ranged(row: Maker, node: str, metric: str, found: Range) -> Iterator[Row]:
    yield row(node, metric, _constant(found.central), "modelled")
    yield row(node, f"{metric}_low", _constant(found.low), "modelled")
    yield row(node, f"{metric}_high", _constant(found.high), "modelled")


def _cost_rows(results: Results, kind: Kind, test: str) -> Iterator[Row]:
    """Operations, parameters, joules, bits and seconds of a recording."""
    name, uses, _ = kind
    parts, counted = results.parts(kind, test), results.counted[name, uses]
    row = _maker(kind, scenario(test, uses), len(parts))
    if name in SPIKING:
        for metric in ("events", "spikes", "sent_spikes", "synaptic_operations", "silent_share"):
            yield row("device", metric, mean_of(parts, metric), "counted")
        work = [p["synaptic_operations"] + 3 * p["updates"] + 2 * p["filter_operations"] for p in parts]
        yield row("device", "inference_operations", mean_interval(work), "counted")
        for metric in ("relevance", "information_rate") if "relevance" in parts[0] else ():
            bound = mean_interval([part[metric][-1] for part in parts])
            yield _maker(kind, scenario(test, uses, 0.0), len(parts))("edge", metric, bound, "measured")
    else:
        yield row("device", "inference_operations", _constant(counted["device_operations"]), "counted")
    yield row("edge", "inference_operations", _constant(counted["edge_operations"]), "counted")
    for half in ("device", "edge"):
        parameters = _constant(counted[f"{half}_parameters"])
        yield row(half, "inference_parameters", parameters, "counted")
    for hardware, spent in device_joules(results, kind, test):
        yield from _ranged(row, f"device, {hardware}", "energy", spent)
    yield from _ranged(row, f"edge, {SERVER_CPU.name}", "energy", edge_joules(results, kind))
    if name == "central":
        return
    for radio in RADIOS.values():
        bits = bits_on_air(name, counted["channel_uses"], radio, streamed=False)
        yield row(f"air, {radio.name}", "communication_bits", _constant(bits), "counted")
        sending, receiving = air_joules(bits, radio)
        yield from _ranged(row, f"air, {radio.name}", "energy", sending)
        yield from _ranged(row, f"edge, {radio.name}", "energy", receiving)
        if packets(name) > 1:
            streamed = bits_on_air(name, counted["channel_uses"], radio, streamed=True)
            yield row(f"air, {radio.name}, streamed", "communication_bits", _constant(streamed), "counted")
            yield from _ranged(row, f"air, {radio.name}, streamed", "energy", air_joules(streamed, radio)[0])
    sent = ", streamed" if packets(name) > 1 else ""
    for hardware, radio, seconds in latency_s(results, kind, test):
        yield row(f"{hardware}, {radio.name}{sent}", "inference_latency", _constant(seconds), "modelled")


def _training_rows(results: Results) -> Iterator[Row]:
    """What training took, until convergence and in all."""
    groups: dict[Kind, dict[str, list[Model]]] = {}
    for model in dict.fromkeys(model for model, _ in results.judged):
        kind = (model.candidate, model.uses, model.regime)
        groups.setdefault(kind, {}).setdefault(model.data, []).append(model)
    for kind, by_data in groups.items():
        for data, models in by_data.items():
            trained = [results.trained[model.trained] for model in models]
            steps = results.counted[kind[0], kind[1]]["step_operations"]
            row = _maker(kind, scenario(data, kind[1]), len(models))
            spent = [_training_operations(part, steps) for part in trained]
            yield row("training", "training_operations", mean_interval([s[0] for s in spent]), "counted")
            yield row(
                "training", "training_operations_total", mean_interval([s[1] for s in spent]), "counted"
            )
            yield row("training", "cpu_time", mean_of(trained, "cpu_s"), "measured")


def _training_operations(part: dict[str, Any], step_operations: list[int]) -> tuple[float, float]:
    """Operations until the last stage's validation loss has settled, and in all, validation left out."""
    before, settled = 0.0, 0.0
    for stage, operations in zip(part["stages"], step_operations, strict=True):
        losses = stage["validation_loss"]
        spent = [before + n * stage["steps_per_round"] * operations for n in range(len(losses))]
        settled = operations_until_converged(spent, losses, "lower")
        before = spent[-1]
    return settled, before
