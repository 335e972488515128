"""Run the tests of ``tests/gpu``, and record the outcome of each as it ends."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu_parts import Judged, Report, Rows, Settings

REPOSITORY = Path(__file__).parents[3]
RESERVE_SECONDS = 3.0
"""Seconds reserved for the work after the tests."""


def run(settings: Settings, report: Report) -> None:
    """Run pytest in a process of its own.

    Raises:
        RuntimeError: If pytest is not installed.
    """
    if importlib.util.find_spec("pytest") is None:
        raise RuntimeError("pytest is not installed here; install it, or leave out --only tests")
    outcomes = Path(settings.scratch) / "outcomes.jsonl"
    output = Path(settings.scratch) / "pytest.txt"
    outcomes.touch()
    command = [
        *(sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-q", "-ra"),
        # Without the repository's settings, some of which need plugins that may be missing.
        *("-c", os.devnull, "--rootdir", str(REPOSITORY), "-p", "no:cacheprovider"),
        *("-p", "tests.benchmarks.gpu_parts.outcomes", f"--basetemp={settings.scratch}/pytest"),
    ]
    if settings.is_tiny:
        command += ["-k", "device"]
    environment = os.environ | {"GPU_BENCHMARK_OUTCOMES": str(outcomes)}
    with output.open("w") as file:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            code: int | None = None
            while code is None:
                try:
                    code = process.wait(1)
                except subprocess.TimeoutExpired:
                    _note(report, outcomes, output, None)
                    if settings.seconds_left < RESERVE_SECONDS:
                        break
        finally:
            process.kill()
    _note(report, outcomes, output, code)


def _note(report: Report, outcomes: Path, output: Path, code: int | None) -> None:
    lines = [json.loads(line) for line in outcomes.read_text().splitlines()]
    report.figures = {
        "exit_code": code,
        "tests": {line["test"]: {k: line[k] for k in ("outcome", "seconds")} for line in lines},
        "failures": {line["test"]: line["why"] for line in lines if line["outcome"] == "failed"},
        "output": output.read_text(errors="replace")[-3000:],
    }
    report.write()


def tables(figures: Mapping[str, Any]) -> Sequence[Rows]:
    """Return a table of one row per test."""
    rows = [
        (name.removeprefix("tests/gpu/"), entry["outcome"], f"{entry['seconds']:.1f}")
        for name, entry in figures["tests"].items()
    ]
    ended = "" if figures["exit_code"] is not None else ", cut off"
    return [Rows(title=f"GPU tests{ended}", headings=("test", "outcome", "s"), rows=rows)]


def judge(figures: Mapping[str, Any]) -> Sequence[Judged]:
    """Return the number of failed tests, plus one if pytest did not run to its end."""
    outcomes = [entry["outcome"] for entry in figures["tests"].values()]
    lost = outcomes.count("failed") + (figures["exit_code"] not in (0, 1))
    return [Judged(what="GPU tests that failed or were cut", value=lost, target=0, is_most=True)]
