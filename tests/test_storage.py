"""A run lies in a folder or in a store, with the same promises; a store may be gone for a while."""

import pickle
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stores import S3Server
from tuner.errors import StorageError, UsageError
from tuner.storage import lease, object_path, object_storage
from tuner.storage import object_store as store
from tuner.storage.files import append_line, remove_leftovers, replacing, write_text
from tuner.storage.object_path import ObjectPath
from tuner.storage.paths import (
    AnyPath,
    copy_file,
    etag,
    folders_with,
    locked,
    modified,
    on_disk,
    read_bytes,
    read_text,
    remove_folder,
    replace_folder,
    scratch,
    to_path,
    with_snapshot,
)
from tuner.storage.protocol import LOCK_NAME


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    """Return an empty folder of each kind."""
    return tmp_path if request.param == "folder" else request.getfixturevalue("bucket")


def test_a_file_is_read_as_it_was_written(place: AnyPath) -> None:
    write_text(place / "a" / "file.txt", "räksmörgås\n猫\n")
    assert (place / "a" / "file.txt").read_bytes() == "räksmörgås\n猫\n".encode()
    assert read_text(place / "a" / "file.txt") == "räksmörgås\n猫\n"
    assert (place / "a").exists()
    assert not (place / "a" / "other.txt").exists()
    assert [path.name for path in place.iterdir()] == ["a"]


def test_a_block_that_raises_leaves_the_old_file(place: AnyPath) -> None:
    write_text(place / "file.txt", "old")

    def fail() -> None:
        with replacing(place / "file.txt") as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert read_text(place / "file.txt") == "old"


def test_what_is_not_there_is_not_found(place: AnyPath) -> None:
    with pytest.raises(FileNotFoundError):
        read_text(place / "file.txt")
    (place / "file.txt").unlink(missing_ok=True)
    assert etag(place / "file.txt") is None


def test_lines_are_added_at_the_end(place: AnyPath) -> None:
    write_text(place / "other", "")
    for line in ("one", "two", "three"):
        append_line(place / "lines", line)
    assert read_text(place / "lines") == "one\ntwo\nthree\n"


def test_folders_are_found_by_a_file_in_them(place: AnyPath) -> None:
    write_text(place / "b" / "run.json", "")
    write_text(place / "a" / "run.json", "")
    write_text(place / "c" / "other.json", "")
    assert folders_with(place, "run.json") == [place / "a", place / "b"]
    assert not folders_with(place / "nowhere", "run.json")


def test_a_snapshot_knows_a_folder_as_it_was_seen(bucket: ObjectPath) -> None:
    write_text(bucket / "trials" / "0001" / "status.json", "old")
    write_text(bucket / "trials" / "0001" / "large.bin", "")
    seen = with_snapshot(bucket / "trials", "status.json")
    write_text(bucket / "trials" / "0001" / "status.json", "new")
    (bucket / "trials" / "0001" / "large.bin").unlink(missing_ok=True)
    (trial,) = seen.iterdir()
    assert read_text(trial / "status.json") == "old"
    assert (trial / "large.bin").exists()
    assert not (trial / "none").exists()
    with pytest.raises(FileNotFoundError):
        (trial / "none").read_bytes()
    there = pickle.loads(pickle.dumps(trial))
    assert read_text(there / "status.json") == "new", "what was seen does not travel"


def test_a_stamp_changes_with_the_file(place: AnyPath) -> None:
    write_text(place / "file", "one")
    first = etag(place / "file")
    assert first == etag(place / "file")
    time.sleep(0.02)
    write_text(place / "file", "one more")
    assert etag(place / "file") != first


def test_a_file_on_disk_is_the_file_or_a_copy_for_a_while(place: AnyPath) -> None:
    write_text(place / "weights.bin", "weights")
    with on_disk(place / "weights.bin") as file:
        assert file.read_text() == "weights"
        assert file.name == "weights.bin"
    assert file.exists() == (file == place / "weights.bin")


def test_a_file_that_is_too_large_is_not_read(place: AnyPath) -> None:
    write_text(place / "file", "12345")
    assert read_bytes(place / "file", most=5) == b"12345"
    with pytest.raises(OSError, match=r"file has 5 bytes, more than the 4"):
        read_bytes(place / "file", most=4)


