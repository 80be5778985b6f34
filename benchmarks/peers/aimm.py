"""AIMM: 19 sites of three sectors, 1,000 users that all move and report once a second of simulated time.

Its urban macro path loss, a table of 360 degrees as antenna pattern, no handovers, loggers or controllers.
"""

from importlib.metadata import version

import numpy as np
from AIMM_simulator import Scenario, Sim

from benchmarks.worker import Program, serve

USERS, SITES, SECTORS, EDGE_M = 1000, 19, 3, 2000.0


def moving() -> Program:
    """A unit is a user for one step: path loss to every cell twice, reports, SINR, CQI, rate."""
    simulation, random = Sim(show_params=False), np.random.default_rng(1)
    degrees = np.arange(360)
    for place_m in EDGE_M * random.random((SITES, 2)):
        for sector in range(SECTORS):
            off = (degrees - 360 / SECTORS * sector + 180) % 360 - 180
            pattern_db = 8.0 - np.minimum(12 * (off / 65) ** 2, 30)
            simulation.make_cell(xyz=(*place_m, 20.0), pattern=pattern_db)
    for place_m in EDGE_M * random.random((USERS, 2)):
        simulation.make_UE(xyz=(*place_m, 2.0)).attach_to_nearest_cell()

    def move(simulation: Sim) -> None:
        for user in simulation.UEs:
            user.xyz[:2] += random.standard_normal(2)

    simulation.add_scenario(Scenario(simulation, func=move))
    simulation.run(until=0.5)  # starts everybody's loop

    def run() -> None:
        simulation.env.run(until=simulation.env.now + 1.0)

    return Program(run, USERS)


if __name__ == "__main__":
    serve(version("AIMM-simulator"), {"moving": moving})
