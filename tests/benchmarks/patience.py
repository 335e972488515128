"""Compare the forecasts of searches with their outcomes, on tables of learning curves.

    python -m tests.benchmarks.patience --tables FOLDER --results patience.jsonl

The program's own tuner, TPE and promoting ASHA are played on a simulated clock, as in
``samplers.py``. At several times, the expected gain of the best from a longer search is compared
with the actual gain. For ``--patience``, a table shows what ending the search would have saved and
cost. The worth of rungs, as a search estimates it from promoted trials, is compared with the true
worth among all trials that reached the rung. Scores are on validation images, in points.
"""

import argparse
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as Rows
from scipy.stats import spearmanr

from tests.benchmarks.samplers import (
    GRACE,
    REDUCTION,
    Line,
    Played,
    Task,
    interval,
    loaded,
    ours,
    played,
    read_results,
    run,
    seed_of,
    space_of,
    task_of,
)
from tests.benchmarks.tables import read_tables
from tuner.config import rung_epochs
from tuner.run.events import EpochEnded
from tuner.run.outlook import COUNTED, expected_gain, why_not_go_on
from tuner.run.rung_worth import rung_worths
from tuner.run.trial import best_row

SPENT = (2, 4, 8)
"""Full trainings after which forecasts are made."""
RATIOS = (1.25, 1.5, 2.0)
BUDGETS = (8, 16)
"""Full trainings of the searches that patience may end sooner."""
PATIENCES = (0.1, 0.3, 1.0)
STEPS = 64
"""Number of times in a budget at which the search may end."""
EDGES = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, math.inf)
"""Limits, in points, of the groups of forecasts."""
RESAMPLES = 1000
LINE = "TPE + promoting ASHA"


def play(task: Task) -> dict[str, Any]:
    """Play one search; return its line of the results."""
    name, line, slots, seed = task
    table = loaded[name]
    space = space_of(table, Line(), seed_of(task), ())
    search = played(table, ours(space), space, slots)
    times = sorted({*SPENT, *(b * step / STEPS for b in BUDGETS for step in range(1, STEPS))})
    spent, best = 0.0, -math.inf
    curve: list[tuple[float, float]] = []
    asked: list[tuple[float, list[float]]] = []
    first_completed = math.inf
    rungs: list[dict[str, float]] = []
    for event in search.events:
        if not isinstance(event, EpochEnded):
            continue
        spent += event.metrics.seconds / table.full_seconds
        if search.tuner.state.ended["completed"]:
            first_completed = min(first_completed, spent)
        while times and spent > times[0]:
            asked.append((times.pop(0), scores_of(search)))
        if math.isfinite(event.metrics.val_loss) and event.metrics.val_accuracy > best:
            best = event.metrics.val_accuracy
            curve.append((spent, best))
        if spent > max(BUDGETS):
            break
        if spent > SPENT[-1] and not rungs:
            rungs = list(rungs_of(search))

    def reached(time: float) -> float:
        return max((value for when, value in curve if when <= time), default=0.0)

    return {
        "table": name,
        "family": table.family,
        "line": line,
        "slots": slots,
        "seed": seed,
        "gains": [
            {
                "spent": time,
                "ratio": ratio,
                "foreseen": 100 * foreseen,
                "came": 100 * (reached(ratio * time) - reached(time)),
            }
            for time, scores in asked
            if time in SPENT
            for ratio in RATIOS
            if (foreseen := expected_gain(scores, ratio, "accuracy")) is not None
        ],
        "ends": [
            {
                "budget": budget,
                "patience": patience,
                "spent": (end := ends_at(asked, first_completed, budget, patience)),
                "lost": 100 * (reached(budget) - reached(end)),
            }
            for budget in BUDGETS
            for patience in PATIENCES
        ],
        "rungs": rungs,
    }


def scores_of(search: Played) -> list[float]:
    """Return the scores on which a search bases its forecast."""
    trials = search.tuner.state.trials.values()
    bests = [best_row(t.history, "accuracy") for t in trials if t.status.state in COUNTED]
    return [best.val_accuracy for best in bests if best]


def ends_at(
    asked: Sequence[tuple[float, Sequence[float]]],
    first_completed: float,
    budget: float,
    patience: float,
) -> float:
    """Return when a search would end, in full trainings; not before its first completed trial."""
    for time, scores in asked:
        if first_completed <= time < budget and why_not_go_on(
            scores, time / budget, patience, "accuracy"
        ):
            return time
    return budget


def rungs_of(search: Played) -> Iterator[dict[str, float]]:
    """Yield the estimated worth of each rung, and its true worth."""
    state = search.tuner.state
    told = rung_worths(state.search, [trial.history for trial in state.trials.values()])
    marks = [*rung_epochs(GRACE, REDUCTION, state.search.epochs), state.search.epochs]
    for epoch, following in itertools.pairwise(marks):
        came = [n for n, trial in state.trials.items() if len(trial.history) >= epoch]
        pairs = np.array(
            [search.curves[number].scores[[epoch - 1, following - 1]] for number in came]
        )
        whole = pairs[np.isfinite(pairs).all(axis=1)] if len(came) else pairs
        for worth in told:
            if worth.epoch == epoch:
                yield {
                    "epoch": epoch,
                    "told": worth.correlation,
                    "low": worth.low,
                    "high": worth.high,
                    "true": float(spearmanr(whole).statistic),
                }


