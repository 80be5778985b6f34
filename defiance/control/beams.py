"""Beam management: sweeps, hierarchical search, tracking, and their learned rivals; what is left to data.

A station sounds some of its beams one after the other, a device measures them (L1-RSRP), and a policy
chooses the beams that serve until the next sounding is decided. Sounding takes symbols from data, and a
decision comes when the sweep, the report and the model's computing are over, to a device that has moved on:

    sound ──▶ report ──▶ compute ──▶ | this choice serves ...
    |<──── symbols ────>|            |
    |<──── delay: the choice before serves ────>|

    rules     exhaustive: all beams; hierarchical: wide beams, then those within the strongest; tracking: the
              last best and its neighbours
    learned   a few beams (set B), now and before ── perceptron ──▶ best of all beams (set A), now (spatial,
              BM-Case1 of TR 38.843) or at coming instants (temporal, BM-Case2)

Beams that every user can measure (`common`) are sounded once for a sector, those that follow one user
(`dedicated`) once for each of its users. Beams number row by row, as in `codebooks.dft_beams`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from defiance.control.beam_learning import features, scores
from defiance.control.codebooks import dft_beams
from defiance.control.sounding import (
    DIFFERENCE_BITS,
    REPORT_S,
    RSRP_BITS,
    Sounding,
    measured_snr_db,
    reported,
)
from defiance.errors import DefianceError
from defiance.learn.training import Parameters
from defiance.network.settings import RadioConfig
from defiance.radio.arrays import Panel
from defiance.seeding import Stream

Listen = Callable[[Tensor], Tensor]
"""Measures beams `[U, M]` of every user: their SNR in dB, `[U, M]`."""


# --- beams ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Book:
    """The beams of a panel: DFT ones, row by row, and after them wide ones that cover a group of them each.

    A wide beam is sent by a part of the panel with all the power: nothing that covers a group of n beams
    evenly has more gain than 1/n of theirs.

    Attributes:
        panel: of one polarisation.
        group: rows and columns of DFT beams that a wide one covers.

    Raises:
        DefianceError: the panel is dual, or groups don't fill it.
    """

    panel: Panel
    group: tuple[int, int]

    def __post_init__(self) -> None:
        rows, columns = self.group
        if self.panel.dual or self.panel.rows % rows or self.panel.columns % columns:
            raise DefianceError(
                f"groups of {rows} x {columns} beams don't fill a panel of {self.panel.rows} x "
                f"{self.panel.columns} elements of one polarisation; give divisors"
            )

    @property
    def narrow(self) -> int:
        """How many DFT beams there are."""
        return self.panel.rows * self.panel.columns

    @property
    def wide(self) -> Tensor:
        """Numbers of the wide beams, int64 `[W]`."""
        return self.narrow + torch.arange(self.narrow // (self.group[0] * self.group[1]))

    @property
    def vectors(self) -> Tensor:
        """All beams, complex64 `[narrow + W, elements]`, norm 1."""
        rows, columns = self.panel.rows, self.panel.columns
        turned = _centres(rows, self.group[0])[:, None, :, None] * _centres(columns, self.group[1])[:, None]
        return torch.cat([dft_beams(self.panel).flatten(0, 1), turned.flatten(2).flatten(0, 1)])

    def sweep(self, rows: int | None = None) -> Tensor:
        """DFT beams of the first rows, or of all, int64 `[n]`: the first is level, the last looks up."""
        return torch.arange((rows or self.panel.rows) * self.panel.columns)

    @property
    def within(self) -> Tensor:
        """DFT beams that each wide one covers, int64 `[W, group]`."""
        (height, width), columns = self.group, self.panel.columns
        grid = torch.arange(self.narrow).view(self.panel.rows // height, height, columns // width, width)
        return grid.permute(0, 2, 1, 3).reshape(len(self.wide), -1)

    @property
    def neighbours(self) -> Tensor:
        """Every DFT beam and those around it, int64 `[narrow, 9]`; DFT grids have no edge."""
        grid = torch.arange(self.narrow).view(self.panel.rows, self.panel.columns)
        around = [grid.roll((up, left), (0, 1)) for up in (0, 1, -1) for left in (0, 1, -1)]
        return torch.stack(around, -1).flatten(0, 1)


def _centres(places: int, group: int) -> Tensor:
    """DFT vectors of the first places / group places towards the middle of each group, norm 1."""
    used = places // group
    towards = torch.arange(used)[:, None] * group + (group - 1) / 2
    phase = 2 * math.pi * towards * torch.arange(places) / places
    return torch.polar((torch.arange(places) < used) * used**-0.5 + 0 * phase, phase)


# --- the rules ------------------------------------------------------------------------------------------


class Policy(ABC):
    """Chooses beams; rules and learned ones alike.

    Attributes:
        book: the beams.
        sounding: when and how they are sounded.
        common, dedicated: beams sounded in a period for all users of a sector, and for each of them.
        stages: reports until a choice is made.
        report_bits: of all reports of a user in a period.
        operations: real-valued ones of a choice.
    """

    book: Book
    sounding: Sounding
    common: float = 0.0
    dedicated: float = 0.0
    stages: int = 1
    report_bits: float = 6 + RSRP_BITS
    operations: float = 0.0

    @abstractmethod
    def initial(self, users: int) -> Any:
        """The memory of users of whom nothing was measured yet."""

    @abstractmethod
    def decide(self, memory: Any, listen: Listen) -> tuple[Any, Tensor]:
        """Measures; returns the next memory, and beams for equal parts of the coming period, `[U, parts]`."""

    def sounded(self, users: int) -> float:
        """Beams that a sector with so many users sounds in a period."""
        return self.common + users * self.dedicated

    def overhead(self, users: int) -> float:
        """Share of a sector's symbols that sounding takes; `Sounding.overhead` refuses too much."""
        return self.sounding.overhead(self.sounded(users))

    def asked(self, memory: Any, users: int) -> float:
        """Of the beams in `sounded` those for single users, after a choice; nan: this choice had none."""
        return users * self.dedicated

    def delay_s(self, users: int, compute_s: float) -> float:
        """How old a measurement is when its choice begins to serve.

        Half the sweep, a mean beam's share of it, the reports, and the model's computing.
        """
        return self.sounding.sweep_s(self.sounded(users)) / 2 + self.stages * REPORT_S + compute_s


