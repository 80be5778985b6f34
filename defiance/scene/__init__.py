"""Where: ray-traced cities, the streets in them, and the tracer that makes new ones."""

from defiance.scene.city import (
    FLOOR_DB,
    Scene,
    gain_db,
    load,
    median_filtered,
    names,
    save,
    xn_table,
)

__all__ = [
    "FLOOR_DB",
    "Scene",
    "gain_db",
    "load",
    "median_filtered",
    "names",
    "save",
    "xn_table",
]
