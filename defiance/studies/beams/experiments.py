"""The parts of the study on traced walks: models are trained, rules are tuned, all are judged.

Every part is a function of the configuration and its key alone, so parts run in any order and process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from defiance.control.beam_events import Attentive, Watching
from defiance.control.beam_learning import Samples, hits, scores, soft_loss
from defiance.control.beams import (
    Exhaustive,
    Hierarchical,
    Learned,
    Policy,
    Served,
    Tracking,
    seen_by_model,
    serve,
    spectral_efficiency,
)
from defiance.control.sounding import Sounding, measured_snr_db, reported
from defiance.errors import DefianceError
from defiance.hardware import STATION_SOC
from defiance.learn.training import Parameters
from defiance.meter import Meter, operations_of
from defiance.network.settings import RadioConfig
from defiance.parts import Parts
from defiance.seeding import stream
from defiance.studies.beams.channels import (
    BOOK,
    Users,
    beam_gain_db,
    draw_users,
    plane_waves,
    walks_for,
    walks_of,
)
from defiance.studies.beams.settings import Config
from defiance.studies.beams.training import Recipe, Regime, at_every_node, pooled, train

TICK_S = 4e-3
WARM_UP_S = 0.5
PERIODS_S = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
"""Of CSI-RS; 80 ms, 640 slots, is the longest that repeats by itself (TS 38.331,
CSI-ResourcePeriodicityAndOffset), beyond it each sounding is asked for (aperiodic)."""
SSB_PERIODS_S = (0.02, 0.04)
REFRESHES = (4, 16)
STREETS = 3
ROWS = (2, STREETS, None)
"""Rows of beams in a sweep: the last of four looks up, where no streets are."""
REFINED = (1, 4)
AGAIN = "sounded again"
WATCHED_S = (0.04, 0.08, 0.16)
DROPS_DB = (2.0, 5.0)
SWEEPS = (2, 4)
"""Periods between sweeps of all beams, of rules and models that watch for a change between them."""
CHANGES = (0.2, 0.5)
CERTAINTY = 0.9
MOST = 4
"""Beams that a model asks for at once."""
SWEEP, FIXED = "exhaustive-ssb", "ssb 20 ms"
"""All beams in every burst of synchronisation blocks, 20 ms apart, as idle devices may assume them."""
TEMPORAL_PERIOD_S = 0.08
TOPS = (1, 3, 5)

SPREAD_DB = 8.0
SOFTNESS_DB = 1.0
FEWEST = 20
"""Samples that a station must have, to train; without, it keeps what it came with."""
HIGHEST_SNR_DB = 45.0
"""Plane waves are heard at an SNR between 0 dB and this one."""
KINDS = {"spatial": (1, 1), "temporal": (4, 4)}
"""Soundings that a model sees, and instants of the coming period that it predicts."""


@dataclass(frozen=True)
class Model:
    """Which model: what it predicts, who trained it, from which seed.

    `array` is no regime of a city: trained on plane waves alone, it is what all others start from.
    """

    kind: str
    regime: str
    seed: int

    @property
    def key(self) -> str:
        """Key of its part."""
        return f"{self.kind}/{self.regime}/seed{self.seed}"

    @property
    def shape(self) -> tuple[int, int]:
        """Soundings that it sees, and instants that it predicts."""
        return KINDS[self.kind]


def sampled_at_s(model: Model) -> Tensor:
    """Instants of a sample: its soundings, then what is predicted."""
    history, instants = model.shape
    sounded = torch.arange(history) * TEMPORAL_PERIOD_S
    if instants == 1:
        return torch.cat([sounded, sounded[-1:]])
    ahead = (torch.arange(instants) + 0.5) * TEMPORAL_PERIOD_S / instants
    return torch.cat([sounded, sounded[-1] + ahead])


def prepared(model: Model, snr_db: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features and powers from SNRs `[instants of a sample, n, beams]`."""
    history = model.shape[0]
    now = snr_db[:history, :, BOOK.wide].transpose(0, 1)
    heard = reported(measured_snr_db(now, torch.randn(now.shape, generator=noise)))
    return seen_by_model(heard, SPREAD_DB), snr_db[history:, :, : BOOK.narrow].transpose(0, 1)


