"""A choice of images that takes each class by its share, the same one every time."""

import numpy as np

TEST_SHARE = 0.2
"""The part of images without any split that is for testing; also of scikit-learn's digits."""
SPLIT_SEED = 20120401
"""The same for every run: only so can validation probabilities of different runs be combined."""


def stratified(labels: np.ndarray, count: int) -> np.ndarray:
    """Choose ``count`` positions, each class by its share, the same ones every time.

    A smaller choice is part of a larger one.

    Args:
        labels: Integers from 0, shape (N,), every class present.
        count: From the number of classes, so that each is chosen from at least once, to N.

    Returns:
        Ascending positions, shape (count,).
    """
    # RandomState's stream is frozen for good (NEP 19); torch's and default_rng's may change.
    order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    sizes = np.bincount(labels)
    by_class = order[np.argsort(labels[order], kind="stable")]
    rank_in_class = np.concatenate([np.arange(size) / size for size in sizes])
    return np.sort(by_class[np.argsort(rank_in_class, kind="stable")[:count]])
