"""From the parts of the study `csi` to its sheet: rows, curves, verdict."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defiance import __version__
from defiance import config as configuration
from defiance.hardware import BACKHAUL, DEVICE_NPU, SERVER_CPU, STATION_SOC, UE_DOWNLOAD, UE_REPORT
from defiance.kpm import (
    METRICS,
    Curve,
    Row,
    Sheet,
    mean_interval,
    operations_until_converged,
    paired_interval,
)
from defiance.link import BackhaulLink, Deliveries, LossyLink, Packets
from defiance.seeding import stream
from defiance.studies import machine
from defiance.studies.csi import costs
from defiance.studies.csi.experiments import SHARES, TWO_SIDED, UPLINK, two_networks
from defiance.studies.csi.settings import Config, Model

SITES = 7
BANDWIDTH_HZ = 52 * 12 * 30e3
SLOT_S, SLOT_ELEMENTS = 0.5e-3, 12 * 14
PILOT_ELEMENTS = costs.PORTS
"""Resource elements of a CSI-RS of 32 ports in each block: density 1 (TS 38.211 table 7.4.1.5.3-1)."""
PILOT_BITS = 2
"""Of a resource element: a QPSK sequence (TS 38.211 clause 7.4.1.5.2)."""
WIRE = BackhaulLink(1e9, 2e-3, energy_j_per_bit=BACKHAUL.joules_per_bit)
AIR = LossyLink(2e-3, tx_energy_j_per_bit=UE_REPORT.joules_per_bit)
"""Samples that are learned from: one message each, with the headers of RRC's."""
RULE = "l-beams"
QUALITY = {
    "performance": "sgcs",
    "nmse": "nmse_db",
    "spectral_efficiency": "single",
    "multi_user_spectral_efficiency": "multi",
}

Key = tuple[str, str, str, int]
"""Candidate, regime, city, budget."""


@dataclass(frozen=True)
class Results:
    """Finished parts.

    Attributes:
        config: of the study.
        seeds: of its repetitions.
        ruled: what `experiments.rules` gave, by seed.
        trained: what `experiments.train` gave, by model.
        sides: what `experiments.sides` gave, by seed.
    """

    config: Config
    seeds: tuple[int, ...]
    ruled: dict[int, dict[str, Any]]
    trained: dict[Model, dict[str, Any]]
    sides: dict[int, dict[str, Any]]

    def judged(self) -> dict[Key, list[dict[str, Any]]]:
        """What was found on test walks, one entry per seed."""
        found: dict[Key, list[dict[str, Any]]] = defaultdict(list)
        for seed in self.seeds:
            for entry in self.ruled[seed]["found"]:
                found[entry["candidate"], entry["regime"], entry["city"], entry["budget"]].append(entry)
            for model, part in self.trained.items():
                if model.seed == seed:
                    for entry in part["judged"]:
                        found[model.name, model.regime, entry["city"], model.bits].append(entry)
            if self.sides:
                part = self.sides[seed]
                for entry in part["found"]:
                    found[part["candidate"], entry["way"], self.config.city, self.config.bits].append(entry)
        return found

    def models(self) -> dict[tuple[str, int, str], list[dict[str, Any]]]:
        """Trainings by name, bits and regime, one entry per seed."""
        found: dict[tuple[str, int, str], list[dict[str, Any]]] = defaultdict(list)
        for model, part in self.trained.items():
            found[model.name, model.bits, model.regime].append(part)
        return found


def sheet(results: Results) -> Sheet:
    """The study's sheet with its verdict."""
    rows = tuple([*_quality(results), *_gains(results), *_training(results)])
    return Sheet(
        study="csi",
        version=__version__,
        config=configuration.to_dict(results.config),
        seeds=results.seeds,
        machine=machine(),
        made_by="",
        rows=rows,
        curves=tuple(_curves(results)),
        verdict=verdict(results),
    )


def scenario(city: str, bits: int) -> str:
    """`munich/64bit`; without a budget its part is left out."""
    name = Path(city).stem
    return f"{name}/{bits}bit" if bits else name