def users_of(
    config: Config, city: str, purpose: str, count: int, duration_s: float, seed: int, *speeds_kmh: float
) -> Users:
    """Users on the walks that a city has for a purpose."""
    walks = walks_of(city)
    return draw_users(
        walks,
        walks_for(walks, purpose),
        count,
        duration_s,
        torch.tensor(speeds_kmh) / 3.6,
        stream(seed, "beams", city, purpose, *(f"{speed:g}kmh" for speed in speeds_kmh)),
        config.least_snr_db - config.gain_to_snr_db,
    )


@lru_cache(maxsize=32)
def city_samples(
    config: Config, kind: str, seed: int, city: str, purpose: str, count: int
) -> tuple[Samples, Tensor]:
    """Samples of every site that has enough, and the numbers of these sites; all regimes take the same."""
    model = Model(kind, "any", seed)
    times_s = sampled_at_s(model)
    duration_s = float(times_s[-1]) + TICK_S
    users = users_of(config, city, purpose, count, duration_s, model.seed, *config.speeds_kmh)
    snr_db = beam_gain_db(walks_of(city), users, times_s) + config.gain_to_snr_db
    noise = stream(model.seed, "beams", "noise", city, purpose).generator()
    seen, power_db = prepared(model, snr_db, noise)
    site = walks_of(city).cell_site[users.cell]
    sites = torch.bincount(site, minlength=int(walks_of(city).cell_site.max()) + 1)
    heard = (sites >= (FEWEST if purpose == "training" else 1)).nonzero().squeeze(1)
    return Samples.of([(seen[site == number], power_db[site == number]) for number in heard.tolist()]), heard


def for_sites(samples: Samples, sites: Tensor, wanted: Tensor) -> Samples:
    """Samples of the wanted sites; one that has none takes everyone's."""
    own = dict(zip(sites.tolist(), range(len(sites)), strict=True))
    starts = (samples.count.cumsum(0) - samples.count).tolist()
    nodes = []
    for number in wanted.tolist():
        some = slice(None)
        if number in own:
            some = slice(starts[own[number]], starts[own[number]] + int(samples.count[own[number]]))
        nodes.append((samples.features[some], samples.power_db[some]))
    return Samples.of(nodes)


def recipe_of(config: Config) -> Recipe:
    """How the models of a city are trained."""
    own = config.training
    return Recipe(own.width, own.learning_rate, own.batch, own.rounds, own.steps_per_round)


