import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from sklearn.metrics import brier_score_loss, log_loss
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from torch import Tensor, nn

from tuner.config import ModelConfig
from tuner.evaluate import confusion_matrix, paired_gain, predict_probs, score
from tuner.models import build_model

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


outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300).map(
    lambda pairs: torch.tensor(pairs).unbind(dim=1)
)


@settings(deadline=None)
@given(outcomes)
def test_an_interval_holds_the_gain(pair: tuple[Tensor, Tensor]) -> None:
    correct, baseline = pair
    interval = paired_gain(correct, baseline)
    difference = correct.double().mean() - baseline.double().mean()
    assert interval.gain == pytest.approx(difference.item())
    assert -1 <= interval.low <= interval.gain <= interval.high <= 1


@settings(deadline=None)
@given(outcomes)
def test_swapping_the_two_mirrors_the_interval(pair: tuple[Tensor, Tensor]) -> None:
    there, back = paired_gain(*pair), paired_gain(*reversed(pair))
    assert there.gain == -back.gain
    tolerance = 0.1 / math.sqrt(len(pair[0])) + 1 / len(pair[0])
    assert there.low == pytest.approx(-back.high, abs=tolerance)
    assert there.high == pytest.approx(-back.low, abs=tolerance)


@settings(deadline=None)
@given(outcomes)
def test_nothing_is_gained_over_itself(pair: tuple[Tensor, Tensor]) -> None:
    interval = paired_gain(pair[0], pair[0])
    assert (interval.gain, interval.low, interval.high) == (0, 0, 0)


def test_the_interval_agrees_with_scipys_bootstrap() -> None:
    generator = np.random.default_rng(0)
    correct, baseline = generator.random(2000) < 0.93, generator.random(2000) < 0.91
    difference = correct.astype(float) - baseline.astype(float)
    expected = bootstrap(
        (difference,), np.mean, method="percentile", n_resamples=5000, rng=1
    ).confidence_interval
    interval = paired_gain(torch.from_numpy(correct), torch.from_numpy(baseline))
    assert interval.low == pytest.approx(expected.low, abs=1e-3)
    assert interval.high == pytest.approx(expected.high, abs=1e-3)


def test_a_wider_level_gives_a_wider_interval_and_the_seed_decides_it() -> None:
    generator = torch.Generator().manual_seed(0)
    correct, baseline = (torch.rand(400, generator=generator) < p for p in (0.8, 0.7))
    narrow, wide = (paired_gain(correct, baseline, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert paired_gain(correct, baseline) == paired_gain(correct, baseline)
    assert paired_gain(correct, baseline, seed=1) != paired_gain(correct, baseline)


@pytest.mark.parametrize(("first", "second"), [(3, 2), (0, 0)])
def test_a_paired_gain_needs_the_same_images(first: int, second: int) -> None:
    with pytest.raises(ValueError, match="paired"):
        paired_gain(torch.ones(first, dtype=torch.bool), torch.ones(second, dtype=torch.bool))
