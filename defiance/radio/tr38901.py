"""The large scale of TR 38.901: line of sight, path loss, shadowing, walls, cars, the panel's pattern.

Pure functions on tensors that broadcast. `distance_m` is on the ground (d_2D) unless said otherwise. Clauses
and tables are those of V16.1; later ones have another infrared-reflective glass.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

SPEED_OF_LIGHT_MPS = 3e8  # the standard's own, in breakpoint distances
BUILDING_M, STREET_M = (
    5.0,
    20.0,
)  # table 7.4.1-1, RMa: average height of buildings h, average width of streets W
INDOOR_DB_PER_M = 0.5  # table 7.4.3-2, PL_in of both models
CAR_DB, CAR_SIGMA_DB = 9.0, 5.0  # clause 7.4.3.2, no metallised windows


# --- clause 7.4.2: probability of line of sight, table 7.4.2-1; distances are d_2D-out ---


def uma_los_probability(distance_m: Tensor, height_m: Tensor | float) -> Tensor:
    """UMa: high up, a user sees over roofs, C'(h_UT)."""
    height_m = torch.as_tensor(height_m, dtype=distance_m.dtype)
    above = ((height_m - 13) / 10).clamp(min=0) ** 1.5
    far = 1.25 * (distance_m / 100) ** 3 * torch.exp(-distance_m / 150)
    return torch.where(distance_m <= 18, 1.0, _street_los(distance_m, 63.0) * (1 + above * far))


def umi_los_probability(distance_m: Tensor, height_m: Tensor | float) -> Tensor:
    """UMi street canyon; the height plays no part."""
    return _street_los(distance_m, 36.0)


def rma_los_probability(distance_m: Tensor, height_m: Tensor | float) -> Tensor:
    """RMa; the height plays no part."""
    return torch.exp(-(distance_m - 10).clamp(min=0) / 1000)


def inh_los_probability(distance_m: Tensor, height_m: Tensor | float) -> Tensor:
    """InH, open office; the height plays no part."""
    near = torch.exp(-(distance_m - 5).clamp(min=0) / 70.8)
    return torch.where(distance_m <= 49, near, 0.54 * torch.exp(-(distance_m - 49) / 211.7))


def _street_los(distance_m: Tensor, decay_m: float) -> Tensor:
    corner = 18 / distance_m.clamp(min=18)
    return corner + torch.exp(-distance_m.clamp(min=18) / decay_m) * (1 - corner)


# --- clause 7.4.1: path loss, table 7.4.1-1 ---


def environment_height_m(distance_m: Tensor, height_m: float, uniform: Tensor) -> Tensor:
    """UMa's effective environment height h_E (note 1): 1 m, or a roof that a high user sees over.

    Args:
        distance_m: d_2D.
        height_m: of the user; below 13 m h_E is 1 m.
        uniform: one draw per link, uniform in [0, 1).
    """
    above = max(0.0, (height_m - 13) / 10) ** 1.5
    far = torch.where(distance_m <= 18, 0.0, 1.25 * (distance_m / 100) ** 3 * torch.exp(-distance_m / 150))
    ground = 1 / (1 + above * far)
    roofs = max(1, math.floor((height_m - 1.5 - 12) / 3 + 1e-6) + 1)  # 12, 15, ... h_UT - 1.5
    rest = ((uniform - ground) / (1 - ground).clamp(min=1e-9)).clamp(0, 1 - 1e-6)
    return torch.where(uniform < ground, 1.0, 12.0 + 3.0 * torch.floor(rest * roofs))


@dataclass(frozen=True)
class Geometry:
    """Where the ends of a link are.

    Attributes:
        distance_m: d_2D.
        height_m: h_UT.
        station_m: h_BS.
        carrier_hz: the carrier.
        environment_m: h_E, which counts in UMa and UMi.
    """

    distance_m: Tensor
    height_m: Tensor | float
    station_m: float
    carrier_hz: float
    environment_m: Tensor | float = 1.0

    @property
    def height(self) -> Tensor:
        """h_UT in the precision of the distance."""
        return torch.as_tensor(self.height_m, dtype=self.distance_m.dtype)

    @property
    def log_slant(self) -> Tensor:
        """log10 of d_3D."""
        return torch.log10(torch.hypot(self.distance_m, self.station_m - self.height))

    @property
    def carrier_ghz(self) -> float:
        """f_c."""
        return self.carrier_hz / 1e9


