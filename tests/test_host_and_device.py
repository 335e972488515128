"""A net for machines without a GPU: host and device tensors that meet, values read on the host.

Fake tensors (``FakeTensorMode``) tell which device they are on and hold no numbers: what mixes them
with tensors of the host, or reads one of their values, raises. They stand for a GPU in forward
passes, augmentation, validation and the bookkeeping of a captured step. Backward passes run on the
meta device, which refuses to be read as well. Optimizers take a real step on the CPU, with their
learning rate in a tensor, in ``tests/test_optim.py``.

What the net cannot hold, and only ``tests/gpu`` does:

- generators on a GPU: the fake tensors' random numbers come from one on the CPU, which PyTorch
  would refuse on a real GPU, and ``random_sides``, whose device is the generator's, is left out;
- mixup's draw from a Beta distribution, whose kernel has no fake version: it is replaced;
- a backward pass and an optimizer's step that meet a tensor of the host, a step as a whole,
  streams, events, capture, memory and its limits;
- ``Module.to``, ``copy_`` from host to device, which waits and is allowed, and ``non_blocking``;
- kernels: which number types, memory layouts and sizes they take, and what they compute;
- the weight average, whose copy of a network fake tensors do not survive;
- networks of torchvision, and of users.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from tuner.augment import augment_batch
from tuner.augment.policies import magnitudes
from tuner.config import AdamW, Augment, Lion, ModelConfig, Muon, Sgd, TrialConfig, Tta
from tuner.metrics.predict import predict_probs
from tuner.models.build import build_model
from tuner.optim import WeightAverage, make_optimizer
from tuner.training.device_step import Timetable
from tuner.training.learner import Learner
from tuner.training.step import HostSteps, Task

GPU = torch.device("cuda", 0)
META = torch.device("meta")
MODELS = [
    ModelConfig("cnn", {"dropout": 0.1}),
    ModelConfig("cnn", {"residual": True, "stochastic_depth": 0.2, "squeeze_excitation": True}),
    ModelConfig("cnn", {"convolution": "separable", "norm": "group", "head": "hidden"}),
    ModelConfig("cnn", {"norm": "none", "head": "max", "pooling": "stride", "activation": "mish"}),
    ModelConfig("resnet", {"depth": 18, "dropout": 0.1}),
    ModelConfig("resnet", {"depth": 20, "norm": "group"}),
    ModelConfig("wide_resnet", {"depth": 10}),
    ModelConfig("speednet"),
    ModelConfig("speednet", {"convolutions": 3, "whitening_kernel": 3}),
    ModelConfig("convnext", {"stochastic_depth": 0.1}),
    ModelConfig("vit", {"dropout": 0.1, "stochastic_depth": 0.1}),
    ModelConfig("vit", {"patch": 8, "pooling": "class", "positions": "learned"}),
]
every_model = pytest.mark.parametrize(
    "model", MODELS, ids=lambda model: ",".join([model.family, *map(str, model.params)])
)
# Autocast has nothing to do for a device that is not there.
pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available:UserWarning")


class FixedDraw(TorchFunctionMode):
    """Replaces the one random number whose kernel has no fake version."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch._sample_dirichlet:
            return torch.ones_like(args[0])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fake() -> Iterator[None]:
    """Make every tensor a fake one."""
    magnitudes.cache_clear()
    with FakeTensorMode(), FixedDraw():
        yield
    magnitudes.cache_clear()


