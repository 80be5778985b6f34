"""Independent jobs in single-threaded processes; each result is kept as soon as it is there."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import torch

from defiance.errors import DefianceError
from defiance.parts import Parts
from defiance.studies import Progress

Job = tuple[str, Callable[..., dict[str, Any]], tuple[Any, ...]]
"""A part's key, the function that makes it, and its arguments after the configuration.

A part `train/KEY` is finished only if the tensors of KEY are there, too.
"""

Submit = Callable[..., Future[dict[str, Any]]]


@contextmanager
def workers(count: int) -> Iterator[Submit]:
    """A pool of single-threaded processes; jobs are independent, so cores are best used by one job each.

    Args:
        count: of processes; 0: one per core.

    Raises:
        DefianceError: one of them was killed from outside.
    """
    pool = ProcessPoolExecutor(
        count or os.cpu_count() or 1, mp_context=get_context("spawn"), initializer=_start
    )
    try:
        yield pool.submit
    except BaseException as error:
        for process in list(pool._processes.values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise DefianceError(
                "a worker process was killed, probably for memory; finished parts are kept; run the same "
                "command again, or with --set workers=1"
            ) from error
        raise
    pool.shutdown()


def do(
    description: str, jobs: Sequence[Job], config: Any, parts: Parts, progress: Progress, submit: Submit
) -> None:
    """Does the jobs that are not finished yet, and keeps each result as soon as it is there."""
    with progress.task(description, total=len(jobs)) as task:
        waiting: dict[Future[dict[str, Any]], str] = {}
        for key, function, arguments in jobs:
            if not finished(parts, key):
                waiting[submit(function, config, *arguments)] = key
            else:
                task.advance()
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda future: future.exception() is not None):  # keep, then fail
                parts.put(waiting.pop(future), future.result())
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
