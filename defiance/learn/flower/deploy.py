"""The Flower app as processes: a SuperLink and SuperNodes on this machine, or a user's own SuperLink.

this process ──┬── SuperLink ── SuperExec ── ServerApp                127.0.0.1, TLS
               ├── SuperNode 0 ── SuperExec ── ClientApp, each round    known by its key
               └── ...
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import defiance
from defiance import config as configuration
from defiance.errors import DefianceError
from defiance.learn.flower.app import ENVIRONMENT, prepared
from defiance.learn.flower.control import SuperLink
from defiance.learn.flower.keys import Keys, make_keys
from defiance.learn.flower.processes import Processes, free_port
from defiance.learn.flower.server import Settings
from defiance.learn.updates import Deployable, Place

HOST = "127.0.0.1"
START_S = 180.0
"""How long a SuperLink may take to answer."""

GRACE_S = 3.0
"""How long the others have to say that all is over once a SuperExec or the ServerApp is gone."""

SERVER_APP = "ServerApp"

APP = "federated_app"
Tell = Callable[[str], None]


def write_app(folder: Path, source: str, settings: Settings) -> Path:
    """Writes a Flower app, as `flwr run` takes it, too.

    Args:
        folder: replaced.
        source: FILE.py:NAME, whose file goes along to server and nodes, or MODULE:NAME.
        settings: its run config.
    """
    module, _, name = source.rpartition(":")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    if module.endswith(".py"):
        shutil.copyfile(module, folder / Path(module).name)
        module = Path(module).stem
    (folder / f"{APP}.py").write_text(
        f'"""A training of DEFIANCE on Flower."""\n\nfrom {module} import {name}\n\n'
        f"from defiance.learn.flower.app import apps\n\nserver, client = apps({name})\n"
    )
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "defiance-federated"\nversion = "{defiance.__version__}"\n'
        'description = "A training of DEFIANCE on Flower"\nlicense = "Apache-2.0"\n'
        'dependencies = ["defiance-ran[flower]"]\n\n'
        '[tool.flwr.app]\npublisher = "defiance"\n\n'
        f'[tool.flwr.app.components]\nserverapp = "{APP}:server"\nclientapp = "{APP}:client"\n\n'
        f"[tool.flwr.app.config]\n{configuration.to_toml(settings)}"
    )
    return folder


def submit(superlink: SuperLink, source: str, settings: Settings, folder: Path, tell: Tell) -> None:
    """Runs the app on a SuperLink that is there, with the SuperNodes that it has.

    Raises:
        DefianceError: it can't be reached, its certificate is another's, or the run fails.
    """
    superlink.knock()
    app = write_app(folder / "app", source, settings)
    run = superlink.start(app)
    tell(f"run {run} on {superlink.address}; its {settings.nodes} SuperNodes are to be started with")
    tell(f"  --node-config 'partition-id=K num-partitions={settings.nodes}'")
    superlink.follow(run, tell, lambda: None)


def deploy(work: Deployable, source: str, settings: Settings, folder: Path, port: int, tell: Tell) -> None:
    """Runs the app on a SuperLink and SuperNodes of our own, which end with us.

    Args:
        work: what is trained.
        source: where it is found by others; see `write_app`.
        settings: of the run.
        folder: for keys, logs and the app.
        port: of the SuperLink; 0: a free one.
        tell: called with lines for the user.

    Raises:
        DefianceError: a port is taken, the SuperLink or the ServerApp ended, or the run failed.
    """
    with locked(folder):
        tell("making the nodes' data, unless it is there")
        places = prepared(work, settings)
        app = write_app(folder / "app", source, settings)
        with (
            made_keys(folder / "keys", settings.nodes) as keys,
            Processes(folder / "logs", environment(settings.nodes)) as processes,
        ):
            superlink = start_superlink(processes, keys, folder, port)
            tell(f"SuperLink on {superlink.address}, TLS, authenticated nodes; logs in {processes.logs}")
            nodes = {place.node: superlink.register(keys.public[place.node], name(place)) for place in places}
            for place in places:
                start_supernode(processes, keys, folder, superlink, place)
            run = superlink.start(app)
            watch = Watch(processes, superlink, {name(p): nodes[p.node] for p in places}, tell)
            superlink.follow(run, tell, watch.check)


def name(place: Place) -> str:
    """What a node of ours is called."""
    return f"node-{place.node}"


def environment(nodes: int) -> dict[str, str]:
    """Of all processes: they share the cores."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // nodes))
    return {**ENVIRONMENT, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2", "OMP_NUM_THREADS": threads}


@contextmanager
def made_keys(folder: Path, nodes: int) -> Iterator[Keys]:
    """Keys that are worth nothing afterwards, and gone."""
    try:
        yield make_keys(folder, nodes, HOST)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder is one deployment's at a time.

    Raises:
        DefianceError: it is another's, or can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise DefianceError(f"{folder}: cannot be written to: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DefianceError(f"{folder} is in use by another deployment; give another --out") from error
        yield


def start_superlink(processes: Processes, keys: Keys, folder: Path, port: int) -> SuperLink:
    """Starts it and waits until it answers.

    Raises:
        DefianceError: its port is taken, it ends at once, or says nothing.
    """
    certificate, key = map(str, keys.superlink)
    port = free_port(HOST, port)
    tls = ["--ssl-ca-certfile", str(keys.authority), "--ssl-certfile", certificate, "--ssl-keyfile", key]
    command = ["flower-superlink", "--host", HOST, "--port", str(port), *tls, "--enable-supernode-auth"]
    superlink, end_s = SuperLink(f"{HOST}:{port}", keys.authority), time.monotonic() + START_S
    processes.start("superlink", command, {"FLWR_HOME": str(folder / "home" / "superlink")})
    while True:
        ended = processes.ended("superlink")
        if ended is not None:
            raise DefianceError(f"the SuperLink {ended}")
        try:
            superlink.knock()
            return superlink
        except DefianceError:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.1)


