"""The run folder: the output of a search, and the only interface between the commands.

Every file is written whole or not at all, and none is ever unpickled.
"""

import dataclasses
import io
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np

from tuner.config import (
    Metric,
)
from tuner.errors import NoUsableTrials, StorageError, TunerError, UsageError
from tuner.metrics.classwise import class_scores
from tuner.metrics.front import front_ranks
from tuner.run import layout
from tuner.run.digests import Damage
from tuner.run.resuming import (
    budget_words,
    command_line,
    leaderboard_command,
    resume_command,
    short_path,
    storage_words,
)
from tuner.run.run_record import SCHEMA_VERSION, Reading, RunRecord
from tuner.run.trial import (
    MOST_GPUS,
    OPEN,
    TrialRecord,
    order_of,
    read_history,
    read_status,
)
from tuner.schema import did_you_mean, from_json, quoted, to_json
from tuner.storage.files import append_line, remove_abandoned, write_text
from tuner.storage.paths import (
    AnyPath,
    check_no_link,
    folders_with,
    locked,
    read_text,
    to_path,
    with_name,
    with_snapshot,
)
from tuner.storage.records import explaining_damage, find_record, write_record
from tuner.storage.spreadsheet import csv_of

if TYPE_CHECKING:
    import pandas as pd


class Run:
    """A run folder.

    Attributes:
        path: The folder.
        record: The content of ``run.json``.
        metric: The metric that ranks trials: that of the search, unless ``by`` set another.
        address: The Ray cluster used to search it from here, if one was named. It is not recorded:
            whoever receives a run should not connect to its maker's cluster.
        outside_words: The options of this session that lead outside the run's storage. They are not
            followed from its record either, and have to be given again to resume.
    """

    def __init__(self, path: AnyPath, record: RunRecord) -> None:
        self.path = path
        self.record = record
        self.metric: Metric = record.search.metric
        self.address: str | None = None
        self.outside_words: tuple[str, ...] = ()
        self._val_labels: Callable[[], np.ndarray] | None = None

    def by(self, metric: Metric, val_labels: Callable[[], np.ndarray] | None = None) -> Self:
        """Return this run with its trials ranked by another metric, each at its kept epoch.

        Args:
            metric: The metric.
            val_labels: Returns the labels of the validation images, int64, shape (N,). The metric
                is computed from them where trials of an earlier version lack it.
        """
        other = type(self)(self.path, self.record)
        other.metric, other._val_labels = metric, val_labels
        return other

    def __repr__(self) -> str:
        return f"<Run {self.path}: {self.record.status}>"

    @classmethod
    def create(
        cls, path: AnyPath, record: RunRecord, space: str, held: ExitStack | None = None
    ) -> Self:
        """Create the folder of a new run, with the resolved space.

        Args:
            path: The folder.
            record: The content of ``run.json``.
            space: Text of ``space.yaml``.
            held: Receives the folder's lock, before anything is written there; ``None`` if nobody
                else can make the same run.

        Raises:
            UsageError: If a run, or anything else, is there already, or is being made.
        """
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise _taken(path) from None
        except OSError as error:
            raise UsageError(
                f"{path}: cannot make the run folder: {error.strerror}. Choose another --storage."
            ) from None
        run = cls(path, record)
        if held is not None:
            # In a bucket, which has no folders, several processes may get here at once.
            held.enter_context(run.locked())
            if (path / layout.RUN).exists():
                raise _taken(path)
        write_text(path / layout.SPACE, space)
        run.update()
        return run

    @classmethod
    def open(cls, path: AnyPath) -> Self:
        """Open the run in folder ``path``.

        Raises:
            UsageError: If there is none, or it was written by a later version.
            TunerError: If it is damaged.
        """
        record = find_record(path / layout.RUN, RunRecord, version=SCHEMA_VERSION)
        if record is None:
            raise UsageError(f"{path}: no run here (no {layout.RUN})")
        if not record.name.isprintable():
            # It would add lines of its own wherever it is printed.
            raise TunerError(
                f"{path / layout.RUN}: damaged or unreadable: name: {quoted(record.name)} holds "
                "characters that cannot be printed"
            )
        if record.schema_version == 1 and record.search.scheduler == "asha":
            search = dataclasses.replace(record.search, scheduler="asha-stop")
            record = dataclasses.replace(record, search=search)
        return cls(path, record)

    def update(self, **changes: Any) -> None:
        """Change entries of the record and write ``run.json``."""
        self.record = dataclasses.replace(
            self.record, **{"schema_version": SCHEMA_VERSION, **changes}
        )
        write_record(self.path / layout.RUN, self.record.without_passwords())

    def locked(self) -> AbstractContextManager[None]:
        """Keep other searches out of this folder; see ``tuner.storage.paths.locked``."""
        return locked(self.path)

    def how_to_go_on(self) -> str:
        """Say what a run that ended early keeps, and show the command that resumes it."""
        return (
            f"{short_path(self.path)} keeps the trials' files. Resume with:\n"
            f"  {self.resume_command()}"
        )

    def resume_command(self, *options: str, factor: float = 1.0) -> str:
        """Return the command line that resumes this run, with ``factor`` times its budget."""
        record = self.record
        words = budget_words(record.budget_seconds, record.budget_gpu_hours, factor)
        words += [*self.outside_words, *(["--address", self.address] if self.address else [])]
        command = "refit" if record.refit else "search"
        return resume_command(self.path, command, *options, *words)

    def remove_abandoned(self) -> None:
        """Remove unfinished files of killed processes from this folder and the one around it.

        Raises:
            TunerError: If the folder of its ensembles is a link.
        """
        with explaining_damage(self.path / layout.ENSEMBLES):
            check_no_link(self.path / layout.ENSEMBLES)
        for folder in (
            self.path.parent,
            self.path,
            self.path / layout.ENSEMBLES,
            *self.trial_paths(),
        ):
            remove_abandoned(folder)

    def trial_path(self, number: int) -> AnyPath:
        """Return the folder of trial ``number``."""
        return self.path / layout.TRIALS / layout.trial_folder(number)

    def trial_paths(self, *names: str) -> list[AnyPath]:
        """Return the folders of all trials, sorted by number; see ``with_snapshot`` for ``names``.

        Raises:
            TunerError: If the folder that they lie in is none.
        """
        folder = self.path / layout.TRIALS
        if not folder.exists():
            return []
        with explaining_damage(folder):
            check_no_link(folder)
            found = list(with_snapshot(folder, *names).iterdir())
        paths = [path for path in found if layout.is_number(path.name)]
        return sorted(paths, key=lambda path: int(path.name))

    def trial(self, number: int) -> TrialRecord:
        """Read one trial.

        Raises:
            UsageError: If there is no such trial.
            TunerError: If it is damaged.
        """
        trial = self._read(self.trial_path(number))
        if trial is None:
            known = [int(path.name) for path in self.trial_paths()]
            which = f"; they go from {known[0]} to {known[-1]}" if known else ", nor any other yet"
            raise UsageError(f"{self.path}: there is no trial {number}{which}")
        _ = trial.config  # Read now, so that damage shows here.
        return trial

    def reread(self, trial: TrialRecord) -> TrialRecord:
        """Read the current state of a trial; return ``trial`` itself if it cannot be read."""
        try:
            return self._read(self.trial_path(trial.number)) or trial
        except TunerError:
            return trial

    def _read(self, path: AnyPath) -> TrialRecord | None:
        """Read one trial except its configuration; ``None`` while it has no status."""
        with explaining_damage(path):
            check_no_link(path.parent)
            check_no_link(path)
        with explaining_damage(path / layout.STATUS):
            status = read_status(path)
            if status is None:
                return None
            usual = self.record.slots.get("gpus", 0.0)
            gpus = usual if status.gpus is None else status.gpus
            if gpus > MOST_GPUS:
                raise ValueError(f"gpus is {gpus:g}, above {MOST_GPUS:g}")
        history = tuple(read_history(path))
        trial = TrialRecord(
            path=path,
            number=int(path.name),
            status=status,
            history=history,
            gpus=gpus,
            is_val_seen=self.record.data.all_data,
            metric=self.record.search.metric,
            costs=self.record.search.costs,
        )
        return self._measured(trial)

    def _measured(self, trial: TrialRecord) -> TrialRecord:
        """Return a trial whose kept epoch has the run's metric, from its probabilities if needed.

        Raises:
            TunerError: If these are missing or damaged.
        """
        best = trial.best
        if self._val_labels is None or best is None or not trial.is_scored:
            return trial
        if best.value(self.metric) is not None:
            return trial
        labels = self._val_labels()
        try:
            predicted = trial.val_probs().argmax(axis=-1)
            if predicted.shape != labels.shape:
                raise TunerError(f"it is not of {len(labels)} images")
        except TunerError as error:
            raise TunerError(
                f"{trial.path}: was recorded without {self.metric}, which needs its "
                f"{layout.VAL_PROBS}: {error}"
            ) from None
        scores = dataclasses.asdict(class_scores(predicted, labels))
        told = {f"val_{name}": value for name, value in scores.items()}
        history = tuple(
            dataclasses.replace(row, **told) if row is best else row for row in trial.history
        )
        return dataclasses.replace(trial, history=history)

    def trials(self, damage: list[Damage] | None = None) -> list[TrialRecord]:
        """Read all trials, sorted by number.

        Args:
            damage: Receives the damage of trials that cannot be read; these are left out then.

        Raises:
            TunerError: If a trial is damaged, unless ``damage`` takes it.
        """
        trials = []
        for path in self.trial_paths(*layout.RECORDS):
            try:
                trial = self._read(path)
            except TunerError as error:
                if damage is None:
                    raise
                damage.append(Damage.of(error, path, int(path.name)))
                continue
            # A trial whose folder is being created has no status yet.
            if trial is not None:
                trials.append(trial)
        return trials

    def ranked(self, damage: list[Damage] | None = None) -> list[TrialRecord]:
        """Read all trials, the best by ``metric`` on the validation images first.

        Trials that ended badly come after the others, those without a figure last. If validation
        images were trained on, figures on them mean nothing: trials are sorted by number. If the
        search has costs as objectives, trials with a figure have their ``front``.

        Args:
            damage: As in ``trials``.
        """

        def rank(trial: TrialRecord) -> tuple[int, tuple[float, ...], int]:
            best = trial.best
            if best is None:
                return 2, (), trial.number
            group = 0 if trial.is_scored else 1
            key = () if trial.is_val_seen else order_of(best, self.metric)
            return group, key, trial.number

        return _with_fronts(sorted(self.trials(damage), key=rank))

    def top(self, k: int) -> list[TrialRecord]:
        """Return the ``k`` best usable trials, best first, in the order of ``ranked``.

        Raises:
            NoUsableTrials: If there is none.
            UsageError: If there are fewer than ``k``.
        """
        usable = [trial for trial in self.ranked() if trial.is_usable]
        self.require(usable, k)
        return usable[:k]

    def require(self, usable: Sequence[TrialRecord], k: int) -> None:
        """Make sure that there are ``k`` usable trials.

        Raises:
            NoUsableTrials: If there is none.
            UsageError: If there are fewer than ``k``.
        """
        if not usable:
            raise NoUsableTrials(
                f"{self.path}: no trial has left a model to use; "
                f"'{leaderboard_command(self.path)}' says why"
            )
        if len(usable) < k:
            raise UsageError(
                f"--top {k}: {self.path} has only {len(usable)} usable trials (completed, stopped, "
                f"paused or interrupted, checkpoint kept). Give --top {len(usable)} or less."
            )

    def check_unseen_validation(self, *choices: str) -> None:
        """Make sure that validation images may be used to choose or to weigh.

        Args:
            choices: The user's options that would use them, such as ``--method greedy``.

        Raises:
            UsageError: If they were trained on, and there is any such choice.
        """
        if choices and self.record.data.all_data:
            raise UsageError(
                f"{choices[0]}: uses the validation images, and {self.path} was trained on them "
                "(refit --all-data). Leave it out, or take a run without --all-data."
            )

    def prune(self, keep: int) -> None:
        """Remove all checkpoints except those of the ``keep`` best usable trials and of the front.

        A trial that a resumed search would continue keeps its own; its best epoch may be behind it.
        """
        trials = self.ranked()
        kept = {trial.number for trial in [t for t in trials if t.is_usable][:keep]}
        for trial in trials:
            is_kept = trial.number in kept or trial.front == 1
            if not is_kept and trial.status.state not in OPEN:
                trial.checkpoint.unlink(missing_ok=True)

    def write_leaderboard(self) -> None:
        """Write ``leaderboard.csv``, best trial first."""
        write_text(self.path / layout.LEADERBOARD, self.leaderboard_csv())

    def leaderboard_csv(self) -> str:
        """Return the leaderboard as CSV that is safe to open in a spreadsheet, too."""
        rows = [trial.as_row() for trial in self.ranked()]
        head = list(dict.fromkeys(name for row in rows for name in row)) or ["trial", "state"]
        return csv_of(head, ([row.get(name) for name in head] for row in rows))

    def leaderboard(self) -> "pd.DataFrame":
        """Return a table of all trials, best first, with their configurations and figures."""
        return leaderboard(self.ranked())

    def log_test_reading(self, reading: Reading) -> None:
        """Append a reading of the test images to ``test_readings.jsonl``.

        Raises:
            StorageError: If it cannot be written.
        """
        ledger = self.path / layout.TEST_READINGS
        try:
            append_line(ledger, to_json(reading))
        except OSError as error:
            raise StorageError(
                f"{ledger}: cannot be written ({error.strerror or error}), and every reading of "
                "the test images is entered there. Make it writable."
            ) from error

    def test_readings(self) -> list[Reading]:
        """Return the readings of the test images so far.

        Raises:
            TunerError: If their file is damaged.
        """
        path = self.path / layout.TEST_READINGS
        with explaining_damage(path):
            lines = read_text(path).splitlines() if path.exists() else []
            return [from_json(Reading, line, is_strict=False) for line in lines]


