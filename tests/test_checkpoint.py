"""A checkpoint gives back the same model, or says which file is not one."""

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tuner.config import ModelConfig
from tuner.errors import TunerError
from tuner.models.build import build_model
from tuner.run.checkpoint import (
    Checkpoint,
    Kept,
    load_checkpoint,
    load_progress,
    load_state,
    save_checkpoint,
    save_state,
)
from tuner.run.trial import EpochMetrics

MODELS = [
    ModelConfig("cnn", {"stages": 2, "width": 8, "norm": "batch", "dropout": 0.5}),
    ModelConfig("cnn", {"stages": 1, "width": 16, "norm": "none", "residual": True}),
    ModelConfig("cnn", {"stages": 2, "width": 8, "norm": "group", "head": "hidden"}),
    ModelConfig("resnet", {"depth": 20, "width_factor": 0.5}),
]


def describe(model: ModelConfig) -> Checkpoint:
    return Checkpoint(
        model=model,
        epoch=7,
        classes=("cat", "räv", "猫"),
        image_shape=(3, 8, 8),
        mean=(0.1, 0.2, 1 / 3),
        std=(0.3, 0.4, 0.5),
    )


def trained(model: ModelConfig) -> nn.Module:
    """Build a model whose every float, running statistics too, is off its start."""
    torch.manual_seed(0)
    network = build_model(model, 3, (3, 8, 8)).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    return network.eval()


def some_images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def header_of(path: Path) -> dict[str, Any]:
    """Read the JSON at the head of a safetensors file, by its published layout."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    return header


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.safetensors"


@pytest.fixture
def saved(path: Path) -> Path:
    save_checkpoint(path, trained(MODELS[0]), describe(MODELS[0]))
    return path


@pytest.mark.parametrize("model", MODELS)
def test_what_is_loaded_answers_as_what_was_saved(path: Path, model: ModelConfig) -> None:
    network, description = trained(model), describe(model)
    save_checkpoint(path, network, description)
    loaded, read = load_checkpoint(path, model)
    assert read == description
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(some_images()), network(some_images()))
    torch.testing.assert_close(loaded.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_saving_leaves_the_network_as_it_was(path: Path) -> None:
    network = trained(MODELS[0]).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    save_checkpoint(path, network, describe(MODELS[0]))
    assert network.training
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)
    kernels = [value for value in network.parameters() if value.ndim == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_a_model_on_its_way_again_can_be_trained(saved: Path) -> None:
    network, _ = load_checkpoint(saved, MODELS[0])
    network.train()(some_images()).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_file_is_plain_safetensors_that_need_no_unpickling(saved: Path) -> None:
    header = header_of(saved)
    description = json.loads(header.pop("__metadata__")["checkpoint"])
    assert description["model"] == {"cnn": MODELS[0].params}
    assert description["epoch"] == 7
    assert set(header) == set(trained(MODELS[0]).state_dict())
    size = max(entry["data_offsets"][1] for entry in header.values())
    (length,) = struct.unpack("<Q", saved.read_bytes()[:8])
    assert saved.stat().st_size == 8 + length + size, "nothing but the header and the numbers"


def test_no_other_file_is_made(saved: Path) -> None:
    assert list(saved.parent.iterdir()) == [saved]


def test_loading_leaves_the_global_generator_as_it_was(saved: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_checkpoint(saved, MODELS[0])
    assert torch.equal(torch.rand(3), expected)


def spoil_nothing_is_there(path: Path) -> None:
    path.unlink()


def spoil_a_folder_is_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


def spoil_it_is_empty(path: Path) -> None:
    path.write_bytes(b"")


def spoil_it_ends_early(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def spoil_it_is_text(path: Path) -> None:
    path.write_text("not a checkpoint, however long it may be")


def spoil_it_is_pickled(path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, path)


def spoil_it_is_of_another_program(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


def spoil_the_description_is_no_json(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path, metadata={"checkpoint": "{"})


def spoil_the_description_is_a_list(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path, metadata={"checkpoint": "[]"})


def spoil_the_weights_are_of_another_model(path: Path) -> None:
    save_checkpoint(path, trained(MODELS[1]), describe(MODELS[0]))


def spoil_the_family_is_unknown(path: Path) -> None:
    later = dataclasses.replace(describe(MODELS[0]), model=ModelConfig("later", {}))
    save_checkpoint(path, trained(MODELS[0]), later)


def spoil_a_parameter_is_unknown(path: Path) -> None:
    later = dataclasses.replace(describe(MODELS[0]), model=ModelConfig("cnn", {"later": 1}))
    save_checkpoint(path, trained(MODELS[0]), later)


SPOILERS = [spoil for name, spoil in list(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__.removeprefix("spoil_"))
def test_an_unusable_file_is_named_in_one_line(saved: Path, spoil: object) -> None:
    assert callable(spoil)
    spoil(saved)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with pytest.raises(TunerError) as caught:
        load_checkpoint(saved, MODELS[0])
    message = str(caught.value)
    assert message.startswith(f"{saved}: not a usable checkpoint: ")
    assert "\n" not in message
    assert caught.value.exit_code == 1
    assert torch.equal(torch.rand(1), expected)


# The state of a training


def some_history() -> list[EpochMetrics]:
    numbers = {"train_loss": 1 / 3, "val_loss": 0.1, "val_accuracy": 0.7, "lr": 1e-300}
    return [EpochMetrics(epoch=n, **numbers, seconds=0.25, time=1.7e9 + n / 3) for n in (1, 2)]


def test_a_state_comes_back_with_its_history(path: Path) -> None:
    state = {
        "scalar": torch.tensor(3),
        "bytes": torch.arange(256, dtype=torch.uint8),
        "kernel": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "bfloat16": torch.randn(5).bfloat16(),
    }
    save_state(path, state, some_history())
    found = load_state(path)
    torch.testing.assert_close(found, state, rtol=0, atol=0)
    assert found["kernel"].is_contiguous(memory_format=torch.channels_last)
    assert load_progress(path)[0] == some_history()


@pytest.mark.parametrize("is_newest", [True, False])
def test_kept_weights_that_are_the_averaged_ones_are_written_once(
    path: Path, is_newest: bool
) -> None:
    kernel = torch.randn(64, 64, 3, 3).to(memory_format=torch.channels_last)
    weights = {"kernel": kernel, "count": torch.tensor(3)}
    state = {f"average.{name}": tensor.clone() for name, tensor in weights.items()}
    state["average.kernel"] += 0 if is_newest else 1
    described = describe(MODELS[0])
    kept = Kept(checkpoint=described, weights=weights, val_probs=torch.rand(5, 10))
    save_state(path, state, some_history(), kept)
    torch.testing.assert_close(load_state(path), state, rtol=0, atol=0)
    found = load_progress(path)[1]
    assert found is not None
    assert found.checkpoint == described
    torch.testing.assert_close(found.weights, weights, rtol=0, atol=0)
    torch.testing.assert_close(found.val_probs, kept.val_probs, rtol=0, atol=0)
    assert path.stat().st_size == pytest.approx((1 if is_newest else 2) * 4 * 64 * 64 * 9, rel=0.02)


def test_a_training_that_saved_nothing_has_no_history(path: Path) -> None:
    assert load_progress(path)[0] == []
