"""The trained weights that come with the package, so that the quick preset needs no training.

    python -m defiance.studies.coinference.shipped out/coinference-full [more runs ...]

packs what the quick preset needs from finished runs, in half precision. The models are of the first seed: the
recordings of its fold were never trained on, and nothing else real is tested.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from defiance import config as configuration
from defiance.codecs.codec import Codec
from defiance.errors import DefianceError
from defiance.learn.training import Parameters
from defiance.parts import Parts, write_atomically
from defiance.studies.coinference.candidates import designs
from defiance.studies.coinference.settings import PRESETS, Config, Model, models, tuned_as
from defiance.studies.pool import finished, part

FILE = Path("weights") / "weights.safetensors"
SEED = 0


def unpack(config: Config, wanted: Sequence[Model], parts: Parts) -> None:
    """Puts the parts that training would have made from the shipped weights.

    Raises:
        DefianceError: not all of the models are shipped, or the file is damaged.
    """
    needed = {model.trained.key: model for model in wanted}
    if all(finished(parts, f"train/{key}") for key in needed):
        return
    with as_file(files(__package__) / str(FILE)) as path:
        found = _read(path) if path.is_file() else {}
        absent = [key for key in needed if key not in found]
        if absent:
            raise DefianceError(
                f"no trained weights are shipped for {absent[0]}; train them: --set weights=trained, "
                "or --preset full"
            )
        with safe_open(path, "pt") as file:
            for key, model in needed.items():
                names = found[key]["names"]
                parts.put_tensors(key, {name: file.get_tensor(f"{key}:{name}").float() for name in names})
                parts.put(f"train/{key}", found[key]["train"])
                parts.put(f"tune/{tuned_as(config, model).key}", found[key]["tune"])


def load(model: Model, run: Path | None = None) -> Codec:
    """The trained codec of a model, from a run's folder or as it ships.

    Raises:
        DefianceError: there are no such weights.
    """
    key = model.trained.key
    if run is not None:
        config = _config(run)
        for parts in _parts(run):
            weights, tuned = parts.get_tensors(key), parts.get(f"tune/{tuned_as(config, model).key}")
            if weights is not None and tuned is not None:
                return _built(model, tuned["choice"], weights)
        raise DefianceError(f"{run} has no trained weights of {key}; name another run, or --uses or --data")
    with as_file(files(__package__) / str(FILE)) as path:
        found = _read(path) if path.is_file() else {}
        if key not in found:
            raise DefianceError(
                f"no trained weights are shipped for {key}; train them with `defiance run coinference "
                "--set weights=trained --out FOLDER`, and give --run FOLDER"
            )
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(f"{key}:{name}").float() for name in found[key]["names"]}
    return _built(model, found[key]["tune"]["choice"], weights)


def _built(model: Model, choice: int, weights: Parameters) -> Codec:
    return designs(model.candidate, model.uses)[choice].builds[0](weights)


def _config(run: Path) -> Config:
    return configuration.build(Config, run / "config.toml")


def _parts(run: Path) -> list[Parts]:
    folder = run / "parts"
    return [Parts(inner) for inner in sorted(folder.iterdir())] if folder.is_dir() else []


def pack(runs: Sequence[Path], path: Path) -> list[str]:
    """Writes the weights that the quick preset needs, as far as finished runs have them; returns their keys.

    Args:
        runs: folders that `defiance run coinference` wrote.
        path: the file.

    Raises:
        DefianceError: a run can't be read.
    """
    tensors: dict[str, Tensor] = {}
    about: dict[str, dict[str, Any]] = {}
    for run in runs:
        config = _config(run)
        quick = replace(PRESETS["quick"], data=config.data)
        for model in {model.trained: model for model in models(quick, (SEED,))}.values():
            key, tuned = model.trained.key, f"tune/{tuned_as(config, model).key}"
            for parts in _parts(run):
                weights = parts.get_tensors(key)
                if weights is None or not finished(parts, f"train/{key}") or parts.get(tuned) is None:
                    continue
                tensors |= {f"{key}:{name}": weight.half() for name, weight in weights.items()}
                about[key] = {
                    "names": list(weights),
                    "train": part(parts, f"train/{key}"),
                    "tune": part(parts, tuned),
                }
    write_atomically(path, save(tensors, metadata={"models": json.dumps(about)}))
    return list(about)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """What is shipped, by key."""
    try:
        with safe_open(path, "pt") as file:
            found: dict[str, dict[str, Any]] = json.loads(file.metadata()["models"])
            return found
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DefianceError(f"{path}: the shipped weights are damaged ({error}); install again") from error


if __name__ == "__main__":
    target = Path(__file__).parent / FILE
    packed = pack([Path(argument) for argument in sys.argv[1:]], target)
    print(f"{target}: {len(packed)} models, {target.stat().st_size / 1e6:.1f} MB")
