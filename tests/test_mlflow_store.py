"""Sheets and trainings as runs of MLflow: what goes in comes out, and wrong files are one line."""

from __future__ import annotations

import json
import math
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from defiance import cli, cli_fl, mlflow_store
from defiance.errors import DefianceError
from defiance.kpm import Row, Sheet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what MLflow uses of SQLAlchemy


def row(metric: str, mean: float, low: float, high: float, provenance: str = "measured", **where: str) -> Row:
    place = {"candidate": "a3", "regime": "none", "scenario": "munich/30kmh", "node": "network"} | where
    return Row(
        **place, metric=metric, unit="J", mean=mean, ci_low=low, ci_high=high, n=3, provenance=provenance
    )


SHEET = Sheet(
    study="worth",
    version="1",
    config={"scene": "munich", "training": {"rounds": 8, "lengths": [1, 2]}},
    seeds=(3, 4),
    machine={"cores": 2},
    made_by="defiance run worth",
    rows=(
        row("energy", 2.0, 1.0, 3.0),
        row("energy", 9.0, 8.0, 10.0, "estimated"),
        row("energy", math.inf, math.nan, math.nan, node="Cortex-M4, BLE"),
        row("energy", 1.0, 1.0, 1.0, node="Cortex-M4; BLE", candidate="../a3"),
    ),
    curves=(),
    verdict="It pays \ud800.",
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all: MLflow takes seconds to make one."""
    if find_spec("mlflow") is None:  # it must not be imported before its telemetry is turned off
        pytest.skip("needs the extra `mlflow`")
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/runs.db"


def artefacts(uri: str) -> set[str]:
    """Names of those that lie beside a database."""
    return {path.name for path in Path(mlflow_store.database(uri).parent).glob("runs-artefacts/*/*/*")}


def only_run(uri: str, experiment: str) -> Any:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert run.info.status == "FINISHED"
    return run


def test_what_is_on_a_sheet_is_in_the_run(uri: str, tmp_path: Path) -> None:
    mlflow_store.add(uri, mlflow_store.of_sheet(SHEET, []))
    run = only_run(uri, "worth")
    place = "a3/none/munich/30kmh"
    assert run.data.metrics == {
        f"energy/{place}/network": 2.0,
        f"energy/{place}/network/ci_low": 1.0,
        f"energy/{place}/network/ci_high": 3.0,
        f"energy/{place}/network/estimated": 9.0,
        f"energy/{place}/network/estimated/ci_low": 8.0,
        f"energy/{place}/network/estimated/ci_high": 10.0,
        f"energy/{place}/Cortex-M4_ BLE": sys.float_info.max,
        f"energy/{place}/Cortex-M4_ BLE.2": 1.0,
        f"energy/{place}/Cortex-M4_ BLE/ci_low": 1.0,
        f"energy/{place}/Cortex-M4_ BLE/ci_high": 1.0,
    }
    settings = {"scene": "munich", "training.rounds": "8", "training.lengths": "[1, 2]", "seeds": "3,4"}
    assert run.data.params == settings
    assert run.data.tags["mlflow.note.content"] == "It pays ?." and run.data.tags["machine.cores"] == "2"
    assert run.info.run_name == "defiance run worth"
    assert not list(tmp_path.iterdir())  # nothing else, such as a folder mlruns


def test_the_command_line_adds_a_sheet_that_is_there(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(SHEET, verdict="It pays.", study="beams").save(tmp_path / "sheet.json")
    with pytest.raises(SystemExit) as end:
        cli.main(["report", "sheet.json", "--mlflow", uri])
    assert end.value.code == 0
    run = only_run(uri, "beams")
    assert f"mlflow  run {run.info.run_id} of the experiment beams" in capsys.readouterr().err
    assert artefacts(uri) >= {"sheet.json", "report.html"}


def test_rounds_of_a_training_are_steps(uri: str, tmp_path: Path) -> None:
    rounds = [
        {"round": 1, "counted": {"node-0": 10}, "left_out": {"node-1": "late"},
         "validation": {"node-0": 3.0}},
        {"round": 2, "counted": {}, "left_out": {}, "validation": {"node-0": 1.0, "node-1": 2.0}},
    ]  # fmt: skip
    report = {"settings": {"nodes": 2, "aggregation": "median"}, "best_loss": 1.5, "rounds": rounds}
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "model.safetensors").write_bytes(b"")
    mlflow_store.add(uri, cli_fl._record(tmp_path, ""))
    run = only_run(uri, "federated")
    assert run.data.params == {"nodes": "2", "aggregation": "median"}
    with closing(sqlite3.connect(mlflow_store.database(uri))) as found:
        history = found.execute("SELECT step, value FROM metrics WHERE key = 'validation' ORDER BY step")
        assert history.fetchall() == [(1, 3.0), (2, 1.5)]
    assert run.data.metrics["samples/node-0"] == 10 and run.data.metrics["best_loss"] == 1.5
    assert run.data.tags["mlflow.note.content"] == "round 1: node-1: late"
    assert artefacts(uri) >= {"report.json", "model.safetensors"}


@pytest.mark.parametrize(
    "uri", ["runs.db", "sqlite:///", "sqlite:///:memory:", "postgresql://x", "sqlite:///a?b"]
)
def test_an_address_is_of_a_file(uri: str) -> None:
    with pytest.raises(DefianceError, match="write it as sqlite:///FILE"):
        mlflow_store.database(uri)


def test_a_file_of_something_else_is_refused_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mlflow_store, "find_spec", lambda name: True)
    (tmp_path / "text.db").write_text("not a database, but longer than the header of one is\n" * 20)
    with closing(sqlite3.connect("other.db")) as other:
        other.execute("CREATE TABLE mine (x)")
        other.commit()
    for name, why in (("text.db", "is no SQLite database"), ("other.db", "is another program's database")):
        with pytest.raises(SystemExit) as end:
            cli.main(["run", "worth", "--mlflow", f"sqlite:///{name}"])
        said = capsys.readouterr().err
        assert end.value.code == 2 and why in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert mlflow_store.database("sqlite:///new/runs.db") == tmp_path / "new" / "runs.db"


def test_without_mlflow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_store, "find_spec", lambda name: None if name == "mlflow" else True)
    with pytest.raises(DefianceError, match=r"mlflow is missing; pip install 'defiance-ran\[mlflow\]'"):
        mlflow_store.database("sqlite:///runs.db")
