"""What a failure was: in which state of the handover it happened, and what the network should have done.

A fold over what the network did, decision by decision; nothing in a step depends on it. Two classifications:

    TR 36.839 clause 5.2.1.2      state 1: before the event's entering condition
                                  state 2: after it, before the handover command has arrived
                                  state 3: after the command, before the handover is complete
    TS 38.300 clause 15.5.2.2.2   too late: a user without a recent handover re-establishes in another cell
                                  too early: shortly after, or in, a handover; re-establishes in its source
                                  wrong cell: likewise, but re-establishes in a third cell

Shapes: W worlds, U users.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from defiance.network.settings import RadioConfig
from defiance.network.state import NONE, REESTABLISHING, State

COUNTS = ("state_1", "state_2", "state_3", "too_late", "too_early", "wrong_cell", "same_cell")


@dataclass(frozen=True)
class Failures:
    """Counts of classified failures, and the failures that wait for their re-establishment, `[W, U]`.

    Attributes:
        state_1, state_2, state_3: failures by state; their sum is all link and handover failures.
        too_late, too_early, wrong_cell: by cause, counted at the re-establishment.
        same_cell: re-established where the user was, or in the target of the failed handover: no class of
            TS 38.300, the coverage failed.
        link_failures, handover_failures: of the state that was folded last.
        source: source of the handover that the failure belongs to, NONE of a user without a recent one.
        left: cell that the user lost, NONE while nothing waits.
    """

    state_1: Tensor
    state_2: Tensor
    state_3: Tensor
    too_late: Tensor
    too_early: Tensor
    wrong_cell: Tensor
    same_cell: Tensor
    link_failures: Tensor
    handover_failures: Tensor
    source: Tensor
    left: Tensor

    def since(self, start: Failures) -> Failures:
        """The same with the counts of an earlier time taken off."""
        return replace(self, **{name: getattr(self, name) - getattr(start, name) for name in COUNTS})


def no_failures(worlds: int, users: int) -> Failures:
    """Before the first decision."""
    nothing = torch.zeros(worlds, users, dtype=torch.int32)
    none = torch.full_like(nothing, NONE)
    values = {f.name: none if f.name in ("source", "left") else nothing for f in fields(Failures)}
    return Failures(**values)


def fold_failures(
    failures: Failures,
    state: State,
    config: RadioConfig,
    *,
    triggered: Tensor,
    refused: Tensor,
    target: Tensor,
) -> Failures:
    """Folds the steps since the last decision in; a user fails, and is re-established, at most once in them.

    A failure is shortly after a handover within the time of stay of a ping-pong (TR 36.839: 1 s).

    Args:
        failures: so far.
        state: at the end of these steps.
        config: procedures.
        triggered: whether the entering condition held, or a handover was wanted, at the last decision,
            `[W, U]`.
        refused: whether a command came while T310 ran, `[W, U]`.
        target: cell that the last handover command named, `[W, U]`.
    """
    link_failed = (state.link_failures > failures.link_failures) | refused
    executing_failed = (state.handover_failures > failures.handover_failures) & ~refused
    if not bool((link_failed | executing_failed | (failures.left != NONE)).any()):
        return failures

    since_steps = max(1, config.steps(config.reestablishment_s)) - state.timer_steps
    recent = (state.previous != NONE) & (state.stay_steps - since_steps <= config.steps(config.ping_pong_s))
    left = torch.where(link_failed, state.serving, torch.where(executing_failed, target, failures.left))
    source = torch.where(link_failed, torch.where(recent, state.previous, NONE), failures.source)
    source = torch.where(executing_failed, state.serving, source)

    back = (left != NONE) & (state.status != REESTABLISHING)
    too_early = back & (source != NONE) & (state.serving == source)
    same_cell = back & ~too_early & (state.serving == left)
    too_late = back & ~same_cell & (source == NONE)
    wrong_cell = back & ~too_early & ~same_cell & ~too_late
    state_2 = link_failed & (triggered | refused)
    counted = {
        "state_1": link_failed & ~state_2,
        "state_2": state_2,
        "state_3": executing_failed,
        "too_late": too_late,
        "too_early": too_early,
        "wrong_cell": wrong_cell,
        "same_cell": same_cell,
    }
    return replace(
        failures,
        link_failures=state.link_failures.clone(),
        handover_failures=state.handover_failures.clone(),
        source=torch.where(back, NONE, source),
        left=torch.where(back, NONE, left),
        **{name: getattr(failures, name) + event.int() for name, event in counted.items()},
    )