@dataclass(frozen=True)
class Exhaustive(Policy):
    """Sounds all beams, or those of the first rows; the strongest serves."""

    book: Book
    sounding: Sounding
    rows: int | None = None

    @property
    def common(self) -> float:  # type: ignore[override]
        """All."""
        return len(self.book.sweep(self.rows))

    def initial(self, users: int) -> Tensor:
        """How many users there are."""
        return torch.zeros(users, 1, dtype=torch.int64)

    def decide(self, memory: Tensor, listen: Listen) -> tuple[Tensor, Tensor]:
        """The strongest."""
        everything = self.book.sweep(self.rows).expand(len(memory), -1)
        return memory, listen(everything).argmax(-1, keepdim=True)


@dataclass(frozen=True)
class Hierarchical(Policy):
    """Sounds wide beams for all, then for every user the beams within the strongest of them."""

    book: Book
    sounding: Sounding
    stages: int = 2
    report_bits: float = 2 * (6 + RSRP_BITS)

    @property
    def common(self) -> float:  # type: ignore[override]
        """The wide beams."""
        return len(self.book.wide)

    @property
    def dedicated(self) -> float:  # type: ignore[override]
        """Those within one."""
        return self.book.within.shape[1]

    def initial(self, users: int) -> Tensor:
        """How many users there are."""
        return torch.zeros(users, 1, dtype=torch.int64)

    def decide(self, memory: Tensor, listen: Listen) -> tuple[Tensor, Tensor]:
        """The strongest within the strongest."""
        strongest = listen(self.book.wide.expand(len(memory), -1)).argmax(-1)
        inside = self.book.within[strongest]
        return memory, inside.gather(-1, listen(inside).argmax(-1, keepdim=True))


@dataclass(frozen=True)
class Track:
    """Memory of `Tracking`: the last best beam, `[U, 1]`, and periods until all are sounded again."""

    beam: Tensor
    left: int = 0


