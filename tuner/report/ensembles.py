"""Read the folder of an ensemble for a page."""

import base64
from dataclasses import dataclass, field
from typing import Any

from tuner.config import Amount, Count, Metric, NonNegative, Positive, Share
from tuner.metrics.figures import Coverage, Difference, Gain, Interval, Intervals, Latency
from tuner.run import layout
from tuner.run.ensemble_record import Excluded, Skipped, images_called, single_called
from tuner.schema import build, quoted, to_plain
from tuner.storage.paths import (
    AnyPath,
    check_no_link,
    inside,
    read_bytes,
)
from tuner.storage.records import explaining_damage, read_record
from tuner.storage.spreadsheet import read_csv

MOST_MISTAKES = 40
PNG = b"\x89PNG\r\n\x1a\n"
"""First bytes of a PNG file."""
MOST_IMAGE_BYTES = 1_500_000
"""Maximum total bytes of the mistakes' images, before base64 encoding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Scores of class probabilities; see ``tuner.metrics.predict.Scores``."""

    accuracy: Share
    nll: NonNegative
    brier: NonNegative
    ece: NonNegative
    balanced_accuracy: Share | None = None
    macro_f1: Share | None = None
    worst_class: Share | None = None
    """All three are ``None`` in ensembles of earlier versions."""
    ece_equal_mass: NonNegative | None = None
    top3: Share | None = None

    def value(self, metric: Metric) -> float | None:
        """Return the value of a metric; ``None`` in ensembles of earlier versions."""
        value: float | None = getattr(self, metric)
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanMember:
    """Mean scores of the members."""

    val: Scores
    test: Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """The scores of one choice."""

    val: Scores
    crossfit: Scores | None = None
    test: Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """The scores of one member alone."""

    trial: Amount
    family: str
    weight: NonNegative
    temperature: Positive = 1.0
    val: Scores
    test: Scores
    contribution: Difference | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedMethod:
    """A row of the comparison."""

    method: str
    calibrated: bool
    members: tuple[Amount, ...]
    figures: Figures
    gain: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Accuracy of the first ``k`` members together."""

    k: Count
    accuracy: Share
    low: Share
    high: Share
    gain: Difference
    gain_low: Difference
    gain_high: Difference
    mcnemar_p: Share


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassAccuracy:
    """Accuracy on the test images of one class."""

    label: str = field(metadata={"key": "class"})
    accuracy: Share | None
    count: Amount

    def __post_init__(self) -> None:
        if self.count and self.accuracy is None:
            raise ValueError(f"per_class: {quoted(self.label)} has images, and no accuracy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """One bar of the reliability diagram."""

    low: Share
    high: Share
    count: Amount
    confidence: NonNegative | None
    accuracy: Share | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontierPoint:
    """Members that are best for their latency."""

    members: tuple[Amount, ...]
    latency_ms: NonNegative
    latency_256_ms: NonNegative | None = None
    val_accuracy: Share | None = None
    accuracy: Share
    val_metric: NonNegative | None = None
    metric: NonNegative | None = None
    """Values of the metric that chose the point; both ``None`` in earlier versions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """See ``tuner.ensemble.students.Contender``."""

    name: str
    val: Scores
    test: Scores | None = None
    num_parameters: Amount
    latency: Latency | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherComparison:
    """See ``tuner.ensemble.students.TeacherComparison``."""

    teacher: Contender
    student: Contender
    level: Share
    device: str
    val_gain: Interval
    test_gain: Interval | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplicatesNote:
    """How much the accuracy depends on images with near-duplicates in the training data."""

    images: Amount
    accuracy_of_these: Share
    accuracy_of_others: Share
    gain_of_others: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A choice by cross-fitted figures; see ``tuner.ensemble.verdict.Standing``."""

    method: str | None = None
    num_members: Amount


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether combining was worth it; see ``tuner.ensemble.verdict.Verdict``."""

    text: str
    top: Count
    asked: Standing
    advised: Standing

    @property
    def is_taken(self) -> bool:
        """Whether the request follows the advice; the best trial is a vote of one."""
        is_single = (self.asked.method, self.asked.num_members) == ("vote", 1)
        return self.advised == self.asked or (self.advised.method is None and is_single)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """A line of ``mistakes.csv``."""

    file: str
    true: str
    predicted: str
    confidence: str

    @property
    def share(self) -> float:
        """The confidence as a number."""
        if not 0 <= (share := float(self.confidence)) <= 1:
            raise ValueError(f"{quoted(self.confidence)} is not a confidence")
        return share


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleFigures:
    """The part of ``metrics.json`` that a page shows; it omits ``None``."""

    name: str | None = None
    """``None`` for the name of the folder."""
    run: str = ""
    method: str = "vote"
    metric: Metric = "accuracy"
    """Metric that chose it."""
    tta: str = "none"
    test_images: Amount | None = None
    is_val_seen: bool = False
    has_test: bool = True
    temperature: Positive = 1.0
    ensemble: Figures
    intervals: Intervals | None = None
    members: tuple[Member, ...]
    left_out: tuple[Excluded, ...] = ()
    best_single: Amount
    best_single_figures: Figures | None = None
    mean_member: MeanMember | None = None
    verdict: Verdict | None = None
    gain: Gain | None = None
    by_size: tuple[Size, ...] = ()
    per_class: tuple[ClassAccuracy, ...] = ()
    reliability: tuple[Bin, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    oracle: Share | None = None
    frontier: tuple[FrontierPoint, ...] = ()
    comparison: tuple[ComparedMethod, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    duplicates: DuplicatesNote | None = None
    teacher: TeacherComparison | None = None
    conditions: tuple[str, ...] = ()
    """Options in effect when members were chosen."""
    front: bool = False

    def __post_init__(self) -> None:
        if self.ensemble.test.value(self.metric) is None:
            raise ValueError(f"ensemble.test: lacks the {self.metric} that it was chosen by")
        if self.by_size and len(self.by_size) != len(self.members):
            raise ValueError(f"by_size: has not one row for each of {len(self.members)} members")

    @property
    def tested_on(self) -> str:
        """Name of the images that were not used for choosing; see ``images_called``."""
        return images_called(has_test=self.has_test, is_val_seen=self.is_val_seen)

    @property
    def single_called(self) -> str:
        """Name of the single trial that it is compared with; see ``single_called``."""
        return single_called(is_val_seen=self.is_val_seen)


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """A confusion matrix; rows are the true classes."""

    classes: list[str]
    counts: list[list[int]]


def read_figures(folder: AnyPath) -> EnsembleFigures:
    """Read the figures of an ensemble.

    Raises:
        TunerError: If they are damaged.
    """
    with explaining_damage(folder):
        check_no_link(folder.parent)
        check_no_link(folder)
    return read_record(folder / layout.METRICS, EnsembleFigures, is_strict=False)


def read_confusion(folder: AnyPath) -> Confusion | None:
    """Read the confusion matrix of an ensemble; ``None`` if there is none.

    Raises:
        TunerError: If it is damaged.
    """
    path = folder / layout.CONFUSION
    if not path.exists():
        return None
    with explaining_damage(path):
        head, *rows = _read_table(path)
        classes = head[1:]
        if [len(row) for row in rows] != [len(head)] * len(classes):
            raise ValueError(f"has not one row and one column for each of {len(classes)} classes")
        return Confusion(classes=classes, counts=[list(map(_count, row[1:])) for row in rows])


def read_ensemble(folder: AnyPath, figures: EnsembleFigures) -> dict[str, Any]:
    """Read an ensemble's confusion matrix and mistakes, in addition to its figures.

    Returns:
        ``figures`` as plain values, with ``classes``, ``confusion`` (rows are true classes) and
        ``mistakes``, each with its ``image`` as a data URI, which is empty if the page has no room
        for it; without those whose file is missing.

    Raises:
        TunerError: If a file is damaged.
    """
    ensemble = {key: value for key, value in to_plain(figures).items() if value is not None}
    ensemble.setdefault("name", folder.name)
    if confusion := read_confusion(folder):
        ensemble |= {"classes": confusion.classes, "confusion": confusion.counts}
    if (folder / layout.MISTAKES / layout.MISTAKES_TABLE).exists():
        with explaining_damage(folder / layout.MISTAKES):
            ensemble["mistakes"] = _read_mistakes(folder / layout.MISTAKES)
    return ensemble


def _count(cell: str) -> int:
    if not (cell.isascii() and cell.isdecimal() and len(cell) < 16):
        raise ValueError(f"{quoted(cell)} is not a number of images")
    return int(cell)


def _read_table(path: AnyPath) -> list[list[str]]:
    """Read the rows of a CSV file, which has at least a heading."""
    rows = read_csv(path)
    if not rows:
        raise ValueError(f"{path.name} is empty")
    return rows


def _read_mistakes(folder: AnyPath) -> list[dict[str, Any]]:
    check_no_link(folder)
    head, *rows = _read_table(folder / layout.MISTAKES_TABLE)
    mistakes = []
    room = MOST_IMAGE_BYTES
    for cells in rows[:MOST_MISTAKES]:
        row = build(Mistake, dict(zip(head, cells, strict=True)), is_strict=False)
        image = read_bytes(inside(folder, row.file))
        if not image.startswith(PNG):
            raise ValueError(f"{quoted(row.file)} is no PNG")
        uri = ""
        # Earlier versions wrote images of any size.
        if len(image) <= room:
            room -= len(image)
            uri = f"data:image/png;base64,{base64.b64encode(image).decode()}"
        mistakes.append(to_plain(row) | {"confidence": row.share, "image": uri})
    return mistakes
