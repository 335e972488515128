"""Trials as TensorBoard, Weights & Biases and MLflow themselves read them back."""

import math
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.test_tuner import World
from tuner.config import ModelConfig, Target, TrialConfig
from tuner.errors import UsageError
from tuner.run.events import EpochEnded, TrialEnded, TrialStarted
from tuner.run.run import Run
from tuner.run.state import SearchState
from tuner.run.trial import EpochMetrics, TrialStatus
from tuner.tracking import Tracking, check_installed, make_trackers, tracked
from tuner.tracking.figures import hyperparameters

TWO_FAMILIES = """
space:
  model:
    choice:
      cnn: {width: {int: [8, 64]}}
      resnet: {depth: {choice: [10, 18]}}
  optimizer: {sgd: {lr: {float: [0.01, 1.0], log: true}}}
"""


def search(folder: Path, targets: Sequence[Target] = ()) -> Run:
    """Leave a search of three trials: one completed, one stopped, one diverged."""
    world = World(folder)
    tuner = world.tuner()
    said: list[str] = []
    with tracked(world.run, targets, tuner.state, tuner.observers, said.append):
        first, second = world.begin(tuner), world.begin(tuner)
        for accuracy in (0.5, 0.6, 0.7, 0.65):
            first.step(accuracy)
        first.finish()
        second.step(0.1)
        third = world.begin(tuner)
        third.step(0.9, math.nan)
        third.finish("diverged", reason="the loss is not finite")
    assert said == []
    assert tuner.observers == [world.recorder.on]
    return world.run


def test_tensorboard_reads_curves_and_hyperparameters(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plugin = pytest.importorskip("tensorboard.plugins.hparams.metadata")
    run = search(tmp_path)
    for trial in run.trials():
        events = reader.EventAccumulator(str(run.path / "tensorboard" / f"{trial.number:04d}"))
        events.Reload()
        read = [
            (event.step, event.value, event.wall_time)
            for event in events.Scalars("accuracy/validation")
        ]
        assert read == [
            (row.epoch, pytest.approx(row.val_accuracy), row.time) for row in trial.history
        ]
        state = events.Tensors("end/text_summary")[0].tensor_proto.string_val[0].decode()
        assert state.startswith(trial.status.state)
        content = events.SummaryMetadata(plugin.SESSION_START_INFO_TAG).plugin_data.content
        values = plugin.parse_session_start_info_plugin_data(content).hparams
        assert values["optimizer.sgd.lr"].number_value == trial.config.optimizer.lr
        assert values["batch_size"].number_value == trial.config.batch_size
        # A loss that is no number leaves a gap.
        losses = events.Scalars("loss/training") if trial.number != 2 else []
        assert len(losses) == sum(math.isfinite(row.train_loss) for row in trial.history)


def test_tensorboard_has_a_column_for_each_parameter_of_any_trial(tmp_path: Path) -> None:
    backend = pytest.importorskip("tensorboard.plugins.hparams.backend_context")
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import metadata

    world = World(tmp_path, text=TWO_FAMILIES)
    tuner = world.tuner()
    with tracked(world.run, (), tuner.state, tuner.observers, print):
        for number in range(4):
            worker = world.begin(tuner)
            worker.step(0.5)
            worker.finish(["completed", "diverged"][number % 2])
    trials = world.run.trials()
    assert len({trial.config.model.family for trial in trials}) == 2
    folder = str(world.run.path / "tensorboard")
    multiplexer = EventMultiplexer().AddRunsFromDirectory(folder)
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, folder)
    context = backend.Context(TBContext(data_provider=provider))
    told = context.hparams_metadata(RequestContext(), "")
    experiment = context.experiment_from_metadata(
        RequestContext(),
        "",
        True,
        told,
        context.hparams_from_data_provider(RequestContext(), "", 0),
    )
    columns = {info.name for info in experiment.hparam_infos}
    assert {"model.cnn.width", "model.resnet.depth", "optimizer.sgd.lr"} <= columns
    assert "accuracy/validation" in {info.name.tag for info in experiment.metric_infos}
    ends = [
        metadata.parse_session_end_info_plugin_data(tags[metadata.SESSION_END_INFO_TAG]).status
        for _, tags in sorted(told.items())
    ]
    assert ends == [1, 2, 1, 2], "success and failure"


