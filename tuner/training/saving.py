"""A trial's files, written during its training.

``state.safetensors`` is written first and describes a single moment: the state from which the
training resumes, the epochs that led there, and the weights and probabilities of the kept epoch,
unless these are already in their own files. The other files follow, ``digests.json`` last; if the
process is killed in between, ``restore_files`` rewrites them from the state.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Event
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from tuner.config import Metric, ModelConfig
from tuner.data.splits import Splits
from tuner.errors import TunerError
from tuner.run.check import PUT_BACK, damage_of_record
from tuner.run.checkpoint import (
    Checkpoint,
    Kept,
    load_progress,
    save_checkpoint,
    save_state,
)
from tuner.run.digests import (
    Damage,
    DamagedError,
    changed,
    damage_of_files,
    origin_of,
    read_digests,
    write_digests,
)
from tuner.run.layout import CHECKPOINT, CONFIG, DIGESTS, HISTORY, STATE, VAL_PROBS
from tuner.run.run import Run
from tuner.run.trial import (
    OPEN,
    EpochMetrics,
    kept_row,
    read_history,
    write_history,
    write_val_probs,
)
from tuner.storage.paths import AnyPath, sha256_of
from tuner.storage.patience import persevere, present_patience, storage_fault
from tuner.storage.records import explaining_damage
from tuner.training.epoch import Epoch

ANEW = "Put the file back, or remove it to have the trial trained again."


@dataclass(frozen=True, kw_only=True, slots=True)
class _Snapshot:
    """A trial at one moment, on its device."""

    history: tuple[EpochMetrics, ...]
    num_epochs: int
    """Number of epochs that led to the state; an epoch that diverged is only in ``history``."""
    state: Mapping[str, Tensor]
    kept: Kept | None
    """``None`` if its files are on disk."""
    is_copied: torch.cuda.Event | None
    """Event that completes when the tensors are ready; ``None`` if they are ready at once."""
    is_awaited: bool
    """Whether the tensors are not modified until they are written."""


class Saver:
    """Writes the files of a running trial in a thread of its own.

    ``keep`` copies the results of an epoch on the device, into the same tensors each time. To save
    the epoch, the thread copies it to the host and writes it. The training waits for a write only
    in ``save``, and in ``keep`` only for the copy to the host. The epoch passed to ``save`` is
    written directly, without a copy.

    Args:
        path: The trial's folder.
        model: The model that is trained.
        splits: The images that it is trained on.
        history: The epochs from which the trial resumes; ``keep`` and ``save`` add to it.
        metric: Metric that chooses the kept epoch.
        seconds: Maximum seconds of training that a lost worker costs, unless one epoch is longer.
        check: Called before each write; may raise.
    """

    def __init__(
        self,
        path: AnyPath,
        model: ModelConfig,
        splits: Splits,
        history: list[EpochMetrics],
        *,
        metric: Metric = "accuracy",
        seconds: float = 10.0,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.history = history
        self._path = path
        self._model = model
        self._splits = splits
        self._metric = metric
        self._seconds = seconds
        self._check = check
        self._num_epochs = self._num_saved = len(history)
        self._num_written = len(history)
        self._digests: dict[str, str] = {}
        self._copy: dict[str, Tensor] = {}
        self._state: Mapping[str, Tensor] = self._copy
        """The state to write next: the copy, or the tensors of the training itself."""
        self._kept: Kept | None = None
        self._is_copied: torch.cuda.Event | None = None
        self._saved_at = time.monotonic()
        self._is_free = Event()
        self._is_free.set()
        self._writing: Future[None] | None = None
        self._being_written: Kept | None = None
        self._is_broken = False
        self._stream: torch.cuda.Stream | None = None
        self._patience = present_patience()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saving")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what an error left unwritten, and end the thread."""
        try:
            if isinstance(error, Exception) and not self._is_broken:
                self.save()
        finally:
            self._thread.shutdown()

    @property
    def is_saved(self) -> bool:
        """Whether the newest epoch is on disk."""
        return self._num_written == len(self.history)

    def keep(self, epoch: Epoch) -> None:
        """Copy the results of an epoch on the device; of a diverged one, record only its figures.

        Raises:
            Exception: What the last write raised, here and in the other methods.
        """
        # The thread may still be reading the copy of an earlier epoch.
        self._is_free.wait()
        if self._writing is not None and self._writing.done():
            self._finish()
        self._take(epoch, is_copy=True)

    def _take(self, epoch: Epoch, *, is_copy: bool) -> None:
        history = [*self.history, epoch.figures]
        if epoch.is_finite:
            # Until the copy is complete: memory may run out.
            self._is_broken = True
            is_val_seen = self._splits.is_val_seen
            if kept_row(history, self._metric, is_val_seen=is_val_seen) is epoch.figures:
                self._kept = self._kept_epoch(epoch, is_copy=is_copy)
            self._state = epoch.learner.state()
            if is_copy:
                _copy(self._state, self._copy)
                self._state = self._copy
            self._is_broken = False
            self._num_epochs = len(history)
            if (device := epoch.learner.device).type == "cuda":
                self._stream = self._stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
                self._is_copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._is_copied.record(torch.cuda.current_stream(device))
        self.history.append(epoch.figures)

    def save_if_due(self) -> None:
        """Start writing the newest epoch if waiting for the next one would be too late.

        Does nothing while an earlier epoch is being written.
        """
        if self._writing is not None and not self._writing.done():
            return
        waited = time.monotonic() - self._saved_at
        if waited + self.history[-1].seconds > self._seconds:
            self._finish()
            self._begin(is_awaited=False)

    def save(self, epoch: Epoch | None = None) -> None:
        """Write the newest epoch, and wait until it is on disk.

        Args:
            epoch: An epoch newer than the one passed to ``keep``.
        """
        self._finish()
        if epoch is not None:
            self._take(epoch, is_copy=False)
        if not self.is_saved:
            self._begin(is_awaited=True)
            self._finish()
        # The training continues to modify its own tensors.
        self._state = self._copy

    def _begin(self, *, is_awaited: bool) -> None:
        snapshot = _Snapshot(
            history=tuple(self.history),
            num_epochs=self._num_epochs,
            state=self._state,
            kept=self._kept,
            is_copied=self._is_copied,
            is_awaited=is_awaited,
        )
        self._saved_at = time.monotonic()
        self._is_free.clear()
        self._being_written = self._kept
        self._writing = self._thread.submit(self._write, snapshot)

    def _finish(self) -> None:
        """Wait for the current write, if there is one."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except BaseException as error:
            self._is_broken = True
            if self._patience is None or not storage_fault(error):
                raise
            self._patience.wait(error)
            self._is_broken = False
            # Write the newest epoch, whichever was being written.
            self._begin(is_awaited=True)
            return self._finish()
        if self._patience:
            self._patience.hear()
        if self._kept is self._being_written:
            # It is in its own files now.
            self._kept = None
        self._being_written = None

    def _write(self, snapshot: _Snapshot) -> None:
        kept = snapshot.kept
        try:
            with self._copying(snapshot):
                is_copy = not snapshot.is_awaited
                state = _on_host(snapshot.state, is_copy=is_copy)
                kept = kept and replace(kept, weights=_on_host(kept.weights, is_copy=is_copy))
        finally:
            self._is_free.set()
        self._check()
        if not self._digests:
            self._digests = _known_digests(self._path)
        if snapshot.num_epochs > self._num_saved:
            rows = snapshot.history[: snapshot.num_epochs]
            self._digests[STATE] = save_state(self._path / STATE, state, rows, kept)
            self._num_saved = snapshot.num_epochs
        if kept is not None:
            self._digests |= save_kept(self._path, kept)
        self._digests[HISTORY] = write_history(self._path, snapshot.history)
        write_digests(self._path, self._digests, len(snapshot.history))
        self._num_written = len(snapshot.history)

    @contextlib.contextmanager
    def _copying(self, snapshot: _Snapshot) -> Iterator[None]:
        """Copy to the host on a stream other than the training's."""
        if self._stream is None or snapshot.is_copied is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(snapshot.is_copied)
            yield

    def _kept_epoch(self, epoch: Epoch, *, is_copy: bool) -> Kept:
        weights = {name: tensor.detach() for name, tensor in epoch.network.state_dict().items()}
        if is_copy:
            weights = {name: tensor.clone() for name, tensor in weights.items()}
        return Kept(
            checkpoint=Checkpoint(
                model=self._model,
                epoch=epoch.figures.epoch,
                classes=self._splits.classes,
                image_shape=self._splits.image_shape,
                mean=epoch.mean,
                std=epoch.std,
                computed=epoch.computed,
                folds=self._splits.num_folds,
            ),
            weights=weights,
            val_probs=epoch.val_probs.clone(),
        )


