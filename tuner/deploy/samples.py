"""Real images for comparing an exported ensemble with the original."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tuner.data.decoding import (
    ImageMode,
    ValueRange,
    image_of,
    image_suffixes,
    open_image,
    plain_image,
    why_unread,
)
from tuner.data.names import shown
from tuner.errors import DataError

MOST_FILES = 100
STRETCH = (2, 3)
"""Factors for height and width, to get images that differ from the networks' own size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Images of one size."""

    images: np.ndarray
    """uint8, shape (N, H, W, C)."""
    file: Path | None = None
    """File of the image, if it is a single one from a file of the user."""


def samples_of(images: np.ndarray) -> Iterator[Sample]:
    """Yield images unchanged, and enlarged to oblongs by a filter that the program never uses.

    Args:
        images: uint8, shape (N, H, W, C).
    """
    yield Sample(images=images)
    _, height, width, _ = images.shape
    size = (STRETCH[1] * width + 1, STRETCH[0] * height)
    enlarged = [image_of(pixels).resize(size, Image.Resampling.BICUBIC) for pixels in images]
    yield Sample(images=np.stack([_pixels(image) for image in enlarged]))


def samples_in(
    folder: Path, mode: ImageMode, value_range: ValueRange | None = None
) -> Iterator[Sample]:
    """Return up to 100 images of a folder and its subfolders, evenly chosen, at full size.

    Each image is read when the iterator reaches it.

    Args:
        folder: Hidden files, and files that are not images, are skipped.
        mode: Grey or coloured.
        value_range: Value range of the training images, for images deeper than 8 bits.

    Raises:
        DataError: If there is none or, after the others, with all that cannot be read.
    """
    suffixes = image_suffixes()
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise DataError(f"{folder}: no images there; they end in {' '.join(sorted(suffixes))}")
    count = min(len(files), MOST_FILES)
    return _read(
        [files[number * len(files) // count] for number in range(count)], mode, value_range
    )


def _read(
    files: Sequence[Path], mode: ImageMode, value_range: ValueRange | None
) -> Iterator[Sample]:
    """Yield the readable images; raise at the end if there are others."""
    broken: list[str] = []
    for file in files:
        try:
            pixels = read_pixels(file, mode, value_range)
        except DataError as error:
            broken.append(str(error))
        else:
            yield Sample(images=pixels[None], file=file)
    if broken:
        raise DataError("\n".join(broken))


def read_pixels(path: Path, mode: ImageMode, value_range: ValueRange | None = None) -> np.ndarray:
    """Return the pixels of an image at full size, uint8, shape (H, W, C).

    Raises:
        DataError: If it is missing or unreadable.
    """
    try:
        with open_image(path) as image:
            return _pixels(plain_image(image, mode, value_range))
    # As in decode_file, damaged files raise whatever Pillow's parsers run into.
    except Exception as error:
        raise DataError(
            f"{shown(str(path))}: cannot be read as an image ({why_unread(error)}). Mend or "
            "remove it."
        ) from error


def _pixels(image: Image.Image) -> np.ndarray:
    return np.array(image).reshape(image.height, image.width, -1)