Loss = Callable[[Geometry], Tensor]
"""Path loss in dB."""


def _one_slope(
    offset: float, slope: float, carrier: float, per_m: float = 0.0, least: Loss | None = None
) -> Loss:
    """PL = offset + slope lg d_3D + carrier lg f - per_m (h_UT - 1.5), and not less than `least`."""

    def loss_db(at: Geometry) -> Tensor:
        far = offset + slope * at.log_slant + carrier * math.log10(at.carrier_ghz)
        far = far - per_m * (at.height_m - 1.5)
        return far if least is None else torch.maximum(least(at), far)

    return loss_db


def _two_slopes(offset: float, slope: float, fold: float) -> Loss:
    """PL_1 = offset + slope lg d_3D up to d'_BP, PL_2 = offset + 40 lg d_3D - fold lg(...) beyond."""

    def loss_db(at: Geometry) -> Tensor:
        above_m = (at.station_m - at.environment_m) * (at.height - at.environment_m)
        breakpoint_m = 4 * above_m * at.carrier_hz / SPEED_OF_LIGHT_MPS
        rise_m = at.station_m - at.height
        beyond = offset + 40 * at.log_slant - fold * torch.log10(breakpoint_m**2 + rise_m**2)
        near = offset + slope * at.log_slant
        return 20 * math.log10(at.carrier_ghz) + torch.where(at.distance_m <= breakpoint_m, near, beyond)

    return loss_db


uma_los_loss_db = _two_slopes(28.0, 22.0, 9.0)
uma_nlos_loss_db = _one_slope(13.54, 39.08, 20.0, 0.6, least=uma_los_loss_db)
umi_los_loss_db = _two_slopes(32.4, 21.0, 9.5)
umi_nlos_loss_db = _one_slope(22.4, 35.3, 21.3, 0.3, least=umi_los_loss_db)
inh_los_loss_db = _one_slope(32.4, 17.3, 20.0)
inh_nlos_loss_db = _one_slope(17.3, 38.3, 24.9, least=inh_los_loss_db)


def rma_breakpoint_m(height_m: Tensor | float, station_m: float, carrier_hz: float) -> Tensor:
    """RMa's d_BP, beyond which path loss and shadowing grow (note 5)."""
    return torch.as_tensor(2 * math.pi * station_m * height_m * carrier_hz / SPEED_OF_LIGHT_MPS)


def rma_los_loss_db(at: Geometry) -> Tensor:
    """RMa LOS among buildings of `BUILDING_M`."""

    def near(d: Tensor) -> Tensor:
        rough: float = BUILDING_M**1.72
        return (
            (20 + min(0.03 * rough, 10.0)) * torch.log10(d)
            + 20 * math.log10(40 * math.pi * at.carrier_ghz / 3)
            - min(0.044 * rough, 14.77)
            + 0.002 * math.log10(BUILDING_M) * d
        )

    breakpoint_m = rma_breakpoint_m(at.height_m, at.station_m, at.carrier_hz)
    beyond = near(breakpoint_m) + 40 * (at.log_slant - torch.log10(breakpoint_m))
    return torch.where(at.distance_m <= breakpoint_m, near(10**at.log_slant), beyond)


def rma_nlos_loss_db(at: Geometry) -> Tensor:
    """RMa NLOS, never less than LOS."""
    far = (
        161.04
        - 7.1 * math.log10(STREET_M)
        + 7.5 * math.log10(BUILDING_M)
        - (24.37 - 3.7 * (BUILDING_M / at.station_m) ** 2) * math.log10(at.station_m)
        + (43.42 - 3.1 * math.log10(at.station_m)) * (at.log_slant - 3)
        + 20 * math.log10(at.carrier_ghz)
        - (3.2 * torch.log10(11.75 * at.height) ** 2 - 4.97)
    )
    return torch.maximum(rma_los_loss_db(at), far)


