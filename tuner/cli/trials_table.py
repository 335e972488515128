"""Trials on the terminal: the leaderboard with searched parameters, and the best configuration."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuner.cli.insights import searched_columns
from tuner.cli.output import (
    TRAINED_ON_VALIDATION,
    WIDE,
    figure,
    make_console,
    print_sentence,
    print_table,
)
from tuner.config import Metric
from tuner.errors import TunerError, UsageError
from tuner.metrics.goal import name_of
from tuner.run.resuming import command_line, refit_command, short_path, storage_words
from tuner.schema import did_you_mean, plural, quoted

if TYPE_CHECKING:
    from tuner.run.run import Run
    from tuner.run.trial import TrialRecord
    from tuner.space.searched import Column

LEAST_REASON = 24
"""Columns that must be free to show the reason why a trial ended."""
MOST_NAMED = 20
"""Maximum number of trials of the front that are named below the table, which marks them all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    """A trial as shown in the table."""

    row: dict[str, Any]
    """See ``TrialRecord.as_row``."""
    config: dict[str, Any]

    @classmethod
    def of(cls, trial: "TrialRecord") -> "_Line":
        return cls(row=trial.as_row(), config=trial.config.to_dict())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cells:
    """A column of the table."""

    heading: str
    value: Callable[[_Line], Any]
    text: Callable[[_Line], str]

    def width(self, lines: Sequence[_Line]) -> int:
        return max(map(len, (self.heading, *map(self.text, lines))))


def print_leaderboard(
    run: "Run",
    trials: "Sequence[TrialRecord]",
    most: int | None,
    *,
    searched: Sequence["Column"] | None = None,
    wanted: Sequence[str] = (),
    sort: str | None = None,
) -> None:
    """Print the best trials of a run, with as many searched parameters as fit.

    Args:
        run: The run.
        trials: Its trials, the best first.
        most: Maximum number of trials; ``None`` for all, with every searched parameter.
        searched: The searched parameters, the most important first; found here if left out.
        wanted: Names of the columns, if they are not to be chosen here.
        sort: Name of the column to sort by; by rank if left out.

    Raises:
        UsageError: If there is no such column.
    """
    if searched is None:
        searched = searched_columns(run, trials)
    lines = [_Line.of(trial) for trial in (trials if sort else trials[:most])]
    if sort:
        lines = _sorted(lines, _find(sort, lines, searched))[:most]
    is_whole = most is None or bool(wanted)
    if wanted:
        shown = [_find(name, lines, searched) for name in wanted]
    else:
        width = math.inf if is_whole else make_console().width
        ranked_by = "loss" if run.metric == "nll" else run.metric
        costs = [objective.cost for objective in run.record.search.costs]
        shown = _chosen(lines, searched, width, ranked_by, costs)
    table = [{cells.heading: cells.text(line) for cells in shown} for line in lines]
    count = plural(len(trials), "trial")
    is_usual = run.metric == run.record.search.metric == "accuracy" or run.record.data.all_data
    by = f", by {sort or name_of(run.metric)}" if sort or not is_usual else ""
    which = "first" if sort or run.record.data.all_data else "best"
    hidden = f", the {which} {most}" if most is not None and len(trials) > most else ""
    print_table(table, f"{run.record.name}: {count}{by}{hidden}", is_whole=is_whole)
    if run.record.data.all_data:
        print(f"\n{TRAINED_ON_VALIDATION}")
    else:
        notes = (
            _about_leader(trials, run.metric),
            _about_front(run, trials),
            _accuracy_note(run, trials),
        )
        for note in filter(None, notes):
            print()
            print_sentence(make_console(), note)
    print(f"\nRun: {short_path(run.path)}  (leaderboard.csv, trials/)")


def _accuracy_note(run: "Run", ranked: Sequence["TrialRecord"]) -> str:
    """Say how far the accuracy of the leading trial can be trusted."""
    from tuner.run.run import leader
    from tuner.run.uncertainty import val_margin

    first = leader(ranked)
    note = val_margin(run, first.best.val_accuracy) if first and first.best else ""
    return note and f"Accuracy on {note} for the best (95% interval)."


def _about_front(run: "Run", ranked: Sequence["TrialRecord"]) -> str:
    """Say which trials are on the front of a search with costs; empty for other searches."""
    from tuner.run.run import on_front

    front = on_front(ranked)
    if not front:
        return ""
    told = ", ".join(str(trial.number) for trial in front[:MOST_NAMED])
    if len(front) > MOST_NAMED:
        told += f" and {len(front) - MOST_NAMED} more"
    return (
        f"On front 1 of {run.record.search.objectives}: {told}. No other trial is better by one of "
        "these without being worse by another."
    )


