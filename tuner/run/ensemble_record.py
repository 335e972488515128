"""``ensemble.json``: what an ensemble needs to predict, and how it was made."""

import math
from dataclasses import dataclass
from typing import Annotated

from tuner.config import (
    LARGEST_IMAGE,
    MOST_FOLDS,
    Amount,
    Count,
    ModelConfig,
    NonNegative,
    Positive,
    Precision,
    Share,
    Tta,
)
from tuner.errors import UsageError
from tuner.run.layout import ENSEMBLE
from tuner.schema import Bounds, Opaque
from tuner.storage.paths import AnyPath
from tuner.storage.records import find_record

SCHEMA_VERSION = 1
"""Version of ``ensemble.json``; a later one is refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleMember:
    """One network of an ensemble."""

    file: str
    """Path relative to the ensemble's folder."""
    model: Annotated[ModelConfig, Opaque] | None = None
    """``None`` in ensembles of earlier versions; then only the file describes it."""
    sha256: str | None = None
    """SHA-256 of the file; ``None`` if it was not recorded."""
    trial: Amount | None
    """``None`` for a soup."""
    soup_of: tuple[Amount, ...] = ()
    """Trials of a soup; empty for other members."""
    weight: NonNegative
    temperature: Positive
    precision: Precision
    folds: Annotated[int, Bounds(ge=0, le=MOST_FOLDS)] = 0
    """Number of networks in its file whose probabilities are averaged; 0 for a single one."""
    floor: Share = 0.0
    """Value to which probabilities are raised before mixing, as in validation; above 0 only if an
    earlier version stored those of the validation images in float16."""

    @property
    def name(self) -> str:
        """Name in tables: ``trial 3``, or ``soup of 1, 4``."""
        if self.soup_of:
            return f"soup of {', '.join(map(str, self.soup_of))}"
        return f"trial {self.trial}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessingRecord:
    """How images are prepared for the networks."""

    image_shape: tuple[Count, Count, Count]
    """(C, H, W) of the networks' images; others are resized."""
    resize: str = "squash"
    """How images of other shapes are resized."""
    black: float | None = None
    white: float | None = None
    """Values that become 0 and 255, if training images are deeper than 8 bits."""
    mean: tuple[float, ...]
    std: tuple[Positive, ...]
    """Mean and deviation per channel, of the best single candidate."""
    tta: Tta

    def __post_init__(self) -> None:
        if (side := max(self.image_shape[1:])) > LARGEST_IMAGE:
            raise ValueError(f"image_shape: {side} pixels a side are more than {LARGEST_IMAGE}")
        if self.black is None and self.white is None:
            return
        if self.black is None or self.white is None or self.black >= self.white:
            raise ValueError(f"black {self.black} is not below white {self.white}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRecord:
    """The data on which an ensemble was trained, chosen and tested."""

    source: str
    fingerprint: str
    split_fingerprint: str
    test_fingerprint: str | None
    """``None`` without test images."""
    train_images: Amount
    val_images: Amount
    test_images: Amount


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRecord:
    """The file with which a loaded ensemble checks itself."""

    file: str
    """Path relative to the ensemble's folder."""
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleRecord:
    """Contents of ``ensemble.json``."""

    schema_version: Count = SCHEMA_VERSION
    run: str
    """Name of the run."""
    made: str
    """ISO 8601, UTC."""
    made_by: str = ""
    """Name and version of the program; empty in ensembles of earlier versions."""
    method: str
    classes: tuple[str, ...]
    image_size: Count | None = None
    """As in the run's ``DataConfig``."""
    temperature: Positive
    """The temperature of the vote."""
    preprocessing: PreprocessingRecord
    members: tuple[EnsembleMember, ...]
    data: DataRecord | None = None
    probe: ProbeRecord | None = None

    def __post_init__(self) -> None:
        total = sum(member.weight for member in self.members)
        # The tolerance of ``soft_vote``.
        if not math.isclose(total, 1, abs_tol=1e-4):
            raise ValueError(f"members: their weights sum to {total:g}, not to 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Excluded:
    """A trial that is not a member, and why, in ``metrics.json``."""

    trial: Amount
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A method without a row in the comparison, and why, in ``metrics.json``."""

    method: str
    reason: str


def images_called(*, has_test: bool, is_val_seen: bool) -> str:
    """Return the name of the images behind an ensemble's figures, other than validation figures.

    Args:
        has_test: Whether the data set has test images; if not, they are the validation images.
        is_val_seen: Whether the validation images were trained on.
    """
    return "test" if has_test else "training" if is_val_seen else "held-out"


def single_called(*, is_val_seen: bool) -> str:
    """Return the name of the single trial that an ensemble is compared with.

    Args:
        is_val_seen: Whether the validation images were trained on; then no trial is the best.
    """
    return "first" if is_val_seen else "best single"


def find_ensemble_record(folder: AnyPath) -> EnsembleRecord | None:
    """Read the record of an ensemble; ``None`` if there is none.

    Unknown keys are ignored: later versions may record more about the same ensemble.

    Raises:
        UsageError: If it was written by a version that this one cannot read.
        TunerError: If it is damaged.
    """
    return find_record(folder / ENSEMBLE, EnsembleRecord, is_strict=False, version=SCHEMA_VERSION)


def read_ensemble_record(folder: AnyPath) -> EnsembleRecord:
    """Read the record of an ensemble that must be there.

    Raises:
        UsageError: If there is none, or as ``find_ensemble_record``.
        TunerError: If it is damaged.
    """
    record = find_ensemble_record(folder)
    if record is None:
        raise UsageError(f"{folder}: no ensemble here (no {ENSEMBLE})")
    return record
