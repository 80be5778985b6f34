"""What the learning engine costs: `python -m benchmarks.learning [--only overhead nodes flower]`.

- overhead: CPU time of federated rounds of the handover model at 7 and 21 nodes (encoded into bytes, sent
  over links, checked, averaged) over that of the same optimiser steps in a bare loop, in turns.
- nodes: time of a round and largest resident memory with 10,000 nodes of a small model in one process.
- flower: wall time of a round of 10 tiny clients here and in Flower's simulation, where flwr is installed.
"""

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from defiance.control.experience import initial_parameters, perceptron
from defiance.control.handover import HISTORY
from defiance.errors import DefianceError
from defiance.learn.environment import Environment, Links
from defiance.learn.federation import Server, Task, federate
from defiance.learn.local import Local
from defiance.learn.partition import LocalData
from defiance.learn.training import Parameters
from defiance.link import BackhaulLink
from defiance.seeding import Stream, stream

CELLS, WIDTH, SAMPLES = 21, 256, 1000
BATCH, STEPS = 512, 25
"""Samples of a step of all nodes together, and steps of a round: of the study `worth` at its full size, a
round of which is 60 steps."""
TURNS = 9
BACKHAUL = Links(BackhaulLink(1e9, 5e-3), BackhaulLink(1e9, 5e-3))


def regression(nodes: int, widths: tuple[int, ...], samples: int) -> Task:
    """A perceptron per node that fits numbers without meaning."""
    generator = stream(1, "data").generator()
    data = LocalData.of(
        [
            (
                torch.randn(samples, widths[0], generator=generator),
                torch.randn(samples, widths[-1], generator=generator),
            )
            for _ in range(nodes)
        ]
    )

    def loss(weights: Parameters, batch: tuple[Tensor, ...]) -> Tensor:
        return (perceptron(weights, batch[0]) - batch[1]).square().mean((-1, -2))

    start = {name: weight[0] for name, weight in initial_parameters(widths, 1, stream(1, "model")).items()}
    return Task(start, loss, data.draw, data.count, lambda weights: torch.zeros(()))


def bare(task: Task, local: Local, rounds: int, random: Stream) -> Callable[[], None]:
    """The same optimiser steps, and nothing else."""
    nodes = len(task.samples)
    everyone, now_s = torch.arange(nodes), torch.zeros(nodes, dtype=torch.float64)

    def run() -> None:
        generator = random.generator()
        weights = {
            name: weight.expand(nodes, *weight.shape).clone().requires_grad_()
            for name, weight in task.start.items()
        }
        for _ in range(rounds):
            optimiser = torch.optim.Adam(weights.values(), lr=local.learning_rate, foreach=True)
            for _ in range(local.steps):
                uniform = torch.rand(nodes, local.batch, generator=generator, dtype=torch.float64)
                optimiser.zero_grad(set_to_none=True)
                task.loss(weights, task.draw(everyone, uniform, now_s)).sum().backward()
                optimiser.step()

    return run


def cpu_s(run: Callable[[], object]) -> float:
    """CPU time of a call."""
    began_s = time.process_time()
    run()
    return time.process_time() - began_s


