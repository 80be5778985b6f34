"""Network functions of one base station share a processor: who is served when, who is late, who yields.

    users of every function ──▶ jobs, one a period ──▶ one processor, by deadline or by rank ──▶ late? dropped

A job that can't be finished by its deadline any more is dropped when its turn comes: its user goes on with
what the function's rule would do. Preemption is free. Earliest deadline first and fixed ranks are those of
Liu and Layland, Journal of the ACM 20(1), 1973.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.seeding import Stream

ROUNDING = 1e-9
"""Of a job's time, by which it may be late: sums of floating-point numbers aren't exact."""


@dataclass(frozen=True)
class Task:
    """One function at a base station: every user asks for a result once a period.

    Attributes:
        name: of the function.
        users: that ask, each at a time of its own within the period.
        period_s: between two results for a user.
        deadline_s: after which a result is of no use; at most the period.
        operations: of one result.
    """

    name: str
    users: int
    period_s: float
    deadline_s: float
    operations: float

    def __post_init__(self) -> None:
        if self.users < 0 or not 0 < self.deadline_s <= self.period_s or self.operations < 0:
            raise DefianceError(
                f"task {self.name!r}: {self.users} users, a deadline of {self.deadline_s:g} s in a period of "
                f"{self.period_s:g} s, {self.operations:g} operations; give 0 or more users and operations, "
                "and a deadline above 0 s and within the period"
            )

    def demand(self, operations_per_s: float) -> float:
        """Share of a processor that it takes."""
        return self.users * self.operations / (self.period_s * operations_per_s)


@dataclass(frozen=True)
class Served:
    """What became of the jobs of one task.

    Attributes:
        name: of the task.
        jobs: whose deadline lay within the time looked at.
        missed: of these, dropped.
        latency_s: from the request to the result, of each of the others, float64.
        operations: done in all, also on jobs that others kept from being finished.
    """

    name: str
    jobs: int
    missed: int
    latency_s: Tensor
    operations: float


def share_processor(
    tasks: Sequence[Task],
    operations_per_s: float,
    duration_s: float,
    stream: Stream,
    order: Literal["deadline", "rank"],
) -> tuple[Served, ...]:
    """Serves the jobs of all tasks on one processor.

    Args:
        tasks: the functions; where ranks decide, the first goes before all others, the last yields to all.
        operations_per_s: of the processor.
        duration_s: looked at.
        stream: when within its period each user asks.
        order: who goes first: the job with the earliest deadline, or the task of the highest rank.

    Raises:
        DefianceError: the processor does nothing, or no time is looked at.

    Example::

        handover = Task("handover", users=150, period_s=0.12, deadline_s=0.12, operations=2.8e5)
        feedback = Task("csi", users=150, period_s=0.02, deadline_s=5e-3, operations=1.4e6)
        soc = STATION_SOC.operations_per_second
        share_processor([handover, feedback], soc, 1.0, stream(1, "processor"), "rank")
    """
    if not (operations_per_s > 0 and duration_s > 0):
        raise DefianceError(
            f"a processor of {operations_per_s:g} operations/s for {duration_s:g} s; give more than 0 of both"
        )
    ask = stream.numpy()
    jobs: list[tuple[float, float, int]] = []  # released, due, task
    for rank, task in enumerate(tasks):
        for phase in ask.random(task.users) * task.period_s:
            released = np.arange(phase, duration_s - task.deadline_s, task.period_s)
            jobs += [(at, at + task.deadline_s, rank) for at in released.tolist()]
    jobs.sort()
    left_s = [tasks[rank].operations / operations_per_s for _, _, rank in jobs]
    missed, busy_s = [0] * len(tasks), [0.0] * len(tasks)
    latency_s: list[list[float]] = [[] for _ in tasks]
    waiting: list[tuple[float, int]] = []  # what decides, job
    now_s = 0.0
    for coming, until_s in enumerate([released for released, _, _ in jobs] + [math.inf]):
        while waiting and now_s < until_s:
            job = waiting[0][1]
            released_s, due_s, rank = jobs[job]
            if left_s[job] > (due_s - now_s) + ROUNDING * left_s[job]:
                missed[rank] += 1
                heapq.heappop(waiting)
                continue
            run_s = min(left_s[job], until_s - now_s)
            now_s, busy_s[rank] = now_s + run_s, busy_s[rank] + run_s
            if run_s == left_s[job]:
                latency_s[rank].append(now_s - released_s)
                heapq.heappop(waiting)
            left_s[job] -= run_s
        if coming < len(jobs):
            now_s = max(now_s, until_s)
            _, due_s, rank = jobs[coming]
            heapq.heappush(waiting, (due_s if order == "deadline" else rank, coming))
    return tuple(
        Served(
            task.name,
            missed[rank] + len(latency_s[rank]),
            missed[rank],
            torch.tensor(latency_s[rank], dtype=torch.float64),
            busy_s[rank] * operations_per_s,
        )
        for rank, task in enumerate(tasks)
    )
