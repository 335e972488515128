"""One search of ``speed.yaml``'s space, as started by a user, and its ensemble."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu_parts import Judged, Report, Rows, Settings

REPOSITORY = Path(__file__).parents[3]
RESERVE_SECONDS = 45.0
"""Seconds for Ray's start and end, and the ensemble."""
LEAST_BUDGET = 10
BAD = ("failed", "out_of_memory", "diverged")
USABLE = ("completed", "stopped", "interrupted")
TINY_SPACE = """
description: The smallest search
search: {trials: 3, epochs: 2, grace: 1, sampler: random, scheduler: none}
space:
  batch_size: 64
  model: {cnn: {stages: 1, blocks: 1, width: {choice: [8, 16]}}}
  optimizer: {sgd: {lr: {float: [0.01, 0.3], log: true}}}
"""


def tuner(settings: Settings, *arguments: str) -> str:
    """Run the program as a user does; return its output.

    Raises:
        RuntimeError: If it fails.
    """
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tuner", *arguments],
        cwd=settings.scratch,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments[:1])}: {done.stderr.strip()[-1500:]}")
    return done.stdout


def search(settings: Settings, space: str, name: str, *arguments: str) -> dict[str, Any]:
    """Search; return figures of the trials, the seconds and the share of slot time in epochs."""
    from tests.benchmarks.turnover import Trained, turnovers
    from tuner.run.run import Run

    began = time.monotonic()
    storage = Path(settings.scratch) / "runs"
    text = tuner(
        settings,
        *("search", "--space", space, "--name", name, "--storage", str(storage)),
        *("--data", settings.data, "--data-dir", settings.data_dir, "--json", *arguments),
    )
    document: dict[str, Any] = json.loads(text)
    run = Run.open(storage / name)
    histories = [trial.history for trial in run.trials() if trial.history]
    trained = [
        Trained(
            began=history[0].time - history[0].seconds,
            ended=history[-1].time,
            seconds=sum(row.seconds for row in history),
        )
        for history in histories
    ]
    gaps, share = turnovers(trained, int(run.record.slots["count"])) if trained else ([], 0.0)
    rows = document["trials"]
    return {
        "seconds": time.monotonic() - began,
        "trials": len(rows),
        "epochs": sum(row["epochs"] for row in rows),
        "states": Counter(row["state"] for row in rows),
        "reasons": sorted({row["reason"] for row in rows if row["state"] in BAD})[:5],
        "best_val_accuracy": max((row["accuracy"] or 0 for row in rows), default=0),
        "trial_seconds": [trial.seconds for trial in trained],
        "slot_seconds": [trial.ended - trial.began for trial in trained],
        "turnovers": gaps,
        "share": share,
    }


def run(settings: Settings, report: Report) -> None:
    """Search for the remaining time, then combine the best five."""
    gpus = ["--gpus-per-trial", "0" if settings.device == "cpu" else "0.25"]
    if settings.is_tiny:
        space = Path(settings.scratch) / "tiny.yaml"
        space.write_text(TINY_SPACE)
        found = search(settings, str(space), "search", *gpus)
    else:
        budget = max(LEAST_BUDGET, int(settings.seconds_left - RESERVE_SECONDS))
        found = search(settings, "speed", "search", *gpus, "--time-budget", f"{budget}s")
        found["budget_seconds"] = budget
    report.figures = {"search": found}
    report.write()
    began = time.monotonic()
    members = str(max(1, min(5, sum(found["states"].get(state, 0) for state in USABLE))))
    text = tuner(
        settings,
        *("ensemble", "--run", "search", "--storage", str(Path(settings.scratch) / "runs")),
        *("--top", members, "--tta", "flip", "--calibrate", "--json", "--device", settings.device),
    )
    document = json.loads(text)
    report.figures["ensemble"] = {
        "seconds": time.monotonic() - began,
        "members": int(members),
        "best single": document["best_single_figures"]["test"],
        "ensemble": document["ensemble"]["test"],
        "gain": document["gain"]["over_best_single"],
    }
    report.write()


def tables(figures: Mapping[str, Any]) -> Sequence[Rows]:
    """Return a table of the figures of the search and its ensemble."""
    found = figures["search"]
    rows = [
        ("trials", str(found["trials"])),
        ("states", ", ".join(f"{n} {state}" for state, n in found["states"].items())),
        ("epochs", str(found["epochs"])),
        ("seconds in all", f"{found['seconds']:.0f}"),
        ("share of slot time in epochs", f"{found['share']:.1%}"),
        ("best validation accuracy", f"{found['best_val_accuracy']:.4f}"),
    ]
    if found["trial_seconds"]:
        rows.insert(
            3, ("seconds a trial, median", f"{statistics.median(found['trial_seconds']):.1f}")
        )
    for reason in found["reasons"]:
        rows.append(("ended badly", reason))
    if combined := figures.get("ensemble"):
        rows.append(("seconds of the ensemble", f"{combined['seconds']:.1f}"))
        for key in ("best single", "ensemble"):
            scores = combined[key]
            text = f"accuracy {scores['accuracy']:.4f}, NLL {scores['nll']:.3f}"
            rows.append((f"{key}, test", text))
    return [Rows(title="One search with --space speed", headings=("", ""), rows=rows)]


def judge(figures: Mapping[str, Any]) -> Sequence[Judged]:
    """Return the number of failed trials, which should be 0, and the time over the budget."""
    states = figures["search"]["states"]
    bad = sum(states.get(state, 0) for state in ("failed", "out_of_memory"))
    judged = [Judged(what="search: trials that failed", value=bad, target=0, is_most=True)]
    if "budget_seconds" in figures["search"]:
        over = figures["search"]["seconds"] - figures["search"]["budget_seconds"]
        judged.append(
            Judged(what="search: seconds besides its budget", value=over, target=25, is_most=True)
        )
    return judged
