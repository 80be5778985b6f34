"""What a recording costs on the device, in the air and at the edge, by constants of `defiance.hardware`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from defiance.hardware import (
    ARITHMETIC_45_NM,
    CORTEX_M4,
    DEVICE_NPU,
    LOIHI,
    RADIOS,
    SERVER_CPU,
    SPIKES_45_NM,
    ComputeProfile,
    RadioProfile,
    SpikingProfile,
)
from defiance.studies.coinference.candidates import bursts
from defiance.studies.coinference.data import duration_us
from defiance.studies.coinference.settings import SPIKING, STEPS
from defiance.studies.coinference.sheet.results import BOUNDS, Array, Kind, Results

SPIKING_HARDWARE = (SPIKES_45_NM, LOIHI)
CONVENTIONAL_HARDWARE = (ARITHMETIC_45_NM, DEVICE_NPU, CORTEX_M4)

PAIRS: tuple[tuple[SpikingProfile, ComputeProfile], ...] = (
    (SPIKES_45_NM, ARITHMETIC_45_NM),
    (LOIHI, DEVICE_NPU),
    (LOIHI, CORTEX_M4),
)
"""Whose device half is compared with whose: arithmetic of one process with the same, a chip with a chip."""

LOIHI_SYNAPTIC_OPERATION_S, LOIHI_UPDATE_S = 3.5e-9, 8.4e-9
"""Davies et al., IEEE Micro 38(1), 2018, table 1; here as if one core did everything, one after the other."""


@dataclass(frozen=True)
class Range:
    """A number with the ends of what its constants allow."""

    central: float
    low: float
    high: float

    def over(self, other: Range, *, together: bool) -> Range:
        """The ratio; constants of one process (`together`) are low and high at the same time."""
        if together:
            ends = sorted((self.low / other.low, self.high / other.high))
            return Range(self.central / other.central, min(ends), max(ends))
        return Range(self.central / other.central, self.low / other.high, self.high / other.low)


def device_joules(results: Results, kind: Kind, test: str) -> Iterator[tuple[str, Range]]:
    """Hardware and energy of the device half, per recording."""
    name, uses, _ = kind
    if name in SPIKING:
        parts = results.parts(kind, test)
        operations = float(np.mean([part["synaptic_operations"] for part in parts]))
        updates = float(np.mean([part["updates"] + part["filter_operations"] for part in parts]))
        for chip in SPIKING_HARDWARE:
            yield chip.name, spiking_joules(chip, operations, updates)
    else:
        count = float(results.counted[name, uses]["device_operations"])
        for processor in CONVENTIONAL_HARDWARE:
            yield processor.name, computing_joules(processor, count)


def spiking_joules(chip: SpikingProfile, operations: float, updates: float) -> Range:
    """Energy of synaptic operations, and of updates of neurons and of their filters."""
    return Range(
        operations * chip.joules_per_synaptic_operation + updates * chip.joules_per_update,
        operations * chip.joules_per_synaptic_operation_low + updates * chip.joules_per_update_low,
        operations * chip.joules_per_synaptic_operation_high + updates * chip.joules_per_update_high,
    )


def computing_joules(processor: ComputeProfile, operations: float) -> Range:
    """Energy of operations."""
    return Range(
        operations * processor.joules_per_operation,
        operations * processor.joules_per_operation_low,
        operations * processor.joules_per_operation_high,
    )


def edge_joules(results: Results, kind: Kind) -> Range:
    """Energy of the edge half, per recording, on a server."""
    return computing_joules(SERVER_CPU, float(results.counted[kind[:2]]["edge_operations"]))


def packets(name: str) -> int:
    """Transmissions of a recording: one per step or per burst."""
    return STEPS if name in SPIKING else bursts(name)


def bits_on_air(name: str, uses: int, radio: RadioProfile, *, streamed: bool) -> int:
    """Coded bits of a recording; a packet's overhead each time that something is sent, or once."""
    return uses + (packets(name) if streamed else 1) * radio.overhead_bits


def air_joules(bits: float, radio: RadioProfile) -> tuple[Range, Range]:
    """Energy of sending and of receiving so many coded bits."""
    return (
        Range(
            bits * radio.tx_joules_per_bit,
            bits * radio.tx_joules_per_bit_low,
            bits * radio.tx_joules_per_bit_high,
        ),
        Range(
            bits * radio.rx_joules_per_bit,
            bits * radio.rx_joules_per_bit_low,
            bits * radio.rx_joules_per_bit_high,
        ),
    )


def latency_s(results: Results, kind: Kind, test: str) -> Iterator[tuple[str, RadioProfile, float]]:
    """Hardware, radio, and time from a recording's end to the decision: last piece of work, last packet."""
    name, uses, _ = kind
    pieces = packets(name)
    edge_s = results.counted[name, uses]["edge_operations"] / pieces / SERVER_CPU.operations_per_second
    if name in SPIKING:
        parts = results.parts(kind, test)
        operations = float(np.mean([part["synaptic_operations"] for part in parts]))
        updates = float(np.mean([part["updates"] + part["filter_operations"] for part in parts]))
        computing = {LOIHI.name: operations * LOIHI_SYNAPTIC_OPERATION_S + updates * LOIHI_UPDATE_S}
    else:
        count = results.counted[name, uses]["device_operations"]
        computing = {
            processor.name: count / processor.operations_per_second for processor in (DEVICE_NPU, CORTEX_M4)
        }
    for hardware, computed_s in computing.items():
        for radio in RADIOS.values():
            air_s = (
                results.counted[name, uses]["channel_uses"] / pieces + radio.overhead_bits
            ) / radio.bits_per_s
            yield hardware, radio, computed_s / pieces + air_s + edge_s


