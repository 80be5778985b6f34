"""The jobs of a study on a Ray cluster (extra `ray`).

A job sees a folder of parts wherever it runs: the weights that the run has so far are sent along, and those
that it makes come back with its result. Nothing but the driver writes to the run's folder, and no folder is
shared. The package itself is sent, too, so that all machines compute with the same code.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import defiance
from defiance.errors import DefianceError
from defiance.parts import Parts, write_atomically

PATIENCE_S = 5.0
"""How long a cluster's head may take to answer at all."""

TRIES = 3
"""How often a job is begun whose worker process, here or elsewhere, or whose machine is lost."""

WEIGHTS = "*.safetensors"

SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""An empty frame of HTTP/2 settings: its length (3 bytes), its type, flags, stream."""


class WorkerLost(Exception):
    """The process of a job was killed `TRIES` times."""


@contextmanager
def cluster(address: str, parts: Parts) -> Iterator[Callable[..., Future[dict[str, Any]]]]:
    """Jobs on the cluster at `address`; what is submitted raises `WorkerLost` if it is lost too often.

    Args:
        address: of the head, HOST:PORT; `auto` is `RAY_ADDRESS`, or the cluster started on this machine.
        parts: of the run; weights that jobs make are written there.

    Raises:
        DefianceError: Ray isn't installed, no cluster answers at the address, or it breaks down.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else each worker warns of it
    os.environ.setdefault("RAY_task_oom_retries", str(TRIES - 1))  # else without end
    try:
        import ray
    except ModuleNotFoundError as error:
        raise DefianceError("--ray needs Ray; pip install 'defiance-ran[ray]'") from error
    head = _head(address)
    _knock(head)
    try:
        ray.init(
            address=head,
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"py_modules": [defiance]},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise DefianceError(f"--ray {head}: {_short(error)}") from error
    try:
        yield _Cluster(ray, parts).submit
    except ray.exceptions.RayError as error:
        raise DefianceError(
            f"--ray {head}: {type(error).__name__}: {_short(error)}; finished parts are kept; run the same "
            "command again"
        ) from error
    finally:
        ray.shutdown()


def _short(error: Exception) -> str:
    """The beginning of what Ray says, which fills a screen."""
    return " ".join(str(error).split())[:200].rstrip(".")


def _head(address: str) -> str:
    """Where the head is, `HOST:PORT`.

    Raises:
        DefianceError: `auto` finds none.
    """
    if address != "auto":
        return address
    if given := os.environ.get("RAY_ADDRESS"):
        return given
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return str(canonicalize_bootstrap_address_or_die("auto"))
    except ConnectionError as error:
        raise DefianceError(
            "--ray auto: no Ray cluster was started on this machine; start one with `ray start --head`, give "
            "its HOST:PORT, or leave --ray out"
        ) from error


def _knock(head: str) -> None:
    """Refuses an address where no head answers, which Ray itself would try for minutes.

    A server that speaks gRPC, as Ray's head does, greets with its settings (RFC 9113, clause 3.4).

    Raises:
        DefianceError: nobody or somebody else answers, or it isn't an address.
    """
    host, _, port = head.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise DefianceError(f"--ray {head}: give auto or HOST:PORT, such as 127.0.0.1:6379")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S) as line:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS)
                if line.recv(4)[3:] != SETTINGS[3:4]:
                    raise OSError("another program does")
    except OSError as error:
        raise DefianceError(
            f"--ray {head}: no Ray head answers there ({error.strerror or error}); start one with "
            f"`ray start --head --port {port}`, or leave --ray out"
        ) from error


class _Cluster:
    """Sends jobs, and each set of weights once."""

    def __init__(self, ray: Any, parts: Parts) -> None:
        self.ray, self.parts = ray, parts
        self.remote = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_afar)
        self.sent: tuple[list[str], Any] = ([], ray.put({}))

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[dict[str, Any]]:
        """Has a job done somewhere; its result is there once its weights are, too."""
        names = sorted(path.name for path in self.parts.folder.glob(WEIGHTS))
        if names != self.sent[0]:
            files = {name: (self.parts.folder / name).read_bytes() for name in names}
            self.sent = names, self.ray.put(files)
        found: Future[dict[str, Any]] = Future()
        lost = self.ray.exceptions
        killed = (lost.WorkerCrashedError, lost.NodeDiedError, lost.OutOfMemoryError)

        def take(reply: Future[Any]) -> None:
            try:
                result, made = reply.result()
                for name, content in made.items():
                    write_atomically(self.parts.folder / name, content)
                found.set_result(result)
            except killed:
                found.set_exception(WorkerLost())
            except BaseException as error:
                cause = getattr(error, "cause", None)
                found.set_exception(cause if isinstance(cause, Exception) else error)

        self.remote.remote(self.sent[1], function, arguments).future().add_done_callback(take)
        return found


def _afar(files: dict[str, bytes], function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Does a job in a worker process; its result, and the files of the weights that it made."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        parts = Parts(Path(folder))
        for name, content in files.items():
            (parts.folder / name).write_bytes(content)
        result = function(*(parts if isinstance(a, Parts) else a for a in arguments))
        made = {path.name: path.read_bytes() for path in parts.folder.glob(WEIGHTS) if path.name not in files}
    return result, made