def save_kept(path: AnyPath, kept: Kept) -> dict[str, str]:
    """Write a trial's ``checkpoint.safetensors`` and ``val_probs.npy``; return their SHA-256."""
    return {
        CHECKPOINT: save_checkpoint(path / CHECKPOINT, kept.weights, kept.checkpoint),
        VAL_PROBS: write_val_probs(path, kept.val_probs.numpy()),
    }


def restore_files(path: AnyPath) -> list[EpochMetrics]:
    """Restore the files of a trial that lost its worker to the moment of its saved state.

    Returns:
        The epochs that led there.

    Raises:
        DamagedError: If the saved state is damaged, or not the trial's own.
        StorageError: As ``persevere``.
    """
    return persevere(lambda: _restore_files(path))


def _restore_files(path: AnyPath) -> list[EpochMetrics]:
    if not (path / STATE).exists():
        forget_progress(path)
        return []
    history, kept, digest = read_own_progress(path)
    known = _known_digests(path)
    digests = known | {STATE: digest}
    is_kept = known.get(STATE) == digest and all(
        (path / name).exists() and sha256_of(path / name) == known.get(name)
        for name in (CHECKPOINT, VAL_PROBS)
    )
    # Existing files are not rewritten, because a full disk has no room for them.
    if kept is not None and not is_kept:
        digests |= save_kept(path, kept)
    is_told = _told_history(path) == history
    digests[HISTORY] = sha256_of(path / HISTORY) if is_told else write_history(path, history)
    if digests != known:
        write_digests(path, digests, len(history))
    return history


