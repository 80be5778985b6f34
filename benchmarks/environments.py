"""Virtual environments of the peers: `.venv-peers/NAME`, made from `benchmarks/peers/NAME.txt`.

A file names every package of its environment with its version. Packages are installed without what they ask
for themselves, because spikingjelly alone asks for two that need gigabytes of CUDA and that it runs without.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

from defiance.errors import DefianceError
from defiance.parts import write_atomically

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / ".venv-peers"
INSTALLING_S = 1800


def environment(peer: str) -> Path:
    """Return the Python of a peer's environment, which is made if it isn't there or not as its file says.

    Raises:
        DefianceError: it can't be made.
    """
    requirements = REPOSITORY / "benchmarks" / "peers" / f"{peer}.txt"
    folder = FOLDER / peer
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    base = str(Path(sys.executable).resolve())  # .venv has no pip of its own
    print(f"bench: installing {peer} into {folder}", file=sys.stderr)
    install = [base, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    for command in (
        [base, "-m", "venv", "--clear", "--without-pip", str(folder)],
        [*install, "--requirement", str(requirements)],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALLING_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DefianceError(f"{peer}: `{' '.join(command)}` failed: {error}") from error
        if done.returncode:
            raise DefianceError(f"{peer}: `{' '.join(command)}` failed: {last_line(done.stderr)}")
    write_atomically(stamp, wanted)
    return python


def last_line(text: str) -> str:
    """The last line of a program's messages that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
