"""Where real recordings lie: they are never part of the package, and what is absent is skipped."""

from __future__ import annotations

import os
from pathlib import Path

import defiance


def data_folder() -> Path:
    """Return where real recordings lie: `DEFIANCE_DATA`, else `../shared/data` beside the repository."""
    beside = Path(defiance.__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("DEFIANCE_DATA", beside))
