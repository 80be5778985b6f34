"""Makes `defiance/radio/data/bler.csv` from the error rates that Sionna ships: `make bler`.

Sionna's tables hold the share of lost code blocks at 15 or 20 SNRs, 1.6 to 1.8 dB apart, for five sizes of a
block, found by decoding LDPC blocks on an AWGN channel. A waterfall of 1,000 bits is half a decibel wide, so
often only one of its points lies between none and all. Therefore a normal distribution in dB is fitted to
them (maximum a posteriori), over all tables of TS 38.214 that use the same modulation and rate on shifted
grids, with two weak beliefs: the spread falls with the root of the block's size, and blocks of neighbouring
sizes fail at nearly the same SNR. Rates below 1/5 are not simulated; there the code repeats its bits (TS
38.212 clause 5.4.2), which adds the repetition to the SNR.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_ndtr

from defiance.radio.link_quality import BLOCK_BITS, MCS

TRIALS = 600  # weight of a point: 0.9983 is the largest share below one
SPREAD_BELIEF = 0.2  # log spread around the root's law
MIDDLE_BELIEF_DB = 0.3  # between neighbouring sizes of a block
MOTHER_RATE_X1024 = 1024 / 5  # of base graph 2, TS 38.212 clause 5.3.2

Curve = tuple[list[float], list[float]]
Points = dict[tuple[int, float], list[tuple[int, float, float]]]


def sionna_points() -> tuple[Points, dict[tuple[int, float], float]]:
    """What Sionna ships for PDSCH.

    Returns:
        by modulation order and code rate x 1024: points (index into BLOCK_BITS, SNR [dB], share lost); and
        the EESM's beta.
    """
    from sionna.phy.nr.utils import decode_mcs_index

    spec = importlib.util.find_spec("sionna")
    assert spec is not None and spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "sys"

    def key(index: int, mcs: int) -> tuple[int, float]:
        order, rate = decode_mcs_index(mcs, index, is_pusch=False, device="cpu")
        return int(order), round(float(rate) * 1024, 1)

    points: Points = defaultdict(list)
    for index in (1, 2, 3, 4):
        tree: Any = json.loads((folder / f"bler_tables/PDSCH_table{index}.json").read_text())
        for mcs, table in tree["category"]["1"]["index"][str(index)]["MCS"].items():
            for bits, column in table["CBS"].items():
                for snr_db, lost in zip(table["SNR_db"], column["BLER"], strict=True):
                    points[key(index, int(mcs))].append((BLOCK_BITS.index(int(bits)), snr_db, lost))
    betas = json.loads((folder / "esm_params/eesm_beta_table.json").read_text())["index"]
    return points, {key(int(i), mcs): beta for i in betas for mcs, beta in enumerate(betas[i])}


def shannon_db(efficiency: float) -> float:
    """SNR at which log2(1 + SNR) is this."""
    return 10 * math.log10(2**efficiency - 1)


def fit(points: list[tuple[int, float, float]], start_db: float) -> Curve:
    """Middle and spread [dB] of every size of a block."""
    size, snr_db, lost = (np.array(column) for column in zip(*points, strict=True))
    law = -0.5 * np.log(np.array(BLOCK_BITS) / 1000)
    n = len(BLOCK_BITS)

    def cost(x: Any) -> float:
        middle, log_spread, level = x[:n], x[n : 2 * n], x[-1]
        z = (snr_db - middle[size]) / np.exp(log_spread)[size]
        likelihood = TRIALS * np.sum(lost * log_ndtr(-z) + (1 - lost) * log_ndtr(z))
        off_law = (log_spread - law - level) / SPREAD_BELIEF
        off_line = np.diff(middle) / MIDDLE_BELIEF_DB
        return float((np.sum(off_law**2) + np.sum(off_line**2)) / 2 - likelihood)

    start = np.concatenate([np.full(n, start_db), law + math.log(0.3), [math.log(0.3)]])
    found = minimize(cost, start, method="L-BFGS-B", options={"maxiter": 5000, "maxfun": 200_000}).x
    return found[:n].tolist(), np.exp(found[n : 2 * n]).tolist()


def curves(points: Points) -> dict[tuple[int, float], Curve]:
    """The curve of every modulation and rate in `MCS`, simulated or derived."""
    keys = sorted({(order, rate) for t in MCS.values() for order, rates in t for rate in rates})
    found = {
        (order, rate): fit(points[order, rate], shannon_db(order * rate / 1024) + 1.5)
        for order, rate in keys
        if (order, rate) in points
    }
    lowest, (middle, spread) = min(found.items())
    for order, rate in set(keys) - set(found):
        coded = max(rate, MOTHER_RATE_X1024)
        less_db = shannon_db(order * coded / 1024) - shannon_db(order * lowest[1] / 1024)
        less_db += 10 * math.log10(rate / coded)
        found[order, rate] = [m + less_db for m in middle], spread
    return found


def main() -> None:
    """Writes the file."""
    points, betas = sionna_points()
    names = [f"{what}_{bits}" for what in ("snr_db", "spread_db") for bits in BLOCK_BITS]
    lines = [
        "# Error rates of NR's LDPC code blocks, fitted by benchmarks/bler_fit.py to the BLER tables of",
        f"# Sionna {metadata.version('sionna-no-rt')} (Apache-2.0, NVIDIA); eesm_beta as in its EESM table.",
        ",".join(["modulation_order", "code_rate_x1024", "eesm_beta", *names]),
    ]
    for (order, rate), (middle, spread) in sorted(curves(points).items()):
        numbers = ",".join(f"{x:.3f}" for x in (*middle, *spread))
        lines.append(f"{order},{rate:g},{betas[order, rate]:g},{numbers}")
    path = Path(__file__).parent.parent / "defiance" / "radio" / "data" / "bler.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
