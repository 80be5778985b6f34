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

from collections import namedtuple
from dataclasses import dataclass, fields, replace

import torch
from numba import njit
from torch import Tensor

from defiance.network.scheduling import LOOP
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

    def clone(self) -> Failures:
        """A copy that shares no memory."""
        return Failures(**{f.name: getattr(self, f.name).clone() for f in fields(self)})

    def since(self, start: Failures) -> Failures:
        """The same with the counts of an earlier time taken off."""
        return replace(self, **{name: getattr(self, name) - getattr(start, name) for name in COUNTS})


_Arrays = namedtuple("_Arrays", [f.name for f in fields(Failures)])  # type: ignore[misc]


class FailureFold:
    """Folds the periods of a run, one after the other, into its failures, which it changes in place.

    A failure is shortly after a handover within the time of stay of a ping-pong (TR 36.839: 1 s).

    Attributes:
        failures: so far.
    """

    def __init__(self, worlds: int, users: int, config: RadioConfig) -> None:
        """Nothing has failed yet."""
        none = {name: NONE for name in ("source", "left")}
        values = {
            f.name: torch.full((worlds, users), none.get(f.name, 0), dtype=torch.int32)
            for f in fields(Failures)
        }
        self.failures = Failures(**values)
        self._arrays = _Arrays(*(value.numpy() for value in values.values()))
        self._steps = max(1, config.steps(config.reestablishment_s)), config.steps(config.ping_pong_s)

    def add(self, state: State, *, triggered: Tensor, refused: Tensor, target: Tensor) -> None:
        """The steps since the last decision; a user fails, and is re-established, at most once in them.

        Args:
            state: at the end of these steps.
            triggered: whether the entering condition held, or a handover was wanted, at the last decision,
                `[W, U]`.
            refused: whether a command came while T310 ran, `[W, U]`.
            target: cell that the last handover command named, `[W, U]`.
        """
        _fold_loop(
            self._arrays,
            state.link_failures.numpy(),
            state.handover_failures.numpy(),
            state.serving.numpy(),
            state.previous.numpy(),
            state.status.numpy(),
            state.stay_steps.numpy(),
            state.timer_steps.numpy(),
            triggered.numpy(),
            refused.numpy(),
            target.numpy(),
            *self._steps,
        )


@njit(**LOOP)
def _fold_loop(  # type: ignore[no-untyped-def]
    after, link_failures, handover_failures, serving, previous, status, stay_steps, timer_steps,
    triggered, refused, target, reestablishment_steps, recent_steps,
):  # fmt: skip
    """`FailureFold.add`; all `[W, U]`."""
    worlds, users = serving.shape
    for w in range(worlds):
        for u in range(users):
            link_failed = link_failures[w, u] > after.link_failures[w, u] or refused[w, u]
            executing_failed = handover_failures[w, u] > after.handover_failures[w, u] and not refused[w, u]
            after.link_failures[w, u] = link_failures[w, u]
            after.handover_failures[w, u] = handover_failures[w, u]
            if link_failed:
                since_steps = reestablishment_steps - timer_steps[w, u]
                recent = previous[w, u] != NONE and stay_steps[w, u] - since_steps <= recent_steps
                after.source[w, u] = previous[w, u] if recent else NONE
                after.left[w, u] = serving[w, u]
                if triggered[w, u] or refused[w, u]:
                    after.state_2[w, u] += 1
                else:
                    after.state_1[w, u] += 1
            if executing_failed:
                after.source[w, u] = serving[w, u]
                if not link_failed:
                    after.left[w, u] = target[w, u]
                after.state_3[w, u] += 1
            left, source = after.left[w, u], after.source[w, u]
            if left != NONE and status[w, u] != REESTABLISHING:
                if source != NONE and serving[w, u] == source:
                    after.too_early[w, u] += 1
                elif serving[w, u] == left:
                    after.same_cell[w, u] += 1
                elif source == NONE:
                    after.too_late[w, u] += 1
                else:
                    after.wrong_cell[w, u] += 1
                after.source[w, u] = NONE
                after.left[w, u] = NONE
