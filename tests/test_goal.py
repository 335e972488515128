"""Which trial is ahead by a metric, and the metrics that count each class the same."""

import warnings
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score

from tests.test_state import row
from tuner.config import Metric
from tuner.metrics.classwise import class_scores
from tuner.metrics.goal import score
from tuner.metrics.predict import rank, value_of
from tuner.metrics.predict import score as score_all
from tuner.run.trial import BY_CLASS, EpochMetrics, best_row, kept_row, order_of

classes = st.integers(0, 4)
METRICS: tuple[Metric, ...] = get_args(Metric)


@given(st.lists(st.tuples(classes, classes), min_size=1, max_size=30))
def test_scores_by_class_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    predicted, labels = map(np.array, zip(*pairs, strict=True))
    found = class_scores(predicted, labels)
    with warnings.catch_warnings():
        # Of a class that is predicted and not there.
        warnings.simplefilter("ignore", UserWarning)
        balanced = balanced_accuracy_score(labels, predicted)
    assert found.balanced_accuracy == pytest.approx(balanced)
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    present = np.unique(labels)
    recalls = recall_score(labels, predicted, labels=present, average=None)
    assert found.worst_class == pytest.approx(recalls.min())


def test_a_class_without_images_has_no_recall_and_is_not_the_worst() -> None:
    found = class_scores(np.array([0, 0, 2]), np.array([0, 0, 0]))
    assert found.worst_class == found.balanced_accuracy == pytest.approx(2 / 3)


def figures(**changes: Any) -> EpochMetrics:
    shares = dict.fromkeys(BY_CLASS, 0.5)
    return replace(row(1), **(shares | changes))


@pytest.mark.parametrize(
    ("metric", "better"),
    [
        ("accuracy", {"val_accuracy": 0.6}),
        ("balanced_accuracy", {"val_balanced_accuracy": 0.6}),
        ("macro_f1", {"val_macro_f1": 0.6}),
        ("nll", {"val_loss": 0.1}),
        ("worst_class", {"val_worst_class": 0.6}),
    ],
)
def test_the_better_epoch_is_kept(metric: Metric, better: dict[str, float]) -> None:
    worse = {"val_loss": 2.0, **dict.fromkeys(("val_accuracy", *BY_CLASS), 0.4)}
    history = [figures(), figures(**(worse | better), epoch=2), figures(epoch=3)]
    assert best_row(history, metric) is history[1]
    assert kept_row(history, metric, is_val_seen=False) is history[1]
    others = [other for other in METRICS if other != metric]
    assert all(best_row(history, other) is history[0] for other in others)


def test_between_equals_the_lower_loss_is_ahead_and_of_equal_losses_the_accuracy() -> None:
    lower_loss = figures(val_loss=0.1)
    assert order_of(lower_loss, "worst_class") < order_of(figures(), "worst_class")
    assert order_of(figures(val_accuracy=0.6), "nll") < order_of(figures(), "nll")


def test_an_epoch_without_the_metric_is_never_the_best() -> None:
    history = [row(1, 0.9), figures(epoch=2)]
    assert best_row(history, "macro_f1") is history[1]
    assert best_row(history[:1], "macro_f1") is None
    assert order_of(history[1], "macro_f1") < order_of(history[0], "macro_f1")


@pytest.mark.parametrize("metric", METRICS)
def test_members_are_ranked_by_their_values(metric: Metric) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 12 + [1] * 4 + [2] * 2)
    probs = torch.rand(8, len(labels), 3, generator=generator).softmax(dim=-1)
    ranked = rank(probs, labels, metric)
    values = [score(value_of(probs[i], labels, metric), metric) for i in ranked]
    assert values == sorted(values, reverse=True)
    assert sorted(ranked) == list(range(8))
    assert all(
        value_of(member, labels, metric) == pytest.approx(score_all(member, labels).value(metric))
        for member in probs
    )
