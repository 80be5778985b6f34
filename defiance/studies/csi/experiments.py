"""The parts of the study `csi`: each fits and judges one thing, and is kept on disk under its own key."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from defiance.control.csi.dictionary import Dictionary, Learned
from defiance.control.csi.klt import Klt
from defiance.control.csi.networks import Network, Neural, pictures
from defiance.control.csi.precoding import at_snr, spectral_efficiency
from defiance.control.csi.rules import Feedback, TypeOne, tuned
from defiance.control.csi.targets import SUBBANDS, nmse, sgcs, spatial_basis
from defiance.learn.topology import gossip, nearest
from defiance.learn.training import Fit, Parameters, Schedule, federated_mixing, fit
from defiance.link import LossyLink, Packets
from defiance.meter import Meter
from defiance.network.settings import RadioConfig
from defiance.parts import Parts
from defiance.seeding import stream
from defiance.studies.csi import costs
from defiance.studies.csi.data import Precoders, precoders
from defiance.studies.csi.settings import AWAY, Config, Model

UPLINK = LossyLink(2e-3, header_bits=11)
"""Reports of 20 bits and more carry a CRC of 11 (TS 38.212 clause 6.3.1.2.1)."""
SHARES = tuple((i + 0.5) / 40 for i in range(40))
"""Of links, at which the distribution of SGCS is kept."""
CHECKED = 400
"""Validation samples of a node."""
TWO_SIDED = ("strangers", "frozen-decoder", "shared-dataset")


# --- judging ------------------------------------------------------------------------------------------


def judged(config: Config, codec: Feedback, of: Precoders, seed: int) -> dict[str, Any]:
    """How well a codec does on the test walks, every report a packet on the uplink."""
    at = of.part("test", seed)
    w, cell = of.w[at], of.cell[at]
    bits = codec.encode(w, cell)
    packets = Packets.of(
        torch.arange(len(w)), purpose="assistance", payload_bits=bits.shape[1], offered_s=0.0
    )
    _, sent = UPLINK.advance(
        UPLINK.offer(UPLINK.initial(), packets, 0.0), math.inf, stream(seed, "csi", "uplink")
    )
    w_hat = codec.decode(bits[sent.id], cell[sent.id])
    similarity, error = sgcs(w, w_hat), nmse(w, w_hat)
    encode, decode = costs.inference(codec)
    return {
        "bits": codec.bits,
        "links": len(w),
        "report_bits": float(sent.sent_bits.double().mean()),
        "sgcs": float(similarity.mean()),
        "nmse_db": float(10 * error.mean().clamp(min=1e-9).log10()),
        "quantiles": torch.quantile(similarity, torch.tensor(SHARES)).tolist(),
        "encode": encode,
        "decode": decode,
        "parameters": costs.parameters(codec),
        **rates(config, of, at, w_hat, seed),
    }


def rates(config: Config, of: Precoders, at: Tensor, w_hat: Tensor, seed: int) -> dict[str, float]:
    """Spectral efficiency with one user at a time, and with several of one cell, drawn by the seed."""
    channels, radio = at_snr(of.channels[at], of.w[at], config.snr_db), RadioConfig()
    generator, groups = stream(seed, "csi", "groups").generator(), []
    for cell in of.cell[at].unique():
        own = (of.cell[at] == cell).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=generator)]
        groups.append(own[: len(own) // config.users * config.users])
    together = torch.cat(groups)
    return {
        "single": float(spectral_efficiency(channels, w_hat, 1, radio).mean()),
        "multi": float(spectral_efficiency(channels[together], w_hat[together], config.users, radio).mean())
        if len(together)
        else math.nan,
    }


def rules(config: Config, seed: int) -> dict[str, Any]:
    """What needs no training loop: Type I, the tuned L-beam report, the KLT codec, and perfect feedback."""
    home = precoders(config, config.city)
    away = precoders(config, config.unseen_city) if config.unseen_city else None
    cities = [config.city, *([config.unseen_city] if away else [])]
    data = dict(zip(cities, (home, away), strict=False))
    training = home.part("training", seed)
    found: list[dict[str, Any]] = []

    def book(candidate: str, regime: str, budget: int, city: str, codec: Feedback, **more: Any) -> None:
        of = data[city]
        assert of is not None
        found.append(
            {"candidate": candidate, "regime": regime, "budget": budget, "city": city, **more}
            | judged(config, codec, of, seed)
        )

    for city in cities:
        of = data[city]
        assert of is not None
        at = of.part("test", seed)
        perfect = rates(config, of, at, of.w[at], seed)
        found.append({"candidate": "perfect", "regime": "none", "budget": 0, "city": city, **perfect})
    for budget in config.budgets:
        type_one = TypeOne(config.panel, SUBBANDS, wideband=budget < TypeOne(config.panel, SUBBANDS).bits)
        meter = Meter("core")
        with meter.running():
            report = tuned(config.panel, home.w[training], budget)
        for city in cities:
            book("type-1", "none", budget, city, type_one)
            book("l-beams", "none", budget, city, report, setting=repr(report), cpu_s=meter.usage.cpu_s)
        klt, grouped = fitted_klt(config, home, training, home.part("validation", seed), budget)
        book("klt", "central", budget, config.city, klt, setting=grouped)
        if away is not None:
            pooled = klt if grouped == "city" else fitted_klt(config, home, training, None, budget)[0]
            book("klt", "central", budget, config.unseen_city, _everywhere(pooled, away))
            some = some_walks(config, away, seed)
            again, grouped = fitted_klt(config, away, some, None, budget)
            book("klt", "finetuned-whole", budget, config.unseen_city, again, setting=grouped)
    return {"found": found}


def fitted_klt(
    config: Config, of: Precoders, training: Tensor, validation: Tensor | None, bits: int
) -> tuple[Klt, str]:
    """The KLT codec of a city; one per site instead, where that does better on validation walks."""
    cells = len(of.cell_site)
    grouped = {"city": torch.zeros(cells, dtype=torch.int64)}
    if validation is not None and int(of.site[training].bincount(minlength=of.sites).min()) >= 100:
        grouped["site"] = of.cell_site
    found = {
        name: Klt.fit(config.panel, of.w[training], of.cell[training], group, bits)
        for name, group in grouped.items()
    }
    if validation is None or len(found) == 1:
        return found["city"], "city"

    def quality(name: str) -> float:
        codec, at = found[name], validation
        assert at is not None
        return float(sgcs(of.w[at], codec.decode(codec.encode(of.w[at], of.cell[at]), of.cell[at])).mean())

    best = max(found, key=quality)
    return found[best], best


def _everywhere(codec: Klt, of: Precoders) -> Klt:
    """A pooled codec for another city's cells."""
    group = torch.zeros(len(of.cell_site), dtype=torch.int64)
    return Klt(codec.panel, codec.subbands, {**codec.parameters, "group": group})


