"""A trial's folder: its configuration, its epochs, and how it ended.

The driver writes ``config.json`` and ``status.json``. The worker that trains the trial writes
``history.csv``, ``checkpoint.safetensors`` and ``val_probs.npy``.
"""

import csv
import dataclasses
import hashlib
import io
import math
import tokenize
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np

from tuner.config import Amount, CostObjective, Metric, NonNegative, Share, TrialConfig
from tuner.errors import TunerError
from tuner.metrics import goal
from tuner.run.layout import (
    CHECKPOINT,
    CONFIG,
    HISTORY,
    STATE,
    STATUS,
    VAL_PROBS,
    check_trial,
    number_of,
)
from tuner.schema import Bounds, plural, quoted
from tuner.storage.files import replacing, write_text
from tuner.storage.local_storage import MOST_TENSORS
from tuner.storage.paths import AnyPath, read_bytes, read_text, sha256_of
from tuner.storage.patience import persevere
from tuner.storage.records import explaining_damage, find_record, read_record, write_record

TrialState = Literal[
    "running",
    "paused",
    "completed",
    "stopped",
    "diverged",
    "out_of_memory",
    "failed",
    "interrupted",
]
USABLE: frozenset[TrialState] = frozenset({"completed", "stopped", "paused", "interrupted"})
"""States whose checkpoint may enter an ensemble."""
ENDED_BADLY: frozenset[TrialState] = frozenset({"diverged", "out_of_memory", "failed"})
"""States whose accuracy, if any, nothing should build on."""
OPEN: frozenset[TrialState] = frozenset({"running", "paused", "interrupted"})
"""States from which a trial can continue, in the same search or in a resumed one."""

Loss = Annotated[float, Bounds(is_finite=False)]
"""NaN or infinite if a training diverged."""
LONGEST_EPOCH, MOST_GPUS = 1e9, 1e6
"""Seconds of an epoch, and GPUs of a trial, that a record may hold: their sums stay finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochMetrics:
    """One line of ``history.csv``."""

    epoch: Annotated[int, Bounds(ge=1)]
    """From 1."""
    train_loss: Loss
    val_loss: Loss
    """Mean negative log-likelihood of the validation images, in nats."""
    val_accuracy: Share
    val_balanced_accuracy: Share | None = None
    val_macro_f1: Share | None = None
    val_worst_class: Share | None = None
    """All three as in ``ClassScores``; ``None`` if an earlier version did not record them."""
    lr: NonNegative
    """Learning rate at the end of the epoch."""
    seconds: Annotated[float, Bounds(ge=0, le=LONGEST_EPOCH)]
    """Duration of training and validation together."""
    time: NonNegative
    """When it ended, in seconds since 1970."""

    def value(self, metric: Metric) -> float | None:
        """Return the value of a metric on the validation images; ``None`` if it is not recorded."""
        value: float | None = getattr(self, METRIC_COLUMNS[metric])
        return value


METRIC_COLUMNS: dict[Metric, str] = {
    "accuracy": "val_accuracy",
    "balanced_accuracy": "val_balanced_accuracy",
    "macro_f1": "val_macro_f1",
    "nll": "val_loss",
    "worst_class": "val_worst_class",
}
OWN_COLUMNS = frozenset(
    {
        *("trial", "model", "state", "accuracy", "loss", "balanced_accuracy", "macro_f1"),
        *("worst_class", "best_epoch", "epochs", "seconds", "parameters", "latency_ms", "size_mb"),
        *("front", "reason", "max_epochs", "seed"),
    }
)
"""Columns of the leaderboard that do not depend on the space; see ``TrialRecord.as_row``."""
BY_CLASS = ("val_balanced_accuracy", "val_macro_f1", "val_worst_class")
HEADER_ERRORS = (MemoryError, SyntaxError, TypeError, tokenize.TokenError)
"""Raised by NumPy for a header that does not describe an array, or that never ends."""
COLUMNS = tuple(field.name for field in dataclasses.fields(EpochMetrics))
EARLIER_COLUMNS = tuple(name for name in COLUMNS if name not in BY_CLASS)


def threads_of(cpus: float) -> int:
    """Return the number of threads of a trial: never more than its CPUs.

    Two trials with one thread each train 1.26 times as many images as one with two threads; two
    with two threads each on the same two cores train 0.69 times as many.
    """
    return max(1, int(cpus))


def score_of(row: EpochMetrics, metric: Metric) -> float | None:
    """Return an epoch's score by ``metric``, where higher is better; ``None`` if it has none."""
    value = row.value(metric)
    return None if value is None or not math.isfinite(row.val_loss) else goal.score(value, metric)


