"""The time between trials: seconds from the end of one to the first step of the next.

    python -m tests.benchmarks.turnover --trials 50

A search of short trainings on the digits is compared with the same trainings as function trainables
of stock Tune, each in an actor of its own, which is Tune's default. The slot of a trial is found
from the times of the epochs: a trial takes the slot that became free first. The share of slot time
is the time in epochs, validation included, divided by all time between a slot's first epoch and its
last. Long trials, of half a minute or more, train the same network on digits enlarged to the size
of CIFAR's images. Large trials have a million weights and epochs of about a second, so that saving
weighs most.

The last part measures promotions, in one slot with five million weights under AdamW, a state of
80 MB. The first figure is the seconds from the last epoch of another trial, whose files are still
to be written, to the first step of a trial that resumes from its saved state. The second is the
seconds from an epoch at a rung to the next one of a trial that continues in place, which is the
time that the writing takes.
"""

import argparse
import contextlib
import heapq
import io
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from rich.console import Console
from rich.table import Table

from tests.benchmarks.overhead import own_environment
from tuner.config import DataConfig, Resources, TrialConfig
from tuner.data.splits import load_splits
from tuner.run.state import in_order
from tuner.space import RandomTrial, load_space
from tuner.tuning.ray_backend.capacity import plan_capacity
from tuner.tuning.ray_backend.payload import pack, unpack
from tuner.tuning.request import SearchRequest
from tuner.tuning.session import search

SPACE = """
dataset: digits
space:
  batch_size: 64
  model: {cnn: {stages: 2, width: 32}}
  optimizer: {adamw: {lr: {float: [1.0e-3, 1.0e-2], log: true}}}
"""
LARGE = SPACE.replace("stages: 2, width: 32", "stages: 3, width: 64")
"""Networks of 1.1 million weights, with a state of 18 MB."""
PROMOTED = SPACE.replace("stages: 2, width: 32", "stages: 3, width: 136")
"""Networks of 5 million weights."""
PROMOTED_IMAGES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """Begin and end of a trial's epochs in seconds since 1970, and the seconds that they took."""

    began: float
    ended: float
    seconds: float


def turnovers(trials: Iterable[Trained], slots: int) -> tuple[list[float], float]:
    """Return the seconds between trials of a slot, and the share of slot time in epochs."""
    free: list[float] = []
    gaps: list[float] = []
    span = 0.0
    busy = 0.0
    for trial in sorted(trials, key=lambda trial: trial.began):
        if len(free) == slots:
            gaps.append(trial.began - heapq.heappop(free))
            span += gaps[-1]
        heapq.heappush(free, trial.ended)
        span += trial.ended - trial.began
        busy += trial.seconds
    return gaps, busy / span


def search_digits(
    folder: Path,
    *,
    trials: int,
    epochs: int,
    image_size: int = 8,
    concurrent: int | None = None,
    cpus_per_trial: float | None = None,
    text: str = SPACE,
) -> list[Trained]:
    """Search in a new folder, and read the times of the trials from the run."""
    folder.mkdir()
    file = folder / "space.yaml"
    file.write_text(text)
    settings = {"trials": trials, "epochs": epochs, "scheduler": "none", "sampler": "random"}
    changes = [f"search.{key}={value}" for key, value in settings.items()]
    space = load_space(file, changes)
    request = SearchRequest(
        space=space,
        space_name=str(file),
        search=space.search,
        data=DataConfig(source="digits", image_size=image_size),
        data_dir=folder,
        storage=folder,
        name="run",
        command="",
        keep=1,
        concurrent=concurrent,
        cpus_per_trial=cpus_per_trial,
    )
    with own_environment():
        run = search(request, Console(file=io.StringIO()))
    rows = [trial.history for trial in run.trials()]
    assert [len(history) for history in rows] == [epochs] * trials
    return [
        Trained(
            began=history[0].time - history[0].seconds,
            ended=history[-1].time,
            seconds=sum(row.seconds for row in history),
        )
        for history in rows
    ]


def promote_digits(folder: Path, trials: int) -> tuple[list[float], list[float]]:
    """Search with promotion in one slot.

    Returns:
        Seconds before the first step of trials that were paused and then promoted, and of those
        that continued in place.
    """
    folder.mkdir()
    file = folder / "space.yaml"
    file.write_text(PROMOTED)
    settings = {"trials": trials, "epochs": 4, "grace": 1, "reduction": 2, "sampler": "random"}
    space = load_space(file, [f"search.{key}={value}" for key, value in settings.items()])
    request = SearchRequest(
        space=space,
        space_name=str(file),
        search=space.search,
        data=DataConfig(source="digits", train_limit=PROMOTED_IMAGES),
        data_dir=folder,
        storage=folder,
        name="run",
        command="",
        keep=1,
        concurrent=1,
    )
    with own_environment():
        run = search(request, Console(file=io.StringIO()))
    found = run.trials()
    print(f"{found[0].status.num_parameters:,} weights", file=sys.stderr)
    rows = in_order({trial.number: trial.history for trial in found})
    waited: list[float] = []
    in_place: list[float] = []
    for (number, before), (other, row) in itertools.pairwise(rows):
        gap = row.time - row.seconds - before.time
        if number != other and row.epoch > 1:
            waited.append(gap)
        elif number == other and before.epoch in (1, 2):
            in_place.append(gap)
    return waited, in_place


