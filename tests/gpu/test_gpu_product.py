"""The product on a GPU as users drive it, in one Ray session: from a plan to an ensemble."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from click.testing import CliRunner

from tests.benchmarks.processes import descendants
from tuner.cli import cli
from tuner.run.run import Run
from tuner.run.trial import read_history

SPACE = """
description: The digits on a GPU
dataset: digits
search: {trials: 6, epochs: 4, grace: 1, sampler: random, scheduler: none, seed: 1}
space:
  batch_size: 64
  model: {cnn: {stages: 2, blocks: 1, width: 16}}
  optimizer:
    choice:
      sgd: {lr: {float: [0.1, 0.3]}}
      adamw: {lr: {float: [5.0e-3, 2.0e-2]}}
  augment: {crop: {int: [0, 1]}}
"""
SHARE = ("--gpus-per-trial", "0.25")
KILL_SECONDS = 90.0


def tune(*words: str) -> str:
    """Run a command in this process; return what it printed."""
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def document(*words: str) -> Any:
    return json.loads(tune(*words, "--json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("product")
    (folder / "digits.yaml").write_text(SPACE)
    return folder


@pytest.fixture(scope="module")
def where(folder: Path) -> tuple[str, ...]:
    return ("--storage", str(folder / "runs"))


@pytest.fixture(scope="module")
def space(folder: Path) -> tuple[str, ...]:
    return ("--space", str(folder / "digits.yaml"), "--data-dir", str(folder / "data"))


@pytest.fixture(scope="module")
def killed(folder: Path, where: tuple[str, ...], space: tuple[str, ...]) -> Run:
    """Kill a search of two long trials, with all that it started, after some epochs."""
    command = [sys.executable, "-m", "tuner", "search", *space, *where, *SHARE, "--name", "killed"]
    repository = str(Path(__file__).parents[2])
    paths = [repository, os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    changes = ["search.trials=2", "search.epochs=60", "--save-seconds", "0", "--quiet"]
    with (folder / "killed.txt").open("w") as output:
        process = subprocess.Popen(
            [*command, *changes], cwd=folder, env=environment, stdout=output, stderr=output
        )
    end = time.monotonic() + KILL_SECONDS
    try:
        while time.monotonic() < end and process.poll() is None:
            if min(_num_epochs(folder / "runs" / "killed")) >= 3:
                break
            time.sleep(0.02)
    finally:
        started = descendants(process.pid)
        process.kill()
        for each in started:
            each.kill()
        process.wait()
    return Run.open(folder / "runs" / "killed")


def _num_epochs(run: Path) -> list[int]:
    """Count the epochs of two trials, as far as they are on disk."""
    found = sorted(run.glob("trials/*"))
    return [len(read_history(path)) for path in found] if len(found) == 2 else [0]


@pytest.fixture(scope="module")
def session(killed: Run) -> Iterator[None]:
    """One session for all commands, with the CPUs and GPUs that Ray finds by itself."""
    ray.init("local", include_dashboard=False, log_to_driver=False)
    assert ray.cluster_resources().get("GPU", 0) == torch.cuda.device_count()
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def searched(session: None, where: tuple[str, ...], space: tuple[str, ...], folder: Path) -> Run:
    found = document("search", *space, *where, *SHARE, "--name", "found", "--quiet")
    assert found["status"] == "finished"
    return Run.open(folder / "runs" / "found")


def test_a_search_shares_the_gpu_and_captures_its_trials(searched: Run) -> None:
    assert searched.record.slots["gpus"] == 0.25
    trials = searched.trials()
    assert [trial.status.state for trial in trials] == ["completed"] * 6
    assert {trial.status.execution for trial in trials} == {"captured"}
    assert {trial.gpus for trial in trials} == {0.25}
    assert max(trial.best.val_accuracy for trial in trials if trial.best) > 0.8


@pytest.mark.parametrize(
    "words",
    [
        ("--top", "3", "--tta", "flip+shift", "--frontier", "--calibrate"),
        ("--method", "greedy", "--top", "4", "--max-latency-ms", "10000", "--compare"),
        ("--method", "soup", "--top", "2", "--tta", "flip"),
        ("--top", "2", "--address", "auto"),
    ],
    ids=["vote", "greedy", "soup", "cluster"],
)
def test_its_trials_are_combined_on_the_gpu(
    searched: Run, where: tuple[str, ...], words: tuple[str, ...]
) -> None:
    result = document("ensemble", "--run", "found", *where, *words)
    # A soup of networks from different beginnings is a poor network.
    assert result["ensemble"]["test"]["accuracy"] > (0 if "soup" in words else 0.7)
    if "--frontier" in words:
        assert all(0 < point["latency_ms"] < 1000 for point in result["frontier"])


def test_the_best_are_trained_anew(searched: Run, where: tuple[str, ...]) -> None:
    words = ("--top", "2", "--seeds", "2", "--name", "again", "--quiet", *SHARE)
    result = document("refit", "found", *where, *words)
    assert result["status"] == "finished"
    assert [row["state"] for row in result["trials"]] == ["completed"] * 4


def test_a_trial_is_trained_again_alone(searched: Run, where: tuple[str, ...]) -> None:
    best = searched.top(1)[0]
    result = document("rerun", "found", str(best.number), *where)
    assert [row["epoch"] for row in result["epochs"]] == [1, 2, 3, 4]
    last = result["epochs"][-1]
    # Not all kernels are deterministic.
    assert last["accuracy"] == pytest.approx(last["recorded"], abs=0.1)


def test_a_search_is_foreseen(
    session: None, where: tuple[str, ...], space: tuple[str, ...]
) -> None:
    result = document("plan", *space, *where, *SHARE, "--measure", "2s", "--quiet")
    (family,) = result["families"]
    assert family["gpus"] == 0.25
    assert result["misfits"] in ([], ())
    assert 0 < family["memory"]["median"] < torch.cuda.get_device_properties(0).total_memory


def test_doctor_finds_the_gpu_well(session: None, where: tuple[str, ...], folder: Path) -> None:
    words = ("doctor", *where, "--data", "digits", "--data-dir", str(folder / "data"))
    findings = document(*words)
    assert [each for each in findings if each["level"] == "failure"] == []
    (node,) = [each for each in findings if each["about"].startswith("node")]
    assert f"{torch.cuda.device_count()} GPUs" in node["text"]


def test_a_killed_search_goes_on_where_its_trials_were(
    killed: Run, session: None, where: tuple[str, ...], folder: Path
) -> None:
    before = [list(trial.history) for trial in killed.trials()]
    assert min(map(len, before)) >= 3
    assert min(map(len, before)) < 60, "it ended before it was killed"
    result = document("search", "--resume", "--name", "killed", *where, *SHARE, "--quiet")
    assert [row["state"] for row in result["trials"]] == ["completed"] * 2
    after = [trial.history for trial in Run.open(folder / "runs" / "killed").trials()]
    assert [len(history) for history in after] == [60, 60]
    for then, now in zip(before, after, strict=True):
        # A kill may cost the epoch that was being saved.
        kept = len(then) - 1
        assert list(now[:kept]) == then[:kept]
