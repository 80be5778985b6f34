"""How the study `worth` folds its parts, by hand: choices under a cap, intervals, break-even, the verdict."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import stdtrit
from worth_toy import HOME, SEEDS

from defiance.kpm import Row, crossed_interval
from defiance.studies import worth
from defiance.studies.worth.experiments import Sweep
from defiance.studies.worth.settings import (
    Config,
    Scenario,
    caps,
)
from defiance.studies.worth.sheet import Results, verdict
from defiance.studies.worth.sheet.rows import _unseen_street_rows, break_even, relative
from defiance.studies.worth.training import Model

WALK = replace(HOME, speed_kmh=3.0)


def asked(**changes: Any) -> Config:
    plain = {"unseen_scene": "", "maps": ("raw",), "speeds_kmh": (3.0, 30.0), "loads": (0.5,), "caps": (8.0,)}
    return replace(worth.PRESETS["full"], **(plain | changes))


# --- arithmetic ---


def test_under_a_cap_the_least_outage_is_chosen() -> None:
    found = Sweep([[1.0], [2.0], [3.0], [4.0]], [12.0, 8.0, 6.0, 2.0], [0.01, 0.03, 0.02, 0.05])
    assert [found.under(cap) for cap in (20.0, 12.0, 11.9, 8.0, 5.0, 2.0)] == [0, 0, 2, 2, 3, 3]


def test_where_no_setting_keeps_the_cap_the_fewest_handovers_are_chosen() -> None:
    found = Sweep([[1.0], [2.0], [3.0]], [12.0, 9.0, 10.0], [0.01, 0.03, 0.02])
    assert found.under(8.0) == 1


def test_what_keeps_to_the_handovers_is_chosen_before_what_has_less_outage() -> None:
    """Under cap 8 a rule with 6 handovers allows 5.88; two seeds count with their mean."""

    def chosen(rule: float, found: dict[str, list[tuple[float, float]]], placement: str | None) -> str:
        results = Results(
            asked(),
            SEEDS,
            a3={HOME: {"caps": [{"cap": 8.0, "validation_handovers": rule}]}},
            genie={},
            trained={},
            judged={
                (Model(kind.split()[0], kind.split()[1], "raw", seed), HOME): {
                    "caps": [{"cap": 8.0, "validation_handovers": handovers, "validation_outage": outage}]
                }
                for kind, seeds in found.items()
                for seed, (handovers, outage) in enumerate(seeds)
            },
            pictures={},
        )
        return " ".join(results.chosen(HOME, 8.0, placement))

    found = {
        "device central": [(5.0, 0.03), (6.76, 0.03)],
        "device local": [(5.89, 0.01)],
        "station central": [(7.8, 0.02)],
        "station local": [(9.0, 0.015)],
    }
    assert chosen(6.0, found, None) == "device central"
    assert chosen(6.0, found, "station") == "station local"  # none keeps to it: the least outage
    assert (
        chosen(100.0, found, None) == "device local" and chosen(100.0, found, "station") == "station central"
    )
    assert chosen(1.0, found, None) == "device local"


def test_outage_is_not_cut_where_the_rule_has_none() -> None:
    assert relative(np.array([[0.1, -0.1]]), 0.2).tolist() == [[0.5, -0.5]]
    assert crossed_interval(relative(np.zeros((2, 3)), 0.0)) == (0, 0, 0)
    assert np.isnan(crossed_interval(relative(np.array([[0.0, -0.1]]), 0.0))).all()


def unseen_rows(rule: list[float], own: list[float]) -> dict[tuple[str, str], Row]:
    pictures = {"a3/none": rule, "learned-device/central": own}
    found = {f"picture/{kind}/seeds0-2/{HOME.name()}": {"unseen_outage": x} for kind, x in pictures.items()}
    results = Results(asked(), (0, 1, 2), a3={}, genie={}, trained={}, judged={}, pictures=found)
    return {(row.candidate, row.metric): row for row in _unseen_street_rows(results, HOME)}


def test_worlds_without_time_on_unseen_streets_are_left_out() -> None:
    rows = unseen_rows([0.1, math.nan, 0.3], [0.1, math.nan, 0.1])
    assert {row.n for row in rows.values()} == {2}
    means = [rows[key].mean for key in (("a3", "outage_share"), ("learned-device", "outage_share"))]
    assert [*means, rows["learned-device", "outage_cut"].mean] == pytest.approx([0.2, 0.1, 0.5])
    assert unseen_rows([math.nan] * 3, [math.nan] * 3) == {}


def test_sweeps_add_up() -> None:
    total = Sweep([[1.0]], [3.0], [0.1]) + Sweep([[2.0]], [2.0], [0.2])
    assert total == Sweep([[1.0], [2.0]], [3.0, 2.0], [0.1, 0.2])


def samples(models: int, seeds: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(1)
    return 0.3 + 0.05 * rng.normal(size=(models, 1)) + 0.1 * rng.normal(size=(models, seeds))


def test_a_crossed_interval_by_hand() -> None:
    x = samples(3, 8)
    over_seeds = np.var([x[:, j].mean() for j in range(8)], ddof=1) / 8
    over_models = np.var([x[i].mean() for i in range(3)], ddof=1) / 3
    freedom = (over_seeds + over_models) ** 2 / (over_seeds**2 / 7 + over_models**2 / 2)
    half = stdtrit(freedom, 0.975) * math.sqrt(over_seeds + over_models)
    assert crossed_interval(x) == pytest.approx((x.mean(), x.mean() - half, x.mean() + half))


@pytest.mark.parametrize("shape", [(1, 8), (8, 1)])
def test_with_one_training_seed_the_interval_is_students(shape: tuple[int, int]) -> None:
    x = samples(1, 8).reshape(shape)
    half = stdtrit(7, 0.975) * x.std(ddof=1) / math.sqrt(8)
    assert crossed_interval(x) == pytest.approx((x.mean(), x.mean() - half, x.mean() + half))


def test_one_sample_has_no_interval_and_equal_ones_no_width() -> None:
    mean, low, high = crossed_interval(np.array([[0.2]]))
    assert mean == 0.2 and math.isnan(low) and math.isnan(high)
    assert crossed_interval(np.full((3, 4), 0.25)) == (0.25, 0.25, 0.25)


def test_weights_make_cells_of_few_users_count_little() -> None:
    """Equal weights change nothing, groups without users aren't there, and cells are sums over users."""
    x = samples(3, 8)
    assert crossed_interval(5 * x, np.full_like(x, 5.0)) == pytest.approx(crossed_interval(x))
    wider = np.pad(x, ((0, 0), (0, 2)))
    assert crossed_interval(wider, np.pad(np.ones_like(x), ((0, 0), (0, 2)))) == pytest.approx(
        crossed_interval(x)
    )
    users = np.array([[3.0, 1.0], [1.0, 3.0]])
    sums = np.array([[6.0, 1.0], [2.0, 3.0]])  # everyone on the first walk has 2, everyone on the second 1
    mean, low, _ = crossed_interval(sums, users)
    # residuals 2, -2 by walk and 1, -1 by seed, of 8 users
    variance = 2 * (4 + 4) / 64 + 2 * (1 + 1) / 64
    freedom = variance**2 / ((2 * 8 / 64) ** 2 + (2 * 2 / 64) ** 2)
    assert mean == 1.5
    assert low == pytest.approx(1.5 - stdtrit(freedom, 0.975) * math.sqrt(variance))


