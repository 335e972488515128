"""Measurements for the README; each module is a command: ``python -m tests.benchmarks.NAME``."""