def find_run(storage: AnyPath, name: str | None) -> Run:
    """Open a run by its name in ``storage`` or by its folder; without a name, the newest.

    Raises:
        UsageError: If there is no such run.
    """
    if name is None:
        if not (runs := open_runs(storage)):
            if list_runs(storage):
                raise UsageError(f"{storage}: no run here can be read; remove or fix those named")
            raise UsageError(
                f"no run in {storage} yet. Make one:\n"
                f"  {command_line('search', '--space', 'quick', *storage_words(storage))}"
            )
        return max(runs, key=lambda run: run.record.started)
    named = to_path(name)
    places = (storage / name, named) if isinstance(named, Path) else (named,)
    for path in places:
        if (path / layout.RUN).exists():
            return Run.open(with_name(path))
    line = command_line("runs", *storage_words(storage))
    hint = did_you_mean(name, list_runs(storage)) or f"; '{line}' lists them"
    raise UsageError(f"no run {quoted(name)} in {storage}{hint}")


def find_runs(storage: AnyPath, names: Iterable[str]) -> tuple[Run, ...]:
    """Open runs as ``find_run`` does, each only once.

    Raises:
        UsageError: If one of them is not there.
    """
    found = [find_run(storage, name) for name in names]
    return tuple({str(run.path): run for run in found}.values())


