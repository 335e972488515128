"""Choose images in proportion to the classes, the same ones every time."""

import numpy as np

TEST_SHARE = 0.2
"""Share of test images in a data set without a split; also in scikit-learn's digits."""
SPLIT_SEED = 20120401
"""The same for every run, so that validation probabilities of different runs can be combined."""


def stratified(labels: np.ndarray, count: int) -> np.ndarray:
    """Choose ``count`` positions in proportion to the classes, the same ones every time.

    A smaller choice is a subset of a larger one.

    Args:
        labels: Integers from 0, shape (N,), every class present.
        count: From the number of classes, so that each is chosen at least once, to N.

    Returns:
        Ascending positions, shape (count,).
    """
    by_class = _shuffled_by_class(labels)
    sizes = np.bincount(labels)
    rank_in_class = np.concatenate([np.arange(size) / size for size in sizes])
    return np.sort(by_class[np.argsort(rank_in_class, kind="stable")[:count]])


def folds_of(labels: np.ndarray, num_folds: int) -> np.ndarray:
    """Deal the images of each class to folds in turn, the same way every time.

    Folds differ by at most one image, in each class and in total.

    Args:
        labels: Integers from 0, shape (N,).
        num_folds: Number of folds, up to N.

    Returns:
        The fold of each image, from 0, shape (N,).
    """
    folds = np.empty(len(labels), dtype=np.int64)
    folds[_shuffled_by_class(labels)] = np.arange(len(labels)) % num_folds
    return folds


def _shuffled_by_class(labels: np.ndarray) -> np.ndarray:
    """Return the positions of all images, class by class, shuffled within each."""
    # RandomState's stream is frozen for good (NEP 19); torch's and default_rng's may change.
    order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")]
