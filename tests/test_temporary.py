"""What a killed process was writing is removed by the next one, and nothing of a live one."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_run import make_run
from tuner.storage import temporary
from tuner.storage.files import replacing, write_text
from tuner.storage.temporary import (
    FORGOTTEN_SECONDS,
    TemporaryFolder,
    own_suffix,
    remove_abandoned,
)

WRITER = """
import sys, time
from pathlib import Path
from tuner.storage.files import replacing
from tuner.storage.paths import scratch
folder = Path(sys.argv[1])
with replacing(folder / "run.json"), scratch(folder, ".ensemble-") as made:
    (made / "soup.bin").write_text("soup")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "YOUNG_SECONDS", 0.0)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Yield a process that writes a file and a folder in ``tmp_path``, and does not end."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    with process:
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def test_what_a_killed_process_was_writing_is_removed(
    tmp_path: Path, writer: "subprocess.Popen[str]"
) -> None:
    write_text(tmp_path / ".plans" / "plan.json", "{}")
    before = sorted(tmp_path.iterdir())
    assert len(before) == 3
    remove_abandoned(tmp_path)
    assert sorted(tmp_path.iterdir()) == before, "its process lives"
    writer.kill()
    writer.wait()
    remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".plans"]


def test_what_is_not_locked_yet_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f".run.json.abc{own_suffix()}"
    file.touch()
    monkeypatch.setattr(temporary, "YOUNG_SECONDS", 60.0)
    remove_abandoned(tmp_path)
    assert list(tmp_path.iterdir())
    os.utime(file, (0, time.time() - 61))
    remove_abandoned(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_another_machine_made_is_left_alone_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems do not show other machines' locks, so that they look free from here.

    The other machine may have the same host name, as containers do.
    """
    (tmp_path / "boot_id").write_text("elsewhere")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(temporary, "BOOT_ID", tmp_path / "boot_id")
        file = tmp_path / f".run.json.abc{own_suffix()}"
        folder = tmp_path / f".ensemble-abc{own_suffix()}"
    (tmp_path / "boot_id").unlink()
    file.touch()
    write_text(folder / "new" / "soup.bin", "soup")
    remove_abandoned(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    a_day_ago = time.time() - FORGOTTEN_SECONDS - 60
    for path in (file, folder, folder / "new"):
        os.utime(path, (0, a_day_ago))
    remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name], "its file is being written"
    os.utime(folder / "new" / "soup.bin", (0, a_day_ago))
    remove_abandoned(tmp_path)
    assert not list(tmp_path.iterdir())


REPLACER = """
import os, sys
from pathlib import Path
from tuner.storage.paths import replace_folder, scratch

place = Path(sys.argv[1])
rename = Path.rename

def rename_or_die(path, target):
    if path.name == "new":
        os.kill(os.getpid(), 9)
    return rename(path, target)

with scratch(place, ".ensemble-") as folder:
    (folder / "new").mkdir()
    (folder / "new" / "metrics.json").write_text("new")
    Path.rename = rename_or_die
    replace_folder(folder / "new", place / "top5")
"""


def test_a_folder_whose_replacement_was_killed_is_put_back(tmp_path: Path) -> None:
    write_text(tmp_path / "top5" / "metrics.json", "old")
    killed = subprocess.run([sys.executable, "-c", REPLACER, str(tmp_path)])
    assert killed.returncode == -9
    assert not (tmp_path / "top5").exists()
    remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["top5"]
    assert (tmp_path / "top5" / "metrics.json").read_text() == "old"


def test_links_and_files_with_other_names_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    (tmp_path / ".lock").touch()
    (tmp_path / ".link.tmp").symlink_to("kept")
    remove_abandoned(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_temporary_folder_is_gone_after_its_block(tmp_path: Path) -> None:
    with TemporaryFolder(tmp_path) as folder:
        remove_abandoned(tmp_path, "cifar-tune-")
        assert Path(folder).is_dir(), "this process lives"
    assert not list(tmp_path.iterdir())


def test_a_run_is_cleared_all_through(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "a")
    left = [
        tmp_path / "runs" / f".measuring-abc{own_suffix()}",
        run.path / f".run.json.abc{own_suffix()}",
        run.path / "ensembles" / f".ensemble-abc{own_suffix()}",
        run.trial_path(3) / f".checkpoint.safetensors.abc{own_suffix()}",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with replacing(run.path / "leaderboard.csv"):
        run.remove_abandoned()
    assert not [path for path in left if path.exists()]
    assert (run.path / "leaderboard.csv").exists()


def test_what_a_link_leads_to_is_not_put_back(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").touch()
    left = tmp_path / "run" / f".ensemble-abc{own_suffix()}"
    left.mkdir(parents=True)
    (left / "replaced").symlink_to(tmp_path / "mine")
    os.utime(left, (0, 0))
    remove_abandoned(tmp_path / "run")
    assert (tmp_path / "mine" / "letter").exists()
    assert not list((tmp_path / "run").iterdir())


def test_somebody_elses_temporary_files_stay(tmp_path: Path) -> None:
    for name in (".letter.tmp", ".old.0123abcd.tmp"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".letter.tmp"]
