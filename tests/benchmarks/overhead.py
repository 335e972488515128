"""The driver's cost per trial, from the first to the last of thousands, and against stock Tune.

    python -m tests.benchmarks.overhead --trials 2000 --slots 8

The real search runs with a worker that reports one epoch without training. A plain function does
the same under ``tune.Tuner`` with its defaults, half of its trials before and half after, in the
same Ray session. Both import torch, as any training does. With ``--bare``, ours does not: a machine
may have memory for 64 such workers, but not for 64 with torch.

In Ray's scalability guide, 10,000 trials that sleep for a second, 16 at a time, take 715 s; the
minimum is 625 s. The same here:

    python -m tests.benchmarks.overhead --trials 10000 --slots 16 --sleep 1 --bare --stock-trials 0
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from rich.console import Console
from rich.table import Table

from tuner.config import DataConfig
from tuner.errors import NoUsableTrials
from tuner.run.events import EpochEnded, TrialEnded, TrialPlaced
from tuner.run.run import Run
from tuner.run.trial import EpochMetrics
from tuner.space import load_space
from tuner.tuning import session as driver
from tuner.tuning.ray_backend import driver as running
from tuner.tuning.request import SearchRequest

SPACE = """
dataset: digits
search: {epochs: 1, grace: 1}
space:
  batch_size: {choice: [32, 64, 128]}
  model:
    cnn: {stages: {int: [1, 6]}, width: {int: [8, 512], log: true}, dropout: {float: [0, 0.9]}}
  optimizer:
    choice:
      sgd: {lr: {float: [0.001, 1.0], log: true}}
      adamw: {lr: {float: [1.0e-4, 1.0e-1], log: true}}
"""
WARM = 50
"""Trials left out of the first quarter's rate, because the workers start during them."""
MAX_RATIO = 1.3


def report_only(params: dict[str, Any], *, sleep: float, is_bare: bool, **unused: Any) -> None:
    """Report like a worker that trains, but sleep instead of training."""
    if not is_bare:
        import torch

        torch.set_num_threads(1)
    number, node = params["number"], ray.get_runtime_context().get_node_id()
    tune.report({"event": TrialPlaced(number=number, node=node)})
    time.sleep(sleep)
    row = EpochMetrics(
        epoch=1,
        train_loss=1.0,
        val_loss=1.0,
        val_accuracy=json.loads(params["config"])["seed"] % 1000 / 1000,
        lr=0.1,
        seconds=sleep or 0.01,
        time=time.time(),
    )
    tune.report({"event": EpochEnded(number=number, metrics=row, num_parameters=1)})
    tune.report({"event": TrialEnded(number=number, state="completed")})


def report_plainly(config: dict[str, Any]) -> None:
    """Report one epoch to stock Tune."""
    import torch

    torch.set_num_threads(1)
    tune.report({"val_accuracy": config["lr"]})


