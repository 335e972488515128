"""Checks that a trial's record, used for ranking and retraining, is what its worker wrote."""

from collections.abc import Iterable

from tuner.errors import TunerError
from tuner.run.digests import Damage, DamagedError, damage_of_files
from tuner.run.layout import CONFIG, HISTORY
from tuner.run.trial import TrialRecord

PUT_BACK = "Put the file back, or remove the trial's folder."


def damage_of_record(trial: TrialRecord, *others: str) -> list[Damage]:
    """Return the damage of a trial's configuration and epochs.

    Args:
        trial: The trial.
        others: Names of its other files that have to be the worker's own.
    """
    damage = damage_of_files(trial.path, CONFIG, HISTORY, *others)
    try:
        _ = trial.config
    except TunerError as error:
        damage.append(Damage.of(error, trial.path, trial.number))
    return damage


def check_records(trials: Iterable[TrialRecord], *others: str, mend: str = PUT_BACK) -> None:
    """Make sure that trials are what their workers recorded; see ``damage_of_record``.

    Args:
        trials: The trials.
        others: Names of other files of each trial.
        mend: How to fix the damage.

    Raises:
        DamagedError: With all that is wrong.
    """
    if damage := [entry for trial in trials for entry in damage_of_record(trial, *others)]:
        raise DamagedError(damage, mend)
