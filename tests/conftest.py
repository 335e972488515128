"""What several test modules share: one thread, the digits, and a run folder of real trials."""

import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pytest
import ray
import torch
from hypothesis import settings

from tests.stores import S3Server, s3_server
from tuner.cli import cli, main
from tuner.config import DataConfig, ModelConfig, SearchConfig, Sgd, TrialConfig
from tuner.data.splits import Splits, load_splits
from tuner.ensemble import make_ensemble, planning
from tuner.ensemble.request import EnsembleRequest
from tuner.metrics.predict import accuracy_and_nll, scores_by_class
from tuner.run.checkpoint import Checkpoint, save_checkpoint
from tuner.run.digests import read_digests, write_digests
from tuner.run.run import Run
from tuner.run.run_record import RunRecord, now
from tuner.run.trial import (
    EpochMetrics,
    Stop,
    TrialRecord,
    TrialStatus,
    best_row,
    write_history,
    write_status,
    write_trial,
    write_val_probs,
)
from tuner.storage.object_path import ObjectPath
from tuner.storage.paths import sha256_of, to_path
from tuner.training.loop import train

# Other work on the machine makes single examples slow, hence no deadline.
settings.register_profile("quick", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=200)
# ``--hypothesis-profile thorough`` comes after this and replaces it.
settings.load_profile("quick")
# Every test trains something tiny, which more threads only slow down.
torch.set_num_threads(1)
# A job in the background of a script ignores interrupts, and so would the programs that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY_SPACE = """\
space:
  model: {cnn: {stages: 2, blocks: 1, width: {choice: [8, 16]}}}
  batch_size: 32
  optimizer: {sgd: {lr: {choice: [0.1, 0.2]}}}
"""
"""What ``trained_run`` is said to have searched."""


UNTRAINABLE = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes, image_shape):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))

    def forward(self, images):
        if self.training:
            raise ValueError("it does not train")
        return super().forward(images)
"""
"""Code of a network of digits, every trial of which fails."""


class Told(NamedTuple):
    """The exit code of a command, and what it wrote."""

    code: int
    out: str
    err: str


Call = Callable[..., Told]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the tests that start a cluster last, those that share one session first among them.

    With ``-n 2 --dist loadgroup`` one process runs them alone, from the beginning, while the other
    runs the rest: two clusters at once would take each other's CPUs.
    """
    is_one_of_several = hasattr(config, "workerinput")

    def starts_cluster(item: pytest.Item) -> bool:
        return item.get_closest_marker("ray") is not None

    for item in filter(starts_cluster, items):
        item.add_marker(pytest.mark.xdist_group("clusters"))
    items.sort(key=lambda item: (starts_cluster(item) != is_one_of_several, _needs_own(item)))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the shared session before the first test that starts a cluster of its own."""
    if nextitem is not None and not _needs_own(item) and _needs_own(nextitem):
        ray.shutdown()


def _needs_own(item: pytest.Item) -> bool:
    """Whether this test starts a cluster of its own."""
    return item.get_closest_marker("ray") is not None and "session" not in item.fixturenames


@pytest.fixture(autouse=True)
def _clusters_are_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to start a cluster in a test that is not marked: it would run beside another one."""
    if any(request.node.get_closest_marker(name) for name in ("ray", "gpu")):
        return

    def refuse(*arguments: object, **options: object) -> None:
        pytest.fail("it starts a cluster: mark it with @pytest.mark.ray")

    monkeypatch.setattr("ray._private.node.Node.__init__", refuse)


@pytest.fixture(scope="session", autouse=True)
def _state_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is recorded of a user's own code out of the home of whoever tests.

    Nor do options, a cluster, or cached weights, come from their environment.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - {"CIFAR_TUNE_TEST_IMAGES"}:
            if name.startswith("CIFAR_TUNE_") or name == "RAY_ADDRESS":
                patch.delenv(name)
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
        yield


@pytest.fixture(scope="session")
def torch_home_of_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder where the workers of ``session`` look for weights; it does not exist."""
    return tmp_path_factory.mktemp("workers") / "torch"


