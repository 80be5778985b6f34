"""The pool of workers that studies share: processes here, and a Ray cluster."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from defiance.cli import main
from defiance.errors import DefianceError
from defiance.parts import Parts
from defiance.studies import Silent, Workers, cluster, pool

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray isn't installed (extra `ray`)")

Toy = dict[str, Any]


def square(config: Toy, number: int) -> Toy:
    return {"square": float((torch.arange(number, dtype=torch.float64) * config["unit"]).sum() ** 2)}


def square_or_die_once(config: Toy, number: int) -> Toy:
    """Kills its own process the first time, as the system does when memory runs out."""
    try:
        os.close(os.open(config["died"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return square(config, number)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def die(config: Toy) -> Toy:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def refuse(config: Toy) -> Toy:
    raise DefianceError("the map has no streets; give another")


def train(config: Toy, key: str, parts: Parts) -> Toy:
    parts.put_tensors(key, {"weight": torch.full((3,), config["unit"])})
    return {"rounds": 1}


def judge(config: Toy, key: str, parts: Parts) -> Toy:
    found = parts.get_tensors(key)
    assert found is not None
    return {"outage": float(found["weight"].sum()), "threads": torch.get_num_threads()}


def run(workers: Workers, config: Toy, folder: Path) -> dict[str, Toy | None]:
    """Two phases, the second with the weights of the first; one worker is killed on the way."""
    parts = Parts.open(folder, "toy")
    with pool.workers(workers, parts) as submit:
        first = [("train/a", train, ("a", parts)), ("b", square_or_die_once, (4,))]
        pool.do("first", first, config, parts, Silent(), submit)
        second = [("judge/a", judge, ("a", parts)), *((f"square/{n}", square, (n,)) for n in range(5))]
        pool.do("second", second, config, parts, Silent(), submit)
    return {key: parts.get(key) for key in parts.keys("")}


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Toy | None]:
    folder = tmp_path_factory.mktemp("serial")
    (folder / "died").touch()
    return run(Workers(1), {"unit": 0.1, "died": str(folder / "died")}, folder)


def test_the_part_of_a_killed_worker_runs_again(serial: dict[str, Toy | None], tmp_path: Path) -> None:
    """With two workers, one of which is killed, what comes out is the serial run's to the bit."""
    config = {"unit": 0.1, "died": str(tmp_path / "died")}
    assert run(Workers(2), config, tmp_path) == serial and (tmp_path / "died").exists()
    assert serial["judge/a"] == {"outage": pytest.approx(0.3), "threads": 1}


def test_a_job_whose_workers_are_always_killed_is_one_line(tmp_path: Path) -> None:
    parts = Parts.open(tmp_path, "toy")
    with pytest.raises(DefianceError, match="killed 3 times, .* parts are kept; .*--workers 1"):
        with pool.workers(Workers(1), parts) as submit:
            pool.do("dying", [("a", die, ())], {}, parts, Silent(), submit)


def test_results_that_are_there_are_kept_before_a_run_fails(tmp_path: Path) -> None:
    def submit(function: Any, *arguments: Any) -> Future[Any]:
        found: Future[Any] = Future()
        if arguments[1] == "bad":
            found.set_exception(BrokenProcessPool())
        else:
            found.set_result({"outage_share": 0.1})
        return found

    kept = Parts.open(tmp_path, "toy")
    jobs = [(f"a3/{i}", print, ("bad" if i in (0, 2, 4) else "good",)) for i in range(6)]
    with pytest.raises(BrokenProcessPool):
        pool.do("tuning", jobs, None, kept, Silent(), submit)
    assert [i for i in range(6) if kept.get(f"a3/{i}")] == [1, 3, 5]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray cluster of two workers on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray = [str(Path(sys.executable).with_name("ray"))]
    folder = tmp_path_factory.mktemp("ray")
    short = Path(os.path.realpath("/tmp")) / f"ray-{port}"  # the paths of its sockets must be short
    options = f"--head --node-ip-address 127.0.0.1 --port {port} --num-cpus 2 --include-dashboard false"
    options += f" --disable-usage-stats --object-store-memory 100000000 --temp-dir {short} --block"
    with (folder / "log").open("w") as log:
        started = subprocess.Popen(
            [*ray, "start", *options.split()], stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(300):
            if "Ray runtime started" in (folder / "log").read_text():
                break
            assert started.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        started.wait(30)
        shutil.rmtree(short, ignore_errors=True)


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_comes_to_the_same_and_survives_a_killed_worker(
    serial: dict[str, Toy | None], head: str, tmp_path: Path
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the package is sent, its tests aren't
    config = {"unit": 0.1, "died": str(tmp_path / "died")}
    assert run(Workers(ray=head), config, tmp_path) == serial and (tmp_path / "died").exists()
    parts = Parts.open(tmp_path, "more")
    with pytest.raises(DefianceError, match="^the map has no streets; give another$"):
        with pool.workers(Workers(ray=head), parts) as submit:
            pool.do("refusing", [("a", refuse, ())], {}, parts, Silent(), submit)


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("127.0.0.1:1", "no Ray head answers there (Connection refused); start one with `ray start --head"),
        ("nowhere", "give auto or HOST:PORT"),
        ("host:99999", "give auto or HOST:PORT"),
        ("auto", "no Ray cluster answers"),
    ],
)
@needs_ray
def test_a_head_that_is_not_there_is_one_line(
    address: str,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if address == "auto":  # another cluster may run on this machine

        def nobody(**_: Any) -> None:
            raise ConnectionError("Could not find any running Ray instance.")

        monkeypatch.setattr("ray.init", nobody)
    with pytest.raises(SystemExit) as ended:
        main(["run", "worth", "--ray", address])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and problem in told.splitlines()[-1]


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DefianceError, match=r"pip install 'defiance-ran\[ray\]'"):
        with cluster.cluster("auto", Parts.open(tmp_path, "toy")):
            pass
