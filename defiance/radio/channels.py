"""Channels: symbols to symbols inside one transmission, differentiable in what is sent.

```
 bits 0/1 ──────────────▶ BinarySymmetric, ZChannel ─────────────▶ bits 0/1
 bits 0/1 ─▶ Antipodal( reals ─▶ Awgn, RayleighBlock ─▶ reals ) ─▶ soft or hard bits
```

Eb is the energy of one information bit and `rate` how many of them one channel use carries, so that one use
has the energy Es = rate Eb. N0 is the one-sided noise density: a real use has the noise variance N0/2.
Shapes are those of every channel: `sent` [..., N], `ebn0_db` a number or a tensor that broadcasts to [...].
Log-likelihood ratios are log P(received | 1)/P(received | 0), natural: positive means one.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from defiance.errors import DefianceError

LLR_LIMIT = 50.0
"""Largest log-likelihood ratio handed to a decoder: certainty would be infinite."""


class BinaryChannel(Protocol):
    """A channel that takes bits and can say how sure each received one is."""

    def __call__(
        self, sent: Tensor, ebn0_db: Tensor | float, generator: torch.Generator, *, rate: float = 1.0
    ) -> Tensor:
        """Return what arrives of `sent` [..., N]."""

    def llr(self, received: Tensor, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return log P(1)/P(0) of each received value [..., N], within +-`LLR_LIMIT`."""