def test_a_file_that_is_too_large_does_not_leave_its_bucket(
    bucket: ObjectPath, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = bucket / "a" / "large"
    write_text(large, "x" * 1001)
    write_text(bucket / "a" / "small", "")
    for module, name in (
        *((object_path, "MOST_TEXT"), (object_storage, "MOST_TEXT")),
        *((object_storage, "MOST_TENSORS"), (lease, "MOST_TEXT")),
    ):
        monkeypatch.setattr(module, name, 1000)
    seen = with_snapshot(bucket, "large", "small")
    assert (seen / "a" / "small").size() == 0
    actions: list[Callable[[], object]] = [
        lambda: read_bytes(large, most=1000),
        lambda: read_bytes(seen / "a" / "large", most=1000),
        lambda: append_line(large, "line"),
        lambda: on_disk(large).__enter__(),
    ]
    for act in actions:
        with pytest.raises(OSError, match="large has 1001 bytes, more than the 1000"):
            act()
    assert folders_with(bucket, "large") == [bucket / "a"]
    write_text(bucket / LOCK_NAME, "x" * 1001)
    with pytest.raises(UsageError, match="damaged or unreadable: has 1001 bytes"):
        locked(bucket).__enter__()
    assert (bucket / "a" / "small").read_bytes() == b""
    log, folder = server.log.read_text(), large.parent.uri.removeprefix("s3://")
    assert f'"GET /{folder}/small' in log
    assert f'"GET /{folder}/large' not in log


def test_a_file_says_when_it_was_written(place: AnyPath) -> None:
    write_text(place / "file", "")
    assert modified(place / "file") == pytest.approx(time.time(), abs=60)


def test_a_folder_is_made_once(place: AnyPath) -> None:
    write_text(place / "run" / "run.json", "")
    with pytest.raises(FileExistsError):
        (place / "run").mkdir(parents=True)
    (place / "other").mkdir(parents=True)


def test_a_folder_is_removed_with_all_in_it(place: AnyPath) -> None:
    write_text(place / "run" / "trials" / "status.json", "")
    remove_folder(place / "run")
    remove_folder(place / "nowhere")
    assert not (place / "run").exists()


def test_one_search_at_a_time_has_a_folder(place: AnyPath) -> None:
    write_text(place / "run.json", "")
    with locked(place), pytest.raises(UsageError, match="is searching this run; wait for it"):
        locked(place).__enter__()
    with locked(place):
        pass


def test_whole_files_are_no_leftovers(place: AnyPath) -> None:
    write_text(place / "status.json", "")
    remove_leftovers(place)
    assert [path.name for path in place.iterdir()] == ["status.json"]


def test_a_file_is_copied_between_all_kinds(place: AnyPath, tmp_path: Path) -> None:
    write_text(place / "one", "text")
    copy_file(place / "one", place / "two")
    copy_file(place / "two", tmp_path / "three")
    copy_file(tmp_path / "three", place / "four")
    assert read_text(place / "four") == "text"


def test_a_folder_takes_the_place_of_another_with_all_in_it(place: AnyPath, tmp_path: Path) -> None:
    write_text(place / "top2" / "stale.png", "")
    write_text(place / "top2" / "metrics.json", "old")
    new = tmp_path / "scratch" / "new"
    write_text(new / "metrics.json", "new")
    write_text(new / "members" / "0001.bin", "weights")
    replace_folder(new, place / "top2", last="metrics.json")
    assert read_text(place / "top2" / "metrics.json") == "new"
    assert read_text(place / "top2" / "members" / "0001.bin") == "weights"
    assert sorted(path.name for path in (place / "top2").iterdir()) == ["members", "metrics.json"]


def test_a_scratch_folder_is_gone_after_its_block(place: AnyPath) -> None:
    write_text(place / "run.json", "")
    with scratch(place, ".ensemble-") as folder:
        write_text(folder / "soup.bin", "soup")
        assert (folder / "soup.bin").exists()
        assert folder.name.startswith(".ensemble-")
    assert [path.name for path in place.iterdir()] == ["run.json"]


def test_of_writers_at_once_one_creates_a_file(bucket: ObjectPath) -> None:
    won: list[int] = []

    def create(number: int) -> None:
        try:
            (bucket / "lock").create(str(number).encode())
        except FileExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [read_text(bucket / "lock")] == [str(number) for number in won]


@pytest.mark.parametrize(
    "text", ["s3://", "s3:/bucket", "s3://bucket/../x", "file:///runs", "://x"]
)
def test_what_is_no_folder_of_a_store_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write s3://BUCKET/FOLDER"):
        to_path(text)


def test_an_empty_word_is_not_the_current_folder() -> None:
    with pytest.raises(UsageError, match="'': is empty; give a name or a path"):
        to_path("")


def test_slashes_too_many_change_nothing() -> None:
    assert to_path("s3://bucket//runs/") == to_path("s3://bucket/runs")


def test_a_kind_of_storage_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UsageError, match="no such kind of storage"):
        (to_path("nonsense://bucket/runs") / "run.json").exists()


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UsageError, match=re.escape("pip install -e '.[gcs]', in the clone")):
        to_path("gs://bucket/runs").exists()


