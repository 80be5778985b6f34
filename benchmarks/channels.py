"""Wide-band channels of antenna arrays: 1,000 users x 21 sectors x 64 antennas x 52 sub-bands of 360 kHz.

The peer's side is `benchmarks.peers.sionna`: fewer links at once, for its memory's sake; rates are per link.
"""

import time

import torch

from benchmarks.worker import Program
from defiance.radio.arrays import Panel, Paths, channel
from defiance.scene.paths import load_walks
from defiance.seeding import stream

USERS, SECTORS, PATHS = 1000, 21, 16
SENDER, RECEIVER, BANDS = Panel(8, 8, element="38.901"), Panel(1, 1), (360e3, 52)


def traced() -> Program:
    """Users anywhere on Munich's walks: paths between points, array responses, sub-bands; a link a unit."""
    walks = load_walks("munich", "3.5ghz")
    generator = stream(1, "channels").generator()
    walk = torch.randint(len(walks.length_m), (USERS,), generator=generator)
    along_m = torch.rand(USERS, generator=generator, dtype=torch.float64) * walks.length_m[walk]
    cells = walks.cell_site

    def run() -> dict[str, float]:
        began_s, used_s = time.perf_counter(), time.process_time()
        channel(
            walks.at(walk, along_m).of(cells),
            SENDER,
            RECEIVER,
            BANDS,
            sender_bearing_rad=walks.bearing_rad[:, None],
            sender_tilt_rad=walks.tilt_rad[:, None],
        )
        used_s = time.process_time() - used_s
        return {
            "wall_s": time.perf_counter() - began_s,
            "cpu_s": used_s,
            "rate": len(cells) * USERS / used_s,
        }

    return Program(run)


def drawn() -> Program:
    """16 random paths for every link, as many as Sionna's side has; a unit is a link."""
    generator = stream(1, "channels").generator()
    shape = (SECTORS, USERS, PATHS)

    def angles() -> torch.Tensor:
        return torch.rand(*shape, 2, generator=generator) * torch.tensor([3.14, 6.28])

    gain = torch.randn(*shape, 2, 2, generator=generator, dtype=torch.complex64)
    paths = Paths(2e-6 * torch.rand(shape, generator=generator), gain, angles(), angles())
    return Program(lambda: channel(paths, SENDER, RECEIVER, BANDS), SECTORS * USERS)
