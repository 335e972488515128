"""Trials as MLflow's own client reads them back from a tracking server, over HTTP."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.stores import free_port
from tests.test_tracking import search
from tests.test_tuner import World
from tuner.run.run import Run
from tuner.tracking import tracked

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@dataclass
class Server:
    """A tracking server on this machine, its trials in SQLite."""

    address: str
    process: subprocess.Popen[bytes]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and its workers."""
        os.killpg(self.process.pid, number)

    def told(self, run: Run) -> dict[int, Any]:
        """Return what the server holds of a search: trial -> MLflow's run."""
        client = self.client()
        experiment = client.get_experiment_by_name(run.record.name)
        same = f"tags.search = '{run.record.started}'"
        runs = client.search_runs([experiment.experiment_id], same)
        assert len({one.data.tags["trial"] for one in runs}) == len(runs)
        return {int(one.data.tags["trial"]): one for one in runs}

    def curve(self, one: Any, name: str) -> list[tuple[int, float]]:
        """Return the step and the value of each point of a metric."""
        points = self.client().get_metric_history(one.info.run_id, name)
        return [(point.step, point.value) for point in points]

    def client(self) -> Any:
        mlflow = pytest.importorskip("mlflow")
        return mlflow.MlflowClient(self.address)


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    pytest.importorskip("mlflow.server", reason="needs all of mlflow")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--default-artifact-root", str(folder / "artifacts")]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        deadline = time.monotonic() + 120
        while not answers(server):
            assert process.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield server
    finally:
        if process.poll() is None:
            server.signal(signal.SIGKILL)
        process.wait()


def answers(server: Server) -> bool:
    try:
        with urllib.request.urlopen(f"{server.address}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def server(shared: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared.address)
    return shared


def test_each_trial_is_a_run_with_its_parameters_curves_and_end(
    tmp_path: Path, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    run = search(tmp_path, ["mlflow"])
    assert capfd.readouterr().out == "", "standard output is the command's"
    told = server.told(run)
    assert sorted(told) == [0, 1, 2]
    for trial in run.trials():
        one = told[trial.number]
        assert one.info.run_name == f"{trial.number:04d}"
        assert one.data.tags["state"] == trial.status.state
        assert one.data.tags["reason"] == trial.status.reason
        assert one.info.status == ("FAILED" if trial.status.state == "diverged" else "FINISHED")
        assert float(one.data.params["optimizer.sgd.lr"]) == trial.config.optimizer.lr
        assert int(one.data.params["batch_size"]) == trial.config.batch_size
        assert server.curve(one, "accuracy/validation") == [
            (row.epoch, row.val_accuracy) for row in trial.history
        ]
        best = max((row.val_accuracy for row in trial.history), default=None)
        if trial.status.state != "diverged":
            assert one.data.metrics["best_accuracy"] == best


def test_a_trial_is_seen_while_it_runs(tmp_path: Path, server: Server) -> None:
    world = World(tmp_path)
    tuner = world.tuner()
    with tracked(world.run, ["mlflow"], tuner.state, tuner.observers, print):
        worker = world.begin(tuner)
        worker.step(0.5)
        deadline = time.monotonic() + 30
        while True:
            try:
                one = server.told(world.run)[0]
                if server.curve(one, "accuracy/validation") == [(1, 0.5)]:
                    break
            except (AttributeError, KeyError):
                pass  # The experiment or the run is not there yet.
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert one.info.status == "RUNNING"


def test_a_trial_that_was_interrupted_goes_on_in_its_run(tmp_path: Path, server: Server) -> None:
    world = World(tmp_path)
    tuner = world.tuner()
    with tracked(world.run, ["mlflow"], tuner.state, tuner.observers, print):
        worker = world.begin(tuner)
        worker.step(0.5)
        worker.train(0.6)
    assert server.told(world.run)[0].info.status == "KILLED"
    tuner = world.tuner()
    said: list[str] = []
    with tracked(world.run, ["mlflow"], tuner.state, tuner.observers, said.append):
        worker = world.begin(tuner)
        for accuracy in (0.7, 0.8):
            worker.step(accuracy)
        worker.finish()
    assert said == []
    (one,) = server.told(world.run).values()
    assert one.info.status == "FINISHED"
    assert server.curve(one, "accuracy/validation") == [(1, 0.5), (2, 0.6), (3, 0.7), (4, 0.8)]


def test_a_server_that_answers_no_more_is_left_at_the_end(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.tracking.PATIENCE_SECONDS", 2.0)
    world = World(tmp_path)
    tuner = world.tuner()
    said: list[str] = []
    server.signal(signal.SIGSTOP)
    try:
        start = time.perf_counter()
        with tracked(world.run, ["mlflow"], tuner.state, tuner.observers, said.append):
            worker = world.begin(tuner)
            for accuracy in (0.5, 0.6, 0.7, 0.8):
                worker.step(accuracy)
            worker.finish()
        assert 2 < time.perf_counter() - start < 10
    finally:
        server.signal(signal.SIGCONT)
    assert said == ["MLflow receives no more trials: no answer for 2 s"]
    assert (world.run.path / "tensorboard" / "0000").is_dir()


def test_a_server_that_is_killed_ends_no_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        # Five minutes else, as MLflow is made.
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        world = World(tmp_path)
        tuner = world.tuner()
        said: list[str] = []
        with tracked(world.run, ["mlflow"], tuner.state, tuner.observers, said.append):
            worker = world.begin(tuner)
            worker.step(0.5)
            server.signal(signal.SIGKILL)
            server.process.wait()
            start = time.perf_counter()
            for accuracy in (0.6, 0.7, 0.8):
                worker.step(accuracy)
            worker.finish()
            assert time.perf_counter() - start < 1
    (line,) = said
    assert line.startswith("MLflow receives no more trials: ")
    assert server.address.removeprefix("http://").split(":")[1] in line
    assert world.run.trial(0).status.state == "completed"
    assert len(list((world.run.path / "tensorboard" / "0000").iterdir())) == 1