def order_of(row: EpochMetrics, metric: Metric) -> tuple[float, float]:
    """Return a sort key that puts the best epoch first, and those without the metric last."""
    if (value := row.value(metric)) is None:
        return math.inf, row.val_loss
    return goal.order(metric, value, accuracy=row.val_accuracy, nll=row.val_loss)


def best_row(history: Sequence[EpochMetrics], metric: Metric) -> EpochMetrics | None:
    """Return the best epoch by ``metric``; ties go as in ``order_of``, then to the earliest."""
    scored = [row for row in history if score_of(row, metric) is not None]
    return min(scored, key=lambda row: (*order_of(row, metric), row.epoch), default=None)


def kept_row(
    history: Sequence[EpochMetrics], metric: Metric, *, is_val_seen: bool
) -> EpochMetrics | None:
    """Return the epoch whose weights are kept: the best, or the last if validation says nothing.

    Args:
        history: The epochs of a trial.
        metric: The metric of its run.
        is_val_seen: Whether its validation images were trained on.
    """
    finite = [row for row in history if math.isfinite(row.train_loss + row.val_loss)]
    return (finite[-1] if finite else None) if is_val_seen else best_row(history, metric)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Why a scheduler stopped a trial."""

    rung: Amount
    """The epoch after which it was judged."""
    value: float
    """Value of the run's metric; under the median rule, the trial's best one so far."""
    cut: float
    """The value needed to continue; under ASHA, other trials may still have taken all places."""
    peers: Amount
    """Number of trials that had reached this epoch before, and that it was compared with."""
    metric: Metric = "accuracy"
    """The metric of the values."""
    front: Amount | None = None
    """The front on which it lay, in a search that also has costs as objectives; 1 is the best."""

    def __str__(self) -> str:
        peers = plural(self.peers, "peer")
        if self.front is not None:
            late = ", no place left" if self.front == 1 else ""
            return f"epoch {self.rung}: {self.value:.4f}, on front {self.front}{late}, {peers}"
        if goal.score(self.value, self.metric) < goal.score(self.cut, self.metric):
            side = "above" if self.metric in goal.LOWER_IS_BETTER else "below"
            return f"epoch {self.rung}: {self.value:.4f} {side} {self.cut:.4f}, {peers}"
        return f"epoch {self.rung}: {self.value:.4f}, no place left, {peers}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialStatus:
    """``status.json``: the progress of a trial, and why it ended."""

    state: TrialState
    trial: Amount | None = field(default=None, compare=False)
    """Number of the trial, set when it is written; ``None`` in files of earlier versions."""
    reason: str = ""
    """Why it ended, in one line."""
    stop: Stop | None = None
    traceback: str = ""
    """The last lines, if it failed."""
    num_parameters: Amount = 0
    latency_ms: NonNegative | None = None
    """Milliseconds per image, measured at its first start; ``None`` if it is not an objective."""
    size_mb: NonNegative | None = None
    """Size of its weights in megabytes; ``None`` if it is not an objective."""
    execution: str = ""
    """How its training steps run, such as ``eager``."""
    halved_from: Amount | None = None
    """The first epoch whose batches were processed in halves, for lack of memory."""
    cpus: NonNegative | None = None
    gpus: NonNegative | None = None
    """Its share of the node; ``None`` if not recorded, which means the run's usual share."""
    node: str = ""
    """Identifier of the cluster node that trained it last."""
    attempts: Amount = 0
    """How many times a worker was given it. Only the last one may write into its folder."""
    passed: Amount = 0
    """The last rung from which it was promoted, in epochs."""
    started: str = ""
    finished: str = ""
    """ISO 8601, UTC."""

    def cost(self, objective: CostObjective) -> float | None:
        """Return a cost of its network; ``None`` before it is known."""
        match objective.cost:
            case "latency_ms":
                return self.latency_ms
            case "size_mb":
                return self.size_mb
            case "parameters":
                # Not counted if the network cannot be built.
                return self.num_parameters or None


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial, as read from its folder."""

    path: AnyPath
    number: int
    status: TrialStatus
    history: tuple[EpochMetrics, ...]
    gpus: float = 0.0
    """GPUs, or a share of one, that it holds during its epochs."""
    is_val_seen: bool = False
    """Whether its validation images were trained on."""
    metric: Metric = "accuracy"
    """Metric of its run, by which its best epoch was chosen."""
    costs: tuple[CostObjective, ...] = ()
    """Objectives of its run in addition to the metric."""
    front: int | None = None
    """The front of the run on which it lies, 1 being the best; see ``Run.ranked``."""

    @cached_property
    def config(self) -> TrialConfig:
        """The configuration of its training, read at first use: ranking does not need it.

        Raises:
            TunerError: If the file is missing or damaged.
        """
        config = read_record(self.path / CONFIG, TrialConfig)
        if len(self.history) > config.epochs:
            raise TunerError(
                f"{self.path / HISTORY}: damaged or unreadable: has {len(self.history)} epochs "
                f"where {CONFIG} has {config.epochs}"
            )
        return config

    @cached_property
    def best(self) -> EpochMetrics | None:
        """The epoch whose weights are in the checkpoint."""
        return kept_row(self.history, self.metric, is_val_seen=self.is_val_seen)

    @property
    def is_scored(self) -> bool:
        """Whether it has an accuracy and did not end badly afterwards."""
        return self.best is not None and self.status.state not in ENDED_BADLY

    @property
    def point(self) -> tuple[float, ...] | None:
        """Its score, negated, and its costs, where lower is better; ``None`` if one is missing."""
        score = score_of(self.best, self.metric) if self.best and self.is_scored else None
        costs = [self.status.cost(objective) for objective in self.costs]
        known = [cost for cost in costs if cost is not None]
        if score is None or self.is_val_seen or len(known) < len(costs):
            return None
        return (-score, *known)

    @property
    def seconds(self) -> float:
        """Seconds spent in its epochs."""
        return sum(row.seconds for row in self.history)

    @property
    def gpu_hours(self) -> float:
        """GPU-hours that it held during its epochs."""
        return self.seconds * self.gpus / 3600

    @property
    def checkpoint(self) -> AnyPath:
        """The weights of epoch ``best``, with everything needed to rebuild the model."""
        return self.path / CHECKPOINT

    @property
    def state(self) -> AnyPath:
        """The file from which the training resumes; it exists until the trial has ended."""
        return self.path / STATE

    @property
    def is_usable(self) -> bool:
        """Whether an ensemble may use this trial."""
        return self.status.state in USABLE and self.best is not None and self.checkpoint.exists()

    def val_probs(self) -> np.ndarray[Any, np.dtype[np.floating[Any]]]:
        """Read the class probabilities of the validation images after epoch ``best``.

        Returns:
            The probabilities as ``write_val_probs`` took them, shape (N, K).

        Raises:
            TunerError: If the file is missing or damaged.
        """
        return read_val_probs(self.path)[0]

    def as_row(self) -> dict[str, Any]:
        """Return the trial's row of the leaderboard, its config flattened to dotted keys."""
        best = self.best
        config = self.config.to_dict()
        config["max_epochs"] = config.pop("epochs")
        # The text of a user's model file, or of an earlier run's architecture, is not a column.
        for params in config["model"].values():
            params.pop("source", None)
        return {
            "trial": self.number,
            "model": self.config.model.family,
            "state": self.status.state,
            "accuracy": best.val_accuracy if best else None,
            "loss": best.val_loss if best else None,
            "balanced_accuracy": best.val_balanced_accuracy if best else None,
            "macro_f1": best.val_macro_f1 if best else None,
            "worst_class": best.val_worst_class if best else None,
            "best_epoch": best.epoch if best else None,
            "epochs": len(self.history),
            "seconds": round(self.seconds, 3),
            "parameters": self.status.num_parameters,
            **self._objectives(),
            "reason": self.status.reason,
            **flatten(config),
        }

    def _objectives(self) -> dict[str, Any]:
        """Return the entries of a row that exist only if costs are objectives."""
        if not self.costs:
            return {}
        measured: dict[str, float | None] = {
            objective.cost: self.status.cost(objective)
            for objective in self.costs
            if objective.cost != "parameters"
        }
        return {**measured, "front": self.front}


