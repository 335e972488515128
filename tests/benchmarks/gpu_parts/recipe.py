"""The recipe of ``speed.yaml`` to its accuracy, and the record's code if there is a copy."""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu_parts import Judged, Report, Rows, Settings, spread

REPOSITORY = Path(__file__).parents[3]
SEEDS = 5
EPOCHS = 8
SETUP_SECONDS = 25.0
SECONDS_A_SEED = 6.0
"""Maximum seconds per seed, with the record's code."""
MOST_POINTS_BELOW = 0.2
MOST_TIMES = 1.2


def run(settings: Settings, report: Report) -> None:
    """Run ``time_to_accuracy`` with as many seeds as the time allows.

    Raises:
        RuntimeError: If it fails.
    """
    seeds = int((settings.seconds_left - SETUP_SECONDS) / SECONDS_A_SEED)
    seeds = 1 if settings.is_tiny else max(1, min(SEEDS, seeds))
    command = [
        *(sys.executable, "-m", "tests.benchmarks.time_to_accuracy", "--json"),
        *("--data", settings.data, "--data-dir", settings.data_dir, "--device", settings.device),
        *("--seeds", str(seeds), "--no-tutorial", "--all-data"),
        *("--epochs", "1" if settings.is_tiny else str(EPOCHS)),
    ]
    if settings.is_tiny:
        command += ["--width", "8"]
    if settings.record:
        command += ["--record", settings.record]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-1500:])
    report.figures = {"seeds": seeds, "ways": json.loads(done.stdout)}
    report.write()


def tables(figures: Mapping[str, Any]) -> Sequence[Rows]:
    """Return a table of one row per way of training."""
    rows = [
        (
            name,
            str(len(runs)),
            spread([run["seconds"] for run in runs], 2),
            spread([100 * run["test_accuracy"] for run in runs], 2),
            spread([100 * run["test_accuracy_tta"] for run in runs], 2),
        )
        for name, runs in figures["ways"].items()
    ]
    headings = ("", "seeds", "seconds", "test %", "with views, %")
    return [Rows(title="The recipe, all training images", headings=headings, rows=rows)]


def judge(figures: Mapping[str, Any]) -> Sequence[Judged]:
    """Compare the recipe with the record's code."""
    ways = figures["ways"]
    record = next((runs for name, runs in ways.items() if "record" in name), None)
    ours = next((runs for name, runs in ways.items() if "record" not in name), None)
    if not record or not ours:
        return []

    def mean(runs: Sequence[Mapping[str, Any]], key: str) -> float:
        return statistics.fmean(run[key] for run in runs)

    below = 100 * (mean(record, "test_accuracy") - mean(ours, "test_accuracy"))
    times = mean(ours, "seconds") / mean(record, "seconds")
    return [
        Judged(
            what="recipe: points below the record",
            value=below,
            target=MOST_POINTS_BELOW,
            is_most=True,
        ),
        Judged(
            what="recipe: times the record's seconds", value=times, target=MOST_TIMES, is_most=True
        ),
    ]
