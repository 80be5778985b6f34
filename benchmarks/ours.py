"""DEFIANCE's side of `make bench`: the programs that are timed beside the peers'."""

import math
import time

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import channels, learning
from benchmarks.worker import Program, serve
from benchmarks.worlds import RANDOM, link_bytes, one_site, urban
from defiance import __version__
from defiance.codecs import codec, events, streaming, vdib
from defiance.codecs.codec import Samples
from defiance.control.handover import A3
from defiance.errors import DefianceError
from defiance.interfaces import HandoverVectorEnv
from defiance.network import kernel, reference
from defiance.network.settings import RadioConfig
from defiance.network.simulate import simulate
from defiance.network.state import initial
from defiance.network.world import World
from defiance.recordings import data_folder
from defiance.seeding import stream
from defiance.studies.coinference.candidates import designs
from defiance.studies.coinference.data import CLASSES, binned, duration_us

BATCH, BATCHES, ACTIVE, PIXELS = 100, 4, 0.05, 34
EPOCH, USES, RECORDINGS = 10_000, 480, 14
COPIED = 2**26  # floats
CONFIG = RadioConfig(scheduler="proportional_fair")


def training() -> Program:
    """S-VDIB's device half (without its chance, which the peers lack): forward, backward, Adam.

    A unit is a recording; the peers' side is `benchmarks.peers.spiking`.
    """
    config = vdib.VdibConfig(readouts=10, bases=1, lags=1)
    random = stream(1, "training")
    weights = vdib.initial(config, random.child("weights").generator())
    parameters = {
        name: weight.requires_grad_() for name, weight in weights.items() if name.startswith("device.")
    }
    optimiser = torch.optim.Adam(parameters.values(), lr=2e-3, foreach=True)
    generator = random.child("events").generator()
    events = (torch.rand(BATCH, config.steps, 2, PIXELS, PIXELS, generator=generator) < ACTIVE).byte()
    labels = torch.randint(config.classes, (BATCH,), generator=generator)

    def run() -> None:
        for _ in range(BATCHES):
            optimiser.zero_grad(set_to_none=True)
            logits = vdib.drive(parameters, config, events).current.mean(1)
            functional.cross_entropy(logits, labels).backward()
            optimiser.step()

    return Program(run, BATCHES * BATCH)


def images(count: int) -> Tensor:
    """MNIST's, uint8 [count, 28, 28], or scikit-learn's digits again and again where there is none."""
    try:
        return events.mnist_images(data_folder() / "mnist", "train")[0][:count]
    except DefianceError:
        drawn = events.digit_images("train")[0]
        return drawn.repeat(math.ceil(count / len(drawn)), 1, 1)[:count]


def camera() -> Program:
    """The simulated event camera; a unit is an image."""
    shown = images(1000)
    return Program(
        lambda: events.simulate(shown, events.saccades(), events.SensorConfig(), stream(1, "speed")),
        len(shown),
    )


def epoch() -> Program:
    """10,000 recordings are simulated, binned and learned from by the study's S-VDIB, two threads."""
    torch.set_num_threads(2)
    design, random, shown = designs("s-vdib", USES)[0], stream(1, "epoch"), images(EPOCH)
    labels = torch.randint(CLASSES, (EPOCH,), generator=random.child("labels").generator())
    settings = codec.Training(epochs=1, batch=BATCH, learning_rate=design.learning_rate)

    def run() -> dict[str, float]:
        began_s = time.perf_counter()
        camera = random.child("camera")
        recorded = events.simulate(shown, events.saccades(), events.SensorConfig(), camera, labels=labels)
        samples = binned(recorded, "nmnist")
        held = samples.select(torch.arange(BATCH))
        weights = design.initial(random.child("weights").generator(), held)
        codec.train(weights, design.stages[0].loss, samples, held, settings, random)
        return {"wall_s": time.perf_counter() - began_s}

    return Program(run)


def streamed() -> Program:
    """What `defiance codec encode` and `decode` do, through a socket, at the pace of a camera, one thread.

    Weights are random: they don't change what is computed.
    """
    design, random = designs("s-vdib", USES)[0], stream(1, "stream")
    recorded = events.simulate(images(RECORDINGS), events.saccades(), events.SensorConfig(), random)
    samples: Samples = binned(recorded, "nmnist")
    built = design.builds[0](design.initial(random.child("weights").generator(), samples))
    frames = samples.frames.flatten(0, 1)
    step_s = duration_us("nmnist") * 1e-6 / built.steps

    def run() -> dict[str, float]:
        found = streaming.loopback(built, streaming.paced(frames, step_s), random).both
        return {"p50_ms": 1e3 * found.p50_s, "p99_ms": 1e3 * found.p99_s}

    return Program(run)


