"""How well CPU time of training is predicted on models left out: `python -m benchmarks.predictor`.

Perceptrons, convolutions, recurrent layers and attention of many sizes take a few steps of Adam each on one
thread. Work is counted on tensors without memory, times are the shortest of some turns. Each model's time, at
all its batch sizes, is then predicted from the others' (folds), and every family's from the other families'.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from defiance.meter import Work, work_of
from defiance.predictor import calibrate, held_out_errors

TURNS, TURN_S = 5, 0.03


class Recurrent(nn.Module):
    """An LSTM's last output."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.memory = nn.LSTM(inputs, hidden, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, time, inputs] -> [batch, hidden]`."""
        return self.memory(x)[0][:, -1]


class Attention(nn.Module):
    """One block of a transformer, written out as its training computes it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.mixing = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.forwards = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, time, width]` to the same."""
        y = x + self.mixing(x, x, x, need_weights=False)[0]
        return y + self.forwards(self.norm(y))


class Case(NamedTuple):
    """A model and its batch."""

    family: str
    name: str
    model: nn.Module
    inputs: Tensor


def cases() -> Iterator[Case]:
    """Models of four families, mixed so that neighbours differ."""
    for batch in (16, 64, 256):
        for width, depth in ((16, 2), (64, 3), (128, 2), (256, 2), (256, 4), (512, 2)):
            layers = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())]
            yield Case("mlp", f"{depth} x {width}", nn.Sequential(*layers), torch.randn(batch, width))
        for channels, size in ((8, 16), (16, 16), (16, 32)):
            net = nn.Sequential(
                nn.Conv2d(2, channels, 3),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3),
                nn.Flatten(),
                nn.LazyLinear(10),
            )
            inputs = torch.randn(batch // 4, 2, size, size)
            net(inputs)
            yield Case("cnn", f"{channels} channels, {size} px", net, inputs)
        for hidden, steps in ((16, 10), (32, 20), (64, 10)):
            yield Case(
                "lstm", f"{hidden}, {steps} steps", Recurrent(16, hidden), torch.randn(batch, steps, 16)
            )
        for width, steps in ((32, 16), (64, 16), (64, 32)):
            yield Case(
                "attention",
                f"{width}, {steps} tokens",
                Attention(width, 4),
                torch.randn(batch // 4, steps, width),
            )


def loss(output: Tensor) -> Tensor:
    """Against zeros."""
    return mse_loss(output, torch.zeros_like(output))


def step_s(case: Case) -> float:
    """CPU seconds of a training step: the shortest mean of some turns."""
    optimiser = torch.optim.Adam(case.model.parameters(), foreach=True)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss(case.model(case.inputs)).backward()
        optimiser.step()

    return shortest_s(step)


def shortest_s(step: Callable[[], None]) -> float:
    """The shortest mean CPU time of a call over some turns."""
    step(), step()
    found = []
    for _ in range(TURNS):
        calls, began_s = 0, time.process_time()
        while time.process_time() - began_s < TURN_S:
            step()
            calls += 1
        found.append((time.process_time() - began_s) / calls)
    return min(found)


def main() -> None:
    """Measures, fits, prints."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    every = list(cases())
    works: list[Work] = [work_of(case.model, case.inputs, loss) for case in every]
    times = [step_s(case) for case in every]
    errors = held_out_errors(works, times)
    print(f"{len(every)} models left out in 5 folds: median error {100 * statistics.median(errors):.0f} %")
    for family in ("mlp", "cnn", "lstm", "attention"):
        inside = [number for number, case in enumerate(every) if case.family == family]
        others = [number for number in range(len(every)) if number not in inside]
        model = calibrate([works[n] for n in others], [times[n] for n in others])
        alone = [abs(model.step_s(works[n]) - times[n]) / times[n] for n in inside]
        print(
            f"  {family:10} median error {100 * statistics.median(errors[n] for n in inside):.0f} %,"
            f" with no model of the family seen {100 * statistics.median(alone):.0f} %"
        )
    found = calibrate(works, times)
    print(
        f"this machine: {1e-9 / max(found.per_product_operation_s, 1e-15):.0f} Gop/s in products,"
        f" {1e9 * found.per_other_operation_s:.2f} ns per other operation,"
        f" {1e-9 / max(found.per_byte_s, 1e-15):.0f} GB/s, {1e6 * found.per_call_s:.1f} us per call,"
        f" {1e6 * found.per_step_s:.0f} us per step"
    )


if __name__ == "__main__":
    main()
