"""Cells with antenna arrays that send to several users at once: a step of stations, devices and the air.

    device: its cell's channel ─▶ report ─▶ uplink Link ─▶ station: groups by proportional fairness,
                                                            regularised zero-forcing, an MCS for each stream
    air: every cell's channel to every user, through the precoders that all cells chose ─▶ SINR ─▶ bits

A station knows no more than what was reported, some milliseconds ago; what a user hears, of its own cell's
other streams and of other cells, follows from the channels as they are now. One instant stands for a step,
as in the simulator of many worlds; rates, link adaptation and proportional fairness are its own
(`network.rates`). Buffers are full, so a cell sends in every sub-band in which it knows a user, with all its
power in equal parts; a cell without users is silent. `network.on_walks` is the run over traced channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.link import Link, Packets
from defiance.network.precoding import heard_sinr, precoders, select
from defiance.network.rates import offered_rates, transport_blocks
from defiance.network.scheduling import LEAST_MEAN_BPS
from defiance.network.settings import RadioConfig
from defiance.radio.link_adaptation import olla_step
from defiance.seeding import Stream

MOST_SINR = 1e5
"""That a device reports, 50 dB: beyond what any MCS needs."""


class Report(Protocol):
    """What comes over of what a device measured."""

    @property
    def bits(self) -> int:
        """Of one report; the quality of its streams is counted apart."""

    @property
    def streams(self) -> int:
        """That it tells of."""

    def __call__(self, channels: Tensor, cell: Tensor) -> Tensor:
        """The precoders that a station makes of it.

        Args:
            channels: complex64 `[n, rx, T, K]`, none of them nothing.
            cell: int64 `[n]`.

        Returns:
            complex64 `[n, streams, K, T]`, norm 1.
        """


@dataclass(frozen=True)
class Perfect:
    """The strongest right singular vectors of every sub-band, without error and free of bits.

    Raises:
        DefianceError: when called, devices have fewer antennas than streams are told of.
    """

    streams: int = 1
    bits: int = 0

    def __call__(self, channels: Tensor, cell: Tensor) -> Tensor:
        """See `Report`."""
        if self.streams > channels.shape[1]:
            raise DefianceError(
                f"reports of {self.streams} streams from devices of {channels.shape[1]} antennas; tell of no "
                "more streams than antennas"
            )
        rows = channels.permute(0, 3, 1, 2)  # [n, K, rx, T]
        rows = rows / rows.abs().amax((-1, -2), keepdim=True).clamp(min=1e-30)
        _, left = torch.linalg.eigh(rows @ rows.mH)
        v = (left.mH @ rows).flip(-2)[..., : self.streams, :].conj()
        found: Tensor = (v / v.norm(dim=-1, keepdim=True).clamp(min=1e-30)).transpose(1, 2)
        return found


@dataclass(frozen=True)
class MultiUser:
    """How cells serve their users.

    Attributes:
        report: of their devices.
        users: at once, at most; 1: single-user MIMO.
        streams: at once, at most, all users together.
        on_beams: reports name beams; of a group's beams its devices report what they hear, and the precoder
            is a digital one behind them.

    Raises:
        DefianceError: nobody could be served.
    """

    report: Report
    users: int
    streams: int
    on_beams: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.users <= self.streams <= self.users * self.report.streams:
            raise DefianceError(
                f"{self.streams} streams to {self.users} users whose reports tell of {self.report.streams} "
                "each; give one stream for every user at least, and no more than are told of"
            )


@dataclass(frozen=True)
class State:
    """What changes at the stations; E = users x streams, numbered user by user.

    Attributes:
        precoder: last reported, complex64 `[U, S, K, T]`.
        measured: a device's own strongest directions where they are reported on beams, likewise; else the
            same.
        quality: SINR that a stream would have alone, `[U, S, K]`; 0 without a report.
        known_cell: that the report was for, int64 `[U]`; -1 before the first.
        covariance: of noise and other cells that a device hears, against noise, complex128 `[U, K, rx, rx]`.
        average_bps: of proportional fairness, `[U]`.
        olla_db: outer loop's offset, `[U, S]`.
        link: what is on the way.
        payload: by the step in which they were measured, how many reports are on the way, and what they say.
        bits: served, float64 `[U]`.
        cell_bits: by whom, float64 `[C]`.
        sent_streams: float64 `[C]`, mean over sub-bands, summed over steps.
        active_steps: in which a cell sent, float64 `[C]`, mean over sub-bands.
        report_bits: that travelled, `[]` int64.
    """

    precoder: Tensor
    measured: Tensor
    quality: Tensor
    known_cell: Tensor
    covariance: Tensor
    average_bps: Tensor
    olla_db: Tensor
    link: Any
    bits: Tensor
    cell_bits: Tensor
    sent_streams: Tensor
    active_steps: Tensor
    report_bits: Tensor
    payload: Mapping[int, tuple[int, tuple[Tensor, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What cells send in a step.

    Attributes:
        chosen: streams of each group, int64 `[C, K, L]`, -1 where there is none.
        precoder: complex64 `[C, K, T, L]`.
        told: SINR that the station expects of each stream, `[E, K]`; 0 where it isn't sent.
    """

    chosen: Tensor
    precoder: Tensor
    told: Tensor


