"""From a model to class probabilities, and from those to figures with their uncertainty."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tuner.augment import normalize

SMALLEST_PROB = 1e-12
"""Probabilities below it count as this much in the NLL: 27.6 nats at most for an image."""
NUM_BINS = 15
"""Bins of the calibration error, as in Guo et al. (2017)."""


def predict_probs(
    model: nn.Module,
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 1000,
) -> Tensor:
    """Give the model's class probabilities; its training mode is left as it was.

    Args:
        model: On ``device``.
        images: uint8, shape (N, C, H, W), on any device.
        mean: Per channel, of values scaled to [0, 1], shape (1, C, 1, 1).
        std: As ``mean``.
        device: Where to compute.
        dtype: Below ``float32``, autocast to it; the softmax is always in float32.
        batch_size: Images at a time; it changes the memory needed, not the result.

    Returns:
        Float32 on the CPU, shape (N, K), each row summing to 1.
    """
    mean, std = mean.to(device), std.to(device)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    batches = []
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast:
            for batch in torch.split(images, batch_size):
                inputs = normalize(batch.to(device, non_blocking=True), mean, std)
                logits = model(inputs.contiguous(memory_format=torch.channels_last))
                batches.append(logits.float().softmax(dim=1))
    finally:
        model.train(was_training)
    # Joined outside of inference mode, whose tensors no later gradient could pass.
    return torch.cat(batches).cpu()


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """How good class probabilities are, over some labelled images."""

    accuracy: float
    """Share of images whose most probable class is right, in [0, 1]."""
    nll: float
    """Mean negative log-likelihood of the true class, in nats."""
    brier: float
    """Mean over images of the squared error summed over all classes, in [0, 2] (Brier 1950)."""
    ece: float
    """Expected calibration error over 15 bins, in [0, 1] (Guo et al. 2017, equation 3)."""


def score(probs: Tensor, labels: Tensor) -> Scores:
    """Score class probabilities against the truth, in float64.

    Args:
        probs: Shape (N, K), each row summing to 1.
        labels: int64, shape (N,), in [0, K), on any device.

    Raises:
        ValueError: If there is not one label per row, or no row at all.
    """
    if probs.ndim != 2 or labels.shape != probs.shape[:1] or not len(labels):
        raise ValueError(
            f"scores need probs (N, K) and labels (N,), got {tuple(probs.shape)} and "
            f"{tuple(labels.shape)}"
        )
    probs, labels = probs.double(), labels.to(probs.device)
    of_truth = probs.gather(1, labels[:, None]).squeeze(1)
    # The sum over k of (p_k - y_k)^2, multiplied out.
    brier = probs.square().sum(dim=1) - 2 * of_truth + 1
    return Scores(
        accuracy=(probs.argmax(dim=1) == labels).double().mean().item(),
        nll=-of_truth.clamp(min=SMALLEST_PROB).log().mean().item(),
        brier=brier.mean().item(),
        ece=_calibration_error(probs, labels),
    )


def _calibration_error(probs: Tensor, labels: Tensor) -> float:
    """Mean distance of confidence and accuracy over the bins, each weighted by its images.

    Bin m holds the confidences in ((m - 1) / 15, m / 15].
    """
    confidence, predicted = probs.max(dim=1)
    is_right = (predicted == labels).double()
    bins = (confidence * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
    # |sum of confidence - sum of right| is the bin's gap times its number of images.
    gaps = probs.new_zeros(NUM_BINS).index_add_(0, bins, confidence - is_right)
    return gaps.abs().sum().item() / len(labels)


def confusion_matrix(probs: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count the images of each true class (rows) that are taken for each class (columns).

    Args:
        probs: Shape (N, K).
        labels: int64, shape (N,), on any device.
        num_classes: K.

    Returns:
        int64, shape (K, K), summing to N.
    """
    cells = labels.to(probs.device) * num_classes + probs.argmax(dim=1)
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A gain in accuracy with its confidence interval, as shares in [-1, 1]."""

    gain: float
    low: float
    high: float


def paired_gain(
    correct: Tensor,
    baseline: Tensor,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Give the gain in accuracy over a baseline on the same images, by the paired bootstrap.

    The interval is the percentile interval of Efron & Tibshirani (1993, chapter 13) over images.
    It tells how far the gain may be due to the choice of test images, not to the training seeds.

    Args:
        correct: Whether each image is classified rightly, bool, shape (N,).
        baseline: The same for what is compared with.
        level: Coverage, in (0, 1).
        resamples: Bootstrap samples.
        seed: Of the resampling.

    Raises:
        ValueError: If the two are not about the same images, or about none.
    """
    if correct.shape != baseline.shape or correct.ndim != 1 or not len(correct):
        raise ValueError(
            f"a paired gain needs two results for each image, got {tuple(correct.shape)} and "
            f"{tuple(baseline.shape)}"
        )
    won = int((correct & ~baseline).sum())
    lost = int((~correct & baseline).sum())
    total = len(correct)
    # An image's difference is 1, -1 or 0, so that drawing images with replacement is drawing these
    # three counts from a multinomial: exact, and as quick for a million images as for ten.
    shares = np.array([won, lost, total - won - lost]) / total
    counts = np.random.default_rng(seed).multinomial(total, shares, size=resamples)
    gains = (counts[:, 0] - counts[:, 1]) / total
    low, high = np.quantile(gains, [(1 - level) / 2, (1 + level) / 2])
    return Interval(gain=(won - lost) / total, low=float(low), high=float(high))
