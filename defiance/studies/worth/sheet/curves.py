"""The curves of the sheet: fronts, learning curves, distributions, places, pay-back."""

from __future__ import annotations

from collections.abc import Iterator

import contourpy
import numpy as np

from defiance.kpm import Curve, crossed_interval
from defiance.studies.worth.settings import Config, Scenario, away_scenario, caps, home_scenarios
from defiance.studies.worth.sheet.costs import cost, learned_running, rule_running
from defiance.studies.worth.sheet.results import Results, at, pictures
from defiance.studies.worth.sheet.rows import break_even, kinds, saved_per_user_w
from defiance.studies.worth.worlds import scene_of


def curves(results: Results) -> Iterator[Curve]:
    """What the figures draw."""
    for scenario in results.a3:
        fronts = {
            ("a3", "none"): results.a3[scenario]["sweep"],
            ("genie", "none"): results.genie[scenario]["sweep"],
        }
        cap = caps(results.config, scenario)[0]
        for kind, models in results.models(scenario).items():
            if kind == results.chosen(scenario, cap, kind[0]):
                sweeps = [results.judged[m, scenario]["sweep"] for m in models]
                mean = [np.mean([s[i] for s in sweeps], 0).tolist() for i in (1, 2)]
                fronts[f"learned-{kind[0]}", kind[1]] = [[], *mean]
        for (candidate, regime), (_, handovers, outage) in fronts.items():
            x, y = _front(handovers, outage)
            yield Curve(
                "front",
                candidate,
                regime,
                scenario.name(),
                "handovers_per_user_minute",
                "1/min",
                "outage_share",
                "1",
                x,
                y,
            )
    yield from _learning_curves(results)
    yield from _picture_curves(results)
    yield from _break_even_curves(results)


def _front(handovers: list[float], outage: list[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The settings that no other setting beats in both numbers, by handovers."""
    x: list[float] = []
    y: list[float] = []
    for h, o in sorted(zip(handovers, outage, strict=True)):
        if not y or o < y[-1]:
            x.append(h)
            y.append(o)
    return tuple(x), tuple(y)


def _learning_curves(results: Results) -> Iterator[Curve]:
    for (placement, regime, map_), models in kinds(results).items():
        if map_ != results.config.maps[0] or regime.startswith("finetuned"):
            continue
        costs = [cost(results, m) for m in models]
        losses = [results.trained[m]["validation_loss"] for m in models]
        length = min(len(loss) for loss in losses)
        loss = np.array([one[:length] for one in losses])
        rounds = np.arange(length)
        per_round_j = float(np.mean([c.compute_j / c.rounds for c in costs]))
        per_round_model = (
            float(np.mean([c.model_bits / c.rounds for c in costs])) if regime == "federated" else 0.0
        )
        first_bits = float(
            np.mean([c.data_bits + (0 if regime == "federated" else c.model_bits) for c in costs])
        )
        first_j = float(np.mean([c.transfer_j for c in costs]))
        scenario = f"{home_scenarios(results.config)[0].city}/{map_}"
        for name, x, metric, unit in (
            ("learning", first_j + rounds * per_round_j, "energy", "J"),
            ("learning_bits", first_bits + rounds * per_round_model, "communication_bits", "bit"),
        ):
            yield Curve(
                name, f"learned-{placement}", regime, scenario, metric, unit, "validation_loss", "1",
                tuple(map(float, x[1:])), tuple(map(float, loss.mean(0)[1:])),
            )  # fmt: skip


def _picture_curves(results: Results) -> Iterator[Curve]:
    seen: set[str] = set()
    for scenario in results.a3:
        cap = caps(results.config, scenario)[0]
        for candidate, regime, key in pictures(results, scenario):
            part = results.pictures[key]
            shares = tuple(part["shares"])
            yield Curve(
                "sinr_cdf",
                candidate,
                regime,
                scenario.name(),
                "sinr",
                "dB",
                "share",
                "1",
                tuple(part["sinr_db"]),
                shares,
            )
            yield Curve(
                "throughput_cdf",
                candidate,
                regime,
                scenario.name(),
                "throughput",
                "bit/s",
                "share",
                "1",
                tuple(part["throughput"]),
                shares,
            )
            yield Curve(
                "failure_places",
                candidate,
                regime,
                scenario.name(cap),
                "x",
                "m",
                "y",
                "m",
                tuple(part["outage_x_m"]),
                tuple(part["outage_y_m"]),
            )
            if scenario.city not in seen:
                seen.add(scenario.city)
                yield from _city_curves(results.config, scenario)


def _city_curves(config: Config, scenario: Scenario) -> Iterator[Curve]:
    scene = scene_of(config, scenario.city, "raw")
    outdoor = scene.outdoor.numpy()[::2, ::2].astype(float)
    x = scene.origin_m[0] + 2 * scene.resolution_m * np.arange(outdoor.shape[1])
    y = scene.origin_m[1] + 2 * scene.resolution_m * np.arange(outdoor.shape[0])
    lines = contourpy.contour_generator(x, y, outdoor).lines(0.5)
    if lines:
        joined = np.concatenate([np.vstack([np.asarray(line), [[np.nan, np.nan]]]) for line in lines])
        xs, ys = (tuple(map(float, column)) for column in joined.round(1).T)
        yield Curve("buildings", "", "", scenario.city, "x", "m", "y", "m", xs, ys)
    sites = scene.site_position_m
    yield Curve(
        "sites",
        "",
        "",
        scenario.city,
        "x",
        "m",
        "y",
        "m",
        tuple(sites[:, 0].tolist()),
        tuple(sites[:, 1].tolist()),
    )


def _break_even_curves(results: Results) -> Iterator[Curve]:
    config = results.config
    users = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
    for scenario in results.a3:
        if scenario == away_scenario(config):
            continue
        cap = caps(config, scenario)[0]
        kind = results.chosen(scenario, cap)
        models = results.models(scenario)[kind]
        a3 = at(results.a3[scenario], cap)["test"]
        tests = [at(results.judged[m, scenario], cap)["test"] for m in models]
        rule, own = rule_running(results, scenario, a3), learned_running(results, scenario, kind[0], tests)
        saved = crossed_interval(saved_per_user_w(config, a3, rule, own))
        invested_j = [float(np.mean([cost(results, m).investment_j(u) for m in models])) for u in users]
        times = [
            break_even(j, (saved[0] * u, saved[1] * u, saved[2] * u))
            for j, u in zip(invested_j, users, strict=True)
        ]
        yield Curve(
            "break_even", f"learned-{kind[0]}", kind[1], scenario.name(cap),
            "users", "1", "break_even_time", "s",
            users, tuple(t[0] for t in times), tuple(t[1] for t in times), tuple(t[2] for t in times),
        )  # fmt: skip
