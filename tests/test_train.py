"""Training: the same every time, honest figures, and nothing left behind."""

import contextlib
import dataclasses
import gc
import math
import random
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tuner.augment import normalize
from tuner.config import (
    AdamW,
    Augment,
    Cosine,
    DataConfig,
    Lion,
    ModelConfig,
    Muon,
    OneCycle,
    Precision,
    Sgd,
    Trapezoid,
    TrialConfig,
)
from tuner.data.cache import Images
from tuner.data.splits import Splits
from tuner.metrics.predict import predict_probs, score
from tuner.models.build import build_model
from tuner.models.cnn import Cnn
from tuner.run.checkpoint import load_state, save_state
from tuner.training.device import compute_dtype
from tuner.training.epoch import Epoch
from tuner.training.learner import UnfitStateError
from tuner.training.loop import train

CPU = torch.device("cpu")
DEEPER = ModelConfig("cnn", {"stages": 2, "blocks": 2, "width": 16, "dropout": 0.1})


def tiny(**changes: Any) -> TrialConfig:
    """Return a training on the digits of a tenth of a second an epoch."""
    params = {"stages": 2, "blocks": 1, "width": 16, "dropout": 0.1}
    config = TrialConfig(
        model=ModelConfig("cnn", params), epochs=2, batch_size=32, optimizer=Sgd(lr=0.2)
    )
    return dataclasses.replace(config, **changes)


def first(splits: Splits, count: int) -> Splits:
    """Leave only ``count`` training images."""
    train_images = Images(
        images=splits.train.images[:count].clone(), labels=splits.train.labels[:count].clone()
    )
    return dataclasses.replace(splits, train=train_images)


def figures(epochs: list[Epoch]) -> list[Any]:
    """Return all figures but the times."""
    return [dataclasses.replace(epoch.figures, seconds=0.0, time=0.0) for epoch in epochs]


def num_networks() -> int:
    gc.collect()
    return sum(type(thing) is Cnn for thing in gc.get_objects())


def graph_size() -> int:
    """Count the autograd nodes that anything alive leads to."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) is Tensor]
    nodes = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        before = {node for node, _ in nodes.pop().next_functions if node is not None} - seen
        seen |= before
        nodes += before
    return len(seen)


# The same every time


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_the_same_seed_gives_the_same_model(digits: Splits, precision: Precision) -> None:
    config = tiny(precision=precision, augment=Augment(crop=1, flip=True, cutout=2, mixup=0.2))
    one = list(train(config, digits, CPU))
    torch.rand(7)  # What the global generator did before does not matter.
    other = list(train(config, digits, CPU))
    assert figures(one) == figures(other)
    mine, theirs = one[-1].network.state_dict(), other[-1].network.state_dict()
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert torch.equal(one[-1].val_probs, other[-1].val_probs)


def test_another_seed_gives_another_model(digits: Splits) -> None:
    one, other = (list(train(tiny(seed=seed), digits, CPU)) for seed in (0, 1))
    assert figures(one) != figures(other)
    assert not torch.equal(one[-1].val_probs, other[-1].val_probs)


def test_a_training_that_is_stopped_was_the_same_until_then(digits: Splits) -> None:
    whole = list(train(tiny(), digits, CPU))
    begun = next(train(tiny(), digits, CPU))
    assert figures([begun]) == figures(whole)[:1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": AdamW(lr=0.02), "precision": "float32"},
        {"optimizer": Sgd(lr=0.2, momentum=0.0, nesterov=False), "ema_decay": 0.0},
        {"optimizer": Lion(lr=0.002), "schedule": Trapezoid()},
        {"optimizer": Muon(lr=0.05), "model": DEEPER, "clip_norm": 1.0},
        {"optimizer": Muon(normalized=True, partner="sgd", bias_factor=4.0), "model": DEEPER},
        {"augment": Augment(crop=1, flip=True, mixup=0.2, cutmix=1.0)},
        {"augment": Augment(flip=True, alternate=True, policy="trivialaugment", erasing=0.5)},
        {"model": ModelConfig("resnet", {"depth": 10, "width_factor": 0.125, "dropout": 0.2})},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_a_training_that_goes_on_from_its_state_ends_as_if_never_interrupted(
    digits: Splits, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config, splits = tiny(epochs=4, **changes), first(digits, 320)
    whole = list(train(config, splits, CPU))
    begun = train(config, splits, CPU)
    for epoch, _ in zip(begun, range(2), strict=False):
        save_state(tmp_path / "state.safetensors", epoch.learner.state(), [epoch.figures])
    begun.close()
    torch.manual_seed(99)
    state = load_state(tmp_path / "state.safetensors")
    rest = list(train(config, splits, CPU, state=state, epochs_done=2))
    assert figures(rest) == figures(whole)[2:]
    mine, theirs = rest[-1].learner.state(), whole[-1].learner.state()
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


DRAWING = """
import random

