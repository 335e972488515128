"""What is known of a data set before its images are decoded: how many, and how large."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from tuner.config import DataConfig
from tuner.data.datasets import check_listing, find_files, items_of, validation_positions
from tuner.data.decoding import open_image
from tuner.data.known import KNOWN
from tuner.data.listing import Listing
from tuner.data.splits import load_splits
from tuner.errors import DataError

MOST_OPENED = 64
"""Images whose sides are read, spread over all because those of a class often have one size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """The images that a search would train and validate on."""

    num_train: int
    num_val: int
    """With folds, those of one fold's network, like ``num_train``."""
    num_classes: int
    channels: int
    side: int
    """Pixels of the shorter side, at the median."""


def survey(config: DataConfig, data_dir: Path) -> Survey:
    """Survey the images of ``config`` without decoding those of a folder, archive or manifest.

    Raises:
        DataError: If there are none, or too few to be divided.
    """
    if config.source in KNOWN:
        splits = load_splits(config, data_dir)
        channels, side, _ = splits.image_shape
        num_held_out = len(splits.train) - splits.num_trained
        return Survey(
            num_train=splits.num_trained,
            num_val=num_held_out if splits.num_folds else len(splits.val),
            num_classes=splits.num_classes,
            channels=channels,
            side=side,
        )
    listing = find_files(config.source)
    check_listing(listing, config)
    items = items_of(listing, "train")
    num_val = len(listing.parts.get("val", ()))
    if config.folds is not None:
        count = min(len(items), config.train_limit or len(items))
        num_val = count // config.folds
        return _survey(listing, count - num_val, num_val)
    if not num_val:
        labels = np.array([item.label for item in items])
        whole = len(listing.parts["train"])
        num_val = len(validation_positions(labels, whole, config.val_fraction, config.source))
    num_train = len(items) - num_val
    return _survey(listing, min(num_train, config.train_limit or num_train), num_val)


def _survey(listing: Listing, num_train: int, num_val: int) -> Survey:
    return Survey(
        num_train=num_train,
        num_val=num_val,
        num_classes=len(listing.classes),
        channels=3,
        side=_median_side(listing),
    )


def _median_side(listing: Listing) -> int:
    items = items_of(listing, "train")
    few = items[:: -(-len(items) // MOST_OPENED)]
    sides = []
    with warnings.catch_warnings():
        # Warnings about large images and invalid metadata.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        for _, opened in listing.read(few):
            try:
                with open_image(opened()) as image:
                    sides.append(min(image.size))
            except Exception:  # Whatever Pillow's parsers run into; reading all images reports it.
                continue
    if not sides:
        raise DataError(f"{listing.base}: none of {len(few)} images can be read; look at one.")
    return round(median(sides))
