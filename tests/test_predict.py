import math
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import brier_score_loss, log_loss
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from torch import Tensor, nn
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
)

from tuner.config import ModelConfig, Tta
from tuner.metrics.predict import confusion_matrix, predict_probs, score
from tuner.models.build import build_model
from tuner.optim import WeightAverage

CPU = torch.device("cpu")
MEAN = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)
STD = torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)


def some_images(count: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)


def some_model() -> nn.Module:
    torch.manual_seed(0)
    params = {"stages": 1, "blocks": 1, "width": 8, "dropout": 0.5}
    return build_model(ModelConfig("cnn", params), 4, (3, 8, 8))


def some_probs(count: int = 500, num_classes: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, num_classes, generator=generator)
    labels = logits.softmax(dim=1).multinomial(1, generator=generator).squeeze(1)
    return (1.5 * logits).softmax(dim=1), labels


def test_probabilities_are_the_softmax_of_normalized_images() -> None:
    model, images = some_model(), some_images()
    probs = predict_probs(model, images, MEAN, STD, device=CPU)
    with torch.no_grad():
        expected = model.eval()((images.float() / 255 - MEAN) / STD).softmax(dim=1)
    torch.testing.assert_close(probs, expected, rtol=1e-4, atol=1e-6)
    assert probs.dtype == torch.float32


def test_the_batch_size_does_not_change_the_probabilities() -> None:
    model, images = some_model(), some_images()
    one = predict_probs(model, images, MEAN, STD, device=CPU, batch_size=1)
    three = predict_probs(model, images, MEAN, STD, device=CPU, batch_size=3)
    torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("is_training", [False, True])
def test_the_mode_and_the_weights_are_left_as_they_were(is_training: bool) -> None:
    model = some_model().train(is_training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predict_probs(model, some_images(), MEAN, STD, device=CPU)
    assert model.training is is_training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_the_mode_is_restored_after_an_error() -> None:
    model = some_model().train()
    with pytest.raises(RuntimeError, match="channels"):
        predict_probs(model, some_images()[:, :1], MEAN[:, :1], STD[:, :1], device=CPU)
    assert model.training


def test_bfloat16_rounds_the_logits_but_not_the_softmax() -> None:
    model, images = some_model(), some_images()
    full = predict_probs(model, images, MEAN, STD, device=CPU)
    half = predict_probs(model, images, MEAN, STD, device=CPU, dtype=torch.bfloat16)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.sum(dim=1), torch.ones(10), rtol=0, atol=1e-6)
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.02)


def test_a_gradient_may_pass_through_probabilities() -> None:
    probs = predict_probs(some_model(), some_images(), MEAN, STD, device=CPU)
    temperature = torch.ones((), requires_grad=True)
    (probs.log() / temperature).softmax(dim=1).amax(dim=1).sum().backward()
    assert temperature.grad is not None


