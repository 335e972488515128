"""A trial's folder: its configuration, its epochs, how it ended.

``config.json`` and ``status.json`` are written by the driver; ``history.csv``,
``checkpoint.safetensors`` and ``val_probs.npy`` by the worker that trains the trial.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from tuner.config import TrialConfig
from tuner.errors import TunerError, UsageError
from tuner.schema import build, to_plain
from tuner.storage.files import replacing, write_json, write_text
from tuner.storage.paths import AnyPath, on_disk, read_text

TrialState = Literal[
    "running", "completed", "stopped", "diverged", "out_of_memory", "failed", "interrupted"
]
USABLE: frozenset[TrialState] = frozenset({"completed", "stopped", "interrupted"})
"""States whose checkpoint may enter an ensemble."""
ENDED_BADLY: frozenset[TrialState] = frozenset({"diverged", "out_of_memory", "failed"})
"""States whose accuracy, if there is any, nothing should build on."""
OPEN: frozenset[TrialState] = frozenset({"running", "interrupted"})
"""States from which a resumed search goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochMetrics:
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


VAL_PROBS = "val_probs.npy"
COLUMNS = tuple(field.name for field in dataclasses.fields(EpochMetrics))


def threads_of(cpus: float) -> int:
    """Return the threads of a trial: never more than its CPUs.

    Two trials of one thread each train 1.26 times as many images as one of two threads; two of two
    threads on the same two cores 0.69 times.
    """
    return max(1, int(cpus))


def best_row(history: Sequence[EpochMetrics]) -> EpochMetrics | None:
    """Return the best epoch: highest accuracy, then lowest loss, then earliest."""
    finite = [row for row in history if math.isfinite(row.val_loss)]
    return min(finite, key=lambda row: (-row.val_accuracy, row.val_loss, row.epoch), default=None)


def kept_row(history: Sequence[EpochMetrics], *, is_val_seen: bool) -> EpochMetrics | None:
    """Return the epoch whose weights are kept: the best, or the last if validation cannot tell.

    Args:
        history: Of a trial.
        is_val_seen: Whether its validation images were trained on.
    """
    finite = [row for row in history if math.isfinite(row.train_loss + row.val_loss)]
    return (finite[-1] if finite else None) if is_val_seen else best_row(history)


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
    execution: str = ""
    """How its training steps run, such as ``eager``."""
    halved_from: int | None = None
    """The first epoch whose batches went through in halves, for want of memory."""
    cpus: float | None = None
    gpus: float | None = None
    """Its share of the node; ``None`` where it was not recorded: then the run's usual share."""
    node: str = ""
    """Identifier of the cluster's node that trained it last."""
    attempts: int = 0
    """How often a worker was given it. The last one alone may write into its folder."""
    started: str = ""
    finished: str = ""
    """ISO 8601, UTC."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial, as its folder tells it."""

    path: AnyPath
    number: int
    status: TrialStatus
    history: tuple[EpochMetrics, ...]
    gpus: float = 0.0
    """GPUs, or a share of one, that it holds in its epochs."""
    is_val_seen: bool = False
    """Whether its validation images were trained on."""

    @cached_property
    def config(self) -> TrialConfig:
        """What defines its training, read when it is first asked for: ranking needs none of it.

        Raises:
            TunerError: If the file is missing or damaged.
        """
        with explaining_damage(self.path):
            return TrialConfig.from_dict(json.loads(read_text(self.path / "config.json")))

    @cached_property
    def best(self) -> EpochMetrics | None:
        """The epoch whose weights are in the checkpoint."""
        return kept_row(self.history, is_val_seen=self.is_val_seen)

    @property
    def is_scored(self) -> bool:
        """Whether it has an accuracy, and did not end badly after it."""
        return self.best is not None and self.status.state not in ENDED_BADLY

    @property
    def seconds(self) -> float:
        """Time spent in its epochs."""
        return sum(row.seconds for row in self.history)

    @property
    def gpu_hours(self) -> float:
        """Hours of the GPUs that it held in its epochs."""
        return self.seconds * self.gpus / 3600

    @property
    def checkpoint(self) -> AnyPath:
        """Weights of that epoch, with all that is needed to rebuild the model."""
        return self.path / "checkpoint.safetensors"

    @property
    def state(self) -> AnyPath:
        """What the training goes on from; there while the trial has not ended."""
        return self.path / "state.safetensors"

    @property
    def is_usable(self) -> bool:
        """Whether an ensemble may take this trial."""
        return self.status.state in USABLE and self.best is not None and self.checkpoint.exists()

    def val_probs(self) -> np.ndarray[Any, np.dtype[np.floating[Any]]]:
        """Read that epoch's class probabilities of the validation images.

        Returns:
            As ``write_val_probs`` took them, shape (N, K).

        Raises:
            TunerError: If the file is missing or damaged.
        """
        path = self.path / VAL_PROBS
        try:
            with on_disk(path) as file:
                return np.load(file, allow_pickle=False)  # type: ignore[no-any-return]
        except (OSError, ValueError, EOFError) as error:
            raise TunerError(f"{path}: not usable validation probabilities: {error}") from error

    def as_row(self) -> dict[str, Any]:
        """Return the trial's line of the leaderboard, its config flattened to dotted keys."""
        best = self.best
        config = self.config.to_dict()
        config["max_epochs"] = config.pop("epochs")
        # The text of a user's model file, or of an earlier run's architecture, is no column.
        for params in config["model"].values():
            params.pop("source", None)
        return {
            "trial": self.number,
            "model": self.config.model.family,
            "state": self.status.state,
            "accuracy": best.val_accuracy if best else None,
            "loss": best.val_loss if best else None,
            "best_epoch": best.epoch if best else None,
            "epochs": len(self.history),
            "seconds": round(self.seconds, 3),
            "parameters": self.status.num_parameters,
            "reason": self.status.reason,
            **flatten(config),
        }


