"""What computing, sending and radiating cost in joules: constants, each with its source.

None of these is a measurement of the machine at hand. Every profile has a low and a high end beside its
central value, so that a verdict can be checked against both.
"""

from dataclasses import dataclass

from torch import Tensor

# 45 nm, Horowitz, "Computing's energy problem", ISSCC 2014: energy of one multiply-accumulate and one load.
FLOAT32_MAC_J = 4.6e-12
INT8_MAC_J = 0.23e-12
CACHE_LOAD_32_BIT_J = 5e-12


@dataclass(frozen=True)
class ComputeProfile:
    """A processor: energy of one real-valued operation (a multiply-accumulate is two), and power when busy.

    Attributes:
        name: of the processor.
        joules_per_operation: central value.
        joules_per_operation_low: optimistic end.
        joules_per_operation_high: pessimistic end.
        watts_per_core: drawn by one busy core (or accelerator), its share of the socket's rest included.
        watts_per_core_low: optimistic end.
        watts_per_core_high: pessimistic end.
        source: where the numbers come from.
    """

    name: str
    joules_per_operation: float
    joules_per_operation_low: float
    joules_per_operation_high: float
    watts_per_core: float
    watts_per_core_low: float
    watts_per_core_high: float
    source: str

    @property
    def operations_per_second(self) -> float:
        """Operations that one core does in a second at `joules_per_operation`."""
        return self.watts_per_core / self.joules_per_operation


_SERVER_PEAK_PER_S = 95e9
_SERVER_WATTS, _SERVER_WATTS_LOW, _SERVER_WATTS_HIGH = 360 / 64, 360 / 96, 280 / 32

SERVER_CPU = ComputeProfile(
    name="server CPU core",
    joules_per_operation=_SERVER_WATTS / _SERVER_PEAK_PER_S,
    joules_per_operation_low=_SERVER_WATTS_LOW / _SERVER_PEAK_PER_S,
    joules_per_operation_high=_SERVER_WATTS_HIGH / (0.1 * _SERVER_PEAK_PER_S),
    watts_per_core=_SERVER_WATTS,
    watts_per_core_low=_SERVER_WATTS_LOW,
    watts_per_core_high=_SERVER_WATTS_HIGH,
    source=(
        "AMD EPYC 9004 default TDP over cores (9554: 360 W/64, low 9654: 360 W/96, high 9354: 280 W/32);"
        " 95 GFLOP/s per core in float32 with AVX-512, measured; high: a tenth of that rate (assumed), as"
        " small matrices reach"
    ),
)

_SOC_OPERATION_J = (FLOAT32_MAC_J + 2 * CACHE_LOAD_32_BIT_J) / 2

STATION_SOC = ComputeProfile(
    name="base-station SoC",
    joules_per_operation=4 * _SOC_OPERATION_J,
    joules_per_operation_low=1 * _SOC_OPERATION_J,
    joules_per_operation_high=15 * _SOC_OPERATION_J,
    watts_per_core=2.0,
    watts_per_core_low=1.0,
    watts_per_core_high=5.0,
    source=(
        "Horowitz 2014, 45 nm: float32 multiply-accumulate 4.6 pJ and two 32-bit cache loads of 5 pJ, times 4"
        " (1 to 15) for instructions, external memory and power conversion (assumed); 2 W (1 to 5) per busy"
        " core assumed"
    ),
)

_NPU_OPERATION_J = (INT8_MAC_J + 2 * CACHE_LOAD_32_BIT_J / 4) / 2

DEVICE_NPU = ComputeProfile(
    name="device NPU",
    joules_per_operation=2 * _NPU_OPERATION_J,
    joules_per_operation_low=1 * _NPU_OPERATION_J,
    joules_per_operation_high=10 * _NPU_OPERATION_J,
    watts_per_core=0.5,
    watts_per_core_low=0.2,
    watts_per_core_high=2.0,
    source=(
        "Horowitz 2014, 45 nm: int8 multiply-accumulate 0.23 pJ and two 8-bit quarters of a 5 pJ cache load,"
        " times 2 (1 to 10) for control, external memory and power conversion (assumed); 0.5 W (0.2 to 2)"
        " when busy assumed"
    ),
)


@dataclass(frozen=True)
class TransferProfile:
    """Energy of moving one sent bit: central value, low and high end, and where they come from."""

    name: str
    joules_per_bit: float
    joules_per_bit_low: float
    joules_per_bit_high: float
    source: str