def test_a_trial_that_goes_on_is_told_once(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    world = World(tmp_path)
    tuner = world.tuner()
    with tracked(world.run, (), tuner.state, tuner.observers, print):
        worker = world.begin(tuner)
        worker.step(0.5)
        worker.train(0.6)
        # Its search is killed here: the second epoch is saved, and was not told.
    tuner = world.tuner()
    with tracked(world.run, (), tuner.state, tuner.observers, print):
        worker = world.begin(tuner)
        for accuracy in (0.7, 0.8):
            worker.step(accuracy)
        worker.finish()
    events = reader.EventAccumulator(str(world.run.path / "tensorboard" / "0000"))
    events.Reload()
    told = events.Scalars("accuracy/validation")
    assert [event.step for event in told] == [1, 2, 3, 4]
    assert [event.value for event in told] == pytest.approx([0.5, 0.6, 0.7, 0.8])


def wandb_records(path: Path) -> Iterator[bytes]:
    """Read an offline run's file: a log in LevelDB's format behind a header of 7 bytes."""
    data = path.read_bytes()
    assert data.startswith(b":W&B")
    assert len(data) < 32768, "longer ones are written in several blocks"
    at = 7
    while at + 7 <= len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if at + 7 + length > len(data):
            return  # Still being written.
        assert kind == 1, "a whole record"
        yield data[at + 7 : at + 7 + length]
        at += 7 + length


def read_wandb(folder: Path) -> list[Any]:
    """Read the records of a finished offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    # Its own process writes the file, and may be at it when finish() has returned.
    records: list[Any] = []
    deadline = time.monotonic() + 30
    while not any(record.WhichOneof("record_type") == "exit" for record in records):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        records = [Record.FromString(data) for data in wandb_records(path)]
    return records


def test_wandb_keeps_a_run_a_trial_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = search(tmp_path, ["wandb"])
    folders = sorted((run.path / "wandb").glob("offline-run-*"))
    assert len(folders) == 3
    for folder, trial in zip(
        sorted(folders, key=lambda path: path.name[-4:]), run.trials(), strict=True
    ):
        records = read_wandb(folder)
        told = [
            {item.key or item.nested_key[-1]: item.value_json for item in record.history.item}
            for record in records
            if record.WhichOneof("record_type") == "history"
        ]
        assert [float(row["accuracy/validation"]) for row in told] == [
            row.val_accuracy for row in trial.history
        ]
        (header,) = [r.run for r in records if r.WhichOneof("record_type") == "run"][:1]
        assert header.run_group == "run"
        assert header.display_name == f"run {trial.number:04d}"
        (code,) = [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"]
        assert code == (1 if trial.status.state == "diverged" else 0)


def test_the_text_of_a_model_is_told_to_no_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    from wandb.errors import term

    from tuner.tracking.wandb import WeightsAndBiases

    monkeypatch.setenv("WANDB_MODE", "offline")
    params = {"path": "net.py", "name": "Net", "source": "class Net: ...", "width": 8}
    config = TrialConfig(model=ModelConfig("custom", params), epochs=1)
    assert hyperparameters(config)["model"] == {
        "custom": {"path": "net.py", "name": "Net", "width": 8}
    }
    run = World(tmp_path).run
    tracker = WeightsAndBiases(run)
    tracker.trial_started(0, config, [])
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(term, f"_sys_{stream}_isatty", lambda: True)
    assert not term.can_use_terminput(), "it would ask for an account in mid-search"
    tracker.close()
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    (header,) = [r.run for r in read_wandb(folder) if r.WhichOneof("record_type") == "run"][:1]
    told = {item.key: item.value_json for item in header.config.update}
    assert '"width"' in told["model"]
    assert "class Net" not in str(told)


def test_a_target_that_is_not_installed_is_refused_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tuner.tracking.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install -e '\.\[wandb\]'"):
        check_installed(["wandb"])
    check_installed([])


def test_a_search_goes_on_without_a_target_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world, said = World(tmp_path), []
    monkeypatch.setattr("tuner.tracking.find_spec", lambda name: None)
    with tracked(world.run, ["wandb"], world.tuner().state, [], said.append):
        pass
    (line,) = said
    assert "--log wandb" in line
    assert "pip install -e '.[wandb]'" in line


class Slow:
    """A tracker whose server is slow, and then gone."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.thread = ""
        self.answers = threading.Event()

    def trial_started(self, number: int, *rest: object) -> None:
        self.thread = threading.current_thread().name

    def epoch_ended(self, number: int, row: EpochMetrics) -> None:
        self.answers.wait(30)
        self.told.append(row.epoch)
        if row.epoch == 3:
            raise ConnectionError("the server is gone\nand more")

    def trial_ended(self, number: int, status: TrialStatus, history: object) -> None:
        raise AssertionError("it is told no more")

    def close(self) -> None:
        raise AssertionError("it is told no more")


def test_a_slow_server_holds_up_nothing_and_a_lost_one_ends_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    worker = world.begin(world.tuner())
    row = worker.train(0.5)
    slow = Slow()
    trackers = make_trackers(world.run, ())
    warnings: list[str] = []
    state = SearchState.of(world.run)
    tracking = Tracking(state, {"slow": slow, **trackers}, warnings.append)
    tracking.on(TrialStarted(number=0, config=world.run.trial(0).config))
    for epoch in range(1, 5):
        tracking.on(EpochEnded(number=0, metrics=replace(row, epoch=epoch)))
    tracking.on(TrialEnded(number=0, state="completed"))
    assert slow.told == [], "nothing has waited for it"
    slow.answers.set()
    wait_until(lambda: warnings, seconds=10)
    assert warnings == ["slow receives no more trials: ConnectionError: the server is gone"]
    tracking.close()
    assert len(warnings) == 1, "at once, and once"
    assert slow.told == [1, 2, 3]
    assert slow.thread == "tracking: slow"