def train_plainly(params: dict[str, Any], *, data: dict[str, Any]) -> None:
    """Train in a function trainable; report the times of the epochs."""
    import torch

    from tuner.training.loop import train

    torch.set_num_threads(1)
    device = torch.device("cpu")
    config = TrialConfig.from_dict(params["config"])
    for epoch in train(config, unpack(data, device), device):
        row = epoch.figures
        tune.report({"time": row.time, "took": row.seconds, "epoch": row.epoch})


def stock(folder: Path, trials: int, epochs: int) -> list[Trained]:
    """Train the same under ``tune.Tuner`` with its default settings."""
    folder.mkdir()
    file = folder / "space.yaml"
    file.write_text(SPACE)
    space = load_space(file)
    configs = [space.sample(RandomTrial(n), epochs=epochs, seed=n).to_dict() for n in range(trials)]
    data = pack(load_splits(DataConfig(source="digits"), folder))
    tuner = tune.Tuner(
        tune.with_parameters(train_plainly, data=data),
        param_space={"config": tune.grid_search(configs)},
        run_config=tune.RunConfig(storage_path=str(folder / "stock")),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        results = tuner.fit()
    assert not results.errors
    assert len(results) == trials
    found = []
    for result in results:
        table = result.metrics_dataframe
        took = table["took"]
        found.append(
            Trained(
                began=table["time"].iloc[0] - took.iloc[0],
                ended=table["time"].iloc[-1],
                seconds=took.sum(),
            )
        )
    return found


def as_table(found: dict[str, dict[str, Any]], slots: int) -> Table:
    """Return a table of one row per way to run trials."""
    table = Table(title=f"Between trials, {slots} slots")
    table.add_column("")
    headings = (
        "trials",
        "seconds a trial",
        "turnover, s (quartiles)",
        "in epochs",
        "within trials",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, figures in found.items():
        low, middle, high = statistics.quantiles(figures["turnovers"], n=4)
        table.add_row(
            name,
            str(figures["trials"]),
            f"{figures['trial_seconds']:.1f}",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            f"{figures['share']:.1%}",
            f"{figures['within']:.1%}",
        )
    return table


def figures_of(trials: Sequence[Trained], slots: int) -> dict[str, Any]:
    """Return the figures of one way to run trials."""
    gaps, share = turnovers(trials, slots)
    return {
        "trials": len(trials),
        "trial_seconds": statistics.median(trial.seconds for trial in trials),
        "turnovers": gaps,
        "share": share,
        "within": sum(t.seconds for t in trials) / sum(t.ended - t.began for t in trials),
    }


def main() -> None:
    """Run the benchmark; print a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--long-trials", type=int, default=6)
    parser.add_argument("--long-epochs", type=int, default=27)
    parser.add_argument("--long-size", type=int, default=32, help="pixels of their images")
    parser.add_argument("--large-trials", type=int, default=6)
    parser.add_argument("--large-epochs", type=int, default=27)
    parser.add_argument("--promoting-trials", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    ray.init(
        "local", num_cpus=os.cpu_count(), num_gpus=0, include_dashboard=False, log_to_driver=False
    )
    try:
        slots = plan_capacity(Resources()).count
        with tempfile.TemporaryDirectory(prefix="turnover-") as name:
            folder = Path(name)
            half = options.trials // 2
            before = stock(folder / "before", half, options.epochs)
            trained = {
                "cifar-tune": search_digits(
                    folder / "short", trials=options.trials, epochs=options.epochs
                ),
                "cifar-tune, long": search_digits(
                    folder / "long",
                    trials=options.long_trials,
                    epochs=options.long_epochs,
                    image_size=options.long_size,
                ),
                "cifar-tune, large": search_digits(
                    folder / "large",
                    trials=options.large_trials,
                    epochs=options.large_epochs,
                    text=LARGE,
                ),
            }
            found = {name: figures_of(trials, slots) for name, trials in trained.items()}
            after = stock(folder / "after", options.trials - half, options.epochs)
            gaps, shares = zip(*(turnovers(part, slots) for part in (before, after)), strict=True)
            both = figures_of([*before, *after], slots)
            promoted = promote_digits(folder / "promoted", options.promoting_trials)
            found["stock Tune"] = both | {
                "turnovers": [gap for part in gaps for gap in part],
                "share": statistics.fmean(shares),
            }
    finally:
        ray.shutdown()
    waited, in_place = promoted
    if options.json:
        print(json.dumps(found | {"promoted": waited, "promoted in place": in_place}, indent=2))
        return
    Console(highlight=False, width=100).print(as_table(found, slots))
    for name, gaps in (("after it waited", waited), ("in its place", in_place)):
        middle = statistics.median(gaps)
        print(f"promoted {name}: {len(gaps)}, median {middle:.2f} s, at most {max(gaps):.2f} s")


if __name__ == "__main__":
    main()
