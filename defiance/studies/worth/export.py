"""Trained handover functions of a finished run leave as ONNX: what `defiance export` does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from defiance import config as configuration
from defiance.control.onnx_exchange import export as write
from defiance.errors import DefianceError
from defiance.parts import Parts
from defiance.studies.worth.experiments import learned
from defiance.studies.worth.settings import Config, caps, home_scenarios, kinds
from defiance.studies.worth.training import Model
from defiance.studies.worth.worlds import scene_of


def export(
    run: Path, file: Path, name: str | None = None, scenario: str | None = None
) -> tuple[str, str, float]:
    """Write a trained handover function with its tuned threshold to an ONNX file.

    Args:
        run: folder of a run of `worth`.
        file: to write.
        name: `learned-PLACEMENT/REGIME/MAP/seedN`; None: the run's first.
        scenario: whose threshold, such as `munich/30kmh/load50/cap8/raw`; None: the run's first on that map.

    Returns:
        Model, scenario and threshold.

    Raises:
        DefianceError: there is no run, it has no such model or scenario, or didn't come so far.
    """
    if not (run / "config.toml").is_file():
        raise DefianceError(f"{run}: no run's folder; give the one that `defiance run worth --out` wrote")
    config = configuration.build(Config, run / "config.toml")
    models = {
        m.key: m for map_ in config.maps for m in (Model(p, r, map_, n) for p, r, n in kinds(config, map_))
    }
    model = _named("model", models, name or next(iter(models)))
    cells = {
        s.name(cap): (s, cap) for s in home_scenarios(config) if s.map == model.map for cap in caps(config, s)
    }
    wanted = scenario or next(iter(cells))
    where, cap = _named("scenario", cells, wanted)
    for parts in _finished(run):
        own = parts.folder / f"{where.city}.npz"  # made of a site plan or drives; see `environment.prepare`
        there = replace(config, scene=str(own)) if own.is_file() else config
        for key in parts.keys(f"judge/{model.key}/{where.name()}/"):
            judged = parts.get(key)
            if judged is not None and parts.get_tensors(model.key) is not None:
                threshold = float(next(c["setting"][0] for c in judged["caps"] if c["cap"] == cap))
                function = learned(there, where, model, parts, threshold)
                write(function, scene_of(there, where.city, where.map), file)
                return model.key, wanted, threshold
    raise DefianceError(f"{run} has not judged {model.key} in {wanted}; give its `defiance run` again")


T = TypeVar("T")


def _named(kind: str, known: dict[str, T], name: str) -> T:
    if name not in known:
        raise DefianceError(f"--{kind} {name}: the run has {', '.join(known)}")
    return known[name]


def _finished(run: Path) -> list[Parts]:
    """The parts of all its configurations and versions, the newest first."""
    folder = run / "parts"
    inner = folder.iterdir() if folder.is_dir() else iter(())
    return [Parts(each) for each in sorted(inner, key=lambda each: each.stat().st_mtime, reverse=True)]
