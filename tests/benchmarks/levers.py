"""Measure what each lever adds to the validation accuracy of a plain CNN, on real images.

    python -m tests.benchmarks.levers --data FOLDER --storage FOLDER

FOLDER is CIFAR-10 as class folders. The task is five of its classes, 10,000 training images, nine
epochs; the other five are for the run from which weights are transferred. Each lever is a search of
its own, over that lever alone, and its choice is retrained with three seeds. An ensemble is the
soft vote of five plain CNNs with other seeds. ``--storage`` keeps runs and results: the same
command continues an interrupted benchmark.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tuner.config import DataConfig
from tuner.data.splits import load_splits
from tuner.metrics.predict import score
from tuner.run.run import Run, find_run, list_runs
from tuner.run.trial import TrialRecord
from tuner.space import load_space
from tuner.storage.files import write_json
from tuner.tuning.request import SearchRequest
from tuner.tuning.session import search
from tuner.voting import soft_vote

TARGET = ("automobile", "cat", "dog", "horse", "truck")
SOURCE = ("airplane", "bird", "deer", "frog", "ship")
IMAGES = 10_000
EPOCHS = 9
TRIALS = 8
SEEDS = 3
MEMBERS = 5
FLOPS = 3.0e8
"""Limit on operations of a forward pass, four times the plain CNN's: minutes for nine epochs."""

PLAIN = {"model": {"cnn": {}}, "optimizer": {"sgd": {}}, "schedule": {"cosine": {}}}
"""All parameters at their defaults: 289,000 weights, no augmentation."""
CHOICES: dict[str, dict[str, Any]] = {
    "architecture": {
        "model": {
            "choice": {
                "cnn": {
                    "stages": {"int": [3, 4]},
                    "blocks": {"int": [1, 3]},
                    "width": {"choice": [32, 48]},
                    "width_growth": {"choice": [1.5, 2.0]},
                    "norm": {"choice": ["batch", "group"]},
                    "activation": {"choice": ["relu", "gelu", "silu"]},
                    "residual": {"choice": [True, False]},
                    "squeeze_excitation": {"choice": [True, False]},
                    "head": {"choice": ["average", "max"]},
                },
                "speednet": {"width": {"choice": [32, 48, 64]}},
                "resnet": {"depth": {"choice": [20, 32]}, "width_factor": {"choice": [1.0, 2.0]}},
            }
        }
    },
    "hyperparameters": {
        "batch_size": {"choice": [32, 64, 128]},
        "optimizer": {
            "choice": {
                "sgd": {
                    "lr": {"float": [0.02, 0.5], "log": True},
                    "weight_decay": {"float": [2e-4, 5e-3], "log": True},
                },
                "adamw": {
                    "lr": {"float": [1e-3, 1e-2], "log": True},
                    "weight_decay": {"float": [1e-2, 5e-1], "log": True},
                },
                "muon": {
                    "lr": {"float": [5e-3, 1e-1], "log": True},
                    "adamw_lr": {"float": [1e-3, 1e-2], "log": True},
                },
            }
        },
        "schedule": {
            "choice": {
                "cosine": {"warmup": {"choice": [0.05, 0.2]}},
                "one_cycle": {"warmup": 0.3},
                "trapezoid": {"cooldown": {"choice": [0.4, 0.8]}},
            }
        },
        "label_smoothing": {"choice": [0.0, 0.05, 0.1]},
        "ema_decay": {"choice": [0.98, 0.99]},
    },
    "augmentation": {
        "augment": {
            "crop": {"choice": [0, 2, 4]},
            "flip": {"choice": [True, False]},
            "alternate": {"choice": [True, False]},
            "policy": {"choice": ["none", "randaugment", "trivialaugment"]},
            "cutout": {"choice": [0, 8]},
            "brightness": {"choice": [0.0, 0.2]},
            "mixup": {"choice": [0.0, 0.2]},
            "cutmix": {"choice": [0.0, 1.0]},
        }
    },
    "transfer": {
        "model": {
            "pretrained": {
                "run": "source",
                "policy": {"choice": ["full", "freeze"]},
                "freeze_epochs": 1,
                "layer_decay": {"choice": [0.5, 0.75, 1.0]},
            }
        },
        "optimizer": {"sgd": {"lr": {"float": [0.01, 0.2], "log": True}}},
    },
}


def class_folders(images: Path, classes: Sequence[str], folder: Path) -> Path:
    """Make a data set of some classes, as links."""
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for name in classes:
            link = folder / part / name
            if not link.exists():
                link.symlink_to((images / part / name).absolute())
    return folder


