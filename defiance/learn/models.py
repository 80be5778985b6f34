"""Federated training of a user's own PyTorch model; what comes out is its sheet of KPMs."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

import defiance
from defiance.errors import DefianceError
from defiance.hardware import STATION_SOC, ComputeProfile
from defiance.kpm import (
    METRICS,
    Curve,
    Row,
    Sheet,
    mean_interval,
    operations_until_converged,
    paired_interval,
)
from defiance.learn.adaptation import Adaptation, Some, fine_tuning
from defiance.learn.environment import Environment, Links
from defiance.learn.federation import Federation, Peers, Server, Task, federate
from defiance.learn.local import Local
from defiance.learn.partition import LocalData
from defiance.learn.training import Parameters
from defiance.machine import energy_counters, machine
from defiance.meter import Meter, OperationCount, Usage, count_operations, joules, operations_of_loss
from defiance.profiles import PROFILES
from defiance.seeding import stream

LEAST_SAMPLES = 10
CHECKED = 64
"""Samples of each node, drawn once, that a round is judged by."""
LATENCY_CALLS = 30

Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs and targets of a batch, `[batch, ...]`, to its mean loss: `torch.nn.functional.mse_loss`, ..."""


@dataclass(frozen=True)
class Fitted:
    """A trained model and what training took.

    Attributes:
        model: a copy of the user's with the weights that did best in the first seed (of peers: their mean).
        sheet: its KPMs.
        scores: minus the loss on samples that training never saw, per seed.
        runs: all that happened, per seed.
    """

    model: nn.Module
    sheet: Sheet
    scores: tuple[float, ...]
    runs: tuple[Federation, ...]

    def gain_over(self, other: Fitted) -> Row:
        """How much better it is than another, paired by seed; an interval about 0 means: not resolved.

        Raises:
            DefianceError: the other has other seeds.
        """
        if self.sheet.seeds != other.sheet.seeds:
            raise DefianceError(
                f"gain_over: seeds {self.sheet.seeds} can't be paired with {other.sheet.seeds}"
            )
        gain = paired_interval(self.scores, other.scores)
        return Row(
            *("model", "difference", "seen", "network", "performance_gain", "-loss"),
            *gain,
            len(self.scores),
            "measured",
        )


