"""Decode the images once, and write training and validation images as arrays for workers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.gpu_parts import Judged, Report, Rows, Settings
from tuner.config import DataConfig
from tuner.data.splits import Splits, load_splits, load_test


def source_of(settings: Settings) -> DataConfig:
    """Return the configuration of the images."""
    return DataConfig(source=settings.data)


def load(settings: Settings) -> Splits:
    """Load the decoded images."""
    return load_splits(source_of(settings), Path(settings.data_dir))


def arrays_of(settings: Settings) -> Path:
    """Return the file of arrays that ``tests.benchmarks.gpu_parts.worker`` reads."""
    return Path(settings.data_dir) / "gpu-benchmark.npz"


def run(settings: Settings, report: Report) -> None:
    """Decode the images and write the arrays."""
    splits = load(settings)
    test = load_test(source_of(settings), Path(settings.data_dir))
    arrays_of(settings).parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        arrays_of(settings),
        train_images=splits.train.images.numpy(),
        train_labels=splits.train.labels.numpy(),
        val_images=splits.val.images.numpy(),
        val_labels=splits.val.labels.numpy(),
        classes=np.array(splits.classes),
        mean=np.array(splits.mean),
        std=np.array(splits.std),
    )
    report.figures = {
        "train": len(splits.train),
        "validation": len(splits.val),
        "test": len(test.images),
        "image_shape": list(splits.image_shape),
    }
    report.write()


def tables(figures: Mapping[str, Any]) -> Sequence[Rows]:
    """Return a table of the numbers of images."""
    rows = [(name, str(value)) for name, value in figures.items()]
    return [Rows(title="Images", headings=("", ""), rows=rows)]


def judge(figures: Mapping[str, Any]) -> Sequence[Judged]:
    """Return an empty list, because there is no target."""
    return []
