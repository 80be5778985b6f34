"""The sheet of the study `beams`: what every rule and model brings, what it costs, what that means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from defiance.control.sounding import DIFFERENCE_BITS, RSRP_BITS
from defiance.hardware import BACKHAUL, SERVER_CPU, STATION_SOC, UE_REPORT
from defiance.kpm import (
    METRICS,
    Curve,
    Row,
    crossed_interval,
    mean_interval,
    operations_until_converged,
)
from defiance.link import Deliveries, LossyLink
from defiance.meter import operations_of
from defiance.studies.beams.channels import BOOK
from defiance.studies.beams.experiments import SWEEP, Model, decision_operations, layers
from defiance.studies.beams.measured import MEASURED, MODELS, REGIMES, TOPS
from defiance.studies.beams.settings import Config
from defiance.studies.beams.training import SHARING
from defiance.studies.transfers import backhaul, transfer

UNITS = {
    "net_spectral_efficiency": "bit/s/Hz",
    "spectral_efficiency": "bit/s/Hz",
    "rsrp_difference": "dB",
    "rsrp_difference_less_mlp": "dB",
    "rsrp_difference_less_local": "dB",
    "sounding_period": "s",
    "training_operations_total": "op",
    "training_pilots": "symbol",
    "report_bits": "bit",
}
"""Units of metrics that are this study's own; the others have none."""

RULES = ("exhaustive", "watching", "hierarchical", "tracking")

Interval = tuple[float, float, float]
Table = NDArray[np.float64]


@dataclass(frozen=True)
class Results:
    """Finished parts.

    Attributes:
        config: of the study.
        seeds: of the tests.
        trained: by model.
        judged: by city and speed; see `experiments.judge`.
        measured: by model or rule, part of the beams, and regime; see `measured.evaluate`.
    """

    config: Config
    seeds: tuple[int, ...]
    trained: Mapping[Model, dict[str, Any]]
    judged: Mapping[tuple[str, float], dict[str, Any]]
    measured: Mapping[tuple[str, str, str], dict[str, Any]]


def row(
    candidate: str,
    regime: str,
    scenario: str,
    node: str,
    metric: str,
    interval: Interval,
    n: int,
    provenance: str,
) -> Row:
    """A row with its metric's unit."""
    unit = METRICS[metric].unit if metric in METRICS else UNITS.get(metric, "1")
    return Row(candidate, regime, scenario, node, metric, unit or "bit/s/Hz", *interval, n, provenance)


def constant(value: float) -> Interval:
    """A number without an interval."""
    return value, math.nan, math.nan


def scenario_of(city: str, speed_kmh: float) -> str:
    """Name of a scenario."""
    return f"{city}/{speed_kmh:g}kmh"


# --- what it brings -------------------------------------------------------------------------------------


def table(results: Results, judged: Mapping[str, Any], candidate: str, column: str) -> Table:
    """A column's sums over users, `[training seeds, walks]`: test seeds with the same weights together."""
    found = np.array(judged[candidate][column] if candidate else judged[column])
    own = results.config.training.seeds
    return np.stack([found[np.array(results.seeds) % own == trained].sum(0) for trained in range(own)])


