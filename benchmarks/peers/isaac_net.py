"""isaac-net: 256 environments of 16 robots in one cell, its slot engine `L2-legacy` on a CPU.

Of its backends for CPUs the faster one is taken; graphs and Triton kernels need a GPU.
"""

import time

import isaac_net
import torch
from isaac_net import Requests, make_engine

from benchmarks.worker import Program, serve

WORLDS, ROBOTS, SLOTS, STEPS = 256, 16, 40, 2
SENDING = 0.3  # of the robots, per control step


def uplink(backend: str) -> Program:
    """A unit is a robot for one uplink slot of 2.5 ms: radio, queues, grants, HARQ."""
    engine = make_engine("L2-legacy", WORLDS, ROBOTS, torch.device("cpu"), backend=backend)
    random = torch.Generator().manual_seed(1)
    place_m = 150 * torch.rand(WORLDS, ROBOTS, 2, generator=random)
    sending = [(torch.rand(WORLDS, ROBOTS, generator=random) < SENDING).long() for _ in range(STEPS)]

    def run() -> None:
        for send in sending:
            engine.submit(None, Requests(send))
            engine.step(None, place_m)

    return Program(run, WORLDS * ROBOTS * SLOTS * STEPS)


def fastest() -> Program:
    """The faster backend."""
    torch.set_num_threads(1)

    def rate(program: Program) -> float:
        program.run()
        began_s = time.process_time()
        program.run()
        return program.units / (time.process_time() - began_s)

    return max(map(uplink, ("reference", "eager")), key=rate)


if __name__ == "__main__":
    serve(isaac_net.__version__, {"uplink": fastest})
