"""A trial's files, written while its training goes on.

``state.safetensors`` is written first and holds all of one moment: what the training goes on from,
the epochs that led there, and the weights and probabilities of the kept epoch, unless their own
files hold these already. The other files follow, ``digests.json`` last; where a kill comes between,
``restore_files`` writes them anew from the state.
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
from tuner.storage.digest import sha256_of
from tuner.storage.paths import AnyPath
from tuner.storage.patience import persevere, present_patience, storage_fault
from tuner.storage.records import explaining_damage
from tuner.training.epoch import Epoch

ANEW = "Put the file back, or remove it to have the trial train anew."


@dataclass(frozen=True, kw_only=True, slots=True)
class _Snapshot:
    """A trial at one moment, on its device."""

    history: tuple[EpochMetrics, ...]
    num_epochs: int
    """Epochs that led to the state; one of ``history`` that diverged is not among them."""
    state: Mapping[str, Tensor]
    kept: Kept | None
    """``None`` where its files are on disk."""
    is_copied: torch.cuda.Event | None
    """Passed when the tensors are complete; ``None`` where they are at once."""
    is_awaited: bool
    """Whether nobody touches the tensors until they are written."""


class Saver:
    """Writes the files of a trial under way, from a thread of its own.

    ``keep`` copies on the device what an epoch has led to, into the same tensors each time. When it
    is to be saved, the thread copies it to the host and writes it. The training waits for a write
    in ``save`` alone, and in ``keep`` for the copy to the host. What ``save`` is given is written
    from where it is, without a copy.

    Args:
        path: The trial's folder.
        model: What is trained.
        splits: On what.
        history: The epochs that the trial goes on from; ``keep`` and ``save`` add to it.
        metric: What the kept epoch is chosen by.
        seconds: A loss of the worker is to cost no more training than this, or than one epoch.
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
        """What is written next: the copy, or what the training itself works with."""
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
        """Write what an error has left unwritten, and end the thread."""
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
        """Copy on the device what an epoch has led to; one that diverged leaves its figures alone.

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
            # Until the copy is whole: memory may be short.
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
        """Begin to write the newest epoch, if the next one would come too late.

        Does nothing while an earlier one is being written.
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
            epoch: A newer one than was kept.
        """
        self._finish()
        if epoch is not None:
            self._take(epoch, is_copy=False)
        if not self.is_saved:
            self._begin(is_awaited=True)
            self._finish()
        # The training goes on with the other tensors.
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
        """Wait for the write under way, if there is one."""
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
            # Of the newest epoch, whatever was being written.
            self._begin(is_awaited=True)
            return self._finish()
        if self._patience:
            self._patience.hear()
        if self._kept is self._being_written:
            # Its own files hold it now.
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
        """Copy to the host beside the training's stream."""
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
    """Bring the files of a trial that lost its worker to the moment of its saved state.

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
    # What is there already is not written again, for which a full disk has no room.
    if kept is not None and not is_kept:
        digests |= save_kept(path, kept)
    is_told = _told_history(path) == history
    digests[HISTORY] = sha256_of(path / HISTORY) if is_told else write_history(path, history)
    if digests != known:
        write_digests(path, digests, len(history))
    return history


def _told_history(path: AnyPath) -> list[EpochMetrics]:
    """Return what ``history.csv`` tells; nothing where it is damaged, and is written anew."""
    try:
        return read_history(path)
    except TunerError:
        return []


def read_own_progress(path: AnyPath) -> tuple[list[EpochMetrics], Kept | None, str]:
    """Read a trial's saved state but for its tensors, having made sure that it is the trial's own.

    A state that is newer than its digest, for a kill came between, has to tell of the epochs that
    ``history.csv`` does, or of more.

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
            # An epoch that diverged is told in history.csv alone.
            if any(one != other for one, other in zip(told, history, strict=False)):
                origin = "other"
    except TunerError as error:
        raise DamagedError([Damage.of(error)], ANEW) from error
    if origin == "other":
        raise DamagedError([changed(path, STATE)], ANEW)
    return history, kept, found


def check_resumable(run: Run) -> None:
    """Make sure that a run can go on: its trials' records, and what open ones go on from.

    Raises:
        DamagedError: If files are damaged, or not those that were written.
    """
    damage: list[Damage] = []
    for trial in run.trials(damage):
        if trial.status.state not in OPEN:
            damage += damage_of_record(trial)
        elif not trial.state.exists():
            # It begins anew.
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
    """Return the digests of a trial's folder, with that of the configuration it is trained by."""
    digests = read_digests(path)
    if CONFIG not in digests and (path / CONFIG).exists():
        digests[CONFIG] = sha256_of(path / CONFIG)
    return digests


def forget_progress(path: AnyPath) -> None:
    """Remove what the training of a trial has left in its folder."""
    # The state first: it tells what the others are.
    for name in (STATE, HISTORY, CHECKPOINT, VAL_PROBS, DIGESTS):
        (path / name).unlink(missing_ok=True)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: dict[str, Tensor]) -> None:
    """Make ``target`` equal ``source``, in the tensors that it has where they fit."""
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