def _about_leader(ranked: Sequence["TrialRecord"], metric: Metric) -> str:
    """Say why a stopped trial leads; empty if none does."""
    from tuner.run.run import leader

    first = leader(ranked)
    if first is None or first.best is None or first.status.state != "stopped":
        return ""
    decides = "higher accuracy" if metric == "nll" else "lower loss"
    return (
        f"Trial {first.number} leads although it was stopped after epoch {len(first.history)} of "
        f"{first.config.epochs}: trials are ranked\nby their best epoch, here epoch "
        f"{first.best.epoch}, whose weights are kept; of equals\nthe one with the {decides} comes "
        "first."
    )


def _chosen(
    lines: Sequence[_Line],
    searched: Sequence["Column"],
    width: float,
    ranked_by: str,
    costs: Sequence[str],
) -> list[_Cells]:
    """Choose as many columns as fit into ``width``."""
    families = {line.row["model"] for line in lines}
    keys = ["trial", *(["model"] if len(families) > 1 else []), "state", ranked_by]
    keys += [*costs, *(["front"] if costs else []), "epochs"]
    if width >= WIDE:
        keys += [key for key in ("accuracy", "loss", "seconds", "parameters") if key not in keys]
    shown = [_plain(key) for key in keys]
    # Two blanks beside each column.
    room = width - sum(cells.width(lines) + 2 for cells in shown)
    for column in searched:
        cells = _of(column)
        if (room := room - cells.width(lines) - 2) < 0:
            break
        shown.append(cells)
    if room >= LEAST_REASON and any(line.row["reason"] for line in lines):
        shown.append(_plain("reason"))
    return shown


def _plain(key: str) -> _Cells:
    def text(line: _Line) -> str:
        value = line.row.get(key)
        return f"{value:.1f}" if key == "seconds" else figure(value)

    return _Cells(heading=key, value=lambda line: line.row.get(key), text=text)


def _of(column: "Column") -> _Cells:
    return _Cells(
        heading=column.heading,
        value=lambda line: column.value(line.config),
        text=lambda line: column.text(line.config),
    )


def _find(name: str, lines: Sequence[_Line], searched: Sequence["Column"]) -> _Cells:
    """Return the column with the given heading or, as in leaderboard.csv, key."""
    for column in searched:
        if name == column.heading:
            return _of(column)
    keys = {key: None for line in lines for key in line.row}
    if name not in keys and lines:
        known = [*(column.heading for column in searched), *keys]
        hint = did_you_mean(name, known) or f"; known are {', '.join(known)}"
        raise UsageError(f"no column {quoted(name)}{hint}")
    return _plain(name)


def _sorted(lines: Sequence[_Line], by: _Cells) -> list[_Line]:
    """Sort lines, the lowest value first, those without a value last; ties keep their rank."""

    def key(line: _Line) -> tuple[bool, bool, Any]:
        value = by.value(line)
        is_text = isinstance(value, str)
        return value is None, is_text, "" if value is None else value

    return sorted(lines, key=key)


def print_best(run: "Run", ranked: "Sequence[TrialRecord]") -> None:
    """Print the best configuration of a search, as YAML to copy, and its figures."""
    from tuner.report.best import best_trial
    from tuner.run.layout import SPACE
    from tuner.space import load_run_space

    try:
        best = best_trial(run, ranked, load_run_space(run.path / SPACE))
    except TunerError:
        return  # The leaderboard above has reported the damage.
    if best is None:
        return
    others = {0: "no other trial is", 1: "1 other trial is"}.get(
        best.others_within, f"{best.others_within} other trials are"
    )
    print(
        f"\nBest: trial {best.trial} ({best.family}), epoch {best.epoch} of {best.epochs}: "
        f"{best.by}{best.accuracy:.2%} of {best.images} validation images,\n"
        f"95% interval {100 * best.low:.2f} to {100 * best.high:.2f}; {others} within it.\n"
        f"To try this configuration first in another search, copy it into its space:\n\n"
        f"{best.yaml.rstrip()}"
    )


def print_next(run: "Run", trials: "Sequence[TrialRecord]") -> None:
    """Print the commands that may come after a search or a refit, one per line."""
    storage = storage_words(run.path.parent)
    name = run.path.name
    usable = sum(trial.is_usable for trial in trials)
    lines = [
        command_line("ensemble", "--top", str(min(5, usable)), "--run", name, *storage),
        command_line("report", *storage, names=[name]),
    ]
    if not run.record.refit:
        lines.insert(1, refit_command(run.path, min(5, usable)))
    print("\nNext:\n" + "\n".join(f"  {line}" for line in lines))