def searched(
    name: str, space: Mapping[str, Any], data: DataConfig, storage: Path, **settings: Any
) -> Run:
    """Search a space to the end, or resume that search."""
    file = storage / f"{name}.yaml"
    plain = {"search": {"epochs": EPOCHS, **settings}, "space": space}
    write_json(file, plain | {"constraints": {"flops": FLOPS}})  # JSON is YAML.
    if resume := name in list_runs(storage):
        run = find_run(storage, name)
        if run.record.status == "finished":
            return run
    loaded = load_space(file, storage=storage)
    request = SearchRequest(
        space=loaded,
        space_name=name,
        search=loaded.search,
        data=data,
        data_dir=storage / "data",
        storage=storage,
        name=name,
        command="python -m tests.benchmarks.levers",
        keep=loaded.search.trials,
        resume=resume,
    )
    run = search(request, Console(stderr=True, highlight=False))
    if run.record.status != "finished":
        raise SystemExit("interrupted; the same command goes on")
    return run


def repeated(
    name: str, space: Mapping[str, Any], data: DataConfig, storage: Path, trials: int
) -> list[TrialRecord]:
    """Train one configuration with the given number of seeds, none of them from a search."""
    run = searched(name, space, data, storage, trials=trials, scheduler="none", seed=1)
    return run.trials()


def measure(images: Path, storage: Path) -> dict[str, Any]:
    """Return the choice of each lever, and its accuracies, one per seed."""
    storage.mkdir(parents=True, exist_ok=True)
    target = DataConfig(
        source=str(class_folders(images, TARGET, storage / "target")), train_limit=IMAGES
    )
    source = DataConfig(source=str(class_folders(images, SOURCE, storage / "other-classes")))
    searched("source", PLAIN, source, storage, trials=1, scheduler="none")

    plain = repeated("plain", PLAIN, target, storage, SEEDS * MEMBERS)
    labels = load_splits(target, storage / "data").val.labels
    found: dict[str, Any] = {"plain": row(plain[:SEEDS]), "ensemble": row_of_votes(plain, labels)}
    together: dict[str, Any] = {}
    for lever, choice in CHOICES.items():
        if lever == "transfer":  # The others combine; transferred weights fit one network only.
            three = repeated("together", PLAIN | together, target, storage, SEEDS)
            found["the three together"] = row(three)
        run = searched(lever, PLAIN | choice, target, storage, trials=TRIALS, grace=4, reduction=2)
        chosen = as_space(run.top(1)[0])
        together |= {key: chosen[key] for key in choice}
        found[lever] = row(repeated(f"{lever}-chosen", chosen, target, storage, SEEDS))
        found[lever]["chosen"] = {key: chosen[key] for key in choice}
    return found


def as_space(trial: TrialRecord) -> dict[str, Any]:
    """Return a trial's configuration as a space without a choice."""
    plain = trial.config.to_dict()
    # Unset parameters are null or empty in a configuration, and left out of a space.
    plain["model"] = {
        family: {key: value for key, value in params.items() if value not in (None, "")}
        for family, params in plain["model"].items()
    }
    return {key: value for key, value in plain.items() if key not in ("epochs", "seed")}


def row(trials: Sequence[TrialRecord]) -> dict[str, Any]:
    """Return the accuracies of some trials, and their number of weights."""
    return {
        "accuracy": [trial.best.val_accuracy for trial in trials if trial.best],
        "parameters": trials[0].status.num_parameters,
    }


def row_of_votes(trials: Sequence[TrialRecord], labels: Tensor) -> dict[str, Any]:
    """Return the accuracies of votes of ``MEMBERS`` trials each."""
    probs = torch.stack([torch.from_numpy(trial.val_probs()).float() for trial in trials])
    uniform = torch.full((MEMBERS,), 1 / MEMBERS)
    votes = [score(soft_vote(few, uniform), labels).accuracy for few in probs.split(MEMBERS)]
    return {"accuracy": votes, "parameters": MEMBERS * row(trials)["parameters"]}


def as_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table of one row per lever."""
    table = Table(
        title=f"{IMAGES:,} images of {len(TARGET)} classes, {EPOCHS} epochs, {SEEDS} seeds"
    )
    table.add_column("lever")
    for heading in ("accuracy %", "least to most", "gain", "weights"):
        table.add_column(heading, justify="right")
    plain = statistics.fmean(found["plain"]["accuracy"])
    for lever, figures in found.items():
        values = [100 * value for value in figures["accuracy"]]
        table.add_row(
            lever,
            f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}",
            f"{min(values):.2f} to {max(values):.2f}",
            f"{statistics.fmean(values) - 100 * plain:+.2f}",
            f"{figures['parameters']:,}",
        )
    return table


def main() -> None:
    """Run the benchmark; print a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as class folders")
    parser.add_argument("--storage", type=Path, required=True, help="keeps runs, to go on with")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.data, options.storage.absolute())
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        Console(highlight=False, width=100).print(as_table(found))
        for lever in CHOICES:
            print(f"{lever}: {json.dumps(found[lever]['chosen'])}")


if __name__ == "__main__":
    main()