def fit(
    model: nn.Module,
    loss: Loss,
    data_per_node: Sequence[tuple[Tensor, Tensor]],
    links: Links | None = None,
    regime: Server | Peers | None = None,
    *,
    local: Local | None = None,
    rounds: int = 20,
    environment: Environment | None = None,
    adaptation: Adaptation | None = None,
    unseen: tuple[Tensor, Tensor] | None = None,
    seeds: Sequence[int] = (1, 2, 3),
    profile: ComputeProfile = STATION_SOC,
) -> Fitted:
    """Train a model on nodes that keep their data, and say what that took.

    Of each node's samples, in their order, the first 70 % train, the next 15 % choose the best round, and the
    last 15 % judge it.

    Args:
        model: takes a batch `[batch, ...]`; is left as it is. Parameters that are frozen by
            `requires_grad_(False)` stay as they are.
        loss: of a batch, its mean.
        data_per_node: a list of inputs and targets, tensors of at least 10 samples each.
        links: what carries weights; none: they arrive at once.
        regime: who exchanges what with whom; none: FedAvg.
        local: what a node does in a round; none: 20 steps of Adam.
        rounds: how many.
        environment: speeds, stragglers, presence; its links are replaced where `links` are given.
        adaptation: which numbers move in fine-tuning; none: all that aren't frozen.
        unseen: inputs and targets of somewhere else, for generalisation.
        seeds: of repetitions; what they draw is batches, stragglers, losses.
        profile: of the nodes' hardware, of `defiance.profiles` or one's own.

    Raises:
        DefianceError: an argument is of another kind; a node has too few samples, or such as hold NaN or
            aren't of the model's type; model and loss can't take them; there are no rounds or no seeds; the
            model normalises batches over time, which nodes can't share (take GroupNorm or LayerNorm), or has
            operations that can't be counted.
    """
    _check_kinds(
        ("model", model, nn.Module, "a module, such as nn.Linear(5, 1)"),
        ("data_per_node", data_per_node, list | tuple, "a list of (inputs, targets), one pair per node"),
        ("links", links, Links | None, "learn.Links(up=..., down=...)"),
        ("regime", regime, Server | Peers | None, "learn.Server() or learn.Peers(...)"),
        ("local", local, Local | None, "learn.Local(steps=...)"),
        ("environment", environment, Environment | None, "learn.Environment(...)"),
        ("rounds", rounds, int, "a whole number"),
        ("seeds", seeds, Sequence, "several, such as (1, 2, 3)"),
        ("profile", profile, ComputeProfile, "one of defiance.profiles, or read_profile(FILE)"),
    )
    if rounds < 1 or not len(seeds):
        raise DefianceError(
            f"fit: {rounds} rounds and {len(seeds)} seeds train nothing; give 1 or more of each"
        )
    shell = copy.deepcopy(model)
    if any(getattr(module, "track_running_stats", False) for module in shell.modules()):
        raise DefianceError("the model keeps running means of batches; take GroupNorm or LayerNorm")
    local, regime = local or Local(steps=20), regime or Server()
    environment = environment or Environment()
    if links is not None:
        environment = replace(environment, links=links)
    base = {name: weight.detach().clone() for name, weight in shell.named_parameters()}
    kinds = {weight.dtype for weight in base.values()}
    trainable = frozenset(name for name, weight in shell.named_parameters() if weight.requires_grad)
    if not trainable:
        raise DefianceError(
            "fit: the model has no parameter to train; requires_grad_(True) on those that move"
        )
    adaptation = adaptation or Some(trainable)
    for whose, columns in [(f"node {node}", columns) for node, columns in enumerate(data_per_node)] + (
        [("unseen", unseen)] if unseen is not None else []
    ):
        _check_data(whose, columns, kinds)
        _check_loss(shell, loss, whose, columns)
    of_batch, nodes = _stacked(shell, loss), len(data_per_node)
    training, checks, tests = (LocalData.of(part) for part in _split(data_per_node))
    everyone, zero_s = torch.arange(nodes), torch.zeros(nodes)
    shown = checks.draw(everyone, stream(0, "checks").uniform(_grid(nodes, CHECKED)), zero_s)
    judged = tests.draw(everyone, stream(0, "tests").uniform(_grid(nodes, 4 * CHECKED)), zero_s)

    def losses(weights: Parameters, batch: tuple[Tensor, ...]) -> Tensor:
        """Of every batch `[n]`, by one model for all or one each, without dropout."""
        shell.eval()
        with torch.no_grad():
            each = {name: w.expand(len(batch[0]), *w.shape[1:]) for name, w in weights.items()}
            found = of_batch(each, batch)
        shell.train()
        return found

    shell.train()
    whole = Task(base, of_batch, training.draw, training.count, lambda weights: losses(weights, shown))
    task = fine_tuning(whole, adaptation, stream(0, "adaptation").generator())
    step = _step_operations(shell, loss, adaptation, task.start, training, local)
    runs, used, scores, elsewhere = [], [], [], []
    measured_j: dict[str, list[float]] = {}
    for seed in seeds:
        meter, counters = Meter("nodes"), energy_counters()
        with meter.running(), torch.random.fork_rng(devices=[]):
            # dropout takes no generator; the state before is put back
            torch.random.set_rng_state(stream(seed, "dropout").generator().get_state())
            run = federate(task, local, regime, rounds, stream(seed, "learning"), environment)
        meter.count(step, local.steps * int(run.jobs.sum()))
        runs.append(run)
        used.append(meter.usage)
        for of, counter in counters.items():
            measured_j.setdefault(of, []).append(counter.joules())
        best = adaptation.whole(base, run.best)
        scores.append(-float(losses(best, judged).mean()))
        if unseen is not None:
            mean = {name: weight.mean(0, keepdim=True) for name, weight in best.items()}
            elsewhere.append(-float(losses(mean, (unseen[0][None], unseen[1][None]))))
    with torch.no_grad():
        chosen = adaptation.whole(base, runs[0].best)
        for name, weight in shell.named_parameters():
            weight.copy_(chosen[name].mean(0))
    shell.eval()
    fold = _Fold(type(regime).__name__.lower(), local.steps * step.total, profile)
    rows = [
        *fold.training(runs, used, scores, elsewhere, measured_j),
        *fold.inference(shell, data_per_node[0][0][:1], base),
        *fold.nodes(runs, nodes),
    ]
    settings = {"local": local, "regime": regime, "rounds": rounds, "adaptation": adaptation}
    sheet = Sheet(
        study="fit",
        version=defiance.__version__,
        config={**_told(settings), "profile": profile.name},
        seeds=tuple(seeds),
        machine=machine(),
        made_by="defiance.learn.fit",
        rows=tuple(rows),
        curves=tuple(fold.curves(runs)),
        verdict=_verdict(runs, scores),
    )
    return Fitted(shell, sheet, tuple(scores), tuple(runs))


