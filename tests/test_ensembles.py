"""Which ensemble a user means."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tuner
from tuner.errors import UsageError
from tuner.run.ensembles import find_ensemble, run_of
from tuner.run.run import Run
from tuner.storage.object_path import ObjectPath


@pytest.fixture
def storage(run_with_ensemble: Run, tmp_path: Path) -> Path:
    """Return a folder of two runs: ``tiny`` with two ensembles, and a newer one without any."""
    storage = tmp_path / "runs"
    tiny = storage / "tiny"
    shutil.copytree(run_with_ensemble.path, tiny)
    shutil.copytree(tiny / "ensembles" / "all", tiny / "ensembles" / "older")
    (tiny / "ensembles" / "all" / "metrics.json").touch()
    newer = storage / "newer"
    shutil.copytree(run_with_ensemble.path, newer)
    shutil.rmtree(newer / "ensembles")
    record = json.loads((newer / "run.json").read_text())
    started = {"name": "newer", "started": "2099-01-01T00:00:00+00:00"}
    (newer / "run.json").write_text(json.dumps(record | started))
    return storage


@pytest.mark.parametrize("name", [None, "tiny", "tiny/all", "tiny/all/", "{}/tiny", "{}/tiny/all"])
def test_an_ensemble_is_found_by_its_run_its_name_or_as_the_newest(
    name: str | None, storage: Path
) -> None:
    found = find_ensemble(storage, name and name.format(storage))
    assert found == storage / "tiny" / "ensembles" / "all"


@pytest.mark.parametrize(("folder", "name"), [(".", "."), ("trials", ".."), ("ensembles/all", ".")])
def test_an_ensemble_named_from_within_is_that_of_its_folder(
    folder: str, name: str, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(storage / "tiny" / folder)
    assert find_ensemble(Path("runs"), name) == storage.resolve() / "tiny" / "ensembles" / "all"


def test_an_ensemble_is_found_by_its_folder_wherever_that_is(storage: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(storage / "tiny" / "ensembles" / "older", copy)
    assert find_ensemble(storage, str(copy)) == copy
    assert run_of(copy) is None
    inside = find_ensemble(storage, "tiny/older")
    run = run_of(inside)
    assert run is not None
    assert run.path == storage.absolute() / "tiny"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny/al", "no ensemble 'tiny/al' in .*; did you mean 'tiny/all'"),
        ("newer", "newer: has no ensemble yet. Make one:\n  cifar-tune ensemble --run"),
        ("nowhere", "no ensemble 'nowhere' in .*; give its folder, RUN/NAME, or a run"),
    ],
)
def test_what_is_not_there_is_told_in_a_line(name: str, message: str, storage: Path) -> None:
    with pytest.raises(UsageError, match=message):
        find_ensemble(storage, name)


def test_without_any_ensemble_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"make one:\n  cifar-tune ensemble --top 5"):
        find_ensemble(tmp_path)


def test_ensembles_of_a_bucket_are_found_and_loaded_by_uri_and_by_name(
    stored_run: Run, run_with_ensemble: Run
) -> None:
    assert isinstance(stored_run.path, ObjectPath)
    here, kept = (run.path / "ensembles" / "all" for run in (run_with_ensemble, stored_run))
    for file in here.rglob("*"):
        if file.is_file():
            (kept / file.relative_to(here).as_posix()).write_bytes(file.read_bytes())
    bucket = stored_run.path.parent
    for name in (None, "tiny", "tiny/all", f"{bucket}/tiny", f"{bucket}/tiny/all", str(kept)):
        assert find_ensemble(bucket, name) == kept
    image = np.zeros((1, 8, 8, 1), dtype=np.uint8)
    probs = [tuner.load_ensemble(place, device="cpu").predict(image) for place in (here, str(kept))]
    np.testing.assert_array_equal(*probs)


def test_the_newest_ensemble_is_the_one_that_was_made_last(
    run_with_ensemble: Run, tmp_path: Path
) -> None:
    shutil.copytree(run_with_ensemble.path, tmp_path / "tiny")
    folder = tmp_path / "tiny" / "ensembles"
    shutil.copytree(folder / "all", folder / "older")
    described = json.loads((folder / "older" / "ensemble.json").read_text())
    (folder / "older" / "ensemble.json").write_text(
        json.dumps(described | {"made": "2001-01-01T00:00:00+00:00"})
    )
    # As a copy has it.
    (folder / "older" / "metrics.json").touch()
    assert find_ensemble(tmp_path, "tiny") == folder / "all"
