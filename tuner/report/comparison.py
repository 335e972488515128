"""Runs side by side: what was searched and spent, what came of it, and how fast."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuner.report.page import render
from tuner.run.run import Run, leader
from tuner.run.state import SearchState
from tuner.storage.files import write_text


def compare(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Describe each run: its settings, what it spent, its best trial, and its best so far.

    Returns:
        For each run, in the order given, plain values; ``best_so_far`` holds epochs trained,
        GPU-hours spent (training hours where no trial had a GPU) and the best validation accuracy
        at each improvement.
    """
    return [_describe(run) for run in runs]


def _describe(run: Run) -> dict[str, Any]:
    ranked = run.ranked()
    record = run.record
    state = SearchState.from_trials(record.search, ranked)
    first = leader(ranked)
    return {
        "run": record.name,
        "path": str(run.path),
        "status": record.status,
        "data": record.data.source,
        "split": record.split_fingerprint,
        "is_val_seen": record.data.all_data,
        "sampler": record.search.sampler,
        "scheduler": record.search.scheduler,
        "trials": len(ranked),
        "stopped": state.ended["stopped"],
        "epochs": state.num_epochs,
        "seconds": round(record.active_seconds, 1),
        "training_hours": sum(trial.seconds for trial in ranked) / 3600,
        "gpu_hours": state.gpu_seconds / 3600,
        "best": first.best.val_accuracy if first and first.best else None,
        "best_trial": first.number if first else None,
        "model": first.config.model.family if first else None,
        "best_so_far": state.best_so_far(),
    }


def differences(described: Sequence[dict[str, Any]]) -> str:
    """Say why the accuracies of runs cannot be compared; empty if they can."""
    if seen := [run["run"] for run in described if run["is_val_seen"]]:
        return (
            f"Not comparable: {', '.join(seen)} trained on the validation images, too "
            "(refit --all-data); accuracies on them say nothing."
        )
    if len({run["split"] for run in described}) > 1:
        return (
            "These runs differ in the images that they trained on or were validated on; their "
            "accuracies differ for that reason, too."
        )
    return ""


def verdict(described: Sequence[dict[str, Any]]) -> str:
    """Say in one sentence which run came furthest."""
    scored = [run for run in described if run["best"] is not None]
    if not scored:
        return "None of these runs has a trial with an accuracy"
    if any(run["is_val_seen"] for run in described):
        return f"{len(described)} runs that are not comparable"
    if differences(described):
        return f"{len(described)} runs on different images"
    scored.sort(key=lambda run: -run["best"])
    lead = scored[0]
    text = f"{lead['run']} leads: {100 * lead['best']:.2f}\N{NO-BREAK SPACE}% validation"
    if len(scored) == 1:
        return text
    ahead = 100 * (lead["best"] - scored[1]["best"])
    return f"{text}, {ahead:.2f} ahead of {scored[1]['run']}"


def write_comparison(described: Sequence[dict[str, Any]], path: Path) -> None:
    """Write runs, as ``compare`` gives them, side by side on one page that needs nothing else."""
    page = render(
        "compare.html",
        ("compare.js",),
        {"runs": list(described)},
        title="Comparison · cifar-tune",
        verdict=verdict(described),
        warning=differences(described),
        runs=described,
    )
    write_text(path, page)
