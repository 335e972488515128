"""Images per second of the whole machine: one trial per CPU, and the tutorial's way.

    python -m tests.benchmarks.machine --data FOLDER --rounds 7

FOLDER is CIFAR-10 as class folders. A search trains one trial of one thread on each CPU; the
tutorial's way gives all CPUs to one training, with as many loader workers. Both take turns, a
window of several steps each; ratios are computed within a round.
"""

import argparse
import contextlib
import json
import os
import statistics
import time
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.throughput import CASES, config_of, ours, ratios, tutorials, window_of
from tuner.config import DataConfig
from tuner.data.splits import Splits, load_splits

CPU = torch.device("cpu")
WINDOW_IMAGES = 2048


def train_windows(
    name: str, splits: Splits, rounds: int, gate: Barrier, seconds: "Queue[float]"
) -> None:
    """Train a network with one thread; put the seconds of each window into the queue."""
    torch.set_num_threads(1)
    windows = ours(config_of(CASES[name], rounds), splits, CPU)
    with contextlib.closing(windows):
        for _ in range(rounds + 1):
            gate.wait()
            began = time.perf_counter()
            next(windows)
            seconds.put(time.perf_counter() - began)


def measure(name: str, splits: Splits, rounds: int, cpus: int) -> dict[str, list[float]]:
    """Return images per second of both ways, one figure per round."""
    part = window_of(splits, CASES[name].batch_size, WINDOW_IMAGES)
    context = get_context("spawn")
    gate, seconds = context.Barrier(cpus + 1), context.Queue()
    workers = [
        context.Process(target=train_windows, args=(name, part, rounds, gate, seconds))
        for _ in range(cpus)
    ]
    for worker in workers:
        worker.start()
    rates: dict[str, list[float]] = {"ours": [], "tutorial": []}
    config = config_of(CASES[name], rounds)
    with contextlib.closing(tutorials(config, part, CPU, workers=cpus)) as windows:
        for number in range(rounds + 1):
            gate.wait()
            slowest = max(seconds.get() for _ in workers)
            began = time.perf_counter()
            next(windows)
            alone = time.perf_counter() - began
            if number:  # The first one warms up.
                rates["ours"].append(cpus * len(part.train) / slowest)
                rates["tutorial"].append(len(part.train) / alone)
    for worker in workers:
        worker.join()
    return rates


def main() -> None:
    """Run the benchmark; print a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as class folders")
    parser.add_argument("--data-dir", type=Path, default=Path.home() / ".cache" / "cifar-tune")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", nargs="+", choices=CASES, default=["cnn", "tutorial's LeNet"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cpus = os.cpu_count() or 1
    torch.set_num_threads(cpus)
    source = str(Path(options.data).absolute())
    splits = load_splits(DataConfig(source=source), options.data_dir)
    found = {name: measure(name, splits, options.rounds, cpus) for name in options.networks}
    if options.json:
        print(json.dumps(found, indent=2))
        return
    table = Table(title=f"Images a second of {cpus} CPUs: median (quartiles)")
    table.add_column("network")
    for heading in ("a trial on each CPU", "the tutorial's way", "times"):
        table.add_column(heading, justify="right")
    for name, rates in found.items():
        low, middle, high = ratios(rates, "tutorial")
        medians = [f"{statistics.median(rates[way]):,.0f}" for way in ("ours", "tutorial")]
        table.add_row(name, *medians, f"{middle:.1f} ({low:.1f} to {high:.1f})")
    Console(highlight=False, width=100).print(table)


if __name__ == "__main__":
    main()
