import io
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from PIL import Image
from ray.cluster_utils import Cluster
from rich.console import Console

from tests.benchmarks import overhead
from tests.conftest import UNTRAINABLE
from tuner.config import DataConfig, Resources
from tuner.data.splits import Splits, load_splits
from tuner.ensemble.check import damage_of_run
from tuner.errors import ClusterError, NoUsableTrials, UsageError
from tuner.metrics.classwise import class_scores
from tuner.metrics.predict import predict_probs
from tuner.run.checkpoint import load_checkpoint, save_state
from tuner.run.digests import read_digests
from tuner.run.layout import DIGESTS
from tuner.run.run import Run
from tuner.run.trial import TrialRecord, write_status
from tuner.space import load_space
from tuner.storage.paths import sha256_of
from tuner.training.device import compute_dtype
from tuner.tuning.ray_backend import driver
from tuner.tuning.ray_backend.capacity import plan_capacity
from tuner.tuning.ray_backend.cluster import connected
from tuner.tuning.request import SearchRequest, make_search_request
from tuner.tuning.session import search

pytestmark = pytest.mark.ray

SPACE = """
dataset: digits
search: {trials: 8, epochs: 6, grace: 1, reduction: 2}
space:
  batch_size: 64
  model: {cnn: {stages: 2, blocks: 1, width: {int: [8, 16], step: 8}}}
  optimizer:
    choice:
      sgd: {lr: {float: [0.01, 0.3], log: true}}
      adamw: {lr: {float: [1.0e-3, 2.0e-2], log: true}}
"""


