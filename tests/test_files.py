"""A file is written whole or not at all, whoever reads or fails meanwhile."""

import json
import math
import os
import stat
import threading
from pathlib import Path

import pytest

from tuner.storage.files import append_line, replacing, write_json, write_text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.txt"


def test_the_new_file_takes_the_place_of_the_old(path: Path) -> None:
    write_text(path, "old and much longer")
    write_text(path, "new")
    assert path.read_bytes() == b"new"


def test_text_is_written_as_utf_8_with_its_own_line_ends(path: Path) -> None:
    write_text(path, "räksmörgås\n猫\n")
    assert path.read_bytes() == "räksmörgås\n猫\n".encode()


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "file.txt", "text")
    assert (tmp_path / "a" / "b" / "file.txt").read_text() == "text"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_the_old_file(path: Path, error: type[BaseException]) -> None:
    write_text(path, "old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"


def test_a_block_that_raises_makes_no_new_file(path: Path) -> None:
    with pytest.raises(RuntimeError), replacing(path):
        raise RuntimeError
    assert not path.exists()


@pytest.mark.parametrize("fails", [False, True])
def test_no_temporary_file_stays_behind(path: Path, fails: bool) -> None:
    write_text(path, "old")
    try:
        with replacing(path) as temporary:
            assert temporary.parent == path.parent, "a rename must not cross file systems"
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert list(path.parent.iterdir()) == [path]


def test_a_temporary_file_is_hidden_from_globs_of_the_name(path: Path) -> None:
    with replacing(path) as temporary:
        assert temporary.name.startswith(".")
        assert not list(path.parent.glob("file*"))


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_everybody_may_read_the_file_whatever_the_umask(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text(path, "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_reader_meanwhile_sees_the_old_file_or_the_new_one(path: Path) -> None:
    texts = [letter * 300_000 for letter in "ab"]
    write_text(path, texts[0])
    has_ended = threading.Event()

    def write() -> None:
        for turn in range(40):
            write_text(path, texts[turn % 2])
        has_ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not has_ended.is_set():
        seen.add(path.read_text())
    writer.join()
    assert seen <= set(texts)


def test_bytes_are_on_disk_before_a_file_takes_its_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, replace = os.fsync, Path.replace
    done: list[str] = []

    def flush(handle: int) -> None:
        done.append(f"flush {os.fstat(handle).st_size} bytes")
        fsync(handle)

    def rename(old: Path, new: Path) -> Path:
        done.append("rename")
        return replace(old, new)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", rename)
    write_text(path, "text")
    assert done == ["flush 4 bytes", "rename"]
    append_line(path, "line")
    assert done[2:] == ["flush 9 bytes"]
    write_text(path, "text", flush=False)
    assert done[3:] == ["rename"]


def test_writers_at_once_leave_the_whole_file_of_one(path: Path) -> None:
    texts = [letter * 100_000 for letter in "abcd"]
    writers = [threading.Thread(target=write_text, args=(path, text)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_text() in texts
    assert list(path.parent.iterdir()) == [path]


def test_json_comes_back_as_it_was(path: Path) -> None:
    plain = {"name": "räksmörgås", "share": 1 / 3, "tiny": 5e-324, "list": [1, None, True]}
    write_json(path, plain)
    assert json.loads(path.read_text()) == plain


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_json_has_no_word_for_nan_and_infinity(path: Path, number: float) -> None:
    write_json(path, {"accuracy": 0.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"accuracy": number})
    assert json.loads(path.read_text()) == {"accuracy": 0.5}
