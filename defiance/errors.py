"""The one error that a user is meant to read."""


class DefianceError(Exception):
    """What went wrong, where, and how to mend it, in one clear line.

    Raised where the outside comes in (options, files, folders, scenes, sheets). The command line prints it
    on stderr and exits with status 2.
    """
