"""Channel feedback made worse: its reports make the precoders of a network of cells on traced walks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from defiance.control.csi.networks import Network, Neural, pictures
from defiance.control.csi.rules import Feedback, tuned
from defiance.control.csi.targets import SUBBANDS, sgcs, spatial_basis
from defiance.control.reports import ByCodec
from defiance.learn.training import Parameters, Schedule, fit
from defiance.network.mumimo import MultiUser, Perfect
from defiance.network.on_walks import Walkers, draw_walkers, serve
from defiance.network.settings import RadioConfig
from defiance.parts import Parts
from defiance.radio.arrays import Paths, channel
from defiance.scene.paths import Walks, load_walks
from defiance.seeding import stream
from defiance.studies.csi.data import DEVICE, Precoders, cell_power, precoders
from defiance.studies.csi.settings import FULL
from defiance.studies.quality.degradations import (
    RULE,
    degradations,
    quantised,
    trained_key,
    weights_key,
    with_one,
)
from defiance.studies.quality.settings import Config

BITS = 64
RATE = 2e-3
DEGRADATIONS = degradations(
    {f"estimated at {snr_db:g} dB": snr_db for snr_db in (10.0, 0.0, -10.0)}, (0.02, 0.05, 0.1)
)
WARM_UP_S = 0.06
AGE_S = 0.005
"""Of a report when its precoder is on the air, if nothing is late."""
USERS = 4
"""That a cell serves at once, at most."""


@dataclass(frozen=True)
class Spoiled:
    """A codec whose devices estimate channels with an error, or one of whose stations turns reports round.

    Attributes:
        codec: that is spoiled.
        error: variance of the error on a precoder, of norm 1.
        turned: cells whose station makes the opposite of a report, bool `[cells]`: power goes to where the
            device said that there is least.
    """

    codec: Feedback
    error: float
    turned: Tensor

    @property
    def bits(self) -> int:
        """Of one report."""
        return self.codec.bits

    def encode(self, w: Tensor, cell: Tensor) -> Tensor:
        """What a device says of a precoder that it has estimated."""
        if self.error:
            generator = stream(len(w), "quality", "estimation").generator()
            noise = torch.randn(*w.shape, 2, generator=generator) * math.sqrt(self.error / 2 / w.shape[-1])
            w = w + torch.view_as_complex(noise)
            w = w / torch.linalg.vector_norm(w, dim=-1, keepdim=True)
        return self.codec.encode(w, cell)

    def decode(self, bits: Tensor, cell: Tensor) -> Tensor:
        """What its station makes of it."""
        w = self.codec.decode(bits, cell)
        away = torch.roll(w, w.shape[-1] // 4, -1) * torch.where(torch.arange(w.shape[-1]) % 2 == 0, 1, -1)
        return torch.where(self.turned[cell][:, None, None], away, w)


@lru_cache(maxsize=1)
def data_of(config: Config) -> Precoders:
    """Links to learn from."""
    return precoders(replace(FULL, city=config.walks, places=config.csi.places), config.walks)


def shape_of(config: Config) -> Network:
    """The codec's shape."""
    return Network("transformer", FULL.panel, SUBBANDS, BITS, config.csi.width, 1)