def write_trial(path: AnyPath, config: TrialConfig) -> None:
    """Write ``config.json`` of a new trial."""
    write_json(path / "config.json", config.to_dict())


def write_val_probs(path: AnyPath, probs: np.ndarray[Any, np.dtype[np.floating[Any]]]) -> None:
    """Write ``val_probs.npy`` of a trial, whole or not at all.

    Args:
        path: The trial's folder.
        probs: Shape (N, K). Float32, as the network gives them: their logarithms are exact to 1e-7
            down to 87 nats. Float16, 17 nats, is what earlier versions wrote.
    """
    with replacing(path / VAL_PROBS) as temporary, temporary.open("wb") as file:
        np.save(file, probs)


def write_status(path: AnyPath, status: TrialStatus) -> None:
    """Write ``status.json`` of a trial."""
    write_json(path / "status.json", to_plain(status))


def read_status(path: AnyPath) -> TrialStatus | None:
    """Read ``status.json`` of a trial; ``None`` while there is none."""
    try:
        text = read_text(path / "status.json")
    except FileNotFoundError:
        return None
    return build(TrialStatus, json.loads(text), "status")


def write_history(path: AnyPath, history: Iterable[EpochMetrics]) -> None:
    """Write ``history.csv`` of a trial."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(dataclasses.astuple(row) for row in history)
    write_text(path / "history.csv", text.getvalue())


def read_history(path: AnyPath) -> list[EpochMetrics]:
    """Read ``history.csv`` of a trial; empty before its first epoch has ended."""
    try:
        text = read_text(path / "history.csv")
    except FileNotFoundError:
        return []
    # Without the csv module, whose dictionaries take most of the time of a large leaderboard.
    head, *lines = text.splitlines()
    if head.split(",") != [*COLUMNS]:
        raise ValueError(f"history.csv has the columns {head}")
    return [_parse_row(line.split(",")) for line in lines]


def _parse_row(cells: list[str]) -> EpochMetrics:
    epoch, *figures = cells
    return EpochMetrics(
        epoch=int(epoch), **dict(zip(COLUMNS[1:], map(float, figures), strict=True))
    )


@contextmanager
def explaining_damage(path: AnyPath) -> Iterator[None]:
    """Say that ``path`` is damaged when what is read from it is not what was written."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise TunerError(f"{path}: damaged or unreadable: {error}") from error


def flatten(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
