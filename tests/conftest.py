"""Settings of the whole test suite: the same examples on every run, and no time limit on a shared machine.

The study `worth` at toy size, which several modules test; see `worth_toy`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:  # most tests need no study
    from defiance.studies.worth.settings import Config

settings.register_profile("defiance", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("defiance")


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two made-up cities."""
    from worth_toy import toy_cities

    return toy_cities(tmp_path_factory.mktemp("cities"))


@pytest.fixture(scope="module")
def config(city: Path) -> Config:
    """Everything once, and each as short as its range allows."""
    from worth_toy import toy

    return toy(city)
