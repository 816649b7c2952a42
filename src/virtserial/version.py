"""The version of this package, for whoever needs it and nothing else."""

__version__ = "0.2.0"
