"""Compare ways to search on one budget of epochs, over curves that were really trained.

    python -m tests.benchmarks.samplers --seeds 10

Every configuration of a small space is trained once on 80 digits (minutes on one core; kept in
``--table`` for the next time). Searches are then simulated over these curves: four trials at a
time, the recorded seconds of each epoch as the clock, until the budget of epochs is spent. A search
proposes, stops and chooses by what it saw; it is measured by what the configurations that it chose
reach at their last epoch.
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import optuna
from ray.tune.result import TRAINING_ITERATION
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.curves import Curves, recorded
from tuner.config import TrialConfig
from tuner.run.events import EpochEnded, TrialEnded
from tuner.run.state import SearchState
from tuner.run.trial import EpochMetrics, Stop, TrialState
from tuner.space import SearchSpace
from tuner.tuning.budget import Budget, Spending
from tuner.tuning.planning.simulated import SimulatedClock, Step, run_trials
from tuner.tuning.proposers import Proposer
from tuner.tuning.resources import TrialResources
from tuner.tuning.sampling.sampler import Sampler
from tuner.tuning.schedulers import Scheduler, make_scheduler
from tuner.tuning.tuner import Assignment, Tuner

SLOTS = 4
METRIC = "val_accuracy"


Method = tuple[Proposer, Scheduler]
"""A way to search."""


def ours(
    space: SearchSpace,
    seed: int,
    sampler: Literal["tpe", "random"],
    scheduler: Literal["asha", "none"],
) -> Method:
    """Return the sampler and the scheduler of this package."""
    search = replace(space.search, seed=seed, sampler=sampler, scheduler=scheduler)
    return Sampler(space, search), make_scheduler(search)


def stock(space: SearchSpace, seed: int) -> Method:
    """Return Ray's ``OptunaSearch`` and ``AsyncHyperBandScheduler``."""
    both = Stock(space, seed)
    return both, both


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

    def ask(self, number: int) -> TrialConfig:
        """See ``Proposer``."""
        params = self._searcher.suggest(str(number))
        assert params is not None
        self._scheduler.on_trial_add(None, _trial(number))
        return self._sample(optuna.trial.FixedTrial(params))

    def judged_epochs(self, number: int) -> Collection[int]:
        """See ``Scheduler``."""
        return range(1, self._space.search.epochs + 1)

    def judge(self, number: int, epoch: int, value: float) -> Stop | None:
        """See ``Scheduler``."""
        result = {TRAINING_ITERATION: epoch, METRIC: value}
        decision = self._scheduler.on_trial_result(None, _trial(number), result)
        # After the last epoch it stops every trial.
        if decision == TrialScheduler.STOP:
            return Stop(rung=epoch, value=value, cut=math.nan, peers=0)
        self._searcher.on_trial_result(str(number), result)
        return None

    def tell(self, number: int, state: TrialState, history: Sequence[EpochMetrics]) -> None:
        """See ``Proposer``."""
        result = {TRAINING_ITERATION: history[-1].epoch, METRIC: history[-1].val_accuracy}
        if state == "diverged":
            # Unlike ours, it is told of accuracies whose loss is not finite.
            self._scheduler.on_trial_result(None, _trial(number), result)
        self._scheduler.on_trial_complete(None, _trial(number), result)
        self._searcher.on_trial_complete(str(number), result)

    def enter(self, number: int, epoch: int, value: float) -> None:
        """Refuse, as do the other two, what is for searches that are resumed."""
        raise AssertionError("no search is resumed here")

    def add(self, *ignored: Any) -> bool:
        """See ``enter``."""
        raise AssertionError("no search is resumed here")

    def restore(self, *ignored: Any) -> bool:
        """See ``enter``."""
        raise AssertionError("no search is resumed here")


def _trial(number: int) -> Any:
    """Return what Ray's scheduler reads of a trial."""
    return SimpleNamespace(trial_id=str(number))


METHODS: dict[str, Callable[[SearchSpace, int], Method]] = {
    "TPE + ASHA, this bridge": lambda space, seed: ours(space, seed, "tpe", "asha"),
    "random + ASHA, this bridge": lambda space, seed: ours(space, seed, "random", "asha"),
    "Ray's OptunaSearch + ASHA": stock,
    "random, none stopped": lambda space, seed: ours(space, seed, "random", "none"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchedTrial:
    """One trial of a simulated search."""

    curve: Sequence[EpochMetrics]
    history: Sequence[EpochMetrics]


def simulate(method: Method, curves: Curves, budget: int) -> list[SearchedTrial]:
    """Search over recorded curves until ``budget`` epochs are spent.

    Returns:
        The trials, in the order of their starts.
    """
    proposer, scheduler = method
    clock = SimulatedClock()
    state = SearchState(curves.space.search)
    spending = Spending(Budget(trials=budget), clock=clock)
    one_slot = TrialResources(cpus=1, gpus=0)
    tuner = Tuner(state, proposer, scheduler, spending, lambda config: one_slot)

    def train(given: Assignment) -> Iterator[Step]:
        curve = curves.of(given.config)
        for row in curve[given.num_epochs :]:
            yield row.seconds
            yield EpochEnded(number=given.number, metrics=row)
        is_finite = math.isfinite(curve[-1].train_loss + curve[-1].val_loss)
        yield TrialEnded(number=given.number, state="completed" if is_finite else "diverged")

    for _ in run_trials(tuner, clock, train, lambda running: len(running) < SLOTS):
        if state.num_epochs == budget:
            break
    trials = []
    for trial in state.trials.values():
        assert trial.config is not None
        trials.append(SearchedTrial(curve=curves.of(trial.config), history=trial.history))
    return trials


def measure(curves: Curves, seeds: int, budget: int) -> dict[str, dict[str, Any]]:
    """Search by every method with every seed."""
    # Stock Ray logs what it could not tell its study.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found: dict[str, dict[str, Any]] = {}
    for name, make in METHODS.items():
        runs = [simulate(make(curves.space, seed), curves, budget) for seed in range(seeds)]
        chosen = [[last(trial) for trial in top(trials, 5)] for trials in runs]
        found[name] = {
            "trials": [len(trials) for trials in runs],
            "best": [finals[0] for finals in chosen],
            "top_five": [statistics.fmean(finals) for finals in chosen],
        }
    return found


def top(trials: Sequence[SearchedTrial], count: int) -> list[SearchedTrial]:
    """Return the trials whose best seen epoch is the best, of each configuration one."""
    seen = {id(trial.curve): trial for trial in trials if trial.history}.values()

    def best(trial: SearchedTrial) -> tuple[float, float]:
        return max((row.val_accuracy, -row.val_loss) for row in trial.history)

    return sorted(seen, key=best, reverse=True)[:count]


def last(trial: SearchedTrial) -> float:
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
