"""Distributed search for image classifiers on a Ray cluster, ending in a soft-voting ensemble."""

# Written here, and read by the build: on a cluster's nodes the package lies without its metadata.
__version__ = "0.1.0"
