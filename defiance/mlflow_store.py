"""Sheets and trainings as runs of an MLflow database (extra `mlflow`), to compare them where others lie.

The sheet stays the source of truth: it goes along as an artefact, and what a metric here lacks, its unit, its
provenance and the repetitions, stands there.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defiance.errors import DefianceError

if TYPE_CHECKING:
    from defiance.kpm import Sheet

PREFIX = "sqlite:///"
LONGEST_KEY, LONGEST_PARAM, LONGEST_TAG = 250, 6000, 8000
METRICS_AT_ONCE, PARAMS_AT_ONCE = 1000, 100
"""Limits of MLflow (`mlflow.utils.validation`)."""


@dataclass(frozen=True)
class Record:
    """What becomes a run.

    Attributes:
        experiment, name: where it stands, and what it is called there.
        params: settings.
        metrics: names, values and steps.
        tags: the rest; `mlflow.note.content` is shown as its description.
        artefacts: files to copy.
    """

    experiment: str
    name: str
    params: Mapping[str, Any]
    metrics: Sequence[tuple[str, float, int]]
    tags: Mapping[str, str]
    artefacts: Sequence[Path]


def database(uri: str) -> Path:
    """The file of `sqlite:///FILE`, checked before anything is computed for it.

    Raises:
        DefianceError: it is not such an address, or no database of MLflow's, or the extra is missing.
    """
    name = uri.removeprefix(PREFIX)
    if not uri.startswith(PREFIX) or name in ("", ":memory:") or set("?#%") & set(name):
        raise DefianceError(f"--mlflow {uri}: write it as sqlite:///FILE, such as sqlite:///runs.db")
    for module in ("mlflow", "sqlalchemy", "alembic"):
        if find_spec(module) is None:
            raise DefianceError(f"--mlflow: {module} is missing; pip install 'defiance-ran[mlflow]'")
    file = Path(name).expanduser().resolve()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise DefianceError(f"--mlflow: {file} cannot be written to")
        tables = _tables(file) if file.exists() else set()
    except (OSError, sqlite3.Error) as error:
        raise DefianceError(f"--mlflow: {file} is no SQLite database: {error}") from error
    if tables and not {"experiments", "alembic_version"} <= tables:
        raise DefianceError(f"--mlflow: {file} is another program's database; give another FILE")
    return file


def _tables(file: Path) -> set[str]:
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as found:
        return {row[0] for row in found.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def add(uri: str, record: Record) -> str:
    """Adds a run, and an experiment where there is none of that name; the run's id.

    Artefacts are copied to a folder beside the database, FILE-artefacts.

    Raises:
        DefianceError: as `database`; MLflow says what.
    """
    file = database(uri)
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    now_ms = int(1000 * time.time())
    metrics = [Metric(key, value, now_ms, step) for key, value, step in _unique(record.metrics)]
    params = [Param(_key(name), _text(value, LONGEST_PARAM)) for name, value in record.params.items()]
    tags = {_key(name): _text(value, LONGEST_TAG) for name, value in record.tags.items()}
    try:
        client = MlflowClient(f"{PREFIX}{file}")
        known = client.get_experiment_by_name(record.experiment)
        beside = file.with_name(f"{file.stem}-artefacts").as_uri()
        experiment = known.experiment_id if known else client.create_experiment(record.experiment, beside)
        run = str(client.create_run(experiment, now_ms, tags, _text(record.name, LONGEST_KEY)).info.run_id)
        for first in range(0, len(params), PARAMS_AT_ONCE):
            client.log_batch(run, params=params[first : first + PARAMS_AT_ONCE])
        for first in range(0, len(metrics), METRICS_AT_ONCE):
            client.log_batch(run, metrics=metrics[first : first + METRICS_AT_ONCE])
        for path in record.artefacts:
            client.log_artifact(run, str(path))
        client.set_terminated(run)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise DefianceError(f"--mlflow: {file}: {' '.join(str(error).split())[:300]}") from error
    return run


def of_sheet(sheet: Sheet, artefacts: Sequence[Path]) -> Record:
    """Rows as metrics METRIC/CANDIDATE/REGIME/SCENARIO/NODE, and the same with /ci_low and /ci_high.

    A second row of the same columns has its provenance behind them. Bounds that are nan, of too few
    repetitions, are left out. MLflow keeps inf as the largest number.
    """
    metrics, seen = list[tuple[str, float, int]](), set[str]()
    for row in sheet.rows:
        key = "/".join((row.metric, row.candidate, row.regime, row.scenario, row.node))
        key += f"/{row.provenance}" * (key in seen)
        seen.add(key)
        values = {"": row.mean, "/ci_low": row.ci_low, "/ci_high": row.ci_high}
        metrics += [(key + end, x, 0) for end, x in values.items() if not end or not isnan(x)]
    params = {**dict(_flat(sheet.config)), "seeds": ",".join(map(str, sheet.seeds))}
    tags = {"version": sheet.version, "made_by": sheet.made_by, "mlflow.note.content": sheet.verdict}
    tags |= {name: str(value) for name, value in _flat(sheet.machine, "machine.")}
    return Record(sheet.study, sheet.made_by or sheet.study, params, metrics, tags, artefacts)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Keys of nested mappings with dots between them."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def _key(text: str) -> str:
    """With other characters than MLflow takes as `_`, and no part that a path would swallow."""
    parts = re.sub(r"[^\w\-. /:]", "_", text, flags=re.ASCII).split("/")
    return "/".join(part for part in parts if part.strip("."))[:LONGEST_KEY]


def _text(value: Any, longest: int) -> str:
    """As UTF-8 can hold it; JSON knows halves of surrogate pairs."""
    return str(value).encode("utf-8", "replace").decode()[:longest]


def _unique(metrics: Iterable[tuple[str, float, int]]) -> Iterator[tuple[str, float, int]]:
    """With keys that MLflow takes; of those that are equal at a step the second is called KEY.2."""
    taken: set[tuple[str, int]] = set()
    for name, value, step in metrics:
        key = _key(name)
        numbered = (key[: LONGEST_KEY - 6] + f".{number}" for number in count(2))
        while (key, step) in taken:
            key = next(numbered)
        taken.add((key, step))
        yield key, value, step
