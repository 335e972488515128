"""Seconds of training to an accuracy: speednet's recipe, the tutorial's and the speed record's.

    python -m tests.benchmarks.time_to_accuracy --data FOLDER --threads 2 --epochs 2 6

FOLDER is CIFAR-10 as class folders. The recipe is the baseline of ``search_spaces/speed.yaml``,
trained anew for each number of epochs, because its learning rate falls to zero at the end. The
tutorial's network and recipe then train for as long as the longest of these. Seconds are those of
training and validation, without reading the images. The test images are read once per training,
after its last epoch, and choose nothing.

    python -m tests.benchmarks.time_to_accuracy --data FOLDER --all-data --epochs 8 --seeds 5 \
        --record CODE --no-tutorial

On a GPU, CODE is a folder with a copy of airbench94_muon.py, which then trains on the same images,
uncompiled, in turn with ours. Before that, each trains once to warm up, which is not measured.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from tests.benchmarks import tutorial
from tests.benchmarks.record import SCRIPT, Record
from tuner.config import DataConfig, ModelConfig, TrialConfig, Tta
from tuner.data.cache import Images
from tuner.data.splits import Splits, load_splits, load_test
from tuner.metrics.predict import predict_probs, score
from tuner.space import load_space
from tuner.training.device import compute_dtype, find_device
from tuner.training.loop import train

SPEED = Path(__file__).parents[2] / "search_spaces" / "speed.yaml"


class Pinned:
    """A trial that samples nothing: every parameter has to be given.

    Args:
        params: The values, by parameter name.
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._params = params

    def suggest_float(self, name: str, *_: Any, **__: Any) -> Any:
        """Return the given value."""
        return self._params[name]

    suggest_int = suggest_categorical = suggest_float


def recipe(
    epochs: int, seed: int, width: int | None = None, batch_size: int | None = None
) -> TrialConfig:
    """Return the baseline of ``speed.yaml``, which leaves nothing to the sampler.

    Args:
        epochs: Epochs of the training.
        seed: Seed of the training.
        width: Width of the first stage, instead of the baseline's.
        batch_size: Batch size, instead of the baseline's.

    Raises:
        KeyError: If the baseline leaves out a parameter that the space searches.
    """
    space = load_space(SPEED)
    pinned = Pinned(space.baseline_params(0))
    config = space.sample(pinned, epochs=epochs, seed=seed, baseline=0)
    if width is not None:
        model = ModelConfig(config.model.family, {**config.model.params, "width": width})
        config = replace(config, model=model)
    return replace(config, batch_size=batch_size or config.batch_size)


class Course:
    """Trains on a data set, and measures seconds and accuracies."""

    def __init__(self, splits: Splits, test: Images, device: torch.device) -> None:
        self.splits = splits
        self.test = test
        self.device = device

    def warm_up(self, config: TrialConfig) -> None:
        """Train an epoch without measuring it, because a GPU's first one loads its kernels."""
        with contextlib.closing(train(config, self.splits, self.device)) as epochs:
            next(epochs)

    def ours(self, config: TrialConfig) -> dict[str, Any]:
        """Train with the recipe; return its figures."""
        began = time.perf_counter()
        seconds, curve = 0.0, []
        for epoch in train(config, self.splits, self.device):
            seconds += epoch.figures.seconds
            curve.append((seconds, epoch.figures.val_accuracy))
        wall = time.perf_counter() - began
        dtype = compute_dtype(config.precision, self.device)
        with_tta = self._accuracy(epoch.network, self.test, dtype, tta="flip+shift")
        result = self._result(curve, epoch.network, dtype)
        return result | {"wall_seconds": wall, "test_accuracy_tta": with_tta}

    def tutorials(self, seconds: float, batch_size: int) -> dict[str, Any]:
        """Train the tutorial's network as its text does, in whole epochs for about ``seconds``."""
        torch.manual_seed(0)
        network = tutorial.LeNet(self.splits.num_classes, self.splits.image_shape)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
        spent, curve = 0.0, []
        epochs = tutorial.epochs_of(
            network, optimizer, self.splits, batch_size=batch_size, crop=4, workers=2
        )
        while spent < seconds:
            began = time.perf_counter()
            next(epochs)
            spent += time.perf_counter() - began
            curve.append((spent, self._accuracy(network, self.splits.val, torch.float32)))
        return self._result(curve, network, torch.float32)

    def _result(
        self, curve: list[tuple[float, float]], network: nn.Module, dtype: torch.dtype
    ) -> dict[str, Any]:
        return {
            "epochs": len(curve),
            "seconds": curve[-1][0],
            # On images that were trained on, accuracy says nothing.
            "val_accuracy": None if self.splits.is_val_seen else curve[-1][1],
            "test_accuracy": self._accuracy(network, self.test, dtype),
            "curve": curve,
        }

    def _accuracy(
        self, network: nn.Module, images: Images, dtype: torch.dtype, *, tta: Tta = "none"
    ) -> float:
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1) for values in (self.splits.mean, self.splits.std)
        )
        probs = predict_probs(
            network, images.images, mean, std, device=self.device, dtype=dtype, tta=tta
        )
        return score(probs, images.labels).accuracy


