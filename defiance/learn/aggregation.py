"""From nodes' updates to the server's next model: which of them count, their average, the server's step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.learn.training import Parameters

HUGE = 10.0
"""An update so many times longer than the median of those accepted is refused."""

REMEMBERED = 100
"""Lengths of accepted updates that tell what length is usual."""


def check_update(node: str, update: Parameters, model: Parameters, version: int, versions: range) -> None:
    """Refuse what no honest node sends: to be called wherever weights come from another process.

    Args:
        node: its name.
        update: what it sent.
        model: whose names, shapes and types are expected.
        version: of the model that the node says it started from.
        versions: that are still taken.

    Raises:
        DefianceError: parameters are missing or unknown, have another shape or type, or hold NaN or infinite
            numbers; the version isn't one that is taken. The message begins with the node's name.
    """
    if version not in versions:
        wanted = f"{versions.start} to {versions.stop - 1}" if len(versions) else "none"
        raise DefianceError(f"{node}: its update starts from model version {version}; taken are {wanted}")
    if wrong := sorted(update.keys() ^ model.keys()):
        raise DefianceError(f"{node}: its update lacks, or has of its own, {', '.join(wrong)}")
    for name, expected in model.items():
        found = update[name]
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise DefianceError(
                f"{node}: {name} is {found.dtype} {tuple(found.shape)};"
                f" expected {expected.dtype} {tuple(expected.shape)}"
            )
        if not bool(found.isfinite().all()):
            raise DefianceError(f"{node}: {name} holds NaN or infinite numbers")


def refusals(names: Sequence[str], norm: Tensor, usual: Tensor) -> list[str | None]:
    """Why each update is refused, if it is: not finite, or far longer than usual.

    Args:
        names: of the n nodes.
        norm: Euclidean length of each update, `[n]`.
        usual: lengths of updates that were accepted before, `[m]`.
    """
    finite = norm.isfinite()
    known = torch.cat([usual, norm[finite]])
    limit = HUGE * float(known.median()) if len(known) > 2 else torch.inf
    return [
        f"{name}: NaN or infinite numbers"
        if not ok
        else f"{name}: {length:.3g} long, over {HUGE:g} times the usual {limit / HUGE:.3g}"
        if length > limit
        else None
        for name, ok, length in zip(names, finite.tolist(), norm.tolist(), strict=True)
    ]


class Aggregation(Protocol):
    """Updates `[n, length]` and their shares `[n]`, which sum to 1, to one update `[length]`."""

    @property
    def least(self) -> int:
        """Updates that it needs; with fewer a round leaves the model as it is."""

    def __call__(self, updates: Tensor, share: Tensor) -> Tensor:
        """The one update."""


@dataclass(frozen=True)
class Mean:
    """The mean weighted by samples (FedAvg, McMahan et al. 2017)."""

    least: int = 1

    def __call__(self, updates: Tensor, share: Tensor) -> Tensor:
        """`sum_i p_i u_i`."""
        return share @ updates


@dataclass(frozen=True)
class TrimmedMean:
    """In every coordinate the plain mean of what is left without the extremes (Yin et al. 2018).

    Attributes:
        trimmed: share of the updates left out at each end, below 1/2; rounded down.
    """

    trimmed: float

    def __post_init__(self) -> None:
        if not 0 <= self.trimmed < 0.5:
            raise DefianceError(
                f"TrimmedMean: trimmed {self.trimmed:g} leaves no update; take 0 <= trimmed < 0.5"
            )

    @property
    def least(self) -> int:
        """So many that one is left out at each end."""
        return math.ceil(1 / self.trimmed) if self.trimmed else 1

    def __call__(self, updates: Tensor, share: Tensor) -> Tensor:
        """Sort, cut, average."""
        cut = int(self.trimmed * len(updates))
        return updates.sort(0).values[cut : len(updates) - cut].mean(0)


@dataclass(frozen=True)
class Median:
    """The median of every coordinate (Yin et al. 2018); of an even number the mean of the middle two."""

    least: int = 1

    def __call__(self, updates: Tensor, share: Tensor) -> Tensor:
        """Sort, take the middle."""
        ordered, last = updates.sort(0).values, len(updates) - 1
        return (ordered[last // 2] + ordered[-(-last // 2)]) / 2


@dataclass(frozen=True)
class Krum:
    """The update whose n - f - 2 nearest others are nearest (Blanchard et al. 2017).

    Attributes:
        broken: f, nodes that may send anything; it takes 2 f + 3 updates to outvote them.
    """

    broken: int

    @property
    def least(self) -> int:
        """`2 f + 3`."""
        return 2 * self.broken + 3

    def __call__(self, updates: Tensor, share: Tensor) -> Tensor:
        """Score by distances, take the best."""
        distance = torch.cdist(updates, updates).square().fill_diagonal_(torch.inf)
        near = distance.topk(len(updates) - self.broken - 2, dim=1, largest=False).values
        return updates[near.sum(1).argmin()]


def named(text: str) -> Aggregation:
    """An aggregation from its name on a command line.

        named("krum:2")

    Args:
        text: `mean`, `median`, `trimmed-mean[:SHARE]` (0.2 at each end), `krum[:BROKEN]` (1).

    Raises:
        DefianceError: it is none of these.
    """
    kind, _, given = text.partition(":")
    try:
        match kind:
            case "mean" | "median" if not given:
                return Mean() if kind == "mean" else Median()
            case "trimmed-mean":
                return TrimmedMean(float(given or 0.2))
            case "krum" if int(given or 1) >= 0:
                return Krum(int(given or 1))
    except ValueError:
        pass
    raise DefianceError(
        f"aggregation {text}: take mean, median, trimmed-mean:SHARE such as 0.2, or krum:BROKEN such as 1"
    )


class ServerStep(Protocol):
    """How the server follows the average update."""

    def initial(self, length: int) -> Tensor:
        """The state before the first step."""

    def __call__(self, update: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """An update `[length]` to the step that is taken, and the next state."""


@dataclass(frozen=True)
class Follow:
    """Goes along with it, times a rate."""

    rate: float = 1.0

    def initial(self, length: int) -> Tensor:
        """None."""
        return torch.empty(0)

    def __call__(self, update: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """`eta u`."""
        return self.rate * update, state


@dataclass(frozen=True)
class FedAdam:
    """Adam at the server (Reddi et al. 2021, algorithm 2): `eta m / (sqrt(v) + tau)`.

    `m = b1 m + (1 - b1) u`, `v = b2 v + (1 - b2) u^2`; v begins at tau^2, nothing is corrected for bias.
    """

    rate: float = 0.01
    b1: float = 0.9
    b2: float = 0.99
    tau: float = 1e-3

    def initial(self, length: int) -> Tensor:
        """M and v, `[2, length]`."""
        return torch.stack([torch.zeros(length), torch.full((length,), self.tau**2)])

    def __call__(self, update: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of Adam upwards along the update."""
        m = torch.lerp(update, state[0], self.b1)
        v = torch.lerp(update.square(), state[1], self.b2)
        return self.rate * m / (v.sqrt() + self.tau), torch.stack([m, v])
