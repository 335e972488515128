"""Trainings of a few steps, and what they came to, for comparison bit for bit."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tuner.config import AdamW, Lion, ModelConfig, Muon, Sgd, TrialConfig
from tuner.data.cache import Images
from tuner.data.splits import Splits
from tuner.training.epoch import Epoch
from tuner.training.loop import train

MODELS = {
    "cnn": ModelConfig("cnn", {"stages": 2, "blocks": 1, "width": 16, "dropout": 0.1}),
    "resnet": ModelConfig("resnet", {"depth": 10, "width_factor": 0.125, "dropout": 0.1}),
    "wide_resnet": ModelConfig("wide_resnet", {"depth": 10, "widen_factor": 1}),
    "speednet": ModelConfig("speednet", {"stages": 2, "width": 16}),
    "convnext": ModelConfig("convnext", {"stages": 1, "blocks": 2, "width": 16}),
    "vit": ModelConfig("vit", {"layers": 2, "width": 32, "head_width": 16, "dropout": 0.1}),
}
OPTIMIZERS = {
    "sgd": Sgd(lr=0.05),
    "adamw": AdamW(lr=0.003),
    "lion": Lion(lr=0.0005),
    "muon": Muon(lr=0.02),
}


def config_of(model: str | ModelConfig = "cnn", **changes: Any) -> TrialConfig:
    """Return a training of two epochs."""
    chosen = MODELS[model] if isinstance(model, str) else model
    plain = TrialConfig(model=chosen, epochs=2, batch_size=64, optimizer=OPTIMIZERS["sgd"])
    return dataclasses.replace(plain, **changes)


def first(splits: Splits, count: int, device: torch.device) -> Splits:
    """Return as many training images, and 100 for validation, on a device."""
    train_images, val_images = (
        Images(images=part.images[:number].to(device), labels=part.labels[:number].to(device))
        for part, number in ((splits.train, count), (splits.val, 100))
    )
    return dataclasses.replace(splits, train=train_images, val=val_images)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a training came to."""

    figures: list[tuple[float, ...]]
    """Each epoch's losses, accuracy and learning rate."""
    state: dict[str, Tensor]
    """After the last epoch, on the CPU."""
    execution: str
    """State after the last epoch."""


def result_of(epochs: Iterator[Epoch]) -> Result:
    """Train to the end."""
    figures: list[tuple[float, ...]] = []
    state: dict[str, Tensor] = {}
    execution = ""
    for epoch in epochs:
        row = epoch.figures
        figures.append((row.train_loss, row.val_loss, row.val_accuracy, row.lr))
        # They change as the training goes on.
        state = {name: t.detach().cpu().clone() for name, t in epoch.learner.state().items()}
        execution = epoch.execution
    return Result(figures=figures, state=state, execution=execution)


def run(config: TrialConfig, splits: Splits, device: torch.device, **options: Any) -> Result:
    """Train, as ``train`` is called."""
    return result_of(train(config, splits, device, **options))


def assert_same(one: Result, other: Result, *, leaving_out: tuple[str, ...] = ()) -> None:
    """Assert that two trainings came to the same, bit for bit.

    Args:
        one: A training.
        other: The other one.
        leaving_out: Tensors of their states that may differ.
    """
    assert one.figures == other.figures
    assert one.state.keys() == other.state.keys()
    different = [name for name, t in one.state.items() if not torch.equal(t, other.state[name])]
    assert [name for name in different if name not in leaving_out] == []


def clear() -> None:
    """Return back what PyTorch keeps for later: cached memory, and cuBLAS's, 32 MiB a stream."""
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
