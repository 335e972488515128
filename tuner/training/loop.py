"""The training loop: plain PyTorch, a generator of epochs, independent of the search engine.

``for epoch in train(config, splits, device)`` is the same line in a test, a benchmark and a trial
on a cluster; the caller decides how long to iterate.
"""

import contextlib
import math
import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tuner.augment import normalize, per_channel
from tuner.config import CompileMode, TrialConfig
from tuner.data.splits import Splits
from tuner.errors import UsageError
from tuner.metrics.predict import predict_probs
from tuner.models.build import FitsImages, StartsFromWeights, build_model
from tuner.models.custom import to_channels_last
from tuner.models.families import has_own_code
from tuner.optim import WeightAverage, make_optimizer
from tuner.training.device import compute_dtype, describe
from tuner.training.device_step import CaptureMode, DeviceSteps
from tuner.training.epoch import Epoch, metrics_of
from tuner.training.folds import fold_seed, train_in_turn
from tuner.training.initial_weights import InitialWeights
from tuner.training.learner import Learner, state_of_fold
from tuner.training.step import HostSteps, Steps, Task, never
from tuner.voting.temperature import soften

FIT_IMAGES = 5000
"""Maximum number of training images that a network sees before training; see ``FitsImages``."""
PROBE_STEPS = 4
"""Steps from which the length of an epoch is estimated, after as many warm-up steps."""
GPU_PROBE_STEPS = 32
"""The same on a GPU, where captured steps are short compared to the rest of an epoch."""
ENDLESS = 10**6
"""Number of epochs of a probe, which is closed earlier."""


