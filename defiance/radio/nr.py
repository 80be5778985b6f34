"""5G NR on one link, through Sionna: OFDM over the channels of TR 38.901, and the LDPC code of TS 38.212.

```
 row of N reals ─▶ two to a QPSK-like symbol ─▶ resource elements ─▶ h_k(t) x + n ─▶ conj(h_k) ─▶ N reals
                                                 subcarriers first     one tap each     known h
```

These are channels of reals (see `defiance.radio.channels`): bits over QPSK are ``Antipodal(NrTdl("C"))``.
Assumed: the receiver knows h; delays stay within the cyclic prefix and nothing moves within a row, so that
every resource element has one tap; pilots and prefixes are not among the channel uses. Sionna draws the
fading, and nobody else imports it: its import reseeds torch's global generator, which is put back here.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from defiance.errors import DefianceError
from defiance.radio.channels import antipodal_llr, matched_filter, q_function, snr
from defiance.seeding import stream

BASE_STATION_HEIGHT_M, DEVICE_HEIGHT_M = 25.0, 1.5  # TR 38.901 table 7.2-1, UMa


@contextmanager
def _sionna() -> Iterator[Any]:
    """Lend `sionna.phy`; torch's global generators are left as they were found."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        import sionna.phy.channel.tr38901
        import sionna.phy.fec.ldpc

        yield sionna.phy


@contextmanager
def _sionna_drawing(generator: torch.Generator) -> Iterator[tuple[Any, str]]:
    """Lend `sionna.phy` with its own generator seeded from this one, and the name of their device."""
    device = str(generator.device)
    with _sionna() as phy:
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        phy.config.torch_rng(device).manual_seed(int(seed))
        yield phy, device


@dataclass(frozen=True)
class Grid:
    """Resource elements that rows of symbols are mapped to: subcarriers first, then OFDM symbols.

    Attributes:
        carrier_hz: carrier frequency.
        spacing_hz: between subcarriers.
        subcarriers: of the allocation, twelve to a resource block.
        row_interval_s: from one row (along the last dimension but one) to the next.
    """

    carrier_hz: float = 3.5e9
    spacing_hz: float = 30e3
    subcarriers: int = 48
    row_interval_s: float = 20e-3

    def __post_init__(self) -> None:
        if not (min(self.carrier_hz, self.spacing_hz, self.row_interval_s) > 0 and self.subcarriers >= 1):
            raise DefianceError(f"{self} needs positive frequencies and times and at least one subcarrier")


