"""Finds the folders of ensembles: all of a run, or the one that a user names."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from tuner.errors import TunerError, UsageError
from tuner.run.ensemble_record import find_ensemble_record
from tuner.run.layout import ENSEMBLE, ENSEMBLES, METRICS, RUN
from tuner.run.resuming import command_line, short_path, storage_words
from tuner.run.run import Run, open_runs
from tuner.schema import did_you_mean
from tuner.storage.paths import AnyPath, folders_with, modified, to_path, with_name
from tuner.storage.records import explaining_damage


def ensemble_folders(run: AnyPath) -> list[AnyPath]:
    """Return the folders of a run's ensembles, newest first."""
    with explaining_damage(run / ENSEMBLES):
        folders = folders_with(run / ENSEMBLES, METRICS)
        return sorted(folders, key=_made, reverse=True)


def _made(folder: AnyPath) -> tuple[float, float]:
    """Return when an ensemble was made and when its last file was written, which copies change."""
    written = modified(folder / METRICS)
    try:
        record = find_ensemble_record(folder)
        made = datetime.fromisoformat(record.made).timestamp() if record else written
    except (TunerError, ValueError):
        # Damage is reported when the ensemble is used.
        made = written
    return made, written


def find_ensemble(storage: AnyPath, name: str | None = None) -> AnyPath:
    """Return the folder of the ensemble that a user names.

    Args:
        storage: Folder of the runs.
        name: The ensemble's folder or URI, ``RUN/NAME``, or a run, which means its newest ensemble;
            ``None`` for the newest ensemble of the newest run that has one.

    Raises:
        UsageError: If there is no such ensemble.
    """
    if name is None:
        for run in sorted(open_runs(storage), key=lambda run: run.record.started, reverse=True):
            if folders := ensemble_folders(run.path):
                return folders[0]
        raise UsageError(
            f"no ensemble in {storage} yet. Name one by --ensemble, or make one:\n"
            f"  {command_line('ensemble', '--top', '5', *storage_words(storage))}"
        )
    text = name.rstrip("/") or name
    named = to_path(text)
    places = (storage / text, named) if isinstance(named, Path) else (named,)
    names_both = "/" in text.rpartition("://")[2]
    for place in places:
        if (place / ENSEMBLE).exists():
            return with_name(place)
        if (place / RUN).exists():
            return _newest(with_name(place))
        if names_both:
            inside_run = place.parent / ENSEMBLES / place.name
            if (inside_run / ENSEMBLE).exists():
                return inside_run
    hint = did_you_mean(text, names_of_ensembles(storage))
    raise UsageError(
        f"no ensemble '{name}' in {storage}{hint or '; give its folder, RUN/NAME, or a run'}"
    )


def run_folder_of(folder: AnyPath) -> AnyPath | None:
    """Return the folder of the run that contains an ensemble's; ``None`` if no run does."""
    place = folder.absolute()
    run = place.parent.parent
    return run if place.parent.name == ENSEMBLES and (run / RUN).exists() else None


def run_of(folder: AnyPath) -> Run | None:
    """Return the run that contains an ensemble's folder; ``None`` if no run does."""
    run = run_folder_of(folder)
    return None if run is None else Run.open(run)


def _newest(run: AnyPath) -> AnyPath:
    if folders := ensemble_folders(run):
        return folders[0]
    line = command_line("ensemble", "--run", short_path(run))
    raise UsageError(f"{run}: has no ensemble yet. Make one:\n  {line}")


def names_of_ensembles(storage: AnyPath) -> Iterator[str]:
    """Yield the names of all ensembles, as ``find_ensemble`` takes them."""
    for run in folders_with(storage, RUN):
        for folder in ensemble_folders(run):
            yield f"{run.name}/{folder.name}"
