"""``issues.json``: what ``data issues`` found among the images of a run."""

from dataclasses import dataclass
from typing import Annotated

from tuner.config import Count
from tuner.run.layout import ISSUES
from tuner.run.run import Run
from tuner.run.trial import Amount
from tuner.schema import Bounds
from tuner.storage.records import find_record, write_record

Share = Annotated[float, Bounds(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelIssue:
    """An image whose label is probably wrong."""

    path: str
    """The user's own file, or which image it is of a data set that is known by name."""
    given: str
    """Its class."""
    suggested: str
    """The class that the trials' vote takes it for."""
    given_probability: Share
    """Probability of its own class, by the vote."""
    suggested_probability: Share
    picture: str = ""
    """PNG in base64; empty beyond the first ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplicateIssue:
    """A test image that is nearly the same as one of the others."""

    path: str
    """Path of the test image."""
    original: str
    """Path of the most similar image among those to train and to validate on."""
    test_class: str
    original_class: str
    similarity: Share
    """Correlation of their thumbnails."""
    picture: str = ""
    original_picture: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Issues:
    """All that was found."""

    trials: tuple[Amount, ...]
    """Whose vote judged the labels."""
    checked: Count
    """Images with a vote of networks that were not trained on them."""
    labels: tuple[LabelIssue, ...]
    """The likeliest errors first."""
    test_images: Amount
    """Number of test images that were compared; 0 where there are none."""
    duplicates: tuple[DuplicateIssue, ...]
    """The most similar first."""

    def write(self, run: Run) -> None:
        """Write the record into the run's folder, in the place of an earlier one."""
        write_record(run.path / ISSUES, self)


def find_issues(run: Run) -> Issues | None:
    """Read what ``Issues.write`` wrote; ``None`` where there is nothing.

    Raises:
        TunerError: If it is damaged.
    """
    return find_record(run.path / ISSUES, Issues)