def some_walks(config: Config, of: Precoders, seed: int) -> Tensor:
    """Links of the few training walks of the unseen city that are learned from, int64 [m]."""
    training = of.part("training", seed)
    walks = of.walk[training].unique()
    kept = walks[: max(1, round(config.finetuning_share * len(walks)))]
    return training[torch.isin(of.walk[training], kept)]


def without_one_walk(of: Precoders, links: Tensor) -> tuple[Tensor, Tensor]:
    """Links to train on, and those of one walk to choose the round by; of a single walk all do both."""
    last = links[of.walk[links] == of.walk[links].max()]
    rest = links[of.walk[links] != of.walk[links].max()]
    return (rest, last) if len(rest) else (links, links)


def neighbours(of: Precoders) -> Tensor:
    """Which sites talk to each other over Xn: everyone with its nearest three, bool [sites, sites]."""
    place = of.site_position_m[:, :2].double()
    return nearest(torch.cdist(place, place), min(3, of.sites - 1))


# --- training -----------------------------------------------------------------------------------------


def codec_of(config: Config, model: Model, parameters: Parameters, of: Precoders) -> Feedback:
    """A trained codec for the cells of a city: one node's weights for all, or each site's its own."""
    nodes = len(next(iter(parameters.values())))
    node = of.cell_site if nodes > 1 else torch.zeros(len(of.cell_site), dtype=torch.int64)
    shape = config.model(model.name, model.bits)
    if isinstance(shape, Dictionary):
        return Learned(shape, parameters, node)
    return Neural(shape, parameters, node)