@dataclass(frozen=True)
class Heard:
    """What users hear of a plan.

    Attributes:
        sinr: of each stream, `[E, K]`; 0 where it isn't sent.
        covariance: see `State`.
    """

    sinr: Tensor
    covariance: Tensor


# --- one step ---------------------------------------------------------------------------------------------


def initial(multi: MultiUser, users: int, cells: int, shape: tuple[int, int, int], link: Link[Any]) -> State:
    """Nothing is known, nobody has been served.

    Args:
        multi: how cells serve.
        users: U.
        cells: C.
        shape: rx, T, K.
        link: of the reports.
    """
    rx, ports, bands = shape
    streams = multi.report.streams
    nothing = torch.zeros(users, streams, bands, ports, dtype=torch.complex64)
    noise = torch.eye(rx, dtype=torch.complex128).expand(users, bands, rx, rx)
    zero = torch.zeros(cells, dtype=torch.float64)
    return State(
        precoder=nothing,
        measured=nothing,
        quality=torch.zeros(users, streams, bands),
        known_cell=torch.full((users,), -1),
        covariance=noise,
        average_bps=torch.zeros(users, dtype=torch.float64),
        olla_db=torch.zeros(users, streams, dtype=torch.float64),
        link=link.initial(),
        bits=torch.zeros(users, dtype=torch.float64),
        cell_bits=zero,
        sent_streams=zero,
        active_steps=zero,
        report_bits=torch.tensor(0),
    )


def report(
    state: State, multi: MultiUser, channels: Tensor, serving: Tensor, step: int, measured_s: float,
    now_s: float, link: Link[Any], random: Stream,
) -> State:  # fmt: skip
    """Devices measure their cell and report; stations learn what has arrived by now.

    Quality is what a stream would have alone through the precoder that the station will make of the report,
    among the interference of the step before (TS 38.214 clause 5.2.2: a CQI is that of its PMI): 4 bits, and
    2 more for every sub-band. It comes over exactly.

    Args:
        state: before.
        multi: how cells serve.
        channels: of everyone's cell, noise 1, complex64 `[U, rx, T, K]`.
        serving: cell of everyone, int64 `[U]`.
        step: its number.
        measured_s: when the channels were.
        now_s: when stations schedule.
        link: of the reports.
        random: its draws.
    """
    users, streams = state.quality.shape[:2]
    there = (channels.abs().amax((1, 2)) > 0).all(-1).nonzero()[:, 0]
    told = torch.zeros_like(state.precoder)
    told[there] = multi.report(channels[there], serving[there])
    quality = _alone(channels, told, state.covariance)
    own = told
    if multi.on_beams:
        best = Perfect(streams)(channels, serving)
        own = best * _alone(channels, best, state.covariance).sqrt()[..., None]
    bits = multi.report.bits + streams * (4 + 2 * channels.shape[-1])
    packets = Packets.of(
        step * users + there, purpose="assistance", payload_bits=bits, offered_s=measured_s, source=there
    )
    on_the_way, sent = link.advance(link.offer(state.link, packets, measured_s), now_s, random)
    payload = {**state.payload, step: (len(there), (told, own, quality, serving))}
    known = [state.precoder, state.measured, state.quality, state.known_cell]
    of_step = sent.id // users
    for number in of_step.unique().tolist():
        waiting, content = payload.pop(number)
        due = of_step == number
        if waiting > int(due.sum()):
            payload[number] = waiting - int(due.sum()), content
        which = sent.id[due & sent.delivered] % users
        known = [old.index_copy(0, which, new[which]) for old, new in zip(known, content, strict=True)]
    return replace(
        state,
        precoder=known[0],
        measured=known[1],
        quality=known[2],
        known_cell=known[3],
        link=on_the_way,
        payload=payload,
        report_bits=state.report_bits + sent.sent_bits.sum(),
    )


def _alone(channels: Tensor, precoder: Tensor, covariance: Tensor) -> Tensor:
    """SINR of each stream alone, with all power, `[U, S, K]`."""
    wanted = torch.einsum("urtk,uskt->uskr", channels, precoder)
    return heard_sinr(wanted, covariance[:, None]).clamp(max=MOST_SINR)


