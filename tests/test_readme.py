"""The documents say what the committed sheets say."""

import importlib.util
import sys
from pathlib import Path

from defiance.kpm import Sheet

ROOT = Path(__file__).resolve().parent.parent


def test_the_documents_say_what_the_committed_sheets_say() -> None:
    spec = importlib.util.spec_from_file_location("refresh", ROOT / "docs" / "refresh.py")
    assert spec is not None and spec.loader is not None
    refresh = importlib.util.module_from_spec(spec)
    sys.modules["refresh"] = refresh  # dataclasses look their module up
    spec.loader.exec_module(refresh)
    assert len(refresh.PARTS) == 9
    for part in refresh.PARTS:
        document = (ROOT / part.document).read_text(encoding="utf-8")
        sheet = Sheet.load(ROOT / "results" / f"{part.study}.json")
        assert part.refreshed(document, sheet) == document
