"""Beam selection made worse: rules and the model serve the same users on traced walks at 28 GHz."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from defiance.control.beam_learning import Samples, lost_db, scores, soft_loss
from defiance.control.beams import Learned, Policy, seen_by_model, serve
from defiance.control.experience import initial_parameters
from defiance.control.sounding import measured_snr_db, reported
from defiance.learn.training import Parameters
from defiance.network.settings import RadioConfig
from defiance.parts import Parts
from defiance.seeding import stream
from defiance.studies.beams import experiments
from defiance.studies.beams.channels import BOOK, beam_gain_db, walks_of
from defiance.studies.beams.experiments import TICK_S, WARM_UP_S
from defiance.studies.beams.settings import FULL
from defiance.studies.beams.training import Recipe, pooled
from defiance.studies.beams.training import train as train_model
from defiance.studies.quality.degradations import (
    degradations,
    quantised,
    reversed_last,
    trained_key,
    weights_key,
    with_one,
)
from defiance.studies.quality.settings import Config

MODEL = experiments.Model("spatial", "central", 0)
DEGRADATIONS = degradations(
    {f"noise of {level:g} dB": level for level in (2.0, 6.0, 12.0)}, (0.04, 0.08, 0.16)
)
LEARNING_RATE, BATCH = 2e-3, 256
VALIDATION_SEEDS = (100, 101)
EVERY = 10
"""Ticks between two instants at which the model alone is judged."""


@dataclass(frozen=True)
class Noisy(Policy):
    """A model that hears with an error.

    Attributes:
        model: that chooses.
        noise_db: standard deviation of an error on every measured power.
        draws: of the errors.
    """

    model: Learned
    noise_db: float
    draws: torch.Generator

    def __post_init__(self) -> None:
        for name in ("book", "sounding", "common", "dedicated", "stages", "report_bits", "operations"):
            object.__setattr__(self, name, getattr(self.model, name))

    def initial(self, users: int) -> Any:
        """The model's."""
        return self.model.initial(users)

    def decide(self, memory: Any, listen: Callable[[Tensor], Tensor]) -> tuple[Any, Tensor]:
        """What the model decides on what it hears."""

        def heard(beams: Tensor) -> Tensor:
            found = listen(beams)
            return found + self.noise_db * torch.randn(found.shape, generator=self.draws)

        return self.model.decide(memory, heard)

    def asked(self, memory: Any, users: int) -> float:
        """The model's."""
        return self.model.asked(memory, users)


def of_study(config: Config) -> Any:
    """The configuration of the study `beams` whose users and radio are used."""
    own = config.beams
    return replace(
        FULL,
        city=config.walks,
        users=own.users,
        duration_s=own.test_s,
        training=replace(FULL.training, width=own.width),
    )


