"""Everything that is wrong with the files of a run, found at once."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from tuner.config import ModelConfig
from tuner.data.splits import Splits, load_splits, located
from tuner.ensemble.candidates import Candidate, damage_of_copy, damage_of_network, read_candidate
from tuner.ensemble.students import find_student
from tuner.errors import DataError, StorageError, TunerError, UntrustedCodeError
from tuner.models.trust import check_code_trusted, code_of
from tuner.run.check import damage_of_record
from tuner.run.checkpoint import read_description
from tuner.run.digests import Damage, DamagedError, damage_of_files, one_a_file
from tuner.run.layout import (
    CHECKPOINT,
    CONFUSION,
    ENSEMBLE,
    ENSEMBLES,
    LEADERBOARD,
    MEMBERS,
    METRICS,
    PROBE,
    SPACE,
    TEST_READINGS,
    TRIALS,
    VAL_PROBS,
    is_number,
    number_of,
)
from tuner.run.run import Run
from tuner.run.teacher_probs import read_teacher_probs
from tuner.run.trial import OPEN, USABLE, TrialRecord
from tuner.storage.digest import sha256_of
from tuner.storage.paths import AnyPath, check_no_link, inside, read_bytes, read_text
from tuner.storage.protocol import LOCK_NAME
from tuner.storage.records import explaining_damage
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
    damage += _damage_of_readings(run.path / TEST_READINGS)
    damage += _damage_of_space(run.path / SPACE)
    damage += _damage_of_teacher(run)
    leaderboard = run.path / LEADERBOARD
    if run.record.status != "running" and not leaderboard.exists():
        damage.append(Damage(file=str(leaderboard), problem="is missing"))
    return one_a_file(damage)


def _damage_of_teacher(run: Run) -> Iterator[Damage]:
    teacher = run.record.teacher
    if teacher is None or teacher.probs_sha256 is None:
        return
    checks: tuple[Callable[[], object], ...] = (
        lambda: read_teacher_probs(run.path, teacher),
        lambda: find_student(run),
    )
    for check in checks:
        try:
            check()
        except TunerError as error:
            yield Damage.of(error)


def _splits(run: Run, data: str | None, data_dir: Path | None, skip: Skip) -> Splits | None:
    try:
        splits = load_splits(*located(run.record.data, run.record.data_dir, data, data_dir))
        splits.expect(run.record.data_fingerprint, run.record.split_fingerprint, run.path)
    except DataError as error:
        if data is not None or data_dir is not None:
            raise
        skip("the networks and probabilities of the trials", error)
        return None
    return splits


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
                yield Damage.of(error, number_of(folder))
            continue
        for name in names:
            if name.startswith(".") and name != LOCK_NAME and run.record.status != "running":
                problem = "was left by a process that was killed; remove it"
                yield Damage(file=str(folder / name), problem=problem)
            elif folder == trials and not name.startswith(".") and not is_number(name):
                yield Damage(
                    file=str(folder / name),
                    problem="is no name of a trial's folder, such as 0007, and is not read",
                )


def _damage_of_ensembles(folder: AnyPath) -> Iterator[Damage]:
    try:
        with explaining_damage(folder):
            found = list(folder.iterdir()) if folder.exists() else []
    except TunerError as error:
        yield Damage.of(error)
        return
    for path in sorted(found, key=lambda path: path.name):
        if not path.name.startswith("."):
            yield from damage_of_ensemble(path)


def damage_of_ensemble(path: AnyPath) -> Iterator[Damage]:
    """Yield what is wrong with the files of an ensemble.

    Args:
        path: Its folder.
    """
    file = path / ENSEMBLE
    try:
        with explaining_damage(path):
            check_no_link(path)
        with explaining_damage(file):
            described = json.loads(read_text(file))
            members = [_member(path, plain) for plain in described["members"]]
            told = {name: described[name] for name in ("run", "method", "temperature", "classes")}
            told["trials"] = [t for m in described["members"] for t in _trials(m)]
            if not any(member.get("soup_of") for member in described["members"]):
                told["weights"] = [member["weight"] for member in described["members"]]
    except TunerError as error:
        yield Damage.of(error)
        return
    if probe := described.get("probe"):
        try:
            with explaining_damage(path / PROBE):
                _check_digest(inside(path, probe["file"]), probe["sha256"])
        except TunerError as error:
            yield Damage.of(error)
    for member, digest, model in members:
        try:
            with explaining_damage(member):
                if digest is not None:
                    _check_digest(member, digest)
            read_description(member, model)
        except TunerError as error:
            yield Damage.of(error)
    known = {member.name for member, *_ in members}
    folder = path / MEMBERS
    try:
        with explaining_damage(folder):
            found = list(folder.iterdir()) if folder.exists() else []
    except TunerError as error:
        yield Damage.of(error)
        found = []
    for stray in found:
        if stray.name not in known:
            yield Damage(file=str(stray), problem="is no member that ensemble.json names")
    try:
        with explaining_damage(path / METRICS):
            metrics = json.loads(read_text(path / METRICS))
            _check_metrics(metrics, told)
        with explaining_damage(path / CONFUSION):
            _check_confusion(path / CONFUSION, metrics)
    except TunerError as error:
        yield Damage.of(error)


def _member(
    folder: AnyPath, plain: dict[str, Any]
) -> tuple[AnyPath, str | None, ModelConfig | None]:
    """Return a member's file, and its SHA-256 and model, which earlier versions did not write."""
    model = None
    if "model" in plain:
        ((family, params),) = plain["model"].items()
        model = ModelConfig(family, params)
    return inside(folder, plain["file"]), plain.get("sha256"), model


