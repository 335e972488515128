"""The gain of a small network from a teacher: students with and without it, at equal epochs.

    python -m tests.benchmarks.distill --data FOLDER --json distill.json

FOLDER is CIFAR-10 as class folders. A search and its ensemble make the teacher. Students of one
space are searched twice with the same number of trials: once taught by the teacher, once by the
labels alone. The best configuration of each search is then retrained with several seeds, and these
networks are scored on the test images. Trials are chosen on validation images alone.
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from scipy.stats import ttest_ind

import tuner
from tests.benchmarks.overhead import own_environment
from tuner.data.splits import load_test
from tuner.ensemble.members import Network, predict_network
from tuner.ensemble.students import find_student
from tuner.metrics.predict import score
from tuner.run.run import Run
from tuner.training.device import find_device

STUDENT = {
    "search": {"grace": 3, "reduction": 3},
    "space": {
        "batch_size": 64,
        "model": {"cnn": {"stages": 3, "blocks": 2, "width": 16, "residual": True}},
        "optimizer": {
            "sgd": {
                "lr": {"float": [0.03, 0.3], "log": True},
                "weight_decay": {"float": [1.0e-4, 2.0e-3], "log": True},
            }
        },
        "schedule": {"cosine": {"warmup": 0.1}},
        "augment": {"crop": 4, "flip": True},
    },
}


def on_test(run: Run) -> list[dict[str, float]]:
    """Return the scores of each trial on the test images, which are read only for this."""
    test = load_test(run.record.data, Path(run.record.data_dir)).images
    figures = []
    for trial in run.trials():
        config = trial.config
        network = Network(file=trial.checkpoint, model=config.model, precision=config.precision)
        probs = predict_network(network, test.images, "none", find_device())
        figures.append({key: asdict(score(probs, test.labels))[key] for key in ("accuracy", "nll")})
    return figures


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the searches; return the figures of the teacher and the students."""
    space = folder / "student.yaml"
    space.write_text(yaml.safe_dump(STUDENT))
    common = {"storage": folder, "data_dir": folder / "data", "progress": False}
    limit = [f"dataset.train_limit={options.train_limit}"] if options.train_limit else []
    asked = {"trials": options.trials, "epochs": options.epochs, "seed": 0}
    data = options.data.absolute()

    def say(line: str) -> None:
        Console(stderr=True).print(line, highlight=False)

    with own_environment():
        searched = tuner.search(
            "cnn_small",
            data=data,
            trials=options.teacher_trials,
            epochs=options.teacher_epochs,
            overrides=limit,
            name="teacher",
            **common,
        )
    teacher = tuner.combine(searched, top=options.top, **common)
    say(f"teacher: {teacher.metrics['ensemble']['test']['accuracy']:.2%}")
    with own_environment():
        taught = tuner.distill(teacher, into=space, name="taught", **asked, **common)
    say("taught: searched")
    with own_environment():
        untaught = tuner.search(
            space, data=data, overrides=limit, name="untaught", **asked, **common
        )
    say("untaught: searched")
    found: dict[str, Any] = {}
    for name, run in (("taught", taught), ("untaught", untaught)):
        with own_environment():
            again = tuner.refit(run, top=1, seeds=options.seeds, keep=options.seeds, **common)
        best = run.ranked()[0]
        assert best.best is not None
        found[name] = {
            "val": best.best.val_accuracy,
            "config": best.config.to_dict(),
            "test": on_test(again),
        }
        say(f"{name}: trained anew")
    beside = find_student(taught)
    assert beside is not None
    return found | {
        "teacher": {"test": teacher.metrics["ensemble"]["test"]},
        "beside": {
            who: {
                "parameters": contender.num_parameters,
                "latency": asdict(contender.latency) if contender.latency else {},
            }
            for who, contender in (("teacher", beside.teacher), ("student", beside.student))
        },
        "threads": torch.get_num_threads(),
        "options": {key: str(value) for key, value in vars(options).items()},
    }


def gain(taught: Sequence[float], untaught: Sequence[float]) -> tuple[float, float, float]:
    """Return the difference of two means with its 95 % interval (Welch 1947)."""
    difference = statistics.fmean(taught) - statistics.fmean(untaught)
    if min(len(taught), len(untaught)) < 2:
        return difference, -math.inf, math.inf
    interval = ttest_ind(taught, untaught, equal_var=False).confidence_interval(0.95)
    return difference, float(interval.low), float(interval.high)


def as_table(found: dict[str, Any]) -> Table:
    """Return one row each for the teacher and the two kinds of students."""
    table = Table(title="Test images; students as mean and standard deviation over their seeds")
    for heading in ("", "accuracy", "NLL", "parameters", "ms, 1 image", "ms, 256"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in ("teacher", "untaught", "taught"):
        costs = found["beside"]["teacher" if name == "teacher" else "student"]
        if name == "teacher":
            test = found[name]["test"]
            cells = [f"{test['accuracy']:.2%}", f"{test['nll']:.4f}"]
        else:
            accuracies, nlls = (
                [row[k] for row in found[name]["test"]] for k in ("accuracy", "nll")
            )
            spread = statistics.stdev(accuracies) if len(accuracies) > 1 else math.nan
            cells = [
                f"{statistics.fmean(accuracies):.2%} ± {100 * spread:.2f}",
                f"{statistics.fmean(nlls):.4f}",
            ]
        more = [f"{costs['parameters']:,}", *(f"{ms:.2f}" for ms in costs["latency"].values())]
        table.add_row(name, *cells, *more)
    return table


def main() -> None:
    """Run the benchmark; print a table, and with ``--json`` write one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as class folders")
    parser.add_argument("--train-limit", type=int, help="training images; all without it")
    parser.add_argument("--teacher-trials", type=int, default=16)
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--top", type=int, default=5, help="members of the teacher")
    parser.add_argument("--trials", type=int, default=16, help="of each search of students")
    parser.add_argument("--epochs", type=int, default=12, help="of students")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="distill-") as name:
        found = measure(options, Path(name))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))
    console = Console(highlight=False, width=100)
    console.print(as_table(found))
    accuracies = [[row["accuracy"] for row in found[key]["test"]] for key in ("taught", "untaught")]
    difference, low, high = gain(*accuracies)
    console.print(
        f"Taught less untaught, 95 % interval over seeds, in points: {100 * difference:+.2f} "
        f"[{100 * low:+.2f}, {100 * high:+.2f}]"
    )


if __name__ == "__main__":
    main()
