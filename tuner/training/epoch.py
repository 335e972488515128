"""What a training yields."""

import math
import time
from dataclasses import dataclass

from torch import Tensor, nn

from tuner.metrics.predict import accuracy_and_nll, scores_by_class
from tuner.run.trial import EpochMetrics
from tuner.training.learner import FoldedLearner, Learner


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """What one epoch of training has led to."""

    figures: EpochMetrics
    val_probs: Tensor
    """Class probabilities of the validation images by ``network``, float32, shape (N, K), CPU. With
    folds, those of an image are by the one network that was not trained on it."""
    network: nn.Module
    """The averaged weights, in evaluation mode; they change as the iteration goes on. With folds,
    the networks of all as one ``FoldedNetwork``."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Mean and deviation a channel by which its images were normalized."""
    learner: Learner | FoldedLearner
    """What ``train`` goes on from, as ``learner.state()``; it changes, too."""
    execution: str
    """How the steps were run: ``captured``, ``eager``, with a reason where a capture failed."""
    computed: str
    """On what kind of device and in which type: ``cpu float32``."""

    @property
    def num_parameters(self) -> int:
        """Parameters of the network, those that are frozen too."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def is_finite(self) -> bool:
        """Whether the training has not diverged."""
        return math.isfinite(self.figures.train_loss + self.figures.val_loss)


def metrics_of(
    val_probs: Tensor,
    val_labels: Tensor,
    *,
    epoch: int,
    train_loss: float,
    lr: float,
    seconds: float,
) -> EpochMetrics:
    """Return the figures of an epoch that ends now.

    Args:
        val_probs: Of the validation images, shape (N, K).
        val_labels: Theirs, int64, shape (N,), on the CPU.
        epoch: Its number, from 1.
        train_loss: As in ``EpochMetrics``, like the others.
        lr: Likewise.
        seconds: Likewise.
    """
    accuracy, loss = accuracy_and_nll(val_probs, val_labels)
    by_class = scores_by_class(val_probs, val_labels)
    return EpochMetrics(
        epoch=epoch,
        train_loss=train_loss,
        val_loss=loss,
        val_accuracy=accuracy,
        val_balanced_accuracy=by_class.balanced_accuracy,
        val_macro_f1=by_class.macro_f1,
        val_worst_class=by_class.worst_class,
        lr=lr,
        seconds=seconds,
        time=time.time(),
    )
