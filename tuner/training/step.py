"""The steps of a training, one epoch at a time; the host sets what changes between steps."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuner.augment import augment_batch, random_sides
from tuner.config import CompileMode, TrialConfig
from tuner.errors import UsageError
from tuner.optim import lr_factor
from tuner.training.learner import Learner
from tuner.training.loss import TrainingLoss


def never() -> bool:
    """Return False: nothing stops the training."""
    return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A training: the learner, its images and settings, with everything on its device."""

    config: TrialConfig
    learner: Learner
    images: Tensor
    """Training images, uint8, shape (N, C, H, W)."""
    labels: Tensor
    """Their labels, int64, shape (N,)."""
    num_classes: int
    mean: Tensor
    """Mean per channel of values scaled to [0, 1], shape (1, C, 1, 1)."""
    std: Tensor
    """Standard deviation, as ``mean``."""
    num_parts: int
    """Number of parts in which a batch passes through the network; their gradients are summed."""
    dtype: torch.dtype
    """Number type of the forward pass."""
    taught: Tensor | None = None
    """The teacher's probabilities at the student's temperature, float32, shape (N, K)."""


class Steps(ABC):
    """The steps of a training: the parts that are common to all devices.

    Args:
        task: The training.
    """

    execution: str
    """How the steps are run, in short, for the trial's record."""

    def __init__(self, task: Task) -> None:
        num_images = len(task.labels)
        self.batch_size = min(task.config.batch_size, num_images)
        # Images that do not fill a batch wait for another epoch: all steps have the same shape.
        self.per_epoch = num_images // self.batch_size
        self.total_loss = torch.zeros((), device=task.images.device)
        """Sum of the batches' losses since the start of the epoch."""
        self.task = task
        self._loss = TrainingLoss(task.config, task.labels, task.num_classes)
        self._forward: Callable[[Tensor], Tensor] = task.learner.network
        # Drawn before a state is restored, so that a resumed training has the same sides.
        is_alternate = task.config.augment.alternate
        self.sides = random_sides(num_images, task.learner.generator) if is_alternate else None
        """Images that odd epochs mirror and even ones do not; ``None`` if mirroring is random."""

    def lr_factor(self, epoch: int, step: int) -> float:
        """Return the share of the peak learning rate at ``step``, from 0, of ``epoch``, from 1."""
        progress = (epoch - 1 + (step + 0.5) / self.per_epoch) / self.task.config.epochs
        return lr_factor(self.task.config.schedule, progress)

    def shuffle(self) -> Tensor:
        """Return the positions of the training images in a new order, shape (N,)."""
        labels, generator = self.task.labels, self.task.learner.generator
        return torch.randperm(len(labels), generator=generator, device=labels.device)

    @abstractmethod
    def run(self, epoch: int, should_stop: Callable[[], bool] = never) -> bool:
        """Run the steps of an epoch; return whether all of them ran.

        Args:
            epoch: Number of the epoch, from 1.
            should_stop: Called before each step; returns whether to stop here.
        """

    def consider_compiling(self, seconds_left: float) -> None:  # noqa: B027
        """Compile the network from the next step on if that pays off.

        Args:
            seconds_left: Seconds that the remaining steps take unchanged, or until the budget ends.
        """

    def on_stream(self) -> contextlib.AbstractContextManager[None]:
        """Return a context whose work on the device is in order with the steps."""
        return contextlib.nullcontext()

    def _train_on(self, index: Tensor, is_mirrored: Tensor | None) -> None:
        """Take an optimizer step on the images at ``index``, shape (B,)."""
        task, config, learner = self.task, self.task.config, self.task.learner
        device = task.images.device
        labels = task.labels.index_select(0, index)
        if task.taught is not None:
            # Side by side, so that mixup and cutmix blend both by the same share.
            one_hot = F.one_hot(labels, task.num_classes).to(task.taught.dtype)
            labels = torch.cat([one_hot, task.taught.index_select(0, index)], dim=1)
        inputs, targets = augment_batch(
            # 0.1 us an image on a CPU core; images[index] takes 1.6.
            task.images.index_select(0, index),
            labels,
            settings=config.augment,
            num_classes=task.num_classes,
            mean=task.mean,
            std=task.std,
            generator=learner.generator,
            is_mirrored=is_mirrored,
        )
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        parts = inputs.chunk(task.num_parts)
        taught: Sequence[Tensor | None] = [None] * len(parts)
        if task.taught is not None:
            targets, of_teacher = targets.tensor_split(2, dim=1)
            taught = of_teacher.chunk(task.num_parts)
        total = self._loss.weight_of(targets)
        targets_of_parts = targets.chunk(task.num_parts)
        for part, part_targets, part_taught in zip(parts, targets_of_parts, taught, strict=True):
            # A graph could not detect when the casts that autocast caches are out of date.
            with torch.autocast(
                device.type,
                task.dtype,
                enabled=task.dtype != torch.float32,
                cache_enabled=device.type != "cuda",
            ):
                logits = self._forward(part)
            if not isinstance(logits, Tensor):
                raise UsageError(
                    f"model.{config.model.family}: in training the network returns "
                    f"{type(logits).__name__}; it has to return only logits, as in evaluation"
                )
            loss = self._loss.part(
                logits.float(), part_targets, total, part_taught, len(part) / self.batch_size
            )
            loss.backward()  # type: ignore[no-untyped-call]
            self.total_loss += loss.detach()
        if config.clip_norm:
            nn.utils.clip_grad_norm_(learner.network.parameters(), config.clip_norm)
        learner.optimizer.step()
        learner.optimizer.zero_grad(set_to_none=True)


class HostSteps(Steps):
    """Steps whose batch and learning rate the host sets, one step at a time.

    Args:
        task: The training.
        compile_mode: See ``tuner.training.compilation``.
    """

    execution = "eager"

    def __init__(self, task: Task, compile_mode: CompileMode = "never") -> None:
        super().__init__(task)
        # Not under `auto`: 0.73 to 0.94 times the speed of channels-last without it.
        if compile_mode == "always":
            # Earlier trials' compilations in this process count against a limit of variants.
            torch.compiler.reset()
            self._forward = torch.compile(task.learner.network, dynamic=False)
            self.execution = "compiled"

    def run(self, epoch: int, should_stop: Callable[[], bool] = never) -> bool:
        """See ``Steps``."""
        learner, order = self.task.learner, self.shuffle()
        self.total_loss.zero_()
        for step in range(self.per_epoch):
            if should_stop():
                return False
            factor = self.lr_factor(epoch, step)
            for group in learner.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            sides = None if self.sides is None else self.sides[index] ^ (epoch % 2 == 0)
            self._train_on(index, sides)
            learner.average.update()
        return True
