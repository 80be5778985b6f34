"""Settings of the whole test suite: the same examples on every run, and no time limit on a shared machine.

The study `worth` at toy size, which several modules test; see `worth_toy`.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


@pytest.fixture(scope="module")
def sionna_rt() -> Any:
    """Sionna RT, or a skip that says why not."""
    from defiance.errors import DefianceError
    from defiance.scene import trace as tracing

    if "DRJIT_LIBLLVM_PATH" not in os.environ and tracing.find_llvm() is None:
        pytest.skip("no LLVM of version 16 or newer on this machine")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of third parties, while they are imported
        try:
            return tracing.sionna_rt()
        except DefianceError as error:
            pytest.skip(str(error))