def mean_by_table(rows: Sequence[tuple[str, float]]) -> tuple[float, float, float]:
    """Return the mean over the tables, and its 95 % interval."""
    by_table: dict[str, list[float]] = {}
    for table, value in rows:
        by_table.setdefault(table, []).append(value)
    means = np.array([np.mean(values) for values in by_table.values()])
    draws = np.random.default_rng(0).integers(len(means), size=(RESAMPLES, len(means)))
    return float(means.mean()), *interval(means[draws].mean(axis=1))


def spelt(figures: tuple[float, float, float]) -> str:
    """Format a mean with its interval."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*figures)


def gains(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """Return a table of expected and actual gains."""
    table = Rows(title="The best trial's gain, in points")
    for heading in ("foreseen", "cases", "mean foreseen", "mean that came", "none came"):
        table.add_column(heading, justify="right")
    cases = [(row["table"], gain) for row in rows for gain in row["gains"]]
    for low, high in itertools.pairwise(EDGES):
        own = [(name, gain) for name, gain in cases if low <= gain["foreseen"] < high]
        if own:
            none = np.mean([gain["came"] <= 0 for _, gain in own])
            table.add_row(
                f"{low:g} to {high:g}" if math.isfinite(high) else f"over {low:g}",
                str(len(own)),
                f"{np.mean([gain['foreseen'] for _, gain in own]):.2f}",
                spelt(mean_by_table([(name, gain["came"]) for name, gain in own])),
                f"{none:.0%}",
            )
    for ratio, spent in itertools.product(RATIOS, SPENT):
        own = [(n, g) for n, g in cases if (g["ratio"], g["spent"]) == (ratio, spent)]
        if own:
            table.add_row(
                f"{ratio:g} times {spent} trainings",
                str(len(own)),
                f"{np.mean([gain['foreseen'] for _, gain in own]):.2f}",
                spelt(mean_by_table([(name, gain["came"]) for name, gain in own])),
                f"{np.mean([gain['came'] <= 0 for _, gain in own]):.0%}",
            )
    return table


def ends(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """Return a table of what patience saved and cost."""
    table = Rows(title="Searches that ended by their patience")
    for heading in ("budget", "patience", "ended", "budget saved", "points lost, of those"):
        table.add_column(heading, justify="right")
    for budget, patience in itertools.product(BUDGETS, PATIENCES):
        own = [
            (row["table"], end)
            for row in rows
            for end in row["ends"]
            if (end["budget"], end["patience"]) == (budget, patience)
        ]
        ended = [(name, end) for name, end in own if end["spent"] < budget]
        lost = [(name, end["lost"]) for name, end in ended]
        saved = np.mean([1 - end["spent"] / budget for _, end in own])
        table.add_row(
            str(budget),
            f"{patience:g}",
            f"{len(ended)} of {len(own)}",
            f"{saved:.0%}",
            spelt(mean_by_table(lost)) if lost else "-",
        )
    return table


def rungs(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """Return a table of the estimated and the true worth of rungs."""
    table = Rows(title="Rank correlation of a rung with the next one")
    for heading in ("rung", "cases", "told", "of all", "interval holds it", "low < 0.3", "so"):
        table.add_column(heading, justify="right")
    found = [(row["table"], rung) for row in rows for rung in row["rungs"]]
    for epoch in sorted({rung["epoch"] for _, rung in found}):
        own = [(name, rung) for name, rung in found if rung["epoch"] == epoch]
        table.add_row(
            str(epoch),
            str(len(own)),
            spelt(mean_by_table([(name, rung["told"]) for name, rung in own])),
            spelt(mean_by_table([(name, rung["true"]) for name, rung in own])),
            f"{np.mean([rung['low'] <= rung['true'] <= rung['high'] for _, rung in own]):.0%}",
            f"{np.mean([rung['low'] < 0.3 for _, rung in own]):.0%}",
            f"{np.mean([rung['true'] < 0.3 for _, rung in own]):.0%}",
        )
    return table


def main() -> None:
    """Play the missing searches; print the tables, or the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--only", nargs="+", metavar="TABLE", help="some of the tables")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    names = [table.name for table in read_tables(options.tables)]
    tasks = [
        (name, LINE, options.slots, seed)
        for seed in range(options.seeds)
        for name in names
        if not options.only or name in options.only
    ]
    run(options.tables, options.results, tasks, options.processes, play)
    asked = set(tasks)
    rows = [row for row in read_results(options.results) if task_of(row) in asked]
    if options.json:
        print(json.dumps(rows))
        return
    console = Console(highlight=False, width=120)
    for family in sorted({row["family"] for row in rows}):
        own = [row for row in rows if row["family"] == family]
        console.print(f"{family}: {len(own)} searches")
        for table in (gains(own), ends(own), rungs(own)):
            console.print(table)


if __name__ == "__main__":
    main()
