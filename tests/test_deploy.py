"""Flower deployed as processes: what it reaches, what it keeps to itself, and what a kill -9 costs.

The tests marked `deploy` take minutes and run by `make test-deploy`.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_federated
import torch
from safetensors.torch import load_file
from torch import Tensor

pytest.importorskip("flwr", reason="needs the extra `flower`")

from test_flower import NODES, equals_in_process  # noqa: E402

from defiance import cli  # noqa: E402
from defiance.errors import DefianceError  # noqa: E402
from defiance.learn.aggregation import Mean  # noqa: E402
from defiance.learn.flower import guard, server  # noqa: E402
from defiance.learn.flower.app import ENVIRONMENT  # noqa: E402
from defiance.learn.flower.deploy import SuperLink, locked, write_app  # noqa: E402
from defiance.learn.flower.keys import make_keys  # noqa: E402
from defiance.learn.flower.processes import Processes  # noqa: E402
from defiance.learn.flower.server import Settings, Training  # noqa: E402
from defiance.learn.updates import Memory, Place, Progress, train_round, training_stream  # noqa: E402

ROUNDS = 2
TINY = ("--app", f"{tiny_federated.__file__}:WORK")
Refused = Callable[..., str]


class Deployment:
    """`defiance fl deploy` in a process of its own."""

    def __init__(self, out: Path, *arguments: str, pause_s: float = 0.0) -> None:
        self.out, self.lines = out, list[str]()
        program = (  # where Ctrl-C works as at a prompt, wherever the tests run
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from defiance import cli; cli.main()"
        )
        command = [sys.executable, "-c", program, "fl", "deploy", *TINY]
        command += ["--rounds", str(ROUNDS), "--steps", "5", "--learning-rate", "0.02", "--seed", "3"]
        self.process = subprocess.Popen(
            [*command, "--out", str(out), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TINY_PAUSE_S": str(pause_s)},
        )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, there: Callable[[], bool], timeout_s: float = 300.0) -> None:
        end_s = time.monotonic() + timeout_s
        while not there():
            assert self.process.poll() is None and time.monotonic() < end_s, self.said
            time.sleep(0.1)

    def ended(self, timeout_s: float = 600.0) -> int:
        """Its exit status; nothing that it started is left."""
        status = self.process.wait(timeout_s)
        self.reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        end_s = time.monotonic() + 10  # for who hears of the end by itself
        while self.found() and time.monotonic() < end_s:
            time.sleep(0.1)
        assert not self.found()
        return status

    def found(self, what: str = "", owner: str = "") -> list[int]:
        """Processes of the deployment by a word of their command, and by whose home they have."""
        home = f"FLWR_HOME={self.out}/deployment/home/{owner}".encode()
        pids = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if home in (entry / "environ").read_bytes():
                    command = (entry / "cmdline").read_bytes().split(b"\0")[:2]
                    if command != [b""] and any(what.encode() in word for word in command):
                        pids.append(int(entry.name))
            except OSError:
                continue
        return pids

    def jobs_begun(self, node: int) -> int:
        """How often a node has begun to train or to judge."""
        file = self.out / "nodes" / f"node-{node}-of-{NODES}" / "at-work"
        return file.read_text().count("\n") if file.exists() else 0

    def kill(self, what: str, owner: str = "") -> None:
        """The youngest of these: a ClientApp of the round before may still be leaving."""
        os.kill(max(self.found(what, owner)), signal.SIGKILL)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        NODES, rounds=ROUNDS, steps_per_round=5, learning_rate=0.02, seed=3, folder=str(tmp_path / "out")
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Deployment]]:
    """Starts deployments in one folder, and ends what is left of them."""
    begun: list[Deployment] = []

    def call(*arguments: str, **options: float) -> Deployment:
        begun.append(Deployment(tmp_path / "out", *arguments, **options))  # type: ignore[arg-type]
        return begun[-1]

    yield call
    for deployment in begun:
        if deployment.process.poll() is None:
            deployment.process.terminate()
            deployment.ended(30)


def test_processes_with_tls_and_known_nodes_reach_what_one_program_reaches(
    start: Callable[..., Deployment], settings: Settings
) -> None:
    deployment = start()
    keys, secret = Path(settings.folder, "deployment", "keys"), set[str]()
    deployment.wait_for(lambda: "SuperLink on 127.0.0.1:" in deployment.said)
    files = list(keys.iterdir())
    assert len(files) == 3 + 3 * NODES
    assert keys.stat().st_mode & 0o777 == 0o700 and {f.stat().st_mode & 0o777 for f in files} == {0o600}
    for file in files:
        if "PRIVATE" in (text := file.read_text()):
            secret |= {line for line in text.splitlines() if len(line) > 40 and "PRIVATE" not in line}
    assert len(secret) >= 2 * NODES + 1

    port = int(re.search(r"127\.0\.0\.1:(\d+)", deployment.said)[1])  # type: ignore[index]
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    where = {at for _, at, _, state, *_ in sockets if state == "0A" and at.endswith(f":{port:04X}")}
    assert where == {f"0100007F:{port:04X}"}
    with socket.create_connection(("127.0.0.1", port), 5) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        plain.settimeout(5)
        assert b"HTTP" not in plain.recv(100)  # it speaks TLS or not at all
    with pytest.raises(DefianceError, match="in use by another deployment"), locked(keys.parent):
        pass

    assert deployment.ended() == 0, deployment.said
    equals_in_process(settings)
    assert "round 2 of 2: 3 of 3 nodes" in deployment.said and "is left out: " not in deployment.said
    assert not keys.exists()
    logs = list(Path(settings.folder, "deployment", "logs").iterdir())
    assert {log.name for log in logs} == {"superlink.log", *(f"node-{n}.log" for n in range(NODES))}
    for log in logs:
        text = log.read_text()
        assert log.stat().st_mode & 0o777 == 0o600 and not any(line in text for line in secret)
        assert "--token" not in text


# --- what a kill -9 costs ---


def without(present: list[list[int]], settings: Settings) -> tuple[dict[str, Tensor], float]:
    """The best weights when only these nodes' updates count, round by round; the last entry only judges."""
    progress = Progress.begin(tiny_federated.initial(settings.seed, Path()))
    memories = [Memory.empty(training_stream(settings.seed))] * NODES
    data = [tiny_federated.local(Place(n, NODES, settings.seed, Path())) for n in range(NODES)]
    for round_, there in enumerate(present, start=1):
        weights = progress.parameters
        progress = progress.judged([float(data[n].validate(weights)) for n in there])
        if round_ == len(present):
            return progress.best, progress.best_loss
        updates = []
        for n in there:
            update, memories[n] = train_round(weights, memories[n], data[n], settings.schedule, round_)
            updates.append(update)
        progress = progress.averaged(updates, [data[n].samples for n in there], Mean())
    raise AssertionError


