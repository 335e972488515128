import errno
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import click
import pandas as pd
import pytest
import yaml
from click.shell_completion import ShellComplete
from PIL import Image

from tests.benchmarks.processes import PROGRAM
from tests.conftest import Call, train_trial
from tests.disks import remount, small_disk
from tuner.cli import cli
from tuner.cli.output import figure
from tuner.cli.search import search
from tuner.cli.search_options import search_request
from tuner.config import DATA_DIR, Sgd
from tuner.data.splits import Splits
from tuner.errors import UsageError
from tuner.run.run import Run
from tuner.run.trial import write_history, write_status
from tuner.space import find_space, load_space
from tuner.tuning.request import make_search_request

QUICK = str(Path(__file__).parents[1] / "search_spaces" / "quick.yaml")
SMALL = ["search.trials=3", "search.epochs=1", "search.scheduler=none"]


@pytest.fixture
def call(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function that types a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return call


def write(name: str, text: str) -> None:
    Path(name).write_text(text)


def space_with(line: str) -> str:
    return f"dataset: digits\nspace:\n  model: {{cnn: {{stages: 2}}}}\n  {line}\n"


MISTAKES = {
    "a missing space": (["search", "--space", "none.yaml"], 2, "none.yaml: there is no such file"),
    "a space of no known name": (["search", "--space", "quik"], 2, "did you mean 'quick'?"),
    "no space": (["search"], 2, "Missing option '--space'"),
    "an unknown command": (["serch"], 2, "'search'"),
    "an unknown option": (["search", "--trails", "3"], 2, "--trials"),
    "no trials": (["search", "--space", "quick", "--trials", "0"], 2, "must be at least 1"),
    "an unknown key in an override": (
        ["search", "--space", "quick", "serch.trials=3"],
        2,
        "did you mean 'search'?",
    ),
    "an unknown dataset": (
        ["search", "--space", "quick", "--data", "cifar11"],
        2,
        "did you mean 'cifar10'?",
    ),
    "a part of too few images": (
        ["search", "--space", "quick", "--train-limit", "5"],
        2,
        "between the 10 classes",
    ),
    "a budget that is no time": (
        ["search", "--space", "quick", "--time-budget", "soon"],
        2,
        "write 90s, 30m, 2h",
    ),
    "a share that is no number": (
        ["search", "--space", "quick", "--gpus-per-trial", "nan"],
        2,
        "nan is not a finite number",
    ),
    "a time between saves that is no number": (
        ["search", "--space", "quick", "--save-seconds", "nan"],
        2,
        "nan is not a finite number",
    ),
    "a run that is not there to resume": (["search", "--resume", "--name", "x"], 2, "no run 'x'"),
    "half a URI": (["runs", "--storage", "s3:/bucket/runs"], 2, "write s3://BUCKET/FOLDER"),
    "no run yet": (["ensemble"], 2, "no run in runs yet"),
    "no run to refit": (["refit"], 2, "no run in runs yet"),
    "a refit without a name as a job": (
        ["refit", "--address", "http://127.0.0.1:1"],
        2,
        "needs the --name of the new run",
    ),
    "no leaderboard yet": (["leaderboard"], 2, "no run in runs yet"),
    "a run of no known name": (["show", "some"], 2, "no run 'some'"),
    "a single run to compare": (
        ["compare", "a", "--storage", "there"],
        2,
        "'cifar-tune runs --storage there' lists them",
    ),
    "a cluster that does not answer": (
        ["search", "--space", "quick", "--address", "127.0.0.1:9"],
        4,
        "nothing answers there",
    ),
    "an address that is none": (
        ["search", "--space", "quick", "--address", "there"],
        2,
        "Give auto, HOST:PORT, or http",
    ),
    "an address whose port is no number": (
        ["search", "--space", "quick", "--address", "127.0.0.1:\u00b2"],
        2,
        "Give auto, HOST:PORT, or http",
    ),
    "a trial of too many digits": (["rerun", "9" * 5000], 2, "give a trial's number"),
    "text for a number": (
        ["search", "--space", "text.yaml"],
        2,
        "text.yaml:4:15: space.batch",
    ),
    "a word for truth": (
        ["space", "check", "truth.yaml"],
        2,
        "truth.yaml:4:19: space.augment",
    ),
    "a key given twice": (["space", "check", "twice.yaml"], 2, "twice.yaml:5:3: space.batch_size"),
    "an empty range": (["space", "check", "empty.yaml"], 2, "empty.yaml:4:"),
    "an unknown key": (["space", "check", "typo.yaml"], 2, "did you mean 'batch_size'?"),
    "broken YAML": (["space", "check", "broken.yaml"], 2, "broken.yaml:"),
    "a folder without images": (
        ["search", "--space", "quick", "--data", "bare"],
        2,
        "bare: holds no images",
    ),
    "a broken image": (["data", "prepare", "torn"], 2, "1.png"),
    "an image that is a link to itself": (["data", "prepare", "looped"], 2, "Too many levels of"),
    "a class that is a link to itself": (["data", "prepare", "linked"], 2, "Too many levels of"),
    "a data folder that is a link to itself": (["data", "info", "loop"], 2, "unknown dataset"),
    "images of no size": (["data", "info", "digits", "--image-size", "0"], 2, "4<=x<=2048"),
    "images of less": (["search", "--space", "quick", "--image-size", "-5"], 2, "4<=x<=2048"),
    "images too large": (["plan", "--space", "quick", "--image-size", "100000"], 2, "4<=x<=2048"),
    "a part of no images": (["search", "--space", "quick", "--train-limit", "0"], 2, "x>=1"),
    "data that are a device": (["data", "info", "/dev/zero"], 2, "a pipe or a device, not a file"),
    "an archive that is none": (
        ["data", "info", "cut.zip"],
        2,
        "is not a valid archive",
    ),
    "a split of known data": (["data", "split", "digits", "out"], 2, "is not a folder of files"),
    "a split into its source": (["data", "split", "looped", "looped/out"], 2, "lies inside looped"),
    "a split into no place": (["data", "split", "whole", "/proc/x"], 2, "cannot be written"),
    "a name that no file can have": (["show", "x" * 300], 2, "is too long for a path"),
    "a space that no file can be": (["space", "check", "x" * 300], 2, "is too long for a path"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_or_two_lines_with_its_exit_code(mistake: str, call) -> None:
    write("text.yaml", space_with("batch_size: 1e2"))
    write("truth.yaml", space_with("augment: {flip: on}"))
    write("twice.yaml", space_with("batch_size: 32\n  batch_size: 64"))
    write("empty.yaml", space_with("batch_size: {int: [64, 32]}"))
    write("typo.yaml", space_with("batch_sise: 64"))
    write("broken.yaml", "space: {model: [")
    Path("bare").mkdir()
    for part in ("train", "test"):
        for label in ("a", "b"):
            folder = Path("torn") / part / label
            folder.mkdir(parents=True)
            for name in ("1.png", "2.png", "3.png"):
                Image.new("L", (8, 8), len(label + name)).save(folder / name)
    Path("loop").symlink_to("loop")
    shutil.copytree("torn", "whole")
    Path("cut.zip").write_bytes(b"PK")
    for name, link in (("looped", "train/a/4.png"), ("linked", "train/c")):
        shutil.copytree("torn", name)
        Path(name, link).symlink_to(Path(link).name)
    Path("torn", "train", "a", "1.png").write_bytes(b"no image")
    words, code, message = MISTAKES[mistake]
    result = call(*words)
    assert message in result.err
    assert result.code == code
    assert result.out == ""
    assert "Traceback" not in result.err
    _, _, told = result.err.rpartition("cifar-tune: ")
    assert len(told.splitlines()) <= 2
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["leaderboard", "nothing", "--json"], 2, "no run 'nothing' in runs"),
        (["runs", "--json", "--storag", "x"], 2, "No such option"),
        (["data", "info", "nothing", "--json"], 2, "unknown dataset 'nothing'"),
        (["search", "--space", "quick", "--address", "127.0.0.1:9", "--json"], 4, "answers there"),
    ],
)
def test_a_mistake_is_the_document_of_json(words: list[str], code: int, message: str, call) -> None:
    result = call(*words)
    document = json.loads(result.out)
    assert (result.code, document["exit_code"]) == (code, code)
    assert message in document["error"]
    # On a slow machine, lines before it tell of what is under way.
    assert result.err.endswith(f"cifar-tune: {document['error']}\n")