def as_table(found: dict[str, list[dict[str, Any]]], place: str) -> Table:
    """Return a table of one row per way of training, with its spread over the seeds."""
    table = Table(title=f"Time to accuracy on {place}: median (least to most)")
    table.add_column("")
    for heading in ("seeds", "epochs", "seconds", "validation %", "test %", "with TTA %"):
        table.add_column(heading, justify="right")
    for name, runs in found.items():
        spread = [
            _spread([run.get(key) for run in runs], factor, places)
            for key, factor, places in (
                ("seconds", 1, 2),
                ("val_accuracy", 100, 2),
                ("test_accuracy", 100, 2),
                ("test_accuracy_tta", 100, 2),
            )
        ]
        table.add_row(name, str(len(runs)), str(runs[0]["epochs"]), *spread)
    return table


def _spread(values: list[float | None], factor: float, places: int) -> str:
    known = [factor * value for value in values if value is not None]
    if not known:
        return ""
    middle = statistics.median(known)
    if len(known) == 1:
        return f"{middle:.{places}f}"
    return f"{middle:.{places}f} ({min(known):.{places}f} to {max(known):.{places}f})"


def _add(found: dict[str, list[dict[str, Any]]], name: str, run: dict[str, Any]) -> None:
    """Add a training's figures, and report that it has ended."""
    found.setdefault(name, []).append(run)
    seconds, accuracy = run["seconds"], run["test_accuracy"]
    print(f"{name}: {seconds:.2f} s, test {accuracy:.2%}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the benchmark; print a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as class folders")
    parser.add_argument("--data-dir", type=Path, default=Path.home() / ".cache" / "cifar-tune")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--epochs", type=int, nargs="+", default=[2, 6])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--width", type=int, help="of speednet's first stage")
    parser.add_argument("--batch-size", type=int, help="of speednet's training")
    parser.add_argument("--no-tutorial", action="store_true")
    parser.add_argument(
        "--all-data", action="store_true", help="train on the validation images, too"
    )
    parser.add_argument(
        "--record", type=Path, metavar="CODE", help=f"a folder with {SCRIPT}; needs a GPU"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = find_device(options.device)
    if options.record is not None and device.type != "cuda":
        parser.error(f"--record needs a CUDA device, for which {SCRIPT} is written")
    if options.record is not None and not (options.record / SCRIPT).is_file():
        parser.error(f"--record: {options.record} has no {SCRIPT}")
    data = DataConfig(source=str(Path(options.data).absolute()), all_data=options.all_data)
    splits = load_splits(data, options.data_dir)
    test = load_test(data, options.data_dir).images
    course = Course(splits, test, device)
    changes = {"width": options.width, "batch_size": options.batch_size}
    if device.type == "cuda":
        course.warm_up(recipe(1, 0, **changes))
    found: dict[str, list[dict[str, Any]]] = {}
    given = [f"{key.replace('_', ' ')} {value}" for key, value in changes.items() if value]
    network = ", ".join(["speednet", *given])
    with contextlib.ExitStack() as stack:
        record = None
        if options.record is not None:
            record = Record(options.record, splits.train, test, splits.classes, device)
            stack.enter_context(record)
        for seed in range(options.seeds):
            if record is not None:
                _add(found, "the record's", record.run(seed))
            for epochs in options.epochs:
                run = course.ours(recipe(epochs, seed, **changes))
                _add(found, f"{network}, {epochs} epochs", run)
    if not options.no_tutorial:
        longest = max(run["seconds"] for runs in found.values() for run in runs)
        _add(found, "the tutorial's", course.tutorials(longest, batch_size=8))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        place = f"{options.threads} CPU threads" if device.type == "cpu" else str(device)
        Console(highlight=False, width=100).print(as_table(found, place))


if __name__ == "__main__":
    main()
