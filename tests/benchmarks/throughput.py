"""Images per second of training: this program, the tutorial's way, and the bare step.

    python -m tests.benchmarks.throughput --data FOLDER --threads 1 --rounds 7

FOLDER is CIFAR-10 as class folders. For each network, three trainings take turns in one process, a
window of several steps each: ``train`` with crop and flip, as a trial runs it; the tutorial's way
with the same batch size and augmentation; and forward, backward and optimizer step on one resident
batch in the number type and memory layout of ``train``, which is the limit. Ratios are computed
within a round; the table shows their medians and quartiles. The share of validation in an epoch is
computed from a pass over as many images as a window has.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

from tests.benchmarks import tutorial
from tuner.augment import augment_batch, normalize
from tuner.config import Augment, DataConfig, ModelConfig, Sgd, TrialConfig
from tuner.data.cache import Images
from tuner.data.splits import Splits, load_splits
from tuner.metrics.predict import predict_probs
from tuner.models.build import build_model
from tuner.models.cost import count_cost
from tuner.optim import make_optimizer
from tuner.training.device import compute_dtype, find_device
from tuner.training.loop import train

WINDOW_IMAGES = 512
"""Minimum number of images per window; a window also has at least four steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A network with the default batch size of its trials."""

    model: ModelConfig
    batch_size: int = 128


CASES: dict[str, Case] = {
    "cnn": Case(model=ModelConfig("cnn")),
    "resnet": Case(model=ModelConfig("resnet", {"depth": 20})),
    "resnet 18": Case(model=ModelConfig("resnet", {"depth": 18})),
    "wide_resnet": Case(model=ModelConfig("wide_resnet")),
    "speednet": Case(model=ModelConfig("speednet")),
    "convnext": Case(model=ModelConfig("convnext")),
    "vit": Case(model=ModelConfig("vit")),
    "tutorial's LeNet": Case(
        model=ModelConfig(
            "custom",
            {
                "path": tutorial.__file__,
                "name": "LeNet",
                "source": Path(tutorial.__file__).read_text(),
            },
        ),
        batch_size=16,
    ),
}


def window_of(splits: Splits, batch_size: int, window_images: int = WINDOW_IMAGES) -> Splits:
    """Return the training images of a window, and a few for validation."""
    steps = max(4, window_images // batch_size)
    part = torch.arange(0, len(splits.train), len(splits.train) // (steps * batch_size))
    part = part[: steps * batch_size]
    return replace(
        splits,
        train=Images(images=splits.train.images[part], labels=splits.train.labels[part]),
        val=Images(images=splits.val.images[:8], labels=splits.val.labels[:8]),
    )


def ours(config: TrialConfig, splits: Splits, device: torch.device) -> Iterator[None]:
    """Train with ``train``; yield after each window."""
    with contextlib.closing(train(config, splits, device)) as epochs:
        for _ in epochs:
            yield


def bare(config: TrialConfig, splits: Splits, device: torch.device) -> Iterator[None]:
    """Repeat forward, backward and step on one batch; yield after each window."""
    network = build_model(config.model, splits.num_classes, splits.image_shape)
    network = network.to(device).to(memory_format=torch.channels_last)
    # Steps are tiny on purpose: on a batch that is learnt by heart, gradients become denormal
    # numbers, which are slow on a CPU (LeNet's step takes 4.1 ms instead of 1.8).
    optimizer = make_optimizer(network, replace(config.optimizer, lr=1e-12))
    dtype = compute_dtype(config.precision, device)
    mean, std = (
        torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (splits.mean, splits.std)
    )
    images = normalize(splits.train.images[: config.batch_size].to(device), mean, std)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = splits.train.labels[: config.batch_size].to(device)
    while True:
        for _ in range(len(splits.train) // config.batch_size):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = network(images).float()
            F.cross_entropy(logits, labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield


def tutorials(
    config: TrialConfig, splits: Splits, device: torch.device, workers: int = 2
) -> Iterator[None]:
    """Train in the tutorial's way; yield after each window."""
    network: nn.Module = build_model(config.model, splits.num_classes, splits.image_shape)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    assert device.type == "cpu", "the tutorial's way is written for a CPU"
    for _ in tutorial.epochs_of(
        network, optimizer, splits, batch_size=config.batch_size, workers=workers
    ):
        yield


def validation(config: TrialConfig, splits: Splits, device: torch.device) -> Iterator[None]:
    """Predict a window's images, as ``train`` does after an epoch; yield after each pass."""
    network = build_model(config.model, splits.num_classes, splits.image_shape)
    network = network.to(device).to(memory_format=torch.channels_last)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (splits.mean, splits.std))
    dtype = compute_dtype(config.precision, device)
    while True:
        predict_probs(network, splits.train.images, mean, std, device=device, dtype=dtype)
        yield


WAYS: dict[str, Callable[..., Iterator[None]]] = {
    "ours": ours,
    "bare": bare,
    "tutorial": tutorials,
    "validation": validation,
}


