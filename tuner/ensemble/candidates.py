"""A candidate for an ensemble: its files, read and checked against the record."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tuner.data.splits import Splits
from tuner.ensemble.integrity import sample_of, why_not_network, why_not_probs
from tuner.errors import TunerError
from tuner.models.trust import code_of
from tuner.run.check import damage_of_record
from tuner.run.digests import Damage, changed, origin_of
from tuner.run.layout import CHECKPOINT, VAL_PROBS
from tuner.run.trial import TrialRecord, read_val_probs
from tuner.storage.paths import AnyPath, sha256_of
from tuner.storage.records import explaining_damage
from tuner.voting import floored

HALF_FLOOR = 2.0**-25
"""Half the smallest float16: earlier versions stored probabilities in it, lower ones as 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """The values that a trial's network is checked against."""

    trial: TrialRecord
    sample: Tensor
    """Probabilities of a few validation images, chosen by ``sample_of``, shape (n, K)."""
    floor: float
    """Lowest probability that their file could hold, as in ``Network``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A trial with the probabilities of its best epoch."""

    recorded: Recorded
    probs: Tensor
    """Probabilities of the validation images, float32, shape (N, K)."""
    digest: str
    """SHA-256 of their file."""


def read_candidate(
    trial: TrialRecord, labels: Tensor, num_classes: int
) -> tuple[Candidate | None, list[Damage]]:
    """Read a trial's probabilities, and return what is wrong with them and the trial's record."""
    damage = damage_of_record(trial)
    try:
        stored, digest = read_val_probs(trial.path)
        is_other = origin_of(trial.path, VAL_PROBS, digest) == "other"
    except TunerError as error:
        return None, [*damage, Damage.of(error, trial.path, trial.number)]
    assert trial.best is not None, "it is a candidate"
    if is_other:
        damage.append(changed(trial.path, VAL_PROBS))
    elif problem := why_not_probs(stored, trial.best, labels, num_classes):
        file = str(trial.path / VAL_PROBS)
        damage.append(Damage(file=file, problem=problem, trial=trial.number))
    if damage:
        return None, damage
    floor = HALF_FLOOR if stored.dtype == np.float16 else 0.0
    probs = floored(torch.from_numpy(stored.astype(np.float32)), floor)
    recorded = Recorded(trial=trial, sample=probs[sample_of(len(probs))], floor=floor)
    return Candidate(recorded=recorded, probs=probs, digest=digest), []


def damage_of_copy(read: Candidate | None, chosen: Sequence[Candidate]) -> list[Damage]:
    """Report a trial that would vote twice: no two trainings give exactly the same numbers."""
    # Except networks that predict the same for every image.
    if read is None or bool((read.probs == read.probs[0]).all()):
        return []
    trial = read.recorded.trial
    for other in chosen:
        if other.digest == read.digest:
            first = other.recorded.trial.number
            problem = f"is a copy of that of trial {first}, which would vote twice"
            return [Damage(file=str(trial.path / VAL_PROBS), problem=problem, trial=trial.number)]
    return []


def damage_of_network(
    recorded: Recorded,
    splits: Splits,
    device: torch.device,
    *,
    file: AnyPath | None = None,
    is_quick: bool = False,
) -> list[Damage]:
    """Return what is wrong with a candidate's network; its own code, if any, is run.

    Args:
        recorded: The values to check against.
        splits: The images.
        device: Where to compute.
        file: A copy of its checkpoint.
        is_quick: Whether to skip a network whose file is the one that its worker recorded, or that
            would run code.
    """
    trial = recorded.trial
    try:
        with explaining_damage(trial.checkpoint):
            found = sha256_of(file or trial.checkpoint)
        origin = origin_of(trial.path, CHECKPOINT, found)
        has_code = bool(code_of([trial.config.model]))
    except TunerError as error:
        return [Damage.of(error, trial.path, trial.number)]
    if origin == "other":
        return [changed(trial.path, CHECKPOINT)]
    if is_quick and (origin == "recorded" or has_code):
        return []
    problem = why_not_network(
        file or trial.checkpoint,
        trial,
        splits,
        recorded.sample,
        recorded.floor,
        device,
        is_recorded=origin == "recorded",
    )
    found_wrong = Damage(file=str(trial.checkpoint), problem=problem or "", trial=trial.number)
    return [found_wrong] if problem else []
