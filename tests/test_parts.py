import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from defiance.errors import DefianceError
from defiance.parts import Parts, write_atomically

KEY = "learned-device/central/munich/seed3"
TENSORS = {"w": torch.arange(6.0).reshape(2, 3).T, "n": torch.tensor(7)}


def opened(folder: Path) -> Parts:
    return Parts.open(folder, "f" * 64)


def test_parts_come_back_in_a_new_process_and_only_to_their_own_run(tmp_path: Path) -> None:
    parts = opened(tmp_path)
    assert parts.get(KEY) is None and parts.get_tensors(KEY) is None and len(parts) == 0
    parts.put(KEY, {"outage": 0.25, "never": float("inf"), "list": (1, 2)})
    parts.put_tensors(KEY, TENSORS)
    again = opened(tmp_path)
    assert again.get(KEY) == {"outage": 0.25, "never": float("inf"), "list": [1, 2]}
    tensors = again.get_tensors(KEY)
    assert tensors is not None and all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert len(again) == 2
    assert Parts.open(tmp_path, "e" * 64).get(KEY) is None


def test_tensors_that_were_kept_on_the_way_are_forgotten(tmp_path: Path) -> None:
    parts = opened(tmp_path)
    for key in ("recorded/a", "recorded/b", "model"):
        parts.put_tensors(key, TENSORS)
    parts.drop_tensors("recorded/")
    assert parts.get_tensors("recorded/a") is None and parts.get_tensors("recorded/b") is None
    assert parts.get_tensors("model") is not None


def test_tensors_that_share_memory_are_kept_apart(tmp_path: Path) -> None:
    shared = torch.zeros(3, requires_grad=True)
    opened(tmp_path).put_tensors(KEY, {"a": shared, "b": shared})
    tensors = opened(tmp_path).get_tensors(KEY)
    assert tensors is not None and tensors["a"].data_ptr() != tensors["b"].data_ptr()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=st.lists(st.text(st.characters(codec="utf-8"), max_size=12), unique=True, min_size=2, max_size=4))
def test_any_key_has_a_place_of_its_own_inside_the_folder(keys: list[str], tmp_path: Path) -> None:
    parts = opened(tmp_path)
    for number, key in enumerate([*keys, "..", "../x", "/etc/x"]):
        parts.put(key, {"number": number})
    assert [parts.get(key) for key in keys] == [{"number": number} for number in range(len(keys))]
    assert list(tmp_path.iterdir()) == [parts.folder]


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_truncated_or_corrupt_part_is_absent(tmp_path: Path, suffix: str) -> None:
    parts = opened(tmp_path)
    parts.put(KEY, {"a": 1})
    parts.put_tensors(KEY, TENSORS)
    (path,) = parts.folder.glob("*" + suffix)
    whole = path.read_bytes()

    def read() -> Any:
        return parts.get(KEY) if suffix == ".json" else parts.get_tensors(KEY)

    assert read() is not None
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert read() is None
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert read() is None
    path.write_bytes(b"\xff\xfe")
    assert read() is None


WRITER = """
import sys
from pathlib import Path
from defiance.parts import Parts

parts, round = Parts.open(Path(sys.argv[1]), "f" * 64), 0
while True:
    round += 1
    parts.put("part", {"round": round, "values": [round] * 50_000})
"""


def test_a_killed_writer_leaves_a_whole_part_or_none(tmp_path: Path) -> None:
    for attempt in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
        parts = opened(tmp_path)
        deadline = time.monotonic() + 30
        before = parts.get("part")
        while parts.get("part") == before and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.003 * attempt)  # so that the kills fall on different moments of a write
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        part = parts.get("part")
        assert part is not None and part["values"] == [part["round"]] * 50_000


def test_a_full_disk_names_the_folder_and_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = opened(tmp_path)
    parts.put(KEY, {"a": 1})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, full)
            with pytest.raises(
                DefianceError, match=rf"{parts.folder}: cannot write .*No space left on device"
            ):
                parts.put(KEY, {"a": 2})
        assert parts.get(KEY) == {"a": 1}
        assert not list(parts.folder.glob("*.tmp")) and not list(parts.folder.glob(".*.tmp"))


def test_a_folder_that_cannot_be_made_or_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    with pytest.raises(DefianceError, match=str(file)):
        opened(file / "below")
    with pytest.raises(DefianceError, match="Is a directory"):
        (tmp_path / "taken").mkdir()
        write_atomically(tmp_path / "taken", "text")
    with pytest.raises(DefianceError, match="File name too long"):
        opened(tmp_path).put("k" * 300, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DefianceError, match="Permission denied"):
        opened(tmp_path)


def test_written_files_may_be_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_atomically(path, "häuser")
    assert path.read_bytes() == "häuser".encode()
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
