"""Key performance metrics: their definitions, their folds over what links and meters recorded, and the Sheet.

The six metrics of 6G-XCEL D2.2 come first in `METRICS`. A `Sheet` is one study's result: tidy rows, the
curves that its figures need, and a verdict in words.
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from defiance.errors import DefianceError
from defiance.link import PURPOSES, Deliveries
from defiance.parts import write_atomically
from defiance.sensitivity import Sensitivity

SCHEMA = "defiance.sheet/1"
PROVENANCES = ("counted", "measured", "modelled", "estimated", "user")
"""How a number came about; `user`: modelled with constants that the user gave (`defiance.prices`)."""
CONVERGED_WITHIN = 0.01
"""A run has converged when its smoothed validation metric is this close to its final best, relatively."""


@dataclass(frozen=True)
class Metric:
    """What a row's number means.

    An empty unit says that the study's documentation states it.
    """

    name: str
    unit: str
    definition: str
    better: Literal["lower", "higher"]


_METRICS = (
    # the six of 6G-XCEL D2.2 (inference complexity has two)
    Metric(
        "training_operations",
        "op",
        "Training complexity: real-valued operations until the smoothed validation metric first comes within"
        " 1 % of its final best; nan if it had not settled when training ended.",
        "lower",
    ),
    Metric(
        "inference_operations",
        "op",
        "Inference complexity: real-valued operations of one decision, pre- and post-processing included.",
        "lower",
    ),
    Metric("inference_parameters", "parameters", "Real parameters that one decision uses.", "lower"),
    Metric(
        "communication_bits",
        "bit",
        "AI/ML-related overhead: bits sent for assistance information, data collection, model delivery and"
        " other signalling, headers and repeats included.",
        "lower",
    ),
    Metric(
        "generalisation",
        "",
        "The study's performance in a scene or distribution never seen in training.",
        "higher",
    ),
    Metric(
        "performance",
        "",
        "How well the task is done; what it is stands in the study's documentation.",
        "higher",
    ),
    Metric(
        "inference_latency",
        "s",
        "From data input to inference output; the time of report and command in the air is included.",
        "lower",
    ),
    # what it costs
    Metric("energy", "J", "Energy spent at the node in the evaluated time.", "lower"),
    Metric("energy_per_bit", "J/bit", "Energy of the network per bit delivered to users.", "lower"),
    Metric("cpu_time", "s", "CPU time of all threads, on the machine that the sheet names.", "lower"),
    Metric(
        "bits_to_target",
        "bit",
        "Bits sent until validation loss first comes within 1 % of the best of plain FedAvg; inf: never.",
        "lower",
    ),
    Metric("time_to_target", "s", "Virtual time until then; inf: never.", "lower"),
    Metric("training_time", "s", "Virtual time from the first model sent to the last exchange.", "lower"),
    Metric(
        "break_even_rounds",
        "rounds",
        "Rounds of federated training after which its weights are more bits than the samples themselves.",
        "higher",
    ),
    Metric(
        "performance_gain",
        "",
        "Performance less that of what it is compared with, paired by seed; not resolved if 0 is inside.",
        "higher",
    ),
    Metric(
        "tuning_operations",
        "op",
        "Real-valued operations spent in choosing a candidate's settings on validation seeds.",
        "lower",
    ),
    # what it does to the network
    Metric(
        "outage_share",
        "1",
        "Share of user time below Qout (200 ms mean SINR), in radio-link failure or interrupted by handover.",
        "lower",
    ),
    Metric(
        "outage_cut",
        "1",
        "Outage avoided relative to the tuned A3 rule in the same worlds: 0.3 is 30 % less outage.",
        "higher",
    ),
    Metric("handovers_per_user_minute", "1/min", "Executed handovers per user and minute.", "lower"),
    Metric(
        "ping_pongs_per_user_hour",
        "1/h",
        "Handovers back to the previous cell within 1 s of leaving it (TR 36.839), per user and hour.",
        "lower",
    ),
    Metric(
        "failures_per_user_hour", "1/h", "Radio-link failures (T310 expiries) per user and hour.", "lower"
    ),
    Metric("throughput", "bit/s", "Mean rate delivered to a user.", "higher"),
    Metric("cell_throughput", "bit/s", "Mean rate that a cell with users delivers.", "higher"),
    Metric(
        "rule_gain",
        "",
        "Share by which the network's KPI is better than under the tuned rule, paired by seed; below 0 the"
        " rule wins.",
        "higher",
    ),
    Metric(
        "operations_to_target",
        "op",
        "Operations of fine-tuning until within 2 points of the whole model's best performance; inf: never.",
        "lower",
    ),
    Metric(
        "break_even_performance",
        "",
        "Performance below which the tuned rule wins, of models that get worse in one way.",
        "lower",
    ),
    # channel feedback
    Metric(
        "nmse",
        "dB",
        "Squared error of fed back precoders over their power, phases of sub-bands at their best.",
        "lower",
    ),
    Metric(
        "spectral_efficiency",
        "bit/s/Hz",
        "Rate of one user at a time over the bandwidth; overheads as the study's documentation states.",
        "higher",
    ),
    Metric(
        "multi_user_spectral_efficiency",
        "bit/s/Hz",
        "Sum of the rates of users served at a time, over the bandwidth.",
        "higher",
    ),
    # whether it is worth it
    Metric(
        "break_even_time",
        "s",
        "Training energy over the power saved in the network at equal delivered bits, less inference and"
        " signalling; inf if it never pays back.",
        "lower",
    ),
    Metric(
        "electricity_saved_per_user_year",
        "",
        "Money per user and year that the power saved is worth, at the user's prices of electricity.",
        "higher",
    ),
    Metric(
        "electricity_payback_time",
        "s",
        "Electricity bill of training and delivery over what is saved of it per time; inf if never.",
        "lower",
    ),
    Metric(
        "joules_per_avoided_outage_second",
        "J/s",
        "Extra energy over the A3 rule per second of outage avoided.",
        "lower",
    ),
    Metric(
        "bits_per_avoided_outage_second",
        "bit/s",
        "Extra bits over the A3 rule per second of outage avoided.",
        "lower",
    ),
    # what functions take from each other
    Metric(
        "deadline_miss_share",
        "1",
        "Share of a function's results that a shared processor can't deliver by their deadline.",
        "lower",
    ),
    Metric("processor_share", "1", "Share of a base station's processor core that is asked for.", "lower"),
    # decisions on measured drives
    Metric(
        "decisions_per_minute",
        "1/min",
        "Decisions to leave the serving cell (of the network: its handovers) per minute in LTE.",
        "lower",
    ),
    Metric(
        "agreement_share",
        "1",
        "Share of the network's handovers with a decision of the function in a window about them; another "
        "cell was measured before.",
        "higher",
    ),
    Metric(
        "chance_share",
        "1",
        "Share of all time within the window of a decision: the agreement with handovers at random times.",
        "lower",
    ),
    Metric(
        "earlier_share",
        "1",
        "Share of these handovers at which the function asks already, or did in the window before.",
        "higher",
    ),
    Metric("later_share", "1", "Share of them for which it first asks in the window after.", "lower"),
    Metric(
        "confirmed_share",
        "1",
        "Share of the function's decisions that the network follows with a handover in the window.",
        "higher",
    ),
    Metric("lead_time", "s", "From its first decision in the window to the network's handover.", "higher"),
    Metric(
        "rsrp_gain",
        "dB",
        "RSRP of the strongest other cell (after a handover: of the new one) less that of the cell left, "
        "mean over the seconds after a decision.",
        "higher",
    ),
    Metric(
        "return_share",
        "1",
        "Share of decisions after which the way back is taken within the seconds that follow: by the "
        "network, or by the function from the strongest other cell.",
        "lower",
    ),
    # co-inference of device and edge
    Metric(
        "spiking_gain",
        "1",
        "Performance of S-VDIB less the candidate's own, on the same recordings, at equal channel uses and "
        "energy per use, paired by seed.",
        "lower",
    ),
    Metric(
        "anytime_gap_closed",
        "1",
        "Accuracy gained over guessing after the first third of a recording, relative to that at its end.",
        "higher",
    ),
    Metric(
        "time_to_decision",
        "s",
        "From a recording's beginning until accuracy is within a point of that at its end.",
        "lower",
    ),
    Metric(
        "spiking_energy_ratio",
        "times",
        "Energy of S-VDIB's device half, without radio, over that of the candidate's.",
        "lower",
    ),
    Metric(
        "crossover_energy_per_use",
        "J",
        "Energy of a channel use at which S-VDIB's device and the candidate's, radio included, spend the "
        "same on equal accuracy; 0: the candidate always spends less, inf: S-VDIB does.",
        "higher",
    ),
    Metric("energy_low", "J", "Energy at the optimistic ends of the cited constants.", "lower"),
    Metric("energy_high", "J", "Energy at the pessimistic ends of the cited constants.", "lower"),
    Metric("spiking_energy_ratio_low", "times", "The ratio at the ends that favour S-VDIB most.", "lower"),
    Metric(
        "spiking_energy_ratio_high", "times", "The ratio at the ends that favour the candidate most.", "lower"
    ),
    Metric("events", "events", "Events of a recording that the device sees.", "lower"),
    Metric("spikes", "spikes", "Spikes of hidden neurons for a recording.", "lower"),
    Metric("sent_spikes", "spikes", "Ones that are sent for a recording.", "lower"),
    Metric("synaptic_operations", "op", "Weights added to potentials because of events and spikes.", "lower"),
    Metric("silent_share", "1", "Share of hidden activations that are zero.", "higher"),
    Metric("relevance", "bit", "Lower bound of the information that arrives about the class.", "higher"),
    Metric(
        "information_rate", "bit", "Upper bound of the information that arrives about the recording.", "lower"
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _METRICS}
"""Every metric by its name: names are stable across studies and carry no unit."""


@dataclass(frozen=True)
class Row:
    """One measurement: a mean over n repetitions with its 95 % interval.

    ``inf`` as a mean is "never", ``nan`` "not converged"; ``nan`` bounds: n is too small for an interval.

    Raises:
        DefianceError: the provenance is unknown, the interval does not hold the mean, n is negative, or the
            unit is not the one of `METRICS`.
    """

    candidate: str
    regime: str
    scenario: str
    node: str
    metric: str
    unit: str
    mean: float
    ci_low: float
    ci_high: float
    n: int
    provenance: str

    def __post_init__(self) -> None:
        place = f"row {self.metric} of {self.candidate}/{self.regime}, {self.scenario}, {self.node}"
        if self.provenance not in PROVENANCES:
            raise DefianceError(
                f"{place}: provenance '{self.provenance}' is unknown; choose one of {', '.join(PROVENANCES)}"
            )
        if self.ci_low > self.mean or self.mean > self.ci_high:
            raise DefianceError(f"{place}: mean {self.mean} lies outside [{self.ci_low}, {self.ci_high}]")
        if not 0 <= self.n < 2**63:
            raise DefianceError(f"{place}: n is {self.n}; give the number of repetitions")
        known = METRICS.get(self.metric)
        if known and known.unit and self.unit != known.unit:
            raise DefianceError(f"{place}: unit '{self.unit}' should be '{known.unit}'")


@dataclass(frozen=True)
class Curve:
    """What a figure draws beside single numbers: fronts, distributions, learning curves, places, outlines.

    A nan in x and y breaks the line.

    Raises:
        DefianceError: the columns differ in length.
    """

    name: str
    candidate: str
    regime: str
    scenario: str
    x_metric: str
    x_unit: str
    y_metric: str
    y_unit: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    y_low: tuple[float, ...] | None = None
    y_high: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for column in (self.y, self.y_low, self.y_high):
            if column is not None and len(column) != len(self.x):
                raise DefianceError(
                    f"curve {self.name} of {self.candidate}/{self.regime}, {self.scenario}:"
                    f" {len(self.x)} x but {len(column)} y"
                )


@dataclass(frozen=True)
class Sheet:
    """One study's result, and everything that is needed to make it again.

    Attributes:
        study: the study's name.
        version: of this package.
        config: the study's settings.
        seeds: of the repetitions.
        machine: what it ran on.
        made_by: the command.
        rows: the measurements.
        curves: what the figures draw.
        verdict: the answer, in words.
        sensitivities: what the verdict rests on.
    """

    study: str
    version: str
    config: dict[str, Any]
    seeds: tuple[int, ...]
    machine: dict[str, Any]
    made_by: str
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...]
    verdict: str
    sensitivities: tuple[Sensitivity, ...] = ()

    def select(self, **columns: str | int) -> tuple[Row, ...]:
        """Return the rows whose columns have these values: ``select(metric="energy", node="device")``."""
        return tuple(
            row for row in self.rows if all(getattr(row, name) == value for name, value in columns.items())
        )

    def select_curves(self, **columns: str) -> tuple[Curve, ...]:
        """Return the curves whose columns have these values: ``select_curves(name="front")``."""
        return tuple(
            curve
            for curve in self.curves
            if all(getattr(curve, name) == value for name, value in columns.items())
        )

    def value(self, metric: str, **columns: str | int) -> Row:
        """Return the one row of that metric whose columns have these values.

        Raises:
            DefianceError: no row has them, or several do.
        """
        found = self.select(metric=metric, **columns)
        if len(found) != 1:
            wanted = ", ".join(f"{name}={value}" for name, value in columns.items())
            raise DefianceError(
                f"sheet {self.study} has {len(found)} rows of {metric} with {wanted}; want one"
            )
        return found[0]

    def save(self, path: Path | str) -> None:
        """Write the sheet as JSON, and its rows as Parquet beside it; a reader never meets half a file.

        Numbers that JSON does not know are written as the strings "inf", "-inf" and "nan".

        Raises:
            DefianceError: the folder cannot be written to, or is full.
        """
        path = Path(path)
        content = {"schema": SCHEMA} | {field.name: getattr(self, field.name) for field in fields(self)}
        content["rows"] = [asdict(row) for row in self.rows]
        content["curves"] = [asdict(curve) for curve in self.curves]
        content["sensitivities"] = [asdict(one) for one in self.sensitivities]
        text = json.dumps(_plain(content), ensure_ascii=False, allow_nan=False, indent=1)
        columns = {field.name: [getattr(row, field.name) for row in self.rows] for field in fields(Row)}
        parquet = io.BytesIO()
        pq.write_table(pa.table(columns, schema=_ROW_SCHEMA), parquet)
        write_atomically(path.with_suffix(".parquet"), parquet.getvalue())
        write_atomically(path, text + "\n")

    @classmethod
    def load(cls, path: Path | str) -> "Sheet":
        """Read a sheet's JSON, trusting nothing in it.

        Raises:
            DefianceError: the file cannot be read or is no valid sheet; the message names file and place.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
        except OSError as error:
            raise DefianceError(f"cannot read sheet {path}: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise DefianceError(f"sheet {path} is not whole JSON ({error}); make it again") from None
        try:
            if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
                raise DefianceError(f'no "schema": "{SCHEMA}" in it; give a file that `defiance run` wrote')
            sheet: Sheet = _parse(cls, content, "sheet")
        except (DefianceError, ValueError, OverflowError) as error:
            raise DefianceError(f"sheet {path}: {error}") from None
        return sheet


def bits_by_purpose(deliveries: Deliveries) -> dict[str, int]:
    """Sum the sent bits of each purpose; bits of lost packets were sent, too."""
    sums = torch.zeros(len(PURPOSES), dtype=torch.int64, device=deliveries.purpose.device)
    sums.index_add_(0, deliveries.purpose, deliveries.sent_bits)
    return dict(zip(PURPOSES, sums.tolist(), strict=True))


def mean_interval(samples: ArrayLike) -> tuple[float, float, float]:
    """Return mean, low and high end of its 95 % confidence interval (Student's t) over samples [n], n >= 1.

    The ends are nan where no interval exists: one sample, or samples that are not all finite.
    """
    values = np.asarray(samples, dtype=np.float64)
    mean = float(values.mean())
    if values.size < 2 or not np.isfinite(values).all():
        return mean, math.nan, math.nan
    half = float(stdtrit(values.size - 1, 0.975) * values.std(ddof=1) / math.sqrt(values.size))
    return mean, mean - half, mean + half


def paired_interval(a: ArrayLike, b: ArrayLike) -> tuple[float, float, float]:
    """Return mean, low and high end of the 95 % confidence interval of a - b, pair by pair [n], n >= 1."""
    return mean_interval(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64))


