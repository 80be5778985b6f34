"""Constants of the simulated carrier and of its mobility procedures.

One frozen dataclass; every default names the clause or the document that it is taken from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from defiance.errors import DefianceError

SPEED_OF_LIGHT_MPS = 299_792_458.0
BOLTZMANN_DBM_PER_HZ = -173.975  # k T at 290 K
SLOTS_PER_S = 2000  # at 30 kHz, TS 38.211 table 4.3.2-1
RESOURCE_BLOCKS = {
    5e6: 11, 10e6: 24, 15e6: 38, 20e6: 51, 25e6: 65, 30e6: 78, 35e6: 92, 40e6: 106, 45e6: 119, 50e6: 133,
    60e6: 162, 70e6: 189, 80e6: 217, 90e6: 245, 100e6: 273,
}  # fmt: skip
"""Of 12 subcarriers, by the carrier's bandwidth [Hz] at 30 kHz: TS 38.101-1 table 5.3.2-1."""
DATA_SYMBOLS = 12  # of a slot's 14; control and pilots take 0.14, TS 38.306 clause 4.1.2

FADING_SHARE, FADING_MARGIN_DB = 0.003, 6.0
"""A link keeps its mean power, of which fading is a draw, if nobody can tell: below this share of noise and
all cells but the strongest, and so much below the floor of RSRP. See `reference.fades`."""

LinkAdaptation = Literal["shannon", "qam64", "qam256"]
LINK_ADAPTATIONS = get_args(LinkAdaptation)
Scheduler = Literal["equal_share", "round_robin", "proportional_fair", "max_rate"]
SCHEDULERS = get_args(Scheduler)