def test_the_interval_holds_what_both_kinds_of_seeds_add() -> None:
    """Models that differ widen it as much as test worlds that differ."""
    by_model = np.repeat(np.array([[0.1], [0.2], [0.3]]), 8, 1)
    by_world = np.repeat(np.array([[0.1, 0.2, 0.3]]), 8, 0)
    assert crossed_interval(by_model) == pytest.approx(crossed_interval(by_world))
    assert crossed_interval(by_model)[1] < 0


def test_break_even_is_investment_over_saved_power() -> None:
    """100 J at 2 W [1, 4]: 50 s [25, 100]."""
    assert break_even(100.0, (2.0, 1.0, 4.0)) == (50.0, 25.0, 100.0)
    assert break_even(100.0, (2.0, -1.0, 5.0)) == (50.0, 20.0, math.inf)
    assert break_even(100.0, (-1.0, -2.0, 0.5)) == (math.inf, 200.0, math.inf)
    assert break_even(100.0, (-2.0, -3.0, -1.0)) == (math.inf, math.inf, math.inf)
    time, low, high = break_even(100.0, (2.0, math.nan, math.nan))
    assert time == 50.0 and math.isnan(low) and math.isnan(high)


# --- the verdict ---


def judged(
    config: Config,
    cuts: dict[Scenario, tuple[float, float]],
    pays_back_s: float,
    handovers: float = 5.0,
    rule: float = 6.0,
) -> str:
    """The verdict on one model with these cuts of outage (+- 0.05), validation outages being equal."""
    model = Model("device", "central", "raw", 0)
    found = []
    for scenario, (cut, _) in cuts.items():
        for cap in caps(config, scenario):
            name = ("learned-device", "central", scenario.name(cap), "network")
            found += [
                Row(*name, "outage_cut", "1", cut, cut - 0.05, cut + 0.05, 8, "measured"),
                Row(*name, "break_even_time", "s", pays_back_s, math.nan, math.nan, 8, "modelled"),
                Row(*name, "handovers_per_user_minute", "1/min", 5.0, 4.9, 5.1, 8, "measured"),
                Row(
                    "a3",
                    "none",
                    *name[2:],
                    "handovers_per_user_minute",
                    "1/min",
                    rule,
                    rule,
                    rule,
                    8,
                    "measured",
                ),
            ]
    results = Results(
        config,
        SEEDS,
        a3={
            s: {
                "caps": [
                    {"cap": c, "validation_handovers": 8.0, "test": {"outage_share": [outage]}}
                    for c in caps(config, s)
                ]
            }
            for s, (_, outage) in cuts.items()
        },
        genie={},
        trained={},
        judged={
            (replace(model, map=s.map), s): {
                "caps": [
                    {"cap": c, "validation_handovers": handovers, "validation_outage": 0.01}
                    for c in caps(config, s)
                ]
            }
            for s in cuts
        },
        pictures={},
    )
    return verdict(results, tuple(found))


