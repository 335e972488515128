"""A storage that fails: told from other errors, waited for, given up once."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.disks import remount, small_disk
from tuner.errors import StorageError
from tuner.run.checkpoint import read_description, save_state
from tuner.run.teacher_probs import TeacherProbs, write_teacher_probs
from tuner.run.trial import EpochMetrics, write_val_probs
from tuner.storage import patience as patience_module
from tuner.storage.files import append_line, write_text
from tuner.storage.object_path import ObjectPath
from tuner.storage.paths import AnyPath, copy_file, on_disk, sha256_of
from tuner.storage.patience import Patience, patient, persevere, storage_fault
from tuner.storage.records import explaining_damage


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def patience(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Patience]:
    monkeypatch.setattr(patience_module, "PATIENCE_SECONDS", 0.5)
    with patient(Patience(tmp_path, said.append)) as patience:
        yield patience


class Flaky:
    """Fails with errors, one after the other, and then does what it should."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_outage_is_waited_out_and_told_twice(
    patience: Patience, said: list[str], tmp_path: Path
) -> None:
    assert persevere(Flaky(full(), OSError(errno.EIO, "Input/output error"))) == "done"
    assert said == [
        f"{tmp_path}: cannot be used (No space left on device); trying again for 0 s.",
        f"{tmp_path} can be used again, after 1 s.",
    ]
    assert not patience.problem


def test_a_storage_that_fails_for_too_long_is_given_up_once(
    patience: Patience, said: list[str]
) -> None:
    with pytest.raises(StorageError, match="No space left on device"):
        persevere(Flaky(*(full() for _ in range(9))))
    assert patience.problem == "No space left on device"
    second = Flaky(full(), full())
    with pytest.raises(StorageError):
        persevere(second)
    assert len(second.errors) == 1, "it was tried once more, and not waited for"
    assert persevere(Flaky()) == "done"
    assert len(said) == 1


def test_other_errors_are_nobody_elses(patience: Patience, said: list[str]) -> None:
    for error in (ValueError("a bug"), FileNotFoundError(errno.ENOENT, "no such file")):
        with pytest.raises(type(error)):
            persevere(Flaky(error))
        assert not patience.blame(error)
    assert said == []


def test_the_cause_of_an_error_is_blamed(patience: Patience) -> None:
    # As Tune wraps what its callbacks raise.
    wrapper = RuntimeError("Traceback: ...")
    wrapper.__context__ = full()
    assert patience.blame(wrapper)
    assert patience.problem == "No space left on device"


def test_a_run_folder_that_is_gone_is_not_made_anew(patience: Patience, tmp_path: Path) -> None:
    tmp_path.rmdir()
    with pytest.raises(StorageError, match="the folder is gone"):
        write_text(tmp_path / "run.json", "{}")
    assert not tmp_path.exists()
    tmp_path.mkdir()


def test_without_patience_an_error_comes_at_once() -> None:
    with pytest.raises(OSError, match="No space"):
        persevere(Flaky(full()))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "64k"):
        yield tmp_path / "disk"


ROW = EpochMetrics(
    epoch=1, train_loss=1.0, val_loss=1.0, val_accuracy=0.5, lr=0.1, seconds=1.0, time=1.0
)
WRITERS: dict[str, Callable[[AnyPath], None]] = {
    "text": lambda folder: write_text(folder / "text", "x" * 100_000),
    "probabilities": lambda folder: write_val_probs(folder, np.zeros((20_000, 10), np.float32)),
    "teacher": lambda folder: write_teacher_probs(
        folder, TeacherProbs(train=torch.zeros(10_000, 10), val=torch.zeros(1, 10))
    ),
    "state": lambda folder: save_state(
        folder / "state.safetensors", {"weights": torch.zeros(50_000)}, [ROW]
    ),
    "bfloat16": lambda folder: save_state(
        folder / "state.safetensors", {"weights": torch.zeros(90_000, dtype=torch.bfloat16)}, [ROW]
    ),
}


def put_back(folder: AnyPath) -> None:
    """Read a file that has no room."""
    with on_disk(folder / "large"):
        pass


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_told_whatever_is_written(write: Callable[[Path], None], disk: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        write(disk)
    assert storage_fault(caught.value) == "No space left on device"
    named = Path(caught.value.filename)
    assert (named.parent, named.name[:1] != ".") == (disk, True)
    assert [*disk.iterdir()] == []


def test_a_full_disk_is_named_by_the_file_to_which_a_line_is_added(disk: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        append_line(disk / "readings.jsonl", "x" * 100_000)
    assert caught.value.filename == str(disk / "readings.jsonl")


def test_a_file_is_not_damaged_because_its_copy_has_no_room(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(100_000))
    with (
        pytest.raises(OSError, match="No space left") as caught,
        explaining_damage(tmp_path / "large"),
    ):
        copy_file(tmp_path / "large", disk / "copy")
    assert caught.value.filename == str(disk / "copy")


@pytest.mark.parametrize("write", [*WRITERS.values(), put_back], ids=[*WRITERS, "read"])
def test_a_full_disk_on_the_way_to_a_bucket_is_named(
    write: Callable[[AnyPath], None],
    disk: Path,
    bucket: ObjectPath,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (bucket / "large").write_bytes(bytes(100_000))
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    with pytest.raises(OSError, match="No space left") as caught:
        write(bucket)
    assert storage_fault(caught.value) == (
        f"No space left on device in {disk} on this machine, which files pass through"
    )


def described(file: AnyPath) -> None:
    read_description(file)


def hashed(file: AnyPath) -> None:
    with explaining_damage(file):
        sha256_of(file)


@pytest.mark.parametrize("read", [described, hashed])
def test_a_file_of_a_bucket_is_not_damaged_because_this_machine_has_no_room(
    read: Callable[[AnyPath], None],
    disk: Path,
    bucket: ObjectPath,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (bucket / "large").write_bytes(bytes(100_000))
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    with pytest.raises(OSError, match=f"No space left on device in {disk} on this machine"):
        read(bucket / "large")


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_disk_that_became_read_only_is_told_whatever_is_written(
    write: Callable[[Path], None], disk: Path
) -> None:
    remount(disk, "ro")
    with pytest.raises(Exception) as caught:  # noqa: PT011
        write(disk)
    assert storage_fault(caught.value) == "Read-only file system"