def equals(settings: Settings, expected: dict[str, Tensor]) -> None:
    found = load_file(Path(settings.folder, server.MODEL))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6)


@pytest.mark.deploy
def test_a_supernode_killed_before_the_first_round(
    start: Callable[..., Deployment], settings: Settings
) -> None:
    deployment = start()
    deployment.wait_for(lambda: bool(deployment.found("flower-supernode", "node-1")))
    deployment.kill("flower-supernode", "node-1")
    assert deployment.ended() == 0, deployment.said
    assert "SuperNode node-1 was killed (SIGKILL); going on without it" in deployment.said
    assert "2 of 3 SuperNodes are online" in deployment.said
    equals(settings, without([[0, 2]] * (ROUNDS + 1), settings)[0])


@pytest.mark.deploy
@pytest.mark.parametrize("what", ["flower-supernode", "flower-superexec", "flwr-clientapp"])
def test_a_node_killed_during_a_round(
    what: str, start: Callable[..., Deployment], settings: Settings
) -> None:
    """Its SuperNode or SuperExec: it is gone for good. Its ClientApp: for this round."""
    deployment = start("--round-timeout", "100", pause_s=3.0)
    deployment.wait_for(lambda: deployment.jobs_begun(1) >= 2)
    deployment.kill(what, "node-1")
    assert deployment.ended() == 0, deployment.said
    assert "round 2 of 2: node-1 is left out: " in deployment.said
    back = [0, 1, 2] if what == "flwr-clientapp" else [0, 2]
    equals(settings, without([[0, 1, 2], [0, 2], back], settings)[0])
    if what != "flwr-clientapp":
        assert re.search(r"SuperNode node-1 .*; going on without it", deployment.said)


