"""Sionna: scheduling of 57 cells, and wide-band channels of antenna arrays.

SYS: 57 cells of 18 users, proportional fair scheduling and the PHY abstraction; nothing moves.

Given each user's SINR on a carrier of one frequency resource (the least work it can do): who is scheduled,
with which MCS of a constant table, and whether the transport block arrives.
"""

import math
from importlib.metadata import version

import torch
from sionna.phy.channel import cir_to_ofdm_channel, subcarrier_frequencies
from sionna.phy.channel.tr38901 import PanelArray, UMa
from sionna.sys import PFSchedulerSUMIMO, PHYAbstraction

from benchmarks.worker import Program, serve

CELLS, USERS, SLOTS = 57, 18, 20
ELEMENTS = 51 * 12 * 12  # of a slot of 20 MHz
SECTORS, LINKED, PATHS, BANDS, SPACING_HZ = 21, 20, 16, 52, 360e3


def scheduling() -> Program:
    """A unit is a user for one slot."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    scheduler = PFSchedulerSUMIMO(USERS, 1, 1, batch_size=CELLS, device="cpu")
    abstraction = PHYAbstraction(device="cpu")
    sinr = torch.distributions.Exponential(0.1).sample((SLOTS, CELLS, USERS))
    mcs = torch.randint(28, (SLOTS, CELLS, USERS), generator=generator, dtype=torch.int32)

    def run() -> None:
        decoded = torch.zeros(CELLS, USERS)
        for now, index in zip(sinr, mcs, strict=True):
            rate = torch.log2(1 + now)
            chosen = scheduler(decoded, rate[:, None, None, :])[:, 0, 0, :, 0]
            allocated = chosen.int() * ELEMENTS
            decoded = abstraction(index, sinr_eff=now, num_allocated_re=allocated)[0].float()

    return Program(run, SLOTS * CELLS * USERS)


def generated() -> Program:
    """UMa of TR 38.901: paths drawn for 21 sectors x 20 users, 64 antennas, 52 bands; a unit is a link."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    sectors = torch.arange(SECTORS)
    site = torch.polar(torch.where(sectors // 3 > 0, 500.0, 0.0), (sectors // 3) * math.pi / 3)
    stands = torch.stack([site.real, site.imag, torch.full((SECTORS,), 25.0)], -1)[None]
    looks = torch.stack([(sectors % 3) * 2 * math.pi / 3, torch.full((SECTORS,), 0.17), 0 * site.real], -1)
    users = torch.cat([800 * torch.rand(1, LINKED, 2) - 400, torch.full((1, LINKED, 1), 1.5)], -1)
    station = PanelArray(
        num_rows_per_panel=8,
        num_cols_per_panel=8,
        polarization="single",
        polarization_type="V",
        antenna_pattern="38.901",
        carrier_frequency=3.5e9,
        device="cpu",
    )
    device = PanelArray(
        num_rows_per_panel=1,
        num_cols_per_panel=1,
        polarization="single",
        polarization_type="V",
        antenna_pattern="omni",
        carrier_frequency=3.5e9,
        device="cpu",
    )
    model = UMa(3.5e9, "low", device, station, "downlink", device="cpu")
    still = torch.zeros(1, LINKED, 3)
    outdoors = torch.zeros(1, LINKED, dtype=torch.bool)
    model.set_topology(users, stands, still, looks[None], still, outdoors)
    frequencies = subcarrier_frequencies(BANDS, SPACING_HZ, device="cpu")
    return Program(
        lambda: cir_to_ofdm_channel(frequencies, *model(1, 1.0)),
        SECTORS * LINKED,
    )


def transformed() -> Program:
    """`cir_to_ofdm_channel` alone: 16 paths whose gains at all 64 antennas are given; a unit is a link."""
    torch.set_num_threads(1)
    links = SECTORS * LINKED
    gains = torch.randn(links, 1, 1, 1, 64, PATHS, 1, dtype=torch.complex64)
    delays = 2e-6 * torch.rand(links, 1, 1, PATHS)
    frequencies = subcarrier_frequencies(BANDS, SPACING_HZ, device="cpu")
    return Program(lambda: cir_to_ofdm_channel(frequencies, gains, delays), links)


if __name__ == "__main__":
    serve(
        version("sionna-no-rt"),
        {"scheduling": scheduling, "UMa channels": generated, "channels of paths": transformed},
    )