def _taken(path: AnyPath) -> UsageError:
    return UsageError(
        f"{path}: there is a run of this name. Choose another --name, or remove the folder."
    )


def check_name_free(storage: AnyPath, name: str) -> None:
    """Make sure that nothing exists where a run of this name would be created.

    Raises:
        UsageError: If there is.
    """
    if layout.why_not_name(name) is None and (storage / name).exists():
        raise _taken(storage / name)


def free_name(storage: AnyPath, stem: str) -> str:
    """Return ``stem``, with the first free number after it if a run has that name already."""
    names = (stem if number == 1 else f"{stem}{number}" for number in count(1))
    return next(name for name in names if not (storage / name).exists())


def list_runs(storage: AnyPath) -> list[str]:
    """Return the names of the runs in ``storage``."""
    return [path.name for path in folders_with(storage, layout.RUN)]


def open_runs(storage: AnyPath) -> list[Run]:
    """Open the runs in ``storage``; unreadable ones are reported on stderr and left out.

    Raises:
        StorageError: If the storage does not answer any more.
    """
    runs = []
    for path in folders_with(storage, layout.RUN):
        try:
            runs.append(Run.open(path))
        except StorageError:
            raise
        except TunerError as error:
            print(f"Left out: {error}", file=sys.stderr)
    return runs


