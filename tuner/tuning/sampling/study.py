"""Optuna's part: which of its samplers proposes, and where the study is kept."""

import json
import math
import warnings
from importlib.util import find_spec
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from tuner.config import SearchConfig
from tuner.errors import UsageError
from tuner.passwords import hide_passwords
from tuner.space import SearchSpace
from tuner.space.axes import Branch, Range, parameters


def check_study_fits(space: SearchSpace, search: SearchConfig) -> None:
    """Refuse a sampler that cannot search ``space``, rather than let it draw at random.

    Raises:
        UsageError: With the parameter that is in the way.
    """
    axes = list(parameters(space.axes))
    obstacle = ""
    match search.sampler:
        case "grid" if space.cardinality() is None:
            endless = [a.name for a in axes if isinstance(a, Range) and math.isinf(a.size())]
            obstacle = f"tries every value, but {endless[0]} is continuous; give it a step"
        case "gp" if branches := _branches(space):
            # Optuna would model what all branches share, and draw all else at random.
            obstacle = f"cannot search branches, and {branches[0]} has some; choose one of them"
        case "cmaes" if others := [axis.name for axis in axes if not isinstance(axis, Range)]:
            obstacle = f"searches numbers alone, and {others[0]} is a choice; fix it"
        case "cmaes" if len(axes) < 2:
            obstacle = f"needs two numbers to search, the space has {len(axes)}; add some"
    if obstacle:
        others_fit = "random" if search.sampler == "grid" else "tpe"
        raise UsageError(f"--sampler {search.sampler} {obstacle}, or take --sampler {others_fit}")
    if search.sampler == "cmaes" and find_spec("cmaes") is None:
        raise UsageError(
            "--sampler cmaes needs a package that is not installed: pip install 'cifar-tune[cmaes]'"
        )


def _branches(space: SearchSpace) -> list[str]:
    """Return the parameters on which it depends what else is asked for."""
    return [
        axis.name
        for axis in parameters(space.axes)
        if isinstance(axis, Branch) and any(any(parameters(g)) for g in axis.options.values())
    ]


def make_optuna_sampler(
    space: SearchSpace, search: SearchConfig, seed: int
) -> optuna.samplers.BaseSampler:
    """Return what proposes the parameters that are not pinned."""
    with warnings.catch_warnings():
        # For the options group and consider_pruned_trials.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match search.sampler:
            case "tpe":
                # group: parameters of a branch are modelled together, not each alone.
                return optuna.samplers.TPESampler(seed=seed, group=bool(_branches(space)))
            case "gp":
                return optuna.samplers.GPSampler(seed=seed)
            case "cmaes":
                # It ranks, and a trial that was stopped ranks rightly by what it had come to.
                return optuna.samplers.CmaEsSampler(seed=seed, consider_pruned_trials=True)
            case "random" | "grid":
                return optuna.samplers.RandomSampler(seed=seed)


def check_study_free(place: str, name: str) -> None:
    """Refuse a new run the name of a study that is kept in ``place`` already.

    Raises:
        UsageError: If there is one, or ``place`` cannot be used.
    """
    if name in optuna.get_all_study_names(open_storage(place)):
        raise UsageError(
            f"--study-storage {hide_passwords(place)}: has a study '{name}' already. Choose "
            "another --name."
        )


def make_study(place: str | None, name: str) -> optuna.Study:
    """Make an empty study, instead of an older one of that name: the run folder tells it again.

    Args:
        place: A journal file or the URL of a database; ``None`` keeps the study in memory.
        name: Of the study, in ``place``.

    Raises:
        UsageError: If ``place`` cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if place is None:
        return optuna.create_study(direction="maximize")
    storage = open_storage(place)
    if name in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=name, storage=storage)
    return optuna.create_study(storage=storage, study_name=name, direction="maximize")


def open_storage(place: str) -> BaseStorage:
    """Open the journal file or, if ``place`` is a URL, the database where studies are kept.

    Raises:
        UsageError: If it cannot be opened, or holds something else.
    """
    try:
        if "://" in place:
            return RDBStorage(place)
        # Optuna would find out that it may not write only when the first trial starts.
        with Path(place).open("ab"):
            storage = JournalStorage(JournalFileBackend(place))
        # It reads over a last line that is no entry, or is cut off, and writes on behind it.
        for line in Path(place).read_bytes().splitlines(keepends=True)[-1:]:
            if "op_code" not in json.loads(line) or not line.endswith(b"\n"):
                raise ValueError("it does not end as a journal does")
        return storage
    except Exception as error:
        # A file that is no journal raises KeyError, TypeError or ValueError; a database, anything.
        reason = (str(error).splitlines() or [""])[0].replace(place, hide_passwords(place))
        raise UsageError(
            f"--study-storage {hide_passwords(place)}: cannot be used "
            f"({type(error).__name__}: {hide_passwords(reason)}). Give a "
            "file in a folder that exists, or the URL of a database such as sqlite:///study.db."
        ) from None
