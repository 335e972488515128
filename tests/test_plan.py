import json
from pathlib import Path

import pytest
import torch

from tests.conftest import Call
from tuner.config import ModelConfig, TrialConfig
from tuner.data.splits import Splits
from tuner.run.forecast import PLAN
from tuner.run.run import Run
from tuner.training.loop import probe_epochs
from tuner.tuning.planning.measure import measure
from tuner.tuning.ray_backend.payload import pack
from tuner.tuning.resources import TrialResources

SPACE = """
dataset: digits
search: {trials: 6, epochs: 2, grace: 1, reduction: 2}
baseline:
  - {model: {cnn: {width: 8}}}
  - {model: custom}
space:
  batch_size: 64
  model:
    choice:
      cnn: {stages: 2, blocks: 1, width: {choice: [8, 16]}}
      custom: {path: nets.py, name: Greedy}
  optimizer: {adamw: {lr: {float: [1.0e-3, 1.0e-2], log: true}}}
"""
NETS = """
import torch
from torch import nn


class Greedy(nn.Module):
    def __init__(self, num_classes, image_shape):
        super().__init__()
        self.head = nn.Linear(torch.Size(image_shape).numel(), num_classes)

    def forward(self, images):
        if self.training:
            torch.empty(10**15)
        return self.head(images.flatten(1))
"""
"""A network that needs more memory than Linux promises to anybody, while it is trained."""
CPU = torch.device("cpu")
SHARE = TrialResources(cpus=1, gpus=0)


def config(**params: object) -> TrialConfig:
    return TrialConfig(model=ModelConfig("cnn", params), epochs=2, batch_size=64)


@pytest.fixture
def call(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function that types a command in a folder with a space."""
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(SPACE)
    Path("nets.py").write_text(NETS)
    return call


@pytest.mark.ray
def test_a_search_finds_the_plan_that_was_made_of_it(session: None, call: Call) -> None:
    words = ["--space", "space.yaml", "--json", "--quiet"]
    code, out, err = call("plan", *words, "--measure", "1s")
    assert code == 0, err
    document = json.loads(out)
    assert (document["trials"], document["epochs"]) == (6, 2)
    assert {family["family"] for family in document["families"]} == {"cnn"}
    assert [rung["epoch"] for rung in document["rungs"]] == [1, 2]
    first, second = (rung["trials"] for rung in document["rungs"])
    assert first["median"] < 6
    assert 1 <= second["median"] <= first["median"]
    assert document["seconds"]["low"] <= document["seconds"]["median"]
    assert document["misfits"]
    for misfit in document["misfits"]:
        assert (misfit["family"], misfit["parameters"]) == ("custom", 650)
        assert misfit["reason"].startswith("out of memory: ")
    # What was written to measure the writing is gone.
    assert [Path(document["plan"])] == list(Path.cwd().glob("runs/.plans/*"))

    code, _, err = call("search", *words, "--name", "planned")
    assert code == 0, err
    run = Run.open(Path("runs/planned"))
    assert json.loads((run.path / PLAN).read_text()) == {
        key: value for key, value in document.items() if key != "plan"
    }
    kept = document["disk_kept"]
    files = [
        file.stat().st_size
        for trial in run.trials()
        if trial.is_usable
        for file in (trial.checkpoint, trial.path / "val_probs.npy")
    ]
    assert kept["low"] / 3 < sum(files) < 3 * kept["high"]
    code, _, err = call("report", "planned")
    assert code == 0, err
    assert 'id="planned"' in (run.path / "report.html").read_text()
    # Of a search that goes on, it would be the plan of a part.
    code, _, err = call("search", *words, "--name", "planned", "--resume")
    assert code == 0, err
    assert not (run.path / PLAN).exists()


def test_what_a_configuration_costs_is_measured_in_the_way_it_is_trained(
    digits: Splits, tmp_path: Path
) -> None:
    small, large = (
        measure(
            config(stages=2, width=width).to_dict(),
            SHARE,
            str(tmp_path),
            data=pack(digits),
            initial_weights={},
        )
        for width in (8, 64)
    )
    assert not small.problem
    assert small.config == config(stages=2, width=8)
    assert 0 < small.epoch_seconds < large.epoch_seconds
    assert 4 * large.parameters < large.checkpoint_bytes < large.state_bytes
    assert large.write_seconds > 0
    assert large.memory is None or large.memory > 1e6
    assert not list(tmp_path.iterdir())


def test_a_training_that_fails_is_told(digits: Splits, tmp_path: Path) -> None:
    wrong = config(stages=2).to_dict() | {"augment": {"crop": 9}}
    found = measure(wrong, SHARE, str(tmp_path), data=pack(digits), initial_weights={})
    assert found.problem
    assert not found.problem.startswith("out of memory")


def test_short_epochs_foresee_the_time_of_whole_ones(digits: Splits) -> None:
    short = probe_epochs(config(stages=2, width=32), digits, CPU, steps=5)
    whole = probe_epochs(config(stages=2, width=32), digits, CPU, steps=10**6)
    with_few, with_all = (
        [next(epochs).figures.seconds for _ in range(4)] for epochs in (short, whole)
    )
    short.close()
    whole.close()
    assert 0.2 < min(with_few) / min(with_all) < 5


def test_a_plan_is_no_job(call: Call) -> None:
    code, _, err = call("plan", "--space", "space.yaml", "--address", "http://head:8265")
    assert code == 2
    assert "--address auto" in err
