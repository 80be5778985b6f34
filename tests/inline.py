"""Studies' jobs done in this process, one after the other: no worker has to be started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from defiance.parts import Parts
from defiance.studies import Workers
from defiance.studies.pool import Submit


@contextmanager
def here(wanted: Workers, parts: Parts) -> Iterator[Submit]:
    """Jobs done in this process, one after the other."""

    def submit(function: Callable[..., dict[str, Any]], *arguments: Any) -> Future[dict[str, Any]]:
        done: Future[dict[str, Any]] = Future()
        done.set_result(function(*arguments))
        return done

    yield submit
