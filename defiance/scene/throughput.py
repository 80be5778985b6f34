"""Throughput prediction: from what a phone measures to the rate that it gets next, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import torch
from torch import Tensor

from defiance.scene.drives import MODES, NO_CELL, Drive
from defiance.seeding import Stream

AHEAD = 5
"""Measurements, about one a second, whose mean rate is predicted."""
LEAST_BPS = 1e4  # below it nothing was asked for, or nothing works
CENTRE = torch.tensor([-95.0, -11.0, 8.0, 9.0, 8.0], dtype=torch.float64)
SPREAD = torch.tensor([12.0, 4.0, 8.0, 3.0, 8.0], dtype=torch.float64)
"""Of RSRP [dBm], RSRQ [dB], SNR [dB], CQI and speed [m/s] in the Cork drives, rounded."""


def throughput_by_cell(drives: Sequence[Drive], least: int = 200) -> dict[int, tuple[Tensor, Tensor]]:
    """Samples of every cell that has enough: what a learner at that cell would know.

    Inputs `[n, 5]` are RSRP, RSRQ, SNR, CQI and speed about their usual values; targets `[n, 1]` the decadic
    logarithm of the mean downlink rate [Mbit/s] of the next 5 measurements in the same cell. Moments without
    traffic, with a value missing, or soon before another cell are left out.

    Args:
        drives: as read, in order.
        least: samples that a cell needs.
    """
    inputs: dict[int, list[Tensor]] = {}
    targets: dict[int, list[Tensor]] = {}
    for drive in drives:
        if len(drive) <= AHEAD:
            continue
        columns = (drive.rsrp_dbm, drive.rsrq_db, drive.snr_db, drive.cqi, drive.speed_mps)
        values = (torch.stack(columns, 1) - CENTRE) / SPREAD
        future = torch.arange(len(drive) - AHEAD)[:, None] + torch.arange(1, AHEAD + 1)
        rate_bps = drive.downlink_bps[future].mean(1)
        lte = torch.tensor([mode in MODES for mode in drive.mode])[:-AHEAD]
        stays = (drive.cell[future] == drive.cell[:-AHEAD, None]).all(1) & (drive.cell[:-AHEAD] != NO_CELL)
        whole = values[:-AHEAD].isfinite().all(1) & (rate_bps >= LEAST_BPS)
        for cell in drive.cell[:-AHEAD][lte & stays & whole].unique().tolist():
            mine = lte & stays & whole & (drive.cell[:-AHEAD] == cell)
            inputs.setdefault(cell, []).append(values[:-AHEAD][mine].float())
            targets.setdefault(cell, []).append((rate_bps[mine] / 1e6).log10().float()[:, None])
    joined = {cell: (torch.cat(inputs[cell]), torch.cat(targets[cell])) for cell in inputs}
    return {cell: pair for cell, pair in sorted(joined.items()) if len(pair[0]) >= least}


def made_up_drives(random: Stream, cells: int = 6, rows: int = 400) -> tuple[Drive, ...]:
    """A stand-in where no drives were measured: one through each cell, past its station.

    RSRP falls with distance and is shadowed; SNR follows it; the rate is half of Shannon's in 10 MHz, times
    the share that the cell's own load leaves, and lognormal about that.
    """
    generator = random.generator()

    def noise(sigma: float) -> Tensor:
        return sigma * torch.randn(rows, generator=generator, dtype=torch.float64)

    drives = []
    for cell in range(cells):
        time_s = torch.arange(rows, dtype=torch.float64)
        speed_mps = (8 + noise(2)).clamp(min=0)
        distance_m = (speed_mps.cumsum(0) - 4 * rows).abs() + 30
        rsrp_dbm = (-60 - 22 * (distance_m / 30).log10() + noise(4)).clamp(-140, -44)
        snr_db = (rsrp_dbm + 105 + noise(2)).clamp(-10, 30)
        load = 0.2 + 0.6 * cell / cells
        rate_bps = 5e6 * (1 - load) * torch.log2(1 + 10 ** (snr_db / 10)) * noise(0.3).exp()
        nowhere = torch.full((rows,), torch.nan, dtype=torch.float64)
        drives.append(
            Drive(
                name=f"made up {cell}",
                started=datetime(2026, 1, 1 + cell % 28),
                row=torch.arange(rows),
                time_s=time_s,
                longitude_deg=-8.47 + 1e-5 * distance_m,
                latitude_deg=nowhere.new_full((rows,), 51.9),
                mode=("LTE",) * rows,
                cell=torch.full((rows,), cell),
                speed_mps=speed_mps,
                rsrp_dbm=rsrp_dbm.round(),
                rsrq_db=(-15 + snr_db / 4).round(),
                snr_db=snr_db.round(),
                cqi=(7 + snr_db / 3).round().clamp(1, 15),
                downlink_bps=rate_bps,
                uplink_bps=nowhere,
                neighbour_rsrp_dbm=nowhere,
                faults=(),
            )
        )
    return tuple(drives)
