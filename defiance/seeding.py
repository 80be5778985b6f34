"""Named random streams from one seed; no global generator.

Every source of chance (mobility, fading, a link's losses, a model's first weights) has a stream of its own,
found by its name. Adding one never shifts another, so two policies meet the same world (common random
numbers) and comparisons are paired.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

GOLDEN_GAMMA = 0x9E3779B97F4A7C15  # splitmix64 (Steele, Lea, Flood, OOPSLA 2014), as are the two multipliers
FIRST_MULTIPLIER = 0xBF58476D1CE4E5B9
SECOND_MULTIPLIER = 0x94D049BB133111EB


@dataclass(frozen=True)
class Stream:
    """A source of random numbers, fully described by a seed and a name such as ``"munich/fading"``."""

    seed: int
    name: str

    def child(self, *names: str | int) -> "Stream":
        """Return the stream below this one: ``stream(1, "a").child("b", 3).name == "a/b/3"``."""
        return Stream(self.seed, "/".join([self.name, *map(str, names)]))

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a new torch generator at this stream's beginning."""
        return torch.Generator(device).manual_seed(self._number(63))

    def numpy(self) -> np.random.Generator:
        """Return a new NumPy generator at this stream's beginning."""
        return np.random.default_rng(self._number(128))

    def uniform(self, ids: Tensor) -> Tensor:
        """Draw one number per id: what id 7 draws never depends on which other ids exist, nor on their order.

        The draw is the id-th output of the splitmix64 generator that starts at this stream's key.

        Args:
            ids: int64 [...].

        Returns:
            float64 [...], uniform in [0, 1).
        """
        bits = ids * _signed(GOLDEN_GAMMA) + _signed(self.key)
        bits = (bits ^ _shifted(bits, 30)) * _signed(FIRST_MULTIPLIER)
        bits = (bits ^ _shifted(bits, 27)) * _signed(SECOND_MULTIPLIER)
        bits = bits ^ _shifted(bits, 31)
        return _shifted(bits, 11).to(torch.float64) * 2.0**-53

    @property
    def key(self) -> int:
        """Where the generator of `uniform` starts, 64 bits without a sign."""
        return self._number(64)

    def _number(self, bits: int) -> int:
        digest = hashlib.sha256(f"{self.seed}/{self.name}".encode()).digest()
        return int.from_bytes(digest, "big") >> (256 - bits)


def stream(seed: int, *names: str | int) -> Stream:
    """Return the stream of that seed and name: ``stream(1, "munich", "fading")``."""
    return Stream(seed, "/".join(map(str, names)))


def _signed(number: int) -> int:
    """Return the signed 64-bit integer with the same bits as an unsigned one."""
    return number - 2**64 if number >= 2**63 else number


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Shift int64 [...] to the right, filling with zeros (torch's own shift repeats the sign)."""
    return torch.bitwise_and(bits >> places, 2 ** (64 - places) - 1)