def _told_history(path: AnyPath) -> list[EpochMetrics]:
    """Return the epochs in ``history.csv``; none if it is damaged, because it is rewritten."""
    try:
        return read_history(path)
    except TunerError:
        return []


def read_own_progress(path: AnyPath) -> tuple[list[EpochMetrics], Kept | None, str]:
    """Read a trial's saved state except its tensors, and check that it is the trial's own.

    A state that is newer than its digest, because the process was killed in between, must contain
    the epochs in ``history.csv``, or more.

    Returns:
        As ``load_progress``, and the file's SHA-256.

    Raises:
        DamagedError: If it is damaged, or another one.
    """
    try:
        with explaining_damage(path / STATE):
            found = sha256_of(path / STATE)
            history, kept = load_progress(path / STATE)
            if not history or [row.epoch for row in history] != [*range(1, len(history) + 1)]:
                raise ValueError("its epochs are not numbered from 1")
        origin = origin_of(path, STATE, found)
        if origin == "unknown":
            told = _told_history(path)
            # An epoch that diverged is only in history.csv.
            if any(one != other for one, other in zip(told, history, strict=False)):
                origin = "other"
    except TunerError as error:
        raise DamagedError([Damage.of(error, path)], ANEW) from error
    if origin == "other":
        raise DamagedError([changed(path, STATE)], ANEW)
    return history, kept, found


def check_resumable(run: Run) -> None:
    """Check the files from which a run resumes: its trials' records, and open trials' states.

    Raises:
        DamagedError: If files are damaged, or not those that were written.
    """
    damage: list[Damage] = []
    for trial in run.trials(damage):
        if trial.status.state not in OPEN:
            damage += damage_of_record(trial)
        elif not trial.state.exists():
            # It starts again.
            damage += damage_of_files(trial.path, CONFIG)
        else:
            # A paused trial is judged by its history; that of another one is written anew.
            judged = (HISTORY,) if trial.status.state == "paused" else ()
            damage += damage_of_files(trial.path, CONFIG, CHECKPOINT, VAL_PROBS, *judged)
            try:
                read_own_progress(trial.path)
            except DamagedError as error:
                damage += error.damage
    if damage:
        raise DamagedError(damage, PUT_BACK)


def _known_digests(path: AnyPath) -> dict[str, str]:
    """Return the digests of a trial's folder, including that of its configuration."""
    digests = read_digests(path)
    if CONFIG not in digests and (path / CONFIG).exists():
        digests[CONFIG] = sha256_of(path / CONFIG)
    return digests


def forget_progress(path: AnyPath) -> None:
    """Remove the files that the training of a trial left in its folder."""
    # The state first, because it defines the others.
    for name in (STATE, HISTORY, CHECKPOINT, VAL_PROBS, DIGESTS):
        (path / name).unlink(missing_ok=True)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: dict[str, Tensor]) -> None:
    """Make ``target`` equal to ``source``, reusing its tensors where they fit."""
    for name in target.keys() - source.keys():
        del target[name]
    groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for name, tensor in source.items():
        own = target.get(name)
        if own is None or not _alike(own, tensor):
            target[name] = tensor.detach().clone()
        else:
            mine, theirs = groups.setdefault((tensor.device, tensor.dtype), ([], []))
            mine.append(own)
            theirs.append(tensor)
    for mine, theirs in groups.values():
        torch._foreach_copy_(mine, theirs)


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)


def _on_host(tensors: Mapping[str, Tensor], *, is_copy: bool) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=is_copy) for name, tensor in tensors.items()}