def crossed_interval(samples: ArrayLike, weights: ArrayLike | None = None) -> tuple[float, float, float]:
    """Mean and 95 % interval over two crossed kinds of groups, both random, as training and test seeds.

    The variance of the mean is the sum of what the means of rows and those of columns contribute
    (conservative: their common noise counts twice), with Satterthwaite's degrees of freedom.

    With weights the mean is sum(samples) / sum(weights), as of users who are many on one walk and few on
    another: samples are then sums over a cell, and groups count by their residuals, samples - mean weights
    (the linearised variance of a ratio by clusters). Groups without weight don't count.

    Args:
        samples: `[A, B]`.
        weights: of the cells, >= 0, `[A, B]`; 1 without.

    Returns:
        Mean, low and high end; nan where there is one group of each kind.
    """
    values = np.asarray(samples, dtype=np.float64)
    heavy = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    mean = float(values.sum() / heavy.sum())
    terms = []
    for axis in (0, 1):
        residual = (values - mean * heavy).sum(axis)[heavy.sum(axis) > 0]
        if (groups := len(residual)) > 1:
            terms.append((groups / (groups - 1) * float((residual**2).sum()) / heavy.sum() ** 2, groups - 1))
    variance = float(sum(v for v, _ in terms))
    if not terms:
        return mean, math.nan, math.nan
    if variance == 0:
        return mean, mean, mean
    freedom = variance**2 / sum(v**2 / f for v, f in terms)
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(variance)
    return mean, mean - half, mean + half


