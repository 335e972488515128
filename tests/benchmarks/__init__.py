"""Measurements with figures for the README; each module is one command, ``python -m`` its name."""
