"""When would a handover function have decided on measured drives, against what the network did?

Candidates: the network (`network`), A3 with several offsets (`a3-2dB`), and a function from an ONNX file
    (`function`). A drive doesn't say which cell the strongest neighbour was, nor has it the cells that the
    function was trained on: every seed draws two of those, which stand for the serving and the other cell.
    Numbers are ratios of sums over drives, their intervals those over drives. See `control.measured`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defiance import __version__
from defiance import config as configuration
from defiance.control import measured
from defiance.control.handover import A3
from defiance.control.measured import Agreement, Array, Decisions, Visit
from defiance.errors import DefianceError
from defiance.kpm import METRICS, Curve, Row, Sheet, mean_interval
from defiance.network.settings import RadioConfig
from defiance.network.simulate import Policy
from defiance.parts import Parts
from defiance.scene.drives import describe_faults, read_drives
from defiance.seeding import stream
from defiance.studies import ALL_CORES, Progress, Workers, machine

NETWORK, FUNCTION, DIFFERENCE = "network", "function", "less the network"


@dataclass(frozen=True)
class Config:
    """Configuration of the study."""

    traces: str = field(default="", metadata={"help": "folder of measured drives, G-NetTrack's CSV files"})
    function: str = field(
        default="", metadata={"help": "handover function as `defiance export` writes it (ONNX); empty: none"}
    )
    offsets_db: tuple[float, ...] = field(
        default=(0.0, 2.0, 4.0), metadata={"min": -30.0, "max": 30.0, "unit": "dB", "help": "of A3, one each"}
    )
    hysteresis_db: float = field(default=0.0, metadata={"min": 0.0, "max": 15.0, "unit": "dB"})
    time_to_trigger_s: float = field(default=0.0, metadata={"min": 0.0, "max": 5.12, "unit": "s"})
    filter_k: float = field(default=0.0, metadata={"min": 0.0, "max": 19.0, "help": "of the L3 filter"})
    window_s: float = field(
        default=5.0, metadata={"min": 1.0, "max": 30.0, "unit": "s", "help": "in which decisions agree"}
    )
    ahead_s: float = field(
        default=5.0,
        metadata={
            "min": 1.0,
            "max": 30.0,
            "unit": "s",
            "help": "of gains, and of ways back, after decisions",
        },
    )


PRESETS = {"quick": Config(), "full": Config()}
SEEDS = {"quick": 4, "full": 16}


def run(
    config: Config,
    *,
    seeds: tuple[int, ...],
    parts: Parts,
    progress: Progress,
    workers: Workers = ALL_CORES,
) -> Sheet:
    """Answers the question.

    Args:
        config: see `Config`.
        seeds: of the cells that the function takes the drives' for.
        parts: left empty; all takes seconds.
        progress: is told how far the work is.
        workers: nobody is needed.

    Raises:
        DefianceError: no drives are given, or they never were in LTE; one can't be read, or the function.
    """
    if not config.traces:
        raise DefianceError("replay needs measured drives; give --set traces=FOLDER")
    deciders = _deciders(config, seeds)
    drives = read_drives(Path(config.traces))
    place = Path(config.traces).absolute().name
    follow_s = max(config.window_s, config.ahead_s)
    rows: list[Row] = []
    curves: list[Curve] = []
    with progress.task("replaying", total=len(deciders)) as task:
        by_period: dict[int, tuple[Visit, ...]] = {}
        for name, (policy, columns, cells) in deciders.items():
            period_s = policy.period_steps * RadioConfig.step_s
            visits = by_period.setdefault(policy.period_steps, measured.visits_of(drives, period_s, follow_s))
            if not any(visit.handed_over for visit in visits):
                raise DefianceError(f"{config.traces}: no drive has a handover between LTE cells to replay")
            network = measured.of_network(visits, period_s, config.ahead_s)
            fold = _Fold(name, place, network.minutes > 0)
            if not rows:
                rows += replace(fold, candidate=NETWORK).decisions(network)
            leaves = measured.asked(policy, visits, columns, cells)
            own = measured.of_function(policy, visits, leaves, columns, cells, period_s, config.ahead_s)
            agreed = measured.agreement(visits, leaves, period_s, config.window_s)
            rows += [*fold.decisions(own), *fold.agreement(agreed, own), *fold.differences(own, network)]
            about = measured.around(visits, leaves, period_s, config.window_s)
            curves += _curves(name, place, about, gain=not curves)
            task.advance()
    told = configuration.to_dict(config)
    if any(drive.faults for drive in drives):
        told["trace_faults"] = describe_faults(drives)
    verdict = _verdict(rows, config, float(network.minutes.sum()), int(network.count.sum()))
    return Sheet("replay", __version__, told, seeds, machine(), "", tuple(rows), tuple(curves), verdict)


def _deciders(config: Config, seeds: tuple[int, ...]) -> dict[str, tuple[Policy, Tensor, int]]:
    """Policies by candidate, with the columns of own and other cell, `[W, 2]`, and how many cells they know.

    Raises:
        DefianceError: an offset is given twice, or the function can't be read, or knows one cell alone.
    """
    rules = {
        f"a3-{offset_db:g}dB": A3(offset_db, config.hysteresis_db, config.time_to_trigger_s, config.filter_k)
        for offset_db in config.offsets_db
    }
    if len(rules) < len(config.offsets_db):
        raise DefianceError("replay would judge an offset twice; name every value of offsets_db once")
    found: dict[str, tuple[Policy, Tensor, int]] = {
        name: (rule, torch.tensor([[0, 1]]), 2) for name, rule in rules.items()
    }
    if config.function:
        try:
            from defiance.control.onnx_exchange import load
        except ModuleNotFoundError as error:
            raise DefianceError(f"{error.name} is missing; pip install 'defiance-ran[onnx]'") from error
        function = load(Path(config.function))
        if function.cells < 2:
            raise DefianceError(f"{config.function}: knows one cell alone, and can't ask for another")
        draws = [stream(seed, "replay").generator() for seed in seeds]
        columns = torch.stack([torch.randperm(function.cells, generator=draw)[:2] for draw in draws])
        found[FUNCTION] = (function, columns, function.cells)
    if not found:
        raise DefianceError("replay has nobody to judge; give --set offsets_db=2 or --set function=FILE.onnx")
    return found


def _curves(name: str, place: str, about: tuple[Array, Array, Array], *, gain: bool) -> list[Curve]:
    """Who asks to leave about the network's handovers, and how strong the new cell is then."""
    columns = [tuple(column.tolist()) for column in about]
    time = ("time_since_handover", "s")
    asking = Curve("asking", name, "none", place, *time, "asking_share", "1", columns[0], columns[1])
    gained = Curve("gain", NETWORK, "none", place, *time, "rsrp_gain", "dB", columns[0], columns[2])
    return [asking, gained] if gain else [asking]