def train(config: Config, model: Model, parts: Parts) -> dict[str, Any]:
    """Trains one model (or one per station), books what it took, keeps its weights, and judges it."""
    settings, away = config.training, model.regime in AWAY
    of = precoders(config, config.unseen_city if away else config.city)
    training, validation = of.part("training", model.seed), of.part("validation", model.seed)
    if away:
        training, validation = without_one_walk(of, some_walks(config, of, model.seed))
    nodes = 1 if away or model.regime == "central" else of.sites
    shape = config.model(model.name, model.bits)
    random = stream(model.seed, "csi", model.name, model.bits, model.regime)
    if away:
        start = parts.get_tensors(model.home.key)
        assert start is not None
    else:
        start = shape.initial(nodes, stream(model.seed, "csi", "initial", model.name))
    inputs = inputs_of(shape, of.w)
    owned = [_owned(of, part, nodes) for part in (training, validation)]
    owned[1] = [later if len(later) else first for first, later in zip(*owned, strict=True)]
    batch = max(2, settings.batch // nodes)
    steps, rate = (
        (settings.dictionary_steps, settings.dictionary_rate)
        if isinstance(shape, Dictionary)
        else (settings.network_steps, settings.network_rate)
    )
    samples = torch.tensor([len(own) for own in owned[0]])
    mixing = torch.eye(nodes)
    if model.regime == "federated":
        mixing = federated_mixing(samples)
    elif model.regime == "gossip":
        mixing = gossip(neighbours(of)).mixing[0]
    check = _drawn(owned[1], CHECKED // nodes, random.child("validation").generator())
    meter = Meter("core" if nodes == 1 else "base-station")
    with meter.running():
        found = fit(
            start,
            lambda parameters, at: shape.loss(parameters, inputs[at]),
            lambda generator: _drawn(owned[0], batch, generator),
            lambda parameters: shape.loss(parameters, inputs[check]),
            mixing,
            Schedule(
                settings.finetuning_rounds if away else settings.rounds, steps, rate / 2 if away else rate
            ),
            random,
            trainable=(lambda name: name.startswith("decoder."))
            if model.regime == "finetuned-decoder"
            else (lambda name: True),
        )
    parts.put_tensors(model.key, found.parameters)
    moved = ("decoder.",) if model.regime == "finetuned-decoder" else ("",)
    return {
        "nodes": nodes,
        "batch": batch,
        "steps_per_round": steps,
        "rounds": found.rounds,
        "validation_loss": found.validation_loss.mean(1).tolist(),
        "samples": len(training) + len(validation),
        "cpu_s": meter.usage.cpu_s,
        "step": costs.training_step(shape, batch),
        "parameters": sum(w[0].numel() for w in found.parameters.values()),
        "moved": sum(w[0].numel() for name, w in found.parameters.items() if name.startswith(moved)),
        "device_parameters": costs.device_parameters(found.parameters),
        "judged": [
            {"city": city}
            | judged(config, codec_of(config, model, found.parameters, there), there, model.seed)
            for city, there in _cities(config, model, of)
        ],
    }


def _cities(config: Config, model: Model, of: Precoders) -> list[tuple[str, Precoders]]:
    """Where a model is judged: at home, and where nobody has trained it if one model serves all sites."""
    if model.regime in AWAY:
        return [(config.unseen_city, of)]
    found = [(config.city, of)]
    if config.unseen_city and model.regime == "central":
        found.append((config.unseen_city, precoders(config, config.unseen_city)))
    return found


def inputs_of(shape: Dictionary | Network, w: Tensor) -> Tensor:
    """What a codec's loss takes: precoders, or their pictures."""
    return w if isinstance(shape, Dictionary) else pictures(w, spatial_basis(shape.panel)[0])


def _owned(of: Precoders, at: Tensor, nodes: int) -> list[Tensor]:
    """Samples of every node: those of its site, or all; all where a site has none."""
    found = [at[of.site[at] == node] for node in range(nodes)] if nodes > 1 else [at]
    return [own if len(own) else at for own in found]


def _drawn(owned: list[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """So many samples of every node, with replacement, int64 [nodes, count]."""
    return torch.stack([own[torch.randint(len(own), (count,), generator=generator)] for own in owned])


# --- two sides ----------------------------------------------------------------------------------------


def sides(config: Config, seed: int, parts: Parts) -> dict[str, Any]:
    """A device's encoder of one trainer before a station's decoder of another.

    `strangers` were trained apart. Then the encoder is trained on: through the other's decoder, whose weights
    are given away and stay as they are (`frozen-decoder`); or on precoders with the bits that the other's own
    encoder makes of them, and nobody's weights are seen (`shared-dataset`).
    """
    of = precoders(config, config.city)
    device, station = (Model(name, config.bits, "central", seed) for name in two_networks(config))
    first, second = (config.model(model.name, model.bits) for model in (device, station))
    assert isinstance(first, Network) and isinstance(second, Network)
    own, others = parts.get_tensors(device.key), parts.get_tensors(station.key)
    assert own is not None and others is not None
    mine = {name: w for name, w in own.items() if name.startswith("encoder.")}
    theirs = {name: w for name, w in others.items() if name.startswith("decoder.")}
    inputs, settings = inputs_of(first, of.w), config.training
    node = torch.zeros(len(of.cell_site), dtype=torch.int64)
    wanted = Neural(second, others, node).encode(of.w, of.cell).float()
    training, validation = ([of.part(purpose, seed)] for purpose in ("training", "validation"))
    check = _drawn(validation, CHECKED, stream(seed, "csi", "sides", "validation").generator())

    def trained(start: Parameters, loss: Callable[[Parameters, Tensor], Tensor], way: str) -> Fit:
        return fit(
            start,
            loss,
            lambda generator: _drawn(training, settings.batch, generator),
            lambda parameters: loss(parameters, check),
            torch.eye(1),
            Schedule(max(1, settings.rounds // 2), settings.network_steps, settings.network_rate),
            stream(seed, "csi", "sides", way),
            trainable=lambda name: name.startswith("encoder."),
        )

    through = trained(
        mine | theirs, lambda p, at: first.loss(p, inputs[at], second), "frozen-decoder"
    ).parameters
    imitated = trained(
        mine, lambda p, at: first.imitation_loss(p, inputs[at], wanted[at]), "shared-dataset"
    ).parameters
    pairs = dict(zip(TWO_SIDED, (mine | theirs, through, imitated | theirs), strict=True))
    shared = {
        "strangers": 0,
        "frozen-decoder": 32 * sum(w.numel() for w in theirs.values()),
        "shared-dataset": len(training[0]) * (costs.SAMPLE_BITS + config.bits),
    }
    return {
        "candidate": f"{device.name} to {station.name}",
        "found": [
            {"way": way, "shared_bits": shared[way]}
            | judged(config, Neural(first, weights, node, second), of, seed)
            for way, weights in pairs.items()
        ],
    }


def two_networks(config: Config) -> list[Any]:
    """The device's and the station's codec of the two-sided experiment; empty without two neural ones."""
    found = [name for name in config.learned if name != "dictionary"]
    return found[:2] if len(found) > 1 else []