# --- tables 7.2-1 to 7.2-3, 7.5-6, 7.6.3.1-2: the scenarios ---


@dataclass(frozen=True)
class Shadowing:
    """Standard deviation and the distance at which correlation is 1/e."""

    sigma_db: float
    correlation_m: float


@dataclass(frozen=True)
class DelaySpread:
    """lg(DS / 1 s) = `lg_s` + `slope` lg(`plus` + f), f in GHz and at least `least_ghz` (notes 6 and 7)."""

    lg_s: float
    slope: float = 0.0
    plus: float = 0.0
    least_ghz: float = 0.5

    def median_s(self, carrier_hz: float) -> float:
        """At a carrier."""
        carrier_ghz = max(carrier_hz / 1e9, self.least_ghz)
        return float(10 ** (self.lg_s + self.slope * math.log10(self.plus + carrier_ghz)))


@dataclass(frozen=True)
class Scenario:
    """One deployment of the standard.

    Attributes:
        name: "uma", "umi", "rma" or "inh".
        spacing_m: between sites (ISD).
        station_m: antenna height of sites.
        user_m: height of a user on the ground.
        nearest_m: least distance on the ground between a user and a site.
        indoor_share: of users dropped.
        storeys: highest building; a building has 4 to so many (TR 36.873 table 6-1), 1 where users all stay
            on the ground.
        depth_m: most metres of indoor propagation, d_2D-in.
        high_loss_share: of buildings that follow the high-loss model (table 7.8-1; RMa has low loss only).
        in_cars: whether users outdoors sit in cars (table 7.2-3).
        los, nlos, o2i: shadowing in each state (tables 7.4.1-1 and 7.5-6).
        los_beyond_db: LOS standard deviation beyond RMa's breakpoint; the same as before elsewhere.
        los_correlation_m: of the LOS state (table 7.6.3.1-2).
        k_db, k_sigma_db: mean and standard deviation of the K factor under LOS (table 7.5-6).
        k_correlation_m: of the K factor (table 7.5-6).
        delay_spread: without LOS (table 7.5-6).
        los_probability: of (d_2D-out, h_UT).
        los_loss_db, nlos_loss_db: path loss in each state.
    """

    name: str
    spacing_m: float
    station_m: float
    user_m: float
    nearest_m: float
    indoor_share: float
    storeys: int
    depth_m: float
    high_loss_share: float
    in_cars: bool
    los: Shadowing
    nlos: Shadowing
    o2i: Shadowing
    los_beyond_db: float
    los_correlation_m: float
    k_db: float
    k_sigma_db: float
    k_correlation_m: float
    delay_spread: DelaySpread
    los_probability: Callable[[Tensor, Tensor | float], Tensor]
    los_loss_db: Loss
    nlos_loss_db: Loss


UMA = Scenario(
    "uma", 500.0, 25.0, 1.5, 35.0, 0.8, 8, 25.0, 0.5, False, Shadowing(4.0, 37.0), Shadowing(6.0, 50.0),
    Shadowing(7.0, 7.0), 4.0, 50.0, 9.0, 3.5, 12.0, DelaySpread(-6.28, -0.204, 0.0, 6.0),
    uma_los_probability, uma_los_loss_db, uma_nlos_loss_db,
)  # fmt: skip
UMI = Scenario(
    "umi", 200.0, 10.0, 1.5, 10.0, 0.8, 8, 25.0, 0.5, False, Shadowing(4.0, 10.0), Shadowing(7.82, 13.0),
    Shadowing(7.0, 7.0), 4.0, 50.0, 9.0, 5.0, 15.0, DelaySpread(-6.83, -0.24, 1.0, 2.0),
    umi_los_probability, umi_los_loss_db, umi_nlos_loss_db,
)  # fmt: skip
RMA = Scenario(
    "rma", 1732.0, 35.0, 1.5, 35.0, 0.5, 1, 10.0, 0.0, True, Shadowing(4.0, 37.0), Shadowing(8.0, 120.0),
    Shadowing(8.0, 120.0), 6.0, 60.0, 7.0, 4.0, 40.0, DelaySpread(-7.43),
    rma_los_probability, rma_los_loss_db, rma_nlos_loss_db,
)  # fmt: skip
INH = Scenario(
    "inh", 20.0, 3.0, 1.0, 0.0, 0.0, 0, 0.0, 0.0, False, Shadowing(3.0, 10.0), Shadowing(8.03, 6.0),
    Shadowing(8.03, 6.0), 3.0, 10.0, 7.0, 4.0, 4.0, DelaySpread(-7.173, -0.28, 1.0, 6.0),
    inh_los_probability, inh_los_loss_db, inh_nlos_loss_db,
)  # fmt: skip
SCENARIOS = {scenario.name: scenario for scenario in (UMA, UMI, RMA, INH)}


