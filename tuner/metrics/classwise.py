"""Figures in which each class counts the same, however many images it has."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScores:
    """How well the classes are distinguished, as shares in [0, 1]."""

    balanced_accuracy: float
    """Mean recall over the classes that have images."""
    macro_f1: float
    """Mean F1 score over the classes that have images or were predicted."""
    worst_class: float
    """Lowest recall of a class that has images."""


def class_scores(predicted: np.ndarray, labels: np.ndarray) -> ClassScores:
    """Score predictions by class, like scikit-learn's functions of these names.

    Args:
        predicted: Classes, integers from 0, shape (N,).
        labels: True classes, shape (N,), at least one.
    """
    num_classes = int(max(predicted.max(), labels.max())) + 1
    counts = np.bincount(labels, minlength=num_classes)
    taken_for = np.bincount(predicted, minlength=num_classes)
    right = np.bincount(labels[predicted == labels], minlength=num_classes)
    recalls = right[counts > 0] / counts[counts > 0]
    involved = counts + taken_for
    f1 = 2 * right[involved > 0] / involved[involved > 0]
    return ClassScores(
        balanced_accuracy=float(recalls.mean()),
        macro_f1=float(f1.mean()),
        worst_class=float(recalls.min()),
    )
