"""Signals, killed processes and lost nodes, against the installed command."""

import fcntl
import io
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import optuna
import pytest
import ray
import torch
from optuna.trial import TrialState as OptunaState
from rich.console import Console

from tests.benchmarks.faults import SPACE, TRIALS, Moment, baselines, killed_search
from tests.benchmarks.processes import PROGRAM, Search, descendants, environment
from tests.benchmarks.promises import FIGURES, flaws, same_runs
from tests.conftest import UNTRAINABLE, wait_until
from tests.disks import remount, small_disk
from tuner.config import DataConfig
from tuner.data.splits import load_splits
from tuner.errors import ClusterError, NoUsableTrials, StorageError
from tuner.run.checkpoint import load_progress
from tuner.run.run import Run
from tuner.run.trial import EpochMetrics, TrialRecord, read_history
from tuner.space import load_space
from tuner.storage.patience import PATIENCE_SECONDS
from tuner.training.loop import train
from tuner.tuning import session as driver
from tuner.tuning.request import SearchRequest
from tuner.tuning.sampling.sampler import Sampler

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path


def begin(folder: Path, *options: str, trials: int = 3) -> Search:
    """Begin a search that saves, unless ``options`` say otherwise, each epoch."""
    arguments = ("--space", "space.yaml", "--name", "run", "--scheduler", "none")
    saving = ("--save-seconds", "0")
    return Search(folder, *arguments, *saving, "--trials", str(trials), *options)


def run_in(folder: Path) -> Run:
    return Run.open(folder / "runs" / "run")


def history_in(folder: Path, number: int) -> list[EpochMetrics]:
    return read_history(folder / "runs" / "run" / "trials" / f"{number:04d}")


def kill_workers(search: Search) -> None:
    """Kill the processes that train."""
    workers = [p for p in descendants(search.process.pid) if p.name.startswith("ray::Implicit")]
    assert workers
    for worker in workers:
        worker.kill()


def assert_trained_as_without_a_fault(trial: TrialRecord, before: list[EpochMetrics]) -> None:
    """Check that what was trained ``before`` was kept, and what came later follows from it."""
    assert before
    assert trial.history[: len(before)] == tuple(before), "no epoch was trained again"
    assert trial.status.state == "completed"
    assert [*flaws(trial)] == []
    splits = load_splits(DataConfig(source="digits"), trial.path)
    torch.set_num_threads(1)
    for row, epoch in zip(
        trial.history, train(trial.config, splits, torch.device("cpu")), strict=True
    ):
        for name in FIGURES:
            assert getattr(row, name) == getattr(epoch.figures, name), (row.epoch, name)


def resume(folder: Path) -> Run:
    with Search(folder, "--resume", "--name", "run") as search:
        assert search.wait(120) == 0, search.errors
    return run_in(folder)


def test_a_killed_search_keeps_its_promises(tmp_path: Path) -> None:
    (tmp_path / "space-2.yaml").write_text(SPACE + baselines(3))
    quiet = Console(file=io.StringIO())
    moments = [Moment(2, 0.1), Moment(4, 0.2)]
    verdict = killed_search(tmp_path, "run", 2, "driver", moments, quiet)
    assert verdict.broken == []
    assert verdict.kills == 2
    assert verdict.is_whole


def test_a_search_that_promotes_is_killed_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    text = SPACE.replace(f"trials: {TRIALS}", "trials: 8")
    (tmp_path / "space-1.yaml").write_text(text + baselines(8))
    quiet = Console(file=io.StringIO())
    unkilled = killed_search(tmp_path, "unkilled", 1, "everything", [], quiet)
    verdict = killed_search(tmp_path, "killed", 1, "everything", [Moment(7, 0.1)], quiet)
    assert (unkilled.broken, verdict.broken, verdict.kills) == ([], [], 1)
    assert same_runs(tmp_path / "runs" / "unkilled", tmp_path / "runs" / "killed")
    assert verdict.paused >= 3
    trials = Run.open(tmp_path / "runs" / "killed").trials()
    assert any(trial.status.attempts > 1 for trial in trials if trial.status.passed)


