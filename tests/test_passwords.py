"""The password of a study's database is written nowhere, and asked for again."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.test_run import make_run
from tuner.cli import cli, main
from tuner.errors import UsageError
from tuner.passwords import hide_passwords
from tuner.run.run import Run
from tuner.space import load_space
from tuner.tuning.ray_backend import jobs
from tuner.tuning.request import make_search_request
from tuner.tuning.sampling.study_copy import StudyPlace
from tuner.tuning.session import study_place

URL = "postgresql://me:hunter2@db:5432/optuna"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (URL, "postgresql://me:***@db:5432/optuna"),
        (
            f"--study-storage={URL} --trials 3",
            "--study-storage=postgresql://me:***@db:5432/optuna ",
        ),
        ("mysql://db/x?user=me&password=hunter2&ssl=1", "mysql://db/x?user=me&password=***&ssl=1"),
        ("mysql+pymysql://:hunter2@db/x", "mysql+pymysql://:***@db/x"),
        ("postgresql://me:hunter2@hunter2@db/x", "postgresql://me:***@db/x"),
    ],
)
def test_a_password_is_hidden(text: str, hidden: str) -> None:
    assert hide_passwords(text).startswith(hidden)
    assert "hunter2" not in hide_passwords(text)


@pytest.mark.parametrize(
    "text",
    ["sqlite:///study.db", "s3://bucket/a:b@c", "http://127.0.0.1:8265", "postgresql://me@db/x"],
)
def test_an_address_without_a_password_stays(text: str) -> None:
    assert hide_passwords(text) == text


def test_a_run_does_not_keep_it(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", study_storage=URL, command=f"cifar-tune --study-storage '{URL}'")
    run.update(status="interrupted")
    text = (run.path / "run.json").read_text()
    assert "hunter2" not in text
    assert text.count("postgresql://me:***@db") == 2
    assert run.record.study_storage == URL, "the search itself goes on with it"


def test_a_search_goes_on_when_it_is_given_again(tmp_path: Path) -> None:
    make_run(tmp_path, "a", study_storage=URL)
    (tmp_path / "space.yaml").write_text("space: {model: {cnn: {}}}\n")
    options = {
        "space_name": "space.yaml",
        "stem": "a",
        "storage": tmp_path,
        "data_dir": tmp_path,
        "command": "",
        "keep": 1,
    }
    space, resumed = load_space(tmp_path / "space.yaml"), Run.open(tmp_path / "a")
    request = make_search_request(space, resumed=resumed, **options)
    assert study_place(request) is None
    request = make_search_request(space, resumed=resumed, study_storage=URL, **options)
    assert str(study_place(request)) == hide_passwords(URL)
    assert request.study_storage == URL
    assert request.outside_words == (), "nor is it printed"


def test_a_database_that_cannot_be_used_is_named_without_it() -> None:
    with pytest.raises(UsageError, match=r"nosuchdb://me:\*\*\*@db") as refusal:
        StudyPlace("nosuchdb://me:hunter2@db/x", "a", "mark").check_free()
    assert "hunter2" not in str(refusal.value)


def test_it_is_taken_off_the_command_line_that_others_keep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[str] = []

    def run(words: list[str], **options: Any) -> None:
        given.extend(words)

    monkeypatch.setattr(cli, "main", run)
    monkeypatch.setattr(sys, "argv", ["cifar-tune", "search", "--study-storage", URL])
    with pytest.raises(SystemExit):
        main()
    assert given == ["search", "--study-storage", URL]
    assert sys.argv[1:] == ["search", "--study-storage", "postgresql://me:***@db:5432/optuna"]


def test_a_job_with_one_is_refused_for_ray_would_keep_it() -> None:
    client = Mock()
    words = ["search", "--study-storage", URL]
    with pytest.raises(UsageError, match="set CIFAR_TUNE_STUDY_STORAGE where Ray") as refusal:
        jobs.submit(client, words, files={}, metadata={}, tell=print)
    assert "hunter2" not in str(refusal.value)
    assert not client.method_calls


KEPT = """
from tuner.tuning.ray_backend.cluster import connected
from tuner.tuning.ray_backend.private import state
with connected("local"):
    print([job["Entrypoint"] for job in state.job_table()])
"""
"""Prints what Ray has kept of this process's command line."""


@pytest.mark.ray
@pytest.mark.slow
def test_ray_keeps_the_command_line_of_a_driver_without_it() -> None:
    kept = subprocess.check_output([sys.executable, "-c", KEPT, URL], text=True)
    assert "hunter2" not in kept
    assert "postgresql://me:***@db:5432/optuna" in kept