def fit_model(config: Config, model: Model, parts: Parts) -> dict[str, Any]:
    """Trains one model (or one per station), says what it took, and keeps its weights."""
    own, recipe = config.training, recipe_of(config)
    random = stream(model.seed, "beams", "training", model.kind, model.regime)
    meter = Meter("station")
    loss = partial(soft_loss, softness_db=SOFTNESS_DB)
    start: Parameters | None = None
    heard = torch.zeros(1, dtype=torch.int64)
    regime: Regime = "central"
    if model.regime == "array":
        waves = {"training": own.array_samples, "validation": max(200, own.array_samples // 10)}
        samples, held = (
            array_samples(model.kind, model.seed, count, purpose) for purpose, count in waves.items()
        )
        recipe = replace(recipe, rounds=own.array_rounds, batch=4 * own.batch)
    else:
        finetuned = model.regime == "finetuned"
        city = config.unseen_city if finetuned else config.city
        # a quarter of the users is enough to see what fine-tuning in an unseen city recovers
        users = own.users // 4 if finetuned else own.users
        samples, heard = city_samples(config, model.kind, model.seed, city, "training", users)
        held, heard_too = city_samples(
            config, model.kind, model.seed, city, "validation", max(100, users // 5)
        )
        held = for_sites(held, heard_too, heard)
        # a city's few walks would wear the array's pattern away: half of all samples stay plane waves
        samples = with_waves(
            samples, array_samples(model.kind, model.seed, max(samples.count.tolist()), "city")
        )
        before = replace(model, regime="central" if finetuned else "array")
        start = parts.get_tensors(before.key)
        assert start is not None
        recipe = replace(recipe, learning_rate=recipe.learning_rate / 2)
        if model.regime in ("central", "finetuned"):
            samples, held = pooled(samples), pooled(held)
            recipe = replace(recipe, batch=recipe.batch * len(heard))
        else:
            regime = model.regime  # type: ignore[assignment]
            start = at_every_node(start, len(heard))
    with meter.running():
        found = train(regime, samples, held, loss, recipe, random, start)
    kept = found.parameters
    if model.regime in ("local", "gossip"):
        # a station that heard nobody keeps what it came with, or takes a neighbour's
        came = parts.get_tensors(replace(model, regime="array").key) if model.regime == "local" else kept
        assert came is not None
        everywhere = at_every_node(came, int(walks_of(config.city).cell_site.max()) + 1)
        for name, weight in everywhere.items():
            weight[heard] = kept[name]
        kept = everywhere
    elif model.regime == "federated":
        kept = at_every_node(kept, 1)
    parts.put_tensors(model.key, kept)
    made = recipe.shared if model.regime in ("federated", "gossip") else recipe
    return {
        "sites": len(walks_of(config.city).site_position_m),
        "nodes": len(samples.count),
        "parameters": sum(weight[0].numel() for weight in kept.values()),
        "rounds": found.rounds,
        "steps_per_round": made.steps_per_round,
        "batch": made.batch,
        "samples": [count // (1 if model.regime == "array" else 2) for count in samples.count.tolist()],
        "validation_samples": int(held.count.max()) * len(held.count),
        "features": samples.features.shape[-1],
        "outputs": samples.power_db.shape[-1] * samples.power_db.shape[-2],
        "validation_loss": found.validation_loss.mean(1).tolist(),
        "cpu_s": meter.usage.cpu_s,
    }


def with_waves(samples: Samples, waves: Samples) -> Samples:
    """Every node's samples, and as many plane waves."""
    own = zip(
        samples.features.split(samples.count.tolist()),
        samples.power_db.split(samples.count.tolist()),
        strict=True,
    )
    return Samples.of(
        [
            (torch.cat([seen, waves.features[: len(seen)]]), torch.cat([power, waves.power_db[: len(seen)]]))
            for seen, power in own
        ]
    )


@lru_cache(maxsize=8)
def array_samples(kind: str, seed: int, count: int, purpose: str) -> Samples:
    """Samples of plane waves, which tell a model the array's pattern; all regimes take the same."""
    model = Model(kind, "array", seed)
    random = stream(seed, "beams", "array", kind, purpose)
    snr_db = plane_waves(count, sampled_at_s(model), random.child("waves"))
    generator = random.child("noise").generator()
    snr_db = snr_db + HIGHEST_SNR_DB * torch.rand(count, 1, generator=generator)
    return Samples.of([prepared(model, snr_db, generator)])


def layers(features: int, width: int, outputs: int) -> torch.nn.Sequential:
    """The perceptron as modules without memory, to be counted."""
    with torch.device("meta"):
        return torch.nn.Sequential(
            torch.nn.Linear(features, width), torch.nn.ReLU(),
            torch.nn.Linear(width, width), torch.nn.ReLU(),
            torch.nn.Linear(width, outputs),
        )  # fmt: skip


FEATURE_OPERATIONS = 11
"""Of a measured beam: difference, clamp, scale, shift; power, floor, clamp, quotient, root, scale, shift."""


@lru_cache(maxsize=8)
def decision_operations(config: Config, kind: str) -> float:
    """Operations of a choice, counted from the model; comparing scores too."""
    history, instants = KINDS[kind]
    measured, outputs = history * len(BOOK.wide), instants * BOOK.narrow
    model = layers(2 * measured, config.training.width, outputs)
    counted = operations_of(model, torch.empty(1, 2 * measured, device="meta"), lambda out: out.mean())
    return counted.forward.total + FEATURE_OPERATIONS * measured + outputs


def compute_s(config: Config, kind: str) -> float:
    """A station's time for a sector's users."""
    return config.users_per_sector * decision_operations(config, kind) / STATION_SOC.operations_per_second


# --- judging --------------------------------------------------------------------------------------------


def rules() -> dict[str, dict[str, Policy]]:
    """Every rule with all its settings."""
    sounded = {f"csi-rs {1e3 * s:g} ms": Sounding(s) for s in PERIODS_S}
    bursts = {f"ssb {1e3 * s:g} ms": Sounding(s, "ssb") for s in SSB_PERIODS_S}
    swept: dict[str, Policy] = {
        name + _rows(rows): Exhaustive(BOOK, how, rows) for name, how in sounded.items() for rows in ROWS
    }
    return {
        "exhaustive": swept | {name: Exhaustive(BOOK, how) for name, how in bursts.items()},
        "watching": {
            f"csi-rs {1e3 * s:g} ms, {drop_db:g} dB, all after {every}{_rows(rows)}": Watching(
                BOOK, Sounding(s), drop_db, every, rows
            )
            for s in WATCHED_S
            for drop_db in DROPS_DB
            for every in SWEEPS
            for rows in ROWS[1:]
        },
        "hierarchical": {name: Hierarchical(BOOK, how) for name, how in sounded.items()},
        "tracking": {
            f"{name}, all after {every}": Tracking(BOOK, how, every)
            for name, how in sounded.items()
            for every in REFRESHES
        },
    }


def _rows(rows: int | None) -> str:
    """Of a setting's name."""
    return f", {rows} rows" if rows else ""


def learned(config: Config, model: Model, parameters: Parameters, site: Tensor) -> dict[str, Policy]:
    """A model with all its settings."""
    history, instants = model.shape
    nodes = len(next(iter(parameters.values())))

    def own(made: type[Learned], period_s: float, refined: int, **more: Any) -> Learned:
        return made(
            BOOK, parameters, site if nodes > 1 else torch.zeros_like(site), Sounding(period_s), BOOK.wide,
            history, instants, SPREAD_DB, decision_operations(config, model.kind), refined, **more,
        )  # fmt: skip

    always: dict[str, Policy] = {
        f"csi-rs {1e3 * s:g} ms" + (f", {refined} {AGAIN}" if refined > 1 else ""): own(Learned, s, refined)
        for s in ((TEMPORAL_PERIOD_S,) if instants > 1 else PERIODS_S)
        for refined in REFINED
    }
    changed: dict[str, Policy] = {
        f"csi-rs {1e3 * s:g} ms, up to {MOST} {AGAIN} at {change:g}, all after {every}{_rows(STREETS)}": own(
            Attentive, s, MOST, change=change, certainty=CERTAINTY, every=every, rows=STREETS
        )
        for s in ((TEMPORAL_PERIOD_S,) if instants > 1 else WATCHED_S)
        for change in CHANGES
        for every in SWEEPS
    }
    return always | changed


def judge(
    config: Config,
    city: str,
    speed_kmh: float,
    models: tuple[Model, ...],
    seeds: tuple[int, ...],
    parts: Parts,
) -> dict[str, Any]:
    """Every rule and model on the walks of test, with the setting that was best on those of validation.

    A model's setting is chosen with the weights of its first training seed; test seed s takes the weights of
    training seed s mod `training.seeds`.

    Returns:
        `users`, how many of each seed are on each test walk. For every rule, `exhaustive-ssb` (each burst of
        20 ms, as it comes), and `kind/regime`: its setting, and sums over users, by seed and walk, of the
        columns below; `once` is `net` of the best setting that sounds no beams a second time.
    """
    radio = RadioConfig()
    ours = walks_for(walks_of(city), "test")

    def serving(policies: dict[str, Policy], snr_db: Tensor, seed: int, busy_s: float) -> dict[str, Served]:
        return {
            setting: serve(
                policy, snr_db, TICK_S, radio, stream(seed, "beams", "measurements"),
                users=config.users_per_sector, compute_s=busy_s, warm_up_s=WARM_UP_S,
            )
            for setting, policy in policies.items()
        }  # fmt: skip

    kinds = dict.fromkeys((model.kind, model.regime) for model in models)
    weights = {model: parts.get_tensors(model.key) for model in models}
    of_rules = rules() | {SWEEP: {FIXED: rules()["exhaustive"][FIXED]}}

    def candidates(seed: int, site: Tensor) -> Iterator[tuple[str, dict[str, Policy], float]]:
        for name, policies in of_rules.items():
            yield name, policies, 0.0
        for kind, regime in kinds:
            parameters = weights[Model(kind, regime, seed)]
            assert parameters is not None
            policies = learned(config, Model(kind, regime, seed), parameters, site)
            yield f"{kind}/{regime}", policies, compute_s(config, kind)

    def drawn(purpose: str, seed: int) -> tuple[Users, Tensor]:
        users = users_of(config, city, purpose, config.users, config.duration_s, seed, speed_kmh)
        times_s = torch.arange(0, config.duration_s, TICK_S)
        return users, beam_gain_db(walks_of(city), users, times_s) + config.gain_to_snr_db

    net: dict[str, dict[str, float]] = {}
    for seed in range(config.validation_seeds):
        users, snr_db = drawn("validation", seed)
        for name, policies, busy_s in candidates(0, walks_of(city).cell_site[users.cell]):
            for setting, served in serving(policies, snr_db, seed, busy_s).items():
                own = net.setdefault(name, dict.fromkeys(policies, 0.0))
                own[setting] += float(served.net_spectral_efficiency.mean()) / config.validation_seeds
    best = {name: max(own, key=lambda setting, own=own: own[setting]) for name, own in net.items()}  # type: ignore[misc]
    alone = {
        name: max((s for s in own if AGAIN not in s), key=lambda setting, own=own: own[setting])  # type: ignore[misc]
        for name, own in net.items()
    }
    found: dict[str, Any] = {"users": []}
    for seed in seeds:
        users, snr_db = drawn("test", seed)
        site, place = walks_of(city).cell_site[users.cell], (users.walk[:, None] == ours).double()
        found["users"].append(place.sum(0).tolist())

        def by_walk(values: Tensor, place: Tensor = place) -> list[float]:
            sums: list[float] = (values.double() @ place).tolist()
            return sums

        trained = seed % config.training.seeds
        columns: dict[str, Tensor]
        for name, policies, busy_s in candidates(trained, site):
            policy = policies[best[name]]
            wanted = {setting: policies[setting] for setting in (best[name], alone[name])}
            all_served = serving(wanted, snr_db, seed, busy_s)
            served = all_served[best[name]]
            columns = {
                "net": served.net_spectral_efficiency,
                "once": all_served[alone[name]].net_spectral_efficiency,
                "spectral_efficiency": served.spectral_efficiency,
                "lost_db": served.lost_db,
                "best_share": served.best_share,
                "overhead": torch.full((len(users),), served.overhead),
            }
            if name in found:
                kept = found[name]
            else:
                kept = found[name] = {
                    "setting": best[name],
                    "once_setting": alone[name],
                    "validation_net": net[name][best[name]],
                    "delay_s": policy.delay_s(config.users_per_sector, busy_s),
                    "period_s": policy.sounding.period_s,
                    "report_bits": policy.report_bits,
                }
            if "/" in name:
                kind, regime = name.split("/")
                model = Model(kind, regime, trained)
                parameters = weights[model]
                assert parameters is not None
                columns |= accuracy(model, parameters, snr_db, site, seed)
            for column, values in columns.items():
                kept.setdefault(column, []).append(by_walk(values))
        best_db = snr_db[round(WARM_UP_S / TICK_S) :, :, : BOOK.narrow].amax(-1)
        most = spectral_efficiency(best_db, radio).mean(0)
        genie = found.setdefault("genie", {"net": []})
        genie["net"].append(by_walk(most))
    return found


def accuracy(
    model: Model, parameters: Parameters, snr_db: Tensor, site: Tensor, seed: int
) -> dict[str, Tensor]:
    """Share of the best beam among the model's first K, mean over the instants that it predicts, `[U]`."""
    at = (sampled_at_s(model) / TICK_S).round().long()
    if at[-1] >= len(snr_db):
        raise DefianceError("duration_s is too short for a sample; give more than 1 s")
    seen, power_db = prepared(model, snr_db[at], stream(seed, "beams", "accuracy").generator())
    node = site if len(next(iter(parameters.values()))) > 1 else torch.zeros_like(site)
    score = torch.empty(power_db.shape)
    for number in node.unique().tolist():
        mine = node == number
        one = {name: weight[number : number + 1] for name, weight in parameters.items()}
        score[mine] = scores(one, seen[mine][None], model.shape[1])[0]
    return {f"top{most}": hits(score, power_db, most).float().mean(-1) for most in TOPS}
