"""DEFIANCE: when is AI in the cellular network worthwhile, and where should it be trained and run?"""

__version__ = "0.1.0"
