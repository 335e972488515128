"""Compare a search with ``--folds`` and one with a single split, on few images, in equal time.

    python -m tests.benchmarks.folds --data FOLDER --storage FOLDER

FOLDER is CIFAR-10 as class folders. Each repetition draws 600 of the training images anew and
searches them twice for the same time, alternating which goes first: with 120 of them held out, and
with five folds of 120. The choice of each search then sees the 10,000 test images, which no search
has seen. The error is the validation estimate by which it was chosen minus its accuracy there. The
networks of the folds are averaged, as in an ensemble; because that is more than a single network,
the vote of the five best trials of the single split is shown, too. ``--storage`` keeps finished
repetitions: the same command continues an interrupted benchmark.
"""

import argparse
import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tuner.config import DataConfig
from tuner.data.cache import Images
from tuner.data.splits import load_test
from tuner.ensemble.members import Local, Network
from tuner.run.run import Run
from tuner.run.trial import TrialRecord
from tuner.space import load_space
from tuner.storage.files import write_json
from tuner.tuning.request import SearchRequest
from tuner.tuning.session import search
from tuner.voting import soft_vote

IMAGES, FOLDS = 600, 5
VOTERS = 5
ARMS = {
    "single": {"val_fraction": 1 / FOLDS},
    "folds": {"folds": FOLDS},
}
SPACE = {
    "search": {"trials": 10_000, "epochs": 15, "grace": 2, "reduction": 3},
    "space": {
        "batch_size": {"choice": [16, 32, 64]},
        "model": {
            "cnn": {
                "stages": {"int": [3, 4]},
                "blocks": {"int": [1, 2]},
                "width": {"int": [16, 32], "step": 8},
                "dropout": {"float": [0.0, 0.4], "step": 0.1},
            }
        },
        "optimizer": {
            "choice": {
                "sgd": {
                    "lr": {"float": [0.01, 0.5], "log": True},
                    "weight_decay": {"float": [1e-4, 1e-2], "log": True},
                },
                "adamw": {
                    "lr": {"float": [5e-4, 2e-2], "log": True},
                    "weight_decay": {"float": [1e-2, 5e-1], "log": True},
                },
            }
        },
        "augment": {"crop": {"choice": [0, 2, 4]}, "flip": True},
        "label_smoothing": {"float": [0.0, 0.2], "step": 0.1},
    },
}


def draw_images(data: Path, folder: Path, seed: int) -> Path:
    """Make a data set of ``IMAGES`` training images, as links, the same number per class."""
    chance = random.Random(seed)
    classes = sorted(path for path in (data / "train").iterdir() if path.is_dir())
    for source in classes:
        target = folder / "train" / source.name
        target.mkdir(parents=True, exist_ok=True)
        for file in chance.sample(sorted(source.iterdir()), IMAGES // len(classes)):
            if not (target / file.name).exists():
                (target / file.name).symlink_to(file.absolute())
    return folder


def searched(name: str, data: DataConfig, storage: Path, seconds: float, seed: int) -> Run:
    """Search for the given number of seconds."""
    file = storage / "space.yaml"
    write_json(file, SPACE)  # JSON is YAML.
    loaded = load_space(file, [f"search.seed={seed}"], storage)
    request = SearchRequest(
        space=loaded,
        space_name=name,
        search=loaded.search,
        data=data,
        data_dir=storage / "data",
        storage=storage,
        name=name,
        command="python -m tests.benchmarks.folds",
        keep=VOTERS,
        seconds=seconds,
    )
    run = search(request, Console(stderr=True, highlight=False))
    if run.record.status != "finished":
        raise SystemExit(f"interrupted; remove {run.path}, and the same command goes on")
    return run


def probs_of(trials: Sequence[TrialRecord], images: Tensor) -> Tensor:
    """Return the probs of trials on images, averaged over folds, shape (M, N, K)."""
    networks = [
        Network(file=t.checkpoint, model=t.config.model, precision=t.config.precision)
        for t in trials
    ]
    return Local([torch.device("cpu")])(networks, images, "none")


def judged(run: Run, test: Images) -> dict[str, Any]:
    """Return the estimate of a search for its best trial, and the test accuracies."""
    trials = run.top(min(VOTERS, sum(trial.is_usable for trial in run.trials())))
    best = trials[0].best
    assert best is not None
    probs = probs_of(trials, test.images)
    vote = soft_vote(probs, torch.full((len(trials),), 1 / len(trials)))

    def accuracy(of: Tensor) -> float:
        return (of.argmax(dim=1) == test.labels).double().mean().item()

    every = run.trials()
    return {
        "estimate": best.val_accuracy,
        "accuracy": accuracy(probs[0]),
        "vote": accuracy(vote),
        "trials": len(every),
        "epochs": sum(len(trial.history) for trial in every),
        "training_seconds": sum(trial.seconds for trial in every),
        "parameters": trials[0].status.num_parameters,
    }


def measure(data: Path, storage: Path, seconds: float, repetitions: int) -> list[dict[str, Any]]:
    """Return one row per repetition, with the figures of each arm."""
    test = load_test(DataConfig(source=str(data)), storage / "data").images
    rows = []
    for number in range(repetitions):
        file = storage / f"repetition-{number}.json"
        if not file.exists():
            source = draw_images(data, storage / f"images-{number}", number)
            arms = list(ARMS.items())
            row = {}
            for arm, settings in arms if number % 2 == 0 else arms[::-1]:
                config = DataConfig(source=str(source), **settings)  # type: ignore[arg-type]
                run = searched(f"{arm}-{number}", config, storage, seconds, number)
                row[arm] = judged(run, test)
            write_json(file, row)
        rows.append(json.loads(file.read_text()))
    return rows


def as_table(rows: Sequence[dict[str, Any]], seconds: float) -> Table:
    """Return one row per arm: means over the repetitions with their standard errors."""
    table = Table(title=f"{IMAGES} images, {seconds:.0f} s a search, {len(rows)} repetitions")
    table.add_column("")
    for heading in ("|error|", "error", "accuracy %", "vote of 5", "trials", "training s"):
        table.add_column(heading, justify="right")

    def mean(values: Sequence[float], digits: int = 2) -> str:
        found = f"{statistics.fmean(values):.{digits}f}"
        if len(values) == 1:
            return found
        return f"{found} ± {statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}"

    figures: dict[str, Callable[[dict[str, Any]], float]] = {
        "|error|": lambda arm: 100 * abs(arm["estimate"] - arm["accuracy"]),
        "error": lambda arm: 100 * (arm["estimate"] - arm["accuracy"]),
        "accuracy": lambda arm: 100 * arm["accuracy"],
        "vote": lambda arm: 100 * arm["vote"],
    }
    for arm in ARMS:
        own = [row[arm] for row in rows]
        table.add_row(
            arm,
            *(mean([figure(entry) for entry in own]) for figure in figures.values()),
            *(mean([entry[key] for entry in own], 0) for key in ("trials", "training_seconds")),
        )
    table.add_row(
        "folds less single",
        *(
            mean([figure(row["folds"]) - figure(row["single"]) for row in rows])
            for figure in figures.values()
        ),
    )
    return table


def main() -> None:
    """Run the benchmark; print a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as class folders")
    parser.add_argument("--storage", type=Path, required=True, help="keeps runs, to go on with")
    parser.add_argument("--seconds", type=float, default=300, help="of each search")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    storage = options.storage.absolute()
    storage.mkdir(parents=True, exist_ok=True)
    rows = measure(options.data, storage, options.seconds, options.repetitions)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        Console(highlight=False, width=100).print(as_table(rows, options.seconds))


if __name__ == "__main__":
    main()
