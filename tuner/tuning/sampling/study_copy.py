"""A copy of Optuna's study in a file or a database, where others can look at it.

The study that the sampler learns from is in memory. A separate thread updates the copy: a storage
that is locked, gone or damaged does not affect the search, and the copy catches up when it is back.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.engine import make_url

from tuner.config import Metric
from tuner.errors import UsageError, first_line
from tuner.passwords import hide_passwords
from tuner.storage.paths import AnyPath, lies_in
from tuner.tuning.request import study_file
from tuner.tuning.sampling.shown import MARK as MARK_PAUSED
from tuner.tuning.sampling.study import direction_of

MARK = "run"
"""Attribute of a study: the run that made it."""
RETRY_SECONDS = 2.0
PATIENCE_SECONDS = 10.0
"""Seconds after which a failing storage is reported or, at the end of a search, given up."""


# A generated repr would show a password in the place.
@dataclass(frozen=True, slots=True, repr=False)
class StudyPlace:
    """A journal file or the URL of a database, and the study of a run in it."""

    place: str
    """The file or the URL, as the user gave it."""
    name: str
    """Name of the study."""
    mark: str
    """Identifies the run uniquely."""
    is_ours: bool = False
    """Whether a study without a mark was made by this run."""
    metric: Metric = "accuracy"
    """Metric of the study."""

    def __str__(self) -> str:
        return hide_passwords(self.place)

    def check_free(self) -> BaseStorage:
        """Open the storage, and refuse a study of that name that this run did not make.

        Raises:
            UsageError: If there is one, or the storage cannot be used.
        """
        storage = open_storage(self.place)
        if self._is_foreign(storage):
            raise UsageError(
                f"--study-storage {self}: has a study '{self.name}' already, which this run has "
                "not made. Choose another --name or another storage."
            )
        return storage

    def begin(self) -> BaseStorage:
        """Make an empty study, replacing one that this run made before.

        Raises:
            UsageError: As ``check_free``.
        """
        storage = self.check_free()
        if self.name in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=self.name, storage=storage)
        self._make(storage)
        return storage

    def study(self, storage: BaseStorage) -> optuna.Study:
        """Return the study of this run; an empty one if the storage has lost it.

        Raises:
            UsageError: If another one is there by now.
        """
        if self._is_foreign(storage):
            raise UsageError(f"{self}: another study '{self.name}' has taken its place")
        if self.name not in optuna.get_all_study_names(storage):
            return self._make(storage)
        return optuna.load_study(study_name=self.name, storage=storage)

    def open(self) -> BaseStorage:
        """Open a storage that existed before.

        Raises:
            FileNotFoundError: If its file is gone.
            UsageError: If it cannot be used.
        """
        if (file := self.file) and not file.exists():
            raise FileNotFoundError("the file is gone")
        return open_storage(self.place)

    @property
    def file(self) -> Path | None:
        """The file that holds it; ``None`` for a server."""
        if "://" not in self.place:
            return Path(self.place)
        url = make_url(self.place)
        is_file = url.get_backend_name() == "sqlite" and url.database
        return Path(str(url.database)) if is_file else None

    def _make(self, storage: BaseStorage) -> optuna.Study:
        study = optuna.create_study(
            storage=storage, study_name=self.name, direction=direction_of(self.metric)
        )
        study.set_user_attr(MARK, self.mark)
        return study

    def _is_foreign(self, storage: BaseStorage) -> bool:
        if self.name not in optuna.get_all_study_names(storage):
            return False
        attrs = optuna.load_study(study_name=self.name, storage=storage).user_attrs
        return attrs[MARK] != self.mark if MARK in attrs else not self.is_ours


class StudyCopy:
    """Copies a study's trials into a storage, as soon as the storage allows it.

    Args:
        study: The study, in memory.
        place: Where to keep the copy; an empty study is made there.
        say: Prints a line for the user.

    Raises:
        UsageError: If the storage cannot be used, or holds another study of that name.
    """

    def __init__(self, study: optuna.Study, place: StudyPlace, say: Callable[[str], None]) -> None:
        self._study = study
        self._place = place
        self._say = say
        self._num_shown = 0
        """Number of trials that may be copied; the next one is still being drawn."""
        self._has_news = threading.Event()
        self._is_over = threading.Event()
        self._is_level = threading.Event()
        self._problem = ""
        """Why the copy is behind; empty while it is not."""
        self._copy: _Copied | None = _Copied(place, place.begin())
        self._thread = threading.Thread(target=self._follow, name="study-copy", daemon=True)
        self._thread.start()

    def show(self) -> None:
        """Start copying the current state of the study in the background."""
        self._num_shown = len(self._study.get_trials(deepcopy=False))
        self._is_level.clear()
        self._has_news.set()

    def wait(self, seconds: float) -> bool:
        """Wait until the copy is up to date; return whether it is."""
        return self._is_level.wait(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.show()
        is_level = self.wait(PATIENCE_SECONDS)
        self._is_over.set()
        self._has_news.set()
        if not is_level:
            self._say(
                f"The study in {self._place} is not complete ({self._problem or 'no answer'}); "
                f"search --resume --study-storage {self._place} rewrites it."
            )

    def _follow(self) -> None:
        failing_since = None
        is_told = False
        while not self._is_over.is_set():
            self._has_news.wait()
            self._has_news.clear()
            try:
                self._catch_up()
            except Exception as error:  # A database raises anything.
                self._copy = None
                self._problem = _first_line(error)
                failing_since = failing_since or time.monotonic()
                if not is_told and time.monotonic() - failing_since >= PATIENCE_SECONDS:
                    is_told = True
                    self._say(
                        f"The study storage {self._place} fails ({self._problem}); the search goes "
                        "on without it, and completes the study when it is back."
                    )
                self._is_over.wait(RETRY_SECONDS)
                self._has_news.set()
                continue
            if is_told:
                self._say(f"The study storage {self._place} is back, and the study complete.")
            failing_since, is_told, self._problem = None, False, ""
            if not self._has_news.is_set():
                self._is_level.set()

    def _catch_up(self) -> None:
        if self._copy is None or self._copy.is_stale():
            self._copy = _Copied(self._place, self._place.open())
        self._copy.catch_up(self._study.get_trials(deepcopy=False)[: self._num_shown])


class _Copied:
    """The copy of a study in an open storage, and how far it has come."""

    def __init__(self, place: StudyPlace, storage: BaseStorage) -> None:
        self._file = place.file
        self._storage = storage
        study = place.study(storage)
        self._study_id = storage.get_study_id_from_name(study.study_name)
        trials = study.get_trials(deepcopy=False)
        self._num_trials = len(trials)
        self._running = {
            trial.number: set(trial.intermediate_values)
            for trial in trials
            if not trial.state.is_finished()
        }
        """Number of a trial that has not ended -> its steps that are in the copy."""
        self._seen = self._look()

    def is_stale(self) -> bool:
        """Whether the file was replaced or truncated: open handles would write to the old one."""
        seen = self._look()
        is_same = seen[:2] == self._seen[:2] and seen[2] >= self._seen[2]
        self._seen = seen
        return not is_same

    def catch_up(self, trials: list[FrozenTrial]) -> None:
        """Copy what is new in the original's trials; a paused trial is running in the copy."""
        for trial in trials[self._num_trials :]:
            self._storage.create_new_trial(self._study_id, _without_own_attrs(trial))
            self._num_trials += 1
            if _goes_on(trial):
                self._running[trial.number] = set(trial.intermediate_values)
        for number, told in sorted(self._running.items()):
            trial = trials[number]
            there = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
            for step in sorted(trial.intermediate_values.keys() - told):
                value = trial.intermediate_values[step]
                self._storage.set_trial_intermediate_value(there, step, value)
                told.add(step)
            if not _goes_on(trial):
                self._storage.set_trial_state_values(there, trial.state, trial.values)
                del self._running[number]

    def _look(self) -> tuple[int, int, int]:
        if self._file is None:
            return (0, 0, 0)
        try:
            info = self._file.stat()
        except FileNotFoundError:
            raise FileNotFoundError("the file is gone") from None
        return info.st_dev, info.st_ino, info.st_size


