"""The pool of workers that studies share: processes here, and a Ray cluster."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from defiance.cli import main
from defiance.errors import DefianceError
from defiance.parts import Parts
from defiance.studies import Silent, Workers, cluster, pool
from defiance.studies.cluster import WorkerLost

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


def sleep(config: Toy) -> Toy:
    Path(config["seen"]).touch()
    time.sleep(600)
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


def test_a_part_whose_workers_are_always_killed_is_named(tmp_path: Path) -> None:
    """The others run on meanwhile: a process that is killed takes none of them along."""
    parts = Parts.open(tmp_path, "toy")
    jobs = [("dying", die, ()), *((f"square/{n}", square, (n,)) for n in range(4))]
    with pytest.raises(DefianceError, match="part dying: .*killed 3 times, .* parts are kept; .*--workers 1"):
        with pool.workers(Workers(2), parts) as submit:
            pool.do("dying", jobs, {"unit": 0.1}, parts, Silent(), submit)
    assert parts.get("square/0") == {"square": 0.0}


def test_results_that_are_there_are_kept_before_a_run_fails(tmp_path: Path) -> None:
    def submit(function: Any, *arguments: Any) -> Future[Any]:
        found: Future[Any] = Future()
        if arguments[1] == "bad":
            found.set_exception(WorkerLost())
        else:
            found.set_result({"outage_share": 0.1})
        return found

    kept = Parts.open(tmp_path, "toy")
    jobs = [(f"a3/{i}", print, ("bad" if i in (0, 2, 4) else "good",)) for i in range(6)]
    with pytest.raises(DefianceError, match="part a3/[024]:"):
        pool.do("tuning", jobs, None, kept, Silent(), submit)
    assert [i for i in range(6) if kept.get(f"a3/{i}")] == [1, 3, 5]


INTERRUPTED = """
import signal, sys
from pathlib import Path
import test_pool
from defiance.parts import Parts
from defiance.studies import Silent, Workers, pool
signal.signal(signal.SIGINT, signal.default_int_handler)
parts = Parts(Path(sys.argv[1]))
jobs = [("a", test_pool.square, (3,)), *((f"sleep/{n}", test_pool.sleep, ()) for n in range(4))]
try:
    with pool.workers(Workers(2), parts) as submit:
        pool.do("sleeping", jobs, {"unit": 1.0, "seen": sys.argv[1] + "/seen"}, parts, Silent(), submit)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_ctrl_c_keeps_what_is_finished_and_leaves_no_process(tmp_path: Path) -> None:
    """Pressed in a terminal it reaches every process; the output ends once none of them holds it open."""
    run = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    kept = Parts(tmp_path)
    while not (kept.get("a") and (tmp_path / "seen").exists()):
        assert run.poll() is None
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    assert run.communicate(timeout=20)[0] == "" and run.returncode == 130
    assert kept.keys("") == ["a"]


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
            [*ray, "start", *options.split()],
            env=os.environ | {"RAY_worker_niceness": "0"},  # 15 starves on a machine that has other work
            stdout=log,
            stderr=log,
            start_new_session=True,
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
    with pytest.raises(DefianceError, match="part dying: .*killed 3 times"):
        with pool.workers(Workers(ray=head), parts) as submit:
            pool.do("dying", [("dying", die, ())], {}, parts, Silent(), submit)


@pytest.fixture
def stranger() -> Iterator[str]:
    """The address of a server that isn't Ray's."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            with suppress(OSError):  # nobody came
                with server.accept()[0] as line:
                    line.recv(1024)  # else closing resets the connection
                    line.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")

        threading.Thread(target=greet, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


NO_HEAD = "no Ray head answers there (Connection refused); start one with `ray start --head"


@pytest.mark.parametrize(
    ("address", "found", "problem"),
    [
        ("127.0.0.1:1", "", NO_HEAD),
        ("auto", "127.0.0.1:1", f"--ray 127.0.0.1:1: {NO_HEAD}"),
        ("auto", "", "no Ray cluster was started on this machine"),
        ("stranger", "", "no Ray head answers there (another program does)"),
        ("nowhere", "", "give auto or HOST:PORT"),
        ("host:99999", "", "give auto or HOST:PORT"),
        ("ray://127.0.0.1:1", "", "give auto or HOST:PORT"),
    ],
)
@needs_ray
def test_a_head_that_is_not_there_is_one_line(
    address: str,
    found: str,
    problem: str,
    stranger: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def search(address: str) -> str:  # for Ray's, which may find a real cluster on this machine
        if not found:
            raise ConnectionError("Could not find any running Ray instance.")
        return found

    monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address_or_die", search)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["run", "worth", "--ray", stranger if address == "stranger" else address])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and problem in told.splitlines()[-1]


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DefianceError, match=r"pip install 'defiance-ran\[ray\]'"):
        with cluster.cluster("auto", Parts.open(tmp_path, "toy")):
            pass