BACKHAUL_AVERAGE_J_PER_BIT = 0.06 * 3.6e6 / 8e9
"""0.06 kWh/GB = 27 uJ/bit: a network's whole energy over its whole traffic, idle equipment included.

It is an average, not what one more bit costs: most of that power is drawn whether the bit is sent or not.
"""

BACKHAUL = TransferProfile(
    name="backhaul, marginal",
    joules_per_bit=0.03 / 1e6,
    joules_per_bit_low=0.003 / 1e6,
    joules_per_bit_high=BACKHAUL_AVERAGE_J_PER_BIT,
    source=(
        "Malmodin 2020 (Electronics Goes Green), power model of core and transmission: 0.03 W more per"
        " Mbit/s; low: a tenth of it (assumed); high: the average cost of 0.06 kWh/GB, as if every bit made"
        " the network grow"
    ),
)

# TR 38.840, FR1, in units of deep sleep. The unit's watts are not standardised. Assumed here: what a device
# draws more at 23 dBm than at 0 dBm is what its amplifier needs for the difference, at this efficiency.
UE_DOWNLINK_UNITS = 300.0
UE_UPLINK_0_DBM_UNITS, UE_UPLINK_23_DBM_UNITS = 250.0, 700.0
UE_AMPLIFIER_EFFICIENCY, UE_AMPLIFIER_EFFICIENCY_LOW, UE_AMPLIFIER_EFFICIENCY_HIGH = 0.25, 0.15, 0.40
UE_SLOT_S = 0.5e-3
UE_MESSAGE_BITS = 250
"""Sent bits of a measurement report or a command (headers included), which takes one slot of its own."""


def ue_watts_per_unit(amplifier_efficiency: float) -> float:
    """Return the watts of TR 38.840's relative unit if the amplifier has this efficiency: 1.8 mW at 25 %."""
    radiated_w = 10 ** (23 / 10 - 3) - 10 ** (0 / 10 - 3)
    return radiated_w / amplifier_efficiency / (UE_UPLINK_23_DBM_UNITS - UE_UPLINK_0_DBM_UNITS)


def _message_j_per_bit(units: float, amplifier_efficiency: float) -> float:
    return units * ue_watts_per_unit(amplifier_efficiency) * UE_SLOT_S / UE_MESSAGE_BITS


_UE_SOURCE = (
    "TR 38.840 relative power of one 0.5 ms slot, carrying one message of 250 bits; 1.8 mW per unit"
    " (1.1 to 2.9), assuming that the amplifier makes 23 dBm at 25 % (40 to 15) efficiency; "
)

UE_REPORT = TransferProfile(
    name="device radio, sending a report",
    joules_per_bit=_message_j_per_bit(
        (UE_UPLINK_0_DBM_UNITS + UE_UPLINK_23_DBM_UNITS) / 2, UE_AMPLIFIER_EFFICIENCY
    ),
    joules_per_bit_low=_message_j_per_bit(UE_UPLINK_0_DBM_UNITS, UE_AMPLIFIER_EFFICIENCY_HIGH),
    joules_per_bit_high=_message_j_per_bit(UE_UPLINK_23_DBM_UNITS, UE_AMPLIFIER_EFFICIENCY_LOW),
    source=_UE_SOURCE + "uplink 475 units, low at 0 dBm (250), high at 23 dBm (700)",
)

UE_COMMAND = TransferProfile(
    name="device radio, receiving a command",
    joules_per_bit=_message_j_per_bit(UE_DOWNLINK_UNITS, UE_AMPLIFIER_EFFICIENCY),
    joules_per_bit_low=_message_j_per_bit(UE_DOWNLINK_UNITS, UE_AMPLIFIER_EFFICIENCY_HIGH),
    joules_per_bit_high=_message_j_per_bit(UE_DOWNLINK_UNITS, UE_AMPLIFIER_EFFICIENCY_LOW),
    source=_UE_SOURCE + "PDCCH and PDSCH 300 units",
)

UE_DOWNLOAD = TransferProfile(
    name="device radio, receiving a file",
    joules_per_bit=UE_DOWNLINK_UNITS * ue_watts_per_unit(UE_AMPLIFIER_EFFICIENCY) / 20e6,
    joules_per_bit_low=UE_DOWNLINK_UNITS * ue_watts_per_unit(UE_AMPLIFIER_EFFICIENCY_HIGH) / 100e6,
    joules_per_bit_high=UE_DOWNLINK_UNITS * ue_watts_per_unit(UE_AMPLIFIER_EFFICIENCY_LOW) / 5e6,
    source=_UE_SOURCE.replace("one 0.5 ms slot, carrying one message of 250 bits", "reception")
    + "PDCCH and PDSCH 300 units at 20 Mbit/s (100 to 5, assumed)",
)