def train(
    config: TrialConfig,
    splits: Splits,
    device: torch.device,
    *,
    start: InitialWeights | None = None,
    state: Mapping[str, Tensor] | None = None,
    epochs_done: int = 0,
    micro_batches: int = 1,
    compile_mode: CompileMode = "never",
    capture_mode: CaptureMode = "auto",
    should_stop: Callable[[], bool] = never,
    budget_seconds: float = math.inf,
) -> Generator[Epoch]:
    """Train one model, or one for each fold of the images, and yield each epoch as it ends.

    Seeds torch's global generators with ``config.seed``, and those of Python and NumPy if a user's
    code builds the network: the same config, splits and device produce the same numbers on a CPU,
    as long as one training at a time runs in the process. On a GPU, with and without capture, this
    needs ``torch.use_deterministic_algorithms(True, warn_only=True)`` and
    ``CUBLAS_WORKSPACE_CONFIG=:4096:8``; a ``vit`` needs it without ``warn_only``, where other
    families fail.

    Args:
        config: Everything that defines the training.
        splits: Training and validation images, ideally on ``device`` already, and the teacher's
            probabilities for the training images.
        device: Where to train; a GPU with its index, as ``find_device`` returns it.
        start: The weights that a ``pretrained`` model starts from, as ``load_initial_weights``
            returns them; images are normalized as they expect.
        state: The ``learner.state()`` of an epoch to resume after.
        epochs_done: The number of that epoch.
        micro_batches: Number of parts of each of ``config.micro_batches``, if memory is short.
        compile_mode: See ``tuner.training.compilation``; compiled steps round differently.
        capture_mode: Whether a GPU's steps become a CUDA graph; see ``tuner.training.device_step``.
        should_stop: Called between two steps; if it returns true, the training ends without the
            current epoch.
        budget_seconds: Seconds until the training will be stopped; work that would not pay off by
            then is not started.

    Yields:
        The epochs up to ``config.epochs``. Losses are NaN or infinite after a divergence; whether
        to continue is the caller's choice.

    Raises:
        UsageError: If the model cannot be built, the weights to start from are missing or unfit, or
            there is no teacher to learn from.
    """
    if splits.fold_of is not None:
        yield from train_in_turn(
            [
                train(
                    replace(config, seed=fold_seed(config.seed, fold)),
                    splits.fold(fold),
                    device,
                    start=start,
                    state=None if state is None else state_of_fold(state, fold),
                    epochs_done=epochs_done,
                    micro_batches=micro_batches,
                    compile_mode=compile_mode,
                    capture_mode=capture_mode,
                    should_stop=should_stop,
                    budget_seconds=budget_seconds,
                )
                for fold in range(splits.num_folds)
            ],
            splits,
            device,
        )
        return
    began = time.perf_counter()
    torch.manual_seed(config.seed)
    _seed_own_code(config, 0)
    generator = torch.Generator(device).manual_seed(config.seed)
    images, labels = splits.train.images.to(device), splits.train.labels.to(device)
    val_images, val_labels = splits.val.images.to(device), splits.val.labels.cpu()
    normalization = start or splits
    mean, std = per_channel(normalization.mean, device), per_channel(normalization.std, device)
    dtype = compute_dtype(config.precision, device)

    network = build_model(config.model, len(splits.classes), splits.image_shape)
    policy = network if isinstance(network, StartsFromWeights) else None
    if policy is not None:
        if start is None:
            raise UsageError("model.pretrained: the weights to start from are missing")
        policy.start_from(start.tensors)
    network = to_channels_last(network.to(device))
    if state is None and isinstance(network, FitsImages):
        # Spread over all images, because a folder's images are sorted by class.
        few = images[:: -(-len(images) // FIT_IMAGES)]
        network.fit_to(normalize(few, mean, std))
    average = WeightAverage(network, config.ema_decay)
    optimizer = make_optimizer(network, config.optimizer, policy.lr_shares() if policy else {})
    learner = Learner(network=network, average=average, optimizer=optimizer, generator=generator)
    task = Task(
        config=config,
        learner=learner,
        images=images,
        labels=labels,
        num_classes=len(splits.classes),
        mean=mean,
        std=std,
        num_parts=config.micro_batches * micro_batches,
        dtype=dtype,
        taught=_taught(config, splits, device),
    )
    is_on_gpu = device.type == "cuda"
    steps: Steps = (
        DeviceSteps(task, compile_mode, capture_mode)
        if is_on_gpu
        else HostSteps(task, compile_mode)
    )
    if state is not None:
        learner.restore(state)

    for number in range(epochs_done + 1, config.epochs + 1):
        started = time.perf_counter()
        _seed_own_code(config, number)
        if policy is not None:
            policy.start_epoch(number)
        network.train()
        if not steps.run(number, should_stop):
            return
        with steps.on_stream():
            val_probs = predict_probs(
                average.model, val_images, mean, std, device=device, dtype=dtype
            )
            train_loss = steps.total_loss.item() / steps.per_epoch
        seconds = time.perf_counter() - started
        yield Epoch(
            figures=metrics_of(
                val_probs,
                val_labels,
                epoch=number,
                train_loss=train_loss,
                lr=config.optimizer.lr * steps.lr_factor(number, steps.per_epoch - 1),
                seconds=seconds,
            ),
            val_probs=val_probs,
            network=average.model,
            mean=normalization.mean,
            std=normalization.std,
            learner=learner,
            execution=steps.execution,
            computed=describe(device, dtype),
        )
        budget_left = budget_seconds - (time.perf_counter() - began)
        steps.consider_compiling(min(seconds * (config.epochs - number), budget_left))


def _seed_own_code(config: TrialConfig, epoch: int) -> None:
    """Seed Python's and NumPy's generators if a user's code, which may draw from them, is run.

    Every epoch is seeded, so a training that resumes does not need their state.

    Args:
        config: The training.
        epoch: Number of the epoch that begins, from 1; 0 before the network is built.
    """
    if has_own_code(config.model):
        one, other = map(int, np.random.SeedSequence((config.seed, epoch)).generate_state(2))
        random.seed(one)
        np.random.seed(other)


def _taught(config: TrialConfig, splits: Splits, device: torch.device) -> Tensor | None:
    """Return the teacher's probabilities at the student's temperature, float32, shape (N, K)."""
    if config.distill.alpha == 0:
        return None
    if splits.teacher is None:
        raise UsageError("distill.alpha: there is no teacher to learn from; see 'distill'")
    return soften(splits.teacher.to(device), config.distill.temperature).float()


def predict_epoch_seconds(
    config: TrialConfig,
    splits: Splits,
    device: torch.device,
    *,
    start: InitialWeights | None = None,
    micro_batches: int = 1,
) -> float:
    """Estimate the seconds of an epoch of this training, with validation, from a few steps."""
    probe = probe_epochs(
        config,
        splits,
        device,
        start=start,
        micro_batches=micro_batches,
        steps=GPU_PROBE_STEPS if device.type == "cuda" else PROBE_STEPS,
    )
    with contextlib.closing(probe) as epochs:
        next(epochs)
        return next(epochs).figures.seconds


def probe_epochs(
    config: TrialConfig,
    splits: Splits,
    device: torch.device,
    *,
    start: InitialWeights | None = None,
    micro_batches: int = 1,
    steps: int = PROBE_STEPS,
) -> Generator[Epoch]:
    """Train short epochs without end, each reported with the seconds of a whole epoch.

    They follow the last epoch of the configuration, when nothing is frozen any more.

    Args:
        config: The training.
        splits: The images.
        device: Where to train.
        start: See ``train``.
        micro_batches: See ``train``.
        steps: Number of steps of a short epoch, at most those of a whole one.

    Yields:
        The epochs. The first one is slower because it warms up.
    """
    batch_size = min(config.batch_size, splits.num_trained)
    whole = splits.num_trained // batch_size
    few = min(whole, steps)
    probe = train(
        replace(config, epochs=config.epochs + ENDLESS),
        _part_of(splits, few * batch_size, len(splits.val) * few // whole),
        device,
        start=start,
        epochs_done=config.epochs,
        micro_batches=micro_batches,
    )
    with contextlib.closing(probe) as epochs:
        for epoch in epochs:
            seconds = epoch.figures.seconds * whole / few
            yield replace(epoch, figures=replace(epoch.figures, seconds=seconds))


def _part_of(splits: Splits, num_train: int, num_val: int) -> Splits:
    """Return a part of the splits with the same proportions, so that one factor scales both.

    Args:
        splits: The whole.
        num_train: Number of images in the part that a network trains on.
        num_val: Number of images in the part to validate on.
    """
    if splits.fold_of is None:
        val = splits.val.select(slice(max(1, num_val)))
        teacher = None if splits.teacher is None else splits.teacher[:num_train]
        train = splits.train.select(slice(num_train))
        return replace(splits, train=train, val=val, teacher=teacher)
    num_folds = splits.num_folds
    count = -(-num_train * num_folds // (num_folds - 1))
    few = splits.train.select(slice(count))
    return replace(splits, train=few, val=few, fold_of=torch.arange(count) % num_folds)
