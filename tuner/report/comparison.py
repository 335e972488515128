"""Runs side by side: what they searched and spent, what they reached, and how fast."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tuner.config import Metric
from tuner.metrics.goal import name_of, score
from tuner.report.page import in_words, metric_facts, render
from tuner.run.run import Run, leader
from tuner.run.state import SearchState


def compare(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Describe each run: its settings, what it spent, its best trial, and its best so far.

    All runs are shown by the metric that they are ranked by, or by accuracy, which every run
    records, if their metrics differ.

    Returns:
        Plain values for each run, in the given order; ``best`` is the leading trial's value of the
        metric, ``best_so_far`` holds epochs trained, GPU-hours spent (training hours if no trial
        had a GPU) and the best value of the metric at each improvement.
    """
    metrics = {run.metric for run in runs}
    told = [_describe(run if len(metrics) == 1 else run.by("accuracy")) for run in runs]
    names = Counter(one["run"] for one in told)
    # Runs of the same name in two storages are identified by their paths.
    return [one | ({"run": one["path"]} if names[one["run"]] > 1 else {}) for one in told]


def _describe(run: Run) -> dict[str, Any]:
    ranked = run.ranked()
    record, metric = run.record, run.metric
    data = record.data
    state = SearchState.from_trials(record.search, ranked)
    first = leader(ranked)
    return {
        # The name for commands: the folder may have been copied or renamed.
        "run": run.path.name,
        "metric": metric,
        "searched_by": record.search.metric,
        "path": str(run.path),
        "status": record.status,
        "data": data.source,
        "images": record.data_fingerprint,
        "prepared": [data.image_size, data.resize, data.black, data.white],
        "split": record.split_fingerprint,
        "is_val_seen": data.all_data,
        "sampler": record.search.sampler,
        "scheduler": record.search.scheduler,
        "trials": len(ranked),
        "stopped": state.ended["stopped"],
        "epochs": state.num_epochs,
        "seconds": round(record.active_seconds, 1),
        "training_hours": sum(trial.seconds for trial in ranked) / 3600,
        "gpu_hours": state.gpu_seconds / 3600,
        "best": first.best.value(metric) if first and first.best else None,
        "best_trial": first.number if first else None,
        "model": first.config.model.family if first else None,
        "best_so_far": state.best_so_far(metric),
    }


def differences(described: Sequence[dict[str, Any]]) -> str:
    """Explain why the figures of runs cannot be compared; empty if they can."""
    if seen := [run["run"] for run in described if run["is_val_seen"]]:
        return (
            f"Not comparable: {', '.join(seen)} trained on the validation images, too "
            "(refit --all-data); accuracies on them say nothing."
        )
    if _have_other_images(described):
        return (
            "These runs differ in the images that they trained on or were validated on; their "
            "accuracies differ for that reason, too."
        )
    if len({run["searched_by"] for run in described}) > 1:
        by = ", ".join(f"{run['run']} by {run['searched_by']}" for run in described)
        return (
            f"These runs were searched by different metrics: {by}. All are shown by "
            f"{name_of(described[0]['metric'])}; --metric shows them by another."
        )
    return ""


def _have_other_images(described: Sequence[dict[str, Any]]) -> bool:
    """Whether runs differ in their images or in how these are divided.

    Images that are prepared differently have another fingerprint in any case, so theirs are not
    compared.
    """
    images = {(tuple(run["prepared"]), run["images"]) for run in described}
    num_prepared = len({prepared for prepared, _ in images})
    return len(images) > num_prepared or len({run["split"] for run in described}) > 1


def verdict(described: Sequence[dict[str, Any]]) -> str:
    """Name the leading run in one sentence."""
    scored = [run for run in described if run["best"] is not None]
    if not scored:
        return "None of these runs has a trial with an accuracy"
    if any(run["is_val_seen"] for run in described):
        return f"{len(described)} runs that are not comparable"
    if _have_other_images(described):
        return f"{len(described)} runs on different images"
    metric: Metric = described[0]["metric"]
    scored.sort(key=lambda run: -score(run["best"], metric))
    lead = scored[0]
    by = "" if metric == "accuracy" else f" {name_of(metric)}"
    text = f"{lead['run']} leads: {in_words(lead['best'], metric, 2)} validation{by}"
    if len(scored) == 1:
        return text
    ahead = score(lead["best"], metric) - score(scored[1]["best"], metric)
    gap = f"{ahead:.4f}" if metric == "nll" else f"{100 * ahead:.2f}"
    return f"{text}, {gap} ahead of {scored[1]['run']}"


def comparison_page(described: Sequence[dict[str, Any]]) -> str:
    """Return a self-contained page of runs side by side, as described by ``compare``."""
    return render(
        "compare.html",
        ("compare.js",),
        {"runs": list(described), "metric": metric_facts(described[0]["metric"])},
        title="Comparison · cifar-tune",
        verdict=verdict(described),
        metric=described[0]["metric"],
        metric_name=name_of(described[0]["metric"]),
        warning=differences(described),
        runs=described,
    )
