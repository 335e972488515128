"""The results that a training yields."""

import math
import time
from dataclasses import dataclass

from torch import Tensor, nn

from tuner.metrics.predict import accuracy_and_nll, scores_by_class
from tuner.models.layers import num_weights
from tuner.run.trial import EpochMetrics
from tuner.training.learner import FoldedLearner, Learner


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """The results of one epoch of training."""

    figures: EpochMetrics
    val_probs: Tensor
    """Class probabilities of the validation images by ``network``, float32, shape (N, K), CPU. With
    folds, each image's are by the one network that was not trained on it."""
    network: nn.Module
    """The averaged weights, in evaluation mode; they change as the iteration continues. With folds,
    the networks of all folds as one ``FoldedNetwork``."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Mean and standard deviation per channel used to normalize the images."""
    learner: Learner | FoldedLearner
    """Its ``state()`` is what ``train`` resumes from; it changes, too."""
    execution: str
    """How the steps were run, as ``captured`` or ``eager``; with a reason if a capture failed."""
    computed: str
    """Kind of device and number type, such as ``cpu float32``."""

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the network, including frozen ones."""
        return num_weights(self.network)

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
    """Return the metrics of an epoch that ends now.

    Args:
        val_probs: Probabilities of the validation images, shape (N, K).
        val_labels: Their labels, int64, shape (N,), on the CPU.
        epoch: Number of the epoch, from 1.
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
