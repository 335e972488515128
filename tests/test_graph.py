"""What a step is watched for before it is captured, without a GPU."""

import threading
import warnings

import pytest
import torch
from torch import nn

from tuner.training.graph import why_not_capturable

SYNC = "called a synchronizing CUDA operation"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)


def test_a_read_of_the_step_is_named_and_one_of_another_thread_is_not() -> None:
    def read() -> None:
        warnings.warn(SYNC, stacklevel=1)

    def save() -> None:
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()

    shown = warnings.showwarning
    assert "test_graph.py" in str(why_not_capturable(read))
    assert why_not_capturable(save) is None
    assert warnings.showwarning is shown


def test_other_warnings_say_nothing_of_a_step() -> None:
    assert why_not_capturable(lambda: warnings.warn("old", stacklevel=1)) is None


def test_random_numbers_of_the_host_are_told() -> None:
    assert "random numbers" in str(why_not_capturable(lambda: torch.rand(1)))


def test_a_buffer_that_a_step_replaces_is_told() -> None:
    norm = nn.BatchNorm1d(2)

    def step() -> None:
        assert norm.running_mean is not None
        norm.running_mean = norm.running_mean + 1

    assert "buffer" in str(why_not_capturable(step, norm.buffers))


@pytest.mark.parametrize("num_passes", [1, 2])
def test_a_weight_whose_data_a_step_replaces_is_told(num_passes: int) -> None:
    layer = nn.Linear(64, 64)

    def step() -> None:
        for _ in range(num_passes):
            layer.weight.data = layer.weight.data / 2

    assert "weight" in str(why_not_capturable(step, layer.parameters))


def test_a_step_that_changes_tensors_in_place_can_be_captured() -> None:
    norm = nn.BatchNorm1d(2)

    def step() -> None:
        norm(torch.ones(3, 2)).sum().backward()
        with torch.no_grad():
            norm.weight.add_(1)

    assert why_not_capturable(step, lambda: (*norm.parameters(), *norm.buffers())) is None
