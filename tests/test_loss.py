"""What a trial's training loss does about classes with few images."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from tuner.config import ModelConfig, TrialConfig
from tuner.training.loss import TrainingLoss

LABELS = torch.tensor([0] * 60 + [1] * 30 + [2] * 9 + [3])
COUNTS = LABELS.bincount().double()


def loss_of(labels: torch.Tensor = LABELS, num_classes: int = 4, **settings: Any) -> TrainingLoss:
    config = TrialConfig(model=ModelConfig("cnn", {}), epochs=1, **settings)
    return TrainingLoss(config, labels, num_classes)


def batch(count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, 4, generator=generator)
    return logits, LABELS[torch.randperm(len(LABELS), generator=generator)[:count]]


def whole(loss: TrainingLoss, logits: torch.Tensor, targets: torch.Tensor, parts: int = 1) -> float:
    total = loss.weight_of(targets)
    pairs = zip(logits.chunk(parts), targets.chunk(parts), strict=True)
    return sum(loss.part(part, aims, total).item() for part, aims in pairs)


def one_hot(labels: torch.Tensor) -> torch.Tensor:
    return F.one_hot(labels, 4).float()


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    weights = loss_of(class_weights="balanced").weights
    expected = compute_class_weight("balanced", classes=np.arange(4), y=LABELS.numpy())
    torch.testing.assert_close(weights, torch.tensor(expected).float())


def test_weights_by_the_square_root_lie_between() -> None:
    weights = loss_of(class_weights="sqrt").weights
    assert weights is not None
    torch.testing.assert_close(weights / weights[0], (COUNTS[0] / COUNTS).sqrt().float())
    assert (weights.double() @ COUNTS / COUNTS.sum()).item() == pytest.approx(1)


@pytest.mark.parametrize("class_weights", ["none", "balanced", "sqrt"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_loss_is_that_of_torch(class_weights: str, label_smoothing: float, parts: int) -> None:
    loss = loss_of(class_weights=class_weights, label_smoothing=label_smoothing)
    logits, labels = batch()
    expected = F.cross_entropy(logits, labels, weight=loss.weights, label_smoothing=label_smoothing)
    assert whole(loss, logits, labels, parts) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("class_weights", ["none", "balanced", "sqrt"])
@pytest.mark.parametrize("logit_adjustment", [0.0, 1.0])
@pytest.mark.parametrize("parts", [1, 3])
def test_blended_labels_that_are_not_blended_give_the_same_loss(
    class_weights: str, logit_adjustment: float, parts: int
) -> None:
    loss = loss_of(
        class_weights=class_weights, logit_adjustment=logit_adjustment, label_smoothing=0.1
    )
    logits, labels = batch()
    assert whole(loss, logits, one_hot(labels), parts) == pytest.approx(
        whole(loss, logits, labels), rel=1e-5
    )


def test_an_image_with_blended_labels_counts_as_much_as_the_blend_of_its_classes() -> None:
    loss = loss_of(class_weights="balanced")
    logits, labels = batch()
    share, other = 0.3, labels.roll(1)
    blended = share * one_hot(labels) + (1 - share) * one_hot(other)
    each = F.cross_entropy(logits, labels, weight=loss.weights, reduction="sum")
    others = F.cross_entropy(logits, other, weight=loss.weights, reduction="sum")
    assert loss.weights is not None
    total = share * loss.weights[labels].sum() + (1 - share) * loss.weights[other].sum()
    expected = (share * each + (1 - share) * others) / total
    assert whole(loss, logits, blended) == pytest.approx(expected.item(), rel=1e-5)


def test_logits_are_adjusted_by_the_shares_of_the_classes() -> None:
    loss = loss_of(logit_adjustment=1.5)
    logits, labels = batch()
    # Equation 10 of Menon et al. (2021), a sum over the other classes.
    shares = COUNTS / COUNTS.sum()
    exps = logits.double().exp() * shares**1.5
    of_truth = exps.gather(1, labels[:, None]).squeeze(1)
    expected = (exps.sum(dim=1) / of_truth).log().mean()
    assert whole(loss, logits, labels) == pytest.approx(expected.item(), rel=1e-5)


def test_adjusted_training_comes_to_the_probabilities_of_even_classes() -> None:
    """With nothing to see, all that can be learnt is how frequent the classes are."""
    loss = loss_of(logit_adjustment=1.0)
    logits = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss.part(logits.expand(len(LABELS), 4), LABELS, len(LABELS))
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(
        logits.detach().softmax(0), torch.full((4,), 0.25), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("settings", [{"class_weights": "balanced"}, {"logit_adjustment": 1.0}])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_class_without_training_images_leaves_the_loss_finite(
    settings: dict[str, Any], label_smoothing: float
) -> None:
    labels = torch.tensor([0, 0, 2])
    loss = loss_of(labels, **settings, label_smoothing=label_smoothing)
    assert np.isfinite(whole(loss, torch.randn(3, 4), labels))
