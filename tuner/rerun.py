"""Train one trial of a run again, alone, and hold it against what was recorded."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from tuner.data import load_splits
from tuner.run import Run
from tuner.train import train
from tuner.trial import EpochRow
from tuner.weights import load_start


def rerun(run: Run, number: int, device: torch.device) -> Iterator[tuple[EpochRow, EpochRow]]:
    """Train trial ``number`` as far as it came, with its seed and as many threads.

    Yields:
        Each epoch as recorded and as it came out now. On the same CPU and versions, losses and
        accuracies are the same numbers.

    Raises:
        UsageError: If there is no such trial.
        DataError: If the images, or the weights it started from, have changed since.
    """
    trial = run.trial(number)
    splits = load_splits(run.record.data, Path(run.record.data_dir))
    splits.expect(run.record.data_fingerprint, run.record.split_fingerprint, run.path)
    start = load_start(trial.config.model, splits.classes, splits.image_shape, run.path.parent)
    torch.set_num_threads(run.record.hardware["threads_per_trial"])
    with contextlib.closing(train(trial.config, splits, device, start=start)) as epochs:
        for recorded, epoch in zip(trial.history, epochs, strict=False):
            yield recorded, epoch.figures
