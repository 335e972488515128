"""The copy of the study that others may look at, and what becomes of it when its storage fails."""

import io
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console

from tests.conftest import context_of, wait_until
from tests.test_sampler import BRANCHED, curve, drive, make, read
from tuner.errors import DataError, UsageError
from tuner.run.run import Run
from tuner.tuning.request import SearchRequest, make_search_request
from tuner.tuning.sampling import study_copy
from tuner.tuning.sampling.sampler import Sampler
from tuner.tuning.sampling.study_copy import StudyCopy, StudyPlace, open_storage
from tuner.tuning.session import search, study_place


@pytest.fixture(params=["journal", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "journal":
        return str(tmp_path / "study.journal")
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def sampler(tmp_path: Path) -> Sampler:
    return make(read(tmp_path, BRANCHED), "tpe")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def copy(place: str, sampler: Sampler, said: list[str]) -> Iterator[StudyCopy]:
    with StudyCopy(sampler.study, StudyPlace(place, "run", "first"), said.append) as copy:
        sampler.on_change = copy.show
        yield copy


def stored(place: str, name: str = "run") -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=open_storage(place)).trials


def told(trials: list[optuna.trial.FrozenTrial]) -> list[tuple[object, ...]]:
    return [
        (t.number, t.state, t.values, t.params, t.intermediate_values, t.user_attrs) for t in trials
    ]


def test_a_copy_can_be_watched_while_the_search_runs(
    place: str, sampler: Sampler, copy: StudyCopy
) -> None:
    drive(sampler, range(3))
    sampler.ask(3)
    assert copy.wait(10)
    trials = stored(place)
    assert [t.state.name for t in trials] == ["PRUNED", "COMPLETE", "COMPLETE", "RUNNING"]
    assert [t.user_attrs["trial"] for t in trials] == [0, 1, 2, 3]
    assert list(trials[1].intermediate_values) == [1, 2, 3, 4]
    assert told(trials) == told(sampler.study.trials)


def test_a_paused_trial_runs_in_the_copy_with_its_curve_so_far(
    place: str, sampler: Sampler, copy: StudyCopy, said: list[str]
) -> None:
    for number in range(2):
        sampler.ask(number)
    sampler.note_rung(0, curve(0.2, 0.4))
    assert copy.wait(10)
    assert [(t.state.name, t.intermediate_values) for t in stored(place)] == [
        ("RUNNING", {1: 0.2, 2: 0.4}),
        ("RUNNING", {}),
    ]
    sampler.tell(0, "completed", curve(0.2, 0.4, 0.6))
    sampler.note_rung(1, curve(0.1))
    assert copy.wait(10)
    trials = stored(place)
    assert [t.state.name for t in trials] == ["COMPLETE", "RUNNING"]
    assert list(trials[0].intermediate_values) == [1, 2, 3]
    # One that begins anew holds the same.
    with StudyCopy(sampler.study, StudyPlace(place, "anew", "first"), said.append):
        pass
    assert [t.state.name for t in stored(place, "anew")] == ["COMPLETE", "RUNNING"]
    assert said == []


def test_a_run_makes_its_own_study_anew_and_leaves_others_alone(
    place: str, tmp_path: Path, said: list[str]
) -> None:
    for name, mark in (("other", "second"), ("run", "first")):
        sampler = make(read(tmp_path, BRANCHED), "tpe")
        with StudyCopy(sampler.study, StudyPlace(place, name, mark), said.append) as copy:
            sampler.on_change = copy.show
            drive(sampler, range(2))
    config = sampler.ask(2)
    resumed = make(read(tmp_path, BRANCHED), "tpe")
    assert config is not None
    resumed.add(config, "completed", curve(0.5), 0)
    with StudyCopy(resumed.study, StudyPlace(place, "run", "first"), said.append):
        pass
    assert [t.value for t in stored(place)] == [0.5]
    assert len(stored(place, "other")) == 2
    assert said == []


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_study_that_this_run_did_not_make_is_never_touched(
    place: str, is_marked: bool, sampler: Sampler, said: list[str]
) -> None:
    study = optuna.create_study(storage=open_storage(place), study_name="run")
    if is_marked:
        study.set_user_attr("run", "somebody else's")
    study.add_trial(optuna.create_trial(value=1.0))
    foreign = StudyPlace(place, "run", "first", is_ours=is_marked)
    with pytest.raises(UsageError, match=r"has a study 'run' already, which this run has not made"):
        foreign.check_free()
    with pytest.raises(UsageError, match="Choose another --name"):
        StudyCopy(sampler.study, foreign, said.append)
    assert len(stored(place)) == 1
    if not is_marked:
        StudyPlace(place, "run", "first", is_ours=True).check_free()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_copy, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(study_copy, "PATIENCE_SECONDS", 0.1)


def assert_goes_on_without(sampler: Sampler, copy: StudyCopy, said: list[str]) -> None:
    """Check that trials are drawn and told as if nothing were wrong, and that one line says it."""
    before = len(sampler.study.trials)
    drive(sampler, range(before, before + 3))
    # Optuna waits 20 s for a database that is locked.
    wait_until(lambda: said)
    drive(sampler, range(before + 3, before + 5))
    time.sleep(0.3)
    assert not copy.wait(0)
    (line,) = said
    assert "completes the study when it is back" in line
    assert "\n" not in line


@pytest.mark.parametrize("fault", ["lost", "damaged"])
def test_a_storage_that_is_lost_or_damaged_is_made_up_for_when_it_is_back(
    fault: str,
    place: str,
    sampler: Sampler,
    impatient: None,
    copy: StudyCopy,
    said: list[str],
    tmp_path: Path,
) -> None:
    drive(sampler, range(2))
    sampler.ask(2)
    assert copy.wait(10)
    file = Path(place.rpartition("sqlite:///")[2])
    kept = tmp_path / "kept"
    kept.write_bytes(file.read_bytes())
    if fault == "lost":
        file.unlink()
    else:
        (tmp_path / "rubbish").write_bytes(bytes(range(256)) * 16)
        (tmp_path / "rubbish").replace(file)
    sampler.tell(2, "completed", curve(0.5))
    assert_goes_on_without(sampler, copy, said)
    kept.replace(file)
    assert copy.wait(10)
    assert told(stored(place)) == told(sampler.study.trials)
    assert said[1:] == [f"The study storage {place} is back, and the study complete."]


@pytest.mark.slow
def test_a_locked_database_is_waited_for(
    sampler: Sampler, impatient: None, said: list[str], tmp_path: Path
) -> None:
    place = f"sqlite:///{tmp_path / 'study.db'}"
    with StudyCopy(sampler.study, StudyPlace(place, "run", "first"), said.append) as copy:
        sampler.on_change = copy.show
        other = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        assert_goes_on_without(sampler, copy, said)
        assert "database is locked" in said[0]
        other.execute("COMMIT")
        assert copy.wait(60)
        assert told(stored(place)) == told(sampler.study.trials)


def test_a_search_that_ends_without_its_storage_says_how_to_complete_the_study(
    sampler: Sampler, impatient: None, said: list[str], tmp_path: Path
) -> None:
    journal = tmp_path / "study.journal"
    with StudyCopy(sampler.study, StudyPlace(str(journal), "run", "first"), said.append) as copy:
        sampler.on_change = copy.show
        journal.unlink()
        assert_goes_on_without(sampler, copy, said)
    assert said[1:] == [
        f"The study in {journal} is not complete (FileNotFoundError: the file is gone); "
        f"search --resume --study-storage {journal} rewrites it."
    ]
    assert not journal.exists()


@pytest.mark.parametrize(
    "place",
    [
        "{folder}",
        "{folder}/no/such/folder/study.journal",
        "sqlite:///{folder}/no/such/folder/study.db",
        "sqlite:///{folder}/text",
        "{folder}/text",
        "{folder}/list",
        "{folder}/mapping",
        "{folder}/bytes",
        "{folder}/cut",
        "{folder}/notes",
        "{folder}/lines",
        "nosuchdatabase://host/name",
        "sqlite://{folder}/study.db",
        "redis://localhost:1",
    ],
)
def test_a_storage_that_cannot_be_used_is_refused_in_one_line(place: str, tmp_path: Path) -> None:
    contents = {"text": b"no study\n", "list": b"[1]\n", "mapping": b'{"a": 1}\n'}
    contents |= {"bytes": bytes(range(256)) * 16, "cut": b'{"op_code":0,"worker_id":"a","stu'}
    contents |= {"notes": b"no study\nand no end", "lines": b'{"a": 1}\n{"b": 2}'}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    unusable = StudyPlace(place.format(folder=tmp_path), "run", "first")
    for use in (unusable.check_free, unusable.begin):
        with pytest.raises(UsageError, match=r"^--study-storage .*cannot be used") as caught:
            use()
        assert "\n" not in str(caught.value)
    for name, content in contents.items():
        assert (tmp_path / name).read_bytes() == content


def test_a_journal_whose_last_line_a_full_disk_cut_is_continued(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    study = optuna.create_study(storage=open_storage(str(journal)), study_name="run")
    study.add_trial(optuna.create_trial(value=1.0))
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[-1][:20])
    storage = open_storage(str(journal))
    assert journal.read_bytes() == whole
    optuna.load_study(study_name="run", storage=storage).add_trial(optuna.create_trial(value=2.0))
    assert [t.value for t in stored(str(journal))] == [1.0, 2.0]
    assert [file.name for file in tmp_path.iterdir()] == ["study.journal"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_journal_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    journal.touch(0o444)
    with pytest.raises(UsageError, match="PermissionError"):
        StudyPlace(str(journal), "run", "first").check_free()


def resuming(run: Run, folder: Path, **asked: Any) -> SearchRequest:
    return make_search_request(
        read(folder, BRANCHED),
        space_name="space.yaml",
        stem="space",
        storage=folder,
        resumed=run,
        data_dir=folder / "data",
        keep=5,
        command="",
        **asked,
    )


def test_a_refused_resume_changes_nothing(place: str, finished_run: Run, tmp_path: Path) -> None:
    study = optuna.create_study(storage=open_storage(place), study_name="tiny")
    study.add_trial(optuna.create_trial(value=1.0))
    before = {file: file.read_bytes() for file in finished_run.path.rglob("*.*")}
    request = resuming(finished_run, tmp_path, study_storage=place)
    with pytest.raises(UsageError, match="which this run has not made"):
        search(request, Console(quiet=True))
    assert {file: file.read_bytes() for file in finished_run.path.rglob("*.*")} == before
    assert len(stored(place, "tiny")) == 1


def test_a_resumed_search_says_where_its_run_names_a_study(
    finished_run: Run, tmp_path: Path
) -> None:
    place = finished_run.path.parent / "notes.txt"
    place.write_text("no study\n")
    finished_run.update(study_storage=str(place))
    written = io.StringIO()
    with pytest.raises(UsageError, match="cannot be used"):
        search(resuming(finished_run, tmp_path), Console(file=written, width=80))
    assert written.getvalue() == f"The study continues in {place}, which the run names.\n"


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("{folder}/new.journal", "there is no such file"),
        ("{storage}/missing.journal", "there is no such file"),
        ("sqlite:///{folder}/study.db", "it is outside {storage}"),
        ("{storage}/link.journal", "it is outside {storage}"),
        ("{storage}/tiny/../../study.db", "it is outside {storage}"),
        ("sqlite:///{storage}/study.db?uri=true", "it is not a file in {storage}"),
        ("postgresql://me@example.invalid/optuna", "it is not a file in {storage}"),
    ],
)
def test_a_record_alone_leads_to_no_study_outside_its_storage(
    place: str, why: str, finished_run: Run, tmp_path: Path
) -> None:
    storage = finished_run.path.parent
    (tmp_path / "study.db").touch()
    (storage / "study.db").touch()
    (storage / "link.journal").symlink_to(tmp_path / "study.db")
    place = place.format(folder=tmp_path, storage=storage)
    finished_run.update(study_storage=place)
    request = resuming(finished_run, tmp_path)
    assert study_place(request) is None
    # It ends before any cluster.
    request = replace(request, data=replace(request.data, source=str(tmp_path / "gone")))
    written = io.StringIO()
    with pytest.raises(DataError):
        search(request, Console(file=written, width=80))
    why = why.format(storage=storage)
    line = f"The study in {place} is not continued, because {why}. To continue it, "
    assert written.getvalue().startswith(line)
    assert "--study-storage" in written.getvalue()
    assert not (tmp_path / "new.journal").exists()
    assert (tmp_path / "study.db").read_bytes() == b""
    again = resuming(finished_run, tmp_path, study_storage=place)
    assert str(study_place(again)) == place
    finished_run.outside_words = again.outside_words
    params = context_of(finished_run.resume_command()).params
    assert (params["resume"], params["study_storage"]) == (True, place)
    assert "--study-storage" not in Run.open(finished_run.path).resume_command()


