"""The images of a run, with its teacher's probabilities, and rankings that need the images."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from tuner.config import Metric
from tuner.data.splits import Splits, load_splits, located
from tuner.errors import TunerError
from tuner.run.run import Run
from tuner.run.teacher_probs import read_teacher_probs


def load_run_splits(run: Run, data: str | None, data_dir: Path | None) -> Splits:
    """Load the images of a run, and check that they are those that it was trained on.

    Args:
        run: The run.
        data: Where its images are now; ``None`` if they have not moved.
        data_dir: Likewise, for downloads and decoded images.

    Raises:
        DataError: If they cannot be read, or are others.
    """
    record = run.record
    splits = load_splits(*located(record.data, record.data_dir, data, data_dir))
    splits.expect(record.data_fingerprint, record.split_fingerprint, run.path)
    return splits


def with_teacher_probs(splits: Splits, run: Run) -> Splits:
    """Add the teacher's probabilities to a run's images; return them unchanged without a teacher.

    Raises:
        TunerError: If the file is missing or damaged.
    """
    teacher = run.record.teacher
    if teacher is None:
        return splits
    probs = read_teacher_probs(run.path, teacher)
    shapes = tuple(probs.train.shape), tuple(probs.val.shape)
    if shapes != tuple((len(part), splits.num_classes) for part in (splits.train, splits.val)):
        raise TunerError(
            f"{run.path}: its teacher's probabilities, of shapes {shapes}, are of other images"
        )
    assert teacher.probs_sha256 is not None, "it was read"
    return replace(splits, teacher=probs.train, teacher_fingerprint=teacher.probs_sha256)


def ranked_by(
    run: Run, metric: Metric | None, *, data: str | None = None, data_dir: Path | None = None
) -> Run:
    """Return a run with its trials ranked by ``metric``; ``None`` leaves it unchanged.

    Metrics that trials of an earlier version lack are computed from their validation probabilities,
    which requires reading the images.

    Args:
        run: The run.
        metric: The metric to rank by.
        data: Where the run's images are now; ``None`` if they have not moved.
        data_dir: Likewise, for downloads and decoded images.
    """
    if metric is None:
        return run

    @cache
    def val_labels() -> np.ndarray:
        return load_run_splits(run, data, data_dir).val.labels.cpu().numpy()

    return run.by(metric, val_labels)
