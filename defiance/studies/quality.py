"""How does a model's quality affect the network?

The learned handover is trained, its threshold is tuned, and then it is made worse: less data, less training,
fewer bits per weight, noise on what it sees, decisions on old measurements, one of the stations broken or
malicious. Each candidate runs in the same test worlds as the healthy function and the tuned rule A3, so that
what it does to users (outage, handovers, ping-pongs, failures) stands beside how well it predicts
(`performance`: share of the variance of hindsight values on held-out users). `outage_cut` is relative to A3,
paired by seed: below 0 the rule wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defiance import __version__
from defiance import config as configuration
from defiance.control.experience import Batches, Experience, ValueModel, initial_parameters, slots, value_loss
from defiance.control.handover import HISTORY, Learned
from defiance.kpm import METRICS, Curve, Row, Sheet, mean_interval
from defiance.learn.training import Parameters, Schedule, fit
from defiance.network.loop import PERIOD_STEPS
from defiance.network.simulate import simulate
from defiance.parts import Parts
from defiance.scene import Scene
from defiance.seeding import stream
from defiance.studies import ALL_CORES, Progress, Workers, machine, pool
from defiance.studies.worth import experiments
from defiance.studies.worth import settings as worth
from defiance.studies.worth import training as handover
from defiance.studies.worth.worlds import per_world, worlds_of
from defiance.studies.worth.worlds import scene_of as worth_scene

RULE, HEALTHY = "a3", "healthy"
PLACEMENT = "device"
NETWORK_METRICS = (
    "outage_share",
    "handovers_per_user_minute",
    "ping_pongs_per_user_hour",
    "failures_per_user_hour",
    "throughput",
)


@dataclass(frozen=True)
class Config:
    """Configuration of the study."""

    scene: str = field(default="munich", metadata={"help": "city: shipped name or scene file"})
    speed_kmh: float = field(default=50.0, metadata={"min": 0.1, "max": 120.0, "unit": "km/h"})
    load: float = field(default=0.5, metadata={"min": 0.0, "max": 1.0, "help": "PRBs occupied"})
    cap: float = field(default=8.0, metadata={"min": 0.1, "unit": "1/min", "help": "handovers at most"})
    offsets_db: tuple[float, ...] = field(
        default=experiments.OFFSETS_DB, metadata={"unit": "dB", "help": "of A3, to tune among"}
    )
    users: int = field(default=100, metadata={"min": 2, "max": 2000, "help": "users per test world"})
    test_s: float = field(default=120.0, metadata={"min": 5.0, "unit": "s", "help": "time per test world"})
    validation_worlds: int = field(default=4, metadata={"min": 1, "max": 100})
    validation_s: float = field(default=60.0, metadata={"min": 5.0, "unit": "s"})
    training: worth.Training = worth.Training()


FULL = Config()
QUICK = replace(
    FULL,
    users=60,
    test_s=60.0,
    validation_worlds=2,
    training=replace(FULL.training, worlds=4, width=128, rounds=15, steps_per_round=150),
)
PRESETS = {"quick": QUICK, "full": FULL}
SEEDS = {"quick": 4, "full": 8}


@dataclass(frozen=True)
class Degraded(ValueModel):
    """A value model that sees less than was measured.

    Attributes:
        delay: newest measurements that it lacks; the oldest one stands in for those before the window.
        noise_db: standard deviation of an error on every measurement, drawn at every decision.
        draws: of the errors.
    """

    delay: int = 0
    noise_db: float = 0.0
    draws: torch.Generator | None = None

    def value(self, history_dbm: Tensor, serving: Tensor) -> Tensor:
        """As of `ValueModel`, from what is left."""
        seen = history_dbm
        if self.delay:
            oldest = seen[:, :1].expand(-1, self.delay, -1)
            seen = torch.cat([oldest, seen[:, : -self.delay]], 1)
        if self.noise_db:
            seen = seen + self.noise_db * torch.randn(seen.shape, generator=self.draws)
        return super().value(seen, serving)


def weights_key(data: float, training: float) -> str:
    """Key of weights trained on a share of the users, for a share of the rounds."""
    return f"weights/data{data:g}/training{training:g}"


TRAINED = ((1.0, 1.0), (0.3, 1.0), (0.1, 1.0), (0.03, 1.0), (1.0, 0.2), (1.0, 0.05))
"""Shares of data and of training."""

DEGRADATIONS: dict[str, dict[str, Any]] = {
    HEALTHY: {},
    **{f"data {100 * data:g} %": {"data": data} for data, training in TRAINED if data < 1},
    **{f"training {100 * training:g} %": {"training": training} for _, training in TRAINED if training < 1},
    **{f"weights of {bits} bits": {"bits": bits} for bits in (8, 4, 3, 2)},
    **{f"noise of {noise:g} dB": {"noise_db": noise} for noise in (1.0, 3.0, 6.0)},
    **{f"{100 * delay} ms late": {"delay": delay} for delay in (1, 3, 10)},
    "one station untrained": {"broken": "untrained"},
    "one station malicious": {"broken": "malicious"},
}


def quantised(parameters: Parameters, bits: int) -> Parameters:
    """Weights rounded to `2^bits - 1` levels about zero, up to each tensor's largest."""
    levels = 2 ** (bits - 1) - 1
    found = {}
    for name, weight in parameters.items():
        step = weight.abs().max().clamp(min=torch.finfo(torch.float32).tiny) / levels
        found[name] = (weight / step).round() * step
    return found