@dataclass(frozen=True)
class Tracking(Policy):
    """Sounds every user's last best beam and its neighbours; all beams once in `every` periods."""

    book: Book
    sounding: Sounding
    every: int

    @property
    def common(self) -> float:  # type: ignore[override]
        """All beams, now and then."""
        return self.book.narrow / self.every

    @property
    def dedicated(self) -> float:  # type: ignore[override]
        """A beam and those around it, else."""
        return self.book.neighbours.shape[1] * (1 - 1 / self.every)

    def initial(self, users: int) -> Track:
        """Begins with all beams."""
        return Track(torch.zeros(users, 1, dtype=torch.int64))

    def decide(self, memory: Track, listen: Listen) -> tuple[Track, Tensor]:
        """The strongest of those that are sounded."""
        if memory.left == 0:
            near, left = torch.arange(self.book.narrow).expand(len(memory.beam), -1), self.every - 1
        else:
            near, left = self.book.neighbours[memory.beam[:, 0]], memory.left - 1
        beam = near.gather(-1, listen(near).argmax(-1, keepdim=True))
        return Track(beam, left), beam


# --- their learned rival --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Learned(Policy):
    """A station's model scores all beams from what its devices report of a few, now and before.

    Attributes:
        book: the beams.
        parameters: weights of every station's model, `[nodes, ...]`.
        node: whose model serves a user, int64 `[U]`.
        sounding: when and how set B is sounded.
        measured: set B, int64 `[M]`.
        history: soundings that the model sees.
        instants: parts of the coming period that it chooses beams for.
        refined: how many of the best scored are sounded for each user, of which the strongest serves all the
            period; 1: none, the best scored beams serve.
        spread_db: see `beam_learning.features`.
        operations: of a choice.
    """

    book: Book
    parameters: Parameters
    node: Tensor
    sounding: Sounding
    measured: Tensor
    history: int
    instants: int
    spread_db: float
    operations: float
    refined: int = 1

    @property
    def common(self) -> float:  # type: ignore[override]
        """Set B."""
        return len(self.measured)

    @property
    def dedicated(self) -> float:  # type: ignore[override]
        """Those of highest score, if they are sounded."""
        return self.refined if self.refined > 1 else 0

    @property
    def stages(self) -> int:  # type: ignore[override]
        """One more where the best scored are sounded."""
        return 1 + (self.refined > 1)

    @property
    def report_bits(self) -> float:  # type: ignore[override]
        """The strongest one's number and RSRP, the others' differences; then the strongest of the refined."""
        others = len(self.measured) - 1
        first = math.ceil(math.log2(len(self.measured))) + RSRP_BITS + DIFFERENCE_BITS * others
        return first + (6 + RSRP_BITS) * (self.refined > 1)

    def initial(self, users: int) -> Tensor:
        """Reports, `[U, history, M]`."""
        return torch.full((users, self.history, len(self.measured)), torch.nan)

    def decide(self, memory: Tensor, listen: Listen) -> tuple[Tensor, Tensor]:
        """The beam of highest score at each of the coming instants, or the strongest of the best scored."""
        memory = self.remembered(memory, reported(listen(self.measured.expand(len(memory), -1))))
        if self.refined == 1:
            return memory, self.scored(memory).argmax(-1)
        likely = self.believed(memory).topk(self.refined, -1).indices
        return memory, likely.gather(-1, listen(likely).argmax(-1, keepdim=True))

    def remembered(self, reports: Tensor, newest: Tensor) -> Tensor:
        """Reports `[U, history, M]` with the newest `[U, M]`, which stands for those that are missing."""
        reports = torch.cat([reports[:, 1:], newest[:, None]], 1)
        return torch.where(reports.isnan(), newest[:, None], reports)

    def believed(self, reports: Tensor) -> Tensor:
        """Shares that the model gives to all beams, mean over the coming instants, `[U, beams]`."""
        return torch.softmax(self.scored(reports), -1).mean(1)

    def scored(self, reports: Tensor) -> Tensor:
        """Scores of all beams by every user's station, `[U, instants, beams]`."""
        seen = seen_by_model(reports, self.spread_db)
        score = torch.empty(len(reports), self.instants, self.book.narrow)
        for node in range(len(next(iter(self.parameters.values())))):
            mine = self.node == node
            one = {name: w[node : node + 1] for name, w in self.parameters.items()}
            score[mine] = scores(one, seen[mine][None], self.instants)[0]
        return score


