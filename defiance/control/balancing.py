"""Mobility load balancing: cell individual offsets that follow the load stations tell each other over Xn.

    load of both cells, every second ──▶ offset of the pair, one step at a time ──▶ Ocn in event A3

TR 37.817 clause 5.2 (load balancing), TS 38.423 clause 8.4.11 (load over Xn), TS 38.331 clause 5.5.4.4 (Ocn).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from defiance.control.handover import A3, EventMemory, event_step, strongest
from defiance.network.measurements import Observation


@dataclass(frozen=True)
class BalancingMemory:
    """Memory of the A3 rule; Ocn that cell i's users add to cell j, `[W, C, C]`; decisions so far."""

    event: EventMemory
    offset_db: Tensor
    decisions: int

    @property
    def entered(self) -> Tensor:
        """Whether A3 holds for any cell, `[W, U]`."""
        return self.event.entered


@dataclass(frozen=True)
class BalancedA3:
    """A3 whose boundary between two cells moves towards the more loaded one.

    Attributes:
        rule: A3.
        difference: of the two cells' loads at which the offset grows by a step; below it, it shrinks by one.
        step_db: TS 38.331's Q-OffsetRange has steps of 1 dB up to 6 dB.
        most_db: largest offset.
        every: decisions between two changes; the load over Xn is renewed every `RadioConfig.xn_report_s`.
    """

    rule: A3
    difference: float = 0.1
    step_db: float = 1.0
    most_db: float = 6.0
    every: int = 10

    @property
    def placement(self) -> Literal["device", "station"]:
        """Where the rule runs; the offsets are the stations'."""
        return self.rule.placement

    @property
    def period_steps(self) -> int:
        """Steps between two decisions."""
        return self.rule.period_steps

    def initial(self, worlds: int, users: int, cells: int) -> BalancingMemory:
        """No offsets."""
        return BalancingMemory(self.rule.initial(worlds, users, cells), torch.zeros(worlds, cells, cells), 0)

    def decide(self, memory: BalancingMemory, observation: Observation) -> tuple[BalancingMemory, Tensor]:
        """The strongest, offsets added, of the neighbours that have fulfilled A3 for the time to trigger."""
        assert observation.load is not None
        offset_db = memory.offset_db
        if memory.decisions % self.every == self.every - 1:
            offset_db = balanced_offsets(offset_db, observation.load, self)
        serving = observation.serving.long()[..., None].expand(*observation.rsrp_dbm.shape)
        individual_db = offset_db.gather(1, serving)
        event, due = event_step(memory.event, observation, self.rule, individual_db)
        wanted = strongest(event.filtered_dbm + individual_db, due)
        return BalancingMemory(event, offset_db, memory.decisions + 1), wanted


def balanced_offsets(offset_db: Tensor, load: Tensor, rule: BalancedA3) -> Tensor:
    """Next offsets; those of i towards j and of j towards i stay opposite, so no ping-pong region opens.

    Args:
        offset_db: Ocn that users of cell i add to cell j, `[W, C, C]`.
        load: of every cell, `[W, C]`.
        rule: difference, step and bound.
    """
    excess = load[:, :, None] - load[:, None, :]
    shrinks = -offset_db.sign() * offset_db.abs().clamp(max=rule.step_db)
    change = torch.where(excess.abs() > rule.difference, excess.sign() * rule.step_db, shrinks)
    return (offset_db + change).clamp(-rule.most_db, rule.most_db)
