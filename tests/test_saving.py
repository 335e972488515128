"""What a trial's files hold, whenever its worker is killed."""

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.disks import remount, small_disk
from tuner.config import ModelConfig, Sgd, TrialConfig
from tuner.data.splits import Splits
from tuner.errors import StorageError
from tuner.run.checkpoint import load_checkpoint, load_progress, load_state
from tuner.run.digests import DamagedError
from tuner.run.trial import EpochMetrics, kept_row, read_history, write_history
from tuner.storage import patience as patience_module
from tuner.storage.files import remove_leftovers
from tuner.storage.patience import Patience, patient
from tuner.training import saving
from tuner.training.epoch import Epoch
from tuner.training.loop import train
from tuner.training.saving import Saver, restore_files

CPU = torch.device("cpu")
CONFIG = TrialConfig(
    model=ModelConfig("cnn", {"stages": 2, "width": 8}),
    epochs=6,
    seed=3,
    batch_size=64,
    optimizer=Sgd(lr=0.1),
)


def saver_of(path: Path, splits: Splits, history: list[EpochMetrics], **options: Any) -> Saver:
    return Saver(path, CONFIG.model, splits, history, **options)


def epochs_of(splits: Splits, **options: Any) -> contextlib.closing[Any]:
    return contextlib.closing(train(CONFIG, splits, CPU, **options))


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def assert_one_moment(path: Path, splits: Splits) -> None:
    """Check that all of a trial's files tell of the epochs of its saved state."""
    history = load_progress(path / "state.safetensors")[0]
    assert read_history(path) == history
    best = kept_row(history, "accuracy", is_val_seen=splits.is_val_seen)
    assert best is not None
    assert load_checkpoint(path / "checkpoint.safetensors", CONFIG.model)[1].epoch == best.epoch
    probs = np.load(path / "val_probs.npy")
    accuracy = (probs.argmax(axis=1) == splits.val.labels.numpy()).mean()
    assert accuracy == best.val_accuracy
    files = contents(path)
    digests = json.loads(files.pop("digests.json"))["files"]
    assert {"state.safetensors", "checkpoint.safetensors", "history.csv"} < digests.keys()
    assert digests == {name: hashlib.sha256(files[name]).hexdigest() for name in digests}