# EARTH (Auer et al., IEEE Wireless Communications 18(5), 2011), macro: P = N (P0 + dp Pmax) at full load.
EARTH_TRANSCEIVERS, EARTH_P0_W, EARTH_DP, EARTH_PMAX_W = 6, 130.0, 4.7, 20.0
SECTORS_PER_SITE = 3
FULL_LOAD_CELL_W = EARTH_TRANSCEIVERS * (EARTH_P0_W + EARTH_DP * EARTH_PMAX_W) / SECTORS_PER_SITE
"""EARTH's macro site draws 1344 W at full load; its six transceivers serve three sectors alike: 448 W a cell.

Each of those sectors radiates 2 x 20 W = 46 dBm; cells of a little less power are given the same draw.
"""


@dataclass(frozen=True)
class BaseStationPower:
    """Power of one cell against its load: TR 38.864 table 5.1-3 scaled to EARTH's macro. Always `modelled`.

    The report's powers are relative; here an active slot on all PRBs is given EARTH's full-load watts. An
    active slot with a share s_f of its PRBs draws (TR 38.864 clause 5.1, all antennas on and full power per
    PRB, i.e. s_a = s_p = eta = 1)::

        P_DL = P3 + (P4 - P3) (A + (1 - A) s_f),    A = 0.4

    and an idle slot draws P3, micro sleep. The scheduler fills slots to `slot_fill` before it takes another.
    At 1, the default, power is linear in load between P3 and P4, and a saved PRB saves (P4 - P3) of its time.
    A smaller value spreads the same PRBs over more slots: in cells where all slots are in use, a saved PRB
    then saves only 1 - A of that.

    Attributes:
        name: the report's category and set.
        micro_sleep: P3, relative power.
        downlink: P4, relative power.
        uplink: P5, relative power.
        slot_fill: in (0, 1].
    """

    name: str
    micro_sleep: float
    downlink: float
    uplink: float
    slot_fill: float = 1.0
    source: str = (
        "TR 38.864 table 5.1-3 and clause 5.1, scaled to EARTH's macro (Auer et al. 2011) at full load"
    )

    def power_w(self, load: Tensor) -> Tensor:
        """Return each cell's power.

        Args:
            load: [..., cells], share of PRBs in use, in [0, 1].

        Returns:
            [..., cells], watts.
        """
        active = (load / self.slot_fill).clamp(max=1.0)
        occupied = load.clamp(min=self.slot_fill)
        in_use = active * (STATIC_SHARE + (1 - STATIC_SHARE) * occupied)
        relative = self.micro_sleep + (self.downlink - self.micro_sleep) * in_use
        return relative * (FULL_LOAD_CELL_W / self.downlink)


STATIC_SHARE = 0.4
"""A of TR 38.864 clause 5.1: share of an active slot's power above micro sleep that PRBs do not change."""

BASE_STATIONS = {
    power.name: power
    for power in (
        BaseStationPower(
            "cat1-set1", micro_sleep=55.0, downlink=280.0, uplink=110.0
        ),  # 100 MHz, 64 TxRU, 55 dBm
        BaseStationPower(
            "cat1-set2", micro_sleep=50.0, downlink=200.0, uplink=90.0
        ),  # 20 MHz, 32 TxRU, 49 dBm
        BaseStationPower("cat1-set3", micro_sleep=38.0, downlink=152.0, uplink=80.0),  # FR2, 33 dBm
        BaseStationPower("cat2-set1", micro_sleep=5.5, downlink=32.0, uplink=6.5),
        BaseStationPower("cat2-set2", micro_sleep=5.0, downlink=26.0, uplink=5.8),
        BaseStationPower("cat2-set3", micro_sleep=3.0, downlink=17.6, uplink=4.2),
    )
}
"""By category and set of TR 38.864 table 5.1-3; `cat1-set2` is the one for 20 MHz below 7 GHz."""


def base_station_power_w(load: Tensor) -> Tensor:
    """Return the power of 20 MHz macro cells (`cat1-set2`) at these loads [..., cells], in watts."""
    return BASE_STATIONS["cat1-set2"].power_w(load)