def ratio_samples(above: Array, below: Array) -> Array:
    """Values [n] whose mean is the ratio of two sums over drives, and whose spread is that of the ratio.

    The ratio is linearised about its value r (the delta method): r + (a - r b) / mean(b).
    """
    total = below.sum()
    if total == 0:
        return np.full(len(below), np.nan)
    ratio = above.sum() / total
    return np.asarray(ratio + (above - ratio * below) / below.mean())


@dataclass(frozen=True)
class _Fold:
    """Rows of one candidate from sums by drive; drives that were never in LTE are left out."""

    candidate: str
    scenario: str
    kept: NDArray[np.bool_]

    def decisions(self, of: Decisions) -> list[Row]:
        """How often, what for, and how often back."""
        return self._rows("none", {name: self._samples(*pair) for name, pair in _ratios(of).items()})

    def differences(self, of: Decisions, network: Decisions) -> list[Row]:
        """The same less the network's, paired by drive."""
        pairs = {name: (pair, _ratios(network)[name]) for name, pair in _ratios(of).items()}
        return self._rows(
            DIFFERENCE,
            {name: self._samples(*ours) - self._samples(*theirs) for name, (ours, theirs) in pairs.items()},
        )

    def agreement(self, of: Agreement, own: Decisions) -> list[Row]:
        """What it asked for about the network's handovers."""
        ratios = {
            "agreement_share": (of.agreed, of.seen),
            "chance_share": (of.near_minutes, own.minutes),
            "earlier_share": (of.earlier, of.seen),
            "later_share": (of.later, of.seen),
            "confirmed_share": (of.confirmed, own.count),
            "lead_time": (of.lead_s, of.agreed),
        }
        return self._rows("none", {name: self._samples(*pair) for name, pair in ratios.items()})

    def _samples(self, above: Array, below: Array) -> Array:
        return ratio_samples(above[self.kept], below[self.kept])

    def _rows(self, regime: str, samples: Mapping[str, Array]) -> list[Row]:
        """A row of each metric that has a value."""
        return [
            Row(
                self.candidate, regime, self.scenario, "network", name, METRICS[name].unit,
                *mean_interval(values), len(values), "measured",
            )
            for name, values in samples.items()
            if np.isfinite(values).all()
        ]  # fmt: skip


def _ratios(of: Decisions) -> dict[str, tuple[Array, Array]]:
    return {
        "decisions_per_minute": (of.count, of.minutes),
        "rsrp_gain": (of.gain_db, of.gains),
        "return_share": (of.returns, of.count),
    }


def _verdict(rows: Sequence[Row], config: Config, minutes: float, handovers: int) -> str:
    """The answer in words."""
    found = {(row.candidate, row.metric): row.mean for row in rows if row.regime == "none"}
    asked = {name: share for (name, metric), share in found.items() if metric == "agreement_share"}
    text = (
        f"In {minutes:.0f} min of LTE the network made {handovers} handovers,"
        f" {found[NETWORK, 'decisions_per_minute']:.1f} a minute{_gaining(found, NETWORK)}."
    )
    for name, share in asked.items():
        who = "The function" if name == FUNCTION else f"A3 with {name.removeprefix('a3-')[:-2]} dB"
        text += (
            f" {who} asks for {100 * share:.0f} % of them within {config.window_s:g} s, and decides"
            f" {found[name, 'decisions_per_minute']:.1f} times a minute{_gaining(found, name)}."
        )
    return text + " Nobody followed these decisions: what they would have done to users can't be told."


def _gaining(found: Mapping[tuple[str, str], float], candidate: str) -> str:
    gain_db = found.get((candidate, "rsrp_gain"))
    return "" if gain_db is None else f", gaining {gain_db:.1f} dB of RSRP"
