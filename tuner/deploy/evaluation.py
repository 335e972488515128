"""Evaluate a finished ensemble on labelled images: figures, mistakes and robustness."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuner.config import Tta
from tuner.data.cache import Fingerprint
from tuner.data.labelled import Labelled, LabelledPart, labels_among
from tuner.data.listing import PARTS
from tuner.deploy.corruption import Corruption, Kind, all_corruptions
from tuner.deploy.predictor import Ensemble, Vote
from tuner.deploy.stream import ImageFile, predict_files
from tuner.errors import DataError, StorageError
from tuner.metrics.bootstrap import bootstrap
from tuner.metrics.calibration import Bin, accuracy_at_coverage, reliability
from tuner.metrics.figures import Coverage, Interval, Intervals
from tuner.metrics.intervals import LEVEL, wilson
from tuner.metrics.predict import Scores, confusion_matrix, mistakes, score
from tuner.metrics.significance import (
    NO_GAIN,
    contributions,
    disagreement,
    error_correlation,
    mcnemar,
    oracle_accuracy,
    paired_gain,
)
from tuner.run.ensembles import run_of
from tuner.run.layout import EVALUATIONS
from tuner.run.run_record import Reading
from tuner.schema import to_json
from tuner.storage.files import append_line
from tuner.storage.paths import AnyPath
from tuner.voting.temperature import soften_each


@dataclass(frozen=True, kw_only=True, slots=True)
class AccuracyInterval:
    """An accuracy with its interval (Wilson 1927)."""

    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberFigures:
    """The figures of one member alone."""

    member: str
    """Such as ``trial 3``."""
    weight: float
    scores: Scores
    interval: AccuracyInterval
    contribution: float | None
    """Accuracy with it minus accuracy without it; ``None`` for the only member."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassFigures:
    """The figures of one class."""

    label: str
    count: int
    interval: AccuracyInterval | None
    """``None`` if the class has no images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """A misclassified image."""

    path: str
    """The user's path, or the image's position in a data set that is known by name."""
    true: str
    predicted: str
    confidence: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Corrupted:
    """Accuracy on corrupted images."""

    kind: Kind
    severity: int
    accuracy: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The figures of an ensemble on labelled images."""

    ensemble: AnyPath
    source: str
    part: LabelledPart
    fingerprint: str
    """SHA-256 of the prepared images, their labels and classes, as for a part of a data set."""
    is_own_test: bool
    """Whether these are the test images of the ensemble's run."""
    has_own_test: bool
    """Whether the test images of the ensemble's run are among them."""
    is_trained_on: bool
    """Whether the ensemble may have been trained on the images, or chosen by them."""
    tta: Tta
    images: int
    unreadable: tuple[str, ...]
    """Why files could not be read, with their names; ``images`` does not count them."""
    classes: tuple[str, ...]
    scores: Scores
    interval: AccuracyInterval
    intervals: Intervals
    """Intervals of the figures that are not a share of the images."""
    members: tuple[MemberFigures, ...]
    gain_over_best_member: Interval
    """Gain in accuracy over the first member, the first of them in the ranking of their run."""
    gain_over_mean_member: Interval
    mcnemar_p: float
    """p-value against the first member."""
    per_class: tuple[ClassFigures, ...]
    reliability: tuple[Bin, ...]
    coverage: tuple[Coverage, ...]
    oracle: float
    """Share of images that at least one member classifies correctly."""
    disagreement: list[list[float]]
    error_correlation: list[list[float | None]]
    confusion: Tensor
    """Counts, shape (K, K), rows true."""
    mistakes: tuple[Mistake, ...]
    """All mistakes, the most confident first."""
    corrupted: tuple[Corrupted, ...]
    """Empty unless requested."""

    @property
    def corrupted_accuracy(self) -> float | None:
        """Mean accuracy over kinds and severities."""
        shares = [entry.accuracy for entry in self.corrupted]
        return sum(shares) / len(shares) if shares else None

    def to_plain(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        plain = asdict(self)
        for entry in plain["per_class"]:
            entry["class"] = entry.pop("label")
        return plain | {
            "ensemble": str(self.ensemble),
            "level": LEVEL,
            "confusion": self.confusion.tolist(),
            "corrupted_accuracy": self.corrupted_accuracy,
        }


Progress = Callable[[int], None]


def evaluate(
    ensemble: Ensemble,
    labelled: Labelled,
    *,
    tta: Tta | None = None,
    corrupt: bool = False,
    progress: Progress = lambda done: None,
) -> Evaluation:
    """Measure an ensemble on labelled images; ``enter`` then records the evaluation.

    Args:
        ensemble: The ensemble to measure.
        labelled: Images of some or all of the ensemble's classes, in any order.
        tta: As for ``Ensemble.predict``.
        corrupt: Whether to measure it on corrupted images, too.
        progress: Called with the number of images done.

    Raises:
        DataError: If there is a class that the ensemble lacks, or no image can be read.
    """
    truth = labels_among(labelled, ensemble.classes)
    corruptions = list(all_corruptions()) if corrupt else []
    hits = torch.zeros(len(corruptions), dtype=torch.long)
    fingerprint = Fingerprint()
    votes: list[Vote] = []
    readable: list[Tensor] = []
    unreadable = labelled.broken
    done = 0
    for positions, pixels, vote, errors in _votes(ensemble, labelled, tta):
        is_read = torch.tensor([error is None for error in errors], dtype=torch.bool)
        left = iter(pixels)
        for position, error in zip(positions.tolist(), errors, strict=True):
            fingerprint.place(position, next(left) if error is None else None)
        votes.append(vote)
        readable.append(positions[is_read])
        unreadable += filter(None, errors)
        done += len(errors)
        for number, corruption in enumerate(corruptions if len(pixels) else ()):
            hits[number] += _hits(ensemble, corruption, pixels, truth[positions[is_read]], tta)
        progress(done)
    kept = torch.cat(readable)
    if not len(kept):
        raise DataError(f"{labelled.source}: no image could be read, such as {unreadable[0]}")
    return _assess(
        ensemble,
        labelled,
        Vote(
            probs=torch.cat([vote.probs for vote in votes]),
            members=torch.cat([vote.members for vote in votes], dim=1),
        ),
        truth[kept],
        kept,
        fingerprint=fingerprint.of(labelled.labels[kept.sort().values], labelled.classes),
        unreadable=tuple(unreadable),
        tta=ensemble.tta if tta is None else tta,
        corrupted=tuple(
            Corrupted(kind=c.kind, severity=c.severity, accuracy=count / len(kept))
            for c, count in zip(corruptions, hits.tolist(), strict=True)
        ),
    )


def enter(evaluation: Evaluation) -> None:
    """Enter an evaluation in the ensemble's ledger, and in the run's if it read its test images.

    Raises:
        StorageError: If a ledger cannot be written.
    """
    reading = Reading(
        by="evaluate",
        name=evaluation.ensemble.name,
        data=evaluation.source,
        part=evaluation.part,
        fingerprint=evaluation.fingerprint,
        images=evaluation.images,
        unreadable=len(evaluation.unreadable),
        tta=evaluation.tta,
        accuracy=evaluation.scores.accuracy,
        nll=evaluation.scores.nll,
        corrupted_accuracy=evaluation.corrupted_accuracy,
    )
    ledger = evaluation.ensemble / EVALUATIONS
    try:
        append_line(ledger, to_json(reading))
    except OSError as error:
        raise StorageError(
            f"{ledger}: cannot be written ({error.strerror or error}), and every evaluation is "
            "entered there. Copy the ensemble to a folder of your own."
        ) from error
    if evaluation.has_own_test and (run := run_of(evaluation.ensemble)) is not None:
        run.log_test_reading(reading)


def _votes(
    ensemble: Ensemble, labelled: Labelled, tta: Tta | None
) -> Iterator[tuple[Tensor, Tensor, Vote, tuple[str | None, ...]]]:
    """Yield the predictions batch by batch.

    Yields:
        Positions of the images, pixels of the readable ones, the vote on these, and for each image
        why it could not be read, or ``None``.
    """
    if labelled.images is None:
        order: list[int] = []

        def files() -> Iterator[ImageFile]:
            for position, name, content in labelled.read():
                order.append(position)
                yield name, content

        done = 0
        for batch in predict_files(ensemble, files(), tta=tta):
            positions = torch.tensor(order[done : done + len(batch.paths)])
            done += len(batch.paths)
            yield positions, batch.pixels, batch.vote, batch.errors
        return
    channels = labelled.images.shape[1]
    if channels != ensemble.image_shape[0]:
        raise DataError(
            f"{labelled.source}: has images of {channels} channels, the ensemble takes "
            f"{ensemble.image_shape[0]}"
        )
    for start in range(0, len(labelled), ensemble.batch_size):
        pixels = labelled.images[start : start + ensemble.batch_size]
        positions = torch.arange(start, start + len(pixels))
        yield positions, pixels, ensemble.vote(pixels, tta=tta), (None,) * len(pixels)


def _hits(
    ensemble: Ensemble, corruption: Corruption, pixels: Tensor, truth: Tensor, tta: Tta | None
) -> int:
    predicted = ensemble.vote(corruption(pixels), tta=tta).probs.argmax(dim=1)
    return int((predicted == truth).sum())


def _assess(
    ensemble: Ensemble,
    labelled: Labelled,
    vote: Vote,
    truth: Tensor,
    kept: Tensor,
    *,
    fingerprint: str,
    unreadable: tuple[str, ...],
    tta: Tta,
    corrupted: tuple[Corrupted, ...],
) -> Evaluation:
    """Score a vote on labelled images."""
    confusion = confusion_matrix(vote.probs, truth, len(ensemble.classes))
    correct = vote.probs.argmax(dim=1) == truth
    alone = vote.members.argmax(dim=2) == truth
    mixed = soften_each(vote.members, ensemble.temperatures)
    changes = contributions(mixed, ensemble.weights, truth)
    is_single = len(ensemble.members) == 1
    data, place = ensemble.record.data, _place_in_data(ensemble, labelled)
    is_own_test = fingerprint in _test_fingerprints(ensemble)
    return Evaluation(
        ensemble=ensemble.path,
        source=labelled.source,
        part=labelled.part,
        fingerprint=fingerprint,
        is_own_test=is_own_test,
        has_own_test=is_own_test
        or (place == Path() and data is not None and data.test_fingerprint is not None),
        is_trained_on=(
            place is not None
            and labelled.part == "all"
            and not is_own_test
            and not any(PARTS.get(folder.lower()) == "test" for folder in place.parts)
        ),
        tta=tta,
        images=len(truth),
        unreadable=unreadable,
        classes=ensemble.classes,
        scores=score(vote.probs, truth),
        interval=_interval(correct),
        intervals=bootstrap(vote.probs, truth),
        members=tuple(
            MemberFigures(
                member=member.name,
                weight=member.weight,
                scores=score(probs, truth),
                interval=_interval(right),
                contribution=change,
            )
            for member, probs, right, change in zip(
                ensemble.members, vote.members, alone, changes, strict=True
            )
        ),
        gain_over_best_member=NO_GAIN if is_single else paired_gain(correct, alone[0]),
        gain_over_mean_member=(
            NO_GAIN if is_single else paired_gain(correct, alone.double().mean(dim=0))
        ),
        mcnemar_p=mcnemar(correct, alone[0]),
        per_class=tuple(
            ClassFigures(
                label=label,
                count=int((truth == index).sum()),
                interval=_interval(correct[truth == index]) if (truth == index).any() else None,
            )
            for index, label in enumerate(ensemble.classes)
        ),
        reliability=tuple(reliability(vote.probs, truth)),
        coverage=tuple(accuracy_at_coverage(vote.probs, truth)),
        oracle=oracle_accuracy(vote.members, truth),
        disagreement=disagreement(vote.members).tolist(),
        error_correlation=error_correlation(vote.members, truth),
        confusion=confusion,
        mistakes=tuple(_mistakes(ensemble, labelled, vote, truth, kept)),
        corrupted=corrupted,
    )


def _interval(correct: Tensor) -> AccuracyInterval:
    accuracy = correct.double().mean().item()
    low, high = wilson(accuracy, len(correct))
    return AccuracyInterval(accuracy=accuracy, low=low, high=high)


def _mistakes(
    ensemble: Ensemble, labelled: Labelled, vote: Vote, truth: Tensor, kept: Tensor
) -> Iterator[Mistake]:
    confidence, predicted = vote.probs.max(dim=1)
    for index in mistakes(vote.probs, truth).tolist():
        position = int(kept[index])
        yield Mistake(
            path=labelled.name(position),
            true=ensemble.classes[int(truth[index])],
            predicted=ensemble.classes[int(predicted[index])],
            confidence=confidence[index].item(),
        )


def _place_in_data(ensemble: Ensemble, labelled: Labelled) -> Path | None:
    """Return where images lie in the data of the ensemble's run; ``None`` if elsewhere."""
    data = ensemble.record.data
    # Data sets known by name have no path, and ensembles of earlier versions do not record theirs.
    if labelled.listing is None or data is None or not Path(data.source).is_absolute():
        return None
    try:
        return Path(labelled.source).resolve().relative_to(Path(data.source).resolve())
    except ValueError:  # They lie elsewhere, or the record names no path that can exist.
        return None


def _test_fingerprints(ensemble: Ensemble) -> set[str]:
    """Return the known fingerprints of the test images of the ensemble's run."""
    data = ensemble.record.data
    known = {data.test_fingerprint if data else ""}
    run = run_of(ensemble.path)
    if run is not None:
        # Those of evaluate may be of more, fewer or changed images.
        known |= {
            reading.fingerprint for reading in run.test_readings() if reading.by != "evaluate"
        }
    return {fingerprint for fingerprint in known if fingerprint}
