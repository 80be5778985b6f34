"""Configurations: frozen dataclasses built from a TOML file and `key=value` overrides, checked key by key.

A configuration is a frozen dataclass whose fields all have defaults and whose types are `int`, `float`,
`bool`, `str`, `Literal[...]`, `tuple[...]` of these, or another such dataclass. A field's metadata may hold
`min` and `max` (of a tuple: of each element), `unit` and `help`. Nested keys are written with dots:
`network.load`.

    @dataclass(frozen=True)
    class Config:
        load: float = field(default=0.5, metadata={"min": 0.0, "max": 1.0, "help": "share of PRBs occupied"})

    build(Config, Path("my.toml"), ["load=0.8"])
"""

import difflib
import hashlib
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from defiance.errors import DefianceError
from defiance.parts import read_at_most

LARGEST_BYTES = 2**20
"""Of a TOML file."""

C = TypeVar("C")
TomlTree = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """One key of a configuration: its dotted name, type, default and what its field's metadata says."""

    name: str
    type: Any
    default: Any
    minimum: float | None
    maximum: float | None
    unit: str
    help: str

    @property
    def values(self) -> str:
        """What the key takes, in words: `number 0 ... 1`, `raw | smooth`, `list of integers`."""
        words = _words(self.type)
        low, high = self.minimum, self.maximum
        if low is not None and high is not None:
            return f"{words} {low:g} ... {high:g}"
        if low is not None:
            return f"{words} >= {low:g}"
        return words if high is None else f"{words} <= {high:g}"


def describe(config: Any) -> tuple[Key, ...]:
    """The keys of a configuration class, or of an instance with its values as defaults, as declared."""
    return tuple(_keys(config() if isinstance(config, type) else config, ""))