def _check_digest(file: AnyPath, digest: str) -> None:
    if sha256_of(file) != digest:
        raise ValueError("is not the file whose SHA-256 ensemble.json holds")


def _trials(plain: dict[str, Any]) -> list[int]:
    """Return the trials of an entry of ``ensemble.json``."""
    trials: list[int] = plain.get("soup_of") or [plain["trial"]]
    return trials


def _check_metrics(metrics: Any, told: dict[str, Any]) -> None:
    """Make sure that ``metrics.json`` describes the same ensemble as ``ensemble.json``."""
    found = {name: metrics[name] for name in told.keys() - {"trials", "weights"}}
    found["trials"] = [member["trial"] for member in metrics["members"]]
    found["weights"] = [member["weight"] for member in metrics["members"]]
    for name, value in told.items():
        if found[name] != value:
            raise ValueError(f"tells of another ensemble than ensemble.json: its {name} differ")
    accuracy = metrics["ensemble"]["test"]["accuracy"]
    if not 0 <= accuracy <= 1:
        raise ValueError(f"tells of an accuracy of {accuracy}")


def _check_confusion(path: AnyPath, metrics: Any) -> None:
    rows = list(csv.reader(io.StringIO(read_bytes(path).decode(), newline="")))[1:]
    counts = [[int(cell) for cell in row[1:]] for row in rows]
    total = sum(map(sum, counts))
    if not total or any(len(row) != len(counts) for row in counts):
        raise ValueError("is no square table of counts")
    right = sum(row[i] for i, row in enumerate(counts))
    if total != metrics["test_images"]:
        raise ValueError(f"counts {total} images of the {metrics['test_images']} in metrics.json")
    accuracy = metrics["ensemble"]["test"]["accuracy"]
    if abs(right / total - accuracy) > 0.5 / total:
        raise ValueError(f"has {right} of {total} images right, and metrics.json {accuracy:.4f}")


def _damage_of_readings(path: AnyPath) -> Iterator[Damage]:
    if not path.exists():
        return
    try:
        with explaining_damage(path):
            for number, line in enumerate(read_text(path).splitlines(), 1):
                if not isinstance(json.loads(line), dict):
                    raise ValueError(f"line {number} is no entry")
    except TunerError as error:
        yield Damage.of(error)


def _damage_of_space(path: AnyPath) -> Iterator[Damage]:
    try:
        with explaining_damage(path):
            try:
                space = yaml.safe_load(read_text(path))
            except yaml.YAMLError as error:
                raise ValueError(" ".join(str(error).split())) from error
            if not isinstance(space, dict):
                raise ValueError("is no mapping")
    except TunerError as error:
        yield Damage.of(error)