def train(config: Config, data: float, share: float, parts: Parts) -> dict[str, Any]:
    """Trains on some links of training walks, chooses the round on other walks, and keeps the weights."""
    own, of, shape = config.csi, data_of(config), shape_of(config)
    inputs = pictures(of.w, spatial_basis(FULL.panel)[0])
    training, validation = of.part("training", 0), of.part("validation", 0)
    order = torch.randperm(len(training), generator=stream(0, "quality", "csi").generator())
    some = training[order[: max(8, round(data * len(order)))]]
    check = inputs[validation[:: max(1, len(validation) // 400)]][None]
    rounds = max(1, round(share * own.rounds))
    found = fit(
        shape.initial(1, stream(0, "quality", "csi", "model")),
        lambda weights, at: shape.loss(weights, inputs[some[at]][None]),
        lambda generator: torch.randint(len(some), (own.batch,), generator=generator),
        lambda weights: shape.loss(weights, check),
        torch.eye(1),
        Schedule(rounds, own.steps_per_round, RATE, patience=rounds),
        stream(0, "quality", "csi", "training"),
    )
    parts.put_tensors(weights_key("csi", data, share), found.parameters)
    return {"rounds": found.rounds, "samples": len(some)}


def broken_station(of: Precoders) -> int:
    """The station that breaks: it serves most links."""
    return int(torch.bincount(of.site).argmax())


def codec_of(config: Config, degradation: Mapping[str, Any], parts: Parts) -> Spoiled:
    """The codec with a degradation, or without."""
    of, shape = data_of(config), shape_of(config)
    kept = parts.get_tensors(trained_key("csi", degradation))
    assert kept is not None
    if "bits" in degradation:
        kept = quantised(kept, degradation["bits"])
    node, station = torch.zeros(len(of.cell_site), dtype=torch.int64), broken_station(of)
    if degradation.get("broken") == "untrained":
        kept, node = with_one(kept, untrained(shape), station, of.sites), of.cell_site
    turned = (of.cell_site == station) & (degradation.get("broken") == "malicious")
    error = 10 ** (-degradation["noise"] / 10) if "noise" in degradation else 0.0
    return Spoiled(Neural(shape, kept, node), error, turned)


def untrained(shape: Network) -> Parameters:
    """A station's fresh decoder; devices keep their encoder."""
    fresh = shape.initial(1, stream(0, "untrained"))
    return {name: weight for name, weight in fresh.items() if name.startswith("decoder.")}


def walkers_of(config: Config, seed: int) -> tuple[Walks, Walkers]:
    """The users of a test seed, on walks that nobody trained on."""
    own, of = config.csi, data_of(config)
    walks = load_walks(config.walks, FULL.band)
    test = of.walk[of.part("test", 0)].unique()
    lasts_s = own.test_s + WARM_UP_S + 0.2
    random = stream(seed, "quality", "csi", "walkers")
    return walks, draw_walkers(walks, own.users, own.speed_kmh / 3.6, lasts_s, random, test)


@lru_cache(maxsize=1)
def rule_of(config: Config) -> Feedback:
    """The L-beam report that does best on training precoders."""
    of = data_of(config)
    return tuned(FULL.panel, of.w[of.part("training", 0)], BITS)


def judge(config: Config, seed: int, parts: Parts) -> dict[str, Any]:
    """Everything in the network of a seed: throughput of cells and users, here and there, and SGCS.

    Returns:
        By candidate: `kpi`, the cells' mean throughput; `least`, what 95 % of the users have; `at_station`
        and `elsewhere`, users' mean throughput at the station that may break and at others; `performance`.
    """
    walks, walkers = walkers_of(config, seed)
    of = data_of(config)
    codecs: dict[str, Feedback] = {RULE: rule_of(config)}
    codecs |= {name: codec_of(config, how, parts) for name, how in DEGRADATIONS.items()}
    paths = walkers.paths(walks, 0.0)
    serving = cell_power(walks, paths).argmax(0)
    here = walks.cell_site[serving] == broken_station(of)
    found: dict[str, Any] = {}
    late = {name: how.get("late_s", 0.0) for name, how in DEGRADATIONS.items()} | {RULE: 0.0}
    for late_s in sorted(set(late.values())):
        radio = RadioConfig(
            scheduler="proportional_fair",
            subbands=SUBBANDS,
            link_adaptation="qam256",
            cqi_delay_s=AGE_S + late_s,
        )
        ways = {n: MultiUser(ByCodec(codecs[n]), USERS, USERS) for n in codecs if late[n] == late_s}
        served = serve(
            walks, walkers, FULL.panel, radio, ways,
            duration_s=config.csi.test_s, warm_up_s=WARM_UP_S, random=stream(seed, "quality", "reports"),
        )  # fmt: skip
        before, after = (_directions(walks, walkers, serving, t) for t in (0.0, late_s))
        for name, of_way in served.items():
            busy = of_way.cell_throughput_bps > 0
            codec = codecs[name]
            told = codec.decode(codec.encode(before, serving), serving)
            found[name] = {
                "kpi": float(of_way.cell_throughput_bps[busy].mean()),
                "least": of_way.fifth_percentile_bps,
                "at_station": float(of_way.throughput_bps[here].mean()),
                "elsewhere": float(of_way.throughput_bps[~here].mean()),
                "performance": float(sgcs(after, told).mean()),
            }
    return found


def _directions(walks: Walks, walkers: Walkers, serving: Tensor, time_s: float) -> Tensor:
    """Everyone's best precoders from the cell that serves, complex64 `[U, K, ports]`."""
    paths, user = walkers.paths(walks, time_s), torch.arange(len(walkers))
    site = walks.cell_site[serving]
    own = Paths(
        paths.delay_s[site, user],
        paths.gain[site, user],
        paths.departure[site, user],
        paths.arrival[site, user],
    )
    made = channel(
        own,
        FULL.panel,
        DEVICE,
        (RadioConfig().resource_elements * 30e3 / SUBBANDS, SUBBANDS),
        sender_bearing_rad=walks.bearing_rad[serving].float(),
        sender_tilt_rad=walks.tilt_rad[serving].float(),
    )
    return Perfect(1)(made, serving)[:, 0]
