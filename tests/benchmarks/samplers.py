"""Compare search methods on tables of learning curves: the ruler.

    python -m tests.benchmarks.samplers --tables FOLDER --results results.jsonl

Every search plays the program's own tuner, sampler and scheduler on a simulated clock; stock Ray is
called as Ray calls it. A search chooses by validation, at the best epoch that it has seen. Its
score is the test score of its choice after the last epoch, as normalised regret
(best - chosen) / (best - median) of a table's configurations, at most 1. The budget is counted in
seconds of full trainings, over all slots; one search of the largest budget covers all budgets.

A line of ``--results`` is one search. Searches found there are not played again, so a run can be
stopped and continued, and methods can be added. ``tables.py`` describes what a folder contains.
"""

import argparse
import json
import math
import os
import tempfile
import time
import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import yaml
from ray.tune.result import TRAINING_ITERATION
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console
from rich.progress import track
from rich.table import Table as Rows

from tests.benchmarks.tables import Curve, Table, read_tables
from tuner.config import TrialConfig
from tuner.run.events import EpochEnded, Event, TrialEnded
from tuner.run.state import SearchState
from tuner.run.trial import EpochMetrics, Stop, TrialState
from tuner.space import SearchSpace, load_space
from tuner.tuning.budget import Budget, Spending
from tuner.tuning.planning.simulated import SimulatedClock, Step, run_simulated
from tuner.tuning.proposers import Proposer
from tuner.tuning.resources import TrialResources
from tuner.tuning.sampling.sampler import Sampler
from tuner.tuning.schedulers import Scheduler, make_scheduler
from tuner.tuning.tuner import Assignment, Tuner
from tuner.tuning.warm_start import PORTFOLIO, choose

BUDGETS = (0.5, 1, 2, 4, 8, 16, 32)
"""Full trainings. The protocol is 2 to 32; the smaller ones are needed to find a speed-up."""
PRIMARY = (4, 16)
"""Budgets at which the speed-up over stock Ray is the primary figure."""
GRACE, REDUCTION = 3, 3
RESAMPLES = 2000
METRIC = "val_accuracy"
STOCK = "Ray's OptunaSearch + ASHA"
SCREEN = "top K after one epoch"
NETWORK = """\
def make(num_classes, image_shape, **parameters):
    raise NotImplementedError("it is not trained")
"""
"""Stands in for the network of a space; the parameters of a table are its arguments."""

Method = tuple[Proposer, Scheduler]
"""A search method."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A search method that is compared with the others."""

    sampler: str = "tpe"
    scheduler: str = "asha"
    portfolio: int = 0
    """Number of configurations learnt on other tables, which are tried first."""


LINES: dict[str, Line | None] = {
    "random, none stopped": Line(sampler="random", scheduler="none"),
    "GP, none stopped": Line(sampler="gp", scheduler="none"),
    "random + stopping ASHA": Line(sampler="random", scheduler="asha-stop"),
    "random + promoting ASHA": Line(sampler="random"),
    STOCK: None,
    "TPE + stopping ASHA": Line(scheduler="asha-stop"),
    "TPE + promoting ASHA": Line(),
    "portfolio, TPE + promoting ASHA": Line(portfolio=PORTFOLIO),
}