# Horowitz 2014, 45 nm, as above: arithmetic alone, as many papers on spiking networks count.
FLOAT32_ADD_J = 0.9e-12
INT8_ADD_J = 0.03e-12

ARITHMETIC_45_NM = ComputeProfile(
    name="45 nm arithmetic",
    joules_per_operation=FLOAT32_MAC_J / 2,
    joules_per_operation_low=INT8_MAC_J / 2,
    joules_per_operation_high=_SOC_OPERATION_J,
    watts_per_core=0.1,
    watts_per_core_low=0.01,
    watts_per_core_high=1.0,
    source=(
        "Horowitz 2014, 45 nm: float32 multiply-accumulate 4.6 pJ and nothing else; low: int8, 0.23 pJ; high:"
        " with two 32-bit cache loads of 5 pJ; 0.1 W (0.01 to 1) when busy assumed"
    ),
)

_CORTEX_M4_CYCLE_J, _CORTEX_M4_WATTS = 3.0 * 3.2e-3 / 64e6, 3.0 * 3.2e-3

CORTEX_M4 = ComputeProfile(
    name="Cortex-M4",
    joules_per_operation=_CORTEX_M4_CYCLE_J,
    joules_per_operation_low=_CORTEX_M4_CYCLE_J / 8,
    joules_per_operation_high=4 * _CORTEX_M4_CYCLE_J,
    watts_per_core=_CORTEX_M4_WATTS,
    watts_per_core_low=_CORTEX_M4_WATTS / 8,
    watts_per_core_high=4 * _CORTEX_M4_WATTS,
    source=(
        "Nordic nRF52840 data sheet: 3.2 mA at 3 V and 64 MHz with DC/DC conversion, 150 pJ per cycle; one"
        " int8 operation per cycle assumed, as CMSIS-NN (Lai et al. 2018) reaches on a Cortex-M7: 25 million"
        " in 99 ms at 216 MHz; low: a core near threshold at an eighth of that energy, high: float32 or an"
        " older process at four times (both assumed)"
    ),
)


@dataclass(frozen=True)
class SpikingProfile:
    """A processor of spikes: energy per synaptic operation and per update of a neuron.

    A synaptic operation is one spike's effect on one neuron: fetch a weight and add it. A neuron is updated,
    leak and threshold, in every time step of a clocked design, and on most chips whether it spikes or not.

    Attributes:
        name: of the processor.
        joules_per_synaptic_operation: central value; `_low` and `_high`: optimistic and pessimistic ends.
        joules_per_update: of one neuron that stays silent in one time step; likewise. The few that
            fire are charged the same.
        source: where the numbers come from.
    """

    name: str
    joules_per_synaptic_operation: float
    joules_per_synaptic_operation_low: float
    joules_per_synaptic_operation_high: float
    joules_per_update: float
    joules_per_update_low: float
    joules_per_update_high: float
    source: str


LOIHI = SpikingProfile(
    name="Loihi",
    joules_per_synaptic_operation=23.6e-12,
    joules_per_synaptic_operation_low=2.5e-12,
    joules_per_synaptic_operation_high=45e-12,
    joules_per_update=52e-12,
    joules_per_update_low=52e-12 * 2.5 / 23.6,
    joules_per_update_high=81e-12 * 45 / 23.6,
    source=(
        "Davies et al., IEEE Micro 38(1), 2018: 23.6 pJ per synaptic operation, 81 pJ per update of an active"
        " neuron, 52 of an inactive one, static power apart; range of synaptic operations: TrueNorth 2.5,"
        " SENECA 2.8, SpiNNaker2 10, SpiNNaker 45 pJ (Tang et al., Frontiers in Neuroscience 17, 2023, table"
        " 3), updates scaled alike (assumed)"
    ),
)

SPIKES_45_NM = SpikingProfile(
    name="45 nm spike arithmetic",
    joules_per_synaptic_operation=FLOAT32_ADD_J,
    joules_per_synaptic_operation_low=INT8_ADD_J,
    joules_per_synaptic_operation_high=FLOAT32_ADD_J + CACHE_LOAD_32_BIT_J,
    joules_per_update=FLOAT32_MAC_J,
    joules_per_update_low=INT8_MAC_J,
    joules_per_update_high=FLOAT32_MAC_J + 2 * CACHE_LOAD_32_BIT_J,
    source=(
        "Horowitz 2014, 45 nm: a synaptic operation is a float32 addition of 0.9 pJ, an update one"
        " multiply-accumulate of 4.6 pJ, and nothing else; low: int8, 0.03 and 0.23 pJ; high: with one and"
        " two 32-bit cache loads of 5 pJ"
    ),
)