def ask(folder: Path, *overrides: str, space: str = SPACE, **changes: object) -> SearchRequest:
    path = folder / "space.yaml"
    path.write_text(space)
    loaded = load_space(path, overrides)
    request = SearchRequest(
        space=loaded,
        space_name=str(path),
        search=loaded.search,
        data=DataConfig(source="digits"),
        data_dir=folder,
        storage=folder / "runs",
        name="run",
        command="cifar-tune search",
        keep=3,
    )
    return replace(request, **changes)


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def run(session: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return search(ask(tmp_path_factory.mktemp("search")), quiet())


def test_every_trial_leaves_its_files(run: Run) -> None:
    assert run.record.status == "finished"
    trials = run.trials()
    assert [trial.number for trial in trials] == list(range(8))
    for trial in trials:
        assert trial.status.state in ("completed", "stopped"), "none waits at the end"
        assert trial.status.num_parameters > 0
        assert [row.epoch for row in trial.history] == list(range(1, len(trial.history) + 1))
        assert trial.val_probs().shape == (144, 10)
        digests = read_digests(trial.path)
        names = {"config.json", "history.csv", "val_probs.npy", "checkpoint.safetensors"}
        assert digests.keys() == names | {"state.safetensors"}
        for file in trial.path.iterdir():
            if file.name not in ("status.json", "digests.json"):
                assert digests[file.name] == sha256_of(file)
    assert not damage_of_run(run, torch.device("cpu"))
    assert json.loads((run.path / "run.json").read_text())["status"] == "finished"


def test_asha_promotes_half_at_each_rung_and_says_why_the_others_stop(run: Run) -> None:
    trials = run.trials()
    reached = [sum(len(trial.history) >= epoch for trial in trials) for epoch in (1, 2, 4, 6)]
    assert reached == [8, 4, 2, 1]
    for trial in trials:
        stop = trial.status.stop
        if trial.status.state == "completed":
            assert len(trial.history) == 6
            assert trial.status.passed == 4
            continue
        assert stop is not None
        assert stop.rung in (1, 2, 4)
        assert stop.rung == len(trial.history), "no epoch is trained after the stop"
        assert stop.value == trial.history[-1].val_accuracy
        assert str(stop) == trial.status.reason
        peers = [
            t.history[stop.rung - 1].val_accuracy for t in trials if len(t.history) >= stop.rung
        ]
        assert 0 < stop.peers < len(peers), "those that had come when it could go on no more"
        assert stop.cut in peers


def test_only_the_best_checkpoints_stay(run: Run) -> None:
    kept = [trial.number for trial in run.trials() if trial.checkpoint.exists()]
    assert sorted(kept) == sorted(trial.number for trial in run.ranked()[:3])


def test_the_checkpoint_is_what_was_ranked(run: Run) -> None:
    splits = load_splits(run.record.data, Path(run.record.data_dir))
    for trial in run.top(3):
        stored = torch.from_numpy(trial.val_probs())
        accuracy = (stored.argmax(dim=1) == splits.val.labels).double().mean().item()
        assert trial.best is not None
        assert accuracy == trial.best.val_accuracy
        network, checkpoint = load_checkpoint(trial.checkpoint, trial.config.model)
        assert checkpoint.epoch == trial.best.epoch
        cpu = torch.device("cpu")
        probs = predict_probs(
            network,
            splits.val.images,
            *(torch.tensor(v).view(1, -1, 1, 1) for v in (checkpoint.mean, checkpoint.std)),
            device=cpu,
            dtype=compute_dtype(trial.config.precision, cpu),
        )
        torch.testing.assert_close(probs, stored, atol=2e-2, rtol=0)


def test_folds_are_searched_and_kept_as_other_trials_are(session: None, tmp_path: Path) -> None:
    data = DataConfig(source="digits", folds=3, train_limit=300)
    found = search(ask(tmp_path, "search.trials=3", "search.epochs=2", data=data), quiet())
    assert (found.record.num_train, found.record.num_val) == (300, 300)
    assert {trial.status.state for trial in found.trials()} <= {"completed", "stopped"}
    splits = load_splits(found.record.data, tmp_path)
    for trial in found.trials():
        right = torch.from_numpy(trial.val_probs()).argmax(dim=1) == splits.val.labels
        assert trial.best is not None
        assert trial.best.val_accuracy == right.double().mean().item()
    for trial in found.top(3):
        network, checkpoint = load_checkpoint(trial.checkpoint, trial.config.model)
        assert checkpoint.folds == 3
        num_parameters = sum(parameter.numel() for parameter in network.parameters())
        assert trial.status.num_parameters == num_parameters
    assert not damage_of_run(found, torch.device("cpu"))


def test_the_same_seed_with_one_slot_gives_the_same_run(session: None, tmp_path: Path) -> None:
    def figures(name: str) -> list[TrialRecord]:
        found = search(ask(tmp_path, "search.trials=4", name=name, concurrent=1), quiet())
        assert found.record.concurrent == 1, "for when it goes on"
        return [
            (t.config, t.status.state, [(r.train_loss, r.val_accuracy) for r in t.history])
            for t in found.trials()
        ]

    assert figures("one") == figures("two")


def test_a_search_that_is_given_its_space_anew_keeps_what_earlier_runs_brought(
    session: None, run: Run, tmp_path: Path
) -> None:
    names = ("one", "two")
    for name in names:
        shutil.copytree(run.path, tmp_path / "runs" / name)
    earlier = tuple(Run.open(tmp_path / "runs" / name) for name in names)
    request = ask(tmp_path, "search.trials=4", "search.epochs=1", warm_start=earlier)
    found = search(request, quiet())
    brought = load_space(found.path / "space.yaml").baseline
    assert len(brought) == 1
    again = ask(tmp_path, "search.trials=5", "search.epochs=1", warm_start=earlier, resume=True)
    assert len(search(again, quiet()).trials()) == 5
    assert load_space(found.path / "space.yaml").baseline == brought


def test_a_trial_whose_saved_state_does_not_fit_begins_anew(session: None, tmp_path: Path) -> None:
    request = ask(tmp_path, "search.trials=1")
    before = search(request, quiet()).trial(0)
    state = {"optimizer.0.of_another_version": torch.zeros(1)}
    save_state(before.path / "state.safetensors", state, before.history[:3])
    write_status(before.path, replace(before.status, state="interrupted"))
    # As in runs of versions that recorded none.
    (before.path / DIGESTS).unlink()
    console = quiet()
    after = search(replace(request, resume=True), console).trial(0)
    assert isinstance(console.file, io.StringIO)
    assert "Trial 0 starts again: " in console.file.getvalue()
    assert after.status.state == "completed"
    assert [row.val_loss for row in after.history] == [row.val_loss for row in before.history]
    assert all(row.time > before.history[-1].time for row in after.history)


def test_nothing_of_the_engine_is_printed(
    session: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    screen = Console(file=io.StringIO(), width=80)
    search(ask(tmp_path, "search.trials=2", "search.epochs=1"), screen)
    assert capfd.readouterr() == ("", "")
    text = screen.file.getvalue()
    assert "2 trials at a time, each on 1 CPU" in text
    assert "trial 1 completed" in text


def test_a_trial_that_fails_or_diverges_does_not_end_the_search(
    session: None, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(UNTRAINABLE)
    space = """
dataset: digits
search: {trials: 3, epochs: 2, scheduler: none}
baseline:
  - {model: {cnn: {}}, optimizer: {sgd: {lr: 0.1}}}
  - {model: {custom: {}}, optimizer: {sgd: {lr: 0.1}}}
  - {model: {cnn: {}}, optimizer: {sgd: {lr: 1.0e+30}}}
space:
  model:
    choice:
      cnn: {stages: 2, blocks: 1, width: 8}
      custom: {path: net.py, name: Net}
  optimizer: {sgd: {lr: {float: [0.1, 1.0e+30], log: true}}}
"""
    found = search(ask(tmp_path, space=space), quiet())
    fine, failed, diverged = found.trials()
    assert fine.status.state == "completed"
    assert failed.status.state == "failed"
    assert "does not train" in failed.status.reason
    assert "in forward" in failed.status.traceback
    assert diverged.status.state == "diverged"
    assert len(diverged.history) == 1
    assert [trial.number for trial in found.top(1)] == [0]
    with pytest.raises(UsageError, match="only 1 usable"):
        found.top(2)


def test_a_search_without_a_usable_trial_says_why(session: None, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(UNTRAINABLE)
    overrides = ("space.model={custom: {path: net.py, name: Net}}", "search.trials=2")
    with pytest.raises(NoUsableTrials, match=r"2 failed.*does not train"):
        search(ask(tmp_path, *overrides), quiet())


@pytest.fixture(scope="module")
def uneven(digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 140 digits: many 3s, some 5s, few 8s, and validation images of each."""
    folder = tmp_path_factory.mktemp("uneven")
    for part, images, counts in (
        ("train", digits.train, {3: 90, 5: 36, 8: 14}),
        ("val", digits.val, {3: 10, 5: 10, 8: 10}),
    ):
        for label, count in counts.items():
            place = folder / part / f"digit-{label}"
            place.mkdir(parents=True)
            chosen = images.images[images.labels == label][:count]
            for index, image in enumerate(chosen):
                Image.fromarray(image[0].numpy()).save(place / f"{index}.png")
    return folder


def test_a_search_by_another_metric_ranks_keeps_and_goes_on_by_it(
    session: None, uneven: Path, tmp_path: Path
) -> None:
    text = """
search: {trials: 6, epochs: 4, grace: 1, reduction: 2, metric: balanced_accuracy}
space:
  batch_size: 16
  class_weights: {choice: [none, balanced, sqrt]}
  logit_adjustment: {choice: [0.0, 1.0]}
  augment: {mixup: {choice: [0.0, 0.2]}}
  model: {cnn: {stages: 2, blocks: 1, width: 8}}
  optimizer: {sgd: {lr: {float: [0.01, 0.3], log: true}}}
"""
    data = DataConfig(source=str(uneven), image_size=8)
    request = ask(tmp_path, space=text, data=data)
    found = search(request, quiet())
    assert found.record.search.metric == "balanced_accuracy"
    labels = load_splits(data, tmp_path).val.labels.numpy()
    values = []
    for trial in found.ranked():
        assert trial.best is not None
        assert trial.best.val_balanced_accuracy == max(
            row.val_balanced_accuracy or 0 for row in trial.history
        )
        scores = class_scores(trial.val_probs().argmax(axis=1), labels)
        assert trial.best.val_balanced_accuracy == pytest.approx(scores.balanced_accuracy)
        if trial.checkpoint.exists():
            _, described = load_checkpoint(trial.checkpoint, trial.config.model)
            assert described.epoch == trial.best.epoch
        values.append(trial.best.val_balanced_accuracy)
    assert values == sorted(values, reverse=True)
    assert {len(trial.history) for trial in found.trials()} > {4}, "some were stopped"
    with pytest.raises(UsageError, match="uses balanced_accuracy, and a run keeps its metric"):
        make_search_request(
            load_space(tmp_path / "space.yaml", ["search.metric=nll"]),
            stem="run",
            storage=found.path.parent,
            resumed=found,
            data_dir=tmp_path,
        )


@pytest.mark.slow
def test_all_slots_are_used_by_trials_that_are_shorter_than_the_start_of_a_worker(
    session: None, tmp_path: Path
) -> None:
    seconds = 0.5
    ends, _ = overhead.search(tmp_path, trials=60, sampler="random", sleep=seconds, is_bare=True)
    half = ends[30:]
    mean = (half[-1] - half[0]) / (len(half) - 1)
    assert mean < 0.8 * seconds, "more than one at a time"


def test_a_taken_name_is_refused_and_left_alone(run: Run) -> None:
    before = (run.path / "run.json").read_text()
    with pytest.raises(UsageError, match="Choose another --name"):
        search(ask(run.path.parent.parent), quiet())
    assert (run.path / "run.json").read_text() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus_per_trial": 1.0}, r"1 GPU, .*has 2 CPUs and 0 GPUs"),
        ({"cpus_per_trial": 3.0}, r"asks for 3 CPUs"),
        ({"concurrent": 3}, r"--concurrent 3: only 2 trials"),
    ],
)
def test_what_the_cluster_lacks_is_refused_before_a_run_is_made(
    session: None, tmp_path: Path, changes: dict[str, float], message: str
) -> None:
    with pytest.raises(ClusterError, match=message) as caught:
        search(ask(tmp_path, **changes), quiet())
    assert caught.value.exit_code == 4
    assert not (tmp_path / "runs").exists()


def test_a_fraction_of_a_cpu_lets_more_trials_run_at_once(session: None) -> None:
    assert plan_capacity(Resources(cpus=0.5)).count == 4
    assert plan_capacity(Resources(cpus=2)).default.threads == 2


def test_a_share_between_one_and_two_gpus_is_refused(session: None) -> None:
    with pytest.raises(UsageError, match="whole GPUs"):
        plan_capacity(Resources(gpus=1.5))


def test_trials_of_one_search_run_on_both_nodes_of_a_cluster(tmp_path: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        request = ask(tmp_path, "search.trials=6", "search.scheduler=none", address=cluster.address)
        found = search(request, quiet())
        assert found.record.hardware["nodes"] == 2
        assert f"--address {cluster.address}" in found.resume_command()
        assert {trial.status.state for trial in found.trials()} == {"completed"}
        assert len({trial.status.node for trial in found.trials()}) == 2
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("127.0.0.1:9", ClusterError, "nothing answers there"),
        ("no.such.host.invalid:6379", ClusterError, "nothing answers there"),
        ("somewhere", UsageError, "Give auto, HOST:PORT"),
        ("ray://127.0.0.1:10001", UsageError, "--address auto"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(
    address: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message), connected(address):
        pass


def test_only_a_commit_that_holds_this_program_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed into a project's folder, it lies in somebody else's repository."""
    package = tmp_path / ".venv" / "tuner"
    package.mkdir(parents=True)
    (package / "driver.py").touch()
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")

    def git(*words: str) -> str:
        return subprocess.check_output(["git", *who, *words], cwd=tmp_path, text=True).strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "theirs")
    monkeypatch.setattr(driver, "__file__", str(package / "driver.py"))
    assert driver._git_commit() == ""
    git("add", ".venv/tuner/driver.py")
    assert driver._git_commit() == git("rev-parse", "HEAD")