def time_to_decision_s(accuracy: Array, test: str) -> float:
    """When accuracy [T] is first within a point of that at the end, from the recording's beginning."""
    step = int(np.argmax(accuracy >= accuracy[-1] - 0.01))
    return (step + 1) * duration_us(test) * 1e-6 / STEPS


def energy_ratios(results: Results, own: Kind, rival: Kind, test: str) -> Iterator[tuple[str, Range]]:
    """Joules of a spiking device half over those of a conventional one, for each pair of chips."""
    spiking, other = dict(device_joules(results, own, test)), dict(device_joules(results, rival, test))
    for chip, processor in PAIRS:
        if other[processor.name].central > 0:
            together = (chip, processor) == PAIRS[0]
            ratio = spiking[chip.name].over(other[processor.name], together=together)
            yield f"{chip.name} against {processor.name}", ratio


def rival(results: Results, own: Kind, test: str) -> Kind | None:
    """The conventional candidate of least device work that is nowhere less accurate than a spiking one."""
    ladder = [esn0_db for esn0_db in EQUAL_DB if esn0_db in results.ladder]

    def equal(kind: Kind) -> bool:
        return all(results.gains(kind, own, test, level).mean() >= -EQUAL_WITHIN for level in ladder)

    others = [
        kind
        for kind in results.kinds(test)
        if kind == results.reference(kind[0], test) and kind[0] not in (*SPIKING, *BOUNDS) and equal(kind)
    ]
    return min(others, key=lambda kind: results.counted[kind[:2]]["device_operations"], default=None)


def shared_uses(results: Results, names: tuple[str, str], test: str) -> list[int]:
    """Channel uses that both candidates were trained for, ascending."""
    base = results.base(test)
    own, other = ({kind[1] for kind in results.kinds(test) if kind[::2] == (name, base)} for name in names)
    return sorted(own & other)


def needed_uses(
    results: Results, name: str, test: str, esn0_db: float, uses: Iterable[int], within: float
) -> int | None:
    """Fewest of these channel uses at which a candidate is as right as S-VDIB at the reference, to `within`.

    Both are compared on the seeds that they share; None if no number of uses is enough.
    """
    own, base = results.reference("s-vdib", test), results.base(test)
    for count in sorted(uses):
        gains = results.gains((name, count, base), own, test, esn0_db)
        if gains.size and gains.mean() >= -within:
            return count
    return None


@dataclass(frozen=True)
class Crossover:
    """Where S-VDIB's device, radio included, takes less energy than a conventional one of equal accuracy.

    Attributes:
        joules_per_use: of the radio, where both take the same.
        spikes_win: on which side of it.
        spiking_uses, other_uses: that they need.
    """

    joules_per_use: float
    spikes_win: str
    spiking_uses: int
    other_uses: int


def crossover(spiking_j: float, spiking_uses: int, other_j: float, other_uses: int) -> Crossover:
    """Solve spiking_j + spiking_uses e = other_j + other_uses e for e, joules per channel use."""
    saved_j, extra_uses = other_j - spiking_j, spiking_uses - other_uses
    if saved_j >= 0 >= extra_uses:
        return Crossover(math.inf, "everywhere", spiking_uses, other_uses)
    if saved_j <= 0 <= extra_uses:
        return Crossover(0.0, "nowhere", spiking_uses, other_uses)
    side = "below" if extra_uses > 0 else "above"
    return Crossover(saved_j / extra_uses, side, spiking_uses, other_uses)


def crossovers(
    results: Results, name: str, test: str, esn0_db: float
) -> Iterator[tuple[SpikingProfile, ComputeProfile, Crossover]]:
    """Crossovers of S-VDIB and a conventional candidate, each with the fewest uses for S-VDIB's accuracy.

    Only uses that both were trained for count, and packets' headers don't: `radio_joules` has them.
    """
    counts = shared_uses(results, ("s-vdib", name), test)
    uses = [needed_uses(results, one, test, esn0_db, counts, EQUAL_WITHIN) for one in ("s-vdib", name)]
    if uses[0] is None or uses[1] is None:
        return
    base = results.base(test)
    own = dict(device_joules(results, ("s-vdib", uses[0], base), test))
    others = dict(device_joules(results, (name, uses[1], base), test))
    for chip, processor in PAIRS:
        found = crossover(own[chip.name].central, uses[0], others[processor.name].central, uses[1])
        yield chip, processor, found


def radio_joules(
    results: Results, kind: Kind, test: str, hardware: str, radio: RadioProfile, *, streamed: bool
) -> float:
    """Energy of a device for a recording: its half of the codec and sending it, headers included."""
    bits = bits_on_air(kind[0], kind[1], radio, streamed=streamed)
    return dict(device_joules(results, kind, test))[hardware].central + air_joules(bits, radio)[0].central


EQUAL_WITHIN = 0.01
"""Accuracies that differ by no more count as equal where costs are compared."""

EQUAL_DB = (math.inf, 0.0, -4.0)
"""Where two candidates have to be equally accurate before their devices' energies are compared."""
