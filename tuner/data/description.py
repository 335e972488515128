"""What ``data info`` reports about a data set.

Test images are opened, so that broken ones are found before a search and not after it; nothing is
reported about their content.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuner.config import DataConfig
from tuner.data.datasets import DatasetPart, find_files, load_official
from tuner.data.known import KNOWN
from tuner.data.listing import Listing
from tuner.data.splits import Splits, load_test, split


def describe(config: DataConfig, data_dir: Path) -> dict[str, Any]:
    """Describe a data set in plain values: layout, images by class and part, what is left out.

    Args:
        config: Which images; files that cannot be read are listed instead of raising.
        data_dir: Where downloads and decoded images are kept.

    Raises:
        DataError: If images are missing, or there are too few.
    """
    config = replace(config, skip_broken=True)
    official = load_official(config, data_dir, "train")
    splits = split(config, official)
    listing = None if config.source in KNOWN else find_files(config.source)
    settled = splits.config
    assert settled is not None
    test = load_test(settled, data_dir) if listing is not None and splits.has_test else None
    return {
        "data": config.source,
        "layout": "known by name" if listing is None else _layout(listing),
        "classes": list(splits.classes),
        "images": _counts(splits, test),
        "image_shape": list(splits.image_shape),
        "training_images": len(splits.train),
        "validation_images": len(splits.val),
        "test_images": None if listing is None else len(test.images) if test else 0,
        **({} if listing is None else _files(official, test)),
        "resize": settled.resize,
        "value_range": None if settled.white is None else [settled.black, settled.white],
        "left_out": {} if listing is None else {k: list(v) for k, v in listing.left_out.items()},
        "hidden_files": 0 if listing is None else listing.tree.num_hidden,
        "notes": list(splits.notes),
        "mean": [round(value, 4) for value in splits.mean],
        "std": [round(value, 4) for value in splits.std],
        "fingerprint": splits.fingerprint,
        "split_fingerprint": splits.split_fingerprint,
    }


def _layout(listing: Listing) -> str:
    if listing.is_whole:
        return f"{listing.kind}, split by a seed"
    lacking = "" if listing.parts.get("val") else ", validation images split off by a seed"
    return f"{listing.kind}{lacking}{'' if listing.parts.get('test') else ', no test images'}"


def _counts(splits: Splits, test: DatasetPart | None) -> dict[str, dict[str, int]]:
    """Return the number of images by class and part."""
    parts = {"train": splits.train, "val": splits.val, **({"test": test.images} if test else {})}
    counts = {part: Counter(images.labels.tolist()) for part, images in parts.items()}
    return {
        name: {part: count[label] for part, count in counts.items()}
        for label, name in enumerate(splits.classes)
    }


def _files(official: DatasetPart, test: DatasetPart | None) -> dict[str, Any]:
    """Return statistics of the training files, and all files that cannot be read."""
    met = official.met
    return {
        "modes": met.modes,
        "sizes": {
            "smallest": list(met.smallest),
            "median": list(met.median),
            "largest": list(met.largest),
        },
        "broken": dict(sorted({**official.broken, **(test.broken if test else {})}.items())),
    }
