"""Measure more slots on this machine, and commands over thousands of recorded trials.

    python -m tests.benchmarks.scale --trials 10000

The first part runs the same small trainings on the digits: one at a time on all CPUs, then one per
CPU with a thread each, then twice as many. It reports images per second of all trials together, in
alternating rounds; ``--trained 0`` leaves it out. The second part makes a run folder of thousands
of recorded trials, as a search leaves it (twenty checkpoints, validation probabilities of all). It
reports the seconds of the program's commands as whole processes, of the replay in a resumed search,
and of a proposal after that.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray
import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.turnover import search_digits
from tuner.config import DataConfig, SearchConfig, TrialConfig
from tuner.data.splits import Splits, load_splits
from tuner.ensemble.members import Network, predict_network
from tuner.models.build import build_model
from tuner.run.checkpoint import Checkpoint, save_checkpoint
from tuner.run.run import Run
from tuner.run.run_record import RunRecord, now
from tuner.run.trial import (
    EpochMetrics,
    TrialStatus,
    write_history,
    write_status,
    write_trial,
    write_val_probs,
)
from tuner.space import RandomTrial, SearchSpace, load_space
from tuner.training.epoch import Epoch, metrics_of
from tuner.training.loop import train
from tuner.tuning.budget import Budget
from tuner.tuning.recorder import make_tuner
from tuner.tuning.resources import CapacityPlan, TrialResources
from tuner.tuning.sampling.sampler import Sampler

SPACE = """
dataset: digits
search: {epochs: 9, grace: 1, reduction: 3}
space:
  batch_size: {choice: [32, 64, 128]}
  model: {cnn: {stages: 2, width: {choice: [8, 16]}, dropout: {float: [0.0, 0.5]}}}
  optimizer:
    choice:
      sgd: {lr: {float: [0.01, 1.0], log: true}}
      adamw: {lr: {float: [1.0e-4, 1.0e-2], log: true}}
