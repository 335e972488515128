"""Labelled images to measure a finished classifier on: the only place that reads them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tuner.config import DataConfig
from tuner.data.datasets import find_files, load_official
from tuner.data.decoding import Source, why_unread
from tuner.data.known import KNOWN
from tuner.data.listing import Item, Listing
from tuner.data.manifests import told_broken
from tuner.data.names import normal_form
from tuner.errors import DataError
from tuner.schema import did_you_mean
from tuner.storage.paths import expanded

LabelledPart = Literal["test", "all"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """Images with their classes: files, or decoded images of a data set known by name."""

    source: str
    """Name of the data set, or its path in full."""
    part: LabelledPart
    """``all`` if the data have no parts."""
    classes: tuple[str, ...]
    labels: Tensor
    """int64, shape (N,), positions in ``classes``."""
    images: Tensor | None = None
    """uint8, shape (N, C, H, W), of a data set that is known by name."""
    listing: Listing | None = None
    items: tuple[Item, ...] = ()
    """The images of any other data set, in the order of ``labels``."""

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, position: int) -> str:
        """Return an image's file as the user would write it, or else its position."""
        return self.listing.shown(self.items[position]) if self.listing else str(position)

    @property
    def broken(self) -> list[str]:
        """List further files of the part that should be images and are not, with the reason."""
        if self.listing is None:
            return []
        broken = self.listing.broken if self.part == "all" else self.listing.broken_of("test")
        return [
            f"{self.listing.tree.shown(name)}: cannot be read as an image ({why})"
            for name, why in broken.items()
        ]

    def read(self) -> Iterator[tuple[int, str, Source | DataError]]:
        """Yield the position, name and content of each file, in the fastest order.

        For a file that cannot be read, the reason takes the place of the content.
        """
        assert self.listing is not None
        for position, opener in self.listing.read(self.items):
            name = self.name(position)
            try:
                content: Source | DataError = opener()
            # Archives raise whatever their parsers run into, like images.
            except Exception as error:
                content = DataError(f"{name}: cannot be read as an image ({why_unread(error)})")
            yield position, name, content


def find_labelled(source: str, size: int, data_dir: Path) -> Labelled:
    """Find the images to measure on: the test part if there is one, otherwise all.

    Args:
        source: ``cifar10``, ``cifar100``, ``digits``, a folder, an archive or a manifest.
        size: In pixels, of a data set that is known by name.
        data_dir: Where downloads and decoded images are kept.

    Raises:
        DataError: If there are none.
    """
    if source in KNOWN:
        official = load_official(DataConfig(source=source, image_size=size), data_dir, "test")
        return Labelled(
            source=source,
            part="test",
            classes=official.classes,
            labels=official.images.labels,
            images=official.images.images,
        )
    listing = find_files(source, needs_train=False)
    items = listing.parts["train"] if listing.is_whole else listing.parts.get("test", ())
    if not items:
        raise DataError(
            f"{listing.base}: has no test images; to measure on others, name their folder."
            f"{told_broken(listing.tree, listing.broken_of('test'))}"
        )
    return Labelled(
        source=str(expanded(source).absolute()),
        part="all" if listing.is_whole else "test",
        classes=listing.classes,
        labels=torch.tensor([item.label for item in items]),
        listing=listing,
        items=tuple(items),
    )


def labels_among(labelled: Labelled, known: Sequence[str]) -> Tensor:
    """Return the position of each image's class in ``known``, int64, shape (N,).

    Names that differ only in Unicode's normal form are the same, as file systems change it.

    Raises:
        DataError: If the images have a class that the classifier lacks.
    """
    position = {normal_form(name): index for index, name in enumerate(known)}
    positions = [position.get(normal_form(name), -1) for name in labelled.classes]
    counts = labelled.labels.bincount(minlength=len(labelled.classes)).tolist()
    for name, count, found in zip(labelled.classes, counts, positions, strict=True):
        if count and found < 0:
            hint = did_you_mean(name, known) or f"; it has {', '.join(known[:20])}"
            raise DataError(
                f"{labelled.source}: class {name!r} is not one of the ensemble's{hint}. Rename its "
                "folder or leave it out."
            )
    return torch.tensor(positions)[labelled.labels]