class RealChannel(BinaryChannel, Protocol):
    """A channel of real symbols; `llr` holds for -1 (zero) and +1 (one)."""

    def ber(self, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return the share of wrong signs of symbols -1 and +1, in the shape of `ebn0_db`."""


def snr(ebn0_db: Tensor | float, rate: float) -> Tensor:
    """Return Es/N0 = rate Eb/N0 as a ratio, in the shape of `ebn0_db`; infinite without noise."""
    if not rate > 0:
        raise DefianceError(f"a channel's rate is {rate} information bits per use; give a positive number")
    return rate * 10 ** (torch.as_tensor(ebn0_db) / 10)


def q_function(x: Tensor) -> Tensor:
    """Return Q(x), the probability that a standard normal variable exceeds x, elementwise."""
    return 0.5 * torch.erfc(x / math.sqrt(2))


def matched_filter(
    sent: Tensor, power: Tensor, ebn0_db: Tensor | float, generator: torch.Generator, rate: float
) -> Tensor:
    """Send real symbols over known fading; return h (h sent + noise), the matched filter's output.

    A complex symbol is two real ones with the same h: the filter undoes its phase.

    Args:
        sent: float [..., N], of unit mean energy.
        power: float [..., N], h^2, of mean one.
        ebn0_db: broadcasts to [...].
        generator: of the noise.
        rate: information bits per channel use.

    Returns:
        float [..., N].
    """
    return power * sent + power.sqrt() * _deviation(sent, ebn0_db, rate) * _normal(sent, generator)


def antipodal_llr(received: Tensor, ebn0_db: Tensor | float, rate: float) -> Tensor:
    """Return 4 Es/N0 received [..., N], limited: log P(+1)/P(-1) of a matched filter's output."""
    return (_per_symbol(4 * snr(ebn0_db, rate), received) * received).clamp(-LLR_LIMIT, LLR_LIMIT)


@dataclass(frozen=True)
class BinarySymmetric:
    """Bits of which each flips with the same probability, whatever it is: hard decisions over Gaussian noise.

    Attributes:
        modulation: `antipodal`, bits sent as -+sqrt(Es): crossover Q(sqrt(2 Es/N0)); or `on-off`, as 0 and
            sqrt(2 Es), the same mean energy if both are equally likely: crossover Q(sqrt(Es/N0)). A zero
            then costs nothing and a one 2 Es (`energy`). (Proakis and Salehi, Digital Communications, 5th
            edition, section 4.2.)
    """

    modulation: Literal["antipodal", "on-off"] = "antipodal"

    def crossover(self, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return the probability of a flip, in the shape of `ebn0_db`."""
        return q_function((snr(ebn0_db, rate) * (2 if self.modulation == "antipodal" else 1)).sqrt())

    def __call__(
        self, sent: Tensor, ebn0_db: Tensor | float, generator: torch.Generator, *, rate: float = 1.0
    ) -> Tensor:
        """Flip bits.

        Args:
            sent: float [..., N], zeros and ones.
            ebn0_db: broadcasts to [...]; infinite for no flips.
            generator: the same draws flip more bits the lower Eb/N0.
            rate: information bits per channel use.

        Returns:
            float [..., N], sent xor flip; the gradient with respect to `sent` is 1 - 2 flip, exactly.
        """
        flip = _draw(sent, generator) < _per_symbol(self.crossover(ebn0_db, rate=rate), sent)
        return _flipped(sent, flip)

    def one_probability(self, sent: Tensor, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return P(received = 1) for bits, or for the probabilities of ones, `sent` [..., N]."""
        crossover = _per_symbol(self.crossover(ebn0_db, rate=rate), sent)
        return crossover + (1 - 2 * crossover) * sent

    def log_probability(
        self, received: Tensor, sent: Tensor, ebn0_db: Tensor | float, *, rate: float = 1.0
    ) -> Tensor:
        """Return log P(received | sent), elementwise, in nat.

        Args:
            received: float [..., N], zeros and ones.
            sent: float [..., N], zeros and ones, or the probabilities of ones: what was sent is then summed
                over.
            ebn0_db: broadcasts to [...].
            rate: information bits per channel use.

        Returns:
            float [..., N]; -inf for what cannot happen.
        """
        return _bernoulli(received, self.one_probability(sent, ebn0_db, rate=rate))

    def llr(self, received: Tensor, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return log P(1)/P(0) of each received bit [..., N]: one size for all, the bit's sign."""
        size = torch.special.logit(1 - self.crossover(ebn0_db, rate=rate).double()).clamp(max=LLR_LIMIT)
        return (2 * received - 1) * _per_symbol(size, received)

    def energy(self, sent: Tensor) -> Tensor:
        """Return the energy that each bit of `sent` [..., N] is radiated with, in units of Es."""
        return torch.ones_like(sent) if self.modulation == "antipodal" else 2 * sent


@dataclass(frozen=True)
class ZChannel:
    """On-off bits of which ones get lost and none is invented.

    The quantum limit of on-off keying: a receiver that counts quanta, with N0 as the energy of one, sees
    nothing where nothing was sent, and misses a pulse of 2 Es with the Poisson probability exp(-2 Es/N0)
    (Gagliardi and Karp, Optical Communications, 2nd edition).
    """

    def crossover(self, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return the probability that a one is lost, in the shape of `ebn0_db`."""
        return (-2 * snr(ebn0_db, rate)).exp()

    def __call__(
        self, sent: Tensor, ebn0_db: Tensor | float, generator: torch.Generator, *, rate: float = 1.0
    ) -> Tensor:
        """Lose ones of `sent` (float [..., N], zeros and ones); the gradient is one where none is lost."""
        lost = _draw(sent, generator) < _per_symbol(self.crossover(ebn0_db, rate=rate), sent)
        return sent * ~lost

    def one_probability(self, sent: Tensor, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return P(received = 1) for bits, or for the probabilities of ones, `sent` [..., N]."""
        return (1 - _per_symbol(self.crossover(ebn0_db, rate=rate), sent)) * sent

    def log_probability(
        self, received: Tensor, sent: Tensor, ebn0_db: Tensor | float, *, rate: float = 1.0
    ) -> Tensor:
        """Return log P(received | sent) in nat; as `BinarySymmetric.log_probability`."""
        return _bernoulli(received, self.one_probability(sent, ebn0_db, rate=rate))

    def llr(self, received: Tensor, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return log P(1)/P(0) of each received bit [..., N]: a one is certain."""
        if_zero = (-2 * snr(ebn0_db, rate)).clamp(min=-LLR_LIMIT)
        return torch.where(received > 0.5, LLR_LIMIT, _per_symbol(if_zero, received))

    def energy(self, sent: Tensor) -> Tensor:
        """Return the energy that each bit of `sent` [..., N] is radiated with, in units of Es."""
        return 2 * sent


@dataclass(frozen=True)
class Awgn:
    """Real symbols of unit mean energy in Gaussian noise of variance N0/(2 Es)."""

    def ber(self, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return Q(sqrt(2 Es/N0)): antipodal symbols whose sign is decided on, in the shape of `ebn0_db`."""
        return q_function((2 * snr(ebn0_db, rate)).sqrt())

    def __call__(
        self, sent: Tensor, ebn0_db: Tensor | float, generator: torch.Generator, *, rate: float = 1.0
    ) -> Tensor:
        """Return `sent` (float [..., N], antipodal or analogue, of unit mean energy) plus noise."""
        return sent + _deviation(sent, ebn0_db, rate) * _normal(sent, generator)

    def llr(self, received: Tensor, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return 4 Es/N0 received [..., N], the log P(+1)/P(-1) of antipodal symbols."""
        return antipodal_llr(received, ebn0_db, rate)


@dataclass(frozen=True)
class RayleighBlock:
    """Real symbols over flat Rayleigh fading that stays for a block; the receiver knows it (coherent).

    The received value is the matched filter's output h (h sent + noise): its sign decides, its size is its
    reliability, and a decoder of antipodal symbols needs no more. An analogue symbol arrives scaled by h^2,
    which is exponential with mean one. Every row of N symbols fades on its own.

    Attributes:
        uses_per_block: consecutive uses of a row with the same fading.
    """

    uses_per_block: int

    def __post_init__(self) -> None:
        if self.uses_per_block < 1:
            raise DefianceError(f"RayleighBlock.uses_per_block is {self.uses_per_block}; give 1 or more")

    def ber(self, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return (1 - sqrt(g/(1 + g)))/2 with g = Es/N0, for antipodal symbols, in the shape of `ebn0_db`.

        Proakis and Salehi, 5th edition, section 13.3. Errors within a block are not independent.
        """
        return 0.5 * (1 - (1 + 1 / snr(ebn0_db, rate)).rsqrt())

    def __call__(
        self, sent: Tensor, ebn0_db: Tensor | float, generator: torch.Generator, *, rate: float = 1.0
    ) -> Tensor:
        """Return the matched filter's output for `sent` (float [..., N], of unit mean energy)."""
        uses = sent.shape[-1]
        blocks = -(-uses // self.uses_per_block)
        quadratures = torch.randn(
            *sent.shape[:-1], blocks, 2, generator=generator, dtype=sent.dtype, device=sent.device
        )
        power = 0.5 * quadratures.square().sum(-1).repeat_interleave(self.uses_per_block, -1)[..., :uses]
        return matched_filter(sent, power, ebn0_db, generator, rate)

    def llr(self, received: Tensor, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return 4 Es/N0 received [..., N], the log P(+1)/P(-1) of antipodal symbols given the fading."""
        return antipodal_llr(received, ebn0_db, rate)


@dataclass(frozen=True)
class Antipodal:
    """Bits sent as -1 and +1 over a channel of reals.

    Attributes:
        channel: of reals.
        decision: `soft`, the received real r as the bit (1 + r)/2, any real; or `hard`, zeros and ones. Over
            `Awgn`, `hard` is the binary symmetric channel.
    """

    channel: RealChannel
    decision: Literal["soft", "hard"] = "soft"

    def crossover(self, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return the probability that a hard decision is wrong, in the shape of `ebn0_db`."""
        return self.channel.ber(ebn0_db, rate=rate)

    def __call__(
        self, sent: Tensor, ebn0_db: Tensor | float, generator: torch.Generator, *, rate: float = 1.0
    ) -> Tensor:
        """Send bits (float [..., N]); the gradient of a hard decision is that of sent xor error."""
        soft = 0.5 + 0.5 * self.channel(2 * sent - 1, ebn0_db, generator, rate=rate)
        return soft if self.decision == "soft" else _flipped(sent, (soft > 0.5) != (sent > 0.5))

    def llr(self, received: Tensor, ebn0_db: Tensor | float, *, rate: float = 1.0) -> Tensor:
        """Return log P(1)/P(0) of each received value [..., N]; of hard ones without the fading's help."""
        if self.decision == "soft":
            return self.channel.llr(2 * received - 1, ebn0_db, rate=rate)
        size = torch.special.logit(1 - self.crossover(ebn0_db, rate=rate).double()).clamp(max=LLR_LIMIT)
        return (2 * received - 1) * _per_symbol(size, received)


def _per_symbol(per_row: Tensor, symbols: Tensor) -> Tensor:
    """Give values [...] a last dimension, and symbols' dtype and device."""
    return per_row.to(symbols)[..., None]


def _draw(sent: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(sent.shape, generator=generator, dtype=sent.dtype, device=sent.device)


def _normal(sent: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(sent.shape, generator=generator, dtype=sent.dtype, device=sent.device)


def _flipped(sent: Tensor, flip: Tensor) -> Tensor:
    """Return sent xor flip, linear in `sent`."""
    return torch.where(flip, 1 - sent, sent)


def _deviation(sent: Tensor, ebn0_db: Tensor | float, rate: float) -> Tensor:
    """Return the noise's standard deviation sqrt(N0/(2 Es)), [..., 1]."""
    return _per_symbol((2 * snr(ebn0_db, rate)).rsqrt(), sent)


def _bernoulli(value: Tensor, probability: Tensor) -> Tensor:
    return (value * probability + (1 - value) * (1 - probability)).log()