def _row(
    of: tuple[str, str, str, str], metric: str, values: list[float] | NDArray[np.float64], provenance: str
) -> Row:
    unit = METRICS[metric].unit or "1"
    return Row(*of, metric, unit, *mean_interval(values), len(values), provenance)


def _quality(results: Results) -> Iterator[Row]:
    """How well each codec does on unseen walks, and what it costs while it runs, per user and second."""
    config = results.config
    pilots = PILOT_ELEMENTS / (SLOT_ELEMENTS * config.report_s / SLOT_S)
    first = lambda item: (item[0][2] != config.city, item[0][3] != config.bits)  # noqa: E731
    for (candidate, regime, city, bits), found in sorted(results.judged().items(), key=first):
        place = scenario(city, bits)
        for metric, name in QUALITY.items():
            values = [entry[name] for entry in found if name in entry]
            if values and np.isfinite(values).all():
                yield _row((candidate, regime, place, "network"), metric, values, "modelled")
        each = [entry["multi"] * BANDWIDTH_HZ * (1 - pilots) / config.users for entry in found]
        if np.isfinite(each).all():
            yield _row((candidate, regime, place, "network"), "throughput", each, "modelled")
        if "encode" not in found[0]:
            continue
        reports = [entry["report_bits"] / config.report_s for entry in found]
        yield _row((candidate, regime, place, "device"), "communication_bits", reports, "counted")
        encode = np.array([entry["encode"] for entry in found])
        decode = np.array([entry["decode"] for entry in found])
        parameters = [float(entry["parameters"]) for entry in found]
        yield _row((candidate, regime, place, "device"), "inference_operations", encode, "counted")
        yield _row((candidate, regime, place, "base-station"), "inference_operations", decode, "counted")
        yield _row((candidate, regime, place, "network"), "inference_parameters", parameters, "counted")
        delay_s = encode / DEVICE_NPU.operations_per_second + decode / STATION_SOC.operations_per_second
        yield _row(
            (candidate, regime, place, "network"),
            "inference_latency",
            delay_s + UPLINK.delay_s,
            "modelled",
        )
        device_j = encode * DEVICE_NPU.joules_per_operation / config.report_s
        device_j = device_j + np.array(reports) * UE_REPORT.joules_per_bit
        yield _row((candidate, regime, place, "device"), "energy", device_j, "modelled")
        station_j = decode * STATION_SOC.joules_per_operation / config.report_s
        yield _row((candidate, regime, place, "base-station"), "energy", station_j, "modelled")
    pilot_bits = 52 * PILOT_ELEMENTS * PILOT_BITS / config.report_s
    yield _row(
        ("pilots", "none", scenario(config.city, 0), "base-station"),
        "communication_bits",
        [pilot_bits],
        "counted",
    )


def _gains(results: Results) -> Iterator[Row]:
    """SGCS less the L-beam report's and the KLT codec's, paired by seed; and in the unseen city."""
    config, judged = results.config, results.judged()
    for (candidate, regime, city, bits), found in judged.items():
        if candidate not in config.learned:
            continue
        for rival, trained in ((RULE, "none"), ("klt", "central")):
            others = judged[rival, trained, city, bits]
            yield Row(
                candidate, f"{regime} less {rival}", scenario(city, bits), "network", "performance_gain", "1",
                *paired_interval(_sgcs(found), _sgcs(others)), len(found), "modelled",
            )  # fmt: skip
        if city == config.city and (candidate, regime, config.unseen_city, bits) in judged:
            away = judged[candidate, regime, config.unseen_city, bits]
            place = (candidate, regime, scenario(city, bits), "network")
            yield _row(place, "generalisation", _sgcs(away), "modelled")


