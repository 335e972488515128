"""The loss of a training step: that of the labels and, for a student, that of its teacher."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from tuner.config import TrialConfig

EXPONENTS: dict[Literal["balanced", "sqrt"], float] = {"balanced": 1.0, "sqrt": 0.5}


class TrainingLoss:
    """Softmax cross-entropy over a batch that passes through the network in parts.

    With ``class_weights``, each image counts with the weight of its class, and one with blended
    labels with the blended weights. The batch's loss is divided by the total weight of its images,
    as ``torch.nn.functional.cross_entropy`` does for unblended labels. For blended ones PyTorch
    divides by their number, which would make a batch with rare classes take longer steps.

    Args:
        config: The training.
        labels: Labels of all training images, int64, shape (N,), on the device.
        num_classes: K.
    """

    def __init__(self, config: TrialConfig, labels: Tensor, num_classes: int) -> None:
        self._smoothing, self._distill = config.label_smoothing, config.distill
        self.weights: Tensor | None = None
        """Weight of an image of each class, shape (K,); 0 for a class without images."""
        self.adjustment: Tensor | None = None
        """Added to the logits, shape (K,)."""
        if config.class_weights == "none" and not config.logit_adjustment:
            return
        counts = labels.bincount(minlength=num_classes).cpu().double()
        # A class without images is never a label; counting one image keeps its logarithm finite.
        shares = counts.clamp(min=1) / counts.sum()
        if config.class_weights != "none":
            weights = shares.pow(-EXPONENTS[config.class_weights]) * (counts > 0)
            # Scaled to a mean of 1 over the images.
            self.weights = (weights / (weights @ shares)).float().to(labels.device)
        if config.logit_adjustment:
            adjustment = config.logit_adjustment * shares.log()
            self.adjustment = adjustment.float().to(labels.device)

    def weight_of(self, targets: Tensor) -> Tensor | int:
        """Return the total weight of images.

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
        """Return the contribution of some images of a batch to its loss.

        The teacher's probabilities are those of the unaugmented images, computed once: a student
        that sees augmented views learns the teacher's prediction for the plain image. Letting the
        teacher predict each view teaches better over many epochs (Beyer et al. 2022), but costs a
        pass of the whole ensemble per step. The probabilities are neither weighted nor adjusted.

        Args:
            logits: Float32, shape (B, K).
            targets: As for ``weight_of``.
            total: The value of ``weight_of`` for the whole batch.
            taught: The teacher's probabilities at ``distill.temperature``, shape (B, K).
            share: These images' share of the batch.
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
