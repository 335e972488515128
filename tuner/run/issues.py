"""``issues.json``: the result of ``data issues`` on the images of a run."""

from dataclasses import dataclass
from typing import Literal

from tuner.config import Amount, Count, Share
from tuner.run.layout import ISSUES
from tuner.run.run import Run
from tuner.storage.records import find_record

OriginalPart = Literal["training", "validation"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelIssue:
    """An image whose label is probably wrong."""

    path: str
    """The user's own file, or which image of a known data set it is."""
    given: str
    """The class of its label."""
    suggested: str
    """The class that the trials' vote predicts."""
    given_probability: Share
    """Probability that the vote gives the class of its label."""
    suggested_probability: Share
    picture: str = ""
    """PNG in base64; empty after the first few issues."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplicateIssue:
    """A test image that is nearly the same as a training or validation image."""

    path: str
    """Path of the test image."""
    original: str
    """Path of the most similar training or validation image."""
    original_part: OriginalPart | None = None
    """What the run used that image for; ``None`` in issues of earlier versions, which may name an
    image that the run did not use at all."""
    test_class: str
    original_class: str
    similarity: Share
    """Correlation of their thumbnails."""
    picture: str = ""
    original_picture: str = ""

    @property
    def shown_original(self) -> str:
        """The path of the original, which is marked if it is a validation image."""
        return self.original + (" (validation)" if self.original_part == "validation" else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Issues:
    """All issues that were found."""

    trials: tuple[Amount, ...]
    """The trials whose vote judged the labels."""
    checked: Count
    """Number of images with a vote of networks that were not trained on them."""
    labels: tuple[LabelIssue, ...]
    """The most likely errors first."""
    test_images: Amount
    """Number of test images that were compared; 0 if there are none."""
    duplicates: tuple[DuplicateIssue, ...]
    """The most similar first."""


def find_issues(run: Run) -> Issues | None:
    """Read the issues of a run; ``None`` if none were recorded.

    Raises:
        TunerError: If it is damaged.
    """
    return find_record(run.path / ISSUES, Issues)
