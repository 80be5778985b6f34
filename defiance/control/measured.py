"""Handover functions on measured drives: when they would have asked to leave, and when the network did.

A drive names the cell that served and its RSRP, and the RSRP of the strongest other cell, but not which one
that was. So a function sees two cells, in `columns` of those that it knows, anew in every visit (a stay in
one cell), each row standing until the next::

    visit of A    own: RSRP of A          other: strongest neighbour         ──▶ asks to leave, tick by tick
    handover to B                                                                 |
    just after    own: strongest          other: RSRP of B                   ──▶ would it have asked by now?
                  neighbour, taken for A

It is an open loop: what the function asks for changes nothing, the cell goes on as the network decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defiance.network.measurements import RSRP_FLOOR_DBM, Observation
from defiance.network.settings import RadioConfig
from defiance.network.simulate import Policy
from defiance.network.state import NONE
from defiance.scene.drives import MODES, NO_CELL, Drive
from defiance.scene.replay import HOLD_S

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
ROW_S = 1.0
"""How long a row stands after which none follows: G-NetTrack writes about one a second."""


@dataclass(frozen=True)
class Visit:
    """A stay in one cell, and some seconds more as if it had not been left, tick by tick.

    Attributes:
        drive: number of the drive.
        own_dbm: float64 [n], RSRP of the cell.
        other_dbm: float64 [n], of the strongest other one; nan where none was measured.
        stayed: ticks that the network stayed.
        handed_over: whether another cell served then; else the visit ends in a gap, or with the drive.
        returned: whether that one handed back within the seconds that follow.
    """

    drive: int
    own_dbm: Array
    other_dbm: Array
    stayed: int
    handed_over: bool
    returned: bool

    @property
    def seen(self) -> bool:
        """Whether it ended in a handover before which another cell was measured."""
        return self.handed_over and bool(np.isfinite(self.other_dbm[self.stayed - 1]))

    @property
    def gain_db(self) -> Array:
        """What the other cell is stronger, [n]; nan where it wasn't measured."""
        return self.other_dbm - self.own_dbm


def visits_of(drives: Sequence[Drive], period_s: float, follow_s: float) -> tuple[Visit, ...]:
    """All visits of LTE cells.

    Of rows with one time the last counts. A visit ends where another cell serves; without one where no LTE
    cell serves, or no row comes for `HOLD_S`. The other cell's RSRP is that of any technology or carrier.

    Args:
        drives: as measured.
        period_s: between two ticks.
        follow_s: how long a visit is followed after a handover, while the new cell and a neighbour are
            measured.
    """
    found: list[Visit] = []
    for number, drive in enumerate(drives):
        in_lte = torch.tensor([mode in MODES for mode in drive.mode]) & (drive.cell != NO_CELL)
        left_lte = (~in_lte).cumsum(0)[drive.measured].numpy()
        seen = drive.select(drive.measured)
        last = np.append(np.diff(seen.time_s.numpy()) > 0, True)[: len(seen)]
        time_s, cell, own_dbm, other_dbm = (
            getattr(seen, name).numpy()[last] for name in ("time_s", "cell", "rsrp_dbm", "neighbour_rsrp_dbm")
        )
        gap = (np.diff(time_s) > HOLD_S) | (np.diff(left_lte[last]) > 0)
        if not len(cell):
            continue
        begins = np.append(0, np.flatnonzero(gap | (np.diff(cell) != 0)) + 1)
        ends = np.append(begins[1:], len(cell))
        over = np.append(~gap[begins[1:] - 1], False)
        until_s = np.where(over, np.append(time_s[begins[1:]], 0), time_s[ends - 1] + ROW_S)
        for n, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            rows = begin + _ticks(time_s[begin:end], until_s[n], period_s)
            own, other, returned = own_dbm[rows], other_dbm[rows], False
            if over[n]:
                back = over[n + 1] and cell[ends[n + 1]] == cell[begin]
                returned = bool(back and until_s[n + 1] - time_s[end] <= follow_s)
                until = min(until_s[n + 1], time_s[end] + follow_s)
                after = end + _ticks(time_s[end : ends[n + 1]], until, period_s)
                after = after[: np.append(np.isnan(other_dbm[after]), True).argmax()]
                own, other = np.append(own, other_dbm[after]), np.append(other, own_dbm[after])
            found.append(Visit(number, own, other, len(rows), bool(over[n]), returned))
    return tuple(found)