import numpy as np
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, image_shape):
        super().__init__()
        self.share = random.random() + np.random.rand()
        self.layer = nn.Linear(64, num_classes)

    def forward(self, images):
        x = images.flatten(1)
        if self.training:
            x = x * (self.share + random.random() + np.random.beta(1.0, 1.0)) / 4
        return self.layer(x)
"""


def test_numbers_that_a_network_draws_from_python_and_numpy_are_the_same_too(
    digits: Splits,
) -> None:
    def disturb() -> None:
        random.seed(99)
        np.random.seed(99)

    plain = {"path": "net.py", "name": "Net", "source": DRAWING}
    config, splits = tiny(model=ModelConfig("custom", plain), epochs=3), first(digits, 64)
    whole = list(train(config, splits, CPU))
    disturb()
    with contextlib.closing(train(config, splits, CPU)) as epochs:
        epoch = next(epochs)
        begun = figures([epoch])
        state = {name: tensor.clone() for name, tensor in epoch.learner.state().items()}
    disturb()
    rest = list(train(config, splits, CPU, state=state, epochs_done=1))
    assert begun + figures(rest) == figures(whole)
    other = list(train(dataclasses.replace(config, seed=1), splits, CPU))
    assert other[0].network.share != whole[0].network.share


def test_a_training_without_code_of_ones_own_leaves_python_and_numpy_alone(
    digits: Splits,
) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()
    list(train(tiny(), first(digits, 64), CPU))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("optimizer.1.momentum", "optimizer.1.exp_avg"),
        ("optimizer.3.exp_avg", "optimizer.3.momentum"),
        ("optimizer.3.exp_avg", "optimizer.99.exp_avg"),
        ("optimizer.0.momentum", "optimizer.1.momentum"),
    ],
)
def test_a_state_of_an_optimizer_of_other_parameters_is_refused(
    digits: Splits, key: str, other: str
) -> None:
    config = tiny(model=DEEPER, optimizer=Muon())
    with contextlib.closing(train(config, first(digits, 64), CPU)) as epochs:
        state = next(epochs).learner.state()
    state[other] = state.pop(key)
    with pytest.raises(UnfitStateError, match=re.escape(other)):
        next(train(config, first(digits, 64), CPU, state=state, epochs_done=1))


@pytest.mark.parametrize("micro_batches", [2, 3, 64])
def test_a_batch_in_parts_takes_the_same_steps(digits: Splits, micro_batches: int) -> None:
    params = {"stages": 2, "blocks": 1, "width": 16, "norm": "group"}
    config = tiny(
        model=ModelConfig("cnn", params),
        precision="float32",
        label_smoothing=0.1,
        class_weights="sqrt",
    )
    splits = first(digits, 320)
    one = list(train(config, splits, CPU))[-1]
    other = list(train(config, splits, CPU, micro_batches=micro_batches))[-1]
    as_configured = dataclasses.replace(config, micro_batches=micro_batches)
    assert figures(list(train(as_configured, splits, CPU)))[-1:] == figures([other])
    assert other.figures.train_loss == pytest.approx(one.figures.train_loss, rel=1e-4)
    torch.testing.assert_close(other.val_probs, one.val_probs, rtol=1e-3, atol=1e-4)


def test_classes_count_by_the_images_that_are_trained_on(digits: Splits) -> None:
    labels = digits.train.labels
    rare = (labels == 3) & (torch.arange(len(labels)) % 5 > 0)
    images = Images(images=digits.train.images[~rare][:200], labels=labels[~rare][:200])
    splits = dataclasses.replace(digits, train=images)
    params = {"stages": 2, "blocks": 1, "width": 8, "norm": "group"}
    config = tiny(
        model=ModelConfig("cnn", params),
        precision="float32",
        batch_size=200,
        class_weights="balanced",
        optimizer=Sgd(lr=1e-9),
    )
    epoch = next(train(config, splits, CPU))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (splits.mean, splits.std))
    logits = epoch.learner.network(normalize(images.images, mean, std))
    weights = 1 / images.labels.bincount().float()
    expected = torch.nn.functional.cross_entropy(logits, images.labels, weight=weights)
    assert epoch.figures.train_loss == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("clip_norm", [1e-3, 1e-2])
def test_a_clipped_gradient_makes_a_step_of_that_length(digits: Splits, clip_norm: float) -> None:
    config = tiny(
        optimizer=Sgd(lr=0.5, momentum=0.0, nesterov=False, weight_decay=0.0),
        schedule=Trapezoid(warmup=0.0, cooldown=0.0),
        clip_norm=clip_norm,
        batch_size=64,
    )
    weights = [
        torch.cat([p.detach().flatten() for p in epoch.learner.network.parameters()])
        for epoch in train(config, first(digits, 64), CPU)
    ]
    assert (weights[1] - weights[0]).norm().item() == pytest.approx(0.5 * clip_norm, rel=0.01)


def test_an_alternating_flip_turns_every_image_each_epoch(digits: Splits) -> None:
    """Image i is of level 10 i, its right half 5 above, so that each tells its number and side."""
    images = (10 * torch.arange(24, dtype=torch.uint8)).view(24, 1, 1, 1).repeat(1, 1, 8, 8)
    images[..., 4:] += 5
    splits = dataclasses.replace(digits, train=Images(images=images, labels=torch.arange(24) % 10))
    seen: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if type(module) is Cnn and module.training:
            seen.append(inputs[0].detach().clone())

    config = tiny(epochs=3, batch_size=24, augment=Augment(flip=True, alternate=True))
    hook = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        list(train(config, splits, CPU))
    finally:
        hook.remove()
    sides = []
    for batch in seen:
        lowest, left, right = batch.amin(dim=(1, 2, 3)), batch[:, 0, 0, 0], batch[:, 0, 0, 7]
        sides.append((left > right)[lowest.argsort()])
    assert len(sides) == 3
    assert 0 < sides[0].sum() < 24
    assert torch.equal(sides[1], ~sides[0])
    assert torch.equal(sides[2], sides[0])


# What it learns


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": OneCycle(), "optimizer": AdamW(lr=0.02)},
        {"schedule": Trapezoid(warmup=0.2), "optimizer": Muon(lr=0.1, adamw_lr=0.02)},
        {"optimizer": Lion(lr=0.01), "clip_norm": 1.0},
        {"ema_decay": 0.0},
        {"augment": Augment(crop=1), "label_smoothing": 0.1},
        {"model": ModelConfig("resnet", {"depth": 10, "width_factor": 0.125})},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_it_learns_the_digits(digits: Splits, changes: dict[str, Any]) -> None:
    epochs = list(train(tiny(epochs=4, **changes), digits, CPU))
    assert epochs[-1].figures.val_accuracy > 0.9
    assert epochs[-1].figures.train_loss < epochs[0].figures.train_loss


@pytest.mark.parametrize(
    "augment", [Augment(mixup=0.4), Augment(cutmix=1.0), Augment(mixup=0.4, cutmix=1.0)]
)
def test_blended_images_and_smoothed_labels_are_learnt_from(
    digits: Splits, augment: Augment
) -> None:
    epochs = list(train(tiny(epochs=4, augment=augment, label_smoothing=0.1), digits, CPU))
    assert all(epoch.is_finite for epoch in epochs)
    assert epochs[-1].figures.val_accuracy > 0.6
    assert epochs[-1].figures.train_loss < epochs[0].figures.train_loss


def test_label_smoothing_is_in_the_loss_and_not_in_the_validation(digits: Splits) -> None:
    splits = first(digits, 32)
    plain, smoothed = (
        next(train(tiny(label_smoothing=share, optimizer=Sgd(lr=1e-9)), splits, CPU)).figures
        for share in (0.0, 0.5)
    )
    assert plain.train_loss != smoothed.train_loss
    assert plain.val_loss == pytest.approx(smoothed.val_loss, rel=1e-5)


# What it yields


@pytest.mark.parametrize("num_epochs", [1, 3])
def test_it_yields_its_epochs_numbered_from_one(digits: Splits, num_epochs: int) -> None:
    splits = first(digits, 64)
    epochs = list(train(tiny(epochs=num_epochs), splits, CPU))
    assert [epoch.figures.epoch for epoch in epochs] == list(range(1, num_epochs + 1))


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_the_probabilities_are_those_of_the_network(digits: Splits, precision: Precision) -> None:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (digits.mean, digits.std))
    dtype = compute_dtype(precision, CPU)
    for epoch in train(tiny(precision=precision), digits, CPU):
        assert not epoch.network.training
        probs = predict_probs(epoch.network, digits.val.images, mean, std, device=CPU, dtype=dtype)
        assert torch.equal(probs, epoch.val_probs)
        assert probs.dtype == torch.float32
        assert probs.shape == (len(digits.val), 10)


def test_the_figures_are_the_score_of_the_probabilities(digits: Splits) -> None:
    for epoch in train(tiny(), digits, CPU):
        scores = score(epoch.val_probs, digits.val.labels)
        assert epoch.figures.val_accuracy == scores.accuracy
        assert epoch.figures.val_loss == scores.nll


def test_the_learning_rate_ends_below_its_peak_and_above_zero(digits: Splits) -> None:
    config = tiny(epochs=3, schedule=Cosine(warmup=0.3))
    rates = [epoch.figures.lr for epoch in train(config, first(digits, 320), CPU)]
    assert 0 < rates[-1] < 0.05 < max(rates) <= 0.2
    assert rates[-1] == min(rates)


def test_the_parameters_are_counted(digits: Splits) -> None:
    epoch = next(train(tiny(), first(digits, 32), CPU))
    model = build_model(tiny().model, 10, digits.image_shape)
    assert epoch.num_parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("batch_size", [1, 31, 64, 65, 10_000])
def test_a_batch_of_any_size_is_trained_on(digits: Splits, batch_size: int) -> None:
    epochs = list(train(tiny(batch_size=batch_size), first(digits, 64), CPU))
    assert len(epochs) == 2
    assert all(epoch.is_finite for epoch in epochs)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_divergence_is_told_and_not_raised(digits: Splits, norm: str) -> None:
    config = tiny(
        model=ModelConfig("cnn", {"stages": 1, "blocks": 1, "width": 8, "norm": norm}),
        optimizer=Sgd(lr=1e30),
    )
    epochs = list(train(config, digits, CPU))
    assert len(epochs) == 2
    assert not epochs[-1].is_finite
    assert not math.isfinite(epochs[-1].figures.val_loss)


# What it leaves behind


def test_the_data_are_left_as_they_were(digits: Splits) -> None:
    before = [part.clone() for part in tensors(digits)]
    list(train(tiny(epochs=1, augment=Augment(crop=1, cutout=2, cutmix=1.0)), digits, CPU))
    assert all(map(torch.equal, before, tensors(digits)))


def test_closing_it_midway_frees_the_networks(digits: Splits) -> None:
    before = num_networks()
    epochs = train(tiny(epochs=50), first(digits, 64), CPU)
    epoch = next(epochs)
    average = weakref.ref(epoch.network)
    assert num_networks() == before + 2
    epochs.close()
    with pytest.raises(StopIteration):
        next(epochs)
    del epoch
    assert num_networks() == before
    assert average() is None


def test_an_epoch_asks_for_no_gradient(digits: Splits) -> None:
    epoch = next(train(tiny(), first(digits, 64), CPU))
    assert not epoch.val_probs.requires_grad
    assert not any(parameter.requires_grad for parameter in epoch.network.parameters())


def test_what_a_step_keeps_for_its_gradient_ends_with_the_step(digits: Splits) -> None:
    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    alive: weakref.WeakSet[Kept] = weakref.WeakSet()
    num_kept = 0

    def keep(tensor: Tensor) -> Kept:
        nonlocal num_kept
        num_kept += 1
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        for _ in train(tiny(), first(digits, 64), CPU):
            assert not alive
    assert num_kept > 0


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_graph_does_not_grow_with_the_steps(digits: Splits, micro_batches: int) -> None:
    sizes = [
        [
            graph_size()
            for _ in train(tiny(), first(digits, count), CPU, micro_batches=micro_batches)
        ]
        for count in (32, 320)
    ]
    assert len({size for of_training in sizes for size in of_training}) == 1


def test_the_validation_does_not_disturb_the_training(digits: Splits) -> None:
    """Weights depend on the training images alone."""
    other = dataclasses.replace(
        digits, val=Images(images=digits.val.images[:50], labels=digits.val.labels[:50])
    )
    one, two = (list(train(tiny(), splits, CPU))[-1].network for splits in (digits, other))
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)


# What it may see


def tensors(splits: Splits) -> list[Tensor]:
    parts = (splits.train, splits.val)
    return [tensor for part in parts for tensor in (part.images, part.labels)]


def test_no_test_image_can_be_reached_from_what_it_is_given(digits: Splits) -> None:
    """The official 1,797 digits less the 359 of the test set, and no storage holds any more."""
    held = [
        getattr(digits, field.name)
        for field in dataclasses.fields(digits)
        if not isinstance(getattr(digits, field.name), str | tuple | bool | DataConfig | None)
    ]
    images = [value for value in held if not isinstance(value, np.ndarray)]
    assert images == [digits.train, digits.val], "the others are positions"
    assert len(digits.train) + len(digits.val) == 1797 - 359
    for tensor in tensors(digits):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_a_training_goes_on_on_another_kind_of_device(digits: Splits) -> None:
    config, splits = tiny(), first(digits, 64)
    with contextlib.closing(train(config, splits, CPU)) as epochs:
        state = {name: tensor.clone() for name, tensor in next(epochs).learner.state().items()}
    # As a GPU leaves them.
    state["random.cuda"] = state["random.generator"] = torch.zeros(16, dtype=torch.uint8)
    (epoch,) = train(config, splits, CPU, state=state, epochs_done=1)
    assert epoch.is_finite
