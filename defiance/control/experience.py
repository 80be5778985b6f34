"""What a learned handover learns from: past measurements, their hindsight values, the model between them.

A base station keeps the measurements that its devices reported. Once the next seconds have been measured
too, dynamic programming tells what each choice was worth; no simulator's secret (noise-free gain, position)
is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from defiance.control.handover import HISTORY, hindsight_values
from defiance.learn.training import Parameters
from defiance.link import loss_from_sinr
from defiance.network.measurements import RSRP_FLOOR_DBM
from defiance.network.settings import RadioConfig
from defiance.scene import Scene, xn_table
from defiance.seeding import Stream

HORIZON = 20
"""Periods of future that a sample needs: as far as a discount of 0.95 looks ahead."""


@dataclass(frozen=True)
class Target:
    """How hindsight values are made.

    Attributes:
        handover_cost: h in periods of outage.
        regret_limit: regrets beyond it are all the same: such a cell is out of the question.
        discount: gamma per period; 0.95 looks about 20 periods ahead.
        rate_weight: worth of the highest rate against a period of outage.
        smoothing_periods: centred mean over so many measurements, in power.
        softness_db: an SINR so much above Qout counts as outage with probability 0.27.
    """

    handover_cost: float = 1.0
    regret_limit: float = 4.0
    discount: float = 0.95
    rate_weight: float = 0.1
    smoothing_periods: int = 3
    softness_db: float = 1.0


@dataclass(frozen=True)
class Experience:
    """Measurements with their values, time first, n users.

    Attributes:
        rsrp_dbm: `[T, n, C]` int8.
        value: regret of each cell against the best, `[T, n, C]` float16, <= 0.
        serving: `[T, n]` int8.
    """

    rsrp_dbm: Tensor
    value: Tensor
    serving: Tensor

    def samples(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Times and users of these users' complete samples: a full history before and a future after."""
        times = torch.arange(HISTORY - 1, len(self.rsrp_dbm) - HORIZON)
        grid = torch.meshgrid(times, users, indexing="ij")
        return grid[0].flatten(), grid[1].flatten()

    def batch(self, times: Tensor, users: Tensor) -> tuple[Tensor, Tensor]:
        """Histories `[B, HISTORY, C]` in dBm and values `[B, C]`."""
        window = times[:, None] + torch.arange(1 - HISTORY, 1)
        history = self.rsrp_dbm[window, users[:, None]].float()
        return history, self.value[times, users].float()


def rewards(rsrp_dbm: Tensor, load: Tensor, config: RadioConfig, target: Target) -> Tensor:
    """Rewards r of being served by each cell in each period, from received powers per resource element.

    Minus the probability of outage, plus a little for rate, both from the SINR at the given load.

    Args:
        rsrp_dbm: `[T, n, C]`.
        load: `[n, C]`.
        config: noise, Qout and the rate's curve.
        target: weights.
    """
    return _rewards(sinr_db(rsrp_dbm, load, config), config, target)


def sinr_db(rsrp_dbm: Tensor, load: Tensor, config: RadioConfig) -> Tensor:
    """SINR of every cell at the given load, from received powers per resource element, `[T, n, C]`."""
    power = torch.pow(10.0, rsrp_dbm.float() / 10)
    noise = 10 ** (config.noise_dbm / 10) / config.resource_elements
    loaded = load * power
    sinr = power / (loaded.sum(-1, keepdim=True) - loaded + noise)
    return 10 * torch.log10(sinr.clamp(min=1e-9))


def _rewards(sinr: Tensor, config: RadioConfig, target: Target) -> Tensor:
    outage = torch.sigmoid((config.qout_db - sinr) / target.softness_db)
    rate = config.rate_attenuation * torch.log2(1 + torch.pow(10.0, sinr / 10))
    return target.rate_weight * (rate / config.rate_max_bps_hz).clamp(max=1) - outage