def test_missing_credentials_are_told_at_once(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setitem(store.OPTIONS, "s3", {"max_concurrency": 2})  # Makes a client of its own.
    began = time.monotonic()
    with pytest.raises(UsageError, match="credentials"):
        to_path("s3://refused/runs").exists()
    assert time.monotonic() - began < store.FIRST_SECONDS / 2


def test_access_that_is_lost_is_no_mistake_of_the_trial(bucket: ObjectPath) -> None:
    """So that its worker counts as lost, and it goes on when the search does."""

    def refuse(fs: object) -> None:
        raise PermissionError("ExpiredToken")

    fresh = store.Store("s3://bucket")
    with pytest.raises(UsageError, match="ExpiredToken"):
        fresh.answer(refuse)
    fresh.answer(lambda fs: fs.exists("s3://bucket"))
    with pytest.raises(StorageError, match="ExpiredToken"):
        fresh.answer(refuse)


def test_an_outage_is_waited_out_and_told(
    bucket: ObjectPath, server: S3Server, capfd: pytest.CaptureFixture[str]
) -> None:
    write_text(bucket / "before", "kept")
    server.kill()
    timer = threading.Timer(2.0, server.start)
    timer.start()
    write_text(bucket / "meanwhile", "written")
    timer.join()
    assert read_text(bucket / "before") == "kept"
    assert read_text(bucket / "meanwhile") == "written"
    told = capfd.readouterr().err
    assert "s3://bucket does not answer" in told
    assert re.search(r"answers again, after \d+ s", told)


def test_a_bucket_that_is_read_and_takes_no_file_is_given_up(
    bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PATIENCE_SECONDS", 1.0)
    write_text(bucket / "file", "")
    asked = store.store_of("s3://bucket")

    def write(fs: Any) -> None:
        # The lock's renewal is read all the while.
        asked.answer(lambda fs: fs.cat_file(f"{bucket}/file"))
        raise OSError("the quota is used up")

    with pytest.raises(StorageError, match="the quota is used up"):
        asked.answer(write)


def test_an_outage_is_waited_out_once(
    bucket: ObjectPath, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0

    def read(fs: Any) -> None:
        nonlocal attempts
        attempts += 1
        fs.cat_file(f"{bucket}/file")

    monkeypatch.setattr(store, "PATIENCE_SECONDS", 1.0)
    write_text(bucket / "file", "")
    server.kill()
    try:
        with pytest.raises(StorageError, match="--resume"):
            read_text(bucket / "file")
        with pytest.raises(StorageError):
            store.store_of("s3://bucket").answer(read)
    finally:
        server.start()
    assert attempts == 1
    assert read_text(bucket / "file") == ""


def test_the_users_home_is_found_and_nobodys_is_a_name() -> None:
    assert to_path("~/runs") == Path.home() / "runs"
    assert to_path("~nobody-here/runs") == Path("~nobody-here/runs")