def build(cls: type[C], path: Path | None = None, overrides: Sequence[str] = (), base: C | None = None) -> C:
    """Builds a configuration from `base` (default: all defaults), then a TOML file, then overrides.

    Args:
        cls: the dataclass to build.
        path: a TOML file whose tables are the nested dataclasses.
        overrides: texts `key=value`; a later one wins, and all win over the file. Lists are written
            `1,2,3` or `[1,2,3]`.
        base: the values of all keys that neither names, such as a preset.

    Raises:
        DefianceError: the file can't be read, a key is unknown (the closest known one is named), or a
            value has the wrong type or lies outside its range.
    """
    base = cls() if base is None else base
    keys = {key.name: key for key in describe(base)}
    values = {name: _checked(key, key.default, "preset") for name, key in keys.items()}
    if path is not None:
        for name, value in _leaves(_read_toml(path), keys, "", str(path)):
            key = _known(name, keys, str(path))
            values[name] = _checked(key, value, str(path))
    for text in overrides:
        name, equals, raw = text.partition("=")
        if not equals:
            raise DefianceError(f"--set {_shown(text)}: write it as key=value")
        key = _known(name.strip(), keys, "--set")
        values[key.name] = _checked(key, _parsed(key.type, raw.strip()), "--set")
    return _construct(cls, values, "")


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as nested plain values (tuples as lists), ready for JSON; checks every value.

    Raises:
        DefianceError: a value has the wrong type or lies outside its range.
    """
    tree: dict[str, Any] = {}
    for key in describe(config):
        *tables, leaf = key.name.split(".")
        table = tree
        for name in tables:
            table = table.setdefault(name, {})
        value = _checked(key, key.default, type(config).__name__)
        table[leaf] = list(value) if isinstance(value, tuple) else value
    return tree


def to_toml(config: Any) -> str:
    """The configuration as a TOML text that `build` reads back to an equal one, with units and help."""
    lines = []
    for key in describe(config):
        value = _checked(key, key.default, type(config).__name__)
        comment = " ".join(part for part in (f"[{key.unit}]" if key.unit else "", key.help) if part)
        lines.append(f"{key.name} = {_toml(value)}" + (f"  # {comment}" if comment else ""))
    return "\n".join(lines) + "\n"


def fingerprint(config: Any) -> str:
    """SHA-256 of the configuration's values as hexadecimal digits; equal for equal values in any process."""
    text = json.dumps(to_dict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _keys(config: Any, prefix: str) -> Iterator[Key]:
    types = get_type_hints(type(config))
    for entry in fields(config):
        value, name = getattr(config, entry.name), prefix + entry.name
        if _nested(types[entry.name]):
            yield from _keys(value, name + ".")
        else:
            about = entry.metadata
            yield Key(
                name,
                types[entry.name],
                value,
                about.get("min"),
                about.get("max"),
                about.get("unit", ""),
                about.get("help", ""),
            )


def _construct(cls: type[C], values: Mapping[str, Any], prefix: str) -> C:
    types = get_type_hints(cls)
    arguments = {}
    for entry in fields(cls):  # type: ignore[arg-type]  # C stands for dataclasses, which typing can't bind
        name, kind = prefix + entry.name, types[entry.name]
        arguments[entry.name] = _construct(kind, values, name + ".") if _nested(kind) else values[name]
    return cls(**arguments)


def _nested(kind: Any) -> bool:
    return is_dataclass(kind)


def _read_toml(path: Path) -> TomlTree:
    content = read_at_most(path, LARGEST_BYTES)
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DefianceError(f"{path}: not a TOML file: {' '.join(str(error).split())}") from error


def _leaves(tree: TomlTree, keys: Mapping[str, Key], prefix: str, where: str) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a TOML tree, descending only where the configuration has a table too."""
    for part, value in tree.items():
        name = prefix + part
        if isinstance(value, dict) and any(known.startswith(name + ".") for known in keys):
            yield from _leaves(value, keys, name + ".", where)
        else:
            yield name, value


def _known(name: str, keys: Mapping[str, Key], where: str) -> Key:
    if name in keys:
        return keys[name]
    inside = [known for known in keys if known.startswith(name + ".")]
    if inside:
        raise DefianceError(f"{where}: {name} is a group of keys; set one of them, such as {inside[0]}")
    by_last_part = {known.rpartition(".")[2]: known for known in keys}
    close = difflib.get_close_matches(name, keys, n=1, cutoff=0.5) or [
        by_last_part[last] for last in difflib.get_close_matches(name, by_last_part, n=1, cutoff=0.6)
    ]
    hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(keys)}"
    raise DefianceError(f"{where}: unknown key {name!r}; {hint}")


def _checked(key: Key, value: Any, where: str) -> Any:
    """The value in its key's own type, or a DefianceError that says what would be right."""
    try:
        value = _converted(key.type, value)
        for element in value if isinstance(value, tuple) else (value,):
            low, high = key.minimum, key.maximum
            if (low is not None and element < low) or (high is not None and element > high):
                raise ValueError
    except ValueError as error:
        unit = f" [{key.unit}]" if key.unit else ""
        raise DefianceError(f"{where}: {key.name} takes {key.values}{unit}, not {_shown(value)}") from error
    return value


def _converted(kind: Any, value: Any) -> Any:
    """A value of TOML or Python as `kind`, or ValueError: no bool is a number, no text is parsed."""
    if get_origin(kind) is Literal:
        for choice in get_args(kind):
            if type(choice) is type(value) and choice == value:
                return choice
    elif get_origin(kind) is tuple:
        if isinstance(value, list | tuple):
            kinds = _element_kinds(kind, len(value))
            return tuple(_converted(each, element) for each, element in zip(kinds, value, strict=True))
    elif kind is float:
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max
        ):
            return float(value)  # neither nan nor an infinity comes here
    elif kind is int:
        if type(value) is int and -(2**63) <= value < 2**63:
            return value
    elif type(value) is kind:
        if kind is str:
            value.encode()  # UnicodeEncodeError, a ValueError, for halves of surrogate pairs
        return value
    raise ValueError


def _parsed(kind: Any, text: str) -> Any:
    """The text of an override as a plain value; what doesn't parse stays text, and `_checked` refuses it."""
    if get_origin(kind) is tuple:
        inner = text[1:-1] if text[:1] + text[-1:] in ("[]", "()") else text
        elements = [element.strip() for element in inner.split(",")] if inner.strip() else []
        try:
            kinds = _element_kinds(kind, len(elements))
        except ValueError:
            return text
        return tuple(_parsed(each, element) for each, element in zip(kinds, elements, strict=True))
    if get_origin(kind) is Literal:
        return next((choice for choice in get_args(kind) if str(choice) == text), text)
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def _element_kinds(kind: Any, count: int) -> tuple[Any, ...]:
    kinds = get_args(kind)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return kinds[:1] * count
    if len(kinds) != count:
        raise ValueError
    return kinds


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " | ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            return f"list of {_words(kinds[0])}"
        return f"list of {len(kinds)}: {', '.join(map(_words, kinds))}"
    return {int: "integer", float: "number", bool: "true | false", str: "text"}[kind]


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return f"such a long {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
