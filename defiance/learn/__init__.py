"""Learning on base stations: one training loop, regimes as mixing matrices."""