@pytest.mark.deploy
@pytest.mark.parametrize("what", ["flower-superlink", "flower-superexec", "flwr-serverapp", "defiance"])
def test_the_server_killed_during_a_round_resumes_to_the_same_result(
    what: str, start: Callable[..., Deployment], settings: Settings
) -> None:
    """SuperLink, its SuperExec, the ServerApp, and our own process."""
    deployment = start(pause_s=3.0)
    deployment.wait_for(lambda: deployment.jobs_begun(0) >= 2)
    if what == "defiance":
        deployment.process.kill()
        assert deployment.ended() == -signal.SIGKILL
    else:
        deployment.kill(what, "superlink")
        assert deployment.ended() == 2, deployment.said
        assert deployment.lines[-1].startswith("defiance: the S") and "--resume" in deployment.lines[-1]
    assert Training.read(Path(settings.folder, server.CHECKPOINT), settings).progress.round == 1
    again = start("--resume")
    assert again.ended() == 0, again.said
    assert "going on after round 1 of 2" in again.said and "lost what it remembers" not in again.said
    equals_in_process(settings)


@pytest.mark.deploy
def test_ctrl_c_ends_all_and_the_rounds_are_kept(
    start: Callable[..., Deployment], settings: Settings
) -> None:
    deployment = start(pause_s=3.0)
    deployment.wait_for(lambda: "round 1 of 2: 3 of 3" in deployment.said)
    deployment.process.send_signal(signal.SIGINT)
    assert deployment.ended(30) == 130
    assert deployment.lines[-1] == "defiance: interrupted; finished rounds are kept, go on with --resume"
    assert Training.read(Path(settings.folder, server.CHECKPOINT), settings).progress.round == 1


@pytest.mark.deploy
def test_a_users_own_superlink_runs_the_same_app(tmp_path: Path, settings: Settings) -> None:
    """Started by hand, as its guide says: TLS, and nodes with numbers."""
    from defiance.learn.flower.processes import free_port

    keys, port = make_keys(tmp_path / "keys", NODES, "127.0.0.1"), free_port("127.0.0.1")
    tls = ["--ssl-ca-certfile", str(keys.authority), "--ssl-certfile", str(keys.superlink[0])]
    tls += ["--ssl-keyfile", str(keys.superlink[1])]
    with Processes(tmp_path / "logs", ENVIRONMENT) as processes:

        def begin(name: str, *command: str) -> None:
            processes.start(name, list(command), {"FLWR_HOME": str(tmp_path / "home" / name)})

        begin("superlink", "flower-superlink", "--port", str(port), *tls)
        superlink, end_s = SuperLink(f"127.0.0.1:{port}", keys.authority), time.monotonic() + 180
        while True:
            try:
                superlink.knock()
                break
            except DefianceError:
                assert time.monotonic() < end_s
                time.sleep(0.2)
        for node in range(NODES):
            given = f'partition-id={node} num-partitions={NODES} folder="{tmp_path}/node-{node}"'
            command = ["flower-supernode", "--superlink", superlink.address, "--node-config", given]
            command += ["--root-certificates", str(keys.authority), "--port", str(free_port("127.0.0.1"))]
            begin(f"node-{node}", *command)
        deployment = Deployment(
            tmp_path / "out", "--superlink", superlink.address, "--root-certificates", str(keys.authority)
        )
        assert deployment.ended() == 0, deployment.said
    equals_in_process(settings)


@pytest.mark.deploy
def test_a_supernode_that_nobody_knows_is_turned_away(tmp_path: Path) -> None:
    from defiance.learn.flower.deploy import start_superlink, start_supernode

    keys, place = make_keys(tmp_path / "keys", 1, "127.0.0.1"), Place(0, 1, 0, tmp_path / "node")
    with Processes(tmp_path / "logs", {}) as processes:
        superlink = start_superlink(processes, keys, tmp_path, 0)
        start_supernode(processes, keys, tmp_path, superlink, place)
        end_s = time.monotonic() + 180
        while processes.ended("node-0") is None:
            assert time.monotonic() < end_s
            time.sleep(0.1)
        said = (processes.logs / "node-0.log").read_text()
    assert "SuperNode ID" not in said and "Receiving" not in said


# --- at the border ---


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs `defiance fl ...`, which says in one line what is wrong."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            cli.main(["fl", *arguments])
        _, err = capsys.readouterr()
        assert end.value.code == 2 and err.startswith("defiance: ") and err.count("\n") == 1, err
        return err

    return call


def test_a_port_in_use(refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}: Address already in use" in refused("deploy", *TINY, "--port", str(port))