def broken(parameters: Parameters, how: str, site: int, sites: int) -> Parameters:
    """One model per station, all alike but one: fresh weights, or the opposite of what the others say."""
    stacked = {name: weight.expand(sites, *weight.shape[1:]).clone() for name, weight in parameters.items()}
    layers = len(parameters) // 2
    if how == "malicious":
        for name in (f"weight{layers - 1}", f"bias{layers - 1}"):
            stacked[name][site] *= -1
        return stacked
    widths = (stacked["weight0"].shape[1], *(stacked[f"weight{layer}"].shape[2] for layer in range(layers)))
    for name, weight in initial_parameters(widths, 1, stream(0, "untrained")).items():
        stacked[name][site] = weight[0]
    return stacked


def model_of(config: Config, degradation: Mapping[str, Any], parts: Parts) -> Degraded:
    """The function with a degradation, or without."""
    scene = scene_of(config)
    kept = parts.get_tensors(weights_key(degradation.get("data", 1.0), degradation.get("training", 1.0)))
    assert kept is not None
    if "bits" in degradation:
        kept = quantised(kept, degradation["bits"])
    if "broken" in degradation:
        kept = broken(kept, degradation["broken"], busiest(scene), len(scene.site_position_m))
    return Degraded(
        kept,
        scene.cell_site,
        slots(scene),
        delay=degradation.get("delay", 0),
        noise_db=degradation.get("noise_db", 0.0),
        draws=stream(0, "noise").generator(),
    )


def busiest(scene: Scene) -> int:
    """The station that breaks: the most central one, whose cells have the most neighbours."""
    position = scene.site_position_m[:, :2]
    return int(torch.cdist(position, position).sum(1).argmin())


def of_worth(config: Config) -> worth.Config:
    """The configuration whose worlds, rule and recordings are used."""
    return replace(
        worth.QUICK,
        scene=config.scene,
        users=config.users,
        test_s=config.test_s,
        validation_worlds=config.validation_worlds,
        validation_s=config.validation_s,
        training=config.training,
    )


def scenario_of(config: Config) -> worth.Scenario:
    """Where everything happens."""
    return worth.Scenario(Path(config.scene).stem, config.speed_kmh, config.load, "raw")


def scene_of(config: Config) -> Scene:
    """The city."""
    return worth_scene(of_worth(config), Path(config.scene).stem, "raw")


def record(config: Config, parts: Parts) -> dict[str, Any]:
    """Keeps what is learned from."""
    return handover.record(of_worth(config), PLACEMENT, scenario_of(config), parts)


@lru_cache(maxsize=1)
def recorded(config: Config, parts: Parts) -> Experience:
    """What `record` kept."""
    kept = parts.get_tensors(f"{handover.RECORDED}{PLACEMENT}/{scenario_of(config).name()}")
    assert kept is not None
    return Experience(**kept)


