"""One file per question; each answers it with a `Sheet`.

A study is a module with a docstring whose first line is the question, and with the names of `Study`.
"""

import difflib
import importlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from defiance.errors import DefianceError
from defiance.machine import machine as machine

if TYPE_CHECKING:  # the command line lists studies without importing torch
    from defiance.kpm import Sheet
    from defiance.parts import Parts

STUDIES: dict[str, str] = {
    "worth": "defiance.studies.worth",
    "coinference": "defiance.studies.coinference",
    "replay": "defiance.studies.replay",
    "beams": "defiance.studies.beams",
    "quality": "defiance.studies.quality",
    "training": "defiance.studies.training",
    "csi": "defiance.studies.csi",
}
"""Name of each study -> its module."""


class Task(Protocol):
    """Work whose progress is shown."""

    def advance(self, n: float = 1) -> None:
        """Says that `n` more of the task's total are done."""


class Progress(Protocol):
    """Shows how far a run is: `with progress.task("munich, seed 3", total=60) as task: task.advance()`."""

    def task(self, description: str, total: float) -> AbstractContextManager[Task]:
        """A piece of work; one may hold others."""


class Silent:
    """Shows nothing: the `Progress` of tests and of programs."""

    @contextmanager
    def task(self, description: str, total: float) -> Iterator[Task]:
        """A piece of work that nobody watches."""
        yield self

    def advance(self, n: float = 1) -> None:
        """Nothing to show."""


@dataclass(frozen=True)
class Workers:
    """Who computes a study's parts; the results are the same, to the bit.

    Attributes:
        count: processes on this machine; 0: one per core.
        ray: address of a Ray cluster that takes their place (`auto`, `HOST:PORT`); empty: none.
    """

    count: int = 0
    ray: str = ""


ALL_CORES = Workers()


class Study(Protocol):
    """What a study's module holds."""

    Config: type[Any]
    """Frozen dataclass; see `defiance.config`."""
    PRESETS: Mapping[str, Any]
    """Configurations by name: at least `quick` and `full`."""
    SEEDS: Mapping[str, int]
    """How many seeds each preset repeats the study with."""

    def run(
        self,
        config: Any,
        *,
        seeds: tuple[int, ...],
        parts: "Parts",
        progress: Progress,
        workers: Workers = ...,
    ) -> "Sheet":
        """Answers the question.

        Args:
            config: a `Config`.
            seeds: of the repetitions.
            parts: what an interrupted run of the same configuration had finished, and where to keep more.
            progress: is told how far the work is.
            workers: who computes.
        """


def load(name: str) -> Study:
    """The study of that name.

    Raises:
        DefianceError: there is none; the closest name is suggested.
    """
    if name not in STUDIES:
        close = difflib.get_close_matches(name, STUDIES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(STUDIES)}"
        raise DefianceError(f"unknown study {name!r}; {hint}")
    return cast(Study, importlib.import_module(STUDIES[name]))