def test_a_superlink_that_is_not_there_or_another(refused: Refused, tmp_path: Path) -> None:
    mine, other = (make_keys(tmp_path / which, 0, "127.0.0.1") for which in ("mine", "other"))

    def connect(address: str, certificates: Path = mine.authority) -> str:
        return refused("deploy", *TINY, "--superlink", address, "--root-certificates", str(certificates))

    assert "write it as HOST:PORT" in connect("nowhere")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        free = silent.getsockname()[1]
    assert "cannot be reached" in connect(f"127.0.0.1:{free}")
    (tmp_path / "no.pem").write_text("not a certificate")
    assert "no PEM certificates" in connect("127.0.0.1:9", tmp_path / "no.pem")
    assert "no PEM certificates" in connect("127.0.0.1:9", tmp_path / "missing.pem")

    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*other.superlink)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            with pytest.raises(ssl.SSLError):
                context.wrap_socket(plain, server_side=True).close()
            plain.close()

        thread = threading.Thread(target=serve)
        thread.start()
        assert "its certificate is not one of" in connect(f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            plain, _ = listener.accept()
            plain.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            plain.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert "it does not speak TLS" in connect(f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


def test_options_that_do_not_fit(refused: Refused, tmp_path: Path) -> None:
    assert "there are only 3 nodes" in refused("deploy", *TINY, "--least", "4")
    assert "krum:1 needs 5 updates a round; there are 3" in refused(
        "deploy", *TINY, "--aggregation", "krum:1"
    )
    assert "take mean, median, trimmed" in refused("simulate", *TINY, "--aggregation", "mode")
    assert "needs --root-certificates" in refused("deploy", *TINY, "--superlink", "127.0.0.1:9")
    assert "are for a --superlink" in refused("deploy", *TINY, "--server-folder", "there")
    assert "give a file and the name in it" in refused("simulate", "--app", "missing.py:WORK")
    assert "give a file and the name in it" in refused("simulate", "--app", str(tiny_federated.__file__))
    assert "not a defiance.learn" in refused("simulate", "--app", f"{tiny_federated.__file__}:FEATURES")


def test_without_flower_it_says_what_to_install(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("defiance.learn.flower")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flwr.app", None)
    assert "pip install 'defiance-ran[flower]'" in refused("simulate", *TINY)
    assert "pip install 'defiance-ran[flower]'" in refused("deploy", *TINY)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["fl", "deploy", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for word in ("--resume", "--superlink", "127.0.0.1", "partition-id=0 num-partitions=3"):
        assert word in said


def test_the_app_is_one_that_flower_takes(tmp_path: Path, settings: Settings) -> None:
    from flwr.cli.config_utils import load_and_validate

    folder = write_app(tmp_path / "app", "defiance.studies.worth.federated:WORK", settings)
    found, warnings = load_and_validate(folder / "pyproject.toml", check_module=False)
    assert not warnings and found["tool"]["flwr"]["app"]["config"]["rounds"] == ROUNDS
    assert "from defiance.studies.worth.federated import WORK" in (folder / "federated_app.py").read_text()


def test_processes_end_with_their_context_and_what_they_started(tmp_path: Path) -> None:
    deaf = (
        "import signal, subprocess, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "subprocess.Popen(['sleep', '99'], start_new_session=True); time.sleep(99)"
    )
    with pytest.raises(ZeroDivisionError), Processes(tmp_path, {}) as processes:
        processes.start("deaf", [sys.executable, "-c", deaf], {})
        end_s = time.monotonic() + 20
        while len(list(processes.descendants())) < 2:
            assert time.monotonic() < end_s
            time.sleep(0.05)
        assert processes.ended("deaf") is None
        raise ZeroDivisionError
    assert not list(processes.descendants())
    assert processes.ended("deaf") == "was killed (SIGKILL)"


def test_a_process_that_can_not_be_started(tmp_path: Path) -> None:
    with Processes(tmp_path, {}) as processes:
        with pytest.raises(DefianceError, match="no-such-program cannot be started"):
            processes.start("gone", ["no-such-program"], {})
        processes.start("brief", [sys.executable, "-c", "print('farewell'); raise SystemExit(3)"], {})
        while processes.ended("brief") is None:
            time.sleep(0.02)
        assert processes.ended("brief") == f"ended with status 3 (farewell; see {tmp_path}/brief.log)"


def test_a_guard_ends_them_when_we_are_killed(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time; from defiance.learn.flower.processes import Processes\n"
        "with Processes(pathlib.Path(sys.argv[1]), {}) as processes:\n"
        "    processes.start('child', ['sh', '-c', 'sleep 99 & sleep 99'], {})\n"
        "    print(processes.mark, flush=True); time.sleep(99)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ours:
        assert ours.stdout is not None
        mark = ours.stdout.readline().strip()
        while len(list(guard.marked(mark))) < 3:
            time.sleep(0.05)
        ours.kill()
    end_s = time.monotonic() + 10
    while list(guard.marked(mark)):
        assert time.monotonic() < end_s
        time.sleep(0.05)
