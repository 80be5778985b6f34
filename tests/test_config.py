import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from defiance.config import build, describe, fingerprint, to_dict, to_toml
from defiance.errors import DefianceError


@dataclass(frozen=True)
class Radio:
    power_dbm: float = field(
        default=44.0, metadata={"min": 0.0, "max": 60.0, "unit": "dBm", "help": "per cell"}
    )
    cells: int = field(default=21, metadata={"min": 1})


@dataclass(frozen=True)
class Config:
    scene: str = field(default="munich", metadata={"help": "city or file"})
    map: Literal["raw", "smooth"] = "raw"
    fading: bool = True
    speeds_kmh: tuple[float, ...] = field(
        default=(3.0, 30.0), metadata={"min": 0.0, "max": 500.0, "unit": "km/h"}
    )
    window: tuple[int, str] = (2, "s")
    radio: Radio = Radio()


configs = st.builds(
    Config,
    scene=st.text(),
    map=st.sampled_from(["raw", "smooth"]),
    fading=st.booleans(),
    speeds_kmh=st.lists(st.floats(0, 500)).map(tuple),
    window=st.tuples(st.integers(-(2**63), 2**63 - 1), st.text()),
    radio=st.builds(Radio, power_dbm=st.floats(0, 60), cells=st.integers(1, 2**63 - 1)),
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs)
def test_round_trip_through_toml(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8", newline="")
    assert build(Config, path) == config


@given(config=configs)
def test_dict_is_json_and_fingerprint_follows_the_values(config: Config) -> None:
    assert json.loads(json.dumps(to_dict(config))) == to_dict(config)
    other = dataclasses.replace(config, fading=not config.fading)
    assert fingerprint(config) == fingerprint(dataclasses.replace(config)) != fingerprint(other)


def test_fingerprint_is_equal_in_another_process_and_for_equal_numbers() -> None:
    program = "from tests.test_config import Config, fingerprint; print(fingerprint(Config()))"
    root = Path(__file__).parents[1]
    other = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == fingerprint(Config())
    assert fingerprint(Config(speeds_kmh=(3, 30))) == fingerprint(Config())


def test_order_of_precedence(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text("fading = false\nscene = 'florence'\n[radio]\ncells = 7\n")
    preset = Config(map="smooth", scene="etoile")
    config = build(Config, path, ["scene=rome", "radio.power_dbm=30", "scene=paris"], preset)
    assert config == Config("paris", "smooth", False, radio=Radio(30.0, 7))
    assert isinstance(config.radio.power_dbm, float)
    assert build(Config) == Config()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("speeds_kmh=1, 2.5", {"speeds_kmh": (1.0, 2.5)}),
        ("speeds_kmh=[7]", {"speeds_kmh": (7.0,)}),
        ("speeds_kmh=[]", {"speeds_kmh": ()}),
        ("window=5,ms", {"window": (5, "ms")}),
        ("fading=False", {"fading": False}),
        ("map=smooth", {"map": "smooth"}),
        ("scene=a=b", {"scene": "a=b"}),
        ("scene=7", {"scene": "7"}),
    ],
)
def test_overrides(text: str, expected: dict[str, Any]) -> None:
    assert build(Config, None, [text]) == dataclasses.replace(Config(), **expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("radio.power=3", "unknown key 'radio.power'; did you mean radio.power_dbm?"),
        ("power_dbm=3", "did you mean radio.power_dbm?"),
        ("zzz=3", "known keys: scene, map"),
        ("radio=3", "group of keys; set one of them, such as radio.power_dbm"),
        ("radio.power_dbm=61", r"takes number 0 ... 60 \[dBm\], not 61.0"),
        ("radio.power_dbm=nan", "takes number"),
        ("radio.power_dbm=inf", "takes number"),
        ("radio.cells=0", "takes integer >= 1, not 0"),
        ("radio.cells=1.0", "takes integer >= 1, not '1.0'"),
        ("radio.cells=" + "9" * 5000, "takes integer"),
        ("map=rough", r"takes raw \| smooth, not 'rough'"),
        ("fading=1", r"takes true \| false, not '1'"),
        ("speeds_kmh=1,-1", "takes list of number 0 ... 500"),
        ("window=1,s,2", "takes list of 2: integer, text"),
        ("scene=\udcff", "takes text"),
        ("scene", "write it as key=value"),
    ],
)
def test_refused_overrides(text: str, message: str) -> None:
    with pytest.raises(DefianceError, match=message):
        build(Config, None, [text])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scene = ", "not a TOML file"),
        ("x = " + "[" * 100_000, "not a TOML file"),
        ("radio.cels = 3", "unknown key 'radio.cels'; did you mean radio.cells?"),
        ("radio = 3", "group of keys"),
        ("radio.cells.x = 3", "unknown key|takes integer"),
        ("radio.cells = true", "takes integer"),
        ("radio.cells = 0x" + "f" * 5000, "takes integer"),
        ("radio.cells = 9223372036854775808", "takes integer"),
        ("radio.power_dbm = '3'", "takes number"),
        ("fading = 1", r"takes true \| false"),
        ("speeds_kmh = 3", "takes list of number"),
        ("scene = 1979-05-27", "takes text"),
    ],
)
def test_refused_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text)
    with pytest.raises(DefianceError, match=message) as error:
        build(Config, path)
    assert str(path) in str(error.value)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    for name in ("absent.toml", "binary.toml", "."):
        with pytest.raises(DefianceError):
            build(Config, tmp_path / name)


@given(name=st.sampled_from([key.name for key in describe(Config)]), value=plain)
def test_wrong_types_never_pass(name: str, value: Any) -> None:
    path, _, leaf = name.rpartition(".")
    good: Any = Radio() if path else Config()
    bad = dataclasses.replace(good, **{leaf: value})
    try:
        accepted = to_dict(bad)[leaf]
    except DefianceError:
        return
    key = next(key for key in describe(Config) if key.name == name)
    assert accepted == (list(value) if isinstance(value, tuple) else value)
    assert type(accepted) is type(to_dict(good)[leaf]), (key, value)


@given(
    texts=st.lists(
        st.sampled_from([key.name for key in describe(Config)]).flatmap(
            lambda name: st.text().map(lambda value: f"{name}={value}")
        )
        | st.text(),
        max_size=3,
    )
)
def test_any_override_gives_a_configuration_or_a_clear_line(texts: list[str]) -> None:
    try:
        config = build(Config, None, texts)
    except DefianceError as error:
        assert str(error)
    else:
        assert build(Config, None, (), config) == config


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary()
    | st.text().map(str.encode)
    | plain.map(lambda v: f"scene = {v!r}".encode("utf-8", "replace"))
)
def test_any_file_gives_a_configuration_or_a_clear_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.toml"
    path.write_bytes(content)
    try:
        build(Config, path)
    except DefianceError as error:
        assert str(path) in str(error)


def test_describe_lists_what_a_reader_needs() -> None:
    keys = {key.name: key for key in describe(Config)}
    assert list(keys) == ["scene", "map", "fading", "speeds_kmh", "window", "radio.power_dbm", "radio.cells"]
    power = keys["radio.power_dbm"]
    assert (power.default, power.unit, power.help, power.values) == (
        44.0,
        "dBm",
        "per cell",
        "number 0 ... 60",
    )
    assert describe(Config(fading=False))[2].default is False
