"""A run ranked by a different metric than the search used."""

from functools import cache
from pathlib import Path

import numpy as np

from tuner.config import Metric
from tuner.run.run import Run
from tuner.training.run_images import load_run_splits


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