def test_epochs_between_two_saves_are_trained_again_after_a_kill(folder: Path) -> None:
    with begin(
        folder, "--concurrent", "1", "--save-seconds", "1", "--epochs", "24", trials=1
    ) as search:
        wait_until(lambda: history_in(folder, 0))
        # Epochs take 0.3 s: some end unsaved before this.
        time.sleep(0.8)
        kill_workers(search)
        before = load_progress(folder / "runs" / "run" / "trials" / "0000" / "state.safetensors")[0]
        at = time.time()
        assert search.wait(180) == 0, search.errors
    (trial,) = run_in(folder).trials()
    assert_trained_as_without_a_fault(trial, before)
    assert 0 < at - before[-1].time < 5
    assert f"trial 0 completed · {len(trial.history)} epochs" in search.errors
    assert trial.status.attempts == 2


def test_a_trial_that_loses_too_many_workers_fails_and_the_search_goes_on(folder: Path) -> None:
    with begin(folder, "--concurrent", "1", "--max-failures", "1", trials=2) as search:
        for num_epochs in (2, 4):
            wait_until(lambda n=num_epochs: len(history_in(folder, 0)) >= n)
            kill_workers(search)
        assert search.wait(120) == 0, search.errors
    lost, other = run_in(folder).trials()
    assert lost.status.state == "failed"
    assert lost.status.reason.startswith("its worker was lost")
    assert "None" not in lost.status.reason
    assert other.status.state == "completed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_search_after_the_epoch_with_the_command_to_resume(
    folder: Path, number: signal.Signals
) -> None:
    with begin(folder, "--concurrent", "2") as search:
        wait_until(lambda: len(history_in(folder, 0)) >= 2)
        if number == signal.SIGINT:
            # A terminal sends Ctrl-C to all that runs in it, the engine's processes too.
            os.killpg(search.process.pid, number)
        else:
            # So does systemd to all of a unit, and Slurm to all of a step.
            for process in descendants(search.process.pid):
                process.kill(number)
            search.process.send_signal(number)
            # timeout sends it to its child, and to the group that this is in.
            os.killpg(search.process.pid, number)
        before = {number: len(history_in(folder, number)) for number in (0, 1)}
        assert search.wait(30) == 130, search.errors
    run = run_in(folder)
    assert run.record.status == "interrupted"
    for trial in run.trials():
        assert trial.status.state in ("interrupted", "completed")
        # The files may be an epoch behind.
        assert len(trial.history) <= before[trial.number] + 2
        assert [*flaws(trial)] == []
        assert trial.state.exists() == (trial.status.state == "interrupted")
    command = search.errors.partition("Resume with:\n")[2].partition("cifar-tune ")[2].strip()
    assert command.startswith("search --resume --name run")
    if number == signal.SIGTERM:
        # The run is the same as after SIGINT, where it is resumed.
        return
    again = subprocess.run(
        [str(PROGRAM), *shlex.split(command)], cwd=folder, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    trials = run_in(folder).trials()
    assert [trial.status.state for trial in trials] == ["completed"] * 3
    assert [text for trial in trials for text in flaws(trial)] == []


def test_a_second_signal_ends_the_search_at_once_and_it_can_be_resumed(folder: Path) -> None:
    with begin(folder, "--concurrent", "2") as search:
        wait_until(lambda: len(history_in(folder, 0)) >= 2)
        search.process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        search.process.send_signal(signal.SIGINT)
        assert search.wait(15) == 130, search.errors
    assert "--resume --name run" in search.errors
    assert "Traceback" not in search.errors
    before = history_in(folder, 0)
    run = resume(folder)
    assert [trial.status.state for trial in run.trials()] == ["completed"] * 3
    assert_trained_as_without_a_fault(run.trial(0), before)


def test_a_terminal_that_closes_ends_the_search_after_the_epoch(folder: Path) -> None:
    master, slave = pty.openpty()
    command = [str(PROGRAM), "search", "--space", "space.yaml", "--name", "run", "--trials", "2"]
    # They outlast the close of the terminal on a busy machine, too.
    command += ["--epochs", "60"]
    process = subprocess.Popen(
        [*command, "--scheduler", "none", "--save-seconds", "0", "--concurrent", "1"],
        cwd=folder,
        env=environment() | {"TERM": "xterm"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    drawn = b""

    def has_trained() -> bool:
        nonlocal drawn
        while select.select([master], [], [], 0)[0]:
            drawn += os.read(master, 65536)
        return b"1 of 1 slot busy" in drawn and len(history_in(folder, 0)) >= 2

    try:
        wait_until(has_trained)
        os.close(master)
        code = process.wait(120)
    finally:
        process.kill()
        process.wait()
    run = run_in(folder)
    # What it had to say, nobody has heard: the record tells how it ended.
    assert (code, run.record.status) == (130, "interrupted"), run.record
    assert run.trial(0).status.state == "interrupted"
    assert [*flaws(run.trial(0))] == []


def beside_progress(search: Search) -> list[str]:
    """Return the lines on stderr but for those of what is under way."""
    progress = re.compile(r".* \.\.\.( \d+ s so far)?|digits: .*|run: .*|\d+/\d+ trials .*")
    return [line for line in search.errors.splitlines() if not progress.fullmatch(line)]


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_the_loss_of_ray_itself_is_told_in_a_line(folder: Path, name: str) -> None:
    with begin(folder, "--concurrent", "1", trials=1) as search:
        wait_until(lambda: len(history_in(folder, 0)) >= 2)
        before = history_in(folder, 0)
        (lost,) = [p for p in descendants(search.process.pid) if p.name == name]
        lost.kill()
        assert search.wait(30) == ClusterError.exit_code, search.errors
    assert search.output == ""
    last, command = beside_progress(search)
    assert f"({name}) has ended" in last
    assert last.endswith("Resume with:")
    assert "cifar-tune search --resume --name run" in command
    assert run_in(folder).record.status == "interrupted"
    # A lost raylet leaves the same run; its workers end with it, those of a lost GCS need not.
    if name == "gcs_server":
        assert_trained_as_without_a_fault(resume(folder).trial(0), before)


def test_a_full_disk_under_ray_is_told_in_a_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = folder / "disk"
    monkeypatch.setenv("RAY_TMPDIR", str(disk))
    with small_disk(disk, "40k"):
        (disk / "other").write_bytes(bytes(2**15))
        with begin(folder) as search:
            assert search.wait(150) == ClusterError.exit_code, search.errors
    (line,) = beside_progress(search)
    assert f"{disk} is full" in line


STEADY = SPACE.replace("epochs: 8", "epochs: 4") + baselines(4)
"""Four trials that are the same whatever becomes of the search."""


@pytest.mark.parametrize("fault", ["full", "gone"])
def test_a_storage_that_fails_ends_the_search_with_nothing_lost(folder: Path, fault: str) -> None:
    (folder / "space.yaml").write_text(STEADY)
    storage = folder / "runs"
    with small_disk(storage, "900k" if fault == "full" else "100m"):
        with begin(folder, "--concurrent", "2", trials=4) as search:
            if fault == "gone":
                wait_until(lambda: history_in(folder, 0))
                (storage / "run").rename(storage / "elsewhere")
            wait_until(lambda: "trying again for 60 s" in search.errors)
            waited = time.monotonic()
            assert search.wait(150) == StorageError.exit_code, search.errors
            assert time.monotonic() - waited > PATIENCE_SECONDS - 10
        assert "Traceback" not in search.errors
        last, command = search.errors.splitlines()[-2:]
        assert {"full": "No space left on device", "gone": "the folder is gone"}[fault] in last
        assert last.endswith("Resume with:")
        assert "cifar-tune search --resume --name run" in command
        assert ("run.json could not be written" in last) == (fault == "gone")
        if fault == "gone":
            assert [path.name for path in storage.iterdir()] == ["elsewhere"]
            (storage / "elsewhere").rename(storage / "run")
        remount(storage, "size=100m")
        run = run_in(folder)
        assert run.record.status == ("interrupted" if fault == "full" else "running")
        states = {trial.status.state for trial in run.trials()}
        assert states <= {"completed", "interrupted", "running"}
        before = [trial.history for trial in run.trials()]
        trials = resume(folder).trials()
        assert [trial.status.state for trial in trials] == ["completed"] * 4
        for trial, kept in zip(trials, before, strict=False):
            assert trial.history[: len(kept)] == kept
            assert_trained_as_without_a_fault(trial, [*trial.history[:1]])


NET = """
import os
import time

from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, image_shape):
        super().__init__()
        self.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

    def forward(self, images):
        time.sleep(float(os.environ["FORWARD_SECONDS"]))
        return self.head(images)
"""
SLOW = """
dataset: digits
search: {trials: 8, epochs: 9, grace: 9, sampler: random}
space:
  batch_size: 128
  model: {custom: {path: net.py, name: Net}}
  optimizer: {sgd: {lr: {float: [0.01, 0.3], log: true}}}
"""


def seconds_after_the_budget(run: Run) -> float:
    """Return how long after the end of its budget the last trial of a run ended."""
    last = max(datetime.fromisoformat(trial.status.finished) for trial in run.trials())
    after = datetime.fromisoformat(run.record.finished) - last
    assert run.record.budget_seconds is not None
    return run.record.active_seconds - after.total_seconds() - run.record.budget_seconds


@pytest.fixture
def slow_folder(tmp_path: Path) -> Path:
    """Return a folder with a space whose network takes ``FORWARD_SECONDS`` for each batch."""
    (tmp_path / "space.yaml").write_text(SLOW)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def test_a_time_budget_cuts_running_epochs_at_a_step(
    slow_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An epoch has ten steps and a batch of validation images.
    monkeypatch.setenv("FORWARD_SECONDS", "1.0")
    with begin(slow_folder, "--time-budget", "33s", "--concurrent", "2") as search:
        assert search.wait(90) == 0, search.errors
    run = run_in(slow_folder)
    assert run.record.status == "finished"
    assert (run.record.budget_seconds, run.record.budget_gpu_hours) == (33.0, None)
    assert "budget is spent" in search.errors
    assert seconds_after_the_budget(run) < 3
    trials = run.trials()
    assert len(trials) == 2
    before = []
    for trial in trials:
        num_epochs = len(trial.history)
        assert trial.status.state == "interrupted"
        assert trial.status.reason == f"after epoch {num_epochs}, when the budget was spent"
        assert load_progress(trial.state)[0] == list(trial.history)
        assert trial.is_usable == bool(num_epochs)
        before.append(trial.history)
    assert any(before)
    shown = subprocess.run(
        [str(PROGRAM), "leaderboard", "--storage", "runs"], cwd=slow_folder, capture_output=True
    )
    assert shown.returncode == 0
    monkeypatch.setenv("FORWARD_SECONDS", "0.01")
    more = ("--resume", "--name", "run", "--time-budget", "1h", "--trials", "2")
    with Search(slow_folder, *more) as search:
        assert search.wait(200) == 0, search.errors
    for trial, kept in zip(run_in(slow_folder).trials(), before, strict=True):
        assert trial.status.state == "completed"
        assert trial.history[: len(kept)] == kept
        assert [*flaws(trial)] == []


def test_a_budget_that_ends_before_the_first_epoch_leaves_trials_to_begin_anew(
    slow_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARD_SECONDS", "2.0")
    with begin(slow_folder, "--time-budget", "18s", "--concurrent", "1") as search:
        code = search.wait(90)
    assert code == NoUsableTrials.exit_code, search.errors
    (trial,) = run_in(slow_folder).trials()
    assert (trial.status.state, trial.history) == ("interrupted", ())
    assert {file.name for file in trial.path.iterdir()} == {"config.json", "status.json"}
    for command in (["leaderboard"], ["show", "run", "0"], ["runs"]):
        shown = subprocess.run(
            [str(PROGRAM), *command, "--storage", "runs"], cwd=slow_folder, capture_output=True
        )
        assert shown.returncode == 0, shown.stderr


STATES = """
dataset: digits
search: {trials: 5, epochs: 2, grace: 1, reduction: 2, sampler: random}
baseline:
  - {model: {cnn: {stages: 2, width: 16}}, optimizer: {sgd: {lr: 0.1}}}
  - {model: {cnn: {stages: 2, width: 16}}, optimizer: {sgd: {lr: 1.0e-9}}}
  - {model: {cnn: {stages: 2, width: 16}}, optimizer: {sgd: {lr: 1.0e+30}}}
  - {model: {cnn: {stages: 4, width: 512}}, optimizer: {sgd: {lr: 0.1}}}
  - {model: {custom: {}}, optimizer: {sgd: {lr: 0.1}}}
space:
  batch_size: 16
  model:
    choice:
      cnn:
        stages: {choice: [2, 4]}
        blocks: 1
        width: {choice: [16, 512]}
        width_growth: 4.0
        kernel: 7
      custom: {path: net.py, name: Net}
  optimizer: {sgd: {lr: {float: [1.0e-9, 1.0e+30], log: true}}}
"""
REFUSED = 52e9
"""Bytes of trial 3's last convolution, 8192 x 32768 x 7 x 7 numbers.

Linux refuses at once to give more than there is in all. What comes before takes 4 GB for a while.
"""


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> list[optuna.Study]:
    """Keep the studies of the searches in this process."""
    kept: list[optuna.Study] = []

    class Kept(Sampler):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)
            kept.append(self.study)

    monkeypatch.setattr(driver, "Sampler", Kept)
    return kept


@pytest.fixture
def one_cpu() -> Iterator[None]:
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.skipif(
    os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > 0.95 * REFUSED,
    reason="this machine has so much memory that it would try",
)
def test_optuna_is_told_of_every_ending_as_it_was(
    tmp_path: Path, one_cpu: None, studies: list[optuna.Study]
) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(STATES)
    (tmp_path / "net.py").write_text(UNTRAINABLE)
    space = load_space(path)
    request = SearchRequest(
        space=space,
        space_name=str(path),
        search=space.search,
        data=DataConfig(source="digits"),
        data_dir=tmp_path,
        storage=tmp_path,
        name="run",
        command="",
        keep=5,
    )
    run = driver.search(request, Console(file=io.StringIO()))
    statuses = [trial.status for trial in run.trials()]
    assert [status.state for status in statuses] == [
        "completed",
        "stopped",
        "diverged",
        "out_of_memory",
        "failed",
    ]
    assert "allocate" in statuses[3].reason
    curve = {row.epoch: row.val_accuracy for row in run.trial(1).history}
    assert len(curve) == 1
    best = run.trial(0).best
    assert best is not None
    whole = {row.epoch: row.val_accuracy for row in run.trial(0).history}
    expected = [
        (OptunaState.COMPLETE, best.val_accuracy, whole),
        (OptunaState.PRUNED, curve[1], curve),
        (OptunaState.PRUNED, None, {}),
        (OptunaState.PRUNED, None, {}),
        (OptunaState.FAIL, None, {}),
    ]
    driver.search(replace(request, resume=True), Console(file=io.StringIO()))
    assert len(studies) == 2
    for study in studies:
        told = [(trial.state, trial.value, trial.intermediate_values) for trial in study.trials]
        assert told == expected
