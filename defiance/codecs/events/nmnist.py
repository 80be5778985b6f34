"""N-MNIST's events of 40 bits, from a file or as they come.

```
 | x, 8 bits | y, 8 bits | polarity, 1 bit | clock, 23 bits of microseconds |
```

Polarity is 1 where brightness increased. A row of 240 is no event: it moves all later ones on by 2^13 us
(Orchard et al. 2015, and the readers that came with it). After 8.4 s the clock begins again at zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]

PIXELS = 34
EVENT_BYTES = 5
OVERFLOW_ROW = 240
OVERFLOW_US = 1 << 13
CLOCK_US = 1 << 23
WRAP_US = CLOCK_US - (1 << 17)
"""A clock that falls by more, by all but 0.13 s of its range, began again; by less, it is wrong."""


@dataclass(frozen=True)
class Events:
    """Decoded events, int64 [n] each, overflows left out; not checked.

    Attributes:
        x: column.
        y: row.
        polarity: 1 for an increase.
        time_us: clock plus `base_us`.
        base_us: that overflows, and clocks that began again, have added.
        place: number of the event among all that were decoded at once, overflows too.
    """

    x: Array
    y: Array
    polarity: Array
    time_us: Array
    base_us: Array
    place: Array


@dataclass
class Decoder:
    """Decodes bytes in any portions.

    Attributes:
        waiting: bytes of an event that is not whole yet.
        overflows: so far.
    """

    waiting: bytes = b""
    overflows: int = 0
    _wraps: int = 0
    _clock_us: int | None = None

    def feed(self, received: bytes) -> Events:
        """Take more bytes; return the events that they complete."""
        data = self.waiting + received
        events, rest = divmod(len(data), EVENT_BYTES)
        self.waiting = data[len(data) - rest :]
        x, y, high, middle, low = (
            np.frombuffer(data, np.uint8, events * EVENT_BYTES).reshape(-1, EVENT_BYTES).T.astype(np.int64)
        )
        overflow = y == OVERFLOW_ROW
        real = (~overflow).nonzero()[0]
        clock_us = (((high & 0x7F) << 16) | (middle << 8) | low)[real]
        before_us = clock_us[:1] if self._clock_us is None else np.array([self._clock_us])
        moved_us = np.diff(clock_us, prepend=before_us[: len(clock_us)])
        wraps = self._wraps + np.cumsum((moved_us < -WRAP_US).astype(np.int64) - (moved_us > WRAP_US))
        base_us = (self.overflows + np.cumsum(overflow)[real]) * OVERFLOW_US + wraps * CLOCK_US
        self.overflows += int(overflow.sum())
        if len(real):
            self._wraps, self._clock_us = int(wraps[-1]), int(clock_us[-1])
        return Events(x[real], y[real], high[real] >> 7, clock_us + base_us, base_us, real)
