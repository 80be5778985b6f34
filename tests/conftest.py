"""Settings of the whole test suite: the same examples on every run, and no time limit on a shared machine."""

from hypothesis import settings

settings.register_profile("defiance", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("defiance")
