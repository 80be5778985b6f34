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
TRACER = ("sionna.rt", "mitsuba", "drjit")
OPTIONAL = {  # extras, and stable-baselines3, which only tests install: who may import them
    ("cryptography", "flwr", "httpx"): PACKAGE / "learn" / "flower",
    ("gymnasium", "pettingzoo", "stable_baselines3"): PACKAGE / "interfaces",
    ("mlflow", "sqlalchemy"): PACKAGE / "mlflow_store.py",
    ("onnx", "onnxruntime"): PACKAGE / "control" / "onnx_exchange.py",
    ("ray",): PACKAGE / "studies" / "cluster.py",
}
WAVEFORMS = ("sionna.phy", "sionna.sys")
DISTRIBUTIONS = {  # named unlike what they import as
    "mlflow": "mlflow_skinny",
    "sionna": "sionna_no_rt",
    "sklearn": "scikit_learn",
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def belongs(module: str, packages: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def test_imports_point_downwards_only(capsys: pytest.CaptureFixture[str]) -> None:
    status = lint_imports(str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == 0, capsys.readouterr().out


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_global_random_generator_and_sionna_in_one_place(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    for call in ("torch.manual_seed(", "np.random.seed(", "random.seed(", "import random"):
        assert call not in text, f"it uses a global generator: {call}"
    for name in imported(ast.parse(text)):
        if belongs(name, TRACER):
            assert module.parent.name == "scene", "it imports the tracer, an extra that no study needs"
        for packages, place in OPTIONAL.items():
            assert not belongs(name, packages) or place in (module, module.parent), f"{name} is an extra"
        if belongs(name, WAVEFORMS):
            assert module == PACKAGE / "radio" / "nr.py", "it imports Sionna, which reseeds torch"


def test_every_dependency_is_declared_and_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    modules = {name for module in MODULES for name in imported(ast.parse(module.read_text(encoding="utf-8")))}
    packages = {name.partition(".")[0] for name in modules if not belongs(name, TRACER)}
    extra = {package for packages in OPTIONAL for package in packages}
    used = packages - sys.stdlib_module_names - {"defiance"} - extra
    used = {DISTRIBUTIONS.get(name, name) for name in used}
    declared = {name(line) for line in project["dependencies"]}
    assert used <= declared
    extras = {name(line) for lines in project["optional-dependencies"].values() for line in lines}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {name(line) for line in lines if re.fullmatch(r"[\w.-]+==[\w.]+", line)}
    assert {DISTRIBUTIONS.get(name, name) for name in extra} <= extras
    assert declared | extras <= pinned
    assert all(line.startswith("#") or name(line) in pinned for line in lines)


def name(requirement: str) -> str:
    return re.split(r"[<>=[]", requirement)[0].lower().replace("-", "_")
