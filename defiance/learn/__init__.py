"""Learning on base stations: one training loop, regimes as mixing matrices, a network on a virtual clock.

`training.fit` trains nodes side by side where nothing happens on the way. `federation.federate` is the same
in a network: speeds, presence, links, codes for updates, servers that wait, peers without one. `fit` here
takes a user's own PyTorch model through it and returns the sheet of KPMs (docs/learning.md).
"""

from defiance.learn.environment import Availability, Environment, Links
from defiance.learn.federation import Peers, Server, fedbuff
from defiance.learn.local import Local
from defiance.learn.models import Fitted, fit

__all__ = ["Availability", "Environment", "Fitted", "Links", "Local", "Peers", "Server", "fedbuff", "fit"]
