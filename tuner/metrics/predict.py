"""Class probabilities from a model, and figures from class probabilities."""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuner.augment import normalize
from tuner.config import Metric, Tta
from tuner.metrics import goal
from tuner.metrics.calibration import equal_mass_bins, equal_width_bins, expected_error
from tuner.metrics.classwise import ClassScores, class_scores
from tuner.voting import SMALLEST_PROB

BATCH = 1000
"""Maximum number of images that a GPU computes at a time."""
BATCH_ON_CPU = 32
"""Images of CIFAR's size that a CPU computes at a time; fewer if they are larger. With 256, the
layers' outputs are so large that memory for each is requested from the system and given back: five
default CNNs take twice the processor time."""
CIFAR_PIXELS = 32 * 32


def predict_probs(
    model: nn.Module,
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    batch_size: int | None = None,
    tta: Tta = "none",
) -> Tensor:
    """Return the model's class probabilities; its training mode is unchanged.

    Images move to the device batch by batch, so that a mapped file larger than memory is streamed.
    If a batch does not fit into a GPU's memory, it is halved.

    Args:
        model: On ``device``.
        images: uint8, shape (N, C, H, W), on any device.
        mean: Channel means of values scaled to [0, 1], shape (1, C, 1, 1).
        std: As ``mean``.
        device: Where to compute.
        dtype: Below ``float32``, autocast to it; the softmax is always in float32.
        batch_size: Maximum images at a time; changes the memory needed, not the result. ``None``
            selects what suits the device.
        tta: Views of an image whose probabilities are averaged.

    Returns:
        Float32 on the CPU, shape (N, K), each row summing to 1.

    Raises:
        torch.OutOfMemoryError: If not even a single image fits.
    """
    mean, std = mean.to(device), std.to(device)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    if batch_size is None:
        batch_size = BATCH if device.type != "cpu" else _batch_on_cpu(math.prod(images.shape[2:]))
    batches: list[Tensor] = []
    done = 0
    was_training = model.training
    model.eval()
    try:
        # In inference mode, a buffer that the network replaces could never be changed again.
        with torch.no_grad(), autocast:
            while done < len(images):
                batch = images[done : done + batch_size]
                try:
                    inputs = normalize(batch.to(device, non_blocking=True), mean, std)
                    seen = [_probs(model, view) for view in views(inputs, tta)]
                except torch.OutOfMemoryError:
                    if batch_size == 1:
                        raise
                    batch_size //= 2
                    continue
                batches.append(torch.stack(seen).mean(dim=0))
                done += len(batch)
    finally:
        model.train(was_training)
    return torch.cat(batches).cpu()


