"""Arrays from .npz files that others wrote: of the right kind and a bearable size, or one clear error."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from defiance.errors import DefianceError

MAX_FILE_BYTES = 2**30  # unpacked; a scene of 57 cells and 2 km at 4 m is 30 MB

Arrays = Mapping[str, NDArray[Any]]
T = TypeVar("T")


def read(path: Path, what: str, build: Callable[[Arrays], T]) -> T:
    """Build something from the arrays of a file.

    Args:
        path: the file.
        what: it should be, for messages: "scene".
        build: makes it, and raises `DefianceError` where an array is wrong.

    Raises:
        DefianceError: the file can't be read, unpacks to too much, or `build` refuses it; its name is first.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_FILE_BYTES:
                raise DefianceError(f"it unpacks to more than {MAX_FILE_BYTES >> 20} MiB")
        with np.load(path, allow_pickle=False) as arrays:
            return build(arrays)
    except DefianceError as error:
        raise DefianceError(f"{path}: not a valid {what}: {error}") from error
    # zipfile, zlib and NumPy's header parser raise a dozen kinds of errors on a damaged file.
    except Exception as error:
        raise DefianceError(
            f"{path}: not a readable {what} file ({type(error).__name__}: {error})"
        ) from error


def array(arrays: Arrays, key: str, kind: str) -> NDArray[Any]:
    """An array of a kind that NumPy gives a letter ("f", "i", "u", "b", "U").

    Raises:
        DefianceError: it is missing, or of another kind.
    """
    if key not in arrays:
        raise DefianceError(f"{key} is missing")
    found = arrays[key]
    if found.dtype.kind != kind:
        raise DefianceError(f"{key} is {found.dtype}, which is the wrong kind of number")
    return found


def text(arrays: Arrays, key: str) -> str:
    """A string; see `array`."""
    return str(array(arrays, key, "U"))