def _with_fronts(ranked: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return trials with the front on which each lies, if there are any fronts."""
    points = {trial.number: trial.point for trial in ranked if trial.costs}
    known = {number: point for number, point in points.items() if point is not None}
    if not known:
        return list(ranked)
    ranks = front_ranks(np.array(list(known.values())))
    fronts = dict(zip(known, map(int, ranks), strict=True))
    return [dataclasses.replace(trial, front=fronts.get(trial.number)) for trial in ranked]


def on_front(ranked: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that no other one beats on one objective without losing on another.

    Args:
        ranked: As ``Run.ranked`` returns them.
    """
    return [trial for trial in ranked if trial.front == 1]


def leader(ranked: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the first of ``ranked`` if it has an accuracy that counts; otherwise ``None``."""
    return ranked[0] if ranked and ranked[0].is_scored else None


def leaderboard(trials: Iterable[TrialRecord]) -> "pd.DataFrame":
    """Return one row per trial, in the order given."""
    import pandas as pd  # Takes a quarter of a second; only a table should wait for it.

    rows = [trial.as_row() for trial in trials]
    # As objects, whole numbers stay whole where some trials have none.
    return pd.DataFrame(rows, columns=None if rows else ["trial", "state"], dtype=object)


def write_parquet(trials: Iterable[TrialRecord], file: BinaryIO) -> None:
    """Write the leaderboard as Parquet, each column of the narrowest type that holds it."""
    # Parquet takes one type a column, which columns of Python objects do not tell.
    table = leaderboard(trials).convert_dtypes()
    mixed = table.select_dtypes("object").columns
    table[mixed] = table[mixed].astype("string")
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    file.write(buffer.getbuffer())


def clock(seconds: float) -> str:
    """Write a time as hours, minutes and seconds: ``1:02:03``."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