def schedule(state: State, multi: MultiUser, radio: RadioConfig, serving: Tensor, cells: int) -> Plan:
    """Chooses groups and precoders from what was reported.

    Args:
        state: what stations know.
        multi: how cells serve.
        radio: scheduler (`proportional_fair` or `max_rate`), link adaptation.
        serving: cell of everyone, int64 `[U]`; who reported to another one waits.
        cells: C.

    Raises:
        DefianceError: the scheduler doesn't look at rates.
    """
    if not radio.ranks:
        raise DefianceError(
            f"scheduler is {radio.scheduler}, which doesn't look at rates; several users at once need "
            "proportional_fair or max_rate"
        )
    users, streams, bands = state.quality.shape
    user = torch.arange(users).repeat_interleave(streams)
    heard = state.quality >= 10 ** (radio.least_sinr_db / 10)
    quality = torch.where(heard, state.quality, 0.0)
    vectors = (quality.sqrt()[..., None] * state.precoder.conj()).flatten(0, 1)
    fair = radio.scheduler == "proportional_fair"
    weight = 1 / state.average_bps.clamp(min=LEAST_MEAN_BPS) if fair else torch.ones(users).double()
    weight = torch.where(state.known_cell == serving, weight, 0.0)[user]
    olla_db = state.olla_db.flatten()

    def rate(sinr: Tensor, which: Tensor) -> Tensor:
        offered, expected = offered_rates(olla_db[which], radio, sinr[..., None], sinr[..., None])
        return torch.where(offered >= 0, expected, 0.0)[..., 0]

    most = cells, multi.users, multi.streams
    chosen = select(vectors, weight, user, serving[user], most, rate)
    measured = state.measured.conj().flatten(0, 1) if multi.on_beams else None
    precoder = precoders(vectors, chosen, measured)
    band = torch.arange(bands)[:, None].expand_as(chosen)
    seen = vectors if measured is None else measured
    met = (seen[chosen, band].unsqueeze(-2) @ precoder[:, :, None])[..., 0, :]
    power = met.abs().square()
    wanted = power.diagonal(dim1=-2, dim2=-1)
    sinr = wanted / (1 + power.sum(-1) - wanted)
    told = torch.zeros(users * streams, bands)
    told[chosen[chosen >= 0], band[chosen >= 0]] = sinr[chosen >= 0]
    return Plan(chosen, precoder, told)


def hear(channels: Iterable[Tensor], plans: Sequence[Plan], serving: Tensor) -> list[Heard]:
    """What users hear of several plans over the same channels.

    Args:
        channels: of each cell to everyone, noise 1, complex64 `[U, rx, T, K]`.
        plans: what cells send.
        serving: cell of everyone, int64 `[U]`.
    """
    total: list[Tensor] = []
    others: list[Tensor] = []
    wanted = [torch.zeros(0)] * len(plans)
    users = len(serving)
    for cell, h in enumerate(channels):
        rx, bands = h.shape[1], h.shape[-1]
        by_band = h.permute(3, 0, 1, 2).reshape(bands, users * rx, -1)
        if not total:
            noise = torch.eye(rx, dtype=torch.complex128).expand(users, bands, rx, rx)
            total, others = [noise.clone() for _ in plans], [noise.clone() for _ in plans]
            wanted = [torch.zeros(*plan.told.shape, rx, dtype=torch.complex128) for plan in plans]
        away = (serving != cell)[:, None, None, None]
        for number, plan in enumerate(plans):
            met = by_band @ plan.precoder[cell]
            met = met.unflatten(1, (users, rx)).transpose(0, 1).to(torch.complex128)  # [U, K, rx, L]
            power = met @ met.mH
            total[number] += power
            others[number] += power * away
            band, place = (plan.chosen[cell] >= 0).nonzero().T
            stream = plan.chosen[cell, band, place]
            whose = stream // (len(plan.told) // users)
            wanted[number][stream, band] = met[whose, band, :, place]
    found = []
    for plan, everything, rest, own in zip(plans, total, others, wanted, strict=True):
        stream, band = (plan.told > 0).nonzero().T
        g = own[stream, band]
        mine = (
            everything[stream // (len(plan.told) // users), band] - g[..., :, None] * g[..., None, :].conj()
        )
        sinr = torch.zeros_like(plan.told)
        sinr[stream, band] = heard_sinr(g, mine)
        found.append(Heard(sinr, rest))
    return found


def settle(state: State, plan: Plan, heard: Heard, radio: RadioConfig, serving: Tensor) -> State:
    """Bits that came over, the outer loops, and past mean rates, after a step.

    Args:
        state: before the step.
        plan: what was sent.
        heard: how it came over.
        radio: link adaptation, step, fairness.
        serving: cell of everyone, int64 `[U]`.
    """
    users, streams, bands = state.quality.shape
    share = (plan.told > 0).double() / bands
    olla_db = state.olla_db.flatten()
    if radio.adapts:
        sent, error = transport_blocks(olla_db, radio, share, heard.sinr, plan.told)
        olla_db = torch.where(share.sum(-1) > 0, olla_step(olla_db, error), olla_db)
    else:
        offered, _ = offered_rates(olla_db, radio, heard.sinr, plan.told)
        sent = (share * offered.clamp(min=0)).sum(-1)
    sent = sent.view(users, streams).sum(-1)
    number = (plan.chosen >= 0).sum(-1).double()
    return replace(
        state,
        covariance=heard.covariance,
        average_bps=state.average_bps + (sent - state.average_bps) * radio.fairness,
        olla_db=olla_db.view(users, streams),
        bits=state.bits + sent * radio.step_s,
        cell_bits=state.cell_bits.index_add(0, serving, sent * radio.step_s),
        sent_streams=state.sent_streams + number.mean(-1),
        active_steps=state.active_steps + (number > 0).double().mean(-1),
    )