def config_of(case: Case, rounds: int) -> TrialConfig:
    """Return a training of ``rounds`` windows, plus one to warm up."""
    return TrialConfig(
        model=case.model,
        epochs=rounds + 1,
        batch_size=case.batch_size,
        optimizer=Sgd(lr=0.01),
        augment=Augment(crop=4, flip=True),
    )


def measure(case: Case, splits: Splits, rounds: int, device: torch.device) -> dict[str, Any]:
    """Return images per second of each way, one figure per round."""
    config = config_of(case, rounds)
    part = window_of(splits, case.batch_size)
    ways = {name: way for name, way in WAYS.items() if name != "tutorial" or device.type == "cpu"}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with ExitStack() as stack:
        windows = {
            name: stack.enter_context(contextlib.closing(way(config, part, device)))
            for name, way in ways.items()
        }
        for number in range(rounds + 1):
            # The ways take turns in going first, so that none always has the warmer machine.
            names = itertools.islice(
                itertools.cycle(ways), number % len(ways), number % len(ways) + len(ways)
            )
            for name in list(names):
                began = time.perf_counter()
                next(windows[name])
                seconds = time.perf_counter() - began
                if number:  # The first one warms up.
                    rates[name].append(len(part.train) / seconds)
    cost = count_cost(case.model, splits.num_classes, splits.image_shape)
    return {
        "parameters": cost.parameters,
        "flops": cost.flops,
        "rates": rates,
        "validation": share_of_validation(rates, splits),
    }


def measure_input(splits: Splits, rounds: int) -> dict[str, list[float]]:
    """Return images per second of crop, flip and normalization alone: in batches and by PIL."""
    images = splits.train.images[:512]
    few = replace(splits, train=Images(images=images, labels=splits.train.labels[:512]))
    one_by_one = tutorial.PilImages(few, crop=4)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (splits.mean, splits.std))
    generator = torch.Generator().manual_seed(0)
    rates: dict[str, list[float]] = {"ours": [], "tutorial": []}
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(20):
            for part in torch.split(images, 128):
                augment_batch(
                    part,
                    few.train.labels[: len(part)],
                    settings=Augment(crop=4, flip=True),
                    num_classes=splits.num_classes,
                    mean=mean,
                    std=std,
                    generator=generator,
                )
        rates["ours"].append(20 * len(images) / (time.process_time() - began))
        began = time.process_time()
        for index in range(len(images)):
            one_by_one[index]
        rates["tutorial"].append(len(images) / (time.process_time() - began))
    return rates


def ratios(rates: dict[str, list[float]], over: str) -> tuple[float, float, float]:
    """Return the quartiles of the ratios of our rate to another, round by round."""
    low, middle, high = statistics.quantiles(
        (mine / other for mine, other in zip(rates["ours"], rates[over], strict=True)), n=4
    )
    return low, middle, high


def share_of_validation(rates: dict[str, list[float]], splits: Splits) -> float:
    """Return the share of validation in an epoch, from the median rates."""
    train_seconds, val_seconds = (
        len(images) / statistics.median(rates[way])
        for images, way in ((splits.train, "ours"), (splits.val, "validation"))
    )
    return val_seconds / (train_seconds + val_seconds)


def as_table(found: dict[str, dict[str, Any]], title: str) -> Table:
    """Return a table of one row per network."""
    table = Table(title=title)
    table.add_column("network")
    for heading in (
        "weights",
        "MFLOP",
        "images/s",
        "share of the limit",
        "times the tutorial's way",
        "validation",
    ):
        table.add_column(heading, justify="right")
    for name, figures in found.items():
        rates = figures["rates"]
        cells = []
        for over, places in (("bare", 3), ("tutorial", 2)):
            if over not in rates:
                cells.append("")
                continue
            low, middle, high = ratios(rates, over)
            cells.append(f"{middle:.{places}f} ({low:.{places}f} to {high:.{places}f})")
        table.add_row(
            name,
            f"{figures['parameters']:,}",
            f"{figures['flops'] / 1e6:.0f}",
            f"{statistics.median(rates['ours']):,.0f}",
            *cells,
            f"{figures['validation']:.1%}",
        )
    return table


def main() -> None:
    """Run the benchmark; print a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as class folders")
    parser.add_argument("--data-dir", type=Path, default=Path.home() / ".cache" / "cifar-tune")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = find_device(options.device)
    source = str(Path(options.data).absolute())
    splits = load_splits(DataConfig(source=source), options.data_dir)
    found = {
        name: measure(CASES[name], splits, options.rounds, device) for name in options.networks
    }
    alone = measure_input(splits, options.rounds)
    if options.json:
        print(json.dumps({"networks": found, "input": alone}, indent=2))
    else:
        place = f"{options.threads} CPU threads" if device.type == "cpu" else str(device)
        title = f"Images a second of training, {place}, {options.rounds} rounds: median (quartiles)"
        console = Console(highlight=False, width=110)
        console.print(as_table(found, title))
        low, middle, high = ratios(alone, "tutorial")
        console.print(
            f"Crop, flip and normalize alone: {statistics.median(alone['ours']):,.0f} images a "
            f"CPU-second, {middle:.1f} ({low:.1f} to {high:.1f}) times torchvision's on PIL images"
        )


if __name__ == "__main__":
    main()
