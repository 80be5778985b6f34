"""Event cameras: recordings, their files, a simulated sensor, and digits to look at."""

from defiance.codecs.events.digits import digit_images, digits, mnist_images
from defiance.codecs.events.formats import Report, read
from defiance.codecs.events.recordings import Recordings, cut, frames
from defiance.codecs.events.sensor import SensorConfig, saccades, simulate, translation
from defiance.codecs.events.validation import Agreement, agreement

__all__ = [
    "Agreement",
    "Recordings",
    "Report",
    "SensorConfig",
    "agreement",
    "cut",
    "digit_images",
    "digits",
    "frames",
    "mnist_images",
    "read",
    "saccades",
    "simulate",
    "translation",
]
