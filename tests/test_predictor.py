"""CPU time from counted work: exact on a machine that is such a sum, honest errors on models left out."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from defiance.errors import DefianceError
from defiance.meter import OperationCount, Work, operations_of, work_of
from defiance.predictor import CpuModel, calibrate, held_out_errors

MACHINE = CpuModel(2e-11, 3e-10, 5e-11, 2e-6, 1e-4)


def works(count: int) -> list[Work]:
    draw = np.random.default_rng(1)
    return [
        Work(
            OperationCount(int(10 ** draw.uniform(5, 9)), int(10 ** draw.uniform(4, 8))),
            int(10 ** draw.uniform(5, 9)),
            int(draw.integers(10, 500)),
        )
        for _ in range(count)
    ]


def test_a_machine_that_is_such_a_sum_is_found_again() -> None:
    some = works(40)
    times = [MACHINE.step_s(work) for work in some]
    assert astuple(calibrate(some, times)) == pytest.approx(astuple(MACHINE), rel=1e-6)
    assert max(held_out_errors(some, times)) < 1e-6


def test_errors_are_those_of_models_left_out() -> None:
    """One time is ten times too long: its own fold must not know it."""
    some = works(40)
    times = [MACHINE.step_s(work) for work in some]
    times[7] *= 10
    errors = held_out_errors(some, times)
    assert errors[7] == pytest.approx(0.9, abs=1e-6)
    assert errors[2] == pytest.approx(0.0, abs=1e-6) and errors[12] == pytest.approx(0.0, abs=1e-6)


def test_noise_of_a_fifth_stays_a_fifth() -> None:
    some = works(60)
    noise = np.exp(0.2 * np.random.default_rng(2).standard_normal(60))
    times = [MACHINE.step_s(work) * factor for work, factor in zip(some, noise, strict=True)]
    found = calibrate(some, times)
    assert all(weight >= 0 for weight in astuple(found))
    assert np.median(held_out_errors(some, times)) < 0.25


def test_work_is_operations_bytes_and_calls() -> None:
    def loss(output: Tensor) -> Tensor:
        return mse_loss(output, torch.zeros_like(output))

    b, n, m = 8, 20, 30
    model = nn.Linear(n, m)
    work = work_of(model, torch.empty(b, n), loss)
    assert work.operations == operations_of(model, torch.empty(b, n), loss).training_step
    product = b * n + n * m + b * m  # forwards with the bias, and the weight's gradient
    assert work.bytes > 4 * (2 * product + m + 7 * (n * m + m))
    assert work.bytes < 4 * (2 * product + m + 7 * (n * m + m) + 20 * b * m)
    assert 12 + 5 <= work.calls <= 12 + 12


def test_too_little_to_learn_from_is_refused() -> None:
    with pytest.raises(DefianceError, match="calibrate: 3 steps"):
        calibrate(works(3), [1.0] * 3)
    with pytest.raises(DefianceError, match="above 0"):
        calibrate(works(9), [0.0] * 9)