def los_sigma_db(
    scenario: Scenario, distance_m: Tensor, height_m: Tensor | float, carrier_hz: float
) -> Tensor:
    """Standard deviation of shadowing under LOS at d_2D (table 7.4.1-1)."""
    beyond = distance_m > rma_breakpoint_m(height_m, scenario.station_m, carrier_hz)
    return torch.where(beyond, scenario.los_beyond_db, scenario.los.sigma_db)


# --- clause 7.4.3: into buildings and cars ---


def wall_loss_db(model: Literal["low", "high"], carrier_hz: float) -> float:
    """PL_tw through an external wall (tables 7.4.3-1 and 7.4.3-2).

    "low": 30 % standard glass in concrete; "high": 70 % infrared-reflective glass.
    """
    carrier_ghz = carrier_hz / 1e9
    concrete = 10 ** (-(5 + 4 * carrier_ghz) / 10)
    if model == "low":
        return 5 - 10 * math.log10(0.3 * 10 ** (-(2 + 0.2 * carrier_ghz) / 10) + 0.7 * concrete)
    return 5 - 10 * math.log10(0.7 * 10 ** (-(23 + 0.3 * carrier_ghz) / 10) + 0.3 * concrete)


WALL_SIGMA_DB = {"low": 4.4, "high": 6.5}
"""Standard deviation sigma_P of a building's penetration loss (table 7.4.3-2)."""


def wall_penetration_db(high: Tensor, normal: Tensor, carrier_hz: float) -> Tensor:
    """PL_tw + N(0, sigma_P^2) of indoor users, the same towards every station (clause 7.4.3.1).

    Behind the wall come `INDOOR_DB_PER_M` for each metre of d_2D-in.

    Args:
        high: whether the building follows the high-loss model, bool.
        normal: one standard normal draw per user.
        carrier_hz: the carrier.
    """
    wall = torch.where(high, wall_loss_db("high", carrier_hz), wall_loss_db("low", carrier_hz))
    sigma = torch.where(high, WALL_SIGMA_DB["high"], WALL_SIGMA_DB["low"])
    return wall + sigma * normal


# --- clause 7.3: antennas ---


def element_gain_db(zenith_deg: Tensor, azimuth_deg: Tensor) -> Tensor:
    """Gain of one panel element, off its boresight (zenith 90, azimuth 0; table 7.3-1)."""
    vertical = (12 * ((zenith_deg - 90) / 65) ** 2).clamp(max=30)
    off_deg = (azimuth_deg + 180) % 360 - 180
    horizontal = (12 * (off_deg / 65) ** 2).clamp(max=30)
    return 8 - (vertical + horizontal).clamp(max=30)


def column_gain_db(zenith_deg: Tensor, tilt_deg: float, elements: int = 10) -> Tensor:
    """What a column of elements, half a wavelength apart, adds to one: |w^H a|^2, at most `elements`.

    Weights of equal magnitude steer it electrically to zenith `tilt_deg` (table 7.8-1, TR 36.873 clause 7.1).
    Its nulls are filled to -40 dB below one element, so that a map of it stays finite.
    """
    steps = torch.cos(torch.deg2rad(zenith_deg)) - math.cos(math.radians(tilt_deg))
    phase = math.pi * torch.arange(elements, dtype=zenith_deg.dtype) * steps[..., None]
    power = (torch.cos(phase).sum(-1) ** 2 + torch.sin(phase).sum(-1) ** 2) / elements
    return 10 * torch.log10(power.clamp(min=1e-4))