"""
KEPT = 20
PROPOSALS = 10


def slots_apart(folder: Path, rounds: int, trials: int, epochs: int) -> dict[str, list[float]]:
    """Return images per second of a search by division of the CPUs, one figure per round."""
    cpus = os.cpu_count() or 1
    ways = {
        f"1 trial of {cpus} threads": (1, float(cpus)),
        f"{cpus} trials of 1 thread": (cpus, 1.0),
        f"{2 * cpus} trials of 1 thread": (2 * cpus, 0.5),
    }
    images = len(load_splits(DataConfig(source="digits"), folder).train)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    ray.init("local", num_cpus=cpus, num_gpus=0, include_dashboard=False, log_to_driver=False)
    try:
        for number in range(rounds):
            for name, (concurrent, share) in ways.items():
                found = search_digits(
                    folder / f"{number}-{concurrent}",
                    trials=trials,
                    epochs=epochs,
                    concurrent=concurrent,
                    cpus_per_trial=share,
                )
                span = max(trial.ended for trial in found) - min(trial.began for trial in found)
                rates[name].append(images * trials * epochs / span)
    finally:
        ray.shutdown()
    return rates


def recorded_run(folder: Path, trials: int) -> tuple[Run, SearchSpace]:
    """Write a run folder of ``trials`` trials, each stopped where ASHA would stop it."""
    file = folder / "space.yaml"
    file.write_text(SPACE)
    space = load_space(file)
    splits = load_splits(DataConfig(source="digits"), folder)
    record = RunRecord(
        name="many",
        command="",
        space=str(file),
        search=replace(space.search, trials=trials),
        data=DataConfig(source="digits"),
        data_dir=str(folder),
        data_fingerprint=splits.fingerprint,
        split_fingerprint=splits.split_fingerprint,
        num_train=len(splits.train),
        num_val=len(splits.val),
        started=now(),
    )
    run = Run.create(folder / "runs" / "many", record, space.resolved())
    generator = np.random.default_rng(0)
    for number in range(trials):
        _write_trial(run, space, splits, number, float(generator.beta(8, 2)))
    run.prune(KEPT)
    run.update(status="finished", finished=now())
    return run, space


def _write_trial(
    run: Run, space: SearchSpace, splits: Splits, number: int, accuracy: float
) -> None:
    config = space.sample(RandomTrial(number), epochs=space.search.epochs, seed=number)
    path = run.trial_path(number)
    epochs = 9 if accuracy > 0.9 else 3 if accuracy > 0.8 else 1
    history = [
        EpochMetrics(
            epoch=epoch,
            train_loss=1.0 / epoch,
            val_loss=1.5 - accuracy,
            val_accuracy=accuracy * (1 - 0.5 ** (epoch + 1)),
            lr=0.1,
            seconds=0.5,
            time=1e9 + number + epoch,
        )
        for epoch in range(1, epochs + 1)
    ]
    write_trial(path, config)
    if accuracy > 0.95:  # More trials than are kept.
        file = path / "checkpoint.safetensors"
        _write_checkpoint(file, config, splits, number)
        network = Network(file=file, model=config.model, precision=config.precision)
        probs = predict_network(network, splits.val.images, "none", torch.device("cpu"))
    else:
        chance = np.random.default_rng(number)
        noise = chance.dirichlet(np.ones(splits.num_classes), len(splits.val))
        hits = chance.random(len(splits.val)) < history[-1].val_accuracy
        truth = np.eye(splits.num_classes)[splits.val.labels.numpy()]
        probs = torch.from_numpy(np.where(hits[:, None], 0.1 * noise + 0.9 * truth, noise)).float()
    # The program checks the figures of an epoch against its probabilities.
    figures = metrics_of(
        probs, splits.val.labels, epoch=epochs, train_loss=1.0 / epochs, lr=0.1, seconds=0.5
    )
    write_history(path, [*history[:-1], replace(figures, time=history[-1].time)])
    write_val_probs(path, probs.numpy())
    state = "completed" if epochs == 9 else "stopped"
    write_status(path, TrialStatus(state=state, num_parameters=1000, finished=now()))


def _write_checkpoint(file: Path, config: TrialConfig, splits: Splits, number: int) -> None:
    """Write a trained network with slightly different weights in each trial."""
    epoch = _trained(config.model.params["width"], splits)
    network = build_model(config.model, splits.num_classes, splits.image_shape)
    network.load_state_dict(epoch.network.state_dict())
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for weights in network.parameters():
            scale = 0.02 * weights.abs().mean()
            weights += scale * torch.randn(weights.shape, generator=generator)
    checkpoint = Checkpoint(
        model=config.model,
        epoch=9,
        classes=splits.classes,
        image_shape=splits.image_shape,
        mean=epoch.mean,
        std=epoch.std,
    )
    save_checkpoint(file, network, checkpoint)


_known: dict[int, Epoch] = {}


def _trained(width: int, splits: Splits) -> Epoch:
    """Train a network of the given width; return its last epoch."""
    if width not in _known:
        config = TrialConfig.from_dict(
            {
                "model": {"cnn": {"stages": 2, "width": width}},
                "epochs": 9,
                "batch_size": 32,
                "optimizer": {"adamw": {"lr": 0.005}},
            }
        )
        *_, _known[width] = train(config, splits, torch.device("cpu"))
    return _known[width]


def command_seconds(run: Run, *words: str) -> float:
    """Return the wall seconds of a command on the run, as a process of its own."""
    program = Path(sys.executable).with_name("cifar-tune")
    storage = ["--storage", str(run.path.parent)]
    began = time.perf_counter()
    subprocess.run([program, *words, *storage], check=True, capture_output=True)
    return time.perf_counter() - began


def replay_seconds(run: Run, space: SearchSpace, sampler: str) -> tuple[float, float]:
    """Return the seconds in which a resumed search replays all recorded trials, and proposes."""
    search: SearchConfig = replace(run.record.search, sampler=sampler)
    proposer = Sampler(space, search)
    tuner, recorder = make_tuner(
        run,
        proposer,
        Budget(trials=search.trials),
        CapacityPlan(default=TrialResources(cpus=1, gpus=0), count=1),
    )
    began = time.perf_counter()
    tuner.restore(recorder.restore())
    replayed = time.perf_counter()
    for number in range(PROPOSALS):
        proposer.ask(tuner.num_started + number)
    return replayed - began, (time.perf_counter() - replayed) / PROPOSALS


def recorded(folder: Path, trials: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each command over recorded trials, one figure per round."""
    run, space = recorded_run(folder, trials)
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        commands = {
            "leaderboard": ("leaderboard",),
            "show": ("show",),
            "report": ("report",),
            "ensemble --top 5 --dry-run": ("ensemble", "--top", "5", "--dry-run"),
            "ensemble --top 5": ("ensemble", "--top", "5"),
            "ensemble --top 5 --method greedy": ("ensemble", "--top", "5", "--method", "greedy"),
        }
        for name, words in commands.items():
            found.setdefault(name, []).append(command_seconds(run, *words))
        for sampler in ("random", "tpe"):
            replayed, proposed = replay_seconds(run, space, sampler)
            found.setdefault(f"replay, {sampler}", []).append(replayed)
            found.setdefault(f"a proposal, {sampler}", []).append(proposed)
    shutil.rmtree(run.path)
    return found


def as_table(title: str, found: dict[str, list[float]], places: int, first: str = "") -> Table:
    """Return one row per entry: median and range, and the ratio to the row ``first``."""
    table = Table(title=title)
    table.add_column("")
    table.add_column("median (least to most)", justify="right")
    if first:
        table.add_column("times the first", justify="right")
    for name, values in found.items():
        cells = [
            f"{statistics.median(values):.{places}f} "
            f"({min(values):.{places}f} to {max(values):.{places}f})"
        ]
        if first:
            ratios = [mine / base for mine, base in zip(values, found[first], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f}")
        table.add_row(name, *cells)
    return table


def main() -> None:
    """Run the benchmark; print its tables, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000, help="recorded ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trained", type=int, default=8, help="trials of a search")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        folder = Path(name)
        rates: dict[str, list[float]] = {}
        if options.trained:
            rates = slots_apart(folder, options.rounds, options.trained, options.epochs)
        seconds = recorded(folder, options.trials, options.rounds)
    if options.json:
        print(json.dumps({"images_a_second": rates, "seconds": seconds}, indent=2))
        return
    console = Console(highlight=False, width=100)
    if rates:
        console.print(
            as_table("Images a second, all trials together", rates, 0, first=next(iter(rates)))
        )
    console.print(as_table(f"Seconds, {options.trials:,} recorded trials", seconds, 2))


if __name__ == "__main__":
    main()
