"""A SuperLink, ours or a user's, through its Control API over TLS: making nodes known, starting runs."""

from __future__ import annotations

import hashlib
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import Status, SubStatus
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StreamLogsRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from defiance.errors import DefianceError
from defiance.learn.flower.server import SAY

POLL_S = 0.5
CONNECT_S = 5.0


@dataclass(frozen=True)
class SuperLink:
    """Where a SuperLink is, and by what it is known.

    Attributes:
        address: HOST:PORT.
        root_certificates: PEM file that its certificate must be signed by.
    """

    address: str
    root_certificates: Path

    def knock(self) -> None:
        """Makes a TLS connection and closes it.

        Raises:
            DefianceError: the address or the file isn't one, nobody answers, or somebody else.
        """
        host, colon, port = self.address.rpartition(":")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise DefianceError(f"--superlink {self.address}: write it as HOST:PORT")
        try:
            context = ssl.create_default_context(cafile=str(self.root_certificates))
        except (OSError, ssl.SSLError) as error:
            raise DefianceError(f"{self.root_certificates}: no PEM certificates: {error}") from error
        host = host.strip("[]")
        try:
            with (
                socket.create_connection((host, int(port)), CONNECT_S) as plain,
                context.wrap_socket(plain, server_hostname=host),
            ):
                pass
        except ssl.SSLCertVerificationError as error:
            raise DefianceError(
                f"SuperLink {self.address}: its certificate is not one of {self.root_certificates}: "
                f"{error.verify_message}"
            ) from error
        except ssl.SSLError as error:
            raise DefianceError(f"SuperLink {self.address}: it does not speak TLS: {error.reason}") from error
        except OSError as error:
            raise DefianceError(f"SuperLink {self.address}: cannot be reached: {error}") from error

    @contextmanager
    def client(self) -> Iterator[ControlHttpClient]:
        """A client of its Control API.

        Raises:
            DefianceError: what went wrong with a request.
        """
        client = ControlHttpClient.from_server_address(
            server_address=self.address,
            insecure=False,
            root_certificates=self.root_certificates.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )
        try:
            yield client
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            hint = "; it wants a login, use `flwr login` and `flwr run`" if status in (401, 403) else ""
            said = " ".join(error.response.text.split())[:200]
            raise DefianceError(f"SuperLink {self.address} refuses: HTTP {status} {said}{hint}") from error
        except (httpx.HTTPError, ValueError) as error:
            raise DefianceError(f"SuperLink {self.address}: {error}") from error
        finally:
            client.close()

    def register(self, public_key: bytes, name: str) -> int:
        """Makes a SuperNode known by its key; its id."""
        with self.client() as client:
            return int(client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name)).node_id)

    def unregister(self, node: int) -> None:
        """Forgets a SuperNode: whoever waits for it hears that it is gone."""
        with self.client() as client:
            client.UnregisterNode(UnregisterNodeRequest(node_id=node))

    def start(self, app: Path) -> int:
        """Sends an app's files and starts it; the run's id."""
        files = {path.name: path.read_bytes() for path in sorted(app.iterdir())}
        try:
            fab, _ = build_fab_from_files(files)
        except ValueError as error:
            raise DefianceError(f"{app}: {' '.join(str(error).split())}") from error
        bundle = fab_to_proto(Fab(hashlib.sha256(fab).hexdigest(), fab, {}))
        with self.client() as client:
            run = client.StartRun(StartRunRequest(fab=bundle))
        if not run.HasField("run_id"):
            raise DefianceError(f"SuperLink {self.address}: it did not start the run")
        return int(run.run_id)

    def follow(self, run: int, tell: Callable[[str], None], check: Callable[[], None]) -> None:
        """Tells the ServerApp's lines until the run has ended.

        Args:
            run: its id.
            tell: called with each line for the user.
            check: called now and then; it raises when waiting is in vain.

        Raises:
            DefianceError: the run failed or was stopped, or the SuperLink is gone.
        """
        lines: queue.Queue[str] = queue.Queue()
        stream = threading.Thread(target=self._stream, args=(run, lines), daemon=True)
        stream.start()
        failed = ""

        def pass_on() -> None:
            nonlocal failed
            while not lines.empty():
                line = lines.get()
                if line.startswith("error: "):
                    failed = line.removeprefix("error: ")
                else:
                    tell(line)

        with self.client() as client:
            while True:
                check()
                pass_on()
                try:
                    found = client.ListRuns(ListRunsRequest(run_id=run)).run_dict[run].status
                except httpx.HTTPError:
                    check()  # which may know why
                    raise
                if found.status == Status.FINISHED:
                    break
                time.sleep(POLL_S)
        stream.join(CONNECT_S)
        pass_on()
        if found.sub_status != SubStatus.COMPLETED:
            details = " ".join(found.details.split())[:300]
            raise DefianceError(failed or f"the run ended as {found.sub_status}: {details}")

    def _stream(self, run: int, lines: queue.Queue[str]) -> None:
        """Puts what the ServerApp says to the user, line by line; the SuperLink ends the stream."""
        rest = ""
        try:
            with self.client() as client:
                for part in client.StreamLogs(StreamLogsRequest(run_id=run, after_timestamp=0.0)):
                    *whole, rest = (rest + part.log_output).split("\n")
                    for line in whole:
                        if line.startswith(SAY):
                            lines.put(line.removeprefix(SAY))
        except DefianceError:
            return  # whoever polls hears of it
