"""The examples of the documentation run as they stand there."""

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def examples(page: str) -> list[str]:
    """Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize(
    "page",
    [
        "beams.md",
        "csi.md",
        "federated.md",
        "learning.md",
        "links.md",
        "mumimo.md",
        "radio.md",
        "simulator.md",
    ],
)
def test_examples_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    found = examples(page)
    assert found
    for example in found:
        exec(compile(example, page, "exec"), names)
    assert "nan" not in capsys.readouterr().out