def train(config: Config, data: float, share: float, parts: Parts) -> dict[str, Any]:
    """Trains on the first samples, chooses the round on other walks, and keeps the weights."""
    own, base = config.beams, of_study(config)
    samples, held = (
        pooled(experiments.city_samples(base, MODEL.kind, 0, config.walks, purpose, count)[0])
        for purpose, count in (("training", own.samples), ("validation", max(100, own.samples // 5)))
    )
    order = torch.randperm(len(samples.features), generator=stream(0, "quality", "beams").generator())
    some = order[: max(8, round(data * len(order)))]
    few = Samples.of([(samples.features[some], samples.power_db[some])])
    rounds = max(1, round(share * own.rounds))
    recipe = Recipe(own.width, LEARNING_RATE, min(BATCH, 4 * len(some)), rounds, own.steps_per_round)
    loss = partial(soft_loss, softness_db=experiments.SOFTNESS_DB)
    found = train_model("central", few, held, loss, recipe, stream(0, "quality", "beams", "training"))
    parts.put_tensors(weights_key("beams", data, share), found.parameters)
    return {"rounds": found.rounds, "samples": len(some)}


@lru_cache(maxsize=1)
def broken_station(config: Config) -> int:
    """The station that breaks: it serves most training users."""
    samples, heard = experiments.city_samples(of_study(config), MODEL.kind, 0, config.walks, "training", 500)
    return int(heard[samples.count.argmax()])


def policy_of(
    config: Config, setting: str, degradation: Mapping[str, Any], site: Tensor, parts: Parts
) -> Noisy:
    """The model with a degradation, or without, for users of these stations."""
    kept = parts.get_tensors(trained_key("beams", degradation))
    assert kept is not None
    if "bits" in degradation:
        kept = quantised(kept, degradation["bits"])
    if "broken" in degradation:
        stations = int(walks_of(config.walks).cell_site.max()) + 1
        kept = with_one(kept, other(kept, degradation["broken"]), broken_station(config), stations)
    plain = experiments.learned(of_study(config), MODEL, kept, site)[setting]
    assert isinstance(plain, Learned)
    draws = stream(0, "quality", "noise").generator()
    return Noisy(plain, degradation.get("noise", 0.0), draws)


def other(parameters: Parameters, how: str) -> Parameters:
    """What a broken station has: fresh weights, or the opposite of what the others say."""
    if how == "malicious":
        return reversed_last(parameters)
    widths = (parameters["weight0"].shape[1], *(parameters[f"weight{i}"].shape[2] for i in range(3)))
    return initial_parameters(widths, 1, stream(0, "untrained"))


@lru_cache(maxsize=4)
def heard(config: Config, purpose: str, seed: int) -> tuple[Tensor, Tensor]:
    """What every beam brings to the users of a seed, `[T, U, beams]` dB, and their stations `[U]`."""
    base, own = of_study(config), config.beams
    users = experiments.users_of(base, config.walks, purpose, own.users, own.test_s, seed, own.speed_kmh)
    times_s = torch.arange(0, own.test_s, TICK_S)
    snr_db = beam_gain_db(walks_of(config.walks), users, times_s) + base.gain_to_snr_db
    return snr_db, walks_of(config.walks).cell_site[users.cell]


def net(config: Config, policy: Policy, snr_db: Tensor, seed: int, late_s: float) -> Tensor:
    """Net spectral efficiency of every user, `[U]`."""
    base = of_study(config)
    busy_s = late_s + (
        experiments.compute_s(base, MODEL.kind) if isinstance(policy, Learned | Noisy) else 0.0
    )
    served = serve(
        policy, snr_db, TICK_S, RadioConfig(), stream(seed, "beams", "measurements"),
        users=base.users_per_sector, compute_s=busy_s, warm_up_s=WARM_UP_S,
    )  # fmt: skip
    return served.net_spectral_efficiency


def trusting(policies: Mapping[str, Policy]) -> dict[str, Policy]:
    """Settings in which the model's first choices serve, or are looked at, in every period.

    Those that sweep all beams now and then hardly depend on the model: a bad one costs them nothing.
    """
    return {name: policy for name, policy in policies.items() if type(policy) is Learned}


def tune(config: Config, parts: Parts) -> dict[str, Any]:
    """The best rule and its setting, and the healthy model's, on validation walks."""
    rules = {
        f"{rule}: {name}": policy for rule, of in experiments.rules().items() for name, policy in of.items()
    }
    kept = parts.get_tensors(weights_key("beams", 1.0, 1.0))
    assert kept is not None
    reached: dict[str, float] = {}
    for seed in VALIDATION_SEEDS:
        snr_db, site = heard(config, "validation", seed)
        models = trusting(experiments.learned(of_study(config), MODEL, kept, site))
        for name, policy in (rules | models).items():
            reached[name] = reached.get(name, 0.0) + float(net(config, policy, snr_db, seed, 0.0).mean())
    learned = [name for name in reached if name not in rules]
    return {"rule": max(rules, key=lambda n: reached[n]), "model": max(learned, key=lambda n: reached[n])}


def judge_rule(config: Config, setting: str, seeds: tuple[int, ...]) -> dict[str, Any]:
    """The tuned rule."""
    rule, _, name = setting.partition(": ")
    policy = experiments.rules()[rule][name]
    kpi = [float(net(config, policy, heard(config, "test", seed)[0], seed, 0.0).mean()) for seed in seeds]
    return {"kpi": kpi}


def judge(config: Config, name: str, setting: str, seeds: tuple[int, ...], parts: Parts) -> dict[str, Any]:
    """A candidate on the test walks, and what users of the station that may break have, and of others."""
    degradation = DEGRADATIONS[name]
    station, late_s = broken_station(config), degradation.get("late_s", 0.0)
    found: dict[str, list[float]] = {key: [] for key in ("kpi", "performance", "at_station", "elsewhere")}
    for seed in seeds:
        snr_db, site = heard(config, "test", seed)
        policy = policy_of(config, setting, degradation, site, parts)
        rate = net(config, policy, snr_db, seed, late_s)
        found["kpi"].append(float(rate.mean()))
        found["at_station"].append(float(rate[site == station].mean()))
        found["elsewhere"].append(float(rate[site != station].mean()))
        found["performance"].append(received(policy, snr_db, late_s, seed))
    return found


def received(policy: Noisy, snr_db: Tensor, late_s: float, seed: int) -> float:
    """Share of the best beam's power among those that the model would look at, so much later."""
    behind = round(late_s / TICK_S)
    now = torch.arange(0, len(snr_db) - behind, EVERY)
    noise = torch.randn(
        len(now), snr_db.shape[1], len(policy.model.measured), generator=stream(seed, "heard").generator()
    )
    told = measured_snr_db(snr_db[now][..., policy.model.measured], noise)
    told = told + policy.noise_db * torch.randn(told.shape, generator=stream(seed, "errors").generator())
    seen = seen_by_model(reported(told)[..., None, :], policy.model.spread_db)
    model = policy.model
    nodes, kept = len(model.parameters["weight0"]), torch.empty(len(now), snr_db.shape[1], BOOK.narrow)
    for node in range(nodes):
        mine = model.node == node
        one = {name: weight[node : node + 1] for name, weight in model.parameters.items()}
        kept[:, mine] = scores(one, seen[:, mine].flatten(0, 1)[None], 1)[0, :, 0].unflatten(
            0, (len(now), -1)
        )
    then_db = snr_db[now + behind][..., : BOOK.narrow]
    likely = kept.topk(model.refined, -1).indices
    best = likely.gather(-1, then_db.gather(-1, likely).argmax(-1, keepdim=True))[..., 0]
    return float(torch.pow(10.0, -lost_db(then_db, best) / 10).mean())