@pytest.fixture(scope="session")
def session(torch_home_of_workers: Path) -> Iterator[None]:
    """Start Ray on two CPUs for all tests that need no cluster of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(torch_home_of_workers))
        ray.init(
            "local",
            num_cpus=2,
            num_gpus=torch.cuda.device_count(),
            include_dashboard=False,
            log_to_driver=False,
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    """Return the training and validation digits: 1,438 real images of 8 x 8 pixels."""
    return load_splits(DataConfig(source="digits"), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def trained_run(digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of three trials on the digits, to be read alone; see ``finished_run``."""
    storage = tmp_path_factory.mktemp("runs")
    record = record_of(
        digits,
        DataConfig(source="digits"),
        storage / "data",
        name="tiny",
        command="cifar-tune search --space tiny.yaml",
        space="tiny.yaml",
        search=SearchConfig(trials=3, epochs=2, grace=1),
    )
    run = Run.create(storage / "tiny", record, TINY_SPACE)
    # Trial 1 is the best one, so that the order of the numbers is not that of the ranks.
    widths_and_rates = ((8, 0.1), (16, 0.2), (16, 0.1))
    for number, (width, lr) in enumerate(widths_and_rates):
        config = TrialConfig(
            model=ModelConfig("cnn", {"stages": 2, "blocks": 1, "width": width}),
            epochs=2,
            seed=number,
            batch_size=32,
            optimizer=Sgd(lr=lr),
        )
        train_trial(run.trial_path(number), config, digits)
    stop = Stop(rung=1, value=0.5, cut=0.6, peers=2)
    path = run.trial_path(2)
    status = run.trial(2).status
    write_status(
        path,
        TrialStatus(
            state="stopped", reason=str(stop), stop=stop, num_parameters=status.num_parameters
        ),
    )
    run.write_leaderboard()
    run.update(status="finished", finished=now())
    return run


@pytest.fixture
def finished_run(trained_run: Run, tmp_path: Path) -> Run:
    """Return a copy of ``trained_run`` that the test may change, in ``tmp_path/runs``."""
    shutil.copytree(trained_run.path, tmp_path / "runs" / "tiny")
    return Run.open(tmp_path / "runs" / "tiny")


@pytest.fixture(scope="session")
def run_with_ensemble(trained_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a copy of ``trained_run`` with an ensemble of all three, ``all``, to be read alone."""
    folder = tmp_path_factory.mktemp("combined") / "tiny"
    shutil.copytree(trained_run.path, folder)
    run = Run.open(folder)
    request = EnsembleRequest(top=3, name="all", calibrate=True)
    with planning(run, request, devices=[torch.device("cpu")]) as plan:
        make_ensemble(plan)
    return run


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that types a command and returns its exit code and what it wrote."""

    def type_command(*words: str) -> Told:
        monkeypatch.setattr(sys, "argv", ["cifar-tune", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return Told(ended.value.code, *capsys.readouterr())

    return type_command


@pytest.fixture
def pretended_nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Return the nodes that a cluster without autoscaler is said to have, to be changed."""
    have = [{"CPU": 4.0, "GPU": 1.0}]
    capacity = "tuner.tuning.ray_backend.capacity"
    monkeypatch.setattr(f"{capacity}.alive_resources", lambda *but: [dict(node) for node in have])
    monkeypatch.setattr(f"{capacity}.find_autoscaler", lambda: None)
    for name in ("draining_nodes", "gone_nodes"):
        monkeypatch.setattr(f"{capacity}.{name}", frozenset)
    monkeypatch.setattr(f"{capacity}.LOOK_SECONDS", 0)
    return have


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Yield one server for all tests, for clients keep its address."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def server(shared_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in shared_server.environment.items():
        monkeypatch.setenv(name, value)
    (shared_server.folder / "bucket").mkdir(exist_ok=True)
    return shared_server


@pytest.fixture
def bucket(server: S3Server, tmp_path: Path) -> ObjectPath:
    """Return an empty folder of a bucket."""
    place = to_path(f"s3://bucket/{tmp_path.name}")
    assert isinstance(place, ObjectPath)
    return place


@pytest.fixture
def stored_run(trained_run: Run, bucket: ObjectPath, server: S3Server) -> Run:
    """Return a copy in the store of a run of three trials; its storage is ``bucket``."""
    shutil.copytree(trained_run.path, server.folder / bucket.uri.removeprefix("s3://") / "tiny")
    return Run.open(bucket / "tiny")


def wait_until(is_so: Callable[[], object], seconds: float = 120) -> None:
    """Check a condition every 50 ms until it holds."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"it did not come to pass in {seconds:g} s"
        time.sleep(0.05)


def context_of(line: str) -> click.Context:
    """Read a line that calls the program, as click does, and run nothing.

    Raises:
        click.ClickException: On an unknown option, a choice that there is not, a missing argument.
    """
    words = shlex.split(line.split(" > ")[0], comments=True)[1:]
    command: click.Command = cli
    context = click.Context(cli, info_name="cifar-tune")
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None, line
        command = found
    return command.make_context(command.name, words, parent=context)


def copy_of_trial(run: Run, number: int, new: int) -> Path:
    """Add a trial that is like another one, and return its folder."""
    path = Path(str(run.trial_path(new)))
    shutil.copytree(str(run.trial_path(number)), path)
    for record in (path / "status.json", path / "digests.json"):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"trial": new}))
    return path