def overhead(nodes: int, rounds: int = 2) -> None:
    """The engine's CPU time over the bare loop's."""
    task = regression(nodes, (HISTORY * CELLS, WIDTH, WIDTH, CELLS), SAMPLES)
    local, random = Local(STEPS, BATCH // nodes), stream(1, "learning")
    plain = bare(task, local, rounds, random)

    def ours() -> None:
        federate(task, local, Server(), rounds, random, Environment(step_s=1e-3, links=BACKHAUL))

    cpu_s(plain), cpu_s(ours)
    ratios = []
    for turn in range(TURNS):
        turns = (plain, ours) if turn % 2 else (ours, plain)
        spent = {run: cpu_s(run) for run in turns}
        ratios.append(spent[ours] / spent[plain])
    ratios.sort()
    print(
        f"{nodes} nodes of the handover model, {STEPS} steps a round: {statistics.median(ratios):.3f}"
        f" ({ratios[1]:.3f} to {ratios[-2]:.3f}) times the bare loop's CPU time"
    )


def many(nodes: int = 10_000, rounds: int = 3) -> None:
    """A round of so many nodes, and the memory it takes."""
    task = regression(nodes, (10, 32, 16, 1), 50)
    began_s = time.perf_counter()
    federate(
        task, Local(5, 32), Server(), rounds, stream(1, "many"), Environment(step_s=1e-3, links=BACKHAUL)
    )
    round_s = (time.perf_counter() - began_s) / rounds
    memory_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    weights = sum(weight.numel() for weight in task.start.values())
    print(f"{nodes} nodes of {weights} weights: {round_s:.2f} s a round, {memory_gb:.2f} GB at most")


def tiny(rounds: int) -> float:
    """Wall time of a round of 10 clients with one step each on 10 x 10 weights."""
    task = regression(10, (10, 10), 20)
    local, random = Local(1, 20, optimiser="sgd"), stream(1, "tiny")
    federate(task, local, Server(), 2, random)
    began_s = time.perf_counter()
    federate(task, local, Server(), rounds, random)
    return (time.perf_counter() - began_s) / rounds


def flower(rounds: int) -> float:
    """The same in Flower's simulation: the median from one aggregation to the next, so without its start.

    Raises:
        DefianceError: flwr isn't installed.
    """
    os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    try:
        from flwr.client import ClientApp, NumPyClient
        from flwr.common import ndarrays_to_parameters
        from flwr.server import ServerApp, ServerAppComponents, ServerConfig
        from flwr.server.strategy import FedAvg
        from flwr.simulation import run_simulation
    except ImportError:
        raise DefianceError("flower: flwr is not installed; install the extra flower") from None

    task = regression(10, (10, 10), 20)
    stamps: list[float] = []

    class Client(NumPyClient):
        def fit(self, parameters, config):  # type: ignore[no-untyped-def]
            weights = {
                name: torch.from_numpy(value)[None].requires_grad_()
                for name, value in zip(task.start, parameters, strict=True)
            }
            optimiser = torch.optim.SGD(weights.values(), lr=2e-3)
            uniform = torch.rand(1, 20, dtype=torch.float64)
            task.loss(weights, task.draw(torch.tensor([0]), uniform, torch.zeros(1))).sum().backward()
            optimiser.step()
            return [weight.detach()[0].numpy() for weight in weights.values()], 20, {}

    class Timed(FedAvg):
        def aggregate_fit(self, server_round, results, failures):  # type: ignore[no-untyped-def]
            assert len(results) == 10, failures
            stamps.append(time.perf_counter())
            return super().aggregate_fit(server_round, results, failures)

    def server(context: object) -> ServerAppComponents:
        start = ndarrays_to_parameters([weight.numpy() for weight in task.start.values()])
        strategy = Timed(
            fraction_evaluate=0.0, initial_parameters=start, min_fit_clients=10, min_available_clients=10
        )
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))

    run_simulation(
        ServerApp(server_fn=server),
        ClientApp(client_fn=lambda context: Client().to_client()),
        num_supernodes=10,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    return statistics.median(later - earlier for earlier, later in zip(stamps, stamps[1:], strict=False))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--only", nargs="+", default=["overhead", "nodes", "flower"])
    chosen = parser.parse_args().only
    torch.set_num_threads(1)
    if "overhead" in chosen:
        for nodes in (7, 21):
            overhead(nodes)
    if "nodes" in chosen:
        many()
    if "flower" in chosen:
        ours_s, theirs_s = tiny(100), flower(10)
        print(
            f"a round of 10 tiny clients: {1e3 * ours_s:.1f} ms, Flower's simulation {1e3 * theirs_s:.0f} ms:"
            f" {theirs_s / ours_s:.0f} times as long"
        )


if __name__ == "__main__":
    main()