def _step_operations(
    shell: nn.Module,
    loss: Loss,
    adaptation: Adaptation,
    moving: Parameters,
    data: LocalData,
    local: Local,
) -> OperationCount:
    """Operations of one optimiser step of one node."""
    on_meta = copy.deepcopy(shell).to("meta")
    of_batch = _stacked(on_meta, loss)
    base = {name: weight.detach() for name, weight in on_meta.named_parameters()}

    def one(weights: Parameters, *batch: Tensor) -> Tensor:
        return of_batch(adaptation.whole(base, weights), batch)

    batch = [column[:1].expand(local.batch, *column.shape[1:])[None] for column in data.columns]
    start = {name: weight[None] for name, weight in moving.items()}
    return operations_of_loss(one, start, batch, local.optimiser).training_step


@dataclass(frozen=True)
class _Fold:
    """Rows from what runs recorded."""

    regime: str
    job_operations: int
    profile: ComputeProfile

    @property
    def provenance(self) -> str:
        """Of the nodes' joules."""
        return "modelled" if self.profile in PROFILES.values() else "user"

    def row(
        self,
        metric: str,
        samples: Sequence[float],
        provenance: str,
        *,
        unit: str = "",
        node: str = "network",
        scenario: str = "seen",
    ) -> Row:
        known = METRICS[metric].unit or unit
        interval = mean_interval(samples)
        return Row(
            *("model", self.regime, scenario, node, metric, known), *interval, len(samples), provenance
        )

    def training(
        self,
        runs: Sequence[Federation],
        used: Sequence[Usage],
        scores: Sequence[float],
        elsewhere: Sequence[float],
        measured_j: Mapping[str, Sequence[float]],
    ) -> list[Row]:
        settled = [
            operations_until_converged(
                [0, *self.spent(run)], run.reached.flatten(1).mean(1).tolist(), "lower"
            )
            for run in runs
        ]
        energy = [joules(usage, self.profile) for usage in used]
        links_j = [float((run.deliveries.tx_energy_j + run.deliveries.rx_energy_j).sum()) for run in runs]
        rows = [
            self.row("training_operations", settled, "counted"),
            self.row(
                "communication_bits", [float(run.deliveries.sent_bits.sum()) for run in runs], "counted"
            ),
            self.row("performance", scores, "measured", unit="-loss"),
            self.row("training_time", [run.rounds[-1].ended_s for run in runs], "modelled"),
            self.row("cpu_time", [usage.cpu_s for usage in used], "measured", node="this machine"),
            self.row("energy", [of.energy_j for of, _ in energy], self.provenance, node="all nodes"),
            self.row("energy", [host.energy_j for _, host in energy], "estimated", node="this machine"),
            self.row("energy", links_j, "modelled", node="links"),
        ]
        rows += [self.row("energy", found, "measured", node=of) for of, found in measured_j.items()]
        if elsewhere:
            rows.append(self.row("generalisation", elsewhere, "measured", unit="-loss", scenario="unseen"))
        return rows

    def spent(self, run: Federation) -> list[int]:
        """Operations of all nodes up to each round's end."""
        jobs = torch.tensor([len(round_.trained) for round_ in run.rounds])
        return [int(done) * self.job_operations for done in jobs.cumsum(0)]

    def inference(self, model: nn.Module, sample: Tensor, start: Parameters) -> list[Row]:
        counted = count_operations(copy.deepcopy(model).to("meta"), sample)
        parameters = float(sum(weight.numel() for weight in start.values()))
        took = []
        with torch.no_grad():
            for _ in range(LATENCY_CALLS):
                began_s = time.perf_counter()
                model(sample)
                took.append(time.perf_counter() - began_s)
        return [
            self.row("inference_operations", [float(counted.total)], "counted", node="each node"),
            self.row("inference_parameters", [parameters], "counted", node="each node"),
            self.row("inference_latency", [sorted(took)[len(took) // 2]], "measured", node="this machine"),
        ]

    def nodes(self, runs: Sequence[Federation], nodes: int) -> list[Row]:
        """Joules and bits of every node."""
        rows = []
        sent = torch.zeros(len(runs), nodes + 1, dtype=torch.int64)
        for number, run in enumerate(runs):
            sent[number].index_add_(0, run.deliveries.source, run.deliveries.sent_bits)
        jobs = torch.stack([run.jobs for run in runs]).double()
        energy_j = jobs * self.job_operations * self.profile.joules_per_operation
        for node in range(nodes):
            name = f"node {node}"
            rows.append(self.row("energy", energy_j[:, node].tolist(), self.provenance, node=name))
            bits = sent[:, node].double().tolist()
            rows.append(self.row("communication_bits", bits, "counted", node=name))
        return rows

    def curves(self, runs: Sequence[Federation]) -> list[Curve]:
        """Validation loss against virtual time, against bits and against joules, of the first seed."""
        run = runs[0]
        loss = tuple(run.reached.flatten(1).mean(1).tolist())
        ended_s = (0.0, *(round_.ended_s for round_ in run.rounds))
        operations = (0, *self.spent(run))
        energy_j = tuple(count * self.profile.joules_per_operation for count in operations)
        return [
            Curve(
                "learning", "model", self.regime, "seen", metric, unit, "validation_loss", "loss",
                tuple(map(float, x)), loss,
            )
            for metric, unit, x in (("training_time", "s", ended_s), ("energy", "J", energy_j))
        ]  # fmt: skip


def _stacked(model: nn.Module, loss: Loss) -> Callable[[Parameters, tuple[Tensor, ...]], Tensor]:
    """Loss of every node, `[n]`, from stacked weights and batches `[n, batch, ...]`."""
    buffers = dict(model.named_buffers())

    def one(weights: Parameters, inputs: Tensor, targets: Tensor) -> Tensor:
        output: Any = functional_call(model, {**weights, **buffers}, (inputs,))
        return loss(_first(output), targets)

    if any(isinstance(module, nn.RNNBase) for module in model.modules()):  # vmap knows none of them

        def apart(weights: Parameters, batch: tuple[Tensor, ...]) -> Tensor:
            each = (
                one({name: weight[node] for name, weight in weights.items()}, *(part[node] for part in batch))
                for node in range(len(batch[0]))
            )
            return torch.stack(list(each))

        return apart
    together = vmap(one, randomness="different")
    return lambda weights, batch: together(weights, *batch)


def _first(output: Any) -> Any:
    """What recurrent layers return first."""
    return output[0] if isinstance(output, tuple) else output


def _check_kinds(*given: tuple[str, Any, Any, str]) -> None:
    """Refuse arguments `(name, value, kind, what to give)` of another kind."""
    for name, value, kind, wanted in given:
        if not isinstance(value, kind):
            is_ = (
                f"the class {value.__name__}"
                if isinstance(value, type)
                else f"of type {type(value).__name__}"
            )
            raise DefianceError(f"fit: {name} is {is_}; give {wanted}")


def _check_loss(model: nn.Module, loss: Loss, whose: str, columns: Sequence[Tensor]) -> None:
    """Refuse what model and loss can't take, or that gives no mean to follow, by two samples."""
    inputs, targets = (column[:2] for column in columns)
    try:
        found: Any = loss(_first(model.eval()(inputs)), targets)
    except Exception as error:  # whatever a model of somebody else's raises
        taken = f"inputs {_shape(inputs)} and targets {_shape(targets)}"
        said = " ".join(str(error).split())[:200]
        raise DefianceError(f"{whose}: model and loss can't take {taken}: {said}") from error
    if not isinstance(found, Tensor) or found.dim():
        what = f"a tensor {_shape(found)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise DefianceError(f"fit: the loss of a batch is {what}; it must be one number, such as its mean")
    if not found.requires_grad:
        raise DefianceError("fit: the loss doesn't depend on the model's weights, or was detached from them")


def _shape(tensor: Tensor) -> str:
    return f"[batch, {', '.join(map(str, tensor.shape[1:]))}]" if tensor.dim() > 1 else "[batch]"


def _check_data(whose: str, columns: Sequence[Tensor], kinds: set[torch.dtype]) -> None:
    """Refuse data that the model, whose weights are of these types, can't take, or that would make it NaN."""
    if not isinstance(columns, list | tuple) or len(columns) != 2:
        what = f"{len(columns)} of them" if isinstance(columns, list | tuple) else type(columns).__name__
        raise DefianceError(f"{whose}: give a pair (inputs, targets), not {what}")
    for what, column in zip(("inputs", "targets"), columns, strict=True):
        if not isinstance(column, Tensor):
            raise DefianceError(
                f"{whose}: {what} are a {type(column).__name__}; give a tensor, such as torch.as_tensor(it)"
            )
        if column.is_floating_point() and kinds and column.dtype not in kinds:
            wanted = ", ".join(sorted(map(str, kinds)))
            raise DefianceError(
                f"{whose}: {what} are {column.dtype}, the model's weights {wanted}; convert either"
            )
        if not bool(column.isfinite().all()):
            raise DefianceError(f"{whose}: {what} hold NaN or infinite numbers; leave those samples out")
    if len(columns[0]) != len(columns[1]):
        raise DefianceError(f"{whose}: {len(columns[0])} inputs but {len(columns[1])} targets")


def _split(
    data_per_node: Sequence[tuple[Tensor, Tensor]],
) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]:
    """Training, validation and test samples of every node."""
    parts: tuple[list[tuple[Tensor, ...]], ...] = ([], [], [])
    for node, columns in enumerate(data_per_node):
        count = len(columns[0])
        if count < LEAST_SAMPLES:
            raise DefianceError(f"node {node} has {count} samples; give each at least {LEAST_SAMPLES}")
        edges = (0, int(0.7 * count), int(0.85 * count), count)
        for part, low, high in zip(parts, edges[:-1], edges[1:], strict=True):
            part.append(tuple(column[low:high] for column in columns))
    return parts[0], parts[1], parts[2]


def _grid(nodes: int, count: int) -> Tensor:
    return torch.arange(nodes * count).view(nodes, count)


def _told(value: Any) -> Any:
    """Settings as JSON can hold them."""
    if is_dataclass(value):
        told = {field.name: _told(getattr(value, field.name)) for field in fields(value)}
        return {"kind": type(value).__name__, **told}
    if isinstance(value, dict):
        return {name: _told(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_told(one) for one in value]
    if isinstance(value, frozenset):
        return sorted(value)
    return list(value.shape) if isinstance(value, Tensor) else value


def _verdict(runs: Sequence[Federation], scores: Sequence[float]) -> str:
    """What came of it, in words."""
    run, (score, low, high) = runs[0], mean_interval(scores)
    refused = sum(len(round_.refused) for run in runs for round_ in run.rounds)
    text = (
        f"{len(run.rounds)} rounds among {len(run.jobs)} nodes took {run.rounds[-1].ended_s:.3g} s of virtual"
        f" time and {int(run.deliveries.sent_bits.sum()) / 1e6:.3g} Mbit. The loss on validation samples fell"
        f" from {float(run.before.mean()):.3g} to {float(run.reached.flatten(1).mean(1).min()):.3g}; on"
        f" others of the same nodes it is {-score:.3g} ({-high:.3g} to {-low:.3g})."
    )
    return text + (f" {refused} updates were refused." if refused else "")
