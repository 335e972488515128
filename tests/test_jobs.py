"""Searches and examinations as jobs of a real head, on nodes that lack our packages."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmarks.processes import PROGRAM, environment
from tests.conftest import wait_until
from tests.raylets import Raylets, bare_python, pretend
from tuner.run.run import Run
from tuner.tuning.ray_backend import jobs

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(580)]

OURS = (
    *("safetensors", "optuna", "alembic", "sqlalchemy", "matplotlib", "rich", "sklearn"),
    *("scikit_learn", "scipy"),
)
"""What a node need not have."""
BASE = """
dataset: digits
search: {trials: 4, epochs: 2, scheduler: none}
space:
  batch_size: 64
  optimizer: {sgd: {lr: {float: [0.01, 0.3], log: true}}}
"""
SPACE = """
extends: base.yaml
space:
  model: {custom: {path: nets.py, name: Net, params: {width: {choice: [8, 16]}}}}
"""
NETS = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes, image_shape, width):
        channels, height, side = image_shape
        super().__init__(
            nn.Flatten(), nn.Linear(channels * height * side, width), nn.ReLU(),
            nn.Linear(width, num_classes),
        )
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Raylets]:
    """Yield a head without this program, and a node with Ray, torch and torchvision at most."""
    folder = tmp_path_factory.mktemp("pythons")
    with Raylets(bare_python(folder / "head", ())) as raylets:
        raylets.add(bare_python(folder / "bare", OURS))
        raylets.wait_for_nodes(2)
        yield raylets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("base.yaml", BASE), ("space.yaml", SPACE), ("nets.py", NETS)):
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of a token, which a cluster that asks for none must not be shown."""
    path = folder / "token"
    path.write_text("cifar-tune-" * 4)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    return path


def start(folder: Path, *words: str, **options: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [str(PROGRAM), *words, "--storage", str(folder / "runs")],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


@pytest.mark.usefixtures("token")
def test_a_submitted_search_runs_on_nodes_that_have_but_ray_and_torch(
    cluster: Raylets, folder: Path
) -> None:
    words = ("search", "--space", "space.yaml", "--name", "far", "--address", cluster.dashboard)
    code, out, err = finish(start(folder, *words, "--epochs", "300"))
    assert code == 0, out + err
    assert "far: 2 trials at a time" in out
    run = Run.open(folder / "runs" / "far")
    assert [trial.status.state for trial in run.trials()] == ["completed"] * 4
    assert len({trial.status.node for trial in run.trials()}) == 2, "the bare node trained, too"
    assert run.trial(0).config.model.family == "custom"

    words = ("refit", "far", "--top", "2", "--seeds", "1", "--epochs", "3", "--name", "again")
    code, out, err = finish(start(folder, *words, "--address", cluster.dashboard))
    assert code == 0, out + err
    again = Run.open(folder / "runs" / "again")
    assert again.record.refit is not None
    assert again.record.refit.run == "far"
    assert [len(trial.history) for trial in again.trials()] == [3, 3]


def test_a_job_that_is_left_goes_on_and_is_followed_again(cluster: Raylets, folder: Path) -> None:
    words = ("search", "--name", "left", "--address", cluster.dashboard)
    # Long enough to be under way when it is followed again, on a fast machine too.
    new = (*words, "--space", "space.yaml", "--epochs", "1000", "--trials", "2")
    process = start(folder, *new, start_new_session=True)
    assert process.stdout is not None
    seen = ""
    while "0/2 trials" not in seen:
        line = process.stdout.readline()
        assert line, process.communicate()
        seen += line
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert f"--resume --name left --address {cluster.dashboard}" in err
    assert "ray job stop" in err
    code, out, err = finish(start(folder, *words, "--resume", "--json"))
    assert code == 0, err
    assert json.loads(out)["run"] == str(folder / "runs" / "left")
    assert "0/2 trials" in err, "its output is told from the beginning"
    run = Run.open(folder / "runs" / "left")
    assert [len(trial.history) for trial in run.trials()] == [1000, 1000]


def test_a_job_that_is_stopped_ends_after_its_epoch_and_closes_its_books(
    cluster: Raylets, folder: Path
) -> None:
    # Of an epoch, 23 steps, that takes longer than the 3 s after which Ray kills by itself.
    slow = (
        "import time\n"
        + NETS
        + """
    def forward(self, images):
        time.sleep(0.25)
        return super().forward(images)
"""
    )
    (folder / "nets.py").write_text(slow)
    words = ("search", "--space", "space.yaml", "--name", "stopped", "--epochs", "100")
    process = start(folder, *words, "--address", cluster.dashboard)
    path = folder / "runs" / "stopped"
    wait_until(lambda: list(path.glob("trials/*/history.csv")), seconds=300)
    client = jobs.connect(cluster.dashboard)
    client.stop_job(jobs.find(client, "search", "stopped", None).submission_id)
    code, _, err = finish(process)
    assert code == 4
    assert "stopped" in err
    run = Run.open(path)
    assert run.record.status == "interrupted"
    assert (path / "leaderboard.csv").exists()


def test_the_exit_code_is_that_of_the_search(cluster: Raylets, folder: Path) -> None:
    words = ("search", "--space", "space.yaml", "--data", "/nowhere", "--name", "lost")
    code, out, _ = finish(start(folder, *words, "--address", cluster.dashboard))
    assert code == 2
    assert "unknown dataset '/nowhere'" in out


def test_the_doctor_examines_all_nodes_from_the_head(cluster: Raylets, folder: Path) -> None:
    words = ("doctor", "--data", "digits", "--address", cluster.dashboard)
    code, out, err = finish(start(folder, *words))
    assert code == 0, out + err
    for line in ("2 nodes, 2 CPUs", "all nodes write and read it", "2 trials at a time"):
        assert line in out
    code, out, err = finish(start(folder, *words, "--json"))
    assert code == 0, err
    assert {finding["level"] for finding in json.loads(out)} == {"ok"}


@pytest.mark.usefixtures("token")
def test_a_node_with_another_torch_is_named_in_a_table(
    cluster: Raylets, folder: Path, tmp_path: Path
) -> None:
    python = bare_python(tmp_path / "old", OURS)
    pretend(python, "torch", "1.0.0")
    number = cluster.add(python)
    try:
        cluster.wait_for_nodes(3)
        words = ("search", "--space", "space.yaml", "--address", cluster.address, "--name", "odd")
        code, _, err = finish(start(folder, *words))
        assert code == 4
        assert "1 of 3 nodes cannot run the trials" in err
        assert "1.0.0 !" in err
        assert not (folder / "runs").exists()
        code, out, _ = finish(
            start(folder, "doctor", "--data", "digits", "--address", cluster.address)
        )
        assert code == 4
        assert "failure  versions: differ on 1 node:" in out
    finally:
        cluster.remove(number)


def test_a_token_is_shown_to_a_cluster_that_asks_for_one(folder: Path, token: Path) -> None:
    words = ("search", "--space", "space.yaml", "--epochs", "2", "--trials", "2")
    with Raylets(token=token) as raylets:
        # With the driver here, then as a job.
        for name, address in (("near", raylets.address), ("far", raylets.dashboard)):
            code, out, err = finish(start(folder, *words, "--address", address, "--name", name))
            assert code == 0, out + err
