"""Bins hold every image once; confidence that can be believed has no error."""

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tuner.metrics.calibration import (
    NUM_BINS,
    accuracy_at_coverage,
    equal_mass_bins,
    equal_width_bins,
    expected_error,
    reliability,
)
from tuner.metrics.predict import score

confidences = st.lists(st.floats(0, 1), min_size=1, max_size=100).map(torch.tensor)


def some_probs(count: int = 3000, sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return labels drawn from a softmax, and that softmax sharpened: calibrated at 1."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, 6, generator=generator).double()
    labels = logits.softmax(dim=1).multinomial(1, generator=generator).squeeze(1)
    return (sharpness * logits).softmax(dim=1), labels


@given(confidences)
def test_a_bin_of_equal_width_holds_its_range(confidence: Tensor) -> None:
    confidence = confidence.double()
    bins = equal_width_bins(confidence).double()
    assert (confidence <= (bins + 1) / NUM_BINS + 1e-12).all()
    assert ((confidence > bins / NUM_BINS - 1e-12) | (bins == 0)).all()


@given(confidences)
def test_bins_of_equal_mass_are_equally_full_and_in_order(confidence: Tensor) -> None:
    bins = equal_mass_bins(confidence)
    counts = torch.bincount(bins, minlength=NUM_BINS)
    assert counts.max() - counts.min() <= 1
    order = confidence.argsort(stable=True)
    assert (bins[order].diff() >= 0).all()


def test_the_error_over_equal_mass_agrees_with_its_definition() -> None:
    probs, labels = some_probs(sharpness=2.0)
    confidence, predicted = probs.max(dim=1)
    is_right = (predicted == labels).numpy()
    order = np.argsort(confidence.numpy(), kind="stable")
    expected = sum(
        len(part) / 3000 * abs(is_right[part].mean() - confidence.numpy()[part].mean())
        for part in np.array_split(order, NUM_BINS)
    )
    assert score(probs, labels).ece_equal_mass == pytest.approx(expected, abs=1e-12)
    assert expected > 0.05


few_values = st.lists(
    st.tuples(st.sampled_from([0.5, 0.6, 0.827, 0.9, 1.0]), st.booleans()), min_size=1, max_size=200
)


@given(few_values, st.randoms(use_true_random=False))
def test_the_order_of_the_images_changes_no_figure(
    images: list[tuple[float, bool]], random: Random
) -> None:
    def figures(rows: list[tuple[float, bool]]) -> list[float]:
        probs = torch.tensor([[p, 1 - p] for p, _ in rows], dtype=torch.float64)
        # Of two equal probabilities the first is the predicted class.
        labels = torch.tensor([0 if is_right else 1 for _, is_right in rows])
        scores = score(probs, labels)
        coverage = [row.accuracy for row in accuracy_at_coverage(probs, labels)]
        return [scores.ece, scores.ece_equal_mass, *coverage]

    shuffled = random.sample(images, len(images))
    assert figures(shuffled) == pytest.approx(figures(images), abs=1e-12)


def test_a_constant_confidence_that_is_right_has_no_error_in_any_order() -> None:
    probs = torch.tensor([[0.9, 0.1]], dtype=torch.float64).repeat(1000, 1)
    labels = (torch.arange(1000) >= 900).long()
    assert score(probs, labels).ece_equal_mass == pytest.approx(0, abs=1e-12)
    assert [row.accuracy for row in accuracy_at_coverage(probs, labels)] == pytest.approx(
        [0.9] * 20
    )


def test_calibrated_probabilities_have_little_error_and_others_much() -> None:
    calibrated, labels = some_probs()
    assert score(calibrated, labels).ece < 0.03
    assert score(calibrated, labels).ece_equal_mass < 0.03
    for sharpness in (0.3, 3.0):
        assert score(some_probs(sharpness=sharpness)[0], labels).ece > 0.1


def test_the_diagram_adds_up_to_the_error() -> None:
    probs, labels = some_probs(sharpness=2.0)
    bins = reliability(probs, labels)
    assert sum(entry.count for entry in bins) == 3000
    gaps = sum(entry.count * abs(entry.confidence - entry.accuracy) for entry in bins) / 3000
    assert gaps == pytest.approx(score(probs, labels).ece, abs=1e-12)
    for entry in bins:
        assert entry.low < entry.confidence <= entry.high
        assert entry.count > 0


def test_empty_bins_have_no_bar() -> None:
    (entry,) = reliability(torch.tensor([[0.7, 0.3]]), torch.tensor([1]))
    assert (entry.count, entry.accuracy) == (1, 0)
    assert entry.confidence == pytest.approx(0.7)
    confidence, is_right = torch.tensor([0.7]).double(), torch.tensor([False])
    bins = equal_width_bins(confidence)
    assert expected_error(bins, confidence, is_right) == pytest.approx(0.7)


def test_full_coverage_is_plain_accuracy_and_doubt_makes_it_less() -> None:
    probs, labels = some_probs()
    rows = accuracy_at_coverage(probs, labels)
    assert [row.coverage for row in rows] == pytest.approx([step / 20 for step in range(1, 21)])
    assert rows[-1].accuracy == pytest.approx(score(probs, labels).accuracy)
    assert rows[4].accuracy > rows[9].accuracy > rows[19].accuracy


def test_accuracy_at_coverage_of_a_worked_example() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])
    rows = accuracy_at_coverage(probs, torch.tensor([0, 0, 1, 1]), steps=4)
    assert [row.accuracy for row in rows] == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])


def test_coverages_are_those_of_whole_images_each_once_and_none_of_no_image() -> None:
    rows = accuracy_at_coverage(torch.tensor([[0.9, 0.1]] * 3), torch.zeros(3).long())
    assert [row.coverage for row in rows] == pytest.approx([1 / 3, 2 / 3, 1])
