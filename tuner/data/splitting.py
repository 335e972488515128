"""Write a split of a data set to disk: ``data split``."""

import io
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from tuner.data.datasets import check_counts, find_files, items_of, validation_positions
from tuner.data.decoding import image_suffixes, open_image, suffix_for, why_unread
from tuner.data.known import KNOWN
from tuner.data.listing import Item, Listing
from tuner.data.names import listed
from tuner.data.trees import suffix_of
from tuner.errors import DataError, UsageError
from tuner.schema import plural
from tuner.storage.paths import expanded
from tuner.storage.patience import is_unwritable


def write_split(source: str, out: Path, *, val_fraction: float) -> dict[str, int]:
    """Copy images into ``train/``, ``val/`` and ``test/`` with one folder per class.

    They are split as a search would split them; files are copied unchanged.

    Args:
        source: A folder, an archive or a manifest.
        out: The new folder.
        val_fraction: Share of the images to validate on, if the data set has no validation part.

    Returns:
        Number of images in each.

    Raises:
        UsageError: If there is something at ``out``, it lies in ``source``, or cannot be written.
        DataError: If images are missing or unreadable, or too few of a class.
    """
    if source in KNOWN:
        raise UsageError(f"{source}: is not a folder of files; give a folder, archive or manifest")
    if out.exists():
        raise UsageError(f"{out}: is there already. Name a new folder.")
    if out.resolve().is_relative_to(expanded(source).resolve()):
        raise UsageError(f"{out}: lies inside {source}. Name a folder outside of it.")
    listing = find_files(source)
    if listing.broken:
        lines = (f"{listing.tree.shown(name)}: {why}" for name, why in listing.broken.items())
        raise DataError(
            f"{listing.base}: {plural(len(listing.broken), 'file')} cannot be read as images. Mend "
            f"or remove them.{listed(lines)}"
        )
    _check_folders(listing)
    parts = _divided(listing, val_fraction)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            for part, items in parts.items():
                _write_part(listing, items, Path(scratch) / "new" / part)
            (Path(scratch) / "new").rename(out)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror}). Name another.") from error
    return {part: len(items) for part, items in parts.items()}


def _check_folders(listing: Listing) -> None:
    """Check that every class can have its own folder that is found again."""
    for name in listing.classes:
        is_around = any(other.startswith(f"{name}/") for other in listing.classes)
        if is_around or any(part.startswith(".") or not part for part in name.split("/")):
            raise DataError(
                f"{listing.base}: class {name!r} can be no folder of its own that is found again. "
                "Rename it."
            )


def _divided(listing: Listing, val_fraction: float) -> dict[str, Sequence[Item]]:
    check_counts(listing, "train")
    train = items_of(listing, "train")
    if val := listing.parts.get("val"):
        parts: dict[str, Sequence[Item]] = {"train": listing.parts["train"], "val": val}
    else:
        labels = np.array([item.label for item in train])
        whole = len(listing.parts["train"])
        positions = set(validation_positions(labels, whole, val_fraction, str(listing.source)))
        parts = {
            "train": [item for index, item in enumerate(train) if index not in positions],
            "val": [item for index, item in enumerate(train) if index in positions],
        }
    if listing.is_whole or listing.parts.get("test"):
        check_counts(listing, "test")
        parts["test"] = items_of(listing, "test")
    return parts


def _write_part(listing: Listing, items: Sequence[Item], folder: Path) -> None:
    for index, opener in listing.read(items):
        item = items[index]
        target = folder / listing.classes[item.label] / _file_name(item)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source = opener()
            if suffix_of(target.name) not in image_suffixes():
                with open_image(source) as image:
                    target = target.with_name(target.name + suffix_for(image))
            while target.exists():
                target = target.with_name(f"{index}-{target.name}")
            if isinstance(source, io.BytesIO):
                target.write_bytes(source.getvalue())
            else:
                shutil.copyfile(source, target)
        except Exception as error:  # Whatever Pillow and archives raise for damaged files.
            if is_unwritable(error):
                raise
            raise DataError(
                f"{listing.shown(item)}: cannot be copied ({why_unread(error)}). "
                "Repair or remove it."
            ) from error


def _file_name(item: Item) -> str:
    if item.row < 0:
        # A hidden file would not be found again.
        return PurePosixPath(item.name).name.lstrip(".") or "image"
    return f"{PurePosixPath(item.name).stem}-{item.row:07d}"