@dataclass(frozen=True)
class RadioProfile:
    """A radio in its connected state: energy of one coded bit on the air at both ends.

    One coded bit is one binary channel use. Setting up a connection and listening for nothing are not in it.
    The received Eb/N0 follows from the distance, which is free: a preset says what a bit costs, not how far
    it reaches.

    Attributes:
        name: of the radio.
        bits_per_s: coded bits on the air while it sends.
        bits_per_symbol: coded bits of one complex symbol.
        overhead_bits: synchronisation, headers and checksum of a packet, before coding.
        tx_joules_per_bit: spent by the sender if zeros and ones are equally likely, central value; `_low` and
            `_high`: optimistic and pessimistic ends.
        rx_joules_per_bit: spent by the receiver; likewise.
        silent_share: of the sender's energy, what silence (the zero of on-off keying) costs, too: 1 for an
            oscillator and an amplifier that stay on, 0 for pulses made one by one.
        source: where the numbers come from.
    """

    name: str
    bits_per_s: float
    bits_per_symbol: int
    overhead_bits: int
    tx_joules_per_bit: float
    tx_joules_per_bit_low: float
    tx_joules_per_bit_high: float
    rx_joules_per_bit: float
    rx_joules_per_bit_low: float
    rx_joules_per_bit_high: float
    silent_share: float
    source: str

    def charged_bits(self, uses: Tensor, radiated: Tensor) -> Tensor:
        """Return the bits [...] to charge the sender `tx_joules_per_bit` for.

        `uses` [...] are the coded bits sent and `radiated` [...] their energy in units of the mean Es, as
        `energy` in `defiance.radio.channels` says: `uses` if antipodal, twice the number of ones if on-off.
        """
        return self.silent_share * uses + (1 - self.silent_share) * radiated


BLE = RadioProfile(
    name="BLE, 1 Mbit/s",
    bits_per_s=1e6,
    bits_per_symbol=1,
    overhead_bits=8 * (1 + 4 + 2 + 3),
    tx_joules_per_bit=3.0 * 4.8e-3 / 1e6,
    tx_joules_per_bit_low=3.0 * 4.8e-3 / 2e6,
    tx_joules_per_bit_high=3.0 * 9.2e-3 / 1e6,
    rx_joules_per_bit=3.0 * 4.6e-3 / 1e6,
    rx_joules_per_bit_low=3.0 * 4.6e-3 / 2e6,
    rx_joules_per_bit_high=3.0 * 9.2e-3 / 1e6,
    silent_share=1.0,
    source=(
        "Nordic nRF52840 data sheet: 4.8 mA sending at 0 dBm, 4.6 mA receiving, at 3 V and 1 Mbit/s; low: the"
        " same at 2 Mbit/s (assumed); high: nRF52832 with its processor running, 9.2 mA; preamble 1, access"
        " address 4, header 2 and CRC 3 bytes (Bluetooth Core, volume 6, part B, 2.1)"
    ),
)

# One resource block for as long as 12 of 14 OFDM symbols carry QPSK: 0.5 ms in NR at 30 kHz, 1 ms in NB-IoT.
_BLOCK_BITS = 12 * 12 * 2
_NR_BLOCKS, _NB_IOT_BLOCKS_IN_20_MHZ, _NR_BLOCKS_IN_20_MHZ = 4, 100, 51


def _station_j(category: str, blocks: int, block_s: float) -> float:
    """Energy of receiving a bit: what an uplink slot draws above micro sleep, shared by its blocks' bits."""
    station = BASE_STATIONS[category]
    slot_w = (station.uplink - station.micro_sleep) / station.downlink * FULL_LOAD_CELL_W
    return slot_w * block_s / blocks / _BLOCK_BITS


_STATION_SOURCE = (
    "; receiver: a 20 MHz cell's uplink slot above micro sleep (TR 38.864 table 5.1-3, cat1-set2, EARTH's"
    " watts), its resource blocks sharing alike; low: cat2-set2; high: the slot serves this device alone"
)

