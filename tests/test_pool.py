"""The pool of workers that studies share."""

import os
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from defiance.errors import DefianceError
from defiance.parts import Parts
from defiance.studies import Silent, pool


def test_a_worker_that_is_killed_is_one_line() -> None:
    with pytest.raises(DefianceError, match="worker process was killed, .* parts are kept; .*workers=1"):
        with pool.workers(1) as submit:
            submit(os._exit, 9).result()


def test_results_that_are_there_are_kept_before_a_run_fails(tmp_path: Path) -> None:
    def submit(function: Any, *arguments: Any) -> Future[Any]:
        found: Future[Any] = Future()
        if arguments[1] == "bad":
            found.set_exception(BrokenProcessPool())
        else:
            found.set_result({"outage_share": 0.1})
        return found

    kept = Parts.open(tmp_path, "toy")
    jobs = [(f"a3/{i}", print, ("bad" if i in (0, 2, 4) else "good",)) for i in range(6)]
    with pytest.raises(BrokenProcessPool):
        pool.do("tuning", jobs, None, kept, Silent(), submit)
    assert [i for i in range(6) if kept.get(f"a3/{i}")] == [1, 3, 5]
