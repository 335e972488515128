"""Compare ways to search on one budget of epochs, over curves that were really trained.

    python -m tests.benchmarks.samplers --seeds 10

Every configuration of a small space is trained once on 80 digits (minutes on one core; kept in
``--table`` for the next time). Searches are then played over these curves: four trials at a time,
the recorded seconds of each epoch as the clock, until the budget of epochs is spent. A search
proposes, stops and chooses by what it saw; it is measured by what the configurations that it chose
reach at their last epoch.
"""

import argparse
import heapq
import itertools
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import numpy as np
import optuna
from ray.tune.result import TRAINING_ITERATION
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.curves import Curves, recorded
from tuner.config import TrialConfig
from tuner.run.trial import EpochMetrics
from tuner.space import SearchSpace
from tuner.tuning.sampling.sampler import Sampler
from tuner.tuning.schedulers import make_scheduler

SLOTS = 4
METRIC = "val_accuracy"


class Method(Protocol):
    """A way to search."""

    def propose(self, number: int) -> TrialConfig:
        """Return the configuration of trial ``number``."""

    def goes_on(self, number: int, history: Sequence[EpochMetrics]) -> bool:
        """Take a trial's latest epoch; say whether it goes on. Not asked about a last epoch."""

    def complete(self, number: int, history: Sequence[EpochMetrics]) -> None:
        """Take the latest epoch of a trial that ran its course."""


class Ours:
    """The sampler and the scheduler of this package."""

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        sampler: Literal["tpe", "random"],
        scheduler: Literal["asha", "none"],
    ) -> None:
        search = replace(space.search, seed=seed, sampler=sampler, scheduler=scheduler)
        self._sampler = Sampler(space, search)
        self._scheduler = make_scheduler(search)

    def propose(self, number: int) -> TrialConfig:
        """See ``Method``."""
        config = self._sampler.ask(number)
        assert config is not None
        return config

    def goes_on(self, number: int, history: Sequence[EpochMetrics]) -> bool:
        """See ``Method``."""
        stop = self._scheduler.judge(number, history[-1].epoch, history[-1].val_accuracy)
        if stop:
            self._sampler.tell(number, "stopped", history)
        return stop is None

    def complete(self, number: int, history: Sequence[EpochMetrics]) -> None:
        """See ``Method``."""
        is_finite = math.isfinite(history[-1].train_loss + history[-1].val_loss)
        self._sampler.tell(number, "completed" if is_finite else "diverged", history)


class Stock:
    """Ray's ``OptunaSearch`` and ``AsyncHyperBandScheduler``, called as Ray's controller does.

    The searcher does not hear of the result at which the scheduler stops a trial, but by the call
    that the trial is complete (``TuneController._process_trial_result`` of Ray 2.60).
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space = space
        # The scheduler draws from NumPy's global generator.
        np.random.seed(seed)
        self._searcher = OptunaSearch(self._draw, metric=METRIC, mode="max", seed=seed)
        self._scheduler = AsyncHyperBandScheduler(
            metric=METRIC,
            mode="max",
            max_t=space.search.epochs,
            grace_period=space.search.grace,
            reduction_factor=space.search.reduction,
        )

    def _draw(self, trial: Any) -> None:
        self._sample(trial)

    def _sample(self, trial: Any) -> TrialConfig:
        return self._space.sample(trial, epochs=self._space.search.epochs, seed=0)

    def propose(self, number: int) -> TrialConfig:
        """See ``Method``."""
        params = self._searcher.suggest(str(number))
        assert params is not None
        self._scheduler.on_trial_add(None, _trial(number))
        return self._sample(optuna.trial.FixedTrial(params))

    def goes_on(self, number: int, history: Sequence[EpochMetrics]) -> bool:
        """See ``Method``."""
        result = _result(history)
        goes_on = (
            self._scheduler.on_trial_result(None, _trial(number), result) != TrialScheduler.STOP
        )
        if goes_on:
            self._searcher.on_trial_result(str(number), result)
        else:
            self._end(number, result)
        return goes_on

    def complete(self, number: int, history: Sequence[EpochMetrics]) -> None:
        """See ``Method``."""
        self._scheduler.on_trial_result(None, _trial(number), _result(history))
        self._end(number, _result(history))

    def _end(self, number: int, result: dict[str, Any]) -> None:
        self._scheduler.on_trial_complete(None, _trial(number), result)
        self._searcher.on_trial_complete(str(number), result)


def _trial(number: int) -> Any:
    """Return what Ray's scheduler reads of a trial."""
    return SimpleNamespace(trial_id=str(number))


