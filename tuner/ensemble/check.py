"""Everything that is wrong with the files of a run, found at once."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tuner.data.splits import Splits
from tuner.ensemble.candidates import Candidate, damage_of_copy, damage_of_network, read_candidate
from tuner.ensemble.students import find_student
from tuner.errors import (
    DataError,
    SpaceError,
    StorageError,
    TunerError,
    UntrustedCodeError,
    first_line,
)
from tuner.models.trust import check_code_trusted, code_of
from tuner.run.check import damage_of_record
from tuner.run.checkpoint import read_description
from tuner.run.digests import Damage, DamagedError, damage_of_files, one_a_file
from tuner.run.ensemble_record import EnsembleMember, EnsembleRecord, find_ensemble_record
from tuner.run.forecast import outcomes
from tuner.run.issues import find_issues
from tuner.run.layout import (
    CHECKPOINT,
    CONFUSION,
    ENSEMBLE,
    ENSEMBLES,
    LEADERBOARD,
    MEMBERS,
    METRICS,
    SPACE,
    TRIALS,
    VAL_PROBS,
    is_number,
    number_of,
)
from tuner.run.run import Run
from tuner.run.teacher_probs import read_teacher_probs
from tuner.run.trial import OPEN, USABLE, TrialRecord
from tuner.space import load_run_space
from tuner.storage.paths import AnyPath, check_no_link, inside, sha256_of
from tuner.storage.protocol import LOCK_NAME
from tuner.storage.records import explaining_damage, read_record
from tuner.storage.spreadsheet import read_csv
from tuner.training.run_images import load_run_splits
from tuner.training.saving import read_own_progress

Skip = Callable[[str, TunerError], None]
"""Receives what could not be checked, and why."""


def damage_of_run(
    run: Run,
    device: torch.device,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    trust_code: bool = False,
    skip: Skip = lambda what, error: None,
) -> list[Damage]:
    """Read every file of a run that can be opened, and return what is wrong with each.

    Probabilities and networks are checked against each other and against the recorded accuracies;
    if the images cannot be read, ``skip`` is notified instead.

    Args:
        run: The run; its search may still be running.
        device: Where networks are computed.
        data: Where the run's images are now; ``None`` if they were not moved.
        data_dir: Likewise, for downloads and decoded images.
        trust_code: Run code that came with the run even if it is not known here.
        skip: Receives what could not be checked.

    Raises:
        DataError: If the images are said to be elsewhere, and are not there.
        StorageError: If the storage does not answer: that is no damage.
        TunerError: If the folder of the trials is none.
    """
    damage = list(_leftovers(run))
    trials = run.trials(damage)
    splits = _splits(run, data, data_dir, skip)
    candidates: list[Candidate] = []
    for trial in trials:
        damage += _damage_of_trial(trial, splits, device, trust_code, skip, candidates)
    damage += _damage_of_ensembles(run.path / ENSEMBLES)
    reads = (run.test_readings, partial(find_issues, run), partial(outcomes, run, trials))
    damage += _damage_found_by(run.path, *reads, *_checks_of_teacher(run))
    damage += _damage_of_space(run.path / SPACE)
    leaderboard = run.path / LEADERBOARD
    if run.record.status != "running" and not leaderboard.exists():
        damage.append(Damage(file=str(leaderboard), problem="is missing"))
    return one_a_file(damage)


def _damage_found_by(folder: AnyPath, *checks: Callable[[], object]) -> Iterator[Damage]:
    """Yield the errors that functions raise which read files of a folder."""
    for check in checks:
        try:
            check()
        except TunerError as error:
            yield Damage.of(error, folder)


def _checks_of_teacher(run: Run) -> Iterator[Callable[[], object]]:
    teacher = run.record.teacher
    if teacher is not None and teacher.probs_sha256 is not None:
        yield partial(read_teacher_probs, run.path, teacher)
        yield partial(find_student, run)


def _splits(run: Run, data: str | None, data_dir: Path | None, skip: Skip) -> Splits | None:
    try:
        return load_run_splits(run, data, data_dir)
    except DataError as error:
        if data is not None or data_dir is not None:
            raise
        skip("the networks and probabilities of the trials", error)
        return None


def _damage_of_trial(
    trial: TrialRecord,
    splits: Splits | None,
    device: torch.device,
    trust_code: bool,
    skip: Skip,
    candidates: list[Candidate],
) -> Iterator[Damage]:
    """Yield what is wrong with a trial, and append its candidate to ``candidates``."""
    state = trial.status.state
    if state in OPEN and trial.state.exists():
        # A search may have written it between two reads: only what is found twice is damage.
        yield from _damage_of_progress(trial) and _damage_of_progress(trial)
    if state == "running":
        # Its files may be in the middle of a write.
        return
    if trial.best is None or state not in USABLE or splits is None:
        yield from damage_of_record(trial, CHECKPOINT, VAL_PROBS)
        return
    candidate, wrong = read_candidate(trial, splits.val.labels, splits.num_classes)
    yield from wrong or damage_of_copy(candidate, candidates)
    if candidate is None:
        yield from damage_of_files(trial.path, CHECKPOINT)
        return
    candidates.append(candidate)
    if trial.checkpoint.exists():
        is_trusted = True
        try:
            code = code_of([trial.config.model])
            check_code_trusted(code, trial.path, trust=trust_code)
        except UntrustedCodeError as error:
            is_trusted = False
            skip("networks whose code is not trusted", error)
        yield from damage_of_network(candidate.recorded, splits, device, is_quick=not is_trusted)


def _damage_of_progress(trial: TrialRecord) -> tuple[Damage, ...]:
    try:
        read_own_progress(trial.path)
    except DamagedError as error:
        return error.damage
    return ()


def _leftovers(run: Run) -> Iterator[Damage]:
    """Yield links, leftovers of killed processes and misnamed entries in a run's folders."""
    trials = run.path / TRIALS
    for folder in [run.path, *([trials] if trials.exists() else []), *run.trial_paths()]:
        try:
            with explaining_damage(folder):
                check_no_link(folder)
                names = sorted(path.name for path in folder.iterdir())
        except StorageError:
            raise
        except TunerError as error:
            # The user may have made the run's folder a link.
            if folder != run.path:
                yield Damage.of(error, folder, number_of(folder))
            continue
        for name in names:
            if name.startswith(".") and name != LOCK_NAME and run.record.status != "running":
                problem = "was left by a process that was killed; remove it"
                yield Damage(file=str(folder / name), problem=problem)
            elif folder == trials and not name.startswith(".") and not is_number(name):
                yield Damage(
                    file=str(folder / name),
                    problem="is not the name of a trial's folder, such as 0007, and is not read",
                )


