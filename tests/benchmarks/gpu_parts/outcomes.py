"""A pytest plugin that appends each test's outcome to the file GPU_BENCHMARK_OUTCOMES."""

import json
import os
from pathlib import Path

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record the outcome of a test's call, or of a setup or teardown that did not pass."""
    if report.when != "call" and report.outcome == "passed":
        return
    line = {
        "test": report.nodeid,
        "outcome": report.outcome,
        "seconds": report.duration,
        "why": report.longreprtext[-3000:],
    }
    with Path(os.environ["GPU_BENCHMARK_OUTCOMES"]).open("a") as file:
        file.write(json.dumps(line) + "\n")