def kinds(judged: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Kind and regime of every model that was judged."""
    return [tuple(name.split("/")) for name in judged if "/" in name]  # type: ignore[misc]


def judged_rows(results: Results) -> Iterator[Row]:
    """Rows of the walks; intervals over training seeds, with users of their own, and over walks."""
    n = len(results.seeds)
    for (city, speed_kmh), judged in results.judged.items():
        scenario = scenario_of(city, speed_kmh)
        home = city == results.config.city
        of = partial(table, results, judged)
        users = of("", "users")
        columns = {
            "net_spectral_efficiency": "net",
            "performance" if home else "generalisation": "net",
            "spectral_efficiency": "spectral_efficiency",
            "rsrp_difference": "lost_db",
            "best_beam_share": "best_share",
            "sounding_overhead": "overhead",
        }
        tops = {f"top{most}_share": f"top{most}" for most in TOPS}

        def told(
            candidate: str, regime: str, metric: str, values: Table, per: Table, at: str = scenario
        ) -> Row:
            return row(candidate, regime, at, "network", metric, crossed_interval(values, per), n, "modelled")

        yield told("genie", "none", "net_spectral_efficiency", of("genie", "net"), users)
        sweep, rule = of(SWEEP, "net"), of(best_rule(judged), "net")
        for candidate, regime in [*((name, "none") for name in (SWEEP, *RULES)), *kinds(judged)]:
            learned = regime != "none"
            name = f"{candidate}/{regime}" if learned else candidate
            for metric, column in (columns | (tops if learned else {})).items():
                yield told(candidate, regime, metric, of(name, column), users)
            net = of(name, "net")
            yield told(candidate, regime, "gain_over_best_rule", net - rule, rule)
            if learned:
                yield told(candidate, regime, "share_of_exhaustive", net, sweep)
                once = of(name, "once")
                yield told(candidate, regime, "share_of_exhaustive_sounded_once", once, sweep)
            found = judged[name]
            for metric, value in (
                ("sounding_period", found["period_s"]),
                ("inference_latency", found["delay_s"]),
                ("report_bits", found["report_bits"]),
            ):
                yield row(candidate, regime, scenario, "base-station", metric, constant(value), 1, "modelled")


def best_rule(judged: Mapping[str, Any]) -> str:
    """The tuned rule of highest mean on test walks: in the rules' favour."""
    return max(RULES, key=lambda rule: float(np.sum(judged[rule]["net"])))


def best_model(judged: Mapping[str, Any]) -> tuple[str, str]:
    """Kind and regime that were best on validation walks."""
    kind, regime = max(kinds(judged), key=lambda one: float(judged["/".join(one)]["validation_net"]))
    return kind, regime


# --- what it costs --------------------------------------------------------------------------------------


def cost_rows(results: Results) -> Iterator[Row]:
    """Rows of training, deciding and sending, by kind and regime."""
    config = results.config
    for kind, regime in dict.fromkeys((m.kind, m.regime) for m in results.trained):
        models = [m for m in results.trained if (m.kind, m.regime) == (kind, regime)]
        costs = [cost(results, m) for m in models]
        city = config.unseen_city if regime == "finetuned" else config.city
        place = "none" if regime == "array" else city
        for metric, provenance in (
            ("training_operations", "counted"),
            ("training_operations_total", "counted"),
            ("training_pilots", "counted"),
            ("communication_bits", "counted"),
            ("energy", "modelled"),
            ("cpu_time", "measured"),
        ):
            values = [c[metric] for c in costs]
            yield row(kind, regime, place, "training", metric, mean_interval(values), len(models), provenance)
        decision = decision_operations(config, kind)
        parameters = float(results.trained[models[0]]["parameters"])
        for metric, value in (("inference_operations", decision), ("inference_parameters", parameters)):
            yield row(kind, regime, place, "base-station", metric, constant(value), 1, "counted")
        energy = decision * STATION_SOC.joules_per_operation
        yield row(kind, regime, place, "base-station", "energy", constant(energy), 1, "modelled")


def cost(results: Results, model: Model) -> dict[str, float]:
    """What one model took; a fine-tuned one, and those of a city, from the model that they start from on."""
    part = results.trained[model]
    network = layers(part["features"], results.config.training.width, part["outputs"])
    shape = (part["batch"], part["features"])
    counted = operations_of(
        network, torch.empty(shape, device="meta"), lambda out: (torch.log_softmax(out, -1) * out).mean()
    )
    forward = counted.forward.total / part["batch"]
    per_round = part["nodes"] * part["steps_per_round"] * counted.training_step.total
    per_round += part["validation_samples"] * forward
    spent = [per_round * n for n in range(part["rounds"] + 1)]
    samples = sum(part["samples"])
    gathered = model.regime in ("central", "finetuned")
    history, instants = model.shape
    sent: list[Deliveries] = []
    pilots, air_bits = 0.0, 0.0
    wire = backhaul(BACKHAUL.joules_per_bit)
    if model.regime != "array":
        # a sample needs what the model sees, and full sweeps of what it shall say
        beams = history * len(BOOK.wide) + instants * BOOK.narrow
        pilots = float(samples * beams)
        payload = (history + instants) * RSRP_BITS + (beams - history - instants) * DIFFERENCE_BITS
        air_bits = float(samples * (payload + LossyLink(0.0).header_bits))
        # weights to a server and back, or to both neighbours on a ring; else once to every station
        copies = 2 * part["rounds"] * part["nodes"] if model.regime in SHARING else part["sites"]
        if model.regime != "local":
            sent.append(transfer(wire, "model", copies, 32 * part["parameters"]))
        if gathered:
            sent.append(transfer(wire, "data", part["sites"], samples * payload // part["sites"]))
    wired = Deliveries.concatenate(*sent) if sent else Deliveries.empty()
    profile = SERVER_CPU if gathered or model.regime == "array" else STATION_SOC
    joules = spent[-1] * profile.joules_per_operation + air_bits * UE_REPORT.joules_per_bit
    return {
        "training_operations": operations_until_converged(spent, part["validation_loss"], "lower"),
        "training_operations_total": spent[-1],
        "training_pilots": pilots,
        "communication_bits": air_bits + float(wired.sent_bits.sum()),
        "energy": joules + float((wired.tx_energy_j + wired.rx_energy_j).sum()),
        "cpu_time": part["cpu_s"],
    }


# --- measured beams -------------------------------------------------------------------------------------


def by_fold(found: Mapping[str, Any], values: ArrayLike, site: int | None = None) -> Interval:
    """Mean over sequences and its interval over folds, whose models are trained apart; of one, sequences.

    Args:
        found: see `measured.evaluate`.
        values: of all sequences, `[sequences]`.
        site: that alone.
    """
    mine = np.array(found["site"]) == site if site is not None else np.full(len(found["site"]), True)
    own = np.asarray(values, dtype=np.float64)[mine]
    fold = np.array(found["fold"])[mine]
    if len(set(fold.tolist())) == 1:
        return mean_interval(own)
    groups = [fold == number for number in np.unique(fold)]
    return crossed_interval([[own[group].sum() for group in groups]], [[group.sum() for group in groups]])


def measured_rows(results: Results) -> Iterator[Row]:
    """Rows of DeepSense: means over sequences, and differences by sequence."""
    for (model, part, regime), found in results.measured.items():
        scenario, n = f"deepsense/{part}", len(found["site"])
        shown = "none" if model not in MODELS else regime
        columns = {"rsrp_difference": "loss"} | {f"top{most}_share": f"top{most}" for most in TOPS}
        for metric, column in columns.items():
            interval = by_fold(found, found[column])
            yield row(model, shown, scenario, "network", metric, interval, n, "measured")
        others = {
            "rsrp_difference_less_mlp": ("mlp", part, regime) if model == "learned" else None,
            "rsrp_difference_less_local": (model, part, "local") if regime != "local" else None,
        }
        for metric, other in others.items():
            if model in MODELS and other is not None and other in results.measured:
                less = np.subtract(found["loss"], results.measured[other]["loss"])
                yield row(model, shown, scenario, "network", metric, by_fold(found, less), n, "measured")
        if model == "learned" and regime == "federated" and (model, part, "local") in results.measured:
            less = np.subtract(found["loss"], results.measured[model, part, "local"]["loss"])
            for number in dict.fromkeys(found["site"]):
                yield row(
                    model, shown, f"{scenario}/scenario{number}", "network", "rsrp_difference_less_local",
                    by_fold(found, less, number), found["site"].count(number), "measured",
                )  # fmt: skip


# --- the sheet ------------------------------------------------------------------------------------------


def curves(results: Results) -> Iterator[Curve]:
    """Learning curves: power lost on validation walks, after every round."""
    for model, part in results.trained.items():
        if model.seed == 0:
            loss = tuple(part["validation_loss"])
            rounds = tuple(map(float, range(len(loss))))
            yield Curve(
                "learning", model.kind, model.regime, "validation", "rounds", "1", "rsrp_difference", "dB",
                rounds, loss,
            )  # fmt: skip


def verdict(rows: tuple[Row, ...], results: Results) -> str:
    """The answer in words."""
    found = {(r.candidate, r.regime, r.scenario, r.metric): r for r in rows}
    told = [_first(found, results)]
    told += [_walked(found, results, city, speed_kmh) for city, speed_kmh in results.judged]
    for part in MEASURED:
        scenario = f"deepsense/{part}"
        for regime in REGIMES:
            less = found.get(("learned", regime, scenario, "rsrp_difference_less_mlp"))
            if less is not None:
                own = found["learned", regime, scenario, "rsrp_difference"]
                told.append(
                    f"DeepSense, 1/{MEASURED[part]} of the beams measured, {regime}: {own.mean:.3f} dB lost, "
                    f"{_with_ends(less, '+.3f')} dB against the classifier."
                )
        shared = found.get(("learned", "federated", scenario, "rsrp_difference_less_local"))
        if shared is not None:
            sites = [r for r in rows if r.metric == shared.metric and r.scenario.startswith(f"{scenario}/")]
            helped, hurt = sum(r.ci_high < 0 for r in sites), sum(r.ci_low > 0 for r in sites)
            told.append(
                f"Averaged weights lose {_with_ends(shared, '+.3f')} dB against a site's own: less at "
                f"{helped} of {len(sites)} sites, more at {hurt}, neither clearly at the others."
            )
    return " ".join(told)


def _walked(
    found: Mapping[tuple[str, str, str, str], Row],
    results: Results,
    city: str,
    speed_kmh: float,
) -> str:
    """What the model that was best on validation walks brings on those of test."""
    judged, scenario = results.judged[city, speed_kmh], scenario_of(city, speed_kmh)
    kind, regime = best_model(judged)
    share = found[kind, regime, scenario, "share_of_exhaustive"]
    once = found[kind, regime, scenario, "share_of_exhaustive_sounded_once"]
    gain = found[kind, regime, scenario, "gain_over_best_rule"]
    rule = best_rule(judged)
    left = found["genie", "none", scenario, "net_spectral_efficiency"].mean
    left = left / found[rule, "none", scenario, "net_spectral_efficiency"].mean - 1
    return (
        f"{_name(city)}, {speed_kmh:g} km/h: the model that was best on validation walks "
        f"({kind}, {regime}) has {_percent(share)} of the net spectral efficiency of a "
        f"full sweep in every SSB burst, {_percent(once)} with an eighth of the beams sounded and "
        f"no more, and {100 * gain.mean:+.2f} % [{100 * gain.ci_low:+.2f}, {100 * gain.ci_high:+.2f}] "
        f"against the best tuned rule ({rule}, {judged[rule]['setting']}), over which the best beam at no "
        f"cost has {100 * left:+.2f} %."
    )


def _first(found: Mapping[tuple[str, str, str, str], Row], results: Results) -> str:
    """The answer in a sentence: against sweeps by SSB, and against the best tuned rule."""
    gains, shares, stay = [], [], []
    for city, speed_kmh in results.judged:
        if city == results.config.city:
            judged, scenario = results.judged[city, speed_kmh], scenario_of(city, speed_kmh)
            model = best_model(judged)
            gains.append(found[*model, scenario, "gain_over_best_rule"])
            shares.append(found[*model, scenario, "share_of_exhaustive"])
            own = found[*model, scenario, "sounding_overhead"].mean
            bursts = found["exhaustive-ssb", "none", scenario, "sounding_overhead"].mean
            stay.append(100 * shares[-1].mean * (1 - own - bursts) / (1 - own))
    more = sum(row.ci_low > 1 for row in shares)
    better, worse = sum(row.ci_low > 0 for row in gains), sum(row.ci_high < 0 for row in gains)
    return (
        f"On unseen walks of {_name(results.config.city)} learned beams bring more than a full sweep in "
        f"every SSB burst at {more} of {len(shares)} speeds; against the best tuned rule they bring more at "
        f"{better} and less at {worse}. Where these bursts are sent all the same, they bring "
        f"{' and '.join(f'{share:.1f} %' for share in stay)} of that sweep."
    )


def _name(city: str) -> str:
    """Of a shipped city or a file."""
    stem = Path(city).stem
    return stem[:1].upper() + stem[1:]


def _percent(of: Row, sign: str = "") -> str:
    """A share's mean with its interval."""
    mean, low, high = (f"{100 * value:{sign}.1f}" for value in (of.mean, of.ci_low, of.ci_high))
    return f"{mean} % [{low}, {high}]"


def _with_ends(of: Row, how: str) -> str:
    """A mean with its interval."""
    return f"{of.mean:{how}} [{of.ci_low:{how}}, {of.ci_high:{how}}]"


def rows_of(results: Results) -> tuple[Row, ...]:
    """All rows."""
    return (*judged_rows(results), *cost_rows(results), *measured_rows(results))
