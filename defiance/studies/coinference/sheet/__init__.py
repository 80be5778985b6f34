"""From the parts of the study `coinference` to its sheet: rows, curves, verdict.

Folded anew from finished parts each time.
"""

from __future__ import annotations

from defiance import __version__
from defiance import config as configuration
from defiance.kpm import Sheet
from defiance.studies import machine
from defiance.studies.coinference.sheet.curves import curves
from defiance.studies.coinference.sheet.results import Results
from defiance.studies.coinference.sheet.rows import rows
from defiance.studies.coinference.sheet.sensitivity import sensitivities
from defiance.studies.coinference.sheet.verdict import verdict

__all__ = ["Results", "sheet"]


def sheet(results: Results) -> Sheet:
    """The study's sheet with its verdict."""
    found = tuple(rows(results))
    return Sheet(
        study="coinference",
        version=__version__,
        config=configuration.to_dict(results.config),
        seeds=results.seeds,
        machine=machine(),
        made_by="",
        rows=found,
        curves=tuple(curves(results)),
        verdict=verdict(results),
        sensitivities=tuple(sensitivities(results)),
    )