def write_trial(path: AnyPath, config: TrialConfig) -> None:
    """Write ``config.json`` of a new trial."""
    write_record(path / CONFIG, config)


def read_val_probs(folder: AnyPath) -> tuple[np.ndarray[Any, np.dtype[np.floating[Any]]], str]:
    """Read ``val_probs.npy`` of a trial, and return it with its SHA-256.

    Args:
        folder: The trial's folder.

    Raises:
        TunerError: If the file is missing or damaged.
    """
    path = folder / VAL_PROBS
    try:
        content = persevere(lambda: read_bytes(path, most=MOST_TENSORS))
        probs = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (OSError, ValueError, EOFError, *HEADER_ERRORS) as error:
        raise TunerError(f"{path}: not usable validation probabilities: {error}") from error
    return probs, hashlib.sha256(content).hexdigest()


def write_val_probs(path: AnyPath, probs: np.ndarray[Any, np.dtype[np.floating[Any]]]) -> str:
    """Write ``val_probs.npy`` of a trial, whole or not at all.

    Args:
        path: The trial's folder.
        probs: Shape (N, K). Float32, as the network returns them: their logarithms are exact to
            1e-7 down to 87 nats. Earlier versions wrote float16, which reaches 17 nats.

    Returns:
        Its SHA-256.
    """
    with replacing(path / VAL_PROBS) as temporary:
        with temporary.open("wb") as file:
            np.save(file, probs)
        return sha256_of(temporary)


