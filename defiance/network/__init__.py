"""Many users and cells over time: movement, fading, measurements, radio-link monitoring, load and energy."""