class _Ofdm(ABC):
    """What the channels over a grid share."""

    grid: Grid

    @abstractmethod
    def _paths(self, links: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw path coefficients, complex64 [links, paths, rows], and delays [s], [links, paths]."""

    @abstractmethod
    def ber(self, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return the share of wrong signs of symbols -1 and +1, in the shape of `ebn0_db`."""

    def power(self, links: int, rows: int, generator: torch.Generator) -> Tensor:
        """Draw |h|^2, of mean one.

        Args:
            links: independent ones.
            rows: of each link, `Grid.row_interval_s` apart.
            generator: all draws; Sionna runs on its device.

        Returns:
            float32 [links, rows, subcarriers].
        """
        coefficients, delay_s = self._paths(links, rows, generator)
        frequency_hz = self.grid.spacing_hz * torch.arange(self.grid.subcarriers, device=delay_s.device)
        phase = -2 * torch.pi * delay_s[..., None] * frequency_hz
        return (coefficients.mT @ torch.polar(torch.ones_like(phase), phase)).abs().square()

    def __call__(
        self, sent: Tensor, ebn0_db: Tensor | float, generator: torch.Generator, *, rate: float = 1.0
    ) -> Tensor:
        """Return the matched filter's output.

        Args:
            sent: float [..., rows, N] or [N], antipodal or analogue, of unit mean energy; a link's rows
                follow each other in time.
            ebn0_db: averaged over the fading; broadcasts to [..., rows].
            generator: all draws.
            rate: information bits per channel use; two uses share a resource element.

        Returns:
            float, as `sent`.
        """
        rows, uses = (sent.shape if sent.dim() > 1 else (1, *sent.shape))[-2:]
        power = self.power(sent.numel() // max(rows * uses, 1), rows, generator)
        element = torch.arange(uses, device=sent.device) // 2
        power = power[..., element % self.grid.subcarriers].reshape(sent.shape).to(sent)
        return matched_filter(sent, power, ebn0_db, generator, rate)

    def llr(self, received: Tensor, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return 4 Es/N0 received [..., N], the log P(+1)/P(-1) of antipodal symbols given the fading."""
        return antipodal_llr(received, ebn0_db, rate)


@dataclass(frozen=True)
class NrTdl(_Ofdm):
    """OFDM over a tapped delay line, TR 38.901 clause 7.7.2; D and E have a line of sight.

    Attributes:
        profile: of the delay line.
        delay_spread_s: root mean square; table 7.7.3-1: 10 ns is very short, 100 nominal, 1000 very long.
        speed_mps: of the device; 0 lets every row of a link fade alike.
        grid: where symbols are mapped to.
    """

    profile: Literal["A", "B", "C", "D", "E"]
    delay_spread_s: float = 100e-9
    speed_mps: float = 1.0
    grid: Grid = Grid()

    def _paths(self, links: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        with _sionna_drawing(generator) as (phy, device):
            line = self._line(phy, device)
            coefficients, delay_s = line(links, rows, 1 / self.grid.row_interval_s)
        return coefficients[:, 0, 0, 0, 0], delay_s[:, 0, 0]

    def _line(self, phy: Any, device: str) -> Any:
        return phy.channel.tr38901.TDL(
            self.profile,
            self.delay_spread_s,
            self.grid.carrier_hz,
            min_speed=self.speed_mps,
            precision="single",
            device=device,
        )

    def ber(self, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return the error rate of antipodal symbols over Rician fading, in the shape of `ebn0_db`.

        By its moment-generating function (Simon and Alouini, Digital Communication over Fading Channels)::

            1/pi int_0^(pi/2) (1+K) s/((1+K) s + g) exp(-K g/((1+K) s + g)) d theta,  s = sin^2 theta

        with g = Es/N0 and K the line of sight's power over all others'; without one it is Rayleigh's.
        """
        with _sionna() as phy:
            line = self._line(phy, "cpu")
        direct = float(line.mean_power_los) if line.los else 0.0
        k = direct / (1 - direct)
        points = 256
        s = ((torch.arange(points) + 0.5) * (torch.pi / 2 / points)).sin().square()
        g = snr(ebn0_db, rate)[..., None]
        averaged = (1 + k) * s / ((1 + k) * s + g) * (-k / ((1 + k) * s / g + 1)).exp()
        return averaged.mean(-1) / 2


@dataclass(frozen=True)
class NrUma(_Ofdm):
    """OFDM over an urban macrocell's uplink, TR 38.901 clause 7.5: one device outdoors, one antenna each.

    Each link draws whether it has a line of sight, its delay spread, K factor and rays; path loss and
    shadowing are left out, for Eb/N0 says how much arrives.

    Attributes:
        distance_m: from the base station, along the ground.
        speed_mps: of the device, away from the base station.
        grid: where symbols are mapped to.
    """

    distance_m: float = 200.0
    speed_mps: float = 1.0
    grid: Grid = Grid()

    def _paths(self, links: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        with _sionna_drawing(generator) as (phy, device):
            antenna = phy.channel.tr38901.PanelArray(
                num_rows_per_panel=1,
                num_cols_per_panel=1,
                polarization="single",
                polarization_type="V",
                antenna_pattern="omni",
                carrier_frequency=self.grid.carrier_hz,
                precision="single",
                device=device,
            )
            cell = phy.channel.tr38901.UMa(
                self.grid.carrier_hz,
                "low",
                antenna,
                antenna,
                "uplink",
                enable_pathloss=False,
                enable_shadow_fading=False,
                precision="single",
                device=device,
            )

            def of_each(*xyz: float) -> Tensor:
                return torch.tensor(xyz, device=device).expand(links, 1, 3)

            cell.set_topology(
                ut_loc=of_each(self.distance_m, 0.0, DEVICE_HEIGHT_M),
                bs_loc=of_each(0.0, 0.0, BASE_STATION_HEIGHT_M),
                ut_orientations=of_each(0.0, 0.0, 0.0),
                bs_orientations=of_each(0.0, 0.0, 0.0),
                ut_velocities=of_each(self.speed_mps, 0.0, 0.0),
                in_state=torch.zeros(links, 1, dtype=torch.bool, device=device),
                los="random",
            )
            coefficients, delay_s = cell(rows, 1 / self.grid.row_interval_s)
        return coefficients[:, 0, 0, 0, 0], delay_s[:, 0, 0]

    def ber(self, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return the mean of Q(sqrt(2 Es/N0 |h|^2)) over the same 1,000 links, in the shape of `ebn0_db`."""
        return q_function((2 * snr(ebn0_db, rate)[..., None] * _sampled_power(self)).sqrt()).mean(-1)


@lru_cache
def _sampled_power(channel: NrUma) -> Tensor:
    """|h|^2 of many links' resource elements, [links x subcarriers]."""
    return channel.power(1000, 1, stream(0, "radio", "uma").generator()).flatten()


@dataclass(frozen=True)
class Ldpc:
    """The LDPC code of 5G NR, rate matching included (TS 38.212 clause 5), with belief propagation.

    Attributes:
        k: information bits of a block, 12 to 8448.
        n: coded bits of a block; the code's rate k/n is 1/5 to 948/1024.
        iterations: of the decoder.
    """

    k: int
    n: int
    iterations: int = 20

    def __post_init__(self) -> None:
        if not (
            12 <= self.k <= 8448 and 1 / 5 <= self.k / max(self.n, 1) <= 948 / 1024 and self.iterations >= 1
        ):
            raise DefianceError(
                f"{self} does not exist: k is 12 to 8448, k/n is 1/5 to 948/1024, iterations 1 or more"
            )

    @property
    def rate(self) -> float:
        """Information bits per coded bit."""
        return self.k / self.n

    def encode(self, bits: Tensor) -> Tensor:
        """Encode float [..., k], zeros and ones, to [..., n]."""
        with torch.no_grad():
            coded: Tensor = _coder(self, str(bits.device))[0](bits)
        return coded

    def decode(self, llr: Tensor) -> Tensor:
        """Decode.

        Args:
            llr: float [..., n], log P(1)/P(0).

        Returns:
            float [..., k], zeros and ones.
        """
        with torch.no_grad():
            bits: Tensor = _coder(self, str(llr.device))[1](llr)
        return bits


@lru_cache
def _coder(code: Ldpc, device: str) -> tuple[Any, Any]:
    with _sionna() as phy:
        encoder = phy.fec.ldpc.LDPC5GEncoder(code.k, code.n, precision="single", device=device)
        decoder = phy.fec.ldpc.LDPC5GDecoder(
            encoder, "boxplus", num_iter=code.iterations, precision="single", device=device
        )
    return encoder, decoder