def written_to(stdout: TextIO, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that keeps its output in a buffer, as Python does by default."""
    return subprocess.run(
        [sys.executable, "-m", "tuner", *words],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )


NO_ROOM = "the output cannot be written: No space left on device."
NO_FOLDER = "digits: is not a folder of files; give a folder, archive or manifest"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["space", "check", "quick"], 1, NO_ROOM),
        (["runs", "--json"], 1, NO_ROOM),
        (["data", "split", "digits", "out", "--json"], 2, NO_FOLDER),
        ([], 1, NO_ROOM),
    ],
)
def test_an_output_that_takes_no_more_is_told_in_a_line(
    words: list[str], code: int, message: str
) -> None:
    with Path("/dev/full").open("w") as full:
        done = written_to(full, words)
    assert done.returncode == code
    assert done.stderr == f"cifar-tune: {message}\n"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["space", "check", "quick"], 1, ""),
        (["runs", "--json"], 1, ""),
        (["data", "split", "digits", "out", "--json"], 2, f"cifar-tune: {NO_FOLDER}\n"),
    ],
)
def test_an_output_whose_reader_is_gone_ends_without_a_notice(
    words: list[str], code: int, told: str
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = written_to(pipe, words)
    assert (done.returncode, done.stderr) == (code, told)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["report"], 1),
        (["ensemble", "--top", "2"], 1),
        (["ensemble", "--top", "2", "--dry-run"], 0),
        (["ensemble", "--top", "2", "--dry-run", "--method", "soup"], 0),
    ],
)
def test_a_run_that_may_only_be_read_is_told_in_a_line(
    words: list[str], code: int, call, trained_run: Run, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "runs", "50m"):
        shutil.copytree(trained_run.path, tmp_path / "runs" / "tiny")
        remount(tmp_path / "runs", "ro")
        result = call(*words)
    assert result.code == code, result.err
    message = "cannot be used (Read-only file system). Make it accessible, or use a copy"
    assert (message in result.err) == bool(code)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_file_that_somebody_else_owns_is_told_in_a_line(
    number: int, call, finished_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(number, os.strerror(number), "report.html")

    # Who is root may write anywhere.
    monkeypatch.setattr("tuner.report.write_text", refuse)
    result = call("report", str(finished_run.path))
    assert result.code == 1
    assert f"report.html: cannot be used ({os.strerror(number)}). Make it" in result.err


def test_cifar10_without_a_copy_or_a_network_names_the_file(
    call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    result = call("search", "--space", "cnn", "--data-dir", "data")
    assert result.code == 2
    assert "cifar-10-python.tar.gz" in result.err
    assert "--data digits" in result.err


@pytest.mark.parametrize(
    ("value", "cell"), [(2.5e-5, "2.5e-05"), (0.0, "0.0000"), (0.1234, "0.1234"), (12.3, "12.3")]
)
def test_a_small_figure_is_not_told_as_nothing(value: float, cell: str) -> None:
    assert figure(value) == cell


def commands_of(group: click.Group, *path: str) -> Iterator[list[str]]:
    for name, command in group.commands.items():
        is_group = isinstance(command, click.Group)
        yield from commands_of(command, *path, name) if is_group else [[*path, name]]


@pytest.mark.parametrize("words", list(commands_of(cli)), ids=" ".join)
def test_every_command_shows_its_help_with_an_example(words: list[str], call) -> None:
    result = call(*words, "--help")
    assert result.code == 0
    assert "Example: cifar-tune" in " ".join(result.out.split())


@pytest.mark.parametrize("words", list(commands_of(cli)), ids=" ".join)
def test_every_option_says_what_it_is_in_a_whole_phrase(words: list[str]) -> None:
    command: click.Command = cli
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert not re.match(r"(Of|For|May|The same|Most (of|at)|Such|Also|As) ", option.help)


def test_the_version_is_the_packages(call) -> None:
    assert call("--version").out.startswith("cifar-tune, version ")


@pytest.mark.parametrize("words", [["search", "--help"], ["space", "check", "wide"]])
def test_help_and_checks_import_neither_torch_nor_ray(words: list[str]) -> None:
    code = (
        f"import sys; from tuner.cli import cli; cli.main({words}, standalone_mode=False); "
        "print([name for name in ('torch', 'ray', 'optuna', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_user_without_a_home_can_start_the_program() -> None:
    code = (
        "import pwd\n"
        "def find(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = find\n"
        "from tuner.config import DATA_DIR\n"
        "print(DATA_DIR)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={name: text for name, text in os.environ.items() if name != "HOME"},
    )
    assert (done.stdout, done.stderr) == (".cache/cifar-tune\n", "")


def test_samples_are_configurations(call) -> None:
    result = call("space", "sample", "wide", "-n", "3", "--json")
    configs = json.loads(result.out)
    assert len(configs) == 3
    assert call("space", "sample", "wide", "-n", "3", "--json").out == result.out
    documents = list(yaml.safe_load_all(call("space", "sample", "wide", "-n", "2").out))
    assert documents == configs[:2]


def test_the_schema_is_json(call) -> None:
    assert "properties" in json.loads(call("space", "schema").out)


def test_data_are_described(call) -> None:
    info = json.loads(call("data", "info", "digits", "--json").out)
    assert info["image_shape"] == [1, 8, 8]
    assert info["training_images"] + info["validation_images"] == 1438


@pytest.mark.ray
def test_the_whole_journey(session: None, call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_TUNE_TRIALS", "7")
    monkeypatch.setenv("CIFAR_TUNE_SEED", "5")
    searched = call("search", "--space", QUICK, *SMALL, "--name", "first", "--json")
    assert searched.code == 0, searched.err
    document = json.loads(searched.out)
    # KEY=VALUE goes before the environment, the environment before the file.
    assert len(document["trials"]) == 3
    record = json.loads(Path("runs/first/run.json").read_text())
    assert record["search"]["seed"] == 5
    assert record["command"].startswith("cifar-tune search --space")

    taken = call("search", "--space", QUICK, "--name", "first")
    assert taken.code == 2
    assert "Choose another --name" in taken.err

    more = call("search", "--resume", "--name", "first", "--trials", "4", "--quiet")
    assert more.code == 0, more.err
    assert more.err == ""
    assert "first: 4 trials" in more.out

    too_many = call("ensemble", "--top", "5")
    assert too_many.code == 2
    assert "Give --top 4 or less" in too_many.err
    assert not Path("runs/first/test_readings.jsonl").exists()

    combined = call("ensemble", "--top", "3", "--json")
    metrics = json.loads(combined.out)
    assert len(metrics["members"]) == 3
    assert metrics == json.loads(Path("runs/first/ensembles/top3/metrics.json").read_text())
    assert "ensemble" in call("ensemble", "--top", "2").out
    assert len(Path("runs/first/test_readings.jsonl").read_text().splitlines()) == 2

    assert json.loads(call("leaderboard", "--json").out)["trials"][0]["state"] == "completed"
    assert "first" in call("runs").out
    assert " parameters, " in call("show", "first", "0").out
    shutil.rmtree("runs/first/trials/0000")
    assert call("show", "first", "0").code == 2


def test_runs_are_listed_with_the_zone_of_their_times(finished_run: Run, call) -> None:
    told = call("runs", "--storage", str(finished_run.path.parent)).out
    _, headings, row, *_ = told.splitlines()
    assert headings.rstrip().endswith("started, UTC")
    assert row.rstrip().endswith(finished_run.record.started[:19].replace("T", " "))
    best = finished_run.ranked()[0].best
    assert best is not None
    assert row.split()[3:5] == ["3/3", f"{best.val_accuracy:.4f}"]
    record = finished_run.record
    finished_run.update(search=replace(record.search, metric="nll"))
    told = call("runs", "--storage", str(finished_run.path.parent)).out
    _, headings, row, *_ = told.splitlines()
    assert headings.split()[4:6] == ["metric", "best"]
    least = min(trial.best.val_loss for trial in finished_run.ranked() if trial.best)
    assert row.split()[4:6] == ["NLL", f"{least:.4f}"]


def test_a_run_is_shown_with_how_it_stands(finished_run: Run, call) -> None:
    document = json.loads(call("show", str(finished_run.path), "--json").out)
    best = finished_run.ranked()[0]
    told = {"trial": best.number, "val_accuracy": best.best.val_accuracy}
    assert document["best"] == told | {"val_margin": "144 validation images: ± 4 points"}
    assert sum(document["states"].values()) == len(finished_run.trials())


def test_the_newest_run_is_meant_where_none_is_named(finished_run: Run, call) -> None:
    at = ["--storage", str(finished_run.path.parent)]
    assert call("show", *at).out.startswith("tiny: finished, 2 completed, 1 stopped, of 3 trials\n")
    assert call("show", "1", *at).out.startswith("tiny, trial 1: cnn, completed after 2 of 2 ")
    finished_run.update(hardware={"threads_per_trial": 1})
    again = call("rerun", "2", *at, "--device", "cpu")
    assert "2 of 2 epochs gave the same numbers." in again.out, again.err
    missing = call("show", "tin", *at)
    assert (missing.code, "did you mean 'tiny'?" in missing.err) == (2, True)


def test_the_leaderboard_shows_what_was_searched_and_is_sorted_by_it(
    finished_run: Run, call
) -> None:
    where = ["leaderboard", str(finished_run.path)]
    title, headings, *rows = call(*where).out.splitlines()
    assert title == "tiny: 3 trials"
    assert {"width", "lr"} <= set(headings.split())
    assert not [line for line in rows if line != line.rstrip()]
    told = call(*where, "--columns", "trial,lr,batch_size", "--sort", "lr", "--rows", "2").out
    title, headings, *rows = told.splitlines()
    assert title == "tiny: 3 trials, by lr, the first 2"
    assert headings.split() == ["trial", "lr", "batch_size"]
    assert [row.split() for row in rows[:2]] == [["2", "0.1", "32"], ["0", "0.1", "32"]]
    assert "did you mean 'width'?" in call(*where, "--columns", "wdth").err


def test_every_command_stands_in_a_group_with_a_short_summary(call) -> None:
    told = call("--help").out
    rows = [line for line in told.splitlines() if re.match(r"  [a-z][a-z-]+  +\S", line)]
    assert len(rows) == len(cli.commands)
    assert all(len(line.split(maxsplit=1)[1]) <= 55 for line in rows)
    assert not [line for line in told.splitlines()[1:] if line.endswith("...")]
    for command in ("search", "plan", "refit", "distill"):
        told = call(command, "--help").out
        assert "Other:" not in told, command
        assert "How to search:" in told
    assert "[tpe|random|gp|cmaes|grid]" in call("search", "--help").out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], (32, 1.0, 7)),
        (["dataset.image_size=16", "resources.gpus=0.5", "search.seed=8"], (16, 0.5, 8)),
        (["dataset={source: digits, image_size: 16}", "resources={gpus: 0.5}"], (16, 0.5, 7)),
        (["resources.gpus=0.5", "--gpus-per-trial", "2", "--image-size", "8"], (8, 2.0, 7)),
    ],
)
def test_key_value_goes_before_the_environment_and_flags_before_that(
    words: list[str], expected: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_TUNE_IMAGE_SIZE", "32")
    monkeypatch.setenv("CIFAR_TUNE_GPUS_PER_TRIAL", "1")
    monkeypatch.setenv("CIFAR_TUNE_SEED", "7")
    context = search.make_context("search", ["--space", "quick", *words])
    request = search_request(context, find_space("quick"), None, name="x")
    # By its space, the run goes on.
    space = load_space(Path("space.yaml"), text=request.space_text)
    assert (request.data.image_size, space.resources.gpus, space.search.seed) == expected


def test_the_trials_of_a_resumed_search_run_as_before_unless_something_else_is_said(
    finished_run: Run,
) -> None:
    before = {
        "keep": 100,
        "concurrent": 3,
        "compile_mode": "never",
        "max_failures": 0,
        "save_seconds": 4.0,
        "log": ("mlflow",),
    }
    said = ["--keep=7", "--concurrent=2", "--compile=auto", "--max-failures=3", "--log=wandb"]
    now = {
        "keep": 7,
        "concurrent": 2,
        "compile_mode": "auto",
        "max_failures": 3,
        "save_seconds": 0.0,
        "log": ("wandb",),
    }
    finished_run.update(**before)
    resumed = Run.open(finished_run.path)
    Path(resumed.record.data_dir).mkdir(exist_ok=True)
    where = ["--resume", "--name", "tiny", "--storage", str(finished_run.path.parent)]
    path = finished_run.path / "space.yaml"
    for words, expected in (([], before), ([*said, "--save-seconds=0"], now)):
        context = search.make_context("search", [*where, *words])
        request = search_request(context, path, resumed, name="tiny")
        assert {name: getattr(request, name) for name in expected} == expected
        assert request.kept_entries.items() >= expected.items(), "as it is recorded"
        assert request.data_dir == Path(resumed.record.data_dir)
    finished_run.update(data_dir=str(finished_run.path / "gone"))
    context = search.make_context("search", where)
    elsewhere = search_request(context, path, Run.open(finished_run.path), name="tiny")
    assert elsewhere.data_dir == DATA_DIR, "that of a run may be another user's"


@pytest.mark.parametrize(
    "option", ["--data", "--data-dir", "--name", "--space", "--storage", "--warm-start"]
)
def test_an_option_whose_value_is_empty_is_refused(option: str) -> None:
    """As from a variable of the shell that is not set."""
    with pytest.raises(click.BadParameter, match="it is empty"):
        search.make_context("search", ["--space", "quick", option, ""])


def test_no_other_images_are_searched_for_an_empty_source() -> None:
    context = search.make_context("search", ["--space", "quick", 'dataset=""'])
    with pytest.raises(UsageError, match="is empty"):
        search_request(context, find_space("quick"), None, name="x")


def test_a_variable_that_is_empty_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_TUNE_DATA", "")
    assert search.make_context("search", []).params["data"] is None


def test_no_name_is_made_in_place_of_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--name '' is not a plain name"):
        make_search_request(
            load_space(find_space("quick")),
            stem="x",
            space_name="x",
            storage=tmp_path,
            name="",
            command="",
        )


def test_a_run_that_is_resumed_goes_before_the_environment_except_for_places_and_budgets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refit, words = cli.commands["refit"], ["--resume", "--name", "tiny"]
    before = [command.make_context("x", [*words]).params for command in (search, refit)]
    kept = {"trials": 8, "epochs": 5, "seed": 9, "keep": 3, "patience": 0.5, "image_size": 64}
    kept |= {"sampler": "random", "metric": "nll", "space": "wide", "data": "digits", "top": 2}
    again = {"storage": Path("/runs"), "data_dir": Path("/data"), "gpu_hours": 2.0}
    for name, value in (kept | again).items():
        monkeypatch.setenv(f"CIFAR_TUNE_{name.upper()}", str(value))
    monkeypatch.setenv("CIFAR_TUNE_STUDY_STORAGE", "study.log")
    resumed = [command.make_context("x", [*words]).params for command in (search, refit)]
    assert resumed == [before[0] | again | {"study_storage": "study.log"}, before[1] | again]
    assert search.make_context("search", ["--resume", "--seed", "1"]).params["seed"] == 1
    new = search.make_context("search", []).params | {"top": 2}
    assert new.items() >= kept.items()


def test_the_environment_has_the_names_of_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_TUNE_FOR", "ensemble")
    monkeypatch.setenv("CIFAR_TUNE_COMPILE", "never")
    # As earlier versions called it.
    monkeypatch.setenv("CIFAR_TUNE_RUN_NAME", "first")
    params = search.make_context("search", []).params
    assert (params["purpose"], params["compile_mode"]) == ("ensemble", "never")
    assert cli.commands["ensemble"].make_context("ensemble", []).params["run_name"] == "first"


@pytest.mark.parametrize(
    ("words", "begun", "expected"),
    [
        (["search", "--space"], "cnn", "cnn_small"),
        (["search", "--sampler"], "t", "tpe"),
        (["leaderboard"], "", "tiny"),
        (["show", "tiny"], "", "2"),
        (["rerun"], "1", "1"),
        (["predict", "x.png", "--ensemble"], "ti", "tiny"),
    ],
)
def test_a_shell_completes_values(
    words: list[str], begun: str, expected: str, finished_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished_run.path.parents[1])
    completer = ShellComplete(cli, {}, "cifar-tune", "_CIFAR_TUNE_COMPLETE")
    assert expected in [item.value for item in completer.get_completions(words, begun)]


def test_what_an_encoding_lacks_is_written_otherwise(finished_run: Run) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tuner", "report", str(finished_run.path)],
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert b"validation (cnn, trial 1)" in done.stdout
    assert b"\\x" not in done.stdout


def test_a_trial_that_diverged_is_shown_as_json(finished_run: Run, call) -> None:
    trial = finished_run.trial(0)
    last = replace(trial.history[-1], train_loss=math.nan, val_loss=math.inf)
    write_history(trial.path, [*trial.history[:-1], last])
    document = json.loads(call("show", str(finished_run.path), "0", "--json").out)
    assert document["trial"] == 0
    assert [row["train_loss"] for row in document["history"]][-1] is None
    assert [row["val_loss"] for row in document["history"]] == [trial.history[0].val_loss, None]


def test_a_trial_that_diverged_is_trained_again_to_the_same_end(
    finished_run: Run, digits: Splits, call
) -> None:
    config = replace(finished_run.trial(0).config, optimizer=Sgd(lr=1.0e30))
    train_trial(finished_run.trial_path(3), config, digits)
    finished_run.update(hardware={"threads_per_trial": 1})
    words = ["rerun", str(finished_run.path), "3", "--device", "cpu"]
    assert "2 of 2 epochs gave the same numbers." in call(*words).out
    epochs = json.loads(call(*words, "--json").out)["epochs"]
    assert [(row["loss"], row["recorded loss"]) for row in epochs] == [(None, None)] * 2


def test_the_leaderboard_is_written_in_each_format(finished_run: Run, call) -> None:
    where = ["leaderboard", str(finished_run.path)]
    table = pd.read_csv(io.StringIO(call(*where, "--format", "csv").out))
    assert table["trial"].tolist() == [t.number for t in finished_run.ranked()]
    document = json.loads(call(*where, "--format", "json").out)
    assert [row["trial"] for row in document["trials"]] == table["trial"].tolist()
    done = subprocess.run([PROGRAM, *where, "--format", "parquet"], capture_output=True, check=True)
    assert pd.read_parquet(io.BytesIO(done.stdout))["accuracy"].tolist() == pytest.approx(
        table["accuracy"].tolist()
    )


def test_the_leaderboard_as_csv_holds_text_unchanged(finished_run: Run, call) -> None:
    trial = finished_run.trial(0)
    write_status(trial.path, replace(trial.status, reason="narrow\u202fspace"))
    assert "narrow\u202fspace" in call("leaderboard", str(finished_run.path), "--format", "csv").out