def _damage_of_ensembles(folder: AnyPath) -> Iterator[Damage]:
    try:
        with explaining_damage(folder):
            found = list(folder.iterdir()) if folder.exists() else []
    except TunerError as error:
        yield Damage.of(error, folder)
        return
    for path in sorted(found, key=lambda path: path.name):
        if not path.name.startswith("."):
            yield from damage_of_ensemble(path)


def damage_of_ensemble(path: AnyPath) -> Iterator[Damage]:
    """Yield what is wrong with the files of an ensemble.

    Args:
        path: Its folder.
    """
    try:
        with explaining_damage(path):
            check_no_link(path)
        record = find_ensemble_record(path)
    except TunerError as error:
        yield Damage.of(error, path)
        return
    if record is None:
        yield Damage(file=str(path / ENSEMBLE), problem="is missing")
        return
    checks: list[Callable[[], object]] = [
        partial(_check_member, path, member) for member in record.members
    ]
    if record.probe:
        checks.append(partial(_check_file, path, record.probe.file, record.probe.sha256))
    yield from _damage_found_by(path, *checks, partial(_check_figures, path, record))
    folder = path / MEMBERS
    known = {member.file for member in record.members}
    try:
        with explaining_damage(folder):
            found = list(folder.iterdir()) if folder.exists() else []
    except TunerError as error:
        yield Damage.of(error, folder)
        return
    for stray in found:
        if f"{MEMBERS}/{stray.name}" not in known:
            yield Damage(file=str(stray), problem=f"is not a member listed in {ENSEMBLE}")


def _check_member(folder: AnyPath, member: EnsembleMember) -> None:
    # Earlier versions recorded neither its SHA-256 nor its model.
    read_description(_check_file(folder, member.file, member.sha256), member.model)


def _check_file(folder: AnyPath, name: str, digest: str | None) -> AnyPath:
    """Return the path of a file that ``ensemble.json`` names; make sure that it is this file."""
    with explaining_damage(folder / ENSEMBLE):
        file = inside(folder, name)
    with explaining_damage(file):
        if digest is not None and sha256_of(file) != digest:
            raise ValueError(f"is not the file whose SHA-256 {ENSEMBLE} holds")
    return file


def _check_figures(folder: AnyPath, record: EnsembleRecord) -> None:
    metrics = read_record(folder / METRICS, dict[str, Any])
    with explaining_damage(folder / METRICS):
        _check_metrics(metrics, record)
    with explaining_damage(folder / CONFUSION):
        _check_confusion(folder / CONFUSION, metrics)


def _check_metrics(metrics: dict[str, Any], record: EnsembleRecord) -> None:
    """Make sure that ``metrics.json`` describes the same ensemble as ``ensemble.json``."""
    members = record.members
    pairs: dict[str, tuple[object, object]] = {
        "run": (metrics["run"], record.run),
        "method": (metrics["method"], record.method),
        "temperature": (metrics["temperature"], record.temperature),
        "classes": (metrics["classes"], [*record.classes]),
        "trials": (
            [member["trial"] for member in metrics["members"]],
            [trial for member in members for trial in member.soup_of or [member.trial]],
        ),
    }
    if not any(member.soup_of for member in members):
        weights = [member["weight"] for member in metrics["members"]]
        pairs["weights"] = (weights, [member.weight for member in members])
    for name, (found, recorded) in pairs.items():
        if found != recorded:
            raise ValueError(f"describes another ensemble than {ENSEMBLE}: its {name} differ")
    accuracy = metrics["ensemble"]["test"]["accuracy"]
    if not 0 <= accuracy <= 1:
        raise ValueError(f"reports an accuracy of {accuracy}")


def _check_confusion(path: AnyPath, metrics: dict[str, Any]) -> None:
    counts = [[int(cell) for cell in row[1:]] for row in read_csv(path)[1:]]
    total = sum(map(sum, counts))
    if not total or any(len(row) != len(counts) for row in counts):
        raise ValueError("is not a square table of counts")
    right = sum(row[i] for i, row in enumerate(counts))
    if total != metrics["test_images"]:
        raise ValueError(f"counts {total} images of the {metrics['test_images']} in {METRICS}")
    accuracy = metrics["ensemble"]["test"]["accuracy"]
    if abs(right / total - accuracy) > 0.5 / total:
        raise ValueError(f"has {right} of {total} images right, and {METRICS} {accuracy:.4f}")


def _damage_of_space(path: AnyPath) -> Iterator[Damage]:
    try:
        load_run_space(path)
    except SpaceError as error:
        # One mistake is enough; it names a line and a column, in a bucket of a temporary copy.
        first = first_line(error)
        yield Damage(file=str(path), problem=first.partition(f"{SPACE}:")[2] or first)
    except TunerError as error:
        yield Damage.of(error, path)
