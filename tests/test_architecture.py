import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "defiance"
MODULES = sorted(PACKAGE.rglob("*.py"))
TRACER = {"sionna", "mitsuba", "drjit"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Packages that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_imports_point_downwards_only(capsys: pytest.CaptureFixture[str]) -> None:
    status = lint_imports(str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == 0, capsys.readouterr().out


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_global_random_generator_and_the_tracer_in_one_place(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    for call in ("torch.manual_seed(", "np.random.seed(", "random.seed(", "import random"):
        assert call not in text, f"it uses a global generator: {call}"
    if TRACER & set(imported(ast.parse(text))):
        assert module.parent.name == "scene", "it imports the tracer, an extra that no study needs"


def test_every_dependency_is_declared_and_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    used = {name for module in MODULES for name in imported(ast.parse(module.read_text(encoding="utf-8")))}
    declared = {name(line) for line in project["dependencies"]}
    assert used - sys.stdlib_module_names - TRACER - {"defiance"} <= declared
    extras = {name(line) for lines in project["optional-dependencies"].values() for line in lines}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {name(line) for line in lines if re.fullmatch(r"[\w.-]+==[\w.]+", line)}
    assert declared | extras <= pinned
    assert all(line.startswith("#") or name(line) in pinned for line in lines)


def name(requirement: str) -> str:
    return re.split(r"[<>=]", requirement)[0].lower().replace("-", "_")
