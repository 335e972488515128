"""What a training step minimizes: the loss of the labels and, of a student, that of its teacher."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from tuner.config import TrialConfig

EXPONENTS: dict[Literal["balanced", "sqrt"], float] = {"balanced": 1.0, "sqrt": 0.5}


class TrainingLoss:
    """Softmax cross-entropy over a batch that goes through the network in parts.

    With ``class_weights``, each image counts as much as its class, and one with blended labels as
    much as the blend of its classes; the batch's loss is divided by what its images count together,
    as ``torch.nn.functional.cross_entropy`` does for labels that are not blended. What it does for
    blended ones, to divide by their number, would have a batch with rare classes take longer steps.

    Args:
        config: Whose loss.
        labels: Of all training images, int64, shape (N,), on the device.
        num_classes: K.
    """

    def __init__(self, config: TrialConfig, labels: Tensor, num_classes: int) -> None:
        self._smoothing, self._distill = config.label_smoothing, config.distill
        self.weights: Tensor | None = None
        """What an image of each class counts, shape (K,); 0 for a class without images."""
        self.adjustment: Tensor | None = None
        """What is added to the logits, shape (K,)."""
        if config.class_weights == "none" and not config.logit_adjustment:
            return
        counts = labels.bincount(minlength=num_classes).cpu().double()
        # A class without images is never a label. One image keeps its logarithm finite.
        shares = counts.clamp(min=1) / counts.sum()
        if config.class_weights != "none":
            weights = shares.pow(-EXPONENTS[config.class_weights]) * (counts > 0)
            # By 1 in the mean over the images.
            self.weights = (weights / (weights @ shares)).float().to(labels.device)
        if config.logit_adjustment:
            adjustment = config.logit_adjustment * shares.log()
            self.adjustment = adjustment.float().to(labels.device)

    def weight_of(self, targets: Tensor) -> Tensor | int:
        """Return what images count together.

        Args:
            targets: Labels, int64, shape (B,), or class probabilities, shape (B, K).
        """
        if self.weights is None:
            return len(targets)
        if targets.ndim == 2:
            return (targets @ self.weights).sum()
        return self.weights.index_select(0, targets).sum()

    def part(
        self,
        logits: Tensor,
        targets: Tensor,
        total: Tensor | int,
        taught: Tensor | None = None,
        share: float = 1.0,
    ) -> Tensor:
        """Return what some images of a batch add to its loss.

        The teacher's probabilities are those of the images as they are, computed once: a student
        that sees augmented views learns what the teacher says of the plain image. To have the
        teacher look at each view, too, teaches better over many epochs (Beyer et al. 2022) and
        costs a pass of the whole ensemble a step. They are neither weighted nor adjusted.

        Args:
            logits: Float32, shape (B, K).
            targets: As for ``weight_of``.
            total: What that returns of the whole batch.
            taught: The teacher's probabilities at ``distill.temperature``, shape (B, K).
            share: Of the batch's images, those that these are.
        """
        loss = self._of_labels(logits, targets, total)
        if taught is None:
            return loss
        alpha, temperature = self._distill.alpha, self._distill.temperature
        lesson = distillation_loss(logits, taught, temperature)
        return (1 - alpha) * loss + alpha * share * lesson

    def _of_labels(self, logits: Tensor, targets: Tensor, total: Tensor | int) -> Tensor:
        if self.adjustment is not None:
            logits = logits + self.adjustment
        loss = F.cross_entropy(
            logits,
            targets,
            weight=self.weights,
            label_smoothing=self._smoothing,
            reduction="mean" if self.weights is None else "sum",
        )
        return loss * (len(logits) / total) if self.weights is None else loss / total


def distillation_loss(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Return the mean divergence of a student from its teacher, times the temperature squared.

    The square keeps the gradients as large as those of the labels' loss at any temperature (Hinton
    et al. 2015, arXiv 1503.02531).

    Args:
        logits: The student's, shape (N, K).
        taught: The teacher's probabilities at ``temperature``, shape (N, K), rows summing to 1.
        temperature: Above 0.
    """
    softened = (logits / temperature).log_softmax(dim=1)
    return temperature**2 * F.kl_div(softened, taught, reduction="batchmean")
