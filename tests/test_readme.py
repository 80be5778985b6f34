"""README says what the committed sheet says."""

import importlib.util
from pathlib import Path

from defiance.kpm import Sheet

ROOT = Path(__file__).resolve().parent.parent


def test_readme_says_what_the_committed_sheet_says() -> None:
    spec = importlib.util.spec_from_file_location("refresh", ROOT / "docs" / "refresh.py")
    assert spec is not None and spec.loader is not None
    refresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(refresh)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert refresh.refreshed(readme, Sheet.load(ROOT / "results" / "worth.json")) == readme