class Counting(nn.Module):
    """Replaces a buffer, and the data of a weight, in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tensor(0))
        self.head = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        self.seen = self.seen + len(images)
        self.head.weight.data = F.normalize(self.head.weight.data)
        logits: Tensor = self.head(images.mean(dim=(2, 3)))
        return logits


def test_what_the_network_replaces_can_be_changed_later() -> None:
    model = Counting()
    predict_probs(model, some_images(10), MEAN, STD, device=CPU)
    assert model.seen == 10
    assert not any(tensor.is_inference() for tensor in model.state_dict(keep_vars=True).values())
    average = WeightAverage(Counting(), 0.9)
    for _ in range(2):
        average.update()
        predict_probs(average.model, some_images(10), MEAN, STD, device=CPU)


class FewAtATime(nn.Module):
    """A model for which more than three images are too many for its memory."""

    def __init__(self, inner: nn.Module, most: int) -> None:
        super().__init__()
        self.inner, self.most = inner, most
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(images))
        return self.inner(images)


def test_a_batch_that_does_not_fit_is_halved() -> None:
    model, images = some_model(), some_images(10)
    tight = FewAtATime(model, most=3)
    probs = predict_probs(tight, images, MEAN, STD, device=CPU, batch_size=1000)
    expected = predict_probs(model, images, MEAN, STD, device=CPU)
    torch.testing.assert_close(probs, expected, rtol=1e-4, atol=1e-6)
    # Of 1,000 halved to 1, 3, 7, ..., 3 is the largest that fits.
    assert tight.batches == [3, 3, 3, 1]


@pytest.mark.parametrize(("side", "most"), [(8, 32), (32, 32), (64, 8), (224, 1)])
def test_a_cpu_computes_few_images_at_a_time_the_fewer_the_larger(side: int, most: int) -> None:
    counting = FewAtATime(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), most=1000)
    images = torch.zeros(most + 1, 3, side, side, dtype=torch.uint8)
    predict_probs(counting, images, MEAN, STD, device=CPU)
    assert counting.batches == [most, 1]


def test_a_single_image_that_does_not_fit_is_told() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        predict_probs(FewAtATime(some_model(), most=0), some_images(), MEAN, STD, device=CPU)


def test_a_mirrored_image_gets_the_same_answer_with_flip() -> None:
    model, images = some_model(), some_images()
    here = predict_probs(model, images, MEAN, STD, device=CPU, tta="flip")
    there = predict_probs(model, images.flip(3), MEAN, STD, device=CPU, tta="flip")
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-6)
    plain = predict_probs(model, images, MEAN, STD, device=CPU)
    mirrored = predict_probs(model, images.flip(3), MEAN, STD, device=CPU)
    torch.testing.assert_close(here, (plain + mirrored) / 2, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(plain, mirrored, rtol=1e-2)


def test_shifted_views_are_the_image_moved_by_a_pixel() -> None:
    class Corner(nn.Module):
        """Tell classes apart by the pixel at row 3, column 3."""

        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([images[:, 0, 3, 3], torch.zeros(len(images))], dim=1)

    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    # What the views bring to row 3, column 3; mirrored, that is column 4 of what was shifted.
    seen = {(3, 3): 40, (2, 2): 80, (4, 4): 120, (3, 4): 160, (2, 3): 200, (4, 5): 240}
    for (row, column), value in seen.items():
        images[0, 0, row, column] = value
    one = torch.ones(1, 1, 1, 1)
    probs = predict_probs(Corner(), images, 0 * one, one, device=CPU, tta="flip+shift")
    values = torch.tensor([40, 80, 120, 160, 200, 240]) / 255
    torch.testing.assert_close(probs[0, 0], values.sigmoid().mean())


@pytest.mark.parametrize("tta", get_args(Tta))
def test_views_give_probabilities(tta: Tta) -> None:
    probs = predict_probs(some_model(), some_images(), MEAN, STD, device=CPU, tta=tta)
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(10))


def test_scores_of_a_worked_example() -> None:
    probs = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 0])
    scores = score(probs, labels)
    assert scores.accuracy == 0.75
    assert scores.nll == pytest.approx(-math.log(0.8 * 0.4 * 0.7) / 4, abs=1e-6)
    assert scores.brier == pytest.approx((0.08 + 0.72 + 0.18 + 0) / 4, abs=1e-6)
    assert scores.ece == pytest.approx((0.2 + 0.6 + 0.3 + 0) / 4, abs=1e-6)


def test_scores_agree_with_scikit_learn() -> None:
    probs, labels = some_probs()
    # scikit-learn warns of rows that sum to 1 no closer than float32 can.
    double = (probs.double() / probs.double().sum(dim=1, keepdim=True)).numpy()
    scores = score(probs, labels)
    assert scores.nll == pytest.approx(log_loss(labels, double), abs=1e-6)
    brier = brier_score_loss(labels, double, scale_by_half=False, labels=range(10))
    assert scores.brier == pytest.approx(brier, abs=1e-6)
    expected = sklearn_confusion_matrix(labels, double.argmax(axis=1))
    np.testing.assert_array_equal(confusion_matrix(probs, labels, 10).numpy(), expected)


def test_scores_agree_with_torchmetrics() -> None:
    probs, labels = some_probs()
    scores = score(probs, labels)
    ece = multiclass_calibration_error(probs.double(), labels, num_classes=10, n_bins=15, norm="l1")
    assert scores.ece == pytest.approx(ece.item(), abs=1e-6)
    top3 = multiclass_accuracy(probs, labels, num_classes=10, average="micro", top_k=3)
    assert scores.top3 == pytest.approx(top3.item(), abs=1e-6)
    accuracy = multiclass_accuracy(probs, labels, num_classes=10, average="micro")
    assert scores.accuracy == pytest.approx(accuracy.item(), abs=1e-6)


def test_the_calibration_error_agrees_with_its_definition() -> None:
    probs, labels = some_probs()
    confidence = probs.double().numpy().max(axis=1)
    is_right = probs.numpy().argmax(axis=1) == labels.numpy()
    expected = 0.0
    for low in np.arange(15) / 15:
        members = (confidence > low) & (confidence <= low + 1 / 15)
        if members.any():
            gap = abs(is_right[members].mean() - confidence[members].mean())
            expected += members.mean() * gap
    assert score(probs, labels).ece == pytest.approx(expected, abs=1e-9)
    assert 0.02 < expected < 0.5


def test_perfect_and_hopeless_predictions_reach_the_ends_of_the_ranges() -> None:
    labels = torch.tensor([0, 1, 2])
    perfect = score(torch.eye(3), labels)
    assert (perfect.accuracy, perfect.nll, perfect.brier, perfect.ece) == (1, 0, 0, 0)
    assert (perfect.ece_equal_mass, perfect.top3) == (0, 1)
    hopeless = score(torch.eye(3), labels.roll(1))
    assert hopeless.nll == pytest.approx(-math.log(1e-12))
    assert (hopeless.accuracy, hopeless.brier, hopeless.ece) == (0, 2, 1)


def test_a_nan_is_not_hidden() -> None:
    scores = score(torch.tensor([[math.nan, math.nan], [0.5, 0.5]]), torch.tensor([0, 1]))
    assert all(math.isnan(value) for value in (scores.nll, scores.brier, scores.ece))


@pytest.mark.parametrize(("rows", "labels"), [(3, 2), (0, 0)])
def test_scores_need_a_label_for_each_row(rows: int, labels: int) -> None:
    with pytest.raises(ValueError, match="scores need"):
        score(torch.full((rows, 4), 0.25), torch.zeros(labels, dtype=torch.long))


def test_rows_of_the_confusion_matrix_are_the_truth() -> None:
    probs = torch.eye(3)[[1, 1, 2, 0]]
    labels = torch.tensor([0, 1, 2, 0])
    expected = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    torch.testing.assert_close(confusion_matrix(probs, labels, 3), expected)