def start_supernode(
    processes: Processes, keys: Keys, folder: Path, superlink: SuperLink, place: Place
) -> None:
    """Starts one; it finds the SuperLink by itself."""
    certificate, key = map(str, keys.supernodes[place.node])
    where = str(place.folder)
    if set("'\"\\") & set(where):
        raise DefianceError(f"{where}: Flower can't take quotes or backslashes in a folder's name")
    given = f'partition-id={place.node} num-partitions={place.nodes} folder="{where}"'
    command = ["flower-supernode", "--superlink", superlink.address]
    command += ["--root-certificates", str(keys.authority)]
    command += ["--auth-supernode-private-key", str(keys.private[place.node]), "--node-config", given]
    command += ["--host", HOST, "--port", str(free_port(HOST)), "--ssl-ca-certfile", str(keys.authority)]
    command += ["--ssl-certfile", certificate, "--ssl-keyfile", key]
    processes.start(name(place), command, {"FLWR_HOME": str(folder / "home" / name(place))})


@dataclass
class Watch:
    """Looks after the processes of a run.

    Attributes:
        nodes: ids of the SuperNodes that run, by name.
        seen: when SuperExecs, by who started them, and the ServerApp were last seen, monotonic seconds.
    """

    processes: Processes
    superlink: SuperLink
    nodes: dict[str, int]
    tell: Tell
    seen: dict[str, float] = field(default_factory=dict)

    def check(self) -> None:
        """Goes on without SuperNodes that ended.

        Raises:
            DefianceError: SuperLink or ServerApp ended, or all nodes.
        """
        now_s = time.monotonic()
        owners = {str(process.pid): owner for owner, process in self.processes.running.items()}
        for _, command in self.processes.descendants():
            if any(word.endswith("flwr-serverapp") for word in command[:2]):
                self.seen[SERVER_APP] = now_s
            elif any(word.endswith("flower-superexec") for word in command[:2]):
                parent = command[command.index("--parent-pid") + 1]
                self.seen[owners.get(parent, parent)] = now_s
        lost = {who for who, last_s in self.seen.items() if now_s - last_s > GRACE_S}
        why = self.processes.ended("superlink")
        if why is None and "superlink" in lost:
            why = "lost its SuperExec"
        if why is not None:
            raise DefianceError(f"the SuperLink {why}; finished rounds are kept, go on with --resume")
        for node in list(self.nodes):
            why = self.processes.ended(node)
            if why is None and node in lost:
                self.processes.running[node].kill()
                why = "lost its SuperExec and is ended"
            if why is not None:
                self.tell(f"SuperNode {node} {why}; going on without it")
                self.superlink.unregister(self.nodes.pop(node))
        if not self.nodes:
            raise DefianceError("no SuperNode is left; finished rounds are kept, go on with --resume")
        if SERVER_APP in lost:
            raise DefianceError("the ServerApp was killed; finished rounds are kept, go on with --resume")
