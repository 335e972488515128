"""``run.json``: what was searched, on what, and how it ended; and readings of labelled images."""

import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from tuner.config import (
    Amount,
    CompileMode,
    Count,
    DataConfig,
    NonNegative,
    RefitConfig,
    SearchConfig,
    Target,
)
from tuner.passwords import hide_passwords
from tuner.schema import Bounds

SCHEMA_VERSION = 2
"""Version of the run folder; a later one is refused. In version 1, ``asha`` was ``asha-stop``."""

RunStatus = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherRecord:
    """The ensemble that teaches the trials of a run."""

    ensemble: str
    """``RUN/NAME``."""
    path: str
    """The absolute path of its folder, or its URI."""
    sha256: str
    """SHA-256 of its ``ensemble.json``, which holds those of its members."""
    members: tuple[str, ...]
    """Their names, such as ``trial 3``."""
    num_parameters: Amount | None = None
    """Parameters of all networks; ``None``, like the next, until it has predicted the images."""
    probs_sha256: str | None = None
    """SHA-256 of ``teacher.safetensors``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """``run.json``: the request, its data and environment, and the outcome."""

    schema_version: Annotated[int, Bounds(ge=1)] = SCHEMA_VERSION
    name: str
    command: str
    space: str
    """The space file, as the user named it."""
    search: SearchConfig
    data: DataConfig
    data_dir: str
    data_fingerprint: str
    split_fingerprint: str
    refit: RefitConfig | None = None
    """What is retrained, if the run is a refit and not a search."""
    teacher: TeacherRecord | None = None
    """The ensemble that its trials learn from, in addition to the labels."""
    study_storage: str | None = None
    """Where Optuna's study of the run is stored, in addition to this folder."""
    taught_by: str | None = None
    """The earlier run whose trials taught the sampler."""
    keep: Amount | None = None
    """Number of checkpoints kept when the run ends; ``None`` in runs of earlier versions."""
    gpus_per_trial: NonNegative | None = None
    cpus_per_trial: NonNegative | None = None
    """Resources per trial of a refit, if the user set them; a search has them in its space."""
    concurrent: Amount | None = None
    """Maximum number of trials at once, if the user set it."""
    compile_mode: CompileMode | None = None
    """Whether networks are compiled; ``None`` in runs of earlier versions."""
    max_failures: Amount | None = None
    """Number of workers that a trial may lose; ``None`` in runs of earlier versions."""
    log: tuple[Target, ...] = ()
    """Other programs to which the trials are logged."""
    num_train: Amount
    num_val: Count
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str = ""
    hardware: dict[str, Any] = field(default_factory=dict)
    slots: dict[str, Amount | NonNegative] = field(default_factory=dict)
    """``count`` trials train at once, each on this many ``cpus`` and ``gpus``, unless its status
    says otherwise."""
    budget_seconds: NonNegative | None = None
    budget_gpu_hours: NonNegative | None = None
    """What the search may spend, summed over resumes; ``None`` for no limit."""
    status: RunStatus = "running"
    reason: str = ""
    """Why the search ended by itself before its budget was spent."""
    started: str = ""
    finished: str = ""
    """ISO 8601, UTC."""
    active_seconds: NonNegative = 0.0
    """Search time in seconds, without the time between an interrupt and its resume."""
    save_seconds: NonNegative = 10.0
    """Maximum seconds between two saves of a running trial, unless an epoch takes longer."""
    lost_gpu_seconds: NonNegative = 0.0
    """GPU time of epochs that were cut off, or lost with their worker and trained again."""

    def without_passwords(self) -> "RunRecord":
        """Return the record as it is written, with the password of the study's database hidden."""
        if self.study_storage is None:
            return dataclasses.replace(self, command=hide_passwords(self.command))
        hidden = hide_passwords(self.study_storage)
        command = self.command.replace(self.study_storage, hidden)
        return dataclasses.replace(self, study_storage=hidden, command=hide_passwords(command))


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A line of a ledger, such as ``test_readings.jsonl``: one reading of labelled images."""

    at: str = field(default_factory=lambda: now())
    """ISO 8601, UTC."""
    by: str
    """The command that read them."""
    name: str = ""
    """The ensemble's name."""
    method: str = ""
    trials: tuple[int, ...] = ()
    """Its members."""
    compared: tuple[str, ...] = ()
    """The methods that were scored with the same reading."""
    tta: str = "none"
    fingerprint: str = ""
    """Fingerprint of the images."""
    data: str | None = None
    part: str | None = None
    images: Amount | None = None
    unreadable: Amount | None = None
    accuracy: float | None = None
    nll: float | None = None
    corrupted_accuracy: float | None = None
    """The input of ``evaluate``, from ``data`` on, and its results."""


def now() -> str:
    """Return the present time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