def hindsight(
    rsrp_dbm: Tensor, load: Tensor, serving: Tensor, config: RadioConfig, target: Target
) -> Experience:
    """Turns recorded measurements into samples.

    Args:
        rsrp_dbm: what was reported, `[T, n, C]` int8.
        load: mean load of the cells, `[n, C]`, as the stations know it.
        serving: `[T, n]`.
        config: carrier.
        target: how values are made.
    """
    values = torch.empty(rsrp_dbm.shape, dtype=torch.float16)
    for users in torch.arange(rsrp_dbm.shape[1]).split(64):
        sinr = sinr_db(smoothed(rsrp_dbm[:, users], target.smoothing_periods), load[users], config)
        heard = 1 - loss_from_sinr(sinr)
        value = hindsight_values(
            _rewards(sinr, config, target),
            target.handover_cost,
            target.discount,
            heard * heard,  # the request and the command
        )
        regret = value - value.amax(-1, keepdim=True)
        values[:, users] = regret.clamp(min=-target.regret_limit).half()
    # a handover decided at the end of period t is executed during t + 1 and serves from t + 2 on
    return Experience(rsrp_dbm[:-2], values[2:], serving[:-2])


def smoothed(rsrp_dbm: Tensor, periods: int) -> Tensor:
    """Centred moving mean of the received power along time, `[T, n, C]`."""
    if periods <= 1:
        return rsrp_dbm.float()
    # running sums in float64: a cell that was strong once would drown its later, weak measurements in float32
    power = torch.pow(10.0, rsrp_dbm.double() / 10)
    total = torch.nn.functional.pad(power.cumsum(0), (0, 0, 0, 0, 1, 0))
    last = len(power)
    start = (torch.arange(last) - periods // 2).clamp(min=0)
    end = (torch.arange(last) + periods // 2 + 1).clamp(max=last)
    mean = (total[end] - total[start]) / (end - start)[:, None, None]
    return (10 * torch.log10(mean.clamp(min=10 ** (RSRP_FLOOR_DBM / 10)))).float()


@dataclass(frozen=True)
class ValueModel:
    """V of every cell from the last two seconds of RSRP: one perceptron per base station, or one for all.

    Input: the RSRP history in the order of the city's slots, which the Xn table's distances and bearings
    give (see `slots`). Neither the user's position nor its serving cell is an input: what a cell is worth
    does not depend on who serves now, and a model that sees it learns the habits of the rule that recorded
    its data.

    Attributes:
        parameters: stacked weights, `[nodes, ...]`; one node serves all sites.
        cell_site: `[C]`.
        order: cell of every slot, `[C]`.
    """

    parameters: Parameters
    cell_site: Tensor
    order: Tensor

    @property
    def nodes(self) -> int:
        """How many models there are."""
        return len(next(iter(self.parameters.values())))

    def features(self, history_dbm: Tensor) -> Tensor:
        """`[..., HISTORY, C]` in dBm -> `[..., HISTORY * C]`."""
        return ((history_dbm[..., self.order] + 90.0) / 20.0).flatten(-2)

    def value(self, history_dbm: Tensor, serving: Tensor) -> Tensor:
        """V, `[n, C]`, of histories `[n, HISTORY, C]`, each by the model of `serving`'s station, `[n]`."""
        features = self.features(history_dbm)
        if self.nodes == 1:
            by_slot = perceptron(self.parameters, features[None])[0]
        else:
            by_slot = features.new_empty(len(features), len(self.order))
            site = self.cell_site[serving]
            for node in range(self.nodes):
                mine = site == node
                one = {name: w[node : node + 1] for name, w in self.parameters.items()}
                by_slot[mine] = perceptron(one, features[mine][None])[0]
        return by_slot[:, torch.argsort(self.order)]


def perceptron(parameters: Parameters, features: Tensor) -> Tensor:
    """Multilayer perceptron of every node: `[nodes, B, F] -> [nodes, B, C]`."""
    hidden = features
    layers = len(parameters) // 2
    for layer in range(layers):
        hidden = torch.baddbmm(parameters[f"bias{layer}"], hidden, parameters[f"weight{layer}"])
        if layer < layers - 1:
            hidden = torch.relu(hidden)
    return hidden


def initial_parameters(widths: tuple[int, ...], nodes: int, stream: Stream) -> Parameters:
    """He-initialised weights, the same for every node, `[nodes, in, out]` and `[nodes, 1, out]`."""
    generator = stream.child("weights").generator()
    parameters: Parameters = {}
    for layer, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        weight = torch.randn(inputs, outputs, generator=generator) * (2 / inputs) ** 0.5
        parameters[f"weight{layer}"] = weight.expand(nodes, -1, -1).clone()
        parameters[f"bias{layer}"] = torch.zeros(nodes, 1, outputs)
    return parameters


def slots(scene: Scene) -> Tensor:
    """Order of cells that means the same in every city, from the Xn table alone: `[C]`.

    The most central site comes first, the others by bearing from it; within a site, sectors by azimuth.
    """
    distance, bearing = xn_table(scene)
    centre = int(distance.sum(-1).argmin())
    sites = [
        centre,
        *sorted((s for s in range(len(distance)) if s != centre), key=lambda s: float(bearing[centre, s])),
    ]
    cells = [
        c
        for s in sites
        for c in sorted(
            torch.nonzero(scene.cell_site == s).flatten().tolist(),
            key=lambda c: float(scene.azimuth_deg[c] % 360),
        )
    ]
    return torch.tensor(cells)


@dataclass(frozen=True)
class Batches:
    """Draws batches for every node from the samples that its cells served.

    Attributes:
        experience: all samples of a city.
        times, users: of the samples, grouped by node, `[N]`.
        start, count: where the samples that each node draws from lie, `[nodes]`.
        served: samples of each node's own, `[nodes]`; a node without any borrows everyone's.
        size: samples per node and batch.
    """

    experience: Experience
    times: Tensor
    users: Tensor
    start: Tensor
    count: Tensor
    served: Tensor
    size: int

    @classmethod
    def of(
        cls,
        experience: Experience,
        cell_site: Tensor,
        nodes: int,
        size: int,
        among: Tensor,
    ) -> Batches:
        """Groups the samples of the users `among` by serving site; one node takes all of them."""
        times, users = experience.samples(among)
        if nodes == 1:
            every = torch.tensor([len(times)])
            return cls(experience, times, users, torch.zeros_like(every), every, every, size)
        site = cell_site[experience.serving[times, users].long()]
        order = torch.argsort(site, stable=True)
        served = torch.bincount(site, minlength=nodes)
        start = torch.where(served > 0, served.cumsum(0) - served, 0)
        count = torch.where(served > 0, served, len(times))
        return cls(experience, times[order], users[order], start, count, served, size)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Histories `[nodes, size, HISTORY, C]` and values `[nodes, size, C]`."""
        nodes = len(self.count)
        share = torch.rand(nodes, self.size, generator=generator, dtype=torch.float64)
        index = (self.start[:, None] + (share * self.count[:, None]).long()).flatten()
        history, value = self.experience.batch(self.times[index], self.users[index])
        return (
            history.view(nodes, self.size, *history.shape[1:]),
            value.view(nodes, self.size, -1),
        )


def value_loss(model: ValueModel) -> Callable[[Parameters, tuple[Tensor, Tensor]], Tensor]:
    """Mean squared error of V per node, `[nodes]`, for a batch as `Batches.draw` gives it."""

    def loss(parameters: Parameters, batch: tuple[Tensor, Tensor]) -> Tensor:
        history, value = batch
        predicted = perceptron(parameters, model.features(history))
        return (predicted - value[..., model.order]).square().mean((-1, -2))

    return loss
