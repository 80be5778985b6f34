"""Finished parts of a run on disk, so that an interrupted run goes on where it stopped.

A part is written to a temporary file in its folder, forced to the disk and renamed into place, and it carries
a checksum: whatever happens to the process or the machine, a part is read back whole or not at all.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from defiance.errors import DefianceError

if TYPE_CHECKING:  # torch takes seconds to import, and the command line needs this module for small files too
    from torch import Tensor


@dataclass(frozen=True)
class Parts:
    """The parts of one run: small dictionaries and tensors under keys such as `a3/none/munich/seed3`.

    A run is known by its fingerprint. Parts of another run lie in another folder and are never read.
    """

    folder: Path

    @classmethod
    def open(cls, folder: Path, fingerprint: str) -> "Parts":
        """The parts of the run `fingerprint` below `folder`, which is made if need be.

        Raises:
            DefianceError: the folder can't be written to.
        """
        parts = cls(folder / fingerprint[:16])
        write_atomically(parts.folder / "fingerprint", fingerprint)
        return parts

    def __len__(self) -> int:
        """How many parts are finished."""
        return sum(path.suffix in (".json", ".safetensors") for path in self.folder.iterdir())

    def keys(self, prefix: str) -> list[str]:
        """Keys of the finished dictionaries that begin so, in order."""
        names = (path.name for path in self.folder.glob("*.json"))
        keys = (unquote(name.removesuffix(".json")) for name in names)
        return sorted(key for key in keys if key.startswith(prefix))

    def get(self, key: str) -> dict[str, Any] | None:
        """The dictionary of a finished part (tuples come back as lists), or None if there is none."""
        try:
            checksum, _, text = self._path(key, ".json").read_bytes().partition(b"\n")
            if checksum.decode() != _checksum(text):
                return None
            value: dict[str, Any] = json.loads(text)
            return value
        except (OSError, ValueError):
            return None

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Keeps a dictionary of plain values.

        Raises:
            DefianceError: the folder can't be written to.
        """
        text = json.dumps(dict(value)).encode()
        write_atomically(self._path(key, ".json"), f"{_checksum(text)}\n".encode() + text)

    def get_tensors(self, key: str) -> "dict[str, Tensor] | None":
        """The tensors of a finished part, on the CPU, or None if there is none."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            checksum, _, payload = self._path(key, ".safetensors").read_bytes().partition(b"\n")
            return load(payload) if checksum.decode() == _checksum(payload) else None
        except (OSError, ValueError, SafetensorError):
            return None

    def put_tensors(self, key: str, tensors: "Mapping[str, Tensor]") -> None:
        """Keeps named tensors (safetensors, after a line with their checksum).

        Raises:
            DefianceError: the folder can't be written to.
        """
        from safetensors.torch import save

        payload = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
        write_atomically(self._path(key, ".safetensors"), f"{_checksum(payload)}\n".encode() + payload)

    def drop_tensors(self, prefix: str) -> None:
        """Forgets the tensors of all keys that begin so: what was only kept on the way takes room."""
        for path in self.folder.glob(f"{quote(prefix, safe='')}*.safetensors"):
            path.unlink(missing_ok=True)

    def _path(self, key: str, suffix: str) -> Path:
        return self.folder / (quote(key, safe="") + suffix)


def read_at_most(path: Path, most_bytes: int) -> bytes:
    """A file from outside, unless it is larger than that; a pipe as far as that.

    Raises:
        DefianceError: it is, or it can't be read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(most_bytes + 1) if size <= most_bytes else b""
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise DefianceError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if max(size, len(content)) > most_bytes:
        raise DefianceError(f"{path}: more than {most_bytes} bytes; larger files are not read")
    return content


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes a file so that a reader finds the old content or the new one, never a part; makes its folder.

    Raises:
        DefianceError: the folder is full or can't be written to; the old content is still there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise DefianceError(
            f"{path.parent}: cannot write {path.name}: {error.strerror or error};"
            " make room or choose another folder"
        ) from error


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
