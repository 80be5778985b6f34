"""Processes that end with us, whatever becomes of them or us, and what they say in log files."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from defiance.errors import DefianceError
from defiance.learn.flower import guard

PATIENCE_S = 2.0
"""How long processes may take to end when asked."""


class Processes:
    """Named processes; leaving the context ends them and all that they started.

    A guard, a process of its own, does the same when this one is killed.
    """

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.logs, token = logs, secrets.token_hex(8)
        self.mark = f"DEFIANCE_DEPLOYMENT={token}"
        # Flower's processes start each other by name
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
        self.environment = {**os.environ, **environment, "PATH": path, "DEFIANCE_DEPLOYMENT": token}
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Processes:
        self.guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, self.mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.running.values():
            process.terminate()
        end_s = time.monotonic() + PATIENCE_S
        for process in self.running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end_s - time.monotonic()))
            process.kill()
            process.wait()
        guard.end(self.mark)
        self.guard.communicate()  # its input ends, and it finds nobody

    def start(self, name: str, command: list[str], environment: Mapping[str, str]) -> None:
        """Starts one; what it says goes to NAME.log.

        Raises:
            DefianceError: it can't be started.
        """
        log = os.open(self.logs / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            self.running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.environment, **environment},
                start_new_session=True,  # Ctrl-C at a terminal is ours to pass on
            )
        except OSError as error:
            raise DefianceError(f"{command[0]} cannot be started: {error.strerror or error}") from error
        finally:
            os.close(log)

    def ended(self, name: str) -> str | None:
        """How a process ended, or None while it runs."""
        status = self.running[name].poll()
        if status is None:
            return None
        if status < 0:
            return f"was killed ({signal.Signals(-status).name})"
        return f"ended with status {status} ({self.last_words(name)})"

    def last_words(self, name: str) -> str:
        """The end of what it said."""
        text = (self.logs / f"{name}.log").read_text(errors="replace").strip()
        words = text.splitlines()[-1] if text else "it said nothing"
        return f"{words.strip()[:200]}; see {self.logs / name}.log"

    def descendants(self) -> Iterator[tuple[int, list[str]]]:
        """Processes that belong to us, however they came about (Linux): their ids and commands."""
        return guard.marked(self.mark)


def free_port(host: str, wanted: int = 0) -> int:
    """A port that nobody listens on now: the wanted one, or any.

    Raises:
        DefianceError: the wanted one can't be had.
    """
    try:
        with socket.create_server((host, wanted)) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise DefianceError(f"port {wanted}: {error.strerror}; give another one, or none") from error
