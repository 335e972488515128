"""The training loop: plain PyTorch, a generator of epochs, no engine.

``for epoch in train(config, splits, device)`` is the same line in a test, a benchmark and a trial
on a cluster; whoever iterates decides how long.
"""

import contextlib
import math
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuner.augment import augment_batch, normalize, random_sides
from tuner.compiling import CompileMode, Forward
from tuner.config import TrialConfig
from tuner.data import Splits
from tuner.device import compute_dtype
from tuner.errors import UsageError
from tuner.evaluate import predict_probs, score
from tuner.models import FitsImages, StartsFromWeights, build_model
from tuner.optim import WeightAverage, lr_factor, make_optimizer
from tuner.sources import Images
from tuner.trial import EpochRow
from tuner.weights import Start

FIT_IMAGES = 5000
"""At most so many training images does a network see before training; see ``FitsImages``."""
PROBE_STEPS = 4
"""Of the epoch by which the length of a whole one is foreseen, after another one to warm up."""
ENDLESS = 10**6
"""Epochs of a probe, which is ended before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Learner:
    """Everything that changes in the course of a training."""

    network: nn.Module
    average: WeightAverage
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    """Of shuffling and augmentation, on the device; dropout draws from torch's global ones."""

    def state(self) -> dict[str, Tensor]:
        """Give all of it as named tensors, for ``restore``."""
        tensors = {
            f"{part}.{name}": tensor
            for part, module in (("network", self.network), ("average", self.average.model))
            for name, tensor in module.state_dict().items()
        }
        for index, parameter in enumerate(self._parameters()):
            for name, tensor in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{index}.{name}"] = tensor
        tensors["average_updates"] = torch.tensor(self.average.num_updates)
        tensors["random.generator"] = self.generator.get_state()
        tensors["random.cpu"] = torch.get_rng_state()
        if self.generator.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.generator.device)
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to where ``state`` was called, numbers for numbers on a CPU."""
        for part, module in (("network", self.network), ("average", self.average.model)):
            prefix = f"{part}."
            module.load_state_dict(
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            )
        parameters = list(self._parameters())
        for key, tensor in tensors.items():
            if not key.startswith("optimizer."):
                continue
            _, index, name = key.split(".", 2)
            parameter = parameters[int(index)]
            # Moments take their parameter's memory layout, which the fused steps rely on.
            like = parameter if tensor.shape == parameter.shape else tensor.to(parameter.device)
            self.optimizer.state[parameter][name] = torch.empty_like(
                like, dtype=tensor.dtype, requires_grad=False
            ).copy_(tensor)
        self.average.num_updates = int(tensors["average_updates"])
        self.generator.set_state(tensors["random.generator"])
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], self.generator.device)

    def _parameters(self) -> Iterator[nn.Parameter]:
        return (p for group in self.optimizer.param_groups for p in group["params"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """What one epoch of training has led to."""

    figures: EpochRow
    val_probs: Tensor
    """Class probabilities of the validation images by ``network``, float32, shape (N, K), CPU."""
    network: nn.Module
    """The averaged weights, in evaluation mode; they change as the iteration goes on."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Mean and deviation a channel by which its images were normalized."""
    learner: Learner
    """What ``train`` goes on from, as ``learner.state()``; it changes, too."""

    @property
    def num_parameters(self) -> int:
        """Trainable parameters of the network."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def is_finite(self) -> bool:
        """Whether the training has not diverged."""
        return math.isfinite(self.figures.train_loss + self.figures.val_loss)


def train(
    config: TrialConfig,
    splits: Splits,
    device: torch.device,
    *,
    start: Start | None = None,
    state: Mapping[str, Tensor] | None = None,
    epochs_done: int = 0,
    micro_batches: int = 1,
    compile_mode: CompileMode = "never",
) -> Generator[Epoch]:
    """Train one model and give each epoch as it ends.

    Seeds torch's global generators with ``config.seed``: the same config, splits and device give
    the same numbers on a CPU, as long as one training at a time runs in the process.

    Args:
        config: All that defines the training.
        splits: Training and validation images, best on ``device`` already.
        device: Where to train.
        start: The weights that a ``pretrained`` model starts from, as ``tuner.weights`` loads them;
            images are normalized as they want it.
        state: What ``learner.state()`` of an epoch gave, to go on after it.
        epochs_done: The number of that epoch.
        micro_batches: Parts of each of ``config.micro_batches``, where memory is short.
        compile_mode: See ``tuner.compiling``; its steps round differently.

    Yields:
        The epochs up to ``config.epochs``. Losses are NaN or infinite after a divergence; going on
        is the caller's choice.

    Raises:
        UsageError: If the model cannot be built, or the weights to start from are missing or unfit.
    """
    torch.manual_seed(config.seed)
    generator = torch.Generator(device).manual_seed(config.seed)
    images, labels = splits.train.images.to(device), splits.train.labels.to(device)
    val_images = splits.val.images.to(device)
    wanted = start or splits
    mean, std = (
        torch.tensor(values, device=device).view(1, -1, 1, 1)
        for values in (wanted.mean, wanted.std)
    )
    dtype = compute_dtype(config.precision, device)

    network = build_model(config.model, len(splits.classes), splits.image_shape)
    policy = network if isinstance(network, StartsFromWeights) else None
    if policy is not None:
        if start is None:
            raise UsageError("model.pretrained: the weights to start from are missing")
        policy.start_from(start.tensors)
    network = network.to(device).to(memory_format=torch.channels_last)
    if state is None and isinstance(network, FitsImages):
        # Spread over all, for a folder's images come class by class.
        few = images[:: -(-len(images) // FIT_IMAGES)]
        network.fit_to(normalize(few, mean, std))
    average = WeightAverage(network, config.ema_decay)
    optimizer = make_optimizer(network, config.optimizer, policy.lr_shares() if policy else {})
    learner = Learner(network=network, average=average, optimizer=optimizer, generator=generator)
    # Drawn before the state is restored, so that a training that goes on has the same sides.
    sides = random_sides(len(labels), generator) if config.augment.alternate else None
    if state is not None:
        learner.restore(state)
    batch_size = min(config.batch_size, len(labels))
    # What does not fill a batch is left for another epoch's shuffle: all steps have one shape.
    steps = len(labels) // batch_size
    num_parts = config.micro_batches * micro_batches
    forward = Forward(network, config, device, compile_mode, num_parts)

    for number in range(epochs_done + 1, config.epochs + 1):
        started = time.perf_counter()
        if policy is not None:
            policy.start_epoch(number)
        network.train()
        order = torch.randperm(len(labels), generator=generator, device=device)
        total_loss = torch.zeros((), device=device)
        for step in range(steps):
            progress = (number - 1 + (step + 0.5) / steps) / config.epochs
            factor = lr_factor(config.schedule, progress)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            index = order[step * batch_size : (step + 1) * batch_size]
            inputs, targets = augment_batch(
                # 0.1 us an image on a CPU core; images[index] takes 1.6.
                images.index_select(0, index),
                labels.index_select(0, index),
                settings=config.augment,
                num_classes=len(splits.classes),
                mean=mean,
                std=std,
                generator=generator,
                is_mirrored=None if sides is None else sides[index] ^ (number % 2 == 0),
            )
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            forward.start_step()
            for part, aims in zip(inputs.chunk(num_parts), targets.chunk(num_parts), strict=True):
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    logits = forward(part).float()
                loss = F.cross_entropy(logits, aims, label_smoothing=config.label_smoothing)
                loss = loss * (len(part) / batch_size)
                loss.backward()  # type: ignore[no-untyped-call]
                total_loss += loss.detach()
            if config.clip_norm:
                nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average.update()

        val_probs = predict_probs(average.model, val_images, mean, std, device=device, dtype=dtype)
        scores = score(val_probs, splits.val.labels)
        seconds = time.perf_counter() - started
        yield Epoch(
            figures=EpochRow(
                epoch=number,
                train_loss=total_loss.item() / steps,
                val_loss=scores.nll,
                val_accuracy=scores.accuracy,
                lr=config.optimizer.lr * factor,
                seconds=seconds,
                time=time.time(),
            ),
            val_probs=val_probs,
            network=average.model,
            mean=wanted.mean,
            std=wanted.std,
            learner=learner,
        )
        forward.consider(seconds_left=seconds * (config.epochs - number))


def predict_epoch_seconds(
    config: TrialConfig,
    splits: Splits,
    device: torch.device,
    *,
    start: Start | None = None,
    micro_batches: int = 1,
) -> float:
    """Foresee the length of an epoch of this training, validation included, from a few steps."""
    probe = probe_epochs(config, splits, device, start=start, micro_batches=micro_batches)
    with contextlib.closing(probe) as epochs:
        next(epochs)
        return next(epochs).figures.seconds


def probe_epochs(
    config: TrialConfig,
    splits: Splits,
    device: torch.device,
    *,
    start: Start | None = None,
    micro_batches: int = 1,
    steps: int = PROBE_STEPS,
) -> Generator[Epoch]:
    """Train short epochs without end, each told with the seconds that a whole one would take.

    They lie behind the last epoch of the configuration, where nothing is frozen any more.

    Args:
        config: Whose training.
        splits: Its images.
        device: Where to train.
        start: See ``train``.
        micro_batches: See ``train``.
        steps: Of a short epoch, at most as many as a whole one has.

    Yields:
        The epochs. The first one is slower, for it warms up.
    """
    batch_size = min(config.batch_size, len(splits.train))
    whole = len(splits.train) // batch_size
    few = min(whole, steps)
    # In the proportion of the whole, so that one factor scales both.
    num_val = max(1, len(splits.val) * few // whole)
    part = replace(
        splits,
        train=Images(
            images=splits.train.images[: few * batch_size],
            labels=splits.train.labels[: few * batch_size],
        ),
        val=Images(images=splits.val.images[:num_val], labels=splits.val.labels[:num_val]),
    )
    probe = train(
        replace(config, epochs=config.epochs + ENDLESS),
        part,
        device,
        start=start,
        epochs_done=config.epochs,
        micro_batches=micro_batches,
    )
    with contextlib.closing(probe) as epochs:
        for epoch in epochs:
            seconds = epoch.figures.seconds * whole / few
            yield replace(epoch, figures=replace(epoch.figures, seconds=seconds))
