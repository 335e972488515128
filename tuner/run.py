"""The run folder: what a search leaves behind, and the one interface between the commands.

``run.json`` and each trial's ``config.json`` and ``status.json`` are written by the driver;
``history.csv``, ``checkpoint.safetensors`` and ``val_probs.npy`` by the worker of the trial. Every
file is written whole or not at all, and none is ever unpickled.
"""

import csv
import dataclasses
import fcntl
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd

from tuner.config import DataConfig, SearchConfig, TrialConfig
from tuner.errors import NoUsableTrials, TunerError, UsageError
from tuner.files import replacing, write_json, write_text
from tuner.schema import build, did_you_mean, to_plain

SCHEMA_VERSION = 1
"""Of the run folder; a later one is refused."""

TrialState = Literal[
    "running", "completed", "stopped", "diverged", "out_of_memory", "failed", "interrupted"
]
RunStatus = Literal["running", "finished", "interrupted", "failed"]

USABLE: frozenset[TrialState] = frozenset({"completed", "stopped", "interrupted"})
"""States whose checkpoint may enter an ensemble."""
OPEN: frozenset[TrialState] = frozenset({"running", "interrupted"})
"""States from which a resumed search goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRow:
    """One line of ``history.csv``."""

    epoch: int
    """From 1."""
    train_loss: float
    val_loss: float
    """Mean negative log-likelihood of the validation images, in nats."""
    val_accuracy: float
    """Share in [0, 1]."""
    lr: float
    """Learning rate at the end of the epoch."""
    seconds: float
    """Training and validation together."""
    time: float
    """When it ended, in seconds since 1970."""


def best_row(history: Sequence[EpochRow]) -> EpochRow | None:
    """Give the epoch whose weights are kept: highest accuracy, then lowest loss, then earliest."""
    finite = [row for row in history if np.isfinite(row.val_loss)]
    return min(finite, key=lambda row: (-row.val_accuracy, row.val_loss, row.epoch), default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Why a scheduler stopped a trial."""

    rung: int
    """The epoch after which it was judged."""
    value: float
    """Its accuracy there; under the median rule, its best one so far."""
    cut: float
    """The value that had to be reached to go on."""
    peers: int
    """Trials that had come to this epoch before, and that it was compared with."""

    def __str__(self) -> str:
        peers = f"{self.peers} peer{'' if self.peers == 1 else 's'}"
        return f"epoch {self.rung}: {self.value:.4f} below {self.cut:.4f}, {peers}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialStatus:
    """``status.json``: how far a trial has come, and why it ended."""

    state: TrialState
    reason: str = ""
    """Why it ended, in one line."""
    stop: Stop | None = None
    traceback: str = ""
    """The last lines, where it failed."""
    num_parameters: int = 0
    node: str = ""
    """Identifier of the cluster's node that trained it last."""
    started: str = ""
    finished: str = ""
    """ISO 8601, UTC."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One trial, as its folder tells it."""

    path: Path
    number: int
    config: TrialConfig
    status: TrialStatus
    history: tuple[EpochRow, ...]

    @property
    def best(self) -> EpochRow | None:
        """The epoch whose weights are in the checkpoint."""
        return best_row(self.history)

    @property
    def checkpoint(self) -> Path:
        """Weights of the best epoch, with all that is needed to rebuild the model."""
        return self.path / "checkpoint.safetensors"

    @property
    def state(self) -> Path:
        """What the training goes on from; there while the trial has not ended."""
        return self.path / "state.safetensors"

    @property
    def is_usable(self) -> bool:
        """Whether an ensemble may take this trial."""
        return self.status.state in USABLE and self.best is not None and self.checkpoint.exists()

    def val_probs(self) -> np.ndarray[Any, np.dtype[np.float16]]:
        """Read the best epoch's class probabilities of the validation images, shape (N, K).

        Raises:
            TunerError: If the file is missing or damaged.
        """
        path = self.path / "val_probs.npy"
        try:
            return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
        except (OSError, ValueError, EOFError) as error:
            raise TunerError(f"{path}: not usable validation probabilities: {error}") from error

    def as_row(self) -> dict[str, Any]:
        """Give the trial's line of the leaderboard, its config flattened to dotted keys."""
        best = self.best
        config = self.config.to_dict()
        config["max_epochs"] = config.pop("epochs")
        return {
            "trial": self.number,
            "model": self.config.model.family,
            "state": self.status.state,
            "accuracy": best.val_accuracy if best else None,
            "loss": best.val_loss if best else None,
            "best_epoch": best.epoch if best else None,
            "epochs": len(self.history),
            "seconds": round(sum(row.seconds for row in self.history), 3),
            "parameters": self.status.num_parameters,
            "reason": self.status.reason,
            **flatten(config),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """``run.json``: what was asked for, on which data, with what, and how it went."""

    schema_version: int = SCHEMA_VERSION
    name: str
    command: str
    space: str
    """The space file, as the user named it."""
    search: SearchConfig
    data: DataConfig
    data_dir: str
    data_fingerprint: str
    split_fingerprint: str
    num_train: int
    num_val: int
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str = ""
    hardware: dict[str, Any] = field(default_factory=dict)
    status: RunStatus = "running"
    started: str = ""
    finished: str = ""
    """ISO 8601, UTC."""
    active_seconds: float = 0.0
    """Time spent searching; the time between an interrupt and its resume is not in it."""


class Run:
    """A run folder."""

    def __init__(self, path: Path, record: RunRecord) -> None:
        self.path = path
        self.record = record

    @classmethod
    def create(cls, path: Path, record: RunRecord, space: str) -> Self:
        """Make the folder of a new run, with the space as resolved.

        Raises:
            UsageError: If a run, or anything else, is there already.
        """
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise UsageError(
                f"{path}: there is a run of this name. Choose another --name, or remove the folder."
            ) from None
        except OSError as error:
            raise UsageError(
                f"{path}: cannot make the run folder: {error.strerror}. Choose another --storage."
            ) from None
        run = cls(path, record)
        write_text(path / "space.yaml", space)
        run.update()
        return run

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the run in folder ``path``.

        Raises:
            UsageError: If there is none, or it was written by a later version.
            TunerError: If it is damaged.
        """
        if not (path / "run.json").exists():
            raise UsageError(f"{path}: no run here (no run.json)")
        with _explaining_damage(path / "run.json"):
            plain = json.loads((path / "run.json").read_text())
            is_later = plain["schema_version"] > SCHEMA_VERSION
        if is_later:
            raise UsageError(f"{path}: written by a later cifar-tune; upgrade to read it")
        with _explaining_damage(path / "run.json"):
            plain["search"] = build(SearchConfig, plain["search"], "search")
            plain["data"] = build(DataConfig, plain["data"], "data")
            return cls(path, RunRecord(**plain))

    def update(self, **changes: Any) -> None:
        """Change entries of the record and write ``run.json``."""
        self.record = dataclasses.replace(self.record, **changes)
        write_json(self.path / "run.json", to_plain(self.record))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other searches out of this folder until the block, or the process, ends.

        Raises:
            UsageError: If another process is searching this run.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"{self.path}: another process is searching this run; wait for it, or stop it"
                ) from None
            yield

    def trial_path(self, number: int) -> Path:
        """Give the folder of trial ``number``."""
        return self.path / "trials" / f"{number:04d}"

    def trial(self, number: int) -> TrialRecord:
        """Read one trial.

        Raises:
            UsageError: If there is no such trial.
            TunerError: If it is damaged.
        """
        path = self.trial_path(number)
        if not (path / "status.json").exists():
            raise UsageError(f"{self.path}: there is no trial {number}")
        with _explaining_damage(path):
            config = json.loads((path / "config.json").read_text())
            status = json.loads((path / "status.json").read_text())
            return TrialRecord(
                path=path,
                number=number,
                config=TrialConfig.from_dict(config),
                status=build(TrialStatus, status, "status"),
                history=tuple(read_history(path)),
            )

    def trials(self) -> list[TrialRecord]:
        """Read all trials, by number."""
        # A trial whose folder is being made has no status yet.
        begun = (self.path / "trials").glob("[0-9]*/status.json")
        names = (path.parent.name for path in begun)
        return [self.trial(number) for number in sorted(int(n) for n in names if n.isdecimal())]

    def ranked(self) -> list[TrialRecord]:
        """Read all trials, best validation accuracy first, those without a figure last."""

        def rank(trial: TrialRecord) -> tuple[float, float, int]:
            best = trial.best
            return (
                (-best.val_accuracy, best.val_loss, trial.number) if best else (1, 0, trial.number)
            )

        return sorted(self.trials(), key=rank)

    def top(self, k: int) -> list[TrialRecord]:
        """Give the ``k`` best usable trials by validation accuracy, best first.

        Raises:
            NoUsableTrials: If there is none.
            UsageError: If there are fewer than ``k``.
        """
        usable = [trial for trial in self.ranked() if trial.is_usable]
        if not usable:
            raise NoUsableTrials(
                f"{self.path}: no trial has left a model to use; 'cifar-tune leaderboard' says why"
            )
        if len(usable) < k:
            raise UsageError(
                f"--top {k}: {self.path} has only {len(usable)} usable trials (completed, stopped "
                f"or interrupted, checkpoint kept). Give --top {len(usable)} or less."
            )
        return usable[:k]

    def prune(self, keep: int) -> None:
        """Remove all checkpoints but those of the ``keep`` best usable trials."""
        kept = {trial.number for trial in [t for t in self.ranked() if t.is_usable][:keep]}
        for trial in self.trials():
            if trial.number not in kept:
                trial.checkpoint.unlink(missing_ok=True)

    def write_leaderboard(self) -> None:
        """Write ``leaderboard.csv``, best trial first."""
        with replacing(self.path / "leaderboard.csv") as temporary:
            leaderboard(self.ranked()).to_csv(temporary, index=False)

    def log_test_reading(self, entry: dict[str, Any]) -> None:
        """Enter one reading of the test images in ``test_readings.jsonl``."""
        with (self.path / "test_readings.jsonl").open("a") as file:
            file.write(json.dumps({"at": now(), **entry}, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _explaining_damage(path: Path) -> Iterator[None]:
    """Say that ``path`` is damaged when what is read from it is not what was written."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise TunerError(f"{path}: damaged or unreadable: {error}") from error


def find_run(storage: Path, name: str | None) -> Run:
    """Open a run by its name in ``storage`` or its folder; without a name, the newest.

    Raises:
        UsageError: If there is no such run.
    """
    names = list_runs(storage)
    if name is None:
        if not names:
            raise UsageError(f"no run in {storage} yet. Make one: cifar-tune search --space quick")
        return max((Run.open(storage / n) for n in names), key=lambda run: run.record.started)
    for path in (storage / name, Path(name)):
        if (path / "run.json").exists():
            return Run.open(path)
    hint = did_you_mean(name, names) or "; 'cifar-tune runs' lists them"
    raise UsageError(f"no run '{name}' in {storage}{hint}")


def list_runs(storage: Path) -> list[str]:
    """Give the names of the runs in ``storage``."""
    return sorted(path.parent.name for path in storage.glob("*/run.json"))


def leaderboard(trials: Iterable[TrialRecord]) -> pd.DataFrame:
    """Give one row a trial, in the order given."""
    rows = [trial.as_row() for trial in trials]
    # As objects, whole numbers stay whole where some trials have none.
    return pd.DataFrame(rows, columns=None if rows else ["trial", "state"], dtype=object)


def write_trial(path: Path, config: TrialConfig) -> None:
    """Write ``config.json`` of a new trial."""
    write_json(path / "config.json", config.to_dict())


def write_status(path: Path, status: TrialStatus) -> None:
    """Write ``status.json`` of a trial."""
    write_json(path / "status.json", to_plain(status))


def write_history(path: Path, history: Iterable[EpochRow]) -> None:
    """Write ``history.csv`` of a trial."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(EpochRow))
    writer.writerows(dataclasses.astuple(row) for row in history)
    write_text(path / "history.csv", text.getvalue())


def read_history(path: Path) -> list[EpochRow]:
    """Read ``history.csv`` of a trial; empty before its first epoch has ended."""
    try:
        text = (path / "history.csv").read_text()
    except FileNotFoundError:
        return []
    return [
        EpochRow(epoch=int(row.pop("epoch")), **{name: float(value) for name, value in row.items()})
        for row in csv.DictReader(io.StringIO(text))
    ]


def flatten(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def now() -> str:
    """Give the present time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
