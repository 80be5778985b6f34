"""CRRM: 19 sites of three sectors, 1,000 users that all move, then everyone's throughput.

Of its path losses of the standard UMi is the fastest. `smart_update` is off: it saves work where few users
move, and fails where all do.
"""

import CRRM
import numpy as np

from benchmarks.worker import Program, serve

USERS, STEPS = 1000, 50


def moving() -> Program:
    """A unit is a user for one step: place, distances, gains, attachment, SINR, MCS, rate."""
    simulator = CRRM.Simulator(
        CRRM.Parameters(
            n_cell_locations=19, n_sectors=3, n_ues=USERS, pathloss_model_name="UMi", smart_update=False
        )
    )
    moves_m = np.random.default_rng(1).normal(0, 10, (STEPS, USERS, 2))

    def run() -> None:
        for move_m in moves_m:
            simulator.move_ue_locations("all", move_m)
            simulator.get_UE_throughputs()

    return Program(run, USERS * STEPS)


if __name__ == "__main__":
    serve(CRRM.get_version(), {"moving": moving})