def _goes_on(trial: FrozenTrial) -> bool:
    """Whether a trial has not ended, or is paused."""
    return not trial.state.is_finished() or MARK_PAUSED in trial.user_attrs


def _without_own_attrs(trial: FrozenTrial) -> FrozenTrial:
    """Return a copy without what Optuna's samplers store with a trial, which can be large."""
    goes_on = _goes_on(trial)
    copy = create_trial(
        state=TrialState.RUNNING if goes_on else trial.state,
        values=None if goes_on else trial.values,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={key: value for key, value in trial.user_attrs.items() if key != MARK_PAUSED},
        intermediate_values=trial.intermediate_values,
    )
    copy.datetime_start = trial.datetime_start
    copy.datetime_complete = None if goes_on else trial.datetime_complete
    return copy


def why_not_continued(place: str, storage: AnyPath) -> str:
    """Return why the record of a run does not lead to this place by itself; empty if it does.

    It leads only to a journal or an SQLite database that exists in its storage; links are followed.
    """
    if (file := study_file(place)) is None:
        return f"it is not a file in {storage}"
    try:
        if not file.is_file():
            return "there is no such file"
        return "" if lies_in(file, storage) else f"it is outside {storage}"
    except OSError as error:
        return f"its file cannot be found ({error.strerror})"


def open_storage(place: str) -> BaseStorage:
    """Open the journal file or, if ``place`` is a URL, the database where studies are kept.

    Raises:
        UsageError: If it cannot be opened, or holds something else.
    """
    try:
        if "://" in place:
            return RDBStorage(place)
        # Optuna would only notice missing write permission when the first trial starts.
        with Path(place).open("ab"):
            storage = JournalStorage(JournalFileBackend(place))
        _cut_unfinished_line(Path(place))
        # It ignores a last line that is not an entry, or the only one if that is cut off, and
        # appends after it.
        for line in Path(place).read_bytes().splitlines(keepends=True)[-1:]:
            if "op_code" not in json.loads(line) or not line.endswith(b"\n"):
                raise ValueError("it does not end as a journal does")
        return storage
    except Exception as error:
        # A file of another kind raises KeyError, TypeError or ValueError; a database, anything.
        raise UsageError(
            f"--study-storage {hide_passwords(place)}: cannot be used ({_first_line(error)}). Give "
            "a file in a folder that exists, or the URL of a database such as sqlite:///study.db."
        ) from None


def _cut_unfinished_line(journal: Path) -> None:
    """Remove the last line of a journal if a full disk, or a kill, cut it off.

    A file whose line before is no entry of a journal may be anything, and is left alone.
    """
    *_, before, last = [b"", b"", *journal.read_bytes().splitlines(keepends=True)]
    if last.endswith(b"\n") or not before or "op_code" not in json.loads(before):
        return
    # Others write a line while they hold this lock, so that it is not one that is being written.
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)
    finally:
        lock.release()


def _first_line(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else None
    reason = hide_passwords(first_line(cause or error))
    return f"{type(cause or error).__name__}: {reason}"
