"""Sionna SYS: 57 cells of 18 users, proportional fair scheduling and the PHY abstraction; nothing moves.

Given each user's SINR on a carrier of one frequency resource (the least work it can do): who is scheduled,
with which MCS of a constant table, and whether the transport block arrives.
"""

from importlib.metadata import version

import torch
from sionna.sys import PFSchedulerSUMIMO, PHYAbstraction

from benchmarks.worker import Program, serve

CELLS, USERS, SLOTS = 57, 18, 20
ELEMENTS = 51 * 12 * 12  # of a slot of 20 MHz


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


if __name__ == "__main__":
    serve(version("sionna-no-rt"), {"scheduling": scheduling})