class Usage:
    """Records the resident memory and the CPU time of this process twice a second."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._sizes: list[float] = []
        self._seconds: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Usage":
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self._times.append(time.time())
            self._sizes.append(pages * os.sysconf("SC_PAGE_SIZE") / 1000)
            self._seconds.append(time.process_time())

    def size_at(self, moment: float) -> float:
        """Return the size in kB at a time in seconds since 1970."""
        return float(np.interp(moment, self._times, self._sizes))

    def seconds_at(self, moment: float) -> float:
        """Return the CPU time in seconds that was spent until then."""
        return float(np.interp(moment, self._times, self._seconds))


def search(
    folder: Path, *, trials: int, sampler: str, sleep: float = 0.0, is_bare: bool = False
) -> tuple[list[float], Usage]:
    """Search with workers that only report.

    Args:
        folder: Folder for the run.
        trials: Number of trials.
        sampler: Name of the sampler that proposes them.
        sleep: Seconds before each trial's epoch is reported.
        is_bare: Whether the workers run without PyTorch.

    Returns:
        When each trial ended, sorted, in seconds since 1970, and the usage of this process.
    """
    path = folder / "space.yaml"
    path.write_text(SPACE)
    space = load_space(path, [f"search.trials={trials}", f"search.sampler={sampler}"])
    request = SearchRequest(
        space=space,
        space_name=str(path),
        search=space.search,
        data=DataConfig(source="digits"),
        data_dir=folder,
        storage=folder,
        name=sampler,
        command="",
        keep=1,
    )
    real = running.train_if_fit
    running.train_if_fit = partial(report_only, sleep=sleep, is_bare=is_bare)
    try:
        with Usage() as usage, contextlib.suppress(NoUsableTrials), own_environment():
            driver.search(request, Console(file=io.StringIO()))
    finally:
        running.train_if_fit = real
    ended = [trial.status for trial in Run.open(folder / sampler).trials()]
    assert [status.state for status in ended] == ["completed"] * trials
    return sorted(datetime.fromisoformat(status.finished).timestamp() for status in ended), usage


def measure(
    folder: Path, *, trials: int, sampler: str, sleep: float, is_bare: bool
) -> dict[str, float]:
    """Run such a search and return its figures; see ``search`` for the arguments.

    Returns:
        Trials per second and the driver's milliseconds of CPU time per trial, both for the first
        and the last quarter; the driver's kB of memory per trial; and the seconds of all trials.
    """
    began = time.time()
    ends, usage = search(folder, trials=trials, sampler=sampler, sleep=sleep, is_bare=is_bare)
    part = trials // 4
    first, last = ends[WARM:part], ends[-part:]
    return {
        "first": _rate(first),
        "last": _rate(last),
        "ratio": _rate(first) / _rate(last),
        "seconds": ends[-1] - began,
        "milliseconds_first": _milliseconds(first, usage),
        "milliseconds_last": _milliseconds(last, usage),
        "kilobytes_a_trial": (usage.size_at(ends[-1]) - usage.size_at(ends[part]))
        / (trials - part),
    }


def _rate(ends: Sequence[float]) -> float:
    return (len(ends) - 1) / (ends[-1] - ends[0])


def _milliseconds(ends: Sequence[float], usage: Usage) -> float:
    spent = usage.seconds_at(ends[-1]) - usage.seconds_at(ends[0])
    return 1000 * spent / (len(ends) - 1)


def measure_stock(folder: Path, trials: int) -> float:
    """Return the seconds that ``tune.Tuner`` takes for the trials, with its default settings."""
    tuner = tune.Tuner(
        report_plainly,
        param_space={"lr": tune.loguniform(0.001, 1.0)},
        tune_config=tune.TuneConfig(num_samples=trials, metric="val_accuracy", mode="max"),
        run_config=tune.RunConfig(storage_path=str(folder)),
    )
    began = time.time()
    with contextlib.redirect_stdout(io.StringIO()):
        results = tuner.fit()
    assert len(results) == trials
    assert not results.errors
    return time.time() - began


@contextlib.contextmanager
def own_environment() -> Iterator[None]:
    """Restore the environment variables that a search sets for the engine."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def as_table(ours: dict[str, dict[str, float]], stock: float | None, title: str) -> Table:
    """Return one row per sampler, and one for stock Tune if that was measured."""
    table = Table(title=title)
    table.add_column("")
    for heading in (
        "trials a second, first quarter",
        "last",
        "ratio",
        "seconds, with the start",
        "driver's CPU, ms a trial, first quarter",
        "last",
        "driver's memory, kB a trial",
    ):
        table.add_column(heading, justify="right")
    for sampler, figures in ours.items():
        table.add_row(
            f"cifar-tune, {sampler}",
            f"{figures['first']:.1f}",
            f"{figures['last']:.1f}",
            f"{figures['ratio']:.2f}",
            f"{figures['seconds']:.1f}",
            f"{figures['milliseconds_first']:.1f}",
            f"{figures['milliseconds_last']:.1f}",
            f"{figures['kilobytes_a_trial']:.1f}",
        )
    if stock is not None:
        table.add_row("stock Tune, trials a second", f"{stock:.2f}")
    return table


def main() -> None:
    """Run the benchmark; print a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--stock-trials", type=int, default=48)
    parser.add_argument("--samplers", nargs="+", default=["random"])
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--sleep", type=float, default=0.0, help="seconds that a trial takes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    trials, sleep = options.trials, options.sleep
    ray.init(
        "local", num_cpus=options.slots, num_gpus=0, include_dashboard=False, log_to_driver=False
    )
    half = options.stock_trials // 2
    seconds = 0.0
    try:
        with tempfile.TemporaryDirectory(prefix="overhead-") as name:
            folder = Path(name)
            if half:
                seconds += measure_stock(folder / "before", half)
            ours = {
                sampler: measure(
                    folder, trials=trials, sampler=sampler, sleep=sleep, is_bare=options.bare
                )
                for sampler in options.samplers
            }
            if half:
                seconds += measure_stock(folder / "after", half)
    finally:
        ray.shutdown()
    stock = 2 * half / seconds if half else None
    if options.json:
        print(json.dumps({"ours": ours, "stock": stock}, indent=2))
    else:
        title = f"{trials} trials that sleep {sleep:g} s, {options.slots} at a time"
        Console(highlight=False, width=110).print(as_table(ours, stock, title))
    slow = [sampler for sampler, figures in ours.items() if figures["ratio"] > MAX_RATIO]
    if slow or any(trials / figures["seconds"] <= (stock or 0.0) for figures in ours.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
