"""Beams that are sounded where something has changed, by a rule and by a model.

    rule      all beams now and then; between, every user's serving beam, and all beams where it has faded
    learned   all beams now and then; between, set B, and the likeliest beams of users of whom the model now
              believes something else than when their beam was chosen: the fewer, the surer it is

What is sounded for all comes in every period, what users ask for is counted as it happens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from defiance.control.beams import Book, Learned, Listen, Policy
from defiance.control.sounding import Sounding, reported


@dataclass(frozen=True)
class Watch:
    """Memory of `Watching`.

    Attributes:
        beam: that serves, `[U, 1]`.
        peak_db: the most that it had since it was chosen, `[U, 1]`.
        left: periods until all beams are sounded for everyone.
        faded: share of users whose beam has faded; nan where all beams were sounded.
    """

    beam: Tensor
    peak_db: Tensor
    left: int = 0
    faded: float = math.nan


@dataclass(frozen=True)
class Watching(Policy):
    """Sounds every user's serving beam, and all beams where one has faded, or once in `every` periods.

    A sweep that one user asks for is sounded once, however many ask; who asks and is told at once, without a
    second report: both in the rule's favour.

    Attributes:
        book: the beams.
        sounding: when and how.
        drop_db: below its peak, at which a beam has faded.
        every: periods between sweeps of all beams.
        rows: of beams in a sweep; all without.
    """

    book: Book
    sounding: Sounding
    drop_db: float
    every: int
    rows: int | None = None

    @property
    def common(self) -> float:  # type: ignore[override]
        """All beams, now and then."""
        return len(self.book.sweep(self.rows)) / self.every

    @property
    def dedicated(self) -> float:  # type: ignore[override]
        """The serving beam, else."""
        return 1 - 1 / self.every

    def initial(self, users: int) -> Watch:
        """Begins with all beams."""
        return Watch(torch.zeros(users, 1, dtype=torch.int64), torch.zeros(users, 1))

    def decide(self, memory: Watch, listen: Listen) -> tuple[Watch, Tensor]:
        """The strongest of all where they were sounded, else the one that serves."""
        sweep = self.book.sweep(self.rows).expand(len(memory.beam), -1)
        heard = listen(sweep)
        strongest = sweep.gather(-1, heard.argmax(-1, keepdim=True))
        if memory.left == 0:
            return Watch(strongest, heard.amax(-1, keepdim=True), self.every - 1), strongest
        now_db = listen(memory.beam)
        peak_db = torch.maximum(memory.peak_db, now_db)
        faded = now_db < peak_db - self.drop_db
        beam = torch.where(faded, strongest, memory.beam)
        peak_db = torch.where(faded, heard.amax(-1, keepdim=True), peak_db)
        return Watch(beam, peak_db, memory.left - 1, float(faded.float().mean())), beam

    def asked(self, memory: Watch, users: int) -> float:
        """Serving beams, and a sweep if any of a sector's users asks."""
        anyone = 1 - (1 - memory.faded) ** users
        return (1 - 1 / self.every) * (users + anyone * len(self.book.sweep(self.rows)))


@dataclass(frozen=True)
class Belief:
    """Memory of `Attentive`.

    Attributes:
        reports: of set B, `[U, history, M]`.
        beam: that serves, `[U, 1]`.
        shares: what the model believed of all beams when it was chosen, `[U, beams]`.
        left: periods until all beams are sounded for everyone.
        sounded: beams per user that were sounded for it; nan where all were sounded.
    """

    reports: Tensor
    beam: Tensor
    shares: Tensor
    left: int = 0
    sounded: float = math.nan


@dataclass(frozen=True)
class Attentive(Learned):
    """A model says from set B whose beam to look for again, and among how many.

    A user's beam stays while the shares that the model gives to all beams differ by less than `change` (total
    variation) from those at its choice; else the likeliest beams are sounded, and the serving one.

    Attributes:
        change: of belief, 0 to 1, from which a user's beams are sounded.
        certainty: the likeliest beams that have this share together are sounded, `refined` at most.
        every: periods between sweeps of all beams.
        rows: of beams in a sweep; all without.
    """

    change: float = 0.2
    certainty: float = 0.9
    every: int = 4
    rows: int | None = None

    @property
    def common(self) -> float:  # type: ignore[override]
        """Set B, and all beams now and then."""
        return len(self.measured) + len(self.book.sweep(self.rows)) / self.every

    @property
    def dedicated(self) -> float:  # type: ignore[override]
        """At most."""
        return (self.refined + 1) * (1 - 1 / self.every)

    def initial(self, users: int) -> Belief:  # type: ignore[override]
        """Begins with all beams."""
        return Belief(
            super().initial(users),
            torch.zeros(users, 1, dtype=torch.int64),
            torch.zeros(users, self.book.narrow),
        )

    def decide(self, memory: Belief, listen: Listen) -> tuple[Belief, Tensor]:  # type: ignore[override]
        """The strongest of those that were sounded, or the one that serves."""
        users = len(memory.beam)
        reports = self.remembered(memory.reports, reported(listen(self.measured.expand(users, -1))))
        shares = self.believed(reports)
        if memory.left == 0:
            sweep = self.book.sweep(self.rows).expand(users, -1)
            beam = sweep.gather(-1, listen(sweep).argmax(-1, keepdim=True))
            return Belief(reports, beam, shares, self.every - 1), beam
        changed = (shares - memory.shares).abs().sum(-1, keepdim=True) / 2 > self.change
        first = shares.topk(self.refined, -1)
        # a beam is sounded while those before it aren't enough; the serving one comes last, and always
        needed = first.values.cumsum(-1) - first.values < self.certainty
        looked = torch.cat([first.indices, memory.beam], -1)
        needed = torch.cat([needed & (first.indices != memory.beam), torch.ones_like(changed)], -1)
        strongest = listen(looked).masked_fill(~needed, -math.inf).argmax(-1, keepdim=True)
        beam = torch.where(changed, looked.gather(-1, strongest), memory.beam)
        sounded = float((needed & changed).sum(-1).float().mean())
        kept = torch.where(changed, shares, memory.shares)
        return Belief(reports, beam, kept, memory.left - 1, sounded), beam

    def asked(self, memory: Belief, users: int) -> float:
        """Those that were sounded for single users."""
        return (1 - 1 / self.every) * users * memory.sounded
