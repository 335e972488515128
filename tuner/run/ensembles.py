"""The folders of ensembles: which ones a run has, and which one a user means."""

from collections.abc import Iterator
from pathlib import Path

from tuner.errors import UsageError
from tuner.run.run import Run, open_runs
from tuner.schema import did_you_mean
from tuner.storage.paths import AnyPath, folders_with, modified, to_path

FOLDER = "ensembles"
"""In the folder of the run."""


def ensemble_folders(run: AnyPath) -> list[AnyPath]:
    """Return the folders of a run's ensembles, the one that was made last first."""
    folders = folders_with(run / FOLDER, "metrics.json")
    return sorted(folders, key=lambda path: -modified(path / "metrics.json"))


def find_ensemble(storage: AnyPath, name: str | None = None) -> AnyPath:
    """Return the folder of the ensemble that a user names.

    Args:
        storage: Folder of the runs.
        name: The ensemble's folder or URI, ``RUN/NAME``, or a run, which means its newest ensemble;
            left out, the newest ensemble of the newest run that has one.

    Raises:
        UsageError: If there is no such ensemble.
    """
    if name is None:
        for run in sorted(open_runs(storage), key=lambda run: run.record.started, reverse=True):
            if folders := ensemble_folders(run.path):
                return folders[0]
        raise UsageError(
            f"no ensemble in {storage} yet. Make one: cifar-tune ensemble --top 5; or name one by "
            "--ensemble"
        )
    text = name.rstrip("/") or name
    places = (to_path(text),) if "://" in text else (storage / text, Path(text))
    names_both = "/" in text.rpartition("://")[2]
    for place in places:
        if (place / "ensemble.json").exists():
            return place
        if (place / "run.json").exists():
            return _newest(place)
        if names_both:
            inside_run = place.parent / FOLDER / place.name
            if (inside_run / "ensemble.json").exists():
                return inside_run
    hint = did_you_mean(text, _names(storage))
    raise UsageError(
        f"no ensemble '{name}' in {storage}{hint or '; give its folder, RUN/NAME, or a run'}"
    )


def run_of(folder: AnyPath) -> Run | None:
    """Return the run that an ensemble's folder lies in; ``None`` where it lies elsewhere."""
    place = folder.absolute()
    run = place.parent.parent
    if place.parent.name != FOLDER or not (run / "run.json").exists():
        return None
    return Run.open(run)


def _newest(run: AnyPath) -> AnyPath:
    if folders := ensemble_folders(run):
        return folders[0]
    raise UsageError(f"{run}: has no ensemble yet. Make one: cifar-tune ensemble --run {run}")


def _names(storage: AnyPath) -> Iterator[str]:
    """Yield the names of all ensembles, as ``find_ensemble`` takes them."""
    for run in folders_with(storage, "run.json"):
        for folder in ensemble_folders(run):
            yield f"{run.name}/{folder.name}"
