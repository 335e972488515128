"""A captured training step does what the eager one does, bit for bit where algorithms allow."""

import dataclasses
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.trainings import (
    MODELS,
    OPTIMIZERS,
    Result,
    assert_same,
    config_of,
    first,
    result_of,
    run,
)
from tuner.config import Augment, ModelConfig, Trapezoid, TrialConfig
from tuner.data.splits import Splits
from tuner.models.build import build_model
from tuner.models.families import Source
from tuner.run.checkpoint import load_state, save_state
from tuner.schema import to_json
from tuner.training.initial_weights import InitialWeights
from tuner.training.loop import train

CUSTOM = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, image_shape):
        super().__init__()
        self.layer = nn.Linear(image_shape[0] * image_shape[1] * image_shape[2], num_classes)

    def forward(self, images):
        x = images.flatten(1)
        {line}
        return self.layer(x)
"""


def custom(line: str) -> ModelConfig:
    source = CUSTOM.format(line=line)
    return ModelConfig("custom", {"path": "net.py", "name": "Net", "source": source})


def both_ways(
    config: TrialConfig, splits: Splits, device: torch.device, **options: Any
) -> tuple[Result, Result]:
    splits = first(splits, 640, device)
    captured = run(config, splits, device, **options)
    eager = run(config, splits, device, capture_mode="never", **options)
    assert eager.execution == "eager"
    return captured, eager


@pytest.fixture
def strict(deterministic: None, request: pytest.FixtureRequest) -> None:
    """Compute attention, too, with deterministic algorithms; it only does where none may warn."""
    if request.node.callspec.params.get("model") == "vit":
        torch.use_deterministic_algorithms(True)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_every_family_and_optimizer_is_captured_and_trains_the_same(
    digits: Splits, device: torch.device, strict: None, model: str, optimizer: str
) -> None:
    config = config_of(model, optimizer=OPTIMIZERS[optimizer])
    captured, eager = both_ways(config, digits, device)
    assert captured.execution == "captured"
    assert_same(captured, eager)
    assert all(math.isfinite(value) for row in captured.figures for value in row)


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": Augment(crop=1, flip=True)},
        {"augment": Augment(flip=True, alternate=True, cutout=2)},
        {"augment": Augment(mixup=0.4)},
        {"augment": Augment(cutmix=1.0)},
        {"augment": Augment(mixup=0.4, cutmix=1.0), "label_smoothing": 0.1},
        {"augment": Augment(policy="randaugment", erasing=0.5)},
        {"augment": Augment(policy="trivialaugment")},
        {"augment": Augment(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)},
        {"class_weights": "balanced"},
        {"class_weights": "sqrt", "logit_adjustment": 1.0, "augment": Augment(mixup=0.4)},
        {"micro_batches": 2},
        {"clip_norm": 0.1},
        {"ema_decay": 0.0},
        {"precision": "float32"},
        {"schedule": Trapezoid(warmup=0.3)},
    ],
    ids=lambda changes: ",".join(f"{key}={value}" for key, value in changes.items())[:60],
)
def test_every_setting_is_captured_and_trains_the_same(
    digits: Splits, device: torch.device, deterministic: None, changes: dict[str, Any]
) -> None:
    captured, eager = both_ways(config_of(**changes), digits, device)
    assert captured.execution == "captured"
    assert_same(captured, eager)


def test_parts_for_want_of_memory_are_captured_too(
    digits: Splits, device: torch.device, deterministic: None
) -> None:
    captured, eager = both_ways(config_of(), digits, device, micro_batches=2)
    assert captured.execution == "captured"
    assert_same(captured, eager)


@pytest.mark.parametrize("policy", ["full", "linear_probe", "freeze"])
def test_what_thaws_is_captured_anew(
    digits: Splits, device: torch.device, deterministic: None, policy: str
) -> None:
    inner = MODELS["cnn"]
    source = to_json(Source(model=inner, image_shape=digits.image_shape))
    params = {"run": "earlier", "trial": 0, "source": source, "sha256": "0" * 64}
    model = ModelConfig("pretrained", {**params, "policy": policy, "freeze_epochs": 2})
    torch.manual_seed(3)
    weights = build_model(inner, digits.num_classes, digits.image_shape).state_dict()
    start = InitialWeights(tensors=weights, mean=digits.mean, std=digits.std)
    captured, eager = both_ways(config_of(model, epochs=4), digits, device, start=start)
    assert captured.execution == "captured"
    assert_same(captured, eager)
    moved = [
        name
        for name, tensor in weights.items()
        if not torch.equal(captured.state[f"network.network.{name}"], tensor)
    ]
    assert any(name.startswith("features") for name in moved) == (policy != "linear_probe")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x = x * (x.mean().item() < 100)", "reads a value on the host"),
        ("x = x * (0.5 + float(torch.rand(())))", "draws random numbers on the host"),
        ("torch.cuda.synchronize() if x.is_cuda else None", "eager: "),
        ("self.layer.weight.data = 1.0 * self.layer.weight.data", "in the place of a weight"),
    ],
    ids=["value", "random number", "synchronization", "weight"],
)
def test_a_network_that_cannot_be_captured_goes_on_eagerly_and_loses_no_step(
    digits: Splits, device: torch.device, deterministic: None, line: str, reason: str
) -> None:
    captured, eager = both_ways(config_of(custom(line)), digits, device)
    assert captured.execution.startswith("eager: ")
    assert reason in captured.execution
    assert "\n" not in captured.execution
    assert_same(captured, eager)
    # What failed has left nothing behind that would keep the next training from its capture.
    again, _ = both_ways(config_of(), digits, device)
    assert again.execution == "captured"


def test_a_training_that_goes_on_from_its_state_ends_as_if_never_interrupted(
    digits: Splits, device: torch.device, deterministic: None, tmp_path: Path
) -> None:
    config = config_of(epochs=4, augment=Augment(crop=1, flip=True, alternate=True, mixup=0.2))
    splits = first(digits, 640, device)
    whole = run(config, splits, device)
    begun = train(config, splits, device)
    for epoch, _ in zip(begun, range(2), strict=False):
        save_state(tmp_path / "state.safetensors", epoch.learner.state(), [epoch.figures])
    begun.close()
    torch.manual_seed(99)
    state = load_state(tmp_path / "state.safetensors")
    rest = run(config, splits, device, state=state, epochs_done=2)
    assert rest.execution == "captured"
    assert_same(rest, dataclasses.replace(whole, figures=whole.figures[2:]))


def test_a_training_ends_between_two_steps_when_it_is_told_to(
    digits: Splits, device: torch.device
) -> None:
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 15

    # Ten steps an epoch: it is told in the second one, which does not count.
    result = run(config_of(), first(digits, 640, device), device, should_stop=should_stop)
    assert len(result.figures) == 1
    assert asked == 16


def test_two_trainings_side_by_side_come_to_what_each_does_alone(
    digits: Splits, device: torch.device, deterministic: None
) -> None:
    """Graphs of one process are replayed in threads, each on a stream of its own."""
    splits = first(digits, 640, device)
    # Without dropout, whose random numbers all trainings of a process share.
    models = (ModelConfig("cnn", {"stages": 2, "width": 16}), MODELS["speednet"])
    configs = [config_of(model, epochs=8) for model in models]
    alone = [run(config, splits, device) for config in configs]
    found: dict[int, Result] = {}

    def go_on(index: int, epochs: Iterator[Any]) -> None:
        with torch.cuda.stream(torch.cuda.Stream(device)):
            found[index] = result_of(epochs)

    # Networks are drawn by the process's generator, so both begin one after the other.
    trainings = [train(config, splits, device) for config in configs]
    firsts = [next(training) for training in trainings]
    assert [epoch.execution for epoch in firsts] == ["captured", "captured"]
    threads = [
        threading.Thread(target=go_on, args=(index, training))
        for index, training in enumerate(trainings)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, result in enumerate(alone):
        expected = dataclasses.replace(result, figures=result.figures[1:])
        # The process's own generators are shared, and no step draws from them.
        assert_same(found[index], expected, leaving_out=("random.cpu", "random.cuda"))


def test_a_compiled_step_is_captured_and_learns_the_same(
    digits: Splits, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    config = config_of(ModelConfig("cnn", {"stages": 1, "blocks": 1, "width": 8}), epochs=3)
    splits = first(digits, 640, device)
    compiled = run(config, splits, device, compile_mode="always")
    plain = run(config, splits, device)
    assert compiled.execution == "captured, compiled"
    for one, other in zip(compiled.figures, plain.figures, strict=True):
        assert one == pytest.approx(other, rel=0.05, abs=0.05)