def _result(history: Sequence[EpochMetrics]) -> dict[str, Any]:
    return {TRAINING_ITERATION: history[-1].epoch, METRIC: history[-1].val_accuracy}


METHODS: dict[str, Callable[[SearchSpace, int], Method]] = {
    "TPE + ASHA, this bridge": lambda space, seed: Ours(space, seed, "tpe", "asha"),
    "random + ASHA, this bridge": lambda space, seed: Ours(space, seed, "random", "asha"),
    "Ray's OptunaSearch + ASHA": Stock,
    "random, none stopped": lambda space, seed: Ours(space, seed, "random", "none"),
}


@dataclass(slots=True)
class Played:
    """One trial of a played search."""

    config: TrialConfig
    curve: Sequence[EpochMetrics]
    history: list[EpochMetrics] = field(default_factory=list)


def play(method: Method, curves: Curves, budget: int) -> list[Played]:
    """Search over recorded curves until ``budget`` epochs are spent.

    Returns:
        The trials, in the order of their starts.
    """
    trials: list[Played] = []
    events: list[tuple[float, int, int]] = []
    order = itertools.count()

    def start(now: float) -> None:
        config = method.propose(len(trials))
        trials.append(Played(config, curves.of(config)))
        heapq.heappush(events, (now + trials[-1].curve[0].seconds, next(order), len(trials) - 1))

    for _ in range(SLOTS):
        start(0.0)
    for _ in range(budget):
        now, _, number = heapq.heappop(events)
        trial = trials[number]
        trial.history.append(trial.curve[len(trial.history)])
        if len(trial.history) == len(trial.curve):
            method.complete(number, trial.history)
        elif method.goes_on(number, trial.history):
            seconds = trial.curve[len(trial.history)].seconds
            heapq.heappush(events, (now + seconds, next(order), number))
            continue
        start(now)
    return trials


def measure(curves: Curves, seeds: int, budget: int) -> dict[str, dict[str, Any]]:
    """Play every method with every seed."""
    # Stock Ray logs what it could not tell its study.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found: dict[str, dict[str, Any]] = {}
    for name, make in METHODS.items():
        runs = [play(make(curves.space, seed), curves, budget) for seed in range(seeds)]
        chosen = [[last(trial) for trial in top(trials, 5)] for trials in runs]
        found[name] = {
            "trials": [len(trials) for trials in runs],
            "best": [finals[0] for finals in chosen],
            "top_five": [statistics.fmean(finals) for finals in chosen],
        }
    return found


def top(trials: Sequence[Played], count: int) -> list[Played]:
    """Return the trials whose best seen epoch is the best, of each configuration one."""
    seen = {id(trial.curve): trial for trial in trials if trial.history}.values()

    def best(trial: Played) -> tuple[float, float]:
        return max((row.val_accuracy, -row.val_loss) for row in trial.history)

    return sorted(seen, key=best, reverse=True)[:count]


def last(trial: Played) -> float:
    """Return the accuracy that a configuration has in its last epoch, seen or not."""
    return trial.curve[-1].val_accuracy


def as_table(found: dict[str, dict[str, Any]], curves: Curves, budget: int) -> Table:
    """Return one row a method."""
    seeds = len(found["random, none stopped"]["best"])
    finals = sorted((rows[-1].val_accuracy for rows in curves.histories.values()), reverse=True)
    table = Table(
        title=f"{budget} epochs, {SLOTS} trials at a time, {seeds} seeds",
        caption=f"{len(finals)} configurations: best {finals[0]:.4f}, top five "
        f"{statistics.fmean(finals[:5]):.4f}, median {statistics.median(finals):.4f}, "
        f"worst {finals[-1]:.4f}",
    )
    table.add_column("method")
    for heading in (
        "trials",
        "best, mean ± deviation (least)",
        "top five, mean ± deviation (least)",
    ):
        table.add_column(heading, justify="right")
    for name, figures in found.items():
        table.add_row(
            name,
            f"{statistics.fmean(figures['trials']):.1f}",
            *(_spread(figures[key]) for key in ("best", "top_five")),
        )
    return table


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.4f} ± {deviation:.4f} ({min(values):.4f})"


def main() -> None:
    """Run the benchmark; print a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budget", type=int, default=270, help="epochs; 18 are a whole trial")
    parser.add_argument(
        "--table",
        type=Path,
        default=Path(tempfile.gettempdir()) / "cifar-tune-curves",
        help="folder of the recorded curves",
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    curves = recorded(options.table, Console(stderr=True, highlight=False))
    found = measure(curves, options.seeds, options.budget)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        Console(highlight=False, width=120).print(as_table(found, curves, options.budget))


if __name__ == "__main__":
    main()