NB_IOT = RadioProfile(
    name="NB-IoT",
    bits_per_s=_BLOCK_BITS / 1e-3,
    bits_per_symbol=2,
    overhead_bits=8 * (2 + 2 + 2 + 3),
    tx_joules_per_bit=3.6 * 0.220 * 1e-3 / _BLOCK_BITS,
    tx_joules_per_bit_low=3.6 * 0.100 * 1e-3 / _BLOCK_BITS,
    tx_joules_per_bit_high=3.6 * 0.220 * 1e-3 / (_BLOCK_BITS / 12),
    rx_joules_per_bit=_station_j("cat1-set2", _NB_IOT_BLOCKS_IN_20_MHZ, 1e-3),
    rx_joules_per_bit_low=_station_j("cat2-set2", _NB_IOT_BLOCKS_IN_20_MHZ, 1e-3),
    rx_joules_per_bit_high=_station_j("cat1-set2", 1, 1e-3),
    silent_share=1.0,
    source=(
        "u-blox SARA-N2 data sheet: 220 mA at 3.6 V for 23 dBm, on 12 tones of 15 kHz with QPSK; low: 13 dBm,"
        " 100 mA; high: 23 dBm on a single tone; MAC 2, RLC 2, PDCP 2 and CRC 3 bytes" + _STATION_SOURCE
    ),
)


def _nr_j(units: float, efficiency: float, blocks: int) -> float:
    return units * ue_watts_per_unit(efficiency) * UE_SLOT_S / (blocks * _BLOCK_BITS)


NR = RadioProfile(
    name="5G NR, 4 resource blocks",
    bits_per_s=_NR_BLOCKS * _BLOCK_BITS / UE_SLOT_S,
    bits_per_symbol=2,
    overhead_bits=8 * (2 + 2 + 2 + 2),
    tx_joules_per_bit=_nr_j(
        (UE_UPLINK_0_DBM_UNITS + UE_UPLINK_23_DBM_UNITS) / 2, UE_AMPLIFIER_EFFICIENCY, _NR_BLOCKS
    ),
    tx_joules_per_bit_low=_nr_j(UE_UPLINK_0_DBM_UNITS, UE_AMPLIFIER_EFFICIENCY_HIGH, _NR_BLOCKS_IN_20_MHZ),
    tx_joules_per_bit_high=_nr_j(UE_UPLINK_23_DBM_UNITS, UE_AMPLIFIER_EFFICIENCY_LOW, 1),
    rx_joules_per_bit=_station_j("cat1-set2", _NR_BLOCKS_IN_20_MHZ, UE_SLOT_S),
    rx_joules_per_bit_low=_station_j("cat2-set2", _NR_BLOCKS_IN_20_MHZ, UE_SLOT_S),
    rx_joules_per_bit_high=_station_j("cat1-set2", 1, UE_SLOT_S),
    silent_share=1.0,
    source=(
        "TR 38.840 relative power of an uplink slot of 0.5 ms, 1.8 mW per unit (1.1 to 2.9, as above), QPSK"
        " on 4 resource blocks at 475 units; low: 51 blocks at 0 dBm (250), high: 1 block at 23 dBm (700);"
        " MAC 2, RLC 2, PDCP 2 and CRC 2 bytes" + _STATION_SOURCE
    ),
)

IMPULSE_RADIO = RadioProfile(
    name="impulse radio",
    bits_per_s=16.7e6,
    bits_per_symbol=1,
    overhead_bits=8 * (4 + 1 + 1 + 2),
    tx_joules_per_bit=47e-12,
    tx_joules_per_bit_low=21e-12,
    tx_joules_per_bit_high=3.3 * 31e-3 / 6.8e6,
    rx_joules_per_bit=2.5e-9,
    rx_joules_per_bit_low=0.5e-9,
    rx_joules_per_bit_high=3.3 * 64e-3 / 6.8e6,
    silent_share=0.0,
    source=(
        "Wentzloff and Chandrakasan, ISSCC 2007: 47 pJ per pulse; chipset with its receiver 2.5 nJ per bit at"
        " 16.7 Mbit/s (Wentzloff et al., Energy Efficient Pulsed-UWB CMOS Circuits and Systems); low: 21 pJ"
        " per bit (arXiv 2212.01710), receiver a fifth (assumed); high: Decawave DW1000 data sheet, 31 and"
        " 64 mA at 3.3 V and 6.8 Mbit/s, coherent; preamble 4, delimiter 1, length 1 and CRC 2 bytes, as in"
        " IEEE 802.15.4 (assumed)"
    ),
)

RADIOS = {radio.name: radio for radio in (IMPULSE_RADIO, BLE, NR, NB_IOT)}