@dataclass(frozen=True)
class RadioConfig:
    """What every user and cell of a run shares.

    Attributes of time are rounded to whole steps by the simulator. Sources: TR 36.839 clause 5.2 and table
    5.2.1.1-1 (Qout, also of random access, Qin, T310, N310, N311, preparation and execution delay, time of
    stay of a ping-pong), TS 38.133 clause 8.1 (evaluation periods of radio-link monitoring), TS 38.213 clause
    4.1 (SS burst period 20 ms), TR 36.942 annex A (attenuation of Shannon's rate; the cap is 256QAM's 8 x
    948/1024), TS 38.423 clause 8.4.11 (load over Xn every 500 ms to 10 s),
    TS 38.101-1 table 6.2.1-1 (23 dBm, power class 3), TS 38.213 clause 7.1.1 with the ranges of TS 38.331
    (P0 and alpha; the values are ours, as is the interference over thermal), ITU-R M.2412 (a station's noise
    figure); one slot of five is the uplink's where frames are DDDSU. The floor of RSRP is the noise of one 30
    kHz resource element at a noise figure of 7 dB, and TS 38.133's SSB Es/Iot of -6 dB. `messages = "t310"`
    is the criterion of TR 36.839 clause 5.2.1.3: a handover command that arrives while T310 runs is a
    handover failure, every other message arrives. Settings marked "queued" matter with `messages = "queued"`
    alone: see `defiance.network.signalling`.
    """

    step_s: float = field(
        default=0.02, metadata={"min": 0.001, "max": 0.02, "unit": "s", "help": "simulator step"}
    )
    bandwidth_hz: float = field(
        default=20e6, metadata={"min": 5e6, "max": 1e8, "unit": "Hz", "help": "carrier"}
    )
    tx_power_dbm: float = field(
        default=44.0, metadata={"min": 0.0, "max": 60.0, "unit": "dBm", "help": "per cell"}
    )
    noise_figure_db: float = field(
        default=7.0, metadata={"min": 0.0, "max": 20.0, "unit": "dB", "help": "of a user"}
    )
    qout_db: float = field(
        default=-8.0, metadata={"min": -20.0, "max": 0.0, "unit": "dB", "help": "out of sync"}
    )
    qin_db: float = field(default=-6.0, metadata={"min": -20.0, "max": 5.0, "unit": "dB", "help": "in sync"})
    qout_window_s: float = field(
        default=0.2, metadata={"min": 0.02, "max": 2.0, "unit": "s", "help": "Qout mean"}
    )
    qin_window_s: float = field(
        default=0.1, metadata={"min": 0.02, "max": 2.0, "unit": "s", "help": "Qin mean"}
    )
    n310: int = field(
        default=1, metadata={"min": 1, "max": 20, "help": "out-of-sync indications that start T310"}
    )
    n311: int = field(default=1, metadata={"min": 1, "max": 10, "help": "in-sync indications that stop T310"})
    gap_breaks: bool = field(
        default=False,
        metadata={"help": "a step between Qout and Qin ends a row of indications, as in ns-3"},
    )
    access_db: float = field(
        default=-8.0,
        metadata={
            "min": -200.0,
            "max": 0.0,
            "unit": "dB",
            "help": "least SINR of random access in a handover",
        },
    )
    t304_s: float = field(
        default=0.0,
        metadata={"min": 0.0, "max": 10.0, "unit": "s", "help": "random access is repeated so long; 0: once"},
    )
    t310_s: float = field(default=1.0, metadata={"min": 0.0, "max": 6.0, "unit": "s", "help": "until RLF"})
    preparation_s: float = field(
        default=0.05, metadata={"min": 0.0, "max": 1.0, "unit": "s", "help": "over Xn"}
    )
    execution_s: float = field(
        default=0.04, metadata={"min": 0.0, "max": 1.0, "unit": "s", "help": "interruption"}
    )
    reestablishment_s: float = field(
        default=0.3,
        metadata={"min": 0.0, "max": 5.0, "unit": "s", "help": "cell search, RACH, RRC after an RLF"},
    )
    measurement_s: float = field(
        default=0.0,
        metadata={
            "min": 0.0,
            "max": 1.0,
            "unit": "s",
            "help": "between layer-1 measurements; 0: each decision",
        },
    )
    sample_s: float = field(
        default=0.0,
        metadata={
            "min": 0.0,
            "max": 1.0,
            "unit": "s",
            "help": "the end of that time which a measurement averages; 0: all of it",
        },
    )
    rsrp_floor_dbm: float = field(
        default=-128.0, metadata={"min": -200.0, "max": -80.0, "unit": "dBm", "help": "weakest RSRP detected"}
    )
    suitable_dbm: float = field(
        default=-128.0,
        metadata={
            "min": -200.0,
            "max": -80.0,
            "unit": "dBm",
            "help": "RSRP above which a cell is re-established in: any that is heard; -200: in any case",
        },
    )
    messages: Literal["sinr", "t310", "ideal", "queued"] = field(
        default="sinr",
        metadata={
            "help": "RRC messages are lost by SINR; commands alone and only while T310 runs; none is lost; "
            "or they wait for each other and for the air"
        },
    )
    xn_report_s: float = field(
        default=1.0,
        metadata={"min": 0.5, "max": 10.0, "unit": "s", "help": "between two exchanges of load over Xn"},
    )
    air_delay_s: float = field(
        default=0.005,
        metadata={"min": 0.0, "max": 0.1, "unit": "s", "help": "a report or a command in the air"},
    )
    xn_bps: float = field(
        default=1e9,
        metadata={"min": 1e3, "max": 1e12, "unit": "bit/s", "help": "a station's wire, each way; queued"},
    )
    user_power_dbm: float = field(
        default=23.0, metadata={"min": -40.0, "max": 33.0, "unit": "dBm", "help": "a user's most; queued"}
    )
    uplink_p0_dbm: float = field(
        default=-80.0,
        metadata={"min": -202.0, "max": 24.0, "unit": "dBm", "help": "P0 per resource block; queued"},
    )
    uplink_alpha: float = field(
        default=0.8, metadata={"min": 0.0, "max": 1.0, "help": "compensated part of the path loss; queued"}
    )
    uplink_slots: float = field(
        default=0.2, metadata={"min": 0.01, "max": 1.0, "help": "slots of the uplink, of all; queued"}
    )
    uplink_noise_figure_db: float = field(
        default=5.0, metadata={"min": 0.0, "max": 20.0, "unit": "dB", "help": "of a station; queued"}
    )
    uplink_iot_db: float = field(
        default=6.0,
        metadata={"min": 0.0, "max": 30.0, "unit": "dB", "help": "interference over thermal; queued"},
    )
    ping_pong_s: float = field(
        default=1.0, metadata={"min": 0.0, "max": 10.0, "unit": "s", "help": "time of stay"}
    )
    environment_mps: float = field(
        default=0.83,
        metadata={"min": 0.0, "max": 50.0, "unit": "m/s", "help": "moving scatterers: least Doppler"},
    )
    scatterers: int = field(
        default=8, metadata={"min": 4, "max": 64, "help": "sinusoids of the Jakes process"}
    )
    link_adaptation: LinkAdaptation = field(
        default="shannon",
        metadata={"help": "rate: attenuated Shannon, or NR's MCS tables with OLLA and HARQ"},
    )
    cqi_delay_s: float = field(
        default=0.005,
        metadata={
            "min": 0.0,
            "max": 0.02,
            "unit": "s",
            "help": "age of the SINR by which users are ranked and their MCS chosen",
        },
    )
    rate_attenuation: float = field(
        default=0.6, metadata={"min": 0.1, "max": 1.0, "help": "of Shannon's rate, TR 36.942"}
    )
    rate_max_bps_hz: float = field(
        default=7.4, metadata={"min": 1.0, "max": 10.0, "unit": "bit/s/Hz", "help": "cap: 256QAM at 948/1024"}
    )
    least_sinr_db: float = field(
        default=-10.0,
        metadata={
            "min": -200.0,
            "max": 10.0,
            "unit": "dB",
            "help": "nobody is scheduled below",
        },
    )
    foreground_share: float = field(
        default=0.25, metadata={"min": 0.0, "max": 1.0, "help": "PRBs that background traffic never takes"}
    )
    scheduler: Scheduler = field(
        default="equal_share", metadata={"help": "who gets the PRBs; see defiance.network.scheduling"}
    )
    fairness_s: float = field(
        default=1.0,
        metadata={"min": 0.02, "max": 100.0, "unit": "s", "help": "proportional_fair's mean of past rates"},
    )
    subbands: int = field(
        default=1,
        metadata={"min": 1, "max": 64, "help": "among which proportional_fair and max_rate choose"},
    )

    def __post_init__(self) -> None:
        """Refuses a carrier that NR doesn't have."""
        if self.bandwidth_hz not in RESOURCE_BLOCKS:
            known = ", ".join(f"{bandwidth_hz / 1e6:g}" for bandwidth_hz in RESOURCE_BLOCKS)
            raise DefianceError(
                f"bandwidth_hz is {self.bandwidth_hz:g}, but carriers at 30 kHz are {known} MHz wide"
                " (TS 38.101-1 table 5.3.2-1); choose one of them"
            )

    @property
    def resource_elements(self) -> int:
        """Subcarriers of the carrier."""
        return 12 * RESOURCE_BLOCKS[self.bandwidth_hz]

    @property
    def noise_dbm(self) -> float:
        """Thermal noise over the carrier at the user's receiver."""
        return BOLTZMANN_DBM_PER_HZ + 10 * math.log10(self.bandwidth_hz) + self.noise_figure_db

    @property
    def unheard_mw(self) -> float:
        """Received power over the carrier of a cell that nobody measures, however it fades."""
        return 10 ** ((self.rsrp_floor_dbm - FADING_MARGIN_DB) / 10) * self.resource_elements

    @property
    def fairness(self) -> float:
        """Weight of a step in proportional fairness' mean of past rates."""
        return min(1.0, self.step_s / self.fairness_s)

    @property
    def adapts(self) -> bool:
        """Whether an MCS is chosen, and an outer loop corrects the choice."""
        return self.link_adaptation != "shannon"

    @property
    def ranks(self) -> bool:
        """Whether the scheduler looks at rates."""
        return self.scheduler in ("proportional_fair", "max_rate")

    @property
    def bands(self) -> int:
        """Sub-bands that the scheduler tells apart: one, the carrier, if it doesn't look at rates."""
        return self.subbands if self.ranks else 1

    @property
    def reports(self) -> bool:
        """Whether anyone asks for the SINR of `cqi_delay_s` ago."""
        return self.ranks or self.adapts

    def steps(self, duration_s: float) -> int:
        """Whole steps that cover `duration_s`."""
        return max(0, math.ceil(duration_s / self.step_s - 1e-9))
