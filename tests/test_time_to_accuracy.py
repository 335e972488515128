"""The benchmark's recipe is the whole baseline, and the record's code runs beside it."""

from pathlib import Path

import pytest
import torch

from tests.benchmarks.record import SCRIPT, Record
from tests.benchmarks.time_to_accuracy import recipe
from tuner.data.cache import Images

STAND_IN = """
import torch
from torch import nn

@torch.compile
def double(x):
    return 2 * x

class CifarNet(nn.Linear):
    def __init__(self):
        super().__init__(1, 1)
        self.runs = []

def print_training_details(variables, is_final_entry):
    raise AssertionError("it is replaced")

def main(run, model):
    print("what the script prints is no answer")
    model.runs.append(run)
    train, test = (torch.load(f"cifar10/{part}.pt") for part in ("train", "test"))
    assert train["images"].shape == (6, 8, 8, 3) and train["images"].dtype == torch.uint8
    assert sorted(train["labels"].tolist()) == [0, 0, 0, 1, 1, 1]
    for image, label in zip(test["images"], test["labels"]):
        assert (image == 10 * label).all()
    assert test["classes"] == ["cat", "dog"]
    if run == 2:
        raise ValueError("the third run fails")
    time_seconds = 0.0
    for epoch in range(3):
        time_seconds += double(1.5)
        val_acc = 0.5 + 0.1 * epoch
        print_training_details(locals(), is_final_entry=False)
    epoch, time_seconds = "eval", time_seconds + 100
    print_training_details(locals(), is_final_entry=True)
    return 0.1 * len(model.runs)
"""


def test_the_recipe_is_the_whole_baseline_of_the_space() -> None:
    config = recipe(8, seed=3)
    assert (config.epochs, config.seed, config.batch_size) == (8, 3, 2000)
    assert recipe(8, seed=3, width=16).model.params == {**config.model.params, "width": 16}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / SCRIPT).write_text(STAND_IN)
    return tmp_path


def test_the_records_code_trains_on_our_images_once_a_run(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    images = (10 * labels).byte().view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    both = Images(images=images, labels=labels)
    with Record(folder, both, both, ("cat", "dog"), torch.device("cpu")) as record:
        for run in range(2):
            found = record.run(run)
            assert found.pop("wall_seconds") > 0
            assert found == {
                "epochs": 3,
                "seconds": 9.0,
                "test_accuracy": 0.7,
                "test_accuracy_tta": pytest.approx(0.1 * (run + 2)),
            }
        with pytest.raises(RuntimeError, match="its error stands above"):
            record.run(2)
    assert "the third run fails" in capfd.readouterr().err