def train(config: Config, data: float, training: float, parts: Parts) -> dict[str, Any]:
    """Trains on the first users, and keeps the weights."""
    scene, experience, settings = scene_of(config), recorded(config, parts), config.training
    learning, held = handover.split(experience.rsrp_dbm.shape[1])
    learning = learning[: max(1, round(data * len(learning)))]
    cells = len(scene.cell_site)
    start = initial_parameters(
        (HISTORY * cells, settings.width, settings.width, cells), 1, stream(0, "model")
    )
    shell = ValueModel(start, scene.cell_site, slots(scene))
    batches = Batches.of(experience, scene.cell_site, 1, settings.batch, learning)
    loss, check = value_loss(shell), checked(config, parts)
    rounds = max(1, round(training * settings.rounds))
    found = fit(
        start,
        loss,
        batches.draw,
        lambda parameters: loss(parameters, check),
        torch.eye(1),
        Schedule(rounds, settings.steps_per_round, settings.learning_rate, patience=max(2, rounds // 2)),
        stream(0, "training"),
    )
    parts.put_tensors(weights_key(data, training), found.parameters)
    return {"rounds": found.rounds, "samples": len(batches.times)}


def checked(config: Config, parts: Parts) -> tuple[Tensor, Tensor]:
    """Held-out samples that every candidate is judged by, `[1, 4096, ...]`."""
    experience = recorded(config, parts)
    _, held = handover.split(experience.rsrp_dbm.shape[1])
    batches = Batches.of(experience, scene_of(config).cell_site, 1, 4096, held)
    return batches.draw(stream(0, "held").generator())


def explained(config: Config, model: Degraded, parts: Parts) -> float:
    """Share of the variance of held-out values that a model explains, each sample by a station at random."""
    history, value = (column[0] for column in checked(config, parts))
    serving = torch.randint(value.shape[1], (len(value),), generator=stream(0, "serving").generator())
    with torch.no_grad():
        error = (model.value(history, serving) - value).square().mean()
    return float(1 - error / value.var(unbiased=False))


def tune_rule(config: Config) -> dict[str, Any]:
    """Filter, time to trigger and offset of A3 of least outage under the cap, and its handovers."""
    options = [
        [k, time_to_trigger_s, offset_db, 0.0]
        for k in experiments.FILTERS_K
        for time_to_trigger_s in experiments.TIMES_TO_TRIGGER_S
        for offset_db in config.offsets_db
    ]
    base = of_worth(config)
    found = experiments.sweep(base, scenario_of(config), options, lambda c: experiments.rule(base, c), 27)
    best = found.under(config.cap)
    return {"setting": found.settings[best], "handovers": found.handovers[best]}


def tune_threshold(config: Config, rule_handovers: float, parts: Parts) -> dict[str, Any]:
    """The healthy function's threshold: least outage with no more handovers than the rule."""
    model = model_of(config, {}, parts)
    options = [[threshold] for threshold in experiments.THRESHOLDS]
    found = experiments.sweep(
        of_worth(config), scenario_of(config), options, lambda columns: policy(model, columns[0]), 8
    )
    return {"threshold": found.settings[found.under(worth.handover_limit(config.cap, rule_handovers))][0]}


def policy(model: ValueModel, threshold: Tensor | float) -> Learned:
    """The function on the device."""
    return Learned(model, threshold, "device", PERIOD_STEPS[PLACEMENT])


def judge_rule(config: Config, setting: list[float], seeds: tuple[int, ...]) -> dict[str, Any]:
    """The rule on the test worlds."""
    base = of_worth(config)
    return experiments.test(base, scenario_of(config), experiments.rule(base, setting), seeds)


def judge(
    config: Config, name: str, threshold: float, seeds: tuple[int, ...], parts: Parts
) -> dict[str, Any]:
    """A candidate on the test worlds, and where outage was: at the station that may break, or elsewhere."""
    base, model = of_worth(config), model_of(config, DEGRADATIONS[name], parts)
    worlds = worlds_of(base, scenario_of(config), "test", seeds)
    outcome = simulate(
        worlds,
        base.radio,
        policy(model, threshold),
        stream(0, "messages"),
        duration_s=config.test_s,
        record=True,
    )
    assert outcome.log is not None
    scene = scene_of(config)
    at = scene.cell_site[outcome.log.serving.long()] == busiest(scene)
    steps = outcome.log.outage_steps.diff(dim=0, prepend=torch.zeros_like(outcome.log.outage_steps[:1]))

    def share(which: Tensor) -> list[float]:
        served = which.sum((0, 2)).clamp(min=1) * PERIOD_STEPS[PLACEMENT]
        return ((steps * which).sum((0, 2)) / served).tolist()

    found = per_world(outcome, worlds, base.radio)
    return {
        **{metric: found[metric] for metric in NETWORK_METRICS},
        "at_station": share(at),
        "elsewhere": share(~at),
        "performance": explained(config, model_of(config, DEGRADATIONS[name], parts), parts),
    }


def run(
    config: Config,
    *,
    seeds: tuple[int, ...],
    parts: Parts,
    progress: Progress,
    workers: Workers = ALL_CORES,
) -> Sheet:
    """Answers the question; see `studies.Study`."""
    tests = "-".join(map(str, seeds))
    with pool.workers(workers, parts) as submit:
        recording: list[pool.Job] = [("record", record, (parts,)), ("rule", tune_rule, ())]
        pool.do("recording, tuning the rule", recording, config, parts, progress, submit)
        training: list[pool.Job] = [
            (f"train/{weights_key(*shares)}", train, (*shares, parts)) for shares in TRAINED
        ]
        pool.do("training", training, config, parts, progress, submit)
        rule = pool.part(parts, "rule")
        tuning: list[pool.Job] = [("threshold", tune_threshold, (rule["handovers"], parts))]
        pool.do("tuning the threshold", tuning, config, parts, progress, submit)
        threshold = pool.part(parts, "threshold")["threshold"]
        judging: list[pool.Job] = [(f"judge/{RULE}/{tests}", judge_rule, (rule["setting"], seeds))]
        judging += [
            (
                f"judge/{name}/{tests}".replace(" ", "-").replace("%", "percent"),
                judge,
                (name, threshold, seeds, parts),
            )
            for name in DEGRADATIONS
        ]
        pool.do("judging", judging, config, parts, progress, submit)
    found = {
        name: pool.part(parts, key) for name, (key, *_) in zip((RULE, *DEGRADATIONS), judging, strict=True)
    }
    place = scenario_of(config).name(config.cap)
    rows = [row for name in found for row in _rows(name, found, place)]
    return Sheet(
        "quality",
        __version__,
        configuration.to_dict(config),
        seeds,
        machine(),
        "",
        tuple(rows),
        (_curve(found, place),),
        _verdict(found),
    )


def _cut(of: Mapping[str, Any], rule: Mapping[str, Any]) -> list[float]:
    """Outage avoided relative to the rule's mean, by seed: its mean is the mean difference over that."""
    usual = float(np.mean(rule["outage_share"]))
    pairs = zip(of["outage_share"], rule["outage_share"], strict=True)
    return [(theirs - own) / usual if usual else 0.0 for own, theirs in pairs]


def _rows(name: str, found: Mapping[str, Mapping[str, Any]], place: str) -> list[Row]:
    of, regime = found[name], "none" if name == RULE else "central"

    def row(metric: str, samples: list[float], node: str = "network", unit: str = "") -> Row:
        known = METRICS[metric].unit or unit
        return Row(
            name, regime, place, node, metric, known, *mean_interval(samples), len(samples), "measured"
        )

    rows = [row(metric, of[metric]) for metric in NETWORK_METRICS]
    if name != RULE:
        rows += [
            row("performance", [of["performance"]], unit="1"),
            row("outage_cut", _cut(of, found[RULE])),
            row("outage_share", of["at_station"], "central station"),
            row("outage_share", of["elsewhere"], "other stations"),
        ]
    return rows


def _curve(found: Mapping[str, Mapping[str, Any]], place: str) -> Curve:
    """The network's KPI against the model's."""
    points = []
    for name, of in found.items():
        if name != RULE:
            points.append((of["performance"], *mean_interval(_cut(of, found[RULE]))))
    x, y, low, high = (tuple(map(float, column)) for column in zip(*sorted(points), strict=True))
    return Curve(
        "quality", "learned", "central", place, "performance", "1", "outage_cut", "1", x, y, low, high
    )


def _verdict(found: Mapping[str, Mapping[str, Any]]) -> str:
    cuts = {name: mean_interval(_cut(of, found[RULE])) for name, of in found.items() if name != RULE}
    alike = {name: cut for name, cut in cuts.items() if "broken" not in DEGRADATIONS[name]}
    wins = sorted(found[name]["performance"] for name, (_, low, _) in alike.items() if low > 0)
    loses = sorted(found[name]["performance"] for name, (_, _, high) in alike.items() if high < 0)
    worse = [name for name, (_, _, high) in cuts.items() if high < 0]
    open_ = [name for name, (_, low, high) in cuts.items() if not (low > 0 or high < 0)]
    text = f"The healthy function cuts {100 * cuts[HEALTHY][0]:.0f} % of A3's outage"
    text += f" and explains {100 * found[HEALTHY]['performance']:.0f} % of the variance."
    text += (
        f" The rule wins against: {', '.join(worse) or 'none'}; not resolved: {', '.join(open_) or 'none'}."
    )
    if wins and loses:
        text += (
            f" The worst model that still wins explains {100 * wins[0]:.0f} %, the best that loses"
            f" {100 * loses[-1]:.0f} %."
        )
    spoiled = found["one station malicious"]
    elsewhere = mean_interval(np.subtract(spoiled["elsewhere"], found[HEALTHY]["elsewhere"]))
    resolved = "" if elsewhere[1] > 0 or elsewhere[2] < 0 else " (not resolved)"
    return text + (
        f" A malicious central station changes the outage of users at other stations by"
        f" {100 * elsewhere[0]:+.2f} points{resolved}."
    )
