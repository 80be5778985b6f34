"""How long training will take on a machine, before it is trained there: CPU seconds from counted work.

A step's time is a sum: so many seconds per operation of matrix products, per other operation, per byte moved,
per call, and once. The five are fitted to measured steps of some models on the machine, none below zero, to
the least relative error; `python -m benchmarks.predictor` does it and tests it on models left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from defiance.errors import DefianceError
from defiance.meter import Work


@dataclass(frozen=True)
class CpuModel:
    """Seconds of one core per unit of work; `per_step_s` is what a step takes beside its work."""

    per_product_operation_s: float
    per_other_operation_s: float
    per_byte_s: float
    per_call_s: float
    per_step_s: float

    def step_s(self, work: Work) -> float:
        """CPU seconds that a step of this work should take."""
        return float(_features([work])[0] @ np.array(astuple(self)))


def calibrate(works: Sequence[Work], measured_s: Sequence[float]) -> CpuModel:
    """Fit to measured steps: minimise `sum ((predicted - t)/t)^2` over weights >= 0.

    Raises:
        DefianceError: there are fewer steps than weights, or one took no time.
    """
    if len(works) < len(fields(CpuModel)) or len(works) != len(measured_s) or min(measured_s) <= 0:
        raise DefianceError(f"calibrate: {len(works)} steps and {len(measured_s)} times above 0; give more")
    relative = _features(works) / np.asarray(measured_s)[:, None]
    scale = relative.max(0).clip(min=np.finfo(float).tiny)
    weights = nnls(relative / scale, np.ones(len(works)))[0] / scale
    return CpuModel(*map(float, weights))


def held_out_errors(works: Sequence[Work], measured_s: Sequence[float], folds: int = 5) -> list[float]:
    """Relative error of every step's time, predicted from the steps of the other folds."""
    errors = []
    for index, (work, took_s) in enumerate(zip(works, measured_s, strict=True)):
        others = [other for other in range(len(works)) if other % folds != index % folds]
        model = calibrate([works[other] for other in others], [measured_s[other] for other in others])
        errors.append(abs(model.step_s(work) - took_s) / took_s)
    return errors


def _features(works: Sequence[Work]) -> NDArray[np.float64]:
    return np.array(
        [[work.operations.matmul, work.operations.other, work.bytes, work.calls, 1] for work in works], float
    )
