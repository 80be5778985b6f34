"""Independent jobs in single-threaded processes, here or on a cluster; each result is kept at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import torch

from defiance.errors import DefianceError
from defiance.parts import Parts
from defiance.studies import Progress, Workers
from defiance.studies.cluster import cluster

Job = tuple[str, Callable[..., dict[str, Any]], tuple[Any, ...]]
"""A part's key, the function that makes it, and its arguments after the configuration.

A part `train/KEY` is finished only if the tensors of KEY are there, too.
"""

Submit = Callable[..., Future[dict[str, Any]]]

TRIES = 3
"""How often a job is begun whose worker process is killed."""


@contextmanager
def workers(wanted: Workers, parts: Parts) -> Iterator[Submit]:
    """Processes of one thread each; jobs are independent, so cores are best used by one job each.

    Args:
        wanted: how many, or on which cluster.
        parts: of the run.

    Raises:
        DefianceError: processes were killed from outside again and again, or the cluster isn't there.
    """
    if wanted.ray:
        with cluster(wanted.ray, parts) as submit:
            yield submit
        return
    pools = _Pools(wanted.count or os.cpu_count() or 1)
    try:
        yield pools.submit
    except BaseException as error:
        pools.stop()
        if isinstance(error, BrokenProcessPool):
            raise DefianceError(
                f"worker processes were killed {TRIES} times, probably for memory; finished parts are "
                "kept; run the same command again, or with --workers 1"
            ) from error
        raise
    pools.pool.shutdown()


class _Pools:
    """A pool of processes, and the next one when it is broken: one that is killed takes the others along."""

    def __init__(self, count: int) -> None:
        self.count, self.pool = count, _pool(count)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        try:
            return self.pool.submit(function, *arguments)
        except BrokenProcessPool:
            self.pool = _pool(self.count)
            return self.pool.submit(function, *arguments)

    def stop(self) -> None:
        for process in list((self.pool._processes or {}).values()):
            process.terminate()
        self.pool.shutdown(wait=False, cancel_futures=True)


def _pool(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_start)


def do(
    description: str, jobs: Sequence[Job], config: Any, parts: Parts, progress: Progress, submit: Submit
) -> None:
    """Does the jobs that are not finished yet, and keeps each result as soon as it is there.

    A job whose process was killed is begun again, `TRIES` times at most.
    """
    with progress.task(description, total=len(jobs)) as task:
        waiting: dict[Future[dict[str, Any]], Job] = {}
        begun: Counter[str] = Counter()

        def begin(job: Job) -> None:
            key, function, arguments = job
            begun[key] += 1
            waiting[submit(function, config, *arguments)] = job

        for job in jobs:
            if finished(parts, job[0]):
                task.advance()
            else:
                begin(job)
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda future: future.exception() is not None):  # keep, then fail
                job = waiting.pop(future)
                if isinstance(future.exception(), BrokenProcessPool) and begun[job[0]] < TRIES:
                    begin(job)
                    continue
                parts.put(job[0], future.result())
                task.advance()


def part(parts: Parts, key: str) -> dict[str, Any]:
    """A part that is known to be finished."""
    found = parts.get(key)
    assert found is not None, key
    return found


def finished(parts: Parts, key: str) -> bool:
    """Whether a part is there, and the weights too where it is a trained model's."""
    trained = key.removeprefix("train/")
    return parts.get(key) is not None and (trained == key or parts.get_tensors(trained) is not None)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()


def _die_with(parent: int) -> None:
    """Ends this process once its parent is gone (kill -9): nobody is left to take its results."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
