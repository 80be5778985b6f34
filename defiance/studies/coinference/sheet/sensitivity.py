"""What the verdict on the device's energy rests on: the cited constants of each pair of chips."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from defiance.sensitivity import Constant, Sensitivity, sensitivity
from defiance.studies.coinference.sheet.costs import PAIRS, rival
from defiance.studies.coinference.sheet.results import Results

CLAIM = "S-VDIB's device half spends less."


def sensitivities(results: Results) -> Iterator[Sensitivity]:
    """Of S-VDIB against the least conventional device half of equal accuracy, on each pair of chips."""
    test = results.config.data[0]
    own = results.reference("s-vdib", test)
    conventional = rival(results, own, test) if results.models(own, test) else None
    if conventional is None:
        return
    parts = results.parts(own, test)
    synaptic = float(np.mean([part["synaptic_operations"] for part in parts]))
    updates = float(np.mean([part["updates"] + part["filter_operations"] for part in parts]))
    operations = float(results.counted[conventional[:2]]["device_operations"])
    for chip, processor in PAIRS:
        names = (
            f"{chip.name}, a synaptic operation",
            f"{chip.name}, an update",
            f"{processor.name}, an operation",
        )
        ends = (
            (
                chip.joules_per_synaptic_operation_low,
                chip.joules_per_synaptic_operation,
                chip.joules_per_synaptic_operation_high,
            ),
            (chip.joules_per_update_low, chip.joules_per_update, chip.joules_per_update_high),
            (
                processor.joules_per_operation_low,
                processor.joules_per_operation,
                processor.joules_per_operation_high,
            ),
        )
        sources = chip.source, chip.source, processor.source
        counts = dict(zip(names, (-synaptic, -updates, operations), strict=True))
        yield sensitivity(
            lambda values, counts=counts: sum(counts[name] * value for name, value in values.items()),  # type: ignore[misc]
            [
                Constant(name, "J", *end, source)
                for name, end, source in zip(names, ends, sources, strict=True)
            ],
            claim=CLAIM,
            candidate="s-vdib",
            regime=own[2],
            scenario=f"{test}/{chip.name} against {processor.name}, {conventional[0]}",
            unit="J",
        )