def test_the_verdict_on_a_gain_that_never_pays_back() -> None:
    words = judged(asked(), {HOME: (0.3, 0.02), WALK: (0.01, 0.0013)}, math.inf)
    assert "Munich" in words and "has less outage" in words and "not shown" not in words
    assert "-30 % [-35, -25]" in words
    assert "For pedestrians" in words and "0.13 %" in words and "to gain" in words
    assert "never pays back" in words
    assert "central" in words and "on the device" in words


def test_the_verdict_owns_up_to_more_handovers() -> None:
    assert "no more often" not in judged(asked(speeds_kmh=(30.0,)), {HOME: (0.3, 0.02)}, math.inf)
    words = judged(asked(speeds_kmh=(30.0,)), {HOME: (0.3, 0.02)}, math.inf, rule=4.96)
    assert "no more often than the rule, but for 1 of 1 scenarios in the test (5.00 against 4.96" in words


def test_the_verdict_on_a_gain_that_pays_back() -> None:
    words = judged(asked(speeds_kmh=(30.0,)), {HOME: (0.3, 0.02)}, 7200.0)
    assert "pays back" in words and "2 h" in words and "1 of 1" in words and "never" not in words
    assert "pedestrian" not in words.lower()


def test_the_verdict_does_not_claim_what_is_not_resolved() -> None:
    words = judged(asked(speeds_kmh=(30.0,)), {HOME: (0.04, 0.02)}, math.inf)
    assert "not shown to be worth having" in words
    busy = replace(HOME, load=1.0)
    words = judged(
        asked(speeds_kmh=(30.0,), loads=(0.5, 1.0)), {HOME: (0.3, 0.02), busy: (0.0, 0.1)}, math.inf
    )
    assert "helps in 1 of 2" in words


def test_the_verdict_names_the_map_that_was_judged() -> None:
    smooth = replace(HOME, map="smooth")
    words = judged(asked(speeds_kmh=(30.0,), maps=("smooth",)), {smooth: (0.3, 0.02)}, math.inf)
    assert "Without the map's ray noise" in words and "traced map" not in words
    both = asked(speeds_kmh=(30.0,), maps=("smooth", "raw"))
    words = judged(both, {smooth: (0.3, 0.02), HOME: (0.4, 0.02)}, math.inf)
    assert "ray noise (3x3 median) time in outage changes by -30 %" in words
    assert "On the traced map time in outage changes by -40 %" in words


def test_the_verdict_where_the_rule_is_never_in_outage() -> None:
    busy = replace(HOME, load=1.0)
    two = asked(speeds_kmh=(30.0,), loads=(0.5, 1.0))
    words = judged(two, {HOME: (math.nan, 0.0), busy: (0.3, 0.02)}, math.inf)
    assert "-30 %" in words and "in 1 of 2 scenarios the learned function alone is in outage" in words
    assert "nan" not in words and "helps in 1 of 2" in words
    words = judged(asked(speeds_kmh=(30.0,)), {HOME: (math.nan, 0.0)}, math.inf)
    assert "nan" not in words and "not shown" in words
    words = judged(asked(), {HOME: (0.3, 0.02), WALK: (math.nan, 0.0)}, math.inf)
    assert "nan" not in words and "the learned function is where the rule never is" in words


def test_the_verdict_says_where_nothing_keeps_to_the_rules_handovers() -> None:
    one = asked(speeds_kmh=(30.0,))
    assert "keeps to" not in judged(one, {HOME: (0.3, 0.02)}, math.inf)
    assert "In 1 of them no learned function keeps to the rule's handovers" in judged(
        one, {HOME: (0.3, 0.02)}, math.inf, handovers=9.0
    )