def seen_by_model(reports_db: Tensor, spread_db: float) -> Tensor:
    """Features of reports `[..., history, M]`."""
    return features(reports_db.flatten(-2), -torch.inf, spread_db)


# --- what they bring ------------------------------------------------------------------------------------


def spectral_efficiency(snr_db: Tensor, config: RadioConfig) -> Tensor:
    """Bit/s/Hz of the simulator's attenuated Shannon, `[...]`."""
    rate = config.rate_attenuation * torch.log2(1 + torch.pow(10.0, snr_db / 10))
    return rate.clamp(max=config.rate_max_bps_hz)


@dataclass(frozen=True)
class Served:
    """What users had under a policy, from the first whole choice on.

    Attributes:
        beam: that served, int64 `[T, U]`; -1 before the first choice.
        spectral_efficiency: of data symbols, mean over time, `[U]` bit/s/Hz.
        net_spectral_efficiency: less what sounding takes, `[U]` bit/s/Hz.
        lost_db: L1-RSRP difference to the best beam, mean over time, `[U]`.
        best_share: of the time, with the best beam, `[U]`.
        overhead: share of the symbols that sounding took.
    """

    beam: Tensor
    spectral_efficiency: Tensor
    net_spectral_efficiency: Tensor
    lost_db: Tensor
    best_share: Tensor
    overhead: float


def serve(
    policy: Policy,
    snr_db: Tensor,
    tick_s: float,
    config: RadioConfig,
    random: Stream,
    *,
    users: int,
    compute_s: float = 0.0,
    warm_up_s: float = 0.0,
) -> Served:
    """Lets a policy choose beams while users move.

    Args:
        policy: rule or learned.
        snr_db: of every beam of the book, `[T, U, beams]`.
        tick_s: between two of its entries.
        config: rates.
        random: of measurements; the same under every policy.
        users: of a sector, who share its symbols.
        compute_s: a model's time for a choice.
        warm_up_s: left out of the means.

    Raises:
        DefianceError: the time is too short for a choice, or sounding takes more symbols than there are.
    """
    ticks, count, _ = snr_db.shape
    period = max(1, round(policy.sounding.period_s / tick_s))
    delay = math.ceil(policy.delay_s(users, compute_s) / tick_s - 1e-9)
    first = max(delay, round(warm_up_s / tick_s))
    if first >= ticks:
        raise DefianceError(f"{ticks * tick_s:g} s are over before the first choice serves; give more time")
    beam = torch.full((ticks, count), -1)
    memory = policy.initial(count)
    asked: list[float] = []
    for begin in range(0, ticks - delay, period):
        now_db = snr_db[begin]
        noise = torch.randn(now_db.shape, generator=random.child(begin).generator())
        heard = measured_snr_db(now_db, noise)
        memory, chosen = policy.decide(memory, lambda beams, heard=heard: heard.gather(-1, beams))  # type: ignore[misc]
        if begin >= first - delay or not asked:
            asked.append(policy.asked(memory, users))
        last = min(begin + delay + period, ticks)
        part = torch.arange(last - begin - delay) * chosen.shape[1] // period
        beam[begin + delay : last] = chosen.T[part]
    served = snr_db[first:].gather(-1, beam[first:, :, None])[..., 0]
    best = snr_db[first:, :, : policy.book.narrow].amax(-1)
    rate = spectral_efficiency(served, config).mean(0)
    single = [beams for beams in asked if not math.isnan(beams)]
    overhead = policy.sounding.overhead(policy.common + sum(single) / max(1, len(single)))
    return Served(
        beam,
        rate,
        rate * (1 - overhead),
        (best - served).mean(0),
        (served >= best).float().mean(0),
        overhead,
    )
