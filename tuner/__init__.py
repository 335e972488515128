"""Distributed search for image classifiers on a Ray cluster, ending in a soft-voting ensemble."""

from importlib.metadata import version

__version__ = version("cifar-tune")
