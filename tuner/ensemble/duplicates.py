"""Test images that a model may know from its training: near-duplicates, from the user's list.

In CIFAR, 3 % (CIFAR-10) and 10 % (CIFAR-100) of the test images have near-duplicates in the
training data (Barz & Denzler 2020). Their lists are ``meta/duplicates_cifar10.csv`` and
``meta/duplicates_cifar100.csv`` of github.com/cvjena/cifair.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tuner.errors import UsageError
from tuner.metrics.figures import Interval
from tuner.metrics.significance import paired_gain
from tuner.schema import quoted, whole_number

NUMBERED = ("cifar10", "cifar100")
"""Data sets with numbered test images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplicatesNote:
    """Accuracy on and off the images that have near-duplicates in the training data."""

    file: str
    images: int
    """Number of listed test images."""
    accuracy_of_these: float
    accuracy_of_others: float
    gain_of_others: Interval
    """Gain over the best single candidate, on the images that are not listed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """The user's list of duplicates."""

    path: Path
    positions: list[int]
    """Positions of test images, from 0, ascending."""

    def expect(self, num_images: int) -> None:
        """Make sure that the list fits a test set of this size.

        Raises:
            UsageError: If it goes beyond them, or leaves none.
        """
        if self.positions[-1] >= num_images or len(self.positions) == num_images:
            raise UsageError(
                f"--duplicates {self.path}: lists {len(self.positions)} test images, up to number "
                f"{self.positions[-1]}; there are {num_images}. Give the list of this data set."
            )

    def note(self, correct: Tensor, single_correct: Tensor) -> DuplicatesNote:
        """Score the listed test images separately from the others.

        Args:
            correct: Whether the vote gets each image right, bool, shape (N,).
            single_correct: The same for the best single candidate.
        """
        is_listed = torch.zeros_like(correct)
        is_listed[self.positions] = True
        return DuplicatesNote(
            file=str(self.path),
            images=len(self.positions),
            accuracy_of_these=correct[is_listed].double().mean().item(),
            accuracy_of_others=correct[~is_listed].double().mean().item(),
            gain_of_others=paired_gain(correct[~is_listed], single_correct[~is_listed]),
        )


def read_duplicates(path: Path, source: str) -> Duplicates:
    """Read the positions of test images, from 0: a CSV's first column, with or without a heading.

    Raises:
        UsageError: If the file is missing or holds no positions, or ``source`` numbers no images.
    """
    if source not in NUMBERED:
        raise UsageError(
            f"--duplicates: numbers the test images of {' and '.join(NUMBERED)}; this run's are "
            f"those of {source}"
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            cells = [row[0].strip() for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--duplicates {path}: cannot be read: {error}") from None
    rows = cells if cells and whole_number(cells[0]) is not None else cells[1:]
    wrong = [cell for cell in rows if whole_number(cell) is None]
    if wrong or not rows:
        problem = f"{quoted(wrong[0])} is not a test image's number" if wrong else "has no numbers"
        raise UsageError(
            f"--duplicates {path}: {problem}. The first column numbers test images from 0."
        )
    return Duplicates(path=path, positions=sorted({whole_number(cell) or 0 for cell in rows}))