def record_probs(trial: TrialRecord, probs: np.ndarray, labels: torch.Tensor) -> None:
    """Leave other validation probabilities, and the epoch that they would have come of."""
    assert trial.best is not None
    told = torch.from_numpy(probs).float()
    accuracy, loss = accuracy_and_nll(told, labels)
    by_class = {f"val_{k}": v for k, v in asdict(scores_by_class(told, labels)).items()}
    rows = [
        replace(row, val_accuracy=accuracy, val_loss=loss, **by_class)
        if row is trial.best
        else replace(row, val_accuracy=0.0)
        for row in trial.history
    ]
    digests = read_digests(trial.path)
    digests["val_probs.npy"] = write_val_probs(trial.path, probs)
    digests["history.csv"] = write_history(trial.path, rows)
    write_digests(trial.path, digests)


def record_of(splits: Splits, data: DataConfig, data_dir: Path, **known: Any) -> RunRecord:
    """Return the record of a run on these images, of which the rest is ``known``."""
    return RunRecord(
        data=data,
        data_dir=str(data_dir),
        data_fingerprint=splits.fingerprint,
        split_fingerprint=splits.split_fingerprint,
        num_train=len(splits.train),
        num_val=len(splits.val),
        started=now(),
        **known,
    )


def train_trial(path: Path, config: TrialConfig, splits: Splits) -> None:
    """Train a trial and leave what a worker and the driver of a search leave."""
    write_trial(path, config)
    history: list[EpochMetrics] = []
    num_parameters = 0
    digests = {"config.json": sha256_of(path / "config.json")}
    for epoch in train(config, splits, torch.device("cpu")):
        history.append(epoch.figures)
        num_parameters = epoch.num_parameters
        if best_row(history, "accuracy") is epoch.figures:
            checkpoint = Checkpoint(
                model=config.model,
                epoch=epoch.figures.epoch,
                classes=splits.classes,
                image_shape=splits.image_shape,
                mean=epoch.mean,
                std=epoch.std,
                computed=epoch.computed,
                folds=splits.num_folds,
            )
            file = path / "checkpoint.safetensors"
            digests[file.name] = save_checkpoint(file, epoch.network, checkpoint)
            digests["val_probs.npy"] = write_val_probs(path, epoch.val_probs.numpy())
        digests["history.csv"] = write_history(path, history)
    write_digests(path, digests, len(history))
    write_status(path, TrialStatus(state="completed", num_parameters=num_parameters))
