"""Several trainings of one configuration, each on other folds of the images, as one training.

The networks train in turn, one epoch each. So after any epoch, and when a scheduler compares trials
at a rung, the accuracy is over all images, each predicted by the one network that was not trained
on it, with all networks at the same epoch of their schedules. If each fold were trained to its end
before the next, trials that were stopped early would be ranked by fewer images than others, and the
lucky ones among them would lead.
"""

import contextlib
import statistics
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tuner.data.splits import Splits
from tuner.models.folded import FoldedNetwork
from tuner.training.epoch import Epoch, metrics_of
from tuner.training.learner import FoldedLearner, Learner, random_state, set_random_state


def fold_seed(seed: int, fold: int) -> int:
    """Derive the seed of a fold's network from the trial's."""
    return int(np.random.SeedSequence((seed, fold)).generate_state(1)[0])


def train_in_turn(
    trainings: Sequence[Generator[Epoch]], splits: Splits, device: torch.device
) -> Generator[Epoch]:
    """Yield each epoch of several trainings as one, once all trainings have finished it.

    Each training has torch's global generators to itself, as if it ran alone.

    Args:
        trainings: One per fold, in order.
        splits: The images with their folds.
        device: Device of the trainings.
    """
    random: list[dict[str, Tensor]] = []
    with contextlib.ExitStack() as stack:
        for training in trainings:
            stack.enter_context(contextlib.closing(training))
        while True:
            epochs = []
            for fold, training in enumerate(trainings):
                if fold < len(random):
                    set_random_state(random[fold], device)
                epoch = next(training, None)
                if epoch is None:
                    return
                random[fold : fold + 1] = [random_state(device)]
                epochs.append(epoch)
            yield _as_one(epochs, splits, tuple(random))


def _as_one(
    epochs: Sequence[Epoch], splits: Splits, random: Sequence[Mapping[str, Tensor]]
) -> Epoch:
    """Combine the results of the same epoch of all folds."""
    assert splits.fold_of is not None
    last = epochs[-1]
    probs = last.val_probs.new_empty(len(splits.val), splits.num_classes)
    for fold, epoch in enumerate(epochs):
        probs[splits.fold_of == fold] = epoch.val_probs
    return replace(
        last,
        figures=metrics_of(
            probs,
            splits.val.labels.cpu(),
            epoch=last.figures.epoch,
            train_loss=statistics.fmean(epoch.figures.train_loss for epoch in epochs),
            lr=last.figures.lr,
            seconds=sum(epoch.figures.seconds for epoch in epochs),
        ),
        val_probs=probs,
        network=FoldedNetwork([epoch.network for epoch in epochs]),
        learner=FoldedLearner(learners=[_single(epoch) for epoch in epochs], random=random),
    )


def _single(epoch: Epoch) -> Learner:
    assert isinstance(epoch.learner, Learner)
    return epoch.learner
