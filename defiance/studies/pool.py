"""Independent jobs in single-threaded processes, here or on a cluster; each result is kept at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from queue import SimpleQueue
from typing import Any

import torch

from defiance.errors import DefianceError
from defiance.parts import Parts
from defiance.studies import Progress, Workers
from defiance.studies.cluster import TRIES, WorkerLost, cluster

Job = tuple[str, Callable[..., dict[str, Any]], tuple[Any, ...]]
"""A part's key, the function that makes it, and its arguments after the configuration.

A part `train/KEY` or `record/KEY` is finished only if the tensors of KEY are there, too.
"""

KEEPING = ("train/", "record/")

Submit = Callable[..., Future[dict[str, Any]]]


@contextmanager
def workers(wanted: Workers, parts: Parts) -> Iterator[Submit]:
    """Processes of one thread each; jobs are independent, so cores are best used by one job each.

    A job whose process is killed is begun again, until it has been `TRIES` times; then its future raises
    `WorkerLost`.

    Args:
        wanted: how many, or on which cluster.
        parts: of the run.

    Raises:
        DefianceError: the cluster isn't there.
    """
    if wanted.ray:
        with cluster(wanted.ray, parts) as submit:
            yield submit
        return
    processes = _Processes(wanted.count or os.cpu_count() or 1)
    try:
        yield processes.submit
    finally:
        processes.stop()


class _Processes:
    """Processes, each in a pool of its own, so that one that is killed takes no other along.

    A thread hands a process its job, waits, and replaces the process if it is killed.
    """

    def __init__(self, count: int) -> None:
        self.pools = [_pool() for _ in range(count)]
        self.idle: SimpleQueue[int] = SimpleQueue()
        for place in range(count):
            self.idle.put(place)
        # Processes inherit the mask: Ctrl-C reaches the driver alone, which stops them.
        masked = (signal.SIG_BLOCK, {signal.SIGINT})
        self.threads = ThreadPoolExecutor(count, initializer=signal.pthread_sigmask, initargs=masked)
        self.stopped = False
        self.lock = threading.Lock()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self.threads.submit(self._do, function, *arguments)

    def _do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        place = self.idle.get()
        try:
            for _ in range(TRIES):
                try:
                    with self.lock:  # a process is begun here, and none after `stop`
                        if self.stopped:
                            break
                        begun = self.pools[place].submit(function, *arguments)
                    return begun.result()
                except BrokenProcessPool:
                    self.pools[place] = _pool()
            raise WorkerLost
        finally:
            self.idle.put(place)

    def stop(self) -> None:
        """Ends the processes, whatever they are doing."""
        with self.lock:
            self.stopped = True
            for pool in self.pools:
                for process in list((pool._processes or {}).values()):
                    process.terminate()
                pool.shutdown(wait=False, cancel_futures=True)
        self.threads.shutdown(cancel_futures=True)


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_start)


def do(
    description: str, jobs: Sequence[Job], config: Any, parts: Parts, progress: Progress, submit: Submit
) -> None:
    """Does the jobs that are not finished yet, and keeps each result as soon as it is there.

    Raises:
        DefianceError: the process of a job was killed `TRIES` times.
    """
    with progress.task(description, total=len(jobs)) as task:
        waiting: dict[Future[dict[str, Any]], str] = {}
        for key, function, arguments in jobs:
            if finished(parts, key):
                task.advance()
            else:
                waiting[submit(function, config, *arguments)] = key
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda future: future.exception() is not None):  # keep, then fail
                key = waiting.pop(future)
                try:
                    parts.put(key, future.result())
                except WorkerLost:
                    raise DefianceError(
                        f"part {key}: its process was killed {TRIES} times, probably for memory; finished "
                        "parts are kept; run the same command again where more is free, or with --workers 1"
                    ) from None
                task.advance()


def part(parts: Parts, key: str) -> dict[str, Any]:
    """A part that is known to be finished."""
    found = parts.get(key)
    assert found is not None, key
    return found


def finished(parts: Parts, key: str) -> bool:
    """Whether a part is there, and the tensors too where it keeps some."""
    if parts.get(key) is None:
        return False
    return not key.startswith(KEEPING) or parts.get_tensors(key.partition("/")[2]) is not None


def _start() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()


def _die_with(parent: int) -> None:
    """Ends this process once its parent is gone (kill -9): nobody is left to take its results."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
