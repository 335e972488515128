"""The driver's cost per result, early and late, with more slots than any machine here has.

    python -m tests.benchmarks.simulated_slots --slots 1024 --trials 10000

The program's own tuner, sampler, scheduler and recorder run a search on a simulated clock: nothing
is trained, but everything else is done, and the run folder is written. A result is an epoch that a
worker reports. CPU time per result and memory are reported for each quarter of the results; both
should be flat. Exits with status 1 if a result of the last quarter takes more than 1.3 times as
long as one of the first, or if the process grows by more than 30 kB per trial.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.benchmarks.overhead import SPACE
from tuner.config import DataConfig
from tuner.run.events import EpochEnded, TrialEnded, TrialPlaced
from tuner.run.run import Run
from tuner.run.run_record import RunRecord, now
from tuner.run.trial import EpochMetrics
from tuner.space import load_space
from tuner.tuning.budget import Budget
from tuner.tuning.planning.simulated import SimulatedClock, Step, run_simulated
from tuner.tuning.recorder import make_tuner
from tuner.tuning.resources import CapacityPlan, TrialResources
from tuner.tuning.sampling.sampler import Sampler
from tuner.tuning.tuner import Assignment

EPOCHS = 9
WARM = 0.1
"""Share of the results left out at the start, while the slots are filled one by one."""
MARK_EVERY = 100
"""Number of results between two marks."""
MAX_RATIO = 1.3
MOST_KILOBYTES = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """The state of a search after some of its results."""

    results: int
    trials: int
    """Trials started until then."""
    seconds: float
    """CPU time of the process."""
    kilobytes: float
    """Resident memory of the process."""


def search(folder: Path, *, slots: int, trials: int, sampler: str, scheduler: str) -> list[Mark]:
    """Search on simulated slots; return marks at regular intervals."""
    file = folder / "space.yaml"
    file.write_text(SPACE)
    settings = {"trials": trials, "epochs": EPOCHS, "sampler": sampler, "scheduler": scheduler}
    space = load_space(file, [f"search.{key}={value}" for key, value in settings.items()])
    record = RunRecord(
        name="run",
        command="",
        space=str(file),
        search=space.search,
        data=DataConfig(source="digits"),
        data_dir=str(folder),
        data_fingerprint="",
        split_fingerprint="",
        num_train=1,
        num_val=1,
        started=now(),
    )
    clock = SimulatedClock()
    plan = CapacityPlan(default=TrialResources(cpus=1, gpus=0), count=slots)
    tuner, _ = make_tuner(
        Run.create(folder / "run", record, space.resolved()),
        Sampler(space, space.search),
        Budget(trials=trials),
        plan,
        clock,
    )
    generator = np.random.default_rng(0)

    def train(given: Assignment) -> Iterator[Step]:
        seconds, quality = generator.uniform(0.5, 2.0), generator.uniform(0.2, 0.8)
        yield 0.1
        yield TrialPlaced(number=given.number, node="simulated")
        for epoch in range(given.num_epochs + 1, EPOCHS + 1):
            yield seconds
            accuracy = quality + 0.2 * (1 - 0.5**epoch) * generator.uniform(0.5, 1.0)
            metrics = EpochMetrics(
                epoch=epoch,
                train_loss=1.0,
                val_loss=1 - accuracy,
                val_accuracy=accuracy,
                lr=0.1,
                seconds=seconds,
                time=clock.now,
            )
            yield EpochEnded(number=given.number, metrics=metrics, num_parameters=1)
        yield TrialEnded(number=given.number, state="completed")

    marks: list[Mark] = []
    results = 0
    for event in run_simulated(tuner, clock, train, lambda running: len(running) < slots):
        results += isinstance(event, EpochEnded)
        if results >= MARK_EVERY * len(marks) or tuner.state.num_ended == trials:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            marks.append(
                Mark(
                    results=results,
                    trials=tuner.num_started,
                    seconds=time.process_time(),
                    kilobytes=pages * os.sysconf("SC_PAGE_SIZE") / 1000,
                )
            )
    assert tuner.state.num_ended == trials
    return marks


def quarters(marks: list[Mark]) -> list[dict[str, float]]:
    """Return the cost per result in each quarter, and the process's memory at its end."""
    last = marks[-1].results
    bounds = [WARM * last + (1 - WARM) * last * part / 4 for part in range(5)]
    at = [next(mark for mark in marks if mark.results >= bound) for bound in bounds]
    return [
        {
            "results": end.results - begin.results,
            "milliseconds_a_result": 1000
            * (end.seconds - begin.seconds)
            / (end.results - begin.results),
            "megabytes_at_the_end": end.kilobytes / 1000,
        }
        for begin, end in itertools.pairwise(at)
    ]


def main() -> None:
    """Run the benchmark; print a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=1024)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--scheduler", default="asha")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slots-") as name:
        marks = search(
            Path(name),
            slots=options.slots,
            trials=options.trials,
            sampler=options.sampler,
            scheduler=options.scheduler,
        )
    found = quarters(marks)
    warm = next(mark for mark in marks if mark.results >= WARM * marks[-1].results)
    growth = (marks[-1].kilobytes - warm.kilobytes) / (options.trials - warm.trials or 1)
    if options.json:
        print(json.dumps({"quarters": found, "marks": [asdict(mark) for mark in marks]}))
    else:
        title = f"{options.trials:,} trials, {options.slots:,} at a time, simulated"
        table = Table(
            "quarter", "results", "driver's CPU, ms a result", "MB at its end", title=title
        )
        for number, row in enumerate(found, 1):
            cells = (f"{row[key]:,.{places}f}" for key, places in zip(row, (0, 2, 0), strict=True))
            table.add_row(str(number), *cells)
        Console(highlight=False, width=100).print(table)
        print(f"{growth:.1f} kB a trial")
    ratio = found[-1]["milliseconds_a_result"] / found[0]["milliseconds_a_result"]
    sys.exit(ratio > MAX_RATIO or growth > MOST_KILOBYTES)


if __name__ == "__main__":
    main()