class KilledError(BaseException):
    pass


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a function after which nothing is written but so many files more."""
    left = 10**9
    replace_file = Path.replace

    def counted(path: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            raise KilledError
        left -= 1
        return replace_file(path, target)

    def kill(num_files: int) -> None:
        nonlocal left
        left = num_files

    monkeypatch.setattr(Path, "replace", counted)
    yield kill
    left = 10**9


def test_a_training_goes_on_from_any_moment_to_the_same_numbers(
    digits: Splits, tmp_path: Path, kill_after: Any
) -> None:
    with epochs_of(digits) as epochs:
        whole = [epoch.figures for epoch in epochs]
    # Before each file of the second write.
    for num_files in range(6):
        path = tmp_path / str(num_files)
        saver = saver_of(path, digits, [])
        with contextlib.suppress(KilledError), saver, epochs_of(digits) as epochs:
            for epoch in epochs:
                saver.keep(epoch)
                if epoch.figures.epoch == 2:
                    saver.save()
                if epoch.figures.epoch == 4:
                    kill_after(num_files)
                    saver.save()
        kill_after(10**9)
        history = restore_files(path)
        assert len(history) == (2 if num_files == 0 else 4)
        assert_one_moment(path, digits)
        before = contents(path)
        restore_files(path)
        assert contents(path) == before
        saver = saver_of(path, digits, history)
        state = load_state(path / "state.safetensors")
        with saver, epochs_of(digits, state=state, epochs_done=len(history)) as epochs:
            for epoch in epochs:
                saver.keep(epoch)
            saver.save()
        assert_one_moment(path, digits)
        losses = [(row.train_loss, row.val_loss, row.val_accuracy) for row in saver.history]
        assert losses == [(row.train_loss, row.val_loss, row.val_accuracy) for row in whole]


def test_an_epoch_is_written_from_where_it_is_as_from_a_copy(
    digits: Splits, tmp_path: Path
) -> None:
    paths = [tmp_path / "0", tmp_path / "1"]
    with (
        saver_of(paths[0], digits, []) as copied,
        saver_of(paths[1], digits, []) as direct,
        epochs_of(digits) as epochs,
    ):
        for epoch in epochs:
            copied.keep(epoch)
            if epoch.figures.epoch not in (2, 3, 6):
                direct.keep(epoch)
                continue
            copied.save()
            direct.save(epoch)
            found, state = (load_state(path / "state.safetensors") for path in paths)
            torch.testing.assert_close(found, state, rtol=0, atol=0)
            for path in paths:
                assert_one_moment(path, digits)
            assert read_history(paths[0]) == read_history(paths[1])
            names = ("checkpoint.safetensors", "val_probs.npy")
            assert all(contents(paths[0])[name] == contents(paths[1])[name] for name in names)


def test_what_is_written_does_not_change_with_the_training(digits: Splits, tmp_path: Path) -> None:
    held = threading.Event()

    def wait() -> None:
        assert held.wait(60)

    with (
        saver_of(tmp_path, digits, [], seconds=0, check=wait) as saver,
        epochs_of(digits) as epochs,
    ):
        state: dict[str, torch.Tensor] = {}
        for epoch in epochs:
            saver.keep(epoch)
            if epoch.figures.epoch == 1:
                state = {name: t.clone() for name, t in epoch.learner.state().items()}
            # The first one begins a write; while it is under way, the others are passed over.
            saver.save_if_due()
            assert not saver.is_saved
            if epoch.figures.epoch == 3:
                break
        first = saver._writing
        held.set()
        assert first is not None
        first.result()
        assert len(load_progress(tmp_path / "state.safetensors")[0]) == 1
        torch.testing.assert_close(
            load_state(tmp_path / "state.safetensors"), state, rtol=0, atol=0
        )
        saver.save()
        assert saver.is_saved
        assert len(load_progress(tmp_path / "state.safetensors")[0]) == 3
    assert_one_moment(tmp_path, digits)


def test_an_epoch_is_saved_when_the_next_one_would_come_too_late(
    digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 100.0
    monkeypatch.setattr(saving.time, "monotonic", lambda: clock)
    with epochs_of(digits) as epochs:
        first = next(epochs)
        with saver_of(tmp_path, digits, [], seconds=10) as saver:
            saved = []
            for number, seconds in enumerate([4, 4, 4, 4, 1, 20, 1], 1):
                clock += seconds
                row = replace(first.figures, epoch=number, seconds=float(seconds))
                saver.keep(replace(first, figures=row))
                saver.save_if_due()
                if saver._writing is not None:
                    saver._finish()
                    saved.append(number)
    # After 8 s a third epoch of 4 s would end at 12; an epoch of 20 s is saved, however short ago.
    assert saved == [2, 4, 6]


def test_an_epoch_that_diverged_is_told_and_not_gone_on_from(
    digits: Splits, tmp_path: Path
) -> None:
    with saver_of(tmp_path, digits, []) as saver, epochs_of(digits) as epochs:
        epoch: Epoch = next(epochs)
        saver.keep(epoch)
        lost = replace(epoch.figures, epoch=2, val_loss=float("nan"))
        saver.keep(replace(epoch, figures=lost))
        saver.save()
    assert [row.epoch for row in read_history(tmp_path)] == [1, 2]
    assert len(load_progress(tmp_path / "state.safetensors")[0]) == 1
    assert restore_files(tmp_path) == [epoch.figures]
    assert_one_moment(tmp_path, digits)


def test_an_error_of_the_training_leaves_the_newest_epoch_on_disk(
    digits: Splits, tmp_path: Path
) -> None:
    def train_and_fail() -> None:
        with saver_of(tmp_path, digits, []) as saver, epochs_of(digits) as epochs:
            saver.keep(next(epochs))
            saver.keep(next(epochs))
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        train_and_fail()
    assert len(load_progress(tmp_path / "state.safetensors")[0]) == 2
    assert_one_moment(tmp_path, digits)


def test_an_error_of_the_thread_reaches_the_training(digits: Splits, tmp_path: Path) -> None:
    def refuse() -> None:
        raise OSError("the disk is full")

    def train_on() -> None:
        with (
            saver_of(tmp_path, digits, [], seconds=0, check=refuse) as saver,
            epochs_of(digits) as epochs,
        ):
            for epoch in epochs:
                saver.keep(epoch)
                saver.save_if_due()
                time.sleep(0.1)

    with pytest.raises(OSError, match="the disk is full"):
        train_on()
    assert not list(tmp_path.iterdir())


def test_a_copy_that_found_no_memory_is_not_written(
    digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*unused: object) -> None:
        raise torch.OutOfMemoryError

    def train_on() -> None:
        with saver_of(tmp_path, digits, []) as saver, epochs_of(digits) as epochs:
            saver.keep(next(epochs))
            saver.save()
            monkeypatch.setattr(torch, "_foreach_copy_", fail)
            saver.keep(next(epochs))

    with pytest.raises(torch.OutOfMemoryError):
        train_on()
    assert len(restore_files(tmp_path)) == 1


def test_what_others_leave_in_a_trial_stops_nothing(digits: Splits, tmp_path: Path) -> None:
    with saver_of(tmp_path, digits, []) as saver, epochs_of(digits) as epochs:
        saver.keep(next(epochs))
        saver.save()
    history = restore_files(tmp_path)
    (tmp_path / "history.csv").write_text("epoch;train_loss\n1;0,5\n")
    (tmp_path / ".ipynb_checkpoints" / "more").mkdir(parents=True)
    (tmp_path / ".ipynb.checkpoints.here").mkdir()
    (tmp_path / ".DS_Store").touch()
    (tmp_path / ".history.csv.1.tmp").touch()
    remove_leftovers(tmp_path)
    assert restore_files(tmp_path) == history == read_history(tmp_path)
    hidden = {path.name for path in tmp_path.glob(".*")}
    assert hidden == {".ipynb_checkpoints", ".ipynb.checkpoints.here", ".DS_Store"}


def test_a_state_of_an_earlier_version_is_gone_on_from(digits: Splits, tmp_path: Path) -> None:
    with saver_of(tmp_path, digits, []) as saver, epochs_of(digits) as epochs:
        saver.keep(next(epochs))
        saver.save()
    path = tmp_path / "state.safetensors"
    saving.save_state(path, load_state(path), load_progress(path)[0])
    (tmp_path / "digests.json").unlink()
    history, kept = load_progress(path)
    assert kept is None
    before = contents(tmp_path)
    assert restore_files(tmp_path) == history
    after = contents(tmp_path)
    # What nobody has recorded is not vouched for.
    digests = json.loads(after.pop("digests.json"))["files"]
    assert set(digests) == {"state.safetensors", "history.csv"}
    assert after == before


def saved(path: Path, splits: Splits, seed: int, num_epochs: int = 1) -> list[EpochMetrics]:
    """Train the first epochs of a trial, and save them."""
    config = replace(CONFIG, seed=seed)
    with (
        saver_of(path, splits, []) as saver,
        contextlib.closing(train(config, splits, CPU)) as epochs,
    ):
        for _ in range(num_epochs):
            saver.keep(next(epochs))
        saver.save()
    return saver.history


@pytest.mark.parametrize("num_epochs", [1, 2])
def test_the_state_of_another_trial_is_not_gone_on_from(
    digits: Splits, tmp_path: Path, num_epochs: int
) -> None:
    saved(tmp_path / "1", digits, seed=1)
    saved(tmp_path / "2", digits, seed=2, num_epochs=num_epochs)
    shutil.copy(tmp_path / "2" / "state.safetensors", tmp_path / "1" / "state.safetensors")
    before = contents(tmp_path / "1")
    with pytest.raises(DamagedError, match=r"state\.safetensors: is not what .* trained again"):
        restore_files(tmp_path / "1")
    assert contents(tmp_path / "1") == before


def test_a_state_that_is_newer_than_its_digest_is_gone_on_from(
    digits: Splits, tmp_path: Path
) -> None:
    saved(tmp_path / "1", digits, seed=1)
    longer = saved(tmp_path / "2", digits, seed=1, num_epochs=2)
    # Seconds and times are those of its own training.
    write_history(tmp_path / "1", longer[:1])
    shutil.copy(tmp_path / "2" / "state.safetensors", tmp_path / "1")
    assert restore_files(tmp_path / "1") == longer
    assert_one_moment(tmp_path / "1", digits)


@pytest.mark.parametrize("content", [b"", b"{}", bytes(64), None])
def test_a_damaged_state_is_told(digits: Splits, tmp_path: Path, content: bytes | None) -> None:
    saved(tmp_path, digits, seed=1)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    with pytest.raises(DamagedError, match=r"state\.safetensors: damaged or unreadable: "):
        restore_files(tmp_path)


def test_files_without_a_state_belong_to_a_training_that_begins_anew(
    digits: Splits, tmp_path: Path
) -> None:
    with saver_of(tmp_path, digits, []) as saver, epochs_of(digits) as epochs:
        saver.keep(next(epochs))
        saver.save()
    (tmp_path / "state.safetensors").unlink()
    assert restore_files(tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_waited_for_and_nothing_is_lost(digits: Splits, tmp_path: Path) -> None:
    said = []

    def make_room(line: str) -> None:
        said.append(line)
        remount(disk, "size=10m")

    disk = tmp_path / "disk"
    with small_disk(disk, "16k"), patient(Patience(disk, make_room)):
        with saver_of(disk, digits, []) as saver, epochs_of(digits) as epochs:
            for epoch in epochs:
                saver.keep(epoch)
                saver.save_if_due()
                if epoch.figures.epoch == 3:
                    saver.save()
                    assert saver.is_saved
        assert_one_moment(disk, digits)
        assert "No space left on device" in said[0]
        assert "can be used again" in said[1]


def train_until_full(disk: Path, splits: Splits) -> None:
    """Save each epoch, and leave no room for another one after the first."""
    with saver_of(disk, splits, []) as saver, epochs_of(splits) as epochs:
        for epoch in epochs:
            saver.keep(epoch)
            saver.save()
            left = os.statvfs(disk)
            (disk / "other").write_bytes(bytes(left.f_bavail * left.f_frsize - 2**13))


def test_a_disk_that_stays_full_is_given_up_with_what_was_saved(
    digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience_module, "PATIENCE_SECONDS", 0.5)
    disk = tmp_path / "disk"
    with small_disk(disk, "10m"), patient(Patience(disk, lambda line: None)):
        with pytest.raises(StorageError, match="No space left on device"):
            train_until_full(disk, digits)
        assert len(restore_files(disk)) == 1
        assert_one_moment(disk, digits)
