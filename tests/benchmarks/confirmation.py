"""Compare searches of real images at the same budget: the best trial and the ensemble.

    python -m tests.benchmarks.confirmation --data FOLDER --storage FOLDER --seeds 10

FOLDER of ``--data`` is CIFAR-10 as class folders. Each seed searches ``cnn_small`` on 10,000 of its
training images once for each arm. A search lasts as long as six full trainings take on this machine
with all its slots busy, plus the start of the workers. Both are measured first, on random
configurations that are trained for two epochs. All trials are validated on the same 5,000 images.

=============  ====================================================================================
``stock``      TPE and the stopping ASHA, as in stock Ray (``--scheduler asha-stop``), without
               the space's baselines
``promoting``  the same with the promoting ASHA
``default``    the space unchanged: promoting, with its baselines
``ensemble``   the same with ``--for ensemble``
=============  ====================================================================================

The best trial and the greedy ensemble of at most five are scored by cross-fitting on the validation
images, and on the test images. Arms are compared by paired differences from the first one, with the
95 % interval of Student's t over the seeds. Each search is a line of ``results.jsonl`` in
``--storage``: the same command continues an interrupted benchmark. The arms of a seed take turns in
going first.
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy.stats import t

import tuner
from tuner.run.run import Run, find_run, list_runs

STOCK = ("baseline=[]",)
ARMS: dict[str, dict[str, Any]] = {
    "stock": {"scheduler": "asha-stop", "overrides": STOCK},
    "promoting": {"scheduler": "asha", "overrides": STOCK},
    "default": {"scheduler": "asha"},
    "ensemble": {"scheduler": "asha", "purpose": "ensemble"},
}
MOST_TRIALS = 1_000
"""Trials of a search: more than fit into its time."""
TOP = 5
TIMED_EPOCHS = 2
"""Epochs of each configuration that is timed."""
FIGURES = {
    "best val": 100.0,
    "best test": 100.0,
    "ensemble val": 100.0,
    "ensemble test": 100.0,
    "ensemble val NLL": 1.0,
    "ensemble test NLL": 1.0,
}
"""Figure -> factor for display: accuracies are shown in percent."""


def searched(options: argparse.Namespace, name: str, seed: int, epochs: int, **asked: Any) -> Run:
    """Search the space, or resume that search; return a finished one unchanged."""
    known = name in list_runs(options.storage)
    if known and find_run(options.storage, name).record.status == "finished":
        return find_run(options.storage, name)
    run = tuner.search(
        options.space,
        data=options.data,
        train_limit=options.images,
        epochs=epochs,
        seed=seed,
        name=name,
        storage=options.storage,
        resume=known,
        data_dir=options.storage / "data",
        **asked,
    )
    if run.record.status != "finished":
        raise SystemExit("interrupted; the same command goes on")
    return run


def budget_of(options: argparse.Namespace, known: dict[tuple[str, int], Any]) -> float:
    """Return the seconds of a search: full trainings with all slots busy, plus the workers' start.

    Random configurations are timed once, for all searches. They differ several times in cost, so
    many are trained for a few epochs, rather than a few to their end.
    """
    if ("calibration", 0) not in known:
        run = searched(
            options,
            "calibration",
            0,
            TIMED_EPOCHS,
            scheduler="none",
            sampler="random",
            trials=options.calibration,
            overrides=STOCK,
        )
        trials, slots = run.trials(), run.record.slots["count"]
        timed = statistics.fmean(trial.seconds for trial in trials) / slots
        seconds = timed * options.epochs / TIMED_EPOCHS
        began = min(row.time - row.seconds for trial in trials for row in trial.history)
        start = began - datetime.fromisoformat(run.record.started).timestamp()
        line = {"arm": "calibration", "seed": 0, "seconds": seconds, "start": start}
        note(options, known, line)
    found = known["calibration", 0]
    return float(found["start"] + options.trainings * found["seconds"])


def figures_of(run: Run) -> dict[str, Any]:
    """Score the best trial of a search and its greedy ensemble."""
    trials = run.trials()
    usable = sum(trial.is_usable for trial in trials)
    found: dict[str, Any] = {
        "trials": len(trials),
        "completed": sum(trial.status.state == "completed" for trial in trials),
        "epochs": sum(len(trial.history) for trial in trials),
        "seconds": run.record.active_seconds,
    }
    for key, top, method in (("best", 1, "vote"), ("ensemble", min(TOP, usable), "greedy")):
        made = tuner.combine(run, top=top, method=method, name=key, progress=False)
        scores = made.metrics["ensemble"]
        for part, name in (("crossfit", "val"), ("test", "test")):
            found[f"{key} {name}"] = scores[part]["accuracy"]
            found[f"{key} {name} NLL"] = scores[part]["nll"]
    return found


def note(
    options: argparse.Namespace, known: dict[tuple[str, int], Any], line: Mapping[str, Any]
) -> None:
    """Add a line to the results."""
    known[line["arm"], line["seed"]] = line
    with (options.storage / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def read(storage: Path) -> dict[tuple[str, int], Any]:
    """Return the existing lines of the results, by arm and seed."""
    path = storage / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {(line["arm"], line["seed"]): line for line in map(json.loads, lines)}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of values with its 95 % interval, which is infinite for one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def as_table(
    known: Mapping[tuple[str, int], Any], arms: Sequence[str], seeds: Sequence[int]
) -> Table:
    """Return one row per figure and arm: its mean and its difference from the first arm."""
    table = Table(title=f"{len(seeds)} seeds, paired")
    for heading in ("figure", "arm", "mean", f"minus {arms[0]}", "95 % interval", "wins"):
        table.add_column(heading, justify="left" if heading in ("figure", "arm") else "right")
    for figure, scale in FIGURES.items():
        first = [scale * known[arms[0], seed][figure] for seed in seeds]
        for arm in arms:
            values = [scale * known[arm, seed][figure] for seed in seeds]
            row = [figure, arm, f"{statistics.fmean(values):.4g}"]
            if arm != arms[0]:
                gains = [own - other for own, other in zip(values, first, strict=True)]
                mean, low, high = interval(gains)
                is_lower_better = figure.endswith("NLL")
                wins = sum(gain < 0 if is_lower_better else gain > 0 for gain in gains)
                row += [f"{mean:+.4f}", f"{low:+.4f} to {high:+.4f}", f"{wins} of {len(seeds)}"]
            table.add_row(*row)
    return table


def main() -> None:
    """Run or continue the comparison, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as class folders")
    parser.add_argument("--storage", type=Path, required=True, help="keeps runs, to go on with")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["default", "ensemble"])
    parser.add_argument("--trainings", type=float, default=6.0, help="the budget of a search")
    parser.add_argument("--space", default="cnn_small")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=12, help="of a full training")
    parser.add_argument("--calibration", type=int, default=16, help="configurations to time")
    options = parser.parse_args()
    options.storage = options.storage.absolute()
    options.storage.mkdir(parents=True, exist_ok=True)
    known = read(options.storage)
    budget = budget_of(options, known)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for seed in seeds:
        place = seed % len(options.arms)
        for arm in [*options.arms[place:], *options.arms[:place]]:
            if (arm, seed) in known:
                continue
            asked = {"trials": MOST_TRIALS, "time_budget": budget, **ARMS[arm]}
            run = searched(options, f"{arm}-{seed}", seed, options.epochs, **asked)
            line = {"arm": arm, "seed": seed, "budget": budget, **figures_of(run)}
            note(options, known, line)
    table = as_table(known, options.arms, seeds)
    Console(highlight=False, width=100).print(table)


if __name__ == "__main__":
    main()