@pytest.mark.parametrize("prefix", ["", "sqlite:///"])
def test_a_study_in_a_file_is_found_again_from_another_folder(
    prefix: str, finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "study").touch()
    monkeypatch.chdir(tmp_path)
    asked = resuming(finished_run, tmp_path, study_storage=f"{prefix}runs/study")
    finished_run.update(**asked.record_entries)
    monkeypatch.chdir("/")
    found = study_place(resuming(finished_run, tmp_path))
    assert str(found) == f"{prefix}{tmp_path}/runs/study"


@pytest.mark.parametrize("url", ["postgresql://me@db/optuna", "sqlite:///study.db?uri=true"])
def test_a_url_that_is_no_file_is_recorded_unchanged(
    url: str, finished_run: Run, tmp_path: Path
) -> None:
    request = resuming(finished_run, tmp_path, study_storage=url)
    assert request.record_entries["study_storage"] == url


def test_a_copy_of_a_study_of_losses_says_that_less_is_better(
    tmp_path: Path, said: list[str]
) -> None:
    sampler = make(read(tmp_path, BRANCHED, "search.metric=nll"), "tpe")
    journal = str(tmp_path / "study.journal")
    place = StudyPlace(journal, "run", "first", metric="nll")
    with StudyCopy(sampler.study, place, said.append) as copy:
        sampler.on_change = copy.show
        for number, loss in enumerate((0.5, 0.2, 0.3)):
            assert sampler.ask(number) is not None
            sampler.tell(number, "completed", curve(0.5, loss=loss))
    study = optuna.load_study(study_name="run", storage=open_storage(journal))
    assert (study.best_value, study.best_trial.user_attrs["trial"]) == (0.2, 1)
    assert said == []