def operations_until_converged(
    operations: Sequence[float], metric: Sequence[float], better: Literal["lower", "higher"], window: int = 3
) -> float:
    """Return the operations until the smoothed validation metric first comes within 1 % of its final best.

    Smoothed is the mean of the last `window` evaluations. Where the first one that good is the last of the
    run (or the metric is not finite), it had not settled: nan, "not converged".

    Args:
        operations: spent up to each evaluation [n], increasing.
        metric: validation metric at each evaluation [n].
        better: whether the metric improves downwards or upwards.
        window: evaluations in the moving mean.
    """
    values = np.asarray(metric, dtype=np.float64) * (1.0 if better == "lower" else -1.0)
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan
    smoothed = np.array([values[max(0, i + 1 - window) : i + 1].mean() for i in range(len(values))])
    best = smoothed.min()
    first = int(np.argmax(smoothed <= best + CONVERGED_WITHIN * abs(best)))
    return float(operations[first]) if first < len(values) - 1 else math.nan


_PREFIXES = tuple((10.0 ** (18 - 3 * i), prefix) for i, prefix in enumerate("EPTGMk mµnpf"))
_LONG_TIMES = ((365.25 * 86400, "years"), (86400.0, "d"), (3600.0, "h"), (60.0, "min"))
_PREFIXED = ("op", "bit", "J", "s", "W", "Hz", "m")


