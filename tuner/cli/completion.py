"""Shell completion: looks up the spaces, runs, trials and ensembles that exist."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from tuner.errors import TunerError
from tuner.storage.paths import AnyPath


def spaces(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of a shipped space, or a file."""
    from tuner.space.source import shipped

    return [*_items(shipped(), begun), CompletionItem(begun, type="file")]


def runs(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of a run."""
    from tuner.run.run import list_runs

    try:
        return _items(list_runs(_storage(context)), begun)
    except (TunerError, OSError):
        return []


def trials(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the number of a trial of the run that was typed, or of the newest."""
    from tuner.run.run import find_run

    typed = context.params.get("target") or context.params.get("words") or None
    name = typed[0] if isinstance(typed, tuple) else typed
    try:
        paths = find_run(_storage(context), name).trial_paths()
    except (TunerError, OSError):
        return []
    return _items([str(int(path.name)) for path in paths], begun)


def runs_or_trials(
    context: click.Context, parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    """Complete the name of a run or, after one, the number of a trial."""
    return (
        trials(context, parameter, begun)
        if context.params.get("words")
        else [
            *runs(context, parameter, begun),
            *trials(context, parameter, begun),
        ]
    )


def ensembles(
    context: click.Context, parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    """Complete ``RUN/NAME`` of an ensemble."""
    from tuner.run.ensembles import names_of_ensembles

    try:
        return _items(names_of_ensembles(_storage(context)), begun)
    except (TunerError, OSError):
        return []


def runs_or_ensembles(
    context: click.Context, parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    """Complete the name of a run or of one of its ensembles."""
    return [*runs(context, parameter, begun), *ensembles(context, parameter, begun)]


def _items(words: Iterable[Any], begun: str) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if str(word).startswith(begun)]


def _storage(context: click.Context) -> AnyPath:
    return context.params.get("storage") or Path("runs")