def _training(results: Results) -> Iterator[Row]:
    """What training took: operations, bits over the links, joules."""
    config = results.config
    for (name, bits, regime), parts in results.models().items():
        away = regime.startswith("finetuned")
        place = scenario(config.unseen_city if away else config.city, bits)
        node = "core" if parts[0]["nodes"] == 1 else "base-station"
        books = [_booked(regime, part) for part in parts]
        for metric, at, provenance in (
            ("training_operations", node, "counted"),
            ("communication_bits", "network", "counted"),
            ("energy", node, "modelled"),
            ("cpu_time", node, "measured"),
        ):
            yield _row((name, regime, place, at), metric, [book[metric] for book in books], provenance)
    for seed in results.seeds[:1] if results.sides else ():
        for entry in results.sides[seed]["found"]:
            of = (results.sides[seed]["candidate"], entry["way"], scenario(config.city, config.bits), "core")
            shared = [_moved(WIRE, "model", 1, entry["shared_bits"]).sent_bits.sum().item()]
            yield _row(of, "communication_bits", shared if entry["shared_bits"] else [0.0], "counted")


def _booked(regime: str, part: dict[str, Any]) -> dict[str, float]:
    """One training: transfers go over the air and over a backhaul link; see docs/csi.md."""
    rounds, nodes, step = part["rounds"], part["nodes"], part["step"]
    per_round = part["steps_per_round"] * nodes * step
    spent = [per_round * done for done in range(rounds + 1)]
    weights = 32 * part["moved"]
    sent = [_moved(AIR, "data", part["samples"], costs.SAMPLE_BITS)]
    if nodes == 1:  # samples go to the core; models come back to the stations
        sent += [
            _moved(WIRE, "data", SITES, part["samples"] * costs.SAMPLE_BITS // SITES),
            _moved(WIRE, "model", SITES, weights),
        ]
    elif regime in ("federated", "gossip"):  # up and down, or to both neighbours on the ring
        sent.append(_moved(WIRE, "model", 2 * nodes * rounds, weights))
    deliveries = Deliveries.concatenate(*sent)
    # then each device gets its half over the air, unless it keeps the one that it has
    given = 0 if regime == "finetuned-decoder" else 32 * part["device_parameters"]
    profile = SERVER_CPU if nodes == 1 else STATION_SOC
    energy_j = per_round * rounds * profile.joules_per_operation
    energy_j += float((deliveries.tx_energy_j + deliveries.rx_energy_j).sum())
    return {
        "training_operations": operations_until_converged(spent, part["validation_loss"], "lower"),
        "communication_bits": float(deliveries.sent_bits.sum()) + given,
        "energy": energy_j + given * UE_DOWNLOAD.joules_per_bit,
        "cpu_time": part["cpu_s"],
    }


def _moved(link: Any, purpose: str, count: int, payload_bits: int) -> Deliveries:
    """Sends `count` equal payloads."""
    packets = Packets.of(range(count), purpose=purpose, payload_bits=payload_bits, offered_s=0.0)
    _, sent = link.advance(link.offer(link.initial(), packets, 0.0), math.inf, stream(0, "csi", "training"))
    found: Deliveries = sent
    return found


def _curves(results: Results) -> Iterator[Curve]:
    """SGCS and rate over feedback bits, distributions at the verdict's bits, and learning curves."""
    config, judged = results.config, results.judged()
    bits_axis = ("feedback_bits", "bit")
    for candidate, regime in dict.fromkeys((key[0], key[1]) for key in judged):
        for city in (config.city, config.unseen_city):
            points = {
                int(judged[key][0]["bits"]): judged[key]
                for key in ((candidate, regime, city, budget) for budget in sorted(config.budgets))
                if key in judged and "bits" in judged[key][0]
            }
            if len(points) < 2:
                continue
            for name, unit in (("performance", "1"), ("multi_user_spectral_efficiency", "bit/s/Hz")):
                of = [mean_interval([entry[QUALITY[name]] for entry in found]) for found in points.values()]
                means, lows, highs = (tuple(column) for column in zip(*of, strict=True))
                yield Curve(
                    "feedback", candidate, regime, Path(city).stem, *bits_axis, name, unit,
                    tuple(float(bits) for bits in points), means, lows, highs,
                )  # fmt: skip
    for (candidate, regime, city, bits), found in judged.items():
        if bits == config.bits and city == config.city and "quantiles" in found[0]:
            values = np.mean([entry["quantiles"] for entry in found], 0)
            yield Curve(
                "distribution", candidate, regime, scenario(city, bits), "performance", "1", "share", "1",
                tuple(values.tolist()), SHARES,
            )  # fmt: skip
    for (name, bits, regime), parts in results.models().items():
        if bits == config.bits:
            length = min(len(part["validation_loss"]) for part in parts)
            values = 1 - np.mean([part["validation_loss"][:length] for part in parts], 0)
            city = config.unseen_city if regime.startswith("finetuned") else config.city
            step = parts[0]["steps_per_round"] * parts[0]["nodes"] * parts[0]["step"]
            yield Curve(
                "learning", name, regime, scenario(city, bits), "training_operations", "op", "performance",
                "1", tuple(step * done for done in range(length)), tuple(values.tolist()),
            )  # fmt: skip


def _sgcs(found: list[dict[str, Any]]) -> list[float]:
    return [entry["sgcs"] for entry in found]


def verdict(results: Results) -> str:
    """The answer in words."""
    config, judged = results.config, results.judged()
    home, away, bits = config.city, config.unseen_city, config.bits

    def mean(*key: Any) -> float:
        return float(np.mean(_sgcs(judged[key])))

    best = max(config.learned, key=lambda name: mean(name, "central", home, bits))
    own = judged[best, "central", home, bits]
    text = (
        f"At {bits} feedback bits on unseen walks of {Path(home).stem.capitalize()} the {best} codec reaches"
    )
    text += f" an SGCS of {mean(best, 'central', home, bits):.3f}"
    for rival, regime, called in (
        (RULE, "none", "the tuned L-beam report"),
        ("klt", "central", "the KLT codec"),
    ):
        gain, low, high = paired_interval(_sgcs(own), _sgcs(judged[rival, regime, home, bits]))
        says = "more" if low > 0 else "less" if high < 0 else "not resolved"
        text += (
            f", {called} {mean(rival, regime, home, bits):.3f} ({says}: {gain:+.3f}, {low:.3f} to {high:.3f})"
        )
    others = [name for name in config.learned if name != best]
    if others:
        named = ", ".join(f"{name} {mean(name, 'central', home, bits):.3f}" for name in others)
        text += f"; {named}"
    multi = [
        float(np.mean([entry["multi"] for entry in judged[key]]))
        for key in (
            (best, "central", home, bits),
            (RULE, "none", home, bits),
            ("perfect", "none", home, 0),
        )
    ]
    text += (
        f". With {config.users} users at a time at {config.snr_db:g} dB its precoders give {multi[0]:.2f}"
        f" bit/s/Hz, the L-beam report's {multi[1]:.2f}, perfect ones {multi[2]:.2f}."
    )
    regimes = [regime for regime in config.regimes if (config.learned[0], regime, home, bits) in judged]
    text += f" The {config.learned[0]} codec by who trains: "
    text += (
        ", ".join(f"{regime} {mean(config.learned[0], regime, home, bits):.3f}" for regime in regimes) + "."
    )
    if away:
        zero, tuned = (mean(best, regime, away, bits) for regime in ("central", "finetuned-whole"))
        text += (
            f" In {Path(away).stem.capitalize()}, unseen, it reaches {zero:.3f} and, fine-tuned,"
            f" {tuned:.3f} (the L-beam report {mean(RULE, 'none', away, bits):.3f})."
        )
    if results.sides and two_networks(config):
        device, station = two_networks(config)
        found = [mean(f"{device} to {station}", way, home, bits) for way in TWO_SIDED]
        text += (
            f" A {device} encoder before another trainer's {station} decoder gives {found[0]:.3f}; trained"
            f" through that decoder {found[1]:.3f}, on its trainer's shared samples and bits {found[2]:.3f}."
        )
    return text
