"""Event cameras: recordings, their files, a simulated sensor, and digits to look at."""

from defiance.codecs.events.recordings import Recordings, frames

__all__ = ["Recordings", "frames"]
