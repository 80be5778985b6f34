"""What stations learn of channels: through a codec of channel feedback, or by the number of a beam.

Reports for `network.mumimo`; `Perfect` there is what they are compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from defiance.control.codebooks import received_power
from defiance.control.csi.rules import Feedback
from defiance.network.mumimo import Perfect


@dataclass(frozen=True)
class ByCodec:
    """Strongest directions of every sub-band, through a codec; several streams are reports of their own.

    Attributes:
        codec: rule or learned.
        streams: that are told of.
    """

    codec: Feedback
    streams: int = 1

    @property
    def bits(self) -> int:
        """Of all streams."""
        return self.streams * self.codec.bits

    def __call__(self, channels: Tensor, cell: Tensor) -> Tensor:
        """See `network.mumimo.Report`."""
        w = Perfect(self.streams)(channels, cell).flatten(0, 1)
        of = cell.repeat_interleave(self.streams)
        told: Tensor = self.codec.decode(self.codec.encode(w, of), of).unflatten(0, (-1, self.streams))
        return told


@dataclass(frozen=True)
class ByBeam:
    """The strongest beam of a codebook, mean over the band, such as a sweep finds.

    Attributes:
        beams: complex64 `[B, T]`, norm 1; of a dual panel `codebooks.cophased` ones.
    """

    beams: Tensor
    streams = 1

    @property
    def bits(self) -> int:
        """Of a beam's number."""
        return (len(self.beams) - 1).bit_length()

    def __call__(self, channels: Tensor, cell: Tensor) -> Tensor:
        """See `network.mumimo.Report`.

        Raises:
            DefianceError: the codebook doesn't fit the array.
        """
        best = received_power(channels, self.beams).argmax(-1)
        return self.beams[best][:, None, None].expand(-1, -1, channels.shape[-1], -1)
