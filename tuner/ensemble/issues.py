"""Errors in a run's data: wrong labels, by its trials' vote, and copies among the test images.

The vote judges images that its networks were not trained on: the validation images, which are all
but the test images if a run has folds.
"""

import base64
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tuner.data.cache import Images
from tuner.data.datasets import DatasetPart, load_official
from tuner.data.decoding import image_of
from tuner.data.near_duplicates import near_duplicates
from tuner.data.splits import Splits, load_test, located
from tuner.ensemble.candidates import read_candidate
from tuner.errors import NoUsableTrials
from tuner.run.digests import Damage, DamagedError
from tuner.run.issues import DuplicateIssue, Issues, LabelIssue, OriginalPart
from tuner.run.layout import ISSUES
from tuner.run.run import Run
from tuner.run.run_record import Reading
from tuner.run.trial import TrialRecord
from tuner.storage.records import write_record
from tuner.training.run_images import load_run_splits
from tuner.voting.label_errors import label_errors

MOST_PICTURES = 100
"""Maximum number of images of each kind that the record stores as pictures."""
PICTURE_SIDE = 96
"""Maximum side of a picture in pixels."""


def look_for_issues(
    run: Run,
    *,
    top: int,
    data: str | None = None,
    data_dir: Path | None = None,
) -> Issues:
    """Find images with probably wrong labels, and test images that also occur among the others.

    The record is written into the run. The test images are compared with those of the search, which
    is logged as a reading; no network sees them, and their labels decide nothing.

    Args:
        run: The run whose trials judge.
        top: Maximum number of trials that vote, the best ones.
        data: Where the images are now, if they were moved.
        data_dir: Where downloads and decoded images are now, if they were moved.

    Raises:
        NoUsableTrials: If no trial has left probabilities.
        UsageError: If the validation images were trained on.
        DamagedError: If probabilities are damaged.
        DataError: If the images cannot be read, or are others.
    """
    run.check_unseen_validation("data issues")
    splits = load_run_splits(run, data, data_dir)
    trials = [trial for trial in run.ranked() if trial.is_scored][:top]
    if not trials:
        raise NoUsableTrials(f"{run.path}: no trial has an accuracy; 'leaderboard' says why")
    labels = _label_issues(splits, _vote(trials, splits))
    duplicates: tuple[DuplicateIssue, ...] = ()
    num_test = 0
    if splits.has_test:
        config, folder = located(run.record.data, run.record.data_dir, data, data_dir)
        settled = splits.config or config
        test = load_test(settled, folder)
        num_test = len(test.images)
        run.log_test_reading(
            Reading(by="data issues", fingerprint=test.fingerprint, images=num_test)
        )
        duplicates = _duplicate_issues(test, load_official(settled, folder, "train"), splits)
    issues = Issues(
        trials=tuple(trial.number for trial in trials),
        checked=len(splits.val),
        labels=labels,
        test_images=num_test,
        duplicates=duplicates,
    )
    write_record(run.path / ISSUES, issues)
    return issues


def _vote(trials: list[TrialRecord], splits: Splits) -> Tensor:
    """Return the mean of the trials' probabilities, shape (N, K)."""
    probs = []
    damage: list[Damage] = []
    for trial in trials:
        candidate, wrong = read_candidate(trial, splits.val.labels, splits.num_classes)
        damage += wrong
        if candidate is not None:
            probs.append(candidate.probs)
    if damage:
        raise DamagedError(damage, "Put the file back.")
    return torch.stack(probs).double().mean(dim=0)


def _label_issues(splits: Splits, vote: Tensor) -> tuple[LabelIssue, ...]:
    given = splits.val.labels
    issues = []
    for rank, index in enumerate(label_errors(vote, given).tolist()):
        label, found = int(given[index]), int(vote[index].argmax())
        issues.append(
            LabelIssue(
                path=splits.val_names[index] if splits.val_names else f"validation image {index}",
                given=splits.classes[label],
                suggested=splits.classes[found],
                given_probability=float(vote[index, label]),
                suggested_probability=float(vote[index, found]),
                picture=_picture(splits.val.images[index]) if rank < MOST_PICTURES else "",
            )
        )
    return tuple(issues)


def _duplicate_issues(
    test: DatasetPart, official: DatasetPart, splits: Splits
) -> tuple[DuplicateIssue, ...]:
    """Compare test images with those that networks were trained on, or chosen by.

    Args:
        test: The test images.
        official: All other images of the data set; a search may use a part of them.
        splits: Those of the search.
    """
    parts: dict[OriginalPart, tuple[Images, np.ndarray | None]] = {
        "training": (splits.train, splits.train_positions)
    }
    # With folds, both are all images.
    if not splits.num_folds:
        parts["validation"] = (splits.val, splits.val_positions)
    nearest: dict[int, tuple[float, OriginalPart, int]] = {}
    for part, (images, positions) in parts.items():
        assert positions is not None, "the images were loaded here"
        for index, place, similarity in near_duplicates(test.images.images, images.images):
            if index not in nearest or similarity > nearest[index][0]:
                nearest[index] = (similarity, part, int(positions[place]))
    ranked = sorted(nearest.items(), key=lambda entry: (-entry[1][0], entry[0]))
    issues = []
    for rank, (index, (similarity, part, original)) in enumerate(ranked):
        is_shown = rank < MOST_PICTURES
        issues.append(
            DuplicateIssue(
                path=_name(test, index, "test"),
                original=_name(official, original, "training"),
                original_part=part,
                test_class=test.classes[int(test.images.labels[index])],
                original_class=official.classes[int(official.images.labels[original])],
                similarity=min(1.0, similarity),
                picture=_picture(test.images.images[index]) if is_shown else "",
                original_picture=_picture(official.images.images[original]) if is_shown else "",
            )
        )
    return tuple(issues)


def _name(part: DatasetPart, index: int, kind: str) -> str:
    return part.names[index] if part.names else f"{kind} image {index}"


def _picture(image: Tensor) -> str:
    """Return a uint8 image, shape (C, H, W), as a PNG in base64."""
    picture = image_of(image.permute(1, 2, 0).numpy())
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