def _batch_on_cpu(pixels: int) -> int:
    return max(1, min(BATCH_ON_CPU, BATCH_ON_CPU * CIFAR_PIXELS // pixels))


def _probs(model: nn.Module, inputs: Tensor) -> Tensor:
    logits: Tensor = model(inputs.contiguous(memory_format=torch.channels_last))
    return logits.float().softmax(dim=1)


def views(inputs: Tensor, tta: Tta) -> list[Tensor]:
    """Return the images and, as ``tta`` says, copies mirrored and shifted diagonally by a pixel."""
    views = [inputs]
    if tta == "flip+shift":
        padded = F.pad(inputs, (1, 1, 1, 1), mode="reflect")
        views += [padded[:, :, :-2, :-2], padded[:, :, 2:, 2:]]
    return views if tta == "none" else views + [view.flip(3) for view in views]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """The quality of class probabilities over some labelled images."""

    accuracy: float
    """Share of images whose most probable class is right, in [0, 1]."""
    nll: float
    """Mean negative log-likelihood of the true class, in nats."""
    brier: float
    """Mean over images of the squared error summed over all classes, in [0, 2] (Brier 1950)."""
    ece: float
    """Expected calibration error over 15 bins of equal width, in [0, 1] (Guo et al. 2017)."""
    ece_equal_mass: float
    """The same over 15 bins with equally many images (Nixon et al. 2019)."""
    top3: float
    """Share of images whose class is among the three most probable."""
    balanced_accuracy: float
    macro_f1: float
    worst_class: float
    """All three as in ``ClassScores``."""

    def value(self, metric: Metric) -> float:
        """Return the value of a metric."""
        value: float = getattr(self, metric)
        return value


def accuracy_and_nll(probs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return accuracy and NLL; arguments as for ``score``, which takes longer."""
    outcome = _outcome(probs, labels)
    return outcome.accuracy, outcome.nll


def scores_by_class(probs: Tensor, labels: Tensor) -> ClassScores:
    """Return the scores in which each class counts the same; arguments as for ``score``."""
    return class_scores(probs.argmax(dim=1).cpu().numpy(), labels.cpu().numpy())


def value_of(probs: Tensor, labels: Tensor, metric: Metric) -> float:
    """Return the value of one metric; arguments as for ``score``, which takes longer."""
    return _value(probs, labels, metric, *accuracy_and_nll(probs, labels))


def _value(probs: Tensor, labels: Tensor, metric: Metric, accuracy: float, nll: float) -> float:
    known = {"accuracy": accuracy, "nll": nll}
    if metric in known:
        return known[metric]
    value: float = getattr(scores_by_class(probs, labels), metric)
    return value


def rank(probs: Tensor, labels: Tensor, metric: Metric) -> list[int]:
    """Return the members' positions, best by ``metric`` first; ``goal.order`` breaks ties.

    Args:
        probs: Shape (M, N, K).
        labels: int64, shape (N,).
        metric: The metric that counts.
    """
    keys = []
    for member in probs:
        accuracy, nll = accuracy_and_nll(member, labels)
        value = _value(member, labels, metric, accuracy, nll)
        keys.append(goal.order(metric, value, accuracy=accuracy, nll=nll))
    return sorted(range(len(keys)), key=keys.__getitem__)


def score(probs: Tensor, labels: Tensor) -> Scores:
    """Score class probabilities against the truth, in float64.

    Args:
        probs: Shape (N, K), each row summing to 1.
        labels: int64, shape (N,), in [0, K), on any device.

    Raises:
        ValueError: If there is not one label per row, or no row at all.
    """
    outcome = _outcome(probs, labels)
    probs, labels = probs.double(), labels.to(probs.device)
    # The sum over k of (p_k - y_k)^2, multiplied out.
    brier = probs.square().sum(dim=1) - 2 * outcome.of_truth + 1
    confidence, is_right = outcome.confidence, outcome.is_right
    best = probs.topk(min(3, probs.shape[1]), dim=1).indices
    return Scores(
        accuracy=outcome.accuracy,
        nll=outcome.nll,
        brier=brier.mean().item(),
        ece=expected_error(equal_width_bins(confidence), confidence, is_right),
        ece_equal_mass=expected_error(equal_mass_bins(confidence), confidence, is_right),
        top3=(best == labels[:, None]).any(dim=1).double().mean().item(),
        **asdict(scores_by_class(probs, labels)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome:
    """Values shared by the scores, one per image, shape (N,); float64 unless noted."""

    of_truth: Tensor
    """Probability of the true class."""
    confidence: Tensor
    """Probability of the most probable class."""
    is_right: Tensor
    """Whether the most probable class is the true one, bool."""

    @property
    def accuracy(self) -> float:
        return self.is_right.double().mean().item()

    @property
    def nll(self) -> float:
        return -self.of_truth.clamp(min=SMALLEST_PROB).log().mean().item()


def _outcome(probs: Tensor, labels: Tensor) -> _Outcome:
    if probs.ndim != 2 or labels.shape != probs.shape[:1] or not len(labels):
        raise ValueError(
            f"scores need probs (N, K) and labels (N,), got {tuple(probs.shape)} and "
            f"{tuple(labels.shape)}"
        )
    probs, labels = probs.double(), labels.to(probs.device)
    confidence, predicted = probs.max(dim=1)
    return _Outcome(
        of_truth=probs.gather(1, labels[:, None]).squeeze(1),
        confidence=confidence,
        is_right=predicted == labels,
    )


def mistakes(probs: Tensor, labels: Tensor) -> Tensor:
    """Return the positions of misclassified images, the most confident first.

    Args:
        probs: Shape (N, K).
        labels: int64, shape (N,).
    """
    confidence, predicted = probs.max(dim=1)
    wrong = (predicted != labels).nonzero().squeeze(1)
    return wrong[confidence[wrong].argsort(descending=True, stable=True)]


def confusion_matrix(probs: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count the images of each true class (rows) by predicted class (columns).

    Args:
        probs: Shape (N, K).
        labels: int64, shape (N,), on any device.
        num_classes: K.

    Returns:
        int64, shape (K, K), summing to N.
    """
    cells = labels.to(probs.device) * num_classes + probs.argmax(dim=1)
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)
