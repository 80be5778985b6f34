"""Learning on base stations: one training loop, regimes as mixing matrices, a network on a virtual clock.

`training.fit` trains nodes side by side where nothing happens on the way. `federation.federate` is the same
in a network: speeds, presence, links, codes for updates, servers that wait, peers without one.
"""