def asked(policy: Policy, visits: Sequence[Visit], columns: Tensor, cells: int) -> list[Mask]:
    """Where a function asks to go to the other cell, bool [W, n] of every visit.

    Args:
        policy: decides every tick; parameters by world are allowed.
        visits: with ticks of `policy.period_steps`.
        columns: which of its cells the own and the other one are, int64 `[W, 2]`.
        cells: C that the function knows; those that aren't measured are at the floor.
    """
    found: dict[int, Mask] = {}
    worlds = len(columns)
    period_s = policy.period_steps * RadioConfig.step_s
    by_size = sorted(range(len(visits)), key=lambda number: len(visits[number].own_dbm))
    while by_size:  # batches of visits whose lengths differ by a factor of two at most
        longest = len(visits[by_size[-1]].own_dbm)
        batch = [number for number in by_size if 2 * len(visits[number].own_dbm) >= longest]
        by_size = by_size[: len(by_size) - len(batch)]
        levels = torch.full((longest, len(batch), 2), RSRP_FLOOR_DBM)
        for place, number in enumerate(batch):
            both = np.stack([visits[number].own_dbm, visits[number].other_dbm], -1)
            both = np.nan_to_num(both, nan=RSRP_FLOOR_DBM).clip(RSRP_FLOOR_DBM)
            levels[: len(both), place] = torch.from_numpy(both).float()
        shape = (worlds, len(batch))
        nothing = torch.full((*shape, cells), RSRP_FLOOR_DBM)
        where = columns[:, None].expand(*shape, 2).contiguous()
        memory, fresh = policy.initial(*shape, cells), torch.ones(shape, dtype=torch.bool)
        leaves = torch.zeros((longest, *shape), dtype=torch.bool)
        for tick in range(longest):
            measured = nothing.scatter(-1, where, levels[tick].expand(*shape, 2))
            seen = Observation(measured, where[..., 0], fresh, tick * policy.period_steps, period_s, period_s)
            memory, wanted = policy.decide(memory, seen)
            leaves[tick] = (wanted != NONE) & (wanted == where[..., 1])
        for place, number in enumerate(batch):
            found[number] = leaves[: len(visits[number].own_dbm), :, place].T.numpy()
    return [found[number] for number in range(len(visits))]


@dataclass(frozen=True)
class Decisions:
    """When somebody decided to leave, summed by drive, each float64 [D]; several worlds are summed, too.

    Attributes:
        minutes: of visits.
        count: decisions; of a function the first of successive ticks at which it asks, of the network its
            handovers.
        gains: decisions for which a gain is known.
        gain_db: sum of their gains: what the other cell is stronger, mean over the seconds that follow.
        returns: decisions after which the way back is taken in these seconds: by the network; or by the
            function, if the other cell served it from then on.
    """

    minutes: Array
    count: Array
    gains: Array
    gain_db: Array
    returns: Array


@dataclass(frozen=True)
class Agreement:
    """A function's decisions and the network's handovers, summed as `Decisions`, each float64 [D].

    Attributes:
        seen: handovers before which another cell was measured.
        earlier: of these, those at which the function is asking already, or has been in the window before.
        later: the others for which it first asks in the window after.
        agreed: those, whether earlier or later, for which a decision falls into the window.
        lead_s: sum of the time from the first such decision to the handover; negative: later.
        confirmed: decisions that the network's handover follows within the window.
        near_minutes: of visits, those within the window of a decision: their share is what `agreed` would
            have if handovers came at random.
    """

    seen: Array
    earlier: Array
    later: Array
    agreed: Array
    lead_s: Array
    confirmed: Array
    near_minutes: Array


def of_network(visits: Sequence[Visit], period_s: float, ahead_s: float) -> Decisions:
    """The network's own decisions.

    Args:
        visits: followed for `ahead_s` or longer.
        period_s: between two ticks.
        ahead_s: over which gains are taken, and in which a way back counts.
    """
    begun = [[np.array([visit.stayed] if visit.handed_over else [], np.int64)] for visit in visits]
    return _decisions(visits, begun, [visit.drive for visit in visits if visit.returned], period_s, ahead_s)


def of_function(
    policy: Policy,
    visits: Sequence[Visit],
    leaves: Sequence[Mask],
    columns: Tensor,
    cells: int,
    period_s: float,
    ahead_s: float,
) -> Decisions:
    """A function's decisions; arguments as for `asked` and `of_network`."""
    begun = [
        [ticks[ticks < visit.stayed] for ticks in map(_begun, leave)]
        for visit, leave in zip(visits, leaves, strict=True)
    ]
    turned = [
        (world, _turned(visit, tick, round(ahead_s / period_s)))
        for visit, worlds in zip(visits, begun, strict=True)
        for world, ticks in enumerate(worlds)
        for tick in ticks
    ]
    back = asked(policy, [view for _, view in turned], columns, cells)
    returned = [view.drive for (world, view), leave in zip(turned, back, strict=True) if leave[world].any()]
    return _decisions(visits, begun, returned, period_s, ahead_s)


