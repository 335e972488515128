"""What the folder of an ensemble holds, for a page."""

import base64
from dataclasses import dataclass, field
from typing import Annotated, Any

from tuner.config import Count, Metric, NonNegative, Positive
from tuner.run import layout
from tuner.run.trial import Amount
from tuner.schema import Bounds, build, quoted, to_plain
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
"""With which such a picture begins."""
MOST_IMAGE_BYTES = 1_500_000
"""Most bytes of the mistakes' pictures together, before they are written as text."""


Share = Annotated[float, Bounds(ge=0, le=1)]
Difference = Annotated[float, Bounds(ge=-1, le=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """How good class probabilities are; see ``tuner.metrics.predict.Scores``."""

    accuracy: Share
    nll: NonNegative
    brier: NonNegative
    ece: NonNegative
    balanced_accuracy: Share | None = None
    macro_f1: Share | None = None
    worst_class: Share | None = None
    """``None`` in ensembles of earlier versions, all three."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """The scores of one choice."""

    val: Scores
    crossfit: Scores | None = None
    test: Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A member, alone."""

    trial: Amount
    family: str
    weight: NonNegative
    val: Scores
    test: Scores
    contribution: Difference | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A gain in accuracy with its interval."""

    gain: Difference
    low: Difference
    high: Difference


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """In test accuracy."""

    over_best_single: Interval
    over_mean_member: Interval
    level: Share
    mcnemar_p: Share


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedMethod:
    """A row of the comparison."""

    method: str
    calibrated: bool
    members: tuple[Amount, ...]
    figures: Figures
    gain: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Excluded:
    """A trial that is no member, and why."""

    trial: Amount
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A method that has no row in the comparison, and why."""

    method: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What the first ``k`` members reach together."""

    k: Count
    accuracy: Share
    low: Share
    high: Share
    gain: Difference | None = None
    gain_low: Difference | None = None
    gain_high: Difference | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassAccuracy:
    """The test images of one class."""

    label: str = field(metadata={"key": "class"})
    accuracy: Share | None
    count: Amount


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """One bar of the reliability diagram."""

    low: Share
    high: Share
    count: Amount
    confidence: NonNegative | None
    accuracy: Share | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """The accuracy on the surest images."""

    coverage: Share
    accuracy: Share


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontierPoint:
    """The members that are best for their time."""

    members: tuple[Amount, ...]
    latency_ms: NonNegative
    accuracy: Share


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
            raise ValueError(f"{quoted(self.confidence)} is no confidence")
        return share


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleFigures:
    """What a page shows of ``metrics.json``; ``None`` is left out of it."""

    name: str | None = None
    """``None`` for that of the folder."""
    method: str = "vote"
    metric: Metric = "accuracy"
    """What it was chosen by."""
    test_images: Amount | None = None
    is_val_seen: bool = False
    has_test: bool = True
    temperature: Positive = 1.0
    ensemble: Figures
    members: tuple[Member, ...]
    left_out: tuple[Excluded, ...] = ()
    best_single: Amount
    gain: Gain | None = None
    by_size: tuple[Size, ...] = ()
    per_class: tuple[ClassAccuracy, ...] = ()
    reliability: tuple[Bin, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    oracle: Share | None = None
    frontier: tuple[FrontierPoint, ...] = ()
    comparison: tuple[ComparedMethod, ...] = ()
    skipped: tuple[Skipped, ...] = ()


def read_ensemble(folder: AnyPath) -> dict[str, Any]:
    """Read an ensemble's figures, its confusion matrix and its mistakes.

    Returns:
        ``EnsembleFigures`` as plain values, with ``classes`` and ``confusion``, rows true, and
        ``mistakes``, each with its ``image`` as a data URI; without those whose file is not there.

    Raises:
        TunerError: If a file is damaged.
    """
    with explaining_damage(folder):
        check_no_link(folder.parent)
        check_no_link(folder)
    figures = read_record(folder / layout.METRICS, EnsembleFigures, is_strict=False)
    ensemble = {key: value for key, value in to_plain(figures).items() if value is not None}
    ensemble.setdefault("name", folder.name)
    confusion = folder / layout.CONFUSION
    if confusion.exists():
        with explaining_damage(confusion):
            ensemble |= _read_confusion(confusion)
    if (folder / layout.MISTAKES / layout.MISTAKES_TABLE).exists():
        with explaining_damage(folder / layout.MISTAKES):
            ensemble["mistakes"] = _read_mistakes(folder / layout.MISTAKES)
    return ensemble


def _read_confusion(path: AnyPath) -> dict[str, Any]:
    head, *rows = _read_table(path)
    classes = head[1:]
    if [len(row) for row in rows] != [len(head)] * len(classes):
        raise ValueError(f"has not one row and one column for each of {len(classes)} classes")
    return {"classes": classes, "confusion": [list(map(_count, row[1:])) for row in rows]}


def _count(cell: str) -> int:
    if not (cell.isascii() and cell.isdecimal() and len(cell) < 16):
        raise ValueError(f"{quoted(cell)} is no number of images")
    return int(cell)


def _read_table(path: AnyPath) -> list[list[str]]:
    """Read the rows of a CSV, at least its heading."""
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
        image = read_bytes(inside(folder, row.file), most=MOST_IMAGE_BYTES)
        if not image.startswith(PNG):
            raise ValueError(f"{quoted(row.file)} is no PNG")
        room -= len(image)
        if room < 0:
            break
        mistakes.append(
            {
                "true": row.true,
                "predicted": row.predicted,
                "confidence": row.share,
                "image": f"data:image/png;base64,{base64.b64encode(image).decode()}",
            }
        )
    return mistakes
