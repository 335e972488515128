"""The data sets that need no network."""

import torch

from tuner.config import DataConfig
from tuner.data.datasets import load_official
from tuner.data.splits import load_splits


def test_noisy_digits_are_the_same_every_time_and_divided_as_said(tmp_path) -> None:
    config = DataConfig(source="noisy-digits")
    splits, again = load_splits(config, tmp_path), load_splits(config, tmp_path)
    assert len(splits.train.labels) == 500
    assert len(splits.val.labels) == 400
    assert splits.train.images.shape[1:] == (1, 12, 12)
    assert splits.fingerprint == again.fingerprint
    test = load_official(config, tmp_path, "test")
    assert test.fingerprint.startswith("c42341c6")
    assert torch.bincount(test.images.labels).min() > 80