def space_of(table: Table, line: Line, seed: int, baseline: Sequence[int]) -> SearchSpace:
    """Return the space of a table, as written by a user."""
    search = {
        "trials": 100_000,
        "epochs": table.num_epochs,
        "grace": GRACE,
        "reduction": REDUCTION,
        "sampler": line.sampler,
        "scheduler": line.scheduler,
    }
    axes = {axis.searched_name: axis.choice() for axis in table.axes}
    network = {"path": "network.py", "name": "make"}
    plain: dict[str, Any] = {
        "dataset": "digits",
        "search": search,
        "space": {"model": {"custom": network | {"params": axes}}},
    }
    if baseline:
        plain["baseline"] = [
            {"model": {"custom": {"params": table.searched(row)}}} for row in baseline
        ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "network.py").write_text(NETWORK)
        (folder / "space.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
        space = load_space(folder / "space.yaml")
    return replace(space, search=replace(space.search, seed=seed))


def ours(space: SearchSpace) -> Method:
    """Return the sampler and the scheduler of this package."""
    return Sampler(space, space.search), make_scheduler(space.search)


def stock(space: SearchSpace) -> Method:
    """Return Ray's ``OptunaSearch`` and ``AsyncHyperBandScheduler``."""
    both = Stock(space, space.search.seed)
    return both, both


class Stock:
    """Ray's ``OptunaSearch`` and ``AsyncHyperBandScheduler``, called as Ray's controller does.

    The searcher does not receive the result at which the scheduler stops a trial, only the call
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

    def judge(self, number: int, epoch: int, value: float, *unused: Any) -> Stop | None:
        """See ``Scheduler``; stock Ray uses neither a second figure for ties nor costs."""
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
            # Unlike our scheduler, it also receives accuracies whose loss is not finite.
            self._scheduler.on_trial_result(None, _trial(number), result)
        self._scheduler.on_trial_complete(None, _trial(number), result)
        self._searcher.on_trial_complete(str(number), result)

    def enter(self, *ignored: Any) -> None:
        """Refuse to resume a search, like the next two methods."""
        raise AssertionError("no search is resumed here")

    def add(self, *ignored: Any) -> bool:
        """See ``enter``."""
        raise AssertionError("no search is resumed here")

    def restore(self, *ignored: Any) -> bool:
        """See ``enter``."""
        raise AssertionError("no search is resumed here")


def _trial(number: int) -> Any:
    """Return the part of a trial that Ray's scheduler reads."""
    return SimpleNamespace(trial_id=str(number))


def parameters_of(config: TrialConfig) -> Mapping[str, float]:
    """Return the values of a table's parameters."""
    values: Mapping[str, float] = config.model.params["params"]
    return values


@dataclass(frozen=True, slots=True)
class Played:
    """A running search of a table."""

    tuner: Tuner
    curves: Mapping[int, Curve]
    """The curves of its trials, by number."""
    events: Iterator[Event]
    """Events of the search; endless if the space is."""


def played(table: Table, method: Method, space: SearchSpace, slots: int) -> Played:
    """Return a search of a table, with ``slots`` trials at once."""
    proposer, scheduler = method
    clock = SimulatedClock()
    state = SearchState(space.search)
    spending = Spending(Budget(trials=space.search.trials), clock=clock)
    one_slot = TrialResources(cpus=1, gpus=0)
    tuner = Tuner(state, proposer, scheduler, spending, lambda config: one_slot)

    taken: set[int] = set()
    curves: dict[int, Curve] = {}

    def train(given: Assignment) -> Iterator[Step]:
        if given.number not in curves:
            curves[given.number] = table.curve(parameters_of(given.config), taken)
        curve = curves[given.number]
        for epoch in range(given.num_epochs + 1, given.config.epochs + 1):
            seconds, score = float(curve.seconds[epoch - 1]), float(curve.scores[epoch - 1])
            yield seconds
            is_finite = math.isfinite(score)
            metrics = EpochMetrics(
                epoch=epoch,
                train_loss=0.0,
                val_loss=1 - score,
                val_accuracy=score if is_finite else 0.0,
                lr=0.0,
                seconds=seconds,
                time=clock.now,
            )
            yield EpochEnded(number=given.number, metrics=metrics)
            if not is_finite:
                yield TrialEnded(number=given.number, state="diverged")
        yield TrialEnded(number=given.number, state="completed")

    events = run_simulated(tuner, clock, train, lambda running: len(running) < slots)
    return Played(tuner, curves, events)


def play(table: Table, method: Method, space: SearchSpace, slots: int) -> list[float]:
    """Search a table until the largest budget is spent.

    Returns:
        The regret of the search's choice at each of ``BUDGETS``.
    """
    search = played(table, method, space, slots)
    regrets: list[float] = []
    spent, best, regret = 0.0, -math.inf, 1.0
    for event in search.events:
        if not isinstance(event, EpochEnded):
            continue
        spent += event.metrics.seconds / table.full_seconds
        while len(regrets) < len(BUDGETS) and spent > BUDGETS[len(regrets)]:
            regrets.append(regret)
        if len(regrets) == len(BUDGETS):
            break
        if math.isfinite(event.metrics.val_loss) and event.metrics.val_accuracy > best:
            best = event.metrics.val_accuracy
            regret = table.regret(search.curves[event.number].test)
    # The space may be exhausted, or the budget spent to the last second.
    return regrets + [regret] * (len(BUDGETS) - len(regrets))


def screen(table: Table, seed: int) -> list[float]:
    """Train random configurations for one epoch on half of the budget, then the best to the end."""
    order = np.random.default_rng(seed).permutation(len(table.known))
    curves = [table.curve(table.searched(int(row))) for row in order[: len(order) // 2]]
    regrets = []
    for budget in BUDGETS:
        left, tried = budget * table.full_seconds, []
        for curve in curves:
            if left < budget * table.full_seconds / 2:
                break
            left -= curve.seconds[0]
            tried.append(curve)
        tried.sort(key=lambda curve: float(np.nan_to_num(curve.scores[0], nan=-1)), reverse=True)
        best, chosen = -math.inf, tried[0]
        for curve in tried:
            if (left := left - curve.seconds[1:].sum()) < 0:
                break
            score = -math.inf if np.isnan(curve.scores).any() else float(curve.scores.max())
            if score > best:
                best, chosen = score, curve
        regrets.append(table.regret(chosen.test))
    return regrets


def learn_portfolio(tables: Sequence[Table], left_out: Table, size: int) -> list[int]:
    """Return the known configurations that complement each other best, chosen one after another.

    Args:
        tables: Those of ``left_out``'s family, except for its group, are learnt from.
        left_out: The table on which they will be tried.
        size: Number of configurations.
    """
    others = [
        table
        for table in tables
        if table.family == left_out.family and table.group != left_out.group
    ]
    regrets = np.array([[table.regret(float(test)) for test in table.finals] for table in others])
    return choose(regrets, size)


Task = tuple[str, str, int, int]
"""Table, line, slots, seed."""
loaded: dict[str, Table] = {}
"""The tables of a process, by name."""


def _load(folder: Path) -> None:
    warnings.filterwarnings("ignore")
    # Stock Ray logs every result that it could not add to its study.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    loaded.update({table.name: table for table in read_tables(folder)})


def search(task: Task) -> dict[str, Any]:
    """Play one search; return its line of the results."""
    name, line_name, slots, seed = task
    table, line = loaded[name], LINES.get(line_name)
    began = time.perf_counter()
    drawn = seed_of(task)
    if line_name == SCREEN:
        regrets = screen(table, drawn)
    else:
        portfolio = line.portfolio if line else 0
        baseline = learn_portfolio(list(loaded.values()), table, portfolio) if portfolio else ()
        space = space_of(table, line or Line(scheduler="asha-stop"), drawn, baseline)
        regrets = play(table, ours(space) if line else stock(space), space, slots)
    return {
        "table": name,
        "family": table.family,
        "line": line_name,
        "slots": slots,
        "seed": seed,
        "regrets": [round(regret, 6) for regret in regrets],
        "seconds": round(time.perf_counter() - began, 3),
    }


def seed_of(task: Task) -> int:
    """Return the seed of a search's draws, which differs between tables.

    Otherwise all tables of a family, which share their configurations, would begin alike.
    """
    name, _, _, seed = task
    return zlib.crc32(f"{name} {seed}".encode())


def run(
    folder: Path,
    results: Path,
    tasks: Sequence[Task],
    processes: int,
    play_one: Callable[[Task], Mapping[str, Any]],
) -> None:
    """Play the searches that ``results`` lacks; ``play_one`` returns the line of one."""
    known = {task_of(row) for row in read_results(results)}
    missing = [task for task in tasks if task not in known]
    if not missing:
        return
    with (
        results.open("a") as lines,
        ProcessPoolExecutor(processes, initializer=_load, initargs=(folder,)) as pool,
    ):
        asked = [pool.submit(play_one, task) for task in missing]
        done = as_completed(asked)
        messages = Console(stderr=True)
        for future in track(done, "searching", total=len(asked), console=messages):
            lines.write(json.dumps(future.result()) + "\n")
            lines.flush()


def read_results(file: Path) -> list[dict[str, Any]]:
    """Return the searches of earlier runs, without a last line that was cut off."""
    if not file.exists():
        return []
    whole = file.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def task_of(row: Mapping[str, Any]) -> Task:
    """Return the search of a line of the results."""
    return row["table"], row["line"], row["slots"], row["seed"]


Means = dict[str, np.ndarray[Any, np.dtype[np.float64]]]
"""Line -> (T, B) regrets of each table, means over the seeds."""


def means(rows: Sequence[Mapping[str, Any]]) -> Means:
    """Return the mean regrets over seeds, for tables and seeds that all lines have played."""
    found: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        found[row["line"]][row["table"]][row["seed"]] = row["regrets"]
    lines = list(found)
    tables = sorted(set.intersection(*(set(found[line]) for line in lines)))
    seeds = {
        table: sorted(set.intersection(*(set(found[line][table]) for line in lines)))
        for table in tables
    }
    tables = [table for table in tables if seeds[table]]
    return {
        line: np.array(
            [
                np.mean([found[line][table][seed] for seed in seeds[table]], axis=0)
                for table in tables
            ]
        )
        for line in lines
    }


def speed_up(line: Any, reference: Any, budget: float) -> float:
    """Return how many times as fast a line reaches the reference's regret at ``budget``.

    Args:
        line: (B,) mean regrets.
        reference: (B,) mean regrets.
        budget: One of ``BUDGETS``.

    Returns:
        The ratio, limited to the range that ``BUDGETS`` can show.
    """
    target = float(reference[BUDGETS.index(budget)])
    # Regrets may rise again: the best by validation is not always the best on test images.
    falling = np.minimum.accumulate(line)
    logs = np.log2(BUDGETS)
    place = int(np.searchsorted(-falling, -target))
    if place == 0:
        return float(budget / BUDGETS[0])
    if place == len(BUDGETS):
        return float(budget / BUDGETS[-1])
    high, low = falling[place - 1], falling[place]
    needed = logs[place - 1] + (high - target) / (high - low) * (logs[place] - logs[place - 1])
    return float(budget / 2**needed)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the middle 95 % of bootstrapped values."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the regrets of each line and its comparison with stock Ray, bootstrapped."""
    found = means(rows)
    reference = found[STOCK]
    generator = np.random.default_rng(0)
    draws = generator.integers(len(reference), size=(RESAMPLES, len(reference)))
    summary: dict[str, Any] = {}
    for name, regrets in found.items():
        entry: dict[str, Any] = {
            "tables": len(regrets),
            "regrets": dict(zip(map(str, BUDGETS), regrets.mean(axis=0).tolist(), strict=True)),
        }
        for budget in PRIMARY:
            place = BUDGETS.index(budget)
            gains = reference[:, place] - regrets[:, place]
            entry[f"at {budget}"] = {
                "gain": float(gains.mean()),
                "interval": interval([gains[draw].mean() for draw in draws]),
                "wins": int((gains > 0.01).sum()),
                "ties": int((np.abs(gains) <= 0.01).sum()),
                "losses": int((gains < -0.01).sum()),
                "speed_up": speed_up(regrets.mean(axis=0), reference.mean(axis=0), budget),
                "speed_up_interval": interval(
                    [
                        speed_up(regrets[draw].mean(axis=0), reference[draw].mean(axis=0), budget)
                        for draw in draws
                    ]
                ),
            }
        summary[name] = entry
    return summary


def as_rows(summary: Mapping[str, Any], title: str) -> Rows:
    """Return a table of one row per line."""
    table = Rows(
        title=title,
        caption="regret: 0 the best configuration, 1 the median or worse; gain and speed-up over "
        "Ray's stock with 95 % intervals over tables; a tie is within 0.01",
    )
    table.add_column("line")
    for budget in BUDGETS:
        table.add_column(f"{budget:g}", justify="right")
    for budget in PRIMARY:
        table.add_column(f"gain at {budget}", justify="right")
        table.add_column("won tied lost", justify="right")
        table.add_column("speed-up", justify="right")
    for name, entry in summary.items():
        cells = [f"{regret:.3f}" for regret in entry["regrets"].values()]
        for budget in PRIMARY:
            at = entry[f"at {budget}"]
            (low, high), (slow, fast) = at["interval"], at["speed_up_interval"]
            cells += [
                f"{at['gain']:+.3f} ({low:+.3f} to {high:+.3f})",
                f"{at['wins']} {at['ties']} {at['losses']}",
                f"{at['speed_up']:.2f} ({slow:.2f} to {fast:.2f})",
            ]
        table.add_row(name, *cells)
    return table


def main() -> None:
    """Run the benchmark; print tables, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--slots", type=int, nargs="+", default=[4, 16])
    names = [*LINES, SCREEN]
    parser.add_argument("--lines", nargs="+", choices=names, default=names, metavar="LINE")
    parser.add_argument("--only", nargs="+", metavar="TABLE", help="some of the tables")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if STOCK not in options.lines:
        parser.error(f"--lines: {STOCK!r} is what the others are compared with")
    tables = [
        table.name
        for table in read_tables(options.tables)
        if not options.only or table.name in options.only
    ]
    tasks = [
        (table, line, slots, seed)
        for seed in range(options.seeds)
        for slots in options.slots
        for table in tables
        for line in options.lines
    ]
    run(options.tables, options.results, tasks, options.processes, search)
    asked = set(tasks)
    rows = [row for row in read_results(options.results) if task_of(row) in asked]
    found: dict[str, Any] = {}
    for slots in options.slots:
        played = [row for row in rows if row["slots"] == slots]
        families = sorted({row["family"] for row in played})
        for family in [*families, "all"] if len(families) > 1 else families:
            own = [row for row in played if family in (row["family"], "all")]
            found[f"{family}, {slots} slots"] = summarize(own)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        console = Console(highlight=False, width=200)
        for title, summary in found.items():
            console.print(as_rows(summary, f"{title}, {options.seeds} seeds"))


if __name__ == "__main__":
    main()
