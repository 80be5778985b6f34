"""Conditional handover (TS 38.300 clause 9.2.3.4): prepared while the link is good, executed by the device.

    RSRP ──▶ A3 with a low offset, prepares ──▶ report, Xn, configuration ──▶ held by the device
         └─▶ A3 with the execution's offset ──▶ of the held cells the strongest: go, without a command

The execution can't miss its command, but more cells are prepared than used: each costs a report, a message
over Xn and a configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from defiance.control.handover import A3, EventMemory, event_step, strongest
from defiance.network.measurements import Observation


@dataclass(frozen=True)
class ConditionalMemory:
    """Memory of the events that prepare and that execute."""

    preparing: EventMemory
    executing: EventMemory

    @property
    def entered(self) -> Tensor:
        """Whether the execution's condition holds for any cell, `[W, U]`."""
        return self.executing.entered


@dataclass(frozen=True)
class ConditionalA3:
    """Conditional handover with the execution condition condEventA3 (TS 38.331 clauses 5.3.5.13, 5.5.4.4).

    A cell stays prepared until the device leaves its serving cell, as after a handover (clause 5.3.5.3).

    Attributes:
        execution: event that the device watches; its filter and periods serve both events.
        preparation_offset_db: A3 offset at which a cell is prepared; below the execution's, or nothing is
            prepared ahead. A number or `[W]`.
        candidates: how many cells may be prepared at a time (`maxNrofCondCells`: 8).
    """

    execution: A3
    preparation_offset_db: Tensor | float
    candidates: int = 8
    placement: Literal["device", "station"] = "device"

    @property
    def period_steps(self) -> int:
        """Steps between two decisions."""
        return self.execution.period_steps

    def initial(self, worlds: int, users: int, cells: int) -> ConditionalMemory:
        """Nothing measured yet."""
        nothing = self.execution.initial(worlds, users, cells)
        return ConditionalMemory(nothing, nothing)

    def decide(self, memory: ConditionalMemory, observation: Observation) -> tuple[ConditionalMemory, Tensor]:
        """The strongest prepared cell that is due; else the strongest that is to be prepared."""
        assert observation.prepared is not None
        rule = self.execution
        prepares = replace(rule, offset_db=self.preparation_offset_db, time_to_trigger_s=0.0)
        executing, due = event_step(memory.executing, observation, rule)
        preparing, near = event_step(memory.preparing, observation, prepares)
        room = observation.prepared.sum(-1, keepdim=True) < self.candidates
        go = strongest(executing.filtered_dbm, due & observation.prepared)
        prepare = strongest(preparing.filtered_dbm, near & ~observation.prepared & room)
        return ConditionalMemory(preparing, executing), torch.where(go >= 0, go, prepare)