def agreement(visits: Sequence[Visit], leaves: Sequence[Mask], period_s: float, window_s: float) -> Agreement:
    """Compare what a function asked for with what the network did.

    Args:
        visits: followed for `window_s` or longer.
        leaves: see `asked`.
        period_s: between two ticks.
        window_s: in which decisions agree.
    """
    sums = {field.name: np.zeros(1 + visits[-1].drive) for field in fields(Agreement)}
    window = round(window_s / period_s)
    for visit, leave in zip(visits, leaves, strict=True):
        for asks in leave:
            ticks = _begun(asks)
            about = np.zeros(visit.stayed, bool)
            for tick in ticks[ticks < visit.stayed]:
                about[max(0, tick - window) : tick + window] = True
            sums["near_minutes"][visit.drive] += about.sum() * period_s / 60
            if not visit.handed_over:
                continue
            near = ticks[np.abs(ticks - visit.stayed) <= window]
            sums["confirmed"][visit.drive] += (near < visit.stayed).sum()
            if not visit.seen:
                continue
            earlier = asks[max(0, visit.stayed - window) : visit.stayed].any()
            sums["seen"][visit.drive] += 1
            sums["earlier"][visit.drive] += earlier
            sums["later"][visit.drive] += len(near) > 0 and not earlier
            sums["agreed"][visit.drive] += len(near) > 0
            if len(near):
                sums["lead_s"][visit.drive] += (visit.stayed - near[0]) * period_s
    return Agreement(**sums)


def around(
    visits: Sequence[Visit], leaves: Sequence[Mask], period_s: float, window_s: float
) -> tuple[Array, Array, Array]:
    """What happens about handovers that were seen.

    Returns:
        Time since the handover [m]; share of them at which the function asks to leave the old cell, and
        median of what the other one is stronger in dB, each [m], over those that are measured then; else nan.
    """
    window = round(window_s / period_s)
    asking: list[list[float]] = [[] for _ in range(2 * window)]
    gain_db: list[list[float]] = [[] for _ in range(2 * window)]
    for visit, leave in zip(visits, leaves, strict=True):
        if visit.seen:
            first = max(0, visit.stayed - window)
            for tick in range(first, min(len(visit.own_dbm), visit.stayed + window)):
                asking[tick - visit.stayed + window].append(float(leave[:, tick].mean()))
                gain_db[tick - visit.stayed + window].append(float(visit.gain_db[tick]))
    share = [float(np.mean(column)) if column else math.nan for column in asking]
    median_db = [float(np.nanmedian(column)) if np.isfinite(column).any() else math.nan for column in gain_db]
    time_s = np.arange(-window, window, dtype=np.float64) * period_s
    return time_s, np.array(share), np.array(median_db)


def _ticks(row_s: Array, until_s: float, period_s: float) -> NDArray[np.int64]:
    """The row that stands at each tick from the first row until then."""
    count = max(0, math.ceil((until_s - row_s[0]) / period_s - 1e-6))
    at_s = row_s[0] + np.arange(count) * period_s + 1e-6
    return np.asarray(np.searchsorted(row_s, at_s, side="right") - 1)


def _begun(asks: Mask) -> NDArray[np.int64]:
    """The first of successive ticks at which it asks."""
    return np.flatnonzero(asks & ~np.append(False, asks[:-1])[: len(asks)])


def _decisions(
    visits: Sequence[Visit],
    begun: Sequence[Sequence[NDArray[np.int64]]],
    returned: Sequence[int],
    period_s: float,
    ahead_s: float,
) -> Decisions:
    """Fold ticks of decisions, by visit and world; `returned` holds a drive's number for each way back."""
    sums = {field.name: np.zeros(1 + visits[-1].drive) for field in fields(Decisions)}
    ahead = round(ahead_s / period_s)
    for visit, worlds in zip(visits, begun, strict=True):
        sums["minutes"][visit.drive] += len(worlds) * visit.stayed * period_s / 60
        for tick in np.concatenate(worlds):
            gain_db = visit.gain_db[tick : tick + ahead]
            known_db = gain_db[np.isfinite(gain_db)]
            sums["count"][visit.drive] += 1
            sums["gains"][visit.drive] += len(known_db) > 0
            sums["gain_db"][visit.drive] += known_db.mean() if len(known_db) else 0.0
    np.add.at(sums["returns"], np.array(returned, np.int64), 1)
    return Decisions(**sums)


def _turned(visit: Visit, tick: int, ahead: int) -> Visit:
    """The other cell's view from a tick on, as long as it is measured."""
    own_dbm = visit.other_dbm[tick : tick + ahead]
    own_dbm = own_dbm[: np.append(np.isnan(own_dbm), True).argmax()]
    other_dbm = visit.own_dbm[tick : tick + len(own_dbm)]
    return replace(visit, own_dbm=own_dbm, other_dbm=other_dbm, stayed=len(own_dbm), handed_over=False)