class OnDevice(nn.Module):
    """A network of the meta device whose tensors are on another one.

    It is built without fake tensors, since first weights may be drawn with a look at them.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.network = network
        named = (*network.named_parameters(), *network.named_buffers())
        self.tensors = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            for name, tensor in named
        }

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = functional_call(self.network, self.tensors, (images,))
        return logits


def on_meta(model: ModelConfig) -> nn.Module:
    with unset_fake_temporarily(), META:
        return build_model(model, 10, (3, 32, 32))


def batch(device: torch.device, number: int = 16) -> tuple[Tensor, Tensor]:
    images = torch.zeros(number, 3, 32, 32, dtype=torch.uint8, device=device)
    return images, torch.zeros(number, dtype=torch.int64, device=device)


def augmented(settings: Augment, mean: Tensor) -> tuple[Tensor, Tensor]:
    images, labels = batch(GPU)
    return augment_batch(
        images,
        labels,
        settings=settings,
        num_classes=10,
        mean=mean,
        std=torch.ones(1, 3, 1, 1, device=GPU),
        generator=torch.Generator(),
        is_mirrored=torch.zeros(len(images), dtype=torch.bool, device=GPU),
    )


@pytest.mark.parametrize(
    "settings",
    [
        Augment(),
        Augment(crop=4),
        Augment(flip=True),
        Augment(policy="randaugment"),
        Augment(policy="trivialaugment"),
        Augment(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        Augment(hue=0.1),
        Augment(cutout=8),
        Augment(erasing=0.5),
        Augment(mixup=0.4),
        Augment(cutmix=1.0),
        Augment(crop=2, flip=True, policy="randaugment", cutout=4, mixup=0.2, cutmix=1.0),
    ],
    ids=str,
)
def test_a_batch_is_augmented_on_its_device(fake: None, settings: Augment) -> None:
    inputs, targets = augmented(settings, torch.zeros(1, 3, 1, 1, device=GPU))
    assert inputs.device == targets.device == GPU
    assert inputs.dtype == torch.float32


@every_model
def test_a_network_trains_forward_on_its_device(fake: None, model: ModelConfig) -> None:
    network = OnDevice(on_meta(model), GPU).train()
    logits = network(torch.zeros(4, 3, 32, 32, device=GPU))
    assert logits.device == GPU
    assert logits.shape == (4, 10)


@every_model
def test_gradients_reach_every_weight_without_a_look_at_a_value(model: ModelConfig) -> None:
    network = on_meta(model).train()
    logits = network(torch.zeros(4, 3, 32, 32, device=META))
    _, labels = batch(META, 4)
    F.cross_entropy(logits, labels, label_smoothing=0.1).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("tta", ["none", "flip", "flip+shift"])
@every_model
def test_validation_brings_images_to_the_device_and_probabilities_back(
    fake: None, model: ModelConfig, tta: Tta
) -> None:
    images, _ = batch(torch.device("cpu"))
    mean = torch.zeros(1, 3, 1, 1)
    network = OnDevice(on_meta(model), GPU)
    probs = predict_probs(network, images, mean, mean + 1, device=GPU, batch_size=6, tta=tta)
    assert probs.device == torch.device("cpu")
    assert probs.shape == (16, 10)


@pytest.mark.parametrize(
    "optimizer", [Sgd(), AdamW(), Lion(), Muon()], ids=lambda config: type(config).__name__
)
def test_what_changes_from_step_to_step_is_on_the_device(
    fake: None, optimizer: Sgd | AdamW | Lion | Muon
) -> None:
    model = ModelConfig("cnn", {"stages": 2})
    with GPU:
        network = build_model(model, 10, (3, 32, 32))
    # A copy of a network of fake tensors is of another mode; this one has no weights.
    average = WeightAverage(nn.Identity(), 0.9)
    images, labels = batch(GPU)
    learner = Learner(
        network=network,
        average=average,
        optimizer=make_optimizer(network, optimizer),
        generator=torch.Generator(),
    )
    task = Task(
        config=TrialConfig(model=model, epochs=2, batch_size=4, optimizer=optimizer),
        learner=learner,
        images=images,
        labels=labels,
        num_classes=10,
        mean=torch.zeros(1, 3, 1, 1, device=GPU),
        std=torch.ones(1, 3, 1, 1, device=GPU),
        num_parts=1,
        dtype=torch.float32,
    )
    timetable = Timetable(HostSteps(task))
    timetable.start_epoch(1)
    index, _, share = timetable.read()
    timetable.advance()
    assert index.device == share.device == GPU
    assert index.shape == (4,)
    rates = [group["lr"] for group in learner.optimizer.param_groups]
    assert {rate.device for rate in rates} == {GPU}
    assert {rate.shape for rate in rates} == {torch.Size([])}


# The net itself


def test_tensors_of_host_and_device_that_meet_are_caught(fake: None) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        augmented(Augment(), torch.zeros(1, 3, 1, 1))


class Reads(nn.Module):
    """Reads a value on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        pooled = images.mean(dim=(2, 3))
        return self.layer(pooled / pooled.max().item())


def test_a_value_read_on_the_host_is_caught(fake: None) -> None:
    with unset_fake_temporarily(), META:
        network = Reads()
    with pytest.raises(DataDependentOutputException):
        OnDevice(network, GPU)(torch.zeros(4, 3, 32, 32, device=GPU))


def test_a_value_read_on_the_meta_device_is_caught() -> None:
    with META:
        network = Reads()
    with pytest.raises(RuntimeError, match="meta"):
        network(torch.zeros(4, 3, 32, 32, device=META))
