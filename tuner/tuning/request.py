"""A user's requests: the options of any run, and those of a search."""

import hashlib
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from tuner.config import DATA_DIR, SPACE_KEYS, CompileMode, DataConfig, SearchConfig, Target
from tuner.data.datasets import find_source
from tuner.data.known import KNOWN
from tuner.data.splits import Splits, load_splits
from tuner.errors import UsageError
from tuner.monitor.steps import step
from tuner.monitor.terminal import tell
from tuner.passwords import hide_passwords
from tuner.run.layout import why_not_name
from tuner.run.run import Run
from tuner.run.run_record import SCHEMA_VERSION, RunRecord, TeacherRecord
from tuner.schema import build, quoted, to_plain
from tuner.space import SearchSpace
from tuner.space.source import said_of
from tuner.storage.paths import AnyPath, lies_in
from tuner.tuning.resources import CapacityPlan

KEEP = 20
"""Default number of checkpoints of a search that stay on disk."""
KEPT = (
    *("keep", "gpus_per_trial", "cpus_per_trial", "concurrent", "compile_mode", "max_failures"),
    *("save_seconds", "log"),
)
"""Fields of ``RunRequest`` that a run records, and reuses when resumed unless they are given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRequest(ABC):
    """The options that a search and a refit have in common."""

    space_name: str
    search: SearchConfig
    data: DataConfig
    data_dir: Path
    storage: AnyPath
    name: str
    command: str
    keep: int
    """Number of checkpoints that stay on disk when the run ends."""
    resume: bool = False
    """Whether to resume the run of that name instead of creating it."""
    seconds: float = math.inf
    """Limit of the search time in seconds, summed over resumes; then running trials end at once."""
    gpu_hours: float = math.inf
    """Limit of the GPU hours held by training trials, summed over resumes."""
    save_seconds: float = 10.0
    """Seconds of training that a trial loses at most with its worker, unless an epoch is longer."""
    log: tuple[Target, ...] = ()
    """Where to record the trials in addition to TensorBoard's files."""
    max_failures: int = 3
    """Number of workers that a trial may lose before it counts as failed."""
    trust_code: bool = False
    """Whether to run code that came with a run even if it is not known here."""
    compile_mode: CompileMode = "auto"
    address: str | None = None
    gpus_per_trial: float | None = None
    cpus_per_trial: float | None = None
    concurrent: int | None = None
    given: frozenset[str] = frozenset()
    """Names of the fields that the user gave; a resumed run's record may hold others."""

    def __post_init__(self) -> None:
        # An existing run is resumed under the name that it has.
        if not self.resume and (reason := why_not_name(self.name)):
            raise UsageError(
                f"--name {quoted(self.name)} {reason}; write one such as first, and give --storage "
                "for a folder"
            )

    @property
    @abstractmethod
    def space_text(self) -> str:
        """Text of the run's ``space.yaml``."""

    @property
    def kept_entries(self) -> dict[str, Any]:
        """Entries of the run's record that define how its trials run, and its budget."""
        budgets = {"budget_seconds": self.seconds, "budget_gpu_hours": self.gpu_hours}
        return {name: getattr(self, name) for name in KEPT} | {
            name: budget if math.isfinite(budget) else None for name, budget in budgets.items()
        }

    @property
    @abstractmethod
    def record_entries(self) -> dict[str, Any]:
        """Entries of the run's record that only a run of this kind has."""


def study_file(place: str) -> Path | None:
    """Return the journal or SQLite database of a study; ``None`` if it is at another URL.

    A URL with options can load any dialect or plugin of SQLAlchemy, and is never a file.
    """
    name = place.removeprefix("sqlite:///")
    return None if not name or "://" in name or "?" in name else Path(name)


def absolute_place(place: str) -> str:
    """Return the file or URL of a study, with a file as an absolute path.

    A run can be resumed in another folder than the one where it began.
    """
    if (file := study_file(place)) is None:
        return place
    prefix = "sqlite:///" if place.startswith("sqlite:///") else ""
    return f"{prefix}{file.absolute()}"