def format_quantity(value: float, unit: str) -> str:
    """Write a number for people, in three digits: ``1.2 GJ``, ``12 %``, ``8.1/min``, ``2.5 h``, ``never``."""
    if math.isnan(value):
        return "not converged" if unit == "op" else "n/a"
    if math.isinf(value):
        return "never" if value > 0 else "-inf"
    if unit == "1":
        return f"{_digits(100 * value)} %"
    if unit == "s" and abs(value) >= 120:
        size, name = next((size, name) for size, name in _LONG_TIMES if abs(value) >= 2 * size)
        return f"{_digits(value / size)} {name}"
    if unit.startswith("1/"):
        return f"{_digits(value)}{unit[1:]}"
    if unit.split("/")[0] not in _PREFIXED or value == 0:
        return f"{_digits(value)} {unit}"
    rounded = abs(float(f"{value:.3g}"))
    size, prefix = next((scale for scale in _PREFIXES if rounded >= scale[0]), _PREFIXES[-1])
    return f"{_digits(value / size)} {prefix.strip()}{unit}"


def _digits(value: float) -> str:
    """Write three significant digits without an exponent: 0.0123, 12.3, 12 300."""
    rounded = float(f"{value:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded)))) if rounded else 0
    text = f"{rounded:,.{decimals}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return text.rstrip("0").rstrip(".") if "." in text else text


_ROW_SCHEMA = pa.schema(
    [
        (name, {str: pa.string(), float: pa.float64(), int: pa.int64()}[kind])
        for name, kind in get_type_hints(Row).items()
    ]
)


def _plain(value: Any) -> Any:
    """Return the same content with strings for the floats that JSON lacks."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f'{name} must be written "{name}"')


def _parse(kind: Any, value: Any, place: str) -> Any:
    """Return what JSON gave for a field of that type, or say what is wrong with it and where."""
    if isinstance(kind, type) and is_dataclass(kind):
        table, hints = _expect(value, dict, "a table", place), get_type_hints(kind)
        table = {field.name: [] for field in fields(kind) if field.default == ()} | table
        for problem, names in (
            ("lacks", hints.keys() - table.keys()),
            ("knows no", table.keys() - hints.keys()),
        ):
            if names:
                raise DefianceError(f"{place} {problem} {', '.join(sorted(names))}")
        return kind(**{name: _parse(hint, table[name], f"{place}.{name}") for name, hint in hints.items()})
    if get_origin(kind) is UnionType:
        return None if value is None else _parse(get_args(kind)[0], value, place)
    if get_origin(kind) is tuple:
        items = _expect(value, list, "a list", place)
        return tuple(_parse(get_args(kind)[0], item, f"{place}[{i}]") for i, item in enumerate(items))
    if get_origin(kind) is dict:
        return _expect(value, dict, "a table", place)
    if kind is str:
        _expect(value, str, "text", place).encode()
        return value
    if kind is int:
        return _expect(value, int, "a whole number", place)
    if value in ("inf", "-inf", "nan"):
        return float(value)
    number = float(_expect(value, int | float, 'a number, "inf" or "nan"', place))
    if not math.isfinite(number):
        raise DefianceError(f"{place} is beyond the range of a double")
    return number


def _expect(value: Any, kind: Any, wanted: str, place: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        shown = repr(value)
        raise DefianceError(f"{place} is {shown if len(shown) <= 40 else shown[:37] + '...'}; want {wanted}")
    return value
