"""Sounding of beams: which symbols it takes, how long, what a device hears, and what its report says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from defiance.errors import DefianceError

SYMBOL_S = 1e-3 / (8 * 14)
"""An OFDM symbol at 120 kHz, cyclic prefix included (TS 38.211 clause 4.3.1: eight slots of 14 in 1 ms)."""

SSB_SYMBOLS, SSB_BURST_S, MOST_SSBS = 4, 5e-3, 64
"""A synchronisation block's symbols (TS 38.211 clause 7.4.3.1), and the half frame in which up to 64 of them
are sent (TS 38.213 clause 4.1, case D)."""

SWEEP_SYMBOLS = 12
"""Symbols of a slot that can hold CSI-RS, one beam each: two are the control channel's."""

REPORT_S = 2e-3
"""From a sweep's end to the new beam, without a model: 56 symbols of computing the report (TS 38.214 table
5.4-2, Z_3), up to 5 slots until the next uplink slot, 28 symbols until an indicated beam applies
(`beamAppTime`, TS 38.331), rounded up."""

PILOTS = 198
"""Resource elements of a beam's measurement: density 3 in 66 blocks, 100 MHz (TS 38.211 clause 7.4.1.5)."""

RSRP_BITS, DIFFERENCE_BITS, DIFFERENCE_DB = 7, 4, 2.0
"""L1-RSRP of the strongest beam in steps of 1 dB, of others as differences (TS 38.133 clause 10.1.19)."""


@dataclass(frozen=True)
class Sounding:
    """How often beams are sounded, and with which signal.

    Attributes:
        period_s: from one sounding to the next.
        signal: `ssb`, 4 symbols a beam, in bursts as they are sent anyway; `csi-rs`, one symbol a beam.
    """

    period_s: float
    signal: Literal["ssb", "csi-rs"] = "csi-rs"

    def sweep_s(self, beams: float) -> float:
        """How long it takes to sound so many beams."""
        if self.signal == "ssb":
            return SSB_BURST_S * beams / MOST_SSBS
        return math.ceil(beams / SWEEP_SYMBOLS) * 14 * SYMBOL_S

    def overhead(self, beams: float) -> float:
        """Share of all symbols that sounding so many beams a period takes.

        An analogue array sends nothing else in such a symbol.

        Raises:
            DefianceError: there aren't as many symbols, or more beams than a burst of SSBs has.
        """
        symbols = beams * (SSB_SYMBOLS if self.signal == "ssb" else 1)
        share = symbols * SYMBOL_S / self.period_s
        if share > 1 or (self.signal == "ssb" and beams > MOST_SSBS):
            raise DefianceError(
                f"{beams:g} beams by {self.signal} don't fit into {1e3 * self.period_s:g} ms; sound "
                "fewer, or less often"
            )
        return share


def measured_snr_db(snr_db: Tensor, noise: Tensor) -> Tensor:
    """An estimate from `PILOTS` resource elements, less the noise that is known to be in it.

    A sum of PILOTS terms |h + n|^2 has mean P + 1 and variance (2 P + 1) / PILOTS, with P the SNR.

    Args:
        snr_db: `[...]`.
        noise: standard normal, `[...]`.
    """
    power = torch.pow(10.0, snr_db / 10)
    least = PILOTS**-0.5
    return 10 * torch.log10((power + noise * ((2 * power + 1) / PILOTS).sqrt()).clamp(min=least / 10))


def reported(measured_db: Tensor) -> Tensor:
    """What a report says of beams `[..., M]`: the strongest to 1 dB, the others as steps below it."""
    strongest = measured_db.amax(-1, keepdim=True).round()
    below = ((strongest - measured_db) / DIFFERENCE_DB).round().clamp(0, 2**DIFFERENCE_BITS - 1)
    return strongest - DIFFERENCE_DB * below