def data_dir_of(record: RunRecord) -> Path:
    """Return a run's data folder or, if this user cannot write there, ``DATA_DIR``.

    It may be another user's, or on another machine. A relative one, which no search records, may
    have come with the run, and with it other images.
    """
    folder = Path(record.data_dir)
    # Path.is_dir() would raise an error if a folder above may not be entered.
    is_usable = os.access(folder, os.W_OK | os.X_OK) and folder.is_dir()
    return folder if is_usable and folder.is_absolute() else DATA_DIR


def as_before(resumed: Run | None, asked: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """Return the given options, completed with those of the resumed run and the defaults.

    Args:
        resumed: The run to resume, if any.
        asked: Fields of ``RunRequest``; ``None`` or empty where the user gave nothing.
        defaults: Values of fields that neither of the two sets.
    """
    given = {name: getattr(resumed.record, name) for name in KEPT} if resumed else {}
    said = {name: value for name, value in asked.items() if value not in (None, ())}
    known = {name: value for name, value in (given | said).items() if value is not None}
    return defaults | known | {"given": frozenset(said)}


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchRequest(RunRequest):
    """A user's request for a search."""

    space: SearchSpace
    warm_start: tuple[Run, ...] = ()
    """Earlier runs; see ``tuner.tuning.warm_start``."""
    study_storage: str | None = None
    """A journal file or the URL of a database where Optuna's study can be watched."""
    teacher: TeacherRecord | None = None
    """The ensemble that new trials learn from; a resumed run takes it from its record."""

    @property
    def space_text(self) -> str:
        """See ``RunRequest``."""
        return self.space.resolved()

    @property
    def record_entries(self) -> dict[str, Any]:
        """See ``RunRequest``."""
        entries = {
            "study_storage": self.study_storage and absolute_place(self.study_storage),
            "teacher": self.teacher,
            "taught_by": self.taught_by,
        }
        return {name: entry for name, entry in entries.items() if entry}

    @property
    def taught_by(self) -> str | None:
        """The run that teaches the sampler: its name if it is in this storage, else its path."""
        if not self.search.learns or len(self.warm_start) != 1:
            return None
        path = self.warm_start[0].path.absolute()
        is_beside = path.parent == self.storage.absolute() and lies_in(path, self.storage)
        return path.name if is_beside and not why_not_name(path.name) else str(path)

    @property
    def outside_words(self) -> tuple[str, ...]:
        """The options that a resumed run needs again: its record may lead only into its storage."""
        words: list[str] = []
        if (place := self.study_storage) and place == hide_passwords(place):
            words += ["--study-storage", place]
        if (place := self.taught_by) and why_not_name(place):
            words += ["--warm-start", place]
        return tuple(words)

    def plan_path(self, splits: Splits, capacity: CapacityPlan) -> AnyPath:
        """Return the path of this search's plan; its key covers everything that affects the cost.

        Args:
            splits: Images of the search.
            capacity: Resources of its trials.
        """
        fixed = {
            "space": self.space.resolved(),
            "search": to_plain(self.search),
            "data": [splits.fingerprint, splits.split_fingerprint, len(splits.train)],
            "slots": capacity.to_plain(),
            "budget": [str(self.seconds), str(self.gpu_hours)],
            "compile": self.compile_mode,
            # The same settings may mean another search in another version.
            "version": SCHEMA_VERSION,
        }
        text = json.dumps(fixed, sort_keys=True)
        key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        # No run can have this name.
        return self.storage / ".plans" / f"{key}.json"


def read_splits(request: RunRequest, console: Console) -> Splits:
    """Load the images of a run, and print a summary and any notes on them.

    Raises:
        DataError: If they cannot be read.
    """
    with step(console, f"Reading {request.data.source}"):
        splits = load_splits(request.data, request.data_dir)
    images = f"{len(splits.train)} training images, {len(splits.val)} validation images"
    if splits.num_folds:
        images = f"{len(splits.train)} images in {splits.num_folds} folds"
    tell(console, f"{splits.source}: {images}, {splits.num_classes} classes")
    for note in splits.notes:
        tell(console, f"{splits.source}: {note}")
    return splits


def load_searched(
    load: Callable[[Sequence[str]], SearchSpace], overrides: Sequence[str], resumed: Run | None
) -> SearchSpace:
    """Load a space; a resumed run of version 1 keeps stopping its trials, unless overridden.

    In runs and spaces of that version, ``asha`` means what is now ``asha-stop``.

    Args:
        load: Loads the space with the given overrides.
        overrides: As in ``load_space``.
        resumed: The run to resume, if any.
    """
    space = load(overrides)
    key = SPACE_KEYS["scheduler"]
    if resumed is None or resumed.record.schema_version > 1 or key in said_of(overrides):
        return space
    schedulers = space.search.scheduler, resumed.record.search.scheduler
    return load([f"{key}=asha-stop", *overrides]) if schedulers == ("asha", "asha-stop") else space


def make_search_request(
    space: SearchSpace,
    *,
    stem: str,
    storage: AnyPath,
    name: str | None = None,
    resumed: Run | None = None,
    data_settings: Mapping[str, Any] | None = None,
    data_dir: Path | None = None,
    **asked: Any,
) -> SearchRequest:
    """Make a request from the user's options and what is already known.

    Args:
        space: The space to search, with overriding options already applied.
        stem: Prefix of the run's name if ``name`` is not given; the time follows.
        storage: Folder of the runs.
        name: Name of the run.
        resumed: The run to resume, which determines name, storage and images.
        data_settings: Fields of ``DataConfig`` that override the space; ``None`` where the user
            gave nothing.
        data_dir: Where downloads and decoded images are kept; ``None`` for the resumed run's
            folder if it can be used here, else ``DATA_DIR``.
        asked: Other fields of ``SearchRequest``; see ``as_before``.

    Raises:
        UsageError: If a run would go on with images that are prepared otherwise, by another
            metric or other objectives, if the space wants a teacher and there is none, or if
            validation images are asked for in two ways.
    """
    has_teacher = asked.get("teacher") or (resumed and resumed.record.teacher)
    if space.has_key("distill") and not has_teacher:
        raise UsageError(
            "space.distill: there is no teacher in a search; leave it out, or name the space with "
            "cifar-tune distill --into"
        )
    if resumed and space.search.metric != (metric := resumed.record.search.metric):
        raise UsageError(
            f"--resume: {resumed.path} uses {metric}, and a run keeps its metric; write "
            f"--metric {metric}, or start a new run with --warm-start {resumed.path.name}"
        )
    if resumed and space.search.costs != resumed.record.search.costs:
        raise UsageError(
            f"--resume: {resumed.path} uses {resumed.record.search.objectives}, and a run "
            "keeps its objectives; leave them as they are, or start a new run with --warm-start "
            f"{resumed.path.name}"
        )
    known = resumed.record.data if resumed else DataConfig(resize="auto")
    said = {k: v for k, v in (data_settings or {}).items() if v is not None}
    settings = {**space.data, **said}
    if {"folds", "val_fraction"} <= settings.keys():
        raise UsageError(
            "--folds: all images are validated on, and not a share of them; leave val_fraction out"
        )
    source = known.source if space.dataset is None else find_source(space.dataset)
    if resumed:
        # All images of a known source are square.
        if settings.get("resize") == "auto" or source in KNOWN:
            settings.pop("resize", None)
        if source not in KNOWN and not os.access(source, os.F_OK):
            source = known.source
    data = build(DataConfig, {**to_plain(known), **settings, "source": source}, "dataset")
    # The same images may have moved; their fingerprint shows whether they are the same.
    if resumed and replace(data, source=known.source) != known:
        raise UsageError(f"--resume: the images of {resumed.path} are fixed; start a new run")
    if data_dir is None:
        data_dir = data_dir_of(resumed.record) if resumed else DATA_DIR
    if name is None:
        name = f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
    return SearchRequest(
        space=space,
        search=space.search,
        data=data,
        data_dir=data_dir.absolute(),
        storage=resumed.path.parent if resumed else storage,
        name=resumed.path.name if resumed else name,
        resume=resumed is not None,
        **as_before(resumed, asked, keep=KEEP),
    )
