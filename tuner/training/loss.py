"""What a training step minimizes."""

import torch.nn.functional as F
from torch import Tensor

from tuner.config import TrialConfig


def training_loss(
    logits: Tensor, targets: Tensor, config: TrialConfig, taught: Tensor | None = None
) -> Tensor:
    """Return the mean loss of a batch: that of its labels and, of a student, that of its teacher.

    The teacher's probabilities are those of the images as they are, computed once: a student that
    sees augmented views learns what the teacher says of the plain image. To have the teacher look
    at each view, too, teaches better over many epochs (Beyer et al. 2022) and costs a pass of the
    whole ensemble a step.

    Args:
        logits: Float32, shape (N, K).
        targets: Classes, int64, shape (N,), or their probabilities, shape (N, K).
        config: The training.
        taught: The teacher's probabilities at ``config.distill.temperature``, shape (N, K).
    """
    loss = F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
    if taught is None:
        return loss
    alpha = config.distill.alpha
    return (1 - alpha) * loss + alpha * distillation_loss(
        logits, taught, config.distill.temperature
    )


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
