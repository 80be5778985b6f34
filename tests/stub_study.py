"""Does counting to ten pay?

A study that takes no time, for the tests of the command line.
"""

import sys
import time
from dataclasses import dataclass, field

from defiance import __version__, config, studies
from defiance.kpm import Row, Sheet
from defiance.parts import Parts

computed: list[int] = []
"""Seeds whose part was computed, not read."""


@dataclass(frozen=True)
class Config:
    scene: str = field(default="munich", metadata={"help": "city or file"})
    load: float = field(default=0.5, metadata={"min": 0.0, "max": 1.0, "unit": "1", "help": "share of PRBs"})
    interrupt_at: int = field(default=-1, metadata={"help": "seed at which Ctrl-C is pressed; -1: never"})
    pause_s: float = field(default=0.0, metadata={"min": 0.0, "unit": "s", "help": "sleep per seed"})


PRESETS = {"quick": Config(), "full": Config(load=1.0)}
SEEDS = {"quick": 2, "full": 3}


def run(
    chosen: Config,
    *,
    seeds: tuple[int, ...],
    parts: Parts,
    progress: studies.Progress,
    workers: studies.Workers = studies.ALL_CORES,
) -> Sheet:
    values = []
    with progress.task("counting", total=len(seeds)) as task:
        for seed in seeds:
            part = parts.get(f"a3/seed{seed}")
            if part is None:
                if seed == chosen.interrupt_at and seed not in computed:
                    computed.append(seed)
                    raise KeyboardInterrupt
                time.sleep(chosen.pause_s)
                computed.append(seed)
                part = {"outage_share": 0.01 * (seed + 1)}
                parts.put(f"a3/seed{seed}", part)
                print("computed", seed, file=sys.stderr, flush=True)
            values.append(part["outage_share"])
            task.advance()
    mean = sum(values) / len(values)
    row = Row(
        candidate="a3",
        regime="none",
        scenario="munich/30kmh/load50/cap8/raw",
        node="network",
        metric="outage_share",
        unit="1",
        mean=mean,
        ci_low=min(values),
        ci_high=max(values),
        n=len(values),
        provenance="counted",
    )
    return Sheet(
        study="stub",
        version=__version__,
        config=config.to_dict(chosen),
        seeds=seeds,
        machine=studies.machine(),
        made_by="",
        rows=(row,),
        curves=(),
        verdict="Counting [to ten] does not pay.",
    )
