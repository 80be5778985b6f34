"""DEFIANCE: is AI in a cellular network worth its cost, and where should it be trained and run?"""

__version__ = "0.1.0"