def write_status(path: AnyPath, status: TrialStatus) -> None:
    """Write ``status.json`` of a trial."""
    write_record(path / STATUS, replace(status, trial=number_of(path)))


def read_status(path: AnyPath) -> TrialStatus | None:
    """Read ``status.json`` of a trial; ``None`` if there is none yet.

    Raises:
        TunerError: If it is damaged, or another trial's.
    """
    status = find_record(path / STATUS, TrialStatus)
    if status is not None:
        with explaining_damage(path / STATUS):
            check_trial(path, status.trial)
    return status


def write_history(path: AnyPath, history: Iterable[EpochMetrics]) -> str:
    """Write ``history.csv`` of a trial, and return its SHA-256."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(dataclasses.astuple(row) for row in history)
    write_text(path / HISTORY, text.getvalue())
    return hashlib.sha256(text.getvalue().encode()).hexdigest()


def read_history(path: AnyPath) -> list[EpochMetrics]:
    """Read ``history.csv`` of a trial; empty before its first epoch has ended.

    Raises:
        TunerError: If it is damaged.
    """
    with explaining_damage(path / HISTORY):
        try:
            text = read_text(path / HISTORY)
        except FileNotFoundError:
            return []
        # Without the csv module: its dictionaries take most of the time of a large leaderboard.
        head, *lines = text.splitlines() or [""]
        columns = tuple(head.split(","))
        if columns not in (COLUMNS, EARLIER_COLUMNS):
            raise ValueError(f"has the columns {quoted(head)}, not {','.join(COLUMNS)}")
        return [_parse_row(line, columns, epoch) for epoch, line in enumerate(lines, 1)]


def _parse_row(line: str, columns: Sequence[str], epoch: int) -> EpochMetrics:
    """Parse the line of an epoch.

    Raises:
        ValueError: If it is none, or the line of another epoch.
    """
    first, *cells = line.split(",")
    if first != str(epoch):
        raise ValueError(f"line {epoch + 1}: epoch {quoted(first)} instead of {epoch}")
    try:
        # Cells are empty in epochs of an earlier version.
        figures: dict[str, Any] = {
            name: float(cell) if cell or name not in BY_CLASS else None
            for name, cell in zip(columns[1:], cells, strict=True)
        }
    except ValueError:
        raise ValueError(f"line {epoch + 1}: {quoted(line)} is not an epoch's figures") from None
    row = EpochMetrics(epoch=epoch, **figures)
    for name in ("val_accuracy", *BY_CLASS):
        if (share := getattr(row, name)) is not None and not 0 <= share <= 1:
            raise ValueError(f"line {epoch + 1}: {name} is {share}, not in [0, 1]")
    for name in ("lr", "seconds", "time"):
        if not 0 <= (value := getattr(row, name)) < math.inf:
            raise ValueError(f"line {epoch + 1}: {name} is {value}, not a number from 0")
    if row.seconds > LONGEST_EPOCH:
        raise ValueError(f"line {epoch + 1}: seconds is {row.seconds}, above {LONGEST_EPOCH:g}")
    return row


def flatten(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
