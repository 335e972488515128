"""The images that training may see: the official training images and their fixed split."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tuner.config import DataConfig
from tuner.data.cache import Images, sha256
from tuner.data.datasets import (
    DatasetPart,
    find_source,
    load_official,
    validation_positions,
)
from tuner.data.known import KNOWN, WITHOUT_NETWORK
from tuner.data.stratified import folds_of, stratified
from tuner.errors import DataError
from tuner.storage.paths import AnyPath

LEAST_STD = 1 / 255
"""Smallest divisor of a channel; if no channel varies this much, there is nothing to learn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """Everything that training may see; it contains no test images."""

    train: Images
    val: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel over ``train``, of values scaled to [0, 1]."""
    std: tuple[float, ...]
    """Like ``mean``; at least 1/255, so that it can divide."""
    fingerprint: str
    """SHA-256 of the official training images, labels and classes, before the split."""
    split_fingerprint: str
    """SHA-256 of the positions of ``train`` and ``val`` among them."""
    fold_of: Tensor | None = None
    """The fold of each image, from 0, int64, shape (N,); ``None`` without folds. With folds,
    ``train`` and ``val`` are both all images; see ``fold``."""
    is_val_seen: bool = False
    """Whether ``val`` is a part of ``train``; if so, it chooses nothing, not even an epoch."""
    has_test: bool = True
    """Whether the data set has test images."""
    val_names: tuple[str, ...] = ()
    """The user's own file of each validation image; empty for data sets known by name."""
    train_positions: np.ndarray | None = None
    val_positions: np.ndarray | None = None
    """Positions of ``train`` and ``val`` among the official training images; ``None`` if these were
    not loaded here."""
    notes: tuple[str, ...] = ()
    """Notes about the data to show to the user unasked."""
    config: DataConfig | None = None
    """What was loaded, with settings that the images determined; ``None`` if nothing was loaded."""
    teacher: Tensor | None = None
    """A teacher's class probabilities for the unaugmented ``train``, float32, shape (N, K)."""
    teacher_fingerprint: str = ""
    """SHA-256 of the file that they come from; empty without a teacher."""

    @property
    def source(self) -> str:
        """The data set, as the user named it."""
        return "images" if self.config is None else self.config.source

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def num_folds(self) -> int:
        """Number of folds; 0 without folds."""
        return 0 if self.fold_of is None else int(self.fold_of.max()) + 1

    @property
    def num_trained(self) -> int:
        """Number of images that a network trains on; with folds, without the first, largest one."""
        held_out = 0 if self.fold_of is None else int((self.fold_of == 0).sum())
        return len(self.train) - held_out

    def fold(self, number: int) -> "Splits":
        """Return the images for the network of a fold: it validates on it and trains on the others.

        Mean and standard deviation stay those of all images: they reveal nothing about labels.
        """
        assert self.fold_of is not None
        is_held_out = self.fold_of == number
        return replace(
            self,
            train=self.train.select(~is_held_out),
            val=self.val.select(is_held_out),
            fold_of=None,
            train_positions=None,
            val_positions=None,
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def expect(self, fingerprint: str, split_fingerprint: str | None, of: AnyPath) -> None:
        """Check that these are the images of an earlier run.

        Args:
            fingerprint: As the run recorded it.
            split_fingerprint: As the run recorded it; ``None`` if they are to be split differently.
            of: The run's folder, for the message.

        Raises:
            DataError: If they are others, or divided otherwise.
        """
        is_same_split = split_fingerprint in (None, self.split_fingerprint)
        if self.fingerprint != fingerprint or not is_same_split:
            raise DataError(
                f"these are not the images that {of} was trained on (their fingerprint differs); "
                "put the old ones back, name their new place with --data, or search again"
            )


def located(
    config: DataConfig, data_dir: str | Path, data: str | None, new_dir: str | Path | None
) -> tuple[DataConfig, Path]:
    """Return the current location of a run's images and of the data folder.

    Args:
        config: As the run recorded it.
        data_dir: Likewise.
        data: Where the images were moved to; ``None`` if they were not.
        new_dir: Likewise, for ``data_dir``.

    Raises:
        DataError: If images that are fetched are to be read from a folder that may have come with
            the run.
    """
    if data is not None:
        config = replace(config, source=find_source(data))
    is_fetched = config.source in KNOWN and config.source not in WITHOUT_NETWORK
    if is_fetched and new_dir is None and not Path(data_dir).is_absolute():
        raise DataError(
            f"the run records a relative data folder, {str(data_dir)!r}, which may have come with "
            f"the run. Say where the images of {config.source} are kept, with --data-dir FOLDER."
        )
    return config, Path(data_dir if new_dir is None else new_dir).absolute()


def load_splits(config: DataConfig, data_dir: Path) -> Splits:
    """Load the training images and split them, without decoding a test image.

    Args:
        config: Which images, and how they are prepared.
        data_dir: Where downloads and decoded images are kept.

    Raises:
        DataError: If images are missing or unreadable, or fewer than ``config.train_limit``.
    """
    return split(config, load_official(config, data_dir, "train"))


def split(config: DataConfig, official: DatasetPart) -> Splits:
    """Split the official training images, as loaded by ``config``.

    Raises:
        DataError: If there are fewer than ``config.train_limit``, or too few of a class.
    """
    labels = official.images.labels.numpy()
    num_classes = len(official.classes)

    if config.folds is not None:
        return _folded(config, official)
    if official.val is None:
        whole = len(labels) if official.num_whole is None else official.num_whole
        val = validation_positions(labels, whole, config.val_fraction, config.source)
    else:
        val = official.val
    train = np.setdiff1d(np.arange(len(labels)), val, assume_unique=True)
    if (limit := config.train_limit) is not None:
        if config.all_data:
            # With folds, which such a refit drops, the limit is one of all images.
            limit = min(limit, len(train))
        if not num_classes <= limit <= len(train):
            raise DataError(
                f"train_limit {limit} must lie between the {num_classes} classes and the "
                f"{len(train)} training images of {config.source}"
            )
        train = train[stratified(labels[train], limit)]
    if config.all_data:
        train = np.union1d(train, val)

    return _splits(
        config,
        official,
        official.images.select(torch.from_numpy(train)),
        official.images.select(torch.from_numpy(val)),
        train,
        val,
        sha256(b"train", train.tobytes(), b"val", val.tobytes()),
    )


def _folded(config: DataConfig, official: DatasetPart) -> Splits:
    """Divide all images except test images into folds.

    Raises:
        DataError: If there are too few of a class.
    """
    assert config.folds is not None
    labels = official.images.labels.numpy()
    kept = np.arange(len(labels))
    if (limit := config.train_limit) is not None:
        if not len(official.classes) <= limit <= len(labels):
            raise DataError(
                f"train_limit {limit} must lie between the {len(official.classes)} classes and the "
                f"{len(labels)} images of {config.source}"
            )
        kept = stratified(labels, limit)
    counts = np.bincount(labels[kept], minlength=len(official.classes))
    if counts.min() < 2 or len(kept) < config.folds:
        fewest = official.classes[int(counts.argmin())]
        raise DataError(
            f"folds: {config.source} has {len(kept)} images, {counts.min()} of class {fewest}: "
            f"{config.folds} folds need an image each, and 2 of every class"
        )
    folds = folds_of(labels[kept], config.folds)
    images = official.images.select(torch.from_numpy(kept))
    fingerprint = sha256(b"folds", folds.tobytes(), b"of", kept.tobytes())
    splits = _splits(config, official, images, images, kept, kept, fingerprint)
    return replace(splits, fold_of=torch.from_numpy(folds))


def _splits(
    config: DataConfig,
    official: DatasetPart,
    train: Images,
    val: Images,
    train_positions: np.ndarray,
    val_positions: np.ndarray,
    split_fingerprint: str,
) -> Splits:
    mean, std = _mean_and_std(train.images)
    if max(std) < LEAST_STD:
        raise DataError(
            f"{config.source}: the training images have no contrast: all are of the same colour. "
            "Look at one of them, and at its depth: data info shows it."
        )
    return Splits(
        train=train,
        val=val,
        classes=official.classes,
        mean=mean,
        std=tuple(max(value, LEAST_STD) for value in std),
        fingerprint=official.fingerprint,
        split_fingerprint=split_fingerprint,
        is_val_seen=config.all_data,
        has_test=official.has_test,
        val_names=tuple(official.names[index] for index in val_positions) if official.names else (),
        train_positions=train_positions,
        val_positions=val_positions,
        notes=official.notes,
        config=_settled(config, official),
    )


def _settled(config: DataConfig, official: DatasetPart) -> DataConfig:
    """Return the config with the settings that its images determine."""
    black, white = official.met.value_range or (None, None)
    return replace(config, resize=official.met.resize, black=black, white=white)


def load_test(config: DataConfig, data_dir: Path) -> DatasetPart:
    """Load the test images; callers record each reading in the run's ``test_readings.jsonl``.

    Args:
        config: Which images, and how they are prepared.
        data_dir: Where downloads and decoded images are kept.

    Raises:
        DataError: If images are missing or unreadable.
    """
    return load_official(config, data_dir, "test")


def _mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # By histogram: exact, and 0.1 s for 45,000 images of 3x32x32, a fifth of summing floats.
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(dim=1):
        shares = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = shares @ values
        means.append(mean.item())
        stds.append(((values - mean).square() @ shares).sqrt().item())
    return tuple(means), tuple(stds)
