"""Labelled images that a finished classifier is measured on: the one place that reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tuner.config import DataConfig
from tuner.data.datasets import load_official
from tuner.data.decoding import image_suffixes
from tuner.data.known import KNOWN
from tuner.data.trees import suffix_of
from tuner.errors import DataError
from tuner.schema import did_you_mean

LabelledPart = Literal["test", "all"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """Images with their classes: in files, or decoded where a data set is known by name."""

    source: str
    """Name of the data set, or the folder in full."""
    part: LabelledPart
    """``all`` where the data have no parts."""
    classes: tuple[str, ...]
    labels: Tensor
    """int64, shape (N,), positions in ``classes``."""
    files: tuple[str, ...] = ()
    """Each image's file, as the user would write it."""
    images: Tensor | None = None
    """uint8, shape (N, C, H, W), where there are no files."""

    def __len__(self) -> int:
        return len(self.labels)


def find_labelled(source: str, size: int, data_dir: Path) -> Labelled:
    """Find the images to measure on: the test part where there is one, else all of them.

    Args:
        source: ``cifar10``, ``cifar100``, ``digits``, or a folder.
        size: In pixels, of a data set that is known by name.
        data_dir: Where downloads and decoded images are kept.

    Raises:
        DataError: If there are none.
    """
    if source in KNOWN:
        official = load_official(DataConfig(source=source, image_size=size), data_dir, "test")
        return Labelled(
            source=source,
            part="test",
            classes=official.classes,
            labels=official.images.labels,
            images=official.images.images,
        )
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"unknown dataset {source!r}{did_you_mean(source, KNOWN) or '.'} Give "
            f"{', '.join(KNOWN)} or a folder of class folders."
        )
    has_test = (folder / "test").is_dir()
    if (folder / "train").is_dir() and not has_test:
        raise DataError(f"{folder}: has no test images; to measure on others, name their folder")
    root = folder / "test" if has_test else folder
    classes = sorted(path.name for path in root.iterdir() if _is_shown(path) and path.is_dir())
    found = [_files(root / name) for name in classes]
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(f) for f in found]))
    if not len(labels):
        known = " ".join(sorted(image_suffixes()))
        raise DataError(f"{root}: holds no images in class folders; they end in {known}")
    return Labelled(
        source=str(folder.absolute()),
        part="test" if has_test else "all",
        classes=tuple(classes),
        labels=labels,
        files=tuple(file for files in found for file in files),
    )


def check_classes(labelled: Labelled, known: Sequence[str]) -> Tensor:
    """Return each image's position among the classes of a classifier, int64, shape (N,).

    Raises:
        DataError: If the images have a class that the classifier lacks.
    """
    counts = labelled.labels.bincount(minlength=len(labelled.classes)).tolist()
    for name, count in zip(labelled.classes, counts, strict=True):
        if count and name not in known:
            hint = did_you_mean(name, known) or f"; it has {', '.join(known[:20])}"
            raise DataError(
                f"{labelled.source}: class {name!r} is not one of the ensemble's{hint}. Rename its "
                "folder or leave it out."
            )
    positions = [known.index(name) if name in known else -1 for name in labelled.classes]
    return torch.tensor(positions)[labelled.labels]


def _files(folder: Path) -> list[str]:
    paths = (path for path in folder.iterdir() if suffix_of(path.name) in image_suffixes())
    return sorted(str(path) for path in paths if _is_shown(path) and path.is_file())


def _is_shown(path: Path) -> bool:
    return not path.name.startswith(".")