def network(world: World, duration_s: float, per: str) -> Program:
    """The whole loop of the simulator under event A3: all that a study switches on.

    Args:
        world: a batch.
        duration_s: of a call.
        per: what a unit is: `user`, `link` or `world`, for one step.
    """
    rule, random = A3(3.0, 1.0, 0.16, 4.0), stream(1, "messages")
    return Program(
        lambda: simulate(world, CONFIG, rule, random, duration_s=duration_s, warm_up_s=0.0),
        units(world, per) * CONFIG.steps(duration_s),
    )


def step(world: World, steps: int, per: str, calls: int = 1) -> Program:
    """The fused step alone: movement, fading, procedures, scheduling, load; each call begins anew.

    Nobody measures or hands over, so that a later call would be of users who have lost their cells.

    Args:
        world: a batch, of which one world after the other takes the steps of a call.
        steps: of a call.
        per: as of `network`.
        calls: what is timed.
    """
    begins = initial(world, CONFIG, reference.path_gain_db(world, world.route_m[:, :, 0]).argmax(-1))
    advance = kernel.stepping(world, CONFIG)

    def run() -> None:
        state = begins.clone()
        for _ in range(calls):
            advance(state, steps)

    return Program(run, units(world, per) * steps * calls)


def cities(worlds: int, users: int) -> HandoverVectorEnv:
    """The environment `defiance/Handover-v0`, whose worlds are in Munich, 21 cells; an episode has begun."""
    task = {"users": users, "duration_s": 600.0, "placement": "device", "radio": CONFIG}
    envs = HandoverVectorEnv(worlds, **task)
    envs.reset(seed=1)
    return envs


def environment(envs: HandoverVectorEnv, periods: int) -> Program:
    """What a learner sees: actions, steps, measurements, observations, rewards; resets are left out.

    One user in fifty asks for a handover each period, to any cell. A unit is a user for one step.
    """
    worlds, users, cells = envs.episodes.shape
    rng = RANDOM.child("actions").numpy()
    asks = rng.random((periods, worlds, users)) < 0.02
    targets = rng.integers(cells, size=asks.shape)
    serving = [envs.episodes.observation.serving.long().numpy()]

    def run() -> None:
        for ask, target in zip(asks, targets, strict=True):
            seen, *_ = envs.step(np.where(ask, target, serving[0]))
            serving[0] = seen["serving"]

    return Program(run, periods * envs.episodes.loop.period_steps * worlds * users)


def units(world: World, per: str) -> int:
    """How many of them a batch has."""
    worlds, users, cells = world.shape
    return worlds * {"world": 1, "user": users, "link": users * cells}[per]


def traffic(users: int, steps: int) -> Program:
    """The fused step on 57 cells; a unit is a byte of a link that the step must touch (`link_bytes`)."""
    world = urban(1, users, 5.0)
    touched = link_bytes(world) * units(world, "link")
    return Program(step(world, steps, "link").run, steps * touched)


def copying() -> Program:
    """Copies 256 MiB of floats; a unit is a byte read or written."""
    source, target = torch.ones(COPIED), torch.empty(COPIED)
    return Program(lambda: target.copy_(source), 2 * source.nbytes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(
        __version__,
        {
            "training": training,
            "epoch": epoch,
            "camera": camera,
            "stream": streamed,
            "19x3 x 1000, loop": lambda: network(urban(1, 1000, 4.0), 4.0, "user"),
            "8 x 19x3 x 1000, loop": lambda: network(urban(8, 1000, 2.0), 2.0, "user"),
            "19x3 x 1000, step": lambda: step(urban(1, 1000, 60.0), 200, "user"),
            "links, loop": lambda: network(urban(1, 1000, 4.0), 4.0, "link"),
            "links, step": lambda: step(urban(1, 1000, 60.0), 200, "link"),
            "links, 100000 users": lambda: step(urban(1, 100_000, 1.0), 3, "link"),
            "256 worlds, loop": lambda: network(one_site(256, 5, 3, 4.0), 4.0, "world"),
            "256 worlds, step": lambda: step(one_site(256, 5, 3, 120.0), 500, "world"),
            "256 worlds of 16, step": lambda: step(one_site(256, 16, 1, 120.0), 500, "user"),
            "57 x 1026, step": lambda: step(urban(1, 1026, 60.0), 200, "user"),
            "32 x 21 x 100, environment": lambda: environment(cities(32, 100), 20),
            "32 x 21 x 100, step": lambda: step(cities(32, 100).episodes.loop.world, 5, "user", 20),
            "traffic": lambda: traffic(20_000, 10),
            "copy": copying,
            "channels on walks": channels.traced,
            "channels of 16 paths": channels.drawn,
            "tiny round": lambda: Program(lambda: {"rate": 1 / learning.tiny(100)}),
            "Flower's": lambda: Program(lambda: {"rate": 1 / learning.flower(10)}),
        },
    )
